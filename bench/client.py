"""The clients of a benchmark, in a process of their own: reads a plan from stdin, writes what it measured to stdout, both as JSON

A plan names the server (`port`, `pids`) and `steps`, each a method of `Clients` with its arguments. A message is text of which the last character is `@`,
which nothing else that a server sends contains: so a message counts once it is there to its end, however the bytes were split.

What counts is the processor time of the server (user and system, all its processes), because server and clients share the machine.
"""
import gc
import json
import os
import random
import re
import resource
import select
import socket
import struct
import sys
import time
from errno import EINPROGRESS
from html import unescape
from string import ascii_lowercase

MARK = b'@'
IN_FLIGHT = 200  # Connections that are being opened at a time
PERCENT = [1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.9, 100]


def cpu(pids):
    "Seconds of processor time that these processes have used; the clock of another process has a number, see clock_getcpuclockid(3)"
    return sum(time.clock_gettime(~pid<<3 | 2) for pid in pids)


def memory(pids):
    "Kilobytes that these processes have in memory"
    def rss(pid):
        with open(f'/proc/{pid}/statm') as f: return int(f.read().split()[1])*resource.getpagesize()//1024
    return sum(map(rss, pids))


def spread(seconds):
    "Milliseconds after which so many percent of them were over"
    seconds = sorted(seconds)
    return [round(seconds[min(len(seconds)-1, int(len(seconds)*p/100))]*1000, 3) for p in PERCENT]


class Clients:
    def __init__(self, port, pids, path='/events?n={n}', headers='', poll=False, whole=False, size=200, own_times=True, patience=60):
        self.port,self.pids,self.path,self.headers,self.poll = port,pids,path,headers,poll  # `poll`: a client asks for each message
        self.own_times = own_times  # Does the server repeat a message by itself?
        self.whole = whole          # Is all that is read at once one message? So it is where messages are compressed, and sent one at a time
        self.text,self.patience = ''.join(random.Random(0).choices(ascii_lowercase+' ', k=size-1)).encode()+MARK,patience
        self.room = 2*size+2048     # Bytes to read at once
        self.ready,self.socks,self.waiting = select.epoll(),{},{}
        self.wanted = self.got = self.bytes = 0
        self.body = b''             # Of the requests for streams, where they have one
        self.control = None         # The connection that publishes

    def dial(self, buffer=0):
        sock = socket.socket()
        sock.setblocking(False)
        if buffer: sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))  # Closing leaves no port behind that waits
        if sock.connect_ex(('127.0.0.1', self.port)) not in (0, EINPROGRESS): raise OSError('the server does not take connections')
        return sock

    def request(self, n):
        if not self.body: return f'GET {self.path.format(n=n)} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{self.headers}\r\n'.encode()
        return f'POST {self.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(self.body)}\r\n{self.headers}\r\n'.encode()+self.body

    def publish(self, times=1):
        "Have the message sent, `times` times"
        def post(k): return f'POST /publish?times={k} HTTP/1.1\r\nHost: localhost\r\nX-EventSource-Event: tick\r\nContent-Type: text/plain\r\nContent-Length: {len(self.text)}\r\n\r\n'.encode()+self.text
        if self.poll:
            for fd,sock in self.socks.items(): sock.send(self.request(fd))
        elif self.own_times: self.control.sendall(post(times))
        else: self.control.sendall(post(1)*times)

    def until(self, done, at=None, wait=1.):
        "Read until `done()`, adding the time of each message to `at`; it is asked each `wait` seconds at least"
        end,mark,read,clock = time.monotonic()+self.patience,MARK,os.read,time.perf_counter
        while not done():
            for fd,_ in self.ready.poll(wait, 1024):
                if fd in self.waiting:
                    self.answered(fd)
                    continue
                data = read(fd, self.room)
                if not data: raise OSError('the server has closed a connection')
                self.bytes += len(data)
                if k := self.whole or data.count(mark):
                    self.got += k
                    if at is not None: at.append(clock())
            if time.monotonic()>end: raise TimeoutError(f'{self.got} of {self.wanted} messages after {self.patience} s, {len(self.waiting)} connections not open')

    def answered(self, fd):
        "A connection that is being opened: it can be written to, or has got an answer"
        sock,n,stage = self.waiting[fd]
        if stage=='dialled':
            sock.send(self.request(n))
            self.waiting[fd] = sock,n,'asked'
            self.ready.modify(fd, select.EPOLLIN)
            return
        answer = os.read(fd, 65536)
        if stage=='asked' and answer[9:12] not in (b'200', b'101'): raise OSError(f'answered {answer[:80]!r}')
        if self.poll and MARK not in answer:  # This answer has an end, and must not count as the next one's
            self.waiting[fd] = sock,n,'answered'
            return
        self.socks[fd] = sock
        del self.waiting[fd]

    def calm(self):
        "Wait until the server has nothing to do; a second is enough for it"
        for _ in range(20):
            before = cpu(self.pids)
            time.sleep(.05)
            if cpu(self.pids)-before<.0005: return

    # Steps of a plan

    def open(self, n):
        "Have `n` connections open: microseconds and kilobytes that each of the new ones cost the server"
        self.calm()
        begin,held,old = cpu(self.pids),memory(self.pids),len(self.socks)
        for i in range(old, n):
            self.until(lambda: len(self.waiting)<IN_FLIGHT)
            sock = self.dial()
            self.waiting[sock.fileno()] = sock,i,'dialled'
            self.ready.register(sock.fileno(), select.EPOLLOUT)
        self.until(lambda: not self.waiting)
        self.calm()
        if self.control: self.control.close()
        self.control = self.dial()  # A new one each time: servers close those that were silent for some seconds
        self.control.setblocking(True)
        return dict(connect_us=(cpu(self.pids)-begin)*1e6/(n-old), kb=(memory(self.pids)-held)/(n-old))

    def stall(self, n):
        "Have `n` connections more, which never read"
        self.deaf = [self.dial(4096) for _ in range(n)]
        for i,sock in enumerate(self.deaf):
            sock.setblocking(True)
            sock.sendall(self.request(-1-i))
        self.calm()

    def one_by_one(self, times, warm=10):
        "Publish and wait until everybody has it: microseconds of the server for each delivery, those of this client, and how long each took in ms"
        for _ in range(warm): self.round()
        self.calm()
        delays,begin,own = [],cpu(self.pids),time.process_time()
        for _ in range(times):
            at = []
            start = self.round(at)
            delays += [t-start for t in at]
        own = time.process_time()-own
        self.calm()
        return dict(deliveries=len(delays), us=(cpu(self.pids)-begin)*1e6/len(delays), client_us=own*1e6/len(delays), ms=spread(delays))

    def beside(self, times, path):
        "`one_by_one`, while another process asks for a plain route: how long each of its requests took in ms, too"
        ours,theirs = socket.socketpair()
        if not os.fork():
            theirs.sendall(json.dumps(ask(self.port, path, theirs)).encode())
            os._exit(0)
        theirs.close()
        got = self.one_by_one(times)
        ours.shutdown(socket.SHUT_WR)
        return got | dict(route_ms=spread(json.loads(b''.join(iter(lambda: ours.recv(65536), b'')))))

    # Pages with live elements

    def live(self, path):
        "Stand for so many tabs that have loaded this page: their streams are those of its live elements"
        with self.get(path) as page: self.path,self.headers,self.body = page.stream()
        return {}

    def get(self, path): return Page(self.port, path, self.headers)

    def changes(self, times, warm=5):
        "`one_by_one`, with the bytes of each delivery and what one drawing takes"
        for _ in range(warm): self.round()
        before = self.bytes
        got = self.one_by_one(times, 0)
        with self.get('/drawing') as page: return got | dict(bytes=(self.bytes-before)/got['deliveries'], drawing_us=float(page.body))

    def steadily(self, secs, rate, path):
        "Publish `rate` times a second without waiting, while another process asks for a plain route: how long each of its requests took in ms"
        ours,theirs = socket.socketpair()
        if not os.fork():
            theirs.sendall(json.dumps(ask(self.port, path, theirs)).encode())
            os._exit(0)
        theirs.close()
        begin,start = cpu(self.pids),time.perf_counter()
        for i in range(int(secs*rate)):
            self.publish()
            due = start+(i+1)/rate
            self.until(lambda due=due: time.perf_counter()>=due, wait=.002)
        share = (cpu(self.pids)-begin)/(time.perf_counter()-start)
        ours.shutdown(socket.SHUT_WR)
        return dict(share=100*share, seen=self.got/max(1, len(self.socks))/secs, route_ms=spread(json.loads(b''.join(iter(lambda: ours.recv(65536), b'')))))

    def loads(self, path, times):
        "Load a page again and again: microseconds of the server for each, and how long it took in ms"
        took = []
        with self.get(path) as page:
            for _ in range(3): page.load()
            self.calm()
            begin = cpu(self.pids)
            for _ in range(times):
                start = time.perf_counter()
                page.load()
                took.append(time.perf_counter()-start)
        return dict(load_us=(cpu(self.pids)-begin)*1e6/times, load_ms=spread(took))

    def visits(self, path, times, warm=3):
        "Load a page, open its streams, and leave, again and again: microseconds of the server for each"
        with self.get(path) as page: self.headers = page.headers
        for i in range(times+warm):
            if i==warm:
                self.calm()
                begin = cpu(self.pids)
            with self.get(path) as page:
                socks = [self.dial() for _ in page.streams()]
                for sock,request in zip(socks, page.streams(), strict=True):
                    sock.setblocking(True)
                    sock.sendall(request)
                for sock in socks:
                    data = b''
                    while b'retry:' not in data: data += sock.recv(65536)
                for sock in socks: sock.close()
        self.calm()
        return dict(visit_us=(cpu(self.pids)-begin)*1e6/times)

    def round(self, at=None):
        self.wanted += len(self.socks)
        start = time.perf_counter()
        self.publish()
        self.until(lambda: self.got>=self.wanted, at)
        return start

    def beside_stalled(self, times):
        "Publish and wait until all that read have it, while some don't: how many messages came through, megabytes the server gained"
        held,through = memory(self.pids),0
        try:
            for through in range(1, times+1): self.round()
        except TimeoutError: through -= 1
        return dict(through=through, mb=(memory(self.pids)-held)/1000)

    def burst(self, times):
        "Publish `times` messages back to back: deliveries a second, and microseconds of the server for each"
        self.wanted += times*len(self.socks)
        begin,start = cpu(self.pids),time.perf_counter()
        self.publish(times)
        self.until(lambda: self.got>=self.wanted)
        took = time.perf_counter()-start
        self.calm()
        return dict(burst_rate=times*len(self.socks)/took, burst_us=(cpu(self.pids)-begin)*1e6/(times*len(self.socks)))

    def addressed(self, times):
        "Publish `times` messages, each to one connection: microseconds of the server for each"
        self.calm()
        self.wanted += times
        begin = cpu(self.pids)
        self.publish(times)
        self.until(lambda: self.got>=self.wanted)
        self.calm()
        return dict(us=(cpu(self.pids)-begin)*1e6/times)


class Page:
    "A page that a browser has loaded, on a connection that is kept"
    def __init__(self, port, path, headers):
        self.sock,self.path,self.headers = socket.create_connection(('127.0.0.1', port), 10),path,headers
        self.load()

    def __enter__(self): return self
    def __exit__(self, *exc): self.sock.close()

    def load(self):
        self.sock.sendall(f'GET {self.path} HTTP/1.1\r\nHost: localhost\r\n{self.headers}\r\n'.encode())
        data = b''
        while b'\r\n\r\n' not in data: data += self.sock.recv(65536)
        head,_,body = data.partition(b'\r\n\r\n')
        size = int(re.search(rb'(?i)content-length: (\d+)', head)[1])
        while len(body)<size: body += self.sock.recv(1<<20)
        self.body = body.decode()
        if new := re.search(r'(?i)set-cookie: ([^;\r]+)', head.decode()): self.headers = f'Cookie: {new[1]}\r\n'

    def stream(self):
        "Address, headers and body of the request for its live elements"
        views = []
        for tag in re.findall(r'<[^<>]* data-sse-live-key=[^<>]*>', self.body):
            found = [unescape(re.search(f''' data-sse-live{o}=(?:"([^"]*)"|'([^']*)')''', tag).expand(r'\1\2')) for o in ('', '-key', '-version')]
            views.append([*found, None])
        return '/_sse/live',self.headers,json.dumps(dict(views=views)).encode()

    def streams(self):
        "The requests for all its streams"
        path,headers,body = self.stream()
        if 'data-sse-live-key=' in self.body:
            return [f'POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n'.encode()+body]
        paths = [unescape(o) for o in re.findall('sse-connect="([^"]+)"', self.body)]
        return [f'GET {o} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{headers}\r\n'.encode() for o in paths]


def ask(port, path, until):
    "Ask for `path`, which answers `ok`, until `until` has an end: seconds that each request took"
    took,ready = [],select.poll()
    ready.register(until, select.POLLIN)
    with socket.create_connection(('127.0.0.1', port), 10) as sock:
        while not ready.poll(2):
            start = time.perf_counter()
            sock.sendall(f'GET {path} HTTP/1.1\r\nHost: localhost\r\nHX-Request: true\r\n\r\n'.encode())
            while not sock.recv(65536).endswith(b'ok'): pass
            took.append(time.perf_counter()-start)
    return took


def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],)*2)
    plan = json.load(sys.stdin)
    gc.disable()
    clients,steps = Clients(**plan['server']),plan['steps']
    json.dump([getattr(clients, name)(*args) for name,*args in steps], sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # The kernel closes thousands of sockets faster than Python does


if __name__=='__main__': main()
