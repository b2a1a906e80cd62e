"""What a channel costs beside a connection of its own: server CPU per delivery, time to the first event, memory

    python bench/multiplex.py [--streams 1000] [--each 20] [--rounds 5] [--messages 30]

Plain streams and channels take turns, each on a server process of its own, with `--each` channels on a carrier. Of the rounds the median counts. What to trust are the ratios.
The server is FastHTML on uvicorn, its CPU the clock of its process: user and system.
"""
import argparse
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
    from starlette.responses import StreamingResponse
    from cjm_fasthtml_sse.core import SSEBroadcastManager
    from cjm_fasthtml_sse.helpers import setup_sse

    manager,app = SSEBroadcastManager(heartbeat=0),FastHTML(secret_key='bench', default_hdrs=False)
    setup_sse(app, manager)
    def render(m): return m['data']

    @app.get('/events')
    def events(req, group: int): return manager.stream(req, render=render, events=['all', f'group:{group}'])

    @app.get('/by_hand')
    def by_hand():
        async def frames():
            yield 'data: hello\n\n'
            await asyncio.Event().wait()
        return StreamingResponse(frames(), media_type='text/event-stream')

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
        self.process = subprocess.Popen([sys.executable, __file__, '--serve', str(self.port)], stdin=subprocess.DEVNULL)
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


def opened(it, kind, path, n, each):
    "Sockets with `n` streams open on them, all of which have said something"
    paths = [path.format(i%5) for i in range(n)]
    if kind=='plain': each = 1
    socks = []
    for at in range(0, n, each):  # One after another: the requests of a thousand channels at once would leave a process that is as large as they were
        those = paths[at:at+each]
        socks.append(it.stream(those[0]) if kind=='plain' else it.order([[i+1, p] for i,p in enumerate(those)]))
        Reader(socks[-1:], b'retry:' if 'events' in path else b'hello').until(len(those))
    return socks


def deliveries(kind, type, n, each, messages):
    "Server CPU for one delivery, in µs"
    with server() as it:
        reader = Reader(opened(it, kind, '/events?group={}', n, each), MARK)
        got = n if type=='all' else n//5
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


def memory(kind, path, n, each):
    "KB for a stream"
    with server() as it:
        opened(it, kind, path, 2*each, each)  # What is imported and made once
        before = it.memory()
        keep = opened(it, kind, path, n, each)
        kb = (it.memory()-before)/n
        for s in keep: s.close()
        return kb


def first_event(rounds=150):
    "Milliseconds to the first event: a connection of its own, a channel on a carrier"
    own,channel = [],[]
    with server() as it:
        carrier = it.order([[1, '/events?group=0']])
        data = b''
        while b'retry:' not in data: data += carrier.recv(65536)
        id = data.partition(b'sse-carrier: ')[2].partition(b'\r\n')[0].decode()
        talk = it.dial()
        for n in range(2, rounds+2):
            start = time.perf_counter()
            with it.stream('/events?group=0') as s:
                data = b''
                while b'retry:' not in data: data += s.recv(65536)
                own.append(time.perf_counter()-start)
            start,wanted,data = time.perf_counter(),struct.pack('>I', n),b''
            it.order([[n, '/events?group=0']], [id], talk)
            while wanted not in data or b'retry:' not in data.rpartition(wanted)[2]: data += carrier.recv(65536)
            channel.append(time.perf_counter()-start)
            talk.recv(65536)
    return statistics.median(own)*1e3,statistics.median(channel)*1e3


def main(n, each, rounds, messages):
    print(f'{n} streams, {each} to a carrier, Python {sys.version.split()[0]}')
    print(f'{"":44}{"plain":>9}{"channels":>9}{"ratio":>8}')
    def line(what, own, channel): print(f'{what:44}{own:9.2f}{channel:9.2f}{channel/own:8.2f}', flush=True)
    for what,type in (('one in five speaks, µs of CPU a delivery', 'group:3'), ('all speak, µs of CPU a delivery', 'all')):
        got = dict(plain=[], channels=[])
        for _ in range(rounds):
            for kind in got: got[kind].append(deliveries(kind, type, n, each, messages))
        line(what, *(statistics.median(o) for o in got.values()))
    line('first event, ms', *first_event())
    for what,path in (('memory of manager.stream, KB', '/events?group={}'), ('memory of a generator, KB', '/by_hand')):
        line(what, *(statistics.median([memory(kind, path, n, each) for _ in range(min(rounds, 3))]) for kind in ('plain', 'channels')))


if __name__=='__main__':
    parser = argparse.ArgumentParser(description='What a channel costs beside a connection of its own')
    for name,value in dict(streams=1000, each=20, rounds=5, messages=30, serve=0).items(): parser.add_argument(f'--{name}', type=int, default=value)
    args = parser.parse_args()
    if args.serve: serve(args.serve)
    else: main(args.streams, args.each, args.rounds, args.messages)
