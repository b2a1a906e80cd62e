"What differs between htmx 2, 4.0 and 4.1: the order of the scripts, FastHTML's own headers, hidden tabs, the monitor"
import pytest
from fasthtml.common import Input, Meta, NotStr, Script, Span, Ul, fast_app
from handmade import ASSETS, HTMX2, HTMX4, HTMX4_0
from starlette.responses import Response
from starlette.routing import Route

from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector, client_js
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor

connect = HTMXSSEConnector.create_sse_element
CDN = 'https://cdn.jsdelivr.net/npm/'
OWN = "htmx.createEventSource = url => { (window.made ??= []).push(url); return new EventSource(url) };"
SEEN = """document.addEventListener('DOMContentLoaded', () =>
    cjmSSE.addEventListener('change', e => (window.seen ??= []).push(e.detail.state)))"""


def hidden(**kw): return connect(endpoint='/stream/events', element_id='sse-connection', hidden=True, **kw)
def appended(): return connect(endpoint='/stream/events', element_id='el', swap='beforeend')
def oob(id, html, swap='innerHTML'): return f'data: <div id="{id}" hx-swap-oob="{swap}">{html}</div>\n\n'
def watched():
    monitor = create_sse_monitor(HTMXSSEConnector, SSEMonitorConfig(reconnect_delay=50))
    return hidden(), Span('server says', id='connection-status'), monitor, Ul(id='list')
def complaints(page):
    "Warnings and errors in the console. Failed requests are there by nature, and htmx 2 notes each lost connection as `Event`"
    return [t for k,t in page.console if k in ('warning', 'error') and 'Failed to load resource' not in t and t != 'Event']
def shows(page, css, text):
    page.wait_for_function('([css, text]) => document.querySelector(css)?.textContent === text', arg=[css, text])


@pytest.mark.parametrize('hdrs', [HTMX4_0, HTMX4])
def test_htmx_4(page, make_site, until, state, hdrs):
    "All four states; and a hidden tab keeps its connection, which hx-sse by itself would not"
    site = make_site(hdrs=hdrs())
    site.pages['p'] = lambda: (*watched(), Span(id='a'))
    gate = dict(code=500)
    site.answers['events'] = lambda n: Response(status_code=gate['code']) if gate['code'] else None
    page.add_init_script(SEEN)
    page.goto(site.url('p'))
    state('reconnecting')
    gate['code'] = None
    state('active')
    page.evaluate("""() => { Object.defineProperty(document, 'hidden', {value: true, configurable: true});
        document.dispatchEvent(new Event('visibilitychange')) }""")
    before = len(site.requests)
    site.send(oob('a', 'A'))
    shows(page, '#a', 'A')
    assert (site.count(), len(site.requests)) == (1, before)
    page.evaluate('cjmSSE.close()')
    state('disconnected')
    until(lambda: not site.count())
    page.evaluate('cjmSSE.reconnect()')
    state('active')
    gate['code'] = 403
    site.send(None)
    state('error')
    seen = page.evaluate('seen')
    assert [s for i,s in enumerate(seen) if s != seen[i-1]] == \
        ['connecting', 'reconnecting', 'active', 'disconnected', 'reconnecting', 'active', 'reconnecting', 'error'], seen
    assert not complaints(page)


HTMX,EXT,HTMX_4,EXT_4 = *HTMX2(),*HTMX4()
APPROVED = Meta(name='htmx-config', content='{"extensions": "sse"}')  # A list of extensions without the client's

@pytest.mark.parametrize('before, after', [
    ([HTMX, EXT], []), ([HTMX], [EXT]), ([], [HTMX, EXT]), ([], [HTMX]),
    ([HTMX_4, EXT_4], []), ([], [HTMX_4, EXT_4]), ([HTMX_4], []), ([APPROVED, HTMX_4, EXT_4], [])])
def test_order_of_scripts(page, make_site, until, before, after):
    "The client works before htmx and after it, with htmx's own extension and without"
    page.direct.add('off')  # A client that is there by hand has nobody to order from
    site = make_site(hdrs=[*before, Script(client_js(), data_sse_client=True), *after], setup=None)
    site.pages['p'] = appended
    page.goto(site.url('p'))
    until(site.count)
    page.evaluate("document.querySelector('#el').classList.add('x'); htmx.process(document.body)")
    for i in 'ab': site.send(f'data: {i}\n\n')
    shows(page, '#el', 'ab')
    assert (page.evaluate('cjmSSE.sources.length'), len(site.requests), complaints(page)) == (1, 1, [])


FASTHTML_JS = """function proc_htmx(sel, f) { htmx.onLoad(elt => {
    const found = [...elt.querySelectorAll(sel)]; if (elt.matches(sel)) found.unshift(elt); found.forEach(f) }) }"""

@pytest.mark.parametrize('setup', [setup_sse, lambda app: insert_htmx_sse_ext(app.hdrs)], ids=['setup', 'insert'])
def test_fast_app(page, make_site, state, setup):
    "`fast_app(htmx4=True)` as it comes, with FastHTML's own headers, from the addresses it gives"
    site = make_site(None)
    site.stop()
    routes = [Route('/stream/{name}', site.serve_stream), Route('/assets/{name}', site.serve_asset)]
    app,_ = fast_app(htmx4=True, pico=False, surreal=False, secret_key='test', routes=routes, live=False)
    app.route('/pages/{name}')(site.serve_page)
    setup(app)
    site.app = site.served.app = app
    site.start()
    def cdn(route):
        package,_,path = route.request.url.removeprefix(CDN).partition('/')
        body = FASTHTML_JS if 'fasthtml-js' in route.request.url else \
            (ASSETS/'htmx4-0'/path).read_text() if package == 'htmx.org@4.0.0' else None
        headers = {'Access-Control-Allow-Origin': '*'}
        route.fulfill(status=200 if body else 404, body=body or '', content_type='text/javascript', headers=headers)
    page.route('https://cdn.jsdelivr.net/**', cdn)  # FastHTML's script has another folder there
    site.pages['p'] = lambda: (*watched(), Input(id='late'), Script("proc_htmx('.js', e => e.textContent += '!')"))
    page.goto(site.url('p'))
    state('active')
    site.send(oob('list', '<li id="a" class="js">a</li>', 'beforeend'))
    shows(page, '#list', 'a!')
    assert page.evaluate('htmx.version') == '4.0.0' and not complaints(page)
    page.unroute_all()


def test_refused_source_of_the_app(page, make_site, until):
    "A source of the browser's own that was refused is made anew"
    site = make_site(hdrs=[*HTMX4(), NotStr(f'<script>{OWN}</script>')])
    site.answers['events'] = lambda n: Response(status_code=502) if n < 2 else None
    site.pages['p'] = appended
    page.goto(site.url('p'))
    until(site.count)
    site.send('data: a\n\n')
    shows(page, '#el', 'a')
    assert len(site.requests) == 2
