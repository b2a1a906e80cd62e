"""An event becomes elements: `SSEElementUpdater`

Handlers take the data of an event and give one element, several, or nothing. They are found by pattern, the highest
priority first; the default handler is called only where none matches. Elements are made at once, so an async handler
is refused when it is registered.
"""
import functools
import gc
import warnings
from unittest.mock import AsyncMock

import pytest
from fasthtml.common import Li, to_xml

from cjm_fasthtml_sse.updater import SSEElementUpdater


@pytest.fixture
def updater(): return SSEElementUpdater()


class TestElements:
    "What comes of a handler's result"

    @pytest.mark.parametrize('result, elements', [
        ('a', ['a']), (None, []), (['a', 'b'], ['a', 'b']), (('a', 'b'), ['a', 'b']), ([], []), ((), []),
        ([None, 'a'], ['a']),
        ((['a'], ('b', ['c']), None), ['a', 'b', 'c']), (0, [0]), ('', ['']), ([0, False], [0, False])], ids=repr)
    def test_any_shape(self, updater, result, elements):
        "A tuple counts as a list does; only `None` is left out. From handlers, the default one and postprocessors"
        updater.register('x')(lambda data: result)
        updater.register('loop')(lambda data: iter([result]))
        updater.set_default_handler(lambda event_type, data: result)
        for event_type in ('x', 'loop', 'other'): assert updater.create_elements(event_type, 1)==elements
        updater.add_postprocessor(lambda found: result)
        if result is not None: assert updater.create_elements('x', 1)==elements

    def test_element_is_one(self, updater):
        "It is never taken apart, though it has children"
        updater.register('x')(lambda data: Li('a', 'b'))
        assert [to_xml(o, indent=False) for o in updater.create_elements('x', {})]==['<li>ab</li>']

    def test_is_a_renderer(self, updater):
        "Called with a message, as `stream(render=updater)` does; `data` may lack"
        got = []
        updater.register('x')(got.append)
        for data in (0, '', [], None, False): updater({'type': 'x', 'data': data})
        updater({'type': 'x'})
        assert got==[0, '', [], None, False, {}]


class TestHandlers:
    "Who is called"

    def test_priority_over_all_patterns(self, updater):
        five = [('a', '**', 0), ('b', 'job:*', 5), ('c', 'job:done', 0), ('d', '**', 9), ('e', '*:done', 5)]
        for name,pattern,priority in five:
            updater.register(pattern, priority)(lambda data, name=name: name)
        assert updater.create_elements('job:done', {})==['d', 'b', 'e', 'a', 'c']
        assert updater.get_registered_events()==['**', 'job:*', 'job:done', '*:done']
        updater.clear_handlers('**')
        assert updater.create_elements('job:done', {})==['b', 'e', 'c']
        assert updater.get_registered_events()==['job:*', 'job:done', '*:done']

    def test_default_only_where_none_matches(self, updater):
        default = []
        updater.set_default_handler(lambda *args: default.append(args))
        updater.register('quiet:*')(lambda data: None)
        assert updater.create_elements('quiet:x', 1)==updater.create_elements('other', 2)==[]
        assert default==[('other', 2)]

    def test_clearing_keeps_the_rest(self, updater):
        updater.register('x')(lambda data: 'x')
        updater.set_default_handler(lambda event_type, data: 'default')
        updater.add_postprocessor(lambda elements: elements.append('post'))
        updater.clear_handlers()
        assert updater.create_elements('x', {})==['default', 'post'] and updater.get_registered_events()==[]
        updater.set_default_handler(None)
        assert updater.create_elements('x', {})==['post']

    @pytest.mark.parametrize('kind', ['handler', 'default', 'pre', 'post'])
    def test_errors_come_up(self, updater, kind):
        def broken(*args): raise LookupError('broken')
        add = dict(handler=updater.register('x'), default=updater.set_default_handler, pre=updater.add_preprocessor,
            post=updater.add_postprocessor)
        add[kind](broken)
        with pytest.raises(LookupError, match='broken'): updater.create_elements('x', {})

    @pytest.mark.parametrize('bad', ['', None, 3, 'a\nb'], ids=repr)
    def test_bad_types(self, updater, bad):
        with pytest.raises((ValueError, TypeError)): updater.create_elements(bad, {})


class TestProcessors:
    "`None` leaves data and elements as they are, anything else takes their place"

    def test_in_order(self, updater):
        updater.add_preprocessor(lambda event_type, data: data+[event_type])
        updater.add_preprocessor(lambda event_type, data: None)
        updater.add_preprocessor(lambda event_type, data: data+['second'])
        updater.add_postprocessor(lambda elements: elements[::-1])
        updater.add_postprocessor(lambda elements: None)
        updater.add_postprocessor(lambda elements: [len(elements), *elements])
        updater.register('x')(lambda data: data)
        assert updater.create_elements('x', ['data'])==[3, 'second', 'x', 'data']

    @pytest.mark.parametrize('new', [0, '', False])
    def test_false_values_count(self, updater, new):
        updater.register('x')(lambda data: [data])
        updater.add_preprocessor(lambda event_type, data: new)
        assert updater.create_elements('x', 'old')==[new]
        updater.add_postprocessor(lambda elements: [])
        assert updater.create_elements('x', 'old')==[]


async def coro(*args): return 'later'
async def agen(*args): yield 'later'
class Later:
    async def __call__(self, *args): return 'later'
    async def method(self, *args): return 'later'
    @classmethod
    async def clsmethod(cls, *args): return 'later'


def registrations(u):
    return [u.register('x'), functools.partial(u.register_handler, 'x'), u.set_default_handler, u.add_preprocessor,
        u.add_postprocessor]


class TestAsync:
    "Elements are made at once"

    @pytest.mark.parametrize('f', [coro, agen, Later(), Later().method, Later.clsmethod, functools.partial(coro, 1),
                                   functools.partial(functools.partial(Later()), 1), AsyncMock()])
    def test_refused_at_registration(self, updater, f):
        for add in registrations(updater):
            with pytest.raises(TypeError, match='await before you broadcast'): add(f)
        assert updater.get_registered_events()==[] and updater.create_elements('x', {})==[]

    @pytest.mark.parametrize('f', [Later, str, functools.partial(str), lambda *args: 'now', {}.get])
    def test_plain_callables_pass(self, updater, f):
        for add in registrations(updater): assert add(f) is f

    @pytest.mark.parametrize('f', ['x', 7, [print]], ids=repr)
    def test_what_is_not_callable(self, updater, f):
        for add in registrations(updater):
            with pytest.raises(TypeError): add(f)

    def test_hidden_coroutine(self, updater):
        "Only the result tells; it is closed, and Python does not warn that it was never awaited"
        updater.register('x')(lambda data: [coro(data)])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter('always')
            with pytest.raises(TypeError, match='await before you broadcast'): updater.create_elements('x', {})
            gc.collect()
        assert told==[]
