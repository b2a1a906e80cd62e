"Examples/deploy before a real app, in real nginx and Caddy: they hold nothing back, and end what has to end"
import asyncio
import itertools
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

import httpx
import pytest
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from proxies import DEPLOY, browsing, lacking, listening, proxying, replaced, serving, trusting
from tests.contract.servers import Remote, free_port, running, uvicorn, wait_until
from tests.contract.support import BOUND, eventually, within
from tests.contract.visitors import Visitor

def needing(name): return pytest.mark.skipif(bool(lacking(name, 'openssl')), reason=f'needs {name} and openssl')
needs = {o: needing(o) for o in ('nginx', 'caddy')}
both = pytest.mark.parametrize('name', [pytest.param(o, marks=m) for o,m in needs.items()])


@pytest.fixture(scope='module')
def shared_app(tmp_path_factory):
    with serving(tmp_path_factory.mktemp('app')) as server: yield server

@pytest.fixture
def app(shared_app):
    "The app, without connections; its items are those of all tests"
    wait_until(lambda: not shared_app.get('/health').json()['connections'], 'no connections')
    return shared_app

@pytest.fixture
def proxy(app, name, tmp_path):
    with proxying(name, app.port, tmp_path) as server: yield server

@pytest.fixture(scope='module')
def house(tmp_path_factory):
    "The app of the contract, with all kinds of streams"
    log = tmp_path_factory.mktemp('house')/'log'
    with running(uvicorn('main:app', '--proxy-headers'), log) as server: yield server


numbers = itertools.count()

async def add(client, *streams):
    "Add an item, and wait until all `streams` show it; how many connections got it"
    text = f'item {next(numbers)}.'
    got = (await client.post('/add', data=dict(text=text))).text
    async with within(text):
        for o in streams: await o.until(lambda e: text in e.data)
    return int(got)

async def connections(server, n):
    "Wait until the app has `n` connections"
    async with browsing(server, http2=False) as direct, within(f'{n} connections'):
        while (await direct.get('/health')).json()['connections']!=n: await asyncio.sleep(.02)


@both
async def test_each_event_comes_at_once(proxy, name):
    "Whoever holds back one event here never gets the next one"
    for version in 'HTTP/1.1', 'HTTP/2':
        async with browsing(proxy, http2=version=='HTTP/2') as client, listening(client) as stream:
            head = stream.response
            assert (head.http_version, head.headers.get('content-encoding'))==(version, None)
            took = []
            for _ in range(50):
                start = time.perf_counter()
                assert await add(client, stream)==1
                took.append(1000*(time.perf_counter()-start))
        print(f'{name}, {version}: {statistics.median(took):.1f} ms from POST to event, at most {max(took):.0f}')


@both
async def test_scripts_are_compressed_and_streams_are_not(proxy):
    "Not even a stream whose first event is long enough to be worth it"
    async with browsing(proxy) as client:
        await client.post('/add', data=dict(text='long '*1000))
        async with listening(client) as stream:
            script = await client.get(re.search(r'src="(/_sse/client[^"]+)"', (await client.get('/')).text)[1])
            assert 'content-encoding' in script.headers and 'content-encoding' not in stream.response.headers


@both
async def test_many_streams_need_one_connection(proxy):
    "HTTP/2; over HTTP/1.1 the seventh request would wait"
    async with browsing(proxy, connections=1) as client, AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(listening(client)) for _ in range(80)]
        assert await add(client, *streams)==80
    async with browsing(proxy, http2=False, patience=1) as client, AsyncExitStack() as stack:
        for _ in range(6): await stack.enter_async_context(listening(client))
        with pytest.raises(httpx.PoolTimeout): await client.get('/health')


class Through(Remote):
    "An app whose requests go through a client, and so through its proxy"
    def __init__(self, client): self.client = client

    async def forward(self, scope, body, send):
        url = f"{scope['path']}?{scope['query_string'].decode()}".rstrip('?')
        headers = [o for o in scope['headers'] if o[0]!=b'host']
        async with self.client.stream(scope['method'], url, headers=headers, content=body) as r:
            await send(dict(type='http.response.start', status=r.status_code, headers=r.headers.raw))
            async for data in r.aiter_raw(): await send(dict(type='http.response.body', body=data, more_body=True))
            await send(dict(type='http.response.body', body=b''))

@asynccontextmanager
async def visiting(house, name, folder, http2, **changes):
    "A visitor of the house through a proxy, and the client that takes the requests there"
    with proxying(name, house.port, folder, **changes) as proxy:
        async with browsing(proxy, http2) as client, Visitor(Through(client), Origin=proxy.url) as visitor:
            yield visitor, client
        async with browsing(house, http2=False) as direct, within('all streams end'):
            while (await direct.get('/held')).json()['connections']: await asyncio.sleep(.02)

http = pytest.mark.parametrize('http2', [False, True], ids=['HTTP/1.1', 'HTTP/2'])

@both
@http
async def test_all_streams_of_a_browser_on_one_connection(house, tmp_path, name, http2):
    "The multiplexer, on a port that is not 443: what it is asked by is the name and the port that the browser knows"
    async with visiting(house, name, tmp_path, http2) as (visitor, client):
        channels = await visitor.open(*['/events', '/late']*3)
        assert len(visitor.carriers)==1
        for o in channels: await o.begins()
        for n in range(10):
            await client.get('/say', params=dict(text=f'word {n}'))
            for o in channels: await o.says(f'word {n}')
        assert (await visitor.close(*channels[:2])).status==204


@needs['nginx']
@http
async def test_nginx_as_it_comes_and_its_rules_by_path(house, tmp_path, http2):
    "It tells the app another `Host`, and the carrier works all the same. What it denies is denied to channels"
    changes = {'proxy_set_header Host $http_host;': '',
               'location / {': 'location = /late { deny all; }\n        location / {'}
    async with visiting(house, 'nginx', tmp_path, http2, changes=changes) as (visitor, client):
        fine = await visitor.opens('/events')
        assert (await visitor.opens('/late')).words==[dict(ticket=True)]
        assert visitor.tickets['/late']=='' and (await client.get('/late')).status_code==403
        await client.get('/say', params=dict(text='hello'))
        await fine.says('hello')


@both
async def test_a_tab_that_is_closed_is_noticed_behind_the_proxy(app, proxy):
    "A browser ends one stream of its HTTP/2 connection, and keeps the connection"
    _,writer = await asyncio.open_connection('127.0.0.1', proxy.port, ssl=trusting(proxy, ['h2']),
                                             server_hostname='localhost')
    h2 = H2Connection()
    h2.initiate_connection()
    headers = {':method': 'GET', ':path': '/events', ':scheme': 'https', ':authority': f'localhost:{proxy.port}'}
    for stream in 1, 3: h2.send_headers(stream, [*headers.items()], end_stream=True)
    writer.write(h2.data_to_send())
    await connections(app, 2)
    h2.reset_stream(1, ErrorCodes.CANCEL)
    writer.write(h2.data_to_send())
    await connections(app, 1)
    writer.close()
    await connections(app, 0)


@needs['nginx']
@pytest.mark.parametrize('heartbeat', ['.3', '0'])
async def test_heartbeats_keep_a_stream_alive_for_longer_than_the_timeout(tmp_path, heartbeat):
    "Without them the proxy ends a silent stream"
    changes = {'proxy_read_timeout 60s': 'proxy_read_timeout 3s'}
    with serving(tmp_path, HEARTBEAT=heartbeat) as app, proxying('nginx', app.port, tmp_path, changes=changes) as proxy:
        async with browsing(proxy) as client, listening(client) as stream, within('heartbeats, or the end'):
            if heartbeat=='0':
                while await stream.next() is not None: pass
            else:
                for _ in range(14): await stream.until(lambda e: e.event=='sse:heartbeat')


@needs['nginx']
async def test_a_proxy_that_ignores_what_the_stream_asks_for_holds_it_back(tmp_path):
    "What the test of each event would see, were the configuration wrong"
    changes = {'proxy_buffering on;': 'proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;'}
    with serving(tmp_path) as app, proxying('nginx', app.port, tmp_path, changes=changes) as proxy:
        async with browsing(app, http2=False) as direct, browsing(proxy) as client:
            task = asyncio.create_task(client.get('/events'))
            await connections(app, 1)
            for _ in range(5): await add(direct)
            done,_ = await asyncio.wait({task}, timeout=.5)
            assert not done
            app.signal()
            assert (await asyncio.wait_for(task, BOUND)).text.count('beforeend')==5


@both
async def test_a_deploy_behind_the_proxy(tmp_path, name):
    "Each stream says when to come back, the proxy says 502, and whoever comes back gets the state"
    with serving(tmp_path) as app, proxying(name, app.port, tmp_path) as proxy:
        async with browsing(proxy) as client:
            async with listening(client) as stream:
                for _ in range(3): await add(client, stream)
                app.signal(signal.SIGTERM)
                async with within('the stream ends'):
                    while (e := await stream.next()) is not None: last = e
            assert last.event=='sse:heartbeat' and last.retry
            assert app.ends() in (0, -signal.SIGTERM), app.output
            assert (await client.get('/health')).status_code==502
            with serving(tmp_path, PORT=app.port):
                async with listening(client, **{'Last-Event-ID': last.id}) as stream, within('the state'):
                    assert 'id="items"' in (await stream.until(lambda e: e.data)).data


@both
async def test_a_proxy_that_is_stopped_does_not_wait_for_streams(app, tmp_path, name):
    "nginx is reloaded, Caddy stopped"
    line = dict(nginx='worker_shutdown_timeout', caddy='grace_period')[name]
    with proxying(name, app.port, tmp_path, changes={f'{line} 10s': f'{line} 1s'}) as proxy:
        async with browsing(proxy, http2=False) as client, listening(client) as stream:
            await add(client, stream)
            if name=='caddy': proxy.signal(signal.SIGTERM)
            else: subprocess.run([*proxy.cmd, '-s', 'reload'], check=True, timeout=BOUND, cwd=proxy.folder)
            async with within('the stream ends'):
                while await stream.next() is not None: pass
        if name=='caddy': assert proxy.ends()==0
        else:
            async with browsing(proxy) as client, listening(client) as stream: assert stream.response.status_code==200


def of_the_page(language):
    "The block in `language` of the tutorial on deployment: what people copy from there is what is tried here"
    page = json.loads((DEPLOY.parent.parent/'nbs/tutorials/deployment.ipynb').read_text(encoding='utf-8'))
    text = '\n'.join(''.join(c['source']) for c in page['cells'] if c['cell_type']=='markdown')
    return re.search(rf'```{language}\n(.+?)```', text, re.S)[1]


class Client:
    "Somebody who loads pages and adds items, as fast as possible, and a tab beside that: what came of it"
    def __init__(self): self.pages,self.added,self.refused,self.heard = [],[],[],[]

    async def use(self, http):
        for n in itertools.count():
            added = (await http.post('/add', data=dict(text=f'item {n}'))).status_code==200
            (self.added if added else self.refused).append(n)
            self.pages.append((await http.get('/')).status_code)

    async def follow(self, http):
        last = {}
        while True:
            async with listening(http, **last) as stream:
                while stream.response.status_code==200 and (e := await stream.next()) is not None:
                    if e.id: last = {'Last-Event-ID': e.id}
                    if 'beforeend' in e.data: self.heard.append(int(re.search(r'item (\d+)', e.data)[1]))
            await asyncio.sleep(.05)

    async def hears(self, n):
        goal = len(self.heard)+n
        await eventually(lambda: len(self.heard)>=goal, f'{n} more items')


@pytest.mark.redis
@both
async def test_two_processes_take_turns_and_nobody_notices(shared, tmp_path, name):
    """The deploy of the tutorial: no page fails, and no tab misses or repeats anything

    A form that was sent is not sent again. So nginx refuses one that meets the moment in which uvicorn closes its
    sockets: of this client, which sends one at a time, at most one for each process. Caddy refuses more while a process
    is away.
    """
    ports,config,me = (free_port(), free_port()),(DEPLOY/'nginx.conf').read_text(),Client()
    old = dict(nginx=re.search(r'upstream app .+?\n    }', config, re.S)[0], caddy='reverse_proxy 127.0.0.1:8000')[name]
    changes = {old: of_the_page(name).replace('8001', str(ports[1]))}
    with ExitStack() as stack:
        def start(port): return stack.enter_context(serving(tmp_path, PORT=port, REDIS_URL=shared.url()))
        apps = await asyncio.gather(*[asyncio.to_thread(start, o) for o in ports])
        proxy = stack.enter_context(proxying(name, ports[0], tmp_path, changes=changes))
        async with browsing(proxy) as http, browsing(proxy) as other:
            following = asyncio.create_task(me.follow(other))
            await eventually(lambda: any(o.get('/health').json()['connections'] for o in apps), 'the tab follows')
            using = asyncio.create_task(me.use(http))
            for app,port in zip(apps, ports, strict=True):
                await me.hears(20)
                app.signal(signal.SIGTERM)
                await asyncio.to_thread(app.ends)
                await asyncio.to_thread(start, port)
            await me.hears(20)
            using.cancel()
            await asyncio.wait({using})
            await eventually(lambda: me.heard[-1]>=me.added[-1], 'the last item')
            following.cancel()
            await asyncio.wait({following})
    assert {*me.pages}=={200} and me.heard==sorted({*me.heard}) and {*me.added}<={*me.heard}
    if name=='nginx': assert len(me.refused)<=len(ports)
    print(f'{name}: {len(me.added)} forms, of which {len(me.refused)} were refused; {len(me.pages)} pages')


@pytest.mark.skipif(not shutil.which('systemd-analyze'), reason="needs Debian's package systemd")
def test_the_unit_is_what_systemd_understands(tmp_path):
    def complaints(**changes):
        unit,changes = tmp_path/'app.service',{'/srv/app/.venv/bin/uvicorn': sys.executable, **changes}
        unit.write_text(replaced((DEPLOY/'app.service').read_text(), changes))
        cmd = ['systemd-analyze', 'verify', '--man=no', unit]
        done = subprocess.run(cmd, capture_output=True, text=True, timeout=BOUND)
        return [o for o in (done.stdout+done.stderr).splitlines() if 'app.service' in o]
    assert complaints()==[]
    for wrong in ('KillMode=some', 'KilMode=mixed'): assert complaints(**{'KillMode=mixed': wrong})


async def test_too_few_files_cut_tabs_off_and_a_limit_sends_them_away(tmp_path):
    "Why LimitNOFILE stands in the unit, and `max_connections` in the app"
    few = ['bash', '-c', 'ulimit -n 64; exec "$@"', '-', *uvicorn('app:app')]
    with running(few, tmp_path/'few', cwd=DEPLOY, env=dict(SECRET_KEY='only here')) as server:
        async with browsing(server, http2=False, connections=200) as client, AsyncExitStack() as stack:
            tabs = [asyncio.create_task(stack.enter_async_context(listening(client))) for _ in range(80)]
            def served(tab): return not tab.exception() and tab.result().response.status_code==200
            def some_are_cut_off():
                found = {served(t) for t in tabs if t.done()}
                return True in found and (False in found or 'Too many open files' in server.output)
            await eventually(some_are_cut_off, 'some are served, others are not')
            for t in tabs: t.cancel()
            await asyncio.gather(*tabs, return_exceptions=True)
    with serving(tmp_path, MAX_CONNECTIONS='30') as server:
        async with browsing(server, http2=False, connections=200) as client, AsyncExitStack() as stack:
            for _ in range(30): await stack.enter_async_context(listening(client))
            r = await client.get('/events')
            assert r.status_code==503 and int(r.headers['retry-after'])>0
            assert (await client.get('/health')).json()==dict(connections=30)
