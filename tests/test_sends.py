"""What middleware may do around a send. The library runs sends from its pump, so none of it may reach the pump or another stream

Each of these is a function of the `send` underneath and a message; streams go through it, beside one that does not."""
import asyncio
import contextvars
from functools import partial

import anyio
import anyio.to_thread
import pytest
from starlette.requests import Request

from cjm_fasthtml_sse.core import SSEBroadcastManager
from tests.contract.support import BOUND, all_live, eventually, listening

user = contextvars.ContextVar('user', default='nobody')
WAYS = {}
def way(f): WAYS[f.__name__] = f; return f
def is_live(m): return m['type'] == 'http.response.body' and b'live' in m.get('body', b'')

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
async def anyio_lock_around_a_wait(send, m):
    async with locks.setdefault('anyio', anyio.Lock()):
        await asyncio.sleep(.003)
        await send(m)
@way
def a_future(send, m): return asyncio.ensure_future(send(m))  # What some servers give is no coroutine
@way
def an_object(send, m):
    class Promise:
        def __await__(self): return send(m).__await__()
    return Promise()


def streams(manager, f=None):
    "An app of streams, with `f` around each send"
    async def app(scope, receive, send):
        user.set('mine')
        await manager.stream(Request(scope, receive))(scope, receive, partial(f, send) if f else send)
    return app


@pytest.mark.parametrize('name', WAYS)
async def test_harmless(name):
    "Everything arrives, in order, for this stream and for one beside it"
    locks.clear()
    user.set('who broadcasts')
    manager, around = SSEBroadcastManager(), WAYS[name]
    async with (listening(streams(manager, around)) as first, listening(streams(manager, around)) as second,
                listening(streams(manager)) as beside):
        await all_live(manager, 3)
        for i in range(30):
            assert await manager.broadcast('x', f'live {i}') == 3
            if i%10 == 9: await asyncio.sleep(.001)
        for page in first, second, beside: assert await page.data(30) == [f'live {i}' for i in range(30)]
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
async def cancelled_after_a_wait(send, m):
    if is_live(m):
        await asyncio.sleep(.003)
        raise asyncio.CancelledError
    await send(m)


@pytest.mark.parametrize('f, errors', [(the_browser_is_gone, 0), (gone_after_a_wait, 0), (an_error, 1), (an_error_at_once, 1), (cancelled_after_a_wait, 1)])
async def test_harmful(f, errors):
    "A stream whose send fails ends; nothing else does"
    manager = SSEBroadcastManager()
    async with listening(streams(manager)) as before, listening(streams(manager)) as after:
        harmed = listening(streams(manager, f))
        await harmed.__aenter__()
        await all_live(manager, 3)
        for i in range(10):
            if i == 5: await eventually(lambda: manager.connection_count == 2, 'it is unregistered')
            await manager.broadcast('x', f'live {i}')
        for page in before, after: assert await page.data(10) == [f'live {i}' for i in range(10)]
        await harmed.ends()
    assert manager.stats()['errors'] == errors and not manager.connections
