"What matters most, in Chromium and in Firefox: many tabs on one connection, whatever happens to them"
import asyncio

import pytest
from fasthtml.common import Div
from starlette.responses import StreamingResponse

from bidi import Firefox
from tabs import answers, comes_back, complete, connect, crash, each_browser, renderer, stopped

from cjm_fasthtml_sse.helpers import setup_sse

pytestmark = each_browser


@pytest.fixture
def site(make_site): return make_site(lambda app: setup_sse(app, multiplex=True))


def one_connection(site, until):
    until(lambda: site.connections == 1, lambda: f'one connection instead of {site.served.open}')


def test_twelve_tabs(tabs, site, board, until):
    "Three streams in each: one connection, all messages once and in order, and a further request is answered"
    tabs.open(site.url('p'), 12)
    tabs.active(3)
    one_connection(site, until)
    for _ in range(3):
        board.say(100)
        assert max(answers(tabs)) < 5000  # With six connections taken it would wait for ever
    complete(tabs, board)
    one_connection(site, until)


def test_restart(tabs, site, board, until):
    "What is sent while the server is away comes when it is back"
    tabs.open(site.url('p'), 4)
    tabs.active(3)
    board.say(30)
    complete(tabs, board)
    site.stop()
    tabs.wait("cjmSSE.state === 'reconnecting'")
    board.say(30)
    site.start()
    tabs.active(3)
    board.say(30)
    complete(tabs, board)
    one_connection(site, until)


def test_back(browser, tabs, site, board, until):
    "A page that was left comes back live, whoever of the tabs leaves"
    tabs.open(site.url('p'), 2)
    tabs.active(3)
    board.say(30)
    for page in tabs:
        page.evaluate('window.kept = true')
        comes_back(page, tabs, site, board)
        # Firefox keeps no page that holds a lock when it is left
        assert page.evaluate('window.kept') or isinstance(browser, Firefox)
    one_connection(site, until)


def test_crash(tabs, site, board, until):
    "One tab after the other crashes: those that live on miss nothing"
    tabs.open(site.url('p'), 4)
    tabs.active(3)
    with board.flow():
        while len(tabs) > 1:
            crash(tabs.pop(0))
            tabs.active(3)
    complete(tabs, board)
    one_connection(site, until)


def test_a_tab_that_is_stopped(tabs, site, board, until):
    "One tab after the other stands still, as hidden ones do to save power. None misses anything, then or later"
    tabs.open(site.url('p'), 3)
    tabs.active(3)
    for page in tabs:
        with stopped(renderer(page)):
            board.say(30)
            complete(tabs.others(page), board)
        board.say(30)
        complete(tabs, board)
    one_connection(site, until)


def test_another_user(tabs, site, until):
    "After a log-out and log-in as someone else no tab gets the former user's stream"
    mail = []
    @site.app.route('/mine')
    async def mine(sess):
        me = sess.get('auth', 'nobody'), asyncio.Queue()
        async def frames():
            mail.append(me)
            try:
                yield f'data: hello {me[0]}\n\n'
                while True: yield f'data: {await me[1].get()}\n\n'
            finally: mail.remove(me)
        return StreamingResponse(frames(), media_type='text/event-stream')
    @site.app.route('/login/{name}')
    def login(sess, name: str):
        sess['auth'] = name
        return connect('/mine')
    @site.app.route('/logout')
    def logout(sess):
        sess.clear()
        return Div('bye')
    def heard_by(*users): return lambda: [name for name,_ in mail] == [*users]
    def tell():
        for name,queue in mail: site.loop.loop.call_soon_threadsafe(queue.put_nowait, f'secret of {name}')
    home = site.url('').removesuffix('pages/')
    tabs.open(f'{home}login/ann', 3)
    tabs.active(1)
    until(heard_by('ann', 'ann', 'ann'), 'each tab hears')
    tabs[0].goto(f'{home}logout')
    tabs[0].goto(f'{home}login/bob')
    until(heard_by('bob', 'bob', 'bob'), "ann's streams have ended")
    # Once more where a stream has moved in this moment: it has no ids
    until(lambda: tell() or all(tabs.all("got['/mine'].at(-1) === 'secret of bob'")), 'all hear')
    assert 'secret of ann' not in str(tabs.all('got'))


def test_a_page_that_is_left_while_it_asks_for_tickets(browser, tabs, site, until):
    "It asks no more: what it began would keep a connection while the page waits for Back"
    asked,open_,gate = [],[],asyncio.Event()
    @site.app.route('/slow/{n}')
    async def slow(n: str):
        asked.append(n)
        await gate.wait()
        async def frames():
            open_.append(n)
            try:
                yield f'data: {n}\n\n'
                await asyncio.Event().wait()
            finally: open_.remove(n)
        return StreamingResponse(frames(), media_type='text/event-stream')
    site.pages['p'] = lambda: Div(*[connect(f'/slow/{n}') for n in range(4)])
    site.pages['none'] = lambda: 'none'
    tabs.open(site.url('p'))
    until(lambda: asked, 'a request')
    tabs[0].goto(site.url('none'))
    assert tabs[0].evaluate("async () => (await fetch('/pages/none')).status") == 200
    # Firefox ends requests before it tells the page that it is left
    assert len(asked) == 1 or isinstance(browser, Firefox)
    site.loop.loop.call_soon_threadsafe(gate.set)
    tabs[0].go_back(wait_until='commit')
    tabs.active(4)
    until(lambda: sorted(open_) == ['0', '1', '2', '3'], lambda: f'each open once, not {open_}')
    one_connection(site, until)
