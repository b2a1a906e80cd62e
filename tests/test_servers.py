"The README's first app, in a real uvicorn process"
import signal
import sys
import time
from pathlib import Path

import httpx
from tests.contract.servers import OTHER_APPS, Stream, free_port, running


def test_the_first_app_runs_as_it_stands(tmp_path):
    "Two tabs, and one that comes back after a restart"
    readme = (Path(__file__).parent.parent/'README.md').read_text()
    lines = (OTHER_APPS/'readme.py').read_text().split('\n', 1)[1].strip()
    assert lines in readme, 'README.md shows other lines than this test runs'
    port = free_port()
    (tmp_path/'main.py').write_text(lines)
    with running([sys.executable, 'main.py'], tmp_path/'log', port=port, env={'PORT': str(port)}, cwd=tmp_path) as server:
        def page(): return httpx.get(server.url, timeout=20).text
        with Stream(server, '/events') as a, Stream(server, '/events') as b:
            for s in (a, b): s.until(lambda es: any('id="todos"' in e.data for e in es))
            assert 'sse-connect="/events"' in page()
            httpx.post(f'{server.url}/add', data=dict(title='tea'), timeout=10)
            for s in (a, b): assert '>tea</li>' in s.until(lambda es: '>tea</li>' in es[-1].data)[-1].data
            assert '>tea</li>' in page()
        with Stream(server, '/events', 'before-7') as back: back.until(lambda es: any('>tea</li>' in e.data and 'outerHTML' in e.data for e in es))
        server.signal(signal.SIGINT)
        start = time.monotonic()
        server.ends()
        secs = time.monotonic()-start
    assert secs<5 and 'Traceback' not in server.output
