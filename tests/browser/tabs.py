"Tabs of one browser, what they have got, and three streams for them"
import asyncio
from contextlib import contextmanager, suppress

import boards
import pytest
from fasthtml.common import Div
from playwright.sync_api import TimeoutError as Late
from starlette.requests import Request

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

# What each stream of a tab has brought, from the first message on
RECORD = """
    window.got = {};
    document.addEventListener('DOMContentLoaded', () => window.cjmSSE?.addEventListener('change', ({ detail: { source, url } }) => {
        window.drawn ??= document.querySelector('[data-sse-after]')?.dataset.sseAfter;
        (window.shown ??= []).push(source.state);
        if (got[url]) return;
        const seen = got[url] = [];
        source.addEventListener('message', e => seen.push(e.data));
    }));"""
LEADS = '!!cjmSSE.mux?.carriers'


def connect(url, **kw): return HTMXSSEConnector.create_sse_element(endpoint=url, hidden=True, **kw)


class Tabs(boards.Tabs):
    "Tabs of one browser context"
    def __init__(self, page):
        super().__init__(page)
        page.context.add_init_script(RECORD)

    def leader(self):
        "Wait until one tab leads"
        for _ in range(1000):
            if any(leads := self.all(LEADS)): return self[leads.index(True)]
            self.wait_for_timeout(20)
        raise AssertionError('no tab leads')


@pytest.fixture
def tabs(page): return Tabs(page)


def three_streams(site):
    "Three streams of one manager"
    class Board:
        manager,open,most,requests = SSEBroadcastManager(heartbeat=1., retry=100, replay_size=20000),dict.fromkeys('abc', 0),dict.fromkeys('abc', 0),[]
        sent = {o: [] for o in 'abc'}

        def say(self, n):
            "Broadcast the next `n` messages, one stream after another"
            async def say():
                for _ in range(n): await self.say_one()
            site.loop.run(say())

        async def say_one(self):
            name = 'abc'[sum(map(len, self.sent.values())) % 3]
            text = f'{name}{len(self.sent[name])}'
            self.sent[name].append(text)
            await self.manager.broadcast(f'{name}:said', text)

        @contextmanager
        def flow(self):
            "Broadcast a message each few milliseconds inside the `with` block"
            async def flow():
                while flowing:
                    await self.say_one()
                    await asyncio.sleep(.005)
            flowing = [True]
            task = asyncio.run_coroutine_threadsafe(flow(), site.loop.loop)
            try: yield
            finally:
                flowing.clear()
                task.result(10)

        def expected(self, name, after):
            "What a page shows that was drawn at the cursor `after`"
            seen = int(after.rpartition('-')[2])
            return self.sent[name][(seen+2-'abc'.index(name))//3:]
    board = Board()
    setup_sse(site.app, board.manager)

    @board.manager.on_connect
    def opened(conn):
        name = conn.group.events[0][0]
        board.open[name] += 1
        board.most[name] = max(board.most[name], board.open[name])

    @board.manager.on_disconnect
    def closed(conn): board.open[conn.group.events[0][0]] -= 1

    @site.app.route('/{name}/events')
    def events(req: Request, name: str):
        board.requests.append(name)
        return board.manager.stream(req, render=lambda m: m['data'], events=f'{name}:*')
    site.pages['p'] = lambda: Div(*[connect(f'/{o}/events', after=board.manager.cursor) for o in 'abc'])
    site.pages['two'] = lambda: Div(*[connect(f'/{o}/events', after=board.manager.cursor) for o in 'ab'])
    site.pages['none'] = lambda: 'none'
    return board


@pytest.fixture
def board(site): return three_streams(site)


def answers(tabs):
    "The milliseconds that a further request takes, in each tab"
    return tabs.all("async () => { const start = performance.now(); await (await fetch('/pages/none', {cache: 'no-store'})).text(); return performance.now() - start }")


def complete(tabs, board):
    "Every tab has got all that was sent since it was drawn, in order and once"
    for i,page in enumerate(tabs):
        for name in page.evaluate("Object.keys(got).map(url => url[1])"):
            want = board.expected(name, page.evaluate('drawn'))
            with suppress(Late): page.wait_for_function("([url, last]) => !last || got[url].at(-1) === last", arg=[f'/{name}/events', want and want[-1]])
            assert page.evaluate('url => got[url]', f'/{name}/events') == want, f'tab {i}, {name}'


def comes_back(page, tabs, site, board):
    "`page` is left while messages come, and Back brings it live, with nothing missed"
    page.goto(site.url('none'))
    board.say(30)
    page.go_back(wait_until='commit')
    tabs.active(3)
    board.say(30)
    complete(tabs, board)
