"The multiplexer on server processes: how they stop, several workers, one that is killed, users that come and go"
import asyncio
import os
import signal
import sys
import time
from contextlib import contextmanager

import pytest
from servers import running, uvicorn

from cjm_fasthtml_sse.multiplex import BUFFER
from tests.mux import Browser
from tests.support import eventually
from tests.test_redis import BINARIES, Redis

BOUND = 20  # Seconds to the end of a process that would else hang
SERVERS = {
    'uvicorn': uvicorn('mux:app'),
    'uvicorn, h11': uvicorn('mux:app', '--http', 'h11', '--loop', 'asyncio'),
    'uvicorn --workers 2': uvicorn('mux:app', '--workers', '2'),
    'hypercorn': [sys.executable, '-m', 'hypercorn', 'mux:app', '--bind', '127.0.0.1:{port}'],
    'granian': [sys.executable, '-m', 'granian', 'mux:app', '--interface', 'asgi', '--host', '127.0.0.1', '--port', '{port}'],
}


async def off_loop(f, *args): return await asyncio.get_running_loop().run_in_executor(None, f, *args)


def calm(server):
    for bad in ('Traceback', 'ERROR', 'CRITICAL', 'Exception', 'Cancel'): assert bad not in server.output, server.output


@contextmanager
def up(tmp_path, *args, **env):
    with running(uvicorn('mux:app', *args), tmp_path/'log', env={'HOME': str(tmp_path), **env}) as server: yield server


async def held(browser): return (await browser.client.get('/held')).json()


@pytest.mark.parametrize('paths', [['/events', '/by_hand'], ['/by_hand'], ['/flood?wait=0.1']], ids=lambda o: ' '.join(o))
@pytest.mark.parametrize('name', SERVERS)
async def test_a_server_with_carriers_stops(name, paths, tmp_path):
    if name=='granian' and 'flood' in paths[0]: pytest.skip('a stream that no manager ends holds granian up, on whatever connection')
    done = tmp_path/'done'
    with running(SERVERS[name], tmp_path/'log', env={'LIFESPAN': str(done), 'HOME': str(tmp_path)}) as server:
        async with Browser(server.url) as browser, Browser(server.url) as idle:
            channels = await browser.open(*paths*3)
            for o in channels: await o.until(lambda o: o.events)
            one = await idle.open('/events')
            await one.until(lambda o: o.events)
            await idle.close(one)  # A carrier without channels
            start = time.monotonic()
            server.signal(signal.SIGTERM)
            for o in channels: await o.until(lambda o: o.ended)
            await off_loop(server.process.wait, BOUND)
            secs = time.monotonic()-start
            await eventually(lambda: not browser.carriers and not idle.carriers, 'the carriers are over')
        assert all(100<=o.retries()[-1]<=300 for o in channels if o.path=='/events'), 'each knows when to come back'
        assert not any(e.event=='sse:close' for o in channels for e in o.events)
        assert secs<BOUND and done.read_text().count('shutdown ran')==(2 if 'workers' in name else 1), server.output
        calm(server)


async def test_a_server_stops_while_nobody_reads(tmp_path):
    with up(tmp_path) as server:
        async with Browser(server.url, rcvbuf=65536) as browser:
            channel = await browser.open('/flood')
            await channel.until(lambda o: o.events)
            browser.reads.clear()
            await asyncio.sleep(.3)
            server.signal(signal.SIGTERM)
            code,secs = await off_loop(server.ends, BOUND)
        assert secs<BOUND
        calm(server)


async def test_a_flood_leaves_room_for_a_quiet_one_and_has_a_bound(tmp_path):
    "A reader that takes some 2 MB a second, and a stream that would give it as much as it can: what the other says is there soon"
    with up(tmp_path) as server:
        async with Browser(server.url, rcvbuf=65536, pause=.005) as browser, Browser(server.url) as other:
            flood,quiet = await browser.open('/flood?kb=64', '/events')
            for o in (flood, quiet): await o.until(lambda o: o.events)
            waits,most = [],0
            for i in range(10):
                start = time.monotonic()
                await other.client.get('/say', params=dict(text=f'word {i}'))
                await quiet.says(f'word {i}')
                waits.append(time.monotonic()-start)
                most = max(most, (await held(other))['waiting'])
            assert most<BUFFER+4*66_000, 'what waits is bounded'
            assert flood.direct or sorted(waits)[5]<1, waits
            before = len(quiet.data)
            assert before==10 and quiet.data==[f'word {i}' for i in range(10)]


async def test_two_workers_know_nothing_of_one_another(tmp_path):
    "A browser has a carrier for each worker that it meets; a channel stays where it is"
    with up(tmp_path, '--workers', '2') as server:
        async with Browser(server.url) as browser:
            pids,channels = set(),[]
            async def one():
                browser.client._transport._pool._max_keepalive_connections = 0  # Each order by a connection of its own
                channel = await browser.open('/by_hand')
                await channel.until(lambda o: o.data)
                channels.append(channel)
                pids.add(channel.data[0])
                return len(pids)==2
            for _ in range(200):
                if await one() and len(channels)>6: break
            assert len(pids)==2 and len(browser.carriers)==2
            assert len({(o.carrier, o.data[0]) for o in channels})==2, 'each carrier is at home in one process'
            # One is killed: its channels are lost with it, the others stay
            dead = channels[0]
            os.kill(int(dead.data[0]), signal.SIGKILL)
            await eventually(lambda: len(browser.carriers)==1, 'its carrier is over')
            lost = [o for o in channels if o.carrier==dead.carrier]
            kept = [o for o in channels if o.carrier!=dead.carrier]
            assert {o.data[0] for o in kept}=={*pids}-{dead.data[0]}
            for o in lost:
                again = await browser.open('/by_hand')
                await again.until(lambda o: o.data)
                assert again.data[0]!=dead.data[0]
            text = 'still there'
            for _ in range(200):  # Whichever worker answers
                await browser.client.get('/say', params=dict(text=text))
                if all(text in o.data for o in kept): break
            for o in kept: await o.says(text)


@pytest.mark.redis
@pytest.mark.skipif(not BINARIES, reason='needs redis-server or valkey-server')
async def test_a_broadcast_reaches_channels_of_both_workers_and_ids_hold_in_both(tmp_path):
    redis = Redis(tmp_path)
    try:
        redis.start()
        with up(tmp_path, '--workers', '2', BACKEND=redis.url) as server:
            async with Browser(server.url) as browser:
                browser.client._transport._pool._max_keepalive_connections = 0
                channels = []
                for _ in range(200):
                    channels.append(await browser.open('/events'))
                    if len(browser.carriers)==2: break
                for o in channels: await o.until(lambda o: o.events)
                for i in range(5): await browser.client.get('/say', params=dict(text=f'to all {i}'))
                for o in channels: await o.says('to all 4')
                assert all(o.data==[f'to all {i}' for i in range(5)] for o in channels)
                seen = [e.id for e in channels[0].events if e.data]
                await browser.close(*channels)
                for _ in range(6):  # Wherever one comes back, it has missed nothing
                    again = await browser.open('/events', last=seen[1])
                    await again.says('to all 4')
                    assert again.data==['to all 2', 'to all 3', 'to all 4']
    finally: redis.kill()


@pytest.mark.parametrize('workers', ['1', '2'])
async def test_a_restart_is_a_gap_as_on_a_connection_and_a_browser_comes_back(tmp_path, workers):
    with up(tmp_path, '--workers', workers) as server:
        async with Browser(server.url) as browser:
            channel = await browser.open('/events')
            await channel.until(lambda o: o.events)
            os.killpg(server.process.pid, signal.SIGKILL)  # With all workers
            await eventually(lambda: not browser.carriers, 'the carrier is over')
    with running(uvicorn('mux:app', '--workers', workers), tmp_path/'log2', port=server.port, env={'HOME': str(tmp_path)}):
        async with Browser(server.url) as browser:
            again = await browser.open('/events', last=channel.last_id, carriers=[channel.carrier])
            await again.until(lambda o: any(e.event=='sse:gap' for e in o.events))
            assert again.carrier!=channel.carrier


async def test_who_logs_in_as_someone_else_gets_a_carrier_of_their_own(tmp_path):
    with up(tmp_path) as server:
        async with Browser(server.url) as browser, Browser(server.url) as other:
            await browser.client.get('/login?name=ann')
            anns = await browser.open('/private')
            await anns.until(lambda o: o.events)
            await browser.client.get('/login?name=bob')
            bobs = await browser.open('/private')  # Names the carrier that it has
            await bobs.until(lambda o: o.events)
            assert bobs.carrier!=anns.carrier and len({o.tag for o in browser.carriers.values()})==2
            await other.client.get('/say?text=hello')
            await bobs.says('bob: hello')
            assert not any('bob' in d for d in anns.data)
            # The browser sees another identity, and drops the carrier of the one before
            await browser.carriers[anns.carrier].response.aclose()
            state = None
            while state is None or state['carriers']>1: state = await held(other)
            assert state['connections']==1


async def test_who_logs_in_as_someone_else_is_that_on_both_workers(tmp_path):
    with up(tmp_path, '--workers', '2') as server:
        async with Browser(server.url) as browser:
            browser.client._transport._pool._max_keepalive_connections = 0
            async def streams(carriers):
                channels = []
                for _ in range(200):
                    channels.append(await browser.open('/private'))
                    if len(browser.carriers)==carriers: break
                for o in channels: await o.until(lambda o: o.events)
                return channels
            await browser.client.get('/login?name=ann')
            anns = await streams(2)
            await browser.client.get('/login?name=bob')
            bobs = await streams(4)
            whose = {o.carrier: browser.carriers[o.carrier].tag for o in anns+bobs}
            assert {whose[o.carrier] for o in anns}.isdisjoint({whose[o.carrier] for o in bobs}) and sorted(map([*whose.values()].count, {*whose.values()}))==[2, 2]
            for _ in range(200):  # Whichever worker answers
                await browser.client.get('/say?text=hello')
                if all('bob: hello' in o.data for o in bobs): break
            for o in bobs: await o.says('bob: hello')
            assert all('bob' not in d for o in anns for d in o.data) and all('ann' not in d for o in bobs for d in o.data)
            for id in {o.carrier for o in anns}: await browser.carriers[id].response.aclose()
            left = {}
            async with asyncio.timeout(BOUND):
                while len(left)<2 or any(carriers!=1 for carriers in left.values()):
                    state = await held(browser)
                    left[state['pid']] = state['carriers']


async def test_a_session_that_has_expired_opens_nothing_more(tmp_path):
    with up(tmp_path) as server:
        async with Browser(server.url) as browser:
            until = time.time()+1
            await browser.client.get('/login', params=dict(name='ann', until=until))
            first = await browser.open('/private')
            await first.until(lambda o: o.events)
            while time.time()<until+.05: await asyncio.sleep(.05)
            late,public = await browser.open('/private', '/events')
            # It clears the session: the browser itself must be told so, and is, by an answer of its own
            await late.until(lambda o: o.direct or o.status==401)
            await public.until(lambda o: o.events)
            assert not late.events
            assert (await browser.client.get('/private')).status_code==401




async def test_who_logs_out_on_one_worker_has_logged_out_on_all(tmp_path):
    with up(tmp_path, '--workers', '2') as server:
        async with Browser(server.url) as browser:
            browser.client._transport._pool._max_keepalive_connections = 0
            await browser.client.get('/login?name=ann')
            channels = []
            for _ in range(200):
                channels.append(await browser.open('/private'))
                if len(browser.carriers)==2: break
            assert len(browser.carriers)==2
            for o in channels: await o.until(lambda o: o.events)
            await browser.client.get('/logout')  # By one of them
            before = {*browser.carriers}
            for _ in range(8):  # By whichever it meets
                late = await browser.open('/private')
                await late.until(lambda o: o.words)
                assert late.status==401 and late.carrier not in before
