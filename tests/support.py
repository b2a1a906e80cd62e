"What the tests share: streams in process, tabs that misbehave, servers, and waiting with a bound"
import asyncio
import socket
from contextlib import asynccontextmanager
from types import SimpleNamespace

from starlette.requests import Request

from cjm_fasthtml_sse.testing import SSEClient
from cjm_fasthtml_sse.engine.wire import GAP, Parser, StreamEnded
from tests.contract.support import BOUND, Hooks, eventually, no_task_left, serve, turns  # noqa: F401


def serving(manager, **kw):
    "An ASGI application that answers every request with `manager.stream(request, **kw)`"
    async def app(scope, receive, send):
        await manager.stream(Request(scope, receive), **kw)(scope, receive, send)
    return app


def tab(manager, url='/', headers=None, last_event_id=None, wrap=lambda app: app, **kw):
    "A tab on `manager.stream(request, **kw)`; `wrap` puts middleware around it"
    return SSEClient(wrap(serving(manager, **kw)), url, headers, last_event_id)


@asynccontextmanager
async def following(manager, *args, **kw):
    "A tab that has been served its first chunk and follows live"
    async with tab(manager, *args, **kw) as client:
        conn = [*manager._hub.connections][-1]
        await eventually(lambda: conn in conn.group.live, 'the stream goes live')
        client.conn = conn
        yield client


async def read(client, n):
    "The next `n` events, without heartbeats"
    return [await client.next(BOUND) for _ in range(n)]


async def read_to(client, event):
    "All events before the first one of type `event`, without heartbeats; a stream that ends before is a failure"
    res = []
    while True:
        try: e = await client.next(BOUND)
        except (StreamEnded, TimeoutError) as err:
            raise AssertionError(f'{type(err).__name__} after {len(res)} events, waiting for {event}') from None
        if e.event == event: return res
        res.append(e)


async def read_all(client):
    "All events up to the end of the stream, without heartbeats"
    res = []
    while True:
        try: res.append(await client.next(BOUND))
        except StreamEnded: return res


def seq(e):
    "The sequence number in an event's id, or in an id"
    return int(getattr(e, 'id', e).rpartition('-')[2])


def gaps(client):
    "The gaps a tab was told of"
    return [e for e in client.events if e.event == GAP]


def request(): return SimpleNamespace(scope={})


def tasks(): return {t for t in asyncio.all_tasks() if not t.done()}


@asynccontextmanager
async def connected(port, path='/', headers='', rcvbuf=None):
    "A bare HTTP client on a socket: (reader, writer)"
    sock = socket.socket()
    if rcvbuf: sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ('127.0.0.1', port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=2**16 if not rcvbuf else rcvbuf)
    writer.write(f'GET {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n'.encode())
    try: yield reader, writer
    finally: writer.close()


async def socket_events(reader, n):
    "The first `n` events that come over a socket, heartbeats included"
    parser, found = Parser(), []
    async with asyncio.timeout(BOUND):
        await reader.readuntil(b'\r\n\r\n')
        while len(found) < n:
            size = int(await reader.readline(), 16)
            if not size: break
            found += parser.feed((await reader.readexactly(size+2))[:-2])
    return found
