"A stream for many clients, with all that a FastHTML app has around it; `LIFESPAN` in the environment names a file that the shutdown writes to"
import asyncio, gc, os, sys
from fasthtml.common import *
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.engine.queues import ConnectionQueue
from cjm_fasthtml_sse.dispatcher import segment
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.engine.connection import Connection
from cjm_fasthtml_sse.engine.group import Group
from cjm_fasthtml_sse.engine.response import EventStreamResponse
from cjm_fasthtml_sse.engine.wire import SSEError

async def lifespan(app):
    yield
    if name := os.environ.get('LIFESPAN'):
        with open(name, 'a') as f: f.write('shutdown ran')  # One after another where there are several workers

app, rt = fast_app(lifespan=lifespan)
manager = SSEBroadcastManager(max_queue_size=int(os.environ.get('MAX_QUEUE', 100)), heartbeat=float(os.environ.get('HEARTBEAT', 15)),
    replay_size=int(os.environ['REPLAY']) if 'REPLAY' in os.environ else None)
if os.environ.get('SETUP', '1') == '1': setup_sse(app, manager)

@rt
def events(req): return manager.stream(req)

@rt
async def by_hand(req):
    async def read():
        queue = await manager.register_connection()
        try:
            while True: yield f"data: {(await queue.get())['data']}\n\n"
        finally: await manager.unregister_connection(queue)
    return EventStream(read())

@rt
async def say(text: str, times: int = 1):
    for _ in range(times): n = await manager.broadcast('said', text)
    return str(n)

@rt
def stats(): return JSONResponse(manager.stats())

@rt
async def tell(kind: str = ''):
    "An event type from outside, unchecked"
    try: await manager.broadcast(kind, 'told')
    except SSEError as e: return type(e).__name__
    return 'told'

@rt
def room(req, name: str): return manager.stream(req, events=f'room:{segment(name)}:**')

@rt
async def tell_room(name: str): return str(await manager.broadcast(f'room:{segment(name)}:news', name))

@rt
async def held():
    "What is open, under way and in use, for who looks for leaks"
    for _ in range(2): gc.collect()
    objects = sum(isinstance(o, (Connection, Group, ConnectionQueue, EventStreamResponse)) for o in gc.get_objects())
    return JSONResponse(dict(connections=manager.connection_count, requests=len(manager._hub.requests), tasks=len(asyncio.all_tasks()), files=len(os.listdir('/proc/self/fd')),
        objects=objects, blocks=sys.getallocatedblocks()))

serve(host='127.0.0.1')
