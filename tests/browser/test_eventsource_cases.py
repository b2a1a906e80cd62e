"""Our source as `EventSource`: the cases of web-platform-tests, folder `eventsource/`, in words of our own

Each case runs with the browser's `EventSource`, which shows that the case is right, and with ours beside it. `OURS` says
where ours does something else on purpose. These cases of the suite have no counterpart here:

| case | why not |
|---|---|
| dedicated-worker, shared-worker, worker, service-worker | our source is part of a page |
| constructor-document-domain, url-multi-window, onmessage-realm | documents that share an object: a page has its own |
| from-readable-stream, data URLs | our source makes HTTP requests to its own origin |
| onmessage-trusted | only events that the browser itself dispatches are trusted |
| cross-origin-preflight, other cases of CORS | elements get the browser's own source for addresses of another origin |
| bfcache | `tests/contract/browser`: `TestTabs.test_back` |
| interfaces, user-agent-announce-connection | `constants`, `open` and `prototype` below |
"""
import json

import pytest
from browsers import new_context
from fasthtml.common import FastHTML, to_xml

from tests.contract.servers import running, uvicorn

from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext

END = 'event:end\ndata:\n\n'
HARNESS = """
    let number = 0;
    // The address of a response, see the app
    const address = (body, options = {}) => {
        const query = new URLSearchParams({ key: `${performance.now()} ${number++}`, ...options });
        for (const o of [body].flat()) query.append('body', o);
        return `/response?${query}`;
    };
    const counts = async url => (await fetch(`/requests?${new URL(url, location).searchParams}`)).json();
    const once = (source, type) => new Promise(resolve => source.addEventListener(type, resolve, { once: true }));
    const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));
    // Milliseconds from the end of a stream that has sent this to the next one
    const wait = async (Source, body) => {
        const source = new Source(address([body, 'data:a\\n\\n']));
        await once(source, 'error');
        const start = performance.now();
        await once(source, 'message');
        source.close();
        return performance.now() - start;
    };
    // One of three times: a busy machine may be late
    const soon = async f => await f() || await f() || await f();
    // Type, data and id of each event, up to the event `end`
    const events = (Source, url, types = ['message']) => new Promise(resolve => {
        const source = new Source(url), seen = [];
        for (const type of types) source.addEventListener(type, e => seen.push([e.type, e.data, e.lastEventId]));
        source.addEventListener('end', () => { source.close(); resolve(seen); });
    });
    const data = async (Source, url) => (await events(Source, url)).map(([, data]) => data);
    const sample = cjmSSE.connect('/response?body=', { multiplex: false });
    sample.close();
    const made = [], keep = source => { made.push(source); return source; };
    const Ours = new Proxy(sample.constructor, { construct: (_, [url]) => keep(cjmSSE.connect(url, { multiplex: false })) });
    const Native = new Proxy(EventSource, { construct: (Source, args) => keep(new Source(...args)) });
"""

BOM, DOTS = '\xef\xbb\xbf', '…'.encode().decode('latin-1')  # Bodies are bytes
# What the server sends, and the data of the messages
FORMATS = {
    'bom': (f'{BOM}data:1\n\n{BOM}data:2\n\ndata:3\n\n', ['1', '3']),
    'bom, twice': (f'{BOM}{BOM}data:1\n\ndata:2\n\ndata:3\n\n', ['2', '3']),
    'comments': (f'data:1\r:\0\n:\r\ndata:2\n:{"x" * 2048}\rdata:3\n:data:fail\r:{"x" * 2048}\ndata:4\n\n', ['1\n2\n3\n4']),
    'field-data': ('data:\n\ndata\ndata\n\ndata:test\n\n', ['', '\n', 'test']),
    'field-event-empty': ('event: \ndata:data\n\n', ['data']),
    'field-parsing': ('data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\n'
                      'data:4\n\n', ['\0\n 2\n1\n3\n\n4']),
    'field-unknown': ('data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n', ['test\n\ntest']),
    'leading-space': ('data:\ttest\rdata: \ndata:test\n\n', ['\ttest\n\ntest']),
    'newlines': ('data:test\r\ndata\ndata:test\r\n\r\n\r\n\r', ['test\n\ntest']),
    'null-character': ('data:\0\n\n\n\n', ['\0']),
    'utf-8': (f'data:ok{DOTS}\n\n', ['ok…']),
    'event-data': ('data:msg\ndata: msg\n\n:\nfalsefield:msg\n\nfalsefield:msg\nData:data\n\ndata\n\n', ['msg\nmsg', '']),
}
# Fields, and type, data and id of each event
EVENTS = {
    'field-event': ('event:test\ndata:x\n\ndata:x\n\n', [['test', 'x', ''], ['message', 'x', '']]),
    'field-event, twice': ('event:other\nevent:test\ndata:x\n\nevent:test\n\ndata:y\n\n', [['test', 'x', ''], ['message', 'y', '']]),
    'field-id, kept': ('id:1\ndata:a\n\ndata:b\n\nid\ndata:c\n\n',
                       [['message', 'a', '1'], ['message', 'b', '1'], ['message', 'c', '']]),
    'field-id-null': (''.join(f'id:1\nid:{o}\ndata:x\n\n' for o in ('\0\0', 'x\0', '\0x', 'x\0x', ' \0')), [['message', 'x', '1']] * 5),
}
# A script of `Source`, and what it gives
CASES = {
    # --- What a source is
    'constants': ("""Source => { const source = new Source(address(':\\n')); source.close();
        return [Source, source].flatMap(o => [o.CONNECTING, o.OPEN, o.CLOSED]) }""", [0, 1, 2] * 2),
    'prototype': ("""Source => { Source.prototype.answer = () => 42; const source = new Source(address(':\\n')); source.close();
        return [source.answer(), source.onopen, source.onmessage, source.onerror, source instanceof EventTarget] }""", [42, None, None, None, True]),
    'url': ("Source => { const url = address(':\\n'), source = new Source(url); source.close(); return source.url === location.origin + url }", True),
    'constructor-empty-url': ("Source => { const source = new Source(''); source.close(); return source.url === location.href }", True),
    'constructor-stringify': ("""async Source => { const url = address('data:a\\n\\nevent:end\\ndata:\\n\\n');
        return [await data(Source, { toString: () => url }), await data(Source, new URL(url, location))] }""", [['a'], ['a']]),
    'constructor-url-bogus': ("Source => { try { new Source('http://[') } catch (error) { return error instanceof Error } }", True),
    'readyState': ("""async Source => { const source = new Source(address(':\\n')), seen = [source.readyState];
        await once(source, 'open'); seen.push(source.readyState); source.close(); return [...seen, source.readyState] }""", [0, 1, 2]),

    # --- What it tells
    'onopen': ("""source => new Promise(resolve => { const s = new source(address(':\\n')); s.onopen = function (e) { s.close();
        resolve([e.type, 'data' in e, e.bubbles, e.cancelable, this === s]) } })""", ['open', False, False, False, True]),
    'onmessage': ("""Source => new Promise(resolve => { const source = new Source(address('data:a\\n\\n')); source.onmessage = function (e) { source.close();
        resolve([e.data, e.type, e instanceof MessageEvent, e.bubbles, e.cancelable, e.origin === location.origin, this === source]) } })""",
                  ['a', 'message', True, False, False, True, True]),
    'onmessage, set to none': ("""async Source => { const source = new Source(address('data:a\\n\\n')); let heard = false;
        source.onmessage = () => { heard = true }; source.onmessage = null; await once(source, 'message'); source.close(); return heard }""", False),
    'eventtarget': ("""async Source => { const source = new Source(address('data:a\\n\\n')), { data } = await once(source, 'message');
        source.close(); return data }""", 'a'),
    'a message named open': ("""async Source => { const source = new Source(address('event:open\\ndata:a\\n\\n')); let opened = 0;
        source.addEventListener('open', e => { if (!e.data) opened++ }); while (!(await once(source, 'open')).data); source.close(); return opened }""", 1),

    # --- Its end
    'close': ("""async Source => { const source = new Source(address('data:a\\n\\ndata:b\\n\\n')), seen = [];
        for (const o of ['error', 'message']) source.addEventListener(o, e => { seen.push(e.type); source.close() });
        await once(source, 'message'); await sleep(100); return [seen, source.readyState] }""", [['message'], 2]),
    'close, when it opens': ("""async Source => { const source = new Source(address('data:a\\n\\n')), seen = [];
        for (const o of ['open', 'error', 'message']) source.addEventListener(o, e => { seen.push(e.type); source.close() });
        await once(source, 'open'); await sleep(100); return [seen, source.readyState] }""", [['open'], 2]),
    'close, while it waits to come back': ("""async Source => { const url = address(['retry:50\\n\\n', '']), source = new Source(url);
        await once(source, 'error'); source.close(); await sleep(700); return [source.readyState, (await counts(url))[0]] }""", [2, 1]),
    'request-cancellation': ("""async Source => { const url = address('data:a\\n\\n'), source = new Source(url);
        await once(source, 'message'); const was = await counts(url); source.close();
        for (let i = 0; i < 700 && (await counts(url))[1]; i++) await sleep(20); return [was, await counts(url)] }""", [[1, 1], [1, 0]]),
    'request-cancellation, before the answer': ("""async Source => { const source = new Source(address('data:a\\n\\n', { pause: 10000 })), seen = [];
        for (const o of ['open', 'error', 'message']) source.addEventListener(o, e => seen.push(o));
        await sleep(50); source.close(); await sleep(300); return [seen, source.readyState] }""", [[], 2]),

    # --- Coming back
    'reconnect': ("""async Source => { const source = new Source(address(['retry:20\\ndata:a\\n\\n', 'data:b\\n\\n'])), seen = [];
        for (const o of ['open', 'error']) source.addEventListener(o, () => seen.push(o, source.readyState));
        const text = [(await once(source, 'message')).data, (await once(source, 'message')).data]; source.close(); return [...text, ...seen] }""",
                  ['a', 'b', 'open', 1, 'error', 0, 'open', 1]),
    'data-before-final-empty-line': ("""Source => data(Source, address(['retry:20\\ndata:whole\\n\\nid:x\\ndata:torn',
        'data:then {last-event-id}\\n\\nevent:end\\ndata:\\n\\n']))""", ['whole', 'then ']),
    'field-id': ("""Source => data(Source, address(['retry:20\\nid:…\\n\\n'.replace('…', '\\xe2\\x80\\xa6'),
        'data:{last-event-id}\\n\\nevent:end\\ndata:\\n\\n']))""", ['…']),
    'field-id-2': ("""Source => data(Source, address(['retry:20\\nid:1\\ndata:a\\n\\n', 'retry:20\\ndata:{last-event-id}\\n\\n',
        'data:{last-event-id}\\n\\nevent:end\\ndata:\\n\\n']))""", ['a', '1', '1']),
    'field-id-3': ("""Source => data(Source, address(['retry:20\\nid:1\\ndata:a\\n\\nid\\ndata:b\\n\\n',
        'data:none {last-event-id}\\n\\nevent:end\\ndata:\\n\\n']))""", ['a', 'b', 'none ']),
    'field-retry': ("Source => soon(async () => [await wait(Source, 'retry:0600\\n\\n')].map(ms => ms >= 290 && ms < 2900)[0])", True),
    'field-retry-bogus': ("""Source => soon(async () => await wait(Source,
        'retry:20\\n' + ['60000x', '-60000', '6e4'].map(o => `retry:${o}\\n`).join('') + '\\n') < 2900)""", True),

    'field-retry-empty': ("Source => data(Source, address('retry\\ndata:a\\n\\nevent:end\\ndata:\\n\\n'))", ['a']),

    # --- Its request
    'request-accept': ("Source => data(Source, address('data:{accept}\\n\\nevent:end\\ndata:\\n\\n'))", ['text/event-stream']),
    'request-cache-control': ("Source => data(Source, address('data:{cache-control}\\n\\nevent:end\\ndata:\\n\\n'))", ['no-cache']),
    'request-credentials': ("Source => data(Source, address('data:{cookie}\\n\\nevent:end\\ndata:\\n\\n'))", ['visitor=known']),
    'cross-origin': ("""async Source => { const body = 'data:{cookie}\\n\\n', there = location.origin.replace('127.0.0.1', 'localhost');
        const source = new Source(there + address(body), { withCredentials: true });
        const { origin } = await once(source, 'message'); source.close(); return [origin === there, source.withCredentials] }""", [True, True]),
    **{f'request-redirect {o}': (f"""async Source => {{ const to = address('data:there\\n\\nevent:end\\ndata:\\n\\n'),
        from = address(':\\n', {{ status: {o}, location: to }}), source = new Source(from), {{ data }} = await once(source, 'message');
        source.close(); return [data, source.url === location.origin + from] }}""", ['there', True]) for o in (301, 302, 303, 307)},

    # --- Answers that are no stream
    **{f'format-mime {o}': (f"""async Source => data(Source, address('data:a\\n\\nevent:end\\ndata:\\n\\n', {{ type: 'text/event-stream;{o}' }}))""",
                            ['a']) for o in ('', 'x=bogus', ' charset=utf-8')},
    **{o: (f"""async Source => {{ const url = address(['data:a\\n\\n', 'data:b\\n\\n'], {{ {how} }}), source = new Source(url), seen = [];
        source.addEventListener('message', e => seen.push(e.data)); await Promise.any([once(source, 'error'), once(source, 'sse:state'), sleep(15000)]);
        return [seen, source.readyState, (source.close(), await sleep(50), await counts(url))[0]] }}""", [[], 2, 1])
       for o, how in {'format-mime-bogus': "type: 'text/x-bogus'", **{f'request-status-error {n}': f'status: {n}' for n in (204, 205, 403, 404, 410, 503)}}.items()},
}
ALL = CASES | {k: (f'Source => data(Source, address({json.dumps(body + END)}))', wanted) for k,(body, wanted) in FORMATS.items()} | {
    k: (f"Source => events(Source, address({json.dumps(body + END)}), ['message', 'test', 'other'])", wanted) for k,(body, wanted) in EVENTS.items()}
# Where ours gives something else
COMES_BACK = [[], 0, 1], 'a server that is not well, or a page for logging in, is not the end: the stream comes back'
FIREFOX = 'field-id',  # Its own source does not do this
OURS = dict.fromkeys(['format-mime-bogus', *(f'request-status-error {n}' for n in (205, 404, 503))], COMES_BACK)


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    app = FastHTML(default_hdrs=False)
    insert_htmx_sse_ext(app.hdrs)
    client = next(o for o in map(to_xml, app.hdrs) if 'data-sse-client' in o)
    with running(uvicorn('responses:app', '--log-level', 'warning'), tmp_path_factory.mktemp('responses')/'log') as server:
        server.client = client.partition('>')[2].rpartition('<')[0]
        yield server


@pytest.fixture(scope='module')
def run(request, browsers, server):
    "Runs a case with the browser's source and with ours; what each gives"
    with new_context(browsers(request.param)) as context:
        context.direct |= {'asked'}
        context.add_init_script(f'{server.client};')
        page = context.new_page()
        page.goto(server.url)
        def run(name, script):
            own,ours = page.evaluate(f"""async () => {{ {HARNESS}
                const run = {script};
                const late = sleep(25000).then(async () => ['it takes too long',
                    ...await Promise.all(made.map(async o => [o.url, o.readyState, await counts(o.url)]))]);
                try {{ return await Promise.all([Native, Ours].map(o => Promise.race([run(o), late]))); }}
                finally {{ for (const o of made) o.close(); }} }}""")
            return [ours if request.param=='firefox' and name in FIREFOX else own, ours]
        yield run


@pytest.mark.parametrize('run', ['chromium'], indirect=True)
@pytest.mark.parametrize('name', ALL)
def test_chromium(run, name):
    script,wanted = ALL[name]
    assert run(name, script)==[wanted, OURS.get(name, [wanted])[0]]


# What is sent is parsed by scripts alone; how a request goes is the browser's business
@pytest.mark.parametrize('run', ['firefox'], indirect=True)
@pytest.mark.parametrize('name', CASES)
def test_firefox(run, name): test_chromium(run, name)
