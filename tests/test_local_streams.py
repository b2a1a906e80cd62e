"Streams of messages that one process has for itself: each begins with its state, misses nothing, and gets nothing else"
import asyncio
import gc
import json
import logging
import random
import weakref

import pytest

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.engine import pump
from cjm_fasthtml_sse.engine.hub import Hub
from cjm_fasthtml_sse.engine.local import KEPT
from cjm_fasthtml_sse.engine.messages import Message
from cjm_fasthtml_sse.engine.response import EventStreamResponse
from cjm_fasthtml_sse.engine.wire import LIVE
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.updater import SSEElementUpdater
from fasthtml.common import FastHTML
from tests.contract.support import HEARTBEAT, eventually, listening, no_task_left, turns


def render(message): return json.dumps(message['data'])
async def render_later(message):
    await asyncio.sleep(0)
    return render(message)
render.event = render_later.event = LIVE


class Counter:
    "A number that grows; a stream gets the whole of it, and then each step"
    def __init__(self, hub=None, name='n'):
        self.hub,self.type,self.value,self.reads,self.asked = hub or Hub(heartbeat=0),f'{LIVE}:{name}',0,0,[]

    def step(self, n=1):
        "Count on; how many streams get it"
        for _ in range(n):
            self.value += 1
            got = self.hub.deliver_here(Message(dict(type=self.type, data=[self.value-1, self.value])))
        return got

    def snapshot(self):
        self.reads += 1
        return json.dumps([None, self.value])

    async def ready(self, seen, page): self.asked.append((seen, page))

    def response(self, **kw):
        kw = dict(render=render, events=[self.type, f'{LIVE}:other'], snapshot=self.snapshot, ready=self.ready, local=True) | kw
        return EventStreamResponse(self.hub, **kw)

    def app(self, **kw): return self.response(**kw)

    async def reaches(self, page, value=None):
        "Wait until a page shows the present value; each step follows what it shows"
        value = self.value if value is None else value
        await eventually(lambda: page.over or self.shown(page)==value, f'{value}, it shows {self.shown(page)}')
        assert self.shown(page)==value

    def shown(self, page):
        at = None
        for kind,(old,new) in page.seen:
            assert kind==LIVE and old in (None, at), f'from {old}, where {at} is shown'
            at = new
        return at


@pytest.fixture
def counter(): return Counter()


def say(hub, data, type='said'): return hub.deliver(Message(dict(type=type, data=data)))


class TestItsBeginning:
    async def test_state_and_then_each_step(self, counter):
        "Under the event name and with the ids of broadcasts"
        say(counter.hub, 0)
        async with no_task_left(), listening(counter.app()) as page:
            await counter.reaches(page)
            assert counter.step()==1
            await counter.reaches(page)
            say(counter.hub, 1)
            assert counter.step(2)==1
            await counter.reaches(page)
            assert page.seen==[(LIVE, [None, 0]), (LIVE, [0, 1]), (LIVE, [1, 2]), (LIVE, [2, 3])]
            first,second = counter.hub.replay.ids()[1:]
            assert [e.id for e in page.messages]==[first]*2+[second]*2
        assert (counter.step(), len(counter.hub.local), counter.hub.groups)==(0, 0, {})

    async def test_it_knows_where_the_browser_stands(self, counter):
        "This process may be late, so it waits. But what it begins with is the state, no replay"
        say(counter.hub, 0)
        counter.step()
        for headers in ({'Last-Event-ID': counter.hub.replay.cursor}, {'SSE-After': f'x-1 {counter.hub.replay.cursor}'}):
            async with listening(counter.app(), **headers) as page:
                await counter.reaches(page)
                assert 'gap' not in page.exchange.headers['sse-stream']
        cursor = counter.hub.replay.cursor
        assert counter.asked==[(cursor, ()), ('', ['x-1', cursor])] and not counter.hub.counts['gaps']

    async def test_nothing_to_say_is_an_id_alone(self, counter):
        async with listening(counter.app(snapshot=lambda: '')) as page:
            await eventually(lambda: len(page.events)==2)
            assert [(e.event, e.data, e.id) for e in page.events]==[(HEARTBEAT, '', ''), (HEARTBEAT, '', counter.hub.replay.cursor)]
            counter.step()
            assert await page.read()==[(LIVE, [0, 1])]

    async def test_no_event_is_too_few(self, counter):
        "Where all that a page wanted was refused"
        async with listening(counter.app(events=[])) as page: await counter.reaches(page)

    async def test_each_has_a_state_of_its_own(self, counter):
        "It may be made for one browser"
        async def slow():
            await turns()
            return counter.snapshot()
        async with listening(counter.app(snapshot=slow)) as a, listening(counter.app(snapshot=slow)) as b:
            for page in (a, b): await counter.reaches(page)
        assert counter.reads==2

    async def test_failed_state_ends_it(self, counter, caplog):
        "The browser comes back, and does not go on with what it shows"
        def fails(): raise ValueError('no state')
        async with listening(counter.app(snapshot=fails)) as page:
            await page.ends()
            assert not page.told_to_stay and not page.messages
        assert 'no state' in caplog.text


class TestWhoGetsWhat:
    async def test_nobody_else_sees_it(self, counter):
        "Neither streams of all events nor queues, nor what passes on public events; and local streams see no broadcast"
        hub,passed = counter.hub,[]
        hub.pass_public_to(passed.append)
        async with listening(counter.app()) as page, listening(EventStreamResponse(hub, events=['**', counter.type])) as other:
            for i in range(3):
                counter.step()
                say(hub, i)
            await counter.reaches(page)
            assert await other.read(3)==[('said', i) for i in range(3)]
            assert (hub.counts['broadcasts'], hub.counts['deliveries'], len(passed))==(3, 6, 3)
            counter.step()
            await counter.reaches(page)
            assert len(other.messages)==3

    async def test_two_orders_never_mix(self):
        "Whatever comes in between, on streams of both kinds that begin at any time"
        rand,hub = random.Random(7),Hub(heartbeat=0, max_queue_size=10)
        counters,told,pages = [Counter(hub, str(i)) for i in range(3)],0,[]
        for _ in range(300):
            if (dice := rand.random())<.1:
                i = rand.choice([0, 1, 2, None])
                app = EventStreamResponse(hub, snapshot=lambda: json.dumps(told)) if i is None else counters[i].app()
                pages.append((i, await listening(app).__aenter__()))
            elif dice<.5: say(hub, told := told+1)
            else: rand.choice(counters).step(rand.randrange(1, 4))
            if rand.random()<.5: await hub.wait_for_capacity(tuple(hub.groups.values()))
        for i,page in pages:
            if i is None:
                await eventually(lambda page=page: page.seen and page.seen[-1][1]==told)
                seen = [d for _,d in page.seen]
                assert seen==[*range(seen[0], told+1)]
            else: await counters[i].reaches(page)
            await page.leave()
        assert hub.counts['gaps']==0

    async def test_disconnected_user(self, counter):
        async with listening(counter.app(user='ann')) as page, listening(counter.app(user='bob')) as other:
            await counter.reaches(page)
            assert counter.hub.disconnect('ann')==1
            await page.ends()
            counter.step()
            await counter.reaches(other)

    @pytest.mark.parametrize('render', [render, render_later], ids=['plain', 'async'])
    async def test_direct_message(self, counter, render):
        "It comes between what was delivered before it and behind it, however many broadcasts there were"
        async with listening(counter.app(render=render)) as page:
            await counter.reaches(page)
            for i in range(9): say(counter.hub, i)
            page.exchange.stall()
            counter.step(2)
            await turns()
            for c in counter.hub.connections: c.put_nowait(dict(type='x', data=[2, 3]))
            counter.value += 1
            counter.step()
            await turns()
            page.exchange.resume()
            await counter.reaches(page, 4)

    async def test_a_reader_who_is_gone_leaves_nothing(self, counter):
        async with listening(counter.app()) as page:
            await counter.reaches(page)
            counter.step(50)
            await counter.reaches(page)
            await turns()
            group, = counter.hub.local_groups(counter.type)
            assert not (group.frames or group.buffer.after(0, 100)), 'all are served'
            ref = weakref.ref(group)
            del group
        del page
        await turns()
        gc.collect()
        assert ref() is None

    async def test_no_hint_that_nobody_listens(self, counter, caplog):
        "An updater has no handler for the event, but what a local stream gets may be made from it"
        caplog.set_level(logging.DEBUG)
        updater = SSEElementUpdater()
        updater.register('other')(lambda data: 'x')
        async with listening(EventStreamResponse(counter.hub, updater)):
            async with listening(counter.app()) as page:
                await counter.reaches(page)
                say(counter.hub, 1, 'unheard:of')
            assert 'no open stream has a handler' not in caplog.text
            say(counter.hub, 1, 'unheard:too')
            assert 'no open stream has a handler' in caplog.text

    async def test_what_is_open_is_shown(self):
        manager = SSEBroadcastManager()
        counter = Counter(manager._hub)
        async with listening(counter.app()) as page:
            await counter.reaches(page)
            (shown,) = manager.inspect()['connections']
            assert (shown['kind'], shown['live'], shown['events'])==('stream', True, [counter.type, f'{LIVE}:other'])


class TestWhoIsSlow:
    @pytest.mark.parametrize('overflow', ['evict', 'drop_oldest'])
    async def test_state_anew_and_then_on(self, overflow):
        "Nothing is skipped: a step needs the one before it"
        counter = Counter(Hub(max_queue_size=5, heartbeat=0, timeout=100, overflow=overflow))
        async with listening(counter.app()) as page, listening(counter.app()) as quick:
            for o in (page, quick): await counter.reaches(o)
            page.exchange.stall()
            for _ in range(20):
                counter.step()
                await counter.reaches(quick)
            assert counter.reads==2
            page.exchange.resume()
            await counter.reaches(page)
            assert counter.reads==3 and counter.hub.counts['gaps']==1
            counter.step(3)
            for o in (page, quick): await counter.reaches(o)
            assert not any(old is None for _,(old,_) in quick.seen[1:]), 'who reads is not disturbed'

    async def test_a_few_wait(self):
        counter = Counter(Hub(max_queue_size=5, heartbeat=0, timeout=100))
        async with listening(counter.app()) as page:
            await counter.reaches(page)
            page.exchange.stall()
            for _ in range(5):
                counter.step()
                await turns()
            page.exchange.resume()
            await counter.reaches(page)
            assert counter.reads==1

    async def test_one_that_reads_nothing_is_ended(self):
        counter = Counter(Hub(max_queue_size=5, heartbeat=0, timeout=.01))
        async with listening(counter.app()) as page:
            await counter.reaches(page)
            page.exchange.stall()
            for _ in range(20):
                counter.step()
                await turns()
            await eventually(lambda: counter.hub.counts['evicted']==1)
            page.exchange.resume()
            await page.ends()

    async def test_over_a_channel(self):
        manager,app = SSEBroadcastManager(5, heartbeat=0, default_timeout=100),FastHTML(secret_key='test', default_hdrs=False)
        setup_sse(app, manager)
        counter = Counter(manager._hub)
        @app.get('/events')
        def events(): return counter.response()
        async with listening(app, sink='channel') as page:
            await counter.reaches(page)
            assert manager.stats()['detached']==1
            page.stall()
            for _ in range(20):
                counter.step()
                await turns()
            page.resume()
            await counter.reaches(page)
            counter.step()
            await counter.reaches(page)


class TestStateThatTakesLong:
    @pytest.fixture
    def gate(self): return asyncio.Event()

    async def test_what_came_meanwhile_follows(self, counter, gate):
        async def snapshot():
            state = counter.snapshot()
            await gate.wait()
            return state
        async with listening(counter.app(snapshot=snapshot)) as page:
            await eventually(lambda: counter.reads)
            counter.step(KEPT)
            gate.set()
            await counter.reaches(page)
            assert counter.reads==1 and len(page.seen)==KEPT+1

    async def test_what_others_get_counts_nothing(self, counter, gate):
        "However much it is"
        others = Counter(counter.hub, 'others')
        async def snapshot():
            state = counter.snapshot()
            await gate.wait()
            return state
        async with listening(counter.app(snapshot=snapshot)) as page, listening(others.app()):
            await eventually(lambda: counter.reads)
            for _ in range(20*KEPT):
                others.step()
                say(counter.hub, 1)
            counter.step()
            gate.set()
            await counter.reaches(page)
            assert counter.reads==1

    async def test_there_is_an_end(self, counter):
        "Where more comes while the state is read than is kept: it is read a few times, and then all comes"
        async def snapshot():
            state = counter.snapshot()
            for _ in range(5*KEPT):
                counter.step()
                await asyncio.sleep(0)
            return state
        async with listening(counter.app(snapshot=snapshot)) as page:
            await eventually(lambda: counter.value and counter.shown(page)==counter.value)
            assert counter.reads==4 and counter.hub.counts['gaps']==3
            group, = counter.hub.local_groups(counter.type)
            await eventually(lambda: group.buffer.size==KEPT, 'the next time it begins anew')

    async def test_who_is_served_stays_so(self, counter, gate):
        "While another of the group reads the state"
        async def snapshot():
            state = counter.snapshot()
            if counter.reads>1: await gate.wait()
            return state
        async with listening(counter.app(snapshot=snapshot)) as page, listening(counter.app(snapshot=snapshot)) as late:
            await counter.reaches(page)
            for _ in range(30):
                counter.step(10)
                await counter.reaches(page)
            gate.set()
            await counter.reaches(late)
            assert len(counter.hub.groups)==1 and counter.reads>2

    async def test_slow_renderer(self, counter):
        async with listening(counter.app(render=render_later)) as page:
            for _ in range(30):
                counter.step(10)
                await turns(3)
            await counter.reaches(page)

    async def test_one_that_nobody_reads_is_ended(self):
        "Once the buffer has moved on"
        counter = Counter(Hub(heartbeat=.02, timeout=.01))
        page = listening(counter.app())
        page.exchange.heard = lambda data: page.exchange.stall()  # Behind the first event
        async with page:
            await eventually(lambda: counter.reads)
            counter.step(2*KEPT)
            await eventually(lambda: counter.hub.counts['evicted'])


class TestHistoryIsLost:
    async def test_state_anew(self, counter):
        async with listening(counter.app()) as page:
            counter.step(3)
            await counter.reaches(page)
            counter.hub.renew('other-0')
            counter.step()
            await counter.reaches(page)
            await eventually(lambda: page.messages[-1].id=='other-0')
            assert counter.reads==2 and counter.shown(page)==4

    async def test_while_the_state_is_read(self, counter):
        async def snapshot():
            state = counter.snapshot()
            if counter.reads==1: counter.hub.renew('other-0')
            await asyncio.sleep(0)
            return state
        async with listening(counter.app(snapshot=snapshot)) as page:
            await eventually(lambda: page.messages and page.messages[-1].id=='other-0')
            counter.step()
            await counter.reaches(page)
            assert counter.reads==2


class TestHeartbeats:
    async def test_they_say_how_far_this_process_is(self):
        counter = Counter(Hub(heartbeat=.02))
        async with listening(counter.app()) as page:
            await counter.reaches(page)
            say(counter.hub, 1)
            await eventually(lambda: page.last_id==counter.hub.replay.cursor)
            counter.step()
            await counter.reaches(page)
            n = len(page.events)
            await eventually(lambda: len(page.events)>n+2, 'they go on')
            assert {e.event for e in page.events[n:]}=={HEARTBEAT}

    async def test_broadcasts_stop_none(self, monkeypatch):
        "Those of many connections take several turns of the event loop, in which others may broadcast"
        monkeypatch.setattr(pump, 'BATCH', 1)
        counter = Counter(Hub(heartbeat=.02))
        async def always():
            while True:
                say(counter.hub, 1)
                await asyncio.sleep(0)
        pages = [await listening(counter.app()).__aenter__() for _ in range(5)]
        for page in pages: await counter.reaches(page)
        before,talking = [len(page.events) for page in pages],asyncio.create_task(always())
        for page,n in zip(pages, before, strict=True): await eventually(lambda page=page, n=n: len(page.events)>n+1)
        talking.cancel()
        for page in pages: await page.leave()
