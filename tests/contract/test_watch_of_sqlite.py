"""Tables of SQLite that announce themselves: indices, collations, columns without a type, and its own shell

What each store must do is in `test_watched_tables`.
"""
import subprocess

import pytest

from tests.contract.stores import SQLite, Shell, connection, in_thread, managers
from tests.contract.support import GAP, eventually, following
from tests.contract import test_watched_tables as watched_tables
from tests.contract.test_watched_tables import LIMIT, MANY


def watching(path, library=None, *args, **kw): return watched_tables.watching(SQLite(path, library), *args, **kw)


class TestWatched:
    @pytest.mark.skipif(not subprocess.run(['which', 'sqlite3'], capture_output=True).stdout, reason='needs the shell of SQLite')
    async def test_the_shell_of_sqlite(self, path):
        async with watching(path) as (_, (one, _)), following('stream', one, 'table:todos') as c:
            await in_thread(lambda: subprocess.run(['sqlite3', '-cmd', '.timeout 20000', path], input="insert into todos values(7, 'milk');", text=True, check=True))
            assert await c.next() == ('table:todos', dict(id=7, change='insert'))

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
