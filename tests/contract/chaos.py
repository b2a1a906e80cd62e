"""A chaos run: two workers, one Redis or SQLite file, hundreds of clients, and everything that can go wrong to them

    python tests/contract/chaos.py redis --seconds 120 --seed 1     or with sqlite3, or fastlite

Clients connect over real sockets, read slowly, stall, die, and come back with the last id they saw. Meanwhile messages are
broadcast, half of them in transactions where the store is an SQLite file, and a fifth of these are rolled back. A worker is
killed each five seconds; Redis is restarted with what it has saved, or the file is locked; both workers are restarted one
after the other.

In the end each client's record is compared with what somebody hears who comes back to the beginning: nothing lost, nothing
twice, nothing out of order, nothing that was rolled back, every gap told, and none told where the log holds what was missed.
In the file, each row that was committed has its message, and each message of a transaction its row. What is drawn by chance
is drawn from the seed.
"""
import argparse
import asyncio
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from operator import itemgetter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.contract.servers import Server, Stream, uvicorn  # noqa: E402
from tests.contract.support import Redis, eventually, within  # noqa: E402
from tests.contract.stores import Shell

BLOCK = re.compile(rb'(?:event: (\S+)\n)?(?:id: (\S+)\n)?(?:retry: (\d+)\n)?data: (.*)')
ENOUGH = 300  # Messages that each run has at least
STORES = 'redis', 'sqlite3', 'fastlite'  # The last two are an SQLite file, and the library with which the app has it open
# How the app sends the message `n`, by its last digit: half of them in a transaction, where the store has these
PLAIN, ROLLED_BACK = ['say']*10, 9
IN_FILE = ['say']*5+['say_in_block', 'say_in_thread', 'say_in', 'say_in_block', 'take_back']
LOG = 10_000  # Messages that are kept for those who come back: far more than anybody misses here


class File:
    "An SQLite file in the place of a Redis: while that would be away, another program holds the lock"
    def __init__(self, folder): self.path,self.shell = folder/'app.db',None
    def url(self): return f'sqlite:///{self.path}'

    def start(self):
        if self.shell: self.shell.__exit__()
        self.shell = None
        return self

    def kill(self, sig=None):
        self.start()
        self.shell = Shell(self.path).__enter__()
        self.shell.sql('begin immediate')

    def rows(self):
        "The numbers that transactions of the app have written; the file must be whole"
        with Shell(self.path) as shell:
            if (found := shell.sql('pragma integrity_check'))!=[['ok']]: raise AssertionError(f'the file is damaged: {found}')
            return [n for n, in shell.sql('select n from row')]


class Client:
    "One browser: what it saw, and the id it comes back with"
    def __init__(self, port, rnd, tally):
        self.port,self.rnd,self.tally = port,rnd,tally
        self.first = self.last = None   # Ids: what it had seen when it came, and what it has seen by now
        self.seen = []                  # (id, n) of every message
        self.gaps = []                  # (id before, id after) of every gap it was told of
        self.retry = .3

    async def live(self, stop):
        "Connect, read until something goes wrong, wait as told, and again"
        while not stop.is_set():
            with suppress(OSError, asyncio.IncompleteReadError): await self.connection(stop)
            self.tally['connections'] += 1
            await asyncio.sleep(self.retry*self.rnd.uniform(.5, 1.5))  # A browser waits before it comes back

    async def connection(self, stop):
        reader,writer = await asyncio.open_connection('127.0.0.1', self.port, limit=2**16)
        try:
            last = f'Last-Event-ID: {self.last}\r\n' if self.last else ''
            writer.write(f'GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n{last}\r\n'.encode())
            rest,mood,until = b'','well',time.monotonic()+self.rnd.expovariate(1/8)
            while True:
                async with asyncio.timeout(10): data = await reader.read(4096 if mood=='slow' else 65536)
                if not data: return
                *blocks,rest = (rest+data).split(b'\n\n')
                for block in blocks: self.take(block)
                if time.monotonic()<until or stop.draining:
                    if mood=='slow' and not stop.draining: await asyncio.sleep(.05)  # A slow reader
                    continue
                mood = self.rnd.choice(['well', 'slow', 'stall', 'die'])
                until = time.monotonic()+self.rnd.expovariate(1/8)
                self.tally[mood] += 1
                if mood=='stall': await stop.wait_or(self.rnd.uniform(.5, 3))
                if mood=='die': return writer.transport.abort()
        finally: writer.close()

    def take(self, block):
        "One event"
        m = BLOCK.search(block)
        if m is None: return
        event,id,retry,data = m.groups()
        if retry: self.retry = int(retry)/1000
        id = id and id.decode()
        if event==b'sse:gap': self.gaps.append((self.last, id))
        elif event==b'n': self.seen.append((id, json.loads(data)['n']))
        if id: self.last = id
        if self.first is None: self.first = self.last


class Stop(asyncio.Event):
    "The end, which has two steps: first nobody misbehaves any more, then nobody comes back"
    draining = False
    async def wait_or(self, secs):
        with suppress(TimeoutError):
            async with asyncio.timeout(secs):
                while not self.draining: await asyncio.sleep(.1)  # A stall, which is over with the run


async def request(port, path):
    "The status of a GET, `None` if there was no answer"
    try:
        async with asyncio.timeout(5):
            reader,writer = await asyncio.open_connection('127.0.0.1', port)
            try:
                writer.write(f'GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n'.encode())
                return int((await reader.readline()).split()[1]),await reader.read()
            finally: writer.close()
    except (OSError, TimeoutError, IndexError): return None,b''


async def broadcasts(port, rate, ways, stop, tally):
    "Broadcast `rate` numbers a second through the workers, in different `ways`; the numbers that were acknowledged"
    acknowledged,under_way,n,start = [],set(),0,time.monotonic()
    async def say(n):
        status,_ = await request(port, f'/{ways[n%10]}?n={n}')
        tally[{200: 'acknowledged', 409: 'rolled_back'}.get(status, 'refused')] += 1
        if status==200: acknowledged.append(n)
    while not stop.draining:
        while n<(time.monotonic()-start)*rate and len(under_way)<50:
            under_way.add(t := asyncio.create_task(say(n)))
            t.add_done_callback(under_way.discard)
            n += 1
        await asyncio.sleep(.005)  # Some messages at a time
    if under_way: await asyncio.wait(under_way)
    tally['broadcasts'] = n
    return acknowledged


async def workers(port):
    "Where the workers that answer stand: process id -> cursor"
    found = {}
    for _ in range(12):
        status,body = await request(port, '/here')
        if status==200:
            here = json.loads(body.split(b'\r\n\r\n')[-1])
            found[here['pid']] = here['cursor']
    return found


async def faults(server, store, secs, rnd, tally):
    "Kill a worker each 5 s, restart Redis each 20 s, restart the workers one after the other each 30 s"
    async def kill():
        if pids := await workers(server.port): os.kill(rnd.choice(sorted(pids)), signal.SIGKILL)
    async def restart_redis():
        await asyncio.to_thread(store.kill, signal.SIGTERM)
        await asyncio.sleep(rnd.uniform(.1, .5 if secs<60 else 8))  # Longer than broadcasts wait
        await asyncio.to_thread(store.start)
    async def rolling(): server.signal(signal.SIGHUP)
    def each(pause, first, what): return [(first+i*pause, what) for i in range(int((secs-2-first)//pause)+1)]
    start = time.monotonic()
    for at,what in sorted(each(5, 1.5, kill)+each(20, 2.7, restart_redis)+each(30, 3.9, rolling), key=itemgetter(0)):
        await asyncio.sleep(max(0, start+at-time.monotonic()))  # When it is due
        await what()
        tally[what.__name__] += 1


def place(id):
    "What of an id can be compared: the number of its entry in the stream"
    return tuple(map(int, id.rpartition(':')[2].split('-')))


class Witness:
    "Comes back every few seconds to where it was, and writes down what the log holds: `truth` is (id, n) of every message"
    def __init__(self, server, begin): self.server,self.at,self.truth,self.gaps = server,begin,[],0

    def look(self, upto):
        with Stream(self.server, last_event_id=self.at) as s:
            s.until(lambda events: events and place(events[-1].id)>=place(upto))
            self.gaps += sum(e.event=='sse:gap' for e in s.events)
            self.truth += [(e.id, json.loads(e.data)['n']) for e in s.events if e.event=='n']
            self.at = s.events[-1].id

    async def read_on(self):
        "Read to where the log ends now, and return where that is; `None` where the worker ended meanwhile, which may be killed or replaced"
        with suppress(OSError, AssertionError, ValueError):
            upto = max((await workers(self.server.port)).values(), key=place)
            await asyncio.to_thread(self.look, upto)
            return upto

    async def watch(self, stop):
        while not stop.draining:
            await stop.wait_or(5)
            await self.read_on()

    async def finish(self):
        "Read to the end of the log, and return where that is"
        async with within('the witness reads to the end of the log', 60):
            while not (upto := await self.read_on()): await asyncio.sleep(.1)  # A worker is being replaced
            return upto


def disagreement(rows, numbers):
    "What is wrong between the rows of the app and the messages about them, as sentences"
    told = {n for n in numbers if IN_FILE[n%10]!='say'}
    return [f'{len(found)} {what}, the first is {min(found)}' for what,found in (
        ('rows were committed, and nobody was told', {*rows}-told), ('messages are about rows that are not there', told-{*rows}),
        ('messages were rolled back, and sent', {n for n in told if n%10==ROLLED_BACK})) if found]


def judge(clients, truth, acknowledged, log=LOG):
    "What is wrong with what the clients saw, as sentences; `truth` is what the log holds, which is `log` messages at most"
    published,numbers,found = [place(id) for id,_ in truth],{n for _,n in truth},[]
    lost = [n for n in acknowledged if n not in numbers]
    if lost: found.append(f'{len(lost)} messages were acknowledged and are not in the log, the first is {lost[0]}')
    for i,c in enumerate(clients):
        if c.first is None: found.append(f'client {i} never connected'); continue
        places = [place(id) for id,_ in c.seen]
        saw = {*places}
        if len(saw)<len(places): found.append(f'client {i} saw a message twice')
        if places!=sorted(places): found.append(f'client {i} saw messages out of order')
        if unknown := saw-{*published}: found.append(f'client {i} saw {len(unknown)} messages that are not in the log')
        first,told = place(c.first),[(place(a) if a else (0, 0), place(b)) for a,b in c.gaps]
        if invented := [between for a,b in told if (between := sum(a<p<=b for p in published))<=log]:
            found.append(f'client {i} was told of {len(invented)} gaps where nothing was lost, the first over {invented[0]} messages that the log holds')
        want = [p for p in published if p>first and not any(a<p<=b for a,b in told)]
        if missing := [p for p in want if p not in saw]:
            found.append(f'client {i} lost {len(missing)} of {len(want)} messages, the first is {missing[0]}; it was told of {len(told)} gaps')
    return found


async def run(store, secs, seed, clients=300, rate=200, folder=None):
    "The report, with what is wrong under `wrong`; `store` is one of `STORES`"
    rnd,tally,stop = random.Random(seed),Counter(),Stop()
    library,has_file = store,store!='redis'
    store = (File(Path(folder)) if has_file else Redis(Path(folder), *Redis.durable)).start()
    server = Server(uvicorn('chaos:app', '--workers', '2', '--log-level', 'warning'), Path(folder)/'server.log',
                    env={'URL': store.url(), 'LOG': str(LOG), 'LIBRARY': library})
    port = server.wait_until_up().port
    try:
        witness = Witness(server, min((await workers(port)).values(), key=place))
        crowd = [Client(port, random.Random(rnd.random()), tally) for _ in range(clients)]
        lives = [asyncio.create_task(c.live(stop)) for c in crowd]
        start = time.monotonic()
        await eventually(lambda: all(c.first for c in crowd), 'all have come', 60)
        saying = asyncio.create_task(broadcasts(port, rate, IN_FILE if has_file else PLAIN, stop, tally))
        watching = asyncio.create_task(witness.watch(stop))
        await faults(server, store, secs, random.Random(rnd.random()), tally)
        await asyncio.sleep(max(0, start+secs-time.monotonic()))  # The run takes so long
        await eventually(lambda: tally['acknowledged']>ENOUGH, 'enough was said: a slow disk takes longer', 600)
        stop.draining = True
        acknowledged = await saying
        await watching
        truth,end,until = witness.truth,None,time.monotonic()+60
        def lacks(): return {*acknowledged}-{n for _,n in truth}  # A worker may not have read them yet
        while (end!=(end := await witness.finish()) or lacks()) and time.monotonic()<until:  # A message whose fate was unknown may come late
            await asyncio.sleep(.1)  # What is in the log comes from other processes, which do not say when they are through
            with suppress(TimeoutError):
                async with asyncio.timeout(30):  # Whoever was away comes back, reads on, and sees the last one
                    while truth and not all(c.seen and c.seen[-1][0]==truth[-1][0] or c.gaps and c.gaps[-1][1]==truth[-1][0] for c in crowd):
                        await asyncio.sleep(.1)  # As above
        stop.set()
        for t in lives: t.cancel()
        await asyncio.wait(lives)
        rows = await asyncio.to_thread(store.rows) if has_file else []
        wrong = judge(crowd, truth, acknowledged)+disagreement(rows, [n for _,n in truth])*has_file
        wrong += ['the witness was told of a gap']*bool(witness.gaps)
        wrong += [f'client {i} broke: {t.exception()!r}' for i,t in enumerate(lives) if not t.cancelled() and t.exception()]
        return dict(store=library, seconds=round(time.monotonic()-start, 1), seed=seed, clients=clients, **tally, log=len(truth),
            rows=len(rows), deliveries=sum(len(c.seen) for c in crowd),
            gaps=sum(len(c.gaps) for c in crowd), tracebacks=server.output.count('Traceback'), wrong=wrong,
            output=server.output)
    finally:
        server.kill()
        if has_file: store.start()
        else: store.kill()


def main(store, secs, seed, **kw):
    folder = tempfile.mkdtemp(prefix='chaos-')
    try: return asyncio.run(run(store, secs, seed, folder=folder, **kw))
    finally: shutil.rmtree(folder, ignore_errors=True)


if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('store', choices=STORES)
    p.add_argument('--seconds', type=float, default=120)
    p.add_argument('--seed', type=int, default=1)
    p.add_argument('--clients', type=int, default=300)
    p.add_argument('--rate', type=float, default=200)
    a = p.parse_args()
    report = main(a.store, a.seconds, a.seed, clients=a.clients, rate=a.rate)
    output = report.pop('output')
    wrong = report.pop('wrong')
    for k,v in report.items(): print(f'{k:14}{v}')
    print('\n'.join(wrong[:20]) or 'nothing lost, nothing twice, nothing out of order, nothing rolled back, no gap that is none')
    if wrong or report['tracebacks']: print(output[-4000:])
    sys.exit(bool(wrong or report['tracebacks']))
