"Streams in the details that the contract leaves out: renderers, states, middleware, the pump, replays; by public names alone"
import asyncio
import gc
import tracemalloc
import weakref
from functools import partial

import pytest
from fastcore.xml import Div, Li, NotStr
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware

from cjm_fasthtml_sse.core import BackendError, SSEBroadcastManager
from tests.contract.clock import timeless
from tests.contract.support import HEARTBEAT, OwnBackend, Site, all_live, client, eventually, following, listening, no_task_left, turns


@pytest.fixture
def manager(): return SSEBroadcastManager()


class Bold:
    "A renderer that has no hash and equals all others"
    __hash__ = None
    def __eq__(self, other): return True
    def __call__(self, message): return f"<b>{message['data']}</b>"
    async def later(self, message): return self(message)


class TestRenderers:
    @pytest.mark.parametrize('render', [Bold(), Bold().later, partial(Bold().later)], ids=['object', 'async method', 'async partial'])
    async def test_any_callable(self, manager, render):
        async with following('stream', manager, render=render) as page, following('stream', manager, render=Bold().__call__):
            for i in range(3): await manager.broadcast('x', i)
            assert await page.read(3) == [('message', f'<b>{i}</b>') for i in range(3)]

    @pytest.mark.parametrize('result, html', [(NotStr('<b>x</b>'), '<b>x</b>'), (Div('x'), '<div>x</div>'),
        ((Li('x'), None, [Li('y')]), '<li>x</li><li>y</li>')], ids=['NotStr', 'element', 'nested'])
    async def test_results_become_one_message(self, manager, result, html):
        async with following('stream', manager, render=lambda m: result) as page:
            await manager.broadcast('x', 1)
            assert (await page.next())[1].replace('\n', '') == html

    @pytest.mark.parametrize('kind', ['cancelled', 'async cancelled', 'nonsense'])
    async def test_failure_spoils_one_message(self, manager, kind):
        "Live and in a replay"
        def bad(m):
            if m['data'] != 1: return str(m['data'])
            if 'cancelled' in kind: raise asyncio.CancelledError
            return 3
        async def async_bad(m): return bad(m)
        render, start = async_bad if 'async' in kind else bad, manager.cursor
        async with following('stream', manager, render=render) as broken, following('stream', manager) as healthy:
            for i in range(3): await manager.broadcast('x', i)
            assert await healthy.data(3) == [0, 1, 2] and await broken.data(2) == [0, 2]
        assert manager.stats()['errors'] == 1
        async with client('stream', manager, render=render, last_id=start) as back: assert await back.data(2) == [0, 2]

    async def test_may_put_and_end_while_it_runs(self, manager):
        ending = []
        def render(m):
            if m['type'] == 'kick': ending.append(asyncio.ensure_future(manager.disconnect('ann')))
            if m['type'] == 'push':
                for c in manager.connections: c.put_nowait(dict(type='hand'))
            return m['type']
        async with (following('stream', manager, render=render, user='ann') as a,
                    following('stream', manager, render=render, user='ann', events=['**', 'push']) as b):
            for t in 'push', 'after': await manager.broadcast(t, 1)
            for c in a, b:
                got = await c.data(3)
                assert sorted(got) == ['after', 'hand', 'push'] and got[-1] == 'after', got
            await manager.broadcast('kick', 1)
            for c in a, b: await c.ends()
            assert await asyncio.gather(*ending) and manager.connection_count == 0

    async def test_dict_that_is_filled_anew(self, manager):
        "For each put: it is rendered anew"
        message = dict(type='x')
        async with following('stream', manager, render=lambda m: str(m['data'])) as page:
            for message['data'] in range(3):
                for c in manager.connections: c.put_nowait(message)
            assert await page.data(3) == [0, 1, 2]

    async def test_what_it_made_goes_with_it(self, manager):
        "The log keeps no bytes for renderers that nobody uses any longer"
        tracemalloc.start()
        try:
            for i in range(20):
                async with following('stream', manager, render=lambda m, i=i: f'{i}'*1_000_000) as page:
                    await manager.broadcast('x', i)
                    await page.next()
                del page
            await turns()
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] < 10_000_000
        finally: tracemalloc.stop()


class TestStates:
    async def test_older_than_the_log(self):
        "A state that takes long to read is shared, but no more where the log has forgotten what followed it"
        manager, reads = SSEBroadcastManager(replay_size=5), []
        async def state():
            reads.append(1)
            await asyncio.sleep(.02)
            return f'state {len(reads)}'
        async with following('stream', manager), client('stream', manager, snapshot=state) as first:
            assert await first.next() == ('message', 'state 1')
            for i in range(6): await manager.broadcast('x', i)
            async with client('stream', manager, snapshot=state) as page: assert await page.next() == ('message', 'state 2')

    async def test_leaving_is_no_error_of_the_state(self, caplog):
        manager, ended = SSEBroadcastManager(heartbeat=.02), []
        async def state():
            try: await asyncio.Event().wait()
            finally: ended.append(1)
        async with client('stream', manager, snapshot=state) as page:
            await eventually(lambda: page.events, 'it is read, with heartbeats meanwhile')
            page.exchange.fails = OSError('gone')  # As a server of ASGI 2.4 says it
            await eventually(lambda: ended and not manager.connection_count, 'the state is ended, and the stream')
        assert manager.stats()['errors'] == 0 and not caplog.records

    async def test_heartbeats_while_one_catches_up(self):
        manager, go = SSEBroadcastManager(heartbeat=.03), asyncio.Event()
        async def slow(*args):
            await go.wait()
            return 'made'
        start = manager.cursor
        await manager.broadcast('x', 1)
        async with client('stream', manager, snapshot=slow) as a, client('stream', manager, render=slow, last_id=start) as b:
            await eventually(lambda: len(a.events) > 4 and len(b.events) > 4, 'heartbeats come although nothing else can yet')
            assert {e.event for e in a.events+b.events} == {HEARTBEAT} and {e.id for e in a.events} == {''} and {e.id for e in b.events} == {start}
            go.set()
            assert [await o.next() for o in (a, b)] == [('message', 'made')]*2


class TestMiddleware:
    async def test_nobody_who_reads_is_outrun(self):
        "By a loop of broadcasts, from the first moment on, with no patience at all; that a tab leaves is noticed behind it"
        async def pass_on(request, call_next): return await call_next(request)
        manager = SSEBroadcastManager(10, replay_size=5000, default_timeout=0)
        app = SessionMiddleware(BaseHTTPMiddleware(GZipMiddleware(BaseHTTPMiddleware(Site(manager).app, pass_on)), pass_on), 'secret')
        async with no_task_left():
            async with listening(app, **{'Accept-Encoding': 'gzip'}) as page:
                for i in range(1000): await manager.broadcast('x', i)
                assert await page.data(1000) == [*range(1000)] and not page.gaps
                assert 'content-encoding' not in page.exchange.headers
            await eventually(lambda: manager.connection_count == 0, 'it is unregistered')
        assert manager.stats()['evicted'] == 0


class TestThePump:
    async def test_a_busy_writer_starves_no_other(self, manager):
        async def trickle():
            while True:
                await manager.broadcast('b', 1)
                await asyncio.sleep(0)
        async with following('stream', manager, events='a') as a, following('stream', manager, events='b'):
            busy = asyncio.create_task(trickle())
            for i in range(200): await manager.broadcast('a', i)
            assert await a.data(200) == [*range(200)]
            busy.cancel()

    async def test_connections_that_end_while_many_are_served(self, manager):
        stay, go = Site(manager).app, Site(manager, user='ann').app
        pages = [listening(stay if i < 518 else go) for i in range(520)]
        for c in pages: await c.__aenter__()
        await all_live(manager, 520)
        for i in range(10):
            sent = manager.broadcast('x', i)
            await asyncio.sleep(0)  # The first ones are served, the rest comes in a later turn
            if i == 5: await manager.disconnect('ann')
            await sent
        for c in pages[:518]: assert await c.data(10) == [*range(10)]
        for c in pages: await c.leave()

    async def test_its_task_may_be_cancelled(self):
        "As where an app cancels all tasks that it finds"
        manager = SSEBroadcastManager(10, heartbeat=.05)
        async with following('stream', manager) as page:
            before = asyncio.all_tasks()
            for i in range(5): await manager.broadcast('x', i)
            for o in asyncio.all_tasks()-before: o.cancel()
            await turns()
            for i in range(5, 30): await manager.broadcast('x', i)
            assert await page.data(30) == [*range(30)]
            n = len(page.events)
            await eventually(lambda: len(page.events) > n+1, 'heartbeats go on')

    async def test_age_of_one_that_left_holds_nothing(self):
        manager = SSEBroadcastManager(max_age=1000)
        async with following('stream', manager): ref, = map(weakref.ref, manager.connections)
        await turns()
        gc.collect()
        assert ref() is None

    async def test_refused_streams_fill_no_log(self, caplog):
        "Ids that this process has not come to may be made up by anybody"
        class Behind(OwnBackend):
            async def wait_for(self, last_event_id): raise BackendError('there are entries that this process has not read yet')
        manager = SSEBroadcastManager(backend=Behind())
        await manager.open()
        for i in range(20):
            async with client('stream', manager, last_id=f'own-{i+1}') as c: assert c.status == 503
        assert len(caplog.records) == 1


class TestReplays:
    @pytest.mark.parametrize('size, want', [(500, 5000), (1, 1000)])
    async def test_how_far_the_log_reaches_back(self, size, want):
        "Ten times `max_queue_size`, 1,000 at least"
        manager = SSEBroadcastManager(size)
        start = manager.cursor
        for i in range(want): await manager.broadcast('x', i)
        async with client('stream', manager, last_id=start) as page: assert await page.next() == ('x', 0)
        await manager.broadcast('x', 0)
        async with client('stream', manager, last_id=start) as page:
            await page.read()
            assert page.gaps == 1

    async def test_pieces_let_others_run(self, manager):
        "A client that does not read its replay holds one piece of it, and a long one does not hold up the event loop"
        start, ran, sizes = manager.cursor, 0, []
        for i in range(200): await manager.broadcast('x', f'{i} '+'y'*20_000)
        async def count():
            nonlocal ran
            while ran := ran+1: await asyncio.sleep(0)
        page, counter = client('stream', manager, last_id=start), asyncio.create_task(count())
        take = page.exchange.heard
        page.exchange.heard = lambda data: (sizes.append(len(data)), take(data))
        async with page: assert [int(d.split()[0]) for d in await page.data(200)] == [*range(200)]
        counter.cancel()
        assert max(sizes) < 100_000 and ran > 40, (max(sizes), ran)

    @timeless
    async def test_what_a_slow_renderer_has_made_is_sent(self, manager):
        "After a second, before all of the replay is ready"
        go, start = asyncio.Event(), manager.cursor
        async def render(m):
            if m['data'] == 1: await asyncio.sleep(1.1)
            if m['data'] == 2: await go.wait()
            return str(m['data'])
        for n in range(5): await manager.broadcast('x', n)
        async with client('stream', manager, render=render, last_id=start) as page: assert await page.data(2) == [0, 1]
        async with client('stream', manager, render=render, last_id=page.last_id) as back:
            go.set()
            assert await back.data(3) == [2, 3, 4]

    async def test_one_that_nobody_reads_ends(self):
        "Once the log has moved on"
        manager = SSEBroadcastManager(replay_size=5, heartbeat=.02, default_timeout=.01)
        start = manager.cursor
        await manager.broadcast('x', 0)
        page = client('stream', manager, last_id=start)
        page.exchange.heard = lambda data: page.stall()  # Behind the first event
        async with page:
            await eventually(lambda: page.exchange.body, 'the replay begins')
            for n in range(10): await manager.broadcast('x', n)
            await eventually(lambda: manager.stats()['evicted'], 'it is evicted')
            assert manager.connection_count == 0
