"The documentation's site, from its folder: no page is wider than a telephone, the dark is dark, and the search finds"
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

ROOT = Path(__file__).parents[2]
SITE = ROOT/'_docs'


@pytest.fixture(scope='module')
def site():
    if not (SITE/'index.html').exists(): subprocess.run([sys.executable, 'tools/docs.py'], cwd=ROOT, check=True, capture_output=True)
    return SITE


@pytest.fixture
def page(page):
    yield page
    assert not [text for kind, text in page.console if kind in ('warning', 'error')]


def test_no_page_is_wider_than_a_telephone(page, site):
    page.set_viewport_size(dict(width=390, height=844))
    pages = sorted(site.rglob('*.html'))
    assert len(pages) > 25
    wide = {}
    for path in pages:
        page.goto(path.as_uri())
        if (width := page.evaluate('document.documentElement.scrollWidth')) > 390: wide[path.name] = width
    assert not wide


def test_the_menu_of_a_telephone(page, site):
    page.set_viewport_size(dict(width=390, height=844))
    page.goto((site/'index.html').as_uri())
    link = page.locator('#nav').get_by_role('link', name='stream', exact=True)
    expect(link).to_be_hidden()
    page.locator('.menu').click()
    link.click()
    assert page.url.endswith('stream.html')


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_light_and_dark(page, site, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto((site/'index.html').as_uri())
    paper,ink = (sum(map(int, page.evaluate("k => getComputedStyle(document.body)[k].match(/\\d+/g).slice(0, 3)", k)))/3 for k in ('backgroundColor', 'color'))
    assert (paper > 200 and ink < 100) if scheme == 'light' else (paper < 60 and ink > 150)


def test_the_search_finds_by_the_keyboard(page, site):
    page.goto((site/'index.html').as_uri())
    page.locator('#search').press_sequentially('oob_swap')
    options = page.get_by_role('option')
    expect(options.first).to_contain_text('oob_swap')
    page.keyboard.press('ArrowDown')
    expect(options.nth(1)).to_have_attribute('aria-selected', 'true')
    page.keyboard.press('ArrowUp')
    page.keyboard.press('Enter')
    page.wait_for_url('**/helpers.html*')
    page.goto((site/'index.html').as_uri())
    page.locator('#search').press_sequentially('zzqqxx')
    expect(page.locator('#found')).to_have_text('Nothing found')


@pytest.mark.parametrize('words, where', {'offline': 'recipes.html#offline', 'self host': 'recipes.html#offline', 'notify one user': 'recipes.html#notify-one-user', 'who is online': 'recipes.html#who-is-online',
                                         'multiple workers': 'recipes.html#multiple-workers', 'presence': 'index.html#what-a-real-page-adds', 'celery': 'recipes.html#a-background-task-queue'}.items())
def test_the_search_finds_recipes(page, site, words, where):
    "By the words that people look for; among the first three"
    page.goto((site/'index.html').as_uri())
    page.locator('#search').fill(words)
    expect(page.get_by_role('option').first).to_be_visible()
    found = page.get_by_role('option').evaluate_all('all => all.slice(0, 3).map(o => o.dataset.url)')
    assert any(where in o for o in found), found
