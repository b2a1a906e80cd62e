"""The app that the configurations beside this file serve: a list that is the same in every tab

    uvicorn app:app --host 127.0.0.1 --port 8000

`REDIS_URL` lets several workers serve it, `SECRET_KEY` signs the sessions, and must be the same in all of them.
"""
import os
from fasthtml.common import *
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import oob_element,oob_swap,setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.updater import SSEElementUpdater

app,rt = fast_app(secret_key=os.environ.get('SECRET_KEY'))
sse = SSEBroadcastManager(backend=os.environ.get('REDIS_URL'), heartbeat=float(os.environ.get('HEARTBEAT', 15)),
    max_connections=int(os.environ.get('MAX_CONNECTIONS', 10_000)))
updater,items = SSEElementUpdater(),[]
setup_sse(app, sse)

@updater.register('item:added')
def added(item): return oob_element('items', line(item), 'beforeend', element_type=Ul)

@sse.on_delivery
def keep(message):
    "The list, in every worker the same"
    if message['type']=='item:added': items.append(message['data'])

def line(item): return Li(item['text'], id=item['id'])
def item_list(): return Ul(*map(line, items), id='items')
def state(): return oob_swap(item_list())

@rt
def events(req): return sse.stream(req, render=updater, snapshot=state)

@rt
def index():
    return Titled('Items', HTMXSSEConnector.create_sse_element(endpoint=events, hidden=True), item_list(),
        Form(Input(name='text', aria_label='New item'), Button('Add'), hx_post=add, hx_swap='none'))

@app.post
async def add(text: str): return str(await sse.broadcast('item:added', dict(id=unqid(), text=text)))

@rt
def health(): return JSONResponse(dict(connections=sse.connection_count))
