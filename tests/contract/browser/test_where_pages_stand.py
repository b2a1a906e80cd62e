"""Nothing is lost between a page and its stream

A page shows the state as it was drawn, and its stream goes on from there: what was added while the page was drawn, or
while it lay in a cache, comes to it, whatever carries the stream. Where the server does not know any more what the
page has missed, the page is loaded anew; and where it is there already, a gap is told to it.
"""
import asyncio
from types import SimpleNamespace

import pytest
from fasthtml.common import Div, EventStream, HttpHeader, Li, P, Ul
from handmade import HTMX2, HTMX4
from starlette.requests import Request

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import oob_element, setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.updater import SSEElementUpdater

WAYS = dict(alone=dict(multiplex=False), tab=dict(multiplex='tab'), browser={})  # How many streams share a connection
LOG = 10  # Messages that the manager keeps
GAPS = """
    window.gaps = 0;
    document.addEventListener('DOMContentLoaded', () => cjmSSE.addEventListener('change', ({ detail: { source } }) => {
        if (!source.counted) source.addEventListener('sse:gap', () => gaps++);
        source.counted = true;
    }));"""
SHOWS = "titles => [...document.querySelectorAll('#list > li')].map(o => o.id).sort().join() === titles"


def connect(url): return HTMXSSEConnector.create_sse_element(endpoint=url, hidden=True)
def shows(page, *titles):
    "Wait until a page shows these, each once"
    page.wait_for_function(SHOWS, arg=','.join(titles))


@pytest.fixture(params=[HTMX2, HTMX4], ids=['htmx2', 'htmx4'])
def hdrs(request): return request.param()


@pytest.fixture(params=WAYS)
def app(request, page, make_site, hdrs):
    "Todos, and a page whose drawing somebody else overtakes"
    if request.param=='alone': page.direct.add('off')
    sse = SSEBroadcastManager(heartbeat=1., retry=100, replay_size=LOG)
    site = make_site(lambda app: setup_sse(app, sse, **WAYS[request.param]), hdrs)
    app = SimpleNamespace(site=site, todos=[], drawn=0, hurry=[])
    app.url,app.cached,app.other = map(site.url, ('p', 'cached', 'other'))

    @site.app.route('/events')
    def events(req: Request): return sse.stream(req, render=render, events=['todo:*', 'place:*'])
    @site.app.route('/late')
    def late(req: Request): return sse.stream(req, render=render, events='late:*')

    def render(message):
        if message['type']=='place:filled': return oob_element('place', connect('/late'))
        return oob_element('list', Li(message['data'], id=message['data']), 'beforeend')

    def draw():
        app.drawn += 1
        shown = [*app.todos]
        for title in app.hurry[:1]: add(app.hurry.pop(0))
        return Ul(*[Li(o, id=o) for o in shown], id='list'), connect('/events'), Div(id='place')

    def broadcast(*messages):
        async def say():
            for message in messages: await sse.broadcast(*message)
        site.loop.run(say())

    def add(title):
        app.todos.append(title)
        broadcast(('todo:added', title))

    app.add,app.cursor = add,lambda: sse.cursor
    # Of the second one nobody can have opened the stream yet
    app.fill = lambda: broadcast(('place:filled', None), ('late:one', 'one'))
    # So much is sent to others that the log holds nothing else
    app.forget = lambda: broadcast(*[('other:said', n) for n in range(2*LOG)])
    def cached(): return HttpHeader('Cache-Control', 'max-age=600'), *draw()
    site.pages |= dict(p=draw, cached=cached, other=lambda: P('other'))
    return app


def test_overtaken_while_it_is_drawn(tabs, app):
    "What is added meanwhile comes to a page, in the first tab and in those that follow; and then what is new"
    app.hurry += ['a', 'b', 'c']
    for n in range(3):
        tabs.open(app.url)
        for tab in tabs: shows(tab, *'abc'[:n+1])
    app.add('d')
    for tab in tabs: shows(tab, *'abcd')


def test_an_element_that_a_message_brings(tabs, app):
    "It goes on behind that message"
    tabs.open(app.url, 2)
    tabs.active(1)
    app.fill()
    for tab in tabs: shows(tab, 'one')


def test_a_page_from_a_cache(page, app):
    "It shows what came meanwhile; where the server does not know that any more, it is loaded anew, once"
    page.add_init_script(GAPS)
    page.goto(app.cached)
    page.wait_for_function("cjmSSE.state === 'active'")
    page.goto(app.other)
    app.add('a')
    page.goto(app.cached)
    shows(page, 'a')
    assert app.drawn==1, 'the browser has a cache'
    page.goto(app.other)
    app.add('b')
    app.forget()
    page.goto(app.cached)
    shows(page, 'a', 'b')
    assert (app.drawn, page.evaluate('gaps'))==(2, 0)
    page.goto(app.other)
    app.add('c')
    app.forget()
    page.goto(app.cached)
    page.wait_for_function('gaps === 1')
    app.add('d')
    page.wait_for_selector('#d')
    assert app.drawn==2, 'a page that comes from a cache again and again is not loaded for ever'


def test_a_gap_while_a_page_is_open(page, app):
    "It is told, and the page stays"
    page.add_init_script(GAPS)
    page.goto(app.url)
    page.wait_for_function("cjmSSE.state === 'active'")
    app.add('a')
    shows(page, 'a')
    app.site.stop()
    app.forget()
    app.site.start()
    page.wait_for_function('gaps === 1')
    app.add('b')
    shows(page, 'a', 'b')
    assert app.drawn==1


class TestStreamsOfManagers:
    "A list of things: a page begins with the state, and each new thing is appended"
    @pytest.fixture
    def things(self, site):
        sse,updater = SSEBroadcastManager(heartbeat=5., retry=50),SSEElementUpdater()
        things = SimpleNamespace(known=[], streams=0)
        setup_sse(site.app, sse)
        def item(name): return Li(name, id=name)
        updater.register_handler('thing', lambda data: oob_element('list', item(data['name']), 'beforeend'))
        def snapshot(): return [oob_element('list', [item(o) for o in things.known])]
        @site.app.route('/events')
        def events(req: Request): return sse.stream(req, render=updater, snapshot=snapshot, until='job:done')
        @sse.on_connect
        def connected(_): things.streams += 1
        element = HTMXSSEConnector.create_sse_element(endpoint=events, hidden=True, auto_reconnect=False)
        site.pages['p'] = lambda: Div(element, Ul(id='list'))
        things.url,things.close = site.url('p'),lambda: site.loop.run(sse.close())
        things.add = lambda name: site.loop.run(sse.broadcast('thing', dict(name=name)))
        things.done = lambda: site.loop.run(sse.broadcast('job:done', {}))
        return things

    def test_the_state_first(self, tabs, things):
        "A tab that is opened later begins with what the others were told"
        tabs.open(things.url)
        tabs.active(1)
        for name in 'ab':
            things.known.append(name)
            things.add(name)
        tabs.open(things.url)
        for tab in tabs: shows(tab, 'a', 'b')
        things.add('c')
        for tab in tabs: shows(tab, 'a', 'b', 'c')

    def test_a_change_that_the_state_holds_already(self, page, things):
        "It is shown once"
        things.known[:] = 'ab'
        page.goto(things.url)
        shows(page, 'a', 'b')
        things.add('b')
        things.add('c')
        shows(page, 'a', 'b', 'c')

    def test_an_end_on_purpose(self, page, things, idle):
        "The stream stays closed"
        page.goto(things.url)
        page.wait_for_function("cjmSSE.state === 'active'")
        things.done()
        page.wait_for_function("cjmSSE.state === 'disconnected'")
        idle(10_000)
        assert things.streams==1

    def test_an_end_that_is_none(self, page, things):
        "A manager that ends all connections, as a server that shuts down does, has its pages come back"
        page.goto(things.url)
        page.wait_for_function("cjmSSE.state === 'active'")
        things.close()
        things.add('a')
        shows(page, 'a')
        assert things.streams==2


def test_a_gap_that_a_stream_by_hand_begins_with(page, app):
    "It says so of itself, and not of what the page has missed: it is told, and the page stays"
    @app.site.app.route('/by_hand')
    def by_hand():
        async def frames():
            yield 'event: sse:gap\ndata: \n\n'
            yield 'data: <i>hello</i>\n\n'
            await asyncio.Event().wait()
        return EventStream(frames())
    def draw():
        app.drawn += 1
        return Div(id='own', **{'hx-ext': 'sse', 'sse-connect': '/by_hand', 'sse-swap': 'message', 'data-sse-cursor': app.cursor()})
    app.site.pages['own'] = draw
    page.add_init_script(GAPS)
    page.goto(app.site.url('own'))
    page.wait_for_selector('#own > i')
    assert (app.drawn, page.evaluate('gaps'))==(1, 1)
