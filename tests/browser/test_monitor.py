"The connection monitor: what the page says about its stream, and what its settings do"

import pytest
from fasthtml.common import Div, Script, Span, Ul

from handmade import ASSETS, Proxy

from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor

INDICATORS = dict(active='<b>on</b>', reconnecting='<i>wait</i>', disconnected='<s>off</s>', error='<em>refused</em>')
HEARTBEAT = 'event: sse:heartbeat\ndata: \n\n'


def hidden(path='events', **kw): return HTMXSSEConnector.create_sse_element(endpoint=f'/stream/{path}', element_id='sse-connection', hidden=True, **kw)
def monitor(inline=True, **kw): return create_sse_monitor(HTMXSSEConnector, SSEMonitorConfig(**dict(status_indicators=INDICATORS, reconnect_delay=50) | kw), inline=inline)
def status(**kw): return Span('server says', id='connection-status', **kw)
def watched(*more, path='events', **kw): return lambda: Div(hidden(path), status(), Ul(id='list'), monitor(**kw), *more)


def test_how_much_silence(page, site, until, state):
    "One heartbeat, as a stream opens with it, says nothing of their rhythm; two do"
    site.pages['p'] = watched(heartbeat_timeout=700)
    site.opening['events'] = HEARTBEAT
    page.goto(site.url('p'))
    state('active')
    page.wait_for_function('cjmSSE.sources[0].watchdog.beat')
    assert not page.evaluate('cjmSSE.sources[0].watchdog.armed')
    page.wait_for_timeout(600)
    site.send(HEARTBEAT)
    page.wait_for_function('cjmSSE.sources[0].watchdog.armed')
    limit, interval = page.evaluate('(({ limit, interval }) => [limit, interval])(cjmSSE.sources[0].watchdog)')
    assert 600 <= interval and limit == 2.5*interval


def test_the_server_says_how_much_silence(page, site, state):
    "Where the greeting names the heartbeat, two and a half of it are too many, five seconds at least, and never more than the page says"
    limits = {}
    for heartbeat in 1, 4, 60:
        site.greeting['events'] = f'v=1;heartbeat={heartbeat};epoch=1'
        site.pages['p'] = watched(heartbeat_timeout=20000)
        page.goto(site.url('p'))
        state('active')
        limits[heartbeat] = page.evaluate('(({ armed, limit }) => armed && limit)(cjmSSE.sources[0].watchdog)')
    assert limits == {1: 5000, 4: 10000, 60: 20000}


@pytest.mark.parametrize('event', ['visibilitychange', 'online'])
def test_check_on_coming_back(page, site, proxy, state, event):
    "Somebody looks at the page: a connection that is silent is not given the rest of its time"
    site.heartbeat['events'] = .6
    site.pages['p'] = watched(heartbeat_timeout=3000)
    page.goto(proxy.url('p'))
    state('active')
    page.wait_for_function('cjmSSE.sources[0].watchdog.armed')
    page.evaluate('clearTimeout(cjmSSE.sources[0].watchdog.timer)')  # It will not notice by itself
    proxy.fall_silent()
    page.wait_for_function('(({ heardAt, limit }) => Date.now() - heardAt > .6 * limit)(cjmSSE.sources[0].watchdog)')
    assert page.get_attribute('#connection-status', 'data-sse-state') == 'active'
    page.evaluate(f"{'document' if event == 'visibilitychange' else 'window'}.dispatchEvent(new Event('{event}'))")
    page.wait_for_function("shown.includes('reconnecting')")


def test_plain_extension(page, make_site, loop, until, state):
    "A page with htmx's extension and the browser's own EventSource: the monitor makes do with what these tell"
    site = make_site(setup=None)
    site.opening['events'] = 'retry: 100\ndata: \n\n'
    site.heartbeat['events'] = .6
    site.pages['p'] = watched(heartbeat_timeout=500)
    proxy = Proxy(loop, site.port)
    try:
        page.goto(proxy.url('p'))
        assert page.evaluate('typeof cjmSSE') == 'undefined'
        state('active')
        site.send(None)
        state.passed('reconnecting')
        state('active')
        page.wait_for_function("document.querySelector('[data-sse-monitor]').sseMonitor.watchdog.armed")
        n = len(site.requests)
        proxy.fall_silent(idle=False)
        state.passed('reconnecting')
        state('active')
        assert len(site.requests) == n+1
        page.evaluate("htmx.swap('#sse-connection', '', {swapStyle: 'delete'})")
        state('disconnected')
    finally: proxy.stop()


def test_pinned_addresses(page, make_site, until, state):
    "FastHTML's own headers: what comes from a CDN passes its integrity check"
    def cdn(route):
        name = route.request.url.removeprefix('https://cdn.jsdelivr.net/npm/')
        package, _, path = name.partition('/')
        file = ASSETS/package.split('@')[0]/path
        route.fulfill(status=200 if file.exists() else 404, body=file.read_bytes() if file.exists() else b'', content_type='text/javascript',
                      headers={'Access-Control-Allow-Origin': '*'})
    site = make_site(setup=lambda app: insert_htmx_sse_ext(app.hdrs), hdrs=[Script(src='https://cdn.jsdelivr.net/npm/htmx.org@2.0.7/dist/htmx.js')])
    site.pages['p'] = watched()
    page.route('https://cdn.jsdelivr.net/**', cdn)
    page.goto(site.url('p'))
    state('active')
    assert page.evaluate('typeof htmx.createEventSource') == 'function'
    page.unroute_all()
