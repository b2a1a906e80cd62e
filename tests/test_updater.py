"An event becomes elements"
import functools
import gc
import inspect
import warnings
from unittest.mock import AsyncMock

import pytest
from fastcore.xml import Li, to_xml
from hypothesis import HealthCheck, given, settings, strategies as st

from cjm_fasthtml_sse.updater import SSEElementUpdater
from cjm_fasthtml_sse.wire import SSEError

# A busy machine is no failure
settings.register_profile('patient', deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('patient')


def params(f): return [(p.name, p.default) for p in inspect.signature(f).parameters.values() if p.name != 'self']


def test_signatures():
    "Names, positions and defaults that apps rely on"
    no, u = inspect.Parameter.empty, SSEElementUpdater
    for f, want in [
        (u, []), (u.register, [('event_type', no), ('priority', 0)]), (u.register_handler, [('event_type', no), ('handler', no), ('priority', 0)]),
        (u.set_default_handler, [('handler', no)]), (u.add_preprocessor, [('processor', no)]), (u.add_postprocessor, [('processor', no)]),
        (u.create_elements, [('event_type', no), ('data', no)]), (u.clear_handlers, [('event_type', None)]), (u.get_registered_events, [])]:
        assert params(f) == want


def test_decorators_give_the_function_back():
    u = SSEElementUpdater()
    def f(*args): pass
    for deco in (u.register('x'), u.set_default_handler, u.add_preprocessor, u.add_postprocessor): assert deco(f) is f
    assert u.register_handler('x', f) is f


nested = st.recursive(st.none() | st.text() | st.integers(), lambda o: st.lists(o, max_size=4) | st.lists(o, max_size=4).map(tuple))


def leaves(x): return [] if x is None else [o for y in x for o in leaves(y)] if isinstance(x, (list, tuple)) else [x]


@given(nested)
def test_any_shape(x):
    "Flat, in order, without `None`; other false values are elements like any other. From a handler, the default and a postprocessor"
    u = SSEElementUpdater()
    u.register('x')(lambda data: data)
    u.register('gen')(lambda data: iter([data]))
    u.set_default_handler(lambda event_type, data: data)
    for event_type in ('x', 'gen', 'other'): assert u.create_elements(event_type, x) == leaves(x)
    u.add_postprocessor(lambda elements: (elements, x))
    assert u.create_elements('x', None) == leaves(x)


def test_an_element_is_one():
    "Its children are its own: an element is never taken apart"
    u = SSEElementUpdater()
    u.register('x')(lambda data: Li('a', 'b'))
    els = u({'type': 'x'})
    assert [to_xml(o, indent=False) for o in els] == ['<li>ab</li>']


def test_priority_across_patterns():
    u = SSEElementUpdater()
    for name, pattern, priority in [('a', '**', 0), ('b', 'job:*', 5), ('c', 'job:done', 0), ('d', '**', 9), ('e', '*:done', 5)]:
        u.register(pattern, priority)(lambda data, name=name: name)
    assert u.create_elements('job:done', {}) == ['d', 'b', 'e', 'a', 'c']
    assert u.get_registered_events() == ['**', 'job:*', 'job:done', '*:done']
    u.clear_handlers('**')
    assert u.create_elements('job:done', {}) == ['b', 'e', 'c']
    assert u.get_registered_events() == ['job:*', 'job:done', '*:done']


def test_clearing_keeps_the_rest():
    u = SSEElementUpdater()
    u.register('x')(lambda data: 'x')
    u.set_default_handler(lambda event_type, data: 'default')
    u.add_postprocessor(lambda elements: elements.append('post'))
    u.clear_handlers()
    assert u.create_elements('x', {}) == ['default', 'post']
    u.set_default_handler(None)
    assert u.create_elements('x', {}) == ['post']


def test_default_only_where_none_matches():
    u, default = SSEElementUpdater(), []
    u.set_default_handler(lambda *args: default.append(args))
    u.register('quiet:*')(lambda data: None)
    assert u.create_elements('quiet:x', 1) == u.create_elements('other', 2) == []
    assert default == [('other', 2)]


def test_processors_in_order():
    u = SSEElementUpdater()
    u.add_preprocessor(lambda event_type, data: data + [event_type])
    u.add_preprocessor(lambda event_type, data: None)
    u.add_preprocessor(lambda event_type, data: data + ['second'])
    u.add_postprocessor(lambda elements: elements[::-1])
    u.add_postprocessor(lambda elements: None)
    u.add_postprocessor(lambda elements: [len(elements), *elements])
    u.register('x')(lambda data: data)
    assert u.create_elements('x', ['data']) == [3, 'second', 'x', 'data']


def test_false_data_is_data():
    u, got = SSEElementUpdater(), []
    u.register('x')(got.append)
    for data in (0, '', [], None, False): u({'type': 'x', 'data': data})
    u({'type': 'x'})
    assert got == [0, '', [], None, False, {}]


@pytest.mark.parametrize('kind', ['handler', 'default', 'pre', 'post'])
def test_errors_come_up(kind):
    u = SSEElementUpdater()
    def broken(*args): raise LookupError('broken')
    {'handler': u.register('x'), 'default': u.set_default_handler, 'pre': u.add_preprocessor, 'post': u.add_postprocessor}[kind](broken)
    with pytest.raises(LookupError, match='broken'): u({'type': 'x'})


def registrations(u): return [u.register('x'), functools.partial(u.register_handler, 'x'), u.set_default_handler, u.add_preprocessor, u.add_postprocessor]


async def coro(*args): return 'later'
async def agen(*args): yield 'later'
class Later:
    async def __call__(self, *args): return 'later'
    async def method(self, *args): return 'later'
    @classmethod
    async def clsmethod(cls, *args): return 'later'
    @staticmethod
    async def static(*args): return 'later'


@pytest.mark.parametrize('f', [coro, agen, Later(), Later().method, Later.clsmethod, Later.static, functools.partial(coro, 1),
    functools.partial(functools.partial(Later()), 1), functools.partial(Later().method), AsyncMock()])
def test_async_is_refused(f):
    u = SSEElementUpdater()
    for add in registrations(u):
        with pytest.raises(TypeError, match='await before you broadcast'): add(f)
    assert u.get_registered_events() == [] and u.create_elements('x', {}) == []


@pytest.mark.parametrize('f', ['x', 7, [print]])
def test_what_is_not_callable(f):
    for add in registrations(SSEElementUpdater()):
        with pytest.raises(TypeError, match='a callable, got'): add(f)


@pytest.mark.parametrize('f', [Later, str, functools.partial(str), lambda *args: 'now', {}.get])
def test_sync_callables_pass(f):
    for add in registrations(SSEElementUpdater()): assert add(f) is f


def test_hidden_coroutine_is_told_and_closed():
    u = SSEElementUpdater()
    u.register('x')(lambda data: [coro(data)])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        with pytest.raises(TypeError, match='await before you broadcast'): u({'type': 'x'})
        gc.collect()
    assert told == []  # Python would say that it was never awaited


@pytest.mark.parametrize('bad', ['', None, 3, 'a\nb'])
def test_bad_types(bad):
    with pytest.raises(SSEError): SSEElementUpdater().create_elements(bad, {})
    with pytest.raises(SSEError): SSEElementUpdater().register(bad)
