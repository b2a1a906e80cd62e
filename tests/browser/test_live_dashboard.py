"The live dashboard in a browser: values that move in every tab, what a reader has opened stays open, and what people need who can't see, or have no mouse"
import pytest
from fasthtml.common import Div, Header, Main
from handmade import MAJORS
from playwright.sync_api import expect

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard, sse_dashboard

LABELS = 'Streams','Broadcasts','Deliveries','Slowest queue'
# How often a part was replaced
LOOKS = "id => { window.looks = 0; new MutationObserver(() => { looks += 1 }).observe(document.getElementById(id), {childList: true}) }"


@pytest.fixture(params=MAJORS)
def major(request): return request.param


@pytest.fixture
def manager(): return SSEBroadcastManager(retry=100)


@pytest.fixture
def allowed(): return {'page': True, 'events': True}


@pytest.fixture
def board(make_site, page, major, manager, allowed):
    def setup(app):
        def authorise(req): return allowed['events' if req.url.path.endswith('/events') else 'page']
        app.board = setup_dashboard(app, manager, authorise=authorise, interval=.1)
    site = make_site(setup, MAJORS[major]())
    site.app.board.url = f'http://127.0.0.1:{site.port}/_sse/dashboard'
    site.app.board.site = site
    yield site.app.board
    assert not [t for k,t in page.console if k in ('warning', 'error') and 'Failed to load resource' not in t]


def chart(tab, label): return tab.get_by_role('img', name=f'{label}, the last 12 s')
def say(board, event_type, data=None): board.site.loop.run(board.manager.broadcast(event_type, data))

def looks(tab, board, n=3):
    "Wait until the dashboard has been drawn a few times more"
    tab.evaluate(LOOKS, f'{board.id}-about')
    tab.wait_for_function('n => looks >= n', arg=n)


def test_values_move_in_every_tab(page, board, until):
    page.goto(board.url)
    other = page.context.new_page()
    other.goto(board.url)
    for tab in page, other:
        expect(tab.get_by_role('heading', level=1)).to_have_text('Event streams')
        expect(tab.get_by_role('status')).to_have_text('Live')
        expect(tab.get_by_text('No message yet').first).to_be_visible()
    say(board, 'job:done')
    say(board, 'job:done')
    say(board, '<b onmouseover="alert(1)">bold</b>')
    queue = board.site.loop.run(board.manager.register_connection())
    for tab in page, other:
        types = tab.get_by_role('table', name='Messages by event type')
        expect(types.get_by_role('row', name='job:done')).to_contain_text('2')
        expect(types.get_by_role('rowheader', name='<b onmouseover')).to_be_visible()
        assert tab.locator('.sse-dash [onmouseover]').count() == 0
        expect(tab.get_by_role('table', name='The last messages, newest first').get_by_role('row')).to_have_count(4)
        expect(chart(tab, 'Streams')).to_have_accessible_name('Streams, the last 12 s: now 1, least 0, most 1')
    board.site.loop.run(board.manager.unregister_connection(queue))
    for tab in page, other:
        expect(chart(tab, 'Streams')).to_have_accessible_name('Streams, the last 12 s: now 0, least 0, most 1')
        before = chart(tab, 'Broadcasts').locator('.curve').get_attribute('d')
        expect(chart(tab, 'Broadcasts').locator('.curve')).not_to_have_attribute('d', before)
    assert (board.own.connection_count, board.manager.connection_count, board.site.connections) == (2, 0, 1)  # None of them is the app's
    other.close()
    page.goto('about:blank')
    until(lambda: board.task is None, 'nobody looks any more')


def test_what_is_open_stays_open_and_keeps_the_focus(page, board):
    page.goto(board.url)
    expect(chart(page, 'Streams')).to_be_visible()
    order = ['Pause'] + [f'Values of {o.lower()} as a table' for o in LABELS]
    for name in order:  # With the keyboard alone
        page.keyboard.press('Tab')
        assert page.evaluate('document.activeElement.textContent') == name
        if name != 'Pause': page.keyboard.press('Enter')
    for name in 'Event types', 'Last messages':
        page.keyboard.press('Tab')
        expect(page.get_by_role('region', name=name, exact=True)).to_be_focused()
    page.keyboard.press('Shift+Tab')
    page.keyboard.press('Shift+Tab')
    looks(page, board)
    assert page.evaluate('document.activeElement.textContent') == order[-1]
    for label in LABELS:
        table = page.get_by_role('table', name=label)
        expect(table).to_be_visible()
        assert table.get_by_role('columnheader').all_text_contents() == ['When', 'Least', 'Most']
        assert '0 to 1 s ago' in table.inner_text()


def test_pause_and_resume(page, board, until):
    page.goto(board.url)
    expect(page.get_by_role('status')).to_have_text('Live')
    page.get_by_role('button', name='Pause').focus()
    page.keyboard.press('Enter')
    expect(page.get_by_role('status')).to_have_text('Paused')
    expect(page.get_by_role('button', name='Resume')).to_be_focused()
    until(lambda: board.own.connection_count == 0 and board.task is None, 'the connection is closed')
    time = page.locator(f'#{board.id}-about').inner_text()
    say(board, 'while:paused')
    expect(page.locator('.htmx-added, .htmx-settling')).to_have_count(0)  # htmx 2 wires a new button 20 ms after it can be seen
    page.keyboard.press('Enter')
    expect(page.get_by_role('status')).to_have_text('Live')
    expect(page.get_by_role('button', name='Pause')).to_be_focused()
    expect(page.get_by_role('rowheader', name='while:paused')).to_be_visible()
    looks(page, board)
    assert page.locator(f'#{board.id}-about').inner_text() >= time
    assert page.locator(f'#{board.id}-live').count() == 1


def test_a_server_that_restarts(page, board, until):
    page.goto(board.url)
    expect(page.get_by_role('status')).to_have_text('Live')
    board.site.loop.run(board.own.close())  # As at a shutdown: whoever looks is sent away, and comes back
    until(lambda: board.own.connection_count == 1)
    expect(page.get_by_role('status')).to_have_text('Live')
    looks(page, board)


def test_who_may_look_no_longer(page, board, allowed):
    allowed['events'] = False
    page.goto(board.url)
    expect(page.get_by_role('status')).to_contain_text('Connection refused')
    assert page.get_by_role('table').count() == 0 and page.get_by_role('img').count() == 0
    allowed['page'] = False
    assert page.goto(board.url).status == 403


def test_in_a_page_of_the_apps_own(page, board):
    board.site.pages['p'] = lambda: Div(Header('An app'), Main(sse_dashboard(board.manager, level=2)))
    page.goto(board.site.url('p'))
    expect(page.get_by_role('heading', level=2, name='Event streams')).to_be_visible()
    expect(page.get_by_role('heading', level=3)).to_have_count(6)
    expect(chart(page, 'Deliveries')).to_be_visible()
    looks(page, board)


# What a checker of accessibility would look at

CHECK = """() => {
  const found = [], root = document.querySelector('.sse-dash');
  const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push(`id ${id} twice`);
  for (const e of root.querySelectorAll('svg')) if (e.getAttribute('aria-hidden') !== 'true' && !(e.getAttribute('role') === 'img' && e.getAttribute('aria-label'))) found.push('svg without a name');
  for (const e of root.querySelectorAll('table')) if (!e.caption?.textContent) found.push('table without a caption');
  for (const e of root.querySelectorAll('th')) if (!e.getAttribute('scope') || !e.textContent.trim()) found.push(`header cell ${e.outerHTML}`);
  for (const e of root.querySelectorAll('tr')) if (e.cells.length !== e.closest('table').rows[0].cells.length) found.push('row of another length');
  for (const e of root.querySelectorAll('[role=region], section')) if (e.getAttribute('role') && !e.getAttribute('aria-label')) found.push('region without a name');
  for (const e of root.querySelectorAll('[aria-labelledby]')) if (!document.getElementById(e.getAttribute('aria-labelledby'))) found.push('label that is not there');
  for (const e of root.querySelectorAll('button, summary')) { const r = e.getBoundingClientRect(); if (r.height < 24 || r.width < 24) found.push(`${e.textContent}: ${r.width} x ${r.height}`); }
  for (const e of root.querySelectorAll('dl > *')) if (e.firstElementChild.tagName !== 'DT' || e.lastElementChild.tagName !== 'DD') found.push('dl');
  const levels = [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(h => +h.tagName[1]);
  levels.forEach((l, i) => { if (l > (levels[i - 1] ?? 0) + 1) found.push(`heading ${l} after ${levels[i - 1]}`); });

  const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = colour => { context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1); return [...context.getImageData(0, 0, 1, 1).data]; };
  const behind = e => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
  let least = 99;
  const walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || e.closest('.unseen, script')) continue;
    const r = ratio(rgba(getComputedStyle(e).color), behind(e));
    least = Math.min(least, r);
    if (r < 4.5) found.push(`contrast ${r.toFixed(2)}: ${e.outerHTML.slice(0, 80)}`);
  }
  for (const [selector, property] of [['.curve', 'stroke'], ['.share rect', 'fill']]) for (const e of root.querySelectorAll(selector)) {
    const r = ratio(rgba(getComputedStyle(e)[property]), behind(e.parentElement));
    if (r < 3) found.push(`contrast ${r.toFixed(2)}: ${selector}`);
  }
  return {found, least, width: document.documentElement.scrollWidth};
}"""

@pytest.mark.parametrize('major', ['2.0.7'], indirect=True)
@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390, 320])
def test_for_everybody(page, board, width, scheme):
    page.set_viewport_size(dict(width=width, height=900))
    page.emulate_media(color_scheme=scheme)
    seen = board.observer
    seen.has_others,seen.workers,seen._asking = True,[dict(worker=f'web-server-{n}:71', stats=board.manager.stats()) for n in (1, 2)],object()
    def fails(message): raise ValueError('on purpose')
    for t in ('job:done', 'user:'+'x'*200, 'a b'): say(board, t)
    page.goto(board.url)
    expect(page.get_by_role('table', name='Counters of each process since its start').get_by_role('row')).to_have_count(4)
    board.manager.on_broadcast(fails)
    say(board, 'job:done')
    expect(page.locator('.alarm')).to_contain_text('Errors')
    for o in page.locator('summary').all(): o.click()
    res = page.evaluate(CHECK)
    assert not res['found'], res
    assert res['least'] < 21 and res['width'] == width  # It has looked; nothing is wider than the screen
    boxes = [o.bounding_box() for o in page.locator('.sse-dash > :is(header, .charts, dl, .card, .lists)').all() if o.is_visible()]
    assert len(boxes) == 5 and len({(round(b['x']), round(b['width'])) for b in boxes}) == 1, boxes  # All in one column
    frame = page.get_by_role('region', name='Processes')
    expect(frame).to_have_css('overflow-x', 'auto')
    if width < 400: assert frame.evaluate('e => e.scrollWidth > e.clientWidth')
    background = page.locator('.sse-dash').evaluate('e => getComputedStyle(e).backgroundColor')
    assert background == dict(light='rgb(245, 246, 248)', dark='rgb(16, 19, 24)')[scheme]
