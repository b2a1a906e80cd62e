"""Whoever is slow delays nobody else

A broadcast serves everyone with room at once. Queues that are full are waited for together, `timeout` seconds at
most; those still full are ended, which their hooks hear once.
"""
import asyncio
import queue as thread_queue

import pytest

from cjm_fasthtml_sse.core import SSEBroadcastManager, StreamEnded
from tests.contract.support import BOUND, Hooks, eventually, turns, within


def data(queue): return [queue.get_nowait()['data'] for _ in range(queue.qsize())]

@pytest.fixture
def manager(): return SSEBroadcastManager()


class TestFullQueues:
    "Those with room never wait for those without"

    async def test_waited_for_together(self):
        "30 full ones hold a broadcast as long as one does, and neither the others nor those who come meanwhile"
        manager = SSEBroadcastManager(1)
        hooks = Hooks(manager)
        full = [await manager.register_connection() for _ in range(30)]
        await manager.broadcast('x', 1)
        ready = await manager.register_connection()
        async with within('one after another they would take 60 s'):
            task = asyncio.create_task(manager.broadcast('x', 2, timeout=2.))
            await eventually(lambda: ready.qsize()==1, 'the one with room is served at once')
            late = await manager.register_connection()
            assert not task.done() and await task==1
        await eventually(lambda: len(hooks.closed)>=30, 'each hook fires')
        await turns()
        assert {*hooks.closed}=={*full} and len(hooks.closed)==30 and manager.stats()['evicted']==30
        for q in full:
            assert (await q.get())['data']==1
            with pytest.raises(StreamEnded): q.get_nowait()
        assert data(ready)==[2] and {*manager.connections}=={ready, late}

    async def test_room_in_time(self):
        manager = SSEBroadcastManager(1)
        queue = await manager.register_connection()
        await manager.broadcast('x', 1)
        task = asyncio.create_task(manager.broadcast('x', 2, timeout=BOUND))
        await turns()
        assert data(queue)==[1]
        async with within('it arrives'): assert await task==1
        assert data(queue)==[2] and manager.connection_count==1

    async def test_order_is_kept(self):
        "Of broadcasts that wait for one queue; what is put by hand overtakes none of them"
        manager = SSEBroadcastManager(1)
        queue = await manager.register_connection()
        waiting = [asyncio.create_task(manager.broadcast('x', i, timeout=BOUND)) for i in range(20)]
        await turns(3)
        got = [queue.get_nowait()['data']]
        try: queue.put_nowait(dict(type='hand', data='hand'))
        except asyncio.QueueFull: pass
        async with within('all arrive'):
            while got[-1]!=19: got.append((await queue.get())['data'])
            assert await asyncio.gather(*waiting)==[1]*20
        assert got==[*range(20)]

    @pytest.mark.parametrize('default', [True, False])
    async def test_timeout_of_zero(self, default):
        "It means 0, and not that none was given"
        manager = SSEBroadcastManager(1, default_timeout=0 if default else 1000)
        queue = await manager.register_connection()
        await manager.broadcast('x', 1)
        try:
            async with asyncio.timeout(BOUND): got = await manager.broadcast('x', 2, **({} if default else dict(timeout=0)))
        except TimeoutError: got = 'it waited'
        assert got==0 and queue not in manager.connections

    async def test_brought_queue_that_stays_full(self):
        "It is unregistered, which its hook hears"
        manager,own = SSEBroadcastManager(default_timeout=.01),asyncio.Queue(1)
        hooks = Hooks(manager)
        await manager.register_connection(own)
        await manager.broadcast('x', 1)
        assert await manager.broadcast('x', 2)==0
        await eventually(lambda: hooks.closed==[own])
        assert data(own)==[1] and not manager.connections

    @pytest.mark.parametrize('kind', ['broken', 'of threads'])
    async def test_queue_that_raises(self, kind, caplog):
        "It is ended, and spoils nothing for the others"
        class Broken(asyncio.Queue):
            def put_nowait(self, item): raise RuntimeError('broken')
        manager,bad = SSEBroadcastManager(default_timeout=.01),Broken() if kind=='broken' else thread_queue.Queue(1)
        hooks = Hooks(manager)
        await manager.register_connection(bad)
        if kind=='of threads': bad.put_nowait('full')
        good = await manager.register_connection()
        assert [await manager.broadcast('x', i) for i in range(2)]==[1, 1] and data(good)==[0, 1]
        await eventually(lambda: hooks.closed==[bad], 'its hook fires')
        assert {*manager.connections}=={good} and manager.stats()['errors']==1 and caplog.records[0].exc_info

    async def test_cancelled_broadcast(self):
        "It was sent, and blocks nobody"
        manager = SSEBroadcastManager(1)
        full = await manager.register_connection()
        await manager.broadcast('x', 1)
        ready = await manager.register_connection()
        task = asyncio.create_task(manager.broadcast('x', 2, timeout=BOUND))
        await turns()
        task.cancel()
        await asyncio.wait({task}, timeout=BOUND)
        async with within('both arrive'): assert [(await full.get())['data'] for _ in range(2)]==[1, 2]
        assert data(ready)==[2] and await manager.broadcast('x', 3)==2

    async def test_cancelled_broadcasts_do_not_pile_up(self):
        "Before a queue that stays full, however long they were to wait for it: its connection is ended"
        manager = SSEBroadcastManager(1)
        hooks = Hooks(manager)
        full,ready = await manager.register_connection(),await manager.register_connection()
        for i in range(12_000):
            task = asyncio.create_task(manager.broadcast('x', i, timeout=1000))
            await turns(1)
            task.cancel()
            ready.get_nowait()
        await turns(100)
        assert hooks.closed==[full] and manager.stats()['evicted']==1 and {*manager.connections}=={ready}
        assert (await full.get())['data']==0
        with pytest.raises(StreamEnded): full.get_nowait()

    async def test_a_reader_is_not_outrun(self):
        "By a loop of broadcasts, whatever the size of its queue"
        manager,got = SSEBroadcastManager(10),[]
        queue = await manager.register_connection()
        async def reader():
            while len(got)<3000: got.append((await queue.get())['data'])
        task = asyncio.create_task(reader())
        for i in range(3000): await manager.broadcast('x', i)
        async with within('all arrive'): await task
        assert got==[*range(3000)] and manager.stats()['evicted']==0
