"The live dashboard in a browser: values that move in every tab, what a reader has opened stays open, and what people need who can't see, or have no mouse"
import re

import pytest
from fasthtml.common import Div, Header, Main
from handmade import HTMX2, HTMX4
from playwright.sync_api import expect

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard, sse_dashboard

LABELS = 'Streams','Broadcasts','Deliveries','Slowest queue'
LOOK = '[id$=-about]'  # A part that is drawn anew each time
LOOKS = """css => { window.looks = 0;
    new MutationObserver(() => { looks += 1 }).observe(document.querySelector(css), {childList: true}) }"""


@pytest.fixture
def hdrs(): return HTMX2


class Board:
    "A dashboard at an address of its own, and the manager that it shows; who may look is `allowed`"
    def __init__(self, make_site, hdrs, **kw):
        self.manager,self.allowed = SSEBroadcastManager(retry=100, **kw),{'page': True, 'events': True}
        def authorise(req): return self.allowed['events' if req.url.path.endswith('/events') else 'page']
        self.site = make_site(lambda app: setup_dashboard(app, self.manager, authorise=authorise, interval=.1), hdrs())
        self.url = f'http://127.0.0.1:{self.site.port}/_sse/dashboard'

    def say(self, event_type): self.site.loop.run(self.manager.broadcast(event_type, None))


def calm(page): return not [t for k,t in page.console if k in ('warning', 'error') and 'Failed to load resource' not in t]


@pytest.fixture
def board(make_site, page, hdrs):
    yield Board(make_site, hdrs)
    assert calm(page)


def chart(tab, label): return tab.get_by_role('img', name=f'{label}, the last 12 s')

def says(tab, board, label, text):
    "Wait until a chart says this. Where it does not, the error has what the server and the tab have: which of them is behind?"
    try: expect(chart(tab, label)).to_have_accessible_name(re.compile(f'{label}, the last 12 s: {text}$'))
    except AssertionError as e:
        seen = [(o.at, o.stats['connections']) for o in board.manager._dashboard.observer.samples][-3:]
        page = tab.evaluate("""css => [document.querySelector(css)?.textContent, document.visibilityState,
            [...document.querySelectorAll('svg[role=img]')].map(o => o.getAttribute('aria-label')), cjmSSE.sources.map(s => [s.state, s.reason, s.readyState])]""", LOOK)
        raise AssertionError(f'{e}\nserver: {board.manager.connection_count} streams, samples {seen}, {board.manager._dashboard!r}\ntab: {page}') from None

def looks(tab, n=2):
    "Wait until the dashboard has been drawn a few times more"
    tab.evaluate(LOOKS, LOOK)
    tab.wait_for_function('n => looks >= n', arg=n)


@pytest.mark.parametrize('hdrs', [HTMX2, HTMX4])
def test_values_move(page, board):
    "In every tab, and while nobody else is connected, too"
    page.goto(board.url)
    other = page.context.new_page()
    other.goto(board.url)
    for tab in page, other:
        expect(tab.get_by_role('heading', level=1)).to_have_text('Event streams')
        expect(tab.get_by_role('status')).to_have_text('Live')
        expect(tab.get_by_text('No message yet').first).to_be_visible()
    for _ in range(2): board.say('job:done')
    queue = board.site.loop.run(board.manager.register_connection())
    for tab in page, other:
        types = tab.get_by_role('table', name='Messages by event type')
        expect(types.get_by_role('row', name='job:done')).to_contain_text('2')
        expect(tab.get_by_role('table', name='The last messages, newest first').get_by_role('row')).to_have_count(3)
        says(tab, board, 'Streams', 'now 1, least [01], most 1')  # 12 s later the time without a stream is not in the chart any more
    board.site.loop.run(board.manager.unregister_connection(queue))
    for tab in page, other:
        says(tab, board, 'Streams', 'now 0, least 0, most [01]')
        looks(tab)
    assert (board.manager.connection_count, board.site.connections) == (0, 1)  # Who looks is no stream of the app


def test_keyboard(page, board):
    "What is open stays open, and keeps the focus"
    page.goto(board.url)
    expect(chart(page, 'Streams')).to_be_visible()
    order = ['Pause'] + [f'Values of {o.lower()} as a table' for o in LABELS]
    for name in order:
        page.keyboard.press('Tab')
        assert page.evaluate('document.activeElement.textContent') == name
        if name != 'Pause': page.keyboard.press('Enter')
    for name in 'Event types', 'Last messages':
        page.keyboard.press('Tab')
        expect(page.get_by_role('region', name=name, exact=True)).to_be_focused()
    for _ in range(2): page.keyboard.press('Shift+Tab')
    looks(page)
    assert page.evaluate('document.activeElement.textContent') == order[-1]
    for label in LABELS:
        table = page.get_by_role('table', name=label)
        expect(table).to_be_visible()
        assert table.get_by_role('columnheader').all_text_contents() == ['When', 'Least', 'Most']
        assert '0 to 1 s ago' in table.inner_text()


def test_pause(page, board, until):
    page.goto(board.url)
    expect(page.locator('.state')).to_have_text('Live')
    page.get_by_role('button', name='Pause').focus()
    page.keyboard.press('Enter')
    expect(page.locator('.state')).to_have_text('Paused')
    expect(page.get_by_role('button', name='Resume')).to_be_focused()
    until(lambda: not board.site.connections, 'the connection is closed')
    board.say('while:paused')
    expect(page.locator('.htmx-added, .htmx-settling')).to_have_count(0)  # htmx 2 wires a new button 20 ms after it can be seen
    page.keyboard.press('Enter')
    expect(page.locator('.state')).to_have_text('Live')
    expect(page.get_by_role('button', name='Pause')).to_be_focused()
    expect(page.get_by_role('rowheader', name='while:paused')).to_be_visible()


def test_restart(page, board):
    page.goto(board.url)
    expect(page.locator('.state')).to_have_text('Live')
    board.site.stop()
    expect(page.locator('.state')).to_contain_text('Reconnecting')
    board.site.start()
    page.evaluate("dispatchEvent(new Event('online'))")  # It would wait for some seconds
    expect(page.locator('.state')).to_have_text('Live')
    looks(page)


def test_refused(page, board):
    board.allowed['events'] = False
    page.goto(board.url)
    expect(page.locator('.state')).to_contain_text('Connection refused')
    assert page.get_by_role('table').count() == 0 and page.get_by_role('img').count() == 0
    board.allowed['page'] = False
    assert page.goto(board.url).status == 403


def test_page_of_the_apps_own(page, board):
    board.site.pages['p'] = lambda: Div(Header('An app'), Main(sse_dashboard(board.manager, level=2)))
    page.goto(board.site.url('p'))
    expect(page.get_by_role('heading', level=2, name='Event streams')).to_be_visible()
    expect(page.get_by_role('heading', level=3)).to_have_count(6)
    expect(chart(page, 'Deliveries')).to_be_visible()
    looks(page)


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


@pytest.mark.redis
def test_for_everybody(page, make_site, redis_server):
    "Counters of processes, long names and an alarm, on three widths of the screen, light and dark"
    board = Board(make_site, HTMX2, backend=redis_server.url(1999))
    board.site.loop.run(board.manager.open())
    for name in 'todo_list','x'*200: board.manager.live('todo:*', name=name)(lambda: Div('tea'))()
    def fails(message): raise ValueError('on purpose')
    for t in 'job:done','user:'+'x'*200,'a b': board.say(t)
    page.goto(board.url)
    processes = page.get_by_role('table', name='Counters of each process since its start')
    expect(processes).to_contain_text('(this one)')
    elements = page.get_by_role('table', name='What each live element does')
    expect(elements.get_by_role('row', name='todo_list')).to_contain_text('todo_list01')
    board.manager.on_broadcast(fails)
    board.say('job:done')
    expect(page.locator('.alarm')).to_contain_text('Errors')
    for o in page.locator('summary').all(): o.click()
    for width,scheme in [(w, s) for w in (1280, 390, 320) for s in ('light', 'dark')]:
        page.set_viewport_size(dict(width=width, height=900))
        page.emulate_media(color_scheme=scheme)
        res = page.evaluate(CHECK)
        assert not res['found'], res
        assert res['least'] < 21 and res['width'] == width  # It has looked; nothing is wider than the screen
        boxes = page.locator('.sse-dash > :is(header, .charts, dl, .card, .lists)').evaluate_all(
            'all => all.map(o => o.getBoundingClientRect()).filter(o => o.width).map(o => [Math.round(o.x), Math.round(o.width)])')
        assert len(boxes) == 6 and boxes == boxes[:1]*6  # All in one column
        for name in 'Processes','Live elements':
            frame = page.get_by_role('region', name=name)
            expect(frame).to_have_css('overflow-x', 'auto')
            if width < 400: assert frame.evaluate('e => e.scrollWidth > e.clientWidth')
        background = page.locator('.sse-dash').evaluate('e => getComputedStyle(e).backgroundColor')
        assert background == dict(light='rgb(245, 246, 248)', dark='rgb(16, 19, 24)')[scheme]
    assert calm(page)
