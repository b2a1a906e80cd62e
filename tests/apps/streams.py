"""A page with `?streams=5`, every other one written by hand. `VISITS=1`: each request counts a visit in the session;
`MULTIPLEX=0`: no carriers; `REFUSED=1`: something before the app refuses orders"""
import asyncio
import os
from fasthtml.common import *
from starlette.responses import StreamingResponse
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

def visit(sess): sess['visits'] = sess.get('visits', 0)+1

scripts = [Script(src=f'/assets/{o}') for o in ('htmx.org/dist/htmx.min.js', 'htmx-ext-sse/dist/sse.min.js')]
app = FastHTML(hdrs=scripts, default_hdrs=False, secret_key='test', before=[visit] if os.environ.get('VISITS') else None)
app.mount('/assets', StaticFiles(directory=os.environ['ASSETS']))
sse = SSEBroadcastManager(retry=200, heartbeat=2., max_queue_size=500, replay_size=1000)
setup_sse(app, sse, multiplex=os.environ.get('MULTIPLEX') != '0')

said,sent = ['hello'],[-1]  # The last that was said, and in bulk

class Refusing:
    "What some firewalls do"
    def __init__(self, app): self.app = app
    async def __call__(self, scope, receive, send):
        refused = scope['type'] == 'http' and scope['method'] == 'POST' and '_sse' in scope['path']
        await (Response('no', 403) if refused else self.app)(scope, receive, send)

served = Refusing(app) if os.environ.get('REFUSED') else app

@app.get
def events(req, n: int): return sse.stream(req, events='said', render=lambda m: f'{m["data"]}', snapshot=lambda: said[-1])

@app.get
def by_hand(n: int):
    async def frames():
        async with sse.subscribe(events='said') as queue:
            yield f'data: {said[-1]}\n\n'
            while True: yield f'data: {(await queue.get())["data"]}\n\n'
    return StreamingResponse(frames(), media_type='text/event-stream')

@app.get
def bulk(req): return sse.stream(req, events='bulk', render=lambda m: f'{m["data"]} {"x"*100_000}', snapshot=lambda: f'{sent[-1]}')

def connected(n): return HTMXSSEConnector.create_sse_element(endpoint=f'/by_hand?n={n}' if n%2 else f'/events?n={n}', element_id=f's{n}')

@app.get('/')
def index(streams: int=5): return Titled('Streams', *map(connected, range(streams)))

@app.get('/bulky')
def bulky(): return Titled('Bulk', connected(0), HTMXSSEConnector.create_sse_element(endpoint='/bulk', hidden=True))

@app.get
async def say(text: str):
    said[:] = [text]
    return str(await sse.broadcast('said', text))

@app.get
async def say_bulk(mb: int):
    "Numbers, each with a hundred KB"
    for n in range(10*mb):
        sent[:] = [n]
        await sse.broadcast('bulk', n)
        if n%20 == 19: await asyncio.sleep(.02)
    return str(n)
