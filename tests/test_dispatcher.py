"Patterns, the registry and the dispatcher"
import re
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from cjm_fasthtml_sse.dispatcher import SSEEventDispatcher
from cjm_fasthtml_sse.engine.patterns import PatternIndex, PatternError, check_pattern, matcher, matches
from cjm_fasthtml_sse.engine.wire import SSEError

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


@pytest.mark.parametrize('bad', ['', None, 3, ['job'], 'a\nb', 'a\rb', 'a\0b', 'a\ud800'])
def test_bad_patterns(bad):
    uses = [check_pattern, PatternIndex().on, partial(PatternIndex().add, f=print), SSEEventDispatcher().on, partial(SSEEventDispatcher().add_handler, handler=print)]
    for use in uses:
        with pytest.raises(PatternError) as e: use(bad)
        assert isinstance(e.value, SSEError) and isinstance(e.value, ValueError)


# The registry


@given(st.lists(st.tuples(patterns, st.integers(-2, 2)), max_size=12), event_types)
def test_handlers_in_order(keys, event_type):
    "The index by leading segments finds what a look at every key would find"
    hs, by_hand = PatternIndex(), []
    for n, (key, priority) in enumerate(keys): by_hand.append((-priority, n, key, hs.add(key, partial(int, n), priority)))
    assert [*hs.matching(event_type)] == [f for *_, key, f in sorted(by_hand, key=lambda o: o[:2]) if matches(key, event_type)]
    assert hs.keys() == list(dict.fromkeys(k for k, _ in keys))
    for *_, key, f in by_hand: assert hs.remove(key, f) and not hs.remove(key, f)
    assert not hs.matching(event_type) and not hs.keys()
    assert not hs._stems  # Nothing stays behind of callers that come and go


def test_handlers_many_keys(monkeypatch):
    "What an event costs grows with those it is meant for, not with those registered"
    hs, asked = PatternIndex(), []
    for i in range(10_000): hs.add(f'user:{i}:**', partial(int, i))
    hs.add('**', partial(int, -1))
    monkeypatch.setattr('cjm_fasthtml_sse.engine.patterns.matcher', lambda key: asked.append(key) or matcher(key))
    assert [f() for f in hs.matching('user:42:mail')] == [42, -1]
    assert sorted(asked) == ['**', 'user:42:**']


def test_handlers_bound_methods():
    "Each access makes a new bound method; `remove` finds it all the same"
    class A:
        def f(self): pass
    hs, a = PatternIndex(), A()
    hs.add('x', a.f)
    hs.add('x', a.f)
    assert len(hs.matching('x')) == 2
    assert hs.remove('x', a.f) and len(hs.matching('x')) == 1
    assert not hs.remove('x', A().f)
