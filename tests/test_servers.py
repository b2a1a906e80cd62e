"Whole apps in real uvicorn processes: the README's, and one in the older style"
import signal
import sys
from pathlib import Path

import httpx
import pytest
from fasthtml.common import Client
from servers import APPS, Stream, free_port, running, uvicorn

from cjm_fasthtml_sse.testing import SSEClient


def names(events): return [e.event for e in events]


def get(server, path, **params): return httpx.get(f'{server.url}{path}', params=params, timeout=20)


@pytest.fixture
def serve(tmp_path):
    "Starts servers by the name of an app in tests/apps, and ends them after the test"
    from contextlib import ExitStack
    with ExitStack() as stack:
        def start(app, *args, env=None):
            return stack.enter_context(running(uvicorn(app, *args), tmp_path/f'{app.split(":")[0]}.log', env={**(env or {}), 'HOME': str(tmp_path)}))
        yield start


def test_the_twenty_lines_run_as_they_stand(tmp_path):
    readme = (Path(__file__).parent.parent/'README.md').read_text()
    lines = (APPS/'twenty_lines.py').read_text().split('\n', 1)[1].strip()
    assert lines in readme, 'README.md shows other lines than this test runs'
    port = free_port()
    (tmp_path/'main.py').write_text(lines)
    with running([sys.executable, 'main.py'], tmp_path/'log', port=port, env={'PORT': str(port)}, cwd=tmp_path) as server, \
         Stream(server, '/events') as a, Stream(server, '/events') as b:
        for s in (a, b): s.until(lambda es: 'sse:heartbeat' in names(es))
        assert 'sse-connect="/events"' in get(server, '/').text
        httpx.post(f'{server.url}/add', data=dict(title='tea'), timeout=10)
        for s in (a, b): assert '>tea</li>' in s.until(lambda es: len(es)>1)[-1].data
        server.signal(signal.SIGINT)
        code,secs = server.ends()
    assert secs<5 and 'Traceback' not in server.output


async def test_what_a_real_page_adds_runs_as_it_stands(tmp_path, monkeypatch):
    "To the twenty lines: a memory, a count of people, and the monitor"
    readme = (Path(__file__).parent.parent/'README.md').read_text()
    first,added = [readme.partition(f'## {o}\n')[2].partition('```python\n')[2].partition('```')[0] for o in ('A first app', 'What a real page adds')]
    monkeypatch.chdir(tmp_path)
    exec(first.replace('serve()', added), page := {'__name__': 'page'})
    web = Client(page['app']).cli
    html = (await web.get('/')).text
    assert 'data-sse-monitor' in html and 'id="connection-status"' in html
    async with SSEClient(page['app'], '/events', cookies=web.cookies) as ann:
        await ann.until_oob('people', '1 here')
        await web.post('/add', data=dict(title='tea'))
        await ann.until_oob('todos', 'tea', 'beforeend')
        ben = Client(page['app']).cli
        await ben.get('/')
        async with SSEClient(page['app'], '/events', cookies=ben.cookies) as late:
            await late.until_oob('todos', 'tea', 'outerHTML')
            await ann.until_oob('people', '2 here')
        await ann.until_oob('people', '1 here')
