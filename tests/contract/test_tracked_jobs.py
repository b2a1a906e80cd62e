"""`progress.track`: a loop tells every tab how far it is, and how it ended

A loop or a `with` block around work broadcasts `job:<id>:started`, `:progress` at most every `every` seconds, and at
last one of `:completed`, `:failed`, `:cancelled`, from async code, threads and scripts alike. Whoever goes on behind
it may rely on it that the end was told.
"""
import asyncio
import gc
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import segment
from cjm_fasthtml_sse.progress import track
from tests.contract.support import client, eventually, no_task_left, turns, within

ENDS = 'completed', 'failed', 'cancelled'


def told(manager, job_id='j', progress=True):
    "What was broadcast of a job: (what, n)"
    found = [(m['type'].rpartition(':')[2], m['data']['n']) for m in manager.get_history()
        if m['type'].startswith(f'job:{segment(job_id)}:')]
    return [o for o in found if progress or o[0]!='progress']

def newest(manager): return manager.get_history(1)[0]['data']

async def ends(manager, job_id='j'):
    "Wait until a job has ended, and say how"
    await eventually(lambda: told(manager, job_id) and told(manager, job_id)[-1][0] in ENDS, 'the job ends')
    return told(manager, job_id)[-1]

@pytest.fixture
async def manager():
    manager = SSEBroadcastManager(history_size=1000)
    await manager.open()  # As an app does that starts
    return manager

class TestHowALoopEnds:
    "In each way there is"

    @pytest.mark.parametrize('block', [False, True])
    @pytest.mark.parametrize('kind', ['async', 'plain'])
    async def test_body_fails(self, manager, kind, block):
        "A block sees the error. A loop alone sees only that it was left"
        job = track(manager, range(5), 'j')
        async def run():
            if kind=='async':
                async for n in job: 1/(2-n)
            else:
                for n in job: 1/(2-n)
        with pytest.raises(ZeroDivisionError):
            if not block: await run()
            elif kind=='async':
                async with job: await run()
            else:
                with job: await run()
        assert await ends(manager)==('failed' if block else 'cancelled', 2)
        assert newest(manager)['error']==('ZeroDivisionError' if block else '')

    @pytest.mark.parametrize('own', [False, True])
    @pytest.mark.parametrize('kind', ['thread', 'async', 'async over plain'])
    async def test_iterable_fails(self, manager, kind, own):
        "Those who watch learn the class of the error; more only where the app says so"
        def items():
            yield 1
            raise OSError('disk /secret is full')
        async def aitems():
            for o in items(): yield o
        job = track(manager, aitems() if kind=='async' else items(), 'j', **(dict(error=str) if own else {}))
        async def later(): return [o async for o in job]
        with pytest.raises(OSError): await (asyncio.to_thread(lambda: [*job]) if kind=='thread' else later())
        assert told(manager)[-1]==('failed', 1)
        assert newest(manager)['error']==('disk /secret is full' if own else 'OSError')

    @pytest.mark.parametrize('block', [False, True])
    @pytest.mark.parametrize('complete', [False, True])
    async def test_break(self, manager, complete, block):
        "Cancels, unless `complete` was called"
        job = track(manager, range(10), 'j')
        def loop():
            for n in job:
                if n==3:
                    if complete: job.complete()
                    break
        def work():
            if not block: return loop()
            with job: loop()
        await asyncio.to_thread(work)
        assert told(manager)[-1]==('completed' if complete else 'cancelled', 3)

    @pytest.mark.parametrize('where', ['body', 'iterable', 'block'])
    async def test_cancelled_task(self, manager, where):
        reached,never = asyncio.Event(),asyncio.Event()
        async def wait():
            reached.set()
            await never.wait()
        async def items():
            yield 1
            if where=='iterable': await wait()
            yield 2
        async def work():
            if where=='block':
                async with track(manager, None, 'j') as job:
                    job.update()
                    await wait()
            async for _ in track(manager, items(), 'j'):
                if where=='body': await wait()
        async with no_task_left():
            task = asyncio.create_task(work())
            async with within('it begins'): await reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError): await task
            assert (await ends(manager))[0]=='cancelled'

    async def test_timeout(self, manager):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(.01):
                async with track(manager, None, 'j'): await asyncio.Event().wait()
        assert (await ends(manager))[0]=='cancelled'

    async def test_dropped_iterator(self, manager):
        def work():
            items = iter(track(manager, range(5), 'j'))
            next(items), next(items)
            del items
            gc.collect()
        await asyncio.to_thread(work)
        assert told(manager)[-1]==('cancelled', 1)

    async def test_closed_generator(self, manager):
        "With a block in it"
        def rows():
            with track(manager, None, 'j') as job:
                while True:
                    job.update()
                    yield job.n
        def work():
            for n in rows():
                if n==3: break
        await asyncio.to_thread(work)
        assert told(manager)[-1]==('cancelled', 3)

    async def test_never_begun(self, manager):
        job = track(manager, range(5), 'j')
        iter(job)
        job.complete()
        del job
        gc.collect()
        assert told(manager)==[]


class TestReports:
    "What is told, and what telling costs"

    async def test_wherever_a_loop_runs(self):
        "Threads, async code and scripts without an event loop tell the same"
        want = [('started', 0), *(('progress', n) for n in (1, 2, 3)), ('completed', 3)]
        def work(manager): [*track(manager, 'abc', 'j', throttle=0)]
        def script():
            manager = SSEBroadcastManager()
            work(manager)
            return told(manager)
        assert await asyncio.to_thread(script)==want
        manager = SSEBroadcastManager()
        async with client('stream', manager) as page:
            await asyncio.to_thread(work, manager)
            async for _ in track(manager, 'abc', 'k', throttle=0): pass
            for job_id in 'jk':
                found = told(manager, job_id)
                assert (found[0], found[-1])==(want[0], want[-1])
                assert found==[o for o in want if o in found], 'a busy loop may leave some out'
            await eventually(lambda: ('job:k:completed') in [t for t,_ in page.seen])
            seen = [t for t,_ in page.seen if not t.endswith('progress')]
            assert seen==[f'job:{j}:{o}' for j in 'jk' for o in ('started', 'completed')]

    async def test_what_a_report_holds(self, manager):
        async with track(manager, None, 'a/b:c', total=4, name='Import') as job:
            job.text = 'reading'
            job.update(2)
        first,last = manager.get_history()[0],manager.get_history(1)[0]
        assert (first['type'], last['type'])==('job:a/b%3Ac:started', 'job:a/b%3Ac:completed')
        assert last['data'].items()>=dict(id='a/b:c', name='Import', text='reading', state='completed', n=2, total=4,
            error='', eta=None).items()
        assert {'rate', 'seconds'}<=last['data'].keys() and first['data']['state']=='running'

    @pytest.mark.parametrize('form', ['for', 'with', 'async for', 'async with'])
    @pytest.mark.parametrize('fails', [False, True])
    async def test_end_was_told(self, manager, form, fails):
        "Where the code behind a loop goes on"
        @manager.on_broadcast
        async def slow(message): await asyncio.sleep(.05)  # A hook that takes its time
        def items():
            yield 1
            if fails: raise OSError
        job = track(manager, items(), 'j')
        def work():
            try:
                if form=='for': [*job]
                else:
                    with job: [*job]
            except OSError: pass
            return told(manager, progress=False)
        async def later():
            try:
                if form=='async for': [o async for o in job]
                else:
                    async with job: [o async for o in job]
            except OSError: pass
            return told(manager, progress=False)
        found = await (later() if form.startswith('async') else asyncio.to_thread(work))
        assert found==[('started', 0), ('failed' if fails else 'completed', 1)]

    async def test_end_comes_last(self, manager):
        "Also where a hook holds up what was told before it"
        gate = asyncio.Event()
        @manager.on_broadcast
        async def slow(message):
            if message['type']=='job:j:progress': await gate.wait()
        job = track(manager, range(3), 'j', throttle=0)
        task = asyncio.create_task(asyncio.to_thread(lambda: [*job]))
        await eventually(lambda: job.state=='completed', 'the loop ends')
        assert told(manager)==[('started', 0)]
        gate.set()
        await task
        assert await ends(manager)==('completed', 3)

    async def test_next_run_waits(self, manager):
        "What a newer run of the same job tells comes behind the end of the older one"
        gate = asyncio.Event()
        @manager.on_broadcast
        async def slow(message):
            if message['type']=='job:j:completed' and message['data']['n']==1: await gate.wait()
        older,newer = track(manager, 'a', 'j'),track(manager, 'ab', 'j')
        async def run(job): return [o async for o in job]
        first = asyncio.create_task(run(older))
        await eventually(lambda: older.state=='completed', 'the older run ends')
        second = asyncio.create_task(run(newer))
        await eventually(lambda: newer.state!='new', 'the newer run begins')
        await turns()
        gate.set()
        await asyncio.gather(first, second)
        assert told(manager, progress=False)==[('started', 0), ('completed', 1), ('started', 0), ('completed', 2)]

    async def test_slow_tab_skips(self, manager):
        "It gets the newest report, and is not evicted for the others"
        async with client('stream', manager) as page:
            page.stall()
            async for _ in track(manager, range(200), 'j', throttle=0): pass
            page.resume()
            await eventually(lambda: ('job:j:completed') in [t for t,_ in page.seen])
            assert len(page.seen)<10
        assert manager.stats()['evicted']==0

    async def test_slow_item_hides_nothing(self, manager):
        "Four items are done too soon after the first report, and then comes a slow one: all four are told meanwhile"
        slow = threading.Event()
        def items():
            yield from range(4)
            slow.wait(30)
        task = asyncio.create_task(asyncio.to_thread(lambda: [*track(manager, items(), 'j', throttle=.02)]))
        try: await eventually(lambda: ('progress', 4) in told(manager), 'all four are told')
        finally: slow.set()
        await task

    async def test_text_alone(self, manager):
        async with track(manager, None, 'j', throttle=0) as job:
            job.text = 'looking'
            await eventually(lambda: newest(manager)['text']=='looking', 'the text is told')

    async def test_busy_loop_is_not_swamped(self, manager):
        "A plain loop that does not let the event loop run: its reports do not pile up"
        for _ in track(manager, range(10000), 'j', throttle=0): pass
        assert (await ends(manager), len(told(manager))<5)==(('completed', 10000), True)

    async def test_async_loop_lets_tabs_move(self, manager):
        "Though it awaits nothing"
        async with client('stream', manager, events='job:*:progress') as page:
            seen = []
            async for n in track(manager, range(30), 'j', throttle=0): seen.append(len(page.seen))
            assert seen[-1]>5

    async def test_many_threads_count(self, manager):
        def work():
            with track(manager, None, 'j', total=8000) as job, ThreadPoolExecutor(8) as pool:
                for _ in range(8): pool.submit(lambda: [job.update() for _ in range(1000)])
        await asyncio.to_thread(work)
        assert told(manager)[-1]==('completed', 8000)


class TestNobodyToTell:
    "The work goes on"

    @pytest.mark.parametrize('kind', ['at once', 'later'])
    async def test_errors(self, kind, caplog):
        "One line of the log says so"
        class Broken:
            def broadcast_threadsafe(self, *args, **kw):
                if kind=='at once': raise ConnectionError('no Redis')
                (failed := Future()).set_exception(ConnectionError('no Redis'))
                return failed
        with caplog.at_level(logging.WARNING):
            assert await asyncio.to_thread(lambda: [*track(Broken(), range(50), 'j', throttle=0)])==[*range(50)]
        assert len(caplog.records)==1 and 'no Redis' in caplog.text

    def test_backend_that_is_away(self):
        "Each attempt takes as long as fifty items: attempts are few, and the end is tried all the same"
        tries = []
        class Away:
            def broadcast_threadsafe(self, event_type, *args, **kw):
                tries.append(event_type)
                time.sleep(.05)  # An attempt takes so long
                raise ConnectionError('it is away')
        def items():
            for n in range(100):
                time.sleep(.001)  # An item takes so long
                yield n
        start = time.monotonic()
        assert [*track(Away(), items(), 'j', throttle=0)]==[*range(100)]
        assert len(tries)<=3+(time.monotonic()-start)/.1 and (tries[0], tries[-1])==('job:j:started', 'job:j:completed')

    async def test_error_that_nobody_can_name(self, manager, caplog):
        def why(e): raise KeyError('broken')
        with caplog.at_level(logging.ERROR), pytest.raises(OSError):
            async with track(manager, None, 'j', error=why): raise OSError
        assert newest(manager)['error']=='OSError' and caplog.records[0].exc_info
