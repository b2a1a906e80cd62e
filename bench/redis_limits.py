"""Where one Redis ends: what a broadcast costs the processes and the server, by the number of readers

    python bench/redis_limits.py [--readers 1 2 4 8 16] [--messages 3000] [--size 200]

Starts a redis-server of its own. Rates hold for this machine; the server's CPU per message and reader tells how far one core goes.
"""
import argparse
import asyncio
import multiprocessing
import shutil
import socket
import subprocess
import tempfile
import time

import redis

from cjm_fasthtml_sse.backends.redis import Publisher, RedisBackend


def cpu(client):
    "Seconds of CPU that the server has used"
    info = client.info('cpu')
    return info['used_cpu_user']+info['used_cpu_sys']


class Reader:
    "What a manager is to a backend, without the tabs"
    def __init__(self): self.got = 0
    async def deliver(self, record):
        self.got += 1
        return 0

async def started(url, reader):
    backend = RedisBackend(url, max_length=100_000)
    await backend.start(100, reader.deliver, lambda origin, records: None)
    return backend


def read(url, n, ready, result):
    "A process that reads `n` messages, and tells what CPU that took it"
    async def main():
        reader = Reader()
        backend = await started(url, reader)
        ready.release()
        before = time.process_time()
        while reader.got<n: await asyncio.sleep(.05)
        result.put(time.process_time()-before)
        await backend.stop()
    asyncio.run(main())


async def one_process(url, data, n):
    "Broadcasts per second of one process that also reads"
    backend = await started(url, Reader())
    fields = dict(type='n', timestamp='2030-01-01T00:00:00+00:00', data=data)
    start = time.perf_counter()
    for _ in range(n): await backend.publish(fields)
    alone = n/(time.perf_counter()-start)
    start = time.perf_counter()
    for _ in range(n//100): await asyncio.gather(*[backend.publish(fields) for _ in range(100)])
    together = n/(time.perf_counter()-start)
    await backend.stop()
    return alone,together


async def paced(url, data, n, rate):
    "Publish `n` messages at `rate` a second"
    backend = RedisBackend(url, max_length=100_000)
    await backend.start(1, Reader().deliver, lambda origin, records: None)
    fields,start = dict(type='n', timestamp='2030-01-01T00:00:00+00:00', data=data),time.perf_counter()
    for i in range(0, n, 10):
        await asyncio.gather(*[backend.publish(fields) for _ in range(10)])
        await asyncio.sleep(max(0, start+(i+10)/rate-time.perf_counter()))
    took = time.perf_counter()-start
    await backend.stop()
    return n/took


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--readers', type=int, nargs='+', default=[1, 2, 4, 8, 16], help='each is a process, which a small machine feels')
    p.add_argument('--messages', type=int, default=3000)
    p.add_argument('--size', type=int, default=200, help='bytes of data')
    p.add_argument('--rate', type=int, default=1000, help='messages a second, where readers are counted')
    a = p.parse_args()
    data,ctx = 'x'*a.size,multiprocessing.get_context('spawn')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen([shutil.which('redis-server') or 'valkey-server', '--port', str(port), '--bind', '127.0.0.1', '--save', '', '--dir', folder], stdout=subprocess.DEVNULL)
        try:
            url,client = f'redis://127.0.0.1:{port}',redis.Redis(port=port)
            for _ in range(200):
                try: client.ping()
                except redis.RedisError: time.sleep(.05)
                else: break
            alone,together = asyncio.run(one_process(url, data, a.messages))
            print(f'one process, each awaited      {alone:8.0f} broadcasts/s')
            print(f'one process, 100 at a time     {together:8.0f} broadcasts/s')
            with Publisher(url) as pub:
                start = time.perf_counter()
                for _ in range(a.messages): pub.broadcast('n', data)
            print(f'Publisher, one after another   {a.messages/(time.perf_counter()-start):8.0f} broadcasts/s')
            print('\nreaders  messages/s  server: µs of CPU a message  a reader: µs of CPU a message  one core of the server: messages/s')
            for n in a.readers:
                client.flushall()
                ready,result = ctx.Semaphore(0),ctx.Queue()
                ps = [ctx.Process(target=read, args=(url, a.messages, ready, result)) for _ in range(n)]
                for q in ps: q.start()
                for _ in ps: ready.acquire(timeout=60)
                before = cpu(client)
                rate = asyncio.run(paced(url, data, a.messages, a.rate))
                theirs = [result.get(timeout=60) for _ in ps]
                used = (cpu(client)-before)/a.messages
                for q in ps: q.join(30)
                print(f'{n:7}  {rate:10.0f}  {1e6*used:27.1f}  {1e6*sum(theirs)/n/a.messages:29.1f}  {1/used:35.0f}')
        finally:
            server.kill()
            server.wait(10)


if __name__=='__main__': main()
