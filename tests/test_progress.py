"Tracked jobs, in the details that the contract leaves out"
import asyncio
import json
from fractions import Fraction
from numbers import Integral

import pytest
from fasthtml.common import FastHTML

from cjm_fasthtml_sse.backends.base import Record
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.engine.render import to_html, to_json
from cjm_fasthtml_sse.progress import Jobs, progress_bar, setup_progress, track
from tests.contract.support import BOUND, OwnBackend, listening


@pytest.fixture
async def manager():
    manager = SSEBroadcastManager(history_size=1000)
    await manager.open()  # As an app does that starts
    return manager

def report(job_id, **kw): return dict(type=f'job:{job_id}:progress', data=track(SSEBroadcastManager(), None, job_id).report() | kw)


class TestJobs:
    @pytest.mark.parametrize('look', [Jobs.items, Jobs.values])
    def test_a_loop_goes_on_while_jobs_are_forgotten(self, look):
        book = Jobs(keep=2)
        for o in 'ab': book.add(report(o))
        seen = iter(look(book))
        next(seen)
        for o in 'cd': book.add(report(o))
        assert len([*seen]) == 1 and [*book] == ['c', 'd']

    @pytest.mark.parametrize('keep', [-1, 1.5, None, True])
    def test_how_many_are_kept_is_checked(self, manager, keep):
        with pytest.raises(ValueError, match='`keep` must be'): setup_progress(FastHTML(secret_key='test'), manager, True, keep=keep)

    def test_routes_that_leave_room(self, manager):
        app = FastHTML(secret_key='test')
        app.route('/stream_job_status', methods=['POST'])(lambda: 'hello')
        app.route('/{page}/x')(lambda: 'hello')
        for _ in range(2): setup_progress(app, manager, True)


class Count:
    "An integer as NumPy has it: none of Python's own"
    def __init__(self, n): self.n = n
    def __int__(self): return self.n
    __index__ = __int__
    def __hash__(self): return hash(self.n)

for name in 'eq lt le gt ge mul truediv add radd sub rsub'.split():
    def compute(self, other, f=getattr(int, f'__{name}__')): return f(self.n, int(other))
    setattr(Count, f'__{name}__', compute)
Integral.register(Count)


class TestNumbers:
    @pytest.mark.parametrize('n, total, text', [(Count(3), Count(5), '3 of 5'), (Fraction(3, 2), Fraction(5, 2), '1.5 of 2.5')])
    async def test_of_any_kind(self, manager, n, total, text):
        "What counts may come from a library that has numbers of its own"
        job = track(manager, None, 'j', total=total, throttle=0)
        async with job:
            job.n = n
            job.update(0)
            data = job.report()
            assert text in to_html(progress_bar(data))
            assert json.loads(to_json(data))['n'] == float(n if isinstance(n, Fraction) else int(n))

    async def test_a_total_is_taken_from_what_has_one(self, manager):
        class Odd:
            def __iter__(self): return iter('ab')
            def __len__(self): raise NotImplementedError
        for it, want in [([1, 2], 2), (iter([1, 2]), 2), ((o for o in 'ab'), None), (Odd(), None), (range(0), 0), (None, None)]:
            assert track(manager, it, 'j').total == want
        assert track(manager, [1, 2], 'j', total=7).total == 7


class TestStreams:
    async def test_an_end_that_a_backend_tells_when_it_is_reached(self):
        class Remembering(OwnBackend):
            async def start(self, size, deliver, renew, describe):
                await super().start(size, deliver, renew, describe)
                await asyncio.sleep(0)
                renew('e-0', [Record('e-1', dict(type='job:j:completed', timestamp='', data=report('j', state='completed')['data']))])
        app = FastHTML(secret_key='test')
        jobs = setup_progress(app, SSEBroadcastManager(backend=Remembering()), True)
        assert 'j' not in jobs
        async with listening(app, '/stream_job_status?job_id=j') as page:
            await page.ends()
            assert 'Completed' in page.messages[0].data and page.told_to_stay

    @pytest.mark.filterwarnings('ignore')
    def test_a_job_outlives_the_loop_that_its_report_was_on(self, abandoned_loops):
        manager, loop = SSEBroadcastManager(), asyncio.new_event_loop()
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
