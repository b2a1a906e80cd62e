"""What `track` costs a loop, between two reports and with them, as a ratio to the bare loop and in nanoseconds an item

    python bench/progress.py [--items 1000000] [--rounds 5]

A server's event loop runs in the main thread meanwhile, with a tab that follows the job. Bare and tracked loops take turns; the median of the rounds counts.
Where tqdm is installed, it is measured too, writing to nowhere.
"""
import argparse
import asyncio
import io
import statistics
import time

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.progress import track
from cjm_fasthtml_sse.testing import SSEClient
from starlette.requests import Request

try: from tqdm import tqdm
except ImportError: tqdm = None


def plain(items):
    begin = time.perf_counter()
    for _ in items: pass
    return time.perf_counter()-begin


async def in_async_code(items):
    begin = time.perf_counter()
    async for _ in items: pass
    return time.perf_counter()-begin


async def numbers(n):
    for i in range(n): yield i


async def main(n, rounds):
    manager = SSEBroadcastManager()
    async def events(scope, receive, send): await manager.stream(Request(scope))(scope, receive, send)
    loops = {'for, bare': lambda: asyncio.to_thread(plain, range(n)),
        'for, no report due': lambda: asyncio.to_thread(plain, track(manager, range(n), 'j', throttle=1e6)),
        'for, ten reports a second': lambda: asyncio.to_thread(plain, track(manager, range(n), 'j')),
        'async for, bare': lambda: in_async_code(numbers(n)),
        'async for, no report due': lambda: in_async_code(track(manager, numbers(n), 'j', n, throttle=1e6)),
        'async for, ten reports a second': lambda: in_async_code(track(manager, numbers(n), 'j', n))}
    if tqdm: loops['for, tqdm'] = lambda: asyncio.to_thread(plain, tqdm(range(n), file=io.StringIO()))
    took = {name: [] for name in loops}
    async with SSEClient(events):
        for _ in range(rounds):
            for name,loop in loops.items(): took[name].append(await loop())
    middle = {name: statistics.median(secs) for name,secs in took.items()}
    print(f'{"":34}{"ns an item":>12}{"more":>8}{"ratio":>8}')
    for name,seconds in middle.items():
        bare = middle['async for, bare' if name.startswith('async') else 'for, bare']
        print(f'{name:34}{seconds/n*1e9:12.0f}{(seconds-bare)/n*1e9:8.0f}{seconds/bare:8.1f}')


if __name__=='__main__':
    parser = argparse.ArgumentParser(description='What `track` costs a loop')
    parser.add_argument('--items', type=int, default=1_000_000)
    parser.add_argument('--rounds', type=int, default=5)
    args = parser.parse_args()
    asyncio.run(main(args.items, args.rounds))
