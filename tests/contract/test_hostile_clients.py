"""Whatever clients send, a server goes on: nothing breaks, nothing leaks, and whoever is well goes on hearing everything

Here are clients on bare sockets: ids that cannot be, event types and rooms that would be something else, requests behind requests,
sockets half open, readers that do not read. Each test runs beside a healthy client, and counts what the server holds before and after.
What a route of the app lets into an event type or a pattern is checked where it arrives, with `segment` for a part of it.
`CROWD=5000` has more clients come where thousands do.
"""
import asyncio
import json
import os
import re
import socket
import struct
import threading
import time
from contextlib import AsyncExitStack, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.contract.servers import CROWD, Remote, Stream, many_files, running, uvicorn, wait_until
from tests.contract.support import BOUND, Parser
from tests.contract.visitors import Visitor


class Healthy(threading.Thread):
    "A client that is told things all the time, and must hear each of them"
    def __init__(self, server):
        super().__init__(daemon=True)
        self.server,self.said,self.slowest,self.over,self.error = server,0,0.,False,None
        self.stream = Stream(server)
        self.stream.begun()
        self.start()

    def heard(self): return [int(m[1]) for e in self.stream.events if (m := re.fullmatch(r'"healthy (\d+)"', e.data))]

    def run(self):
        try:
            while not self.over:
                start = time.monotonic()
                assert self.server.get('/say', text=f'healthy {self.said}').status_code==200
                self.said += 1
                self.stream.until(lambda _: len(self.heard())==self.said)
                self.slowest = max(self.slowest, time.monotonic()-start)
                time.sleep(.01)  # Between two messages
        except BaseException as e: self.error = e

    def goes_on(self):
        "Wait until some more was said"
        said = self.said
        wait_until(lambda: self.said>=said+5 or self.error, lambda: f'nothing but {self.said-said} came')
        assert self.error is None, repr(self.error)

    def stop(self):
        self.over = True
        self.join(BOUND)
        self.stream.sock.close()

    def check(self):
        assert not self.is_alive() and self.error is None and self.said and self.heard()==[*range(self.said)], \
            f'{self.error!r}: {self.said} said, {self.heard()[-3:]} heard'


def held(server): return server.get('/held').json()

def resident(server):
    "MB of memory that a server takes"
    return int(Path(f'/proc/{server.process.pid}/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20

NOBODY = dict(connections=0, requests=0)

def at_rest(server, most=NOBODY):
    "What a server holds, once all clients have left and it holds `most` at most"
    def more(): return {k: v for k,v in states[-1].items() if v>most.get(k, v)}
    states = []
    def rests():
        states.append(held(server))
        return not more()
    wait_until(rests, lambda: f'left behind: {more()} where {most} is right')
    return states[-1]


@contextmanager
def unharmed(server, clients=1000, mb=25):
    """Within the block somebody healthy goes on

    Nothing is left after it: no connection, task or file, no object of the library's, less memory than a block for each of `clients`,
    and `mb` of the process at most.
    """
    before,size,written = at_rest(server),resident(server),len(server.output)
    healthy = Healthy(server)
    try:
        yield healthy
        healthy.goes_on()
    finally: healthy.stop()
    healthy.check()
    more = dict(blocks=.8*clients, objects=10) if clients else dict(blocks=float('inf'), objects=float('inf'))
    at_rest(server, before | {k: before[k]+n for k,n in more.items()})
    assert (grown := resident(server)-size)<mb, f'{grown:.1f} MB more than before'
    output = server.output[written:]
    assert server.process.poll() is None and 'Traceback' not in output and 'ERROR' not in output, output[-3000:]


@contextmanager
def serving(log, *args):
    """A server that has what it needs once, not for each client: caches, and a log that is full

    What is due with the next heartbeat of a client that has gone is held until then, so that heartbeats are frequent.
    """
    with many_files(16_000), running(uvicorn('main:app', '--log-level', 'warning', *args), log,
                                     env={'REPLAY': '100', 'HEARTBEAT': '5'}) as server:
        with unharmed(server, None):
            for i in range(120): server.get('/say', text=f'warm {i}')
            for i in range(300):
                with Stream(server, last_event_id='warm-1') as s:
                    if i%10==0: s.begun()
        yield server


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp('hostile')/'log', '--loop', 'uvloop') as server: yield server


def send(server, data, secs=None, until=None):
    "Send bytes, and give what comes back within `secs`, or up to `until`"
    if secs is None: secs = BOUND if until else .3
    end,got = time.monotonic()+secs,b''
    with socket.create_connection(('127.0.0.1', server.port), BOUND) as sock, suppress(OSError):
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


class TestIds:
    VALUES = {
        '64 KB': b'a'*65_000, 'many digits': b'1-'+b'9'*60_000, 'a number beyond all': b'-1',
        'tabs and blanks': b' \t 1-1 \t ',
        'binary': bytes([*range(1, 10), *range(14, 32), *range(127, 256)]), 'another epoch': b'0123456789-5',
        'not UTF-8': b'\xff\xfe-\xc3',
        'a lone CR': b'x\ry', 'a lone LF': b'x\nevent: evil', 'NUL': b'x\0y', 'a folded line': b'x\r\n  event: evil',
        'empty': b'',
        'percent': b'%0d%0aevent:%20evil', 'braces': b'{0.__class__}', 'redis': b'*-$+>', 'no sequence': b'epoch-'}

    def test_a_last_event_id_may_be_anything(self, server):
        "It is served, with a gap, or refused by the server; and no word of it is in the answer"
        for clients,times in (None, 1),(400, 8):  # What is needed once is there the second time
            with unharmed(server, clients):
                for name,value in [*self.VALUES.items()]*times:
                    query = b''.join(b'%%%02X' % b for b in value)[:60_000]
                    header = b'Last-Event-ID: '+value
                    for go in (partial(ask, server, header), partial(ask, server, header, header),
                               partial(ask, server, path=b'/events?last_event_id='+query)):
                        answer = go(until=b'sse:gap' if value.strip() else b'data:')
                        assert answer==b'' or answer[:12] in (b'HTTP/1.1 200', b'HTTP/1.1 400',
                                                              b'HTTP/1.1 431'), (name, answer[:200])
                        assert b'evil' not in answer and b'__class__' not in answer and answer.count(b'HTTP/1.1')<=1, (name, answer[:200])
                        if answer[:12]==b'HTTP/1.1 200' and value.strip(b' \t'):
                            assert [e.event for e in events(answer)][:2]==['sse:heartbeat', 'sse:gap'], name

    def test_ids_of_this_epoch_that_cannot_be(self, server):
        with unharmed(server):
            epoch,_,n = events(ask(server, until=b'data:'))[0].id.partition('-')
            for last in (f'{epoch}-{int(n)+10**6}', f'{epoch}--1', f'{epoch}-{"0"*10_000}{n}', f'{epoch}-{n}.0',
                         f'{epoch}{epoch}-{n}'):
                assert b'sse:gap' in ask(server, b'Last-Event-ID: '+last.encode(), until=b'sse:gap'), last

    def test_a_hundred_thousand_query_parameters(self, server):
        "The server refuses a line of that length, or reads it"
        many = [b'&'.join(b'a%d=1' % i for i in range(100_000)), b'&'*100_000, b'last_event_id=1&'*100_000,
                b'last_event_id='+b'x'*10**6, b'a[]='*100_000]
        with unharmed(server, mb=40):
            for query in many: ask(server, path=b'/events?'+query, secs=1, until=b'data:')


class TestWhatIsSaid:
    SAID = ['x\r\n\r\nevent: sse:close\r\ndata: x\r\n\r\n', 'x\nid: evil-1\n\n', '\0', '\u2028event: evil',
            '\x85data: evil', '</script><!--']
    KINDS = ['x\r\ndata: evil', 'x\ny', 'x\ry', 'x\0y', '', 'a'*100_000, '\u2028', '*', '**', '%', ':::',
             '\ud7ff\uffff', 'sse:close', 'sse:heartbeat', 'sse:gap']

    def test_data_forges_no_field(self, server):
        with unharmed(server), Stream(server) as s:
            s.begun()
            for text in self.SAID: server.get('/say', text=text)
            found = s.until(lambda _: sum('healthy' not in e.data for e in s.said)==len(self.SAID))
            assert {e.event for e in found}=={'sse:heartbeat', 'said'} and not any('evil' in e.id for e in found)
            assert [json.loads(e.data) for e in s.said if 'healthy' not in e.data]==self.SAID

    def test_an_event_type_is_refused_or_harmless(self, server):
        "Names of the library's own events are refused, too"
        with unharmed(server), Stream(server) as s:
            s.begun()
            for kind in self.KINDS:
                answer = server.post('/tell', kind=kind)
                bad = not kind or any(o in kind for o in '\r\n\0') or kind.startswith('sse:')
                assert (answer.status_code, answer.text)==(200, 'refused' if bad else 'told'), kind
                if not bad: s.until(lambda events, kind=kind: any(e.event==kind for e in events))
            assert not any('evil' in e.data for e in s.events)

    def test_a_room_is_a_name_and_no_pattern(self, server):
        names = ['*', '**', 'a:b', '%', 'a', 'x\r\ny']
        with unharmed(server), ExitStack() as stack:
            rooms = [stack.enter_context(Stream(server, f'/room?name={quote(n, safe="")}')) for n in names]
            for s in rooms: s.begun()
            for n in names*2: server.post('/tell_room', name=n)
            for n,s in zip(names, rooms):  # What the other rooms were told in between did not come here
                s.until(lambda events: sum(e.event!='sse:heartbeat' for e in events)>=2)
                assert [json.loads(e.data) for e in s.events if e.event!='sse:heartbeat']==[n, n]


class TestRequests:
    def test_other_methods(self, server):
        "HEAD is answered without a stream"
        with unharmed(server):
            for method in ('HEAD', 'POST', 'PUT', 'DELETE', 'OPTIONS', 'TRACE', 'get', 'PRI', 'A'*10_000):
                send(server, method.encode()+b' /events HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\na=b&c',
                     .3, until=b'data:')
                answer = ask(server, method=method.encode(), secs=BOUND if method=='HEAD' else .3, until=b'\r\n\r\n')
                if method=='HEAD':
                    assert answer.startswith(b'HTTP/1.1 200') and b'data:' not in answer and b'text/event-stream' in answer
            send(server, b'POST /events HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n'+b'5\r\nhello\r\n'*5000+b'0\r\n\r\n')

    @pytest.mark.parametrize('how', ['closed', 'reset', 'half closed'])
    def test_clients_leave_while_the_response_starts(self, server, how):
        n = CROWD*2//5
        with unharmed(server, n):
            for i in range(n):
                with socket.create_connection(('127.0.0.1', server.port), BOUND) as sock:
                    if how=='reset': sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                    data = b'GET /events HTTP/1.1\r\nHost: test\r\nLast-Event-ID: 1-1\r\n\r\n'
                    sock.sendall(data[:len(data)-i%4] if i%3==0 else data)
                    if how=='half closed': sock.shutdown(socket.SHUT_WR)
                    if i%15==0:
                        sock.settimeout(.05)
                        with suppress(OSError): sock.recv(1+i%200)

    @pytest.mark.parametrize('loop', ['uvloop', 'asyncio'])
    def test_requests_behind_a_stream(self, server, tmp_path, loop):
        "uvicorn does not tell a request that its client has gone while another one waits behind it; `setup_sse` does"
        def pipeline(server):
            one = b'GET /%s HTTP/1.1\r\nHost: test\r\n\r\n'
            first = send(server, one % b'held' + one % b'events' + one % b'held'*50, secs=BOUND, until=b'sse:heartbeat')
            assert first.count(b'HTTP/1.1 200')==2
            for _ in range(20): send(server, one % b'events'*100, secs=.05)
            send(server, b'HEAD /events HTTP/1.1\r\nHost: test\r\n\r\n'*300)
            send(server, one % b'events' + os.urandom(10_000), secs=.1)
        with nullcontext(server) if loop=='uvloop' else serving(tmp_path/'log', '--loop', loop) as server:
            for clients in None,1000:
                with unharmed(server, clients): pipeline(server)


class TestSockets:
    SENT = {'nothing': (b'', 16), 'half a request': (b'GET /events HTTP/1.1\r\nHost: test\r\nX: ', 16),
            'a request': (b'GET /events HTTP/1.1\r\nHost: test\r\n\r\n', 60)}

    @pytest.mark.parametrize('sent', SENT)
    def test_thousands_that_say_nothing_more(self, server, sent):
        "And read nothing: each costs its share, gives it back, and somebody healthy does not notice"
        data,kb = self.SENT[sent]
        mb = 10+CROWD*kb/1000
        with unharmed(server, CROWD, mb=mb) as healthy, ExitStack() as stack:
            before = resident(server)
            for i in range(CROWD):
                stack.enter_context(socket.create_connection(('127.0.0.1', server.port), BOUND)).sendall(data)
            healthy.goes_on()
            assert resident(server)-before<mb and held(server)['files']>CROWD

    def test_streams_that_nobody_reads(self, server):
        "With tiny windows, told large messages: each is evicted at its bound"
        with unharmed(server, mb=150) as healthy, ExitStack() as stack:
            before,evicted = resident(server),server.get('/stats').json()['evicted']
            for _ in range(100): stack.enter_context(Stream(server, rcvbuf=4096))
            for _ in range(20): server.get('/say', text='x'*10_000, times=40)
            grown = resident(server)-before
            assert healthy.is_alive() and grown<150, f'{grown:.0f} MB'  # 100 streams with 8 MB each, if all of it waited
            wait_until(lambda: server.get('/stats').json()['evicted']>evicted, 'some are evicted')

    async def test_carriers_that_nobody_reads(self, server):
        "With many channels, of which some would say as much as they can: what waits for each browser has a bound"
        with unharmed(server, None, mb=200) as healthy:
            before = resident(server)
            async with AsyncExitStack() as stack:
                for _ in range(3):
                    visitor = await stack.enter_async_context(Visitor(Remote(server, rcvbuf=4096)))
                    channels = await visitor.open(*['/events']*20)
                    for o in channels: await o.begins()
                    await visitor.opens('/flood?kb=64')
                    visitor.carriers[channels[0].carrier].stall()
                for _ in range(10): await asyncio.to_thread(server.get, '/say', text='x'*10_000, times=20)
                await asyncio.to_thread(healthy.goes_on)
                grown = resident(server)-before
                assert grown<200, f'{grown:.0f} MB'

    def test_who_was_evicted_comes_back_and_has_missed_nothing(self, tmp_path):
        with running(uvicorn('main:app'), tmp_path/'log', env={'MAX_QUEUE': '20'}) as server, Stream(server) as healthy:
            with Stream(server, rcvbuf=4096) as stalled:
                for o in (healthy, stalled): o.begun()
                sent = 0
                while not server.get('/stats').json()['evicted']:  # Buffers of the system come first
                    assert sent<4000
                    server.get('/say', text='x'*20_000, times=50)
                    sent += 50
                    healthy.until(lambda _: len(healthy.said)==sent)
                with suppress(ConnectionError):
                    while not stalled.ended: stalled.read()
            with Stream(server, last_event_id=stalled.said[-1].id) as back:
                back.until(lambda _: len(back.said)==sent-len(stalled.said))
            assert len(stalled.said)<sent and [e.id for e in stalled.said+back.said]==[e.id for e in healthy.said]
            server.is_calm()


def test_ten_thousand_broadcasts_in_a_row_evict_nobody_who_reads(server):
    with unharmed(server, mb=60), Stream(server) as s:
        s.begun()
        evicted = server.get('/stats').json()['evicted']
        t = threading.Thread(target=lambda: server.get('/say', text='tick', times=10_000))
        t.start()
        s.until(lambda _: sum(e.data=='"tick"' for e in s.said)==10_000)
        t.join()
        numbers = [int(e.id.split('-')[1]) for e in s.said]
        assert numbers==[*range(numbers[0],
                                numbers[0]+len(numbers))] and server.get('/stats').json()['evicted']==evicted
