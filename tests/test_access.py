"Who gets which message and for how long, in the details that the contract leaves out"
import asyncio
import gc
import re
import tracemalloc
import weakref

import pytest
from hypothesis import given, settings, strategies as st
from starlette.requests import Request

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import matches
from cjm_fasthtml_sse.engine.patterns import Private, covers
from tests.contract.support import Site, client, following, listening

segs = st.sampled_from(['user', 'ann', 'bob', 'mail', '', 'a*', '*', '**'])
patterns = st.lists(segs, min_size=1, max_size=4).map(':'.join).filter(bool)
event_types = st.lists(st.sampled_from(['user', 'ann', 'bob', 'mail', '']), min_size=1, max_size=4).map(':'.join).filter(bool)
declared = st.sampled_from(['user:{who}:**', 'user:{who}', 'user:{who}:mail', '{a}:{b}:**', 'user:ann:{what}:**'])


@settings(max_examples=500, deadline=None)
@given(declared, st.lists(patterns, min_size=1, max_size=3), event_types)
def test_private_events_for_whom_they_name(declared, wanted, event_type):
    depth = declared[:declared.rindex('}')].count(':') + 1
    private = matches(re.sub(r'\{\w+\}', '*', declared), event_type)
    def named(p): return matches(p, event_type) and '*' not in ':'.join(p.split(':')[:depth])
    want = any(named(p) if private else matches(p, event_type) for p in wanted)
    assert covers(wanted, event_type, Private(declared).depth(event_type)) is want


async def test_disconnects_are_remembered_no_longer_than_needed():
    "Streams that stay open hold nothing of the past; a response that has yet to begin holds what it needs"
    manager = SSEBroadcastManager()
    app = Site(manager, user='ann').app
    async with listening(app), following('queue', manager):
        response = manager.stream(Request(dict(type='http', headers=[])), user='bob')
        async def cost(n):
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            for i in range(n): await manager.disconnect(f'user {i}')
            gc.collect()
            return tracemalloc.get_traced_memory()[0]-before
        tracemalloc.start()
        try:
            await cost(10)
            assert await cost(5000) > 200_000
            held = tracemalloc.get_traced_memory()[0]
            del response
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] < held-200_000, 'all that was held is let go'
            assert await cost(5000) < 100_000
        finally: tracemalloc.stop()


async def test_only_guarded_streams_keep_their_request():
    manager, kept = SSEBroadcastManager(), []
    def serving(**kw):
        async def app(scope, receive, send):
            req = Request(scope, receive)
            kept.append(weakref.ref(req))
            response = manager.stream(req, **kw)
            del req
            await response(scope, receive, send)
        return app
    async with listening(serving(), '/'), listening(serving(authorise=lambda req: True), '/'):
        gc.collect()
        assert [o() is not None for o in kept] == [False, True]
    gc.collect()
    assert [o() for o in kept] == [None, None]


@pytest.mark.parametrize('asynchronous', [False, True])
async def test_authorise_that_fails_later_ends_the_stream(asynchronous, caplog):
    "And no question is left under way"
    manager, calls = SSEBroadcastManager(), []
    def allowed(req):
        calls.append(req)
        if len(calls) > 2: raise RuntimeError('the database is away')
        return True
    async def later(req): return allowed(req)
    async with client('stream', manager, user='ann', authorise=later if asynchronous else allowed, recheck=.05) as page:
        await page.ends()
        assert page.messages == [] and len(calls) == 3 and 'failed' in caplog.text
    await asyncio.sleep(.2)
    assert len(calls) == 3 and manager.inspect() == dict(connections=[], requests=0)
