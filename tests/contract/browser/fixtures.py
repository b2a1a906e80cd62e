"Browsers, pages that fail a test when something goes wrong in them, and servers whose streams a test writes by hand"
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import pytest
from bidi import Firefox
from boards import Tabs
from browsers import chromium, new_context
from handmade import Loop, Proxy, Site
from playwright.sync_api import expect

from cjm_fasthtml_sse.helpers import setup_sse

sys.path.insert(0, str(Path(__file__).parents[3]/'tools'))
import assets  # noqa: E402

expect.set_options(timeout=30000)  # Milliseconds, as for all else in a page


def leave_out_twins(config, items, twins):
    "Of each two tests whose names differ by a pair of `twins`, one: the name says which one, so that it is the same wherever it runs"
    found = {}
    for item in items:
        pair = next((pair for pair in twins if any(f'{one}-' in item.name or f'{one}]' in item.name for one in pair)), None)
        if pair is None: continue
        one = max((o for o in pair if o in item.name), key=len)
        found.setdefault(item.nodeid.replace(one, pair[0]), []).append(item)
    left_out = [both[crc32(name.encode())%2] for name,both in found.items() if len(both)==2]
    items[:] = [o for o in items if o not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope='session')
def loop(): return Loop()


@pytest.fixture(scope='session')
def browsers(playwright):
    "Gives a browser by its name; it starts when a test asks for it first, and again where it has ended"
    assert assets.fetch(dev=True), 'These tests need npm, to fetch htmx: apt-get install npm'
    with ExitStack() as stack:
        started = {}
        def browser(name):
            if name=='firefox' and name in started and not started[name].alive: del started[name]
            if name not in started:
                new = closing(Firefox()) if name=='firefox' else chromium(playwright, name=name)
                started[name] = stack.enter_context(new)
            return started[name]
        yield browser


@pytest.fixture
def browser(request, browsers):
    """Chromium or Firefox, as the test's mark `each_browser` says. A test without it has Chromium without windows, which opens
    pages in a third of the time, where it is installed; but Back loads pages anew there, so that tests of Back have Chromium"""
    goes_back = 'go_back' in request.function.__code__.co_names
    return browsers(getattr(request, 'param', 'chromium' if goes_back else 'chromium-headless-shell'))


@pytest.fixture(scope='session')
def pumps(): return {}


@pytest.fixture
def pump(browser, pumps):
    "Events of all pages reach their handlers for so many milliseconds, whether the test has a page or not"
    if browser not in pumps: pumps[browser] = browser.new_context().new_page()
    return pumps[browser].wait_for_timeout


@pytest.fixture
def page(request, browser, pump):
    """A page of its own browser context; a test of `tabs`, which has its own pages, gets what goes with it alone. What goes
    wrong in it fails the test, unless the test clears `page.errors`. So does a direct stream in any page of the context,
    unless its reason is in `page.direct`"""
    with new_context(browser) as context:
        if 'tabs' in request.fixturenames: page = SimpleNamespace(context=context, wait_for_timeout=pump)
        else: page = context.new_page()
        page.errors,page.console,page.direct = [],[],context.direct
        if 'tabs' not in request.fixturenames:
            page.on('pageerror', lambda e: page.errors.append(str(e)))
            page.on('console', lambda m: page.console.append((m.type, m.text)))
        yield page
        errors = list(page.errors)
    assert not errors


@pytest.fixture
def tabs(page): return Tabs(page)


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
def site(request, make_site): return make_site(getattr(request, 'param', setup_sse))


@pytest.fixture
def proxy(loop, site):
    p = Proxy(loop, site.port)
    yield p
    p.stop()


@pytest.fixture
def until(page):
    "Waits until a condition of the test's own holds, while the page goes on; `what` may be a function that says it"
    def until(condition, what='the condition', secs=30):
        end = time.monotonic()+secs
        while not condition():
            assert time.monotonic()<end, f'{what() if callable(what) else what} did not come true in {secs} s'
            page.wait_for_timeout(20)  # The one place that asks again and again
    return until


@pytest.fixture
def idle(page):
    "`idle(ms)`: so much time passes in the page, by a clock that needs none, and what it has asked for by then has come to the server"
    page.clock.install()
    def idle(ms=0, url=None):
        page.clock.run_for(ms)
        page.evaluate("async url => { for (let i = 0; i < 3; i++) await fetch(url, {mode: 'no-cors', cache: 'no-store'}) }", url or page.url)
    return idle


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
        "Wait until it shows this state, or has shown it since it was last asked: one may last for milliseconds only"
        has_shown = 'name => { const i = shown.indexOf(name, asked); if (i >= 0) asked = i + 1; return i >= 0 }'
        self.page.wait_for_function(has_shown, arg=name)


@pytest.fixture
def state(page): return States(page)
