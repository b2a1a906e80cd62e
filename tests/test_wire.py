"The event-stream format, judged by hypothesis, httpx-sse and npm's eventsource-parser"
import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from httpx_sse import EventSource
from hypothesis import given, settings, strategies as st

from cjm_fasthtml_sse.engine.wire import FieldError, Parser, ServerSentEvent, comment, encode
from tools.assets import fetch

HERE = Path(__file__).parent

# What tends to break such formats comes up often: line ends, look-alikes of line ends, colons, spaces, the byte order mark, NUL
NASTY = '\r\n :\0\ufeff\u2028\u2029\x0b\x0c\x1c\x85é€🎈'
def made_of(nasty): return st.lists(st.sampled_from(nasty) | st.characters(codec='utf-8'), max_size=20).map(''.join)  # `st.text` would weigh all alike
texts = made_of(NASTY)
single_lines = texts.map(lambda s: re.sub('[\r\n\0]', '', s))
fields = st.fixed_dictionaries({'data': texts},
    optional={'event': single_lines.filter(bool), 'id': single_lines, 'retry': st.integers(0, 10**9)})
cuts = st.lists(st.floats(0, 1), max_size=8)


def chop(stream, cuts):
    "The stream in pieces; `cuts` are fractions of its length"
    at = sorted(int(c*len(stream)) for c in cuts)
    return [stream[i:j] for i, j in zip([0, *at], [*at, len(stream)])]


def received(cases):
    "What a receiver makes of encoded events: line ends become LF, an id stays in force"
    res, last = [], ''
    for o in cases:
        last = o.get('id', last)
        res.append(ServerSentEvent(o.get('event', 'message'), re.sub('\r\n|\r', '\n', o['data']), last, o.get('retry')))
    return res


def ours(chunks):
    p = Parser()
    return [e for c in chunks for e in p.feed(c)]


def httpx_sse(chunks):
    r = httpx.Response(200, headers={'content-type': 'text/event-stream; charset=utf-8'}, content=iter(chunks))
    return [ServerSentEvent(e.event, e.data, e.id, e.retry) for e in EventSource(r).iter_sse()]


@pytest.fixture(scope='module')
def eventsource_parser():
    "A function like `ours`, answered by one node process for all cases"
    node = shutil.which('node')
    if not node: pytest.skip("node isn't installed (Debian's package nodejs)")
    assert fetch(dev=True), 'npm could not install eventsource-parser: python tools/check.py scripts'
    lib = HERE.parent/'.assets/node_modules/eventsource-parser/dist/index.js'
    with subprocess.Popen([node, HERE/'js/eventsource_parser.mjs', lib], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as proc:
        def parse(chunks):
            print(json.dumps([base64.b64encode(c).decode() for c in chunks]), file=proc.stdin, flush=True)
            return [ServerSentEvent(*e) for e in json.loads(proc.stdout.readline())]
        try: yield parse
        finally: proc.kill()


# Any text, in any pieces

@given(st.lists(fields | texts, max_size=6), cuts)
@pytest.mark.parametrize('reader', [ours, httpx_sse, 'eventsource_parser'])
def test_round_trip(request, reader, items, cuts):
    "Texts are comments, which nobody sees"
    if isinstance(reader, str): reader = request.getfixturevalue(reader)
    if reader is httpx_sse: items = [o for o in items if isinstance(o, dict)]  # It takes a comment behind an id for an event
    stream = ''.join(comment(o) if isinstance(o, str) else encode(**o) for o in items).encode()
    assert reader(chop(stream, cuts)) == received(o for o in items if not isinstance(o, str))


any_text = made_of(NASTY+'\ud800\udfff')

@given(data=any_text, event=st.none() | any_text, id=st.none() | any_text)
def test_one_event_or_none(data, event, id):
    "No name, id, payload or half of a surrogate pair forges another event or field: what isn't refused arrives as it was"
    try: frame = encode(data, event, id)
    except FieldError: return
    assert ours([frame.encode()]) == received([{k: v for k, v in dict(data=data, event=event, id=id).items() if v is not None}])


# Any stream, in any pieces

parts = ['data', 'event', 'id', 'retry', 'x', ':', ': ', ' ', '\n', '\r', '\r\n', '\n\n', '7', '\0', '\ufeff', 'é', '🎈']
streams = st.lists(st.sampled_from([*map(str.encode, parts), b'\xc3', b'\xf0\x9f', b'\xff', b'\xed\xa0\x80'])).map(b''.join)


@given(streams | st.binary(), cuts)
def test_pieces_change_nothing(stream, cuts):
    "Bytes that aren't UTF-8 raise nothing, and are replaced the same way in any pieces"
    assert ours([stream]) == ours(chop(stream, cuts)) == ours([stream[i:i+1] for i in range(len(stream))])


@settings(max_examples=500)
@given(streams, cuts)
def test_streams_eventsource_parser(eventsource_parser, stream, cuts):
    "What others may send is read as a second implementation reads it"
    def seen(events): return [(e.event, e.data, e.id) for e in events]
    assert seen(ours(chop(stream, cuts))) == seen(eventsource_parser(chop(stream, cuts)))


def test_a_long_line_in_many_pieces():
    "Time grows with the bytes, not with their square: 16 MB in pieces of 1 KB"
    p, piece = Parser(), b'x'*1024
    assert p.feed(b'data:') == []
    for _ in range(16*1024): assert p.feed(piece) == []
    assert len(p.feed(b'\n\n')[0].data) == 16*1024*1024


def test_an_event_never_waits_for_the_next():
    "A CR ends its line without a look at what follows"
    p = Parser()
    assert p.feed(b'data: a\r\r') == [ServerSentEvent(data='a')]
    assert p.feed(b'\ndata: b\r\n\r') == [ServerSentEvent(data='b')]
    assert p.feed(b'') == []
    assert p.feed(b'\n') == []
    assert p.feed(b'\n') == []


# Some of what web-platform-tests' eventsource/format-* ask of a browser: stream, events as (event, data, last event id), `retry`

def msgs(*datas): return [('message', o, '') for o in datas]

FORMAT = {
    'bom': (b'\xef\xbb\xbfdata:one\n\n\xef\xbb\xbfdata:two\n\ndata:three\n\n', msgs('one', 'three'), None),
    'comments': (b'data:a\r:\0\n:\r\ndata:b\n:' + b'c'*2048 + b'\rdata:d\n:data:no\n\n', msgs('a\nb\nd'), None),
    'cut off': (b'data:whole\n\nid:7\ndata:cut off', msgs('whole'), None),
    'event': (b'event:note\ndata:a\n\nevent:note\nevent\ndata:b\n\n', [('note', 'a', ''), ('message', 'b', '')], None),
    'id': (b'id:1\ndata:a\n\ndata:b\n\nid:2\0\ndata:c\n\nid\ndata:d\n\n', [('message', *o) for o in ('a1', 'b1', 'c1', ('d', ''))], None),
    'fields': (b'data:\0\ndata:  a\rData:b\ndata\0:c\ndata:d\r\0data:e\ndata_g\ndata:h\rdata:\r\n data:i\ndata:j\n\n',
               msgs('\0\n a\nd\nh\n\nj'), None),
    'retry': (b'retry:03000\nretry:1000x\nretry\ndata:a\n\n', msgs('a'), 3000),
    'utf-8': (b'data:\xc3(\xf0\x9f\x8e|\xed\xa0\x80\n\n', msgs('\ufffd(\ufffd|\ufffd\ufffd\ufffd'), None)}

@pytest.mark.parametrize('name', FORMAT)
def test_format(name):
    p, (stream, want, retry) = Parser(), FORMAT[name]
    assert ([(e.event, e.data, e.id) for e in p.feed(stream)], p.retry) == (want, retry)
    assert p.last_event_id == want[-1][2]  # What a reconnection would send; an event that was cut off sets nothing


@pytest.mark.parametrize('value', ['3000ms', '-1', '+1', '3.5', '', ' 1', '٣', '1_000', '9'*5000])
def test_retry_is_digits_and_nothing_else(value):
    p = Parser()
    assert p.feed(f'retry: 3000\nretry: {value}\ndata: a\n\n'.encode()) == [ServerSentEvent(data='a', retry=3000)]
