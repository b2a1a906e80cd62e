"""Tables that announce themselves: each change of a watched table is an event in every process, whoever makes it

No change is without an event that comes with it or later, and what was rolled back is no event. Who writes is a `Shell`, another
process that knows nothing of the library.
"""
import sqlite3
import subprocess
from contextlib import asynccontextmanager
from itertools import count

import pytest

from tests.contract.support import GAP, eventually, following
from tests.contract.test_over_sqlite import Shell, _library, _path, in_thread, managers  # noqa: F401 - two are fixtures

MANY = 'table:todos', dict(id=None, change='many')
LIMIT = 100  # Rows that are announced one by one


def connection(path, library='sqlite3'):
    "What an app has"
    if library == 'sqlite3': return sqlite3.connect(path, isolation_level=None)
    import apsw
    return apsw.Connection(str(path))


@asynccontextmanager
async def watching(path, library=None, n=2, table='todos', sql='create table todos(id integer primary key, title text)', **kw):
    "A shell, and managers of which the first has called `watch`"
    with Shell(path) as shell:
        shell.sql(sql)
        async with managers(path, n, library=library) as ms:
            db = connection(path, library or 'sqlite3')
            ms[0].watch(db, table, **kw)
            db.close()
            for m in ms: await m.open()
            yield shell, ms


class TestWatched:
    async def test_a_shell_writes(self, path, library):
        "It knows nothing of the library. All processes announce it, under one id, and a rollback is no event"
        async with watching(path, library) as (shell, (one, two)), following('stream', one, 'table:todos') as a, following('stream', two, 'table:todos') as b:
            for sql in "insert into todos values(7, 'milk')", 'begin', 'delete from todos', 'rollback', 'update todos set id=8': shell.sql(sql)
            for c in a, b: assert await c.read(3) == [('table:todos', dict(id=id, change=o)) for id, o in ((7, 'insert'), (7, 'delete'), (8, 'insert'))]
            assert [e.id for e in a.messages] == [e.id for e in b.messages]

    @pytest.mark.skipif(not subprocess.run(['which', 'sqlite3'], capture_output=True).stdout, reason='needs the shell of SQLite')
    async def test_the_shell_of_sqlite(self, path):
        async with watching(path) as (_, (one, _)), following('stream', one, 'table:todos') as c:
            await in_thread(lambda: subprocess.run(['sqlite3', '-cmd', '.timeout 20000', path], input="insert into todos values(7, 'milk');", text=True, check=True))
            assert await c.next() == ('table:todos', dict(id=7, change='insert'))

    async def test_private_in_all_processes(self, path):
        "Also in one that has not called `watch`, and after a restart; with `private=False` in the process that says so"
        checks = count()
        async def check(m, public):
            "What a new stream gets of what comes, and of what came"
            await m.open()
            n = next(checks)
            await eventually(lambda: [o['type'] for o in m.get_history()].count('end') == n, 'it has what the others sent')
            async with following('stream', m) as everything, following('stream', m, 'table:*') as tables, following('stream', m, ['table:todos', 'end']) as todos:
                shell.sql("insert into todos(title) values('milk')")
                assert (await todos.next())[0] == 'table:todos'
                await m.broadcast('end', 0)
                assert [o for o, _ in await everything.read(1+public)] == ['table:todos']*public+['end']
                assert (await todos.next())[0] == 'end'
                assert [o for o, _ in tables.seen] == ['table:todos']*public
            late = [o['type'] for o in m.get_history()]
            assert ('table:todos' in late) == bool(public) and 'table:todos' in [o['type'] for o in m.get_history(private=True)]
        async with watching(path) as (shell, (one, two)):
            for m in one, two: await check(m, 0)
            async with managers(path, 1) as (later,): await check(later, 0)
            db = connection(path)
            one.watch(db, 'todos', private=False)
            await check(one, 1), await check(two, 0)
            one.watch(db, 'todos')
            await check(one, 0)
            db.close()

    async def test_a_large_transaction(self, path, library):
        "Single events at first, and one for all, though two processes could write it"
        async with watching(path, library) as (shell, (one, two)), following('queue', one, 'table:todos') as a, following('queue', two, 'table:todos') as b:
            fill = "with n as (select value from generate_series(1, 5000)) insert into todos select value, value from n".replace(
                'generate_series(1, 5000)', "json_each('["+','.join(map(str, range(5000)))+"]')")
            shell.sql(fill)
            for c in a, b:
                assert await c.read(LIMIT) == [('table:todos', dict(id=n, change='insert')) for n in range(LIMIT)]
                assert await c.next() == MANY
            shell.sql("update todos set title='x' where id=7")
            for c in a, b: assert await c.next() == ('table:todos', dict(id=7, change='update'))

    async def test_a_crash_before_it_is_announced(self, path):
        "The file says that it is due, and the next process that starts writes it; another one does not"
        async with watching(path, n=1): pass
        with Shell(path) as shell:
            shell.sql('begin')
            for n in range(LIMIT+1): shell.sql(f'insert into todos values({n}, 0)')
            shell.sql('commit')
        async with managers(path) as ms:
            for m in ms: await m.open()
            def said(m): return [o['data'] for o in m.get_history(private=True) if o['type'] == 'table:todos']
            for m in ms: await eventually(lambda m=m: said(m)[-1:] == [MANY[1]], 'all know')
            assert [o['change'] for o in said(ms[0])].count('many') == 1

    async def test_renamed_and_dropped(self, path):
        "What is watched is the name: the table that has left it says nothing, and the next that gets it is watched"
        async with watching(path) as (shell, (one, _)), following('stream', one, ['table:todos', 'table:tasks']) as c:
            shell.sql('alter table todos rename to tasks')
            await eventually(lambda: not shell.sql("select * from sqlite_master where type='trigger'"), 'they are gone')
            assert await c.next() == MANY
            shell.sql('insert into tasks(title) values(1)')
            shell.sql('create table todos(id integer primary key)')
            assert await c.next() == MANY
            shell.sql('insert into todos values(7)')
            assert await c.next() == ('table:todos', dict(id=7, change='insert'))
            shell.sql('drop table todos')
            shell.sql('create table todos(id text primary key)')
            assert await c.next() == MANY
            shell.sql("insert into todos values('seven')")
            assert await c.next() == ('table:todos', dict(id='seven', change='insert'))

    async def test_an_index_that_comes_later(self, path):
        "From then on a row may be replaced by another one"
        async with watching(path) as (shell, (one, _)), following('stream', one, 'table:todos') as c:
            shell.sql('create unique index title on todos(title)')
            assert await c.next() == MANY
            for n in 1, 2: shell.sql(f'insert or replace into todos values({n}, 0)')
            assert await c.data(3) == [dict(id=1, change='insert'), dict(id=1, change='update'), dict(id=2, change='insert')]

    async def test_a_backup_is_restored(self, path, tmp_path):
        async with watching(path) as (shell, (one, _)), following('stream', one, 'table:todos') as c:
            shell.sql("insert into todos values(1, 'milk')")
            shell.sql(f"vacuum into '{tmp_path}/backup'")
            assert await c.next() == ('table:todos', dict(id=1, change='insert'))
            shell.sql('alter table todos rename to other')
            assert await c.next() == MANY
            shell.run(f"restore('{tmp_path}/backup')")
            assert await c.next() == (GAP, None)
            shell.sql('delete from todos')
            assert await c.next() == ('table:todos', dict(id=1, change='delete'))

    async def test_a_connection_that_can_not_write(self, path, library):
        "It lacks what a unique index needs: `watch` refuses, and leaves all as it was"
        with Shell(path) as shell:
            for sql in 'pragma journal_mode=wal', 'create table todos(id integer primary key, title text)', 'create table other(id)': shell.sql(sql)
            shell.run("c.create_collation('by_sound', lambda a, b: (a > b)-(a < b))")
            shell.sql('create unique index title on todos(title collate by_sound)')
            async with managers(path, 1, library=library) as (m,):
                db = connection(path, library)
                with pytest.raises(ValueError, match='no such collation sequence: by_sound'): m.watch(db, 'todos')
                assert not shell.sql("select * from sqlite_master where type='trigger'")
                shell.sql('drop index title')
                for _ in range(10):
                    m.watch(db, 'other')
                    db.execute('select * from other').fetchall()
                    m.unwatch(db, 'other')
                    db.execute('select * from other').fetchall()
                db.close()


TASKS = 'create table todos(id integer primary key, user, title text default 0)'


class TestValues:
    "Whose row it was, and whose it is"
    async def test_values_before_and_behind(self, path, library):
        "In all processes, of all kinds; what a rollback takes back is in none"
        async with watching(path, library, sql=TASKS, columns=['user']) as (shell, (one, two)), \
                following('stream', one, 'table:todos') as a, following('queue', two, 'table:todos') as b:
            for sql in ("insert into todos(id, user) values(7, 'ann')", 'begin', "update todos set user='eve'", 'rollback', "update todos set user='bob', title=1",
                        'update todos set user=null', 'update todos set user=1.5, id=8', "insert or replace into todos values(8, '1', 2)", 'delete from todos'): shell.sql(sql)
            for c in a, b: assert await c.data(8) == [
                dict(id=7, change='insert', new=dict(user='ann')), dict(id=7, change='update', old=dict(user='ann'), new=dict(user='bob')),
                dict(id=7, change='update', old=dict(user='bob'), new=dict(user=None)),
                dict(id=7, change='delete', old=dict(user=None)), dict(id=8, change='insert', new=dict(user=1.5)),
                dict(id=8, change='update', old=dict(user=1.5)), dict(id=8, change='update', new=dict(user='1')), dict(id=8, change='delete', old=dict(user='1'))]

    async def test_what_json_can_not_carry(self, path, library):
        async with watching(path, library, sql=TASKS, columns=['user']) as (shell, (one, _)), following('stream', one, 'table:todos') as c:
            for value in "x'00'", '9e999', '123456789012345678.0':
                shell.sql(f'insert into todos(user) values({value})')
                assert await c.next() == MANY

    async def test_more_columns_join(self, path, library):
        "By another process, which says `many`; after a restart and where the table was made anew, it is all as before"
        async def check(m, **values):
            async with following('queue', m, 'table:todos') as c:
                shell.sql('insert into todos(user) values(1)')
                while (data := (await c.next())[1]) == MANY[1]: pass  # It may still come
                assert data['change'] == 'insert' and data.get('new', {}) == values
        async with watching(path, library, sql=TASKS, columns=['user']) as (shell, (one, two)):
            db = connection(path, library)
            async with following('queue', one, 'table:todos') as c:
                two.watch(db, 'todos', columns=('title',))
                assert await c.next() == MANY
            for columns in [], ['title'], ['user']: one.watch(db, 'todos', columns=columns)
            await check(one, user=1, title='0')
            async with managers(path, 1, library=library) as (later,): await check(later, user=1, title='0')
            for sql in 'drop table todos', 'create table todos(id integer primary key, user)': shell.sql(sql)
            await eventually(lambda: shell.sql("select * from sqlite_master where type='trigger'"), 'they are made again')
            await check(one, user=1)
            with pytest.raises(ValueError, match="no column 'titel'. Did you mean 'title'"):
                shell.sql('alter table todos add column title')
                one.watch(db, 'todos', columns=['titel'])
            for bad in 'user', None, [None], ['rowid'], {'user'}:
                with pytest.raises(ValueError, match='column'): one.watch(db, 'todos', columns=bad)
            await eventually(lambda: 'title' in str(shell.sql("select sql from sqlite_master where type='trigger'")), 'made again')
            one.unwatch(db, 'todos')
            one.watch(db, 'todos')
            await check(one)
            db.close()

    async def test_generated_and_many(self, path, library):
        "A column that is computed; and a large transaction has no values at its end"
        sql = 'create table todos(id integer primary key, user text, owner as (lower(user)))'
        async with watching(path, library, sql=sql, columns=['owner']) as (shell, (one, _)), following('stream', one, 'table:todos') as c:
            shell.sql("insert into todos(user) values('ANN')")
            assert await c.data(1) == [dict(id=1, change='insert', new=dict(owner='ann'))]
            shell.sql(f"insert into todos(user) select 'bob' from json_each('{[*range(LIMIT)]}')")
            found = await c.data(LIMIT-1)
            assert [o['new'] for o in found] == [dict(owner='bob')]*(LIMIT-1)
            assert await c.next() == MANY
