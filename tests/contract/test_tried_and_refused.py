"""What somebody tried who wanted to read what he may not, or to go on reading it, and once could

The page "What was tried" of the documentation lists these and others.
"""
import asyncio
import json
import time
from contextlib import AsyncExitStack
from contextvars import ContextVar

import pytest
from fasthtml.common import Beforeware, Div, FastHTML, P, Response
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Mount

from cjm_fasthtml_sse.core import SSEBroadcastManager, SSEError
from cjm_fasthtml_sse.dashboard import setup_dashboard
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.progress import setup_progress, track
from tests.contract.clock import timeless
from tests.contract.stores import Shell
from tests.contract.support import eventually, turns
from tests.contract.test_live_security import JSON, LIVE, answers, elements, following, wish
from tests.contract.visitors import Visitor


def fasthtml(**kw): return FastHTML(secret_key='contract', default_hdrs=False, **kw)
def refused(got): return {*got.values()} == {'refused'}


class TestSideBySide:
    """Two apps with one secret key, as FastHTML takes one for all apps of a folder: in one of them everybody may look at each note, in
    the other one only users, at their own"""

    def make(self, kind, module, name='main', **kw):
        app, sse = fasthtml(**kw), SSEBroadcastManager(heartbeat=0, name=name)
        setup_sse(app, sse)
        def note(n): return P(f'{kind} note {n}')
        note.__module__ = module
        return app, sse.live('note:{n}', name='note')(note)

    def house(self, modules=('main', 'main'), names=('main', 'main')):
        def only_users(req, sess):
            if not sess.get('auth'): return Response('no', 401)
        public, open_note = self.make('public', modules[0], names[0])
        private, closed_note = self.make('private', modules[1], names[1], before=Beforeware(only_users))
        @public.get('/note/{n}')
        def show(n: int): return open_note(n)
        @public.get('/login')
        def login(name: str, sess): sess['auth'] = name
        @private.get('/mine')
        def mine(sess): return closed_note({'ann': 1, 'bob': 7}[sess['auth']])
        return public, private

    async def attack(self, first, second, before='', behind='', query=''):
        "Ann has note 7 of the public app, and asks the private one for it"
        ann = Visitor(first)
        await ann.ask(f'{before}/login?name=ann')
        found = elements(await ann.ask(f'{before}/note/7'))
        ann.app = second
        return await answers(ann, wish(*found.values()), f'{behind}{LIVE}{query}')

    @pytest.mark.parametrize('around', [Starlette, FastHTML], ids=lambda o: o.__name__)
    async def test_below_one_app(self, around):
        public, private = self.house()
        kw = {} if around is Starlette else dict(secret_key='contract', default_hdrs=False)
        app = around(routes=[Mount('/public', public), Mount('/private', private)], **kw)
        assert refused(await self.attack(app, app, '/public', '/private'))

    async def test_programs_on_two_ports(self):
        "Cookies are the same for all ports of a host; modules differ"
        assert refused(await self.attack(*self.house(modules=('public', 'private'))))

    async def test_managers_with_names(self):
        "One program that is started twice, for different people, says which one it is"
        assert refused(await self.attack(*self.house(names=('public', 'private')), query='?manager=private'))

    async def test_slots(self):
        def house(kind, n, name):
            app, note = self.make(kind, 'main', name)
            @note.manager.live('outer', name='outer')
            def outer(): return P(note(n))
            @app.get('/')
            def index(): return outer()
            return app
        outer, inner = house('public', 7, 'main'), house('private', 1, 'inner')
        outer.routes.append(Mount('/in', inner))
        ann = Visitor(outer)
        ours, theirs = elements(await ann.ask('/')), elements(await ann.ask('/in/'))
        got = await answers(ann, wish(theirs['outer[]'], ours['note[7]']), theirs['outer[]'].url)
        assert got['note[7]'] == 'refused' and 'private note 1' in got['outer[]']


async def elements_of(app):
    "The live elements of a page; an error of the app is raised"
    r = Visitor(app).begins('/').begin()
    await eventually(lambda: r.over, 'it is answered')
    if r.error: raise r.error
    return elements(r)


class TestManagers:
    async def test_a_second_one_without_a_name(self):
        "Beside the one that `setup_sse` has made, too"
        app = fasthtml()
        admins = setup_sse(app)
        @admins.live('x', name='panel')
        def secret(): return P('for admins')
        public = SSEBroadcastManager()
        setup_sse(app, public)
        panel = public.live('x', name='panel')(lambda: P('for all'))
        @app.get('/')
        def index(): return panel()
        with pytest.raises(SSEError, match="name='admin'"): await elements_of(app)

    async def test_one_that_was_made_and_not_used_gives_way(self):
        app = fasthtml()
        setup_sse(app)
        mine = SSEBroadcastManager()
        assert setup_sse(app, mine) is mine

    async def test_one_of_two_apps(self):
        "The checks are those of the app that has drawn it"
        admins = {'ann'}
        def only_admins(req, sess):
            if sess.get('auth') not in admins: return Response('no', 403)
        sse, outer, inner = SSEBroadcastManager(heartbeat=0), fasthtml(), fasthtml(before=Beforeware(only_admins))
        setup_sse(outer, sse)
        setup_sse(inner, sse)
        @sse.live('x')
        def panel(): return P('for admins')
        @inner.get('/')
        def index(): return panel()
        @outer.get('/login')
        def login(name: str, sess): sess['auth'] = name
        outer.routes.append(Mount('/admin', inner))
        ann = Visitor(outer)
        await ann.ask('/login?name=ann')
        found = elements(await ann.ask('/admin/'))
        assert refused(await answers(ann, wish(*found.values()), LIVE))
        assert 'for admins' in (await answers(ann, wish(*found.values()), found['panel[]'].url))['panel[]']
        admins.clear()
        async with ann.begins(found['panel[]'].url, 'POST', json.dumps(dict(views=wish(*found.values()))).encode(), **JSON) as r:
            assert r.status == 403


class TestElements:
    async def test_parameters_that_change_places(self):
        "In a deploy: an old page gets nothing of another user"
        def release(function):
            app, sse = fasthtml(), SSEBroadcastManager(heartbeat=0)
            setup_sse(app, sse)
            element = sse.live('doc:*', name='doc')(function)
            @app.get('/')
            def index(): return element(folder=1, user=2)
            return app
        visitor = Visitor(release(lambda folder, user: P(f'folder {folder} of user {user}')))
        found = elements(await visitor.ask('/'))
        visitor.app = release(lambda user, folder: P(f'folder {folder} of user {user}'))
        assert refused(await answers(visitor, wish(*found.values())))

    async def test_one_with_authorise_within_one_without(self):
        "All who follow the outer one would get it in its drawing"
        app, sse = fasthtml(), SSEBroadcastManager(heartbeat=0)
        setup_sse(app, sse)
        @sse.live('salary', authorise=lambda req: False)
        def salary(): return P('2000')
        @sse.live('outer')
        def outer(): return Div(salary())
        with pytest.raises(SSEError, match="give 'outer' an `authorise`"): outer()
        @sse.live('guarded', authorise=lambda req: False)
        def guarded(): return Div(salary())
        assert '2000' in str(guarded())

    async def test_refused_views_take_no_place(self):
        app, admins = fasthtml(), SSEBroadcastManager(name='admin', max_connections=5, heartbeat=0)
        setup_sse(app, SSEBroadcastManager(heartbeat=0))
        setup_sse(app, admins)
        @app.get('/admin/events')
        def events(req): return admins.stream(req)
        eve, body = Visitor(app), json.dumps(dict(views=[['any[]', '', '', None]])).encode()
        async with AsyncExitStack() as stack:
            for _ in range(5):
                r = await stack.enter_async_context(eve.begins(f'{LIVE}?manager=admin', 'POST', body, **JSON))
                assert r.status == 200
            await turns()
            async with Visitor(app).begins('/admin/events') as r: assert r.status == 200


class TestDisconnect:
    async def test_an_order_that_came_before(self):
        "A channel that waits for its place does not open behind it"
        app, sse, gate = fasthtml(), SSEBroadcastManager(heartbeat=0), asyncio.Event()
        setup_sse(app, sse)
        gate.set()
        @app.get('/login')
        def login(name: str, sess): sess['auth'] = name
        @app.get('/slow/{n}')
        async def slow(req, n: int):
            await gate.wait()
            return sse.stream(req, events=f'slow:{n}')
        @app.get('/events')
        def events(req, sess): return sse.stream(req, lambda m: str(m['data']), events='news', user=sess['auth'])
        async with Visitor(app) as ann:
            await ann.ask('/login?name=ann')
            paths = [*(f'/slow/{i}' for i in range(6)), '/events']
            for o in paths: await ann.ticket(o)
            gate.clear()
            *_, last = await ann.open(*paths)
            await turns(50)
            await sse.disconnect('ann')
            gate.set()
            await last.answered()
            await eventually(lambda: not sse.present(0), 'she is not there')
            await sse.broadcast('news', 'a secret')
            await turns(50)
            assert not last.data

    @pytest.mark.parametrize('auth', [{'id': 7}, ['ann', 7]], ids=['dict', 'list'])
    async def test_users_that_are_no_keys(self, auth):
        "What `session['auth']` has ends the streams, whatever it is"
        app, sse = fasthtml(), SSEBroadcastManager(heartbeat=0)
        setup_sse(app, sse)
        setup_progress(app, sse, True)
        todos = sse.live('todo:*', name='todos')(lambda: P('tea'))
        @app.get('/')
        def index(sess):
            sess['auth'] = auth
            return todos()
        ann = Visitor(app)
        found = elements(await ann.ask('/'))
        with track(sse, None, 'a'):
            async with following(ann, wish(*found.values())) as live, ann.begins('/stream_job_progress?job_id=a') as job:
                await eventually(lambda: live.told, 'it begins')
                assert await sse.disconnect(auth) == 2
                await eventually(lambda: live.over and job.over, 'both end')

    @pytest.mark.parametrize('user', ['eve\ud800', b'eve', object(), float('nan')], ids=repr)
    async def test_who_no_other_process_could_be_told_of(self, user):
        "Opens no stream"
        request = Request(dict(type='http', headers=[]))
        with pytest.raises(SSEError, match='`user` must be a value that JSON can carry'):
            SSEBroadcastManager().stream(request, user=user)

    async def test_a_file_that_is_locked(self, tmp_path):
        "The streams of this process end, whatever the others learn"
        sse = SSEBroadcastManager(heartbeat=0, backend=f'sqlite:///{tmp_path/"app.db"}')
        app = fasthtml()
        setup_sse(app, sse)
        @app.get('/events')
        def events(req): return sse.stream(req, lambda m: str(m['data']), user='ann')
        await sse.open()
        try:
            async with Visitor(app).begins('/events') as r:
                with Shell(tmp_path/'app.db') as shell:
                    shell.sql('begin immediate')
                    with pytest.raises(SSEError): await sse.disconnect('ann')
                await eventually(lambda: r.over, 'it ends')
        finally: await sse.close()


tenant = ContextVar('tenant', default='public')

class Tenants:
    "A middleware that says in a context variable whose page it is"
    def __init__(self, app): self.app = app
    async def __call__(self, scope, receive, send):
        tenant.set(dict(scope.get('headers', ())).get(b'x-tenant', b'public').decode())
        await self.app(scope, receive, send)


class TestAuthorise:
    @pytest.mark.parametrize('later', [False, True], ids=['plain', 'async'])
    async def test_it_has_the_context_of_the_request(self, later):
        "What a middleware has set is there, at the opening and at each recheck; what a call sets is not there for the next one"
        seen = []
        def decide(req, *_):
            seen.append(tenant.get())
            answer = tenant.get() == 'public'
            tenant.set('changed')
            return answer
        async def decide_later(req, *_): return decide(req)
        authorise = decide_later if later else decide
        app, sse = fasthtml(middleware=[Middleware(Tenants)]), SSEBroadcastManager(heartbeat=0)
        setup_sse(app, sse)
        setup_dashboard(app, sse, authorise=authorise)
        panel = sse.live('x', name='panel', authorise=authorise)(lambda: P('gold'))
        @app.get('/')
        def index(): return panel()
        @app.get('/events')
        def events(req): return sse.stream(req, authorise=authorise, recheck=.05)
        closed = Visitor(app, x_tenant='closed')
        for path in ('/_sse/dashboard', '/events'):
            async with closed.begins(path) as r: assert r.status == 403
        assert refused(await answers(closed, wish(*elements(await closed.ask('/')).values())))
        seen.clear()
        async with Visitor(app, x_tenant='public').begins('/events') as r:
            await eventually(lambda: len(seen) > 3, 'it is asked again')
            assert {*seen} == {'public'} and not r.over

    async def test_slow_plain_calls_for_one_user_end_no_stream_of_others(self):
        "They have threads of their own: the routes of the app have theirs, and others are asked about meanwhile"
        app, sse, slow, asked = fasthtml(), SSEBroadcastManager(heartbeat=0), set(), []
        setup_sse(app, sse)
        def authorise(req):
            who = req.query_params['who']
            if who in slow: time.sleep(1.2)  # Longer than what counts as slow
            else: asked.append(who)
            return True
        @app.get('/events')
        async def events(req, who: str): return sse.stream(req, user=who, authorise=authorise, recheck=.1)
        @app.get('/plain')
        def plain(): return 'hello'
        async with AsyncExitStack() as stack:
            ann = await stack.enter_async_context(Visitor(app).begins('/events?who=ann'))
            for _ in range(60): await stack.enter_async_context(Visitor(app).begins('/events?who=eve'))
            slow.add('eve')
            await turns(50)
            assert b'hello' in (await Visitor(app).ask('/plain')).body
            asked.clear()
            await eventually(lambda: len(asked) > 2, 'others are asked about')
            assert not ann.over
            slow.clear()

    @pytest.mark.parametrize('path', ['/_sse/dashboard', '/stream_job_progress?job_id=a'])
    @timeless
    async def test_one_that_hangs_is_waited_for_ten_seconds(self, path):
        app, sse = fasthtml(), SSEBroadcastManager(heartbeat=0)
        async def authorise(*_): await asyncio.get_running_loop().create_future()
        setup_sse(app, sse)
        setup_dashboard(app, sse, authorise=authorise)
        setup_progress(app, sse, authorise)
        @app.get('/events')
        async def events(req): return sse.stream(req, authorise=authorise)
        async with Visitor(app).begins(path) as r: assert r.status == 503

    async def test_a_job_is_asked_about_with_the_request_that_opened_its_stream(self):
        app, sse, seen = fasthtml(), SSEBroadcastManager(heartbeat=0), []
        def authorise(req, job_id):
            seen.append(req.query_params.get('key'))
            return True
        setup_progress(app, sse, authorise, recheck=.05)
        with track(sse, None, 'a'):
            async with Visitor(app).begins('/stream_job_progress?job_id=a&key=k'):
                await eventually(lambda: len(seen) >= 3, 'it is asked again')
        assert {*seen} == {'k'}


@pytest.mark.parametrize('by', ['auth', 'visitor'])
@pytest.mark.parametrize('nobody', ['', False])
async def test_strangers_are_not_one_user(nobody, by):
    "What stands for nobody in a session does so where the app's function returns it"
    app, sse = fasthtml(), SSEBroadcastManager(heartbeat=0, max_per_user=1)
    setup_sse(app, sse, **(dict(visitor=lambda req: nobody) if by == 'visitor' else {}))
    todos = sse.live('todo:*', name='todos')(lambda: P('tea'))
    @app.get('/')
    def index(sess):
        if by == 'auth': sess['auth'] = nobody
        return todos()
    ann, eve = Visitor(app), Visitor(app)
    hers, his = [elements(await o.ask('/')) for o in (ann, eve)]
    assert refused(await answers(eve, wish(*hers.values())))
    async with following(ann, wish(*hers.values())) as a, following(eve, wish(*his.values())) as b:
        assert a.status == b.status == 200


class Prefixes:
    "A middleware that takes what it wants to know out of the path"
    def __init__(self, app): self.app = app
    async def __call__(self, scope, receive, send):
        if scope['type'] == 'http' and scope['path'].startswith('/t/'):
            _, _, prefix, rest = scope['path'].split('/', 3)
            scope = {**scope, 'path': f'/{rest}', 'prefix': prefix}
        await self.app(scope, receive, send)


async def test_a_ticket_is_for_the_path_that_the_browser_wrote():
    app, sse = fasthtml(middleware=[Middleware(Prefixes)]), SSEBroadcastManager(heartbeat=0)
    setup_sse(app, sse)
    @app.get('/events')
    def events(req): return sse.stream(req, events=f'{req.scope.get("prefix", "none")}:*')
    async with Visitor(app) as v:
        assert (await v.opens('/t/ann/events')).status == 200
        v.tickets['/t/bob/events'] = v.tickets['/events'] = v.tickets['/t/ann/events']
        for path in ('/events', '/t/bob/events'): assert (await v.opens(path)).refused
