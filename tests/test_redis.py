"""The Redis backend beyond the contract: what crosses, addresses and secrets, scripts and forks, losses, starts that fail

What several processes with a Redis owe their browsers stands in `contract/test_over_redis.py`. Here most tests work on
the backend itself: a `Process` is a backend, and what it delivers.
"""
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from fastcore.basics import NotStr
from fastcore.xml import Span
from fasthtml.common import FastHTML
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import Server, free_port, uvicorn

from cjm_fasthtml_sse.backends import redis_connection, redis_reader
from cjm_fasthtml_sse.backends.base import check_backend
from cjm_fasthtml_sse.backends.packing import DataError, pack, unpack
from cjm_fasthtml_sse.backends.redis import Publisher, RedisBackend
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard
from cjm_fasthtml_sse.engine.messages import BackendError
from cjm_fasthtml_sse.engine.render import to_html
from cjm_fasthtml_sse.engine.wire import FieldError
from cjm_fasthtml_sse.progress import setup_progress
from cjm_fasthtml_sse.testing import SSEClient
from tests.contract.support import BOUND, Redis, client, eventually, following, no_task_left, turns
from tests.contract.test_over_redis import Proxy
from tests.support import read_to

BINARIES = [b for b in ('redis-server', 'valkey-server') if shutil.which(b)]
pytestmark = [pytest.mark.redis, pytest.mark.skipif(not BINARIES, reason='needs redis-server or valkey-server')]
AWAY = 'redis://127.0.0.1:1'


@pytest.fixture
def redises(tmp_path):
    "Starts servers, and ends them after the test"
    with ExitStack() as stack:
        def start(*args, binary=None):
            folder = tmp_path/f'redis{len([*tmp_path.iterdir()])}'
            folder.mkdir()
            server = Redis(folder, *args)
            if binary: server.binary = shutil.which(binary)
            stack.callback(server.kill)
            return server.start()
        yield start


@pytest.fixture
def server(redises): return redises()


class OtherProcess(RedisBackend):
    "Plays one of several processes: two managers of one process may not share an address"
    address = None


@asynccontextmanager
async def managers(url, n=2, **kw):
    "Managers that share a Redis; `kw` goes to their backends"
    found = [SSEBroadcastManager(backend=OtherProcess(url, **kw)) for _ in range(n)]
    try: yield found
    finally:
        for m in found: await m.close()


class Process:
    "A backend, and what it delivers; `async with`. While `gate` is not set it delivers nothing"
    def __init__(self, url, **kw):
        self.backend, self.records, self.renewals, self.gate = RedisBackend(url, **kw), [], [], asyncio.Event()
        self.gate.set()

    async def __aenter__(self):
        await self.backend.start(1000, self.deliver, self.renew)
        return self

    async def __aexit__(self, *exc):
        self.gate.set()
        await self.backend.stop()

    async def deliver(self, record):
        await self.gate.wait()
        self.records.append(record)
        return 1

    def renew(self, origin, records): self.renewals.append((origin, [r.fields.get('data') for r in records]))

    async def publish(self, data, key=None): return await self.backend.publish(dict(type='n', timestamp='', data=data), key)

    @property
    def data(self): return [r.fields['data'] for r in self.records]

    async def gets(self, *data): await eventually(lambda: self.data == [*data], f'{data}, not {self.data}')


def stored(server):
    "The data of the messages in the stream"
    return [m['data'] for _, e in server.client.xrange('sse') if 'type' in (m := json.loads(e[b'm']))]


def raises(error):
    "A function that does just that"
    def f(*args): raise error
    return f


class TestPacking:
    plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(codec='utf-8')), lambda inner: st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(['$html', '$dict', '$x', 'a']), inner, max_size=3), max_leaves=20)

    @given(plain)
    @settings(max_examples=300, deadline=None)
    def test_plain_data_stays(self, data):
        "Whatever its keys: nothing from outside becomes HTML"
        def kinds(o):
            yield type(o)
            for x in (o.values() if isinstance(o, dict) else o if isinstance(o, list) else ()): yield from kinds(x)
        got = unpack(pack(data).encode())
        assert got == data and NotStr not in kinds(got)

    def test_other_values_become_json(self):
        @dataclass
        class Point: x: int; y: date
        class Own:
            def __ft__(self): return Span('own')
        class Safe(str):
            def __html__(self): return str(self)
        got = unpack(pack(dict(p=Point(1, date(2030, 1, 2)), u=uuid.UUID(int=5), d=Decimal('1.50'), path=Path('/a'), s={2, 1},
                               t=(1,), own=Own(), safe=Safe('<b>'), raw=NotStr('<i>'))))
        assert [to_html([got.pop(k)]) for k in ('own', 'safe', 'raw')] == ['<span>own</span>', '<b>', '<i>']
        assert got == dict(p=dict(x=1, y='2030-01-02'), u=str(uuid.UUID(int=5)), d='1.50', path='/a', s=[1, 2], t=[1])

    async def test_refused_at_the_call(self, server):
        "The error names the place, and nothing is sent"
        loop = {}
        loop['self'] = loop
        async with managers(server.url(), 1) as (manager,):
            await manager.open()
            before = server.client.xlen('sse')
            for data, key, place in [(dict(user=dict(avatar=object())), None, r"`data\['user'\]\['avatar'\]`"),
                    ([1, float('inf')], None, r'`data\[1\]`'), (loop, None, 'nested too deeply'),
                    (dict(a='\udfff'), None, r"`data\['a'\]`"), (1, (1, object()), r'`key\[1\]`')]:
                with pytest.raises(DataError, match=place): await manager.broadcast('n', data, key=key)
                with pytest.raises(DataError, match=place): Publisher(server.url()).broadcast('n', data, key)
            with pytest.raises(FieldError): Publisher(server.url()).broadcast('a\nb', 1)
            assert server.client.xlen('sse') == before

    async def test_keys_that_become_objects(self, server):
        "A dataclass is hashable, and stays so in every process"
        @dataclass(frozen=True)
        class Place: row: int; col: int
        async with Process(server.url()) as one, Process(server.url()) as two:
            for key in Place(1, 2), ('x', Place(1, 2)), Place(1, 2): await one.publish(0, key)
            with Publisher(server.url()) as p: await asyncio.to_thread(p.broadcast, 'n', 0, Place(1, 2))
            for o in one, two: await o.gets(0, 0, 0, 0)
            keys = [r.key for r in one.records]
            assert keys == [r.key for r in two.records] and keys[0] == keys[2] == keys[3] and len({*keys}) == 2


class TestCarrying:
    @pytest.mark.parametrize('binary', BINARIES)
    async def test_the_suite_of_all_backends(self, redises, binary):
        redis = redises(binary=binary)
        async with no_task_left(): await check_backend(lambda: RedisBackend(redis.url()))
        await eventually(lambda: len(redis.client.client_list()) == 1, 'the connections end')

    async def test_two_begin_on_nothing(self, server):
        "They agree on the id of nothing"
        async with managers(server.url()) as (one, two):
            await asyncio.gather(one.open(), two.open())
            assert one.cursor == two.cursor
            await one.broadcast('n', 1)
            async with managers(server.url(), 1) as (late,):
                async with client('stream', late, last_id=f"{one.cursor.partition(':')[0]}:0-1") as c:
                    assert await c.data(1) == [1] and not c.gaps

    async def test_names_are_apart(self, server):
        async with Process(server.url(), name='shop') as shop, Process(server.url(), name='blog') as blog:
            await shop.publish('shop')
            await blog.publish('blog')
            await asyncio.to_thread(Publisher(server.url(), name='blog').broadcast, 'n', 'script')
            await blog.gets('blog', 'script')
            await shop.gets('shop')
            assert len(await shop.backend.poll_workers()) == 1

    async def test_length_is_bounded(self, server):
        async with Process(server.url(), max_length=200) as one:
            for _ in range(10): await asyncio.gather(*[one.publish(n) for n in range(100)])
            assert 200 <= server.client.xlen('sse') <= 400

    async def test_age_is_bounded(self, server, monkeypatch):
        "The newest entry stays, and whoever saw an older one is told of a gap"
        for name in 'MAINTAIN_INTERVAL', 'TRIM_INTERVAL': monkeypatch.setattr(redis_reader, name, .05)
        async with managers(server.url(), 1, max_age=.2) as (m,):
            for n in range(3): await m.broadcast('n', n)
            await eventually(lambda: server.client.xlen('sse') == 1, 'old entries are trimmed')
            assert stored(server) == [2]
            async with client('stream', m, last_id=f"{m.cursor.partition(':')[0]}:0-0") as c: await eventually(lambda: c.gaps)

    async def test_many_share_a_question(self, server):
        "Thousands return at once with ids that are not known here; who claims what Redis does not know need not wait"
        def asked(): return server.client.info('commandstats').get('cmdstat_xrevrange', dict(calls=0))['calls']
        async with Process(server.url()) as quick, Process(server.url()) as slow:
            slow.gate.clear()
            for n in range(3): await quick.publish(n)
            last = quick.records[-1].id
            before,unknown = asked(),[]
            async def never():
                await slow.backend.wait_for(f"{last.partition(':')[0]}:{10**14}-0")
                unknown.append(slow.data)
            known = [asyncio.create_task(slow.backend.wait_for(last)) for _ in range(1000)]
            await asyncio.gather(*[never() for _ in range(1000)])
            slow.gate.set()
            await asyncio.gather(*known)
            assert slow.data == [0, 1, 2] and unknown == [[]]*1000 and asked()-before < 20

    async def test_cut_off_is_no_gap(self, server):
        "A worker that can't read what a browser has seen elsewhere answers 503: nothing is lost"
        async with Proxy(server) as proxy, managers(server.url(), 1) as (one,), managers(proxy.url, 1) as (cut_off,):
            await cut_off.open()
            proxy.holds = True
            await one.broadcast('n', 1)
            async with client('stream', cut_off, last_id=one.cursor) as c:
                assert (c.status, c.exchange.headers['retry-after']) == (503, '3')
            proxy.holds = False
            await eventually(lambda: cut_off.cursor == one.cursor, 'it reads on')
            async with client('stream', cut_off, last_id=one.cursor) as c:
                await one.broadcast('n', 2)
                assert await c.data(1) == [2] and not c.gaps

    async def test_cancelled_broadcasts(self, server):
        "They may arrive, once; the others do"
        async with Process(server.url()) as one:
            tasks = [asyncio.create_task(one.publish(n)) for n in range(20)]
            await asyncio.sleep(0)
            for t in tasks[::2]: t.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await one.publish('end')
            assert {*range(1, 20, 2), 'end'} <= {*one.data} and len(one.data) == len({*one.data})

    async def test_a_cancelled_reader(self, server):
        "It starts again with the next broadcast"
        async with Process(server.url()) as one:
            for t in asyncio.all_tasks()-{asyncio.current_task()}: t.cancel()
            await asyncio.sleep(0)
            assert await one.publish(1) == 1 and one.data == [1]


class TestLosses:
    async def test_newest_entries_lost(self, redises):
        "Redis comes back from an older copy: all processes agree on a new epoch"
        redis = redises()
        async with Process(redis.url()) as one, Process(redis.url()) as two:
            for n in range(3): await one.publish(n)
            redis.client.save()
            for n in range(3, 6): await one.publish(n)
            for o in one, two: await o.gets(*range(6))
            old = one.records[-1].id.partition(':')[0]
            redis.kill()
            redis.start()
            for o in one, two: await eventually(lambda o=o: len(o.renewals) > 1, 'it is told')
            assert one.renewals[-1] == two.renewals[-1] and one.renewals[-1][1] == [0, 1, 2]
            await two.publish('on')
            for o in one, two: await o.gets(*range(6), 'on')
            assert not one.records[-1].id.startswith(old) and one.records[-1].id == two.records[-1].id

    @pytest.mark.parametrize('trim', [lambda r: r.xtrim('sse', maxlen=5, approximate=False),
        lambda r: r.xadd('sse', dict(m='{"type": "n", "data": 20}'), maxlen=1, approximate=False),
        lambda r: r.xtrim('sse', minid=r.xrevrange('sse', count=3)[-1][0], approximate=False)], ids=['by hand', 'by another', 'by age'])
    async def test_dropped_before_it_was_read(self, server, trim):
        "The slow process is told, and goes on with what is left; the other one misses nothing"
        async with Process(server.url()) as quick, Process(server.url()) as slow:
            slow.gate.clear()
            await quick.publish(-1)
            await asyncio.sleep(.1)  # `slow` has read it, and delivers
            for n in range(20): await quick.publish(n)
            trim(server.client)
            left = stored(server)
            slow.gate.set()
            await eventually(lambda: len(slow.renewals) == 2, 'it is told')
            await quick.publish('end')
            await eventually(lambda: slow.data[-1] == 'end')
            assert slow.renewals[-1][1] == left and slow.data == [-1, 'end'] and len(quick.renewals) == 1

    async def test_a_server_that_does_not_count(self, server, monkeypatch):
        "Redis 6: in doubt a gap is told"
        known = redis_reader.stream_info
        def uncounted(info, name, default): return default if name == 'entries-added' else known(info, name, default)
        monkeypatch.setattr(redis_reader, 'stream_info', uncounted)
        async with Process(server.url()) as one:
            for n in range(150): await one.publish(n)
            assert len(one.renewals) == 1
            server.client.xadd('sse', dict(m='{"type": "n"}'), maxlen=1, approximate=False)
            await eventually(lambda: len(one.renewals) > 1, 'it is told')


class TestReports:
    async def test_nonsense_is_passed_over(self, server, caplog):
        "Anybody may write into Redis. It is logged once, and one that expires is counted no more"
        bad = ['', '{', 'null', '7', '[]', '{}', b'\xff\xfe', '['*100_000, '{"users": 7, "stats": {}}',
            '{"users": [], "stats": []}', '{"users": ["ann"], "stats": {}}', '{"users": [[{"a": 1}, 1]], "stats": {}}',
            '{"users": [["ann", "x"]], "stats": {}}', '{"users": [], "stats": {"connections": "many"}}',
            '{"users": [], "stats": {"backlog": NaN}}', '{"users": [], "stats": {"bytes": -1}}']
        async with managers(server.url()) as (one, two):
            for m in (one, two): await m.open()
            for i, text in enumerate(bad):
                server.client.set(f'sse:worker:{i}', text)
                server.client.sadd('sse:workers', str(i))
            server.client.sadd('sse:worker:list', 'x')
            server.client.sadd('sse:workers', 'list', b'\xff')
            server.client.set('sse:worker:old', '{"users": [["ann", 2]], "stats": {"connections": 2}}', px=1000)
            server.client.sadd('sse:workers', 'old')
            told = await one.cluster_stats()
            assert (told['workers'], told['connections'], told['users']) == (3, 2, dict(ann=2))
            while (told := await one.cluster_stats())['workers'] == 3: await asyncio.sleep(.05)
            assert (told['workers'], told['users']) == (2, {})
        assert sum('is ignored' in r.message for r in caplog.records) == 1

    async def test_counting_during_the_end(self, server):
        "It fails as the backend fails, or counts"
        for turn in range(0, 40, 3):
            async with managers(server.url(), 1) as (m,):
                await m.open()
                counting = asyncio.create_task(m.cluster_stats())
                await turns(turn)
                await m.close()
                with suppress(BackendError): assert (await counting)['workers'] == 1


class TestScripts:
    def test_a_publisher_is_light(self, server):
        "It imports neither FastHTML nor the manager"
        code = ('import sys\nfrom cjm_fasthtml_sse.backends.redis import Publisher\nwith Publisher(sys.argv[1]) as p:\n'
                '    for n in range(2): p.broadcast("n", n)\n'
                'assert "fasthtml" not in sys.modules and "cjm_fasthtml_sse.core" not in sys.modules')
        subprocess.run([sys.executable, '-c', code, server.url()], check=True, timeout=30)
        assert stored(server) == [0, 1]

    @pytest.mark.parametrize('asynchronous', [False, True])
    def test_hooks_without_a_loop(self, server, asynchronous):
        "Neither the message nor what its hook broadcasts is lost, whether the hook awaits it or not"
        manager = SSEBroadcastManager(backend=server.url())
        def audit(m):
            if m['type'] == 'n': manager.broadcast('called', m['data'])
        async def later(m):
            await asyncio.sleep(0)
            audit(m)
            if m['type'] == 'n': await manager.broadcast('awaited', m['data'])
        manager.on_broadcast(later if asynchronous else audit)
        assert manager.broadcast('n', 1).result() == 0 and asyncio.run(manager.broadcast('n', 2)) == 0
        types = [json.loads(e[b'm'])['type'] for _, e in server.client.xrange('sse')]
        assert sorted(types) == ['awaited']*2*asynchronous+['called']*2+['n']*2

    def test_what_became_of_a_broadcast(self, redises, monkeypatch):
        "A broken connection does not spoil the next one, and nothing is sent twice"
        redis = redises(*Redis.durable)
        with Publisher(redis.url(), timeout=3.) as p:
            p.broadcast('n', 1)
            redis.kill()
            with pytest.raises(BackendError, match='was not sent'): p.broadcast('n', 2)
            redis.start()
            p.broadcast('n', 3)
            redis.kill(signal.SIGTERM)
            redis.start()
            p.broadcast('n', 4)
            assert stored(redis) == [1, 3, 4]
            monkeypatch.setattr(redis_connection, 'FRESH', 1e9)  # No `PING` before the next one
            os.kill(redis.process.pid, signal.SIGSTOP)
            start = time.monotonic()
            with pytest.raises(BackendError, match='may or may not'): p.broadcast('n', 5)
            assert time.monotonic()-start < BOUND
            os.kill(redis.process.pid, signal.SIGCONT)

    @pytest.mark.parametrize('state', ['new', 'in use', 'away'])
    def test_the_timeout_of_many_threads(self, redises, state, monkeypatch):
        "They share one connection, and none waits for all the others"
        redis = redises()
        def timed(f, *args):
            start,raised = time.monotonic(),None
            try: f(*args)
            except BackendError as e: raised = e
            return time.monotonic()-start,raised
        with Publisher(redis.url(), timeout=2.) as p, ThreadPoolExecutor(10) as pool:
            if state == 'in use':
                p.broadcast('n', 'first')
                monkeypatch.setattr(redis_connection, 'FRESH', 1e9)
            if state == 'away': redis.kill()
            else: os.kill(redis.process.pid, signal.SIGSTOP)
            took = [*pool.map(lambda n: timed(p.broadcast, 'n', n), range(10))]
            assert all(e for _, e in took) and max(secs for secs, _ in took) < 4
            if state == 'in use': assert sum('may or may not' in str(e) for _, e in took) == 1, 'the others never began'
            if state == 'away': return
            os.kill(redis.process.pid, signal.SIGCONT)
            monkeypatch.undo()
            with Publisher(redis.url(), timeout=BOUND) as again: [*pool.map(lambda n: again.broadcast('n', f'again {n}'), range(10))]
            sent = stored(redis)
            assert {f'again {n}' for n in range(10)} <= {*sent} and len(sent) == len({*sent})

    @pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
    @pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork')
    def test_a_fork(self, server):
        "The child has a connection of its own, even where a thread of the parent was using the parent's"
        def fork_and_publish(text):
            if not (pid := os.fork()):
                signal.alarm(int(BOUND))  # It ends in any case
                try:
                    p.broadcast('n', text)
                    os._exit(0)
                finally: os._exit(1)
            return pid
        with Publisher(server.url(), timeout=BOUND) as p:
            p.broadcast('n', 'parent')
            made = server.client.info('stats')['total_connections_received']
            assert os.waitpid(fork_and_publish('child'), 0)[1] == 0
            p.broadcast('n', 'parent')
            assert server.client.info('stats')['total_connections_received'] == made+1
            os.kill(server.process.pid, signal.SIGSTOP)
            thread = threading.Thread(target=p.broadcast, args=('n', 'thread'))
            thread.start()
            time.sleep(.1)
            pid = fork_and_publish('busy child')
            os.kill(server.process.pid, signal.SIGCONT)
            assert os.waitpid(pid, 0)[1] == 0
            thread.join(BOUND)
            assert sorted(stored(server)) == ['busy child', 'child', 'parent', 'parent', 'thread']


@asynccontextmanager
async def answering(answer):
    "A server that is no Redis: it answers whatever it is asked with `answer`, or with nothing"
    async def serve(reader, writer):
        with suppress(OSError):
            while await reader.read(4096):
                if answer: writer.write(answer*5)
        writer.close()
    s = await asyncio.start_server(serve, '127.0.0.1', 0)
    try: yield f'redis://127.0.0.1:{s.sockets[0].getsockname()[1]}'
    finally: s.close()


class TestStarts:
    async def fails(self, url, why, timeout=.25):
        "A start, a broadcast and a script fail in time, and the error says `why`"
        start = time.monotonic()
        async with no_task_left():
            for begin in (lambda m: m.open(), lambda m: m.broadcast('n', 1),
                          lambda m: asyncio.to_thread(Publisher(url, timeout=timeout).broadcast, 'n', 1)):
                m = SSEBroadcastManager(backend=RedisBackend(url, timeout=timeout))
                with pytest.raises(BackendError, match=why) as e: await begin(m)
                assert 'secret' not in str(e.value)
        assert time.monotonic()-start < 12*timeout

    async def test_addresses_that_are_wrong(self, redises):
        locked = redises()
        locked.client.config_set('requirepass', 'right')
        at = f'127.0.0.1:{locked.port}'
        for url,why in [('redis://:secret@127.0.0.1:1', 'could not be reached'),
                ('redis://no-such-host.invalid', 'could not be reached|no answer'),
                (f'redis://:secret@{at}', 'refused.*(invalid|WRONGPASS)'),
                (f'redis://{at}', 'refused.*Authentication required'), (f'redis://:right@{at}/9999', 'refused.*out of range'),
                (f'rediss://:secret@{at}', 'could not be reached|broke'), ('redis://:sec#ret/secret@x:y', 'not valid'),
                ('redis://localhost?nonsense=1', 'unknown.*nonsense')]:
            await self.fails(url, why)

    @pytest.mark.parametrize('answer,why', [(b'HTTP/1.1 400 Bad Request\r\n\r\n', 'refused|broke'), (b'', 'no answer|Timeout'),
        (b'-ERR what?\r\n', r'refused.*what\?')], ids=['http', 'silent', 'error'])
    async def test_a_server_that_is_no_redis(self, answer, why):
        async with answering(answer) as url: await self.fails(url, why)

    @pytest.mark.parametrize('url', ['redis://ann:HUSH/WORD@host', 'redis://:HUSH/WORD@host:1', 'redis://ann:77123/WORD@host',
        'redis://:HUSH#WORD@host', 'redis://:HUSH?WORD@host', 'redis://:[HUSH@host', 'redis://host:HUSH',
        f'{AWAY}?password=HUSH', f'{AWAY}?username=ann&password=HUSH&nonsense=1', f'{AWAY}/0?password=HUSH&db=x',
        'unix://ann:HUSH@/no/such/socket', 'unix:///no/such/socket?password=HUSH', 'unix:///no/such/socket?password=HUSH&db=x',
        'redis://:HUSH@127.0.0.1:1', 'valkeys://ann:HUSH@127.0.0.1:1', 'redis://HU\u2100SH:WORD@host', 'HUSH@host', '//ann:HUSH@host',
        'http://ann:HUSH@host'])
    async def test_a_password_is_in_no_error(self, url):
        "Neither in the error nor in what it came from, nor in a traceback, nor in what a backend is called"
        said = []
        async def begin():
            said.append(repr(backend := RedisBackend(url, timeout=.2)))
            await SSEBroadcastManager(backend=backend).open()
        for f in begin(), asyncio.to_thread(lambda: Publisher(url, timeout=.2).broadcast('n', 1)):
            with pytest.raises((ValueError, BackendError)) as e: await f
            said += [*traceback.format_exception(e.value), repr(e.value)]
        assert not [x for x in said if any(word in x for word in ('HUSH', 'WORD', '77123', '\u2100'))]

    async def test_what_redis_refuses(self, server):
        "A key of another kind, a user without rights, a full memory"
        server.client.set('sse', 'taken')
        await self.fails(server.url(), 'refused.*(WRONGTYPE|wrong kind)', 1.)
        server.client.execute_command('ACL', 'SETUSER', 'ann', 'on', '>pw', '+@read', '+ping', '+select', '~*')
        server.client.delete('sse')
        await self.fails(server.url().replace('//', '//ann:pw@'), 'refused.*permissions', 1.)
        async with Process(server.url()) as one:
            await one.publish(1)
            server.client.config_set('maxmemory', 1)
            with pytest.raises(BackendError, match='refused.*maxmemory.*was not sent'): await one.publish(2)
            with pytest.raises(BackendError, match='refused.*was not sent'): Publisher(server.url()).broadcast('n', 2)
            server.client.config_set('maxmemory', 0)
            await one.publish(3)
            assert one.data == [1, 3]

    async def test_valkey_and_sockets(self, redises, tmp_path):
        redis = redises('--unixsocket', str(tmp_path/'r.sock'))
        async with Process(f'valkey://127.0.0.1:{redis.port}/0') as one, Process(f'unix://{tmp_path}/r.sock') as two:
            await one.publish(1)
            await asyncio.to_thread(Publisher(f'unix://{tmp_path}/r.sock').broadcast, 'n', 2)
            await two.gets(1, 2)

    async def test_tls(self, redises, tmp_path):
        if not shutil.which('openssl'): pytest.skip('needs openssl')
        subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes',
            '-keyout', tmp_path/'key', '-out', tmp_path/'cert', '-days', '2', '-subj', '/CN=localhost', '-addext',
            'subjectAltName=DNS:localhost'], check=True, capture_output=True)
        redis = redises('--tls-port', port := free_port(), '--tls-cert-file', tmp_path/'cert', '--tls-key-file', tmp_path/'key',
            '--tls-auth-clients', 'no')
        url = f'rediss://localhost:{port}?ssl_ca_certs={tmp_path}/cert'
        async with Process(url) as one, Process(redis.url()) as two:
            await one.publish(1)
            await asyncio.to_thread(Publisher(url).broadcast, 'n', 2)
            await two.gets(1, 2)
        await self.fails(f'rediss://localhost:{port}', 'certificate', 1.)
        await self.fails(f'redis://localhost:{port}', 'refused|broke|could not be reached', 1.)

    async def test_cut_off_while_it_starts(self, server):
        "The connection is made again: else uvicorn would end all workers with this one"
        async with Proxy(server) as proxy:
            proxy.cuts = True
            async with Process(proxy.url, timeout=BOUND) as one:
                assert not proxy.cuts and await one.publish(1) == 1

    async def test_one_backend_for_two(self, server):
        async with Process(server.url()) as one:
            with pytest.raises(BackendError, match='each needs one of its own'): await SSEBroadcastManager(backend=one.backend).open()
            assert await one.publish(1) == 1

    def test_an_address_becomes_free(self, redises):
        "When the event loop ends, and when a start has failed"
        redis = redises()
        for _ in range(2): asyncio.run(SSEBroadcastManager(backend=redis.url()).open())
        redis.kill()
        async def fail_and_start():
            failed, well = (SSEBroadcastManager(backend=RedisBackend(redis.url(), timeout=secs)) for secs in (.1, BOUND))
            with pytest.raises(BackendError): await failed.open()
            redis.start()
            await well.open()
            await well.close()
        asyncio.run(fail_and_start())


class TestTheEnd:
    async def test_a_close_leaves_no_report(self, server):
        "Whichever of broadcast and close is first at each step"
        for turn in range(12):
            async with no_task_left(), managers(server.url(), 1) as (m,):
                await m.open()
                closing = asyncio.create_task(m.close())
                await turns(turn)
                with suppress(BackendError): await m.broadcast('n', turn)
                await closing
            assert not server.client.keys('sse:worker*'), f'after {turn} turns'
        await eventually(lambda: len(server.client.client_list()) == 1, 'the connections end')

    async def test_a_hook_broadcasts_after_close(self, server):
        "Its message arrives, and afterwards no worker is counted for it"
        async with Process(server.url()) as other, no_task_left():
            manager, go, later = SSEBroadcastManager(backend=server.url()), asyncio.Event(), []
            async def slow():
                await go.wait()
                await manager.broadcast('left', 1)
            manager.on_disconnect(lambda conn: later.append(asyncio.create_task(slow())))
            async with following('stream', manager):
                await manager.close(.05)
                assert len(await other.backend.poll_workers()) == 1
                go.set()
                await other.gets(1)
                await eventually(lambda: server.client.scard('sse:workers') == 1, 'no report is left')
            await manager.close()

    async def test_a_start_that_is_stopped(self, redises):
        "As where an app is told to stop while its Redis does not answer"
        redis = redises()
        os.kill(redis.process.pid, signal.SIGSTOP)
        async with no_task_left():
            backend = RedisBackend(redis.url(), timeout=BOUND)
            starting = asyncio.create_task(backend.start(1, raises(KeyError), lambda *args: None))
            await asyncio.sleep(.1)
            await backend.stop()
            with pytest.raises(BackendError, match='stopped'): await asyncio.wait_for(starting, BOUND)
        os.kill(redis.process.pid, signal.SIGCONT)

    async def test_the_connection_of_threads(self, server):
        "`send` opens it, and `stop` closes it, too"
        backend = RedisBackend(server.url())
        await asyncio.to_thread(backend.send, dict(type='n', timestamp='', data=1))
        assert len(server.client.client_list()) == 2
        await backend.stop()
        await eventually(lambda: len(server.client.client_list()) == 1)


class TestFronts:
    async def test_a_job_elsewhere(self, server):
        "It is seen while it runs, and afterwards by a process that starts when all is over"
        code = ('import sys\nfrom cjm_fasthtml_sse.core import SSEBroadcastManager\nfrom cjm_fasthtml_sse.progress import track\n'
                'with track(SSEBroadcastManager(backend=sys.argv[1]), range(3), "a/b", name="elsewhere", throttle=0) as job:\n    for n in job: pass')
        async with managers(server.url(), 2) as (here, there):
            app, late = FastHTML(secret_key='test'), FastHTML(secret_key='test')
            setup_progress(app, here, authorise=True)
            async with SSEClient(app, '/stream_job_progress?job_id=a%2Fb') as page:
                await page.next(BOUND, heartbeats=True)
                await asyncio.to_thread(subprocess.run, [sys.executable, '-c', code, server.url()], check=True, timeout=30)
                shown = [e.data for e in await read_to(page, 'sse:close')]
                assert 'elsewhere' in shown[0] and '0 of 3' in shown[0] and '3 of 3' in shown[-1] and 'completed' in shown[-1]
            setup_progress(late, there, authorise=True)
            async with SSEClient(late, '/stream_job_status?job_id=a%2Fb') as page:
                assert 'Completed' in (await page.next(BOUND)).data and (await page.next(BOUND)).event == 'sse:close'

    async def test_the_dashboard(self, server):
        "It shows each process, counts no message of the past, and goes on without Redis"
        async with managers(server.url(), 2) as (here, there):
            await there.broadcast('before:it', 1)
            app = FastHTML(secret_key='test')
            setup_dashboard(app, here, authorise=True, every=.05)
            async with (following('stream', there), following('stream', there),
                        SSEClient(app, '/_sse/dashboard/events') as page, asyncio.timeout(BOUND)):
                await here.broadcast('a:b', 1)
                while 'All</th><td class="n">2</td>' not in (html := (await page.next(BOUND)).data) or 'a:b' not in html: pass
                assert html.count('(this one)') == 1 and 'Counters of each process' in html and 'before:it' not in html
                server.kill()
                while 'The backend does not answer' not in (await page.next(BOUND)).data: pass


def get(server, path, **params): return httpx.get(f'{server.url}{path}', params=params, timeout=10)

def pids(server): return {get(server, '/here').json()['pid'] for _ in range(30)}

def until(condition, server, secs=20):
    "Wait for something that a server process does"
    end = time.monotonic()+secs
    while not condition():
        assert time.monotonic() < end, server.output
        time.sleep(.05)


class TestServers:
    "Workers that start while Redis is away, and workers that nothing connects"
    unreachable = 'could not be reached'

    @pytest.fixture
    def workers(self, tmp_path):
        "Starts the app `workers`, and does not wait for it unless told to"
        with ExitStack() as stack:
            def start(*args, cmd=None, wait=False, **env):
                port = free_port()
                server = Server([str(c).replace('{port}', str(port)) for c in cmd or uvicorn('workers:app', *args)], port,
                    tmp_path/'log', env={'HOME': str(tmp_path), **env})
                stack.callback(server.stop)
                return server.wait_until_up() if wait else server
            yield start

    def test_a_wrong_redis(self, workers):
        "The start is tried again for a while, and fails"
        server = workers(REDIS_URL=AWAY, PATIENCE='6')
        assert server.ends(20)[0] and server.output.count(self.unreachable) > 1, server.output

    def test_a_redis_that_refuses(self, redises, workers):
        "The server ends at once"
        redis = redises()
        redis.client.config_set('requirepass', 'right')
        server = workers(REDIS_URL=redis.url(), PATIENCE='1000')
        assert server.ends(20)[0] and 'Authentication required' in server.output

    def test_a_redis_that_starts_later(self, redises, workers):
        redis = redises()
        redis.kill()
        server = workers(REDIS_URL=redis.url(), PATIENCE='1000')
        until(lambda: self.unreachable in server.output, server)
        redis.start()
        server.wait_until_up()
        assert get(server, '/say', text='x').status_code == 200

    def test_told_to_stop_meanwhile(self, workers):
        server = workers(REDIS_URL=AWAY, PATIENCE='1000')
        until(lambda: self.unreachable in server.output, server)
        server.signal()
        server.ends(20)

    def test_one_worker_waits_alone(self, redises, workers):
        "The other one goes on serving"
        redis = redises(*Redis.durable)
        app = workers('--workers', '2', wait=True, REDIS_URL=redis.url())
        until(lambda: len(pids(app)) == 2, app)
        both = pids(app)
        redis.kill()
        os.kill(both.pop(), signal.SIGKILL)
        until(lambda: 'Trying again' in app.output, app)
        assert pids(app) == both
        redis.start()
        until(lambda: len(pids(app)) == 2 and both < pids(app), app)

    @pytest.mark.parametrize('args,wanted', [(['--workers', '2'], 2), (['--reload'], 0), ([], 0)], ids=['workers', 'reload', 'alone'])
    def test_nothing_connects_them(self, workers, args, wanted):
        "Several workers without a backend say so, each once"
        self.warn(workers(*args, wait=True, **({'WEB_CONCURRENCY': '4'} if args == ['--reload'] else {})), wanted)

    @pytest.mark.parametrize('n', [1, 2])
    @pytest.mark.parametrize('module,cmd', [('hypercorn', 'workers:app --bind 127.0.0.1:{port} --workers'),
        ('granian', '--interface asgi --host 127.0.0.1 --port {port} workers:app --workers'),
        ('gunicorn', '-k uvicorn.workers.UvicornWorker -b 127.0.0.1:{port} workers:app -w')], ids=lambda o: o.split()[0])
    def test_nothing_connects_others(self, workers, module, cmd, n):
        if not find_spec(module) or module == 'gunicorn' and not find_spec('uvicorn.workers'): pytest.skip(f'{module} is not installed')
        self.warn(workers(cmd=[sys.executable, '-m', module, *cmd.split(), n], wait=True), n if n > 1 else 0)

    def warn(self, app, wanted):
        def warnings():
            with suppress(httpx.HTTPError): get(app, '/say', text='x')
            return app.output.count('processes serve this app and nothing carries')
        if wanted: until(lambda: warnings() >= wanted, app)
        for _ in range(10): warnings()
        assert warnings() == wanted, app.output
