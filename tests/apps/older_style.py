"An app in the older style: it reads its queue by hand, writes its stream by hand, and sets up nothing but the extension"
import asyncio
from fasthtml.common import *
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, oob_update
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor

app, rt = fast_app()
insert_htmx_sse_ext(app.hdrs)
manager = SSEBroadcastManager(max_queue_size=20, history_size=5, default_timeout=0.05)
log = []

@manager.on_connect
def connected(queue): log.append('connect')

@manager.on_disconnect
async def disconnected(queue): log.append('disconnect')

async def updates():
    queue = await manager.register_connection()
    try:
        while True:
            try: message = await asyncio.wait_for(queue.get(), timeout=0.2)
            except asyncio.TimeoutError:
                yield ': keepalive\n\n'
                continue
            data = message.get('data', {})
            yield sse_message(data['element'] if 'element' in data else Div(str(data)), event=message['type'])
    except Exception: pass
    finally: await manager.unregister_connection(queue)

@rt('/stream')
async def get(): return EventStream(updates())

@rt('/')
def get():
    monitor = create_sse_monitor(HTMXSSEConnector(), SSEMonitorConfig(sse_element_id='sse-connection', status_element_id='connection-status'))
    return Titled('Older', Div(id='connection-status'),
        HTMXSSEConnector.create_sse_element(Div, '/stream', 'sse-connection', events=['count', 'note']), Div(id='count'), monitor)

@rt('/say')
async def get(text: str):
    n = await manager.broadcast('count', {'element': oob_update('count', text)})
    return str(n)

@rt('/push')
async def get(text: str):
    for queue in manager.connections: queue.put_nowait({'type': 'note', 'data': {'text': text}})
    return str(len(manager.connections))

@rt('/plain')
async def get():
    for queue in manager.connections: queue.put_nowait({'type': 'bare'})
    return 'ok'

@rt('/log')
def get(): return JSONResponse(dict(log=log, count=manager.connection_count, history=[m['type'] for m in manager.get_history(2)]))
