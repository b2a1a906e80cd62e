"The promises about delivery, each in a test that fails when it is broken"
import asyncio
import gc
import json
import logging
import random
import weakref

import pytest

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.wire import CLOSE, GAP, HEARTBEAT, FieldError, SSEError, encode
from tests.support import (BOUND, Hooks, connected, eventually, following, no_task_left, read, read_all, request, seq, serve, serving,
    socket_events, tab, turns)


# 1. Order

async def test_promise_1_everybody_sees_messages_in_the_order_of_their_ids_and_once():
    rnd, manager = random.Random(1), SSEBroadcastManager(replay_size=5000)
    @manager.on_broadcast
    async def jitter(m):
        for _ in range(rnd.randrange(4)): await asyncio.sleep(0)
    async def writer(i):
        for n in range(60): await manager.broadcast(f'w{i}', n)
    async def slow(m):
        for _ in range(rnd.randrange(2)): await asyncio.sleep(0)
        return m['type']
    queue = await manager.register_connection(asyncio.Queue())
    async with following(manager) as a, following(manager, render=lambda m: m['type']) as b, following(manager, render=slow) as c:
        await asyncio.gather(*[writer(i) for i in range(5)])
        for client in a, b, c: assert [seq(e) for e in await read(client, 300)] == [*range(1, 301)]
    assert [queue.get_nowait().seq for _ in range(300)] == [*range(1, 301)]

@pytest.mark.parametrize('kind', ['queue', 'json', 'sync', 'async'])
async def test_promise_1_what_is_put_by_hand_comes_after_what_was_broadcast_before_it_and_has_no_id(kind):
    manager = SSEBroadcastManager()
    async def slow(m):
        await asyncio.sleep(0)
        return m['type']
    if kind == 'queue':
        queue = await manager.register_connection()
        await manager.broadcast('first', 1)
        for c in manager.connections: c.put_nowait(dict(type='hand'))
        await manager.broadcast('last', 1)
        assert [queue.get_nowait()['type'] for _ in range(3)] == ['first', 'hand', 'last']
        return
    render = dict(json=None, sync=lambda m: m['type'], **{'async': slow})[kind]
    async with following(manager, render=render) as client:
        for stalled in False, True:
            if stalled: client.stall()
            await manager.broadcast('first', 1)
            for c in manager.connections: c.put_nowait(dict(type='hand'))
            await manager.broadcast('last', 1)
            if stalled: client.resume()
            got = await read(client, 3)
            assert [e.event if kind == 'json' else e.data for e in got] == ['first', 'hand', 'last']
            assert got[0].id == got[1].id != got[2].id, 'what is put by hand has no id of its own'


# 2. Nothing lost

@pytest.mark.parametrize('way', ['header', 'query', 'both'])
async def test_promise_2_a_tab_that_comes_back_gets_what_it_missed_and_then_what_comes(way):
    manager, ids = SSEBroadcastManager(), []
    for i in range(10):
        await manager.broadcast('x', i)
        ids.append(manager.cursor)
    kw = dict(header=dict(last_event_id=ids[3]), query=dict(url=f'/?last_event_id={ids[3]}'),
        both=dict(last_event_id=ids[3], url=f'/?last_event_id={ids[8]}'))[way]
    async with tab(manager, **kw) as client:
        await manager.broadcast('x', 10)
        assert [e.data for e in await read(client, 7)] == [str(i) for i in range(4, 11)]

async def test_promise_2_there_is_no_hole_and_no_repetition_at_the_moment_of_registration():
    "A broadcast falls into every turn of the loop between the request and the live stream"
    for after in range(14):
        manager = SSEBroadcastManager()
        at = manager.cursor
        await manager.broadcast('x', 0)
        async def writer():
            for i in range(1, 30):
                if i > after: await asyncio.sleep(0)
                await manager.broadcast('x', i)
        client = tab(manager, last_event_id=at)
        opening = asyncio.create_task(client.__aenter__())
        for _ in range(after): await asyncio.sleep(0)
        await asyncio.gather(writer(), opening)
        assert [e.data for e in await read(client, 30)] == [str(i) for i in range(30)]
        await client.disconnect()

@pytest.mark.parametrize('slow', ['send', 'render'])
async def test_promise_2_what_comes_while_the_replay_is_under_way_comes_behind_it(slow):
    manager, gate, sends = SSEBroadcastManager(), asyncio.Event(), []
    def gated(app):
        async def run(scope, receive, send):
            async def wait_and_send(m):
                sends.append(m)
                if slow == 'send' and len(sends) == 3: await gate.wait()  # The head, the first heartbeat, and then the replay
                await send(m)
            await app(scope, receive, wait_and_send)
        return run
    async def render(m):
        if slow == 'render': await gate.wait()
        return str(m['data'])
    at = manager.cursor
    for i in range(5): await manager.broadcast('x', i)
    async with tab(manager, last_event_id=at, render=render, wrap=gated) as client:
        await turns()
        for i in range(5, 10): await manager.broadcast('x', i)
        await turns()
        assert not [e for e in client.events if e.event == 'message']
        gate.set()
        await manager.broadcast('x', 10)
        assert [e.data for e in await read(client, 11)] == [str(i) for i in range(11)]

async def test_promise_2_holds_on_sockets_while_a_writer_never_rests():
    manager, done = SSEBroadcastManager(replay_size=5000), asyncio.Event()
    async def write():
        n = 0
        while not done.is_set():
            await manager.broadcast('x', n := n+1)
            await asyncio.sleep(0)
    async def visit(port, start):
        async with connected(port, headers=f'Last-Event-ID: {manager._hub.log.id(start)}\r\n') as (reader, _):
            got = [seq(e) for e in await socket_events(reader, 60) if e.event == 'x']
            assert got == [*range(start+1, start+1+len(got))] and len(got) > 50
    async with serve(serving(manager)) as port:
        writer = asyncio.create_task(write())
        await eventually(lambda: manager._hub.log.seq > 50)
        await asyncio.gather(*[visit(port, i) for i in range(40)])
        done.set()
        await writer
        await manager.close()


# 3. Gaps

@pytest.mark.parametrize('lost', ['other epoch', 'too old', 'too new', 'nonsense'])
@pytest.mark.parametrize('snapshot', [False, True])
async def test_promise_3_a_gap_is_told_by_the_state_or_by_name_and_never_by_half_a_replay(lost, snapshot):
    manager = SSEBroadcastManager(replay_size=5)
    for i in range(10): await manager.broadcast('x', i)
    epoch = manager._hub.log.epoch
    bad = {'other epoch': 'restarted-9', 'too old': f'{epoch}-4', 'too new': f'{epoch}-11', 'nonsense': 'nonsense'}[lost]
    async with tab(manager, last_event_id=bad, snapshot=(lambda: 'state') if snapshot else None) as client:
        first = await client.next(BOUND)
        assert (first.event, first.data) == (('message', 'state') if snapshot else (GAP, ''))
        assert first.id == manager.cursor
        assert client.events[0].event == HEARTBEAT and client.events[0].id in ('', bad), 'no id before the gap is told'
        await manager.broadcast('x', 'next')
        assert (await client.next(BOUND)).data == '"next"'
    assert manager.stats()['gaps'] == 1

async def test_promise_3_the_oldest_id_that_the_log_reaches_is_no_gap():
    manager = SSEBroadcastManager(replay_size=5)
    for i in range(10): await manager.broadcast('x', i)
    async with tab(manager, last_event_id=f'{manager._hub.log.epoch}-5') as client:
        assert [e.data for e in await read(client, 5)] == ['5', '6', '7', '8', '9']
    async with tab(manager, last_event_id=manager.cursor) as client:
        await manager.broadcast('x', 'next')
        assert (await client.next(BOUND)).data == '"next"'
    assert manager.stats()['gaps'] == 0

async def test_promise_3_a_narrow_tab_that_was_quiet_for_long_comes_back_without_a_gap():
    manager = SSEBroadcastManager(replay_size=5, heartbeat=.03)
    async with following(manager, events='mine') as client:
        for i in range(50): await manager.broadcast('other', i)
        await eventually(lambda: client.events[-1].id == manager.cursor, 'a heartbeat carries the cursor')
        last = client.events[-1].id
    await manager.broadcast('mine', 1)
    async with tab(manager, events='mine', last_event_id=last) as client:
        assert (await client.next(BOUND)).event == 'mine'
    assert manager.stats()['gaps'] == 0

async def test_promise_3_a_heartbeat_is_not_ahead_of_what_its_renderer_has_still_to_render():
    manager, gate = SSEBroadcastManager(heartbeat=.02), asyncio.Event()
    async def render(m):
        await gate.wait()
        return str(m['data'])
    async with following(manager, render=render) as client:
        start = manager.cursor
        await manager.broadcast('x', 1)
        n = len(client.events)
        await eventually(lambda: len(client.events) > n+1, 'heartbeats come meanwhile')
        assert {e.id for e in client.events} <= {'', start}
        gate.set()
        assert ((e := await client.next(BOUND)).data, e.id) == ('1', manager.cursor)

async def test_promise_3_whatever_id_a_tab_breaks_off_with_it_gets_exactly_the_rest():
    "Heartbeats and messages alike: no id is ever ahead of what was sent before it"
    rnd, manager = random.Random(3), SSEBroadcastManager(20, replay_size=5000, heartbeat=.002)
    async def slow(m):
        for _ in range(rnd.randrange(4)): await asyncio.sleep(0)
        return str(m.seq)
    async def write():
        for n in range(400):
            await manager.broadcast(rnd.choice(['a', 'b', 'c']), n)
            if n%8 == 0: await asyncio.sleep(.001)
    async with following(manager, events='a', render=slow) as x, following(manager, events=['a', 'b'], render=lambda m: str(m.seq)) as y:
        await write()
        await manager.broadcast('a', 'end')
        for client, types in (x, 'a'), (y, 'ab'):
            want = [m.seq for m in manager._hub.log.after(0, 10**9) if m['type'] in types]
            await eventually(lambda: str(want[-1]) in [e.data for e in client.events] or client.conn.ended, 'all has come')
            seen = []
            for e in client.events:
                if e.event == 'message': seen.append(int(e.data))
                assert [n for n in want if n <= seq(e)] == seen, f'{e.event} with {e.id} after {seen[-3:]}'


# 4. Nobody waits for the stalled

async def test_promise_4_stalled_streams_delay_neither_a_broadcast_nor_the_others():
    manager = SSEBroadcastManager(10, default_timeout=1000)
    stalled = [tab(manager) for _ in range(20)]
    for c in stalled: await c.__aenter__()
    async with following(manager) as healthy:
        await eventually(lambda: all(c in c.group.conns for c in manager._hub.connections))
        for c in stalled: c.stall()
        async with asyncio.timeout(BOUND):
            for i in range(200):
                assert await manager.broadcast('x', i, timeout=1000) == 21
                assert (await healthy.next(BOUND)).data == str(i)
        group = healthy.conn.group
        assert len(group.log) <= 10, 'no more than the backlog waits'
    for c in stalled: await c.disconnect()

async def test_promise_4_a_stalled_stream_is_evicted_told_to_come_back_and_served_the_rest():
    manager = SSEBroadcastManager(10, default_timeout=.01)
    hooks = Hooks(manager)
    async with following(manager) as healthy, following(manager) as stalled:
        await manager.broadcast('x', -1)
        await read(stalled, 1)
        stalled.stall()
        for i in range(30):
            await manager.broadcast('x', i)
            await read(healthy, 1) if i else await read(healthy, 2)
        await eventually(lambda: stalled.conn.ended == 'evicted', 'it is evicted')
        await eventually(lambda: hooks.closed == [stalled.conn], 'its hook fires although it does not read')
        stalled.resume()
        got = await read_all(stalled)
        assert stalled.events[-1].retry is not None and not [e for e in got if e.event == CLOSE]
        async with tab(manager, last_event_id=stalled.last_event_id) as back:
            rest = [e.data for e in await read(back, 30-len(got))]
        assert [e.data for e in got]+rest == [str(i) for i in range(30)]
    assert manager.stats()['evicted'] == 1 and healthy.conn.ended == 'disconnected'

async def test_promise_4_with_drop_oldest_a_stalled_stream_skips_and_stays():
    manager = SSEBroadcastManager(10, default_timeout=.01, overflow='drop_oldest')
    async with following(manager) as client:
        client.stall()
        for i in range(50): await manager.broadcast('x', i)
        await asyncio.sleep(.05)
        client.resume()
        await manager.broadcast('x', 'end')
        await eventually(lambda: client.events[-1].data == '"end"', 'the newest comes')
        *got,_ = [json.loads(e.data) for e in client.events if e.event == 'x']
    assert got == sorted({*got}) and got[-9:] == [*range(41, 50)], 'in order, and with all that may wait'
    assert len(got) < 25 and manager.stats()['evicted'] == 0, 'it skipped what is older'

@pytest.mark.parametrize('limit', [500, 100], ids=['within its backlog', 'beyond it'])
async def test_promise_4_a_blocked_async_renderer_delays_its_own_group_alone_and_in_order(limit):
    manager, gate, asked = SSEBroadcastManager(limit), asyncio.Event(), []
    async def blocked(m):
        asked.append(m['data'])
        await gate.wait()
        return f"<i>{m['data']}</i>"
    async def quick(m): return f"<b>{m['data']}</b>"
    async with following(manager, render=blocked) as waits, following(manager, render=blocked) as too, following(manager, render=quick) as client, following(manager) as plain:
        async with asyncio.timeout(BOUND):
            for i in range(300): assert await manager.broadcast('x', i) == 4
            assert [e.data for e in await read(client, 300)] == [f'<b>{i}</b>' for i in range(300)]
            assert [e.data for e in await read(plain, 300)] == [str(i) for i in range(300)]
        assert asked and not [e for c in (waits, too) for e in c.events if e.event == 'message']
        gate.set()
        for c in waits, too: assert [e.data for e in await read(c, 300)] == [f'<i>{i}</i>' for i in range(300)]
    assert manager.stats()['evicted'] == manager.stats()['gaps'] == 0

async def test_promise_4_full_queues_cost_one_timeout_together():
    manager = SSEBroadcastManager(1)
    for _ in range(30): await manager.register_connection()
    await manager.broadcast('x', 1)
    loop = asyncio.get_running_loop()
    at = loop.time()
    async with following(manager) as client:
        waiting = asyncio.create_task(manager.broadcast('x', 2, timeout=.2))
        assert (await client.next(.15)).data == '2', 'everyone else is served first'
        assert await waiting == 1
    assert loop.time()-at < 3

async def test_promise_4_holds_on_sockets():
    manager = SSEBroadcastManager(10, heartbeat=0)
    async with serve(serving(manager)) as port:
        async with connected(port, rcvbuf=4096) as (_, stalled), connected(port) as (reader, _):
            await eventually(lambda: len([c for g in manager._hub.groups.values() for c in g.conns]) == 2, 'both live')
            stalled.transport.pause_reading()
            async def consume():
                while await reader.read(2**20): pass
            reading = asyncio.create_task(consume())
            data = 'x'*100_000
            async with asyncio.timeout(BOUND*2):
                while not manager.stats()['evicted']:
                    await manager.broadcast('x', data)
                    await asyncio.sleep(.001)
            assert manager.connection_count == 1 and manager.stats()['evicted'] == 1
            await manager.close()
            await asyncio.wait({reading}, timeout=BOUND)
            assert reading.done()


# 5. Every way out

async def leave(client, manager): client._gone.set()
async def cancel(client, manager): client._task.cancel()
async def unregister(client, manager): await manager.unregister_connection(client.conn)
async def close(client, manager): await manager.close()
async def finish(client, manager): await manager.broadcast('end', None)
async def twice(client, manager):
    client.conn.end('evicted'); client.conn.end('closed')
    await manager.unregister_connection(client.conn)
    client._gone.set(); client._task.cancel()
async def evict(client, manager):
    client.stall()
    for i in range(30): await manager.broadcast('x', i)
    await eventually(lambda: client.conn.ended)
    client.resume()
async def evict_and_leave(client, manager):
    client.stall()
    for i in range(30): await manager.broadcast('x', i)
    await eventually(lambda: client.conn.ended)
    client._task.cancel()
async def dead_network(client, manager):
    async def send(message): raise OSError('gone')
    client.conn._send = send
    await manager.broadcast('x', 1)
    client._gone.set()
async def broken_send(client, manager):
    async def send(message): raise RuntimeError('broken server')
    client.conn._send = send
    await manager.broadcast('x', 1)
async def cancelled_send(client, manager):
    async def send(message): raise asyncio.CancelledError
    client.conn._send = send
    await manager.broadcast('x', 1)

@pytest.mark.parametrize('asynchronous', [False, True], ids=['sync', 'async'])
@pytest.mark.parametrize('way', [leave, cancel, unregister, close, finish, twice, evict, evict_and_leave, dead_network, broken_send, cancelled_send],
    ids=lambda f: f.__name__)
async def test_promise_5_whichever_way_out_a_connection_is_unregistered_once_and_leaves_nothing(way, asynchronous, caplog):
    caplog.set_level(logging.CRITICAL, 'cjm_fasthtml_sse')  # Tracebacks that are kept would keep the renderer too
    manager = SSEBroadcastManager(5, default_timeout=.01)
    hooks = Hooks(manager)
    def make():
        async def render(m): return m['type']
        return render if asynchronous else lambda m: m['type']
    async with no_task_left():
        render = make()
        ref = weakref.ref(render)
        client = tab(manager, render=render, until='end')
        del render
        await client.__aenter__()
        client.conn, = manager._hub.connections
        await eventually(lambda: client.conn in client.conn.group.conns, 'live')
        await way(client, manager)
        await eventually(client._task.done, 'the request ends')
        await asyncio.wait({client._task})
        assert manager.connection_count == 0 and not manager._hub.groups and not manager._hub.joining
        assert hooks.closed == hooks.opened == [client.conn]
    client.conn = hooks.opened[0] = hooks.closed[0] = None
    client.app = client._task = None
    await turns()
    gc.collect()
    assert ref() is None, 'the renderer survives'

@pytest.mark.parametrize('turn', range(16))
@pytest.mark.parametrize('way', ['leaves', 'is cancelled'])
async def test_promise_5_holds_when_the_tab_goes_in_any_turn_of_the_loop(turn, way):
    "Through the connect hook, the first chunk, the state, an async replay, live"
    manager = SSEBroadcastManager()
    async def pause(*_): await asyncio.sleep(0)
    @manager.on_connect
    async def connect(conn):
        opened.append(conn)
        await pause()
    @manager.on_disconnect
    async def disconnect(conn):
        await pause()
        closed.append(conn)
    opened, closed = [], []
    async def render(m):
        await pause()
        return m['type']
    async def snapshot():
        await pause()
        return 'state'
    start = manager.cursor
    for i in range(3): await manager.broadcast('x', i)
    async with no_task_left():
        for last in start, 'other-1', None:
            client = tab(manager, render=render, snapshot=snapshot, last_event_id=last)
            task = client._task = asyncio.create_task(client._run())
            for _ in range(turn): await asyncio.sleep(0)
            if way == 'leaves': client._gone.set()
            else: task.cancel()
            await asyncio.wait({task}, timeout=BOUND)
            assert task.done()
            await eventually(lambda: closed == opened, 'the hook fires, once')
            assert manager.connection_count == 0 and not manager._hub.groups

@pytest.mark.parametrize('stage', ['hook', 'snapshot', 'render', 'send'])
@pytest.mark.parametrize('way', ['leaves', 'is cancelled', 'close'])
async def test_promise_5_holds_when_the_tab_goes_while_somebody_else_takes_for_ever(stage, way):
    manager, entered, never = SSEBroadcastManager(), asyncio.Event(), asyncio.Event()
    hooks = Hooks(manager)
    async def wait(*_):
        entered.set()
        await never.wait()
    if stage == 'hook':
        @manager.on_connect
        async def slow(conn):
            entered.set()
            await asyncio.wait({asyncio.create_task(never.wait())}, timeout=.3)
    start = manager.cursor
    await manager.broadcast('x', 1)
    async with no_task_left():
        client = tab(manager, render=wait if stage == 'render' else None, snapshot=wait if stage == 'snapshot' else None,
            last_event_id=start if stage in ('render', 'send') else None)
        if stage == 'send': await client.__aenter__()
        else: client._task = asyncio.create_task(client._run())
        if stage == 'send':
            client.stall()
            await manager.broadcast('x', 2)
            entered.set()
        task = client._task
        async with asyncio.timeout(BOUND): await entered.wait()
        await turns()
        if way == 'leaves': client._gone.set()
        elif way == 'is cancelled': task.cancel()
        else: await manager.close(timeout=.1)
        await asyncio.wait({task}, timeout=BOUND)
        assert task.done() and manager.connection_count == 0 and hooks.closed == hooks.opened != []
        never.set() if stage == 'hook' else None

async def test_promise_5_holds_on_sockets():
    manager = SSEBroadcastManager(heartbeat=.05)
    hooks = Hooks(manager)
    async with serve(serving(manager)) as port:
        for rude in False, True:
            async with connected(port) as (reader, writer):
                await socket_events(reader, 1)
                assert manager.connection_count == 1
                if rude: writer.transport.abort()
            await eventually(lambda: manager.connection_count == 0, 'unregistered')
        await eventually(lambda: hooks.closed == hooks.opened and len(hooks.opened) == 2)
        async with connected(port) as (reader, writer):
            await socket_events(reader, 1)
            await manager.close()
            async with asyncio.timeout(BOUND): rest = await reader.read(-1) if reader.at_eof() else await reader.readuntil(b'0\r\n\r\n')
            assert b'retry: ' in rest and CLOSE.encode() not in rest
    assert hooks.closed == hooks.opened and len(hooks.opened) == 3


# 6. Errors of others

@pytest.mark.parametrize('asynchronous', [False, True], ids=['sync', 'async'])
@pytest.mark.parametrize('place', ['on_connect', 'on_disconnect', 'on_broadcast', 'render', 'snapshot'])
async def test_promise_6_an_error_is_logged_with_its_traceback_counted_and_nobody_else_notices(place, asynchronous, caplog):
    manager = SSEBroadcastManager()
    def bad(*_): raise RuntimeError(f'error in {place}')
    async def async_bad(*_): bad()
    f = async_bad if asynchronous else bad
    if place.startswith('on_'): getattr(manager, place)(f)
    async with following(manager) as other, following(manager, **{place: f} if not place.startswith('on_') else {}):
        assert await manager.broadcast('x', 1) == 2
        assert (await other.next(BOUND)).data == '1'
        await turns()
    await eventually(lambda: manager.connection_count == 0 and manager.stats()['errors'] >= 1, 'counted')
    records = [r for r in caplog.records if r.exc_info and f'error in {place}' in str(r.exc_info[1])]
    assert len(records) == manager.stats()['errors'] == (2 if place in ('on_connect', 'on_disconnect') else 1)
    assert all(r.name.startswith('cjm_fasthtml_sse') for r in records)


# 7. Bad input

@pytest.mark.parametrize('bad', ['a\rb', 'a\nb', 'a\0b', '', None, 7, HEARTBEAT, GAP, CLOSE])
async def test_promise_7_a_bad_event_type_is_refused_before_anything_is_sent(bad):
    manager = SSEBroadcastManager()
    async with following(manager) as client:
        with pytest.raises(FieldError): await manager.broadcast(bad, 1)
        with pytest.raises(FieldError): manager.broadcast_threadsafe(bad, 1)
        with pytest.raises(FieldError): client.conn.put_nowait(dict(type=bad))
        await manager.broadcast('x', 1)
        assert (await client.next(BOUND)).event == 'x' and seq(manager.cursor) == 1

async def test_promise_7_other_names_under_sse_are_the_apps(caplog):
    "A hook that renames a message to one of the library's own events fails, and the message is sent as it was"
    manager = SSEBroadcastManager()
    manager.on_broadcast(lambda m: {**m, 'type': CLOSE} if m['data']=='bad' else None)
    async with following(manager) as client:
        for data in 'bad', 'good': await manager.broadcast('sse:mine', data)
        assert [(e.event, e.data) for e in await read(client, 2)] == [('sse:mine', '"bad"'), ('sse:mine', '"good"')]
    assert manager.stats()['errors'] == 1

@pytest.mark.parametrize('bad', ['a\rb', 'a\nb', 'a\0b'])
def test_promise_7_a_bad_id_is_refused(bad):
    with pytest.raises(FieldError): encode('x', id=bad)

@pytest.mark.parametrize('bad', ['', 'a\nb', ['a', ''], 7, []])
def test_promise_7_a_bad_pattern_is_refused_at_the_call(bad):
    manager = SSEBroadcastManager()
    with pytest.raises((ValueError, TypeError)): manager.stream(request(), events=bad)
    if bad not in ('', []):
        with pytest.raises((ValueError, TypeError)): manager.stream(request(), until=bad)

async def test_promise_7_a_full_house_answers_503_with_retry_after_and_never_starts_a_stream():
    manager = SSEBroadcastManager(max_connections=1)
    hooks = Hooks(manager)
    async with following(manager):
        async with tab(manager) as refused:
            assert refused.status == 503 and refused.headers['retry-after'].isdigit()
            assert 'event-stream' not in refused.headers['content-type']
        with pytest.raises(SSEError): await manager.register_connection()
    assert len(hooks.opened) == len(hooks.closed) == 1
