"A job queue as an older app writes it: one stream for the page and two for each job, by hand, without ids; nothing is set up but the extension"
import os
from collections import Counter
from fasthtml.common import *
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, oob_swap
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

local = [Script(src=f'/assets/{o}') for o in ('htmx.org/dist/htmx.min.js', 'htmx-ext-sse/dist/sse.min.js')]
app = FastHTML(hdrs=local, default_hdrs=False, secret_key='test')
app.mount('/assets', StaticFiles(directory=os.environ['ASSETS']))
insert_htmx_sse_ext(app.hdrs)
manager,jobs,counts,most = SSEBroadcastManager(),{},Counter(),Counter()

async def read(name, first, show):
    "Frames of one connection"
    queue = await manager.register_connection()
    counts[name] += 1
    most[name] = max(most[name], counts[name])
    try:
        if first: yield sse_message(first)
        while True:
            message = await queue.get()
            if (shown := show(message)) is not None: yield sse_message(shown)
    finally:
        counts[name] -= 1
        await manager.unregister_connection(queue)

def row(id): return Li(HTMXSSEConnector.sse_progress_element(id), HTMXSSEConnector.sse_status_element(id), id=f'job-{id}')

@app.get
def stream_all(): return EventStream(read('all', None, lambda m: oob_swap(Ul(row(m['data']), id='jobs'), 'beforeend') if m['type'] == 'new' else None))

@app.get
def stream_job_progress(job_id: str): return EventStream(read(f'progress {job_id}', Span(jobs[job_id]), lambda m: Span(jobs[job_id]) if m['type'] == 'moved' else None))

@app.get
def stream_job_status(job_id: str): return EventStream(read(f'status {job_id}', Span('running'), lambda m: Span(f'at {jobs[job_id]}') if m['type'] == 'moved' else None))

@app.get('/')
def index(): return Titled('Jobs', Div(hx_ext='sse', sse_connect='/stream_all', sse_swap='message', hx_swap='none'), Ul(*map(row, jobs), id='jobs'))

@app.get
async def start(id: str):
    jobs[id] = 0
    await manager.broadcast('new', id)
    return 'started'

@app.get
async def move(id: str):
    jobs[id] += 1
    await manager.broadcast('moved', id)
    return str(jobs[id])

@app.get
def counted(): return JSONResponse(dict(now=+counts, most=most))
