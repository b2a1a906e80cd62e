"""Somebody logs in, out, or in as somebody else

All tabs of a browser belong to whoever has logged in last. From the moment on at which a page knows of another user it
shows nothing that was for the former one, though nothing is loaded anew; the streams of all tabs are opened anew, as
the new user's. A stream that leads to a log-in page stops and says so.
"""
import asyncio
from contextlib import contextmanager

import pytest
from boards import SHOWN, log
from fasthtml.common import Button, Div, P, RedirectResponse, Response, Titled
from handmade import MAJORS

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import segment
from cjm_fasthtml_sse.helpers import setup_sse

ORDERS = '**/_sse/mux'  # By these a tab opens and closes its streams


class App:
    "`/mine` is a stream for whoever has logged in, `/news` is for all; both say whose they are"
    def __init__(self, site):
        self.site,self.sse = site,SSEBroadcastManager(retry=200, heartbeat=2.)
        setup_sse(site.app, self.sse)
        self.url = site.url('').removesuffix('pages/')

        def stream(req, who):
            return self.sse.stream(req, events=f'{segment(who)}:*', render=lambda m: f'<i>{who} {m["data"]}</i>',
                                   snapshot=lambda: f'<i>{who} hello</i>')
        @site.app.route('/mine')
        def mine(req, sess): return stream(req, sess['auth']) if 'auth' in sess else Response('log in', 401)
        @site.app.route('/news')
        def news(req): return stream(req, 'all')

        def become(name, sess):
            sess.clear()
            if name: sess['auth'] = name
        @site.app.route('/home')
        def home(sess):
            def button(name): return Button(name, hx_post=f'/enter?name={name}', hx_target='#who', id=f'be-{name}')
            who = P(sess.get('auth', 'nobody'), id='who')
            return Titled('Mine', who, log('/mine', 'mine'), log('/news', 'news'), *map(button, ('ann', 'bob', '')))
        @site.app.route('/login/{name}')
        def login(name: str, sess):
            become(name, sess)
            return RedirectResponse('/home', 303)
        @site.app.route('/logout')
        def logout(sess):
            become('', sess)
            return Titled('Bye')
        @site.app.route('/enter', methods=['post'])
        def enter(name: str, sess):
            become(name, sess)
            return name or 'nobody'

    async def say_to_all(self, text):
        return {who: await self.sse.broadcast(f'{who}:said', text) for who in ('ann', 'bob', 'all')}

    def say(self, text):
        "Say it on all streams; how many there are of each user"
        told = self.site.loop.run(self.say_to_all(text))
        return {who: n for who,n in told.items() if n}

    @contextmanager
    def talk(self):
        "Something is said on all streams each few milliseconds inside the `with` block"
        async def talk():
            while talking:
                await self.say_to_all('talk')
                self.talked += 1
                await asyncio.sleep(.01)  # Between two messages
        talking,self.talked = [True],0
        task = asyncio.run_coroutine_threadsafe(talk(), self.site.loop.loop)
        try: yield
        finally:
            talking.clear()
            task.result(30)


@pytest.fixture
def app(site): return App(site)


def heard(page): return [o.split()[0] for o in page.evaluate(SHOWN, 'mine')]


def test_another_user_by_a_page(tabs, app, until):
    "In another tab: what the former user's stream says reaches none of the new user's pages"
    tabs.open(f'{app.url}login/ann', 3)
    tabs.active(2)
    until(lambda: app.say('first')==dict(ann=3, all=3))
    with app.talk():
        bob = tabs.open(f'{app.url}login/bob')
        tabs.active(2)
        until(lambda: app.say('then')==dict(bob=4, all=4), lambda: f"all are bob's: {app.say('then')}")
        bob.reload()
        tabs.active(2)
    app.say('over')
    tabs.show('mine', 'bob over')
    assert {*heard(bob)}=={'bob'}
    for page in tabs[:3]: assert heard(page)==sorted(heard(page)), 'first ann, then bob, and never again ann'


def test_another_user_by_htmx(tabs, app, until):
    "No page is loaded: from the moment on at which it knows of bob, it shows nothing of ann's"
    tabs.open(f'{app.url}login/ann', 3)
    tabs.active(2)
    until(lambda: app.say('first')==dict(ann=3, all=3))
    page = tabs[1]
    page.evaluate("""document.addEventListener('htmx:afterSwap', e => {
        if (e.target.id === 'who') document.querySelector('#mine').insertAdjacentHTML('beforeend', '<i>now</i>') })""")
    orders,held = [],[True]
    tabs.context.route(ORDERS, lambda route: orders.append(route) if held else route.continue_())
    with app.talk():
        page.locator('#be-bob').click()
        page.wait_for_function("document.querySelector('#mine').textContent.includes('now')")
        until(lambda: orders, 'the streams are opened anew')
        said = app.talked
        until(lambda: app.talked>said+20, 'some messages for ann, which come as long as the server knows of nothing')
        held.clear()
        for o in orders: o.continue_()
        until(lambda: app.say('then')==dict(bob=3, all=3), lambda: f"all are bob's: {app.say('then')}")
    app.say('over')
    tabs.show('mine', 'bob over')
    assert {*heard(page)[heard(page).index('now')+1:]}=={'bob'}
    tabs[2].locator('#be-ann').click()
    until(lambda: app.say('back')==dict(ann=3, all=3))


@pytest.mark.parametrize('how', ['by a page', 'by htmx'])
def test_log_out(tabs, app, until, how):
    "In one tab: the streams of all tabs that are for users end, those for all go on"
    tabs.open(f'{app.url}login/ann', 3)
    tabs.active(2)
    until(lambda: app.say('first')==dict(ann=3, all=3))
    if how=='by htmx': tabs[1].locator('#be-').click()
    else: tabs.pop().goto(f'{app.url}logout')
    until(lambda: app.say('then')==dict(all=len(tabs)), lambda: f"ann is gone: {app.say('then')}")
    tabs.wait("cjmSSE.get('mine').state === 'error'")
    app.say('over')
    tabs.show('news', 'all over')
    assert not any('over' in page.inner_text('#mine') for page in tabs)


@pytest.mark.parametrize('hdrs', MAJORS.values(), ids=MAJORS)
@pytest.mark.parametrize('when', ['at first', 'later'])
def test_a_redirect_to_a_log_in_page(page, make_site, when, hdrs, idle):
    "The stream stops, what stands in the page stays, and scripts learn of it"
    site = make_site(hdrs=hdrs())
    def login(n): return RedirectResponse('/pages/login')
    site.opening['events'] = 'retry: 20\ndata: <i>as it was</i>\n\n'
    site.pages |= dict(p=lambda: Div(log('/stream/events', 'log')), login=lambda: P('Who are you?'))
    if when=='at first': site.answers['events'] = login
    page.add_init_script("""window.errors = [];
        document.addEventListener('htmx:sseError', e => errors.push(e.detail.error.message))""")
    page.goto(site.url('p'))
    if when=='later':
        page.wait_for_selector('#log > i')
        site.answers['events'] = login
        site.send(None)
    page.wait_for_function("cjmSSE.state === 'error' && cjmSSE.get('log').reason === 'Log in again'")
    before = len(site.requests)
    assert page.evaluate('errors.at(-1)')=='Log in again'
    assert page.inner_text('#log')==('as it was' if when=='later' else '')
    page.evaluate('htmx.process(document.body)')
    idle(10_000)
    assert len(site.requests)==before, 'nobody asks again'


@pytest.mark.parametrize('answer', ['refuses', 'leads to a log-in page'])
@pytest.mark.parametrize('when', ['at first', 'later'])
def test_what_authorise_says_reaches_the_page(page, make_site, when, answer):
    "It is asked once for each stream that opens. A refusal stops the stream, and where it leads the browser is led"
    site,asked = make_site(),[]
    manager,allowed = SSEBroadcastManager(retry=20),[when=='later']
    setup_sse(site.app, manager)
    def authorise(req):
        asked.append(req)
        return allowed[0] or answer!='refuses' and RedirectResponse('/pages/login', 303)
    @site.app.route('/guarded')
    def guarded(req): return manager.stream(req, snapshot=lambda: '<i>as it was</i>', authorise=authorise)
    site.pages |= dict(p=lambda: Div(log('/guarded', 'log')), login=lambda: P('Who are you?'))
    page.goto(site.url('p'))
    if when=='later':
        page.wait_for_selector('#log > i')
        assert len(asked)==1
        allowed[0] = False
        page.evaluate('cjmSSE.reconnect()')
    reason = 'status 403' if answer=='refuses' else 'Log in again'
    page.wait_for_function(f"cjmSSE.state === 'error' && cjmSSE.get('log').reason === '{reason}'")
    # Once more where it leads elsewhere: the browser itself has to ask
    assert len(asked)==1+(when=='later')+(answer!='refuses')
    assert page.inner_text('#log')==('as it was' if when=='later' else '')
