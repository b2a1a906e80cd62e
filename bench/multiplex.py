"""What a stream costs on a connection of its own or as a channel of a carrier, as JSON: µs of the server for a delivery, ms to the first event, KB

    python bench/multiplex.py 20     twenty channels to a carrier; 0: connections of their own

The server is FastHTML on uvicorn.
"""
import json
import os
import selectors
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from cjm_fasthtml_sse.visitor import COOKIE, Visit, Visitors

KNOWN = f'{COOKIE}={"b"*24}'.encode()  # A browser that has been here before
MARK = b'~~'   # Stands in each message once, and nowhere else


def serve(port):
    import asyncio
    import gc
    import uvicorn
    from fasthtml.common import FastHTML, JSONResponse
    from cjm_fasthtml_sse.core import SSEBroadcastManager
    from cjm_fasthtml_sse.helpers import setup_sse

    manager,app = SSEBroadcastManager(heartbeat=0),FastHTML(secret_key='bench', default_hdrs=False)
    setup_sse(app, manager)
    def render(m): return m['data']

    @app.get('/events')
    def events(req, group: int): return manager.stream(req, render=render, events=['all', f'group:{group}'])

    @app.get('/say')
    async def say(type: str, text: str): return str(await manager.broadcast(type, text))

    @app.get('/memory')
    async def memory():
        for _ in range(3): gc.collect()
        await asyncio.sleep(.2)
        return JSONResponse(dict(kb=int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/1024, connections=manager.connection_count))

    uvicorn.run(app, host='127.0.0.1', port=port, log_level='warning', backlog=4096)


class Server:
    def __init__(self):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.port = s.getsockname()[1]
        self.process = subprocess.Popen([sys.executable, __file__, 'serve', str(self.port)], stdin=subprocess.DEVNULL)
        self.clock = (~self.process.pid << 3) | 2  # As clock_getcpuclockid(3) makes it
        while True:
            try: return socket.create_connection(('127.0.0.1', self.port), 1).close()
            except OSError: time.sleep(.05)

    def cpu(self): return time.clock_gettime(self.clock)

    def get(self, path):
        with self.dial() as s:
            s.sendall(f'GET {path} HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n'.encode())
            data = b''
            while more := s.recv(65536): data += more
        return data.partition(b'\r\n\r\n')[2]

    def memory(self): return json.loads(self.get('/memory'))['kb']

    def dial(self):
        s = socket.create_connection(('127.0.0.1', self.port), 10)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return s

    def stream(self, path):
        s = self.dial()
        s.sendall(f'GET {path} HTTP/1.1\r\nHost: b\r\nAccept: text/event-stream\r\n\r\n'.encode())
        return s

    @cache
    def ticket(self, path):
        visitors = Visitors('bench')
        return visitors.tickets.issue(visitors.identify(Visit(dict(type='http', path=path, headers=[(b'cookie', KNOWN)]))).id, path)

    def order(self, opened, carriers=(), sock=None):
        s = sock or self.dial()
        entries = [[n, p, self.ticket(p.partition('?')[0]), '', ''] for n,p in opened]
        body = json.dumps(dict(carriers=[*carriers], open=entries, close=[], become=True)).encode()
        s.sendall(b'POST /_sse/mux HTTP/1.1\r\nHost: b\r\nSec-Fetch-Site: same-origin\r\nSSE-Mux: 2\r\nCookie: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n'
            % (KNOWN, len(body))+body)
        return s


@contextmanager
def server():
    it = Server()
    try: yield it
    finally:
        it.process.send_signal(signal.SIGKILL)
        it.process.wait()


class Reader:
    "Reads all sockets, and counts what stands in them"
    def __init__(self, socks, mark):
        self.poll,self.mark,self.count = selectors.DefaultSelector(),mark,0
        self.rest = dict.fromkeys(socks, b'')
        for s in socks:
            s.setblocking(False)
            self.poll.register(s, selectors.EVENT_READ)

    def until(self, n, secs=60):
        end,keep = time.monotonic()+secs,len(self.mark)-1
        while self.count<n:
            if time.monotonic()>end: raise TimeoutError(f'{self.count} of {n}')
            for key,_ in self.poll.select(1):
                data = self.rest[key.fileobj]+key.fileobj.recv(1<<20)
                self.count += data.count(self.mark)
                self.rest[key.fileobj] = data[-keep:] if data[-keep:]!=self.mark else b''


def opened(it, each, n, at_once=1):
    "Sockets with `n` streams open on them, all of which have begun: `each` to a carrier, 0 for none; `at_once` sockets are opened at a time"
    paths,socks = [f'/events?group={i%5}' for i in range(n)],[]
    for at in range(0, n, each or 1):
        those = paths[at:at+(each or 1)]
        socks.append(it.order([[i+1, p] for i,p in enumerate(those)]) if each else it.stream(those[0]))
        if len(socks)%at_once==0: Reader(socks[-at_once:], b'retry:').until(at_once*len(those))
    return socks


def deliveries(it, reader, got, type='all', messages=20):
    "Microseconds of the server for each of the `got` deliveries of a message"
    text = 'x'*198+MARK.decode()
    talk = it.dial()
    def say():
        before = reader.count
        talk.sendall(f'GET /say?type={type}&text={text} HTTP/1.1\r\nHost: b\r\n\r\n'.encode())
        reader.until(before+got)
        talk.recv(65536)
    for _ in range(5): say()
    start = it.cpu()
    for _ in range(messages): say()
    return (it.cpu()-start)/messages/got*1e6


def first_event(it, each, times=150):
    "Milliseconds to the first event of one more stream"
    def read(sock, done):
        data = b''
        while not done(data): data += sock.recv(65536)
        return data
    carrier,took = it.order([[1, '/events?group=0']]),[]
    id = read(carrier, lambda data: b'retry:' in data).partition(b'sse-carrier: ')[2].partition(b'\r\n')[0].decode()
    talk = it.dial()
    for n in range(2, times+2):
        start,wanted = time.perf_counter(),struct.pack('>I', n)
        if each:
            it.order([[n, '/events?group=0']], [id], talk)
            read(carrier, lambda data: wanted in data and b'retry:' in data.rpartition(wanted)[2])
        else:
            with it.stream('/events?group=0') as s: read(s, lambda data: b'retry:' in data)
        took.append(time.perf_counter()-start)
        if each: talk.recv(65536)
    carrier.close()
    return statistics.median(took)*1e3


def main(each):
    with server() as it:
        found = dict(first_ms=first_event(it, each))
        before = it.memory()
        socks = opened(it, each, 1000)  # One after another: the requests of a thousand channels at once would leave a process that is as large as they were
        found |= dict(kb=(it.memory()-before)/1000)
        reader = Reader(socks, MARK)
        found |= dict(us_1000=deliveries(it, reader, 1000), us_fifth=deliveries(it, reader, 200, 'group:3'))
        reader = Reader(socks+opened(it, each, 4000, 50), MARK)
        found |= dict(us_5000=deliveries(it, reader, 5000, messages=6))
    print(json.dumps(found))


if __name__=='__main__':
    if sys.argv[1]=='serve': serve(int(sys.argv[2]))
    else: main(int(sys.argv[1]))
