"""Promise 8: with streams open, a server that is told to stop stops at once, in order, and every browser knows when to come back

Some of the servers have 1,000 streams open here, the others 20. `STREAMS=1000 pytest tests/test_shutdown.py` opens so many on each.
"""
import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import httpx
import pytest
import uvicorn as uvicorn_
from fasthtml.common import EventStream, Response, fast_app
from servers import Stream, free_port, many_files, running, uvicorn

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

STREAMS = int(os.environ.get('STREAMS', 0))
BOUND = 20  # Seconds to the end of the process, without which it would hang for good; "about a second" on a machine that does nothing else
RUN = 'import uvicorn, many; uvicorn.run(many.app, host="127.0.0.1", port={port}, log_level="info")'
SERVERS = {
    'uvicorn': uvicorn('many:app'),
    'uvicorn, h11': uvicorn('many:app', '--http', 'h11', '--loop', 'asyncio'),
    'uvicorn.run': [sys.executable, '-c', RUN],
    'uvicorn --reload': uvicorn('many:app', '--reload'),
    'uvicorn --workers 2': uvicorn('many:app', '--workers', '2'),
    'serve()': [sys.executable, 'many.py'],
    'hypercorn': [sys.executable, '-m', 'hypercorn', 'many:app', '--bind', '127.0.0.1:{port}', '--backlog', '2048'],
    'granian': [sys.executable, '-m', 'granian', 'many:app', '--interface', 'asgi', '--host', '127.0.0.1', '--port', '{port}'],
}


@pytest.fixture(scope='module')
def table(request):
    "A line for each server, shown after the last of them"
    lines = []
    yield lines
    with request.config.pluginmanager.getplugin('capturemanager').global_and_fixture_disabled():
        for line in [('\nserver', ' told by', 'streams', 'seconds', 'lifespan', 'farewells'), *lines]:
            print('{:<20} {:<12} {:>8} {:>8}  {:<9} {:>9}'.format(*line))


@contextmanager
def open_streams(server, n, path='/events'):
    with many_files(), ExitStack() as stack:
        streams = [stack.enter_context(Stream(server, path)) for _ in range(n)]
        for s in streams:
            if path=='/events': s.until(lambda es: es)
        yield streams


def farewells(streams):
    "How many were told when to come back, and none to stay away"
    retries = [e.retry for s in streams if (e := s.events[-1]).event=='sse:heartbeat' and e.retry]
    assert all(1500<=r<=4500 for r in retries) and len({*retries})>=min(len(retries), 500)/3, 'not spread'
    assert not any(e.event=='sse:close' for s in streams for e in s.events), 'a page must come back after a restart'
    return len(retries)


@pytest.mark.parametrize('sig', ['SIGTERM', 'Ctrl-C'])
@pytest.mark.parametrize('name', SERVERS)
def test_promise_8_a_server_that_is_told_to_stop_stops(name, sig, table, tmp_path):
    n = STREAMS or (1000 if name in ('uvicorn', 'hypercorn', 'granian') and sig=='SIGTERM' else 20)
    port,done = free_port(),tmp_path/'done'
    with running(SERVERS[name], tmp_path/'log', port=port, env={'LIFESPAN': str(done), 'PORT': str(port), 'HOME': str(tmp_path)}) as server:
        if 'workers' in name: time.sleep(1)  # Both have to be there for the streams to be spread
        with open_streams(server, n) as streams, open_streams(server, 2, '/by_hand') as by_hand:
            httpx.get(f'{server.url}/say', params=dict(text='hello'), timeout=10)
            start = time.monotonic()
            # A supervisor sends SIGTERM to the first process, a terminal sends Ctrl-C to all. Not so under granian: a second signal on the
            # heels of the first makes granian 2.8 hang or skip the lifespan now and then, whatever the app
            server.interrupt() if sig=='Ctrl-C' and name!='granian' else server.signal(signal.SIGTERM if sig=='SIGTERM' else signal.SIGINT)
            for s in streams+by_hand: s.until_end()
            server.process.wait(BOUND)
            secs = time.monotonic()-start
        lifespans = done.read_text().count('shutdown ran') if done.exists() else 0
        told = farewells(streams)
        table.append((name, sig, n, f'{secs:.2f}', f'{lifespans} run', f'{told}/{n}'))
        assert secs<BOUND and lifespans==(2 if 'workers' in name else 1) and told==n, server.output
        for bad in ('Traceback', 'ERROR', 'CRITICAL', 'Exception', 'Cancel'): assert bad not in server.output, server.output


@pytest.mark.parametrize('path', ['/events', '/by_hand'])
def test_a_server_stops_by_its_own_count(path, tmp_path):
    "`--limit-max-requests` renews a process from time to time, which no signal announces"
    done = tmp_path/'done'
    with running(uvicorn('many:app', '--limit-max-requests', '15'), tmp_path/'log', env={'LIFESPAN': str(done)}) as server:
        with open_streams(server, 10, path) as streams:
            for _ in range(15): httpx.get(f'{server.url}/stats', timeout=10)  # A response counts when it is over
            for s in streams: s.until_end(BOUND)
            code,secs = server.ends(BOUND)
        assert done.exists() and 'Traceback' not in server.output, server.output
        if path=='/events': assert farewells(streams)==10


def in_a_thread_app(ran):
    "An app that leaves its mark in `ran` on shutdown"
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
    @rt('/say')
    def say(text: str): return str(manager.broadcast_threadsafe('said', text).result(5))
    @rt('/closing')
    async def closing():
        await asyncio.sleep(.3)
        return Response('closing', headers={'Connection': 'close'})
    return app


@pytest.fixture(params=['httptools', 'h11'])
def in_a_thread(request):
    "A uvicorn as a notebook starts it: in a thread"
    ran = []
    server = uvicorn_.Server(uvicorn_.Config(in_a_thread_app(ran), host='127.0.0.1', port=free_port(), log_level='warning', http=request.param))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic()+10
    while not server.started and time.monotonic()<until: time.sleep(.01)
    yield SimpleNamespace(server=server, thread=thread, ran=ran, port=server.config.port, http=request.param)
    server.should_exit = server.force_exit = True
    thread.join(10)


@pytest.mark.parametrize('path', ['/events', '/by_hand'])
def test_promise_8_a_server_in_a_thread_stops(in_a_thread, path, table, caplog):
    it,n = in_a_thread,STREAMS or 20
    with open_streams(it, n, path) as streams:
        httpx.get(f'http://127.0.0.1:{it.port}/say', params=dict(text='hello'), timeout=10)
        for s in streams: s.until(lambda es: 'hello' in str(es))
        start = time.monotonic()
        it.server.should_exit = True
        for s in streams: s.until_end(BOUND)
        it.thread.join(BOUND)
        secs = time.monotonic()-start
    told = farewells(streams)
    if path=='/events': table.append((f'thread, {it.http}', 'should_exit', n, f'{secs:.2f}', f'{len(it.ran)} run', f'{told}/{n}'))
    assert not it.thread.is_alive() and secs<BOUND and it.ran==['shutdown ran'] and told==(n if path=='/events' else 0)
    assert not [r for r in caplog.records if r.levelname in ('ERROR', 'CRITICAL') or r.exc_info], caplog.text


def test_a_response_that_closes_its_connection_stops_nothing(in_a_thread):
    "For uvicorn it looks much like shutdown"
    with open_streams(in_a_thread, 3) as streams:
        httpx.get(f'http://127.0.0.1:{in_a_thread.port}/closing', timeout=10)
        time.sleep(.5)  # Longer than between two looks at the server
        httpx.get(f'http://127.0.0.1:{in_a_thread.port}/say', params=dict(text='still here'), timeout=10)
        for s in streams: s.until(lambda es: 'still here' in str(es))


@pytest.mark.parametrize('runs', [1, 2])
def test_ctrl_c_in_asyncio_run(runs):
    "It cancels the main task, however many runs were before, and never strikes within the event loop"
    script = '\n'.join(['import asyncio, os, signal', 'from cjm_fasthtml_sse.core import SSEBroadcastManager',
        'signal.signal(signal.SIGINT, signal.default_int_handler)',  # A shell's job in the background ignores it
        'm = SSEBroadcastManager()', 'async def main(kill):', '    await m.register_connection()', '    if not kill: return',
        '    asyncio.get_running_loop().call_later(.05, os.kill, os.getpid(), signal.SIGINT)',
        '    try: await asyncio.sleep(20)', '    except asyncio.CancelledError: print("cancelled", flush=True); await asyncio.sleep(.05); print("cleaned up", flush=True); raise',
        f'for n in range({runs}):', f'    try: asyncio.run(main(n=={runs-1}))', '    except KeyboardInterrupt: print("stopped")',
        'assert signal.getsignal(signal.SIGINT) is signal.default_int_handler'])
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split('\n')[:3], done.stderr, done.returncode) == (['cancelled', 'cleaned up', 'stopped'], '', 0)
