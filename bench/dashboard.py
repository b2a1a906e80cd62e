"""What an open dashboard adds to the cost of a broadcast to 1,000 streams, as a ratio of rounds that take turns in one process

    python bench/dashboard.py [--clients 1000] [--rounds 12] [--seconds 2]

Three managers have as many streams each: one has no dashboard, one has a dashboard that nobody looks at, one is being looked at. A round broadcasts to one of them,
waiting each time until all have it, for some seconds, in which the open dashboard looks as often as it does. Seconds are those of the processor, so others on the machine do not count;
the streams are sent to a function that drops what it gets. Last come two single costs: one look, and what the hook adds to a broadcast that nobody hears.
"""
import argparse
import asyncio
import gc
import statistics
import time

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.charts import SAMPLES,Sample
from cjm_fasthtml_sse.dashboard import setup_dashboard
from fasthtml.common import FastHTML
from starlette.requests import Request


class Streams:
    "Streams of a manager that nobody reads, and nobody need wait for"
    def __init__(self, manager): self.manager,self.got,self.tasks,self.gone = manager,0,[],asyncio.Event()

    async def _send(self, message):
        if message.get('body'): self.got += 1

    def _receiver(self):
        asked = iter([dict(type='http.request', body=b'', more_body=False)])
        async def receive():
            if (message := next(asked, None)) is not None: return message
            await self.gone.wait()
            return dict(type='http.disconnect')
        return receive

    async def open(self, n, app=None, path='/'):
        async def stream(scope, receive, send): await self.manager.stream(Request(scope))(scope, receive, send)
        scope = dict(type='http', method='GET', path=path, raw_path=path.encode(), query_string=b'', root_path='', headers=[], scheme='http', server=('test', 80), client=('test', 1), http_version='1.1')
        self.tasks = [asyncio.create_task((app or stream)(dict(scope), self._receiver(), self._send)) for _ in range(n)]
        while len(self.manager._hub.connections)<n or self.manager._hub.pump.catching_up: await asyncio.sleep(.01)
        return self

    async def close(self):
        self.gone.set()
        await asyncio.wait(self.tasks)


async def a_round(streams, n, seconds):
    "Microseconds of processor time that a broadcast takes, and how many there were"
    count,end = 0,time.perf_counter()+seconds
    gc.collect()
    begin = time.process_time()
    while time.perf_counter()<end:
        wanted = streams.got+n
        await streams.manager.broadcast('job:progress', dict(id=count, text='x'*150))
        while streams.got<wanted: await asyncio.sleep(0)
        count += 1
    return (time.process_time()-begin)/count*1e6,count


async def alone(manager, n=20_000):
    begin = time.process_time()
    for i in range(n): await manager.broadcast('job:progress', i)
    return (time.process_time()-begin)/n*1e6


async def main(clients, rounds, seconds):
    managers = {name: SSEBroadcastManager(heartbeat=0) for name in ('none', 'set up', 'open')}
    app = FastHTML(secret_key='bench')
    boards = {name: setup_dashboard(app, managers[name], f'/{name[0]}', True) for name in ('set up', 'open')}
    streams = {name: await Streams(m).open(clients) for name,m in managers.items()}
    looking = Streams(boards['open'].own)
    costs,names = {name: [] for name in managers},[*managers]
    for i in range(rounds):
        for name in names[i%3:]+names[:i%3]:  # Each comes first in turn
            if name=='open':
                looking = await Streams(boards['open'].own).open(1, app, '/o/events')
            cost,count = await a_round(streams[name], clients, seconds)
            costs[name].append(cost)
            if name=='open': await looking.close()
        print(f'round {i+1:2}: ' + ', '.join(f'{name} {costs[name][-1]:.0f}' for name in names) + f' µs; {count} broadcasts, {looking.got} looks', flush=True)
    for name in ('set up', 'open'):
        ratios = [a/b for a,b in zip(costs[name], costs['none'])]
        print(f'{name:7} against none: median ratio {statistics.median(ratios):.3f}, of the medians {statistics.median(costs[name])/statistics.median(costs["none"]):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}')
    ratios = [a/b for a,b in zip(costs['open'], costs['set up'])]
    print(f'open    against set up: median ratio {statistics.median(ratios):.3f}')
    board,begin = boards['open'],time.process_time()
    for _ in range(50): stats = board.manager.stats()
    asked = (time.process_time()-begin)/50*1e3
    board.observer.samples += [Sample(time.monotonic()-SAMPLES+i, stats | dict(broadcasts=i*i%97, deliveries=i*i*i%97)) for i in range(1, SAMPLES+1)]
    begin = time.process_time()
    for _ in range(50): board.look()  # Too soon after the last sample to ask again, so it only draws
    print(f'one look: {asked:.1f} ms to ask for the stats of {clients} streams, {(time.process_time()-begin)/50*1e3:.1f} ms to draw {len(board.observer.samples)} samples, {len(board.html):,} characters')
    for s in streams.values(): await s.close()
    hooked,bare = [],[]
    for _ in range(5):
        bare.append(await alone(managers['none']))
        hooked.append(await alone(managers['set up']))
    hook,without = statistics.median(hooked)-statistics.median(bare),statistics.median(bare)
    print(f'the hook: {hook:.2f} µs a broadcast, {without:.1f} without it')


if __name__=='__main__':
    parser = argparse.ArgumentParser(description='What an open dashboard adds to the cost of a broadcast')
    parser.add_argument('--clients', type=int, default=1000)
    parser.add_argument('--rounds', type=int, default=12)
    parser.add_argument('--seconds', type=float, default=2.)
    args = parser.parse_args()
    asyncio.run(main(args.clients, args.rounds, args.seconds))
