"""Whatever may happen to tabs and connections, in any order: nothing lost that has ids, nothing twice, in any tab

    TABS_SEED=7 TABS_BROWSER=firefox pytest tests/browser/test_tabs_random.py -s     one run again
    TABS_RUNS=20 TABS_SECONDS=60 TABS_BROWSER=chromium pytest ...                    so many, for so long

The seed says which htmx it is, whether the tabs share a connection, and what happens. How long it all takes differs.
"""
import asyncio
import itertools
import os
import random
import signal
import time
from collections import defaultdict
from contextlib import contextmanager
from functools import partial

import pytest
from fasthtml.common import Div
from playwright.sync_api import Error
from starlette.requests import Request
from starlette.responses import StreamingResponse

from bidi import Firefox
from handmade import HTMX2, HTMX4, Proxy
from browsers import crash, freeze, renderer, thaw

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

KNOBS = {o: os.environ.get(f'TABS_{o}') for o in ('SEED', 'SECONDS', 'BROWSER', 'RUNS')}
# The suite runs the same worlds each time; who asks for runs gets new ones
SEED = int(KNOBS['SEED'] or (random.SystemRandom().randrange(10**6) if KNOBS['RUNS'] else 1117))
SECONDS = float(KNOBS['SECONDS'] or (10 if KNOBS['RUNS'] else 6))
WITH_IDS,BY_HAND = ['/ids/a', '/ids/b'],['/hand/plain', '/hand/own']
STREAMS = WITH_IDS + BY_HAND
END = 60  # Seconds in which all must have arrived, once nothing happens any more
ACTIVE = 'n => window.cjmSSE?.sources.length === n && cjmSSE.sources.every(s => s.state === "active")'
ARRIVED = 'last => Object.entries(last).every(([url, n]) => parseInt(got[url]?.at(-1)) === n)'
# What each stream of a tab has brought, from the first message on; when the page was drawn, and the states of its streams
RECORD = """
    window.got = {};
    document.addEventListener('DOMContentLoaded', () => window.cjmSSE?.addEventListener('change', ({ detail: { source, url } }) => {
        window.drawn ??= document.querySelector('[data-sse-after]')?.dataset.sseAfter;
        (window.shown ??= []).push(source.state);
        if (got[url]) return;
        const seen = got[url] = [];
        source.addEventListener('message', e => seen.push(e.data));
    }));"""


def connect(url, **kw): return HTMXSSEConnector.create_sse_element(endpoint=url, hidden=True, **kw)


def pytest_generate_tests(metafunc):
    "`make tabs` runs many worlds; here are two, and one in Firefox"
    runs = dict(chromium=2, firefox=1)
    if KNOBS['BROWSER']: runs = {KNOBS['BROWSER']: runs[KNOBS['BROWSER']]}
    if KNOBS['RUNS'] or KNOBS['SEED']: runs = dict.fromkeys(runs, int(KNOBS['RUNS'] or 1))
    seeds = [(o, SEED+n) for o,k in runs.items() for n in range(k)]
    if 'seed' in metafunc.fixturenames: metafunc.parametrize('browser,seed', seeds, indirect=['browser'])


class Feed:
    "What the streams bring, and what each page should have got"
    def __init__(self, rand):
        self.rand,self.manager = rand,SSEBroadcastManager(heartbeat=1., retry=100, replay_size=20000)
        self.log = []                                  # Addresses of the messages with ids, in order
        self.said,self.queues = 0,{}                   # What was said by hand, and to which connections
        self.first,self.number = {},itertools.count()  # Number of a connection: its first message
        self.busy,self.pause = True,0.

    def pages(self, site):
        site.app.route('/ids/{name}')(self.ids)
        site.app.route('/hand/{kind}')(self.hand)
        def page(**kw): return Div(*[connect(o, **kw) for o in WITH_IDS], *[connect(o) for o in BY_HAND])
        site.pages.update(drawn=lambda: page(after=self.manager.cursor), free=page, none=lambda: 'none')

    def ids(self, req: Request, name: str):
        render = self.render if name == 'a' else lambda m: m['data']
        return self.manager.stream(req, render=render, events=f'/ids/{name}:*')

    async def render(self, message):
        "Now and then it takes its time"
        if self.busy and time.monotonic() > self.pause:
            self.pause = time.monotonic() + self.rand.uniform(2, 6)
            await asyncio.sleep(self.rand.uniform(.3, 3))
        return message['data']

    def hand(self, kind: str):
        "One stream has no ids, those of the other begin with 1 on each connection. What is said before, neither brings"
        async def frames():
            number,queue = next(self.number),asyncio.Queue()
            self.first[number],self.queues[number] = self.said,queue
            try:
                for n in itertools.count(1):
                    data = f'data: {await queue.get()} {number}\n\n'
                    yield f'id: {n}\n{data}' if kind == 'own' else data
            finally: del self.queues[number]
        return StreamingResponse(frames(), media_type='text/event-stream')

    async def say(self):
        "The next message of each stream"
        for queue in self.queues.values(): queue.put_nowait(self.said)
        self.said += 1
        for url in WITH_IDS:
            self.log.append(url)
            await self.manager.broadcast(f'{url}:said', f'{len(self.log)}')

    @contextmanager
    def flow(self, loop):
        "Now fast, now slowly, now nothing, inside the `with` block"
        async def flow():
            while self.busy:
                for _ in range(self.rand.choice([1, 5, 100])):
                    await self.say()
                    await asyncio.sleep(self.rand.choice([0, .001, .02]))
                await asyncio.sleep(self.rand.choice([0, .1, 1]))
        task = asyncio.run_coroutine_threadsafe(flow(), loop.loop)
        try: yield
        finally:
            self.busy = False
            task.result(10)

    def wrong(self, url, got, drawn):
        "What a page got that it should not have got, or the other way round"
        return (self.wrong_with_ids if url in WITH_IDS else self.wrong_by_hand)(url, got, drawn)

    def wrong_with_ids(self, url, got, drawn):
        "A page gets all since it was drawn; one that doesn't say when, all since its first message"
        after = int(drawn.rpartition('-')[2]) if drawn else int(got[0])-1 if got else 0
        want = [f'{n}' for n,o in enumerate(self.log, 1) if o == url and n > after]
        if got == want: return ''
        lost,twice = [o for o in want if o not in got],sorted({o for o in got if got.count(o) > 1})
        return f'lost {lost}, twice {twice}, {"" if lost or twice else f"in another order: {got}"}'

    def wrong_by_hand(self, url, got, _):
        "Of each connection a page gets all from its first message on, until it is lost with what was under way"
        pairs,faults,n = [tuple(map(int, o.split())) for o in got],[],-1
        connections = [number for number,_ in itertools.groupby(number for _,number in pairs)]
        if len({*connections}) < len(connections): faults.append(f'from {connections} in turns')
        expected = dict(self.first)
        for said,number in pairs:
            if said <= n: faults.append(f'{said} after {n}')
            if said != (due := expected[number]): faults.append(f'{said} of connection {number}, of which {due} was due')
            n,expected[number] = said,said+1
        if n != self.said-1: faults.append(f'the last is {n} instead of {self.said-1}')
        return ', '.join(faults)


class World:
    "Tabs, a server and a proxy, and all that may happen to them. A tab is `here`, `away` on another page, or `frozen`"
    def __init__(self, tabs, site, proxy, rand, shared):
        self.tabs,self.site,self.proxy,self.rand,self.shared = tabs,site,proxy,rand,shared
        self.firefox = isinstance(tabs.context.browser, Firefox)
        self.states,self.names,self.frozen = {},{},{}
        # A frozen tab keeps its connections, and a browser has six
        self.most,self.most_frozen = (8, 2) if shared else (5, 1)
        self.start = time.monotonic()

    def having(self, state): return [page for page in self.tabs if self.states[page] == state]
    def any(self, state): return self.rand.choice(self.having(state) or [None])
    def wait(self, secs): self.tabs.wait_for_timeout(1000*secs)
    def url(self): return self.proxy.url(self.rand.choice(['drawn', 'drawn', 'free']))

    def note(self, what, page=None):
        print(f'{time.monotonic()-self.start:6.2f} {what}', '' if page is None else f'tab {self.names[page]}')

    def open(self):
        if len(self.tabs) >= self.most: return
        kw = dict(hidden=True) if self.firefox and self.rand.random() < .4 else {}
        page = self.tabs.open('about:blank', **kw)
        self.states[page],self.names[page] = 'here',len(self.names)
        self.note('open hidden' if kw else 'open', page)
        page.goto(self.url(), wait_until=self.rand.choice(['commit', 'load']))

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
        crash(page)
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
        if len(self.having('frozen')) >= self.most_frozen or len(self.having('here')) < 2: return
        page = self.any('here')
        if self.firefox or self.rand.random() < .5:
            os.kill(pid := renderer(page), signal.SIGSTOP)
            self.frozen[page] = partial(os.kill, pid, signal.SIGCONT)
            self.note('stop the process of', page)
        else:
            self.frozen[page] = partial(thaw, freeze(page))
            self.note('freeze', page)
        self.states[page] = 'frozen'

    def thaw(self):
        if page := self.any('frozen'):
            self.note('thaw', page)
            self.frozen.pop(page)()
            self.states[page] = 'here'

    def pause(self):
        "A renderer's pause: all others go on"
        if page := self.any('here'):
            os.kill(pid := renderer(page), signal.SIGSTOP)
            secs = self.rand.uniform(.3, 3)
            self.note(f'pause for {secs:.2f} s', page)
            self.wait(secs)
            os.kill(pid, signal.SIGCONT)

    def loaded(self):
        "A page whose scripts don't come is none"
        for page in self.having('here'): page.wait_for_function("document.readyState !== 'loading'")

    def restart(self):
        self.loaded()
        self.note('stop')
        self.site.stop()
        self.wait(self.rand.choice([0, .3, 1.5]))
        self.site.start()
        self.note('start')

    def cut(self):
        self.loaded()
        self.note('cut')
        self.proxy.cut()

    def silence(self):
        self.loaded()
        self.note('silence')
        self.proxy.fall_silent(idle=False)

    def slow(self):
        self.proxy.delay = self.rand.choice([0, .05, .3])
        self.note(f'delay {self.proxy.delay}')

    def script(self, what, text, arg=None):
        if page := self.any('here'):
            self.note(what, page)
            try: page.evaluate(text, arg)
            except Error as e: self.note(f'which is on its way: {e}')

    def busy(self):
        ms = self.rand.uniform(300, 3000)
        text = 'ms => { setTimeout(() => { const end = performance.now() + ms; while (performance.now() < end); }) }'
        self.script(f'busy for {ms:.0f} ms', text, ms)

    def check(self): self.script('online', "dispatchEvent(new Event('online')) || 1")
    def reconnect(self): self.script('reconnect', 'window.cjmSSE?.reconnect()')

    def show(self):
        if page := self.any('here'):
            self.note('show', page)
            page.bring_to_front()

    EVENTS = [open]*4 + [reload, back, thaw, silence, slow]*2
    EVENTS += [close, crash, leave, freeze, pause, busy, restart, cut, check, reconnect, show]

    def go_on(self, secs):
        end = time.monotonic()+secs
        while time.monotonic() < end:
            self.rand.choice(self.EVENTS)(self)
            self.wait(self.rand.choice([0, .05, .2, .5, 1]))

    def come_to_rest(self):
        "All tabs run, and are back"
        while self.frozen: self.thaw()
        while self.having('away'): self.back()

    def in_time(self, page, end, script, arg=None):
        "Wait until a script of a page is true, or all time is over"
        page.bring_to_front()
        try: return page.wait_for_function(script, arg=arg, timeout=max(1000*(end-time.monotonic()), 100))
        except Error as e: self.note(f'not yet: {arg} {e}', page)


def test_the_judge():
    "It finds what is lost, what came twice, and what changed places"
    feed = Feed(random.Random(0))
    a,b = WITH_IDS
    feed.log,feed.said,feed.first = [a, b]*3,10,{1: 0, 2: 5}
    right = [(a, ['1', '3', '5'], ''), (a, ['3', '5'], ''), (b, ['4', '6'], 'x-2')]
    assert not any(feed.wrong(*o) for o in right)
    assert 'lost []' not in feed.wrong(a, ['3', '5'], 'x-0') and 'lost []' not in feed.wrong(a, [], '')
    assert "twice ['3']" in feed.wrong(a, ['1', '3', '3', '5'], '') and 'order' in feed.wrong(a, ['1', '5', '3'], '')
    plain,early,late = BY_HAND[0],['0 1', '1 1'],[f'{n} 2' for n in range(5, 10)]
    assert not feed.wrong(plain, early+late, '') and not feed.wrong(plain, late, '')
    wrong = dict(head=early[1:]+late, middle=early+late[:1]+late[2:], tail=early+late[:-1], twice=early+late[:1]+late,
                 all=[], turns=early[:1]+late[:2]+early[1:]+late[2:])
    assert [k for k,got in wrong.items() if not feed.wrong(plain, got, '')] == []


@pytest.mark.timeout(SECONDS+170)
def test_whatever_happens(make_site, loop, tabs, until, seed):
    rand,htmx,shared = random.Random(seed),(HTMX2, HTMX4)[seed%2],seed%4 < 2
    print(f'\nTABS_SEED={seed}, {htmx.__name__}, one connection for {"all tabs" if shared else "each tab"}')
    feed = Feed(random.Random(seed+1))
    tabs.context.add_init_script(RECORD)
    site = make_site(lambda app: setup_sse(app, feed.manager, multiplex=True if shared else 'tab'), hdrs=htmx())
    feed.pages(site)
    proxy = Proxy(loop, site.port)
    world = World(tabs, site, proxy, rand, shared)
    try:
        with feed.flow(site.loop):
            world.open()
            world.go_on(SECONDS)
            world.come_to_rest()
        end = time.monotonic()+END
        for page in tabs: world.in_time(page, end, ACTIVE, len(STREAMS))
        for page in tabs:
            # A stream without heartbeats may learn late that its connection is silent, and what was said until then is lost
            while True:
                loop.run(feed.say())
                last = {url: n for n,url in enumerate(feed.log, 1)} | dict.fromkeys(BY_HAND, feed.said-1)
                if world.in_time(page, min(end, time.monotonic()+1), ARRIVED, last) or time.monotonic() > end: break
        for page in tabs: world.in_time(page, end, ARRIVED, last)
        wrong = defaultdict(dict)
        for page in tabs:
            got,drawn = page.evaluate('[got, window.drawn]')
            for url in STREAMS:
                if fault := feed.wrong(url, got.get(url, []), drawn): wrong[f'tab {world.names[page]}'][url] = fault
        if wrong:
            states = '[window.cjmSSE?.sources.map(s => `${s.url} ${s.state}`), window.shown]'
            for page in tabs: print(world.names[page], page.evaluate(states))
            print(*[text for _,text in tabs.console if '[sse]' in text], sep='\n')
        assert not wrong, f'TABS_SEED={seed}'
        assert tabs.answered()
        proxy.cut()  # From here on the server knows which connections are open
        wanted = 1 if shared else len(tabs)
        until(lambda: site.connections == wanted, lambda: f'{wanted} connections instead of {site.served.open}')
    finally:
        for go_on in world.frozen.values(): go_on()
        proxy.stop()
