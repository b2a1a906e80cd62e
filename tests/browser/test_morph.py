"Morph swaps under htmx 2 and htmx 4: what somebody is typing into stays as it is, while all around it changes"
import pytest
from fasthtml.common import Div, Form, Input, Label, Option, P, Progress, Script, Select, Span, Textarea, Ul, to_xml

from handmade import ASSETS, MAJORS

from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, oob_swap, oob_update, setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor

connect = HTMXSSEConnector.create_sse_element
FIELD = "(e => [e.value, e.selectionStart, e.selectionEnd, document.activeElement === e])(document.querySelector('%s'))"


def frame(*elements): return 'data: ' + ''.join(to_xml(o, indent=False) for o in elements).replace('\n', ' ').strip() + '\n\n'
def hidden(): return connect(endpoint='/stream/events', element_id='sse-connection', hidden=True)


def fields(n, *more, name='', note=''):
    "What the server has to say in its message `n`"
    return (P(f'message {n}', id='n'), *more, Progress(value=n, max=9, id='bar'), Label('Name', Input(id='name', name='name', value=name)), Textarea(note, id='note', name='note'),
            Input(id='box', type='checkbox', name='box', value=f'v{n}'), Select(Option('a', value='a'), Option('b', value='b'), id='pick', name='pick'))


@pytest.fixture(params=MAJORS)
def site(request, make_site, page):
    site = make_site(setup=lambda app: setup_sse(app, morph=True), hdrs=[*MAJORS[request.param](), Script(src='/assets/idiomorph.js')])  # The version can't be told from these addresses, so Idiomorph is in each
    yield site
    assert not [t for k,t in page.console if k in ('warning', 'error') and 'Failed to load resource' not in t]


@pytest.mark.parametrize('how,id', [('oob_update', 'name'), ('oob_update', 'note'), ('oob_swap', 'name'), ('target', 'note'), ('hx-swap', 'name'), ('hx-swap inner', 'note')])
def test_field_in_use(page, site, until, how, id):
    "Focus, caret, selection and typed text stay; so does what the user did to other fields, as long as the server says nothing new of them"
    make, around = {
        'oob_update':    (lambda n, **kw: oob_update('form', fields(n, **kw), 'morph'), Form(*fields(0), id='form', cls='mine')),
        'oob_swap':      (lambda n, **kw: oob_swap(Form(*fields(n, **kw), id='form', cls='mine'), 'morph'), Form(*fields(0), id='form', cls='mine')),
        'target':        (lambda n, **kw: oob_swap(Div(*fields(n, **kw)), 'innerMorph', 'form'), Form(*fields(0), id='form', cls='mine')),
        'hx-swap':       (lambda n, **kw: Form(*fields(n, **kw), id='form', cls='mine'), Div(Form(*fields(0), id='form', cls='mine'))),
        'hx-swap inner': (lambda n, **kw: Form(*fields(n, **kw), id='form', cls='mine'), Div(Form(*fields(0), id='form', cls='mine')))}[how]
    if how == 'hx-swap': around = Div(connect(Form, '/stream/events', 'form', swap='morph', content=fields(0), cls='mine'))
    if how == 'hx-swap': make = lambda n, **kw: connect(Form, '/stream/events', 'form', swap='morph', content=fields(n, **kw), cls='mine')
    if how == 'hx-swap inner': around = connect(Div, '/stream/events', swap='innerMorph', content=around)
    site.pages['p'] = lambda: (around,) if how.startswith('hx') else (hidden(), around)
    page.goto(site.url('p'))
    until(site.count)
    page.fill('#note', 'a note')
    page.check('#box')
    page.select_option('#pick', 'b')
    page.fill('#name', 'half a')
    page.evaluate("document.querySelectorAll('#name, #note').forEach(e => e.same = true)")
    page.focus(f'#{id}')
    page.keyboard.press('End')
    page.keyboard.type(' sent')
    page.evaluate(f"document.querySelector('#{id}').setSelectionRange(2, 4)")
    text = 'half a sent' if id == 'name' else 'a note sent'
    for n in (1, 2):
        site.send(frame(make(n)))
        page.wait_for_function('n => document.querySelector("#n").textContent === `message ${n}`', arg=n)
        assert page.evaluate(FIELD % f'#{id}') == [text, 2, 4, True]
        assert page.evaluate("['#name', '#note'].map(id => document.querySelector(id)).map(e => [e.value, e.same])") == \
            [['half a sent' if id == 'name' else 'half a', True], ['a note sent' if id == 'note' else 'a note', True]]
        assert page.evaluate("[box.checked, box.value, pick.value, bar.value, document.querySelectorAll('form').length, document.forms[0].classList.contains('mine')]") == [True, f'v{n}', 'b', n, 1, True]
    page.keyboard.press('ArrowRight')
    page.keyboard.type('!')
    assert page.evaluate(FIELD % f'#{id}')[0] == text[:4] + '!' + text[4:]
    # Of what nobody is at, the server's new word counts; what somebody types does not go even then
    site.send(frame(make(3, name='server', note='server')))
    page.wait_for_function('document.querySelector("#n").textContent === "message 3"')
    assert page.evaluate("['#name', '#note'].map(id => document.querySelector(id).value)") == ([text[:4] + '!' + text[4:], 'server'] if id == 'name' else ['server', text[:4] + '!' + text[4:]])
    assert (site.count(), len(site.requests)) == (1, 1)


def test_children(page, site, until):
    "Elements come, go and change places; those that stay are the same, and connections within go on or end with theirs"
    def item(i, text): return Span(text, id=i)
    def inner(i): return connect(Span, f'/stream/{i}', i)
    site.pages['p'] = lambda: (hidden(), Div(item('a', 'a'), inner('x'), inner('y'), item('b', 'b'), id='list'), Div('elsewhere', id='c'))
    page.goto(site.url('p'))
    until(lambda: all(site.count(o) == 1 for o in ('events', 'x', 'y')))
    page.evaluate("document.querySelectorAll('span').forEach(e => e.same = true)")
    site.send(frame(oob_update('list', [item('b', 'B'), inner('z'), inner('x'), item('a', 'A'), item('c', 'C')], 'morph')))
    until(lambda: site.count('z') == 1 and site.count('y') == 0)
    assert page.evaluate("[...document.querySelector('#list').children].map(e => [e.id, e.textContent, !!e.same])") == \
        [['b', 'B', True], ['z', '', False], ['x', '', True], ['a', 'A', True], ['c', 'C', False]]
    site.send('data: <i>1</i>\n\n', 'x')
    site.send('data: <i>2</i>\n\n', 'z')
    page.wait_for_function("document.querySelector('#x').textContent === '1' && document.querySelector('#z').textContent === '2'")
    assert (site.last_ids('x'), page.locator('[id=c]').count()) == ([''], 2), 'the one elsewhere is no business of a morph'


def test_repeated_elements_beside_a_morph(page, site, until):
    "An element that is appended takes the place of the old one, also in a page that morphs"
    site.pages['p'] = lambda: (hidden(), Ul(id='list'), Div(P('x', id='x'), id='box'))
    page.goto(site.url('p'))
    until(site.count)
    for i in ('1', '2'): site.send(frame(oob_update('list', P(i, id='p'), 'beforeend'), oob_update('box', P(i, id='x'), 'morph')))
    page.wait_for_function("document.querySelector('#x').textContent === '2'")
    assert page.locator('p').all_inner_texts() == ['2', '2']


def test_monitor(page, site, state):
    "A morph that draws the status as the server knows it does not make the monitor lie"
    shown = lambda n: Div(Span('Connecting…', id='connection-status'), P(str(n), id='n'), id='head')
    site.pages['p'] = lambda: (hidden(), shown(0), create_sse_monitor(HTMXSSEConnector, SSEMonitorConfig(status_indicators=dict(active='on'))))
    page.goto(site.url('p'))
    state('active')
    for n in (1, 2):
        site.send(frame(oob_swap(shown(n), 'morph')))
        page.wait_for_function("n => document.querySelector('#n').textContent === `${n}`", arg=n)
        page.wait_for_function("(e => e.textContent === 'on' && e.dataset.sseState === 'active')(document.querySelector('#connection-status'))")


def test_added_by_address(page, make_site, until):
    "Where the app asks for it, Idiomorph comes from its CDN, as what it is"
    asked = []
    def cdn(route):
        asked.append(route.request.url)
        package, _, path = route.request.url.removeprefix('https://cdn.jsdelivr.net/npm/').partition('/')
        route.fulfill(status=200, body=(ASSETS/package.split('@')[0]/path).read_bytes(), content_type='text/javascript', headers={'Access-Control-Allow-Origin': '*'})
    site = make_site(setup=lambda app: insert_htmx_sse_ext(app.hdrs, morph=True), hdrs=[Script(src='https://cdn.jsdelivr.net/npm/htmx.org@2.0.7/dist/htmx.js')])
    site.pages['p'] = lambda: (hidden(), Div(Input(id='name'), Span(id='n'), id='box'))
    page.route('https://cdn.jsdelivr.net/**', cdn)
    page.goto(site.url('p'))
    until(site.count)
    page.fill('#name', 'typed')
    site.send(frame(oob_update('box', [Input(id='name'), Span('1', id='n')], 'morph')))
    page.wait_for_function("document.querySelector('#n').textContent === '1'")
    assert page.input_value('#name') == 'typed' and any('idiomorph' in o for o in asked)
    page.unroute_all()
