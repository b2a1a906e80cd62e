"The test client, as users have it: under pytest with asyncio and with anyio, and an app that would hang others"
import asyncio
import subprocess
import sys
from collections import Counter

import pytest
from fasthtml.common import Client, FastHTML, Li
from starlette.responses import Response

from support import BOUND, eventually, no_task_left, tab
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import oob_element, setup_sse
from cjm_fasthtml_sse.testing import SSEClient, assert_oob, oob_elements
from cjm_fasthtml_sse.engine.wire import StreamEnded

APP = '''
from fasthtml.common import *
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import oob_element, setup_sse

app, rt = fast_app()
sse = SSEBroadcastManager()
setup_sse(app, sse)
def added(message): return oob_element('todos', Li(message['data']), 'beforeend')

@rt
def events(req): return sse.stream(req, render=added)

@rt
async def add(title: str): await sse.broadcast('todo:added', title)
'''
TEST = '''
import pytest
from fasthtml.common import Client
from cjm_fasthtml_sse.testing import SSEClient
from main import app, sse
{marks}
{fixture}
async def tabs():
    async with SSEClient(app, '/events') as a, SSEClient(app, '/events') as b: yield a, b

async def test_both(tabs):
    await Client(app).cli.post('/add', data=dict(title='Milk'))
    for tab in tabs:
        await tab.next()
        tab.assert_oob('todos', 'Milk')

async def test_on_the_next_loop():
    async with SSEClient(app, '/events') as tab:
        await sse.broadcast('todo:added', 'Bread')
        await tab.next()
        tab.assert_oob('todos', 'Bread')
        with pytest.raises(AssertionError, match='Nothing for'): tab.assert_oob('todos', 'Milk')

async def test_that_fails():
    async with SSEClient(app, '/events') as tab: await tab.next(timeout=.01)
'''
PLUGINS = {
    'asyncio': dict(args=('-p', 'no:anyio', '-o', 'asyncio_mode=strict'), marks='import pytest_asyncio\npytestmark = pytest.mark.asyncio', fixture='@pytest_asyncio.fixture'),
    'anyio': dict(args=('-p', 'no:asyncio'), fixture='@pytest.fixture',
                  marks="pytestmark = pytest.mark.anyio\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'")}


@pytest.mark.parametrize('plugin', PLUGINS)
def test_under_pytest(plugin, tmp_path):
    "A fixture, several tabs, a loop for each test, and a test that fails fails rather than hangs"
    settings = PLUGINS[plugin]
    (tmp_path/'main.py').write_text(APP)
    (tmp_path/'test_main.py').write_text(TEST.format(**settings))
    (tmp_path/'pytest.ini').write_text('[pytest]')
    res = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *settings['args']], cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert '1 failed, 2 passed' in res.stdout, res.stdout + res.stderr
    assert 'TimeoutError' in res.stdout


async def test_cookies():
    "Who logs in with FastHTML's client listens as the same person; who doesn't is told why nothing comes"
    app, sse = FastHTML(secret_key='secret'), SSEBroadcastManager()
    setup_sse(app, sse)
    @app.post('/login')
    def login(session, name: str): session['name'] = name
    @app.get('/events')
    def events(req, session):
        if 'name' not in session: return Response('Log in first', 403)
        return sse.stream(req, user=session['name'])
    http = Client(app).cli
    await http.post('/login', data=dict(name='ann'))
    async with SSEClient(app, '/events', cookies=http.cookies) as ann, SSEClient(app, '/events') as nobody:
        assert ann.status == 200 and sse.present() == {'ann': 1}
        assert nobody.status == 403
        with pytest.raises(StreamEnded, match='403 Log in first'): await nobody.next(BOUND)


async def test_silent_app(monkeypatch):
    "An app that never answers is an error at once, and nothing of it stays"
    real = asyncio.wait
    async def wait(tasks, **kw): return await real(tasks, **kw | dict(timeout=.01))  # It waits 5 seconds
    monkeypatch.setattr(asyncio, 'wait', wait)
    async def silent(scope, receive, send): await asyncio.Event().wait()
    client = SSEClient(silent)
    with pytest.raises(TimeoutError, match='no response'): await client.__aenter__()
    assert client._task.cancelled()


async def test_app_that_fails():
    "An error of the app reaches the test, before the response as well as in the middle of the stream"
    async def early(scope, receive, send): raise RuntimeError('early')
    with pytest.raises(RuntimeError, match='early'):
        async with SSEClient(early): pass
    async def later(scope, receive, send):
        await send(dict(type='http.response.start', status=200, headers=[]))
        raise RuntimeError('later')
    with pytest.raises(RuntimeError, match='later'):
        async with SSEClient(later) as client:
            with pytest.raises(StreamEnded): await client.next(BOUND)


async def test_a_tab_through_its_life():
    "Several tabs: one stalls and is sent away, one closes, one comes back with its last id"
    manager, ended = SSEBroadcastManager(max_queue_size=2, default_timeout=.01), Counter()
    app = FastHTML()
    setup_sse(app, manager)
    def item(message): return oob_element('items', Li(message['data']), 'beforeend')
    @app.get('/events')
    def events(req): return manager.stream(req, render=item, user=req.query_params['who'])
    @manager.on_disconnect
    def gone(conn): ended[conn.user] += 1
    async with SSEClient(app, '/events?who=slow') as slow, SSEClient(app, '/events?who=quick') as quick:
        async with SSEClient(app, '/events?who=brief') as brief:
            assert len(manager.connections) == 3
            await manager.broadcast('item', 'one')
            for c in slow, quick, brief: assert assert_oob(await c.next(BOUND), 'items').text == 'one'
        await eventually(lambda: ended['brief'] == 1, 'the closed tab is noticed')
        slow.stall()
        for i in range(20):
            await manager.broadcast('item', str(i))
            assert assert_oob(await quick.next(BOUND), 'items').text == str(i)
        await eventually(lambda: ended['slow'] == 1, 'the stalled tab is sent away')
        assert manager.stats()['evicted'] == 1
    async with SSEClient(app, '/events?who=brief', last_event_id=brief.last_event_id) as back:
        assert [assert_oob(await back.next(BOUND), 'items').text for _ in range(20)] == [str(i) for i in range(20)]


@pytest.mark.parametrize(('headers', 'seen'), [({}, {}), (dict(headers=[(b'X-Name', 'Zoë'.encode('latin-1'))]), {'X-Name': 'Zoë'})])
async def test_headers_as_servers_take_them(headers, seen):
    "None at all, or text beyond ASCII, which Starlette writes as Latin-1"
    async def bare(scope, receive, send):
        await send(dict(type='http.response.start', status=200, **headers))
        await send(dict(type='http.response.body', body=b'data: 1\n\n'))
    async with SSEClient(bare) as tab: assert ((await tab.next(BOUND)).data, tab.headers) == ('1', seen)


async def test_an_id_beyond_latin_1():
    "It travels as UTF-8, as from a browser"
    async def echo(scope, receive, send):
        await send(dict(type='http.response.start', status=200, headers=[]))
        await send(dict(type='http.response.body', body=b'data: ' + dict(scope['headers'])[b'last-event-id'] + b'\n\n'))
    async with SSEClient(echo, last_event_id='é☃') as tab: assert (await tab.next(BOUND)).data == 'é☃'


def test_an_attribute_without_a_value_is_one():
    (found,) = oob_elements(Li('Milk', id='todos', hx_swap_oob=True))
    assert (found.target, found.text) == ('todos', 'Milk')


async def test_a_client_that_is_cancelled_while_it_connects_leaves_no_request_behind():
    manager = SSEBroadcastManager()
    def held(app):
        async def slow(message): await asyncio.Event().wait()
        return lambda scope, receive, send: app(scope, receive, slow)
    async with no_task_left():
        connecting = asyncio.create_task(tab(manager, wrap=held).__aenter__())
        await eventually(lambda: manager.connection_count == 1)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError): await connecting
        await eventually(lambda: manager.connection_count == 0)
