"The README's first app, in a real uvicorn process"
import signal
import sys
from pathlib import Path

from tests.contract.servers import OTHER_APPS, Stream, free_port, running


def test_the_first_app_runs_as_it_stands(tmp_path):
    "Two tabs, and one that comes back after a restart"
    lines = (OTHER_APPS/'readme.py').read_text().split('\n', 1)[1].strip()
    assert lines in (Path(__file__).parent.parent/'README.md').read_text(), 'README.md shows other lines than this test runs'
    port = free_port()
    (tmp_path/'main.py').write_text(lines)
    with running([sys.executable, 'main.py'], tmp_path/'log', port=port, env={'PORT': str(port)}, cwd=tmp_path) as server:
        with Stream(server, '/events') as a, Stream(server, '/events') as b:
            for s in (a, b): s.says('id="todos"')
            assert 'sse-connect="/events"' in server.get('/').text
            server.post('/add', title='tea')
            for s in (a, b): s.says('>tea</li>')
            assert '>tea</li>' in server.get('/').text
        with Stream(server, '/events', 'before-7') as back: back.until(lambda es: any('>tea</li>' in e.data and 'outerHTML' in e.data for e in es))
        server.signal(signal.SIGINT)
        server.ends()
    assert 'Traceback' not in server.output
