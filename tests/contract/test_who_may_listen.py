"""Who may look at dashboards and listen to jobs

They let nobody in unless `authorise` says so: a plain `True` lets in, `False` and `None` are a 403, and any other
answer that a route may give is the answer. An error lets nobody in. It is asked again while a stream is open, and
`disconnect` ends these streams, too.
"""
import asyncio

import pytest
from fasthtml.common import Beforeware, Div, FastHTML, HtmxResponseHeaders, HttpHeader, P, Redirect, to_xml
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard, sse_dashboard
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.progress import setup_progress, track
from tests.contract.support import Exchange, eventually, listening

PATH,EVENTS = '/_sse/dashboard','/_sse/dashboard/events'
DASHBOARD = [PATH, EVENTS, f'{PATH}/live', f'{PATH}/live?paused']
JOBS = ['/stream_job_status?job_id=7', '/stream_job_progress?job_id=7']

later = pytest.mark.parametrize('later', [False, True], ids=['plain', 'async'])


def guarded(authorise, later=False, **kw):
    "An app with a dashboard and the streams of jobs, and its manager"
    app,manager = FastHTML(secret_key='contract', **kw),SSEBroadcastManager()
    async def answer(*args): return authorise(*args)
    f = answer if later else authorise
    setup_dashboard(app, manager, authorise=f, interval=.05)
    setup_progress(app, manager, f)
    return app,manager

async def ask(app, path, **headers):
    "The response to a request: what begins, where it is a stream"
    async with Exchange(app, 'GET', path, headers) as r:
        if not is_stream(r): await eventually(lambda: r.over, 'all of it is there')
        r.fails = r.error  # For the test to look at
        return r

def is_stream(r): return r.headers.get('content-type', '').startswith('text/event-stream')

class TestAuthorise:
    "Of `setup_dashboard` and `setup_progress`"

    @later
    @pytest.mark.parametrize('path', DASHBOARD+JOBS)
    async def test_strangers(self, path, later):
        "Get 403 and no figure"
        asked = []
        def admins(req, *job):
            asked.append((req.url.path, *job))
            return req.headers.get('x-role')=='admin'
        app,manager = guarded(admins, later)
        async with track(manager, None, '7'):
            stranger = await ask(app, path)
            assert stranger.status==403 and not is_stream(stranger) and b'sse-dash' not in stranger.body
            assert b'running' not in stranger.body
            admin = await ask(app, path, **{'x-role': 'admin'})
            assert admin.status==200
        assert asked[0]==asked[1]==(path.partition('?')[0], *['7']*(path in JOBS)) and manager.connection_count==0

    @later
    @pytest.mark.parametrize('answer, status', [
        (False, 403), (None, 403), (Response('log in', 401), 401), (Redirect('/login'), 303), (P('Log in first'), 200),
        ((P('no'), HttpHeader('x-why', 'login')), 200), (HtmxResponseHeaders(redirect='/login'), 200),
        (HTTPException(401), 401)],
        ids=['no', 'nothing', 'response', 'redirect', 'element', 'several', 'headers', 'error'])
    async def test_answers(self, answer, status, later):
        "Whatever a route may answer, `authorise` may, and lets nobody in; FastHTML has answers of its own kind"
        app,manager = guarded(lambda *args: answer, later)
        for path in DASHBOARD+JOBS:
            found = await ask(app, path)
            assert found.status==status and not is_stream(found) and b'sse-dash' not in found.body
        assert not manager.connections

    @pytest.mark.parametrize('answer', ['ann', 1, .5, {'user': 'ann'}, object(), ZeroDivisionError()],
        ids=lambda o: type(o).__name__)
    async def test_errors_let_nobody_in(self, answer):
        "What is neither yes nor no nor an answer is one of them"
        def authorise(*args):
            if isinstance(answer, Exception): raise answer
            return answer
        app,manager = guarded(authorise)
        async for _ in track(manager, 'a', '7'): pass
        for path in DASHBOARD+JOBS:
            found = await ask(app, path)
            assert found.status==500
            assert type(found.error) is (ZeroDivisionError if found.error is answer else TypeError)
        assert not manager.connections

    async def test_beforeware_comes_first(self):
        app,_ = guarded(lambda *args: pytest.fail('asked'), before=Beforeware(lambda req: Redirect('/login')))
        for path in DASHBOARD+JOBS: assert (await ask(app, path)).status==303

    @pytest.mark.parametrize('wrong', [None, False, 'admin', 1, {}], ids=repr)
    async def test_nobody_by_default(self, wrong):
        app = FastHTML(secret_key='contract')
        for setup in setup_dashboard, setup_progress:
            with pytest.raises(ValueError, match='must say who'): setup(app, SSEBroadcastManager(), authorise=wrong)
            with pytest.raises(ValueError, match='must say who'): setup(app, SSEBroadcastManager())
        for path in [PATH, EVENTS]+JOBS: assert (await ask(app, path)).status==404

    async def test_everybody(self):
        app,_ = guarded(True)
        for path in DASHBOARD: assert (await ask(app, path)).status==200

    async def test_element_holds_no_figures(self):
        "A page that anybody may see shows nothing of the dashboard in it"
        app,manager = guarded(lambda *args: False)
        @app.get('/public')
        def public(): return Div(sse_dashboard(manager))
        await manager.broadcast('secret:type', 'secret')
        page = await ask(app, '/public')
        assert b'secret' not in page.body and f'sse-connect="{EVENTS}"'.encode() in page.body
        assert 'secret' not in to_xml(sse_dashboard(manager))

    async def test_job_ids_are_as_they_were_given(self):
        "No other spelling of an id passes for it"
        asked = []
        app,manager = guarded(lambda req, *job: asked.extend(job) or job==('ann:*',))
        for spelled,status in (('ann%3A%2A', 200), ('ann%253A%252A', 403), ('ann', 403), ('ann:*&job_id=bob', 403),
                ('ann:*%00', 403)):
            assert (await ask(app, f'/stream_job_status?job_id={spelled}')).status==status, spelled
        assert asked[:2]==['ann:*', 'ann%3A%2A']

    @pytest.mark.parametrize('query', ['', '?job_id=', '?id=j'])
    async def test_no_job(self, query):
        app,_ = guarded(True)
        assert (await ask(app, '/stream_job_status'+query)).status==400


async def hello(request): return Response('hello')


class TestSetup:
    "Nothing else may answer in place of what is guarded, nor stand in its place"

    @pytest.mark.parametrize('route', [
        Route(PATH, hello), Route(EVENTS, hello), Route('/{rest:path}', hello), Route('/_sse/{x}/{y}', hello),
        Mount('/', StaticFiles(directory='.')), Mount('/_sse', hello)], ids=lambda r: f'{type(r).__name__} {r.path}')
    def test_route_of_a_dashboard(self, route):
        app = FastHTML(secret_key='contract', routes=[route])
        with pytest.raises(ValueError, match='has a route for .* already'):
            setup_dashboard(app, SSEBroadcastManager(), authorise=True)

    @pytest.mark.parametrize('route', ['/{page}', '/stream_job_status', '/{path:path}'])
    def test_route_of_jobs(self, route):
        app = FastHTML(secret_key='contract')
        app.route(route)(lambda: 'hello')
        with pytest.raises(ValueError, match='/stream_job_'): setup_progress(app, SSEBroadcastManager(), True)

    def test_second_manager(self):
        "Its streams would answer in place of those of the first, under another `authorise`"
        app,_ = guarded(lambda *args: False)
        with pytest.raises(ValueError, match='another manager'): setup_progress(app, SSEBroadcastManager(), True)
        with pytest.raises(ValueError, match='would answer instead'):
            setup_dashboard(app, SSEBroadcastManager(name='second'), authorise=True)

    async def test_later_word_counts(self):
        app,manager = guarded(True)
        setup_progress(app, manager, authorise=lambda req, job_id: False)
        setup_sse(app, manager)
        assert (await ask(app, JOBS[0])).status==403


class TestWhileAStreamIsOpen:
    "Of a dashboard, or of a job"

    @pytest.mark.parametrize('path', [EVENTS, *JOBS])
    async def test_asked_again(self, path):
        app,manager,agrees = FastHTML(secret_key='contract'),SSEBroadcastManager(),[True]
        def authorise(*args): return bool(agrees)
        setup_dashboard(app, manager, authorise=authorise, interval=.05, recheck=.05)
        setup_progress(app, manager, authorise, recheck=.05)
        async with track(manager, None, '7'), listening(app, path) as page:
            await page.next()
            agrees.clear()
            await page.ends()

    @pytest.mark.parametrize('path', [EVENTS, *JOBS])
    async def test_disconnect(self, path):
        app,manager = FastHTML(secret_key='contract'),SSEBroadcastManager()
        setup_dashboard(app, manager, authorise=True, interval=.05, user=lambda req: 'ann')
        setup_progress(app, manager, True, user=lambda req: 'ann')
        async with track(manager, None, '7'), listening(app, path) as page:
            await page.next()
            await manager.disconnect('ann')
            await page.ends()


async def test_private_events():
    "A dashboard lists neither their types nor their data, which may hold names"
    app,manager = FastHTML(secret_key='contract'),SSEBroadcastManager(private='user:{who}:**')
    setup_dashboard(app, manager, authorise=True, interval=.05, data=True)
    await manager.broadcast('user:ann:mail', 'secret')
    await manager.broadcast('public', 'shown')
    async with listening(app, EVENTS) as page:
        while 'public' not in (html := (await page.next())[1]): pass
    assert 'ann' not in html and 'secret' not in html and 'shown' in html


async def test_dashboards_own_traffic():
    "It is not the app's: neither counted nor heard by hooks"
    app,manager = FastHTML(secret_key='contract'),SSEBroadcastManager()
    setup_dashboard(app, manager, authorise=True, interval=.05)
    before,heard = manager.stats(),[]
    for on in manager.on_connect, manager.on_broadcast, manager.on_delivery: on(heard.append)
    async with listening(app, EVENTS) as page, listening(app, EVENTS):
        await page.read(3)
        assert manager.stats()==before and manager.connection_count==0
    await asyncio.sleep(0)
    assert heard==[] and manager.get_history()==[] and manager.stats()==before
