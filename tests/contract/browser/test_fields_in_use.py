"""What somebody is typing into stays as it is, while all around it changes

Morph swaps, under htmx 2 and htmx 4: focus, caret, selection and typed text stay, and so does what a user did to other
fields, as long as the server says nothing new of them. Elements that stay are the same, and go on with their streams.
"""
import pytest
from fasthtml.common import Div, Form, Input, Label, Option, P, Progress, Script, Select, Span, Textarea, Ul, to_xml

from handmade import ASSETS, MAJORS

from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, oob_swap, oob_update, setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor

connect = HTMXSSEConnector.create_sse_element
FIELD = """id => { const e = document.getElementById(id);
    return [e.value, e.selectionStart, e.selectionEnd, document.activeElement === e] }"""
VALUES = "['name', 'note'].map(id => document.getElementById(id).value)"
SAME = "['name', 'note'].map(id => !!document.getElementById(id).same)"
OTHERS = "[box.checked, box.value, pick.value, bar.value, document.forms.length, form.classList.contains('mine')]"
WAYS = [('oob_update', 'name'), ('oob_update', 'note'), ('oob_swap', 'name'), ('target', 'note'), ('hx-swap', 'name'),
        ('hx-swap inner', 'note')]


def frame(*elements):
    html = ''.join(to_xml(o, indent=False) for o in elements)
    return 'data: ' + html.replace('\n', ' ').strip() + '\n\n'
def hidden(): return connect(endpoint='/stream/events', element_id='sse-connection', hidden=True)


def fields(n, *more, name='', note=''):
    "What the server has to say in its message `n`"
    return (P(f'message {n}', id='n'), *more, Progress(value=n, max=9, id='bar'),
            Label('Name', Input(id='name', name='name', value=name)), Textarea(note, id='note', name='note'),
            Input(id='box', type='checkbox', name='box', value=f'v{n}'),
            Select(Option('a', value='a'), Option('b', value='b'), id='pick', name='pick'))


@pytest.fixture(params=MAJORS)
def site(request, make_site, page):
    # The version can't be told from these addresses, so Idiomorph is in each
    hdrs = [*MAJORS[request.param](), Script(src='/assets/idiomorph.js')]
    site = make_site(setup=lambda app: setup_sse(app, morph=True), hdrs=hdrs)
    yield site
    assert not [t for k,t in page.console if k in ('warning', 'error') and 'Failed to load resource' not in t]


@pytest.mark.parametrize('how,id', WAYS)
def test_field_in_use(page, site, until, how, id):
    "What the server has to say comes out-of-band, or is swapped by the element that is connected"
    def form(n, **kw):
        content = fields(n, **kw)
        if how == 'hx-swap': return connect(Form, '/stream/events', 'form', swap='morph', content=content, cls='mine')
        return Form(*fields(n, **kw), id='form', cls='mine')
    make = {'oob_update': lambda n, **kw: oob_update('form', fields(n, **kw), 'morph'),
            'oob_swap': lambda n, **kw: oob_swap(form(n, **kw), 'morph'),
            'target': lambda n, **kw: oob_swap(Div(*fields(n, **kw)), 'innerMorph', 'form')}.get(how, form)
    around = Div(form(0)) if how.startswith('hx') else form(0)
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
        assert page.evaluate(FIELD, id) == [text, 2, 4, True]
        assert page.evaluate(VALUES) == ([text, 'a note'] if id == 'name' else ['half a', text])
        assert page.evaluate(SAME) == [True, True]
        assert page.evaluate(OTHERS) == [True, f'v{n}', 'b', n, 1, True]
    page.keyboard.press('ArrowRight')
    page.keyboard.type('!')
    text = f'{text[:4]}!{text[4:]}'
    assert page.evaluate(FIELD, id)[0] == text
    # Of what nobody is at, the server's new word counts; what somebody types does not go even then
    site.send(frame(make(3, name='server', note='server')))
    page.wait_for_function('document.querySelector("#n").textContent === "message 3"')
    assert page.evaluate(VALUES) == ([text, 'server'] if id == 'name' else ['server', text])
    assert (site.count(), len(site.requests)) == (1, 1)


def test_children(page, site, until):
    "Elements come, go and change places; those that stay are the same, and streams within go on or end with theirs"
    def item(i, text): return Span(text, id=i)
    def inner(i): return connect(Span, f'/stream/{i}', i)
    def listed(): return Div(item('a', 'a'), inner('x'), inner('y'), item('b', 'b'), id='list')
    site.pages['p'] = lambda: (hidden(), listed(), Div('elsewhere', id='c'))
    page.goto(site.url('p'))
    until(lambda: all(site.count(o) == 1 for o in ('events', 'x', 'y')))
    page.evaluate("document.querySelectorAll('span').forEach(e => e.same = true)")
    turned = [item('b', 'B'), inner('z'), inner('x'), item('a', 'A'), item('c', 'C')]
    site.send(frame(oob_update('list', turned, 'morph')))
    until(lambda: site.count('z') == 1 and site.count('y') == 0)
    children = "[...document.querySelector('#list').children].map(e => [e.id, e.textContent, !!e.same])"
    assert page.evaluate(children) == \
        [['b', 'B', True], ['z', '', False], ['x', '', True], ['a', 'A', True], ['c', 'C', False]]
    site.send('data: <i>1</i>\n\n', 'x')
    site.send('data: <i>2</i>\n\n', 'z')
    page.wait_for_selector('#x > i:text-is("1")')
    page.wait_for_selector('#z > i:text-is("2")')
    assert site.last_ids('x') == ['']
    assert page.locator('[id=c]').count() == 2, 'the one elsewhere is no business of a morph'


def test_repeated_elements_beside_a_morph(page, site, until):
    "An element that is appended takes the place of the old one, also in a page that morphs"
    site.pages['p'] = lambda: (hidden(), Ul(id='list'), Div(P('x', id='x'), id='box'))
    page.goto(site.url('p'))
    until(site.count)
    for i in ('1', '2'):
        site.send(frame(oob_update('list', P(i, id='p'), 'beforeend'), oob_update('box', P(i, id='x'), 'morph')))
    page.wait_for_function("document.querySelector('#x').textContent === '2'")
    assert page.locator('p').all_inner_texts() == ['2', '2']


def test_monitor(page, site, state):
    "A morph that draws the status as the server knows it does not make the monitor lie"
    shown = lambda n: Div(Span('Connecting…', id='connection-status'), P(str(n), id='n'), id='head')
    config = SSEMonitorConfig(status_indicators=dict(active='on'))
    site.pages['p'] = lambda: (hidden(), shown(0), create_sse_monitor(HTMXSSEConnector, config))
    page.goto(site.url('p'))
    state('active')
    for n in (1, 2):
        site.send(frame(oob_swap(shown(n), 'morph')))
        page.wait_for_function("n => document.querySelector('#n').textContent === `${n}`", arg=n)
        page.wait_for_selector('#connection-status[data-sse-state=active]:text-is("on")')


def test_added_by_address(page, make_site, until):
    "Where the app asks for it, Idiomorph comes from its CDN, as what it is"
    asked = []
    def cdn(route):
        asked.append(route.request.url)
        package, _, path = route.request.url.removeprefix('https://cdn.jsdelivr.net/npm/').partition('/')
        body,headers = (ASSETS/package.split('@')[0]/path).read_bytes(),{'Access-Control-Allow-Origin': '*'}
        route.fulfill(status=200, body=body, content_type='text/javascript', headers=headers)
    htmx = Script(src='https://cdn.jsdelivr.net/npm/htmx.org@2.0.7/dist/htmx.js')
    site = make_site(setup=lambda app: insert_htmx_sse_ext(app.hdrs, morph=True), hdrs=[htmx])
    site.pages['p'] = lambda: (hidden(), Div(Input(id='name'), Span(id='n'), id='box'))
    page.route('https://cdn.jsdelivr.net/**', cdn)
    page.goto(site.url('p'))
    until(site.count)
    page.fill('#name', 'typed')
    site.send(frame(oob_update('box', [Input(id='name'), Span('1', id='n')], 'morph')))
    page.wait_for_function("document.querySelector('#n').textContent === '1'")
    assert page.input_value('#name') == 'typed' and any('idiomorph' in o for o in asked)
    page.unroute_all()
