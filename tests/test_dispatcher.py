"Patterns, the registry and the dispatcher"
import asyncio
import inspect
import logging
import re
import subprocess
import sys
import timeit
from dataclasses import MISSING, fields
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from cjm_fasthtml_sse.dispatcher import Handlers, PatternError, SSEEvent, SSEEventDispatcher, check_pattern, matcher, matches, segment
from cjm_fasthtml_sse.wire import FieldError, SSEError, check_event_type

# A busy machine is no failure
settings.register_profile('patient', deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('patient')

segs = st.sampled_from(['', 'a', 'b', 'ab', 'ba', '.', '[a]', 'é'])
event_types = st.lists(segs, min_size=1, max_size=6).map(':'.join).filter(bool)
patterns = st.lists(segs | st.sampled_from(['*', '**', 'a*', '*b', '*a*']), min_size=1, max_size=5).map(':'.join).filter(bool)


# Patterns


def covers(pattern, segs):
    "The grammar once more, segment by segment and without regular expressions"
    if not pattern: return not segs
    first, *rest = pattern
    if first == '**': return any(covers(rest, segs[i:]) for i in range(len(segs)+1))
    return bool(segs) and within(first, segs[0]) and covers(rest, segs[1:])


def within(pattern, text):
    if not pattern: return not text
    if pattern[0] == '*': return any(within(pattern[1:], text[i:]) for i in range(len(text)+1))
    return text[:1] == pattern[0] and within(pattern[1:], text[1:])


@st.composite
def likely(draw):
    "A pattern, and a type made from it or not"
    pattern = draw(patterns)
    if draw(st.integers(0, 3)) == 0: return pattern, draw(event_types)
    def meant(seg): return draw(st.lists(segs, max_size=2)) if seg == '**' else [''.join(draw(segs) if c == '*' else c for c in seg)]
    return pattern, ':'.join(o for seg in pattern.split(':') for o in meant(seg)) or 'a'


@settings(max_examples=500)
@given(likely())
def test_matches(case):
    pattern, event_type = case
    want = pattern == '*' or covers(pattern.split(':'), event_type.split(':'))
    assert matches(pattern, event_type) is want
    assert bool(matcher(pattern)(event_type)) is want


@given(st.text(min_size=1), event_types)
def test_all_else_is_literal(pattern, event_type):
    "Whatever `re` or `fnmatch` would make of it"
    pattern = pattern.replace('*', '?')
    try: check_pattern(pattern)
    except PatternError: return
    assert matches(pattern, pattern)
    assert matches(pattern, event_type) is (pattern == event_type)


def backtracking(pattern):
    "The grammar as one regular expression that tries all places: right, and slow"
    meanings = {'lead': '(?:.*:)?', 'none': '(?::.*)?', 'any': '.*', 'star': '[^:]*'}
    tokens = re.compile(r'(?P<lead>^(?:\*\*:)+)|(?P<none>(?::\*\*)+(?![^:]))|(?P<any>\*\*+)|(?P<star>\*)|[^*:]+|:')
    return re.compile(tokens.sub(lambda m: meanings.get(m.lastgroup) or re.escape(m[0]), pattern), re.DOTALL)


@settings(max_examples=500)
@given(st.text('ab:**', min_size=1, max_size=14), st.lists(st.text('ab:', min_size=1, max_size=14), min_size=10, max_size=40))
def test_means_the_same(pattern, event_types):
    "Whatever stars and colons stand side by side"
    slow, quick = backtracking(pattern).fullmatch, matcher(pattern)
    for o in event_types: assert bool(quick(o)) is (pattern in ('*', '**') or bool(slow(o))), (pattern, o)


@pytest.mark.parametrize('pattern', ['*a*a*a*b', '**a*a*a*b', '*a*:**:*a*:b', '**a**a**a**b', '**:a:**:a:**:b', '**a*b**c', '**:*a*a:**:*b:*a', '**a:a*a:b**'])
@pytest.mark.parametrize('part', ['a', 'a:', ':', 'ab', 'aa:'])
def test_time_is_linear(pattern, part):
    "Eight times the text takes eight times as long, where the square would take 64 times and the cube 512 times as long"
    test = matcher(pattern)
    def took(n): return min(timeit.repeat(lambda: test(part*n), number=1, repeat=7))
    assert took(8*60) < 30*took(60)+1e-4


@pytest.mark.parametrize('event_type', ['a'*5000, ':'.join('a'*500)])
def test_a_long_type_takes_no_long_time(event_type):
    for pattern in ('**:b', '**:a:**:b', 'a:**:b:**:c', '*a*b', '*a*a*a*b'): assert not matches(pattern, event_type)


@pytest.mark.parametrize('bad', ['', None, 3, ['job'], 'a\nb', 'a\rb', 'a\0b', 'a\ud800'])
def test_bad_patterns(bad):
    uses = [check_pattern, Handlers().on, partial(Handlers().add, f=print), SSEEventDispatcher().on, partial(SSEEventDispatcher().add_handler, handler=print)]
    for use in uses:
        with pytest.raises(PatternError) as e: use(bad)
        assert isinstance(e.value, SSEError) and isinstance(e.value, ValueError)


# Values from outside


@given(st.text(min_size=1), st.text(min_size=1))
def test_segment_keeps_values_apart(a, b):
    def hears(listener, addressee): return matches(f'user:{segment(listener)}:**', check_event_type(f'user:{segment(addressee)}:mail'))
    assert hears(a, a)
    assert hears(a, b) is (a == b)
    assert not set(segment(a)) & set(':*\r\n\0')


@pytest.mark.parametrize('stranger', ['*', '**', 'ann:**', '*:**', 'a*', '%2A', 'ann%3A', '\nann', 'ANN'])
def test_nobody_hears_ann(stranger):
    assert not matches(f'user:{segment(stranger)}:**', f'user:{segment("ann")}:mail')
    assert not matches(f'user:{segment("ann")}:**', f'user:{segment(stranger)}:mail')


@pytest.mark.parametrize('a,b', [('*', '%2A'), ('a:b', 'a%3Ab'), ('a', 'A'), ('1', ' 1'), ('\n', '%0A')])
def test_no_two_values_become_one(a, b): assert segment(a) != segment(b)


@pytest.mark.parametrize('nobody', [None, '', type('Anonymous', (), {'__str__': lambda self: ''})()])
def test_segment_of_nobody(nobody):
    with pytest.raises(FieldError): segment(nobody)


# The registry


@given(st.lists(st.tuples(patterns, st.integers(-2, 2)), max_size=12), event_types)
def test_handlers_in_order(keys, event_type):
    "The index by leading segments finds what a look at every key would find"
    hs, by_hand = Handlers(), []
    for n, (key, priority) in enumerate(keys): by_hand.append((-priority, n, key, hs.add(key, partial(int, n), priority)))
    assert hs.matching(event_type) == [f for *_, key, f in sorted(by_hand, key=lambda o: o[:2]) if matches(key, event_type)]
    assert hs.keys() == list(dict.fromkeys(k for k, _ in keys))
    for *_, key, f in by_hand: assert hs.remove(key, f) and not hs.remove(key, f)
    assert hs.matching(event_type) == hs.keys() == []
    assert not hs._stems  # Nothing stays behind of callers that come and go


def test_handlers_many_keys(monkeypatch):
    "What an event costs grows with those it is meant for, not with those registered"
    hs, asked = Handlers(), []
    for i in range(10_000): hs.add(f'user:{i}:**', partial(int, i))
    hs.add('**', partial(int, -1))
    monkeypatch.setattr('cjm_fasthtml_sse.dispatcher.matcher', lambda key: asked.append(key) or matcher(key))
    assert [f() for f in hs.matching('user:42:mail')] == [42, -1]
    assert sorted(asked) == ['**', 'user:42:**']


def test_handlers_bound_methods():
    "Each access makes a new bound method; `remove` finds it all the same"
    class A:
        def f(self): pass
    hs, a = Handlers(), A()
    hs.add('x', a.f)
    hs.add('x', a.f)
    assert len(hs.matching('x')) == 2
    assert hs.remove('x', a.f) and len(hs.matching('x')) == 1
    assert not hs.remove('x', A().f)


# Events and the dispatcher


def params(f): return [(p.name, p.default) for p in inspect.signature(f).parameters.values() if p.name != 'self']


def test_signatures():
    "Names, positions and defaults that apps rely on"
    no, d = inspect.Parameter.empty, SSEEventDispatcher
    assert [(f.name, f.default) for f in fields(SSEEvent)] == [
        ('type', MISSING), ('data', MISSING), ('namespace', None), ('priority', 0), ('timestamp', None)]
    for f, want in [
        (d, []), (d.register_namespace, [('namespace', no)]), (d.on, [('event_pattern', no), ('priority', 0)]),
        (d.add_handler, [('event_pattern', no), ('handler', no), ('priority', 0)]), (d.add_middleware, [('middleware', no)]),
        (d.add_filter, [('filter_func', no)]), (d.add_transformer, [('transformer', no)]), (d.dispatch, [('event', no)]),
        (d.clear_handlers, [('pattern', None)])]: assert params(f) == want


def test_decorators_give_the_function_back():
    d = SSEEventDispatcher()
    def f(*args): pass
    for deco in (d.on('x'), d.add_filter, d.add_transformer, d.add_middleware, partial(d.add_handler, 'x')): assert deco(f) is f


async def test_message_of_the_manager():
    "A dict, or a subclass, with what a broadcast adds; what an event doesn't know is passed over"
    class Message(dict): pass
    d, got = SSEEventDispatcher(), []
    d.on('ns:job')(got.append)
    at = '2025-01-01T00:00:00+00:00'
    await d(Message(type='job', data={'n': 1}, timestamp=at, namespace='ns', priority=3, id='e-1'))
    assert got == [SSEEvent('job', {'n': 1}, 'ns', 3, at)]
    await d({'type': 'ns:job'})
    assert got[1].data == {} and got[1].timestamp


async def test_other_namespaces_pass():
    d = SSEEventDispatcher()
    d.register_namespace('known')
    d.on('**')(lambda event: event.full_type)
    assert await d(SSEEvent('x', 0, 'unknown')) == ['unknown:x']
    assert await d(SSEEvent('x', 0)) == ['x']


async def test_priority_across_patterns():
    d = SSEEventDispatcher()
    for name, pattern, priority in [('a', '**', 0), ('b', 'job:*', 5), ('c', 'job:done', 0), ('d', '**', 9), ('e', '*:done', 5)]:
        d.add_handler(pattern, lambda event, name=name: name, priority)
    assert await d({'type': 'job:done'}) == ['d', 'b', 'e', 'a', 'c']
    d.clear_handlers('**')
    assert await d({'type': 'job:done'}) == ['b', 'e', 'c']
    d.clear_handlers()
    assert await d({'type': 'job:done'}) == []


async def test_the_order_of_all_kinds():
    d, steps = SSEEventDispatcher(), []
    @d.on('*')
    async def handler(event): steps.append('handler')
    @d.add_middleware
    async def middleware(event, next):
        steps.append('middleware')
        return await next(event)
    @d.add_transformer
    async def transformer(event): steps.append('transformer')
    @d.add_filter
    async def filter(event): return steps.append('filter') or True
    @d.add_filter
    def second(event): return steps.append('second') or event.data
    assert await d({'type': 'x', 'data': 1}) == []
    assert steps == ['filter', 'second', 'transformer', 'middleware', 'handler']
    steps.clear()
    assert await d({'type': 'x', 'data': 0}) == []
    assert steps == ['filter', 'second']


async def test_handlers_are_chosen_last():
    "A new type, from a transformer or a middleware, finds its own handlers"
    d = SSEEventDispatcher()
    d.on('old')(lambda event: 'old')
    d.on('new')(lambda event: 'new')
    d.on('newest')(lambda event: 'newest')
    d.add_transformer(lambda event: {'type': 'new', 'data': 0})
    assert await d({'type': 'old'}) == ['new']
    d.add_middleware(lambda event, next: next({'type': 'newest'}))
    assert await d({'type': 'old'}) == ['newest']


@pytest.mark.parametrize('n', [1, 2, 5])
async def test_each_middleware_once(n):
    d, steps = SSEEventDispatcher(), []
    d.on('*')(lambda event: steps.append('handler') or 'res')
    for i in range(n):
        async def a(event, next, i=i):
            steps.append(i)
            return await next(event)
        def s(event, next, i=i):
            steps.append(i)
            return next(event)
        d.add_middleware((a, s)[i % 2])
    assert await d({'type': 'x'}) == ['res']
    assert steps == [*range(n), 'handler']


async def test_middleware_may_hold_next_in_other_ways():
    d = SSEEventDispatcher()
    d.on('*')(lambda event: 'first')
    d.on('*')(lambda event: 'second')
    @d.add_middleware
    async def limited(event, next): return await asyncio.wait_for(next(event), 5)
    @d.add_middleware
    async def tasked(event, next): return await asyncio.create_task(next(event))
    @d.add_middleware
    async def changed(event, next): return (*await next(event), 'more')
    @d.add_middleware
    async def fewer(event, next): return (await next(event))[:1]
    assert await d({'type': 'x'}) == ['first', 'more']


async def test_sync_middleware_may_only_look_on():
    "It returns nothing, and knows nothing of `await`: all the same the rest runs once, before `dispatch` returns"
    d, steps = SSEEventDispatcher(), []
    @d.on('*')
    async def handler(event):
        await asyncio.sleep(0)
        steps.append('handler')
        return 'res'
    for name in 'ab':
        @d.add_middleware
        def look(event, next, name=name):
            steps.append(name)
            next(event)
    assert await d({'type': 'x'}) == ['res']
    assert steps == ['a', 'b', 'handler']


async def test_middleware_catches():
    d = SSEEventDispatcher()
    d.on('*')(lambda event: 1/0)
    @d.add_middleware
    async def catch(event, next):
        try: return await next(event)
        except ZeroDivisionError: return 'caught'
    assert await d({'type': 'x'}) == ['caught']


async def test_dispatches_do_not_mix():
    "Two at the same time, each with results of its own"
    d, gate = SSEEventDispatcher(), asyncio.Event()
    @d.on('*')
    async def wait(event):
        if event.data == 0: await gate.wait()
        else: gate.set()
        return event.data
    @d.add_middleware
    async def forgetful(event, next): await next(event)
    async with asyncio.timeout(5): assert await asyncio.gather(d({'type': 'x', 'data': 0}), d({'type': 'x', 'data': 1})) == [[0], [1]]


async def test_first_error_is_raised_the_others_logged(caplog):
    d, ran = SSEEventDispatcher(), []
    @d.on('*')
    def first(event): raise KeyError('first')
    @d.on('*')
    async def second(event): raise ValueError('second')
    d.on('*')(lambda event: ran.append(event.type))
    with caplog.at_level(logging.ERROR), pytest.raises(KeyError, match='first'): await d({'type': 'x'})
    assert ran == ['x']
    assert [r.name for r in caplog.records] == ['cjm_fasthtml_sse.dispatcher'] and 'ValueError: second' in caplog.text


async def test_cancelling_is_no_error_of_a_handler():
    d, started, ran = SSEEventDispatcher(), asyncio.Event(), []
    @d.on('*')
    async def wait(event):
        started.set()
        await asyncio.Event().wait()
    d.on('*')(ran.append)
    task = asyncio.create_task(d.dispatch({'type': 'x'}))
    async with asyncio.timeout(5): await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError): await task
    assert ran == []


@pytest.mark.parametrize('add', ['add_filter', 'add_transformer', 'add_middleware'])
async def test_errors_on_the_way_come_up(add):
    d, ran = SSEEventDispatcher(), []
    d.on('*')(ran.append)
    def broken(*args): raise LookupError('broken')
    getattr(d, add)(broken)
    with pytest.raises(LookupError): await d({'type': 'x'})
    assert ran == []


async def test_handlers_may_change_the_registry():
    d, ran = SSEEventDispatcher(), []
    @d.on('*')
    def once(event):
        ran.append('once')
        d.clear_handlers('*')
        d.on('*')(lambda event: ran.append('later'))
    d.on('*')(lambda event: ran.append('other'))
    await d({'type': 'x'})
    assert ran == ['once', 'other']
    await d({'type': 'x'})
    assert ran == ['once', 'other', 'later']


@pytest.mark.parametrize('event', [None, 'x', ('x', {}), 7, {}, {'type': None}, {'type': ''}, {'type': 'a\nb'}, {'data': 1}])
async def test_what_is_no_event(event):
    with pytest.raises((TypeError, FieldError)): await SSEEventDispatcher().dispatch(event)


# Layers


@pytest.mark.parametrize('module,banned', [
    ('wire', ['fastcore', 'starlette', 'asyncio']),
    ('dispatcher', ['fasthtml', 'starlette']),
    ('updater', ['fasthtml', 'starlette']),
    ('backend', ['fastcore', 'fasthtml', 'starlette']),
    ('render', ['fasthtml', 'starlette', 'cjm_fasthtml_sse.dispatcher']),
    ('packing', ['fasthtml', 'starlette', 'redis', 'cjm_fasthtml_sse.dispatcher']),
    ('redis_backend', ['fasthtml', 'starlette', 'redis', 'cjm_fasthtml_sse.dispatcher', 'cjm_fasthtml_sse.stream']),
    ('testing', ['fasthtml', 'starlette', 'cjm_fasthtml_sse.dispatcher', 'cjm_fasthtml_sse.stream']),
    ('stream', ['fasthtml', 'redis', 'cjm_fasthtml_sse.redis_backend', 'cjm_fasthtml_sse.core', 'cjm_fasthtml_sse.updater']),
    ('core', ['fasthtml', 'redis', 'cjm_fasthtml_sse.updater', 'cjm_fasthtml_sse.htmx', 'cjm_fasthtml_sse.multiplex']),
    ('multiplex', ['fasthtml', 'redis', 'cjm_fasthtml_sse.updater', 'cjm_fasthtml_sse.htmx'])])
def test_imports_only_point_down(module, banned):
    code = f'import sys, cjm_fasthtml_sse.{module}; print(*[o for o in {banned!r} if o in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=30).stdout.split() == []
