"The recipe for who is online, over several processes that share a Redis"
import signal
from contextlib import ExitStack

import pytest

from tests.contract.servers import Stream, running, uvicorn


def says(stream, n):
    "Read until the page would show that `n` are here, after whatever it showed before"
    def last(events): return next((e.data for e in reversed(events) if 'here' in e.data), '')
    stream.until(lambda events: f'>{n} here<' in last(events))


@pytest.mark.redis
def test_people_are_counted_over_processes(tmp_path, shared):
    "Each shows all, whoever comes, goes, or dies without a word"
    with ExitStack() as stack:
        one, two = [stack.enter_context(running(uvicorn('people:app'), tmp_path/f'{n}.log', env={'REDIS': shared.url()})) for n in range(2)]
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
        two.ends()
        shared.client.delete(*shared.client.keys('*:worker:*'))  # Redis would do it ten seconds after the last report
        says(ann, 1)
