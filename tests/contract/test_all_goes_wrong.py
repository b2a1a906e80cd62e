"""Two workers on one Redis or SQLite file, 300 clients that stall, die and come back; a worker is killed, Redis restarted, the workers replaced

Nobody loses a message that the log holds, hears one twice or out of order, or is told of a gap that is none; what was acknowledged is in
the log. `make chaos` is the long run. The tests behind it show that its judge sees what it should.
"""
import asyncio
from collections import Counter
from importlib.util import find_spec
from random import Random
from types import SimpleNamespace

import pytest

from tests.contract.chaos import ENOUGH, STORES, Client, Stop, disagreement, judge, main
from tests.contract.support import BOUND, Redis
from tests.contract.support import turns as all_ready

pytestmark = [pytest.mark.redis, pytest.mark.skipif(not Redis.binary, reason='needs redis-server or valkey-server')]


@pytest.mark.timeout(300)
@pytest.mark.parametrize('kind', [o if o!='fastlite' else pytest.param(o, marks=pytest.mark.skipif(not find_spec(o), reason='needs fastlite'))
                                   for o in STORES])
def test_nothing_is_lost_or_doubled(kind):
    report = main(kind, 6, seed=1, clients=150)
    said = '\n'.join([*report['wrong'], 'The server wrote:', report['output']])
    assert not report['wrong'] and not report['tracebacks'], said
    assert report['gaps']==0, 'the log holds far more than is sent'
    assert report['kill']==report['restart_redis']==report['rolling']==1
    if kind != 'redis': assert report['rows'] > 30 and report['rolled_back'] > 5, 'hardly anything was in transactions'
    assert report['deliveries'] > report['clients']*ENOUGH, f'hardly anything happened: {report}'


@pytest.mark.parametrize('seen, gaps, log, wrong', [
    ('12345', [], 1, None),
    ('1245', [], 1, 'lost 1 of 5'),
    ('123345', [], 1, 'twice'),
    ('13245', [], 1, 'out of order'),
    ('145', [('1', '3')], 1, None),
    ('15', [('1', '3')], 1, 'lost 1 of 3'),
    ('145', [('1', '3')], 2, 'told of 1 gaps where nothing was lost'),
    ('12345', [('5', '5')], 1, 'told of 1 gaps where nothing was lost')])
def test_the_judge_sees_what_is_wrong(seen, gaps, log, wrong):
    def id(n): return f'e:{n}-0'
    client = Client(0, None, {})
    client.first = id(0)
    client.seen = [(id(n), int(n)) for n in seen]
    client.gaps = [(id(a), id(b)) for a, b in gaps]
    found = judge([client], [(f'{n}-0', n) for n in range(1, 6)], [], log)
    assert wrong in found[0] if wrong else not found, found


def test_the_judge_misses_what_was_acknowledged_and_is_not_there():
    assert judge([], [('1-0', 1)], [1, 2])==['1 messages were acknowledged and are not in the log, the first is 2']


@pytest.mark.parametrize('rows, numbers, wrong', [
    ([5, 16], [1, 5, 16], []), ([5, 6], [5], ['1 rows were committed, and nobody was told, the first is 6']),
    ([], [7, 5], ['2 messages are about rows that are not there, the first is 5']),
    ([19], [19], ['1 messages were rolled back, and sent, the first is 19'])])
def test_rows_and_messages_agree(rows, numbers, wrong):
    assert disagreement(rows, numbers)==wrong


@pytest.mark.parametrize('turns', range(4))
def test_a_client_ends_with_the_run_whatever_it_reads_in_that_moment(monkeypatch, turns):
    "`asyncio.wait_for` forgot, up to Python 3.11, a cancellation that met what it waited for, and the client read on for ever"
    async def run():
        reader,asked = asyncio.StreamReader(),asyncio.Event()
        async def open_connection(*args, **kw): return reader,SimpleNamespace(write=lambda data: asked.set(), close=lambda: None)
        monkeypatch.setattr(asyncio, 'open_connection', open_connection)
        stop = Stop()
        life = asyncio.create_task(Client(0, Random(1), Counter()).live(stop))
        await asked.wait()
        await all_ready()
        reader.feed_data(b': heartbeat\n\n')
        for _ in range(turns): await asyncio.sleep(0)  # Somewhere between the arrival and the client's turn
        stop.set()
        life.cancel()
        done,_ = await asyncio.wait([life], timeout=BOUND)
        assert done, 'the client reads on'
    asyncio.run(run())
