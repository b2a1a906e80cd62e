"""Live elements: what a function draws stands in every page as it is now

`@sse.live(patterns)` makes a live element of a function that draws one element of the app's state. It is drawn again when an event that matches says that the
state has changed, and everybody who looks at it gets the newest drawing: as the changes from the last one, or whole.
"""
import asyncio
import gzip
import json
import logging
import re
import threading
import time
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import date, datetime
from functools import partial
from inspect import isawaitable
from uuid import UUID

import pytest
from fasthtml.common import APIRouter, Beforeware, Div, FastHTML, Li, Option, P, Select, Span, Table, Tbody, Td, Titled, Tr, Ul
from fasthtml.svg import Circle, Svg

from cjm_fasthtml_sse.core import SSEBroadcastManager, SSEError
from cjm_fasthtml_sse.helpers import setup_sse
from tests.contract.clock import timeless
from tests.contract.live import LIVE, PATH, Browser, read_html
from tests.contract.support import Exchange, eventually, listening

both = pytest.mark.parametrize('later', [False, True], ids=['def', 'async def'])


class Site:
    "An app with a list, and pages that show it; `drawn` notes each drawing"
    def __init__(self, manager=None, setup=None, **kw):
        self.sse = manager or SSEBroadcastManager(retry=20)
        self.app = FastHTML(default_hdrs=False, **({'secret_key': 'contract'} | kw))
        setup_sse(self.app, self.sse, **(setup or {}))
        self.items,self.drawn = [],[]
        @self.app.route('/login')
        def login(name: str, session): session['auth'] = name

    def live(self, *patterns, later=False, slow=0., **kw):
        "A live list of the items, drawn by a plain function, or by an async one; `slow` are seconds"
        kw.setdefault('name', 'items')
        def draw(): return Ul(*map(Li, self.items))
        if later:
            async def items():
                self.drawn.append(time.monotonic())
                drawn = draw()
                await asyncio.sleep(slow)  # A drawing takes so long
                return drawn
        else:
            def items():
                self.drawn.append(time.monotonic())
                drawn = draw()
                time.sleep(slow)  # A drawing takes so long
                return drawn
        return self.sse.live(patterns or 'item:*', **kw)(items)

    def page(self, path='/', later=False):
        "A decorator: a function without arguments that gives what a page shows; a coroutine is awaited"
        def add(f):
            if later:
                @self.app.route(path)
                async def page():
                    found = f()
                    return await found if isawaitable(found) else found
            else:
                @self.app.route(path)
                def page(): return f()
            return f
        return add

    def shows(self, element, later=False, path='/', on_loop=None):
        "A page with this element, in a route of the kind that suits it best; or in the other one"
        on_loop = later if on_loop is None else on_loop
        if on_loop:
            @self.app.route(path)
            async def page(): return Titled('Page', await element() if later else element())
        else:
            @self.app.route(path)
            def page(): return Titled('Page', element.now() if later else element())

    async def add(self, *items):
        "Change the state, then say so"
        self.items += items
        await self.sse.changed('item:added')

    def browser(self, **headers): return Browser(self.app, ready=self.are_live, **headers)

    def are_live(self): return all(o['live'] for o in self.sse.inspect()['connections'])


@pytest.fixture
def site(): return Site()


async def complaint(site, path='/'):
    "The error with which a route fails"
    async with Exchange(site.app, 'GET', path) as r:
        await eventually(lambda: r.over, 'it is answered')
        r.fails = r.error
        return r.error


class TestElement:
    "What a live element is"

    @pytest.mark.parametrize('make, place', [(Div, Div), (Li, Ul), (Option, Select), (Tr, lambda o: Table(Tbody(o))), (partial(Circle, 5), Svg)],
                             ids=['div', 'li', 'option', 'tr', 'circle'])
    async def test_of_any_tag(self, site, make, place):
        state = ['a']
        @site.sse.live('changed')
        def one(): return make(*([] if place is Svg else [Td(state[0])] if make is Tr else state), cls=state[0])
        site.page()(lambda: place(one()))
        async with site.browser().follows() as tab:
            root, = tab.elements
            assert root.tag==make().tag and root.view=='one[]' and root.id=='one' and len(root.attrs['data-sse-live-version'])==11
            assert len(root.attrs['data-sse-live-key'])==22
            state[0] = 'b'
            await site.sse.changed('changed')
            await eventually(lambda: tab['one'].attrs['class']=='b', 'it has changed')
            assert tab['one'].text in ('b', '')

    async def test_nothing(self, site):
        "An empty `template` keeps its place, until there is something"
        shown = []
        @site.sse.live('changed')
        def note(): return P(shown[0]) if shown else None
        site.page()(note)
        async with site.browser().follows() as tab:
            assert (tab['note'].tag, tab['note'].children, tab['note'].id)==('template', [], 'note')
            for state in (['here'], [], ['again']):
                shown[:] = state
                await site.sse.changed('changed')
                await eventually(lambda state=state: tab['note'].tag==('p' if state else 'template'), state)
                assert tab['note'].text==''.join(state) and tab['note'].id=='note'

    @pytest.mark.parametrize('drawn', [(P('a'), P('b')), [P('a'), P('b')], 'text', ('text', P('a'))], ids=['tuple', 'list', 'text', 'text and element'])
    async def test_one_root(self, site, drawn):
        @site.sse.live('changed')
        def several(): return drawn
        site.page()(several)
        error = await complaint(site)
        assert isinstance(error, TypeError) and 'several' in str(error)

    async def test_ids(self, site):
        "The drawing's own; else the name, with arguments a hash; the second copy in a page gets one of its own, and both change"
        site.live()
        @site.sse.live('item:*')
        def own(n: int): return P(len(site.items), id=f'own-{n}')
        @site.sse.live('item:*')
        def count(n: int): return P(len(site.items))
        site.page()(lambda: Div(own(1), own(2), count(1), count(2), count(1), own(1)))
        async with site.browser().follows() as tab:
            ids = [o.id for o in tab.elements]
            assert ids[:2]==['own-1', 'own-2'] and ids[5]=='own-1-2' and ids[4]==f'{ids[2]}-2'
            assert ids[2].startswith('count-') and len(ids[2])==14 and ids[3][:6]==ids[2][:6] and len({*ids})==6
            assert len(tab.body()['views'])==4
            await site.add('a')
            await eventually(lambda: [o.text for o in tab.elements]==['1']*6, 'all have changed')
            assert [o.id for o in tab.elements]==ids

    async def test_names_are_unique(self, site):
        site.live(name='list')
        def other(): return P()
        with pytest.raises(ValueError, match='list'): site.sse.live('x', name='list')(other)

    @pytest.mark.parametrize('options', [dict(name='a b'), dict(name=''), dict(throttle=-1), dict(interval=0), dict(interval=-1.), dict(throttle='x')], ids=str)
    def test_bad_options(self, site, options):
        with pytest.raises((TypeError, ValueError)): site.live(**options)

    def test_bad_functions(self, site):
        "Arguments without names, and patterns with names that no argument has"
        with pytest.raises((TypeError, ValueError)): site.sse.live('x')(lambda *args: P())
        def one(**kw): return P()
        with pytest.raises((TypeError, ValueError)): site.sse.live('x')(one)
        def two(user): return P()
        with pytest.raises((TypeError, ValueError)): site.sse.live('user:{who}:**')(two)
        def three(): return P()
        with pytest.raises((TypeError, ValueError)): site.sse.live('a b\n')(three)

    async def test_arguments(self, site):
        "Fill the pattern, and are readable in the page; however they were given it is one element"
        values = dict(text="A'n\"n: <b>*", n=3, yes=True, none=None, id=UUID(int=7), day=date(2026, 1, 31))
        seen = []
        @site.sse.live('cell:{text}:{n}:*')
        def cell(text, n, yes=False, none=None, id=UUID(int=7), day=date(2026, 1, 31)):
            seen.append((text, n, yes, none, id, day))
            return P(str(seen[-1]))
        site.page()(lambda: Div(cell(**values), cell(values['text'], 3, True), cell(day=values['day'], n=3, text=values['text'], yes=True)))
        tab = await site.browser().tab()
        view, = {o.view for o in tab.elements}
        assert view.startswith('cell[') and json.loads(view[4:])==["A'n\"n: <b>*", 3, True, None, ['uuid', str(UUID(int=7))], ['date', '2026-01-31']]
        assert seen==[tuple(values.values())]
        assert [*map(type, seen[0])]==[*map(type, values.values())]

    @pytest.mark.parametrize('value', [1.5, [1], dict(a=1), datetime(2026, 1, 31), b'x', object(), 'nul\0', 'half \ud800'], ids=repr)
    async def test_other_arguments(self, site, value):
        @site.sse.live('x:{n}')
        def cell(n): return P(n)
        site.page()(lambda: cell(value))
        assert isinstance(await complaint(site), (TypeError, ValueError))

    async def test_arguments_are_segments(self, site):
        "What somebody calls himself makes no pattern of more"
        names = ['ann', '**', '*', 'a:b', '{x}']
        drawn = []
        @site.sse.live('user:{name}:*')
        def inbox(name):
            drawn.append(name)
            return P(name, ' ', len(drawn), id=None)
        site.page()(lambda: Div(*map(inbox, names)))
        async with site.browser().follows():
            drawn.clear()
            await site.sse.changed('user:ann:mail')
            await eventually(lambda: drawn, 'it is drawn')
            await site.sse.changed('user:a:b')
            await site.sse.changed('user:ann:mail')
            await eventually(lambda: len(drawn)>=2, 'it is drawn again')
            assert {*drawn}=={'ann'}

    async def test_patterns(self, site):
        "One or several; those of others draw nothing"
        site.shows(site.live('item:*', 'list:cleared'))
        async with site.browser().follows() as tab:
            site.items.append('a')
            await site.sse.changed('list:cleared')
            await tab.shows(['a'])
            before = len(site.drawn)
            for o in 'other', 'list:sorted', 'item:a:b': await site.sse.changed(o)
            site.items.append('b')
            await site.sse.changed('item:b')
            await tab.shows(['a', 'b'])
            assert len(site.drawn)<=before+2

    async def test_reloaded_module(self, site):
        "The same function of a module that is loaded again takes the place of the former one"
        source = "from fasthtml.common import P\ndef shown(): return P('{}')"
        for text in 'ab':
            names = dict(__name__='somewhere')
            exec(compile(source.format(text), 'somewhere.py', 'exec'), names)
            shown = site.sse.live('x')(names['shown'])
        site.page()(lambda: shown())
        assert (await site.browser().tab())['shown'].text=='b'

    async def test_without_scripts(self, site):
        "The page itself shows the state"
        site.items += 'ab'
        site.shows(site.live())
        page = await site.browser().ask('/')
        assert [o.text for o in read_html(page.body.decode()).find('li')]==['a', 'b']

    async def test_two_managers(self):
        "Each has its own address, and its own names"
        site = Site()
        other = SSEBroadcastManager(retry=20, name='other')
        setup_sse(site.app, other)
        @site.sse.live('x', name='n')
        def one(): return P('one ', len(site.items), id='one')
        @other.live('x', name='n')
        def two(): return P('two ', len(site.items), id='two')
        site.page()(lambda: Div(one(), two()))
        tab = await site.browser().tab()
        assert 'data-sse-live-url' not in tab['one'].attrs
        url = tab['two'].attrs['data-sse-live-url']
        assert url.startswith(PATH)
        body = dict(views=[['n[]', tab['two'].attrs['data-sse-live-key'], '', None]])
        tab.url = url
        async with tab.ask(body) as r: await eventually(lambda: b'two 0' in r.body, 'its own element')

    async def test_in_a_mounted_app(self):
        inner,outer = Site(),FastHTML(secret_key='contract', default_hdrs=False)
        inner.shows(inner.live())
        outer.mount('/inner', inner.app)
        browser = Browser(outer)
        tab = await browser.tab('/inner/')
        tab.url = tab['items'].attrs.get('data-sse-live-url', tab.url)
        async with tab.following():
            await inner.add('a')
            await tab.shows(['a'])

    async def test_script(self, site):
        "What the browser needs is one file of its own, of at most 4 KB as it travels; its address is in the page"
        site.shows(site.live())
        browser = site.browser()
        tab = await browser.tab()
        client, = [o for o in tab.root.find('script') if 'data-sse-client' in o.attrs]
        assert client.attrs['data-sse-live']==PATH
        script = await browser.ask(client.attrs['data-sse-live-src'])
        assert script.status==200 and 'javascript' in script.headers['content-type'] and 'immutable' in script.headers['cache-control']
        assert len(gzip.compress(script.body, 9))<=4096

    @pytest.mark.parametrize('route', ['app.route', 'app.get(...)', 'router'])
    async def test_above_a_route(self, site, route):
        "What is a route already would be a page that is not live: the error gives the lines in their order"
        make = dict(zip(('app.route', 'app.get(...)', 'router'), (site.app.route, site.app.get('/x'), APIRouter())))[route]
        def index(): return P('here')
        with pytest.raises((TypeError, ValueError)) as raised: site.sse.live('item:*')(make(index))
        lines = str(raised.value).splitlines()
        assert lines[-2:]==['@rt', "@sse.live('item:*')"] and 'index' in lines[0]

    @both
    async def test_below_a_route(self, site, later):
        "In that order the page is the element"
        site.items.append('a')
        site.app.route('/')(site.live(later=later))
        async with site.browser().follows() as tab:
            assert tab.texts()==['a']
            await site.add('b')
            await tab.shows(['a', 'b'])

    @pytest.mark.parametrize('slots', [False, True], ids=['alone', 'within another one'])
    async def test_too_long_to_list(self, site, slots):
        "Who writes a page whose list no request can bring is told the size, and what made it so; up to that, all are live"
        @site.sse.live('x')
        def note(text): return P(len(text))
        @site.sse.live('n')
        def number(n: int): return P(n)
        @site.sse.live('y')
        def notes(n: int): return Div(*[note(f'{i} {"x"*997}') for i in range(n)])
        def shown(n): return Div(*map(number, range(20)), notes(n) if slots else Div(*[note(f'{i} {"x"*997}') for i in range(n)]))
        for n in 230,300: site.page(f'/{n}')(partial(shown, n))
        async with site.browser().follows('/230') as tab: assert len(tab.views)==250+slots and not tab.refused
        error = await complaint(site, '/300')
        sizes = [int(o.replace(',', '')) for o in re.findall(r'\b[\d,]+\d\b', str(error))]
        assert isinstance(error, SSEError) and "'note'" in str(error) and 'note["' in str(error)
        assert 262144 in sizes and any(262144<o<262144+2000 for o in sizes) and any(200_000<o<=262144 for o in sizes), sizes

    async def test_without_setup(self):
        "The element is written without a key: the page shows it, and it stays as it is"
        sse = SSEBroadcastManager()
        @sse.live('x')
        def shown(): return P('here')
        app = FastHTML(secret_key='contract', default_hdrs=False)
        @app.route('/')
        def index(): return shown()
        tab = await Browser(app).tab()
        assert tab.root.find('p')[0].text=='here' and not tab.root.find('p')[0].attrs.get('data-sse-live-key')


class TestFunctions:
    "Plain and async ones, in plain and async routes"

    @both
    @pytest.mark.parametrize('on_loop', [False, True], ids=['def route', 'async route'])
    async def test_in_each_kind_of_route(self, site, later, on_loop):
        site.items.append('a')
        site.shows(site.live(later=later), later, on_loop=on_loop)
        async with site.browser().follows() as tab:
            assert tab.texts()==['a']
            await site.add('b')
            await tab.shows(['a', 'b'])

    async def test_where_they_run(self, site):
        "A plain one in a thread for the streams, an async one on the loop"
        where = {}
        @site.sse.live('x', name='plain')
        def plain():
            where.setdefault('plain', []).append(threading.current_thread() is threading.main_thread())
            return P(len(where['plain']))
        @site.sse.live('x', name='later')
        async def later():
            where.setdefault('later', []).append(threading.current_thread() is threading.main_thread())
            return P(len(where['later']))
        site.page()(lambda: Div(plain(), later.now()))
        async with site.browser().follows():
            for o in where.values(): o.clear()
            await site.sse.changed('x')
            await eventually(lambda: len(where)==2 and all(where.values()), 'both are drawn')
        assert {k: {*v} for k,v in where.items()}==dict(plain={False}, later={True})

    async def test_fresh(self, site):
        "In an async route `fresh` draws a plain one in a thread"
        where = []
        @site.sse.live('x')
        def plain():
            where.append(threading.current_thread() is threading.main_thread())
            return P('drawn')
        @site.app.route('/')
        async def index(): return await plain.fresh()
        assert (await site.browser().tab())['plain'].text=='drawn' and where==[False]

    @both
    @pytest.mark.parametrize('call', ['call', 'fresh'])
    async def test_in_a_plain_route(self, site, later, call):
        "Nothing can be awaited there: an async one is drawn as well, and so is what `fresh` would return"
        site.items.append('a')
        element = site.live(later=later)
        site.page()(element if call=='call' else element.fresh)
        async with site.browser().follows() as tab:
            assert tab.texts()==['a']
            await site.add('b')
            await tab.shows(['a', 'b'])

    @both
    async def test_fresh_that_is_not_awaited(self, site, later):
        "In an async route it is an error, which says what to write, and no text in the page"
        element = site.live(later=later)
        @site.app.route('/')
        async def index(): return Div(element.fresh())
        error = await complaint(site)
        assert isinstance(error, TypeError) and 'test_live_elements.py:' in str(error) and 'await items.fresh(' in str(error)

    @both
    async def test_fresh_in_a_task(self, site, later):
        element = site.live(later=later)
        @site.app.route('/')
        async def index():
            task = asyncio.create_task(element.fresh())
            return Div(await task, *await asyncio.gather(element.fresh(), element.fresh()))
        assert len((await site.browser().tab()).elements)==3

    async def test_slow_on_the_loop(self, site, caplog):
        "It is named, with what to write instead"
        @site.sse.live('x')
        def slow_one():
            time.sleep(.1)  # Slow is what is tested
            return P('drawn')
        @site.app.route('/')
        async def index(): return slow_one()
        with caplog.at_level(logging.DEBUG): await site.browser().tab()
        told = [r.getMessage() for r in caplog.records if 'slow_one' in r.getMessage()]
        assert any('await slow_one.fresh(' in o for o in told), told

    async def test_missing_await(self, site):
        "The error gives the line"
        @site.sse.live('x')
        async def later(): return P('drawn')
        @site.app.route('/')
        async def index(): return Div(later())  # Here it is missing
        error = await complaint(site)
        line = next(n for n,o in enumerate(open(__file__), 1) if 'Here it is missing' in o)
        assert isinstance(error, TypeError) and f'test_live_elements.py:{line}' in str(error) and 'await' in str(error)

    async def test_changed(self, site):
        "Is a broadcast without data; what it returns can be awaited, or not"
        site.shows(site.live('**'))
        async with site.browser().follows() as tab, listening(Listening(site.sse).app) as other:
            site.items.append('a')
            site.sse.changed('todos')
            await tab.shows(['a'])
            assert await other.next()==('todos', None)
            site.items.append('b')
            await asyncio.to_thread(site.sse.changed, 'todos')
            await tab.shows(['a', 'b'])


class Listening:
    "An app with a stream of all events"
    def __init__(self, sse):
        self.app = FastHTML(secret_key='contract')
        setup_sse(self.app, sse)
        @self.app.route('/events')
        def events(req): return sse.stream(req, events='**')


class TestAsNewAsTheRequest:
    "A reload always shows the state, and most of them draw nothing"

    @both
    @pytest.mark.parametrize('followed', [False, True], ids=['alone', 'followed'])
    async def test_reload(self, site, later, followed):
        site.shows(site.live(later=later), later)
        @site.app.route('/add')
        def add(n: str):  # In a thread
            site.items.append(n)
            site.sse.changed('item:added')
        browser = site.browser()
        async def check():
            for n in range(60):
                if n%2: await browser.ask(f'/add?n={n}', 'POST')
                else: await site.add(str(n))
                assert (await browser.tab()).texts()==[*map(str, range(n+1))]
        if not followed: return await check()
        async with site.browser().follows() as tab:
            await check()
            await tab.shows([*map(str, range(60))])

    @both
    @pytest.mark.parametrize('at_once', [False, True], ids=['one by one', 'at once'])
    async def test_hundred_loads(self, site, later, at_once):
        "Within a second they draw once"
        site.shows(site.live(later=later, slow=.05), later)
        browser = site.browser()
        start = time.monotonic()
        if at_once: tabs = await asyncio.gather(*[browser.tab() for _ in range(100)])
        else: tabs = [await browser.tab() for _ in range(100)]
        assert len(site.drawn)<=1+int(time.monotonic()-start)
        assert all(o['items'].tag=='ul' for o in tabs)

    async def test_hundred_loads_beside_a_viewer(self, site):
        "Where somebody follows it no load draws, until something happens"
        site.shows(site.live())
        async with site.browser().follows() as tab:
            await site.add('a')
            await tab.shows(['a'])
            before,start = len(site.drawn),time.monotonic()
            for _ in range(100): assert (await site.browser().tab()).texts()==['a']
            assert len(site.drawn)<=before+1+int(time.monotonic()-start)  # One follows each burst

    async def test_a_second_old_at_most(self, site):
        "A change that nobody has announced is in the next page after a second"
        site.shows(site.live())
        await site.browser().tab()
        site.items.append('a')
        await asyncio.sleep(1.01)  # A second is the promise, and nothing happens when it is over
        assert (await site.browser().tab()).texts()==['a']

    async def test_change_without_an_event(self, caplog):
        "What a page shows goes to all viewers, and the log names the function"
        site = Site()
        site.shows(site.live(name='forgotten'))
        async with site.browser().follows() as tab:
            site.items.append('a')
            await asyncio.sleep(1.01)  # A second is the promise, and nothing happens when it is over
            with caplog.at_level(logging.DEBUG):
                assert (await site.browser().tab()).texts()==['a']
                await tab.shows(['a'])
                await eventually(lambda: any('items' in r.getMessage() and 'item:*' in r.getMessage() for r in caplog.records), 'the log says so')

    async def test_events_while_it_is_drawn(self, site):
        "Lead to one more drawing behind it"
        gate,state = asyncio.Event(),[0]
        begun = []
        @site.sse.live('x')
        async def slow():
            begun.append(state[0])
            if state[0]==1: await gate.wait()
            return P(begun[-1])
        site.page(later=True)(slow)
        async with site.browser().follows() as tab:
            begun.clear()
            state[0] = 1
            await site.sse.changed('x')
            await eventually(lambda: begun==[1], lambda: begun)
            for state[0] in range(2, 40): await site.sse.changed('x')
            assert begun==[1]
            gate.set()
            await eventually(lambda: tab['slow'].text=='39', 'the last state')
            assert begun[:2]==[1, 39] and len(begun)<=3

    @both
    async def test_burst(self, site, later):
        "Leads to few drawings, and the last state is shown"
        site.shows(site.live(later=later, slow=.02), later)
        async with site.browser().follows() as tab:
            site.drawn.clear()
            start = time.monotonic()
            for n in range(300):
                site.items.append(str(n))
                await site.sse.changed('item:added')
            secs = time.monotonic()-start
            await tab.shows([*map(str, range(300))])
            assert len(site.drawn)<=secs/.02+4

    async def test_event_before_its_change(self, site, caplog):
        "A second after the burst it is drawn once more, and the log says which mistake that has mended"
        says = []
        @site.sse.live('item:*', name='hasty')
        def items():
            drawn = Ul(*map(Li, site.items))
            if says and not site.items: site.items.append('a')  # Behind the drawing that the event leads to
            return drawn
        site.shows(items)
        async with site.browser().follows() as tab:
            with caplog.at_level(logging.DEBUG):
                says.append(True)
                await site.sse.changed('item:soon')
                await tab.shows(['a'])
                await eventually(lambda: any('too early' in r.getMessage() and 'item:' in r.getMessage() for r in caplog.records), 'the log says so')

    async def test_drawings_own_event(self, site):
        "Draws nothing"
        @site.sse.live('x')
        def loud():
            site.drawn.append(0)
            site.sse.changed('x')
            return P(len(site.items))
        site.page()(loud)
        async with site.browser().follows() as tab:
            for n in range(10):
                site.items.append(n)
                await site.sse.changed('x')
                await eventually(lambda n=n: tab['loud'].text==str(n+1), n)
            assert len(site.drawn)<=23

    async def test_throttle(self, site):
        "Is the least time from one drawing to the next, and the last state is shown"
        site.shows(site.live(throttle=.1))
        async with site.browser().follows() as tab:
            site.drawn.clear()
            start = time.monotonic()
            for n in range(40):
                site.items.append(str(n))
                await site.sse.changed('item:added')
                await asyncio.sleep(.01)  # Between two changes
            await tab.shows([*map(str, range(40))])
            secs = time.monotonic()-start
            assert 2<=len(site.drawn)<=secs/.1+2, (site.drawn, secs)

    async def test_throttle_and_reload(self, site):
        "A reload shows the state all the same"
        site.shows(site.live(throttle=30.))
        async with site.browser().follows():
            for n in range(5):
                await site.add(str(n))
                assert (await site.browser().tab()).texts()==[*map(str, range(n+1))]

    @timeless
    async def test_interval(self, site):
        "Draws while somebody watches, and only then"
        site.shows(site.live(interval=.05))
        async with site.browser().follows() as tab:
            site.items.append('a')
            await tab.shows(['a'])
            before = len(site.drawn)
            await eventually(lambda: len(site.drawn)>=before+3, 'it is drawn again and again')
        await eventually(lambda: not site.sse.connection_count, 'the stream ends')
        before = len(site.drawn)
        await asyncio.sleep(3)  # Sixty times the interval, by a clock that needs no time
        assert len(site.drawn)<=before+1

    @timeless
    async def test_nobody_watches(self, site):
        "Events draw nothing then"
        site.shows(site.live())
        async with site.browser().follows(): pass
        await eventually(lambda: not site.sse.connection_count, 'the stream ends')
        before = len(site.drawn)
        for n in range(20): await site.add(str(n))
        await asyncio.sleep(10)  # By a clock that needs no time
        assert len(site.drawn)<=before+1

    @both
    async def test_errors(self, site, later, caplog):
        "Are logged with their traceback; the last drawing stays, and the next event brings the state"
        wrong = []
        def draw():
            if wrong: raise ZeroDivisionError('on purpose')
            return Ul(*map(Li, site.items))
        async def draw_later(): return draw()
        element = site.sse.live('item:*', name='items')(draw_later if later else draw)
        site.shows(element, later)
        async with site.browser().follows() as tab:
            await site.add('a')
            await tab.shows(['a'])
            wrong.append(1)
            errors = site.sse.stats()['errors']
            await site.add('b')
            await eventually(lambda: site.sse.stats()['errors']>errors, 'the error is counted')
            assert any(r.exc_info and 'on purpose' in str(r.exc_info[1]) for r in caplog.records)
            assert tab.texts()==['a'] and tab.statuses==[]
            wrong.clear()
            await site.add('c')
            await tab.shows(['a', 'b', 'c'])

    async def test_error_mends_itself(self, site):
        "It is tried once more, a moment later"
        wrong = [1]
        @site.sse.live('item:*', name='items')
        def items():
            if site.items and wrong: wrong.pop(); raise ZeroDivisionError('on purpose')
            return Ul(*map(Li, site.items))
        site.shows(items)
        async with site.browser().follows() as tab:
            await site.add('a')
            await tab.shows(['a'])

    async def test_first_drawing_fails(self, site):
        "The route fails with the function's own error"
        @site.sse.live('x')
        def bad(): return P(1/0)
        site.page()(bad)
        assert isinstance(await complaint(site), ZeroDivisionError)


class TestOnlyWhatChanged:
    "What travels, and when nothing does"

    async def test_equal_html(self, site):
        "Sends nothing, however many events there are"
        site.shows(site.live())
        async with site.browser().follows() as tab:
            for _ in range(20): await site.sse.changed('item:same')
            await site.add('a')
            await tab.shows(['a'])
            assert len(tab.updates)+len(tab.wholes)==1

    async def test_one_row_of_a_thousand(self, site):
        "At most 400 bytes, the event and its frame; rows have no ids"
        rows = [[n, f'row {n}', n*7%100] for n in range(1000)]
        @site.sse.live('x')
        def table(): return Table(Tbody(*[Tr(*map(Td, row)) for row in rows]))
        site.page()(table)
        async with site.browser().follows() as tab:
            rows[0][1] = 'first'
            await site.sse.changed('x')
            await eventually(lambda: tab.texts('td')[1]=='first', 'the first row changes')
            for n in 500, 999, 3:
                before = tab.received
                rows[n][1] = f'changed {n}'
                await site.sse.changed('x')
                await eventually(lambda n=n: tab.texts('td')[3*n+1]==f'changed {n}', n)
                assert tab.received-before<=400
            assert not tab.wholes

    @pytest.mark.parametrize('with_ids', [False, True], ids=['rows without ids', 'rows with ids'])
    async def test_rows_come_go_and_move(self, site, with_ids):
        "After each change the page is what a new page is"
        @site.sse.live('x')
        def rows(): return Ul(*[Li(Span(o), ' ', B_if(o), **(dict(id=f'row-{o}') if with_ids else {})) for o in site.items])
        def B_if(o): return Span('!', cls=f'c{o}') if o%3==0 else ''
        site.page()(rows)
        async with site.browser().follows() as tab:
            steps = [[1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 1], [6, 5, 4, 3, 2, 1], [], [7], [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18],
                     [9, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18], [7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 9, 20], [7, 21, 8, 22, 23], [8, 7]]
            for site.items in steps:
                await site.sse.changed('x')
                want = [f'{o} {"!" if o%3==0 else ""}' for o in site.items]
                await tab.shows(want)
                assert tab['rows'].shown()==(await site.browser().tab())['rows'].shown()

    async def test_old_version(self, site):
        "Who comes with another version gets the whole, once"
        site.shows(site.live())
        browser = site.browser()
        tab = await browser.tab()
        await site.add('a')
        await browser.tab()
        async with tab.following(): await tab.shows(['a'])
        assert tab.wholes==['items[]'] and not tab.updates

    async def test_same_version(self, site):
        "Who comes back with the newest one gets nothing"
        site.shows(site.live())
        site.items += map(str, range(30))
        browser = site.browser()
        async with browser.follows() as tab:
            await site.add('a')
            await tab.shows(site.items)
        for _ in range(3):
            async with tab.following():
                await eventually(lambda: site.sse.connection_count==1, 'it is there')
        assert (len(tab.updates), tab.wholes)==(1, [])

    @pytest.mark.parametrize('text', ['the same', 'another one'])
    async def test_another_process(self, text):
        "A restart, or another worker: an equal drawing sends nothing; where the function has changed, the new whole comes"
        one,two = Site(),Site()
        for site,shown in (one, 'the same'), (two, text):
            site.shows(site.sse.live('x', name='n')(drawing_of(shown)))
        browser = one.browser()
        tab = await browser.tab()
        browser.app = two.app
        async with tab.following(): await eventually(lambda: tab['n'].text==text, text)
        assert tab.wholes==([] if text=='the same' else ['n[]'])

    async def test_other_streams_never_hear_of_it(self, site):
        "Nor do history, hooks and counters"
        site.shows(site.live('item:*'))
        told = []
        site.sse.on_broadcast(lambda message: told.append(message['type'])) if hasattr(site.sse, 'on_broadcast') else None
        async with site.browser().follows() as tab, listening(Listening(site.sse).app) as other:
            before = site.sse.stats()['broadcasts']
            await site.add('a')
            await tab.shows(['a'])
            assert await other.next()==('item:added', None)
            await site.sse.broadcast('the:end', 1)
            assert await other.next()==('the:end', 1)
            assert site.sse.stats()['broadcasts']==before+2
            assert [m['type'] for m in site.sse.get_history()]==['item:added', 'the:end'] and {*told}<={'item:added', 'the:end'}

    @pytest.mark.parametrize('type', ['sse:live:items', 'sse:live'])
    async def test_own_event_types(self, site, type):
        with pytest.raises(ValueError): await site.sse.broadcast(type, 1)


def drawing_of(text):
    def drawn(): return P(text)
    return drawn


class TestOneStream:
    "All live elements of a page"

    @pytest.mark.parametrize('multiplex', [True, False])
    async def test_fifty(self, multiplex):
        "One request through the app, one connection"
        asked = []
        site = Site(setup=dict(multiplex=multiplex), before=Beforeware(lambda req: asked.append(req.url.path)))
        counts = [0]*50
        @site.sse.live('n:{n}')
        def cell(n: int): return P(f'{n}: {counts[n]}')
        site.page()(lambda: Div(*map(cell, range(50))))
        async with site.browser().follows() as tab:
            assert len(tab.elements)==len(tab.body()['views'])==50
            assert asked==['/', PATH] and site.sse.connection_count==1
            for n in 0, 49, 7:
                counts[n] += 1
                await site.sse.changed(f'n:{n}')
                await eventually(lambda n=n: tab.elements[n].text==f'{n}: 1', n)
            assert tab.updates+tab.wholes==[f'cell[{n}]' for n in (0, 49, 7)]

    async def test_heard_apart(self, site):
        "A change of one is sent to nobody who has not got it in the page"
        counts = [0, 0]
        @site.sse.live('n:{n}')
        def cell(n: int): return P(counts[n])
        for n in 0, 1: site.page(f'/{n}')(lambda n=n: cell(n))
        async with site.browser().follows('/0') as a, site.browser().follows('/1') as b:
            before = b.received
            counts[0] = 1
            await site.sse.changed('n:0')
            await eventually(lambda: a['cell'].text=='1', 'the one')
            assert b.received==before

    async def test_within_another(self, site):
        "Each changes by itself, and the outer one never overwrites what is in it"
        state = dict(title='one', inner=0, rows=1)
        @site.sse.live('inner:*')
        def inner(n: int): return P(f'{n} {state["inner"]}')
        @site.sse.live('outer')
        def outer(): return Div(Span(state['title']), *map(inner, range(state['rows'])))
        site.page()(outer)
        async with site.browser().follows() as tab:
            async def texts(*wanted): await eventually(lambda: [o.text for o in tab['outer'].children]==[*wanted], lambda: [o.text for o in tab['outer'].children])
            await texts('one', '0 0')
            state['inner'] = 1
            await site.sse.changed('inner:x')
            await texts('one', '0 1')
            assert tab.wholes+tab.updates==['inner[0]']
            state['title'] = 'two'
            await site.sse.changed('outer')
            await texts('two', '0 1')
            state['rows'] = 3
            await site.sse.changed('outer')
            await texts('two', '0 1', '1 1', '2 1')
            await eventually(lambda: tab.requests==2, 'the new ones are asked for')
            state['inner'] = 2
            await site.sse.changed('inner:x')
            await texts('two', '0 2', '1 2', '2 2')
            state.update(rows=1, title='three')
            await site.sse.changed('outer')
            await texts('three', '0 2')
            fresh = await site.browser().tab()
            assert fresh['outer'].shown()==tab['outer'].shown()

    async def test_outer_is_not_new_with_the_inner(self, site):
        "A change within sends one message"
        state = [0]
        @site.sse.live('x')
        def inner(): return P(state[0])
        @site.sse.live('x')
        def outer(): return Div('around ', inner())
        site.page()(outer)
        async with site.browser().follows() as tab:
            for state[0] in range(1, 5):
                await site.sse.changed('x')
                await eventually(lambda: tab['inner'].text==str(state[0]), state)
            assert {*tab.updates, *tab.wholes}=={'inner[]'} and len(tab.updates+tab.wholes)==4

    async def test_of_many_pages(self, site):
        "A drawing is made once for all, and so is the list of what changed"
        site.shows(site.live())
        browsers = [site.browser() for _ in range(30)]
        async def follow(browser, done):
            async with browser.follows() as tab:
                await tab.shows(['a', 'b'])
                done.append(1)
                await eventually(lambda: len(done)==30, 'all have it')
        done = []
        tasks = [asyncio.create_task(follow(o, done)) for o in browsers]
        await eventually(lambda: site.sse.connection_count==30, 'all are there')
        before = len(site.drawn)
        await site.add('a', 'b')
        await asyncio.gather(*tasks)
        assert len(site.drawn)<=before+2


class TestHooksAndFigures:
    "A live stream is one like others: users, presence, limits, the end of a user's streams"

    async def test_presence(self):
        "Who is here, as a pattern"
        site = Site()
        @site.sse.live('sse:presence')
        async def here(): return P(' '.join(sorted((await site.sse.cluster_stats())['users'])))
        @site.app.route('/')
        async def index(): return await here()
        ann,bob = site.browser(),site.browser()
        for browser,name in (ann, 'ann'), (bob, 'bob'): await browser.ask(f'/login?name={name}')
        async with ann.follows() as tab:
            await eventually(lambda: tab['here'].text=='ann', lambda: tab['here'].text)
            async with bob.follows() as other:
                for o in tab, other: await eventually(lambda o=o: o['here'].text=='ann bob', lambda o=o: o['here'].text)

    async def test_user(self):
        "Is what `visitor=` says, or who has logged in; nobody for a mere browser"
        site = Site()
        site.shows(site.live())
        users = lambda: [o['user'] for o in site.sse.inspect()['connections']]  # noqa: E731
        async with site.browser().follows(): assert users()==[None]
        ann = site.browser()
        await ann.ask('/login?name=ann')
        async with ann.follows(): await eventually(lambda: users()==['ann'], users)
        site = Site(setup=dict(visitor=lambda req: req.headers.get('x-who')))
        site.shows(site.live())
        async with site.browser(x_who='carl').follows(): await eventually(lambda: users()==['carl'], users)

    async def test_disconnect(self):
        "Ends the streams of a user; who comes back is let in as before, so long as nothing else says no"
        site = Site()
        site.shows(site.live())
        ann = site.browser()
        await ann.ask('/login?name=ann')
        async with ann.follows() as tab, site.browser().follows() as other:
            await eventually(lambda: site.sse.connection_count==2, 'both are there')
            assert await site.sse.disconnect('ann')==1
            await eventually(lambda: tab.statuses==[200] and site.sse.connection_count==2, 'it comes back')
            await site.add('a')
            for o in tab, other: await o.shows(['a'])
            assert other.statuses==[]

    async def test_max_connections(self):
        site = Site(SSEBroadcastManager(max_connections=1, retry=20))
        site.shows(site.live())
        async with site.browser().follows():
            tab = await site.browser().tab()
            async with tab.ask() as r: assert r.status==503

    async def test_connection_hooks(self, site):
        opened,closed = [],[]
        site.sse.on_connect(opened.append)
        site.sse.on_disconnect(closed.append)
        site.shows(site.live())
        async with site.browser().follows(): await eventually(lambda: len(opened)==1, 'the hook is called')
        await eventually(lambda: len(closed)==1, 'the other hook is called')

    async def test_gap(self):
        "Who was away for longer than the log goes back gets the state"
        site = Site(SSEBroadcastManager(replay_size=2, retry=20))
        site.shows(site.live())
        async with site.browser().follows() as tab:
            await site.add('a')
            await tab.shows(['a'])
        for n in range(300):
            site.items[:] = [str(n)]
            await site.sse.changed('item:added')
        async with tab.following(): await tab.shows(['299'])

    async def test_stalled_reader(self):
        "One that reads nothing gets the last state when it reads on; the others wait for nobody"
        site = Site(SSEBroadcastManager(max_queue_size=3, retry=20))
        site.shows(site.live())
        async with site.browser().follows() as slow, site.browser().follows() as tab:
            slow.stream.stall()
            for n in range(50):
                site.items[:] = [f'{n} {"x"*1000}']
                await site.sse.changed('item:added')
                await tab.shows(site.items)
            slow.stream.resume()
            await slow.shows(site.items)

    async def test_over_each_backend(self, backend):
        site = Site(SSEBroadcastManager(backend=backend, retry=20))
        site.shows(site.live())
        async with managed(site.sse), site.browser().follows() as tab:
            for n in range(20):
                await site.add(str(n))
                assert (await site.browser().tab()).texts()==[*map(str, range(n+1))]
            await tab.shows([*map(str, range(20))])


@asynccontextmanager
async def managed(sse):
    try: yield
    finally: await sse.close()


class TestContext:
    "A drawing knows nobody's request"

    @both
    async def test_nothing_of_a_visitor(self, site, later):
        "Not in the page that draws first, not in later pages, not in what streams bring, not behind a broadcast of a request"
        who = ContextVar('who', default='nobody')
        seen = []
        def draw():
            seen.append(who.get())
            return P(who.get(), ' ', len(site.items), ' ', len(seen))
        async def draw_later():
            await asyncio.sleep(0)
            return draw()
        element = site.sse.live('item:*', name='shown', interval=.2)(draw_later if later else draw)
        @site.app.route('/plain')
        def plain(name: str):
            who.set(name)
            return Div(P(who.get(), id='me'), element.now() if later else element())
        @site.app.route('/async')
        async def async_(name: str):
            who.set(name)
            return Div(P(who.get(), id='me'), await element() if later else element())
        @site.app.route('/fresh')
        async def fresh(name: str):
            who.set(name)
            return Div(P(who.get(), id='me'), await element() if later else await element.fresh())
        @site.app.route('/add')
        async def add(name: str):
            who.set(name)
            site.items.append(name)
            await site.sse.changed('item:added')
        @site.app.route('/add_in_thread')
        def add_in_thread(name: str):
            who.set(name)
            site.items.append(name)
            site.sse.changed('item:added')
        @site.app.route('/add_in_task')
        async def add_in_task(name: str):
            who.set(name)
            site.items.append(name)
            asyncio.create_task(said())  # noqa: RUF006
        async def said(): site.sse.changed('item:added')
        for path in '/plain', '/async', '/fresh':
            tab = await site.browser().tab(f'{path}?name=ann')
            assert tab.root.find('p')[0].text=='ann' and tab['shown'].text.startswith('nobody ')
        async with site.browser().follows('/plain?name=bob') as one, site.browser().follows('/async?name=carl') as two:
            for path in '/add', '/add_in_thread', '/add_in_task':
                n = len(site.items)+1
                await site.browser().ask(f'{path}?name=ann', 'POST')
                for o in one, two: await eventually(lambda o=o: o['shown'].text.startswith(f'nobody {n} '), lambda o=o: o['shown'].text)
                for route in '/plain', '/async', '/fresh':
                    assert (await site.browser().tab(f'{route}?name=dora'))['shown'].text.startswith(f'nobody {n} ')
        assert {*seen}=={'nobody'} and len(seen)>=4

    async def test_what_a_drawing_sets_stays_in_it(self, site):
        who = ContextVar('who', default='nobody')
        @site.sse.live('x')
        def sets():
            assert who.get()=='nobody'
            who.set('drawing')
            return P('drawn')
        @site.app.route('/')
        async def index():
            drawn = sets()
            return Div(drawn, P(who.get(), id='me'))
        assert (await site.browser().tab()).root.find('p')[1].text=='nobody'

    async def test_order_of_first_drawings(self, site):
        "Whoever comes first, and last: the element is the same"
        who = ContextVar('who', default='nobody')
        @site.sse.live('x')
        async def shown():
            await asyncio.sleep(.01)  # A drawing takes so long
            return P(who.get())
        @site.app.route('/')
        async def index(name: str):
            who.set(name)
            return await shown()
        tabs = await asyncio.gather(*[site.browser().tab(f'/?name=n{n}') for n in range(20)])
        assert {o['shown'].text for o in tabs}=={'nobody'}


def refusals(r):
    "What a stream says first, where it is about live elements"
    return [json.loads(o.partition(b'data: ')[2].partition(b'\n')[0]) for o in r.body.split(b'\n\n') if f'event: {LIVE}'.encode() in o]


class TestPrivacy:
    "What the server drew for you, you may listen to, and nothing else"

    @pytest.fixture
    def house(self):
        site = Site()
        site.mail = dict(ann=['to ann'], bob=['to bob'])
        @site.sse.live('user:{user}:*')
        def inbox(user): return Ul(*map(Li, site.mail[user]))
        @site.sse.live('x')
        def news(): return P('news')
        @site.sse.live('x')
        def around(): return Div(inbox('ann'))
        @site.app.route('/')
        def index(session): return Div(inbox(session['auth'])) if 'auth' in session else Div(news())
        @site.app.route('/news')
        def only_news(): return news()
        @site.app.route('/around')
        def only_around(): return around()
        return site

    async def login(self, site, name, path='/'):
        browser = site.browser()
        await browser.ask(f'/login?name={name}')
        return browser, await browser.tab(path)

    async def first(self, tab, body, **headers):
        async with tab.ask(body, **headers) as r:
            assert r.status==200
            await eventually(lambda: refusals(r), lambda: r.body)
            return refusals(r)[0]

    async def test_own(self, house):
        ann,tab = await self.login(house, 'ann')
        async with tab.following():
            house.mail['ann'].append('more')
            await house.sse.changed('user:ann:mail')
            await tab.shows(['to ann', 'more'])

    async def test_copied(self, house):
        "A stranger with all that stands in the page of another gets nothing, and no other answer than for any fault"
        _,anns = await self.login(house, 'ann')
        stranger = await house.browser().tab('/news')
        _,bobs = await self.login(house, 'bob')
        view,key,version,_ = anns.body()['views'][0]
        bob = bobs.body()['views'][0]
        assert view=='inbox["ann"]'
        faults = dict(copied=[view, key, version, None], copied_without_version=[view, key, '', None], none=[view, '', '', None], other=[view, bob[1], '', None],
            unknown=['nothing["ann"]', key, '', None], unreadable=['inbox[', key, '', None], too_many=['inbox["ann","ann"]', key, '', None], form=['inbox["bob"]', key, '', None],
            outer=[view, key, '', 'around[]'], long=[view, key*1000, '', None], case=[view, key.swapcase(), '', None], foreign=[view, 'é'*22, '', None])
        found = {}
        for tab,who in (stranger, 'stranger'), (bobs, 'bob'):
            for name,o in faults.items(): found[who, name] = await self.first(tab, dict(views=[o])),o[0]
        for name,(answer,asked) in found.items(): assert answer==[[asked, None, None, []]], name

    async def test_copied_hears_nothing_later(self, house):
        "The refused stays refused, whatever is broadcast; what is the stranger's own goes on"
        _,anns = await self.login(house, 'ann')
        stranger = await house.browser().tab('/news')
        body = dict(views=stranger.body()['views']+anns.body()['views'])
        async with tab_with(stranger, body) as r:
            await eventually(lambda: refusals(r), 'the refusal')
            for _ in range(5):
                house.mail['ann'].append('secret')
                await house.sse.changed('user:ann:mail')
            await house.sse.changed('x')
            _,again = await self.login(house, 'ann')
            assert again.texts()[-1]=='secret'
            assert b'secret' not in r.body and b'to ann' not in r.body
            assert house.sse.connection_count==1

    async def test_slot(self, house):
        "A signature of one within another holds beside that one alone"
        browser = house.browser()
        tab = await browser.tab('/around')
        outer,inner = tab.body()['views']
        assert (outer[0], inner[0], inner[3])==('around[]', 'inbox["ann"]', 'around[]')
        async with tab.ask(dict(views=[[*inner[:2], '', inner[3]], outer])) as r: await eventually(lambda: b'to ann' in r.body, 'in any order')
        for views in [[[*inner[:3], None]], [inner], [inner, [outer[0], 'x'*22, '', None]], [[*inner[:3], inner[0]]], [inner, [outer[0], outer[1], '', inner[0]]]]:
            answer = await self.first(tab, dict(views=views))
            assert ['inbox["ann"]', None, None, []] in answer

    async def test_log_out(self, house):
        "Signatures of a page end with the visitor"
        ann,tab = await self.login(house, 'ann')
        body = tab.body()
        await ann.ask('/login?name=bob')
        assert await self.first(tab, body)==[['inbox["ann"]', None, None, []]]

    async def test_secret(self, house):
        "And with the app's secret"
        browser,tab = await self.login(house, 'ann')
        other = Site(secret_key='another')
        @other.sse.live('user:{user}:*')
        def inbox(user): return P('other')
        browser.app = other.app
        assert await self.first(tab, tab.body())==[['inbox["ann"]', None, None, []]]

    @both
    async def test_authorise(self, later):
        "Nothing but `True` lets in"
        site = Site()
        answers,asked = [True],[]
        def authorise(request, user):
            asked.append((request.url.path, user))
            if isinstance(answers[0], Exception): raise answers[0]
            return answers[0]
        async def authorise_later(request, user): return authorise(request, user)
        @site.sse.live('x', authorise=authorise_later if later else authorise)
        def inbox(user): return P('secret')
        site.page()(lambda: inbox('ann'))
        tab = await site.browser().tab()
        tab['inbox'].attrs['data-sse-live-version'] = ''
        async with tab.ask() as r: await eventually(lambda: b'secret' in r.body, 'who may')
        assert asked[-1]==(PATH, 'ann')
        for answers[0] in (False, None, 1, 'yes', P('no'), ZeroDivisionError()):
            assert await self.first(tab, tab.body())==[['inbox["ann"]', None, None, []]]

    async def test_authorise_is_withdrawn(self):
        "The stream of whoever comes back brings nothing more; the others of the page go on"
        site = Site()
        allowed = [True]
        @site.sse.live('x', authorise=lambda request: allowed[0])
        def secret(): return P(f'secret {len(site.items)}')
        @site.sse.live('x')
        def news(): return P(f'news {len(site.items)}')
        site.page()(lambda: Div(secret(), news()))
        ann = site.browser()
        await ann.ask('/login?name=ann')
        async with ann.follows() as tab:
            await site.add('a')
            await site.sse.changed('x')
            await eventually(lambda: tab['secret'].text=='secret 1', 'while it is allowed')
            allowed[0] = False
            await site.sse.disconnect('ann')
            await eventually(lambda: tab.refused=={'secret[]'}, 'it is refused')
            site.items.append('b')
            await site.sse.changed('x')
            await eventually(lambda: tab['news'].text=='news 2', 'the other one goes on')
            assert tab['secret'].text=='secret 1'

    async def test_cookie(self, site):
        "A browser without an id gets it with the page, which no cache keeps"
        site.shows(site.live())
        browser = site.browser()
        tab = await browser.tab()
        assert browser.jar and 'no-store' in tab.answer.headers['cache-control']
        jar = dict(browser.jar)
        await browser.tab()
        assert browser.jar==jar

    async def test_pages_without(self, site):
        "Get neither"
        site.page()(lambda: P('plain'))
        browser = site.browser()
        tab = await browser.tab()
        assert not browser.jar and 'no-store' not in tab.answer.headers.get('cache-control', '')

    @pytest.mark.parametrize('body', [b'', b'{', b'[]', b'null', b'{"views": 1}', b'{"views": [1]}', b'{"views": [["a[]"]]}', b'{"views": [["a[]", 1, "", null]]}',
        b'{"views": [["a[]", "k", "", 1]]}', b'\xff\xfe', b'{"views": [["a[]", "k", "v", null]], "x":'+b'['*100_000, b'["SECRET-TEXT"]'], ids=lambda o: repr(o[:30]))
    async def test_bad_bodies(self, house, body):
        "A clear answer that repeats nothing; no stream"
        tab = await house.browser().tab('/news')
        async with tab.ask(body) as r:
            await eventually(lambda: r.over, lambda: f'it is answered: {r.status} {r.body}')
            assert r.status==400 and b'SECRET' not in r.body and len(r.body)<500

    @pytest.mark.parametrize('views, status', [(1001, 400), (3000, 413)])
    async def test_too_much(self, house, views, status):
        tab = await house.browser().tab('/news')
        body = dict(views=[[f'news[{n}]', 'k'*100, 'v', None] for n in range(views)])
        async with tab.ask(body) as r:
            await eventually(lambda: r.over, 'it is answered')
            assert r.status in (status, 413)

    async def test_other_requests(self, house):
        browser = house.browser()
        tab = await browser.tab('/news')
        async with Exchange(house.app, 'GET', PATH) as r: assert r.status==405
        async with tab.ask(**{'content-type': 'text/plain'}) as r: assert r.status==415
        async with Exchange(house.app, 'GET', PATH, browser.sends({'SSE-Ticket': '1', 'Accept': 'text/event-stream'})) as r: assert r.headers.get('sse-ticket')

    async def test_views_without_end(self, house):
        "What strangers ask for keeps no memory and draws nothing"
        drawn = []
        @house.sse.live('x')
        def cell(n: int):
            drawn.append(n)
            return P(n)
        tab = await house.browser().tab('/news')
        for k in range(5):
            async with tab.ask(dict(views=[[f'cell[{n}]', 'k'*22, '', None] for n in range(k*500, k*500+500)])) as r:
                await eventually(lambda: refusals(r), 'the refusals')
        assert not drawn


@asynccontextmanager
async def tab_with(tab, body):
    async with tab.ask(body) as r: yield r
