"Live elements where something goes wrong: failures, old drawings, requests that nobody would send"
import asyncio
import json
import threading

import pytest
from fasthtml.common import Div, Li, P, Ul

from cjm_fasthtml_sse.core import SSEError
from cjm_fasthtml_sse.live import endpoint as endpoint_module
from cjm_fasthtml_sse.live import updates as updates_module
from cjm_fasthtml_sse.live import view as view_module
from tests.contract.live import PATH
from tests.contract.support import BOUND, Exchange, eventually
from tests.contract.test_live_elements import Site
from tests.test_live import Gate, Tab, fresh_hints, manager  # noqa: F401


class TestFailures:
    async def test_one_that_fails_at_first_comes_when_it_can(self, monkeypatch):
        "As behind a restart: the page shows an old state, and no event comes"
        monkeypatch.setattr(updates_module, 'FOLLOW_UP_SECS', .05)
        one, two, wrong = Site(), Site(), [1]
        one.shows(one.live())
        def items():
            if wrong: raise ValueError('no database')
            return Ul(Li('new'))
        items.__module__ = Site.__module__  # As before the deploy
        two.shows(two.sse.live('item:*', name='items')(items))
        browser = one.browser()
        tab = await browser.tab()
        browser.app = two.app
        async with tab.following():
            await eventually(lambda: two.sse.stats()['errors'], 'it has failed')
            wrong.clear()
            await tab.shows(['new'])

    async def test_who_came_too_early_gets_what_a_later_one_gets(self):
        async with manager() as sse:
            wrong = [1]
            @sse.live('n')
            def element():
                if wrong: raise ValueError('no database')
                return P('good')
            view, sent = sse._live.find('element[]'), asyncio.Event()
            sse._hub.deliver_here = lambda message: sent.set()
            view.follow('the first')
            with pytest.raises(ValueError, match='no database'): await view.current()
            wrong.clear()
            view.follow('the second')
            await view.current()
            await asyncio.wait_for(sent.wait(), BOUND)
            for o in ('the first', 'the second'): view.unfollow(o)

    async def test_what_can_not_be_compared_comes_whole(self, monkeypatch, caplog):
        def broken(*_): raise RecursionError('too deep')
        monkeypatch.setattr('cjm_fasthtml_sse.live.drawing.compare', broken)
        site, rows = Site(), ['one']
        @site.sse.live('item:*', name='items')
        def items(): return Ul(*map(Li, rows))
        site.shows(items)
        tab = await site.browser().tab()
        async with tab.following():
            rows.append('two')
            await site.sse.changed('item:added')
            await tab.shows(['one', 'two'])
        assert 'could not be compared' in caplog.text

    async def test_one_that_fails_for_a_while_comes_when_it_can(self, monkeypatch):
        monkeypatch.setattr(updates_module, 'FOLLOW_UP_SECS', .05)
        site, wrong = Site(), []
        @site.sse.live('item:*', name='items')
        def items():
            if wrong: raise ValueError('no database')
            return Ul(*map(Li, site.items))
        site.shows(items)
        async with site.browser().follows() as tab:
            await site.add('a')
            await tab.shows(['a'])
            wrong.append(1)
            await site.add('b')
            await eventually(lambda: site.sse.stats()['errors']>=4, 'it has failed some times')
            wrong.clear()
            await tab.shows(['a', 'b'])

    async def test_next_without_anything(self):
        "`StopIteration` is an error as any other: no future can have it, so those who wait would wait for ever"
        site, rows = Site(), ['a']
        @site.sse.live('item:*', name='items')
        def items(): return Ul(Li(next(iter(rows))))
        site.shows(items)
        async with site.browser().follows() as tab:
            rows.clear()
            await site.sse.changed('item:gone')
            await eventually(lambda: site.sse.stats()['errors'], 'the error counts')
            rows.append('b')
            await site.sse.changed('item:added')
            await tab.shows(['b'])


class TestSlowDrawings:
    async def test_an_element_leaves_a_thread_to_others(self):
        async with manager() as sse:
            gate, state = Gate(), [0]
            @sse.live('slow')
            def slow(n: int):
                if state[0]: gate()
                return P(n)
            @sse.live('n')
            def element(): return P(state[0])
            async with Tab(sse, *(f'slow[{n}]' for n in range(12))) as slow_tab, Tab(sse, 'element[]') as tab:
                await slow_tab.changes()
                await tab.changes()
                state[0] = 1
                sse.changed('slow')
                assert await asyncio.to_thread(gate.reached.wait, BOUND)
                sse.changed('n')
                try: assert '1' in str(await tab.changes())
                finally: gate.open.set()

    @pytest.mark.parametrize('has_newest', [False, True])
    async def test_a_page_does_not_wait_for_the_slowest(self, has_newest, monkeypatch):
        "The others come, and that one later"
        monkeypatch.setattr(endpoint_module, 'FIRST_SECS', .1)
        site, gate, state = Site(), Gate(), []
        @site.sse.live('x')
        def slow():
            if state: gate()
            return P('slow', *state)
        @site.sse.live('y')
        def fast(): return Div('fast', *state)
        site.page()(lambda: (slow(), fast()))
        tab = await site.browser().tab()
        if not has_newest: site.sse._live.forget_all()
        state.append('!')
        await site.sse.changed('x')
        await site.sse.changed('y')
        async with tab.following():
            try: await tab.shows(['fast!'], 'div', of='fast')
            finally: gate.open.set()
            await tab.shows(['slow!'], 'p', of='slow')

    @pytest.mark.parametrize('later', [False, True])
    async def test_one_that_never_ends(self, later, monkeypatch, caplog):
        "As one that waits for a server that is gone: nobody waits for it for ever, and the next one comes"
        monkeypatch.setattr(view_module, 'HUNG_SECS', .1)
        monkeypatch.setattr(updates_module, 'FOLLOW_UP_SECS', .05)
        site, gate, hangs, ended = Site(), Gate(), [], []
        def draw(): return Ul(*map(Li, site.items))
        if later:
            @site.sse.live('item:*')
            async def items():
                try:
                    if hangs and hangs.pop(): await asyncio.Event().wait()
                finally: ended.append(1)
                return draw()
        else:
            @site.sse.live('item:*')
            def items():
                if hangs and hangs.pop(): gate()
                return draw()
        site.shows(items, later)
        try:
            async with site.browser().follows() as tab:
                hangs.append(1)
                await site.add('a')
                await tab.shows(['a'])
                assert not hangs and 'was not drawn within' in caplog.text
                errors = site.sse.stats()['errors']
                hangs.append(1)
                site.sse.changed('item:none')
                await eventually(lambda: not hangs and site.sse.stats()['errors']>errors, 'it has hung again')
                assert (await asyncio.wait_for(site.browser().tab(), BOUND)).texts()==['a']
            assert not later or len(ended)>=4, 'what hangs on the event loop is cancelled'
        finally: gate.open.set()

    async def test_those_that_never_end_leave_threads_to_others(self, monkeypatch):
        monkeypatch.setattr(view_module, 'HUNG_SECS', .1)
        async with manager() as sse:
            gate, state = Gate(), [0]
            def draw(n: int):
                if state[0]: gate()
                return P(n)
            names = 'one', 'two', 'three'
            for name in names: sse.live('slow', name=name)(draw)
            @sse.live('n')
            def element(): return P(state[0])
            try:
                async with Tab(sse, *(f'{name}[{n}]' for name in names for n in range(4))) as slow_tab, Tab(sse, 'element[]') as tab:
                    await slow_tab.changes()
                    await tab.changes()
                    state[0] = 1
                    sse.changed('slow')
                    assert await asyncio.to_thread(gate.reached.wait, BOUND)
                    sse.changed('n')
                    assert '1' in str(await tab.changes())
            finally: gate.open.set()


class TestOldDrawings:
    @pytest.mark.parametrize('followed', [False, True])
    async def test_no_page_goes_back(self, followed, monkeypatch):
        "A worker that has drawn before shows no older state to a page of another one, though no event has come"
        monkeypatch.setattr(view_module, 'FRESH_SECS', .05)
        one, two = Site(), Site()
        for site in (one, two):
            site.shows(site.live())
        viewer = await two.browser().tab()
        async def check():
            await asyncio.sleep(.1)
            one.items.append('a')
            two.items.append('a')  # A state that both share
            browser = one.browser()
            tab = await browser.tab()
            assert tab.texts()==['a']
            browser.app = two.app
            async with tab.following():
                await eventually(lambda: two.sse.connection_count==1+followed and two.are_live(), 'the stream has begun')
                assert (tab.texts(), tab.wholes)==(['a'], [])
        if followed:
            async with viewer.following(): await check()
        else: await check()


class TestBodies:
    @pytest.mark.parametrize('outer', [0, False, [], {}, ''])
    async def test_outer_views_of_other_types(self, outer):
        site = Site()
        site.shows(site.live())
        body = json.dumps(dict(views=[['items[]', 'x', '', outer]])).encode()
        async with Exchange(site.app, 'POST', PATH, {'content-type': 'application/json'}, body) as r:
            await eventually(lambda: r.over or r.status==200, 'it is answered')
            assert r.error is None and r.status == (200 if outer=='' else 400), (r.status, r.error)

    @pytest.mark.usefixtures('fresh_hints')
    @pytest.mark.parametrize('n, text', [(999, ''), (1000, 'A page has 1000 live elements or more'), (3000, 'too long')])
    async def test_more_than_one_page_can_have(self, caplog, n, text):
        "The page lists the first ones, or is refused: the log says so, once"
        site = Site()
        site.shows(site.live())
        tab = await site.browser().tab()
        for _ in range(2):
            async with tab.ask(dict(views=[[f'items[{i}]', 'k'*100, '', None] for i in range(n)])) as r:
                await eventually(lambda: r.status, 'it is answered')
        assert r.status == (413 if n>1000 else 200)
        assert [text in o.getMessage() for o in caplog.records] == [True]*bool(text)


class TestCircles:
    @pytest.mark.parametrize('later', [False, True])
    async def test_two_that_hold_each_other(self, later, monkeypatch):
        "Drawn at the same time, they wait for each other: an error as at other times, and not for ever"
        monkeypatch.setattr(view_module, 'NESTED_SECS', .2)
        async with manager() as sse:
            both, begun = threading.Barrier(2, timeout=BOUND), []
            def meet():
                if len(begun)<2:
                    begun.append(1)
                    both.wait()
            async def meet_later():
                begun.append(1)
                await eventually(lambda: len(begun)>1)
            if later:
                @sse.live('x')
                async def one(): await meet_later(); return Div(await two())
                @sse.live('x')
                async def two(): await meet_later(); return Div(await one())
                calls = one(), two()
            else:
                @sse.live('x')
                def one(): meet(); return Div(two())
                @sse.live('x')
                def two(): meet(); return Div(one())
                calls = asyncio.to_thread(one), asyncio.to_thread(two)
            got = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), BOUND)
            assert all(isinstance(o, SSEError) for o in got), got


class TestIds:
    async def test_of_what_is_within_what_is_within(self):
        "The page and each drawing know them: who comes later with the same id gets another one"
        site = Site()
        @site.sse.live('x')
        def inner(): return P('in')
        @site.sse.live('x')
        def middle(): return Div(inner())
        @site.sse.live('x')
        def outer(): return Div(middle(), inner())
        site.page()(lambda: (outer(), inner()))
        tab = await site.browser().tab()
        assert [o.id for o in tab.elements] == ['outer', 'middle', 'inner', 'inner-2', 'inner-3']
