"Where htmx and the client meet: elements that htmx keeps, processes twice, saves for Back or brings by a swap; what an app is told, and what it does itself"
import re
from importlib.resources import files

import pytest
from fasthtml.common import Button, Div, Li, NotStr, P, Script, Span, Ul, to_xml
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from handmade import HTMX2, HTMX4, MAJORS
from browsers import each_browser

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector, client_js

connect = HTMXSSEConnector.create_sse_element


def shows(page, css, text): page.wait_for_function('([css, text]) => document.querySelector(css)?.textContent === text', arg=[css, text])
def html(element): return to_xml(element, indent=False).strip().replace('\n', ' ')
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
    @each_browser
    @pytest.mark.parametrize('swap', ['innerHTML', 'outerHTML'])
    @pytest.mark.parametrize('deep', [False, True])
    def test_preserved(self, page, site, opened, until, swap, deep):
        "An element that htmx keeps goes on with its stream, and the elements within go on listening"
        def region(text): return Div(P(text, id='text'), Div(live(hx_preserve=True)) if deep else live(hx_preserve=True), id='region')
        opened(Button('x', hx_get='/pages/again', hx_target='#region', hx_swap=swap), region('old'))
        site.pages['again'] = lambda: region('new') if swap == 'outerHTML' else region('new').children
        site.send(line('a'))
        shows(page, '#log', 'a')
        for n in (1, 2):
            page.evaluate("document.querySelector('#text').textContent = 'old'")
            page.evaluate("document.querySelector('button').click()")
            shows(page, '#text', 'new')
            page.wait_for_timeout(50)  # What is connected too much opens now
            site.send(line(n))
            shows(page, '#log', 'a12'[:n+1])
        assert (len(site.requests), site.count(), page.evaluate('cjmSSE.sources.length')) == (1, 1, 1)

    @each_browser
    def test_processed_again(self, page, site, opened):
        "htmx processes an element anew whose attributes have changed; its stream stays, and what hears it hears it once"
        opened(live(log('own', endpoint='/stream/own', events='line')), path='own')
        for css in ('#live', '#log', '#own', '*'):
            page.evaluate("css => { document.querySelectorAll(css).forEach(e => e.classList.toggle(`seen`)); htmx.process(document.body) }", css)
        site.send(line('a'))
        site.send(line('b'), 'own')
        shows(page, '#own', 'b')
        shows(page, '#log', 'a')
        assert (site.last_ids(), site.last_ids('own'), page.evaluate('cjmSSE.sources.length')) == ([''], [''], 2)

    def test_brought_and_processed_again(self, page, site, opened, until):
        "So does one that a message has brought"
        opened(connect(endpoint='/stream/news', element_id='news', hidden=True), Div(id='place'), path='news')
        site.send(f'data: {html(Div(live(), id="place", hx_swap_oob="true"))}\n\n', 'news')
        until(site.count)
        page.evaluate('htmx.process(document.body)')
        site.send(line('a'))
        shows(page, '#log', 'a')
        assert site.last_ids() == ['']

    def test_another_address(self, page, site, opened, until):
        "A changed address is opened instead of the old one, and the elements within hear that"
        opened(live())
        page.evaluate("""() => { const e = document.querySelector('#live'), name = e.hasAttribute('sse-connect') ? 'sse-connect' : 'data-sse-connect';
            e.setAttribute(name, '/stream/other'); htmx.process(document.body) }""")
        until(lambda: site.count('other') == 1 and not site.count())
        site.send(line('a'), 'other')
        shows(page, '#log', 'a')

    def test_processed_before_it_is_in_the_page(self, page, site, opened, until):
        "A script may process an element first, and append it then"
        opened(connect(endpoint='/stream/news', element_id='news', hidden=True), path='news')
        page.evaluate("""html => { const template = document.createElement('template'); template.innerHTML = html;
            const e = template.content.firstElementChild; htmx.process(e); document.body.append(e); htmx.process(document.body) }""", html(live()))
        until(site.count)
        site.send(line('a'))
        shows(page, '#log', 'a')
        assert (site.last_ids(), page.evaluate("cjmSSE.get('live').state")) == ([''], 'active')

    def test_disabled(self, page, site, opened, major):
        "What is within a part of the page that htmx leaves alone swaps nothing"
        off = 'hx_disable' if major < '4' else 'hx_ignore'
        opened(live(log('free', events='line'), Div(log('barred', events='line'), live(), **{off: True})))
        site.send(line('a'))
        shows(page, '#free', 'a')
        assert page.inner_text('#barred') == '' and len(site.requests) == 1

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
    def test_as_the_server_wrote_them(self, page, site, opened, until):
        "The client writes nothing into the elements it serves"
        element = live(log('own', endpoint='/stream/own', events='line'))
        seen = "[...document.querySelectorAll('#live, #log, #own')].map(e => e.getAttributeNames().filter(o => !/powered|^class$/.test(o)).sort().join(' '))"
        opened(element, path='own')
        page.evaluate("window.written = () => { const t = document.createElement('template'); t.innerHTML = %r; return t.content }" % html(element))
        assert page.evaluate(seen) == page.evaluate(seen.replace('document.query', 'written().query'))

    def test_history(self, page, site, opened, until):
        "What htmx keeps for Back says where to go on from; the elements in the page do not change, so htmx starts none of them anew"
        loads = []
        site.pages |= {'q': lambda: P('q', id='place'), 'loaded': lambda: loads.append(1) or ''}
        opened(live(hx_get='/pages/loaded', hx_trigger='load'), Button('go', hx_get='/pages/q', hx_target='#place', hx_swap='outerHTML', hx_push_url='true'), P('p', id='place'))
        site.send('id: 7\n' + line('a'))
        shows(page, '#log', 'a')
        until(lambda: loads)
        before = page.evaluate("document.querySelector('#live').cloneNode(false).outerHTML")
        page.click('button')
        shows(page, '#place', 'q')
        assert page.evaluate("document.querySelector('#live').cloneNode(false).outerHTML") == before
        page.evaluate('htmx.process(document.body)')
        site.send('id: 8\n' + line('b'))
        shows(page, '#log', 'ab')
        assert (len(loads), len(site.requests)) == (1, 1)

    def test_back_by_a_cache_of_htmx_4(self, page, make_site, until):
        "Its extension hx-history-cache keeps pages as htmx 2 does"
        site = make_site(hdrs=[*HTMX4(), NotStr('<script src="/assets/hx-history-cache.js"></script>')])
        site.pages |= {'p': lambda: Div(live(), Button('go', hx_get='/pages/q', hx_target='body', hx_push_url='true')), 'q': lambda: P('q')}
        page.goto(site.url('p'))
        until(site.count)
        site.send('id: 7\n' + line('a'))
        shows(page, '#log', 'a')
        page.click('button')
        until(lambda: not site.count())
        page.go_back()
        until(site.count)
        assert (page.inner_text('#log'), site.last_ids()) == ('a', ['', '7'])

    @pytest.mark.parametrize('major', ['4.0.0', '4.0.1'], indirect=True)
    def test_morph(self, page, site, opened, until):
        "A morph of htmx 4 finds the elements that are the same, ids or none, so none connects anew"
        def row(name): return connect(Li, f'/stream/{name}', content=name)
        opened(Button('x', hx_get='/pages/turned', hx_target='#list', hx_swap='innerMorph'), Ul(*map(row, 'abc'), id='list'), path='c')
        page.evaluate("document.querySelectorAll('li').forEach((e, i) => e.was = i)")
        site.pages['turned'] = lambda: [*map(row, 'bca')]
        page.click('button')
        page.wait_for_function("document.querySelector('#list').textContent.replace(/\\s/g, '') === 'bca'")
        assert page.evaluate("[...document.querySelectorAll('li')].map(e => e.was)") == [1, 2, 0]
        assert sorted(p for p,_ in site.requests) == ['a', 'b', 'c']

    def test_no_lookbehind(self):
        "Safari 15.4 to 16.3 reads no script with a lookbehind in it"
        for file in (files('cjm_fasthtml_sse')/'static').iterdir():
            assert not re.search(r'\(\?<[=!]', file.read_text(encoding='utf-8')), file.name


class TestSwaps:
    @pytest.fixture
    def snapshots(self, page, site, until):
        "A stream whose first message is the state"
        manager,self.n = SSEBroadcastManager(heartbeat=5.), 0
        setup_sse(site.app, manager, multiplex=True)
        @site.app.route('/state')
        def state(req: Request): return manager.stream(req, snapshot=lambda: self.count(), render=lambda m: m['data'])
        return manager

    def count(self):
        self.n += 1
        return f'<i>{self.n}</i>'

    def test_snapshot(self, page, site, snapshots, opened):
        "What a request or a message brings gets its snapshot, as what the page came with"
        def element(id): return connect(endpoint='/state', element_id=id)
        site.pages |= {'p': lambda: (element('first'), Button('x', hx_get='/pages/more', hx_target='#place'), Div(id='place'), connect(endpoint='/stream/news', hidden=True), Div(id='there')),
                       'more': lambda: element('second')}
        page.goto(site.url('p'))
        page.wait_for_selector('#first i')
        page.click('button')
        page.wait_for_selector('#second i')
        page.wait_for_function("cjmSSE.sources.length === 3 && cjmSSE.sources.every(source => source.state === 'active')")
        site.send(f'data: {html(Div(element("third"), id="there", hx_swap_oob="true"))}\n\n', 'news')
        page.wait_for_selector('#third i')


ERRORS = "document.addEventListener('htmx:sseError', ({ target, detail }) => (window.errors ??= []).push([target.id, detail.error instanceof Error, detail.error?.message, detail.error?.status, detail.source === cjmSSE.get(target)]))"


class TestErrors:
    def test_detail(self, page, site, until):
        "`htmx:sseError` says what went wrong, each time, a final refusal too; and no console is filled with it"
        answers = {2: Response(status_code=500), 3: HTMLResponse('<p>busy'), 4: Response(status_code=403)}
        site.answers['events'], site.opening['events'] = answers.get, 'retry: 20\n\n'
        site.pages['p'] = lambda: live()
        page.add_init_script(ERRORS)
        page.goto(site.url('p'))
        until(site.count)
        site.send(None)
        page.wait_for_function("cjmSSE.state === 'error'")
        assert page.evaluate('errors') == [['live', True, reason, status, True] for reason,status in
                                           [('end of stream', None), ('status 500', 500), ('content type text/html', 200), ('status 403', 403)]]
        page.evaluate('window.errors = []; cjmSSE.reconnect()')
        until(site.count)
        page.evaluate('cjmSSE.close()')
        assert page.evaluate('errors') == [], 'none of these is an error'

    def test_events_named_like_the_sources_own(self, page, site, opened):
        "A server may name an event `error` or `open`"
        opened(live())
        page.evaluate("window.told = []; for (const type of ['htmx:sseError', 'htmx:sseOpen']) document.addEventListener(type, e => told.push(type))")
        for name in ('error', 'open', 'sse:state'): site.send(f'event: {name}\ndata: 1\n\n')
        site.send(line('a'))
        shows(page, '#log', 'a')
        assert page.evaluate('told') == []

    def test_redirect_to_login(self, page, make_site, until, major):
        "A stream that leads to a log-in page stops, and says so"
        site = make_site(hdrs=MAJORS[major]())
        site.answers['events'] = lambda n: RedirectResponse('/pages/login')
        site.pages |= {'p': lambda: live(P('as it was')), 'login': lambda: P('Who are you?')}
        page.add_init_script(ERRORS)
        page.goto(site.url('p'))
        page.wait_for_function("cjmSSE.state === 'error'", timeout=5000)
        assert page.evaluate("cjmSSE.get('live').reason") == 'Log in again'
        assert [o[2] for o in page.evaluate('errors')] == ['Log in again']
        assert 'Who are you' not in page.inner_text('body')
        until(lambda: [t for _,t in page.console if 'Log in again' in t and '/stream/events' in t], 'the console says so')
        n = len(site.requests)
        page.evaluate('htmx.process(document.body)')
        page.wait_for_timeout(100)
        assert len(site.requests) == n

    @each_browser
    def test_session_that_ends(self, page, site, opened):
        "So does one whose session is over when it comes back"
        site.opening['events'] = 'retry: 20\n\n'
        opened(live())
        site.pages['login'] = lambda: P('Who are you?')
        site.answers['events'] = lambda n: RedirectResponse('/pages/login')
        site.send(None)
        page.wait_for_function("cjmSSE.state === 'error' && cjmSSE.get('live').reason === 'Log in again'")


OWN = "htmx.createEventSource = url => { (window.made ??= []).push(url); return new EventSource(url) };"


class TestSourcesOfTheApp:
    @pytest.mark.parametrize('when', ['before', 'after'])
    def test_its_own_factory(self, page, make_site, until, major, when):
        "`htmx.createEventSource` of the app makes the sources, whether it was set before the client came or after it"
        own = NotStr(f'<script>{OWN}</script>')
        def setup(app):
            setup_sse(app)
            if when == 'after': app.hdrs.append(own)
        site = make_site(setup, hdrs=[*MAJORS[major](), *([own] if when == 'before' else [])])
        site.pages['p'] = lambda: live()
        page.goto(site.url('p'))
        until(site.count)
        site.send(line('a'))
        shows(page, '#log', 'a')
        page.evaluate("document.querySelector('#live').classList.toggle('x'); htmx.process(document.body)")
        site.send(line('b'))
        shows(page, '#log', 'ab')
        assert page.evaluate('[made, cjmSSE.sources.length]') == [['/stream/events'], 0]
        assert len(site.requests) == 1
        page.evaluate("htmx.process(document.body); window.got = document.querySelector('#live')")
        page.wait_for_timeout(2500)
        assert not complaints(page), 'it is connected, if not by us'
        page.evaluate("major => major < '4' ? htmx.swap(got, '', {swapStyle: 'delete'}) : htmx.swap({target: got, text: '', swap: 'delete'})", major)
        until(lambda: (site.send(line('c')), not site.count())[1], 'it ends with its element')

    def test_its_own_factory_around_ours(self, page, site, opened):
        "One that asks the one before it gets sources of ours"
        page.add_init_script("document.addEventListener('DOMContentLoaded', () => { const { createEventSource } = htmx; htmx.createEventSource = url => createEventSource(url + '?more') }, true)")
        opened(live())
        site.send(line('a'))
        shows(page, '#log', 'a')
        assert page.evaluate("[cjmSSE.sources.length, cjmSSE.get('live').url.slice(-5)]") == [1, '?more']

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
