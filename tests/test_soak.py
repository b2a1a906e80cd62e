"""Thousands come and go, by every way out, and nothing of them stays

`make soak` takes forty times as many. What is left is compared from one visit to the next: caches, and whatever else a process needs
once, are full after the first.
"""
import asyncio
import gc
import os
import random
import sys
from collections import Counter, deque

import pytest
from starlette.requests import Request

from cjm_fasthtml_sse.core import SSEBroadcastManager
from tests.contract.support import Hooks, all_live, client, eventually, listening

SOAK = int(os.environ.get('SOAK', 4500))
COUNTERS = 'deliveries', 'coalesced', 'replayed', 'evicted', 'gaps'


def files(): return len(os.listdir('/proc/self/fd'))

def ours():
    "How many objects of the package there are of each type"
    gc.collect()
    return Counter(f'{t.__module__}.{t.__name__}' for o in gc.get_objects() if str((t := type(o)).__module__).startswith('cjm_fasthtml_sse'))


async def html_later(message):
    await asyncio.sleep(0)
    return f'<i>{message["data"]}</i>'


class Crowd:
    "Tabs that open, read a little, and leave by one of the ways there are"
    def __init__(self, manager, seed):
        self.manager, self.random, self.seen = manager, random.Random(seed), deque([manager.cursor], maxlen=20)
        renderers = [None, html_later, lambda m: f'<b>{m["data"]}</b>']
        self.kinds = [dict(events=events, render=render, until='end', snapshot=snapshot)
                      for events in ('**', 'room:1:**', ['room:*:news', 'end']) for render in renderers for snapshot in (None, lambda: '<p>state</p>')]

    async def tab(self):
        r, manager = self.random, self.manager
        kind = dict(r.choice(self.kinds))
        if r.random() < .3: kind['events'] = f'user:{r.randrange(200)}:**'     # A group of its own
        if r.random() < .3: kind['render'] = lambda m: f'<u>{m["data"]}</u>'    # A renderer of its own
        if r.random() < .3: kind['user'] = r.randrange(200)
        async def app(scope, receive, send): await manager.stream(Request(scope, receive), **kind)(scope, receive, send)
        async with listening(app, '/', last_id=r.choice(['', '', *r.choices(self.seen, k=2), 'nonsense'])) as page:
            way = r.choice(['drop', 'drop', 'drop', 'close', 'cancel', 'stall', 'stay'])
            for _ in range(r.randrange(4)): await asyncio.sleep(0)
            if way == 'close' and (conns := [c for c in manager.connections if not isinstance(c, asyncio.Queue)]): await manager.unregister_connection(r.choice(conns))
            elif way == 'cancel': page.exchange.task.cancel()
            elif way == 'stall': page.stall()
            if way in ('stall', 'stay'): await asyncio.sleep(.02)

    async def queue(self):
        async with self.manager.subscribe(self.random.choice(['**', 'room:**'])) as queue:
            for _ in range(self.random.randrange(5)):
                await asyncio.sleep(0)
                if not queue.empty(): queue.get_nowait()

    async def visit(self, n):
        "`n` of them, 100 at a time, while somebody speaks; and one that reads nothing until it is evicted"
        speaker = asyncio.create_task(self.speak())
        for done in range(0, n, 100):
            await asyncio.gather(*(self.queue() if self.random.random() < .1 else self.tab() for _ in range(min(100, n-done))))
        evicted = self.manager.stats()['evicted']
        async with client('stream', self.manager) as page:
            await all_live(self.manager, 1)
            page.stall()
            await eventually(lambda: self.manager.stats()['evicted'] > evicted, 'it is evicted')
        speaker.cancel()
        await asyncio.wait({speaker})

    async def speak(self):
        n = 0
        while n := n+1:
            for _ in range(5):
                kind = self.random.choice(['room:1:news', 'room:2:news', f'user:{n%200}:hello', 'other'])
                await self.manager.broadcast(kind, 'x'*100, key=self.random.choice([None, 'k', 'k']))
            self.seen.append(self.manager.cursor)
            if n%50 == 0: await self.manager.broadcast('end', 'x')
            await asyncio.sleep(.001)


@pytest.mark.timeout(120+SOAK/100)
async def test_thousands_come_and_go(caplog, monkeypatch):
    manager = SSEBroadcastManager(4, replay_size=100, heartbeat=.05, default_timeout=.002)
    hooks, crowd, me = Hooks(manager), Crowd(manager, 1), asyncio.current_task()
    monkeypatch.setattr(caplog.handler, 'level', 100)  # What it keeps would count

    async def visit():
        "Objects of the package, and blocks of memory that Python has given out, when a third of them has come and left"
        await crowd.visit(SOAK//3)
        await eventually(lambda: manager.inspect() == dict(connections=[], requests=0) and asyncio.all_tasks() == {me}, 'everybody leaves')
        assert len(hooks.opened) > SOAK*.3 and sorted(map(id, hooks.opened)) == sorted({*map(id, hooks.closed)}), 'each is told to the hooks, once'
        for o in hooks.opened, hooks.closed: o.clear()
        for _ in range(200): await manager.broadcast('x', 'x')  # The log holds the same each time
        await asyncio.sleep(.2)  # A state that was read, or a timer, may still hold who has left
        return ours(), sys.getallocatedblocks()

    await visit()
    open_, (objects, start) = files(), await visit()
    left, end = await visit()
    print(f'{SOAK} connections: {end-start:+d} blocks of memory in the last third; {manager.stats()}')
    assert not {k: n for k, n in (left-objects).items() if n > 10}, 'objects stay behind'
    assert files() == open_ and end-start < SOAK/3/2, f'{end-start} blocks of memory more after {SOAK//3} connections'
    stats = manager.stats()
    assert stats['errors'] == 0 and all(stats[k] for k in COUNTERS), stats
