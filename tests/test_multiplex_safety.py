"What could go wrong with the multiplexer, and what stands against it; the table at the end of nbs/multiplex.ipynb names these tests"
import asyncio
import json
import re
import socket
import time
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from fasthtml.common import Beforeware, EventStream, FileResponse, Middleware, RedirectResponse, Response
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from cjm_fasthtml_sse import multiplex
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.multiplex import BODY, CHANNELS, PATH
from cjm_fasthtml_sse.visitor import COOKIE
from tests.mux import Browser, Channel
from tests.support import eventually, serve
from tests.test_multiplex import Site

HERE = Path(__file__).parent
KNOWN = f'{COOKIE}={"k"*24}'  # A browser that has been here before


class Guarded(Site):
    "A site with things that no stranger should get at"
    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        app = self.app
        @app.get('/login')
        def login(name: str, sess):
            sess['auth'] = name
            return name
        @app.get('/logout')
        def logout(sess):
            sess.clear()
            return 'bye'
        @app.get('/admin/events')
        def admin(req, sess):
            if sess.get('auth')!='root': return Response('no', 403)
            return self.manager.stream(req)
        @app.post('/post_only')
        def post_only(): self.notes.append('posted')
        @app.get('/page')
        def page(): return '<p>secret page'
        @app.get('/file')
        def file(): return FileResponse(__file__)
        @app.get('/delete')
        def delete():
            self.notes.append('deleted')
            return 'deleted'
        @app.get('/seen')
        def seen(req):
            self.seen.append(dict(req.headers) | dict(method=req.method, client=req.client.host, scheme=req.url.scheme))
            return self.manager.stream(req)


def raw(port, data, secs=5):
    "What a server answers to these very bytes"
    with socket.create_connection(('127.0.0.1', port), secs) as s:
        s.sendall(data)
        got = b''
        try:
            while b'\r\n\r\n' not in got and (more := s.recv(65536)): got += more
        except TimeoutError: pass
        return got


async def off_loop(f, *args): return await asyncio.get_running_loop().run_in_executor(None, f, *args)


@asynccontextmanager
async def refuses(site, **kw):
    "A browser of a site at which, by the end, no stream was opened and no carrier begun"
    async with site.up(**kw) as browser:
        yield browser
        assert not site.mux.carriers and not site.seen and not site.manager.connection_count


@pytest.mark.parametrize('method', ['GET', 'HEAD', 'PUT', 'DELETE', 'OPTIONS', 'PATCH'])
async def test_only_a_post_is_looked_at(method):
    async with refuses(Guarded()) as browser:
        r = await browser.client.request(method, PATH, headers=browser.headers | {'Access-Control-Request-Method': 'POST', 'Access-Control-Request-Headers': 'sse-mux'})
        assert r.status_code==405 and not [k for k in r.headers if k.startswith('access-control')], 'a preflight of another site is refused'


FOREIGN = [dict(Content_Type=o) for o in ('text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data', 'application/json; charset=utf-8', '')] + \
    [dict(SSE_Mux=o) for o in ('', '0', 'true')] + [dict(Sec_Fetch_Site=o) for o in ('cross-site', 'same-site', 'none', '')] + \
    [dict(Origin=o, Sec_Fetch_Site=None) for o in ('http://evil.example', 'null', '', 'http://127.0.0.1', 'http://127.0.0.1:1', 'http://[', 'http://127.0.0.1:{port}@evil.example', 'http://evil.example/127.0.0.1:{port}',
        'http://evil.example#@127.0.0.1:{port}', 'http://127.0.0.1:{port}.evil.example', 'file://127.0.0.1:{port}', '127.0.0.1:{port}')]
@pytest.mark.parametrize('wrong', FOREIGN, ids=str)
async def test_only_a_script_of_this_origin_can_ask(wrong):
    async with refuses(Guarded()) as browser:
        port = str(browser.client.base_url.port)
        for k in [k for k,v in wrong.items() if v is None]: del browser.headers[k.replace('_', '-')]
        r = await browser.post([await browser.entry('/events')], **{k: v.replace('{port}', port) for k,v in wrong.items() if v is not None})
        assert r.status_code==(426 if wrong.get('SSE_Mux') else 415 if 'SSE_Mux' in wrong or 'Content_Type' in wrong else 403)


async def test_what_a_browser_says_of_its_site_suffices():
    "nginx hands on another Host than the browser says, unless it is told to; a browser that says nothing is asked for its Origin"
    site = Guarded()
    async with site.up() as browser:
        channel = await browser.open('/events', Host='127.0.0.1')
        await channel.until(lambda o: o.events)
        await browser.close(channel)
        del browser.headers['Sec-Fetch-Site']
        assert (await browser.post([await browser.entry('/events')], Host='127.0.0.1')).status_code==403
        channel = await browser.open('/events')
        await channel.until(lambda o: o.events)


@pytest.mark.parametrize('name', ['Origin', 'SSE-Mux', 'Content-Type'])
async def test_a_header_that_is_not_there_is_a_wrong_one(name):
    async with refuses(Guarded()) as browser:
        if name=='Origin': del browser.headers['Sec-Fetch-Site']
        del browser.headers[name]
        assert (await browser.post([await browser.entry('/events')])).status_code in (403, 415)


BODIES = ['', 'x', '[]', '{}', 'null', '1', '"x"', '[' * 100_000, '{"a":' * 50_000, '1'*10_000, '\ud800', b'\xff\xfe\x00', '{"carriers":[],"open":[],"close":[]}',
    *(json.dumps(dict(carriers=[], open=[], close=[], become=True) | o) for o in (dict(more=1), dict(carriers={}), dict(carriers=[1]), dict(carriers=[None]), dict(open=[1]), dict(open=[[1, '/events']]),
    dict(open=[['1', '/events', '']]), dict(open=[[0, '/events', '']]), dict(open=[[-1, '/events', '']]), dict(open=[[True, '/events', '']]), dict(open=[[2**31, '/events', '']]), dict(open=[[1.5, '/events', '']]),
    dict(close=[None]), dict(close=['1']), dict(close=7)))]
@pytest.mark.parametrize('body', range(len(BODIES)))
async def test_a_body_that_is_no_order_is_refused(body, caplog):
    async with refuses(Guarded()) as browser:
        sent = BODIES[body] if isinstance(BODIES[body], bytes) else BODIES[body].encode('utf-8', 'surrogatepass')
        assert (await browser.post(raw=sent)).status_code==400
    assert not caplog.records, caplog.text


async def test_a_body_has_a_bound_in_bytes_in_channels_and_in_seconds(monkeypatch):
    monkeypatch.setattr(multiplex, 'GRACE', .3)
    site = Guarded()
    async with refuses(site) as browser:
        assert (await browser.post(raw='['+' '*2*BODY+']')).status_code==413
        assert (await browser.post([[n, '/events', '', '', ''] for n in range(1, CHANNELS+2)])).status_code==413
        host = f'127.0.0.1:{browser.client.base_url.port}'
        head = f'POST {PATH} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nSSE-Mux: 2\r\nContent-Type: application/json\r\n'.encode()
        start = time.monotonic()
        got = await off_loop(raw, browser.client.base_url.port, head+b'Content-Length: 1000\r\n\r\n{"carr')
        assert b' 408 ' in got.split(b'\r\n')[0] and time.monotonic()-start<4
        assert b' 413 ' in await off_loop(raw, browser.client.base_url.port, head+b'Transfer-Encoding: chunked\r\n\r\n'+b''.join(b'1000\r\n'+b'x'*4096+b'\r\n' for _ in range(300)))


HOSTILE = ['//evil.example/events', '///events', 'http://evil.example/events', 'https://127.0.0.1/events', 'events', '', ' /events', '/../events', '/x/../events', '/%2e%2e/events', '/x/%2E%2e/events', '/x/.%2e/events',
    '/./events', '/%2e/events', '/x/..%2fevents', '/x/..%5cevents', '/x\\..\\events', '\\\\evil.example\\events', '/\\evil.example', '/events\r\nCookie: a=b', '/events\nX: y', '/events\0', '/events%00', '/ev ents', '/events#x',
    '/évents', '/\ud800', '/%ff', '/x'*3000, None, 7, ['/events'], {'path': '/events'}, True]
async def test_no_spelling_of_an_address_leads_astray(caplog):
    site = Guarded()
    async with site.up() as browser:
        await browser.whoami()
        for url in HOSTILE:
            browser.number += 1
            channel = browser.channels[browser.number] = Channel(browser.number, str(url)[:50].encode('ascii', 'replace').decode())
            await browser.post([[channel.number, url, await browser.ticket(url), '', '']])
            await channel.until(lambda o: o.words)
            assert channel.words==[dict(ticket=True)], 'it is none of ours: the browser may ask for itself'
        assert not site.seen and not site.manager.connection_count
    assert not caplog.records, caplog.text


async def test_an_id_cannot_forge_a_header_nor_break_anything(caplog):
    site = Guarded()
    async with site.up() as browser:
        for last in ['a\r\nCookie: session_=x', 'a\nb', '\0', '\ud800', 'x'*5000, None, 7, [], {}]:
            channel = await browser.open('/seen', last=last)
            await channel.until(lambda o: o.words)
            assert channel.words==[dict(direct='limit')]
        assert not site.seen
        fine = await browser.open('/seen', last='é, "x" \t')
        await fine.until(lambda o: o.events)
    assert not caplog.records, caplog.text


async def test_a_channel_cannot_open_a_multiplexer():
    site = Guarded()
    async with site.up() as browser:
        for url in (PATH, PATH+'/', PATH+'?x=1', '/_sse%2Fmux', '/_SSE/mux'):
            channel = await browser.open(url)
            await channel.until(lambda o: o.words)
            assert channel.status==(307 if url==PATH+'/' else 404), 'a slash too many redirects, as on any route'
        await eventually(lambda: not site.mux.carriers, 'who opens nothing else keeps no carrier')


async def test_what_is_no_stream_does_not_come_through():
    site = Guarded()
    async with site.up() as browser:
        page,file,post = await browser.open('/page', '/file', '/post_only')
        for o in (page, file, post): await o.until(lambda o: o.words)
        assert (page.status, file.status, post.status)==(200, 200, 405) and not any(o.body for o in (page, file, post)) and not site.notes


async def test_a_get_with_side_effects_is_not_called():
    "What was never served as a stream has no ticket, whoever asks, however the address is spelled"
    site = Guarded()
    async with site.up() as browser, Browser(str(browser.client.base_url), secret=None) as other:
        assert (await browser.post([await browser.entry('/delete')], Sec_Fetch_Site='cross-site')).status_code==403
        await other.ticket('/events')
        ticket = other.tickets['/events']
        for n,url in enumerate(['/delete', '/events/../delete', '/delete?x=/events', '/events%2F..%2Fdelete', '//delete', '/x/..%2Fdelete'], 1):
            channel = other.channels[n] = Channel(n, url)
            await other.post([[n, url, ticket, '', '']])
            await channel.until(lambda o: o.words)
            assert channel.words==[dict(ticket=True)]
        assert not site.notes
        assert await other.ticket('/page')=='', 'no stream, no ticket'


async def test_a_channel_brings_what_the_browser_brings_and_no_more():
    "Cookies are those of the request, checked anew for each channel; a channel can't add or change a header"
    site = Guarded()
    async with site.up() as browser:
        no = await browser.open('/admin/events')
        await no.until(lambda o: o.words)
        assert no.status==403 and not no.body
        await browser.client.get('/login?name=root')
        yes = await browser.open('/admin/events')
        await yes.until(lambda o: o.events)
        await browser.client.get('/logout')
        again = await browser.open('/admin/events')
        await again.until(lambda o: o.words)
        assert again.status==403 and not again.body


async def test_a_carrier_is_of_no_use_to_anyone_else():
    "A stolen id, with another session or none, leads to a carrier of one's own; nothing opens or closes on the other"
    site = Guarded()
    async with site.up() as ann, Browser(str(ann.client.base_url)) as bob, Browser(str(ann.client.base_url)) as nobody:
        await ann.client.get('/login?name=ann')
        await bob.client.get('/login?name=bob')
        hers = await ann.open('/events')
        await hers.until(lambda o: o.events)
        for thief in (bob, nobody):
            await thief.whoami()
            r = await thief.post([await thief.entry('/events', hers.number+1)], close=[hers.number], carriers=[hers.carrier])
            assert r.status_code==200 and r.headers['sse-carrier']!=hers.carrier
            assert (await thief.post(close=[hers.number], carriers=[hers.carrier])).headers.get('sse-carrier') is None
            assert (await thief.post([await thief.entry('/events', 9)], carriers=[hers.carrier], become=False)).status_code==409
        assert [*site.mux.carriers[hers.carrier].channels]==[hers.number] and not hers.ended
        assert len({*site.mux.carriers})==3 and all(len(o)>=24 for o in site.mux.carriers)


async def test_numbers_have_a_bound(monkeypatch):
    "Channels of a carrier, carriers of a user, carriers in all"
    for name,n in dict(CHANNELS=3, EACH=2, CARRIERS=4).items(): monkeypatch.setattr(multiplex, name, n)
    site = Guarded()
    async with site.up() as ann, Browser(str(ann.client.base_url)) as bob, Browser(str(ann.client.base_url)) as nobody:
        for who,name in ((ann, 'ann'), (bob, 'bob')): await who.client.get(f'/login?name={name}')
        channels = await ann.open(*['/events']*3)
        for o in channels: await o.until(lambda o: o.events)
        over = await ann.open('/events', become=False)
        await over.until(lambda o: o.direct)
        over = await ann.open('/events')
        await over.until(lambda o: o.events)
        assert over.carrier!=channels[0].carrier, 'beside a full one is another'
        over = await ann.open(*['/events']*3)
        await over[2].until(lambda o: o.direct)
        assert not over[0].direct, 'what fits is open'
        for _ in range(3): r = await ann.post([await ann.entry('/events', 9)], carriers=[])
        assert r.status_code==503 and int(r.headers['retry-after']) and len(site.mux.carriers)==2, 'of one user'
        await nobody.whoami()
        for _ in range(3): r = await nobody.post([await nobody.entry('/events', 9)], carriers=[])
        assert r.status_code==503 and len(site.mux.carriers)==4, 'in all'
        assert (await bob.post([await bob.entry('/events', 9)])).status_code==503


async def test_an_order_leaves_the_server_to_others():
    "At most as many requests of a carrier are without an answer as a browser has connections; the others wait, in their order"
    site,under_way,most,begun = Guarded(),0,0,[]
    @site.app.get('/slow')
    async def slow(n: int):
        nonlocal under_way,most
        begun.append(n)
        under_way += 1
        most = max(most, under_way)
        await site.gate.wait()
        await asyncio.sleep(.001)
        under_way -= 1
        return 'no stream'
    async with site.up() as browser:
        channels = await browser.open(*[f'/slow?n={n}' for n in range(60)], *['//nowhere']*100, *[f'/slow?n={n}' for n in range(60, 100)])
        await eventually(lambda: len(begun)==multiplex.UNANSWERED, 'the first ones')
        assert (await browser.client.get('/page')).status_code==200
        await browser.close(*channels[50:60])
        site.gate.set()
        for o in channels[:50]+channels[60:]: await o.until(lambda o: o.refused or o.status==200)
        assert most==multiplex.UNANSWERED
        assert begun==[*range(50), *range(60, 100)], 'what is closed while it waits never begins'


async def test_streams_without_a_first_word_hold_up_no_others():
    "Some middleware keeps the beginning of a response until there is a body; a stream that waits to hear that the browser has gone is under way"
    site = Guarded([Middleware(GZipMiddleware)])
    @site.app.get('/quiet')
    def quiet():
        async def frames():
            await site.gate.wait()
            yield 'data: now\n\n'
        return EventStream(frames())
    async with site.up() as browser:
        channels = await browser.open(*['/quiet']*2*multiplex.UNANSWERED, '/events')
        await channels[-1].until(lambda o: o.events)
        site.gate.set()
        for o in channels[:-1]: await o.says('now')


async def test_a_closed_request_without_an_answer_counts():
    "Who closes and opens again has no more requests under way than before"
    site,begun = Guarded(),[]
    @site.app.get('/slow')
    async def slow(n: int):
        begun.append(n)
        await site.gate.wait()
        return 'no stream'
    async with site.up() as browser:
        for i in range(5):
            channels = await browser.open(*[f'/slow?n={i}']*multiplex.UNANSWERED)
            await eventually(lambda: len(begun)>=multiplex.UNANSWERED, 'they begin')
            await browser.close(*channels)
        assert len(begun)==multiplex.UNANSWERED
        last = await browser.open('/slow?n=9')
        site.gate.set()
        await last.until(lambda o: o.status==200)
        assert begun[multiplex.UNANSWERED:]==[9]


async def test_what_waits_for_a_browser_has_a_bound(monkeypatch):
    "In bytes, for all channels of a carrier together, replays included; who reads on gets all of it"
    monkeypatch.setattr(multiplex, 'BUDGET', 1<<20)
    site,count = Guarded(manager=SSEBroadcastManager(heartbeat=0, retry=200)),60
    async with site.up() as browser:
        await site.manager.broadcast('said', 'first')
        first = site.manager.cursor
        for i in range(100): await site.manager.broadcast('said', f'{i} {"x"*2000}')
        async with Browser(str(browser.client.base_url), rcvbuf=65536) as slow:
            slow.reads.clear()
            channels = await slow.open(*['/events']*count, last=first)
            carrier, = site.mux.carriers.values()
            def waiting(): return sum(o._size for o in {*carrier.channels.values(), *carrier._called})
            def blocked(): return sum(o.connection is not None and o.connection.busy for o in carrier.channels.values())
            await eventually(lambda: blocked()==count, 'all of them wait for room')
            assert .5*multiplex.BUDGET<waiting()<multiplex.BUDGET+count*2200, 'one message more each, at most'
            slow.reads.set()
            for o in channels: await o.until(lambda o: len(o.data)==100)
            assert all([d.split()[0] for d in o.data]==[str(i) for i in range(100)] for o in channels)


async def test_an_address_cannot_write_lines_into_the_log(caplog):
    class Fails:
        def __init__(self, app): self.app = app
        async def __call__(self, scope, receive, send):
            if scope['path'].startswith('/fails'): raise ValueError('as it should')
            await self.app(scope, receive, send)
    site = Guarded([Middleware(Fails)])
    async with site.up() as browser:
        channel = await browser.open('/fails/x%0dERROR%20forged%1b[31m')
        await channel.until(lambda o: o.status==500)
    messages = [r.getMessage() for r in caplog.records if r.name==multiplex.__name__]
    assert len(messages)==1 and 'forged' in messages[0] and messages[0].isprintable(), messages


async def test_a_client_that_has_gone_is_no_error():
    "What uvloop says of the socket of a connection that is closed"
    class Gone:
        def setsockopt(self, *args): raise ValueError('negative file descriptor')
    class Server:
        transport = SimpleNamespace(get_extra_info=lambda name: Gone())
        def receive(self): "As a server gives it"
    multiplex._keep_short(Server().receive)


async def test_who_asks_and_does_not_read_is_cut_off(monkeypatch):
    "Answers that nobody fetches, and signs of life, do not pile up"
    site = Guarded()
    async with site.up() as browser, Browser(str(browser.client.base_url), rcvbuf=4096) as deaf:
        @site.app.get('/flood')
        def flood():
            async def frames():
                while True: yield f'data: {"x"*8000}\n\n'
            return EventStream(frames())
        channel = await deaf.open('/flood')
        await channel.until(lambda o: o.events)
        deaf.reads.clear()
        carrier, = site.mux.carriers.values()
        await asyncio.sleep(.5)
        most = 0
        for i in range(40):
            await deaf.post([[1000*i+n, '/nowhere', '', '', ''] for n in range(2, 302)], carriers=[carrier.id], become=False)
            most = max(most, len(carrier._called))
            if not carrier.open: break
        assert not carrier.open and most<=2*CHANNELS+300
        await eventually(lambda: not site.mux.carriers.get(carrier.id), 'it is cut')


async def test_what_a_stream_says_cannot_pass_for_a_frame():
    site = Guarded()
    forged = multiplex.frame(2, b'data: forged\n\n')+multiplex.frame(multiplex.ABOUT+2, b'{"end": true}')
    @site.app.get('/forger')
    def forger():
        async def frames():
            yield forged*1000
            yield forged[:5]
            await site.gate.wait()
        return EventStream(frames())
    async with site.up() as browser:
        one,two = await browser.open('/forger', '/events')
        await one.until(lambda o: len(o.body)==len(forged)*1000+5)
        await two.until(lambda o: o.events)
        await site.manager.broadcast('said', 'true')
        await two.says('true')
        assert (one.number, two.number, two.data, two.ended)==(1, 2, ['true'], False)


async def test_another_name_for_this_host_is_the_hosts_list_to_refuse():
    "DNS rebinding: a page of evil.example, which leads here all of a sudden, is of the same origin to itself; it has no cookie, and TrustedHostMiddleware stops it"
    site = Guarded([Middleware(TrustedHostMiddleware, allowed_hosts=['127.0.0.1'])])
    async with refuses(site) as browser:
        evil = f'evil.example:{browser.client.base_url.port}'
        r = await browser.post([await browser.entry('/events')], Host=evil, Origin=f'http://{evil}')
        assert r.status_code==400
    site = Guarded()
    async with site.up() as browser:
        await browser.client.get('/login?name=root')
        here,port = browser.client.base_url.host,browser.client.base_url.port
        # The same browser, with all its cookies, after the name was made to lead here
        async with Browser(f'http://evil.example:{port}', browser.client.cookies, headers={'Cookie': KNOWN}) as rebound:
            async def lead_here(request): request.url = request.url.copy_with(host=here)
            rebound.client.event_hooks = dict(request=[lead_here])
            secret,public = await rebound.open('/admin/events', '/seen')
            await secret.until(lambda o: o.words)
            await public.until(lambda o: o.events)
            assert (secret.status, site.seen[-1]['host'])==(403, f'evil.example:{port}') and site.seen[-1]['cookie']==KNOWN
            # The cookie is all that it lacks
            forced = await rebound.open('/admin/events', Cookie='; '.join([f'{k}={v}' for k,v in browser.client.cookies.items() if k!=COOKIE]+[KNOWN]))
            await forced.until(lambda o: o.events)


async def test_forwarded_headers_are_believed_no_more_than_anywhere():
    "Origin is held against Host alone. Whom the server takes for a proxy is told by the server, and a channel sees the client as the request did"
    site = Guarded()
    forged = {'X-Forwarded-Host': 'evil.example', 'X-Forwarded-For': '10.0.0.1', 'X-Forwarded-Proto': 'https', 'Forwarded': 'host=evil.example;proto=https'}
    async with site.up(proxy_headers=False) as browser:
        browser.headers['Cookie'] = KNOWN
        site_says = browser.headers.pop('Sec-Fetch-Site')
        assert (await browser.post([await browser.entry('/seen')], Origin='https://evil.example', **forged)).status_code==403
        browser.headers['Sec-Fetch-Site'] = site_says
        channel = await browser.open('/seen', **forged)
        await channel.until(lambda o: o.events)
        assert (site.seen[0]['client'], site.seen[0]['scheme'])==('127.0.0.1', 'http')
    for trusted,client in (('127.0.0.1', '10.0.0.1'), ('10.9.9.9', '127.0.0.1')):
        site = Guarded()
        async with serve(ProxyHeadersMiddleware(site.app, trusted), proxy_headers=False) as port, Browser(f'http://127.0.0.1:{port}', headers={'Cookie': KNOWN}) as browser:
            channel = await browser.open('/seen', **forged)
            await channel.until(lambda o: o.events)
            direct = asyncio.create_task(browser.client.send(browser.client.build_request('GET', '/seen', headers=forged), stream=True))
            await (await direct).aclose()
            assert site.seen[0]['client']==site.seen[1]['client']==client and site.seen[0]['scheme']==site.seen[1]['scheme']


async def test_the_answers_say_little_and_are_kept_by_nobody():
    site = Guarded()
    async with site.up() as browser:
        channel = await browser.open('/events')
        await channel.until(lambda o: o.events)
        headers = browser.last.headers
        assert headers['content-type']=='application/octet-stream' and headers['x-content-type-options']=='nosniff' and 'no-store' in headers['cache-control']
        assert 'session' not in headers['sse-visitor'] and re.fullmatch('[0-9a-f]{16}', headers['sse-visitor'])
        assert (await browser.client.get(PATH)).headers['cache-control']=='no-store'


async def test_a_middleware_that_refuses_is_heeded():
    "Who may not see the app at all gets no carrier either; one that waits for ever, or says nothing, holds nothing up"
    class Closed:
        def __init__(self, app): self.app = app
        async def __call__(self, scope, receive, send):
            if scope['type']!='http' or b'let-me-in' in dict(scope['headers']): return await self.app(scope, receive, send)
            async def words():
                while True: yield 'closed for today'
            from starlette.responses import StreamingResponse
            await StreamingResponse(words(), 401)(scope, receive, send)
    site = Guarded([Middleware(Closed)])
    multiplex_grace,multiplex.GRACE = multiplex.GRACE,.3
    try:
        async with refuses(site) as browser: assert (await browser.post([await browser.entry('/events')])).status_code==401
    finally: multiplex.GRACE = multiplex_grace
    async with site.up() as browser:
        channel = await browser.open('/events', Let_Me_In='1')
        await channel.until(lambda o: o.events)


@pytest.mark.parametrize('answer,status', [(Response('no', 401), 401), (RedirectResponse('/login', 303), 403)], ids=['401', 'redirect'])
async def test_beforeware_covers_the_connection(answer, status):
    "As it covers any route, with the session of the request; behind a `skip` each stream is still asked for"
    def login(sess): return None if sess.get('auth') else answer
    site = Guarded(before=Beforeware(login, skip=['/login']))
    async with refuses(site) as browser: assert (await browser.post([await browser.entry('/events')])).status_code==status
    async with site.up() as browser:
        await browser.client.get('/login?name=ann')
        channel = await browser.open('/events')
        await channel.until(lambda o: o.events)
    site = Guarded(before=Beforeware(login, skip=['/login', PATH]))
    async with refuses(site) as browser:
        channel = await browser.open('/events')
        await channel.until(lambda o: o.words)
        assert channel.status==(401 if status==401 else 303)
        await eventually(lambda: not site.mux.carriers, 'the carrier ends')


async def test_who_is_let_in_nowhere_keeps_no_carrier():
    "It ends behind the last refusal; one that waits for an answer keeps it, and one stream that was let in does for good"
    site = Guarded()
    @site.app.get('/members')
    def members(): return RedirectResponse('/login', 303)
    @site.app.get('/slow')
    async def slow(req):
        await site.gate.wait()
        return site.manager.stream(req)
    async with site.up() as browser:
        for paths in (['/admin/events'], ['/nowhere', '//nowhere', '/members', '/admin/events', '/page', '/post_only']):
            refused = await browser.open(*paths)
            for o in refused if len(paths)>1 else [refused]: await o.until(lambda o: o.words)
            await eventually(lambda: not site.mux.carriers and not browser.carriers, 'the carrier ends')
        assert [o.status for o in refused]==[404, None, 303, 403, 200, 405] and refused[1].refused
        no,slow = await browser.open('/nowhere', '/slow')
        await no.until(lambda o: o.words)
        later = await browser.open('/nowhere')
        await later.until(lambda o: o.words)
        site.gate.set()
        await slow.until(lambda o: o.events)
        await browser.close(slow)
        for _ in range(2):
            later = await browser.open('/nowhere')
            await later.until(lambda o: o.words)
        assert no.carrier==slow.carrier==later.carrier


def test_each_line_of_the_page_has_its_tests():
    "The table names tests, and these exist; each test of this file stands in the table"
    cells = json.loads((HERE.parent/'nbs/multiplex.ipynb').read_text())['cells']
    page = next(t for c in cells if '## The threat model' in (t := ''.join(c['source'])))
    named = {*re.findall(r'`(test_\w+)`', page)}
    there = {f.name: {*re.findall(r'^(?:async )?def (test_\w+)', f.read_text(), re.M)} for f in HERE.rglob('test_multiplex*.py')}
    assert not named-{*set().union(*there.values())}, 'the page names what is not there'
    assert not there[Path(__file__).name]-named-{'test_each_line_of_the_page_has_its_tests'}, 'the page is silent about'
    rows = [r for r in page.splitlines() if r.startswith('|')][2:]
    assert rows and all('`test_' in r for r in rows), 'a line without a test'
