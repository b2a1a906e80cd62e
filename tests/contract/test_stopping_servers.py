"""A server that is told to stop stops, with streams open

Within about a second, in order, and without a word of trouble: each stream says farewell and when to come back, the times spread so
that not all come at once; no page is told to stay away; the app's shutdown runs. So it is under every server, however it is told,
for streams on connections of their own, channels of a common one, and queues that an app reads by hand.
"""
import asyncio
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import uvicorn as uvicorn_
from fasthtml.common import EventStream, fast_app
from starlette.responses import StreamingResponse

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

from tests.contract.servers import BOUND, CROWD, SERVERS, Remote, Server, Stream, free_port, running, streams, uvicorn, wait_until
from tests.contract.support import eventually
from tests.contract.visitors import Visitor

RETRY = 3000  # Milliseconds, the default
SIGNALS = dict(argvalues=[signal.SIGTERM, signal.SIGINT], ids=['SIGTERM', 'Ctrl-C'])


def farewells(streams):
    "Check what streams and channels said last, and count those that said it"
    told = [o.farewell for o in streams if o.farewell]
    assert all(RETRY/2<=o<=RETRY*1.5 for o in told) and len({*told})>=min(len(told), 500)/3, f'not spread: {told}'
    assert not any(e.event=='sse:close' for o in streams for e in o.events), 'a page must come back after a restart'
    return len(told)


def tell(server, name, sig):
    "A supervisor sends SIGTERM to the first process, a terminal sends Ctrl-C to all"
    # Not so under granian: a second signal on the heels of the first makes granian 2.8 hang or skip the lifespan now and then, whatever the app
    server.interrupt() if sig==signal.SIGINT and name!='granian' else server.signal(sig)


@pytest.fixture(params=['httptools', 'h11'])
def in_a_thread(request):
    "A uvicorn as a notebook starts it"
    ran = []
    async def lifespan(app):
        yield
        ran.append('shutdown ran')
    app,rt = fast_app(lifespan=lifespan)
    manager = SSEBroadcastManager()
    setup_sse(app, manager)
    @rt('/events')
    def events(req): return manager.stream(req)
    @rt('/by_hand')
    async def by_hand(req):
        async def read():
            async with manager.subscribe() as queue:
                while True: yield f"data: {(await queue.get())['data']}\n\n"
        return EventStream(read())
    @rt('/closing')
    async def closing():
        async def parts():
            yield 'clos'
            await asyncio.sleep(.5)  # A response takes so long
            yield 'ing'
        return StreamingResponse(parts(), headers={'Connection': 'close'})
    server = uvicorn_.Server(uvicorn_.Config(app, host='127.0.0.1', port=free_port(), log_level='warning',
                                             http=request.param))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, 'uvicorn starts')
    def say(text): return manager.broadcast_threadsafe('said', text).result(BOUND)
    yield SimpleNamespace(server=server, thread=thread, ran=ran, port=server.config.port, say=say)
    server.should_exit = server.force_exit = True
    thread.join(BOUND)


@pytest.mark.parametrize('path', ['/events', '/by_hand'])
def test_a_server_in_a_thread_stops(in_a_thread, path, caplog):
    it = in_a_thread
    with streams(it, 20, path) as own:
        wait_until(lambda: it.say('hello')==20, 'all listen')
        for o in own: o.says('hello')
        it.server.should_exit = True
        for o in own: o.until_end()
        it.thread.join(BOUND)
        assert not it.thread.is_alive() and it.ran==['shutdown ran']
        assert farewells(own)==(20 if path=='/events' else 0)
    assert not [r for r in caplog.records if r.levelname in ('ERROR', 'CRITICAL') or r.exc_info], caplog.text


def test_a_response_that_closes_its_connection_stops_nothing(in_a_thread):
    "For uvicorn it looks much like shutdown"
    with streams(in_a_thread, 3) as own:
        assert Server.get(SimpleNamespace(url=f'http://127.0.0.1:{in_a_thread.port}'), '/closing').text=='closing'
        in_a_thread.say('still here')
        for o in own: o.says('still here')


@pytest.mark.parametrize('runs', [1, 2])
def test_ctrl_c_within_asyncio_run(runs):
    "It cancels the main task, however many runs were before, and never strikes within the event loop"
    script = f'''
import asyncio, os, signal
from cjm_fasthtml_sse.core import SSEBroadcastManager
signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's job in the background ignores it
manager = SSEBroadcastManager()
async def main(last):
    await manager.register_connection()
    if not last: return
    asyncio.get_running_loop().call_later(.05, os.kill, os.getpid(), signal.SIGINT)
    try: await asyncio.sleep(20)  # A program that goes on
    except asyncio.CancelledError:
        print('cancelled', flush=True)
        await asyncio.sleep(.05)  # Its clean-up takes so long
        print('cleaned up', flush=True)
        raise
for n in range({runs}):
    try: asyncio.run(main(n=={runs-1}))
    except KeyboardInterrupt: print('stopped')
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
'''
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split('\n')[:3], done.stderr, done.returncode)==(['cancelled', 'cleaned up', 'stopped'], '', 0)


@pytest.mark.parametrize('path', ['/events', '/by_hand', '/flood', 'channel /events', 'channel /by_hand'])
@pytest.mark.parametrize('name', ['uvicorn', 'uvicorn, h11', 'hypercorn', 'granian'])
async def test_a_client_that_does_not_read_holds_nothing_up(tmp_path, name, path):
    "Neither a stream, with much that waits for it, nor one written by hand, nor a carrier: its connection is cut"
    done = tmp_path/'done'
    with running(SERVERS[name], tmp_path/'log', env={'LIFESPAN': str(done), 'MAX_QUEUE': '100000'}) as server:
        async with Visitor(Remote(server, rcvbuf=4096)) as visitor:
            with Stream(server) as healthy, Stream(server, '/events' if 'channel' in path else path, rcvbuf=4096) as stalled:
                for o in (stalled, healthy): o.begun()
                if 'channel' in path:
                    channel = await visitor.opens(path.removeprefix('channel '))
                    visitor.carriers[channel.carrier].stall()
                server.get('/say', text='x'*60_000, times=200)
                healthy.until(lambda _: len(healthy.said)==200)
                server.signal()
                healthy.until_end()
                server.ends()
        assert done.exists(), server.output
        assert 'Traceback' not in server.output, server.output


@pytest.mark.parametrize('name', ['uvicorn', 'granian'])
def test_a_stream_by_hand_that_is_read_ends_as_it_likes(tmp_path, name):
    "Only who does not read is cut off: what a stream still has to say when the server stops, it says"
    done = tmp_path/'done'
    with running(SERVERS[name], tmp_path/'log', env={'LIFESPAN': str(done)}) as server, Stream(server, '/at_leisure') as stream:
        stream.begun()
        server.signal()
        stream.until_end()
        assert [e.data for e in stream.events]==[*map(str, range(30))]
        server.ends()
        assert done.exists(), server.output


@pytest.mark.parametrize('sig', **SIGNALS)
def test_a_second_signal_ends_it_all_the_more(tmp_path, sig):
    with running(SERVERS['uvicorn'], tmp_path/'log') as server, streams(server, 20) as own:
        for _ in range(2): server.signal(sig)
        for o in own: o.until_end()
        server.ends()


def test_a_stream_that_begins_too_late_is_refused(tmp_path):
    "Its request was under way when the server was told to stop: the browser is told to come back later, and nobody waits for it"
    with running(SERVERS['uvicorn'], tmp_path/'log', env=dict(LATE=str(tmp_path/'late'))) as server, Stream(server) as open_, \
            Stream(server, '/late') as late:
        open_.begun()
        wait_until(lambda: server.get('/stats').json()['late'], 'the request is under way')
        server.signal()
        open_.until_end()
        (tmp_path/'late').touch()
        late.until_end()
        server.ends()
        assert late.status==503 and b'retry-after:' in late.head.lower()
        server.is_calm()


@pytest.mark.parametrize('path', ['/events', '/by_hand'])
def test_a_server_that_renews_itself(tmp_path, path):
    "`--limit-max-requests` ends a process from time to time, which no signal announces"
    done = tmp_path/'done'
    with running(uvicorn('main:app', '--limit-max-requests', '15'), tmp_path/'log',
                 env={'LIFESPAN': str(done)}) as server:
        with streams(server, 10, path) as own:
            for o in own: o.begun()
            for _ in range(15): server.get('/stats')  # A response counts when it is over
            for o in own: o.until_end()
            server.ends()
        assert done.exists() and 'Traceback' not in server.output, server.output
        if path=='/events': assert farewells(own)==10


@pytest.mark.parametrize('sig', **SIGNALS)
@pytest.mark.parametrize('name', SERVERS)
async def test_all_streams_end_and_the_process_too(tmp_path, name, sig):
    "The three servers that differ most have hundreds of streams, once; a thousand with `CROWD=5000`"
    many = name in ('uvicorn', 'hypercorn', 'granian') and sig==signal.SIGTERM
    done,lives = tmp_path/'done',2 if 'workers' in name else 1
    # What no manager ends, on whatever connection, holds granian up
    paths = ['/events', '/by_hand', '/events'] + ['/flood?wait=0.1']*(name!='granian')
    with running(SERVERS[name], tmp_path/'log', env={'LIFESPAN': str(done)}) as server:
        if lives==2:
            wait_until(lambda: len({server.get('/stats').json()['pid'] for _ in range(8)})==2, 'both workers answer')
        with streams(server, CROWD//5 if many else 20) as own, streams(server, 2, '/by_hand') as by_hand:
            async with Visitor(Remote(server)) as visitor, Visitor(Remote(server)) as idle:
                for o in by_hand: o.begun()
                channels = await visitor.open(*paths)
                for o in channels: await o.begins()
                await idle.close(await idle.opens('/events'))  # A carrier without a channel
                tell(server, name, sig)
                for o in own+by_hand: o.until_end()
                for o in channels: await o.until(lambda o: o.ended, 'the end')
                await eventually(lambda: not visitor.carriers and not idle.carriers, 'the carriers are over')
            server.ends()
            assert farewells(own)==len(own) and farewells(channels)==2
    assert done.read_text().count('shutdown ran')==lives, server.output
    server.is_calm()
