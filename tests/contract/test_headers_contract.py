"""What `insert_htmx_sse_ext` puts into the headers of an app, and what an app that only calls that gets

The extension for the htmx that the app has, from a pinned address with an integrity hash, and this library's client,
right behind htmx and once however often it is called. An older app calls `insert_htmx_sse_ext(app.hdrs)` and nothing
else for set-up: it is served as one that calls `setup_sse`. Apps without the client are left as FastHTML builds them.
"""
import re

import pytest
from fasthtml.common import (Beforeware, FastHTML, HtmxResponseHeaders, Link, Meta, NotStr, P, Redirect,
                             Script, Style, fast_app, to_xml)
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from cjm_fasthtml_sse.helpers import get_htmx_idx, insert_htmx_sse_ext, setup_sse

from tests.contract.support import client_src, client_tag, hello_app, is_served

CDN = 'https://cdn.jsdelivr.net/npm/'
HTMX2_EXT,HTMX4_EXT = 'htmx-ext-sse@2.2.4/dist/sse.min.js','htmx.org@{}/dist/ext/hx-sse.min.js'


def page(hdrs): return to_xml(tuple(hdrs), indent=False)
def srcs(hdrs): return re.findall('<script[^>]*? src="([^"]+)"', page(hdrs))
def extensions(hdrs): return [o for o in srcs(hdrs) if 'sse' in o and '/_sse/' not in o]


class TestHeaders:
    "Which headers come, and where"

    @pytest.mark.parametrize('src, found', [
        (f'{CDN}htmx.org@2.0.7/dist/htmx.js', True), (f'{CDN}htmx.org@4.0.1/dist/htmx.min.js', True),
        ('https://unpkg.com/htmx.org@2.0.7', True),
        ('/static/htmx.min.js?v=7', True), ('/static/htmx-2.0.7.min.js#sha', True), ('/static/my-htmx-tools.js', False),
        (f'{CDN}{HTMX2_EXT}', False), (f'{CDN}htmx.org@4.0.1/dist/ext/hx-ws.js', False)])
    def test_where_htmx_is(self, src, found):
        "Also behind a `?v=`"
        assert get_htmx_idx([Meta(charset='utf-8'), Script(src=src)])==(1 if found else -1)
        hdrs = insert_htmx_sse_ext([Meta(charset='utf-8'), Script(src=src), Link(href='/last.css')])
        assert ('last.css' in page(hdrs[-1:]))==found, 'behind htmx where that is found, else at the end'

    def test_headers_of_any_kind(self):
        "Those without `attrs`: text, nothing, tuples, HTML, functions"
        hdrs = ['text', None, NotStr('<meta name="x">'), Style('a {}'), (Link(), Script(src='/htmx.min.js')),
            Script('inline()')]
        assert get_htmx_idx(hdrs)==4 and get_htmx_idx([])==-1
        assert get_htmx_idx([NotStr('<script src="/htmx.js"></script>')])==0
        before = [*hdrs]
        assert insert_htmx_sse_ext(hdrs) is hdrs and [o for o in hdrs if any(o is p for p in before)]==before

    @pytest.mark.parametrize('calls', ['i', 'ii', 'iii', 'is', 'si', 'sis'])
    def test_once(self, calls):
        "However often it is called, by itself and by `setup_sse`"
        app = FastHTML(secret_key='contract')
        for o in calls: insert_htmx_sse_ext(app.hdrs) if o=='i' else setup_sse(app)
        assert extensions(app.hdrs)==[CDN+HTMX2_EXT] and page(app.hdrs).count('data-sse-client')==1

    @pytest.mark.parametrize('own', [f'{CDN}{HTMX2_EXT}', 'https://unpkg.com/htmx-ext-sse@2.2.1/sse.js', '/js/sse.js'])
    def test_extension_that_is_there(self, own):
        assert extensions(insert_htmx_sse_ext([Script(src='/js/htmx.min.js'), Script(src=own)]))==[own]

    @pytest.mark.parametrize('hdrs, ext', [
        ([Script(src=f'{CDN}htmx.org@2.0.7/dist/htmx.min.js')],                                    HTMX2_EXT),
        ([Script(src='/htmx.min.js?v=3')],                                                         HTMX2_EXT),
        ([],                                                                                       HTMX2_EXT),
        ([Script(src=f'{CDN}htmx.org@4.0.1/dist/htmx.min.js')],
        HTMX4_EXT.format('4.0.1')),
        ([Script(src='/htmx-4.0.1.min.js?v=2')],
        HTMX4_EXT.format('4.0.1')),
        ([Meta(name='htmx-config', content='{"metaCharacter": "-"}'), Script(src='/htmx.min.js')],
        HTMX4_EXT.format('4.0.1'))])
    def test_extension_of_each_htmx(self, hdrs, ext): assert extensions(insert_htmx_sse_ext([*hdrs]))==[CDN+ext]

    def test_apps_with_htmx4(self):
        app,_ = fast_app(htmx4=True, secret_key='contract')
        assert [o.startswith(f'{CDN}htmx.org@4') for o in extensions(insert_htmx_sse_ext(app.hdrs))]==[True]

    def test_pinned_with_integrity(self):
        tag = re.search('<script[^>]*sse.min.js[^>]*>', page(insert_htmx_sse_ext([])))[0]
        assert re.search(r'@\d+\.\d+\.\d+/', tag) and re.search('integrity="sha384-[^"]{64}"', tag)
        assert 'crossorigin="anonymous"' in tag

    @pytest.mark.parametrize('bad', [(), None, 'headers'], ids=repr)
    def test_no_list(self, bad):
        with pytest.raises(ValueError, match='hdrs'): insert_htmx_sse_ext(bad)

    def test_nonce(self):
        "A function is called for each page, and for pages alone"
        nonces = iter('abcdefghij')
        hdrs = insert_htmx_sse_ext([], nonce=lambda: next(nonces))
        assert [re.findall('nonce="(.+?)"', page(hdrs)) for _ in range(2)]==[['a', 'b'], ['c', 'd']]


class TestOlderApps:
    "`insert_htmx_sse_ext(app.hdrs)` is all they call"

    def test_with_the_client(self):
        web = TestClient(hello_app(client=True))
        html = web.get('/').text
        assert is_served(web) and 'data-sse-mux="/_sse/mux"' in client_tag(html) and len(html)<2000
        script = web.get(client_src(html))
        assert script.headers['content-type'].startswith('text/javascript')
        assert 'immutable' in script.headers['cache-control']
        assert 'EventSource' in script.text and web.head(client_src(html)).status_code==200

    def test_without_the_client(self):
        plain = hello_app()
        routes,web = [*plain.routes],TestClient(plain)
        assert not is_served(web) and web.get('/_sse/mux').status_code==404 and plain.routes==routes

    @pytest.mark.parametrize('how', ['in its headers', 'in a list in its headers', 'in a subclass'])
    def test_wherever_the_client_comes_from(self, how):
        class Own(FastHTML):
            def build_middleware_stack(self): return super().build_middleware_stack()
        headers = insert_htmx_sse_ext([])
        web = TestClient({'in its headers': lambda: hello_app(hdrs=headers),
            'in a list in its headers': lambda: hello_app(hdrs=[Script('1'), (*headers,)]),
                          'in a subclass': lambda: hello_app(client=True, cls=Own)}[how]())
        assert is_served(web) and web.get(client_src(web.get('/').text)).status_code==200

    def test_headers_may_come_late(self):
        "After the first request, too; other apps are left alone"
        late,other = hello_app(),hello_app()
        webs = [TestClient(o) for o in (late, other)]
        for o in webs: assert not is_served(o)
        insert_htmx_sse_ext(late.hdrs)
        assert [is_served(o) for o in webs]==[True, False]

    def test_headers_may_be_shared(self):
        headers = insert_htmx_sse_ext([])
        for one in [hello_app(hdrs=headers) for _ in range(2)]: assert is_served(TestClient(one))

    def test_outside_of_an_app(self):
        "The client is written into the page; within a mounted app it has an address of that app"
        headers = insert_htmx_sse_ext([])
        async def index(request): return HTMLResponse(page(headers))
        for html in (page(headers), TestClient(Starlette(routes=[Route('/', index)])).get('/').text):
            assert 'EventSource' in html and '/_sse/' not in client_tag(html)
        web = TestClient(Starlette(routes=[Mount('/sub', hello_app(client=True))]))
        assert client_src(web.get('/sub/').text).startswith('/sub/_sse/client-')

    def test_within_another_fasthtml_app(self):
        "Whose route for static files takes whatever has a suffix"
        outer,_ = fast_app(secret_key='contract')
        outer.mount('/sub', hello_app(client=True))
        web = TestClient(outer)
        assert 'EventSource' in web.get(client_src(web.get('/sub/').text)).text

    def test_no_login_before_the_script(self):
        def login(req): return Redirect('/login')
        src = client_src(TestClient(hello_app(client=True)).get('/').text)
        web = TestClient(hello_app(client=True, before=Beforeware(login)), follow_redirects=False)
        assert web.get('/').status_code==303 and web.get(src).status_code==200
        assert web.get('/_sse/client-0123456789abcdef').status_code in (303, 404)

    def test_errors_of_its_own_and_no_session(self):
        one = hello_app(client=True, sess_cls=None, exception_handlers={404: lambda req, exc: P('not here')})
        web = TestClient(one)
        assert is_served(web) and 'data-sse-mux' in client_tag(web.get('/nowhere').text)

    def test_other_responses_are_as_before(self):
        one = hello_app(client=True)
        one.route('/headers')(lambda: HtmxResponseHeaders(redirect='/x'))
        assert TestClient(one).get('/headers').headers['hx-redirect']=='/x'


def test_wrong_arguments_of_setup():
    app,_ = fast_app(secret_key='contract')
    async def user(req): return 'ann'
    for wrong in (dict(visitor=user), dict(visitor='ann'), dict(multiplex=['/events']),
            dict(manager='manager')):
        with pytest.raises(ValueError, match=[*wrong][0]): setup_sse(app, **wrong)
    with pytest.raises(ValueError, match='app'): setup_sse(fast_app(secret_key='contract'))
