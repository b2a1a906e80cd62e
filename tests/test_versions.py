"Processes of two versions side by side, as in a rolling deploy: what one writes, the other reads or leaves out"
import pytest

from cjm_fasthtml_sse.backends.memory import MemoryBackend
from cjm_fasthtml_sse.core import SSEBroadcastManager
from tests.contract.support import client, eventually


class TestCommands:
    "Among the managers on one backend"

    @pytest.mark.parametrize('fields', [dict(disconnect='ann'), dict(command='disconnect', value='ann', v=1)],
        ids=['yesterday', 'today'])
    async def test_both_versions_disconnect(self, fields, caplog):
        backend = MemoryBackend()
        manager = SSEBroadcastManager(backend=backend)
        async with client('stream', manager, user='ann') as ann, client('stream', manager, user='bob'):
            assert await backend.publish(fields)==1
            await ann.ends()
            assert manager.present(0)==dict(bob=1) and not caplog.records

    async def test_unknown_ones_are_ignored(self, caplog):
        "With one line in the log, however many come"
        backend = MemoryBackend()
        manager = SSEBroadcastManager(backend=backend)
        async with client('stream', manager, user='ann') as ann:
            for fields in dict(command='dance', v=1), dict(command='disconnect', value='ann', v=2), dict(later='ann'), {}:
                assert await backend.publish(fields)==0
            await manager.broadcast('n', 1)
            assert await ann.next()==('n', 1)
        assert ['is ignored' in r.message for r in caplog.records]==[True]

    @pytest.mark.parametrize('fields', [dict(presence='a:1'), dict(command='presence', value='a:1', v=1)],
        ids=['yesterday', 'today'])
    async def test_both_versions_report_changed_users(self, fields):
        backend,seen = MemoryBackend(),[]
        manager = SSEBroadcastManager(backend=backend)
        async with client('stream', manager, user='ann'):
            manager.on_presence(seen.append)
            await backend.publish(fields)
            await eventually(lambda: seen==[dict(ann=1)], 'the hooks are called')


class TestReports:
    "Of processes"

    async def test_both_versions_are_added_up(self, caplog):
        class Backend(MemoryBackend):
            async def poll_workers(self):
                mine, = await super().poll_workers()
                old = {k: v for k,v in mine.items() if k not in ('v', 'worker', 'direct')}
                return [mine, old, {**mine, 'v': 2}, {**mine, 'v': None}]
        manager = SSEBroadcastManager(backend=Backend())
        await manager.register_connection()
        for _ in range(2):
            found = await manager.cluster_stats()
            assert (found['workers'], found['connections'])==(2, 2)
        assert ['is ignored' in r.message for r in caplog.records]==[True]
