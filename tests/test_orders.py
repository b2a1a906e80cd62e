"Several processes, any of which may get an order: how many orders it takes until the streams of a page are open"
import random
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.multiplex.endpoint import PATH
from tests.contract.visitors import House
from tests.mux import Browser, Channel
from tests.contract.support import eventually, serve

CARRIERS = 3


class Tabs(Browser):
    "The tabs of one browser, as the client has them order; each order goes to one of `ports`, whichever"
    def __init__(self, ports, draw):
        super().__init__(f'http://127.0.0.1:{ports[0]}')
        self.ports,self.draw,self.pages = ports,draw,[]

    async def order(self, new, page=True):
        "Orders until `new` have a place. The third one of a page becomes a carrier in any case, one too many for a moment"
        for misses in range(200):
            n = len(self.carriers)
            become = n<CARRIERS or page and misses>=2 and n==CARRIERS
            url = f'http://127.0.0.1:{self.draw.choice(self.ports)}{PATH}'
            response = await self.post([[o.number, o.path, await self.ticket(o.path), o.last_id, ''] for o in new], become=become, path=url)
            if response.status_code!=409: break
        assert response.status_code in (200, 204)
        for o in new: o.carrier = response.headers['sse-carrier']
        return misses+1

    async def load(self, *paths):
        "A page with streams; the orders that it took"
        if not self.tag: await self.whoami()
        new = [self.channels.setdefault(i, Channel(i, p)) for i,p in enumerate(paths, self.number+1)]
        self.number += len(new)
        self.pages.append(new)
        n = await self.order(new)
        for o in new: await o.until(lambda o: o.events)
        return n

    def on(self, id): return [o for page in self.pages for o in page if o.carrier==id]

    async def settle(self):
        "One carrier too many makes way; its channels come back on the others"
        if len(self.carriers)>CARRIERS:
            id = min(self.carriers, key=lambda id: len(self.on(id)))
            those = self.on(id)
            await self.carriers.pop(id).response.aclose()
            if those: await self.order(those, page=False)

    async def leave(self, page):
        self.pages.remove(page)
        for id in [*self.carriers]:
            if not self.on(id): await self.carriers.pop(id).response.aclose()


@pytest.mark.parametrize('workers', [1, 2, 8, 16])
async def test_a_page_takes_three_orders_at_most(workers):
    draw,orders,said = random.Random(workers),Counter(),0
    async with AsyncExitStack() as stack:
        manager = SSEBroadcastManager(heartbeat=0, retry=200)  # As with Redis: the same messages and ids in all of them
        sites = [House(manager=manager) for _ in range(workers)]
        ports = [await stack.enter_async_context(serve(o.app)) for o in sites]
        tabs = await stack.enter_async_context(Tabs(ports, draw))
        for _ in range(40):
            orders[await tabs.load('/events', '/by_hand')] += 1
            assert len(tabs.carriers)<=CARRIERS+1
            await tabs.settle()
            assert len(tabs.carriers)<=CARRIERS
            if len(tabs.pages)>6: await tabs.leave(draw.choice(tabs.pages))
            await manager.broadcast('said', said)
            for page in tabs.pages: await page[0].until(lambda o, n=f'{said}': o.data and o.data[-1]==n)
            said += 1
        assert max(orders)<=3, orders
        for page in tabs.pages:
            numbers = [int(d) for d in page[0].data]
            assert numbers==[*range(numbers[0], said)], 'nothing is lost or comes twice, also where a channel has moved'
        await tabs.hang_up()
        for o in sites:
            o.gate.set()
            await eventually(lambda o=o: not o.app._sse_setup.multiplexer.carriers, 'the carriers end')
