"What `setup_sse` puts around an app"
import asyncio
import re

import httpx
import pytest
from fasthtml.common import EventStream, FastHTML, P, sse_message
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard
from cjm_fasthtml_sse.engine.wire import StreamEnded
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.progress import setup_progress
from tests.contract.servers import NO_TLS
from tests.contract.support import BOUND, serve


@pytest.fixture
def app():
    app = FastHTML(secret_key='test')
    setup_sse(app)
    return app


@pytest.mark.parametrize('error', [ExceptionGroup('g', [StreamEnded('evicted'), RuntimeError('bug')]),
                                   ExceptionGroup('g', [ExceptionGroup('h', [RuntimeError('bug')])])], ids=['one of two', 'nested'])
def test_groups_with_other_errors_stay(app, error):
    async def messages():
        yield sse_message('one')
        raise error
    app.route('/stream')(lambda: EventStream(messages()))
    with pytest.raises(ExceptionGroup): TestClient(app).get('/stream')


def test_ended_before_the_response_began(app):
    "There is no body to end then: it is an error like any other"
    @app.route('/')
    def index(): raise StreamEnded('too early')
    assert TestClient(app, raise_server_exceptions=False).get('/').status_code == 500


def scripts_of(page):
    "What is between the tags of the head, but for title and style; and the paths of the scripts"
    head = re.sub(r'<(title|style).*?</\1>', '', re.search('<head>(.*)</head>', page, re.S)[1], flags=re.S)
    return re.sub(r'<[^>]*>', '', head).split(), re.findall(r'<script src="(/_sse/[a-z]+)', head)


@pytest.mark.parametrize('kw, wanted', [({}, ['/_sse/client']), (dict(compress=[P('n 1', id='n')]), ['/_sse/dictionary', '/_sse/client'])], ids=['plain', 'compress'])
def test_the_head_of_a_page_has_tags_alone(kw, wanted):
    app = FastHTML(secret_key='test')
    setup_sse(app, **kw)
    app.route('/')(lambda: P('here'))
    assert scripts_of(TestClient(app).get('/').text) == ([], wanted)


def test_no_abort_where_the_server_has_none(app):
    app.route('/')(lambda req: P(str('sse.abort' in req.scope)))
    assert 'False' in TestClient(app).get('/').text


class TestOneManager:
    "`setup_sse(app)` returns the app's manager, and makes one only if there is none"
    def test_it_is_made_once(self, app): assert isinstance(setup_sse(app), SSEBroadcastManager) and setup_sse(app) is setup_sse(app)

    def test_one_given_later_replaces_an_unused_one(self, app):
        manager = SSEBroadcastManager()
        assert setup_sse(app, manager) is manager is setup_sse(app)

    def test_internal_calls_make_none(self):
        app, manager = FastHTML(secret_key='test'), SSEBroadcastManager()
        setup_dashboard(app, manager, authorise=True)
        setup_progress(app, manager, authorise=True)
        assert setup_sse(app) is manager

    @pytest.mark.parametrize('use', [lambda o: o.broadcast('n', 1), lambda o: o.on_connect(print)], ids=['broadcast', 'on_connect'])
    def test_several_must_be_named(self, app, use):
        use(setup_sse(app))
        setup_sse(app, SSEBroadcastManager())
        with pytest.raises(ValueError, match='has 2 managers'): setup_sse(app)


async def pass_on(request, call_next): return await call_next(request)

@pytest.mark.parametrize('http', ['h11', 'httptools'])
@pytest.mark.parametrize('mounted', [False, True])
async def test_a_stream_may_cut_its_connection(http, mounted):
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
    async with serve(outer, http=http) as port, httpx.AsyncClient(timeout=BOUND, verify=NO_TLS) as web:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await web.get(f'http://127.0.0.1:{port}{path}')
