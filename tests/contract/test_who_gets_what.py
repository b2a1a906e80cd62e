"""Who gets what: patterns, private events, users, limits, ends, keys, and messages to one connection

A message goes to those whose patterns match its type, live and in a replay alike, whatever they listen with and
whatever renders for them. `user=` says whose a stream is, `authorise=` asks whether it may go on, `until=` ends it,
`key=` keeps the newest of several states. Where a message is sent from makes no difference. `snapshot=`, queues and
hooks have files of their own.
"""
import asyncio
import os
import subprocess
import sys
import threading
import time

import httpx
import pytest
from fasthtml.common import FastHTML
from starlette.responses import Response

from cjm_fasthtml_sse.core import BackendError, SSEBroadcastManager, TooManyConnections
from cjm_fasthtml_sse.dispatcher import segment
from cjm_fasthtml_sse.helpers import setup_sse
from tests.contract.clock import timeless
from tests.contract.support import (BOUND, CLOSE, GAP, RENDER, Browser, Hooks, OwnBackend, Site, all_live, client, eventually,
    following, listening, no_task_left, rendered, turns, within)

streams = pytest.mark.parametrize('sink', ['stream', 'channel'])
asynchronous = pytest.mark.parametrize('asynchronous', [False, True], ids=['sync', 'async'])
PAD = 'x'*20_000  # More than a carrier takes for a channel that is not read


async def in_thread(f, *args): return await asyncio.wait_for(asyncio.to_thread(f, *args), BOUND)
async def says(answer): return answer


class TestPatterns:
    SENT = 'job:1:done', 'job:2', 'job', 'jobs', 'user:ann:mail', 'end'
    WANTED = {'**': SENT, 'job:*': ('job:2',), 'job:**': ('job:1:done', 'job:2', 'job'), 'job:*:done': ('job:1:done',),
        'job': ('job',),
              ('job', 'user:**', '**:mail'): ('job', 'user:ann:mail')}

    @pytest.mark.parametrize('events', WANTED, ids=str)
    async def test_live_and_replay_agree(self, backend, sink, render, events):
        manager, wanted = SSEBroadcastManager(backend=backend), self.WANTED[events]
        events = events if isinstance(events, str) else [*events]
        await manager.open()
        before = manager.cursor
        async with following(sink, manager, events=events, render=render) as c:
            counts = [await manager.broadcast(t, 0) for t in self.SENT]
            assert [t for t, _ in await c.read(len(wanted))] == [*wanted]
            assert counts == [int(t in wanted) for t in self.SENT]
        if sink != 'queue':
            async with client(sink, manager, events=events, render=render, last_id=before) as back:
                assert [t for t, _ in await back.read(len(wanted))] == [*wanted]
        assert len(c.messages) == len(wanted), 'each once, however many patterns match'
        await manager.close()

    async def test_names_from_outside(self, sink):
        "A user who is called `*` sees what is meant for him, and no more"
        manager = SSEBroadcastManager()
        async with following(sink, manager, events=f'user:{segment("*")}:**') as c:
            assert await manager.broadcast(f'user:{segment("ann")}:mail', 1) == 0
            assert await manager.broadcast(f'user:{segment("ann:*")}:mail', 1) == 0
            assert await manager.broadcast(f'user:{segment("*")}:mail', 2) == 1
            assert await c.data(1) == [2]


    async def test_a_subscription_from_its_first_moment(self):
        "It gets no more than it asked for, whatever is broadcast while it opens"
        manager = SSEBroadcastManager()
        manager.on_connect(lambda conn: [manager.broadcast(t, 0) for t in ('wanted', 'other')])
        async with manager.subscribe('wanted') as queue:
            await manager.broadcast('wanted', 1)
            assert [queue.get_nowait()['type'] for _ in range(queue.qsize())] == ['wanted', 'wanted']


class TestPrivate:
    KINDS = [('**',), ('user:**',), ('user:*:told',), ('user:ann:**', 'all'), ('user:ann:told', '**'),
        ('user:bob:*', 'all')]
    WANTED = [['all'], [], [], ['user:ann:told', 'all'], ['user:ann:told', 'all'], ['user:bob:told', 'all']]

    @streams
    async def test_only_who_names_them(self, sink, render, backend):
        "Private events go to those whose own pattern names the user, live and in a replay"
        manager = SSEBroadcastManager(private='user:{who}:**', backend=backend)
        await manager.open()
        before = manager.cursor
        clients = [client(sink, manager, render=render, events=[*o, 'end']) for o in self.KINDS]
        for o in clients: await o.__aenter__()
        await all_live(manager, len(clients))
        assert [await manager.broadcast(t, t) for t in ('user:ann:told', 'user:bob:told', 'all')] == [2, 1, 4]
        await manager.broadcast('end', 'end')
        for o, wanted in zip(clients, self.WANTED):
            assert await o.data(len(wanted)+1) == [*wanted, 'end']
            await o.leave()
        for kind, wanted in zip(self.KINDS, self.WANTED):
            async with client(sink, manager, render=render, events=[*kind, 'end'], last_id=before) as o:
                assert await o.data(len(wanted)+1) == [*wanted, 'end']
        await manager.close()

    async def test_queues_and_history_ask_for_them(self):
        manager = SSEBroadcastManager(private='user:{who}:**')
        plain, all_of_them = await manager.register_connection(), await manager.register_connection(private=True)
        assert await manager.broadcast('user:ann:told', 1) == 1
        assert (plain.qsize(), all_of_them.qsize(), len(manager.get_history()),
            len(manager.get_history(private=True))) == (0, 1, 0, 1)

    async def test_they_end_no_stream_of_strangers(self):
        manager = SSEBroadcastManager(private='user:{who}:**')
        async with (following('stream', manager, events='all', until='user:*:bye') as other,
                    following('stream', manager, events='all', until='user:ann:bye') as own):
            assert await manager.broadcast('user:ann:bye', 0) == 1
            await manager.broadcast('all', 1)
            await own.ends()
            assert own.told_to_stay and own.seen == [] and await other.next() == ('all', 1)


class TestUsers:
    @streams
    async def test_who_is_present(self, sink):
        "Somebody who has just left is listed for a while, as a page that is loaded anew has no connection for a moment"
        manager = SSEBroadcastManager()
        async with (following(sink, manager, user='ann'), following(sink, manager, user='ann'),
                    following(sink, manager, user=('bob', 1)) as bob, following(sink, manager)):
            assert manager.present() == {'ann': 2, ('bob', 1): 1}
            await bob.leave()
            await all_live(manager, 3)
            assert (manager.present(), manager.present(grace=0)) == ({'ann': 2, ('bob', 1): 0}, {'ann': 2})

    @streams
    @pytest.mark.parametrize('user', ['ann', 7, ('ann', 1)], ids=str)
    async def test_disconnect(self, sink, user, backend):
        "It ends all streams of a user, and nobody else's; whoever is told so comes back, and the route refuses him"
        manager = SSEBroadcastManager(backend=backend)
        async with (following(sink, manager, user=user) as a, following('stream', manager, user=user) as b,
                    following(sink, manager, user='other') as c):
            assert await manager.disconnect(user) == 2
            for o in a, b: assert not (await o.ends()).told_to_stay
            await manager.broadcast('x', 1)
            assert await c.next() == ('x', 1) and manager.present(grace=0) == {'other': 1}
            assert await manager.disconnect('nobody') == 0
        await manager.close()

    async def test_disconnect_ends_what_is_being_opened(self):
        "A request that was let in before, and whose stream opens after it"
        manager, app = SSEBroadcastManager(), FastHTML(secret_key='x')
        setup_sse(app, manager)
        @app.get('/events')
        async def events(req):
            response = manager.stream(req, user='bob')  # Bob is let in
            await manager.disconnect('bob')             # and, in another tab, he logs out
            return response
        for sink in 'stream', 'channel':
            async with listening(app, sink=sink) as bob:
                await bob.ends()
                assert bob.messages == [] and manager.connection_count == 0
        async with following('stream', manager, user='bob') as again:  # He has logged in again
            assert await manager.broadcast('x', 1) == 1 and await again.next() == ('x', 1)

    async def test_disconnect_ends_what_the_backend_holds_up(self):
        "With an id that is waited for, a client draws out its request by itself"
        manager = SSEBroadcastManager(backend=(backend := OwnBackend()))
        await manager.open()
        backend.reaches.clear()
        bob = client('stream', manager, user='bob', last_id='own-7')
        entering = asyncio.create_task(bob.__aenter__())
        await eventually(lambda: backend.waiting, 'it waits')
        await manager.disconnect('bob')
        backend.reaches.set()
        await entering
        await bob.ends()
        assert bob.messages == [] and manager.connection_count == 0

    async def test_a_browser_counts_once(self):
        "`max_per_user`: all channels of a carrier take one place, which is free again with the last of them"
        manager = SSEBroadcastManager(max_per_user=2)
        app = Site(manager, user='ann').app
        one, two, three = Browser(app), Browser(app), Browser(app)
        for b in one, one, one, two, two: await listening(app, sink='channel', browser=b).__aenter__()
        await all_live(manager, 5)
        third = listening(app, sink='channel', browser=three)
        await third.__aenter__()
        assert third.status == 503 and manager.present() == {'ann': 5}
        async with following('stream', manager, user='bob') as bob: assert bob.status == 200
        await one.leave()
        await eventually(lambda: manager.connection_count == 2, 'its streams end')
        again = listening(app, sink='channel', browser=Browser(app))
        await again.__aenter__()
        assert again.status == 200
        for b in two, three, again.browser: await b.leave()

    async def test_presence_is_told(self):
        "Once for many who come and go at once"
        manager, told = SSEBroadcastManager(), []
        manager.on_presence(lambda users: told.append(users))
        clients = [client('stream', manager, user=f'user {n%5}') for n in range(20)]
        for c in clients: await c.__aenter__()
        await eventually(lambda: told and told[-1] == {f'user {n}': 4 for n in range(5)}, 'it is told')
        for c in clients[:10]: await c.leave()
        await eventually(lambda: told[-1] == {f'user {n}': 2 for n in range(5)}, 'and again')
        assert len(told) <= 10
        for c in clients[10:]: await c.leave()


class TestAuthorise:
    @streams
    @asynchronous
    @pytest.mark.parametrize('answer, status', [(True, 200), (False, 403), (None, 403), (Response('Log in', 401), 401)],
        ids=['yes', 'no', 'nothing', 'response'])
    async def test_answers_at_the_opening(self, sink, answer, status, asynchronous):
        manager = SSEBroadcastManager()
        async with client(sink, manager, authorise=lambda req: says(answer) if asynchronous else answer) as c:
            assert c.status == status and manager.connection_count == (status == 200)

    @streams
    @pytest.mark.parametrize('kind', ['refuses', 'fails', 'says something else'])
    async def test_asked_again_while_open(self, sink, kind):
        "The stream ends where the answer is anything but `True`"
        manager, agrees = SSEBroadcastManager(), True
        def allowed(req):
            return agrees or (False if kind == 'refuses' else 'yes' if kind == 'says something else' else 1/0)
        async with (following(sink, manager, user='ann', authorise=allowed, recheck=.05) as ann,
                    following(sink, manager, user='bob') as bob):
            agrees = False
            assert not (await ann.ends()).told_to_stay
            await manager.broadcast('x', 1)
            assert await bob.next() == ('x', 1) and ann.messages == [] and manager.present(grace=0) == {'bob': 1}

    async def test_asked_once_for_a_user(self):
        "However many streams a user has, and for each user by himself"
        manager, calls = SSEBroadcastManager(), []
        app = FastHTML(secret_key='x')
        setup_sse(app, manager)
        async def agrees(req):
            calls.append(req.query_params['user'])
            return True
        @app.get('/events')
        def events(req, user: str): return manager.stream(req, user=user, authorise=agrees, recheck=1.)
        clients = [listening(app, f'/events?user={u}') for u in 'abcd' for _ in range(10)]
        for c in clients: await c.__aenter__()
        assert len(calls) >= 40, 'each is asked about as it opens'
        calls.clear()
        await eventually(lambda: {*calls} == {*'abcd'}, 'each user is asked about')
        assert len(calls) < 20
        for c in clients: await c.leave()


class TestLimits:
    async def test_many_at_once_never_exceed(self):
        "Not even where they all wait for the backend together"
        manager = SSEBroadcastManager(max_connections=5, backend=(backend := OwnBackend()))
        backend.starts.clear()
        clients = [client('stream', manager) for _ in range(20)]
        entering = asyncio.gather(*[c.__aenter__() for c in clients])
        await turns()
        backend.starts.set()
        await entering
        assert sorted(c.status for c in clients) == [200]*5+[503]*15 and manager.connection_count == 5
        with pytest.raises(TooManyConnections): await manager.register_connection()
        for c in clients: await c.leave()

    @timeless
    async def test_a_start_that_fails_is_tried_once_for_all(self):
        "However long it takes: those who waited for it meanwhile do not each try again, one behind the other"
        class Away(OwnBackend):
            tries = 0
            async def start(self, *args):
                self.tries += 1
                await asyncio.sleep(1.2)  # A start takes so long, by a clock that needs no time
                raise BackendError('nobody is there')
        manager = SSEBroadcastManager(backend=(backend := Away()))
        clients = [client('stream', manager) for _ in range(10)]
        await asyncio.gather(*[c.__aenter__() for c in clients])
        assert [c.status for c in clients] == [503]*10 and backend.tries <= 2
        for c in clients: await c.leave()

    async def test_nor_of_one_user(self):
        manager = SSEBroadcastManager(max_per_user=3, backend=(backend := OwnBackend()))
        await manager.open()
        backend.reaches.clear()
        clients = [client('stream', manager, user=u, last_id='own-9') for u in ['bob']*20+['ann']]
        entering = asyncio.gather(*[c.__aenter__() for c in clients])
        await eventually(lambda: backend.waiting == 21, 'all wait')
        backend.reaches.set()
        await entering
        assert sorted(c.status for c in clients[:20]) == [200]*3+[503]*17 and clients[20].status == 200
        for c in clients: await c.leave()
        async with client('stream', manager, user='bob') as again: assert again.status == 200

    async def test_a_stream_of_age_ends_politely(self):
        "`max_age`: its browser comes back for what follows, before a proxy would cut it"
        manager = SSEBroadcastManager(max_age=.2)
        async with client('stream', manager) as c:
            await manager.broadcast('x', 1)
            await c.ends()
            assert c.seen == [('x', 1)] and not c.told_to_stay and c.events[-1].retry is not None
        await manager.broadcast('x', 2)
        async with client('stream', manager, last_id=c.last_id) as back: assert await back.next() == ('x', 2)


class TestUntil:
    @streams
    async def test_live_and_in_a_replay(self, sink, render, backend):
        "Nothing comes after the message that ends a stream, and its client is told to stay away"
        manager = SSEBroadcastManager(backend=backend)
        await manager.open()
        start = manager.cursor
        async with following(sink, manager, render=render, until='job:done') as live:
            for t in 'a', 'job:done', 'b': await manager.broadcast(t, 1)
            await live.ends()
        async with client(sink, manager, render=render, until='job:done', last_id=start) as late: await late.ends()
        for c in live, late:
            assert c.seen == [('a', 1), ('job:done', 1)] and c.told_to_stay
            assert (c.events[-1].event, c.events[-1].data) == (CLOSE, '')
        async with client(sink, manager, render=render, until='job:done', last_id=live.last_id) as back:
            assert await back.next() == ('b', 1)
        await manager.close()

    @streams
    async def test_it_may_end_unseen(self, sink):
        "A message outside of `events` ends a stream, and is not shown"
        manager = SSEBroadcastManager()
        async with following(sink, manager, events='a', until='secret') as c:
            for t in 'a', 'secret': await manager.broadcast(t, t)
            await c.ends()
            assert c.seen == [('a', 'a')] and c.told_to_stay

    async def test_a_key_moves_no_end(self):
        "In a replay a stream ends where it ended live, although a later message has replaced the one that did it"
        manager = SSEBroadcastManager()
        start = manager.cursor
        async with following('stream', manager, until='job:done') as live:
            for i, (t, key) in enumerate([('a', 'k'), ('job:done', 'k'), ('b', None), ('job:done', 'k'), ('c', None)]):
                await manager.broadcast(t, i, key=key)
            await live.ends()
        async with client('stream', manager, until='job:done', last_id=start) as late: await late.ends()
        assert [t for t, _ in late.seen] == ['a', 'job:done'] and late.last_id == live.last_id
        async with client('stream', manager, last_id=start) as other:
            assert [t for t, _ in await other.read(4)] == ['a', 'b', 'job:done', 'c']

    @streams
    async def test_a_slow_client_reaches_its_end(self, sink):
        "Also where it skips what is older"
        manager = SSEBroadcastManager(5, overflow='drop_oldest', heartbeat=0)
        async with following(sink, manager, until='done', events=['n', 'done']) as c:
            c.stall()
            await manager.broadcast('n', [0, PAD])
            await turns()
            await manager.broadcast('done', 'X')
            for n in range(1, 20):
                await manager.broadcast('n', [n, PAD])
                await turns()
            c.resume()
            await c.ends()
            assert c.told_to_stay and c.seen[-1] == ('done', 'X')

    @pytest.mark.parametrize('snapshot,told', [(lambda: '"state"', ('message', 'state')), (lambda: 1/0, (GAP, None))],
        ids=['state', 'broken'])
    async def test_an_end_before_the_state(self, snapshot, told):
        "The state stands for all that came before it, and the end was among it"
        manager = SSEBroadcastManager()
        @manager.on_connect
        async def end(conn):
            await manager.broadcast('job:done', 1)
            await manager.broadcast('other', 2)
        async with client('stream', manager, until='job:done', snapshot=snapshot) as c:
            await c.ends()
            assert c.seen == [told] and c.told_to_stay


class TestKeys:
    @streams
    @timeless
    async def test_a_slow_client_skips_states(self, sink, render):
        "Of the messages with one key it gets the newest, and it is not sent away for the others"
        manager = SSEBroadcastManager(10, default_timeout=.02)
        async with following(sink, manager, render=render) as c:
            c.stall()
            await manager.broadcast('start', PAD)
            for i in range(100): await manager.broadcast('progress', [i, PAD], key='bar')
            await asyncio.sleep(5)  # Longer than its patience, by a clock that needs no time
            for i in range(100, 200): await manager.broadcast('progress', [i, PAD], key='bar')
            c.resume()
            await manager.broadcast('end', 0)
            await eventually(lambda: c.seen[-1:] == [('end', 0)] or c.over, 'the end comes')
            got = [d[0] for t, d in c.seen if t == 'progress']
        assert manager.stats()['evicted'] == 0 and not c.gaps
        assert c.seen[0][0] == 'start' and got == sorted(got) and got[-1] == 199 and len(got) < 20

    @streams
    async def test_who_reads_sees_each(self, sink, render):
        "As long as nothing waits, no state is skipped, and the next one of the key follows"
        manager = SSEBroadcastManager(5)
        async with following(sink, manager, render=render) as c, following('stream', manager) as other:
            for i in range(20):
                for t in 'progress', 'log': await manager.broadcast(t, i, key='k' if t == 'progress' else None)
                for o in c, other: assert await o.read(2) == [('progress', i), ('log', i)]
        assert manager.stats()['errors'] == manager.stats()['evicted'] == 0

    @streams
    async def test_a_replay_has_the_newest(self, sink, render, backend):
        "In its own place; a key counts within one type"
        manager = SSEBroadcastManager(backend=backend)
        await manager.open()
        start = manager.cursor
        for i in range(5):
            for t, key in ('p', 'k'), ('r', 'k'), ('q', None): await manager.broadcast(t, i, key=key)
        await manager.broadcast('p', 'other', key=('k', 1))
        async with client(sink, manager, render=render, last_id=start) as c:
            assert await c.read(8) == [*[('q', i) for i in range(4)], ('p', 4), ('r', 4), ('q', 4), ('p', 'other')]
        await manager.close()

    async def test_queues_get_all(self, backend):
        manager = SSEBroadcastManager(backend=backend)
        async with following('queue', manager) as c:
            for i in range(3): await manager.broadcast('x', i, key='k')
            assert await c.data(3) == [0, 1, 2]
        await manager.close()


class TestPageAndStream:
    @streams
    async def test_a_stream_begins_where_its_page_stands(self, sink, backend):
        "`SSE-After` says where, among other managers' places; whatever came since the page was drawn comes first"
        manager, other = SSEBroadcastManager(backend=backend), SSEBroadcastManager()
        await manager.broadcast('x', 0)
        after = f'{other.cursor} {manager.cursor}'
        for i in 1, 2: await manager.broadcast('x', i)
        app = Site(manager).app
        async with SentAfter(sink, app, after) as c:
            await manager.broadcast('x', 3)
            assert await c.data(3) == [1, 2, 3] and not c.gaps
        await manager.close()

    @streams
    @pytest.mark.parametrize('after', ['unknown-1', '{other}'], ids=['a restarted server', 'of others'])
    async def test_a_page_that_is_too_old(self, sink, after):
        "It is told a gap; one that says nothing of this manager begins with what comes"
        manager, other = SSEBroadcastManager(), SSEBroadcastManager()
        await manager.broadcast('x', 0)
        async with SentAfter(sink, Site(manager).app, after.format(other=other.cursor)) as c:
            if 'unknown' in after: assert await c.next() == (GAP, None)
            await all_live(manager, 1)
            await manager.broadcast('x', 1)
            assert await c.next() == ('x', 1) and len(c.messages) == (2 if 'unknown' in after else 1)

def SentAfter(sink, app, after):
    "A client whose page stands at `after`"
    if sink == 'stream': return listening(app, sink=sink, **{'SSE-After': after})
    c = listening(app, sink=sink)
    order = c.browser.order
    async def with_place(open=(), close=()): return await order([[*o[:4], after] for o in open], close)
    c.browser.order = with_place
    return c


class TestToOne:
    async def test_to_one_alone(self, sink, render):
        "`put_nowait` sends to one connection; hooks get the same handles that stand in `connections`"
        manager, came = SSEBroadcastManager(), []
        manager.on_connect(came.append)
        async with following(sink, manager, render=render) as a, following('stream', manager) as b:
            assert {*came} == {*manager.connections} and len(manager.connections) == 2
            assert all(o in manager.connections for o in came)
            came[0].put_nowait(dict(type='hello', data='you'))
            await manager.broadcast('x', 1)
            assert await a.read(2) == [('hello', 'you'), ('x', 1)] and await b.next() == ('x', 1)

    @streams
    async def test_full_or_ended(self, sink):
        "It raises, as a queue does; whatever was taken comes"
        manager = SSEBroadcastManager(3)
        async with following(sink, manager) as c:
            conn, = manager.connections
            c.stall()
            with pytest.raises(asyncio.QueueFull):
                for n in range(20): conn.put_nowait(dict(type='x', data=[n, PAD]))
            assert conn.full() and conn.qsize() == 3
            n -= 1
            c.resume()
            assert [d[0] for d in await c.data(n+1)] == [*range(n+1)]
            with pytest.raises(Exception, match='type'): conn.put_nowait('text')
        await eventually(lambda: manager.connection_count == 0, 'it has left')
        with pytest.raises(Exception, match='ended'): conn.put_nowait(dict(type='x'))

    async def test_from_threads(self, sink):
        manager = SSEBroadcastManager()
        async with following(sink, manager) as c:
            def push():
                for conn in manager.connections:
                    for n in range(50): conn.put_nowait(dict(type='n', data=n))
            await in_thread(push)
            assert await c.data(50) == [*range(50)]


    async def test_a_thread_wakes_the_reader(self):
        "Who waits at a queue, on an event loop that has nothing else to do, is woken"
        manager = SSEBroadcastManager()
        queue = await manager.register_connection()
        loop = asyncio.get_running_loop()
        late = loop.call_later(5, lambda: None)
        waiting = asyncio.create_task(queue.get())
        thread = threading.Timer(.2, lambda: queue.put_nowait(dict(type='x')))
        thread.start()
        assert (await waiting)['type'] == 'x' and loop.time() < late.when(), 'it got there as a timer was due'
        late.cancel()


class TestSentFromAnywhere:
    async def test_the_call_sends(self, sink, backend):
        "Awaiting it only waits; messages have the order of the calls"
        manager = SSEBroadcastManager(20, replay_size=5000, backend=backend)
        async with following(sink, manager) as c:
            for i in range(15): manager.broadcast('x', i)
            assert await manager.broadcast('x', 15) == 1
            assert await c.data(16) == [*range(16)]
        await manager.close()

    async def test_a_plain_route(self, sink, backend):
        "FastHTML runs it in a thread; the manager stays where its connections are"
        manager, app = SSEBroadcastManager(backend=backend), FastHTML(secret_key='test')
        @app.post('/add')
        def add(title: str): return str(manager.broadcast('added', title).result(BOUND))
        async with (following(sink, manager) as c,
                    httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url='http://test') as http):
            for i in range(3):
                assert '1' in (await http.post('/add', data=dict(title=str(i)))).text
                assert await manager.broadcast('added', 'here') == 1
                assert await c.data(2) == [str(i), 'here']
        await manager.close()

    async def test_threads(self, sink, backend):
        manager = SSEBroadcastManager(backend=backend)
        async with following(sink, manager) as c:
            def work(w): return [manager.broadcast_threadsafe('x', f'{w}{i}').result(BOUND) for i in range(10)]
            assert await asyncio.gather(*[in_thread(work, w) for w in 'abcd']) == [[1]*10]*4
            got = await c.data(40)
            for w in 'abcd': assert [d for d in got if d[0] == w] == [f'{w}{i}' for i in range(10)]
        await manager.close()

    def test_a_script(self, backend):
        "Before any event loop runs, after one has ended, and with one of its own"
        manager = SSEBroadcastManager(backend=backend)
        assert manager.broadcast_threadsafe('x', 1).result(BOUND) == 0 and manager.broadcast('x', 2).result(BOUND) == 0
        async def later():
            assert await manager.broadcast('x', 3) == 0
            async with following('stream', manager) as c:
                assert await manager.broadcast('x', 4) == 1
                assert await c.data(1) == [4]
            await manager.close()
            return [m['data'] for m in manager.get_history()]
        assert asyncio.run(later()) == [1, 2, 3, 4]
        assert manager.broadcast('x', 5).result(BOUND) == 0

    @pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
    def test_after_a_fork(self):
        "As under `gunicorn --preload`: what comes after a fork has an id of its own in each process"
        code = ('import os\nfrom cjm_fasthtml_sse.core import SSEBroadcastManager\nm = SSEBroadcastManager()\n'
                'def say():\n    m.broadcast("n", 1)\n    print(m.cursor, flush=True)\nsay()\n'
                'for _ in range(2):\n    if not os.fork():\n        say()\n        os._exit(0)\n    os.wait()\nsay()')
        ids = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
            timeout=30).stdout.split()
        assert len(ids) == len({*ids}) == 4

    async def test_another_event_loop(self, sink):
        manager = SSEBroadcastManager()
        async with following(sink, manager) as c:
            async def elsewhere(): return [await manager.broadcast('x', i) for i in range(3)]
            assert await in_thread(asyncio.run, elsewhere()) == [1, 1, 1]
            assert await c.data(3) == [0, 1, 2]

    def test_one_loop_after_another(self, sink):
        "A loop that ends over open streams does not spoil the next"
        manager = SSEBroadcastManager()
        async def leave_open():
            await client(sink, manager).__aenter__()
            await manager.broadcast('x', 1)
        async def next_one():
            async with client('stream', manager) as c:
                await all_live(manager, 1)
                assert await manager.broadcast('x', 2) == 1
                assert await c.next() == ('x', 2)
        asyncio.run(leave_open())
        for _ in range(2): asyncio.run(next_one())

    async def test_who_stops_waiting_stops_nothing(self):
        manager, go = SSEBroadcastManager(), asyncio.Event()
        @manager.on_broadcast
        async def hold(m): await go.wait()
        async with following('queue', manager) as c:
            waiting = [asyncio.ensure_future(manager.broadcast('x', i)) for i in range(3)]
            await turns()
            waiting[0].cancel()
            with pytest.raises(TimeoutError): await asyncio.wait_for(waiting[1], .001)
            go.set()
            assert await waiting[2] == 1
            assert sorted(await c.data(3)) == [0, 1, 2]

    async def test_result_on_the_loop_raises(self):
        "It would wait for itself"
        manager = SSEBroadcastManager()
        await manager.open()
        with pytest.raises(Exception, match='await'): manager.broadcast('x', 1).result()

    @pytest.mark.parametrize('hook', [False, True], ids=['renderers', 'hooks too'])
    async def test_within_hooks_and_renderers(self, hook):
        "Whatever is broadcast while another message is given out comes to all in one order"
        manager = SSEBroadcastManager()
        def plain(m):
            if m['type'] == 'x': manager.broadcast('plain', m['data'])
            return rendered(m)
        async def waits(m):
            if m['type'] == 'x': await manager.broadcast('async', m['data'])
            return rendered(m)
        @manager.on_delivery
        def audit(m):
            if m['type'] == 'x': manager.broadcast('audit', m['data'])
        async def before(m):
            if m['type'] == 'x': assert await manager.broadcast('before', m['data']) == 4
        if hook: manager.on_broadcast(before)
        types = ['x', 'plain', 'async', 'audit'] + ['before']*hook
        async with (following('stream', manager, render=plain) as a, following('channel', manager, render=waits) as b,
                    following('stream', manager) as c, following('queue', manager) as q):
            for i in range(20): assert await asyncio.wait_for(manager.broadcast('x', i), BOUND) == 4
            got = [await o.read(20*len(types)) for o in (a, b, c, q)]
            assert got[0] == got[1] == got[2] == got[3]
            assert sorted(got[0]) == sorted((t, i) for t in types for i in range(20))
        assert manager.stats()['errors'] == 0

    async def test_a_failure_is_told_to_all_who_ask(self):
        "And logged where nobody does"
        class Away(OwnBackend):
            async def publish(self, *args): raise ConnectionError('it is away')
        manager = SSEBroadcastManager(backend=Away())
        sent = manager.broadcast('x', 1)
        for _ in range(2):
            with pytest.raises(ConnectionError, match='away'): await sent
        with pytest.raises(ConnectionError): await in_thread(manager.broadcast('x', 2).result)


class TestHooks:
    @asynchronous
    async def test_a_message_may_be_changed(self, sink, backend, asynchronous):
        "One after another; what they give is what everybody gets, what the history holds, and what decides who gets it"
        manager = SSEBroadcastManager(backend=backend)
        def answer(m): return says(m) if asynchronous else m
        @manager.on_broadcast
        def first(m): return answer({**m, 'data': m['data']+1})
        @manager.on_broadcast
        def second(m): return answer({**m, 'type': 'renamed', 'data': m['data']*10})
        @manager.on_broadcast
        def third(m): return answer(None)
        async with following(sink, manager, events='renamed') as c:
            assert await manager.broadcast('x', 1) == 1
            assert await c.next() == ('renamed', 20)
            assert [(m['type'], m['data']) for m in manager.get_history()] == [('renamed', 20)]
            assert manager.get_history(0) == []
        await manager.close()

    @streams
    async def test_first_messages_wait_for_connect_hooks(self, sink):
        "And no broadcast waits for a hook"
        manager, go = SSEBroadcastManager(), asyncio.Event()
        @manager.on_connect
        async def greet(conn):
            await go.wait()
            conn.put_nowait(dict(type='welcome', data=0))
        async with client(sink, manager) as c:
            await eventually(lambda: manager.connection_count == 1, 'it is there')
            async with within('no broadcast waits'): await manager.broadcast('x', 1)
            await turns()
            assert c.messages == []
            go.set()
            await manager.broadcast('x', 2)
            assert sorted(await c.read(3)) == [('welcome', 0), ('x', 1), ('x', 2)]

    @pytest.mark.parametrize('kind', ['connect', 'disconnect'])
    async def test_one_that_hangs_is_cancelled(self, sink, kind):
        "`hook_timeout`: nobody waits for it for ever"
        manager, cancelled = SSEBroadcastManager(hook_timeout=.05), []
        async def hang(conn):
            try: await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(conn)
                raise
        getattr(manager, f'on_{kind}')(hang)
        hooks = Hooks(manager)
        async with no_task_left():
            async with following(sink, manager) as c:
                await manager.broadcast('x', 1)
                assert await c.next() == ('x', 1)
        await eventually(lambda: len(cancelled) == len(hooks.closed) == 1,
            'it is cancelled, and the next one is called')

    async def test_disconnect_follows_connect(self, sink):
        "In the order of a connection's life, however long the first takes"
        manager, calls, go = SSEBroadcastManager(), [], asyncio.Event()
        @manager.on_connect
        async def come(conn):
            calls.append('connect begins')
            await go.wait()
            calls.append('connect ends')
        @manager.on_disconnect
        async def gone(conn): calls.append('disconnect')
        c = client(sink, manager)
        entering = asyncio.create_task(c.__aenter__())
        await eventually(lambda: calls, 'the hook is called')
        if sink == 'queue': await manager.unregister_connection(*manager.connections)
        else:
            await entering
            c.hang_up()
        await turns()
        assert calls == ['connect begins']
        go.set()
        await entering
        await eventually(lambda: len(calls) == 3, 'all are called')
        assert calls == ['connect begins', 'connect ends', 'disconnect']
        await c.leave()


class TestNobodyIsOutrun:
    @pytest.mark.parametrize('size', [1, 10, 100])
    async def test_a_loop_of_broadcasts(self, sink, render, size):
        "Whoever reads is not sent away by a writer that never rests, though each send takes some turns of the loop"
        manager = SSEBroadcastManager(size, replay_size=5000, default_timeout=0)
        async with following(sink, manager, render=render) as c:
            if sink == 'stream': c.exchange.slow = 5
            for i in range(600): await manager.broadcast('x', i)
            assert await c.data(600) == [*range(600)]
        assert manager.stats()['evicted'] == manager.stats()['gaps'] == 0

    @streams
    async def test_a_loop_that_was_blocked(self, sink):
        "Its time is nobody's fault: who would have read meanwhile stays"
        manager = SSEBroadcastManager(5, default_timeout=.3)
        async with following(sink, manager) as c:
            for turn in range(2):
                c.stall()
                for n in range(20): await manager.broadcast('x', [turn*20+n, PAD])
                await turns()
                c.resume()
                time.sleep(.4)  # The loop is blocked, which is what is tested
                await eventually(lambda: len(c.messages) == (turn+1)*20 or c.over, 'all comes')
            assert [d[0] for d in await c.data(40)] == [*range(40)]
        assert manager.stats()['evicted'] == 0

    async def test_many_threads_at_once(self, sink):
        manager = SSEBroadcastManager(10, replay_size=10_000, default_timeout=BOUND)
        async with following(sink, manager) as c:
            def work():
                for i in range(250): manager.broadcast('x', i)
            threads = [threading.Thread(target=work) for _ in range(4)]
            for t in threads: t.start()
            assert sorted(await c.data(1000)) == sorted([*range(250)]*4)
            for t in threads: await in_thread(t.join)
        assert manager.stats()['evicted'] == 0

    async def test_one_renderer_renders_once(self):
        "Shared by live, late and returning clients, a renderer is asked once for each message"
        manager, asked = SSEBroadcastManager(), []
        def render(m):
            asked.append(m['data'])
            return rendered(m)
        start = manager.cursor
        async with following('stream', manager, render=render) as a, following('channel', manager, render=render) as b:
            for i in range(10): await manager.broadcast('x', i)
            async with client('channel', manager, render=render, last_id=start) as late:
                for c in a, b, late: assert await c.data(10) == [*range(10)]
        assert asked == [*range(10)]

    @pytest.mark.parametrize('key', RENDER)
    async def test_each_renderer_has_its_own(self, key):
        "Two that look alike, and none, beside each other"
        manager = SSEBroadcastManager()
        def one(m): return f'["one", {m["data"]}]'
        def two(m): return f'["two", {m["data"]}]'
        async with (following('stream', manager, render=one) as a, following('stream', manager, render=two) as b,
                    following('channel', manager, render=RENDER[key]) as c):
            await manager.broadcast('x', 1)
            assert [await o.next() for o in (a, b, c)] == [('one', 1), ('two', 1), ('x', 1)]
