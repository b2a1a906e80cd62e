"""Two whole apps as they stand: one written for the older package, and the twenty lines that a newcomer writes

The older one reads its queues by hand, writes its streams by hand, pushes into `connections` and sets up nothing but
the extension. Not a line of it changes. The newcomer's one opens in two tabs, and both change.
"""
import asyncio
import re

import httpx
import pytest
from fasthtml.common import Client, Div, EventStream, Form, Input, Li, Span, Titled, Ul, fast_app, sse_message

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dispatcher import SSEEvent, SSEEventDispatcher
from cjm_fasthtml_sse.helpers import (cleanup_sse_on_unload, insert_htmx_sse_ext, oob_element, oob_update, setup_sse,
                                      sse_element)
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor
from cjm_fasthtml_sse.updater import SSEElementUpdater
from tests.contract.support import SocketClient, eventually, listening, no_task_left, serve


def older_app():
    "In the style of 0.0.24: the app, its manager, and what its hooks and handlers have seen"
    app,rt = fast_app(secret_key='contract')
    insert_htmx_sse_ext(app.hdrs)
    manager = SSEBroadcastManager(max_queue_size=20, history_size=5, default_timeout=0.05)
    dispatcher,updater,seen = SSEEventDispatcher(),SSEElementUpdater(),[]
    dispatcher.register_namespace('job')

    @manager.on_connect
    def connected(queue): seen.append('connect')

    @manager.on_disconnect
    async def disconnected(queue): seen.append('disconnect')

    @manager.on_broadcast
    def stamp(message): message['data']['stamped'] = True

    @dispatcher.on('job:*', priority=5)
    async def finished(event): return await manager.broadcast('job', {'id': event.data['id']}, timeout=0.1)

    @updater.register('job')
    def show(data): return oob_update('job', f"Job {data['id']}"), Span(str(data['stamped']))

    async def updates():
        queue = await manager.register_connection()
        try:
            while True:
                try: message = await asyncio.wait_for(queue.get(), timeout=0.2)
                except asyncio.TimeoutError:
                    yield ': keepalive\n\n'
                    continue
                data = message.get('data', {})
                elements = updater.create_elements(message['type'], data)
                yield sse_message(Div(*elements) if elements else Div(str(data)), event=message['type'])
        except Exception: pass
        finally: await manager.unregister_connection(queue)

    @rt('/stream')
    async def stream(): return EventStream(updates())

    @rt('/')
    def index():
        config = SSEMonitorConfig(sse_element_id='sse-connection', status_element_id='connection-status', debug=True)
        return Titled('Older', Div(id='connection-status'), clock(), cleanup_sse_on_unload(),
            HTMXSSEConnector.create_sse_element(Div, '/stream', 'sse-connection', events=['job', 'note']),
            HTMXSSEConnector.sse_progress_element('7', initial_content='waiting'),
            create_sse_monitor(HTMXSSEConnector(), config))

    @sse_element('/stream', events='note')
    def clock(): return Span(id='clock')

    @rt('/done')
    async def done(id: str): return str(await dispatcher.dispatch(SSEEvent('done', {'id': id}, namespace='job')))

    @rt('/push')
    def push(text: str):
        for queue in manager.connections: queue.put_nowait({'type': 'note', 'data': {'text': text}})
        for queue in manager.connections: queue.put_nowait({'type': 'bare'})
        return str(manager.connection_count)
    return app,manager,seen


class TestOlderApp:
    @pytest.mark.parametrize('sink', ['stream', 'channel'])
    async def test_runs_unchanged(self, sink):
        "On connections of its own, and on the browser's common one"
        app,manager,seen = older_app()
        web = Client(app).cli
        async with no_task_left():
            async with listening(app, '/stream', sink) as tab:
                await eventually(lambda: manager.connection_count==1)
                assert (await web.get('/done', params=dict(id='7'))).text=='[1]'
                assert (await web.get('/push', params=dict(text='psst'))).text=='1'
                (job,html),(note,text),(bare,_) = await tab.read(3)
                assert (job, note, bare)==('job', 'note', 'bare') and 'psst' in text
                assert 'hx-swap-oob="innerHTML"' in html and 'Job 7' in html and 'True' in html
            await eventually(lambda: manager.connection_count==0)
        # A channel begins with a request of its own, which shows that the visitor is served
        assert seen==['connect', 'disconnect']
        assert [m['type'] for m in manager.get_history(2)]==['job']

    async def test_its_page(self):
        app,_,_ = older_app()
        page = (await Client(app).cli.get('/')).text
        for part in ('sse-swap="job,note"', 'sse-swap="note"', 'htmx-ext-sse@2.2.4', 'data-sse-monitor',
                     'id="progress-span-7"', '/stream_job_progress?job_id=7', 'waiting', "'pagehide'"):
            assert part in page, part

    async def test_ends_cleanly(self):
        "With the manager, over a real socket"
        app,manager,seen = older_app()
        async with serve(app) as port, SocketClient(port, '/stream') as tab:
            await eventually(lambda: manager.connection_count==1)
            await manager.close()
            await tab.ends()
        await eventually(lambda: seen==['connect', 'disconnect'])


def first_app():
    app,rt = fast_app(secret_key='contract')
    sse,updater = SSEBroadcastManager(),SSEElementUpdater()
    setup_sse(app, sse)

    @updater.register('todo:added')
    def added(data): return oob_element('todos', Li(data['title']), 'beforeend')

    @rt
    def events(req): return sse.stream(req, render=updater)

    @rt
    def index():
        return Titled('Todos', HTMXSSEConnector.create_sse_element(endpoint=events, hidden=True),
            Ul(id='todos'), Form(Input(name='title'), hx_post=add, hx_swap='none'))

    @rt
    async def add(title: str): await sse.broadcast('todo:added', dict(title=title))
    return app,index,events,add,sse


@pytest.mark.parametrize('sink', ['stream', 'channel'])
async def test_first_app(sink):
    "Two tabs: what is posted in one appears in both"
    app,index,events,add,sse = first_app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url='http://test') as web:
        page = (await web.get(str(index))).text
        assert f'sse-connect="{events}"' in page and f'hx-post="{add}"' in page
        place = re.search('data-sse-cursor="(.*?)"', page)[1]
        assert place==sse.cursor
        async with listening(app, str(events), sink) as one, listening(app, str(events), sink) as two:
            await eventually(lambda: sse.connection_count==2)
            assert (await web.post(str(add), data=dict(title='Milk'))).status_code==200
            for tab in one, two:
                assert await tab.next()==('message', '<div id="todos" hx-swap-oob="beforeend"><li>Milk</li></div>')
