"What could go wrong with the multiplexer, and what stands against it; the table at the end of nbs/multiplex/endpoint.ipynb names these tests"
import asyncio
import json
import re
import socket
import time
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

from fasthtml.common import EventStream, FileResponse, Middleware, RedirectResponse, Response
from starlette.middleware.gzip import GZipMiddleware

from cjm_fasthtml_sse.multiplex import endpoint as multiplex
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.engine.servers import limit_unsent
from cjm_fasthtml_sse.multiplex.endpoint import BODY, CHANNELS, PATH
from tests.mux import Browser, Channel
from tests.support import eventually
from tests.test_multiplex import Site

HERE = Path(__file__).parent


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


async def test_a_channel_cannot_open_a_multiplexer():
    site = Guarded()
    async with site.up() as browser:
        for url in (PATH, PATH+'/', PATH+'?x=1', '/_sse%2Fmux', '/_SSE/mux'):
            channel = await browser.open(url)
            await channel.until(lambda o: o.words)
            assert channel.status==(307 if url==PATH+'/' else 404), 'a slash too many redirects, as on any route'
        await eventually(lambda: not site.mux.carriers, 'who opens nothing else keeps no carrier')


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


async def test_a_client_that_has_gone_is_no_error():
    "What uvloop says of the socket of a connection that is closed"
    class Gone:
        def setsockopt(self, *args): raise ValueError('negative file descriptor')
    class Server:
        transport = SimpleNamespace(get_extra_info=lambda name: Gone())
        def receive(self): "As a server gives it"
    limit_unsent(Server().receive, 1<<14)


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
    cells = json.loads((HERE.parent/'nbs/multiplex/endpoint.ipynb').read_text())['cells']
    page = next(t for c in cells if '## The threat model' in (t := ''.join(c['source'])))
    named = {*re.findall(r'`(test_\w+)`', page)}
    there = {f.name: {*re.findall(r'^ *(?:async )?def (test_\w+)', f.read_text(), re.M)} for f in HERE.rglob('test_*.py')}
    assert not named-{*set().union(*there.values())}, 'the page names what is not there'
    assert not there[Path(__file__).name]-named-{'test_each_line_of_the_page_has_its_tests'}, 'the page is silent about'
    rows = [r for r in page.splitlines() if r.startswith('|')][2:]
    assert rows and all('`test_' in r for r in rows), 'a line without a test'
