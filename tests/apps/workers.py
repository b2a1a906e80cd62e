"""An app for several processes, connected by the Redis at `REDIS_URL`, if that is in the environment

`PATIENCE` is for how long a start waits for Redis, `TIMEOUT` for how long each attempt takes.
"""
import os
from fasthtml.common import *
from cjm_fasthtml_sse import setup
from cjm_fasthtml_sse.backends.redis import RedisBackend
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

if patience := os.environ.get('PATIENCE'): setup.STARTUP_TIMEOUT = float(patience)
url,timeout = os.environ.get('REDIS_URL'),float(os.environ.get('TIMEOUT', 2))
manager = SSEBroadcastManager(backend=url and RedisBackend(url, timeout=timeout), retry=200)
app, rt = fast_app()
setup_sse(app, manager)

@rt
def events(req): return manager.stream(req)

@rt
async def say(text: str): return str(await manager.broadcast('said', text))

@rt
def here(): return JSONResponse(dict(pid=os.getpid(), **manager.stats()))
