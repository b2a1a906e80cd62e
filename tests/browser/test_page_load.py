"Between page and stream, in Chromium: whatever carries the stream, it goes on from where the page stands"
from types import SimpleNamespace

import pytest
from fasthtml.common import Div, HttpHeader, Li, P, Ul
from handmade import HTMX2, HTMX4
from starlette.requests import Request

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import oob_element, setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

WAYS = dict(direct=dict(multiplex=False), tab=dict(share=False), browser={})
GAPS = """
    window.gaps = 0;
    document.addEventListener('DOMContentLoaded', () => window.cjmSSE?.addEventListener('change', ({ detail: { source } }) => {
        if (!source.counted) source.addEventListener('sse:gap', () => gaps++);
        source.counted = true;
    }));"""


def connect(url): return HTMXSSEConnector.create_sse_element(endpoint=url, hidden=True)


@pytest.fixture(params=[HTMX2, HTMX4], ids=['htmx2', 'htmx4'])
def hdrs(request): return request.param()


@pytest.fixture(params=WAYS)
def app(request, page, make_site, hdrs):
    "Todos, and a page whose drawing somebody else overtakes"
    if request.param == 'direct': page.direct.add('off')
    sse,app = SSEBroadcastManager(heartbeat=1., retry=100),SimpleNamespace(todos=[], drawn=0, hurry=[], way=request.param)
    site = make_site(lambda app: setup_sse(app, sse, **WAYS[request.param]), hdrs)

    async def add(title):
        app.todos.append(title)
        await sse.broadcast('todo:added', title)

    def draw():
        app.drawn += 1
        shown = [*app.todos]
        for title in app.hurry[:1]: site.loop.run(add(app.hurry.pop(0)))
        return Ul(*[Li(o, id=o) for o in shown], id='list'), connect('/events'), Div(id='place')

    def render(message):
        if message['type']=='place:filled': return oob_element('place', connect('/late'))
        return oob_element('list', Li(message['data'], id=message['data']), 'beforeend')

    @site.app.route('/events')
    def events(req: Request): return sse.stream(req, render=render, events=['todo:*', 'place:*'])
    @site.app.route('/late')
    def late(req: Request): return sse.stream(req, render=render, events='late:*')
    site.pages |= dict(p=draw, cached=lambda: (HttpHeader('Cache-Control', 'max-age=600'), *draw()), other=lambda: P('other'))
    async def fill():
        await sse.broadcast('place:filled', None)
        await sse.broadcast('late:one', 'one')  # Nobody can have opened its stream yet
    async def restart(): sse._hub.renew('c0ffee-0' if sse._hub.log.epoch!='c0ffee' else 'decade-0')  # All ids of before mean nothing any more
    app.add,app.fill,app.restart = (lambda title: site.loop.run(add(title))),(lambda: site.loop.run(fill())),(lambda: site.loop.run(restart()))
    app.url,app.cached,app.other = site.url('p'),site.url('cached'),site.url('other')
    return app


def shows(page, *titles):
    "Wait until a page shows these, each once"
    page.wait_for_function("titles => [...document.querySelectorAll('#list > li')].map(o => o.id).sort().join() === titles", arg=','.join(titles))


def test_overtaken_pages(tabs, app):
    "What was added while a page was drawn comes to it, in the first tab and in those that follow; and then what is new"
    app.hurry += ['a', 'b', 'c']
    for n in range(3):
        tabs.open(app.url)
        for tab in tabs: shows(tab, *'abc'[:n+1])
    app.add('d')
    for tab in tabs: shows(tab, *'abcd')


def test_element_of_a_message(tabs, app):
    "An element that a message brings goes on behind that message"
    tabs.open(app.url, 2)
    tabs.active(1)
    app.fill()
    for tab in tabs: shows(tab, 'one')


def test_page_from_a_cache(page, app, until):
    "What came meanwhile is replayed; where the server has forgotten it, the page is fetched anew, once"
    page.add_init_script(GAPS)
    page.goto(app.cached)
    page.wait_for_function("cjmSSE.state === 'active'")
    page.goto(app.other)
    app.add('a')
    page.goto(app.cached)
    shows(page, 'a')
    assert app.drawn==1, 'a cache should have kept the page'
    page.goto(app.other)
    app.restart()
    app.add('b')
    page.goto(app.cached)
    shows(page, 'a', 'b')
    assert (app.drawn, page.evaluate('gaps'))==(2, 0)
    page.goto(app.other)
    app.restart()
    app.add('c')
    page.goto(app.cached)
    page.wait_for_function('gaps === 1')
    app.add('d')
    page.wait_for_selector('#d')
    assert app.drawn==2, 'a page that comes from a cache again and again is not fetched for ever'


def test_later_gaps(page, app):
    "A gap of a reconnection is told, and the page stays"
    page.add_init_script(GAPS)
    page.goto(app.url)
    page.wait_for_function("cjmSSE.state === 'active'")
    app.add('a')
    shows(page, 'a')
    app.restart()
    page.wait_for_function('gaps === 1')
    app.add('b')
    shows(page, 'a', 'b')
    assert app.drawn==1
