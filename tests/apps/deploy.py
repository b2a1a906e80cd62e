"Pages with the client of this version, and with one of an older version that somebody still has open"
import os
from html import escape
from pathlib import Path
from fasthtml.common import *
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

scripts = [f'/assets/{o}' for o in ('htmx.org/dist/htmx.min.js', 'htmx-ext-sse/dist/sse.min.js')]
app = FastHTML(hdrs=[Script(src=o) for o in scripts], default_hdrs=False, secret_key='test')
app.mount('/assets', StaticFiles(directory=os.environ['ASSETS']))
app.mount('/fixtures', StaticFiles(directory=Path(__file__).parents[1]/'browser/fixtures'))
sse = SSEBroadcastManager(retry=200, heartbeat=2., replay_size=1000)
setup_sse(app, sse)

@app.get
def events(req): return sse.stream(req, render=lambda m: f'{m["data"]}')

@app.get
def new(): return Titled('New', HTMXSSEConnector.create_sse_element(endpoint='/events', hidden=True, after=sse.cursor))

@app.get
def old():
    "As the older version wrote it"
    head = ''.join(f'<script src="{o}"></script>' for o in scripts)
    return HTMLResponse(f'<!doctype html><head>{head}<script src="/fixtures/client-old.js" data-sse-client data-sse-tag="5b0f1c2d3e4f5a6b" data-sse-mux="/_sse/mux"></script></head>'
        f'<body><div hx-ext="sse" sse-connect="/events" sse-swap="message" hx-swap="none" hidden data-sse-after="{escape(sse.cursor)}"></div></body>')

@app.get
async def say(text: str): return str(await sse.broadcast('said', text))
