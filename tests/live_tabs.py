"Pages with live elements, over sockets"
import asyncio
import json
import re

import httpx

from cjm_fasthtml_sse.engine.wire import LIVE, Parser
from tests.contract.live import Drawn, Element, read_html
from tests.contract.servers import NO_TLS
from tests.contract.support import BOUND


def client(server): return httpx.AsyncClient(base_url=server.url, timeout=BOUND, verify=NO_TLS, follow_redirects=True)


class LiveTab:
    "A page, and the stream of its live elements, which comes back when its worker is gone"
    def __init__(self, http, path, name, what):
        self.http, self.path, self.name, self.what, self.root, self.last_id = http, path, name, what, None, ''

    async def load(self):
        html = (await self.http.get(self.path)).raise_for_status().text
        self.root, self.after = read_html(html), re.search("data-sse-cursor='([^']*)'", html)[1]
        return self

    def texts(self, tag): return [o.text for o in self.root.find(tag)] if self.root else []

    @property
    def seen(self):
        "What there is to see, in order: `what` in the texts of its elements, or in the ids of rows"
        found = [o for o in self.root.all() if (o.view or '').startswith(f'{self.name}[')] if self.root else []
        return re.findall(self.what, '\n'.join(t for o in found for t in (o.text, *(f'#{row.id}' for row in o.find('li')))))

    def views(self):
        "View -> what the browser says of it"
        found = {}
        def walk(o, outer):
            if o.view: found[o.view] = [o.view, *(o.attrs[f'data-sse-live-{k}'] for k in ('key', 'version')), outer]
            for c in o.children:
                if isinstance(c, Element): walk(c, o.view or outer)
        walk(self.root, None)
        return found

    async def live(self):
        "Load the page and follow its live elements, until this is cancelled"
        while self.root is None:
            try: await self.load()
            except httpx.HTTPError: await asyncio.sleep(.05)
        while True:
            try: await self.listen()
            except httpx.HTTPError: pass
            await asyncio.sleep(.05)

    async def listen(self):
        "Apply what one stream brings, until there is another list of views, or a change that does not fit"
        parser, views = Parser(self.last_id), self.views()
        where = {'Last-Event-ID': self.last_id} if self.last_id else {'SSE-After': self.after}
        async with self.http.stream('POST', '/_sse/live', json=dict(views=[*views.values()]), headers=where) as answer:
            answer.raise_for_status()
            async for data in answer.aiter_bytes():
                for e in parser.feed(data):
                    self.last_id = e.id or self.last_id
                    if e.event == LIVE and not all(self.take(*o) for o in json.loads(e.data)): return
                if self.views().keys() != views.keys(): return

    def take(self, view, begin, end, changes):
        "Apply changes; `False` if the page shows another version"
        assert end is not None, f'{view} is refused'
        for o in [o for o in self.root.all() if o.view == view]:
            shows = o.attrs['data-sse-live-version']
            if shows == end: continue
            if begin not in (None, shows):
                o.attrs['data-sse-live-version'] = ''
                return False
            drawn = Drawn(o)
            for kind, *args in changes: drawn.apply(kind, *args)
            assert not drawn.taken
            o.attrs['data-sse-live-version'] = end
        return True
