"What a broadcast costs: what its receivers cost, however many others are connected"
import gc
import statistics
import time
from contextlib import AsyncExitStack

import pytest
from starlette.requests import Request

from cjm_fasthtml_sse.core import SSEBroadcastManager
from tests.contract.support import all_live, listening, turns


class Readers:
    "Streams or queues, each of one user"
    def __init__(self, manager, kind): self.manager, self.kind, self.users, self.stack = manager, kind, [], AsyncExitStack()

    async def add(self, n):
        async def app(scope, receive, send):
            await self.manager.stream(Request(scope, receive), events=f'user:{scope["path"][1:]}:**')(scope, receive, send)
        for i in range(n):
            user = listening(app, f'/{i}') if self.kind == 'streams' else self.manager.subscribe(f'user:{i}:**')
            self.users.append(await self.stack.enter_async_context(user))
        if self.kind == 'streams': await all_live(self.manager, n)
        return self

    def got(self, i):
        "How much the user has got"
        return len(self.users[i].events) if self.kind == 'streams' else self.users[i].qsize()

    async def cost(self, users, n):
        "Median of the seconds of CPU that a message to one of `users` takes until it is there"
        times = []
        for i in range(n):
            user = users[i%len(users)]
            before, start = self.got(user), time.thread_time()
            await self.manager.broadcast(f'user:{user}:news', i)
            while self.got(user) == before: await turns(1)
            times.append(time.thread_time()-start)
            if self.kind == 'queues': self.users[user].get_nowait()
        return statistics.median(times)


@pytest.mark.parametrize('kind, many, most', [('streams', 1000, 2), ('queues', 10_000, 3)])
async def test_a_message_to_one_of_many(kind, many, most):
    few, crowd = [await Readers(SSEBroadcastManager(heartbeat=0), kind).add(n) for n in (10, many)]
    gc.collect()
    for users in [7], [(n*7919)%many for n in range(1000)]:  # To one again and again; to many, not those that came one after another
        ratios = []
        for _ in range(5):  # A busy machine disturbs one attempt, hardly all of them
            ratios.append(await crowd.cost(users, 1000)/await few.cost(range(10), 1000))
            if ratios[-1] <= most: break
        assert min(ratios) <= most, ratios
        before = [crowd.got(i) for i in range(many)]
        await crowd.cost([3], 1)
        assert [i for i in range(many) if crowd.got(i) != before[i]] == ([3] if kind == 'streams' else []), 'somebody got what was not for him'
    for o in few, crowd: await o.stack.aclose()
    assert not crowd.manager.connections
