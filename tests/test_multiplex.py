"Inside the multiplexer, on real servers: room, floods, ends"
import asyncio
import logging
from contextlib import asynccontextmanager

import pytest
from fasthtml.common import EventStream, FastHTML, Response
from starlette.background import BackgroundTask
from starlette.responses import StreamingResponse

from cjm_fasthtml_sse.multiplex import endpoint as multiplex
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.visitor import Visitors
from tests.mux import Browser
from tests.support import Hooks, eventually, serve


class Site:
    "An app with streams of several kinds, and what it notes down"
    def __init__(self, middleware=(), before=None, manager=None, **kw):
        self.app = app = FastHTML(secret_key='test', default_hdrs=False, middleware=[*middleware], before=before, **kw)
        self.manager = manager or SSEBroadcastManager(heartbeat=0, retry=200)
        self.notes,self.gate,self.seen = [],asyncio.Event(),[]
        setup_sse(app, self.manager)
        self.mux = app._sse_setup.multiplexer

        @app.get('/events')
        def events(req):
            self.seen.append(req)
            return self.manager.stream(req, render=lambda m: f'{m["data"]}')

        @app.get('/by_hand')
        def by_hand(n: int=0):
            async def frames():
                try:
                    yield f'data: hand {n}\n\n'
                    await self.gate.wait()
                    yield 'data: through\n\n'
                finally: self.notes.append(f'hand {n} over')
            return EventStream(frames())

    @asynccontextmanager
    async def up(self, **kw):
        "The app on a real server, and a browser"
        async with serve(self.app, **kw) as port:
            async with Browser(f'http://127.0.0.1:{port}') as browser: yield browser
            await eventually(lambda: not self.mux.carriers, 'the carriers end')


async def test_a_stream_that_never_waits_cannot_take_the_server():
    "Its channel is over at once, because it is encoded; direct, the browser's buffers would slow it down"
    site = Site()
    @site.app.get('/endless')
    def endless():
        async def frames():
            while True: yield 'data: x\n\n'
        return StreamingResponse(frames(), media_type='text/event-stream', headers={'Content-Encoding': 'x'})
    async with site.up() as browser:
        channel = await browser.open('/endless')
        await channel.until(lambda o: o.direct)
        assert channel.words==[dict(direct='encoded')]
        assert (await browser.client.get('/nowhere')).status_code==404


async def test_two_who_send_at_once_both_wait_for_room():
    carrier = multiplex.Carrier('me')
    channel = carrier.channels[1] = multiplex.Channel(carrier, 1)
    big = dict(type='http.response.body', body=b'x'*2*multiplex.BUFFER, more_body=True)
    both = [asyncio.ensure_future(channel.deliver(big)) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(o.done() for o in both)
    while carrier._called: carrier._turn()
    await asyncio.wait_for(asyncio.gather(*both), 1)


async def test_what_runs_behind_a_stream_is_not_cut_short(monkeypatch):
    "A closed connection doesn't cancel a background task, nor does a closed channel"
    monkeypatch.setattr(multiplex, 'GRACE', .05)
    site,done = Site(),asyncio.Event()
    async def behind():
        await asyncio.sleep(.3)
        done.set()
    @site.app.get('/with_task')
    def with_task():
        async def frames():
            yield 'data: hi\n\n'
            await site.gate.wait()
        return StreamingResponse(frames(), media_type='text/event-stream', background=BackgroundTask(behind))
    async with site.up() as browser:
        channel = await browser.open('/with_task')
        await channel.says('hi')
        await browser.close(channel)
        await asyncio.wait_for(done.wait(), 5)


async def test_who_does_not_ask_is_stopped(monkeypatch):
    "A response that never looks whether anybody listens is cancelled after a while"
    monkeypatch.setattr(multiplex, 'GRACE', .05)
    site = Site()
    class Deaf(Response):
        async def __call__(self, scope, receive, send):
            try:
                await send(dict(type='http.response.start', status=200, headers=[(b'content-type', b'text/event-stream')]))
                while True:
                    await send(dict(type='http.response.body', body=b'data: x\n\n', more_body=True))
                    await asyncio.sleep(.01)
            finally: site.notes.append('over')
    @site.app.get('/deaf')
    def deaf(): return Deaf()
    async with site.up() as browser:
        channel = await browser.open('/deaf')
        await channel.says('x')
        await browser.close(channel)
        await eventually(lambda: site.notes==['over'], 'it is cancelled')


async def test_hooks_fire_once_whatever_ends_the_channel():
    site = Site()
    hooks = Hooks(site.manager)
    async with site.up() as browser:
        one,two,three,four = await browser.open(*['/events']*4)
        for o in (one, two, three, four): await o.until(lambda o: o.events)
        conns = [*site.manager.connections]
        await browser.close(one)
        await eventually(lambda: len(hooks.closed)==1, 'the one that was closed')
        # Evicted and closed in one turn of the loop
        left = [*site.manager.connections]
        left[0].end('evicted')
        site.manager._hub.end_all()
        await eventually(lambda: len(hooks.closed)==4, 'all end')
        for o in (two, three, four): await o.until(lambda o: o.ended and o.retries())
    assert hooks.opened==conns and sorted(map(id, hooks.closed))==sorted(map(id, conns))
    assert not site.manager._hub.requests


async def test_a_healthy_reader_of_large_messages_keeps_its_channel():
    "100 messages of 100 KB on one of several channels, each as soon as the one before has come, and more at a time as long as all is taken now and then"
    site = Site()
    @site.app.get('/large')
    def large(at_a_time: int):
        async def frames():
            for i in range(100):
                yield f'data: {i} {"x"*100_000}\n\n'
                if not (i+1)%at_a_time: await news.get()
        return StreamingResponse(frames(), media_type='text/event-stream')
    async with site.up() as browser:
        quiet,_ = await browser.open('/events', '/by_hand')
        for at_a_time in (1, 5):
            news = asyncio.Queue()
            channel = await browser.open(f'/large?at_a_time={at_a_time}')
            for n in range(at_a_time, 101, at_a_time):
                await channel.until(lambda o: len(o.events)>=n, f'{n} messages')
                await site.manager.broadcast('said', f'{at_a_time}: {n}')
                await quiet.says(f'{at_a_time}: {n}')
                news.put_nowait(n)
            await channel.until(lambda o: o.ended)
            assert not channel.direct and [d.split()[0] for d in channel.data]==[*map(str, range(100))]


async def test_a_flood_that_its_browser_does_not_take_is_sent_away_where_others_are(monkeypatch):
    monkeypatch.setattr(multiplex, 'FLOOD', 1<<19)
    monkeypatch.setattr(multiplex, '_BLOCKED', .3)
    site = Site()
    @site.app.get('/flood')
    def flood():
        async def frames():
            while True: yield f'data: {"x"*8000}\n\n'
        return StreamingResponse(frames(), media_type='text/event-stream')
    async with site.up() as quick, Browser(str(quick.client.base_url), rcvbuf=65536, pause=.01) as browser:
        lone = await browser.open('/flood')
        await lone.until(lambda o: len(o.body)>4*multiplex.FLOOD)
        assert not lone.direct, 'alone it may'
        quiet = await browser.open('/events')
        await lone.until(lambda o: o.direct)
        assert lone.words[-1]=={'direct': 'flood', 'away': True}
        assert not len(lone.body)%len(lone.body.split(b'\n\n')[0]+b'\n\n'), 'no message is cut'
        more = await browser.open(*['/flood']*4)
        await eventually(lambda: sum(bool(o.direct) for o in more)==multiplex.AWAY-1, 'one more')
        start = sum(len(o.body) for o in more)
        await eventually(lambda: sum(len(o.body) for o in more)>start+8*multiplex.FLOOD, 'the others take turns')
        assert sum(bool(o.direct) for o in more)==multiplex.AWAY-1, 'a browser has few connections'
        await browser.close(lone)  # It was away, and is over
        await eventually(lambda: sum(bool(o.direct) for o in more)==multiplex.AWAY, 'the next one has its place')
        await site.manager.broadcast('said', 'in between')
        await quiet.says('in between')
        await browser.close(*more)


async def test_a_page_that_stood_still_is_no_slow_reader():
    "However long its connection took nothing, that counts as one second"
    async def send(message): await asyncio.sleep(1.5)
    carrier = multiplex.Carrier('a')
    carrier.beat()
    writing = asyncio.create_task(carrier.write(send))
    await eventually(lambda: carrier.blocked, 'it goes on')
    assert carrier.blocked==1
    carrier.close()
    await writing


async def test_a_carrier_that_nobody_reads_is_given_up(monkeypatch, caplog):
    monkeypatch.setattr(multiplex, 'BEAT', .05)
    site = Site()
    @site.app.get('/flood')
    def flood():
        async def frames():
            while True: yield f'data: {"x"*8000}\n\n'
        return StreamingResponse(frames(), media_type='text/event-stream')
    async with site.up() as browser:
        async with Browser(str(browser.client.base_url), rcvbuf=65536) as slow:
            channel = await slow.open('/flood')
            await channel.says('x')
            slow.reads.clear()
            await eventually(lambda: not site.mux.carriers, 'it is cut')
    assert not [r for r in caplog.records if r.levelno>=logging.ERROR], caplog.text


async def test_a_carrier_whose_connection_broke_in_this_moment_keeps_no_other_from_being_ended():
    async def breaks(message): raise OSError
    mux, broken, other = multiplex.Multiplexer(Visitors('test')), multiplex.Carrier('a'), multiplex.Carrier('b')
    mux.carriers.update(a=broken, b=other)
    broken.beat()
    with pytest.raises(OSError): await broken.write(breaks)
    await mux.close()
    assert not other.open
