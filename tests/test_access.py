"Who gets which message, for how long, and how many streams at once"
import asyncio
import gc
import re
import threading
import weakref

import pytest
from fasthtml.common import FastHTML
from hypothesis import given, settings, strategies as st
from starlette.requests import Request
from starlette.responses import StreamingResponse

from cjm_fasthtml_sse.engine import access
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.engine.patterns import Private, covers, matches
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.engine.users import Moment
from cjm_fasthtml_sse.testing import SSEClient
from tests.support import BOUND, eventually, read_all, request, tab

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

def moments(): return sum(type(o) is Moment for o in gc.get_objects())


class TestDisconnect:
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
    @pytest.mark.parametrize('kind', ['in async code', 'in its thread'])
    async def test_ends_when_it_hangs(self, kind, monkeypatch, caplog):
        manager, calls, free = SSEBroadcastManager(), [], threading.Event()
        monkeypatch.setattr(access, 'ASK_TIMEOUT', .2)
        async def later(req):
            calls.append(req)
            if len(calls) < 3: return True
            await asyncio.sleep(60)
        def plain(req):
            calls.append(req)
            if len(calls) < 3: return True
            free.wait(BOUND)
            return False
        try:
            async with tab(manager, user='ann', authorise=later if kind == 'in async code' else plain, recheck=.05) as ann:
                assert ann.status == 200
                assert await read_all(ann) == [] and len(calls) == 3
            await eventually(lambda: not manager._hub.rechecks and not manager._hub.connections, 'nothing is left')
        finally: free.set()
        assert 'failed' in caplog.text

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
