"""Costs that need no sockets, as JSON: `broadcast` alone with 10,000 streams, none or a tenth of them stalled, and what it is made of

The streams are sent to functions that drop what they get, or never return. Time is told in microseconds.
"""
import asyncio
import json
import statistics
import time

import uvloop
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import oob_update
from cjm_fasthtml_sse.engine.render import to_html
from cjm_fasthtml_sse.engine.wire import encode
from starlette.requests import Request

N,TEXT = 10_000,'x'*200
SCOPE = dict(type='http', method='GET', path='/', raw_path=b'/', query_string=b'', root_path='', headers=[], scheme='http', server=('test', 80), client=('test', 1), http_version='1.1')


def ready(message): return '<b>ready</b>'  # A renderer that costs nothing


async def broadcasts(stalled, times=4, row=20):
    "Medians of `times` rows of broadcasts to `N` streams: each call by itself, the first of a row too, which finds caches cold; and for each stream, until all who read have got it"
    manager,got,gone = SSEBroadcastManager(heartbeat=0),0,asyncio.Event()
    async def receive():
        await gone.wait()
        return dict(type='http.disconnect')
    async def drop(message):
        nonlocal got
        got += 1
    async def block(message):
        if message.get('body', b'').startswith(b'id'): await gone.wait()  # The headers and the first chunk went through
    tasks = [asyncio.create_task(manager.stream(Request(SCOPE), render=ready)(dict(SCOPE), receive, block if i<stalled else drop)) for i in range(N)]
    while got<2*(N-stalled): await asyncio.sleep(.01)
    cold,calls,whole = [],[],[]
    for _ in range(times):
        start = time.perf_counter()
        await manager.broadcast('tick', 0)
        cold.append(time.perf_counter()-start)
        for i in range(1, row): await manager.broadcast('tick', i)
        calls.append((time.perf_counter()-start-cold[-1])/(row-1))
        while manager._hub.pump._task: await asyncio.sleep(0)
    assert manager.stats()['evicted']==0 and sum(c.state.name!='IDLE' for c in manager._hub.connections)==stalled
    for i in range(5):
        wanted,start = got+N-stalled,time.perf_counter()
        await manager.broadcast('tick', i)
        while got<wanted: await asyncio.sleep(0)
        whole.append((time.perf_counter()-start)/(N-stalled))
    gone.set()
    await asyncio.wait(tasks)
    return [statistics.median(o)*1e6 for o in (cold, calls, whole)]


def timed(f, times=2000):
    "Median of five"
    def once():
        start = time.perf_counter()
        for _ in range(times): f()
        return (time.perf_counter()-start)/times*1e6
    return statistics.median(once() for _ in range(5))


async def main():
    free,slow = [await broadcasts(0), await broadcasts(N//10)]
    html = to_html(oob_update('tick', TEXT))
    return dict(cold_none=free[0], cold_tenth=slow[0], call_none=free[1], call_tenth=slow[1], each_none=free[2], each_tenth=slow[2],
        render=timed(lambda: to_html(oob_update('tick', TEXT))), encode=timed(lambda: encode(html, id='19c0-1').encode()))


print(json.dumps(uvloop.run(main())))
