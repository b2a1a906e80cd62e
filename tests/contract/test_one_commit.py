"""A row and the event about it in one commit, over each store that an app can have a `transaction` in

State and log agree always: after an error, a cancellation, a commit that fails. What a block wrote is there together with what
it broadcast, or neither is. Most tests count both: rows in `line`, and events of the type `row`. What only a file can do to a
transaction is in `test_transactions_of_sqlite`.
"""
import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import anyio
import pytest

from cjm_fasthtml_sse.core import BackendError, SSEBroadcastManager, SSEError
from tests.contract.stores import in_thread
from tests.contract.support import BOUND, following, turns, within

pytestmark = pytest.mark.needs('transaction')


def rows(store):
    "What is in `line`, and what the events `row` have, as other processes see them"
    with store.shell() as shell: there = [n for n, in shell.sql('select n from line')]
    return there, [data for event, data in store.history() if event == 'row']


@asynccontextmanager
async def manager(store, **kw):
    "One that is open, with a table"
    async with store.workers(1, backend=store.patient | kw) as (m,):
        async with m.transaction() as db: db.execute(store.make_table('line'))
        yield m


def adds(m, n):
    "What a block does: a row, and the event about it"
    def add(db):
        db.execute(f'insert into line values({n!r})')
        return m.broadcast('row', n)
    return add


class TestABlock:
    async def test_a_commit(self, store, way):
        "Two processes hear what was broadcast, in its order, after what came before"
        async with store.workers() as (one, two), following('stream', one) as a, following('stream', two) as b:
            await way(one, lambda db: db.execute(store.make_table('line')))
            one.broadcast('n', 0)
            sent = await way(one, lambda db: [adds(one, n)(db) for n in range(1, 6)])
            one.broadcast('n', 6)
            for c in a, b: assert await c.data(7) == [*range(7)]
            assert [await o for o in sent] == [0]*5
        assert rows(store) == ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])

    @pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError], ids=lambda o: o.__name__)
    async def test_an_error(self, store, error):
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
        async with manager(store) as m, following('queue', m) as c:
            assert await in_thread(caught, m)
            with pytest.raises(BackendError, match='rolled back.*was not sent'): await sent
            await m.broadcast('end', None)
            assert await c.next() == ('end', None)
        assert rows(store) == ([], [])

    async def test_nobody_asks(self, store, caplog):
        "What was rolled back is no error in the log"
        async with manager(store) as m:
            with pytest.raises(ZeroDivisionError):
                async with m.transaction() as db: adds(m, 1)(db), 1/0
            gc.collect()
        assert not [r for r in caplog.records if r.levelname == 'ERROR']

    async def test_before_the_start(self, store):
        "A script writes and broadcasts; whoever starts later knows both"
        m = SSEBroadcastManager(backend=store.played())
        def script():
            with m.transaction() as db:
                db.execute(store.make_table('line'))
                adds(m, 1)(db)
        await in_thread(script)
        await m.open()
        assert [o['data'] for o in m.get_history()] == [1]
        await m.close()
        assert rows(store) == ([1], [1])

    async def test_hooks(self, store, way):
        "Plain ones run at the call, and change what is sent; an async one can't be awaited, and says so"
        async with manager(store) as m, following('queue', m) as c:
            m.on_broadcast(lambda message: message | dict(data=message['data']+1))
            await way(m, adds(m, 1))
            assert await c.next() == ('row', 2)
            @m.on_broadcast
            async def later(message): await asyncio.sleep(0)
            with pytest.raises(SSEError, match='async `on_broadcast` hook'): await way(m, adds(m, 5))

    async def test_data_that_can_not_be_sent(self, store, way):
        "The call raises, and the block may go on"
        async with manager(store) as m:
            def block(db):
                with pytest.raises(TypeError, match=r"data\['file'\]"): m.broadcast('row', dict(file=object()))
                return adds(m, 1)(db)
            await way(m, block)
        assert rows(store) == ([1], [1])

    async def test_threads_and_tasks_of_the_block(self, store):
        "What they broadcast while it is open belongs to it; what they broadcast later is an ordinary broadcast"
        async with manager(store) as m, following('queue', m) as c:
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

    async def test_others_are_not_in_it(self, store):
        "What another task broadcasts meanwhile waits for the lock, and comes later"
        async with manager(store) as m, following('queue', m) as c:
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

    async def test_a_broadcast_of_another_manager(self, store):
        "It is not part of the transaction, and blocks of two managers nest"
        async with manager(store) as m, manager(store.other()) as other, following('queue', other) as c:
            with pytest.raises(ZeroDivisionError):
                async with m.transaction():
                    await other.broadcast('row', 1)
                    async with other.transaction():
                        m.broadcast('row', 0)
                        other.broadcast('row', 2)
                    1/0
            assert await c.data(2) == [1, 2]
        assert rows(store) == ([], [])

    async def test_a_disconnect(self, store, way):
        "It belongs to the transaction as well"
        async with manager(store) as m, following('stream', m, user='ann') as ann, following('stream', m, user='bob') as bob:
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
    async def test_a_plain_with_on_the_event_loop(self, store):
        async with manager(store) as m:
            with pytest.raises(SSEError, match='write `async with'):
                with m.transaction(): pass

    async def test_awaited_in_its_own_block(self, store):
        "It would wait for itself"
        async with manager(store) as m:
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

    async def test_a_block_in_a_block(self, store):
        async with manager(store) as m:
            with pytest.raises(SSEError, match='There is a transaction already'):
                async with m.transaction():
                    async with m.transaction(): pass
            block = m.transaction()
            async with block: pass
            with pytest.raises(SSEError, match='of its own'):
                async with block: pass

    async def test_used_after_the_block(self, store, way):
        "Another block may have the lock by then"
        async with manager(store) as m:
            for n in range(3):
                db, cursor = await way(m, lambda db: (db, db.execute('select 1 union select 2 union select 3')))
                for use in (lambda: db.execute('insert into line values(0)'), lambda: cursor.execute('insert into line values(0)'), lambda: next(cursor)):
                    with pytest.raises(Exception, match='closed'): use()
                await way(m, adds(m, n))
        assert rows(store) == ([0, 1, 2], [0, 1, 2])

class TestTheLock:
    async def test_many_wait(self, store):
        "They do not hold up the one that has the lock, also where no thread of the event loop is free"
        async with manager(store) as m:
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
        assert rows(store) == ([*range(100)], [*range(100)])

class TestCancelled:
    @pytest.mark.parametrize('cancel', ['task', 'scope'])
    async def test_at_any_moment(self, store, cancel):
        "Rows and events agree, and the lock is free"
        async with manager(store) as m:
            async def block(n):
                async with m.transaction() as db:
                    adds(m, n)(db)
                    await asyncio.sleep(.0003)  # Longer than some are allowed
            async def cancelled(n):
                if cancel == 'scope':
                    with anyio.move_on_after(n%40*.0001): await block(n)
                else:
                    task = asyncio.create_task(block(n))
                    await asyncio.sleep(n%40*.0001)  # At any moment is what is tested
                    task.cancel()
                    await asyncio.wait({task})
            for n in range(150): await cancelled(n)
            await asyncio.gather(*[cancelled(n) for n in range(150, 300)])
            async with m.transaction() as db: adds(m, 'end')(db)
        found, events = rows(store)
        assert found == events and found[-1] == 'end'


class TestSeveralAtOnce:
    async def test_threads_and_tasks(self, store):
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
        async with store.workers(backend=store.patient) as (one, two), following('queue', one) as a, following('stream', two) as b:
            async with one.transaction() as db: db.execute(store.make_table('line'))
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
        there, events = rows(store)
        assert there == [o for o in events if int(o.partition(':')[2]) % 2]


@pytest.mark.parametrize('backend', [None, 'redis://localhost:1/0'])
def test_stores_that_have_none(backend):
    "They say what to write instead"
    m = SSEBroadcastManager(backend=backend)
    for call in m.transaction, lambda: m.broadcast_in(None, 'n', 1):
        with pytest.raises(BackendError, match="needs a backend in an SQLite file.*sqlite:///app.db"): call()
