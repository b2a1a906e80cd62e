"""More of what somebody tried who wanted to go on reading: users that are rows, scripts, mounted apps, threads, modules loaded again

See `test_tried_and_refused.py`; the page "What was tried" of the documentation lists all of it.
"""
import asyncio
import json
import runpy
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

try: from inspect import markcoroutinefunction
except ImportError: markcoroutinefunction = None  # Before Python 3.12

import pytest
from fasthtml.common import FastHTML, P
from starlette.middleware import Middleware
from starlette.routing import Mount

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.progress import setup_progress, track
from tests.contract.stores import managers
from tests.contract.support import eventually, turns
from tests.contract.test_live_security import JSON, answers, elements, following, wish
from tests.contract.visitors import Visitor


def fasthtml(**kw): return FastHTML(secret_key='contract', default_hdrs=False, **kw)
def refused(got): return {*got.values()} == {'refused'}
def listed(found): return json.dumps(dict(views=wish(*found.values()))).encode()


@dataclass
class Row:
    "As a table of fastlite gives it"
    id: int
    name: str

class TestUsersOfVisitor:
    "`disconnect` takes what `setup_sse(visitor=...)` returns"
    @pytest.mark.parametrize('where', ['alone', 'here', 'there'])
    @pytest.mark.parametrize('user', [Row(7, 'ann'), {'id': 7, 'since': datetime(2026, 1, 1, 10)}, {'id': 7, 'roles': {'x'}}],
        ids=['row', 'datetime', 'set'])
    async def test_it_ends_their_streams(self, tmp_path, user, where):
        "Whatever it is, here and in another worker"
        async with managers(tmp_path/'app.db') as (first, second), AsyncExitStack() as stack:
            sse = SSEBroadcastManager(heartbeat=0) if where == 'alone' else first
            for o in (first, second): await o.open()
            app = fasthtml()
            setup_sse(app, sse, visitor=lambda req: user)
            todos = sse.live('todo:*', name='todos')(lambda: P('tea'))
            @app.get('/')
            def index(): return todos()
            ann = Visitor(app)
            live = await stack.enter_async_context(following(ann, wish(*elements(await ann.ask('/')).values())))
            await eventually(lambda: live.told, 'it begins')
            await (second if where == 'there' else sse).disconnect(user)
            await eventually(lambda: live.over, 'it ends')


PROGRAM = '''
from fasthtml.common import FastHTML, P
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

app, sse = FastHTML(secret_key='contract', default_hdrs=False), SSEBroadcastManager(heartbeat=0)
setup_sse(app, sse)

@sse.live('note:{n}')
def note(n): return P(f'KIND note {n}')

@app.get('/login')
def login(name: str, sess): sess['auth'] = name

@app.get('/note/{n}')
def show(n: int): return note(n)
'''

@pytest.mark.parametrize('name', ['__main__', None], ids=['script', 'module'])
async def test_two_programs_that_are_scripts(tmp_path, name):
    "As `test_programs_on_two_ports`; where each is `python public.py` with `uvicorn.run(app)`, or a notebook, both are `__main__`"
    apps = []
    for kind in ('public', 'private'):
        (tmp_path/f'{kind}.py').write_text(PROGRAM.replace('KIND', kind))
        apps.append(runpy.run_path(tmp_path/f'{kind}.py', run_name=name or kind)['app'])
    ann = Visitor(apps[0])
    await ann.ask('/login?name=ann')
    found = elements(await ann.ask('/note/7'))
    ann.app = apps[1]
    assert refused(await answers(ann, wish(*found.values())))


class Slow:
    "A middleware that asks a database about the session, and takes its time"
    gate = None
    def __init__(self, app): self.app = app
    async def __call__(self, scope, receive, send):
        if self.gate is not None: await self.gate.wait()
        await self.app(scope, receive, send)

@pytest.mark.parametrize('sink', ['stream', 'live', 'channel'])
async def test_a_disconnect_while_the_outer_app_has_the_request(sink):
    "It ends the stream of a mounted app whose request began before"
    outer, inner, sse = fasthtml(middleware=[Middleware(Slow)]), fasthtml(), SSEBroadcastManager(heartbeat=0)
    setup_sse(outer, SSEBroadcastManager(heartbeat=0))
    setup_sse(inner, sse)
    todos = sse.live('todo:*', name='todos')(lambda: P('tea'))
    @inner.get('/')
    def index(): return todos()
    @outer.get('/login')
    def login(name: str, sess): sess['auth'] = name
    @inner.get('/events')
    def events(req, sess): return sse.stream(req, user=sess['auth'])
    outer.routes.append(Mount('/in', inner))
    async with AsyncExitStack() as stack:
        ann = await stack.enter_async_context(Visitor(outer))
        await ann.ask('/login?name=ann')
        await ann.ticket('/in/events')
        found = elements(await ann.ask('/in/'))
        Slow.gate = gate = asyncio.Event()
        begun = dict(stream=lambda: stack.enter_async_context(ann.begins('/in/events')), channel=lambda: ann.open('/in/events'),
            live=lambda: stack.enter_async_context(ann.begins(found['todos[]'].url, 'POST', listed(found), **JSON)))[sink]
        opening = asyncio.ensure_future(begun())
        await turns(50)
        await sse.disconnect('ann')
        Slow.gate = None
        gate.set()
        await opening
        await turns(100)
        assert not sse.present(0)


@asynccontextmanager
async def served(app):
    "An app whose server has started it"
    inbox, started, ended = asyncio.Queue(), asyncio.Event(), asyncio.Event()
    async def send(message): (started if 'startup' in message['type'] else ended).set()
    task = asyncio.ensure_future(app(dict(type='lifespan', asgi=dict(version='3.0'), state={}), inbox.get, send))
    inbox.put_nowait(dict(type='lifespan.startup'))
    await started.wait()
    yield
    inbox.put_nowait(dict(type='lifespan.shutdown'))
    await ended.wait()
    await task

@pytest.mark.parametrize('sink', ['stream', 'channel'])
@pytest.mark.parametrize('mounted', [False, True], ids=['alone', 'mounted'])
async def test_the_first_stream_of_a_worker(tmp_path, sink, mounted):
    """A server starts the outermost app alone, and that opens the managers of mounted ones: they learn of a `disconnect` in another worker
    also between `authorise` and their first stream"""
    async with managers(tmp_path/'app.db') as (first, second), AsyncExitStack() as stack:
        await first.open()
        app, valid, gate, asked = fasthtml(), {'ann'}, asyncio.Event(), []
        setup_sse(app, second)
        async def authorise(req):
            answer = req.session['auth'] in valid
            asked.append(answer)
            await gate.wait()
            return answer
        @app.get('/login')
        def login(name: str, sess): sess['auth'] = name
        @app.get('/events')
        def events(req, sess): return second.stream(req, user=sess['auth'], authorise=authorise)
        outer, path = app, '/events'
        if mounted:
            outer, path = fasthtml(), '/in/events'
            setup_sse(outer, SSEBroadcastManager(heartbeat=0))
            outer.routes.append(Mount('/in', app))
        await stack.enter_async_context(served(outer))
        ann = await stack.enter_async_context(Visitor(outer))
        await ann.ask(path.replace('events', 'login?name=ann'))
        await ann.ticket(path)
        begun = dict(stream=lambda: stack.enter_async_context(ann.begins(path)), channel=lambda: ann.open(path))[sink]
        opening = asyncio.ensure_future(begun())
        await eventually(lambda: asked, 'it is asked')
        valid.clear()
        await first.disconnect('ann')
        gate.set()
        await opening
        await eventually(lambda: not second.present(0), 'she is not there')


class Hangs:
    "A plain function that does not come back for some, as where a database does not answer"
    def __init__(self): self.whom, self.count, self.free = set(), 0, threading.Event()
    def __call__(self, req, who):
        if who in self.whom:
            self.count += 1
            self.free.wait(8)
        return True

class TestThreads:
    "Plain `authorise` takes none of the threads that routes have"
    @pytest.mark.parametrize('what', ['stream', 'job', 'opening'])
    async def test_a_plain_route(self, what):
        "Answers, while 45 calls for one user hang"
        app, sse, hangs, n = fasthtml(), SSEBroadcastManager(heartbeat=0), Hangs(), 45
        setup_progress(app, sse, hangs, recheck=.1)
        @app.get('/events')
        async def events(req): return sse.stream(req, authorise=lambda req: hangs(req, 'eve'), recheck=.1)
        @app.get('/plain')
        def plain(): return 'hello'
        try:
            async with AsyncExitStack() as stack, track(sse, None, 'eve'):
                eve = Visitor(app)
                def begin():
                    return stack.enter_async_context(eve.begins('/stream_job_progress?job_id=eve' if what == 'job' else '/events'))
                if what == 'opening': hangs.whom.add('eve')
                coming = [asyncio.ensure_future(begin()) for _ in range(n)]
                if what != 'opening': await asyncio.gather(*coming)
                hangs.whom.add('eve')
                await eventually(lambda: hangs.count >= (40 if what == 'opening' else 20), 'they hang')
                asking = asyncio.ensure_future(Visitor(app).ask('/plain'))
                done, _ = await asyncio.wait({asking}, timeout=2)
                hangs.free.set()
                await asyncio.gather(asking, *coming)
                assert done
        finally: hangs.free.set()

    async def test_one_who_may_no_longer_watch_a_job(self):
        "Is asked about all the same"
        app, sse, hangs, may = fasthtml(), SSEBroadcastManager(heartbeat=0), Hangs(), {'ann', 'eve'}
        setup_progress(app, sse, lambda req, job_id: hangs(req, job_id) and job_id in may, recheck=.1)
        try:
            async with AsyncExitStack() as stack, track(sse, None, 'eve'), track(sse, None, 'ann'):
                ann, *_ = [await stack.enter_async_context(Visitor(app).begins(f'/stream_job_progress?job_id={o}'))
                    for o in ['ann']+['eve']*60]
                hangs.whom.add('eve')
                await eventually(lambda: hangs.count >= 20, 'they hang')
                may.discard('ann')
                await eventually(lambda: ann.over, 'she reads no more')
        finally: hangs.free.set()


@pytest.mark.skipif(markcoroutinefunction is None, reason='needs Python 3.12')
@pytest.mark.parametrize('how', ['raises', 'future'])
async def test_one_call_that_fails_at_once_ends_no_rechecks_of_others(how):
    "A function that a decorator has marked as a coroutine function may raise when it is called, or give a future; others are asked about"
    app, sse, may, begun = fasthtml(), SSEBroadcastManager(heartbeat=0), {'ann'}, []
    setup_sse(app, sse)
    async def yes(): return True
    @markcoroutinefunction
    def odd(req):
        if not begun: return yes()
        if how == 'raises': raise PermissionError('no')
        return asyncio.ensure_future(yes())
    async def authorise(req): return 'ann' in may
    @app.get('/odd')
    def odd_events(req): return sse.stream(req, authorise=odd, recheck=.1)
    @app.get('/events')
    def events(req): return sse.stream(req, authorise=authorise, recheck=.1)
    async with Visitor(app).begins('/odd'), Visitor(app).begins('/events') as ann:
        begun.append(True)
        await asyncio.sleep(.5)  # Several periods, in which both are asked about again
        may.clear()
        await eventually(lambda: ann.over, 'she reads no more')


class TestLoadedAgain:
    "A module that is loaded again, as in a notebook, while a stream is open"
    async def follow(self, element, sse, app, change):
        @app.get('/')
        def index(): return element(1, 2)
        v = Visitor(app)
        async with following(v, wish(*elements(await v.ask('/')).values())) as r:
            await eventually(lambda: r.told, 'it begins')
            change()
            await sse.broadcast('doc:x', None)
            await asyncio.sleep(.5)  # Nothing may come: it would be drawn anew by now
            return str(r.told)

    async def test_parameters_that_change_places(self):
        "As `TestElements.test_parameters_that_change_places`: the stream gets nothing of another user"
        app, sse = fasthtml(), SSEBroadcastManager(heartbeat=0)
        setup_sse(app, sse)
        def register(f):
            f.__qualname__ = 'doc'  # One function, of which there is another version
            return sse.live('doc:*', name='doc')(f)
        first = register(lambda folder, user: P(f'folder {folder} of user {user}'))
        told = await self.follow(first, sse, app, lambda: register(lambda user, folder: P(f'folder {folder} of user {user}')))
        assert 'of user 1' not in told

    async def test_one_that_has_authorise_now(self):
        "Asks about those who follow already"
        app, sse, text = fasthtml(), SSEBroadcastManager(heartbeat=0), ['old']
        setup_sse(app, sse)
        def draw(folder, user): return P(text[0])
        def change():
            text[0] = 'secret'
            sse.live('doc:*', name='doc', authorise=lambda *_: False)(draw)
        told = await self.follow(sse.live('doc:*', name='doc')(draw), sse, app, change)
        assert 'secret' not in told
