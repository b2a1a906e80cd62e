"""A server that answers as the address says

`/response?key=1&body=a&body=b`: the first request with this key gets `a`, the second one `b`, and so do all later ones.
A body is Latin-1 text that stands for its bytes; `{name}` in it stands for the request's header of this name. A response
ends where another one follows it; the last one stays open. `status`, `type` and `location` are those of the first
response, or of all where there is one body only; `pause` are milliseconds before each answer. `/requests?key=1`: how
many there were, and how many of them are open.
"""
import asyncio
import re
from collections import Counter

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.routing import Route

requests, open_ = Counter(), Counter()


async def response(request):
    query = request.query_params
    key, bodies = query.get('key', ''), query.getlist('body')
    n = requests[key]
    requests[key] += 1
    await asyncio.sleep(float(query.get('pause', 0)) / 1000)
    text = re.sub(r'\{([\w-]+)\}', lambda m: request.headers.get(m[1], ''), bodies[min(n, len(bodies) - 1)])
    first = n == 0 or len(bodies) == 1
    status = int(query.get('status', 200)) if first else 200

    async def parts():
        open_[key] += 1
        try:
            yield text.encode('latin-1')
            if n >= len(bodies) - 1 and status == 200: await asyncio.Event().wait()
        finally: open_[key] -= 1

    headers = {'Content-Type': query.get('type', 'text/event-stream') if first else 'text/event-stream'}
    if first and 'location' in query: headers['Location'] = query['location']
    if origin := request.headers.get('origin'):
        headers |= {'Access-Control-Allow-Origin': origin, 'Access-Control-Allow-Credentials': 'true'}
    return StreamingResponse(parts(), status, headers)


async def page(request):
    answer = HTMLResponse('<!doctype html><title>Responses</title>')
    answer.set_cookie('visitor', 'known')
    return answer


async def counts(request):
    key = request.query_params['key']
    return JSONResponse([requests[key], open_[key]])


app = Starlette(routes=[Route('/', page), Route('/response', response), Route('/requests', counts)])
