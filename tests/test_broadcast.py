"`broadcast` from everywhere: the call sends, and awaiting it only waits. What the contract leaves out"
import asyncio
import gc
import inspect
import threading
import warnings
from collections.abc import Coroutine
from concurrent.futures import Future

import pytest

from cjm_fasthtml_sse.core import BackendError, SSEBroadcastManager, SSEError
from tests.contract.support import BOUND, OwnBackend, eventually, following, turns


@pytest.fixture
def manager(): return SSEBroadcastManager()

async def in_thread(f, *args): return await asyncio.wait_for(asyncio.to_thread(f, *args), BOUND)

def held(manager):
    "A hook that holds each broadcast until the event is set"
    go = asyncio.Event()
    @manager.on_broadcast
    async def hold(message): await go.wait()
    return go

def history(manager): return [m['data'] for m in manager.get_history(5000)]


class TestTheCallSends:
    async def test_queues_have_it_at_once(self, manager):
        "Where nothing has to be waited for, it is there when the call returns"
        queue = await manager.register_connection()
        manager.broadcast('x', 1)
        assert queue.get_nowait()['data'] == 1 and history(manager) == [1]

    def test_the_end_of_asyncio_run(self):
        "What was broadcast last, and awaited by nobody, is in the history all the same"
        manager = SSEBroadcastManager(max_queue_size=4)
        async def main():
            async with following('stream', manager):
                for i in range(20): manager.broadcast('x', i)
        asyncio.run(main())
        assert history(manager) == [*range(20)]

    def test_what_cannot_travel_raises_at_the_call(self):
        "Before Redis is asked for, which is away here"
        manager = SSEBroadcastManager(backend='redis://127.0.0.1:1')
        for data, key in (object(), None), ('\ud800', None), (1, object()):
            with pytest.raises(SSEError, match='`(data|key)`'): manager.broadcast('x', data, key=key)


class TestOrder:
    async def test_ids_come_as_the_calls_do(self):
        "From the first call on, which has to wait for the start, and where readers are slower than the calls; with a plain hook"
        manager, pauses = SSEBroadcastManager(2, replay_size=5000, history_size=5000), iter([0, 3, 1, 0, 0, 2]*500)
        manager.on_broadcast(lambda m: {**m, 'data': -m['data']})
        async with following('stream', manager, events='x') as page:
            for i in range(1000):
                manager.broadcast('x', i)
                if i%7 == 0: await turns(next(pauses))
                elif i%11 == 0: await manager.broadcast('y', i)
            await manager.broadcast('end', 0)
            assert [m['data'] for m in manager.get_history(5000) if m['type'] == 'x'] == [-i for i in range(1000)] == await page.data(1000)

    async def test_calls_before_the_backend_has_started(self):
        "Those that wait for it come before those that find it ready"
        manager = SSEBroadcastManager(backend=(backend := OwnBackend()))
        backend.starts.clear()
        for i in range(20): manager.broadcast('x', i)
        await turns()
        backend.starts.set()
        for i in range(20, 60):
            manager.broadcast('x', i)
            if i%3 == 0: await turns(1)
        await manager.broadcast('x', 60)
        assert history(manager) == [*range(11, 61)]


WAYS = {
    'create_task': lambda b: asyncio.create_task(b),
    'ensure_future': lambda b: asyncio.ensure_future(b),
    'gather': lambda b: asyncio.gather(b),
    'shield': lambda b: asyncio.shield(b),
    'asyncio.run': lambda b: asyncio.to_thread(asyncio.run, b),
    'run_coroutine_threadsafe': lambda b: asyncio.wrap_future(asyncio.run_coroutine_threadsafe(b, asyncio.get_running_loop())),
    'result in a thread': lambda b: asyncio.to_thread(b.result, BOUND)}


class TestAwaiting:
    @pytest.mark.parametrize('way', WAYS)
    @pytest.mark.parametrize('pending', [False, True])
    async def test_every_way_to_run_a_coroutine(self, manager, way, pending):
        "Each of three gets the number, whether it is done or not, one after another and at once"
        await manager.register_connection()
        go = held(manager) if pending else None
        sent = manager.broadcast('x', 1)
        assert isinstance(sent, Coroutine) and asyncio.iscoroutine(sent) and inspect.isawaitable(sent)
        async def ask():
            got = await asyncio.wait_for(WAYS[way](sent), BOUND)
            return got[0] if isinstance(got, list) else got
        asking = [asyncio.create_task(ask()) for _ in range(2)]
        await turns()
        if go:
            assert not any(t.done() for t in asking) and 'under way' in repr(sent)
            go.set()
        assert await asyncio.gather(*asking) == [1, 1]
        assert await ask() == 1 and 'done' in repr(sent)
        assert history(manager) == [1], 'it was sent once'

    async def test_a_future_is_not_cancelled(self, manager):
        "It stands for what is under way, and close waits for that only so long"
        await manager.open()
        go = held(manager)
        future = await in_thread(manager.broadcast_threadsafe, 'x', 1)
        assert isinstance(future, Future) and not future.cancel() and not future.cancelled()
        await asyncio.wait_for(manager.close(.01), BOUND)
        assert not future.done()
        go.set()
        assert await asyncio.wrap_future(future) == 0

    def test_nothing_warns(self):
        "Neither one that nobody awaited nor one that somebody began to wait for"
        manager = SSEBroadcastManager(max_queue_size=1, default_timeout=.001)
        async def main():
            await manager.register_connection()
            go = held(manager)
            for i in range(5): manager.broadcast('x', i)
            waiting = asyncio.create_task(manager.broadcast('x', 5))
            await turns()
            waiting.cancel()
            go.set()
            await manager.broadcast('x', 6)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            asyncio.run(main())
            gc.collect()

    async def test_a_synchronous_client_on_the_loop(self, manager, monkeypatch):
        "It blocks the event loop that its own route waits for: an error says so after a while, and nothing hangs"
        monkeypatch.setattr('cjm_fasthtml_sse.manager.broadcast.BLOCKED_AFTER', .1)
        got, queue = [], await manager.register_connection()
        async def route():
            try: await manager.broadcast('x', 1)
            except SSEError as e: got.append(e)
        thread = threading.Thread(target=lambda: asyncio.run(route()))
        thread.start()
        thread.join(BOUND)  # As a synchronous client does
        assert 'blocked' in str(got[0])
        assert (await asyncio.wait_for(queue.get(), BOUND))['data'] == 1, 'it goes out all the same'

    async def test_it_heeds_a_subclass(self):
        "One that was written when `broadcast` was a coroutine function"
        class Prefixed(SSEBroadcastManager):
            async def broadcast(self, event_type, data, timeout=None, **kw): return await super().broadcast(f'app:{event_type}', data, timeout, **kw)
        manager = Prefixed()
        assert await in_thread(lambda: manager.broadcast_threadsafe('x', 1).result(BOUND)) == 0
        assert await asyncio.wrap_future(manager.broadcast_threadsafe('x', 2)) == await manager.broadcast('x', 3) == 0
        assert [(m['type'], m['data']) for m in manager.get_history()] == [('app:x', i) for i in (1, 2, 3)]


class TestThreads:
    async def test_they_wait_while_many_are_under_way(self):
        manager = SSEBroadcastManager(history_size=5000)
        await manager.open()
        go, sent = held(manager), []
        def work():
            for i in range(1500): sent.append(manager.broadcast('x', i))
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        await eventually(lambda: len(sent) >= 1000, 'a thousand are under way')
        await asyncio.to_thread(thread.join, .1)
        assert len(sent) == 1000
        go.set()
        await eventually(lambda: not thread.is_alive(), 'it goes on')
        assert await asyncio.gather(*sent) == [0]*1500
        assert sorted(history(manager)) == [*range(1500)]

    async def test_a_hook_that_broadcasts_through_a_thread(self):
        "It does not wait for those that wait for it"
        manager = SSEBroadcastManager(history_size=5000)
        await manager.open()
        @manager.on_broadcast
        async def audit(message):
            if message['type'] != 'audit': await asyncio.to_thread(manager.broadcast, 'audit', message['data'])
        def work(): return [manager.broadcast('x', i) for i in range(1200)][-1].result(BOUND)
        assert await in_thread(work) == 0
        await eventually(lambda: len(history(manager)) == 2400)

    def test_hooks_that_broadcast_in_a_script(self, manager):
        @manager.on_broadcast
        async def audit(m):
            await asyncio.sleep(0)
            if m['type'] == 'x': manager.broadcast('audit', 1)
        manager.on_delivery(lambda m: m['type'] == 'x' and manager.broadcast('delivered', 1))
        assert asyncio.run(manager.broadcast('x', 1)) == 0
        assert sorted(m['type'] for m in manager.get_history()) == ['audit', 'delivered', 'x']


class TestErrorsNobodyAskedAbout:
    @staticmethod
    def logged(caplog):
        "What was logged of broadcasts that failed"
        gc.collect()
        return [r.getMessage()+str(r.exc_info) for r in caplog.records if "'job:" in r.getMessage()]

    async def test_are_logged_once_with_the_type(self, caplog):
        "From tasks and from threads; those that were asked about are not"
        class Broken(OwnBackend):
            async def publish(self, *args): raise BackendError('it is away')
        manager = SSEBroadcastManager(backend=Broken())
        manager.broadcast('job:0', 1)
        await in_thread(lambda: (manager.broadcast('job:1', 1), manager.broadcast_threadsafe('job:2', 1)) and None)
        for ask in (lambda: manager.broadcast('job:asked', 1), lambda: in_thread(lambda: manager.broadcast('job:asked', 1).result(BOUND)),
                    lambda: asyncio.wrap_future(manager.broadcast_threadsafe('job:asked', 1))):
            with pytest.raises(BackendError): await ask()
        await eventually(lambda: len(self.logged(caplog)) >= 3)
        await turns()
        lines = self.logged(caplog)
        assert [sum(f'job:{i}' in o and 'it is away' in o for o in lines) for i in range(3)] == [1]*3 and len(lines) == 3

    def test_a_loop_that_ends_over_it(self, manager, caplog):
        async def main():
            await manager.open()
            held(manager)
            manager.broadcast('job:lost', 1)
            await turns()
        asyncio.run(main())
        line, = self.logged(caplog)
        assert 'job:lost' in line and 'closed' in line


async def test_a_hook_that_broadcasts_after_close():
    "What a task that it has left to itself says is sent, and the backend does not go on after that"
    class Watched(OwnBackend):
        running = False
        async def start(self, *args):
            await super().start(*args)
            self.running = True
        async def publish(self, *args):
            assert self.running, 'it was stopped over a broadcast'
            return await super().publish(*args)
        async def stop(self): self.running = False
    manager, go, later = SSEBroadcastManager(backend=(backend := Watched())), asyncio.Event(), []
    async def slow():
        await go.wait()
        await manager.broadcast('left', 1)
    manager.on_disconnect(lambda conn: later.append(asyncio.create_task(slow())))
    async with following('stream', manager) as page:
        await manager.close(.01)
        assert not backend.running
        go.set()
        await eventually(lambda: manager.get_history() and not backend.running, 'it is sent, and the backend stops again')
        await page.ends()
    async with following('stream', manager) as page:  # The app lives on
        await manager.broadcast('y', 1)
        assert await page.next() == ('y', 1)
        await turns(50)
        assert backend.running
