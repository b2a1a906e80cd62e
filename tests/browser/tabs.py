"Tabs of one browser, what they show, and three streams for them"
import asyncio
import os
import re
import signal
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path

import pytest
from fasthtml.common import Div
from playwright.sync_api import TimeoutError as Late
from starlette.requests import Request

from bidi import Firefox

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
each_browser = pytest.mark.parametrize('browser', ['chromium', 'firefox'], indirect=True)
DIRECT = re.compile(r'\[sse\] direct: (.+) \S+')  # What our client logs with each stream that has a connection of its own


@contextmanager
def new_context(browser, **options):
    "A browser context. A direct stream in any of its pages fails the test, unless the reason for it is in `context.direct`"
    context,seen = browser.new_context(**options),[]
    context.direct = set()
    context.on('console', lambda m: seen.append(m.text) if DIRECT.match(m.text) else None)
    try: yield context
    finally: context.close()
    others = [o for o in seen if DIRECT.match(o)[1] not in context.direct]
    assert not others, f'direct streams that were not asked for: {others}'


def connect(url, **kw): return HTMXSSEConnector.create_sse_element(endpoint=url, hidden=True, **kw)


class Tabs(list):
    "Tabs of one browser context"
    def __init__(self, page):
        self.context,self.errors,self.console = page.context,page.errors,[]
        page.context.add_init_script(RECORD)
        self.wait_for_timeout = page.wait_for_timeout

    def open(self, url, n=1, **kw):
        "Open `n` tabs"
        for _ in range(n):
            page = self.context.new_page(**kw)
            page.on('pageerror', lambda e: self.errors.append(str(e)))
            page.on('console', lambda m: self.console.append((m.type, m.text)))
            self.append(page)
            page.goto(url)
        return self[-1]

    def others(self, page):
        "All tabs but one"
        others = copy(self)
        others.remove(page)
        return others

    def all(self, script, *args):
        "What `script` gives in each tab"
        return [page.evaluate(script, *args) for page in self]

    def wait(self, script, arg=None):
        "Wait until `script` is true in all tabs"
        for page in self: page.wait_for_function(script, arg=arg)

    def active(self, n):
        "Wait until all tabs have `n` streams that are open"
        self.wait('n => cjmSSE.sources.length === n && cjmSSE.sources.every(s => s.state === "active")', n)

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


def processes(browser):
    "Process ids of its tabs"
    if isinstance(browser, Firefox): return browser.processes()
    cdp = browser.new_browser_cdp_session()
    try: return [o['id'] for o in cdp.send('SystemInfo.getProcessInfo')['processInfo'] if o['type'] == 'renderer']
    finally: cdp.detach()


def renderer(page):
    "The process id of a tab: the one that is busy when the tab is, twice in a row"
    pids = processes(page.context.browser)
    def ticks(pid): return sum(map(int, Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[11:13]))
    found = []
    while len(found) < 2 or found[-1] != found[-2]:
        before = {pid: ticks(pid) for pid in pids}
        page.evaluate('() => { const end = performance.now() + 300; while (performance.now() < end); }')
        found.append(max(pids, key=lambda pid: ticks(pid)-before[pid]))
    return found[-1]


def crash(page):
    "Kill the process of a tab"
    if isinstance(page.context.browser, Firefox): return page.crash(renderer(page))
    with page.expect_event('crash'): os.kill(renderer(page), signal.SIGKILL)


@contextmanager
def stopped(pid):
    "The process of a tab is stopped inside the `with` block: it holds its connection and its lock, and does nothing"
    os.kill(pid, signal.SIGSTOP)
    try: yield
    finally: os.kill(pid, signal.SIGCONT)


def freeze(page):
    "No line of a tab's scripts runs any more, though its process, its connection and its lock live on; returns what `thaw` takes"
    # Chromium freezes hidden tabs alone, and without a window none is hidden
    session = page.context.new_cdp_session(page)
    session.send('Debugger.enable')
    session.send('Debugger.pause')
    return session


def thaw(session):
    "Let it go on"
    session.send('Debugger.disable')
    session.detach()


@contextmanager
def frozen(page):
    "A tab is frozen inside the `with` block, as browsers do with hidden ones to save power"
    session = freeze(page)
    try: yield
    finally: thaw(session)
