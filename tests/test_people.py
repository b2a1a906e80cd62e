"The recipe for who is online, over several processes that share a Redis"
import signal
from contextlib import ExitStack

import pytest

from tests.contract.servers import Stream, running, uvicorn
from tests.contract.support import Redis


def says(stream, n):
    "Read until the page would show that `n` are here, after whatever it showed before"
    def last(events): return next((e.data for e in reversed(events) if 'here' in e.data), '')
    with_timeout = stream.sock.gettimeout()
    stream.sock.settimeout(30)
    stream.until(lambda events: f'>{n} here<' in last(events), 30)
    stream.sock.settimeout(with_timeout)


@pytest.mark.redis
@pytest.mark.skipif(not Redis.binary, reason='needs redis-server or valkey-server')
def test_people_are_counted_over_processes(tmp_path):
    "Each shows all, whoever comes, goes, or dies without a word"
    with ExitStack() as stack:
        redis = Redis(tmp_path)
        stack.callback(redis.kill)
        redis.start()
        one,two = [stack.enter_context(running(uvicorn('people:app'), tmp_path/f'{n}.log', env={'REDIS': redis.url()})) for n in range(2)]
        ann = stack.enter_context(Stream(one, '/events?who=ann'))
        says(ann, 1)
        with Stream(two, '/events?who=ben') as ben:
            says(ann, 2)
            says(ben, 2)
            with Stream(two, '/events?who=ann'): says(ben, 2)
        says(ann, 1)
        ben = stack.enter_context(Stream(two, '/events?who=ben'))
        says(ann, 2)
        two.signal(signal.SIGKILL)
        says(ann, 1)
