"""What matters most about tabs and connections, in WebKitGTK: tests of the contract, with one more browser

    make webkit                                         all of them
    .venv/bin/python -m pytest tests/webkit.py -k back

Debian's WebKitGTK is driven by WebDriver, in a display that nobody sees. It stands for Safari as far as it can: the
engine is the same, what lies between it and the network is not. Some versions, 2.54.3 among them, keep back the end of
what comes until more comes (bugs.webkit.org 322545); `test_streams_written_by_hand` fails where the server does nothing
about it.
"""
import inspect
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fasthtml.common import Script
from playwright.sync_api import TimeoutError as Late

sys.path.insert(0, str(Path(__file__).parent/'contract/browser'))
import fixtures  # noqa: E402
import test_every_tab as every_tab  # noqa: E402
from boards import Board  # noqa: E402
from fixtures import loop, site, tabs, until  # noqa: E402, F401
from handmade import HTMX2, HTMX4  # noqa: E402
import test_pages_without_help as without_help  # noqa: E402
from test_every_tab import board  # noqa: E402, F401

from cjm_fasthtml_sse.helpers import setup_sse  # noqa: E402
from tests.contract.servers import BOUND, running  # noqa: E402

# Calls what it is given where that is a function, as Playwright does
EVALUATE = """const [source, arg, done] = arguments;
(async () => { const value = eval(`(${source}\\n)`); return typeof value === 'function' ? value(arg) : value })()
    .then(value => done({ value: value === undefined ? null : value }), error => done({ error: `${error}` }));"""
# WebDriver tells of no errors and of nothing in the console
FAILED = """window.failed = [];
    addEventListener('error', e => failed.push(e.message));
    addEventListener('unhandledrejection', e => failed.push(String(e.reason)));
    const debug = console.debug;
    console.debug = (...all) => { if (/^.sse. direct/.test(all[0])) failed.push(all.join(' ')); debug(...all) };"""


class WebKit:
    "The browser by WebDriver, which is its only context as well; `scripts` begin each page"
    def __init__(self, client):
        self.client,self.pages,self.scripts,self.opened = client,[],[FAILED],0
        options = dict(timeouts=dict(script=60_000, pageLoad=60_000), unhandledPromptBehavior='dismiss')
        self.session = f"/session/{self.call('POST', '/session', capabilities=dict(alwaysMatch=options))['sessionId']}"
        self.first = self.current = self.call('GET', self.session+'/window')  # Stays: the session ends with the last tab

    def call(self, method, path, **body):
        answer = self.client.request(method, path, json=body if method == 'POST' else None).json()['value']
        if isinstance(answer, dict) and 'error' in answer: raise RuntimeError(f"{path}: {answer['error']}: {answer['message']}")
        return answer

    def new_page(self):
        "In turn a window, which is visible, and a tab, which is hidden"
        self.switch(self.first)
        self.opened += 1
        new = self.call('POST', self.session+'/window/new', type='window' if self.opened%2 else 'tab')
        self.pages.append(Page(self, new['handle']))
        return self.pages[-1]

    def switch(self, handle):
        if self.current != handle: self.call('POST', self.session+'/window', handle=handle)
        self.current = handle

    def add_init_script(self, script): self.scripts.append(script)


class Page:
    "A tab, with the part of Playwright's interface that these tests use"
    def __init__(self, browser, handle): self.context,self.handle = browser,handle

    def call(self, method, path, **body):
        self.context.switch(self.handle)
        return self.context.call(method, self.context.session+path, **body)

    def evaluate(self, script, arg=None):
        answer = self.call('POST', '/execute/async', script=EVALUATE, args=[script.strip().rstrip(';'), arg])
        if 'error' in answer: raise RuntimeError(f"{answer['error']} in {script}")
        return answer['value']

    def wait_for_function(self, script, arg=None):
        end = time.monotonic()+BOUND
        while not self.evaluate(script, arg):
            if time.monotonic() > end: raise Late(f'in vain for {BOUND:.0f} s: {script} {arg or ""}')
            time.sleep(.03)

    def on(self, event, f): pass
    def goto(self, url): self.call('POST', '/url', url=url)
    def reload(self): self.call('POST', '/refresh')
    def go_back(self, wait_until=''): self.call('POST', '/back')

    def close(self):
        self.context.pages.remove(self)
        self.call('DELETE', '/window')


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    missing = [o for o in ('WebKitWebDriver', 'xvfb-run') if not shutil.which(o)]
    assert not missing, f'{", ".join(missing)} not found: apt-get install webkit2gtk-driver xvfb xauth'
    assert fixtures.assets.fetch(dev=True), 'These tests need npm, to fetch htmx'
    folder = tmp_path_factory.mktemp('webkit')
    # Our own address alone; what the environment says of proxies is not for it
    env = dict(GDK_BACKEND='x11', GSETTINGS_BACKEND='memory', no_proxy='127.0.0.1',
               **{f'XDG_{o}_HOME': str(folder) for o in ('CACHE', 'CONFIG', 'DATA')})
    command = ['xvfb-run', '--auto-servernum', 'WebKitWebDriver', '--port={port}']
    with running(command, folder/'log', env=env) as driver, \
            httpx.Client(base_url=f'http://localhost:{driver.port}', timeout=90, trust_env=False) as client:
        browser = WebKit(client)
        yield browser
        browser.call('DELETE', browser.session)


@pytest.fixture
def page(browser):
    "What the fixtures of the contract take from a page. What goes wrong in the pages of a test fails it"
    browser.scripts[1:] = []
    yield SimpleNamespace(context=browser, errors=[], wait_for_timeout=lambda ms: time.sleep(ms/1000))
    failed = [o for page in browser.pages for o in page.evaluate('window.failed ?? []')]
    for page in [*browser.pages]: page.close()
    assert not failed


class Scripts:
    "The browser's scripts, as a page has them when it is drawn"
    def __init__(self, scripts): self.scripts = scripts
    def __ft__(self): return Script(';\n'.join(self.scripts))


@pytest.fixture
def make_site(loop, browser):  # noqa: F811
    sites = []
    def make(setup=setup_sse, hdrs=None):
        sites.append(fixtures.Site(loop, [Scripts(browser.scripts), *(hdrs or HTMX2())]))
        if setup: setup(sites[-1].app)
        return sites[-1].start()
    yield make
    for o in sites: o.stop()


SCENARIOS = [
    every_tab.TestOneConnection.test_twelve_tabs, every_tab.TestOneConnection.test_one_after_another,
    every_tab.TestWhatIsClosed.test_ten_pages_after_one_another, every_tab.TestTabs.test_back,
    every_tab.TestStreamsOfOlderApps.test_streams_written_by_hand,
    every_tab.TestStreamsOfOlderApps.test_elements_that_a_message_brings, every_tab.TestReconnecting.test_the_server_restarts]


@pytest.mark.parametrize('scenario', SCENARIOS, ids=lambda o: o.__name__.removeprefix('test_'))
def test_contract(request, scenario):
    scenario(None, **{o: request.getfixturevalue(o) for o in [*inspect.signature(scenario).parameters][1:]})


def test_htmx_4(tabs, make_site, until):  # noqa: F811
    every_tab.TestOneConnection().test_twelve_tabs(tabs, Board(make_site(hdrs=HTMX4())), until)


def test_no_locks(tabs, site, until):  # noqa: F811
    "As in older Safaris: each tab has a carrier of its own"
    without_help.TestTabsOnTheirOwn().test_what_a_browser_lacks(tabs, site, until, 'no locks')


def test_leading_tab_closes(tabs, board, until):  # noqa: F811
    "Again and again, while messages come"
    tabs.open(board.url, 5)
    tabs.active(3)
    with board.flow():
        while len(tabs) > 1:
            tabs.pop(0).close()
            tabs.active(3)
    board.complete(tabs)
    board.one_connection(tabs, until)
