"Processes of two versions side by side, as in a rolling deploy: commands of either are carried out"
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

    @pytest.mark.parametrize('fields', [dict(presence='a:1'), dict(command='presence', value='a:1', v=1)],
        ids=['yesterday', 'today'])
    async def test_both_versions_report_changed_users(self, fields):
        backend,seen = MemoryBackend(),[]
        manager = SSEBroadcastManager(backend=backend)
        async with client('stream', manager, user='ann'):
            manager.on_presence(seen.append)
            await backend.publish(fields)
            await eventually(lambda: seen==[dict(ann=1)], 'the hooks are called')
