"The broadcast manager: its contract, and each fault of older designs that it must not have"
import asyncio
import gc
import json
import os
import sys
import threading
import time
from contextlib import asynccontextmanager, contextmanager, nullcontext
from itertools import count

import pytest
from fasthtml.common import FastHTML, Link

from cjm_fasthtml_sse.backends.base import Record
from cjm_fasthtml_sse.backends.memory import MemoryBackend
from cjm_fasthtml_sse.engine.messages import Message
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.testing import SSEClient
from cjm_fasthtml_sse.engine.wire import GAP, FieldError, SSEError, StreamEnded
from tests.support import BOUND, eventually, following, read, request, tab, turns


@pytest.mark.parametrize('size,want', [(100, 1000), (500, 5000), (1, 1000), (0, 1000)])
async def test_the_log_reaches_back_far_enough_for_an_evicted_tab_to_catch_up(size, want):
    manager = SSEBroadcastManager(size)
    start = manager.cursor
    for i in range(want): await manager.broadcast('x', i)
    assert manager._hub.replay.position(start) == 0
    await manager.broadcast('x', 0)
    assert manager._hub.replay.position(start) is None

def test_a_manager_needs_no_loop_to_be_made_nor_a_stream_to_be_called_in_a_worker_thread():
    manager, got = SSEBroadcastManager(), []
    t = threading.Thread(target=lambda: got.append(manager.stream(request())))
    t.start(); t.join(BOUND)
    assert got[0].status_code == 200


# Hooks

async def test_disconnect_hooks_run_to_their_end_though_the_one_who_closes_is_cancelled():
    manager, entered, go, done = SSEBroadcastManager(), asyncio.Event(), asyncio.Event(), []
    @manager.on_disconnect
    async def slow(conn):
        entered.set()
        await go.wait()
        done.append(conn)
    queue = await manager.register_connection()
    task = asyncio.create_task(manager.unregister_connection(queue))
    async with asyncio.timeout(BOUND): await entered.wait()
    task.cancel()
    await asyncio.wait({task}, timeout=BOUND)
    go.set()
    await eventually(lambda: done == [queue], 'the hook ends')


# Full queues

async def test_a_queue_of_any_class_that_makes_room_in_time_goes_on():
    class Slotted:
        __slots__ = 'items', 'room'
        def __init__(self): self.items, self.room = [], asyncio.Event()
        def put_nowait(self, item):
            if not self.room.is_set(): raise asyncio.QueueFull
            self.items.append(item)
        async def put(self, item):
            await self.room.wait()
            self.items.append(item)
    manager, own = SSEBroadcastManager(), Slotted()
    await manager.register_connection(own)
    task = asyncio.create_task(manager.broadcast('x', 1, timeout=BOUND))
    await turns()
    own.room.set()
    assert await task == 1
    await turns()
    assert await manager.broadcast('x', 2, timeout=.05) == 1 and len(own.items) == 2

# A full house, closing

class SlowBackend(MemoryBackend):
    "It can be reached once `reached` is set"
    def __init__(self):
        super().__init__()
        self.reached = asyncio.Event()
    async def start(self, *args):
        await self.reached.wait()
        await super().start(*args)

async def test_close_waits_for_a_stalled_tab_only_so_long():
    manager = SSEBroadcastManager()
    async with following(manager) as client:
        client.stall()
        await manager.broadcast('x', 1)
        await asyncio.wait_for(manager.close(timeout=.05), BOUND)
        await eventually(lambda: manager.connection_count == 0)

async def test_a_process_that_stops_does_not_wait_for_a_tab_that_was_evicted_and_does_not_read():
    manager = SSEBroadcastManager()
    async with following(manager) as client:
        client.stall()
        client.conn.end('evicted')
        await turns()
        assert not manager.connections and manager._hub.requests
        manager.stop_soon()
        await eventually(lambda: client._task.done(), 'its request ends')

async def test_a_stream_that_waits_for_the_backend_while_the_process_stops_does_not_begin():
    manager = SSEBroadcastManager(backend=(backend := SlowBackend()))
    client = tab(manager)
    entering = asyncio.create_task(client.__aenter__())
    await turns()
    manager.stop_soon()
    await turns()
    backend.reached.set()
    await entering
    assert client.status == 503
    await client.disconnect()

def test_close_before_any_loop_ran_does_nothing():
    asyncio.run(SSEBroadcastManager().close())


# Threads and loops

def test_before_any_loop_runs_a_broadcast_goes_into_the_history_and_the_future_is_done():
    manager = SSEBroadcastManager()
    future = manager.broadcast_threadsafe('x', 1, key='k')
    assert future.done() and future.result() == 0 and manager.get_history()[0]['data'] == 1
    for bad in '', 'a\nb', None:
        with pytest.raises(FieldError): manager.broadcast_threadsafe(bad, 1)

def test_many_threads_before_any_loop_runs_give_each_message_its_own_id():
    manager = SSEBroadcastManager(history_size=10_000)
    interval, errors = sys.getswitchinterval(), []
    def work():
        try:
            for _ in range(25): manager.broadcast_threadsafe('x', 1).result(BOUND)
        except BaseException as e: errors.append(e)
    try:
        sys.setswitchinterval(1e-6)
        threads = [threading.Thread(target=work) for _ in range(8)]
        for t in threads: t.start()
        for t in threads: t.join(BOUND)
    finally: sys.setswitchinterval(interval)
    assert not errors
    ids = [m.id for m in manager.get_history()]
    assert len(ids) == len({*ids}) == 200 and manager._hub.replay.seq == 200

async def test_a_slow_hook_before_any_loop_stops_no_loop_that_starts():
    "The broadcast that waits for the hook is delivered on that loop then"
    manager, began, go = SSEBroadcastManager(), threading.Event(), threading.Event()
    @manager.on_broadcast
    async def slow(message):
        began.set()
        while not go.is_set(): await asyncio.sleep(.002)
    sending = asyncio.create_task(asyncio.to_thread(lambda: manager.broadcast('x', 1).result(BOUND)))
    assert await asyncio.to_thread(began.wait, BOUND)
    async with following(manager) as client:
        go.set()
        assert await asyncio.wait_for(sending, BOUND) == 1
        assert (await client.next(BOUND)).data == '1'

async def test_a_broadcast_from_another_loop_never_touches_queues_of_this_one_behind_its_back():
    "It is delivered on this loop, once that gets to it"
    manager = SSEBroadcastManager()
    queue = await manager.register_connection()
    waiting = asyncio.create_task(queue.get())
    await turns(3)
    async def elsewhere(): manager.broadcast('x', 1)
    t = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    t.start()
    t.join(BOUND)
    assert queue.empty() and not waiting.done() and not manager.get_history()
    assert (await asyncio.wait_for(waiting, BOUND))['data'] == 1

def in_a_fork(f):
    "What `f` gives in a process that was forked off from this one"
    r,w = os.pipe()
    if not (pid := os.fork()):
        try: os.write(w, json.dumps(f()).encode())
        finally: os._exit(0)
    os.close(w)
    with open(r, 'rb') as out: said = out.read()
    os.waitpid(pid, 0)
    return json.loads(said)

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork')
@pytest.mark.parametrize('before', [0, 2])
def test_forked_processes_share_the_past_alone(before):
    "As under `gunicorn --preload`: what was broadcast before the fork has one id everywhere, and what comes afterwards another one in each process"
    manager = SSEBroadcastManager()
    for n in range(before): manager.broadcast_threadsafe('n', n).result()
    then = manager.cursor
    def serve(seen=then):
        async def session():
            async with tab(manager, last_event_id=seen) as client:
                for n in 'ab': await manager.broadcast('n', n)
                return dict(got=[(e.id, e.event, e.data) for e in await read(client, 2)], cursor=manager.cursor, history=[m['data'] for m in manager.get_history()])
        return asyncio.run(session())
    one,two = in_a_fork(serve),in_a_fork(serve)
    assert len({then, in_a_fork(lambda: manager.cursor), in_a_fork(lambda: manager.cursor)}) == 3
    for o in (one, two):
        assert o['history'] == [*range(before), 'a', 'b'] and [d for _,_,d in o['got']] == ['"a"', '"b"'] and o['got'][-1][0] == o['cursor']
    here = serve()
    assert len({id for o in (one, two, here) for id,_,_ in o['got']}) == 6, 'two messages have one id'
    assert in_a_fork(lambda: serve(one['cursor']))['got'][0][1] == GAP, 'what another process has said is missing here'

@contextmanager
def left_open(manager, last):
    "A stream whose loop is closed over it, after `last` was done with its tab"
    async def leave_open():
        client = tab(manager)
        await client.__aenter__()
        await last(client)
        return client
    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(leave_open())
    loop.close()
    try: yield
    finally:
        del client
        gc.collect()  # What the dead loop left behind is to complain here, not in another test

@pytest.mark.filterwarnings('ignore')  # Closing a loop over its tasks is the very fault that is staged here
def test_a_loop_that_is_closed_over_open_streams_does_not_spoil_the_next():
    manager = SSEBroadcastManager()
    async def next_one():
        async with following(manager) as client:
            await manager.broadcast('x', 2)
            assert (await client.next(BOUND)).data == '2'
    with left_open(manager, lambda client: turns()): asyncio.run(next_one())


@pytest.mark.filterwarnings('ignore')  # As above
def test_a_close_that_waited_in_vain_on_a_loop_does_not_spoil_the_close_on_the_next():
    manager = SSEBroadcastManager()
    async def wait_in_vain(client):
        client.stall()
        await manager.close(.01)
    async def next_one():
        async with following(manager) as client:
            await asyncio.wait_for(manager.close(2*BOUND), BOUND)
            assert client._task.done()
    with left_open(manager, wait_in_vain): asyncio.run(next_one())

@pytest.mark.filterwarnings('ignore')  # As above
def test_what_a_closed_loop_left_behind_may_be_collected_at_any_time():
    manager, left = SSEBroadcastManager(), []
    async def leave_open():
        left.append(tab(manager))
        await left[0].__aenter__()
        await turns()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_open())
    loop.close()
    async def next_one():
        async with following(manager) as client:
            left.clear()
            gc.collect()
            assert manager.connection_count == 1 and len(manager._hub.groups) == 1
            await manager.broadcast('x', 2)
            assert (await client.next(BOUND)).data == '2'
        assert manager.connection_count == 0 and not manager._hub.groups
    asyncio.run(next_one())


# Bad input leaves no trace

@pytest.mark.parametrize('kw', [dict(render=3), dict(render='x'), dict(snapshot=[]), dict(events=''), dict(events=[]), dict(events=None), dict(events=3),
    dict(events=['a', 3]), dict(events='a\nb'), dict(events=[None]), dict(until='a\0b'), dict(until=3), dict(until=[3])], ids=repr)
def test_a_bad_argument_of_stream_is_an_error_at_the_call(kw):
    with pytest.raises((TypeError, ValueError)): SSEBroadcastManager().stream(request(), **kw)

def test_something_else_than_a_request_is_an_error_at_the_call():
    for bad in None, 'events', {}:
        with pytest.raises(TypeError, match='request'): SSEBroadcastManager().stream(bad)

async def test_stats_count_what_they_say():
    manager = SSEBroadcastManager()
    await manager.register_connection()
    async with following(manager) as a, following(manager, last_event_id='other-1'):
        for i in range(3): await manager.broadcast('x', i)
        await read(a, 3)
        stats = manager.stats()
    assert {*stats} >= {'connections', 'broadcasts', 'deliveries', 'coalesced', 'evicted', 'replayed', 'gaps', 'errors', 'bytes', 'backlog'}
    assert (stats['connections'], stats['broadcasts'], stats['gaps'], stats['errors'], stats['backlog']) == (3, 3, 1, 0, 3)
    assert stats['deliveries'] >= 3 and stats['bytes'] > 0

async def test_calls_from_one_thread_and_tasks_of_one_loop_keep_their_order():
    manager = SSEBroadcastManager(20, replay_size=10_000)
    async with following(manager) as client:
        def work():
            for i in range(1000): manager.broadcast_threadsafe('x', i)
        await asyncio.to_thread(work)
        await asyncio.gather(*[manager.broadcast('x', i) for i in range(1000, 2000)])
        assert [int(e.data) for e in await read(client, 2000)] == [*range(2000)]

async def test_a_stream_holds_nothing_of_a_page():
    "FastHTML gives each request its own copies of headers and footers. Afterware still finds them"
    app,manager,seen = None,SSEBroadcastManager(),[]
    def after(req, resp): seen.append((req, len(req.hdrs), len(req.bodykw)))
    app = FastHTML(hdrs=[Link(rel='icon', href='/x.png')], after=[after], secret_key='test', cls='x')
    @app.get('/events')
    def events(req): return manager.stream(req)
    async with SSEClient(app, '/events'):
        (req,headers,bodykw), = seen
        assert headers and bodykw and not (req.hdrs or req.ftrs or req.htmlkw or req.bodykw)


# Threads whose event loop ends, or is there for a moment only

def test_what_a_hook_broadcasts_where_no_loop_lasts_is_sent():
    manager,got = SSEBroadcastManager(),[]
    @manager.on_delivery
    def audit(message):
        if message['type'] != 'audit': got.append(manager.broadcast_threadsafe('audit', message['type']))
    assert manager.broadcast_threadsafe('said', 1).result(BOUND) == 0
    assert got[0].result(BOUND) == 0
    assert [m['type'] for m in manager.get_history()] == ['said', 'audit']


def test_who_waits_for_a_broadcast_on_a_loop_that_was_closed_over_it_is_told():
    manager = SSEBroadcastManager()
    loop = asyncio.new_event_loop()
    @manager.on_broadcast
    async def slow(message):
        if asyncio.get_running_loop() is loop: await asyncio.Event().wait()
    async def begin():
        await manager.open()
        return await asyncio.to_thread(manager.broadcast_threadsafe, 'n', 1)
    lost = loop.run_until_complete(begin())
    loop.close()
    assert not lost.done()
    async def again():
        async with manager.subscribe() as queue:
            assert await manager.broadcast('n', 2) == 1
            return (await queue.get())['data']
    assert asyncio.run(again()) == 2
    with pytest.raises(SSEError, match='closed before'): lost.result(BOUND)


# What a hook of deliveries hears, where a backend tells the past again

class Telling(MemoryBackend):
    "Keeps what it carries, as a backend of several processes does, under ids of an epoch and a place"
    def __init__(self):
        super().__init__()
        self.kept,self.epoch,self.origin,self.times = [],'e','e:0-0',count(1)

    async def start(self, size, deliver, renew, tell):
        await super().start(size, deliver, renew, tell)
        self.renew = renew
        self.tell_past()

    def tell_past(self): self.renew(f'{self.epoch}:0-0', [Record(f'{self.epoch}:{id}', fields, key) for id,fields,key in self.kept])

    def keep(self, data, key=None):
        "What another process has published, and this one has not read yet"
        self.kept.append((f'{next(self.times)}-0', dict(type='n', timestamp='', data=data), key))
        return self.kept[-1]

    async def publish(self, fields, key=None, timeout=None):
        id,fields,key = self.keep(fields['data'], key)
        return await self._deliver(Record(f'{self.epoch}:{id}', fields, key, timeout))


@pytest.mark.parametrize('lost', ['nothing', 'epoch', 'newest'])
async def test_renewals_repeat_nothing_to_hooks(lost):
    "The past that is known already is not heard again; what this process missed of it is, in order"
    backend,heard = Telling(),[]
    manager = SSEBroadcastManager(backend=backend)
    manager.on_delivery(lambda message: heard.append(message['data']))
    backend.keep('past')
    await manager.open()
    for n in range(3): await manager.broadcast('n', n, key='one that the log drops for the next')
    assert heard == ['past', 0, 1, 2]
    if lost != 'nothing': backend.epoch = 'anew'
    if lost == 'newest': backend.kept.pop()  # As where a replica takes over that lags behind
    for data in 'missed', 'as well': backend.keep(data)
    backend.tell_past()
    await manager.broadcast('n', 'live')
    assert heard == ['past', 0, 1, 2, 'missed', 'as well', 'live'] == [m['data'] for m in manager.get_history()]
    await manager.close()
    await manager.open()
    assert heard[-1] == 'live' and len(heard) == 7, 'nor is it where the backend is started anew'


# Other threads, such as those in which FastHTML runs plain `def` routes

@contextmanager
def hasty_threads():
    "Threads take turns after every few instructions, so that whatever can go wrong between two does"
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try: yield
    finally: sys.setswitchinterval(before)


def idle(): time.sleep(.2)  # By now the event loop waits, and only a thread that wakes it gets anything done


@asynccontextmanager
async def woken():
    "Fails where the event loop was not woken, but got to it when a timer was due"
    loop = asyncio.get_running_loop()
    timer = loop.call_later(5, lambda: None)
    yield
    assert loop.time() < timer.when()


async def test_threads_look_while_connections_change():
    manager,stop,looks = SSEBroadcastManager(),threading.Event(),[]
    def look():
        while not stop.is_set():
            for conn in manager.connections: conn.qsize()
            looks.append((manager.stats()['connections'], len(manager.present()), manager.connection_count, manager.get_history(3), manager.cursor))
        return True
    with hasty_threads():
        threads = [asyncio.create_task(asyncio.to_thread(look)) for _ in range(2)]
        keep = [manager._hub.join(user=f'stays {n}') for n in range(3000)]  # A look takes a while
        n = 0
        while (n < 100 or len(looks) < 30) and not any(t.done() for t in threads):
            some = [manager._hub.join(user=f'user {i}') for i in range(20)]
            queue = await manager.register_connection()
            await manager.broadcast('n', n)
            for conn in some: conn.end()
            await manager.unregister_connection(queue)
            n += 1
        stop.set()
        assert all(await asyncio.gather(*threads))
    for conn in keep: conn.end()


async def test_threads_find_a_connection_full_or_ended():
    manager = SSEBroadcastManager(max_queue_size=3)
    async with following(manager) as client:
        def push():
            with pytest.raises(asyncio.QueueFull):  # The event loop has no turn meanwhile
                for n in range(10): client.conn.put_nowait(dict(type='n', data=n))
            assert client.conn.full() and client.conn.qsize() == 3
        t = threading.Thread(target=push)
        t.start()
        t.join(BOUND)
        assert [e.data for e in await read(client, 3)] == ['0', '1', '2'] and client.conn.empty()
        threading.Thread(target=lambda: (idle(), client.conn.end())).start()
        async with woken():
            with pytest.raises(StreamEnded): await client.next(BOUND)
        with pytest.raises(SSEError, match='has ended'): await asyncio.to_thread(client.conn.put_nowait, dict(type='n'))


@pytest.mark.parametrize('ended', [False, True])
async def test_threads_wake_who_waits_at_a_queue(ended):
    "Nothing else moves the event loop meanwhile"
    manager = SSEBroadcastManager()
    queue = await manager.register_connection()
    def push():
        idle()
        for conn in manager.connections: conn.end() if ended else conn.put_nowait(dict(type='n', data=1))
    threading.Thread(target=push).start()
    async with woken():
        with pytest.raises(StreamEnded) if ended else nullcontext(): assert (await queue.get())['data'] == 1


# What it costs to ask, and what stays of those who have left

def behind(manager, n, messages):
    "Connections that follow live, of which the pump has served none yet"
    conns = [manager._hub.join() for _ in range(n)]
    for conn in conns:
        manager._hub.joining.pop(conn)
        conn.group.conns[conn] = None
    for i in range(messages): manager._hub.deliver(Message(dict(type='n', data=i)))
    return conns


async def test_the_backlog_is_that_of_the_deepest_queue():
    manager = SSEBroadcastManager()
    conns = behind(manager, 5, 9)
    queue = await manager.register_connection()
    assert manager.stats()['backlog'] == 9
    for n,conn in enumerate(conns): conn.cursor += 3+n
    assert manager.stats()['backlog'] == max(c.qsize() for c in conns) == 6
    for n in range(4): conns[3].put_nowait(dict(type='n', data=n))
    assert manager.stats()['backlog'] == conns[3].qsize() == 7
    for n in range(8): queue.put_nowait(dict(type='n', data=n))
    assert manager.stats()['backlog'] == 8
    await manager.unregister_connection(queue)
    for conn in conns: conn.end()
    assert manager.stats()['backlog'] == 0


async def test_a_deep_backlog_costs_stats_little():
    "Each connection is looked at, not each message that waits for it"
    def cost(messages):
        manager,best = SSEBroadcastManager(max_queue_size=1000),float('inf')
        conns = behind(manager, 1000, messages)
        for _ in range(5):
            start = time.perf_counter()
            assert manager.stats()['backlog'] == messages
            best = min(best, time.perf_counter()-start)
        for conn in conns: conn.end()
        return best
    assert cost(800) < 20*cost(1)


async def test_those_who_left_are_forgotten_unasked(monkeypatch):
    manager = SSEBroadcastManager()
    monkeypatch.setattr('cjm_fasthtml_sse.engine.users.MAX_LEFT', 10)
    for n in range(30): manager._hub.join(user=n).end()
    assert [*manager.present()] == [*range(20, 30)] and len(manager._hub.users.left) == 10
    both = [manager._hub.join(user='ann') for _ in range(2)]
    both[0].end()
    assert manager.present(0) == dict(ann=1)
    both[1].end()
    assert manager.present(0) == {} and manager.present()['ann'] == 0
    manager._hub.users.left = {'long ago': time.monotonic()-3601}
    manager._hub.join(user='last').end()
    assert [*manager._hub.users.left] == ['last']


# Hooks that take their time

@pytest.mark.parametrize('kind', ['stream', 'queue'])
async def test_hooks_that_hang_are_cancelled(kind, caplog):
    manager,seen = SSEBroadcastManager(hook_timeout=.05),[]
    @manager.on_connect
    async def hangs(conn):
        try: await asyncio.Event().wait()
        finally: seen.append('cancelled')
    manager.on_connect(lambda conn: seen.append('next'))
    manager.on_disconnect(lambda conn: seen.append('disconnected'))
    if kind == 'stream':
        async with tab(manager) as client:
            await manager.broadcast('n', 1)
            assert (await client.next(BOUND)).data == '1' and seen == ['cancelled', 'next']
    else: await manager.unregister_connection(await manager.register_connection())
    await eventually(lambda: seen == ['cancelled', 'next', 'disconnected'], 'all are called')
    assert 'hangs' in caplog.text and '`hook_timeout`, 0.05 s' in caplog.text and manager.stats()['errors'] == 1


@pytest.mark.parametrize('hook', ['connect', 'disconnect'])
@pytest.mark.parametrize('stubborn', [False, True])
async def test_close_keeps_its_word_with_hooks_that_hang(hook, stubborn, caplog):
    manager,over,seen = SSEBroadcastManager(hook_timeout=BOUND),asyncio.Event(),[]
    async def hangs(conn):
        while not over.is_set():
            try: await over.wait()
            except asyncio.CancelledError:
                if not stubborn: raise
    getattr(manager, f'on_{hook}')(hangs)
    manager.on_disconnect(seen.append)
    client = await tab(manager).__aenter__()
    start = time.monotonic()
    await manager.close(.2)
    assert time.monotonic()-start < BOUND/2
    await eventually(lambda: not manager._hub.requests, 'the request is over, so the server can stop')
    assert time.monotonic()-start < BOUND/2
    over.set()
    await client.__aexit__(None, None, None)
