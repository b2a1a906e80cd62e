"""The Redis backend where the contract leaves off: what crosses, who may start, what was trimmed, publishers, servers

By public names alone.
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fasthtml.common import FastHTML
from hypothesis import given, settings
from hypothesis import strategies as st

from cjm_fasthtml_sse.backends.base import check_backend
from cjm_fasthtml_sse.backends.packing import DataError, pack, unpack
from cjm_fasthtml_sse.backends.redis import Publisher, RedisBackend
from cjm_fasthtml_sse.core import BackendError, SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard
from cjm_fasthtml_sse.engine.wire import FieldError
from cjm_fasthtml_sse.manager.cluster import worker_name
from cjm_fasthtml_sse.progress import setup_progress
from tests.contract.servers import Server, Stream, uvicorn, wait_until
from tests.contract.support import (BOUND, GAP, Redis, client, eventually, following, forked, free_port, listening,
    no_task_left, turns, within)
from tests.contract.test_over_redis import Proxy

BINARIES = [b for b in ('redis-server', 'valkey-server') if shutil.which(b)]
pytestmark = [pytest.mark.redis, pytest.mark.skipif(not BINARIES, reason='needs redis-server or valkey-server')]


@asynccontextmanager
async def managers(redis, n=2, **kw):
    "Managers that share a Redis as several processes do: each reaches it under another name. `kw` are for the backends"
    hosts = ('127.0.0.1', 'localhost', '127.1')[:n]
    ms = [SSEBroadcastManager(backend=RedisBackend(redis.url(host=host), **kw)) for host in hosts]
    try: yield ms
    finally:
        for m in ms: await m.close()

@pytest.fixture
async def one(shared):
    async with managers(shared, 1) as (m,): yield m

@asynccontextmanager
async def through(proxy, **kw):
    m = SSEBroadcastManager(backend=RedisBackend(proxy.url, timeout=BOUND, **kw))
    try: yield m
    finally: await m.close()

def entries(redis): return [o for _, m in redis.client.xrange('sse') if 'data' in (o := unpack(m[b'm']))]
def sent(redis): return [o['data'] for o in entries(redis)]
def connected(redis): return len(redis.client.client_list())-1  # Without the one that asks
def hang(redis): os.kill(redis.process.pid, signal.SIGSTOP)
def go_on(redis): os.kill(redis.process.pid, signal.SIGCONT)


text = st.text(st.characters(codec='utf-8'))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(['$html', '$dict', '$x', 'a']), inner, max_size=3), max_leaves=20)

@dataclass(frozen=True)
class Place: row: int; col: int


class TestWhatCrosses:
    @given(plain)
    @settings(max_examples=200)
    def test_plain_data(self, data):
        "It arrives as it was, whatever its keys"
        got = unpack(pack(data).encode())
        assert got == data and json.dumps(got) == json.dumps(data)

    async def test_what_cannot_is_refused(self, shared, one):
        "At the call, with its place, and nothing is sent"
        await one.open()
        before, loop, publisher = shared.client.xlen('sse'), {}, Publisher(shared.url())
        loop['self'] = loop
        for data, key, place in [(dict(user=dict(avatar=object())), None, r"`data\['user'\]\['avatar'\]`"),
                                 (loop, None, 'nested too deeply'), (1, (1, object()), r'`key\[1\]`')]:
            with pytest.raises(DataError, match=place): await one.broadcast('n', data, key=key)
            with pytest.raises(DataError, match=place): publisher.broadcast('n', data, key)
        with pytest.raises(FieldError): publisher.broadcast('a\nb', 1)
        assert shared.client.xlen('sse') == before

    async def test_a_key_that_is_an_object(self, shared):
        "A dataclass is hashable here, and becomes an object in JSON: it is a key everywhere"
        async with managers(shared) as (one, two), following('queue', one) as a, following('queue', two) as b:
            start = two.cursor
            for n, key in enumerate([Place(1, 2), ('x', Place(1, 2)), Place(1, 2), Place(1, 3)]):
                await one.broadcast('n', n, key=key)
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

    async def test_many_who_return_share_a_question(self, shared, one):
        "Each claims an id that Redis may know, or not"
        def asked(): return shared.client.info('commandstats').get('cmdstat_xrevrange', dict(calls=0))['calls']
        await one.broadcast('n', 1)
        unknown, before = f"{one.cursor.partition(':')[0]}:{10**14}-0", asked()
        pages = [client('stream', one, last_id=unknown) for _ in range(200)]
        await asyncio.gather(*[c.__aenter__() for c in pages])
        for c in pages: assert await c.next() == (GAP, None)
        for c in pages: await c.leave()
        assert asked()-before < 20

    async def test_one_that_has_lost_touch(self, shared, one):
        "It invents no gap for a browser that has seen more elsewhere, and refuses it for a moment"
        async with Proxy(shared) as proxy, following('stream', one) as page:
            cut_off = SSEBroadcastManager(backend=proxy.url)
            await cut_off.open()
            await one.broadcast('n', 0)
            await eventually(lambda: cut_off.cursor == one.cursor, 'it reads')
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
            await cut_off.close()

    async def test_a_connection_breaks_while_one_starts(self, shared):
        "As where Redis restarts in this moment: the worker would not start, and uvicorn would end all others with it"
        class Breaks(Proxy):
            broken = 0
            async def serve_one(self, reader, writer):
                if self.broken >= 2: return await super().serve_one(reader, writer)
                self.broken += 1
                await reader.read(100)
                writer.close()
        async with Breaks(shared) as proxy, through(proxy) as m, following('stream', m) as page:
            assert proxy.broken and await m.broadcast('n', 1) == 1 and await page.next() == ('n', 1)

    async def test_an_empty_redis(self, shared):
        "Two that begin on it agree on the id of nothing"
        async with managers(shared, 3) as (one, two, late):
            await asyncio.gather(one.open(), two.open())
            assert one.cursor == two.cursor
            await one.broadcast('n', 1)
            nothing = f"{one.cursor.partition(':')[0]}:0-1"
            async with client('stream', late, last_id=nothing) as page: assert await page.next() == ('n', 1)

    async def test_a_backend_belongs_to_one(self, shared):
        "Also one that failed to start is in nobody's way"
        backend = RedisBackend(shared.url())
        one = SSEBroadcastManager(backend=backend)
        await one.open()
        with pytest.raises(BackendError, match='own'): await SSEBroadcastManager(backend=backend).open()
        assert await one.broadcast('n', 1) == 0
        await one.close()
        hang(shared)
        try:
            with pytest.raises(BackendError):
                await SSEBroadcastManager(backend=RedisBackend(shared.url(), timeout=.1)).open()
        finally: go_on(shared)
        async with managers(shared, 1, timeout=BOUND) as (well,): await well.open()

    async def test_length_and_age_are_bounded(self, shared):
        async with managers(shared, 1, max_length=200) as (m,):
            for n in range(0, 1000, 100): await asyncio.gather(*[m.broadcast('n', n) for _ in range(100)])
            assert 200 <= shared.client.xlen('sse') <= 400
        Publisher(shared.url()).broadcast('n', 'new')
        await asyncio.sleep(.3)  # All are now too old
        async with managers(shared, 2, max_age=.2) as (m, later):
            await m.open()
            at = m.cursor.partition(':')[0]
            await eventually(lambda: shared.client.xlen('sse') == 1, 'old entries are trimmed, and the newest one stays')
            assert sent(shared) == ['new']
            async with client('stream', later, last_id=f'{at}:0-0') as page: assert await page.next() == (GAP, None)

    async def test_its_tasks_may_be_cancelled(self, one):
        "As where an app cancels all tasks that it finds: the reader starts again"
        async with following('queue', one) as q:
            for o in asyncio.all_tasks()-{q.task, asyncio.current_task()}: o.cancel()
            await turns()
            assert await one.broadcast('n', 1) == 1 and await q.data(1) == [1]

    async def test_broadcasts_that_were_cancelled(self, one):
        async with following('queue', one) as q:
            ts = [asyncio.create_task(one.broadcast('n', n)) for n in range(20)]
            await asyncio.sleep(0)
            for t in ts[::2]: t.cancel()
            await asyncio.gather(*ts, return_exceptions=True)
            await one.broadcast('n', 'end')
            await eventually(lambda: ('n', 'end') in q.seen, 'the end comes')
            got = [d for _, d in q.seen]
            assert {*range(1, 20, 2)} <= {*got} and len(got) == len({*got})


def keep_one(redis):
    redis.xadd('sse', dict(m=json.dumps(dict(type='n', data='y'))), maxlen=1, approximate=False)

class TestLostCommands:
    async def test_streams_of_users_end(self, shared):
        "With what Redis lost, a `disconnect` may be lost: routes decide anew who may listen"
        async with managers(shared) as (one, two), following('stream', one, user='ann') as ann, following('stream', two) as nobody:
            await one.broadcast('n', 0)
            await asyncio.to_thread(shared.client.flushall)
            await ann.ends()
            assert await nobody.read(2) == [('n', 0), (GAP, None)] and not nobody.over

    async def test_of_a_worker_that_was_too_slow(self, shared):
        "What was dropped before it has read it may be a `disconnect`. Whoever has read all goes on"
        async with (managers(shared, 1) as (one,), Proxy(shared) as proxy, through(proxy) as two,
                    following('stream', one, user='ann') as ann, following('stream', two, user='bob') as bob, following('stream', two) as nobody):
            await one.broadcast('n', 0)
            for c in ann, bob, nobody: assert await c.data(1) == [0]
            proxy.holds = True
            await one.broadcast('n', 1)
            await one.disconnect('bob')
            await asyncio.to_thread(keep_one, shared.client)
            proxy.holds = False
            await bob.ends()
            await eventually(lambda: nobody.gaps, 'it is told')
            assert not ann.over and not nobody.over


class TestTrimmed:
    "However few entries are left for a worker that was slow: those that it missed are a gap; for the others there is none"
    WAYS = dict(by_hand=lambda c: c.xtrim('sse', maxlen=5, approximate=False), by_a_smaller_publisher=keep_one,
                by_age=lambda c: c.xtrim('sse', minid=c.xrevrange('sse', count=3)[-1][0], approximate=False),
                by_length=lambda c: None)

    @pytest.mark.parametrize('way', WAYS)
    async def test_it_is_told(self, shared, way):
        async with (managers(shared, 1, max_length=100) as (one,), Proxy(shared) as proxy, through(proxy) as two,
                    following('stream', one) as a, following('stream', two) as b):
            await one.broadcast('n', 0)
            assert await a.data(1) == await b.data(1) == [0]
            proxy.holds = True
            for _ in range(30 if way == 'by_length' else 1):
                await asyncio.gather(*[one.broadcast('n', i) for i in range(20)])
            await asyncio.to_thread(self.WAYS[way], shared.client)
            proxy.holds = False
            await eventually(lambda: b.gaps and two.cursor == one.cursor, 'it is told, and both are there')
            await one.broadcast('end', 0)
            for c in a, b: await eventually(lambda c=c: ('end', 0) in c.seen, 'the end comes')
            assert not a.gaps

    async def test_a_server_that_does_not_count(self, shared):
        "Redis 6 knows no `entries-added`: in doubt it is a gap"
        class Older(Proxy):
            async def serve_one(self, reader, writer):
                write = writer.write
                writer.write = lambda data: write(data.replace(b'entries-added', b'entries-other'))
                await super().serve_one(reader, writer)
        async with Older(shared) as proxy, through(proxy) as m, following('stream', m) as page:
            for n in range(150): await m.broadcast('n', n)
            assert await page.data(150) == [*range(150)] and not page.gaps
            keep_one(shared.client)
            await eventually(lambda: page.gaps, 'it is told')


class TestWithoutAnEventLoop:
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
        with Publisher(r.url(), timeout=2.) as p:
            p.broadcast('n', 1)
            r.kill()
            with pytest.raises(BackendError, match='was not sent'): p.broadcast('n', 2)
            r.start()
            p.broadcast('n', 3)  # The connection that broke does not spoil it
            r.kill(signal.SIGTERM)
            r.start()
            p.broadcast('n', 4)
            assert sent(r) == [1, 3, 4]
            hang(r)
            with pytest.raises(BackendError, match='may or may not|was not sent'): p.broadcast('n', 5)
            go_on(r)
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
            r.kill() if state == 'away' else hang(r)
            assert max(pool.map(timed, range(10))) < 15
            if state == 'away': return
            go_on(r)
            list(pool.map(lambda i: p.broadcast('n', f'again {i}'), range(10)))
            got = sent(r)
            assert {f'again {i}' for i in range(10)} <= {*got} and len(got) == len({*got})

    @pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
    @pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork')
    @pytest.mark.parametrize('busy', [False, True], ids=['idle', 'busy'])
    def test_it_survives_a_fork(self, own_redis, busy):
        "Nobody in the child would ever give back what another thread of the parent had taken"
        r = own_redis()
        p = Publisher(r.url(), timeout=BOUND)
        p.broadcast('n', 'parent')
        thread = threading.Thread(target=p.broadcast, args=('n', 'thread'))
        if busy:
            hang(r)
            thread.start()
            time.sleep(.1)
        pid = forked(lambda: p.broadcast('n', 'child'))
        if busy:
            go_on(r)
            thread.join(BOUND)
        assert os.waitpid(pid, 0)[1] == 0
        p.broadcast('n', 'parent again')
        assert sorted(sent(r)) == sorted(['parent', 'child', 'parent again']+['thread']*busy)
        p.close()

    async def test_threads_of_an_app(self, shared, one):
        "The connection that they have opened before there was an event loop is closed with the manager"
        await asyncio.to_thread(lambda: one.broadcast_threadsafe('n', 1).result(BOUND))
        await one.open()
        await one.close()
        await eventually(lambda: connected(shared) == 0, 'no connection is left')


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
    "Neither a manager nor a publisher begins, and each says `why`; the traceback of each"
    if why.startswith('refused'): return await fails_within(BOUND, url, why)  # It is not tried again
    try: return await fails_within(.4, url, why)
    except AssertionError: return await fails_within(5., url, why)  # A busy machine has not got so far

async def fails_within(timeout, url, why):
    def begin(): return SSEBroadcastManager(backend=RedisBackend(url, timeout=timeout))
    async def publish(): await asyncio.to_thread(Publisher(url, timeout=timeout).broadcast, 'n', 1)
    said = []
    async with no_task_left():
        for f in (lambda: begin().open()), (lambda: begin().broadcast('n', 1)), publish:
            with pytest.raises((ValueError, BackendError), match=why) as e: await f()
            said += [repr(e.value), *traceback.format_exception(e.value)]
    return said

SECRETS = ['redis://ann:HUSH/WORD@host', 'redis://:HUSH/WORD@host:1', 'redis://ann:77123/WORD@host',
    'redis://:HUSH#WORD@host', 'redis://:HUSH?WORD@host', 'redis://:[HUSH@host', 'redis://host:HUSH',
    'redis://127.0.0.1:1?password=HUSH', 'redis://127.0.0.1:1?username=ann&password=HUSH&nonsense=1',
    'redis://127.0.0.1:1/0?password=HUSH&db=x', 'unix://ann:HUSH@/no/such/socket', 'unix:///no/such/socket?password=HUSH',
    'unix:///no/such/socket?password=HUSH&db=x', 'redis://:HUSH@127.0.0.1:1', 'valkeys://ann:HUSH@127.0.0.1:1',
    'redis://HU\u2100SH:WORD@host', 'HUSH@host', '//ann:HUSH@host', 'http://ann:HUSH@host']


class TestBeginnings:
    async def test_each_is_said_clearly(self, own_redis):
        "A wrong address, a wrong password, TLS, and a server that is no Redis"
        at = f"127.0.0.1:{own_redis('--requirepass', 'right').port}"
        for url, why in {'redis://127.0.0.1:1': 'could not be reached',
                         'redis://no-such-host.invalid': 'could not be reached|no answer',
                         f'redis://:secret@{at}': 'refused.*(invalid|WRONGPASS)',
                         f'redis://{at}': 'refused.*Authentication required',
                         f'redis://:right@{at}/9999': 'refused.*out of range',
                         f'rediss://:secret@{at}': 'could not be reached|broke',
                         'redis://localhost?nonsense=1': 'unknown.*nonsense'}.items(): await fails_to_start(url, why)
        for answer, why in {b'HTTP/1.1 400 Bad Request\r\n\r\n': 'refused|broke', b'': 'no answer|Timeout',
                            b'-ERR what?\r\n': r'refused.*what\?'}.items():
            async with answering(answer) as port: await fails_to_start(f'redis://127.0.0.1:{port}', why)

    @pytest.mark.parametrize('url', SECRETS)
    async def test_a_password_is_in_no_error(self, url):
        "Neither in the error nor in what it came from, nor in a traceback, nor in what a backend is called"
        said = await fails_to_start(url, '.')
        with suppress(ValueError, BackendError): said.append(repr(RedisBackend(url)))
        assert not [x for x in said if any(word in x for word in ('HUSH', 'WORD', '77123', '\u2100'))]

    async def test_a_key_of_another_kind_and_a_user_without_rights(self, shared):
        shared.client.set('sse', 'taken')
        await fails_to_start(shared.url(), 'refused.*WRONGTYPE|refused.*wrong kind')
        shared.client.execute_command('ACL', 'SETUSER', 'ann', 'on', '>pw', '+@read', '+ping', '~*')
        shared.client.delete('sse')
        await fails_to_start(shared.url().replace('//', '//ann:pw@'), 'refused.*permissions')

    async def test_a_full_redis(self, shared, one):
        "It refuses a broadcast and says why"
        async with following('queue', one) as q:
            await one.broadcast('n', 1)
            shared.client.config_set('maxmemory', 1)
            try:
                with pytest.raises(BackendError, match='refused.*maxmemory.*was not sent'): await one.broadcast('n', 2)
                with pytest.raises(BackendError, match='refused.*was not sent'): Publisher(shared.url()).broadcast('n', 2)
            finally: shared.client.config_set('maxmemory', 0)
            await one.broadcast('n', 3)
            assert await q.data(2) == [1, 3]

    @pytest.mark.parametrize('bad', [dict(url='http://x'), dict(url=None), dict(name=''), dict(max_length=0),
        dict(max_length=True), dict(max_age=0), dict(timeout=float('nan')), dict(timeout='2')], ids=repr)
    def test_bad_settings(self, bad):
        with pytest.raises(ValueError): RedisBackend(**{'url': 'redis://x', **bad})

    @pytest.mark.skipif(not shutil.which('openssl'), reason='needs openssl')
    async def test_valkey_unix_and_tls(self, own_redis, tmp_path):
        subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes',
            '-keyout', tmp_path/'key', '-out', tmp_path/'cert', '-days', '2', '-subj', '/CN=localhost',
            '-addext', 'subjectAltName=DNS:localhost'], check=True, capture_output=True)
        port = free_port()
        r = own_redis('--unixsocket', tmp_path/'r.sock', '--tls-port', port, '--tls-cert-file', tmp_path/'cert',
                      '--tls-key-file', tmp_path/'key', '--tls-auth-clients', 'no')
        urls = (f'valkey://127.0.0.1:{r.port}/0', f'unix://{tmp_path}/r.sock',
                f'rediss://localhost:{port}?ssl_ca_certs={tmp_path}/cert')
        ms = [SSEBroadcastManager(backend=url) for url in urls]
        async with following('queue', ms[1]) as q:
            for n, m in enumerate(ms): await m.broadcast('n', n)
            for n, url in enumerate(urls): Publisher(url).broadcast('n', 3+n)
            assert await q.data(6) == [*range(6)]
        for m in ms: await m.close()
        await fails_to_start(f'rediss://localhost:{port}', 'certificate')
        await fails_to_start(f'redis://localhost:{port}', 'could not be reached|broke|refused')


class TestCountsOfAll:
    async def test_reports_that_no_worker_has_written(self, shared, caplog):
        "Anybody may write into Redis. What makes no sense is said once, and nobody fails over it"
        bad = ['', '{', 'null', '7', '[]', '{}', b'\xff\xfe', '['*100_000, '{"users": 7, "stats": {}}',
            '{"users": [], "stats": []}', '{"users": ["ann"], "stats": {}}', '{"users": [[{"a": 1}, 1]], "stats": {}}',
            '{"users": [["ann", "x"]], "stats": {}}', '{"users": [], "stats": {"connections": "many"}}',
            '{"users": [], "stats": {"backlog": NaN}}', '{"users": [], "stats": {"bytes": -1}}']
        async with managers(shared) as (one, two):
            for m in one, two: await m.open()
            for i, text in enumerate(bad): shared.client.set(f'sse:worker:{i}', text)
            shared.client.sadd('sse:worker:list', 'x')
            shared.client.sadd('sse:workers', *map(str, range(len(bad))), 'list', b'\xff')
            for _ in range(2): assert (await one.cluster_stats())['workers'] == 2
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

    async def test_a_stop_ends_a_start(self, own_redis):
        "As where an app is told to stop while its Redis does not answer"
        r = own_redis()
        hang(r)
        async with no_task_left():
            backend = RedisBackend(r.url(), timeout=10*BOUND)
            starting = asyncio.create_task(backend.start(1, lambda record: 0, lambda *args: None))
            await asyncio.sleep(.1)
            await backend.stop()
            with pytest.raises(BackendError, match='stopped'): await asyncio.wait_for(starting, BOUND)


@pytest.fixture
def starting(tmp_path):
    "Starts the app `workers`, and does not wait for it"
    with ExitStack() as stack:
        def start(*args, cmd=None, **env):
            apps = Path(__file__).parent/'apps'
            server = Server(cmd or uvicorn('workers:app', *args), tmp_path/'workers.log', cwd=apps, env=env)
            stack.callback(server.kill)
            return server
        yield start

def says(server, text): wait_until(lambda: text in server.output, lambda: f'{text!r} is not in: {server.output}')


class TestServersStart:
    @pytest.mark.parametrize('patience', ['1', '1000'])
    def test_a_wrong_redis(self, starting, patience):
        "The start ends when it has waited long enough, or when it is told to"
        server = starting(REDIS_URL='redis://127.0.0.1:1', PATIENCE=patience, TIMEOUT='.3')
        says(server, 'could not be reached')
        if patience == '1000': server.signal()
        assert server.ends() or patience == '1000'

    def test_one_that_refuses_is_not_waited_for(self, own_redis, starting):
        server = starting(REDIS_URL=own_redis('--requirepass', 'right').url(), PATIENCE='1000')
        assert server.ends() and 'Authentication required' in server.output

    def test_a_worker_that_starts_meanwhile(self, own_redis, starting):
        "While Redis is away: it waits until Redis is back, and leaves the others alone"
        def pids(): return {app.get('/here').json()['pid'] for _ in range(30)}
        r = own_redis(*Redis.durable)
        app = starting('--workers', '2', REDIS_URL=r.url(), PATIENCE='1000').wait_until_up()
        wait_until(lambda: len(pids()) == 2, 'both answer')
        with ExitStack() as stack:
            pages = [stack.enter_context(Stream(app)) for n in range(10)]
            for s in pages: s.begun()
            held = {o['pid']: o['connections'] for o in (app.get('/here').json() for _ in range(50))}
            r.kill()
            os.kill(dead := max(held, key=lambda pid: not held[pid]), signal.SIGKILL)
            says(app, 'Trying again')
            r.start()
            with Publisher(r.url(), timeout=BOUND) as p: p.broadcast('said', 'back')
            whole = 0
            for s in pages:
                with suppress(ConnectionError):
                    while not s.ended and not s.said: s.read()
                whole += bool(s.said)
            assert whole == 10-held[dead]
        wait_until(lambda: len(pids()) == 2, lambda: app.output)


class TestSeveralWorkersWithoutABackend:
    WARNING = 'processes serve this app and nothing carries'
    CMDS = {'uvicorn, 2': uvicorn('workers:app', '--workers', '2'), 'uvicorn --reload': uvicorn('workers:app', '--reload'),
        'hypercorn, 2': [sys.executable, '-m', 'hypercorn', 'workers:app', '--bind', '127.0.0.1:{port}', '--workers', '2'],
        'granian, 2': [sys.executable, '-m', 'granian', '--interface', 'asgi', '--host', '127.0.0.1', '--port', '{port}',
                       '--workers', '2', 'workers:app']}

    @pytest.mark.parametrize('name', CMDS)
    def test_each_says_so_once(self, starting, name):
        reload = 'reload' in name
        app = starting(cmd=self.CMDS[name], **({'WEB_CONCURRENCY': '4'} if reload else {})).wait_until_up()
        wanted = 0 if reload else 2
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
                cmd = [sys.executable, '-c', JOB.format(url=shared.url())]
                await asyncio.to_thread(subprocess.run, cmd, check=True, timeout=BOUND)
                await page.ends()
                first, last = page.messages[0].data, page.messages[-1].data
                assert 'elsewhere' in first and '0 of 3' in first and '3 of 3' in last and 'completed' in last
            jobs = setup_progress(late, there, authorise=True)
            assert 'a/b' not in jobs
            async with listening(late, '/stream_job_status?job_id=a%2Fb') as page:
                await page.ends()
                assert 'Completed' in page.messages[0].data and page.told_to_stay

    async def test_the_dashboard_shows_each_process(self, own_redis):
        "It counts nothing of the past that Redis remembers, and goes on without Redis"
        r = own_redis()
        Publisher(r.url()).broadcast('before', 1)
        async with managers(r, timeout=1.) as (here, there):
            app = FastHTML(secret_key='test')
            setup_dashboard(app, here, authorise=True, interval=.05)
            def shown(): return page.messages[-1].data if page.messages else ''
            async with (following('stream', here), following('stream', here), following('stream', there),
                        listening(app, '/_sse/dashboard/events') as page):
                await here.broadcast('after', 1)
                await eventually(lambda: 'after' in shown() and 'All</th><td class="n">2</td>' in shown(), 'it counts')
                html = shown()
                assert html.count(f'<code>{worker_name()}</code>') == 2 and html.count('(this one)') == 1
                assert 'before' not in html and here.get_history()[0]['type'] == 'before'
                r.kill()
                await eventually(lambda: 'The backend does not answer' in shown(), 'it says so')
                n = len(page.messages)
                await eventually(lambda: len(page.messages) > n+3 and 'now 0, least 0' in shown(), 'the charts go on')
