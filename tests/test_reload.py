"Files are saved while pages are open: `serve(reload=True)`, which is FastHTML's default, and `live=True`"
import time

import httpx
import pytest
import sys
from servers import Stream, free_port, running

APP = '''
from fasthtml.common import *
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import oob_swap, setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

app, rt = fast_app({live})
sse = SSEBroadcastManager()
setup_sse(app, sse)

def state(): return oob_swap(Div('the first', id='version'))

@rt
def events(req): return sse.stream(req, snapshot=state)

@rt
def index(): return state(), HTMXSSEConnector.create_sse_element(endpoint=events, hidden=True)

serve({serve})
'''


@pytest.mark.parametrize('live, serve', [('', 'reload=True'), ('live=True', '')], ids=['reload', 'live'])
def test_a_file_is_saved(tmp_path, live, serve):
    "The stream ends politely, which is why the reload need not wait for it; the page comes back and is told what the new process shows"
    main,port = tmp_path/'main.py',free_port()
    main.write_text(APP.format(live=live, serve=serve))
    with running([sys.executable, 'main.py'], tmp_path/'log', port=port, env={'PORT': str(port)}, cwd=tmp_path) as server:
        with Stream(server, '/events') as page:
            page.until(lambda events: any('the first' in e.data for e in events))
            main.write_text(main.read_text().replace('the first', 'the second'))
            page.until_end(30)
        last = page.events[-1]
        assert last.event=='sse:heartbeat' and last.retry, server.output
        end = time.monotonic()+30
        while True:
            try:
                if 'the second' in httpx.get(server.url, timeout=10).text: break
            except httpx.TransportError: pass
            assert time.monotonic()<end, server.output
            time.sleep(.05)
        with Stream(server, '/events', last_event_id=last.id) as page: page.until(lambda events: any('the second' in e.data for e in events))
        assert 'Traceback' not in server.output
