"The app of the chaos run: `REDIS_URL` names the backend that its workers share"
import os
from fasthtml.common import *
from starlette.responses import PlainTextResponse
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.redis_backend import RedisBackend
from cjm_fasthtml_sse.wire import SSEError

app, rt = fast_app()
manager = SSEBroadcastManager(max_queue_size=int(os.environ.get('MAX_QUEUE', 100)), replay_size=int(os.environ['REPLAY_SIZE']), heartbeat=2., retry=300,
    backend=RedisBackend(os.environ['REDIS_URL'], max_length=1_000_000))  # The judge reads all of the stream at the end
setup_sse(app, manager)

@rt
def events(req): return manager.stream(req)

@rt
async def say(n: int):
    try: await manager.broadcast('n', dict(n=n, text='x'*150))
    except SSEError as e: return PlainTextResponse(repr(e), 503)
    return PlainTextResponse('ok')

@rt
def stats(): return JSONResponse(dict(manager.stats(), pid=os.getpid()))
