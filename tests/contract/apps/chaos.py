"The app of the chaos run: `REDIS_URL` names what its workers share, `LOG` says how many messages each keeps"
import os
from fasthtml.common import *
from starlette.responses import PlainTextResponse
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

app, rt = fast_app(secret_key='test')
manager = SSEBroadcastManager(replay_size=int(os.environ['LOG']), heartbeat=2., retry=300, backend=os.environ['REDIS_URL'])
setup_sse(app, manager)

@rt
def events(req): return manager.stream(req)

@rt
async def say(n: int):
    try: await manager.broadcast('n', dict(n=n, text='x'*150))
    except Exception as e: return PlainTextResponse(repr(e), 503)
    return PlainTextResponse('ok')

@rt
def here(): return JSONResponse(dict(pid=os.getpid(), cursor=manager.cursor))
