"Polling: a FastHTML route that htmx asks again and again"
from fasthtml.common import Div, FastHTML

app = FastHTML(secret_key='bench')
state = dict(text='x'*199+'@')


@app.get('/events')
def events(n: int): return Div(state['text'], id='tick', hx_get='/events', hx_trigger='every 1s', hx_swap='outerHTML')


@app.post('/publish')
async def publish(req): state['text'] = (await req.body()).decode()
