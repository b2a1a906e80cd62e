"A list that is written to while its pages are drawn, slowly: most of them are overtaken"
import asyncio
import time

from fasthtml.common import FastHTML, Li, Ul
from starlette.requests import Request

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

app,sse,todos = FastHTML(secret_key='test'),SSEBroadcastManager(),[]
setup_sse(app, sse)


def drawn(shown): return Ul(*map(Li, shown), id='todos'), HTMXSSEConnector.create_sse_element(endpoint='/events', hidden=True)


@app.route('/plain')
def plain():
    shown = [*todos]
    time.sleep(.01)
    return drawn(shown)


@app.route('/async')
async def later():
    shown = [*todos]
    await asyncio.sleep(.01)
    return drawn(shown)


@app.route('/add')
async def add(title: str):
    todos.append(title)
    await sse.broadcast('todo:added', title)


@app.route('/events')
def events(req: Request): return sse.stream(req, render=lambda m: Li(m['data']))
