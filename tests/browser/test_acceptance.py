"""One connection for each browser, as users meet it: real servers, real proxies, any number of tabs

No stream has a connection of its own here, unless a test asks for it: `new_context` in browsers.py sees to that. The app
`counted` around each of the others counts what reaches the server.
"""
import asyncio
import itertools
import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from statistics import median

import httpx
import pytest
from boards import Tabs
from browsers import frozen, new_context, renderer
from fasthtml.common import Div
from handmade import ASSETS
from starlette.responses import StreamingResponse

from tests.proxies import lacking, program, proxying
from tests.contract.servers import free_port, running, uvicorn

from cjm_fasthtml_sse.htmx import HTMXSSEConnector

CARRIER = 'application/octet-stream'
# Milliseconds that a further request takes: it would wait for ever where all connections are taken
ANSWERS = """async () => {
    const start = performance.now();
    await (await fetch('/_counted', {cache: 'no-store', signal: AbortSignal.timeout(10000)})).text();
    return performance.now() - start; }"""
# Who holds the connection is known by locks
LOCKS = """async () => { const {held, pending} = await navigator.locks?.query() ?? {held: [], pending: []};
    return [...held, ...pending].map(lock => lock.name) }"""
# What each stream of a page has brought, by its address; of long messages the number alone, as their texts would fill the page's memory
GOT = """
    window.got = {};
    document.addEventListener('DOMContentLoaded', () => window.cjmSSE?.addEventListener('change', ({ detail: { source, url } }) => {
        if (got[url]) return;
        const seen = got[url] = [];
        source.addEventListener('message', e => seen.push(e.data.length > 1000 ? parseInt(e.data) : e.data));
    }));"""
FIRST = """
    document.addEventListener('DOMContentLoaded', () => cjmSSE.addEventListener('change', ({ detail: { source } }) => {
        if (window.began) return;
        window.began = performance.now();
        source.addEventListener('message', () => { window.first ??= performance.now() - began; });
    }));"""
# `all` and `job-0` to `job-9` of the app `jobs_many` show this
HEARD = "text => [...document.querySelectorAll('#all, [id^=job-]')].filter(o => o.innerText === text).length === 11"


def needs(*names): return pytest.mark.skipif(bool(lacking(*names)), reason=f"needs Debian's packages {', '.join(names)}")
def connect(url, **kw): return HTMXSSEConnector.create_sse_element(endpoint=url, **kw)
def counted(server): return httpx.get(f'{server.url}/_counted').json()


@pytest.fixture
def serve(tmp_path):
    "Starts an app of tests/apps, counted; the log of all starts is one"
    def serve(app, port=None, args=(), **env):
        command = uvicorn('counted:app', '--log-level', 'warning', *args)
        return running(command, tmp_path/'log', port=port, env=dict(APP=app, ASSETS=str(ASSETS), **env))
    return serve


@contextmanager
def context_tabs(browser, **options):
    "Tabs of a context unlike that of all other tests"
    with new_context(browser, **options) as context:
        page = context.new_page()
        page.errors = []
        yield Tabs(page)
    assert not page.errors


def carriers(server, until, n=1):
    "Wait until the server has `n` carriers open, and nothing else that streams"
    def now(): return counted(server)['open']
    until(lambda: now()=={CARRIER: n}, lambda: f'{n} carriers and nothing else; there are {now()}: this')


def say(server, tabs, text, n=5):
    "Send it to all; each of the `n` streams of each page of the app `streams` shows it"
    assert httpx.get(f'{server.url}/say', params=dict(text=text)).status_code==200
    tabs.wait("([text, n]) => [...Array(n).keys()].every(i => document.querySelector(`#s${i}`).innerText === text)", [text, n])


class TestApps:
    def test_21_streams_in_12_tabs(self, tabs, serve, until):
        "One connection under htmx 4, and again after a restart, and after the server was killed"
        port = free_port()
        def right(server, n):
            tabs.active(21)
            carriers(server, until)
            for type,data in [('all:x', f'all {n}'), ('job:3', f'job {n}'), ('hand:4', f'hand {n}')]:
                until(lambda: int(httpx.get(f'{server.url}/say', params=dict(type=type, data=data)).text)>=12, 'all are there')
            tabs.wait("""n => Object.entries({all: `all ${n}`, 'job-3': `job ${n}`, 'job-4': `hand ${n}`, 'job-5': 'state of 5', 'job-9': 'hello 9'})
                .every(([id, text]) => document.getElementById(id).innerText === text)""", n)
            assert max(tabs.all(ANSWERS))<5000, 'none has to wait for a connection'
        for n,sig in enumerate([signal.SIGTERM, signal.SIGKILL, None]):
            with serve('jobs_many:app', port=port, HTMX='4') as server:
                if not n: tabs.open(server.url, 12)
                right(server, n)
                if sig is None: break
                server.signal(sig)
                server.process.wait(20)
            tabs.wait("cjmSSE.state === 'reconnecting'")

    def test_app_that_writes_to_its_session(self, tabs, serve, until):
        "On each request, as a counter of visits does: four tabs on one carrier, and what it sets arrives"
        with serve('streams:served', VISITS='1') as server:
            for _ in range(4):
                tabs.open(server.url)
                tabs.active(5)
            carriers(server, until)
            say(server, tabs, 'one')
            requests = sum(counted(server)['requests'].values())
            say(server, tabs, 'two')
            assert max(tabs.all(ANSWERS))<10000
            after = counted(server)
            assert sum(after['requests'].values())-requests<30, f'quiet is quiet: {after["requests"]}'
            carriers(server, until)
            assert [c['name'] for c in tabs.context.cookies() if c['name'].startswith('sse')]==['sse_browser']


@contextmanager
def nginx(folder, app):
    "nginx before the app at port `app`, with all defaults"
    folder,port = folder/'nginx',free_port()
    folder.mkdir()
    temp = ' '.join(f'{o}_temp_path {folder}/{o};' for o in ('client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'))
    user = '' if os.geteuid() else 'user root; '
    (folder/'nginx.conf').write_text(
        f'{user}daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n'
        f'http {{ access_log off; {temp}\n'
        f'server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{app}; }} }} }}\n')
    command = [program('nginx'), '-p', folder, '-c', folder/'nginx.conf', '-e', folder/'error.log']
    with running(command, folder/'log', port=port, cwd=folder) as proxy: yield proxy


class TestProxies:
    @needs('nginx')
    def test_nginx_as_it_comes(self, tabs, tmp_path, serve, until):
        """`proxy_pass` and nothing else: the app hears another Host than the browser has. A job queue written by hand,
        where nothing is set up but the extension"""
        with serve('jobs_by_hand:app') as server, nginx(tmp_path, server.port) as proxy:
            tabs.open(proxy.url, 5)
            tabs.active(1)
            for i in range(4): httpx.get(f'{server.url}/start?id={i}')
            tabs.active(9)
            tabs.open(proxy.url)
            tabs.active(9)
            for i in range(4): httpx.get(f'{server.url}/move?id={i}')
            tabs.wait("[...document.querySelectorAll('#jobs > li')].map(o => o.innerText).join() === '1at 1,1at 1,1at 1,1at 1'")
            carriers(server, until)
            assert max(tabs.all(ANSWERS))<10000

    @pytest.mark.parametrize('name', [pytest.param(o, marks=needs(o, 'openssl')) for o in ('nginx', 'caddy')])
    def test_http_2(self, browser, tmp_path, serve, until, name):
        "Tabs share a connection anyway: each has a carrier of its own, and none waits for another"
        options = dict(ignore_https_errors=True)
        with serve('streams:served') as server, proxying(name, server.port, tmp_path) as proxy, context_tabs(browser, **options) as tabs:
            tabs.open(proxy.url, 4)
            assert tabs.all("performance.getEntriesByType('navigation')[0].nextHopProtocol")==['h2']*4
            tabs.active(5)
            carriers(server, until, 4)
            say(server, tabs, 'one')
            assert tabs.all(LOCKS)==[[]]*4
            tabs.pop().close()
            carriers(server, until, 3)


class TestWorkers:
    def test_orders_of_a_page_load(self, tabs, serve, until):
        "With several processes, each of which knows its own carriers only: at most three orders"
        posts = []
        tabs.context.on('request', lambda r: posts.append(r.url) if r.method=='POST' else None)
        with serve('streams:served', args=('--workers', '4')) as server:
            for n in range(5):
                posts.clear()
                tabs.open(server.url)
                tabs.active(5)
                assert 0<len(posts)<=3, f'page {n}: {len(posts)} orders'

    def test_two_workers(self, tabs, tmp_path, until):
        "One after the other is killed, then both are replaced: all streams come back, and bring what is sent then"
        args = '--workers', '2', '--timeout-keep-alive', '0', '--log-level', 'warning'
        with running(uvicorn('jobs_many:served', *args), tmp_path/'log', env=dict(ASSETS=str(ASSETS), STREAMS='10')) as server:
            def ask(path, **params):
                "By a connection of its own, which a worker that is about to go may drop. Which of them answers is chance"
                with suppress(httpx.TransportError): return httpx.get(f'{server.url}{path}', params=params, verify=False).json()
            def workers():
                "Those that there are; and does each have a carrier with streams?"
                found = {}
                for _ in range(30):
                    if state := ask('/counted'): found[state['pid']] = state['counts']=={CARRIER: 1} and state['connections']>0
                return {*found},len(found)==2 and all(found.values())
            def both():
                if workers()[1]: return True
                tabs[0].evaluate('cjmSSE.sources[0].reconnect()')
                tabs.active(11)
            def heard(text):
                for type in ('all:x', *(f'{"hand" if n%5==4 else "job"}:{n}' for n in range(10))): ask('/say', type=type, data=text)
                return all(tabs.all(HEARD, text))
            tabs.open(server.url, 4)
            tabs.active(11)
            until(both, 'a carrier of each worker')
            until(lambda: heard('both'), 'all show what comes from either')
            for pid in workers()[0]:
                os.kill(pid, signal.SIGKILL)  # uvicorn starts another one
                until(lambda text=f'not {pid}': heard(text), 'all show what is sent now')
            before = workers()[0]
            server.signal(signal.SIGHUP)
            until(lambda: len(now := workers()[0])==2 and not now & before, 'both are new', 60)
            until(lambda: heard('both are new'), 'all show what is sent now')
            tabs.active(11)


class TestFloods:
    def test_frozen_tab(self, tabs, serve, until):
        "200 MB are sent to a tab that is frozen: the one that leads keeps next to none of it, and the frozen one catches up"
        def resident(): return int(open(f'/proc/{pid}/statm').read().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20
        with serve('streams:served') as server:
            leader = tabs.open(f'{server.url}/?streams=2')
            leader.wait_for_function("cjmSSE.state === 'active'")
            late = tabs.open('about:blank')
            late.add_init_script(GOT)
            late.goto(f'{server.url}/bulky')
            tabs.active(2)
            carriers(server, until)
            httpx.get(f'{server.url}/say_bulk?mb=1', timeout=60)
            late.wait_for_function("got['/bulk']?.at(-1) === 9")
            pid,cdp = renderer(leader),tabs.context.new_cdp_session(leader)
            def memory():
                cdp.send('HeapProfiler.collectGarbage')
                return resident()
            with frozen(late):
                before = memory()
                sending = threading.Thread(target=lambda: httpx.get(f'{server.url}/say_bulk?mb=200', timeout=100), daemon=True)
                sending.start()
                sending.join(100)
                httpx.get(f'{server.url}/say?text=meanwhile')
                leader.wait_for_function("document.querySelector('#s0').innerText === 'meanwhile'")
                kept = memory()-before
            assert kept<50
            late.wait_for_function("parseInt(got['/bulk'].at(-1)) === 1999")
            heard = [int(o) for o in late.evaluate("got['/bulk'].slice(got['/bulk'].indexOf(9) + 1)")]
            assert heard==sorted(set(heard)), 'in order and once; the last one by a snapshot, if the server keeps no more so many'
            say(server, tabs, 'one', 1)

    def test_flood_moves_out(self, page, tabs, site, until):
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
        site.pages['none'] = lambda: 'none'
        site.pages['p'] = lambda: Div(connect('/ticks', hidden=True), connect('/flood', element_id='flood', hidden=True))
        tabs.context.add_init_script(GOT)
        tabs.open(site.url('none'))
        line = tabs.context.new_cdp_session(tabs[0])
        line.send('Network.enable')
        line.send('Network.emulateNetworkConditions', dict(offline=False, latency=0, downloadThroughput=1<<21, uploadThroughput=-1))
        tabs[0].goto(site.url('p'))
        until(lambda: (len(flooding), site.connections)==(2, 2), 'the flood has a connection of its own', 60)
        tabs[0].evaluate("cjmSSE.get('flood').close()")
        until(lambda: site.connections==1, 'it has none any more')
        now = tabs[0].evaluate("got['/ticks'].length")
        tabs[0].wait_for_function("now => got['/ticks'].length > now", arg=now)
        assert tabs[0].evaluate("got['/ticks'].every((n, i) => n === `${i}`)")


@pytest.mark.parametrize('first, second', [('old', 'new'), ('new', 'old')])
def test_old_client_beside_a_new_one(tabs, serve, until, first, second):
    "During a deploy: neither takes anything from the other, and both get all that is sent since they were drawn"
    tabs.context.direct.add('step')
    tabs.context.add_init_script(GOT)
    with serve('deploy:app') as server:
        sent = [f'm{n}' for n in range(24)]
        def send(texts):
            for o in texts:
                httpx.get(f'{server.url}/say', params=dict(text=o))
                time.sleep(.12)  # Longer than what one client once waited for the other
        tabs.open(f'{server.url}/{first}')
        tabs.active(1)
        send(sent[:4])
        rest = threading.Thread(target=send, args=(sent[4:],))
        rest.start()
        tabs.open(f'{server.url}/{second}')
        tabs.active(1)
        rest.join(60)
        tabs.wait("got['/events']?.at(-1) === 'm23'")
        heard = tabs.all("got['/events']")
        assert heard[0]==sent
        assert heard[1]==sent[sent.index(heard[1][0]):] and len(heard[1])>8
        until(lambda: counted(server)['open'].get(CARRIER)==1)
        for i,page in enumerate(tabs):
            page.reload()
            tabs.active(1)
            httpx.get(f'{server.url}/say?text=again{i}')
            tabs.wait("text => got['/events'].at(-1) === text", f'again{i}')


def test_time_to_the_first_event(browser, serve):
    "After the first visit, beside streams without carriers, in turns"
    with serve('streams:served') as one, serve('streams:served', MULTIPLEX='0') as other, context_tabs(browser) as tabs:
        tabs.context.direct.add('off')
        tabs.context.add_init_script(FIRST)
        for server in one,other: tabs.open(f'{server.url}/?streams=1')
        tabs.active(1)
        took = [[],[]]
        for _ in range(9):
            for page,times in zip(tabs, took):
                page.reload()
                page.wait_for_function('window.first !== undefined')
                times.append(page.evaluate('first'))
    carried,direct = map(median, took)
    assert carried-direct<100, took
