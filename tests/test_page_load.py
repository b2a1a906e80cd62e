"Between page and stream: what a page shows, and what its stream brings, are together everything"
import asyncio
import re
import threading

import httpx
import pytest
from fasthtml.common import Client, FastHTML, Li, Ul
from servers import running, uvicorn
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, StreamingResponse
from starlette.testclient import TestClient
from support import BOUND, eventually, gaps, read, seq, tab

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import oob_element, setup_sse, sse_element
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.render import to_html
from cjm_fasthtml_sse.testing import SSEClient
from cjm_fasthtml_sse.wire import GAP

CONNECTED = HTMXSSEConnector.create_sse_element(endpoint='/events')  # Made at import


def place(html):
    "Where a page stands, as its element says it"
    return re.search('data-sse-cursor="(.*?)"', str(html))[1]


def after(*ids): return {'SSE-After': ' '.join(ids)}


@pytest.fixture
def sse(): return SSEBroadcastManager()


@pytest.fixture
def app(sse):
    app = FastHTML(secret_key='test')
    setup_sse(app, sse)
    return app


async def page(app, path='/page'): return (await Client(app).cli.get(path)).text


class TestPage:
    "What a page is written with"

    async def test_made_at_import(self, app, sse):
        "One element, within a list that is made at import too: each page has the place of its own request"
        whole = Ul(Li(CONNECTED))
        app.route('/page')(lambda: whole)
        for n in range(3):
            assert place(await page(app))==sse.cursor
            await sse.broadcast('n', n)

    async def test_plain_and_async_routes(self, app, sse):
        "The place is where the request began, not where the element was written"
        loop = asyncio.get_running_loop()
        @app.route('/plain')
        def plain():
            asyncio.run_coroutine_threadsafe(sse.broadcast('n', 1), loop).result(BOUND)
            return CONNECTED
        @app.route('/async')
        async def later():
            await sse.broadcast('n', 1)
            return CONNECTED
        for path in ('/plain', '/async'):
            before = sse.cursor
            assert (place(await page(app, path)), sse.cursor!=before)==(before, True)

    async def test_decorated(self, app, sse):
        "`sse_element` and the elements of jobs are written so too"
        app.route('/page')(sse_element('/events')(lambda: Ul()))
        app.route('/job')(lambda: HTMXSSEConnector.sse_progress_element('j'))
        for path in ('/page', '/job'): assert place(await page(app, path))==sse.cursor

    async def test_no_setup(self):
        app = FastHTML(secret_key='test')
        app.route('/page')(lambda: CONNECTED)
        assert place(await page(app))==''

    async def test_two_managers_and_a_mount(self, app, sse):
        "Each stream picks its own"
        other,of_mount,mounted = SSEBroadcastManager(),SSEBroadcastManager(),FastHTML(secret_key='test')
        setup_sse(app, other)
        setup_sse(mounted, of_mount)
        app.mount('/sub', mounted)
        for o in (app, mounted): o.route('/page')(lambda: CONNECTED)
        managers = [other, sse, of_mount]
        ids = place(await page(app, '/sub/page'))
        assert ids.split()==[o.cursor for o in managers]
        assert place(await page(app)).split()==[o.cursor for o in managers[:2]]
        for n,o in enumerate(managers):
            await o.broadcast('n', n)
            async with tab(o, headers=after(ids)) as t: assert [e.data for e in await read(t, 1)]==[str(n)]

    async def test_streaming_page(self, app, sse):
        "The body is written later, by a plain generator and by an async one"
        def body():
            yield '<ul>'
            yield to_html(CONNECTED)
        async def later():
            for part in body():
                await sse.broadcast('n', 1)
                yield part
        app.route('/plain')(lambda: StreamingResponse(body(), media_type='text/html'))
        app.route('/later')(lambda: StreamingResponse(later(), media_type='text/html'))
        for path in ('/plain', '/later'):
            before = sse.cursor
            assert place(await page(app, path))==before

    async def test_base_middleware(self, sse):
        "It runs the app in a task of its own"
        async def pass_on(request, call_next): return await call_next(request)
        app = FastHTML(secret_key='test', middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)])
        setup_sse(app, sse)
        app.route('/page')(lambda: CONNECTED)
        assert place(await page(app))==sse.cursor

    async def test_after_the_page(self, app, sse):
        "Background tasks, tasks that go on, threads of the app and streams written by hand draw for no page"
        found,go_on,tasks = {},asyncio.Event(),[]
        def note(name): found[name] = place(to_html(CONNECTED))
        async def outlives():
            note('task within')
            await go_on.wait()
            note('task after')
        async def events():
            yield ''
            note('by hand')
        @app.route('/page')
        async def page_(req):
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
        async def ws(msg: str, send): await send(to_html(CONNECTED))
        with TestClient(app).websocket_connect('/ws') as web:
            web.send_json(dict(msg='x'))
            assert place(web.receive_text())==''


class TestStream:
    "What a stream makes of it"

    async def test_goes_on_from_the_page(self, sse):
        sse._hub.enter_loop()
        before = sse.cursor
        for n in range(3): await sse.broadcast('n', n)
        async with tab(sse, headers=after(before)) as t: assert [e.data for e in await read(t, 3)]==['0', '1', '2']

    async def test_last_event_id_wins(self, sse):
        before = sse.cursor
        for n in range(3): await sse.broadcast('n', n)
        last = sse.get_history()[1].id
        async with tab(sse, headers=after(before), last_event_id=last) as t: assert [e.data for e in await read(t, 1)]==['2']

    async def test_snapshot_is_for_a_first_visit(self, sse):
        "The state is sent, to a page that is empty too, and it stands for all that came before"
        before = sse.cursor
        await sse.broadcast('n', 0)
        for ids in (before, 'c0ffee-1', ''):
            async with tab(sse, headers=after(ids), snapshot=lambda: oob_element('list', 'state')) as t:
                assert 'state' in (await read(t, 1))[0].data
                await sse.broadcast('n', 1)
                assert seq(await t.next(BOUND))==seq(sse.cursor)
            assert not gaps(t)
        assert sse.stats()['gaps']==0

    @pytest.mark.parametrize('ids, gap', [('c0ffee-17', True), ('c0ffee:17-3', True), ('OLD', True), ('OTHER', False), ('', False), ('c0ffee-17 OTHER', True), ('c0ffee-17 MINE', False)])
    async def test_gaps(self, ids, gap):
        "An id of before a restart, or one that the log has forgotten, is a gap; an id of another manager is none"
        sse,other = SSEBroadcastManager(replay_size=2),SSEBroadcastManager()
        ids = ids.replace('OLD', sse.cursor).replace('OTHER', other.cursor)
        for n in range(5): await sse.broadcast('n', n)
        ids = ids.replace('MINE', sse.cursor)
        async with tab(sse, headers=after(ids)) as t:
            await eventually(lambda: sse.connections and not sse._hub.joining, 'the stream is live')
            await sse.broadcast('n', 'last')
            first = await t.next(BOUND)
            assert (first.event==GAP, sse.stats()['gaps'])==(gap, int(gap))

    @pytest.mark.parametrize('header', ['\xff\x00-1', ' '*5000, '-', 'a-1 '*3000, 'x'*5000+'-1'])
    async def test_hostile(self, sse, header):
        "Whatever a browser sends, the stream opens"
        async with tab(sse, headers={'SSE-After': header}) as t:
            assert t.status==200
            await eventually(lambda: sse.connections and not sse._hub.joining, 'the stream is live')

    async def test_drawn_within_a_stream(self, sse):
        "An element that a renderer draws goes on behind its message, one of a snapshot behind what the snapshot shows"
        await sse.broadcast('n', 0)
        shown = sse.cursor
        async def later(message): return CONNECTED
        for render in (lambda message: CONNECTED, later):
            async with tab(sse, render=render, snapshot=lambda: CONNECTED, events='new') as t:
                assert place((await t.next(BOUND)).data)==shown
                await sse.broadcast('new', 1)
                assert place((await t.next(BOUND)).data)==sse.cursor
                shown = sse.cursor
        async def state(): return CONNECTED
        async with tab(sse, snapshot=state) as t: assert place((await t.next(BOUND)).data)==shown

    async def test_hand_written_streams_get_no_foreign_id(self, app, sse):
        "`int(last_event_id)` goes on working"
        got = []
        @app.route('/events')
        def events(req: Request):
            got.append(req.headers.get('last-event-id'))
            async def frames(): yield 'id: 1\ndata: x\n\n'
            return StreamingResponse(frames(), media_type='text/event-stream')
        async with SSEClient(app, '/events', after(sse.cursor)) as t: await t.next(BOUND)
        assert got==[None]


def test_pages_under_load(tmp_path):
    "A real server, steady writes, and pages of plain and async routes: none lacks an item in the end"
    with running(uvicorn('page_load:app'), tmp_path/'log') as server:
        missing = asyncio.run(_load(server.url, pages=60, writes=250))
    assert missing=={}


async def _load(url, pages, writes):
    written = asyncio.Event()
    async with httpx.AsyncClient(base_url=url, timeout=BOUND, limits=httpx.Limits(max_connections=None)) as web:
        async def write():
            for n in range(writes): (await web.post('/add', params=dict(title=f'todo {n}'))).raise_for_status()
            written.set()
        async def visit(n):
            await asyncio.sleep(n*.03)  # Spread over the time of the writes
            html = (await web.get(('/plain', '/async')[n%2])).raise_for_status().text
            shown = {*re.findall('<li>(.*?)</li>', html)}
            async with web.stream('GET', '/events', headers=after(place(html))) as stream:
                async for line in stream.aiter_lines():
                    shown.update(re.findall('<li>(.*?)</li>', line))
                    if 'the end' in shown: return n,shown
        visits = [asyncio.create_task(visit(n)) for n in range(pages)]
        await write()
        await web.post('/add', params=dict(title='the end'))
        async with asyncio.timeout(BOUND): shown = dict(await asyncio.gather(*visits))
    everything = {f'todo {n}' for n in range(writes)} | {'the end'}
    return {n: everything-o for n,o in shown.items() if everything-o}
