"Many tabs of one browser: one connection for each stream, and the same messages in all"
import asyncio
import os
import sys
from pathlib import Path

import httpx
import pytest
from fasthtml.common import Div, FastHTML, to_xml
from starlette.responses import Response, StreamingResponse

from handmade import ASSETS, HTMX2
from tabs import LEADS, answers, comes_back, complete, connect, crash, frozen, renderer, stopped
sys.path.insert(0, str(Path(__file__).parents[1]))
from servers import running, uvicorn  # noqa: E402

from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor


def test_twenty_tabs(tabs, site, board, until):
    "Three streams in twenty tabs: three connections, and every tab gets all messages, once and in order"
    tabs.open(site.url('p'), 20)
    tabs.active(3)
    until(lambda: board.open == dict(a=1, b=1, c=1), 'three connections')
    for _ in range(5):
        board.say(100)
        assert max(answers(tabs)) < 1000
    complete(tabs, board)
    assert board.open == dict(a=1, b=1, c=1)
    assert max(board.most.values()) <= 3  # Two; but of one that is closed the server may learn after it has seen the next
    print(board.most, len(board.requests), answers(tabs))


def test_killed_and_restarted(tabs, site, board, until):
    "Two tabs crash, and the server restarts, while messages come: those who live on miss nothing"
    tabs.open(site.url('p'), 20)
    tabs.active(3)
    board.say(100)
    for url in ('a/events', 'b/events'):
        crash(tabs.pop(tabs.index(tabs.leader(url))))
        board.say(50)
    site.stop()
    tabs.wait("cjmSSE.state === 'reconnecting'")
    board.say(100)
    site.start()
    board.say(100)
    tabs.active(3)
    board.say(100)
    complete(tabs, board)
    until(lambda: board.open == dict(a=1, b=1, c=1), 'three connections')
    assert max(answers(tabs)) < 1000


def test_tabs_come_and_go(tabs, site, board, until):
    "While messages come, tabs are opened, reloaded, left, brought back, closed. Each shows what came after it was drawn"
    with board.flow():
        for _ in range(3):
            tabs.open(site.url('p'), 3)
            tabs.pop(0).close()
            tabs[0].reload()
            tabs[1].goto(site.url('none'))
            tabs[1].go_back(wait_until='commit')
            crash(tabs.pop(tabs.index(tabs.leader('b/events'))))
        tabs.active(3)
    complete(tabs, board)
    until(lambda: board.open == dict(a=1, b=1, c=1), 'three connections')


@pytest.mark.parametrize('how', ['stopped', 'frozen'])
def test_leader_that_hangs(tabs, site, board, until, how):
    "A tab that gives no sign of life loses the lead to one that misses its heartbeats. When it wakes up it has missed nothing"
    tabs.open(site.url('two'), 3)  # With three streams its connections and the new ones would be the six
    tabs.active(2)
    board.say(30)
    complete(tabs, board)
    tabs.rest()
    leader = tabs.leader('a/events')
    others = [t for t in tabs if t is not leader]
    hanging = stopped(renderer(leader)) if how == 'stopped' else frozen(leader)
    tabs.all('cjmSSE.sources.forEach(s => s.configure({heartbeatTimeout: 1500}))')
    tabs.wait('cjmSSE.sources.every(s => s.watchdog.armed || s.own)')
    with hanging:
        board.say(30)
        complete(others, board)
        assert not any(o.evaluate('shown.includes("error")') for o in others)
        assert any(o.evaluate(LEADS, 'a/events') for o in others)
    board.say(30)
    complete(tabs, board)
    until(lambda: board.open == dict(a=1, b=1, c=0), 'two connections')


def test_page_that_loads_while_the_leader_hangs(tabs, site, board, until):
    "It needs no leave to take the lead. What the leader had not told any more, the others ask the server for"
    tabs.open(site.url('two'), 3)
    tabs.active(2)
    board.say(30)
    complete(tabs, board)
    tabs.rest()
    leader = tabs.leader('a/events')
    with stopped(renderer(leader)):
        board.say(30)
        tabs.open(site.url('two'))
        board.say(30)
        complete([t for t in tabs if t is not leader], board)
    board.say(30)
    complete(tabs, board)
    until(lambda: board.open == dict(a=1, b=1, c=0), 'two connections')


def test_navigations(tabs, site, board, until):
    "Ten navigations in one tab beside another leave one live connection for each stream, and Back brings a live page"
    tabs.open(site.url('p'), 2)
    for i in range(10): tabs[1].goto(site.url('p') + f'?{i}')
    tabs.active(3)
    until(lambda: board.open == dict(a=1, b=1, c=1), 'three connections')
    board.say(30)
    complete(tabs, board)
    tabs[1].evaluate('window.kept = true')
    comes_back(tabs[1], tabs, site, board)
    assert tabs[1].evaluate('window.kept')
    until(lambda: board.open == dict(a=1, b=1, c=1), 'three connections')


def test_without_locks(tabs, site, board, until):
    "Where tabs can't share, as without HTTPS, each has its own connections, and a monitor that debugs says why"
    tabs.context.add_init_script("Object.defineProperty(Navigator.prototype, 'locks', {value: undefined})")
    monitor = create_sse_monitor(HTMXSSEConnector, SSEMonitorConfig(sse_element_id='sse', debug=True), inline=False)
    site.pages['p'] = lambda: Div(connect('/a/events', element_id='sse', after=board.manager.cursor), monitor)
    tabs.open(site.url('none'))
    said = []
    tabs[0].on('console', lambda m: said.append(m.text))
    tabs[0].goto(site.url('p'))
    tabs.open(site.url('p'))
    tabs.active(1)
    assert board.open['a'] == 2
    board.say(30)
    complete(tabs, board)
    assert sum('do not share' in o for o in said) == 1
    tabs.all('cjmSSE.reconnect()')
    tabs.active(1)
    until(lambda: board.open['a'] == 2)


@pytest.mark.parametrize('setup', [lambda app: setup_sse(app, share=False), lambda app: insert_htmx_sse_ext(app.hdrs, share=False), setup_sse])
def test_opting_out(tabs, make_site, until, setup):
    "An app shares nothing, or an element does not"
    site = make_site(setup)
    site.pages['p'] = lambda: Div(connect('/stream/one', share=setup is not setup_sse), connect('/stream/two'))
    tabs.open(site.url('p'), 2)
    tabs.active(2)
    until(lambda: (site.count('one'), site.count('two')) == (2, 1 if setup is setup_sse else 2))


def test_streams_without_ids(tabs, make_site, until):
    "By hand, as older apps do: a page that loads sees what its stream begins with, and nothing of what goes on is lost for the others"
    site = make_site(lambda app: insert_htmx_sse_ext(app.hdrs))
    site.opening['loud'] = 'data: state\n\n'
    site.pages['p'] = lambda: Div(connect('/stream/loud'), connect('/stream/quiet'))
    for n in range(3):
        tabs.open(site.url('p'))
        tabs.active(2)
        for o in ('loud', 'quiet'): site.send(f'data: {n}\n\n', o)
        for o in ('loud', 'quiet'): tabs.wait('([url, n]) => got[url].includes(n)', [f'/stream/{o}', str(n)])
        # What a connection begins with is not shown after what came later on both
        tabs.rest()
        for o in ('loud', 'quiet'): assert tabs.all('url => got[url].at(-1)', f'/stream/{o}') == [str(n)]*len(tabs)
    # In tabs that were there before, that the stream begins again is what it is after a loss
    loud = tabs.all("got['/stream/loud']")
    assert [o[0] for o in loud] == ['state']*3
    assert [' '.join(o for o in got if o != 'state') for got in loud] == ['0 1 2', '1 2', '2']
    assert tabs.all("got['/stream/quiet'].join(' ')") == ['0 1 2', '1 2', '2']
    until(lambda: (site.count('loud'), site.count('quiet')) == (1, 1))
    assert max(site.most.values()) <= 3  # As above


def test_elements_that_come_later(tabs, make_site, until):
    "What a message brings to all tabs connects once, and each of them sees what its stream begins with"
    site = make_site(lambda app: insert_htmx_sse_ext(app.hdrs))
    site.opening['job'] = 'data: state\n\n'
    site.pages['p'] = lambda: Div(connect('/stream/events'), Div(id='jobs'))
    tabs.open(site.url('p'), 4)
    tabs.active(1)
    site.send(f'data: {to_xml(Div(connect("/stream/job"), id="jobs", hx_swap_oob="true"), indent=False)}\n\n')
    tabs.active(2)
    site.send('data: on\n\n', 'job')
    tabs.wait("got['/stream/job'].join(' ') === 'state on'")
    assert len(site.last_ids('job')) == 1
    # One that comes with what it shows already is told what came since
    for n in (1, 2, 3): site.publish(n, 'log')
    site.pages['late'] = lambda: connect('/stream/log', after='1')
    tabs[0].evaluate("htmx.ajax('GET', '/pages/late', {target: '#jobs', swap: 'beforeend'})")
    tabs[0].wait_for_function("got['/stream/log']?.join(' ') === '2 3'")
    tabs[1].evaluate("htmx.ajax('GET', '/pages/late', {target: '#jobs', swap: 'beforeend'})")
    tabs[1].wait_for_function("got['/stream/log']?.join(' ') === '2 3'")
    site.publish(4, 'log')
    for page in tabs[:2]: page.wait_for_function("got['/stream/log'].join(' ') === '2 3 4'")
    assert site.last_ids('log') == ['1']


def test_refused_and_busy(tabs, make_site, until):
    "What the server answers to a page that loads: 503 is waited out; 403 is the end for all tabs, which are asked to connect anew"
    site = make_site()
    site.pages['p'] = lambda: connect('/stream/events')
    tabs.open(site.url('p'), 2)
    tabs.active(1)
    n = len(site.requests)
    site.answers['events'] = lambda i: Response(status_code=503, headers={'Retry-After': '1'}) if i == n+1 else None
    tabs.open(site.url('p'))
    tabs[-1].wait_for_function("cjmSSE.state === 'reconnecting'")
    assert tabs[0].evaluate('cjmSSE.state') == 'active'
    tabs.active(1)
    site.send('data: x\n\n')
    tabs.wait("got['/stream/events'].at(-1) === 'x'")
    site.answers['events'] = lambda i: Response(status_code=403)
    tabs.open(site.url('p'))
    tabs.wait("cjmSSE.state === 'error' && cjmSSE.sources[0].reason === 'status 403'")
    n = len(site.requests)
    tabs.wait_for_timeout(500)
    assert (len(site.requests), site.count()) == (n, 0)


@pytest.mark.parametrize('setup', ['setup_sse', 'insert_htmx_sse_ext'])
def test_users(tabs, make_site, until, setup):
    "After a log-out, a log-in as somebody else leaves no tab with a former user's stream"
    site = make_site(setup_sse if setup == 'setup_sse' else lambda app: insert_htmx_sse_ext(app.hdrs))
    open_ = []
    @site.app.route('/mine')
    async def mine(sess):
        mail = asyncio.Queue()
        async def frames():
            open_.append(me := (sess.get('auth'), mail))
            try:
                yield f'data: hello {me[0]}\n\n'
                while True: yield f'data: {await mail.get()}\n\n'
            finally: open_.remove(me)
        return StreamingResponse(frames(), media_type='text/event-stream')
    @site.app.route('/login/{name}')
    def login(sess, name: str):
        sess['auth'] = name
        return connect('/mine')
    @site.app.route('/logout')
    def logout(sess):
        sess.clear()
        return 'bye'
    def tell():
        for user,mail in open_: site.loop.loop.call_soon_threadsafe(mail.put_nowait, f'secret of {user}')
    home = site.url('').removesuffix('pages/')
    tabs.open(f'{home}login/ann', 3)
    tabs.active(1)
    until(lambda: [user for user,_ in open_] == ['ann'])
    tabs[0].goto(f'{home}logout')
    tabs[0].goto(f'{home}login/bob')
    # Where pages say whose they are, the old ones share with one another only
    lines = 2 if setup == 'setup_sse' else 1
    until(lambda: [user for user,_ in open_] == ['bob']*lines, "ann's stream has ended")
    tell()
    tabs.wait("got['/mine'].at(-1) === 'secret of bob'")
    assert 'secret of ann' not in str(tabs.all('got'))
    tags = tabs.all("document.querySelector('[data-sse-client]').dataset.sseTag ?? ''")
    assert len(set(tags)) == lines


def test_users_with_streams_of_their_own(tabs, make_site, until):
    "Where pages say whose they are, a former user's streams are asked for anew, whatever their URL, and whoever leads"
    site = make_site()
    open_, asked = [], []
    @site.app.route('/mine/{name}')
    async def mine(sess, name: str):
        asked.append(name)
        if sess.get('auth') != name: return Response(status_code=403)
        async def frames():
            open_.append(name)
            try:
                yield f'data: hello {name}\n\n'
                await asyncio.Event().wait()
            finally: open_.remove(name)
        return StreamingResponse(frames(), media_type='text/event-stream')
    @site.app.route('/login/{name}')
    def login(sess, name: str):
        sess['auth'] = name
        return connect(f'/mine/{name}')
    other = FastHTML(hdrs=HTMX2(), default_hdrs=False, secret_key='of another app', session_cookie='other')
    setup_sse(other)
    other.get('/', name='page')(lambda: Div('An app of its own'))
    site.app.mount('/other', other)
    home = site.url('').removesuffix('pages/')
    tabs.open(f'{home}login/ann', 3)
    tabs.active(1)
    n = len(asked)
    stranger = tabs.open(f'{home}other/')
    assert stranger.evaluate("cjmSSE.tag") not in ('', tabs[0].evaluate("cjmSSE.tag"))
    tabs.remove(stranger)
    tabs.wait_for_timeout(300)
    assert len(asked) == n, 'the sessions of another app are none of theirs'
    tabs[2].goto(f'{home}login/bob')
    until(lambda: open_ == ['bob'], "ann's stream has ended")
    for page in tabs[:2]: page.wait_for_function("cjmSSE.state === 'error' && cjmSSE.sources[0].reason === 'status 403'")
    tabs[0].goto('about:blank')
    tabs[0].go_back(wait_until='commit')
    tabs[0].wait_for_function("cjmSSE.state === 'error'")
    tabs[1].goto(f'{home}login/cem')
    until(lambda: open_ == ['cem'])


def test_older_app(tabs, tmp_path, until):
    "Three streams written by hand, of which two come and go with a job, nothing set up but the extension: twelve tabs stay usable"
    with running(uvicorn('jobs_by_hand:app'), tmp_path/'log', env=dict(ASSETS=str(ASSETS))) as server:
        counted = lambda: httpx.get(f'{server.url}/counted').json()
        tabs.open(server.url, 6)
        tabs.active(1)
        tabs.rest()
        assert httpx.get(f'{server.url}/start?id=1').text == 'started'
        tabs.wait("document.querySelector('#jobs').innerText === '0running'")
        tabs.open(server.url, 6)
        tabs.active(3)
        for n in (1, 2, 3):
            # From within the tabs, because from them it is that a request would hang
            assert tabs[n].evaluate("async () => await (await fetch('/move?id=1')).text()") == str(n)
            tabs.wait("n => document.querySelector('#jobs').innerText === `${n}at ${n}`", n)
        until(lambda: counted()['now'] == {'all': 1, 'progress 1': 1, 'status 1': 1}, 'three connections')
        assert max(counted()['most'].values()) <= 3  # As above


@pytest.mark.parametrize('flags', [[], ['--htmx4']])
def test_demo_in_twelve_tabs(tabs, tmp_path, flags):
    "The demo with five running jobs: one connection, all tabs the same"
    (tmp_path/'root/long').mkdir(parents=True)
    for i in range(4):
        (tmp_path/f'root/long/{i}').touch()
        os.truncate(tmp_path/f'root/long/{i}', 1<<32)
    command = [sys.executable, Path(__file__).parents[2]/'demo/main.py', '--root', tmp_path/'root', '--port', '{port}', *flags]
    with running(command, tmp_path/'log', cwd=tmp_path) as server:
        tabs.open(server.url, 12)
        for page in tabs[:5]:
            page.get_by_label('Folder').fill('long')
            page.get_by_role('button', name='Start').click()
        tabs.wait("document.querySelectorAll('#jobs > .running').length === 5")
        tabs.wait("document.querySelector('#tabs').textContent === '12'")
        assert sum(tabs.all('cjmSSE.mux.carriers?.carriers.size ?? 0')) == 1
        was = "[...document.querySelectorAll('#jobs progress')].map(bar => bar.position)"
        for page in tabs: page.wait_for_function(f'was => {was}.every((at, i) => at > was[i])', arg=page.evaluate(was))
        ids = tabs[0].evaluate("[...document.querySelectorAll('#jobs > .running')].map(job => job.id)")
        for page,id in zip(tabs[5:10], ids): page.locator(f'[id="{id}"] button').click()
        tabs.wait("document.querySelectorAll('#jobs > .cancelled').length === 5")
        rows = tabs.all("document.querySelector('#jobs').innerText")
        assert len(set(rows)) == 1
