"""Thousands come and go, by every way out, and nothing of them stays

`SOAK=200000 pytest tests/test_soak.py` takes ten times as many.
"""
import asyncio
import gc
import os
import random
import sys
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from servers import Stream, many_files, running, uvicorn
from support import Hooks, eventually, serving, tasks

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.stream import Connection, Group
from cjm_fasthtml_sse.testing import SSEClient

SOAK = int(os.environ.get('SOAK', 20_000))


def files(pid='self'): return len(os.listdir(f'/proc/{pid}/fd'))
def resident(pid): return int(Path(f'/proc/{pid}/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20  # MB


def held():
    "Blocks of memory that Python has given out; one object more for each connection would show"
    for _ in range(3): gc.collect()
    return sys.getallocatedblocks()


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
        "`n` of them, 200 at a time, while somebody speaks"
        speaker = asyncio.create_task(self._speak())
        done = 0
        while done<n:
            size = min(200, n-done)
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
            await asyncio.sleep(.005)


@pytest.mark.timeout(60+SOAK/200)
async def test_thousands_come_and_go_and_nothing_stays(caplog):
    manager = SSEBroadcastManager(4, replay_size=100, heartbeat=.05, default_timeout=.002)
    hooks,crowd = Hooks(manager),Crowd(manager, 1)
    hub,caplog.handler.level = manager._hub,100

    async def rest():
        "Blocks of memory when everybody has left"
        await eventually(lambda: not manager.connections and not hub.requests and tasks()=={asyncio.current_task()}, 'everybody leaves')
        for o in (hub.groups, hub.joining, hub.late, hub._renderers, hub._tasks, hub._pending, manager._queues, manager._late): assert not o
        assert not hub._routes.keys()
        assert hooks.opened and hooks.opened==[*dict.fromkeys(hooks.opened)] and {*hooks.opened}=={*hooks.closed} and len(hooks.opened)==len(hooks.closed)
        count = len(hooks.opened)
        hooks.opened.clear(); hooks.closed.clear()
        return held(),count

    await crowd.visit(SOAK//4)  # Caches fill up, the log too
    start,_ = await rest()
    before,began = files(),time.monotonic()
    await crowd.visit(SOAK)
    end,count = await rest()
    print(f'{count} connections in {time.monotonic()-began:.1f} s: {end-start:+d} blocks of memory; {manager.stats()}')
    assert count>SOAK*.9 and files()==before
    assert end-start<SOAK/10, f'{end-start} blocks of memory more than before'
    assert not [o for o in gc.get_objects() if isinstance(o, (Connection, Group))]
    stats = manager.stats()
    assert stats['errors']==0 and all(stats[k] for k in ('deliveries', 'coalesced', 'replayed', 'evicted', 'gaps')), stats


@pytest.mark.timeout(60+SOAK/200)
def test_thousands_come_and_go_over_sockets(tmp_path):
    with many_files(), running(uvicorn('many:app', '--log-level', 'warning'), tmp_path/'log') as server:
        pid = server.process.pid
        def visit(n):
            "As many streams as `n`, 100 at a time: half of them leave before they have read anything"
            for i in range(0, n, 100):
                with ExitStack() as stack:
                    streams = [stack.enter_context(Stream(server, '/by_hand' if o%10==9 else '/events')) for o in range(min(100, n-i))]
                    if i%200==0:
                        for o,s in enumerate(streams):
                            if o%10!=9: s.until(lambda es: es)
                    httpx.get(f'{server.url}/say', params=dict(text='x'*1000, times=3), timeout=10)
            until = time.monotonic()+10
            while (state := httpx.get(f'{server.url}/held', timeout=10).json())['connections']:
                assert time.monotonic()<until, f'{state} after everybody left'
                time.sleep(.05)
            return state
        visit(1000)
        start = visit(300)
        before = files(pid),resident(pid)
        n = SOAK//10
        visit(n)
        end = visit(300)
        print(f'{n} connections: {start} -> {end}, files {before[0]} -> {files(pid)}, MB {before[1]:.1f} -> {resident(pid):.1f}')
        until = time.monotonic()+10  # The server closes the last ones in its own time
        while files(pid)>before[0] and time.monotonic()<until: time.sleep(.05)
        assert end['tasks']<=start['tasks'] and files(pid)<=before[0]
        assert end['blocks']-start['blocks']<n/2 and resident(pid)-before[1]<10
        assert 'Traceback' not in server.output and 'ERROR' not in server.output, server.output
