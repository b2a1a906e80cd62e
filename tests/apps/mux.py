"Streams of both kinds for one connection, and how many carriers the server holds"
from fasthtml.common import *
from starlette.responses import StreamingResponse
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

manager = SSEBroadcastManager(heartbeat=2., retry=200)
app = FastHTML(secret_key='test', default_hdrs=False)
setup_sse(app, manager)

@app.get('/events')
def events(req): return manager.stream(req, render=lambda m: f'{m["data"]}')

@app.get('/by_hand')
async def by_hand(req):
    async def frames():
        async with manager.subscribe() as queue:
            yield 'data: begun\n\n'
            while True: yield f'data: {(await queue.get())["data"]}\n\n'
    return StreamingResponse(frames(), media_type='text/event-stream', headers={'X-Accel-Buffering': 'no'})  # Else nginx holds it back

@app.get('/say')
async def say(text: str): return str(await manager.broadcast('said', text))

@app.get('/held')
async def held(): return str(len(app._sse_setup.multiplexer.carriers))
