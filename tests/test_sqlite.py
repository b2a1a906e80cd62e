"""The SQLite backend where the contract leaves off: both libraries, what may be wrong with a file, scripts, servers

What happens to a file that is locked or lost is in `contract/test_over_sqlite.py`, with what these tests need, too.
"""
import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from cjm_fasthtml_sse.backends import sqlite, sqlite_alarm, sqlite_file, sqlite_log, sqlite_reader, sqlite_thread, sqlite_writer
from cjm_fasthtml_sse.backends.base import check_backend
from cjm_fasthtml_sse.backends.sqlite import Publisher, SQLiteBackend
from cjm_fasthtml_sse.backends.sqlite_driver import Handle
from cjm_fasthtml_sse.backends.sqlite_log import LogTables, Position
from cjm_fasthtml_sse.backends.sqlite_reader import LogReader
from cjm_fasthtml_sse.backends.sqlite_thread import LogWork, OpenFile
from cjm_fasthtml_sse.core import BackendError, SSEBroadcastManager
from tests.contract.servers import Stream, running, uvicorn, wait_until
from tests.contract.support import BOUND, GAP, eventually, following, forked, no_task_left, within
from tests.contract.stores import Played, Shell, in_thread, managers, needs_apsw

HERE = Path(__file__).parent
needs_inotify = pytest.mark.skipif(sys.platform != 'linux', reason='needs inotify')
needs_root = pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0, reason='needs root, to mount')
forks = [pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork'), pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork')]

class TestCarrying:
    async def test_the_check_of_all_backends(self, path, library):
        async with no_task_left(): await check_backend(lambda: Played(path, library=library))
        assert not [t for t in threading.enumerate() if str(path) in t.name]

    async def test_rows_of_any_program(self, path, library):
        "Plain SQL is enough; what makes no sense is skipped, and a rollback is not seen"
        async with managers(path, library=library) as (one, two), following('queue', one) as a, following('stream', two) as b:
            with Shell(path) as shell:
                for text in ("json_object('type', 'n', 'data', 1)", "'nonsense'", "json_object('type', 'n')"):
                    shell.sql(f'insert into sse_log(fields) values ({text})')
                shell.sql('begin immediate')
                shell.sql("insert into sse_log(fields) values (json_object('type', 'n', 'data', 'rolled back'))")
                shell.sql('rollback')
                await one.broadcast('n', 'end')
                for c in a, b: assert await c.data(3) == [1, None, 'end']
                assert shell.sql("insert into sse_log(fields) values (x'00')").startswith('IntegrityError')

    async def test_a_commit_of_many(self, path):
        "It is read in pages, and nothing is lost on the way to anybody"
        async with managers(path, max_length=100) as (one, two), following('queue', one) as a, following('stream', two) as b:
            with Shell(path) as shell: await in_thread(shell.run, 'burst(5000)')
            for c in a, b: assert await c.data(5000) == [*range(5000)] and not c.gaps

    async def test_a_burst_larger_than_the_log(self, path):
        async with managers(path, max_length=10, timeout=BOUND) as (one, two), following('queue', one) as a, following('stream', two) as b:
            counts = await asyncio.gather(*[one.broadcast('n', n) for n in range(3000)])
            for c in a, b: assert await c.data(3000) == [*range(3000)] and not c.gaps
            assert {*counts} == {1}

    async def test_length_and_age_are_bounded(self, path, monkeypatch):
        from cjm_fasthtml_sse.backends import sqlite_writer
        monkeypatch.setattr(sqlite_writer, 'REFRESH', .05)
        async with managers(path, 1, max_length=50) as (m,):
            await asyncio.gather(*[m.broadcast('n', n) for n in range(1000)])
            with Shell(path) as shell:
                async with within('what is too much is trimmed'):
                    while shell.sql('select count(*) from sse_log') != [[50]]: await asyncio.sleep(.02)
                shell.sql('update sse_log set ms=ms-100000')
        async with managers(path, 1, max_age=60.) as (m,):
            await m.open()
            with Shell(path) as shell:
                async with within('what is too old is trimmed, and the newest stays'):
                    while shell.sql('select seq from sse_log') != [[1000]]: await asyncio.sleep(.02)

    async def test_a_thread_ends_with_its_event_loop(self, path):
        "Also where nobody closes the manager"
        def threads(): return [t for t in threading.enumerate() if str(path) in t.name]
        async def lost():
            await SSEBroadcastManager(backend=path).broadcast('n', 1)
            assert threads()
        await in_thread(lambda: asyncio.run(lost()))
        await eventually(lambda: not threads())

    async def test_reports_that_no_worker_has_written(self, path, caplog):
        "Anybody may write into the table. What makes no sense is said once, and nobody fails over it"
        async with managers(path) as (one, two):
            for m in one, two: await m.open()
            with Shell(path) as shell:
                for i, text in enumerate(['', '{', 'null', '[]', '{}', '{"users": 7, "stats": {}}', '['*10_000]):
                    shell.sql(f"insert into sse_worker values('x{i}', strftime('%s', 'now'), '{text}')")
            async with within('both are counted'):
                while (await one.cluster_stats())['workers'] != 2: await asyncio.sleep(.02)
        assert len([r for r in caplog.records if 'is ignored' in r.message]) == 1


class TestSafety:
    async def test_too_many_wait(self, path, monkeypatch):
        "Then a broadcast fails at once: their number and their size are bounded"
        monkeypatch.setattr(sqlite, 'MAX_WAITING', 10)
        async with managers(path, 1, timeout=BOUND) as (m,):
            await m.open()
            with Shell(path) as shell:
                shell.sql('begin immediate')
                sent = [m.broadcast('n', n) for n in range(10)]
                with pytest.raises(BackendError, match='10 broadcasts.*wait already'): await m.broadcast('n', 10)
                shell.sql('commit')
                assert await asyncio.gather(*sent) == [0]*10
                monkeypatch.setattr(sqlite, 'MAX_WAITING_BYTES', 1000)
                with pytest.raises(BackendError, match='wait already'): await m.broadcast('n', 'x'*2000)

    TWO = '''
import asyncio, os, sys
from pathlib import Path
first, second, path = sys.argv[1:]
def open_with(library):
    if library == 'sqlite3': c = __import__('sqlite3').connect(path)
    else: c = __import__('apsw').Connection(path)
    c.execute('select count(*) from sse_log').fetchall()
    return c
from cjm_fasthtml_sse.core import SSEBroadcastManager, BackendError
from cjm_fasthtml_sse.backends.sqlite import Publisher, SQLiteBackend
from cjm_fasthtml_sse.backends import sqlite, sqlite_writer
sqlite.REPORT_INTERVAL = sqlite_writer.REFRESH = .05
async def main():
    if first != 'backend': held = open_with(first)
    m = SSEBroadcastManager(backend=SQLiteBackend(Path(path), library='sqlite3' if first == 'backend' else None))
    await m.broadcast('n', 1)
    if second == 'none': return print('well with', m._backend._file.driver.name)
    held = open_with(second)
    try:
        for _ in range(200): await m.broadcast('n', 2); await asyncio.sleep(.02)
        print('unseen')
    except BackendError as e: print(e)
    os._exit(0)
asyncio.run(main())
'''

    @pytest.mark.skipif(sys.platform != 'linux', reason='counts descriptors')
    @needs_apsw
    @pytest.mark.parametrize('first,second,wanted', [('sqlite3', 'none', 'well with sqlite3'), ('apsw', 'none', 'well with apsw'),
        ('sqlite3', 'apsw', 'two copies'), ('apsw', 'sqlite3', 'two copies'), ('backend', 'apsw', "with 'sqlite3' by the backend, and with 'apsw'")])
    def test_two_copies_of_sqlite(self, path, first, second, wanted):
        "The backend takes the library that has the file open; a second one is an error that names both"
        Publisher(path).send(dict(type='n', timestamp='', data=0))
        done = subprocess.run([sys.executable, '-c', self.TWO, first, second, path], capture_output=True, text=True, timeout=BOUND)
        assert wanted in done.stdout and (second == 'none' or "library='" in done.stdout), done

    BEFORE = '''
import apsw, sqlite3, sys
from cjm_fasthtml_sse.core import SSEBroadcastManager
app = sqlite3.connect(sys.argv[1])
app.execute('create table t(x)')
m = SSEBroadcastManager(backend=f'sqlite:///{sys.argv[1]}')
m.broadcast('n', 1).result(30)
print('with apsw:', len(apsw.connections()))
'''

    @pytest.mark.skipif(sys.platform != 'linux', reason='looks at descriptors')
    @needs_apsw
    def test_a_file_that_the_app_opened_before_it_was_in_wal_mode(self, path):
        "There is no FILE-shm yet, and apsw is imported: the library is the one that has opened it all the same"
        done = subprocess.run([sys.executable, '-c', self.BEFORE, path], capture_output=True, text=True, timeout=BOUND)
        assert done.stdout == 'with apsw: 0\n', done

    @needs_apsw
    async def test_what_fastlite_does_with_a_connection(self, path, monkeypatch):
        "It optimizes, for which it would wait for the lock: whoever reads waits for nobody"
        from apsw import bestpractice
        monkeypatch.setattr('apsw.connection_hooks', [bestpractice.connection_enable_foreign_keys, bestpractice.connection_optimize])
        async with managers(path, 1, library='apsw') as (m,):
            await m.open()
            with Shell(path) as shell:
                for sql in 'create table t(x)', 'create index i on t(x)', 'insert into t values(1)', 'begin immediate': shell.sql(sql)
                for _ in range(2):
                    async with m.reading() as db:
                        assert db.execute('select * from t').fetchall() == [(1,)]
                        assert db.execute('pragma foreign_keys').fetchall() == [(1,)]
                shell.sql('commit')
            assert 'sqlite_stat1' not in str(await m._backend._session.ask(lambda c: c.execute('select name from sqlite_master').fetchall()))

    LATER = '''
import asyncio, sys
from pathlib import Path
from cjm_fasthtml_sse.backends import sqlite_driver
from cjm_fasthtml_sse.backends.sqlite import SQLiteBackend
from cjm_fasthtml_sse.core import SSEBroadcastManager
async def main():
    sqlite_driver._descriptors = dict  # As where there is no /proc
    backends = [SQLiteBackend(Path(sys.argv[1]), name) for name in ('sse', 'more')]
    one, two = [SSEBroadcastManager(backend=b) for b in backends]
    await one.open()
    import apsw
    await two.open()
    for b in backends: await asyncio.to_thread(b.send, dict(type='n', data=1))
    print('with apsw:', len(apsw.connections()))
    for m in one, two: await m.close()
asyncio.run(main())
'''

    @needs_apsw
    def test_a_library_that_is_imported_later(self, path):
        "All connections of the package take the library that the first one took"
        done = subprocess.run([sys.executable, '-c', self.LATER, path], capture_output=True, text=True, timeout=BOUND)
        assert done.stdout == 'with apsw: 0\n', done

    def test_counting_copies_is_dear(self, path, monkeypatch):
        "A process with thousands of streams has thousands of descriptors: not each block of the app looks at all of them"
        looks = []
        monkeypatch.setattr(sqlite_file, 'check_copies', lambda *args: looks.append(args))
        monkeypatch.setattr(sqlite_file, 'CHECK_SECS', 60.)
        m = SSEBroadcastManager(backend=path)
        def read():
            with m.reading() as db: db.execute('select count(*) from sse_log').fetchall()
        for _ in range(20): read()
        assert len(looks) == 1
        monkeypatch.setattr(sqlite_file, 'CHECK_SECS', 0.)
        asyncio.run(m.close())
        for _ in range(3): SSEBroadcastManager(backend=path).broadcast('n', 1).result(BOUND)
        assert len(looks) == 4

    @needs_apsw
    def test_another_library_is_refused(self, path):
        "Before it touches the file"
        with Publisher(path, library='sqlite3') as one, Publisher(path, library='apsw') as two:
            one.broadcast('n', 1)
            with pytest.raises(BackendError, match='two copies'): two.broadcast('n', 2)
            one.close()
            two.broadcast('n', 3)

    @needs_apsw
    def test_hooks_of_apsw(self, path, monkeypatch):
        "What they set for all connections does not make ours wait"
        import apsw
        monkeypatch.setattr(apsw, 'connection_hooks', [lambda c: c.set_busy_timeout(9000)])
        handle = sqlite_file.LogFile(path, library='apsw').connect()
        assert handle.connection.execute('pragma busy_timeout').fetchall() == [(0,)]
        handle.close()

    @pytest.mark.parametrize('renamed', [False, True])
    async def test_replaced_while_others_have_it_open(self, path, tmp_path, renamed):
        "`FILE-shm` is opened once more then, by the same copy of SQLite"
        async with managers(path, 1) as (m,), following('stream', m) as c:
            await m.broadcast('n', 0)
            assert await c.next() == ('n', 0)
            with Publisher(path) as script:
                await in_thread(script.broadcast, 'n', 1)
                assert await c.next() == ('n', 1)
                with Shell(path) as shell:
                    shell.sql('pragma wal_checkpoint(truncate)'), shell.sql(f"vacuum into '{tmp_path}/new'")
                    if renamed: shell.run(f"os.rename(path, '{tmp_path}/old')")
                    shell.run(f"os.rename('{tmp_path}/new', path)")
                assert await c.next() == (GAP, None)
                assert await m.broadcast('n', 2) == 1
                await in_thread(script.broadcast, 'n', 3)
                assert await c.data(2) == [2, 3]

    async def test_streams_of_users_end_with_the_file(self, path, tmp_path):
        "Of one that took its place nobody knows who was disconnected"
        async with managers(path) as (one, two), following('stream', one, user='ann') as ann, following('channel', two, user='bob') as bob, \
                following('stream', two) as nobody:
            await one.broadcast('n', 0)
            for c in ann, bob, nobody: assert await c.data(1) == [0]
            with Shell(path) as shell:
                shell.sql('pragma wal_checkpoint(truncate)'), shell.sql(f"vacuum into '{tmp_path}/new'")
                shell.run(f"os.rename('{tmp_path}/new', path)")
            for c in ann, bob: await c.ends()
            assert await nobody.next() == (GAP, None) and not nobody.over

    async def test_tables_of_a_newer_version(self, path, monkeypatch):
        looks,look = [],LogReader.look
        def counted(self, connection, *args):
            try: return look(self, connection, *args)
            finally: looks.append(connection.execute('select version from sse_meta').fetchall()==[(2,)])
        async with managers(path, 1) as (m,):
            await m.open()
            monkeypatch.setattr(LogReader, 'look', counted)
            with Shell(path) as shell: shell.sql('update sse_meta set version=2')
            await eventually(lambda: any(looks), 'it has looked')
            assert await m.broadcast('n', 1) == 0  # Versions only add: whoever runs goes on
            async with m.transaction() as db:
                db.execute('create table t(x)')
                sent = m.broadcast('n', 2)
            assert await sent == 0
            async with m.reading() as db: assert db.execute('select count(*) from t').fetchall() == [(0,)]
        with pytest.raises(BackendError, match='have version 2.*up to version 1'): await SSEBroadcastManager(backend=path).open()

    @pytest.mark.parametrize('what', ['a folder', 'another file', 'no folder'])
    async def test_what_is_no_database(self, tmp_path, what):
        path = tmp_path/'x'/'y' if what == 'no folder' else tmp_path/'x'
        if what == 'a folder': path.mkdir()
        elif what == 'another file': path.write_text('Dear SQLite, '*100)
        async with no_task_left():
            for _ in range(2):
                with pytest.raises(BackendError, match='unable to open|not a database'): await SSEBroadcastManager(backend=path).open()
                with pytest.raises(BackendError, match='was not sent'): await in_thread(Publisher(path).broadcast, 'n', 1)

    @needs_root
    async def test_read_only(self, path, tmp_path):
        "Whoever may not write is told so by each broadcast"
        async with managers(path, 1) as (m,): await m.broadcast('n', 1)
        code = ('import asyncio, os, sqlite3, sys\nfrom cjm_fasthtml_sse.core import SSEBroadcastManager\nos.setgid(65534), os.setuid(65534)\n'
                'async def main(): await SSEBroadcastManager(backend=sys.argv[1]).broadcast("n", 2)\nasyncio.run(main())')
        for o in [tmp_path, *tmp_path.parents][:3]: o.chmod(0o755)
        done = await in_thread(lambda: subprocess.run([sys.executable, '-c', code, f'sqlite:///{path}'], capture_output=True, text=True))
        assert 'BackendError' in done.stderr and ('readonly' in done.stderr or 'unable to open' in done.stderr), done.stderr

    @needs_root
    async def test_a_full_disk(self, tmp_path):
        "Broadcasts fail and say why; once there is room they arrive"
        disk = tmp_path/'disk'
        disk.mkdir()
        if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', disk], capture_output=True).returncode: pytest.skip('needs mount')
        try:
            async with managers(disk/'app.db', 1) as (m,), following('stream', m) as c:
                await m.broadcast('n', 0)
                (disk/'other').write_bytes(b'x'*2**19)
                with pytest.raises(BackendError, match='full.*was not sent'):
                    for _ in range(200): await m.broadcast('big', 'x'*10_000)
                with pytest.raises(BackendError, match='full|.'): await m.broadcast('big', 'x'*300_000)
                (disk/'other').unlink()
                async with within('it goes on'):
                    while True:
                        with suppress(BackendError):
                            await m.broadcast('n', 1)
                            break
                await eventually(lambda: ('n', 1) in c.seen)
                assert not c.gaps
            with Shell(disk/'app.db') as shell: assert shell.sql('pragma integrity_check') == [['ok']]
        finally: subprocess.run(['umount', '-l', disk], check=True)

    @pytest.mark.parametrize('bad', ['sqlite://', 'sqlite:///', 'sqlite:///:memory:', 'sqlite:///file::memory:', 'sqlite:///x?mode=memory',
        'sqlite://app.db', Path(':memory:')], ids=str)
    def test_addresses_that_several_processes_can_not_share(self, bad):
        with pytest.raises(ValueError, match='sqlite:///app.db|no options'): SSEBroadcastManager(backend=bad)

    async def test_a_relative_path(self, tmp_path, monkeypatch):
        "It is made absolute when the manager is made"
        monkeypatch.chdir(tmp_path)
        m = SSEBroadcastManager(backend='sqlite:///app.db')
        monkeypatch.chdir('/')
        await m.open()
        await m.close()
        assert (tmp_path/'app.db').exists()

    async def test_a_wal_that_grows(self, path, monkeypatch, caplog):
        "A connection that keeps reading pins it: that is said once"
        monkeypatch.setattr(sqlite_file, 'LARGE_WAL', 50_000)
        async with managers(path, 1) as (m,):
            await m.broadcast('n', 0)
            with Shell(path) as shell:
                shell.sql('begin'), shell.sql('select count(*) from sse_log')
                async with within('it is said'):
                    while not (said := [r for r in caplog.records if 'keeps a transaction open' in r.message]):
                        await asyncio.gather(*[m.broadcast('n', 'x'*500) for _ in range(300)])
                shell.sql('commit')
            assert len(said) == 1


class TestOddRows:
    "What plain SQL may write, and what is large: nobody stops over it"
    @pytest.fixture
    def db(self):
        db = sqlite3.connect(':memory:', isolation_level=None)
        LogTables().create(db)
        with closing(db): yield db

    async def test_rows_that_json_does_not_carry(self, path, library, caplog):
        "They are skipped with a line in the log, and after a restart, too"
        async with managers(path, library=library) as (one, two), following('queue', one) as a, following('stream', two) as b:
            with Shell(path) as shell:
                assert shell.sql("insert into sse_log(fields, key) values ('{}', x'6b')").startswith('IntegrityError')
                shell.sql('pragma ignore_check_constraints=1')
                shell.sql("insert into sse_log(fields, key) values (json_object('type', 'n', 'data', 0), x'6b')")
                shell.sql("insert into sse_log(fields) values (cast(x'7b22ff227d' as text))")
            await one.broadcast('n', 1)
            for c in a, b: assert await c.data(1) == [1] and not c.gaps
        assert len([r for r in caplog.records if 'makes no sense' in r.message]) >= 4
        async with managers(path, 1, library=library) as (m,), following('queue', m) as c:
            await m.broadcast('n', 2)
            assert (await c.data(1))[-1] == 2
        with Shell(path) as shell: shell.sql('delete from sse_log')  # The check of the file names those rows

    def test_pages_are_bounded_by_bytes(self, db, monkeypatch):
        monkeypatch.setattr(sqlite_log, 'PAGE_BYTES', 1000)
        tables, at, sizes = LogTables(), Position(), []
        for n in 10, 400, 600, 600, 3000, 3000, 10: tables.append(db, 'x'*n)
        while rows := tables.read(db, at):
            sizes.append([len(r.text) for r in rows])
            for r in rows: at = at.after(r)
        assert sizes == [[10, 400, 600], [600, 3000], [3000], [10]]
        origin, newest, end = tables.past(db, 5)
        assert ([len(r.text) for r in newest], origin.seq, end) == ([3000, 10], 5, at)
        pages, lost = [], []
        reader = LogReader('it', tables, 9, pages.append, lost.extend)
        reader.load(db)
        for n in 3000, 3000: tables.append(db, 'x'*n)
        for _ in range(3):
            reader.reached(pages[-1].end)
            reader.look(db)
        assert [len(p.entries) for p in pages] == [2, 1, 1]

    def test_commands_come_in_their_order(self, db):
        "Also the one before the first message, and where plain SQL has mixed their places"
        tables = LogTables()
        for after in 0, 2, 1: db.execute("insert into sse_command(fields, after) values ('{}', ?)", (after,))
        for _ in range(3): tables.append(db, '{}')
        assert [(r.is_command, r.seq) for r in tables.read(db, Position())] == [
            (True, 1), (False, 1), (False, 2), (True, 2), (True, 3), (False, 3)]

    def test_pages_of_commands_are_bounded(self, db):
        "And a message does not overtake a command that is left for the next page"
        tables, at, wanted, pages = LogTables(), Position(), [], []
        for n, commands in enumerate((5, 1, 0, 7, 3)):
            if n: wanted.append((False, tables.append(db, '{}')[0]))
            wanted += [(True, tables.append_command(db, '{}')[0]) for _ in range(commands)]
        while rows := tables.read(db, at, limit=3):
            pages.append([(r.is_command, r.seq) for r in rows])
            for r in rows: at = at.after(r)
        assert sum(pages, []) == wanted and max(map(len, pages)) <= 6

    def test_what_comes_before_the_past(self, db, monkeypatch):
        "It has its true id where the past is cut because of its size, and another one where it was trimmed"
        tables = LogTables()
        for ms in 70, 71, 75: db.execute("insert into sse_log(ms, fields) values (?, 'some text')", (ms,))
        monkeypatch.setattr(sqlite_log, 'PAGE_BYTES', 1)
        assert tables.past(db, 5)[0][:2] == (2, 71)
        db.execute('delete from sse_log where seq<3')
        assert tables.past(db, 5)[0][:2] == (2, 75)

    def test_an_age_without_end(self, db):
        tables = LogTables()
        for _ in range(3): tables.append(db, '{}')
        assert not tables.trim(db, tables.past(db, 1)[2], 10, float(sys.maxsize))

    async def test_names_that_differ_in_case(self, path):
        "They are the same tables for SQLite"
        assert LogTables('SSE').name == 'sse'
        assert SQLiteBackend(path, 'SSE').address == SQLiteBackend(path, 'sse').address


class TestChores:
    "The trimming, the report and the checkpoints never hold up messages"
    async def test_a_checkpoint_that_fails(self, path, monkeypatch):
        "It is not tried again at once"
        tried = []
        def fail(self, handle):
            tried.append(1)
            raise sqlite3.OperationalError('database or disk is full')
        monkeypatch.setattr(sqlite_file.LogFile, 'checkpoint', fail)
        async with managers(path, 1, library='sqlite3') as (m,), following('queue', m) as c:
            for n in range(5): await m.broadcast('n', n)
            assert await c.data(5) == [*range(5)] and len(tried) == 1

    def test_it_is_read_where_the_work_fails(self, path, monkeypatch):
        looks = []
        monkeypatch.setattr(LogReader, 'look', lambda self, *args: looks.append(1))
        monkeypatch.setattr(sqlite_file.LogFile, 'checkpoint', lambda self, handle: 1/0)
        file, settings = sqlite_file.LogFile(path), SQLiteBackend(path).settings
        work = LogWork(file, LogTables(), settings, 'it', 9, lambda *args: None, print, None)
        work.begin(lambda: False)
        work.add('{}')
        work._chores.note(sqlite_writer.CHECKPOINT_ROWS)
        work.turn(came=True)
        work.end()
        assert looks == [1]

    async def test_a_chore_that_fails(self, path, monkeypatch, caplog):
        "The broadcasts of its transaction are written"
        monkeypatch.setattr(sqlite_writer, 'REFRESH', .01)
        monkeypatch.setattr(LogTables, 'trim', lambda *args: 1/0)
        async with managers(path, 1) as (m,), following('queue', m) as c:
            async with within('it has failed'):
                while 'ZeroDivisionError' not in caplog.text: await m.broadcast('n', 1)
            assert await m.broadcast('n', 2) == 1
            await eventually(lambda: ('n', 2) in c.seen)

    @needs_inotify
    async def test_a_write_wakes_the_thread(self, path, monkeypatch):
        "It need not look by itself"
        async with managers(path, 1) as (m,), following('queue', m) as c:
            with Shell(path) as shell:
                await m.broadcast('n', 0)
                for o in ('CHECK_INTERVAL', 'ACTIVE_SECS', 'IDLE_PAUSE'): monkeypatch.setattr(sqlite_thread, o, 0. if o == 'ACTIVE_SECS' else 1000.)
                for n in range(1, 4):
                    await in_thread(shell.sql, f"insert into sse_log(fields) values (json_object('type', 'n', 'data', {n}))")
                    assert await c.data(1 if n > 1 else 2) == [*range(n if n > 1 else 0, n+1)]

    @needs_inotify
    @pytest.mark.parametrize('trouble', ['none left', 'a write says nothing', 'a network'])
    async def test_no_alarm(self, path, monkeypatch, caplog, trouble):
        "Then it looks often, and says so"
        caplog.set_level('INFO')
        if trouble == 'none left': monkeypatch.setattr(sqlite_alarm.os, 'eventfd', lambda *args: os.open('/nowhere', 0))
        if trouble == 'a write says nothing': monkeypatch.setattr(sqlite_alarm, '_IN_MODIFY', 0x100)  # `IN_CREATE`
        if trouble == 'a network': monkeypatch.setattr(sqlite_alarm, 'network_of', lambda folder: 'NFS')
        descriptors = len(os.listdir('/proc/self/fd'))
        async with managers(path, 1) as (m,), following('queue', m) as c:
            with Shell(path) as shell:
                await m.broadcast('n', 0)
                monkeypatch.setattr(sqlite_thread, 'CHECK_INTERVAL', 1000.)
                await in_thread(shell.sql, "insert into sse_log(fields) values (json_object('type', 'n', 'data', 1))")
                assert await c.data(2) == [0, 1]
            assert 'looks often' in caplog.text
        assert len(os.listdir('/proc/self/fd')) <= descriptors

    def test_a_commit_that_leaves_no_trace(self, path, monkeypatch):
        "Size and time of `FILE-wal` spare an idle process most questions to SQLite, but not the one that it asks each second"
        monkeypatch.setattr(sqlite_file.LogFile, 'wal_stamp', lambda self: 'as ever')
        pages = []
        work = LogWork(sqlite_file.LogFile(path), LogTables(), SQLiteBackend(path).settings, 'it', 9, lambda f, *args: f(*args), pages.append, None)
        work.begin(lambda: False)
        work.reached(pages[-1].end)
        for _ in range(3): work.turn(came=False)
        with Shell(path) as shell: shell.sql("insert into sse_log(fields) values (json_object('type', 'n'))")
        work.turn(came=False)
        assert len(pages) == 1
        work.turn(came=True)
        assert len(pages) == 2
        work.end()

    def test_whoever_is_stuck_leads_no_more(self, path, monkeypatch):
        "A delivery that hangs while its event loop runs: its report is not renewed"
        pages, tables = [], LogTables()
        work = LogWork(sqlite_file.LogFile(path), tables, SQLiteBackend(path).settings, 'it', 9, lambda f, *args: f(*args), pages.append, None)
        def reports():
            work.turn(came=True)
            return tables.workers.reports(work._open.handle.connection)
        work.begin(lambda: False)
        monkeypatch.setattr(sqlite_reader, 'STUCK_SECS', -1)
        work.add('{}')
        assert reports() == {}
        work.reached(pages[-1].end)
        work.add('{}')
        assert reports() == dict(it='{}')
        work.end()

    async def test_what_is_locked_for_long(self, path):
        "Broadcasts that were given up leave the memory"
        async with managers(path, 1, timeout=.05) as (m,):
            await m.open()
            waiting = m._backend._session._thread._work._writer
            with Shell(path) as shell:
                shell.sql('begin immediate')
                for _ in range(3):
                    found = await asyncio.gather(*[m.broadcast('n', n) for n in range(9)], return_exceptions=True)
                    assert {*map(type, found)} == {BackendError}
                await eventually(lambda: not waiting.is_waiting)
                shell.sql('rollback')

    def test_deleted_while_it_is_opened(self, path):
        "A new file that is gone before its first page is read is not the one at the path"
        file = sqlite_file.LogFile(path)
        opened = OpenFile(file, lambda connection: os.remove(path))
        opened.begin(BOUND, lambda: False)
        assert not opened.is_same()
        opened.handle.close()

    async def test_questions_without_a_file(self, path):
        "They fail at once"
        async with managers(path, 1, timeout=BOUND) as (m,):
            await m.open()
            for o in '', '-wal', '-shm': os.remove(f'{path}{o}')
            with pytest.raises(BackendError, match='was deleted'): await asyncio.wait_for(m.cluster_stats(), BOUND/2)

    def test_whoever_hangs_reports_no_more(self, path, monkeypatch):
        "Its thread does not renew the report for ever, so another process leads"
        chores = sqlite_writer.Chores(None, LogTables(), SQLiteBackend(path).settings, 'it')
        db = sqlite3.connect(':memory:', isolation_level=None)
        LogTables().create(db)
        chores.set_report('{}')
        chores.write(db, Position())
        monkeypatch.setattr(sqlite_writer, 'REFRESH', 0.)
        assert chores.report_is_due()
        monkeypatch.setattr(sqlite_writer, 'REPORT_TTL', 0.)
        assert not chores.report_is_due()
        db.close()

    @pytest.mark.parametrize('times', [1, 2])
    async def test_a_renewal_that_fails(self, path, times, caplog):
        "The start fails with that error; later on it goes on"
        async def deliver(record): got.append(record)
        def renew(origin, records, **kw):
            calls.append(origin)
            if len(calls) == times: raise RuntimeError('renew')
        got, calls, b = [], [], SQLiteBackend(path, timeout=BOUND)
        try:
            if times == 1:
                with pytest.raises(RuntimeError, match='renew'): await asyncio.wait_for(b.start(9, deliver, renew), BOUND)
                return
            await b.start(9, deliver, renew)
            await b.publish(dict(type='n', data=1), None)
            with Shell(path) as shell:  # At once: what is published between two losses belongs to the past of the second
                for sql in ('begin immediate', 'delete from sse_log', "insert into sse_log(seq, fields) values (9, '{}')", 'commit'): shell.sql(sql)
            await eventually(lambda: len(calls) == 2)
            await b.publish(dict(type='n', data=2), None)
            assert got[-1].fields['data'] == 2
        finally: await b.stop()


class TestWithoutAnEventLoop:
    def test_a_publisher_is_light(self, path):
        code = ('import sys\nfrom cjm_fasthtml_sse.backends.sqlite import Publisher\n'
                'with Publisher(sys.argv[1]) as p:\n    for n in range(2): p.broadcast("n", n)\n'
                'assert not {"fasthtml", "redis", "cjm_fasthtml_sse.core"} & {*sys.modules}')
        subprocess.run([sys.executable, '-c', code, f'sqlite:///{path}'], check=True, timeout=BOUND)
        with Shell(path) as shell: assert shell.sql("select json_extract(fields, '$.data') from sse_log") == [[0], [1]]

    def test_many_threads(self, path, library):
        with Publisher(path, timeout=BOUND, library=library) as p, ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda n: p.broadcast('n', n), range(100)))
        with Shell(path) as shell:
            assert sorted(shell.sql("select json_extract(fields, '$.data') from sse_log")) == [[n] for n in range(100)]

    def test_a_deleted_file(self, path, tmp_path):
        "It is not made again, neither by a script nor by a backend"
        async def main():
            backend, script = SQLiteBackend(path), Publisher(tmp_path/'script.db')
            m = SSEBroadcastManager(backend=backend)
            await m.open()
            await in_thread(script.broadcast, 'n', 1)
            for o in tmp_path.glob('*.db*'): o.unlink()
            for send in script.send, backend.send:
                with pytest.raises(BackendError, match='was not sent'): await in_thread(send, dict(type='n', data=2))
            assert not [*tmp_path.glob('*.db')]
            await m.close()
            script.close()
        asyncio.run(main())

    def test_the_wal_of_a_script_is_bounded(self, path):
        "Also if no backend runs"
        with Publisher(path, timeout=BOUND) as p:
            for _ in range(60): p.broadcast('n', 'x'*200_000)
            assert Path(f'{path}-wal').stat().st_size < 8e6

    def test_closed_while_others_publish(self, path, library):
        with Publisher(path, timeout=BOUND, library=library) as p, ThreadPoolExecutor(5) as pool:
            sent = [pool.submit(p.broadcast, 'n', n) for n in range(200)]
            while not all(o.done() for o in sent): p.close()
            for o in sent: o.result()

    def test_two_forks_at_once(self, path):
        "The second one waits for the first, and no connection stays locked"
        with Publisher(path, timeout=BOUND) as p:
            p.broadcast('n', 1)
            held, second = threading.Event(), threading.Thread(target=lambda: (held.set(), Handle.hold_all(), Handle.release_all()))
            Handle.hold_all()
            second.start()
            assert held.wait(BOUND)
            second.join(.1)
            Handle.release_all()
            second.join(BOUND)
            sender = threading.Thread(target=p.broadcast, args=('n', 2), daemon=True)
            sender.start()
            sender.join(BOUND)
            assert not sender.is_alive()

    def test_it_survives_a_fork(self, path, library):
        p = Publisher(path, timeout=BOUND, library=library)
        p.broadcast('n', 'parent')
        stop = threading.Event()
        def busy():
            while not stop.is_set(): p.broadcast('busy', 0)
        thread = threading.Thread(target=busy)
        thread.start()
        for _ in range(5):
            assert os.waitpid(forked(lambda: p.broadcast('n', 'child')), 0)[1] == 0
        stop.set()
        thread.join(BOUND)
        p.broadcast('n', 'parent again')
        p.close()
        with Shell(path) as shell:
            found = shell.sql("select json_extract(fields, '$.data') from sse_log where json_extract(fields, '$.type')='n'")
            assert [o for o, in found] == ['parent', *['child']*5, 'parent again']
    for mark in forks: test_it_survives_a_fork = mark(test_it_survives_a_fork)

    def test_a_manager_that_was_forked(self, path):
        "A process that is forked off while the manager runs publishes over a connection of its own"
        async def main():
            async with managers(path, 1) as (m,), following('queue', m) as c:
                await m.broadcast('n', 'parent')
                def child():
                    asyncio._set_running_loop(None)
                    assert m.broadcast('n', 'child').result(BOUND) == 0
                assert (await in_thread(os.waitpid, forked(child), 0))[1] == 0
                assert await c.data(2) == ['parent', 'child']
        asyncio.run(main())
    for mark in forks: test_a_manager_that_was_forked = mark(test_a_manager_that_was_forked)


def said(stream): return [json.loads(e.data) for e in stream.events if e.event == 'said']


class TestServers:
    @pytest.mark.parametrize('fastlite', ['', pytest.param('1', marks=pytest.mark.skipif(not find_spec('fastlite'), reason='needs fastlite'))],
                             ids=['sqlite3', 'fastlite'])
    def test_two_workers(self, path, tmp_path, fastlite):
        "On one file: they see the same, in plain routes too; one is killed, both start anew, and browsers go on where they were"
        start = dict(cmd=uvicorn('one_file:app', '--workers', '2'), log=tmp_path/'log', cwd=HERE/'apps', env=dict(DB=str(path), FASTLITE=fastlite))
        with running(**start) as app:
            def here(): return {app.get('/here').json()['pid'] for _ in range(30)}
            wait_until(lambda: len(here()) == 2, 'both answer')
            with Stream(app, '/events?user=ann') as a, Stream(app, '/events?user=bob') as b:
                for s in a, b: s.begun()
                for n in range(5): app.get('/say', text=f'n{n}')
                assert app.get('/say_from_a_thread', text='n5').status_code == 200
                subprocess.run([sys.executable, '-c', 'import sys\nfrom cjm_fasthtml_sse.backends.sqlite import Publisher\n'
                    'with Publisher(sys.argv[1]) as p: p.broadcast("said", "n6")', f'sqlite:///{path}'], check=True, timeout=BOUND)
                for s in a, b:
                    s.says('n6')
                    assert said(s) == [f'n{n}' for n in range(7)]
                wait_until(lambda: app.get('/everywhere').json()['users'] == dict(ann=1, bob=1), 'all say what they have')
                app.get('/log_out', user='ann')
                a.until_end()
                last = b.events[-1].id
            os.kill(max(here()), signal.SIGKILL)
            def goes_on():
                with suppress(httpx.HTTPError): return app.get('/say', text='n7').status_code == 200
            wait_until(goes_on, 'the other goes on')
            wait_until(lambda: len(here()) == 2, 'uvicorn starts another one')
        with running(**start) as app:
            app.get('/say', text='end')
            with Stream(app, last_event_id=last) as c:
                c.says('end')
                assert [*dict.fromkeys(said(c))] == ['n7', 'end'] and not [e for e in c.events if e.event == GAP]
            assert 'Traceback' not in app.output
