"Compression with a dictionary: the same events arrive, public ones in frames that are made once"
import re
import sys
from contextlib import ExitStack

import pytest
from fasthtml.common import FastHTML, P
from starlette.middleware.gzip import GZipMiddleware

from cjm_fasthtml_sse.compress import Compressor, Dictionary
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.engine.checks import ArgumentError
from cjm_fasthtml_sse.helpers import setup_sse
from tests.contract.servers import running
from tests.contract.support import Exchange, Parser, eventually
from tests.contract.visitors import House, Visitor
from tests.decoding import MAGIC, Decoder, Decoding
from tests.proxies import browsing, lacking, listening, proxying


def row(n): return f'<tr id="job-{n}" hx-swap-oob="true" class="border-b hover:bg-gray-50"><td>Job {n}</td></tr>'


def house(manager=None, middleware=(), **setup):
    "An app with streams in which `row` is what samples have"
    found = House(manager=manager or SSEBroadcastManager(heartbeat=0, private='user:{who}:**'), middleware=middleware,
        setup=dict(compress=[row(1)]) | setup)
    @found.app.get('/')
    def index(): return P('a page')
    @found.app.get('/mine')
    def mine(req): return found.manager.stream(req, events=('**', 'user:ann:*'), render=lambda m: f'{m["data"]}')
    @found.app.get('/state')
    def state(req): return found.manager.stream(req, render=lambda m: f'{m["data"]}', snapshot=lambda: row('state'))
    return found


class Stream:
    "A stream on a connection of its own"
    def __init__(self, app, path, last=''): self.exchange, self.parser, self.events = Exchange(app, 'GET', path, {'last-event-id': last} if last else {}), Parser(), []
    async def __aenter__(self):
        self.exchange.heard = lambda data: self.events.extend(self.parser.feed(data))
        await self.exchange.__aenter__()
        await eventually(lambda: self.events, 'the first event')
        return self
    async def __aexit__(self, *exc): await self.exchange.leave()
    async def says(self, text): await eventually(lambda: any(text in e.data for e in self.events), repr(text))


class TestStreams:
    async def test_the_same_arrives(self):
        "Events, direct messages, a replay, the state and the end; those that know the dictionary and others share a group"
        site = house(multiplex=False)
        app = await Decoding.of(site.app)
        async with Stream(app, '/events') as new, Stream(site.app, '/events') as old:
            for n in range(20): await site.manager.broadcast('job', row(n))
            for conn in site.manager.connections: conn.put_nowait(dict(type='job', data='only you'))
            await site.manager.broadcast('job', 'last')
            for o in new, old: await o.says('last')
            assert new.exchange.body == old.exchange.body
            assert len(app.wire[0]) < len(old.exchange.body)/2
            async with Stream(app, '/events', last=new.events[3].id) as back:
                await back.says('last')
                assert [e.data for e in back.events if row(5)[:-5] in e.data] == [row(5)]
            async with Stream(app, '/state') as state: await state.says(row('state'))
            await site.manager.close()
            for o in new, old: await eventually(lambda: o.exchange.over)
        assert not new.exchange.error

    async def test_one_frame_for_all(self, monkeypatch):
        calls, compress = [], Dictionary.compress
        monkeypatch.setattr(Dictionary, 'compress', lambda self, event: calls.append(event) or compress(self, event))
        site = house(multiplex=False)
        app = await Decoding.of(site.app)
        async with Stream(app, '/events') as one, Stream(app, '/events') as two, Stream(app, '/mine') as three:
            await site.manager.broadcast('job', row(7))
            for o in one, two, three: await o.says('Job 7')
            async with Stream(app, '/events', last=one.events[0].id) as back: await back.says('Job 7')
        assert sum(b'Job 7' in o for o in calls) == 1

    @pytest.mark.parametrize('path', ['/events', '/mine'])
    async def test_only_public_events_are_compressed(self, path):
        site = house(multiplex=False)
        app = await Decoding.of(site.app)
        async with Stream(app, path) as tab:
            await site.manager.broadcast('job', row('public'))
            await site.manager.broadcast('user:ann:job', row('private'))
            for conn in site.manager.connections: conn.put_nowait(dict(type='job', data=row('direct')))
            await tab.says('Job direct')
        assert [row(o).encode() in app.wire[0] for o in ('public', 'private', 'direct')] == [False, path == '/mine', True]

    async def test_middleware_sees_events_as_they_are(self):
        "What it has changed is compressed no more, as nobody knows whether it is public"
        class Mask:
            def __init__(self, app): self.app = app
            async def __call__(self, scope, receive, send):
                def masked(message):
                    if 'body' in message: message = {**message, 'body': message['body'].replace(b'Job', b'***')}
                    return send(message)
                await self.app(scope, receive, masked)
        site = house(multiplex=False)
        site.app.add_middleware(Mask)
        app = await Decoding.of(site.app)
        async with Stream(app, '/events') as tab:
            await site.manager.broadcast('job', row(7))
            await tab.says('*** 7')
        assert b'*** 7' in app.wire[0]

    @pytest.mark.parametrize('headers', [dict(accept='gzip, br'), dict(accept='dczx'), dict(path='', dictionary=b'another')])
    async def test_others_get_plain_events(self, headers):
        site = house(multiplex=False)
        app = await Decoding.of(site.app)
        if 'dictionary' in headers: app = Decoding(site.app, **headers)
        else: app = Decoding(site.app, '', app.dictionary, **headers)
        async with Stream(app, '/events') as tab:
            assert tab.exchange.headers['vary'] == 'Accept-Encoding, Available-Dictionary'
            assert 'content-encoding' not in tab.exchange.headers and not app.wire

    async def test_what_is_no_stream_of_a_manager_stays(self):
        site = house(multiplex=False)
        app = await Decoding.of(site.app)
        for path in '/page', '/by_hand':
            async with Exchange(app, 'GET', path) as r:
                await eventually(lambda: r.body)
                assert 'content-encoding' not in r.headers and 'available' not in r.headers.get('vary', '').lower()
        async with Exchange(app, 'HEAD', '/events') as r: assert 'content-encoding' not in r.headers

    async def test_inside_gzip(self):
        "A middleware of an app around this one, or a proxy, sees that the body is encoded"
        site = house(multiplex=False)
        app = await Decoding.of(site.app)
        app = Decoding(GZipMiddleware(site.app, minimum_size=0), app.path, app.dictionary)
        async with Stream(app, '/events') as tab:
            await site.manager.broadcast('job', row(7))
            await tab.says('Job 7')


class TestCarriers:
    async def test_the_same_arrives(self):
        "Channels of managers and by hand, slices, replays and the end"
        site = house()
        app = await Decoding.of(site.app)
        async with Visitor(app) as new, Visitor(site.app) as old:
            channels = [*await new.open('/events', '/mine', '/by_hand', '/state'), *await old.open('/events', '/by_hand')]
            for o in channels: await o.begins()
            texts = [*map(row, range(2, 9)), 'last']
            for text in texts: await site.manager.broadcast('job', text)
            await site.manager.broadcast('user:ann:job', row('private'))
            await channels[1].says('Job private')
            for o in channels[0], channels[4]:
                await o.says('last')
                assert [d for d in o.data if d in texts] == texts
            await channels[2].says('hand 0')
            await channels[3].says('Job state')
            before, large = sum(map(len, app.wire)), row(9)*2000
            await site.manager.broadcast('job', large)
            for o in channels[0], channels[4]: await o.says(large)
            assert sum(map(len, app.wire)) < before+len(large)/2, 'in slices, to three channels'
            back = await new.open('/events', last=channels[0].events[1].id)
            await back.says('last')
            assert [d for d in back.data if d in texts] == texts[1:]
            wire = b''.join(app.wire)
            assert row('private').encode() in wire and row('state').encode() in wire and b'hand 0' in wire
            assert row(3).encode() not in wire

    async def test_a_browser_that_does_not_know_the_dictionary(self):
        site = house()
        async with Visitor(site.app) as tab:
            carrier = (await tab.order([[1, '/events', await tab.ticket('/events'), '', '']]))
            assert carrier.headers['content-encoding'] == 'identity'
            assert carrier.headers['vary'] == 'Accept-Encoding, Available-Dictionary'


class TestDictionary:
    @pytest.mark.parametrize('multiplex, match', [(True, '/_sse/mux'), ('tab', '/_sse/mux'), (False, '/*')])
    async def test_browsers_offer_it_where_it_serves(self, multiplex, match):
        app = await Decoding.of(house(multiplex=multiplex).app)
        assert app.response.headers['use-as-dictionary'] == f'match="{match}", match-dest=("")'
        assert 'immutable' in app.response.headers['cache-control']
        assert re.fullmatch(rb'/\*.*\*/', app.dictionary, re.S), 'as a script it does nothing'

    async def test_below_a_mount(self):
        site, outer = house(), FastHTML(secret_key='outer')
        outer.mount('/sub', site.app)
        async with Exchange(outer, 'GET', '/sub/') as r: await eventually(lambda: r.over)
        path = re.search('/sub/_sse/dictionary-[0-9a-f]+', r.body.decode())[0]
        async with Exchange(outer, 'GET', path) as r: assert r.headers['use-as-dictionary'].startswith('match="/sub/_sse/mux"')

    async def test_samples_that_would_end_the_comment(self):
        assert Dictionary(['a */ alert(1) /*']).content.count(b'*/') == 1

    def test_samples_of_each_kind(self):
        content = Dictionary([row(1), dict(type='price', data=dict(n=1))]).content
        assert b'data: <tr id="job-1"' in content and b'event: price\nid: 0\ndata: {"n":1}' in content.replace(b'": ', b'":')

    def test_without_the_package(self, monkeypatch):
        monkeypatch.setattr('cjm_fasthtml_sse.compress.zstd', None)
        with pytest.raises(ArgumentError, match=r"pip install 'cjm-fasthtml-sse\[zstd\]'"): setup_sse(FastHTML(), compress=[row(1)])

    def test_what_is_kept_has_a_bound(self, monkeypatch):
        monkeypatch.setattr('cjm_fasthtml_sse.compress.CACHE_BYTES', 5000)
        compressor = Compressor(Dictionary([row(1)]))
        for n in range(1000):
            compressor.note(event := f'data: {row(n)}\n\n'.encode())
            assert compressor.encode([event]) == compressor.encode([event])
        assert sum(len(k)+len(v or b'') for k, v in compressor._frames.items()) == compressor._size <= 5000

    def test_events_of_which_all_but_the_end_stays(self):
        "Their slices are the same each time, and count once"
        compressor = Compressor(Dictionary([row(1)]))
        table = ''.join(str(row(i)) for i in range(800))
        for n in range(500):
            event = f'id: {n:04}\ndata: {table}{n:04}\n\n'.encode()
            compressor.note(event)
            assert len(compressor.encode([event])) < len(event)
        assert sum(len(k)+len(v or b'') for k, v in compressor._frames.items()) == compressor._size


def test_the_magic_number(): assert Dictionary([row(1)]).preamble.startswith(MAGIC)


@pytest.mark.integration
@pytest.mark.parametrize('proxy', ['', *(pytest.param(o, marks=pytest.mark.skipif(bool(lacking(o, 'openssl')), reason=f'needs {o} and openssl')) for o in ('nginx', 'caddy'))])
async def test_over_the_wire(proxy, tmp_path):
    "Through proxies that compress other things: what the browser asks for arrives at the app, and frames come back one by one, unchanged"
    with ExitStack() as stack:
        server = stack.enter_context(running([sys.executable, '-m', 'uvicorn', 'compressed:app', '--port', '{port}'], tmp_path/'log'))
        if proxy: server = stack.enter_context(proxying(proxy, server.port, tmp_path))
        async with browsing(server, http2=bool(proxy)) as client:
            path = re.search('/_sse/dictionary-[0-9a-f]+', (await client.get('/')).text)[0]
            dictionary = await client.get(path)
            assert dictionary.headers['use-as-dictionary'] == 'match="/*", match-dest=("")'
            headers = {k.decode(): v.decode() for k, v in Decoding(None, path, dictionary.content).headers}
            async with listening(client, **headers) as stream:
                assert stream.response.headers['content-encoding'] == 'dcz'
                decode, pieces, text, size = Decoder(dictionary.content), stream.response.aiter_raw(), b'', 0
                text += decode(await anext(pieces))
                for n in range(10):
                    await client.post('/say', data=dict(n=n))
                    while f'Number {n} of many'.encode() not in text:
                        piece = await anext(pieces)
                        size += len(piece)
                        text += decode(piece)
                assert size < 10*45, 'events of 62 bytes'
