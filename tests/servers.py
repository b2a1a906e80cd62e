"Real servers for the tests: each is a process of its own, on a port that the system gave, ended by its process id"
import os
import resource
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from cjm_fasthtml_sse.engine.wire import Parser
from tests.contract.servers import uvicorn  # noqa: F401
from tests.contract.support import free_port

APPS = Path(__file__).parent/'apps'


def accepts(port):
    try: socket.create_connection(('127.0.0.1', port), 1).close()
    except OSError: return False
    return True


class Server:
    "A server process and what it wrote"
    def __init__(self, cmd, port, log, env=None, cwd=APPS):
        self.port,self.url,self.log = port,f'http://127.0.0.1:{port}',Path(log)
        with open(log, 'ab') as f:
            self.process = subprocess.Popen([str(c) for c in cmd], cwd=cwd, stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT,
                                            env={**os.environ, 'PYTHONUNBUFFERED': '1', **(env or {})}, start_new_session=True)

    @property
    def output(self): return self.log.read_text(errors='replace')

    def wait_until_up(self, secs=20):
        until = time.monotonic()+secs
        while not accepts(self.port):
            if self.process.poll() is not None: raise RuntimeError(f'The server ended with {self.process.returncode}:\n{self.output}')
            if time.monotonic()>until: raise TimeoutError(f'The server did not answer in {secs} s:\n{self.output}')
            time.sleep(.02)
        return self

    def signal(self, sig=signal.SIGTERM): self.process.send_signal(sig)

    def interrupt(self):
        "Ctrl-C in a terminal: it reaches this process and all that it started"
        os.killpg(self.process.pid, signal.SIGINT)

    def ends(self, secs=10):
        "The exit code and the seconds it took to end"
        start = time.monotonic()
        return self.process.wait(secs),time.monotonic()-start

    def stop(self):
        "End it, and whatever it started and left behind"
        with suppress(ProcessLookupError): os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        until = time.monotonic()+10
        while accepts(self.port) and time.monotonic()<until: time.sleep(.01)  # A worker that dies still holds the port


@contextmanager
def running(cmd, log, port=None, **kw):
    "A server that runs inside the `with` block; `{port}` in the command stands for its port"
    port = port or free_port()
    server = Server([str(c).replace('{port}', str(port)) for c in cmd], port, log, **kw)
    try: yield server.wait_until_up()
    finally: server.stop()


def held(server):
    "What a server of the app `many` holds: connections, tasks, files, objects of ours, blocks of memory"
    return httpx.get(f'{server.url}/held', timeout=20).json()

def resident(server):
    "MB of memory that a server takes"
    return int(Path(f'/proc/{server.process.pid}/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20

EMPTY = dict(connections=0, requests=0, objects=0)

def at_rest(server, most=EMPTY, secs=15):
    "What a server of the app `many` holds, once all clients have left and it holds `most` at most"
    until = time.monotonic()+secs
    while True:
        state = held(server)
        if not (more := {k: v for k,v in state.items() if v>most.get(k, v)}): return state
        assert time.monotonic()<until, f'left behind: {more} where {most} is right'
        time.sleep(.05)


class Stream:
    "A client that reads an event stream from a socket, and may stop reading"
    def __init__(self, server, path, last_event_id=None, small=False):
        self.sock = socket.socket()
        if small: self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.settimeout(10)
        self.sock.connect(('127.0.0.1', server.port))
        last = f'Last-Event-ID: {last_event_id}\r\n' if last_event_id else ''
        self.sock.sendall(f'GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{last}\r\n'.encode())
        self.parser,self.events,self.body,self.ended = Parser(),[],b'',False

    def __enter__(self): return self
    def __exit__(self, *exc): self.sock.close()

    def read(self):
        "The next bytes of the body; chunk sizes stand between events and are harmless to the parser, as they hold no colon"
        data = self.sock.recv(65536)
        self.ended = self.ended or not data
        self.body += data
        if b'\r\n0\r\n\r\n' in self.body: self.ended = True
        self.events += self.parser.feed(data)

    def until(self, wanted, secs=10):
        "Read until `wanted(events)` is true"
        end = time.monotonic()+secs
        while not wanted(self.events):
            assert time.monotonic()<end and not self.ended, f'not seen: {self.events[-5:]}'
            self.read()
        return self.events

    def until_end(self, secs=10):
        end = time.monotonic()+secs
        while not self.ended:
            assert time.monotonic()<end, 'the stream did not end'
            self.read()


@contextmanager
def many_files(n=12_000):
    "Room for thousands of sockets, in this process and in those it starts"
    soft,hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(n, hard)), hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
