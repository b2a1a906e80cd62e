"What could go wrong with the multiplexer, and what is done against it: the table at the end of its notebook names these tests"
import json
import re
from pathlib import Path
from urllib.parse import unquote

from fasthtml.common import EventStream, Middleware
from starlette.middleware.gzip import GZipMiddleware

from cjm_fasthtml_sse.multiplex import carrier as carriers
from cjm_fasthtml_sse.multiplex import endpoint, request
from cjm_fasthtml_sse.multiplex.carrier import MAX_UNANSWERED
from cjm_fasthtml_sse.multiplex.endpoint import PATH
from cjm_fasthtml_sse.multiplex.protocol import MAX_CHANNELS
from cjm_fasthtml_sse.visitor import Visitors
from tests.contract.support import MUX_HEADERS, Exchange, eventually, turns
from tests.contract.visitors import Channel, House
from tests.test_multiplex import forge

HERE = Path(__file__).parent


def carriers_of(house): return house.app._sse_setup.multiplexer.carriers


async def test_a_body_that_comes_too_slowly_is_refused(monkeypatch):
    monkeypatch.setattr(request, 'REQUEST_TIMEOUT', .1)
    class Drips(Exchange):
        async def receive(self):
            if self.sent_body: await self.gone.wait()
            self.sent_body = True
            return dict(type='http.request', body=b'{"carr', more_body=True)
    async with Drips(House().app, 'POST', PATH, MUX_HEADERS) as r: assert r.status==408


HOSTILE = ['//evil.example/events', '///events', 'http://evil.example/events', 'https://127.0.0.1/events', 'events', '',
    ' /events', '/../events', '/x/../events', '/%2e%2e/events', '/x/%2E%2e/events', '/x/.%2e/events', '/./events',
    '/%2e/events', '/x/..%2fevents', '/x/..%5cevents', '/x\\..\\events', '\\\\evil.example\\events', '/\\evil.example',
    '/events\r\nCookie: a=b', '/events\nX: y', '/events\0', '/events%00', '/ev ents', '/events#x', '/évents', '/\ud800',
    '/%ff', '/x'*3000, None, 7, ['/events'], {'path': '/events'}, True]
async def test_no_spelling_of_an_address_leads_astray(caplog):
    house = House()
    async with house.visitors() as visitor:
        await forge(visitor)
        before = len(house.seen)
        for n,url in enumerate(HOSTILE, 1):
            channel = visitor.channels[n] = Channel(n, repr(url)[:50])
            path = unquote(url.partition('?')[0]) if isinstance(url, str) else '/events'
            ticket = Visitors('test').tickets.issue(visitor.tag, path)
            await visitor.order([[n, url, ticket, '', '']])
            await channel.answered()
            assert channel.words==[dict(ticket=True)], 'it is none of ours: the browser may ask for itself'
        assert len(house.seen)==before
    assert not caplog.records, caplog.text


async def test_a_channel_cannot_open_a_multiplexer():
    house,urls = House(),(PATH, PATH+'/', PATH+'?x=1', '/_sse%2Fmux', '/_SSE/mux')
    async with house.visitors() as visitor:
        await forge(visitor, *urls)
        for url in urls:
            channel = await visitor.opens(url)
            assert channel.status==(307 if url==PATH+'/' else 404), 'a slash too many redirects, as on any route'
        await eventually(lambda: not carriers_of(house), 'a browser that opens nothing else keeps no carrier')


async def test_numbers_have_a_bound(monkeypatch):
    "Channels of a carrier, carriers of a user, carriers in all"
    for module in (endpoint, carriers): monkeypatch.setattr(module, 'MAX_CHANNELS', 3)
    monkeypatch.setattr(endpoint, 'MAX_CARRIERS_PER_USER', 2)
    monkeypatch.setattr(endpoint, 'MAX_CARRIERS', 4)
    house = House()
    async with house.visitors(3) as (ann, bob, nobody):
        for who,name in ((ann, 'ann'), (bob, 'bob')): await who.ask(f'/login?name={name}')
        channels = await ann.open(*['/events']*3)
        for o in channels: await o.begins()
        assert (await ann.opens('/events', become=False)).direct=='limit'
        beside = await ann.opens('/events')
        assert beside.events and beside.carrier!=channels[0].carrier, 'beside a full one is another'
        over = await ann.open(*['/events']*3)
        await over[2].until(lambda o: o.direct)
        assert not over[0].direct, 'what fits is open'
        async def more(who): return await who.order([[9, '/events', await who.ticket('/events'), '', '']], carriers=[])
        for who,count in ((ann, 2), (nobody, 4)):
            for _ in range(3): r = await more(who)
            assert r.status==503 and int(r.headers['retry-after']) and len(carriers_of(house))==count
        assert (await more(bob)).status==503


async def test_streams_without_a_first_word_hold_up_no_others():
    """A stream that waits for the end is under way, even if it has sent nothing

    Some middleware holds back the beginning of a response until there is a body.
    """
    house = House([Middleware(GZipMiddleware)])
    @house.app.get('/quiet')
    def quiet():
        async def frames():
            await house.gate.wait()
            yield 'data: now\n\n'
        return EventStream(frames())
    async with house.visitors() as visitor:
        await forge(visitor, '/quiet')
        channels = await visitor.open(*['/quiet']*2*MAX_UNANSWERED, '/events')
        await channels[-1].begins()
        house.gate.set()
        for o in channels[:-1]: await o.says('now')


async def test_a_closed_request_without_an_answer_counts():
    "A browser that closes channels and opens others has no more requests under way than before"
    house,begun = House(),[]
    @house.app.get('/slow')
    async def slow(n: int):
        begun.append(n)
        await house.gate.wait()
        return 'no stream'
    async with house.visitors() as visitor:
        await forge(visitor, '/slow')
        for i in range(5):
            channels = await visitor.open(*[f'/slow?n={i}']*MAX_UNANSWERED)
            await eventually(lambda: len(begun)>=MAX_UNANSWERED, 'they begin')
            await visitor.close(*channels)
        assert len(begun)==MAX_UNANSWERED
        last = await visitor.open('/slow?n=9')
        house.gate.set()
        await last.until(lambda o: o.status==200)
        assert begun[MAX_UNANSWERED:]==[9]


async def test_what_waits_for_a_browser_has_a_bound(monkeypatch):
    "In bytes, for all channels of a carrier together, replays included; a browser that reads on gets all of it"
    monkeypatch.setattr(carriers, 'CARRIER_BUFFER', 1<<20)
    house,count = House(),60
    async with house.visitors() as visitor:
        await house.manager.broadcast('said', 'first')
        first = house.manager.cursor
        for i in range(100): await house.manager.broadcast('said', f'{i} {"x"*2000}')
        await visitor.opens('/by_hand')
        (carrier,),(response,) = carriers_of(house).values(),visitor.carriers.values()
        response.stall()
        channels = await visitor.open(*['/events']*count, last=first)
        await eventually(lambda: carrier.writer.pending_bytes>.5*carriers.CARRIER_BUFFER, 'they fill up')
        await turns(200)
        assert carrier.writer.pending_bytes<carriers.CARRIER_BUFFER+count*2200, 'one message more each, at most'
        response.resume()
        for o in channels: await o.until(lambda o: len(o.data)==100)
        assert all([d.split()[0] for d in o.data]==[str(i) for i in range(100)] for o in channels)
        house.gate.set()


async def test_who_asks_and_does_not_read_is_cut_off():
    "Answers that nobody fetches, and signs of life, do not pile up"
    house = House()
    async with house.visitors() as visitor:
        await visitor.opens('/events')
        (carrier,),(response,) = carriers_of(house).values(),visitor.carriers.values()
        response.stall()
        await house.manager.broadcast('said', 'the write that does not end')
        for i in range(40):
            wanted = [[1000*i+n, '/nowhere', '', '', ''] for n in range(2, 302)]
            await visitor.order(wanted, carriers=[carrier.id], become=False)
            assert carrier.writer.scheduled_count<=2*MAX_CHANNELS+300
            if not carrier.open: break
        assert not carrier.open
        await eventually(lambda: carrier.id not in carriers_of(house), 'it is cut')


async def test_who_waits_for_an_answer_keeps_the_carrier():
    "It ends behind the last refusal alone, and stays where one was let in"
    house = House()
    @house.app.get('/slow')
    async def slow(req):
        await house.gate.wait()
        return house.manager.stream(req)
    async with house.visitors() as visitor:
        await forge(visitor, '/slow', '/nowhere')
        no,slow = await visitor.open('/nowhere', '/slow')
        await no.answered()
        later = await visitor.opens('/nowhere')
        house.gate.set()
        await slow.begins()
        await visitor.close(slow)
        for _ in range(2): later = await visitor.opens('/nowhere')
        assert no.carrier==slow.carrier==later.carrier


def test_each_line_of_the_page_has_its_tests():
    "The table names tests, and these exist; each test of this file stands in the table"
    cells = json.loads((HERE.parent/'nbs/multiplex/endpoint.ipynb').read_text())['cells']
    page = next(t for c in cells if '## The threat model' in (t := ''.join(c['source'])))
    named = {*re.findall(r'`(test_\w+)`', page)}
    def tests(f): return {*re.findall(r'^ *(?:async )?def (test_\w+)', f.read_text(), re.M)}
    there = {f.name: tests(f) for f in HERE.rglob('test_*.py')}
    assert not named-{*set().union(*there.values())}, 'the page names what is not there'
    assert not there[Path(__file__).name]-named-{'test_each_line_of_the_page_has_its_tests'}, 'the page is silent about'
    rows = [r for r in page.splitlines() if r.startswith('|')][2:]
    assert rows and all('`test_' in r for r in rows), 'a line without a test'
