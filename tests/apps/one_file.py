"An app for several processes on the SQLite file `DB`, which is also its own; with `FASTLITE` it opens the file by fastlite"
import os
from pathlib import Path
from fasthtml.common import *
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

db = None
if os.environ.get('FASTLITE'):
    from fastlite import database
    db = database(os.environ['DB'])
    todos = db.t.todo
    todos.create(id=int, text=str, pk='id', if_not_exists=True)

app, rt = fast_app()
sse = setup_sse(app, SSEBroadcastManager(backend=Path(os.environ['DB']), retry=200))

@rt
def events(req, user: str = ''): return sse.stream(req, user=user or None)

@rt
async def say(text: str): return str(await sse.broadcast('said', text))

@rt
def say_from_a_thread(text: str):
    if db is not None: todos.insert(text=text)
    return str(sse.broadcast('said', text).result(30))

@rt
async def everywhere(): return JSONResponse(await sse.cluster_stats())

@rt
async def log_out(user: str): return str(await sse.disconnect(user))

@rt
def here(): return JSONResponse(dict(pid=os.getpid(), **sse.stats()))
