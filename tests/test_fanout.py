"What a broadcast costs: what its receivers cost, however many others are connected"
import asyncio
import gc
import statistics
import time
from contextlib import AsyncExitStack
from contextvars import copy_context

import pytest
from support import eventually

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import segment
from cjm_fasthtml_sse.engine.sender import DefaultSender


class Readers:
    "Connections that were served their first chunk, and follow"
    def __init__(self, manager): self.manager,self.got,self.conns = manager,{},[]

    async def add(self, names):
        "One for each name, on the events of that user alone"
        await self.manager.open()
        for name in names:
            conn = self.manager._hub.join(events=(f'user:{segment(name)}:**',))
            self.got[name] = 0
            async def send(message, name=name): self.got[name] += 1
            conn.start(DefaultSender(conn, send, copy_context()), None)
            self.conns.append(conn)
        await eventually(lambda: not self.manager._hub.pump.catching_up, 'all of them go live')

    async def close(self):
        for c in self.conns:
            c.end()
            await c.stop_sending()


async def cost(readers, names, n):
    "Median of the seconds that a message to one of `names` takes until it is sent"
    got,times = readers.got,[]
    for i in range(n):
        name = names[i%len(names)]
        before,start = got[name],time.perf_counter()
        await readers.manager.broadcast(f'user:{name}:news', i)
        while got[name]==before: await asyncio.sleep(0)
        times.append(time.perf_counter()-start)
    return statistics.median(times)


@pytest.mark.parametrize('spread', [10, 5000], ids=['to the same few', 'to thousands in turn'])
async def test_a_message_to_one_costs_the_same_among_ten_thousand(spread):
    few,many = Readers(SSEBroadcastManager(heartbeat=0)),Readers(SSEBroadcastManager(heartbeat=0))
    await few.add(range(10))
    await many.add(range(10_000))
    names = [(n*7919)%10_000 for n in range(spread)]  # Not those that came one after another
    gc.collect()
    try:
        ratios = []
        for _ in range(5):  # A busy machine disturbs one attempt, hardly all of them
            ratios.append(await cost(many, names, 2000)/await cost(few, range(10), 2000))
            if ratios[-1]<=2: break
        print(f'ratio {ratios[-1]:.2f}')
        assert min(ratios)<=2, ratios
        assert sum(many.got.values())==10_000+2000*len(ratios), 'somebody got what was not for him'
    finally:
        await few.close()
        await many.close()
    assert not few.manager.connections and not many.manager.connections


async def cost_of_queues(manager, queues, names, n):
    "Median of the seconds that a message to the subscriber of one of `names` takes until it is there"
    times = []
    for i in range(n):
        name = names[i%len(names)]
        start = time.perf_counter()
        await manager.broadcast(f'user:{name}:news', i)
        times.append(time.perf_counter()-start)
        assert queues[name].get_nowait()['data']==i
    return statistics.median(times)


@pytest.mark.parametrize('spread', [10, 5000], ids=['to the same few', 'to thousands in turn'])
async def test_a_message_to_one_of_ten_thousand_subscribers(spread):
    "It costs at most three times what it costs among ten"
    async with AsyncExitStack() as stack:
        managers = SSEBroadcastManager(),SSEBroadcastManager()
        few,many = [[await stack.enter_async_context(m.subscribe(f'user:{i}:**')) for i in range(n)] for m,n in zip(managers, (10, 10_000), strict=True)]
        names,ratios = [(n*7919)%10_000 for n in range(spread)],[]
        gc.collect()
        for _ in range(5):
            ratios.append(await cost_of_queues(managers[1], many, names, 2000)/await cost_of_queues(managers[0], few, range(10), 2000))
            if ratios[-1]<=3: break
        print(f'ratio {ratios[-1]:.2f}')
        assert min(ratios)<=3, ratios
        assert not any(q.qsize() for q in many), 'somebody got what was not for him'
