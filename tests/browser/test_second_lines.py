"What may happen while the leader of the tabs has a second connection open, for a page that loads or for a tab that lags behind: nothing lost, nothing twice"
import asyncio

import pytest
from starlette.responses import Response, StreamingResponse

from handmade import Proxy
from tabs import complete, connect

GOT = "(window.got['/stream/events'] ?? []).join(' ')"


@pytest.fixture
def log(tabs, site):
    "One stream with ids, its pages, and a second one for its pages that hold an older state"
    site.pages['p'] = lambda: connect('/stream/events', after=str(len(site.log) or ''))
    site.pages['old'] = lambda: connect('/stream/events', after='1')
    for n in (1, 2): site.publish(n)
    return site


def got(tabs, *want):
    "Wait until each tab has got what it is to get, and nothing else"
    for page,text in zip(tabs, want, strict=True):
        try: page.wait_for_function(f'want => {GOT} === want', arg=text)
        except Exception: assert page.evaluate(GOT) == text


def settled(tabs, site, until):
    "All tabs are on one connection"
    tabs.active(1)
    tabs.rest()
    until(lambda: site.count() == 1, 'one connection')


def events(frames): return StreamingResponse(frames, media_type='text/event-stream')


class Unanswered(Response):
    "No answer, until the browser leaves"
    async def __call__(self, scope, receive, send):
        while (await receive())['type'] != 'http.disconnect': pass


def test_first_line_is_half_open(tabs, log, loop, until):
    "Those who follow a line that has fallen silent, and does not know it, get what was sent before the other line began"
    proxy = Proxy(loop, log.port)
    try:
        tabs.open(proxy.url('p'))
        tabs.active(1)
        log.publish(3)
        got(tabs, '3')
        proxy.fall_silent(idle=False)
        for n in (4, 5): log.publish(n)
        tabs.open(proxy.url('p'))
        tabs.active(1)
        log.publish(6)
        got(tabs, '3 4 5 6', '6')
    finally: proxy.stop()


def test_second_line_is_half_open(tabs, site, board, proxy):
    "It has told nothing that the first one has told: it is asked for again, before any tab follows it"
    site.pages['one'] = lambda: connect('/a/events', after=board.manager.cursor)
    tabs.open(proxy.url('one'))
    tabs.active(1)
    board.say(3)
    complete(tabs, board)
    tabs.open(proxy.url('one'))  # It knows an id that no message of its stream has
    tabs[1].wait_for_function("cjmSSE.state === 'active'")
    proxy.fall_silent(idle=False)
    for _ in range(2):
        board.say(3)
        complete(tabs, board)
        tabs.rest()


def test_second_line_stops_half_way(tabs, log, until):
    "It has brought one message of the three that the first one has: the rest is asked for again, before any tab follows it"
    tabs.open(log.url('p'))
    tabs.active(1)
    for n in (3, 4, 5): log.publish(n)
    got(tabs, '3 4 5')
    n,going = len(log.requests),asyncio.Event()
    async def half():
        yield log.log[2][1]
        await going.wait()
        for _,frame in log.log[3:]: yield frame
        await asyncio.sleep(60)
    log.answers['events'] = lambda i: events(half()) if i == n+1 else None
    log.pages['two'] = lambda: connect('/stream/events', after='2')
    tabs.open(log.url('two'))
    until(lambda: ('events', '3') in log.requests[n+1:], 'another request for the rest')
    log.loop.loop.call_soon_threadsafe(going.set)
    settled(tabs, log, until)
    log.publish(6)
    got(tabs, *['3 4 5 6']*2)


@pytest.mark.parametrize('ids', [True, False])
def test_first_line_is_lost(tabs, log, until, ids):
    "A page that loads finds the server back: the tabs that were waiting to try again are taken along, and miss nothing that has an id"
    if not ids: log.pages['p'] = lambda: connect('/stream/events')
    send = log.publish if ids else lambda n: log.send(f'data: {n}\n\n')
    tabs.open(log.url('p'))
    tabs.active(1)
    tabs[0].evaluate('cjmSSE.sources[0].configure({delay: 60000})')
    send(3)
    got(tabs, '3')
    log.send(None)
    tabs.wait("cjmSSE.state === 'reconnecting'")
    send(4)
    tabs.open(log.url('p'))
    settled(tabs, log, until)
    send(5)
    got(tabs, '3 4 5' if ids else '3 5', '5')


@pytest.mark.parametrize('ids', [True, False])
def test_second_line_is_lost(tabs, log, until, ids):
    "It ends as soon as it is open: the first one goes on until the second is back"
    if not ids: log.pages['p'] = lambda: connect('/stream/events')
    send = log.publish if ids else lambda n: log.send(f'data: {n}\n\n')
    tabs.open(log.url('p'))
    tabs.active(1)
    n = len(log.requests)
    async def short(): yield 'retry: 3000\ndata: short\n\n'
    log.answers['events'] = lambda i: events(short()) if i == n+1 else None
    tabs.open(log.url('old' if ids else 'p'))
    tabs[1].wait_for_function("cjmSSE.state === 'reconnecting'")
    tabs.wait_for_timeout(400)  # For the time of a move
    assert tabs[0].evaluate('cjmSSE.state') == 'active'
    send(3)
    got(tabs[:1], '3')
    settled(tabs, log, until)
    send(4)
    got(tabs, '3 4', 'short 2 3 4' if ids else 'short 4')


def test_second_line_gets_no_answer(tabs, log, until):
    "It makes room for the others, and has its turn again"
    tabs.open(log.url('p'))
    tabs.active(1)
    n = len(log.requests)
    log.answers['events'] = lambda i: Unanswered() if i == n+1 else None
    tabs.open(log.url('old'))
    tabs.wait_for_timeout(100)
    log.publish(3)
    tabs.open(log.url('p'))
    settled(tabs, log, until)
    log.publish(4)
    got(tabs, '3 4', '2 3 4', '4')
    assert log.most['events'] <= 3  # Two; but of one that is closed the server may learn after it has seen the next


def test_ids_that_are_always_the_same(tabs, make_site, until):
    "They tell nothing: all messages are shown, as without ids"
    site = make_site()
    site.pages['p'] = lambda: connect('/stream/events')
    for n in range(3):
        tabs.open(site.url('p'))
        tabs.active(1)
        tabs.rest()
        for i in range(3): site.send(f'id: x\ndata: {n}{i}\n\n')
    want = [f'{n}{i}' for n in range(3) for i in range(3)]
    got(tabs, *(' '.join(want[3*n:]) for n in range(3)))


@pytest.mark.parametrize('how', ['loads', 'takes over'])
def test_ids_that_each_connection_counts_anew(tabs, make_site, until, how):
    "A server that knows nothing of `Last-Event-ID`: all messages are shown, when another page loads and when another tab takes over"
    site,mails = make_site(),[]
    @site.app.route('/counted')
    async def counted():
        async def frames():
            mails.append(mail := asyncio.Queue())
            try:
                n = 0
                while True: yield f'id: {(n := n+1)}\ndata: {await mail.get()}\n\n'
            finally: mails.remove(mail)
        return events(frames())
    def say(*texts):
        for text in texts:
            for mail in mails: site.loop.loop.call_soon_threadsafe(mail.put_nowait, text)
        tabs.wait("text => got['/counted'].at(-1) === text", texts[-1])
    site.pages['p'] = lambda: connect('/counted')
    tabs.open(site.url('p'), 1 if how == 'loads' else 2)
    tabs.active(1)
    tabs.rest()
    until(lambda: len(mails) == 1)
    say(*'abcdef')
    if how == 'loads': tabs.open(site.url('p'))
    else:
        tabs.pop(tabs.index(tabs.leader('/counted'))).close()
        tabs.wait('cjmSSE.sources[0].own?.readyState === 1')
    tabs.active(1)
    tabs.rest()
    until(lambda: len(mails) == 1)
    say(*'ghi')
    assert tabs[0].evaluate("got['/counted'].join('')") == 'abcdefghi'


@pytest.mark.parametrize('ms', [600, 2500])
def test_replay_that_falters(tabs, log, until, ms):
    "A tab that lags behind follows its own line until that has brought what all others know, however slowly it comes"
    tabs.open(log.url('p'), 2)
    settled(tabs, log, until)
    late = next(page for page in tabs if page is not tabs.leader('/stream/events'))
    late.evaluate('cjmSSE.sources[0].suspend()')
    for n in range(3, 1203): log.publish(n)  # More than the leader keeps
    tabs.leader('/stream/events').wait_for_function(f"{GOT}.endsWith(' 1202')")
    n,frames = len(log.requests),[frame for _,frame in log.log[2:]]
    going = asyncio.Event()
    async def slow():
        yield ''.join(frames[:50])
        await going.wait()
        yield ''.join(frames[50:])
        await asyncio.sleep(60)
    log.answers['events'] = lambda i: events(slow()) if i == n+1 else None
    late.evaluate('cjmSSE.sources[0].resume()')
    late.wait_for_function(f"{GOT}.endsWith(' 52')")
    late.wait_for_timeout(ms)
    log.loop.loop.call_soon_threadsafe(going.set)
    want = ' '.join(str(n) for n in range(3, 1203))
    got(tabs, want, want)
    settled(tabs, log, until)
    log.publish(1203)
    got(tabs, f'{want} 1203', f'{want} 1203')


def test_all_at_once(tabs, log, until):
    "Pages of three ages load and one lags behind while messages come: each is told what it does not know"
    tabs.open(log.url('p'), 2)
    settled(tabs, log, until)
    late = next(page for page in tabs if page is not tabs.leader('/stream/events'))
    late.evaluate('cjmSSE.sources[0].suspend()')
    for n in range(3, 1103): log.publish(n)
    tabs.leader('/stream/events').wait_for_function(f"{GOT}.endsWith(' 1102')")
    pages = [tabs.open('about:blank') for _ in range(3)]
    after = []
    for page,name in zip(pages, ('p', 'old', 'p')):
        after.append(1 if name == 'old' else len(log.log))
        page.goto(log.url(name), wait_until='commit')
        log.publish(len(log.log)+1)
    late.evaluate('cjmSSE.sources[0].resume()')
    for _ in range(20):
        log.publish(len(log.log)+1)
        late.wait_for_timeout(100)
    settled(tabs, log, until)
    log.publish(last := len(log.log)+1)
    for page,n in zip(tabs, (2, 2, *after)):
        got([page], ' '.join(str(i) for i in range(n+1, last+1)))
    assert log.most['events'] <= 3  # As above
