"A source with a body: the request is a `POST`, on a connection of its own, on a channel, and on one of the tab that leads"
import json

import pytest
from fasthtml.common import P
from starlette.responses import Response
from starlette.routing import Route

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

# Each connect sends the page's name and what it shows then
OPEN = """([name, options]) => {
    window.shown = ['nothing'];
    window.source = cjmSSE.connect('/live', {body: () => JSON.stringify([name, shown.at(-1)]), ...options});
    source.addEventListener('said', e => shown.push(JSON.parse(e.data)));
}"""


class Live:
    "An app with one stream, which notes what comes with its requests"
    def __init__(self, site):
        self.site,self.manager,self.seen = site,SSEBroadcastManager(retry=50),[]
        setup_sse(site.app, self.manager)
        site.pages['p'] = lambda: P('hello')
        site.app.router.routes.insert(0, Route('/live', self._live, methods=['GET', 'POST']))

    async def _live(self, request):
        if request.method=='POST':
            assert request.headers['content-type']=='application/json'
            self.seen.append(('channel' if 'sse.channel' in request.scope else 'direct', *json.loads(await request.body())))
        return self.manager.stream(request, user='somebody')

    def say(self, text):
        async def say(): await self.manager.broadcast('said', text)
        self.site.loop.run(say())

    def end(self):
        "End all streams; their browsers come back"
        async def end(): await self.manager.disconnect('somebody')
        self.site.loop.run(end())

    def opens(self, page, name, **options):
        page.goto(self.site.url('p'))
        page.wait_for_function('window.cjmSSE')
        page.evaluate(OPEN, [name, options])
        page.wait_for_function("source.state === 'active'")

    def shows(self, page, text): page.wait_for_function('text => shown.at(-1) === text', arg=text)


@pytest.fixture
def live(site): return Live(site)


@pytest.mark.parametrize('way', ['direct', 'channel'])
def test_each_connect_sends_the_present_one(page, live, until, way):
    "One that the page asks for, and one after the server has ended the stream"
    if way=='direct': page.direct.add('asked')
    live.opens(page, 'a', multiplex=way=='channel')
    assert live.seen[-1]==(way, 'a', 'nothing')
    for text,anew in (('one', lambda: page.evaluate('source.reconnect()')), ('two', live.end)):
        live.say(text)
        live.shows(page, text)
        anew()
        until(lambda text=text: live.seen[-1]==(way, 'a', text), lambda: live.seen)
        page.wait_for_function("source.state === 'active'")
    live.say('three')
    live.shows(page, 'three')


def test_a_tab_that_follows(tabs, live, site, until):
    "Its body goes with its wish to the tab that leads; when that one is gone, the present one opens the stream anew"
    first,second = tabs.open(site.url('p')),tabs.open(site.url('p'))
    live.opens(first, 'first')
    live.opens(second, 'second')
    until(lambda: site.connections==1, 'one connection')
    assert {*live.seen}=={('channel', 'first', 'nothing'), ('channel', 'second', 'nothing')}
    live.say('both')
    for page in tabs: live.shows(page, 'both')
    tabs.remove(first)
    first.close()
    until(lambda: live.seen[-1]==('channel', 'second', 'both'), lambda: live.seen)
    live.say('one')
    live.shows(second, 'one')


def test_what_is_too_long_goes_alone(page, live, until):
    page.direct.add('limit')
    live.opens(page, 'x'*300_000)
    until(lambda: [o[0] for o in live.seen]==['direct'], 'a connection of its own')
    live.say('hello')
    live.shows(page, 'hello')


def test_a_leader_from_before_a_deploy(tabs, live, site, until):
    "It drops bodies, and the server wants one: the stream has a connection of its own"
    tabs.context.direct.add('version')
    async def wants_body(request):
        if request.method=='GET' and 'sse-ticket' not in request.headers: return Response(status_code=405)
        return await live._live(request)
    site.app.router.routes.insert(0, Route('/wants', wants_body, methods=['GET', 'POST']))
    def older(route):
        script = route.fetch()
        assert '.concat(body||[])' in script.text()
        route.fulfill(response=script, body=script.text().replace('.concat(body||[])', ''))
    first = tabs.open('about:blank')
    first.route('**/_sse/client-*', older)
    first.goto(site.url('p'))
    first.wait_for_function('window.cjmSSE')
    first.evaluate("window.source = cjmSSE.connect('/live', {})")
    first.wait_for_function("source.state === 'active'")
    second = tabs.open(site.url('p'))
    second.evaluate(OPEN.replace('/live', '/wants'), ['second', {}])
    second.wait_for_function("source.state === 'active'")
    assert live.seen==[('direct', 'second', 'nothing')]
    live.say('hello')
    live.shows(second, 'hello')
