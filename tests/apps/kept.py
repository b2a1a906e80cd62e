"""Three streams whose messages a log keeps: in memory, or in the SQLite file or the Redis at `STORE`. `/say?n=7` broadcasts
the next 7 of them, to one stream after another"""
import os
from fasthtml.common import *
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

FILES = {'2': ['htmx.org/dist/htmx.min.js', 'htmx-ext-sse/dist/sse.min.js'],
         '4': ['htmx4/dist/htmx.min.js', 'htmx4/dist/ext/hx-sse.min.js']}
scripts = [Script(src=f'/assets/{o}') for o in FILES[os.environ.get('HTMX', '2')]]
app = FastHTML(hdrs=scripts, default_hdrs=False, secret_key='test')
app.mount('/assets', StaticFiles(directory=os.environ['ASSETS']))
store = os.environ.get('STORE', '')
backend = dict(backend=store) if store else {}
manager = SSEBroadcastManager(retry=200, heartbeat=15., **backend)
setup_sse(app, manager)

@app.get('/{name}/events')
def events(req, name: str): return manager.stream(req, render=lambda m: f'{m["data"]}', events=f'{name}:*')

@app.get('/')
def index():
    return Titled('Kept', *[HTMXSSEConnector.create_sse_element(endpoint=f'/{o}/events', element_id=o) for o in 'abc'])

@app.get
async def say(first: int, n: int):
    for i in range(first, first+n): await manager.broadcast(f'{"abc"[i%3]}:said', i)
    return 'said'
