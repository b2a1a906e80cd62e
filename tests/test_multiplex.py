"Inside the multiplexer: who waits, what a flood is, when a request is cancelled, how a carrier ends"
import asyncio
import json
import logging
from urllib.parse import unquote

import pytest
from starlette.responses import StreamingResponse
from starlette.routing import Route

from cjm_fasthtml_sse.multiplex import carrier as carriers
from cjm_fasthtml_sse.multiplex import channel as channels
from cjm_fasthtml_sse.multiplex.carrier import CHANNEL_BUFFER, MAX_DIRECT, Carrier, Writer
from cjm_fasthtml_sse.multiplex.channel import Channel, PacketQueue
from cjm_fasthtml_sse.multiplex.endpoint import Multiplexer
from cjm_fasthtml_sse.multiplex.protocol import MAX_BODY_BYTES, ChannelOpening, ChannelRequest, read_packets
from cjm_fasthtml_sse.visitor import Visitors
from tests.contract.clock import timeless
from tests.contract.support import BOUND, eventually
from tests.contract.visitors import Channel as Stream
from tests.contract.visitors import House


async def forge(visitor, *urls):
    "Give a visitor valid tickets, also for addresses that never were a stream"
    await visitor.ticket('/events')
    await visitor.order()
    tickets = Visitors('test').tickets
    for path in {o.partition('?')[0] for o in urls}: visitor.tickets[path] = tickets.issue(visitor.tag, unquote(path))


class TestWaiting:
    async def test_both_senders_wait(self):
        "Two that send at once on one channel wait for room, both of them"
        carrier = Carrier('me')
        channel = carrier.channels[1] = Channel(carrier, 1)
        large = dict(type='http.response.body', body=b'x'*2*CHANNEL_BUFFER, more_body=True)
        both = [asyncio.ensure_future(channel.deliver(large)) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(o.done() for o in both)
        while carrier.writer.scheduled_count: carrier.writer.next_write()
        await asyncio.wait_for(asyncio.gather(*both), BOUND)

    @timeless
    async def test_still_page_counts_one_second(self):
        "However long a write took: a page that stood still is no slow reader"
        async def send(message): await asyncio.sleep(1.5)
        writer = Writer({})
        PacketQueue(writer, 1).send_control()
        writer.start(send, list)
        await eventually(lambda: writer.blocked, 'it goes on')
        assert writer.blocked==1
        writer.stop()

    async def test_floods_go_direct(self, monkeypatch):
        "Where other channels are, and the browser does not keep up; a few at a time, until it has closed one"
        monkeypatch.setattr(channels, 'FLOOD_BYTES', 1<<18)
        monkeypatch.setattr(channels, 'FLOOD_SECONDS', .05)
        size,control = {},{}
        async def send(message):
            for n,content in read_packets(message['body']):
                if isinstance(content, dict): control.setdefault(n, []).append(content)
                else: size[n] = size.get(n, 0)+len(content)
            await asyncio.sleep(.01)
        async def floods(scope, receive, send):
            await send(dict(type='http.response.start', status=200, headers=[(b'content-type', b'text/event-stream')]))
            while scope['path']=='/flood': await send(dict(type='http.response.body', body=b'x'*8000, more_body=True))
            for _ in range(2): await receive()
        def start(channel, opening, began):
            channel.request.start(floods, dict(path=opening.url))
            return True
        def opens(*urls, first=1):
            return ChannelRequest([], [ChannelOpening(n, url, '') for n,url in enumerate(urls, first)], [], True)
        def direct(): return sorted(n for n,o in control.items() if o[-1]==dict(direct='flood', away=True))
        carrier = Carrier('me')
        carrier.handle(opens('/flood'), start, {})
        carrier.writer.start(send, list)
        await eventually(lambda: size.get(1, 0)>4<<18)
        assert not direct(), 'alone it may'
        carrier.handle(opens('/quiet', *['/flood']*3, first=2), start, {})
        await eventually(lambda: len(direct())==MAX_DIRECT, 'some have to go')
        before = sum(size.values())
        await eventually(lambda: sum(size.values())>before+(2<<20), 'the others take turns')
        assert len(direct())==MAX_DIRECT and 2 in carrier.channels
        carrier.handle(ChannelRequest([], [], direct()[:1], True), start, {})
        await eventually(lambda: len(direct())==MAX_DIRECT+1, 'the next one has its place')
        assert not any(size[n]%8000 for n in direct()), 'no message is cut'
        carrier.close()
        carrier.writer.stop()


class TestRequests:
    async def test_heard_end_cancels_nothing(self, monkeypatch):
        "A request that has received the end may do things behind its stream, as behind a closed connection"
        monkeypatch.setattr(channels, 'CLOSE_TIMEOUT', .05)
        house = House()
        done = house.serve_with_task()
        async with house.visitors() as visitor:
            await forge(visitor, '/with_task')
            channel = await visitor.open('/with_task')
            await channel.says('hi')
            await visitor.close(channel)
            await asyncio.wait_for(done.wait(), BOUND)

    async def test_who_does_not_ask_is_stopped(self, monkeypatch):
        "A response that never looks whether anybody listens is cancelled after a while"
        monkeypatch.setattr(channels, 'CLOSE_TIMEOUT', .05)
        house,over = House(),asyncio.Event()
        async def deaf(scope, receive, send):
            try:
                await send(dict(type='http.response.start', status=200, headers=[(b'content-type', b'text/event-stream')]))
                while await asyncio.sleep(.01, True): await send(dict(type='http.response.body', body=b'data: x\n\n', more_body=True))
            finally: over.set()
        house.app.mount('/deaf', deaf)
        async with house.visitors() as visitor:
            await forge(visitor, '/deaf/')
            channel = await visitor.open('/deaf/')
            await channel.says('x')
            await visitor.close(channel)
            await asyncio.wait_for(over.wait(), BOUND)

    async def test_a_stream_that_never_waits_cannot_take_the_server(self):
        "Its channel is over at once, because it is encoded; direct, the browser's buffers would slow it down"
        house = House()
        @house.app.get('/endless')
        def endless():
            async def frames():
                while True: yield 'data: x\n\n'
            return StreamingResponse(frames(), media_type='text/event-stream', headers={'Content-Encoding': 'x'})
        async with house.visitors() as visitor:
            await forge(visitor, '/endless')
            channel = await visitor.opens('/endless')
            assert channel.words==[dict(direct='encoded')]
            assert (await visitor.ask('/nowhere')).status==404


class TestBodies:
    @pytest.fixture
    def house(self):
        house = House()
        async def echo(request):
            about = [request.method, *(request.headers.get(o, '') for o in ('content-type', 'content-length')), (await request.body()).decode()]
            return StreamingResponse(frames(json.dumps(about)), media_type='text/event-stream')
        async def frames(data):
            yield f'data: {data}\n\n'
            await asyncio.Event().wait()
        async def news(request): return house.manager.stream(request, events=await request.json())
        # FastHTML would read the bodies itself
        house.app.router.routes[:0] = Route('/echo', echo, methods=['GET', 'POST']),Route('/news', news, methods=['POST'])
        return house

    async def opens(self, visitor, path, *rest):
        "A channel that was answered; `rest` stands behind the ids"
        visitor.number += 1
        channel = visitor.channels[visitor.number] = Stream(visitor.number, path)
        await visitor.order([[visitor.number, path, visitor.tickets[path], '', '', *rest]])
        await channel.answered()
        return channel

    async def test_its_request_is_a_post(self, house):
        "With JSON; without a body it is a `GET`, also where an old client leaves the field out"
        async with house.visitors() as visitor:
            await forge(visitor, '/echo')
            for rest,about in {('["é"]',): ['POST', 'application/json', '6', '["é"]'], ('',): ['GET', '', '', ''], (): ['GET', '', '', '']}.items():
                channel = await self.opens(visitor, '/echo', *rest)
                await channel.says(json.dumps(about))

    async def test_a_manager_answers_it(self, house):
        "Behind the body `receive` gives the end of the stream alone, and the stream leaves its request"
        async with house.visitors() as visitor:
            await forge(visitor, '/news')
            channel = await self.opens(visitor, '/news', '["weather", "sport"]')
            await eventually(lambda: house.manager.connection_count==1)
            assert house.manager.inspect()['connections'][0]['events']==['sport', 'weather']
            await house.manager.broadcast('sport', 'won')
            await channel.says('"won"')
            assert house.manager.stats()['detached']==1
            await visitor.close(channel)
            await eventually(lambda: not house.manager.connection_count, 'it is closed as any other')
            assert (await self.opens(visitor, '/news')).status==405

    @pytest.mark.parametrize('body', [7, None, ['x'], '\ud800', 'x'*(MAX_BODY_BYTES+1), 'é'*(MAX_BODY_BYTES//2+1)],
        ids=['number', 'null', 'list', 'surrogate', 'too long', 'too many bytes'])
    async def test_what_is_none_concerns_no_other_channel(self, house, body):
        async with house.visitors() as visitor:
            await forge(visitor, '/echo')
            assert (await self.opens(visitor, '/echo', 'x'*MAX_BODY_BYTES)).status==200
            assert (await self.opens(visitor, '/echo', body)).words==[dict(direct='limit')]
            assert (await self.opens(visitor, '/echo', '{}')).status==200

    async def test_all_of_a_request_have_a_bound(self, house):
        async with house.visitors() as visitor:
            await forge(visitor, '/echo')
            many = [[n, '/echo', visitor.tickets['/echo'], '', '', 'x'*MAX_BODY_BYTES] for n in range(1, 5)]
            assert (await visitor.order(many)).status==413
            assert (await visitor.order([[1, '/echo', '', '', '', '', 'more']])).status==400


class TestCarriers:
    async def test_a_carrier_that_nobody_reads_is_given_up(self, monkeypatch, caplog):
        monkeypatch.setattr(carriers, 'HEARTBEAT_SECONDS', .05)
        house = House()
        async with house.visitors() as visitor:
            await visitor.opens('/events')
            response, = visitor.carriers.values()
            response.stall()
            await eventually(lambda: response.task.done(), 'it is cut')
        assert not [r for r in caplog.records if r.levelno>=logging.ERROR], caplog.text

    async def test_broken_one_lets_others_end(self):
        "A carrier whose connection broke in this moment keeps no other one from being ended"
        async def breaks(message): raise OSError
        multiplexer, broken, other = Multiplexer(Visitors('test')), Carrier('a'), Carrier('b')
        multiplexer.carriers.update(a=broken, b=other)
        broken.writer.start(breaks, list)
        broken.heartbeats.send()
        await eventually(lambda: not broken.open, 'it has noticed that')
        with pytest.raises(OSError): await broken.writer.finish()
        await multiplexer.close()
        assert not other.open
