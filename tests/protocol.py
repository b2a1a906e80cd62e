"uvicorn's protocol around an app, without a socket: what one request holds in memory, and what is written for it"
import asyncio
import gc
import json
import tracemalloc

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from cjm_fasthtml_sse.multiplex.protocol import read_packets
from cjm_fasthtml_sse.visitor import COOKIE, Visit, Visitors
from tests.contract.support import eventually

BROWSER = f'{COOKIE}={"b"*24}'
GET = b'GET /events HTTP/1.1\r\nHost: x\r\n\r\n'


def opens(n=1, headers=''):
    "A `POST` that becomes a carrier with `n` channels"
    visitors = Visitors('test')
    visit = Visit(dict(type='http', path='/events', headers=[(b'cookie', BROWSER.encode())]))
    ticket = visitors.tickets.issue(visitors.identify(visit).id, '/events')
    body = json.dumps(dict(carriers=[], open=[[i+1, '/events', ticket, '', ''] for i in range(n)], close=[], become=True))
    return (f'POST /_sse/mux HTTP/1.1\r\nHost: x\r\nSec-Fetch-Site: same-origin\r\nSSE-Mux: 2\r\nCookie: {BROWSER}\r\n'
        f'Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n{body}').encode()


class Transport(asyncio.Transport):
    "The connection of one client: counts the streams that have begun, and keeps what is written if it is to"
    def __init__(self, keeps):
        super().__init__()
        self.begun, self.closed, self.keeps, self.written = 0, False, keeps, []

    def write(self, data):
        self.begun += data.count(b'retry:')
        if self.keeps: self.written.append(data)

    def is_closing(self): return self.closed
    def close(self): self.closed = True
    def pause_reading(self): pass
    def resume_reading(self): pass
    def set_protocol(self, protocol): pass

    def body(self):
        "What the chunks of the response contain; each chunk must be well-formed"
        rest, found = b''.join(self.written).partition(b'\r\n\r\n')[2], b''
        while rest:
            size, _, rest = rest.partition(b'\r\n')
            n = int(size, 16)
            assert rest[n:n+2] == b'\r\n', rest[:n+2]
            found, rest = found+rest[:n], rest[n+2:]
        return found

    def channel(self, number):
        "What a channel has received, without its control messages"
        return b''.join(o for n, o in read_packets(self.body()) if n == number and isinstance(o, bytes))


class Server:
    "uvicorn around an app; for `async with`"
    def __init__(self, app):
        self.config, self.state, self.open = Config(app, lifespan='off', log_config=None), ServerState(), []
        self.config.load()

    async def __aenter__(self): return self

    async def __aexit__(self, *_):
        for o in self.open: o.connection_lost(None)
        if self.state.tasks: await asyncio.wait(self.state.tasks, timeout=5)

    async def request(self, data, streams=1, keeps=True):
        "Send one request, and wait until its streams have begun; returns its `HttpToolsProtocol`"
        protocol = HttpToolsProtocol(self.config, self.state, {})
        protocol.connection_made(Transport(keeps))
        self.open.append(protocol)
        protocol.data_received(data)
        await eventually(lambda: protocol.transport.begun >= streams, 'the streams have begun')
        return protocol

    async def bytes_for_each(self, data, streams=1, n=20):
        "Bytes that Python has allocated for one such request, while it waits"
        for _ in range(5): await self.request(data, streams, keeps=False)  # What is made once
        tracemalloc.start()
        before = _allocated()
        for _ in range(n): await self.request(data, streams, keeps=False)
        size = (_allocated()-before)/n
        tracemalloc.stop()
        return size


def _allocated():
    for _ in range(3): gc.collect()
    return tracemalloc.get_traced_memory()[0]
