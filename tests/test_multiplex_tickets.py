"Tickets on real servers: who gets one, what it opens, and for whom"
import asyncio
import time
from contextlib import asynccontextmanager

import httpx
import pytest
from fasthtml.common import EventStream, FastHTML, Middleware, P, RedirectResponse, Response
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import StreamingResponse

from cjm_fasthtml_sse import visitor
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, setup_sse
from cjm_fasthtml_sse.multiplex import PATH
from cjm_fasthtml_sse.visitor import COOKIE, TICKET_AGE, Visitors
from tests.mux import Browser
from tests.support import BOUND, eventually, serve
from tests.test_multiplex_safety import Guarded


@asynccontextmanager
async def browsers(app, n=1, **kw):
    "Browsers that get their tickets as the client does"
    async with serve(app) as port:
        all = [Browser(f'http://127.0.0.1:{port}', secret=None, **kw) for _ in range(n)]
        try: yield all[0] if n==1 else all
        finally:
            for o in all: await o.__aexit__()


async def opens(browser, url, **kw):
    channel = await browser.open(url, **kw)
    await channel.until(lambda o: o.events or o.refused or o.status not in (None, 200))
    return channel


async def test_a_ticket_comes_with_the_first_response():
    "And the browser's cookie with it, once; then all goes by the carrier"
    site = Guarded()
    async with browsers(site.app) as browser:
        r = await browser.client.get('/events', headers={'SSE-Ticket': '1'})
        assert r.headers['content-type'].startswith('text/event-stream') and not r.content and not site.manager.connection_count
        cookie = r.headers['set-cookie']
        assert cookie.startswith(f'{COOKIE}=') and 'HttpOnly; SameSite=Lax; Path=/; Max-Age=31536000' in cookie and 'Secure' not in cookie
        r = await browser.client.get('/events', headers={'SSE-Ticket': '1'})
        assert 'set-cookie' not in r.headers
        one,two = await opens(browser, '/events'),await opens(browser, '/by_hand?n=7')
        assert one.carrier==two.carrier and two.data==['hand 7'] and browser.last.headers['sse-visitor']==r.headers['sse-visitor']
        assert await opens(browser, '/by_hand?n=8'), 'the query is the same path'
        assert [*browser.tickets]==['/events', '/by_hand']


async def test_no_page_carries_what_differs_by_visitor():
    site = Guarded()
    @site.app.get('/home')
    def home(): return P('hello')
    async with browsers(site.app, 2) as (ann, bob):
        for o,name in ((ann, 'ann'), (bob, 'bob')): await o.client.get(f'/login?name={name}')
        pages = [await o.client.get('/home') for o in (ann, bob)]
        assert pages[0].text==pages[1].text and 'data-sse-mux="/_sse/mux"' in pages[0].text
        assert not any(k.startswith('sse-') for o in pages for k in o.headers) and COOKIE not in ann.client.cookies


async def test_a_copied_address_opens_nothing():
    "Nor is the app asked; the browser asks by itself, and hears what the app, or a proxy before it, says"
    site = Guarded()
    async with browsers(site.app, 2) as (ann, stranger):
        await ann.client.get('/login?name=root')
        assert (await opens(ann, '/admin/events')).events
        refused = await opens(stranger, '/admin/events')
        assert refused.words==[dict(ticket=True)] and (await stranger.client.get('/admin/events')).status_code==403
        await eventually(lambda: len(site.mux.carriers)==1, 'a carrier for nothing ends')


async def test_a_copied_ticket_is_of_no_use():
    "To another user, to nobody, nor for another path"
    site = Guarded()
    async with browsers(site.app, 3) as (ann, bob, nobody):
        for o,name in ((ann, 'ann'), (bob, 'bob')): await o.client.get(f'/login?name={name}')
        ticket,before = await ann.ticket('/seen'),len(site.seen)
        for thief in (bob, nobody):
            thief.tickets['/seen'] = ticket
            assert (await opens(thief, '/seen')).words==[dict(ticket=True)]
        ann.tickets['/by_hand'] = ticket
        assert (await opens(ann, '/by_hand')).words==[dict(ticket=True)]
        assert len(site.seen)==before and (await opens(ann, '/seen')).events


async def test_no_other_text_passes_for_a_ticket(monkeypatch, caplog):
    site = Guarded()
    async with browsers(site.app) as browser:
        good,before = await browser.ticket('/seen'),len(site.seen)
        key,until,mac = good.split('.')
        longer = f'{key}.{int(until)+1}.{mac}'
        other = Visitors('another').tickets.issue(browser.tag, '/seen')
        for wrong in ('', 'x', '..', 'é', '\ud800', 'x'*100_000, 7, None, [good], {'a': good}, True, good+'\n', ' '+good, good.upper(), good.replace('.', '．'), longer, f'{key}.{until}.{"0"*32}', good[:-1], other, other):
            browser.tickets['/seen'] = wrong
            assert (await opens(browser, '/seen')).words==[dict(ticket=True)], wrong
        assert len(site.seen)==before
        assert [r.getMessage() for r in caplog.records if r.name==visitor.__name__]==['A ticket was made with another secret_key: do all workers have the same one?'], 'once'
        browser.tickets['/seen'] = good
        assert (await opens(browser, '/seen')).events
        now = time.time()
        monkeypatch.setattr(visitor.time, 'time', lambda: now+TICKET_AGE+1)
        assert (await opens(browser, '/seen')).words==[dict(ticket=True)], 'a day later'


async def test_who_logs_in_or_out_is_another_visitor():
    "The first response to htmx says so; what else is in the session does not"
    site = Guarded()
    @site.app.get('/count')
    def count(sess):
        sess['visits'] = sess.get('visits', 0)+1
        return str(sess['visits'])
    async with browsers(site.app) as browser:
        async def tag(path): return (await browser.client.get(path, headers={'HX-Request': 'true'})).headers['sse-visitor']
        first = await opens(browser, '/seen')
        before = browser.tag
        assert [await tag('/count') for _ in range(3)]==[before]*3 and (await opens(browser, '/seen')).carrier==first.carrier
        ann = await tag('/login?name=ann')
        assert ann!=before and await tag('/count')==ann
        assert (await opens(browser, '/seen')).words==[dict(ticket=True)], 'a ticket of before'
        browser.tickets.clear()
        hers = await opens(browser, '/seen')
        assert hers.events and hers.carrier!=first.carrier and browser.tag==ann
        bob = await tag('/login?name=bob')
        assert await tag('/logout')==before and len({before, ann, bob})==3
        assert (await opens(browser, '/seen')).words==[dict(ticket=True)]
        browser.tickets.clear()
        assert (await opens(browser, '/seen')).carrier==first.carrier


async def test_a_visitor_function_that_fails_harms_no_response(caplog):
    site = Guarded()
    def fails(req):
        if 'let-me' not in req.headers: raise LookupError('nobody knows')
        return 7
    setup_sse(site.app, visitor=fails)
    async with browsers(site.app) as browser:
        assert (await browser.client.get('/page', headers={'HX-Request': 'true'})).status_code==200
        async with browser.client.stream('GET', '/by_hand') as r:
            assert r.status_code==200 and not any(k in r.headers for k in ('sse-ticket', 'sse-visitor', 'set-cookie'))
        assert (await browser.post([[1, '/by_hand', '', '', '']])).status_code==500 and not site.mux.carriers
        assert 'nobody knows' in caplog.text
        browser.client.headers['let-me'] = '1'
        assert (await opens(browser, '/by_hand')).data==['hand 0']


@pytest.mark.parametrize('answer', [Response('no', 401), RedirectResponse('/login', 303)], ids=['401', 'redirect'])
async def test_a_ticket_lets_in_where_beforeware_refuses(answer):
    "A Beforeware with a list of what is open to all knows nothing of our address"
    def guard(req, sess): return None if sess.get('auth') or req.url.path in ('/seen', '/login') else answer
    site = Guarded(before=guard)
    async with browsers(site.app) as browser:
        assert (await browser.post([[1, '/seen', '', '', '']])).status_code in (401, 403) and not site.seen
        assert (await opens(browser, '/seen')).events
        assert await browser.ticket('/by_hand')==''
        assert (await browser.post([[9, '/by_hand', '', '', '']])).status_code in (401, 403)


async def test_a_beforeware_that_writes_to_the_session_each_time():
    "Each answer sets a cookie. The channel goes on, one request brings the cookie, and the visitor is the same"
    def note(sess): sess['seen'] = sess.get('seen', 0)+1
    site = Guarded(before=note)
    async with browsers(site.app) as browser:
        channel = await opens(browser, '/events')
        assert [*channel.words[-1]]==['cookie'] and channel.events
        await site.manager.broadcast('said', 'hello')
        await channel.says('hello')
        again = await opens(browser, '/seen')
        assert again.carrier==channel.carrier and 'session_' in browser.client.cookies
        r = await browser.client.get('/events', headers={'SSE-Ticket': '1'})
        assert 'session_=' in r.headers['set-cookie'] and site.manager.connection_count==2


async def test_two_visitors_in_one_browser_of_an_app_with_names_of_its_own():
    site = Guarded()
    setup_sse(site.app, visitor=lambda req: req.cookies.get('who'))
    async with browsers(site.app) as browser:
        tags = set()
        for who in ('ann', 'bob', 'ann'):
            browser.client.cookies.set('who', who)
            browser.tickets.clear()
            tags.add(((await opens(browser, '/seen')).carrier, browser.tag))
        assert len(tags)==2 and len(browser.carriers)==2


def mounted(outer_has, inner_has, **kw):
    "An app in another one, each of which may have the client; sessions of their own"
    outer,inner = FastHTML(secret_key='test', default_hdrs=False),FastHTML(secret_key='test', default_hdrs=False, session_cookie='inner_', **kw)
    for app,has in ((outer, outer_has), (inner, inner_has)):
        if has: insert_htmx_sse_ext(app.hdrs)
        @app.get('/events')
        def events():
            async def frames():
                yield 'data: here\n\n'
                await asyncio.sleep(BOUND)
            return EventStream(frames())
        @app.get('/login')
        def login(name: str, sess): sess['auth'] = name
        @app.get('/home')
        def home(): return P('hello')
    outer.mount('/sub', inner)
    return outer


@pytest.mark.parametrize('inner', [False, True])
async def test_the_outermost_app_serves_all(inner):
    async with browsers(mounted(True, inner)) as browser:
        one,two = await opens(browser, '/events'),await opens(browser, '/sub/events')
        assert one.carrier==two.carrier and one.data==two.data==['here']
        page = (await browser.client.get('/sub/home')).text
        assert ('data-sse-mux="/_sse/mux"' in page and 'src="/_sse/client-' in page)==inner
        assert (await browser.post(path=f'/sub{PATH}')).status_code in (404, 405)
        for login in ('/login?name=ann', '/sub/login?name=bob'):  # Starlette keeps the inner session in the outer one's cookie, too
            await browser.client.get(login)
            assert (await opens(browser, '/sub/events')).words==[dict(ticket=True)]
            browser.tickets.clear()
            new = await opens(browser, '/sub/events')
            assert new.data==['here'] and new.carrier!=one.carrier


async def test_an_inner_app_serves_itself_where_the_outer_has_no_client():
    async with browsers(mounted(False, True)) as browser:
        assert await browser.ticket('/events')=='' and (await browser.client.post(PATH)).status_code==404
        channel = await opens(browser, '/sub/events', path=f'/sub{PATH}')
        assert channel.data==['here'] and [o.path for o in browser.client.cookies.jar]==['/sub']
        page = (await browser.client.get('/sub/home')).text
        assert 'data-sse-mux="/sub/_sse/mux"' in page and 'src="/sub/_sse/client-' in page


async def test_streams_are_greeted_and_ticketed_whatever_is_around_them():
    "A first byte at once; encoded or not; a HEAD, a POST and a page get nothing"
    site = Guarded([Middleware(GZipMiddleware, minimum_size=1)])
    @site.app.get('/quiet')
    def quiet():
        async def frames():
            await site.gate.wait()
            yield 'data: now\n\n'
        return EventStream(frames())
    @site.app.get('/encoded')
    def encoded():
        async def frames(): yield b'gone'
        return StreamingResponse(frames(), media_type='text/event-stream', headers={'Content-Encoding': 'x', 'Cache-Control': 'no-cache'})
    @site.app.post('/posted')
    def posted(): return EventStream(iter(['data: 1\n\n']))
    async with browsers(site.app) as browser:
        async with browser.client.stream('GET', '/quiet') as r:
            parts = r.aiter_raw()
            assert await asyncio.wait_for(anext(parts), BOUND)==b':\n\n' and r.headers['sse-ticket']
            site.gate.set()
            assert await anext(parts)==b'data: now\n\n'
        async with browser.client.stream('GET', '/encoded') as r:
            assert b''.join([o async for o in r.aiter_raw()])==b'gone' and r.headers['sse-ticket'] and r.headers['cache-control']=='no-cache'
        channel = await browser.open('/encoded')
        await channel.until(lambda o: o.words)
        assert channel.words==[dict(direct='encoded')]
        r = await browser.client.post('/posted')
        assert 'sse-ticket' not in r.headers and r.text.endswith('data: 1\n\n')
        assert 'sse-ticket' not in (await browser.client.head('/events')).headers


async def test_a_response_that_a_cache_may_keep_says_nothing_of_who_asks():
    site = Guarded()
    @site.app.get('/fragment')
    def fragment(): return Response('<p>hello', headers={'Cache-Control': 'max-age=60'})
    async with browsers(site.app) as browser:
        await browser.client.get('/login?name=ann')
        assert 'sse-visitor' not in (await browser.client.get('/fragment', headers={'HX-Request': 'true'})).headers


async def test_the_cookie_is_for_https_alone_where_there_is_https():
    app = FastHTML(secret_key='test', default_hdrs=False)
    setup_sse(app, manager := SSEBroadcastManager())
    app.get('/events')(lambda req: manager.stream(req))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url='https://x') as client:
        assert (await client.get('/events', headers={'SSE-Ticket': '1'})).headers['set-cookie'].endswith('; Secure')


async def test_an_app_whose_streams_are_all_direct():
    site = Guarded()
    setup_sse(site.app, multiplex=False)
    async with browsers(site.app) as browser:
        assert (await browser.post()).status_code in (404, 405)
