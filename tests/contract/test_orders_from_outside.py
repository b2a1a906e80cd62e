"""Only the client of the app's own pages can order streams, and an order that is none does nothing

An order is a `POST` with a JSON body and the header `SSE-Mux`, which no form of another site can send, and of which the browser says
that it comes from the same origin; of one that says nothing, `Origin` must be the host's own. Its body has a bound, and so has each field.
Who is refused gets a status, no stream is opened, and nothing stands in the log.
"""
import asyncio
import json

import pytest
from fasthtml.common import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from tests.contract.support import BOUND, MUX, eventually, serve
from tests.contract.visitors import House


@pytest.fixture
async def refusing(caplog):
    "A house and a visitor who has a ticket; at the end nothing was opened"
    house = House()
    async with house.visitors() as visitor:
        visitor.entry = [1, '/events', await visitor.ticket('/events'), '', '']
        before = len(house.seen)
        yield visitor
        assert not visitor.carriers and len(house.seen)==before and not house.manager.connection_count
    assert not caplog.records, caplog.text


@pytest.mark.parametrize('method', ['GET', 'HEAD', 'PUT', 'DELETE', 'OPTIONS', 'PATCH'])
async def test_only_a_post_is_looked_at(refusing, method):
    "A preflight of another site is refused"
    asks = {'SSE-Mux': '2', 'Sec-Fetch-Site': 'same-origin', 'Access-Control-Request-Method': 'POST',
            'Access-Control-Request-Headers': 'sse-mux'}
    r = await refusing.ask(MUX, method, **asks)
    assert r.status==405 and not [k for k in r.headers if k.startswith('access-control')]


FOREIGN = [*(({'content-type': o}, 415) for o in ('text/plain', 'application/x-www-form-urlencoded',
                                                  'multipart/form-data', 'application/json; charset=utf-8', '', None)),
    ({'sse-mux': ''}, 415), ({'sse-mux': None}, 415), ({'sse-mux': '0'}, 426), ({'sse-mux': 'true'}, 426),
    *(({'sec-fetch-site': o}, 403) for o in ('cross-site', 'same-site', 'none', '', None)),
    *(({'sec-fetch-site': None, 'origin': o}, 403) for o in ('http://evil.example', 'null', '', 'http://test:1',
                                                             'http://[', 'http://test@evil.example',
        'http://evil.example/test', 'http://evil.example#@test', 'http://test.evil.example', 'file://test', 'test'))]

@pytest.mark.parametrize('wrong, status', FOREIGN, ids=str)
async def test_only_a_script_of_this_origin_can_ask(refusing, wrong, status):
    assert (await refusing.order([refusing.entry], **wrong)).status==status


async def test_what_a_browser_says_of_its_site_suffices():
    "nginx hands on another Host than the browser says, unless it is told to; a browser that says nothing is asked for its Origin"
    async with House().visitors() as visitor:
        assert (await visitor.opens('/events', origin='https://elsewhere')).events
        entry = [9, '/events', visitor.tickets['/events'], '', '']
        assert (await visitor.order([entry], sec_fetch_site=None, origin='https://elsewhere')).status==403
        for origin in ('http://test', 'https://test', 'HTTP://TEST'):
            entry[0] += 1
            assert (await visitor.order([entry], sec_fetch_site=None, origin=origin)).status==204


ORDER = dict(carriers=[], open=[], close=[], become=True)
BODIES = ['', 'x', '[]', '{}', 'null', '1', '"x"', '['*100_000, '{"a":'*50_000, '1'*10_000, '\ud800', b'\xff\xfe\x00',
          '{"carriers":[],"open":[],"close":[]}',
    *(json.dumps(ORDER | o) for o in (dict(more=1), dict(carriers={}), dict(carriers=[1]), dict(carriers=[None]),
                                      dict(open=[1]), dict(open=[[1, '/events']]),
                                      dict(open=[[1, '/events', '', '', '', '', '']]),
        *(dict(open=[[n, '/events', '']]) for n in ('1', 0, -1, True, 2**31, 1.5)), dict(close=[None]),
        dict(close=['1']), dict(close=7)))]

@pytest.mark.parametrize('body', range(len(BODIES)))
async def test_a_body_that_is_no_order_is_refused(refusing, body):
    sent = BODIES[body] if isinstance(BODIES[body], bytes) else BODIES[body].encode('utf-8', 'surrogatepass')
    assert (await refusing.order(raw=sent)).status==400


@pytest.mark.parametrize('version', ['0', '1', '3', 'true'])
async def test_another_version_hears_of_this_one(refusing, version):
    "During a deploy a page of one version meets a server of another: nothing is opened, and the answer has the server's"
    r = await refusing.order([refusing.entry], sse_mux=version)
    assert (r.status, r.headers['content-type'], json.loads(r.body))==(426, 'application/json', {'version': 2})


async def test_a_body_has_a_bound(refusing):
    "In bytes, and in channels"
    assert (await refusing.order(raw=b'['+b' '*2**21+b']')).status==413
    assert (await refusing.order([[n, *refusing.entry[1:]] for n in range(1, 1002)])).status==413


async def test_a_body_without_an_end_has_one_too():
    "It is refused as soon as it is too long"
    house = House()
    async with serve(house.app) as port:
        reader,writer = await asyncio.open_connection('127.0.0.1', port)
        writer.write(f'POST {MUX} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\nSSE-Mux: 2\r\n'
                     'Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n'.encode())
        for _ in range(300): writer.write(b'1000\r\n'+b'x'*4096+b'\r\n')
        async with asyncio.timeout(BOUND): assert b' 413 ' in await reader.readline()
        writer.close()


async def test_an_id_cannot_forge_a_header_nor_break_anything(caplog):
    "The browser may ask for such a stream itself"
    house = House()
    async with house.visitors() as visitor:
        await visitor.ticket('/events')
        before = len(house.seen)
        for last in ['a\r\nCookie: session_=x', 'a\nb', '\0', '\ud800', 'x'*5000, None, 7, [], {}]:
            channel = await visitor.opens('/events', last=last)
            assert channel.words==[dict(direct='limit')], last
        assert len(house.seen)==before
        fine = await visitor.opens('/events', last='é, "x" \t')
        await fine.begins()
    assert not caplog.records, caplog.text


async def test_a_number_is_open_once():
    "A second order for it changes nothing, and a number that is closed may open again"
    house = House()
    async with house.visitors() as visitor:
        channel = await visitor.opens('/events')
        await channel.begins()
        entry = [channel.number, '/events', visitor.tickets['/events'], '', '']
        await visitor.order([entry])
        assert house.manager.connection_count==1
        await visitor.order([entry], close=[channel.number, 77])
        await eventually(lambda: house.manager.connection_count==1, 'one is open')
        await house.manager.broadcast('said', 'once')
        await channel.says('once')
        assert channel.data.count('once')==1


async def test_another_name_for_this_host_is_refused_where_the_app_has_a_list():
    "DNS rebinding: a page of evil.example, which leads here all of a sudden, is of the same origin to itself; it has no cookie of this host"
    house = House([Middleware(TrustedHostMiddleware, allowed_hosts=['test'])])
    async with house.visitors() as visitor:
        visitor.headers['host'] = 'evil.example'
        assert await visitor.ticket('/events')==''
        assert (await visitor.order([[1, '/events', '', '', '']])).status==400 and not house.seen
    async with House().visitors(2) as (root, rebound):
        await root.ask('/login?name=root')
        assert (await root.opens('/admin')).events
        rebound.headers['host'] = 'evil.example'
        assert (await rebound.opens('/events')).events and (await rebound.opens('/admin')).refused


async def test_forwarded_headers_are_believed_by_nobody(refusing):
    "`Origin` is held against `Host` alone"
    forged = {'x-forwarded-host': 'evil.example', 'forwarded': 'host=evil.example;proto=https', 'sec-fetch-site': None}
    assert (await refusing.order([refusing.entry], origin='https://evil.example', **forged)).status==403
