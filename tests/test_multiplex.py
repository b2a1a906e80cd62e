"The multiplexer on real servers: each channel keeps what a connection of its own would have"
import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial

import pytest
from fasthtml.common import Beforeware, EventStream, FastHTML, Middleware, Mount, RedirectResponse, Response, Route
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import StreamingResponse

from cjm_fasthtml_sse import multiplex
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.visitor import Visitors
from tests.mux import Browser, Channel
from tests.support import Hooks, eventually, no_task_left, serve


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


def mw(f):
    "Middleware from a `dispatch`"
    return Middleware(BaseHTTPMiddleware, dispatch=f)


async def slowly(request, call_next):
    response = await call_next(request)
    await asyncio.sleep(.05)
    response.headers['X-Slow'] = '1'
    return response


async def with_cookie(request, call_next):
    response = await call_next(request)
    if request.url.path!=multiplex.PATH: response.set_cookie('seen', '1')
    return response


STACKS = dict(none=[], base=[mw(slowly)], gzip=[Middleware(GZipMiddleware)], gzip_over_base=[Middleware(GZipMiddleware), mw(slowly)], base_over_gzip=[mw(slowly), Middleware(GZipMiddleware)])


@pytest.mark.parametrize('stack', STACKS)
async def test_a_stream_comes_through_any_middleware(stack):
    site = Site(STACKS[stack])
    async with site.up() as browser:
        events,hand = await browser.open('/events', '/by_hand')
        await hand.says('hand 0')
        await events.until(lambda o: o.events, 'the first heartbeat')
        assert (events.status, hand.status)==(200, 200)
        assert events.words[0].items()>=dict(status=200, type='text/event-stream').items() and 'epoch=' in events.told('stream') and hand.words[0]==dict(status=200, type='text/event-stream')
        assert ways(site)==((1, 0) if stack=='none' else (0, 1)), 'what is not known may do something with bodies, or when the request is over'
        await site.manager.broadcast('said', 'hello')
        await events.says('hello')
        assert site.manager.connection_count==1
    await eventually(lambda: not site.manager.connection_count and site.notes==['hand 0 over'], 'all that was open ends')


def ways(site):
    "Channels that the hub has taken over, and channels that stayed in their request"
    stats = site.manager.stats()
    return stats['detached'],stats['attached']


class Plain:
    "A layer that does nothing"
    def __init__(self, app): self.app = app
    def inner(self, receive, send): return receive,send
    async def __call__(self, scope, receive, send): await self.app(scope, *self.inner(receive, send) if scope['type']=='http' else (receive, send))


class Masking(Plain):
    "No number of a card leaves the app"
    def inner(self, receive, send):
        async def mask(message):
            if b'4111' in message.get('body', b''): message = {**message, 'body': message['body'].replace(b'4111', b'****')}
            await send(message)
        return receive,mask


class MaskingUnseen(Masking):
    "The same, in a call that is over before the app runs"
    def __call__(self, scope, receive, send): return self.app(scope, *self.inner(receive, send))


class MaskedResponse(Response):
    "The same, around one response alone"
    def __init__(self, inner): self.of = inner
    async def __call__(self, scope, receive, send): await self.of(scope, *Masking(None).inner(receive, send))


async def masked_by_partial(send, message):
    if b'4111' in message.get('body', b''): message = {**message, 'body': message['body'].replace(b'4111', b'****')}
    await send(message)


class MaskedByPartial(Plain):
    def inner(self, receive, send): return receive,partial(masked_by_partial, send)


@pytest.mark.parametrize('where', [Masking, MaskingUnseen, MaskedByPartial, 'response', 'mounted'])
async def test_masked_bodies_stay_masked(where):
    site = Site([Middleware(where)] if isinstance(where, type) else [])
    @site.app.get('/one')
    def one(req): return MaskedResponse(site.manager.stream(req, render=lambda m: m['data']))
    sub = FastHTML(secret_key='test', default_hdrs=False, middleware=[Middleware(Masking)])
    @sub.get('/events')
    def events(req): return site.manager.stream(req, render=lambda m: m['data'])
    site.app.mount('/sub', sub)
    async with site.up() as browser:
        channel = await browser.open(dict(response='/one', mounted='/sub/events').get(where, '/events'))
        await channel.until(lambda o: o.events)
        await site.manager.broadcast('said', 'card 4111 1111')
        await channel.says('card')
        assert channel.data==['card **** 1111'] and ways(site)==(0, 1)


class TimeLimit(Plain):
    async def __call__(self, scope, receive, send):
        if scope.get('path')!='/events': return await self.app(scope, receive, send)
        with suppress(TimeoutError):
            async with asyncio.timeout(.3): await self.app(scope, receive, send)


class EndsAfterThree(Plain):
    "A look at rights before each part of the body"
    def inner(self, receive, send):
        count = 0
        async def look(message):
            nonlocal count
            count += message['type']=='http.response.body'
            if count>3: raise PermissionError('no more')
            await send(message)
        return receive,look


class Listens(Plain):
    "A `receive` that says when it is over, in a call that is over before the app runs"
    def inner(self, receive, send):
        asked = False
        async def limited():
            nonlocal asked
            if asked: return {'type': 'http.disconnect'}
            asked = True
            return await receive()
        return limited,send
    def __call__(self, scope, receive, send): return self.app(scope, *self.inner(receive, send) if scope.get('path')=='/events' else (receive, send))


@pytest.mark.parametrize('layer', [TimeLimit, EndsAfterThree, Listens])
async def test_limits_of_a_layer_hold(layer, caplog):
    "What may end a stream, whatever its means, ends a channel as well"
    site = Site([Middleware(layer)])
    async with site.up() as browser:
        channel = await browser.open('/events')
        await channel.until(lambda o: o.words)
        async def speak():
            while not channel.ended and not channel.status==500:
                await site.manager.broadcast('said', 'x')
                await asyncio.sleep(.01)
        await asyncio.wait_for(speak(), 30)
        await eventually(lambda: not site.manager.connection_count, 'its connection is over')
        assert ways(site)==(0, 1)


async def test_the_usual_layers_cost_no_short_cut():
    "Sessions, CORS, trusted hosts, a Beforeware, an exception handler, a mounted app with a set-up of its own"
    site = Site([Middleware(CORSMiddleware, allow_origins=['*']), Middleware(TrustedHostMiddleware, allowed_hosts=['*'])], before=Beforeware(lambda req, sess: None),
        exception_handlers={418: lambda req, exc: Response('tea')})
    sub = FastHTML(secret_key='test', default_hdrs=False)
    setup_sse(sub, site.manager)
    @sub.get('/events')
    async def events(req): return site.manager.stream(req, render=lambda m: m['data'])
    site.app.mount('/sub', sub)
    async with site.up() as browser:
        channels = await browser.open('/events', '/sub/events')
        for o in channels: await o.until(lambda o: o.events)
        await eventually(lambda: all(o.task is None for c in site.mux.carriers.values() for o in c.channels.values()), 'the requests are over, the hub goes on')
        assert ways(site)==(2, 0)
        await site.manager.broadcast('said', 'hello')
        for o in channels: await o.says('hello')


@pytest.mark.parametrize('path', ['/events', '/by_hand'])
async def test_a_cookie_that_a_middleware_sets_is_told(path):
    "The channel goes on, and the browser fetches the cookie by a request of its own"
    site = Site([mw(with_cookie)])
    async with site.up() as browser:
        channel = await browser.open(path)
        await channel.until(lambda o: o.events)
        assert [[*o] for o in channel.words]==[['status', 'type', 'stream'][:2 if path=='/by_hand' else 3], ['cookie']]
        await site.manager.broadcast('said', 'hello')
        if path=='/events': await channel.says('hello')


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


@pytest.mark.parametrize('hook', ['connect', 'disconnect'])
async def test_a_hook_that_fails_is_no_ones_trouble(hook, caplog):
    site = Site()
    def fails(conn): raise ValueError('a bad hook')
    getattr(site.manager, f'on_{hook}')(fails)
    async with site.up() as browser:
        one,two = await browser.open('/events', '/events')
        for o in (one, two): await o.until(lambda o: o.events)
        await browser.close(one)
        await eventually(lambda: site.manager.connection_count==1, 'one left')
        await site.manager.broadcast('said', 'still there')
        await two.says('still there')
        assert not one.ended
    await eventually(lambda: not site.manager._hub.requests, 'nothing is left')
    assert 'a bad hook' in caplog.text


async def test_a_channel_that_is_closed_while_it_opens_leaves_nothing():
    site = Site()
    async def slow(conn): await site.gate.wait()
    site.manager.on_connect(slow)
    async with site.up() as browser:
        channel = await browser.open('/events')
        await eventually(lambda: site.manager.connection_count, 'it is being opened')
        await browser.close(channel)
        site.gate.set()
        await eventually(lambda: not site.manager.connection_count and not site.manager._hub.requests, 'it is closed')
        assert all('status' in o for o in channel.words), 'its headers, and no more'


async def test_a_manager_that_closes_while_a_channel_opens_says_farewell():
    site = Site([Middleware(GZipMiddleware)])
    async def slow(conn): await site.gate.wait()
    site.manager.on_connect(slow)
    async with site.up() as browser:
        channel = await browser.open('/events')
        await eventually(lambda: site.manager.connection_count, 'it is being opened')
        asyncio.get_running_loop().call_later(.05, site.gate.set)
        await site.manager.close()
        await channel.until(lambda o: o.ended and o.retries())
        assert channel.words[0].get('status')==200


async def test_the_app_sees_the_request_that_it_would_see():
    "Scope, state of the lifespan, cookies and queries, and where it is mounted, under a session that is not its own"
    got = []
    def note(req): got.append((req.url.path, req.query_params.get('n'), req.cookies.get('c'), req.app is site.app, req.state.__dict__['_state'], req.scope['root_path'], req.scope.get('session', {}).get('who'),
        req.headers.get('accept'), req.headers.get('content-type'), req.headers.get('origin'), req.client is not None, str(req.url_for('look'))))
    site = Site(sess_cls=None)
    @site.app.get('/look', name='look')
    def look(req):
        note(req)
        return site.manager.stream(req)
    async def login(request):
        request.session['who'] = 'me'
        return Response('in')
    outer = Starlette(routes=[Route('/login', login), Mount('/sub', site.app)], middleware=[Middleware(SessionMiddleware, secret_key='outer')])
    async with serve(outer) as port, Browser(f'http://127.0.0.1:{port}', cookies={'c': '1'}) as browser:
        await browser.client.get('/login')
        channel = await browser.open('/sub/look?n=1', path='/sub/_sse/mux')
        await channel.until(lambda o: o.events)
        async with browser.client.stream('GET', '/sub/look?n=1', headers={'Accept': 'text/event-stream'}) as response: assert response.status_code==200
        assert got[0]==got[1] and got[0][:7]==('/sub/look', '1', '1', True, {}, '/sub', 'me'), got


async def test_nothing_of_the_order_is_left_in_a_channels_request():
    "Not what is conditional about it, not the context that it ran in, nor a state that another one has written to"
    got,depth = [],ContextVar('depth', default=0)
    class State(dict): "A server may have a kind of its own"
    class Deeper:
        def __init__(self, app): self.app = app
        async def __call__(self, scope, receive, send):
            depth.set(depth.get()+1)
            await self.app(scope, receive, send)
    site = Site([Middleware(Deeper)])
    @site.app.get('/look')
    def look(req):
        got.append((depth.get(), dict(req.headers), dict(req.scope['state'])))
        req.state.seen = True
        return site.manager.stream(req)
    async def server(scope, receive, send): await site.app(scope | {'state': State(of='the server')}, receive, send)
    conditional = {'If-None-Match': '"x"', 'If-Modified-Since': 'Mon, 01 Jan 2024 00:00:00 GMT', 'If-Match': '*', 'If-Unmodified-Since': 'Mon, 01 Jan 2024 00:00:00 GMT', 'If-Range': '"x"', 'Range': 'bytes=1-'}
    async with serve(server) as port, Browser(f'http://127.0.0.1:{port}', headers=conditional) as browser:
        for _ in range(2):
            for o in await browser.open('/look', '/look'): await o.until(lambda o: o.events)
    assert len(got)==4 and all((d, s)==(1, {'of': 'the server'}) for d,_,s in got), got
    assert not {o.lower() for o in (*conditional, 'SSE-Mux', 'Origin', 'Content-Type', 'Content-Length')}&{k for _,h,_ in got for k in h}


async def test_a_proxy_that_takes_the_prefix_away():
    "It is named in `root_path` alone; the browser's paths have it"
    site = Site()
    async def stripped(scope, receive, send): await site.app(scope | {'root_path': '/prefix', 'path': scope['path'].removeprefix('/prefix')}, receive, send)
    async with serve(stripped) as port, Browser(f'http://127.0.0.1:{port}') as browser:
        channel = await browser.open('/prefix/events', path='/prefix/_sse/mux')
        await channel.until(lambda o: o.events)
        await site.manager.broadcast('said', 'hello')
        await channel.says('hello')


async def test_each_channel_has_a_status_a_redirect_and_an_end_of_its_own():
    def before(req):
        if req.url.path=='/kept': return RedirectResponse('/login', 303)
    site = Site(before=Beforeware(before))
    @site.app.get('/kept')
    def kept(): return 'secret'
    @site.app.get('/fails')
    def fails(): raise ValueError('before')
    @site.app.get('/breaks')
    def breaks():
        async def frames():
            yield 'data: one\n\n'
            raise ValueError('inside')
        return EventStream(frames())
    @site.app.get('/finite')
    def finite():
        async def frames():
            for i in range(3): yield f'data: {i}\n\n'
        return EventStream(frames())
    @site.app.get('/busy')
    def busy(): return Response('later', 503, headers={'Retry-After': '7'})
    @site.app.get('/none')
    def none(): return Response(status_code=204)
    @site.app.get('/page')
    def page(): return '<p>a page'
    async with site.up() as browser:
        paths = ['/kept', '/fails', '/breaks', '/finite', '/busy', '/none', '/page', '/nowhere', '/events']
        all = dict(zip(paths, await browser.open(*paths)))
        for p in paths: await all[p].until(lambda o: o.direct or o.ended or o.events or o.status not in (None, 200) or o.told('type')=='text/html')
        assert all['/kept'].words==[dict(status=303, type='', retry=None)]
        assert [all[p].status for p in ('/fails', '/none', '/nowhere')]==[500, 204, 404]
        assert all['/busy'].words==[dict(status=503, type='', retry='7')]
        assert all['/page'].words==[dict(status=200, type='text/html', retry=None)] and not all['/page'].body
        await all['/breaks'].until(lambda o: o.ended)
        await all['/finite'].until(lambda o: o.ended)
        assert (all['/breaks'].data, all['/finite'].data)==(['one'], ['0', '1', '2'])
        await site.manager.broadcast('said', 'unmoved')
        await all['/events'].says('unmoved')


async def test_ids_order_and_replay_are_those_of_a_connection():
    site = Site()
    async with site.up() as browser:
        first = await browser.open('/events')
        await first.until(lambda o: o.events)
        for i in range(20): await site.manager.broadcast('said', i)
        await first.until(lambda o: len(o.data)==20)
        assert first.data==[str(i) for i in range(20)]
        seen = [e.id for e in first.events if e.data]
        await browser.close(first)
        for i in range(20, 30): await site.manager.broadcast('said', i)
        again,odd = await browser.open('/events', last=seen[9]),await browser.open('/events', last='ffff-3')
        await again.until(lambda o: len(o.data)==20)
        assert again.data==[str(i) for i in range(10, 30)]
        await odd.until(lambda o: any(e.event=='sse:gap' for e in o.events))
        # The carrier gone: each channel resumes from its own last id
        carrier = next(iter(browser.carriers))
        lasts = [again.last_id, seen[4]]
        await browser.hang_up()
        await eventually(lambda: not site.manager.connection_count, 'all ended with their carrier')
        await site.manager.broadcast('said', 30)
        one,two = [await browser.open('/events', last=o) for o in lasts]
        await one.until(lambda o: o.data==['30'])
        await two.until(lambda o: o.data==[str(i) for i in range(5, 31)])
        assert one.carrier==two.carrier!=carrier


async def test_the_closing_event_and_the_end_come_through():
    site = Site()
    @site.app.get('/job')
    def job(req): return site.manager.stream(req, events='job:*', until='job:done')
    async with site.up() as browser:
        channel,other = await browser.open('/job', '/events')
        for o in (channel, other): await o.until(lambda o: o.events)
        await site.manager.broadcast('job:done', 'ok')
        await channel.until(lambda o: o.ended)
        assert [e.event for e in channel.events][-2:]==['job:done', 'sse:close'] and not other.ended


@pytest.mark.parametrize('overflow', ['evict', 'drop_oldest'])
async def test_a_manager_has_its_rules_for_channels_that_stall(overflow):
    site = Site(manager=SSEBroadcastManager(max_queue_size=5, heartbeat=0, retry=200, overflow=overflow))
    async with site.up() as browser:
        async with Browser(str(browser.client.base_url), rcvbuf=65536) as slow:
            channel = await slow.open('/events')
            await channel.until(lambda o: o.events)
            slow.reads.clear()
            conn, = site.manager.connections
            carrier, = site.mux.carriers.values()
            most = 0
            for i in range(200):
                await site.manager.broadcast('said', f'{i} {"x"*50_000}')
                await asyncio.sleep(.002)
                most = max(most, sum(o._size for o in {*carrier.channels.values(), *carrier._called}))
                if conn.ended: break
            assert most<multiplex.BUFFER+8*51_000, 'a buffer has a bound'
            if overflow=='evict':
                assert conn.ended=='evicted'
                await eventually(lambda: not site.manager._hub.requests, 'nobody waits for it')
                slow.reads.set()
                await channel.until(lambda o: o.ended and o.retries()[-1]<=300)
                again = await slow.open('/events', last=channel.last_id)  # Nothing is lost
                await again.until(lambda o: o.data and o.data[-1].startswith(f'{i} '))
                assert [int(d.split()[0]) for d in channel.data+again.data]==[*range(i+1)]
            else:
                assert not conn.ended
                slow.reads.set()
                await channel.until(lambda o: o.data and o.data[-1].startswith('199 '))
                numbers = [int(d.split()[0]) for d in channel.data]
                assert numbers==sorted(numbers) and len(numbers)<200


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


async def test_a_carrier_of_age_ends_politely_and_loses_nothing(monkeypatch):
    "At the smallest age of the app's managers: what waits arrives, a last word says to open the channels anew, and no stream is told to have ended"
    drawn,order = [],[]
    monkeypatch.setattr(multiplex.random, 'uniform', lambda *o: drawn.append(o) or .01)
    site = Site(manager=SSEBroadcastManager(heartbeat=0, retry=200, max_age=1_000_000))
    setup_sse(site.app, SSEBroadcastManager(max_age=200))
    async def write():
        for n in range(1_000_000):
            await site.manager.broadcast('said', n)
            await asyncio.sleep(.005)
    async with site.up() as browser:
        read = browser.frame
        def frame(number, body):
            order.append(number)
            read(number, body)
        browser.frame,own = frame,browser.channels.setdefault(0, Channel(0, 'the carrier'))
        events,hand = await browser.open('/events', '/by_hand')
        writer = asyncio.create_task(write())
        await hand.says('hand 0')
        await events.until(lambda o: o.data)
        await eventually(lambda: not browser.carriers and not site.mux.carriers, 'the carrier ends')
        assert own.words[-1]==dict(moved=True) and order[-1]==multiplex.ABOUT and drawn==[(.8, 1)]
        assert not events.ended and not hand.ended
        await eventually(lambda: site.notes==['hand 0 over'] and not site.manager.connections, 'the app is told')
        again = await browser.open('/events', last=events.last_id)
        await again.until(lambda o: len(o.data)>1)
        writer.cancel()
        got = [int(o) for o in events.data+again.data]
        assert got==[*range(got[0], got[0]+len(got))] and again.carrier!=events.carrier


async def test_no_task_is_left():
    site = Site([mw(slowly)])
    async with serve(site.app) as port:
        async with Browser(f'http://127.0.0.1:{port}') as browser:
            for _ in range(3):
                await browser.client.get('/nowhere')
                async with no_task_left():
                    channels = await browser.open(*['/events', '/by_hand', '/nowhere']*5)
                    for o in channels: await o.until(lambda o: o.events or o.status==404)
                    await browser.close(*channels[:4])
                    await browser.hang_up()
                    await eventually(lambda: not site.mux.carriers and not site.manager.connections, 'all is closed')
                    await asyncio.gather(*browser.tasks)
