"""When the server is back, all tabs are back

One request of one tab, the `POST` that becomes the carrier, opens the streams of all tabs again. No tab waits longer than
the one that leads. Over HTTP/2 each tab has a carrier, and the first one to come back tells the others.

    TABS_RESTARTS=20 pytest tests/browser/test_tabs_come_back.py -s     so many times, with each log

Each run prints how long the last tab took, from the carrier's answer until it showed all.
"""
import itertools
import os
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import httpx
import pytest
from boards import Tabs
from browsers import each_browser, new_context
from handmade import ASSETS, Proxy

from tests.contract.servers import Server, free_port, uvicorn
from tests.contract.support import BOUND
from tests.proxies import lacking, proxying

RESTARTS = int(os.environ.get('TABS_RESTARTS', 0))
TABS = 12
# What each stream has brought, what was asked of the server for channels, and when: milliseconds on the clock of the machine
NOTES = """
    window.seen = {}; window.gaps = new Set(); window.asked = []; window.arrived = 0;
    const now = () => performance.timeOrigin + performance.now(), plain = window.fetch;
    window.fetch = async (url, init) => {
        const response = await plain(url, init);
        if (init?.method === 'POST' && `${url}`.endsWith('/_sse/mux')) {
            const { open } = JSON.parse(init.body);
            asked.push({ at: now(), status: response.status, open: open.length });
        }
        return response;
    };
    document.addEventListener('DOMContentLoaded', () => window.cjmSSE?.addEventListener('change', ({ detail }) => {
        const { source, url, state } = detail;
        if (state === 'active') arrived = now();
        if (seen[url]) return;
        seen[url] = [];
        source.addEventListener('message', e => { seen[url].push(Number(e.data)); arrived = now(); });
        source.addEventListener('sse:gap', () => { gaps.add(url) });
    }));"""
SEEN = 'Object.values(seen).flat().sort((a, b) => a - b)'
LOST = "cjmSSE.sources.every(s => s.state === 'reconnecting')"
CALM = "window.cjmSSE?.sources.length === 3 && cjmSSE.sources.every(s => s.state === 'active')"


class Board:
    "Twelve tabs of the app `kept`, behind a proxy that can be cut, and before it perhaps one that speaks HTTP/2"
    def __init__(self, tabs, proxy, server, url, wait, shared):
        self.tabs,self.proxy,self.server,self.url,self.wait,self.shared = tabs,proxy,server,url,wait,shared
        self.said,self.took = 0,[]  # Messages; seconds, of each return

    def say(self, n=6):
        where = f'http://127.0.0.1:{self.server.port}/say'
        httpx.get(where, params=dict(first=self.said, n=n), timeout=BOUND).raise_for_status()
        self.said += n

    def open(self):
        self.tabs.open(self.url, TABS)
        self.tabs.wait(CALM)
        self.say()
        self.complete()

    def complete(self):
        "Wait until each tab has shown all that was said, once"
        self.tabs.wait(f'n => {SEEN}.length >= n', self.said)
        assert self.tabs.all(SEEN)==[[*range(self.said)]]*TABS

    @contextmanager
    def away(self):
        "The tabs know that the server is gone; behind the `with` block all of them are back"
        self.tabs.all('asked.length = 0, gaps.clear()')
        yield
        self.tabs.wait(CALM)

    def cut(self):
        "The network is gone for a moment, in which something is said"
        with self.away():
            self.proxy.refuses = True
            self.proxy.cut()
            self.tabs.wait(LOST)
            self.say()
            self.proxy.refuses = False
        self.complete()
        assert self.tabs.all('gaps.size')==[0]*TABS
        self.note()

    def restart(self, gently, kept=True):
        "Another process takes the place of the server, and says something at once"
        with self.away():
            self.server.stop(gently)
            self.tabs.wait(LOST)
            self.server.start()
            self.say()
        if kept: self.complete()
        else: self.tabs.wait('gaps.size === 3')
        assert self.tabs.all('gaps.size')==[0 if kept else 3]*TABS
        self.note()

    def note(self):
        "What the tabs asked for, and how long the last of them took behind the carrier"
        asked = [o for all in self.tabs.all('asked') for o in all if o['status']<300]
        opened = sorted(o['open'] for o in asked)
        if self.shared: assert opened==[3*TABS], f'one request for the streams of all tabs, not {asked}'
        else: assert opened==[3]*TABS, f'one request of each tab, not {asked}'
        self.took.append((max(self.tabs.all('arrived'))-min(o['at'] for o in asked))/1000)


class Kept:
    "The server process, and those that take its place"
    def __init__(self, log, **env): self.log,self.env,self.port = log,env,free_port()
    def start(self):
        self.process = Server(uvicorn('kept:app'), self.log, port=self.port, env=self.env).wait_until_up()

    def stop(self, gently=False):
        "By SIGTERM, or SIGKILL"
        if gently:
            self.process.signal()
            self.process.ends()
        self.process.kill()


@pytest.fixture
def board(request, browser, loop, tmp_path, pump, htmx, protocol, store):
    if protocol=='2' and lacking('caddy', 'openssl'): pytest.skip("needs Debian's packages caddy and openssl")
    urls = dict(memory=lambda: '', sqlite=lambda: f'sqlite:///{tmp_path}/app.db',
                redis=lambda: request.getfixturevalue('own_redis')().url())
    server = Kept(tmp_path/'log', ASSETS=str(ASSETS), HTMX=htmx, STORE=urls[store]())
    server.start()
    with ExitStack() as stack:
        stack.callback(lambda: server.stop())
        target,shared = server.port,protocol=='1'
        if not shared:
            caddy = stack.enter_context(proxying('caddy', server.port, tmp_path))
            target = int(caddy.url.rpartition(':')[2])
        proxy = Proxy(loop, target)
        stack.callback(proxy.stop)
        context = stack.enter_context(new_context(browser, **({} if shared else dict(ignore_https_errors=True))))
        context.add_init_script(NOTES)
        tabs = Tabs(SimpleNamespace(context=context, errors=[], wait_for_timeout=pump))
        url = f'http://127.0.0.1:{proxy.port}/' if shared else f'https://localhost:{proxy.port}/'
        yield Board(tabs, proxy, server, url, pump, shared)
        assert not tabs.errors


MEASURED = [*itertools.product(['2', '4'], ['1', '2'], ['sqlite', 'redis', 'memory'])]
SAMPLE = [('2', '1', 'sqlite'), ('4', '2', 'sqlite'), ('4', '1', 'memory')]


@each_browser
@pytest.mark.timeout(120+20*RESTARTS)
@pytest.mark.parametrize('htmx, protocol, store', MEASURED if RESTARTS else SAMPLE)
def test_all_at_once(board, browser, htmx, protocol, store):
    "With the carrier, and nothing is missed; where a restart has lost the log, each tab says so"
    board.open()
    for n in range(max(1, RESTARTS//2)):
        board.cut()
        board.restart(gently=n%2==0, kept=store!='memory')
        if store=='memory':
            board.said = 0
            board.tabs.all('Object.values(seen).forEach(o => { o.length = 0 })')
    took = sorted(board.took)
    print(f'\n{browser.__class__.__name__}, HTTP/{protocol}, htmx {htmx}, {store}: behind the carrier all {TABS} tabs are'
          f' current within {took[-1]:.2f} s, median {took[len(took)//2]:.2f} s, of {len(took)}')
