"""A row and the event about it in one commit: `transaction` and `broadcast_in`

State and log agree always: after an error, a cancellation, a commit that fails. What a block wrote is there together with what
it broadcast, or neither is. Most tests count both: rows in `row`, and events of the type `row`.
"""
import asyncio
import gc
import os
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import anyio
import pytest

from cjm_fasthtml_sse.backends.sqlite import SQLiteBackend
from cjm_fasthtml_sse.core import BackendError, SSEBroadcastManager, SSEError
from tests.contract.support import BOUND, following, turns, within
from tests.contract.test_over_sqlite import Played, Shell, _library, _path, in_thread, managers, needs_apsw  # noqa: F401 - two are fixtures


@pytest.fixture(name='way', params=['with', 'async with'])
def _way(request):
    "`await way(manager, f)` calls `f(db)` in a block, in a thread or on the event loop"
    def blocking(manager, f):
        with manager.transaction() as db: return f(db)
    async def on_loop(manager, f):
        async with manager.transaction() as db: return f(db)
    async def in_a_thread(manager, f): return await in_thread(blocking, manager, f)
    return on_loop if request.param == 'async with' else in_a_thread


def rows(path):
    "What is in `row`, and what the events `row` have, as another process sees them"
    with Shell(path) as shell: return tuple([o for o, in shell.sql(sql)] for sql in (
        'select n from row order by rowid', "select json_extract(fields, '$.data') from sse_log where json_extract(fields, '$.type')='row' order by seq"))


@asynccontextmanager
async def manager(path, **kw):
    "One that is open, with a table"
    async with managers(path, 1, **dict(timeout=BOUND) | kw) as (m,):
        async with m.transaction() as db: db.execute('create table if not exists row(n)')
        yield m


def adds(m, n):
    "What a block does: a row, and the event about it"
    def add(db):
        db.execute('insert into row values(?)', (n,))
        return m.broadcast('row', n)
    return add


class TestABlock:
    async def test_a_commit(self, path, library, way):
        "Two processes hear what was broadcast, in its order, after what came before"
        async with managers(path, library=library) as (one, two), following('stream', one) as a, following('stream', two) as b:
            await way(one, lambda db: db.execute('create table row(n)'))
            one.broadcast('n', 0)
            sent = await way(one, lambda db: [adds(one, n)(db) for n in range(1, 6)])
            one.broadcast('n', 6)
            for c in a, b: assert await c.data(7) == [*range(7)]
            assert [await o for o in sent] == [0]*5
        assert rows(path) == ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])

    @pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError], ids=lambda o: o.__name__)
    async def test_an_error(self, path, library, error):
        "It passes through as it is; nothing was written, and nothing is sent"
        def fail(m):
            nonlocal sent
            with m.transaction() as db:
                sent = adds(m, 1)(db)
                raise raised
        def caught(m):
            try: fail(m)
            except BaseException as e: return e is raised
        sent, raised = None, error()
        async with manager(path, library=library) as m, following('queue', m) as c:
            assert await in_thread(caught, m)
            with pytest.raises(BackendError, match='rolled back.*was not sent'): await sent
            await m.broadcast('end', None)
            assert await c.next() == ('end', None)
        assert rows(path) == ([], [])

    async def test_nobody_asks(self, path, caplog):
        "What was rolled back is no error in the log"
        async with manager(path) as m:
            with pytest.raises(ZeroDivisionError):
                async with m.transaction() as db: adds(m, 1)(db), 1/0
            gc.collect()
        assert not [r for r in caplog.records if r.levelname == 'ERROR']

    async def test_before_the_start(self, path, library):
        "A script writes and broadcasts; whoever starts later knows both"
        m = SSEBroadcastManager(backend=Played(path, library=library))
        def script():
            with m.transaction() as db:
                db.execute('create table row(n)')
                adds(m, 1)(db)
        await in_thread(script)
        await m.open()
        assert [o['data'] for o in m.get_history()] == [1]
        await m.close()
        assert rows(path) == ([1], [1])

    async def test_the_tables_are_gone(self, path, way):
        "As in a backup that was made before the library was used: they are made anew in the transaction"
        async with manager(path) as m:
            with Shell(path) as shell:
                for o in 'log', 'meta', 'command', 'worker': shell.sql(f'drop table sse_{o}')
            await (await way(m, adds(m, 1)))
        assert rows(path) == ([1], [1])

    async def test_hooks(self, path, way):
        "Plain ones run at the call, and change what is sent; an async one can't be awaited, and says so"
        async with manager(path) as m, following('queue', m) as c:
            m.on_broadcast(lambda message: message | dict(data=message['data']+1))
            await way(m, adds(m, 1))
            assert await c.next() == ('row', 2)
            @m.on_broadcast
            async def later(message): await asyncio.sleep(0)
            with pytest.raises(SSEError, match='async `on_broadcast` hook'): await way(m, adds(m, 5))

    async def test_data_that_can_not_be_sent(self, path, way):
        "The call raises, and the block may go on"
        async with manager(path) as m:
            def block(db):
                with pytest.raises(TypeError, match=r"data\['file'\]"): m.broadcast('row', dict(file=object()))
                return adds(m, 1)(db)
            await way(m, block)
        assert rows(path) == ([1], [1])

    async def test_threads_and_tasks_of_the_block(self, path):
        "What they broadcast while it is open belongs to it; what they broadcast later is an ordinary broadcast"
        async with manager(path) as m, following('queue', m) as c:
            over = asyncio.Event()
            async def task(n):
                m.broadcast('row', n)
                await over.wait()
                return await m.broadcast('later', n)
            with pytest.raises(ZeroDivisionError):
                async with m.transaction():
                    ended = asyncio.create_task(task(1))
                    await in_thread(m.broadcast, 'row', 2)
                    await turns()
                    1/0
            over.set()
            assert await ended == 1
            over.clear()
            async with m.transaction():
                one = asyncio.create_task(task(3))
                await in_thread(m.broadcast, 'row', 4)
                await turns()
            over.set()
            assert await one == 1
            assert sorted([await c.next() for _ in range(4)]) == [('later', 1), ('later', 3), ('row', 3), ('row', 4)]

    async def test_others_are_not_in_it(self, path):
        "What another task broadcasts meanwhile waits for the lock, and comes later"
        async with manager(path) as m, following('queue', m) as c:
            entered, over = asyncio.Event(), asyncio.Event()
            async def block():
                async with m.transaction():
                    m.broadcast('row', 1)
                    entered.set()
                    await over.wait()
            task = asyncio.create_task(block())
            await entered.wait()
            other = m.broadcast('row', 2)
            over.set()
            assert await other == 1
            await task
            assert await c.data(2) == [1, 2]

    async def test_a_broadcast_of_another_manager(self, path, tmp_path):
        "It is not part of the transaction, and blocks of two managers nest"
        async with manager(path) as m, manager(tmp_path/'other.db') as other, following('queue', other) as c:
            with pytest.raises(ZeroDivisionError):
                async with m.transaction():
                    await other.broadcast('row', 1)
                    async with other.transaction():
                        m.broadcast('row', 0)
                        other.broadcast('row', 2)
                    1/0
            assert await c.data(2) == [1, 2]
        assert rows(path) == ([], [])

    async def test_a_disconnect(self, path, way):
        "It belongs to the transaction as well"
        async with manager(path) as m, following('stream', m, user='ann') as ann, following('stream', m, user='bob') as bob:
            with pytest.raises(ZeroDivisionError):
                async with m.transaction(): assert await m.disconnect('bob') == 1/0
            async with m.transaction() as db:
                adds(m, 1)(db)
                assert await m.disconnect('ann') == 0
                adds(m, 2)(db)
            await ann.ends()
            assert ann.seen == [('row', 1)]
            assert await bob.data(2) == [1, 2] and not bob.over


class TestMistakes:
    async def test_a_plain_with_on_the_event_loop(self, path):
        async with manager(path) as m:
            with pytest.raises(SSEError, match='write `async with'):
                with m.transaction(): pass

    async def test_awaited_in_its_own_block(self, path):
        "It would wait for itself"
        async with manager(path) as m:
            with pytest.raises(SSEError, match='await it behind the block'):
                async with m.transaction() as db: await adds(m, 1)(db)
            def in_a_thread():
                with m.transaction() as db: adds(m, 1)(db).result()
            with pytest.raises(SSEError, match='await it behind the block'): await in_thread(in_a_thread)
            async def elsewhere(): return await (await handed)
            handed = asyncio.get_running_loop().create_future()
            waits = asyncio.create_task(elsewhere())
            async with m.transaction() as db: handed.set_result(adds(m, 1)(db)), await turns()
            assert await waits == 0

    async def test_a_block_in_a_block(self, path):
        async with manager(path) as m:
            with pytest.raises(SSEError, match='There is a transaction already'):
                async with m.transaction():
                    async with m.transaction(): pass
            block = m.transaction()
            async with block: pass
            with pytest.raises(SSEError, match='of its own'):
                async with block: pass

    @pytest.mark.parametrize('ends', ['commit', 'rollback', 'end', 'begin', 'method', 'script', 'with'])
    async def test_it_ends_its_transaction(self, path, library, way, ends):
        "That would commit the row without its event: SQLite refuses, and the error says why"
        if library == 'apsw' and ends in ('method', 'script', 'with'): pytest.skip('apsw has it not')
        def block(db):
            adds(m, 1)(db)
            if ends == 'method': db.commit()
            elif ends == 'script': db.executescript('insert into row values(2)')
            elif ends == 'with':
                with db: db.execute('insert into row values(2)')
            else: db.execute(ends)
        async with manager(path, library=library) as m:
            with pytest.raises(Exception, match='not authorized') as e: await way(m, block)
            assert 'The block ends the transaction' in e.value.__notes__[0]
            await way(m, adds(m, 3))
        assert rows(path) == ([3], [3])

    async def test_sqlite_ends_it(self, path, library, way):
        "As a statement with `or rollback` may; the error was caught, and the rest of the block went on"
        def block(db):
            db.execute('create table one(n unique on conflict rollback)')
            for n in 1, 1:
                try: db.execute('insert into one values(?)', (n,))
                except Exception: pass
            m.broadcast('row', 1)
        async with manager(path, library=library) as m:
            with pytest.raises(BackendError, match='SQLite has ended the transaction.*not sent'): await way(m, block)
            await way(m, adds(m, 2))
        assert rows(path) == ([2], [2])

    async def test_used_after_the_block(self, path, library, way):
        "Another block may have the lock by then"
        async with manager(path, library=library) as m:
            for n in range(3):
                db, cursor = await way(m, lambda db: (db, db.execute('select 1 union select 2 union select 3')))
                for use in (lambda: db.execute('insert into row values(0)'), lambda: cursor.execute('insert into row values(0)'), lambda: next(cursor)):
                    with pytest.raises(Exception, match='closed'): use()
                await way(m, adds(m, n))
        assert rows(path) == ([0, 1, 2], [0, 1, 2])

    async def test_what_it_sets_is_gone(self, path, library, way):
        "Neither our own statements nor the next block meet it"
        async with manager(path, library=library) as m:
            def strange(db):
                if library == 'apsw': db.row_trace = lambda cursor, row: dict(row=row)
                else: db.row_factory, db.text_factory = (lambda cursor, row: dict(row=row)), bytes
                db.execute('create temp table secret(n)')
                return adds(m, 1)(db)
            await (await way(m, strange))
            def block(db):
                with pytest.raises(Exception, match='no such table'): db.execute('select * from secret')
                return db.execute('select n from row').fetchall()
            assert await way(m, block) == [(1,)]
        assert rows(path) == ([1], [1])

    async def test_prepared(self, path, library, way):
        "What only works outside of a transaction is for `prepare`"
        async with manager(path, library=library, prepare=lambda db: db.execute('pragma foreign_keys=on')) as m:
            await way(m, lambda db: [db.execute(o) for o in (
                'create table a(id integer primary key)', 'create table b(a references a deferrable initially deferred)')])
            with pytest.raises(BackendError, match='(?i)foreign key.*Nothing was written'):
                await way(m, lambda db: (adds(m, 1)(db), db.execute('insert into b values(7)')))
        assert rows(path) == ([], [])

    @pytest.mark.parametrize('backend', [None, 'redis://localhost:1/0'])
    def test_other_backends(self, backend):
        m = SSEBroadcastManager(backend=backend)
        for call in m.transaction, lambda: m.broadcast_in(None, 'n', 1):
            with pytest.raises(BackendError, match="needs a backend in an SQLite file.*sqlite:///app.db"): call()


class TestTheLock:
    async def test_shorter_than_the_timeout(self, path, library):
        "Blocks wait, and the event loop goes on"
        async with manager(path, library=library) as m:
            with Shell(path) as shell:
                shell.sql('begin immediate')
                async def one():
                    async with m.transaction() as db: adds(m, 1)(db)
                def two():
                    with m.transaction() as db: adds(m, 1)(db)
                tasks = [asyncio.create_task(o) for o in (one(), in_thread(two))]
                await asyncio.sleep(.05)
                assert not any(o.done() for o in tasks)
                shell.sql('commit')
                for o in tasks: await o
        assert rows(path) == ([1, 1], [1, 1])

    async def test_longer_than_the_timeout(self, path, library, way):
        async with manager(path, library=library, timeout=.2) as m:
            with Shell(path) as shell:
                shell.sql('begin immediate')
                with pytest.raises(BackendError, match='was locked for .* was not begun'): await way(m, adds(m, 1))
                shell.sql('commit')
            await way(m, adds(m, 2))
        assert rows(path) == ([2], [2])

    async def test_many_wait(self, path):
        "They do not hold up the one that has the lock, also where no thread of the event loop is free"
        async with manager(path) as m:
            busy = threading.Event()
            threads = [asyncio.create_task(asyncio.to_thread(busy.wait, BOUND)) for _ in range(40)]
            async def block(n):
                async with m.transaction() as db:
                    adds(m, n)(db)
                    await turns(3)
            try:
                async with within('all blocks'): await asyncio.gather(*[block(n) for n in range(100)])
            finally: busy.set()
            await asyncio.gather(*threads)
        assert rows(path) == ([*range(100)], [*range(100)])

    async def test_another_thread_uses_the_connection(self, path, library):
        "The end of the block waits for it: no connection stays in a transaction"
        long = 'with recursive c(x) as (values(1) union all select x+1 from c where x<1000000) select count(*) from c'
        async with manager(path, library=library) as m, following('queue', m) as c:
            for n, fails in enumerate((False, True)):
                begun = threading.Event()
                def other(db, begun=begun):
                    cursor = db.cursor()
                    begun.set()
                    try: return cursor.execute(long).fetchall()
                    except Exception as e: return e  # It may come too late
                try:
                    async with m.transaction() as db:
                        adds(m, n)(db)
                        thread = asyncio.create_task(asyncio.to_thread(other, db))
                        await asyncio.to_thread(begun.wait, BOUND)
                        if fails: 1/0
                except ZeroDivisionError: pass
                await thread
            await m.broadcast('end', None)
            assert [await c.next() for _ in range(2)] == [('row', 0), ('end', None)]
        assert rows(path) == ([0], [0])


class TestAFailedCommit:
    async def test_the_log_is_gone(self, path, library, way):
        async with manager(path, library=library) as m:
            with pytest.raises(BackendError, match='no such table: sse_log.*Nothing was written'):
                await way(m, lambda db: (adds(m, 1)(db), db.execute('drop table sse_log')))
            await way(m, adds(m, 2))
        assert rows(path) == ([2], [2])

    async def test_a_statement_is_under_way(self, path, library, way):
        async with manager(path, library=library) as m:
            def block(db):
                sent.append(adds(m, 1)(db))
                kept.append(db.execute('insert into row values(1), (2) returning n'))
            kept, sent = [], []
            with pytest.raises(BackendError, match='statements in progress.*Nothing was written'): await way(m, block)
            with pytest.raises(BackendError, match='was not sent'): await sent[0]
            await way(m, adds(m, 2))
        assert rows(path) == ([2], [2])

    async def test_replaced_between_blocks(self, path, tmp_path, library, way):
        async with manager(path, library=library) as m:
            await way(m, adds(m, 1))
            with Shell(path) as shell: shell.sql(f"vacuum into '{tmp_path}/backup'")
            await way(m, adds(m, 2))
            for o in path, tmp_path/'app.db-wal', tmp_path/'app.db-shm': o.unlink(missing_ok=True)
            with pytest.raises(BackendError, match='unable to open.*was not begun'): await way(m, adds(m, 3))
            assert not path.exists()
            os.replace(tmp_path/'backup', path)
            await way(m, adds(m, 4))
        assert rows(path) == ([1, 4], [1, 4])

    async def test_deleted_in_a_block(self, path, tmp_path, library, way):
        async with manager(path, library=library) as m:
            def block(db):
                sent.append(adds(m, 1)(db))
                for o in tmp_path.glob('app.db*'): o.unlink()
            sent = []
            with pytest.raises(BackendError, match='was deleted or replaced.*may be lost'): await way(m, block)
            with pytest.raises(BackendError, match='may be lost'): await sent[0]


class TestCancelled:
    async def test_while_it_begins(self, path, library):
        "Whoever waited for the lock does not get it later"
        async with manager(path, library=library) as m:
            async def block():
                async with m.transaction() as db: adds(m, 1)(db)
            with Shell(path) as shell:
                shell.sql('begin immediate')
                tasks = [asyncio.create_task(block()) for _ in range(3)]
                await asyncio.sleep(.02)
                for o in tasks: o.cancel()
                assert all(isinstance(o, asyncio.CancelledError) for o in await asyncio.gather(*tasks, return_exceptions=True))
                shell.sql('commit')
            async with m.transaction() as db: adds(m, 2)(db)
        assert rows(path) == ([2], [2])

    @pytest.mark.parametrize('cancel', ['task', 'scope'])
    async def test_at_any_moment(self, path, library, cancel):
        "Rows and events agree, and the lock is free"
        async with manager(path, library=library) as m:
            async def block(n):
                async with m.transaction() as db:
                    adds(m, n)(db)
                    await asyncio.sleep(.0003)
            async def cancelled(n):
                if cancel == 'scope':
                    with anyio.move_on_after(n%40*.0001): await block(n)
                else:
                    task = asyncio.create_task(block(n))
                    await asyncio.sleep(n%40*.0001)
                    task.cancel()
                    await asyncio.wait({task})
            for n in range(150): await cancelled(n)
            await asyncio.gather(*[cancelled(n) for n in range(150, 300)])
            async with m.transaction() as db: adds(m, 'end')(db)
        found, events = rows(path)
        assert found == events and found[-1] == 'end'


class TestSeveralAtOnce:
    async def test_threads_and_tasks(self, path, library):
        "Half of it in transactions, a fifth of those rolled back: each has its order, nothing is lost, nothing rolled back is seen"
        threads, n = 20, 30
        def work(m, name):
            for i in range(0, n, 2):
                m.broadcast('row', f'{name}:{i}')
                try:
                    with m.transaction() as db:
                        adds(m, f'{name}:{i+1}')(db)
                        if i % 10 == 8: raise ZeroDivisionError
                except ZeroDivisionError: pass
        async def work_on_loop(m, name):
            for i in range(0, n, 2):
                m.broadcast('row', f'{name}:{i}')
                try:
                    async with m.transaction() as db:
                        adds(m, f'{name}:{i+1}')(db)
                        if i % 10 == 8: raise ZeroDivisionError
                except ZeroDivisionError: pass
        wanted = [i for i in range(n) if i % 10 != 9]
        async with managers(path, library=library, timeout=BOUND) as (one, two), following('queue', one) as a, following('stream', two) as b:
            async with one.transaction() as db: db.execute('create table row(n)')
            loop = asyncio.get_running_loop()
            with ThreadPoolExecutor(threads) as pool:
                async with within('all work', 3*BOUND): await asyncio.gather(
                    *[loop.run_in_executor(pool, work, m, f'{k}{t}') for t in range(threads//2) for k, m in dict(a=one, b=two).items()],
                    *[work_on_loop(m, f'{k}loop{t}') for t in range(3) for k, m in dict(a=one, b=two).items()])
            names = [f'{k}{t}' for t in range(threads//2) for k in 'ab'] + [f'{k}loop{t}' for t in range(3) for k in 'ab']
            for c in a, b:
                found = {}
                for o in await c.data(len(wanted)*len(names)):
                    name, _, i = o.partition(':')
                    found.setdefault(name, []).append(int(i))
                assert found == {name: wanted for name in names}
                assert not c.gaps
        there, events = rows(path)
        assert there == [o for o in events if int(o.partition(':')[2]) % 2]


@pytest.mark.skipif(not find_spec('fastlite'), reason='needs fastlite')
class TestFastlite:
    async def test_its_tables(self, path, way):
        "Nothing of it commits early, and the app sees all of it at the commit"
        import fastlite
        @dataclass
        class Todo: id: int; title: str; done: bool = False
        app = fastlite.database(path)
        todos = app.create(Todo, pk='id')
        async with managers(path, 1) as (m,), following('queue', m) as c:
            def block(db):
                assert isinstance(db, fastlite.Database)
                table = db.create(Todo, pk='id')
                for title in 'a', 'b', 'c': m.broadcast('todo', table.insert(Todo(None, title)).title)
                assert table.update(Todo(1, 'A', True)).title == 'A'
                table.upsert(dict(id=2, title='B', done=True))
                table.delete(3)
                with db.conn: table.insert(title='d')
                with pytest.raises(KeyError), db.conn: raise KeyError(table.insert(title='e'))
                table.xtra(done=True)
                assert [o.title for o in table()] == ['A', 'B']
                table.xtra()
                table.insert_all([dict(title=str(n)) for n in range(250)])
                db.t.other.create(id=int, name=str, pk='id')
                db.t.other.insert(name='x')
                db.t.other.transform(rename=dict(name='title'))
                assert todos() == [] and 'other' not in app.t  # From outside
            await way(m, block)
            assert await c.data(3) == ['a', 'b', 'c']
            assert [o.title for o in todos()][:3] == ['A', 'B', 'd'] and len(todos()) == 253 and app.q('select title from other') == [dict(title='x')]
            def fails(db):
                db.t.todo.insert(title='z')
                with pytest.raises(Exception, match='not authorized'): db.commit()
                raise ZeroDivisionError
            with pytest.raises(ZeroDivisionError): await way(m, fails)
            assert len(todos()) == 253
            kept = await way(m, lambda db: (db, db.t.todo))
            for use in (lambda: kept[0].t.todo(), lambda: kept[1].insert(title='late')):
                with pytest.raises(Exception, match='closed'): use()
        app.close()

    def test_an_app_with_sqlite3(self, path):
        "The library follows the one with which the process opens the file, though fastlite is imported"
        code = ('import sqlite3, sys, fastlite\nfrom cjm_fasthtml_sse.core import SSEBroadcastManager\n'
                'c = sqlite3.connect(sys.argv[1])\nc.execute("pragma journal_mode=wal").fetchall()\nc.execute("create table row(n)")\n'
                'm = SSEBroadcastManager(backend="sqlite:///"+sys.argv[1])\nwith m.transaction() as db:\n'
                '    assert isinstance(db, sqlite3.Connection), db\n    db.execute("insert into row values(1)"), m.broadcast("row", 1)\n'
                'assert c.execute("select * from row").fetchall() == [(1,)]')
        subprocess.run([sys.executable, '-c', code, path], check=True, timeout=BOUND)
        assert rows(path) == ([1], [1])


class TestInATransactionOfTheApp:
    @contextmanager
    def connection(self, path, kind):
        if kind == 'sqlite3': c = sqlite3.connect(path, timeout=BOUND)
        else:
            import apsw
            c = apsw.Connection(str(path))
            c.set_busy_timeout(int(1000*BOUND))
            if kind == 'fastlite':
                import fastlite
                c = fastlite.Database(c)
        try: yield c
        finally: c.close()

    @pytest.mark.parametrize('kind', ['sqlite3', pytest.param('apsw', marks=needs_apsw),
        pytest.param('fastlite', marks=pytest.mark.skipif(not find_spec('fastlite'), reason='needs fastlite'))])
    async def test_the_app_commits_or_rolls_back(self, path, kind):
        library = 'sqlite3' if kind == 'sqlite3' else 'apsw'
        async with manager(path, library=library) as m, following('queue', m) as c:
            def use():
                with self.connection(path, kind) as connection:
                    if kind == 'sqlite3': connection.row_factory = sqlite3.Row
                    for n, end in enumerate(('rollback', 'commit')):
                        connection.execute('begin immediate')
                        connection.execute('insert into row values(?)', (n,))
                        m.broadcast_in(connection, 'row', n, key='k')
                        connection.execute(end)
                    if kind == 'sqlite3':  # It begins by itself
                        m.broadcast_in(connection, 'row', 2)
                        connection.execute('insert into row values(2)')
                        assert connection.in_transaction
                        connection.commit()
            await in_thread(use)
            assert await c.data(1 + (kind == 'sqlite3')) == [1, 2][:1 + (kind == 'sqlite3')]
            await m.broadcast('end', None)
            assert await c.next() == ('end', None)
        assert rows(path) == ([1, 2][:1 + (kind == 'sqlite3')],)*2

    async def test_outside_of_a_transaction(self, path):
        "It is sent now"
        async with manager(path, library='sqlite3') as m, following('queue', m) as c:
            with self.connection(path, 'sqlite3') as connection:
                connection.isolation_level = None
                m.broadcast_in(connection, 'row', 1)
                assert await c.next() == ('row', 1)

    def test_without_tables(self, path):
        "They are made in that transaction"
        m = SSEBroadcastManager(backend=SQLiteBackend(path, library='sqlite3'))
        with self.connection(path, 'sqlite3') as connection:
            connection.execute('create table row(n)')
            m.broadcast_in(connection, 'row', 1)
            connection.execute('insert into row values(1)')
            connection.commit()
        assert rows(path) == ([1], [1])

    async def test_another_file(self, path, tmp_path):
        async with manager(path, library='sqlite3') as m:
            for other, what in (':memory:', 'has no file open'), (tmp_path/'other.db', 'other.db open'):
                with self.connection(other, 'sqlite3') as connection:
                    with pytest.raises(BackendError, match=what): m.broadcast_in(connection, 'row', 1)
                    connection.execute('attach ? as app', (str(path),))
                    with pytest.raises(BackendError, match='attached file'): m.broadcast_in(connection, 'row', 1)
            for bad in None, str(path), object():
                with pytest.raises(TypeError, match='`connection` must be'): m.broadcast_in(bad, 'row', 1)

    @needs_apsw
    async def test_the_other_library(self, path):
        "Two of them on one file would destroy it"
        async with manager(path, library='apsw') as m:
            code = 'two copies of SQLite'
            class Connection(sqlite3.Connection):
                "Plays one that has the file open, as that must not happen here"
                def cursor(self): return Cursor(self)
            class Cursor(sqlite3.Cursor):
                def execute(self, sql, args=()): return super().execute('select 0, ?, ?', ('main', str(path)))
            with pytest.raises(BackendError, match=code): m.broadcast_in(sqlite3.connect(':memory:', factory=Connection), 'row', 1)

    async def test_hooks_and_data(self, path):
        async with manager(path, library='sqlite3') as m, following('queue', m) as c:
            m.on_broadcast(lambda message: message | dict(data=message['data']+1) if message['data'] == 1 else None)
            with self.connection(path, 'sqlite3') as connection:
                with pytest.raises(TypeError): m.broadcast_in(connection, 'row', object())
                with pytest.raises(ValueError, match='type'): m.broadcast_in(connection, '', 1)
                assert not connection.in_transaction
                m.broadcast_in(connection, 'row', 1)
                connection.commit()
            assert await c.next() == ('row', 2)
