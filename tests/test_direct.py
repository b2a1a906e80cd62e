"What a stream says of itself, and streams on connections of their own, in the details that the contract leaves out"
import json

import pytest
from fasthtml.common import FastHTML

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard
from cjm_fasthtml_sse.progress import setup_progress
from tests.contract.support import OwnBackend, Site, client, eventually, following, listening


def parts(page): return dict(o.split('=') for o in page.exchange.headers['sse-stream'].split(';'))


class TestGreeting:
    async def test_epoch_and_heartbeat(self):
        manager = SSEBroadcastManager(heartbeat=2.5)
        await manager.broadcast('n', 1)
        epoch = manager.cursor.rpartition('-')[0]
        app = Site(manager).app
        setup_progress(app, manager, True)
        for path in '/events', '/stream_job_status?job_id=7':
            for last, gap in (manager.cursor, {}), ('made-up-1', dict(gap='1')), (f'{epoch}-99', dict(gap='1')):
                async with listening(app, path, last_id=last) as page: assert parts(page) == dict(v='1', heartbeat='2.5', epoch=epoch, **gap)

    async def test_ids_that_no_header_takes(self):
        "A backend may have any"
        backend = OwnBackend()
        backend.origin = 'été; v=2\u2028-0'
        async with client('stream', SSEBroadcastManager(backend=backend)) as page: assert parts(page) == dict(v='1', heartbeat='15')


async def test_history_that_is_put_again():
    "It has no id, and does not set the browser back"
    manager = SSEBroadcastManager()
    for text in 'old', 'new': await manager.broadcast('n', text)
    @manager.on_connect
    def _(conn):
        for m in manager.get_history(): conn.put_nowait(m)
    async with following('stream', manager) as page:
        assert await page.data(2) == ['old', 'new'] and {e.id for e in page.messages} == {manager.cursor}


class Reporting(OwnBackend):
    "It has reports of other processes"
    def __init__(self, *others):
        super().__init__()
        self.others = others
    async def poll_workers(self): return [self.describe(), *self.others]


class TestCounts:
    async def test_of_all_processes(self):
        two, one = SSEBroadcastManager(backend=(other := Reporting())), SSEBroadcastManager(backend=(backend := Reporting()))
        for manager, reason in (two, 'flood'), (two, 'step'), (one, 'flood'):
            async with listening(Site(manager).app, **{'SSE-Direct': reason}): pass
        theirs = json.loads(json.dumps(other.describe()))  # As it crosses
        backend.others = theirs, {k: v for k, v in theirs.items() if k != 'direct'}
        total = await one.cluster_stats()
        assert (total['workers'], total['stats']['direct']) == (3, {'flood': 2, 'step': 1})
        assert [o['stats']['direct'] for o in total['each']] == [{'flood': 1}, {'flood': 1, 'step': 1}, {}]
        assert all(type(n) is int for n in theirs['stats'].values())  # What a process of an older version can read

    @pytest.mark.parametrize('direct', [7, 'flood', ['flood'], {'flood': -1}, {'flood': 'x'}, None, [['flood', 1]]])
    async def test_reports_that_no_manager_wrote(self, direct, caplog):
        manager = SSEBroadcastManager(backend=Reporting(dict(worker='x', stats={}, users=[], direct=direct)))
        await manager.open()
        assert (await manager.cluster_stats())['workers'] == 1 and 'is ignored' in caplog.text

    async def test_on_the_dashboard(self):
        "Which is silent without any"
        manager, app = SSEBroadcastManager(), FastHTML(secret_key='test')
        setup_dashboard(app, manager, authorise=True, interval=.05)
        async with listening(app, '/_sse/dashboard/events') as page:
            await page.read()
            assert 'Reason' not in page.messages[-1].data
            async with listening(Site(manager).app, **{'SSE-Direct': 'no ticket'}): pass
            await eventually(lambda: 'no ticket</th>' in page.messages[-1].data, 'it is shown')
        assert manager.stats()['direct'] == {'no ticket': 1}, 'its own stream is not among them'
