"""One mechanism in the browser, as users meet it: real servers, a real proxy, any number of tabs, whatever the app is like

No stream has a connection of its own here, unless a test asks for it: `new_context` in tabs.py sees to that. What crosses the
server's socket is counted by the app `counted` around each of the others."""
import json
import os
import signal
import statistics
import struct
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from handmade import ASSETS, Proxy
from browsers import frozen, new_context, renderer
from tabs import Tabs
sys.path.insert(0, str(Path(__file__).parents[1]))
from proxies import lacking, program, proxying  # noqa: E402
from tests.contract.servers import free_port, running, uvicorn  # noqa: E402

from cjm_fasthtml_sse.multiplex.endpoint import PATH
from cjm_fasthtml_sse.multiplex.protocol import CONTROL

CARRIER,STREAM = 'application/octet-stream','text/event-stream'
needs_nginx = pytest.mark.skipif(bool(lacking('nginx', 'openssl')), reason="needs Debian's packages nginx and openssl")
# Milliseconds that a further request takes: it would wait for ever where all connections are taken
ANSWERS = """async () => {
    const start = performance.now();
    await (await fetch('/_counted', {cache: 'no-store', signal: AbortSignal.timeout(10000)})).text();
    return performance.now() - start; }"""
# Who leads is known by locks
LOCKS = "async () => { const {held, pending} = await navigator.locks?.query() ?? {held: [], pending: []}; return [...held, ...pending].map(lock => lock.name) }"


def counted(server): return httpx.get(f'{server.url}/_counted').json()
def opened(server): return counted(server)['open']


@pytest.fixture
def serve(tmp_path):
    "Starts an app of tests/apps, counted; the log of all starts is one"
    def serve(app, port=None, args=(), host=None, **env):
        command = uvicorn('counted:app', '--log-level', 'warning', *args)
        if host: command[command.index('--host')+1] = host
        return running(command, tmp_path/'log', port=port, env=dict(APP=app, ASSETS=str(ASSETS), **env))
    return serve


@contextmanager
def context_tabs(browser, **options):
    "Tabs of a browser, or of a context, unlike that of all other tests"
    with new_context(browser, **options) as context:
        page = context.new_page()
        page.errors,page.console,page.direct = [],[],context.direct
        tabs = Tabs(page)
        yield tabs
    assert not page.errors


def carriers(server, until, n=1):
    "Wait until the server has `n` carriers open, and nothing else that streams"
    until(lambda: opened(server) == {CARRIER: n}, lambda: f'{n} carriers and nothing else; there are {opened(server)}: this')


def say(server, tabs, text, n=5):
    "Tell all; each of the `n` streams of each page of the app `streams` shows it"
    assert httpx.get(f'{server.url}/say', params=dict(text=text)).status_code == 200
    shows(tabs, text, n)


def shows(tabs, text, n=5):
    tabs.wait("([text, n]) => [...Array(n).keys()].every(i => document.querySelector(`#s${i}`).innerText === text)", [text, n])


# --- Apps that were there before

def test_older_app(tabs, serve, until):
    "Written by hand, nothing called but `insert_htmx_sse_ext`: 12 tabs with a stream for all and two for each of 8 jobs"
    with serve('jobs_by_hand:app') as server:
        def get(path, **params): return httpx.get(f'{server.url}/{path}', params=params)
        tabs.open(server.url, 6)
        tabs.active(1)
        for i in range(8): assert get('start', id=i).text == 'started'
        tabs.active(17)
        tabs.open(server.url, 6)
        tabs.active(17)
        carriers(server, until)
        for n in (1, 2):
            for i in range(8): assert tabs[i].evaluate("async i => await (await fetch(`/move?id=${i}`)).text()", i) == str(n)
            tabs.wait("n => document.querySelectorAll('#jobs > li').length === 8 && [...document.querySelectorAll('#jobs > li')].every(li => li.innerText === `${n}at ${n}`)", n)
        assert get('counted').json()['now'] == {'all': 12, **{f'{kind} {i}': 12 for kind in ('progress', 'status') for i in range(8)}}
        print('a further request takes', sorted(round(o) for o in tabs.all(ANSWERS)), 'ms')
        carriers(server, until)
        for page in tabs[1:]: page.close()
        until(lambda: get('counted').json()['now'].get('all') == 1, 'the streams of tabs that are gone end')


@pytest.mark.parametrize('flags', [[], ['--htmx4']], ids=['htmx 2', 'htmx 4'])
def test_demo(tabs, tmp_path, until, flags):
    "The job board in 12 tabs with 20 jobs, one of the tabs on a telephone"
    name = 'a-folder-with-a-name-that-is-much-too-long-for-the-screen-of-a-telephone-in-one-line'
    for i in range(3):
        (tmp_path/'root'/name).mkdir(parents=True, exist_ok=True)
        (tmp_path/f'root/{name}/{i}').touch()
        os.truncate(tmp_path/f'root/{name}/{i}', 1<<26)
    command = [sys.executable, Path(__file__).parents[2]/'demo/main.py', '--root', tmp_path/'root', '--rate', '.5', '--port', '{port}', *flags]
    with running(command, tmp_path/'log', cwd=tmp_path) as server:
        tabs.open(server.url, 11)
        phone = tabs.open('about:blank')
        phone.set_viewport_size(dict(width=390, height=844))
        phone.goto(server.url)
        for page in tabs[:2]:
            page.get_by_role('combobox').fill(name)
            page.get_by_role('button', name='Start').click()
        for _ in range(18): assert httpx.post(f'{server.url}/start', data=dict(folder=name)).status_code == 200
        tabs.wait("document.querySelectorAll('#jobs > .running').length === 8 && document.querySelectorAll('#jobs > li').length === 20")
        was = "[...document.querySelectorAll('#jobs > .running progress')].map(bar => bar.position)"
        for page in tabs: page.wait_for_function(f'was => {was}.every((at, i) => at > was[i])', arg=page.evaluate(was))
        assert phone.evaluate('document.documentElement.scrollWidth <= innerWidth')
        assert tabs.all('cjmSSE.state') == ['active']*12
        tabs[0].locator('#jobs > .running button').first.click()
        tabs[1].locator('#jobs > .running button').last.click()
        tabs.wait("document.querySelectorAll('#jobs > .cancelled').length === 2")


def test_app_that_writes_to_its_session(tabs, serve, until):
    "On each request, as a counter of visits does: 8 tabs on one carrier, and what it sets arrives"
    with serve('streams:served', VISITS='1') as server:
        for _ in range(8):
            tabs.open(server.url)
            tabs.active(5)
        carriers(server, until)
        say(server, tabs, 'one')
        requests = sum(counted(server)['requests'].values())
        say(server, tabs, 'two')
        assert max(tabs.all(ANSWERS)) < 10000
        after = counted(server)
        assert sum(after['requests'].values())-requests < 30, f'quiet is quiet: {after["requests"]}'
        carriers(server, until)
        assert [c['name'] for c in tabs.context.cookies() if c['name'].startswith('sse')] == ['sse_browser']


# --- What is between the browser and the app

@contextmanager
def nginx(folder, app, more='', port=None):
    "nginx before the app at port `app`, with all defaults. Written anew with another `more`, and told so, it goes on"
    folder,port = Path(folder)/'nginx',port or free_port()
    folder.mkdir(exist_ok=True)
    temp = ''.join(f'{o}_temp_path {folder}/{o}; ' for o in ('client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'))
    def write(more):
        (folder/'nginx.conf').write_text(f'{"" if os.geteuid() else "user root; "}daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_shutdown_timeout 1s; events {{}}\n'
            f'http {{ access_log off; {temp}\nserver {{ listen 127.0.0.1:{port};\nlocation / {{ proxy_pass http://127.0.0.1:{app}; }}\n{more} }} }}\n')
    write(more)
    with running([program('nginx'), '-p', folder, '-c', folder/'nginx.conf', '-e', folder/'error.log'], folder/'log', port=port, cwd=folder) as proxy:
        def change(more):
            write(more)
            proxy.signal(signal.SIGHUP)
        proxy.change = change
        yield proxy


@needs_nginx
@pytest.mark.parametrize('app', ['streams:served', 'jobs_by_hand:app'])
def test_nginx_as_it_comes(tabs, tmp_path, serve, until, app):
    "`proxy_pass` and nothing else: the app hears another Host than the browser has"
    with serve(app) as server, nginx(tmp_path, server.port) as proxy:
        tabs.open(proxy.url, 8)
        if app.startswith('jobs'):
            tabs.active(1)
            httpx.get(f'{server.url}/start?id=1')
            tabs.active(3)
            httpx.get(f'{server.url}/move?id=1')
            tabs.wait("document.querySelector('#jobs').innerText === '1at 1'")
        else:
            tabs.active(5)
            say(server, tabs, 'one')
        carriers(server, until)
        assert max(tabs.all(ANSWERS)) < 10000


@pytest.mark.parametrize('name', [pytest.param(o, marks=pytest.mark.skipif(bool(lacking(o, 'openssl')), reason=f'needs {o} and openssl')) for o in ('nginx', 'caddy')])
def test_http_2(browser, tmp_path, serve, until, name):
    "Tabs share a connection anyway: each has a carrier of its own, and none waits for another"
    with serve('streams:served') as server, proxying(name, server.port, tmp_path) as proxy, context_tabs(browser, ignore_https_errors=True) as tabs:
        tabs.open(proxy.url, 8)
        assert tabs.all("performance.getEntriesByType('navigation')[0].nextHopProtocol") == ['h2']*8
        tabs.active(5)
        carriers(server, until, 8)
        say(server, tabs, 'one')
        assert tabs.all(LOCKS) == [[]]*8
        tabs.pop().close()
        carriers(server, until, 7)


class Collecting(Proxy):
    "Keeps the body of a carrier until it is complete, which it never is; with `all`, its headers too"
    what = 'body'

    async def _pass(self, reader, writer, *args):
        keeps = False
        try:
            while data := await reader.read(65536):
                if self.what and f'content-type: {CARRIER}'.encode() in data.lower():
                    keeps,head = True,data.partition(b'\r\n\r\n')[0]+b'\r\n\r\n'
                    if self.what == 'body': writer.write(head)
                if not keeps: writer.write(data)
        except OSError: pass
        finally: writer.close()


def test_proxy_that_collects_the_carrier(tabs, serve, loop, until):
    "Streams go on without, the console says why; and once the proxy lets it through, they are on a carrier again"
    tabs.context.direct.add('step')
    with serve('streams:served') as server:
        proxy = Collecting(loop, server.port)
        try:
            url = f'http://127.0.0.1:{proxy.port}/?streams=4'
            page = tabs.open(url)
            tabs.active(4)
            say(server, tabs, 'one', 4)
            until(lambda: opened(server).get(STREAM) == 4)
            warnings = lambda: [text for type,text in tabs.console if type == 'warning' and '[sse]' in text]
            until(warnings, 'a warning')
            say(server, tabs, 'two', 4)
            proxy.what = ''
            page.evaluate('cjmSSE.mux.tryAgain()')  # What a timer does, some minutes later
            carriers(server, until)
            tabs.active(4)
            say(server, tabs, 'three', 4)
            assert len(warnings()) == 1, warnings()
        finally: proxy.stop()


# --- Users

@pytest.fixture
def users(serve):
    with serve('users:app') as server:
        server.present = lambda: httpx.get(f'{server.url}/present').json()
        server.say = lambda text: httpx.get(f'{server.url}/say', params=dict(text=text))
        yield server


class Guest:
    "Somebody who speaks to the server by hand"
    def __init__(self, url): self.client = httpx.Client(base_url=url, timeout=10)
    def __enter__(self): return self
    def __exit__(self, *exc): self.client.close()

    def ticket(self, path):
        with self.client.stream('GET', path, headers={'SSE-Ticket': '1'}) as r: return r.headers.get('sse-ticket')

    @contextmanager
    def order(self, *open, carriers=(), close=(), **headers):
        "The response to an order; `frames` reads what comes on it"
        body = dict(carriers=[*carriers], open=[[n, path, ticket, '', ''] for n,path,ticket in open], close=[*close], become=True)
        headers = {'Content-Type': 'application/json', 'SSE-Mux': '2', 'Sec-Fetch-Site': 'same-origin', **{k.replace('_', '-'): v for k,v in headers.items()}}
        with self.client.stream('POST', PATH, content=json.dumps(body), headers=headers) as r: yield r


def frames(response):
    "Number and content of each frame"
    rest = b''
    for data in response.iter_raw():
        rest += data
        while len(rest) >= 8 and len(rest) >= 8+(size := struct.unpack('>II', rest[:8])[1]):
            yield struct.unpack('>I', rest[:4])[0],rest[8:8+size]
            rest = rest[8+size:]


def words(each, *numbers):
    "What the channels `numbers` say first"
    said = {}
    for number,body in each:
        if number%CONTROL in numbers: said.setdefault(number%CONTROL, json.loads(body) if number >= CONTROL else body)
        if len(said) == len(numbers): return said
    return said


def test_stranger_with_a_copied_ticket(users):
    "He gets nothing that he could not fetch, whatever he has copied"
    with Guest(users.url) as ann, Guest(users.url) as bob, Guest(users.url) as stranger:
        ann.client.get('/login?name=ann')
        bob.client.get('/login?name=bob')
        ticket = ann.ticket('/mine')
        assert ticket
        assert stranger.ticket('/mine') is None
        with ann.order((1, '/mine', ticket)) as r: assert words(frames(r), 1)[1]['status'] == 200, 'she may'
        with bob.order((1, '/mine', ticket), (2, '/mine', ''), (3, '/mine', bob.ticket('/mine'))) as r:
            said = words(frames(r), 1, 2, 3)
            assert said[1] == said[2] == {'ticket': True} and said[3]['status'] == 200
        forged = ticket[:-1] + ('0' if ticket[-1] != '0' else '1')
        late = ticket.split('.')
        late[1] = str(int(late[1])+1000)
        with ann.order((1, '/mine', forged), (2, '/mine', '.'.join(late)), (3, '/news', ticket), (4, '/mine?x=1', ticket)) as r:
            said = words(frames(r), 1, 2, 3, 4)
            assert said[1] == said[2] == said[3] == {'ticket': True}
            assert said[4]['status'] == 200, 'without the query, whose stream it is decides the app'
        # Before and after he has a cookie of ours
        for own in (None, stranger.ticket('/news')):
            with stranger.order((1, '/mine', ticket), *([(2, '/news', own)] if own else [])) as r:
                if r.status_code == 200: assert words(frames(r), 1, *([2] if own else []))[1] == {'ticket': True}
                else: assert not own and r.status_code in (204, 401, 403), r.status_code
        assert own, 'what is open to all is open to him'


def test_stranger_with_a_copied_carrier(users, until):
    "Nothing of his comes there, nothing there can he close, and what comes there he does not hear"
    with Guest(users.url) as ann, Guest(users.url) as stranger:
        ann.client.get('/login?name=ann')
        own = stranger.ticket('/news')
        with ann.order((1, '/mine', ann.ticket('/mine')), (2, '/news', ann.ticket('/news'))) as r:
            said = frames(r)
            while next(said)[1].find(b'hello') < 0: pass
            with stranger.order((7, '/news', own), carriers=[r.headers['sse-carrier']], close=[1, 2]) as other:
                heard_there = frames(other)
                if other.status_code == 200:
                    assert other.headers['sse-carrier'] != r.headers['sse-carrier']
                    assert words(heard_there, 7)[7]['status'] == 200
                else: assert other.status_code in (409, 403) and 'sse-carrier' not in other.headers
                users.say('secret')
                heard,numbers = b'',set()
                while not (b'ann: secret' in heard and b'news: secret' in heard):
                    number,body = next(said)
                    numbers.add(number%CONTROL)
                    heard += body
                assert numbers <= {0, 1, 2}
                if other.status_code == 200:
                    for _,body in heard_there:
                        assert b'ann' not in body
                        if b'news: secret' in body: break


def test_order_from_another_site(users):
    with Guest(users.url) as ann:
        ann.client.get('/login?name=ann')
        ticket = ann.ticket('/mine')
        for headers in (dict(Sec_Fetch_Site='cross-site'), dict(Sec_Fetch_Site='same-site'), dict(Sec_Fetch_Site='none'), dict(Content_Type='text/plain')):
            with ann.order((1, '/mine', ticket), **headers) as r: assert 400 <= r.status_code < 500 and 'sse-carrier' not in r.headers, headers


# --- Tabs that hang, and clients of another version

def resident(pid):
    "MB of memory that a process takes"
    return int(Path(f'/proc/{pid}/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20


# The texts themselves would fill the memory of the test's page
BULK = """
    addEventListener('DOMContentLoaded', () => {
        got['/bulk'] = [];
        cjmSSE.addEventListener('change', ({ detail: { source, url } }) => {
            if (url !== '/bulk' || source.seen) return;
            source.seen = true;
            source.addEventListener('message', e => got['/bulk'].push(parseInt(e.data)));
        });
    });"""


def test_frozen_tab(tabs, serve, until):
    "500 MB are sent to a tab that is frozen: the one that leads keeps next to none of it, and the frozen one catches up"
    with serve('streams:served') as server:
        leader = tabs.open(f'{server.url}/?streams=2')
        leader.wait_for_function("cjmSSE.state === 'active'")
        late = tabs.open('about:blank')
        late.add_init_script(BULK)
        late.goto(f'{server.url}/bulky')
        tabs.active(2)
        carriers(server, until)
        httpx.get(f'{server.url}/say_bulk?mb=1', timeout=60)
        late.wait_for_function("got['/bulk']?.at(-1) === 9")
        pid,cdp = renderer(leader),tabs.context.new_cdp_session(leader)
        def memory():
            cdp.send('HeapProfiler.collectGarbage')
            return resident(pid)
        with frozen(late):
            before = memory()
            def send(): httpx.get(f'{server.url}/say_bulk?mb=500', timeout=100)
            sending = threading.Thread(target=send, daemon=True)
            sending.start()
            peak = 0
            while sending.is_alive():
                peak = max(peak, resident(pid))
                sending.join(.05)
            httpx.get(f'{server.url}/say?text=meanwhile')
            leader.wait_for_function("document.querySelector('#s0').innerText === 'meanwhile'")
            kept = memory()-before
        print(f'the leader keeps {kept:.0f} MB, and took at most {peak-before:.0f} with what is no more in use')
        assert kept < 50
        late.wait_for_function("got['/bulk'].at(-1) === 4999")
        heard = late.evaluate("got['/bulk'].slice(got['/bulk'].indexOf(9) + 1)")
        assert heard == sorted(set(heard)), 'in order and once; the last one by a snapshot, if the server keeps no more so many'
        print(f'the frozen tab has got {len(heard)} of 5000 messages')
        say(server, tabs, 'one', 1)


@pytest.mark.parametrize('first, second', [('old', 'new'), ('new', 'old')])
def test_old_client_beside_a_new_one(tabs, serve, until, first, second):
    "During a deploy: neither takes anything from the other, and both get all that is sent since they were drawn"
    tabs.context.direct.add('step')
    with serve('deploy:app') as server:
        told = [f'm{n}' for n in range(40)]
        def tell(texts):
            for o in texts:
                httpx.get(f'{server.url}/say', params=dict(text=o))
                time.sleep(.12)  # Longer than what one client once waited for the other
        pages = [tabs.open(f'{server.url}/{first}')]
        tabs.active(1)
        tell(told[:10])
        rest = threading.Thread(target=tell, args=(told[10:],))
        rest.start()
        pages.append(tabs.open(f'{server.url}/{second}'))
        tabs.active(1)
        rest.join(60)
        tabs.wait("got['/events']?.at(-1) === 'm39'")
        heard = tabs.all("got['/events']")
        assert heard[0] == told
        assert heard[1] == told[told.index(heard[1][0]):] and len(heard[1]) > 20
        new = tabs[[first, second].index('new')]
        until(lambda: opened(server).get(CARRIER) == 1)
        assert new.evaluate("cjmSSE.sources.map(s => s.state)") == ['active']
        for i,page in enumerate(tabs):
            page.reload()
            tabs.active(1)
            httpx.get(f'{server.url}/say?text=again{i}')
            tabs.wait("text => got['/events'].at(-1) === text", f'again{i}')


# --- How fast

def test_orders_of_a_page_load(tabs, serve, until):
    "With several processes, each of which knows its own carriers only: at most three orders"
    posts = []
    tabs.context.on('request', lambda r: posts.append(r.url) if r.method == 'POST' else None)
    with serve('streams:served', args=('--workers', '4')) as server:
        for n in range(6):
            posts.clear()
            tabs.open(server.url)
            tabs.active(5)
            assert 0 < len(posts) <= 3, f'page {n}: {len(posts)} orders'


FIRST = """
    document.addEventListener('DOMContentLoaded', () => cjmSSE.addEventListener('change', ({ detail: { source } }) => {
        if (window.began) return;
        window.began = performance.now();
        source.addEventListener('message', () => { window.first ??= performance.now() - began; });
    }));"""


def test_time_to_the_first_event(browser, serve):
    "After the first visit, beside streams without carriers, in turns"
    with serve('streams:served') as one, serve('streams:served', MULTIPLEX='0') as other, context_tabs(browser) as tabs:
        tabs.context.direct.add('off')
        tabs.context.add_init_script(FIRST)
        carried,direct = pages = [tabs.open(f'{server.url}/?streams=1') for server in (one, other)]
        tabs.active(1)
        took = {page: [] for page in pages}
        for _ in range(20):
            for page in pages:
                page.reload()
                page.wait_for_function('window.first !== undefined')
                took[page].append(page.evaluate('first'))
    carried,direct = (statistics.median(took[page]) for page in pages)
    print(f'the first event comes after {carried:.1f} ms, on a connection of its own after {direct:.1f}')
    assert carried-direct < 100, took
