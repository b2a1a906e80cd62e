"""Pages where something is missing: locks, cookies, a proxy that lets streams through

Where tabs can't find each other, or an app does not want it, each has one connection of its own for all its streams.
Where that does not work either, each stream has its own, and the console says why once there are so many that pages
may hang. The messages are the same.
"""
import pytest
from boards import HASTE, Board, Tabs, log
from browsers import chromium, new_context
from fasthtml.common import Div
from handmade import Proxy
from starlette.responses import StreamingResponse

from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, setup_sse

CARRIER = b'application/octet-stream'  # The one response on which all streams of a tab come
ORDERS = '**/_sse/mux'
REFUSED = "throw new DOMException('not here', 'SecurityError')"
MISSING = {
    'no locks': "Object.defineProperty(Navigator.prototype, 'locks', { value: undefined })",
    'locks refused': f"LockManager.prototype.request = async () => {{ {REFUSED} }}",
    'locks without an answer': "LockManager.prototype.request = () => new Promise(() => {})",
    'cookies refused': f"window.BroadcastChannel = class {{ constructor() {{ {REFUSED} }} }};"
    f"for (const o of ['localStorage', 'sessionStorage'])"
    f"    Object.defineProperty(window, o, {{ get() {{ {REFUSED} }} }})",
}


def two_streams(site): site.pages['p'] = lambda: Div(log('/stream/one', 'one'), log('/stream/two', 'two'))
def hello(site, tabs):
    for id in 'one', 'two':
        site.send(f'data: <i>hello {id}</i>\n\n', id)
        tabs.show(id, f'hello {id}')


class TestTabsOnTheirOwn:
    @pytest.mark.parametrize('missing', MISSING)
    def test_what_a_browser_lacks(self, tabs, site, until, missing):
        "Each tab has one connection, and shows all that comes"
        board = Board(site)
        tabs.context.add_init_script(MISSING[missing])
        tabs.open(board.url, 2)
        tabs.active(3)
        until(lambda: (site.connections, board.manager.connection_count)==(2, 6), 'two connections')
        board.say()
        board.complete(tabs)
        tabs.all('cjmSSE.reconnect()')
        tabs.active(3)
        board.say()
        board.complete(tabs)
        until(lambda: site.connections==2)

    def test_http_in_a_local_network(self, playwright, make_site, until):
        "A browser that knows the server by a name has no locks for it"
        names = '--host-resolver-rules=MAP app.test 127.0.0.1'
        with chromium(playwright, names) as browser, new_context(browser) as context:
            page = context.new_page()
            page.errors = []
            tabs,board = Tabs(page),Board(site := make_site())
            tabs.open(board.url.replace('127.0.0.1', 'app.test'), 3)
            tabs.active(3)
            assert tabs.all('window.isSecureContext')==[False]*3
            board.say()
            board.complete(tabs)
            until(lambda: site.connections==3)
            assert tabs.answered() and not tabs.errors
            assert [t for k,t in tabs.console if k in ('warning', 'error') and '[sse]' in t]==[]

    @pytest.mark.parametrize('setup', [setup_sse, lambda app, multiplex: insert_htmx_sse_ext(app.hdrs, multiplex=multiplex)])
    def test_an_app_that_wants_it(self, tabs, make_site, until, setup):
        site = make_site(lambda app: setup(app, multiplex='tab'))
        two_streams(site)
        tabs.open(site.url('p'), 2)
        tabs.active(2)
        hello(site, tabs)
        until(lambda: (site.count('one'), site.count('two'), site.connections)==(2, 2, 2))


class TestStreamsOnTheirOwn:
    def test_an_element_that_wants_it(self, page, tabs, site, until):
        page.direct.add('asked')
        site.pages['p'] = lambda: Div(log('/stream/one', 'one', multiplex=False), log('/stream/two', 'two'))
        tabs.open(site.url('p'), 2)
        tabs.active(2)
        hello(site, tabs)
        until(lambda: site.connections==3)

    def test_an_app_that_wants_it(self, page, tabs, make_site, until):
        page.direct.add('off')
        site = make_site(lambda app: setup_sse(app, multiplex=False))
        two_streams(site)
        tabs.open(site.url('p'), 2)
        tabs.active(2)
        hello(site, tabs)
        until(lambda: site.connections==4)

    @pytest.mark.parametrize('status', [403, 404, 405, 409, 413, 426])
    def test_orders_are_refused(self, page, tabs, site, until, status):
        "Something before the app lets none through"
        page.direct.add('step')
        two_streams(site)
        tabs.context.route(ORDERS, lambda route: route.fulfill(status=status))
        tabs.open(site.url('p'), 2)
        tabs.active(2)
        hello(site, tabs)
        until(lambda: site.connections==4)

    def test_orders_are_refused_from_now_on(self, page, tabs, loop, site, until):
        "What worked works no more: each tab goes on from where it was"
        page.direct.add('step')
        board = Board(site)
        proxy = Proxy(loop, site.port)
        try:
            tabs.open(board.url.replace(str(site.port), str(proxy.port)))
            tabs.active(3)
            board.say()
            board.complete(tabs)
            tabs.context.route(ORDERS, lambda route: route.fulfill(status=403))
            with board.flow():
                proxy.cut()
                until(lambda: site.connections==3, 'each stream has a connection')
                tabs.active(3)
            board.complete(tabs)
        finally: proxy.stop()

    @pytest.mark.parametrize('what', ['the body', 'the headers too'])
    def test_a_proxy_that_collects(self, page, tabs, loop, site, until, what):
        """It keeps the body of a response until it is complete, and a tab's one connection never is. Where even the
        headers don't come, the client waits for ten seconds; here they are one"""
        page.direct.add('step')
        two_streams(site)
        proxy = Collecting(loop, site.port, headers=what!='the body')
        tabs.context.add_init_script(HASTE)
        try:
            tabs.open(proxy.url('p'))
            tabs.active(2)
            hello(site, tabs)
        finally: proxy.stop()

    @pytest.mark.parametrize('streams', [3, 4])
    def test_what_the_console_says(self, page, tabs, site, until, streams):
        "From the fourth stream on that has a connection of its own pages may hang: a warning says why, once"
        page.direct.add('step')
        ids = ['one', 'two', 'three', 'four'][:streams]
        site.pages['p'] = lambda: Div(*[log(f'/stream/{o}', o) for o in ids])
        tabs.context.route(ORDERS, lambda route: route.fulfill(status=403))
        def warnings(): return [t for k,t in tabs.console if k=='warning' and '[sse]' in t]
        tabs.open(site.url('p'))
        tabs.active(streams)
        if streams>3: until(warnings, 'a warning')
        tabs[0].evaluate('cjmSSE.reconnect()')
        until(lambda: len(site.requests)==2*streams)
        tabs.active(streams)
        assert len(warnings())==(streams>3) and all('status 403' in o for o in warnings())


class TestCookies:
    def test_a_stream_that_sets_one(self, tabs, site, until):
        "The browser gets it, though the stream comes on the connection of all"
        @site.app.route('/visits')
        async def visits(sess):
            sess['visits'] = 1
            async def frames(): yield 'data: <i>once</i>\n\n'
            return StreamingResponse(frames(), media_type='text/event-stream')
        site.pages['p'] = lambda: Div(log('/visits', 'visits'), log('/stream/events', 'log'))
        tabs.open(site.url('p'))
        tabs.wait("document.querySelector('#visits > i')")
        until(lambda: any(o['name']=='session_' for o in tabs.context.cookies()), 'the cookie of the session')


class Collecting(Proxy):
    "Keeps the body of a carrier, or with `headers` all of it"
    def __init__(self, *args, headers): super().__init__(*args); self.headers = headers

    async def _pass(self, reader, writer, *args):
        keeps = False
        try:
            while data := await reader.read(65536):
                head,_,body = data.partition(b'\r\n\r\n')
                if b'content-type: '+CARRIER in head.lower():
                    keeps = True
                    if not self.headers: writer.write(head+b'\r\n\r\n')
                elif not keeps: writer.write(data)
        except OSError: pass
        finally: writer.close()
