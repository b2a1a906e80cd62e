"""An app with every kind of stream, for tests that need a server process

Set by the environment: LIFESPAN names a file to which the shutdown writes, LATE one that `/late` waits for, BACKEND what connects several workers, SECRET the app's key;
MAX_QUEUE, REPLAY, HEARTBEAT and RETRY are the manager's.
"""
import asyncio
import gc
import os
import sys
import time
from collections import Counter
from fasthtml.common import *
from starlette.responses import StreamingResponse
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import segment
from cjm_fasthtml_sse.helpers import setup_sse

env = os.environ.get

async def lifespan(app):
    await manager.open()
    yield
    if name := env('LIFESPAN'):
        with open(name, 'a') as f: f.write('shutdown ran ')  # One behind another, where there are several workers

def guard(req, sess):
    "Nobody sees `/private` without having logged in, nor after the session has expired"
    if not req.url.path.startswith('/private'): return
    if sess.get('until', 9e9)<time.time(): sess.clear()
    if not sess.get('auth'): return Response('log in', 401)
    req.scope['auth'] = sess['auth']

manager = SSEBroadcastManager(max_queue_size=int(env('MAX_QUEUE', 100)), heartbeat=float(env('HEARTBEAT', 15)),
                              retry=int(env('RETRY', 3000)),
    replay_size=int(env('REPLAY')) if env('REPLAY') else None, backend=env('BACKEND'))
app, rt = fast_app(secret_key=env('SECRET', 'test'), lifespan=lifespan, before=guard)
setup_sse(app, manager)

# Streams

@rt
def events(req): return manager.stream(req)

@rt
def private(req, auth): return manager.stream(req, render=lambda m: f'{auth}: {m["data"]}', user=auth)

@rt
def room(req, name: str): return manager.stream(req, events=f'room:{segment(name)}:**')

@rt
def by_hand():
    "Written as apps of the older package do, the number of the process first"
    async def read():
        queue = await manager.register_connection()
        try:
            yield f'data: {os.getpid()}\n\n'
            while True: yield f'data: {(await queue.get())["data"]}\n\n'
        finally: await manager.unregister_connection(queue)
    return EventStream(read())

late_ones = []

@rt
async def late(req):
    "One that begins after a while: once there is the file LATE, or after a second"
    late_ones.append(req)
    if name := env('LATE'):
        while not os.path.exists(name): await asyncio.sleep(.02)  # The test makes it
    else: await asyncio.sleep(1)  # A route that takes its time
    return manager.stream(req)

@rt
def flood(kb: int=16, wait: float=0):
    "One that no manager ends"
    async def frames():
        while True:
            yield f'data: {"x"*1024*kb}\n\n'
            await asyncio.sleep(wait)  # As the request says
    return StreamingResponse(frames(), media_type='text/event-stream')

@rt
def at_leisure():
    "One that is through by itself, after three seconds"
    async def frames():
        for n in range(30):
            yield f'data: {n}\n\n'
            await asyncio.sleep(.1)  # A stream that lasts for three seconds
    return EventStream(frames())

# What happens

@rt
async def say(text: str, times: int=1):
    for _ in range(times): n = await manager.broadcast('said', text)
    return str(n)

@rt
async def tell(kind: str=''):
    "An event type from outside, unchecked"
    try: await manager.broadcast(kind, 'told')
    except ValueError: return 'refused'
    return 'told'

@rt
async def tell_room(name: str): return str(await manager.broadcast(f'room:{segment(name)}:news', name))

@rt
def login(name: str, sess, until: float=9e9):
    sess.update(auth=name, until=until)
    return name

@rt
def logout(sess):
    sess.clear()
    return 'bye'

# What the process holds

@rt
def stats(): return JSONResponse(dict(manager.stats(), pid=os.getpid(), cursor=manager.cursor, late=len(late_ones)))

@rt
def history(): return JSONResponse([m['data'] for m in manager.get_history()])

@rt
async def held():
    "What is open, under way and in use, for who looks for leaks"
    for _ in range(2): gc.collect()
    ours = sum(n for t,
               n in Counter(map(type, gc.get_objects())).items() if str(t.__module__).startswith('cjm_fasthtml_sse'))
    return JSONResponse(dict(connections=manager.connection_count, requests=manager.inspect()['requests'],
                             tasks=len(asyncio.all_tasks()),
        files=len(os.listdir('/proc/self/fd')), objects=ours, blocks=sys.getallocatedblocks()))

serve(host='127.0.0.1')
