"Streams in the details that the contract leaves out: renderers, states, middleware, pieces, memory; by public names alone"
import asyncio
import gc
import sys
import tracemalloc
import warnings
import weakref
from functools import partial

import pytest
from fastcore.xml import Div, Li, NotStr
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request

from cjm_fasthtml_sse.core import BackendError, SSEBroadcastManager
from tests.contract.support import (HEARTBEAT, Hooks, OwnBackend, Site, all_live, client, eventually, following, listening, no_task_left,
                                    turns, within)


@pytest.fixture
def manager(): return SSEBroadcastManager()


def unawaited(caught):
    gc.collect()
    return [str(w.message) for w in caught if 'never awaited' in str(w.message)]


class TestRenderers:
    class Object:
        def __call__(self, message): return f"<i>{message['data']}</i>"
        def method(self, message): return self(message)
        async def slow(self, message):
            await asyncio.sleep(0)
            return self(message)

    @staticmethod
    def factory(tag, message): return f"<{tag}>{message['data']}</{tag}>"

    @pytest.mark.parametrize('render', [Object(), Object().method, Object().slow, partial(factory, 'i'), partial(Object().slow)],
                             ids=['object', 'method', 'async method', 'partial', 'async partial'])
    async def test_any_callable(self, manager, render):
        async with following('stream', manager, render=render) as page:
            for i in range(3): await manager.broadcast('x', i)
            assert await page.read(3) == [('message', f'<i>{i}</i>') for i in range(3)]

    @pytest.mark.parametrize('result, html', [
        ('<b>x</b>', '<b>x</b>'), (NotStr('<b>x</b>'), '<b>x</b>'), (Div('x'), '<div>x</div>'), ([Li('x'), Li('y')], '<li>x</li><li>y</li>'),
        ((Li('x'), None, [Li('y')]), '<li>x</li><li>y</li>')], ids=['str', 'NotStr', 'element', 'list', 'nested'])
    async def test_results_become_one_message(self, manager, result, html):
        async with following('stream', manager, render=lambda m: result) as page:
            await manager.broadcast('x', 1)
            assert (await page.next())[1].replace('\n', '') == html

    @pytest.mark.parametrize('kind', ['cancelled', 'async raises', 'async cancelled', 'nonsense'])
    async def test_failure_spoils_one_message(self, manager, kind, caplog):
        "Live and in a replay"
        def bad(m):
            if m['data'] != 1: return str(m['data'])
            if 'raises' in kind: raise RuntimeError('renderer')
            if 'cancelled' in kind: raise asyncio.CancelledError
            return 3
        async def async_bad(m): return bad(m)
        render, start = async_bad if 'async' in kind else bad, manager.cursor
        async with following('stream', manager, render=render) as broken, following('stream', manager) as healthy:
            for i in range(3):
                try: await manager.broadcast('x', i)
                except asyncio.CancelledError: pass  # A failure of its own, which the next lines would show as well
            assert await healthy.data(3) == [0, 1, 2] and await broken.data(2) == [0, 2]
        assert manager.stats()['errors'] == 1 and any(r.exc_info for r in caplog.records)
        async with client('stream', manager, render=render, last_id=start) as back: assert await back.data(2) == [0, 2]

    async def test_async_is_awaited_once(self, manager):
        "What is put into a connection, too; nothing is left unawaited, neither by one that leaves before it has begun"
        calls = []
        async def render(m):
            calls.append(m['type'])
            await asyncio.sleep(0)
            return m['type']
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            async with following('stream', manager, render=render) as page:
                await manager.broadcast('x', 1)
                for c in manager.connections: c.put_nowait(dict(type='hello'))
                assert await page.read(2) == [('message', 'x'), ('message', 'hello')]
            assert calls == ['x', 'hello']
            async with following('stream', manager, render=render, user='ann'):
                manager.broadcast('y', 1)
                await manager.disconnect('ann')
            await turns()
            assert not unawaited(caught)

    @pytest.mark.parametrize('kind', ['hash of zero', 'unhashable'])
    async def test_look_alikes_are_kept_apart(self, manager, kind):
        class Zero:
            def __init__(self, name): self.name = name
            def __call__(self, m): return self.name
            def __hash__(self): return 0
        class Unhashable(Zero):
            def __eq__(self, o): return True
            __hash__ = None
        of = Zero if kind == 'hash of zero' else Unhashable
        shared = of('a')
        async with (following('stream', manager, render=shared) as a, following('stream', manager, render=of('b')) as b,
                    following('stream', manager, render=shared) as c):
            await manager.broadcast('x', 1)
            assert [(await o.next())[1] for o in (a, b, c)] == ['a', 'b', 'a']

    async def test_may_put_and_end_while_it_runs(self, manager):
        ending = []
        def render(m):
            if m['type'] == 'kick': ending.append(asyncio.ensure_future(manager.disconnect('ann')))
            if m['type'] == 'push':
                for c in manager.connections: c.put_nowait(dict(type='hand'))
            return m['type']
        async with (following('stream', manager, render=render, user='ann') as a,
                    following('stream', manager, render=render, user='ann', events=['**', 'push']) as b):
            for t in 'push', 'after': await manager.broadcast(t, 1)
            for c in a, b:
                got = [d for _, d in await c.read(3)]
                assert sorted(got) == ['after', 'hand', 'push'] and got[-1] == 'after', got
            await manager.broadcast('kick', 1)
            for c in a, b: await c.ends()
            assert await asyncio.gather(*ending) and manager.connection_count == 0

    async def test_may_fall_behind_again_and_again(self):
        "What waits is left to the log, and read again from there; no error is left for the event loop to find"
        errors, manager = [], SSEBroadcastManager(max_queue_size=1, default_timeout=.01)
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
        async def render(m):
            await asyncio.sleep(0)
            return str(m['data'])
        async with following('stream', manager, render=render) as a, following('stream', manager, render=render) as b:
            await asyncio.gather(*[manager.broadcast('n', n) for n in range(100)])
            for c in a, b: assert await c.data(100) == [*range(100)]
        gc.collect()
        await turns()
        assert not errors

    async def test_put_evicts_no_other(self):
        "Another tab with the same async renderer stays"
        manager = SSEBroadcastManager(20)
        async def render(m):
            await asyncio.sleep(0)
            return m['type']
        async with following('stream', manager, render=render):
            full, = manager.connections
            async with following('stream', manager, render=render) as b:
                with pytest.raises(asyncio.QueueFull):
                    for _ in range(500): full.put_nowait(dict(type='hand'))
                await manager.broadcast('x', 1)
                assert await b.next() == ('message', 'x')
        assert manager.stats()['evicted'] == 0

    async def test_dict_that_is_filled_anew(self, manager):
        "For each put: it is rendered anew"
        message = dict(type='x')
        async with following('stream', manager) as json, following('stream', manager, render=lambda m: str(m['data'])) as html:
            for message['data'] in range(3):
                for c in manager.connections: c.put_nowait(message)
            assert await json.data(3) == await html.data(3) == [0, 1, 2]

    async def test_made_for_each_request(self, manager, caplog):
        "It is said once, with its place; a shared renderer is not complained about"
        def route(i):
            def render_here(m): return f'{i}'
            return client('stream', manager, render=render_here)
        def shared(m): return 'shared'
        clients = [route(i) for i in range(30)]+[client('stream', manager, render=shared) for _ in range(30)]
        for c in clients: await c.__aenter__()
        for c in clients: await c.leave()
        said, = [r.getMessage() for r in caplog.records]
        assert 'render_here' in said and 'test_stream.py' in said

    async def test_what_it_made_goes_with_it(self, manager):
        "The log keeps no bytes for renderers that nobody uses any longer"
        tracemalloc.start()
        try:
            for i in range(20):
                async with following('stream', manager, render=lambda m, i=i: f'{i}'*1_000_000) as page:
                    await manager.broadcast('x', i)
                    await page.next()
                del page
            await turns()
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] < 10_000_000
        finally: tracemalloc.stop()


class Store:
    "A state that takes too long to be read anew for each of a crowd"
    def __init__(self): self.calls = 0
    async def read(self):
        self.calls += 1
        await asyncio.sleep(.02)
        return f'state {self.calls}'


class TestStates:
    async def test_older_than_the_log(self):
        "A state that was read before is not shared any more where the log has forgotten what followed it"
        manager, store = SSEBroadcastManager(replay_size=5), Store()
        async with following('stream', manager), client('stream', manager, snapshot=store.read) as first:
            assert await first.next() == ('message', 'state 1')
            for i in range(6): await manager.broadcast('x', i)
            async with client('stream', manager, snapshot=store.read) as page:
                assert await page.next() == ('message', 'state 2')
                await manager.broadcast('end', None)
                assert await page.next() == ('end', None)

    async def test_log_begins_anew_meanwhile(self):
        "While the state is read, the backend loses its past: that is a gap"
        class Forgetful(OwnBackend):
            async def start(self, size, deliver, renew, describe):
                self.renew = renew
                await super().start(size, deliver, renew, describe)
        manager, begun, go = SSEBroadcastManager(backend=(backend := Forgetful())), asyncio.Event(), asyncio.Event()
        async def state():
            begun.set()
            await go.wait()
            return 'state'
        async with client('stream', manager, snapshot=state) as page:
            async with within('it is read'): await begun.wait()
            backend.renew('anew-0', [])
            go.set()
            assert await page.next() == ('message', 'state')
            await page.read()
            assert page.last_id == 'anew-0' and manager.stats()['gaps'] == 1

    async def test_leaving_is_no_error_of_the_state(self, caplog):
        manager, begun, ended = SSEBroadcastManager(heartbeat=.02), asyncio.Event(), []
        async def state():
            begun.set()
            try: await asyncio.Event().wait()
            finally: ended.append(1)
        async with client('stream', manager, snapshot=state) as page:
            async with within('it is read'): await begun.wait()
            page.exchange.fails = OSError('gone')  # As a server of ASGI 2.4 says it
            await eventually(lambda: ended and not manager.connection_count, 'the state is ended, and the stream')
        assert manager.stats()['errors'] == 0 and not caplog.records

    async def test_heartbeats_while_one_catches_up(self):
        manager, go, begun = SSEBroadcastManager(heartbeat=.03), asyncio.Event(), set()
        async def state():
            begun.add('state')
            await go.wait()
            return 'the state'
        async def render(m):
            begun.add(m['data'])
            await go.wait()
            return str(m['data'])
        start = manager.cursor
        await manager.broadcast('x', 1)
        async with client('stream', manager, snapshot=state) as a, client('stream', manager, render=render, last_id=start) as b:
            await eventually(lambda: begun == {'state', 1}, 'both are under way')
            n = [len(a.events), len(b.events)]
            await eventually(lambda: len(a.events) > n[0]+3 and len(b.events) > n[1]+3, 'heartbeats come although nothing else can yet')
            assert {e.event for e in a.events+b.events} == {HEARTBEAT} and {e.id for e in a.events} == {''} and {e.id for e in b.events} == {start}
            go.set()
            assert [await o.next() for o in (a, b)] == [('message', 'the state'), ('message', 1)]


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

def vandal(app):
    "Middleware that edits what it passes on"
    async def middleware(scope, receive, send):
        async def vandal_send(message):
            own = dict(message)
            if 'headers' in message: message['headers'].append((b'x-private', b'1'))
            if 'body' in message: message['body'] = b''
            await send(own)
            message.clear()
        await app(scope, receive, vandal_send)
    return middleware

STACKS = dict(session=session, twice=lambda a: base(base(a)), gzip=gzip, scoped=scoped, long=long_way, all=lambda a: session(base(gzip(base(scoped(a))))))


class TestMiddleware:
    @pytest.mark.parametrize('stack', STACKS)
    async def test_nobody_who_reads_is_outrun(self, stack):
        "By a loop of broadcasts, from the first moment on, with no patience at all; that a tab leaves is noticed behind each"
        manager = SSEBroadcastManager(10, replay_size=5000, default_timeout=0)
        hooks = Hooks(manager)
        async with no_task_left():
            async with listening(STACKS[stack](Site(manager).app), **{'Accept-Encoding': 'gzip'}) as page:
                for i in range(1000): await manager.broadcast('x', i)
                assert await page.data(1000) == [*range(1000)] and not page.gaps
                assert 'content-encoding' not in page.exchange.headers
            await eventually(lambda: manager.connection_count == 0 and len(hooks.closed) == 1, 'it is unregistered')
        assert manager.stats()['evicted'] == 0

    async def test_what_one_edits_is_its_own(self, manager):
        app = Site(manager).app
        async with listening(vandal(app)) as a, listening(app) as b:
            await all_live(manager, 2)
            await manager.broadcast('x', 1)
            assert await a.next() == await b.next() == ('x', 1)
            assert 'x-private' not in b.exchange.headers

    async def test_sessions_are_kept_apart(self, manager):
        async def login(scope, receive, send):
            if scope['query_string']: scope['session']['user'] = scope['query_string'].decode()
            await manager.stream(Request(scope, receive))(scope, receive, send)
        async with listening(session(login), '/?a') as a, listening(session(login), '/?b') as b, listening(session(login), '/') as c:
            assert a.exchange.cookies and b.exchange.cookies and a.exchange.cookies != b.exchange.cookies and not c.exchange.cookies


class TestThePump:
    async def test_a_busy_writer_starves_no_other(self, manager):
        stop = False
        async def trickle():
            while not stop:
                await manager.broadcast('b', 1)
                await asyncio.sleep(0)
        async with following('stream', manager, events='a') as a, following('stream', manager, events='b'):
            busy = asyncio.create_task(trickle())
            for i in range(200): await manager.broadcast('a', i)
            assert await a.data(200) == [*range(200)]
            stop = True
            await busy

    async def test_connections_that_end_while_many_are_served(self, manager):
        pages = [client('stream', manager, user=i >= 518) for i in range(520)]
        for c in pages: await c.__aenter__()
        await all_live(manager, 520)
        for i in range(10):
            sent = manager.broadcast('x', i)
            await asyncio.sleep(0)  # The first ones are served, the rest comes in a later turn
            if i == 5: await manager.disconnect(True)
            await sent
        for c in pages[:518]: assert await c.data(10) == [*range(10)]
        for c in pages: await c.leave()

    async def test_its_task_may_be_cancelled(self):
        "As where an app cancels all tasks that it finds"
        manager = SSEBroadcastManager(10, heartbeat=.05)
        async with following('stream', manager) as page:
            before = asyncio.all_tasks()
            for i in range(5): await manager.broadcast('x', i)
            for o in asyncio.all_tasks()-before: o.cancel()
            await turns()
            for i in range(5, 30): await manager.broadcast('x', i)
            assert await page.data(30) == [*range(30)]
            n = len(page.events)
            await eventually(lambda: len(page.events) > n+1, 'heartbeats go on')

    async def test_no_heartbeats(self):
        manager = SSEBroadcastManager(heartbeat=0, retry=1234)
        async with following('stream', manager) as page:
            await asyncio.sleep(.1)
            lines = page.exchange.body.decode().splitlines()
        assert sorted(lines[:4]) == sorted(['event: sse:heartbeat', f'id: {manager.cursor}', 'retry: 1234', 'data: ']) and len(page.events) == 1

    async def test_age_of_one_that_left_holds_nothing(self):
        manager = SSEBroadcastManager(max_age=1000)
        async with following('stream', manager):
            ref, = map(weakref.ref, manager.connections)
        await turns()
        gc.collect()
        assert ref() is None

    async def test_refused_streams_fill_no_log(self, caplog):
        "Ids that this process has not come to may be made up by anybody"
        class Behind(OwnBackend):
            async def wait_for(self, last_event_id): raise BackendError('there are entries that this process has not read yet')
        manager = SSEBroadcastManager(backend=Behind())
        await manager.open()
        for i in range(20):
            async with client('stream', manager, last_id=f'own-{i+1}') as c: assert c.status == 503
        assert len(caplog.records) == 1

    @pytest.mark.skipif(sys.version_info < (3, 12), reason='eager tasks came with Python 3.12')
    async def test_eager_tasks(self):
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
                async with following('stream', manager, render=render, snapshot=snapshot) as page:
                    if snapshot: assert await page.next() == ('message', 'state')
                    at = manager.cursor
                    for i in range(5): await manager.broadcast(f'n{i}', i)
                    for c in manager.connections: c.put_nowait(dict(type='hand'))
                    await manager.broadcast('end', None)
                    types = ['n0', 'n1', 'n2', 'n3', 'n4', 'hand', 'end']
                    assert [t if render is None else d for t, d in await page.read(7)] == types
                async with client('stream', manager, render=render, last_id=at) as back:
                    assert [t if render is None else d for t, d in await back.read(6)] == [t for t in types if t != 'hand']
            await manager.close()


class TestReplays:
    @pytest.mark.parametrize('size, want', [(500, 5000), (1, 1000)])
    async def test_how_far_the_log_reaches_back(self, size, want):
        "Ten times `max_queue_size`, 1,000 at least"
        manager = SSEBroadcastManager(size)
        start = manager.cursor
        for i in range(want): await manager.broadcast('x', i)
        async with client('stream', manager, last_id=start) as page: assert await page.next() == ('x', 0)
        await manager.broadcast('x', 0)
        async with client('stream', manager, last_id=start) as page:
            await page.read()
            assert page.gaps == 1

    async def test_pieces_let_others_run(self, manager):
        "A client that does not read its replay holds one piece of it, and a long one does not hold up the event loop"
        sizes, ran, start = [], 0, manager.cursor
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
        async with listening(measure(Site(manager).app), last_id=start) as page:
            counter = asyncio.create_task(count())
            assert [int(d.rstrip('y')) for d in await page.data(200)] == [*range(200)]
            counter.cancel()
        assert max(sizes) < 100_000 and ran > 40, (max(sizes), ran)

    async def test_what_a_slow_renderer_has_made_is_sent(self, manager):
        "Before all of the replay is ready"
        go, start = asyncio.Event(), manager.cursor
        async def render(m):
            if m['data'] == 1: await asyncio.sleep(1.1)
            if m['data'] == 2: await go.wait()
            return str(m['data'])
        for n in range(5): await manager.broadcast('x', n)
        async with client('stream', manager, render=render, last_id=start) as page: assert await page.data(2) == [0, 1]
        async with client('stream', manager, render=render, last_id=page.last_id) as back:
            go.set()
            assert await back.data(3) == [2, 3, 4]

    async def test_one_that_nobody_reads_ends(self):
        "Once the log has moved on"
        manager = SSEBroadcastManager(replay_size=5, heartbeat=.02, default_timeout=.01)
        start, stuck = manager.cursor, asyncio.Event()
        await manager.broadcast('x', 0)
        def unread(app):
            async def wrapped(scope, receive, send):
                async def until_the_replay(message):
                    if b'data: 0' in message.get('body', b''):
                        stuck.set()
                        await asyncio.Event().wait()
                    await send(message)
                await app(scope, receive, until_the_replay)
            return wrapped
        async with listening(unread(Site(manager).app), last_id=start):
            async with within('the replay begins'): await stuck.wait()
            for n in range(10): await manager.broadcast('x', n)
            await eventually(lambda: manager.stats()['evicted'], 'it is evicted')
            assert manager.connection_count == 0
