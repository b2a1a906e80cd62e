"""A browser that shows live elements, in Python: it reads a page, opens the stream of its live elements, and applies what comes to a tree of its own

It knows what goes over the wire and nothing of the library. It is stricter than a browser: changes that do not fit to what they are for are a fault. Changes
from another version than the page shows are skipped; if none that fits has come after `PATIENCE` seconds, it asks for the whole, and counts that.
"""
import asyncio
import json
from contextlib import asynccontextmanager, suppress
from html.parser import HTMLParser

from tests.contract.support import Exchange, Parser, eventually
from tests.contract.visitors import Visitor

LIVE, PATH, PATIENCE = 'sse:live', '/_sse/live', .2
VOID = {*'area base br col embed hr img input link meta source track wbr'.split()}
CLOSED = {'script', 'template', 'noscript', 'style'}


# --- A page as a tree

class Element:
    "An element of the page; its children are elements, and text"
    def __init__(self, tag, attrs=()): self.tag,self.attrs,self.children,self.parent = tag,dict(attrs),[],None

    def append(self, child, at=None):
        if isinstance(child, Element): child.parent = self
        self.children.insert(len(self.children) if at is None else at, child)

    def all(self):
        "This element and all within it"
        yield self
        for o in self.children:
            if isinstance(o, Element): yield from o.all()

    def find(self, tag): return [o for o in self.all() if o.tag==tag]

    @property
    def view(self): return None if 'data-sse-client' in self.attrs else self.attrs.get('data-sse-live')
    @property
    def id(self): return self.attrs.get('id')
    @property
    def text(self): return ''.join(o if isinstance(o, str) else o.text for o in self.children)

    def shown(self):
        "What there is to see: tags, attributes and text, without what binds it to its stream"
        attrs = {k: v for k,v in self.attrs.items() if not k.startswith('data-sse-')}
        return [self.tag, attrs, *(o if isinstance(o, str) else o.shown() for o in self.children)]


class _Reader(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.root = Element('#root')
        self.open = [self.root]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        o = Element(tag, [(k, v or '') for k,v in attrs])
        self.open[-1].append(o)
        if tag not in VOID: self.open.append(o)

    def handle_startendtag(self, tag, attrs): self.open[-1].append(Element(tag, [(k, v or '') for k,v in attrs]))

    def handle_endtag(self, tag):
        if tag in [o.tag for o in self.open]:
            while self.open.pop().tag!=tag: pass

    def handle_data(self, data):
        last = self.open[-1].children
        if last and isinstance(last[-1], str): last[-1] += data
        else: last.append(data)

    def handle_comment(self, data): self.open[-1].append(Element('#comment', dict(data=data)))


def read_html(html): return _Reader(html).root


class Misfit(AssertionError):
    "Changes that do not fit to what the page shows"


class Drawn:
    "One live element of the page, and what its changes do to it"
    def __init__(self, root): self.root,self.taken = root,{}

    def children(self, o):
        "Those which the drawing controls"
        closed = o.tag in CLOSED or o is not self.root and 'data-sse-live' in o.attrs
        return [] if closed else o.children

    def inside(self, o=None):
        o = o or self.root
        yield o
        for child in self.children(o):
            if isinstance(child, Element): yield from self.inside(child)

    def count(self, o): return 1+sum(self.count(c) if isinstance(c, Element) else 1 for c in self.children(o))

    def by_id(self, id):
        found = [o for o in self.inside() if o.id==id]
        if len(found)!=1: raise Misfit(f'{len(found)} elements with the id {id!r}')
        return found[0]

    def at(self, path):
        o = self.root
        for part in path:
            if isinstance(part, str): o = self.taken.get(part) or self.by_id(part)
            else:
                children = self.children(o) if isinstance(o, Element) else []
                if part>=len(children): raise Misfit(f'no child {part} of {o.tag if isinstance(o, Element) else o!r}')
                parent,o = o,children[part]
        return o if isinstance(o, Element) else (parent, path[-1])

    def apply(self, kind, *args): getattr(self, f'do_{kind}')(*args)

    def do_count(self, n):
        if self.count(self.root)!=n: raise Misfit(f'{self.count(self.root)} nodes, not {n}')

    def do_put(self, path, at, html):
        parent,new = self.at(path),read_html(html).children
        if at>len(parent.children): raise Misfit(f'no place {at} of {len(parent.children)}')
        if not new: raise Misfit('nothing to put')
        for i,o in enumerate(new): parent.append(o, at+i)

    def do_drop(self, path, at, n):
        parent = self.at(path)
        if at+n>len(parent.children): raise Misfit(f'no {n} children at {at} of {len(parent.children)}')
        del parent.children[at:at+n]

    def do_take(self, ids):
        for id in ids:
            o = self.by_id(id)
            o.parent.children.remove(o)
            self.taken[id] = o

    def do_move(self, path, what, to):
        parent = self.at(path)
        o = self.taken.pop(what) if isinstance(what, str) else parent.children.pop(what)
        if to>len(parent.children): raise Misfit(f'no place {to} of {len(parent.children)}')
        parent.append(o, to)

    def do_merge(self, path, html):
        o = self.at(path)
        new = read_html(html).children
        if len(new)!=1: raise Misfit(f'{html!r} is not one node')
        if isinstance(o, tuple):
            if not isinstance(new[0], str): raise Misfit(f'{html!r} for a text')
            o[0].children[o[1]] = new[0]
            return
        if not isinstance(new[0], Element) or new[0].tag!=o.tag: raise Misfit(f'{html!r} for a {o.tag}')
        bound = {k: v for k,v in o.attrs.items() if o is self.root and (k=='id' or k.startswith('data-sse-'))}
        o.attrs = {**new[0].attrs, **bound}

    def do_whole(self, html):
        "Slots that are there stay as they are"
        new = [o for o in read_html(html).children if isinstance(o, Element)]
        if len(new)!=1: raise Misfit(f'a whole with {len(new)} elements')
        slots = {o.view: o for o in self.root.all() if o.view and o is not self.root}
        def keep(o):
            o.children = [c if isinstance(c, str) else slots.pop(c.view) if c.view in slots else c for c in o.children]
            for c in o.children:
                if isinstance(c, Element):
                    c.parent = o
                    if not c.view: keep(c)
        keep(new[0])
        old = self.root
        bound = {k: v for k,v in old.attrs.items() if k=='id' or k.startswith('data-sse-')}
        old.tag,old.attrs,old.children = new[0].tag,{**new[0].attrs, **bound},new[0].children
        for c in old.children:
            if isinstance(c, Element): c.parent = old


# --- The browser

class Browser(Visitor):
    "One who shows pages with live elements: its tabs share its cookies"
    def __init__(self, app, ready=lambda: True, **headers):
        super().__init__(app, **headers)
        self.ready = ready  # `ready()`: has the app sent what comes first on each stream?

    async def tab(self, path='/', **kw): return await Tab(self, **kw).load(path)

    @asynccontextmanager
    async def follows(self, path='/', **kw):
        "A tab that is at its stream"
        tab = await self.tab(path, **kw)
        async with tab.following(): yield tab


class Tab:
    "A page and the stream of its live elements"
    def __init__(self, browser, checks=None):
        self.browser,self.checks = browser,checks  # `checks(tab)` is called behind each change
        self.root = self.stream = None
        self.requests,self.updates,self.wholes,self.received,self.refused,self.statuses = 0,[],[],0,set(),[]
        self.last_id,self.after = '',''
        self.faults,self.skipped,self.asked_again = [],{},0

    async def load(self, path='/'):
        "Load a page, without its stream"
        self.path = path
        self.answer = await self.browser.ask(path)
        self.status,self.html = self.answer.status,self.answer.body.decode()
        self.root,self.last_id = read_html(self.html),''
        self.url = next((o.attrs['data-sse-live'] for o in self.root.all() if 'data-sse-client' in o.attrs), PATH)
        self.note_elements()
        cursors = [o.attrs['data-sse-cursor'] for o in self.root.all() if o.attrs.get('data-sse-cursor')]
        self.after = cursors[0] if cursors else ''
        return self

    def note_elements(self):
        self.elements = [o for o in self.root.all() if o.view]
        self.views = {o.view for o in self.elements}
        self.has_slots = any(o is not c for o in self.elements for c in o.all() if c.view)

    def __getitem__(self, name):
        "The live element of this name, or with this id"
        return next(o for o in self.elements if o.id==name or o.view.startswith(name+'['))

    def texts(self, tag='li', of=None): return [o.text for o in (self[of] if of else self.root).find(tag)]

    def body(self):
        "What the page asks for: each view once, with what it shows"
        found = {}
        def walk(o, outer):
            if o.view: found.setdefault(o.view, [o.view, o.attrs.get('data-sse-live-key', ''), o.attrs.get('data-sse-live-version', ''), outer])
            for c in o.children:
                if isinstance(c, Element): walk(c, o.view or outer)
        walk(self.root, None)
        return dict(views=[*found.values()])

    def ask(self, body=None, **headers):
        "The request of its stream"
        self.requests += 1
        seen = {'last-event-id': self.last_id} if self.last_id else {'sse-after': self.after} if self.after else {}
        raw = body if isinstance(body, bytes) else json.dumps(self.body() if body is None else body).encode()
        return Exchange(self.browser.app, 'POST', self.url, self.browser.sends({'content-type': 'application/json', 'sec-fetch-site': 'same-origin'} | seen | headers), raw)

    @asynccontextmanager
    async def following(self):
        "Be at the stream, and come back to it when it ends"
        task = asyncio.create_task(self.keep_following())
        try:
            await eventually(lambda: self.begun and self.browser.ready() or task.done(), lambda: f'the stream begins; {self.statuses}')
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError): await task
        if self.faults: raise self.faults[0]

    begun = False

    async def keep_following(self):
        try:
            while await self.listen_once(): await asyncio.sleep(.03)  # A browser waits before it comes back
        except AssertionError as e: self.faults.append(e)

    async def listen_once(self):
        "One stream, to its end; whether to come back"
        views = self.views-self.refused
        if not views: return False
        parser,ended = Parser(self.last_id),asyncio.Event()
        self.end = ended.set
        self.stream = request = self.ask()
        def heard(data):
            if request.status!=200: return
            self.received += len(data)
            for e in parser.feed(data):
                self.last_id,self.begun = e.id or self.last_id,True
                try:
                    if e.event==LIVE: self.take(json.loads(e.data))
                except Exception as error:  # Not the app's fault: it must not see it
                    self.faults.append(error)
                if self.faults: ended.set()
            if self.views-self.refused!=views: ended.set()
        request.heard = heard
        try:
            request.begin()
            waiting = asyncio.create_task(ended.wait())
            await asyncio.wait({request.task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        finally:
            self.statuses.append(request.status)
            for o in self.skipped.values(): o.cancel()
            self.skipped.clear()
            await request.leave()
        if self.faults: raise AssertionError(f'{self.faults[0]!r}') from self.faults[0]
        return True

    def take(self, entries):
        "Apply what one event says"
        for view,begin,end,changes in entries:
            if end is None:
                assert begin is None and changes==[], (view, begin, changes)
                self.refused.add(view)
                continue
            found = [o for o in self.elements if o.view==view]
            if view in self.skipped and any(o.attrs.get('data-sse-live-version') in (begin, end) or begin is None for o in found): self.skipped.pop(view).cancel()
            if changes and changes[0][0]=='whole': assert begin is None and len(changes)==1
            for o in found:
                shows = o.attrs.get('data-sse-live-version')
                if shows==end: continue
                if begin not in (None, shows):
                    if view not in self.skipped: self.skipped[view] = asyncio.get_running_loop().call_later(PATIENCE, self.ask_for, view)
                    continue
                drawn = Drawn(o)
                for kind,*args in changes: drawn.apply(kind, *args)
                if self.has_slots or 'data-sse-live' in str(changes): self.note_elements()
                if drawn.taken: raise Misfit(f'taken and not put back: {[*drawn.taken]}')
                o.attrs['data-sse-live-version'] = end
                (self.wholes if begin is None else self.updates).append(view)
        self.begun = True
        if self.checks: self.checks(self)

    def ask_for(self, view):
        "Nothing that fits has come: open the stream anew, and get the whole"
        del self.skipped[view]
        for o in self.elements:
            if o.view==view: o.attrs['data-sse-live-version'] = ''
        self.asked_again += 1
        self.end()

    async def shows(self, wanted, tag='li', of=None):
        "Wait until the texts of these elements are"
        def now(): return self.faults or self.texts(tag, of)==wanted
        await eventually(now, lambda: f'{wanted}, not {self.texts(tag, of)}; {self.statuses}, {self.refused}')
        if self.faults: raise self.faults[0]
