"""`setup_sse(app, manager)` is all the set-up there is, at whatever moment

A second call does no harm, and what any call says holds. The manager opens before the app's lifespan begins and closes before it ends.
An app that reads a queue by hand needs nothing to end its stream cleanly.
"""
import asyncio
import logging
import re
import subprocess
import sys
from contextlib import asynccontextmanager
from contextvars import ContextVar

import httpx
import pytest
from fasthtml.common import EventStream, FastHTML, P, fast_app, sse_message
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response
from starlette.testclient import TestClient

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard
from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, setup_sse
from cjm_fasthtml_sse.progress import setup_progress

from tests.contract.servers import NO_TLS
from tests.contract.support import BOUND, SocketClient, all_live, client_src, hello_app, is_served, serve, within


class TestOnce:
    def test_an_app_is_built_once(self):
        "Headers that come late build it anew, the next call does not"
        late = hello_app()
        web = TestClient(late)
        assert not is_served(web)
        insert_htmx_sse_ext(late.hdrs)
        assert is_served(web)
        built,middleware = late.middleware_stack,[*late.user_middleware]
        insert_htmx_sse_ext(late.hdrs)
        setup_sse(late)
        assert is_served(web) and late.middleware_stack is built and late.user_middleware==middleware

    def test_the_class_is_wrapped_once(self):
        "However often the module is loaded"
        code = """
import importlib
from fasthtml.common import FastHTML
from starlette.testclient import TestClient
from cjm_fasthtml_sse import helpers
for _ in range(3): importlib.reload(helpers)
app = FastHTML(secret_key='test')
helpers.insert_htmx_sse_ext(app.hdrs)
app.get('/events')(lambda: __import__('fasthtml.common').common.EventStream(iter(['data: 1\\n\\n'])))
r = TestClient(app).get('/events')
assert len(r.headers.get_list('sse-ticket'))==1==len(r.headers.get_list('set-cookie')), r.headers
"""
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        assert done.returncode==0, done.stderr

    def test_a_mounted_app_is_told_that_its_visitor_function_is_not_asked(self, caplog):
        inner,outer = hello_app(),hello_app(client=True)
        setup_sse(inner, visitor=lambda req: 'ann')
        outer.mount('/sub', inner)
        web = TestClient(outer)
        for _ in range(2): web.get('/sub/')
        assert ['`visitor` of a mounted app is not asked' in r.getMessage() for r in caplog.records]==[True]

    def test_static_files_and_catch_alls_do_not_answer_for_it(self):
        catching,rt = fast_app(secret_key='test')
        @rt('/{path:path}')
        def everything(path: str): return Response('caught')
        setup_sse(catching)
        web = TestClient(catching)
        src = client_src(TestClient(hello_app(client=True)).get('/').text)
        assert 'javascript' in web.get(src).headers['content-type'] and web.head(src).status_code==200
        assert web.get('/anything').text=='caught'


def scripts(app):
    "The start tags of the library's scripts in a page"
    app.route('/')(lambda: P('hello'))
    return re.findall('<script[^>]*(?:htmx-ext-sse|/_sse/)[^>]*>', TestClient(app).get('/').text)


class TestSetup:
    def test_after_the_first_request(self):
        late = hello_app()
        web = TestClient(late)
        assert '/_sse/' not in web.get('/').text
        setup_sse(late)
        assert '/_sse/' in web.get('/').text and web.get('/events').status_code==200

    @pytest.mark.parametrize('other', [setup_dashboard, setup_progress])
    @pytest.mark.parametrize('later', [False, True])
    def test_the_nonce_may_be_said_by_any_call(self, other, later):
        one,manager = FastHTML(secret_key='test'),SSEBroadcastManager()
        if later: other(one, manager, authorise=True)
        setup_sse(one, manager, nonce='n1', multiplex='tab')
        if not later: other(one, manager, authorise=True)
        found = scripts(one)
        assert len(found)==2 and all('nonce="n1"' in o for o in found) and 'data-sse-multiplex="tab"' in found[1]

    def test_a_nonce_is_asked_for_pages_only(self):
        "Outside of a request there may be none"
        nonce,one = ContextVar('nonce'),FastHTML(secret_key='test')
        for morph in (False, True): setup_sse(one, nonce=nonce.get, morph=morph)
        nonce.set('n1')
        assert 'nonce="n1"' in scripts(one)[0]

    def test_a_visitor_function_must_be_a_plain_one(self):
        "It is not awaited"
        async def user(req): return 'ann'
        with pytest.raises(ValueError, match='`visitor`'): setup_sse(FastHTML(secret_key='test'), visitor=user)

    @pytest.mark.parametrize('when', ['before', 'after'])
    def test_managers_close_first(self, when):
        "All of them, also where the app gets its lifespan later, and where one fails"
        seen,one = [],FastHTML(secret_key='test')
        class Manager:
            def __init__(self, name): self.name = name
            async def open(self): pass
            async def close(self):
                seen.append(self.name)
                raise RuntimeError('as it may')
        def set_up():
            for o in ('one', 'two'): setup_sse(one, Manager(o))
        @asynccontextmanager
        async def lifespan(app):
            seen.append('start')
            yield dict(thing=1)
            seen.append('app')
        one.route('/')(lambda req: P(str(req.state.thing)))
        if when=='after': set_up()
        one.set_lifespan(lifespan)
        if when=='before': set_up()
        with TestClient(one) as web: assert '<p>1</p>' in web.get('/').text
        assert seen[0]=='start' and {*seen[1:-1]}=={'one', 'two'} and seen[-1]=='app'

    def test_a_start_that_fails_closes_what_was_opened(self, tmp_path):
        "What is no Redis can't be reached; the other manager is closed"
        seen,one = [],FastHTML(secret_key='test')
        class Manager:
            async def open(self): seen.append('open')
            async def close(self): seen.append('close')
        setup_sse(one, SSEBroadcastManager(backend=f'unix://{tmp_path}/nobody?db=x'))
        setup_sse(one, Manager())  # The one that was named last is opened first
        with pytest.raises(Exception), TestClient(one): pass
        assert seen==['open', 'close']

    async def test_a_response_without_headers(self):
        "ASGI lets an app leave them out"
        async def bare(scope, receive, send):
            await send(dict(type='http.response.start', status=200))
            await send(dict(type='http.response.body', body=b'hello'))
        one = hello_app(client=True, sess_cls=None)
        one.mount('/bare', bare)
        async with serve(one) as port, httpx.AsyncClient(timeout=BOUND, verify=NO_TLS) as web:
            assert (await web.get(f'http://127.0.0.1:{port}/bare/')).text=='hello'


async def pass_on(request, call_next): return await call_next(request)


class TestQueuesThatEnd:
    "An app reads a queue that is ended: `get` raises, and the body ends"
    def app(self, error=None, **kw):
        "An app with a stream in the older style, whose queue raises `error`, or what an ended queue raises"
        one,manager = FastHTML(secret_key='test', **kw),SSEBroadcastManager()
        async def messages():
            yield sse_message('one')
            if error: raise error
            queue = await manager.register_connection()
            await manager.close()
            await queue.get()
        one.route('/stream')(lambda: EventStream(messages()))
        return one

    async def read(self, one, **kw):
        async with serve(one, **kw) as port, httpx.AsyncClient(timeout=BOUND, verify=NO_TLS) as web:
            return (await web.get(f'http://127.0.0.1:{port}/stream')).text

    async def test_without_a_set_up_the_body_is_cut_off(self, caplog):
        "The browser comes back; the server logs one error"
        with pytest.raises(httpx.RemoteProtocolError): await self.read(self.app(), log_config=None)
        assert 'StreamEnded' in caplog.text

    @pytest.mark.parametrize('http', ['h11', 'httptools'])
    @pytest.mark.parametrize('middleware', [[], [Middleware(BaseHTTPMiddleware, dispatch=pass_on)]],
                             ids=['plain', 'middleware'])
    async def test_with_one_it_ends_cleanly(self, caplog, http, middleware):
        seen = []
        one = self.app(middleware=middleware, exception_handlers={500: lambda req, exc: seen.append(exc)})
        setup_sse(one)
        assert (await self.read(one, http=http, log_config=None)).removeprefix(':\n\n')==sse_message('one')
        assert not seen and not [r for r in caplog.records if r.levelno>=logging.ERROR]

    def test_other_errors_stay(self):
        one = self.app(RuntimeError('bug'))
        setup_sse(one)
        with pytest.raises(RuntimeError): TestClient(one).get('/stream')

    @pytest.mark.parametrize('http', ['h11', 'httptools'])
    @pytest.mark.parametrize('mounted', [False, True])
    async def test_who_stopped_reading_is_cut_off(self, http, mounted):
        "Whatever middleware and mounts are in between: nothing waits for a browser that was evicted, and it gets no farewell"
        manager,ended = SSEBroadcastManager(max_queue_size=2, default_timeout=0),asyncio.Event()
        one = FastHTML(secret_key='test', middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)])
        one.route('/stream')(lambda req: manager.stream(req))
        setup_sse(one, manager)
        outer,path = one,'/stream'
        if mounted:
            outer,path = FastHTML(secret_key='test'),'/sub/stream'
            outer.mount('/sub', one)
            setup_sse(outer)
        async def noted(scope, receive, send):
            try: await outer(scope, receive, send)
            finally: ended.set()
        async with serve(noted, http=http) as port, SocketClient(port, path, receive_buffer=4096) as c:
            await all_live(manager, 1)
            c.stall()
            async with within('it is evicted'):
                while manager.connection_count: await manager.broadcast('n', 'x'*100_000)
            async with within('its request ends', BOUND/2): await ended.wait()
            c.resume()
            await c.ends()
            assert c.events and not [e for e in c.events[1:] if e.retry]
