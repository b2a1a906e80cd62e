# The first app of the README, as it stands there
from fasthtml.common import *
from cjm_fasthtml_sse.common import *

app, rt = fast_app()
sse = setup_sse(app)
todos = []

@sse.live('todos')
def todo_list(): return Ul(*map(Li, todos), id='todos')

@rt
def index(): return Titled('Todos', todo_list(), Form(Input(name='title'), hx_post=add, hx_swap='none'))

@app.post
def add(title: str):
    todos.append(title)
    sse.changed('todos')

serve()
