"Any number of streams in any number of tabs: one connection, and each stream what it would be on its own"
import asyncio
import itertools
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from fasthtml.common import Div
from starlette.responses import Response, StreamingResponse

from handmade import ASSETS
from tabs import Tabs, board, complete, connect  # noqa: F401
sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.contract.servers import free_port, running, uvicorn  # noqa: E402

from cjm_fasthtml_sse.multiplex import carrier, endpoint
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.multiplex.endpoint import PATH, Multiplexer

BROKEN = 'cjmSSE.mux.reason'
CARRIERS = 'cjmSSE.mux.carriers?.carriers.size ?? 0'


def open_at(site): return [len(c.channels) for c in site.app._sse_setup.multiplexer.carriers.values()]


@pytest.fixture
def site(make_site): return make_site(lambda app: setup_sse(app))


@pytest.fixture
def tabs(page): return Tabs(page)


def works(tabs, site, until, carriers=1):
    "All is on as many carriers as it should be, one tab holds them, and nothing has broken down"
    until(lambda: len(open_at(site)) == carriers, f'{carriers} carriers')
    assert sorted(tabs.all(CARRIERS)) == [0]*(len(tabs)-1)+[carriers]
    assert tabs.all(BROKEN) == ['']*len(tabs)


@pytest.mark.parametrize('htmx', ['2', '4'])
def test_twelve_tabs_with_21_streams(tabs, tmp_path, until, htmx):
    "One connection, every tab right, a further request answers at once; and again after a restart, and after the server was killed"
    port,log = free_port(),tmp_path/'log'
    def serve(): return running(uvicorn('jobs_many:served', '--log-level', 'warning'), log, port=port, env=dict(ASSETS=str(ASSETS), HTMX=htmx))
    url = f'http://127.0.0.1:{port}'
    def right(n):
        counted = lambda: httpx.get(f'{url}/counted').json()
        until(lambda: (counted()['counts'], counted()['connections']) == ({'application/octet-stream': 1}, 12*21), 'one connection')
        for type,data in [('all:x', f'all {n}'), ('job:3', f'job {n}'), ('hand:4', f'hand {n}')]:
            assert int(httpx.get(f'{url}/say', params=dict(type=type, data=data)).text) >= 12
        tabs.wait("n => document.querySelector('#all').innerText === `all ${n}` && document.querySelector('#job-3').innerText === `job ${n}` && document.querySelector('#job-4').innerText === `hand ${n}`", n)
        tabs.wait("document.querySelector('#job-5').innerText === 'state of 5' && document.querySelector('#job-9').innerText === 'hello 9'")
        return tabs.all("async () => { const start = performance.now(); await (await fetch('/counted', {cache: 'no-store'})).text(); return performance.now() - start }")
    with serve() as server:
        tabs.open(url, 12)
        tabs.active(21)
        took = right(1)
        server.signal(signal.SIGTERM)
        assert server.ends() in (0, -signal.SIGTERM)
    tabs.wait("cjmSSE.state === 'reconnecting'")
    with serve() as server:
        tabs.active(21)
        took += right(2)
        server.signal(signal.SIGKILL)
    tabs.wait("cjmSSE.state === 'reconnecting'")
    with serve():
        tabs.active(21)
        took += right(3)
    assert tabs.all(BROKEN) == ['']*12
    assert max(took) < 5000  # Not one of them had to wait for a connection


def test_a_stream_that_ends_while_an_order_is_under_way(tabs, site, until):
    "That order did not say so, the next one does"
    site.pages['p'] = lambda: Div(connect('/stream/one', element_id='one'), connect('/stream/two'))
    tabs.open(site.url('p'))
    tabs.active(2)
    until(lambda: (site.count('one'), site.count('two')) == (1, 1))
    orders = []
    tabs.context.route(f'**{PATH}', lambda route: orders.append(route))
    tabs[0].evaluate("cjmSSE.open('/stream/three', null)")
    until(lambda: orders, 'the order is under way')
    tabs[0].evaluate("document.querySelector('#one').remove()")
    orders.pop().continue_()
    tabs.context.unroute(f'**{PATH}')
    until(lambda: [site.count(o) for o in ('one', 'two', 'three')] == [0, 1, 1])
    tabs[0].wait_for_timeout(3500)  # So long it waits for a word of the carrier, which was here before the answer
    assert [len(site.last_ids(o)) for o in ('one', 'two', 'three')] == [1, 1, 1], 'nothing was asked for again'


def test_what_is_kept_of_tabs_that_have_gone(tabs, site, until):
    "One tab leads for days, while others come and go"
    site.pages['p'] = lambda: Div(connect('/stream/one'))
    tabs.open(site.url('p'), 2)
    tabs.active(1)
    for n in range(3):
        tabs[1].goto(site.url('p'))
        tabs.active(1)
        site.publish(f'{n}', 'one')
        tabs.wait("n => got['/stream/one'].includes(n)", f'{n}')
    tabs[0].wait_for_function('cjmSSE.mux.election.tabs.size === 1', timeout=5000)
    works(tabs, site, until)


def test_a_connection_that_comes_when_nobody_wants_it_any_more(tabs, site, until):
    "The streams were closed while the server took its time"
    mux,asked,gate = site.app._sse_setup.multiplexer,[],asyncio.Event()
    identify = mux.admission.identify
    async def slowly(*args):
        asked.append(True)
        await gate.wait()
        return await identify(*args)
    mux.admission.identify = slowly
    site.pages['p'] = lambda: Div(connect('/stream/one'))
    tabs.open(site.url('p'))
    until(lambda: asked, 'a request')
    tabs[0].evaluate('cjmSSE.close()')
    tabs[0].wait_for_function('!cjmSSE.mux.election.session')  # It has left
    with tabs[0].expect_event('requestfailed', lambda r: r.method == 'POST'): site.loop.loop.call_soon_threadsafe(gate.set)
    until(lambda: (site.count('one'), open_at(site)) == (0, []), 'the connection is given up')


def test_each_its_own_status(tabs, site, until):
    "One is refused, one not ready, one sends to the login, one sets a cookie, and the others go on"
    site.answers = dict(no=lambda n: Response(status_code=403), later=lambda n: Response(status_code=503, headers={'Retry-After': '1'}) if n < 2 else None,
                        login=lambda n: Response(status_code=302, headers={'Location': '/pages/none'}), done=lambda n: Response(status_code=204),
                        html=lambda n: Response('<p>login</p>', media_type='text/html') if n < 2 else None)
    site.pages['none'] = lambda: 'log in'
    names = ['no', 'later', 'login', 'done', 'html', 'fine']
    site.pages['p'] = lambda: Div(*[connect(f'/stream/{o}', element_id=o) for o in names])
    tabs.open(site.url('p'))
    state = "name => cjmSSE.sources.find(s => s.url.endsWith(name))?.state"
    for name,want in dict(no='error', later='active', done='disconnected', html='active', fine='active', login='error').items():
        tabs[0].wait_for_function(f'([name, want]) => ({state})(name) === want', arg=[name, want])
    site.send('data: hello\n\n', 'fine')
    tabs.wait("got['/stream/fine']?.at(-1) === 'hello'")
    assert 'log in' not in tabs[0].inner_text('body')
    assert tabs[0].evaluate("cjmSSE.sources.find(s => s.url.endsWith('login')).reason") == 'Log in again'
    assert site.last_ids('no') == ['']
    works(tabs, site, until)


def test_who_is_let_in_nowhere(tabs, site, until):
    "What is refused is asked for once, not by an order, and a stream that is open to all comes through behind it"
    site.answers = dict(no=lambda n: Response(status_code=403), none=lambda n: Response(status_code=401))
    asked = []
    tabs.context.on('request', lambda r: asked.extend(o[1] for o in json.loads(r.post_data)['open']) if r.url.endswith(PATH) else None)
    site.pages['closed'] = lambda: Div(connect('/stream/no'), connect('/stream/none'))
    site.pages['p'] = lambda: Div(connect('/stream/fine'))
    tabs.open(site.url('closed'))
    tabs.wait("cjmSSE.sources.every(s => s.state === 'error')")
    tabs.open(site.url('p'))
    tabs[1].wait_for_function("cjmSSE.sources[0]?.state === 'active'")
    assert asked == ['/stream/fine'] and tabs.all(BROKEN) == ['']*2
    assert sorted(o for o,_ in site.requests) == ['fine', 'no', 'none']


def test_a_carrier_of_age(tabs, site, board, until):  # noqa: F811
    "One makes way for the next, in the middle of a flow; to the streams that is no loss, of messages or of time"
    board.manager.max_age = 2
    tabs.open(site.url('p'), 3)
    tabs.active(3)
    tabs.all("() => { window.losses = []; for (const s of cjmSSE.sources) s.lost = reason => losses.push(reason); }")
    seen = set()
    with board.flow(): until(lambda: seen.update(site.app._sse_setup.multiplexer.carriers) or len(seen) > 3, 'one carrier after another')
    tabs.active(3)
    complete(tabs, board)
    assert tabs.all('losses.length') == [0]*3
    works(tabs, site, until)


def test_falling_back_without_an_answer(page, tabs, make_site, until):
    "Something on the way keeps back even that there is an answer: the client gives it ten seconds, half a one here"
    page.direct.add('step')
    kept = []
    def collect(app):
        setup_sse(app)
        build = app.build_middleware_stack
        def collecting():
            inner = build()
            async def serve(scope, receive, send):
                async def keep(message): kept.append(message['type'])
                await inner(scope, receive, keep if scope.get('path') == app._sse_setup.multiplexer.path else send)
            return serve
        app.build_middleware_stack = collecting
    site = make_site(collect)
    site.pages['p'] = lambda: Div(connect('/stream/one'), connect('/stream/two'))
    tabs.context.add_init_script('const wait = setTimeout; window.setTimeout = (f, ms, ...rest) => wait(f, ms === 5000 ? 500 : ms, ...rest)')
    tabs.open(site.url('p'), 2)
    tabs.active(2)
    assert tabs.all(BROKEN) == ['no answer']*2 and kept
    until(lambda: (site.count('one'), site.count('two'), open_at(site)) == (2, 2, []), 'nothing is left of the channels')
    site.publish('hello', 'one')
    tabs.wait("got['/stream/one'].join() === 'hello'")


def test_falling_back_in_the_middle(page, tabs, site, board, until):  # noqa: F811
    "What worked works no more: each tab goes on from where it was"
    page.direct.add('step')
    tabs.open(site.url('two'), 2)
    tabs.active(2)
    board.say(30)
    complete(tabs, board)
    site.app._sse_setup.multiplexer.path = '/moved'
    with board.flow():
        async def cut():
            for o in [*site.app._sse_setup.multiplexer.carriers.values()]: o.close()
        site.loop.run(cut())
        tabs.wait(BROKEN)
        tabs.active(2)
    complete(tabs, board)
    until(lambda: (board.open, open_at(site)) == (dict(a=2, b=2, c=0), []))


def test_a_flood_moves_out(page, tabs, site, until):
    "A stream that says more than the browser takes gets a connection of its own; the others do not notice"
    page.direct.add('flood')
    flooding = []
    @site.app.route('/flood')
    async def flood(req):
        if 'sse-ticket' not in req.headers: flooding.append('sse.channel' in req.scope)
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
    site.pages['p'] = lambda: Div(connect('/ticks'), connect('/flood', element_id='flood'))
    tabs.open(site.url('none'))
    line = tabs.context.new_cdp_session(tabs[0])
    line.send('Network.enable')
    line.send('Network.emulateNetworkConditions', dict(offline=False, latency=0, downloadThroughput=1<<20, uploadThroughput=-1))
    tabs[0].goto(site.url('p'))
    until(lambda: flooding == [True, False], 'the flood has a connection of its own', 60)
    away = lambda: [c.direct_count for c in site.app._sse_setup.multiplexer.carriers.values()]
    assert away() == [1]
    tabs[0].evaluate("cjmSSE.get('flood').close()")
    until(lambda: away() == [0], 'its place is free')
    other = tabs.open(site.url('p'))
    until(lambda: away() == [1], 'that of the other tab moves out, too', 60)
    tabs.remove(other)
    other.close()
    until(lambda: away() == [0], 'and is over with it')
    now = tabs[0].evaluate("got['/ticks'].length")
    tabs[0].wait_for_function("now => got['/ticks'].length > now", arg=now)
    assert tabs[0].evaluate("got['/ticks'].every((n, i) => n === `${i}`)")
    works(tabs, site, until)


def test_more_streams_than_fit(page, tabs, site, until, monkeypatch):
    "A carrier takes 200 here: two more are opened, and what is beyond is direct"
    page.direct.add('limit')
    for module in (endpoint, carrier): monkeypatch.setattr(module, 'MAX_CHANNELS', 200)
    site.pages['p'] = lambda: Div(connect('/stream/one'))
    tabs.open(site.url('p'))
    tabs.active(1)
    tabs[0].evaluate("""() => {
        window.heard = 0;
        for (let i = 0; i < 601; i++) cjmSSE.connect('/stream/many', {}).addEventListener('message', () => heard++);
    }""")
    until(lambda: (sorted(open_at(site)), site.count('many')) == ([200]*3, 601), 'three carriers')
    site.publish('hello', 'many')
    tabs.wait('heard === 601')
    assert tabs.all(BROKEN) == ['']


# A tab that leads does not ask who the visitor is when a page loads: each order is one that a test knows of
KNOWS = 'const wait = setTimeout; window.setTimeout = (f, ms, ...rest) => ms === 300 ? -1 : wait(f, ms, ...rest)'


def dealt(make_site, n, deal):
    "A site behind which as good as `n` processes stand: each knows its own carriers alone. `deal` gives the one that an order meets"
    each = []
    def split(app):
        setup_sse(app)
        visitors = app._sse_setup.multiplexer.visitors
        def around(inner):
            each[:] = [Multiplexer(visitors).around(inner) for _ in range(n)]
            async def meet(scope, receive, send): await each[deal() if scope.get('path') == PATH else 0](scope, receive, send)
            return meet
        app._sse_setup.multiplexer.around = around
    site = make_site(split)
    site.pages['p'] = lambda: Div(connect('/stream/one', element_id='one'), connect('/stream/two'))
    return site,lambda: [len(o.carriers) for o in each]


def all_hear(tabs, site, text):
    for name in ('one', 'two'):
        site.publish(text, name)
        tabs.wait("([url, text]) => got[url].at(-1) === text", [f'/stream/{name}', text])
    assert tabs.all(BROKEN) == ['']*len(tabs)


def test_many_processes(tabs, make_site, until):
    "Sixteen take turns: thirteen orders in a row meet none that knows the browser"
    turn = itertools.count()
    site,carriers = dealt(make_site, 16, lambda: next(turn) % 16)
    tabs.open(site.url('p'), 7)
    tabs.active(2)
    all_hear(tabs, site, 'hello')
    until(lambda: sum(carriers()) == sum(tabs.all(CARRIERS)) <= 3, 'three carriers')


def test_processes_that_are_met_no_more(tabs, make_site, until):
    "Those of the carriers go on, and all orders go to others, as in a rolling deploy: the oldest carrier makes way"
    tabs.context.add_init_script(KNOWS)
    turn,plan = itertools.count(),[0]
    site,carriers = dealt(make_site, 6, lambda: plan.pop(0) if len(plan) > 1 else plan[0] if plan else 3 + next(turn) % 3)
    tabs.open(site.url('p'))
    tabs.active(2)  # With the tickets that this one got, a tab needs one order
    plan[:] = [1, 2, 2]
    tabs.open(site.url('p'), 2)
    tabs.active(2)
    until(lambda: carriers() == [1, 1, 1, 0, 0, 0], 'three carriers')
    plan.clear()
    all_hear(tabs, site, 'hello')  # From here on each has an id to come back with
    for n in range(3):
        tabs.open(site.url('p'))
        tabs.active(2)
        all_hear(tabs, site, f'hello {n}')
        until(lambda: sum(carriers()) == sum(tabs.all(CARRIERS)) == 3, 'three carriers')
    assert sum(carriers()[3:])


def test_an_order_does_not_wait_for_what_has_time(tabs, make_site, until):
    "A channel is to be closed in a process that orders do not meet, to be tried in six seconds, here never. What is to be opened, or closed, elsewhere goes at once"
    plan = [0]
    site,carriers = dealt(make_site, 4, lambda: plan.pop(0) if len(plan) > 1 else plan[0])
    tabs.context.add_init_script(KNOWS.replace('300', '300 || ms === 6000'))
    tabs.open(site.url('p'))
    tabs.active(2)  # With the tickets that this one got, a tab needs one order
    plan[:] = [1, 2]
    tabs.open(site.url('p'), 2)
    tabs.active(2)
    until(lambda: carriers() == [1, 1, 1, 0], 'three carriers')
    plan[:] = [3]
    tabs[2].evaluate("document.querySelector('#one').remove()")
    tabs[0].wait_for_function('cjmSSE.mux.carriers.timer === -1')
    plan[:] = [3, 3, 1]
    tabs.open(site.url('p')).wait_for_function("cjmSSE.sources.every(s => s.state === 'active')")
    tabs[1].evaluate("document.querySelector('#one').remove()")
    until(lambda: site.count('one') == 3, 'that one is closed')
    plan[:] = [2]
    tabs[3].evaluate("document.querySelector('#one').remove()")  # With this order goes the first one
    until(lambda: site.count('one') == 2, 'that one too')


@pytest.fixture
def workers(tabs, tmp_path, until):
    "Two workers, of whom each has a carrier of the browser. Which one takes a request is chance: what needs a certain one is asked until it was met"
    class Workers:
        pids = set()

        def ask(self, path, **params):
            "By a connection of its own, which a worker that is about to go may drop"
            with suppress(httpx.TransportError): return httpx.get(f'{server.url}{path}', params=params, verify=False).json()  # To load certificates takes its time

        def know(self):
            "Both that there are now: does each have a carrier with channels?"
            found = {}
            for _ in range(50):
                if state := self.ask('/counted'): found[state['pid']] = state['counts'] == {'application/octet-stream': 1} and state['connections'] > 0
            self.pids = {*found}
            return len(found) == 2 and all(found.values())

        def meet(self):
            "Both have a carrier, or else a stream tries it again"
            if sum(tabs.all(CARRIERS)) == 2 and self.know(): return True
            tabs[0].evaluate('cjmSSE.sources[0].reconnect()')
            tabs.active(11)

        def hear(self, text):
            "Say it once more to each stream: have all heard it by now?"
            for type in ('all:x', *(f'{"hand" if n%5 == 4 else "job"}:{n}' for n in range(10))): self.ask('/say', type=type, data=text)
            return all(tabs.all("text => [...document.querySelectorAll('#all, [id^=job-]')].filter(o => o.innerText === text).length === 11", text))
    workers = Workers()
    args = ('--workers', '2', '--timeout-keep-alive', '0', '--log-level', 'warning')
    with running(uvicorn('jobs_many:served', *args), tmp_path/'log', env=dict(ASSETS=str(ASSETS), STREAMS='10')) as server:
        workers.server = server
        tabs.open(server.url, 6)
        tabs.active(11)
        until(workers.meet, 'a carrier of each worker')
        until(lambda: workers.hear('both are there'))
        yield workers
        tabs.active(11)
        assert tabs.all(BROKEN) == ['']*6


def test_two_workers(workers, until):
    "One after the other is killed: all channels that were there come back, and hear what is said then"
    for pid in workers.pids:
        os.kill(pid, signal.SIGKILL)   # uvicorn starts another one
        until(lambda text=f'{pid} is not': workers.hear(text), 'all hear what is said now')


def test_a_rolling_restart(workers, until):
    "One worker after the other is replaced: all streams go on with the new ones"
    before = {*workers.pids}
    workers.server.signal(signal.SIGHUP)
    def replaced():
        workers.know()
        return len(workers.pids) == 2 and not workers.pids & before
    until(replaced, 'both are new')
    until(lambda: workers.hear('both are new'), 'all hear what is said now')
