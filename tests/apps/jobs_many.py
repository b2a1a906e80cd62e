"A page with a global stream and as many as asked for beside it, some written by hand; one connection for all"
import os
from collections import Counter
from fasthtml.common import *
from starlette.responses import StreamingResponse
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import segment
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

files = ('htmx4/dist/htmx.min.js', 'htmx4/dist/ext/hx-sse.min.js') if os.environ.get('HTMX') == '4' else ('htmx.org/dist/htmx.min.js', 'htmx-ext-sse/dist/sse.min.js')
app = FastHTML(hdrs=[Script(src=f'/assets/{o}') for o in files], default_hdrs=False, secret_key='test')
app.mount('/assets', StaticFiles(directory=os.environ['ASSETS']))
manager,counts,streams = SSEBroadcastManager(retry=200, heartbeat=2., backend=os.environ.get('BACKEND') or None),Counter(),int(os.environ.get('STREAMS', 20))
setup_sse(app, manager)

class Counting:
    "Connections that carry streams, as the server sees them"
    def __init__(self, app): self.app = app
    async def __call__(self, scope, receive, send):
        if scope['type'] != 'http': return await self.app(scope, receive, send)
        kind = []
        def _send(message):
            if message['type'] == 'http.response.start':
                kind[:] = [v for k,v in message['headers'] if k == b'content-type' and v.split(b';')[0] in (b'text/event-stream', b'application/octet-stream')]
                for o in kind: counts[o.decode().split(';')[0]] += 1
            return send(message)
        try: await self.app(scope, receive, _send)
        finally:
            for o in kind: counts[o.decode().split(';')[0]] -= 1

@app.get
def events(req): return manager.stream(req, render=lambda m: f'{m["data"]}', events='all:*')

@app.get
def job(req, n: int): return manager.stream(req, render=lambda m: f'{m["data"]}', events=f'job:{segment(n)}', snapshot=lambda: Span(f'state of {n}'))

@app.get
def by_hand(n: int):
    async def frames():
        queue = await manager.register_connection()
        try:
            yield sse_message(Span(f'hello {n}'))
            while True:
                message = await queue.get()
                if message['type'] == f'hand:{n}': yield f'data: {message["data"]}\n\n'
        finally: await manager.unregister_connection(queue)
    return StreamingResponse(frames(), media_type='text/event-stream')

def connected(url, id): return HTMXSSEConnector.create_sse_element(endpoint=url, element_id=id)

@app.get('/')
def index(): return Titled('Many', connected('/events', 'all'), *(connected(f'/by_hand?n={n}' if n%5 == 4 else f'/job?n={n}', f'job-{n}') for n in range(streams)))

@app.get
async def say(type: str, data: str): return str(await manager.broadcast(type, data))

@app.get
def counted(): return JSONResponse(dict(counts=+counts, connections=manager.connection_count, pid=os.getpid()))

served = Counting(app)
