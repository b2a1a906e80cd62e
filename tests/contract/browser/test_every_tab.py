"""Any number of tabs on one connection

A browser has six connections to a host, for all its tabs together. However many tabs and streams there are, they take
one of these, so that each further request is answered. And each tab shows what it would show on its own connection:
all that was sent since it was drawn, in order and once, whatever becomes of it, of the other tabs and of the server.
"""
import asyncio

import pytest
from bidi import Firefox
from boards import SHOWN, Board, log
from browsers import crash, each_browser, frozen, stopped
from fasthtml.common import Div, to_xml
from handmade import Proxy
from starlette.responses import StreamingResponse

from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext

LOOKED_AT = "document.dispatchEvent(new Event('visibilitychange'))"
LOCKS = 'async () => { const { held, pending } = await navigator.locks.query(); return held.length + pending.length }'
ORDERS = '**/_sse/mux'  # By these a tab opens and closes its streams


@pytest.fixture
def board(site): return Board(site)


def text(page, id): return ' '.join(page.evaluate(SHOWN, id))
def message(text): return f'data: <i>{text}</i>\n\n'


class TestOneConnection:
    def test_twelve_tabs(self, tabs, board, until):
        tabs.open(board.url, 12)
        tabs.active(3)
        board.one_connection(tabs, until)
        board.say(100)
        board.complete(tabs)
        assert tabs.answered()
        board.one_connection(tabs, until)


    def test_one_after_another(self, tabs, site, until):
        "A connection that has reached its greatest age makes way for the next: no message is lost, and nobody sees it"
        board = Board(site, max_age=1.)
        tabs.open(board.url, 2)
        tabs.active(3)
        board.say()
        tabs.all("() => { window.seen = []; cjmSSE.addEventListener('change', e => seen.push(e.detail.state)) }")
        with board.flow(): until(lambda: site.served.begun>4, 'one connection after another')
        tabs.active(3)
        board.complete(tabs)
        assert tabs.all("seen.filter(state => state !== 'active')")==[[]]*2
        board.one_connection(tabs, until)


    def test_a_proxy_that_holds_back(self, tabs, page, site, proxy, until):
        "Streams have connections of their own where no carrier comes through; the next page of the tab knows that"
        page.direct.add('step')
        proxy.holds_back = True
        site.pages['p'] = lambda: log('/stream/events', 'log')
        orders = []
        tabs.context.on('request', lambda r: orders.append(r.url) if r.method=='POST' else None)
        for n in range(2):
            if n: tabs[0].goto(proxy.url('p'))
            else: tabs.open(proxy.url('p'))
            tabs.active(1)
            assert tabs.all('cjmSSE.sources[0].direct')==['step']
            until(lambda: site.count()==1)
            assert len(orders)==1

    def test_streams_of_their_own(self, tabs, page, site, until):
        "A page whose streams all have connections of their own takes part in no election, and does not load it"
        page.direct.add('asked')
        site.pages |= dict(p=lambda: log('/stream/events', 'log', multiplex=False), shared=lambda: log('/stream/events', 'log'))
        loaded = []
        tabs.context.on('request', lambda r: loaded.append(r.url) if '/_sse/election-' in r.url else None)
        tabs.open(site.url('p'))
        tabs.active(1)
        assert tabs.all(LOCKS)==[0] and not loaded
        tabs.open(site.url('shared'))
        tabs[1].wait_for_function("cjmSSE.state === 'active'")
        assert loaded and tabs.all(LOCKS)[1]>0


class TestWhatIsClosed:
    def test_what_is_closed_ends(self, tabs, site, until):
        "The stream of an element that goes, those of a tab that goes, and with the last one the connection"
        site.pages['p'] = lambda: Div(log('/stream/one', 'one'), log('/stream/two', 'two'))
        def open_streams(): return site.count('one'), site.count('two'), site.connections
        tabs.open(site.url('p'), 3)
        tabs.active(2)
        until(lambda: open_streams()==(3, 3, 1))
        tabs[0].evaluate("document.querySelector('#one').remove()")
        until(lambda: open_streams()==(2, 3, 1), open_streams)
        tabs.pop().close()
        until(lambda: open_streams()==(1, 2, 1), open_streams)
        crash(tabs.pop())
        until(lambda: open_streams()==(0, 1, 1), open_streams)
        tabs[0].evaluate('cjmSSE.close()')
        until(lambda: open_streams()==(0, 0, 0), open_streams)

    def test_closed_while_another_one_opens(self, tabs, site, until):
        "The server hears of it with what is asked next"
        site.pages['p'] = lambda: Div(log('/stream/one', 'one'), log('/stream/two', 'two'), Div(id='place'))
        site.pages['third'] = lambda: log('/stream/two', 'third')
        tabs.open(site.url('p'))
        tabs.active(2)
        orders,held = [],[True]
        tabs.context.route(ORDERS, lambda route: orders.append(route) if held else route.continue_())
        tabs[0].evaluate("void htmx.ajax('GET', '/pages/third', '#place')")
        until(lambda: orders, 'the third stream is being opened')
        tabs[0].evaluate("for (const id of ['one', 'third']) document.getElementById(id).remove()")
        held.clear()
        for o in orders: o.continue_()
        until(lambda: (site.count('one'), site.count('two'))==(0, 1), 'the others are closed')

    @each_browser
    def test_left_before_it_was_there(self, browser, tabs, site, until):
        "A page that is left while its streams are being opened asks for no more of them"
        asked,open_,gate = [],[],asyncio.Event()
        @site.app.route('/slow/{n}')
        async def slow(n: str):
            asked.append(n)
            await gate.wait()
            async def frames():
                open_.append(n)
                try:
                    yield message(n)
                    await asyncio.Event().wait()
                finally: open_.remove(n)
            return StreamingResponse(frames(), media_type='text/event-stream')
        site.pages |= dict(p=lambda: Div(*[log(f'/slow/{n}', f's{n}') for n in range(4)]), none=lambda: 'none')
        tabs.open(site.url('p'))
        until(lambda: asked, 'a request')
        tabs[0].goto(site.url('none'))
        assert tabs.answered()
        # Firefox ends requests before it tells the page that it is left
        assert len(asked)==1 or isinstance(browser, Firefox)
        site.loop.loop.call_soon_threadsafe(gate.set)
        tabs[0].go_back(wait_until='commit')
        tabs.active(4)
        until(lambda: sorted(open_)==['0', '1', '2', '3'], lambda: f'each open once, not {open_}')

    def test_ten_pages_after_one_another(self, tabs, board, until):
        "A page that waits for Back keeps no connection"
        tabs.open(board.url, 2)
        for n in range(10): tabs[1].goto(f'{board.url}?{n}')
        tabs.active(3)
        board.one_connection(tabs, until)
        assert tabs.answered()


class TestTabs:
    @each_browser
    def test_one_stands_still(self, tabs, board, until):
        "As hidden ones do to save power. The others miss nothing meanwhile, and it misses nothing when it goes on"
        tabs.open(board.url, 3)
        tabs.active(3)
        board.say()
        for page in tabs[0], tabs[1]:
            with stopped(page):
                board.say()
                for o in tabs.others(page): o.evaluate(LOOKED_AT)
                board.complete(tabs.others(page))
            board.say()
            board.complete(tabs)
        board.one_connection(tabs, until)

    @pytest.mark.parametrize('how', [stopped, frozen])
    def test_a_page_loads_while_one_stands_still(self, tabs, board, until, how):
        "Whoever held the connection, the page gets its messages soon, and so do all others"
        tabs.open(board.url, 3)
        tabs.active(3)
        board.say()
        board.complete(tabs)
        first = tabs[0]
        with how(first):
            board.say()
            tabs.open(board.url)
            tabs.others(first).active(3)
            board.say()
            board.complete(tabs.others(first))
        board.say()
        board.complete(tabs)
        board.one_connection(tabs, until)

    def test_one_asks_a_question(self, tabs, board, until):
        "A tab stands still while a `confirm` is open in it"
        tabs.open(board.url, 3)
        tabs.active(3)
        dialogs,first = [],tabs[0]
        first.on('dialog', lambda o: dialogs.append(o))
        first.evaluate("void setTimeout(() => confirm('Really?'))")
        until(lambda: dialogs)
        tabs.open(board.url)
        tabs.others(first).active(3)
        board.say()
        board.complete(tabs.others(first))
        dialogs.pop().accept()
        board.say()
        board.complete(tabs)
        board.one_connection(tabs, until)

    @pytest.mark.parametrize('browser', ['firefox'], indirect=True)
    def test_hidden_ones(self, tabs, board, until):
        "Firefox hides tabs behind others, and slows them down: they show all that was sent when somebody looks"
        tabs.open(board.url)
        tabs.open(board.url, 2, hidden=True)
        tabs.active(3)
        assert tabs.all('document.hidden')==[False, True, True]
        board.say()
        board.complete(tabs)
        tabs.pop(0).close()
        tabs[0].bring_to_front()
        board.say()
        board.complete(tabs)
        board.one_connection(tabs, until)

    @each_browser
    def test_crashes(self, tabs, board, until):
        "One after the other: those that live on miss nothing"
        tabs.open(board.url, 4)
        tabs.active(3)
        with board.flow():
            while len(tabs)>1: crash(tabs.pop(0))
            tabs.active(3)
        board.complete(tabs)
        board.one_connection(tabs, until)

    def test_they_come_and_go(self, tabs, board, until):
        "While messages come, tabs are opened, reloaded, left, brought back, closed and killed"
        with board.flow():
            for _ in range(2):
                tabs.open(board.url, 3)
                tabs.pop(0).close()
                tabs[0].reload()
                tabs[1].goto(board.site.url('none'))
                tabs[1].go_back(wait_until='commit')
            crash(tabs.pop(0))
            tabs.active(3)
        board.complete(tabs)
        board.one_connection(tabs, until)

    @each_browser
    def test_back(self, browser, tabs, board, until):
        "A page that was left comes back as it was, with what was sent meanwhile, whoever of the tabs leaves"
        tabs.open(board.url, 2)
        tabs.active(3)
        board.say()
        for page in tabs:
            board.complete(tabs)
            page.evaluate('window.kept = true')
            page.goto(board.site.url('none'))
            board.say()
            page.go_back(wait_until='commit')
            tabs.active(3)
            board.say()
            # Firefox keeps no page that holds a lock when it is left, and loads it anew
            if not isinstance(browser, Firefox): assert page.evaluate('window.kept')
            board.complete(tabs)
        board.one_connection(tabs, until)


class TestStreamsOfOlderApps:
    def test_streams_written_by_hand(self, tabs, make_site, until):
        "Without ids, where only the extension was added: each page sees what its stream begins with, and what follows"
        site = make_site(lambda app: insert_htmx_sse_ext(app.hdrs))
        site.opening['loud'] = message('state')
        site.pages['p'] = lambda: Div(log('/stream/loud', 'loud'), log('/stream/quiet', 'quiet'))
        for n in '123':
            tabs.open(site.url('p'))
            tabs.active(2)
            for id in 'loud', 'quiet':
                site.send(message(n), id)
                tabs.show(id, n)
        assert [text(o, 'loud') for o in tabs]==['state 1 2 3', 'state 2 3', 'state 3']
        assert [text(o, 'quiet') for o in tabs]==['1 2 3', '2 3', '3']
        until(lambda: (site.count('loud'), site.count('quiet'), site.connections)==(3, 3, 1))

    @pytest.mark.parametrize('ids', ['all the same', 'counted anew'])
    def test_ids_written_by_hand(self, tabs, site, until, ids):
        "They mean what the app likes: every message is shown, also when another tab takes over"
        site.pages['p'] = lambda: log('/stream/events', 'log')
        counted = iter('123456789')
        def say(*letters):
            for o in letters: site.send(f'id: {"x" if ids=="all the same" else next(counted)}\n{message(o)}')
            tabs.show('log', letters[-1])
        tabs.open(site.url('p'), 2)
        tabs.active(1)
        say(*'abc')
        before = len(site.requests)
        tabs.pop(0).close()
        until(lambda: len(site.requests)>before and site.count()==1, 'the other tab has a stream again')
        tabs.active(1)
        counted = iter('123456789')
        say(*'def')
        assert text(tabs[0], 'log')=='a b c d e f'

    def test_elements_that_a_message_brings(self, tabs, make_site, until):
        "Each tab connects them, and each sees what their stream begins with"
        site = make_site(lambda app: insert_htmx_sse_ext(app.hdrs))
        site.opening['job'] = message('state')
        site.pages['p'] = lambda: Div(log('/stream/events', 'log'), Div(id='jobs'))
        tabs.open(site.url('p'), 4)
        tabs.active(1)
        job = Div(log('/stream/job', 'job'), id='jobs', hx_swap_oob='true')
        site.send(f'data: {to_xml(job, indent=False)}\n\n')
        tabs.active(2)
        site.send(message('on'), 'job')
        tabs.show('job', 'on')
        assert [text(o, 'job') for o in tabs]==['state on']*4
        until(lambda: site.connections==1)


class TestReconnecting:
    def test_the_server_restarts(self, tabs, board, until):
        "Each tab says so and comes back, and what was sent meanwhile comes too"
        tabs.open(board.url, 6)
        tabs.active(3)
        board.say()
        board.complete(tabs)
        board.site.stop()
        tabs.wait("cjmSSE.state === 'reconnecting'")
        board.say()
        board.site.start()
        tabs.active(3)
        board.say()
        board.complete(tabs)
        board.one_connection(tabs, until)

    def test_a_silent_connection(self, tabs, loop, board, until):
        "It is half open: what is sent meanwhile comes on a new one"
        tabs.context.clock.install()
        proxy = Proxy(loop, board.site.port)
        try:
            tabs.open(proxy.url('p').replace('pages/p', 'board'), 2)
            tabs.active(3)
            board.say()
            board.complete(tabs)
            proxy.fall_silent(idle=False)
            board.say()
            tabs.context.clock.run_for(8000)  # Not to wait for so long
            board.complete(tabs)
        finally: proxy.stop()

    @pytest.fixture
    def pair(self, tabs, site, until):
        "Two tabs that would wait for a minute before they come back"
        site.opening['events'] = 'retry: 60000\ndata: <i>hello</i>\n\n'
        site.pages['p'] = lambda: log('/stream/events', 'log')
        tabs.open(site.url('p'), 2)
        tabs.active(1)
        until(lambda: (site.count(), site.connections)==(2, 1))
        return tabs

    def test_whoever_is_looked_at(self, pair, site, until):
        "A tab that is shown again, or whose network is back, does not wait"
        pair.show('log', 'hello')
        site.send(None)
        pair.wait("cjmSSE.state === 'reconnecting'")
        pair[1].evaluate("dispatchEvent(new Event('online'))")
        pair[1].wait_for_function("cjmSSE.state === 'active'")
        pair[0].evaluate(LOOKED_AT)
        pair.active(1)
        until(lambda: (site.count(), site.connections)==(2, 1))

    def test_close_and_reconnect(self, pair, site, until):
        "`cjmSSE.close()` and `cjmSSE.reconnect()` are for the tab that calls them"
        before = len(site.requests)
        pair[1].evaluate('cjmSSE.reconnect()')
        until(lambda: (len(site.requests), site.count())==(before+1, 2))
        pair.active(1)
        pair[0].evaluate('cjmSSE.close()')
        until(lambda: site.count()==1)
        pair[1].wait_for_function("cjmSSE.state === 'active'")
        assert pair[0].evaluate('cjmSSE.state')=='disconnected'
        pair[0].evaluate('cjmSSE.reconnect()')
        pair.active(1)
        until(lambda: (site.count(), site.connections)==(2, 1))
