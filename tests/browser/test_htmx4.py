"One app under htmx 2 and htmx 4: the same Python, the same page code, and the same things happen"
import pytest
from fasthtml.common import Div, Input, Meta, Script, Span, Ul, fast_app
from starlette.responses import Response
from starlette.routing import Route

from handmade import ASSETS, HTMX4, MAJORS

from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext
from cjm_fasthtml_sse.htmx import HTMXSSEConnector, client_js
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor

connect = HTMXSSEConnector.create_sse_element
def hidden(**kw): return connect(endpoint='/stream/events', element_id='sse-connection', hidden=True, **kw)
def oob(id, html, swap='innerHTML'): return f'data: <div id="{id}" hx-swap-oob="{swap}">{html}</div>\n\n'
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


def test_hidden_tab(page, site, until):
    "A tab that is hidden keeps its connection"
    site.pages['p'] = lambda: (hidden(), Span(id='a'))
    page.goto(site.url('p'))
    until(site.count)
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true}); document.dispatchEvent(new Event('visibilitychange'))")
    site.send(oob('a', 'A'))
    shows(page, '#a', 'A')
    assert (site.count(), len(site.requests)) == (1, 1)


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
