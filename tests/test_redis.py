"The Redis backend where the contract leaves off: what crosses, who may start, what was trimmed, publishers, servers; by public names alone"
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
from pathlib import Path

import httpx
import pytest
from fastcore.basics import NotStr
from fastcore.xml import Span
from fasthtml.common import FastHTML
from hypothesis import given, settings
from hypothesis import strategies as st

from cjm_fasthtml_sse.backends.base import check_backend
from cjm_fasthtml_sse.backends.packing import DataError, pack, unpack
from cjm_fasthtml_sse.backends.redis import Publisher, RedisBackend
from cjm_fasthtml_sse.core import BackendError, SSEBroadcastManager
from cjm_fasthtml_sse.manager.cluster import worker_name
from cjm_fasthtml_sse.dashboard import setup_dashboard
from cjm_fasthtml_sse.engine.render import to_html
from cjm_fasthtml_sse.engine.wire import FieldError
from cjm_fasthtml_sse.progress import setup_progress
from tests.contract.servers import Server, Stream, uvicorn, wait_until
from tests.contract.support import BOUND, GAP, Redis, client, eventually, following, free_port, listening, no_task_left, turns, within
from tests.contract.test_over_redis import Proxy

BINARIES = [b for b in ('redis-server', 'valkey-server') if shutil.which(b)]
HERE = Path(__file__).parent
pytestmark = [pytest.mark.redis, pytest.mark.skipif(not BINARIES, reason='needs redis-server or valkey-server')]
forks = [pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork'), pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork')]


@asynccontextmanager
async def managers(redis, n=2, **kw):
    "Managers that share a Redis as several processes do: each reaches it under another name. `kw` goes to their backends"
    ms = [SSEBroadcastManager(backend=RedisBackend(redis.url(host=host), **kw)) for host in ('127.0.0.1', 'localhost', '127.1')[:n]]
    try: yield ms
    finally:
        for m in ms: await m.close()

def entries(redis): return [o for _, m in redis.client.xrange('sse') if 'data' in (o := unpack(m[b'm']))]
def sent(redis): return [o['data'] for o in entries(redis)]
def connected(redis): return len(redis.client.client_list())-1  # Without the one that asks


# What crosses

plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(codec='utf-8')),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(['$html', '$dict', '$x', 'a']), inner, max_size=3), max_leaves=20)

def walk(o):
    yield o
    for x in (o.values() if isinstance(o, dict) else o if isinstance(o, list) else ()): yield from walk(x)

@dataclass(frozen=True)
class Place: row: int; col: date|int


class TestWhatCrosses:
    @given(plain)
    @settings(max_examples=300, deadline=None)
    def test_plain_data(self, data):
        "It arrives as it was, whatever its keys"
        got = unpack(pack(data).encode())
        assert got == data and 'NotStr' not in repr([type(o) for o in walk(got)])

    def test_other_values(self):
        "They cross as JSON writes them"
        class Own:
            def __ft__(self): return Span('own')
        class Safe(str):
            def __html__(self): return str(self)
        data = dict(p=Place(1, date(2030, 1, 2)), u=uuid.UUID(int=5), d=Decimal('1.50'), path=Path('/a'), s={2, 1}, t=(1,), own=Own(),
                    safe=Safe('<b>'), raw=NotStr('<i>'))
        got = unpack(pack(data))
        assert got['p'] == dict(row=1, col='2030-01-02') and got['u'] == str(uuid.UUID(int=5))
        assert (got['d'], got['path'], got['s'], got['t']) == ('1.50', '/a', [1, 2], [1])
        assert [to_html([got[k]]) for k in ('own', 'safe', 'raw')] == ['<span>own</span>', '<b>', '<i>']

    async def test_what_cannot_is_refused(self, shared):
        "At the call, with its place, and nothing is sent"
        async with managers(shared, 1) as (manager,):
            await manager.open()
            before, loop = shared.client.xlen('sse'), {}
            loop['self'] = loop
            for data, key, place in [(dict(user=dict(avatar=object())), None, r"`data\['user'\]\['avatar'\]`"), ([1, float('inf')], None, r'`data\[1\]`'),
                                     (loop, None, 'nested too deeply'), (dict(a='\udfff'), None, r"`data\['a'\]`"), (1, (1, object()), r'`key\[1\]`')]:
                with pytest.raises(DataError, match=place): await manager.broadcast('n', data, key=key)
                with pytest.raises(DataError, match=place): Publisher(shared.url()).broadcast('n', data, key)
            with pytest.raises(FieldError): Publisher(shared.url()).broadcast('a\nb', 1)
            assert shared.client.xlen('sse') == before

    async def test_a_key_that_is_an_object(self, shared):
        "A dataclass is hashable here, and becomes an object in JSON: it is a key everywhere"
        async with managers(shared) as (one, two), following('queue', one) as a, following('queue', two) as b:
            start = two.cursor
            for n, place in enumerate([Place(1, 2), ('x', Place(1, 2)), Place(1, 2), Place(1, 3)]): await one.broadcast('n', n, key=place)
            with Publisher(shared.url()) as p: p.broadcast('n', 4, key=Place(1, 3))
            for q in a, b: assert await q.data(5) == [0, 1, 2, 3, 4]
            async with client('stream', two, last_id=start) as page: assert await page.data(3) == [1, 2, 4]


class TestCarrying:
    @pytest.mark.parametrize('binary', BINARIES)
    async def test_the_check_of_all_backends(self, tmp_path, binary):
        r = Redis(tmp_path)
        r.binary = binary
        try:
            r.start()
            async with no_task_left(): await check_backend(lambda: RedisBackend(r.url()))
            await eventually(lambda: connected(r) == 0, 'no connection is left')
        finally: r.kill()

    async def test_many_who_return_share_a_question(self, shared):
        "Each claims an id that Redis may know, or not"
        def asked(): return shared.client.info('commandstats').get('cmdstat_xrevrange', dict(calls=0))['calls']
        async with managers(shared, 1) as (one,):
            await one.broadcast('n', 1)
            unknown, before = f"{one.cursor.partition(':')[0]}:{10**14}-0", asked()
            pages = [client('stream', one, last_id=unknown) for _ in range(200)]
            await asyncio.gather(*[c.__aenter__() for c in pages])
            for c in pages: assert await c.next() == (GAP, None)
            for c in pages: await c.leave()
            assert asked()-before < 20

    async def test_one_that_has_lost_touch(self, shared):
        "It invents no gap for a browser that has seen more elsewhere, and refuses it for a moment"
        one = SSEBroadcastManager(backend=shared.url())
        async with Proxy(shared) as proxy, following('stream', one) as page:
            cut_off = SSEBroadcastManager(backend=proxy.url)
            await cut_off.open()
            await one.broadcast('n', 0)
            await eventually(lambda: cut_off.cursor == one.cursor, 'it reads')
            port = proxy.server.sockets[0].getsockname()[1]
            proxy.server.close()
            for t in proxy.tasks: t.cancel()
            await turns()
            for n in 1, 2: await one.broadcast('n', n)
            assert await page.data(3) == [0, 1, 2]
            async with within('it notices'):
                while True:
                    async with client('stream', cut_off, last_id=page.last_id) as late:
                        if late.status == 503: break
            assert late.exchange.headers['retry-after'].isdigit() and not late.gaps
            proxy.server = await asyncio.start_server(proxy._serve, '127.0.0.1', port)
            await eventually(lambda: cut_off.cursor == page.last_id, 'it is back')
            async with client('stream', cut_off, last_id=page.last_id) as late:
                await one.broadcast('n', 3)
                assert await late.next() == ('n', 3)
            await cut_off.close()
        await one.close()

    async def test_a_connection_breaks_while_one_starts(self, shared):
        "As where Redis is restarted in this moment: the worker would not start, and uvicorn would end all others with it"
        class Breaks(Proxy):
            broken = 0
            async def _serve(self, reader, writer):
                if self.broken >= 2: return await super()._serve(reader, writer)
                self.broken += 1
                await reader.read(100)
                writer.close()
        async with Breaks(shared) as proxy:
            m = SSEBroadcastManager(backend=RedisBackend(proxy.url, timeout=BOUND))
            async with following('stream', m) as page:
                assert proxy.broken and await m.broadcast('n', 1) == 1 and await page.next() == ('n', 1)
            await m.close()

    async def test_an_empty_redis(self, shared):
        "Two that begin on it agree on the id of nothing"
        async with managers(shared, 3) as (one, two, late):
            await asyncio.gather(one.open(), two.open())
            assert one.cursor == two.cursor
            await one.broadcast('n', 1)
            async with client('stream', late, last_id=f"{one.cursor.partition(':')[0]}:0-1") as page: assert await page.next() == ('n', 1)

    async def test_apps_share_a_redis_by_their_names(self, shared):
        async with managers(shared, 1, name='shop') as (shop,), managers(shared, 1, name='blog') as (blog,), following('queue', shop) as q, \
                following('queue', blog) as p:
            await shop.broadcast('n', 'shop')
            await blog.broadcast('n', 'blog')
            Publisher(shared.url(), name='blog').broadcast('n', 'script')
            assert await p.data(2) == ['blog', 'script'] and await q.data(1) == ['shop'] and len(q.messages) == 1
            assert (await shop.cluster_stats())['workers'] == 1

    async def test_a_backend_belongs_to_one(self, shared):
        "Also one that failed to start is in nobody's way"
        backend = RedisBackend(shared.url())
        one = SSEBroadcastManager(backend=backend)
        await one.open()
        with pytest.raises(BackendError, match='own'): await SSEBroadcastManager(backend=backend).open()
        assert await one.broadcast('n', 1) == 0
        await one.close()
        os.kill(shared.process.pid, signal.SIGSTOP)
        try:
            failed = SSEBroadcastManager(backend=RedisBackend(shared.url(), timeout=.1))
            with pytest.raises(BackendError): await failed.open()
        finally: os.kill(shared.process.pid, signal.SIGCONT)
        well = SSEBroadcastManager(backend=RedisBackend(shared.url(), timeout=BOUND))
        await well.open()
        await well.close()

    async def test_length_and_age_are_bounded(self, shared):
        async with managers(shared, 1, max_length=200) as (m,):
            for n in range(0, 1000, 100): await asyncio.gather(*[m.broadcast('n', n) for _ in range(100)])
            assert 200 <= shared.client.xlen('sse') <= 400
        Publisher(shared.url()).broadcast('n', 'new')
        await asyncio.sleep(.3)
        async with managers(shared, 2, max_age=.2) as (m, later):
            await m.open()
            at = m.cursor.partition(':')[0]
            await eventually(lambda: shared.client.xlen('sse') == 1, 'old entries are trimmed, and the newest one stays')
            assert sent(shared) == ['new']
            async with client('stream', later, last_id=f'{at}:0-0') as page: assert await page.next() == (GAP, None)

    async def test_its_tasks_may_be_cancelled(self, shared):
        "As where an app cancels all tasks that it finds: the reader starts again"
        async with managers(shared, 1) as (m,), following('queue', m) as q:
            others = {q.task, asyncio.current_task()}
            for o in asyncio.all_tasks()-others: o.cancel()
            await turns()
            assert await m.broadcast('n', 1) == 1 and await q.data(1) == [1]

    async def test_broadcasts_that_were_cancelled(self, shared):
        async with managers(shared, 1) as (m,), following('queue', m) as q:
            ts = [asyncio.create_task(m.broadcast('n', n)) for n in range(20)]
            await asyncio.sleep(0)
            for t in ts[::2]: t.cancel()
            await asyncio.gather(*ts, return_exceptions=True)
            await m.broadcast('n', 'end')
            await eventually(lambda: ('n', 'end') in q.seen, 'the end comes')
            got = [d for _, d in q.seen]
            assert {*range(1, 20, 2)} <= {*got[:-1]} and len(got) == len({*got})


class TestTrimmed:
    "However few entries are left for a worker that was slow: those that it missed are a gap, and for the others there is none"
    WAYS = dict(by_hand=lambda c: c.xtrim('sse', maxlen=5, approximate=False),
                by_a_smaller_publisher=lambda c: c.xadd('sse', dict(m=json.dumps(dict(type='n', data='y'))), maxlen=1, approximate=False),
                by_age=lambda c: c.xtrim('sse', minid=c.xrevrange('sse', count=3)[-1][0], approximate=False),
                by_length=None)

    @pytest.mark.parametrize('way', WAYS)
    async def test_it_is_told(self, shared, way):
        async with Proxy(shared) as proxy:
            one, two = [SSEBroadcastManager(backend=RedisBackend(url, max_length=100, timeout=BOUND)) for url in (shared.url(), proxy.url)]
            async with following('stream', one) as a, following('stream', two) as b:
                await one.broadcast('n', 0)
                assert await a.data(1) == await b.data(1) == [0]
                proxy.holds = True
                many = 600 if way == 'by_length' else 20
                for n in range(0, many, 20): await asyncio.gather(*[one.broadcast('n', n+i) for i in range(20)])
                if trim := self.WAYS[way]: await asyncio.to_thread(trim, shared.client)
                proxy.holds = False
                await eventually(lambda: b.gaps, 'it is told')
                await eventually(lambda: two.cursor == one.cursor, 'both are there')
                await one.broadcast('end', 0)
                for c in a, b: await eventually(lambda c=c: ('end', 0) in c.seen, 'the end comes')
                assert len(a.seen) >= many+2 and not a.gaps
            for m in one, two: await m.close()

    async def test_a_server_that_does_not_count(self, shared):
        "Redis 6 knows no `entries-added`: in doubt it is a gap"
        class Older(Proxy):
            async def _serve(self, reader, writer):
                write = writer.write
                writer.write = lambda data: write(data.replace(b'entries-added', b'entries-other'))
                await super()._serve(reader, writer)
        async with Older(shared) as proxy:
            m = SSEBroadcastManager(backend=proxy.url)
            async with following('stream', m) as page:
                for n in range(150): await m.broadcast('n', n)
                assert await page.data(150) == [*range(150)] and not page.gaps
                shared.client.xadd('sse', dict(m=json.dumps(dict(type='n', data=1))), maxlen=1, approximate=False)
                await eventually(lambda: page.gaps, 'it is told')
            await m.close()


class TestWithoutAnEventLoop:
    def test_a_publisher_is_light(self, shared):
        code = ('import os, sys\nfrom cjm_fasthtml_sse.backends.redis import Publisher\n'
                'with Publisher(sys.argv[1]) as p:\n    for n in range(2): p.broadcast("n", n)\n'
                'assert "fasthtml" not in sys.modules and "cjm_fasthtml_sse.core" not in sys.modules')
        subprocess.run([sys.executable, '-c', code, shared.url()], check=True, timeout=BOUND)
        assert sent(shared) == [0, 1]

    @pytest.mark.parametrize('asynchronous', [False, True])
    def test_a_hook_that_broadcasts(self, shared, asynchronous):
        "Neither the message nor what its hook broadcasts is lost, whether the hook awaits it or not"
        manager = SSEBroadcastManager(backend=shared.url())
        def audit(m):
            if m['type'] == 'n': manager.broadcast('called', m['data'])
        async def later(m):
            await asyncio.sleep(0)
            audit(m)
            if m['type'] == 'n': await manager.broadcast('awaited', m['data'])
        manager.on_broadcast(later if asynchronous else audit)
        assert manager.broadcast('n', 1).result() == 0 and asyncio.run(manager.broadcast('n', 2)) == 0
        assert sorted(o['type'] for o in entries(shared)) == ['awaited']*2*asynchronous+['called']*2+['n']*2

    def test_it_is_said_what_became_of_it(self, own_redis):
        r = own_redis(*Redis.durable)
        with Publisher(r.url(), timeout=3.) as p:
            p.broadcast('n', 1)
            r.kill()
            start = time.monotonic()
            with pytest.raises(BackendError, match='was not sent'): p.broadcast('n', 2)
            assert time.monotonic()-start < BOUND
            r.start()
            p.broadcast('n', 3)  # The connection that broke does not spoil it
            r.kill(signal.SIGTERM)
            r.start()
            p.broadcast('n', 4)
            assert sent(r) == [1, 3, 4]
            os.kill(r.process.pid, signal.SIGSTOP)
            with pytest.raises(BackendError, match='may or may not|was not sent'): p.broadcast('n', 5)
            os.kill(r.process.pid, signal.SIGCONT)
        with pytest.raises(BackendError): SSEBroadcastManager(backend='redis://127.0.0.1:1').broadcast_threadsafe('n', 1)

    @pytest.mark.parametrize('state', ['new', 'away'])
    def test_the_timeout_holds_for_each_of_many_threads(self, own_redis, state):
        "They share one connection, so the last of ten waited for nine others"
        r = own_redis()
        def timed(i):
            start = time.monotonic()
            with pytest.raises(BackendError): p.broadcast('n', i)
            return time.monotonic()-start
        with Publisher(r.url(), timeout=2.) as p, ThreadPoolExecutor(10) as pool:
            if state == 'away': r.kill()
            else: os.kill(r.process.pid, signal.SIGSTOP)
            assert max(pool.map(timed, range(10))) < 4
            if state == 'away': return
            os.kill(r.process.pid, signal.SIGCONT)
            list(pool.map(lambda i: p.broadcast('n', f'again {i}'), range(10)))
            got = sent(r)
            assert {f'again {i}' for i in range(10)} <= {*got} and len(got) == len({*got})

    @pytest.mark.parametrize('busy', [False, pytest.param(True, id='busy')])
    def test_it_survives_a_fork(self, own_redis, busy):
        "Nobody in the child would ever give back what another thread of the parent had taken"
        r = own_redis()
        p = Publisher(r.url(), timeout=BOUND)
        p.broadcast('n', 'parent')
        if busy:
            os.kill(r.process.pid, signal.SIGSTOP)
            thread = threading.Thread(target=p.broadcast, args=('n', 'thread'))
            thread.start()
            time.sleep(.1)
        if not (pid := os.fork()):
            signal.alarm(int(BOUND))  # It ends in any case
            try:
                p.broadcast('n', 'child')
                os._exit(0)
            finally: os._exit(1)
        if busy:
            os.kill(r.process.pid, signal.SIGCONT)
            thread.join(BOUND)
        assert os.waitpid(pid, 0)[1] == 0
        p.broadcast('n', 'parent again')
        assert sorted(sent(r)) == sorted(['parent', 'child', 'parent again']+['thread']*busy)
        p.close()
    for mark in forks: test_it_survives_a_fork = mark(test_it_survives_a_fork)

    async def test_threads_of_an_app(self, shared):
        "The connection that they have opened before there was an event loop is closed with the manager"
        async with managers(shared, 1) as (m,):
            await asyncio.to_thread(lambda: m.broadcast_threadsafe('n', 1).result(BOUND))
            await m.open()
            await m.close()
            await eventually(lambda: connected(shared) == 0, 'no connection is left')


# Beginnings that go wrong

@asynccontextmanager
async def answering(answer):
    "A server that is no Redis: it answers whatever it is asked with `answer`, or with nothing"
    async def serve(reader, writer):
        with suppress(OSError):
            while await reader.read(4096):
                if answer: writer.write(answer*5)
        writer.close()
    s = await asyncio.start_server(serve, '127.0.0.1', 0)
    try: yield s.sockets[0].getsockname()[1]
    finally: s.close()

async def fails_to_start(url, why):
    start = time.monotonic()
    async with no_task_left():
        for begin in 'open', 'broadcast', 'publisher':
            backend = RedisBackend(url, timeout=.25)
            m = SSEBroadcastManager(backend=backend)
            with pytest.raises(BackendError, match=why) as e:
                if begin == 'open': await m.open()
                elif begin == 'broadcast': await m.broadcast('n', 1)
                else: await asyncio.to_thread(Publisher(url, timeout=.25).broadcast, 'n', 1)
            assert 'secret' not in str(e.value) and 'secret' not in repr(backend)
    assert time.monotonic()-start < 3

SECRETS = ['redis://ann:HUSH/WORD@host', 'redis://:HUSH/WORD@host:1', 'redis://ann:77123/WORD@host', 'redis://:HUSH#WORD@host', 'redis://:HUSH?WORD@host',
    'redis://:[HUSH@host', 'redis://host:HUSH', 'redis://127.0.0.1:1?password=HUSH', 'redis://127.0.0.1:1?username=ann&password=HUSH&nonsense=1',
    'redis://127.0.0.1:1/0?password=HUSH&db=x', 'unix://ann:HUSH@/no/such/socket', 'unix:///no/such/socket?password=HUSH',
    'unix:///no/such/socket?password=HUSH&db=x', 'redis://:HUSH@127.0.0.1:1', 'valkeys://ann:HUSH@127.0.0.1:1', 'redis://HU\u2100SH:WORD@host',
    'HUSH@host', '//ann:HUSH@host', 'http://ann:HUSH@host']


class TestBeginnings:
    async def test_each_is_said_clearly(self, own_redis):
        "A wrong address, a wrong password, TLS, and a server that is no Redis"
        locked = own_redis('--requirepass', 'right')
        at = f'127.0.0.1:{locked.port}'
        await fails_to_start('redis://:secret@127.0.0.1:1', 'could not be reached')
        await fails_to_start('redis://no-such-host.invalid', 'could not be reached|no answer')
        await fails_to_start(f'redis://:secret@{at}', 'refused.*(invalid|WRONGPASS)')
        await fails_to_start(f'redis://{at}', 'refused.*Authentication required')
        await fails_to_start(f'redis://:right@{at}/9999', 'refused.*out of range')
        await fails_to_start(f'rediss://:secret@{at}', 'could not be reached|broke')
        await fails_to_start('redis://:sec#ret/secret@x:y', '.')
        await fails_to_start('redis://localhost?nonsense=1', 'unknown.*nonsense')
        for answer, why in [(b'HTTP/1.1 400 Bad Request\r\n\r\n', 'refused|broke'), (b'', 'no answer|Timeout'), (b'-ERR what?\r\n', r'refused.*what\?')]:
            async with answering(answer) as port: await fails_to_start(f'redis://127.0.0.1:{port}', why)

    @pytest.mark.parametrize('url', SECRETS)
    async def test_a_password_is_in_no_error(self, url):
        "Neither in the error nor in what it came from, nor in a traceback, nor in what a backend is called"
        said = []
        async def tell(f):
            try: said.append(repr(await f()))
            except (ValueError, BackendError) as e: said.extend(traceback.format_exception(e)+[repr(e)])
        async def begin():
            backend = RedisBackend(url, timeout=.2)
            said.append(repr(backend))
            return await SSEBroadcastManager(backend=backend).open()
        async def publish(): return await asyncio.to_thread(Publisher(url, timeout=.2).broadcast, 'n', 1)
        for f in begin, publish: await tell(f)
        assert said and not [x for x in said if any(word in x for word in ('HUSH', 'WORD', '77123', '\u2100'))]

    async def test_a_key_of_another_kind_and_a_user_without_rights(self, shared):
        async def fails(url, why):
            with pytest.raises(BackendError, match=why): await SSEBroadcastManager(backend=RedisBackend(url, timeout=1.)).open()
        shared.client.set('sse', 'taken')
        await fails(shared.url(), 'refused.*WRONGTYPE|refused.*wrong kind')
        shared.client.execute_command('ACL', 'SETUSER', 'ann', 'on', '>pw', '+@read', '+ping', '~*')
        shared.client.delete('sse')
        await fails(shared.url().replace('//', '//ann:pw@'), 'refused.*permissions')

    async def test_a_full_redis(self, shared):
        "It refuses a broadcast and says why"
        async with managers(shared, 1) as (m,), following('queue', m) as q:
            await m.broadcast('n', 1)
            shared.client.config_set('maxmemory', 1)
            try:
                with pytest.raises(BackendError, match='refused.*maxmemory.*was not sent'): await m.broadcast('n', 2)
                with pytest.raises(BackendError, match='refused.*was not sent'): Publisher(shared.url()).broadcast('n', 2)
            finally: shared.client.config_set('maxmemory', 0)
            await m.broadcast('n', 3)
            assert await q.data(2) == [1, 3]

    @pytest.mark.parametrize('bad', [dict(url='http://x'), dict(url=None), dict(name=''), dict(max_length=0), dict(max_length=True), dict(max_age=0),
                                     dict(timeout=float('nan')), dict(timeout='2')], ids=repr)
    def test_bad_settings(self, bad):
        with pytest.raises(ValueError): RedisBackend(**{'url': 'redis://x', **bad})

    async def test_valkey_unix_and_tls(self, own_redis, tmp_path):
        if not shutil.which('openssl'): pytest.skip('needs openssl')
        subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', tmp_path/'key',
            '-out', tmp_path/'cert', '-days', '2', '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'], check=True, capture_output=True)
        port = free_port()
        r = own_redis('--unixsocket', tmp_path/'r.sock', '--tls-port', port, '--tls-cert-file', tmp_path/'cert', '--tls-key-file', tmp_path/'key',
                      '--tls-auth-clients', 'no')
        tls = f'rediss://localhost:{port}?ssl_ca_certs={tmp_path}/cert'
        ms = [SSEBroadcastManager(backend=url) for url in (f'valkey://127.0.0.1:{r.port}/0', f'unix://{tmp_path}/r.sock', tls)]
        async with following('queue', ms[1]) as q:
            for n, m in enumerate(ms): await m.broadcast('n', n)
            for n, url in enumerate((f'unix://{tmp_path}/r.sock', tls)): Publisher(url).broadcast('n', 3+n)
            assert await q.data(5) == [*range(5)]
        for m in ms: await m.close()
        await fails_to_start(f'rediss://localhost:{port}', 'certificate')
        await fails_to_start(f'redis://localhost:{port}', 'refused|broke|could not be reached')


class TestCountsOfAll:
    async def test_reports_that_no_worker_has_written(self, shared, caplog):
        "Anybody may write into Redis. What makes no sense is said once, and nobody fails over it"
        bad = ['', '{', 'null', '7', '[]', '{}', b'\xff\xfe', '['*100_000, '{"users": 7, "stats": {}}', '{"users": [], "stats": []}',
            '{"users": ["ann"], "stats": {}}', '{"users": [[{"a": 1}, 1]], "stats": {}}', '{"users": [["ann", "x"]], "stats": {}}',
            '{"users": [], "stats": {"connections": "many"}}', '{"users": [], "stats": {"backlog": NaN}}', '{"users": [], "stats": {"bytes": -1}}']
        async with managers(shared) as (one, two):
            for m in one, two: await m.open()
            for i, text in enumerate(bad):
                shared.client.set(f'sse:worker:{i}', text)
                shared.client.sadd('sse:workers', str(i))
            shared.client.sadd('sse:worker:list', 'x')
            shared.client.sadd('sse:workers', 'list', b'\xff')
            shared.client.set('sse:worker:old', '{"users": [["ann", 2]], "stats": {"connections": 2}}')
            shared.client.sadd('sse:workers', 'old')
            for _ in range(2):
                told = await one.cluster_stats()
                assert (told['workers'], told['connections'], told['users']) == (3, 2, dict(ann=2))
        assert len([r for r in caplog.records if 'is ignored' in r.message]) == 1

    async def test_during_the_end(self, shared):
        "An error of the backend at most. It was a TypeError, from what the backend had forgotten by then"
        for turn in range(0, 40, 3):
            async with managers(shared, 1) as (m,):
                await m.open()
                counting = asyncio.create_task(m.cluster_stats())
                await turns(turn)
                await m.close()
                with suppress(BackendError): assert (await counting)['workers'] == 1

    async def test_a_close_beside_broadcasts(self, shared):
        "Whichever of the two is first at each step: the last close ends what a broadcast has begun anew, and nobody is counted any longer"
        for turn in range(12):
            async with no_task_left(), managers(shared, 1) as (m,):
                await m.open()
                closing = asyncio.create_task(m.close())
                await turns(turn)
                with suppress(BackendError): await m.broadcast('n', turn)
                await closing
            assert not shared.client.keys('sse:worker*'), f'after {turn} turns'
        await eventually(lambda: connected(shared) == 0)

    async def test_a_stop_ends_a_start(self, own_redis):
        "As where an app is told to stop while its Redis does not answer"
        r = own_redis()
        os.kill(r.process.pid, signal.SIGSTOP)
        async with no_task_left():
            backend = RedisBackend(r.url(), timeout=BOUND)
            starting = asyncio.create_task(backend.start(1, lambda record: 0, lambda *args: None))
            await asyncio.sleep(.1)
            await backend.stop()
            with pytest.raises(BackendError, match='stopped'): await asyncio.wait_for(starting, BOUND/2)
        os.kill(r.process.pid, signal.SIGCONT)


# Servers

def data(es): return [json.loads(e.data)['text'] for e in es if e.event == 'said']

@pytest.fixture
def starting(tmp_path):
    "Starts the app `workers`, and does not wait for it"
    with ExitStack() as stack:
        def start(*args, cmd=None, **env):
            server = Server(cmd or uvicorn('workers:app', *args), tmp_path/'workers.log', cwd=HERE/'apps', env=env)
            stack.callback(server.kill)
            return server
        yield start

def pids(server): return {server.get('/here').json()['pid'] for _ in range(30)}
def says(server, text): wait_until(lambda: text in server.output, lambda: f'{text!r} is not in: {server.output}')


class TestServersStart:
    AWAY = 'could not be reached'

    def test_a_wrong_redis(self, starting):
        server = starting(REDIS_URL='redis://127.0.0.1:1', PATIENCE='6')
        assert server.ends() and server.output.count(self.AWAY) > 1, server.output

    def test_one_that_refuses_is_not_waited_for(self, own_redis, starting):
        server = starting(REDIS_URL=own_redis('--requirepass', 'right').url())
        assert server.ends() and 'Authentication required' in server.output

    def test_one_that_starts_later(self, own_redis, starting):
        r = own_redis()
        r.kill()
        server = starting(REDIS_URL=r.url(), PATIENCE='1000')
        says(server, self.AWAY)
        r.start()
        assert server.wait_until_up().get('/say', text='x').status_code == 200

    def test_ends_when_told(self, starting):
        server = starting(REDIS_URL='redis://127.0.0.1:1', PATIENCE='1000')
        says(server, self.AWAY)
        server.signal()
        server.ends()

    def test_a_worker_that_starts_meanwhile(self, own_redis, starting):
        "While Redis is away: it leaves the others alone"
        r = own_redis(*Redis.durable)
        app = starting('--workers', '2', REDIS_URL=r.url(), PATIENCE='1000').wait_until_up()
        wait_until(lambda: len(pids(app)) == 2, 'both answer')
        with ExitStack() as stack:
            pages = [stack.enter_context(Stream(app, '/events?user=u')) for n in range(10)]
            for s in pages: s.begun()
            held = {o['pid']: o['connections'] for o in (app.get('/here').json() for _ in range(50))}
            r.kill()
            os.kill(dead := max(held, key=lambda pid: not held[pid]), signal.SIGKILL)
            says(app, 'Trying again')
            r.start()
            with Publisher(r.url(), timeout=BOUND) as p: p.broadcast('said', dict(text='back'))
            whole = 0
            for s in pages:
                with suppress(ConnectionError):
                    while not s.ended and not data(s.events): s.read()
                whole += bool(data(s.events))
            assert whole == 10-held[dead]
        wait_until(lambda: len(pids(app)) == 2, lambda: app.output)


class TestSeveralWorkersWithoutABackend:
    WARNING = 'processes serve this app and nothing carries'
    CMDS = {'uvicorn, 2': (uvicorn('workers:app', '--workers', '2'), 2), 'uvicorn --reload': (uvicorn('workers:app', '--reload'), 0),
        'hypercorn, 2': ([sys.executable, '-m', 'hypercorn', 'workers:app', '--bind', '127.0.0.1:{port}', '--workers', '2'], 2),
        'granian, 2': ([sys.executable, '-m', 'granian', '--interface', 'asgi', '--host', '127.0.0.1', '--port', '{port}', '--workers', '2', 'workers:app'], 2),
        **{f'gunicorn, {n}': ([sys.executable, '-m', 'gunicorn', '-k', 'uvicorn.workers.UvicornWorker', '-b', '127.0.0.1:{port}', '-w', f'{n}', 'workers:app'],
                              n*(n > 1)) for n in (1, 2)}}

    @pytest.mark.parametrize('name', CMDS)
    def test_each_says_so_once(self, starting, name):
        cmd, wanted = self.CMDS[name]
        if name.startswith('gunicorn'): pytest.importorskip('gunicorn')
        app = starting(cmd=cmd, **({'WEB_CONCURRENCY': '4'} if 'reload' in name else {})).wait_until_up()
        def enough():
            with suppress(httpx.HTTPError): app.get('/say', text='x')
            return app.output.count(self.WARNING) >= wanted
        wait_until(enough, lambda: app.output)
        for _ in range(10): app.get('/say', text='x')
        assert app.output.count(self.WARNING) == wanted, app.output


JOB = '''
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.progress import track
manager = SSEBroadcastManager(backend={url!r})
with track(manager, range(3), 'a/b', name='elsewhere') as job:
    for n in job: pass
'''

class TestJobsAndDashboard:
    async def test_a_job_in_a_script(self, shared):
        "It is seen while it runs and afterwards, also by a process that starts when all is over"
        async with managers(shared) as (here, there):
            app, late = FastHTML(secret_key='test'), FastHTML(secret_key='test')
            setup_progress(app, here, authorise=True)
            async with listening(app, '/stream_job_progress?job_id=a%2Fb') as page:
                await asyncio.to_thread(subprocess.run, [sys.executable, '-c', JOB.format(url=shared.url())], check=True, timeout=BOUND)
                await page.ends()
                first, last = page.messages[0].data, page.messages[-1].data
                assert 'elsewhere' in first and '0 of 3' in first and '3 of 3' in last and 'completed' in last
            jobs = setup_progress(late, there, authorise=True)
            assert 'a/b' not in jobs
            async with listening(late, '/stream_job_status?job_id=a%2Fb') as page:
                await page.ends()
                assert 'Completed' in page.messages[0].data and page.told_to_stay

    async def test_the_dashboard_shows_each_process(self, own_redis):
        "And goes on without Redis"
        r = own_redis()
        async with managers(r) as (here, there):
            app = FastHTML(secret_key='test')
            setup_dashboard(app, here, authorise=True, interval=.05)
            async with following('stream', there), following('stream', there), listening(app, '/_sse/dashboard/events') as page:
                def shown(): return page.messages[-1].data if page.messages else ''
                await here.broadcast('a:b', 1)
                await eventually(lambda: 'All</th><td class="n">2</td>' in shown(), 'it counts all')
                html = shown()
                assert html.count(f'<code>{worker_name()}</code>') == 2 and html.count('(this one)') == 1 and 'Counters of each process' in html
                r.kill()
                await eventually(lambda: 'The backend does not answer' in shown(), 'it says so')
                n = len(page.messages)
                await eventually(lambda: len(page.messages) > n+3 and 'now 0, least 0' in shown(), 'the charts go on meanwhile')

    async def test_the_dashboard_counts_nothing_of_the_past(self, shared):
        "That Redis remembers"
        async with managers(shared) as (here, late):
            for i in range(3): await here.broadcast('before', i)
            app = FastHTML(secret_key='test')
            setup_dashboard(app, late, authorise=True, interval=.05)
            async with listening(app, '/_sse/dashboard/events') as page:
                await eventually(lambda: page.messages, 'it is shown')
                await late.broadcast('after', 0)
                await eventually(lambda: 'after' in page.messages[-1].data, 'it is counted')
                assert 'before' not in page.messages[-1].data and late.get_history(2)[0]['type'] == 'before'
