"""Who may follow which live elements

The page carries them, with their arguments and a signature; the browser sends them back in one `POST` to `/_sse/live`.
What the server has drawn for a visitor, this visitor may follow, as long as `authorise` agrees, and nothing else: not
with another visitor's signature, not with other arguments, not without the element around a slot. All that is refused
is refused alike.
"""
import asyncio
import hmac
import json
import logging
from base64 import urlsafe_b64encode
from contextlib import asynccontextmanager, suppress
from html.parser import HTMLParser
from types import SimpleNamespace

import httpx
import pytest
from fasthtml.common import Beforeware, Div, FastHTML, HttpHeader, Li, P, RedirectResponse, Ul
from starlette.routing import Mount

from cjm_fasthtml_sse.core import SSEBroadcastManager, SSEError
from cjm_fasthtml_sse.helpers import setup_sse
from tests.contract.clock import timeless
from tests.contract.support import BOUND, Parser, all_live, client_tag, eventually, serve, turns, within
from tests.contract.visitors import Channel, Visitor

LIVE = '/_sse/live'
RECHECK = 30  # Seconds after which `authorise` is asked again
JSON = {'content-type': 'application/json'}


class Elements(HTMLParser):
    "The live elements of a page: view -> key, version, url, and the view around it"
    VOID = {'link', 'meta', 'input', 'br', 'img', 'hr'}

    def __init__(self, html):
        super().__init__()
        self.found, self.open_tags = {}, []
        self.feed(html if isinstance(html, str) else html.body.decode())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        view = attrs.get('data-sse-live') if tag != 'script' else None
        if view is not None:
            outer = next((o for _, o in reversed(self.open_tags) if o), None)
            self.found[view] = SimpleNamespace(view=view, key=attrs.get('data-sse-live-key', ''), outer=outer,
                version=attrs.get('data-sse-live-version', ''), url=attrs.get('data-sse-live-url', ''), id=attrs.get('id'))
        if tag not in self.VOID: self.open_tags.append((tag, view))

    def handle_endtag(self, tag):
        while self.open_tags and self.open_tags.pop()[0] != tag: pass


def elements(page): return Elements(page).found

def wish(*found, **changed):
    "What the browser sends for elements of a page"
    return [[o.view, changed.get('key', o.key), changed.get('version', ''), changed.get('outer', o.outer)] for o in found]


@asynccontextmanager
async def following(visitor, views, url=LIVE, **headers):
    "The stream of these views: `told` has what each of them was told, newest last"
    r = visitor.begins(url, 'POST', json.dumps(dict(views=views)).encode(), **JSON, **headers)
    r.told, parser = {}, Parser()
    def heard(data):
        for e in parser.feed(data):
            if e.event != 'sse:live': continue
            for view, start, end, changes in json.loads(e.data):
                r.told.setdefault(view, []).append('refused' if end is None else changes)
    r.heard = heard
    async with r:
        visitor.keep(r)
        yield r


async def answers(visitor, views, url=LIVE, n=None, **headers):
    "What each view is told first: `refused`, or its HTML"
    async with following(visitor, views, url, **headers) as r:
        assert r.status == 200, (r.status, r.body)
        await eventually(lambda: len(r.told) >= (len(views) if n is None else n), lambda: f'all are told of: {r.told}')
        def first(o): return o[0] if o[0] == 'refused' else o[0][0][1]
        return {view: first(o) for view, o in r.told.items()}


class Shop:
    "An app with live elements of each kind, and a log-in"
    def __init__(self, secret='contract', manager=None, prefix='', **kw):
        self.app, self.sse = FastHTML(secret_key=secret, default_hdrs=False, **kw), manager or SSEBroadcastManager(heartbeat=0)
        setup_sse(self.app, self.sse)
        self.may, self.asked = {}, []
        sse = self.sse
        @sse.live('todo:*')
        def todos(): return Ul(Li('tea'))
        @sse.live('user:{user}:**')
        def inbox(user): return P(f'mail of {user}')
        def authorise(req, n):
            self.asked.append(n)
            answer = self.may.get(n, True)
            if isinstance(answer, Exception): raise answer
            return answer
        @sse.live('vault:{n}', authorise=authorise)
        def vault(n: int): return P(f'gold {n}')
        async def authorise_later(req, n): return authorise(req, n)
        @sse.live('gate:{n}', authorise=authorise_later)
        async def gate(n: int): return P(f'gate {n}')
        @sse.live('outer:*', authorise=lambda req: self.may.get('outer', True))
        def outer(): return Div(inner('a'))
        @sse.live('inner:{name}')
        def inner(name): return P(f'within {name}')
        self.todos, self.inbox, self.vault, self.outer, self.inner = todos, inbox, vault, outer, inner
        @self.app.get('/')
        def index(sess): return todos(), inbox(sess.get('auth') or 'nobody')
        @self.app.get('/vaults')
        def vaults(): return vault(1), vault(2)
        @self.app.get('/gates')
        async def gates(): return await gate(1), await gate(2)
        @self.app.get('/outer')
        def around(): return outer()
        @self.app.get('/plain')
        def plain(): return P('plain')
        @self.app.get('/login')
        def login(name: str, sess):
            sess['auth'] = name
            return todos(), inbox(name)
        @self.app.get('/logout')
        def logout(sess):
            sess.clear()
            return 'bye'

    @asynccontextmanager
    async def visitors(self, n=1):
        all = [Visitor(self.app) for _ in range(n)]
        yield all[0] if n == 1 else all
        for o in all: await o.hang_up()
        await eventually(lambda: not self.sse.connection_count, 'all streams have ended')


class TestSignatures:
    async def test_a_first_visit_follows_at_once(self):
        "The cookie comes with the page, and the signature is for the browser that has it"
        async with Shop().visitors() as ann:
            r = await ann.ask('/')
            cookie, = r.cookies
            assert cookie.startswith('sse_browser=') and 'HttpOnly; SameSite=Lax; Path=/' in cookie
            assert r.headers['cache-control'] == 'no-store'
            found = elements(r)
            assert [*found] == ['todos[]', 'inbox["nobody"]'] and all(len(o.key) == 22 for o in found.values())
            said = await answers(ann, wish(*found.values()))
            assert 'tea' in said['todos[]'] and 'mail of nobody' in said['inbox["nobody"]']
            again = await ann.ask('/')
            assert not again.cookies and elements(again)['todos[]'].key == found['todos[]'].key

    async def test_what_the_page_shows_is_not_sent_again(self):
        async with Shop().visitors() as ann:
            todos, inbox = elements(await ann.ask('/')).values()
            views = wish(todos, version=todos.version)+wish(inbox)
            assert [*await answers(ann, views, n=1)] == [inbox.view]

    async def test_a_copied_address_is_of_no_use(self):
        "A stranger, with a cookie or without, gets no HTML"
        async with (shop := Shop()).visitors(3) as (ann, eve, nobody):
            found = elements(await ann.ask('/')).values()
            await eve.ask('/')
            for o in (eve, nobody):
                async with following(o, wish(*found)) as r:
                    await eventually(lambda r=r: len(r.told) == 2, 'both are told of')
                    shop.sse.broadcast('todo:added', 1)
                    await turns(50)
                    assert r.told == {o.view: ['refused'] for o in found} and b'tea' not in r.body

    async def test_a_refused_browser_gets_its_cookie(self):
        "As of a page that a cache has given it: the next one is signed for this browser"
        async with Shop().visitors(2) as (ann, eve):
            found = elements(await ann.ask('/')).values()
            assert {*(await answers(eve, wish(*found))).values()} == {'refused'} and 'sse_browser' in eve.jar
            r = await eve.ask('/')
            assert not r.cookies and 'tea' in (await answers(eve, wish(*elements(r).values())))['todos[]']

    async def test_a_signature_ends_with_its_user(self):
        "Another user of the same browser can't go on with it, nor can the browser that nobody uses"
        async with Shop().visitors() as browser:
            before = elements(await browser.ask('/'))
            anns = elements(await browser.ask('/login?name=ann'))
            assert anns['todos[]'].key != before['todos[]'].key
            assert 'mail of ann' in (await answers(browser, wish(*anns.values())))['inbox["ann"]']
            assert {*(await answers(browser, wish(*before.values()))).values()} == {'refused'}
            await browser.ask('/logout')
            assert {*(await answers(browser, wish(*anns.values()))).values()} == {'refused'}
            assert 'refused' not in (await answers(browser, wish(*before.values()))).values()
            await browser.ask('/login?name=bob')
            assert {*(await answers(browser, wish(*anns.values()))).values()} == {'refused'}

    @pytest.mark.parametrize('multiplex', [True, False, 'tab'])
    async def test_it_matters_not_which_streams_share_a_connection(self, multiplex):
        shop = Shop()
        setup_sse(shop.app, shop.sse, multiplex=multiplex)
        async with shop.visitors() as ann:
            r = await ann.ask('/')
            assert 'data-sse-live-src="/_sse/live-' in client_tag(r.body.decode())
            assert 'refused' not in (await answers(ann, wish(*elements(r).values()))).values()

    async def test_a_user_follows_in_every_browser(self):
        "What was drawn for a user is signed for the user"
        async with Shop().visitors(2) as (home, work):
            for o in (home, work): await o.ask('/login?name=ann')
            found = elements(await home.ask('/')).values()
            assert 'refused' not in (await answers(work, wish(*found))).values()

    async def test_a_log_in_with_the_page_counts(self):
        "The page is signed for whom the same response logs in"
        async with Shop().visitors() as ann:
            found = elements(await ann.ask('/login?name=ann')).values()
            assert 'refused' not in (await answers(ann, wish(*found))).values()

    async def test_the_function_for_visitors_counts(self):
        "`setup_sse(visitor=)` says who it is; where it fails, nothing is signed, and the page stands"
        shop = Shop()
        setup_sse(shop.app, shop.sse, visitor=lambda req: req.headers['x-team'])
        async with shop.visitors() as any:
            r = await any.ask('/', x_team='red')
            assert not r.cookies and r.headers['cache-control'] == 'no-store'
            reds = wish(*elements(r).values())
            assert 'refused' not in (await answers(any, reds, **{'x-team': 'red'})).values()
            assert {*(await answers(any, reds, **{'x-team': 'blue'})).values()} == {'refused'}
            unsigned = await any.ask('/')
            assert unsigned.status == 200 and not any.jar and {o.key for o in elements(unsigned).values()} == {''}
            assert {*(await answers(any, wish(*elements(unsigned).values()))).values()} == {'refused'}

    async def test_another_secret_makes_others(self):
        "After a deploy with another key, all is refused, and a new page is good"
        async with Shop().visitors() as ann:
            found = elements(await ann.ask('/')).values()
            ann.app = Shop(secret='another').app
            assert {*(await answers(ann, wish(*found))).values()} == {'refused'}
            new = elements(await ann.ask('/')).values()
            assert 'refused' not in (await answers(ann, wish(*new))).values()

    @pytest.mark.parametrize('view', ['inbox["bob"]', 'inbox["ann" ]', 'inbox[]', 'inbox["ann","ann"]', 'vault["ann"]',
        'todos["ann"]', 'inbox["ann"]\n', 'INBOX["ann"]', 'nothing["ann"]', 'inbox', '[]', 'é', '\0', '💥[1e999]'])
    async def test_other_arguments_are_refused(self, view):
        "With the signature of what the page has"
        async with Shop().visitors() as ann:
            await ann.ask('/login?name=ann')
            found = elements(await ann.ask('/'))['inbox["ann"]']
            assert await answers(ann, [[view, found.key, '', None]]) == {view: 'refused'}

    @pytest.mark.parametrize('key', ['', ' ', 'x', 'é'*22, '\ud800', 'A'*22, 'x'*100_000], ids=ascii)
    async def test_other_signatures_are_refused(self, key):
        async with Shop().visitors() as ann:
            found = elements(await ann.ask('/'))['todos[]']
            for o in (key, found.key+key, found.key[:-1], found.key.swapcase()):
                if o != found.key: assert await answers(ann, wish(found, key=o)) == {'todos[]': 'refused'}

    async def test_an_older_format_is_refused(self):
        "What covered less than it does now is no signature any more"
        async with Shop().visitors() as ann:
            found = elements(await ann.ask('/'))['todos[]']
            await ann.ask(LIVE, **{'SSE-Ticket': '1'})
            assert ann.tag
            for parts in (('live', ann.tag, found.view), ('live', ann.tag, '', 'main', found.view)):
                for text in ('\n'.join(parts), json.dumps(parts), json.dumps([1, *parts])):
                    mac = hmac.digest(b'contract', text.encode(), 'sha256')[:16]
                    old = urlsafe_b64encode(mac)[:22].decode()
                    assert len(old) == len(found.key)
                    assert await answers(ann, wish(found, key=old)) == {'todos[]': 'refused'}

    async def test_what_a_deploy_removed_is_refused(self):
        "It has a good signature, and is answered like one that has none"
        async with Shop().visitors() as ann:
            found = elements(await ann.ask('/')).values()
            ann.app = other = FastHTML(secret_key='contract')
            sse = setup_sse(other)
            @sse.live('todo:*')
            def todos(): return P('new')
            assert {k: 'new' in v for k, v in (await answers(ann, wish(*found))).items()} == {'todos[]': True, 'inbox["nobody"]': False}


class TestSlots:
    async def test_a_slot_needs_its_outer_element(self):
        "Its signature is for those who may follow the element around it, and good beside that one alone"
        async with Shop().visitors(2) as (ann, eve):
            found = elements(await ann.ask('/outer'))
            outer, inner = found['outer[]'], found['inner["a"]']
            assert inner.outer == 'outer[]' and not inner.url
            for both in (wish(outer, inner), wish(inner, outer)):
                assert 'within a' in (await answers(ann, both))['inner["a"]']
            assert await answers(ann, wish(inner)) == {inner.view: 'refused'}
            assert await answers(ann, wish(inner, outer=None)) == {inner.view: 'refused'}
            for around in ('todos[]', inner.view, 'nothing[]', '', '\ud800[]'):
                assert (await answers(ann, [*wish(outer), *wish(inner, outer=around)]))[inner.view] == 'refused'
            await eve.ask('/outer')
            assert {*(await answers(eve, wish(outer, inner))).values()} == {'refused'}

    async def test_a_denied_outer_element_denies_its_slots(self):
        async with (shop := Shop()).visitors() as ann:
            found = elements(await ann.ask('/outer'))
            shop.may['outer'] = False
            assert {*(await answers(ann, wish(*found.values()))).values()} == {'refused'}

    async def test_circles_and_long_chains(self):
        "A thousand slots within one another, in the worst order, of which none is signed"
        async with Shop().visitors() as ann:
            outer = elements(await ann.ask('/outer'))['outer[]']
            chain = [[f'inner["{i}"]', outer.key, '', f'inner["{i+1}"]'] for i in range(998)]
            views = [*chain, ['inner["998"]', outer.key, '', 'inner["0"]'], *wish(outer)]
            said = await answers(ann, views)
            assert (len(said), [*said.values()].count('refused')) == (1000, 999)


class TestAuthorise:
    async def test_only_true_lets_in(self, caplog):
        "Each of a page's elements is asked about, once; the others follow"
        caplog.set_level(logging.DEBUG, 'cjm_fasthtml_sse')
        async with (shop := Shop()).visitors() as ann:
            found = elements(await ann.ask('/vaults'))
            assert not shop.asked, 'the page is the business of its route'
            for answer in (False, None, 1, 'yes', RedirectResponse('/login'), ZeroDivisionError('a fault')):
                shop.may[2], shop.asked[:] = answer, []
                caplog.clear()
                said = await answers(ann, wish(*found.values()))
                assert sorted(shop.asked) == [1, 2]
                assert {k: v == 'refused' for k, v in said.items()} == {'vault[1]': False, 'vault[2]': True}
                text = '\n'.join(f'{r.getMessage()}\n{r.exc_text or ""}' for r in caplog.records)
                assert 'authorise' in text and 'vault' in text and ('a fault' if isinstance(answer, Exception) else repr(answer)) in text

    async def test_async_ones_are_awaited(self):
        app, sse = FastHTML(secret_key='contract'), SSEBroadcastManager()
        setup_sse(app, sse)
        class Asks:
            async def __call__(self, req, n):
                await asyncio.sleep(0)
                return req.session.get('auth') == n
        @sse.live('vault:{n}', authorise=Asks())
        def vault(n): return P('gold')
        @app.get('/')
        def index(sess):
            sess['auth'] = 'ann'
            return vault('ann'), vault('bob')
        visitor = Visitor(app)
        said = await answers(visitor, wish(*elements(await visitor.ask('/')).values()))
        assert {k: v == 'refused' for k, v in said.items()} == {'vault["ann"]': False, 'vault["bob"]': True}

    @timeless
    async def test_it_is_asked_again(self):
        "The stream ends where it says no, and what comes back is refused"
        async with (shop := Shop()).visitors() as ann:
            found = elements(await ann.ask('/gates')).values()
            async with following(ann, wish(*found)) as r:
                await asyncio.sleep(3*RECHECK)
                assert len(shop.asked) >= 6 and not r.over, 'all are asked again'
                shop.may[2] = False
                await asyncio.sleep(2*RECHECK)
                assert r.over, 'the stream ends'
                assert b'sse:close' not in r.body, 'the browser comes back'
            said = await answers(ann, wish(*found))
            assert {k: v == 'refused' for k, v in said.items()} == {'gate[1]': False, 'gate[2]': True}

    async def test_it_is_not_asked_for_strangers(self):
        async with (shop := Shop()).visitors(2) as (ann, eve):
            found = elements(await ann.ask('/vaults')).values()
            await answers(eve, wish(*found))
            assert not shop.asked

    @timeless
    async def test_one_that_hangs_holds_nobody_for_long(self):
        "The browser comes again later"
        app, sse = FastHTML(secret_key='contract'), SSEBroadcastManager()
        setup_sse(app, sse)
        async def authorise(req): await asyncio.get_running_loop().create_future()
        @sse.live('vault', authorise=authorise)
        async def vault(): return P('gold')
        @app.get('/')
        async def index(): return await vault()
        visitor = Visitor(app)
        found = elements(await visitor.ask('/')).values()
        async with following(visitor, wish(*found)) as r:
            assert (r.status, r.headers['retry-after']) == (503, '3')


def nested(n): return b'{"views":'+b'['*n+b']'*n+b'}'

class TestBodies:
    GOOD = ['todos[]', 'x', '', None]
    BAD = [b'', b'no JSON', b'\xff\xfe', b'7', b'"views"', b'[]', b'{}', b'null', b'NaN', b'{"views": {}}', b'{"views": []}', b'{"views": 7}',
           b'{"views": ["todos[]"]}', nested(100), nested(100_000), b'['*200_000, b'{"views": '+b'9'*10_000+b'}',
           *(json.dumps(dict(views=o)).encode() for o in (
               [[]], [GOOD[:3]], [[*GOOD, 7]], [[7, *GOOD[1:]]], [[None, *GOOD[1:]]], [['', *GOOD[1:]]], [[*GOOD[:2], 7, None]],
               [[*GOOD[:3], 7]], [[*GOOD[:3], [GOOD]]], [[GOOD, *GOOD[1:]]], [GOOD, GOOD], [GOOD, None], [['\ud800', *GOOD[1:]]]))]

    @pytest.mark.parametrize('body', BAD, ids=lambda o: ascii(o[:60]))
    async def test_what_is_no_list_of_views(self, body):
        await self.refuses(body, 400)

    async def test_long_ones(self):
        "At most 256 KB, and 1,000 views"
        many = [[f't[{i}]', '', '', None] for i in range(100_000)]
        await self.refuses(json.dumps(dict(views=many)).encode(), 413)
        await self.refuses(json.dumps(dict(views=many[:1001])).encode(), 413)
        await self.refuses(b'x'*300_000, 413)
        async with Shop().visitors() as ann: assert {*(await answers(ann, many[:1000])).values()} == {'refused'}

    async def test_other_types(self):
        "A form of another site can have one of these, and no other"
        body = json.dumps(dict(views=[self.GOOD])).encode()
        for kind in ('text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', '', 'text/json'):
            await self.refuses(body, 415, **{'content-type': kind})

    async def refuses(self, body, status, **headers):
        async with Shop().visitors() as ann:
            async with ann.begins(LIVE, 'POST', body, **{**JSON, **headers}) as r:
                await eventually(lambda: r.over, 'it is answered')
            assert (r.status, r.error) == (status, None), (r.status, r.body)
            assert len(r.body) < 100 and b'todos' not in r.body and not r.cookies and r.headers['cache-control'] == 'no-store'

    async def test_other_methods(self):
        async with Shop().visitors() as ann:
            for method in ('GET', 'HEAD', 'PUT', 'DELETE', 'OPTIONS'):
                r = await ann.ask(LIVE, method)
                assert r.status == 405 and not r.cookies and 'sse-ticket' not in r.headers, method

    async def test_a_ticket_is_to_be_had(self):
        async with Shop().visitors() as ann:
            r = await ann.ask(LIVE, **{'SSE-Ticket': '1'})
            assert (r.status, r.body) == (200, b'') and r.headers['sse-ticket']


class TestManagers:
    async def test_each_has_an_address(self):
        "A view of one is none of another's, with whatever signature"
        shop, other = Shop(), SSEBroadcastManager(name='news')
        setup_sse(shop.app, other)
        @other.live('news:*')
        def news(): return P('news')
        @shop.app.get('/both')
        def both(): return shop.todos(), news()
        async with shop.visitors() as ann:
            found = elements(await ann.ask('/both'))
            assert [o.url for o in found.values()] == ['', f'{LIVE}?manager=news']
            views = wish(*found.values())
            assert {k: v == 'refused' for k, v in (await answers(ann, views)).items()} == {'todos[]': False, 'news[]': True}
            assert {k: v == 'refused' for k, v in (await answers(ann, views, f'{LIVE}?manager=news')).items()} == {'todos[]': True, 'news[]': False}
            for wrong in ('2', '-1', 'x', '', '1', '0', '٣', '9'*5000):
                async with following(ann, views, f'{LIVE}?manager={wrong}') as r: assert r.status == 404
        await eventually(lambda: not other.connection_count, 'all streams have ended')

    async def test_a_manager_of_no_app_is_not_live(self):
        "Its elements are drawn, and have no signature"
        shop, stray = Shop(), SSEBroadcastManager()
        @stray.live('news:*')
        def news(): return P('news')
        @shop.app.get('/stray')
        def page(): return news()
        async with shop.visitors() as ann:
            r = await ann.ask('/stray')
            assert b'news' in r.body and not any(o.key for o in elements(r).values())

    async def test_mounted_apps_serve_their_own(self):
        "At their own path, for the visitors of the app around them all"
        outermost, middle, shop = Shop(), Shop(secret='middle'), Shop(secret='inner')
        middle.app.routes.append(Mount('/b', shop.app))
        outermost.app.routes.append(Mount('/a', middle.app))
        async with outermost.visitors() as ann:
            r = await ann.ask('/a/b/login?name=ann')
            assert f'data-sse-live="{LIVE}"' in client_tag(r.body.decode())
            found = elements(await ann.ask('/a/b/'))
            assert {o.url for o in found.values()} == {f'/a/b{LIVE}'}
            assert 'refused' not in (await answers(ann, wish(*found.values()), f'/a/b{LIVE}')).values()
            outer = elements(await ann.ask('/a/b/outer'))
            assert 'refused' not in (await answers(ann, wish(*outer.values()), f'/a/b{LIVE}')).values()
            assert {o.url for o in elements(await ann.ask('/a/')).values()} == {f'/a{LIVE}'}
            assert {o.url for o in elements(await ann.ask('/')).values()} == {''}
        for o in (middle, shop): await eventually(lambda o=o: not o.sse.connection_count, 'all streams have ended')

    async def test_behind_a_prefix(self):
        "A proxy takes it off, and the server knows of it"
        shop = Shop()
        async def behind(scope, receive, send): await shop.app({**scope, 'root_path': '/shop'}, receive, send)
        visitor = Visitor(behind)
        r = await visitor.ask('/')
        assert 'Path=/shop;' in r.cookies[0] and f'data-sse-live="/shop{LIVE}"' in client_tag(r.body.decode())
        found = elements(r)
        assert {o.url for o in found.values()} == {''}
        assert 'refused' not in (await answers(visitor, wish(*found.values()))).values()
        await eventually(lambda: not shop.sse.connection_count, 'all streams have ended')


class TestTwoManagers:
    "One for everybody and one for admins, in one app: what was signed for one is refused by the other"

    def house(self):
        shop, admins = Shop(), SSEBroadcastManager(name='admins', heartbeat=0)
        setup_sse(shop.app, admins)
        @admins.live('todo:*', name='todos')
        def secret_todos(): return Ul(Li('dismiss bob'))
        @admins.live('outer:*', name='outer')
        def secret_outer(): return Div(P('salaries'))
        @admins.live('inner:{name}', name='inner')
        def secret_inner(name): return P(f'salary of {name}')
        @shop.app.get('/admin')
        def admin(): return secret_todos(), secret_outer()
        shop.admins = admins
        return shop

    @asynccontextmanager
    async def visitor(self):
        shop = self.house()
        async with shop.visitors() as ann: yield shop, ann
        await eventually(lambda: not shop.admins.connection_count, 'all streams have ended')

    async def test_elements_of_the_same_name(self):
        async with self.visitor() as (shop, ann):
            public, secret = elements(await ann.ask('/')), elements(await ann.ask('/admin'))
            url = secret['todos[]'].url
            assert url and public['todos[]'].url == ''
            assert await answers(ann, wish(public['todos[]']), url) == {'todos[]': 'refused'}
            assert await answers(ann, wish(secret['todos[]'])) == {'todos[]': 'refused'}
            assert 'dismiss' in (await answers(ann, wish(secret['todos[]']), url))['todos[]']
            assert 'tea' in (await answers(ann, wish(public['todos[]'])))['todos[]']

    async def test_slots_of_the_same_name(self):
        "Nor is a slot, beside the outer element of the other manager"
        async with self.visitor() as (shop, ann):
            public, secret = elements(await ann.ask('/outer')), elements(await ann.ask('/admin'))
            views = wish(secret['outer[]'], public['inner["a"]'])
            assert views[1][3] == 'outer[]'
            got = await answers(ann, views, secret['outer[]'].url)
            assert 'salaries' in got['outer[]'] and got['inner["a"]'] == 'refused'

    @pytest.mark.parametrize('query', ['?manager=1', '?manager=0', '?manager=', '?manager=admins&manager=main',
        '?manager=main&manager=admins', '?manager=ADMINS', '?manager=admins%00', '?Manager=admins', '?manager=x'])
    async def test_no_query_leads_to_another(self, query):
        "Whatever the address says, a signature is good for its own manager alone"
        async with self.visitor() as (shop, ann):
            public = elements(await ann.ask('/'))
            async with following(ann, wish(public['todos[]']), LIVE+query) as r:
                if r.status == 404: return
                await eventually(lambda: r.told, 'it is told')
                assert 'dismiss' not in str(r.told)

    async def test_a_place_in_the_app_is_no_name(self):
        "A deploy that puts a manager in front of another one changes nothing: the name counts"
        async with self.visitor() as (shop, ann):
            secret = elements(await ann.ask('/admin'))
            after = FastHTML(secret_key='contract', default_hdrs=False)
            first, admins = SSEBroadcastManager(name='new', heartbeat=0), SSEBroadcastManager(name='admins', heartbeat=0)
            for o in (first, admins, SSEBroadcastManager()): setup_sse(after, o)
            for o, text in ((first, 'new'), (admins, 'dismiss bob, really')):
                @o.live('todo:*', name='todos')
                def todos(text=text): return P(text)
            other = Visitor(after)
            other.jar = ann.jar
            url = secret['todos[]'].url
            assert await answers(other, wish(secret['todos[]']), LIVE) == {'todos[]': 'refused'}
        async with self.visitor() as (shop, ann), self.visitor() as (again, other):
            other.jar = ann.jar
            secret = elements(await ann.ask('/admin'))
            assert 'dismiss' in (await answers(other, wish(secret['todos[]']), url))['todos[]']

    async def test_each_has_a_name(self):
        app = FastHTML(secret_key='contract', default_hdrs=False)
        sse = setup_sse(app, SSEBroadcastManager())
        other = SSEBroadcastManager()
        setup_sse(app, other)  # Without live elements, a name is not needed
        for wrong in ('', ' ', 'a b', 'ä', 'a\n', 'a:b', 'x'*65, None, 1, '../x'):
            with pytest.raises(SSEError, match='`name`'): SSEBroadcastManager(name=wrong)
        assert SSEBroadcastManager().name == 'main' and SSEBroadcastManager(name='admin-2').name == 'admin-2'
        first, second = [o.live('x', name='x')(lambda: P('x')) for o in (sse, other)]
        @app.get('/')
        def index(): return second()
        r = Visitor(app).begins('/').begin()
        await eventually(lambda: r.over, 'it is answered')
        assert isinstance(r.error, SSEError) and "name='admin'" in str(r.error)

    async def test_mounted_apps(self):
        "With one secret key and managers of one name: what one of them has signed is refused by the other"
        outer, inner = Shop(), Shop()
        outer.app.routes.append(Mount('/in', inner.app))
        async with outer.visitors() as ann:
            theirs, ours = elements(await ann.ask('/')), elements(await ann.ask('/in/'))
            for found, url in ((theirs, f'/in{LIVE}'), (ours, LIVE)):
                assert set((await answers(ann, wish(*found.values()), url)).values()) == {'refused'}
            assert 'refused' not in (await answers(ann, wish(*ours.values()), f'/in{LIVE}')).values()
        await eventually(lambda: not inner.sse.connection_count, 'all streams have ended')


class TestAroundTheRoute:
    async def test_beforeware_comes_first(self):
        "Whom it sends to the log-in gets nothing"
        def only_users(req, sess):
            if not sess.get('auth'): return RedirectResponse('/login', 303)
        shop = Shop(before=Beforeware(only_users, skip=['/login']))
        async with shop.visitors() as ann:
            found = elements(await ann.ask('/login?name=ann')).values()
            assert 'refused' not in (await answers(ann, wish(*found))).values()
            await ann.ask('/logout')
            async with following(ann, wish(*found)) as r: assert (r.status, r.headers['location']) == (303, '/login')

    async def test_a_browser_asks_before_another_site_posts(self):
        "No app agrees to JSON from elsewhere unless it is told to"
        origin = {'origin': 'https://evil.test', 'access-control-request-method': 'POST', 'access-control-request-headers': 'content-type'}
        async with Shop().visitors() as ann:
            r = await ann.ask(LIVE, 'OPTIONS', **origin)
            assert not any(k.startswith('access-control') for k in r.headers)
            found = elements(await ann.ask('/')).values()
            async with following(ann, wish(*found), **{'origin': 'https://evil.test'}) as r:
                assert not any(k.startswith('access-control') for k in r.headers)

    async def test_caches(self):
        "What the app says of caching stands; a page that many get brings no cookie"
        shop = Shop()
        @shop.app.get('/cached')
        def cached(rule: str): return shop.todos(), HttpHeader('cache-control', rule)
        for rule, has_cookie in {'public, max-age=60': False, 's-maxage=60': False, 'no-cache': True}.items():
            async with shop.visitors() as ann:
                r = await ann.ask(f'/cached?rule={rule.replace(" ", "%20")}')
                assert r.headers['cache-control'] == rule and bool(r.cookies) == has_cookie
                said = await answers(ann, wish(*elements(r).values()))
                assert (said['todos[]'] != 'refused') == has_cookie and 'sse_browser' in ann.jar

    async def test_pages_without_live_elements_are_as_before(self):
        "No cookie, no rule for caches; with and without a session"
        shop, bare = Shop(), FastHTML(secret_key='contract', default_hdrs=False)
        @bare.get('/plain')
        def plain(): return P('plain')
        @bare.get('/login')
        def login(name: str, sess): sess['auth'] = name
        async with shop.visitors() as ann, Shop().visitors() as bob:
            bob.app = bare
            for o in (ann, bob):
                o.first = await o.ask('/plain')
                await o.ask('/login?name=ann')
                o.second = await o.ask('/plain')
            def kept(r): return {k: v for k, v in r.headers.items() if k not in ('content-length', 'set-cookie')}, len(r.cookies)
            assert [kept(o) for o in (ann.first, ann.second)] == [kept(o) for o in (bob.first, bob.second)]
            assert 'sse_browser' not in bob.jar and not ann.first.cookies


class TestChannels:
    "All streams of a browser share one connection, this one too"

    @asynccontextmanager
    async def channel(self, visitor, views, url=LIVE):
        "The channel of a carrier, whose request has a body"
        number = visitor.number = visitor.number+1
        visitor.channels[number] = channel = Channel(number, url)
        body = json.dumps(dict(views=views))
        await visitor.order([[number, url, await visitor.ticket(url), '', '', body]])
        await channel.answered()
        yield channel
        await visitor.close(channel)

    async def test_they_are_as_connections(self):
        "Detached from their requests, and whoever is refused there is refused here"
        async with (shop := Shop()).visitors(2) as (ann, eve):
            await ann.ask('/login?name=ann')
            found = elements(await ann.ask('/outer')) | elements(await ann.ask('/'))
            async with self.channel(ann, wish(*found.values())) as channel:
                await channel.says('tea')
                assert 'within a' in str(channel.events) and shop.sse.stats()['detached'] == 1
                assert shop.sse.present(0) == {'ann': 1}
                await shop.sse.disconnect('ann')
                await channel.until(lambda o: o.ended, 'the end')
            async with self.channel(eve, wish(*found.values())) as channel:
                await channel.until(lambda o: len(o.data) >= 1, 'the refusal')
                assert not any('tea' in o or 'whole' in o for o in channel.data)

    async def test_a_body_is_checked_there_too(self):
        async with (shop := Shop()).visitors() as ann:
            for views, status in ((7, 400), ([], 400), ([['t[]', '', '', None]]*2, 400), ([[f't[{i}]', '', '', None] for i in range(1001)], 413)):
                async with self.channel(ann, views) as channel: assert channel.status == status
            assert not shop.sse.connection_count


class TestOverAServer:
    async def test_a_stream_of_its_own(self):
        "From the page to a change, straight to the server's transport; a stranger hears nothing of it"
        shop = Shop()
        count = shop.sse.live('count:*', name='counter')(lambda: P(f'counted {len(shop.asked)}'))
        @shop.app.get('/count')
        def page(): return count()
        async with serve(shop.app) as port, httpx.AsyncClient(base_url=f'http://127.0.0.1:{port}', timeout=BOUND) as ann, \
                httpx.AsyncClient(base_url=f'http://127.0.0.1:{port}', timeout=BOUND) as eve:
            found, = elements((await ann.get('/count')).text).values()
            body = dict(views=wish(found, version=found.version))
            async with ann.stream('POST', LIVE, json=body) as r, eve.stream('POST', LIVE, json=body) as other:
                seen, heard = r.aiter_text(), other.aiter_text()
                async def until(text, stream):
                    got = ''
                    async with within(text):
                        while text not in got: got += await anext(stream)
                    return got
                await until('sse:heartbeat', seen)
                assert '[["counter[]",null,null,[]]]' in await until('sse:live', heard)
                await all_live(shop.sse, 1)
                shop.asked.append(1)
                shop.sse.broadcast('count:up', 1)
                assert '[["counter[]",' in await until('counted 1', seen)
                assert shop.sse.stats()['paths'] == {'transport': 1}
                await shop.sse.close()
                assert 'counted' not in ''.join([o async for o in heard])

    async def test_a_body_without_an_end(self):
        "Is not read to its end, nor does it hold anybody up"
        async with serve(Shop().app) as port:
            reader, writer = await asyncio.open_connection('127.0.0.1', port)
            writer.write(b'POST /_sse/live HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n')
            async with within('an answer'):
                answer = asyncio.create_task(reader.readline())
                sent = 0
                while not answer.done():
                    with suppress(ConnectionError):
                        writer.write(b'1000\r\n'+b'['*4096+b'\r\n')
                        await writer.drain()
                    sent += 4096
                    await asyncio.sleep(0)
                assert b' 413 ' in answer.result() and sent < 10_000_000
            writer.close()


class TestTheLifeOfAStream:
    async def test_its_user_can_be_disconnected(self):
        "Who is known by name is present, and can be sent away; a browser is nobody"
        async with (shop := Shop()).visitors(2) as (ann, anybody):
            found = elements(await ann.ask('/login?name=ann')).values()
            others = elements(await anybody.ask('/')).values()
            async with following(ann, wish(*found)) as r, following(anybody, wish(*others)) as other:
                await eventually(lambda: r.told and other.told, 'both begin')
                assert shop.sse.present(0) == {'ann': 1}
                assert await shop.sse.disconnect('ann') == 1
                await eventually(lambda: r.over, 'the stream ends')
                assert not other.over

    @pytest.mark.parametrize('auth, user', [('ann', 'ann'), (7, 7), (['ann', 7], '["ann", 7]'), ({'id': 7}, '{"id": 7}'), (None, None), (False, None)])
    async def test_who_its_user_is(self, auth, user):
        "What `session['auth']` has, or its JSON where it can be no key"
        shop = Shop()
        @shop.app.get('/as')
        def page(sess):
            sess['auth'] = auth
            return shop.todos()
        async with shop.visitors() as ann:
            async with following(ann, wish(*elements(await ann.ask('/as')).values())) as r:
                await eventually(lambda: r.told, 'it begins')
                assert shop.sse.present(0) == ({} if user is None else {user: 1})

    async def test_limits_hold(self):
        async with Shop(manager=SSEBroadcastManager(max_connections=1, heartbeat=0)).visitors(2) as (ann, bob):
            found, others = [elements(await o.ask('/')).values() for o in (ann, bob)]
            async with following(ann, wish(*found)) as r:
                await eventually(lambda: r.told, 'it begins')
                async with following(bob, wish(*others)) as other: assert other.status == 503 and other.headers['retry-after']

    async def test_nobody_is_followed_behind_the_end(self):
        "Also where the browser goes away before the stream begins: then nothing is drawn any more"
        shop, drawn = Shop(), []
        @shop.sse.live('tick:*')
        async def clock(): return P(f'drawn {drawn.append(1) or len(drawn)} times')
        @shop.app.get('/clock')
        async def page(): return await clock()
        async with shop.visitors() as ann:
            found = elements(await ann.ask('/clock')).values()
            body = json.dumps(dict(views=wish(*found))).encode()
            for n in range(30):
                r = ann.begins(LIVE, 'POST', body, **JSON).begin()
                await turns(n)
                r.hang_up()
                await r.leave()
                assert r.error is None
            await eventually(lambda: not shop.sse.connection_count, 'all have ended')
            drawn.clear()
            await shop.sse.broadcast('tick:tack', 1)
            await turns(50)
            assert not drawn
            async with following(ann, wish(*found)) as r:
                await eventually(lambda: r.told, 'it begins')
                drawn.clear()
                await shop.sse.broadcast('tick:tack', 2)
                await turns(50)
                assert drawn
