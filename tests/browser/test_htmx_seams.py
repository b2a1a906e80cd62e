"Where htmx and the client meet: elements that htmx keeps, processes twice, saves for Back or brings by a swap; what an app is told, and what it does itself"
import re
from importlib.resources import files

import pytest
from fasthtml.common import Button, NotStr, Script, Span
from starlette.responses import Response

from handmade import HTMX2, MAJORS

from cjm_fasthtml_sse.htmx import HTMXSSEConnector, client_js

connect = HTMXSSEConnector.create_sse_element


def shows(page, css, text): page.wait_for_function('([css, text]) => document.querySelector(css)?.textContent === text', arg=[css, text])
def log(id, **kw): return connect(Span, element_id=id, swap='beforeend', **kw)
def live(*more, **kw): return connect(endpoint='/stream/events', element_id='live', swap='none', content=[*more, log('log', events='line')], **kw)
def line(text): return f'event: line\ndata: {text}\n\n'
def complaints(page): return [t for k,t in page.console if k in ('warning', 'error') and 'Failed to load resource' not in t and 'Log in again' not in t]


@pytest.fixture(params=MAJORS)
def major(request): return request.param


@pytest.fixture
def site(make_site, page, major):
    yield make_site(hdrs=MAJORS[major]())
    assert not complaints(page)
    # hx-sse from its CDN, beside ours: Firefox says that it can't have it
    page.errors[:] = [o for o in page.errors if 'cdn.jsdelivr.net' not in o]


@pytest.fixture
def opened(page, site, until):
    "Opens a page with this content, and waits for its first stream"
    def opened(*content, path='events'):
        site.pages['p'] = lambda: content
        page.goto(site.url('p'))
        until(lambda: site.count(path))
        page.wait_for_function("cjmSSE.sources.every(source => source.state === 'active')")
    return opened


class TestKeptElements:
    @pytest.mark.parametrize('order', ['htmx extension client', 'htmx client extension', 'client htmx extension', 'client htmx'])
    def test_scripts_of_htmx_2(self, page, make_site, until, order):
        "Whether htmx's own extension comes before the client, after it or not at all, the client serves the elements"
        page.direct.add('off')  # A client that is there by hand has nobody to order from
        htmx,extension = HTMX2()
        scripts = dict(htmx=htmx, extension=extension, client=Script(client_js('2'), data_sse_client=True))
        site = make_site(hdrs=[scripts[o] for o in order.split()], setup=None)
        site.pages['p'] = lambda: live()
        page.goto(site.url('p'))
        until(site.count)
        page.evaluate("document.querySelector('#live').classList.add('x'); htmx.process(document.body)")
        site.send(line('a'))
        shows(page, '#log', 'a')
        assert (page.evaluate('cjmSSE.sources.length'), len(site.requests), complaints(page)) == (1, 1, [])


class TestAttributes:
    def test_no_lookbehind(self):
        "Safari 15.4 to 16.3 reads no script with a lookbehind in it"
        for file in (files('cjm_fasthtml_sse')/'static').iterdir():
            assert not re.search(r'\(\?<[=!]', file.read_text(encoding='utf-8')), file.name


OWN = "htmx.createEventSource = url => { (window.made ??= []).push(url); return new EventSource(url) };"


class TestSourcesOfTheApp:
    def test_it_comes_back(self, page, make_site, until, major):
        "A source of the browser's own that was refused is made anew"
        site = make_site(hdrs=[*MAJORS[major](), NotStr(f'<script>{OWN}</script>')])
        site.answers['events'] = lambda n: Response(status_code=502) if n < 3 else None
        site.pages['p'] = lambda: live()
        page.goto(site.url('p'))
        until(site.count)
        site.send(line('a'))
        shows(page, '#log', 'a')
        assert len(site.requests) == 3


class TestVisitors:
    def test_after_each_request(self, page, site, opened, until):
        "The client hears who each answer to a request of htmx was for"
        def answer(route):
            tag = re.search(r'for/(\w+)', route.request.url)[1]
            route.fulfill(body='<p>x</p>', content_type='text/html', headers={} if tag == 'none' else {'SSE-Visitor': tag})
        page.route('**/for/*', answer)
        opened(live(), *[Button(o, id=o, hx_get=f'/for/{o}', hx_swap='outerHTML') for o in ('aa', 'none', 'bb')])
        page.evaluate('window.visitors = []; cjmSSE.visitor = tag => { if (tag && tag !== visitors.at(-1)) visitors.push(tag) }; 0')
        for o in ('aa', 'none', 'bb'):
            page.click(f'#{o}')
            page.wait_for_selector(f'#{o}', state='detached')
        page.wait_for_function('visitors.length === 2')
        assert page.evaluate('visitors') == ['aa', 'bb']
        page.unroute_all()
