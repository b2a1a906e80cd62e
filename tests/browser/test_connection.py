"The client under htmx 2: connecting, swapping, ending, and the connections that a server sees"
import pytest
from fasthtml.common import Button, Div, Form, Input, Li, NotStr, P, Script, Span, Ul, to_xml
from starlette.responses import HTMLResponse, Response

from cjm_fasthtml_sse.helpers import cleanup_sse_on_unload, insert_htmx_sse_ext, sse_element
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

connect = HTMXSSEConnector.create_sse_element


def hidden(**kw): return connect(endpoint='/stream/events', element_id='sse', hidden=True, **kw)
def oob(*items, swap='beforeend', target='list'): return f'<div id="{target}" hx-swap-oob="{swap}">' + ''.join(f'<li id="{i}">{t}</li>' for i,t in items) + '</div>'
def texts(page, css='#list > li'): return page.locator(css).all_inner_texts()


@pytest.mark.parametrize('setup', ['setup_sse', 'insert_htmx_sse_ext', 'client before htmx'])
def test_out_of_band(page, make_site, until, setup):
    "A hidden element: its messages go where their ids say, and it stays empty itself"
    site = make_site(**({} if setup == 'setup_sse' else dict(setup=lambda app: insert_htmx_sse_ext(app.hdrs))))
    if setup == 'client before htmx': site.app.hdrs.sort(key=lambda h: 'data-sse-client' not in to_xml((h,)))
    site.pages['p'] = lambda: (hidden(), Ul(id='list'))
    page.goto(site.url('p'))
    until(site.count)
    site.send(f'data: {oob(("a", "A"))}\n\n')
    site.send(f'data: {oob(("b", "B"))}\n\n')
    page.wait_for_selector('#b')
    assert texts(page) == ['A', 'B']
    assert page.inner_html('#sse') == ''
    assert page.evaluate('cjmSSE.state') == 'active'


def test_several_events(page, site, until):
    "Each of several names is heard, here and by an element within; others are not"
    inner = connect(Span, element_id='inner', events=['cost', 'tax'])
    site.pages['p'] = lambda: Div(connect(endpoint='/stream/events', element_id='news', events='price, volume', swap='beforeend'),
                                  connect(endpoint='/stream/events', swap='none', content=inner))
    page.goto(site.url('p'))
    page.wait_for_function("cjmSSE.sources.length === 2 && cjmSSE.sources.every(s => s.state === 'active')")
    assert (site.count(), site.connections) == (2, 1), 'elements share a connection, as tabs do'
    for name in ('price', 'volume', 'other', 'cost', 'tax'): site.send(f'event: {name}\ndata: <i>{name}</i>\n\n')
    site.send('data: <i>unnamed</i>\n\n')
    page.wait_for_function("document.querySelector('#inner').textContent === 'tax'")
    page.wait_for_function("document.querySelectorAll('#news > i').length === 2")
    assert texts(page, '#news > i') == ['price', 'volume']


def test_closing_event(page, site, until):
    "`sse:close` ends the stream of an element that waits for it, and only there"
    once = sse_element('/stream/events')(lambda: Div(id='once'))
    site.pages['p'] = lambda: (once(), connect(endpoint='/stream/other', element_id='always'))
    page.goto(site.url('p'))
    until(lambda: site.count() == 1 and site.count('other') == 1)
    for path in ('events', 'other'):
        site.send('retry: 50\ndata: done\n\n', path)
        site.send('event: sse:close\ndata: \n\n', path)
        site.send(None, path)
    until(lambda: site.last_ids('other').__len__() == 2, 'the other stream came back')
    page.wait_for_timeout(200)
    assert len(site.last_ids()) == 1
    assert page.inner_text('#once') == 'done'
    assert page.evaluate("[cjmSSE.get('once').state, cjmSSE.get('always').state]") == ['disconnected', 'active']


def test_after(page, site, until):
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


@pytest.mark.parametrize('how', ['remove()', 'swap', 'parent'])
def test_removed_element_releases_its_connection(page, site, until, how):
    site.pages['p'] = lambda: Div(Div(hidden(), id='parent'), Button('x', hx_get='/pages/empty', hx_target='#parent', hx_swap='innerHTML'))
    site.pages['empty'] = lambda: Span('empty')
    page.goto(site.url('p'))
    until(site.count)
    if how == 'swap': page.click('button')
    else: page.evaluate(f"document.querySelector('{'#sse' if how == 'remove()' else '#parent'}').remove()")
    until(lambda: not site.count(), 'the server saw it close')
    page.wait_for_timeout(100)
    assert (len(site.requests), page.evaluate('cjmSSE.sources.length')) == (1, 0)


def test_element_that_comes_later(page, site, until):
    "An element that a swap brings connects; one that is moved keeps its connection"
    site.pages['p'] = lambda: (Div(id='place'), Ul(id='list'), Button('x', hx_get='/pages/late', hx_target='#place'))
    site.pages['late'] = hidden
    page.goto(site.url('p'))
    page.click('button')
    until(site.count)
    page.evaluate("document.body.append(document.querySelector('#sse'))")
    site.send(f'data: {oob(("a", "A"))}\n\n')
    page.wait_for_selector('#a')
    assert len(site.requests) == 1


def test_processed_again(page, site, until):
    "An element that htmx processes again keeps its source"
    for i in (1, 2): site.publish(oob((f'i{i}', i)))
    site.pages['p'] = lambda: (hidden(after='1'), Ul(Li('1', id='i1'), id='list'))
    page.goto(site.url('p'))
    page.wait_for_selector('#i2')
    page.evaluate("window.shown = 0; document.addEventListener('htmx:sseMessage', () => shown++); htmx.trigger(document.querySelector('#sse'), 'htmx:afterProcessNode')")
    site.publish(oob(('i3', 3)))
    page.wait_for_selector('#i3')
    assert (texts(page), page.evaluate('shown'), site.last_ids()) == (['1', '2', '3'], 1, ['1'])


def test_repeated_elements_replace(page, site, until):
    "An appended element whose id stands in the page takes the place of the old one; replacing content is left alone"
    site.pages['p'] = lambda: (hidden(), Ul(Li('old', id='a'), Li('b', id='b'), id='list'), Ul(Li('x', id='x'), Li('y', id='y'), id='other'))
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


def test_repeated_element_still_works(page, site, until):
    "What htmx does for new elements it does for a replacing one too, and a connection within the old one is released"
    site.pages['p'] = lambda: (hidden(), Ul(Li(connect(Span, '/stream/inner'), id='a'), id='list'))
    site.pages['hello'] = lambda: Span('hello')
    page.goto(site.url('p'))
    until(lambda: site.count('inner') == 1)
    site.send('data: <ul id="list" hx-swap-oob="beforeend"><li id="a" hx-get="/pages/hello">click</li></ul>\n\n')
    page.click('text=click')
    page.wait_for_selector('text=hello')
    until(lambda: not site.count('inner'))


def test_page_statuses(page, make_site, until):
    "What an HTTP status does to a stream"
    site = make_site()
    login = lambda n: HTMLResponse('<h1>log in</h1>') if n < 3 else None
    again = lambda code, **kw: lambda n: Response(status_code=code, **kw) if n < 3 else None
    ends = {'s204': 204, 's401': 401, 's403': 403, 's410': 410}
    for name,code in ends.items(): site.answers[name] = lambda n, code=code: Response(status_code=code)
    site.answers |= {'s500': again(500), 's404': again(404), 's503': again(503), 'login': login}
    names = [*ends, 's500', 's404', 's503', 'login']
    site.pages['p'] = lambda: Div(Script("addEventListener('DOMContentLoaded', () => { cjmSSE.addEventListener('change', e => e.detail.source.configure({delay: 20})) })"),
                                  *[connect(endpoint=f'/stream/{n}', element_id=n) for n in names])
    page.goto(site.url('p'))
    for n in ('s500', 's404', 's503', 'login'): until(lambda n=n: len(site.last_ids(n)) == 3 and site.count(n) == 1, n)
    page.wait_for_timeout(300)
    assert {n: len(site.last_ids(n)) for n in ends} == dict.fromkeys(ends, 1)
    assert page.evaluate("['s204', 's401', 's403', 's410', 's500', 'login'].map(n => cjmSSE.get(n).state)") == \
        ['disconnected', 'error', 'error', 'error', 'active', 'active']
    assert page.evaluate("cjmSSE.get('s403').reason") == 'status 403'
    assert page.locator('text=log in').count() == 0


def test_retry_after(page, site):
    "503 comes back, not before the server wants it, also where somebody looks at the page"
    site.answers['events'] = lambda n: Response(status_code=503, headers={'Retry-After': '7'})
    site.pages['p'] = hidden
    page.add_init_script("document.addEventListener('DOMContentLoaded', () => cjmSSE.addEventListener('change', e => (window.seen ??= []).push(e.detail)))")
    page.goto(site.url('p'))
    page.wait_for_function("cjmSSE.state === 'reconnecting'")
    wait, status = page.evaluate("(({retryIn, status}) => [retryIn, status])(seen.find(c => c.state === 'reconnecting'))")
    assert 7000 <= wait <= 8750 and status == 503
    page.evaluate("dispatchEvent(new Event('online'))")
    page.wait_for_timeout(100)
    assert len(site.requests) == 1


def test_a_server_that_is_busy_for_a_while(page, site, until):
    "503 again and again, with and without a time to wait: the page says that it tries, comes back, and has missed nothing"
    site.pages['p'] = lambda: (hidden(), Ul(id='list'))
    page.goto(site.url('p'))
    until(site.count)
    site.publish(oob(('a', 'A')))
    page.wait_for_selector('#a')
    page.evaluate('cjmSSE.sources[0].configure({delay: 50})')
    headers = iter([{'Retry-After': '1'}, {}, {'Retry-After': '1'}, {}])
    site.answers['events'] = lambda n: Response(status_code=503, headers=h) if (h := next(headers, None)) is not None else None
    site.send(None)
    page.wait_for_function("cjmSSE.state === 'reconnecting' && cjmSSE.sources[0].reason === 'status 503'")
    site.publish(oob(('b', 'B')))
    page.wait_for_selector('#b')
    assert (page.evaluate('cjmSSE.state'), site.last_ids()) == ('active', ['']+['1']*5)


def test_reconnecting_backs_off(page, site, until):
    "Each failure doubles the wait; an open stream starts anew"
    site.answers['events'] = lambda n: Response(status_code=500) if n < 5 else None
    site.pages['p'] = hidden
    page.add_init_script("document.addEventListener('DOMContentLoaded', () => cjmSSE.addEventListener('change', e => { e.detail.source.configure({delay: 20}); (window.seen ??= []).push(e.detail) }))")
    page.goto(site.url('p'))
    until(site.count)
    site.send(None)
    until(lambda: len(site.requests) == 6)
    waits = page.evaluate("seen.filter(c => c.state === 'reconnecting').map(c => c.retryIn)")
    # Spread between half and one and a half of 20, 40, 80, 160, and 20 again
    assert [base/2 <= w <= base*1.5 for w,base in zip(waits, [20, 40, 80, 160, 20], strict=True)] == [True]*5


def test_farewell(page, site, until):
    "A `retry:` in mid-stream is for the next reconnection alone, and beats what the page wants"
    site.pages['p'] = hidden
    site.opening['events'] = 'retry: 40\ndata: \n\n'
    page.add_init_script("document.addEventListener('DOMContentLoaded', () => cjmSSE.addEventListener('change', e => (window.seen ??= []).push(e.detail)))")
    page.goto(site.url('p'))
    until(site.count)
    for farewell in ('retry: 400\n\n', 'data: \n\n'):
        site.send(farewell)
        n = len(site.requests)
        site.send(None)
        until(lambda n=n: len(site.requests) == n+1 and site.count())
    waits = page.evaluate("seen.filter(c => c.state === 'reconnecting').map(c => c.retryIn)")
    assert 200 <= waits[0] <= 600 and 20 <= waits[1] <= 60


def test_window_object(page, site, until):
    "`window.cjmSSE`, for people who write JavaScript"
    site.pages['p'] = lambda: (hidden(), Ul(id='list'))
    page.add_init_script("document.addEventListener('DOMContentLoaded', () => cjmSSE.addEventListener('change', e => (window.seen ??= []).push(e.detail.state)))")
    page.goto(site.url('p'))
    until(site.count)
    site.publish(oob(('a', 'A')))
    page.wait_for_selector('#a')
    page.evaluate('cjmSSE.close()')
    until(lambda: not site.count())
    assert page.evaluate('[cjmSSE.state, cjmSSE.lastEventId, cjmSSE.sources[0].reason]') == ['disconnected', '1', 'closed']
    page.evaluate('cjmSSE.reconnect()')
    until(site.count)
    page.wait_for_function("cjmSSE.state === 'active'")
    site.publish(oob(('b', 'B')))
    page.wait_for_selector('#b')
    assert site.last_ids() == ['', '1']
    assert page.evaluate('seen') == ['connecting', 'active', 'disconnected', 'reconnecting', 'active']
    assert texts(page) == ['A', 'B']


def test_back_brings_a_live_page(page, site, until):
    "Ten navigations hold one connection, and Back brings a page that goes on from its last id"
    site.pages |= {'p': lambda: (hidden(), Ul(id='list'), Input(id='typed')), 'q': hidden}
    for i in range(10):
        page.goto(site.url('p') + f'?{i}')
        until(lambda i=i: site.count() == 1 and len(site.requests) == i+1)
    site.publish(oob(('a', 'A')))
    page.wait_for_selector('#a')
    page.fill('#typed', 'half a sent')
    page.evaluate('window.kept = true')
    page.goto(site.url('q'))
    until(lambda: site.count() == 1 and len(site.requests) == 11)
    site.publish(oob(('b', 'B')))
    page.go_back(wait_until='commit')
    page.wait_for_selector('#b')
    assert page.evaluate("[window.kept, document.querySelector('#typed').value]") == [True, 'half a sent']
    until(lambda: site.count() == 1)
    assert (texts(page), site.last_ids()[10:]) == (['A', 'B'], ['', '1'])


def test_back_by_htmx(page, site, until):
    "A page that htmx has kept as text goes on from where it was left, not from where it began"
    site.publish(oob(('a', 'A')))
    site.pages |= {'p': lambda: Div(hidden(after='1'), Ul(Li('A'), id='list'), Button('go', hx_get='/pages/q', hx_target='body', hx_push_url='true')), 'q': lambda: P('q')}
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


def test_back_without_the_client(page, make_site, until):
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


def test_typed_text_survives_a_reconnection(page, site, until):
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
    assert page.evaluate("(e => [e.value, e.selectionStart, e.selectionEnd, document.activeElement === e])(document.querySelector('#typed'))") == ['half a sent', 2, 4, True]


VECTORS = {
    'lines':    b'data: a\rdata: b\r\ndata: c\n\ndata: d\r\r',
    'bom':      b'\xef\xbb\xbfdata: a\n\n',
    'two-boms': b'\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n',
    'blanks':   b'data:  a\n\ndata:b\n\ndata\n\ndata:\n\n data: c\n\n',
    'ids':      b'id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\nid: x\0y\ndata: d\n\nid: 2\n\ndata: e\n\n',
    'fields':   b'event: e\n\ndata: a\n\nevent: e\ndata: b\n\nevent:\ndata: c\n\nunknown: 1\ndata: d\n\n: comment\ndata: e\n\n',
    'utf8':     'data: ok…😀\u2028x\x85\x0b\n\n'.encode() + b'data: \xff\xfe\n\n',
    'end':      b'data: a\n\ndata: never\n',
    'error':    b'event: error\ndata: a\n\n'}


@pytest.mark.parametrize('name', VECTORS)
def test_parses_as_the_browser_does(page, site, name):
    "The same events, ids and data as Chromium's own EventSource, on one and the same stream"
    site.pages |= {'p': lambda: P('x'), name: lambda: VECTORS[name] + b'data: END\n\n' if name != 'end' else b'data: a\n\n' + b'data: END\n\ndata: never\n'}
    page.goto(site.url('p'))
    got = page.evaluate("""name => {
        const read = source => new Promise(resolve => {
            const seen = [];
            for (const type of ['message', 'e', 'error']) source.addEventListener(type, e => {
                if (!(e instanceof MessageEvent)) return;
                if (e.data === 'END') { source.close(); return resolve(seen); }
                seen.push([e.type, e.data, e.lastEventId]);
            });
        });
        return Promise.all([read(new EventSource(`/raw/${name}`)), read(cjmSSE.connect(`/raw/${name}`, {}))]);
    }""", name)
    assert got[0] == got[1] and (got[0] or name == 'error')


def test_content_security_policy(page, make_site, until):
    "A strict policy: scripts from the app's own origin alone"
    site = make_site()
    class Policy:
        def __init__(self, app): self.app = app
        async def __call__(self, scope, receive, send):
            async def _send(m):
                if m['type'] == 'http.response.start': m['headers'] = [*m['headers'], (b'content-security-policy', b"default-src 'none'; script-src 'self'; connect-src 'self'")]
                await send(m)
            await self.app(scope, receive, _send)
    site.app.add_middleware(Policy)
    script = HTMXSSEConnector.create_sse_monitor_script(dict(sse_element_id='sse'), inline=False)
    # htmx itself writes a style element and would evaluate filters
    config = NotStr('<meta name="htmx-config" content=\'{"includeIndicatorStyles": false, "allowEval": false}\'>')
    site.app.hdrs.insert(0, config)
    site.pages['p'] = lambda: (hidden(), Ul(id='list'), Span(id='connection-status'), script)
    page.goto(site.url('p'))
    page.wait_for_selector('#connection-status[data-sse-state=active]')
    site.send(f'data: {oob(("a", "A"))}\n\n')
    page.wait_for_selector('#a')
    # A second tab shares, under the same policy
    other = page.context.new_page()
    other.on('console', lambda m: page.console.append((m.type, m.text)))
    other.goto(site.url('p'))
    other.wait_for_selector('#connection-status[data-sse-state=active]')
    until(lambda: (site.count(), site.connections) == (2, 1))
    site.send(f'data: {oob(("b", "B"))}\n\n')
    for tab in (page, other): tab.wait_for_selector('#b')
    assert not [t for k,t in page.console if k in ('error', 'warning')]
