"A browser as the multiplexer sees one: it gets tickets, opens and closes channels, and reads the carriers that it has"
import asyncio
import json
import socket
import struct
from contextlib import suppress
from urllib.parse import unquote

import httpx

from cjm_fasthtml_sse.multiplex.endpoint import PATH
from cjm_fasthtml_sse.multiplex.protocol import CONTROL
from cjm_fasthtml_sse.visitor import Visitors
from cjm_fasthtml_sse.engine.wire import Parser
from tests.contract.support import BOUND, eventually


class Channel:
    "What has come for one stream"
    def __init__(self, number, path, carrier=None):
        self.number,self.path,self.carrier = number,path,carrier
        self.words,self.body,self.events,self.parser = [],b'',[],Parser()

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
    def last_id(self): return self.parser.last_event_id
    def retries(self): return [e.retry for e in self.events if e.retry]

    async def until(self, condition, what=''):
        try: await eventually(lambda: condition(self), what)
        except AssertionError as e: raise AssertionError(f'{e} {self.path}: {self.words}, {len(self.events)} events, {str(self.events[-2:])[:300]}') from None
    async def says(self, text): await self.until(lambda o: any(text in d for d in o.data), repr(text))


class Carrier:
    def __init__(self, id, tag, response): self.id,self.tag,self.response,self.over,self.size = id,tag,response,False,0


class Browser:
    """One browser; `async with` ends what it has open

    Its tickets are made with `secret`, so that it has one for each address, also for those that never were a stream. Without a secret it asks for them, as the client does.
    """
    def __init__(self, url, cookies=None, headers=None, rcvbuf=None, pause=0, secret='test', **transport):
        options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)] if rcvbuf else []
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0 if rcvbuf else 5)
        self.client = httpx.AsyncClient(base_url=url, cookies=cookies, timeout=BOUND, transport=httpx.AsyncHTTPTransport(limits=limits, socket_options=options, **transport))
        base = self.client.base_url
        self.headers = {'Origin': f'{base.scheme}://{base.netloc.decode()}', 'Content-Type': 'application/json', 'SSE-Mux': '2', 'Sec-Fetch-Site': 'same-origin', **(headers or {})}
        self.carriers,self.channels,self.last,self.tasks,self.number = {},{},None,[],0
        self.visitors,self.tag,self.tickets = Visitors(secret) if secret else None,'',{}
        self.reads,self.pause = asyncio.Event(),pause  # Seconds that it takes over each 16 KB
        self.reads.set()

    async def __aenter__(self): return self
    async def __aexit__(self, *exc):
        for t in self.tasks: t.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.client.aclose()

    async def post(self, open=(), close=(), become=True, carriers=None, path=PATH, raw=None, **headers):
        "One order; the response, of which a carrier's is read on"
        order = dict(carriers=[*self.carriers] if carriers is None else carriers, open=[*open], close=[*close], become=become)
        content = raw if raw is not None else json.dumps(order)
        request = self.client.build_request('POST', path, content=content, headers={**self.headers, **{k.replace('_', '-'): v for k,v in headers.items()}})
        self.last = response = await self.client.send(request, stream=True)
        self.tag = response.headers.get('sse-visitor', self.tag)
        if response.status_code!=200:
            await response.aread()
            return response
        carrier = Carrier(response.headers['sse-carrier'], response.headers['sse-visitor'], response)
        self.carriers[carrier.id] = carrier
        self.tasks.append(asyncio.create_task(self.read(carrier)))
        return response

    async def read(self, carrier):
        rest = b''
        with suppress(httpx.HTTPError):
            async for data in carrier.response.aiter_raw():
                rest += data
                carrier.size += len(data)
                while len(rest)>=8 and len(rest)>=8+(size := struct.unpack('>II', rest[:8])[1]):
                    number,body,rest = struct.unpack('>I', rest[:4])[0],rest[8:8+size],rest[8+size:]
                    self.frame(number, body)
                if self.pause: await asyncio.sleep(self.pause*len(data)/16384)
                await self.reads.wait()
        carrier.over = True
        self.carriers.pop(carrier.id, None)
        await carrier.response.aclose()

    def frame(self, number, body):
        if (channel := self.channels.get(number%CONTROL)) is None: return
        if number>=CONTROL: return channel.words.append(json.loads(body))
        channel.body += body
        channel.events += channel.parser.feed(body)

    async def ticket(self, url):
        "A ticket for an address, empty where there is none to be had"
        if self.visitors is None:
            path = url.partition('?')[0]
            if path not in self.tickets:
                async with self.client.stream('GET', url, headers={'SSE-Ticket': '1', 'Accept': 'text/event-stream'}, follow_redirects=True) as r:
                    if 'sse-ticket' not in r.headers: return ''
                    self.tickets[path],self.tag = r.headers['sse-ticket'],r.headers['sse-visitor']
            return self.tickets[path]
        return self.visitors.tickets.issue(self.tag, unquote(url.partition('?')[0])) if isinstance(url, str) and self.tag else ''

    async def entry(self, url, number=1, last=''):
        "A channel, as an order has it"
        return [number, url, await self.ticket(url), last, '']

    async def whoami(self, **kw):
        "Learn the tag of now"
        self.tag = ''
        await self.post(carriers=[], **{k: v for k,v in kw.items() if k not in ('become', 'carriers')})

    async def open(self, *paths, last='', **kw):
        "Channels to `paths`; with one path, its channel"
        new = []
        for p in paths:
            self.number += 1
            new.append(self.channels.setdefault(self.number, Channel(self.number, p)))
        if self.visitors is not None: await self.whoami(**kw)
        response = await self.post([await self.entry(o.path, o.number, last) for o in new], **kw)
        for o in new: o.carrier = response.headers.get('sse-carrier')
        return new[0] if len(new)==1 else new

    async def close(self, *channels): return await self.post(close=[o.number for o in channels])

    async def hang_up(self):
        "Close all carriers"
        for o in [*self.carriers.values()]: await o.response.aclose()
        await eventually(lambda: not self.carriers, 'the carriers close')
