"""Thousands come and go, by every way out, and nothing of them stays

`make soak` takes ten times as many. What is left is compared from one visit to the next: caches, and whatever else a process needs once, are full after the first.
"""
import asyncio
import gc
import os
import random
import sys
from collections import deque
from contextlib import ExitStack

import httpx
import pytest
from servers import Stream, at_rest, many_files, resident, running, uvicorn
from support import Hooks, eventually, serving, tasks

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.engine.queues import ConnectionQueue
from cjm_fasthtml_sse.engine.connection import Connection
from cjm_fasthtml_sse.engine.group import Group
from cjm_fasthtml_sse.engine.response import EventStreamResponse
from cjm_fasthtml_sse.testing import SSEClient

SOAK = int(os.environ.get('SOAK', 20_000))


def files(): return len(os.listdir('/proc/self/fd'))
def ours():
    gc.collect()
    return [o for o in gc.get_objects() if isinstance(o, (Connection, ConnectionQueue, EventStreamResponse, Group))]


async def html_later(message):
    await asyncio.sleep(0)
    return f'<i>{message["data"]}</i>'


class Crowd:
    "Tabs that open, read a little, and leave by one of the ways there are"
    def __init__(self, manager, seed):
        self.manager,self.random,self.seen = manager,random.Random(seed),deque([manager.cursor], maxlen=20)
        renderers = [None, html_later, lambda m: f'<b>{m["data"]}</b>']
        self.kinds = [dict(events=events, render=render, until='end', snapshot=snapshot)
                      for events in ('**', 'room:1:**', ['room:*:news', 'end']) for render in renderers for snapshot in (None, lambda: '<p>state</p>')]

    async def tab(self):
        r,manager = self.random,self.manager
        kind = dict(r.choice(self.kinds))
        if r.random()<.3: kind['events'] = f'user:{r.randrange(200)}:**'     # A group of its own
        if r.random()<.3: kind['render'] = lambda m: f'<u>{m["data"]}</u>'    # A renderer of its own
        last = r.choice([None, None, *r.choices(self.seen, k=2), 'nonsense'])
        client = SSEClient(serving(manager, **kind), last_event_id=last)
        async with client:
            way = r.choice(['drop', 'drop', 'drop', 'close', 'cancel', 'stall', 'stay'])
            conns = [*manager._hub.connections]
            for _ in range(r.randrange(4)): await asyncio.sleep(0)
            if way=='close' and conns: await manager.unregister_connection(r.choice(conns))
            elif way=='cancel': client._task.cancel()
            elif way=='stall': client.stall()
            if way in ('stall', 'stay'): await asyncio.sleep(.02)
            if way=='cancel': await asyncio.wait({client._task})
            else: await client.disconnect()

    async def queue(self):
        async with self.manager.subscribe(self.random.choice(['**', 'room:**'])) as queue:
            for _ in range(self.random.randrange(5)):
                await asyncio.sleep(0)
                if not queue.empty(): queue.get_nowait()

    async def visit(self, n):
        "`n` of them, 100 at a time, while somebody speaks"
        speaker = asyncio.create_task(self._speak())
        done = 0
        while done<n:
            size = min(100, n-done)
            await asyncio.gather(*(self.queue() if self.random.random()<.1 else self.tab() for _ in range(size)), return_exceptions=False)
            done += size
        speaker.cancel()
        await asyncio.wait({speaker})

    async def _speak(self):
        n = 0
        while True:
            n += 1
            for _ in range(5): await self.manager.broadcast(self.random.choice(['room:1:news', 'room:2:news', f'user:{n%200}:hello', 'other']), 'x'*100, key=self.random.choice([None, 'k', 'k']))
            self.seen.append(self.manager.cursor)
            if n%50==0: await self.manager.broadcast('end', 'x')
            await asyncio.sleep(.001)


@pytest.mark.timeout(120+SOAK/100)
async def test_thousands_come_and_go_and_nothing_stays(caplog, monkeypatch):
    manager = SSEBroadcastManager(4, replay_size=100, heartbeat=.05, default_timeout=.002)
    hooks,crowd = Hooks(manager),Crowd(manager, 1)
    hub,others = manager._hub,ours()
    monkeypatch.setattr(caplog.handler, 'level', 100)  # What it keeps would count

    async def visit():
        "Blocks of memory that Python has given out when a third of them has come and left"
        await crowd.visit(SOAK//3)
        await eventually(lambda: not manager.connections and not hub.requests and tasks()=={asyncio.current_task()}, 'everybody leaves')
        for o in (hub.groups, hub.pump.catching_up, hub.pump.lagging, hub.renderers, hub._tasks, hub.pump._pending, manager._hub.queues.groups, manager._hub.queues.blocked, hub._patterns.keys()): assert not o
        assert len(hooks.opened)>SOAK*.3 and sorted(map(id, hooks.opened))==sorted({*map(id, hooks.closed)}), 'each is told to the hooks, once'
        for o in (hooks.opened, hooks.closed): o.clear()
        for _ in range(3): gc.collect()
        await asyncio.sleep(2*manager._hub.default_timeout)  # A timer may still hold who was about to be evicted
        assert not (left := [o for o in ours() if all(o is not x for x in others)]), f'{len(left)} objects, such as {left[0]}'
        return sys.getallocatedblocks()

    await visit()
    open_,start = files(),await visit()
    end = await visit()
    print(f'{SOAK} connections: {end-start:+d} blocks of memory in the last third; {manager.stats()}')
    assert files()==open_ and end-start<SOAK/3/4, f'{end-start} blocks of memory more after {SOAK//3} connections'
    stats = manager.stats()
    assert stats['errors']==0 and all(stats[k] for k in ('deliveries', 'coalesced', 'replayed', 'evicted', 'gaps')), stats


@pytest.mark.timeout(120+SOAK/100)
def test_thousands_come_and_go_over_sockets(tmp_path):
    n = SOAK//10
    with many_files(), running(uvicorn('many:app', '--log-level', 'warning'), tmp_path/'log', env={'REPLAY': '100'}) as server:
        def visit():
            "`n` streams, 100 at a time: half of them leave before they have read anything"
            for i in range(0, n, 100):
                with ExitStack() as stack:
                    streams = [stack.enter_context(Stream(server, '/by_hand' if o%10==9 else '/events')) for o in range(100)]
                    if i%200==0:
                        for o,s in enumerate(streams):
                            if o%10!=9: s.until(lambda es: es)
                    httpx.get(f'{server.url}/say', params=dict(text='x'*1000, times=3), timeout=20)
        visit()
        start,size = at_rest(server),resident(server)
        visit()
        end,grown = at_rest(server, start | dict(blocks=start['blocks']+n*3/4)),resident(server)-size
        print(f'{n} connections over sockets: {start} -> {end}, {grown:+.1f} MB')
        assert grown<20
        assert 'Traceback' not in server.output and 'ERROR' not in server.output, server.output
