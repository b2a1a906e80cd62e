"Who gets which message, for how long, and how many streams at once"
import re

import pytest
from fastcore.xml import Li
from hypothesis import given, settings, strategies as st

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import Private, covers, matches
from tests.support import eventually, following, read, read_all, tab

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
