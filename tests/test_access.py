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
from starlette.responses import StreamingResponse

from cjm_fasthtml_sse import stream
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import Private, covers, matches
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.stream import Moment
from cjm_fasthtml_sse.testing import SSEClient
from tests.support import BOUND, eventually, following, read, read_all, request, tab

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
