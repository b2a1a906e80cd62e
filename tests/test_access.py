"Who gets which message and for how long, in the details that the contract leaves out"
import gc
import re
import tracemalloc
import weakref

from fasthtml.common import FastHTML
from hypothesis import given, settings, strategies as st
from starlette.requests import Request

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import matches
from cjm_fasthtml_sse.engine.patterns import Private, covers
from cjm_fasthtml_sse.helpers import setup_sse
from tests.contract.support import Site, following, listening, turns

segs = st.sampled_from(['user', 'ann', 'bob', 'mail', '', 'a*', '*', '**'])
patterns = st.lists(segs, min_size=1, max_size=4).map(':'.join).filter(bool)
event_types = st.lists(st.sampled_from(['user', 'ann', 'bob', 'mail', '']), min_size=1, max_size=4).map(':'.join).filter(bool)
declared = st.sampled_from(['user:{who}:**', 'user:{who}', 'user:{who}:mail', '{a}:{b}:**', 'user:ann:{what}:**'])


@settings(max_examples=500)
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
    async def held(n):
        "Bytes that are held after `n` more users were disconnected"
        for i in range(n): await manager.disconnect(f'user {i}')
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    async with listening(Site(manager, user='ann').app), following('queue', manager):
        response = manager.stream(Request(dict(type='http', headers=[])), user='bob')
        tracemalloc.start()
        try:
            start, full = await held(10), await held(5000)
            assert full > start+200_000
            del response
            assert await held(0) < full-200_000, 'all that was held is let go'
            assert await held(5000) < start+100_000
        finally: tracemalloc.stop()


async def test_only_guarded_streams_keep_their_request():
    manager, kept = SSEBroadcastManager(), []
    def serving(**kw):
        app = FastHTML(secret_key='test')
        setup_sse(app, manager)
        @app.get('/events')
        def events(req):
            kept.append(weakref.ref(req))
            return manager.stream(req, **kw)
        return app
    async with listening(serving()), listening(serving(authorise=lambda req: True)):
        await turns()
        gc.collect()
        assert [o() is not None for o in kept] == [False, True]
    gc.collect()
    assert [o() for o in kept] == [None, None]
