"""What matters most, in WebKitGTK: many tabs on one connection, whatever happens to them

    python tests/webkit.py            all scenarios
    python tests/webkit.py back       some of them

Debian's WebKitGTK is driven by WebDriver, in a display of its own that nobody sees. It stands for Safari as far as it
can: the engine is the same, what lies between it and the network is not. Some versions, 2.54.3 among them, keep back the
end of what comes until more comes (bugs.webkit.org 322545); `by_hand` fails where the server does nothing about it.
"""
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from fasthtml.common import Div, Script
from playwright.sync_api import TimeoutError as Late

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/'tools'), str(ROOT/'tests/contract/browser')]
import assets  # noqa: E402
import boards  # noqa: E402
import check  # noqa: E402
from handmade import HTMX2, HTMX4, Loop, Site  # noqa: E402

from tests.contract.servers import accepts  # noqa: E402
from tests.contract.support import free_port  # noqa: E402

from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext  # noqa: E402

BOUND = 30.  # Seconds, as for all in a page
DEBIAN = {'WebKitWebDriver': 'webkit2gtk-driver', 'Xvfb': 'xvfb'}  # command: its package
# Calls what it is given where that is a function, as Playwright does
EVALUATE = """const [source, arg, done] = arguments;
(async () => { const value = eval(`(${source}\\n)`); return typeof value === 'function' ? value(arg) : value })()
    .then(value => done({ value: value === undefined ? null : value }), error => done({ error: `${error}` }));"""
ERRORS = """window.failed = [];
    addEventListener('error', e => failed.push(e.message));
    addEventListener('unhandledrejection', e => failed.push(String(e.reason)));"""


def until(condition, what, secs=BOUND):
    "Wait until `condition` holds; `what` may be a function that tells how things stand"
    end = time.monotonic()+secs
    while not condition():
        if time.monotonic()>end: raise Late(f'in vain for {secs:.0f} s: {what() if callable(what) else what}')
        time.sleep(.03)


@contextmanager
def process(*cmd, **kw):
    "A process, ended with all that it started"
    proc = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, start_new_session=True, **kw)
    try: yield proc
    finally:
        try: os.killpg(proc.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        proc.wait(10)


@contextmanager
def display():
    "A display that nobody sees; its name"
    read,write = os.pipe()
    with process('Xvfb', '-displayfd', str(write), '-screen', '0', '1000x800x24', '-nolisten', 'tcp', pass_fds=[write], stderr=subprocess.DEVNULL):
        os.close(write)
        with os.fdopen(read) as f: name = f.readline().strip()
        if not name: raise RuntimeError('Xvfb did not start')
        yield f':{name}'


class WebKit:
    "The browser, by WebDriver"
    def __init__(self, client):
        self.client = client
        options = dict(timeouts=dict(script=60_000, pageLoad=60_000), unhandledPromptBehavior='dismiss')
        answer = self.call('POST', '/session', capabilities=dict(alwaysMatch=options))
        self.session,self.version = f"/session/{answer['sessionId']}",answer['capabilities']['browserVersion']
        self.first = self.current = self.call('GET', self.session+'/window')  # Stays: the session ends with the last tab
        self.opened = 0

    def call(self, method, path, **body):
        answer = self.client.request(method, path, json=body if method == 'POST' else None).json()['value']
        if isinstance(answer, dict) and 'error' in answer: raise RuntimeError(f"{path}: {answer['error']}: {answer['message']}")
        return answer

    def new_page(self):
        "In turn a window, which is visible, and a tab, which is hidden"
        self.switch(self.first)
        self.opened += 1
        return Page(self, self.call('POST', self.session+'/window/new', type='window' if self.opened%2 else 'tab')['handle'])

    def switch(self, handle):
        if self.current != handle: self.call('POST', self.session+'/window', handle=handle)
        self.current = handle

    def close(self): self.call('DELETE', self.session)


class Page:
    "A tab, with the part of Playwright's interface that the scenarios use"
    def __init__(self, browser, handle): self.browser,self.handle = browser,handle

    def call(self, method, path, **body):
        self.browser.switch(self.handle)
        return self.browser.call(method, self.browser.session+path, **body)

    def evaluate(self, script, arg=None):
        res = self.call('POST', '/execute/async', script=EVALUATE, args=[script, arg])
        if 'error' in res: raise RuntimeError(f"{res['error']} in {script}")
        return res['value']

    def wait_for_function(self, script, arg=None): until(lambda: self.evaluate(script, arg), f'{script} {arg or ""}')
    def goto(self, url): self.call('POST', '/url', url=url)
    def go_back(self, wait_until=''): self.call('POST', '/back')
    def close(self): self.call('DELETE', '/window')


class Tabs(boards.Tabs):
    def __init__(self, browser): self.browser = browser
    def wait_for_timeout(self, ms): time.sleep(ms/1000)

    def open(self, url, n=1):
        for _ in range(n):
            self.append(self.browser.new_page())
            self[-1].goto(url)
        return self[-1]

    def close(self):
        "All of them; what went wrong in one is an error"
        errors = [o for page in self for o in page.evaluate('window.failed ?? []')]
        while self: self.pop().close()
        assert not errors, f'errors in the pages: {errors}'


class Direct:
    "Around the app: streams that have a connection of their own, by the reason that the client gives"
    def __init__(self, app): self.app,self.seen = app,[]

    async def __call__(self, scope, receive, send):
        headers = dict(scope.get('headers', []))
        def noting(message):
            if message['type'] == 'http.response.start' and message['status'] == 200 and b'sse-ticket' not in headers:
                kinds = [v for k,v in message['headers'] if k == b'content-type' and v.startswith(b'text/event-stream')]
                if kinds: self.seen.append(f"{scope['path']} ({headers.get(b'sse-direct', b'no reason').decode()})")
            return send(message)
        await self.app(scope, receive, noting)


class World:
    "A site, its three streams or what `setup` adds, and tabs that look at it"
    def __init__(self, loop, browser, setup=None, htmx=HTMX2, head=''):
        self.site = Site(loop, [Script(ERRORS+head), *htmx()])
        if setup: setup(self.site.app)
        else: self.board = boards.Board(self.site)
        self.direct = self.site.served = Direct(self.site.served)
        self.counting = self.direct.app
        self.site.start()
        self.tabs = Tabs(browser)

    def open(self, n):
        self.tabs.open(self.board.url, n)
        self.tabs.active(3)

    def carriers(self, n=1):
        "Nothing else is open"
        until(lambda: len(self.counting.open) == n, lambda: f'{n} carriers instead of {self.counting.open}')

    def say(self):
        "All tabs get all messages, once and in order"
        self.board.say()
        self.board.complete(self.tabs)

    def close(self):
        try: self.tabs.close()
        finally: self.site.stop()
        assert not self.direct.seen, f'direct streams that were not asked for: {self.direct.seen}'


SCENARIOS = {}


def scenario(f):
    "Register `f`"
    SCENARIOS[f.__name__] = f
    return f


@scenario
def many(world):
    "Eight tabs with three streams each on one carrier; a further request is answered"
    w = world()
    w.open(8)
    w.carriers()
    for _ in range(3):
        w.say()
        assert w.tabs.answered()
    w.carriers()


@scenario
def htmx4(world):
    "Four tabs under htmx 4"
    w = world(htmx=HTMX4)
    w.open(4)
    w.say()
    w.carriers()


@scenario
def restart(world):
    "The server is away for a while: what is sent meanwhile comes when it is back"
    w = world()
    w.open(4)
    w.say()
    w.site.stop()
    w.tabs.wait("cjmSSE.state === 'reconnecting'")
    w.board.say()
    w.site.start()
    w.tabs.active(3)
    w.say()
    w.carriers()


@scenario
def back(world):
    "A page that was left comes back live, whoever of the tabs leaves"
    w = world()
    w.open(3)
    w.say()
    for page in w.tabs:
        page.goto(w.site.url('none'))
        w.board.say()
        page.go_back()
        w.tabs.active(3)
        w.say()
    w.carriers()


@scenario
def lead(world):
    "The leading tab is closed, again and again, while messages come"
    w = world()
    w.open(5)
    with w.board.flow():
        while len(w.tabs) > 1:
            w.tabs.pop(0).close()
            w.tabs.active(3)
    w.say()
    w.carriers()


@scenario
def by_hand(world):
    "Streams without ids, written by hand, in an app that only inserts the extension; the leading tab is closed, the server restarts"
    w = world(lambda app: insert_htmx_sse_ext(app.hdrs))
    w.site.opening['loud'] = 'data: <i>state</i>\n\n'
    w.site.pages['p'] = lambda: Div(*[boards.log(f'/stream/{o}', o) for o in ('loud', 'quiet')])
    def say(n):
        for o in ('loud', 'quiet'):
            w.site.send(f'data: <i>{n}</i>\n\n', o)
            w.tabs.show(o, str(n))
    def heard(id): return [' '.join(page.evaluate(boards.SHOWN, id)) for page in w.tabs]
    start = time.monotonic()
    for n in range(3):
        w.tabs.open(w.site.url('p'))
        w.tabs.active(2)
        say(n)
    assert (secs := time.monotonic()-start) < 14, f'{secs:.0f} s: what comes is shown with the next sign of life'
    assert heard('loud') == ['state 0 1 2', 'state 1 2', 'state 2']
    assert heard('quiet') == ['0 1 2', '1 2', '2']
    w.carriers()
    def streams(n): until(lambda: (w.site.count('loud'), w.site.count('quiet')) == (n, n), lambda: f'{n} of each stream instead of {w.site.open}')
    w.tabs.pop(0).close()
    streams(2)
    w.tabs.active(2)
    say(3)
    w.site.stop()
    w.tabs.wait("cjmSSE.state === 'reconnecting'")
    w.site.start()
    streams(2)
    w.tabs.active(2)
    say(4)
    w.carriers()


@scenario
def older(world):
    "Without locks and `AbortSignal.timeout`, as in older Safaris: each tab has a carrier of its own"
    w = world(head="Object.defineProperty(navigator, 'locks', { value: undefined }); delete AbortSignal.timeout; delete AbortSignal.any;")
    w.open(3)
    w.say()
    w.carriers(3)


def main(names):
    if unknown := {*names}-{*SCENARIOS}: sys.exit(f"There is no {', '.join(sorted(unknown))}. There are: {', '.join(SCENARIOS)}")
    try: check.install(DEBIAN)
    except check.Failed as e: sys.exit(f'webkit: {e}')
    if not assets.fetch(dev=True): sys.exit(f"webkit: npm did not install {', '.join(assets.missing(dev=True))}")
    logging.disable(logging.WARNING)
    failed,port = 0,free_port()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        env = {**os.environ, 'DISPLAY': stack.enter_context(display()), 'GDK_BACKEND': 'x11', 'GSETTINGS_BACKEND': 'memory', 'no_proxy': '127.0.0.1',
               **{f'XDG_{o}_HOME': folder for o in ('CACHE', 'CONFIG', 'DATA')}}
        stack.enter_context(process('WebKitWebDriver', f'--port={port}', env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        until(lambda: accepts(port), 'WebKitWebDriver starts')
        # Our own address alone; what the environment says of proxies is not for it
        client = stack.enter_context(httpx.Client(base_url=f'http://localhost:{port}', timeout=90, trust_env=False))
        browser = WebKit(client)
        stack.callback(browser.close)
        print('WebKitGTK', browser.version, flush=True)
        loop = Loop()
        for name in names or SCENARIOS:
            worlds,start = [],time.monotonic()
            def world(*args, **kw):
                worlds.append(World(loop, browser, *args, **kw))
                return worlds[-1]
            try:
                try: SCENARIOS[name](world)
                finally:
                    for w in worlds: w.close()
                result = 'passed'
            except Exception:
                traceback.print_exc(limit=-6)
                result,failed = 'FAILED',failed+1
            print(f'{result}  {name}: {SCENARIOS[name].__doc__} ({time.monotonic()-start:.1f} s)', flush=True)
    return failed


if __name__ == '__main__': sys.exit(bool(main(sys.argv[1:])))
