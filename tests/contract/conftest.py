"What each contract test may be run over: stores, sinks and renderers"
import pytest

from tests.contract.stores import STORES, each
from tests.contract.support import RENDER, SINKS


def pytest_collection_modifyitems(items):
    "A queue renders nothing; what a file carries is heard by one sink, as all of them stand behind the backend"
    def makes_sense(item):
        params = getattr(item, 'callspec', None) and item.callspec.params or {}
        if params.get('backend') == ('sqlite', None) and params.get('sink', 'stream') != 'stream': return False
        return params.get('sink') != 'queue' or params.get('render', 'none') == 'none'
    items[:] = [o for o in items if makes_sense(o)]


def pytest_generate_tests(metafunc):
    "A test that takes `store` runs over each that can do what it needs: `@pytest.mark.needs('transaction')`"
    if 'store' not in metafunc.fixturenames: return
    needs = [o for mark in metafunc.definition.iter_markers('needs') for o in mark.args]
    metafunc.parametrize('store', each(*needs or ['processes'], drivers={*needs} & {'transaction', 'reading', 'watch'}), indirect=True)


@pytest.fixture
def store(request):
    "A place that nobody has used: see `Store`"
    name,driver = request.param
    return STORES[name].begin(request, driver)


@pytest.fixture(params=each())
def backend(request):
    "For `SSEBroadcastManager(backend=backend)`: none, or the address of a place that nobody has used"
    return STORES[request.param[0]].begin(request).address


@pytest.fixture(params=SINKS)
def sink(request):
    "Where a client listens: a `queue` that an app reads by hand, a `stream`, or a `channel` of a browser's carrier"
    return request.param


@pytest.fixture(params=RENDER)
def render(request):
    "How a message becomes what is sent: a plain function, an async one, or none: JSON under the event's own name"
    return RENDER[request.param]
