"What `setup_sse` puts around an app"

import pytest
from fasthtml.common import EventStream, FastHTML, P, sse_message
from starlette.testclient import TestClient

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.progress import setup_progress
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


class TestOneManager:
    "`setup_sse(app)` returns the app's manager, and makes one only if there is none"

    def test_it_is_returned(self):
        app,manager = FastHTML(secret_key='test'),SSEBroadcastManager()
        assert setup_sse(app, manager) is manager is setup_sse(app)

    def test_one_is_made_once(self):
        app = FastHTML(secret_key='test')
        made = setup_sse(app)
        assert isinstance(made, SSEBroadcastManager) and setup_sse(app) is made

    def test_internal_calls_make_none(self):
        app,manager = FastHTML(secret_key='test'),SSEBroadcastManager()
        setup_dashboard(app, manager, authorise=True)
        setup_progress(app, manager, authorise=True)
        assert setup_sse(app) is manager

    def test_one_given_later_replaces_an_unused_one(self):
        app,manager = FastHTML(secret_key='test'),SSEBroadcastManager()
        setup_sse(app)
        setup_sse(app, manager)
        assert setup_sse(app) is manager

    @pytest.mark.parametrize('use', [lambda o: o.broadcast('n', 1), lambda o: o.on_connect(print)])
    def test_several_must_be_named(self, use):
        app = FastHTML(secret_key='test')
        use(setup_sse(app))
        setup_sse(app, SSEBroadcastManager())
        with pytest.raises(ValueError, match='has 2 managers'): setup_sse(app)
