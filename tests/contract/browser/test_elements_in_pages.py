"""Elements that a stream fills, under htmx 2.0 and htmx 4.0 and 4.1 alike

An element connects, swaps what its events bring, here or out-of-band, and ends where its stream says so. It lives as
long as it is in the page: one that comes later connects, one that goes lets go of its stream, and one that htmx keeps,
moves or processes twice goes on with the stream it has, and shows each message once. The attributes stay as the server
wrote them.
"""
import pytest
from browsers import each_browser
from fasthtml.common import Button, Div, Li, NotStr, P, Script, Span, Ul, to_xml
from handmade import HTMX4, MAJORS
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import oob_swap, oob_update, setup_sse, sse_element
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor

connect = HTMXSSEConnector.create_sse_element
TOLD = """document.addEventListener('DOMContentLoaded', () => cjmSSE.addEventListener('change', e =>
    (window.told ??= []).push({...e.detail, source: null, element: e.detail.element.id})))"""
ERRORS = """window.errors = [];
    document.addEventListener('htmx:sseError', ({ target, detail: { error, source } }) => errors.push(
        [target.id, error instanceof Error, error?.message, error?.status, source === cjmSSE.get(target)]))"""
OWN = "htmx.createEventSource = url => { (window.made ??= []).push(url); return new EventSource(url) };"
OF_OTHERS = 'Failed to load resource', 'Log in again', '"Nothing happens"'


def hidden(**kw): return connect(endpoint='/stream/events', element_id='sse-connection', hidden=True, **kw)
def watched(**kw):
    monitor = create_sse_monitor(HTMXSSEConnector, SSEMonitorConfig(reconnect_delay=50), **kw)
    return Div(hidden(), Span('server says', id='connection-status'), monitor)
def soon(id):
    "The stream of this element comes back soon"
    return create_sse_monitor(HTMXSSEConnector, SSEMonitorConfig(sse_element_id=id, reconnect_delay=20))
def log(id, **kw): return connect(Span, element_id=id, swap='beforeend', **kw)
def live(*more, **kw):
    content = [*more, log('log', events='line')]
    return connect(endpoint='/stream/events', element_id='live', swap='none', content=content, **kw)
def line(text): return f'event: line\ndata: {text}\n\n'
def html(element): return to_xml(element, indent=False).strip().replace('\n', ' ')
def oob(id, html, swap='innerHTML'): return f'data: <div id="{id}" hx-swap-oob="{swap}">{html}</div>\n\n'
def texts(page, css): return page.locator(css).all_inner_texts()
def shows(page, css, text):
    page.wait_for_function('([css, text]) => document.querySelector(css)?.textContent === text', arg=[css, text])
def complaints(page):
    "Warnings and errors in the console; htmx 2 notes each lost connection as `Event`"
    said = [t for k,t in page.console if k in ('warning', 'error') and t!='Event']
    return [t for t in said if not any(o in t for o in OF_OTHERS)]


@pytest.fixture(params=MAJORS)
def major(request): return request.param


@pytest.fixture
def site(make_site, page, major):
    "A site with one of the versions; no page of it may have anything in its console but failed requests"
    yield make_site(hdrs=MAJORS[major]())
    assert not complaints(page)
    # hx-sse from its CDN, beside ours: Firefox says that it can't have it
    page.errors[:] = [o for o in page.errors if 'cdn.jsdelivr.net' not in o]


@pytest.fixture
def opened(page, site, until):
    "Opens a page with this content, and waits for its streams"
    def opened(*content, path='events'):
        site.pages['p'] = lambda: content
        page.goto(site.url('p'))
        until(lambda: site.count(path))
        page.wait_for_function("cjmSSE.sources.every(source => source.state === 'active')")
    return opened


class TestSwaps:
    def test_swaps(self, page, site, until):
        """Named events and unnamed ones, here and in elements within, with each element's own swap style and target;
        scripts may listen and refuse"""
        inner = [connect(Span, element_id='price', events=['price', 'tax']),
                 connect(Span, element_id='volume', events='volume', swap='beforeend')]
        site.pages['p'] = lambda: Div(
            connect(endpoint='/stream/events', element_id='all', swap='none', content=inner),
            connect(
                endpoint='/stream/events',
                element_id='log',
                events='price, volume',
                swap='beforeend',
                hx_target='#there',
            ),
            P(id='there'),
            connect(P, endpoint='/stream/events', element_id='plain'),
            Span(id='oob'),
        )
        page.goto(site.url('p'))
        page.wait_for_function("cjmSSE.sources.length === 3 && cjmSSE.state === 'active'")
        page.evaluate("""document.addEventListener('htmx:sseBeforeMessage', e => {
            (window.asked ??= []).push(e.target.id); if (e.detail.data === 'no') e.preventDefault() })""")
        for name,data in [('price', 1), ('volume', 2), ('tax', 3), ('volume', 4), ('volume', 'no'), ('other', 5)]:
            site.send(f'event: {name}\ndata: {data}\n\n')
        site.send('data: <b>6</b><i id="oob" hx-swap-oob="true">7</i>\n\n')
        shows(page, '#plain', '6')
        for css,text in {'#there': '124', '#price': '3', '#volume': '24', '#oob': '7'}.items(): shows(page, css, text)
        assert (page.inner_html('#plain'), page.locator('[id=there]').count()) == ('<b>6</b>', 1)
        assert page.evaluate("asked.filter(id => id === 'volume').length") == 3

    def test_out_of_band_only(self, page, site, until):
        "A message that is out-of-band altogether leaves the element alone that hears it; one that is more does not"
        element = connect(endpoint='/stream/events', element_id='el', content=P('as it was'))
        site.pages['p'] = lambda: Div(element, Span(id='a'), Span(id='b'))
        page.goto(site.url('p'))
        until(site.count)
        site.send(f'{oob("a", "A").rstrip()}\ndata: \ndata: <span hx-swap-oob="true" id="b">B</span>\n\n')
        shows(page, '#b', 'B')
        assert (page.inner_text('#a'), page.inner_html('#el').strip()) == ('A', '<p>as it was</p>')
        site.send('data: <i>new</i><span hx-swap-oob="true" id="b">C</span>\n\n')
        shows(page, '#b', 'C')
        assert texts(page, '#el > *') == ['new']

    def test_ids_with_colons(self, page, site, until):
        "An update finds its element whatever its id is made of"
        ids = ['job:1', 'a.b: c', '7up', '-7', 'é,"']
        site.pages['p'] = lambda: (hidden(), *[Ul(id=i) for i in ids])
        page.goto(site.url('p'))
        until(site.count)
        for i in ids:
            site.send(f"data: {html(oob_update(i, NotStr('<li>1</li>')))}\n\n")
            site.send(f"data: {html(oob_swap(Div(NotStr('<li>2</li>')), 'beforeend', i))}\n\n")
        page.wait_for_function("document.querySelectorAll('li').length === 10")
        assert texts(page, 'ul') == ['1\n2']*5

    def test_hidden_listener(self, page, site, until):
        "A hidden element swaps nothing, unless it says what and where"
        site.pages['p'] = lambda: Div(hidden(hx_target='#log', hx_swap='beforeend'), P(id='log'))
        page.goto(site.url('p'))
        until(site.count)
        for word in 'one', 'two': site.send(f'data: <b>{word}</b>\n\n')
        shows(page, '#log', 'onetwo')

    def test_repeated_elements_replace(self, page, site, until):
        "An appended one whose id stands in the page takes the place of the old one; what goes on in the old one ends"
        old = connect(Span, '/stream/inner', element_id='b')
        site.pages |= {'p': lambda: (hidden(), Div(Span('a', id='a'), old, Span('c', id='c'), id='list')),
                       'hello': lambda: Span('hello')}
        page.goto(site.url('p'))
        until(lambda: site.count() == site.count('inner') == 1)
        site.send(oob('list', '<span id="b" hx-get="/pages/hello">click</span><span id="d">d</span>', 'beforeend'))
        shows(page, '#d', 'd')
        assert texts(page, '#list > span') == ['a', 'click', 'c', 'd']
        until(lambda: not site.count('inner'))
        site.send(oob('list', '<span id="a">A</span><span id="n">n</span>', 'afterbegin'))
        shows(page, '#n', 'n')
        assert texts(page, '#list > span') == ['n', 'A', 'click', 'c', 'd']
        page.click('#b')
        shows(page, '#b > span', 'hello')

    def test_triggers(self, page, site, until):
        "`hx-trigger=\"sse:name\"`: an event makes an element ask the server"
        site.pages |= {
            'p': lambda: connect(
                endpoint='/stream/events',
                swap='none',
                hx_ext='sse',
                content=[
                    Div(id='a', hx_get='/pages/hello', hx_trigger='sse:news, click', hx_swap='innerHTML'),
                    Div(id='b', hx_get='/pages/hello', hx_trigger='sse:newsletter', hx_swap='innerHTML'),
                ],
            ),
            'hello': lambda: Span('hello'),
        }
        page.goto(site.url('p'))
        until(site.count)
        site.send('event: news\ndata: \n\n')
        shows(page, '#a', 'hello')
        assert page.inner_text('#b') == ''

    def test_job_elements(self, page, site, until):
        "Progress and status of a job: shown from the start, updated, and left as they are at the end"
        site.pages['p'] = lambda: Div(*[f('j 1', f'/stream/{n}?job={{job_id}}', initial_content=n) for n,f in
            [('progress', HTMXSSEConnector.sse_progress_element), ('status', HTMXSSEConnector.sse_status_element)]])
        page.goto(site.url('p'))
        until(lambda: site.count('progress') == site.count('status') == 1)
        assert texts(page, 'div > span') == ['progress', 'status']
        site.send('data: <progress value=".5"></progress>\n\n', 'progress')
        page.wait_for_function("document.querySelector('progress')?.value === .5")
        site.send('data: done\n\nevent: sse:close\ndata: \n\n', 'status')
        shows(page, '[id="status-span-j 1"]', 'done')
        site.send(f'data: {html(oob_update("progress-span-j 1", "half", element_type=Span))}\n\n', 'progress')
        shows(page, '[id="progress-span-j 1"]', 'half')
        until(lambda: not site.count('status') and site.count('progress'))

    def test_inherited_attributes(self, page, make_site, until):
        "htmx 4 inherits where a page says so"
        site = make_site(hdrs=HTMX4())
        element = '<div id="el" sse-connect="/stream/events" sse-swap="message">a</div>'
        site.pages['p'] = lambda: Div(NotStr(f'<div hx-swap:inherited="beforeend">{element}</div>'))
        page.goto(site.url('p'))
        until(site.count)
        site.send('data: b\n\n')
        shows(page, '#el', 'ab')


class TestEnds:
    def test_closing_event(self, page, site, until, idle):
        "`sse:close` ends the stream of an element that waits for it, and only there"
        once = sse_element('/stream/events', swap='beforeend')(lambda: Div(id='once'))
        script = Script("addEventListener('htmx:sseClose', e => window.ended = e.detail.type)")
        site.pages['p'] = lambda: (once(), connect(endpoint='/stream/other', element_id='always'), script)
        page.goto(site.url('p'))
        until(lambda: site.count() == 1 and site.count('other') == 1)
        for path in ('events', 'other'):
            site.send('retry: 50\ndata: done\n\n', path)
            site.send('event: sse:close\ndata: \n\n', path)
            site.send(None, path)
        until(lambda: len(site.last_ids('other')) == 2, 'the other stream came back')
        page.wait_for_function("window.ended === 'message'")
        shows(page, '#once', 'done')
        idle(5000)
        assert len(site.last_ids()) == 1
        page.evaluate("htmx.process(document.body)")
        idle(5000)
        assert len(site.last_ids()) == 1

    def test_first_answers(self, page, site, until, idle):
        "A first answer that is no stream does not land in the page: a page and a 503 are asked again, a 403 is not"
        def again(make): return lambda n: make() if n < 3 else None
        site.answers |= {
            'page': again(lambda: HTMLResponse('<h1>a page</h1>')),
            's503': again(lambda: Response('<h1>busy</h1>', status_code=503)),
            's403': lambda n: HTMLResponse('<h1>forbidden</h1>', status_code=403),
        }
        def element(n): return connect(endpoint=f'/stream/{n}', element_id=n, content=P(n))
        site.pages |= {'p': lambda: Div(*map(element, site.answers), *map(soon, site.answers))}
        page.add_init_script(TOLD)
        page.goto(site.url('p'))
        for n in ('page', 's503'): until(lambda n=n: len(site.last_ids(n)) == 3 and site.count(n) == 1, n)
        states = "[...document.querySelectorAll('p')].map(p => cjmSSE.get(p.parentElement).state).join()"
        page.wait_for_function(f"{states} === 'active,active,error'")
        idle(5000)
        assert len(site.last_ids('s403')) == 1
        assert texts(page, 'p') == [*site.answers]
        status = "name => told.find(c => c.element === name && c.state === 'reconnecting').status"
        assert [page.evaluate(status, n) for n in ('page', 's503')] == [200, 503]

    def test_detail(self, page, site, until):
        "`htmx:sseError` says what went wrong, each time, a final refusal too; and no console is filled with it"
        answers = {2: Response(status_code=500), 3: HTMLResponse('<p>busy'), 4: Response(status_code=403)}
        site.answers['events'], site.opening['events'] = answers.get, 'retry: 20\n\n'
        site.pages['p'] = lambda: live()
        page.add_init_script(ERRORS)
        page.goto(site.url('p'))
        until(site.count)
        site.send(None)
        page.wait_for_function("cjmSSE.state === 'error'")
        assert page.evaluate('errors') == [
            ['live', True, reason, status, True]
            for reason, status in [
                ('end of stream', None),
                ('status 500', 500),
                ('content type text/html', 200),
                ('status 403', 403),
            ]
        ]
        page.evaluate('window.errors = []; cjmSSE.reconnect()')
        until(site.count)
        page.evaluate('cjmSSE.close()')
        assert page.evaluate('errors') == [], 'none of these is an error'

    def test_events_named_like_the_sources_own(self, page, site, opened):
        "A server may name an event `error` or `open`"
        opened(live())
        page.evaluate("""window.told = [];
            for (const o of ['htmx:sseError', 'htmx:sseOpen']) document.addEventListener(o, () => told.push(o))""")
        for name in ('error', 'open', 'sse:state'): site.send(f'event: {name}\ndata: 1\n\n')
        site.send(line('a'))
        shows(page, '#log', 'a')
        assert page.evaluate('told') == []


class TestElementsThatComeAndGo:
    def test_later_elements(self, page, site, until, state, idle):
        """What a swap brings connects, a monitor too; what goes releases its connection at once, by whatever means;
        what moves keeps it"""
        def button(id, page): return Button(id, id=id, hx_get=f'/pages/{page}', hx_target='#place')
        site.pages |= {'p': lambda: Div(button('more', 'late'), button('less', 'none'), Div(id='place')),
                       'late': lambda: watched(inline=False), 'none': lambda: Span('none')}
        page.goto(site.url('p'))
        for how in ('swap', 'remove()'):
            page.click('#more')
            state('active')
            until(lambda: site.count() == 1)
            n = len(site.requests)
            page.evaluate("document.body.append(document.querySelector('#sse-connection'))")
            page.evaluate("document.querySelector('#place').append(document.querySelector('#sse-connection'))")
            page.evaluate("htmx.process(document.body)")
            site.send('event: x\ndata: \n\n')
            idle(1000)
            assert (len(site.requests), site.count()) == (n, 1)
            if how == 'swap': page.click('#less')
            else: page.evaluate("document.querySelector('#place').replaceChildren()")
            until(lambda: not site.count())
        assert page.evaluate('cjmSSE.sources.length') == 0

    @pytest.mark.parametrize('how', ['sse-connection', 'parent', 'swap'])
    def test_removed_element_releases_its_connection(self, page, site, until, how, idle):
        button = Button('x', hx_get='/pages/empty', hx_target='#parent')
        site.pages['p'] = lambda: Div(Div(hidden(), id='parent'), button)
        site.pages['empty'] = lambda: Span('empty')
        page.goto(site.url('p'))
        until(site.count)
        if how == 'swap':
            page.click('button')
        else: page.evaluate('id => document.getElementById(id).remove()', how)
        until(lambda: not site.count(), 'the server saw it close')
        idle(5000)
        assert (len(site.requests), page.evaluate('cjmSSE.sources.length')) == (1, 0)

    def test_snapshot(self, page, site):
        "What a request or a message brings gets its stream's snapshot, as what the page came with"
        manager = SSEBroadcastManager(heartbeat=5.)
        setup_sse(site.app, manager)
        @site.app.route('/state')
        def state(req: Request): return manager.stream(req, snapshot=lambda: '<i>it</i>', render=lambda m: m['data'])
        def element(id): return connect(endpoint='/state', element_id=id)
        site.pages |= dict(more=lambda: element('second'), p=lambda: (
            element('first'), Button('x', hx_get='/pages/more', hx_target='#place'), Div(id='place'),
            connect(endpoint='/stream/news', element_id='news', hidden=True), Div(id='there')))
        page.goto(site.url('p'))
        page.wait_for_selector('#first i')
        page.click('button')
        page.wait_for_selector('#second i')
        page.wait_for_function("cjmSSE.get('news').state === 'active'")
        site.send(f'data: {html(Div(element("third"), id="there", hx_swap_oob="true"))}\n\n', 'news')
        page.wait_for_selector('#third i')


class TestElementsThatStay:
    @pytest.mark.parametrize('swap', ['innerHTML', 'outerHTML'])
    @pytest.mark.parametrize('deep', [False, True])
    def test_preserved(self, page, site, opened, until, swap, deep, idle):
        "An element that htmx keeps goes on with its stream, and the elements within go on listening"

        def kept(): return Div(live(hx_preserve=True)) if deep else live(hx_preserve=True)
        def region(text): return Div(P(text, id='text'), kept(), id='region')
        opened(Button('x', hx_get='/pages/again', hx_target='#region', hx_swap=swap), region('old'))
        site.pages['again'] = lambda: region('new') if swap == 'outerHTML' else region('new').children
        site.send(line('a'))
        shows(page, '#log', 'a')
        for n in (1, 2):
            page.evaluate("document.querySelector('#text').textContent = 'old'")
            page.evaluate("document.querySelector('button').click()")
            shows(page, '#text', 'new')
            idle(1000)  # What is connected too much opens now
            site.send(line(n))
            shows(page, '#log', 'a12'[:n+1])
        assert (len(site.requests), site.count(), page.evaluate('cjmSSE.sources.length')) == (1, 1, 1)

    @each_browser
    def test_processed_again(self, page, site, opened):
        "htmx processes an element anew whose attributes have changed; its stream stays, what hears it hears it once"
        opened(live(log('own', endpoint='/stream/own', events='line')), path='own')
        for css in ('#live', '#log', '#own', '*'):
            page.evaluate("css => document.querySelectorAll(css).forEach(e => e.classList.toggle(`seen`))", css)
            page.evaluate("htmx.process(document.body)")
        site.send(line('a'))
        site.send(line('b'), 'own')
        shows(page, '#own', 'b')
        shows(page, '#log', 'a')
        assert (site.last_ids(), site.last_ids('own'), page.evaluate('cjmSSE.sources.length')) == ([''], [''], 2)

    def test_brought_and_processed_again(self, page, site, opened, until):
        "So does one that a message has brought"
        opened(connect(endpoint='/stream/news', element_id='news', hidden=True), Div(id='place'), path='news')
        site.send(f'data: {html(Div(live(), id="place", hx_swap_oob="true"))}\n\n', 'news')
        until(site.count)
        page.evaluate('htmx.process(document.body)')
        site.send(line('a'))
        shows(page, '#log', 'a')
        assert site.last_ids() == ['']

    def test_another_address(self, page, site, opened, until):
        "A changed address is opened instead of the old one, and the elements within hear that"
        opened(live())
        page.evaluate("""() => { const e = document.querySelector('#live');
            const name = e.hasAttribute('sse-connect') ? 'sse-connect' : 'data-sse-connect';
            e.setAttribute(name, '/stream/other'); htmx.process(document.body) }""")
        until(lambda: site.count('other') == 1 and not site.count())
        site.send(line('a'), 'other')
        shows(page, '#log', 'a')

    def test_processed_before_it_is_in_the_page(self, page, site, opened, until):
        "A script may process an element first, and append it then"
        opened(connect(endpoint='/stream/news', element_id='news', hidden=True), path='news')
        page.evaluate(
            """html => { const template = document.createElement('template'); template.innerHTML = html;
            const e = template.content.firstElementChild;
            htmx.process(e); document.body.append(e); htmx.process(document.body) }""",
            html(live()),
        )
        until(site.count)
        site.send(line('a'))
        shows(page, '#log', 'a')
        assert (site.last_ids(), page.evaluate("cjmSSE.get('live').state")) == ([''], 'active')

    def test_disabled(self, page, site, opened, major):
        "What is within a part of the page that htmx leaves alone swaps nothing"
        off = 'hx_disable' if major < '4' else 'hx_ignore'
        opened(live(log('free', events='line'), Div(log('barred', events='line'), live(), **{off: True})))
        site.send(line('a'))
        shows(page, '#free', 'a')
        assert page.inner_text('#barred') == '' and len(site.requests) == 1


class TestAttributes:
    def test_as_the_server_wrote_them(self, page, site, opened, until):
        "The client writes nothing into the elements it serves"
        element = live(log('own', endpoint='/stream/own', events='line'))
        seen = """[...document.querySelectorAll('#live, #log, #own')].map(
            e => e.getAttributeNames().filter(o => !/powered|^class$/.test(o)).sort().join(' '))"""
        opened(element, path='own')
        page.evaluate("""html => { const template = document.createElement('template'); template.innerHTML = html;
            window.written = () => template.content }""", html(element))
        assert page.evaluate(seen) == page.evaluate(seen.replace('document.query', 'written().query'))

    def test_history(self, page, site, opened, until):
        "What htmx keeps for Back says where to go on from; the elements do not change, so htmx starts none anew"
        loads = []
        site.pages |= {'q': lambda: P('q', id='place'), 'loaded': lambda: loads.append(1) or ''}
        button = Button('go', hx_get='/pages/q', hx_target='#place', hx_swap='outerHTML', hx_push_url='true')
        opened(live(hx_get='/pages/loaded', hx_trigger='load'), button, P('p', id='place'))
        site.send('id: 7\n' + line('a'))
        shows(page, '#log', 'a')
        until(lambda: loads)
        before = page.evaluate("document.querySelector('#live').cloneNode(false).outerHTML")
        page.click('button')
        shows(page, '#place', 'q')
        assert page.evaluate("document.querySelector('#live').cloneNode(false).outerHTML") == before
        page.evaluate('htmx.process(document.body)')
        site.send('id: 8\n' + line('b'))
        shows(page, '#log', 'ab')
        assert (len(loads), len(site.requests)) == (1, 1)

    def test_back_by_a_cache_of_htmx_4(self, page, make_site, until):
        "Its extension hx-history-cache keeps pages as htmx 2 does"
        site = make_site(hdrs=[*HTMX4(), NotStr('<script src="/assets/hx-history-cache.js"></script>')])
        button = Button('go', hx_get='/pages/q', hx_target='body', hx_push_url='true')
        site.pages |= dict(p=lambda: Div(live(), button), q=lambda: P('q'))
        page.goto(site.url('p'))
        until(site.count)
        site.send('id: 7\n' + line('a'))
        shows(page, '#log', 'a')
        page.click('button')
        until(lambda: not site.count())
        page.go_back()
        until(site.count)
        assert (page.inner_text('#log'), site.last_ids()) == ('a', ['', '7'])

    @pytest.mark.parametrize('major', ['4.0.0', '4.0.1'], indirect=True)
    def test_morph(self, page, site, opened, until):
        "A morph of htmx 4 finds the elements that are the same, ids or none, so none connects anew"
        def row(name): return connect(Li, f'/stream/{name}', content=name)

        button = Button('x', hx_get='/pages/turned', hx_target='#list', hx_swap='innerMorph')
        opened(button, Ul(*map(row, 'abc'), id='list'), path='c')
        page.evaluate("document.querySelectorAll('li').forEach((e, i) => e.was = i)")
        site.pages['turned'] = lambda: [*map(row, 'bca')]
        page.click('button')
        page.wait_for_function("document.querySelector('#list').textContent.replace(/\\s/g, '') === 'bca'")
        assert page.evaluate("[...document.querySelectorAll('li')].map(e => e.was)") == [1, 2, 0]
        assert sorted(p for p,_ in site.requests) == ['a', 'b', 'c']


class TestSourcesOfOthers:
    @pytest.mark.parametrize('when', ['before', 'after'])
    def test_its_own_factory(self, page, make_site, until, major, when):
        "`htmx.createEventSource` of the app makes the sources, whether it was set before the client came or after it"
        own = NotStr(f'<script>{OWN}</script>')
        def setup(app):
            setup_sse(app)
            if when == 'after': app.hdrs.append(own)
        site = make_site(setup, hdrs=[*MAJORS[major](), *([own] if when == 'before' else [])])
        site.pages['p'] = lambda: live()
        page.goto(site.url('p'))
        until(site.count)
        site.send(line('a'))
        shows(page, '#log', 'a')
        page.evaluate("document.querySelector('#live').classList.toggle('x'); htmx.process(document.body)")
        site.send(line('b'))
        shows(page, '#log', 'ab')
        assert page.evaluate('[made, cjmSSE.sources.length]') == [['/stream/events'], 0]
        assert len(site.requests) == 1
        page.evaluate("htmx.process(document.body); window.got = document.querySelector('#live')")
        swap = "(got, '', {swapStyle: 'delete'})" if major < '4' else "({target: got, text: '', swap: 'delete'})"
        page.evaluate(f'htmx.swap{swap}')
        until(lambda: (site.send(line('c')), not site.count())[1], 'it ends with its element')

    def test_its_own_factory_around_ours(self, page, site, opened):
        "One that asks the one before it gets sources of ours"
        page.add_init_script("""document.addEventListener('DOMContentLoaded', () => {
            const { createEventSource } = htmx;
            htmx.createEventSource = url => createEventSource(url + '?more') }, true)""")
        opened(live())
        site.send(line('a'))
        shows(page, '#log', 'a')
        assert page.evaluate("[cjmSSE.sources.length, cjmSSE.get('live').url.slice(-5)]") == [1, '?more']

    def test_hx_sse_of_the_app(self, page, make_site, until):
        "What an app connects by hx-sse itself goes on by hx-sse"
        site = make_site(hdrs=HTMX4())
        own = NotStr('<div id="own" hx-sse:connect="/stream/own"></div>')
        site.pages['p'] = lambda: Div(own, connect(endpoint='/stream/events', element_id='ours'), Span(id='a'))
        page.goto(site.url('p'))
        until(lambda: site.count('own') == site.count() == 1)
        page.evaluate("document.querySelector('#own').addEventListener('tick', e => window.tick = e.detail.data)")
        site.send('event: tick\ndata: 7\n\ndata: <b>own</b>\n\n', 'own')
        site.send('data: ours\n\n')
        shows(page, '#own', 'own')
        shows(page, '#ours', 'ours')
        assert page.evaluate('[tick, cjmSSE.sources.length]') == ['7', 1]
        page.evaluate("htmx.swap({target: document.querySelector('#own'), text: '', swap: 'delete'})")
        until(lambda: not site.count('own') and site.count())

    def test_other_origin(self, page, make_site, until, major):
        "A stream of another origin is left to the browser's own source, and its messages are swapped all the same"
        site = make_site(hdrs=MAJORS[major]())
        other = f'http://localhost:{site.port}/stream/events'
        site.pages['p'] = lambda: connect(endpoint=other, element_id='el')
        page.route(
            other,
            lambda route: route.fulfill(
                status=200,
                body='retry: 60000\ndata: far\n\n',
                content_type='text/event-stream',
                headers={'Access-Control-Allow-Origin': site.url('')[:-7], 'Access-Control-Allow-Credentials': 'true'},
            ),
        )
        page.goto(site.url('p'))
        shows(page, '#el', 'far')
        assert page.evaluate('cjmSSE.sources.length') == 0
        page.unroute_all()
