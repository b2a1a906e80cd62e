"Users who log in and out, by a page and by htmx, in one browser. `/mine` says in each message whose stream it is; `/news` is for all"
import os
from collections import Counter
from fasthtml.common import *
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

def guard(req, sess):
    if req.url.path.startswith('/mine') and not sess.get('auth'): return Response('log in', 401)

scripts = [Script(src=f'/assets/{o}') for o in ('htmx.org/dist/htmx.min.js', 'htmx-ext-sse/dist/sse.min.js')]
app = FastHTML(hdrs=scripts, default_hdrs=False, secret_key='test', before=guard)
app.mount('/assets', StaticFiles(directory=os.environ['ASSETS']))
sse,here = SSEBroadcastManager(retry=200, heartbeat=2.),Counter()
setup_sse(app, sse)

@sse.on_connect
def came(conn): here[conn.user] += 1

@sse.on_disconnect
def went(conn): here[conn.user] -= 1

@app.get
def mine(req, sess): return sse.stream(req, render=lambda m: f'{sess["auth"]}: {m["data"]}', snapshot=lambda: f'{sess["auth"]}: hello', user=sess['auth'])

@app.get
def news(req): return sse.stream(req, render=lambda m: f'news: {m["data"]}', user='all')

def stream(url): return HTMXSSEConnector.create_sse_element(endpoint=url, hidden=True)

@app.get('/')
def index(sess): return Titled('Mine', P(sess.get('auth', 'nobody'), id='who'), stream('/mine'), stream('/news'),
    *(Button(name or 'out', hx_post=f'/enter?name={name}', hx_target='#who', id=f'be-{name}') for name in ('ann', 'bob', '')))

def become(name, sess):
    sess.clear()
    if name: sess['auth'] = name

@app.get
def login(name: str, sess):
    become(name, sess)
    return RedirectResponse('/', 303)

@app.post
def enter(name: str, sess):
    become(name, sess)
    return name or 'nobody'

@app.get
def logout(sess):
    become('', sess)
    return Titled('Bye')

@app.get
async def say(text: str): return str(await sse.broadcast('said', text))

@app.get
def present(): return JSONResponse(+here)
