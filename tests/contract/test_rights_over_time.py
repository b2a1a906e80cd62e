"""Who may go on listening: each stream is asked about for itself, with its own request, at each recheck

One user has several streams, in several browsers. What one of them may no longer see says nothing of the others, and
what the newest one may see says nothing of the older ones.
"""
import asyncio
from contextlib import AsyncExitStack

import pytest
from fasthtml.common import FastHTML

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.progress import setup_progress, track
from tests.contract.support import eventually, turns
from tests.contract.visitors import Visitor

RECHECK = .05

later = pytest.mark.parametrize('later', [False, True], ids=['plain', 'async'])


class Rooms:
    "An app with rooms and devices: `members` of each room, and the sessions that are `valid`"
    def __init__(self, later=False):
        self.members, self.valid, self.asked = {1: {'ann'}, 2: {'ann'}}, {'laptop', 'phone'}, []
        self.app, self.sse = FastHTML(secret_key='contract', default_hdrs=False), SSEBroadcastManager(heartbeat=0)
        setup_sse(self.app, self.sse)
        def may_read(req):
            room, device = int(req.path_params['room']), req.session['device']
            self.asked.append((room, device))
            return req.session['auth'] in self.members[room] and device in self.valid
        async def may_read_later(req): return may_read(req)
        authorise = may_read_later if later else may_read
        @self.app.get('/login')
        def login(name: str, device: str, sess):
            sess.update(auth=name, device=device)
            return 'hello'
        @self.app.get('/room/{room}')
        def room(req, sess, room: int): return self.sse.stream(
            req, lambda m: str(m['data']), f'room:{room}', user=sess['auth'], authorise=authorise, recheck=RECHECK)

    async def asked_again(self):
        "Wait until each open stream was asked about anew"
        open_now = {(int(o['events'][0][5:])) for o in self.sse.inspect()['connections']}
        self.asked.clear()
        await eventually(lambda: open_now <= {room for room, _ in self.asked}, 'all open streams are asked about')

    async def visitor(self, device):
        visitor = Visitor(self.app)
        await visitor.ask(f'/login?name=ann&device={device}')
        return visitor


class Direct:
    "A stream with a connection of its own, with the face of a `Channel`"
    def __init__(self, exchange): self.exchange = exchange
    @property
    def ended(self): return self.exchange.over


async def open_stream(stack, visitor, path, sink):
    "Open a stream that was answered; whether it `ended` can be seen"
    if sink == 'channel': return await visitor.opens(path)
    exchange = await stack.enter_async_context(visitor.begins(path))
    assert exchange.status == 200
    return Direct(exchange)


@later
@pytest.mark.parametrize('sink', ['stream', 'channel'])
class TestOwnRequest:
    "Of streams with one `authorise` and one user"

    @pytest.mark.parametrize('first', [1, 2], ids=['older', 'newer'])
    async def test_an_expelled_member(self, sink, later, first):
        "Reads no more in the room that expelled him, whichever stream is the newest; and reads on in the other one"
        rooms = Rooms(later)
        async with AsyncExitStack() as stack, await rooms.visitor('laptop') as ann:
            lost = await open_stream(stack, ann, f'/room/{first}', sink)
            kept = await open_stream(stack, ann, f'/room/{3-first}', sink)
            rooms.members[first].clear()
            await eventually(lambda: lost.ended, 'the stream of the room has ended')
            await rooms.asked_again()
            assert not kept.ended
        await eventually(lambda: not rooms.sse.connection_count, 'all streams have ended')

    @pytest.mark.parametrize('lost', ['laptop', 'phone'])
    async def test_a_revoked_session(self, sink, later, lost):
        "Ends the streams of this session alone, whichever session is the newest"
        rooms = Rooms(later)
        async with AsyncExitStack() as stack, await rooms.visitor('laptop') as laptop, await rooms.visitor('phone') as phone:
            streams = {name: await open_stream(stack, o, '/room/1', sink) for name, o in (('laptop', laptop), ('phone', phone))}
            rooms.valid.discard(lost)
            await eventually(lambda: streams.pop(lost).ended if streams[lost].ended else False, 'its stream has ended')
            await rooms.asked_again()
            (kept,) = streams.values()
            assert not kept.ended
        await eventually(lambda: not rooms.sse.connection_count, 'all streams have ended')


async def test_log_out_in_one_tab():
    "Ends all tabs of this session where `authorise` looks the session up, and `disconnect` does so at once"
    rooms = Rooms()
    async with await rooms.visitor('laptop') as ann:
        tabs = [await ann.opens('/room/1'), await ann.opens('/room/2')]
        rooms.valid.clear()
        await eventually(lambda: all(o.ended for o in tabs), 'all tabs have ended')
        rooms.valid.add('laptop')
        tabs = [await ann.opens('/room/1'), await ann.opens('/room/2')]
        assert await rooms.sse.disconnect('ann') == 2
        await eventually(lambda: all(o.ended for o in tabs), 'all tabs have ended')


async def test_one_job_of_two():
    "Who may no longer watch a job goes on watching another one"
    app, sse, may = FastHTML(secret_key='contract', default_hdrs=False), SSEBroadcastManager(heartbeat=0), {'a', 'b'}
    setup_progress(app, sse, lambda req, job_id: job_id in may, recheck=RECHECK, user=lambda req: 'ann')
    async with AsyncExitStack() as stack, track(sse, None, 'a'), track(sse, None, 'b'):
        a, b = [await open_stream(stack, Visitor(app), f'/stream_job_progress?job_id={o}', 'stream') for o in 'ab']
        may.discard('a')
        await eventually(lambda: a.ended, 'the stream of the job has ended')
        await turns()
        assert not b.ended


async def test_dashboards_of_two_sessions():
    "Are asked about one by one"
    app, sse, valid = FastHTML(secret_key='contract', default_hdrs=False), SSEBroadcastManager(heartbeat=0), {'laptop', 'phone'}
    setup_dashboard(app, sse, authorise=lambda req: req.headers['x-device'] in valid, interval=.05, recheck=RECHECK,
        user=lambda req: 'ann')
    async with AsyncExitStack() as stack:
        laptop, phone = [await open_stream(stack, Visitor(app, x_device=o), '/_sse/dashboard/events', 'stream')
            for o in ('laptop', 'phone')]
        valid.discard('laptop')
        await eventually(lambda: laptop.ended, 'the dashboard has ended')
        await turns()
        assert not phone.ended


async def test_a_call_that_hangs_delays_no_other():
    "However many streams have an `authorise` that takes its time, the others are asked about"
    app, sse, slow, may = FastHTML(secret_key='contract'), SSEBroadcastManager(heartbeat=0), set(), {'ann'}
    setup_sse(app, sse)
    gate = asyncio.Event()
    async def authorise(req):
        who = req.query_params['who']
        if who in slow: await gate.wait()
        return who[:4] == 'slow' or who in may
    @app.get('/events')
    def events(req, who: str): return sse.stream(req, user=who, authorise=authorise, recheck=RECHECK)
    async with AsyncExitStack() as stack:
        for i in range(200): await open_stream(stack, Visitor(app), f'/events?who=slow{i}', 'stream')
        slow |= {f'slow{i}' for i in range(200)}
        ann = await open_stream(stack, Visitor(app), '/events?who=ann', 'stream')
        await turns()
        may.clear()
        await eventually(lambda: ann.ended, 'the stream has ended')
        gate.set()
