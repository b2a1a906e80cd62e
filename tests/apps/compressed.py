"Streams that are compressed with a dictionary, on connections of their own"
from fasthtml.common import FastHTML, P

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

app, sse = FastHTML(secret_key='test', default_hdrs=False), SSEBroadcastManager()
setup_sse(app, sse, multiplex=False, compress=['<p id="text">Number 1 of many</p>'])

@app.get('/')
def index(): return P('a page')

@app.get('/events')
def events(req): return sse.stream(req, render=lambda m: f'<p id="text">Number {m["data"]} of many</p>')

@app.post('/say')
def say(n: int): return str(sse.broadcast('text', n).result())
