"""Between page and stream nothing is lost: what a page shows and what its stream brings are together everything

`setup_sse` notes where the log stands when a request begins. An element that connects to a stream carries that place
when it is written as HTML (`data-sse-cursor`), the client sends it as `SSE-After`, and `manager.stream` goes on from
there. The rule for apps: change the state first, then broadcast. `Last-Event-ID`, which says what came on a stream,
beats the place of the page. A page that is too old is told so, and never gets half of what it missed.
"""
import asyncio
import re
import threading
import time

import httpx
import pytest
from fasthtml.common import Client, FastHTML, Li, Ul, to_xml
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, StreamingResponse
from starlette.testclient import TestClient

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse, sse_element
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from tests.contract.servers import NO_TLS
from tests.contract.support import BOUND, GAP, Site, all_live, eventually, listening, serve, within

CONNECTED = HTMXSSEConnector.create_sse_element(endpoint='/events')  # Made at import


def html(element): return to_xml(element, indent=False)

def place(page):
    "Where a page stands, as its element says it"
    return re.search('data-sse-cursor="(.*?)"', str(page))[1]

def tab(manager, *places, last_id='', **stream):
    "The stream of a page that stands at `places`"
    return listening(Site(manager, **stream).app, last_id=last_id, **{'SSE-After': ' '.join(places)})


@pytest.fixture
def sse(): return SSEBroadcastManager()

@pytest.fixture
def app(sse):
    app = FastHTML(secret_key='contract')
    setup_sse(app, sse)
    return app

async def page(app, path='/page'): return (await Client(app).cli.get(path)).text


class TestPage:
    "What a page is written with"

    async def test_element_made_at_import(self, app, sse):
        "Within a list that is made at import, too: each page has the place of its own request"
        whole = Ul(Li(CONNECTED))
        app.route('/page')(lambda: whole)
        for n in range(3):
            assert place(await page(app))==sse.cursor
            await sse.broadcast('n', n)

    async def test_where_the_request_began(self, app, sse):
        "Not where the element was written; in plain and in async routes"
        @app.route('/plain')
        def plain():
            sse.broadcast('n', 1).result(BOUND)
            return CONNECTED
        @app.route('/async')
        async def later():
            await sse.broadcast('n', 1)
            return CONNECTED
        await sse.open()
        for path in ('/plain', '/async'):
            before = sse.cursor
            assert (place(await page(app, path)), sse.cursor!=before)==(before, True)

    async def test_decorated_and_jobs(self, app, sse):
        app.route('/page')(sse_element('/events')(lambda: Ul()))
        app.route('/job')(lambda: HTMXSSEConnector.sse_progress_element('j'))
        for path in ('/page', '/job'): assert place(await page(app, path))==sse.cursor

    async def test_after(self, app, sse):
        "An id of the app's own choice, or none"
        def connected(after): return HTMXSSEConnector.create_sse_element(endpoint='/events', after=after)
        app.route('/page')(lambda: (connected('1f-42'), connected(None)))
        found = await page(app)
        assert re.findall('data-sse-after="(.*?)"', found)==['1f-42'] and 'data-sse-cursor' not in found

    async def test_without_setup(self):
        app = FastHTML(secret_key='contract')
        app.route('/page')(lambda: CONNECTED)
        assert place(await page(app))==''

    async def test_two_managers_and_a_mount(self, app, sse):
        "Each stream picks its own"
        other,of_mount,mounted = SSEBroadcastManager(name='other'),SSEBroadcastManager(),FastHTML(secret_key='contract')
        setup_sse(app, other)
        setup_sse(mounted, of_mount)
        app.mount('/sub', mounted)
        for o in (app, mounted): o.route('/page')(lambda: CONNECTED)
        managers = [other, sse, of_mount]
        ids = place(await page(app, '/sub/page')).split()
        assert {*ids}=={o.cursor for o in managers}
        assert {*place(await page(app)).split()}=={o.cursor for o in managers[:2]}
        for n,o in enumerate(managers):
            await o.broadcast('n', n)
            async with tab(o, *ids) as t: assert await t.next()==('n', n)

    async def test_streaming_page(self, app, sse):
        "The body is written later, by a plain generator and by an async one"
        def body():
            yield '<ul>'
            yield html(CONNECTED)
        async def later():
            for part in body():
                await sse.broadcast('n', 1)
                yield part
        app.route('/plain')(lambda: StreamingResponse(body(), media_type='text/html'))
        app.route('/later')(lambda: StreamingResponse(later(), media_type='text/html'))
        for path in ('/plain', '/later'):
            before = sse.cursor
            assert place(await page(app, path))==before

    async def test_middleware_with_a_task_of_its_own(self, sse):
        async def pass_on(request, call_next): return await call_next(request)
        app = FastHTML(secret_key='contract', middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)])
        setup_sse(app, sse)
        app.route('/page')(lambda: CONNECTED)
        assert place(await page(app))==sse.cursor

    async def test_after_the_page(self, app, sse):
        "Background tasks, tasks that go on, threads of the app and streams written by hand draw for no page"
        found,go_on,tasks = {},asyncio.Event(),[]
        def note(name): found[name] = place(html(CONNECTED))
        async def outlives():
            note('task within')
            await go_on.wait()
            note('task after')
        async def events():
            yield ''
            note('by hand')
        @app.route('/page')
        async def drawn(req):
            tasks.append(asyncio.create_task(outlives()))
            thread = threading.Thread(target=note, args=('thread',))
            thread.start()
            await asyncio.to_thread(thread.join)
            await asyncio.to_thread(note, 'pool')
            note('page')
            return HTMLResponse('', background=BackgroundTask(note, 'background'))
        app.route('/stream')(lambda: StreamingResponse(events(), media_type='text/event-stream; charset=utf-8'))
        cursor = sse.cursor
        await page(app)
        await page(app, '/stream')
        go_on.set()
        await asyncio.wait(tasks, timeout=BOUND)
        none = dict.fromkeys(('thread', 'background', 'task after', 'by hand'), '')
        assert found=={**none, **dict.fromkeys(('page', 'pool', 'task within'), cursor)}

    def test_websocket(self, app):
        @app.ws('/ws')
        async def ws(msg: str, send): await send(html(CONNECTED))
        with TestClient(app).websocket_connect('/ws') as web:
            web.send_json(dict(msg='x'))
            assert place(web.receive_text())==''


class TestStream:
    "What a stream makes of it"

    async def test_goes_on_from_the_page(self, sse):
        await sse.open()
        before = sse.cursor
        for n in range(3): await sse.broadcast('n', n)
        async with tab(sse, before) as t: assert await t.data(3)==[0, 1, 2]

    async def test_last_event_id_wins(self, sse):
        at = []
        for n in range(3):
            at.append(sse.cursor)
            await sse.broadcast('n', n)
        async with tab(sse, at[0], last_id=at[2]) as t: assert await t.next()==('n', 2)

    async def test_snapshot_is_for_a_first_visit(self, sse):
        "The state is sent, to a page that is empty too, and it stands for all that came before"
        before = sse.cursor
        await sse.broadcast('n', 0)
        for ids in (before, 'c0ffee-1', ''):
            async with tab(sse, ids, snapshot=lambda: '<p>state</p>') as t:
                assert await t.next()==('message', '<p>state</p>')
                await sse.broadcast('n', 1)
                assert await t.next()==('n', 1) and t.last_id==sse.cursor and t.gaps==0
        assert sse.stats()['gaps']==0

    @pytest.mark.parametrize('ids, gap', [
        ('c0ffee-17', True), ('c0ffee:17-3', True), ('OLD', True), ('OTHER', False), ('', False),
        ('c0ffee-17 OTHER', True), ('c0ffee-17 MINE', False)])
    async def test_gaps(self, ids, gap):
        "A place of before a restart, or one that the log has forgotten, is a gap; one of another manager is none"
        sse,other = SSEBroadcastManager(replay_size=2),SSEBroadcastManager()
        ids = ids.replace('OLD', sse.cursor).replace('OTHER', other.cursor)
        for n in range(5): await sse.broadcast('n', n)
        ids = ids.replace('MINE', sse.cursor)
        async with tab(sse, ids) as t:
            await all_live(sse, 1)
            await sse.broadcast('n', 'last')
            first = await t.next()
            assert first==((GAP, None) if gap else ('n', 'last')) and sse.stats()['gaps']==gap

    @pytest.mark.parametrize('header', ['\xff\x00-1', ' '*5000, '-', 'a-1 '*3000, 'x'*5000+'-1'])
    async def test_hostile(self, sse, header):
        "Whatever a browser sends, the stream opens"
        async with tab(sse, header) as t:
            assert t.status==200
            await all_live(sse, 1)

    async def test_drawn_within_a_stream(self, sse):
        "An element that a renderer draws goes on behind its message, one of a snapshot behind what the snapshot shows"
        await sse.broadcast('n', 0)
        shown = sse.cursor
        async def later(message): return CONNECTED
        for render in (lambda message: CONNECTED, later):
            async with tab(sse, render=render, snapshot=lambda: CONNECTED, events='new') as t:
                assert place(await t.next())==shown
                await sse.broadcast('new', 1)
                assert place(await t.next())==sse.cursor
                shown = sse.cursor
        async def state(): return CONNECTED
        async with tab(sse, snapshot=state) as t: assert place(await t.next())==shown

    async def test_hand_written_streams_get_no_foreign_id(self, app, sse):
        "`int(last_event_id)` of an older app goes on working"
        got = []
        @app.route('/events')
        def events(req: Request):
            got.append(req.headers.get('last-event-id'))
            async def frames(): yield 'id: 1\ndata: x\n\n'
            return StreamingResponse(frames(), media_type='text/event-stream')
        async with listening(app, **{'SSE-After': sse.cursor}) as t: await t.ends()
        assert got==[None]


def site_with_todos():
    "A list that is written to while its pages are drawn, slowly: most of them are overtaken"
    app,sse,todos = FastHTML(secret_key='contract'),SSEBroadcastManager(),[]
    setup_sse(app, sse)
    def drawn(shown):
        return Ul(*map(Li, shown), id='todos'), HTMXSSEConnector.create_sse_element(endpoint='/events', hidden=True)
    @app.route('/plain')
    def plain():
        shown = [*todos]
        time.sleep(.01)  # Drawing takes so long
        return drawn(shown)
    @app.route('/async')
    async def later():
        shown = [*todos]
        await asyncio.sleep(.01)  # Drawing takes so long
        return drawn(shown)
    @app.route('/add')
    async def add(title: str):
        todos.append(title)
        await sse.broadcast('todo:added', title)
    @app.route('/state')
    def state(req: Request): return sse.stream(req, render=lambda m: Li(m['data']), snapshot=lambda: [*map(Li, todos)])
    @app.route('/events')
    def events(req: Request): return sse.stream(req, render=lambda m: Li(m['data']))
    return app,todos


@pytest.mark.parametrize('path, events', [('/plain', '/events'), ('/async', '/events'), ('/plain', '/state')])
async def test_pages_that_load_during_writes(path, events):
    "A real server, steady writes, 30 pages: in the end none lacks an item"
    app,todos = site_with_todos()
    async def visit(web, n):
        await eventually(lambda: len(todos)>=4*n, 'its turn')  # Spread over the time of the writes
        text = (await web.get(path)).raise_for_status().text
        shown = re.findall('<li>(.*?)</li>', text)
        async with web.stream('GET', events, headers={'SSE-After': place(text)}) as stream:
            async for line in stream.aiter_lines():
                shown += re.findall('<li>(.*?)</li>', line)
                if 'the end' in shown: return shown
    async with serve(app) as port, within('all see the end'):
        async with httpx.AsyncClient(base_url=f'http://127.0.0.1:{port}', timeout=BOUND, verify=NO_TLS,
                limits=httpx.Limits(max_connections=None)) as web:
            visits = [asyncio.create_task(visit(web, n)) for n in range(30)]
            for n in range(130): (await web.post('/add', params=dict(title=f'todo {n}'))).raise_for_status()
            await web.post('/add', params=dict(title='the end'))
            pages = await asyncio.gather(*visits)
    lacking = {n: {*todos}-{*shown} for n,shown in enumerate(pages) if {*todos}-{*shown}}
    assert lacking=={}
