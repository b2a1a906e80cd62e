"The app of the recipe for pages that load nothing from elsewhere, as it stands there"
import json
import sys
from pathlib import Path

from browsers import new_context
from handmade import ASSETS
from playwright.sync_api import expect

from tests.contract.servers import running

RECIPES = Path(__file__).parents[2]/'nbs/tutorials/recipes.ipynb'
FILES = {'htmx-2.0.7.min.js': 'htmx.org/dist/htmx.min.js', 'htmx-ext-sse-2.2.4.js': 'htmx-ext-sse/dist/sse.min.js'}


def test_no_other_host(browser, tmp_path):
    "Two tabs, and no other host is reachable: nothing asks for one, and what one tab says stands in both"
    cells = [''.join(c['source']) for c in json.loads(RECIPES.read_text())['cells']]
    (tmp_path/'main.py').write_text(next(o for o in cells if o.rstrip().endswith('\nserve()')))
    (tmp_path/'static').mkdir()
    for name,path in FILES.items(): (tmp_path/'static'/name).write_bytes((ASSETS/path).read_bytes())
    with running([sys.executable, 'main.py'], tmp_path/'log', cwd=tmp_path) as server, new_context(browser) as context:
        asked,said = [],[]
        context.on('request', lambda r: asked.append(r.url))
        context.on('console', lambda m: 'favicon' in str(m.location) or said.append(m.text))
        tabs = [context.new_page() for _ in range(2)]
        for tab in tabs: tab.goto(server.url)
        for tab in tabs: tab.wait_for_function('window.cjmSSE?.sources.length')
        tabs[0].locator('input').fill('Milk')
        tabs[0].keyboard.press('Enter')
        for tab in tabs: expect(tab.locator('#notes li')).to_have_text(['Milk'])
    assert [o for o in asked if not o.startswith(server.url)] == said == []
