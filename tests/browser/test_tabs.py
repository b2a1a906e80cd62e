"Many tabs of one browser: the same messages in all, whatever happens to one of them"
import pytest
from fasthtml.common import Div, to_xml

from tabs import answers, complete, connect, crash, frozen, renderer, stopped

from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, setup_sse


def one_connection(until, site, board, tabs):
    "All is on one connection, and nothing else is open"
    until(lambda: (site.connections, board.open) == (1, dict.fromkeys('abc', len(tabs))), lambda: f'one connection {site.connections} {board.open}')


def test_twenty_tabs(tabs, site, board, until):
    "Three streams in twenty tabs: one connection, and every tab gets all messages, once and in order"
    tabs.open(site.url('p'), 20)
    tabs.active(3)
    one_connection(until, site, board, tabs)
    for _ in range(5):
        board.say(100)
        assert max(answers(tabs)) < 5000  # Not one had to wait for a connection
    complete(tabs, board)
    one_connection(until, site, board, tabs)


def test_killed_and_restarted(tabs, site, board, until):
    "Two tabs crash, and the server restarts, while messages come: those who live on miss nothing"
    tabs.open(site.url('p'), 20)
    tabs.active(3)
    board.say(100)
    for _ in range(2):
        crash(tabs.pop(tabs.index(tabs.leader())))
        board.say(50)
    site.stop()
    tabs.wait("cjmSSE.state === 'reconnecting'")
    board.say(100)
    site.start()
    board.say(100)
    tabs.active(3)
    board.say(100)
    complete(tabs, board)
    one_connection(until, site, board, tabs)


def test_tabs_come_and_go(tabs, site, board, until):
    "While messages come, tabs are opened, reloaded, left, brought back, closed. Each shows what came after it was drawn"
    with board.flow():
        for _ in range(3):
            tabs.open(site.url('p'), 3)
            tabs.pop(0).close()
            tabs[0].reload()
            tabs[1].goto(site.url('none'))
            tabs[1].go_back(wait_until='commit')
            crash(tabs.pop(tabs.index(tabs.leader())))
        tabs.active(3)
    complete(tabs, board)
    one_connection(until, site, board, tabs)


@pytest.mark.parametrize('how', ['stopped', 'frozen'])
def test_leader_that_hangs(tabs, site, board, until, how):
    "A tab that gives no sign of life loses the lead, when somebody looks at another. When it wakes up it has missed nothing"
    tabs.open(site.url('p'), 3)
    tabs.active(3)
    board.say(30)
    complete(tabs, board)
    leader = tabs.leader()
    others = tabs.others(leader)
    with stopped(renderer(leader)) if how == 'stopped' else frozen(leader):
        board.say(30)
        others[0].evaluate('cjmSSE.mux.check()')
        others.leader()
        board.say(30)
        complete(others, board)
        assert not any(o.evaluate('shown.includes("error")') for o in others)
    board.say(30)
    complete(tabs, board)
    one_connection(until, site, board, tabs)


def test_page_that_loads_while_the_leader_hangs(tabs, site, board, until):
    "It takes the lead. What the leader had not told any more, the others ask the server for"
    tabs.open(site.url('p'), 3)
    tabs.active(3)
    board.say(30)
    complete(tabs, board)
    leader = tabs.leader()
    with stopped(renderer(leader)):
        board.say(30)
        tabs.open(site.url('p'))
        board.say(30)
        complete(tabs.others(leader), board)
    board.say(30)
    complete(tabs, board)
    one_connection(until, site, board, tabs)


def test_without_locks(tabs, site, board, until):
    "Where tabs can't elect, as without HTTPS, each has a carrier of its own"
    tabs.context.add_init_script("Object.defineProperty(Navigator.prototype, 'locks', {value: undefined})")
    tabs.open(site.url('p'), 2)
    tabs.active(3)
    until(lambda: (site.connections, board.open) == (2, dict(a=2, b=2, c=2)), 'two carriers')
    board.say(30)
    complete(tabs, board)
    assert tabs.all('cjmSSE.mux.step') == ['tab']*2
    tabs.all('cjmSSE.reconnect()')
    tabs.active(3)
    until(lambda: (site.connections, board.open) == (2, dict(a=2, b=2, c=2)), 'two carriers')


@pytest.mark.parametrize('setup,one,all,reasons', [
    (lambda app: setup_sse(app, share=False), True, 2, set()),
    (lambda app: insert_htmx_sse_ext(app.hdrs, share=False), True, 2, set()),
    (setup_sse, False, 3, {'asked'}),
    (lambda app: setup_sse(app, multiplex=False), True, 4, {'off'})])
def test_opting_out(page, tabs, make_site, until, setup, one, all, reasons):
    "Each tab has a carrier; or an element has a connection of its own; or each stream has"
    page.direct |= reasons
    site = make_site(setup)
    site.pages['p'] = lambda: Div(connect('/stream/one', share=one), connect('/stream/two'))
    tabs.open(site.url('p'), 2)
    tabs.active(2)
    until(lambda: (site.count('one'), site.count('two'), site.connections) == (2, 2, all))


def test_streams_without_ids(tabs, make_site, until):
    "By hand, as older apps do: a page that loads sees what its stream begins with, and nothing of what goes on is lost for the others"
    site = make_site(lambda app: insert_htmx_sse_ext(app.hdrs))
    site.opening['loud'] = 'data: state\n\n'
    site.pages['p'] = lambda: Div(connect('/stream/loud'), connect('/stream/quiet'))
    for n in range(3):
        tabs.open(site.url('p'))
        tabs.active(2)
        for o in ('loud', 'quiet'):
            site.send(f'data: {n}\n\n', o)
            tabs.wait('([url, n]) => got[url].includes(n)', [f'/stream/{o}', str(n)])
    assert tabs.all("got['/stream/loud'].join(' ')") == ['state 0 1 2', 'state 1 2', 'state 2']
    assert tabs.all("got['/stream/quiet'].join(' ')") == ['0 1 2', '1 2', '2']
    assert (site.count('loud'), site.count('quiet'), site.connections) == (3, 3, 1)


@pytest.mark.parametrize('how', ['loads', 'takes over'])
@pytest.mark.parametrize('id', ['same', 'counted'])
def test_ids_of_others(tabs, make_site, until, id, how):
    "Always the same, or counted anew by each connection: all messages are shown, when another page loads and when another tab takes over"
    site = make_site()
    counted = iter('123456789')
    def say(*texts):
        for text in texts: site.send(f'id: {"x" if id == "same" else next(counted)}\ndata: {text}\n\n')
        tabs.wait("text => got['/stream/events'].at(-1) === text", texts[-1])
    site.pages['p'] = lambda: connect('/stream/events')
    tabs.open(site.url('p'), 1 if how == 'loads' else 2)
    tabs.active(1)
    say(*'abcdef')
    if how == 'loads': tabs.open(site.url('p'))
    else:
        before = len(site.requests)
        tabs.pop(tabs.index(tabs.leader())).close()
        until(lambda: len(site.requests) > before and site.count('events') == 1, 'the tab that took over has a stream')
    tabs.active(1)
    counted = iter('123456789')
    say(*'ghi')
    assert tabs[0].evaluate("got['/stream/events'].join('')") == 'abcdefghi'


def test_elements_that_come_later(tabs, make_site, until):
    "What a message brings to all tabs connects in each, and each sees what its stream begins with"
    site = make_site(lambda app: insert_htmx_sse_ext(app.hdrs))
    site.opening['job'] = 'data: state\n\n'
    site.pages['p'] = lambda: Div(connect('/stream/events'), Div(id='jobs'))
    tabs.open(site.url('p'), 4)
    tabs.active(1)
    site.send(f'data: {to_xml(Div(connect("/stream/job"), id="jobs", hx_swap_oob="true"), indent=False)}\n\n')
    tabs.active(2)
    site.send('data: on\n\n', 'job')
    tabs.wait("got['/stream/job'].join(' ') === 'state on'")
    assert site.connections == 1
    # One that comes with what it shows already is told what came since
    for n in (1, 2, 3): site.publish(n, 'log')
    site.pages['late'] = lambda: connect('/stream/log', after='1')
    tabs[0].evaluate("htmx.ajax('GET', '/pages/late', {target: '#jobs', swap: 'beforeend'})")
    tabs[0].wait_for_function("got['/stream/log']?.join(' ') === '2 3'")
    tabs[1].evaluate("htmx.ajax('GET', '/pages/late', {target: '#jobs', swap: 'beforeend'})")
    tabs[1].wait_for_function("got['/stream/log']?.join(' ') === '2 3'")
    site.publish(4, 'log')
    for page in tabs[:2]: page.wait_for_function("got['/stream/log'].join(' ') === '2 3 4'")
    assert site.last_ids('log') == ['1', '1']
