"Real uvicorn processes: what a client on a socket sees, and how they end"
import json
import os
import signal
import sys
import time
from pathlib import Path

import httpx
import pytest
from fasthtml.common import Client
from servers import APPS, Stream, free_port, running, uvicorn

from cjm_fasthtml_sse.testing import SSEClient


def names(events): return [e.event for e in events]


def get(server, path, **params): return httpx.get(f'{server.url}{path}', params=params, timeout=20)


@pytest.fixture
def serve(tmp_path):
    "Starts servers by the name of an app in tests/apps, and ends them after the test"
    from contextlib import ExitStack
    with ExitStack() as stack:
        def start(app, *args, env=None):
            return stack.enter_context(running(uvicorn(app, *args), tmp_path/f'{app.split(":")[0]}.log', env={**(env or {}), 'HOME': str(tmp_path)}))
        yield start


def test_the_twenty_lines_run_as_they_stand(tmp_path):
    readme = (Path(__file__).parent.parent/'README.md').read_text()
    lines = (APPS/'twenty_lines.py').read_text().split('\n', 1)[1].strip()
    assert lines in readme, 'README.md shows other lines than this test runs'
    port = free_port()
    (tmp_path/'main.py').write_text(lines)
    with running([sys.executable, 'main.py'], tmp_path/'log', port=port, env={'PORT': str(port)}, cwd=tmp_path) as server, \
         Stream(server, '/events') as a, Stream(server, '/events') as b:
        for s in (a, b): s.until(lambda es: 'sse:heartbeat' in names(es))
        assert 'sse-connect="/events"' in get(server, '/').text
        httpx.post(f'{server.url}/add', data=dict(title='tea'), timeout=10)
        for s in (a, b): assert '>tea</li>' in s.until(lambda es: len(es)>1)[-1].data
        server.signal(signal.SIGINT)
        code,secs = server.ends()
    assert secs<5 and 'Traceback' not in server.output


async def test_what_a_real_page_adds_runs_as_it_stands(tmp_path, monkeypatch):
    "To the twenty lines: a memory, a count of people, and the monitor"
    readme = (Path(__file__).parent.parent/'README.md').read_text()
    first,added = [readme.partition(f'## {o}\n')[2].partition('```python\n')[2].partition('```')[0] for o in ('A first app', 'What a real page adds')]
    monkeypatch.chdir(tmp_path)
    exec(first.replace('serve()', added), page := {'__name__': 'page'})
    web = Client(page['app']).cli
    html = (await web.get('/')).text
    assert 'data-sse-monitor' in html and 'id="connection-status"' in html
    async with SSEClient(page['app'], '/events', cookies=web.cookies) as ann:
        await ann.until_oob('people', '1 here')
        await web.post('/add', data=dict(title='tea'))
        await ann.until_oob('todos', 'tea', 'beforeend')
        ben = Client(page['app']).cli
        await ben.get('/')
        async with SSEClient(page['app'], '/events', cookies=ben.cookies) as late:
            await late.until_oob('todos', 'tea', 'outerHTML')
            await ann.until_oob('people', '2 here')
        await ann.until_oob('people', '1 here')


def test_an_app_in_the_older_style_runs_unchanged(serve):
    server = serve('older_style:app')
    with Stream(server, '/stream') as s:
        s.until(lambda es: b': keepalive' in s.body)
        assert get(server, '/say', text='7').text=='1'
        assert get(server, '/push', text='psst').text=='1'
        get(server, '/plain')
        s.until(lambda es: len(es)==3)
        assert names(s.events)==['count', 'note', 'bare']
        assert 'hx-swap-oob' in s.events[0].data and 'psst' in s.events[1].data
    deadline = time.monotonic()+5
    while (state := get(server, '/log').json())['count'] and time.monotonic()<deadline: time.sleep(.05)
    assert state==dict(log=['connect', 'disconnect'], count=0, history=['count'])
    page = get(server, '/').text
    assert 'sse-swap="count,note"' in page and 'htmx-ext-sse@2.2.4' in page


@pytest.mark.parametrize('sig', [signal.SIGTERM, signal.SIGINT], ids=['SIGTERM', 'Ctrl-C'])
def test_a_signal_ends_the_process_with_streams_open(serve, tmp_path, sig):
    "Promise 8: about a second, lifespan shutdown run, no traceback, and each client told when to come back"
    done = tmp_path/'done'
    server = serve('many:app', env={'LIFESPAN': str(done)})
    streams = [Stream(server, '/events') for _ in range(50)] + [Stream(server, '/by_hand') for _ in range(5)]
    try:
        for s in streams[:50]: s.until(lambda es: es)
        get(server, '/say', text='hello')
        for s in streams: s.until(lambda es: 'hello' in str(es))
        server.signal(sig)
        for s in streams: s.until_end()
        code,secs = server.ends()
    finally:
        for s in streams: s.sock.close()
    assert done.read_text()=='shutdown ran'
    assert secs<5 and 'Traceback' not in server.output and 'ERROR' not in server.output, server.output
    farewells = [s.events[-1].retry for s in streams[:50]]
    assert all(1500<=r<=4500 for r in farewells) and len({*farewells})>10
    assert all('sse:close' not in names(s.events) for s in streams), 'a page must come back after a restart'


def test_a_signal_ends_the_process_while_a_client_does_not_read(serve, tmp_path):
    server = serve('many:app', env={'MAX_QUEUE': '100000', 'LIFESPAN': str(tmp_path/'done')})
    with Stream(server, '/events', small=True) as stalled, Stream(server, '/events') as healthy:
        stalled.until(lambda es: es)
        get(server, '/say', text='x'*60_000, times=200)
        healthy.until(lambda es: sum(e.event=='said' for e in es)==200, secs=30)
        server.signal()
        code,secs = server.ends()
    assert (tmp_path/'done').exists() and secs<6 and 'Traceback' not in server.output, server.output


@pytest.mark.parametrize('args', [['--reload'], ['--workers', '2']], ids=['reload', 'workers'])
def test_a_signal_ends_servers_with_child_processes(serve, args):
    server = serve('many:app', *args)
    with Stream(server, '/events') as s:
        s.until(lambda es: es)
        server.signal(signal.SIGTERM if 'workers' in args[0] else signal.SIGINT)
        s.until_end()
        code,secs = server.ends(15)
    assert 'Traceback' not in server.output


def test_a_stalled_reader_is_evicted_and_replays_what_it_missed(serve):
    server = serve('many:app', env={'MAX_QUEUE': '20'})
    with Stream(server, '/events') as healthy:
        with Stream(server, '/events', small=True) as stalled:
            for s in (healthy, stalled): s.until(lambda es: es)
            sent = 0
            while not json.loads(get(server, '/stats').text)['evicted']:  # Buffers of the system come first
                assert sent<4000
                get(server, '/say', text='x'*20_000, times=50)
                sent += 50
                healthy.until(lambda es: sum(e.event=='said' for e in es)==sent)
            while not stalled.ended:
                try: stalled.read()
                except ConnectionError: break
            seen = [e for e in stalled.events if e.event=='said']
        assert len(seen)<sent
        with Stream(server, '/events', last_event_id=seen[-1].id) as back:
            back.until(lambda es: sum(e.event=='said' for e in es)==sent-len(seen))
    assert [e.id for e in seen]+[e.id for e in back.events if e.event=='said']==[e.id for e in healthy.events if e.event=='said']
    assert 'ERROR' not in server.output, server.output
    assert 'Traceback' not in server.output


def test_ten_thousand_broadcasts_in_a_row_evict_nobody_who_reads(serve):
    server = serve('many:app')
    with Stream(server, '/events') as s:
        s.until(lambda es: es)
        import threading
        t = threading.Thread(target=get, args=(server, '/say'), kwargs=dict(text='tick', times=10_000))
        t.start()
        s.until(lambda es: sum(e.event=='said' for e in es)==10_000, secs=60)
        t.join()
    numbers = [int(e.id.split('-')[1]) for e in s.events if e.event=='said']
    assert numbers==[*range(1, 10_001)]


def test_head_answers_without_streaming(serve):
    server = serve('many:app')
    r = httpx.head(f'{server.url}/events', timeout=5)
    assert (r.status_code, r.headers['content-type'], r.content)==(200, 'text/event-stream; charset=utf-8', b'')


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_preloaded_workers_number_apart(tmp_path):
    "Two workers that were forked off once the app was made give no id twice, and know what came before them"
    with running([sys.executable, 'preload.py', '{port}'], tmp_path/'log', env={'HOME': str(tmp_path)}) as app:
        found = {}
        until = time.monotonic()+60
        while len(found)<2:
            assert time.monotonic()<until, app.output
            get(app, '/say', text='x')
            here = get(app, '/here').json()
            if here['broadcasts']>1: found[here['pid']] = here['cursor']  # Of its own, beside the one at import
        epochs = {c.rpartition('-')[0] for c in found.values()}
        assert len(epochs)==2, found
        assert get(app, '/history').json()[0]=='at import'
