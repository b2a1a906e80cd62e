"""Server processes, and clients that read event streams from bare sockets

Each server is a process of its own, on a port that the system gave. What it started ends with it, by its process id.
"""
import asyncio
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests.contract.support import BOUND, Parser, free_port

APPS, OTHER_APPS = (Path(__file__).parents[i]/'apps' for i in (0, 1))  # Those of the contract, and of all other tests


CROWD = int(os.environ.get('CROWD', 1500))  # Clients that come where thousands do
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # Without one, httpx reads all certificates for each client


def uvicorn(app, *args):
    "The command that serves `app`, such as `main:app` out of the folder apps"
    return [sys.executable, '-m', 'uvicorn', app, '--host', '127.0.0.1', '--port', '{port}', *args]


RUN = 'import uvicorn, main; uvicorn.run(main.app, host="127.0.0.1", port={port}, log_level="info")'
SERVERS = {
    'uvicorn': uvicorn('main:app'),
    'uvicorn, h11': uvicorn('main:app', '--http', 'h11', '--loop', 'asyncio'),
    'uvicorn.run': [sys.executable, '-c', RUN],
    'uvicorn --reload': uvicorn('main:app', '--reload'),
    'uvicorn --workers 2': uvicorn('main:app', '--workers', '2'),
    'serve()': [sys.executable, 'main.py'],
    'hypercorn': [sys.executable, '-m', 'hypercorn', 'main:app', '--bind', '127.0.0.1:{port}', '--backlog', '2048'],
    'granian': [sys.executable, '-m', 'granian', 'main:app', '--interface', 'asgi', '--host', '127.0.0.1', '--port',
                '{port}'],
}


def accepts(port):
    try: socket.create_connection(('127.0.0.1', port), 1).close()
    except OSError: return False
    return True


def wait_until(condition, what, secs=BOUND):
    "Wait until `condition()` is true"
    until = time.monotonic()+secs
    while not condition():
        assert time.monotonic()<until, f'in vain: {what() if callable(what) else what}'
        time.sleep(.02)  # The one place that asks again and again, where there is no event loop


class Server:
    "A server process and what it wrote"
    def __init__(self, cmd, log, port=None, env=None, cwd=APPS):
        self.port,self.log = port or free_port(),Path(log)
        self.url = f'http://127.0.0.1:{self.port}'
        # uvicorn kills a worker that has not answered for five seconds, which on a busy machine is nobody's fault
        env = {**os.environ, 'PYTHONUNBUFFERED': '1', 'PORT': str(self.port), 'HOME': str(self.log.parent),
               'UVICORN_TIMEOUT_WORKER_HEALTHCHECK': '15',
               'PYTHONPATH': os.pathsep.join(filter(None, [os.environ.get('PYTHONPATH'), str(OTHER_APPS)])), **(env or {})}
        with open(log, 'ab') as f:
            self.process = subprocess.Popen([str(c).replace('{port}', str(self.port)) for c in cmd], cwd=cwd, env=env,
                                            stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT,
                                            start_new_session=True)

    @property
    def output(self): return self.log.read_text(errors='replace')

    def wait_until_up(self):
        "Wait until it takes connections"
        def up():
            if self.process.poll() is None: return accepts(self.port)
            raise AssertionError(f'The server ended with {self.process.returncode}:\n{self.output}')
        wait_until(up, lambda: f'the server answers:\n{self.output}')
        return self

    def get(self, path, **params): return httpx.get(f'{self.url}{path}', params=params, timeout=BOUND, verify=NO_TLS)
    def post(self, path, **data): return httpx.post(f'{self.url}{path}', data=data, timeout=BOUND, verify=NO_TLS)

    def signal(self, sig=signal.SIGTERM): self.process.send_signal(sig)

    def children(self):
        "The process ids of its workers, oldest first"
        def command(pid):
            try: return Path(f'/proc/{pid}/cmdline').read_bytes()
            except OSError: return b''  # It has ended meanwhile
        found = Path(f'/proc/{self.process.pid}/task/{self.process.pid}/children').read_text().split()
        return [int(o) for o in found if b'spawn_main' in command(o)]

    def interrupt(self):
        "Ctrl-C in a terminal: it reaches this process and all that it started"
        os.killpg(self.process.pid, signal.SIGINT)

    def ends(self, secs=BOUND):
        "Wait until the process is over"
        try: return self.process.wait(secs)
        except subprocess.TimeoutExpired: raise AssertionError(f'The server goes on:\n{self.output}') from None

    def kill(self):
        "End it, and whatever it started and left behind"
        with suppress(ProcessLookupError): os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(BOUND)
        wait_until(lambda: not accepts(self.port), 'the port is free')  # A worker that dies still holds it

    def is_calm(self):
        "Check that nothing went wrong"
        for bad in ('Traceback', 'ERROR', 'CRITICAL', 'Exception', 'Cancel'): assert bad not in self.output, self.output


@contextmanager
def running(cmd, log, **kw):
    "A server that runs inside the `with` block; `{port}` in the command stands for its port"
    server = Server(cmd, log, **kw)
    try: yield server.wait_until_up()
    finally: server.kill()


class Stream:
    "A client that reads an event stream from a socket, and may stop reading"
    def __init__(self, server, path='/events', last_event_id='', headers=(), rcvbuf=None):
        self.sock = socket.socket()
        if rcvbuf: self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.sock.settimeout(BOUND)
        self.sock.connect(('127.0.0.1', server.port))
        if last_event_id: headers = [*headers, f'Last-Event-ID: {last_event_id}']
        self.sock.sendall('\r\n'.join([f'GET {path} HTTP/1.1', 'Host: 127.0.0.1', *headers, '', '']).encode())
        self.head,self.body,self.events,self.ended = b'',b'',[],False
        self.raw,self.parser = b'',Parser(last_event_id)

    def __enter__(self): return self
    def __exit__(self, *exc): self.sock.close()

    @property
    def status(self): return int(self.head.split()[1])

    def read(self):
        "Read what comes next"
        try: data = self.sock.recv(65536)
        except TimeoutError: raise AssertionError(f'nothing came in {BOUND} s after {self.events[-3:]}') from None
        self.raw += data
        if not self.head and b'\r\n\r\n' in self.raw:
            self.head,_,self.raw = self.raw.partition(b'\r\n\r\n')
        if self.head: self.take()
        self.ended = self.ended or not data

    def take(self):
        if b'chunked' not in self.head.lower(): new,self.raw = self.raw,b''
        else: new = b''.join(self.chunks())
        self.body += new
        self.events += self.parser.feed(new)

    def chunks(self):
        while m := re.match(rb'([0-9a-fA-F]+)\r\n', self.raw):
            size,at = int(m[1], 16),m.end()
            if len(self.raw)<at+size+2: return
            yield self.raw[at:at+size]
            self.raw = self.raw[at+size+2:]
            if not size: self.ended = True

    def until(self, wanted, secs=BOUND):
        "Read until `wanted(events)` is true"
        end = time.monotonic()+secs
        while not wanted(self.events):
            assert time.monotonic()<end and not self.ended, f'not seen: {self.events[-5:]}'
            self.read()
        return self.events

    def begun(self): return self.until(lambda events: events)
    def says(self, text): return self.until(lambda events: any(text in e.data for e in events))

    def until_end(self, secs=BOUND):
        "Read until the stream is over"
        end = time.monotonic()+secs
        while not self.ended:
            assert time.monotonic()<end, 'the stream did not end'
            self.read()

    @property
    def said(self): return [e for e in self.events if e.event=='said']

    @property
    def farewell(self):
        "When to come back, in milliseconds: what the stream said last, if it said so"
        return self.events[-1].retry if self.events and self.events[-1].event=='sse:heartbeat' else None


@contextmanager
def streams(server, n, path='/events'):
    "Streams on `n` connections"
    with many_files():
        all = []
        try:
            for _ in range(n): all.append(Stream(server, path))
            if path=='/events':
                for o in all: o.begun()
            yield all
        finally:
            for o in all: o.sock.close()


@contextmanager
def many_files(n=12_000):
    "Room for thousands of sockets, in this process and in those it starts"
    soft,hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(n, hard)), hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Remote:
    "A server as an app, for the clients of `support`: each request goes there on a connection of its own"
    def __init__(self, server, rcvbuf=None):
        self.url = server.url
        self.options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)] if rcvbuf else []

    async def __call__(self, scope, receive, send):
        forward = asyncio.create_task(self.forward(scope, (await receive())['body'], send))
        gone = asyncio.create_task(receive())
        await asyncio.wait({forward, gone}, return_when=asyncio.FIRST_COMPLETED)
        for o in (forward, gone): o.cancel()
        await asyncio.gather(forward, gone, return_exceptions=True)

    async def forward(self, scope, body, send):
        url = self.url+scope['raw_path'].decode()+'?'+scope['query_string'].decode()
        headers = [(k, v) for k,v in scope['headers'] if k!=b'host']
        transport = httpx.AsyncHTTPTransport(verify=NO_TLS, socket_options=self.options)
        with suppress(httpx.HTTPError):  # A server that is killed
            async with httpx.AsyncClient(transport=transport, timeout=BOUND) as client, \
                    client.stream(scope['method'], url, headers=headers, content=body) as response:
                await send(dict(type='http.response.start', status=response.status_code, headers=response.headers.raw))
                async for data in response.aiter_raw():
                    await send(dict(type='http.response.body', body=data, more_body=True))
            await send(dict(type='http.response.body', body=b''))
