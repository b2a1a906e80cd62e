"""A channel keeps what a connection of its own would have

All streams of a browser share one connection, its carrier. Each has a channel there, with its own status, order, ids, replay and end;
its request passes through the same middleware, and the app can't tell it from a request of the browser's own. What masks or limits a
stream does so on a channel as well. One that is slow, fails or floods is nobody else's trouble.
"""
import asyncio
import re
from contextlib import suppress
from contextvars import ContextVar
from functools import partial

import pytest
from fasthtml.common import Beforeware, EventStream, FastHTML, Middleware, Mount, RedirectResponse, Response, Route
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

from tests.contract.servers import Remote, running, uvicorn
from tests.contract.clock import timeless
from tests.contract.support import BOUND, Exchange, Hooks, eventually, no_task_left
from tests.contract.visitors import Channel, House, Visitor


class Plain:
    "A layer that does nothing"
    def __init__(self, app): self.app = app
    def inner(self, receive, send): return receive,send
    async def __call__(self, scope, receive, send):
        await self.app(scope, *self.inner(receive, send) if scope['type']=='http' else (receive, send))


class Masking(Plain):
    "No number of a card leaves the app"
    def inner(self, receive, send):
        async def mask(message):
            if b'4111' in message.get('body', b''):
                message = {**message, 'body': message['body'].replace(b'4111', b'****')}
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
    def __call__(self, scope, receive, send):
        return self.app(scope, *self.inner(receive, send) if scope.get('path')=='/events' else (receive, send))


def through(f): return Middleware(BaseHTTPMiddleware, dispatch=f)

async def slowly(request, call_next):
    response = await call_next(request)
    await asyncio.sleep(.05)  # A layer that takes its time
    response.headers['X-Slow'] = '1'
    return response

async def with_cookie(request, call_next):
    response = await call_next(request)
    if not request.url.path.startswith('/_sse'): response.set_cookie('seen', '1')
    return response


def ways(house):
    "How many channels the manager serves alone, and how many within their request"
    stats = house.manager.stats()
    return stats['detached'],stats['attached']


class TestMiddleware:
    STACKS = dict(none=[], base=[through(slowly)], gzip=[Middleware(GZipMiddleware)],
                  gzip_over_base=[Middleware(GZipMiddleware), through(slowly)],
                  base_over_gzip=[through(slowly), Middleware(GZipMiddleware)])

    @pytest.mark.parametrize('stack', STACKS)
    async def test_a_stream_comes_through(self, stack):
        house = House(self.STACKS[stack])
        async with house.visitors() as visitor:
            events,hand = await visitor.open('/events', '/by_hand')
            await hand.says('hand 0')
            await events.begins()
            assert events.status==hand.status==200 and events.told('type')==hand.told('type')=='text/event-stream'
            await house.manager.broadcast('said', 'hello')
            await events.says('hello')

    @pytest.mark.parametrize('where', [Masking, MaskingUnseen, MaskedByPartial, 'response', 'mounted'])
    async def test_masked_bodies_stay_masked(self, where):
        house = House([Middleware(where)] if isinstance(where, type) else [])
        @house.app.get('/one')
        def one(req): return MaskedResponse(house.manager.stream(req, render=lambda m: m['data']))
        sub = FastHTML(secret_key='test', default_hdrs=False, middleware=[Middleware(Masking)])
        @sub.get('/events')
        def events(req): return house.manager.stream(req, render=lambda m: m['data'])
        house.app.mount('/sub', sub)
        async with house.visitors() as visitor:
            channel = await visitor.opens(dict(response='/one', mounted='/sub/events').get(where, '/events'))
            await channel.begins()
            await house.manager.broadcast('said', 'card 4111 1111')
            await channel.says('card')
            assert channel.data==['card **** 1111']

    @pytest.mark.parametrize('layer', [TimeLimit, EndsAfterThree, Listens])
    async def test_limits_hold(self, layer):
        "What may end a stream, whatever its means, ends a channel as well"
        house = House([Middleware(layer)])
        async with house.visitors() as visitor:
            channel = await visitor.open('/events')
            await channel.until(lambda o: o.words)
            async with asyncio.timeout(30):
                while not (channel.ended or channel.status==500):
                    await house.manager.broadcast('said', 'x')
                    await asyncio.sleep(.01)  # Between two messages: the layers count seconds, or messages
            await eventually(lambda: not house.manager.connection_count, 'its connection is over')

    async def test_the_usual_layers_cost_no_short_cut(self):
        "Sessions, CORS, trusted hosts, a Beforeware, an exception handler, a mounted app with a set-up of its own"
        house = House([Middleware(CORSMiddleware, allow_origins=['*']),
                       Middleware(TrustedHostMiddleware, allowed_hosts=['*'])],
                      before=Beforeware(lambda req, sess: None),
                      exception_handlers={418: lambda req, exc: Response('tea')})
        sub = FastHTML(secret_key='test', default_hdrs=False)
        setup_sse(sub, house.manager)
        @sub.get('/events')
        async def events(req): return house.manager.stream(req, render=lambda m: m['data'])
        house.app.mount('/sub', sub)
        async with house.visitors() as visitor:
            channels = [await visitor.opens(o) for o in ('/events', '/sub/events')]
            for o in channels: await o.begins()
            assert ways(house)==(2, 0)
            await house.manager.broadcast('said', 'hello')
            for o in channels: await o.says('hello')

    @pytest.mark.parametrize('path', ['/events', '/by_hand'])
    async def test_a_cookie_is_told(self, path):
        "One that a middleware sets: the channel goes on, and the browser fetches it by a request of its own"
        house = House([through(with_cookie)])
        async with house.visitors() as visitor:
            channel = await visitor.opens(path)
            await channel.until(lambda o: o.events and o.told('cookie'))
            await house.manager.broadcast('said', 'hello')
            if path=='/events': await channel.says('hello')

    async def test_a_cookie_of_what_is_no_stream_any_more_is_told_too(self):
        house = House([through(with_cookie)])
        @house.app.get('/turns')
        def turns(req): return Response('no', 401) if house.gate.is_set() else house.manager.stream(req)
        async with house.visitors() as visitor:
            await visitor.ticket('/turns')
            house.gate.set()
            channel = await visitor.opens('/turns')
            assert channel.status==401 and channel.told('cookie')

    async def test_a_session_that_is_written_each_time(self):
        "By a Beforeware: one request brings the cookie, and the visitor is the same"
        def note(sess): sess['seen'] = sess.get('seen', 0)+1
        house = House(before=note)
        async with house.visitors() as visitor:
            channel = await visitor.opens('/events')
            await channel.until(lambda o: o.events and o.told('cookie'))
            again = await visitor.opens('/events')
            assert again.carrier==channel.carrier and 'session_' in visitor.jar
            assert any('session_=' in o for o in (await visitor.ask('/events', **{'SSE-Ticket': '1'})).cookies)

    @pytest.mark.parametrize('last, page, gaps', [('dead-5', '', 1), ('', 'dead-5', 1), ('', 'dead-5 beef-6', 1), ('dead-5', 'here', 1),
                                                  ('here', 'dead-5', 0), ('', 'here dead-5', 0), ('', '', 0)])
    async def test_an_id_of_before_a_restart_is_a_gap(self, last, page, gaps):
        "The one that the stream has seen, or that its page has shown; and where there is a snapshot, it comes instead"
        house = House()
        await house.manager.broadcast('said', 'old')
        @house.app.get('/state')
        def state(req): return house.manager.stream(req, snapshot=lambda: '<b id="x">state</b>')
        is_known = last=='here'
        last,page = [o.replace('here', house.manager.cursor) for o in (last, page)]
        async with house.visitors() as visitor:
            for path,number in (('/events', 1), ('/state', 2)):
                channel = visitor.channels[number] = Channel(number, path)
                await visitor.order([[number, path, await visitor.ticket(path), last, page]])
                await channel.begins()
                await house.manager.broadcast('said', 'new')
                await channel.says('new')
                told = [e.event for e in channel.events if e.event!='sse:heartbeat'][:-1]
                if path=='/events': assert (told, 'gap=1' in channel.told('stream'))==(['sse:gap']*gaps, bool(gaps))
                else: assert 'sse:gap' not in told and ('state' in channel.data[0])!=is_known

    async def test_a_quiet_stream_has_a_first_byte_at_once(self):
        "Some browsers know of a response only when there is a byte of its body; some middleware keeps it back until then"
        house = House([Middleware(GZipMiddleware, minimum_size=1)])
        @house.app.get('/quiet')
        def quiet():
            async def frames():
                await house.gate.wait()
                yield 'data: now\n\n'
            return EventStream(frames())
        async with Exchange(house.app, 'GET', '/quiet') as r:
            await eventually(lambda: r.body, 'a first byte')
            assert r.body==b':\n\n' and not r.over
            house.gate.set()
            await eventually(lambda: r.over, 'it goes on')
            assert r.body==b':\n\ndata: now\n\n'


class TestRequest:
    async def test_the_app_sees_what_it_would_see(self):
        "State of the lifespan, cookies and queries, and where it is mounted, under a session that is not its own"
        got = []
        house = House(sess_cls=None)
        @house.app.get('/look', name='look')
        def look(req):
            got.append((req.url.path, req.query_params.get('n'), req.cookies.get('c'), req.app is house.app,
                        req.scope['root_path'], req.scope['session'].get('who'),
                        req.headers.get('accept'), req.headers.get('content-type'), req.headers.get('origin'),
                        req.client is not None, str(req.url_for('look'))))
            return house.manager.stream(req)
        async def login(request):
            request.session['who'] = 'me'
            return Response('in')
        outer = Starlette(routes=[Route('/login', login), Mount('/sub', house.app)],
                          middleware=[Middleware(SessionMiddleware, secret_key='outer')])
        async with Visitor(outer, mux='/sub/_sse/mux', Accept='text/event-stream') as visitor:
            visitor.jar['c'] = '1'
            await visitor.ask('/login')
            await visitor.opens('/sub/look?n=1')
        assert len(got)==2 and got[0]==got[1], got  # The first one brought the ticket
        assert got[0][:6]==('/sub/look', '1', '1', True, '/sub', 'me')

    async def test_nothing_of_the_order_is_left(self):
        "Not what is conditional about it, not its last id, not the context that it ran in, nor what another one has written into state or scope"
        got,depth = [],ContextVar('depth', default=0)
        class State(dict): "A server may have a kind of its own"
        class Deeper(Plain):
            async def __call__(self, scope, receive, send):
                depth.set(depth.get()+1)
                await self.app(scope, receive, send)
        house = House([Middleware(Deeper)])
        @house.app.get('/look')
        def look(req):
            got.append((depth.get(), dict(req.headers), dict(req.scope['state']), dict(req.scope['own'])))
            req.state.seen = req.scope['own']['seen'] = True
            return house.manager.stream(req)
        async def server(scope, receive, send):
            await house.app(scope | {'state': State(of='the server'), 'own': {}}, receive, send)
        conditional = {'If-None-Match': '"x"', 'If-Modified-Since': 'Mon, 01 Jan 2024 00:00:00 GMT', 'If-Match': '*',
                       'Range': 'bytes=1-',
                       'If-Unmodified-Since': 'Mon, 01 Jan 2024 00:00:00 GMT', 'If-Range': '"x"',
                       'Last-Event-ID': 'x', 'SSE-After': 'x'}
        async with Visitor(server) as visitor:
            await visitor.ticket('/look')
            visitor.headers,got[:] = conditional,[]
            for _ in range(2):
                for o in await visitor.open('/look', '/look'): await o.begins()
        assert len(got)==4 and all((d, s, o)==(1, {'of': 'the server'}, {}) for d,_,s,o in got), got
        gone = {o.lower() for o in (*conditional, 'SSE-Mux', 'Origin', 'Content-Type', 'Content-Length')}
        assert not gone&{k for _,h,*_ in got for k in h}

    async def test_a_proxy_takes_the_prefix_away(self):
        "It is named in `root_path` alone; the browser's paths have it"
        house = House()
        async def stripped(scope, receive, send):
            path = scope['path'].removeprefix('/prefix')
            await house.app(scope | {'root_path': '/prefix', 'path': path}, receive, send)
        async with Visitor(stripped, mux='/prefix/_sse/mux') as visitor:
            channel = await visitor.opens('/prefix/events')
            await channel.begins()
            await house.manager.broadcast('said', 'hello')
            await channel.says('hello')

    @pytest.mark.parametrize('trusted, client', [('127.0.0.1', '10.0.0.1'), ('10.9.9.9', '127.0.0.1')])
    async def test_the_server_says_whom_it_takes_for_a_proxy(self, trusted, client):
        "A channel sees the client as the request did"
        house = House()
        forged = {'X-Forwarded-For': '10.0.0.1', 'X-Forwarded-Proto': 'https',
                  'Forwarded': 'host=evil.example;proto=https'}
        async with Visitor(ProxyHeadersMiddleware(house.app, trusted), **forged) as visitor:
            await (await visitor.opens('/events')).begins()
        seen = [(o.client.host, o.url.scheme) for o in house.seen]
        assert len(seen)==2 and seen[0]==seen[1]==(client, 'https' if client=='10.0.0.1' else 'http')


class TestAnswers:
    async def test_each_has_a_status_a_redirect_and_an_end_of_its_own(self):
        "Streams today, and something else tomorrow"
        def before(req):
            if req.url.path=='/kept' and house.gate.is_set(): return RedirectResponse('/login', 303)
        house = House(before=Beforeware(before))
        answers = {'/kept': None, '/busy': Response('later', 503, headers={'Retry-After': '7'}),
                   '/none': Response(status_code=204), '/page_now': Response('<p>a page', media_type='text/html')}
        def stream(path):
            def answer(req): return (answers[path] if house.gate.is_set() else None) or house.manager.stream(req)
            house.app.route(path, methods=['GET'])(answer)
        for o in answers: stream(o)
        @house.app.get('/fails')
        def fails(req):
            if house.gate.is_set(): raise ValueError('before')
            return house.manager.stream(req)
        @house.app.get('/breaks')
        def breaks():
            async def frames():
                yield 'data: one\n\n'
                if house.gate.is_set(): raise ValueError('inside')
            return EventStream(frames())
        @house.app.get('/finite')
        def finite():
            async def frames():
                for i in range(3): yield f'data: {i}\n\n'
            return EventStream(frames())
        paths = [*answers, '/fails', '/breaks', '/finite', '/events']
        async with house.visitors() as visitor:
            for o in paths: assert await visitor.ticket(o), o
            house.gate.set()
            all = dict(zip(paths, await visitor.open(*paths)))
            for p in ('/breaks', '/finite'): await all[p].until(lambda o: o.ended)
            for p in ('/kept', '/busy', '/none', '/page_now', '/fails'): await all[p].until(lambda o: o.words)
            statuses = {'/kept': 303, '/fails': 500, '/none': 204, '/busy': 503, '/page_now': 200}
            assert {p: all[p].status for p in statuses}==statuses
            assert all['/busy'].told('retry')=='7' and all['/page_now'].told('type')=='text/html'
            assert not any(all[p].events for p in ('/kept', '/fails', '/none', '/busy', '/page_now'))
            assert (all['/breaks'].data, all['/finite'].data)==(['one'], ['0', '1', '2'])
            await all['/events'].begins()
            await house.manager.broadcast('said', 'unmoved')
            await all['/events'].says('unmoved')

    async def test_the_closing_event_and_the_end_come_through(self):
        house = House()
        @house.app.get('/job')
        def job(req): return house.manager.stream(req, events='job:*', until='job:done')
        async with house.visitors() as visitor:
            channel,other = await visitor.open('/job', '/events')
            for o in (channel, other): await o.begins()
            await house.manager.broadcast('job:done', 'ok')
            await channel.until(lambda o: o.ended)
            assert [e.event for e in channel.events][-2:]==['job:done', 'sse:close'] and not other.ended

    async def test_each_goes_on_from_its_own_last_id(self):
        "When its carrier was lost, and an unknown id is a gap"
        house = House()
        async with house.visitors() as visitor:
            first = await visitor.opens('/events')
            await first.begins()
            for i in range(20): await house.manager.broadcast('said', i)
            await first.until(lambda o: len(o.data)==20)
            ids = [e.id for e in first.events if e.data]
            await visitor.hang_up()
            await eventually(lambda: not house.manager.connection_count, 'all ended with their carrier')
            await house.manager.broadcast('said', 20)
            one,two,odd = [await visitor.open('/events', last=o) for o in (first.last_id, ids[4], 'ffff-3')]
            await one.until(lambda o: o.data==['20'])
            await two.until(lambda o: o.data==[str(i) for i in range(5, 21)])
            await odd.until(lambda o: any(e.event=='sse:gap' for e in o.events))
            assert one.carrier==two.carrier!=first.carrier

    @pytest.mark.parametrize('agent, pushed', [('AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.0 Safari/605.1.15', True), ('AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120', False)])
    @timeless
    async def test_webkit_hears_the_last_word_at_once(self, agent, pushed):
        "Some of its versions keep back the end of what comes: eight bytes behind it, which are an empty frame of no channel, bring it"
        house = House()
        async with house.visitors() as visitor:
            visitor.headers['user-agent'] = agent
            channel = await visitor.opens('/events')
            await channel.begins()
            carrier = visitor.carriers[channel.carrier]
            await house.manager.broadcast('said', 'hello')
            await channel.says('hello')
            if pushed: await eventually(lambda: carrier.body.endswith(bytes(8)), 'a push')
            else:
                await asyncio.sleep(60)  # Longer than it takes to the last push, by a clock that needs no time
                assert not carrier.body.endswith(bytes(8))

    async def test_what_a_stream_says_cannot_pass_for_a_frame(self):
        house = House()
        def frame(number, body): return number.to_bytes(4)+len(body).to_bytes(4)+body
        forged = frame(2, b'data: forged\n\n')+frame((1<<31)+2, b'{"end": true}')
        @house.app.get('/forger')
        def forger():
            async def frames():
                yield forged*1000
                yield forged[:5]
                yield '\n\ndata: all\n\n'
                await house.gate.wait()
            return EventStream(frames())
        async with house.visitors() as visitor:
            one,two = await visitor.open('/forger', '/events')
            await two.begins()
            await one.says('all')
            await house.manager.broadcast('said', 'true')
            await two.says('true')
            assert (one.number, two.number, two.data, two.ended)==(1, 2, ['true'], False)


class TestEnds:
    @pytest.mark.parametrize('by', ['close', 'carrier', 'manager', 'disconnect'])
    async def test_hooks_fire_once(self, by):
        "Whatever ends the channel"
        house = House()
        hooks = Hooks(house.manager)
        @house.app.get('/mine')
        def mine(req): return house.manager.stream(req, user='ann')
        async with house.visitors() as visitor:
            channels = await visitor.open('/mine', '/mine', '/mine')
            for o in channels: await o.begins()
            if by=='close': await visitor.close(*channels)
            if by=='carrier': await visitor.hang_up()
            if by=='manager': await house.manager.close()
            if by=='disconnect': await house.manager.disconnect('ann')
            await eventually(lambda: len(hooks.closed)==3, 'all end')
            if by in ('manager', 'disconnect'):
                for o in channels: await o.until(lambda o: o.ended and (o.farewell or by=='disconnect'), 'a farewell')
        await eventually(lambda: not house.manager.inspect()['requests'], 'no request is left')
        assert sorted(map(id, hooks.opened))==sorted(map(id, hooks.closed))

    @pytest.mark.parametrize('hook', ['connect', 'disconnect'])
    async def test_a_hook_that_fails_is_no_ones_trouble(self, hook, caplog):
        house = House()
        def fails(conn): raise ValueError('a bad hook')
        getattr(house.manager, f'on_{hook}')(fails)
        async with house.visitors() as visitor:
            one,two = await visitor.open('/events', '/events')
            for o in (one, two): await o.begins()
            await visitor.close(one)
            await eventually(lambda: house.manager.connection_count==1, 'one left')
            await house.manager.broadcast('said', 'still there')
            await two.says('still there')
            assert not two.ended
        await eventually(lambda: not house.manager.inspect()['requests'], 'nothing is left')
        assert 'a bad hook' in caplog.text

    async def test_one_that_is_closed_while_it_opens(self):
        house = House()
        async def slow(conn): await house.gate.wait()
        house.manager.on_connect(slow)
        async with house.visitors() as visitor:
            channel = await visitor.open('/events')
            await eventually(lambda: house.manager.connection_count, 'it is being opened')
            await visitor.close(channel)
            house.gate.set()
            await eventually(lambda: not house.manager.connection_count and not house.manager.inspect()['requests'],
                             'it is closed')
            assert not channel.data

    async def test_a_manager_that_closes_while_one_opens_says_farewell(self):
        house = House([Middleware(GZipMiddleware)])
        async def slow(conn): await house.gate.wait()
        house.manager.on_connect(slow)
        async with house.visitors() as visitor:
            channel = await visitor.open('/events')
            await eventually(lambda: house.manager.connection_count, 'it is being opened')
            asyncio.get_running_loop().call_later(.05, house.gate.set)
            await house.manager.close()
            await channel.until(lambda o: o.ended and o.farewell)

    async def test_what_runs_behind_a_stream_is_not_cut_short(self):
        "A closed connection doesn't cancel a background task, nor does a closed channel"
        house = House()
        done = house.serve_with_task()
        async with house.visitors() as visitor:
            channel = await visitor.open('/with_task')
            await channel.says('hi')
            done.clear()
            await visitor.close(channel)
            await asyncio.wait_for(done.wait(), BOUND)

    async def test_a_carrier_of_age_loses_nothing(self):
        "At the smallest age of the app's managers: what waits arrives, a last word says to open the channels anew, and no stream is told to have ended"
        house = House(manager=SSEBroadcastManager(heartbeat=0, retry=200, max_age=1_000_000))
        setup_sse(house.app, SSEBroadcastManager(max_age=1))
        async def write():
            for n in range(1_000_000):
                await house.manager.broadcast('said', n)
                await asyncio.sleep(.005)  # Between two messages
        async with house.visitors() as visitor:
            own = visitor.channels[0] = visitor.channels.get(0) or type('Own', (), dict(words=[], frame=lambda self, body, about: self.words.append(body)))()
            events,hand = await visitor.open('/events', '/by_hand')
            writer = asyncio.create_task(write())
            await events.until(lambda o: o.data)
            await eventually(lambda: not visitor.carriers, 'the carrier ends')
            assert own.words[-1]==b'{"moved": true}' and not events.ended and not hand.ended
            again = await visitor.open('/events', last=events.last_id)
            await again.until(lambda o: len(o.data)>1)
            writer.cancel()
            got = [int(o) for o in events.data+again.data]
            assert got==[*range(got[0], got[0]+len(got))] and again.carrier!=events.carrier

    async def test_no_task_is_left(self):
        house = House([through(slowly)])
        async with house.visitors() as visitor:
            for o in ('/events', '/by_hand', '/page'): await visitor.ticket(o)
            for _ in range(3):
                async with no_task_left():
                    channels = await visitor.open(*['/events', '/by_hand', '/page']*5)
                    for o in channels: await o.answered()
                    await visitor.close(*channels[:4])
                    await visitor.hang_up()


class TestSlowReaders:
    @pytest.mark.parametrize('overflow', ['evict', 'drop_oldest'])
    async def test_a_manager_has_its_rules_for_channels(self, overflow):
        "One that stalls is evicted and has missed nothing when it is back; or it skips the oldest and goes on"
        house = House(manager=SSEBroadcastManager(max_queue_size=5, heartbeat=0, retry=200, overflow=overflow))
        async with house.visitors() as visitor:
            channel = await visitor.opens('/events')
            await channel.begins()
            visitor.carriers[channel.carrier].stall()
            for i in range(60):
                await house.manager.broadcast('said', f'{i} {"x"*50_000}')
                await asyncio.sleep(.002)  # Between two messages, for the channel to be evicted
                if not house.manager.connection_count: break
            evicted = not house.manager.connection_count
            assert evicted==(overflow=='evict')==bool(house.manager.stats()['evicted'])
            visitor.carriers[channel.carrier].resume()
            if evicted:
                await channel.until(lambda o: o.ended and o.farewell)
                again = await visitor.open('/events', last=channel.last_id)
                await again.says(f'{i} ')
                assert [int(d.split()[0]) for d in channel.data+again.data]==[*range(i+1)]
            else:
                await channel.says('59 ')
                numbers = [int(d.split()[0]) for d in channel.data]
                assert numbers==sorted(numbers) and len(numbers)<60

    async def test_a_flood_leaves_room_for_a_quiet_one(self, tmp_path):
        "On a real connection that takes little, beside a stream that would give as much as it can: what the other says comes"
        with running(uvicorn('main:app'), tmp_path/'log') as server:
            async with Visitor(Remote(server, rcvbuf=65536)) as visitor:
                flood,quiet = await visitor.open('/flood?kb=64', '/events')
                for o in (flood, quiet): await o.begins()
                for i in range(10):
                    await visitor.ask(f'/say?text=word-{i}')
                    await quiet.says(f'word-{i}')
                assert [d for d in quiet.data]==[f'"word-{i}"' for i in range(10)]
            server.is_calm()

    async def test_an_order_leaves_the_server_to_others(self):
        "At most as many requests of a carrier are without an answer as a browser has connections; the others wait, in their order"
        house,under_way,most,begun = House(),0,0,[]
        @house.app.get('/slow')
        async def slow(n: int=-1):
            nonlocal under_way,most
            if n<0: return EventStream(iter(['data: 1\n\n']))
            begun.append(n)
            under_way += 1
            most = max(most, under_way)
            await house.gate.wait()
            await asyncio.sleep(.001)  # A route that takes its time
            under_way -= 1
            return 'no stream'
        async with house.visitors() as visitor:
            await visitor.ticket('/slow')
            channels = await visitor.open(*[f'/slow?n={n}' for n in range(60)])
            await eventually(lambda: len(begun)==6, 'the first ones')
            assert (await visitor.ask('/page')).status==200
            await visitor.close(*channels[50:])
            house.gate.set()
            for o in channels[:50]: await o.until(lambda o: o.status==200)
            assert most==6 and begun==[*range(50)], 'what is closed while it waits never begins'


class TestLog:
    async def test_an_address_cannot_write_lines_into_it(self, caplog):
        class Fails(Plain):
            async def __call__(self, scope, receive, send):
                if scope.get('path', '').startswith('/fails') and house.gate.is_set(): raise ValueError('as it should')
                await self.app(scope, receive, send)
        house = House([Middleware(Fails)])
        @house.app.get('/fails/{rest}')
        def fails(rest: str): return EventStream(iter(['data: 1\n\n']))
        async with house.visitors() as visitor:
            assert await visitor.ticket('/fails/x%0dERROR%20forged%1b[31m')
            house.gate.set()
            channel = await visitor.open('/fails/x%0dERROR%20forged%1b[31m')
            await channel.until(lambda o: o.status==500)
        messages = [r.getMessage() for r in caplog.records if 'forged' in r.getMessage()]
        assert len(messages)==1 and messages[0].isprintable(), messages

    async def test_the_answers_say_little_and_are_kept_by_nobody(self):
        async with House().visitors() as visitor:
            channel = await visitor.opens('/events')
            headers = visitor.carriers[channel.carrier].headers
            assert headers['content-type']=='application/octet-stream' and headers['x-content-type-options']=='nosniff' and 'no-store' in headers['cache-control']
            assert re.fullmatch('[0-9a-f]{16}', headers['sse-visitor']) and (await visitor.ask('/_sse/mux')).headers['cache-control']=='no-store'
