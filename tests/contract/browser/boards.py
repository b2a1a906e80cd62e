"Many tabs of one browser, and a page whose three streams each write down what they bring"
import asyncio
from contextlib import contextmanager, suppress
from copy import copy

from fasthtml.common import Span
from playwright.sync_api import TimeoutError as Late
from starlette.requests import Request

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

SHOWN = "id => [...document.querySelectorAll(`#${id} > i`)].map(e => e.textContent)"
SHOWS = "([id, last]) => document.querySelector(`#${id} > i:last-child`)?.textContent === last"
ANSWERED = "async () => (await fetch('/pages/none', {cache: 'no-store', signal: AbortSignal.timeout(25000)})).status"
# What takes a second or longer in a page takes a tenth of it
HASTE = 'const wait = setTimeout; window.setTimeout = (f, ms, ...rest) => wait(f, ms < 1000 ? ms : ms / 10, ...rest)'


def log(url, id, **kw):
    "An element that appends each message of a stream; the messages are `i` elements"
    return HTMXSSEConnector.create_sse_element(endpoint=url, element_id=id, swap='beforeend', **kw)


class Tabs(list):
    "Tabs of one browser context. The one that was opened first holds the connection, as long as it is well"
    def __init__(self, page):
        super().__init__()
        self.context,self.errors,self.console = page.context,page.errors,[]
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

    def wait(self, script, arg=None, secs=30):
        "Wait until `script` is true in all tabs"
        for page in self: page.wait_for_function(script, arg=arg, timeout=1000*secs)

    def active(self, n, secs=30):
        "Wait until all tabs have `n` streams that are open"
        self.wait('n => window.cjmSSE?.sources.length === n && cjmSSE.sources.every(s => s.state === "active")', n, secs)

    def show(self, id, text):
        "Wait until in each tab the last message in an element is this"
        self.wait(SHOWS, [id, text])

    def answered(self):
        "Does each tab get an answer to a further request? Where all six connections are taken it waits for ever"
        return self.all(ANSWERED)==[200]*len(self)


class Board:
    "One manager and three streams. A page shows all that was sent on each since it was drawn"
    def __init__(self, site, setup=setup_sse, max_age=None, **kw):
        self.site = site
        self.manager = SSEBroadcastManager(heartbeat=1., retry=100, replay_size=20000, max_age=max_age)
        self.sent = {o: [] for o in 'abc'}
        setup(site.app, self.manager, **kw)

        @site.app.route('/{name}/events')
        def events(req: Request, name: str):
            return self.manager.stream(req, render=lambda m: f'<i>{m["data"]}</i>', events=f'{name}:*')

        @site.app.route('/board')
        async def board():
            before = {f'data_{o}': len(sent) for o,sent in self.sent.items()}
            return Span(id='before', **before), *[log(f'/{o}/events', o, after=self.manager.cursor) for o in 'abc']
        site.pages['none'] = lambda: 'none'

    @property
    def url(self): return self.site.url('').removesuffix('pages/')+'board'

    def say(self, n=30):
        "Broadcast the next `n` messages, one stream after another"
        async def say():
            for _ in range(n): await self.say_one()
        self.site.loop.run(say())

    async def say_one(self):
        name = 'abc'[sum(map(len, self.sent.values()))%3]
        self.sent[name].append(text := f'{name}{len(self.sent[name])}')
        await self.manager.broadcast(f'{name}:said', text)

    @contextmanager
    def flow(self):
        "Broadcast a message each few milliseconds inside the `with` block"
        async def flow():
            while flowing:
                await self.say_one()
                await asyncio.sleep(.01)  # Between two messages
        flowing = [True]
        task = asyncio.run_coroutine_threadsafe(flow(), self.site.loop.loop)
        try: yield
        finally:
            flowing.clear()
            task.result(30)

    def complete(self, tabs):
        "Every tab shows all that was sent since it was drawn, in order and once"
        for i,page in enumerate(tabs):
            before = page.evaluate("({...document.querySelector('#before').dataset})")
            for name,sent in self.sent.items():
                want = sent[int(before[name]):]
                if want:
                    with suppress(Late): page.wait_for_function(SHOWS, arg=[name, want[-1]])
                assert page.evaluate(SHOWN, name)==want, f'tab {i}, stream {name}'

    def one_connection(self, tabs, until):
        "Wait until all streams of all tabs are on one connection, and nothing else is open"
        def now(): return self.site.connections, self.manager.connection_count
        until(lambda: now()==(1, 3*len(tabs)), lambda: f'one connection for {3*len(tabs)} streams, not {now()}')
