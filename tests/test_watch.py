"""Tables that announce themselves: no change is without an event, whoever writes, and in which way

A copy of a table that is kept by the events alone is equal to the table. A random program writes: with conflicts, rollbacks, keys
that change, keys of all kinds, and triggers of the app. Where the events have the values of some columns, those before and behind each commit
are among them. Here the databases are in memory; what processes do with a file comes
behind.
"""
import json
import random
import sqlite3
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cjm_fasthtml_sse.backends import sqlite_triggers
from cjm_fasthtml_sse.backends.sqlite_log import LogTables, Position
from cjm_fasthtml_sse.backends.sqlite_triggers import quote, read_shape
from cjm_fasthtml_sse.backends.sqlite_uninstall import uninstall
from cjm_fasthtml_sse.backends.sqlite_watch import TableWatcher, WatchTable
from cjm_fasthtml_sse.core import BackendError, SSEBroadcastManager
from cjm_fasthtml_sse.engine.patterns import segment
from tests.contract.support import eventually, following
from tests.contract.stores import Played, Shell, in_thread, managers, needs_apsw
from tests.contract.stores import connection
from tests.contract.test_watch_of_sqlite import watching
from tests.contract.test_watched_tables import LIMIT, MANY

needs_fastlite = pytest.mark.skipif(not find_spec('fastlite'), reason='needs fastlite')


def in_memory(library):
    if library == 'sqlite3': return sqlite3.connect(':memory:', isolation_level=None)
    import apsw
    return apsw.Connection(':memory:')


def suppressed(db, sql):
    "A conflict, or no transaction, leads to an error"
    with suppress(Exception): db.execute(sql)


class Copy:
    "A watched table, and a copy of it that is kept by its events"
    def __init__(self, db, table, columns=()):
        self.db, self.table, self.tables = db, table, LogTables()
        self.tables.create(db)
        self.watched, self.watcher = WatchTable(self.tables), TableWatcher('memory', self.tables)
        self.key = read_shape(db, table).key
        self.at, self.events, self.said = Position(), [], []
        self.watch(columns)

    def watch(self, columns):
        self.watched.watch(self.db, self.table, columns)
        self.watched.check(self.db, self.table)
        self.follow()
        self.rows, self.values = self.read(), self.read_values()

    def read_values(self):
        "Those of the columns that the events have, by key"
        columns = self.watched.columns(self.db, self.table)
        found = self.db.execute(f"select {', '.join(map(quote, [*self.key, *columns]))} from {quote(self.table)}").fetchall()
        return {repr(o[:len(self.key)]): dict(zip(columns, o[len(self.key):], strict=True)) for o in found}

    def read(self, id=None):
        "Rows by their keys: all, or one"
        key = ', '.join(map(quote, self.key))
        where = ' and '.join(f'{quote(c)} is ? collate binary' for c in self.key) if id is not None else 'true'
        args = id if isinstance(id, list) else [] if id is None else [id]
        found = self.db.execute(f'select {key}, * from {quote(self.table)} where {where}', args).fetchall()
        return {repr(o[:len(self.key)]): repr(o[len(self.key):]) for o in found}

    def follow(self):
        "Read what was announced, and nothing else"
        self.said = []
        for _ in range(2):
            for row in self.tables.read(self.db, self.at, limit=10_000):
                self.at = self.at.after(row)
                data = json.loads(row.text)['data']
                self.events.append((data['id'], data['change']))
                self.said.append(data)
                if data['change'] == 'many': self.rows = self.read()
                else:
                    id = data['id'] if isinstance(data['id'], list) else [data['id']]
                    self.rows.pop(repr(tuple(id)), None)
                    self.rows.update(self.read(id))
            self.db.execute('update sse_watch set at=0')
            if not self.watcher(self.db): return

    def check(self):
        rows, values = dict(self.rows), self.values
        self.follow()
        self.values = self.read_values()
        assert self.rows == self.read()
        if any(o['change'] == 'many' for o in self.said): return
        for data in self.said: assert data['change'] != 'insert' or 'old' not in data
        for key in rows.keys() | self.rows.keys():
            if rows.get(key) == self.rows.get(key): continue
            said = [o[name] for o in self.said if key == repr(tuple(o['id'] if isinstance(o['id'], list) else [o['id']]))
                    for name in ('old', 'new') if name in o]
            for there in (values, self.values): assert not there.get(key) or repr(there[key]) in map(repr, said), (key, said)


TABLES = dict(
    key='create table t(a integer primary key, b text unique, c)',
    several='create table t(a integer primary key, b, c text collate nocase not null default 1, unique(b, c), unique(c))',
    text_key='create table t(a text primary key collate nocase, b unique, c)',
    any_key='create table t(a primary key, b int unique on conflict replace, c) ',
    without_rowid="create table t(a, b collate nocase, c text unique not null default 'a', primary key(a, b)) without rowid",
    no_key='create table t(a unique, b, c text)',
    hidden='create table t(a primary key, rowid, b, c unique)',
    generated='create table t(a integer primary key, b text, c, d as (lower(b)) unique, e as (a+1) unique)',
    partial='create table t(a integer primary key, b, c); create unique index some on t(b) where c',
    expression='create table t(a integer primary key, b text, c); create unique index lower on t(lower(b))',
    collation='create table t(a integer primary key, b collate nocase, c); create unique index exact on t(b collate binary)',
    descending='create table t(a integer primary key desc, b unique, c)',
    child='create table t(a integer primary key, b unique references t(a) on delete cascade on update cascade, c unique)',
    app='''create table t(a integer primary key, b unique, c);
        create trigger one after insert on t begin update t set c=1 where b=new.b; end;
        create trigger two after update on t when new.c=2 begin update or replace t set b=1 where a=new.a; end;
        create trigger three before insert on t when new.c=1 begin delete from t where a=new.a+1; end''',
)
SOME = '1', '2', '3', "'a'", "'A'"
VALUES = st.sampled_from([*SOME, *SOME, 'null', "'1'", '1.5', "x'00'", '-1'])
ON_CONFLICT = st.sampled_from(['', *['or replace']*4, 'or ignore', 'or fail', 'or rollback'])
UPSERT = st.sampled_from([*['']*4, 'on conflict do nothing', 'on conflict do update set b=excluded.b'])
COLUMN = st.sampled_from(['a', 'b', 'c', 'b', 'c', '_rowid_'])
ENDS = 'begin', 'commit', 'rollback', 'savepoint s', 'rollback to s', 'release s'


@st.composite
def statements(draw):
    "One statement"
    kind = draw(st.sampled_from(['insert']*5+['update']*4+['delete', 'end']))
    values = [draw(VALUES) for _ in 'abcd']
    if kind == 'insert':
        upsert, extra = draw(UPSERT), draw(st.sampled_from(['', '', '', '_rowid_, ']))
        rows = [f'({extra and "1, "}{", ".join(values[i:]+values[:i][:-1])})' for i in range(1, draw(st.integers(2, 3)))]
        return f"insert {'' if upsert else draw(ON_CONFLICT)} into t({extra}a, b, c) values {', '.join(rows)} {upsert}"
    where = draw(st.sampled_from(['true', 'a=1', f'{draw(COLUMN)}={values[0]}']))
    if kind == 'update': return f'update {draw(ON_CONFLICT)} t set {draw(COLUMN)}={values[1]} where {where}'
    return f'delete from t where {where}' if kind == 'delete' else draw(st.sampled_from(ENDS))


@pytest.mark.parametrize('library', ['sqlite3', pytest.param('apsw', marks=needs_apsw)])
@pytest.mark.parametrize('name', TABLES)
class TestCopy:
    @settings(max_examples=40, deadline=None)
    @given(program=st.lists(statements(), max_size=25), limit=st.sampled_from([2, 100]), recursive=st.booleans(),
           columns=st.lists(st.sampled_from('abc'), unique=True), more=st.integers(0, 50))
    @example(program=['update or replace t set a=2 where a=1', "insert or replace into t(a, b, c) values (2, 'z', 'z')"],
             limit=100, recursive=False, columns=['b', 'c'], more=50)
    def test_a_copy_kept_by_events(self, name, library, program, limit, recursive, columns, more):
        "It is equal to the table after each transaction, and the values that its events have are those before and behind it"
        db = in_memory(library)
        sqlite_triggers.LIMIT, before = limit, sqlite_triggers.LIMIT
        try:
            for sql in TABLES[name].split('; ' if name != 'app' else ';\n'): db.execute(sql)
            db.execute(f'pragma recursive_triggers={recursive}')
            db.execute('pragma foreign_keys=on')
            for row in "(1, 'x', 'x')", "(2, 'y', 'y')", "('z', 'z', 'z')": suppressed(db, f'insert into t(a, b, c) values {row}')
            copy = Copy(db, 't', columns)
            for n, sql in enumerate(program):
                suppressed(db, sql)
                if not db.in_transaction: copy.check()
                if not db.in_transaction and n == more: copy.watch(['d', 'b'] if name == 'generated' else ['b'])
            while db.in_transaction: db.execute('commit')
            copy.check()
        finally:
            sqlite_triggers.LIMIT = before
            db.close()


class TestStatements:
    "What the app sees of its own writing"
    @pytest.mark.parametrize('library', ['sqlite3', pytest.param('apsw', marks=needs_apsw)])
    def test_results_are_as_without_triggers(self, library):
        found = []
        for is_watched in (False, True):
            db = in_memory(library)
            db.execute('create table t(id integer primary key, name text unique, n int default 0)')
            if is_watched: Copy(db, 't')
            found.append([])
            for sql in ("insert into t(name) values('a'), ('b') returning *", 'update t set n=n+1 returning id',
                        "insert or replace into t values(7, 'a', 3) returning id, n", "insert or ignore into t(name) values('a') returning *",
                        "insert into t(name) values('b') on conflict(name) do update set n=n+1 returning *", 'delete from t returning id'):
                found[-1].append((db.execute(sql).fetchall(), *db.execute('select changes(), last_insert_rowid()').fetchall()))
            db.close()
        assert found[0] == found[1]

    def test_an_error_is_as_without_triggers(self):
        db = in_memory('sqlite3')
        db.execute('create table t(id integer primary key, name text not null check(name<>\'bad\'))')
        copy = Copy(db, 't')
        for value, match in (('null', 'NOT NULL'), ("'bad'", 'CHECK')):
            with pytest.raises(sqlite3.IntegrityError, match=match): db.execute(f'insert into t(name) values({value})')
        copy.check()
        assert copy.events == []

    def test_no_scan_of_the_table(self):
        "Rows that a new one may replace are looked up by the index"
        db = in_memory('sqlite3')
        for sql in TABLES['several'], TABLES['collation'].replace(' t(', ' u(').replace('exact on t', 'exact on u'):
            for part in sql.split('; '): db.execute(part)
        for table in 'tu':
            Copy(db, table)
            plan = db.execute(f'explain query plan insert or replace into {table}(a, b, c) values(1, 2, 3)').fetchall()
            plan += db.execute(f'explain query plan update or replace {table} set b=4 where a=1').fetchall()
            assert plan and not [o for *_, o in plan if o.startswith('SCAN') and 'CONSTANT' not in o]

    def test_triggers_of_a_newer_version(self):
        "They stay as they are: two versions that run side by side do not undo each other's"
        db = in_memory('sqlite3')
        db.execute('create table t(id integer primary key)')
        copy = Copy(db, 't')
        (name, sql), *_ = db.execute("select name, sql from sqlite_master where type='trigger'").fetchall()
        db.execute(f'drop trigger {quote(name)}')
        assert copy.watched.restore(db) == ['t']
        db.execute(f'drop trigger {quote(name)}')
        db.execute(sql.replace(f'/* {sqlite_triggers.TRIGGERS} */', '/* 99 */ select 1;'))
        assert copy.watched.restore(db) == []


def warnings(caplog): return [r.getMessage() for r in caplog.records if r.name.endswith('sqlite_watch')]


class TestProcesses:
    async def test_writers_that_go_on_and_on(self, path):
        "A transaction has its first rows announced at most, however fast the next one comes; and the last change is covered"
        async with watching(path) as (shell, (_, two)), following('queue', two, 'table:todos') as c:
            for n in range(20): shell.sql(f"insert or replace into todos select value, {n} from json_each('{[*range(LIMIT+50)]}')")
            shell.sql("update todos set title='last' where id=3")
            await eventually(lambda: ('table:todos', dict(id=3, change='update')) in c.seen[-1:] or c.seen[-1:] == [MANY])
            assert len(c.messages) <= 20*(LIMIT+1)+1

    @needs_fastlite
    @pytest.mark.parametrize('runs', [True, False])
    async def test_transform(self, path, caplog, runs):
        "fastlite rebuilds the table in another process: the triggers are gone. They are made again, by one process, and it is said"
        code = ("import sys\nfrom fastlite import Database\nDatabase(sys.argv[1]).t.todos.transform(rename=dict(title='text'))")
        async def transform(): await in_thread(lambda: subprocess.run([sys.executable, '-c', code, str(path)], check=True))
        async with watching(path) as (shell, (one, two)), following('stream', one, 'table:todos') as c:
            if runs:
                await transform()
                assert await c.next() == MANY
                shell.sql("insert into todos(text) values('milk')")
                assert await c.next() == ('table:todos', dict(id=1, change='insert'))
        if not runs:
            await transform()
            async with managers(path) as (one, two), following('stream', one, 'table:todos'):
                await eventually(lambda: MANY[1] in [o['data'] for o in one.get_history(private=True)], 'it is announced')
        said = [o for o in warnings(caplog) if 'were missing or changed' in o]
        assert len(said) == 1 and "table 'todos'" in said[0] and str(path) in said[0]

    @pytest.mark.parametrize('name', ['to "do": *', "it's", 'ünïcødé', 'a.b', '%_', 'select', 'x'*500, 'x'*50+'_log', 'sqlitely_log'])
    async def test_names(self, path, name):
        async with watching(path, table=name, sql=f'create table {quote(name)}({quote(name)} text unique, b int primary key)') as (shell, (one, _)):
            db = connection(path)
            async with following('queue', one, f'table:{segment(name)}') as c:
                one.watch(db, name, columns=[name])
                assert await c.data(1) == [dict(id=None, change='many')]
                for n in 1, 2: shell.sql(f"insert or replace into {quote(name)} values('a', {n})")
                values = {name: 'a'}
                assert await c.data(3) == [dict(id=1, change='insert', new=values), dict(id=1, change='update', old=values),
                                           dict(id=2, change='insert', new=values)]
            one.unwatch(db, name)
            db.close()
            assert not shell.sql("select * from sqlite_master where type='trigger'")

    async def test_from_an_attached_file(self, path):
        "The triggers belong to the file, whatever a connection calls it"
        async with watching(path) as (_, (one, _)), following('stream', one, 'table:todos') as c:
            with Shell(':memory:') as shell:
                shell.sql(f"attach '{path}' as app")
                shell.sql('insert into app.todos values(7, 0)')
                assert await c.next() == ('table:todos', dict(id=7, change='insert'))

    async def test_while_the_file_is_locked(self, path):
        "`watch` waits up to the timeout; what is watched already needs no lock"
        with Shell(path) as shell:
            for sql in 'pragma journal_mode=wal', 'create table todos(id integer primary key)', 'create table tags(id integer primary key)': shell.sql(sql)
            m = SSEBroadcastManager(backend=Played(path, timeout=.2))
            db = connection(path)
            m.watch(db, 'todos')
            shell.sql('begin immediate')
            assert m.watch(db, 'todos') == 'table:todos'
            with pytest.raises(BackendError, match='was locked'): m.watch(db, 'tags')
            shell.sql('commit')
            db.close()
            await m.close()

    async def test_all_is_removed(self, path, library):
        "Not while it runs; then writers need nothing any more, and a start makes the tables again, with nothing watched"
        async with watching(path, library) as (shell, (one, two)):
            await eventually(lambda: len(shell.sql('select * from sse_worker')) == 2, 'both report')
            with pytest.raises(BackendError, match='2 processes use'): await in_thread(uninstall, path)
            await one.close(), await two.close()
            assert await in_thread(uninstall, path) == ['todos']
            assert shell.sql("select name from sqlite_master where name not like 'sqlite_%'") == [['todos']]  # fastlite analyses each file that it opens
            shell.sql('insert into todos values(1, 1)')
            async with managers(path, 1, library=library) as (m,), following('queue', m, ['**', 'table:todos']) as c:
                shell.sql('insert into todos values(2, 2)')
                await m.broadcast('n', 0)
                assert await c.next() == ('n', 0)

    @needs_fastlite
    async def test_an_app_with_fastlite(self, path):
        "Its `Database` is what `watch` takes, and all ways in which it writes are announced"
        code = """import asyncio, sys
from fastlite import database
from cjm_fasthtml_sse.core import SSEBroadcastManager
db = database(sys.argv[1])
class Todo: id: int; title: str; slug: str
todos = db.create(Todo)
todos.create_index(['slug'], unique=True)
sse = SSEBroadcastManager(backend=f'sqlite:///{sys.argv[1]}')
async def main():
    async with sse.subscribe(sse.watch(db, 'todo')) as q:
        todos.insert(title='milk', slug='a')
        todos.update(id=1, title='tea')
        todos.upsert(id=1, title='rice')
        todos.insert(title='bread', slug='a', replace=True)
        db['todo'].transform(rename=dict(title='text'))
        while (m := await q.get())['data']['change']!='many': print(m['data']['id'], m['data']['change'])
        db.execute('delete from todo where id=2')
        print((await q.get())['data'])
    await sse.close()
asyncio.run(main())"""
        def run(): return subprocess.run([sys.executable, '-c', code, str(path)], capture_output=True, text=True, timeout=60)
        done = await in_thread(run)
        assert (done.stdout.splitlines(), done.returncode) == (
            ['1 insert', '1 update', '1 update', '1 update', '1 delete', '2 insert', "{'id': 2, 'change': 'delete'}"], 0), done.stderr

    @needs_apsw
    async def test_the_library_of_the_connection(self, path):
        "A file that is not in WAL mode yet does not tell with which library it is open: the connection does"
        import apsw  # noqa: F401 - as FastHTML does it
        with Shell(path) as shell: shell.sql('create table todos(id integer primary key)')
        db = connection(path)
        async with managers(path, 1) as (m,):
            m.watch(db, 'todos')
            await m.open()
            async with following('queue', m, 'table:todos') as c:
                db.execute('insert into todos values(7)')
                assert await c.next() == ('table:todos', dict(id=7, change='insert'))
        db.close()

    @pytest.mark.parametrize('seed', range(4))
    async def test_a_copy_in_another_process(self, path, seed, caplog):
        "Two shells write, rebuild the table, rename it, add an index and drop it; a process starts and stops meanwhile"
        rng = random.Random(seed)
        def value(): return rng.choice(['1', '2', '3', "'a'", "'b'", 'null'])
        def statements():
            "Those of one step"
            kind = rng.choice(['row']*6+['many', 'rebuild', 'rename', 'index', 'replaced'])
            if kind == 'row': return [rng.choice([
                f'insert or replace into t values({value()}, {value()}, {value()})', f'update or replace t set b={value()} where a={value()}',
                f'delete from t where a={value()}', f'update or replace t set a=a+1 where b={value()}'])]
            if kind == 'many': return ['begin', *[f'insert or replace into t values({n}, {n}, {value()})' for n in range(rng.choice([3, 150]))], 'commit']
            if kind == 'rebuild': return [rng.choice(['begin', 'select 1']), 'create table u(a integer primary key, b unique, c)',
                                          'insert into u select * from t', 'drop table t', 'alter table u rename to t', 'commit']
            if kind == 'rename': return ['alter table t rename to v', f'insert or replace into v values(9, 9, {value()})', 'alter table v rename to t']
            if kind == 'index': return [rng.choice(['create unique index if not exists i on t(c)', 'drop index if exists i'])]
            return ['drop table t', 'create table t(a integer primary key, b unique, c)', f'insert into t values({value()}, 0, 0)']

        async with watching(path, table='t', sql='create table t(a integer primary key, b unique, c)') as (shell, (one, two)), \
                following('queue', two, 'table:t') as c:
            with Shell(path) as other:
                for n in range(40):
                    writer = rng.choice([shell, other])
                    for sql in statements(): await in_thread(writer.sql, sql)
                    await in_thread(writer.sql, 'rollback')  # An error, unless a statement has failed
                    if n == 20: await one.close()
                    if n == 30: await one.open()
            copy = {}
            def is_equal():
                for _, data in c.seen[c.at:]:
                    if data['change'] == 'many': copy.clear()
                    else: copy.pop(data['id'], None)
                    where = 'true' if data['change'] == 'many' else f"a={data['id']}"
                    copy.update((row[0], row) for row in shell.sql(f'select * from t where {where}'))
                c.at = len(c.seen)
                return sorted(copy.values()) == sorted(shell.sql('select * from t'), key=lambda row: row[0])
            await eventually(is_equal, lambda: f'{copy} is {shell.sql("select * from t")}')
