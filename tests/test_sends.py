"""What middleware may do around a send. The library runs sends from its pump, so none of it may reach the pump or another stream

Each of these is a function of the `send` underneath and a message; streams go through it, beside one that does not."""
import asyncio
import contextvars
from functools import partial

import anyio
import anyio.to_thread
import pytest
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.sessions import SessionMiddleware

from cjm_fasthtml_sse.core import SSEBroadcastManager
from support import BOUND, eventually, following

user = contextvars.ContextVar('user', default='nobody')
WAYS = {}
def way(f): WAYS[f.__name__] = f; return f
def is_live(m): return m['type'] == 'http.response.body' and b'live' in m.get('body', b'')

@way
async def nothing(send, m): await send(m)
@way
async def a_turn_of_the_loop(send, m):
    await asyncio.sleep(0)
    await send(m)
@way
async def a_wait(send, m):
    await asyncio.sleep(.003)
    await send(m)
@way
async def a_turn_after(send, m):
    await send(m)
    await asyncio.sleep(0)
@way
async def a_timeout(send, m):
    async with asyncio.timeout(BOUND): await send(m)
@way
async def a_timeout_around_a_wait(send, m):
    async with asyncio.timeout(BOUND):
        await asyncio.sleep(.003)
        await send(m)
@way
async def a_timeout_that_fires(send, m):
    try:
        async with asyncio.timeout(.003): await asyncio.sleep(BOUND)
    except TimeoutError: await send(m)
@way
async def wait_for(send, m): await asyncio.wait_for(send(m), BOUND)
@way
async def a_shield(send, m): await asyncio.shield(asyncio.ensure_future(send(m)))
@way
async def anyio_scope(send, m):
    with anyio.CancelScope(): await send(m)
@way
async def anyio_scope_around_a_wait(send, m):
    with anyio.CancelScope():
        await asyncio.sleep(.003)
        await send(m)
@way
async def anyio_scope_that_is_cancelled(send, m):
    with anyio.move_on_after(.003): await anyio.sleep(BOUND)
    await send(m)
@way
async def anyio_checkpoint(send, m):
    await anyio.lowlevel.checkpoint()
    await send(m)
@way
async def a_thread(send, m):
    await anyio.to_thread.run_sync(lambda: None)
    await send(m)
@way
async def a_task_group(send, m):
    async with asyncio.TaskGroup() as g: g.create_task(send(m))
@way
async def anyio_task_group(send, m):
    async with anyio.create_task_group() as g: g.start_soon(send, m)
@way
async def the_current_task(send, m):
    assert asyncio.current_task() is not None and asyncio.current_task().cancelling() == 0
    await send(m)
@way
async def the_context(send, m):
    assert user.get() == 'mine', f'{user.get()!r} is the context of who broadcasts'
    await send(m)
@way
async def a_token(send, m):
    token = user.set('within')
    try:
        await asyncio.sleep(.003)
        await send(m)
    finally: user.reset(token)

locks = {}
@way
async def a_lock(send, m):
    async with locks.setdefault('asyncio', asyncio.Lock()): await send(m)
@way
async def anyio_lock(send, m):
    async with locks.setdefault('anyio', anyio.Lock()): await send(m)
@way
async def anyio_lock_around_a_wait(send, m):
    async with locks.setdefault('anyio', anyio.Lock()):
        await asyncio.sleep(.003)
        await send(m)

class Through(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next): return await call_next(request)
def base(app): return Through(app)
def session(app): return SessionMiddleware(app, secret_key='secret')
STACKS = dict(session=session, base=base, base_twice=lambda a: base(base(a)), base_and_session=lambda a: base(session(base(a))))

def around(f, app):
    async def middleware(scope, receive, send):
        user.set('mine')
        await app(scope, receive, partial(f, send))
    return middleware

def in_a_future(send, m): return asyncio.ensure_future(send(m))  # What some servers give is no coroutine

class Promise:
    def __init__(self, coro): self.coro = coro
    def __await__(self): return self.coro.__await__()
def in_an_object(send, m): return Promise(send(m))

HARMLESS = {k: partial(around, f) for k,f in WAYS.items()} | dict(a_future=partial(around, in_a_future), an_object=partial(around, in_an_object)) | STACKS

@pytest.mark.parametrize('name', HARMLESS)
async def test_harmless(name):
    "Everything arrives, in order, for this stream and for one beside it"
    locks.clear()
    user.set('who broadcasts')
    manager = SSEBroadcastManager()
    async with following(manager, wrap=HARMLESS[name]) as first, following(manager, wrap=HARMLESS[name]) as second, following(manager) as beside:
        for i in range(30):
            assert await manager.broadcast('x', f'live {i}') == 3
            if i%10 == 9: await asyncio.sleep(.001)
        for client in (first, second, beside):
            await eventually(lambda: sum(e.event == 'x' for e in client.events) == 30, 'all has come')
            assert [e.data for e in client.events if e.event == 'x'] == [f'"live {i}"' for i in range(30)]
    assert manager.stats()['errors'] == 0 and not manager.connections

async def the_browser_is_gone(send, m):
    if is_live(m): raise OSError('gone')
    await send(m)
async def gone_after_a_wait(send, m):
    if is_live(m):
        await asyncio.sleep(.003)
        raise OSError('gone')
    await send(m)
async def an_error(send, m):
    if is_live(m): raise ValueError('of the middleware')
    await send(m)
def an_error_at_once(send, m):
    if is_live(m): raise ValueError('of the middleware')
    return send(m)
async def cancelled(send, m):
    if is_live(m): raise asyncio.CancelledError
    await send(m)
async def cancelled_after_a_wait(send, m):
    if is_live(m):
        await asyncio.sleep(.003)
        raise asyncio.CancelledError
    await send(m)

@pytest.mark.parametrize('f,ended', [(the_browser_is_gone, 'disconnected'), (gone_after_a_wait, 'disconnected'), (an_error, 'failed'), (an_error_at_once, 'failed'),
    (cancelled, 'failed'), (cancelled_after_a_wait, 'failed')])
async def test_harmful(f, ended):
    "A stream whose send fails ends; nothing else does"
    manager = SSEBroadcastManager()
    async with following(manager) as before, following(manager, wrap=partial(around, f)) as client, following(manager) as after:
        conn = client.conn
        for i in range(5): await manager.broadcast('x', f'live {i}')
        await eventually(lambda: conn.ended == ended and conn not in manager.connections, ended)
        for i in range(5, 10): await manager.broadcast('x', f'live {i}')
        for beside in (before, after): await eventually(lambda: [e.data for e in beside.events if e.event == 'x'] == [f'"live {i}"' for i in range(10)], 'all has come')
        await eventually(lambda: manager.connection_count == 2)
    assert manager.stats()['errors'] == (ended == 'failed') and not manager.connections
