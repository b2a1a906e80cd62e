"One app under htmx 2 and htmx 4: the same Python, the same page code, and the same things happen"
import pytest
from fasthtml.common import Button, Div, Input, Meta, NotStr, P, Script, Span, Ul, fast_app, to_xml
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from handmade import ASSETS, HTMX4, MAJORS

from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, oob_update, sse_element
from cjm_fasthtml_sse.htmx import HTMXSSEConnector, client_js
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor

connect = HTMXSSEConnector.create_sse_element
LATER = "document.addEventListener('DOMContentLoaded', () => cjmSSE.addEventListener('change', e => { e.detail.source.configure({delay: 20}); (window.seen ??= []).push(e.detail) }))"


def hidden(**kw): return connect(endpoint='/stream/events', element_id='sse-connection', hidden=True, **kw)
def oob(id, html, swap='innerHTML'): return f'data: <div id="{id}" hx-swap-oob="{swap}">{html}</div>\n\n'
def texts(page, css): return page.locator(css).all_inner_texts()
def watched(**kw): return Div(hidden(), Span('server says', id='connection-status'), create_sse_monitor(HTMXSSEConnector, SSEMonitorConfig(reconnect_delay=50), **kw))
def complaints(page):
    "Warnings and errors in the console. Failed requests are there by nature, htmx 2 notes each lost connection as `Event`, and hints have tests of their own"
    return [t for k,t in page.console if k in ('warning', 'error') and 'Failed to load resource' not in t and t != 'Event' and '"Nothing happens"' not in t]
def shows(page, css, text): page.wait_for_function('([css, text]) => document.querySelector(css)?.textContent === text', arg=[css, text])


@pytest.fixture(params=MAJORS)
def major(request): return request.param


@pytest.fixture
def site(make_site, page, major):
    "A site with one of the versions; no page of it may have anything in its console but failed requests"
    yield make_site(hdrs=MAJORS[major]())
    assert not complaints(page)


def test_swaps(page, site, until):
    "Named events and unnamed ones, here and in elements within, with each element's own swap style and target; scripts may listen and refuse"
    inner = [connect(Span, element_id='price', events=['price', 'tax']), connect(Span, element_id='volume', events='volume', swap='beforeend')]
    site.pages['p'] = lambda: Div(connect(endpoint='/stream/events', element_id='all', swap='none', content=inner),
                                  connect(endpoint='/stream/events', element_id='log', events='price, volume', swap='beforeend', hx_target='#there'), P(id='there'),
                                  connect(P, endpoint='/stream/events', element_id='plain'), Span(id='oob'))
    page.goto(site.url('p'))
    page.wait_for_function("cjmSSE.sources.length === 3 && cjmSSE.sources.every(source => source.state === 'active')")
    page.evaluate("document.addEventListener('htmx:sseBeforeMessage', e => { (window.asked ??= []).push(e.target.id); if (e.detail.data === 'no') e.preventDefault() })")
    for name, data in [('price', 1), ('volume', 2), ('tax', 3), ('volume', 4), ('volume', 'no'), ('other', 5)]: site.send(f'event: {name}\ndata: {data}\n\n')
    site.send('data: <b>6</b><i id="oob" hx-swap-oob="true">7</i>\n\n')
    shows(page, '#plain', '6')
    page.wait_for_function("document.querySelectorAll('#there').length === 1 && document.querySelector('#there').textContent === '124'")
    assert (texts(page, '#all > span'), texts(page, '#oob'), page.inner_html('#plain')) == (['3', '24'], ['7'], '<b>6</b>')
    assert page.evaluate("asked.filter(id => id === 'volume').length") == 3


def test_out_of_band_only(page, site, until):
    "Messages that are out-of-band altogether leave the element alone that hears them, whatever its swap style; one that is more does not"
    site.pages['p'] = lambda: Div(connect(endpoint='/stream/events', element_id='el', content=P('as it was')), Span(id='a'), Span(id='b'))
    page.goto(site.url('p'))
    until(site.count)
    site.send(f'{oob("a", "A").rstrip()}\ndata: \ndata: <span hx-swap-oob="true" id="b">B</span>\n\n')
    shows(page, '#b', 'B')
    assert (page.inner_text('#a'), page.inner_html('#el').strip()) == ('A', '<p>as it was</p>')
    site.send('data: <i>new</i><span hx-swap-oob="true" id="b">C</span>\n\n')
    shows(page, '#b', 'C')
    assert texts(page, '#el > *') == ['new']


def test_ids_with_colons(page, site, until):
    "An update finds its element whatever its id is made of"
    from cjm_fasthtml_sse.helpers import oob_swap, oob_update
    from fasthtml.common import to_xml
    ids = ['job:1', 'a.b: c', '7up', '-7', 'é,"']
    site.pages['p'] = lambda: (hidden(), *[Ul(id=i) for i in ids])
    page.goto(site.url('p'))
    until(site.count)
    for i in ids: site.send(f"data: {to_xml(oob_update(i, NotStr('<li>1</li>')), indent=False).strip()}\n\ndata: {to_xml(oob_swap(Div(NotStr('<li>2</li>')), 'beforeend', i), indent=False).strip()}\n\n")
    page.wait_for_function("document.querySelectorAll('li').length === 10")
    assert texts(page, 'ul') == ['1\n2']*5


def test_hidden_listener(page, site, until):
    "A hidden element swaps nothing, unless it says what and where"
    site.pages['p'] = lambda: Div(hidden(hx_target='#log', hx_swap='beforeend'), P(id='log'))
    page.goto(site.url('p'))
    until(site.count)
    for word in 'one', 'two': site.send(f'data: <b>{word}</b>\n\n')
    shows(page, '#log', 'onetwo')


def test_closing_event(page, site, until):
    "`sse:close` ends the stream of an element that waits for it, and only there"
    once = sse_element('/stream/events', swap='beforeend')(lambda: Div(id='once'))
    site.pages['p'] = lambda: (once(), connect(endpoint='/stream/other', element_id='always'), Script("addEventListener('htmx:sseClose', e => window.ended = e.detail.type)"))
    page.goto(site.url('p'))
    until(lambda: site.count() == 1 and site.count('other') == 1)
    for path in ('events', 'other'):
        site.send('retry: 50\ndata: done\n\n', path)
        site.send('event: sse:close\ndata: \n\n', path)
        site.send(None, path)
    until(lambda: len(site.last_ids('other')) == 2, 'the other stream came back')
    page.wait_for_timeout(150)
    assert (len(site.last_ids()), page.inner_text('#once'), page.evaluate('ended')) == (1, 'done', 'message')
    page.evaluate("htmx.process(document.body)")
    page.wait_for_timeout(50)
    assert len(site.last_ids()) == 1


def test_job_elements(page, site, until):
    "Progress and status of a job: shown from the start, updated, and left as they are at the end"
    site.pages['p'] = lambda: Div(*[f('j 1', f'/stream/{n}?job={{job_id}}', initial_content=n) for n,f in
        [('progress', HTMXSSEConnector.sse_progress_element), ('status', HTMXSSEConnector.sse_status_element)]])
    page.goto(site.url('p'))
    until(lambda: site.count('progress') == site.count('status') == 1)
    assert texts(page, 'div > span') == ['progress', 'status']
    site.send('data: <progress value=".5"></progress>\n\n', 'progress')
    page.wait_for_function("document.querySelector('progress')?.value === .5")
    site.send('data: done\n\nevent: sse:close\ndata: \n\n', 'status')
    shows(page, '[id="status-span-j 1"]', 'done')
    site.send(f'data: {to_xml(oob_update("progress-span-j 1", "half", element_type=Span), indent=False).strip()}\n\n', 'progress')
    shows(page, '[id="progress-span-j 1"]', 'half')
    until(lambda: not site.count('status') and site.count('progress'))


def test_monitor(page, site, until, state, major):
    "All four states, and the object for scripts; with the monitor's own script, and with the client's"
    site.pages['p'] = lambda: (watched(inline=major != '4.0.0'), Ul(id='list'))
    gate = dict(code=500)
    site.answers['events'] = lambda n: Response(status_code=gate['code']) if gate['code'] else None
    page.add_init_script("document.addEventListener('DOMContentLoaded', () => cjmSSE.addEventListener('change', e => (window.seen ??= []).push(e.detail.state)))")
    page.goto(site.url('p'))
    state('reconnecting')
    gate['code'] = None
    state('active')
    site.publish('x')
    page.wait_for_function("cjmSSE.lastEventId === '1'")
    page.evaluate('cjmSSE.close()')
    state('disconnected')
    until(lambda: not site.count())
    page.evaluate('cjmSSE.reconnect()')
    state('active')
    assert site.last_ids()[-1] == '1'
    gate['code'] = 403
    site.send(None)
    state('error')
    assert page.evaluate("[cjmSSE.state, cjmSSE.get('sse-connection').reason]") == ['error', 'status 403']
    seen = page.evaluate('seen')
    assert [s for i,s in enumerate(seen) if s != seen[i-1]] == ['connecting', 'reconnecting', 'active', 'disconnected', 'reconnecting', 'active', 'reconnecting', 'error'], seen


def test_later_elements(page, site, until, state):
    "What a swap brings connects, a monitor too; what goes releases its connection at once, by whatever means; what moves keeps it"
    site.pages |= {'p': lambda: Div(Button('x', id='more', hx_get='/pages/late', hx_target='#place'), Button('y', id='less', hx_get='/pages/none', hx_target='#place'), Div(id='place')),
                   'late': lambda: watched(inline=False), 'none': lambda: Span('none')}
    page.goto(site.url('p'))
    for how in ('swap', 'remove()'):
        page.click('#more')
        state('active')
        until(lambda: site.count() == 1)
        n = len(site.requests)
        page.evaluate("document.body.append(document.querySelector('#sse-connection'))")
        page.evaluate("document.querySelector('#place').append(document.querySelector('#sse-connection')); htmx.process(document.body)")
        site.send('event: x\ndata: \n\n')
        page.wait_for_timeout(50)
        assert (len(site.requests), site.count()) == (n, 1)
        if how == 'swap': page.click('#less')
        else: page.evaluate("document.querySelector('#place').replaceChildren()")
        until(lambda: not site.count())
    assert page.evaluate('cjmSSE.sources.length') == 0


def test_first_answers(page, site, until):
    "A first answer that is no stream does not land in the page: a page and a 503 are asked again, a 403 is not"
    def again(make): return lambda n: make() if n < 3 else None
    site.answers |= {'page': again(lambda: HTMLResponse('<h1>a page</h1>')),
                     's503': again(lambda: Response('<h1>busy</h1>', status_code=503)), 's403': lambda n: HTMLResponse('<h1>forbidden</h1>', status_code=403)}
    site.pages |= {'p': lambda: Div(*[connect(endpoint=f'/stream/{n}', element_id=n, content=P(n)) for n in site.answers])}
    page.add_init_script(LATER)
    page.goto(site.url('p'))
    for n in ('page', 's503'): until(lambda n=n: len(site.last_ids(n)) == 3 and site.count(n) == 1, n)
    page.wait_for_timeout(100)
    assert len(site.last_ids('s403')) == 1
    assert texts(page, 'p') == [*site.answers]
    assert page.evaluate("[...document.querySelectorAll('p')].map(p => cjmSSE.get(p.parentElement).state)") == ['active', 'active', 'error']
    assert [page.evaluate("name => seen.find(c => c.element.id === name && c.state === 'reconnecting').status", n) for n in ('page', 's503')] == [200, 503]


def test_repeated_elements_replace(page, site, until):
    "An appended element whose id stands in the page takes the place of the old one; what goes on in the old one ends"
    old = connect(Span, '/stream/inner', element_id='b')
    site.pages |= {'p': lambda: (hidden(), Div(Span('a', id='a'), old, Span('c', id='c'), id='list')), 'hello': lambda: Span('hello')}
    page.goto(site.url('p'))
    until(lambda: site.count() == site.count('inner') == 1)
    site.send(oob('list', '<span id="b" hx-get="/pages/hello">click</span><span id="d">d</span>', 'beforeend'))
    shows(page, '#d', 'd')
    assert texts(page, '#list > span') == ['a', 'click', 'c', 'd']
    until(lambda: not site.count('inner'))
    site.send(oob('list', '<span id="a">A</span><span id="n">n</span>', 'afterbegin'))
    shows(page, '#n', 'n')
    assert texts(page, '#list > span') == ['n', 'A', 'click', 'c', 'd']
    page.click('#b')
    shows(page, '#b > span', 'hello')


def test_triggers(page, site, until):
    "`hx-trigger=\"sse:name\"`: an event makes an element ask the server"
    site.pages |= {'p': lambda: connect(endpoint='/stream/events', swap='none', hx_ext='sse', content=[Div(id='a', hx_get='/pages/hello', hx_trigger='sse:news, click', hx_swap='innerHTML'),
                                                                                                  Div(id='b', hx_get='/pages/hello', hx_trigger='sse:newsletter', hx_swap='innerHTML')]),
                   'hello': lambda: Span('hello')}
    page.goto(site.url('p'))
    until(site.count)
    site.send('event: news\ndata: \n\n')
    shows(page, '#a', 'hello')
    assert page.inner_text('#b') == ''


def test_hidden_tab(page, site, until):
    "A tab that is hidden keeps its connection"
    site.pages['p'] = lambda: (hidden(), Span(id='a'))
    page.goto(site.url('p'))
    until(site.count)
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true}); document.dispatchEvent(new Event('visibilitychange'))")
    site.send(oob('a', 'A'))
    shows(page, '#a', 'A')
    assert (site.count(), len(site.requests)) == (1, 1)


def test_tabs_share(page, site, until, state):
    "Tabs share one connection; each has its swaps and its monitor"
    site.pages['p'] = lambda: (watched(), Ul(id='list'))
    tabs = [page, *[page.context.new_page() for _ in range(3)]]
    for tab in tabs: tab.goto(site.url('p'))
    for tab in tabs: tab.wait_for_selector('#connection-status[data-sse-state=active]')
    until(lambda: (site.count(), site.connections) == (4, 1))
    for i in '12': site.publish(f'<ul id="list" hx-swap-oob="beforeend"><li>{i}</li></ul>')
    for tab in tabs: shows(tab, '#list', '12')
    tabs.pop().close()
    site.publish('<ul id="list" hx-swap-oob="beforeend"><li>3</li></ul>')
    for tab in tabs: shows(tab, '#list', '123')
    until(lambda: (site.count(), site.connections) == (3, 1))


@pytest.mark.parametrize('order', ['client first', 'client last', 'without hx-sse', 'other extensions approved'])
def test_headers(page, make_site, until, order):
    "The client works before htmx 4 and after it, without hx-sse, and where the page has a list of extensions that does not hold it"
    page.direct.add('off')  # A client that is there by hand has nobody to order from
    hdrs = HTMX4()
    if order == 'without hx-sse': hdrs.pop()
    if order == 'other extensions approved': hdrs.insert(0, Meta(name='htmx-config', content='{"extensions": "sse"}'))
    client = Script(client_js(), data_sse_client=True)
    site = make_site(hdrs=[client, *hdrs] if order == 'client first' else [*hdrs, client], setup=None)
    site.pages['p'] = lambda: Div(connect(endpoint='/stream/events', element_id='el', swap='beforeend'))
    page.goto(site.url('p'))
    until(site.count)
    for i in 'ab': site.send(f'data: {i}\n\n')
    shows(page, '#el', 'ab')
    assert len(site.requests) == 1 and not complaints(page)


def test_hx_sse_of_the_app(page, make_site, until):
    "What an app connects by hx-sse itself goes on by hx-sse"
    site = make_site(hdrs=HTMX4())
    site.pages['p'] = lambda: Div(NotStr('<div id="own" hx-sse:connect="/stream/own"></div>'), connect(endpoint='/stream/events', element_id='ours'), Span(id='a'))
    page.goto(site.url('p'))
    until(lambda: site.count('own') == site.count() == 1)
    page.evaluate("document.querySelector('#own').addEventListener('tick', e => window.tick = e.detail.data)")
    site.send('event: tick\ndata: 7\n\ndata: <b>own</b>\n\n', 'own')
    site.send('data: ours\n\n')
    shows(page, '#own', 'own')
    shows(page, '#ours', 'ours')
    assert page.evaluate('[tick, cjmSSE.sources.length]') == ['7', 1]
    page.evaluate("htmx.swap({target: document.querySelector('#own'), text: '', swap: 'delete'})")
    until(lambda: not site.count('own') and site.count())


def test_inherited_attributes(page, make_site, until):
    "htmx 4 inherits where a page says so"
    site = make_site(hdrs=HTMX4())
    site.pages['p'] = lambda: Div(NotStr('<div hx-swap:inherited="beforeend"><div id="el" sse-connect="/stream/events" sse-swap="message">a</div></div>'))
    page.goto(site.url('p'))
    until(site.count)
    site.send('data: b\n\n')
    shows(page, '#el', 'ab')


def test_other_origin(page, make_site, until, major):
    "A stream of another origin is left to the browser's own source, and its messages are swapped all the same"
    site = make_site(hdrs=MAJORS[major]())
    other = f'http://localhost:{site.port}/stream/events'
    site.pages['p'] = lambda: connect(endpoint=other, element_id='el')
    page.route(other, lambda route: route.fulfill(status=200, body='retry: 60000\ndata: far\n\n', content_type='text/event-stream',
                                                  headers={'Access-Control-Allow-Origin': site.url('')[:-7], 'Access-Control-Allow-Credentials': 'true'}))
    page.goto(site.url('p'))
    shows(page, '#el', 'far')
    assert page.evaluate('cjmSSE.sources.length') == 0
    page.unroute_all()


FASTHTML_JS = "function proc_htmx(sel, f) { htmx.onLoad(elt => { const found = [...elt.querySelectorAll(sel)]; if (elt.matches(sel)) found.unshift(elt); found.forEach(f) }) }"


@pytest.mark.parametrize('setup', [None, 'insert'])
def test_fast_app(page, make_site, until, state, setup):
    "`fast_app(htmx4=True)` as it comes, with FastHTML's own headers, from the addresses it gives"
    site = make_site(**{} if setup is None else dict(setup=lambda app: None))
    site.stop()
    app,rt = fast_app(htmx4=True, pico=False, surreal=False, secret_key='test', routes=[Route('/stream/{name}', site._stream), Route('/assets/{name}', site._asset)], live=False)
    app.route('/pages/{name}')(site._page)
    if setup is None:
        from cjm_fasthtml_sse.helpers import setup_sse
        setup_sse(app)
    else: insert_htmx_sse_ext(app.hdrs)
    site.app = site.served.app = app
    site.start()
    def cdn(route):
        package, _, path = route.request.url.removeprefix('https://cdn.jsdelivr.net/npm/').partition('/')
        body = FASTHTML_JS if 'fasthtml-js' in route.request.url else (ASSETS/'htmx4-0'/path).read_text() if package == 'htmx.org@4.0.0' else None
        route.fulfill(status=200 if body else 404, body=body or '', content_type='text/javascript', headers={'Access-Control-Allow-Origin': '*'})
    page.route('https://cdn.jsdelivr.net/**', cdn)
    site.pages['p'] = lambda: (watched(), Ul(id='list'), Input(id='late'), Script("proc_htmx('.js', e => e.textContent += '!')"))
    page.goto(site.url('p'))
    state('active')
    site.send(oob('list', '<li class="js">a</li>', 'beforeend'))
    shows(page, '#list', 'a!')
    assert page.evaluate('htmx.version') == '4.0.0' and not complaints(page)
    page.unroute_all()
