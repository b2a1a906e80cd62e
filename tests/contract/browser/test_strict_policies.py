"""Under a strict content security policy

All that this library puts into a page works with a nonce: no script that lacks it, no code in attributes, no style of
its own but the dashboard's file. And what a message brings can't run, whoever wrote it.
"""
import secrets
from contextvars import ContextVar

import pytest
from fasthtml.common import A, Div, Form, Img, Input, Meta, NotStr, Script, Span, Ul, to_xml
from handmade import ASSETS, MAJORS
from playwright.sync_api import expect
from starlette.responses import Response

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard
from cjm_fasthtml_sse.helpers import cleanup_sse_on_unload, insert_htmx_sse_ext, oob_element, oob_update, setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor
from cjm_fasthtml_sse.progress import setup_progress, track

nonce = ContextVar('nonce', default='')
# No 'self' among the scripts: what users have uploaded is from here, too. Of the styles only the dashboard has a file
STRICT = ("default-src 'none'; script-src 'nonce-{nonce}'; connect-src 'self'; style-src {styles}; img-src 'self'; "
          "form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
REFUSED = """window.refused = [];
    addEventListener('securitypolicyviolation', e => refused.push(`${e.effectiveDirective} ${e.blockedURI}`))"""


CDN = 'https://cdn.jsdelivr.net/npm/'
PACKAGES = {'htmx.org@2.0.7': 'htmx.org', 'htmx.org@4.0.0': 'htmx4-0', 'htmx.org@4.0.1': 'htmx4',
            'htmx-ext-sse@2.2.4': 'htmx-ext-sse', 'idiomorph@0.7.4': 'idiomorph'}


def from_npm(route):
    package,_,path = route.request.url.removeprefix(CDN).partition('/')
    headers = {'Access-Control-Allow-Origin': '*'}
    route.fulfill(path=ASSETS/PACKAGES[package]/path, content_type='text/javascript', headers=headers)


class Policy:
    "Each page has a nonce of its own, which the header and the scripts name"
    def __init__(self, app, policy, styles): self.app,self.policy,self.styles = app,policy,styles
    async def __call__(self, scope, receive, send):
        if scope['type'] != 'http' or not self.policy: return await self.app(scope, receive, send)
        nonce.set(secrets.token_urlsafe(16))
        header = b'content-security-policy', self.policy.format(nonce=nonce.get(), styles=self.styles).encode()
        async def _send(m):
            if m['type'] == 'http.response.start': m['headers'] = [*m['headers'], header]
            await send(m)
        await self.app(scope, receive, _send)


class Nonced:
    "An element with the nonce of the page that it is drawn for"
    def __init__(self, element): self.element = element
    def __ft__(self):
        tag,children,attrs = self.element.tag,self.element.children,self.element.attrs
        return type(self.element)(tag, children, {**attrs, 'nonce': nonce.get()})


@pytest.fixture(params=MAJORS)
def major(request): return request.param


@pytest.fixture
def board(make_site, page, major):
    "A site under a policy, and a manager; what the policy refuses is kept by the page in `refused`"
    def make(policy=STRICT, styles="'none'", setup=setup_sse):
        manager = SSEBroadcastManager(heartbeat=.2, retry=50)
        # htmx 2 writes a style element and evaluates filters; htmx 4 does neither unless it is asked to
        config = '"includeIndicatorStyles": false, "allowEval": false' if major[0] == '2' else '"metaCharacter": "-"'
        htmx = Nonced(Script(src=f'{CDN}htmx.org@{major}/dist/htmx.min.js'))
        hdrs = [Meta(name='htmx-config', content=f'{{{config}}}'), htmx]
        page.context.route(f'{CDN}**', from_npm)
        def setup_(app):
            app.add_middleware(Policy, policy=policy, styles=styles)
            if setup is insert_htmx_sse_ext: insert_htmx_sse_ext(app.hdrs, nonce=nonce.get, morph=True)
            else: setup_sse(app, manager, nonce=nonce.get, morph=True)
        site = make_site(setup_, hdrs)
        site.manager = manager
        @site.app.route('/events')
        def events(req): return manager.stream(req, render=lambda m: m['data'])
        site.app.route('/favicon.ico')(lambda: Response(media_type='image/png'))
        site.say = lambda *elements: site.loop.run(manager.broadcast('said', elements))
        site.hidden = lambda: HTMXSSEConnector.create_sse_element(endpoint=events, element_id='sse', hidden=True)
        page.add_init_script(REFUSED)
        return site
    return make


def complaints(page): return [t for k,t in page.console if k in ('error', 'warning')] + page.evaluate('refused')


@pytest.mark.parametrize('setup', [setup_sse, insert_htmx_sse_ext])
def test_all_of_it_works_with_a_nonce(page, board, setup):
    "Client, extension, monitor, script of the page, form, morph swap, a second tab; nothing is refused"
    site = board(setup=setup)
    received = []
    @site.app.post('/add')
    async def add(name: str):
        received.append(name)
        item = oob_element('list', NotStr(f'<li id="{name}">{name}</li>'), 'beforeend', element_type=Ul)
        await site.manager.broadcast('said', item)
    def monitor():
        config = SSEMonitorConfig(sse_element_id='sse', reconnect_delay=50)
        return Span(id='connection-status'), create_sse_monitor(HTMXSSEConnector, config, nonce=nonce.get())
    def form(): return Form(Input(name='name'), hx_post='/add', hx_swap='none'), Div(Input(id='typed'), id='form')
    site.pages['p'] = lambda: (
        site.hidden(), Ul(id='list'), *form(), *monitor(), cleanup_sse_on_unload(nonce=nonce.get()),
        Script("document.body.dataset.own = 'ran'", nonce=nonce.get()))
    page.goto(site.url('p'))
    expect(page.locator('body')).to_have_attribute('data-own', 'ran')
    other = page.context.new_page()
    other.on('console', lambda m: page.console.append((m.type, m.text)))
    other.goto(site.url('p'))
    for tab in page, other: tab.wait_for_selector('#connection-status[data-sse-state=active]')
    for tab,name in (page, 'a'), (other, 'b'):
        tab.fill('[name=name]', name)
        tab.press('[name=name]', 'Enter')
        for o in page, other: o.wait_for_selector(f'#list > #{name}')
    page.fill('#typed', 'half a wo')
    site.say(oob_element('form', [Input(id='typed'), Span('merged', id='merged')], 'morph'))
    page.wait_for_selector('#merged')
    assert page.input_value('#typed') == 'half a wo' and received == ['a', 'b']
    site.loop.run(site.manager.close())
    page.wait_for_selector('#connection-status[data-sse-state=active]')
    site.say(oob_update('list', 'back'))
    for tab in page, other: expect(tab.locator('#list')).to_have_text('back')
    assert not complaints(page)


def test_progress_and_the_dashboard(page, board):
    "What comes ready-made needs no more than a style sheet from here"
    site = board(styles="'self'")
    setup_progress(site.app, site.manager, authorise=True)
    setup_dashboard(site.app, site.manager, authorise=True, interval=.1)
    connector = HTMXSSEConnector
    site.pages['p'] = lambda: Div(connector.sse_progress_element('job'), connector.sse_status_element('job'))
    page.goto(site.url('p'))
    async def work():
        async for _ in track(site.manager, range(3), 'job'): pass
    site.loop.run(work())
    expect(page.locator('[id=status-span-job]')).to_contain_text('Completed')
    expect(page.locator('progress')).to_be_visible()
    assert not complaints(page)
    page.goto(site.url('p').replace('/pages/p', '/_sse/dashboard'))
    expect(page.get_by_role('status')).to_have_text('Live')
    expect(page.get_by_role('img', name='Broadcasts')).to_be_visible()
    assert not complaints(page)


RAN_BY_HTMX = "window.ran = 'htmx'"
RUNS = dict(
    script=Script('window.ran = "script"'),
    onerror=Img(src='/nowhere.png', onerror='window.ran = "onerror"'),
    link=A('click', id='link', href='javascript:void(window.ran = "link")'),
    handler=NotStr('<i id="handler" onclick="window.ran = \'handler\'">click</i>'),
    htmx=NotStr(f'<i id="htmx" hx-on:click="{RAN_BY_HTMX}" hx-on-click="{RAN_BY_HTMX}">click</i>'))


@pytest.mark.parametrize('policy', [STRICT, ''], ids=['policy', 'no policy'])
def test_what_a_message_brings_does_not_run(page, board, until, policy):
    "The policy closes the hole of an app whose messages hold HTML from outside; without the policy each of these runs"
    site = board(policy)
    site.pages['p'] = lambda: (site.hidden(), Div(id='place'))
    if not policy: site.app.hdrs[:] = [o for o in site.app.hdrs if 'allowEval' not in to_xml(o)]
    page.goto(site.url('p'))
    until(lambda: site.manager.connection_count)
    for how,element in RUNS.items():
        site.say(oob_update('place', [element, Span(how, id='came')]))
        page.wait_for_selector(f'#came:text-is("{how}")')
        if page.locator(f'#{how}').count(): page.click(f'#{how}')
        if not policy: until(lambda how=how: page.evaluate('window.ran') == how, f'{how} runs')
        elif how != 'htmx' or page.evaluate('htmx.version')[0] == '4':
            until(lambda: page.evaluate('refused'), f'the policy refuses {how}')
        # htmx 2 with `allowEval` off does not even try
        assert not policy or page.evaluate('[window.ran ?? null, refused = []]') == [None, []]
    page.errors.clear()
