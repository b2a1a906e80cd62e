"The demo, in a process of its own, driven in several tabs"
import os
import re
import shutil
import signal
import sys
from base64 import b64encode
from hashlib import sha256, sha384
from pathlib import Path

import httpx
import pytest
from browsers import new_context
from playwright.sync_api import expect

from tests.contract.servers import running, wait_until

PROJECT = Path(__file__).parents[2]
DEMO = PROJECT/'demo/main.py'
EMPTY_CLASS = 'class=""'  # htmx leaves it where a class was
both = pytest.mark.parametrize('switches', [[], ['--htmx4']], ids=['htmx 2', 'htmx 4'])


@pytest.fixture
def switches(): return []


@pytest.fixture
def root(tmp_path):
    "Folders to hash: `quick` takes no time, `long` minutes on any machine. Its files are holes, which take no room on the disk"
    root = tmp_path/'root'
    for name,sizes in dict(quick=[5, 0], long=[1<<35]*4).items():
        (root/name).mkdir(parents=True)
        for i,size in enumerate(sizes):
            (root/name/f'{i:02}').touch()
            os.truncate(root/name/f'{i:02}', size)
    return root


def digest_of(folder):
    "What the page should show: the SHA-256 of the list that `sha256sum` would make"
    files = sorted(Path(folder).rglob('*'), key=lambda p: os.fsencode(p.relative_to(folder)))
    lines = [sha256(p.read_bytes()).hexdigest().encode() + b'  ' + os.fsencode(p.relative_to(folder)) + b'\n' for p in files]
    return sha256(b''.join(lines)).hexdigest()


@pytest.fixture
def serve(root, tmp_path, switches):
    "Starts the demo; the log of all starts is one"
    def serve(port=None):
        command = [sys.executable, DEMO, '--root', root, '--port', '{port}', *switches]
        return running(command, tmp_path/'log', port=port, cwd=tmp_path)
    return serve


@pytest.fixture
def server(serve):
    with serve() as server: yield server


class Tab:
    "One tab of the job board"
    def __init__(self, page, url):
        self.page,self.complaints = page,[]
        page.on('pageerror', lambda e: self.complaints.append(str(e)))
        page.on('console', lambda m: m.type in ('error', 'warning') and self.complaints.append(m.text))
        page.goto(url)
        self.is_('active')

    def is_(self, state): expect(self.page.locator('#connection-status')).to_have_attribute('data-sse-state', state)
    def comes_back(self):
        "Waits until it is connected again; an attempt that fails makes the next one late, so it is told to try"
        def is_active():
            if self.page.get_attribute('#connection-status', 'data-sse-state') == 'active': return True
            self.page.evaluate("dispatchEvent(new Event('online'))")
            self.page.wait_for_timeout(500)
        wait_until(is_active, 'it comes back')

    def rows(self, state=''): return self.page.locator(f'#jobs > li{state and "." + state}')
    def folders(self): return self.page.locator('#jobs h3').all_inner_texts()

    def start(self, folder):
        self.page.get_by_label('Folder').fill(str(folder))
        self.page.get_by_role('button', name='Start').click()

    def post(self, folder):
        "Start a job as soon as a worker answers"
        answer = self.page.evaluate("""async folder => {
            for (let i = 0; i < 600; i++) {
                const answer = await fetch('/start', {method: 'POST', body: new URLSearchParams({folder})}).catch(() => {})
                if (answer?.ok) return answer.text()
                await new Promise(o => setTimeout(o, 100))
            }
        }""", folder)
        assert answer == ''

    def html(self, css):
        "What is there; the attributes sorted, as an element that changes gets them one by one"
        def tag(m):
            attrs = re.findall('[^ =]+="[^"]*"', m[2])
            return f'<{m[1]} {" ".join(sorted(o for o in attrs if o != EMPTY_CLASS))}>'
        return re.sub(r'<(\w+)((?: [^ =]+="[^"]*")+)>', tag, self.page.inner_html(css))

    def moves(self):
        "Waits until the topmost bar of a job on `long` has moved"
        bar = self.rows('running').filter(has_text='root/long').locator('progress').first
        arg = bar.evaluate('bar => [bar.id, Math.max(0, bar.position)]')
        self.page.wait_for_function('([id, was]) => document.getElementById(id)?.position > was', arg=arg)


@pytest.fixture
def tab(browser, server):
    "Opens tabs of one browser. Errors and warnings in the console of any fail the test, unless it clears its `complaints`"
    tabs = []
    with new_context(browser) as context:
        def tab(**viewport):
            page = context.new_page()
            if viewport: page.set_viewport_size(viewport)
            tabs.append(Tab(page, server.url))
            return tabs[-1]
        yield tab
        complaints = [o for t in tabs for o in t.complaints]
    assert not complaints, f'the server wrote:\n{server.output}'


@both
def test_tabs(tab, root):
    "Start, progress, cancel, finish and clear, each in one tab and seen in all; a late one shows what is, and goes on from there"
    a,b = tab(),tab()
    for t in (a, b): expect(t.page.locator('#tabs')).to_have_text('2')
    a.start('quick')
    b.start('long')
    for t in (a, b):
        expect(t.rows('finished')).to_contain_text(digest_of(root/'quick'))
        expect(t.rows('finished')).to_contain_text('2 files')
        expect(t.page.locator('#totals dd').first).to_have_text('1')
        t.moves()
    late = tab(width=390, height=844)
    assert late.folders() == ['root/long', 'root/quick']
    late.moves()
    assert late.page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    late.page.close()
    expect(a.page.locator('#tabs')).to_have_text('2')
    b.page.get_by_role('button', name='Cancel root/long').click()
    for t in (a, b): expect(t.rows('cancelled')).to_contain_text('Cancelled')
    for css in ('#jobs', '#totals'):
        wait_until(lambda: a.html(css) == b.html(css), lambda: f'{a.html(css)} is not {b.html(css)}')
    a.page.get_by_role('button', name='Clear root/quick').click()
    for t in (a, b): expect(t.rows()).to_have_count(1)
    b.page.get_by_role('button', name='Clear ended').click()
    for t in (a, b): expect(t.page.get_by_text('Nothing yet')).to_be_visible()


def test_restart(tab, server, serve):
    """Ctrl-C ends the process, with jobs running, and without a word. The tabs say that they are cut off, come back by
    themselves, and show nothing of what was"""
    a,b = tab(),tab()
    for t in (a, b): t.start('long')
    for t in (a, b): t.moves()
    server.signal(signal.SIGINT)
    assert server.ends() == 0
    # A busy machine is slow, and the SQLite of an older Python has a bug
    said = [o for o in server.output.splitlines() if ' ms, and every conn' not in o and 'WAL-reset' not in o]
    assert len(said) == 1 and re.fullmatch(r'Job board: http://127\.0\.0\.1:\d+', said[0])
    for t in (a, b):
        t.is_('reconnecting')
        expect(t.page.locator('#connection-status')).to_have_text(re.compile('Reconnecting'))
    with serve(server.port):
        for t in (a, b):
            t.comes_back()
            expect(t.rows()).to_have_count(0)
            expect(t.page.locator('#totals')).to_have_text(re.compile(r'Running0.*Files read0'))
        b.start('quick')
        for t in (a, b): expect(t.rows('finished')).to_have_count(1)
    for t in (a, b): t.complaints.clear()  # The browser notes each attempt that failed


@pytest.mark.parametrize('switches', [['--db', 'board.db']])
def test_workers_are_killed(tab, server, serve, root):
    """Two workers on one file: each is killed once, and then all are restarted. The jobs are taken up, both tabs follow,
    and show in the end what a new tab does. The console has nothing but connections that were cut off"""
    a,b = tab(),tab(width=390, height=844)
    def serving():
        "The two workers, oldest first, once each has said that it serves; uvicorn replaces one that starts slowly"
        found = server.children()
        return found if len(found) == 2 and {*map(str, found)} <= {*re.findall(r'^Worker (\d+) serves$', server.output, re.MULTILINE)} else []
    wait_until(serving, lambda: f'both serve: {server.output}')
    a.start('quick')
    b.start('long')
    for t in (a, b): expect(t.page.locator('#tabs')).to_have_text('2')
    for _ in range(2):
        for t in (a, b): t.moves()
        os.kill(pid := server.children()[0], signal.SIGKILL)
        wait_until(lambda gone=pid: serving() and gone not in serving(), lambda: f'there is another one: {server.output}')
        a.post('long')
        for t in (a, b):
            t.is_('active')
            expect(t.page.locator('#news')).to_have_text('root/long started')
    expect(a.rows('running')).to_have_count(3)
    for t in (a, b): t.moves()
    server.signal(signal.SIGTERM)
    assert server.ends() == 0
    with serve(server.port):
        for t in (a, b):
            t.comes_back()
        a.post('quick')
        for t in (a, b):
            expect(t.rows('finished')).to_have_count(2)
            t.moves()
        for left in 2,1,0:
            b.rows('running').first.get_by_role('button').click()
            expect(b.rows('running')).to_have_count(left)
        late = tab()
        for t in (a, b, late):
            expect(t.rows('cancelled')).to_have_count(3)
            expect(t.page.locator('#tabs')).to_have_text('3')
        def shown(): return [t.html(css) for t in (a, b, late)]
        for css in '#jobs','#totals': wait_until(lambda: len({*shown()}) == 1, lambda: '\n'.join(shown()))
        assert late.folders() == ['root/quick', *['root/long']*3, 'root/quick']
        assert b.page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    for t in (a, b, late): t.complaints[:] = [o for o in t.complaints if 'net::ERR_' not in o]


def test_names_are_text(tab, root):
    "What can't be read is said beside the field, or counted and named in the row; no name is taken for HTML"
    (odd := root/'<b id=odd>').mkdir()
    (odd/'good & <i>').write_text('x')
    expected = digest_of(odd)
    (odd/'<i>broken').symlink_to('nowhere')
    a,html = tab(),'<img src=x onerror="window.hurt=1">'
    for folder,why in {html: 'There is no folder', '..': 'is not in', 'x'*5000: 'too long'}.items():
        a.start(folder)
        expect(a.page.locator('#problem')).to_contain_text(why)
    a.start(odd)
    expect(a.page.locator('#problem')).to_be_empty()
    row = a.rows('finished')
    expect(row).to_contain_text(expected)
    expect(row).to_contain_text('1 unread')
    row.locator('summary').click()
    expect(row.locator('details')).to_contain_text('<i>broken a link, not followed')
    assert a.page.locator('#odd').count() == 0 and a.page.evaluate('window.hurt') is None


def test_keyboard(tab):
    "All can be done with the keyboard, and what moves does not take the focus away"
    a = tab()
    focus = 'document.activeElement.id'
    a.page.get_by_label('Folder').focus()
    a.page.keyboard.type('long')
    a.page.keyboard.press('Enter')
    expect(a.rows('running')).to_have_count(1)
    while not (at := a.page.evaluate(focus)).startswith('act-'): a.page.keyboard.press('Tab')
    for _ in range(3): a.moves()
    assert a.page.evaluate(focus) == at
    expect(a.page.locator('#news')).to_have_text('root/long started')  # Read out once, not at each step
    a.page.keyboard.press('Enter')
    expect(a.rows('cancelled')).to_have_count(1)
    expect(a.page.locator('#news')).to_have_text('root/long cancelled')
    expect(a.page.locator('.htmx-added, .htmx-settling')).to_have_count(0)  # htmx 2 wires a new button 20 ms after it can be seen
    assert a.page.evaluate(focus) == at
    a.page.keyboard.press('Enter')
    expect(a.rows()).to_have_count(0)


@both
def test_without_npm(root, tmp_path, switches):
    "Where the scripts were not fetched, the page takes the same ones from their CDN, and the browser checks that they are the same"
    shutil.copytree(DEMO.parent, tmp_path/'demo')
    command = [sys.executable, tmp_path/'demo/main.py', '--root', root, '--port', '{port}', *switches]
    with running(command, tmp_path/'log') as server: page = httpx.get(server.url).text
    scripts = re.findall(r'<script src="https://cdn.jsdelivr.net/npm/([^"@]+)@([^"/]+)/([^"]+)"([^>]*)>', page)
    assert [name for name, *_ in scripts] == ['htmx.org', 'htmx.org' if switches else 'htmx-ext-sse']
    for name,version,path,attrs in scripts:
        package = PROJECT/'.assets/node_modules'/('htmx4' if switches else name)
        assert f'"version": "{version}"' in (package/'package.json').read_text()
        digest = b64encode(sha384((package/path).read_bytes()).digest()).decode()
        assert f'integrity="sha384-{digest}"' in attrs and 'crossorigin="anonymous"' in attrs
