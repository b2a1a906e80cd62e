"""Several processes over each store: every tab sees the same, whichever process serves it

`SSEBroadcastManager(backend=...)` in each process is all that it takes. Messages have one order and one id everywhere, and a
browser may come back to any process. What is true of one backend alone is in `test_over_redis` and `test_over_sqlite`.
"""
import asyncio
import sys
from contextlib import suppress

import pytest
from fasthtml.common import Span

from cjm_fasthtml_sse.backends.base import check_backend
from cjm_fasthtml_sse.core import SSEBroadcastManager
from tests.contract.support import BOUND, GAP, Site, client, eventually, following, listening, no_task_left, turns, within

streams = pytest.mark.parametrize('sink', ['stream', 'channel'])


class TestTogether:
    async def test_one_order_under_one_id(self, store, sink, render):
        "For elements, too: what cannot cross as it is crosses as HTML"
        async with (store.workers() as (one, two), following(sink, one, render=render) as a,
                    following('stream', two) as b, following(sink, two, render=render) as c):
            assert await one.broadcast('said', dict(n=1)) == 1
            await asyncio.gather(*[m.broadcast('n', f'{w}{n}') for n in range(50) for w, m in zip('ab', (one, two))])
            got = [await o.read(101) for o in (a, b, c)]
            assert got[0] == got[1] == got[2] and got[0][0] == ('said', dict(n=1))
            for w in 'ab': assert [d for _, d in got[0][1:] if d[0] == w] == [f'{w}{n}' for n in range(50)]
            if sink != 'queue':
                assert [e.id for e in a.messages] == [e.id for e in b.messages] == [e.id for e in c.messages]

    async def test_elements_cross(self, store):
        async with (store.workers() as (one, two), following('stream', one, render=lambda m: m['data']['item']) as a,
                    following('stream', two, render=lambda m: m['data']['item']) as b):
            await one.broadcast('said', dict(item=Span('<')))
            for c in a, b:
                await c.read()
                assert c.messages[0].data == '<span>&lt;</span>'

    @streams
    async def test_back_to_another_process(self, store, sink):
        "A browser that comes back gets what it missed, wherever it comes to"
        async with store.workers() as (one, two):
            async with following(sink, one) as c:
                await one.broadcast('n', 0)
                await c.read()
            for n in range(1, 6): await (one, two)[n % 2].broadcast('n', n)
            for m in one, two:
                async with client(sink, m, last_id=c.last_id) as back:
                    assert await back.data(5) == [1, 2, 3, 4, 5] and not back.gaps

    async def test_a_page_of_another_process(self, store):
        "Its stream goes on where the page stands"
        async with store.workers() as (one, two):
            await two.open()
            await one.broadcast('n', 0)
            after = one.cursor
            await one.broadcast('n', 1)
            async with listening(Site(two).app, **{'SSE-After': after}) as c:
                await two.broadcast('n', 2)
                assert await c.data(2) == [1, 2] and not c.gaps

    async def test_ids_that_nobody_gave(self, store):
        "Such an id is a gap at once: nobody waits for what will not come"
        async with store.workers() as (one, _):
            await one.broadcast('n', 1)
            epoch = one.cursor.partition(':')[0]
            async with within('no request waits long', 8):
                for claimed in f'{epoch}:{10**14}-0', f'{epoch}:1-{10**30}', f'{epoch}:-1', 'x'*3000:
                    async with client('stream', one, last_id=claimed) as c: assert await c.next() == (GAP, None)

    async def test_history_survives_all_processes(self, store):
        async with store.workers() as (one, two):
            at = []
            for n in range(60):
                await one.broadcast('n', n)
                at.append(one.cursor)
        async with store.workers() as (new, _):
            await new.open()
            assert [m['data'] for m in new.get_history()] == [*range(10, 60)] and new.cursor == at[-1]
            async with client('stream', new, last_id=at[29]) as c: assert await c.data(30) == [*range(30, 60)]
        async with store.workers(replay_size=20) as (small, _):
            async with client('stream', small, last_id=at[39]) as c:
                assert await c.data(20) == [*range(40, 60)] and not c.gaps
            async with client('stream', small, last_id=at[38]) as c: assert await c.next() == (GAP, None)

    @streams
    async def test_keys_cross(self, store, sink):
        "A replay has the newest of each key in every process"
        async with store.workers() as (one, two):
            await two.open()
            start = two.cursor
            for n in range(5): await one.broadcast('progress', n, key=('job', 1))
            await one.broadcast('progress', 9, key='other')
            await eventually(lambda: two.cursor == one.cursor, 'all has come')
            for m in one, two:
                async with client(sink, m, last_id=start) as c: assert await c.data(2) == [4, 9]

    @pytest.mark.parametrize('user', ['ann', 7, ('ann', 1)], ids=str)
    async def test_a_user_is_disconnected_everywhere(self, store, user):
        async with (store.workers() as (one, two), following('stream', one, user=user) as a,
                following('channel', two, user=user) as b,
                    following('stream', two, user='other') as c):
            assert await one.disconnect(user) == 1
            for o in a, b: await o.ends()
            assert not c.over and two.connection_count == 1

    async def test_counts_of_all(self, store):
        async with (store.workers() as (one, two), following('stream', one, user='ann'),
                following('channel', two, user='ann'), following('stream', two, user=('bob', 1)) as c):
            await one.broadcast('n', 1)
            await c.read()
            told = {}
            async def said():
                told.update(await one.cluster_stats())
                return told['connections'] == 3
            await eventually(said, 'all say what they have')
            assert (told['workers'], told['users']) == (2, {'ann': 2, ('bob', 1): 1})
            await two.close()
            assert (await one.cluster_stats())['workers'] == 1

    async def test_hooks_in_every_process(self, store):
        "`on_broadcast` is called where the message was sent, `on_delivery` in each process, once"
        async with store.workers() as (one, two):
            heard = {}
            for name, m in zip('ab', (one, two)):
                m.on_broadcast(lambda msg, name=name: heard.setdefault(f'sent {name}', []).append(msg['data']))
                m.on_delivery(lambda msg, name=name: heard.setdefault(name, []).append(msg['data']))
                await m.open()
            for n in range(3): await one.broadcast('n', n)
            await eventually(lambda: len(heard.get('b', [])) == 3, 'it has come')
            assert heard == {'sent a': [0, 1, 2], 'a': [0, 1, 2], 'b': [0, 1, 2]}

    async def test_a_slow_queue_delays_nobody_else(self, store):
        "Neither here nor in another process"
        async with store.workers(max_queue_size=1) as (one, two), following('stream', two) as c:
            await one.register_connection()
            await one.broadcast('n', 0)
            waiting = [one.broadcast('n', n, timeout=2.) for n in (1, 2)]
            assert await c.data(3) == [0, 1, 2] and one.connection_count == 1
            assert [await w for w in waiting] == [0, 0]

    async def test_databases_are_apart(self, store):
        async with (store.workers() as (a, _), store.other().workers() as (b, _), following('queue', a) as c,
                    following('queue', b) as d):
            await a.broadcast('n', 'a')
            await b.broadcast('n', 'b')
            assert await c.data(1) == ['a'] and await d.data(1) == ['b'] and (await a.cluster_stats())['workers'] == 1

    async def test_two_managers_of_one_place(self, store):
        "They would hear each other: the second says so, and what to write"
        one, two = SSEBroadcastManager(backend=store.address), SSEBroadcastManager(backend=store.address)
        await one.open()
        with pytest.raises(Exception, match='name='): await two.open()
        await one.close()
        await two.open()
        await two.close()

    async def test_a_script(self, store):
        "It needs no event loop, and waits until the store has it"
        async with store.workers() as (one, _), following('stream', one) as c:
            code = ('import sys\nfrom cjm_fasthtml_sse.core import SSEBroadcastManager\n'
                    'm = SSEBroadcastManager(backend=sys.argv[1])\n'
                    'for n in range(3): assert m.broadcast("n", n).result() == 0')
            script = await asyncio.create_subprocess_exec(sys.executable, '-c', code, store.address)
            assert await asyncio.wait_for(script.wait(), 30) == 0
            assert await c.data(3) == [0, 1, 2]

    async def test_what_came_before_a_command(self, store):
        "Whoever is disconnected has got what was broadcast before, and nothing of what comes after"
        async with store.workers() as (one, two):
            for n in range(10):
                async with following('stream', two, user='ann') as c:
                    await one.broadcast('before', n)
                    await one.disconnect('ann')
                    await one.broadcast('after', n)
                    await c.ends()
                    assert c.seen[-1] == ('before', n)  # What comes first may be of the last turn


class TestTheEnd:
    async def test_no_task_is_left(self, store):
        async with no_task_left(), store.workers() as (one, two), following('stream', one), following('channel', one), following('queue', two):
            await one.broadcast('n', 1)
            await one.cluster_stats()

    async def test_it_lives_on_after_close(self, store):
        async with store.workers() as (one, _):
            for n in range(3):
                await one.broadcast('n', n)
                await one.close()
            assert [m['data'] for m in one.get_history()] == [0, 1, 2]

    async def test_close_beside_broadcasts(self, store):
        "Each is sent or says that it failed; and nothing is left running"
        for turn in range(10):
            async with no_task_left(), store.workers() as (one, _):
                await one.open()
                closing = asyncio.create_task(one.close())
                await turns(turn)
                with suppress(Exception): await one.broadcast('n', turn)
                await closing

    def test_event_loops_in_succession(self, store):
        manager = SSEBroadcastManager(backend=store.address)
        async def once(n):
            async with following('stream', manager) as c:
                await manager.broadcast('n', n)
                assert await c.next() == ('n', n)
        for n in range(3): asyncio.run(once(n))
        assert manager.broadcast_threadsafe('n', 3).result() == 0


async def test_promises_of_a_backend(store):
    "What the manager relies on, by the suite that checks any backend"
    async with no_task_left(): await check_backend(store.played, timeout=BOUND)
