"WebSockets: Starlette's, sent to one after another, as the usual connection manager does"
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

sockets = set()


async def socket(ws):
    await ws.accept()
    sockets.add(ws)
    try:
        while True: await ws.receive_text()
    except WebSocketDisconnect: pass
    finally: sockets.discard(ws)


async def publish(req):
    html = f'<div id="tick">{(await req.body()).decode()}</div>'
    for _ in range(int(req.query_params.get('times', 1))):
        for ws in [*sockets]: await ws.send_text(html)
    return Response()


app = Starlette(routes=[WebSocketRoute('/events', socket), Route('/publish', publish, methods=['POST'])])
