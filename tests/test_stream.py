"Streams under attack: renderers, replay, middleware, and what happens between two awaits"
import asyncio
import gc
import random
import sys
import time
import warnings
import weakref
from functools import partial

import pytest
from fastcore.xml import Div, Li, NotStr
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware

from cjm_fasthtml_sse.engine import stream
from cjm_fasthtml_sse.engine.messages import BackendError,Message
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.testing import SSEClient
from cjm_fasthtml_sse.engine.wire import CLOSE, HEARTBEAT
from tests.support import (BOUND, eventually, following, gaps, no_task_left, read, read_all, read_to, seq, serving, tab, turns)


# What a renderer may be, and what it may give

class Renderer:
    def __call__(self, message): return f"<i>{message['data']}</i>"
    def method(self, message): return self(message)
    async def slow(self, message):
        await asyncio.sleep(0)
        return self(message)

def factory(tag, message): return f"<{tag}>{message['data']}</{tag}>"

@pytest.mark.parametrize('render', [Renderer(), Renderer().method, Renderer().slow, partial(factory, 'i'), lambda m: factory('i', m),
    partial(Renderer().slow)], ids=['object', 'method', 'async method', 'partial', 'closure', 'async partial'])
async def test_any_callable_of_a_message_renders(render):
    manager = SSEBroadcastManager()
    async with following(manager, render=render) as client:
        for i in range(3): await manager.broadcast('x', i)
        got = await read(client, 3)
    assert [e.data for e in got] == ['<i>0</i>', '<i>1</i>', '<i>2</i>']
    assert {e.event for e in got} == {'message'}
    assert [seq(e) for e in got] == [1, 2, 3]

@pytest.mark.parametrize('result,html', [
    ('<b>x</b>', '<b>x</b>'), (NotStr('<b>x</b>'), '<b>x</b>'), (Div('x'), '<div>x</div>'), ([Li('x'), Li('y')], '<li>x</li><li>y</li>'),
    ((Li('x'), None, [Li('y')]), '<li>x</li><li>y</li>')], ids=['str', 'NotStr', 'element', 'list', 'nested'])
async def test_elements_strings_and_lists_of_them_become_one_message_of_html(result, html):
    manager = SSEBroadcastManager()
    async with following(manager, render=lambda m: result) as client:
        await manager.broadcast('x', 1)
        [e] = await read(client, 1)
    assert e.data.replace('\n', '') == html

@pytest.mark.parametrize('kind', ['raises', 'cancelled', 'async raises', 'async cancelled', 'nonsense'])
async def test_a_renderer_that_fails_spoils_one_message_of_its_own_and_nothing_else(kind, caplog):
    def bad(m):
        if m['data'] != 1: return str(m['data'])
        if kind == 'raises': raise RuntimeError('renderer')
        if kind == 'cancelled': raise asyncio.CancelledError
        return 3
    async def async_bad(m):
        if m['data'] != 1: return str(m['data'])
        if kind == 'async raises': raise RuntimeError('renderer')
        raise asyncio.CancelledError
    manager = SSEBroadcastManager()
    async with following(manager, render=async_bad if 'async' in kind else bad) as broken, following(manager, render=lambda m: str(m['data'])) as healthy:
        for i in range(3):
            try: await manager.broadcast('x', i)
            except asyncio.CancelledError: pass  # A failure of its own, which the last two lines would show as well
        assert [e.data for e in await read(healthy, 3)] == ['0', '1', '2']
        assert [e.data for e in await read(broken, 2)] == ['0', '2']
    assert manager.stats()['errors'] == 1
    assert any(r.exc_info for r in caplog.records)

@pytest.mark.parametrize('asynchronous', [False, True])
async def test_a_renderer_that_raises_cancelled_error_in_a_replay_leaves_no_mute_stream(asynchronous):
    manager = SSEBroadcastManager()
    start = manager.cursor
    for i in range(3): await manager.broadcast('x', i)
    def bad(m):
        if m['data'] == 1: raise asyncio.CancelledError
        return str(m['data'])
    async def async_bad(m): return bad(m)
    async with tab(manager, render=async_bad if asynchronous else bad, last_event_id=start) as client:
        assert [e.data for e in await read(client, 2)] == ['0', '2']

async def test_a_shared_renderer_renders_once_however_many_closures_are_connected_beside_it():
    calls, manager = [], SSEBroadcastManager()
    def shared(m): calls.append(m['data']); return 'shared'
    async with asyncio.timeout(BOUND):
        closures = [tab(manager, render=lambda m, i=i: f'own {i}') for i in range(12)]
        users = [tab(manager, render=shared, events=['x', f'user:{i}']) for i in range(12)]
        for c in closures+users: await c.__aenter__()
        await eventually(lambda: all(c in c.group.conns for c in manager._hub.connections), 'all live')
        await manager.broadcast('x', 1)
        for i, c in enumerate(closures): assert (await c.next(BOUND)).data == f'own {i}'
        for c in users: assert (await c.next(BOUND)).data == 'shared'
        for c in closures+users: await c.disconnect()
    assert calls == [1]

async def test_an_async_renderer_renders_the_first_message_once_and_awaits_everything_it_starts():
    calls, manager = [], SSEBroadcastManager()
    async def render(m):
        calls.append(m['data'])
        await asyncio.sleep(0)
        return str(m['data'])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        async with following(manager, render=render) as client:
            await manager.broadcast('x', 1)
            await read(client, 1)
        gc.collect()
    assert calls == [1]
    assert [str(w.message) for w in caught if 'never awaited' in str(w.message)] == []

async def test_a_message_put_by_hand_is_rendered_once_by_an_async_renderer():
    calls, manager = [], SSEBroadcastManager()
    async def render(m): calls.append(m['type']); return m['type']
    async with following(manager, render=render) as client:
        client.conn.put_nowait(dict(type='hello'))
        assert (await client.next(BOUND)).data == 'hello'
        await turns()
    assert calls == ['hello']

async def test_two_renderers_that_share_a_hash_of_zero_are_two_renderers():
    class Zero:
        def __init__(self, name): self.name = name
        def __call__(self, m): return self.name
        def __hash__(self): return 0
    manager = SSEBroadcastManager()
    async with following(manager, render=Zero('a')) as a, following(manager, render=Zero('b')) as b:
        await manager.broadcast('x', 1)
        assert ((await a.next(BOUND)).data, (await b.next(BOUND)).data) == ('a', 'b')

async def test_unhashable_renderers_work_and_are_kept_apart():
    class Unhashable:
        def __init__(self, name): self.name = name
        def __call__(self, m): return self.name
        def __eq__(self, o): return True
        __hash__ = None
    manager, shared = SSEBroadcastManager(), Unhashable('a')
    async with following(manager, render=shared) as a, following(manager, render=Unhashable('b')) as b, following(manager, render=shared) as c:
        await manager.broadcast('x', 1)
        assert [(await o.next(BOUND)).data for o in (a, b, c)] == ['a', 'b', 'a']

@pytest.mark.parametrize('asynchronous', [False, True])
async def test_no_renderer_survives_its_connections(asynchronous):
    manager = SSEBroadcastManager()
    def make():
        if asynchronous:
            async def render(m): return 'x'
        else:
            def render(m): return 'x'
        return render
    render = make()
    ref = weakref.ref(render)
    client = tab(manager, render=render)
    await client.__aenter__()
    await manager.broadcast('x', 1)
    await client.next(BOUND)
    await client.disconnect()
    del client, render
    await turns()
    gc.collect()
    assert ref() is None
    assert not manager._hub.groups and not manager._hub._routes.keys() and not len(manager._hub._renderers)

async def test_a_renderer_may_push_into_connections_and_end_them_while_it_runs():
    manager = SSEBroadcastManager()
    def render(m):
        if m['type'] == 'kick':
            for c in manager.connections: c.end('closed')
        elif m['type'] == 'push':
            for c in manager.connections: c.put_nowait(dict(type='hand'))
        return m['type']
    async with following(manager, render=render) as a, following(manager, render=render, events=['**', 'push']) as b:
        await manager.broadcast('push', 1)
        await manager.broadcast('after', 1)
        for c in a, b:
            got = [e.data for e in await read(c, 3)]
            assert sorted(got) == ['after', 'hand', 'push'] and got[-1] == 'after', got
        await manager.broadcast('kick', 1)
        await read_all(a); await read_all(b)
        assert manager.connection_count == 0
        async with following(manager, render=render) as c:
            await manager.broadcast('still alive', 1)
            assert (await c.next(BOUND)).data == 'still alive'

async def test_a_renderer_may_broadcast():
    manager = SSEBroadcastManager()
    spawned = set()
    def render(m):
        if m['type'] == 'a': spawned.add(asyncio.ensure_future(manager.broadcast('b', None)))
        return m['type']
    async def async_render(m):
        if m['type'] == 'a': await manager.broadcast('c', None)
        return m['type']
    async with following(manager, render=render) as sync, following(manager, render=async_render) as slow:
        await manager.broadcast('a', None)
        want = ['a', 'b', 'c']
        assert sorted(e.data for e in await read(sync, 3)) == want
        got = await read(slow, 3)
        assert sorted(e.data for e in got) == want and [seq(e) for e in got] == [1, 2, 3]


# Patterns, keys, ends

async def test_a_group_that_dies_and_comes_back_under_the_same_key_serves():
    manager = SSEBroadcastManager()
    for i in range(5):
        async with following(manager, events='x', until='end') as client:
            await manager.broadcast('x', i)
            assert (await client.next(BOUND)).data == str(i)
    assert not manager._hub.groups and not manager._hub._pending

async def test_the_last_one_leaves_and_the_next_one_joins_between_broadcast_and_pump():
    manager = SSEBroadcastManager()
    async with following(manager) as a:
        at = a.conn.cursor
        await manager.broadcast('x', 1)
        a.conn.end('closed')
        async with tab(manager, last_event_id=manager._hub.log.id(at)) as b:
            await manager.broadcast('x', 2)
            assert [e.data for e in await read(b, 2)] == ['1', '2']

async def test_an_async_renderer_whose_messages_are_left_to_the_log_while_it_waits_for_its_turn():
    errors,manager = [],SSEBroadcastManager(max_queue_size=1, default_timeout=.01)
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    async def render(message):
        await asyncio.sleep(0)
        return str(message['data'])
    async with following(manager, render=render) as one, following(manager, render=render) as two:
        await asyncio.gather(*[manager.broadcast('n', n) for n in range(100)])
        for client in one, two: assert [e.data for e in await read(client, 100)] == [*map(str, range(100))]
    gc.collect()
    await turns()
    assert not errors


# Snapshots

async def test_a_tab_that_reads_its_state_makes_no_broadcast_wait():
    manager, reading, go = SSEBroadcastManager(), asyncio.Event(), asyncio.Event()
    async def snapshot():
        reading.set()
        await go.wait()
        return 'state'
    async with following(manager), tab(manager, snapshot=snapshot) as client:
        async with asyncio.timeout(BOUND): await reading.wait()
        ran = 0
        async def count():
            nonlocal ran
            while True:
                ran += 1
                await asyncio.sleep(0)
        counter = asyncio.create_task(count())
        await turns(3)
        before = ran
        for i in range(10): await manager.broadcast('x', i)
        counter.cancel()
        assert ran == before, 'no broadcast gave a turn of the loop away'
        go.set()
        assert (await client.next(BOUND)).data == 'state'

class Store:
    "A state that counts how often it is read, in a way that only the very same function may share"
    def __init__(self, manager): self.manager, self.calls, self.go = manager, [], asyncio.Event()
    def plain(self):
        self.calls.append(seq(self.manager.cursor))
        return f'state at {self.calls[-1]}'
    async def slow(self):
        state = self.plain()
        await self.go.wait()
        return state

@pytest.mark.parametrize('which', ['method', 'closures', 'patterns', 'async'])
async def test_the_very_same_snapshot_is_read_once_for_a_crowd(which, monkeypatch):
    "Methods of one object are one function; closures, and other patterns, are another one"
    monkeypatch.setattr(stream, '_CHEAP', 0)
    manager = SSEBroadcastManager()
    store, clients = Store(manager), []
    for i in range(5):
        snapshot = dict(closures=lambda: store.plain(), **{'async': store.slow}).get(which, store.plain)
        clients.append(tab(manager, snapshot=snapshot, events=['**', f'user:{i}'] if which == 'patterns' else '**'))
        await clients[-1].__aenter__()
        if i == 2: await manager.broadcast('x', 'news')
    store.go.set()
    want = [0, 0, 0, 1, 1] if which in ('closures', 'patterns') else [0]*5
    for at, client in zip(want, clients, strict=True):
        state = await client.next(BOUND)
        assert (state.data, seq(state)) == (f'state at {at}', at)
        await manager.broadcast('end', None)
        assert [e.data for e in await read_to(client, 'end')] == ([] if at else ['"news"']), 'each goes on from where the log stood'
        await client.disconnect()
    assert len(store.calls) == (5 if which in ('closures', 'patterns') else 1)

async def test_a_state_that_was_read_is_good_for_a_moment_only(monkeypatch):
    monkeypatch.setattr(stream, '_SHARED_FOR', .02)
    manager = SSEBroadcastManager()
    store = Store(manager)
    async with following(manager):
        for _ in range(2):
            async with tab(manager, snapshot=store.plain) as client: await client.next(BOUND)
            assert manager._hub.readings
            await eventually(lambda: not manager._hub.readings, 'it is let go')
    assert len(store.calls) == 2 and not manager._hub.readings

@pytest.mark.parametrize('why', ['overrun', 'anew'])
async def test_a_state_from_before_the_log_is_read_again(why, monkeypatch):
    monkeypatch.setattr(stream, '_CHEAP', 0)
    manager = SSEBroadcastManager(replay_size=5)
    store = Store(manager)
    async with tab(manager, snapshot=store.plain) as first, tab(manager, snapshot=store.plain) as client:
        for c in first, client: assert (await c.next(BOUND)).data == 'state at 0'
        await client.disconnect()
        for i in range(6 if why == 'overrun' else 1): await manager.broadcast('x', i)
        if why == 'anew': manager._hub.renew('anew-0')
        client = await tab(manager, snapshot=store.plain).__aenter__()
        assert (await client.next(BOUND)).id == manager.cursor
        await manager.broadcast('end', None)
        assert await read_to(client, 'end') == [] and not gaps(client)
        await client.disconnect()
    assert len(store.calls) == 2

async def test_a_shared_reading_ends_with_the_last_who_waits(caplog):
    manager, said = SSEBroadcastManager(), []
    async def state():
        said.append('begun')
        try: await asyncio.Event().wait()
        finally: said.append('closed')
    async with tab(manager, snapshot=state) as a, tab(manager, snapshot=state) as b:
        await eventually(lambda: said == ['begun'] and all(c._reading for c in manager.connections), 'both wait for it')
        await a.disconnect()
        assert said == ['begun']
        await b.disconnect()
        assert said == ['begun', 'closed']
        async with tab(manager, snapshot=state): await eventually(lambda: said == ['begun', 'closed', 'begun'], 'a new one begins')
    assert not caplog.records and manager.stats()['errors'] == 0

async def test_a_log_that_begins_anew_while_the_state_is_read_is_a_gap():
    manager, began, go = SSEBroadcastManager(), asyncio.Event(), asyncio.Event()
    async def snapshot():
        began.set()
        await go.wait()
        return '<p>now</p>'
    async with tab(manager, snapshot=snapshot) as client:
        await asyncio.wait_for(began.wait(), BOUND)
        manager._hub.renew('anew-0')
        go.set()
        assert [e.id for e in await read(client, 2)][1] == 'anew-0' and manager.stats()['gaps'] == 1

async def test_a_tab_may_leave_while_its_state_is_read_or_its_replay_rendered():
    manager, never = SSEBroadcastManager(), asyncio.Event()
    async def wait(*_): await never.wait()
    start = manager.cursor
    await manager.broadcast('x', 1)
    async with no_task_left():
        client = tab(manager, snapshot=wait)
        await client.__aenter__()
        await turns()
        await client.disconnect()
        assert manager.connection_count == 0
    async with no_task_left():
        client = tab(manager, render=wait, last_event_id=start)
        await client.__aenter__()
        await turns()
        await client.disconnect()
        assert manager.connection_count == 0

async def test_no_task_survives_a_tab_whose_async_renderer_never_ends():
    manager, never = SSEBroadcastManager(), asyncio.Event()
    async def wait(m): await never.wait()
    async with no_task_left():
        async with following(manager, render=wait):
            await manager.broadcast('x', 1)
            await turns()


# Who is outrun, and who is not

async def test_messages_put_by_hand_into_one_tab_evict_no_other_tab_with_the_same_async_renderer():
    manager = SSEBroadcastManager(20)
    async def render(m):
        await asyncio.sleep(0)
        return m['type']
    async with following(manager, render=render) as a, following(manager, render=render) as b:
        try:
            for _ in range(50): a.conn.put_nowait(dict(type='hand'))
        except asyncio.QueueFull: pass
        await manager.broadcast('x', 1)
        assert (await b.next(BOUND)).data == 'x'
    assert manager.stats()['evicted'] == 0

def base(app):
    async def through(request, call_next): return await call_next(request)
    return BaseHTTPMiddleware(app, dispatch=through)

def session(app): return SessionMiddleware(app, secret_key='secret')
def gzip(app): return GZipMiddleware(app)

def scoped(app):
    "Middleware whose send opens scopes: a timeout, and anyio's"
    import anyio
    async def middleware(scope, receive, send):
        async def slow_send(message):
            async with asyncio.timeout(5):
                with anyio.fail_after(5):
                    async with anyio.create_task_group() as g: g.start_soon(anyio.lowlevel.checkpoint)
                    await send(message)
        await app(scope, receive, slow_send)
    return middleware

def long_way(app):
    "Middleware whose send takes many turns of the loop, as a deep stack does"
    async def middleware(scope, receive, send):
        async def slow_send(message):
            await turns(40)
            await send(message)
        await app(scope, receive, slow_send)
    return middleware

STACKS = dict(bare=lambda a: a, session=session, base=base, twice=lambda a: base(base(a)), gzip=gzip, scoped=scoped, long=long_way,
    all=lambda a: session(base(gzip(base(scoped(a))))))

@pytest.mark.parametrize('stack', ['bare', 'twice', 'long'])
async def test_a_tab_that_has_just_connected_is_not_outrun_by_a_loop_of_broadcasts(stack):
    manager = SSEBroadcastManager()
    async with tab(manager, wrap=STACKS[stack]) as client:
        for i in range(3000): await manager.broadcast('x', i)
        await manager.broadcast('end', None)
        got = await read_to(client, 'end')
    assert not gaps(client)
    assert [int(e.data) for e in got] == [*range(3000)]

@pytest.mark.parametrize('stack', STACKS)
async def test_ten_thousand_awaited_broadcasts_outrun_nobody_who_reads(stack):
    manager, n = SSEBroadcastManager(), 10_000 if stack == 'twice' else 2_000
    async with following(manager, wrap=STACKS[stack]) as client:
        for i in range(n): await manager.broadcast('x', i)
        await manager.broadcast('end', None)
        got = await read_to(client, 'end')
    assert manager.stats()['evicted'] == 0 and not gaps(client)
    assert [int(e.data) for e in got] == [*range(n)]

async def test_with_a_timeout_of_zero_nobody_who_reads_is_evicted_either():
    manager = SSEBroadcastManager(10, default_timeout=0)
    async with following(manager, wrap=STACKS['twice']) as client:
        for i in range(500): await manager.broadcast('x', i)
        await manager.broadcast('end', None)
        got = await read_to(client, 'end')
    assert manager.stats()['evicted'] == 0 and not gaps(client) and len(got) == 500

async def test_a_loop_that_was_blocked_for_a_while_evicts_nobody_who_reads():
    manager = SSEBroadcastManager(10, default_timeout=.02)
    async with following(manager, wrap=STACKS['twice']) as client:
        for i in range(300):
            await manager.broadcast('x', i)
            if i%30 == 29:
                await asyncio.sleep(0)
                time.sleep(.03)  # Somebody computes on the event loop
        await manager.broadcast('end', None)
        got = await read_to(client, 'end')
    assert manager.stats()['evicted'] == 0 and not gaps(client) and len(got) == 300

async def test_a_blocked_loop_uses_up_nobodys_patience():
    "The reader was quick, but its send could not go on while somebody computed on the event loop for longer than a send may take"
    manager = SSEBroadcastManager(10, default_timeout=.2)
    def slow_end(app):
        async def middleware(scope, receive, send):
            async def slow_send(message):
                await send(message)
                await turns(40)
            await app(scope, receive, slow_send)
        return middleware
    async with following(manager, wrap=slow_end) as client:
        client.stall()
        for i in range(30): await manager.broadcast('x', i)
        await eventually(lambda: client.conn.overdue, 'it is about to be evicted')
        client.resume()
        time.sleep(.4)
        await manager.broadcast('end', None)
        assert len(await read_to(client, 'end')) == 30
    assert manager.stats()['evicted'] == 0

async def test_one_busy_writer_does_not_starve_another():
    manager, stop = SSEBroadcastManager(), False
    async def trickle():
        while not stop:
            await manager.broadcast('b', 1)
            await asyncio.sleep(0)
    async with following(manager, events='a') as a, following(manager, events='b'):
        busy = asyncio.create_task(trickle())
        try:
            async with asyncio.timeout(BOUND/2):
                for i in range(200): await manager.broadcast('a', i)
                await read(a, 200)
        except TimeoutError: pytest.fail('the burst waits for as long as somebody else keeps broadcasting')
        finally:
            stop = True
            await busy

async def test_a_heartbeat_that_takes_its_time_invents_no_gap():
    manager = SSEBroadcastManager(10, replay_size=50, heartbeat=.05, default_timeout=5)
    async with following(manager, events='mine') as client, following(manager, events='other'):
        await manager.broadcast('mine', 0)
        await read(client, 1)
        for i in range(60): await manager.broadcast('other', i)
        await eventually(lambda: client.events[-1].id == manager.cursor, 'a heartbeat tells the cursor')
        client.stall()
        await eventually(lambda: client.conn.sending, 'the next heartbeat is under way')
        for i in range(30): await manager.broadcast('mine', i)
        client.resume()
        await manager.broadcast('mine', 'end')
        got = await read(client, 31)
    assert not gaps(client) and [e.event for e in got] == ['mine']*31

async def test_an_evict_timer_that_fires_after_the_tab_has_recovered_does_nothing():
    manager = SSEBroadcastManager(5, default_timeout=.05)
    async with following(manager) as client:
        client.stall()
        for i in range(20): await manager.broadcast('x', i)
        await eventually(lambda: client.conn.overdue, 'its timer runs')
        client.resume()
        await manager.broadcast('end', 1)
        assert len(await read_to(client, 'end')) == 20
        await asyncio.sleep(.08)
        await manager.broadcast('still', 1)
        assert (await client.next(BOUND)).event == 'still'
    assert manager.stats()['evicted'] == 0

async def test_an_ended_connection_in_a_running_pass_does_not_stop_the_pump():
    manager = SSEBroadcastManager()
    clients = [tab(manager) for _ in range(520)]
    for c in clients: await c.__aenter__()
    await eventually(lambda: len([*manager._hub.groups.values()][0].conns) == 520, 'all live')
    for i in range(10):
        await manager.broadcast('x', i)
        conns = [*manager._hub.connections]
        await asyncio.sleep(0)  # The first 500 are served, the pass goes on in the next turn
        for conn in conns[-2:]: conn.end('closed')
    await manager.broadcast('end', None)
    for c in clients[:500]: assert len(await read_to(c, 'end')) == 10
    for c in clients: await c.disconnect()

async def test_the_hub_outlives_a_pump_that_somebody_cancelled():
    manager = SSEBroadcastManager()
    async with following(manager) as client:
        await manager.broadcast('x', 1)
        manager._hub._pump.cancel()
        await turns()
        for i in range(3): await manager.broadcast('x', i)
        async with asyncio.timeout(BOUND): await client.next(2)


async def test_the_hub_outlives_a_timer_that_somebody_cancelled():
    manager = SSEBroadcastManager(heartbeat=.05)
    async with following(manager) as client:
        manager._hub._timer.cancel()
        await turns()
        n = len(client.events)
        async with following(manager):
            await eventually(lambda: len(client.events) > n+1, 'heartbeats go on')

async def test_the_hub_outlives_a_pump_that_was_cancelled_with_half_a_backlog_before_it():
    manager = SSEBroadcastManager(10)
    async with following(manager) as client:
        for i in range(5): await manager.broadcast('x', i)
        manager._hub._pump.cancel()
        await turns()
        async with asyncio.timeout(BOUND):
            for i in range(5, 30): await manager.broadcast('x', i)
            assert [e.data for e in await read(client, 30)] == [str(i) for i in range(30)]

@pytest.mark.parametrize('turn', [1, 2, 6])
async def test_a_writer_does_not_hang_whenever_the_only_tab_leaves(turn):
    manager, done = SSEBroadcastManager(10), []
    async def write():
        for i in range(300): await manager.broadcast('x', i)
        done.append(True)
    async with following(manager) as client:
        writer = asyncio.create_task(write())
        await turns(turn)
        client.conn.end('closed')
        await eventually(lambda: done, 'the writer ends')
        await writer

async def test_a_dict_that_an_app_fills_anew_for_each_put_is_rendered_anew():
    manager, message = SSEBroadcastManager(), dict(type='x')
    async with following(manager) as json, following(manager, render=lambda m: str(m['data'])) as html:
        for i in range(3):
            message['data'] = i
            for c in manager.connections: c.put_nowait(message)
        assert [e.data for e in await read(json, 3)] == [e.data for e in await read(html, 3)] == ['0', '1', '2']

async def test_a_tab_that_leaves_before_its_async_renderer_has_begun_leaves_no_coroutine_behind():
    manager = SSEBroadcastManager()
    async def render(m): return 'x'
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        async with following(manager, render=render) as client:
            await manager.broadcast('x', 1)
            client.conn.end('closed')
        await turns()
        gc.collect()
    assert [str(w.message) for w in caught if 'never awaited' in str(w.message)] == []

@pytest.mark.parametrize('later', range(5))
async def test_a_close_right_after_an_eviction_ends_everybody(later):
    manager = SSEBroadcastManager()
    async with following(manager) as a, following(manager) as b:
        a.conn.end('evicted')
        await turns(later)
        await manager.close()
        for c in a, b: assert c._task.done() and c.events[-1].retry is not None


# Replay under load

@pytest.mark.parametrize('seed', range(3))
async def test_hundreds_connect_while_a_writer_never_rests_and_nobody_misses_or_repeats_anything(seed):
    rnd, manager, done = random.Random(seed), SSEBroadcastManager(20, replay_size=5000), False
    def html(m): return str(m['data'])
    async def slow(m):
        for _ in range(rnd.randrange(3)): await asyncio.sleep(0)
        return str(m['data'])
    async def write():
        n = 0
        while not done or n < 300:
            n += 1
            await manager.broadcast(rnd.choice(['a', 'b']), n)
            if rnd.random() < .5: await asyncio.sleep(0)
        await manager.broadcast('end', n+1)
    async def visit():
        for _ in range(rnd.randrange(30)): await asyncio.sleep(0)
        events, render = rnd.choice([('**',), ('a', 'end')]), rnd.choice([None, html, slow])
        back = rnd.random() < .7
        at = rnd.randrange(max(0, manager._hub.log.seq-60), manager._hub.log.seq+1) if back else None
        async with tab(manager, events=events, render=render, until='end', last_event_id=manager._hub.log.id(at) if back else None) as client:
            first = at if back else None
            got = [e for e in await read_all(client)]
        assert got[-1].event == CLOSE, f'ended by {client.events[-1]}'
        if first is None: first = seq(client.events[0])
        want = [m.seq for m in manager._hub.log.after(first, 10**9) if m['type'] in events or events == ('**',)]
        assert [seq(e) for e in got[:-1]] == want, f'{events} {render} from {first}'
    writer = asyncio.create_task(write())
    async def crowd():
        nonlocal done
        visits = []
        for _ in range(12):
            visits += [asyncio.create_task(visit()) for _ in range(10)]
            for _ in range(5): await asyncio.sleep(0)
        await asyncio.sleep(.05)
        done = True
        await asyncio.gather(*visits)
    async with asyncio.timeout(40): await asyncio.gather(crowd(), writer)
    assert manager.stats()['evicted'] == 0 and manager.stats()['gaps'] == 0

@pytest.mark.parametrize('query', ['last_event_id', 'last_event_id=', '&&last_event_id=&', '%ff=1', 'last_event_id=%00%0d%0a', 'x'*5000])
async def test_a_hostile_query_string_is_answered(query):
    manager = SSEBroadcastManager()
    async with tab(manager, url='/?'+query) as client:
        await manager.broadcast('x', 2)
        await read_to(client, 'x')


# Heartbeats, headers, middleware

async def test_no_tab_is_silent_for_longer_than_the_heartbeat_and_none_gets_one_when_it_is_zero():
    manager = SSEBroadcastManager(heartbeat=.05)
    async with following(manager) as client: await eventually(lambda: len(client.events) >= 4, 'heartbeats')
    manager = SSEBroadcastManager(heartbeat=0)
    async with following(manager) as client:
        await asyncio.sleep(.1)
        assert len(client.events) == 1

async def test_a_tab_that_catches_up_is_not_left_in_silence():
    manager, go, begun = SSEBroadcastManager(heartbeat=.03), asyncio.Event(), []
    async def state():
        begun.append('state')
        await go.wait()
        return 'the state'
    async def render(m):
        begun.append(m['data'])
        await go.wait()
        return str(m['data'])
    start = manager.cursor
    await manager.broadcast('x', 1)
    async with tab(manager, snapshot=state) as a, tab(manager, render=render, last_event_id=start) as b:
        await eventually(lambda: {*begun} == {'state', 1})
        n = [len(a.events), len(b.events)]
        await eventually(lambda: len(a.events) > n[0]+3 and len(b.events) > n[1]+3, 'heartbeats come although nothing else can yet')
        assert {e.event for e in a.events+b.events} == {HEARTBEAT} and {e.id for e in a.events} == {''} and {e.id for e in b.events} == {start}
        go.set()
        assert (await a.next(BOUND)).data == 'the state' and (await b.next(BOUND)).data == '1'

async def test_a_snapshot_is_ended_with_its_stream_before_the_request_is_over():
    manager, said = SSEBroadcastManager(), []
    async def state():
        said.append('begun')
        try: await asyncio.Event().wait()
        finally:
            await asyncio.sleep(.01)
            said.append('closed')
    async with tab(manager, snapshot=state) as client:
        await eventually(lambda: said == ['begun'])
        await client.disconnect()
        assert said == ['begun', 'closed']

async def test_a_tab_that_leaves_while_a_snapshot_is_read_is_no_error_of_the_snapshot(caplog):
    manager, ended = SSEBroadcastManager(heartbeat=.02), []
    async def state():
        try: await asyncio.Event().wait()
        finally: ended.append(1)
    def gone_after_the_first(app):
        async def wrapped(scope, receive, send):
            async def once(message):
                if message.get('body') and b'retry' not in message['body']: raise OSError('gone')  # As a server of ASGI 2.4 says it
                await send(message)
            await app(scope, receive, once)
        return wrapped
    async with tab(manager, snapshot=state, wrap=gone_after_the_first):
        await eventually(lambda: ended and not manager.connection_count, 'the snapshot is ended, and the stream')
    assert manager.stats()['errors'] == 0 and not caplog.records

async def test_what_a_slow_renderer_has_made_of_a_replay_is_sent_before_all_of_it_is_ready(monkeypatch):
    monkeypatch.setattr(stream, '_SLOW', 0)
    manager, go = SSEBroadcastManager(), asyncio.Event()
    async def render(m):
        if m['data'] == 2: await go.wait()
        return str(m['data'])
    start = manager.cursor
    for n in range(5): await manager.broadcast('x', n)
    async with tab(manager, render=render, last_event_id=start) as client:
        assert [e.data for e in await read(client, 2)] == ['0', '1']
        last = client.last_event_id
    async with tab(manager, render=render, last_event_id=last) as client:
        go.set()
        assert [e.data for e in await read(client, 3)] == ['2', '3', '4']

@pytest.mark.parametrize('heartbeat', [0, .02])
async def test_a_replay_that_nobody_reads_ends_when_the_log_has_moved_on(heartbeat, monkeypatch):
    monkeypatch.setattr(stream, '_LOOK', .02)
    manager, stuck = SSEBroadcastManager(replay_size=5, heartbeat=heartbeat, default_timeout=.01), asyncio.Event()
    def unread(app):
        async def wrapped(scope, receive, send):
            async def until_the_replay(message):
                if b'data: 0' in message.get('body', b''):
                    stuck.set()
                    await asyncio.Event().wait()
                await send(message)
            await app(scope, receive, until_the_replay)
        return wrapped
    start = manager.cursor
    await manager.broadcast('x', 0)
    async with tab(manager, last_event_id=start, wrap=unread):
        async with asyncio.timeout(BOUND): await stuck.wait()
        for n in range(10): await manager.broadcast('x', n)
        await eventually(lambda: manager.stats()['evicted'], 'it is evicted')
        assert manager.connection_count == 0

async def test_the_first_chunk_is_a_retry_an_id_and_a_heartbeat_with_an_empty_data_line():
    manager = SSEBroadcastManager(retry=1234)
    async with following(manager) as client:
        lines = client.body.decode().splitlines()
    assert sorted(lines[:4]) == sorted(['event: sse:heartbeat', f'id: {manager.cursor}', 'retry: 1234', 'data: '])

async def test_head_is_answered_without_a_stream_and_registers_nobody():
    manager = SSEBroadcastManager()
    async with SSEClient(serving(manager), method='HEAD') as client:
        assert client.status == 200 and client.headers['content-type'] == 'text/event-stream; charset=utf-8'
        await eventually(client._task.done, 'the answer ends')
    assert client.body == b'' and manager.connection_count == 0

async def test_no_visitor_gets_the_session_of_another():
    manager = SSEBroadcastManager()
    async def app(scope, receive, send):
        if b'login' in scope['query_string']: scope['session']['user'] = scope['query_string'].decode()
        await serving(manager)(scope, receive, send)
    app = SessionMiddleware(app, secret_key='secret')
    async with SSEClient(app, '/?login=a') as a, SSEClient(app, '/?login=b') as b, SSEClient(app, '/') as c:
        assert a.headers['set-cookie'] != b.headers['set-cookie'] and 'set-cookie' not in c.headers

async def test_middleware_that_edits_what_it_passes_on_spoils_nothing_for_others():
    manager = SSEBroadcastManager()
    def vandal(app):
        async def middleware(scope, receive, send):
            async def vandal_send(message):
                own = dict(message)
                if 'headers' in message: message['headers'].append((b'x-private', b'1'))
                if 'body' in message: message['body'] = b''
                await send(own)
                message.clear()
            await app(scope, receive, vandal_send)
        return middleware
    async with following(manager, wrap=vandal) as a, following(manager) as b:
        await manager.broadcast('x', 1)
        assert (await a.next(BOUND)).event == (await b.next(BOUND)).event == 'x'
        assert 'x-private' not in b.headers

@pytest.mark.parametrize('stack', STACKS)
async def test_a_tab_that_leaves_is_noticed_behind_any_middleware(stack):
    manager, closed = SSEBroadcastManager(), []
    manager.on_disconnect(closed.append)
    async with no_task_left():
        async with following(manager, wrap=STACKS[stack]) as client:
            await manager.broadcast('x', 1)
            await client.next(BOUND)
        await eventually(lambda: manager.connection_count == 0 and len(closed) == 1, 'the tab is unregistered')

async def test_compression_does_not_hold_events_back():
    manager = SSEBroadcastManager()
    async with following(manager, wrap=gzip, headers={'Accept-Encoding': 'gzip'}) as client:
        await manager.broadcast('x', 'y'*5000)
        assert (await client.next(BOUND)).event == 'x'
    assert 'content-encoding' not in client.headers


# FastHTML

def fasthtml(**kw):
    from fasthtml.common import FastHTML
    return FastHTML(default_hdrs=False, secret_key='secret', **kw)

async def follow(app, manager, path, **kw):
    async with SSEClient(app, path, **kw) as client:
        await eventually(lambda: manager.connection_count == 1, 'connected')
        await manager.broadcast('x', 1)
        assert (await client.next(BOUND)).event == 'x'
    await eventually(lambda: manager.connection_count == 0, 'gone')
    return client

@pytest.mark.parametrize('plain', [True, False])
async def test_a_fasthtml_route_plain_or_async_streams(plain):
    app, manager = fasthtml(), SSEBroadcastManager()
    if plain:
        @app.route('/events')
        def events(req): return manager.stream(req)
    else:
        @app.route('/events')
        async def events(req): return manager.stream(req)
    await follow(app, manager, '/events')

async def test_beforeware_a_router_and_a_mounted_app_stream():
    from fasthtml.common import APIRouter, Beforeware
    seen, manager = [], SSEBroadcastManager()
    def before(req, sess):
        sess['user'] = 'ann'
        seen.append(req.url.path)
    app, sub, ar = fasthtml(before=Beforeware(before)), fasthtml(), APIRouter(prefix='/api')
    @ar('/events')
    def events(req): return manager.stream(req)
    @sub.route('/events')
    async def inner(req): return manager.stream(req)
    ar.to_app(app)
    app.mount('/sub', sub)
    client = await follow(app, manager, '/api/events')
    assert seen == ['/api/events'] and 'set-cookie' in client.headers
    await follow(app, manager, '/sub/events')

async def test_a_login_check_turns_visitors_away_before_anything_is_registered():
    from fasthtml.common import Beforeware, RedirectResponse
    manager = SSEBroadcastManager()
    app = fasthtml(before=Beforeware(lambda req: RedirectResponse('/login', status_code=303)))
    @app.route('/events')
    def events(req): return manager.stream(req)
    async with SSEClient(app, '/events') as client:
        assert client.status == 303
    assert manager.connection_count == 0

async def test_a_root_path_changes_nothing():
    app, manager = fasthtml(), SSEBroadcastManager()
    @app.route('/events')
    def events(req): return manager.stream(req)
    async def behind_a_proxy(scope, receive, send): await app({**scope, 'root_path': '/app', 'path': '/app'+scope['path']}, receive, send)
    await follow(behind_a_proxy, manager, '/events')

async def test_head_on_a_fasthtml_route_ends():
    app, manager = fasthtml(), SSEBroadcastManager()
    @app.route('/events')
    def events(req): return manager.stream(req)
    async with SSEClient(app, '/events', method='HEAD') as client:
        await eventually(client._task.done, 'the answer ends')
    assert client.body == b''


async def test_a_close_never_sends_what_comes_after_a_chunk_that_was_cut_off(monkeypatch):
    "Its id would say that the tab has seen the chunk too"
    monkeypatch.setattr('cjm_fasthtml_sse.engine.stream.LAST_WORDS', .01)
    manager = SSEBroadcastManager()
    async with following(manager) as client:
        client.stall()
        for n in range(3):
            await manager.broadcast('x', n)
            await eventually(lambda: client.conn.busy, 'the first one is under way')
        closing = asyncio.create_task(manager.close())
        await eventually(lambda: client.conn.ended and client.conn._stop is not None, 'the farewell is under way')
        await turns()
        client.resume()
        seen = [e for e in await read_all(client) if e.event == 'x']
        await closing
    async with tab(manager, last_event_id=client.last_event_id) as back:
        seen += await read(back, 3-len(seen))
    assert [e.data for e in seen] == ['0', '1', '2']


async def test_what_is_put_in_by_hand_leaves_out_nothing_that_its_group_has_dropped():
    manager = SSEBroadcastManager(max_queue_size=3)
    async with following(manager) as client:
        for n in range(8): manager._hub.publish(Message(dict(type='x', data=n)))  # The pump had no turn yet
        client.conn.put_nowait(dict(type='hand', data='by hand'))
        assert [e.data for e in await read(client, 9)] == [*'01234567', '"by hand"']


async def test_a_group_lets_go_of_what_all_have_been_given_even_if_there_is_always_more():
    manager = SSEBroadcastManager()
    async with following(manager) as client, following(manager) as beside:
        group = client.conn.group
        for n in range(50):
            await manager.broadcast('x', n)
            while any(c.conn.cursor<group.head for c in (client, beside)): await asyncio.sleep(0)  # The pump has not finished yet
            assert len(group.log)<=2
        for c in (client, beside): assert [e.data for e in await read(c, 50)] == [f'{n}' for n in range(50)]


@pytest.mark.skipif(sys.version_info<(3, 12), reason='up to Python 3.11 each stream has a task that writes')
async def test_an_idle_stream_has_no_task_of_its_own():
    async with following(SSEBroadcastManager()) as client:
        await eventually(lambda: client.conn._task is None, 'the task that sent the first chunk is let go')


@pytest.mark.skipif(sys.version_info<(3, 12), reason='eager tasks came with Python 3.12')
async def test_eager_tasks_mute_no_stream():
    "With `asyncio.eager_task_factory` a task may be over before its creator gets it"
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    manager = SSEBroadcastManager(heartbeat=.05)
    async def at_once(m): return m['type']
    async def later(m):
        await asyncio.sleep(0)
        return m['type']
    async def state(): return 'state'
    async with no_task_left():
        for render, snapshot in [(None, None), (at_once, state), (later, state), (lambda m: m['type'], lambda: 'state')]:
            async with following(manager, render=render, snapshot=snapshot) as client:
                if snapshot: assert (await client.next(BOUND)).data == 'state'
                for i in range(5): await manager.broadcast(f'n{i}', i)
                client.conn.put_nowait(dict(type='hand'))
                await manager.broadcast('end', None)
                got = [e.event if render is None else e.data for e in await read(client, 7)]
                assert got == ['n0', 'n1', 'n2', 'n3', 'n4', 'hand', 'end']
            async with tab(manager, render=render, last_event_id=manager._hub.log.id(manager._hub.log.seq-2)) as back:
                assert [e.event if render is None else e.data for e in await read(back, 2)] == ['n4', 'end']
        await manager.close()


async def test_the_age_of_a_stream_that_left_holds_nothing():
    manager = SSEBroadcastManager(max_age=1000)
    async with following(manager) as client: ref = weakref.ref(client.conn)
    del client
    await turns()
    gc.collect()
    assert ref() is None


# Bounds of a replay

async def test_a_replay_goes_out_in_pieces_and_lets_others_run():
    "A client that does not read its replay holds one piece of it, and a long one does not hold up the event loop"
    manager, sizes, ran = SSEBroadcastManager(), [], 0
    start = manager.cursor
    for i in range(200): await manager.broadcast('x', f'{i}'+'y'*20_000)
    def measure(app):
        async def middleware(scope, receive, send):
            async def measured(message):
                sizes.append(len(message.get('body', b'')))
                await send(message)
            await app(scope, receive, measured)
        return middleware
    async def count():
        nonlocal ran
        while True:
            ran += 1
            await asyncio.sleep(0)
    async with tab(manager, last_event_id=start, wrap=measure, render=lambda m: m['data']) as client:
        counter = asyncio.create_task(count())
        got = await read(client, 200)
        counter.cancel()
    assert [int(e.data.rstrip('y')) for e in got] == [*range(200)]
    assert max(sizes) < 100_000 and ran > 40, (max(sizes), ran)

async def test_frames_of_a_renderer_that_is_gone_are_dropped():
    manager = SSEBroadcastManager()
    def kept(m): return 'kept'
    async with following(manager, render=kept) as client:
        for i in range(10):
            async with following(manager, render=lambda m, i=i: f'gone {i}') as other:
                await manager.broadcast('x', i)
                assert (await other.next(BOUND)).data == f'gone {i}'
        assert [e.data for e in await read(client, 10)] == ['kept']*10
        for m in manager._hub.log.after(0, 100): assert len(m.frames) == 1, m.frames
    for m in manager._hub.log.after(0, 100): assert not m.frames

async def test_a_renderer_made_for_each_request_is_said_once(caplog):
    manager = SSEBroadcastManager()
    def route(i):
        def render_here(m): return f'{i}'
        return tab(manager, render=render_here)
    def shared(m): return 'shared'
    clients = [route(i) for i in range(30)]+[tab(manager, render=shared) for _ in range(30)]
    for c in clients: await c.__aenter__()
    for c in clients: await c.disconnect()
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1 and 'render_here' in said[0] and 'test_stream.py' in said[0], said
    assert not manager._hub.closures

async def test_streams_that_are_refused_fill_no_log(caplog):
    "Ids that this process has not come to may be made up by anybody"
    class Behind:
        origin = 'b-0'
        async def start(self, size, deliver, renew, tell): pass
        async def publish(self, fields, key=None, timeout=None): return 0
        async def wait_for(self, last_event_id): raise BackendError('there are entries that this process has not read yet')
        async def poll_workers(self): return []
        async def stop(self): pass
    manager = SSEBroadcastManager(backend=Behind())
    for i in range(20):
        async with tab(manager, last_event_id=f'b-{i+1}') as client: assert client.status == 503
    assert len(caplog.records) == 1
