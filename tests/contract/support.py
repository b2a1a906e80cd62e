"""What the contract suite needs: managers, clients of each kind, a real uvicorn, a real Redis, and waiting with a bound

Only public names of the package appear here, and what goes over the wire is written out: paths, headers, event names
and frames are promises.
"""
import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import time
from contextlib import asynccontextmanager, suppress
from inspect import isawaitable
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import redis
import uvicorn
from fasthtml.common import EventStream, FastHTML, P

from cjm_fasthtml_sse.backends.base import Record
from cjm_fasthtml_sse.core import BackendError
from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, setup_sse

# Seconds after which something is taken for lost; a busy machine needs far less
BOUND = float(os.environ.get('CONTRACT_BOUND', 30))

# What goes over the wire
HEARTBEAT, GAP, CLOSE = 'sse:heartbeat', 'sse:gap', 'sse:close'
MUX, MUX_HEADERS = '/_sse/mux', {'content-type': 'application/json', 'sse-mux': '2', 'sec-fetch-site': 'same-origin'}
ABOUT = 1 << 31  # Added to the number of a channel: the frame is a word about the channel, in JSON


# Waiting

async def eventually(condition, what='the condition', seconds=None):
    "Wait until `condition()` holds, or what it awaits; a test that waits in vain fails here"
    async def holds():
        found = condition()
        return await found if isawaitable(found) else found
    try:
        async with asyncio.timeout(seconds or BOUND):
            while not await holds(): await asyncio.sleep(.002)  # The one place that asks again and again
    except TimeoutError: raise AssertionError(f'in vain: {what() if callable(what) else what}') from None


def forked(f):
    "Call `f` in a process that is forked off from this one, and ends then; its process id"
    if pid := os.fork(): return pid
    signal.alarm(int(BOUND))  # It ends in any case
    try:
        f()
        os._exit(0)
    finally: os._exit(1)


@asynccontextmanager
async def within(what='it', seconds=None):
    "Fail where the block takes longer"
    try:
        async with asyncio.timeout(seconds or BOUND): yield
    except TimeoutError: raise AssertionError(f'in vain: {what}') from None


async def turns(n=20):
    "Let whatever is ready run"
    for _ in range(n): await asyncio.sleep(0)


@asynccontextmanager
async def no_task_left():
    "No task may outlive the block"
    def tasks(): return {t for t in asyncio.all_tasks() if not t.done()}
    before = tasks()
    yield
    await eventually(lambda: tasks() <= before, 'all tasks of the block end')


# Managers

async def all_live(manager, n):
    "Wait until `n` connections are open, and each of them follows"
    def live(): return [o for o in manager.inspect()['connections'] if o['live']]
    await eventually(lambda: len(live()) == n == manager.connection_count, f'{n} connections are live')


async def until_sent(manager, type, data):
    "Broadcast until it is not refused any more; gives what it gives"
    async with within('broadcasts go on by themselves'):
        while True:
            with suppress(BackendError): return await manager.broadcast(type, data)
            await asyncio.sleep(.02)  # Between two attempts, each of which says that it failed


class Hooks:
    "Counts how often which connection was opened and closed"
    def __init__(self, manager):
        self.opened, self.closed = [], []
        manager.on_connect(self.opened.append)
        manager.on_disconnect(self.closed.append)


class OwnBackend:
    "A backend that an app brings. It numbers and delivers here; `starts` and `reaches` hold it up until they are set"
    epoch = 'own'
    def __init__(self):
        self.n, self.starts, self.reaches, self.waiting = 0, asyncio.Event(), asyncio.Event(), 0
        self.origin = f'{self.epoch}-0'
        self.starts.set(), self.reaches.set()

    async def start(self, size, deliver, renew, describe):
        await self.passes(self.starts)
        self.deliver, self.renew, self.describe = deliver, renew, describe

    async def publish(self, fields, key=None, timeout=None):
        self.n += 1
        got = await self.deliver(Record(f'{self.epoch}-{self.n}', fields, key, timeout))
        return got if isinstance(got, int) else await got

    async def passes(self, event):
        self.waiting += 1
        await event.wait()
        self.waiting -= 1

    async def wait_for(self, last_event_id): await self.passes(self.reaches)
    async def poll_workers(self): return [self.describe()]
    async def stop(self): pass


class Site:
    "An app with one stream, at `/events`; `stream` are arguments of `manager.stream`"
    def __init__(self, manager, setup=None, **stream):
        self.manager, self.app = manager, FastHTML(secret_key='contract')
        setup_sse(self.app, manager, **(setup or {}))
        @self.app.get('/events')
        def events(req): return manager.stream(req, **stream)


def hello_app(*, client=False, cls=FastHTML, **kw):
    "An app with a page and a stream that is written by hand; `client`: with the extension and the client"
    res = cls(secret_key='contract', **kw)
    if client: insert_htmx_sse_ext(res.hdrs)
    @res.get('/')
    def index(): return P('hello')
    @res.get('/events')
    def events(): return EventStream(iter(['data: 1\n\n']))
    return res

def client_tag(html): return re.search('<script[^>]*data-sse-client[^>]*>', html)[0]
def client_src(html): return re.search('src="([^"]+)"', client_tag(html))[1]
def is_served(web):
    return 'sse-ticket' in web.get('/events').headers  # Its streams may travel on the browser's common connection


# The wire, as a browser reads it

class Event(SimpleNamespace):
    "One server-sent event: `event`, `data`, the `id` in force, and `retry` where it was told"


class Parser:
    "Reads an event stream"
    def __init__(self, last_id=''): self.last_id, self.rest = last_id, b''

    def feed(self, data):
        found, (*blocks, self.rest) = [], (self.rest+data).split(b'\n\n')
        for block in blocks:
            fields = [line.partition(':')[::2] for line in block.decode().split('\n')]
            def of(name): return [v.removeprefix(' ') for k, v in fields if k == name]
            if of('id'): self.last_id = of('id')[-1]
            if of('data'):
                found.append(Event(event=(of('event') or ['message'])[-1], data='\n'.join(of('data')), id=self.last_id,
                                              retry=int(of('retry')[-1]) if of('retry') else None))
        return found


# One request of an app, in process

class Exchange:
    "A request and its response, as a server handles them; `async with` waits for the response to begin"
    def __init__(self, app, method, url, headers=None, body=b''):
        parts = urlsplit(str(url))
        self.app, self.request = app, body
        self.status, self.headers, self.body, self.over, self.error = None, {}, b'', False, None
        self.heard = lambda data: None  # Called with each part of the body
        self.fails = None  # What the server's `send` raises from now on
        self.slow = 0      # Turns of the loop that each send takes
        self.sent_body, self.gone, self.reading = False, asyncio.Event(), asyncio.Event()
        self.reading.set()
        self.scope = dict(type='http', asgi=dict(version='3.0', spec_version='2.3'), http_version='1.1', method=method,
            scheme='http', path=unquote(parts.path), raw_path=parts.path.encode(), query_string=parts.query.encode(),
            root_path='',
            headers=[(k.lower().encode('latin-1'), v.encode('latin-1'))
                     for k, v in {'host': 'test', **(headers or {})}.items()],
            client=('127.0.0.1', 1), server=('test', 80), state={})

    async def run(self):
        try: await self.app(self.scope, self.receive, self.send)
        except Exception as e: self.error = e
        finally: self.over = True

    async def receive(self):
        if not self.sent_body:
            self.sent_body = True
            return dict(type='http.request', body=self.request, more_body=False)
        await self.gone.wait()
        return dict(type='http.disconnect')

    async def send(self, message):
        await self.reading.wait()
        await turns(self.slow)
        if self.fails is not None: raise self.fails
        if message['type'] == 'http.response.start':
            self.status, self.headers = message['status'], {}
            self.cookies = [v.decode('latin-1') for k, v in message['headers'] if k.lower() == b'set-cookie']
            for k, v in message['headers']: self.headers[k.decode('latin-1').lower()] = v.decode('latin-1')
            return
        self.body += message.get('body', b'')
        self.heard(message.get('body', b''))
        if not message.get('more_body'): self.gone.set()  # A complete response

    def begin(self):
        "Begin the request, without waiting for anything"
        self.task = asyncio.create_task(self.run())
        return self

    async def __aenter__(self):
        self.begin()
        await eventually(lambda: self.status is not None or self.over, 'the response begins')
        return self

    async def __aexit__(self, *exc): await self.leave()

    def stall(self): self.reading.clear()
    def resume(self): self.reading.set()

    def hang_up(self):
        "Close the connection, without waiting for anything"
        self.gone.set(), self.reading.set()

    async def leave(self):
        "Close the connection, and wait until the app has ended its side"
        self.hang_up()
        await asyncio.wait({self.task}, timeout=BOUND)
        if not self.over:
            self.task.cancel()
            await asyncio.wait({self.task}, timeout=BOUND)
            raise AssertionError('the app goes on, though its client has gone')
        if self.error is not None and self.error is not self.fails:
            raise AssertionError('the app failed') from self.error


class Browser:
    "A browser with one carrier for all its streams: it asks for tickets, orders channels, and reads frames"
    def __init__(self, app, cookie=''):
        self.app, self.cookie, self.tickets, self.channels, self.carrier, self.rest = app, cookie, {}, {}, None, b''

    def sends(self, headers=None): return {**({'cookie': self.cookie} if self.cookie else {}), **(headers or {})}

    async def ticket(self, path):
        "A ticket for `path`; empty where the app does not let in"
        path = path.partition('?')[0]
        if not self.tickets.get(path):
            async with Exchange(self.app, 'GET', path,
                    self.sends({'SSE-Ticket': '1', 'Accept': 'text/event-stream'})) as r:
                for c in r.cookies: self.cookie = '; '.join(filter(None, [self.cookie, c.partition(';')[0]]))
                self.tickets[path], self.refusal = r.headers.get('sse-ticket', ''), r
        return self.tickets[path]

    async def order(self, open=(), close=()):
        "Send one order; its response, which is the carrier if there was none"
        carriers = [self.carrier.headers['sse-carrier']] if self.carrier else []
        order = dict(carriers=carriers, open=[*open], close=[*close], become=True)
        sent = Exchange(self.app, 'POST', MUX, self.sends(MUX_HEADERS), json.dumps(order).encode())
        sent.heard = self.heard
        await sent.__aenter__()
        if sent.status == 200: self.carrier = sent
        else: await sent.leave()
        return sent

    def heard(self, data):
        self.rest += data
        while len(self.rest) >= 8 and len(self.rest) >= 8+(size := struct.unpack('>II', self.rest[:8])[1]):
            number, body, self.rest = struct.unpack('>I', self.rest[:4])[0], self.rest[8:8+size], self.rest[8+size:]
            if (channel := self.channels.get(number % ABOUT)) is not None: channel.frame(body, number >= ABOUT)

    async def open(self, channel, path, last_id='', after=''):
        "Open `channel`, which has `frame(body, about)`; its number"
        number = len(self.channels)+1
        self.channels[number] = channel
        await self.order(open=[[number, path, await self.ticket(path), last_id, after]])
        return number

    async def leave(self):
        if self.carrier is not None: await self.carrier.leave()
        self.carrier = None


# One client of each kind, all with one face

class Client:
    """Someone who listens: `events` are all that came, `read` gives the next messages as (type, data)

    `over` is true when the stream has ended, `told_to_stay` when it has ended on purpose: whoever is not told so comes
    back.
    """
    def __init__(self, last_id=''): self.events, self.at, self.parser, self.status = [], 0, Parser(last_id), None

    @property
    def last_id(self): return self.parser.last_id
    @property
    def told_to_stay(self): return any(e.event == CLOSE for e in self.events)
    @property
    def gaps(self): return sum(e.event == GAP for e in self.events)
    @property
    def messages(self): return [e for e in self.events if e.event not in (HEARTBEAT, CLOSE)]
    @property
    def seen(self): return [message(e) for e in self.messages]

    async def read(self, n=1):
        "The next `n` messages, as (type, data)"
        await eventually(lambda: len(self.messages) >= self.at+n or self.over,
            f'{n} messages, there are {self.seen[self.at:]}')
        found, self.at = self.seen[self.at:self.at+n], self.at+n
        assert len(found) == n, f'it ended after {found}'
        return found

    async def data(self, n):
        "The data of the next `n` messages"
        return [d for _, d in await self.read(n)]

    async def next(self):
        "The next message, as (type, data)"
        return (await self.read(1))[0]

    async def ends(self):
        await eventually(lambda: self.over, 'the stream ends')
        return self


def message(e):
    "(type, data) of what a client has seen; what `RENDER` has rendered says both"
    if e.event == GAP: return GAP, None
    try: data = json.loads(e.data)
    except ValueError: data = e.data
    return tuple(data) if e.event == 'message' and isinstance(data, list) and len(data) == 2 else (e.event, data)


def rendered(m): return json.dumps([m['type'], m.get('data')])
async def rendered_later(m):
    await asyncio.sleep(0)
    return rendered(m)

RENDER = dict(none=None, plain=rendered, **{'async': rendered_later})
SINKS = 'queue', 'stream', 'channel'


class _QueueClient(Client):
    "Reads a queue by hand, as an app's own generator does"
    def __init__(self, manager, events):
        super().__init__()
        self.manager, self.wanted, self.status, self.over, self.reading = manager, events, 200, False, asyncio.Event()
        self.reading.set()

    async def __aenter__(self):
        if self.wanted == '**': self.queue, self.block = await self.manager.register_connection(), None
        else:
            self.block = self.manager.subscribe(self.wanted)
            self.queue = await self.block.__aenter__()
        self.task = asyncio.create_task(self.read_queue())
        return self

    async def read_queue(self):
        try:
            while True:
                await self.reading.wait()
                m = await self.queue.get()
                await self.reading.wait()
                self.events.append(Event(event=m['type'], data=json.dumps(m.get('data')), id='', retry=None))
        except asyncio.CancelledError: raise
        except Exception: self.over = True  # It was ended, and all was handed out

    async def __aexit__(self, *exc): await self.leave()

    async def leave(self):
        self.task.cancel()
        if self.block is None: await self.manager.unregister_connection(self.queue)
        else: await self.block.__aexit__(None, None, None)
        self.over = True

    def stall(self): self.reading.clear()
    def resume(self): self.reading.set()


class _StreamClient(Client):
    "One stream on a connection of its own"
    def __init__(self, app, path, last_id, headers=None):
        super().__init__(last_id)
        seen = {'Last-Event-ID': last_id} if last_id else {}
        self.exchange = Exchange(app, 'GET', path, {**seen, **(headers or {})})
        self.exchange.heard = lambda data: self.events.extend(self.parser.feed(data))
        self.stall, self.resume, self.hang_up = self.exchange.stall, self.exchange.resume, self.exchange.hang_up

    async def __aenter__(self):
        await self.exchange.__aenter__()
        self.status = self.exchange.status
        return self

    async def __aexit__(self, *exc): await self.leave()
    async def leave(self): await self.exchange.leave()

    @property
    def over(self): return self.exchange.over


class _ChannelClient(Client):
    "One channel; it has a browser of its own, unless it is given one"
    def __init__(self, app, path, last_id, browser=None, after=''):
        super().__init__(last_id)
        self.path, self.after, self.words, self.ended = path, after, [], False
        self.own, self.browser = browser is None, browser or Browser(app)

    def frame(self, body, about):
        if not about: return self.events.extend(self.parser.feed(body))
        word = json.loads(body)
        self.words.append(word)
        if 'status' in word: self.status = word['status']
        if word.get('end') or word.get('direct') or word.get('ticket') or word.get('status', 200) != 200:
            self.ended = True

    async def __aenter__(self):
        self.number = await self.browser.open(self, self.path, self.last_id, self.after)
        if not self.browser.tickets[self.path.partition('?')[0]]:
            self.status, self.ended = self.browser.refusal.status, True
        await eventually(lambda: self.status is not None or self.over, 'the channel is answered')
        return self

    async def __aexit__(self, *exc): await self.leave()

    async def leave(self):
        "Close the channel; the carrier too, if it is its own"
        if self.own: return await self.browser.leave()
        await self.browser.order(close=[self.number])

    def hang_up(self): self.browser.carrier.hang_up()
    def stall(self): self.browser.carrier.stall()
    def resume(self): self.browser.carrier.resume()

    @property
    def over(self): return self.ended or self.browser.carrier is None or self.browser.carrier.over


def client(sink, manager, events='**', last_id='', browser=None, **stream):
    "Someone who listens, for `async with`; `stream` are arguments of `manager.stream`"
    if sink == 'queue': return _QueueClient(manager, events)
    site = Site(manager, events=events, **stream)
    if sink == 'stream': return _StreamClient(site.app, '/events', last_id)
    return _ChannelClient(site.app, '/events', last_id, browser)


def listening(app, path='/events', sink='stream', last_id='', browser=None, **headers):
    "Someone who listens to `path` of an app, at a stream or a channel. For `async with`"
    if sink == 'stream': return _StreamClient(app, path, last_id, headers)
    return _ChannelClient(app, path, last_id, browser, headers.get('SSE-After', ''))


@asynccontextmanager
async def following(sink, manager, *args, **kw):
    "A `client` that is live"
    others = manager.connection_count
    async with client(sink, manager, *args, **kw) as c:
        await all_live(manager, others+1)
        yield c


# Servers

def free_port():
    "A port below those that the system gives to clients: one of these might have it before the server does"
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as s, suppress(OSError):
            s.bind(('127.0.0.1', port))
            return port


@asynccontextmanager
async def serve(app, lifespan='off', **kw):
    "A real uvicorn on this very loop; gives its port"
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level='error', lifespan=lifespan,
        timeout_graceful_shutdown=2, **kw))
    task = asyncio.create_task(server.serve())
    try:
        await eventually(lambda: server.started or task.done(), 'uvicorn starts')
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await asyncio.wait({task}, timeout=BOUND)
        assert task.done(), 'uvicorn did not stop'


class SocketClient(Client):
    "One stream over a real socket; `async with`"
    def __init__(self, port, path='/events', last_id='', receive_buffer=None, **headers):
        super().__init__(last_id)
        self.port, self.path, self.buffer, self.over, self.head = port, path, receive_buffer, False, b''
        self.headers = {'Host': f'127.0.0.1:{port}', **({'Last-Event-ID': last_id} if last_id else {}), **headers}

    async def __aenter__(self):
        sock = socket.socket()
        if self.buffer: sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ('127.0.0.1', self.port))
        self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=self.buffer or 2**16)
        lines = ''.join(f'{k}: {v}\r\n' for k, v in self.headers.items())
        self.writer.write(f'GET {self.path} HTTP/1.1\r\n{lines}\r\n'.encode())
        self.task = asyncio.create_task(self.read_socket())
        await eventually(lambda: self.status is not None or self.over, 'the server answers')
        return self

    async def read_socket(self):
        try:
            self.head = await self.reader.readuntil(b'\r\n\r\n')
            self.status = int(self.head.split()[1])
            while size := int(await self.reader.readline(), 16):
                self.events.extend(self.parser.feed((await self.reader.readexactly(size+2))[:-2]))
        except (OSError, ValueError, asyncio.IncompleteReadError): pass
        self.over = True

    def stall(self): self.writer.transport.pause_reading()
    def resume(self): self.writer.transport.resume_reading()

    async def __aexit__(self, *exc): await self.leave()
    async def leave(self, rudely=False):
        self.task.cancel()
        self.writer.transport.abort() if rudely else self.writer.close()


class Redis:
    "A Redis of our own; `args` decide what it keeps over a restart"
    binary = shutil.which('redis-server') or shutil.which('valkey-server')
    durable = '--appendonly', 'yes', '--appendfsync', 'always'  # What it has acknowledged outlives a kill

    def __init__(self, folder, *args):
        self.folder, self.args, self.port, self.process = folder, args or ('--appendonly', 'no'), free_port(), None
        password = args[args.index('--requirepass')+1] if '--requirepass' in args else None
        self.client = redis.Redis(port=self.port, password=password, socket_timeout=BOUND)

    def start(self):
        cmd = [self.binary, '--port', self.port, '--bind', '127.0.0.1', '--save', '', '--databases', 2000, '--dir',
            self.folder, *self.args]
        with open(self.folder/'redis.log', 'ab') as f:
            self.process = subprocess.Popen([*map(str, cmd)], stdout=f, stderr=f, start_new_session=True)
        end = time.monotonic()+BOUND
        while True:
            with suppress(redis.RedisError):
                if self.client.ping(): return self
            assert time.monotonic() < end and self.process.poll() is None, (self.folder/'redis.log').read_text()
            time.sleep(.01)  # Redis does not say that it has started but by its answer

    def url(self, database=0, host='127.0.0.1'): return f'redis://{host}:{self.port}/{database}'

    def kill(self, sig=signal.SIGKILL):
        if self.process is None: return
        self.process.send_signal(sig)
        self.process.wait(BOUND)
        self.client.close()
        self.process = None
