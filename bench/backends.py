"""What the backends cost, side by side: memory, an SQLite file, Redis; writes results/backends.json for the page "Several workers"

    python bench/backends.py [--rounds 3] [--folder FOLDER]
    python bench/pages.py

The file and Redis' log are in a folder of their own below FOLDER, by default below this one: `full` and `always` cost what its disk
takes to keep something. Starts a redis-server of its own, or leaves it out where none is installed. Three rounds take five minutes.
"""
import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

import harness

from cjm_fasthtml_sse.backends.redis import Publisher as RedisPublisher
from cjm_fasthtml_sse.backends.redis import RedisBackend
from cjm_fasthtml_sse.backends.sqlite import Publisher as SQLitePublisher
from cjm_fasthtml_sse.backends.sqlite import SQLiteBackend
from cjm_fasthtml_sse.core import SSEBroadcastManager

RATE, SECS, IDLE, BUSY, BURST, SIZE = 100, 6, 8, 1.5, 2000, 200  # Broadcasts a second, for how long; seconds idle, and busy; broadcasts at once; bytes
FILES = {'`sqlite:///`': 'normal', "`synchronous='full'`": 'full'}
SERVERS = {'`redis://`': 'everysec', '`appendfsync always`': 'always'}
spawn = multiprocessing.get_context('spawn')


def file(path, synchronous): return SQLiteBackend(path, synchronous=synchronous)
def server(url): return RedisBackend(url, timeout=10)
def file_publisher(path, synchronous): return SQLitePublisher(path, synchronous=synchronous)
def server_publisher(url): return RedisPublisher(url, timeout=10)


@contextmanager
def redis_server(folder, fsync):
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    folder.mkdir()
    words = [shutil.which('redis-server') or shutil.which('valkey-server'), '--port', str(port), '--bind', '127.0.0.1', '--save', '',
             '--appendonly', 'yes', '--appendfsync', fsync, '--dir', str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(400):
            try: socket.create_connection(('127.0.0.1', port), 1).close()
            except OSError: time.sleep(.025)
            else: break
        yield f'redis://127.0.0.1:{port}',process.pid
    finally:
        process.kill()
        process.wait(10)


def cpu(pid):
    "Seconds of processor time that a process has had"
    words = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(words[11])+int(words[12]))/os.sysconf('SC_CLK_TCK')


async def listen(manager, n, ready):
    "Milliseconds from the call of each of `n` broadcasts until it is in a queue here"
    async with manager.subscribe('n') as queue:
        ready()
        times = []
        for _ in range(n):
            sent,_ = (await queue.get())['data']
            times.append(1000*(time.monotonic()-sent))
        return times


async def idle(secs):
    "The share of a core that this process takes while nothing happens"
    await asyncio.sleep(1)
    begin,used = time.monotonic(),time.process_time()
    await asyncio.sleep(secs)
    return (time.process_time()-used)/(time.monotonic()-begin)


async def tick(manager, n):
    "Broadcast `n` times, `RATE` a second"
    start = time.monotonic()
    for i in range(n):
        await asyncio.sleep(max(0, start+i/RATE-time.monotonic()))
        manager.broadcast('n', [time.monotonic(), 'x'*SIZE])


def another(make, n, secs, ready, answers):
    "A process that listens, and then does nothing for a while: its times, and its share of a core"
    async def main():
        manager = SSEBroadcastManager(backend=make())
        await manager.open()
        answers.put((await listen(manager, n, ready.release), await idle(secs)))
        await manager.close()
    asyncio.run(main())


async def one_by_one(manager):
    "Broadcasts a second that are awaited, one after another"
    n,begin = 0,time.monotonic()
    while time.monotonic()-begin<BUSY:
        await manager.broadcast('m', 'x'*SIZE)
        n += 1
    return n/(time.monotonic()-begin)


async def at_once(manager):
    begin = time.monotonic()
    await asyncio.gather(*[manager.broadcast('m', 'x'*SIZE) for _ in range(BURST)])
    return BURST/(time.monotonic()-begin)


def from_a_script(publisher):
    n,begin = 0,time.monotonic()
    with publisher:
        while time.monotonic()-begin<BUSY:
            publisher.broadcast('m', 'x'*SIZE)
            n += 1
    return n/(time.monotonic()-begin)


def in_transactions(manager):
    "Transactions a second with one row and one broadcast, in a thread"
    with manager.transaction() as db: db.execute('create table if not exists todo(title)')
    n,begin = 0,time.monotonic()
    while time.monotonic()-begin<BUSY:
        with manager.transaction() as db:
            db.execute('insert into todo values(?)', ('x'*SIZE,))
            manager.broadcast('m', 'x'*SIZE)
        n += 1
    return n/(time.monotonic()-begin)


def percentiles(times):
    times = sorted(times)
    return dict(p50=times[len(times)//2], p99=times[int(.99*len(times))])


async def measured(make, make_publisher, server_pid):
    manager,n = SSEBroadcastManager(backend=make and make()),round(RATE*SECS)
    await manager.open()
    if make is None:
        listening = asyncio.create_task(listen(manager, n, lambda: None))
        await tick(manager, n)
        found = dict(**percentiles(await listening), idle=100*await idle(IDLE))
    else:
        ready,answers = spawn.Semaphore(0),spawn.Queue()
        process = spawn.Process(target=another, args=(make, n, IDLE, ready, answers))
        process.start()
        await asyncio.to_thread(ready.acquire)
        await tick(manager, n)
        before,began = server_pid and cpu(server_pid),time.monotonic()
        times,share = await asyncio.to_thread(answers.get)
        found = dict(**percentiles(times), idle=100*share)
        if server_pid: found['server_idle'] = 100*(cpu(server_pid)-before)/(time.monotonic()-began)
        await asyncio.to_thread(process.join)
    found |= dict(one_by_one=await one_by_one(manager), at_once=await at_once(manager))
    if make_publisher: found['script'] = await asyncio.to_thread(from_a_script, make_publisher())
    if isinstance(manager._backend, SQLiteBackend): found['transactions'] = await asyncio.to_thread(in_transactions, manager)
    await manager.close()
    return found


def case(name, folder):
    "Measure one backend, with all of it new"
    with tempfile.TemporaryDirectory(dir=folder) as f, ExitStack() as stack:
        make = make_publisher = pid = None
        if name in FILES:
            make,make_publisher = (partial(o, Path(f)/'app.db', FILES[name]) for o in (file, file_publisher))
        if name in SERVERS:
            url,pid = stack.enter_context(redis_server(Path(f)/'redis', SERVERS[name]))
            make,make_publisher = partial(server, url),partial(server_publisher, url)
        return asyncio.run(measured(make, make_publisher, pid))


def fsync_ms(folder, n=100):
    "What the disk takes to keep one page"
    with tempfile.NamedTemporaryFile(dir=folder) as f:
        begin = time.monotonic()
        for _ in range(n):
            f.write(b'x'*4096)
            f.flush()
            os.fdatasync(f.fileno())
        return round(1000*(time.monotonic()-begin)/n, 2)


def versions():
    found = {'python': platform.python_version(), 'SQLite': sqlite3.sqlite_version}
    if binary := shutil.which('redis-server') or shutil.which('valkey-server'):
        text = subprocess.run([binary, '--version'], capture_output=True, text=True).stdout
        found |= {'Redis': text.partition('v=')[2].split()[0], 'redis-py': version('redis')}
    return found


if __name__=='__main__':
    parser = argparse.ArgumentParser(description='What the backends cost, side by side')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--folder', default=harness.HERE, help='where files are made for the time; not in memory')
    args = parser.parse_args()
    names = ['memory', *FILES, *(SERVERS if 'Redis' in versions() else [])]
    load,disk = harness.load(),fsync_ms(args.folder)
    found = harness.rounds(args.rounds, {name: partial(case, name, args.folder) for name in names})
    about = dict(date=date.today().isoformat(), machine=harness.machine(), versions=versions(), rounds=args.rounds, load=load, fsync_ms=disk)
    path = harness.RESULTS/'backends.json'
    path.write_text(json.dumps(dict(**about, found=found), indent=1)+'\n')
    print(f'-> {path.relative_to(harness.ROOT)}')
