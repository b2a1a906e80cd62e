"""What may happen to the SQLite file of a log, and to the disk below it: a clear error, or a gap that is told, and never a silent loss

Each test ends with the integrity check, by another process. What several workers make of a file that is locked, restored or
deleted is in `test_over_sqlite`.
"""
import asyncio
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from cjm_fasthtml_sse.backends.sqlite import Publisher
from cjm_fasthtml_sse.core import BackendError
from tests.contract.support import BOUND, GAP, Site, client, eventually, following, until_sent, within
from tests.contract.stores import SQLite, Shell, in_thread, managers

is_root = hasattr(os, 'geteuid') and os.geteuid() == 0


async def script(code, *args, **kw):
    "Run a program to its end"
    def run(): return subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, timeout=BOUND, **kw)
    return await asyncio.to_thread(run)


class TestLocked:
    async def test_routes_while_it_is_locked(self, path, library):
        "A hundred are answered, and streams open, before the lock is free. What was broadcast meanwhile arrives then"
        async with managers(path, 1, timeout=BOUND, library=library) as (m,):
            site = Site(m)
            @site.app.get('/')
            def index(): return 'hello'
            @site.app.get('/say')
            def say(): return str(m.broadcast('n', 'from a plain route').result(BOUND))
            async def in_block():
                async with m.transaction(): m.broadcast('n', 'in a block')
            web = httpx.AsyncClient(transport=httpx.ASGITransport(site.app), base_url='http://test')
            async with web, following('stream', m) as a:
                await m.broadcast('n', 'first')
                with Shell(path) as shell:
                    shell.sql('begin immediate')
                    waiting = [*(m.broadcast('n', n) for n in range(50)), *(web.get('/say') for _ in range(3)), in_block()]
                    sent = [asyncio.ensure_future(o) for o in waiting]
                    async with within('routes are answered', BOUND/2):
                        for _ in range(100): assert (await web.get('/')).text.endswith('hello')
                        async with following('stream', m, last_id=m.cursor): pass
                    assert len(a.messages) == 1 and not any(o.done() for o in sent)
                    shell.sql('commit')
                await asyncio.gather(*sent)
                seen = await a.data(55)
                assert [o for o in seen if isinstance(o, int)] == [*range(50)]
                assert seen.count('from a plain route') == 3 and seen.count('in a block') == 1


LOST = '''
import asyncio, os, signal, sys
from pathlib import Path
from cjm_fasthtml_sse.core import SSEBroadcastManager
async def main():
    m = SSEBroadcastManager(backend=Path(sys.argv[1]))
    for n in range(40):
        await m.broadcast('n', n)
        print(m.cursor, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
'''


class TestTornWAL:
    @pytest.mark.parametrize('damage', ['cut in two', 'a bit in the middle', 'its header', 'all of it', 'the shared memory'])
    async def test_after_a_kill(self, path, damage):
        "What is left is the beginning. Whoever has seen more is told of a gap, also when the same places are taken again"
        died = await script(LOST, path)
        ids, wal = died.stdout.split(), Path(f'{path}-wal')
        assert died.returncode == -signal.SIGKILL and len(ids) == 40
        data = bytearray(wal.read_bytes())  # Nobody has the file open
        frame = 4096+24
        middle = len(data)//2//frame*frame
        if damage == 'cut in two': del data[middle+32:]
        elif damage == 'a bit in the middle': data[middle] ^= 1
        elif damage == 'its header': data[:32] = bytes(32)
        if damage == 'all of it': wal.unlink()
        else: wal.write_bytes(data)
        if damage == 'the shared memory': Path(f'{path}-shm').write_bytes(os.urandom(2**15))
        async with managers(path, 1) as (m,):
            await m.open()
            kept = [o['data'] for o in m.get_history()]
            assert kept == [*range(len(kept))] and (len(kept) == 40) == (damage == 'the shared memory')
            for again in False, True:
                want = [*kept, *['new']*40*again]
                for n in {*range(0, 40, 13), len(kept)-1, len(kept), 39} & {*range(40)}:
                    async with client('stream', m, last_id=ids[n]) as back:
                        if n >= len(kept): assert await back.next() == (GAP, None)
                        elif want[n+1:]: assert await back.data(len(want)-n-1) == want[n+1:] and not back.gaps
                if not again: await asyncio.gather(*[m.broadcast('n', 'new') for _ in range(40)])


@pytest.fixture(name='disk')
def _disk(tmp_path):
    "`disk(size)` is the folder of a small disk"
    folder, mounted = tmp_path/'disk', []
    folder.mkdir()
    def mount(size):
        if not is_root or subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder], capture_output=True).returncode:
            pytest.skip('needs root, to mount')
        mounted.append(folder)
        return folder
    yield mount
    for o in mounted: subprocess.run(['umount', '-l', o], check=True)


class TestFullDisk:
    async def test_at_the_start(self, disk):
        path = disk('200k')/'app.db'
        (path.parent/'other').write_bytes(b'x'*190_000)
        async with managers(path, 2) as (one, two):
            with pytest.raises(BackendError, match='full|I/O'): await one.open()
            with pytest.raises(BackendError, match='(full|I/O).*was not sent'): await in_thread(Publisher(path).broadcast, 'n', 1)
            (path.parent/'other').unlink()
            assert await until_sent(one, 'n', 1) == await until_sent(two, 'n', 2) == 0
        with Shell(path) as shell: assert shell.sql('pragma integrity_check') == [['ok']]


class TestBlocks:
    "A transaction of the app is whole, or there is nothing of it: neither a row nor a message"
    @pytest.mark.parametrize('what', ['the disk is full', 'the file is replaced', 'the file is deleted'])
    async def test_a_commit_that_fails(self, disk, what):
        folder = disk('1m')
        path = folder/'app.db'
        async with managers(path, 1) as (m,), following('stream', m) as c:
            async with m.transaction() as db: db.execute('create table todo(title)')
            await m.broadcast('n', 0)
            with Shell(path) as shell: shell.sql(f"vacuum into '{folder}/backup'")
            with pytest.raises((BackendError, sqlite3.OperationalError), match='full|deleted or replaced'):
                async with m.transaction() as db:
                    db.execute("insert into todo values ('a')")
                    sent = m.broadcast('n', 1)
                    if what == 'the disk is full': m.broadcast('n', 'x'*2_000_000)
                    else:
                        for o in folder.glob('app.db*'): o.unlink()
                        if what == 'the file is replaced': os.rename(folder/'backup', path)
            with suppress(BackendError): assert await sent == 0 and what != 'the disk is full'  # It was committed to a file that is gone
            if what == 'the file is deleted': os.rename(folder/'backup', path)
            assert await until_sent(m, 'n', 2) == 1
            async with m.transaction() as db:
                assert db.execute('select * from todo').fetchall() == []
                m.broadcast('n', 3)
            await eventually(lambda: ('n', 3) in c.seen)
            wanted = [('n', n) for n in (0, 2, 3)]
            if what != 'the disk is full': wanted[1:1] = [(GAP, None)]
            if ('n', 1) in c.seen: wanted[1:1] = [('n', 1)]  # It was read from the file that is gone
            assert c.seen == wanted and (what != 'the disk is full' or ('n', 1) not in c.seen)
        with Shell(path) as shell: assert shell.sql('pragma integrity_check') == [['ok']]


class TestUnusable:
    @pytest.mark.parametrize('new', ['a backup', 'something else'])
    async def test_another_file_takes_its_place(self, path, tmp_path, new):
        """`FILE-wal` is still that of the file before it, and SQLite would mix the two: broadcasts fail and say so. Without it, all
        go on with what stands there, as soon as that is a database"""
        async with managers(path, 1) as (m,), following('stream', m) as c:
            with Publisher(path) as script:
                for n in range(5): await m.broadcast('n', n)
                with Shell(path) as shell: shell.sql(f"vacuum into '{tmp_path}/backup'")
                for n in range(5, 9): await m.broadcast('n', n)
                await in_thread(script.broadcast, 'n', 9)
                assert await c.data(10) == [*range(10)]
                if new == 'something else': (tmp_path/'other').write_text('Dear SQLite, '*100)
                else: shutil.copy(tmp_path/'backup', tmp_path/'other')
                os.replace(tmp_path/'other', path)
                async def fails(why):
                    found = await asyncio.gather(*[m.broadcast('n', 1) for _ in range(20)], return_exceptions=True)
                    assert all(isinstance(o, BackendError) and 'was not sent' in str(o) and re.search(why, str(o)) for o in found), found
                    with pytest.raises(BackendError, match=f'{why}.* was not sent'): await in_thread(script.broadcast, 'n', 2)
                for _ in range(2): await fails('app.db-wal belongs to the file that .*/app.db has replaced')
                for o in '-wal', '-shm': Path(f'{path}{o}').unlink()
                if new == 'something else':
                    await fails('file is not a database')
                    os.replace(tmp_path/'backup', path)
                assert await until_sent(m, 'n', 10) == 1
                assert await c.read(2) == [(GAP, None), ('n', 10)]
                await in_thread(script.broadcast, 'n', 11)
                assert await c.next() == ('n', 11)
        assert [data for _, data in SQLite(path).history()] == [*range(5), 10, 11]

    @pytest.mark.parametrize('what', [['-wal'], ['-wal', '-shm']], ids=str)
    async def test_its_wal_is_removed(self, path, what):
        "Whoever opens the file now would not see what these processes write: they refuse, and lose nothing"
        async with managers(path) as (one, two), following('stream', one) as a, following('stream', two) as b:
            with Publisher(path) as script:
                for n in range(5): await one.broadcast('n', n)
                await in_thread(script.broadcast, 'n', 5)
                for c in a, b: assert await c.data(6) == [*range(6)]
                for o in what: Path(f'{path}{o}').unlink()
                for m in one, two:
                    with pytest.raises(BackendError, match='wal was removed while.*was not sent'): await m.broadcast('n', 6)
                with pytest.raises(BackendError, match='wal was removed while.*was not sent'): await in_thread(script.broadcast, 'n', 6)
                assert not a.gaps and not b.gaps
        async with managers(path, 1) as (m,):
            await m.broadcast('n', 7)
            assert [o['data'] for o in m.get_history()] == [*range(6), 7]


class TestRestored:
    async def test_into_a_log_without_messages(self, path, tmp_path):
        "What the backup holds is past, and not sent to those who listen now; they are told of a gap"
        with Publisher(tmp_path/'backup') as old:
            for n in range(3): old.broadcast('n', n)
        async with managers(path) as (one, two), following('stream', one) as a, following('stream', two) as b:
            with Shell(path) as shell: shell.run(f"restore('{tmp_path}/backup')")
            await eventually(lambda: all(c.messages for c in (a, b)))
            assert await one.broadcast('n', 3) == 1
            for c in a, b: assert await c.read(2) == [(GAP, None), ('n', 3)]
            async with client('stream', two, last_id=a.last_id) as back:
                await one.broadcast('n', 4)
                assert await back.next() == ('n', 4)


NOBODY = '''
import asyncio, os, sqlite3, sys
from pathlib import Path
from cjm_fasthtml_sse.backends.sqlite import Publisher
from cjm_fasthtml_sse.core import BackendError, SSEBroadcastManager
os.setgid(65534), os.setuid(65534)
async def attempt(m):
    try: return await m.broadcast('n', 'from nobody')
    except BackendError as e: return str(e)
async def main():
    m = SSEBroadcastManager(backend=Path(sys.argv[1]))
    print(await attempt(m))
    try: print(await asyncio.to_thread(Publisher(Path(sys.argv[1])).broadcast, 'n', 'from nobody'))
    except BackendError as e: print(e)
    sys.stdin.readline()
    while isinstance(found := await attempt(m), str): pass
    print(found)
    await m.close()
asyncio.run(main())
'''


class TestReadOnly:
    @pytest.mark.skipif(not is_root, reason='needs root, to be somebody else')
    @pytest.mark.parametrize('what', ['the file', 'the folder'])
    async def test_then_it_may_write(self, what):
        "Each broadcast says that it may not; once it may, that process goes on by itself"
        with tempfile.TemporaryDirectory() as folder: await self.is_refused(Path(folder), what)  # Whose parents are open to all

    async def is_refused(self, folder, what):
        path = folder/'app.db'
        async with managers(path, 1) as (m,): await m.broadcast('n', 0)
        path.chmod(0o644 if what == 'the file' else 0o666)
        folder.chmod(0o777 if what == 'the file' else 0o755)
        other = await asyncio.create_subprocess_exec(sys.executable, '-c', NOBODY, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            async with within('it goes on by itself'):
                for _ in range(2): assert re.search(b'readonly|unable to open', await other.stdout.readline())
                path.chmod(0o666), folder.chmod(0o777)
                other.stdin.write(b'\n')
                assert await other.stdout.readline() == b'0\n'
        finally:
            if other.returncode is None: other.kill()
            await other.wait()
        async with managers(path, 1) as (m,):
            await m.open()
            assert [o['data'] for o in m.get_history()] == [0, 'from nobody']
        with Shell(path) as shell: assert shell.sql('pragma integrity_check') == [['ok']]

    @pytest.mark.skipif(not hasattr(signal, 'SIGXFSZ'), reason='needs limits of files')
    async def test_a_file_that_may_not_grow(self, path):
        "Each broadcast says so, no half of one is read, and once it may grow all go on"
        code = '''
import asyncio, resource, signal, sys
from pathlib import Path
from cjm_fasthtml_sse.core import BackendError, SSEBroadcastManager
def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
async def main():
    m, failed = SSEBroadcastManager(backend=Path(sys.argv[1])), set()
    for n in range(15):
        if n == 5: limit(1000)
        if n == 8: limit(resource.RLIM_INFINITY)
        while True:
            try: await m.broadcast('n', [n, 'x'*9000])
            except BackendError as e:
                print(e)
                if n < 8: break
            else: break
    await m.close()
asyncio.run(main())
'''
        async with managers(path, 1) as (m,), following('stream', m) as c:
            done = await script(code, path)
            assert done.returncode == 0, done.stderr
            *failed, = done.stdout.splitlines()
            assert failed and all(re.search('(I/O error|full).* was not sent', o) for o in failed)
            assert [data[0] for _, data in await c.read(12)] == [*range(5), *range(8, 15)] and not c.gaps
