"""Any other app, `APP` names it as in `jobs_by_hand:app`, with a count of what reaches it from outside around it:
responses that stream and are open, by their type; and requests that there were, by method and path"""
import os
from collections import Counter
from importlib import import_module

from starlette.responses import JSONResponse

STREAMS = 'text/event-stream', 'application/octet-stream'
module,_,name = os.environ['APP'].partition(':')
inner,open_,most,requests = getattr(import_module(module), name),Counter(),Counter(),Counter()

async def app(scope, receive, send):
    if scope['type'] != 'http': return await inner(scope, receive, send)
    if scope['path'] == '/_counted': return await JSONResponse(dict(open=+open_, most=most, requests=requests))(scope, receive, send)
    requests[f'{scope["method"]} {scope["path"]}'] += 1
    kinds = []
    def counting(message):
        if message['type'] == 'http.response.start' and message['status'] == 200:
            kinds[:] = {v.decode().partition(';')[0] for k,v in message['headers'] if k == b'content-type'} & {*STREAMS}
            open_.update(kinds)
            for o in kinds: most[o] = max(most[o], open_[o])
        return send(message)
    if hasattr(send, '__self__'): counting.__self__ = send.__self__  # Where our layers look for the server
    try: await inner(scope, receive, counting)
    finally: open_.subtract(kinds)
