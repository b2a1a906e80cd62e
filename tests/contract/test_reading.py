"""Read transactions: a page stands where its state was read, and so does the state that a snapshot with `db` gives

What another process does to the file is done by a `Shell`. The event loop stands still meanwhile, so this process has yet to
hear of it.
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
from tests.contract.support import BOUND, GAP, Browser, Site, eventually, forked, listening, within
from tests.contract.test_over_sqlite import Shell, _library, _path, in_thread, managers  # noqa: F401 - two are fixtures


forks = [pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork'), pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork')]

def connected(): return HTMXSSEConnector.create_sse_element(endpoint='/events')

def places(page): return re.findall('data-sse-cursor="(.*?)"', str(page))

async def page(app, path='/page'): return (await Client(app).cli.get(path)).text

def numbers(db): return [n for n, in db.execute('select n from number order by n').fetchall()]

def items(db): return [Li(n) for n in numbers(db)]

def write(shell, *ns):
    "Another process commits numbers, each together with its message"
    for n in ns:
        for text in ('begin immediate', f'insert into number values({n})',
                     f"insert into sse_log(fields) values (json_object('type', 'n', 'data', {n}))", 'commit'): shell.sql(text)

def moves_all(shell):
    "Whether a checkpoint moves all that was written into the file, as nobody reads what was before"
    (_,frames,moved), = shell.sql('pragma wal_checkpoint(passive)')
    return frames == moved

def at_once(f):
    "Call `f` in a thread, while the event loop stands still"
    with ThreadPoolExecutor(1) as pool: return pool.submit(f).result(BOUND)


@pytest.fixture(name='shell')
def _shell(path):
    with Shell(path) as shell: yield shell


@pytest.fixture
async def sse(path, shell, library):
    async with managers(path, 1, library=library) as (m,):
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
            write(shell, *shell.sql('select count(*), count(*)+1 from number')[0])
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
            write(shell, 1)
            with sse.reading() as db: shown = items(db), connected()
            return *shown, connected()
        before = sse.cursor
        made,outside = places(await page(app))
        assert (outside == before, made != before) == (True, True)
        write(shell, 2)
        async with listening(Site(sse).app, **{'SSE-After': made}) as c: assert await c.data(1) == [2]
        async with listening(Site(sse).app, **{'SSE-After': outside}) as c: assert await c.data(2) == [1, 2]

    async def test_other_managers(self, app, sse, tmp_path):
        "Their ids are those of the request, or of a block around this one"
        other,file = SSEBroadcastManager(),SSEBroadcastManager(backend=tmp_path/'other.db')
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
        write(shell, 7)
        async with listening(Site(sse).app, **{'SSE-After': after}) as c: assert await c.data(1) == [7] and not c.gaps

    async def test_a_file_restored_meanwhile(self, sse, shell, tmp_path):
        "The page has seen what is not there any more: a gap"
        write(shell, 1)
        shell.sql(f"vacuum into '{tmp_path}/backup'")
        write(shell, 2)
        def drawn():
            with sse.reading(): return connected()
        el = await in_thread(drawn)
        shell.run(f"restore('{tmp_path}/backup')")
        write(shell, 3)
        async with listening(Site(sse).app, **{'SSE-After': str(el.attrs['data-sse-cursor'])}) as c: assert await c.next() == (GAP, None)

    @pytest.mark.parametrize('sink', ['stream', 'channel'])
    async def test_at_a_worker_that_lags(self, path, sse, shell, library, sink):
        "It waits until it has read up to where the page stands: no gap, nothing twice"
        async with managers(path, 1, library=library) as (late,):
            browser = Browser(Site(late).app)
            await late.open()
            await browser.ticket('/events')
            for n in range(5):
                write(shell, *range(3*n, 3*n+2))
                def drawn():
                    with sse.reading(): return connected()
                after = str(at_once(drawn).attrs['data-sse-cursor'])
                assert late.cursor != after
                async with listening(browser.app, sink=sink, browser=browser, **{'SSE-After': after}) as c:
                    await eventually(lambda: late.cursor == after, 'it reads')
                    write(shell, 3*n+2)
                    assert await c.data(1) == [3*n+2] and not c.gaps
            await browser.leave()


class TestBlock:
    async def test_it_only_reads(self, sse):
        "Errors say what to write instead; nothing else is to be ended in it, or begun"
        def block(sql):
            with sse.reading() as db: db.execute(sql).fetchall()
        for sql in "insert into number values(1)", "delete from number", "create table other(x)":
            with pytest.raises(Exception, match='readonly') as e: await in_thread(block, sql)
            assert 'transaction()' in e.value.__notes__[0]
        for sql in 'commit', 'rollback', 'begin':
            with pytest.raises(Exception) as e: await in_thread(block, sql)
        async with sse.reading() as db: assert numbers(db) == []

    async def test_on_the_event_loop(self, sse):
        with pytest.raises(Exception, match=r'`async with sse\.reading\(\) as db`'):
            with sse.reading(): pass

    async def test_other_backends(self):
        with pytest.raises(BackendError, match='sqlite:///app.db'): SSEBroadcastManager().reading()

    async def test_while_the_file_is_locked(self, sse, shell):
        "It waits for nobody, and nobody waits for it"
        shell.sql('begin immediate'), shell.sql('insert into number values(1)')
        async with sse.reading() as db:
            assert numbers(db) == []
            shell.sql('commit')
            assert numbers(db) == []
        async with sse.reading() as db: assert numbers(db) == [1]

    async def test_it_ends_with_the_block(self, sse, shell):
        "Also where that fails, or is cancelled: all that was written can be moved into the file"
        async def block(ready):
            async with sse.reading() as db:
                numbers(db)
                ready.set()
                await asyncio.Event().wait()
        async def failing():
            with pytest.raises(ZeroDivisionError):
                async with sse.reading() as db: numbers(db)/0
        ready = asyncio.Event()
        task = asyncio.create_task(block(ready))
        await ready.wait()
        write(shell, 1)
        assert not moves_all(shell), 'somebody reads'
        task.cancel()
        await asyncio.wait({task})
        for _ in range(20):
            task = asyncio.create_task(block(asyncio.Event()))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
        async with within('nobody reads any more'):
            while not moves_all(shell): await asyncio.sleep(.005)

    async def test_rows_that_nobody_read(self, sse, shell):
        "A cursor that the app has kept holds nothing"
        write(shell, *range(100))
        async with sse.reading() as db:
            kept = iter(db.execute('select n from number'))
            assert next(kept) == (0,)
        write(shell, 100)
        async with within('nobody reads any more'):
            while not moves_all(shell): await asyncio.sleep(.005)
        with pytest.raises(Exception, match='[Cc]losed'): next(kept)

    async def test_deleted_file(self, sse, path, tmp_path):
        "Is not made again"
        for o in tmp_path.glob('app.db*'): o.unlink()
        with pytest.raises(BackendError, match='app.db'):
            async with sse.reading(): pass
        assert not path.exists()

    async def test_a_task_that_outlives_it(self, app, sse, shell):
        "What it draws later may bring what the page has already, and lacks nothing"
        tasks = []
        async def drawn(go):
            await go.wait()
            return connected()
        go = asyncio.Event()
        async with sse.reading(): tasks.append(asyncio.create_task(drawn(go)))
        write(shell, 1)
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
                write(shell, 1)
                assert os.waitpid(forked(child), 0)[1] == 0
                return before, numbers(db)
        assert await in_thread(block) == ([], [])
        async with sse.reading() as db: assert numbers(db) == [1]
    for mark in forks: test_forked_in_it = mark(test_forked_in_it)

    async def test_before_the_manager_is_opened(self, path, tmp_path):
        "As in a script; the file is made if there is none"
        async with managers(tmp_path/'new.db', 1) as (m,):
            async with m.reading() as db: assert db.execute('select count(*) from sse_log').fetchall() == [(0,)]
            await m.broadcast('n', 1)


class TestSnapshot:
    "A snapshot that takes `db` stands where its transaction stands"
    async def test_ahead_of_this_process(self, sse, shell):
        "What the state has comes no more, as soon as this process is there; what is committed later follows"
        for n in range(5):
            write(shell, 3*n, 3*n+1)
            assert not sse.cursor.endswith(f'-{3*n+2}')
            def state(db):
                found = items(db)
                write(shell, 3*n+2)
                return found
            async with listening(Site(sse, snapshot=state).app) as c:
                (event, text), *rest = await c.read(2)
                assert re.findall('<li>(.*?)</li>', text) == [str(o) for o in range(3*n+2)] and rest == [('n', 3*n+2)]

    async def test_elements_in_it(self, sse, shell):
        "They stand there as well"
        write(shell, 1)
        def state(db): return connected()
        async with listening(Site(sse, snapshot=state).app) as c:
            assert places((await c.next())[1]) == [c.last_id]

    async def test_a_gap_brings_the_state(self, sse, shell):
        write(shell, 1)
        async with listening(Site(sse, snapshot=items).app, last_id='ffff:1-1') as c:
            assert (await c.next())[1] == '<li>1</li>'

    async def test_a_file_restored_meanwhile(self, sse, shell, tmp_path):
        "Where the state stands is not known any more: it is read again"
        write(shell, 1)
        shell.sql(f"vacuum into '{tmp_path}/backup'")
        write(shell, 2)
        calls = []
        def state(db):
            calls.append(numbers(db))
            if len(calls)==1:
                shell.run(f"restore('{tmp_path}/backup')")
                write(shell, 3)
            return [Li(n) for n in calls[-1]]
        async with listening(Site(sse, snapshot=state).app) as c:
            await eventually(lambda: '<li>1</li><li>3</li>' in [e.data for e in c.messages], lambda: c.messages)

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
