"The apps that people copy, as they stand in the tutorials: pages that load during writes show what the app has in the end, each thing once"
import asyncio
import json
import re
import signal
import sys
from pathlib import Path

import httpx
import pytest
from tests.contract.servers import running, uvicorn
from tests.contract.support import BOUND, eventually

from cjm_fasthtml_sse.engine.wire import Parser

ROOT = Path(__file__).parent.parent
DEMO = [sys.executable, ROOT/'demo/main.py', '--port', '{port}']
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
        (folder/'root').mkdir(exist_ok=True)
        (folder/'root/file').write_text('x')
        return [*DEMO, '--root', folder/'root']
    cells = [''.join(c['source']) for c in json.loads((ROOT/f'nbs/tutorials/{name}.ipynb').read_text())['cells'] if c['cell_type'] == 'code']
    (folder/'main.py').write_text(next(o for o in cells if o.rstrip().endswith('\nserve()')))
    return uvicorn('main:app', '--log-level', 'warning')


def client(server): return httpx.AsyncClient(base_url=server.url, timeout=BOUND, follow_redirects=True)


def shown(html, ids): return re.findall(rf'<li\b[^>]*\bid="({ids})"', html)


class Tab:
    "A page, and what its stream changes in it"
    def __init__(self, http, page, stream, ids): self.http,self.page,self.stream,self.ids,self.has,self.events = http,page,stream,ids,set(),[]

    async def live(self):
        answer = await self.http.get(self.page)
        assert answer.status_code == 200, answer.text
        found = shown(answer.text, self.ids)
        assert len(found) == len(set(found)), 'something stands in the page twice'
        self.has |= set(found)
        place = [o for o in re.findall(r'sse-connect="([^"]+)"[^>]*data-sse-cursor="([^"]*)"', answer.text) if self.stream.endswith(o[0])][0][1]
        await self.listen({'SSE-After': place})

    async def listen(self, headers):
        parser = Parser()
        async with self.http.stream('GET', self.stream, headers=headers) as answer:
            async for data in answer.aiter_bytes():
                for e in parser.feed(data):
                    self.events.append(e)
                    self.has |= set(shown(e.data, self.ids))


@pytest.mark.parametrize('name', APPS)
async def test_pages_that_load_during_writes(tmp_path, name):
    "And the server restarts: a page that comes back gets the state, or the word that it missed something"
    page, stream, add, data, ids = APPS[name]
    cmd = command(name, tmp_path)
    async def log_in(http):
        if name == 'chat': await http.post('/login', data=dict(name='Ann'))
    with running(cmd, tmp_path/'log', cwd=tmp_path) as server:
        async with client(server) as http:
            await log_in(http)
            tabs, tasks = [], []
            async def write(n): assert (await http.post(add, data=data(n))).status_code < 400
            for n in range(WRITES):
                writing = asyncio.create_task(write(n))
                if n % (WRITES//PAGES) == 0:
                    tabs.append(tab := Tab(http, page, stream, ids))
                    tasks.append(asyncio.create_task(tab.live()))
                await writing
            wanted = set(shown((await http.get(page)).text, ids))
            assert len(wanted) >= min(WRITES, 16)
            def lacking(): return f'lacking: {[sorted(wanted-o.has) for o in tabs]} {[t.exception() for t in tasks if t.done()]}'
            await eventually(lambda: all(wanted <= o.has for o in tabs), lacking)
            server.signal(signal.SIGTERM)
            await asyncio.wait(tasks, timeout=BOUND)
            last = [o for o in tabs[0].events if o.id][-1].id
            server.ends()
        assert 'Traceback' not in server.output
    with running(cmd, tmp_path/'log', port=server.port, cwd=tmp_path) as server:
        async with client(server) as http:
            await log_in(http)
            await http.post(add, data=data('after'))
            back = Tab(http, page, stream, ids)
            task = asyncio.create_task(back.listen({'Last-Event-ID': last}))
            wanted = set(shown((await http.get(page)).text, ids))
            await eventually(lambda: wanted and wanted <= back.has or any(e.event == 'sse:gap' for e in back.events), lambda: f'{wanted} {back.events}')
            task.cancel()
