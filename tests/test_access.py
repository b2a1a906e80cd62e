"Who gets which message, for how long, and how many streams at once"
import asyncio
import gc
import re
import threading
import weakref

import pytest
from fastcore.xml import Li
from fasthtml.common import FastHTML
from hypothesis import given, settings, strategies as st
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from cjm_fasthtml_sse import stream
from cjm_fasthtml_sse.backend import MemoryBackend
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import Private, covers, matches
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.stream import Moment
from cjm_fasthtml_sse.testing import SSEClient
from tests.mux import Browser
from tests.support import BOUND, eventually, following, read, read_all, request, serve, tab

segs = st.sampled_from(['user', 'ann', 'bob', 'mail', '', 'a*', '*', '**'])
patterns = st.lists(segs, min_size=1, max_size=4).map(':'.join).filter(bool)
event_types = st.lists(st.sampled_from(['user', 'ann', 'bob', 'mail', '']), min_size=1, max_size=4).map(':'.join).filter(bool)
declared = st.sampled_from(['user:{who}:**', 'user:{who}', 'user:{who}:mail', '{a}:{b}:**', 'user:ann:{what}:**'])


class TestPrivate:
    @settings(max_examples=500)
    @given(declared, st.lists(patterns, min_size=1, max_size=3), event_types)
    def test_only_who_names_them(self, declared, wanted, event_type):
        depth = declared[:declared.rindex('}')].count(':') + 1
        private = matches(re.sub(r'\{\w+\}', '*', declared), event_type)
        def named(p): return matches(p, event_type) and '*' not in ':'.join(p.split(':')[:depth])
        want = any(named(p) if private else matches(p, event_type) for p in wanted)
        assert covers(wanted, event_type, Private(declared).depth(event_type)) is want

    @pytest.mark.parametrize('slow', [False, True], ids=['sync', 'async'])
    async def test_live_and_replay_agree(self, slow):
        "What a stream gets live is what it gets when it comes back, whatever its renderer"
        manager = SSEBroadcastManager(private='user:{who}:**')
        async def later(m): return Li(m['data'])
        def now(m): return Li(m['data'])
        render, before = later if slow else now, manager.cursor
        kinds = [('**',), ('user:**',), ('user:*:told',), ('user:ann:**', 'all'), ('user:ann:told', '**'), ('user:bob:*', 'all')]
        tabs = [tab(manager, render=render, events=o) for o in kinds]
        for o in tabs: await o.__aenter__()
        counts = [await manager.broadcast(t, t) for t in ('user:ann:told', 'user:bob:told', 'all')]
        assert counts == [2, 1, 4]
        want = [['all'], [], [], ['user:ann:told', 'all'], ['user:ann:told', 'all'], ['user:bob:told', 'all']]
        await manager.broadcast('end', 'end')
        for o, wanted in zip(tabs, want):
            assert [e.data for e in await read(o, len(wanted))] == [f'<li>{x}</li>' for x in wanted]
            await o.__aexit__(None, None, None)
        for kind, wanted in zip(kinds, want):
            async with tab(manager, render=render, events=[*kind, 'end'], last_event_id=before) as o:
                assert [e.data for e in await read(o, len(wanted)+1)] == [f'<li>{x}</li>' for x in (*wanted, 'end')]

    async def test_ends_no_stream_of_strangers(self):
        manager = SSEBroadcastManager(private='user:{who}:**')
        before = manager.cursor
        async with following(manager, events='all', until='user:*:bye') as other, following(manager, events='all', until='user:ann:bye') as own:
            assert await manager.broadcast('user:ann:bye', 0) == 1
            await manager.broadcast('all', 1)
            assert [e.event for e in await read_all(own)] == ['sse:close']
            assert [e.event for e in await read(other, 1)] == ['all']
        for last in (before, 'ffff-1'):  # In a replay, and in what stands for it
            async with following(manager, events='all', until='user:*:bye', snapshot=lambda: Li('state'), last_event_id=last) as other:
                await manager.broadcast('all', 2)
                await eventually(lambda: other.events and other.events[-1].event == 'all', 'the stream goes on')


def moments(): return sum(type(o) is Moment for o in gc.get_objects())


class TestDisconnect:
    @pytest.mark.parametrize('plain', [False, True], ids=['async', 'plain'])
    async def test_ends_what_is_being_opened(self, plain):
        "Whether the login is looked at in the route, or in a Beforeware before the rest of the request has come"
        app, manager = FastHTML(secret_key='x', before=lambda req: req.scope.update(auth='bob')), SSEBroadcastManager()
        setup_sse(app, manager)
        asked = asyncio.Event()
        def stream_now(req, late: str): return manager.stream(req, user=req.scope['auth'])
        async def stream_later(req, late: str): return manager.stream(req, user=req.scope['auth'])
        app.get('/events')(stream_now if plain else stream_later)
        going = asyncio.Event()
        async def drawn_out(scope, receive, send):
            "The body of a `GET`, of which nothing comes for a while"
            async def later():
                asked.set()
                await going.wait()
                return dict(type='http.request', body=b'late=1', more_body=False)
            scope['headers'] = [*scope['headers'], (b'content-type', b'application/x-www-form-urlencoded'), (b'content-length', b'6')]
            await app(scope, lambda: later() if not going.is_set() else receive(), send)
        async def open(): return await SSEClient(drawn_out, '/events').__aenter__()
        task = asyncio.create_task(open())
        await asyncio.wait_for(asked.wait(), BOUND)
        assert await manager.disconnect('bob') == 0
        going.set()
        bob = await task
        assert bob.status == 200 and await read_all(bob) == [] and manager.connection_count == 0
        await bob.__aexit__(None, None, None)
        async with SSEClient(app, '/events?late=1') as again:  # He has logged in again
            await again.next(BOUND, heartbeats=True)
            assert manager.present() == {'bob': 1}

    async def test_ends_what_the_backend_holds_up(self):
        "With an id that is waited for, a client draws out its request by itself"
        waits, goes = asyncio.Event(), asyncio.Event()
        class Slow(MemoryBackend):
            async def reach(self, last_event_id):
                waits.set()
                await goes.wait()
        manager = SSEBroadcastManager(backend=Slow())
        await manager.open()
        async def open(): return await tab(manager, user='bob', last_event_id='unknown-1').__aenter__()
        task = asyncio.create_task(open())
        await asyncio.wait_for(waits.wait(), BOUND)
        await manager.disconnect('bob')
        goes.set()
        bob = await task
        assert await read_all(bob) == [] and manager.connection_count == 0
        await bob.__aexit__(None, None, None)

    async def test_remembers_no_longer_than_needed(self):
        "Streams that stay open, a page and a request by hand hold nothing of the past; one that is being opened holds what it needs"
        app, manager = FastHTML(secret_key='x'), SSEBroadcastManager()
        setup_sse(app, manager)
        @app.get('/events')
        def events(req): return manager.stream(req, user='ann')
        @app.get('/by_hand')
        async def by_hand():
            queue = await manager.register_connection()
            async def messages():
                yield 'data: x\n\n'
                yield await queue.get()
            return StreamingResponse(messages(), media_type='text/event-stream')
        gc.collect()
        before = moments()
        async with SSEClient(app, '/events') as a, SSEClient(app, '/by_hand') as b:
            for o in a, b: await o.next(BOUND, heartbeats=True)
            response = manager.stream(request(), user='bob')
            for i in range(1000): await manager.disconnect(str(i))
            gc.collect()
            assert moments()-before == 1000
            del response
            gc.collect()
            assert moments() == before


class TestMaxPerUser:
    async def test_many_at_once_never_exceed(self):
        "However many wait together for the backend"
        waiting, goes = [], asyncio.Event()
        class Slow(MemoryBackend):
            async def reach(self, last_event_id):
                waiting.append(1)
                await goes.wait()
        manager = SSEBroadcastManager(max_per_user=3, backend=Slow())
        await manager.open()
        tabs = [tab(manager, user='bob', last_event_id='unknown-1') for _ in range(20)] + [tab(manager, user='ann', last_event_id='unknown-1')]
        opening = asyncio.gather(*[o.__aenter__() for o in tabs])
        await eventually(lambda: len(waiting) == 21, 'all wait')
        goes.set()
        await opening
        assert sorted(o.status for o in tabs[:20]) == [200]*3 + [503]*17 and tabs[20].status == 200
        assert all('retry-after' in o.headers for o in tabs if o.status == 503)
        for o in tabs: await o.__aexit__(None, None, None)
        assert manager._hub.places == {}

    async def test_a_browser_counts_once(self):
        "All channels of a carrier take one place, which is free again with the last of them"
        app, manager = FastHTML(secret_key='x'), SSEBroadcastManager(max_per_user=2)
        setup_sse(app, manager)
        @app.get('/events')
        def events(req): return manager.stream(req, user='ann')
        async with serve(app) as port:
            url = f'http://127.0.0.1:{port}'
            async with Browser(url, secret='x') as one, Browser(url, secret='x') as two, Browser(url, secret='x') as three:
                for b in one, two:
                    for c in await b.open(*['/events']*3): await c.until(lambda o: o.events, 'it begins')
                assert manager.connection_count == 6
                assert [len(o) for o in manager._hub.places.values()] == [2]
                late = await three.open('/events')
                await late.until(lambda o: o.status, 'an answer')
                assert late.status == 503 and late.told('retry')
                await one.hang_up()
                await eventually(lambda: manager.connection_count == 3, 'the streams end')
                again = await three.open('/events')
                await again.until(lambda o: o.events, 'it begins')
        await eventually(lambda: not manager._hub.places, 'no place is taken')


class TestAuthorise:
    @pytest.mark.parametrize('kind', ['refuses', 'fails', 'hangs', 'hangs in its thread', 'says something else'])
    async def test_ends_when_it_no_longer_agrees(self, kind, monkeypatch, caplog):
        manager, calls, free = SSEBroadcastManager(), [], threading.Event()
        monkeypatch.setattr(stream, '_ASK_TIMEOUT', .2)
        async def later(req):
            calls.append(req)
            if len(calls) < 3: return True
            await asyncio.sleep(60)
        def plain(req):
            calls.append(req)
            if len(calls) < 3: return True
            if kind == 'hangs in its thread': free.wait(BOUND)
            if kind == 'fails': raise ConnectionError('the database is away')
            return 'yes' if kind == 'says something else' else False
        try:
            async with tab(manager, user='ann', authorise=later if kind == 'hangs' else plain, recheck=.05) as ann:
                assert ann.status == 200
                assert await read_all(ann) == [] and len(calls) == 3
            await eventually(lambda: not manager._hub.rechecks and not manager._hub.connections, 'nothing is left')
        finally: free.set()
        assert ('failed' in caplog.text) is (kind in ('fails', 'hangs', 'hangs in its thread'))

    async def test_asks_once_for_a_user(self):
        "However many streams a user has, and not for all users at one moment"
        manager, calls = SSEBroadcastManager(), []
        loop = asyncio.get_running_loop()
        async def agrees(req):
            calls.append((req.scope['path'], loop.time()))
            return True
        tabs = [tab(manager, f'/{u}', user=u, authorise=agrees, recheck=1.) for u in range(20) for _ in range(3)]
        for o in tabs: await o.__aenter__()
        assert len(calls) == 60 and len(manager._hub.rechecks) == 20
        calls.clear()
        await eventually(lambda: len({p for p, _ in calls}) == 20, 'each is asked about')
        first = {}
        for p, t in calls: first.setdefault(p, t)
        assert max(first.values())-min(first.values()) > .1, 'all at once'
        assert len(calls) < 60
        for o in tabs: await o.__aexit__(None, None, None)
        assert not manager._hub.rechecks

    @pytest.mark.parametrize('answer, status', [(True, 200), (False, 403), (None, 403), (Response('Log in', 401), 401)], ids=['yes', 'no', 'nothing', 'response'])
    async def test_answers_at_the_opening(self, answer, status):
        async with tab(SSEBroadcastManager(), authorise=lambda req: answer) as o: assert o.status == status

    async def test_only_such_streams_keep_their_request(self):
        manager, kept = SSEBroadcastManager(), []
        def serving(**kw):
            async def app(scope, receive, send):
                req = Request(scope, receive)
                kept.append(weakref.ref(req))
                response = manager.stream(req, **kw)
                del req
                await response(scope, receive, send)
            return app
        async with SSEClient(serving()) as a, SSEClient(serving(authorise=lambda req: True)) as b:
            for o in a, b: await o.next(BOUND, heartbeats=True)
            gc.collect()
            assert [o() is not None for o in kept] == [False, True]
        gc.collect()
        assert [o() for o in kept] == [None, None]
