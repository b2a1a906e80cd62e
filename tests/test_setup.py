"What `setup_sse` puts around an app"

import pytest
from fasthtml.common import EventStream, FastHTML, P, sse_message
from starlette.testclient import TestClient

from cjm_fasthtml_sse.engine.messages import BackendError
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.engine.wire import StreamEnded


def older_app(error=None, **kw):
    "An app with a stream in the older style, whose queue raises `error`"
    app = FastHTML(secret_key='test', **kw)
    async def messages():
        yield sse_message('one')
        raise error or StreamEnded('evicted')
    @app.route('/stream')
    def stream(): return EventStream(messages())
    return app


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


def test_a_start_that_fails_closes_what_was_opened():
    seen = []
    class Refused(Manager):
        async def open(self): raise BackendError('wrong password')
    app = FastHTML(secret_key='test')
    for manager in Refused([]), Manager(seen): setup_sse(app, manager)  # The one that was named last is opened first
    with pytest.raises(BackendError, match='wrong password'), TestClient(app): pass
    assert seen == ['manager']
