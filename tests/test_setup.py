"`setup_sse` under a real server: what it puts around an app"
import asyncio
import logging
import re
import socket
from contextlib import asynccontextmanager
from contextvars import ContextVar

import httpx
import pytest
import uvicorn
from fasthtml.common import EventStream, FastHTML, P, sse_message
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response, StreamingResponse
from starlette.testclient import TestClient

from cjm_fasthtml_sse.backend import BackendError
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard
from cjm_fasthtml_sse.helpers import _files, oob_element, setup_sse
from cjm_fasthtml_sse.htmx import ArgumentError
from cjm_fasthtml_sse.progress import setup_progress
from cjm_fasthtml_sse.wire import StreamEnded


@asynccontextmanager
async def serving(app, http='auto'):
    "The app under uvicorn, and a client for it"
    with socket.create_server(('127.0.0.1', 0)) as sock:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, http=http, timeout_graceful_shutdown=2))
        task = asyncio.create_task(server._serve([sock]))  # `serve` would take the signals of pytest
        try:
            async with asyncio.timeout(10):
                while not server.started: await asyncio.sleep(.01)
            async with httpx.AsyncClient(base_url=f'http://127.0.0.1:{sock.getsockname()[1]}', timeout=5) as client: yield client
        finally:
            server.should_exit = True
            async with asyncio.timeout(10): await task


async def passing_on(request, call_next): return await call_next(request)


def older_app(error=None, **kw):
    "An app with a stream in the older style, whose queue raises `error`"
    app = FastHTML(secret_key='test', **kw)
    async def messages():
        yield sse_message('one')
        raise error or StreamEnded('evicted')
    @app.route('/stream')
    def stream(): return EventStream(messages())
    return app


async def test_without_it_the_body_is_cut_off(caplog):
    "The limit of `insert_htmx_sse_ext` alone: the browser comes back, the server logs an error"
    async with serving(older_app()) as client:
        with pytest.raises(httpx.RemoteProtocolError): await client.get('/stream')
    assert 'StreamEnded' in caplog.text


@pytest.mark.parametrize('http', ['h11', 'httptools'])
@pytest.mark.parametrize('middleware', [[], [Middleware(BaseHTTPMiddleware, dispatch=passing_on)]])
async def test_ends_cleanly(caplog, http, middleware):
    app = older_app(middleware=middleware)
    setup_sse(app)
    async with serving(app, http) as client:
        assert (await client.get('/stream')).text.removeprefix(':\n\n') == sse_message('one')
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_no_error_handler_is_called():
    "An app's own page for errors has nothing to do with a stream that ends"
    seen = []
    def oops(req, exc): seen.append(exc)
    app = older_app(exception_handlers={500: oops})
    setup_sse(app)
    assert TestClient(app).get('/stream').status_code == 200
    assert not seen


@pytest.mark.parametrize('error', [RuntimeError('bug'), ExceptionGroup('g', [StreamEnded('evicted'), RuntimeError('bug')]),
                                   ExceptionGroup('g', [ExceptionGroup('h', [RuntimeError('bug')])])])
def test_other_errors_stay(error):
    app = older_app(error)
    setup_sse(app)
    with pytest.raises(type(error)): TestClient(app).get('/stream')


def test_ended_before_the_response_began():
    "There is no body to end then: it is an error like any other"
    app = FastHTML(secret_key='test')
    @app.route('/')
    def index(): raise StreamEnded('too early')
    setup_sse(app)
    assert TestClient(app, raise_server_exceptions=False).get('/').status_code == 500
    with pytest.raises(StreamEnded): TestClient(app).get('/')


@pytest.mark.parametrize('http', ['h11', 'httptools'])
@pytest.mark.parametrize('mounted', [False, True])
async def test_abort(http, mounted):
    "`scope['sse.abort']` cuts the connection, through whatever middleware and mounts"
    app = FastHTML(secret_key='test', middleware=[Middleware(BaseHTTPMiddleware, dispatch=passing_on)])
    async def frames(scope):
        yield 'data: one\n\n'
        scope['sse.abort']()
        await asyncio.sleep(30)
    @app.route('/stream')
    def stream(req): return StreamingResponse(frames(req.scope), media_type='text/event-stream')
    setup_sse(app)
    outer,path = app,'/stream'
    if mounted:
        outer,path = FastHTML(secret_key='test'),'/sub/stream'
        outer.mount('/sub', app)
        setup_sse(outer)
    async with serving(outer, http) as client:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)): await client.get(path)


def test_no_abort_where_the_server_has_none():
    app = FastHTML(secret_key='test')
    @app.route('/')
    def index(req): return P(str('sse.abort' in req.scope))
    setup_sse(app)
    assert 'False' in TestClient(app).get('/').text


class Manager:
    def __init__(self, seen): self.seen = seen
    async def open(self): pass
    async def close(self): self.seen.append('manager')


@pytest.mark.parametrize('when', ['before', 'after'])
async def test_shutdown(when):
    "The manager is closed first, also where the app gets its lifespan later, and under a real server"
    seen,app = [],FastHTML(secret_key='test')
    @asynccontextmanager
    async def lifespan(app):
        seen.append('start')
        yield dict(thing=1)
        seen.append('app')
    @app.route('/')
    def index(req): return P(str(req.state.thing))
    if when == 'after': setup_sse(app, Manager(seen))
    app.set_lifespan(lifespan)
    if when == 'before': setup_sse(app, Manager(seen))
    async with serving(app) as client: assert '<p>1</p>' in (await client.get('/')).text
    assert seen == ['start', 'manager', 'app']


def test_a_start_that_fails_closes_what_was_opened():
    seen = []
    class Refused(Manager):
        async def open(self): raise BackendError('wrong password')
    app = FastHTML(secret_key='test')
    for manager in Refused([]), Manager(seen): setup_sse(app, manager)  # The one that was named last is opened first
    with pytest.raises(BackendError, match='wrong password'), TestClient(app): pass
    assert seen == ['manager']


def test_setup_after_the_first_request():
    app = older_app()
    @app.route('/')
    def index(): return P('hello')
    web = TestClient(app)
    assert '/_sse/' not in web.get('/').text
    setup_sse(app)
    assert '/_sse/' in web.get('/').text
    assert web.get('/stream').text == sse_message('one')


def test_static_files_and_catch_alls_do_not_answer_for_the_client():
    from fasthtml.common import fast_app
    app,rt = fast_app(secret_key='test')
    @rt('/{path:path}')
    def everything(path: str): return Response('caught')
    setup_sse(app)
    web = TestClient(app)
    src = next(f'/_sse/{o}' for o in _files() if o.startswith('client'))
    assert 'class SSESource' in web.get(src).text
    assert web.head(src).status_code == 200
    assert web.get('/anything').text == 'caught'


# What several calls say

def first(app): setup_dashboard(app, SSEBroadcastManager(), authorise=True)
def second(app): setup_progress(app, SSEBroadcastManager(), authorise=True)

def scripts(app, **headers):
    "The start tags of the scripts of ours in a page"
    app.route('/')(lambda: P('hello'))
    return re.findall('<script[^>]*(?:htmx-ext-sse|/_sse/)[^>]*>', TestClient(app).get('/', headers=headers).text)

@pytest.mark.parametrize('others', [[first], [second], [first, second]])
@pytest.mark.parametrize('later', [False, True])
def test_what_tells_visitors_apart_may_be_said_by_any_call(others, later):
    "Else one user would use the tickets of another"
    app = FastHTML(secret_key='test')
    for f in others*later: f(app)
    setup_sse(app, visitor=lambda req: req.headers['user'])
    for f in others*(not later): f(app)
    app.route('/')(lambda: P('hello'))
    tags = [TestClient(app).get('/', headers={'user': o, 'HX-Request': 'true'}).headers['sse-visitor'] for o in ('ann', 'bob', 'ann')]
    assert tags[0] == tags[2] != tags[1]


@pytest.mark.parametrize('others', [[first], [second]])
@pytest.mark.parametrize('later', [False, True])
def test_the_nonce_may_be_said_by_any_call(others, later):
    app = FastHTML(secret_key='test')
    for f in others*later: f(app)
    setup_sse(app, nonce='n1', share=False)
    for f in others*(not later): f(app)
    found = scripts(app)
    assert len(found) == 2
    assert all('nonce="n1"' in o for o in found)
    assert 'data-sse-share="false"' in found[1]


def test_a_nonce_is_asked_for_pages_only():
    "Outside of a request there may be none"
    nonce,app = ContextVar('nonce'),FastHTML(secret_key='test')
    for morph in (False, True): setup_sse(app, nonce=nonce.get, morph=morph)
    nonce.set('n1')
    assert 'nonce="n1"' in scripts(app)[0]


def test_what_tells_visitors_apart_is_not_awaited():
    async def user(req): return 'ann'
    with pytest.raises(ArgumentError, match='`visitor`'): setup_sse(FastHTML(secret_key='test'), visitor=user)


async def test_a_response_without_headers():
    "ASGI lets an app leave them out"
    async def bare(scope, receive, send):
        await send(dict(type='http.response.start', status=200))
        await send(dict(type='http.response.body', body=b'hello'))
    app = FastHTML(sess_cls=None)
    setup_sse(app)
    app.mount('/bare', bare)
    async with serving(app) as client: assert (await client.get('/bare/')).text == 'hello'


@pytest.mark.parametrize('swap', ['morph', 'Morph'])
def test_elements_of_content_morph_the_content(swap):
    assert oob_element('x', P('hello'), swap).attrs['hx-swap-oob'] == 'innerMorph'
