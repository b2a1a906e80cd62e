"The configurations in examples/deploy, before a real app, in real nginx and Caddy: they hold nothing back, and end what has to end"
import asyncio
import contextlib
import itertools
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

import httpx
import pytest
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from proxies import DEPLOY, browsing, lacking, listening, proxying, replaced, serving, trusting
from tests.contract.servers import free_port, running, uvicorn
from tests.contract.support import BOUND, eventually
from tests.contract.visitors import Visitor

needs = {o: pytest.mark.skipif(bool(lacking(o, 'openssl')), reason=f"needs Debian's packages: {', '.join(lacking(o, 'openssl'))}") for o in ('nginx', 'caddy')}
both = pytest.mark.parametrize('name', [pytest.param(o, marks=m) for o,m in needs.items()])


@pytest.fixture
def app(tmp_path):
    with serving(tmp_path) as server: yield server


def item(n): return lambda e: f'item {n}<' in e.data

async def in_step(client, stream, n):
    "Add `n` items, each one only when the one before has come; seconds that each took"
    took = []
    for i in range(n):
        start = time.perf_counter()
        assert (await client.post('/add', data=dict(text=f'item {i}'))).text=='1'
        async with asyncio.timeout(BOUND): await stream.until(item(i))
        took.append(time.perf_counter()-start)
    return took


@both
@pytest.mark.parametrize('version', ['HTTP/1.1', 'HTTP/2'])
async def test_each_event_comes_at_once(app, tmp_path, name, version):
    "Whoever holds back one event here never gets the next one"
    with proxying(name, app.port, tmp_path) as proxy:
        async with browsing(proxy, http2=version=='HTTP/2') as client, listening(client) as stream:
            assert (stream.response.http_version, stream.response.headers.get('content-encoding'))==(version, None)
            took = await in_step(client, stream, 50)
    print(f'{name}, {version}: {1000*statistics.median(took):.1f} ms from the POST to the event, at most {1000*max(took):.0f}')


@both
async def test_scripts_are_compressed_and_streams_are_not(app, tmp_path, name):
    "Not even a stream whose first event is long enough to be worth it"
    with proxying(name, app.port, tmp_path) as proxy:
        async with browsing(app, http2=False) as direct: await direct.post('/add', data=dict(text='long '*1000))
        async with browsing(proxy) as client, listening(client) as stream:
            page = (await client.get('/')).text
            script = await client.get(re.search(r'src="(/_sse/client[^"]+)"', page)[1])
            assert 'content-encoding' in script.headers and 'content-encoding' not in stream.response.headers


@both
async def test_many_streams_need_one_connection(app, tmp_path, name):
    "HTTP/2; over HTTP/1.1 the seventh request would wait"
    with proxying(name, app.port, tmp_path) as proxy:
        async with browsing(proxy, connections=1) as client, contextlib.AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(listening(client)) for _ in range(80)]  # More this client does not do
            assert (await client.post('/add', data=dict(text='item 1'))).text=='80'
            for s in streams: await s.until(item(1))
        async with browsing(proxy, http2=False) as client, contextlib.AsyncExitStack() as stack:
            for _ in range(6): await stack.enter_async_context(listening(client))
            with pytest.raises(httpx.PoolTimeout): await client.get('/health')


@contextlib.asynccontextmanager
async def visiting(proxy, http2):
    "A visitor whose requests go through the proxy, and the client that takes them there"
    async with browsing(proxy, http2) as client:
        async def app(scope, receive, send):
            async def respond():
                url, headers = f"{scope['path']}?{scope['query_string'].decode()}".rstrip('?'), [o for o in scope['headers'] if o[0]!=b'host']
                async with client.stream(scope['method'], url, headers=headers, content=content) as r:
                    await send(dict(type='http.response.start', status=r.status_code, headers=r.headers.raw))
                    async for data in r.aiter_raw(): await send(dict(type='http.response.body', body=data, more_body=True))
                    await send(dict(type='http.response.body'))
            content = (await receive())['body']
            both = [asyncio.create_task(o) for o in (respond(), receive())]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for o in both: o.cancel()
            for o in await asyncio.gather(*both, return_exceptions=True):
                if isinstance(o, Exception): raise o
        async with Visitor(app, Origin=proxy.url) as visitor: yield visitor, client


@both
@pytest.mark.parametrize('http2', [False, True], ids=['HTTP/1.1', 'HTTP/2'])
async def test_all_streams_of_a_browser_on_one_connection(tmp_path, name, http2):
    "The multiplexer, on a port that is not 443: what it is asked by is the name and the port that the browser knows"
    with running(uvicorn('mux:app', '--proxy-headers'), tmp_path/'app.log', env=dict(HOME=str(tmp_path))) as app, proxying(name, app.port, tmp_path) as proxy:
        async with visiting(proxy, http2) as (visitor, client):
            channels = await visitor.open(*['/events', '/by_hand']*3)
            assert len(visitor.carriers)==1
            for o in channels: await o.begins()
            for n in range(10):
                await client.get('/say', params=dict(text=f'word {n}'))
                for o in channels: await o.says(f'word {n}')
            assert (await visitor.close(*channels[:2])).status==204
        async with browsing(app, http2=False) as direct, asyncio.timeout(BOUND):
            while (await direct.get('/held')).text!='0': await asyncio.sleep(.05)


@pytest.mark.parametrize('http2', [False, True], ids=['HTTP/1.1', 'HTTP/2'])
@needs['nginx']
async def test_nginx_as_it_comes_and_its_rules_by_path(tmp_path, http2):
    "It tells the app another `Host`, and the carrier works all the same. What it denies is denied to channels"
    changes = {'proxy_set_header Host $http_host;': '', 'location / {': 'location = /by_hand { deny all; }\n        location / {'}
    with running(uvicorn('mux:app', '--proxy-headers'), tmp_path/'app.log', env=dict(HOME=str(tmp_path))) as app, proxying('nginx', app.port, tmp_path, changes=changes) as proxy:
        async with visiting(proxy, http2) as (visitor, client):
            fine = await visitor.opens('/events')
            assert (await visitor.opens('/by_hand')).words==[dict(ticket=True)]
            assert visitor.tickets['/by_hand']=='' and (await client.get('/by_hand')).status_code==403
            await client.get('/say', params=dict(text='hello'))
            await fine.says('hello')


@both
async def test_a_tab_that_is_closed_is_noticed_behind_the_proxy(app, tmp_path, name):
    "A browser ends one stream of its HTTP/2 connection, and keeps the connection"
    with proxying(name, app.port, tmp_path) as proxy:
        async with browsing(app, http2=False) as direct, asyncio.timeout(BOUND):
            async def until(n):
                while (await direct.get('/health')).json()['connections']!=n: await asyncio.sleep(.05)
            reader,writer = await asyncio.open_connection('127.0.0.1', proxy.port, ssl=trusting(proxy, ['h2']), server_hostname='localhost')
            h2 = H2Connection()
            h2.initiate_connection()
            for stream in (1, 3): h2.send_headers(stream, [(':method', 'GET'), (':path', '/events'), (':scheme', 'https'), (':authority', f'localhost:{proxy.port}')], end_stream=True)
            writer.write(h2.data_to_send())
            await until(2)
            h2.reset_stream(1, ErrorCodes.CANCEL)
            writer.write(h2.data_to_send())
            await until(1)
            writer.close()
            await until(0)


@needs['nginx']
async def test_heartbeats_keep_a_stream_alive_for_longer_than_the_timeout(tmp_path):
    with serving(tmp_path, HEARTBEAT='.2') as app, proxying('nginx', app.port, tmp_path, changes={'proxy_read_timeout 60s': 'proxy_read_timeout 1s'}) as proxy:
        async with browsing(proxy) as client, listening(client) as stream:
            start = time.monotonic()
            while time.monotonic()<start+3: assert await stream.until(lambda e: e.event=='sse:heartbeat')


@needs['nginx']
async def test_without_heartbeats_the_proxy_ends_a_silent_stream(tmp_path):
    with serving(tmp_path, HEARTBEAT='0') as app, proxying('nginx', app.port, tmp_path, changes={'proxy_read_timeout 60s': 'proxy_read_timeout 1s'}) as proxy:
        async with browsing(proxy) as client, listening(client) as stream, asyncio.timeout(BOUND):
            while await stream.next() is not None: pass


@needs['nginx']
async def test_a_proxy_that_ignores_what_the_stream_asks_for_holds_it_back(app, tmp_path):
    "What the test of each event would see, were the configuration wrong"
    with proxying('nginx', app.port, tmp_path, changes={'proxy_buffering on;': 'proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;'}) as proxy:
        async with browsing(app, http2=False) as direct, browsing(proxy) as client:
            task = asyncio.create_task(client.get('/events'))
            async with asyncio.timeout(BOUND):
                while not (await direct.get('/health')).json()['connections']: await asyncio.sleep(.05)
            for i in range(5): await direct.post('/add', data=dict(text=f'item {i}'))
            done,_ = await asyncio.wait({task}, timeout=.5)
            assert not done
            app.signal()
            text = (await asyncio.wait_for(task, BOUND)).text
            assert 'item 0<' in text and 'item 4<' in text


@both
async def test_a_deploy_behind_the_proxy(tmp_path, name):
    "The streams end with a farewell, the proxy says 502, and who comes back is told the state"
    with serving(tmp_path) as app, proxying(name, app.port, tmp_path) as proxy:
        async with browsing(proxy) as client:
            async with listening(client) as stream:
                await in_step(client, stream, 3)
                app.signal(signal.SIGTERM)
                last = None
                async with asyncio.timeout(BOUND):
                    while (e := await stream.next()) is not None: last = e
            assert last.event=='sse:heartbeat' and last.retry
            assert app.ends() in (0, -signal.SIGTERM), app.output
            assert (await client.get('/health')).status_code==502
            with serving(tmp_path, PORT=app.port):
                async with listening(client, **{'Last-Event-ID': last.id}) as stream:
                    assert stream.response.status_code==200
                    async with asyncio.timeout(BOUND): assert 'id="items"' in (await stream.until(lambda e: e.data)).data


@both
async def test_a_proxy_that_is_stopped_does_not_wait_for_streams(app, tmp_path, name):
    "nginx is reloaded, Caddy stopped"
    changes = {'nginx': {'worker_shutdown_timeout 10s': 'worker_shutdown_timeout 1s'}, 'caddy': {'grace_period 10s': 'grace_period 1s'}}[name]
    with proxying(name, app.port, tmp_path, changes=changes) as proxy:
        async with browsing(proxy, http2=False) as client, listening(client) as stream:
            await in_step(client, stream, 1)
            if name=='nginx': subprocess.run([*proxy.cmd, '-s', 'reload'], check=True, timeout=10, cwd=proxy.folder, capture_output=True)
            else: proxy.signal(signal.SIGTERM)
            async with asyncio.timeout(BOUND):
                while await stream.next() is not None: pass
        if name=='nginx':
            async with browsing(proxy) as client, listening(client) as stream: assert stream.response.status_code==200
        else: assert proxy.ends()==0


def of_the_page(language):
    "The block in `language` of the tutorial on deployment: what people copy from there is what is tried here"
    cells = json.loads((DEPLOY.parent.parent/'nbs/tutorials/deployment.ipynb').read_text(encoding='utf-8'))['cells']
    return re.search(rf'```{language}\n(.+?)```', '\n'.join(''.join(c['source']) for c in cells if c['cell_type']=='markdown'), re.S)[1]


@pytest.mark.redis
@pytest.mark.skipif(bool(lacking('redis-server')), reason="needs Debian's package redis-server")
@both
async def test_two_processes_take_turns_and_nobody_notices(tmp_path, name):
    """The deploy of the tutorial: no page fails, and no tab misses or repeats anything

    A form that was sent is not sent again. So nginx refuses one that meets the moment in which uvicorn closes its sockets: of
    this client, which sends one at a time, at most one for each process. Caddy refuses more while a process is away.
    """
    ports = free_port(), free_port()
    old = dict(nginx=re.search(r'upstream app .+?\n    }', (DEPLOY/'nginx.conf').read_text(), re.S)[0], caddy='reverse_proxy 127.0.0.1:8000')[name]
    changes = {old: of_the_page(name).replace('8001', str(ports[1]))}
    pages,added,refused,heard = [],[],[],[]
    with running(['redis-server', '--port', '{port}', '--save', '', '--bind', '127.0.0.1', '--dir', str(tmp_path)], tmp_path/'redis') as redis, contextlib.ExitStack() as stack:
        def start(port): return stack.enter_context(serving(tmp_path, PORT=port, REDIS_URL=f'redis://127.0.0.1:{redis.port}'))
        apps = [start(o) for o in ports]
        with proxying(name, ports[0], tmp_path, changes=changes) as proxy:
            async with browsing(proxy) as client, browsing(proxy) as other:
                async def follow():
                    last = {}
                    while True:
                        async with listening(other, **last) as stream:
                            while stream.response.status_code==200 and (e := await stream.next()) is not None:
                                if e.id: last = {'Last-Event-ID': e.id}
                                if 'beforeend' in e.data: heard.append(int(re.search(r'item (\d+)', e.data)[1]))
                        await asyncio.sleep(.05)
                async def use():
                    for n in itertools.count():
                        (added if (await client.post('/add', data=dict(text=f'item {n}<'))).status_code==200 else refused).append(n)
                        pages.append((await client.get('/')).status_code)
                async def until(condition):
                    while not condition(): await asyncio.sleep(.05)
                def listens(app): return httpx.get(f'{app.url}/health').json()['connections']
                async with asyncio.timeout(6*BOUND):
                    following = asyncio.create_task(follow())
                    await until(lambda: any(map(listens, apps)))
                    using = asyncio.create_task(use())
                    for app,port in zip(apps, ports, strict=True):
                        goal = len(heard)+20
                        await until(lambda goal=goal: len(heard)>goal)
                        app.signal(signal.SIGTERM)
                        await asyncio.to_thread(app.ends)
                        await asyncio.to_thread(start, port)
                    goal = len(heard)+20
                    await until(lambda: len(heard)>goal)
                    using.cancel()
                    await asyncio.wait({using})
                    await until(lambda: heard[-1]>=added[-1])
                    following.cancel()
                    await asyncio.wait({following})
    assert {*pages}=={200} and heard==sorted({*heard}) and {*added}<={*heard}
    if name=='nginx': assert len(refused)<=len(ports)
    print(f'{name}: {len(added)} forms, of which {len(refused)} were refused; {len(pages)} pages')


@pytest.mark.skipif(not shutil.which('systemd-analyze'), reason="needs Debian's package systemd")
def test_the_unit_is_what_systemd_understands(tmp_path):
    def complaints(**changes):
        unit = tmp_path/'app.service'
        unit.write_text(replaced((DEPLOY/'app.service').read_text(), {'/srv/app/.venv/bin/uvicorn': sys.executable, **changes}))
        done = subprocess.run(['systemd-analyze', 'verify', '--man=no', unit], capture_output=True, text=True, timeout=30)
        return [o for o in (done.stdout+done.stderr).splitlines() if 'app.service' in o]
    assert complaints()==[]
    for wrong in ('KillMode=some', 'KilMode=mixed'): assert complaints(**{'KillMode=mixed': wrong})


async def test_too_few_files_cut_tabs_off_and_a_limit_sends_them_away(tmp_path):
    "Why LimitNOFILE stands in the unit, and `max_connections` in the app"
    env = dict(SECRET_KEY='only here')
    with running(['bash', '-c', 'ulimit -n 64; exec "$@"', '-', *uvicorn('app:app')], tmp_path/'few', cwd=DEPLOY, env=env) as server:
        async with browsing(server, http2=False, connections=200) as client, contextlib.AsyncExitStack() as stack:
            tabs = [asyncio.create_task(stack.enter_async_context(listening(client))) for _ in range(80)]
            def served(tab): return not tab.exception() and tab.result().response.status_code==200
            def outcomes(): return {served(t) for t in tabs if t.done()}
            await eventually(lambda: True in outcomes() and (False in outcomes() or 'Too many open files' in server.output), 'some are served, others are not')
            for t in tabs: t.cancel()
            await asyncio.gather(*tabs, return_exceptions=True)
    with running(uvicorn('app:app'), tmp_path/'limit', cwd=DEPLOY, env=dict(env, MAX_CONNECTIONS='30')) as server:
        async with browsing(server, http2=False, connections=200) as client, contextlib.AsyncExitStack() as stack:
            for _ in range(30): await stack.enter_async_context(listening(client))
            r = await client.get('/events')
            assert r.status_code==503 and int(r.headers['retry-after'])>0
            assert (await client.get('/health')).json()==dict(connections=30)
