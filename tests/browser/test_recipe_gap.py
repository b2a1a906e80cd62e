"The recipe of a page that misses nothing: what no replay can bring, it fetches with the page"
import json
import signal
from pathlib import Path

import httpx
from browsers import new_context
from handmade import ASSETS
from playwright.sync_api import expect

from tests.contract.servers import BOUND, running, uvicorn, wait_until

RECIPES = Path(__file__).parents[2]/'nbs/tutorials/recipes.ipynb'
SCRIPTS = {'htmx-ext-sse': 'htmx-ext-sse/dist/sse.min.js', 'htmx.org': 'htmx.org/dist/htmx.min.js'}
IMPORTS = 'from fasthtml.common import *\nfrom cjm_fasthtml_sse.common import *\n'


def cdn(route):
    found = next((o for name, o in SCRIPTS.items() if f'/{name}@' in route.request.url), None)
    if found is None: return route.abort()
    route.fulfill(body=(ASSETS/found).read_bytes(), content_type='text/javascript', headers={'Access-Control-Allow-Origin': '*'})


def test_a_gap_brings_the_page(browser, tmp_path):
    "The file is replaced while the app is down. The page shows what is in the new one, without a reload, and its stream goes on"
    cells = [''.join(c['source']) for c in json.loads(RECIPES.read_text())['cells']]
    code, page = (next(o for o in cells if text in o) for text in ('def buy(', 'def in_all('))
    (tmp_path/'main.py').write_text(f"{IMPORTS}{code}\n{page}".replace("Path(folder.name)/'shop.db'", "Path('shop.db')"))
    cmd = uvicorn('main:app', '--log-level', 'warning')
    def buy(server): httpx.post(f'{server.url}/buy', data=dict(id='cake', n=1), timeout=BOUND).raise_for_status()
    with new_context(browser) as context:
        tab = context.new_page()
        tab.route(lambda url: 'jsdelivr' in url, cdn)
        with running(cmd, tmp_path/'log', cwd=tmp_path) as server:
            tab.goto(server.url)
            tab.wait_for_function('window.cjmSSE?.sources.length')
            buy(server)
            expect(tab.locator('#total')).to_have_text('2 in all')
            expect(tab.locator('#sales li')).to_have_text(['1 cake sold'])
            tab.evaluate('window.same = true')
            server.signal(signal.SIGTERM)
            server.ends()
        for o in tmp_path.glob('shop.db*'): o.unlink()
        with running(cmd, tmp_path/'log2', cwd=tmp_path, port=server.port) as server:
            def is_back():
                tab.evaluate("dispatchEvent(new Event('online'))")  # Not to wait for some seconds
                tab.wait_for_timeout(500)
                return tab.inner_text('#total') == '3 in all'
            wait_until(is_back, 'the page is fetched')
            expect(tab.locator('#sales li')).to_have_count(0)
            tab.wait_for_function('cjmSSE.sources.length === 1')
            for n in 1, 2:
                buy(server)
                expect(tab.locator('#total')).to_have_text(f'{3-n} in all')
                expect(tab.locator('#sales li')).to_have_count(n)
            assert tab.evaluate('window.same')
