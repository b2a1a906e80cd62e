"The app of the recipe for pages that load nothing from elsewhere, as it stands there"
import json
import re
import sys
from pathlib import Path

from playwright.sync_api import expect

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.contract.servers import free_port, running  # noqa: E402

ROOT = Path(__file__).parents[2]
FILES = {'htmx-2.0.7.min.js': 'htmx.org/dist/htmx.min.js', 'htmx-ext-sse-2.2.4.js': 'htmx-ext-sse/dist/sse.min.js'}


def test_no_other_host(browser, tmp_path):
    "Two tabs, and no other host is reachable: nothing asks for one, and what one tab says stands in both"
    cells = [''.join(c['source']) for c in json.loads((ROOT/'nbs/tutorials/recipes.ipynb').read_text())['cells']]
    (tmp_path/'main.py').write_text(next(o for o in cells if o.rstrip().endswith('\nserve()')))
    (tmp_path/'static').mkdir()
    for name, path in FILES.items(): (tmp_path/'static'/name).write_bytes((ROOT/'.assets/node_modules'/path).read_bytes())
    port = free_port()
    with running([sys.executable, 'main.py'], tmp_path/'log', port=port, env={'PORT': str(port)}, cwd=tmp_path) as server:
        context,others,said = browser.new_context(),[],[]
        def elsewhere(route):
            others.append(route.request.url)
            route.abort()
        context.route(lambda url: not url.startswith(server.url), elsewhere)
        tabs = [context.new_page() for _ in range(2)]
        for tab in tabs:
            tab.on('console', lambda m: said.append(m.text))
            tab.goto(server.url)
        for tab in tabs: tab.wait_for_function('window.cjmSSE?.sources.length')
        tabs[0].locator('input').fill('Milk')
        tabs[0].keyboard.press('Enter')
        for tab in tabs: expect(tab.locator('#notes li')).to_have_text(['Milk'])
        context.close()
    assert others == [] and [o for o in said if not re.search('favicon', o)] == []
