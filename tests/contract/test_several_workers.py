"""Processes come and go: several serve one app, one of them dies, all are replaced, a file is saved

Workers that nothing connects know nothing of one another, and each has its own streams; over each store a broadcast reaches all.
Whoever comes back hears what was missed, or is told of the gap: behind a restart that lost the past a gap, and never a part of it.
"""
import os
import signal
import sys
from contextlib import contextmanager

import httpx
import pytest

from tests.contract.servers import Remote, Stream, running, uvicorn, wait_until
from tests.contract.support import eventually, within
from tests.contract.visitors import Visitor

TWO = uvicorn('main:app', '--workers', '2')


@contextmanager
def two_workers(log, **env):
    "A server of which both workers answer: they start one after the other"
    with running(TWO, log, env=env) as server:
        wait_until(lambda: len({server.get('/stats').json()['pid'] for _ in range(8)})==2, 'both workers answer')
        yield server


@pytest.fixture
def two(tmp_path):
    with two_workers(tmp_path/'log', RETRY='200') as server: yield server


async def on_both(visitor, path, carriers=2):
    "Channels to `path`, until the visitor has so many carriers: which worker gets an order is chance"
    channels = []
    async with within('each worker gets an order'):
        while len(visitor.carriers)<carriers: channels.append(await visitor.opens(path))
    return channels


async def say_on_both(visitor, text, channels):
    "Say something until all have heard it: which worker says it is chance"
    async with within('all hear it'):
        while not all(any(text in d for d in o.data) for o in channels): await visitor.ask(f'/say?text={text}')


class TestOnTheirOwn:
    async def test_a_browser_has_a_carrier_for_each(self, two):
        "And a channel stays where it is; one worker is killed: its channels are lost with it, the others stay"
        async with Visitor(Remote(two)) as visitor:
            channels = await on_both(visitor, '/by_hand')
            homes = {(o.carrier, o.data[0]) for o in channels}
            assert len(homes)==2, 'each carrier is at home in one process'
            dead = channels[0]
            kept = [o for o in channels if o.carrier!=dead.carrier]
            os.kill(int(dead.data[0]), signal.SIGKILL)
            await eventually(lambda: dead.carrier not in visitor.carriers, 'its carrier is over')
            for _ in range(4):
                again = await visitor.opens('/by_hand')
                assert again.data[0]!=dead.data[0]
            await say_on_both(visitor, 'still-there', kept)
            assert not any(o.ended for o in kept)

    async def test_who_logs_in_as_someone_else_is_that_on_both(self, two):
        "The new user has carriers of their own, and neither hears what is the other's"
        async with Visitor(Remote(two)) as visitor:
            await visitor.ask('/login?name=ann')
            anns = await on_both(visitor, '/private')
            await visitor.ask('/login?name=bob')
            visitor.tickets.clear()
            bobs = await on_both(visitor, '/private', 4)
            assert {o.carrier for o in anns}.isdisjoint({o.carrier for o in bobs if o.events})
            await say_on_both(visitor, 'hello', bobs)
            assert not any('bob' in d for o in anns for d in o.data) and not any('ann' in d for o in bobs for d in o.data)

    async def test_who_logs_out_on_one_has_logged_out_on_all(self, two):
        async with Visitor(Remote(two)) as visitor:
            await visitor.ask('/login?name=ann')
            before = {o.carrier for o in await on_both(visitor, '/private')}
            await visitor.ask('/logout')
            for _ in range(8):  # By whichever it meets
                late = await visitor.opens('/private')
                assert late.refused and late.carrier not in before and not late.events

    @pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
    def test_preloaded_workers_number_apart(self, tmp_path):
        "Two that were forked off once the app was made give no id twice, and know what came before them"
        with running([sys.executable, 'preload.py', '{port}'], tmp_path/'log') as server:
            found = {}
            def both_have_said_something():
                server.get('/say', text='x')
                here = server.get('/stats').json()
                if here['broadcasts']>1: found[here['pid']] = here['cursor']  # Of its own, beside the one at import
                return len(found)==2
            wait_until(both_have_said_something, 'both say something')
            assert len({o.rpartition('-')[0] for o in found.values()})==2, found
            assert server.get('/history').json()[0]=='at import'


class TestWithAStore:
    async def test_a_broadcast_reaches_channels_of_both(self, tmp_path, store):
        "And wherever one comes back, it has missed nothing"
        with two_workers(tmp_path/'log', BACKEND=store.address) as server:
            async with Visitor(Remote(server)) as visitor:
                channels = await on_both(visitor, '/events')
                said = [f'"to all {i}"' for i in range(5)]
                for o in said: await visitor.ask(f'/say?text={o[1:-1].replace(" ", "%20")}')
                for o in channels: await o.says('to all 4')
                assert all([e.data for e in o.events if e.event=='said']==said for o in channels)
                ids = [e.id for e in channels[0].events if e.event=='said']
                for _ in range(6):
                    again = await visitor.open('/events', last=ids[1])
                    await again.says('to all 4')
                    assert [e.data for e in again.events if e.event=='said']==said[2:]


@pytest.mark.parametrize('workers', ['1', '2'])
async def test_a_restart_is_a_gap(tmp_path, workers):
    "On streams and channels alike; a carrier of the process that is gone is named in vain"
    command = uvicorn('main:app', '--workers', workers)
    with running(command, tmp_path/'log') as server, Stream(server) as stream:
        async with Visitor(Remote(server)) as visitor:
            channel = await visitor.opens('/events')
            stream.begun()
            server.get('/say', text='hello')
            os.killpg(server.process.pid, signal.SIGKILL)  # With all workers
            await eventually(lambda: not visitor.carriers, 'the carrier is over')
    with running(command, tmp_path/'log2', port=server.port) as server:
        async with Visitor(Remote(server)) as visitor:
            again = await visitor.open('/events', last=channel.last_id, carriers=[channel.carrier])
            await again.until(lambda o: any(e.event=='sse:gap' for e in o.events), 'a gap')
            assert again.carrier!=channel.carrier and not again.data
        with Stream(server, last_event_id=stream.events[-1].id) as back:
            back.until(lambda events: any(e.event=='sse:gap' for e in events))


APP = '''
from fasthtml.common import *
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import oob_swap, setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

app, rt = fast_app({live})
sse = SSEBroadcastManager()
setup_sse(app, sse)

def state(): return oob_swap(Div('the first', id='version'))

@rt
def events(req): return sse.stream(req, snapshot=state)

@rt
def index(): return state(), HTMXSSEConnector.create_sse_element(endpoint=events, hidden=True)

serve({serve})
'''

@pytest.mark.parametrize('live, serve', [('', 'reload=True'), ('live=True', '')], ids=['reload', 'live'])
def test_a_file_is_saved(tmp_path, live, serve):
    "The stream ends politely, which is why the reload need not wait for it; the page comes back and is told what the new process shows"
    main = tmp_path/'main.py'
    main.write_text(APP.format(live=live, serve=serve))
    with running([sys.executable, 'main.py'], tmp_path/'log', cwd=tmp_path) as server:
        with Stream(server) as page:
            page.says('the first')
            main.write_text(main.read_text().replace('the first', 'the second'))
            page.until_end()
        assert page.farewell, server.output
        def shows_the_second():
            try: return 'the second' in server.get('/').text
            except httpx.TransportError: return False
        wait_until(shows_the_second, 'the new process answers')
        with Stream(server, last_event_id=page.events[-1].id) as page: page.says('the second')
        assert 'Traceback' not in server.output
