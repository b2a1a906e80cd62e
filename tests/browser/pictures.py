"""Start the apps of the tutorials, and the demo, as a reader would, use them in two tabs of Chromium, and take the pictures

    python tests/browser/pictures.py            all of them, into nbs/images/
    python tests/browser/pictures.py chat       one of them
    python tests/browser/pictures.py film       the home page's moving picture, from the demo; needs Pillow

Each app of a tutorial is what its notebook says: the cell that ends with `serve()`, alone in a `main.py` in an empty folder.
A page that complains in its console, or that doesn't show what its tutorial says, makes this fail.
"""
import base64
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

from playwright.sync_api import TimeoutError, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
NBS = ROOT/'nbs'
sys.path[:0] = [str(ROOT), str(ROOT/'tools'), str(ROOT/'tests/contract/browser')]
import assets  # noqa: E402
from browsers import chromium  # noqa: E402
from cjm_fasthtml_sse.backends.redis import Publisher  # noqa: E402
from cjm_fasthtml_sse.core import SSEBroadcastManager  # noqa: E402
from tests.contract.servers import running, uvicorn  # noqa: E402
from tests.contract.support import Redis  # noqa: E402

# Where an address of a CDN leads to; of the others the tutorials make no use
FILES = {'npm/htmx.org@2': 'htmx.org/dist/htmx.js', 'npm/htmx.org@4.0.0/dist/htmx.': 'htmx4-0/dist/htmx.min.js',
         'npm/htmx.org@4.0.0/dist/ext/hx-sse.': 'htmx4-0/dist/ext/hx-sse.min.js', 'npm/idiomorph@': 'idiomorph/dist/idiomorph.min.js',
         'npm/htmx-ext-sse@': 'htmx-ext-sse/dist/sse.min.js', 'npm/@anyblades/pico@': '@anyblades/pico/css/pico.min.css'}
WALKS = {}  # Tutorial: what is done with its app


def walk(f):
    WALKS[f.__name__] = f
    return f


def apps_of(name):
    "The `main.py` of a tutorial; each of them, where it has several"
    cells = json.loads((NBS/'tutorials'/f'{name}.ipynb').read_text(encoding='utf-8'))['cells']
    apps = [src for src in (''.join(c['source']) for c in cells if c['cell_type'] == 'code') if src.rstrip().endswith('serve()')]
    assert apps, f'{name} has no cell that ends with serve()'
    return apps


@contextmanager
def a_folder():
    with tempfile.TemporaryDirectory() as folder: yield Path(folder)


@contextmanager
def a_tutorial(code, **env):
    "Run `code` as main.py in an empty folder"
    with a_folder() as folder:
        (folder/'main.py').write_text(code, encoding='utf-8')
        with running([sys.executable, 'main.py'], folder/'log', cwd=folder, env=env) as server: yield server


@contextmanager
def the_demo(code=None):
    "Run the demo on some folders"
    with a_folder() as folder:
        root = folder/'files'
        for name, n, size in ('photos', 70, 1_400_000), ('invoices', 1000, 60_000), ('music', 20, 4_000_000), ('letters', 40, 20_000):
            (root/name).mkdir(parents=True)
            for i in range(1, n + 1): (root/name/f'{name.rstrip("s")}-{i:03}').write_bytes(os.urandom(1000)*(size//1000))
        for i in range(3): (root/'letters'/f'lost-{i}').symlink_to('/nowhere')  # What can't be read is shown too
        command = [sys.executable, ROOT/'demo/main.py', '--root', root, '--rate', '12', '--port', '{port}']
        with running(command, folder/'log', cwd=folder) as server: yield server


@contextmanager
def a_backend():
    "A Redis and a file, and the settings by which an app finds them"
    with a_folder() as folder:
        redis = Redis(folder).start()
        try: yield dict(REDIS_URL=redis.url(), BACKEND=f'sqlite:///{folder}/notes.db')
        finally: redis.kill()


class Tabs:
    "Tabs of one browser, and what else a walk needs"
    def __init__(self, browser, url, size, code, env, scale=2):
        self.browser,self.url,self.size,self.code,self.env,self.scale,self.complaints = browser,url,size,code,env,scale,[]
        self.context = self.person()

    def person(self):
        "A browser of somebody else, without any cookie"
        context = self.browser.new_context(viewport=self.size, device_scale_factor=self.scale)
        def fulfil(route):
            there = next((f for start, f in FILES.items() if start in route.request.url), None)
            if there: route.fulfill(path=assets.MODULES/there)
            else: route.fulfill(body='', content_type='text/javascript')  # What the tutorials make no use of
        context.route('https://cdn.jsdelivr.net/**', fulfil)
        return context

    def open(self, path='/', context=None, secs=10):
        page = (context or self.context).new_page()
        page.set_default_timeout(secs*1000)
        page.on('pageerror', lambda e: self.complaints.append(str(e)))
        page.on('console', lambda m: m.type in ('warning', 'error') and 'favicon' not in str(m.location) and self.complaints.append(m.text))
        page.goto(path if '://' in path else self.url + path)
        until = time.monotonic() + secs  # `wait_for_function` needs `eval`, which the policy of a page may forbid
        while not page.evaluate('() => !window.cjmSSE || cjmSSE.sources.every(s => s.state === "active")'):
            if time.monotonic() > until: raise TimeoutError(f'{path} has no connection')
            page.wait_for_timeout(20)
        return page

    def send(self, page, text, name='text'):
        "Type into a field, and Enter"
        page.fill(f'[name={name}]', text)
        page.press(f'[name={name}]', 'Enter')

    def show(self, selector, *pages):
        "Wait until each page shows it"
        for o in pages: o.wait_for_selector(selector)

    def picture(self, name, **tabs):
        "Put tabs side by side, each with its title, into nbs/images/"
        out = NBS/'images'/f'{name}.png'
        out.write_bytes(self.side_by_side(1.5, **tabs)[0])
        print(out.relative_to(ROOT))

    def side_by_side(self, scale, **tabs):
        "The tabs in one PNG, and where in it each of their pictures stands"
        w, h = self.size['width'], self.size['height']
        frames = ''.join(f'''<figure><figcaption><i></i><i></i><i></i><b>{title.replace("_", " ")}</b></figcaption>
            <img src="data:image/png;base64,{base64.b64encode(page.screenshot()).decode()}" width={w} height={h}></figure>''' for title, page in tabs.items())
        page = self.browser.new_page(viewport=dict(width=(w + 18)*len(tabs) + 16, height=h + 60), device_scale_factor=scale)
        page.set_content(f'''<style>body {{ margin: 16px; display: flex; gap: 16px; background: #dde3ea; font: 13px sans-serif }} img {{ display: block }}
            figure {{ margin: 0; background: #fff; border: 1px solid #aeb8c4; border-radius: 8px; overflow: hidden; box-shadow: 0 2px 8px #0002 }}
            figcaption {{ padding: 6px 10px; background: #f2f4f7; border-bottom: 1px solid #d5dbe2; display: flex; gap: 6px; align-items: center }}
            i {{ width: 9px; height: 9px; border-radius: 9px; background: #c3ccd6 }} b {{ margin-left: 6px; font-weight: 500; color: #445 }}</style>{frames}''')
        places = page.eval_on_selector_all('img', 'all => all.map(o => [o.getBoundingClientRect().x, o.getBoundingClientRect().y])')
        png = page.screenshot(full_page=True)
        page.close()
        return png, [tuple(round(scale*o) for o in xy) for xy in places]


@walk
def demo(tabs):
    "The demo on a wide and a narrow screen, light and dark"
    one, two = tabs.open(), tabs.open()
    def start(folder):
        one.fill('#folder', folder)
        one.click('form button')
        two.wait_for_selector(f'#jobs > li:first-child:has-text("{folder}")')
    def shows(state, tab=two): tab.wait_for_selector(f'#jobs > li.{state}')
    start('letters')
    shows('finished')
    start('invoices')
    two.wait_for_function('document.querySelector("#jobs > li:first-child progress").value > .3')
    two.click('#jobs > li:first-child >> text=Cancel')
    shows('cancelled', one)
    start('music')
    start('photos')
    two.wait_for_function('document.querySelector("#jobs > li:first-child progress").value > .4')
    for page in one, two: page.close()
    for name, width in ('wide', 840), ('narrow', 390):
        for scheme in 'light', 'dark':
            page = tabs.open()
            page.set_viewport_size(dict(width=width, height=640))
            page.emulate_media(color_scheme=scheme)
            shows('running', page)
            page.evaluate(NAMED)
            out = NBS/'images'/f'demo-{name}{"-dark"*(scheme == "dark")}.png'
            page.screenshot(path=out, full_page=True)
            page.close()
            print(out.relative_to(ROOT))

demo.app = the_demo


NAMED = 'document.getElementById("where").textContent = "In /srv/files"'  # Instead of a folder that was made for the picture
POINTER = """
const at = document.createElement('div')
at.id = 'pointer'
at.innerHTML = '<svg width=26 height=26 viewBox="0 0 26 26"><path d="M3 2v17l4.6-4.2 3 6.9 3.4-1.5-3-6.7h6.2z" fill="#111" stroke="#fff" stroke-width="1.6"/></svg>'
at.style.cssText = 'position: fixed; z-index: 99; left: -50px; top: 0; pointer-events: none'
document.documentElement.append(at)
addEventListener('mousemove', e => { at.style.left = e.clientX - 3 + 'px'; at.style.top = e.clientY - 2 + 'px' })
"""


@walk
def film(tabs):
    "Two tabs of the demo that move together: a job is started in one, another one in the other, which then stops the first one's"
    import io
    try: from PIL import Image
    except ImportError: sys.exit('The film needs Pillow: pip install pillow')
    shots = []
    one, two = tabs.open(), tabs.open()
    for tab in one, two:
        tab.add_style_tag(content='body { padding-bottom: 40rem } * { caret-color: transparent }')
        tab.evaluate(NAMED)
        tab.evaluate(POINTER)
        tab.wait_for_selector('#tabs:text-is("2")')
        tab.evaluate('scrollTo(0, document.querySelector("form").offsetTop - 16)')
    # Playwright's own `screenshot` takes ten times as long, as it waits for what moves
    cameras = [tabs.context.new_cdp_session(tab) for tab in (one, two)]
    def shoot():
        if shots and (rest := shots[-1][0] + .1 - time.monotonic()) > 0: one.wait_for_timeout(1000*rest)
        shots.append((time.monotonic(), *[base64.b64decode(o.send('Page.captureScreenshot', dict(format='png'))['data']) for o in cameras]))
    def roll(secs):
        end = time.monotonic() + secs
        while time.monotonic() < end: shoot()
    def point(tab, selector, steps=5):
        box = tab.evaluate('o => document.querySelector(o).getBoundingClientRect().toJSON()', selector)
        x, y = getattr(tab, 'at', (380, 690))
        x2, y2 = box['x'] + box['width']/2, box['y'] + box['height']/2
        for i in range(1, steps + 1):
            k = (1 - (1 - i/steps)**2)
            tab.mouse.move(x + (x2 - x)*k, y + (y2 - y)*k)
            shoot()
        tab.at = x2, y2
        tab.mouse.down()
        tab.mouse.up()
    def start(tab, folder):
        point(tab, '#folder')
        for i in range(len(folder)):
            tab.keyboard.type(folder[i])
            if i % 2: shoot()
        point(tab, 'form button')
        tabs.show(f'#jobs > li:first-child:has-text("{folder}")', one, two)
    roll(.4)
    start(one, 'photos')
    roll(1)
    start(two, 'invoices')
    roll(1.5)
    point(one, '#jobs > li:first-child button')
    tabs.show('#jobs > li.cancelled', one, two)
    one.mouse.move(-50, 0)
    while not one.query_selector('#jobs > li.finished') or not two.query_selector('#jobs > li.finished'): shoot()
    roll(1)
    png, places = tabs.side_by_side(tabs.scale, Tab_1=one, Tab_2=two)
    background = Image.open(io.BytesIO(png)).convert('RGB')
    frames = []
    for _, *pngs in shots:
        frame = background.copy()
        for place, shot in zip(places, pngs): frame.paste(Image.open(io.BytesIO(shot)).convert('RGB'), place)
        frames.append(frame)
    times = [t for t, *_ in shots]
    spans = [round(1000*(b - a)) for a, b in zip(times, times[1:])] + [2500]
    out = NBS/'images'/'demo-moving.webp'
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=spans, loop=0, lossless=False, quality=60, method=4, minimize_size=True)
    still = NBS/'images'/'demo-still.webp'  # For those who want nothing to move
    frames[len(frames)*5//8].save(still, quality=80, method=6)
    for o in out, still: print(o.relative_to(ROOT), f'{o.stat().st_size/1000:.0f} KB, {frames[0].size}, {len(frames)} pictures, {sum(spans)/1000:.1f} s')

film.size, film.scale, film.app = dict(width=525, height=725), 1, the_demo


@contextmanager
def the_board(code=None):
    "Two processes of a busy app with a dashboard"
    with a_folder() as folder:
        env = dict(DB=f'sqlite:///{folder}/events.db')
        def process(n): return running(uvicorn('board:app', '--log-level', 'warning'), folder/f'log{n}', cwd=ROOT/'tests/apps', env=env | dict(NAME=f'web-{n}:{4700 + 7*n}'))
        with process(1) as one, process(2): yield one


@walk
def dashboard(tabs):
    "The dashboard after two minutes: the whole on a wide screen, and its tables on a narrow one, dark"
    page = tabs.open('/_sse/dashboard')
    page.wait_for_timeout(125_000)
    for name, width, scheme in ('wide', 1120, 'light'), ('narrow-dark', 390, 'dark'):
        page.set_viewport_size(dict(width=width, height=900))
        page.emulate_media(color_scheme=scheme)
        def place(selector): return page.locator(selector).first.bounding_box()
        types, counters = place('.lists'), place('dl')
        top, bottom = (0, types['y'] + 120) if name == 'wide' else (counters['y'] - 16, types['y'])
        out = NBS/'images'/f'dashboard-{name}.png'
        page.screenshot(path=out, full_page=True, clip=dict(x=0, y=top, width=width, height=bottom - top))
        print(out.relative_to(ROOT))

dashboard.app, dashboard.scale = the_board, 1.5


@walk
def first_app(tabs):
    one, two = tabs.open(), tabs.open()
    for what, where in ('Milk', one), ('Bread', two), ('Call Grandma', one):
        tabs.send(where, what, 'title')
        tabs.show(f'#todos > li:text-is("{what}")', one, two)
    tabs.picture('tutorial-first-app', Tab_1=one, Tab_2=two)
    one.reload()
    one.wait_for_selector('#todos > li:nth-child(3)')
    assert one.locator('#todos > li').count() == 3, one.inner_html('#todos')


@walk
def job_board(tabs):
    one, two = tabs.open(), tabs.open()
    def start(tab, name, rows, broken=''):
        for k, v in dict(name=name, rows=rows, broken=broken).items(): tab.fill(f'[name={k}]', str(v))
        tab.click('button')
        tabs.show(f'#jobs > li:has-text("{name}")', one, two)
    def shows(tab, text, n=1): tab.wait_for_function('([text, n]) => [...document.querySelectorAll("#jobs > li")].filter(o => o.innerText.includes(text)).length === n', arg=[text, n])
    start(one, 'Prices', 30)
    start(two, 'Customers', 400, 10)
    start(one, 'Suppliers', 500)
    start(one, 'Orders', 500)
    for tab in one, two:
        shows(tab, 'Completed')
        shows(tab, 'Failed: row 10')
    two.click('#jobs > li:has-text("Suppliers") >> text=Stop')
    for tab in one, two: shows(tab, 'Cancelled')
    one.wait_for_function('document.querySelector("#jobs > li:last-child progress").value > 100')
    tabs.picture('tutorial-job-board', Tab_1=one, Tab_2=two)
    job = tabs.open(one.get_attribute('#jobs > li:last-child > a:text-is("Page")', 'href'))
    job.wait_for_selector('li[id^=job] progress')
    two.click('#jobs > li:last-child >> text=Stop')
    job.wait_for_selector('li[id^=job] >> text=Cancelled')
    late = tabs.open()
    shows(late, 'Cancelled', 2)

job_board.size = dict(width=560, height=460)


@walk
def chat(tabs):
    def enter(name, room='lobby'):
        context = tabs.context if name == 'Ann' else tabs.person()
        page = tabs.open('/', context)
        page.fill('[name=name]', name)
        page.click('button')
        page.wait_for_selector('#talk', state='attached')
        if room != 'lobby': page.click(f'nav >> text={room}')
        page.wait_for_function('cjmSSE.sources.length && cjmSSE.sources.every(s => s.state === "active")')
        return page
    def say(page, text, *readers):
        tabs.send(page, text)
        tabs.show(f'#{"private" if "@" in text else "talk"} > li:has-text("{text.rpartition("@Ben ")[2]}")', *readers)
    ann, ben, carl = enter('Ann'), enter('Ben'), enter('Carl', 'coffee break')
    again = tabs.open('/room/lobby')
    tabs.show('#online:text-is("Online: Ann, Ben, Carl")', ann, ben, carl)
    say(ann, 'Good morning!', ann, again, ben)
    say(ben, 'Morning. Is there cake?', ann, ben)
    say(carl, 'Is anybody here?', carl)
    say(ann, '@Ben There is, but not for everybody', ann, again, ben)
    ben.type('[name=text]', 'Ah, some cake', delay=100)
    tabs.show('#busy:text-is("Ben …")', ann, again)
    assert carl.locator('#talk > li').count() == 1
    tabs.picture('tutorial-chat', Ann=ann, Ben=ben, Carl=carl)
    ann.click('text=Log out')
    ann.wait_for_selector('[name=name]')
    ben.wait_for_selector('#online:text-is("Online: Ben, Carl")')
    tabs.complaints = [o for o in tabs.complaints if '401' not in o]  # Her other tab asked once more, and was told no

chat.size = dict(width=440, height=440)


@walk
def tabs(tabs):
    def says(streams, direct, *pages):
        for name, n in dict(streams=streams, direct=direct).items(): tabs.show(f'#{name}:text-is("{n}")', *pages)
    one = tabs.open()
    says(1, 0, one)
    two = tabs.open()
    says(2, 0, one, two)
    own = tabs.open('/?multiplex=False')
    says(3, 1, one, two, own)
    tabs.show('#connection-status:has-text("Connected")', one, two, own)
    tabs.picture('tutorial-tabs', Tab_1=one, Tab_2=two, Tab_3=own)
    one.close()
    more = [tabs.open() for _ in range(11)]
    says(13, 1, two, own, *more)
    for o in more: o.close()
    # What the tutorial says of the seventh connection
    page = tabs.open('/?multiplex=False', tabs.person())
    full = [page, *(tabs.open('/?multiplex=False', page.context) for _ in range(5))]
    try: tabs.open('/?multiplex=False', page.context, secs=2)
    except TimeoutError: pass
    else: raise AssertionError('the seventh tab loaded')
    full[0].close()
    tabs.complaints = [o for o in tabs.complaints if 'net::ERR_ABORTED' not in o]

tabs.size = dict(width=400, height=300)


@walk
def from_hand_written(tabs):
    one, two = tabs.open(), tabs.open()
    for tab, drink, n in (one, 'tea', 1), (two, 'coffee', 1), (two, 'tea', 2), (one, 'tea', 3):
        tab.click(f'button:text-is("{drink}")')
        tabs.show(f'#{drink}:text-is("{n}")', one, two)
    tabs.picture('tutorial-from-hand-written', Tab_1=one, Tab_2=two)


@walk
def to_live_elements(tabs):
    one, two = tabs.open(), tabs.open()
    for tab, drink, n in (one, 'tea', 1), (two, 'water', 1), (two, 'tea', 2), (one, 'tea', 3):
        tab.click(f'button:text-is("{drink}")')
        tabs.show(f'li:has-text("{drink} {n}")', one, two)
        tabs.show(f'#toasts > p:has-text("Somebody drinks {drink}")', one, two)
    tabs.show('#people:text-is("1 here")', one, two)
    two.wait_for_timeout(500)  # The bars have moved
    tabs.picture('tutorial-to-live-elements', Tab_1=one, Tab_2=two)

to_live_elements.size = dict(width=460, height=480)


@walk
def testing(tabs):
    one = tabs.open()
    tabs.send(one, 'Ann', 'name')
    one.wait_for_selector('#todos', state='attached')
    two = tabs.open()
    tabs.send(two, 'Milk', 'title')
    tabs.show('#todos > li:has-text("Milk by Ann")', one, two)


@walk
def security(tabs):
    pages = {}
    for name in 'Ann', 'Ben':
        page = pages[name] = tabs.open('/', tabs.person())
        page.on('dialog', lambda d: tabs.complaints.append(f'ran: {d.message}'))
        page.fill('[name=name]', name)
        page.click('button')
        page.wait_for_selector('#notes', state='attached')
        while page.evaluate('cjmSSE.state') != 'active': page.wait_for_timeout(20)
    ann, ben = pages.values()
    def say(page, text, to, *readers):
        page.fill('[name=to]', to)
        tabs.send(page, text)
        tabs.show(f'#notes > li:has-text("{text}")', *readers)
    say(ann, 'Good morning', '', ann, ben)
    say(ben, '<script>alert(1)</script>', '', ann, ben)
    say(ben, 'Sorry. Lunch?', 'Ann', ann)
    assert (ann.locator('#notes > li').count(), ben.locator('#notes > li').count()) == (3, 2)
    assert ann.input_value('[name=text]') == ben.input_value('[name=text]') == ''
    tabs.picture('tutorial-security', Ann=ann, Ben=ben)
    ben.click('button.secondary')
    ben.wait_for_selector('[name=name]')
    say(ann, 'Gone?', '', ann)

security.size = dict(width=440, height=400)


def report(code, env):
    "What a cron job does"
    if 'REDIS_URL' in code:
        with Publisher(env['REDIS_URL']) as script: return script.broadcast('note:added', dict(text='The report is ready', by='cron'))
    sse = SSEBroadcastManager(backend=env['BACKEND'])
    with sse.transaction() as db:
        db.execute("insert into note values('The report is ready', 'cron')")
        sse.changed('notes')

@walk
def workers(tabs):
    with a_tutorial(tabs.code, **tabs.env) as other, ThreadPoolExecutor(1) as pool:
        one, two = tabs.open(), tabs.open(other.url)
        for n, (tab, text) in enumerate([(one, 'The kettle is on'), (two, 'There is cake'), (None, '')], 1):
            if tab: tabs.send(tab, text)
            else: pool.submit(report, tabs.code, tabs.env).result()  # Playwright has an event loop in this thread
            tabs.show(f'#notes > li:nth-child({n})', one, two)
        assert len({tab.inner_text('main > p') for tab in (one, two)}) == 2 and one.inner_text('#notes') == two.inner_text('#notes')
        tabs.picture('tutorial-workers', Process_1=one, Process_2=two)

workers.size, workers.around = dict(width=460, height=330), a_backend


@walk
def htmx4(tabs):
    old, new = tabs.open('/2/'), tabs.open('/4/')
    assert [o.evaluate('htmx.version')[0] for o in (old, new)] == ['2', '4']
    tabs.show('#connection-status:has-text("Connected")', old, new)
    def holds(tab, name, value): tab.wait_for_function('([name, value]) => document.getElementById(name).value === value', arg=[name, value])
    def say(tab, text):
        tabs.send(tab, text)
        tabs.show(f'#talk > li:text-is("{text}")', old, new)
        tab.wait_for_function('document.querySelector("[name=text]").value === ""')
    say(old, 'Is there cake?')
    say(new, 'There is')
    for here, there, place, food in (old, new, 'In the wood', 'Bread and c'), (new, old, 'By the lake', 'Bread and cake'):
        there.fill('#bring', food)  # Not sent yet: the field has the focus
        here.fill('#where', place)
        here.click('h1')
        holds(there, 'where', place)
        holds(there, 'bring', food)
        assert there.evaluate('document.activeElement.id') == 'bring'
    old.click('h1')
    for o in old, new: holds(o, 'bring', 'Bread and cake')
    tabs.picture('tutorial-htmx4', htmx_2=old, htmx_4=new)

htmx4.size = dict(width=440, height=450)


def main(names):
    if unknown := set(names) - WALKS.keys(): sys.exit(f"no pictures of {', '.join(unknown)}. There are: {', '.join(WALKS)}")
    if not assets.fetch(dev=True): sys.exit('npm is needed, to fetch htmx')
    bad = []
    with sync_playwright() as playwright, chromium(playwright) as browser:
        for name, f in WALKS.items():
            if names and name not in names: continue
            app = getattr(f, 'app', None)
            for code in [None] if app else apps_of(name):
                with getattr(f, 'around', lambda: nullcontext({}))() as env, (app or a_tutorial)(code, **env) as server:
                    tabs = Tabs(browser, server.url, getattr(f, 'size', dict(width=460, height=300)), code, env, getattr(f, 'scale', 2))
                    f(tabs)
                    said = [o for o in server.output.split('\n') if any(word in o for word in ('Traceback', 'ERROR', 'WARNING:  '))]
                    bad += [f'{name}: {o}' for o in tabs.complaints + said]
                    for c in browser.contexts: c.close()
    print(*bad, sep='\n')
    return bool(bad)


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
