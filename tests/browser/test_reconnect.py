"Coming back: not all at once"
import sys
import time

import pytest
from fasthtml.common import Div
from starlette.middleware.cors import CORSMiddleware

from cjm_fasthtml_sse.helpers import setup_sse


@pytest.mark.skipif(sys.platform!='linux', reason='needs all of 127.0.0.0/8')
def test_no_thundering_herd(page, make_site, until):
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
    page.evaluate("urls => { window.herd = urls.map(url => cjmSSE.connect(url, { multiplex: false })) }", urls)
    page.wait_for_function("herd.every(source => source.state === 'active')")
    arrivals.clear()
    site.stop()
    page.wait_for_function("herd.every(source => source.state !== 'active')")
    site.start()
    until(lambda: len(arrivals) >= len(urls), 'all come back')
    page.wait_for_function("herd.every(source => source.state === 'active')")
    assert len(arrivals) == len(urls) == site.count(), 'each of them once'
    busiest = max(sum(a <= b < a+.6 for b in arrivals) for a in arrivals)
    assert busiest < len(urls)/3, 'in any tenth of the 6 s that they draw from'
