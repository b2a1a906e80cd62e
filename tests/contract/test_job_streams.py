"""What `sse_progress_element` and `sse_status_element` get: the streams that `setup_progress` adds

A page gets how its job stands, what comes, and the end of its stream with the end of the job, however late the page
comes. A job that a restart has lost is said to be unknown. `setup_progress` gives the newest report of each job, for
apps that draw their own.
"""
import asyncio

import pytest
from fasthtml.common import Div, FastHTML

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.progress import Jobs, oob_progress, setup_progress, track
from cjm_fasthtml_sse.updater import SSEElementUpdater
from tests.contract.support import client, eventually, listening, no_task_left


def site(manager, authorise=True, **kw):
    app = FastHTML(secret_key='contract')
    return app,setup_progress(app, manager, authorise, **kw)

def url(kind, job_id='j'):
    "What the element of a job asks for"
    return getattr(HTMXSSEConnector, f'sse_{kind}_element')(job_id).attrs['sse-connect']

@pytest.fixture
async def manager():
    manager = SSEBroadcastManager(history_size=1000)
    await manager.open()  # As an app does that starts
    return manager

kinds = pytest.mark.parametrize('kind', ['progress', 'status'])


class TestJobs:
    "The newest report of each job, which `setup_progress` gives"

    async def test_many_jobs(self, manager):
        _,jobs = site(manager)
        async def work(i):
            async for _ in track(manager, range(20), f'job {i}'): await asyncio.sleep(0)
        async with no_task_left(): await asyncio.gather(*[work(i) for i in range(50)])
        assert [(o['state'], o['n']) for o in jobs.values()]==[('completed', 20)]*50 and 'job 7' in jobs

    async def test_forgets_the_oldest(self, manager):
        _,jobs = site(manager, keep=2)
        for j in 'abc': [None async for _ in track(manager, 'x', j)]
        assert [*jobs]==['b', 'c']

    async def test_another_thread_may_look(self, manager):
        "At any moment, and finds the job while a further report of it comes in"
        class Id(str):
            "It looks whenever the mapping takes it in hand"
            def __hash__(self):
                looks.append(('j' in jobs, len(jobs), [*jobs]))
                return hash('j')
        async with track(manager, None, 'j'): message = manager.get_history(1)[0]
        jobs,looks = Jobs(),[]
        jobs.add(message)
        jobs.add(dict(message, data=dict(message['data'], id=Id('j'), n=7)))
        assert looks and {(there, n) for there,n,_ in looks}=={(True, 1)} and jobs['j']['n']==7


class TestStreams:
    "What `sse_progress_element` and `sse_status_element` get"

    async def test_page_that_comes_late(self, manager):
        "How it stands, and it stays to the end"
        app,jobs = site(manager)
        async with no_task_left(), track(manager, None, 'j', total=10) as job:
            job.update(4)
            await eventually(lambda: jobs['j']['n']==4)
            async with listening(app, url('progress')) as bar, listening(app, url('status')) as state:
                assert '4 of 10' in (await bar.next())[1] and 'Running' in (await state.next())[1]
                job.update(6)
                assert '10 of 10' in (await bar.next())[1]
                job.complete()
                for page in bar, state:
                    await page.ends()
                    assert 'data-state="completed"' in page.seen[-1][1] and page.told_to_stay
                assert len(state.seen)==2, 'the state speaks of beginning and end only'
        assert manager.connection_count==0

    @kinds
    async def test_job_that_has_ended(self, manager, kind):
        "The answer comes at once, whatever the page has seen"
        app,_ = site(manager)
        async for _ in track(manager, 'abc', 'j'): pass
        for last_id in ('', manager.cursor, 'ffff-1'):
            async with listening(app, url(kind), last_id=last_id) as page:
                await page.ends()
                assert len(page.seen)==1 and 'completed' in page.seen[0][1] and page.told_to_stay
                assert page.exchange.headers['content-type'].startswith('text/event-stream')
        assert manager.connection_count==0

    async def test_no_end_slips_in_between(self, manager):
        "Looking and listening: the job ends at each turn of the event loop after the request came"
        app,_ = site(manager)
        async with track(manager, None, 'warm'), listening(app, url('status', 'warm')): pass
        for n in range(40):
            async with track(manager, None, n) as job:
                page = listening(app, url('status', n))
                entering = asyncio.create_task(page.__aenter__())
                for _ in range(n): await asyncio.sleep(0)
                job.complete()
                await entering
                await page.ends()
                await page.leave()
            assert page.told_to_stay and 'completed' in page.seen[-1][1], n

    @kinds
    async def test_end_without_a_message(self, kind):
        "A state that is an end ends the stream, also where the process that worked is gone and nobody tells of it"
        manager = SSEBroadcastManager(heartbeat=.05)
        app,jobs = site(manager)
        async with track(manager, None, 'j', total=2, throttle=60):
            @manager.on_connect
            def ended(connection): jobs.add(dict(type='job:j:completed', data=dict(jobs['j'], state='completed')))
            async with listening(app, url(kind)) as page:
                await eventually(lambda: page.over or page.seen and page.events[-1].event=='sse:heartbeat',
                    'what follows the state')
                assert 'data-state="completed"' in page.seen[-1][1] and page.told_to_stay

    @kinds
    async def test_ends_while_a_hook_waits(self, manager, kind):
        "The state that is sent then is the end"
        app,_ = site(manager)
        async with track(manager, None, 'j', total=2, throttle=0) as job:
            @manager.on_connect
            async def finish(connection):
                job.complete()
                await asyncio.sleep(.01)  # A hook that takes its time, while the job has ended
            async with listening(app, url(kind)) as page: await page.ends()
        assert 'data-state="completed"' in page.seen[-1][1] and page.told_to_stay

    async def test_former_run(self, manager):
        "It does not end the stream of a page that comes back during the next run"
        app,jobs = site(manager)
        async with track(manager, None, 'j') as job:
            async with listening(app, url('status')) as page: await page.next()
        async with track(manager, None, 'j', name='second') as job:
            async with listening(app, url('progress'), last_id=page.last_id) as back:
                assert 'second' in (await back.next())[1]
                job.update()
                assert 'data-state="running"' in (await back.next())[1]

    @pytest.mark.parametrize('kw, unknown', [
        (dict(last_id='ffff-7'), True), (dict(last_id='CURSOR'), False), (dict(), False),
        ({'SSE-After': 'ffff-7'}, True), ({'SSE-After': 'CURSOR'}, False), ({'SSE-After': 'OTHER'}, False)])
    async def test_lost_by_a_restart(self, manager, kw, unknown):
        "It is unknown to a page of before, also to one that has heard nothing so far; and it may still begin"
        app,_ = site(manager)
        other = SSEBroadcastManager()
        await manager.broadcast('other', 1)
        kw = {k: v.replace('CURSOR', manager.cursor).replace('OTHER', other.cursor) for k,v in kw.items()}
        async with listening(app, url('status'), **kw) as page:
            async with track(manager, None, 'j'):
                await eventually(lambda: 'Running' in ''.join(html for _,html in page.seen))
            await page.ends()
        seen = [html for _,html in page.seen[:-1]]
        assert 'Running' in seen[-1] and ['Unknown' in o for o in seen[:-1]]==[True]*unknown

    async def test_events_of_the_apps_own(self, manager):
        "They may have such names, too"
        app,jobs = site(manager)
        async with listening(app, url('progress')) as page:
            for data in 50, None, dict(n=1), 'x': await manager.broadcast('job:j:progress', data)
            async with track(manager, None, 'other'): await manager.broadcast('job:j:progress', jobs['other'])
            async for _ in track(manager, 'ab', 'j'): pass
            await page.ends()
            assert page.seen and all('Job j' in html for _,html in page.seen)
        assert ({*jobs}, manager.stats()['errors'])==({'other', 'j'}, 0)

    async def test_one_stream_for_all_jobs(self, manager):
        app,jobs = site(manager)
        updater = SSEElementUpdater()
        updater.register_handler('job:*:*', oob_progress)
        def state(): return [oob_progress(o) for o in jobs.values()]
        async with track(manager, None, 'a/b') as first, client('stream', manager, render=updater,
                snapshot=state) as page:
            assert 'id="progress-span-a/b" hx-swap-oob="innerHTML"' in (await page.next())[1]
            async with track(manager, None, 'c'): assert 'id="progress-span-c"' in (await page.next())[1]
            assert 'id="progress-span-c"' in (await page.next())[1]
            first.update()
            assert 'id="progress-span-a/b"' in (await page.next())[1]
        assert manager.stats()['errors']==0

    async def test_drawing_of_the_apps_own(self, manager, caplog):
        "One that fails is in the log, and the stream ends all the same"
        async def draw(report):
            await asyncio.sleep(0)
            return Div(f'{report["n"]}!')
        def broken(report): raise KeyError('colour')
        app,_ = site(manager, bar=draw, status=broken)
        async with track(manager, None, 'j') as job, listening(app, url('progress')) as page:
            assert (await page.next())[1]=='<div>0!</div>'
            job.update()
            assert (await page.next())[1]=='<div>1!</div>'
        async with listening(app, url('progress')) as page:
            await page.ends()
            assert page.seen==[('message', '<div>1!</div>')] and page.told_to_stay
        async with listening(app, url('status')) as page:
            await page.ends()
            assert page.seen==[] and page.told_to_stay and any(r.exc_info for r in caplog.records)

    @kinds
    @pytest.mark.parametrize('job_id', ['*', '**', 'a:*', 'a*', '%2A', 'j\n\nevent: x', 'a&job_id=j', '../j', '<b>"\''])
    async def test_any_name_is_one_job(self, manager, job_id, kind):
        app,_ = site(manager)
        async with track(manager, None, 'j') as other, listening(app, url(kind, job_id)) as page:
            await eventually(lambda: any(o['live'] for o in manager.inspect()['connections']))
            other.update()
            async for _ in track(manager, 'ab', job_id): pass
            await page.ends()
        assert 'data-state="running"' in page.seen[0][1] and 'data-state="completed"' in page.seen[-1][1]
        assert b'Job j<' not in page.exchange.body and page.told_to_stay
