"sse-starlette: a queue for each connection, and its EventSourceResponse"
import asyncio

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

queues = set()


async def messages():
    queues.add(queue := asyncio.Queue())
    try:
        while True: yield await queue.get()
    finally: queues.discard(queue)


async def events(req): return EventSourceResponse(messages())


async def publish(req):
    event = ServerSentEvent((await req.body()).decode(), event='tick')
    for _ in range(int(req.query_params.get('times', 1))):
        for q in queues: q.put_nowait(event)
        await asyncio.sleep(0)
    return Response()


app = Starlette(routes=[Route('/events', events), Route('/publish', publish, methods=['POST'])])
