"""The app of the chaos run: `REDIS_URL` names what its workers share, `LOG` says how many messages each keeps

With `FASTLITE`, which is a path, it writes into the same SQLite file by fastlite, as apps do.
"""
import asyncio
import os
import time
from fasthtml.common import *
from starlette.responses import PlainTextResponse
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

app, rt = fast_app(secret_key='test')
manager = SSEBroadcastManager(replay_size=int(os.environ['LOG']), heartbeat=2., retry=300, backend=os.environ['REDIS_URL'])
setup_sse(app, manager)

@rt
def events(req): return manager.stream(req)

if path := os.environ.get('FASTLITE'):
    from apsw import BusyError
    from fastlite import database
    while True:
        try: db = database(path)
        except BusyError: time.sleep(.05)  # fastlite waits a tenth of a second for a file that somebody else has locked
        else: break
    db.conn.set_busy_timeout(20_000)       # And so would each statement
    numbers = db.t.number
    numbers.create(n=int, pk='n', if_not_exists=True)
    writing = asyncio.Lock()  # Threads share one connection

@rt
async def say(n: int):
    try:
        if path:
            async with writing: await asyncio.to_thread(numbers.insert, n=n)
        await manager.broadcast('n', dict(n=n, text='x'*150))
    except Exception as e: return PlainTextResponse(repr(e), 503)
    return PlainTextResponse('ok')

@rt
def here(): return JSONResponse(dict(pid=os.getpid(), cursor=manager.cursor))
