"""All streams of a browser travel on one connection, and nobody gets at what is not theirs

A stream is opened there with a ticket, which the response of that very stream has brought: so whatever stands before the app has let
this visitor in. The visitor is what `setup_sse(visitor=)` says, else `session['auth']`, else the browser, known by a cookie. Where the
visitor changes, what was open stays what it was, and what opens belongs to the new one. What can't come that way is asked for directly,
and counted: `stats()['direct']`.
"""
import asyncio
import time

import httpx
import pytest
from fasthtml.common import EventStream, FastHTML, Middleware, P, RedirectResponse, Response
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import StreamingResponse

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard
from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, setup_sse
from cjm_fasthtml_sse.progress import setup_progress, track

from tests.contract.support import BOUND, MUX, Exchange, Hooks, eventually, listening, no_task_left
from tests.contract.visitors import House, Visitor

COOKIE = 'sse_browser'  # By which a browser is known
TICKET = {'SSE-Ticket': '1'}
HTMX = {'HX-Request': 'true'}


class TestTickets:
    async def test_a_ticket_comes_with_the_first_response(self):
        "And the browser's cookie with it, once; then all streams go by one carrier"
        house = House()
        async with house.visitors() as visitor:
            r = await visitor.ask('/events', **TICKET)
            assert r.headers['content-type'].startswith('text/event-stream') and not r.body and not house.manager.connection_count
            cookie, = r.cookies
            assert cookie.startswith(f'{COOKIE}=') and 'HttpOnly; SameSite=Lax; Path=/; Max-Age=31536000' in cookie and 'Secure' not in cookie
            assert not (await visitor.ask('/events', **TICKET)).cookies
            one,two,three = await visitor.opens('/events'),await visitor.opens('/by_hand?n=7'),await visitor.opens('/by_hand?n=8')
            assert one.carrier==two.carrier==three.carrier and (two.data, three.data)==(['hand 7'], ['hand 8'])
            assert [*visitor.tickets]==['/events', '/by_hand'], 'the query is the same path'

    async def test_what_is_no_stream_gets_none(self):
        "Nor does a HEAD or a POST; and without a ticket nothing is opened, nor is the app asked"
        house = House()
        @house.app.post('/posted')
        def posted(): return EventStream(iter(['data: 1\n\n']))
        @house.app.get('/delete')
        def delete(): house.notes.append('deleted')
        async with house.visitors() as visitor:
            assert 'sse-ticket' not in (await visitor.ask('/events', 'HEAD')).headers
            assert 'sse-ticket' not in (await visitor.ask('/posted', 'POST')).headers
            assert await visitor.ticket('/page')==''
            visitor.tickets.update({o: await visitor.ticket('/events') for o in ('/delete', '/events/../delete',
                                                                                 '//delete', '/events%2F..%2Fdelete')})
            for url in ('/page', '/delete', '/delete?x=/events', '/events/../delete', '/events%2F..%2Fdelete',
                        '//delete'):
                assert (await visitor.opens(url)).words==[dict(ticket=True)], url
        assert not house.notes

    async def test_a_copied_ticket_is_of_no_use(self):
        "To another user, to nobody, nor for another path"
        house = House()
        async with house.visitors(3) as (ann, bob, nobody):
            for o,name in ((ann, 'ann'), (bob, 'bob')): await o.ask(f'/login?name={name}')
            ticket,before = await ann.ticket('/events'),len(house.seen)
            for thief in (bob, nobody):
                thief.tickets['/events'] = ticket
                assert (await thief.opens('/events')).words==[dict(ticket=True)]
            ann.tickets['/by_hand'] = ticket
            assert (await ann.opens('/by_hand')).words==[dict(ticket=True)]
            assert len(house.seen)==before and (await ann.opens('/events')).events

    async def test_nothing_else_passes_for_a_ticket(self, monkeypatch):
        "Nor does a good one, a day later"
        house = House()
        async with house.visitors() as visitor:
            good,before = await visitor.ticket('/events'),len(house.seen)
            key,until,mac = good.split('.')
            for wrong in ('x', '..', 'é', '\ud800', 'x'*100_000, 7, True, [good], {'a': good}, good+'\n', ' '+good,
                          good.upper(), good.replace('.', '．'),
                          f'{key}.{int(until)+1}.{mac}', f'{key}.{until}.{"0"*32}', good[:-1]):
                visitor.tickets['/events'] = wrong
                assert (await visitor.opens('/events')).words==[dict(ticket=True)], wrong
            assert len(house.seen)==before
            visitor.tickets['/events'] = good
            assert (await visitor.opens('/events')).events
            now = time.time()
            monkeypatch.setattr(time, 'time', lambda: now+86_401)
            assert (await visitor.opens('/events')).words==[dict(ticket=True)]

    async def test_workers_with_different_secrets(self, caplog):
        "One refuses the other's tickets, and says so in the log, once; the browser asks that worker itself, and goes on"
        app = FastHTML(secret_key='another', default_hdrs=False)
        manager = SSEBroadcastManager()
        setup_sse(app, manager)
        @app.get('/events')
        def events(req): return manager.stream(req)
        async with House().visitors() as visitor:
            await visitor.ticket('/events')
            visitor.app = app
            for _ in range(2): assert (await visitor.opens('/events')).words==[dict(ticket=True)]
            assert [r.getMessage() for r in caplog.records if 'secret' in r.getMessage()]==['A ticket was made with another secret_key: do all workers have the same one?']
            visitor.tickets.clear()
            assert (await visitor.opens('/events')).events

    async def test_a_ticket_takes_no_place_and_calls_nobody(self):
        "It says that a path is a stream; who may read it is decided by the channel's own request, each time"
        manager,asked = SSEBroadcastManager(max_connections=1),[]
        hooks = Hooks(manager)
        house = House(manager=manager)
        def nothing(*args): raise AssertionError('a ticket is no visit')
        def authorise(req): return not asked.append(req.headers['x-user']) and asked[-1]=='ann'
        @house.app.get('/guarded')
        def guarded(req): return manager.stream(req, render=nothing, snapshot=nothing, user='x', authorise=authorise)
        async with house.visitors(2) as (ann, eve), listening(house.app) as c:
            await eventually(lambda: c.events, 'the stream begins')
            before = manager.stats()
            for user,o in dict(ann=ann, eve=eve).items():
                o.headers['x-user'] = user
                r = await o.ask('/guarded', **TICKET)
                assert (r.status, r.body, r.headers['content-length'])==(200, b'', '0') and r.headers['sse-ticket']
            assert (asked, len(hooks.opened), manager.stats())==([], 1, before)
            for _ in range(2): assert (await eve.opens('/guarded')).status==403
            assert (await ann.opens('/guarded')).status==503, 'let in, and there is no place'
            assert asked==['eve', 'eve', 'ann']

    async def test_who_may_read_is_asked_once_for_a_channel(self):
        "Not for its ticket; and again for the next one, whose ticket is kept"
        house,asked = House(),[]
        @house.app.get('/guarded')
        def guarded(req): return house.manager.stream(req, authorise=lambda req: not asked.append(req))
        async with house.visitors() as visitor:
            for n in 1,2:
                await (await visitor.opens('/guarded')).begins()
                assert len(asked)==n

    @pytest.mark.parametrize('path', ['/_sse/dashboard/events', '/stream_job_status?job_id=7',
                                      '/stream_job_progress?job_id=7', '/stream_job_progress?job_id=over'])
    async def test_streams_of_the_library_have_tickets(self, path):
        "The channel is for those whom `authorise` lets in, and it is asked once"
        manager,app,asked = SSEBroadcastManager(),FastHTML(secret_key='test'),[]
        def may(req, *args): return not asked.append(req.headers['x-user']) and asked[-1]=='ann'
        setup_progress(app, manager, may)
        setup_dashboard(app, manager, authorise=may)
        for _ in track(manager, [1], 'over'): pass
        for user,status in dict(ann=200, eve=403).items():
            async with Exchange(app, 'GET', path, TICKET | {'x-user': user}) as r:
                await eventually(lambda r=r: r.over, 'it is answered')
                assert (r.status, r.body, 'sse-ticket' in r.headers)==(200, b'', True)
            async with Visitor(app, x_user=user) as visitor: assert (await visitor.opens(path)).status==status
        assert asked==['ann', 'eve']
        await eventually(lambda: not manager.connections, 'all that was open ends')

    @pytest.mark.parametrize('path', ['/_sse/dashboard', '/_sse/dashboard/live?paused'])
    async def test_no_page_is_got_by_asking_for_a_ticket(self, path):
        manager,app = SSEBroadcastManager(),FastHTML(secret_key='test')
        setup_dashboard(app, manager, authorise=lambda req: False)
        for value in ('1', 'authorise'):
            async with Exchange(app, 'GET', path, {'SSE-Ticket': value}) as r: assert r.status==403

    async def test_where_authorise_leads_the_browser_is_led(self):
        "A channel is answered with the status; the browser asks for a ticket once more, and that `authorise` is asked before"
        house,asked = House(),[]
        def authorise(req):
            asked.append(req)
            if req.headers.get('x-user')=='ann': return True
            led = RedirectResponse('/login', 303)
            led.set_cookie('why', 'led')
            return led
        @house.app.get('/guarded')
        def guarded(req): return house.manager.stream(req, authorise=authorise)
        async with house.visitors() as visitor:
            assert (await visitor.opens('/guarded')).status==303 and len(asked)==1
            r = await visitor.ask('/guarded', SSE_Ticket='authorise')
            assert (r.status, r.headers['location'], r.headers.get('sse-ticket'))==(303, '/login', None) and 'why=led' in r.cookies[0]
            visitor.headers['x-user'] = 'ann'
            r = await visitor.ask('/guarded', SSE_Ticket='authorise')
            assert (r.status, r.body)==(200, b'') and r.headers['sse-ticket'] and not house.manager.connection_count

    @pytest.mark.parametrize('stack', ['none', 'that reads ahead', 'that compresses'])
    @pytest.mark.parametrize('kind', ['queue', 'block'])
    @pytest.mark.parametrize('value', ['1', 'authorise'])
    async def test_a_stream_by_hand_begins_once(self, kind, value, stack):
        "Whatever middleware is around it. For a ticket its route runs, and nothing of the stream: no hook is called, no place is taken"
        async def ahead(request, call_next): return await call_next(request)
        house = House({'none': [], 'that compresses': [Middleware(GZipMiddleware, minimum_size=1)],
                       'that reads ahead': [Middleware(BaseHTTPMiddleware, dispatch=ahead)]}[stack])
        hooks,begun = Hooks(house.manager),[]
        async def queue():
            begun.append(kind)
            queue = await house.manager.register_connection()
            try:
                while True: yield f"data: {(await queue.get())['data']}\n\n"
            finally: await house.manager.unregister_connection(queue)
        async def block():
            begun.append(kind)
            async with house.manager.subscribe() as queue:
                while True: yield f"data: {(await queue.get())['data']}\n\n"
        @house.app.get('/own')
        def own(): return EventStream(dict(queue=queue, block=block)[kind]())
        async with house.visitors() as visitor:
            r = await visitor.ask('/own', SSE_Ticket=value)
            assert r.status==200 and r.body in (b'', b':\n\n') and not begun
            visitor.tickets['/own'] = r.headers['sse-ticket']
            channel = await visitor.open('/own')
            await eventually(lambda: house.manager.connection_count==1, 'it listens')
            await house.manager.broadcast('said', 'hello')
            await channel.says('hello')
            assert (len(hooks.opened), len(hooks.closed), len(begun))==(1, 0, 1)
        await eventually(lambda: len(hooks.closed)==1, 'it ends')

    async def test_what_a_route_opens_for_its_stream_is_closed(self):
        "Behind a ticket too: the stream begins then, as it is the stream that closes it"
        house = House()
        hooks = Hooks(house.manager)
        @house.app.get('/own')
        async def own():
            queue = await house.manager.register_connection()
            async def frames():
                try:
                    while True: yield f"data: {(await queue.get())['data']}\n\n"
                finally: await house.manager.unregister_connection(queue)
            return EventStream(frames())
        async with house.visitors() as visitor:
            assert await visitor.ticket('/own')
            await eventually(lambda: len(hooks.closed)==1 and not house.manager.connection_count, 'it is closed')
            channel = await visitor.open('/own')
            await eventually(lambda: house.manager.connection_count==1, 'it listens')
            await house.manager.broadcast('said', 'hello')
            await channel.says('hello')

    async def test_the_answer_to_a_ticket_request_is_sent_as_it_is_where_it_is_no_stream(self):
        "A page that comes in pieces, an error, and a stream whose length is given"
        house = House()
        @house.app.get('/pieces')
        def pieces():
            async def parts():
                for o in 'one','two':
                    await asyncio.sleep(0)
                    yield o
            return StreamingResponse(parts())
        @house.app.get('/fails')
        def fails(): raise ZeroDivisionError
        @house.app.get('/whole')
        def whole(): return Response('data: 1\n\n', media_type='text/event-stream')
        async with house.visitors() as visitor:
            assert (await visitor.ask('/pieces', **TICKET)).body==b'onetwo'
            with pytest.raises(AssertionError): await visitor.ask('/fails', **TICKET)
            r = await visitor.ask('/whole', **TICKET)
            assert (r.body, r.headers['content-length'])==(b'data: 1\n\n', '9') and r.headers['sse-ticket']

    async def test_what_does_not_heed_its_end_holds_nobody_up(self):
        "A response that goes on though it was cancelled for its ticket: what it sends goes nowhere"
        house,late = House(),asyncio.Event()
        @house.app.get('/stubborn')
        async def stubborn():
            class Stubborn(Response):
                async def __call__(self, scope, receive, send):
                    try: await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-type', b'text/event-stream')]})
                    except asyncio.CancelledError: pass
                    await send({'type': 'http.response.body', 'body': b'late'})
                    late.set()
            return Stubborn()
        async with house.visitors() as visitor, no_task_left():
            r = await visitor.ask('/stubborn', **TICKET)
            assert (r.status, r.body, late.is_set())==(200, b'', True) and r.headers['sse-ticket']

    @pytest.mark.parametrize('value', ['0', '', 'x.1.y'])
    async def test_another_header_is_no_request_for_a_ticket(self, value):
        async with listening(House().app, **{'SSE-Ticket': value}) as c:
            await eventually(lambda: c.events, 'the stream begins')


class TestVisitors:
    async def test_no_page_carries_what_differs_by_visitor(self):
        "So that pages may be cached"
        house = House()
        @house.app.get('/home')
        def home(): return P('hello')
        @house.app.get('/fragment')
        def fragment(): return Response('<p>hello', headers={'Cache-Control': 'max-age=60'})
        async with house.visitors(2) as (ann, bob):
            for o,name in ((ann, 'ann'), (bob, 'bob')): await o.ask(f'/login?name={name}')
            pages = [await o.ask('/home') for o in (ann, bob)]
            assert pages[0].body==pages[1].body and b'data-sse-mux="/_sse/mux"' in pages[0].body
            assert not any(k.startswith('sse-') for o in pages for k in o.headers) and COOKIE not in ann.jar
            assert 'sse-visitor' not in (await ann.ask('/fragment', **HTMX)).headers

    async def test_who_logs_in_or_out_is_another(self):
        "The first response to htmx says so; what else is in the session does not"
        house = House()
        @house.app.get('/count')
        def count(sess):
            sess['visits'] = sess.get('visits', 0)+1
            return str(sess['visits'])
        async with house.visitors() as visitor:
            async def tag(path): return (await visitor.ask(path, **HTMX)).headers['sse-visitor']
            first = await visitor.opens('/events')
            before = visitor.tag
            assert [await tag('/count') for _ in range(3)]==[before]*3 and (await visitor.opens('/events')).carrier==first.carrier
            ann = await tag('/login?name=ann')
            assert ann!=before and await tag('/count')==ann
            assert (await visitor.opens('/events')).words==[dict(ticket=True)], 'a ticket of before'
            visitor.tickets.clear()
            hers = await visitor.opens('/events')
            assert hers.events and hers.carrier!=first.carrier and visitor.tag==ann
            bob = await tag('/login?name=bob')
            assert await tag('/logout')==await tag('/login?name=')==before and len({before, ann, bob})==3
            assert (await visitor.opens('/events')).words==[dict(ticket=True)]
            visitor.tickets.clear()
            assert (await visitor.opens('/events')).carrier==first.carrier

    async def test_each_user_hears_their_own(self):
        "On carriers of their own, in one browser; what was open stays what it was"
        def guard(req, sess):
            if req.url.path=='/private':
                if not sess.get('auth'): return Response('log in', 401)
                req.scope['auth'] = sess['auth']
        house = House(before=guard)
        @house.app.get('/private')
        def private(req, auth): return house.manager.stream(req, render=lambda m: f'{auth}: {m["data"]}')
        async with house.visitors() as visitor:
            await visitor.ask('/login?name=ann')
            anns = await visitor.opens('/private')
            await visitor.ask('/login?name=bob')
            visitor.tickets.clear()
            bobs = await visitor.opens('/private')  # Names the carrier that it has
            assert bobs.carrier!=anns.carrier
            await house.manager.broadcast('said', 'hello')
            await bobs.says('bob: hello')
            await anns.says('ann: hello')
            assert (anns.data, bobs.data)==(['ann: hello'], ['bob: hello'])
            await visitor.ask('/logout')
            visitor.tickets.clear()
            assert (await visitor.opens('/private')).refused

    async def test_a_carrier_is_of_no_use_to_anyone_else(self):
        "A stolen id, with another session or none, leads to a carrier of one's own; nothing opens or closes on the other"
        house = House()
        async with house.visitors(3) as (ann, bob, nobody):
            await ann.ask('/login?name=ann')
            await bob.ask('/login?name=bob')
            hers = await ann.opens('/events')
            for thief in (bob, nobody):
                mine = [1, '/events', await thief.ticket('/events'), '', '']
                r = await thief.order([mine], close=[hers.number], carriers=[hers.carrier])
                assert r.status==200 and r.headers['sse-carrier']!=hers.carrier
                assert 'sse-carrier' not in (await thief.order(close=[hers.number], carriers=[hers.carrier])).headers
                r = await thief.order([mine], carriers=[hers.carrier], become=False)
                assert r.status==409 and r.headers['sse-visitor']==thief.tag
                assert r.headers['connection']=='close', 'another connection may lead to another process'
            await house.manager.broadcast('said', 'still hers')
            await hers.says('still hers')
            assert len(hers.carrier)>=24

    async def test_an_app_may_tell_visitors_apart(self):
        house = House(setup=dict(visitor=lambda req: req.cookies.get('who')))
        async with house.visitors() as visitor:
            found = set()
            for who in ('ann', 'bob', 'ann'):
                visitor.jar['who'] = who
                visitor.tickets.clear()
                found.add(((await visitor.opens('/events')).carrier, visitor.tag))
            assert len(found)==2 and len(visitor.carriers)==2

    @pytest.mark.parametrize('others', [['board'], ['jobs'], ['board', 'jobs']], ids=' '.join)
    @pytest.mark.parametrize('later', [False, True])
    async def test_any_call_may_say_so(self, others, later):
        "Of those that set something up, before or behind; else one user would use the tickets of another"
        app,manager = FastHTML(secret_key='test'),SSEBroadcastManager()
        calls = dict(board=setup_dashboard, jobs=setup_progress)
        for o in others*later: calls[o](app, manager, authorise=True)
        setup_sse(app, manager, visitor=lambda req: req.headers['user'])
        for o in others*(not later): calls[o](app, manager, authorise=True)
        app.route('/')(lambda: P('hello'))
        tags = [(await Visitor(app).ask('/', user=o, **HTMX)).headers['sse-visitor'] for o in ('ann', 'bob', 'ann')]
        assert tags[0]==tags[2]!=tags[1]

    async def test_a_function_that_fails_harms_no_response(self, caplog):
        "No stream is opened on the common connection meanwhile; the log says why"
        def fails(req):
            if 'let-me' not in req.headers: raise LookupError('nobody knows')
            return 7
        house = House(setup=dict(visitor=fails))
        async with house.visitors() as visitor:
            assert (await visitor.ask('/page', **HTMX)).status==200
            async with Exchange(house.app, 'GET', '/by_hand') as r:
                assert r.status==200 and not {'sse-ticket', 'sse-visitor', 'set-cookie'}&{*r.headers}
            assert (await visitor.order([[1, '/by_hand', '', '', '']])).status==500 and 'nobody knows' in caplog.text
            visitor.headers['let-me'] = '1'
            assert (await visitor.opens('/by_hand')).data==['hand 0']

    async def test_the_cookie_is_for_https_alone_where_there_is_https(self):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(House().app), base_url='https://x') as client:
            assert (await client.get('/events', headers=TICKET)).headers['set-cookie'].endswith('; Secure')


class TestWhoIsLetIn:
    async def test_a_refused_stream_says_so_to_the_browser_alone(self):
        "It asks by itself, and hears what the app, or a proxy before it, says; a carrier for nothing ends"
        house = House()
        async with house.visitors(2) as (ann, stranger):
            await ann.ask('/login?name=root')
            assert (await ann.opens('/admin')).events
            assert (await stranger.opens('/admin')).words==[dict(ticket=True)] and (await stranger.ask('/admin')).status==403
            await eventually(lambda: not stranger.carriers, 'it ends')

    async def test_each_channel_is_asked_anew(self):
        "With the cookies of the request: who has logged out meanwhile gets nothing, ticket or not"
        house = House(setup=dict(visitor=lambda req: 'whoever'))
        async with house.visitors() as visitor:
            await visitor.ask('/login?name=root')
            assert (await visitor.opens('/admin')).events
            await visitor.ask('/logout')
            again = await visitor.opens('/admin')
            assert again.status==403 and not again.events

    async def test_a_session_that_expires(self):
        "It opens nothing more, and the browser is told so by an answer of its own"
        def guard(req, sess):
            if house.gate.is_set(): sess.clear()
            if req.url.path=='/admin' and not sess.get('auth'): return Response('log in', 401)
        house = House(before=guard)
        async with house.visitors() as visitor:
            await visitor.ask('/login?name=root')
            assert (await visitor.opens('/admin')).events and (await visitor.opens('/events')).events
            house.gate.set()
            late = await visitor.opens('/admin')
            assert (late.refused or late.status==401) and not late.events and (await visitor.ask('/admin')).status==401
            visitor.tickets.clear()
            assert (await visitor.opens('/events')).events

    @pytest.mark.parametrize('answer', [Response('no', 401), RedirectResponse('/login', 303)], ids=['401', 'redirect'])
    async def test_beforeware_covers_the_connection(self, answer):
        "As it covers any route; a ticket lets in where it refuses our address, of which a list of what is open to all knows nothing"
        def guard(req, sess): return None if sess.get('auth') or req.url.path in ('/events', '/login') else answer
        house = House(before=guard)
        async with house.visitors() as visitor:
            assert (await visitor.order([[1, '/by_hand', '', '', '']])).status in (401, 403)
            assert (await visitor.opens('/events')).events and await visitor.ticket('/by_hand')==''
            assert (await visitor.order([[9, '/by_hand', '', '', '']])).status in (401, 403)
            await visitor.ask('/login?name=ann')
            visitor.tickets.clear()
            assert (await visitor.opens('/by_hand')).data==['hand 0']

    async def test_a_middleware_that_refuses_is_heeded(self):
        "Who may not see the app at all gets no carrier either"
        class Closed:
            def __init__(self, app): self.app = app
            async def __call__(self, scope, receive, send):
                if scope['type']!='http' or b'let-me-in' in dict(scope['headers']):
                    return await self.app(scope, receive, send)
                await Response('closed for today', 401)(scope, receive, send)
        house = House([Middleware(Closed)])
        async with house.visitors() as visitor:
            ticket = await visitor.ticket('/events')
            assert ticket=='' and (await visitor.order([[1, '/events', ticket, '', '']])).status==401
            visitor.headers['let-me-in'] = '1'
            assert (await visitor.opens('/events')).events

    async def test_who_is_let_in_nowhere_keeps_no_carrier(self):
        "It ends behind the last refusal; one stream that was let in keeps it for good"
        house = House()
        async with house.visitors() as visitor:
            await visitor.opens('/page')
            await eventually(lambda: not visitor.carriers, 'the carrier ends')
            good = await visitor.opens('/events')
            await visitor.close(good)
            for _ in range(2): assert (await visitor.opens('/page')).carrier==good.carrier

    async def test_a_full_house(self):
        "A channel is told what a connection is told: come back later"
        house = House(manager=SSEBroadcastManager(max_connections=1))
        async with house.visitors() as visitor:
            assert (await visitor.opens('/events')).events
            full = await visitor.opens('/events')
            assert full.status==503 and int(full.told('retry')) and not full.events


class TestMountedApps:
    def apps(self, outer_has, inner_has):
        "An app in another one, each of which may have the client; sessions of their own"
        outer = FastHTML(secret_key='test', default_hdrs=False)
        inner = FastHTML(secret_key='test', default_hdrs=False, session_cookie='inner_')
        for app,has in ((outer, outer_has), (inner, inner_has)):
            if has: insert_htmx_sse_ext(app.hdrs)
            @app.get('/events')
            def events():
                async def frames():
                    yield 'data: here\n\n'
                    await asyncio.sleep(BOUND)  # A stream that stays open
                return EventStream(frames())
            @app.get('/login')
            def login(name: str, sess): sess['auth'] = name
            @app.get('/home')
            def home(): return P('hello')
        outer.mount('/sub', inner)
        return outer

    @pytest.mark.parametrize('inner', [False, True])
    async def test_the_outermost_serves_all(self, inner):
        async with Visitor(self.apps(True, inner)) as visitor:
            one,two = await visitor.opens('/events'),await visitor.opens('/sub/events')
            assert one.carrier==two.carrier and one.data==two.data==['here']
            page = (await visitor.ask('/sub/home')).body
            assert (b'data-sse-mux="/_sse/mux"' in page and b'src="/_sse/client-' in page)==inner
            assert (await visitor.ask(f'/sub{MUX}', 'POST')).status in (404, 405)
            # Starlette keeps the inner session in the outer one's cookie, too
            for login in ('/login?name=ann', '/sub/login?name=bob'):
                await visitor.ask(login)
                assert (await visitor.opens('/sub/events')).words==[dict(ticket=True)]
                visitor.tickets.clear()
                new = await visitor.opens('/sub/events')
                assert new.data==['here'] and new.carrier!=one.carrier

    async def test_an_inner_one_serves_itself_where_the_outer_has_no_client(self):
        async with Visitor(self.apps(False, True), mux=f'/sub{MUX}') as visitor:
            assert await visitor.ticket('/events')=='' and (await visitor.ask(MUX, 'POST')).status==404
            async with Exchange(visitor.app, 'GET', '/sub/events') as r: assert 'Path=/sub;' in r.cookies[0]
            channel = await visitor.opens('/sub/events')
            assert channel.data==['here']
            page = (await visitor.ask('/sub/home')).body
            assert b'data-sse-mux="/sub/_sse/mux"' in page and b'src="/sub/_sse/client-' in page


class TestDirect:
    REASONS = 'asked', 'off', 'step', 'limit', 'flood', 'encoded', 'no ticket', 'ticket refused'

    async def test_openings_are_counted_by_reason(self):
        "What no client of ours says is `other`, and who says nothing is `other client`"
        house = House()
        for reason in [*self.REASONS, 'flood', 'Flood', '', 'x'*5000, None]:
            async with listening(house.app, **({} if reason is None else {'SSE-Direct': reason})): pass
        assert house.manager.stats()['direct']=={**dict.fromkeys(self.REASONS, 1), 'flood': 2, 'other': 3,
                                                 'other client': 1}
        house.manager.stats()['direct'].clear()
        assert house.manager.stats()['direct']['flood']==2, 'what `stats` gives is a copy'

    async def test_channels_and_who_was_not_let_in_are_not(self):
        house = House(manager=SSEBroadcastManager(max_connections=2))
        async with house.visitors() as visitor, listening(house.app):
            await visitor.opens('/events')
            async with listening(house.app, **{'SSE-Direct': 'flood'}) as c: assert c.status==503
        assert house.manager.stats()['direct']=={'other client': 1}

    async def test_no_cache_keeps_a_ticket(self):
        "Whatever the app says of its stream, or if it says nothing"
        house = House()
        @house.app.get('/plain')
        def plain(): return StreamingResponse(iter(['data: 1\n\n']), media_type='text/event-stream')
        async with Exchange(house.app, 'GET', '/plain') as r:
            assert r.headers['cache-control']=='no-store' and r.headers['sse-ticket']

    async def test_what_is_encoded_goes_direct(self):
        "Its channel is over at once, also where the stream never waits"
        house = House([Middleware(GZipMiddleware, minimum_size=1)])
        @house.app.get('/encoded')
        def encoded():
            async def frames():
                while True:
                    yield b'gone'
                    await asyncio.sleep(0)
            return StreamingResponse(frames(), media_type='text/event-stream',
                                     headers={'Content-Encoding': 'x', 'Cache-Control': 'no-cache'})
        async with house.visitors() as visitor:
            async with Exchange(house.app, 'GET', '/encoded') as r:
                assert r.headers['sse-ticket'] and r.headers['cache-control']=='no-cache'
            assert (await visitor.opens('/encoded')).words==[dict(direct='encoded')]
            assert (await visitor.ask('/nowhere')).status==404

    async def test_an_app_whose_streams_are_all_direct(self):
        house = House(setup=dict(multiplex=False))
        async with house.visitors() as visitor:
            assert (await visitor.order()).status in (404, 405)
            async with listening(house.app) as c: await eventually(lambda: c.events, 'the stream begins')
