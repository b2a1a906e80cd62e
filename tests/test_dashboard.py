"The live dashboard: who may look, what it shows, and that it does not disturb what it looks at"
import asyncio
import gc
import logging
import re
import weakref
from html import unescape

import pytest
from fasthtml.common import FastHTML, to_xml

from cjm_fasthtml_sse import core, dashboard, monitoring
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.charts import SAMPLES, TYPES, Sample
from cjm_fasthtml_sse.dashboard import Dashboard, setup_dashboard, sse_dashboard
from cjm_fasthtml_sse.htmx import ArgumentError
from cjm_fasthtml_sse.testing import SSEClient
from cjm_fasthtml_sse.engine.wire import StreamEnded
from tests.support import BOUND, eventually, following, no_task_left, tasks

PATH = '/_sse/dashboard'
EVENTS = f'{PATH}/events'


def site(manager, authorise=True, interval=.05, **kw):
    app = FastHTML(secret_key='test')
    return app,setup_dashboard(app, manager, authorise=authorise, interval=interval, **kw)

def part(board, html, name):
    "What one part of the dashboard is replaced with"
    found = re.search(rf'<div [^>]*id="{board.id}-{name}"[^>]*>(.*?)</div>(?=<div [^>]*id="{board.id}-|$)', html, re.S)
    assert found, (name, html)
    return found[1]

def text(html): return unescape(' '.join(re.sub('<[^>]*>', ' ', html).split()))

def counters(board, html):
    "label -> value"
    return {k: v for k,v in re.findall(r'<dt>(.*?)</dt>\s*<dd>(.*?)<small>', part(board, html, 'counters'))}

async def shown(page, board, *wanted, name=None):
    "Read until a dashboard shows all of `wanted`; its HTML"
    html = ''
    try:
        async with asyncio.timeout(BOUND):
            while True:
                html = (await page.next(BOUND)).data
                if all(w in text(part(board, html, name) if name else html) for w in wanted): return html
    except TimeoutError: raise AssertionError(f'{wanted} never came; last was {text(html)}') from None


@pytest.fixture
def manager(): return SSEBroadcastManager(history_size=100)


# What is refused

@pytest.mark.parametrize('path', ['', 'x', '/', '/x/', '//x', '/a//b', '/{x}', '/a?b', '/a#b', '/a b', '/a\nb', '/a/../b', '/%2e', '/a"b', '/<x>', '\\x', None, 7])
async def test_bad_paths(manager, path):
    app = FastHTML(secret_key='test')
    before = len(app.routes)
    with pytest.raises(ArgumentError, match='`path` must be a plain path') as e: setup_dashboard(app, manager, path, True)
    assert repr(path) in str(e.value) and len(app.routes) == before and not hasattr(manager, '_dashboard')


async def test_one_dashboard_for_a_manager_and_one_manager_for_a_path(manager):
    app,_ = site(manager)
    with pytest.raises(ArgumentError, match=f'already, at {PATH}'): setup_dashboard(FastHTML(secret_key='test'), manager, '/other', True)
    with pytest.raises(ArgumentError, match='would answer instead'): setup_dashboard(app, SSEBroadcastManager(), authorise=lambda req: False)
    other = setup_dashboard(app, SSEBroadcastManager(), '/other', True)
    assert other.id != manager._dashboard.id
    for board in (other, manager._dashboard):
        async with SSEClient(app, f'{board.path}/events') as page: await shown(page, board, '0 open', name='connections')


@pytest.mark.parametrize('kw', [dict(interval=0), dict(interval='1'), dict(interval=True), dict(interval=float('nan')), dict(data=1)])
async def test_bad_settings(manager, kw):
    with pytest.raises(ArgumentError, match=f'`{[*kw][0]}` must be'): site(manager, **{'interval': 1} | kw)
    for level in (0, 6, True, '2', None):
        app,_ = site(own := SSEBroadcastManager())
        with pytest.raises(ArgumentError, match='`level` must be'): sse_dashboard(own, level=level)
    for other in (None, manager):
        with pytest.raises(ArgumentError, match='`setup_dashboard'): sse_dashboard(other)


# What it shows

async def test_it_shows_what_the_app_does(manager):
    app,board = site(manager)
    def fails(message): raise ValueError('on purpose')
    async with following(manager) as one, following(manager), SSEClient(app, EVENTS) as page:
        html = await shown(page, board, '2 open', name='connections')
        assert set(counters(board, html).values()) == {'0', '0 B'} or counters(board, html)['Sent'] != '0 B'
        for i in range(5): await manager.broadcast('todo:added', dict(title='x'*i))
        await manager.broadcast('todo:done', None)
        html = await shown(page, board, 'todo:done')
        assert text(part(board, html, 'types')) == 'Messages by event type Type Share Messages todo:added 5 todo:done 1'
        rows = re.findall(r'<tr><th scope="row">([\d:.]+)</th><td class="type"><code>(.*?)</code></td><td class="n">(\d+) B</td></tr>', part(board, html, 'messages'))
        assert [t for _,t,_ in rows] == ['todo:done'] + ['todo:added']*5  # The newest first
        sizes = [int(n) for *_,n in rows[1:]]
        assert [a-b for a,b in zip(sizes, sizes[1:])] == [1, 1, 1, 1] and sizes[-1] == len(re.search(rb'id: \S+\nevent: todo:added.*?\n\n|event: todo:added.*?\n\n', one.body, re.S)[0])
        manager.on_broadcast(fails)
        await manager.broadcast('todo:added', 1)
        html = await shown(page, board, 'Errors 1 +1', name='counters')
        assert 'class="alarm"' in part(board, html, 'counters')
        async with following(manager, last_event_id='of-a-former-life-1'): await shown(page, board, 'Gaps 1', '3 open')
        async with following(manager, last_event_id=[e.id for e in one.events if e.event == 'todo:added'][0]): await shown(page, board, 'Replayed 6', '3 open')
        await shown(page, board, '2 open', name='connections')


async def test_rates_are_by_the_second(manager):
    _,board = site(manager, interval=1.)
    stats = manager.stats()
    board.observer.samples += [Sample(t, stats | dict(connections=7, broadcasts=b, deliveries=d)) for t,b,d in [(100., 0, 0), (102., 50, 9000), (103., 60, 9001)]]
    html = ''.join(to_xml(o, indent=False) for o in board.view.draw())
    assert [text(part(board, html, k)).split(' ')[0] for k in ('connections', 'broadcasts', 'deliveries')] == ['7', '10', '1.0']
    assert 'now 10, least 10, most 25"' in part(board, html, 'broadcasts') and 'now 1.0, least 1.0, most 4,500"' in part(board, html, 'deliveries')
    assert '0 to 10 s ago 10 25' in text(part(board, html, 'broadcasts-table'))


async def test_the_slowest_queue(manager):
    app,board = site(manager)
    queue = await manager.register_connection()
    for i in range(7): await manager.broadcast('n', i)
    async with SSEClient(app, EVENTS) as page: await shown(page, board, '7 messages wait', name='backlog')
    await manager.unregister_connection(queue)



async def test_types_without_bound(manager):
    app,board = site(manager)
    for i in range(TYPES+50): await manager.broadcast(f'user:{i}:news', i)
    assert len(board.observer.types) == TYPES
    async with SSEClient(app, EVENTS) as page: html = await shown(page, board, 'Others', name='types')
    assert text(part(board, html, 'types')).endswith(f'Others {TYPES+50-20}')
    board.observer.interval = 1e-9
    for _ in range(SAMPLES+5): board.look()
    assert len(board.observer.samples) == SAMPLES


# It does not disturb

async def test_one_task_however_many_look_and_none_when_nobody_does(manager):
    app,board = site(manager)
    looks = []
    look = board.look
    board.look = lambda: (looks.append(asyncio.current_task()), look())
    async with no_task_left():
        async with SSEClient(app, EVENTS) as one:
            await one.next(BOUND)
            first = board.task
            before = tasks()
            async with SSEClient(app, EVENTS) as two, SSEClient(app, EVENTS) as three:
                for page in (one, two, three):
                    for _ in range(3): await page.next(BOUND)
                assert board.task is first and len({t for t in looks if t is first}) == 1
                ids = [{e.id for e in page.events if not e.event.startswith('sse:')} for page in (one, two, three)]
                assert len(ids[0] & ids[1] & ids[2]) >= 2  # The same messages, and so the same looks
            await eventually(lambda: board.own.connection_count == 1)
            assert not board.task.done() and tasks() <= before
        await eventually(lambda: first.done(), 'the task ends with the last one')
        assert board.task is None
        n = len(looks)
        async with SSEClient(app, EVENTS) as page:
            for _ in range(3): await page.next(BOUND)
            assert board.task is not first and len(looks) > n
    assert len({t for t in looks}) <= 4  # Two tasks, and the two requests that started them


async def test_who_comes_while_the_last_one_leaves_is_served(manager):
    app,board = site(manager)
    for _ in range(10):
        one = SSEClient(app, EVENTS)
        await one.__aenter__()
        leaving = asyncio.create_task(one.disconnect())
        async with SSEClient(app, EVENTS) as page:
            await leaving
            for _ in range(3): await page.next(BOUND)


async def test_what_was_seen_survives_a_reload_of_the_page(manager):
    app,board = site(manager)
    async with SSEClient(app, EVENTS) as page:
        for _ in range(4): await page.next(BOUND)
    n = len(board.observer.samples)
    async with SSEClient(app, EVENTS) as page: await page.next(BOUND)
    assert len(board.observer.samples) >= n >= 3

async def test_pages_that_are_loaded_again_and_again_do_not_spoil_the_rates(manager):
    app,board = site(manager, interval=60)
    for i in range(5):
        await manager.broadcast('n', i)
        async with SSEClient(app, EVENTS) as page: html = (await page.next(BOUND)).data
    assert len(board.observer.samples) == 1 and text(part(board, html, 'types')).endswith('n 5')


async def test_a_look_that_fails_is_logged_and_the_next_one_comes(manager, caplog):
    app,board = site(manager)
    stats,times = manager.stats,iter([True, False])
    def sometimes():
        if next(times, True): return stats()
        raise RuntimeError('no figures')
    manager.stats = sometimes
    with caplog.at_level(logging.ERROR):
        async with SSEClient(app, EVENTS) as page:
            for _ in range(5): await page.next(BOUND)
    assert [r.getMessage() for r in caplog.records] == [f'The dashboard at {PATH} could not be drawn']


async def test_a_tab_that_does_not_read_costs_nothing(manager):
    app,board = site(manager)
    async with SSEClient(app, EVENTS) as stalled, SSEClient(app, EVENTS) as page:
        await stalled.next(BOUND)
        stalled.stall()
        for _ in range(30): await page.next(BOUND)
        assert board.own.connection_count == 2 and board.own.stats()['evicted'] == 0  # Of the looks only the newest waits for it
        assert board.own.stats()['backlog'] <= 1 and len(board.own._hub.replay._messages) <= 2
        n = len(stalled.events)
        stalled.resume()
        await eventually(lambda: len(stalled.events) > n)


async def test_it_ends_with_the_app_and_goes_with_it(manager):
    app,board = site(manager)
    async with SSEClient(app, EVENTS) as page:
        await page.next(BOUND)
        await board.own.close()
        with pytest.raises(StreamEnded):
            while True: await page.next(BOUND)
    assert board.own in app._sse_setup.managers.all
    ref = weakref.ref(board)
    del app,board,page
    manager.__dict__.pop('_dashboard')
    manager._hooks.clear('delivery')
    await eventually(lambda: gc.collect() is not None and ref() is None, 'it is collected')  # The state that was read is kept for a moment


# Several processes

async def test_no_warning_that_each_process_speaks_for_itself(monkeypatch, caplog):
    monkeypatch.setattr(core, 'processes', lambda: 4)
    core._warn_of_several.cache_clear()
    board = Dashboard(manager := SSEBroadcastManager(), '/x')
    await board.own.open()
    assert not caplog.records
    await manager.open()
    assert 'processes serve this app' in caplog.text
    core._warn_of_several.cache_clear()


async def test_the_pages_of_all_processes_have_the_same_ids():
    def make(): return setup_dashboard(FastHTML(secret_key='test'), SSEBroadcastManager(), authorise=True).id
    assert make() == make()


# The page

async def test_names():
    assert (monitoring.sse_dashboard, monitoring.setup_dashboard) == (dashboard.sse_dashboard, dashboard.setup_dashboard)
    assert {'sse_dashboard', 'setup_dashboard'} <= {*monitoring.__all__}
