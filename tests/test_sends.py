"""What middleware may do around a send. The library runs sends from its pump, so none of it may reach the pump or another stream

A stream whose sends are treated so is served beside one whose sends are not."""
import asyncio
import contextvars
from contextlib import asynccontextmanager, nullcontext, suppress

import anyio
import anyio.to_thread
import pytest
from starlette.requests import Request

from cjm_fasthtml_sse.core import SSEBroadcastManager
from tests.contract.support import BOUND, Site, all_live, eventually, listening

user = contextvars.ContextVar('user', default='nobody')


# What is awaited before the send

async def nothing(): pass
async def turn(): await asyncio.sleep(0)
async def wait(): await asyncio.sleep(.003)
async def checkpoint(): await anyio.lowlevel.checkpoint()
async def thread(): await anyio.to_thread.run_sync(lambda: None)
async def timeout_that_fires():
    with suppress(TimeoutError):
        async with asyncio.timeout(.003): await asyncio.sleep(BOUND)
async def scope_that_is_cancelled():
    with anyio.move_on_after(.003): await anyio.sleep(BOUND)

# What is open around that and the send

locks = {}
def timeout(): return asyncio.timeout(BOUND)
def lock(): return locks.setdefault('asyncio', asyncio.Lock())
def anyio_lock(): return locks.setdefault('anyio', anyio.Lock())
@asynccontextmanager
async def scope():
    with anyio.CancelScope(): yield
@asynccontextmanager
async def token():
    before = user.set('within')
    try: yield
    finally: user.reset(before)
@asynccontextmanager
async def turn_after():
    yield
    await asyncio.sleep(0)

# What is returned to who called `send`

def coroutine(coro): return coro
async def wait_for(coro): await asyncio.wait_for(coro, BOUND)
async def shield(coro): await asyncio.shield(coro)
async def task_group(coro):
    async with asyncio.TaskGroup() as g: g.create_task(coro)
async def anyio_task_group(coro):
    async with anyio.create_task_group() as g: g.start_soon(lambda: coro)
def future(coro): return asyncio.ensure_future(coro)  # What some servers return is no coroutine
class Promise:
    def __init__(self, coro): self.coro = coro
    def __await__(self): return self.coro.__await__()


def streams(manager, before=nothing, within=nullcontext, result=coroutine):
    "An app of streams, with these around each send"
    async def app(scope, receive, send):
        async def slow_send(message):
            assert user.get() == 'mine', f'{user.get()!r} is the context of who broadcasts'
            assert asyncio.current_task().cancelling() == 0
            async with within():
                await before()
                own = dict(message)
                if 'headers' in message: message['headers'].append((b'x-private', b'1'))
                message['body'] = b''  # Middleware may edit what it gets, which is nobody else's
                await send(own)
                message.clear()
        user.set('mine')
        await manager.stream(Request(scope, receive))(scope, receive, lambda message: result(slow_send(message)))
    return app


WAYS = [(before, nullcontext, coroutine) for before in (nothing, turn, wait, checkpoint, thread, timeout_that_fires, scope_that_is_cancelled)]
WAYS += [(before, within, coroutine) for before in (nothing, wait) for within in (timeout, lock, anyio_lock, scope, token, turn_after)]
WAYS += [(nothing, nullcontext, result) for result in (wait_for, shield, task_group, anyio_task_group, future, Promise)]

@pytest.mark.parametrize('way', WAYS, ids=lambda way: ', '.join(o.__name__ for o in way))
async def test_harmless(way):
    "Everything arrives, in order, for this stream and for one beside it"
    locks.clear()
    user.set('who broadcasts')
    manager = SSEBroadcastManager()
    async with (listening(streams(manager, *way)) as first, listening(streams(manager, *way)) as second,
                listening(Site(manager).app) as beside):
        await all_live(manager, 3)
        for i in range(20):
            assert await manager.broadcast('x', i) == 3
            if i%10 == 9: await asyncio.sleep(.001)
        for page in first, second, beside: assert await page.data(20) == [*range(20)]
        assert ['x-private' in o.exchange.headers for o in (first, second, beside)] == [True, True, False]
    assert manager.stats()['errors'] == 0 and not manager.connections


@pytest.mark.parametrize('error, errors', [(OSError, 0), (ValueError, 1), (asyncio.CancelledError, 1)])
@pytest.mark.parametrize('when', ['at the call', 'when it is awaited', 'after a wait'])
async def test_harmful(error, errors, when):
    "A stream whose send fails ends; nothing else does"
    manager, fails = SSEBroadcastManager(), []
    def fail(coro=None):
        if not fails: return coro
        if coro: coro.close()
        raise error('of the middleware')
    async def before():
        if when == 'after a wait': await wait()
        if when != 'at the call': fail()
    harmful = streams(manager, before, result=fail if when == 'at the call' else coroutine)
    async with listening(streams(manager)) as one, listening(streams(manager)) as other:
        harmed = await listening(harmful).__aenter__()
        await all_live(manager, 3)
        fails.append(True)
        await manager.broadcast('x', 0)
        await eventually(lambda: manager.connection_count == 2, 'it is unregistered')
        for i in range(1, 10): await manager.broadcast('x', i)
        for page in one, other: assert await page.data(10) == [*range(10)]
        await harmed.ends()
    assert manager.stats()['errors'] == errors and not manager.connections
