"The apps that people copy, as they stand in the tutorials: pages that load during writes show all in the end, each thing once"
import asyncio
import json
import os
import re
import signal
import sys
from itertools import count
from pathlib import Path

import httpx
import pytest

from cjm_fasthtml_sse.engine.wire import Parser
from tests.contract.servers import running, uvicorn
from tests.contract.support import BOUND, eventually
from tests.live_tabs import LiveTab, client

ROOT = Path(__file__).parent.parent
WRITES, PAGES = 40, 12

# Tutorial: (page, stream, where to post, what to post, the ids of what is added)
APPS = {'htmx4': ('/2/', '/2/events', '/2/say', lambda n: dict(text=f'{n}'), r'said-\d+')}

# Tutorial: (page, where to post, what to post, the live elements that show it, what each thing shows in the end)
LIVE_APPS = {'first_app': ('/', '/add', lambda n: dict(title=f'No. {n}'), 'todo_list', r'No\. \d+'),
             'chat': ('/room/lobby', '/say', lambda n: dict(room='lobby', text=f'No. {n}'), 'talk', r'Ann: No\. \d+'),
             'job_board': ('/', '/start', lambda n: dict(name=f'No. {n}', rows=1), 'line', r'No\. \d+(?=.* Completed)'),
             'workers': ('/', '/add', lambda n: dict(text=f'No. {n}'), 'note_list', r'No\. \d+'),
             'workers, Redis': ('/', '/add', lambda n: dict(text=f'No. {n}'), 'note_list', r'No\. \d+'),
             'demo': ('/', '/start', lambda n: dict(folder=''), 'board', r'#job-\w+')}


def command(name, folder):
    if name == 'demo':
        (folder/'root').mkdir()
        (folder/'root/file').write_text('x')
        return [sys.executable, ROOT/'demo/main.py', '--port', '{port}', '--root', folder/'root']
    name, _, which = name.partition(', ')
    apps = [o for o in cells_of(name) if o.rstrip().endswith('\nserve()')]
    (folder/'main.py').write_text(apps[-1 if which else 0])
    return uvicorn('main:app', '--log-level', 'warning')


def cells_of(name):
    page = json.loads((ROOT/f'nbs/tutorials/{name}.ipynb').read_text())
    return [''.join(c['source']) for c in page['cells'] if c['cell_type'] == 'code']


class App:
    "Somebody who uses one of the apps"
    def __init__(self, name, server):
        self.page, self.stream, self.add, self.data, self.ids = APPS[name]
        self.http = client(server)

    async def __aenter__(self): return self
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


@pytest.mark.parametrize('name', LIVE_APPS)
async def test_live_pages_that_load_during_writes(tmp_path, name):
    "All show the same in the end, in the same order, and what a new page does"
    page, add, data, *what = LIVE_APPS[name]
    with running(command(name, tmp_path), tmp_path/'log', cwd=tmp_path) as server:
        async with client(server) as http:
            if name == 'chat': await http.post('/login', data=dict(name='Ann'))
            await http.get(page)  # The browser gets its cookie
            tabs, tasks = [], []
            for n in range(WRITES):
                writing = asyncio.create_task(http.post(add, data=data(n)))
                if n % (WRITES//PAGES) == 0:
                    tabs.append(LiveTab(http, page, *what))
                    tasks.append(asyncio.create_task(tabs[-1].live()))
                assert (await writing).status_code < 400
            def state(): return [len(o.seen) for o in tabs], [t.exception() for t in tasks if t.done()]
            wanted = 24 if name == 'demo' else WRITES  # So many jobs may wait and run
            try:
                await eventually(lambda: all(len(o.seen) >= wanted for o in tabs), lambda: f'not {wanted}: {state()}')
                late = await LiveTab(http, page, *what).load()
                assert len({*late.seen}) == len(late.seen) >= wanted
                await eventually(lambda: all(o.seen == late.seen for o in tabs), lambda: f'{late.seen}: {[o.seen for o in tabs]}')
            finally:
                for t in tasks: t.cancel()
                await asyncio.wait(tasks)
        server.signal(signal.SIGTERM)
        await asyncio.to_thread(server.ends)
    assert 'Traceback' not in server.output


# --- Several workers on a file, which are killed and restarted in the middle of writes

def shop(folder):
    "The recipes of `sse.transaction()` and `sse.reading()`, as one app with much in stock"
    cells = cells_of('recipes')
    code, = (o for o in cells if 'def buy(' in o)
    page, = (o for o in cells if 'def in_all(' in o)
    write_app(folder, code, page, {"Path(folder.name)/'shop.db'": "Path('shop.db')", "('cake', 3)": "('cake', 100000)"})

def write_app(folder, code, page, changes):
    for a, b in changes.items():
        assert a in code
        code = code.replace(a, b)
    imports = 'from fasthtml.common import *\nfrom cjm_fasthtml_sse.common import *\n'
    (folder/'main.py').write_text(f'{imports}{code}\n{page}')

def notes(folder): command('workers', folder)
def a_cake(): return dict(id='cake', n=1)

def is_a_row(seen, now):
    "Each number in its place, down to the one that is there now"
    return [*map(int, seen)] == [*range(int(seen[0]), int(now[0])-1, -1)]

# App: how to make it, where to post and what, what a page or a message shows, and whether what a tab has seen is right
numbers = count()
ON_A_FILE = {'workers': (notes, '/add', lambda: dict(text=f'No. {next(numbers)}'), r'No\. \d+', lambda seen, now: seen == now),
             'recipes': (shop, '/buy', a_cake, r'cake: (\d+) left', is_a_row),
             'recipes, the log': (shop, '/buy', a_cake, r'id="sale-(\d+)"', lambda seen, now: seen == now),
             'recipes, the sum': (shop, '/buy', a_cake, r'(\d+) in all', is_a_row)}


class Tab:
    "A page and its stream, which comes back when its worker is gone"
    def __init__(self, http, shows): self.http, self.shows, self.seen, self.last = http, shows, [], ''

    async def live(self):
        while not (html := await self.load()): await asyncio.sleep(.05)
        self.seen += re.findall(self.shows, html)
        (path, after), = re.findall(r'sse-connect="([^"]+)"[^>]*data-sse-cursor="([^"]*)"', html)
        while True:
            try: await self.listen(path, {'Last-Event-ID': self.last} if self.last else {'SSE-After': after})
            except httpx.HTTPError: pass
            await asyncio.sleep(.05)

    async def load(self):
        try: return (await self.http.get('/')).raise_for_status().text
        except httpx.HTTPError: return ''

    async def listen(self, path, headers):
        parser = Parser()
        async with self.http.stream('GET', path, headers=headers) as answer:
            answer.raise_for_status()
            async for data in answer.aiter_bytes():
                for e in parser.feed(data):
                    if re.search('<ul[^>]*outerHTML', e.data): self.seen.clear()  # The snapshot of a first visit takes the place of the list
                    self.seen += re.findall(self.shows, e.data)
                    self.last = e.id or self.last


@pytest.mark.parametrize('name', ON_A_FILE)
async def test_kills_and_restarts_during_writes(tmp_path, name):
    "Whatever is killed: each tab has what is in the file, once, and in order. Pages are loaded all the time"
    make, add, data, shows, is_right = ON_A_FILE[name]
    make(tmp_path)
    cmd = uvicorn('main:app', '--workers', '2', '--log-level', 'warning')
    def server(port=None): return running(cmd, tmp_path/'log', cwd=tmp_path, port=port, env=dict(SECRET_KEY='not-a-secret'))
    tabs, tasks, written, stop = [], [], 0, asyncio.Event()
    async def write():
        nonlocal written
        while not stop.is_set():
            try: written += (await http.post(add, data=data())).status_code < 400
            except httpx.HTTPError: await asyncio.sleep(.05)  # Whether it was written is not known: the file says it
    async def come():
        while not stop.is_set():
            tabs.append(LiveTab(http, '/', 'note_list', shows) if name == 'workers' else Tab(http, shows))
            tasks.append(asyncio.create_task(tabs[-1].live()))
            await asyncio.sleep(.2)
    async def more(n=30):
        upto = written+n
        await eventually(lambda: written >= upto, lambda: f'only {written} writes')
    with server() as one:
        async with httpx.AsyncClient(base_url=one.url, timeout=BOUND, limits=httpx.Limits(max_connections=None)) as http:
            await http.get('/')  # The browser gets its cookie
            try:
                doing = [asyncio.create_task(o()) for o in (write, write, come)]
                await more()
                for pid in one.children():
                    os.kill(pid, signal.SIGKILL)
                    await more()
                one.signal(signal.SIGTERM)
                await asyncio.to_thread(one.ends)
                with server(one.port):
                    await more()
                    stop.set()
                    await asyncio.gather(*doing)
                    now = re.findall(shows, (await http.get('/')).text)
                    def wrong(): return [o.seen for o in tabs if not (o.seen and is_right(o.seen, now))]
                    await eventually(lambda: not wrong(), lambda: f'of {len(tabs)} tabs {len(wrong())} differ, such as {wrong()[0]}, from {now}')
            finally:
                for t in (*doing, *tasks): t.cancel()
                await asyncio.wait([*doing, *tasks])
    assert 'Traceback' not in one.output


# --- A table that announces itself, and a program that writes beside the app

WRITER = '''
import random, sqlite3, sys
db, rng = sqlite3.connect(sys.argv[1], timeout=20), random.Random(1)
for n in range(300):
    with db:
        if n % 100 == 50: db.executemany('insert into todo(title) values(?)', [(f'many {n}-{i}',) for i in range(250)])
        db.execute('insert into todo(title) values(?)', (f'added {n}',))
        db.execute('update todo set title=? where id=(select id from todo order by random() limit 1)', (f'changed {n}',))
        if n % 3 == 0: db.execute('delete from todo where id=(select id from todo order by random() limit 1)')
        if n % 100 == 99: db.execute('delete from todo where id%2')
db.execute("insert into todo(title) values('the end')")
db.commit()
'''


class Copy:
    "What stands in a page: its list, changed as the browser does it"
    ROW = r'<li\b[^>]*\bid="todo-(\d+)"[^>]*>([^<]*)'
    def __init__(self, http): self.http, self.rows = http, {}

    async def live(self):
        html = (await self.http.get('/')).raise_for_status().text
        self.rows = dict(re.findall(self.ROW, html))
        (path, after), = re.findall(r'sse-connect="([^"]+)"[^>]*data-sse-cursor="([^"]*)"', html)
        parser = Parser()
        async with self.http.stream('GET', path, headers={'SSE-After': after}) as answer:
            async for data in answer.aiter_bytes():
                for e in parser.feed(data): self.take(e.data)

    def take(self, html):
        found = dict(re.findall(self.ROW, html))
        if re.search('<ul[^>]*outerHTML', html): self.rows = found
        elif 'hx-swap-oob="delete' in html:
            for id in found: self.rows.pop(id, None)
        else: self.rows |= found if 'beforeend' in html else {k: v for k, v in found.items() if k in self.rows}


async def test_a_table_that_announces_itself(tmp_path):
    "A program with plain `sqlite3` inserts, changes and deletes, one by one and many at once: each page is equal to the table"
    cells = cells_of('recipes')
    code, = (o for o in cells if 'async def changed(' in o)
    write_app(tmp_path, f'import sqlite3,tempfile\nfrom pathlib import Path\n{code}', '', {"Path(folder.name)/'todos.db'": "Path('todos.db')"})
    cmd = uvicorn('main:app', '--workers', '2', '--log-level', 'warning')
    with running(cmd, tmp_path/'log', cwd=tmp_path, env=dict(SECRET_KEY='not-a-secret')) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=BOUND, limits=httpx.Limits(max_connections=None)) as http:
            writer = await asyncio.create_subprocess_exec(sys.executable, '-c', WRITER, tmp_path/'todos.db')
            tabs, tasks = [], []
            try:
                while writer.returncode is None or len(tabs) < PAGES:
                    tabs.append(Copy(http))
                    tasks.append(asyncio.create_task(tabs[-1].live()))
                    await asyncio.wait({asyncio.ensure_future(writer.wait())}, timeout=.2)
                assert writer.returncode == 0
                now = dict(re.findall(Copy.ROW, (await http.get('/')).text))
                assert 'the end' in now.values()
                await eventually(lambda: all(o.rows == now for o in tabs),
                                 lambda: f'{[len(o.rows.items() ^ now.items()) for o in tabs]} of {len(now)} rows differ')
            finally:
                if writer.returncode is None: writer.kill()
                for t in tasks: t.cancel()
                await asyncio.wait(tasks)


async def test_a_live_query(tmp_path):
    "The same program, which also gives rows away: the list of each owner is equal to the table, in both workers"
    code, = (o for o in cells_of('recipes') if "@sse.live(table='task'" in o)
    write_app(tmp_path, f'import tempfile\nfrom pathlib import Path\n{code}', '', {"Path(folder.name)/'tasks.db'": "Path('tasks.db')"})
    gives = "        db.execute('update task set owner=? where id=(select id from task order by random() limit 1)', (rng.choice(['Ann', 'Bob']),))\n"
    program = WRITER.replace('todo', 'task').replace('        if n % 3 == 0', f'{gives}        if n % 3 == 0')
    cmd = uvicorn('main:app', '--workers', '2', '--log-level', 'warning')
    with running(cmd, tmp_path/'log', cwd=tmp_path, env=dict(SECRET_KEY='not-a-secret')) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=BOUND, limits=httpx.Limits(max_connections=None)) as http:
            await http.get('/')  # The browser gets its cookie
            writer = await asyncio.create_subprocess_exec(sys.executable, '-c', program, tmp_path/'tasks.db')
            tabs, tasks = [], []
            def tab(): return LiveTab(http, f"/?owner={['Ann', 'Bob'][len(tabs)%2]}", 'tasks', r'.+')
            try:
                while writer.returncode is None or len(tabs) < PAGES:
                    tabs.append(tab())
                    tasks.append(asyncio.create_task(tabs[-1].live()))
                    await asyncio.wait({asyncio.ensure_future(writer.wait())}, timeout=.2)
                assert writer.returncode == 0
                ann, bob = [(await LiveTab(http, f'/?owner={o}', 'tasks', r'.+').load()).seen for o in ('Ann', 'Bob')]
                assert 'the end' in ann[0] and ann and bob
                await eventually(lambda: all(o.seen == (bob if n%2 else ann) for n, o in enumerate(tabs)),
                                 lambda: f'{[o.seen for o in tabs]} are not {ann} and {bob}; {[t.exception() for t in tasks if t.done()]}')
            finally:
                if writer.returncode is None: writer.kill()
                for t in tasks: t.cancel()
                await asyncio.wait(tasks)
    assert 'Traceback' not in server.output
    assert 'Traceback' not in server.output
