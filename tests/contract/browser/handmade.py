"A FastHTML app in a thread whose streams a test writes by hand, and a proxy that can go silent"
import asyncio
import re
import socket
import threading
import time
from functools import partial
from pathlib import Path

import uvicorn
from fasthtml.common import FastHTML, Meta, Script
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

ASSETS = Path(__file__).parents[3]/'.assets'/'node_modules'
SCRIPTS = {'htmx.js': 'htmx.org/dist/htmx.js', 'sse.js': 'htmx-ext-sse/dist/sse.min.js',
           'htmx4.js': 'htmx4/dist/htmx.min.js', 'hx-sse.js': 'htmx4/dist/ext/hx-sse.min.js',
           'htmx4-0.js': 'htmx4-0/dist/htmx.min.js', 'hx-sse-0.js': 'htmx4-0/dist/ext/hx-sse.min.js', 'hx-history-cache.js': 'htmx4/dist/ext/hx-history-cache.min.js', 'idiomorph.js': 'idiomorph/dist/idiomorph.min.js'}


def HTMX2(): return [Script(src='/assets/htmx.js'), Script(src='/assets/sse.js')]
def HTMX4(): return [Script(src='/assets/htmx4.js'), Script(src='/assets/hx-sse.js')]
# FastHTML writes `-` where htmx 4 has `:`
def HTMX4_0(): return [Meta(name='htmx-config', content='{"metaCharacter": "-"}'), Script(src='/assets/htmx4-0.js'), Script(src='/assets/hx-sse-0.js')]
MAJORS = {'2.0.7': HTMX2, '4.0.0': HTMX4_0, '4.0.1': HTMX4}


class Loop:
    "An event loop in a thread"
    def __init__(self):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, coro, secs=30): return asyncio.run_coroutine_threadsafe(coro, self.loop).result(secs)


class Server(uvicorn.Server):
    "One that does not look ten times a second whether it should end: it ends when it is told to"
    def __init__(self, config):
        super().__init__(config)
        self.end = asyncio.Event()

    async def main_loop(self):
        await self.on_tick(0)
        await self.end.wait()

    async def shutdown(self, sockets=None):
        "As if the process were gone: connections that are kept alive too"
        for o in [*self.servers, *(sockets or [])]: o.close()
        for o in list(self.server_state.connections): o.shutdown()
        await asyncio.sleep(.02)  # What is being sent gets out
        for o in list(self.server_state.connections): o.transport.abort()


class Stream:
    "One connection that is open"
    def __init__(self, path, last_event_id): self.path,self.last_event_id,self.queue = path,last_event_id,asyncio.Queue()


class Opened(StreamingResponse):
    "A stream, and what is to be done once it is over, however that comes"
    def __init__(self, frames, over, headers):
        super().__init__(frames, headers=headers, media_type='text/event-stream')
        self.over = over

    async def __call__(self, scope, receive, send):
        try: await super().__call__(scope, receive, send)
        finally: self.over()


class Counting:
    "Knows the connections on which streams come, as the server sees them: those that are open, and how many there were"
    def __init__(self, app): self.app,self.open,self.begun = app,[],0

    async def __call__(self, scope, receive, send):
        long = []
        def _send(message):
            if message['type'] == 'http.response.start':
                kinds = [v.split(b';')[0] for k,v in message['headers'] if k == b'content-type']
                long[:] = [scope['path'] for o in kinds if o in (b'text/event-stream', b'application/octet-stream')]
                self.open += long
                self.begun += len(long)
            return send(message)
        try: await self.app(scope, receive, _send)
        finally:
            for o in long: self.open.remove(o)


class Site:
    "The app, its pages and its streams. Everything a test does to a stream goes through here, from the test's own thread"
    def __init__(self, loop, hdrs=None):
        self.loop = loop
        self.pages = {}        # path to a function that gives the page's content
        self.answers = {}      # path to a function of the number of the request that gives a response instead of a stream, or None
        self.opening = {}      # path to what a stream sends first
        self.log = []          # (id, frame) of all that was published
        self.heartbeat = {}    # path to the seconds between two heartbeats
        self.greeting = {}     # path to the header `SSE-Stream` of its streams
        self.requests = []     # (path, last event id) of every request for a stream
        self.tickets = []      # path of every request for a ticket that a stream has answered
        self.open,self.most = [],{}  # Streams that are open; path to the most of them at a time
        hdrs = HTMX2() if hdrs is None else hdrs
        routes = [Route('/assets/{name}', self.serve_asset), Route('/stream/{name}', self.serve_stream), Route('/raw/{name}', self.serve_raw)]
        self.app = FastHTML(routes=routes, hdrs=hdrs, default_hdrs=False, secret_key='test')
        self.app.route('/pages/{name}')(self.serve_page)
        self.served = Counting(self.app)
        self.hosts = ['127.0.0.1']  # More of them from the next start on: a browser has six connections to each
        self.server,self.port = None,0

    def serve_page(self, name: str): return self.pages[name]()
    async def serve_asset(self, req): return FileResponse(ASSETS/SCRIPTS[req.path_params['name']], media_type='text/javascript')
    async def unread_frames(self):
        yield ': hello\n\n'
        await asyncio.Event().wait()

    async def serve_raw(self, req): return Response(self.pages[req.path_params['name']](), media_type='text/event-stream')

    async def serve_stream(self, req):
        path = req.path_params['name']
        stream = Stream(path, req.headers.get('last-event-id', ''))
        self.requests.append((path, stream.last_event_id))
        answer = self.answers.get(path)
        if answer and (response := answer(sum(p == path for p,_ in self.requests))): return response
        if 'sse-ticket' in req.headers:
            # The client drops this response unread. What it asks for next is the stream
            self.requests.pop()
            self.tickets.append(path)
            return StreamingResponse(self.unread_frames(), media_type='text/event-stream')
        # All this before the browser hears of its connection, which a test may count then
        self.open.append(stream)
        self.most[path] = max(self.most.get(path, 0), self.count(path))
        ids = [i for i,_ in self.log]
        after = ids.index(stream.last_event_id)+1 if stream.last_event_id in ids else len(ids)
        missed = self.log[after:]  # What is published from here on comes by the queue
        async def frames():
            yield self.opening.get(path, ': hello\n\n' if path in self.heartbeat else '')
            for _,frame in missed: yield frame
            while True:
                try: frame = await asyncio.wait_for(stream.queue.get(), self.heartbeat.get(path))
                except TimeoutError: frame = 'event: sse:heartbeat\ndata: \n\n'
                if frame is None: return
                yield frame
        headers = {'SSE-Stream': self.greeting[path]} if path in self.greeting else None
        return Opened(frames(), partial(self.open.remove, stream), headers)

    def send(self, frame, path='events'):
        "Send `frame` as it stands to the open streams of `path`; `None` ends them"
        async def put(): self.put_frame(frame, path)
        self.loop.run(put())

    def put_frame(self, frame, path):
        for s in [s for s in self.open if s.path == path]: s.queue.put_nowait(frame)

    def publish(self, data, path='events'):
        "Send `data` with the next id, and keep it for those who come back"
        async def put():  # At once, for whoever opens a stream in this moment
            self.log.append((str(len(self.log)+1), frame := f'id: {len(self.log)+1}\ndata: {data}\n\n'))
            self.put_frame(frame, path)
        self.loop.run(put())

    def last_ids(self, path='events'): return [i for p,i in self.requests if p == path]
    def count(self, path='events'): return sum(s.path == path for s in self.open)

    @property
    def connections(self):
        "Connections on which streams come, however many they carry"
        return len(self.served.open)

    def start(self):
        socks = []
        for host in self.hosts:
            socks.append(socket.create_server((host, self.port)))
            self.port = socks[0].getsockname()[1]
        self.server = Server(uvicorn.Config(self.served, log_level='error', lifespan='off', timeout_graceful_shutdown=1))
        self.serving = asyncio.run_coroutine_threadsafe(self.server.serve(socks), self.loop.loop)
        until = time.monotonic()+30
        while not self.server.started:
            if time.monotonic()>until: raise TimeoutError('The server did not start')
            time.sleep(.002)  # uvicorn does not say that it has started
        return self

    def stop(self):
        "End all streams and the server"
        for path in {s.path for s in self.open}: self.send(None, path)
        self.server.should_exit = self.server.force_exit = True
        self.loop.loop.call_soon_threadsafe(self.server.end.set)
        self.serving.result(30)

    def url(self, page): return f'http://127.0.0.1:{self.port}/pages/{page}'


STREAM = re.compile(rb'content-type: (text/event-stream|application/octet-stream)')


class Proxy:
    "Passes bytes on, until it falls silent: then what is open stays open, and nothing comes through any more"
    def __init__(self, loop, port):
        self.loop,self.target = loop,port
        self.pairs = []
        self.refuses = False     # Does it close what comes?
        self.holds_back = False  # Does it collect carriers, with their headers, until they end?
        self.delay = 0.  # Seconds, for what comes from the server, on connections that are made from now on
        self.server = loop.run(asyncio.start_server(self.accept, '127.0.0.1', 0))
        self.port = self.server.sockets[0].getsockname()[1]

    async def accept(self, reader, writer):
        if self.refuses: return writer.close()
        try: up = await asyncio.open_connection('127.0.0.1', self.target)
        except OSError: return writer.close()
        pair = {'silent': False, 'stream': False, 'delay': self.delay, 'writers': (writer, up[1])}
        self.pairs.append(pair)
        await asyncio.gather(self.pass_on(reader, up[1], pair), self.pass_on(up[0], writer, pair, True))

    async def pass_on(self, reader, writer, pair, answers=False):
        held = False
        try:
            while data := await reader.read(65536):
                head = data.partition(b'\r\n\r\n')[0]
                if b'content-length' not in head and STREAM.search(head): pair['stream'] = True
                held = held or self.holds_back and b'content-type: application/octet-stream' in head
                if held: continue
                if pair['stream'] and pair['delay']: await asyncio.sleep(pair['delay'])  # A slow network
                if not pair['silent']: writer.write(data)
                # One that has ended leaves a connection that is kept alive for other requests
                if answers and data.endswith(b'0\r\n\r\n'): pair['stream'] = False
        except OSError: pass
        finally:
            if not pair['silent']: writer.close()

    def fall_silent(self, idle=True):
        "The connections there are, with those that are kept alive for later; new ones work. Without `idle` only streams fall silent, the others are closed"
        async def close(writers): [w.close() for w in writers]
        for pair in self.pairs:
            if idle or pair['stream']: pair['silent'] = True
            else: self.loop.run(close(pair['writers']))

    def cut(self):
        "All connections that there are are gone"
        async def abort():
            for pair in self.pairs:
                for w in pair['writers']: w.transport.abort()
        self.loop.run(abort())

    def stop(self):
        async def close():
            self.server.close()
            for pair in self.pairs:
                for w in pair['writers']: w.close()
        self.loop.run(close())

    def url(self, page): return f'http://127.0.0.1:{self.port}/pages/{page}'
