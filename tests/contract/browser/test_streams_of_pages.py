"""The stream of a page, through its life

What an answer of the server does to a stream; when it comes back, and where it goes on; what a message with an id
means; and what scripts of an app are told, by `window.cjmSSE`.
"""
import pytest
from fasthtml.common import Button, Div, Form, Input, Li, P, Ul
from starlette.responses import HTMLResponse, Response

from cjm_fasthtml_sse.helpers import cleanup_sse_on_unload
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor

connect = HTMXSSEConnector.create_sse_element
TOLD = """document.addEventListener('DOMContentLoaded', () => window.cjmSSE?.addEventListener('change', e =>
    (window.told ??= []).push({...e.detail, source: null, element: null})))"""


@pytest.fixture(autouse=True)
def told(page): page.add_init_script(TOLD)


def hidden(**kw): return connect(endpoint='/stream/events', element_id='sse', hidden=True, **kw)
def soon(id):
    "The stream of this element comes back soon"
    return create_sse_monitor(HTMXSSEConnector, SSEMonitorConfig(sse_element_id=id, reconnect_delay=20))
def oob(*items, swap='beforeend', target='list'):
    return f'<div id="{target}" hx-swap-oob="{swap}">' + ''.join(f'<li id="{i}">{t}</li>' for i,t in items) + '</div>'
def texts(page, css='#list > li'): return page.locator(css).all_inner_texts()


class TestAnswers:
    def test_page_statuses(self, page, make_site, until, idle):
        "What an HTTP status does to a stream"
        site = make_site()
        login = lambda n: HTMLResponse('<h1>log in</h1>') if n < 3 else None
        again = lambda code, **kw: lambda n: Response(status_code=code, **kw) if n < 3 else None
        ends = {'s204': 204, 's401': 401, 's403': 403, 's410': 410}
        for name,code in ends.items(): site.answers[name] = lambda n, code=code: Response(status_code=code)
        site.answers |= {'s500': again(500), 's404': again(404), 's503': again(503), 'login': login}
        names = [*ends, 's500', 's404', 's503', 'login']
        site.pages['p'] = lambda: Div(*map(soon, names),
                                      *[connect(endpoint=f'/stream/{n}', element_id=n) for n in names])
        page.goto(site.url('p'))
        for n in ('s500', 's404', 's503', 'login'):
            until(lambda n=n: len(site.last_ids(n)) == 3 and site.count(n) == 1, n)
        page.wait_for_function("['s204', 's401', 's403', 's410', 's500', 'login'].map(n => cjmSSE.get(n).state).join() === "
                               "'disconnected,error,error,error,active,active'")
        idle(5000)
        assert {n: len(site.last_ids(n)) for n in ends} == dict.fromkeys(ends, 1)
        assert page.evaluate("cjmSSE.get('s403').reason") == 'status 403'
        assert page.locator('text=log in').count() == 0

    def test_retry_after(self, page, site, idle):
        "503 comes back, not before the server wants it, also where somebody looks at the page"
        site.answers['events'] = lambda n: Response(status_code=503, headers={'Retry-After': '7'})
        site.pages['p'] = hidden
        page.goto(site.url('p'))
        page.wait_for_function("cjmSSE.state === 'reconnecting'")
        told = page.evaluate("told.find(c => c.state === 'reconnecting')")
        wait,status = told['retryIn'],told['status']
        assert 7000 <= wait <= 8750 and status == 503
        page.evaluate("dispatchEvent(new Event('online'))")
        idle()
        assert len(site.requests) == 1

    def test_a_server_that_is_busy_for_a_while(self, page, site, until):
        "503 again and again, with a time to wait and without: the page says that it tries, and has missed nothing"
        site.pages['p'] = lambda: (hidden(), Ul(id='list'))
        site.opening['events'] = 'retry: 50\n\n'
        page.goto(site.url('p'))
        until(site.count)
        site.publish(oob(('a', 'A')))
        page.wait_for_selector('#a')
        headers = iter([{'Retry-After': '1'}, {}, {'Retry-After': '1'}, {}])
        def busy(n):
            header = next(headers, None)
            return None if header is None else Response(status_code=503, headers=header)
        site.answers['events'] = busy
        site.send(None)
        page.wait_for_function("cjmSSE.state === 'reconnecting' && cjmSSE.sources[0].reason === 'status 503'")
        site.publish(oob(('b', 'B')))
        page.wait_for_selector('#b')
        assert (page.evaluate('cjmSSE.state'), site.last_ids()) == ('active', ['']+['1']*5)

    def test_reconnecting_backs_off(self, page, site, until):
        "Each failure doubles the wait; an open stream starts anew"
        site.answers['events'] = lambda n: Response(status_code=500) if n < 5 else None
        site.pages['p'] = lambda: (hidden(), soon('sse'))
        page.goto(site.url('p'))
        until(site.count)
        site.send(None)
        until(lambda: len(site.requests) == 6)
        waits = page.evaluate("told.filter(c => c.state === 'reconnecting').map(c => c.retryIn)")
        # Spread between half and one and a half of 20, 40, 80, 160, and 20 again
        assert [base/2 <= w <= base*1.5 for w,base in zip(waits, [20, 40, 80, 160, 20], strict=True)] == [True]*5

    def test_farewell(self, page, site, until):
        "A `retry:` in mid-stream is for the next reconnection alone, and beats what the page wants"
        site.pages['p'] = hidden
        site.opening['events'] = 'retry: 40\ndata: \n\n'
        page.goto(site.url('p'))
        until(site.count)
        for farewell in ('retry: 400\n\n', 'data: \n\n'):
            site.send(farewell)
            n = len(site.requests)
            site.send(None)
            until(lambda n=n: len(site.requests) == n+1 and site.count())
        waits = page.evaluate("told.filter(c => c.state === 'reconnecting').map(c => c.retryIn)")
        assert 200 <= waits[0] <= 600 and 20 <= waits[1] <= 60


class TestWhereItGoesOn:
    def test_after(self, page, site, until):
        "`after` is the first Last-Event-ID; later ones are the last id seen"
        for i in (1, 2, 3): site.publish(oob((f'i{i}', i)))
        site.pages['p'] = lambda: (hidden(after='1'), Ul(Li('1', id='i1'), id='list'))
        site.opening['events'] = 'retry: 20\n\n'
        page.goto(site.url('p'))
        page.wait_for_selector('#i3')
        assert texts(page) == ['1', '2', '3']
        site.send(None)
        until(lambda: site.last_ids() == ['1', '3'] and site.count())
        assert page.evaluate('cjmSSE.lastEventId') == '3'

    def test_ids_that_come_again(self, page, site, until):
        "Within one run of the server nothing is shown twice, and what the stream goes on from never goes back"
        site.greeting['events'] = 'v=1;heartbeat=15;epoch=run'
        site.opening['events'] = 'retry: 20\n\n'
        site.pages['p'] = lambda: connect(endpoint='/stream/events', element_id='log', swap='beforeend')
        page.goto(site.url('p'))
        until(site.count)
        for n in (1, 2, 3, 2, 3, 4, 1): site.send(f'id: run-{n}\ndata: <i>{n}</i>\n\n')
        site.send('data: <i>without</i>\n\n')
        page.wait_for_selector('#log > i:text-is("without")')
        assert texts(page, '#log > i')==['1', '2', '3', '4', 'without']
        site.send(None)
        until(lambda: len(site.requests)==2)
        assert site.last_ids()==['', 'run-4']

    def test_typed_text_survives_a_reconnection(self, page, site, until):
        "The page is not drawn anew: what a user has typed stays, with the caret, and nothing comes twice"
        site.pages['p'] = lambda: (hidden(), Ul(id='list'), Form(Input(id='typed')))
        site.opening['events'] = 'retry: 20\n\n'
        page.goto(site.url('p'))
        until(site.count)
        site.publish(oob(('a', 'A')))
        page.wait_for_selector('#a')
        page.fill('#typed', 'half a sent')
        page.evaluate("document.querySelector('#typed').setSelectionRange(2, 4)")
        site.stop()
        site.log.append(('2', f'id: 2\ndata: {oob(("b", "B"))}\n\n'))
        page.wait_for_function("cjmSSE.state === 'reconnecting'")
        site.start()
        page.wait_for_selector('#b')
        assert texts(page) == ['A', 'B'] and site.last_ids()[-1] == '1'
        field = "(e => [e.value, e.selectionStart, e.selectionEnd, document.activeElement === e])(typed)"
        assert page.evaluate(field) == ['half a sent', 2, 4, True]

    def test_back_by_htmx(self, page, site, until):
        "A page that htmx has kept as text goes on from where it was left, not from where it began"
        site.publish(oob(('a', 'A')))
        button = Button('go', hx_get='/pages/q', hx_target='body', hx_push_url='true')
        site.pages |= dict(p=lambda: Div(hidden(after='1'), Ul(Li('A'), id='list'), button), q=lambda: P('q'))
        page.goto(site.url('p'))
        until(site.count)
        site.publish(oob(('b', 'B')).replace(' id="b"', ''))
        page.wait_for_selector('text=B')
        page.click('button')
        until(lambda: not site.count())
        site.publish(oob(('c', 'C')))
        page.go_back()
        page.wait_for_selector('#c')
        assert (texts(page), site.last_ids()) == (['A', 'B', 'C'], ['1', '2'])

    def test_back_without_the_client(self, page, make_site, until):
        "`cleanup_sse_on_unload`, where an app loads htmx's extension by itself"
        site = make_site(setup=None)
        site.pages['p'] = lambda: (hidden(), Ul(id='list'), cleanup_sse_on_unload())
        page.goto(site.url('p'))
        until(site.count)
        page.evaluate('window.kept = true')
        page.goto(site.url('p') + '?2')
        until(lambda: site.count() == 1 and len(site.requests) == 2)
        page.go_back(wait_until='commit')
        until(lambda: site.count() == 1 and len(site.requests) == 3)
        assert page.evaluate('[window.kept, typeof cjmSSE]') == [True, 'undefined']
        site.send(f'data: {oob(("a", "A"))}\n\n')
        page.wait_for_selector('#a')

    def test_repeated_elements_replace(self, page, site, until):
        "An appended one whose id stands in the page takes the place of the old one; replacing content is left alone"
        other = Ul(Li('x', id='x'), Li('y', id='y'), id='other')
        site.pages['p'] = lambda: (hidden(), Ul(Li('old', id='a'), Li('b', id='b'), id='list'), other)
        page.goto(site.url('p'))
        until(site.count)
        site.send(f'data: {oob(("a", "new"), ("c", "c"))}\n\n')
        page.wait_for_selector('#c')
        assert texts(page) == ['new', 'b', 'c']
        site.send(f'data: {oob(("c", "c2"), ("n", "n"), swap="afterbegin")}\n\n')
        page.wait_for_selector('#n')
        assert texts(page) == ['n', 'new', 'b', 'c2']
        # From another list: appended means moved
        site.send(f'data: {oob(("x", "x2"))}\n\n')
        page.wait_for_function("document.querySelector('#list').textContent.includes('x2')")
        assert (texts(page), texts(page, '#other > li')) == (['n', 'new', 'b', 'c2', 'x2'], ['y'])
        # New content for a list is no appending: what stands elsewhere is the app's business
        site.send(f'data: {oob(("y", "y2"), swap="innerHTML")}\n\n')
        page.wait_for_function("document.querySelector('#list').textContent === 'y2'")
        assert texts(page, '#other > li') == ['y']
        page.wait_for_function("!document.querySelector('.htmx-added')")


class TestWhatScriptsAreTold:
    def test_window_object(self, page, site, until):
        "`window.cjmSSE`, for people who write JavaScript"
        site.pages['p'] = lambda: (hidden(), Ul(id='list'))
        page.goto(site.url('p'))
        until(site.count)
        site.publish(oob(('a', 'A')))
        page.wait_for_selector('#a')
        page.evaluate('cjmSSE.close()')
        until(lambda: not site.count())
        now = page.evaluate('[cjmSSE.state, cjmSSE.lastEventId, cjmSSE.sources[0].reason]')
        assert now == ['disconnected', '1', 'closed']
        page.evaluate('cjmSSE.reconnect()')
        until(site.count)
        page.wait_for_function("cjmSSE.state === 'active'")
        site.publish(oob(('b', 'B')))
        page.wait_for_selector('#b')
        assert site.last_ids() == ['', '1']
        states = page.evaluate('told.map(c => c.state)')
        assert states == ['connecting', 'active', 'disconnected', 'reconnecting', 'active']
        assert texts(page) == ['A', 'B']

    def test_lost_connections_are_no_errors_of_the_page(self, page, site, until):
        "htmx's extension would write each into the console, without a word on what it is"
        site.pages['p'] = lambda: HTMXSSEConnector.create_sse_element(endpoint='/stream/events', hidden=True)
        page.goto(site.url('p'))
        page.evaluate("document.addEventListener('htmx:sseError', e => { window.lost = e.detail.source.reason })")
        until(site.count)
        site.send('retry: 20\n\n')
        site.send(None)
        until(lambda: len(site.requests) == 2 and site.count())
        assert page.evaluate('lost') == 'end of stream'
        # What the browser says of it itself is not ours
        assert not [t for k,t in page.console if k == 'error' and 'Failed to load resource' not in t]
