"""Whatever may happen to tabs and connections, in any order: nothing lost, nothing twice, in any tab

    TABS_SEED=7 TABS_BROWSER=firefox pytest tests/browser/test_tabs_random.py -s     one run again
    TABS_RUNS=20 TABS_SECONDS=60 TABS_BROWSER=chromium pytest ...                    so many, for so long

The seed says which htmx it is, whether the tabs share a connection, and what happens. How long it all takes differs.
"""
import os
import random
import signal
import time
from contextlib import suppress
from functools import partial

import pytest
from bidi import Firefox
from boards import Board
from browsers import crash, freeze, renderer, thaw
from handmade import HTMX2, HTMX4, Proxy
from playwright.sync_api import Error

KNOBS = {o: os.environ.get(f'TABS_{o}') for o in ('SEED', 'SECONDS', 'BROWSER', 'RUNS')}
# The suite runs the same worlds each time; who asks for runs gets new ones
SEED = int(KNOBS['SEED'] or (random.SystemRandom().randrange(10**6) if KNOBS['RUNS'] else 1117))
SECONDS = float(KNOBS['SECONDS'] or (10 if KNOBS['RUNS'] else 4))


def pytest_generate_tests(metafunc):
    "`make tabs` runs many worlds; here is one in each browser"
    browsers,runs = [KNOBS['BROWSER']] if KNOBS['BROWSER'] else ['chromium', 'firefox'],int(KNOBS['RUNS'] or 1)
    metafunc.parametrize('browser,seed', [(o, SEED+n) for o in browsers for n in range(runs)], indirect=['browser'])


EVENTS = []
STATE = "[document.readyState, ...(window.cjmSSE?.sources ?? []).map(o => `${o.state} ${o.reason} ${o.direct}`)]"


def event(times=1, state='here', least=1):
    "What may happen to a tab of this state, where there are `least` of them; without a state, to all or none"
    def add(f):
        EVENTS.extend([(f, state, least)]*times)
        return f
    return add


class World:
    "Tabs, a server and a proxy, and all that may happen to them. A tab is `here`, `away` on another page, or `frozen`"
    def __init__(self, tabs, site, proxy, rand, shared):
        self.tabs,self.site,self.proxy,self.rand = tabs,site,proxy,rand
        self.firefox = isinstance(tabs.context.browser, Firefox)
        self.states,self.names,self.frozen = {},{},{}
        # A frozen tab keeps its connections, and a browser has six
        self.most,self.most_frozen = (8, 2) if shared else (5, 1)
        self.start = time.monotonic()

    def having(self, state): return [page for page in self.tabs if self.states[page] == state]
    def wait(self, secs): self.tabs.wait_for_timeout(1000*secs)
    def url(self, path='board'): return f'http://127.0.0.1:{self.proxy.port}/{path}'
    def note(self, *what): print(f'{time.monotonic()-self.start:6.2f}', *what)

    def happen(self):
        "One of the events, where it can be"
        f,state,least = self.rand.choice(EVENTS)
        pages = self.having(state) if state else [None]
        if len(pages) < least: return
        page = self.rand.choice(pages)
        self.note(f.__name__, self.names.get(page, ''))
        f(self, page)

    @event(4, None)
    def open(self, _):
        if len(self.tabs) >= self.most: return
        page = self.tabs.open('about:blank', **dict(hidden=True) if self.firefox and self.rand.random() < .4 else {})
        self.states[page],self.names[page] = 'here',f'tab {len(self.names)}'
        page.goto(self.url(), wait_until=self.rand.choice(['commit', 'load']))

    def remove(self, page):
        self.tabs.remove(page)
        del self.states[page]

    @event(least=3)
    def close(self, page):
        self.remove(page)
        page.close()

    @event(least=3)
    def crash(self, page):
        self.remove(page)
        crash(page)
        page.close()

    @event(2)
    def reload(self, page): page.goto(self.url(), wait_until='commit')

    @event()
    def leave(self, page):
        page.goto(self.url('pages/none'))
        self.states[page] = 'away'

    @event(2, 'away')
    def back(self, page):
        page.go_back(wait_until='commit')
        self.states[page] = 'here'

    @event(least=2)
    def freeze(self, page):
        "Its scripts, or its process"
        if len(self.having('frozen')) >= self.most_frozen: return
        if self.firefox or self.rand.random() < .5:
            os.kill(pid := renderer(page), signal.SIGSTOP)
            self.frozen[page] = partial(os.kill, pid, signal.SIGCONT)
        else: self.frozen[page] = partial(thaw, freeze(page))
        self.states[page] = 'frozen'

    @event(2, 'frozen')
    def thaw(self, page):
        self.frozen.pop(page)()
        self.states[page] = 'here'

    @event()
    def pause(self, page):
        "A renderer's pause: all others go on"
        os.kill(pid := renderer(page), signal.SIGSTOP)
        self.wait(self.rand.uniform(.3, 3))
        os.kill(pid, signal.SIGCONT)

    def loaded(self):
        "A page whose scripts don't come is none"
        for page in self.having('here'): page.wait_for_function("document.readyState !== 'loading'")

    @event(1, None)
    def restart(self, _):
        self.loaded()
        self.site.stop()
        self.wait(self.rand.choice([0, .3, 1.5]))
        self.site.start()

    @event(1, None)
    def cut(self, _):
        self.loaded()
        self.proxy.cut()

    @event(2, None)
    def silence(self, _):
        self.loaded()
        self.proxy.fall_silent(idle=False)

    @event(2, None)
    def slow(self, _): self.proxy.delay = self.rand.choice([0, .05, .3])

    def script(self, page, text, arg=None):
        try: page.evaluate(text, arg)
        except Error as e: self.note(f'which is on its way: {e}')

    @event()
    def busy(self, page):
        text = 'ms => { setTimeout(() => { const end = performance.now() + ms; while (performance.now() < end); }) }'
        self.script(page, text, self.rand.uniform(300, 3000))

    @event()
    def check(self, page): self.script(page, "dispatchEvent(new Event('online')) || 1")

    @event()
    def reconnect(self, page): self.script(page, 'window.cjmSSE?.reconnect()')

    @event()
    def show(self, page): page.bring_to_front()

    def come_to_rest(self):
        "All tabs run, and are back"
        for page in self.having('frozen'): self.thaw(page)
        for page in self.having('away'): self.back(page)


@pytest.mark.timeout(SECONDS+170)
def test_whatever_happens(make_site, loop, tabs, until, seed):
    rand,htmx,shared = random.Random(seed),(HTMX2, HTMX4)[seed%2],seed%4 < 2
    print(f'\nTABS_SEED={seed}, {htmx.__name__}, one connection for {"all tabs" if shared else "each tab"}')
    site = make_site(None, hdrs=htmx())
    board = Board(site, multiplex=True if shared else 'tab')
    proxy = Proxy(loop, site.port)
    world = World(tabs, site, proxy, rand, shared)
    try:
        with board.flow():
            world.open(None)
            # What falls silent while it begins may be replaced by connections of their own, which stay for minutes: with new seeds alone
            if not KNOBS['RUNS']: tabs.active(3)
            end = time.monotonic()+SECONDS
            while time.monotonic() < end:
                world.happen()
                world.wait(rand.choice([0, .05, .2, .5, 1]))
            world.come_to_rest()
        for page in tabs: page.bring_to_front()
        tabs.active(3, 60)  # A connection that falls silent before its first stream has begun is given up after 20 s
        board.say()
        board.complete(tabs)
        assert tabs.answered()
        proxy.cut()  # From here on the server knows which connections are open
        wanted = 1 if shared else len(tabs)
        until(lambda: site.connections == wanted, lambda: f'{wanted} connections instead of {site.served.open}')
    except BaseException:
        print(*[text for _,text in tabs.console if '[sse]' in text], sep='\n')
        for page in tabs:
            with suppress(Error): print(world.names[page], page.evaluate(STATE))
        raise
    finally:
        for go_on in world.frozen.values(): go_on()
        proxy.stop()
