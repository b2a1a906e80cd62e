"""Several processes on one Redis: every tab sees the same, whichever process serves it

`SSEBroadcastManager(backend='redis://...')` in each process is all that it takes. Messages have one order and one id
everywhere, and a browser may come back to any process. While Redis is away streams stay open; a broadcast says that it
failed, and is never repeated by itself. What Redis has lost is a gap, told to everybody. Two managers of this process
play two workers: they reach Redis under two names.
"""
import asyncio
import json
import os
import signal
from contextlib import asynccontextmanager, suppress

import pytest

from cjm_fasthtml_sse.core import SSEBroadcastManager
from tests.contract.support import (GAP, HEARTBEAT, Redis, all_live, client, eventually, following, no_task_left, rendered, until_sent, within)

pytestmark = pytest.mark.redis
streams = pytest.mark.parametrize('sink', ['stream', 'channel'])


@asynccontextmanager
async def workers(redis, database=0, **kw):
    "Two managers as two processes have them"
    both = [SSEBroadcastManager(backend=redis.url(database, host), **kw) for host in ('127.0.0.1', 'localhost')]
    try: yield both
    finally:
        for m in both: await m.close()


class Proxy:
    """Between a worker and Redis, for what goes wrong on the way; `async with`

    `holds`: what Redis answers to those who read the stream waits. `cuts`: the next message that is written reaches
    Redis, and then the connection breaks.
    """
    def __init__(self, redis):
        self.redis, self.cuts, self.tasks, self.passes = redis, False, set(), asyncio.Event()
        self.passes.set()

    @property
    def holds(self): return not self.passes.is_set()
    @holds.setter
    def holds(self, yes): self.passes.clear() if yes else self.passes.set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve_one, '127.0.0.1', 0)
        self.url = f'redis://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/0'
        return self

    async def __aexit__(self, *exc):
        self.server.close()
        for t in self.tasks: t.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def serve_one(self, reader, writer):
        there, back = await asyncio.open_connection('127.0.0.1', self.redis.port)
        reads = cut = False
        async def ask():
            nonlocal reads, cut
            while data := await reader.read(2**16):
                reads, cut = reads or b'XREAD' in data, self.cuts and b'XADD' in data
                if cut: self.cuts = False
                back.write(data)
                await back.drain()
        async def answer():
            while data := await there.read(2**16):
                if reads: await self.passes.wait()
                if cut: return
                writer.write(data)
        self.tasks |= (mine := {asyncio.create_task(ask()), asyncio.create_task(answer())})
        await asyncio.wait(mine, return_when=asyncio.FIRST_COMPLETED)
        for t in mine: t.cancel()
        for w in writer, back: w.close()


async def fails(sent, match):
    "The broadcast fails, and says `match`"
    with pytest.raises(Exception, match=match) as e: await sent
    return str(e.value)


class TestTogether:
    @streams
    async def test_back_to_one_that_lags(self, shared, sink):
        "A process that has yet to read what the browser has seen elsewhere waits for it, rather than tell a gap"
        one = SSEBroadcastManager(backend=shared.url())
        async with Proxy(shared) as proxy:
            two = SSEBroadcastManager(backend=proxy.url)
            await two.open()
            for n in range(3): await one.broadcast('n', n)
            await eventually(lambda: two.cursor == one.cursor, 'both have it')
            proxy.holds = True
            await one.broadcast('n', 3)
            back = client(sink, two, last_id=one.cursor)
            entering = asyncio.create_task(back.__aenter__())
            for _ in range(3):  # Others are let in meanwhile
                async with following(sink, two): pass
            assert two.cursor != one.cursor and not entering.done(), 'it waits'
            proxy.holds = False
            await entering
            await all_live(two, 1)
            await one.broadcast('n', 4)
            assert await back.data(1) == [4] and two.stats()['gaps'] == 0
            await back.leave()
            await two.close()
        await one.close()


class TestLost:
    @pytest.mark.parametrize('way', ['restarted empty', 'restarted without its newest', 'flushed'])
    async def test_what_redis_lost_is_told(self, own_redis, way):
        "To every tab, by a gap or the state as it is now; all processes agree on what follows"
        redis = own_redis()
        async with (workers(redis) as (one, two), following('stream', one) as a, following('channel', two) as b,
                    following('stream', two, render=rendered, snapshot=lambda: '["state", 0]') as c):
            for n in range(3): await one.broadcast('n', n)
            for o in a, b: assert await o.data(3) == [0, 1, 2]
            assert (await c.read(4))[0] == ('state', 0)
            if 'without' in way:
                redis.client.save()
                await one.broadcast('n', 3)
                for o in a, b, c: assert await o.next() == ('n', 3)
            old = one.cursor
            if way == 'flushed': redis.client.flushall()
            else:
                redis.kill()
                redis.start()
            for o in a, b: assert await o.next() == (GAP, None)
            assert await c.next() == ('state', 0)
            await eventually(lambda: one.cursor == two.cursor and one.cursor.partition(':')[0] != old.partition(':')[0], 'they agree')
            await until_sent(two, 'n', 'on')
            for o in a, b, c: assert await o.next() == ('n', 'on')
            async with client('stream', one, last_id=old) as back: assert await back.next() == (GAP, None)

    async def test_an_older_copy(self, own_redis):
        "Redis comes back without its newest entries: that is a gap, and ids from before mean nothing any more"
        redis = own_redis()
        async with workers(redis) as (one, two), following('stream', one) as a, following('channel', two) as b:
            for n in range(3): await one.broadcast('n', n)
            redis.client.save()
            for n in range(3, 6): await one.broadcast('n', n)
            for o in a, b: assert await o.data(6) == [*range(6)]
            old = one.cursor
            redis.kill()
            redis.start()
            for o in a, b: await eventually(lambda o=o: o.gaps, 'it is told')
            await eventually(lambda: one.cursor == two.cursor, 'they agree')
            assert one.cursor.partition(':')[0] != old.partition(':')[0]
            assert [m['data'] for m in one.get_history()] == [*range(6)], 'nothing twice'
            async with client('stream', two, last_id=old) as back: assert await back.next() == (GAP, None)

    async def test_what_was_trimmed_unread_is_told(self, shared):
        "As where another program sends many at once and keeps few of them"
        async with workers(shared) as (one, _), following('stream', one) as c:
            await one.broadcast('n', 0)
            assert await c.data(1) == [0]
            with shared.client.pipeline() as p:
                for n in range(20):
                    p.xadd('sse', dict(m=json.dumps(dict(type='n', data=n))), maxlen=5, approximate=False)
                p.execute()
            await eventually(lambda: c.gaps or len(c.messages) > 20, 'it is told')
            assert c.gaps == 1

    async def test_trimmed_behind_its_readers_is_no_gap(self, shared):
        "Everything was read, so nothing is missing, however little is left"
        async with workers(shared) as (one, two), following('stream', one) as a, following('stream', two) as b:
            for n in range(30):
                shared.client.xadd('sse', dict(m=json.dumps(dict(type='n', data=n))), maxlen=1, approximate=False)
                for c in a, b: assert await c.data(1) == [n]
            shared.client.xtrim('sse', maxlen=0)
            await two.broadcast('end', 0)
            for c in a, b: assert await c.next() == ('end', 0) and not c.gaps

    async def test_entries_of_other_programs(self, shared):
        "What makes no sense is passed over, and what follows comes"
        async with workers(shared) as (one, _), following('stream', one) as c:
            for entry in dict(x='y'), dict(m='{'), dict(m='7'), dict(m='{"type": ""}'), dict(m=b'\xff'):
                shared.client.xadd('sse', entry)
            await one.broadcast('n', 1)
            assert await c.next() == ('n', 1)


class TestVersions:
    """Processes of two versions share a Redis during a rolling deploy: they understand each other, or say so

    The entries of another version are written by hand, as that version would write them.
    """
    def write(self, redis, fields, **entry):
        redis.client.xadd('sse', dict(m=json.dumps(fields), **entry))

    async def test_the_version_before(self, shared):
        "And its commands; an entry without a version is of the first one"
        async with workers(shared) as (one, two), following('stream', one) as a, following('stream', two, user='ann') as b:
            self.write(shared, dict(type='n', timestamp='2026-01-01T00:00:00+00:00', data=1), k='"key"', p='another:7')
            for c in a, b: assert await c.next() == ('n', 1) and not c.gaps
            self.write(shared, dict(type='n', data=2), v='1')
            for c in a, b: assert await c.next() == ('n', 2) and not c.gaps
            self.write(shared, dict(disconnect='ann'), p='another:8')
            await b.ends()
            assert not a.over

    async def test_a_newer_message_is_a_gap(self, shared, caplog):
        "It is skipped with one line that says what to do, every browser is told, and all goes on"
        async with workers(shared) as (one, two), following('stream', one) as a, following('channel', two) as b:
            await one.broadcast('n', 1)
            for _ in range(3): self.write(shared, dict(type='n', payload='x'), v='99')
            await eventually(lambda: a.gaps and b.gaps, 'it is told')
            await two.broadcast('n', 2)
            for c in a, b: await eventually(lambda c=c: ('n', 2) in c.seen, 'it goes on')
            assert [d for t, d in a.seen if t == 'n'] == [1, 2]
            assert sum('version 99' in r.message and 'Update' in r.message for r in caplog.records) == 1
        async with workers(shared) as (late, _):
            await late.open()
            assert [m['data'] for m in late.get_history()] == [2], 'what is before has a gap behind it'

    async def test_a_newer_command_is_no_gap(self, shared, caplog):
        "No message is lost with it"
        async with workers(shared) as (one, _), following('stream', one, user='ann') as c:
            self.write(shared, dict(command='disconnect', value='ann', v=98), v='98')
            await one.broadcast('n', 1)
            assert await c.next() == ('n', 1) and not c.gaps
            assert sum('version 98' in r.message for r in caplog.records) == 1

    async def test_commands_that_nobody_knows(self, shared, caplog):
        "They are ignored with one line, and what follows comes"
        async with workers(shared) as (one, _), following('stream', one, user='ann') as c:
            for fields in dict(command='dance', v=1), dict(command='disconnect', value='ann', v=99): self.write(shared, fields)
            await one.broadcast('n', 1)
            assert await c.next() == ('n', 1) and not c.over
            await one.disconnect('ann')
            await c.ends()
            assert sum('command' in r.message for r in caplog.records) == 1

    async def test_reports(self, shared, caplog):
        "Of the version before, one is counted; of a newer one it is left out, with one line"
        async with workers(shared) as (one, _):
            await one.open()
            for name, report in dict(old=dict(users=[['ann', 2]], stats=dict(connections=2)), new=dict(v=99, load=[1])).items():
                shared.client.set(f'sse:worker:{name}', json.dumps(report))
                shared.client.sadd('sse:workers', name)
            for _ in range(2):
                told = await one.cluster_stats()
                assert (told['workers'], told['connections'], told['users']) == (2, 2, dict(ann=2))
            assert sum('version 99' in r.message for r in caplog.records) == 1


class TestTheEnd:
    async def test_nothing_is_left(self, shared):
        "No task and no connection to Redis; two are all that a process ever has, however many streams"
        def open_ones(): return len(shared.client.client_list())-1
        before = open_ones()
        async with no_task_left():
            async with (workers(shared) as (one, two), following('stream', one), following('channel', one),
                        following('queue', one)):
                await one.broadcast('n', 1)
                await one.cluster_stats()
                assert open_ones() <= before+4
        await eventually(lambda: open_ones() <= before, 'the connections end')

    async def test_the_end_while_redis_is_gone(self, own_redis):
        redis = own_redis()
        async with no_task_left(), workers(redis) as (one, two), following('stream', one) as c:
            await two.open()
            redis.kill()
            async with within('it ends in time', 5):
                await one.close()
                await two.close()
            await c.ends()
            assert not c.told_to_stay


class TestAway:
    @pytest.mark.parametrize('away', ['killed', 'hangs'])
    async def test_streams_stay_open(self, own_redis, away):
        "They get their heartbeats, broadcasts say that they failed, and everything goes on without a gap"
        redis = own_redis(*Redis.durable)
        async with (workers(redis, heartbeat=.05) as (one, two), following('stream', one) as a,
                    following('channel', two) as b):
            await one.broadcast('n', 0)
            for c in a, b: await c.read()
            if away == 'killed': redis.kill()
            else: os.kill(redis.process.pid, signal.SIGSTOP)
            errors = [await fails(m.broadcast('n', 'lost'), 'sent|arrived') for m in (one, two)]
            counts = [len(c.events) for c in (a, b)]
            for c, n in zip((a, b), counts): await eventually(lambda c=c, n=n: len(c.events) >= n+5, 'heartbeats')
            assert {e.event for c, n in zip((a, b), counts) for e in c.events[n:]} == {HEARTBEAT}
            assert not (a.over or b.over)
            if away == 'killed': redis.start()
            else: os.kill(redis.process.pid, signal.SIGCONT)
            await until_sent(one, 'n', 1)
            for c in a, b:
                await eventually(lambda c=c: ('n', 1) in c.seen or c.gaps, 'it comes')
                lost = sum(s == ('n', 'lost') for s in c.seen)
                # One that was not sent never comes, and no other comes twice
                assert not c.gaps and lost <= sum('may or may not' in e for e in errors)

    async def test_unknown_outcome_is_never_repeated(self, own_redis):
        "Redis hangs: a broadcast fails in time, says whether it may have arrived, and comes once at most"
        redis = own_redis(*Redis.durable)
        async with workers(redis) as (one, _), following('stream', one) as c:
            await one.broadcast('n', 0)
            os.kill(redis.process.pid, signal.SIGSTOP)
            async with within('it fails in time'):
                said = [await fails(one.broadcast('n', n), 'was not sent|may or may not have arrived') for n in (1, 2)]
            os.kill(redis.process.pid, signal.SIGCONT)
            await until_sent(one, 'n', 3)
            await eventually(lambda: ('n', 3) in c.seen, 'it comes')
            counts = [c.seen.count(('n', n)) for n in (1, 2)]
            assert all(n <= ('may or may not' in o) for n, o in zip(counts, said)), f'{counts} {said}'
            assert c.seen.count(('n', 3)) == 1

    async def test_cut_off_before_the_answer(self, shared):
        "Redis has taken a message, and the connection breaks: it is not sent a second time"
        async with Proxy(shared) as proxy:
            one = SSEBroadcastManager(backend=proxy.url)
            async with following('stream', one) as c:
                for n in range(5):
                    proxy.cuts = True
                    with suppress(Exception): await one.broadcast('n', n)
                    await one.broadcast('end', n)
                    await eventually(lambda n=n: ('end', n) in c.seen, 'the end comes')
                assert c.seen == [(t, n) for n in range(5) for t in ('n', 'end')] and not c.gaps
            await one.close()

    async def test_killed_again_and_again(self, own_redis):
        "What was acknowledged is not lost, nothing comes twice, and each writer's order is kept"
        redis = own_redis(*Redis.durable)
        async with workers(redis) as (one, two), following('stream', one) as a, following('channel', two) as b:
            acknowledged, uncertain, stop = [], [], False
            async def write(m, w):
                n = 0
                while not stop:
                    data, n = f'{w}{n}', n+1
                    try: await m.broadcast('n', data)
                    except Exception as e:
                        if 'may or may not' in str(e): uncertain.append(data)
                    else: acknowledged.append(data)
                    await asyncio.sleep(.001)  # Between two messages
            writers = [asyncio.create_task(write(m, w)) for m, w in ((one, 'x'), (two, 'y'))]
            for turn in range(3):
                n = len(acknowledged)
                await eventually(lambda n=n: len(acknowledged) > n+30, 'broadcasts get through')
                redis.kill()
                await asyncio.to_thread(redis.start)
            n = len(acknowledged)
            await eventually(lambda: len(acknowledged) > n+30, 'broadcasts get through again')
            stop = True
            await asyncio.gather(*writers)
            await one.broadcast('end', 0)
            for c in a, b: await eventually(lambda c=c: ('end', 0) in c.seen, 'the end comes')
            assert a.seen == b.seen and not a.gaps and not b.gaps
            seen = [d for t, d in a.seen if t == 'n']
            assert len({*seen}) == len(seen) and {*acknowledged} <= {*seen} <= {*acknowledged, *uncertain}
            for w in 'xy': assert (mine := [int(d[1:]) for d in seen if d[0] == w]) == sorted(mine)

    async def test_no_redis_at_the_beginning(self, own_redis):
        "A stream is answered 503 with `Retry-After`, a page has no place, and all works once there is a Redis"
        redis = own_redis()
        redis.kill()
        async with workers(redis) as (one, _):
            assert one.cursor == ''
            statuses = []
            async def visit():
                async with client('stream', one) as c: statuses.append((c.status, 'retry-after' in c.exchange.headers))
            await asyncio.gather(*[visit() for _ in range(10)])
            assert {*statuses} == {(503, True)}
            await fails(one.broadcast('n', 1), 'redis|Redis')
            redis.start()
            async with within('it works'):
                while True:
                    async with client('stream', one) as c:
                        if c.status == 200:
                            await all_live(one, 1)
                            assert await one.broadcast('n', 2) == 1 and await c.next() == ('n', 2)
                            break
                    await asyncio.sleep(.05)  # A browser waits before it comes back

    async def test_a_password_is_in_no_error(self, shared):
        m = SSEBroadcastManager(backend=f'redis://:secret@127.0.0.1:{shared.port}/0')
        assert 'secret' not in await fails(m.open(), '.') and 'secret' not in repr(m.connections)
        m = SSEBroadcastManager(backend='redis://:secret@127.0.0.1:1/0')
        assert 'secret' not in await fails(m.broadcast('n', 1), '.')
