"""Tables that announce themselves: each change of a watched table is an event in every process, whoever makes it

No change is without an event that comes with it or later, and what was rolled back is no event. Who writes is a shell, another
process that knows nothing of the library. What only tables of SQLite do is in `test_watch_of_sqlite`.
"""
from contextlib import asynccontextmanager
from itertools import count

import pytest

from tests.contract.support import eventually, following

MANY = 'table:todos', dict(id=None, change='many')
LIMIT = 100  # Rows that are announced one by one

pytestmark = pytest.mark.needs('watch')


@asynccontextmanager
async def watching(store, n=2, table='todos', sql='create table todos(id integer primary key, title text)', **kw):
    "A shell, and managers of which the first has called `watch`"
    with store.shell() as shell:
        shell.sql(sql)
        async with store.workers(n) as ms:
            db = store.connect()
            ms[0].watch(db, table, **kw)
            db.close()
            for m in ms: await m.open()
            yield shell, ms


class TestWatched:
    async def test_a_shell_writes(self, store):
        "It knows nothing of the library. All processes announce it, under one id, and a rollback is no event"
        async with watching(store) as (shell, (one, two)), following('stream', one, 'table:todos') as a, following('stream', two, 'table:todos') as b:
            for sql in "insert into todos values(7, 'milk')", 'begin', 'delete from todos', 'rollback', 'update todos set id=8': shell.sql(sql)
            for c in a, b: assert await c.read(3) == [('table:todos', dict(id=id, change=o)) for id, o in ((7, 'insert'), (7, 'delete'), (8, 'insert'))]
            assert [e.id for e in a.messages] == [e.id for e in b.messages]

    async def test_private_in_all_processes(self, store):
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
        async with watching(store) as (shell, (one, two)):
            for m in one, two: await check(m, 0)
            async with store.workers(1) as (later,): await check(later, 0)
            db = store.connect()
            one.watch(db, 'todos', private=False)
            await check(one, 1), await check(two, 0)
            one.watch(db, 'todos')
            await check(one, 0)
            db.close()

    async def test_a_large_transaction(self, store):
        "Single events at first, and one for all, though two processes could write it"
        async with watching(store) as (shell, (one, two)), following('queue', one, 'table:todos') as a, following('queue', two, 'table:todos') as b:
            shell.sql('insert into todos values'+', '.join(f"({n}, 'x')" for n in range(5000)))
            for c in a, b:
                assert await c.read(LIMIT) == [('table:todos', dict(id=n, change='insert')) for n in range(LIMIT)]
                assert await c.next() == MANY
            shell.sql("update todos set title='x' where id=7")
            for c in a, b: assert await c.next() == ('table:todos', dict(id=7, change='update'))

    async def test_a_crash_before_it_is_announced(self, store):
        "The file says that it is due, and the next process that starts writes it; another one does not"
        async with watching(store, n=1): pass
        with store.shell() as shell:
            shell.sql('begin')
            for n in range(LIMIT+1): shell.sql(f"insert into todos values({n}, 'x')")
            shell.sql('commit')
        async with store.workers() as ms:
            for m in ms: await m.open()
            def said(m): return [o['data'] for o in m.get_history(private=True) if o['type'] == 'table:todos']
            for m in ms: await eventually(lambda m=m: said(m)[-1:] == [MANY[1]], 'all know')
            assert [o['change'] for o in said(ms[0])].count('many') == 1
