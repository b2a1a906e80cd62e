"""Events find their handlers: patterns, values from outside, the dispatcher

In a pattern `*` stands for anything within one segment, `**` for any number of segments, and all else for itself. Of
all handlers that match, the highest priority comes first, ties in the order of their registration. Filters,
transformers and middleware stand before them. Each callback may be sync or async, a callable object or a partial. A
handler that fails does not keep the others from running, and the first error comes up to whoever dispatched.
"""
import asyncio
import logging
import timeit
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import SSEEvent, SSEEventDispatcher, matches, segment
from cjm_fasthtml_sse.updater import SSEElementUpdater

BOUND = 30  # Seconds after which something is taken for lost


@pytest.fixture
def dispatcher(): return SSEEventDispatcher()


def register(dispatcher, *patterns):
    "Handlers that give the pattern under which they were registered"
    for p in patterns: dispatcher.add_handler(p, lambda event, p=p: p)


class TestPatterns:
    "One grammar for handlers, elements and streams"

    @pytest.mark.parametrize('pattern, covered, others', [
        ('job:done',    ['job:done'],                            ['job', 'job:done:2', 'ajob:done', 'job:Done']),
        ('job:*',       ['job:done', 'job:'],                    ['job', 'job:1:done', 'jobs:1']),
        ('job:d*e',     ['job:done', 'job:de'],                  ['job:d:e', 'job:done:e']),
        ('*:done',      ['job:done', ':done'],                   ['done', 'a:job:done']),
        ('job:**',      ['job', 'job:done', 'job:1:done'],       ['jobs', 'jobs:1', 'a:job']),
        ('**:done',     ['done', 'job:done', 'job:1:done'],      ['undone', 'done:job']),
        ('a:**:z',      ['a:z', 'a:b:z', 'a:b:c:z'],             ['a', 'z', 'a:bz']),
        ('*',           ['job', 'job:done', 'a:b:c'],            []),
        ('**',          ['job', 'job:done', 'a:b:c'],            []),
        ('*:*',         ['job:done'],                            ['job', 'job:1:done']),
        ('job.*',       ['job.done'],                            ['jobxdone', 'job:done']),
        ('job:[ab]',    ['job:[ab]'],                            ['job:a', 'job:b']),
        ('job:?',       ['job:?'],                               ['job:a']),
        ('job:(a|b)+$', ['job:(a|b)+$'],                         ['job:a'])])
    async def test_grammar(self, dispatcher, pattern, covered, others):
        "All but the stars is literal, whatever regular expressions or shells would make of it"
        register(dispatcher, pattern)
        updater = SSEElementUpdater()
        updater.register_handler(pattern, lambda data: data)
        for event_type in covered+others:
            want = event_type in covered
            assert matches(pattern, event_type) is want, event_type
            assert await dispatcher.dispatch({'type': event_type})==[pattern]*want
            assert updater.create_elements(event_type, 'x')==['x']*want

    @pytest.mark.parametrize('bad', ['', None, 3, ['job'], 'a\nb', 'a\rb', 'a\0b'], ids=repr)
    def test_bad_patterns(self, dispatcher, bad):
        updater = SSEElementUpdater()
        for use in (dispatcher.on, partial(dispatcher.add_handler, handler=print),
                    updater.register, partial(updater.register_handler, handler=print)):
            with pytest.raises((ValueError, TypeError)): use(bad)

    @pytest.mark.parametrize('pattern',
        ['*a*a*b', '**a*a*b', '*a*:**:*a*:b', '**a**a**b', '**:a:**:a:**:b', '**:*a*a:**:*b'])
    @pytest.mark.parametrize('part', ['a', 'a:', 'aa:'])
    def test_time_is_linear(self, pattern, part):
        "Nobody stops the server with a long event type: eight times the text takes about eight times as long"
        def took(n): return min(timeit.repeat(lambda: matches(pattern, part*n), number=1, repeat=7))
        assert took(8*40)<40*took(40)+1e-4


class TestSegment:
    "A value from outside is one literal segment, in patterns and in event types"

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.text(min_size=1), st.text(min_size=1))
    def test_keeps_values_apart(self, a, b):
        def hears(listener, addressee):
            return matches(f'user:{segment(listener)}:**', f'user:{segment(addressee)}:mail')
        assert hears(a, a) and hears(a, b) is (a==b)
        assert not set(segment(a)) & set(':*\r\n\0')

    @pytest.mark.parametrize('stranger', ['*', '**', 'ann:**', '*:**', 'a*', '%2A', 'ann%3A', '\nann', 'ANN'])
    def test_nobody_hears_ann(self, stranger):
        assert not matches(f'user:{segment(stranger)}:**', f'user:{segment("ann")}:mail')
        assert not matches(f'user:{segment("ann")}:**', f'user:{segment(stranger)}:mail')

    @pytest.mark.parametrize('nobody', [None, ''])
    def test_of_nobody(self, nobody):
        with pytest.raises(ValueError): segment(nobody)


class TestEvents:
    "What is dispatched: an `SSEEvent`, or a message as the manager makes it"

    async def test_message_becomes_event(self, dispatcher):
        class Message(dict): pass
        got,at = [],'2025-01-01T00:00:00+00:00'
        dispatcher.on('ns:job')(got.append)
        message = Message(type='job', data={'n': 1}, timestamp=at, namespace='ns', priority=3, id='e-1')
        await dispatcher.dispatch(message)
        assert got==[SSEEvent('job', {'n': 1}, 'ns', 3, at)] and isinstance(got[0], SSEEvent)

    async def test_data_and_time_may_lack(self, dispatcher):
        got = []
        dispatcher.on('job')(got.append)
        await dispatcher.dispatch({'type': 'job'})
        assert got[0].data=={} and got[0].timestamp

    async def test_namespaces_are_bookkeeping(self, dispatcher):
        "Events of a namespace that was never registered pass, too"
        dispatcher.register_namespace('known')
        dispatcher.on('**')(lambda event: event.full_type)
        assert await dispatcher.dispatch(SSEEvent('x', 0, 'unknown'))==['unknown:x']
        assert await dispatcher.dispatch(SSEEvent('x', 0))==['x']

    @pytest.mark.parametrize('event',
        [None, 'x', ('x', {}), 7, {}, {'type': None}, {'type': ''}, {'type': 'a\nb'}, {'data': 1}], ids=repr)
    async def test_no_event(self, dispatcher, event):
        with pytest.raises((TypeError, ValueError)): await dispatcher.dispatch(event)


class TestHandlers:
    "Who is called, in which order, and what comes of it"

    async def test_priority_over_all_patterns(self, dispatcher):
        five = [('a', '**', 0), ('b', 'job:*', 5), ('c', 'job:done', 0), ('d', '**', 9), ('e', '*:done', 5)]
        for name,pattern,priority in five:
            dispatcher.add_handler(pattern, lambda event, name=name: name, priority)
        assert await dispatcher.dispatch({'type': 'job:done'})==['d', 'b', 'e', 'a', 'c']
        dispatcher.clear_handlers('**')
        assert await dispatcher.dispatch({'type': 'job:done'})==['b', 'e', 'c']
        dispatcher.clear_handlers()
        assert await dispatcher.dispatch({'type': 'job:done'})==[]

    async def test_whatever_is_awaitable_is_awaited(self, dispatcher):
        class Handler:
            async def __call__(self, event): return 'object'
            async def method(self, event): return 'method'
        async def f(name, event): return name
        def later(event): return f('coroutine', event)
        for handler in Handler(), Handler().method, partial(f, 'partial'), later, partial(Handler()):
            dispatcher.add_handler('*', handler)
        assert await dispatcher.dispatch({'type': 'x'})==['object', 'method', 'partial', 'coroutine', 'object']

    async def test_only_none_is_left_out(self, dispatcher):
        for res in (0, '', [], None, False, {}): dispatcher.on('*')(lambda event, res=res: res)
        assert await dispatcher.dispatch({'type': 'x'})==[0, '', [], False, {}]

    async def test_first_error_comes_up(self, dispatcher, caplog):
        "The others ran, and what else failed is in the log with its traceback"
        ran = []
        @dispatcher.on('*')
        def first(event): raise KeyError('first')
        @dispatcher.on('*')
        async def second(event): raise ValueError('second')
        dispatcher.on('*')(lambda event: ran.append(event.type))
        with caplog.at_level(logging.ERROR), pytest.raises(KeyError, match='first'):
            await dispatcher.dispatch({'type': 'x'})
        assert ran==['x'] and len(caplog.records)==1 and 'ValueError: second' in caplog.text

    async def test_cancelling_is_no_error(self, dispatcher):
        started,ran = asyncio.Event(),[]
        @dispatcher.on('*')
        async def wait(event):
            started.set()
            await asyncio.Event().wait()
        dispatcher.on('*')(ran.append)
        task = asyncio.create_task(dispatcher.dispatch({'type': 'x'}))
        async with asyncio.timeout(BOUND): await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError): await task
        assert ran==[]

    async def test_registry_may_change_meanwhile(self, dispatcher):
        ran = []
        @dispatcher.on('*')
        def once(event):
            ran.append('once')
            dispatcher.clear_handlers('*')
            dispatcher.on('*')(lambda event: ran.append('later'))
        dispatcher.on('*')(lambda event: ran.append('other'))
        await dispatcher.dispatch({'type': 'x'})
        assert ran==['once', 'other']
        await dispatcher.dispatch({'type': 'x'})
        assert ran==['once', 'other', 'later']


class TestBefore:
    "Filters, then transformers, then middleware, then the handlers that the event has by then"

    async def test_order(self, dispatcher):
        steps = []
        @dispatcher.on('*')
        async def handler(event): steps.append('handler')
        @dispatcher.add_middleware
        async def middleware(event, next):
            steps.append('middleware')
            return await next(event)
        @dispatcher.add_transformer
        async def transformer(event): steps.append('transformer')
        @dispatcher.add_filter
        async def first(event): return steps.append('first') or True
        @dispatcher.add_filter
        def second(event): return steps.append('second') or event.data
        assert await dispatcher.dispatch({'type': 'x', 'data': 1})==[]
        assert steps==['first', 'second', 'transformer', 'middleware', 'handler']
        steps.clear()
        assert await dispatcher.dispatch({'type': 'x', 'data': 0})==[]
        assert steps==['first', 'second']

    async def test_new_type_has_its_own_handlers(self, dispatcher):
        register(dispatcher, 'old', 'new', 'newest')
        dispatcher.add_transformer(lambda event: {'type': 'new', 'data': 0})
        assert await dispatcher.dispatch({'type': 'old'})==['new']
        dispatcher.add_middleware(lambda event, next: next({'type': 'newest'}))
        assert await dispatcher.dispatch({'type': 'old'})==['newest']

    @pytest.mark.parametrize('add', ['add_filter', 'add_transformer', 'add_middleware'])
    async def test_errors_come_up(self, dispatcher, add):
        ran = []
        dispatcher.on('*')(ran.append)
        def broken(*args): raise LookupError('broken')
        getattr(dispatcher, add)(broken)
        with pytest.raises(LookupError): await dispatcher.dispatch({'type': 'x'})
        assert ran==[]


class TestMiddleware:
    "A real chain: each runs once, the first one outermost"

    @pytest.mark.parametrize('n', [1, 2, 5])
    async def test_each_runs_once(self, dispatcher, n):
        steps = []
        dispatcher.on('*')(lambda event: steps.append('handler') or 'result')
        for i in range(n):
            async def later(event, next, i=i):
                steps.append(i)
                return await next(event)
            def plain(event, next, i=i):
                steps.append(i)
                return next(event)
            dispatcher.add_middleware((later, plain)[i%2])
        assert await dispatcher.dispatch({'type': 'x'})==['result']
        assert steps==[*range(n), 'handler']

    async def test_plain_one_may_only_look_on(self, dispatcher):
        "It neither awaits nor returns anything: the rest runs once all the same, before `dispatch` returns"
        steps = []
        @dispatcher.on('*')
        async def handler(event):
            await asyncio.sleep(0)
            steps.append('handler')
            return 'result'
        for name in 'ab':
            @dispatcher.add_middleware
            def look(event, next, name=name):
                steps.append(name)
                next(event)
        assert await dispatcher.dispatch({'type': 'x'})==['result'] and steps==['a', 'b', 'handler']

    async def test_next_may_be_held(self, dispatcher):
        register(dispatcher, '*', '**')
        @dispatcher.add_middleware
        async def limited(event, next): return await asyncio.wait_for(next(event), BOUND)
        @dispatcher.add_middleware
        async def in_a_task(event, next): return await asyncio.create_task(next(event))
        @dispatcher.add_middleware
        async def more(event, next): return (*await next(event), 'more')
        @dispatcher.add_middleware
        async def fewer(event, next): return (await next(event))[:1]
        assert await dispatcher.dispatch({'type': 'x'})==['*', 'more']

    async def test_may_stop_an_event(self, dispatcher):
        ran = []
        dispatcher.on('*')(ran.append)
        dispatcher.add_middleware(lambda event, next: 'stopped')
        assert await dispatcher.dispatch({'type': 'x'})==['stopped'] and ran==[]

    async def test_may_catch(self, dispatcher):
        dispatcher.on('*')(lambda event: 1/0)
        @dispatcher.add_middleware
        async def catch(event, next):
            try: return await next(event)
            except ZeroDivisionError: return 'caught'
        assert await dispatcher.dispatch({'type': 'x'})==['caught']

    async def test_dispatches_do_not_mix(self, dispatcher):
        gate = asyncio.Event()
        @dispatcher.on('*')
        async def wait(event):
            if event.data==0: await gate.wait()
            else: gate.set()
            return event.data
        @dispatcher.add_middleware
        async def forgetful(event, next): await next(event)
        async with asyncio.timeout(BOUND):
            both = await asyncio.gather(*[dispatcher.dispatch({'type': 'x', 'data': n}) for n in range(2)])
        assert both==[[0], [1]]


async def test_listens_to_all_that_is_broadcast(dispatcher, caplog):
    "`manager.on_broadcast(dispatcher.dispatch)`: what the handlers give changes no message"
    manager,seen = SSEBroadcastManager(),[]
    @dispatcher.on('job:*')
    def note(event):
        seen.append(event.type)
        return 'noted'
    manager.on_broadcast(dispatcher.dispatch)
    queue = await manager.register_connection()
    assert await manager.broadcast('job:done', 1)==1
    assert queue.get_nowait()['data']==1 and seen==['job:done']
    assert manager.stats()['errors']==0 and not caplog.records
