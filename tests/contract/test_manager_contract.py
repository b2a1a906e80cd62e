"""The broadcast manager, as apps of the older package use it: queues read by hand, `connections`, history

A message is a dict with `type`, `timestamp` and `data`. A queue of the manager hands out what is left once its
connection was ended, and then raises `StreamEnded`. `connections` are queues and streams alike, and an app may put
messages into each. The history is what was sent. Hooks and full queues have files of their own.
"""
import asyncio
from collections.abc import Set
from datetime import datetime

import pytest

from cjm_fasthtml_sse.core import SSEBroadcastManager, SSEError, StreamEnded
from tests.contract.support import BOUND, CLOSE, Hooks, eventually, following, turns, within


def data(queue): return [queue.get_nowait()['data'] for _ in range(queue.qsize())]

@pytest.fixture
def manager(): return SSEBroadcastManager()


class TestMessages:
    "What comes out of a queue, and how many got it"

    async def test_message_is_a_dict(self, manager):
        "`data` may be anything: the very object arrives"
        anything,queue = object(),await manager.register_connection()
        assert await manager.broadcast('job:done', anything)==1
        message = queue.get_nowait()
        assert isinstance(message, dict) and {*message}=={'type', 'timestamp', 'data'}
        assert message['type']=='job:done' and message.get('data', {}) is anything
        assert datetime.fromisoformat(message['timestamp'])

    async def test_counts_connections(self, manager):
        assert await manager.broadcast('x', 1)==0
        await manager.register_connection()
        async with (following('stream', manager), following('stream', manager, events='other'),
                    following('stream', manager, render=lambda m: None)):
            assert [await manager.broadcast(o, 1) for o in ('x', 'other')]==[3, 4]
            assert manager.connection_count==len(manager.connections)==4

    @pytest.mark.parametrize('kw', [
        dict(max_queue_size=-1), dict(max_queue_size=1.5), dict(max_queue_size=None), dict(max_queue_size=True),
        dict(history_size=-1),
        dict(default_timeout=-1), dict(default_timeout=float('nan')), dict(default_timeout='1'), dict(replay_size=0),
        dict(heartbeat=-1),
        dict(heartbeat=float('inf')), dict(retry=-1), dict(retry=1.5), dict(max_connections=0)], ids=repr)
    def test_bad_options(self, kw):
        with pytest.raises((TypeError, ValueError), match=[*kw][0]): SSEBroadcastManager(**kw)


class TestHistory:
    "What was sent, the newest last"

    async def test_is_what_was_sent(self):
        manager = SSEBroadcastManager(history_size=3)
        manager.on_broadcast(lambda m: {**m, 'data': m['data']*10})
        for i in range(5): await manager.broadcast('x', i)
        assert [m['data'] for m in manager.get_history()]==[20, 30, 40]

    @pytest.mark.parametrize('limit, want',
        [(0, []), (1, [4]), (2, [3, 4]), (5, [0, 1, 2, 3, 4]), (99, [0, 1, 2, 3, 4]), (None, [0, 1, 2, 3, 4])])
    async def test_limit(self, manager, limit, want):
        "0 is none, not all"
        for i in range(5): await manager.broadcast('x', i)
        assert [m['data'] for m in manager.get_history(limit)]==want

    async def test_is_a_copy(self, manager):
        await manager.broadcast('x', 1)
        manager.get_history().clear()
        assert len(manager.get_history())==1

    @pytest.mark.parametrize('bad', [-1, 1.5, '1'])
    def test_bad_limits(self, manager, bad):
        with pytest.raises((TypeError, ValueError)): manager.get_history(bad)

    async def test_size_of_zero(self):
        manager = SSEBroadcastManager(history_size=0)
        await manager.broadcast('x', 1)
        assert manager.get_history()==[]


class TestQueues:
    "From `register_connection`"

    async def test_ended_queue(self, manager):
        "It hands out what is left, and then always raises"
        queue = await manager.register_connection()
        for i in range(3): await manager.broadcast('x', i)
        await manager.unregister_connection(queue)
        assert [(await queue.get())['data'] for _ in range(3)]==[0, 1, 2]
        for _ in range(2):
            with pytest.raises(StreamEnded): await asyncio.wait_for(queue.get(), BOUND)
            with pytest.raises(StreamEnded): queue.get_nowait()
        assert isinstance(queue, asyncio.Queue) and issubclass(StreamEnded, SSEError)
        assert issubclass(StreamEnded, Exception)

    async def test_full_queue_that_is_ended(self):
        manager = SSEBroadcastManager(3)
        queue = await manager.register_connection()
        for i in range(3): await manager.broadcast('x', i)
        await manager.close()
        assert [(await queue.get())['data'] for _ in range(3)]==[0, 1, 2]
        with pytest.raises(StreamEnded): queue.get_nowait()

    async def test_whoever_waits_wakes_up(self, manager):
        queue = await manager.register_connection()
        waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
        await turns(3)
        await manager.close()
        async with within('all wake up'): ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(o) for o in ends]==[StreamEnded]*3

    async def test_app_in_the_older_style(self, manager):
        "Its `except Exception: break` ends the stream cleanly"
        got = []
        async def generator():
            queue = await manager.register_connection()
            try:
                while True:
                    try: message = await asyncio.wait_for(queue.get(), 5)
                    except asyncio.TimeoutError: continue
                    except Exception: break
                    got.append(message['data'])
            finally: await manager.unregister_connection(queue)
        task = asyncio.create_task(generator())
        await eventually(lambda: manager.connection_count==1)
        await manager.broadcast('x', 1)
        await manager.close()
        async with within('it ends'): await task
        assert got==[1] and manager.connection_count==0

    async def test_queue_that_was_brought(self, manager):
        "It is used as it is, and only unregistered"
        own = asyncio.Queue()
        assert await manager.register_connection(own) is own and await manager.register_connection(queue=own) is own
        assert await manager.broadcast('x', 1)==manager.connection_count==1
        for _ in range(2): await manager.unregister_connection(own)
        own.put_nowait('still alive')
        assert manager.connection_count==0 and own.get_nowait()['data']==1 and own.get_nowait()=='still alive'
        assert own.empty()
        with pytest.raises(TypeError): await manager.register_connection([])

    async def test_queue_of_any_class(self, manager):
        "`put_nowait` is enough"
        class Sink:
            def put_nowait(self, message): got.append(message['data'])
        got = []
        await manager.register_connection(Sink())
        assert await manager.broadcast('x', 1)==1 and got==[1] and manager.stats()['connections']==1

    async def test_closed_manager_opens_again(self, manager):
        await manager.register_connection()
        await manager.close()
        queue = await manager.register_connection()
        assert await manager.broadcast('x', 1)==1 and data(queue)==[1]

    async def test_readers_own_their_messages(self):
        "One who changes what he got breaks no later broadcast"
        manager = SSEBroadcastManager(replay_size=2)
        queue = await manager.register_connection()
        await manager.broadcast('x', 1, key='k')
        queue.get_nowait()['type'] = 'mine now'
        for i in range(5): assert await manager.broadcast('y', i)==1


class TestConnections:
    "`manager.connections`, into which apps put messages by hand"

    async def test_set_like(self, manager):
        queues = [await manager.register_connection() for _ in range(3)]
        async with following('stream', manager):
            connections = manager.connections
            handle, = {*connections}-{*queues}
            assert isinstance(connections, Set) and len(connections)==4 and queues[0] in connections
            assert asyncio.Queue() not in connections
            assert connections & {*queues}=={*queues} and {*connections}=={*queues, handle}
        await manager.close()
        assert not manager.connections

    async def test_may_change_in_a_loop(self, manager):
        for _ in range(3): await manager.register_connection()
        for c in manager.connections:
            await manager.unregister_connection(c)
            await manager.register_connection()
        assert manager.connection_count==3

    async def test_put_by_hand(self, manager):
        "Into queues and streams; what is put may lack `timestamp` and `data`"
        queue = await manager.register_connection()
        async with following('stream', manager) as page:
            for c in manager.connections: c.put_nowait({'type': 'hello'})
            for c in manager.connections: await c.put({'type': 'hello', 'data': 1})
            assert [queue.get_nowait() for _ in range(2)]==[{'type': 'hello'}, {'type': 'hello', 'data': 1}]
            assert await page.read(2)==[('hello', None), ('hello', 1)]

    @pytest.mark.parametrize('bad', [{}, None, 'x', {'type': ''}, {'type': 'a\nb'}, {'type': 3}, {'type': CLOSE}],
        ids=repr)
    async def test_bad_messages_by_hand(self, manager, bad):
        async with following('stream', manager) as page:
            handle, = manager.connections
            with pytest.raises(SSEError): handle.put_nowait(bad)
            await manager.broadcast('x', 1)
            assert await page.next()==('x', 1)

    async def test_hooks_get_the_same_handle(self, manager):
        hooks = Hooks(manager)
        queue = await manager.register_connection()
        async with following('stream', manager) as page:
            assert {*hooks.opened}=={*manager.connections} and len(hooks.opened)==2
            hooks.opened[1].put_nowait(dict(type='hello', data='you'))
            assert await page.next()==('hello', 'you') and queue.empty()
            await manager.unregister_connection(hooks.opened[1])
            await page.ends()
        await manager.unregister_connection(queue)
        await eventually(lambda: len(hooks.closed)==2)
        assert {*hooks.closed}=={*hooks.opened}

    async def test_handle_is_like_a_queue(self):
        "It says how much waits, and raises where it is full or ended"
        manager = SSEBroadcastManager(3)
        async with following('stream', manager) as page:
            handle, = manager.connections
            assert (handle.empty(), handle.qsize(), handle.full(), handle.maxsize)==(True, 0, False, 3)
            page.stall()
            with pytest.raises(asyncio.QueueFull):
                for _ in range(10): handle.put_nowait(dict(type='x'))
            assert handle.full()
            page.resume()
            await eventually(handle.empty, 'all was sent')
        with pytest.raises(SSEError): handle.put_nowait(dict(type='x'))
