"The Redis backend, on real servers: two managers in one process are what two workers are, and then there are real workers"
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from math import inf
from pathlib import Path

import httpx
import pytest
import redis
from fastcore.basics import NotStr
from fastcore.xml import Li, Span
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import Server, Stream, free_port, running, uvicorn

from cjm_fasthtml_sse.backends import redis as redis_backend
from cjm_fasthtml_sse.backends.base import check_backend
from cjm_fasthtml_sse.engine.messages import BackendError
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.backends.packing import DataError, pack, unpack
from cjm_fasthtml_sse.backends.redis import Publisher, RedisBackend
from cjm_fasthtml_sse.engine.render import to_html
from cjm_fasthtml_sse.engine.wire import GAP, FieldError
from tests.support import BOUND, eventually, following, gaps, no_task_left, read, read_to, tab, turns

BINARIES = [b for b in ('redis-server', 'valkey-server') if shutil.which(b)]
DURABLE = '--appendonly', 'yes', '--appendfsync', 'always'  # What it has acknowledged outlives a kill
pytestmark = [pytest.mark.redis, pytest.mark.skipif(not BINARIES, reason='needs redis-server or valkey-server')]


class Redis:
    "A server of our own; what it keeps over a restart depends on `args`"
    def __init__(self, folder, *args, binary=None):
        self.port,self.args,self.folder,self.process = free_port(),args,folder,None
        self.binary = binary or (BINARIES[0] if BINARIES else '')
        self.url = f'redis://127.0.0.1:{self.port}'
        self.client = redis.Redis(port=self.port, socket_timeout=5, password=args[args.index('--requirepass')+1] if '--requirepass' in args else None)

    def start(self):
        cmd = [self.binary, '--port', self.port, '--bind', '127.0.0.1', '--save', '', '--dir', self.folder, *(self.args or ('--appendonly', 'no'))]
        with open(self.folder/'redis.log', 'ab') as f: self.process = subprocess.Popen([*map(str, cmd)], stdout=f, stderr=f, start_new_session=True)
        end = time.monotonic()+10
        while True:
            with suppress(redis.RedisError):
                if self.client.ping(): return self
            assert time.monotonic()<end and self.process.poll() is None, (self.folder/'redis.log').read_text()
            time.sleep(.02)

    def kill(self, sig=signal.SIGKILL):
        if self.process is None: return
        self.process.send_signal(sig)
        self.process.wait(10)
        self.client.close()
        self.process = None

    def clients(self):
        "Connections, without the one that asks"
        return len(self.client.client_list())-1


@pytest.fixture
def redises(tmp_path):
    "Starts servers, and ends them after the test"
    with ExitStack() as stack:
        def start(*args, **kw):
            folder = tmp_path/f'redis{len([*tmp_path.iterdir()])}'
            folder.mkdir()
            r = Redis(folder, *args, **kw)
            stack.callback(r.kill)
            return r.start()
        yield start


@pytest.fixture
def server(redises): return redises()


class OtherProcess(RedisBackend):
    "Plays one of several processes: two managers of one may not share a name"
    address = None

@asynccontextmanager
async def managers(url, n=2, **kw):
    "Managers that share a Redis; `kw` goes to their backends"
    ms = [SSEBroadcastManager(backend=OtherProcess(url, **kw)) for _ in range(n)]
    try: yield ms
    finally:
        for m in ms: await m.close()


def raises(error):
    "A function that does just that"
    def f(*args): raise error
    return f


async def of(queue, n):
    "The data of the next `n` messages of a queue"
    return [(await asyncio.wait_for(queue.get(), BOUND))['data'] for _ in range(n)]


# What crosses

plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(codec='utf-8')),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(['$html', '$dict', '$x', 'a']), inner, max_size=3), max_leaves=20)

@given(plain)
@settings(max_examples=300, deadline=None)
def test_plain_data_arrives_as_it_was_whatever_its_keys(data):
    got = unpack(pack(data).encode())
    assert got==data and 'NotStr' not in repr([type(o) for o in walk(got)])

def walk(o):
    yield o
    for x in (o.values() if isinstance(o, dict) else o if isinstance(o, list) else ()): yield from walk(x)

@dataclass
class Point: x: int; y: date

def test_other_values_cross_as_json_writes_them():
    class Own:
        def __ft__(self): return Span('own')
    class Safe(str):
        def __html__(self): return str(self)
    data = dict(p=Point(1, date(2030, 1, 2)), u=uuid.UUID(int=5), d=Decimal('1.50'), path=Path('/a'), s={2, 1}, t=(1,), own=Own(), safe=Safe('<b>'), raw=NotStr('<i>'))
    got = unpack(pack(data))
    assert got['p']==dict(x=1, y='2030-01-02') and got['u']==str(uuid.UUID(int=5)) and (got['d'], got['path'], got['s'], got['t'])==('1.50', '/a', [1, 2], [1])
    assert [to_html([got[k]]) for k in ('own', 'safe', 'raw')]==['<span>own</span>', '<b>', '<i>']

async def test_what_cannot_cross_is_refused_at_the_call_and_nothing_is_sent(server):
    async with managers(server.url, 1) as (manager,):
        await manager.open()
        before = server.client.xlen('sse')
        loop = {}
        loop['self'] = loop
        for data,key,place in [(dict(user=dict(avatar=object())), None, r"`data\['user'\]\['avatar'\]`"), ([1, float('inf')], None, r'`data\[1\]`'),
                               (loop, None, 'nested too deeply'), (dict(a='\udfff'), None, r"`data\['a'\]`"), (1, (1, object()), r'`key\[1\]`')]:
            with pytest.raises(DataError, match=place): await manager.broadcast('n', data, key=key)
            with pytest.raises(DataError, match=place): Publisher(server.url).broadcast('n', data, key)
        with pytest.raises(FieldError): Publisher(server.url).broadcast('a\nb', 1)
        assert server.client.xlen('sse')==before


# Carrying

@pytest.mark.parametrize('binary', BINARIES)
async def test_the_backend_passes_the_check_of_all_backends(redises, binary):
    r = redises(binary=binary)
    async with no_task_left(): await check_backend(lambda: RedisBackend(r.url))
    await eventually(lambda: r.clients()==0)

async def test_page_of_another_worker(server):
    "Its stream goes on where it stands, at a worker that lags behind too, whichever message that is at; before Redis was reached a page stands nowhere"
    other = SSEBroadcastManager()
    async with managers(server.url) as (quick, slow):
        assert (quick.cursor, slow.cursor)==('', '')
        await slow.open()
        await quick.broadcast('n', 0)
        before = f'{other.cursor} {quick.cursor}'
        await slow._hub.publish_lock.acquire()  # Nothing is delivered meanwhile
        await quick.broadcast('n', 1)
        await asyncio.sleep(.1)         # Read, but not delivered
        asyncio.get_running_loop().call_later(.2, slow._hub.publish_lock.release)
        async with tab(slow, headers={'SSE-After': f'{quick.cursor} {other.cursor}'}) as late, tab(slow, headers={'SSE-After': before}) as early:
            await slow.broadcast('n', 2)
            assert [[e.data for e in await read(client, n)] for client,n in ((late, 1), (early, 2))]==[['2'], ['1', '2']]
            assert not gaps(late) and not gaps(early)

async def test_a_browser_from_a_quicker_worker_gets_no_gap(server):
    async with managers(server.url) as (quick, slow):
        await slow.open()
        await slow._hub.publish_lock.acquire()  # Nothing is delivered meanwhile
        for n in range(3): await quick.broadcast('n', n)
        opening = asyncio.create_task(asyncio.sleep(.2))
        opening.add_done_callback(lambda _: slow._hub.publish_lock.release())
        async with tab(slow, last_event_id=quick.cursor) as client:
            await slow.broadcast('n', 3)
            assert [e.data for e in await read(client, 1)]==['3'] and not gaps(client)
        start = time.monotonic()
        epoch = slow.cursor.partition(':')[0]
        for claimed in (f'{epoch}:{10**14}-0', f'{epoch}:1-{10**30}', f'{epoch}:²-0', f'{epoch}:-1', 'x'*3000):
            async with tab(slow, last_event_id=claimed) as client: assert [e.event for e in await read(client, 1)]==[GAP]
        assert time.monotonic()-start<3

async def test_thousands_who_return_at_once_share_a_question(server):
    "Each has an id that is not known here yet, or that never was"
    def asked(): return server.client.info('commandstats').get('cmdstat_xrevrange', dict(calls=0))['calls']
    async with managers(server.url) as (quick, slow):
        await slow.open()
        await slow._hub.publish_lock.acquire()
        for n in range(3): await quick.broadcast('n', n)
        await eventually(lambda: slow._backend._last!=quick._backend._last)
        before,reach = asked(),slow._backend.reach
        epoch,unknown = quick.cursor.partition(':')[0],[]
        async def never():
            await reach(f'{epoch}:{10**14}-0')
            unknown.append(slow._hub.publish_lock.locked())
        known = [asyncio.create_task(reach(quick.cursor)) for _ in range(1000)]
        await asyncio.gather(*[never() for _ in range(1000)])
        slow._hub.publish_lock.release()
        await asyncio.gather(*known)
        assert slow._backend._last==quick._backend._last and all(unknown), 'who claims what Redis does not know need not wait'
        assert asked()-before<20

async def test_a_worker_that_has_lost_touch_invents_no_gap_for_a_browser_that_has_seen_more(server):
    async with managers(server.url) as (quick, cut_off), following(quick) as client:
        await cut_off.open()
        await quick.broadcast('n', 0)
        await eventually(lambda: cut_off.cursor==quick.cursor, 'it reads')
        reader = cut_off._backend._lines[0]
        make,reader.make = reader.make,raises(OSError('away'))
        await reader.conn.disconnect(nowait=True)
        await eventually(lambda: cut_off._backend._gone, 'it notices')
        for n in (1, 2): await quick.broadcast('n', n)
        last = (await read(client, 3))[-1].id
        async with tab(cut_off, last_event_id=last) as late:
            assert (late.status, late.headers['retry-after'])==(503, '3'), 'not for now: another worker may know it'
        reader.make = make
        await eventually(lambda: cut_off.cursor==last, 'it is back')
        async with tab(cut_off, last_event_id=last) as late:
            await quick.broadcast('n', 3)
            assert (await late.next(BOUND)).data=='3'

async def test_a_process_makes_two_connections_to_redis_however_many_streams_it_has(server):
    def made(): return server.client.info('stats')['total_connections_received']
    before = made()
    async with managers(server.url, 1) as (m,), AsyncExitStack() as stack:
        for n in (1, 30):
            streams = [await stack.enter_async_context(following(m, events=[f'n{i}', 'all'])) for i in range(n)]
            await asyncio.gather(*[m.broadcast(f'n{i}', i) for i in range(n)])
            unknown = f"{m.cursor.partition(':')[0]}:{10**14}-0"  # A worker asks Redis whether it knows such an id
            back = await asyncio.gather(*[stack.enter_async_context(tab(m, last_event_id=unknown, events='all')) for _ in range(n)])
            await m.cluster_stats()
            await m.broadcast('all', 'all')
            for i,c in enumerate(streams): assert [json.loads(e.data) for e in await read(c, 2)]==[i, 'all']
            for c in back: assert [e.event for e in await read(c, 2)]==[GAP, 'all']
        assert m.connection_count==62 and (made()-before, server.clients())==(2, 2), 'one reads, one writes'

async def test_a_connection_that_breaks_while_a_worker_starts_is_made_again(server, monkeypatch):
    "As where Redis is restarted in this moment: the worker would not start, and uvicorn would end all others with it"
    load,broken = RedisBackend._load,[]
    async def breaks_once(self):
        if not broken:
            broken.append(self)
            with redis.Redis.from_url(server.url) as r: r.client_kill_filter(skipme=True)
        await load(self)
    monkeypatch.setattr(RedisBackend, '_load', breaks_once)
    async with managers(server.url, timeout=BOUND) as (one, two), following(two) as c:
        assert broken and await one.broadcast('n', 1)==0
        assert (await c.next(BOUND)).data=='1'

async def test_a_message_sent_before_any_worker_ran_is_in_the_history(server):
    with Publisher(server.url) as p: p.broadcast('n', 'early')
    async with managers(server.url, 1) as (m,):
        await m.open()
        assert [x['data'] for x in m.get_history()]==['early']

async def test_two_workers_that_begin_on_an_empty_redis_agree_on_the_id_of_nothing(server):
    async with managers(server.url) as (one, two):
        await asyncio.gather(one.open(), two.open())
        assert one.cursor==two.cursor
        await one.broadcast('n', 1)
        async with managers(server.url, 1) as (late,):
            async with tab(late, last_event_id=f"{one.cursor.partition(':')[0]}:0-1") as client: assert (await client.next(BOUND)).data=='1'

async def test_a_key_that_crosses_as_an_object_is_a_key_everywhere(server):
    "A dataclass is hashable here, and becomes an object in JSON"
    @dataclass(frozen=True)
    class Place: row: int; col: int
    async with managers(server.url) as (one, two), one.subscribe() as a, two.subscribe() as b:
        start = two.cursor
        for n,place in enumerate([Place(1, 2), ('x', Place(1, 2)), Place(1, 2), Place(1, 3)]): await one.broadcast('n', n, key=place)
        for q in (a, b): assert await of(q, 4)==[0, 1, 2, 3]
        with Publisher(server.url) as p: p.broadcast('n', 4, key=Place(1, 3))
        for q in (a, b): assert await of(q, 1)==[4]
        async with tab(two, last_event_id=start) as client: assert [int(e.data) for e in await read(client, 3)]==[1, 2, 4]

async def test_apps_share_a_redis_by_their_names(server):
    async with managers(server.url, 1, name='shop') as (shop,), managers(server.url, 1, name='blog') as (blog,), shop.subscribe() as q, blog.subscribe() as p:
        await shop.broadcast('n', 'shop')
        await blog.broadcast('n', 'blog')
        Publisher(server.url, name='blog').broadcast('n', 'script')
        assert await of(p, 2)==['blog', 'script'] and await of(q, 1)==['shop'] and q.empty()
        assert (await shop.cluster_stats())['workers']==1

async def test_managers_of_one_process_need_different_names(server):
    "They would hear each other. The error says what to write; one that was closed, or left behind by its event loop, is in nobody's way"
    one,two,same,other = [SSEBroadcastManager(backend=b) for b in (server.url, server.url, f'{server.url}/0', RedisBackend(server.url, name='other'))]
    with pytest.raises(BackendError) as e: await asyncio.gather(one.open(), two.open())
    assert "RedisBackend('redis://...', name='...')" in str(e.value) and "'sse'" in str(e.value)
    for m in (two, same):
        with pytest.raises(BackendError, match='name='): await m.broadcast('n', 1)
    await other.broadcast('n', 1)
    for m in (one, other): assert len(m.get_history())==(m is other)
    for before,m in ((one, two), (two, same), (same, one)):
        await before.close()
        await m.open()
    await one.close()
    await other.close()

def test_a_manager_of_a_loop_that_ended_is_in_nobodys_way(server):
    for _ in range(2): asyncio.run(SSEBroadcastManager(backend=server.url).open())

def test_a_start_that_failed_is_in_nobodys_way(redises):
    r = redises()
    r.kill()
    async def fail_and_start():
        failed,well = (SSEBroadcastManager(backend=RedisBackend(r.url, timeout=secs)) for secs in (.1, BOUND))
        with pytest.raises(BackendError): await failed.open()
        r.start()
        await well.open()
        await well.close()
    asyncio.run(fail_and_start())

async def test_length_and_age_are_bounded(server, monkeypatch):
    async with managers(server.url, 1, max_length=200) as (m,):
        await m.open()
        for n in range(0, 1000, 100): await asyncio.gather(*[m.broadcast('n', n) for _ in range(100)])
        assert 200<=server.client.xlen('sse')<=400
    async with managers(server.url, 1, max_age=.2) as (m,):
        await m.broadcast('n', 'new')
        await asyncio.sleep(.3)
        m._backend._trimmed = -1e9
        monkeypatch.setattr(redis_backend, 'PULSE', .05)
        await eventually(lambda: server.client.xlen('sse')==1, 'old entries are trimmed, and the newest one stays')
        assert unpack(server.client.xrevrange('sse', count=1)[0][1][b'm'])['data']=='new'
        async with managers(server.url, 1) as (later,), tab(later, last_event_id=f"{m.cursor.partition(':')[0]}:0-0") as client:
            assert (await client.next(BOUND)).event==GAP, 'what was trimmed is missing'

# Without an event loop

def test_a_script_publishes(server, tmp_path):
    async def listen(*script):
        async with managers(server.url, 1) as (m,), m.subscribe() as q:
            (tmp_path/'script.py').write_text('\n'.join(script))
            p = await asyncio.create_subprocess_exec(sys.executable, tmp_path/'script.py', env={**os.environ, 'URL': server.url}, cwd=tmp_path)
            assert await asyncio.wait_for(p.wait(), 20)==0
            return await of(q, 2)
    got = asyncio.run(listen('import os, sys', 'from cjm_fasthtml_sse.backends.redis import Publisher', 'with Publisher(os.environ["URL"]) as p:',
        '    for n in range(2): p.broadcast("n", n)', 'assert "fasthtml" not in sys.modules and "cjm_fasthtml_sse.core" not in sys.modules'))
    assert got==[0, 1]
    got = asyncio.run(listen('import os', 'from cjm_fasthtml_sse.core import SSEBroadcastManager', 'm = SSEBroadcastManager(backend=os.environ["URL"])',
        'm.on_broadcast(lambda x: {**x, "data": x["data"]+1})', 'for n in range(2): assert m.broadcast_threadsafe("n", n).result()==0',
        'assert m._backend.origin is None, "it need not read the past"'))
    assert got==[1, 2]

@pytest.mark.parametrize('asynchronous', [False, True])
def test_a_hook_that_broadcasts_without_a_loop(server, asynchronous):
    "Neither the message nor what its hook broadcasts is lost, whether the hook awaits it or not"
    manager = SSEBroadcastManager(backend=server.url)
    def audit(m):
        if m['type']=='n': manager.broadcast('called', m['data'])
    async def later(m):
        await asyncio.sleep(0)
        audit(m)
        if m['type']=='n': await manager.broadcast('awaited', m['data'])
    manager.on_broadcast(later if asynchronous else audit)
    assert manager.broadcast('n', 1).result()==0 and asyncio.run(manager.broadcast('n', 2))==0
    types = [unpack(m[b'm'])['type'] for _,m in server.client.xrange('sse')]
    assert sorted(types)==['awaited']*2*asynchronous+['called']*2+['n']*2 and manager._backend.origin is None

async def test_a_hook_that_broadcasts_after_close(server):
    "`close` cancels what takes too long, but not a task that a hook has left to itself. Its message arrives; afterwards no reader is left, and no worker is counted"
    async with managers(server.url, 1) as (other,), no_task_left():
        manager,go,later = SSEBroadcastManager(backend=server.url),asyncio.Event(),[]
        async def slow():
            await go.wait()
            await manager.broadcast('left', 1)
        manager.on_disconnect(lambda conn: later.append(asyncio.create_task(slow())))
        async with other.subscribe() as q, following(manager) as client:
            await manager.close(.05)
            assert (await other.cluster_stats())['workers']==1
            go.set()
            assert (await asyncio.wait_for(q.get(), BOUND))['type']=='left'
            await client._task
            await eventually(lambda: manager._backend._reader is None, 'the reader ends again')
            await eventually(lambda: len(server.client.smembers('sse:workers'))==1, 'no token is left')
        await other.close()

async def test_close_beside_broadcasts(server):
    async with managers(server.url, 1) as (m,):
        await m.open()
        sent = [m.broadcast('n', i) for i in range(50)]
        closing = asyncio.create_task(m.close())
        await asyncio.sleep(0)
        sent += [m.broadcast('n', i) for i in range(50, 100)]
        assert await asyncio.gather(*sent)==[0]*100
        await closing
        await eventually(lambda: m._backend._reader is None and not server.client.smembers('sse:workers'), 'nothing is left')
        assert [unpack(e[b'm'])['data'] for _,e in server.client.xrange('sse') if b'data' in e[b'm']]==[*range(100)]

def test_a_publisher_says_what_became_of_a_broadcast(redises):
    r = redises(*DURABLE)
    with Publisher(r.url, timeout=3.) as p:
        p.broadcast('n', 1)
        r.kill()
        start = time.monotonic()
        with pytest.raises(BackendError, match='was not sent'): p.broadcast('n', 2)
        assert time.monotonic()-start<BOUND
        r.start()
        p.broadcast('n', 3)  # The connection that broke does not spoil it
        r.kill(signal.SIGTERM)
        r.start()
        p.broadcast('n', 4)
        assert [unpack(m[b'm'])['data'] for _,m in r.client.xrange('sse')]==[1, 3, 4]
        p._used = time.monotonic()+5
        os.kill(r.process.pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(BackendError, match='may or may not'): p.broadcast('n', 5)
        assert time.monotonic()-start<BOUND
        os.kill(r.process.pid, signal.SIGCONT)
    manager = SSEBroadcastManager(backend=RedisBackend('redis://127.0.0.1:1', timeout=.2))
    with pytest.raises(BackendError): manager.broadcast_threadsafe('n', 1)

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork')
def test_a_publisher_survives_a_fork(server):
    p = Publisher(server.url)
    p.broadcast('n', 'parent')
    connection = p._conn
    if not (pid := os.fork()):
        try:
            p.broadcast('n', 'child')
            os._exit(0 if p._conn is not connection else 2)  # On one connection, each would read the other's answers
        finally: os._exit(1)
    assert os.waitpid(pid, 0)[1]==0
    p.broadcast('n', 'parent again')
    assert [unpack(m[b'm'])['data'] for _,m in server.client.xrange('sse')]==['parent', 'child', 'parent again'] and p._conn is connection


def all_at_once(n, f):
    "Call `f(i)` in `n` threads; how long each took, in seconds, and what it raised"
    def timed(i):
        start,raised = time.monotonic(),None
        try: f(i)
        except Exception as e: raised = e
        return time.monotonic()-start,raised
    with ThreadPoolExecutor(n) as pool: return [*pool.map(timed, range(n))]

@pytest.mark.parametrize('state', ['new', 'in use', 'away'])
def test_a_publishers_timeout_holds_for_each_of_many_threads(redises, state):
    "They share one connection, so the last of ten waited for nine others"
    r = redises()
    with Publisher(r.url, timeout=2.) as p:
        if state=='in use':
            p.broadcast('n', 'first')
            p._used = inf  # It is not asked for a sign of life
        if state=='away': r.kill()
        else: os.kill(r.process.pid, signal.SIGSTOP)
        took = all_at_once(10, lambda i: p.broadcast('n', i))
        assert {type(e) for _,e in took}=={BackendError} and max(secs for secs,_ in took)<2*p.timeout
        if state=='in use': assert sum('may or may not' in str(e) for _,e in took)==1, 'the others never began'
        if state=='away': return
        os.kill(r.process.pid, signal.SIGCONT)
        p.timeout = BOUND
        assert {e for _,e in all_at_once(10, lambda i: p.broadcast('n', f'again {i}'))}=={None}
        sent = [unpack(m[b'm'])['data'] for _,m in r.client.xrange('sse')]
        assert {f'again {i}' for i in range(10)}<={*sent} and len(sent)==len({*sent})

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork')
def test_a_publisher_that_was_busy_at_a_fork_serves_the_child(server):
    "Nobody in the child would ever give back what another thread of the parent had taken"
    with Publisher(server.url) as p, p._lock:
        if not (pid := os.fork()):
            signal.alarm(int(BOUND))  # It ends in any case
            try:
                p.broadcast('n', 'child')
                os._exit(0)
            finally: os._exit(1)
        assert os.waitpid(pid, 0)[1]==0


# Redis goes, and comes back

def patience(secs, *managers):
    "How long an answer may take from now on. A busy machine needs more than a test that waits in vain on purpose wants to give"
    for m in managers:
        for o in (m._backend, *m._backend._lines): o.timeout = secs


@pytest.mark.parametrize('way', ['came back without its newest'])
async def test_what_redis_lost_is_told_to_every_tab_and_all_workers_agree(redises, way, monkeypatch):
    monkeypatch.setattr(redis_backend, 'PULSE', .2)
    r = redises()
    def state(): return Li('state')
    def render(m): return Li(m['data'])
    async with managers(r.url, 3) as (one, two, three), following(one) as a, following(two) as b, following(three, render=render, snapshot=state) as c:
        for n in range(3): await one.broadcast('n', n)
        if 'without' in way:
            r.client.save()
            for n in range(3, 6): await one.broadcast('n', n)
            sent = 6
        else: sent = 3
        for x in (a, b): assert len(await read(x, sent))==sent
        assert [e.data for e in await read(c, sent+1)][0]=='<li>state</li>'
        old = one.cursor
        if way=='flushed': r.client.flushall()
        else:
            r.kill()
            if 'empty' in way: (r.folder/'dump.rdb').unlink(missing_ok=True)
            r.start()
        for x in (a, b): assert (await x.next(BOUND)).event==GAP
        assert (await c.next(BOUND)).data=='<li>state</li>'
        await eventually(lambda: len({m.cursor.partition(':')[0] for m in (one, two, three)})==1 and one.cursor.partition(':')[0]!=old.partition(':')[0])
        await two.broadcast('n', 'on')
        for x in (a, b, c): assert 'on' in (await x.next(BOUND)).data
        async with tab(three, last_event_id=old) as back: assert (await back.next(BOUND)).event==GAP
        async with managers(r.url, 1) as (new,):
            await new.open()
            assert new.cursor==one.cursor
        history = [m['data'] for m in one.get_history()]
        assert history[-1]=='on' and len(history)==len([*dict.fromkeys(history)])

@pytest.mark.parametrize('way', ['away', 'slow'])
async def test_a_worker_for_which_entries_were_dropped_tells_a_gap_and_the_others_none(server, way):
    async with managers(server.url, max_length=100) as (one, two), following(one) as a, following(two) as b:
        await one.broadcast('n', 0)
        for c in (a, b): await c.next(BOUND)
        if way=='away':
            line = two._backend._lines[0]
            made,line.make = line.make,lambda: (_ for _ in ()).throw(OSError('away'))
            await line.conn.disconnect(nowait=True)
        else: await two._hub.publish_lock.acquire()
        for _ in range(6): await asyncio.gather(*[one.broadcast('n', 1) for _ in range(100)])
        epoch = one.cursor.partition(':')[0]
        if way=='away': line.make = made
        else: two._hub.publish_lock.release()
        await read_to(b, GAP)
        await one.broadcast('end', 0)
        await read_to(b, 'end')
        assert len(await read_to(a, 'end'))==600 and not gaps(a) and two.cursor==one.cursor and two.cursor.startswith(epoch)

def entry(n): return dict(m=json.dumps(dict(type='n', data=n)))

def publish_and_trim(m, client):
    "Publish 150 entries to a log of about a hundred, no faster than `m` reads them"
    for n in range(150):
        Publisher(client.url, max_length=1).broadcast('n', 'y'*200)
        end,newest = time.monotonic()+BOUND,client.xrevrange('sse', count=1)[0][0]
        while n%20 == 19 and not m.cursor.endswith(newest.decode() if isinstance(newest, bytes) else newest):
            assert time.monotonic()<end, 'what was published is read'
            time.sleep(.002)

TRIMS = dict(by_hand=lambda m, client: client.xtrim('sse', maxlen=5, approximate=False),
    by_a_smaller_publisher=lambda m, client: client.xadd('sse', entry('y'), maxlen=1, approximate=False),
    by_a_publisher_of_ours=lambda m, client: publish_and_trim(m, client),
    by_age=lambda m, client: client.xtrim('sse', minid=client.xrevrange('sse', count=3)[-1][0], approximate=False))

@pytest.mark.parametrize('way', TRIMS)
async def test_a_short_log_that_was_trimmed_is_told(server, way):
    "However few entries are left for a worker that was slow: those that it missed are a gap, and for the others there is none"
    server.client.url = server.url
    async with managers(server.url) as (one, two), following(one) as a, following(two) as b:
        await two._hub.publish_lock.acquire()
        for n in range(20): await one.broadcast('n', n)
        await asyncio.to_thread(TRIMS[way], one, server.client)
        assert server.client.xlen('sse')<100
        two._hub.publish_lock.release()
        await read_to(b, GAP)
        await one.broadcast('end', 0)
        await read_to(b, 'end')
        assert len(await read_to(a, 'end'))>=20 and not gaps(a) and two.cursor==one.cursor

async def test_a_server_that_does_not_count_is_told_in_doubt(server, monkeypatch):
    "Redis 6 knows no `entries-added`"
    item = redis_backend._item
    monkeypatch.setattr(redis_backend, '_item', lambda info, name, default: default if name=='entries-added' else item(info, name, default))
    async with managers(server.url, 1) as (m,), following(m) as c:
        for n in range(150): await m.broadcast('n', n)
        assert len(await read(c, 150))==150 and not gaps(c)
        server.client.xadd('sse', entry(1), maxlen=1, approximate=False)
        await read_to(c, GAP)

async def test_the_reader_that_somebody_cancelled_starts_again(server):
    async with managers(server.url, 1) as (m,), m.subscribe() as q:
        m._backend._reader.cancel()
        await asyncio.sleep(0)
        assert await m.broadcast('n', 1)==1 and await of(q, 1)==[1]

async def test_each_manager_needs_a_backend_of_its_own(server):
    async with managers(server.url, 1) as (m,):
        await m.open()
        with pytest.raises(BackendError, match='each needs one of its own'): await SSEBroadcastManager(backend=m._backend).open()
        assert await m.broadcast('n', 1)==0

async def test_broadcasts_that_were_cancelled(server):
    async with managers(server.url, 1) as (m,), m.subscribe() as q:
        ts = [asyncio.create_task(m.broadcast('n', n)) for n in range(20)]
        await asyncio.sleep(0)
        for t in ts[::2]: t.cancel()
        await asyncio.gather(*ts, return_exceptions=True)
        await m.broadcast('n', 'end')
        got = []
        while 'end' not in got: got += await of(q, 1)
        assert {*range(1, 20, 2)}<={*got[:-1]} and len(got)==len({*got}) and not m._backend._own


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
        for begin in ('open', 'broadcast', 'publisher'):
            m = SSEBroadcastManager(backend=RedisBackend(url, timeout=.25))
            with pytest.raises(BackendError, match=why) as e:
                if begin=='open': await m.open()
                elif begin=='broadcast': await m.broadcast('n', 1)
                else: await asyncio.to_thread(Publisher(url, timeout=.25).broadcast, 'n', 1)
            assert 'secret' not in str(e.value) and 'secret' not in repr(m._backend)
    assert time.monotonic()-start<3

async def test_a_wrong_address_a_wrong_password_tls_and_a_server_that_is_no_redis_are_said_clearly(redises):
    locked = redises('--requirepass', 'right')
    locked_up = f'redis://127.0.0.1:{locked.port}'
    await fails_to_start('redis://:secret@127.0.0.1:1', 'could not be reached')
    await fails_to_start('redis://no-such-host.invalid', 'could not be reached|no answer')
    await fails_to_start(f'redis://:secret@127.0.0.1:{locked.port}', 'refused.*(invalid|WRONGPASS)')
    await fails_to_start(locked_up, 'refused.*Authentication required')
    await fails_to_start(f'redis://:right@127.0.0.1:{locked.port}/99', 'refused.*out of range')
    await fails_to_start(f'rediss://:secret@127.0.0.1:{locked.port}', 'could not be reached|broke')
    await fails_to_start('redis://:sec#ret/secret@x:y', 'makes no sense')
    await fails_to_start('redis://localhost?nonsense=1', 'unknown.*nonsense')
    for answer,why in [(b'HTTP/1.1 400 Bad Request\r\n\r\n', 'refused|broke'), (b'', 'no answer|Timeout'), (b'-ERR what?\r\n', r'refused.*what\?')]:
        async with answering(answer) as port: await fails_to_start(f'redis://127.0.0.1:{port}', why)

SECRETS = ['redis://ann:HUSH/WORD@host', 'redis://:HUSH/WORD@host:1', 'redis://ann:77123/WORD@host', 'redis://:HUSH#WORD@host', 'redis://:HUSH?WORD@host', 'redis://:[HUSH@host',
    'redis://host:HUSH', 'redis://127.0.0.1:1?password=HUSH', 'redis://127.0.0.1:1?username=ann&password=HUSH&nonsense=1', 'redis://127.0.0.1:1/0?password=HUSH&db=x',
    'unix://ann:HUSH@/no/such/socket', 'unix:///no/such/socket?password=HUSH', 'unix:///no/such/socket?password=HUSH&db=x', 'redis://:HUSH@127.0.0.1:1',
    'valkeys://ann:HUSH@127.0.0.1:1', 'redis://HU\u2100SH:WORD@host', 'HUSH@host', '//ann:HUSH@host', 'http://ann:HUSH@host']

@pytest.mark.parametrize('url', SECRETS)
async def test_a_password_is_in_no_error(url):
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
    for f in (begin, publish): await tell(f)
    assert said and not [x for x in said if any(word in x for word in ('HUSH', 'WORD', '77123', '\u2100'))]

async def test_a_key_of_another_kind_and_a_user_without_rights_are_said_clearly(server):
    server.client.set('sse', 'taken')
    await fails_to_start_on(server.url, 'refused.*WRONGTYPE|refused.*wrong kind')
    server.client.execute_command('ACL', 'SETUSER', 'ann', 'on', '>pw', '+@read', '+ping', '~*')
    server.client.delete('sse')
    await fails_to_start_on(server.url.replace('//', '//ann:pw@'), 'refused.*permissions')

async def fails_to_start_on(url, why):
    m = SSEBroadcastManager(backend=RedisBackend(url, timeout=1.))
    with pytest.raises(BackendError, match=why): await m.open()

async def test_a_full_redis_refuses_a_broadcast_and_says_why(server):
    async with managers(server.url, 1) as (m,), m.subscribe() as q:
        await m.broadcast('n', 1)
        server.client.config_set('maxmemory', 1)
        with pytest.raises(BackendError, match='refused.*maxmemory.*was not sent'): await m.broadcast('n', 2)
        with pytest.raises(BackendError, match='refused.*was not sent'): Publisher(server.url).broadcast('n', 2)
        server.client.config_set('maxmemory', 0)
        await m.broadcast('n', 3)
        assert await of(q, 2)==[1, 3]

def test_bad_settings_are_refused_at_once():
    for bad in (dict(url='http://x'), dict(url=None), dict(name=''), dict(max_length=0), dict(max_length=True), dict(max_age=0), dict(timeout=float('nan')), dict(timeout='2')):
        with pytest.raises(ValueError): RedisBackend(**{'url': 'redis://x', **bad})
    for url in ('redis://x', 'rediss://x', 'valkey://x', 'valkeys://x', 'unix:///run/x.sock'): assert isinstance(SSEBroadcastManager(backend=url)._backend, RedisBackend)

async def test_valkey_and_unix_addresses(redises, tmp_path):
    r = redises('--unixsocket', str(tmp_path/'r.sock'))
    async with managers(f'valkey://127.0.0.1:{r.port}/0', 1) as (one,), managers(f'unix://{tmp_path}/r.sock', 1) as (two,), two.subscribe() as q:
        await one.broadcast('n', 1)
        Publisher(f'unix://{tmp_path}/r.sock').broadcast('n', 2)
        assert await of(q, 2)==[1, 2]

async def test_tls(redises, tmp_path):
    if not shutil.which('openssl'): pytest.skip('needs openssl')
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', tmp_path/'key', '-out', tmp_path/'cert',
        '-days', '2', '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'], check=True, capture_output=True)
    port = free_port()
    r = redises('--tls-port', port, '--tls-cert-file', tmp_path/'cert', '--tls-key-file', tmp_path/'key', '--tls-auth-clients', 'no')
    url = f'rediss://localhost:{port}?ssl_ca_certs={tmp_path}/cert'
    async with managers(url, 1) as (one,), managers(r.url, 1) as (two,), two.subscribe() as q:
        await one.broadcast('n', 1)
        Publisher(url).broadcast('n', 2)
        assert await of(q, 2)==[1, 2]
    await fails_to_start(f'rediss://localhost:{port}', 'certificate')
    await fails_to_start(f'redis://localhost:{port}', 'refused|broke|could not be reached')

# All processes together

async def test_counters_of_all_workers_and_one_that_was_killed(server, monkeypatch):
    for k,v in dict(PULSE=.2, EXPIRY=1).items(): monkeypatch.setattr(redis_backend, k, v)
    async with managers(server.url) as (one, two), following(one, user='ann') as a, following(two, user='ann'), following(two, user=('bob', 1)):
        await one.broadcast('n', 1)
        await a.next(BOUND)
        async def all_say(wanted):
            async with asyncio.timeout(BOUND):
                while (got := await one.cluster_stats())!=wanted and {k: got[k] for k in wanted}!=wanted: await asyncio.sleep(.02)
        await all_say(dict(workers=2, connections=3, users={'ann': 2, ('bob', 1): 1}))
        await asyncio.sleep(.3)
        assert (await one.cluster_stats())['stats']['broadcasts']==2
        killed = two._backend
        for t in [*killed._tasks]: t.cancel()
        await all_say(dict(workers=1, connections=1, users={'ann': 1}))

async def test_reports_that_no_worker_has_written_are_passed_over(server, caplog):
    "Anybody may write into Redis. What makes no sense is said once, and nobody fails over it"
    bad = ['', '{', 'null', '7', '[]', '{}', b'\xff\xfe', '['*100_000, '{"users": 7, "stats": {}}', '{"users": [], "stats": []}', '{"users": ["ann"], "stats": {}}',
        '{"users": [[{"a": 1}, 1]], "stats": {}}', '{"users": [["ann", "x"]], "stats": {}}', '{"users": [], "stats": {"connections": "many"}}',
        '{"users": [], "stats": {"backlog": NaN}}', '{"users": [], "stats": {"bytes": -1}}']
    async with managers(server.url) as (one, two):
        for m in (one, two): await m.open()
        for i,text in enumerate(bad):
            server.client.set(f'sse:worker:{i}', text)
            server.client.sadd('sse:workers', str(i))
        server.client.sadd('sse:worker:list', 'x')
        server.client.sadd('sse:workers', 'list', b'\xff')
        server.client.set('sse:worker:old', '{"users": [["ann", 2]], "stats": {"connections": 2}}')
        server.client.sadd('sse:workers', 'old')
        for _ in range(2):
            told = await one.cluster_stats()
            assert (told['workers'], told['connections'], told['users'])==(3, 2, dict(ann=2))
    assert len([r for r in caplog.records if 'passed over' in r.message])==1

async def test_a_count_during_the_end_is_an_error_of_the_backend(server):
    "It was a TypeError, from what the backend had forgotten by then"
    for turn in range(0, 40, 3):
        async with managers(server.url, 1) as (m,):
            await m.open()
            counting = asyncio.create_task(m.cluster_stats())
            await turns(turn)
            await m.close()
            try: assert (await counting)['workers']==1
            except BackendError: pass
    backend = RedisBackend(server.url)
    with pytest.raises(BackendError, match='not been started'): await backend.poll_workers()

# The end

async def test_a_close_beside_broadcasts_leaves_no_worker_behind(server):
    "Whichever of the two is first at each step: the last close ends what a broadcast has begun anew"
    for turn in range(12):
        async with no_task_left(), managers(server.url, 1) as (m,):
            await m.open()
            closing = asyncio.create_task(m.close())
            await turns(turn)
            with suppress(BackendError): await m.broadcast('n', turn)
            await closing
        assert not server.client.keys('sse:worker*'), f'after {turn} turns'
    await eventually(lambda: server.clients()==0)

async def test_a_stop_ends_a_start_that_is_under_way(redises):
    "As where an app is told to stop while its Redis does not answer"
    r = redises()
    os.kill(r.process.pid, signal.SIGSTOP)
    async with no_task_left():
        backend = RedisBackend(r.url, timeout=BOUND)
        starting = asyncio.create_task(backend.start(1, raises(KeyError), lambda *args: None))
        await eventually(lambda: backend._lines and backend._lines[0].conn is not None, 'it connects')
        await backend.stop()
        with pytest.raises(BackendError, match='stopped'): await asyncio.wait_for(starting, BOUND)
    os.kill(r.process.pid, signal.SIGCONT)

async def test_a_stop_closes_the_connection_of_threads(server):
    "`send` opens it, for threads without an event loop"
    async with managers(server.url, 1) as (m,):
        await asyncio.to_thread(m._backend.send, dict(type='n', timestamp='', data=1))
        assert server.clients()==1
        await m.close()
        await eventually(lambda: server.clients()==0)

# Real workers

def get(server, path, **params): return httpx.get(f'{server.url}{path}', params=params, timeout=10)

def data(es): return [json.loads(e.data)['text'] for e in es if e.event=='said']

@pytest.fixture
def workers(tmp_path):
    with ExitStack() as stack:
        def start(*args, env=None, cmd=None):
            return stack.enter_context(running(cmd or uvicorn('workers:app', *args), tmp_path/'workers.log', env={'HOME': str(tmp_path), **(env or {})}))
        yield start

def pids(server): return {get(server, '/here').json()['pid'] for _ in range(30)}

def ten_streams(app, stack):
    "Ten open streams, of which both workers have some: the system deals them out by chance"
    for _ in range(30):
        with ExitStack() as these:
            tabs = [these.enter_context(Stream(app, f'/events?user=u{n%2}')) for n in range(10)]
            for s in tabs: s.until(lambda es: es)
            held = {o['pid']: o['connections'] for o in (get(app, '/here').json() for _ in range(30))}
            if len(held)==2 and sum(held.values())==10 and all(held.values()):
                stack.enter_context(these.pop_all())
                return tabs
        time.sleep(.2)
    raise AssertionError(f'one worker has them all, again and again: {held}')

def test_two_workers_and_one_of_them_is_killed(server, workers):
    app = workers('--workers', '2', env=dict(REDIS_URL=server.url))
    for _ in range(100):
        if len(both := pids(app))==2: break
    with ExitStack() as stack:
        tabs = ten_streams(app, stack)
        for _ in range(100):
            if (all_of_them := get(app, '/everywhere').json())['users']==dict(u0=5, u1=5): break
            time.sleep(.1)
        assert all_of_them['workers']==2 and all_of_them['users']==dict(u0=5, u1=5)
        for n in range(10): get(app, '/say' if n%2 else '/say_from_a_thread', text=n)
        with Publisher(server.url) as p: p.broadcast('said', dict(text='script'))
        for s in tabs: assert data(s.until(lambda es: len(data(es))==11))==[*map(str, range(10)), 'script']
        ids = [[e.id for e in s.events if e.event=='said'] for s in tabs]
        assert all(i==ids[0] for i in ids)

        os.kill(both.pop(), signal.SIGKILL)
        with Publisher(server.url) as p:
            for n in range(20): p.broadcast('said', dict(text=f'after {n}'))
        lost = 0
        for s in tabs:
            with suppress(ConnectionError):
                while not s.ended and len(data(s.events))<31: s.read()
            if len(data(s.events))<31:
                lost += 1
                back = stack.enter_context(Stream(app, '/events', last_event_id=s.parser.last_event_id))
                back.until(lambda es, s=s: len(data(s.events))+len(data(es))==31)
                s.events += back.events
            assert data(s.events)[11:]==[f'after {n}' for n in range(20)] and not any(e.event==GAP for e in s.events)
        assert 0<lost<10, 'both workers had some'
        assert get(app, '/history').json()[-1]=='after 19'
        assert 'Traceback' not in app.output.replace('Child process', ''), app.output
        app.signal()
        app.ends(15)

# A server that starts while Redis is away

def says(server, text, secs=20):
    "Wait until a server has written `text`"
    end = time.monotonic()+secs
    while text not in server.output:
        assert time.monotonic()<end and server.process.poll() is None, f'{text!r} is not in: {server.output}'
        time.sleep(.05)

@pytest.fixture
def starting(tmp_path):
    "Starts the app `workers` and does not wait for it"
    with ExitStack() as stack:
        def start(url, patience=1000):
            port = free_port()
            server = Server([str(c).replace('{port}', str(port)) for c in uvicorn('workers:app')], port, tmp_path/'starting.log',
                env=dict(REDIS_URL=url, PATIENCE=str(patience), HOME=str(tmp_path)))
            stack.callback(server.stop)
            return server
        yield start

AWAY = 'could not be reached'

def test_a_server_with_a_wrong_redis_does_not_start(starting):
    server = starting('redis://127.0.0.1:1', patience=6)
    assert server.ends(20)[0] and server.output.count(AWAY)>1, server.output

def test_a_server_that_redis_refuses_does_not_wait(redises, starting):
    locked = redises('--requirepass', 'right')
    server = starting(f'redis://127.0.0.1:{locked.port}')
    assert server.ends(20)[0] and 'Authentication required' in server.output

def test_a_server_waits_for_a_redis_that_starts_later(redises, starting):
    r = redises()
    r.kill()
    server = starting(r.url)
    says(server, AWAY)
    r.start()
    server.wait_until_up()
    assert get(server, '/say', text='x').status_code==200

def test_a_server_that_waits_for_redis_ends_when_told(starting):
    server = starting('redis://127.0.0.1:1')
    says(server, AWAY)
    server.signal()
    server.ends(20)

def test_a_worker_that_starts_while_redis_is_away_leaves_the_others_alone(redises, workers):
    r = redises(*DURABLE)
    app = workers('--workers', '2', env=dict(REDIS_URL=r.url))
    for _ in range(100):
        if len(both := pids(app))==2: break
    with ExitStack() as stack:
        tabs = ten_streams(app, stack)
        r.kill()
        os.kill(both.pop(), signal.SIGKILL)
        says(app, 'Trying again')
        r.start()
        with Publisher(r.url, timeout=BOUND) as p: p.broadcast('said', dict(text='back'))
        whole = 0
        for s in tabs:
            with suppress(ConnectionError):
                while not s.ended and not data(s.events): s.read()
            whole += bool(data(s.events))
        assert 0<whole<10, 'both workers had some'
    end = time.monotonic()+20
    while len(pids(app))<2: assert time.monotonic()<end, app.output

WARNING = 'processes serve this app and nothing carries'

@pytest.mark.parametrize('args,wanted', [(['--workers', '2'], 2), (['--reload'], 0), ([], 0)], ids=['workers', 'reload', 'alone'])
def test_several_workers_without_a_backend_say_so_once_each(workers, args, wanted):
    app = workers(*args, env={'WEB_CONCURRENCY': '4'} if args==['--reload'] else {})
    for _ in range(100):
        if len(pids(app))>=min(1, wanted): break
    end = time.monotonic()+10
    while app.output.count(WARNING)<wanted and time.monotonic()<end: time.sleep(.05)
    for _ in range(10): get(app, '/say', text='x')
    assert app.output.count(WARNING)==wanted, app.output

def _has(module):
    from importlib.util import find_spec
    return find_spec(module) is not None

@pytest.mark.parametrize('module,n', [(m, n) for m in ('hypercorn', 'granian', 'gunicorn') for n in (1, 2)])
def test_other_servers_with_several_workers_say_so_too(workers, module, n):
    if not _has(module) or module=='gunicorn' and not _has('uvicorn.workers'): pytest.skip(f'{module} is not installed')
    cmd = dict(hypercorn=['-m', 'hypercorn', 'workers:app', '--bind', '127.0.0.1:{port}', '--workers', n],
        granian=['-m', 'granian', '--interface', 'asgi', '--host', '127.0.0.1', '--port', '{port}', '--workers', n, 'workers:app'],
        gunicorn=['-m', 'gunicorn', '-k', 'uvicorn.workers.UvicornWorker', '-b', '127.0.0.1:{port}', '-w', n, 'workers:app'])[module]
    app = workers(cmd=[sys.executable, *cmd])
    end = time.monotonic()+10
    while app.output.count(WARNING)<(n if n>1 else 0) and time.monotonic()<end:
        with suppress(httpx.HTTPError): get(app, '/say', text='x')
        time.sleep(.05)
    assert app.output.count(WARNING)==(n if n>1 else 0), app.output


# Jobs

def _job_in_a_script(url):
    "A process without an event loop, such as the worker of a task queue"
    code = f"""
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.progress import track
manager = SSEBroadcastManager(backend={url!r})
with track(manager, range(3), 'a/b', name='elsewhere', throttle=0) as job:
    for n in job: pass
"""
    subprocess.run([sys.executable, '-c', code], check=True, timeout=30)

async def test_a_job_in_another_process_is_seen_while_it_runs_and_afterwards(server):
    from fasthtml.common import FastHTML

    from cjm_fasthtml_sse.progress import setup_progress
    from cjm_fasthtml_sse.testing import SSEClient
    async with managers(server.url, 2) as (here,there):
        app,late = FastHTML(secret_key='test'),FastHTML(secret_key='test')
        setup_progress(app, here, authorise=True)
        async with SSEClient(app, '/stream_job_progress?job_id=a%2Fb') as page:
            await page.next(BOUND, heartbeats=True)
            await asyncio.to_thread(_job_in_a_script, server.url)
            shown = [e.data for e in await read_to(page, 'sse:close')]
            assert 'elsewhere' in shown[0] and '0 of 3' in shown[0] and '3 of 3' in shown[-1] and 'completed' in shown[-1]
        jobs = setup_progress(late, there, authorise=True)  # A process that starts when all is over learns it from what Redis remembers
        assert 'a/b' not in jobs
        async with SSEClient(late, '/stream_job_status?job_id=a%2Fb') as page:
            assert ['Completed' in (await page.next(BOUND)).data, (await page.next(BOUND)).event] == [True, 'sse:close']


# The dashboard

async def test_the_dashboard_shows_each_process_and_goes_on_without_redis(server):
    from fasthtml.common import FastHTML

    from cjm_fasthtml_sse.core import worker_name
    from cjm_fasthtml_sse.dashboard import setup_dashboard
    from cjm_fasthtml_sse.testing import SSEClient
    async with managers(server.url, 2) as (here,there):
        app = FastHTML(secret_key='test')
        board = setup_dashboard(app, here, authorise=True, interval=.05)
        async with following(there), following(there), SSEClient(app, '/_sse/dashboard/events') as page:
            await here.broadcast('a:b', 1)
            async with asyncio.timeout(BOUND):
                while 'All</th><td class="n">2</td>' not in (html := (await page.next(BOUND)).data): pass
            assert html.count(f'<code>{worker_name()}</code>') == 2 and html.count('(this one)') == 1 and 'Counters of each process' in html
            assert (here.stats()['broadcasts'], board.own.stats()['broadcasts']>0, 'looked' in str(here.get_history())) == (1, True, False)
            server.kill()
            board.asked = 0.
            async with asyncio.timeout(BOUND):
                while 'The backend does not answer' not in (await page.next(BOUND)).data: pass
            for _ in range(3): assert 'now 0, least 0' in (await page.next(BOUND)).data  # The charts went on meanwhile

async def test_the_dashboard_does_not_count_what_redis_remembers(server):
    from cjm_fasthtml_sse.dashboard import Dashboard
    async with managers(server.url, 1) as (here,):
        for i in range(3): await here.broadcast('before', i)
        late = SSEBroadcastManager(backend=server.url)
        board = Dashboard(late, '/x')
        try:
            await late.open()
            assert (late.get_history(1)[0]['type'], board.observer.types, [*board.observer.last]) == ('before', {}, [])
            await late.broadcast('after', 0)
            assert board.observer.types == dict(after=1)
        finally: await late.close()
