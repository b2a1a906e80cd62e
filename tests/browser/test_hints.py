"What would else be silent is said in the console, once for each place, for those who develop"
import pytest
from fasthtml.common import Div, P, Script, Span, Ul
from handmade import MAJORS

from cjm_fasthtml_sse.htmx import HTMXSSEConnector

connect = HTMXSSEConnector.create_sse_element
END = 'See "Nothing happens" in the documentation.'


def hidden(**kw): return connect(endpoint='/stream/events', hidden=True, **kw)
def hints(page): return [t for k,t in page.console if k == 'warning' and t.startswith('[sse]')]
def oob(id, html='x', swap='innerHTML'): return f'data: <div id="{id}" hx-swap-oob="{swap}">{html}</div>\n\n'


@pytest.fixture(params=MAJORS)
def site(make_site, request): return make_site(hdrs=MAJORS[request.param]())


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
    "Sends frames, and gives the hints that they led to"
    def hint(*frames):
        for f in frames: site.send(f)
        site.send('data: <div id="last" hx-swap-oob="true">there</div>\n\n')
        page.wait_for_function("document.querySelector('#last').textContent === 'there'")
        return hints(page)
    return hint


class TestPlaces:
    def test_unknown_id(self, opened, hint):
        "The nearest id of the page is named; a row's number makes no place of its own"
        opened(hidden(), Ul(id='todos'), Div(id='footer'))
        said = hint(oob('todoz', '<li id="t1">a</li>', 'beforeend'), oob('todoz'), oob('row-1'), oob('row-2'))
        assert len(said) == 2
        assert 'The page has no element #todoz for what /stream/events brings; did you mean "todos"?' in said[0] and END in said[0]
        assert 'no element #row-1' in said[1]

    def test_place_in_the_same_message(self, opened, hint):
        "What one element brings is a place for the next one; and what is gone may be deleted"
        opened(hidden(), Div(id='a'))
        assert not hint('data: <div id="a" hx-swap-oob="true"><p id="b"></p></div><div hx-swap-oob="innerHTML:#b">x</div>\n\n', oob('gone', '', 'delete'))

    def test_appended_without_an_id(self, opened, hint):
        "Only an element with an id can take the place of the one that came before"
        opened(hidden(), Ul(id='todos'))
        said = hint(oob('todos', '<li id="t1">a</li>', 'beforeend'), oob('todos', '<li>a</li>', 'beforeend'), oob('todos', '<li>b</li>', 'beforeend'))
        assert len(said) == 1 and 'An element without an id is appended to #todos' in said[0] and said[0].endswith('<li>a</li>')


class TestMessages:
    def test_nothing_out_of_band(self, opened, hint):
        "JSON is for scripts, and what an element within swaps is no mistake"
        opened(hidden(), P(id='a'))
        said = hint('data: {"a": 1}\n\n', 'data: <p id="a">1</p>\n\n', 'data: <p id="a">2</p>\n\n')
        assert len(said) == 1 and 'changes nothing' in said[0] and said[0].endswith('<p id="a">1</p>')

    def test_swapped_within(self, page, site, opened, hint):
        "An element within may swap what the connecting one does not"
        opened(connect(endpoint='/stream/events', content=connect(Span, element_id='inner'), swap='none'))
        assert not hint('data: <i>1</i>\n\n')

    def test_forgotten_render(self, opened, hint):
        "An event under its own name, and an element that swaps those without"
        opened(hidden())
        said = hint('event: todo:added\ndata: {}\n\n', 'event: todo:added\ndata: {}\n\n', 'event: sse:heartbeat\ndata: \n\n')
        assert len(said) == 1 and 'An event "todo:added" came from /stream/events' in said[0] and 'Without render=' in said[0]

    def test_misspelt_event(self, opened, hint):
        "The nearest name that is swapped is named"
        opened(hidden(), connect(endpoint='/stream/events', element_id='x', events='todo:added'))
        assert 'did you mean "todo:added"?' in hint('event: todo:aded\ndata: 1\n\n')[0]

    def test_heard_by_a_script(self, page, site, opened, hint):
        "What a script listens to is no mistake"
        opened(hidden())
        page.evaluate("cjmSSE.sources[0].addEventListener('tick', () => {})")
        assert not hint('event: tick\ndata: 1\n\n')

    def test_gap_that_nobody_heeds(self, opened, hint):
        "Messages are gone, and the page shows the state of before"
        opened(hidden())
        # Before its first message a page would be loaded anew instead
        assert 'Messages of /stream/events were missed' in hint('id: 7\ndata: \n\nevent: sse:gap\ndata: \n\n')[0]


class TestPages:
    def test_no_htmx(self, page, make_site, until):
        "Scripts that a network keeps away"
        site = make_site(hdrs=[Script('')])
        site.pages['p'] = lambda: hidden()
        page.route('**/*htmx*', lambda route: route.abort())
        page.route('**/cdn.*/**', lambda route: route.abort())
        page.goto(site.url('p'))
        until(lambda: hints(page))
        assert '/stream/events was not connected: htmx is not loaded' in hints(page)[0]
