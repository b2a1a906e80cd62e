"""The SQLite backend under faults, where the contract leaves off: threads, the clock, and what must not gather

What the contract promises is in `contract/test_faults_of_sqlite.py`.
"""
import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import suppress
from random import Random
from types import SimpleNamespace

import pytest

from cjm_fasthtml_sse.backends import sqlite_driver, sqlite_log, sqlite_writer
from cjm_fasthtml_sse.backends.sqlite import Publisher
from cjm_fasthtml_sse.backends.sqlite_file import LogFile
from cjm_fasthtml_sse.backends.sqlite_log import LogTables
from cjm_fasthtml_sse.core import BackendError
from tests.contract.support import BOUND, client, eventually, following, until_sent, within
from tests.contract.stores import Shell, in_thread, managers


class TestThread:
    async def test_the_event_loop_never_touches_the_file(self, path, library, monkeypatch):
        "So nothing can hold it up: neither a lock nor a slow disk"
        class Watched:
            def __init__(self, connection): self.__dict__['_connection'] = connection
            def __getattr__(self, name):
                touched.append((name, threading.current_thread()))
                return getattr(self._connection, name)
        def driver(): return original._replace(connect=lambda *args: Watched(original.connect(*args)))
        touched, original = [], sqlite_driver.DRIVERS[library]()
        monkeypatch.setitem(sqlite_driver.DRIVERS, library, driver)
        async with managers(path, library=library) as (one, two), following('stream', one, user='ann') as a, following('channel', two) as b:
            for n in range(3): await one.broadcast('n', n)
            await in_thread(lambda: two.broadcast('n', 3).result(BOUND))
            async with two.transaction(): two.broadcast('n', 4)
            with suppress(ZeroDivisionError):
                async with two.transaction(): two.broadcast('n', 1/0)
            assert await b.data(5) == [*range(5)]
            async with client('stream', two, last_id=b.messages[0].id) as back: await back.data(4)
            await one.cluster_stats()
            await two.disconnect('ann')
            await a.ends()
        assert len(touched) > 20 and threading.main_thread() not in {thread for _, thread in touched}

    async def test_a_checkpoint_makes_room(self, path, monkeypatch):
        "Where `FILE-wal` has no room, what stands in it may fit into the file. This does not wait until enough was written"
        def full(*args):
            e = sqlite3.OperationalError('database or disk is full')
            e.sqlite_errorcode = 13
            raise e
        made, checkpoint = [], LogFile.checkpoint
        async with managers(path, 2, library='sqlite3') as (one, two), following('stream', two) as c:
            for m in one, two: await m.broadcast('n', 0)
            monkeypatch.setattr(LogFile, 'checkpoint', lambda *args: made.append(checkpoint(*args)))
            for m in one, two:
                with monkeypatch.context() as patch:
                    patch.setattr(LogTables, 'append_all', full)
                    with pytest.raises(BackendError, match='full. The broadcast was not sent'): await m.broadcast('n', 1)
                await until_sent(m, 'n', 2)
            assert await c.data(4) == [0, 0, 2, 2]
        assert len(made) == 2

    async def test_nothing_gathers(self, path, tmp_path):
        "Where a file can't be used, what was broadcast leaves the memory"
        async with managers(path, 1, timeout=BOUND) as (m,):
            await m.open()
            for o in path.parent.glob(f'{path.name}*'): o.unlink()
            path.write_text('Dear SQLite, '*100)
            writer = m._backend._session._thread._work._writer
            for _ in range(3):
                found = await asyncio.gather(*[m.broadcast('n', 1) for _ in range(20)], return_exceptions=True)
                assert all('not a database. The broadcast was not sent' in str(o) for o in found), found
            assert not writer.is_waiting
        path.unlink()

    @pytest.mark.parametrize('at', ['ensure', 'append'])
    @pytest.mark.parametrize('replaced', [False, True])
    def test_lost_while_a_script_writes(self, path, tmp_path, monkeypatch, at, replaced):
        "What went into a file that nobody will read was not sent, or that is not known: it is no success"
        done, original = [], getattr(LogTables, at)
        def lose(*args):
            if not done:
                done.append(1)
                with Publisher(tmp_path/'new.db') as new: new.broadcast('n', 0)
                for o in path.parent.glob(f'{path.name}*'): o.unlink()
                if replaced: os.rename(tmp_path/'new.db', path)
            return original(*args)
        with Publisher(path) as p:
            if at == 'append': p.broadcast('n', 1)
            monkeypatch.setattr(LogTables, at, lose)
            with pytest.raises(BackendError, match='deleted|replaced|not sent'): p.broadcast('n', 2)
            if not replaced:
                with pytest.raises(BackendError, match='was not sent'): p.broadcast('n', 3)
            else: p.broadcast('n', 4)


BUSY = '''
import asyncio, sys
from pathlib import Path
from cjm_fasthtml_sse.backends import sqlite_writer
from cjm_fasthtml_sse.backends.sqlite import SQLiteBackend
from cjm_fasthtml_sse.core import SSEBroadcastManager
sqlite_writer.REFRESH, sqlite_writer.CHECKPOINT_ROWS = .005, 20
async def main():
    m, n = SSEBroadcastManager(backend=SQLiteBackend(Path(sys.argv[1]), max_length=30)), int(sys.argv[2])
    while True:
        n += 20
        await asyncio.gather(*[m.broadcast('n', i) for i in range(n-20, n)])
        print(n, flush=True)
asyncio.run(main())
'''


async def test_kills_in_the_midst(path):
    "Of writing, trimming and checkpoints, one right after the other: nothing that was acknowledged is lost, and nothing else is there"
    acknowledged, rnd = 0, Random(1)
    for _ in range(3):
        worker = await asyncio.create_subprocess_exec(sys.executable, '-c', BUSY, path, str(acknowledged), stdout=subprocess.PIPE)
        for _ in range(rnd.randrange(1, 30)): await asyncio.wait_for(worker.stdout.readline(), BOUND)
        worker.kill()
        acknowledged = max(int(o) for o in (await worker.stdout.read()).split() or [acknowledged])
        with Shell(path) as shell: rows = shell.sql("select seq, json_extract(fields, '$.data') from sse_log")
        assert [seq for seq, _ in rows] == [*range(rows[0][0], rows[-1][0]+1)]
        data = [n for _, n in rows]
        assert data == [*range(data[0], data[-1]+1)] and data[-1] >= acknowledged-1
        acknowledged = data[-1]+1
    assert rows[0][0] > 1, 'nothing was trimmed'


class TestClock:
    @pytest.fixture
    def clock(self, monkeypatch):
        "`clock.ahead` are the seconds by which it is wrong"
        clock, real = SimpleNamespace(ahead=0), time.time
        def shift(secs):
            clock.ahead = secs
            monkeypatch.setattr(sqlite_log, 'NOW_MS', f'({now}+{1000*secs})')
        now = sqlite_log.NOW_MS
        monkeypatch.setattr(sqlite_log, 'time', SimpleNamespace(
            time=lambda: real()+clock.ahead, time_ns=lambda: int(1e9*(real()+clock.ahead))))
        monkeypatch.setattr(sqlite_writer, 'REFRESH', .05)
        clock.shift = shift
        return clock

    @pytest.mark.parametrize('jumps', [(-31_536_000, 0), (31_536_000, 0), (-90_000, 90_000)], ids=str)
    async def test_jumps(self, path, clock, jumps):
        "Whoever listens misses nothing, and whoever comes back hears all or is told of a gap. Both workers are counted"
        async def comes_back(m):
            "Everybody, with each id that there is"
            for n, e in enumerate(a.messages[:-1]):
                async with client('stream', m, last_id=e.id) as back:
                    await eventually(lambda: len(back.messages) == len(want)-n-1 or back.gaps)
                    assert back.gaps or [data for _, data in back.seen] == want[n+1:]
        want = []
        async with managers(path) as (one, two), following('stream', one) as a, following('stream', two) as b:
            for i, secs in enumerate((0, *jumps)):
                clock.shift(secs)
                for n in range(3): await one.broadcast('n', [i, n])
                await in_thread(two._backend.send, dict(type='n', data=[i, 3]))
                want += [[i, n] for n in range(4)]
                for c in a, b: assert await c.data(4) == want[-4:] and not c.gaps
                async with within('both are counted'):
                    while (await one.cluster_stats())['workers'] != 2: await asyncio.sleep(.02)
                await comes_back(two)
            for _ in range(9): await one.cluster_stats(), await asyncio.sleep(.05)  # What is too old by this clock is trimmed
        async with managers(path, 1) as (m,):
            await m.open()
            await comes_back(m)
