"Streams of all kinds on one connection, users that log in and out, and what the server holds. `LIFESPAN` names a file that shutdown writes to, `BACKEND` what connects several workers"
import asyncio
import os
import time
from fasthtml.common import *
from starlette.responses import StreamingResponse
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

async def lifespan(app):
    await manager.open()
    yield
    if name := os.environ.get('LIFESPAN'):
        with open(name, 'a') as f: f.write('shutdown ran ')

def guard(req, sess):
    "Nobody sees `/private` without having logged in, nor after the session has expired"
    if not req.url.path.startswith('/private'): return
    if sess.get('until', 9e9)<time.time(): sess.clear()
    if not sess.get('auth'): return Response('log in', 401)
    req.scope['auth'] = sess['auth']

manager = SSEBroadcastManager(max_queue_size=10, heartbeat=2., retry=200, backend=os.environ.get('BACKEND') or None)
app = FastHTML(secret_key='test', default_hdrs=False, lifespan=lifespan, before=guard)
setup_sse(app, manager)

def entered(name, sess, until):
    sess.update(auth=name, until=until)
    return name

@app.get('/login')
def login(name: str, sess, until: float=9e9): return entered(name, sess, until)

@app.get('/logout')
def logout(sess):
    sess.clear()
    return 'bye'

@app.get('/events')
def events(req): return manager.stream(req, render=lambda m: f'{m["data"]}')

@app.get('/private')
def private(req, auth): return manager.stream(req, render=lambda m: f'{auth}: {m["data"]}', user=auth)

@app.get('/by_hand')
async def by_hand(req):
    async def frames():
        async with manager.subscribe() as queue:
            yield f'data: {os.getpid()}\n\n'
            while True: yield f'data: {(await queue.get())["data"]}\n\n'
    return StreamingResponse(frames(), media_type='text/event-stream')

@app.get('/flood')
async def flood(kb: int=16, wait: float=0):
    async def frames():
        n = 0
        while True:
            yield f'id: {n}\ndata: {n} {"x"*1024*kb}\n\n'
            await asyncio.sleep(wait)
            n += 1
    return StreamingResponse(frames(), media_type='text/event-stream')

@app.get('/say')
async def say(text: str): return str(await manager.broadcast('said', text))

@app.get('/held')
async def held():
    carriers = app._sse_setup.multiplexer.carriers.values()
    channels = [o for c in carriers for o in c.channels.values()]
    return JSONResponse(dict(pid=os.getpid(), carriers=len(carriers), channels=len(channels), waiting=sum(o.writer.pending_bytes for o in carriers),
        connections=manager.connection_count, requests=len(manager._hub.requests), tasks=len(asyncio.all_tasks())))
