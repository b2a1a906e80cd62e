"An app for several processes: `REDIS_URL` in the environment names what connects them, without it nothing does; `PATIENCE` is for how long a start waits for it"
import os
from fasthtml.common import *
from cjm_fasthtml_sse import setup
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

if patience := os.environ.get('PATIENCE'): setup.STARTUP_TIMEOUT = float(patience)
manager = SSEBroadcastManager(backend=os.environ.get('REDIS_URL'), retry=200)

async def lifespan(app):
    await manager.open()
    yield

app, rt = fast_app(lifespan=lifespan)
setup_sse(app, manager)

@rt
def events(req, user: str = ''): return manager.stream(req, user=user or None)

@rt
async def say(text: str): return str(await manager.broadcast('said', dict(text=text, item=Li(text))))

@rt
def say_from_a_thread(text: str): return str(manager.broadcast_threadsafe('said', dict(text=text)).result(5))

@rt
async def everywhere(): return JSONResponse(await manager.cluster_stats())

@rt
async def log_out(user: str): return str(await manager.disconnect(user))

@rt
def here(): return JSONResponse(dict(pid=os.getpid(), cursor=manager.cursor, **manager.stats()))

@rt
def history(): return JSONResponse([m['data']['text'] for m in manager.get_history()])
