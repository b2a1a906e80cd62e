"One of several tabs leads: pages that hold an election and nothing else"
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.responses import HTMLResponse, StreamingResponse

import cjm_fasthtml_sse
from bidi import Firefox
from browsers import crash, each_browser, frozen, stopped

SCRIPT = (Path(cjm_fasthtml_sse.__file__).parent/'static/election.js').read_text(encoding='utf-8')
PAGE = '''<!doctype html><title>Election</title><script>%s</script><script>
    const log = [], steals = [], { request } = navigator.locks;
    navigator.locks.request = function (name, options, held) {
        if (options.steal) steals.push(name);
        return request.call(this, name, options, held);
    };
    const owner = Object.fromEntries(['lead', 'follow', 'lost', 'asked', 'told', 'missed', 'left', 'overflowed', 'broken'].map(what =>
        [what, (...args) => {
            log.push([what, ...args, Date.now()]);
            if (what === 'asked') election.tell(args[0], `${args[1]}!`);
        }]));
    const election = new Election('test', owner);
    const said = what => log.filter(([o]) => o === what).length;
    addEventListener('pagehide', () => election.leave());
    addEventListener('pageshow', ({ persisted }) => { if (persisted) election.join(); });
    setInterval(async () => { if (await election.confirmLead()) log.push(['delivers', Date.now()]) }, 50);
    election.join();
</script>'''


@pytest.fixture
def electors(page, make_site):
    "Tabs that elect a leader; the first one leads"
    site = make_site(None)
    @site.app.route('/election')
    def election(version: str = ''): return HTMLResponse(PAGE % (SCRIPT.replace("'sse2'", f"'{version}'") if version else SCRIPT))
    @site.app.route('/elsewhere')
    def elsewhere(): return HTMLResponse('elsewhere')
    @site.app.route('/flood')
    def flood():
        async def parts():
            for _ in range(1600): yield bytes(65536)
        return StreamingResponse(parts())
    class Electors(list):
        wait_for_timeout = page.wait_for_timeout
        def url(self, path='election'): return f'http://127.0.0.1:{site.port}/{path}'
        def open(self, n=1, path='election'):
            for _ in range(n):
                tab = page.context.new_page()
                tab.on('pageerror', lambda e: page.errors.append(str(e)))
                tab.goto(self.url(path))
                tab.wait_for_function('election.leader')
                self.append(tab)
            return self[-1]
        def leader(self, *without):
            "The tab that leads once all others follow it"
            tabs = [o for o in self if o not in without]
            end = time.monotonic()+30
            while time.monotonic()<end:
                leads = [o.evaluate('[election.leads, election.leader]') for o in tabs]
                if sum(a for a,_ in leads) == 1 and len({b for _,b in leads}) == 1: return tabs[[a for a,_ in leads].index(True)]
                page.wait_for_timeout(20)
            raise AssertionError(f'no leader: {leads}')
        def works(self, *without):
            "Each tab is answered by the leader"
            for o in self:
                if o not in without: answered(o)
    return Electors()


def ask(tab):
    "Ask the leader something; returns what the answer will be"
    return tab.evaluate("() => { window.n = (window.n ?? 0) + 1; election.ask(`question ${n}`); return `question ${n}!` }")


def answered(tab):
    "The leader answers a question of this tab"
    tab.wait_for_function("answer => log.some(([what, told]) => what === 'told' && told === answer)", arg=ask(tab))


def names(tab): return tab.evaluate('log.map(([what]) => what).filter(o => o !== "delivers")')
def steals(tabs): return [o for tab in tabs for o in tab.evaluate('steals')]


@each_browser
@pytest.mark.parametrize('how', ['close', 'crash', 'leave'])
def test_takeover(electors, how):
    "A leader that goes is replaced at once; nobody takes anything from anybody"
    electors.open(6)
    electors.works()
    former = electors.pop(0)
    assert names(former)[0] == 'lead'
    start = time.time()
    if how == 'close': former.close()
    elif how == 'crash': crash(former)
    else: start = former.evaluate('() => { election.leave(); return Date.now() }')/1000
    leader = electors.leader()
    electors.works()
    assert steals(electors) == []
    if how != 'crash': print(f"{how}: {leader.evaluate('log.find(([what]) => what === `lead`)[1]')-start*1000:.0f} ms")  # A crash takes its time
    if how == 'leave': assert former.evaluate('async () => (await navigator.locks.query()).held.length') == 6  # 5 tabs, one of them leads


@contextmanager
def confirming(tab):
    "A question to the user is open in a tab"
    dialogs = []
    tab.on('dialog', lambda o: dialogs.append(o))
    tab.evaluate("() => { setTimeout(() => confirm('Well?')) }")
    while not dialogs: tab.context.pages[0].wait_for_timeout(20)
    try: yield
    finally: dialogs[0].dismiss()





@pytest.mark.parametrize('browser, hangs', [('chromium', frozen), ('chromium', stopped), ('chromium', confirming), ('firefox', stopped)], indirect=['browser'])
def test_leader_that_hangs(electors, hangs):
    "It loses the lead when a visible tab waits for an answer. When it runs again it delivers nothing before it knows"
    electors.open(4)
    electors.works()
    leader = electors[0]
    with hangs(leader):
        start = time.time()
        for tab in electors[1:]: answer = ask(tab)
        new = electors.leader(leader)
        print(f"{hangs.__name__}: {new.evaluate('log.find(([what]) => what === `lead`)[1]')-start*1000:.0f} ms")
        electors.works(leader)
        assert steals(electors[1:]).count('sse2:test') == 1
        since = time.time()*1000
    electors.leader()
    electors.works()
    after = leader.evaluate('since => log.filter(o => o.at(-1) >= since).map(([what]) => what)', since)
    assert after[0] == 'lost', after
    assert answer


@pytest.mark.parametrize('browser, hangs', [('chromium', frozen), ('chromium', stopped), ('firefox', stopped)], indirect=['browser'])
def test_follower_that_hangs(electors, hangs):
    "What it does not take is bounded, and it knows that it has missed something; a short sleep costs nothing but with a debugger"
    leader,tab = electors.open(),electors.open()
    electors.works()
    me = tab.evaluate('election.me')
    with hangs(tab):
        leader.evaluate("me => { for (let i = 0; i < 3; i++) election.tell(me, i) }", me)
        leader.evaluate('() => { election.beaten = -Infinity }')
    leader.evaluate('election.beat()')
    if hangs is frozen: tab.wait_for_function('said("missed")')
    else: tab.wait_for_function('said("told") === 4')
    electors.works()
    me = tab.evaluate('election.me')
    with hangs(tab):
        told = leader.evaluate("""async me => {
            const bytes = new Uint8Array(65536);
            for (let i = 0; i < 8000; i++) {
                if (said('overflowed')) return i;
                election.tell(me, bytes, bytes.length);
                if (i % 16 === 0) await new Promise(resolve => setTimeout(resolve));
            }
        }""", me)
        assert 64 <= told <= 65
    missed = tab.evaluate('said("missed")')
    leader.evaluate('() => { election.beaten = -Infinity; election.beat() }')
    tab.wait_for_function('missed => said("missed") > missed', arg=missed if hangs is frozen else 0)
    electors.works()
    assert leader.evaluate('said("overflowed")') == 1
    assert steals(electors) == []


@each_browser
def test_reader_that_is_well(electors):
    "100 MB that a leader passes on as they come do not overflow a tab"
    leader,tab = electors.open(),electors.open()
    electors.works()
    secs = leader.evaluate("""async me => {
        const start = performance.now(), reader = (await fetch('/flood')).body.getReader();
        let most = 0;
        for (;;) {
            const { done, value } = await reader.read();
            if (done) break;
            if (!await election.confirmLead()) throw new Error('leads no more');
            await election.tell(me, value, value.length);
            const { bytes, acknowledged } = election.tabs.get(me);
            most = Math.max(most, bytes - acknowledged);
        }
        return [performance.now() - start, most];
    }""", tab.evaluate('election.me'))
    answered(tab)
    print(secs)
    assert not leader.evaluate('said("overflowed")') and not tab.evaluate('said("missed")')


@each_browser
def test_back_and_forth(browser, electors):
    "A page that is left holds nothing, and elects again when it comes back, as often as one likes"
    electors.open(2)
    electors.works()
    for i in range(4):
        tab = electors[i%2]
        tab.evaluate('window.kept = true')
        tab.goto(electors.url('elsewhere'))
        assert tab.evaluate("async () => { const { held, pending } = await navigator.locks.query(); return [...held, ...pending].length }") == 2
        tab.go_back(wait_until='commit')
        tab.wait_for_function('election.leader')
        assert tab.evaluate('window.kept') or isinstance(browser, Firefox)  # It keeps no page that holds a lock when it is left
        assert electors.leader() is electors[(i+1)%2]
        electors.works()
    assert steals(electors) == []


def test_another_protocol(electors):
    "Tabs of an older client have a leader of their own; nobody disturbs the other"
    electors.open(2)
    old = [electors.open(path='election?version=sse1') for _ in range(2)]
    del electors[2:]
    assert electors.leader() is electors[0] and old[0].evaluate('election.leads')
    electors.works()
    for tab in old: answered(tab)
    with frozen(electors[0]):
        ask(electors[1])
        electors.leader(electors[0])
        answered(old[1])
    electors.works()
    assert steals(old) == [] and [names(o).count('lost') for o in old] == [0, 0]
    assert all(names(o).count('follow') <= 1 for o in old)
