"The test client, as users have it: under pytest with asyncio and with anyio, and an app that would hang others"
import asyncio
import subprocess
import sys

import pytest
from fasthtml.common import Li

from cjm_fasthtml_sse.engine.wire import StreamEnded
from cjm_fasthtml_sse.testing import SSEClient, oob_elements
from tests.contract.clock import timeless
from tests.contract.support import BOUND, no_task_left

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
        await tab.next(30)
        tab.assert_oob('todos', 'Milk')

async def test_on_the_next_loop():
    async with SSEClient(app, '/events') as tab:
        await sse.broadcast('todo:added', 'Bread')
        await tab.next(30)
        tab.assert_oob('todos', 'Bread')
        with pytest.raises(AssertionError, match='Nothing for'): tab.assert_oob('todos', 'Milk')

async def test_that_fails():
    async with SSEClient(app, '/events') as tab: await tab.next(timeout=.01)
'''
PLUGINS = {
    'asyncio': dict(args=('-p', 'no:anyio', '-o', 'asyncio_mode=strict'), fixture='@pytest_asyncio.fixture',
                    marks='import pytest_asyncio\npytestmark = pytest.mark.asyncio'),
    'anyio': dict(args=('-p', 'no:asyncio'), fixture='@pytest.fixture',
                  marks="pytestmark = pytest.mark.anyio\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'")}


@pytest.mark.parametrize('plugin', PLUGINS)
def test_under_pytest(plugin, tmp_path):
    "A fixture, several tabs, a loop for each test, and a test that fails fails rather than hangs"
    (tmp_path/'main.py').write_text(APP)
    (tmp_path/'test_main.py').write_text(TEST.format(**PLUGINS[plugin]))
    (tmp_path/'pytest.ini').write_text('[pytest]')
    res = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *PLUGINS[plugin]['args']], cwd=tmp_path,
                         capture_output=True, text=True, timeout=150)
    assert '1 failed, 2 passed' in res.stdout and 'TimeoutError' in res.stdout, res.stdout+res.stderr


@timeless
async def test_silent_app():
    "An app that never answers is an error after five seconds, and nothing of it stays"
    async def silent(scope, receive, send): await asyncio.Event().wait()
    async with no_task_left():
        with pytest.raises(TimeoutError, match='no response'): await SSEClient(silent).__aenter__()


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


@pytest.mark.parametrize(('headers', 'seen'), [({}, {}), (dict(headers=[(b'X-Name', 'Zoë'.encode('latin-1'))]), {'X-Name': 'Zoë'})])
async def test_headers_as_servers_take_them(headers, seen):
    "None at all, or text beyond ASCII, which Starlette writes as Latin-1; an id travels as UTF-8, as from a browser"
    async def echo(scope, receive, send):
        await send(dict(type='http.response.start', status=200, **headers))
        await send(dict(type='http.response.body', body=b'data: ' + dict(scope['headers'])[b'last-event-id'] + b'\n\n'))
    async with SSEClient(echo, last_event_id='é☃') as tab: assert ((await tab.next(BOUND)).data, tab.headers) == ('é☃', seen)


def test_an_attribute_without_a_value_is_one():
    (found,) = oob_elements(Li('Milk', id='todos', hx_swap_oob=True))
    assert (found.target, found.text) == ('todos', 'Milk')


async def test_cancelled_while_it_connects():
    "It leaves no request behind"
    begun = asyncio.Event()
    async def slow(scope, receive, send):
        begun.set()
        await asyncio.Event().wait()
    async with no_task_left():
        connecting = asyncio.create_task(SSEClient(slow).__aenter__())
        await asyncio.wait_for(begun.wait(), BOUND)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError): await connecting
