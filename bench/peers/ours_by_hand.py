"This library with a stream written by hand, as older apps have it"
import asyncio

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.engine.wire import StreamEnded
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

sse = SSEBroadcastManager()


async def messages():
    queue = await sse.register_connection()
    try:
        while True: yield (await queue.get())['data']
    except StreamEnded: pass
    finally: await sse.unregister_connection(queue)


async def events(req): return StreamingResponse(messages(), media_type='text/event-stream')


async def publish(req):
    frame = b'event: tick\ndata: '+await req.body()+b'\n\n'
    for _ in range(int(req.query_params.get('times', 1))):
        await sse.broadcast('tick', frame)
        await asyncio.sleep(0)
    return Response()


app = Starlette(routes=[Route('/events', events), Route('/publish', publish, methods=['POST'])])
