"What would else be silent is said in the console, once for each place, for those who develop"
import pytest
from fasthtml.common import Div, P, Script, Span, Ul
from handmade import HTMX2, HTMX4

from cjm_fasthtml_sse.htmx import HTMXSSEConnector

connect = HTMXSSEConnector.create_sse_element
END = 'See "Nothing happens" in the documentation.'
LAST = 'data: <div id="last" hx-swap-oob="true">{}</div>\n\n'


def hidden(**kw): return connect(endpoint='/stream/events', hidden=True, **kw)
def hints(page): return [t for k,t in page.console if k == 'warning' and t.startswith('[sse]')]
def oob(id, html='x', swap='innerHTML'): return f'data: <div id="{id}" hx-swap-oob="{swap}">{html}</div>\n\n'


@pytest.fixture(params=[HTMX2, HTMX4], ids=['htmx 2', 'htmx 4'])
def site(make_site, request): return make_site(hdrs=request.param())


@pytest.fixture
def opened(page, site, until):
    "Opens a page with this content, and waits for its stream"
    def opened(*content):
        site.pages['p'] = lambda: (*content, Div(id='last'))
        page.goto(site.url('p'))
        until(site.count)
    return opened


@pytest.fixture
def hint(page, site):
    "Sends frames, and gives the new hints that they led to"
    sent = []
    def hint(*frames):
        page.console.clear()
        sent.append(frames)
        for f in frames: site.send(f)
        site.send(LAST.format(len(sent)))
        page.wait_for_function("n => document.querySelector('#last').textContent === `${n}`", arg=len(sent))
        return hints(page)
    return hint


def test_places(opened, hint):
    "The nearest id of the page is named; a row's number makes no place of its own; an element without an id replaces none"
    opened(hidden(), Ul(id='todos'), Div(id='footer'), Div(id='a'))
    said = hint(oob('todoz', '<li id="t1">a</li>', 'beforeend'), oob('todoz'), oob('row-1'), oob('row-2'))
    assert len(said) == 2
    assert 'The page has no element #todoz for what /stream/events brings; did you mean "todos"?' in said[0] and END in said[0]
    assert 'no element #row-1' in said[1]
    brought = '<p id="b"></p></div><div hx-swap-oob="innerHTML:#b">x'
    assert not hint(oob('a', brought, 'true'), oob('gone', '', 'delete')), 'what one element brings is a place for the next one'
    said = hint(oob('todos', '<li id="t1">a</li>', 'beforeend'), oob('todos', '<li>a</li>', 'beforeend'), oob('todos', '<li>b</li>', 'beforeend'))
    assert len(said) == 1 and 'An element without an id is appended to #todos' in said[0] and said[0].endswith('<li>a</li>')


def test_messages(page, opened, hint):
    "What changes nothing, an event that nobody swaps, a gap. JSON is for scripts, and what a script listens to is no mistake"
    opened(hidden(), P(id='a'))
    said = hint('data: {"a": 1}\n\n', 'data: <p id="a">1</p>\n\n', 'data: <p id="a">2</p>\n\n')
    assert len(said) == 1 and 'changes nothing' in said[0] and said[0].endswith('<p id="a">1</p>')
    said = hint('event: todo:added\ndata: {}\n\n', 'event: todo:added\ndata: {}\n\n', 'event: sse:heartbeat\ndata: \n\n')
    assert len(said) == 1 and 'An event "todo:added" came from /stream/events' in said[0] and 'Without render=' in said[0]
    page.evaluate("cjmSSE.sources[0].addEventListener('tick', () => {})")
    assert not hint('event: tick\ndata: 1\n\n')
    # Before its first message a page would be loaded anew instead
    assert 'Messages of /stream/events were missed' in hint('id: 7\ndata: \n\nevent: sse:gap\ndata: \n\n')[0]


def test_elements_within(opened, hint):
    "One may swap what the connecting one does not; of a misspelt event the nearest name is named"
    inner = connect(Span, element_id='inner'), connect(Span, element_id='x', events='todo:added')
    opened(connect(endpoint='/stream/events', content=inner, swap='none'))
    assert not hint('data: <i>1</i>\n\n')
    assert 'did you mean "todo:added"?' in hint('event: todo:aded\ndata: 1\n\n')[0]


def test_no_htmx(page, make_site, until):
    "Scripts that a network keeps away"
    site = make_site(hdrs=[Script('')])
    site.pages['p'] = lambda: hidden()
    page.route('**/*htmx*', lambda route: route.abort())
    page.route('**/cdn.*/**', lambda route: route.abort())
    page.goto(site.url('p'))
    until(lambda: hints(page))
    assert '/stream/events was not connected: htmx is not loaded' in hints(page)[0]
