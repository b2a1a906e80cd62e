"Settings for all tests"
import gc
import logging
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, settings

from tests.contract.stores import SQLite, in_thread
from tests.contract.support import Redis

settings.register_profile('patient', deadline=None, suppress_health_check=[HealthCheck.too_slow])  # A busy machine is no failure
settings.load_profile('patient')

SERVERS = {'test_' + o for o in '''all_goes_wrong bench client_script compress dashboard demo exact_pages fanout full_queues hostile_clients live_queries live_races model one_commit over_backends over_redis parked people proxies
    reading redis reference servers several_workers silence_is_mended soak stopping_servers testing tools transactions transport tutorial_races watch watched_tables wheel wire'''.split()}


def tier(item):
    "Where a test belongs: `browser`, `integration` if it starts a server, writes to the disk or takes its time, else `unit`"
    if 'browser' in item.path.parts or item.get_closest_marker('browser'): return 'browser'
    mixed = item.get_closest_marker('redis') or {'serve', 'run', 'running', 'create_subprocess_exec'} & {*item.function.__code__.co_names}
    return 'integration' if mixed or 'sqlite' in item.nodeid or item.path.stem in SERVERS else 'unit'


def pytest_collection_modifyitems(items):
    "Browser tests run last: Playwright's synchronous browser keeps a loop running in the main thread, and no async test can start its own beside it"
    for item in items: item.add_marker(tier(item))
    items.sort(key=lambda item: 'browser' in item.path.parts)


def pytest_collection_finish(session):
    "What was imported stays: tests that collect garbage need not look through it each time"
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def loggers_as_they_were():
    "What a test, or a server in its process, did to the loggers must not reach the next test"
    logging.disable(logging.NOTSET)
    for name in [n for n in logging.root.manager.loggerDict if n.startswith('cjm_fasthtml_sse')] + ['cjm_fasthtml_sse']:
        logger = logging.getLogger(name)
        logger.disabled,logger.propagate = False,True
        logger.setLevel(logging.NOTSET)
    yield


@pytest.fixture
def abandoned_loops():
    "A loop is closed over its tasks, which is the fault that is staged: Python complains of it in this test, not in another one"
    yield
    gc.collect()


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


@pytest.fixture
def whole_file(tmp_path):
    "The path of an SQLite file that does not exist yet, and is whole in the end"
    res = tmp_path/'app.db'
    yield res
    if not res.exists(): return
    code = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('pragma integrity_check').fetchall())"
    assert subprocess.run([sys.executable, '-c', code, res], capture_output=True, text=True, check=True).stdout.strip() == "[('ok',)]"


@pytest.fixture
def path(whole_file): return whole_file


@pytest.fixture(params=SQLite.drivers)
def library(request): return request.param


@pytest.fixture(params=['with', 'async with'])
def way(request):
    "`await way(manager, f)` calls `f(db)` in a block, in a thread or on the event loop"
    def blocking(manager, f):
        with manager.transaction() as db: return f(db)
    async def on_loop(manager, f):
        async with manager.transaction() as db: return f(db)
    async def in_a_thread(manager, f): return await in_thread(blocking, manager, f)
    return on_loop if request.param == 'async with' else in_a_thread
