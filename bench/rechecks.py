"""What it costs to ask `authorise` again while streams are open: microseconds of CPU for each call, and % of a core

    python bench/rechecks.py [--streams 10000] [--rounds 3]

Each stream has a user of its own, and an `authorise` that costs nothing. They are asked about every 3 seconds; of that, the cost with the
default of 30 follows. The CPU of as many streams without `authorise` is taken off. The streams are in this process and have no sockets.
"""
import argparse
import asyncio
import gc
import statistics
import time
from collections import Counter

from cjm_fasthtml_sse.core import SSEBroadcastManager
from starlette.requests import Request

RECHECK = 3.      # Seconds; each stream is asked about after half of them or more: each 2.25 seconds on average
AVERAGE = .75     # Of `recheck`


async def measure(n, authorise, secs, times=()):
    "CPU seconds in `secs` seconds, after a first round of calls; `times` of calls are from then on"
    manager = SSEBroadcastManager(heartbeat=0)
    async def receive(): await asyncio.Event().wait()
    async def send(message): pass
    async def opened(i):
        scope = dict(type='http', method='GET', path='/events', headers=[], query_string=b'')
        await manager.stream(Request(scope), user=i, authorise=authorise, recheck=RECHECK)(scope, receive, send)
    tasks = [asyncio.create_task(opened(i)) for i in range(n)]
    while manager.connection_count<n: await asyncio.sleep(.05)
    gc.collect()
    await asyncio.sleep(1.5*RECHECK)
    if times: times.clear()
    began = time.process_time()
    await asyncio.sleep(secs)
    used = time.process_time()-began
    await manager.close()
    for o in tasks: o.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return used


async def main(n, rounds, secs=9.):
    times = []
    async def asks(request):
        times.append(time.monotonic())
        return True
    def in_thread(request): return True
    found = {'async': [], 'plain, in a thread': []}
    for _ in range(rounds):
        bare = await measure(n, None, secs)
        for name,f in (('async', asks), ('plain, in a thread', in_thread)):
            used = await measure(n, f, secs, times if f is asks else ())
            found[name].append(1e6*(used-bare)*AVERAGE*RECHECK/secs/n)
    windows = Counter(int((o-times[0])/.25) for o in times if o-times[0]<secs-.25)
    busiest = max(windows.values())/statistics.mean(windows.values())
    print(f'the busiest quarter of a second has {busiest:.2f} times the calls of the average one')
    for name,us in found.items():
        middle = statistics.median(us)
        print(f'{name:20} {middle:5.1f} us a call ({min(us):.1f}-{max(us):.1f}); {n} streams, recheck=30: {middle*n/(30*AVERAGE)/1e4:.2f} % of a core')


if __name__=='__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--streams', type=int, default=10_000)
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    asyncio.run(main(args.streams, args.rounds))
