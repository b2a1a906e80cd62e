"""Pages that load while others write: what a page shows and what its stream brings are in the end exactly the state, in whatever has happened meanwhile

No row has an id. Routes and drawings are of both kinds, on one process and on two; processes are killed in the middle of writes, and all are restarted. Beside
the end, each list that a page shows at any time is one that there was: no row stands in it twice, and all of them are in order.
"""
import asyncio
import itertools
import os
import signal
from contextlib import asynccontextmanager, suppress

import httpx
import pytest

from tests.contract.live import Browser
from tests.contract.servers import NO_TLS, Remote, running, uvicorn, wait_until
from tests.contract.support import BOUND, eventually, within

PATHS = '/', '/later', '/fresh'


def served(tmp_path, *args, backend='sqlite', port=None, log='log', **env):
    "An app whose rows are in a file; `backend` is an address, `sqlite` the file of the rows"
    if backend=='sqlite': backend = f'sqlite:///{tmp_path}/live.db'
    db = backend.removeprefix('sqlite:///') if backend and backend.startswith('sqlite:') else tmp_path/'live.db'
    env = dict(DB=str(db), BACKEND=backend or '') | env
    if not env['BACKEND']: del env['BACKEND']
    return running(uvicorn('live:app', '--log-level', 'warning', *args), tmp_path/log, port=port, env=env)


def in_order(tab):
    "Each list is one that there was"
    for name in 'plain', 'later':
        ids = [int(o.children[0].partition(' ')[0]) for o in tab[name].children]
        assert ids==sorted({*ids}), f'{name} shows {ids}'


class Crowd:
    "Some write, others load pages and stay"
    def __init__(self, server):
        self.server,self.tabs,self.tasks,self.written,self.stopped,self.writing = server,[],[],0,False,[]
        self.http = httpx.AsyncClient(base_url=server.url, timeout=BOUND, verify=NO_TLS, limits=httpx.Limits(max_connections=None))

    async def __aenter__(self): return self
    async def __aexit__(self, *exc):
        self.stopped = True
        for t in [*self.writing, *self.tasks]: t.cancel()
        await asyncio.gather(*self.writing, *self.tasks, return_exceptions=True)
        await self.http.aclose()

    def begin(self, *whats):
        self.writing = [asyncio.create_task(self.write(n, what)) for n,what in enumerate(whats)]

    async def write(self, n, what):
        for i,path in enumerate(itertools.cycle(what)):
            if self.stopped: return
            try: self.written += (await self.http.post(path, data=dict(text=f'{n}-{i}-{"x"*(i%7)}'))).status_code<400
            except httpx.HTTPError: await asyncio.sleep(.05)  # The server is away. Whether it was written is not known: the file says it
            await asyncio.sleep(.004)  # Between two writes

    async def more(self, n):
        upto = self.written+n
        await eventually(lambda: self.written>=upto, lambda: f'only {self.written} writes')

    async def come(self, path):
        "Load a page, and stay"
        tab = None
        while tab is None or tab.status!=200:
            tab = await self.load(path)
            if tab is None: await asyncio.sleep(.05)  # The server is away: a visitor tries again
        self.tabs.append(tab)
        in_order(tab)
        self.tasks.append(asyncio.create_task(self.stay(tab)))
        return tab

    async def load(self, path):
        browser = Browser(Remote(self.server))
        tab = None
        with suppress(AssertionError, AttributeError):  # Its worker was killed
            tab = await browser.tab(path, checks=in_order)
            assert tab.status==200
        return tab

    async def stay(self, tab):
        async with tab.following(): await asyncio.Event().wait()

    async def end(self):
        "Nobody writes any more: does each page show the state?"
        self.stopped = True
        await asyncio.gather(*self.writing)
        rows = (await self.http.get('/state')).json()
        items = [f'{id} {text}' for id,text in rows]
        want = dict(plain=items, later=items, total=[str(len(rows)), str(sum(len(text) for _,text in rows))])
        def shown(tab): return {o: tab.texts('td' if o=='total' else 'li', o) for o in want}
        def wrong(): return [o for o in self.tabs if shown(o)!=want]
        for t in self.tasks: assert not t.done(), t.exception()
        await eventually(lambda: not wrong() or any(o.faults for o in self.tabs), lambda: f'of {len(self.tabs)} pages {len(wrong())} differ: {differ(shown(wrong()[0]), want)}, {wrong()[0].statuses}')
        for o in self.tabs: assert not o.faults, o.faults
        assert sum(o.asked_again for o in self.tabs)<=len(self.tabs), 'changes seldom miss a page'
        assert len(items)>3


def differ(shown, want): return {k: (sorted({*shown[k]}-{*want[k]}), sorted({*want[k]}-{*shown[k]}), len(shown[k])) for k in want if shown[k]!=want[k]}


WRITERS = ['/add', '/add_later', '/edit', '/drop', '/add', '/drop'], ['/add_later', '/edit', '/add', '/drop']


@pytest.mark.parametrize('workers, backend', [(1, None), (2, 'sqlite')], ids=['memory', 'two workers on a file'])
async def test_pages_that_load_during_writes(tmp_path, workers, backend):
    "Each page, of eighty"
    args = ('--workers', '2') if workers==2 else ()
    with served(tmp_path, *args, backend=backend) as server:
        async with Crowd(server) as crowd:
            crowd.begin(*WRITERS)
            for n in range(40):
                await asyncio.gather(*[crowd.come(PATHS[(n+k)%3]) for k in range(2)])
                await crowd.more(2)
            await crowd.end()
        assert 'Traceback' not in server.output, server.output[-3000:]


async def test_over_each_store(tmp_path, store):
    with served(tmp_path, '--workers', '2', backend=store.address) as server:
        async with Crowd(server) as crowd:
            crowd.begin(*WRITERS)
            for n in range(20):
                await asyncio.gather(*[crowd.come(PATHS[(n+k)%3]) for k in range(2)])
                await crowd.more(2)
            await crowd.end()
        assert 'Traceback' not in server.output, server.output[-3000:]


async def test_kills_and_restarts_during_writes(tmp_path):
    "Whatever is killed, and wherever a page comes back to"
    with served(tmp_path, '--workers', '2') as one:
        async with Crowd(one) as crowd:
            crowd.begin(*WRITERS)
            for n in range(9): await crowd.come(PATHS[n%3])
            await crowd.more(30)
            for pid in one.children():
                os.kill(pid, signal.SIGKILL)
                for n in range(6): await crowd.come(PATHS[n%3])
                await crowd.more(30)
            one.signal(signal.SIGTERM)
            await asyncio.to_thread(one.ends)
            with served(tmp_path, '--workers', '2', port=one.port, log='log2') as two:
                for n in range(9): await crowd.come(PATHS[n%3])
                await crowd.more(30)
                await crowd.end()
                for t in crowd.tasks: t.cancel()
                await asyncio.gather(*crowd.tasks, return_exceptions=True)
    for o in one,two: assert 'Traceback' not in o.output, o.output[-3000:]


@asynccontextmanager
async def two_workers(tmp_path, backend='sqlite', **env):
    with served(tmp_path, '--workers', '2', backend=backend, **env) as server:
        wait_until(lambda: len({server.get('/here').json()['pid'] for _ in range(8)})==2, 'both workers answer')
        yield server


async def on_both(crowd, path='/'):
    "A page of each worker"
    found = {}
    async with within('both workers answer'):
        while len(found)<2:
            for tab in await asyncio.gather(*[crowd.load(path) for _ in range(4)]): found[tab.root.find('title')[0].text] = tab
    return [*found.values()]


async def test_equal_drawings_of_two_workers(tmp_path, store):
    "Send nothing: a page of one follows at the other, and comes back to either"
    async with two_workers(tmp_path, store.address) as server, Crowd(server) as crowd:
        for n in range(20): await crowd.http.post('/add', data=dict(text=f'{n}'))
        tabs = await on_both(crowd)
        assert tabs[0].body()['views'][0][2]==tabs[1].body()['views'][0][2]
        for _ in range(5):
            for o in tabs:
                async with o.following(): pass
        assert all(o.wholes==o.updates==[] for o in tabs)
        await crowd.http.post('/nothing')
        await crowd.http.post('/add', data=dict(text='last'))
        for o in tabs:
            async with o.following(): await eventually(lambda o=o: o.texts('li', 'plain')[-1].endswith('last'), 'what is new')


async def test_a_page_of_another_worker(tmp_path):
    "Who has written at one worker, and is led to a page of the other one, sees it there at once, though that one has just drawn"
    with served(tmp_path) as one, served(tmp_path, log='log2') as two:
        async with Crowd(one) as crowd, Crowd(two) as other:
            for n,path in zip(range(30), itertools.cycle(PATHS)):
                await other.http.get(path)
                await crowd.http.post('/add_later', data=dict(text=f'n{n}'))
                assert (await other.http.get(path)).text.count(f' n{n}</li>')==2, (n, path)


async def test_restart_with_another_drawing(tmp_path):
    "Pages of before it get the new whole, of that one element"
    with served(tmp_path) as one:
        async with Crowd(one) as crowd:
            for n in range(5): await crowd.http.post('/add', data=dict(text=f'{n}'))
            tab = await crowd.come('/')
            await eventually(lambda: tab.begun, 'its stream begins')
            one.signal(signal.SIGTERM)
            await asyncio.to_thread(one.ends)
            with served(tmp_path, port=one.port, log='log2', CHANGED='new'):
                await eventually(lambda: tab['kind'].text=='new', 'what the new function draws')
                assert tab.wholes==['kind[]'] and tab.updates==[]
                for t in crowd.tasks: t.cancel()


async def test_users_of_two_workers(tmp_path, store):
    "Who is here, wherever they are; the end of a user's streams reaches both"
    async with two_workers(tmp_path, store.address) as server, Crowd(server) as crowd:
        tabs = []
        for n in range(6):
            browser = Browser(Remote(server))
            await browser.ask(f'/login?name=u{n%3}')
            tab = await browser.tab('/inbox')
            tabs.append(tab)
            crowd.tasks.append(asyncio.create_task(crowd.stay(tab)))
        await eventually(lambda: all(o['people'].text=='u0 u1 u2' for o in tabs), lambda: [o['people'].text for o in tabs])
        await crowd.http.post('/log_out', data=dict(name='u1'))
        def ended(): return [bool(o.statuses) for o in tabs]
        await eventually(lambda: ended()==[False, True, False]*2, ended)
