"What each contract test may be run over: backends, sinks and renderers"
from itertools import count

import pytest

from tests.contract.support import RENDER, SINKS

_databases = count(1)


def pytest_collection_modifyitems(items):
    "A queue renders nothing; what a file carries is heard by one sink, as all of them stand behind the backend"
    def makes_sense(item):
        params = getattr(item, 'callspec', None) and item.callspec.params or {}
        if params.get('backend') == 'sqlite' and params.get('sink', 'stream') != 'stream': return False
        return params.get('sink') != 'queue' or params.get('render', 'none') == 'none'
    items[:] = [o for o in items if makes_sense(o)]


@pytest.fixture(params=['memory', 'sqlite', pytest.param('redis', marks=pytest.mark.redis)])
def backend(request):
    "For `SSEBroadcastManager(backend=backend)`: none, a file, or a database of a real Redis, that nobody has used"
    if request.param == 'memory': return None
    if request.param == 'sqlite': return f"sqlite:///{request.getfixturevalue('tmp_path')}/app.db"
    return request.getfixturevalue('redis_server').url(next(_databases))


@pytest.fixture(params=SINKS)
def sink(request):
    "Where a client listens: a `queue` that an app reads by hand, a `stream`, or a `channel` of a browser's carrier"
    return request.param


@pytest.fixture(params=RENDER)
def render(request):
    "How a message becomes what is sent: a plain function, an async one, or none: JSON under the event's own name"
    return RENDER[request.param]
