"""One connection for each browser, as users meet it: real servers, HTTP/2, workers, floods

No stream has a connection of its own here, unless a test asks for it: `new_context` in browsers.py sees to that. The app
`many` counts what streams from it.
"""
import asyncio
import itertools
import os
import signal
from contextlib import suppress

import httpx
import pytest
from boards import ANSWERED, Board, Tabs
from browsers import new_context
from fasthtml.common import Div
from handmade import ASSETS
from starlette.responses import StreamingResponse

from tests.contract.servers import NO_TLS, free_port, running, uvicorn
from tests.contract.support import BOUND
from tests.proxies import lacking, proxying

from cjm_fasthtml_sse.htmx import HTMXSSEConnector

CARRIER = 'application/octet-stream'
LOCKS = 'async () => { const { held, pending } = await navigator.locks.query(); return held.length + pending.length }'
# What each stream of a page has brought, by its address; of long messages the number alone, to save the page's memory
GOT = """
    window.got = {};
    document.addEventListener('DOMContentLoaded', () => window.cjmSSE?.addEventListener('change', ({ detail }) => {
        if (got[detail.url]) return;
        const seen = got[detail.url] = [];
        detail.source.addEventListener('message', e => seen.push(e.data.length > 1000 ? parseInt(e.data) : e.data));
    }));"""


def connect(url, **kw): return HTMXSSEConnector.create_sse_element(endpoint=url, hidden=True, **kw)


@pytest.fixture
def serve(tmp_path):
    "Starts the app `many`, with so many streams in a page; the log of all starts is one"
    def serve(streams, *args, port=None, **env):
        env |= dict(ASSETS=str(ASSETS), STREAMS=str(streams))
        return running(uvicorn('many:served', '--log-level', 'warning', *args), tmp_path/'log', port=port, env=env)
    return serve


def ask(server, path, **params):
    "The answer, by a connection of its own; a worker that is about to go may drop it"
    with suppress(httpx.TransportError): return httpx.get(f'{server.url}{path}', params=params, verify=NO_TLS, timeout=BOUND).json()


def shown(server, tabs, text):
    "Send a text to all streams; do all show it?"
    ask(server, '/say', text=text)
    return all(tabs.all("text => [...document.querySelectorAll('.stream')].every(o => o.innerText === text)", text))


def carriers(server, until, n):
    "Wait until the server has `n` carriers open, and nothing else that streams"
    until(lambda: (ask(server, '/counted') or {}).get('open')=={CARRIER: n}, lambda: f"{n} carriers, not {ask(server, '/counted')}")


def test_killed_server(tabs, serve, until):
    "Eleven streams in each of seven tabs are one connection under htmx 4, and again after the server was killed"
    port = free_port()
    for n in range(2):
        with serve(11, port=port, HTMX='4') as server:
            if not n: tabs.open(server.url, 7)
            tabs.active(11)
            carriers(server, until, 1)
            until(lambda: shown(server, tabs, f'said {n}'), 'all show what is sent')
            assert tabs.all(ANSWERED.replace('/pages/none', '/counted'))==[200]*7, 'none waits for a connection'
        if not n: tabs.wait("cjmSSE.state === 'reconnecting'")


@pytest.mark.skipif(bool(lacking('nginx', 'openssl')), reason="needs Debian's packages nginx and openssl")
def test_http_2(browser, tmp_path, serve, until):
    "Tabs share a connection anyway: each has a carrier of its own, and none waits for another"
    with serve(5) as server, proxying('nginx', server.port, tmp_path) as proxy, \
            new_context(browser, ignore_https_errors=True) as context:
        page = context.new_page()
        page.errors = []
        tabs,loaded = Tabs(page),[]
        context.on('request', lambda r: loaded.append(r.url))
        tabs.open(proxy.url, 3)
        assert tabs.all("performance.getEntriesByType('navigation')[0].nextHopProtocol")==['h2']*3
        tabs.active(5)
        carriers(server, until, 3)
        until(lambda: shown(server, tabs, 'one'), 'all show what is sent')
        assert tabs.all(LOCKS)==[0]*3
        assert not [o for o in loaded if '/_sse/election-' in o], 'they elect nobody'
        tabs.pop().close()
        carriers(server, until, 2)
        assert not tabs.errors


def test_two_workers(tabs, serve, until):
    """Each knows its own carriers only: a page load takes at most three orders. Where a worker is killed its streams come
    back on those that there are then, and bring what is sent then"""
    posts = []
    tabs.context.on('request', lambda r: posts.append(r.url) if r.method=='POST' else None)
    with serve(6, '--workers', '2', '--timeout-keep-alive', '0') as server:
        found = {}
        def both():
            "Does each worker have a carrier? Which of them answers is chance"
            found.update((o['pid'], o['open']) for o in (ask(server, '/counted') for _ in range(10)) if o)
            if [*found.values()]==[{CARRIER: 1}]*2: return True
            tabs[0].evaluate('cjmSSE.sources[0].reconnect()')
            tabs.active(6)
        for _ in range(3):
            posts.clear()
            tabs.open(server.url)
            tabs.active(6)
            assert 0<len(posts)<=3
        until(both, 'each worker has a carrier')
        until(lambda: shown(server, tabs, 'both'), 'all show what comes from either')
        os.kill(min(found), signal.SIGKILL)  # uvicorn starts another one
        until(lambda: shown(server, tabs, 'still there'), 'all show what is sent now')
        tabs.active(6)


def test_flood_moves_out(page, tabs, site, until):
    "A stream that brings more than the browser takes gets a connection of its own; the others do not notice"
    page.direct.add('flood')
    flooding = []
    @site.app.route('/flood')
    async def flood(req):
        if 'sse-ticket' not in req.headers: flooding.append(req)
        async def frames():
            for n in range(200):
                yield f'id: {n}\ndata: {"x"*200_000}\n\n'
                await asyncio.sleep(0)
            await asyncio.Event().wait()
        return StreamingResponse(frames(), media_type='text/event-stream')
    @site.app.route('/ticks')
    async def ticks():
        async def frames():
            for n in itertools.count():
                yield f'data: {n}\n\n'
                await asyncio.sleep(.002)
        return StreamingResponse(frames(), media_type='text/event-stream')
    site.pages |= dict(none=lambda: 'none', p=lambda: Div(connect('/ticks'), connect('/flood', element_id='flood')))
    tabs.context.add_init_script(GOT)
    tabs.open(site.url('none'))
    line = tabs.context.new_cdp_session(tabs[0])
    line.send('Network.enable')
    slow = dict(offline=False, latency=0, downloadThroughput=1<<21, uploadThroughput=-1)
    line.send('Network.emulateNetworkConditions', slow)
    tabs[0].goto(site.url('p'))
    until(lambda: (len(flooding), site.connections)==(2, 2), 'the flood has a connection of its own', 60)
    tabs[0].evaluate("cjmSSE.get('flood').close()")
    until(lambda: site.connections==1, 'it has none any more')
    now = tabs[0].evaluate("got['/ticks'].length")
    tabs[0].wait_for_function("now => got['/ticks'].length > now", arg=now)
    assert tabs[0].evaluate("got['/ticks'].every((n, i) => n === `${i}`)")


def test_client_of_another_version(tabs, site, until):
    "As during a deploy: the server refuses its orders, so it opens direct streams. Neither takes anything from the other"
    tabs.context.direct.add('step')
    board = Board(site)
    def older(route):
        script = route.fetch()
        route.fulfill(response=script, body=script.text().replace('const VERSION=2;', 'const VERSION=1;'))
    tabs.open(board.url)
    tabs.open('about:blank').route('**/_sse/client-*', older)
    tabs[1].goto(board.url)
    for page in tabs:
        tabs.active(3)
        board.say()
        board.complete(tabs)
        until(lambda: site.connections==4, lambda: f'one for three streams, and three for three, not {site.served.open}')
        page.reload()
    tabs.active(3)
    board.say()
    board.complete(tabs)
