"This library, as its users write it: FastHTML with its own middleware, one updater that renders each broadcast"
import asyncio
import gc
import os

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import segment
from cjm_fasthtml_sse.engine import pump
from cjm_fasthtml_sse.helpers import oob_update, setup_sse
from cjm_fasthtml_sse.updater import SSEElementUpdater
from fasthtml.common import FastHTML
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

app = FastHTML(secret_key='bench', default_hdrs=os.environ.get('HEADERS')!='no')
sse, updater = SSEBroadcastManager(direct=os.environ.get('DIRECT')!='no'), SSEElementUpdater()
setup_sse(app, sse)
pump.BATCH = int(os.environ.get('BATCH', pump.BATCH))
WHO = os.environ.get('WHO', 'all')  # `own`: patterns of its own for each connection, and messages to all; `one`: each message is for one connection


@updater.register('**')
def tick(text): return oob_update('tick', text)


@app.get('/events')
def events(req, n: int):
    return sse.stream(req, render=updater, events='**' if WHO=='all' else ['tick', f'user:{segment(str(n))}:**'])


@app.get('/plain')
async def plain(): return 'ok'


class Parked(Response):
    "What any stream has: the request, its answer's beginning, and a wait for the client to leave"
    async def __call__(self, scope, receive, send):
        await send(dict(type='http.response.start', status=200, headers=[(b'content-type', b'text/event-stream')]))
        await send(dict(type='http.response.body', body=b': ok\n\n', more_body=True))
        while (await receive())['type']!='http.disconnect': pass


@app.get('/parked')
def parked(req, n: int): return Parked()


async def publish(req):
    text,users = (await req.body()).decode(),max(1, sse.connection_count)
    for i in range(int(req.query_params.get('times', 1))):
        await sse.broadcast(f'user:{i*7919%users}:tick' if WHO=='one' else 'tick', text)
        await asyncio.sleep(0)
    return Response()


# As the peers have it, so that the request that publishes costs all of them the same
app.router.routes.insert(0, Route('/publish', publish, methods=['POST']))


# What of it is FastHTML's: the same without it
if os.environ.get('HOST')=='starlette':
    async def bare(req): return sse.stream(req, render=updater)
    app = Starlette(routes=[Route('/events', bare), Route('/publish', publish, methods=['POST'])])

# What the page says about the garbage collector is measured here
match os.environ.get('GC'):
    case 'freeze':
        gc.collect()
        gc.freeze()
    case 'rare': gc.set_threshold(50_000, 20, 100)
    case 'off': gc.disable()
