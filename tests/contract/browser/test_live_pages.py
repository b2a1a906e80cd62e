"""Live elements in a browser: whose they are, and what a page needs for them"""
import pytest
from fasthtml.common import Button, Details, Dialog, Div, Input, Li, P, Summary, Titled, Ul
from browsers import each_browser, new_context
from handmade import MAJORS

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

TEXTS = "name => [...document.querySelectorAll(`[data-sse-live^=\"${name}[\"]`)].map(o => o.textContent)"
SHOWS = "([name, texts]) => JSON.stringify([...document.querySelectorAll(`[data-sse-live^=\"${name}[\"]`)].map(o => o.textContent)) === JSON.stringify(texts)"
STATES = "() => cjmSSE.sources.map(o => o.state)"


class App:
    "Mail that is for one user, and news for all"
    def __init__(self, make_site, hdrs=None, **setup):
        self.sse,self.mail,self.news,self.allowed = SSEBroadcastManager(retry=100),dict(ann=[], bob=[]),[],{True}
        self.notes,self.asked = ['a', 'b'],0
        def prepare(app):
            setup_sse(app, self.sse, **setup)
            self.add_to(app)
        self.site = make_site(prepare, hdrs)
        self.url = self.site.url('').removesuffix('/pages/')

    def add_to(self, app):
        @self.sse.live('mail:{user}', authorise=lambda request, user: user in ('ann', 'bob') and True in self.allowed)
        def inbox(user): return Ul(*map(Li, self.mail[user]))
        @self.sse.live('news')
        def news(): return P(', '.join(o for o in self.news if isinstance(o, str)))
        @self.sse.live('n:{n}')
        def cell(n: int): return P(f'{n}: {self.news.count(n)}')
        @app.get('/login/{name}')
        def login(name: str, session):
            session['auth'] = name
            return Titled('in')
        @app.get('/mine')
        def mine(session): return Titled('Mine', inbox(session['auth']), news(), Input(id='field'))
        @app.get('/news')
        def public(): return Titled('News', news(), Div(id='more'), Button('More', hx_get='/cell?n=1', hx_target='#more', id='get'))
        @self.sse.live('board')
        def board(): return Div(news(), P(len(self.news)))
        @app.get('/twice/{how}')
        def twice(how: str):
            shown = dict(first=lambda: (news(), board()), last=lambda: (board(), news()), within=lambda: (board(),))
            return Titled('Twice', *shown[how]())
        @app.get('/notes')
        def notes(): return note_list()
        @self.sse.live('notes')
        def note_list():
            def note(o): return Details(Summary(o), Div(cls='more'), hx_get='/more', hx_trigger='toggle once', hx_target='find .more')
            return Div(*map(note, self.notes), Dialog(P('dialog'), id='dialog'), P(len(self.notes), cls='count'))
        @app.get('/more')
        def more():
            self.asked += 1
            return P('more'), P('of it')
        @app.get('/cell')
        def one(n: int): return cell(n)
        @app.get('/fifty')
        def fifty(): return Titled('Fifty', *map(cell, range(50)))

    def add_mail(self, user, text):
        self.mail[user].append(text)
        self.sse.changed(f'mail:{user}').result(30)

    def add_news(self, o):
        self.news.append(o)
        self.sse.changed('news' if isinstance(o, str) else f'n:{o}').result(30)

    def live(self, until, n): until(lambda: self.sse.connection_count==n, lambda: f'{n} streams, not {self.sse.connection_count}')

    def enter(self, page, until):
        "Log in as Ann, and open her page"
        page.goto(f'{self.url}/login/ann')
        page.goto(f'{self.url}/mine')
        self.live(until, 1)


@pytest.fixture
def app(make_site): return App(make_site)


def shows(page, name, *texts): page.wait_for_function(SHOWS, arg=[name, texts])


@each_browser
def test_stranger_with_a_copied_page(page, app, browser, until):
    "All that stands in a page of ann's, opened by somebody else: it shows nothing of what ann gets"
    app.enter(page, until)
    app.add_mail('ann', 'the first')
    shows(page, 'inbox', 'the first')
    copy = page.evaluate('document.querySelector(\'[data-sse-live^="inbox["]\').outerHTML')
    with new_context(browser) as context:
        stranger = context.new_page()
        stranger.goto(f'{app.url}/news')
        app.live(until, 2)
        stranger.evaluate('html => document.body.insertAdjacentHTML("beforeend", html)', copy)
        app.add_news('public')
        shows(stranger, 'news', 'public')
        for n in range(3): app.add_mail('ann', f'secret {n}')
        shows(page, 'inbox', 'the firstsecret 0secret 1secret 2')
        app.add_news('end')
        shows(stranger, 'news', 'public, end')
        assert stranger.evaluate(TEXTS, 'inbox')==['the first'], 'what was copied, and nothing more'
        stranger.goto(f'{app.url}/login/bob')
        stranger.goto(f'{app.url}/mine')
        stranger.evaluate('html => document.body.insertAdjacentHTML("beforeend", html)', copy)
        app.add_mail('bob', 'to bob')
        stranger.wait_for_function('document.querySelector(\'[data-sse-live=\\\'inbox["bob"]\\\']\').textContent === "to bob"')
        app.add_mail('ann', 'for ann alone')
        app.add_news('over')
        shows(stranger, 'news', 'public, end, over')
        assert 'ann alone' not in stranger.evaluate('document.documentElement.textContent')


def test_withdrawn(page, app, until):
    "What may not be seen any more stops, and the page says so; the rest goes on"
    app.enter(page, until)
    app.add_mail('ann', 'allowed')
    shows(page, 'inbox', 'allowed')
    app.allowed.clear()
    app.site.loop.run(app.sse.disconnect('ann'))
    until(lambda: any(k=='error' and 'refuses' in t for k,t in page.console), lambda: f'the console says it: {page.console}')
    app.mail['ann'].append('secret')
    app.sse.changed('mail:ann').result(30)
    app.add_news('goes on')
    shows(page, 'news', 'goes on')
    assert page.evaluate(TEXTS, 'inbox')==['allowed']


def test_all_withdrawn(page, app, until):
    "With nothing left to show the state is `error`"
    app.enter(page, until)
    page.evaluate('document.querySelector(\'[data-sse-live^="news["]\').remove()')
    app.allowed.clear()
    app.site.loop.run(app.sse.disconnect('ann'))
    page.wait_for_function('() => cjmSSE.state === "error"')
    app.live(until, 0)


@pytest.mark.parametrize('how', ['first', 'last', 'within'])
def test_who_has_logged_in(page, app, until, how):
    "A view alone, and within another one, which has a signature of another kind: each is live again, and no error is logged"
    page.add_init_script('Math.random = () => 0')  # Tabs wait for a moment, not to fetch their pages at the same time
    page.goto(f'{app.url}/twice/{how}')
    app.live(until, 1)
    app.add_news('before')
    shows(page, 'news', *['before']*(1+(how!='within')))
    other = page.context.new_page()
    other.goto(f'{app.url}/login/ann')
    app.site.stop()
    app.site.start()
    app.add_news('meanwhile')
    text = 'before, meanwhile'
    for _ in range(2):
        shows(page, 'news', *[text]*(1+(how!='within')))
        app.add_news('after')
        text += ', after'
    shows(page, 'news', *[text]*(1+(how!='within')))
    app.sse.changed('board').result(30)
    shows(page, 'board', f'{text}{len(app.news)}')
    assert not [t for k,t in page.console if k=='error' and 'refuses' in t]


@pytest.mark.parametrize('hdrs', MAJORS.values(), ids=MAJORS)
def test_what_is_open_stays_open(page, make_site, until, hdrs):
    "Also where htmx has loaded its content, so that the next change brings all of the element; and what is closed stays closed"
    app = App(make_site, hdrs())
    page.goto(f'{app.url}/notes')
    app.live(until, 1)
    page.evaluate("document.querySelector('#dialog').show()")
    page.locator('summary').first.click()
    until(lambda: app.asked, 'its content is loaded')
    app.notes[:0] = ['new']
    for o in 'cd':
        app.notes.append(o)
        app.sse.changed('notes').result(30)
        page.wait_for_function("n => document.querySelector('.count').textContent === n", arg=str(len(app.notes)))
        opened = page.evaluate("[...document.querySelectorAll('details, dialog')].map(o => o.open)")
        assert opened.count(True)==2 and opened[-1], opened


@pytest.mark.parametrize('multiplex', [True, False])
def test_fifty_in_a_page(page, make_site, until, multiplex):
    "One request for all of them, on one connection"
    if not multiplex: page.direct.add('off')
    app = App(make_site, multiplex=multiplex)
    asked = []
    page.on('request', lambda r: asked.append((r.method, r.url.removeprefix(app.url))) if '/_sse/' in r.url and r.resource_type!='script' else None)
    page.goto(f'{app.url}/fifty')
    app.live(until, 1)
    for n in 0, 49, 20, 20:
        app.add_news(n)
        page.wait_for_function('([n, k]) => [...document.querySelectorAll("[data-sse-live-key]")][n].textContent === `${n}: ${k}`', arg=[n, app.news.count(n)])
    assert app.site.connections==1 and len(asked)<=2, asked


@pytest.mark.parametrize('hdrs', MAJORS.values(), ids=MAJORS)
def test_one_more_by_a_swap(page, make_site, until, hdrs):
    "What htmx puts into the page is live, too; no page is loaded anew"
    app = App(make_site, hdrs())
    page.goto(f'{app.url}/news')
    app.live(until, 1)
    page.locator('#get').click()
    shows(page, 'cell', '1: 0')
    app.add_news(1)
    shows(page, 'cell', '1: 1')
    app.live(until, 1)


@each_browser
def test_field_beside_it(page, app, until):
    "What somebody types stays, and the focus"
    app.enter(page, until)
    page.evaluate("() => { const f = document.querySelector('#field'); f.focus(); f.value = 'typed'; f.setSelectionRange(2, 3) }")
    for n in range(3): app.add_mail('ann', f'{n}')
    shows(page, 'inbox', '012')
    assert page.evaluate("() => { const f = document.activeElement; return [f.id, f.value, f.selectionStart, f.selectionEnd] }")==['field', 'typed', 2, 3]


def test_reconnects(page, app, until):
    "What happened while nobody answered is shown once somebody does"
    app.enter(page, until)
    app.add_mail('ann', 'a')
    shows(page, 'inbox', 'a')
    app.site.stop()
    for o in 'bc': app.mail['ann'].append(o)
    app.news.append('news')
    app.site.start()
    app.sse.changed('mail:ann')
    shows(page, 'inbox', 'abc')
    app.add_news('more')
    shows(page, 'news', 'news, more')
