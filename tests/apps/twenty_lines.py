# The twenty lines of the README, as they stand there
from fasthtml.common import *
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.updater import SSEElementUpdater
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.helpers import setup_sse, oob_element

app, rt = fast_app()
sse, updater = SSEBroadcastManager(), SSEElementUpdater()
setup_sse(app, sse)

@updater.register('todo:added')
def added(todo): return oob_element('todos', Li(todo['title'], id=todo['id']), 'beforeend', element_type=Ul)

@rt
def events(req): return sse.stream(req, render=updater)

@rt
def index():
    return Titled('Todos', HTMXSSEConnector.create_sse_element(endpoint=events, hidden=True),
        Ul(id='todos'), Form(Input(name='title'), hx_post=add, hx_swap='none'))

@app.post
async def add(title: str): await sse.broadcast('todo:added', dict(id=unqid(), title=title))

serve()
