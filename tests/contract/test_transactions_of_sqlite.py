"""Transactions and read transactions in an SQLite file: what its lock, its libraries and its commits do to them

What a block promises over each store is in `test_one_commit` and `test_reading`. Rows are in `line`, and events have the type `row`.
"""
import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
from fasthtml.common import Li

from cjm_fasthtml_sse.backends.sqlite import SQLiteBackend
from cjm_fasthtml_sse.core import BackendError, SSEBroadcastManager
from tests.contract import test_one_commit as one_commit
from tests.contract.stores import SQLite, Shell, in_thread, managers, needs_apsw
from tests.contract.support import BOUND, GAP, Site, eventually, following, listening
from tests.contract.test_one_commit import adds
from tests.contract.test_over_sqlite import opens_and_reads
from tests.contract.test_reading import connected, numbers


def manager(path, library=None, **kw): return one_commit.manager(SQLite(path, library), **kw)

def rows(path): return one_commit.rows(SQLite(path))


class TestABlock:
    async def test_the_tables_are_gone(self, path, way):
        "As in a backup that was made before the library was used: they are made anew in the transaction"
        async with manager(path) as m:
            with Shell(path) as shell:
                for name, in shell.sql("select name from sqlite_master where type='table' and name like 'sse%'"): shell.sql(f'drop table {name}')
            await (await way(m, adds(m, 1)))
        assert rows(path) == ([1], [1])

    @pytest.mark.parametrize('ends', ['commit', 'rollback', 'end', 'begin', 'method', 'script', 'with'])
    async def test_it_ends_its_transaction(self, path, library, way, ends):
        "That would commit the row without its event: SQLite refuses, and the error says why"
        if library == 'apsw' and ends in ('method', 'script', 'with'): pytest.skip('apsw has it not')
        def block(db):
            adds(m, 1)(db)
            if ends == 'method': db.commit()
            elif ends == 'script': db.executescript('insert into line values(2)')
            elif ends == 'with':
                with db: db.execute('insert into line values(2)')
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
                return db.execute('select n from line').fetchall()
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
                await opens_and_reads(m)
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
                kept.append(db.execute('insert into line values(1), (2) returning n'))
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
                await opens_and_reads(m)
                for o in tasks: o.cancel()
                assert all(isinstance(o, asyncio.CancelledError) for o in await asyncio.gather(*tasks, return_exceptions=True))
                shell.sql('commit')
            async with m.transaction() as db: adds(m, 2)(db)
        assert rows(path) == ([2], [2])


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
                'c = sqlite3.connect(sys.argv[1])\nc.execute("pragma journal_mode=wal").fetchall()\nc.execute("create table line(n)")\n'
                'm = SSEBroadcastManager(backend="sqlite:///"+sys.argv[1])\nwith m.transaction() as db:\n'
                '    assert isinstance(db, sqlite3.Connection), db\n    db.execute("insert into line values(1)"), m.broadcast("row", 1)\n'
                'assert c.execute("select * from line").fetchall() == [(1,)]')
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
                        connection.execute('insert into line values(?)', (n,))
                        m.broadcast_in(connection, 'row', n, key='k')
                        connection.execute(end)
                    if kind == 'sqlite3':  # It begins by itself
                        m.broadcast_in(connection, 'row', 2)
                        connection.execute('insert into line values(2)')
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
            connection.execute('create table line(n)')
            m.broadcast_in(connection, 'row', 1)
            connection.execute('insert into line values(1)')
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


@pytest.fixture
def shell(path):
    with Shell(path) as shell: yield shell


@pytest.fixture
async def sse(path, shell, library):
    async with managers(path, 1, library=library) as (m,):
        await m.open()
        shell.sql('create table number(n integer primary key)')
        yield m


def moves_all(shell):
    "Whether a checkpoint moves all that was written into the file, as nobody reads what was before"
    (_,frames,moved), = shell.sql('pragma wal_checkpoint(passive)')
    return frames == moved

class TestReading:
    async def test_a_file_restored_meanwhile(self, sse, shell, tmp_path):
        "The page has seen what is not there any more: a gap"
        shell.write('number', 1)
        shell.sql(f"vacuum into '{tmp_path}/backup'")
        shell.write('number', 2)
        def drawn():
            with sse.reading(): return connected()
        el = await in_thread(drawn)
        shell.run(f"restore('{tmp_path}/backup')")
        shell.write('number', 3)
        async with listening(Site(sse).app, **{'SSE-After': str(el.attrs['data-sse-cursor'])}) as c: assert await c.next() == (GAP, None)

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
        shell.write('number', 1)
        assert not moves_all(shell), 'somebody reads'
        task.cancel()
        await asyncio.wait({task})
        for _ in range(20):
            task = asyncio.create_task(block(asyncio.Event()))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
        await eventually(lambda: moves_all(shell), 'nobody reads any more')

    async def test_rows_that_nobody_read(self, sse, shell):
        "A cursor that the app has kept holds nothing"
        shell.write('number', *range(100))
        async with sse.reading() as db:
            kept = iter(db.execute('select n from number'))
            assert next(kept) == (0,)
        shell.write('number', 100)
        await eventually(lambda: moves_all(shell), 'nobody reads any more')
        with pytest.raises(Exception, match='[Cc]losed'): next(kept)

    async def test_deleted_file(self, sse, path, tmp_path):
        "Is not made again"
        for o in tmp_path.glob('app.db*'): o.unlink()
        with pytest.raises(BackendError, match='app.db'):
            async with sse.reading(): pass
        assert not path.exists()

    async def test_a_file_restored_at_a_snapshot(self, sse, shell, tmp_path):
        "Where the state stands is not known any more: it is read again"
        shell.write('number', 1)
        shell.sql(f"vacuum into '{tmp_path}/backup'")
        shell.write('number', 2)
        calls = []
        def state(db):
            calls.append(numbers(db))
            if len(calls)==1:
                shell.run(f"restore('{tmp_path}/backup')")
                shell.write('number', 3)
            return [Li(n) for n in calls[-1]]
        async with listening(Site(sse, snapshot=state).app) as c:
            await eventually(lambda: '<li>1</li><li>3</li>' in [e.data for e in c.messages], lambda: c.messages)
