"The live dashboard: what it shows, and that it does not disturb what it looks at. What the contract leaves out"
import asyncio
import gc
import json
import logging
import re
import time
import weakref
from html import unescape

import pytest
from fasthtml.common import FastHTML, P

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard, sse_dashboard
from cjm_fasthtml_sse.htmx import ArgumentError
from cjm_fasthtml_sse.testing import SSEClient
from tests.contract.support import OwnBackend, client, eventually, following, listening, no_task_left

PATH = '/_sse/dashboard'


def site(manager, **kw):
    app = FastHTML(secret_key='test')
    return app, setup_dashboard(app, manager, **dict(authorise=True, interval=.05) | kw)

def look(app, path=PATH): return listening(app, f'{path}/events')
def newest(page): return page.messages[-1].data if page.messages else ''
def text(html): return unescape(' '.join(re.sub('<[^>]*>', ' ', html).split()))

async def shows(page, *wanted):
    "Wait until the dashboard shows all of `wanted`; its HTML"
    await eventually(lambda: all(w in text(newest(page)) for w in wanted), lambda: f'{wanted}: {text(newest(page))}')
    return newest(page)

async def looks(page, n):
    "Wait for `n` more looks"
    there = len(page.messages)
    await eventually(lambda: len(page.messages) >= there+n, f'{n} looks')


@pytest.fixture
def manager(): return SSEBroadcastManager(history_size=100)


class TestSetup:
    def test_bad_paths(self, manager):
        app, bad = FastHTML(secret_key='test'), '/x/ //x /a//b /{x} /a?b /a#b /a/../b /%2e /a"b /<x> / x'.split()
        before = len(app.routes)
        for path in *bad, '', '/a b', '/a\nb', None, 7:
            with pytest.raises(ArgumentError, match='`path` must be a plain path') as e:
                setup_dashboard(app, manager, path, True)
            assert repr(path) in str(e.value) and len(app.routes) == before
        setup_dashboard(app, manager, '/fine', True)  # The attempts have left nothing

    async def test_one_for_a_manager_and_one_manager_for_a_path(self, manager):
        "Pages of all processes have the same ids"
        app, board = site(manager)
        with pytest.raises(ArgumentError, match=f'already, at {PATH}'):
            setup_dashboard(FastHTML(secret_key='test'), manager, '/other', True)
        with pytest.raises(ArgumentError, match='would answer instead'):
            setup_dashboard(app, SSEBroadcastManager(), authorise=lambda req: False)
        other = setup_dashboard(app, SSEBroadcastManager(), '/other', True)
        assert other.id != board.id == site(SSEBroadcastManager())[1].id
        for path in PATH, '/other':
            async with look(app, path) as page: await shows(page, '0 open')

    def test_bad_settings(self, manager):
        for kw in *[dict(interval=o) for o in (0, '1', True, float('nan'))], dict(data=1):
            with pytest.raises(ArgumentError, match=f'`{[*kw][0]}` must be'): site(manager, **kw)
        site(manager)
        for level in 0, 6, True, '2', None:
            with pytest.raises(ArgumentError, match='`level` must be'): sse_dashboard(manager, level=level)
        for other in None, SSEBroadcastManager():
            with pytest.raises(ArgumentError, match='`setup_dashboard'): sse_dashboard(other)


class TestShown:
    async def test_what_the_app_does(self, manager):
        app, _ = site(manager)
        def fails(message): raise ValueError('on purpose')
        async with following('stream', manager) as one, following('stream', manager), look(app) as page:
            await shows(page, '2 open')
            for i in range(5): await manager.broadcast('todo:added', dict(title='x'*i))
            await manager.broadcast('todo:done', None)
            html = await shows(page, 'Messages by event type Type Share Messages todo:added 5 todo:done 1')
            rows = re.findall(r'<td class="type"><code>(.*?)</code></td><td class="n">(\d+) B</td></tr>', html)
            assert [t for t, _ in rows] == ['todo:done'] + ['todo:added']*5  # The newest first
            first = re.search(rb'(id: \S+\n)?event: todo:added.*?\n\n', one.exchange.body, re.S)[0]
            assert [int(n) for _, n in rows[:0:-1]] == [len(first)+i for i in range(5)]
            manager.on_broadcast(fails)
            await manager.broadcast('todo:added', 1)
            assert 'class="alarm"' in await shows(page, 'Errors 1 +1')
            async with client('stream', manager, last_id='of-a-former-life-1'): await shows(page, 'Gaps 1', '3 open')
            async with client('stream', manager, last_id=one.messages[0].id): await shows(page, 'Replayed 6', '3 open')
            await shows(page, '2 open')

    async def test_the_slowest_queue_and_types_without_bound(self, manager):
        app, _ = site(manager)
        queue = await manager.register_connection()
        for i in range(7): await manager.broadcast('n', i)
        async with look(app) as page: await shows(page, '7 messages wait')
        await manager.unregister_connection(queue)
        for i in range(3000): await manager.broadcast(f'user:{i}:news', i)
        async with look(app) as page: assert len(await shows(page, 'Others 2,981')) < 100_000


class TestLiveElements:
    async def test_nothing_without_any(self, manager):
        app, _ = site(manager)
        async with look(app) as page: assert 'Time of each' not in await shows(page, '0 open')

    async def test_viewers_views_and_errors(self, manager):
        app, _ = site(manager)
        state = ['fine']
        @manager.live('n')
        def clock(): return P(len(state[0])//(state[0] != 'broken'))
        @manager.live('user:{user}')
        def inbox(user): return P(user)
        app.get('/')(lambda: (clock(), inbox('ann'), inbox('bob')))
        async with SSEClient(app, '/') as one, SSEClient(app, '/') as two, look(app) as page:
            for tab in one, two: await tab.live(clock)
            await shows(page, 'Element Viewers Views Drawings a second Time of each Errors', 'clock 2 1', 'inbox 4 2 0 – 0')
            await manager.changed('n')
            await eventually(lambda: re.search(r'clock 2 1 [\d.]+ [\d.]+ ms 0 ', text(newest(page))))
            state[0] = 'broken'
            await manager.changed('n')
            await eventually(lambda: re.search(r'clock 2 1 [\d.]+ [\d.]+ ms [12] ', text(newest(page))))
        async with look(app) as page: await shows(page, 'clock 0 1', 'inbox 0 2')

    async def test_many(self, manager):
        "Those that take longest come first; the page is bounded"
        app, board = site(manager)
        for i in range(70): manager.live('n', name=f'element_{i}')(lambda: P('x'))
        @manager.live('n')
        def slow():
            time.sleep(.01)
            return P('x')
        slow()
        async with look(app) as page:
            html = await shows(page, 'slow 0 1', 'Others 0 0 0 – 0')
            assert re.findall('<code>(slow|element_.*?)</code>', html)[0] == 'slow'
            assert html.count('<code>element_') == 19

    async def test_of_all_processes(self):
        "What each process reports of itself is added up; one of an older version reports nothing of live elements"
        two, one = SSEBroadcastManager(backend=(other := OwnBackend())), SSEBroadcastManager(backend=(backend := OwnBackend()))
        @two.live('n')
        def clock(): return P('x')
        clock()
        await two.open()
        async def poll_workers(): return [backend.describe(), json.loads(json.dumps(other.describe())), dict(stats={}, users=[])]
        backend.poll_workers = poll_workers
        total = await one.cluster_stats()
        assert total['stats']['live'] == two.stats()['live'] and one.stats()['live'] == total['each'][2]['stats']['live'] == {}
        app, _ = site(one)
        async with look(app) as page: await shows(page, 'in all processes', 'clock 0 1')


class TestDoesNotDisturb:
    async def test_one_look_for_all(self, manager):
        "However many look; and no task when nobody does"
        app, _ = site(manager)
        async with no_task_left():
            async with look(app) as a:
                await looks(a, 1)
                async with look(app) as b, look(app) as c:
                    for page in a, b, c: await looks(page, 4)
                    ids = [{e.id for e in page.messages} for page in (a, b, c)]
                    assert len(ids[0] & ids[1] & ids[2]) >= 2  # The same messages, and so the same looks
            for _ in range(10):  # Whoever comes while the last one leaves is served
                one = look(app)
                await one.__aenter__()
                leaving = asyncio.create_task(one.leave())
                async with look(app) as page:
                    await leaving
                    await looks(page, 2)
        assert manager.stats()['broadcasts'] == 0

    async def test_pages_that_are_loaded_again_and_again(self, manager):
        "They spoil no rates: what was seen survives, and the next look is when it is due"
        app, _ = site(manager, interval=60)
        for i in range(5):
            await manager.broadcast('n', i)
            async with look(app) as page:
                await eventually(lambda page=page: page.messages)  # It may be there already
                seen = newest(page)
        assert '– a second' in text(seen) and 'n 5' in text(seen)

    async def test_a_look_that_fails(self, manager, caplog):
        "It is logged, and the next one comes"
        app, _ = site(manager)
        stats, times = manager.stats, iter([True, False])
        def sometimes():
            if next(times, True): return stats()
            raise RuntimeError('no figures')
        manager.stats = sometimes
        async with look(app) as page: await looks(page, 5)
        errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
        assert errors == [f'The dashboard at {PATH} could not be drawn']

    async def test_a_tab_that_does_not_read(self, manager):
        "Of the looks only the newest waits for it"
        app, _ = site(manager)
        async with look(app) as stalled, look(app) as page:
            await looks(stalled, 1)
            stalled.stall()
            await looks(page, 20)
            n = len(stalled.messages)
            stalled.resume()
            await looks(stalled, 1)
            assert len(stalled.messages) < n+5 and not stalled.over

    async def test_it_goes_with_the_app(self):
        app, board = site(SSEBroadcastManager())
        async with look(app) as page: await looks(page, 1)
        ref = weakref.ref(board)
        del app, board, page
        await eventually(lambda: gc.collect() is not None and ref() is None, 'it is collected')
