"""Transactions with their broadcasts where the contract leaves off: `kill -9`, forks, a full disk, a commit that hangs

What a block promises is in `contract/test_one_commit.py`, with what these tests need, too.
"""
import asyncio
import concurrent.futures
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import anyio
import pytest

from cjm_fasthtml_sse.backends.sqlite import SQLiteBackend
from cjm_fasthtml_sse.backends.sqlite_driver import Handle, count_copies
from cjm_fasthtml_sse.backends.sqlite_file import LogFile
from cjm_fasthtml_sse.core import BackendError, SSEBroadcastManager
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from tests.contract.support import BOUND, following, forked, turns
from tests.contract.test_transactions_of_sqlite import adds, manager, rows
from tests.contract.stores import Shell, in_thread, managers
from tests.test_sqlite import forks, needs_root

pytestmark = pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork')


@contextmanager
def handles_held():
    "Nothing of the library begins or commits meanwhile, as at a fork"
    Handle.hold_all()
    try: yield
    finally: Handle.release_all()


class TestTheCommit:
    async def test_it_reads_at_once(self, path, monkeypatch):
        "The thread of this process does not wait for its next look"
        from cjm_fasthtml_sse.backends import sqlite_thread
        monkeypatch.setattr(sqlite_thread, 'IDLE_PAUSE', 1000.), monkeypatch.setattr(sqlite_thread, 'ACTIVE_PAUSE', 1000.)
        async with manager(path) as m, following('queue', m) as c:
            for n in range(3):
                async with m.transaction() as db: adds(m, n)(db)
            assert await c.data(3) == [0, 1, 2]

    @needs_root
    async def test_the_disk_is_full(self, tmp_path, library, way):
        disk = tmp_path/'disk'
        disk.mkdir()
        if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', disk], capture_output=True).returncode: pytest.skip('needs mount')
        try:
            async with manager(disk/'app.db', library=library) as m:
                await way(m, adds(m, 1))
                (disk/'other').write_bytes(b'x'*2**19)
                with pytest.raises(BackendError, match='full.*Nothing was written'): await way(m, lambda db: [adds(m, 'x'*1000)(db) for _ in range(2000)])
                with pytest.raises(Exception, match='full'):  # In the block
                    await way(m, lambda db: (adds(m, 0)(db), db.execute('insert into line values(zeroblob(900000))')))
                (disk/'other').unlink()
                await way(m, adds(m, 2))
            assert rows(disk/'app.db') == ([1, 2], [1, 2])
        finally: subprocess.run(['umount', '-l', disk], check=True)

    async def test_while_it_commits(self, path, library):
        "The block has ended when it says so; the commit carries its broadcasts"
        async with manager(path, library=library) as m:
            inside, go = asyncio.Event(), asyncio.Event()
            async def block():
                nonlocal sent
                async with m.transaction() as db:
                    sent = adds(m, 1)(db)
                    inside.set()
                    await go.wait()
            sent = None
            task = asyncio.create_task(block())
            await inside.wait()
            with handles_held():
                go.set()
                await turns()
                task.cancel()
                await turns()
                assert not task.done()
            with pytest.raises(asyncio.CancelledError): await task
            with Shell(path) as shell: assert shell.sql('select n from line') == [[1]]
            assert await sent == 0
        assert rows(path) == ([1], [1])

    async def test_a_commit_that_hangs(self, path):
        "Whoever was cancelled does not wait for ever; the commit comes when it can"
        async with manager(path) as m:
            sent = None
            async def block():
                nonlocal sent
                with anyio.move_on_after(.05):
                    async with m.transaction() as db:
                        sent = adds(m, 1)(db)
                        held.__enter__()
            held = handles_held()
            await asyncio.wait_for(block(), BOUND)
            assert repr(sent) == '<Broadcast under way>'
            held.__exit__(None, None, None)
            assert await sent == 0
        assert rows(path) == ([1], [1])


KILLED = '''
import os, sys
library, when, path = sys.argv[1:]
if library == 'apsw': import fastlite
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.backends import sqlite, sqlite_log
def die(*args): os.kill(os.getpid(), 9)
def after(cls, name):
    real = getattr(cls, name)
    def call(self, *args, **kw):
        res = real(self, *args, **kw)
        if armed: die()
        return res
    setattr(cls, name, call)
m, armed = SSEBroadcastManager(backend=path), False
with m.transaction() as db: db.execute('create table if not exists line(n)')
if when == 'before the commit': after(sqlite_log.LogTables, 'append_records')
if when == 'after the commit': sqlite.SQLiteBackend.look_now = die
if when != 'at any moment': armed = True
n = 0
while True:
    with m.transaction() as db:
        db.execute('insert into line values(?)', (n,))
        if when == 'in the block': die()
        m.broadcast('row', n)
    n += 1
    print(n, flush=True)
'''


class TestKilled:
    def killed(self, library, when, path, upto=0):
        process = subprocess.Popen([sys.executable, '-c', KILLED, library, when, f'sqlite:///{path}'], stdout=subprocess.PIPE, text=True)
        try:
            for line in process.stdout:
                if int(line) >= upto > 0: os.kill(process.pid, signal.SIGKILL)
        finally:
            process.kill()
            process.stdout.close()
        assert process.wait(BOUND) == -signal.SIGKILL

    @pytest.mark.parametrize('when', ['in the block', 'before the commit', 'after the commit'])
    async def test_right_then(self, path, library, when):
        "At the restart the row and its event are there, or neither"
        await in_thread(self.killed, library, when, path)
        wanted = [0] if when == 'after the commit' else []
        assert rows(path) == (wanted, wanted)
        async with managers(path, 1, library=library) as (m,):
            await m.open()
            assert [o['data'] for o in m.get_history()] == wanted

    async def test_at_any_moment(self, path, library):
        "Again and again; a worker that runs beside it hears each event once"
        async with manager(path, library=library) as m, following('queue', m) as c:
            for n in range(4): await in_thread(self.killed, library, 'at any moment', path, 1+9*n)
            await m.broadcast('end', None)
            seen = []
            while (o := await c.next()) != ('end', None): seen.append(o[1])
            assert not c.gaps
        found, events = rows(path)
        assert found == events == seen and len(found) >= 4


class TestForks:
    "No connection of the parent is used, closed or rolled back in the other process"
    for mark in forks: pytestmark = [*locals().get('pytestmark', []), mark]

    def test_while_another_thread_has_a_block(self, path, library):
        "The fork waits a moment for the block; one that takes longer is left alone, and the other process says what it can't do"
        def block():
            with m.transaction() as db:
                for n in range(2000): db.execute('insert into line values(?)', (f'{n}'*50,))  # More than the cache holds
                m.broadcast('row', 1)
                inside.set()
                assert go.wait(BOUND)
        def refused():
            gc.collect()
            with pytest.raises(BackendError, match='Fork outside of transactions'): adds_in_a_block(m, 'refused')
            with pytest.raises(BackendError, match='Fork outside of transactions'): m.broadcast('row', 'refused').result()
        m = SSEBroadcastManager(backend=SQLiteBackend(path, timeout=BOUND, library=library))
        with m.transaction() as db: db.execute('create table line(n)')
        inside, go = threading.Event(), threading.Event()
        thread = threading.Thread(target=block)
        thread.start()
        assert inside.wait(BOUND)
        assert os.waitpid(forked(refused), 0)[1] == 0
        timer = threading.Timer(.05, go.set)
        timer.start()
        assert os.waitpid(forked(lambda: adds_in_a_block(m, 'child')), 0)[1] == 0
        thread.join(BOUND), timer.join(BOUND)
        adds_in_a_block(m, 'parent')
        asyncio.run(m.close())
        found, events = rows(path)
        assert len(found) == 2002 and found[2000:] == ['child', 'parent'] and events == [1, 'child', 'parent']

    def test_within_a_block(self, path, library):
        "The block is the parent's: in the other process it ends with an error"
        def child():
            with pytest.raises(BackendError, match='Fork outside of transactions'): m.broadcast('row', 'child').result()
        m = SSEBroadcastManager(backend=SQLiteBackend(path, timeout=BOUND, library=library))
        with m.transaction() as db: db.execute('create table line(n)')
        parent = os.getpid()
        try:
            with m.transaction() as db:
                adds(m, 'parent')(db)
                pid = forked(child)
                own = os.fork()
        except BackendError as e: os._exit(0 if 'forked' in str(e) else 1)
        finally:
            if os.getpid() != parent: os._exit(2)
        for o in pid, own: assert os.waitpid(o, 0)[1] == 0
        asyncio.run(m.close())
        assert rows(path) == (['parent'], ['parent'])


class TestBehindTheEnd:
    "Of the transaction, which SQLite may have ended, or of the block"
    async def test_it_goes_on_when_sqlite_has_ended_it(self, path, library, way):
        "What follows would be committed by itself, without its event"
        def block(db):
            for sql in 'create table one(n unique on conflict rollback)', 'insert into one values(1)', 'insert into one values(1)':
                try: db.execute(sql)
                except Exception: pass
            for _ in range(2):
                with pytest.raises(Exception, match='has ended|constraint'): db.execute('insert into line values(1)')
            adds(m, 1)(db)
        async with manager(path, library=library) as m:
            with pytest.raises(Exception, match='has ended|constraint'): await way(m, block)
            await way(m, adds(m, 2))
        assert rows(path) == ([2], [2])

    @pytest.mark.parametrize('ends', ['cancelled', 'an error'])
    async def test_a_thread_of_the_block_goes_on(self, path, library, ends):
        "As `asyncio.to_thread` does after a cancellation: nothing that it writes behind the end is committed"
        def write(db):
            with suppress(Exception):
                for n in range(10_000):
                    db.execute('insert into line values(?)', (n,))
                    if n == 20: loop.call_soon_threadsafe(begun.set)
                    if n > 20: time.sleep(.0001)  # The end of the block finds it between two statements
        async def block():
            nonlocal task
            async with m.transaction() as db:
                task = loop.run_in_executor(threads, write, db)
                await begun.wait()
                if ends == 'an error': 1/0
                if ends == 'cancelled': await asyncio.Event().wait()
        loop, begun, task = asyncio.get_running_loop(), asyncio.Event(), None
        async with manager(path, library=library) as m:
            with ThreadPoolExecutor() as threads:
                running = asyncio.create_task(block())
                await asyncio.wait_for(begun.wait(), BOUND)
                if ends == 'cancelled': running.cancel()
                with suppress(ZeroDivisionError, asyncio.CancelledError): await asyncio.wait_for(running, BOUND)
                await asyncio.wait_for(task, BOUND)
        assert rows(path) == ([], [])

    @pytest.mark.parametrize('kind', ['transaction', 'reading'])
    async def test_a_query_of_a_thread_goes_on(self, path, library, kind):
        "It is broken off: neither the event loop nor another block waits for it"
        def query(db):
            if library == 'apsw': db.create_scalar_function('known', known, 1)
            else: db.create_function('known', 1, known)
            db.execute('with recursive c(n) as (values(1) union all select n+1 from c) select sum(known(n)) from c').fetchall()
        def known(n):
            if n == 1000: loop.call_soon_threadsafe(begun.set)
            return n
        async def block():
            async with getattr(m, kind)() as db: await asyncio.gather(loop.run_in_executor(threads, query, db))
        loop, begun = asyncio.get_running_loop(), asyncio.Event()
        async with manager(path, library=library) as m:
            with ThreadPoolExecutor() as threads:
                running = asyncio.create_task(block())
                await asyncio.wait_for(begun.wait(), BOUND)
                running.cancel()
                with pytest.raises(asyncio.CancelledError): await asyncio.wait_for(running, BOUND)
                async with m.transaction() as db: adds(m, 1)(db)
        assert rows(path) == ([1], [1])

    async def test_prepared_rows(self, path, library, way):
        "`prepare` may choose how rows are returned to the app"
        def prepare(db):
            if library == 'apsw': db.row_trace = lambda cursor, row: dict(row=row)
            else: db.row_factory = lambda cursor, row: dict(row=row)
        async with manager(path, library=library, prepare=prepare) as m:
            assert await way(m, lambda db: (adds(m, 1)(db), db.execute('select n from line').fetchall())[1]) == [dict(row=(1,))]
            async with m.reading(): page = HTMXSSEConnector.create_sse_element(endpoint='/')
            assert re.fullmatch('[0-9a-f]+:[0-9]+-1', str(page.attrs['data-sse-cursor']))
            with Shell(path) as shell: shell.sql('create table watched(n)')
            connection = __import__(library).Connection(str(path))
            try: assert m.watch(connection, 'watched') == 'table:watched'
            finally: connection.close()
        assert rows(path) == ([1], [1])

    async def test_tables_of_a_newer_version(self, path, library, way):
        "They came while this process runs, as in a deploy: it goes on"
        async with manager(path, library=library) as m:
            with Shell(path) as shell: shell.sql('update sse_meta set version=2')
            await way(m, adds(m, 1))
            async with m.reading() as db: assert db.execute('select n from line').fetchall() == [(1,)]
            await in_thread(m.broadcast, 'row', 2)
            with Shell(path) as shell: shell.sql('update sse_meta set version=1')  # Whoever looks now is a process that starts
        assert rows(path) == ([1], [1, 2])


async def test_blocks_wait_for_earlier_broadcasts_together(path, monkeypatch):
    "As where a browser reads nothing: the second block does not begin to wait when the first has given up"
    def wait(futures, timeout):
        allowed.append(timeout)
        return waiting(futures, timeout)
    allowed, waiting = [], concurrent.futures.wait
    monkeypatch.setattr(concurrent.futures, 'wait', wait)
    async with managers(path, 1, timeout=1.) as (m,):
        await m.open()
        monkeypatch.setattr(m._pending, 'on_their_way', lambda: [concurrent.futures.Future()])
        async def block(n):
            async with m.transaction() as db: db.execute(f'create table t{n}(n)')
        await asyncio.gather(block(1), block(2))
    assert allowed[0] > .3 and allowed[1] < .3


@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='needs /proc')
def test_copies_are_counted_among_many_sockets(path, monkeypatch):
    "No link is read for a socket: with thousands of open streams that would take a tenth of a second"
    def readlink(link):
        read.append(link)
        return really(link)
    read, really = [], os.readlink
    handle = LogFile(path).connect()
    sockets = [o for _ in range(20) for o in socket.socketpair()]
    try:
        monkeypatch.setattr(os, 'readlink', readlink)
        assert count_copies(str(path)) == 1
        assert read and not {f'/proc/self/fd/{o.fileno()}' for o in sockets} & {*read}
    finally:
        handle.close()
        for o in sockets: o.close()


def adds_in_a_block(m, n):
    with m.transaction() as db: adds(m, n)(db)


def open_files(path):
    "How often this process has the file open"
    def target(fd):
        try: return os.readlink(f'/proc/self/fd/{fd}')
        except OSError: return ''
    return [target(fd) for fd in os.listdir('/proc/self/fd')].count(str(path))


@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='needs /proc')
async def test_two_threads_send_first_at_once(path):
    "Both get the same publisher, and it is closed with the backend"
    made, both = [], threading.Barrier(2)
    class Backend(SQLiteBackend):
        def _make_publisher(self):
            both.wait(BOUND)
            made.append(super()._make_publisher())
            return made[-1]
    backend = Backend(path)
    await asyncio.gather(*[in_thread(backend.send, dict(type='n', data=n)) for n in range(2)])
    await backend.stop()
    assert not open_files(path)
    with Shell(path) as shell: assert shell.sql('select count(*) from sse_log') == [[2]]


def test_two_threads_begin_the_first_block_at_once(monkeypatch):
    "Both wait for the same lock, also where one has it before the other one has made its own"
    from cjm_fasthtml_sse.backends import sqlite_transaction
    both, one_has_it, blocks = threading.Barrier(2), threading.Event(), sqlite_transaction.BlockThreads()
    def lock():
        if both.wait(BOUND): one_has_it.wait(BOUND)
        return threading.Lock()
    def turn():
        found = blocks.turn
        one_has_it.set()
        return found
    monkeypatch.setattr(sqlite_transaction, 'threading', SimpleNamespace(Lock=lock))
    with ThreadPoolExecutor(2) as threads: first, second = [o.result(BOUND) for o in [threads.submit(turn) for _ in range(2)]]
    assert first is second is blocks.turn
    blocks.close()
