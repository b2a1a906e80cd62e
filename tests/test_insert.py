"Apps that only call `insert_htmx_sse_ext`: FastHTML builds them with our layers, and all others as before"
import importlib
import subprocess
import sys

from fasthtml.common import EventStream, FastHTML, P
from starlette.testclient import TestClient

from cjm_fasthtml_sse import helpers
from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext, setup_sse


def app(*, client=False, cls=FastHTML, **kw):
    res = cls(secret_key='test', **kw)
    if client: insert_htmx_sse_ext(res.hdrs)
    @res.get('/')
    def index(): return P('hello')
    @res.get('/events')
    def events(): return EventStream(iter(['data: 1\n\n']))
    return res


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


def test_a_mounted_app_is_told_that_its_visitor_function_is_not_asked(caplog):
    inner,outer = app(),app(client=True)
    setup_sse(inner, visitor=lambda req: 'ann')
    outer.mount('/sub', inner)
    web = TestClient(outer)
    for _ in range(2): web.get('/sub/')
    assert ['`visitor` of a mounted app is not asked' in r.getMessage() for r in caplog.records]==[True]
