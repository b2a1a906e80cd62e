"""The direct path: where it is taken, where it must not be, and that nobody can tell it from the way through ASGI

A stream that is written to the server's transport passes no middleware any more. So each layer that may do something with a
body keeps its stream on the way through ASGI, and what a client gets is the same on both."""
import asyncio
import random
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager, suppress

import h11
import pytest
import uvicorn.protocols.http.httptools_impl as httptools_impl
import uvloop
from fasthtml.common import FastHTML
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response
from starlette.routing import Mount, Route

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.engine.checks import ArgumentError
from cjm_fasthtml_sse.engine.middleware import leaves_bodies_alone
from cjm_fasthtml_sse.engine.wire import Parser
from cjm_fasthtml_sse.helpers import setup_sse
from tests.contract.servers import SERVERS, Stream, running
from tests.contract.support import BOUND, all_live, eventually, serve

CARD, HIDDEN = 'card 4111 1111', 'card **** 1111'


class Client:
    "Reads one response from a socket, strictly; `stalled` while it reads nothing"
    def __init__(self, last_id=''):
        self.parser, self.http, self.events, self.reading = Parser(last_id), h11.Connection(h11.CLIENT), [], asyncio.Event()
        self.headers, self.ended, self.cut_off = {}, False, False
        self.reading.set()

    @property
    def ids(self): return [int(e.id.rpartition('-')[2]) for e in self.said]
    @property
    def said(self): return [e for e in self.events if not e.event.startswith('sse:')]
    @property
    def stalled(self): return not self.reading.is_set()

    async def open(self, port, path='/events', headers=(), version='1.1', tls=None, receive_buffer=None):
        sock = socket.socket()
        if receive_buffer: sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ('127.0.0.1', port))
        names = dict(server_hostname='localhost') if tls else {}
        self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=2**14, ssl=tls, **names)
        if self.parser.last_event_id: headers = [*headers, f'Last-Event-ID: {self.parser.last_event_id}']
        self.ask(path, headers, version)
        self.task = asyncio.create_task(self.read())
        return self

    def ask(self, path, headers=(), version='1.1'):
        self.http.send(h11.Request(method='GET', target=path, headers=[('Host', 'localhost')]))
        self.http.send(h11.EndOfMessage())
        self.writer.write('\r\n'.join([f'GET {path} HTTP/{version}', 'Host: localhost', *headers, '', '']).encode())

    async def read(self):
        "Read until the response is complete, or cut off"
        while not self.ended:
            try: event = self.http.next_event()
            except h11.RemoteProtocolError as e:
                if 'without sending complete message body' not in str(e): raise
                self.cut_off = self.ended = True
                break
            if event is h11.NEED_DATA:
                await self.reading.wait()
                try: self.http.receive_data(await self.reader.read(2**14))
                except OSError: self.cut_off = self.ended = True
            elif isinstance(event, h11.Response): self.headers = dict(event.headers)
            elif isinstance(event, h11.Data): self.events += self.parser.feed(event.data)
            elif isinstance(event, h11.EndOfMessage): self.ended = True
            elif isinstance(event, h11.ConnectionClosed): self.ended = self.cut_off = True

    async def close(self):
        self.task.cancel()
        self.writer.transport.abort()
        with suppress(asyncio.CancelledError, OSError): await self.task


@asynccontextmanager
async def opened(port, *args, last_id='', **kw):
    client = await Client(last_id).open(port, *args, **kw)
    try: yield client
    finally: await client.close()


# Where it is taken, and where not

def masking(app):
    async def masked(scope, receive, send):
        async def mask(message):
            if b'4111' in message.get('body', b''): message = {**message, 'body': message['body'].replace(b'4111', b'****')}
            await send(message)
        await app(scope, receive, mask)
    return masked

class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next): return await call_next(request)

class Masked(Response):
    "What a route puts around a response"
    def __init__(self, inner): self.inner = inner
    async def __call__(self, scope, receive, send): await masking(self.inner)(scope, receive, send)

def declared(f):
    "Middleware that says of itself that it leaves bodies alone; `f` is what it does with a message"
    class Layer:
        def __init__(self, app): self.app = app
        @leaves_bodies_alone
        async def __call__(self, scope, receive, send):
            async def _send(message): await f(send, message)
            await self.app(scope, receive, _send)
    return Layer

async def with_a_length(send, message):
    if message['type']=='http.response.start': message['headers'].append((b'content-length', b'1000000'))
    await send(message)
async def in_a_task(send, message): await asyncio.create_task(send(message))
async def masks_in_place(send, message):
    if 'body' in message: message['body'] = message['body'].replace(b'4111', b'****')+b''
    await send(message | {})

def fast(manager, *middleware, route=None, setup=True, wrap=lambda response: response):
    "An app of FastHTML, with sessions and all"
    app = FastHTML(secret_key='x', middleware=[Middleware(*o) if isinstance(o, tuple) else Middleware(o) for o in middleware])
    if setup: setup_sse(app, manager)
    @app.get('/events')
    def events(req, session):
        session['seen'] = 1
        return wrap(manager.stream(req))
    return app

def plain(manager, **kw): return Starlette(routes=[Route('/events', lambda req: manager.stream(req), **kw)])
def mounted(inner, *middleware, outer=None):
    outer = outer or FastHTML(secret_key='x')
    outer.router.routes.insert(0, Mount('/sub', inner, middleware=[*map(Middleware, middleware)]))
    return outer

PATHS = {  # What an app is like -> how to make it, the path of its stream, and the path that its bytes take
    'FastHTML': (fast, 'transport'),
    'FastHTML without setup_sse': (lambda m: fast(m, setup=False), 'transport'),
    'sessions, CORS, trusted hosts': (lambda m: fast(m, (CORSMiddleware, ['*']), (TrustedHostMiddleware, ['localhost'])), 'transport'),
    'Starlette': (plain, 'transport'),
    'in an app of known layers': (lambda m: mounted(fast(m)), 'transport'),
    'a masking middleware': (lambda m: fast(m, masking), 'layer masking.<locals>.masked.<locals>.mask '),
    'a mask around the app': (lambda m: masking(fast(m)), 'layer masking.'),
    'a mask that a route puts around': (lambda m: fast(m, wrap=Masked), 'layer masking.'),
    'middleware on a Route': (lambda m: plain(m, middleware=[Middleware(masking)]), 'layer masking.'),
    'middleware on a Mount': (lambda m: mounted(plain(m), masking), 'layer masking.'),
    'an app that masks around': (lambda m: mounted(fast(m), outer=FastHTML(middleware=[Middleware(masking)])), 'layer masking.'),
    'BaseHTTPMiddleware': (lambda m: fast(m, Passing), 'layer '),
    'GZip': (lambda m: fast(m, GZipMiddleware), 'layer '),
    'a length': (lambda m: fast(m, declared(with_a_length)), 'not chunked'),
    'a layer that lies': (lambda m: fast(m, declared(masks_in_place), setup=False), 'changed in between'),
    'a task of its own': (lambda m: fast(m, declared(in_a_task), setup=False), 'changed in between'),
}

@pytest.mark.parametrize('name', PATHS)
async def test_who_is_in_between(name):
    "What any layer would mask stays masked"
    make, expected = PATHS[name]
    manager = SSEBroadcastManager()
    app = make(manager)
    where = '/sub/events' if any(isinstance(o, Mount) and o.path=='/sub' for o in getattr(app, 'routes', ())) else '/events'
    async with serve(app) as port, opened(port, where) as client:
        await all_live(manager, 1)
        path, = manager.stats()['paths']
        assert path==expected or expected.endswith((' ', '.')) and path.startswith(expected), path
        for _ in range(3): await manager.broadcast('said', CARD)
        await eventually(lambda: len(client.said)==3, lambda: client.events)
        hides = 'mask' in name or 'lies' in name or 'Mount' in name or 'Route' in name
        assert {e.data for e in client.said}=={f'"{HIDDEN if hides else CARD}"'}
        assert manager.stats()['errors']==0
        await manager.close()
        if name!='a length': await eventually(lambda: client.ended and not client.cut_off, 'the end of the body')

@pytest.mark.parametrize('config,options,request_,expected', [
    ({}, dict(direct=False), {}, 'off'),
    (dict(http='h11'), {}, {}, 'server uvicorn with h11'),
    ({}, {}, dict(version='1.0'), 'HTTP/1.0'),
    ({}, {}, {}, 'transport')])
async def test_what_is_asked_for(config, options, request_, expected):
    manager = SSEBroadcastManager(**options)
    async with serve(fast(manager), **config) as port, opened(port, **request_) as client:
        await all_live(manager, 1)
        assert manager.stats()['paths']=={expected: 1}
        await manager.broadcast('said', CARD)
        await eventually(lambda: client.said, 'a message')
        await manager.close()

@pytest.mark.parametrize('early', [True, False])
async def test_a_patched_send(monkeypatch, early):
    "What somebody puts into uvicorn's class sees every message of the streams that begin later"
    seen, own = [], httptools_impl.RequestResponseCycle.send
    async def send(self, message):
        seen.append(message.get('body'))
        await own(self, message)
    manager = SSEBroadcastManager()
    async with serve(fast(manager)) as port:
        if not early:
            async with opened(port): await all_live(manager, 1)
            await all_live(manager, 0)
        monkeypatch.setattr(httptools_impl.RequestResponseCycle, 'send', send)
        async with opened(port) as client:
            await all_live(manager, 1)
            await manager.broadcast('said', CARD)
            await eventually(lambda: client.said, 'a message')
            assert any(CARD.encode() in o for o in seen if o)
            assert sum(n for k,n in manager.stats()['paths'].items() if k.startswith('layer '))==1
        await manager.close()

async def test_another_version_of_the_server(monkeypatch, caplog):
    "A class that does something else with a body is found at first use, and logged once"
    class RequestResponseCycle(httptools_impl.RequestResponseCycle): __module__ = httptools_impl.__name__
    async def send(self, message):
        if message.get('body')==b'a': message = {**message, 'body': b'A'}
        await own(self, message)
    own = httptools_impl.RequestResponseCycle.send
    send.__code__ = send.__code__.replace(co_qualname='RequestResponseCycle.send')
    RequestResponseCycle.send = type(send)(send.__code__, vars(httptools_impl), closure=send.__closure__)
    monkeypatch.setattr(httptools_impl, 'RequestResponseCycle', RequestResponseCycle)
    manager = SSEBroadcastManager()
    async with serve(fast(manager)) as port, opened(port), opened(port):
        await all_live(manager, 2)
        (path,n), = manager.stats()['paths'].items()
        assert n==2 and path.startswith('uvicorn ') and path.endswith(' is not known')
        assert len([o for o in caplog.records if 'otherwise than it is known' in o.message])==1
        await manager.close()

@pytest.mark.parametrize('name', ['hypercorn', 'granian'])
def test_other_servers(tmp_path, name):
    with running(SERVERS[name], tmp_path/'log') as server:
        stream = Stream(server)
        with stream:
            stream.begun()
            server.get('/say', text='hello')
            stream.says('hello')
            assert server.get('/stats').json()['paths']=={f'server {name}': 1}

@pytest.mark.parametrize('direct', [None, 1, 'yes'])
def test_a_wrong_argument(direct):
    with pytest.raises(ArgumentError, match='`direct` must be True or False'): SSEBroadcastManager(direct=direct)


# Both ways, the same

@pytest.fixture(scope='module')
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tls')
    key, cert = folder/'key.pem', folder/'cert.pem'
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2',
        '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost', '-keyout', key, '-out', cert], check=True, capture_output=True)
    return dict(ssl_keyfile=str(key), ssl_certfile=str(cert)), ssl.create_default_context(cafile=cert)


def under(loop, coro):
    "Run `coro` on a loop of this kind"
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop=='uvloop' else asyncio.SelectorEventLoop) as runner:
        return runner.run(asyncio.wait_for(coro, 3*BOUND))


class Both:
    "One app with two managers, and for each browser a stream of either: what is done to one is done to the other"
    def __init__(self, seed):
        self.random, self.n = random.Random(seed), 0
        self.managers = [SSEBroadcastManager(max_queue_size=8, default_timeout=.02, replay_size=5000, direct=o) for o in (True, False)]
        self.app = FastHTML(secret_key='x')
        for m in self.managers: setup_sse(self.app, m)
        @self.app.get('/events/{i}')
        def events(req, i: int): return self.managers[i].stream(req, until='end')
        self.browsers = {}  # Number -> its clients, one for each way
        self.heard = {}     # Number and way -> all events, of all its connections

    async def connect(self, number, port, tls):
        self.browsers[number] = [await self.client(number, i, port, tls) for i in (0, 1)]

    async def client(self, number, i, port, tls):
        events = self.heard.setdefault((number, i), [])
        client = Client(events[-1].id if events else '')
        client.events = events
        return await client.open(port, f'/events/{i}', tls=tls, receive_buffer=4096)

    async def broadcast(self, data):
        for m in self.managers: await m.broadcast('said', data)

    async def step(self, port, tls):
        r = self.random
        number = r.choice([*self.browsers])
        match r.choices(['say', 'burst', 'large', 'stall', 'wake', 'leave', 'turns'], [30, 5, 12, 8, 20, 6, 20])[0]:
            case 'say': await self.broadcast(self.next())
            case 'burst':
                for _ in range(r.randint(2, 20)): await self.broadcast(self.next())
            case 'large':
                for _ in range(r.randint(1, 6)): await self.broadcast(self.next()+'x'*r.randint(20_000, 200_000))
            case 'stall':
                for o in self.browsers[number]: o.reading.clear()
            case 'wake':
                for o in self.browsers[number]: o.reading.set()
            case 'leave':
                for o in self.browsers[number]: await o.close()
                await self.connect(number, port, tls)
            case 'turns': await asyncio.sleep(r.choice([0, .001, .02]))
        await self.reconnect(port, tls)

    async def reconnect(self, port, tls):
        "As browsers do: who was cut off comes back"
        for n,clients in self.browsers.items():
            for i,o in enumerate(clients):
                if o.ended:
                    await o.close()
                    clients[i] = await self.client(n, i, port, tls)

    async def settle(self, port, tls):
        "Until all follow"
        for clients in self.browsers.values():
            for o in clients: o.reading.set()
        async with asyncio.timeout(BOUND):
            while not all(sum(o['live'] for o in m.inspect()['connections'])==len(self.browsers)==m.connection_count for m in self.managers):
                await self.reconnect(port, tls)
                await asyncio.sleep(.002)

    def next(self):
        self.n += 1
        return f'{self.n} '

    async def run(self, config, tls, steps=150):
        async with serve(self.app, **config) as port:
            for number in range(5): await self.connect(number, port, tls)
            for m in self.managers: await all_live(m, 5)
            for _ in range(steps): await self.step(port, tls)
            await self.settle(port, tls)
            for _ in range(20): await self.broadcast(self.next()+'x'*10_000)
            if ended := self.random.random()<.5:
                for m in self.managers: await m.broadcast('end', 'bye')
            else:
                for m in self.managers: await m.close(5)
            await asyncio.gather(*(self.until_end(n, i, ended, port, tls) for n in self.browsers for i in (0, 1)))
            for clients in self.browsers.values():
                for o in clients: await o.close()
            self.check(ended)
            for m in self.managers: await m.close()

    async def until_end(self, n, i, ended, port, tls):
        "Read until the stream has ended; where it was cut off before, come back"
        while True:
            client = self.browsers[n][i]
            await asyncio.wait_for(client.task, BOUND)
            if not ended or client.events[-1].event=='sse:close': break
            await client.close()
            self.browsers[n][i] = await self.client(n, i, port, tls)

    def check(self, ended):
        direct, asgi = [m.stats() for m in self.managers]
        assert ({*direct['paths']}, {*asgi['paths']}, direct['errors'], asgi['errors'])==({'transport'}, {'off'}, 0, 0)
        for number in self.browsers:
            ways = [[(e.id.rpartition('-')[2], e.data) for e in self.heard[number, i] if e.event=='said'] for i in (0, 1)]
            for got in ways:
                ids = [int(i) for i,_ in got]
                assert ids==[*range(ids[0], ids[0]+len(ids))] if ids else not ended, 'none is lost, doubled or out of order'
            least = min(map(len, ways))
            assert ways[0][:least]==ways[1][:least] and least
            if ended: assert len(ways[0])==len(ways[1])==self.n


@pytest.mark.parametrize('loop', ['uvloop', 'asyncio'])
@pytest.mark.parametrize('tls, seed', [(False, 0), (True, 1)], ids=['plain', 'TLS'])
def test_random_runs_are_the_same(certificate, loop, tls, seed):
    "Stalls, deaths, evictions, ends, and a shutdown in the middle"
    config,context = certificate if tls else ({}, None)
    under(loop, Both(seed).run(config, context))

@pytest.mark.parametrize('loop', ['uvloop', 'asyncio'])
def test_another_request_on_the_connection(loop):
    "Nothing of a stream that has ended comes into the next response; one that is pipelined waits for its turn"
    async def run():
        manager = SSEBroadcastManager()
        app = FastHTML(secret_key='x')
        setup_sse(app, manager)
        @app.get('/events')
        def events(req): return manager.stream(req, until='end')
        @app.get('/page')
        def page(): return Response('a page')
        async with serve(app) as port, opened(port) as client:
            for pipelined in (False, True, False):
                await all_live(manager, 1)
                if pipelined: client.writer.write(b'GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n')
                for i in range(3): await manager.broadcast('said', i)
                for name in ('end', 'said', 'said'): await manager.broadcast(name, 'late')
                await asyncio.wait_for(client.task, BOUND)
                assert [e.data for e in client.said]==['0', '1', '2', '"late"'] and client.events[-1].event=='sse:close'
                client.http.start_next_cycle()
                if pipelined:
                    client.http.send(h11.Request(method='GET', target='/page', headers=[('Host', 'localhost')]))
                    client.http.send(h11.EndOfMessage())
                else: client.ask('/page')
                client.ended, client.parser.feed = False, lambda data: [data]
                client.events = []
                await asyncio.wait_for(client.read(), BOUND)
                assert client.events==[b'a page']
                client.http.start_next_cycle()
                client.parser, client.events, client.ended = Parser(), [], False
                client.ask('/events')
                client.task = asyncio.create_task(client.read())
            assert manager.stats()['paths']['transport']>=3 and not manager.stats()['errors']
            await manager.close()
    under(loop, run())
