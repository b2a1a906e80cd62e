"""Tables that announce themselves: no change is without an event, whoever writes, and in which way

A copy of a table that is kept by the events alone is equal to the table. A random program writes: with conflicts, rollbacks, keys
that change, keys of all kinds, and triggers of the app. Here the databases are in memory; what processes do with a file comes
behind.
"""
import json
import sqlite3
from contextlib import suppress
from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cjm_fasthtml_sse.backends import sqlite_triggers
from cjm_fasthtml_sse.backends.sqlite_log import LogTables, Position
from cjm_fasthtml_sse.backends.sqlite_triggers import quote, read_shape
from cjm_fasthtml_sse.backends.sqlite_watch import TableWatcher, WatchTable

needs_apsw = pytest.mark.skipif(not find_spec('apsw'), reason='needs apsw')


def in_memory(library):
    if library == 'sqlite3': return sqlite3.connect(':memory:', isolation_level=None)
    import apsw
    return apsw.Connection(':memory:')


def suppressed(db, sql):
    "A conflict, or no transaction, leads to an error"
    with suppress(Exception): db.execute(sql)


class Copy:
    "A watched table, and a copy of it that is kept by its events"
    def __init__(self, db, table):
        self.db, self.table, self.tables = db, table, LogTables()
        self.tables.create(db)
        self.watched, self.watcher = WatchTable(self.tables), TableWatcher('memory', self.tables)
        self.watched.watch(db, table)
        self.watched.check(db, table)
        self.key = read_shape(db, table).key
        self.at, self.events = Position(), []
        self.rows = self.read()

    def read(self, id=None):
        "Rows by their keys: all, or one"
        key = ', '.join(map(quote, self.key))
        where = ' and '.join(f'{quote(c)} is ? collate binary' for c in self.key) if id is not None else 'true'
        args = id if isinstance(id, list) else [] if id is None else [id]
        found = self.db.execute(f'select {key}, * from {quote(self.table)} where {where}', args).fetchall()
        return {repr(o[:len(self.key)]): repr(o[len(self.key):]) for o in found}

    def follow(self):
        "Read what was announced, and nothing else"
        for _ in range(2):
            for row in self.tables.read(self.db, self.at, limit=10_000):
                self.at = self.at.after(row)
                data = json.loads(row.text)['data']
                self.events.append((data['id'], data['change']))
                if data['change'] == 'many': self.rows = self.read()
                else:
                    id = data['id'] if isinstance(data['id'], list) else [data['id']]
                    self.rows.pop(repr(tuple(id)), None)
                    self.rows.update(self.read(id))
            self.db.execute('update sse_watch set at=0')
            if not self.watcher(self.db): return

    def check(self):
        self.follow()
        assert self.rows == self.read()


TABLES = dict(
    key='create table t(a integer primary key, b text unique, c)',
    several='create table t(a integer primary key, b, c text collate nocase not null default 1, unique(b, c), unique(c))',
    text_key='create table t(a text primary key collate nocase, b unique, c)',
    any_key='create table t(a primary key, b int unique on conflict replace, c) ',
    without_rowid="create table t(a, b collate nocase, c text unique not null default 'a', primary key(a, b)) without rowid",
    no_key='create table t(a unique, b, c text)',
    hidden='create table t(a primary key, rowid, b, c unique)',
    generated='create table t(a integer primary key, b text, c, d as (lower(b)) unique)',
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
    @settings(max_examples=60, deadline=None)
    @given(program=st.lists(statements(), max_size=25), limit=st.sampled_from([2, 100]), recursive=st.booleans())
    def test_a_copy_kept_by_events(self, name, library, program, limit, recursive):
        "It is equal to the table after each transaction"
        db = in_memory(library)
        sqlite_triggers.LIMIT, before = limit, sqlite_triggers.LIMIT
        try:
            for sql in TABLES[name].split('; ' if name != 'app' else ';\n'): db.execute(sql)
            db.execute(f'pragma recursive_triggers={recursive}')
            db.execute('pragma foreign_keys=on')
            for row in "(1, 'x', 'x')", "(2, 'y', 'y')", "('z', 'z', 'z')": suppressed(db, f'insert into t(a, b, c) values {row}')
            copy = Copy(db, 't')
            for sql in program:
                suppressed(db, sql)
                if not db.in_transaction: copy.check()
            while db.in_transaction: db.execute('commit')
            copy.check()
        finally:
            sqlite_triggers.LIMIT = before
            db.close()
