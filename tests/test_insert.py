"Apps that only call `insert_htmx_sse_ext`: FastHTML builds them with our layers, and all others as before"
import importlib
import re
import subprocess
import sys

import pytest
from fasthtml.common import Beforeware, EventStream, FastHTML, P, Redirect, Script, to_xml
from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from cjm_fasthtml_sse import helpers
from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, setup_sse
from cjm_fasthtml_sse.htmx import client_js


def app(*, client=False, cls=FastHTML, **kw):
    res = cls(secret_key='test', **kw)
    if client: insert_htmx_sse_ext(res.hdrs)
    @res.get('/')
    def index(): return P('hello')
    @res.get('/events')
    def events(): return EventStream(iter(['data: 1\n\n']))
    return res


def client_of(page): return re.search('<script[^>]*data-sse-client[^>]*>', page)[0]
def src_of(page): return re.search('src="([^"]+)"', client_of(page))[1]
def is_served(web): return 'sse-ticket' in web.get('/events').headers


def test_an_app_without_the_client_is_built_as_before():
    plain = app()
    routes = [*plain.routes]
    web = TestClient(plain)
    assert not is_served(web) and type(plain.middleware_stack) is ServerErrorMiddleware and plain.routes==routes
    assert not hasattr(plain, '_sse_setup') and web.get('/_sse/mux').status_code==404


def test_an_app_with_the_client_is_served():
    web = TestClient(app(client=True))
    page = web.get('/').text
    assert is_served(web) and 'data-sse-mux="/_sse/mux"' in client_of(page) and len(page)<2000
    script = web.get(src_of(page))
    assert script.text==client_js('2') and 'immutable' in script.headers['cache-control']
    assert web.head(src_of(page)).status_code==200 and web.post(src_of(page)).status_code in (404, 405)


@pytest.mark.parametrize('how', ['in its headers', 'in a list in its headers', 'in a subclass'])
def test_wherever_the_client_comes_from(how):
    class Own(FastHTML):
        def build_middleware_stack(self): return super().build_middleware_stack()
    headers = insert_htmx_sse_ext([])
    web = TestClient(app(hdrs=headers) if how=='in its headers' else app(hdrs=[Script('1'), (*headers,)]) if how=='in a list in its headers' else app(client=True, cls=Own))
    assert is_served(web) and web.get(src_of(web.get('/').text)).status_code==200


def test_headers_that_come_later_build_the_app_anew():
    late,other = app(),app()
    webs = [TestClient(o) for o in (late, other)]
    for o in webs: assert not is_served(o)
    insert_htmx_sse_ext(late.hdrs)
    assert [is_served(o) for o in webs]==[True, False]
    built = late.middleware_stack
    insert_htmx_sse_ext(late.hdrs)
    setup_sse(late)
    assert is_served(webs[0]) and late.middleware_stack is built, 'once is enough'


def test_two_apps_with_the_same_headers_are_two():
    headers = insert_htmx_sse_ext([])
    one,two = (app(hdrs=headers) for _ in range(2))
    assert is_served(TestClient(one)) and is_served(TestClient(two))
    assert one._sse_setup.multiplexer is not two._sse_setup.multiplexer


def test_outside_of_an_app_the_client_is_inline():
    headers = insert_htmx_sse_ext([])
    async def page(request): return HTMLResponse(to_xml(tuple(headers)))
    for html in (to_xml(tuple(headers)), TestClient(Starlette(routes=[Route('/', page)])).get('/').text):
        assert client_js() in html and '/_sse/' not in client_of(html)
    # Within a served one that is mounted there, it is not
    web = TestClient(Starlette(routes=[Mount('/sub', app(client=True))]))
    assert src_of(web.get('/sub/').text).startswith('/sub/_sse/client-')


def test_no_beforeware_stands_before_the_script():
    def login(req): return Redirect('/login')
    closed = app(client=True, before=Beforeware(login))
    web = TestClient(closed, follow_redirects=False)
    assert web.get('/').status_code==303
    src = next(f'/_sse/{o}' for o in helpers._files() if o.startswith('client'))
    assert 'class SSESource' in web.get(src).text and web.get('/_sse/client-0123456789abcdef').status_code in (303, 404)


def test_the_class_is_wrapped_once():
    "However often the module is loaded"
    code = """
from fasthtml.common import FastHTML
from starlette.applications import Starlette
import importlib
from cjm_fasthtml_sse import helpers
for _ in range(3):
    importlib.reload(helpers)
    assert FastHTML.build_middleware_stack.sse_wraps is Starlette.build_middleware_stack
app = FastHTML(secret_key='test')
helpers.insert_htmx_sse_ext(app.hdrs)
layer = app.build_middleware_stack()
assert type(layer) is helpers._Outer and type(layer.app.app).__name__=='function', layer
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode==0, done.stderr
    assert importlib.import_module('cjm_fasthtml_sse.helpers') is helpers


def test_nothing_is_left_in_the_list_of_middleware():
    one = app(client=True)
    before = [*one.user_middleware]
    TestClient(one).get('/')
    assert one.user_middleware==before


def test_an_app_with_errors_of_its_own_and_no_session():
    one = app(client=True, sess_cls=None, exception_handlers={404: lambda req, exc: P('not here')})
    web = TestClient(one)
    assert is_served(web) and 'data-sse-mux' in client_of(web.get('/nowhere').text)


def test_a_mounted_app_is_told_that_its_visitor_function_is_not_asked(caplog):
    inner,outer = app(),app(client=True)
    setup_sse(inner, visitor=lambda req: 'ann')
    outer.mount('/sub', inner)
    web = TestClient(outer)
    for _ in range(2): web.get('/sub/')
    assert ['`visitor` of a mounted app is not asked' in r.getMessage() for r in caplog.records]==[True]
