"The client and `manager.stream` together"
import pytest
from fasthtml.common import Div, Input, Li, Span, Ul

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import oob_element, setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor
from cjm_fasthtml_sse.updater import SSEElementUpdater


@pytest.fixture
def board(site):
    "A list of things: what stands on it, and how to add to it"
    class Board:
        manager,updater,things,streams = SSEBroadcastManager(heartbeat=.2, retry=50),SSEElementUpdater(),[],0
        add = lambda self, name: site.loop.run(self.manager.broadcast('thing', dict(name=name)))
        names = lambda self, page: page.locator('#list > li').all_inner_texts()
    board = Board()
    setup_sse(site.app, board.manager)
    item = lambda name: Li(name, id=f'thing-{name}')
    board.updater.register_handler('thing', lambda data: oob_element('list', item(data['name']), 'beforeend'))
    snapshot = lambda: [oob_element('list', [item(n) for n in board.things])]
    @site.app.route('/events')
    def events(req):
        board.streams += 'sse-ticket' not in req.headers
        return board.manager.stream(req, render=board.updater, snapshot=snapshot, until='job:done')
    site.pages['p'] = lambda: Div(HTMXSSEConnector.create_sse_element(endpoint=events, element_id='sse-connection', hidden=True, auto_reconnect=False),
        Ul(id='list'), Span(id='connection-status'), Input(id='typed'),
        create_sse_monitor(HTMXSSEConnector, SSEMonitorConfig(reconnect_delay=50, heartbeat_timeout=700)))
    return board


def test_two_tabs(page, site, board, state):
    "What one tab's server hears, both show; one that comes late begins with the snapshot"
    page.goto(site.url('p'))
    state('active')
    for name in 'ab':
        board.things.append(name)
        board.add(name)
    other = page.context.new_page()
    other.goto(site.url('p'))
    other.wait_for_selector('#thing-b')
    board.add('c')
    for p in (page, other):
        p.wait_for_selector('#thing-c')
        assert board.names(p) == ['a', 'b', 'c']


def test_change_that_the_snapshot_holds_already(page, site, board, state):
    "The snapshot may hold a change that comes after it: it is shown once"
    board.things[:] = 'ab'
    page.goto(site.url('p'))
    page.wait_for_selector('#thing-b')
    board.add('b')
    board.add('c')
    page.wait_for_selector('#thing-c')
    assert board.names(page) == ['a', 'b', 'c']


def test_half_open(page, site, board, proxy, state):
    "Found by the heartbeats, mended by the replay"
    page.goto(proxy.url('p'))
    state('active')
    board.add('a')
    page.wait_for_selector('#thing-a')
    page.fill('#typed', 'half a sent')
    page.wait_for_function('cjmSSE.sources[0].watchdog.armed')
    proxy.fall_silent(idle=False)
    board.add('b')
    state.passed('reconnecting')
    state('active')
    board.add('c')
    page.wait_for_selector('#thing-c')
    assert (board.names(page), page.input_value('#typed')) == (['a', 'b', 'c'], 'half a sent')
    assert board.streams == 2


def test_ends_on_purpose(page, site, board, state):
    page.goto(site.url('p'))
    state('active')
    site.loop.run(board.manager.broadcast('job:done', {}))
    state('disconnected')
    page.wait_for_timeout(300)
    assert board.streams == 1


def test_eviction_is_no_end(page, site, board, state, until):
    "A connection that the manager ends comes back"
    page.goto(site.url('p'))
    state('active')
    board.add('a')
    page.wait_for_selector('#thing-a')
    site.loop.run(board.manager.close())
    state.passed('reconnecting')
    assert page.evaluate('cjmSSE.lastEventId') != ''
