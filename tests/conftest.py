"Settings for all tests"
import logging

import pytest

from tests.contract.support import Redis


def pytest_collection_modifyitems(items):
    "Browser tests run last: Playwright's synchronous browser keeps a loop running in the main thread, and no async test can start its own beside it"
    def in_browser(item): return 'browser' in item.path.parts
    items.sort(key=in_browser)
    for item in filter(in_browser, items): item.add_marker(pytest.mark.browser)


@pytest.fixture(autouse=True)
def loggers_as_they_were():
    "What a test, or a server in its process, did to the loggers must not reach the next test"
    logging.disable(logging.NOTSET)
    for name in [n for n in logging.root.manager.loggerDict if n.startswith('cjm_fasthtml_sse')] + ['cjm_fasthtml_sse']:
        logger = logging.getLogger(name)
        logger.disabled,logger.propagate = False,True
        logger.setLevel(logging.NOTSET)
    yield


@pytest.fixture(scope='session')
def playwright():
    "One for all tests in browsers: a second one could not start in this thread"
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p: yield p


@pytest.fixture(scope='session')
def redis_server(tmp_path_factory):
    "One Redis for all; each test has a database of its own"
    if not Redis.binary: pytest.skip('needs redis-server or valkey-server')
    server = Redis(tmp_path_factory.mktemp('redis')).start()
    yield server
    server.kill()


@pytest.fixture
def own_redis(tmp_path):
    "A Redis that the test may kill: `own_redis(*args)` starts it"
    if not Redis.binary: pytest.skip('needs redis-server or valkey-server')
    found = []
    def start(*args):
        folder = tmp_path/f'redis{len(found)}'
        folder.mkdir()
        found.append(Redis(folder, *args))
        return found[-1].start()
    yield start
    for o in found: o.kill()


@pytest.fixture
def shared(redis_server):
    "The Redis of all tests, emptied"
    redis_server.client.flushall()
    return redis_server
