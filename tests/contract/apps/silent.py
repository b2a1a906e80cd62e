"Apps in which something is silent, and some in which nothing is. Prints what the log says of each, as JSON"
import asyncio
import json
import logging
import time

from fasthtml.common import FastHTML
from starlette.testclient import TestClient

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import SSEEventDispatcher
from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.testing import SSEClient
from cjm_fasthtml_sse.updater import SSEElementUpdater


def visited(name, setup, stream):
    "A page and its stream, each asked for twice"
    app,sse = FastHTML(secret_key='contract'),SSEBroadcastManager()
    setup(app, sse)
    @app.get(f'/{name}')
    def page(): return HTMXSSEConnector.create_sse_element(endpoint=f'/{name}/events')
    @app.get(f'/{name}/events')
    def events(req):
        stream(sse, req)
        return 'made'
    for path in (f'/{name}', f'/{name}/events')*2: assert TestClient(app).get(path).status_code==200

def set_up(): visited('set_up', setup_sse, lambda sse, req: sse.stream(req))
def forgotten(): visited('forgotten', lambda app, sse: None, lambda sse, req: sse.stream(req))
def other_manager(): visited('other_manager', lambda app, sse: setup_sse(app), lambda sse, req: sse.stream(req))
def extension_alone(): visited('extension_alone', lambda app, sse: insert_htmx_sse_ext(app.hdrs), lambda sse, req: sse.stream(req))


def heard(send, n=1, **stream):
    "A stream that is open while `send(manager)` broadcasts"
    async def run():
        app,sse = FastHTML(secret_key='contract'),SSEBroadcastManager()
        setup_sse(app, sse)
        @app.get('/events')
        def events(req): return sse.stream(req, **stream)
        async with SSEClient(app, '/events') as tab:
            await tab.next(30, heartbeats=True)
            for i in range(n): await send(sse, i)
            await asyncio.sleep(0)
    asyncio.run(run())

def updater_of(event_type):
    updater = SSEElementUpdater()
    updater.register(event_type)(lambda data: None)
    return updater

def misspelt():
    heard(lambda sse, i: sse.broadcast(f'todo:aded{i}', 1), 1000, render=updater_of('todo:added'))

def misspelt_for_a_dispatcher():
    dispatcher = SSEEventDispatcher()
    dispatcher.on('job:done')(lambda event: None)
    heard(lambda sse, i: sse.broadcast('job:don', 1), render=dispatcher)

def handled():
    heard(lambda sse, i: sse.broadcast('todo:added', 1), render=updater_of('todo:*'))

def default_handler():
    updater = SSEElementUpdater()
    updater.set_default_handler(lambda event_type, data: None)
    heard(lambda sse, i: sse.broadcast('anything', 1), render=updater)

def somebody_elses():
    heard(lambda sse, i: sse.broadcast('user:bob:note', 1), render=updater_of('user:*:note'), events='user:ann:**')

def a_function(): heard(lambda sse, i: sse.broadcast('anything', 1), render=lambda message: None)
def no_renderer(): heard(lambda sse, i: sse.broadcast('anything', 1))


def slow_state():
    time.sleep(.1)  # Slow is what is tested
    return '<p>state</p>'

def slow_snapshot():
    for _ in range(2): heard(lambda sse, i: sse.broadcast('x', 1), snapshot=slow_state)

def slow_rendering(message):
    time.sleep(.1)  # Slow is what is tested
    return '<p>x</p>'

def slow_renderer(): heard(lambda sse, i: sse.broadcast('x', 1), 2, render=slow_rendering)


CASES = [set_up, forgotten, other_manager, extension_alone, misspelt, misspelt_for_a_dispatcher, handled, default_handler,
         somebody_elses, a_function, no_renderer, slow_snapshot, slow_renderer]

if __name__=='__main__':
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append([record.name, record.levelname, record.getMessage()])
    logging.getLogger().addHandler(handler)
    found = {}
    for case in CASES:
        said.clear()
        case()
        found[case.__name__] = [o for o in said if o[0].startswith('cjm_fasthtml_sse')]
    print(json.dumps(found))
