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
    assert not [text for kind, text in page.console if kind in ('warning', 'error')]


def test_no_page_is_wider_than_a_telephone(page, site):
    page.set_viewport_size(dict(width=390, height=844))
    pages = sorted(SITE.rglob('*.html'))
    assert len(pages) > 25
    wide = {}
    for path in pages:
        page.goto(f'{site}/{path.relative_to(SITE)}', wait_until='domcontentloaded')
        if (width := page.evaluate('document.documentElement.scrollWidth')) > 390: wide[path.name] = width
    assert not wide


def test_the_menu_of_a_telephone(page, site):
    page.set_viewport_size(dict(width=390, height=844))
    page.goto(f'{site}/index.html')
    link = page.locator('.sidebar-tree').get_by_role('link', name='core', exact=True)
    expect(link).not_to_be_in_viewport()
    page.locator('.nav-overlay-icon').click()
    link.click()
    assert page.url.endswith('core.html')


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_light_and_dark(page, site, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(f'{site}/index.html')
    paper,ink = (sum(map(int, page.evaluate("k => getComputedStyle(document.body)[k].match(/\\d+/g).slice(0, 3)", k)))/3 for k in ('backgroundColor', 'color'))
    assert (paper > 200 and ink < 100) if scheme == 'light' else (paper < 60 and ink > 150)


def found(page, site, words):
    "Addresses of the first three results"
    page.goto(f"{site}/search.html?q={words.replace(' ', '+')}")
    page.wait_for_selector('#search-results li a')
    return page.locator('#search-results li a').evaluate_all('all => all.slice(0, 3).map(o => o.href)')


@pytest.mark.parametrize('words, where', {'oob_swap': 'helpers.html', 'offline': 'recipes.html', 'notify one user': 'recipes.html', 'multiple workers': 'recipes.html',
                                         'celery': 'recipes.html', 'presence': 'core.html', 'who is online': 'recipes.html'}.items())
def test_the_search_finds(page, site, words, where):
    "By the words that people look for; among the first three"
    results = found(page, site, words)
    assert any(where in o for o in results), results


def test_pages_have_markdown_twins(site):
    pages = {o.relative_to(SITE) for o in SITE.rglob('*.html')}
    twins = {o.relative_to(SITE).with_suffix('') for o in SITE.rglob('*.html.md')}
    assert len(twins) > 30 and twins <= pages
    assert '\n## ' in (SITE/'core.html.md').read_text()
