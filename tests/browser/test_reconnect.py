"Coming back: not all at once, and in all tabs of a browser alike"
import sys
import time

import pytest
from fasthtml.common import Div, Span
from starlette.middleware.cors import CORSMiddleware

from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor

from tabs import LEADS


@pytest.fixture
def pair(page, site, until):
    "Two tabs on one connection: who leads, who follows"
    def pair(**config):
        settings = dict(sse_element_id='sse', reconnect_delay=50) | config
        site.pages['p'] = lambda: Div(HTMXSSEConnector.create_sse_element(endpoint='/stream/events', element_id='sse', hidden=True),
                                      Span(id='connection-status'), create_sse_monitor(HTMXSSEConnector, SSEMonitorConfig(**settings), inline=False))
        page.context.add_init_script("document.addEventListener('DOMContentLoaded', () => cjmSSE.addEventListener('change', e => (window.seen ??= []).push(e.detail)))")
        tabs = [page, page.context.new_page()]
        for tab in tabs:
            tab.goto(site.url('p'))
            tab.wait_for_function("cjmSSE.state === 'active'")
        until(lambda: (site.count(), site.connections) == (2, 1))
        return sorted(tabs, key=lambda tab: not tab.evaluate(LEADS))
    return pair


def test_one_tab_that_does_not_come_back(pair, site, until):
    "`auto_reconnect=False` is a tab's own wish: it stays away, and if it led, another one leads"
    leader,follower = pair()
    leader.evaluate("cjmSSE.sources[0].configure({reconnect: false})")
    site.send(None)
    leader.wait_for_function("cjmSSE.state === 'disconnected'")
    follower.wait_for_function(f"{LEADS} && cjmSSE.state === 'active'")
    until(lambda: (site.count(), site.connections) == (1, 1))


@pytest.mark.parametrize('down', [0, 10, 60])
def test_no_thundering_herd(page, site, down):
    "Two hundred clients of a server that was away for some seconds: they come back one by one, not at a beat"
    page.direct.add('asked')
    site.pages['p'] = lambda: Div()
    page.goto(site.url('p'))
    page.clock.install()
    # The delays are those of the client; that attempts fail until the server is back is played
    arrivals = page.evaluate("""down => Array.from({ length: 200 }, (_, i) => {
        const source = cjmSSE.connect(`/stream/${i}`, { multiplex: false });
        let at = 0, first = true;
        source.addEventListener('sse:state', ({ detail }) => { at += detail.retryIn ?? 0; });
        source.retry = 3000;
        while (first || at < down * 1000) { first = false; source.lost('network'); }
        source.close();
        return at / 1000 - down;
    })""", down)
    assert min(arrivals) >= 0 and max(arrivals) <= max(4.5, 1.6*down, 45)
    window = 3 if down == 0 else max(arrivals)  # After the first loss: from 1.5 to 4.5 s
    counts = [sum(lo <= a-(1.5 if down == 0 else 0) < lo+window/10 for a in arrivals) for lo in [window*i/10 for i in range(10)]]
    print(f'down for {down} s: back within {max(arrivals):.1f} s, in tenths of {window:.1f} s', counts)
    busiest = max(sum(a <= b < a+.1 for b in arrivals) for a in arrivals)
    assert busiest <= 24, 'of 200, in any tenth of a second'


@pytest.mark.skipif(sys.platform!='linux', reason='needs all of 127.0.0.0/8')
def test_no_thundering_herd_at_a_real_server(page, make_site, until):
    "Almost two hundred clients of a server that is stopped and started again, as it sees them arrive"
    page.direct.add('asked')
    def setup(app):
        setup_sse(app)
        app.add_middleware(CORSMiddleware, allow_origin_regex='.*', allow_credentials=True)
    site,arrivals = make_site(setup),[]
    site.stop()
    site.hosts += [f'127.0.0.{i}' for i in range(2, 35)]
    site.start()
    site.pages['p'] = lambda: Div()
    site.answers['events'] = lambda n: arrivals.append(time.monotonic())
    site.opening['events'] = 'retry: 6000\n\n'  # So long that a machine which pauses for a moment does not gather a third of them
    page.goto(site.url('p'))
    urls = [f'http://{host}:{site.port}/stream/events?n={n}' for host in site.hosts[1:] for n in range(6)]
    page.evaluate("""urls => { window.herd = urls.map(url => cjmSSE.connect(url, { multiplex: false })) }""", urls)
    page.wait_for_function("herd.every(source => source.state === 'active')")
    arrivals.clear()
    site.stop()
    page.wait_for_function("herd.every(source => source.state !== 'active')")
    site.start()
    until(lambda: len(arrivals) >= len(urls), 'all come back')
    page.wait_for_function("herd.every(source => source.state === 'active')")
    assert len(arrivals) == len(urls) == site.count(), 'each of them once'
    tenths = [sum(arrivals[0]+.6*i <= a < arrivals[0]+.6*(i+1) for a in arrivals) for i in range(10)]
    print(f'{len(arrivals)} come back within {arrivals[-1]-arrivals[0]:.1f} s, in tenths of the 6 s that they draw from', tenths)
    busiest = max(sum(a <= b < a+.6 for b in arrivals) for a in arrivals)
    assert busiest < len(urls)/3, 'in any tenth'
