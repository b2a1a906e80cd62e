"The connection monitor: what the page says about its stream, and what its settings do"
import re

import pytest
from fasthtml.common import Button, Div, Input, Script, Span, Ul
from starlette.responses import Response

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
def item(i): return f'<ul id="list" hx-swap-oob="beforeend"><li>{i}</li></ul>'
def items(page): return page.locator('#list > li').all_inner_texts()


@pytest.mark.parametrize('inline', [True, False])
def test_states(page, site, until, state, inline):
    "Each state is shown by its own indicator"
    site.pages['p'] = watched(inline=inline)
    gate = {'shut': True}
    site.answers['events'] = lambda n: Response(status_code=500) if gate['shut'] else None
    page.goto(site.url('p'))
    state('reconnecting')
    assert page.inner_html('#connection-status') == INDICATORS['reconnecting']
    gate['shut'] = False
    state('active')
    assert page.inner_html('#connection-status') == INDICATORS['active']
    site.answers['events'] = lambda n: Response(status_code=403)
    site.send(None)
    state('error')
    assert page.inner_html('#connection-status') == INDICATORS['error']
    page.evaluate('cjmSSE.close()')
    page.wait_for_timeout(50)
    assert page.get_attribute('#connection-status', 'data-sse-state') == 'error', 'nothing is better now'


@pytest.mark.parametrize('how', ['closing event', 'closed by a script', 'removed', '204'])
def test_disconnected(page, site, until, state, how):
    site.pages['p'] = lambda: Div(hidden(auto_reconnect=False), status(), monitor())
    page.goto(site.url('p'))
    state('active')
    if how == 'closing event': site.send('event: sse:close\ndata: \n\n')
    elif how == 'closed by a script': page.evaluate("cjmSSE.get('sse-connection').close()")
    elif how == 'removed': page.evaluate("document.querySelector('#sse-connection').remove()")
    else:
        site.answers['events'] = lambda n: Response(status_code=204)
        site.send(None)
    state('disconnected')
    assert page.inner_html('#connection-status') == INDICATORS['disconnected']
    until(lambda: not site.count())


def test_before_the_first_connection(page, site, until):
    "Nothing is known, so nothing is said; a live region there is from the start"
    site.pages['p'] = watched()
    site.stop()
    site.answers['events'] = lambda n: None
    site.start()
    page.route('**/stream/*', lambda route: None)  # neither answered nor refused
    page.goto(site.url('p'))
    page.wait_for_selector('[role=status][aria-live=polite]', state='attached')
    assert page.inner_text('#connection-status') == 'server says'
    page.unroute_all()


def hold(page):
    "From here on no stream gets an answer, whatever carries it"
    page.route(re.compile('/stream/|/_sse/mux'), lambda route: None)


@pytest.mark.parametrize('how', ['replaced', 'replaced, plain extension', 'drawn as it was'])
def test_connecting_is_not_connected(page, make_site, state, how):
    "An element has taken the place of a connected one and waits for its own connection; or htmx shows a page anew that was connected"
    site = make_site(**(dict(setup=None) if 'plain' in how else {}))
    was = dict(data_sse_state='active') if how == 'drawn as it was' else {}
    button = Button('anew', hx_get='/pages/new', hx_target='#place')
    site.pages |= dict(p=lambda: Div(Div(hidden(), id='place'), status(**was), monitor(), button), new=hidden)
    if was: hold(page)
    page.goto(site.url('p'))
    if not was:
        state('active')
        hold(page)
        page.click('text=anew')
    state.passed('reconnecting')
    assert page.inner_html('#connection-status') == INDICATORS['reconnecting']
    page.unroute_all(behavior='ignoreErrors')


def test_read_out(page, site, state):
    "What passes is shown, and not read out; what lasts is read out once, as words"
    page.add_init_script("""window.said = []; addEventListener('DOMContentLoaded', () => new MutationObserver(seen => {
        for (const {target} of seen) if (target.getAttribute('aria-live') === 'polite') said.push(target.textContent) })
        .observe(document.body, {childList: true, characterData: true, subtree: true}))""")
    site.pages['p'] = watched(status_indicators=dict(active='<i aria-hidden="true">●</i> <b>on</b>',
        reconnecting='<img alt="wait" src="data:,">', disconnected='<b aria-label="off">x</b>'))
    page.goto(site.url('p'))
    state('active')
    assert page.evaluate("document.querySelector('[data-sse-monitor]').sseMonitor.settle") == 2000, 'milliseconds'
    page.wait_for_function('said.length')
    def settle(ms): page.evaluate(f"document.querySelector('[data-sse-monitor]').sseMonitor.settle = {ms}")
    settle(1e6)
    for _ in range(3):
        site.send(None)
        state.passed('reconnecting')
        state('active')
    assert page.evaluate('said') == ['on']
    settle(20)
    hold(page)
    site.send(None)
    page.wait_for_function('said.length > 1')
    page.evaluate('cjmSSE.close()')
    page.wait_for_function('said.length > 2')
    assert page.evaluate('said') == ['on', 'wait', 'off']
    assert page.locator('[aria-live]').count() == 1
    page.evaluate("document.querySelector('[data-sse-monitor]').remove()")
    page.wait_for_selector('[aria-live]', state='detached')
    page.unroute_all(behavior='ignoreErrors')


def test_what_the_page_decides(page, site, state):
    "A status with a role or `aria-live` of its own is left to itself; what does not change is not touched"
    same = INDICATORS | dict(reconnecting=INDICATORS['active'])
    site.pages['p'] = lambda: Div(hidden(), status(role='log', aria_live='off'), monitor(status_indicators=same))
    page.goto(site.url('p'))
    state('active')
    assert [page.get_attribute('#connection-status', o) for o in ('role', 'aria-live')] == ['log', 'off']
    page.evaluate("""() => { window.changes = 0;
        new MutationObserver(seen => changes += seen.length).observe(document.querySelector('#connection-status'), {childList: true, characterData: true, subtree: true}) }""")
    site.send(None)
    state.passed('reconnecting')
    state('active')
    assert page.evaluate('changes') == 0
    assert page.locator('[aria-live]').count() == 1


def test_half_open(page, site, proxy, until, state):
    "Silence is noticed, said and mended: from the last id, without a repetition, with what was typed left alone"
    site.heartbeat['events'] = .6
    site.pages['p'] = watched(Input(id='typed'), heartbeat_timeout=700, reconnect_delay=800)
    page.goto(proxy.url('p'))
    state('active')
    site.publish(item(1))
    page.wait_for_selector('#list > li')
    page.fill('#typed', 'half a sent')
    page.wait_for_function('cjmSSE.sources[0].watchdog.armed')
    proxy.fall_silent(idle=False)
    site.publish(item(2))
    state.passed('reconnecting')
    assert items(page) == ['1']
    state('active')
    site.publish(item(3))
    page.wait_for_selector('#list > li:nth-child(3)')
    assert (items(page), site.last_ids(), page.input_value('#typed')) == (['1', '2', '3'], ['', '1'], 'half a sent')


def test_comments_are_heartbeats_too(page, site, proxy, state):
    "An older app that writes comments has its half-open connections found as well; requests that get no answer are given up too"
    site.pages['p'] = watched(heartbeat_timeout=500)
    page.goto(proxy.url('p'))
    state('active')
    for _ in range(2):
        site.send(': still here\n\n')
        page.wait_for_timeout(700)
    page.wait_for_function('cjmSSE.sources[0].watchdog.armed')
    proxy.fall_silent()
    state.passed('reconnecting')
    # Connections that the browser had kept for later are as dead
    state('active')
    assert site.count()


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


def test_no_heartbeats_no_watch(page, site, until, state):
    "A stream that never sent a heartbeat may be silent for as long as it likes"
    site.pages['p'] = watched(heartbeat_timeout=150)
    page.goto(site.url('p'))
    state('active')
    site.publish(item(1))
    page.wait_for_timeout(1000)
    assert (len(site.requests), page.get_attribute('#connection-status', 'data-sse-state')) == (1, 'active')


def test_slow_heartbeats_are_learned(page, site, until, state):
    "Heartbeats slower than `heartbeat_timeout`, of a server that does not say how often it sends them: peace"
    site.heartbeat['events'] = .7
    site.pages['p'] = watched(heartbeat_timeout=200, reconnect_delay=20)
    page.goto(site.url('p'))
    state('active')
    page.wait_for_function('cjmSSE.sources[0].watchdog.armed')
    heard = page.evaluate('cjmSSE.sources[0].watchdog.beat')
    page.wait_for_function('heard => cjmSSE.sources[0].watchdog.beat > heard + 2000', arg=heard)
    assert len(site.requests) == 1


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


def test_check_ends_a_wait(page, site, until, state):
    "Somebody looks at the page while it waits to reconnect: it does so at once"
    site.pages['p'] = watched(reconnect_delay=60000)
    page.goto(site.url('p'))
    state('active')
    site.send(None)
    state('reconnecting')
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    state('active')


def test_hidden_tab(page, site, until, state):
    "In a tab behind others timers tick slowly; what arrives counts, so nothing is raised"
    site.heartbeat['events'] = .2
    site.pages['p'] = watched(heartbeat_timeout=600)
    page.add_init_script("""
        const later = window.setTimeout;
        window.setTimeout = (f, ms, ...args) => later(f, Math.ceil((ms || 1) / 1000) * 1000, ...args);""")
    page.goto(site.url('p'))
    state('active')
    page.wait_for_timeout(3000)
    assert len(site.requests) == 1


def test_reconnect_delay(page, site, until):
    "The wait before the first attempt; it beats the `retry:` a stream opens with"
    site.opening['events'] = f'retry: 9000\n{HEARTBEAT}'
    page.add_init_script("document.addEventListener('DOMContentLoaded', () => cjmSSE.addEventListener('change', e => (window.seen ??= []).push(e.detail)))")
    for delay,low,high in [(40, 20, 60), (4000, 2000, 6000), (None, 4500, 13500)]:
        site.pages['p'] = watched(reconnect_delay=delay)
        page.goto(site.url('p'))
        until(site.count)
        page.wait_for_function('cjmSSE.sources[0]?.retry === 9000')
        site.send(None)
        page.wait_for_function("seen.some(c => c.state === 'reconnecting')")
        assert low <= page.evaluate("seen.find(c => c.state === 'reconnecting').retryIn") <= high


def test_reconnect_delay_in_time(page, site, until):
    "Of two streams that end together, the one with the shorter delay is back first"
    def one(name, delay): return Div(HTMXSSEConnector.create_sse_element(endpoint=f'/stream/{name}', element_id=name),
        create_sse_monitor(HTMXSSEConnector, SSEMonitorConfig(sse_element_id=name, reconnect_delay=delay)))
    site.pages['p'] = lambda: Div(one('slow', 1200), one('fast', 50))
    page.goto(site.url('p'))
    until(lambda: site.count('slow') == site.count('fast') == 1)
    for name in ('slow', 'fast'): site.send(None, name)
    until(lambda: len(site.requests) == 4)
    assert [p for p,_ in site.requests[2:]] == ['fast', 'slow']


def test_debug(page, site, until, state):
    for debug in (True, False):
        site.pages['p'] = watched(debug=debug)
        page.console.clear()
        page.goto(site.url('p'))
        state('active')
        site.send(None)
        state.passed('reconnecting')
        state('active')
        told = [t for k,t in page.console if t.startswith('[sse]')]
        assert bool(told) == debug
        if debug: assert any('[sse] sse-connection: active (connected)' in t for t in told) and any('reconnecting (end of stream), next attempt in' in t for t in told)


@pytest.mark.parametrize('when', ['at first', 'later', 'silent'])
def test_no_auto_reconnect(page, site, proxy, state, until, when):
    "`auto_reconnect=False`: a connection that is lost stays lost"
    site.pages['p'] = watched(auto_reconnect=False, heartbeat_timeout=500)
    site.heartbeat['events'] = .6
    if when == 'at first': site.answers['events'] = lambda n: Response(status_code=500)
    page.goto(proxy.url('p'))
    if when != 'at first':
        state('active')
        page.wait_for_function('cjmSSE.sources[0].watchdog.armed')
        if when == 'silent': proxy.fall_silent()
        else: site.send(None)
    state('disconnected')
    page.wait_for_timeout(300)
    assert len(site.requests) == 1


def test_server_restarts(page, site, state):
    site.pages['p'] = watched()
    page.goto(site.url('p'))
    state('active')
    site.publish(item(1))
    page.wait_for_selector('#list > li')
    site.stop()
    state.passed('reconnecting')
    site.log.append(('2', f'id: 2\ndata: {item(2)}\n\n'))
    site.start()
    state('active')
    page.wait_for_selector('#list > li:nth-child(2)')
    assert items(page) == ['1', '2']


def test_back(page, site, until, state):
    "A page that Back brings is live, and says so"
    site.pages |= {'p': watched(), 'q': lambda: Span('q')}
    page.goto(site.url('p'))
    state('active')
    page.evaluate('window.kept = true')
    page.goto(site.url('q'))
    until(lambda: not site.count())
    page.go_back(wait_until='commit')
    until(site.count)
    state('active')
    assert page.evaluate('window.kept')


def test_indicators_are_any_html(page, site, until, state):
    "Nothing in an indicator or an id gets into the script; htmx works within"
    hostile = '</script><script>window.broken = 1</script><!-- <b title="\'&quot;">on</b> ${1}\u2028 \\u003c'
    site.pages['hello'] = lambda: Span('hello')
    site.pages['p'] = lambda: Div(HTMXSSEConnector.create_sse_element(endpoint='/stream/events', element_id='"><script>window.broken=2</script>'.replace(' ', '')),
        Span(id="st'\"</script>"), monitor(sse_element_id='"><script>window.broken=2</script>', status_element_id="st'\"</script>",
                                          status_indicators=dict(active=hostile, reconnecting=Button('again', hx_get='/pages/hello', hx_swap='outerHTML'))))
    page.goto(site.url('p'))
    page.wait_for_selector('[data-sse-state=active]', state='attached')
    assert page.evaluate('window.broken') is None
    site.answers['events'] = lambda n: Response(status_code=500)
    site.send(None)
    page.click('text=again')
    page.wait_for_selector('text=hello')


def test_parts_that_come_later(page, site, until, state):
    "The connection, the status and the monitor may each come by a swap, and come again"
    parts = dict(sse=hidden, status=status, monitor=monitor, data=lambda: monitor(inline=False))
    site.pages |= parts
    def button(n): return Button(n, id=f'get-{n}', hx_get=f'/pages/{n}', hx_target=f'#place-{n}')
    site.pages['p'] = lambda: Div(*[Div(button(n), Div(id=f'place-{n}')) for n in parts])
    for order in (['sse', 'status', 'monitor'], ['monitor', 'status', 'sse'], ['status', 'sse', 'data'], ['data', 'sse', 'status']):
        page.goto(site.url('p'))
        for n in order:
            page.click(f'#get-{n}')
            page.wait_for_function(f"document.querySelector('#place-{n}').children.length")
        state('active')
    # Drawn anew, the status is told the present state, and the old monitor has gone with its element
    page.click('#get-status')
    state('active')
    page.click('#get-data')
    n = len(site.requests)
    page.click('#get-sse')
    until(lambda: len(site.requests) == n+1 and site.count() == 1)
    page.wait_for_function("cjmSSE.state === 'active'")
    assert 'disconnected' not in page.evaluate('shown'), 'one connection gave way to another, that is no news'
    site.send(None)
    state.passed('reconnecting')
    state('active')


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


def test_plain_extension_without_reconnecting(page, make_site, until, state):
    site = make_site(setup=None)
    site.opening['events'] = 'retry: 50\ndata: \n\n'
    site.pages['p'] = watched(auto_reconnect=False)
    page.goto(site.url('p'))
    state('active')
    site.send(None)
    state('disconnected')
    page.wait_for_timeout(800)
    assert len(site.requests) == 1


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
