"""Read transactions: a page stands where its state was read, and so does the state that a snapshot with `db` gives

Over each store that an app can be `reading` in. What another process does there is done by a shell. The event loop stands still
meanwhile, so this process has yet to hear of it. What only a file can do is in `test_transactions_of_sqlite`.
"""
import asyncio
import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from fasthtml.common import Client, FastHTML, Li, Ul

from cjm_fasthtml_sse.core import BackendError, SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from tests.contract.support import BOUND, Browser, Site, eventually, forked, listening
from tests.contract.stores import in_thread

pytestmark = pytest.mark.needs('reading')

forks = [pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork'), pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork')]

def connected(): return HTMXSSEConnector.create_sse_element(endpoint='/events')

def places(page): return re.findall('data-sse-cursor="(.*?)"', str(page))

async def page(app, path='/page'): return (await Client(app).cli.get(path)).text

def numbers(db): return [n for n, in db.execute('select n from number order by n').fetchall()]

def items(db): return [Li(n) for n in numbers(db)]

def at_once(f):
    "Call `f` in a thread, while the event loop stands still"
    with ThreadPoolExecutor(1) as pool: return pool.submit(f).result(BOUND)


@pytest.fixture
def shell(store):
    with store.shell() as shell: yield shell


@pytest.fixture
async def sse(store, shell):
    async with store.workers(1) as (m,):
        await m.open()
        shell.sql('create table number(n integer primary key)')
        yield m


@pytest.fixture
def app(sse):
    app = FastHTML(secret_key='contract')
    setup_sse(app, sse)
    return app


class TestPage:
    "Elements that are made in a block carry the id at which its transaction stands"
    async def test_what_is_committed_meanwhile(self, app, sse, shell):
        "It is not in the state, and comes as a message; in threads and on the event loop"
        def drawn(db):
            shell.write('number', *shell.sql('select count(*), count(*)+1 from number')[0])
            return Ul(*items(db)), connected()
        @app.route('/plain')
        def plain():
            with sse.reading() as db: return drawn(db)
        @app.route('/async')
        async def later():
            async with sse.reading() as db: return drawn(db)
        for n,path in enumerate(['/plain', '/async', '/plain', '/async']):
            text = await page(app, path)
            assert re.findall('<li>(.*?)</li>', text) == [str(o) for o in range(2*n)]
            async with listening(Site(sse).app, **{'SSE-After': places(text)[0]}) as c:
                assert await c.data(2) == [2*n, 2*n+1] and not c.gaps

    async def test_what_the_request_did_not_know(self, app, sse, shell):
        "The state has it, so it does not come again; an element made outside of the block stands where the request began"
        @app.route('/page')
        def drawn():
            shell.write('number', 1)
            with sse.reading() as db: shown = items(db), connected()
            return *shown, connected()
        before = sse.cursor
        made,outside = places(await page(app))
        assert (outside == before, made != before) == (True, True)
        shell.write('number', 2)
        async with listening(Site(sse).app, **{'SSE-After': made}) as c: assert await c.data(1) == [2]
        async with listening(Site(sse).app, **{'SSE-After': outside}) as c: assert await c.data(2) == [1, 2]

    async def test_other_managers(self, app, sse, store):
        "Their ids are those of the request, or of a block around this one"
        other,file = SSEBroadcastManager(),SSEBroadcastManager(backend=store.other().played())
        for m in other, file: setup_sse(app, m)
        await file.open()
        @app.route('/page')
        def drawn():
            for m in other, file, sse: m.broadcast('n', 0).result(BOUND)
            with sse.reading(): one = connected()
            with file.reading(), sse.reading(): both = connected()
            with sse.reading():
                with file.reading(): pass
                again = connected()
            return one, both, again
        for m in other, file, sse: await m.broadcast('n', 0)
        before = {m: m.cursor for m in (other, file, sse)}
        one,both,again = [{*o.split()} for o in places(await page(app))]
        now = {m: m.cursor for m in (other, file, sse)}
        assert one == again == {before[other], before[file], now[sse]} and both == {before[other], now[file], now[sse]}
        await file.close()

    async def test_nothing_in_the_log(self, app, sse, shell):
        "A page of a new file gets what comes first"
        @app.route('/page')
        def drawn():
            with sse.reading(): return connected()
        after, = places(await page(app))
        shell.write('number', 7)
        async with listening(Site(sse).app, **{'SSE-After': after}) as c: assert await c.data(1) == [7] and not c.gaps

    @pytest.mark.parametrize('sink', ['stream', 'channel'])
    async def test_at_a_worker_that_lags(self, store, sse, shell, sink):
        "It waits until it has read up to where the page stands: no gap, nothing twice"
        async with store.workers(1) as (late,):
            browser = Browser(Site(late).app)
            await late.open()
            await browser.ticket('/events')
            for n in range(5):
                shell.write('number', *range(3*n, 3*n+2))
                def drawn():
                    with sse.reading(): return connected()
                after = str(at_once(drawn).attrs['data-sse-cursor'])
                assert late.cursor != after
                async with listening(browser.app, sink=sink, browser=browser, **{'SSE-After': after}) as c:
                    await eventually(lambda: late.cursor == after, 'it reads')
                    shell.write('number', 3*n+2)
                    assert await c.data(1) == [3*n+2] and not c.gaps
            await browser.leave()


class TestBlock:
    async def test_it_only_reads(self, sse):
        "Errors say what to write instead; nothing else is to be ended in it, or begun"
        def block(sql):
            with sse.reading() as db: db.execute(sql).fetchall()
        for sql in "insert into number values(1)", "delete from number", "create table other(x)":
            with pytest.raises(Exception, match='(?i)read-?only') as e: await in_thread(block, sql)
            assert 'transaction()' in e.value.__notes__[0]
        for sql in 'commit', 'rollback', 'begin':
            with pytest.raises(Exception) as e: await in_thread(block, sql)
        async with sse.reading() as db: assert numbers(db) == []

    async def test_on_the_event_loop(self, sse):
        with pytest.raises(Exception, match=r'`async with sse\.reading\(\) as db`'):
            with sse.reading(): pass

    async def test_other_backends(self):
        with pytest.raises(BackendError, match='sqlite:///app.db'): SSEBroadcastManager().reading()

    async def test_a_task_that_outlives_it(self, app, sse, shell):
        "What it draws later may bring what the page has already, and lacks nothing"
        tasks = []
        async def drawn(go):
            await go.wait()
            return connected()
        go = asyncio.Event()
        async with sse.reading(): tasks.append(asyncio.create_task(drawn(go)))
        shell.write('number', 1)
        go.set()
        el = await tasks[0]
        async with listening(Site(sse).app, **{'SSE-After': str(el.attrs['data-sse-cursor'])}) as c: assert await c.data(1) == [1]

    async def test_forked_in_it(self, sse, shell):
        "The child has no part in the block; the parent goes on"
        def block():
            with sse.reading() as db:
                before = numbers(db)
                def child():
                    with sse.reading() as db: assert numbers(db) == [1]
                shell.write('number', 1)
                assert os.waitpid(forked(child), 0)[1] == 0
                return before, numbers(db)
        assert await in_thread(block) == ([], [])
        async with sse.reading() as db: assert numbers(db) == [1]
    for mark in forks: test_forked_in_it = mark(test_forked_in_it)

    async def test_before_the_manager_is_opened(self, store):
        "As in a script, also where nobody was before; what comes then is behind the page"
        async with store.other().workers(1) as (m,):
            async with m.reading() as db:
                assert db.execute('select 1').fetchall() == [(1,)]
                after, = places(connected())
            await m.broadcast('n', 1)
            async with listening(Site(m).app, **{'SSE-After': after}) as c: assert await c.data(1) == [1] and not c.gaps


class TestSnapshot:
    "A snapshot that takes `db` stands where its transaction stands"
    async def test_ahead_of_this_process(self, sse, shell):
        "What the state has comes no more, as soon as this process is there; what is committed later follows"
        for n in range(5):
            shell.write('number', 3*n, 3*n+1)
            assert not sse.cursor.endswith(f'-{3*n+2}')
            def state(db):
                found = items(db)
                shell.write('number', 3*n+2)
                return found
            async with listening(Site(sse, snapshot=state).app) as c:
                (event, text), *rest = await c.read(2)
                assert re.findall('<li>(.*?)</li>', text) == [str(o) for o in range(3*n+2)] and rest == [('n', 3*n+2)]

    async def test_elements_in_it(self, sse, shell):
        "They stand there as well"
        shell.write('number', 1)
        def state(db): return connected()
        async with listening(Site(sse, snapshot=state).app) as c:
            assert places((await c.next())[1]) == [c.last_id]

    async def test_a_gap_brings_the_state(self, sse, shell):
        shell.write('number', 1)
        async with listening(Site(sse, snapshot=items).app, last_id='ffff:1-1') as c:
            assert (await c.next())[1] == '<li>1</li>'

    async def test_shared(self, sse, shell):
        "By all who come at one time"
        calls = []
        def state(db):
            calls.append(1)
            return Li('x')
        site = Site(sse, snapshot=state).app
        tabs = [listening(site) for _ in range(10)]
        await asyncio.gather(*[t.__aenter__() for t in tabs])
        for t in tabs: assert (await t.next())[1] == '<li>x</li>'
        assert len(calls) < 5
        for t in tabs: await t.leave()

    async def test_what_can_not_be(self, sse):
        "Is said by `stream`"
        async def later(db): return Li('x')
        def raises(manager, snapshot, error, match):
            async def look(req):
                with pytest.raises(error, match=match): manager.stream(req, snapshot=snapshot)
                return 'ok'
            app = FastHTML(secret_key='contract')
            app.route('/page')(look)
            return page(app)
        assert await raises(sse, later, ValueError, 'plain `def`') == 'ok'
        assert await raises(SSEBroadcastManager(), items, BackendError, 'sqlite:///app.db') == 'ok'
        def without(db=None): return Li('without')
        async with listening(Site(SSEBroadcastManager(), snapshot=without).app) as c: assert await c.next() == ('message', '<li>without</li>')
