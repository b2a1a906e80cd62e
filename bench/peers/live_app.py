"""A table whose rows change, as a live element and by hand-made messages; `ROWS` of them, `BUSY` milliseconds for each drawing. Rows are kept as text, so that
what is measured is not what FT elements take; with `FT` they are made for each drawing

`/live` and `/hand` show it. `/publish` changes one row, and tells of it in the way that `HOW` says. `/many?n=50` has so many small elements.
"""
import os
import time

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import oob_swap, setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.updater import SSEElementUpdater
from fasthtml.common import Div, FastHTML, NotStr, P, Table, Tbody, Td, Tr, to_xml
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

HOW,FT,ROWS,BUSY = os.environ.get('HOW', 'live'),bool(os.environ.get('FT')),int(os.environ.get('ROWS', 1000)),float(os.environ.get('BUSY', 0))
app = FastHTML(secret_key='bench', default_hdrs=False)
sse, updater = SSEBroadcastManager(), SSEElementUpdater()
setup_sse(app, sse)
rows, changes = [[f'customer {n}', f'{n%28+1}.{n%12+1}.', f'{n*7%1000} pieces', 'open'] for n in range(ROWS)], [0]


def busy():
    end = time.thread_time()+BUSY/1000
    while time.thread_time()<end: pass


def row(n): return Tr(*map(Td, rows[n]))
def row_by_hand(n): return Tr(*map(Td, rows[n]), id=f'row-{n}')


class Lines:
    "The rows as text"
    def __init__(self, row): self.row,self.texts,self.seen = row,[to_xml(row(n), indent=False) for n in range(ROWS)],0

    def table(self):
        busy()
        if FT: return Table(Tbody(*map(self.row, range(ROWS))))
        for k in range(self.seen, self.seen+min(ROWS, changes[0]-self.seen)): self.texts[k*7919%ROWS] = to_xml(self.row(k*7919%ROWS), indent=False)
        self.seen = changes[0]
        return NotStr(f"<table><tbody>{''.join(self.texts)}</tbody></table>")


lines, lines_by_hand = Lines(row), Lines(row_by_hand)


@sse.live('row:*')
def table(): return lines.table()


def table_by_hand(): return lines_by_hand.table()


@updater.register('hand:row')
def changed(n):
    busy()
    return oob_swap(row_by_hand(n))


@sse.live('cell:{n}')
def cell(n: int): return P(f'{n}: {rows[n%ROWS][3]}')


@app.get('/live')
def live(): return table()


@app.get('/hand')
def hand(): return table_by_hand(), HTMXSSEConnector.create_sse_element(endpoint='/events', hidden=True)


@app.get('/events')
def events(req): return sse.stream(req, render=updater, events='hand:*')


@app.get('/many')
def many(n: int): return Div(*map(cell, range(n)))


@app.get('/many_by_hand')
def many_by_hand(n: int): return Div(*[HTMXSSEConnector.create_sse_element(endpoint=f'/events?n={i}', element_id=f's{i}') for i in range(n)])


@app.get('/plain')
async def plain(): return 'ok'


async def publish(req):
    n = changes[0]*7919%ROWS
    rows[n][3] = f'{(await req.body()).decode()} {changes[0]//ROWS}'  # Never what it was
    changes[0] += 1
    await sse.broadcast(*(('row:changed', None) if HOW=='live' else ('hand:row', n)))
    return Response()


async def drawing(req):
    "Microseconds of processor time that one drawing and its HTML take"
    begin = time.thread_time()
    for _ in range(10):
        drawn = lines.table()
        if FT: to_xml(drawn, indent=False)
    return PlainTextResponse(f'{(time.thread_time()-begin)*1e5:.0f}')


app.router.routes[:0] = [Route('/publish', publish, methods=['POST']), Route('/drawing', drawing)]
