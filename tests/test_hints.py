"Where an app lacks its set-up, the log says so; where it has it, the log is silent"
import pytest
from fasthtml.common import FastHTML
from starlette.testclient import TestClient

from cjm_fasthtml_sse import hints
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import SSEEventDispatcher
from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.testing import SSEClient
from cjm_fasthtml_sse.updater import SSEElementUpdater


@pytest.fixture
def given(monkeypatch, caplog):
    "The hints of this test"
    monkeypatch.setattr(hints, '_given', set())
    return lambda: [r.getMessage() for r in caplog.records if r.name=='cjm_fasthtml_sse.hints']


def app_with(sse, setup):
    app = FastHTML(secret_key='test')
    setup(app)
    @app.route('/')
    def home(): return HTMXSSEConnector.create_sse_element(endpoint='/events')
    @app.get('/events')
    def events(req):
        sse.stream(req)
        return 'made'
    return app


class TestSetup:
    def visit(self, setup):
        sse = SSEBroadcastManager()
        http = TestClient(app_with(sse, lambda app: setup(app, sse)))
        for path in ('/', '/events')*2: assert http.get(path).status_code == 200

    def test_complete(self, given):
        "Nothing is said of an app that is set up"
        self.visit(setup_sse)
        assert not given()

    def test_forgotten(self, given):
        "The page and the stream are named, once"
        self.visit(lambda app, sse: None)
        page, stream = given()
        assert "The page '/' connects to a stream, and has no script" in page and 'setup_sse(app, sse)' in page
        assert 'test_hints.py:' in stream and "'/events' has a manager that `setup_sse` was not called for" in stream

    def test_other_manager(self, given):
        "The app knows some manager, and not this one"
        self.visit(lambda app, sse: setup_sse(app))
        assert len(given()) == 1 and 'the app was not set up with' in given()[0]

    def test_older_style(self, given):
        "A page with the client has what it needs; its stream by `stream` does not"
        self.visit(lambda app, sse: insert_htmx_sse_ext(app.hdrs))
        assert len(given()) == 1 and "stream '/events'" in given()[0]


class TestUnhandled:
    async def broadcast(self, given, *types, **kw):
        sse = SSEBroadcastManager()
        app = FastHTML(secret_key='test')
        setup_sse(app, sse)
        @app.get('/events')
        def events(req): return sse.stream(req, **kw)
        async with SSEClient(app, '/events'):
            for t in types: await sse.broadcast(t, 1)
        return given()

    @pytest.mark.parametrize('kind', [SSEElementUpdater, SSEEventDispatcher])
    async def test_names_the_nearest(self, given, kind):
        "A thousand names from outside are one hint"
        render = kind()
        getattr(render, 'register', None) and render.register('todo:added')(lambda data: None) or render.on('todo:added')(lambda event: None)
        said = await self.broadcast(given, 'todo:added', *[f'todo:aded{n}' for n in range(1000)], render=render)
        assert len(said) == 1 and 'test_hints.py:' in said[0] and "'todo:aded0'" in said[0] and "did you mean 'todo:added'?" in said[0]

    async def test_default_handler(self, given):
        "Handles all"
        updater = SSEElementUpdater()
        updater.set_default_handler(lambda t, data: None)
        assert not await self.broadcast(given, 'anything', render=updater)

    async def test_somebody_elses(self, given):
        "A stream that asks for one user's events says nothing about another's"
        updater = SSEElementUpdater()
        updater.register('user:*:note')(lambda data: None)
        assert not await self.broadcast(given, 'user:bob:note', render=updater, events='user:ann:**')

    @pytest.mark.parametrize('render', [None, lambda m: None])
    async def test_other_renderers(self, given, render):
        "Nobody knows what a function makes of it, and JSON is for scripts"
        assert not await self.broadcast(given, 'anything', render=render)
