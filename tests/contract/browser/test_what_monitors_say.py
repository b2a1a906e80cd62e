"""What the connection monitor says, and what its settings do

The status element of a page shows one of four states, each by an indicator of the app's: `active`, `reconnecting`,
`disconnected`, `error`. What waits for its connection is not shown as connected. Screen readers read out what lasts,
and not what passes. A stream that has fallen silent is noticed, where its server sends heartbeats.
"""
import re

import pytest
from boards import HASTE
from fasthtml.common import Button, Div, Input, Span, Ul
from handmade import Proxy
from starlette.responses import Response

from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor

INDICATORS = dict(active='<b>on</b>', reconnecting='<i>wait</i>', disconnected='<s>off</s>', error='<em>refused</em>')
HEARTBEAT = 'event: sse:heartbeat\ndata: \n\n'
# Heartbeats that the page has heard, and what becomes of its streams
HEARD = """
    window.beats = 0; window.told = [];
    document.addEventListener('DOMContentLoaded', () => window.cjmSSE?.addEventListener('change', ({ detail }) => {
        told.push(detail);
        if (!detail.source.known) detail.source.addEventListener('sse:heartbeat', () => beats++);
        detail.source.known = true;
    }));"""


@pytest.fixture(autouse=True)
def heard(page): page.add_init_script(HEARD)


connect = HTMXSSEConnector.create_sse_element


def hidden(path='events', **kw):
    return connect(endpoint=f'/stream/{path}', element_id='sse-connection', hidden=True, **kw)
def monitor(inline=True, **kw):
    config = SSEMonitorConfig(**dict(status_indicators=INDICATORS, reconnect_delay=50) | kw)
    return create_sse_monitor(HTMXSSEConnector, config, inline=inline)
def status(**kw): return Span('server says', id='connection-status', **kw)
def watched(*more, **kw): return lambda: Div(hidden(), status(), Ul(id='list'), monitor(**kw), *more)
def item(i): return f'<ul id="list" hx-swap-oob="beforeend"><li>{i}</li></ul>'
def items(page): return page.locator('#list > li').all_inner_texts()
def beats(page, n): page.wait_for_function('n => beats >= n', arg=n)


@pytest.fixture
def passes(page, site):
    """Time passes in the page where the test says so, and nowhere else: however slow the machine is, no heartbeat is late.
    `passes.stop()` stops the clock, `passes(ms)` lets it go on for so long, and `passes.beats(n)` sends heartbeats meanwhile"""
    page.clock.install()
    def passes(ms): page.clock.run_for(ms)
    def stop(): page.clock.pause_at(page.evaluate('Date.now()')/1000+.1)
    def send_beats(n, ms=600):
        for _ in range(n):
            heard = page.evaluate('beats')
            site.send(HEARTBEAT)
            beats(page, heard+1)
            passes(ms)
    passes.stop,passes.beats,passes.resume = stop,send_beats,page.clock.resume
    return passes


def hold(page):
    "From here on no stream gets an answer, whatever carries it"
    page.route(re.compile('/stream/|/_sse/mux'), lambda route: None)


class TestStates:
    @pytest.mark.parametrize('inline', [True, False])
    def test_states(self, page, site, until, state, inline, idle):
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
        idle(5000)
        assert page.get_attribute('#connection-status', 'data-sse-state') == 'error', 'nothing is better now'

    @pytest.mark.parametrize('how', ['closing event', 'closed by a script', 'removed', '204'])
    def test_disconnected(self, page, site, until, state, how):
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

    def test_before_the_first_connection(self, page, site, until):
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

    @pytest.mark.parametrize('how', ['replaced', 'replaced, plain extension', 'drawn as it was'])
    def test_connecting_is_not_connected(self, page, make_site, state, how):
        """An element has taken the place of a connected one and waits for its own connection; or htmx shows a page
        anew that was connected"""
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

    def test_server_restarts(self, page, site, state):
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

    def test_back(self, page, site, until, state):
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


class TestWhatIsReadOut:
    def test_read_out(self, page, site, state):
        "What passes is shown, and not read out; what lasts is read out once, as words"
        page.add_init_script("""window.said = [];
            const polite = ({ target }) => target.getAttribute('aria-live') === 'polite';
            const hear = seen => said.push(...seen.filter(polite).map(({ target }) => target.textContent));
            addEventListener('DOMContentLoaded', () => new MutationObserver(hear)
            .observe(document.body, {childList: true, characterData: true, subtree: true}))""")
        site.pages['p'] = watched(status_indicators=dict(active='<i aria-hidden="true">●</i> <b>on</b>',
            reconnecting='<img alt="wait" src="data:,">', disconnected='<b aria-label="off">x</b>'))
        page.clock.install()
        def lasts(name, n):
            state.passed(name)
            page.clock.fast_forward(2000)
            page.wait_for_function('n => said.length >= n', arg=n)
        page.goto(site.url('p'))
        lasts('active', 1)
        for _ in range(3):
            site.send(None)
            state.passed('reconnecting')
            state('active')
        assert page.evaluate('said') == ['on']
        hold(page)
        site.send(None)
        lasts('reconnecting', 2)
        page.evaluate('cjmSSE.close()')
        lasts('disconnected', 3)
        assert page.evaluate('said') == ['on', 'wait', 'off']
        assert page.locator('[aria-live]').count() == 1
        page.evaluate("document.querySelector('[data-sse-monitor]').remove()")
        page.wait_for_selector('[aria-live]', state='detached')
        page.unroute_all(behavior='ignoreErrors')

    def test_what_the_page_decides(self, page, site, state):
        "A status with a role or `aria-live` of its own is left to itself; what does not change is not touched"
        same = INDICATORS | dict(reconnecting=INDICATORS['active'])
        site.pages['p'] = lambda: Div(hidden(), status(role='log', aria_live='off'), monitor(status_indicators=same))
        page.goto(site.url('p'))
        state('active')
        assert [page.get_attribute('#connection-status', o) for o in ('role', 'aria-live')] == ['log', 'off']
        page.evaluate("""() => { window.changes = 0;
            const status = document.querySelector('#connection-status');
            new MutationObserver(seen => changes += seen.length)
                .observe(status, {childList: true, characterData: true, subtree: true}) }""")
        site.send(None)
        state.passed('reconnecting')
        state('active')
        assert page.evaluate('changes') == 0
        assert page.locator('[aria-live]').count() == 1


class TestSilence:
    def test_half_open(self, page, site, proxy, until, state, passes):
        "Silence is noticed, said and mended: from the last id, without a repetition, with what was typed left alone"
        site.pages['p'] = watched(Input(id='typed'), heartbeat_timeout=700, reconnect_delay=800)
        page.goto(proxy.url('p'))
        state('active')
        site.publish(item(1))
        page.wait_for_selector('#list > li')
        page.fill('#typed', 'half a sent')
        passes.stop()
        passes.beats(3)
        proxy.fall_silent(idle=False)
        site.publish(item(2))
        passes(700)
        assert page.get_attribute('#connection-status', 'data-sse-state') == 'active'
        assert items(page) == ['1']
        passes(1000)
        state('reconnecting')
        passes.resume()
        state('active')
        site.publish(item(3))
        page.wait_for_selector('#list > li:nth-child(3)')
        assert (items(page), site.last_ids()) == (['1', '2', '3'], ['', '1'])
        assert page.input_value('#typed') == 'half a sent'

    def test_comments_are_heartbeats_too(self, page, site, proxy, state):
        "They are what older apps send; and a request that gets no answer is given up like a silent stream"
        site.pages['p'] = watched(heartbeat_timeout=500)
        page.add_init_script(HASTE)
        page.direct.add('step')  # In so little time the common connection may seem not to come
        page.goto(proxy.url('p'))
        state('active')
        for n in (1, 2):
            page.wait_for_timeout(700)  # Later than it would be given up without what came before
            site.send(': still here\n\n')
            site.publish(item(n))
            page.wait_for_selector(f'#list > li:nth-child({n})')
        proxy.fall_silent()
        state.passed('reconnecting')
        # Connections that the browser had kept for later are as dead
        state('active')
        assert site.count()

    @pytest.mark.parametrize('site', [None], ids=['no setup'], indirect=True)
    def test_plain_extension(self, page, site, loop, state, passes):
        "A page with htmx's extension and the browser's own EventSource: the monitor makes do with what these tell"
        site.opening['events'] = 'retry: 100\ndata: \n\n'
        site.pages['p'] = watched(heartbeat_timeout=500)
        page.add_init_script("""addEventListener('htmx:sseOpen', ({ detail: { source } }) => {
            window.beats = 0;
            if (!source.known) source.addEventListener('sse:heartbeat', () => beats++);
            source.known = true })""")
        proxy = Proxy(loop, site.port)
        try:
            page.goto(proxy.url('p'))
            assert page.evaluate('typeof cjmSSE') == 'undefined'
            state('active')
            site.send(None)
            state.passed('reconnecting')
            state('active')
            passes.stop()
            passes.beats(3)
            n = len(site.requests)
            proxy.fall_silent(idle=False)
            passes(2000)
            state.passed('reconnecting')
            passes.resume()
            state('active')
            assert len(site.requests) == n+1
            page.evaluate("htmx.swap('#sse-connection', '', {swapStyle: 'delete'})")
            state('disconnected')
        finally: proxy.stop()

    def test_no_heartbeats_no_watch(self, page, site, until, state, idle):
        "A stream that never sent a heartbeat may be silent for as long as it likes"
        site.pages['p'] = watched(heartbeat_timeout=150)
        page.goto(site.url('p'))
        state('active')
        site.publish(item(1))
        idle(5000)  # Of the common connection's own heartbeats none is late yet
        assert (len(site.requests), page.get_attribute('#connection-status', 'data-sse-state')) == (1, 'active')

    def test_slow_heartbeats_are_learned(self, page, site, until, state, passes):
        "Heartbeats slower than `heartbeat_timeout`, of a server that does not say how often it sends them: peace"
        site.pages['p'] = watched(heartbeat_timeout=200, reconnect_delay=20)
        page.goto(site.url('p'))
        state('active')
        passes.stop()
        passes.beats(6, 700)
        assert (len(site.requests), page.get_attribute('#connection-status', 'data-sse-state')) == (1, 'active')

    def test_a_computer_that_slept(self, page, site, proxy, state, passes):
        "What was not heard meanwhile says nothing: silence that comes later is noticed as soon as before"
        site.pages['p'] = watched(heartbeat_timeout=3000)
        page.goto(proxy.url('p'))
        state('active')
        passes.stop()
        passes.beats(3)
        page.clock.fast_forward(240_000)
        passes.beats(3)
        state('active')
        assert len(site.requests) == 1
        proxy.fall_silent(idle=False)
        passes(5000)
        state.passed('reconnecting')

    def test_hidden_tab(self, page, site, until, state, passes):
        "In a tab behind others timers tick slowly; what arrives counts, so nothing is raised"
        site.pages['p'] = watched(heartbeat_timeout=600)
        page.add_init_script("""
            const later = window.setTimeout;
            window.setTimeout = (f, ms, ...args) => later(f, Math.ceil((ms || 1) / 1000) * 1000, ...args);""")
        page.goto(site.url('p'))
        state('active')
        passes.stop()
        passes.beats(12)
        assert (len(site.requests), page.get_attribute('#connection-status', 'data-sse-state')) == (1, 'active')


class TestSettings:
    def test_reconnect_delay(self, page, site, until):
        "The wait before the first attempt; it beats the `retry:` a stream opens with"
        site.opening['events'] = f'retry: 9000\n{HEARTBEAT}'
        for delay,low,high in [(40, 20, 60), (4000, 2000, 6000), (None, 4500, 13500)]:
            site.pages['p'] = watched(reconnect_delay=delay)
            page.goto(site.url('p'))
            until(site.count)
            beats(page, 1)
            site.send(None)
            page.wait_for_function("told.some(c => c.state === 'reconnecting')")
            assert low <= page.evaluate("told.find(c => c.state === 'reconnecting').retryIn") <= high

    def test_reconnect_delay_in_time(self, page, site, until, passes):
        "Of two streams that end together, the one with the shorter delay is back first"

        def one(name, delay): return Div(connect(endpoint=f'/stream/{name}', element_id=name),
            create_sse_monitor(HTMXSSEConnector, SSEMonitorConfig(sse_element_id=name, reconnect_delay=delay)))
        site.pages['p'] = lambda: Div(one('slow', 1200), one('fast', 50))
        page.goto(site.url('p'))
        until(lambda: site.count('slow') == site.count('fast') == 1)
        page.wait_for_function("cjmSSE.sources.every(source => source.state === 'active')")
        passes.stop()
        for name in ('slow', 'fast'): site.send(None, name)
        page.wait_for_function("cjmSSE.sources.every(source => source.state === 'reconnecting')")
        for n in 3, 4: until(lambda n=n: passes(10) or len(site.requests) == n)
        assert [p for p,_ in site.requests[2:]] == ['fast', 'slow']

    def test_debug(self, page, site, until, state):
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
            if not debug: continue
            for words in '[sse] sse-connection: active (connected)', 'reconnecting (end of stream), next attempt in':
                assert any(words in t for t in told)

    @pytest.mark.parametrize('when', ['at first', 'later', 'silent'])
    def test_no_auto_reconnect(self, page, site, proxy, state, until, when, idle):
        "`auto_reconnect=False`: a connection that is lost stays lost"
        site.pages['p'] = watched(auto_reconnect=False, heartbeat_timeout=500)
        site.heartbeat['events'] = .6
        if when == 'at first': site.answers['events'] = lambda n: Response(status_code=500)
        page.goto(proxy.url('p'))
        if when != 'at first':
            state('active')
            beats(page, 2)
            if when == 'silent': proxy.fall_silent()
            else: site.send(None)
        state('disconnected')
        idle(10_000, site.url('p'))
        assert len(site.requests) == 1

    def test_plain_extension_without_reconnecting(self, page, make_site, until, state, idle):
        site = make_site(setup=None)
        site.opening['events'] = 'retry: 50\ndata: \n\n'
        site.pages['p'] = watched(auto_reconnect=False)
        page.goto(site.url('p'))
        state('active')
        site.send(None)
        state('disconnected')
        idle(10_000)
        assert len(site.requests) == 1


class TestParts:
    def test_indicators_are_any_html(self, page, site, until, state):
        "Nothing in an indicator or an id gets into the script; htmx works within"
        hostile = '</script><script>window.broken = 1</script><!-- <b title="\'&quot;">on</b> ${1}\u2028 \\u003c'
        site.pages['hello'] = lambda: Span('hello')
        site.pages['p'] = lambda: Div(
            HTMXSSEConnector.create_sse_element(
                endpoint='/stream/events', element_id='"><script>window.broken=2</script>'.replace(' ', '')
            ),
            Span(id="st'\"</script>"),
            monitor(
                sse_element_id='"><script>window.broken=2</script>',
                status_element_id="st'\"</script>",
                status_indicators=dict(
                    active=hostile, reconnecting=Button('again', hx_get='/pages/hello', hx_swap='outerHTML')
                ),
            ),
        )
        page.goto(site.url('p'))
        page.wait_for_selector('[data-sse-state=active]', state='attached')
        assert page.evaluate('window.broken') is None
        site.answers['events'] = lambda n: Response(status_code=500)
        site.send(None)
        page.click('text=again')
        page.wait_for_selector('text=hello')

    def test_parts_that_come_later(self, page, site, until, state):
        "The connection, the status and the monitor may each come by a swap, and come again"
        parts = dict(sse=hidden, status=status, monitor=monitor, data=lambda: monitor(inline=False))
        site.pages |= parts
        def button(n): return Button(n, id=f'get-{n}', hx_get=f'/pages/{n}', hx_target=f'#place-{n}')
        site.pages['p'] = lambda: Div(*[Div(button(n), Div(id=f'place-{n}')) for n in parts])
        for order in 'sse status monitor', 'monitor status sse', 'status sse data', 'data sse status':
            page.goto(site.url('p'))
            for n in order.split():
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
