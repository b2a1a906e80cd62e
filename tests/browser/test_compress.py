"Compression with a dictionary in Chromium: from the first page on, each event as it is sent, through reloads and Back"
import pytest
from fasthtml.common import Div, Span

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import oob_update, setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector


def card(n): return oob_update('card', Div(Span(f'Number {n} of many', cls='px-4 py-2 font-medium'), cls='card'))


@pytest.mark.parametrize('multiplex', [True, False])
def test_each_event_arrives_at_once(page, make_site, multiplex, until):
    manager, answers = SSEBroadcastManager(private='user:{who}:**'), []
    def setup(app):
        setup_sse(app, manager, multiplex=multiplex, compress=[card(1)])
        @app.get('/events')
        def events(req): return manager.stream(req, events=('**', 'user:ann:*'), render=lambda m: card(m['data']))
    site = make_site(setup)
    for o in 'ab': site.pages[o] = lambda: Div(HTMXSSEConnector.create_sse_element(endpoint='/events', hidden=True), Div(id='card'))
    if not multiplex: page.direct.add('off')
    def note(response):
        ends, headers = '/_sse/mux' if multiplex else '/events', response.headers
        if response.status == 200 and response.url.endswith(ends) and 'sse-ticket' not in response.request.headers:
            answers.append(headers.get('content-encoding'))
    page.on('response', note)
    def follow(first):
        "One event after the other, each one shown before the next one is sent"
        for n in range(first, first+4):
            manager.broadcast('user:ann:card' if n%2 else 'card', n).result()
            page.wait_for_selector(f'text=Number {n} of many')
    steps = [lambda: page.goto(site.url('a')), page.reload, lambda: page.goto(site.url('b')), lambda: page.go_back(wait_until='commit')]
    for i, step in enumerate(steps):
        step()
        page.wait_for_function("cjmSSE.state === 'active'")
        follow(10*i)
    page.evaluate('cjmSSE.reconnect()')
    page.wait_for_function("cjmSSE.state === 'active'")
    follow(50)
    assert len(answers) >= 4 and {*answers} == {'dcz'}
