"""Hooks of the manager: `on_connect`, `on_disconnect`, `on_broadcast`

They may be sync or async. The first two get the connection, once each; the third gets the message, and may return
another one, which is sent instead. What fails in a hook is logged with its traceback and counted, and delivery goes
on.
"""
import asyncio
from functools import partial

import pytest

from cjm_fasthtml_sse.core import SSEBroadcastManager, StreamEnded
from tests.contract.support import BOUND, Hooks, client, eventually, following, within


def data(queue): return [queue.get_nowait()['data'] for _ in range(queue.qsize())]

@pytest.fixture
def manager(): return SSEBroadcastManager()


class TestHooks:
    "`on_connect`, `on_disconnect`, `on_broadcast`"

    @pytest.mark.parametrize('asynchronous', [False, True])
    async def test_what_they_get(self, manager, asynchronous):
        seen = []
        def make(name):
            def hook(x): seen.append((name, x))
            async def later(x):
                await asyncio.sleep(0)
                seen.append((name, x))
            return later if asynchronous else hook
        for name in ('connect', 'disconnect', 'broadcast'): getattr(manager, f'on_{name}')(make(name))
        queue = await manager.register_connection()
        await manager.broadcast('x', 1)
        await manager.unregister_connection(queue)
        assert [(n, o if n!='broadcast' else o['data']) for n,o in seen]==[('connect', queue), ('broadcast', 1),
            ('disconnect', queue)]

    async def test_objects_and_partials_are_awaited(self, manager):
        seen = []
        class Hook:
            async def __call__(self, x): seen.append('object')
        async def f(name, x): seen.append(name)
        manager.on_connect(Hook()), manager.on_connect(partial(f, 'partial'))
        await manager.register_connection()
        assert seen==['object', 'partial']

    async def test_messages_they_return(self, manager):
        "Each gets what the one before returned; `None` leaves the message as it is"
        manager.on_broadcast(lambda m: {**m, 'data': m['data']+1})
        @manager.on_broadcast
        async def double(m): return {**m, 'data': m['data']*2}
        manager.on_broadcast(lambda m: None)
        queue = await manager.register_connection()
        async with following('stream', manager) as page:
            await manager.broadcast('x', 1)
            assert await page.next()==('x', 4)
        assert data(queue)==[4] and manager.get_history()[0]['data']==4

    async def test_new_name_decides(self, manager):
        "Who gets it"
        manager.on_broadcast(lambda m: dict(type='new', data=m['data']))
        async with following('stream', manager, events='new') as page:
            await manager.broadcast('old', 1)
            assert await page.next()==('new', 1)
        assert {*manager.get_history()[0]}>={'type', 'timestamp', 'data'}

    @pytest.mark.parametrize('bad', ['type', 3, {}, {'type': ''}, {'type': 'a\nb'}, {'type': None}], ids=repr)
    async def test_nonsense_they_return(self, manager, bad, caplog):
        "It is logged, and the message stays as it is"
        manager.on_broadcast(lambda m: bad)
        queue = await manager.register_connection()
        assert await manager.broadcast('x', 1)==1
        assert data(queue)==[1] and manager.stats()['errors']==1 and caplog.records[0].exc_info

    @pytest.mark.parametrize('spoil',
        [lambda m: m.update(type='a\nb'), lambda m: m.pop('type'), lambda m: m.update(type=None)])
    async def test_messages_they_spoil(self, manager, spoil):
        manager.on_broadcast(lambda m: (spoil(m), None)[1])
        queue = await manager.register_connection()
        assert await manager.broadcast('x', 1)==1 and queue.get_nowait()['type']=='x' and manager.stats()['errors']==1

    @pytest.mark.parametrize('error', [RuntimeError('hook'), asyncio.CancelledError()], ids=['error', 'cancelled'])
    @pytest.mark.parametrize('asynchronous', [False, True])
    async def test_errors_are_logged(self, manager, error, asynchronous, caplog):
        "With the traceback; the hooks behind run, and delivery goes on"
        after = []
        def bad(x): raise error
        async def later(x): raise error
        for on in manager.on_connect, manager.on_broadcast, manager.on_disconnect:
            on(later if asynchronous else bad)
            on(lambda x: after.append(x) and None)
        queue = await manager.register_connection()
        assert await manager.broadcast('x', 1)==1
        await manager.unregister_connection(queue)
        assert len(after)==3 and manager.stats()['errors']==3 and manager.connection_count==0
        assert sum(bool(r.exc_info) for r in caplog.records)==3

    async def test_may_broadcast_and_push(self, manager):
        @manager.on_connect
        async def welcome(connection):
            connection.put_nowait(dict(type='welcome'))
            await manager.broadcast('joined', 1)
        async with client('stream', manager) as page:
            assert {t for t,_ in await page.read(2)}=={'welcome', 'joined'}
        queue = await manager.register_connection()
        assert [queue.get_nowait()['type'] for _ in range(2)]==['welcome', 'joined']
        async with manager.subscribe('other') as queue:
            assert [queue.get_nowait()['type'] for _ in range(queue.qsize())]==['welcome'], 'a push asks for no pattern'

    async def test_may_send_away(self, manager):
        hooks = Hooks(manager)
        manager.on_connect(manager.unregister_connection)
        queue = await manager.register_connection()
        with pytest.raises(StreamEnded): await asyncio.wait_for(queue.get(), BOUND)
        async with client('stream', manager) as page: await page.ends()
        await eventually(lambda: len(hooks.closed)==2)
        assert manager.connection_count==0 and hooks.closed==hooks.opened

    async def test_cancelled_registration(self, manager):
        "Leaves no connection behind, and both hooks or none were called"
        entered = asyncio.Event()
        hooks = Hooks(manager)
        @manager.on_connect
        async def slow(connection):
            entered.set()
            await asyncio.Event().wait()
        task = asyncio.create_task(manager.register_connection())
        async with within('the hook is called'): await entered.wait()
        task.cancel()
        await asyncio.wait({task}, timeout=BOUND)
        await eventually(lambda: manager.connection_count==0 and hooks.closed==hooks.opened)
