"Streams and carriers that wait: what they hold in memory, and how a channel's bytes go to the server"
import asyncio

import pytest
from fasthtml.common import FastHTML
from starlette.background import BackgroundTask
from starlette.responses import Response

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.engine.messages import current_scope
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.multiplex.carrier import Carrier
from cjm_fasthtml_sse.multiplex.endpoint import Carriers
from tests.contract.support import eventually
from tests.protocol import GET, Server, opens


class Parked(Response):
    "The least that a stream can be: one piece of a body, then it waits"
    async def __call__(self, scope, receive, send):
        headers = [(b'content-type', b'text/event-stream')]
        await send({'type': 'http.response.start', 'status': 200, 'headers': headers})
        await send({'type': 'http.response.body', 'body': b'retry: 3\n\n', 'more_body': True})
        while (await receive())['type'] != 'http.disconnect': pass


def app_with(response, **kw):
    app = FastHTML(secret_key='test', **kw)
    @app.get('/events')
    def events(req): return response(req)
    return app


def data_of(message): return message['data']


def ours(**kw):
    manager = SSEBroadcastManager(heartbeat=0, **kw)
    app = app_with(lambda req: manager.stream(req, render=data_of))
    setup_sse(app, manager)
    return app, manager


class TestMemory:
    async def test_streams_hold_less_than_a_parked_response(self):
        "The layers of the app have returned, and the carrier needs none; each channel more costs little"
        async with Server(app_with(lambda req: Parked(), default_hdrs=False)) as server:
            parked = await server.bytes_for_each(GET)
        async with Server(ours()[0]) as server:
            stream, one, many = [await server.bytes_for_each(*o) for o in ((GET,), (opens(),), (opens(21), 21))]
        print(f'parked {parked:.0f}, stream {stream:.0f}, carrier {one:.0f}, each further channel {(many-one)/20:.0f}')
        assert stream < parked
        assert one < parked
        assert (many-one)/20 < 2000

    async def test_unknown_middleware_keeps_its_request(self):
        "It may do something when the layers within have returned"
        app, inside = ours()[0], []
        class Watching:
            def __init__(self, app): self.app = app
            async def __call__(self, scope, receive, send):
                inside.append(scope['path'])
                try: await self.app(scope, receive, send)
                finally: inside.remove(scope['path'])
        app.add_middleware(Watching)
        async with Server(app) as server:
            await server.request(GET)
            assert inside == ['/events']
        assert not inside

    @pytest.mark.parametrize('known', [True, False])
    async def test_hooks_at_the_end_know_the_request(self, known):
        "Whichever layer waits: an address that they draw has the prefix of the app"
        app, manager = ours()
        class Unknown:
            def __init__(self, app): self.app = app
            async def __call__(self, *args): await self.app(*args)
        if not known: app.add_middleware(Unknown)
        seen = []
        @manager.on_disconnect
        def left(_): seen.append(current_scope.get().get('path'))
        async with Server(app) as server: await server.request(GET)
        await eventually(lambda: seen)
        assert seen == ['/events']

    @pytest.mark.parametrize('known', [True, False])
    async def test_errors_of_a_background_task_reach_the_app(self, known):
        told = []
        async def tell(req, e):
            told.append(str(e))
            return Response(status_code=500)
        manager = SSEBroadcastManager(heartbeat=0)
        def stream(req):
            response = manager.stream(req)
            def fail(): raise ValueError('wrong')
            response.background = BackgroundTask(fail)
            return response
        app = app_with(stream, exception_handlers={Exception: tell})
        if known: setup_sse(app, manager)
        async with Server(app) as server: await server.request(GET)
        await eventually(lambda: told)
        assert told == ['wrong']

    async def test_a_carrier_that_comes_as_the_last_one_goes_has_heartbeats(self, monkeypatch):
        monkeypatch.setattr('cjm_fasthtml_sse.multiplex.carrier.HEARTBEAT_SECONDS', .01)
        carriers, old, new = Carriers(), Carrier('a'), Carrier('b')
        carriers.add(old)
        await asyncio.sleep(0)
        carriers.remove(old)
        carriers.add(new)
        await eventually(lambda: new.heartbeats.has_pending)
        carriers.remove(new)


class TestChannelsOnTheDirectPath:
    async def test_carriers_share_one_chunk(self):
        "Packet header and body are joined once, where the numbers of the channels agree"
        app, manager = ours()
        async with Server(app) as server:
            transports = [(await server.request(opens())).transport for _ in range(3)]
            for text in 'ab':
                await manager.broadcast('said', text)
                await eventually(lambda text=text: all(f'data: {text}'.encode() in o.channel(1) for o in transports))
            assert manager.stats()['paths'] == {'channel: transport': 3}
            a, b, c = (o.written[-1] for o in transports)
            assert a is b is c

    async def test_many_channels_share_one_write(self):
        "What all channels of a carrier get at once costs two writes: of the first, and of all others"
        app, manager = ours()
        async with Server(app) as server:
            transport = (await server.request(opens(20), 20)).transport
            for text in 'ab':
                before = len(transport.written)
                await manager.broadcast('said', text)
                await eventually(lambda text=text: transport.body().count(f'data: {text}'.encode()) == 20)
            assert len(transport.written) == before+2
            assert len({transport.channel(n+1) for n in range(20)}) == 1

    @pytest.mark.parametrize('size', [10, 40_000])
    async def test_nothing_overtakes_what_waits(self, size):
        "While the connection takes nothing, and behind a message that is too long for one write"
        app, manager = ours()
        async with Server(app) as server:
            protocol = await server.request(opens())
            await manager.broadcast('said', 'first')
            await eventually(lambda: manager.stats()['paths'])
            for i in range(40):
                if i == 10: protocol.flow.pause_writing()
                if i == 30: protocol.flow.resume_writing()
                await manager.broadcast('said', f'<{i}>'+'x'*(size if i % 7 == 3 else 10))
            [stream] = manager.connections
            protocol.flow.pause_writing()
            await manager.broadcast('said', '<40>')
            for _ in range(10): await asyncio.sleep(0)  # It is in the server's `send` now
            protocol.flow.resume_writing()
            stream.put_nowait(dict(type='said', data='<41>'))
            await eventually(lambda: b'<41>' in protocol.transport.channel(1), 'all has come')
            text = protocol.transport.channel(1)
            places = [text.index(b'<%d>' % i) for i in range(42)]
            assert places == sorted(places)
            assert text.count(b'x') == sum(size if i % 7 == 3 else 10 for i in range(40))

    @pytest.mark.parametrize('why', ['off', 'Safari', 'mask'])
    async def test_where_it_may_not_be_taken(self, why):
        "Turned off; a browser that needs a push behind each write; a layer around the app that changes bodies"
        app, manager = ours(**dict(direct=False) if why == 'off' else {})
        async def masked(scope, receive, send):
            async def mask(message):
                if 'body' in message: message['body'] = message['body'].replace(b'secret', b'******')
                await send(message)
            await app(scope, receive, mask)
        safari = 'User-Agent: AppleWebKit/605.1.15 Version/26.0 Safari/605.1.15\r\n' if why == 'Safari' else ''
        async with Server(masked if why == 'mask' else app) as server:
            transport = (await server.request(opens(headers=safari))).transport
            for _ in range(2): await manager.broadcast('said', 'secret')
            text = b'******' if why == 'mask' else b'secret'
            await eventually(lambda: transport.channel(1).count(b'data: '+text) == 2)
            assert not manager.stats()['paths']
