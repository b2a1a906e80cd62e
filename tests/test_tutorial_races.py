"The apps that people copy, as they stand in the tutorials: pages that load during writes show all in the end, each thing once"
import asyncio
import json
import re
import signal
import sys
from pathlib import Path

import httpx
import pytest

from cjm_fasthtml_sse.engine.wire import Parser
from tests.contract.servers import NO_TLS, running, uvicorn
from tests.contract.support import BOUND, eventually

ROOT = Path(__file__).parent.parent
WRITES, PAGES = 40, 12

# Tutorial: (page, stream, where to post, what to post, the ids of what is added)
APPS = {'first_app': ('/', '/events', '/add', lambda n: dict(title=f'{n}'), r'todo-\d+'),
        'chat': ('/room/lobby', '/events/lobby', '/say', lambda n: dict(room='lobby', text=f'{n}'), r'said-\d+'),
        'job_board': ('/', '/events', '/start', lambda n: dict(name=f'{n}', rows=1), r'job-[\w-]+'),
        'redis': ('/', '/events', '/add', lambda n: dict(text=f'{n}'), r'_[\w-]{20,}'),
        'htmx4': ('/2/', '/2/events', '/2/say', lambda n: dict(text=f'{n}'), r'said-\d+'),
        'demo': ('/', '/events', '/start', lambda n: dict(folder=''), r'job-\w+')}


def command(name, folder):
    if name == 'demo':
        (folder/'root').mkdir()
        (folder/'root/file').write_text('x')
        return [sys.executable, ROOT/'demo/main.py', '--port', '{port}', '--root', folder/'root']
    page = json.loads((ROOT/f'nbs/tutorials/{name}.ipynb').read_text())
    cells = [''.join(c['source']) for c in page['cells'] if c['cell_type'] == 'code']
    (folder/'main.py').write_text(next(o for o in cells if o.rstrip().endswith('\nserve()')))
    return uvicorn('main:app', '--log-level', 'warning')


class App:
    "Somebody who uses one of the apps"
    def __init__(self, name, server):
        self.page, self.stream, self.add, self.data, self.ids = APPS[name]
        self.http = httpx.AsyncClient(base_url=server.url, timeout=BOUND, verify=NO_TLS, follow_redirects=True)
        self.logs_in = name == 'chat'

    async def __aenter__(self):
        if self.logs_in: await self.http.post('/login', data=dict(name='Ann'))
        return self

    async def __aexit__(self, *exc): await self.http.aclose()

    async def write(self, n): assert (await self.http.post(self.add, data=self.data(n))).status_code < 400
    async def load(self): return (await self.http.get(self.page)).raise_for_status().text
    def shown(self, html): return re.findall(rf'<li\b[^>]*\bid="({self.ids})"', html)

    async def follow(self, has):
        "Load a page, and add to `has` what stands there, and what its stream brings"
        found = self.shown(html := await self.load())
        assert len(found) == len({*found}), 'something stands in the page twice'
        has |= {*found}
        places = re.findall(r'sse-connect="([^"]+)"[^>]*data-sse-cursor="([^"]*)"', html)
        path, after = next(o for o in places if self.stream.endswith(o[0].partition('?')[0]))
        parser = Parser()
        async with self.http.stream('GET', self.stream, params=path.partition('?')[2], headers={'SSE-After': after}) as answer:
            async for data in answer.aiter_bytes():
                for e in parser.feed(data): has |= {*self.shown(e.data)}


@pytest.mark.parametrize('name', APPS)
async def test_pages_that_load_during_writes(tmp_path, name):
    with running(command(name, tmp_path), tmp_path/'log', cwd=tmp_path) as server:
        async with App(name, server) as app:
            tabs, tasks = [], []
            for n in range(WRITES):
                writing = asyncio.create_task(app.write(n))
                if n % (WRITES//PAGES) == 0:
                    tabs.append(set())
                    tasks.append(asyncio.create_task(app.follow(tabs[-1])))
                await writing
            wanted = {*app.shown(await app.load())}
            assert len(wanted) >= min(WRITES, 16)
            def lacking(): return [sorted(wanted-o) for o in tabs], [t.exception() for t in tasks if t.done()]
            await eventually(lambda: all(wanted <= o for o in tabs), lambda: f'lacking: {lacking()}')
            server.signal(signal.SIGTERM)
            await asyncio.wait(tasks, timeout=BOUND)
            server.ends()
        assert 'Traceback' not in server.output
