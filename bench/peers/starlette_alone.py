"Starlette alone: a queue for each connection, and its StreamingResponse"
import asyncio

from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

queues = set()


async def messages():
    queues.add(queue := asyncio.Queue())
    try:
        while True: yield await queue.get()
    finally: queues.discard(queue)


async def events(req): return StreamingResponse(messages(), media_type='text/event-stream')


async def publish(req):
    frame = b'event: tick\ndata: '+await req.body()+b'\n\n'
    for _ in range(int(req.query_params.get('times', 1))):
        for q in queues: q.put_nowait(frame)
        await asyncio.sleep(0)
    return Response()


app = Starlette(routes=[Route('/events', events), Route('/publish', publish, methods=['POST'])])
