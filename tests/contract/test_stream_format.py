"""What goes over the wire is what a browser reads: one event for each message, whatever it holds

Only CR LF, CR and LF end a line; U+2028, VT, NEL and others are text. No data, name or id forges a field or a second
event. An event without data has an empty data line, or no browser would dispatch it. Elements in data become their
HTML, other data becomes JSON.
"""
import asyncio
from dataclasses import dataclass
from datetime import date
from uuid import UUID

import pytest
from fasthtml.common import Div, EventStream, FastHTML, Li, NotStr, sse_message
from hypothesis import HealthCheck, given, settings, strategies as st

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext
from tests.contract.support import client, eventually, following, listening

LOOKALIKES = '\u2028\u2029\x0b\x0c\x1c\x1d\x1e\x85'  # Line ends to Python's `splitlines`, but not to a browser


@pytest.fixture
def manager(): return SSEBroadcastManager()


class TestText:
    "That a renderer gives"

    @pytest.mark.parametrize('char', LOOKALIKES, ids=ascii)
    async def test_lookalikes_of_line_ends(self, manager, char):
        text = f'<p>a{char}b</p>'
        async with following('stream', manager, render=lambda m: text) as html, following('stream', manager) as plain:
            await manager.broadcast('x', text)
            assert await html.next()==('message', text) and await plain.next()==('x', text)
            assert f'data: {text}\n\n'.encode() in html.exchange.body, 'one line'

    @pytest.mark.parametrize('text',
        ['a\nb', 'a\rb', 'a\r\nb', '\na', 'a\n', '\n', '\r\n\r\n', 'data: x\n\ndata: y',
            'a\n\nevent: sse:close\ndata: x'], ids=ascii)
    async def test_line_ends(self, manager, text):
        "Each line has a data field of its own, and LF alone ends it"
        async with following('stream', manager, render=lambda m: text) as page:
            await manager.broadcast('x', 1)
            assert await page.next()==('message', text.replace('\r\n', '\n').replace('\r', '\n'))
            assert b'\r' not in page.exchange.body and not page.told_to_stay

    @settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.text(st.sampled_from('\r\n :\0\ufeff'+LOOKALIKES+'\ud83da€🎈')), min_size=1, max_size=8))
    def test_whatever_it_holds(self, texts):
        "As JSON and as HTML"
        async def run():
            manager = SSEBroadcastManager()
            async with (following('stream', manager) as plain,
                        following('stream', manager, render=lambda m: f"<p>{m['data']}</p>") as html):
                for o in texts: await manager.broadcast('x', o)
                def carried(text): return text.replace('\ud83d', '\ufffd')
                assert await plain.data(len(texts))==[carried(o) for o in texts]
                def read(text): return f'<p>{text}</p>'.replace('\r\n', '\n').replace('\r', '\n')
                assert await html.data(len(texts))==[read(carried(o)) for o in texts]
        asyncio.run(run())


class TestData:
    "Without a renderer"

    @pytest.mark.parametrize('data', [0, None, '', [], {}, 'ü€', dict(a=[1, {'b': None}]), 1.5, True, 'x'*100_000],
        ids=lambda o: repr(o)[:20])
    async def test_json(self, manager, data):
        "Under the event's own name"
        async with following('stream', manager) as page:
            await manager.broadcast('job:done', data)
            assert await page.next()==('job:done', data)

    async def test_what_json_lacks(self, manager):
        @dataclass
        class Point: x: int = 1
        async with following('stream', manager) as page:
            await manager.broadcast('x', [Point(), date(2025, 1, 2), UUID(int=7), (1, 2), {3}])
            assert await page.next()==('x', [dict(x=1), '2025-01-02', str(UUID(int=7)), [1, 2], [3]])

    @pytest.mark.parametrize('element, html',
        [(Li('a', id='b'), '<li id="b">a</li>'), (Div(), '<div></div>'), (NotStr('<i>'), '<i>'), (NotStr(''), '')])
    async def test_elements(self, manager, element, html):
        "An element is its HTML. One that is empty still has a data line"
        async with following('stream', manager) as page:
            await manager.broadcast('x', element)
            await manager.broadcast('x', dict(inside=element))
            assert await page.read(2)==[('x', html), ('x', dict(inside=html))]
            assert 'event: x\n' in page.exchange.body.decode() and f'data: {html}\n\n' in page.exchange.body.decode()

    async def test_what_has_no_form(self, manager, caplog):
        "It spoils one message of this stream, and nothing for queues and renderers"
        odd,queue = object(),await manager.register_connection()
        async with (following('stream', manager) as plain,
                    following('stream', manager, render=lambda m: '<p>x</p>') as html):
            for o in odd, float('nan'), {1: odd}, {odd: 1}: await manager.broadcast('x', o)
            await manager.broadcast('x', 'fine')
            assert await plain.next()==('x', 'fine') and await html.read(5)==[('message', '<p>x</p>')]*5
            assert queue.get_nowait()['data'] is odd
        assert manager.stats()['errors']==4 and all(r.exc_info for r in caplog.records)


class TestEvents:
    "All that a stream sends"

    async def test_each_has_a_data_line(self, manager):
        "Heartbeats, gaps and ends too; comments are invisible to a browser"
        async with client('stream', manager, last_id='elsewhere-1', until='end') as page:
            await page.read()  # The gap: an end that came before would be part of it
            await manager.broadcast('end', 1)
            await page.ends()
        blocks = [o for o in page.exchange.body.decode().split('\n\n') if o]
        assert len(blocks)>=4 and all('\ndata:' in '\n'+o for o in blocks), blocks

    async def test_shortest_heartbeat(self):
        manager = SSEBroadcastManager(heartbeat=.02)
        async with client('stream', manager) as page:
            await eventually(lambda: len(page.events)>=4, 'heartbeats')
            assert {e.event for e in page.events}=={'sse:heartbeat'} and page.messages==[]

    async def test_headers(self, manager):
        "Nothing on the way holds events back, keeps them, or takes them for something else"
        async with client('stream', manager) as page: headers = page.exchange.headers
        assert headers['content-type']=='text/event-stream; charset=utf-8'
        assert headers['x-content-type-options']=='nosniff'
        assert {'no-store', 'no-transform'}<={o.strip() for o in headers['cache-control'].split(',')}
        assert headers['x-accel-buffering']=='no' and 'connection' not in headers

    async def test_hand_written_streams_are_left_alone(self):
        "FastHTML's own `sse_message` of an older app arrives as it was written"
        app,written = FastHTML(secret_key='contract'),sse_message(Div('a'), event='mine')
        insert_htmx_sse_ext(app.hdrs)
        async def messages(): yield written
        @app.get('/events')
        async def events(): return EventStream(messages())
        async with listening(app) as page:
            await page.ends()
            assert page.exchange.body.decode()==written
