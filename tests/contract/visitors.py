"""A browser with cookies, several carriers, and whatever order it likes to send; and an app for it to visit

It asks for its tickets as the page's client does: with the request for a stream that says `SSE-Ticket: 1`.
"""
import asyncio
import json
from contextlib import asynccontextmanager

from fasthtml.common import EventStream, FastHTML, Response
from starlette.background import BackgroundTask
from starlette.responses import StreamingResponse

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

from tests.contract.support import ABOUT, MUX, MUX_HEADERS, Browser, Exchange, Parser, eventually


class Channel:
    "One stream of a visitor: its events, and the words about it"
    def __init__(self, number, path):
        self.number,self.path,self.carrier,self.words,self.events,self.parser = number,path,'',[],[],Parser()

    def frame(self, body, about):
        if about: self.words.append(json.loads(body))
        else: self.events += self.parser.feed(body.decode(errors='replace').encode())

    def told(self, name): return next((o[name] for o in self.words if name in o), None)
    @property
    def status(self): return self.told('status')
    @property
    def direct(self): return self.told('direct')
    @property
    def refused(self): return bool(self.told('ticket'))
    @property
    def ended(self): return bool(self.told('end'))
    @property
    def data(self): return [e.data for e in self.events if e.data]
    @property
    def last_id(self): return self.parser.last_id
    @property
    def farewell(self): return self.events[-1].retry if self.events and self.events[-1].event=='sse:heartbeat' else None

    async def until(self, condition, what='it'):
        try: await eventually(lambda: condition(self), what)
        except AssertionError as e: raise AssertionError(f'{e} on {self.path}: {self.words}, {len(self.events)} events, {str(self.events[-2:])[:300]}') from None
    async def begins(self): await self.until(lambda o: o.events, 'the first event')
    async def says(self, text): await self.until(lambda o: any(text in d for d in o.data), repr(text))
    async def answered(self):
        await self.until(lambda o: o.events or o.refused or o.direct or o.status not in (None, 200), 'an answer')


def plain(headers):
    "Headers by their plain names; one that is `None` is left out"
    return {k.replace('_', '-').lower(): v for k,v in headers.items()}


class Visitor(Browser):
    "A browser; `async with` ends what it has open"
    def __init__(self, app, mux=MUX, **headers):
        super().__init__(app)
        self.mux,self.jar,self.headers,self.carriers,self.tag,self.number = mux,{},headers,{},'',0

    async def __aenter__(self): return self
    async def __aexit__(self, *exc): await self.hang_up()

    def sends(self, headers=None):
        "All headers of a request: its own, and those that this browser has"
        cookie = {'cookie': '; '.join(f'{k}={v}' for k,v in self.jar.items())} if self.jar else {}
        return {k: v for k,v in (cookie | plain(self.headers) | plain(headers or {})).items() if v is not None}

    def begins(self, path, method='GET', body=b'', **headers):
        "One request, that is not waited for; `keep` takes what its response brings"
        return Exchange(self.app, method, path, self.sends(headers), body)

    def keep(self, response):
        "Keep the cookies of a response, and who it says that the visitor is"
        self.tag = response.headers.get('sse-visitor', self.tag)
        for o in response.cookies:
            name,_,value = o.partition(';')[0].partition('=')
            if value in ('', 'null'): self.jar.pop(name, None)
            else: self.jar[name] = value

    async def ask(self, path, method='GET', body=b'', **headers):
        "One request, to the end of its response"
        async with self.begins(path, method, body, **headers) as r:
            await eventually(lambda: r.over, f'{path} is answered')
        self.keep(r)
        return r

    async def ticket(self, url):
        "A ticket for an address, empty where there is none to be had"
        path = url.partition('?')[0]
        if not self.tickets.get(path):
            async with Exchange(self.app, 'GET', url,
                                self.sends({'SSE-Ticket': '1', 'Accept': 'text/event-stream'})) as r:
                pass
            self.keep(r)
            self.tickets[path] = r.headers.get('sse-ticket', '')
        return self.tickets[path]

    async def order(self, open=(), close=(), carriers=None, become=True, raw=None, **headers):
        "One order; its response, which may be a carrier"
        order = dict(carriers=[*self.carriers] if carriers is None else carriers, open=[*open], close=[*close],
                     become=become)
        sent,rest = Exchange(self.app, 'POST', self.mux, self.sends(MUX_HEADERS | plain(headers)),
                             json.dumps(order).encode() if raw is None else raw),bytearray()
        def heard(data):
            if sent.status!=200: return
            rest.extend(data)
            while len(rest)>=8 and len(rest)>=8+(size := int.from_bytes(rest[4:8])):
                number,body = int.from_bytes(rest[:4]),bytes(rest[8:8+size])
                del rest[:8+size]
                if (channel := self.channels.get(number%ABOUT)) is not None: channel.frame(body, number>=ABOUT)
        sent.heard = heard
        await sent.__aenter__()
        self.keep(sent)
        if sent.status==200:
            self.carriers[id := sent.headers['sse-carrier']] = sent
            sent.task.add_done_callback(lambda _: self.carriers.pop(id, None))
        else: await eventually(lambda: sent.over, 'the order is answered')
        return sent

    async def open(self, *paths, last='', **kw):
        "Channels to `paths`; with one path, its channel"
        new = []
        for path in paths:
            self.number += 1
            new.append(self.channels.setdefault(self.number, Channel(self.number, path)))
        answer = await self.order([[o.number, o.path, await self.ticket(o.path), last, ''] for o in new], **kw)
        for o in new: o.carrier = answer.headers.get('sse-carrier', '')
        return new[0] if len(new)==1 else new

    async def opens(self, path, **kw):
        "A channel that was answered"
        channel = await self.open(path, **kw)
        await channel.answered()
        return channel

    async def close(self, *channels): return await self.order(close=[o.number for o in channels])

    async def hang_up(self):
        "Close all carriers"
        for o in [*self.carriers.values()]: await o.leave()
        self.carriers.clear()


class House:
    "An app to visit: streams of both kinds, a log-in, and doors that not everybody may pass"
    def __init__(self, middleware=(), before=None, manager=None, setup=None, **kw):
        self.app = app = FastHTML(secret_key='test', default_hdrs=False, middleware=[*middleware], before=before, **kw)
        self.manager = manager or SSEBroadcastManager(heartbeat=0, retry=200)
        self.gate,self.seen,self.notes,self.by_hand = asyncio.Event(),[],[],0  # The last: streams by hand that are open
        setup_sse(app, self.manager, **(setup or {}))
        @app.get('/events')
        def events(req):
            self.seen.append(req)
            return self.manager.stream(req, render=lambda m: f'{m["data"]}')
        @app.get('/by_hand')
        def by_hand(n: int=0):
            async def frames():
                self.by_hand += 1
                try:
                    yield f'data: hand {n}\n\n'
                    await self.gate.wait()
                    yield 'data: through\n\n'
                finally: self.by_hand -= 1
            return EventStream(frames())
        @app.get('/login')
        def login(name: str, sess):
            sess['auth'] = name
            return name
        @app.get('/logout')
        def logout(sess):
            sess.clear()
            return 'bye'
        @app.get('/admin')
        def admin(req, sess):
            return self.manager.stream(req) if sess.get('auth')=='root' else Response('no', 403)
        @app.get('/page')
        def page(): return '<p>a page'

    def serve_with_task(self):
        "At `/with_task`, a stream by hand with a background task that takes a moment; gives what is set when the task is through"
        done = asyncio.Event()
        async def behind():
            await asyncio.sleep(.3)  # A moment
            done.set()
        @self.app.get('/with_task')
        def with_task():
            async def frames():
                yield 'data: hi\n\n'
                await self.gate.wait()
            return StreamingResponse(frames(), media_type='text/event-stream', background=BackgroundTask(behind))
        return done

    @asynccontextmanager
    async def visitors(self, n=1, app=None):
        "Visitors; behind them nothing is left"
        all = [Visitor(app or self.app) for _ in range(n)]
        try: yield all[0] if n==1 else all
        finally:
            for o in all: await o.hang_up()
        await eventually(lambda: not (self.manager.connection_count or self.by_hand), 'all that was open ends')
