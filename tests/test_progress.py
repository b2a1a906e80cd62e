"Tracked jobs: how a loop may end, what the tabs are told, and who may listen"
import asyncio
import gc
import json
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from numbers import Integral

import pytest
from fasthtml.common import Beforeware, Div, FastHTML, Redirect
from starlette.responses import Response

from cjm_fasthtml_sse import progress
from cjm_fasthtml_sse.backend import BackendAway, MemoryBackend, Record
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import segment
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.htmx import ArgumentError, HTMXSSEConnector
from cjm_fasthtml_sse.progress import Jobs, oob_progress, progress_bar, setup_progress, track
from cjm_fasthtml_sse.render import to_html, to_json
from cjm_fasthtml_sse.testing import SSEClient
from cjm_fasthtml_sse.updater import SSEElementUpdater
from cjm_fasthtml_sse.wire import CLOSE, StreamEnded
from tests.support import BOUND, eventually, no_task_left, read, read_all, read_to, tab


def told(manager, job_id='j', every=True):
    "What was broadcast of a job: (what, n)"
    res = [(m['type'].rpartition(':')[2], m['data']['n']) for m in manager.get_history() if m['type'].startswith(f'job:{segment(job_id)}:')]
    return [o for o in res if every or o[0] != 'progress']

def newest(manager): return manager.get_history(1)[0]['data']

async def ends(manager, job_id='j'):
    "Wait until a job has ended, and say how"
    await eventually(lambda: told(manager, job_id) and told(manager, job_id)[-1][0] in ('completed', 'failed', 'cancelled'), 'the job ends')
    return told(manager, job_id)[-1]

def site(manager, authorise=True, **kw):
    app = FastHTML(secret_key='test')
    return app,setup_progress(app, manager, authorise, **kw)

def url(kind, job_id='j'):
    make = dict(progress=HTMXSSEConnector.sse_progress_element, status=HTMXSSEConnector.sse_status_element)[kind]
    return make(job_id).attrs['sse-connect']


@pytest.fixture
async def manager():
    manager = SSEBroadcastManager(history_size=1000)
    await manager.open()  # As an app does that starts
    return manager


# How a loop may end

async def body_fails(job):
    async for n in job: 1/(2-n)

async def with_body_fails(job):
    async with job:
        async for n in job: 1/(2-n)

async def plain_body_fails(job):
    for n in job: 1/(2-n)

async def plain_with_body_fails(job):
    with job:
        for n in job: 1/(2-n)

@pytest.mark.parametrize('run, want', [(body_fails, 'cancelled'), (with_body_fails, 'failed'), (plain_body_fails, 'cancelled'), (plain_with_body_fails, 'failed')])
async def test_the_body_fails(manager, run, want):
    with pytest.raises(ZeroDivisionError): await run(track(manager, range(5), 'j'))
    assert await ends(manager) == (want, 2)
    assert newest(manager)['error'] == ('ZeroDivisionError' if want == 'failed' else '')


@pytest.mark.parametrize('block', [False, True])
@pytest.mark.parametrize('kind', ['thread', 'async', 'async over plain'])
async def test_the_iterable_fails(manager, kind, block):
    def items():
        yield 1
        raise OSError('disk /secret is full')
    async def aitems():
        for o in items(): yield o
    job = track(manager, aitems() if kind == 'async' else items(), 'j', error=str if block else progress._class)
    def work():
        if not block: return [*job]
        with job: return [*job]
    async def awork():
        if not block: return [o async for o in job]
        async with job: return [o async for o in job]
    with pytest.raises(OSError): await (asyncio.to_thread(work) if kind == 'thread' else awork())
    assert told(manager)[-1] == ('failed', 1)
    assert newest(manager)['error'] == ('disk /secret is full' if block else 'OSError')


@pytest.mark.parametrize('block', [False, True])
async def test_break_cancels_unless_it_was_complete(manager, block):
    def work(job, complete):
        def loop():
            for n in job:
                if n == 3:
                    if complete: job.complete()
                    break
        if not block: return loop()
        with job: loop()
    for i,complete in enumerate((False, True)):
        await asyncio.to_thread(work, track(manager, range(10), i), complete)
        assert told(manager, i)[-1] == ('completed' if complete else 'cancelled', 3)


@pytest.mark.parametrize('where', ['body', 'iterable', 'block'])
async def test_a_cancelled_task(manager, where):
    reached,never = asyncio.Event(),asyncio.Event()
    async def items():
        yield 1
        if where == 'iterable':
            reached.set()
            await never.wait()
        yield 2
    async def work():
        if where == 'block':
            async with track(manager, None, 'j') as job:
                job.update()
                reached.set()
                await never.wait()
        async for _ in track(manager, items(), 'j'):
            if where == 'body':
                reached.set()
                await never.wait()
    async with no_task_left():
        task = asyncio.create_task(work())
        await asyncio.wait_for(reached.wait(), BOUND)
        task.cancel()
        with pytest.raises(asyncio.CancelledError): await task
        assert (await ends(manager))[0] == 'cancelled'


async def test_a_timeout_is_an_end_by_cancelling(manager):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(.01):
            async with track(manager, None, 'j'): await asyncio.Event().wait()
    assert (await ends(manager))[0] == 'cancelled'


async def test_an_iterator_that_is_dropped_is_cancelled(manager):
    def work():
        items = iter(track(manager, range(5), 'j'))
        next(items), next(items)
        del items
        gc.collect()
    await asyncio.to_thread(work)
    assert told(manager)[-1] == ('cancelled', 1)


async def test_a_job_that_never_began_tells_nothing(manager):
    job = track(manager, range(5), 'j')
    iter(job)
    job.complete()
    del job
    gc.collect()
    assert told(manager) == []


async def test_a_block_within_a_generator_that_is_closed(manager):
    def rows():
        with track(manager, None, 'j') as job:
            while True:
                job.update()
                yield job.n
    def work():
        for n in rows():
            if n == 3: break
    await asyncio.to_thread(work)
    assert told(manager)[-1] == ('cancelled', 3)


# Reports

async def test_threads_async_code_and_scripts_tell_the_same():
    want = [('started', 0), *(('progress', n) for n in (1, 2, 3)), ('completed', 3)]
    def work(manager): [*track(manager, 'abc', 'j', every=0)]
    def script():
        manager = SSEBroadcastManager()
        work(manager)
        return told(manager)
    assert await asyncio.to_thread(script) == want  # No event loop in sight
    manager = SSEBroadcastManager()
    async with tab(manager) as page:
        def in_order(found): return (found[0], found[-1]) == (want[0], want[-1]) and set(found) <= set(want) and found == sorted(found, key=want.index)
        await asyncio.to_thread(work, manager)
        async for _ in track(manager, 'abc', 'k', every=0): pass
        assert in_order(told(manager)) and in_order(told(manager, 'k')), 'a loop that is busy may leave some out'
        seen = [e.event for e in await read_to(page, 'job:k:completed')]
        assert [e for e in seen if e[:5] == 'job:j' and not e.endswith('progress')] == ['job:j:started', 'job:j:completed'] and 'job:k:started' in seen


async def test_progress_has_a_key_so_a_slow_tab_gets_the_newest_only(manager):
    async with tab(manager) as page:
        await page.next(heartbeats=True)
        page.stall()
        async for _ in track(manager, range(200), 'j', every=0): pass
        page.resume()
        got = await read(page, 3)
        while got[-1].event != 'job:j:completed': got += await read(page, 1)
        assert len(got) < 10
    assert manager.stats()['evicted'] == 0


async def test_the_last_word_comes_last_even_where_hooks_take_their_time(manager):
    gate = asyncio.Event()
    @manager.on_broadcast
    async def slow(message):
        if message['type'] == 'job:j:progress': await gate.wait()
    job = track(manager, range(3), 'j', every=0)
    def work(): [*job]
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(asyncio.to_thread(work))
    await eventually(lambda: job.state == 'completed', 'the loop ends')
    assert told(manager) == [('started', 0)]
    loop.call_soon(gate.set)
    await task
    assert (await ends(manager), [n for what,n in told(manager) if what == 'progress']) == (('completed', 3), [1])


@pytest.mark.parametrize('form', ['for', 'with', 'async for', 'async with'])
@pytest.mark.parametrize('fails', [False, True])
async def test_whoever_goes_on_may_rely_on_it_that_the_end_was_told(manager, form, fails):
    @manager.on_broadcast
    async def slow(message): await asyncio.sleep(.05)
    def items():
        yield 1
        if fails: raise OSError
    job = track(manager, items(), 'j')
    def work():
        try:
            if form == 'for': [*job]
            else:
                with job: [*job]
        except OSError: pass
        return told(manager, every=False)
    async def awork():
        try:
            if form == 'async for': [o async for o in job]
            else:
                async with job: [o async for o in job]
        except OSError: pass
        return told(manager, every=False)
    found = await (awork() if form.startswith('async') else asyncio.to_thread(work))
    assert found == [('started', 0), ('failed' if fails else 'completed', 1)]


async def test_a_newer_run_begins_after_the_last_word_of_the_older_one(manager):
    gate = asyncio.Event()
    @manager.on_broadcast
    async def slow(message):
        if message['type'] == 'job:j:completed' and message['data']['n'] == 1: await gate.wait()
    job = track(manager, None, 'j')
    await job.__aenter__()
    newer = track(manager, 'ab', 'j')
    async def again(): return [o async for o in newer]
    job.update()
    job._end()                      # Its last word hangs
    task = asyncio.create_task(again())
    await eventually(lambda: newer.state != 'new')
    gate.set()
    await task
    assert [o for o in told(manager, every=False)] == [('started', 0), ('completed', 1), ('started', 0), ('completed', 2)]


async def test_what_a_slow_item_hides_is_told_meanwhile(manager):
    "Three items, done too soon after the first report, and then a slow one"
    slow = threading.Event()
    def items():
        yield from range(4)
        slow.wait(BOUND)
    def work():
        for n in track(manager, items(), 'j', every=.02): pass
    task = asyncio.create_task(asyncio.to_thread(work))
    try: await eventually(lambda: ('progress', 4) in told(manager), 'all four are told, though no further one is done')
    finally: slow.set()
    await task


async def test_a_text_that_changes_is_told_though_nothing_is_counted(manager):
    async with track(manager, None, 'j', every=0) as job:
        job.text = 'looking'
        await eventually(lambda: newest(manager)['text'] == 'looking', 'the text is told')


async def test_a_busy_loop_is_not_swamped(manager):
    "A plain loop that does not let the event loop run: its reports do not pile up"
    for _ in track(manager, range(10000), 'j', every=0): pass
    assert (await ends(manager), len(told(manager)) < 5) == (('completed', 10000), True)


async def test_async_code_that_awaits_nothing_lets_the_tabs_move(manager):
    async with tab(manager, events='job:*:progress') as page:
        await page.next(heartbeats=True)
        seen = []
        async for n in track(manager, range(30), 'j', every=0): seen.append(len(page.events))
        assert seen[-1] > 5


@pytest.mark.parametrize('kind', ['at once', 'later'])
async def test_work_goes_on_where_nothing_can_be_told(kind, caplog):
    class Broken:
        def broadcast_threadsafe(self, *args, **kw):
            if kind == 'at once': raise ConnectionError('no Redis')
            async def fail(): raise ConnectionError('no Redis')
            return asyncio.run_coroutine_threadsafe(fail(), loop)
    loop = asyncio.get_running_loop()
    def work(): return [*track(Broken(), range(50), 'j', every=0)]
    with caplog.at_level(logging.WARNING): assert await asyncio.to_thread(work) == [*range(50)]
    assert [r.message.count('no Redis') for r in caplog.records if r.name == progress.__name__] == [1]


def test_a_backend_that_is_away_costs_little(monkeypatch):
    "Each attempt takes 1.3 s where an item takes 0.1: the work goes on, reports are few, and the end is tried all the same"
    now,tries = [0.],[]
    monkeypatch.setattr(progress, 'monotonic', lambda: now[0])
    class Away:
        def broadcast_threadsafe(self, event_type, *args, **kw):
            tries.append(event_type)
            now[0] += 1.3
            raise BackendAway('it is away')
    def items():
        for n in range(2000):
            now[0] += .1
            yield n
    assert [*track(Away(), items(), 'j')] == [*range(2000)]
    assert 5 < len(tries) < 20 and (tries[0], tries[-1]) == ('job:j:started', 'job:j:completed')
    assert now[0] < 1.2*2000*.1


async def test_an_error_that_nobody_can_name(manager, caplog):
    def why(e): raise KeyError('broken')
    with caplog.at_level(logging.ERROR), pytest.raises(OSError):
        async with track(manager, None, 'j', error=why): raise OSError
    assert (newest(manager)['error'], 'could not say' in caplog.text) == ('OSError', True)


async def test_many_threads_count_for_one_job(manager):
    def work():
        with track(manager, None, 'j', total=8000) as job, ThreadPoolExecutor(8) as pool:
            for _ in range(8): pool.submit(lambda: [job.update() for _ in range(1000)])
    await asyncio.to_thread(work)
    assert told(manager)[-1] == ('completed', 8000)


async def test_many_jobs_at_once(manager):
    async def work(i):
        async for _ in track(manager, range(20), f'job {i}'): await asyncio.sleep(0)
    book = Jobs()
    manager.on_delivery(book.hear)
    async with no_task_left(): await asyncio.gather(*[work(i) for i in range(50)])
    assert [(o['state'], o['n']) for o in book.values()] == [('completed', 20)]*50
    assert not progress._runs[manager], 'what has ended is not kept'


def report(job_id, n=0):
    data = dict(track(SSEBroadcastManager(), None, job_id).report(), n=n)
    return dict(type=f'job:{segment(job_id)}:progress', data=data)

def test_a_thread_that_reads_finds_a_job_while_it_is_heard_of():
    book,stop,interval = Jobs(),threading.Event(),sys.getswitchinterval()
    book.hear(message := report('j'))
    def hear():
        while not stop.is_set(): book.hear(message)
    hearing = threading.Thread(target=hear)
    sys.setswitchinterval(1e-5)
    hearing.start()
    try: missed = sum('j' not in book or len(book)!=1 or [*book]!=['j'] for _ in range(20000))
    finally:
        stop.set()
        hearing.join()
        sys.setswitchinterval(interval)
    assert not missed


@pytest.mark.parametrize('look', [lambda book: book.items(), lambda book: book.values()])
def test_a_loop_over_jobs_goes_on_while_jobs_are_forgotten(look):
    book = Jobs(keep=2)
    for o in 'ab': book.hear(report(o))
    seen = iter(look(book))
    next(seen)
    for o in 'cd': book.hear(report(o))
    assert len([*seen]) == 1
    assert [*book] == ['c', 'd']


@pytest.mark.parametrize('keep', [-1, 1.5, None, True])
def test_how_many_jobs_are_kept_is_checked(manager, keep):
    with pytest.raises(ValueError, match='`keep` must be'): site(manager, keep=keep)


class Count:
    "An integer as NumPy has it: none of Python's own"
    def __init__(self, n): self.n = n
    def __int__(self): return self.n
    __index__ = __int__
    def __add__(self, x): return Count(self.n+int(x))
    __radd__ = __add__
    def __sub__(self, x): return Count(self.n-int(x))
    def __rsub__(self, x): return Count(int(x)-self.n)
    def __mul__(self, x): return self.n*x
    def __truediv__(self, x): return self.n/x
    def __eq__(self, x): return self.n==int(x)
    def __lt__(self, x): return self.n<int(x)
    def __le__(self, x): return self.n<=int(x)
    def __gt__(self, x): return self.n>int(x)
    def __ge__(self, x): return self.n>=int(x)
    def __hash__(self): return hash(self.n)

Integral.register(Count)

@pytest.mark.parametrize(('n', 'total', 'text'), [(Count(3), Count(5), '3 of 5'), (Fraction(3, 2), Fraction(5, 2), '1.5 of 2.5')])
async def test_numbers_of_any_kind(manager, n, total, text):
    "What counts may come from a library that has numbers of its own"
    async with track(manager, None, 'j', total=total) as job: job.update(n)
    data = newest(manager)
    assert text in to_html(progress_bar(data))
    assert json.loads(to_json(data))['n'] == float(n if isinstance(n, Fraction) else int(n))


async def test_reports_of_two_threads_do_not_overtake_one_another(manager):
    class Slow(progress.Job):
        "One whose `progress` is interrupted, in the middle of being told, until the end was told or can't be"
        @property
        def _told(self):
            told = self.told
            if threading.current_thread() is slow: reached.set(),ended.wait(.3)
            return told
        @_told.setter
        def _told(self, x): self.told = x
    reached,ended = threading.Event(),threading.Event()
    job = track(manager, None, 'j', every=0)
    job.told = job.__dict__.pop('_told')
    job.__class__ = Slow
    slow = threading.Thread(target=job.update)
    def work():
        with job:
            slow.start()
            reached.wait(BOUND)
        ended.set()
        slow.join()
    await asyncio.to_thread(work)
    await eventually(lambda: not progress._runs[manager], 'all was told')
    assert [o for o,_ in told(manager)][-1] == 'completed'


async def test_rate_and_eta_follow_the_clock(manager, monkeypatch):
    now = [100.]
    monkeypatch.setattr(progress, 'monotonic', lambda: now[0])
    job = track(manager, None, 'j', total=30, every=1)
    async with job:
        for _ in range(10):
            now[0] += 1
            job.update(2)
        assert (round(job.report()['rate'], 6), round(job.report()['eta'], 6), job.report()['seconds']) == (2, 5, 10)
        job.total = 50
        assert round(job.report()['eta'], 6) == 15
        now[0] += 10
    assert (newest(manager)['rate'], newest(manager)['eta'], newest(manager)['seconds']) == (1, None, 20)


async def test_a_total_is_taken_from_what_has_one():
    class Odd:
        def __iter__(self): return iter('ab')
        def __len__(self): raise NotImplementedError
    manager = SSEBroadcastManager()
    for it,want in [([1, 2], 2), (iter([1, 2]), 2), ((o for o in 'ab'), None), (Odd(), None), (range(0), 0), (None, None)]:
        assert track(manager, it, 'j').total == want
    assert track(manager, [1, 2], 'j', total=7).total == 7


# Streams

async def test_a_page_that_comes_late_sees_how_it_stands_and_stays_to_the_end(manager):
    app,jobs = site(manager)
    async with no_task_left():
        async with track(manager, None, 'j', total=10) as job:
            job.update(4)
            await eventually(lambda: jobs['j']['n'] == 4)
            async with SSEClient(app, url('progress')) as bar, SSEClient(app, url('status')) as state:
                assert '4 of 10' in (await bar.next(BOUND)).data and 'Running' in (await state.next(BOUND)).data
                job.update(6)
                assert '10 of 10' in (await bar.next(BOUND)).data
                job.complete()
                for client in bar, state:
                    *_,last,close = await read_all(client)
                    assert 'data-state="completed"' in last.data and close.event == CLOSE
                assert len([e for e in state.events if not e.event.startswith('sse:')]) == 2, 'the state speaks of beginning and end only'
    assert manager.connection_count == 0


@pytest.mark.parametrize('kind', ['progress', 'status'])
async def test_a_job_that_has_ended_is_answered_at_once(manager, kind):
    app,_ = site(manager)
    async for _ in track(manager, 'abc', 'j'): pass
    for last_event_id in (None, manager.cursor, 'ffff-1'):
        async with SSEClient(app, url(kind), last_event_id=last_event_id) as page:
            shown,close = await read_all(page)
            assert ('completed' in shown.data, close.event, page.headers['content-type'].split(';')[0]) == (True, CLOSE, 'text/event-stream')
    assert manager.connection_count == 0


async def test_no_end_slips_in_between_looking_and_listening(manager):
    "The job ends at every possible turn of the event loop after the request came"
    app,_ = site(manager)
    for n in range(40):
        async with track(manager, None, n) as job:
            async with SSEClient(app, url('status', n)): pass  # The app is warm
            client = SSEClient(app, url('status', n))
            entering = asyncio.create_task(client.__aenter__())
            for _ in range(n): await asyncio.sleep(0)
            job.complete()
            await entering
            events = await read_all(client)
            await client.disconnect()
        assert (events[-1].event, 'completed' in events[-2].data) == (CLOSE, True), n


async def test_the_end_may_be_in_the_past_that_a_backend_tells_when_it_is_reached():
    class Remembering(MemoryBackend):
        async def start(self, size, deliver, renew, tell):
            await super().start(size, deliver, renew, tell)
            await asyncio.sleep(0)
            renew('e-0', [Record('e-1', dict(type='job:j:completed', timestamp='', data=report))])
    report = track(SSEBroadcastManager(), None, 'j').report() | dict(state='completed')
    app,jobs = site(SSEBroadcastManager(backend=Remembering()))
    assert 'j' not in jobs
    async with SSEClient(app, url('status')) as page:
        shown,close = await read_all(page)
        assert ('Completed' in shown.data, close.event) == (True, CLOSE)


async def test_a_page_that_lost_its_connection_is_not_ended_by_a_former_run(manager):
    app,jobs = site(manager)
    async with track(manager, None, 'j') as job:
        async with SSEClient(app, url('status')) as page: await page.next(BOUND)
    async with track(manager, None, 'j', name='second') as job:
        for last in page.last_event_id, '':
            async with SSEClient(app, url('progress') + f'&last_event_id={page.last_event_id}', last_event_id=last) as back:
                assert 'second' in (await back.next(BOUND)).data
                job.update()
                assert 'data-state="running"' in (await back.next(BOUND)).data
                await eventually(lambda: jobs['j']['n'] == job.n)


async def test_what_a_restart_has_lost_is_unknown():
    manager = SSEBroadcastManager()
    app,_ = site(manager)
    await manager.broadcast('other', 1)
    other = SSEBroadcastManager()
    def after(id): return dict(headers={'SSE-After': id})  # A page that has not heard anything so far
    for seen,want in [(lambda: dict(last_event_id='ffff-7'), True), (lambda: dict(last_event_id=manager.cursor), False), (lambda: {}, False),
                      (lambda: after('ffff-7'), True), (lambda: after(manager.cursor), False), (lambda: after(other.cursor), False)]:
        async with SSEClient(app, url('status'), **seen()) as page:
            if want: assert 'Unknown' in (await page.next(BOUND)).data
            async for _ in track(manager, 'ab', 'other'): pass
            async with track(manager, None, 'j'):
                assert 'Running' in (await page.next(BOUND)).data
        manager = SSEBroadcastManager()
        app,_ = site(manager)
        await manager.broadcast('other', 1)


async def test_events_of_the_apps_own_are_left_alone(manager):
    app,jobs = site(manager)
    async with SSEClient(app, url('progress')) as page:
        await page.next(BOUND, heartbeats=True)
        for data in 50, None, dict(n=1), 'x': await manager.broadcast('job:j:progress', data)
        async with track(manager, None, 'other'): await manager.broadcast('job:j:progress', jobs['other'])
        async for _ in track(manager, 'ab', 'j'): pass
        for _ in await read(page, 2): assert 'Job j' in _.data
    assert ({*jobs}, manager.stats()['errors']) == ({'other', 'j'}, 0)


async def test_one_stream_for_all_jobs(manager):
    app,jobs = site(manager)
    updater = SSEElementUpdater()
    updater.register_handler('job:*:*', oob_progress)
    async with track(manager, None, 'a/b') as first, tab(manager, render=updater, snapshot=lambda: [oob_progress(o) for o in jobs.values()]) as page:
        assert 'id="progress-span-a/b" hx-swap-oob="innerHTML"' in (await page.next(BOUND)).data
        async with track(manager, None, 'c'): assert 'id="progress-span-c"' in (await page.next(BOUND)).data
        assert 'id="progress-span-c"' in (await page.next(BOUND)).data
        first.update()
        assert 'id="progress-span-a/b"' in (await page.next(BOUND)).data
    assert manager.stats()['errors'] == 0


async def test_a_drawing_of_the_apps_own(manager, caplog):
    async def draw(report):
        await asyncio.sleep(0)
        return Div(f'{report["n"]}!')
    def broken(report): raise KeyError('colour')
    app,_ = site(manager, bar=draw, status=broken)
    async with track(manager, None, 'j') as job:
        async with SSEClient(app, url('progress')) as page:
            assert (await page.next(BOUND)).data == '<div>0!</div>'
            job.update()
            assert (await page.next(BOUND)).data == '<div>1!</div>'
    async with SSEClient(app, url('progress')) as page: assert [e.data for e in await read_all(page)] == ['<div>1!</div>', '']
    async with SSEClient(app, url('status')) as page: assert [e.event for e in await read_all(page)] == [CLOSE]
    assert 'could not be drawn' in caplog.text


@pytest.mark.parametrize('kind', ['progress', 'status'])
async def test_a_state_that_is_an_end_ends_the_stream_though_the_message_was_never_heard(manager, kind):
    "As where Redis comes back empty, and the job has ended meanwhile in another process"
    app,jobs = site(manager)
    job = track(manager, None, 'j', total=2, every=0)
    async with job:
        async with SSEClient(app, url(kind)) as page:
            await page.next(BOUND)
            jobs.hear(dict(type='job:j:completed', data=dict(jobs['j'], state='completed')))
            manager._hub.renew('another-0')
            *_,state,close = await read_all(page)
        assert 'ompleted' in state.data and close.event == CLOSE
    assert not manager.connection_count


@pytest.mark.parametrize('kind', ['progress', 'status'])
async def test_a_job_that_ends_while_a_hook_waits_ends_its_stream(manager, kind):
    app,_ = site(manager)
    job = track(manager, None, 'j', total=2, every=0)
    async with job:
        @manager.on_connect
        async def finish(conn):
            job.complete()
            await asyncio.sleep(.01)
        async with SSEClient(app, url(kind)) as page: *_,state,close = await read_all(page)
    assert 'ompleted' in state.data and close.event == CLOSE


async def test_setting_up_twice_adds_no_second_route(manager):
    app,_ = site(manager)
    jobs = setup_progress(app, manager, authorise=lambda req, job_id: False)
    setup_sse(app, manager)
    assert sum(getattr(r, 'path', '').startswith('/stream_job_') for r in app.routes) == 2
    async with SSEClient(app, url('status')) as page: assert page.status == 403, 'the later word counts'
    async for _ in track(manager, 'ab', 'j'): pass
    assert jobs['j']['state'] == 'completed'


def test_a_job_outlives_the_loop_that_its_report_was_on(manager):
    loop = asyncio.new_event_loop()
    job = track(manager, None, 'j', total=3, every=0)
    @manager.on_broadcast
    async def slow(message):
        if asyncio.get_running_loop() is loop: await asyncio.Event().wait()
    async def begin():
        await manager.open()
        await asyncio.to_thread(job.__enter__)
    loop.run_until_complete(begin())
    loop.close()
    async def again():
        async with manager.subscribe() as queue:
            await asyncio.to_thread(job.update)
            await asyncio.to_thread(job.__exit__, None, None, None)
            while (message := await asyncio.wait_for(queue.get(), BOUND))['type'] != 'job:j:completed': pass
            return message['data']['n']
    assert asyncio.run(again()) == 1


# Who may listen

async def yes(req, job_id): return True
async def no(req, job_id): return False
def nothing(req, job_id): return None
def answer(req, job_id): return Response('pay first', 402)
def mine(req, job_id): return job_id == 'ann:*' and req.headers.get('x-user') == 'ann'

@pytest.mark.parametrize('authorise, headers, want', [(True, {}, 200), (yes, {}, 200), (no, {}, 403), (nothing, {}, 403), (answer, {}, 402), (mine, {}, 403), (mine, {'x-user': 'ann'}, 200)])
@pytest.mark.parametrize('kind', ['progress', 'status'])
async def test_who_may_listen(manager, kind, authorise, headers, want):
    app,_ = site(manager, authorise)
    async with track(manager, None, 'ann:*'), SSEClient(app, url(kind, 'ann:*'), headers) as page:
        assert page.status == want
        if want == 200: assert 'data-state="running"' in (await page.next(BOUND)).data
        else: assert b'running' not in page.body
    assert manager.connection_count == 0


@pytest.mark.parametrize('ended', [False, True])
async def test_an_error_while_asking_lets_nobody_in(manager, ended):
    def broken(req, job_id): raise LookupError('no database')
    app,_ = site(manager, broken)
    async for _ in track(manager, 'a', 'j'): pass
    with pytest.raises(LookupError):
        async with SSEClient(app, url('status')) as page: await page.next(BOUND)


@pytest.mark.parametrize('wrong', [None, False, 1, 'ann', {}])
async def test_nobody_is_let_in_by_default(manager, wrong):
    with pytest.raises(ValueError, match='must say who may watch'): setup_progress(FastHTML(secret_key='test'), manager, wrong)


async def test_a_check_of_the_login_comes_first(manager):
    def check(req): return None if req.headers.get('x-user') else Redirect('/login')
    app = FastHTML(secret_key='test', before=Beforeware(check))
    setup_progress(app, manager, True)
    async with SSEClient(app, url('status')) as page: assert page.status == 303
    async with SSEClient(app, url('status'), {'x-user': 'ann'}) as page: assert page.status == 200


@pytest.mark.parametrize('job_id', ['*', '**', 'a:*', 'a*', '%2A', 'j\n\nevent: x', 'a&job_id=j', '../j', '�', '<b>"\''])
async def test_whatever_a_browser_calls_a_job_is_one_job(manager, job_id):
    app,_ = site(manager)
    async with track(manager, None, 'j') as other, SSEClient(app, url('progress', job_id)) as page:
        await page.next(BOUND, heartbeats=True)
        other.update()
        async for _ in track(manager, 'ab', job_id): pass
        first,*_,last,close = await read_all(page)
        assert ('data-state="running"' in first.data, '2 of 2' in last.data, close.event, b'Job j<' in page.body) == (True, True, CLOSE, False)


@pytest.mark.parametrize('query', ['', '?job_id=', '?id=j'])
async def test_a_request_without_an_id(manager, query):
    app,_ = site(manager)
    async with SSEClient(app, '/stream_job_status'+query) as page:
        assert page.status == 400
        with pytest.raises(StreamEnded): await page.next(BOUND)


async def test_a_full_house_and_head_requests(manager):
    manager = SSEBroadcastManager(max_connections=1)
    app,_ = site(manager)
    async with SSEClient(app, url('status')), SSEClient(app, url('status', 'k')) as second: assert second.status == 503
    async with SSEClient(app, url('status'), method='HEAD') as head: assert (head.status, head.body) == (200, b'')


@pytest.mark.parametrize('path', ['/{page}', '/stream_job_status', '/{path:path}'])
def test_a_route_that_would_answer_instead(manager, path):
    app = FastHTML(secret_key='test')
    app.route(path)(lambda: 'hello')
    with pytest.raises(ArgumentError, match='/stream_job_'): setup_progress(app, manager, True)


def test_routes_that_leave_room(manager):
    app = FastHTML(secret_key='test')
    app.route('/stream_job_status', methods=['POST'])(lambda: 'hello')
    app.route('/{page}/x')(lambda: 'hello')
    for _ in range(2): setup_progress(app, manager, True)


def test_a_second_manager(manager):
    "Its streams would answer in place of those of the first, under another `authorise`"
    app,_ = site(manager, lambda req, job_id: False)
    with pytest.raises(ArgumentError, match='another manager'): setup_progress(app, SSEBroadcastManager(), True)
