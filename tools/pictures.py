"""Start the apps of the tutorials as a reader would, use them in two tabs of Chromium, and take the pictures

    python tools/pictures.py            all of them, into nbs/images/
    python tools/pictures.py chat       one of them

Each app is what its notebook says: the cell that ends with `serve()`, alone in a `main.py` in an empty folder. A page that
complains in its console, or that doesn't show what its tutorial says, makes this fail.
"""
import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from playwright.sync_api import TimeoutError, sync_playwright

import assets
import project as p

FLAGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
FILES = {'npm/htmx.org@2': 'htmx.org/dist/htmx.js', 'npm/htmx.org@4.0.0/dist/htmx.': 'htmx4-0/dist/htmx.min.js', 'npm/htmx.org@4.0.0/dist/ext/hx-sse.': 'htmx4-0/dist/ext/hx-sse.min.js',
         'npm/idiomorph@': 'idiomorph/dist/idiomorph.min.js', 'npm/htmx-ext-sse@': 'htmx-ext-sse/dist/sse.min.js', 'npm/@anyblades/pico@': '@anyblades/pico/css/pico.min.css'}
WALKS = {}  # Tutorial -> what is done with its app


def walk(f):
    WALKS[f.__name__] = f
    return f


def apps_of(name):
    "The `main.py` of a tutorial; each of them, where it has several"
    apps = [src for kind, src in p.cells(p.NBS/'tutorials'/f'{name}.ipynb') if kind == 'code' and src.rstrip().endswith('serve()')]
    assert apps, f'{name} has no cell that ends with serve()'
    return apps


@contextmanager
def running(code, **env):
    "Run `code` as main.py in an empty folder; gives the address"
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile('w+') as log:
        (Path(folder)/'main.py').write_text(code, encoding='utf-8')
        proc = subprocess.Popen([sys.executable, 'main.py'], cwd=folder, env={**os.environ, 'PORT': str(port), **env}, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(300):
                with suppress(OSError):
                    socket.create_connection(('127.0.0.1', port), 1).close()
                    break
                time.sleep(.05)
            yield f'http://localhost:{port}'
        finally:
            os.killpg(proc.pid, signal.SIGINT)
            try: proc.wait(10)
            except subprocess.TimeoutExpired: os.killpg(proc.pid, signal.SIGKILL)
            log.seek(0)
            said = log.read()
            if any(o in said for o in ('Traceback', 'ERROR', 'WARNING:  ')): print(said[-3000:])


@contextmanager
def a_redis():
    "A Redis, and the setting by which an app finds it"
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    server = subprocess.Popen(['redis-server', '--port', str(port), '--bind', '127.0.0.1', '--save', '', '--dir', '/'], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with suppress(OSError):
                socket.create_connection(('127.0.0.1', port), 1).close()
                break
            time.sleep(.05)
        yield dict(REDIS_URL=f'redis://127.0.0.1:{port}')
    finally:
        server.kill()
        server.wait(10)


class Tabs:
    "Tabs of one browser, and what else a walk needs"
    def __init__(self, browser, url, size, code, env):
        self.browser,self.url,self.size,self.code,self.env,self.complaints = browser,url,size,code,env,[]
        self.context = self.person()

    def person(self):
        "A browser of somebody else, without any cookie"
        context = self.browser.new_context(viewport=self.size, device_scale_factor=2)
        def fulfil(route):
            there = next((f for start, f in FILES.items() if start in route.request.url), None)
            if there: route.fulfill(path=assets.folder()/there)
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

    def picture(self, name, **tabs):
        "Put tabs side by side, each with its title, into nbs/images/"
        w, h = self.size['width'], self.size['height']
        frames = ''.join(f'''<figure><figcaption><i></i><i></i><i></i><b>{title.replace("_", " ")}</b></figcaption>
            <img src="data:image/png;base64,{base64.b64encode(page.screenshot()).decode()}" width={w} height={h}></figure>''' for title, page in tabs.items())
        page = self.browser.new_page(viewport=dict(width=(w + 18)*len(tabs) + 16, height=h + 60), device_scale_factor=1.5)
        page.set_content(f'''<style>body {{ margin: 16px; display: flex; gap: 16px; background: #dde3ea; font: 13px sans-serif }} img {{ display: block }}
            figure {{ margin: 0; background: #fff; border: 1px solid #aeb8c4; border-radius: 8px; overflow: hidden; box-shadow: 0 2px 8px #0002 }}
            figcaption {{ padding: 6px 10px; background: #f2f4f7; border-bottom: 1px solid #d5dbe2; display: flex; gap: 6px; align-items: center }}
            i {{ width: 9px; height: 9px; border-radius: 9px; background: #c3ccd6 }} b {{ margin-left: 6px; font-weight: 500; color: #445 }}</style>{frames}''')
        out = p.NBS/'images'/f'{name}.png'
        page.screenshot(path=out, full_page=True)
        page.close()
        print(out.relative_to(p.ROOT))


@walk
def first_app(tabs):
    one, two = tabs.open(), tabs.open()
    for what, where in ('Milk', one), ('Bread', two), ('Call Grandma', one):
        where.fill('[name=title]', what)
        where.press('[name=title]', 'Enter')
        for tab in one, two: tab.wait_for_selector(f'#todos > li:text-is("{what}")')
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
        for o in one, two: o.wait_for_selector(f'#jobs > li:has-text("{name}")')
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
    job.wait_for_selector('[id^=progress-span] progress')
    two.click('#jobs > li:last-child >> text=Stop')
    job.wait_for_selector('[id^=status-span] >> text=Cancelled')
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
        page.fill('[name=text]', text)
        page.press('[name=text]', 'Enter')
        for o in readers: o.wait_for_selector(f'#talk > li:has-text("{text.rpartition("@Ben ")[2]}")')
    ann, ben, carl = enter('Ann'), enter('Ben'), enter('Carl', 'coffee break')
    again = tabs.open('/room/lobby')
    for page in ann, ben, carl: page.wait_for_selector('#online:text-is("Ann, Ben, Carl")')
    say(ann, 'Good morning!', ann, again, ben)
    say(ben, 'Morning. Is there cake?', ann, ben)
    say(carl, 'Is anybody here?', carl)
    say(ann, '@Ben There is, but not for everybody', ann, again, ben)
    assert carl.locator('#talk > li').count() == 1
    tabs.picture('tutorial-chat', Ann=ann, Ben=ben, Carl=carl)
    ann.click('text=Log out')
    ann.wait_for_selector('[name=name]')
    ben.wait_for_selector('#online:text-is("Ben, Carl")')
    tabs.complaints = [o for o in tabs.complaints if '401' not in o]  # Her other tab asked once more, and was told no

chat.size = dict(width=440, height=440)


@walk
def tabs(tabs):
    def says(n, *pages):
        for o in pages: o.wait_for_selector(f'#connections:text-is("{n}")')
    one = tabs.open()
    says(1, one)
    two = tabs.open()
    says(1, one, two)
    own = tabs.open('/?share=False')
    says(2, one, two, own)
    for o in one, two, own: o.wait_for_selector('#connection-status:has-text("Connected")')
    tabs.picture('tutorial-tabs', Tab_1=one, Tab_2=two, Tab_3=own)
    one.close()
    more = [tabs.open() for _ in range(11)]
    says(2, two, own, *more)
    for o in more: o.close()
    # What the tutorial says of the seventh connection
    page = tabs.open('/?share=False', tabs.person())
    full = [page, *(tabs.open('/?share=False', page.context) for _ in range(5))]
    try: tabs.open('/?share=False', page.context, secs=2)
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
        for o in one, two: o.wait_for_selector(f'#{drink}:text-is("{n}")')
    tabs.picture('tutorial-from-hand-written', Tab_1=one, Tab_2=two)


@walk
def testing(tabs):
    tabs.open().fill('[name=name]', 'Ann')
    one = tabs.context.pages[0]
    one.press('[name=name]', 'Enter')
    one.wait_for_selector('#todos', state='attached')
    two = tabs.open()
    two.fill('[name=title]', 'Milk')
    two.press('[name=title]', 'Enter')
    for o in one, two: o.wait_for_selector('#todos > li:text-is("Milk by Ann")')


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
        page.fill('[name=text]', text)
        page.fill('[name=to]', to)
        page.press('[name=text]', 'Enter')
        for o in readers: o.wait_for_selector(f'#notes > li:has-text("{text}")')
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


@walk
def redis(tabs):
    from cjm_fasthtml_sse.redis_backend import Publisher
    with running(tabs.code, **tabs.env) as other, Publisher(tabs.env['REDIS_URL']) as script:
        one, two = tabs.open(), tabs.open(other)
        def says(n): [tab.wait_for_selector(f'#notes > li:nth-child({n})') for tab in (one, two)]
        for n, tab in (1, one), (2, two):
            tab.fill('[name=text]', ('The kettle is on', 'There is cake')[n-1])
            tab.press('[name=text]', 'Enter')
            says(n)
        script.broadcast('note:added', dict(text='The report is ready', by='cron'))
        says(3)
        assert len({tab.inner_text('main > p') for tab in (one, two)}) == 2 and one.inner_text('#notes') == two.inner_text('#notes')
        tabs.picture('tutorial-redis', Process_1=one, Process_2=two)

redis.size, redis.around = dict(width=460, height=330), a_redis


@walk
def htmx4(tabs):
    old, new = tabs.open('/2/'), tabs.open('/4/')
    assert [o.evaluate('htmx.version')[0] for o in (old, new)] == ['2', '4']
    for tab in old, new: tab.wait_for_selector('#connection-status:has-text("Connected")')
    def holds(tab, name, value): tab.wait_for_function('([name, value]) => document.getElementById(name).value === value', arg=[name, value])
    def say(tab, text):
        tab.fill('[name=text]', text)
        tab.press('[name=text]', 'Enter')
        for o in old, new: o.wait_for_selector(f'#talk > li:text-is("{text}")')
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
    with sync_playwright() as pw:
        browser = pw.chromium.launch(executable_path=shutil.which('chromium'), args=FLAGS)
        for name, f in WALKS.items():
            if names and name not in names: continue
            for code in apps_of(name):
                with getattr(f, 'around', lambda: nullcontext({}))() as env, running(code, **env) as url:
                    tabs = Tabs(browser, url, getattr(f, 'size', dict(width=460, height=300)), code, env)
                    f(tabs)
                    bad += [f'{name}: {o}' for o in tabs.complaints]
                    for c in browser.contexts: c.close()
        browser.close()
    print(*bad, sep='\n')
    return bool(bad)


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
