"""An app is set up by one call, of whichever kind, at whatever moment

`setup_sse(app, manager)` is all there is; an app that only calls `insert_htmx_sse_ext(app.hdrs)`, as apps of the older package do, is
served as well: the client from an address of its own, tickets, one connection for all streams. Every other FastHTML app is built as ever.
A second call does no harm, and what any call says holds.
"""
import asyncio
import logging
import re
import subprocess
import sys
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path

import httpx
import pytest
from fasthtml.common import Beforeware, EventStream, FastHTML, P, Redirect, Script, fast_app, sse_message, to_xml
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard
from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, setup_sse
from cjm_fasthtml_sse.progress import setup_progress

from tests.contract.support import serve


def app(*, client=False, cls=FastHTML, **kw):
    res = cls(secret_key='test', **kw)
    if client: insert_htmx_sse_ext(res.hdrs)
    @res.get('/')
    def index(): return P('hello')
    @res.get('/events')
    def events(): return EventStream(iter(['data: 1\n\n']))
    return res


def client_of(page): return re.search('<script[^>]*data-sse-client[^>]*>', page)[0]
def src_of(page): return re.search('src="([^"]+)"', client_of(page))[1]
def is_served(web): return 'sse-ticket' in web.get('/events').headers


class TestInsertedAlone:
    def test_an_app_without_the_client_is_built_as_before(self):
        plain = app()
        routes,middleware = [*plain.routes],[*plain.user_middleware]
        web = TestClient(plain)
        assert not is_served(web) and '/_sse/' not in web.get('/').text and web.post('/_sse/mux').status_code==404
        assert plain.routes==routes and plain.user_middleware==middleware

    def test_an_app_with_the_client_is_served(self):
        "Its script may be kept for ever: it is another address when it is another one"
        one = app(client=True)
        web,before = TestClient(one),[*one.user_middleware]
        page = web.get('/').text
        assert is_served(web) and 'data-sse-mux="/_sse/mux"' in client_of(page) and len(page)<2000
        script = web.get(src_of(page))
        assert 'javascript' in script.headers['content-type'] and 'immutable' in script.headers['cache-control'] and len(script.text)>10_000
        assert web.head(src_of(page)).status_code==200 and web.post(src_of(page)).status_code in (404, 405)
        assert one.user_middleware==before

    @pytest.mark.parametrize('how', ['in its headers', 'in a list in its headers', 'in a subclass'])
    def test_wherever_the_client_comes_from(self, how):
        class Own(FastHTML):
            def build_middleware_stack(self): return super().build_middleware_stack()
        headers = insert_htmx_sse_ext([])
        one = dict([('in its headers', lambda: app(hdrs=headers)), ('in a list in its headers', lambda: app(hdrs=[Script('1'), (*headers,)])),
                    ('in a subclass', lambda: app(client=True, cls=Own))])[how]()
        web = TestClient(one)
        assert is_served(web) and web.get(src_of(web.get('/').text)).status_code==200

    def test_headers_that_come_later(self):
        "They build the app anew, once, and no other app"
        late,other = app(),app()
        webs = [TestClient(o) for o in (late, other)]
        for o in webs: assert not is_served(o)
        insert_htmx_sse_ext(late.hdrs)
        assert [is_served(o) for o in webs]==[True, False]
        built = late.middleware_stack
        insert_htmx_sse_ext(late.hdrs)
        setup_sse(late)
        assert is_served(webs[0]) and late.middleware_stack is built

    def test_two_apps_with_the_same_headers_are_two(self):
        "The ticket of one is none for the other"
        headers = insert_htmx_sse_ext([])
        one,two = (TestClient(app(hdrs=headers, session_cookie=o)) for o in ('one', 'two'))
        assert is_served(one) and is_served(two)
        ticket = one.get('/events').headers['sse-ticket']
        order = dict(carriers=[], open=[[1, '/events', ticket, '', '']], close=[], become=True)
        r = two.post('/_sse/mux', json=order, headers={'SSE-Mux': '2', 'Sec-Fetch-Site': 'same-origin', 'Content-Type': 'application/json'})
        assert b'{"ticket": true}' in r.content

    def test_outside_of_an_app_the_client_is_inline(self):
        headers = insert_htmx_sse_ext([])
        async def page(request): return HTMLResponse(to_xml(tuple(headers)))
        for html in (to_xml(tuple(headers)), TestClient(Starlette(routes=[Route('/', page)])).get('/').text):
            assert len(html)>10_000 and '/_sse/' not in client_of(html)
        # Within a served one that is mounted there, it is not
        web = TestClient(Starlette(routes=[Mount('/sub', app(client=True))]))
        assert src_of(web.get('/sub/').text).startswith('/sub/_sse/client-')

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

    def test_an_app_with_errors_of_its_own_and_no_session(self):
        web = TestClient(app(client=True, sess_cls=None, exception_handlers={404: lambda req, exc: P('not here')}))
        assert is_served(web) and 'data-sse-mux' in client_of(web.get('/nowhere').text)

    def test_a_mounted_app_is_told_that_its_visitor_function_is_not_asked(self, caplog):
        inner,outer = app(),app(client=True)
        setup_sse(inner, visitor=lambda req: 'ann')
        outer.mount('/sub', inner)
        web = TestClient(outer)
        for _ in range(2): web.get('/sub/')
        assert ['`visitor` of a mounted app is not asked' in r.getMessage() for r in caplog.records]==[True]


class TestItsScript:
    def test_no_beforeware_stands_before_it(self):
        open_,closed = TestClient(app(client=True)),TestClient(app(client=True, before=Beforeware(lambda req: Redirect('/login'))), follow_redirects=False)
        src = src_of(open_.get('/').text)
        assert closed.get('/').status_code==303 and closed.get(src).text==open_.get(src).text
        assert closed.get('/_sse/client-0123456789abcdef').status_code in (303, 404)

    def test_static_files_and_catch_alls_do_not_answer_for_it(self):
        catching,rt = fast_app(secret_key='test')
        @rt('/{path:path}')
        def everything(path: str): return Response('caught')
        setup_sse(catching)
        web = TestClient(catching)
        src = src_of(TestClient(app(client=True)).get('/').text)
        assert 'javascript' in web.get(src).headers['content-type'] and web.head(src).status_code==200
        assert web.get('/anything').text=='caught'


def scripts(app):
    "The start tags of the library's scripts in a page"
    app.route('/')(lambda: P('hello'))
    return re.findall('<script[^>]*(?:htmx-ext-sse|/_sse/)[^>]*>', TestClient(app).get('/').text)


class TestSetup:
    def test_after_the_first_request(self):
        late = app()
        web = TestClient(late)
        assert '/_sse/' not in web.get('/').text
        setup_sse(late)
        assert '/_sse/' in web.get('/').text and web.get('/events').status_code==200

    @pytest.mark.parametrize('other', [setup_dashboard, setup_progress])
    @pytest.mark.parametrize('later', [False, True])
    def test_the_nonce_may_be_said_by_any_call(self, other, later):
        one = FastHTML(secret_key='test')
        if later: other(one, SSEBroadcastManager(), authorise=True)
        setup_sse(one, nonce='n1', share=False)
        if not later: other(one, SSEBroadcastManager(), authorise=True)
        found = scripts(one)
        assert len(found)==2 and all('nonce="n1"' in o for o in found) and 'data-sse-share="false"' in found[1]

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
    def test_the_manager_closes_first(self, when):
        "Also where the app gets its lifespan later"
        seen,one = [],FastHTML(secret_key='test')
        class Manager:
            async def open(self): pass
            async def close(self): seen.append('manager')
        @asynccontextmanager
        async def lifespan(app):
            seen.append('start')
            yield dict(thing=1)
            seen.append('app')
        one.route('/')(lambda req: P(str(req.state.thing)))
        if when=='after': setup_sse(one, Manager())
        one.set_lifespan(lifespan)
        if when=='before': setup_sse(one, Manager())
        with TestClient(one) as web: assert '<p>1</p>' in web.get('/').text
        assert seen==['start', 'manager', 'app']

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
        one = app(client=True, sess_cls=None)
        one.mount('/bare', bare)
        async with serve(one) as port, httpx.AsyncClient() as web: assert (await web.get(f'http://127.0.0.1:{port}/bare/')).text=='hello'


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
        async with serve(one, **kw) as port, httpx.AsyncClient(timeout=10) as web: return (await web.get(f'http://127.0.0.1:{port}/stream')).text

    async def test_without_a_set_up_the_body_is_cut_off(self, caplog):
        "The browser comes back; the server logs one error"
        with pytest.raises(httpx.RemoteProtocolError): await self.read(self.app())
        assert 'StreamEnded' in caplog.text

    @pytest.mark.parametrize('http', ['h11', 'httptools'])
    @pytest.mark.parametrize('middleware', [[], [Middleware(BaseHTTPMiddleware, dispatch=pass_on)]], ids=['plain', 'middleware'])
    async def test_with_one_it_ends_cleanly(self, caplog, http, middleware):
        seen = []
        one = self.app(middleware=middleware, exception_handlers={500: lambda req, exc: seen.append(exc)})
        setup_sse(one)
        assert (await self.read(one, http=http)).removeprefix(':\n\n')==sse_message('one')
        assert not seen and not [r for r in caplog.records if r.levelno>=logging.ERROR]

    def test_other_errors_stay(self):
        one = self.app(RuntimeError('bug'))
        setup_sse(one)
        with pytest.raises(RuntimeError): TestClient(one).get('/stream')

    @pytest.mark.parametrize('http', ['h11', 'httptools'])
    @pytest.mark.parametrize('mounted', [False, True])
    async def test_a_stream_may_cut_its_connection(self, http, mounted):
        "`scope['sse.abort']` does, through whatever middleware and mounts"
        one = FastHTML(secret_key='test', middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)])
        async def frames(scope):
            yield 'data: one\n\n'
            scope['sse.abort']()
            await asyncio.sleep(30)
        one.route('/stream')(lambda req: StreamingResponse(frames(req.scope), media_type='text/event-stream'))
        setup_sse(one)
        outer,path = one,'/stream'
        if mounted:
            outer,path = FastHTML(secret_key='test'),'/sub/stream'
            outer.mount('/sub', one)
            setup_sse(outer)
        async with serve(outer, http=http) as port, httpx.AsyncClient(timeout=10) as web:
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)): await web.get(f'http://127.0.0.1:{port}{path}')
