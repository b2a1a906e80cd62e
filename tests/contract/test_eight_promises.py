"""The eight promises about delivery, over backends, sinks and renderers

1. Order. 2. Nothing is lost within the log. 3. A gap is never silent and never invented. 4. Nobody waits for those who
do not read. 5. A connection ends once, whichever way, and leaves nothing. 6. Errors of an app's callbacks stay where
they are. 7. Bad input is refused at the call. 8. Whoever is sent away is told when to come back; the servers' part of
it stands in `test_stopping_servers.py`.
"""
import asyncio
import gc
import logging
import random
import weakref
from types import SimpleNamespace

import pytest

from cjm_fasthtml_sse.core import SSEBroadcastManager, TooManyConnections
from tests.contract.clock import timeless
from tests.contract.support import (BOUND, CLOSE, GAP, HEARTBEAT, RENDER, Exchange, Hooks, Site, SocketClient,
    all_live, client, eventually, following, no_task_left, rendered, serve, turns, within)

streams = pytest.mark.parametrize('sink', ['stream', 'channel'])  # Those that know ids; a queue has none
asynchronous = pytest.mark.parametrize('asynchronous', [False, True], ids=['sync', 'async'])
PAD = 'x'*20_000  # More than a carrier takes for a channel that is not read


def written(manager):
    "(id, type, data) of all that is delivered from now on"
    log = []
    manager.on_delivery(lambda m: log.append((manager.cursor, m['type'], m['data'])))
    return log


class TestPromise1Order:
    async def test_all_see_one_order(self, backend, sink, render):
        "Everybody sees what was broadcast in one order, each message once, under one id"
        rnd, manager = random.Random(1), SSEBroadcastManager(backend=backend)
        log = written(manager)
        @manager.on_broadcast
        async def jitter(m): await turns(rnd.randrange(4))
        async def write(w):
            for n in range(40): await manager.broadcast(f'w{w}', n)
        async with following(sink, manager, render=render) as a, following('stream', manager) as b:
            await asyncio.gather(*map(write, range(5)))
            for c in a, b: assert await c.read(200) == [(t, d) for _, t, d in log]
            for w in range(5): assert [d for _, t, d in log if t == f'w{w}'] == [*range(40)]
            for c in [b] if sink == 'queue' else [a, b]: assert [e.id for e in c.messages] == [id for id, _, _ in log]
            assert len({id for id, _, _ in log}) == 200 and len(a.messages) == len(b.messages) == 200
        await manager.close()

    @pytest.mark.parametrize('stalled', [False, True], ids=['reading', 'stalled'])
    async def test_put_by_hand_keeps_its_place(self, backend, sink, render, stalled):
        "What an app puts into a connection comes after what was broadcast before it, and has no id of its own"
        manager = SSEBroadcastManager(backend=backend)
        async with following(sink, manager, render=render) as c:
            if stalled: c.stall()
            await manager.broadcast('first', PAD)
            for o in manager.connections: o.put_nowait(dict(type='hand', data=0))
            await manager.broadcast('last', 1)
            c.resume()
            assert [t for t, _ in await c.read(3)] == ['first', 'hand', 'last']
            first, hand, last = c.messages
            if sink != 'queue': assert first.id == hand.id != last.id
        await manager.close()


class TestPromise2NothingLost:
    @streams
    async def test_what_was_missed_comes_first(self, backend, sink, render):
        manager = SSEBroadcastManager(backend=backend)
        async with following(sink, manager, render=render) as c:
            for i in range(4): await manager.broadcast('x', i)
            assert await c.data(4) == [0, 1, 2, 3]
        for i in range(4, 10): await manager.broadcast('x', i)
        async with client(sink, manager, render=render, last_id=c.last_id) as back:
            await manager.broadcast('x', 10)
            assert await back.data(7) == [*range(4, 11)]
        assert manager.stats()['gaps'] == 0 and len(back.messages) == 7
        await manager.close()

    @pytest.mark.parametrize('query,header,first', [(3, None, 4), (None, 3, 4), (8, 3, 4)],
        ids=['query', 'header', 'both: the header'])
    async def test_an_id_may_stand_in_the_query(self, query, header, first):
        manager, ids = SSEBroadcastManager(), []
        for i in range(10):
            await manager.broadcast('x', i)
            ids.append(manager.cursor)
        url = '/events' if query is None else f'/events?last_event_id={ids[query]}'
        headers = {} if header is None else {'Last-Event-ID': ids[header]}
        async with Exchange(Site(manager).app, 'GET', url, headers) as r:
            await eventually(lambda: b'data: 9\n' in r.body, 'the replay comes')
            assert b'event: x' in r.body and b'data: 3\n' not in r.body and f'data: {first}\n'.encode() in r.body

    @streams
    async def test_no_hole_at_the_moment_of_opening(self, sink, render):
        "A broadcast falls into every turn of the loop between the request and the live stream"
        for after in range(16):
            manager = SSEBroadcastManager()
            at = manager.cursor
            await manager.broadcast('x', 0)
            async def write():
                for i in range(1, 30):
                    if i > after: await asyncio.sleep(0)
                    await manager.broadcast('x', i)
            c = client(sink, manager, render=render, last_id=at)
            opening = asyncio.create_task(c.__aenter__())
            await turns(after)
            await asyncio.gather(write(), opening)
            assert await c.data(30) == [*range(30)]
            await c.leave()
            assert len(c.messages) == 30

    @streams
    async def test_news_waits_behind_a_slow_replay(self, backend, sink):
        manager, gate = SSEBroadcastManager(backend=backend), asyncio.Event()
        async def render(m):
            await gate.wait()
            return rendered(m)
        await manager.open()
        at = manager.cursor
        for i in range(5): await manager.broadcast('x', i)
        async with client(sink, manager, render=render, last_id=at) as c:
            await turns()
            for i in range(5, 10): await manager.broadcast('x', i)
            await turns()
            assert c.messages == []
            gate.set()
            await manager.broadcast('x', 10)
            assert await c.data(11) == [*range(11)]
        await manager.close()

    async def test_a_writer_never_rests(self, backend):
        "Forty tabs come back over sockets, each from another id"
        manager, done = SSEBroadcastManager(replay_size=5000, backend=backend), asyncio.Event()
        log = written(manager)
        async def write():
            n = 0
            while not done.is_set():
                await manager.broadcast('x', n := n+1)
                await asyncio.sleep(0)
        async def visit(port, i):
            async with SocketClient(port, last_id=log[i][0]) as c:
                await c.read(60)
                assert c.seen == [(t, d) for _, t, d in log[i+1:i+1+len(c.seen)]]
        writer = asyncio.create_task(write())
        await eventually(lambda: len(log) > 50, 'there is something to replay')
        async with serve(Site(manager).app) as port:
            await asyncio.gather(*[visit(port, i) for i in range(40)])
            done.set()
            await writer
            await manager.close()

    @streams
    @asynchronous
    async def test_whatever_id_one_breaks_off_with(self, backend, sink, asynchronous):
        "No id, of a message or a heartbeat, is ahead of what was sent before it: the rest comes, and nothing twice"
        rnd, manager = random.Random(3), SSEBroadcastManager(20, replay_size=5000, heartbeat=.002, backend=backend)
        log = written(manager)
        async def slow(m):
            await turns(rnd.randrange(4))
            return rendered(m)
        async with following(sink, manager, events=['a', 'b'], render=slow if asynchronous else rendered) as c:
            for n in range(300):
                await manager.broadcast(rnd.choice('abc'), n)
                if n % 8 == 0: await asyncio.sleep(.001)  # Heartbeats come in between
            await manager.broadcast('a', 'end')
            await eventually(lambda: c.seen[-1:] == [('a', 'end')] or c.over, 'all has come')
        place = {id: i for i, (id, _, _) in enumerate(log)}
        seen = []
        for e in c.events:
            if e.event != HEARTBEAT: seen = c.seen[:len(seen)+1]
            if e.id in place:
                assert seen == [(t, d) for _, t, d in log[:place[e.id]+1] if t in 'ab'], f'{e.event} with {e.id}'
        assert seen[-1] == ('a', 'end') and manager.stats()['evicted'] == 0
        await manager.close()


class TestPromise3Gaps:
    @streams
    @pytest.mark.parametrize('lost', ['other epoch', 'too old', 'too new', 'nonsense'])
    @pytest.mark.parametrize('snapshot', [False, True], ids=['no state', 'with state'])
    async def test_a_gap_is_told_once(self, backend, sink, lost, snapshot):
        "By the state or by name, before any message, and never by half a replay"
        manager, ids = SSEBroadcastManager(replay_size=5, backend=backend), []
        for i in range(10):
            await manager.broadcast('x', i)
            ids.append(manager.cursor)
        bad = {'other epoch': SSEBroadcastManager().cursor, 'too old': ids[3],
            'too new': ids[9].rpartition('-')[0]+'-99999', 'nonsense': 'nonsense'}[lost]
        async with client(sink, manager, last_id=bad, snapshot=(lambda: '"state"') if snapshot else None) as c:
            await c.read()
            assert (c.messages[0].event, c.messages[0].data) == (('message', '"state"') if snapshot else (GAP, ''))
            assert c.messages[0].id == ids[9]
            assert c.events[0].event == HEARTBEAT and c.events[0].id in ('', bad), 'no new id before the gap is told'
            await manager.broadcast('x', 'next')
            assert await c.next() == ('x', 'next')
        assert manager.stats()['gaps'] == 1
        await manager.close()

    @streams
    async def test_the_oldest_id_is_no_gap(self, backend, sink):
        manager, ids = SSEBroadcastManager(replay_size=5, backend=backend), []
        for i in range(10):
            await manager.broadcast('x', i)
            ids.append(manager.cursor)
        async with client(sink, manager, last_id=ids[4]) as c: assert await c.data(5) == [5, 6, 7, 8, 9]
        async with client(sink, manager, last_id=ids[9]) as c:
            await manager.broadcast('x', 'next')
            assert await c.data(1) == ['next']
        assert manager.stats()['gaps'] == 0
        await manager.close()

    @streams
    async def test_quiet_for_a_day_is_no_gap(self, backend, sink):
        "Heartbeats bring a client forward that wants little, past all that it does not want"
        manager = SSEBroadcastManager(replay_size=5, heartbeat=.02, backend=backend)
        async with following(sink, manager, events='mine') as c:
            for i in range(50): await manager.broadcast('other', i)
            await eventually(lambda: c.last_id == manager.cursor, 'a heartbeat carries the cursor')
        await manager.broadcast('mine', 1)
        async with client(sink, manager, events='mine', last_id=c.last_id) as back:
            assert await back.next() == ('mine', 1)
        assert manager.stats()['gaps'] == 0
        await manager.close()

    @streams
    @pytest.mark.parametrize('slow', ['reader', 'renderer'])
    async def test_little_wanted_and_slow(self, sink, slow):
        "Who falls behind gets what was meant for it, although the log has forgotten much that was not"
        manager, gate = SSEBroadcastManager(3, replay_size=50, heartbeat=0, default_timeout=BOUND), asyncio.Event()
        async def waits(m):
            await gate.wait()
            return rendered(m)
        async with following(sink, manager, events='mine', render=waits if slow == 'renderer' else None) as c:
            if slow == 'reader':
                c.stall()
                await manager.broadcast('mine', [0, PAD])  # This is being sent all the time
                await turns()
            for i in range(100): await manager.broadcast('other', i)
            for i in range(slow == 'reader', 10):
                await manager.broadcast('mine', [i, PAD])
                await turns(3)
            gate.set()
            c.resume()
            await eventually(lambda: len(c.messages) >= 10 or c.gaps, 'all comes')
            assert [d[0] for _, d in c.seen if d] == [*range(10)] and not c.gaps
        assert manager.stats()['evicted'] == 0

    @streams
    async def test_a_heartbeat_waits_for_the_renderer(self, backend, sink):
        manager, gate = SSEBroadcastManager(heartbeat=.02, backend=backend), asyncio.Event()
        async def render(m):
            await gate.wait()
            return rendered(m)
        async with following(sink, manager, render=render) as c:
            at = manager.cursor
            await manager.broadcast('x', 1)
            n = len(c.events)
            await eventually(lambda: len(c.events) > n+1, 'heartbeats come meanwhile')
            assert {e.id for e in c.events} <= {'', at}
            gate.set()
            assert await c.next() == ('x', 1) and c.messages[0].id == manager.cursor
        await manager.close()

    @streams
    async def test_a_renderer_that_gives_nothing(self, sink):
        "It sends nothing, and yet whoever comes back is not told a gap, nor asked to see it again"
        manager = SSEBroadcastManager(replay_size=5, heartbeat=.02)
        asked = []
        def render(m):
            asked.append(m['data'])
            return None if m['type'] == 'dull' else rendered(m)
        async with following(sink, manager, render=render) as c:
            for i in range(50): await manager.broadcast('dull', i)
            await eventually(lambda: c.last_id == manager.cursor, 'the id moves on')
        async with client(sink, manager, render=render, last_id=c.last_id) as back:
            await manager.broadcast('x', 1)
            assert await back.next() == ('x', 1) and c.messages == []
        assert manager.stats()['gaps'] == 0 and asked == [*range(50), 1]


class TestPromise4NobodyWaits:
    @streams
    async def test_stalled_clients_delay_nobody(self, backend, sink):
        "Neither a broadcast nor the others, and no more waits for them than may wait"
        manager = SSEBroadcastManager(10, default_timeout=1000, backend=backend)
        stalled = [client(sink, manager) for _ in range(10)]
        for c in stalled: await c.__aenter__()
        async with following('stream', manager) as healthy:
            for c in stalled: c.stall()
            async with within('nobody waits for the stalled'):
                for i in range(60):
                    assert await manager.broadcast('x', [i, PAD], timeout=1000) == 11
                    assert (await healthy.data(1))[0][0] == i
            assert max(o['queued'] for o in manager.inspect()['connections']) <= 10
        for c in stalled: await c.leave()
        await manager.close()

    @streams
    async def test_evicted_and_served_the_rest(self, backend, sink, render):
        "Who does not read is sent away, told when to come back, and then gets all"
        manager = SSEBroadcastManager(10, default_timeout=.01, backend=backend)
        hooks = Hooks(manager)
        async with following('stream', manager) as healthy, following(sink, manager, render=render) as stalled:
            stalled.stall()
            for i in range(30):
                await manager.broadcast('x', [i, PAD])
                await healthy.read(1)
            await eventually(lambda: manager.stats()['evicted'] == 1 and len(hooks.closed) == 1,
                'it is evicted, its hook fires although it does not read')
            stalled.resume()
            await stalled.ends()
            assert not stalled.told_to_stay and stalled.gaps == 0
            if sink == 'stream': assert stalled.events[-1].retry is not None
            async with client(sink, manager, render=render, last_id=stalled.last_id) as back:
                rest = await back.data(30-len(stalled.messages))
            assert [d for _, (d, _) in stalled.seen]+[d for d, _ in rest] == [*range(30)]
            assert not healthy.over
        await manager.close()

    @streams
    @timeless
    async def test_drop_oldest_skips_and_stays(self, sink):
        manager = SSEBroadcastManager(10, default_timeout=.01, overflow='drop_oldest')
        async with following(sink, manager) as c:
            c.stall()
            for i in range(50): await manager.broadcast('x', [i, PAD])
            await asyncio.sleep(5)  # Five hundred times its patience, by a clock that needs no time
            c.resume()
            await manager.broadcast('x', ['end', ''])
            await eventually(lambda: c.seen and c.seen[-1][1][0] == 'end', 'the newest comes')
            *got, _ = [d for _, (d, _) in c.seen]
        assert got == sorted({*got}) and got[-9:] == [*range(41, 50)], 'in order, and with all that may wait'
        assert len(got) < 30 and manager.stats()['evicted'] == 0, 'it skipped what is older'

    @pytest.mark.parametrize('limit', [500, 100], ids=['within its backlog', 'beyond it'])
    async def test_a_blocked_renderer_delays_its_own_alone(self, limit):
        manager, gate, asked = SSEBroadcastManager(limit), asyncio.Event(), []
        async def blocked(m):
            asked.append(m['data'])
            await gate.wait()
            return rendered(m)
        async with (following('stream', manager, render=blocked) as a,
                    following('channel', manager, render=blocked) as b):
            async with (following('stream', manager, render=RENDER['async']) as quick,
                        following('channel', manager) as plain):
                async with within('nobody waits for the renderer'):
                    for i in range(300): assert await manager.broadcast('x', i) == 4
                    for c in quick, plain: assert await c.data(300) == [*range(300)]
                assert asked and a.messages == b.messages == []
                gate.set()
                for c in a, b: assert await c.data(300) == [*range(300)]
        assert manager.stats()['evicted'] == manager.stats()['gaps'] == 0

    async def test_full_queues_cost_one_timeout_together(self, backend):
        manager = SSEBroadcastManager(1, backend=backend)
        for _ in range(30): await manager.register_connection()
        await manager.broadcast('x', 1)
        async with following('stream', manager) as c:
            waiting = manager.broadcast('x', 2, timeout=1.)
            assert (await c.next(), manager.connection_count) == (('x', 2), 31), 'everyone else is served first'
            async with within('thirty of them wait once', 30/2): assert await waiting == 1
            await eventually(lambda: manager.connection_count == 1, 'those that stay full are ended')
        await manager.close()

    async def test_it_holds_on_sockets(self):
        manager = SSEBroadcastManager(10, heartbeat=0)
        async with (serve(Site(manager).app) as port, SocketClient(port, receive_buffer=4096) as stalled,
                    SocketClient(port) as other):
            await all_live(manager, 2)
            stalled.stall()
            async with within('it is evicted', 2*BOUND):
                while not manager.stats()['evicted']:
                    await manager.broadcast('x', PAD*5)
                    await asyncio.sleep(.001)  # The server is on this loop, too
            await eventually(lambda: manager.connection_count == 1, 'the other one stays')
            assert manager.stats()['evicted'] == 1 and not other.over
            await manager.close()
            await other.ends()


# Ways out: of a client, or of the manager whose it is

async def leave(c, manager): c.hang_up()
async def cancel(c, manager): c.exchange.task.cancel()
async def unregister(c, manager): await manager.unregister_connection(*manager.connections)
async def close(c, manager): await manager.close()
async def finish(c, manager): await manager.broadcast('end', None)
async def disconnect(c, manager): assert await manager.disconnect('ann') == 1
async def all_at_once(c, manager):
    await manager.disconnect('ann')
    for o in manager.connections: await manager.unregister_connection(o)
    c.hang_up()
    await manager.close()
async def evict(c, manager):
    c.stall()
    for i in range(30): await manager.broadcast('x', i)
    await eventually(lambda: manager.stats()['evicted'], 'it is evicted')
    c.resume()
async def evict_and_leave(c, manager):
    c.stall()
    for i in range(30): await manager.broadcast('x', i)
    await eventually(lambda: manager.stats()['evicted'], 'it is evicted')
    c.hang_up()
async def send_fails(c, manager, error=RuntimeError):
    c.exchange.fails = error('of the server')
    await manager.broadcast('x', 1)
async def dead_network(c, manager):
    await send_fails(c, manager, OSError)
    c.hang_up()
async def send_is_cancelled(c, manager): await send_fails(c, manager, asyncio.CancelledError)

FOR_ALL = leave, unregister, close, finish, disconnect, all_at_once, evict, evict_and_leave
FOR_STREAMS = cancel, dead_network, send_fails, send_is_cancelled
WAYS = [(s, w) for s in ('stream', 'channel') for w in FOR_ALL] + [('stream', w) for w in FOR_STREAMS]
WAYS = [pytest.param(s, w, id=f'{s}-{w.__name__}') for s, w in WAYS]


class TestPromise5TheEnd:
    @asynchronous
    @pytest.mark.parametrize('sink,way', WAYS)
    async def test_whichever_way_out(self, sink, way, asynchronous, caplog):
        "Unregistered once, the hooks fire once, and no task, no request and no renderer stays"
        caplog.set_level(logging.CRITICAL, 'cjm_fasthtml_sse')  # Tracebacks that are kept would keep the renderer too
        manager = SSEBroadcastManager(5, default_timeout=.01)
        hooks = Hooks(manager)
        def make():
            async def render(m): return m['type']*20_000
            return render if asynchronous else lambda m: m['type']*20_000
        async with no_task_left():
            render = make()
            ref = weakref.ref(render)
            c = client(sink, manager, render=render, until='end', user='ann')
            del render
            await c.__aenter__()
            await all_live(manager, 1)
            await way(c, manager)
            await c.ends()
            await eventually(lambda: len(hooks.closed) == 1 and not manager.inspect()['requests'], 'the request ends')
            assert manager.inspect() == dict(connections=[], requests=0) and manager.present(grace=0) == {}
            assert hooks.closed == hooks.opened and len(hooks.opened) == 1
            assert c.told_to_stay == (way is finish)
            with pytest.raises(Exception, match='ended'): hooks.closed[0].put_nowait(dict(type='late'))
            if sink == 'channel': await c.leave()
        hooks.opened.clear(), hooks.closed.clear()
        del c
        await turns()
        gc.collect()
        assert ref() is None, 'the renderer survives'

    @pytest.mark.parametrize('turn', range(16))
    @pytest.mark.parametrize('way', ['leaves', 'is cancelled'])
    async def test_in_any_turn_of_the_loop(self, turn, way):
        "Through the connect hook, the first chunk, the state, an async replay, live"
        manager, opened, closed = SSEBroadcastManager(), [], []
        async def pause(*_): await asyncio.sleep(0)
        @manager.on_connect
        async def connect(conn):
            opened.append(conn)
            await pause()
        @manager.on_disconnect
        async def gone(conn):
            await pause()
            closed.append(conn)
        async def snapshot():
            await pause()
            return 'state'
        start = manager.cursor
        for i in range(3): await manager.broadcast('x', i)
        async with no_task_left():
            for last in start, 'other-1', '':
                r = Exchange(Site(manager, render=RENDER['async'], snapshot=snapshot).app, 'GET', '/events',
                    {'Last-Event-ID': last} if last else {}).begin()
                await turns(turn)
                r.hang_up() if way == 'leaves' else r.task.cancel()
                await eventually(lambda: r.task.done() and closed == opened, 'it ends, and the hook fires once')
                assert manager.inspect() == dict(connections=[], requests=0)

    @pytest.mark.parametrize('stage', ['hook', 'snapshot', 'render', 'send'])
    @pytest.mark.parametrize('way', ['leaves', 'is cancelled', 'close'])
    async def test_while_somebody_takes_for_ever(self, stage, way):
        manager, entered, never = SSEBroadcastManager(hook_timeout=.3), asyncio.Event(), asyncio.Event()
        hooks = Hooks(manager)
        async def wait(*_):
            entered.set()
            await never.wait()
        if stage == 'hook': manager.on_connect(wait)
        start = manager.cursor
        await manager.broadcast('x', 1)
        args = dict(render=wait) if stage == 'render' else dict(snapshot=wait) if stage == 'snapshot' else {}
        async with no_task_left():
            c = client('stream', manager, last_id=start if stage in ('render', 'send') else '', **args)
            await c.__aenter__()
            if stage == 'send':
                await all_live(manager, 1)
                c.stall()
                await manager.broadcast('x', 2)
                entered.set()
            async with within('it gets there'): await entered.wait()
            await turns()
            if way == 'leaves': c.hang_up()
            elif way == 'is cancelled': c.exchange.task.cancel()
            else: await manager.close(timeout=.1)
            await eventually(lambda: c.exchange.task.done() and hooks.closed == hooks.opened != [], 'it ends')
            assert manager.inspect() == dict(connections=[], requests=0) and len(hooks.closed) == 1

    @pytest.mark.parametrize('way', ['is cancelled', 'network', 'close'])
    async def test_gone_before_the_response(self, way):
        "Hooks hear of a connection twice or not at all, where its response has no beginning"
        manager = SSEBroadcastManager()
        hooks = Hooks(manager)
        async with no_task_left():
            r = Exchange(Site(manager).app, 'GET', '/events')
            r.stall()
            r.begin()
            await eventually(lambda: manager.connection_count == 1, 'its stream is there')
            await turns()
            if way == 'is cancelled': r.task.cancel()
            elif way == 'network': r.fails = OSError('gone')
            else: await manager.close(timeout=.1)
            r.resume()
            await eventually(lambda: r.task.done(), 'it ends')
            assert manager.inspect() == dict(connections=[], requests=0) and hooks.opened == hooks.closed

    async def test_it_holds_on_sockets(self):
        manager = SSEBroadcastManager(heartbeat=.05)
        hooks = Hooks(manager)
        async with serve(Site(manager).app) as port:
            for rude in False, True:
                async with SocketClient(port) as c:
                    await all_live(manager, 1)
                    await c.leave(rudely=rude)
                    await eventually(lambda: manager.connection_count == 0, 'unregistered')
            async with SocketClient(port) as c:
                await all_live(manager, 1)
                await manager.close()
                await c.ends()
                assert c.events[-1].retry is not None and not c.told_to_stay
            await eventually(lambda: hooks.closed == hooks.opened and len(hooks.opened) == 3, 'three came, three went')


class TestPromise6ErrorsOfOthers:
    @asynchronous
    @streams
    @pytest.mark.parametrize('place', ['on_connect', 'on_disconnect', 'on_broadcast', 'render', 'snapshot'])
    async def test_nobody_else_notices(self, place, sink, asynchronous, caplog):
        "Each error is logged with its traceback and counted"
        manager = SSEBroadcastManager()
        def bad(*_): raise RuntimeError(f'error in {place}')
        async def async_bad(*_): bad()
        f = async_bad if asynchronous else bad
        if place.startswith('on_'): getattr(manager, place)(f)
        async with (following(sink, manager) as other,
                    following(sink, manager, **{} if place.startswith('on_') else {place: f}) as c):
            assert await manager.broadcast('x', 1) == 2
            assert await other.next() == ('x', 1)
            await turns()
            assert not c.over
        await eventually(lambda: manager.connection_count == 0 and manager.stats()['errors'] >= 1, 'counted')
        await eventually(lambda: not manager.inspect()['requests'], 'all hooks have run')
        records = [r for r in caplog.records if r.exc_info and f'error in {place}' in str(r.exc_info[1])]
        assert len(records) == manager.stats()['errors'] == (2 if place in ('on_connect', 'on_disconnect') else 1)
        assert all(r.name.startswith('cjm_fasthtml_sse') for r in records)

    async def test_a_renderer_spoils_one_message(self, sink):
        "The message that it fails on; those before and behind it come, to its own clients too"
        manager = SSEBroadcastManager()
        def render(m): return rendered(m) if m['data'] else 1/0
        async with following('stream', manager, render=render) as c, following(sink, manager) as other:
            for n in 1, 0, 2: await manager.broadcast('x', n)
            assert (await c.data(2), await other.data(3)) == ([1, 2], [1, 0, 2])

    async def test_a_hook_that_fails_leaves_the_message(self):
        "Where a hook raises, or gives what is no message, the message is sent as it was"
        manager = SSEBroadcastManager()
        @manager.on_broadcast
        def bad(m): return {**m, 'type': CLOSE} if m['data'] == 'own event' else 7 if m['data'] == 'number' else None
        async with following('stream', manager) as c:
            for data in 'own event', 'number', 'good': await manager.broadcast('sse:mine', data)
            assert await c.read(3) == [('sse:mine', 'own event'), ('sse:mine', 'number'), ('sse:mine', 'good')]
        assert manager.stats()['errors'] == 2


class TestPromise7BadInput:
    @pytest.mark.parametrize('bad', ['a\rb', 'a\nb', 'a\0b', '', None, 7, HEARTBEAT, GAP, CLOSE])
    async def test_bad_event_types(self, bad, backend):
        "Refused at the call, before anything is sent"
        manager = SSEBroadcastManager(backend=backend)
        async with following('stream', manager) as c:
            for call in manager.broadcast, manager.broadcast_threadsafe:
                with pytest.raises(ValueError): await call(bad, 1)
            with pytest.raises(ValueError): next(iter(manager.connections)).put_nowait(dict(type=bad))
            await manager.broadcast('sse:mine', 1)
            assert await c.next() == ('sse:mine', 1), 'other names that begin so are free'
        await manager.close()

    @pytest.mark.parametrize('bad', ['', 'a\nb', ['a', ''], 7, []])
    def test_bad_patterns(self, bad):
        manager, request = SSEBroadcastManager(), SimpleNamespace(scope={})
        with pytest.raises((ValueError, TypeError)): manager.stream(request, events=bad)
        with pytest.raises((ValueError, TypeError)): manager.subscribe(bad)
        if bad not in ('', []):
            with pytest.raises((ValueError, TypeError)): manager.stream(request, until=bad)

    @pytest.mark.parametrize('bad', [dict(timeout=-1), dict(timeout='1'), dict(key=[])], ids=repr)
    async def test_bad_arguments_of_a_broadcast(self, bad):
        manager = SSEBroadcastManager()
        queue = await manager.register_connection()
        with pytest.raises((ValueError, TypeError)): manager.broadcast('x', 1, **bad)
        assert queue.empty() and manager.get_history() == []

    @pytest.mark.parametrize('bad', [
        dict(render=7), dict(snapshot='x'), dict(authorise='ann'), dict(recheck=0), dict(user=[])], ids=repr)
    def test_bad_arguments_of_a_stream(self, bad):
        with pytest.raises((ValueError, TypeError)): SSEBroadcastManager().stream(SimpleNamespace(scope={}), **bad)

    async def test_what_no_process_boundary_takes(self, store):
        "Data that cannot cross is refused at the call"
        manager = SSEBroadcastManager(backend=store.played())
        async with following('queue', manager) as c:
            with pytest.raises(Exception, match='object'): manager.broadcast('x', object())
            await manager.broadcast('x', 1)
            assert await c.next() == ('x', 1)
        await manager.close()

    @streams
    async def test_a_full_house(self, sink):
        "`max_connections`: 503 with `Retry-After`, and no stream ever begins"
        manager = SSEBroadcastManager(max_connections=1)
        hooks = Hooks(manager)
        async with following(sink, manager):
            async with Exchange(Site(manager).app, 'GET', '/events') as r:
                assert r.status == 503 and r.headers['retry-after'].isdigit()
                assert 'event-stream' not in r.headers['content-type']
            async with client('channel', manager) as refused: assert refused.status == 503
            with pytest.raises(TooManyConnections): await manager.register_connection()
        async with client(sink, manager) as c: assert c.status == 200, 'there is room again'
        await eventually(lambda: len(hooks.opened) == len(hooks.closed) == 2, 'nobody else came')

    @pytest.mark.parametrize('bad', ['-', '-1', 'x'*5000, '{epoch}', '{epoch}-', '{epoch}--1', '{epoch}-+1',
        '{epoch}-1.0', '{epoch}-²', '{epoch}-9'*50])
    async def test_hostile_last_event_ids(self, bad, backend):
        "A gap, or nothing; never an error, and never half a replay"
        manager = SSEBroadcastManager(backend=backend)
        for i in range(3): await manager.broadcast('x', i)
        bad = bad.format(epoch=manager.cursor.rpartition('-')[0]).encode().decode('latin-1')
        async with client('stream', manager, last_id=bad) as c:
            assert await c.next() == (GAP, None)
            await manager.broadcast('x', 'next')
            assert await c.next() == ('x', 'next')
        assert manager.stats()['errors'] == 0
        await manager.close()


class TestPromise8Farewell:
    async def test_all_are_told_when_to_come_back(self, backend):
        "Not all at the same moment, and nobody is told to stay away"
        manager = SSEBroadcastManager(retry=1000, backend=backend)
        clients = [client(sink, manager) for sink in ['stream']*20+['channel', 'queue']]
        for c in clients: await c.__aenter__()
        await all_live(manager, 22)
        await manager.broadcast('x', 'last')
        await manager.close()
        for c in clients:
            await c.ends()
            assert c.seen == [('x', 'last')] and not c.told_to_stay
        retries = {c.events[-1].retry for c in clients[:20]}
        assert len(retries) > 5 and 500 <= min(retries) and max(retries) <= 1500
        for c in clients: await c.leave()

    async def test_the_manager_goes_on(self, backend, sink):
        "Whoever comes back after a `close` gets what follows"
        manager = SSEBroadcastManager(backend=backend)
        for _ in range(2):
            async with following(sink, manager) as c:
                await manager.broadcast('x', 1)
                assert await c.next() == ('x', 1)
                await manager.close()
                await c.ends()

    @timeless
    async def test_a_close_skips_nothing(self):
        "A client that is cut off in the midst of a message gets that and all behind it when it comes back"
        manager = SSEBroadcastManager()
        async with following('stream', manager) as c:
            await manager.broadcast('x', 0)
            await c.read()
            c.stall()
            for i in range(1, 4):
                await manager.broadcast('x', i)
                await turns()
            closing = asyncio.create_task(manager.close(timeout=2))
            await asyncio.sleep(.7)  # It waits half a second for what is being sent, by a clock that needs no time
            c.resume()
            await closing
            await c.ends()
        async with client('stream', manager, last_id=c.last_id) as back:
            await manager.broadcast('x', 4)
            await eventually(lambda: back.seen[-1:] == [('x', 4)], 'the newest comes')
        assert [d for _, d in c.seen+back.seen] == [0, 1, 2, 3, 4] and not back.gaps

    async def test_nothing_is_lost_over_the_end(self):
        "What was broadcast while nobody was connected is there for those who come back"
        manager = SSEBroadcastManager()
        async with following('stream', manager) as c:
            await manager.broadcast('x', 1)
            await manager.close()
            await c.ends()
        await manager.broadcast('x', 2)
        async with client('channel', manager, last_id=c.last_id) as back: assert await back.next() == ('x', 2)
