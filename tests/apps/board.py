"""A busy app, for the pictures of its dashboard: `NAME` is that of this process, `DB` where its events are

Its visitors are no browsers. What shows that alone is left out."""
import asyncio
import itertools
import os
import random
import time
from collections import Counter
from math import sin

from fasthtml.common import FastHTML, Li, P, Ul

from cjm_fasthtml_sse import dashboard
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.manager import cluster
from cjm_fasthtml_sse.testing import SSEClient

name = os.environ['NAME']
dashboard.worker_name = cluster.worker_name = lambda: name
rand, numbers = random.Random(name), itertools.count()
todos, votes, mail = ['tea'], dict(tea=1, coffee=1), {}
sse = SSEBroadcastManager(backend=os.environ['DB'], private='user:{who}:**')


class Reasons(Counter):
    def __setitem__(self, reason, n):
        if reason != 'other client' and not reason.startswith('layer'): super().__setitem__(reason, n)

sse._hub.direct_reasons, sse._hub.paths = Reasons(), Reasons()


@sse.live('todo:*')
def todo_list(): return Ul(*map(Li, todos), id='todos')

@sse.live('vote')
def results():
    time.sleep(.006)  # As a query would
    return Ul(*[Li(f'{k}: {n}') for k, n in votes.items()], id='results')

@sse.live('user:{user}:**')
def inbox(user): return Ul(*map(Li, mail.get(user, ['nothing new'])))


async def visitor(secs):
    "Somebody who has the page open for a while"
    reason = rand.choice(['step', 'asked', 'flood'])
    direct = {'SSE-Direct': reason} if rand.random() < .06 else {}
    async with SSEClient(app, f'/?user={next(numbers)}') as page, SSEClient(app, '/events', headers=direct):
        await page.live(todo_list)
        await asyncio.sleep(secs)

async def visitors():
    "The number of them goes up and down"
    going = set()
    for i in itertools.count():
        while len(going) < 45 + 3*min(i, 40)//4 + 8*sin(i/12):
            going.add(task := asyncio.create_task(visitor(rand.uniform(40, 150))))
            task.add_done_callback(going.discard)
        await asyncio.sleep(1)

async def events():
    "Now and then, sometimes many at once"
    while True:
        for _ in range(rand.choice([1, 1, 1, 2, 3, 12])):
            kind = rand.choice(['vote', 'vote', 'vote', 'todo:added', 'chat:said', 'job:progress', 'job:progress', 'user'])
            if kind == 'vote': votes[rand.choice([*votes])] += 1
            if kind == 'todo:added': todos[:] = [*todos[-9:], f'todo {len(todos)}']
            who = rand.randrange(50)
            if kind == 'user': mail[f'{who}'] = [f'message {rand.randrange(100)}']
            await sse.broadcast(f'user:{who}:mail' if kind == 'user' else kind, dict(n=rand.randrange(1000), text='x'*rand.randrange(300)))
        await asyncio.sleep(rand.expovariate(.5))


async def lifespan(app):
    tasks = [asyncio.create_task(o) for o in (visitors(), events())]
    yield
    for o in tasks: o.cancel()

app = FastHTML(secret_key='for pictures', lifespan=lifespan)
dashboard.setup_dashboard(app, sse, authorise=True)

@app.get('/')
def index(user: str): return P('Hello'), todo_list(), results(), inbox(user)

@app.get('/events')
def said(req): return sse.stream(req, events=['chat:*', 'job:*'])
