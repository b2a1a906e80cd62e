"""A model of what each tab must have seen, and a machine that tries to break it (hypothesis)

Time is the loop's own: it passes only when nothing else is left to do, so a moment of it is enough for everything to settle.
`MODEL_EXAMPLES=2000 pytest tests/contract/test_model.py` searches longer, and elsewhere each time.
"""
import asyncio
import json
import logging
import os
import re
import sys
import time

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from starlette.requests import Request

from cjm_fasthtml_sse.backends.base import Record
from cjm_fasthtml_sse.core import SSEBroadcastManager, SSEError, StreamEnded
from cjm_fasthtml_sse.dispatcher import matches
from tests.contract.clock import Loop
from tests.contract.support import CLOSE, GAP, HEARTBEAT, Exchange, OwnBackend, Parser

LIMIT, REPLAY = 4, 12  # Messages that may wait, and that are kept: few, so that a short run goes beyond them
HEARTBEAT_SECS, PATIENCE, RETRY = 15., .05, 3000


def html(message): return None if message['type']=='quiet' else f'<i>{json.dumps(message["data"])}</i>'
async def html_later(message):
    await asyncio.sleep(.01)
    return html(message)
RENDERERS = dict(json=None, sync=html, slow=html_later)


class Backend(OwnBackend): epoch = '0e'  # Another one where it loses its past


class Client(Exchange):
    "One that may stop reading after so many messages, the head of the response included"
    def __init__(self, manager, last_id, reads, **stream):
        async def app(scope, receive, send): await manager.stream(Request(scope, receive), **stream)(scope, receive, send)
        super().__init__(app, 'GET', '/', {'Last-Event-ID': last_id} if last_id else {})
        self.events,self.reads,parser = [],reads,Parser(last_id)
        self.heard = lambda data: self.events.extend(parser.feed(data))

    async def __aenter__(self):
        self.begin()
        while self.status is None and not self.over: await asyncio.sleep(0)
        return self

    async def send(self, message):
        await super().send(message)
        if self.reads is None: return
        self.reads -= 1
        if self.reads<=0: self.stall()


class Tab:
    "One stream: what it was promised, and whether what came keeps to it"
    def __init__(self, world, wants, last_id):
        self.world,self.wants,self.last_id = world,wants,last_id
        self.events,self.render,self.snapshot,self.until = wants
        self.stalled = self.lagged = self.leaving = self.dropped = False  # Does it not read; has it not read since all was well; is its end expected; has it left?
        self.live = False                                  # Has it ever followed?
        self.back = False                                  # Did it read again before it was evicted?
        self.taken = self.beats = 0
        self.renewed,self.spare = 0,False                  # Where the log began anew meanwhile; may a gap of before be under way then?
        self.own = []                                      # What was put by hand: (number, position when it was put)
        self.said_farewell = self.said_close = False
        self.stood_for = range(0)                          # Messages that the state or the gap which was told last stands for
        log = world.log
        self.began = world.positions.get(last_id, 0)       # Messages from here on may end it
        at = world.positions.get(last_id)
        if last_id and (at is None or last_id in world.forgotten or at<len(log)-REPLAY): self.covered,self.untold = None,'gap'
        elif last_id: self.covered,self.untold = at,None
        else: self.covered,self.untold = len(log),'state' if self.snapshot else None

    def __repr__(self): return f'<{"|".join(self.events)} {self.render} at {self.covered}>'

    @property
    def gone(self): return self.conn not in self.world.manager.connections

    def shown(self, n):
        "Is message `n` something to see in this tab?"
        event_type,_ = self.world.log[n-1]
        return any(matches(p, event_type) for p in self.events) and (self.render=='json' or event_type!='quiet')

    def ends(self, n): return self.until and self.world.log[n-1][0]=='end'
    def due(self, n): return self.shown(n) or self.ends(n)

    def missing(self, upto):
        "Messages up to number `upto` that it ought to have seen, and that no newer one stands for"
        log = self.world.log
        newest = {label: n for n,label in enumerate(log, 1) if label[1] is not None}
        found = [n for n in range(self.covered+1, upto+1) if self.due(n) and newest.get(log[n-1], n)==n]
        if self.world.overflow=='drop_oldest' and self.lagged:
            found = [n for n in found if sum(self.due(o) for o in range(n+1, len(log)+1))<LIMIT]
        return found

    def cover(self, n):
        assert self.covered is not None, f'{self}: message {n} before the gap was told'
        assert not (lost := self.missing(n)), f'{self}: {lost} lost before {n}'
        self.covered = max(n, self.covered)

    def take(self, e):
        at,new = self.world.positions.get(e.id),e.id!=self.last_id
        self.last_id = e.id
        first,self.taken = self.taken==0,self.taken+1
        if first: assert e.event==HEARTBEAT and e.retry
        assert not self.said_farewell and (not self.said_close or e.event==HEARTBEAT and e.retry), f'{self}: {e} after the end'
        if e.event==HEARTBEAT:
            self.beats += 1
            if e.retry and not (first and e.retry==RETRY):  # It comes first where nothing else was read
                assert RETRY/2<=e.retry<=RETRY*1.5
                self.said_farewell = True
            elif self.untold and new and self.snapshot: self.told(at)  # An empty state
            elif new: self.cover(at)
        elif e.event==GAP:
            assert not (self.snapshot and self.untold=='state'), f'{self}: a gap on a first visit'
            self.told(at)
        elif e.event==CLOSE:
            if self.covered==at and self.stood_for: assert any(map(self.ends, self.stood_for)), f'{self}: over, without an end'
            else:
                assert self.ends(at) and (self.covered==at or not self.shown(at))
                self.cover(at-1)
            self.covered,self.said_close = at,True
        elif 'state' in e.data:
            assert int(e.data.split()[1])>=at, f'{self}: {e.data} lacks what came before {at}'
            self.told(at)
        else:
            data = json.loads(re.sub('</?i>', '', e.data))
            if 'own' in data:
                number,after = self.own.pop(0)
                assert data['own']==number and not new
                self.cover(after)
                return
            n = data['n']
            # The end of the stream stays where it was, also where a newer message of its key has taken its place
            if at and n>at and self.ends(at) and self.world.log[n-1]==self.world.log[at-1]: n = at
            assert at==n and new, f'{self}: {n} has the id of {at}'
            assert self.covered is not None and n>self.covered, f'{self}: {n} came twice or out of order'
            assert not self.untold or n<=self.renewed, f'{self}: {n} came before the {self.untold} was told'
            assert self.shown(n) and (self.render!='json' or e.event==self.world.log[n-1][0])
            self.stood_for = range(0)
            # What an async renderer could not keep up with comes from the log, before what still waits for it
            assert self.render=='slow' or not [o for o,after in self.own if after<n], f'{self}: {n} overtook what was put before it'
            self.cover(n-1)
            self.covered = n

    def told(self, at):
        "The state, or a gap"
        if not self.untold and self.spare: self.spare = False
        elif not self.untold:  # The log went on while it did not read, or while its renderer was busy
            lost = range(self.covered+1, len(self.world.log)-REPLAY+1)
            if self.live and self.render!='slow': lost = self.lagged and [n for n in lost if any(matches(p, self.world.log[n-1][0]) for p in self.events)]
            assert lost, f'{self}: a gap where nothing was lost'
        self.stood_for = range((self.covered or 0)+1, at+1)
        self.covered = at
        if self.last_id not in self.world.forgotten: self.untold = None  # Else it was under way when the log began anew, which is still to be told

    def renew(self):
        "The log has begun anew: of what came before, only what is under way may still come"
        if self.gone: return
        self.spare,self.untold,self.renewed = bool(self.untold) or self.lagged,'gap',len(self.world.log)

    def look(self, settled):
        "Take what has come; where all has settled, nothing may be missing"
        for e in self.client.events[self.taken:]: self.take(e)
        if self.gone and not self.leaving and not (self.until and any(o[0]=='end' for o in self.world.log[self.began:])):
            assert self.world.overflow=='evict' and self.lagged and not self.back, f'{self}: evicted though it reads'
        if settled and not self.stalled:
            if not self.gone:
                assert self.covered is not None and not self.untold, f'{self}: never told {self.untold}'
                assert not (lost := self.missing(len(self.world.log))), f'{self}: {lost} never came'
                assert not self.own, f'{self}: {self.own} never came'
                self.lagged,self.live = False,True
            else:
                assert self.client.over, f'{self} has ended, but its request goes on'
                assert self.said_close or self.said_farewell or self.dropped, f'{self} has ended without a word'


class Delivery(RuleBasedStateMachine):
    @initialize(overflow=st.sampled_from(['evict', 'drop_oldest']), eager=st.booleans())
    def begin(self, overflow, eager=False):
        self.overflow,self.loop = overflow,Loop()
        asyncio.set_event_loop(self.loop)
        if eager and sys.version_info>=(3, 12): self.loop.set_task_factory(asyncio.eager_task_factory)
        self.unhandled = []
        self.loop.set_exception_handler(lambda loop, context: self.unhandled.append(context))
        logging.getLogger('cjm_fasthtml_sse').setLevel(logging.ERROR)  # That queues which nobody reads are ended is meant
        self.backend = Backend()
        self.manager = SSEBroadcastManager(LIMIT, backend=self.backend, default_timeout=PATIENCE, replay_size=REPLAY, heartbeat=HEARTBEAT_SECS, retry=RETRY, overflow=overflow)
        self.run(self.manager.open())
        self.log = []                                # (type, key) of message n at n-1
        self.positions = {self.manager.cursor: 0}    # Event id -> n
        self.ids,self.begun = [self.manager.cursor],0  # n -> the id that stands for it; where the present epoch began
        self.forgotten = set()                       # Ids that a backend which lost its past knows no more
        self.tabs,self.past,self.queues,self.put = [],[],[],0
        self.opened,self.closed = [],[]
        self.manager.on_connect(self.opened.append)
        self.manager.on_disconnect(self.closed.append)
        self.delivered = []
        self.manager.on_delivery(lambda m: self.delivered.append(m['data']['n']))
        self.settled = True

    def state(self): return f'state {len(self.log)}'
    async def state_later(self):
        time.sleep(.0025)  # What takes so long is shared for a while, although the log has moved on
        await asyncio.sleep(.01)
        return self.state()

    def run(self, coro): return self.loop.run_until_complete(asyncio.wait_for(coro, 1000))

    def settle(self, yes=True):
        "Let everything come to rest, if `yes`, and look at every tab"
        if yes: self.run(asyncio.sleep(.5))
        self.settled = yes
        for t in self.tabs: t.look(yes)
        if yes: assert self.delivered==[*range(1, len(self.log)+1)], 'a hook missed a message, or heard it twice'
        for t in [t for t in self.tabs if t.gone and t.client.over]:
            self.tabs.remove(t)
            self.past.append(t)

    async def say_one(self, event_type, key=None):
        open_tabs = [t for t in self.tabs if not t.gone]
        self.log.append((event_type, key))
        n = len(self.log)
        got = await self.manager.broadcast(event_type, dict(n=n), key=key)
        self.positions[self.manager.cursor] = n
        self.ids.append(self.manager.cursor)
        want = sum(any(matches(p, event_type) for p in t.events) or t.until and event_type=='end' for t in open_tabs)
        for q in self.queues:
            if q['open'] and len(q['due'])<LIMIT:
                q['due'].append(n)
                want += 1
            else: q['open'] = False
        if self.settled: assert got==want, f'{event_type} is said to have gone to {got}, not {want}'
        self.settled = False

    def open_tab(self, wants, last_id='', reads=None):
        events,render,snapshot,until = wants
        tab = Tab(self, wants, last_id)
        tab.client = Client(self.manager, last_id, reads, render=RENDERERS[render], events=events, until='end' if until else None,
                            snapshot=(self.state_later if render=='slow' else self.state) if snapshot else None)
        if reads is not None: tab.stalled,tab.lagged = True,True
        self.run(tab.client.__aenter__())
        tab.conn = self.opened[-1]
        self.tabs.append(tab)

    types = st.sampled_from(['a', 'a:x', 'a:y', 'b', 'b:x:y', 'user:1:n', 'user:2:n', 'quiet', 'end'])
    keys = st.sampled_from([None, None, None, 'k', 'l'])
    some = st.integers(0, 50)
    reads = st.sampled_from([None, None, None, 1, 2, 3])
    often = st.sampled_from([True, True, False])
    def pick(self, i): return self.tabs[i%len(self.tabs)]

    @precondition(lambda self: len(self.tabs)<6)
    @rule(events=st.sampled_from([('**',), ('a:*',), ('b:**',), ('user:1:**',), ('**:x', 'user:2:*'), ('**', 'a:x')]),
          render=st.sampled_from([*RENDERERS]), snapshot=st.booleans(), until=st.booleans(), reads=reads, settle=often)
    def connect(self, events, render, snapshot, until, settle, reads=None):
        self.open_tab((events, render, snapshot, until), reads=reads)
        self.settle(settle)

    @precondition(lambda self: self.past and len(self.tabs)<6)
    @rule(i=some, id=st.sampled_from([None]*8+['0123456789-3', '{epoch}-999', '{epoch}-0', '{epoch}', 'nonsense']), reads=reads, settle=often)
    def come_back(self, i, settle, id=None, reads=None):
        "With the id that it saw last, or one that it cannot have seen"
        tab = self.past.pop(i%len(self.past))
        self.open_tab(tab.wants, id.format(epoch=self.manager.cursor.split('-')[0]) if id else tab.last_id, reads)
        self.settle(settle)

    @rule(messages=st.lists(st.tuples(types, keys), min_size=1, max_size=1) | st.lists(st.tuples(types, keys), min_size=2, max_size=3*LIMIT), settle=often)
    def broadcast(self, messages, settle):
        async def burst():
            for event_type,key in messages: await self.say_one(event_type, key)
        self.run(burst())
        self.settle(settle)

    @precondition(lambda self: self.tabs)
    @rule(i=some)
    def stall(self, i):
        tab = self.pick(i)
        tab.stalled,tab.lagged,tab.back = True,True,False
        tab.client.stall()

    @precondition(lambda self: any(t.stalled for t in self.tabs))
    @rule(i=some, settle=often)
    def resume(self, i, settle):
        stalled = [t for t in self.tabs if t.stalled]
        tab = stalled[i%len(stalled)]
        tab.stalled,tab.back,tab.client.reads = False,not tab.gone,None
        tab.client.resume()
        self.settle(settle)

    @precondition(lambda self: self.tabs)
    @rule(i=some)
    def flood(self, i):
        "More than one that does not read may keep waiting"
        tab = self.pick(i)
        self.settle()
        if tab not in self.tabs: return
        live = not tab.stalled
        self.stall(self.tabs.index(tab))
        event_type = tab.events[0].replace('**', 'b').replace('*', 'x')
        async def flood():
            for _ in range(LIMIT+2):
                await self.say_one(event_type)
                await asyncio.sleep(.1)
        self.run(flood())
        if live: assert tab.gone==(self.overflow=='evict'), f'{tab}: behind a backlog'
        self.settle()

    @precondition(lambda self: self.tabs)
    @rule(i=some, messages=st.lists(st.tuples(types, keys), min_size=LIMIT, max_size=3*LIMIT))
    def stutter(self, i, messages):
        "Not to read for less than the time that a send may take"
        self.settle()
        if not self.tabs: return
        tab = self.pick(i)
        if tab.stalled: return
        self.stall(self.tabs.index(tab))
        self.broadcast(messages, settle=False)
        self.run(asyncio.sleep(PATIENCE/3))
        tab.stalled,tab.back = False,True
        tab.client.resume()
        self.settle()

    @precondition(lambda self: self.tabs)
    @rule(before=st.sampled_from([0, .005, .02]), event_type=types, key=keys)
    def speak_as_a_timer_is_due(self, before, event_type, key):
        "That of the next heartbeat, mostly"
        self.settle()
        due = min(self.loop.timers, default=0)-before
        self.run(asyncio.sleep(max(0, due-self.loop.time())))
        self.broadcast([(event_type, key)], settle=True)

    @precondition(lambda self: self.tabs)
    @rule(i=some)
    def drop(self, i):
        tab = self.pick(i)
        tab.leaving,tab.dropped,tab.client.reads = True,True,None
        self.run(tab.client.leave())
        tab.stalled = False
        tab.look(False)
        assert tab.gone and tab.client.over
        self.settle()

    @precondition(lambda self: self.tabs)
    @rule(i=some, settle=often)
    def unregister(self, i, settle):
        tab = self.pick(i)
        tab.leaving = True
        self.run(self.manager.unregister_connection(tab.conn))
        assert tab.conn not in self.manager.connections
        self.settle(settle)

    @precondition(lambda self: self.tabs)
    @rule(i=some, n=st.integers(1, LIMIT+2), settle=often)
    def put_by_hand(self, i, n, settle):
        self.run(self.put_some(self.pick(i), n))
        self.settle(settle)

    async def put_some(self, tab, n):
        for _ in range(n):
            self.put += 1
            try: tab.conn.put_nowait(dict(type='by:hand', data=dict(own=self.put)))
            except asyncio.QueueFull:
                assert len(tab.own)>=LIMIT, f'{tab}: full with {tab.own}'
                return
            except SSEError:
                assert tab.gone
                return
            tab.own.append((self.put, len(self.log)))
            assert len(tab.own)<=2*LIMIT or not tab.stalled, f'{tab}: {tab.own} wait'  # As many are being sent, at most

    @rule(sure=st.sampled_from([True, False, False, False]), kept=st.sampled_from([None, None, 0, 3, REPLAY]), settle=often)
    def begin_anew(self, sure, kept, settle):
        "The backend has lost its past, or all but the newest messages: each tab is told of one gap, and follows on"
        if not sure: return
        self.settle(kept is not None)
        backend,n = self.backend,len(self.log)
        if kept is None:
            backend.epoch,backend.n,kept,self.begun = f'anew{n}x{len(self.forgotten)}',0,0,n
            self.forgotten |= {*self.positions}
            self.ids[n] = f'{backend.epoch}-0'
            self.positions[self.ids[n]] = n
        else:
            kept = min(kept, n-self.begun)
            self.forgotten |= {id for id,m in self.positions.items() if m<n-kept}
            self.forgotten -= {self.ids[m] for m in range(n-kept, n+1)}  # An earlier loss may have been smaller than it looked
        past = [Record(self.ids[m], dict(type=self.log[m-1][0], data=dict(n=m)), self.log[m-1][1]) for m in range(n-kept+1, n+1)]
        async def renew(): backend.renew(self.ids[n-kept], past)
        self.run(renew())
        for t in self.tabs: t.renew()
        self.settle(settle)

    @rule()
    def register(self):
        queue = self.run(self.manager.register_connection())
        self.queues.append(dict(queue=queue, due=[], open=True))

    @precondition(lambda self: self.queues)
    @rule(i=some, n=st.integers(1, 6))
    def read(self, i, n):
        q = self.queues[i%len(self.queues)]
        for _ in range(n):
            try: message = q['queue'].get_nowait()
            except asyncio.QueueEmpty:
                assert q['open'] and not q['due']
                break
            except StreamEnded:
                assert not q['open'] and not q['due']
                break
            assert message['data']['n']==q['due'].pop(0)
        assert (q['queue'] in self.manager.connections)==q['open']

    @precondition(lambda self: self.queues)
    @rule(i=some)
    def give_back(self, i):
        q = self.queues.pop(i%len(self.queues))
        self.run(self.manager.unregister_connection(q['queue']))
        assert q['queue'] not in self.manager.connections

    @rule(secs=st.sampled_from([1, 16, 40]))
    def wait(self, secs):
        self.settle()
        beats = {t: t.beats for t in self.tabs}
        self.run(asyncio.sleep(secs))
        self.settle()
        if secs>HEARTBEAT_SECS*1.1:
            for t,n in beats.items(): assert t.stalled or t.gone or t.beats>n, f'{t}: no sign of life in {secs} s'

    @rule(sure=st.sampled_from([True, False, False, False]))
    def close(self, sure):
        if not sure: return
        for t in self.tabs: t.leaving = True
        self.run(self.manager.close())
        for q in self.queues: q['open'] = False
        assert not self.manager.connections
        self.settle()

    def teardown(self):
        if not hasattr(self, 'manager'): return
        try:
            for t in self.tabs:
                t.stalled,t.leaving,t.client.reads = False,True,None
                t.client.resume()
            self.settle()
            for t in [*self.tabs]: self.drop(self.tabs.index(t))
            for _ in range(len(self.queues)): self.give_back(0)
            self.run(asyncio.sleep(100))
            m = self.manager
            assert not m.connections and m.inspect()==dict(connections=[], requests=0) and m.present(grace=0)=={}
            assert len(self.opened)==len({*self.opened})==len(self.closed) and {*self.opened}=={*self.closed}
            assert m.stats()['errors']==0 and not self.unhandled
            left = [t for t in asyncio.all_tasks(self.loop) if not t.done()]
            assert not left, left
        finally:
            while left := asyncio.all_tasks(self.loop):  # Only where something failed
                for t in left: t.cancel()
                self.loop.run_until_complete(asyncio.wait(left))
            asyncio.set_event_loop(None)
            self.loop.close()


examples = int(os.environ.get('MODEL_EXAMPLES', 0))
Delivery.TestCase.settings = settings(max_examples=examples or 150, stateful_step_count=50, derandomize=not examples, database=None, deadline=None,
                                      suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large])
TestDelivery = pytest.mark.timeout(180 if not examples else 3600)(Delivery.TestCase)


WIDE = dict(events=('**',), settle=True, snapshot=False, until=False)
ANEW = dict(sure=True, kept=None, settle=True)
SIX = [('a', None)]*6
FOUND = {  # What the machine found, as short as it gets
    'a close stops the renderer of a replay': ('evict', [
        ('connect', WIDE|dict(render='slow')), ('broadcast', dict(messages=SIX, settle=False)), ('broadcast', dict(messages=[('a', None)], settle=False)), ('unregister', dict(i=0, settle=True))]),
    'a message by hand waits while the stream ends': ('evict', [
        ('connect', WIDE|dict(render='slow', until=True)), ('unregister', dict(i=0, settle=True)), ('broadcast', dict(messages=[('end', None)], settle=True)),
        ('come_back', dict(i=0, settle=False)), ('stall', dict(i=0)), ('settle', {}), ('put_by_hand', dict(i=0, n=1, settle=True)), ('resume', dict(i=0, settle=True))]),
    'a renderer falls behind while a send is under way': ('evict', [
        ('connect', WIDE|dict(render='slow')), ('stall', dict(i=0)), ('put_by_hand', dict(i=0, n=1, settle=True)), ('broadcast', dict(messages=SIX, settle=True)),
        ('broadcast', dict(messages=[('b', None)], settle=True)), ('resume', dict(i=0, settle=True))]),
    'a renderer falls behind twice while a send is under way': ('evict', [
        ('connect', WIDE|dict(render='slow')), ('stall', dict(i=0)), ('wait', dict(secs=16)), ('broadcast', dict(messages=SIX, settle=False)), ('broadcast', dict(messages=SIX, settle=True)),
        ('resume', dict(i=0, settle=True))]),
    'a close comes while a renderer is behind': ('evict', [
        ('connect', WIDE|dict(render='slow')), ('stall', dict(i=0)), ('put_by_hand', dict(i=0, n=1, settle=True)), ('broadcast', dict(messages=SIX, settle=True)),
        ('unregister', dict(i=0, settle=False)), ('resume', dict(i=0, settle=True))]),
    'a close comes while the end is under way': ('drop_oldest', [
        ('connect', WIDE|dict(render='slow', until=True)), ('stall', dict(i=0)), ('broadcast', dict(messages=[('end', None)], settle=True)),
        ('broadcast', dict(messages=[('a', None)], settle=True)), ('unregister', dict(i=0, settle=False)), ('drop', dict(i=0))]),
    # Where these fail, the machine seldom finds it
    'the log begins anew while the state is read': ('evict', [
        ('connect', WIDE|dict(render='slow', snapshot=True, settle=False)), ('begin_anew', ANEW)]),
    'ids that the log had forgotten are known again': ('evict', [
        ('connect', WIDE|dict(render='json')), ('broadcast', dict(messages=[('a', None)], settle=True)), ('drop', dict(i=0)),
        ('broadcast', dict(messages=[('b', None)], settle=True)), ('begin_anew', ANEW|dict(kept=0)), ('begin_anew', ANEW|dict(kept=REPLAY)),
        ('come_back', dict(i=0, settle=True))]),
    'the log begins anew while one that had seen everything is away': ('evict', [
        ('connect', WIDE|dict(render='json')), ('broadcast', dict(messages=[('a', None)], settle=True)), ('drop', dict(i=0)), ('begin_anew', ANEW),
        ('come_back', dict(i=0, settle=True))]),
}

@pytest.mark.parametrize('name', FOUND)
def test_what_the_machine_found(name):
    overflow,steps = FOUND[name]
    machine = Delivery()
    machine.begin(overflow=overflow)
    try:
        for step,args in steps: getattr(machine, step)(**args)
    finally: machine.teardown()
