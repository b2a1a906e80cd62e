"""Names, positions and defaults of the six modules: apps written for 0.0.24 run unchanged

Whatever stands in this table can be called by position and by name, with these defaults. The library may add
parameters behind them, which have defaults of their own. What registers a callback gives it back, so that it serves
as a decorator.
"""
import inspect
from dataclasses import is_dataclass
from importlib.metadata import version

import pytest
from fasthtml.common import Div, Span, to_xml

import cjm_fasthtml_sse
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import SSEEvent, SSEEventDispatcher
from cjm_fasthtml_sse.helpers import (cleanup_sse_on_unload, get_htmx_idx, insert_htmx_sse_ext, oob_element, oob_swap,
                                      oob_update, sse_element)
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor
from cjm_fasthtml_sse.updater import SSEElementUpdater

EMPTY = inspect.Parameter.empty
MANAGER, DISPATCHER, UPDATER, HTMX = SSEBroadcastManager, SSEEventDispatcher, SSEElementUpdater, HTMXSSEConnector

SIGNATURES = [
    # core
    (MANAGER, 'max_queue_size=100, history_size=50, default_timeout=0.1'),
    (MANAGER.register_connection, 'queue=None'),
    (MANAGER.unregister_connection, 'queue'),
    (MANAGER.broadcast, 'event_type, data, timeout=None'),
    (MANAGER.on_connect, 'callback'),
    (MANAGER.on_disconnect, 'callback'),
    (MANAGER.on_broadcast, 'callback'),
    (MANAGER.get_history, 'limit=None'),
    # dispatcher
    (SSEEvent, 'type, data, namespace=None, priority=0, timestamp=None'),
    (DISPATCHER, ''),
    (DISPATCHER.register_namespace, 'namespace'),
    (DISPATCHER.on, 'event_pattern, priority=0'),
    (DISPATCHER.add_handler, 'event_pattern, handler, priority=0'),
    (DISPATCHER.add_middleware, 'middleware'),
    (DISPATCHER.add_filter, 'filter_func'),
    (DISPATCHER.add_transformer, 'transformer'),
    (DISPATCHER.dispatch, 'event'),
    (DISPATCHER.clear_handlers, 'pattern=None'),
    # helpers
    (oob_swap, "element, swap_type='outerHTML', target_id=None"),
    (oob_element, "element_id, content, swap_type='innerHTML'"),
    (oob_update, "element_id, content, swap_type='innerHTML'"),
    (sse_element, "endpoint, events=None, auto_close=True, swap_type='message'"),
    (cleanup_sse_on_unload, ''),
    (get_htmx_idx, 'hdrs'),
    (insert_htmx_sse_ext, 'hdrs'),
    # htmx
    (HTMX, ''),
    (HTMX.add_sse_attrs, "element, endpoint, events=None, swap_type='message', auto_reconnect=True"),
    (HTMX.create_sse_element, "element_type=Div, endpoint=None, element_id=None, events=None, swap_type='message', "
                              "hidden=False, **kwargs"),
    (HTMX.sse_progress_element, "job_id, endpoint_template='/stream_job_progress?job_id={job_id}', "
                                "element_id_template='progress-span-{job_id}', initial_content=None"),
    (HTMX.sse_status_element, "job_id, endpoint_template='/stream_job_status?job_id={job_id}', "
                              "element_id_template='status-span-{job_id}', initial_content=None"),
    (HTMX.create_sse_monitor_script, 'config'),
    # monitoring
    (SSEMonitorConfig, "sse_element_id='sse-connection', status_element_id='connection-status', auto_reconnect=True, "
                       "reconnect_delay=3000, debug=False, heartbeat_timeout=30000, status_indicators=None"),
    (create_sse_monitor, 'htmx_sse, config'),
    # updater
    (UPDATER, ''),
    (UPDATER.register, 'event_type, priority=0'),
    (UPDATER.register_handler, 'event_type, handler, priority=0'),
    (UPDATER.set_default_handler, 'handler'),
    (UPDATER.add_preprocessor, 'processor'),
    (UPDATER.add_postprocessor, 'processor'),
    (UPDATER.create_elements, 'event_type, data'),
    (UPDATER.clear_handlers, 'event_type=None'),
    (UPDATER.get_registered_events, ''),
    # What the library adds to the older names
    (MANAGER.stream, "request, render=None, events='**', snapshot=None, until=None"),
    (MANAGER.subscribe, "events='**'"),
    (MANAGER.broadcast_threadsafe, 'event_type, data, timeout=None'),
]


def parameters(f): return [p for p in inspect.signature(f).parameters.values() if p.name!='self']


@pytest.mark.parametrize('f, promised', SIGNATURES, ids=[getattr(f, '__qualname__', str(f)) for f,_ in SIGNATURES])
def test_signature(f, promised):
    want = parameters(eval(f'lambda {promised}: None', dict(Div=Div)))
    named = [p for p in want if p.kind is p.POSITIONAL_OR_KEYWORD]
    got,more = parameters(f)[:len(named)],parameters(f)[len(named):]
    assert [p.name for p in got]==[p.name for p in named]
    for p,q in zip(got, named):
        assert p.kind is p.POSITIONAL_OR_KEYWORD and q.default in (EMPTY, p.default), p
    assert all(p.default is not EMPTY or p.kind is p.VAR_KEYWORD for p in more), 'what is added has a default'
    if len(want)>len(named): assert any(p.kind is p.VAR_KEYWORD for p in more)


@pytest.mark.parametrize('f',
    [MANAGER.register_connection, MANAGER.unregister_connection, MANAGER.broadcast, MANAGER.close,
                               DISPATCHER.dispatch])
def test_coroutine_functions(f): assert inspect.iscoroutinefunction(f)


def test_options_of_the_manager():
    got = {p.name: p.default for p in parameters(SSEBroadcastManager) if p.kind is p.KEYWORD_ONLY}
    assert got.items()>=dict(replay_size=None, heartbeat=15., retry=3000, max_connections=None,
        overflow='evict').items()


def test_properties():
    manager = SSEBroadcastManager()
    assert manager.connection_count==0 and len(manager.connections)==0
    assert is_dataclass(SSEEvent) and is_dataclass(SSEMonitorConfig)
    assert (SSEEvent('done', 1).full_type, SSEEvent('done', 1, 'job').full_type)==('done', 'job:done')


def test_version():
    "Pins on the older package accept this one"
    assert version('cjm-fasthtml-sse')==cjm_fasthtml_sse.__version__
    assert tuple(map(int, cjm_fasthtml_sse.__version__.split('.')[:2]))>=(0, 1)


def hooks():
    manager,dispatcher,updater = SSEBroadcastManager(),SSEEventDispatcher(),SSEElementUpdater()
    return dict(on_connect=manager.on_connect, on_disconnect=manager.on_disconnect, on_broadcast=manager.on_broadcast,
        on=dispatcher.on('x'), add_filter=dispatcher.add_filter, add_transformer=dispatcher.add_transformer,
        add_middleware=dispatcher.add_middleware, register=updater.register('x'),
            add_preprocessor=updater.add_preprocessor,
        add_postprocessor=updater.add_postprocessor, set_default_handler=updater.set_default_handler)


@pytest.mark.parametrize('name', hooks())
def test_decorators(name):
    def callback(*args): pass
    assert hooks()[name](callback) is callback


@pytest.mark.parametrize('make', [
    lambda htmx: htmx.add_sse_attrs(Div(id='a'), '/events'),
    lambda htmx: htmx.create_sse_element(Span, '/events', 'a', 'x', hidden=True, cls='c'),
    lambda htmx: htmx.sse_progress_element(7),
    lambda htmx: htmx.sse_status_element(7),
    lambda htmx: htmx.create_sse_monitor_script(dict(debug=True))])
def test_class_and_instance(make):
    "Every method of `HTMXSSEConnector` works on both"
    assert to_xml(make(HTMXSSEConnector))==to_xml(make(HTMXSSEConnector()))
