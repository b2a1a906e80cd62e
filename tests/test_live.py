"Live elements within one process: when a view is drawn, in what context, who gets the drawing, and what is left behind"
import asyncio
import gc
import inspect
import json
import logging
import os
import re
import threading
import time
import weakref
from collections import Counter
from contextlib import asynccontextmanager
from contextvars import ContextVar
from itertools import count

import pytest
from fasthtml.common import H1, Div, FastHTML, Li, NotStr, P, Redirect, Titled, Ul, to_xml
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from cjm_fasthtml_sse.core import SSEBroadcastManager, SSEError
from cjm_fasthtml_sse.engine import hints
from cjm_fasthtml_sse.engine import loop as loop_module
from cjm_fasthtml_sse.engine.checks import ArgumentError
from cjm_fasthtml_sse.engine.response import EventStreamResponse
from cjm_fasthtml_sse.engine.wire import FieldError
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.live import updates as updates_module
from cjm_fasthtml_sse.live import view as view_module
from cjm_fasthtml_sse.live import views as views_module
from cjm_fasthtml_sse.live.element import render_live, wire_data
from cjm_fasthtml_sse.testing import SSEClient
from tests.contract.support import BOUND, OwnBackend, eventually, forked, turns

FRESH_SECS = view_module.FRESH_SECS


@pytest.fixture(autouse=True)
def fresh_for_long(monkeypatch):
    "What a page gets may be older than a second here: on a slow machine a second passes between any two lines"
    monkeypatch.setattr(view_module, 'FRESH_SECS', 10*BOUND)


@pytest.fixture
def fresh_hints(monkeypatch):
    "As in a process that has given none"
    monkeypatch.setattr(hints, '_given', set())


def seen(drawn): return re.sub(r"^(<\w+)( [\w-]+='[^']*')*", r'\1', to_xml(drawn).strip())


async def changed_and_drawn(sse, event_type):
    "Say that something has changed, and wait until that led to a drawing"
    drawn = sse.stats()['drawings']
    sse.changed(event_type)
    await eventually(lambda: sse.stats()['drawings'] > drawn)


class Tab(SSEClient):
    "Follows views as the endpoint of live elements has it done"
    def __init__(self, sse, *texts):
        self.views, self.shows = [sse._live.find(o) for o in texts], {}
        async def app(scope, receive, send):
            for v in self.views: v.follow(self)
            async def snapshot():
                drawings = [(v.text, await v.current()) for v in self.views]
                return wire_data([[text, None, d.version, [['whole', d.html]]] for text, d in drawings])
            async def closed(conn):
                for v in self.views: v.unfollow(self)
            await EventStreamResponse(sse._hub, render_live, tuple(v.event_type for v in self.views), snapshot, None, None,
                lambda: None, sse._begin, lambda conn: None, closed, None, local=True)(scope, receive, send)
        super().__init__(app)

    async def changes(self, timeout=BOUND):
        "The next changes; each begins at the version that the tab shows, or is whole"
        res = []
        for text, begins, ends, changes in json.loads((await self.next(timeout)).data):
            assert begins in (None, self.shows.get(text))
            self.shows[text] = ends
            res.append(changes)
        return res[0] if len(res) == 1 else res


class Gate:
    "A place in a function where a test holds it up"
    def __init__(self): self.reached, self.open, self.times = threading.Event(), threading.Event(), 0
    def __call__(self):
        self.times += 1
        self.reached.set()
        assert self.open.wait(BOUND)


def held(sse, at):
    "A live element `element` that shows how often it was drawn before; its drawing number `at` waits at the gate"
    gate, calls = Gate(), count()
    @sse.live('n')
    def element():
        n = next(calls)
        if n == at: gate()
        return P(n)
    return gate, element


@asynccontextmanager
async def manager(**kw):
    sse = SSEBroadcastManager(**kw)
    await sse.open()
    try: yield sse
    finally: await sse.close()


class TestPages:
    async def test_many_calls_draw_once(self):
        "In threads and on the event loop"
        async with manager() as sse:
            calls = count()
            @sse.live('x')
            def element():
                time.sleep(.01)
                return P(next(calls))
            @sse.live('x')
            async def later():
                await asyncio.sleep(.01)
                return P(next(calls))
            async with asyncio.TaskGroup() as group:
                for _ in range(50): group.create_task(asyncio.to_thread(element))
            assert {seen(element()) for _ in range(50)} == {'<p>0</p>'}
            assert {seen(o) for o in await asyncio.gather(*(later() for _ in range(50)))} == {'<p>1</p>'}

    @pytest.mark.parametrize('where', ['loop', 'thread', 'other process'])
    async def test_a_page_shows_what_was_announced(self, where):
        backend = OwnBackend()
        async with manager(backend=backend if where == 'other process' else None) as sse:
            state = [0]
            @sse.live('n:*')
            def element(): return P(state[0])
            assert seen(element()) == '<p>0</p>'
            for n in range(1, 20):
                state[0] = n
                if where == 'loop': sse.broadcast('n:changed', n)
                elif where == 'thread': await asyncio.to_thread(sse.broadcast, 'n:changed', n)
                else: await backend.publish(dict(type='n:changed', timestamp='', data=n))
                assert seen(element()) == f'<p>{n}</p>'

    async def test_a_page_need_not_wait_for_the_delivery(self):
        "A thread that has broadcast shows what it has changed, though the event loop has had no time for it"
        async with manager() as sse:
            state, shown = [0], []
            @sse.live('n')
            def element(): return P(state[0])
            element()
            def route():
                state[0] = 1
                sse.changed('n')
                shown.append(seen(element()))
            thread = threading.Thread(target=route)
            thread.start()
            thread.join(BOUND)  # The event loop stands still
            assert shown == ['<p>1</p>'] and not sse.get_history()

    async def test_a_page_shows_what_a_hook_keeps(self):
        "Though another one was drawn while the message was delivered, and the hook had not changed the state"
        async with manager() as sse:
            notes = []
            @sse.live('note')
            def element(): return P(*notes)
            @sse.on_delivery
            def keep(message):
                thread = threading.Thread(target=element)
                thread.start()
                thread.join(BOUND)
                notes.append(message['data'])
            element()
            async with Tab(sse, 'element[]') as tab:
                assert '<p></p>' in str(await tab.changes())
                await sse.broadcast('note', 'milk')
                assert seen(element()) == '<p>milk</p>'
                assert 'milk' in str(await tab.changes())

    async def test_a_page_is_at_most_a_second_old(self, monkeypatch):
        async with manager() as sse:
            state, now = [0], [time.monotonic()]
            monkeypatch.setattr(view_module, 'monotonic', lambda: now[0])
            monkeypatch.setattr(view_module, 'FRESH_SECS', FRESH_SECS)
            @sse.live('n')
            def element(): return P(state[0])
            @sse.live('around')
            def around(): return Div(element())
            assert '>0</p>' in to_xml(around())
            state[0] = 1  # And nobody says so
            now[0] = sse._live.find('element[]').newest.began+.9
            assert '>0</p>' in to_xml(around()) and '>0</p>' in to_xml(element())
            now[0] += .2
            assert '>1</p>' in to_xml(around()) and '>1</p>' in to_xml(element())

    async def test_the_loop_waits_for_no_thread_that_draws(self):
        "And of two drawings, the one that began later is the newer one, though it ended first"
        async with manager() as sse:
            gate, element = held(sse, 0)
            page = asyncio.create_task(asyncio.to_thread(element))
            assert await asyncio.to_thread(gate.reached.wait, BOUND)
            assert seen(element()) == '<p>1</p>'
            gate.open.set()
            await page
            assert seen(element()) == '<p>1</p>'

    async def test_who_waited_for_an_older_drawing_gets_another(self):
        async with manager() as sse:
            gate, element = held(sse, 0)
            before = asyncio.create_task(asyncio.to_thread(element))
            assert await asyncio.to_thread(gate.reached.wait, BOUND)
            sse.changed('n')
            behind = [asyncio.create_task(asyncio.to_thread(element)) for _ in range(3)]
            await asyncio.sleep(.05)  # They wait for the lock now; what holds must hold without that, too
            gate.open.set()
            assert seen(await before) == '<p>0</p>' and {seen(o) for o in await asyncio.gather(*behind)} == {'<p>1</p>'}

    async def test_an_error_reaches_the_page(self):
        async with manager() as sse:
            @sse.live('n')
            def element(): raise ValueError('no database')
            @sse.live('n')
            async def later(): raise ValueError('no database')
            with pytest.raises(ValueError, match='no database'): element()
            with pytest.raises(ValueError, match='no database'): await later()
            with pytest.raises(ValueError, match='no database'): await element.fresh()
            with pytest.raises(ValueError, match='no database'): await asyncio.to_thread(later.now)
            assert sse.stats()['drawings'] == 0

    async def test_who_leaves_spoils_no_drawing_for_others(self):
        async with manager() as sse:
            go = asyncio.Event()
            @sse.live('n')
            async def element():
                await go.wait()
                return P('drawn')
            async def page(): return await element()
            first, second = (asyncio.create_task(page()) for _ in range(2))
            await turns()
            first.cancel()
            await turns()
            go.set()
            assert seen(await second) == '<p>drawn</p>'

    async def test_slow_drawings_on_the_loop_are_named(self, caplog, fresh_hints):
        async with manager() as sse:
            @sse.live('n')
            def element():
                time.sleep(.06)
                return P()
            await element.fresh()
            assert not caplog.records
            sse.changed('n')
            element()
            assert 'await element.fresh(...)' in caplog.text

    async def test_async_ones_that_keep_the_loop_busy_are_named(self, caplog, fresh_hints, monkeypatch):
        "And not those that wait: others have the event loop meanwhile"
        clock = [0.]
        monkeypatch.setattr(loop_module, 'perf_counter', lambda: clock[0])
        def passes(secs): clock[0] += secs
        async with manager() as sse:
            @sse.live('n')
            async def waits():
                waiting = asyncio.get_running_loop().create_future()
                asyncio.get_running_loop().call_soon(lambda: (passes(.06), waiting.set_result(None)))
                await waiting
                return P()
            @sse.live('n')
            async def works():
                await asyncio.sleep(0)
                passes(.06)
                return P()
            await waits()
            assert not caplog.records
            await works()
            assert 'works' in caplog.text and 'waited 60 ms for it: make it a plain `def`' in caplog.text


class TestContext:
    @pytest.mark.parametrize('is_async', [False, True])
    async def test_no_drawing_sees_a_visitor(self, is_async):
        "Neither the first one, in a page, nor a later one, which somebody has caused by a broadcast"
        visitor = ContextVar('visitor', default='nobody')
        async with manager() as sse:
            calls = count()
            def draw(): return Div(visitor.get(), P(next(calls)))
            async def draw_later(): return draw()
            element = sse.live('n', name='element')(draw_later if is_async else draw)
            async def page(): return await element() if is_async else element()
            visitor.set('ann')
            assert to_xml(await page()).count('nobody') == 1
            async with Tab(sse, 'element[]') as tab:
                assert 'nobody' in (await tab.changes())[0][1]
                for bring in [lambda: sse.changed('n'), lambda: asyncio.to_thread(sse.changed, 'n')]:
                    visitor.set('bob')
                    if (o := bring()) is not None: await o
                    assert 'ann' not in str(changes := await tab.changes()) and 'bob' not in str(changes)
            assert 'nobody' in to_xml(await element.fresh())
            assert 'nobody' in to_xml(await asyncio.to_thread(element.now))


class TestFollowing:
    async def test_events_while_drawing_are_one_more(self):
        async with manager() as sse:
            gate, element = held(sse, 1)
            async with Tab(sse, 'element[]') as tab:
                assert await tab.changes() == [['whole', '<p>0</p>']]
                sse.changed('n')
                assert await asyncio.to_thread(gate.reached.wait, BOUND)
                for _ in range(50): sse.changed('n')
                gate.open.set()
                assert '1' in str(await tab.changes()) and '2' in str(await tab.changes())
                counts = sse.stats()['live']['element']
                assert counts['seconds'] > 0
                assert counts == dict(viewers=1, views=1, drawings=3, errors=0, seconds=counts['seconds'])

    async def test_equal_drawings_send_nothing(self):
        async with manager() as sse:
            state = ['a']
            @sse.live('n')
            def element(): return P(state[0])
            async with Tab(sse, 'element[]') as tab:
                await tab.changes()
                await changed_and_drawn(sse, 'n')
                state[0] = 'b'
                sse.changed('n')
                assert 'b' in str(await tab.changes())

    async def test_an_event_before_its_change(self, caplog, fresh_hints, monkeypatch):
        "The view is drawn once more, and the log names the event"
        monkeypatch.setattr(updates_module, 'FOLLOW_UP_SECS', .1)
        async with manager() as sse:
            state = [0]
            @sse.live('n:*')
            def element(): return P(state[0])
            async with Tab(sse, 'element[]') as tab:
                await tab.changes()
                await changed_and_drawn(sse, 'n:changed')
                state[0] = 1
                assert '1' in str(await tab.changes())
                await eventually(lambda: 'n:changed' in caplog.text)
            assert "changed without an event. The last was 'n:changed'; it may have come too early: change the state first" in caplog.text
            assert len([r for r in caplog.records if 'changed without an event' in r.getMessage()]) == 1

    async def test_an_event_on_its_way_is_no_mistake(self, caplog, fresh_hints, monkeypatch):
        "A page that is drawn between a change and its event shows the change, and so do all others"
        monkeypatch.setattr(updates_module, 'FOLLOW_UP_SECS', .2)
        async with manager() as sse:
            state = [0]
            @sse.live('n')
            def element(): return P(state[0])
            async with Tab(sse, 'element[]') as tab:
                await tab.changes()
                state[0] = 1
                monkeypatch.setattr(view_module, 'FRESH_SECS', -1.)
                element()
                assert '1' in str(await tab.changes())
                drawn = sse.stats()['drawings']
                sse.changed('n')
                await eventually(lambda: sse.stats()['drawings'] >= drawn+2)  # For the event, and a while behind it
                await turns()
            assert not caplog.records

    async def test_a_changing_page_without_events_is_named_once(self, caplog, fresh_hints, monkeypatch):
        monkeypatch.setattr(updates_module, 'FOLLOW_UP_SECS', .05)
        async with manager() as sse:
            calls = count()
            @sse.live('n')
            def clock(): return P(next(calls))
            async with Tab(sse, 'clock[]') as tab:
                await tab.changes()
                monkeypatch.setattr(view_module, 'FRESH_SECS', -1.)
                clock()
                while "without an event. None of 'n' has come" not in caplog.text: await tab.changes()
                await eventually(lambda: sse._live.find('clock[]')._updates._task.done())

    async def test_throttle_is_between_beginnings(self):
        async with manager() as sse:
            calls, began = count(), []
            @sse.live('n', throttle=.1)
            def element(): return P(next(calls))
            async with Tab(sse, 'element[]') as tab:
                for _ in range(4):
                    await tab.changes()
                    began.append(sse._live.find('element[]').newest.began)
                    sse.changed('n')
            assert min(b-a for a, b in zip(began, began[1:])) >= .099

    async def test_interval_needs_no_event(self):
        "And nothing is drawn when nobody follows any more"
        async with manager() as sse:
            calls = count()
            @sse.live('n', interval=.02)
            def element(): return P(next(calls))
            async with Tab(sse, 'element[]') as tab:
                await tab.changes()
                for _ in range(3): await tab.changes()
            view = sse._live.find('element[]')
            await eventually(lambda: not view.followers)
            assert (view._updates._timer, view._updates._task) == (None, None)

    async def test_its_own_event_draws_nothing(self):
        "Other elements are drawn; in other processes, too, the field `live` says whose it is"
        async with manager() as sse:
            drawn = Counter()
            @sse.live('n')
            def element():
                drawn['element'] += 1
                sse.changed('n')
                return P(drawn['element'])
            @sse.live('n')
            async def other():
                drawn['other'] += 1
                return P(drawn['other'])
            async with sse.subscribe() as queue, Tab(sse, 'element[]') as one, Tab(sse, 'other[]') as two:
                await one.changes(), await two.changes()
                assert (await queue.get())['live'] == 'element'
                before = drawn.copy()
                sse.changed('n')
                await one.changes(), await two.changes()
                while (await queue.get()).get('live') is None: pass
                await eventually(lambda: drawn['other'] > before['other']+1)
                assert drawn['element'] == before['element']+1

    async def test_an_error_leaves_the_last_drawing(self, caplog, monkeypatch):
        "It is logged with its traceback, and the view is drawn again a while later"
        monkeypatch.setattr(updates_module, 'FOLLOW_UP_SECS', .1)
        async with manager() as sse:
            state = [0]
            @sse.live('n')
            def element():
                if state[0] == 1: raise ValueError('no database')
                return P(state[0])
            async with Tab(sse, 'element[]') as tab:
                await tab.changes()
                state[0] = 1
                sse.changed('n')
                await eventually(lambda: 'no database' in caplog.text)
                async with Tab(sse, 'element[]') as late: assert await late.changes() == [['whole', '<p>0</p>']]
                state[0] = 2
                assert '2' in str(await tab.changes())
            assert 'element' in caplog.text and 'test_live.py' in caplog.text
            assert sse.stats()['live']['element']['errors'] == sse.stats()['errors'] >= 1

    async def test_a_first_drawing_that_fails_comes_later(self, monkeypatch, caplog):
        monkeypatch.setattr(updates_module, 'FOLLOW_UP_SECS', .05)
        async with manager() as sse:
            state = [None]
            @sse.live('n')
            def element(): return P(*state)
            @sse.live('m')
            def broken():
                if state[0] is None: raise ValueError('no database')
                return P(*state)
            async with Tab(sse, 'element[]') as tab:
                await tab.changes()
                view = sse._live.find('broken[]')
                view.follow(tab)
                with pytest.raises(ValueError, match='no database'): await view.current()
                sent = []
                monkeypatch.setattr(sse._hub, 'deliver_here', lambda message: sent.append(message['data']))
                state[0] = 1
                sse.changed('m')
                await eventually(lambda: sent)
                assert sent == [[['broken[]', None, view.newest.version, [['whole', '<p>1</p>']]]]]
                view.unfollow(tab)

    async def test_the_last_one_leaves_while_a_thread_draws(self, monkeypatch):
        async with manager() as sse:
            @sse.live('n')
            def element(): return P()
            async with Tab(sse, 'element[]') as tab:
                await tab.changes()
                view = sse._live.find('element[]')
                there, loop = [view.newest], threading.current_thread()  # Once: then the event loop has forgotten it
                def last(self):
                    if threading.current_thread() is loop: return self.__dict__.get('last')
                    return there.pop() if there else None
                last = property(last, lambda self, o: self.__dict__.update(last=o))
                monkeypatch.setattr(updates_module.ChangeSender, 'last', last, raising=False)
                sse.changed('n')
                assert seen(await asyncio.to_thread(element)) == '<p></p>'

    async def test_who_is_here(self):
        async with manager() as sse:
            @sse.live('sse:presence')
            def people(): return Ul(*map(Li, sse.present(0)))
            async def as_user(scope, receive, send):
                from starlette.requests import Request
                await sse.stream(Request(scope), user='ann')(scope, receive, send)
            async with Tab(sse, 'people[]') as tab:
                assert 'ann' not in str(await tab.changes())
                async with SSEClient(as_user): assert 'ann' in str(await tab.changes())
                assert 'ann' not in str(await tab.changes())

    async def test_a_commit_is_an_event(self, tmp_path):
        "A page that is drawn right behind a transaction shows it"
        async with manager(backend=tmp_path/'app.db') as sse:
            state = [0]
            @sse.live('n')
            def element(): return P(state[0])
            async with Tab(sse, 'element[]') as tab:
                await tab.changes()
                for n in range(1, 6):
                    async with sse.transaction():
                        sse.broadcast('n', 1)
                        assert seen(element()) == f'<p>{n-1}</p>'
                        state[0] = n
                    assert seen(element()) == f'<p>{n}</p>'
                    assert str(n) in str(await tab.changes())
                with pytest.raises(KeyError):
                    async with sse.transaction():
                        sse.broadcast('n', 1)
                        raise KeyError

    async def test_lost_history_draws_all(self):
        async with manager() as sse:
            state = [0]
            @sse.live('n')
            def element(): return P(state[0])
            async with Tab(sse, 'element[]') as tab:
                await tab.changes()
                state[0] = 1
                sse._delivery.renew('f00-0', [])
                assert '1' in str(await tab.changes())

    async def test_few_views_draw_in_threads_at_a_time(self):
        async with manager() as sse:
            running, most, lock = [0], [0], threading.Lock()
            @sse.live('n')
            def element(n: int):
                with lock:
                    running[0] += 1
                    most[0] = max(most[0], running[0])
                time.sleep(.02)
                with lock: running[0] -= 1
                return P(n, time.monotonic())
            async with Tab(sse, *(f'element[{n}]' for n in range(12))) as tab:
                await tab.changes()
                sse.changed('n')
                for _ in range(12): await tab.changes()
            assert most[0] <= 4

    async def test_a_thousand_who_come_at_once_share_a_drawing(self):
        async with manager() as sse:
            calls = count()
            @sse.live('n')
            def element():
                time.sleep(.01)
                return P(next(calls))
            view = sse._live.find('element[]')
            for n in range(1000): view.follow(n)
            assert {d.number for d in await asyncio.gather(*(view.current() for _ in range(1000)))} == {view.newest.number}
            assert next(calls) == 1

    async def test_versions_go_on_from_each_other(self):
        "Under events, pages, and who comes and goes, each tab ends with the newest drawing"
        async with manager() as sse:
            state = [0]
            @sse.live('n')
            async def element():
                await asyncio.sleep(0)
                return Ul(*(Li(f'row {n} of the list') for n in range(5)), Li(state[0]))
            async def watch(n):
                async with Tab(sse, 'element[]') as tab:
                    await tab.changes()
                    while state[0] < 200 or tab.shows['element[]'] != sse._live.find('element[]').newest.version:
                        if state[0] >= 200 and not tab._events.qsize(): await asyncio.sleep(.01)
                        if tab._events.qsize(): await tab.changes()
                        else: await asyncio.sleep(0)
            async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
                for n in range(5): group.create_task(watch(n))
                for n in range(1, 201):
                    state[0] = n
                    if n%3: sse.changed('n')
                    else: await element()
                    if n == 200: sse.changed('n')
                    await asyncio.sleep(0)


class TestSlots:
    async def test_the_outer_page_is_as_new_as_what_is_in_it(self):
        async with manager() as sse:
            state, drawn = [0], Counter()
            @sse.live('n')
            def inner():
                drawn['inner'] += 1
                return P(state[0])
            @sse.live('around')
            def outer():
                drawn['outer'] += 1
                return Div(H1('Around'), inner())
            first = outer()
            outer()
            assert drawn == dict(inner=1, outer=1)
            state[0] = 1
            sse.changed('n')
            second = outer()
            assert '>1</p>' in to_xml(second) and first.drawing.version == second.drawing.version

    async def test_followers_of_the_outer_one_get_nothing_of_it(self):
        async with manager() as sse:
            state, title = [0], ['Around']
            @sse.live('n')
            def inner(): return P(state[0])
            @sse.live('around')
            def outer(): return Div(H1(title[0]), *(P('a long text') for _ in range(9)), inner())
            async with Tab(sse, 'outer[]') as tab:
                await tab.changes()
                state[0] = 1
                sse.changed('n')
                outer()
                title[0] = 'Around it'
                sse.changed('around')
                changes = await tab.changes()
                assert 'Around it' in str(changes) and 'data-sse-live' not in str(changes)

    async def test_what_a_plain_function_draws_is_nothing_to_await(self):
        "Else whoever awaits what can be awaited, as FastHTML and `snapshot=` do, would fail"
        async with manager() as sse:
            @sse.live('n')
            def plain(): return P('n')
            assert not inspect.isawaitable(plain())

    async def test_none_is_part_of_itself(self):
        async with manager() as sse:
            @sse.live('n')
            def a(): return Div(b())
            @sse.live('n')
            def b(): return Div(a())
            @sse.live('n')
            async def c(): return Div(await c())
            for draw in (a, b, lambda: asyncio.to_thread(a), c):
                with pytest.raises(SSEError, match='part of its own drawing'):
                    if (o := draw()) is not None: await o

    async def test_an_element_is_no_root_of_another(self):
        async with manager() as sse:
            @sse.live('n')
            def inner(): return P()
            @sse.live('n')
            def outer(): return inner()
            with pytest.raises(TypeError, match='outer.* another live element'): outer()


class TestKeeping:
    async def test_views_go_after_a_while(self, monkeypatch):
        monkeypatch.setattr(views_module, 'KEPT_SECS', .05)
        async with manager() as sse:
            @sse.live('n:{n}')
            def element(n: int): return P(n)
            async with Tab(sse, 'element[0]') as tab:
                await tab.changes()
                for n in range(1, 100): element(n)
                gone = weakref.ref(sse._live.find('element[50]'))
                await eventually(lambda: len(sse._live) == 1)
                gc.collect()
                assert gone() is None and not sse._live._index.matching('n:50') and sse._live._index.matching('n:0')
            await eventually(lambda: not sse._live)
            await eventually(lambda: len(sse._live) == 0 and len(sse._live._index) == 0)

    async def test_ten_thousand_come_and_go(self):
        async with manager() as sse:
            @sse.live(['n:{n}', 'all'])
            def element(n: int): return P(n)
            refs = weakref.WeakSet()
            for n in range(10_000):
                view = sse._live.find(f'element[{n}]')
                view.follow(view)
                await view.current() if n%100 == 0 else view.drawn()
                view.unfollow(view)
                refs.add(view)
            del view
            gc.collect()
            assert len(refs) == len(sse._live) == len(sse._live._index) == 1000 and len(sse._live._index._by_pattern) == 1001
            assert len([o for o in asyncio.all_tasks() if 'View' in repr(o)]) == 0
            sse._live.forget_all()
            gc.collect()
            assert not refs and not sse._live._index._by_pattern

    async def test_large_ones_go_sooner(self, monkeypatch):
        monkeypatch.setattr(views_module, 'MAX_BYTES', 10**6)
        async with manager() as sse:
            @sse.live('n')
            def element(n: int): return P('x'*100_000)
            for n in range(50): element(n)
            assert 5 <= len(sse._live) <= 10

    def test_one_loop_after_another(self, caplog):
        "What belongs to a closed loop is forgotten"
        sse, calls = SSEBroadcastManager(), count()
        @sse.live('n')
        def element(): return P(next(calls))
        @sse.live('n')
        async def later(): return P(next(calls))
        async def visit():
            await later()
            async with Tab(sse, 'element[]', 'later[]') as tab:
                await tab.changes()
                sse.changed('n')
                await tab.changes(), await tab.changes()
        for _ in range(3):
            asyncio.run(visit())
            element()
            later.now()
        async def leave():
            sse._live.find('element[]').follow('somebody')
            sse._live.find('later[]').follow('somebody')
            await sse.broadcast('n', 1)
        asyncio.run(leave())
        asyncio.run(visit())
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]

    async def test_a_fork_has_no_views(self):
        async with manager() as sse:
            @sse.live('n')
            def element(): return P(os.getpid())
            element()
            sse._live.find('element[]').follow('somebody')
            def child(): assert len(sse._live) == 0 and str(os.getpid()) in to_xml(element())
            with sse._live._lock: pid = forked(child)  # As another thread may have it at that moment
            assert os.waitpid(pid, 0)[1] == 0 and len(sse._live) == 1

    async def test_close_forgets_all(self):
        async with manager() as sse:
            @sse.live('n', interval=60)
            def element(): return P()
            async with Tab(sse, 'element[]') as tab:
                await tab.changes()
                element()
                await sse.close()
                assert len(sse._live) == 0
        await turns()
        assert not [o for o in asyncio.all_tasks() if 'ViewUpdates' in repr(o)]

    async def test_a_module_that_is_loaded_again(self):
        "Those who follow a view get the drawing of the new function"
        async with manager() as sse:
            def load(text):
                @sse.live('n' if text == 'old' else 'm')
                def element(): return P(text)
                return element
            load('old')
            async with Tab(sse, 'element[]') as tab:
                await tab.changes()
                load('new')
                assert 'new' in str(await tab.changes())
                assert not sse._live._index.matching('n') and sse._live._index.matching('m')
            with pytest.raises(ArgumentError, match='already'): sse.live('n', name='element')(lambda: P())

    def test_an_app_that_is_loaded_twice(self, tmp_path):
        "As `serve()` does it: `main.py` runs as `__main__`, and then by its name; what it imports is loaded once"
        sse, file = SSEBroadcastManager(), tmp_path/'main.py'
        file.write_text("@sse.live('x')\ndef hello(): return P(__name__)\n")
        for name in '__main__', 'main':
            loaded = dict(sse=sse, P=P, __name__=name)
            exec(compile(file.read_text(), str(file), 'exec'), loaded)
        assert sse._live.elements['hello'] is loaded['hello'] and 'main' in to_xml(loaded['hello']())
        other = tmp_path/'other.py'
        with pytest.raises(ArgumentError, match='already'):
            exec(compile(file.read_text(), str(other), 'exec'), dict(sse=sse, P=P, __name__='other'))

    async def test_an_event_that_no_pattern_fits(self, caplog, fresh_hints):
        "One without data is meant for live elements; each such name is named once, with the patterns"
        async with manager() as sse:
            @sse.live(['todos', 'list:*'])
            def element(): return P()
            @sse.live('user:{user}:told')
            def inbox(user): return P()
            element(), inbox('ann')
            for o in 'list:x', 'user:bob:told': sse.changed(o)
            sse.broadcast('list:a:b', 1)
            assert not caplog.records
            wrong = 'list', 'user:a:b:told', 'zzz', 'todo:added', 'todos:add', 'todoz'
            for o in wrong*2: sse.changed(o)
            said = [r.getMessage() for r in caplog.records]
            assert len(said) == len(wrong) and all(repr(o) in text for o, text in zip(wrong, said))
            assert all(f'{o!r}' in text for text in said for o in ('todos', 'list:*', 'user:{user}:told'))
            assert "but 'list:*'" in said[0] and "did you mean 'todos'" in said[-1]

    def test_a_live_element_is_no_event(self):
        sse = SSEBroadcastManager()
        @sse.live('todos')
        def element(): return P()
        with pytest.raises(FieldError, match="live element element of 'todos'"): sse.changed(element)
        with pytest.raises(FieldError, match="'todos'"): sse.broadcast(element, 1)

    def test_two_functions_of_one_name(self, caplog, fresh_hints, tmp_path):
        "The second replaces the first, and the log has both lines; a file that was changed and loaded again is no mistake"
        sse, file = SSEBroadcastManager(), tmp_path/'main.py'
        text = "@sse.live('a')\ndef one(): return P()\n"
        def load(text): exec(compile(text, str(file), 'exec'), dict(sse=sse, P=P, __name__='main'))
        for o in text, '\n'+text, text: load(o)
        assert not caplog.records
        for _ in range(2): load(text*2)
        said, = [r.getMessage() for r in caplog.records]
        assert 'main.py:1)' in said and 'main.py:3)' in said and 'replaces' in said

    async def test_what_browsers_move_is_named(self, caplog, fresh_hints):
        async with manager() as sse:
            state = [0]
            @sse.live('n')
            def element(): return P(Div('box'), state[0])
            async with Tab(sse, 'element[]') as tab:
                await tab.changes()
                state[0] = 1
                sse.changed('n')
                await tab.changes()
            assert 'move out of the element is not updated' in caplog.text and '<div>box' in caplog.text


class TestWriting:
    def app(self, **kw):
        sse, app = SSEBroadcastManager(), FastHTML(secret_key='live')
        setup_sse(app, sse)
        return sse, app, TestClient(app)

    def test_each_copy_has_an_id_of_its_own(self):
        sse, app, web = self.app()
        @sse.live('n')
        def named(): return Ul(id='list')
        @sse.live('n')
        def plain(n: int=0): return Ul()
        @sse.live('n')
        def bare(): return None
        @app.get('/')
        def index(): return Titled('Page', named(), named(), plain(), plain(1), bare(), bare(), Div(named()))
        @app.get('/alone')
        def alone(): return named()
        ids = re.findall(r"<(?:ul|template) data-sse-live='([^']*)' data-sse-live-key='[\w-]{22}' "
                         r"data-sse-live-version='[\w-]{11}' data-sse-cursor='[\w-]+' id='([^']*)'>", web.get('/').text)
        assert [id for _, id in ids if 'plain' not in id] == ['list', 'list-2', 'bare', 'bare-2', 'list-3']
        assert len({id for _, id in ids}) == 7
        assert re.findall(r"id='([^']*)'", web.get('/alone', headers={'HX-Request': 'true'}).text) == ['list']

    def test_the_page_says_where_its_process_stands(self):
        "A stream that another process serves begins when that one is there; within a drawing, which is shared, nothing says so"
        sse, app, web = self.app()
        @sse.live('n')
        def inner(): return P()
        @sse.live('n')
        def outer(): return Div(inner())
        @app.get('/')
        def index():
            sse.changed('other')
            return outer()
        with web: assert re.findall("data-sse-cursor='([^']+)'", web.get('/', headers={'HX-Request': 'true'}).text) == [sse.cursor]

    def test_arguments_are_written_right(self):
        sse, app, web = self.app()
        who = '''O'Hara "&amp; <b>'''
        @sse.live('user:{user}')
        def inbox(user): return Ul(Li(user))
        @app.get('/')
        def index(): return Div(inbox(who))
        from html.parser import HTMLParser
        found = []
        class Reader(HTMLParser):
            def handle_starttag(self, tag, attrs): found.append(dict(attrs)) if tag == 'ul' else None
        Reader().feed(web.get('/').text)
        assert json.loads(found[0]['data-sse-live'].removeprefix('inbox')) == [who]
        assert sse._live.find(found[0]['data-sse-live']).arguments == (who,)

    def test_slots_are_signed_with_the_outer_one(self):
        sse, app, web = self.app()
        @sse.live('n')
        def inner(): return P()
        @sse.live('n')
        def outer(): return Div(inner(), inner())
        @app.get('/')
        def index(): return Div(outer(), inner())
        html = web.get('/').text
        keys = re.findall(r"data-sse-live='inner\[\]' data-sse-live-key='([^']+)' data-sse-live-version='[^']+'(?: data-sse-cursor='[^']+')? id='([^']+)'", html)
        assert [id for _, id in keys] == ['inner', 'inner-2', 'inner-3'] and keys[0][0] == keys[1][0] != keys[2][0]
        assert keys[0][0] == sse._live.sign_slot('outer[]', 'inner[]')

    def test_as_text_it_is_its_html(self):
        sse, app, web = self.app()
        @sse.live('n')
        def element(): return P(1)
        @sse.live('n')
        async def later(): return P(1)
        @app.get('/')
        def index(): return Div(NotStr(f'<section>{element()}</section>'), id=repr(element())[:9])
        assert re.search("<div id=\"&lt;element.*<section><p data-sse-live='element\\[]' .*>1</p>", web.get('/').text)
        assert '>1</p>' in f'{later()}'
        async def text(call): return f'{call()}'
        for call,name in (later, 'later'), (later.fresh, 'later.fresh'):
            with pytest.raises(TypeError, match=rf'write `await {name}\('): asyncio.run(text(call))

    @pytest.mark.parametrize('made', [5, {}, [], [P()], (P(),), iter([P()]), Redirect('/')], ids=repr)
    def test_what_is_no_element_names_the_function(self, made):
        sse, *_ = self.app()
        @sse.live('n')
        def element(): return made
        with pytest.raises(TypeError, match=r'element \(.*test_live.py:\d+\) must return one element'): element()

    def test_bad_arguments_are_named(self):
        sse, *_ = self.app()
        @sse.live('user:{user}:**')
        def inbox(user): return P(user)
        with pytest.raises(TypeError, match='nothing of the request is passed in'): inbox()
        for who in None, '':
            with pytest.raises(FieldError, match="`user` of the live element 'inbox'.*logged in"): inbox(who)

    def test_outside_of_a_page_there_is_no_key(self, caplog, fresh_hints):
        sse, _, _ = self.app()
        @sse.live('n')
        def element(): return NotStr('<p>1</p>')
        for _ in range(3): assert 'data-sse-live-key' not in to_xml(element())
        assert len([r for r in caplog.records if 'element' in r.getMessage()]) == 1

    def test_behind_the_headers_there_is_no_key(self, caplog, fresh_hints):
        "A new browser gets no cookie any more, so nobody would be the one who may follow"
        app, sse = FastHTML(secret_key='test'), SSEBroadcastManager()
        setup_sse(app, sse)
        @sse.live('n')
        def element(): return P()
        @app.get('/')
        def page():
            async def parts():
                yield '<p>'
                yield str(element())
            return StreamingResponse(parts(), media_type='text/html')
        with TestClient(app) as client:
            assert 'live-key' not in client.get('/').text and 'element' in caplog.text and 'visitor' in caplog.text
            client.cookies.set('sse_browser', 'x'*24)
            assert 'live-key' in client.get('/').text

    def test_another_manager_is_not_of_this_app(self, caplog, fresh_hints):
        _, app, web = self.app()
        other = SSEBroadcastManager()
        @other.live('n')
        def element(): return P()
        @app.get('/')
        def index(): return Div(element())
        assert 'data-sse-live-key' not in web.get('/').text and 'setup_sse' in caplog.text

    def test_a_missing_await_is_named(self):
        sse, app, web = self.app()
        @sse.live('n')
        async def inbox(user: str): return P(user)
        @app.get('/')
        async def index(): return Div(inbox('ann'))
        with pytest.raises(TypeError, match=r'test_live.py:\d+: inbox\["ann"\] is drawn later: write `await inbox\(...\)`'): web.get('/')

    def test_plain_and_async_routes(self):
        sse, app, web = self.app()
        @sse.live('n')
        async def later(user: str): return P(user)
        @sse.live('n')
        def element(user: str): return P(user)
        @app.get('/plain')
        def plain(): return Div(later.now('ann'), element('bob'))
        @app.get('/async')
        async def slow(): return Div(await later('ann'), await element.fresh('bob'), element('bob'))
        for path in ['/plain', '/async']:
            html = web.get(path).text
            assert '>ann</p>' in html and '>bob</p>' in html
        with web: assert '>ann</p>' in web.get('/plain').text  # With an event loop that lasts


class TestUnused:
    async def test_an_app_without_live_elements_pays_nothing(self, monkeypatch):
        "Neither the index of patterns nor a lock is asked"
        async with manager() as sse:
            with monkeypatch.context() as m:
                m.setattr(sse._live, '_lock', None)
                m.setattr(sse._live, '_index', None)
                await sse.broadcast('x', 1)
            assert len(sse.get_history()) == 1
