"""Hostile clients on raw sockets against a real uvicorn: nothing crashes, nothing leaks, and a healthy client goes on receiving

What a route of the app lets into an event type or a pattern is checked where it arrives: `check_event_type`, `segment`.
"""
import json
import os
import re
import socket
import struct
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from urllib.parse import quote

import httpx
import pytest
from servers import Stream, at_rest, held, many_files, resident, running, uvicorn

from cjm_fasthtml_sse.wire import Parser

class Healthy(threading.Thread):
    "A client that is told things all the time, and must hear each of them"
    def __init__(self, server):
        super().__init__(daemon=True)
        self.server,self.said,self.slowest,self.over,self.error = server,0,0.,False,None
        self.stream = Stream(server, '/events')
        self.stream.until(lambda es: es)
        self.start()

    def heard(self): return [int(m[1]) for e in self.stream.events if (m := re.fullmatch(r'"healthy (\d+)"', e.data))]

    def run(self):
        try:
            while not self.over:
                start = time.monotonic()
                assert httpx.get(f'{self.server.url}/say', params=dict(text=f'healthy {self.said}'), timeout=10).status_code==200
                self.said += 1
                self.stream.until(lambda es: len(self.heard())==self.said)
                self.slowest = max(self.slowest, time.monotonic()-start)
                time.sleep(.01)
        except BaseException as e: self.error = e

    def goes_on(self, secs=20):
        "Wait until some more was said"
        said,until = self.said,time.monotonic()+secs
        while self.said<said+5:
            assert time.monotonic()<until and self.error is None, f'{self.error!r}: nothing but {self.said-said} came in {secs} s'
            time.sleep(.02)

    def stop(self):
        self.over = True
        self.join(15)
        self.stream.sock.close()

    def check(self):
        assert not self.is_alive() and self.error is None and self.heard()==[*range(self.said)] and self.said, f'{self.error!r}: {self.said} said, {self.heard()[-3:]} heard'


@contextmanager
def serving(log, *args):
    "A server that has what it needs once, not for each client: caches, and a log that is full"
    with many_files(16_000), running(uvicorn('many:app', '--log-level', 'warning', *args), log, env={'REPLAY': '100'}) as server:
        with unharmed(server, None):
            for i in range(120): httpx.get(f'{server.url}/say', params=dict(text=f'warm {i}'), timeout=20)
            for i in range(1000):
                with Stream(server, '/events', last_event_id='warm-1') as s:
                    if i%10==0: s.until(lambda es: es)
        yield server


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp('hostile')/'log') as server: yield server


@contextmanager
def unharmed(server, clients=1000, mb=15):
    "Within the block somebody healthy goes on. Nothing is left after it: no object, task or file, less memory than a block for each of `clients`, and `mb` of the process at most"
    before,size,written = at_rest(server),resident(server),len(server.output)
    healthy = Healthy(server)
    try:
        yield healthy
        healthy.goes_on()
    finally: healthy.stop()
    healthy.check()
    after = at_rest(server, before | dict(blocks=before['blocks']+.8*clients if clients else float('inf')))
    grown = resident(server)-size
    print(f'{after["blocks"]-before["blocks"]:+d} blocks, {grown:+.1f} MB, {healthy.said} said')
    assert grown<mb, f'{grown:.1f} MB more than before'
    output = server.output[written:]
    assert server.process.poll() is None and 'Traceback' not in output and 'ERROR' not in output, output[-3000:]


def send(server, data, secs=.3, until=None):
    "Send bytes, and give what comes back within `secs`, or up to `until`"
    end,got = time.monotonic()+secs,b''
    with socket.create_connection(('127.0.0.1', server.port), 5) as sock, suppress(OSError):
        sock.settimeout(secs)
        sock.sendall(data)
        while (until is None or until not in got) and (left := end-time.monotonic())>0:
            sock.settimeout(left)
            if not (chunk := sock.recv(65536)): break
            got += chunk
    return got


def ask(server, *headers, path=b'/events', method=b'GET', **kw):
    return send(server, b'\r\n'.join([method+b' '+path+b' HTTP/1.1', b'Host: test', *headers, b'', b'']), **kw)


def events(answer):
    "The events in an answer; sizes of chunks stand between them and do no harm"
    return Parser().feed(answer.partition(b'\r\n\r\n')[2])


IDS = {
    '64 KB': b'a'*65_000, 'many digits': b'1-'+b'9'*60_000, 'a number beyond all': b'-1', 'binary': bytes([*range(1, 10), *range(14, 32), *range(127, 256)]),
    'tabs and blanks': b' \t 1-1 \t ', 'another epoch': b'0123456789-5', 'not UTF-8': b'\xff\xfe-\xc3', 'a lone CR': b'x\ry', 'a lone LF': b'x\nevent: evil', 'NUL': b'x\0y',
    'a folded line': b'x\r\n  event: evil', 'empty': b'', 'percent': b'%0d%0aevent:%20evil', 'braces': b'{0.__class__}', 'redis': b'*-$+>', 'no sequence': b'epoch-',
}

@pytest.mark.parametrize('clients', [None, 200], ids=['first', 'again'])
def test_a_last_event_id_may_be_anything(server, clients):
    with unharmed(server, clients):
        for name,value in [*IDS.items()]*4:
            query = b''.join(b'%%%02X' % b for b in value)[:60_000]
            for ask_ in (partial(ask, server, b'Last-Event-ID: '+value), partial(ask, server, *[b'Last-Event-ID: '+value]*2), partial(ask, server, path=b'/events?last_event_id='+query)):
                answer = ask_(until=b'sse:gap' if value.strip() else b'data:')
                # Served, or refused by the server; and no word of it in the answer
                assert answer==b'' or answer[:12] in (b'HTTP/1.1 200', b'HTTP/1.1 400', b'HTTP/1.1 431'), (name, answer[:200])
                assert b'evil' not in answer and b'__class__' not in answer and answer.count(b'HTTP/1.1')<=1, (name, answer[:200])
                if answer[:12]==b'HTTP/1.1 200' and value.strip(b' \t'): assert [e.event for e in events(answer)][:2]==['sse:heartbeat', 'sse:gap'], name


def test_ids_of_this_epoch_that_cannot_be(server):
    with unharmed(server):
        epoch,_,n = events(ask(server, until=b'data:'))[0].id.partition('-')
        for last,gap in [(f'{epoch}-{int(n)+10**6}', True), (f'{epoch}--1', True), (f'{epoch}-{"0"*10_000}{n}', True), (f'{epoch.upper()}-{n}', not epoch.isdigit()), (f'{epoch}-{n}.0', True)]:
            answer = ask(server, b'Last-Event-ID: '+last.encode(), until=b'sse:gap')
            assert (b'sse:gap' in answer)==gap, last


def test_a_hundred_thousand_query_parameters(server):
    "The server refuses a line of that length, or reads it; neither may cost more than a moment"
    with unharmed(server, mb=40) as healthy:
        for query in (b'&'.join(b'a%d=1' % i for i in range(100_000)), b'&'*100_000, b'last_event_id=1&'*100_000, b'last_event_id='+b'x'*10**6, b'a[]='*100_000):
            ask(server, path=b'/events?'+query, secs=1, until=b'data:')
    assert healthy.slowest<5, healthy.slowest


SAID = ['x\r\n\r\nevent: sse:close\r\ndata: x\r\n\r\n', 'x\nid: evil-1\n\n', '\0', '\u2028event: evil', '\x85data: evil', '</script><!--']

def test_nothing_that_is_said_forges_a_field(server):
    with unharmed(server), Stream(server, '/events') as s:
        s.until(lambda es: es)
        for text in SAID: httpx.get(f'{server.url}/say', params=dict(text=text), timeout=10)
        found = s.until(lambda es: sum('healthy' not in e.data for e in es)==1+len(SAID))
        assert {e.event for e in found}=={'sse:heartbeat', 'said'} and not any('evil' in e.id for e in found)
        assert [json.loads(e.data) for e in found if e.event=='said' and 'healthy' not in e.data]==SAID


KINDS = ['x\r\ndata: evil', 'x\ny', 'x\ry', 'x\0y', '', 'a'*100_000, '\u2028', '*', '**', '%', ':::', '\ud7ff\uffff']

def test_an_event_type_from_outside_is_refused_or_harmless(server):
    with unharmed(server), Stream(server, '/events') as s:
        s.until(lambda es: es)
        for kind in KINDS:
            answer = httpx.post(f'{server.url}/tell', data=dict(kind=kind), timeout=10)
            bad = not kind or any(o in kind for o in '\r\n\0')
            assert (answer.status_code, answer.text)==(200, 'FieldError' if bad else 'told'), kind
            if not bad: s.until(lambda es: any(e.event==kind for e in es))
        assert not any('evil' in e.data for e in s.events)


def test_a_room_from_outside_is_a_name_and_no_pattern(server):
    names = ['*', '**', 'a:b', '%', 'a', 'x\r\ny']
    with unharmed(server), ExitStack() as stack:
        rooms = [stack.enter_context(Stream(server, f'/room?name={quote(n, safe="")}')) for n in names]
        for s in rooms: s.until(lambda es: es)
        for n in names*2: httpx.post(f'{server.url}/tell_room', data=dict(name=n), timeout=10)
        for n,s in zip(names, rooms):  # What the other rooms were told in between did not come here
            heard = [json.loads(e.data) for e in s.until(lambda es: sum(e.event!='sse:heartbeat' for e in es)>=2) if e.event!='sse:heartbeat']
            assert heard==[n, n]


def test_other_methods(server):
    with unharmed(server):
        for method in ('HEAD', 'POST', 'PUT', 'DELETE', 'OPTIONS', 'TRACE', 'get', 'PRI', 'A'*10_000):
            send(server, method.encode()+b' /events HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\na=b&c', until=b'data:')
            answer = ask(server, method=method.encode(), secs=2 if method=='HEAD' else .3, until=b'\r\n\r\n')
            if method=='HEAD': assert answer.startswith(b'HTTP/1.1 200') and b'data:' not in answer and b'text/event-stream' in answer
        send(server, b'POST /events HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n'+b'5\r\nhello\r\n'*5000+b'0\r\n\r\n', until=b'data:')


@pytest.mark.parametrize('how', ['closed', 'reset', 'half closed'])
def test_clients_that_leave_while_the_response_starts(server, how):
    with unharmed(server, 600, mb=10):
        for i in range(600):
            with socket.create_connection(('127.0.0.1', server.port), 5) as sock:
                if how=='reset': sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                data = b'GET /events HTTP/1.1\r\nHost: test\r\nLast-Event-ID: 1-1\r\n\r\n'
                sock.sendall(data[:len(data)-i%4] if i%3==0 else data)
                if how=='half closed': sock.shutdown(socket.SHUT_WR)
                if i%15==0:
                    sock.settimeout(.05)
                    with suppress(OSError): sock.recv(1+i%200)


@pytest.mark.parametrize('loop', ['uvloop', 'asyncio'])
def test_pipelined_requests(tmp_path, loop):
    "uvicorn does not tell a request that its client has gone while another one waits behind it; `setup_sse` does"
    with serving(tmp_path/'log', '--loop', loop) as server:
        for clients in None,1000:  # What is needed once is there the second time
            with unharmed(server, clients): pipeline(server)


def pipeline(server):
    one = b'GET /%s HTTP/1.1\r\nHost: test\r\n\r\n'
    assert send(server, one % b'held' + one % b'events' + one % b'held'*50, secs=.5).count(b'HTTP/1.1 200')==2
    for _ in range(20): send(server, one % b'events'*100, secs=.05)
    send(server, b'HEAD /events HTTP/1.1\r\nHost: test\r\n\r\n'*300)
    send(server, one % b'events' + os.urandom(10_000), secs=.1)


@pytest.mark.parametrize('sent, mb', [(b'', 80), (b'GET /events HTTP/1.1\r\nHost: test\r\nX: ', 80), (b'GET /events HTTP/1.1\r\nHost: test\r\n\r\n', 300)],
                         ids=['nothing', 'half a request', 'a request'])
def test_five_thousand_half_open_connections(server, sent, mb):
    "Of clients that say nothing more and read nothing: each costs its share, gives it back, and somebody healthy does not notice"
    with unharmed(server, 5000, mb=mb) as healthy, ExitStack() as stack:
        before = resident(server)
        for i in range(5000): stack.enter_context(socket.create_connection(('127.0.0.1', server.port), 10)).sendall(sent)
        healthy.goes_on()
        assert resident(server)-before<mb and held(server)['files']>5000
    assert healthy.slowest<10


def test_streams_that_nobody_reads_are_bounded(server):
    "Streams with tiny windows, told large messages: each is evicted at its bound"
    with unharmed(server, mb=150) as healthy, ExitStack() as stack:
        before = resident(server)
        for _ in range(100): stack.enter_context(Stream(server, '/events', small=True))
        for _ in range(20): httpx.get(f'{server.url}/say', params=dict(text='x'*10_000, times=40), timeout=20)
        grown = resident(server)-before
        assert healthy.is_alive() and grown<150, f'{grown:.0f} MB'  # 100 streams with 8 MB each, if all of it waited
