"The documentation's site: no page is wider than a telephone, the dark is dark, and the search finds"
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from playwright.sync_api import expect

ROOT = Path(__file__).parents[2]
SITE = ROOT/'_docs'
# Draws page after page, with its pictures, and gives those that are wider than the window
WIDER = """async paths => {
    const wider = {}, base = document.head.appendChild(document.createElement('base'));
    for (const path of paths) {
        const page = new DOMParser().parseFromString(await (await fetch(base.href = `/${path}`)).text(), 'text/html');
        document.body.replaceChildren(...page.body.children);
        await Promise.all([...document.images].map(o => o.decode().catch(() => {})));
        const width = document.documentElement.scrollWidth;
        if (width > innerWidth) wider[path] = width;
    }
    return wider }"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def site():
    "The address of the site"
    if not (SITE/'index.html').exists(): subprocess.run([sys.executable, 'tools/docs.py'], cwd=ROOT, check=True, capture_output=True)
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=SITE))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(page):
    yield page
    assert not [text for kind,text in page.console if kind in ('warning', 'error')]


def test_telephone(page, site):
    "No page is wider, and the menu opens"
    page.set_viewport_size(dict(width=390, height=844))
    page.goto(f'{site}/index.html')
    link = page.locator('.sidebar-tree').get_by_role('link', name='core', exact=True)
    expect(link).not_to_be_in_viewport()
    page.locator('.nav-overlay-icon').click()
    link.click()
    page.wait_for_url('**/core.html')
    paths = [o.relative_to(SITE).as_posix() for o in SITE.rglob('*.html')]
    assert len(paths) > 25 and page.evaluate(WIDER, paths) == {}


def test_light_and_dark(page, site):
    page.goto(f'{site}/index.html')
    for scheme in 'light', 'dark':
        page.emulate_media(color_scheme=scheme)
        paper,ink = [sum(page.evaluate("k => getComputedStyle(document.body)[k].match(/\\d+/g).slice(0, 3).map(Number)", k))/3
                     for k in ('backgroundColor', 'color')]
        assert (paper > 200 and ink < 100) if scheme == 'light' else (paper < 60 and ink > 150)


def test_search(page, site, until):
    "By the words that people look for; among the first three"
    for words,where in {'oob_swap': 'helpers', 'presence': 'presence', 'notify one user': 'recipes', 'celery': 'recipes',
                        'multiple workers': 'recipes', 'who is online': 'recipes', 'offline': 'recipes'}.items():
        page.goto(f"{site}/search.html?q={words.replace(' ', '+')}")
        found = page.locator('#search-results li a')
        def first(): return found.evaluate_all('all => all.slice(0, 3).map(o => o.href)')
        until(lambda: any(f'{where}.html' in o for o in first()), lambda: f'{words}: {where} among {first()}')


def test_markdown_twins():
    pages = {o.relative_to(SITE) for o in SITE.rglob('*.html')}
    twins = {o.relative_to(SITE).with_suffix('') for o in SITE.rglob('*.html.md')}
    assert len(twins) > 30 and twins <= pages
    assert '\n## ' in (SITE/'core.html.md').read_text()
