"Processes of two versions side by side, as in a rolling deploy: commands of either are carried out"
import pytest

from cjm_fasthtml_sse.backends.memory import MemoryBackend
from cjm_fasthtml_sse.core import SSEBroadcastManager
from tests.contract.support import client, eventually


@pytest.mark.parametrize('command', [lambda name, value: {name: value}, lambda name, value: dict(command=name, value=value, v=1)],
                         ids=['yesterday', 'today'])
async def test_commands(command, caplog):
    "Among the managers on one backend"
    backend, seen = MemoryBackend(), []
    manager = SSEBroadcastManager(backend=backend)
    async with client('stream', manager, user='ann') as ann, client('stream', manager, user='bob'):
        assert await backend.publish(command('disconnect', 'ann')) == 1
        await ann.ends()
        assert manager.present(0) == dict(bob=1)
        manager.on_presence(seen.append)
        await backend.publish(command('presence', 'a:1'))
        await eventually(lambda: seen == [dict(bob=1)], 'the hooks are called')
    assert not [r for r in caplog.records if r.name.startswith('cjm_fasthtml_sse')]
