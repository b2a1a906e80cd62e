"What a stream says of itself, requests for a ticket alone, and streams on connections of their own"
import asyncio
import json
from collections import Counter

import pytest
from fasthtml.common import FastHTML
from starlette.requests import Request

from cjm_fasthtml_sse.backends.memory import MemoryBackend
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard
from cjm_fasthtml_sse.progress import setup_progress
from cjm_fasthtml_sse.testing import SSEClient
from cjm_fasthtml_sse.updater import SSEElementUpdater
from tests.support import BOUND, eventually, following, tab

TICKET = {'SSE-Ticket': '1'}


def parts(client): return dict(o.split('=') for o in client.headers['sse-stream'].split(';'))


# The greeting

async def test_the_greeting_tells_the_epoch_and_the_heartbeat():
    manager = SSEBroadcastManager(heartbeat=2.5)
    async with following(manager) as one:
        await manager.broadcast('n', 1)
        e = await one.next(BOUND)
        assert parts(one)==dict(v='1', heartbeat='2.5', epoch=e.id.rpartition('-')[0])
    for last,gap in ((e.id, None), ('made-up-1', '1'), (f'{parts(one)["epoch"]}-99', '1')):
        async with following(manager, last_event_id=last) as one: assert parts(one).get('gap')==gap


async def test_a_backend_with_ids_of_its_own_kind():
    class Odd(MemoryBackend):
        def branch(self):
            self._epoch = 'été; v=2\u2028'
            return f'{self._epoch}-{self._seq}'
    async with following(SSEBroadcastManager(backend=Odd())) as one: assert parts(one)==dict(v='1', heartbeat='15')


async def test_what_is_put_by_hand_has_no_id_and_does_not_set_the_browser_back():
    manager = SSEBroadcastManager()
    await manager.broadcast('n', 'old')
    await manager.broadcast('n', 'new')
    @manager.on_connect
    def _(conn):
        for m in manager.get_history(): conn.put_nowait(m)
    async with following(manager) as one:
        assert [(e.data, e.id) for e in [await one.next(BOUND) for _ in range(2)]]==[('"old"', manager.cursor), ('"new"', manager.cursor)]
    assert one.last_event_id==manager.cursor


async def test_a_job_that_is_unknown_here_is_said_to_be():
    manager,app = SSEBroadcastManager(),FastHTML(secret_key='test')
    setup_progress(app, manager, True)
    await manager.broadcast('n', 1)
    for last,gap in ((manager.cursor, None), ('made-up-1', '1')):
        async with SSEClient(app, '/stream_job_status?job_id=7', last_event_id=last) as one: assert parts(one).get('gap')==gap


async def test_a_channel_asks_for_no_ticket():
    manager = SSEBroadcastManager()
    async def app(scope, receive, send): await manager.stream(Request(scope))(scope | {'sse.channel': None}, receive, send)
    async with SSEClient(app, headers=TICKET) as one: assert (await one.next(BOUND, heartbeats=True)).event=='sse:heartbeat'
    assert not manager.stats()['direct']


async def test_all_processes_together():
    one,two = SSEBroadcastManager(),SSEBroadcastManager()
    for m,reason in ((one, 'flood'), (two, 'flood'), (two, 'step')):
        async with following(m, headers={'SSE-Direct': reason}): pass
    theirs = json.loads(json.dumps(two._report()))  # As it crosses
    old = {k: v for k,v in theirs.items() if k!='direct'}
    async def poll_workers(): return [one._report(), theirs, old]
    one._backend.poll_workers = poll_workers
    told = await one.cluster_stats()
    assert (told['workers'], told['stats']['direct'])==(3, {'flood': 2, 'step': 1})
    assert [o['stats']['direct'] for o in told['each']]==[{'flood': 1}, {'flood': 1, 'step': 1}, {}]
    assert all(type(n) is int for n in theirs['stats'].values())  # What a process of an older version can read


@pytest.mark.parametrize('direct', [7, 'flood', ['flood'], {'flood': -1}, {'flood': 'x'}, None, [['flood', 1]]])
async def test_reports_of_direct_openings_that_no_manager_wrote(direct, caplog):
    manager = SSEBroadcastManager()
    async def poll_workers(): return [manager._report(), dict(worker='x', stats={}, users=[], direct=direct)]
    manager._backend.poll_workers = poll_workers
    assert (await manager.cluster_stats())['workers']==1 and 'passed over' in caplog.text


async def test_the_dashboard_shows_them_and_is_silent_without_any():
    manager,app = SSEBroadcastManager(),FastHTML(secret_key='test')
    board = setup_dashboard(app, manager, authorise=True, interval=.05)
    async with SSEClient(app, '/_sse/dashboard/events') as page:
        assert 'Reason' not in (await page.next(BOUND)).data
        async with following(manager, headers={'SSE-Direct': 'no ticket'}): pass
        async with following(manager): pass
        while 'no ticket</th>' not in (html := (await page.next(BOUND)).data): pass
    assert 'other client' in html and manager.stats()['direct']=={'no ticket': 1, 'other client': 1}, 'its own stream is not among them'
    board.observer.has_others,board.observer.workers = True,[dict(worker='a', stats=manager.stats()), dict(worker='b', stats=dict(direct=Counter(flood=2))), dict(worker='old', stats={})]
    board.look()
    assert '<th scope="row">flood</th><td>It says more than its browser takes</td><td class="n">0</td><td class="n">2</td>' in board.html
    assert '>Direct</th></tr>' in board.view.workers() and board.view.workers().count('<td class="n">2</td></tr>')==2  # `a` and `b`
    assert '<td class="n">4</td></tr></tbody>' in board.view.workers()


# Queues are read by the app; connections that are about to open are not

async def test_a_slow_hook_does_not_silence_the_hint(caplog):
    manager,updater = SSEBroadcastManager(),SSEElementUpdater()
    updater.register_handler('todo:added', lambda data: 'added')
    gate = asyncio.Event()
    async with following(manager, render=updater):
        @manager.on_connect
        async def _(conn): await gate.wait()
        async with tab(manager, render=updater):
            await eventually(lambda: manager._opening, 'the hook waits')
            await manager.broadcast('todo:aded', 1)
            assert "did you mean 'todo:added'" in caplog.text
            gate.set()
    caplog.clear()
    async with manager.subscribe(), following(manager, render=updater):
        await manager.broadcast('todo:adedd', 1)
        assert not caplog.text, 'the queue may want it'
