"""The page of `setup_dashboard`: it loads what it needs wherever it stands, and shows nothing that it should not

Types and data of messages are text, whatever they hold; data is shown only when asked for, and shortened.
"""
import re
from html import unescape

import pytest
from fasthtml.common import FastHTML, fast_app
from starlette.routing import Mount

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.dashboard import setup_dashboard
from tests.contract.support import Exchange, eventually, listening

PATH,EVENTS = '/_sse/dashboard','/_sse/dashboard/events'
HOSTILE = ['<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', '&lt;b&gt;', "'--><svg onload=alert(1)>",
    'ü*[.', '\u202eevil',
           '</td></table></div><div id="other" hx-swap-oob="true">', 'x'*5000]


def site(app=None, **kw):
    "An app with a dashboard, and its manager"
    app,manager = app or FastHTML(secret_key='contract'),SSEBroadcastManager()
    setup_dashboard(app, manager, authorise=True, interval=.05, **kw)
    return app,manager

async def get(app, path):
    async with Exchange(app, 'GET', path) as r: await eventually(lambda: r.over)
    return r

async def shown(app, text):
    "What the dashboard shows once `text` is among it"
    async with listening(app, EVENTS) as page:
        while text not in unescape(html := (await page.next())[1]): pass
    return html


class TestPage:
    async def test_one_page(self):
        "Headings, an id for each place, and no style that a content security policy would refuse"
        app,manager = site()
        html = (await get(app, PATH)).body.decode()
        assert html.count('<h1')==1 and f'sse-connect="{EVENTS}"' in html and 'name="viewport"' in html
        ids = re.findall(r'\bid="(.*?)"', html)
        assert len(ids)==len({*ids})
        board = re.search('<section.*</section>', html, re.S)[0]
        assert 'style=' not in board and '<style' not in board
        await manager.broadcast('x', 1)
        tags = [o for o in re.findall('<[^>]*>', await shown(app, 'x')) if 'hx-swap-oob' in o]
        assert tags and {re.search(' id="(.*?)"', o)[1] for o in tags}<={*ids}, 'what comes finds its place'

    @pytest.mark.parametrize('where', ['FastHTML', 'fast_app', 'below a path'])
    async def test_finds_what_it_loads(self, where):
        "`fast_app` has a route for files, which takes whatever has a suffix"
        app,_ = site(fast_app(secret_key='contract')[0] if where=='fast_app' else None)
        below = '/admin' if where=='below a path' else ''
        if below: app = FastHTML(secret_key='contract', routes=[Mount('/admin', app)])
        html = (await get(app, below+PATH)).body.decode()
        urls = [unescape(o) for o in re.findall(rf'(?:sse-connect|hx-get|href)="([^"]*{PATH}/[^"]*)"', html)]
        assert len(urls)==3 and all(o.startswith(f'{below}{PATH}/') for o in urls)
        for o in urls:
            async with Exchange(app, 'GET', o) as r: assert r.status==200, o
        style = await get(app, next(o for o in urls if o.endswith('.css')))
        assert style.headers['content-type'].startswith('text/css') and 'immutable' in style.headers['cache-control']


class TestMessages:
    async def test_types_and_data_are_text(self):
        app,manager = site(data=True)
        for o in HOSTILE: await manager.broadcast(o, o)
        html = await shown(app, HOSTILE[4])
        for tag in ('<script', '<img', '<svg onload', '<div id="other"'): assert tag not in html
        assert len(html)<40_000

    @pytest.mark.parametrize('data', [False, True])
    async def test_data_only_when_asked_for(self, data):
        app,manager = site(data=data)
        await manager.broadcast('note', dict(a='a secret', zeros=['y'*1000]*1000))
        html = await shown(app, 'note')
        assert ('a secret' in html)==data and len(html)<40_000

    async def test_whatever_a_message_holds(self, caplog):
        "Objects that cannot say what they are, loops, huge numbers"
        class Broken:
            def __repr__(self): raise RuntimeError('no')
        app,manager = site(data=True)
        (loop := []).append(loop)
        for o in (Broken(), [Broken()], loop, 10**5000, 'x'*10**6, 'half \ud800', float('nan')):
            await manager.broadcast('odd', o)
        await manager.broadcast('last', 1)
        assert (await shown(app, 'last')).count('<code>odd</code>')>=7 and not caplog.records
