"Where a manager is used from: threads, forks, one event loop after another; and what is over ends. What the contract leaves out"
import asyncio
import gc
import json
import os
import sys
import threading
from contextlib import contextmanager

import pytest
from fasthtml.common import FastHTML, Link

from cjm_fasthtml_sse.core import SSEBroadcastManager, SSEError
from tests.contract.support import BOUND, OwnBackend, Site, all_live, client, eventually, following, forked, listening, turns, within


@contextmanager
def hasty_threads():
    "Threads take turns after every few instructions, so that whatever can go wrong between two does"
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try: yield
    finally: sys.setswitchinterval(before)


class TestThreads:
    def test_before_any_loop_each_message_has_its_own_id(self):
        manager = SSEBroadcastManager(history_size=10_000)
        def work():
            for _ in range(25): manager.broadcast_threadsafe('x', 1).result(BOUND)
        with hasty_threads():
            threads = [threading.Thread(target=work) for _ in range(8)]
            for t in threads: t.start()
            for t in threads: t.join(BOUND)
        assert len({m.id for m in manager.get_history()}) == len(manager.get_history()) == manager.stats()['broadcasts'] == 200

    async def test_a_slow_hook_before_any_loop_stops_no_loop_that_starts(self):
        "The broadcast that waits for the hook is delivered on that loop then"
        manager, began, go = SSEBroadcastManager(), threading.Event(), threading.Event()
        @manager.on_broadcast
        async def slow(message):
            began.set()
            while not go.is_set(): await asyncio.sleep(.002)
        sending = asyncio.create_task(asyncio.to_thread(lambda: manager.broadcast('x', 1).result(BOUND)))
        assert await asyncio.to_thread(began.wait, BOUND)
        async with following('stream', manager) as page:
            go.set()
            assert await asyncio.wait_for(sending, BOUND) == 1 and await page.next() == ('x', 1)

    async def test_another_loop_touches_no_queue_of_this_one(self):
        "What it broadcasts is delivered on this loop, once that gets to it"
        manager = SSEBroadcastManager()
        queue = await manager.register_connection()
        waiting = asyncio.create_task(queue.get())
        await turns(3)
        async def elsewhere(): manager.broadcast('x', 1)
        t = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        t.start()
        t.join(BOUND)
        assert queue.empty() and not waiting.done() and not manager.get_history()
        assert (await asyncio.wait_for(waiting, BOUND))['data'] == 1

    async def test_may_look_while_connections_change(self):
        manager, stop, looks = SSEBroadcastManager(), threading.Event(), []
        def look():
            while not stop.is_set():
                for conn in manager.connections: conn.qsize()
                looks.append((manager.stats(), manager.present(), manager.connection_count, manager.get_history(3), manager.inspect()))
        app = Site(manager, user='ann').app
        stay = [listening(app) for _ in range(50)]
        for c in stay: await c.__aenter__()
        with hasty_threads():
            looking, n = asyncio.create_task(asyncio.to_thread(look)), 0
            while (n < 10 or len(looks) < 20) and not looking.done():
                some = [listening(app) for _ in range(5)]
                for c in some: await c.__aenter__()
                queue = await manager.register_connection()
                await manager.broadcast('n', n)
                for c in some: await c.leave()
                await manager.unregister_connection(queue)
                n += 1
            stop.set()
            await looking
        for c in stay: await c.leave()


def in_a_fork(f):
    "What `f` gives in a process that was forked off from this one"
    r, w = os.pipe()
    pid = forked(lambda: os.write(w, json.dumps(f()).encode()))
    os.close(w)
    with open(r, 'rb') as out: said = out.read()
    os.waitpid(pid, 0)
    return json.loads(said)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork')
class TestForks:
    async def test_has_neither_connections_nor_their_loop(self):
        manager = SSEBroadcastManager()
        async with following('stream', manager):
            def child(): return [manager.broadcast('x', 1).result(BOUND), len(manager.connections)]
            assert await asyncio.wait_for(asyncio.to_thread(in_a_fork, child), BOUND) == [0, 0]
            assert await manager.broadcast('x', 2) == 1


def end_over(coro):
    "Run `coro` on an event loop that is closed then, whatever still runs"
    loop = asyncio.new_event_loop()
    try: return loop.run_until_complete(coro)
    finally: loop.close()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.usefixtures('abandoned_loops')
class TestOneLoopAfterAnother:
    def test_close_before_any_loop_ran(self): asyncio.run(SSEBroadcastManager().close())

    @pytest.mark.parametrize('collected', ['at once', 'while the next is in use'])
    def test_streams_were_left_open(self, collected):
        manager, left = SSEBroadcastManager(), []
        async def leave_open():
            left.append(await client('stream', manager).__aenter__())
            await turns()
        def collect():
            left.clear()
            gc.collect()
        async def next_one():
            async with client('stream', manager) as page:
                await all_live(manager, 1)
                collect()
                assert manager.connection_count == 1
                await manager.broadcast('x', 2)
                assert await page.next() == ('x', 2)
            assert manager.inspect() == dict(connections=[], requests=0)
        end_over(leave_open())
        if collected == 'at once': collect()
        asyncio.run(next_one())

    def test_a_close_waited_in_vain(self):
        manager, left = SSEBroadcastManager(), []
        async def leave_open():
            left.append(await client('stream', manager).__aenter__())
            left[0].stall()
            await manager.broadcast('x', 1)
            await manager.close(.01)
        async def next_one():
            async with following('stream', manager) as page:
                async with within('it closes'): await manager.close(2*BOUND)
                await page.ends()
        end_over(leave_open())
        asyncio.run(next_one())

    def test_who_waited_for_a_broadcast_hears_of_it(self):
        manager, hangs = SSEBroadcastManager(), [True]
        @manager.on_broadcast
        async def slow(message):
            if hangs.pop(): await asyncio.Event().wait()
        async def begin():
            await manager.open()
            sent = await asyncio.to_thread(manager.broadcast_threadsafe, 'n', 1)
            await eventually(lambda: not hangs, 'the hook is called')
            return sent
        lost = end_over(begin())
        assert not lost.done()
        async def again():
            hangs.append(False)
            async with manager.subscribe() as queue:
                assert await manager.broadcast('n', 2) == 1
                return (await queue.get())['data']
        assert asyncio.run(again()) == 2
        with pytest.raises(SSEError, match='closed before'): lost.result(BOUND)


class TestEnds:
    async def test_disconnect_hooks_run_to_their_end(self):
        "Though the one who unregisters is cancelled"
        manager, entered, go, done = SSEBroadcastManager(), asyncio.Event(), asyncio.Event(), []
        @manager.on_disconnect
        async def slow(conn):
            entered.set()
            await go.wait()
            done.append(conn)
        queue = await manager.register_connection()
        task = asyncio.create_task(manager.unregister_connection(queue))
        async with within('it is called'): await entered.wait()
        task.cancel()
        await asyncio.wait({task}, timeout=BOUND)
        go.set()
        await eventually(lambda: done == [queue], 'the hook ends')

    @pytest.mark.parametrize('hook', ['connect', 'disconnect'])
    async def test_close_keeps_its_word(self, hook):
        "With hooks that hang, and will not be cancelled either"
        manager, over = SSEBroadcastManager(hook_timeout=10*BOUND), asyncio.Event()
        async def hangs(conn):
            while not over.is_set():
                try: await over.wait()
                except asyncio.CancelledError: pass
        getattr(manager, f'on_{hook}')(hangs)
        async with client('stream', manager):
            async with within('it closes'): await manager.close(.2)
            await eventually(lambda: not manager.inspect()['requests'], 'the request is over, so the server can stop')
            over.set()

    async def test_a_stream_that_waits_while_the_process_stops(self):
        "It does not begin"
        manager = SSEBroadcastManager(backend=(backend := OwnBackend()))
        backend.starts.clear()
        page = client('stream', manager)
        entering = asyncio.create_task(page.__aenter__())
        await eventually(lambda: backend.waiting, 'it waits')
        manager.stop_soon()
        await turns()
        backend.starts.set()
        await entering
        assert page.status == 503
        await page.leave()

    async def test_a_process_that_stops_waits_for_no_evicted_tab(self):
        "That does not read"
        manager = SSEBroadcastManager(3, default_timeout=.01)
        async with following('stream', manager) as page:
            page.stall()
            for n in range(10): await manager.broadcast('x', n)
            await eventually(lambda: manager.stats()['evicted'] and manager.inspect()['requests'], 'it is evicted, its request goes on')
            manager.stop_soon()
            await eventually(lambda: page.exchange.task.done(), 'its request ends')

    async def test_a_stream_holds_nothing_of_a_page(self):
        "FastHTML gives each request its own copies of headers and footers. Afterware still finds them"
        manager, seen = SSEBroadcastManager(), []
        def after(req, resp): seen.append((req, len(req.hdrs), len(req.bodykw)))
        app = FastHTML(hdrs=[Link(rel='icon', href='/x.png')], after=[after], secret_key='test', cls='x')
        @app.get('/events')
        def events(req): return manager.stream(req)
        async with listening(app):
            (req, headers, bodykw), = seen
            assert headers and bodykw and not (req.hdrs or req.ftrs or req.htmlkw or req.bodykw)


async def test_backlog_is_that_of_the_deepest_queue():
    manager = SSEBroadcastManager(default_timeout=BOUND)
    def deepest(): return max(o['queued'] for o in manager.inspect()['connections'])
    async with following('stream', manager) as page:
        page.stall()
        for n in range(9): await manager.broadcast('x', n)
        assert 8 <= manager.stats()['backlog'] == deepest() <= 9
        queue = await manager.register_connection()
        for n in range(12): queue.put_nowait(dict(type='n', data=n))
        assert manager.stats()['backlog'] == deepest() == 12
        await manager.unregister_connection(queue)
        page.resume()
        await page.read(9)
        assert manager.stats()['backlog'] == deepest() == 0
