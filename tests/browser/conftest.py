"Browsers, pages, and servers whose streams a test writes by hand"
import shutil
import sys
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[2]/'tools'))
import assets  # noqa: E402
from bidi import Firefox  # noqa: E402
from handmade import Loop, Proxy, Site  # noqa: E402
from tabs import board, new_context, tabs  # noqa: E402, F401

from cjm_fasthtml_sse.helpers import setup_sse  # noqa: E402

FLAGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
expect.set_options(timeout=30000)  # Milliseconds, as for all else in a page


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents: item.add_marker(pytest.mark.browser)


@pytest.fixture(scope='session')
def loop(): return Loop()


@contextmanager
def chromium():
    path = shutil.which('chromium')
    assert path, 'These tests need Chromium: apt-get install chromium'
    with sync_playwright() as p:
        # Playwright switches the back/forward cache off; users have it on
        b = p.chromium.launch(executable_path=path, args=FLAGS, ignore_default_args=['--disable-back-forward-cache'])
        yield b
        b.close()


@pytest.fixture(scope='session')
def browsers():
    "Gives a browser by its name; it starts when a test asks for it first, and again where it has ended"
    assert assets.fetch(dev=True), 'These tests need npm, to fetch htmx: apt-get install npm'
    with ExitStack() as stack:
        started = {}
        def browser(name):
            if name == 'firefox' and name in started and not started[name].alive: del started[name]
            if name not in started: started[name] = stack.enter_context(closing(Firefox()) if name == 'firefox' else chromium())
            return started[name]
        yield browser


@pytest.fixture
def browser(request, browsers):
    "Chromium, or what the test's mark `each_browser` says"
    return browsers(getattr(request, 'param', 'chromium'))


@pytest.fixture
def page(browser):
    """A page of its own browser context. What goes wrong in the page fails the test, unless the test clears `page.errors`.
    So does a direct stream in any page of the context, unless its reason is in `page.direct`"""
    with new_context(browser) as context:
        page = context.new_page()
        page.errors,page.console,page.direct = [],[],context.direct
        page.on('pageerror', lambda e: page.errors.append(str(e)))
        page.on('console', lambda m: page.console.append((m.type, m.text)))
        yield page
        errors = list(page.errors)
    assert not errors


@pytest.fixture
def make_site(loop):
    "Starts sites, and stops them after the test"
    sites = []
    def make(setup=setup_sse, hdrs=None):
        site = Site(loop, hdrs)
        if setup: setup(site.app)
        sites.append(site)
        return site.start()
    yield make
    for site in sites: site.stop()


@pytest.fixture
def site(make_site): return make_site()


@pytest.fixture
def proxy(loop, site):
    p = Proxy(loop, site.port)
    yield p
    p.stop()


@pytest.fixture
def until(page):
    "Waits until a condition of the test's own holds, while the page goes on; `what` may be a function that tells how things stand"
    def until(condition, what='the condition', secs=30):
        end = time.monotonic()+secs
        while not condition():
            assert time.monotonic()<end, f'{what() if callable(what) else what} did not come true in {secs} s'
            page.wait_for_timeout(20)
    return until


class States:
    "What the status element of a page shows, and what it has shown"
    def __init__(self, page):
        self.page = page
        page.add_init_script("""
            window.shown = []; window.asked = 0;
            new MutationObserver(seen => { for (const m of seen) shown.push(m.target.dataset.sseState) })
                .observe(document, {attributes: true, attributeFilter: ['data-sse-state'], subtree: true});""")

    def __call__(self, name):
        "Wait until it shows this state"
        self.page.wait_for_selector(f'#connection-status[data-sse-state={name}]', state='attached')
        self.page.evaluate('asked = shown.length')

    def passed(self, name):
        "Wait until it shows this state or has shown it since it was last asked; a state may last for milliseconds only"
        self.page.wait_for_function('name => { const i = shown.indexOf(name, asked); if (i >= 0) asked = i + 1; return i >= 0 }', arg=name)


@pytest.fixture
def state(page): return States(page)
