"""`stream(snapshot=...)`: the state as it is now, for first visits and for gaps that no replay can close

The cursor is taken before the state is read, so what changes meanwhile comes twice rather than never; where state and
message are changed in one step, each thing comes once. A reading of the state makes no broadcast wait, and a crowd
that asks for the very same one shares it. A snapshot that fails is told as a gap. Snapshots and renderers run in
nobody's context.
"""
import asyncio
import contextvars
import random
import re

import pytest
from fasthtml.common import Li

from cjm_fasthtml_sse.core import SSEBroadcastManager
from tests.contract.support import GAP, client, eventually, following, no_task_left, turns, within


def tab(manager, **kw): return client('stream', manager, **kw)

def later(f):
    "`f` as an async function, which gives way once"
    async def _f(*args):
        await asyncio.sleep(0)
        return f(*args)
    return _f


@pytest.fixture
def manager(): return SSEBroadcastManager()

@pytest.fixture(params=['plain', 'async'])
def kind(request):
    "How a snapshot is made"
    return later if request.param=='async' else lambda f: f


class TestState:
    "When it is sent, and what comes behind it"

    async def test_first_visit(self, manager, kind):
        "The state, at its place in the log, and then what changes"
        at = manager.cursor
        async with tab(manager, render=lambda m: f"<p>{m['data']}</p>",
                snapshot=kind(lambda: [Li('a'), Li('b')])) as page:
            state = await page.next()
            assert re.findall('<li>(.*?)</li>', state[1])==['a', 'b'] and page.last_id==at
            await manager.broadcast('x', 'c')
            assert await page.next()==('message', '<p>c</p>') and page.last_id==manager.cursor

    async def test_visit_within_the_log(self, manager):
        "Needs no state"
        at = manager.cursor
        await manager.broadcast('x', 1)
        async with tab(manager, snapshot=lambda: pytest.fail('asked for'), last_id=at) as page:
            assert await page.next()==('x', 1)

    @pytest.mark.parametrize('last_id', ['c0ffee-1', 'nonsense', 'too old'])
    async def test_stands_for_what_no_replay_can_tell(self, last_id):
        "And never half of a replay with it"
        manager = SSEBroadcastManager(replay_size=2)
        last_id = manager.cursor if last_id=='too old' else last_id
        for n in range(5): await manager.broadcast('x', n)
        async with tab(manager, snapshot=lambda: '<p>state</p>', last_id=last_id) as page:
            assert await page.next()==('message', '<p>state</p>')
            await manager.broadcast('x', 'new')
            assert await page.next()==('x', 'new') and page.gaps==0
        assert manager.stats()['gaps']==1

    async def test_empty_state(self, manager):
        "It is told by its id alone"
        await manager.broadcast('x', 1)
        async with tab(manager, snapshot=lambda: None) as page:
            await eventually(lambda: page.last_id==manager.cursor, 'the id comes')
            await manager.broadcast('x', 2)
            assert await page.next()==('x', 2)

    @pytest.mark.parametrize('error', [RuntimeError('snapshot'), asyncio.CancelledError()], ids=['error', 'cancelled'])
    async def test_failure_is_a_gap(self, manager, kind, error, caplog):
        "And the stream goes on; the traceback is in the log"
        def bad(): raise error
        async with tab(manager, snapshot=kind(bad), last_id='elsewhere-1') as page:
            assert await page.next()==(GAP, None)
            await manager.broadcast('x', 1)
            assert await page.next()==('x', 1)
        assert manager.stats()['errors']==1 and caplog.records[0].exc_info

    async def test_text_that_utf8_cannot_carry(self, manager, kind):
        "Half of a surrogate pair, in the state, in what is rendered, in data: it is replaced, and ends no stream"
        broken = 'a\ud83db'
        async with (tab(manager, snapshot=kind(lambda: Li(broken)), render=lambda m: Li(broken)) as html,
                    tab(manager, snapshot=lambda: broken) as plain):
            assert [await p.next() for p in (html, plain)]==[('message', '<li>a\ufffdb</li>'), ('message', 'a\ufffdb')]
            await manager.broadcast('x', dict(name=broken))
            assert [await p.next() for p in (html, plain)]==[('message', '<li>a\ufffdb</li>'),
                ('x', dict(name='a\ufffdb'))]
        assert manager.stats()['errors']==0


class Reading:
    "A state that takes as long as the test wants"
    def __init__(self, error=None): self.begun,self.go,self.count,self.error = asyncio.Event(),asyncio.Event(),0,error
    async def __call__(self):
        self.count += 1
        self.begun.set()
        await self.go.wait()
        if self.error: raise self.error
        return '<p>state</p>'


class TestChangesMeanwhile:
    "While the state is read"

    async def test_rather_twice_than_never(self, manager):
        state = Reading()
        async with tab(manager, snapshot=state) as page:
            async with within('it is read'): await state.begun.wait()
            await manager.broadcast('x', 1)
            state.go.set()
            assert await page.read(2)==[('message', '<p>state</p>'), ('x', 1)]

    @pytest.mark.parametrize('shared', [True, False])
    @pytest.mark.parametrize('writers', [1, 40])
    async def test_each_item_comes_once(self, writers, shared):
        "Each writer changes the state and broadcasts with no `await` in between, while streams open and read the state"
        manager,items,rnd = SSEBroadcastManager(replay_size=5000),[],random.Random(writers)
        def snapshot(): return [Li(i) for i in items]
        def render(m): return Li(m['data']) if m['type']=='added' else None
        async def write():
            while len(items)<250:
                items.append(len(items))
                await manager.broadcast('added', items[-1])
                if rnd.random()<.3: await turns(rnd.randrange(5))
        async def visit():
            await turns(rnd.randrange(60))
            own = snapshot if shared else lambda: snapshot()
            async with tab(manager, render=render, snapshot=own, until='end') as page: await page.ends()
            return [int(i) for e in page.messages for i in re.findall(r'<li>(\d+)</li>', e.data)]
        visits = [asyncio.create_task(visit()) for _ in range(30)]
        await asyncio.gather(*[write() for _ in range(writers)])
        await eventually(lambda: manager.connection_count==30, 'all are open')
        await manager.broadcast('end', None)
        for got in await asyncio.gather(*visits): assert got==[*range(len(items))]

    async def test_no_broadcast_waits(self, manager):
        "For a stream that is still reading its state"
        state = Reading()
        async with following('stream', manager) as other, tab(manager, snapshot=state) as page:
            async with within('it is read'): await state.begun.wait()
            async with within('nobody waits'):
                for n in range(10): await manager.broadcast('x', n)
                assert await other.data(10)==[*range(10)]
            state.go.set()
            assert await page.next()==('message', '<p>state</p>')

    async def test_slow_state_evicts_nobody(self):
        "However far the log has moved on meanwhile"
        manager,state = SSEBroadcastManager(replay_size=5, heartbeat=.04, default_timeout=.01),Reading()
        async with following('stream', manager) as other, tab(manager, snapshot=state) as page:
            for n in range(10): await manager.broadcast('x', n)
            beats = len(other.events)
            await eventually(lambda: len(other.events)>beats+12, 'some heartbeats')
            state.go.set()
            assert await page.next()==('message', '<p>state</p>')
        assert manager.stats()['evicted']==0


class TestSharing:
    "The very same function is read once for a crowd"

    async def test_one_reading(self, manager):
        "And each goes on from where the log stood when it began"
        state = Reading()
        pages = [tab(manager, snapshot=state) for _ in range(5)]
        for n,page in enumerate(pages):
            await page.__aenter__()
            await eventually(lambda: manager.connection_count==n+1)
            if n==2: await manager.broadcast('x', 'news')
        state.go.set()
        for page in pages: assert await page.read(2)==[('message', '<p>state</p>'), ('x', 'news')]
        assert state.count==1
        for page in pages: await page.leave()

    async def test_closures_are_apart(self, manager):
        "What one visitor may see is not shared with another"
        for name in 'ab':
            async with tab(manager, snapshot=lambda: f'<p>{name}</p>') as page:
                assert await page.next()==('message', f'<p>{name}</p>')

    async def test_cheap_state_is_read_again(self, manager):
        "Once something has changed"
        items = []
        def state(): return [Li(o) for o in items] or '<p></p>'
        async with following('stream', manager):
            for n in range(3):
                async with tab(manager, snapshot=state) as page: assert (await page.next())[1].count('<li>')==n
                items.append(n)
                await manager.broadcast('x', n)

    async def test_failure_is_one_error(self, manager):
        "And the next one tries again"
        state = Reading(RuntimeError('no database'))
        async with tab(manager, snapshot=state) as a, tab(manager, snapshot=state) as b:
            async with within('it is read'): await state.begun.wait()
            await turns()
            state.go.set()
            assert [await o.next() for o in (a, b)]==[(GAP, None)]*2
        state.error = None
        async with tab(manager, snapshot=state) as page: assert await page.next()==('message', '<p>state</p>')
        assert manager.stats()['errors']==1 and state.count==2

    async def test_ends_with_the_last_who_waits(self, manager, caplog):
        said = []
        async def state():
            said.append('begun')
            try: await asyncio.Event().wait()
            finally: said.append('closed')
        async with tab(manager, snapshot=state) as a, tab(manager, snapshot=state) as b:
            await eventually(lambda: said and manager.connection_count==2)
            await turns()
            await a.leave()
            assert said==['begun']
            await b.leave()
            await eventually(lambda: said==['begun', 'closed'], 'nobody waits any longer')
        assert not caplog.records and manager.stats()['errors']==0


async def test_nobodys_context(manager, kind):
    "What snapshots and renderers make goes to all, so it can't depend on who broadcasts or connects first"
    who = contextvars.ContextVar('who', default='nobody')
    f,at = kind(lambda *_: f'<p>{who.get()}</p>'),manager.cursor
    who.set('visitor')
    async with tab(manager, render=f, snapshot=f) as page:
        who.set('poster')
        assert await page.next()==('message', '<p>nobody</p>')
        await manager.broadcast('x', 1)
        for c in manager.connections: c.put_nowait(dict(type='hand'))
        assert await page.read(2)==[('message', '<p>nobody</p>')]*2
    async with tab(manager, render=f, last_id=at) as page:
        who.set('another')
        assert await page.next()==('message', '<p>nobody</p>')


async def test_may_leave_meanwhile(manager):
    "Nothing is left of a tab that goes while its state is read"
    async def never(): await asyncio.Event().wait()
    async with no_task_left():
        async with tab(manager, snapshot=never): await eventually(lambda: manager.connection_count==1)
    assert manager.connection_count==manager.stats()['errors']==0
