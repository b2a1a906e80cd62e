"""A page with as many streams as `STREAMS` says, each fifth written by hand; one connection for all. `/counted` says which
process this is, and what streams from it, by its type"""
import os
from collections import Counter
from fasthtml.common import *
from starlette.responses import StreamingResponse
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

FILES = {'2': ['htmx.org/dist/htmx.min.js', 'htmx-ext-sse/dist/sse.min.js'],
         '4': ['htmx4/dist/htmx.min.js', 'htmx4/dist/ext/hx-sse.min.js']}
scripts = [Script(src=f'/assets/{o}') for o in FILES[os.environ.get('HTMX', '2')]]
app = FastHTML(hdrs=scripts, default_hdrs=False, secret_key='test')
app.mount('/assets', StaticFiles(directory=os.environ['ASSETS']))
manager,streaming = SSEBroadcastManager(retry=200, heartbeat=2.),Counter()
setup_sse(app, manager)

@app.get
def streamed(req): return manager.stream(req, render=lambda m: f'{m["data"]}')

@app.get
def by_hand():
    async def frames():
        async with manager.subscribe() as queue:
            while True: yield f'data: {(await queue.get())["data"]}\n\n'
    return StreamingResponse(frames(), media_type='text/event-stream')

def place(n): return HTMXSSEConnector.create_sse_element(
    endpoint=f'/{"by_hand" if n%5 == 4 else "streamed"}?n={n}', element_id=f's{n}', cls='stream')

@app.get('/')
def index(): return Titled('Many', *map(place, range(int(os.environ['STREAMS']))))

@app.get
async def say(text: str): return JSONResponse(await manager.broadcast('said', text))

@app.get
def counted(): return JSONResponse(dict(pid=os.getpid(), open=+streaming))

async def served(scope, receive, send):
    kinds = []
    def counting(message):
        if message['type'] == 'http.response.start' and message['status'] == 200:
            all = [v.decode().partition(';')[0] for k,v in message['headers'] if k == b'content-type']
            kinds[:] = [o for o in all if o in ('text/event-stream', 'application/octet-stream')]
            streaming.update(kinds)
        return send(message)
    if hasattr(send, '__self__'): counting.__self__ = send.__self__  # Where our layers look for the server
    try: await app(scope, receive, counting)
    finally: streaming.subtract(kinds)
