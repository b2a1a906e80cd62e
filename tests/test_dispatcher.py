"Patterns and the registry of handlers, in cases that nobody thought of"
import re
from functools import partial

from hypothesis import given, settings, strategies as st

from cjm_fasthtml_sse.dispatcher import matches
from cjm_fasthtml_sse.engine.patterns import PatternIndex, matcher

segs = st.sampled_from(['', 'a', 'b', 'ab', 'ba', '.', '[a]', 'é'])
event_types = st.lists(segs, min_size=1, max_size=6).map(':'.join).filter(bool)
patterns = st.lists(segs | st.sampled_from(['*', '**', 'a*', '*b', '*a*']), min_size=1, max_size=5).map(':'.join).filter(bool)


@st.composite
def likely(draw):
    "A pattern, and a type made from it or not"
    pattern = draw(patterns)
    if draw(st.integers(0, 3)) == 0: return pattern, draw(event_types)
    def meant(seg): return draw(st.lists(segs, max_size=2)) if seg == '**' else [''.join(draw(segs) if c == '*' else c for c in seg)]
    return pattern, ':'.join(o for seg in pattern.split(':') for o in meant(seg)) or 'a'


def backtracking(pattern):
    "The grammar as one regular expression that tries all places: right, and slow"
    meanings = {'lead': '(?:.*:)?', 'none': '(?::.*)?', 'any': '.*', 'star': '[^:]*'}
    tokens = re.compile(r'(?P<lead>^(?:\*\*:)+)|(?P<none>(?::\*\*)+(?![^:]))|(?P<any>\*\*+)|(?P<star>\*)|[^*:]+|:')
    return re.compile(tokens.sub(lambda m: meanings.get(m.lastgroup) or re.escape(m[0]), pattern), re.DOTALL)


@settings(max_examples=600)
@given(likely() | st.tuples(st.text('ab:**', min_size=1, max_size=14), st.text('ab:', min_size=1, max_size=14)))
def test_matches(case):
    "Whatever stars, colons and characters that regular expressions know stand side by side"
    pattern, event_type = case
    assert matches(pattern, event_type) is (pattern in ('*', '**') or bool(backtracking(pattern).fullmatch(event_type)))


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
    for _ in range(2): hs.add('x', a.f)
    assert hs.remove('x', a.f) and len(hs.matching('x')) == 1
    assert not hs.remove('x', A().f)
