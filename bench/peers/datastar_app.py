"Datastar: a queue for each connection, and its DatastarResponse; an event is made once and given to all"
import asyncio

from datastar_py.starlette import DatastarResponse
from datastar_py.starlette import ServerSentEventGenerator as SSE
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

queues = set()


async def messages():
    queues.add(queue := asyncio.Queue())
    try:
        while True: yield await queue.get()
    finally: queues.discard(queue)


async def events(req): return DatastarResponse(messages())


async def publish(req):
    event = SSE.patch_elements(f'<div id="tick">{(await req.body()).decode()}</div>')
    for _ in range(int(req.query_params.get('times', 1))):
        for q in queues: q.put_nowait(event)
        await asyncio.sleep(0)
    return Response()


app = Starlette(routes=[Route('/events', events), Route('/publish', publish, methods=['POST'])])
