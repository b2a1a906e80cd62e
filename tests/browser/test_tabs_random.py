"""Whatever may happen to tabs and connections, in any order: nothing lost, nothing twice, in any tab

    TABS_SEED=7 TABS_SECONDS=300 pytest tests/browser/test_tabs_random.py -s      the same again, or for longer
"""
import asyncio
import os
import random
import time
from contextlib import contextmanager

from fasthtml.common import Div
from playwright.sync_api import Error

from tabs import connect, freeze, thaw

SEED = int(os.environ.get('TABS_SEED') or random.SystemRandom().randrange(10**6))
SECONDS = float(os.environ.get('TABS_SECONDS', 10))
STREAMS = 'ab'
MOST = 6  # Tabs; of these one may be frozen, as it keeps its connections: a browser has six

# Silence is noticed soon
EAGER = """
    document.addEventListener('DOMContentLoaded', () => window.cjmSSE?.addEventListener('change', ({ detail: { source } }) => {
        if (source.eager) return;
        source.eager = true;
        source.configure({ heartbeatTimeout: 1500 });
    }));"""


class World:
    "Tabs, a server and a proxy, and all that may happen to them. A tab is `here`, `away` on another page, or `frozen`"
    def __init__(self, tabs, site, board, proxy, rand):
        self.tabs,self.site,self.board,self.proxy,self.rand = tabs,site,board,proxy,rand
        self.states,self.names,self.sessions = {},{},{}
        self.start = time.monotonic()

    def having(self, state): return [page for page in self.tabs if self.states[page] == state]
    def any(self, state): return self.rand.choice(self.having(state) or [None])
    def note(self, what, page=None): print(f'{time.monotonic()-self.start:6.2f} {what}', '' if page is None else f'tab {self.names[page]}')

    def open(self):
        if len(self.tabs) >= MOST: return
        page = self.tabs.open('about:blank')
        self.states[page],self.names[page] = 'here',len(self.names)
        self.note('open', page)
        page.goto(self.url(), wait_until=self.rand.choice(['commit', 'load']))

    def url(self): return self.proxy.url(self.rand.choice(['two', 'two', 'free']))

    def remove(self, page):
        self.tabs.remove(page)
        del self.states[page]

    def close(self):
        if len(self.having('here')) < 3: return
        page = self.rand.choice([p for p in self.tabs if self.states[p] != 'frozen'])
        self.note('close', page)
        self.remove(page)
        page.close()

    def crash(self):
        if len(self.having('here')) < 3: return
        page = self.any('here')
        self.note('crash', page)
        self.remove(page)
        with page.expect_event('crash'):
            try: page.goto('chrome://crash')
            except Error: pass
        page.close()

    def reload(self):
        if page := self.any('here'):
            self.note('load', page)
            page.goto(self.url(), wait_until='commit')

    def leave(self):
        if page := self.any('here'):
            self.note('leave', page)
            page.goto(self.proxy.url('none'))
            self.states[page] = 'away'

    def back(self):
        if page := self.any('away'):
            self.note('back', page)
            page.go_back(wait_until='commit')
            self.states[page] = 'here'

    def freeze(self):
        if self.having('frozen') or len(self.having('here')) < 2: return
        page = self.any('here')
        self.note('freeze', page)
        self.sessions[page] = freeze(page)
        self.states[page] = 'frozen'

    def thaw(self):
        if page := self.any('frozen'):
            self.note('thaw', page)
            thaw(self.sessions.pop(page))
            self.states[page] = 'here'

    def restart(self):
        self.note('stop')
        self.site.stop()
        self.wait(self.rand.choice([0, .3, 1.5]))
        self.site.start()
        self.note('start')

    def cut(self):
        self.note('cut')
        self.proxy.cut()

    def silence(self):
        self.note('silence')
        self.proxy.fall_silent(idle=False)

    def slow(self):
        self.proxy.delay = self.rand.choice([0, .05, .3])
        self.note(f'delay {self.proxy.delay}')

    def check(self):
        if page := self.any('here'):
            self.note('check', page)
            page.evaluate("dispatchEvent(new Event('online'))")

    def reconnect(self):
        if page := self.any('here'):
            self.note('reconnect', page)
            page.evaluate('window.cjmSSE?.reconnect()')

    def wait(self, secs): self.tabs.wait_for_timeout(1000*secs)

    EVENTS = [open]*4 + [close, crash, reload, reload, leave, back, back, freeze, thaw, thaw, restart, cut, silence, silence, slow, slow, check, reconnect]

    def go_on(self, secs):
        end = time.monotonic()+secs
        while time.monotonic() < end:
            self.rand.choice(self.EVENTS)(self)
            self.wait(self.rand.choice([0, .05, .2, .5, 1]))


@contextmanager
def flow(site, board, rand):
    "Broadcast inside the `with` block, now fast, now slowly, now nothing"
    async def flow():
        while flowing:
            for _ in range(rand.choice([1, 5, 150])):
                await board.say_one()
                await asyncio.sleep(rand.choice([0, .001, .02]))
            await asyncio.sleep(rand.choice([0, .1, 1]))
    flowing = [True]
    task = asyncio.run_coroutine_threadsafe(flow(), site.loop.loop)
    try: yield
    finally:
        flowing.clear()
        task.result(10)


def check(page, board, name):
    "A tab has got what was sent since it was drawn; one that did not say when, what was sent since its first message"
    got,drawn = page.evaluate("name => [got[`/${name}/events`], window.drawn]", name)
    want = board.expected(name, drawn) if drawn else board.sent[name][int(got[0][1:]):]
    if got == want: return ''
    lost,twice = [o for o in want if o not in got],sorted({o for o in got if got.count(o) > 1})
    return f'lost {lost}, twice {twice}, {"" if lost or twice else f"others: {got}"}'


def test_whatever_happens(tabs, site, board, proxy, until):
    print(f'TABS_SEED={SEED}')
    rand = random.Random(SEED)
    tabs.context.add_init_script(EAGER)
    site.pages['free'] = lambda: Div(*[connect(f'/{o}/events') for o in STREAMS])
    world = World(tabs, site, board, proxy, rand)
    with flow(site, board, random.Random(SEED+1)):
        world.open()
        world.go_on(SECONDS)
        while world.having('frozen'): world.thaw()
        while world.having('away'): world.back()
    tabs.active(len(STREAMS))
    board.say(3)
    for page in tabs:
        for name in STREAMS:
            try: page.wait_for_function("([url, last]) => got[url]?.at(-1) === last", arg=[f'/{name}/events', board.sent[name][-1]])
            except Error as e: print(f'tab {world.names[page]}, {name}: {e}')
    wrong = {f'tab {world.names[page]}, {name}': said for page in tabs for name in STREAMS if (said := check(page, board, name))}
    print({o: len(sent) for o,sent in board.sent.items()}, world.states.values())
    assert not wrong, f'TABS_SEED={SEED}'
