"Tracked jobs: how a loop may end, what the tabs are told, and who may listen"
import asyncio
import json
import threading
from fractions import Fraction
from numbers import Integral

import pytest
from fasthtml.common import FastHTML

from cjm_fasthtml_sse import job as jobs
from cjm_fasthtml_sse.backends.base import Record
from cjm_fasthtml_sse.backends.memory import MemoryBackend
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import segment
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.progress import Jobs, progress_bar, setup_progress, track
from cjm_fasthtml_sse.engine.render import to_html, to_json
from cjm_fasthtml_sse.testing import SSEClient
from cjm_fasthtml_sse.engine.wire import CLOSE
from tests.support import BOUND, eventually, read_all


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

# Reports

def report(job_id, n=0):
    data = dict(track(SSEBroadcastManager(), None, job_id).report(), n=n)
    return dict(type=f'job:{segment(job_id)}:progress', data=data)

@pytest.mark.parametrize('look', [lambda book: book.items(), lambda book: book.values()])
def test_a_loop_over_jobs_goes_on_while_jobs_are_forgotten(look):
    book = Jobs(keep=2)
    for o in 'ab': book.add(report(o))
    seen = iter(look(book))
    next(seen)
    for o in 'cd': book.add(report(o))
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
    class Slow(jobs.Reporter):
        "One whose `progress` is interrupted, in the middle of being sent, until the end was sent or can't be"
        @property
        def _sent(self):
            sent = self.sent
            if threading.current_thread() is slow: reached.set(),ended.wait(.3)
            return sent
        @_sent.setter
        def _sent(self, x): self.sent = x
    reached,ended = threading.Event(),threading.Event()
    job = track(manager, None, 'j', throttle=0)
    reporter = job._reporter
    reporter.sent = reporter.__dict__.pop('_sent')
    reporter.__class__ = Slow
    slow = threading.Thread(target=job.update)
    def work():
        with job:
            slow.start()
            reached.wait(BOUND)
        ended.set()
        slow.join()
    await asyncio.to_thread(work)
    await eventually(lambda: not jobs._running[manager], 'all was sent')
    assert [o for o,_ in told(manager)][-1] == 'completed'


async def test_rate_and_eta_follow_the_clock(manager, monkeypatch):
    now = [100.]
    monkeypatch.setattr(jobs, 'monotonic', lambda: now[0])
    job = track(manager, None, 'j', total=30, throttle=1)
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


def test_a_job_outlives_the_loop_that_its_report_was_on(manager):
    loop = asyncio.new_event_loop()
    job = track(manager, None, 'j', total=3, throttle=0)
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

async def test_a_full_house_and_head_requests(manager):
    manager = SSEBroadcastManager(max_connections=1)
    app,_ = site(manager)
    async with SSEClient(app, url('status')), SSEClient(app, url('status', 'k')) as second: assert second.status == 503
    async with SSEClient(app, url('status'), method='HEAD') as head: assert (head.status, head.body) == (200, b'')


def test_routes_that_leave_room(manager):
    app = FastHTML(secret_key='test')
    app.route('/stream_job_status', methods=['POST'])(lambda: 'hello')
    app.route('/{page}/x')(lambda: 'hello')
    for _ in range(2): setup_progress(app, manager, True)
