# The first app of the README, as it stands there
from fasthtml.common import *
from cjm_fasthtml_sse.common import *

app, rt = fast_app()
sse, updater = setup_sse(app), SSEElementUpdater()
todos = []

def line(n, title): return Li(title, id=f'todo-{n}')
def todo_list(): return Ul(*[line(*o) for o in enumerate(todos)], id='todos')
def state(): return oob_swap(todo_list())

@updater.register('todo:added')
def added(todo): return oob_element('todos', line(*todo), 'beforeend', element_type=Ul)

@rt
def events(req): return sse.stream(req, render=updater, snapshot=state)

@rt
def index():
    return Titled('Todos', Form(Input(name='title'), hx_post=add, hx_swap='none'),
        todo_list(), HTMXSSEConnector.create_sse_element(endpoint=events, hidden=True))

@app.post
async def add(title: str):
    todos.append(title)
    await sse.broadcast('todo:added', (len(todos)-1, title))

serve()
