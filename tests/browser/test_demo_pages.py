"The demo, in a process of its own, driven in several tabs"
import os
import re
import shutil
import signal
import sys
import time
from base64 import b64encode
from hashlib import sha256, sha384
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from browsers import new_context
sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.contract.servers import running  # noqa: E402

PROJECT = Path(__file__).parents[2]
DEMO = PROJECT/'demo/main.py'


@pytest.fixture
def root(tmp_path):
    "Folders to hash: `quick` takes no time, `while` about a second, `long` minutes. Their files are holes, which take no room on the disk"
    root = tmp_path/'root'
    for name, sizes in dict(quick=[5, 0], long=[1<<30]*4, **{'while': [1<<20]*20}).items():
        (root/name).mkdir(parents=True)
        for i, size in enumerate(sizes):
            (root/name/f'{i:02}').touch()
            os.truncate(root/name/f'{i:02}', size)
    return root


def digest_of(folder):
    "What the page should show: the SHA-256 of the list that `sha256sum` would make"
    files = sorted(Path(folder).rglob('*'), key=lambda p: os.fsencode(p.relative_to(folder)))
    lines = [sha256(p.read_bytes()).hexdigest().encode() + b'  ' + os.fsencode(p.relative_to(folder)) + b'\n' for p in files if p.is_file()]
    return sha256(b''.join(lines)).hexdigest()


@pytest.fixture
def switches(): return []


both = pytest.mark.parametrize('switches', [[], ['--htmx4']], ids=['htmx 2', 'htmx 4'])


@pytest.fixture
def serve(root, tmp_path, switches):
    "Starts the demo; the log of all starts is one"
    def serve(port=None):
        return running([sys.executable, DEMO, '--root', root, '--port', '{port}', *switches], tmp_path/'log', port=port, cwd=tmp_path)
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
    def rows(self, state=''): return self.page.locator(f'#jobs > li{state and "." + state}')
    def bar(self): return self.rows('running').locator('progress').first.evaluate('bar => bar.position')  # From 0 to 1; -1 without a value

    def start(self, folder):
        self.page.get_by_label('Folder').fill(folder)
        self.page.get_by_role('button', name='Start').click()

    def moves(self):
        "Waits until the topmost bar of a running job has moved"
        self.page.wait_for_function('was => document.querySelector("#jobs > .running progress").position > was', arg=max(0, self.bar()))


@pytest.fixture
def tab(browser, server):
    "Opens tabs of one browser. Errors and warnings in the console of any of them fail the test, unless it clears the tab's `complaints`"
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


def same(*tabs):
    "Waits until all tabs show the same jobs and totals"
    for t in tabs[1:]:
        for css in ('#jobs', '#totals'):
            t.page.wait_for_function('([css, html]) => document.querySelector(css).innerHTML === html', arg=[css, tabs[0].page.inner_html(css)])


@both
def test_two_tabs(tab, root):
    "Start, progress, cancel, finish and clear, each in one tab and seen in both"
    a,b = tab(),tab()
    for t in (a, b): expect(t.page.locator('#tabs')).to_have_text('2')
    a.start('long')
    for t in (a, b):
        expect(t.rows('running')).to_have_count(1)
        expect(t.page.locator('#totals dd').first).to_have_text('1')
        t.moves()
    begin = time.monotonic()
    b.page.get_by_role('button', name='Cancel root/long').click()
    for t in (a, b): expect(t.rows('cancelled')).to_contain_text('Cancelled')
    assert time.monotonic()-begin < 2
    b.start('while')
    expected = digest_of(root/'while')
    for t in (a, b): expect(t.rows('finished')).to_contain_text(expected)
    for t in (a, b): expect(t.rows('finished')).to_contain_text('20 files')
    assert [o.inner_text() for o in a.page.locator('#jobs h3').all()] == ['root/while', 'root/long']
    same(a, b)
    a.page.get_by_role('button', name='Clear root/while').click()
    for t in (a, b): expect(t.rows()).to_have_count(1)
    b.page.get_by_role('button', name='Clear ended').click()
    for t in (a, b):
        expect(t.rows()).to_have_count(0)
        expect(t.page.get_by_text('Nothing yet')).to_be_visible()


def test_late_tab(tab, root):
    "A tab that is opened in the middle shows what is, and goes on from there; one that is closed is no longer counted"
    a = tab()
    a.start('quick')
    expect(a.rows('finished')).to_contain_text(digest_of(root/'quick'))
    a.start('long')
    a.moves()
    b = tab(width=390, height=844)
    assert [o.inner_text() for o in b.page.locator('#jobs h3').all()] == ['root/long', 'root/quick']
    expect(b.rows('finished')).to_contain_text(digest_of(root/'quick'))
    assert b.bar() > 0
    b.moves()
    assert b.page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    b.page.close()
    a.moves()
    expect(a.page.locator('#tabs')).to_have_text('1')


def test_restart(tab, server, serve):
    "The server is killed and started again: the tabs say that they are cut off, come back by themselves, and show nothing of what was"
    a,b = tab(),tab()
    a.start('long')
    for t in (a, b): t.moves()
    server.kill()
    for t in (a, b):
        t.is_('reconnecting')
        expect(t.page.locator('#connection-status')).to_have_text(re.compile('Reconnecting'))
    with serve(server.port):
        for t in (a, b):
            t.is_('active')
            expect(t.rows()).to_have_count(0)
            expect(t.page.locator('#totals')).to_have_text(re.compile(r'Running0.*Files read0'))
            expect(t.page.locator('#tabs')).to_have_text('2')
        b.start('quick')
        for t in (a, b): expect(t.rows('finished')).to_have_count(1)
        same(a, b)
    for t in (a, b): t.complaints.clear()  # The browser notes each attempt that failed


def test_ctrl_c(tab, server):
    "Ctrl-C ends the process at once, with tabs open and jobs running, and without a word"
    a,b = tab(),tab()
    for t in (a, b): t.start('long')
    a.moves()
    server.signal(signal.SIGINT)
    start = time.monotonic()
    assert server.ends()==0 and time.monotonic()-start<3
    said = [o for o in server.output.splitlines() if ' ms, and every conn' not in o]  # A busy machine is slow
    assert len(said)==1 and re.fullmatch(r'Job board: http://127\.0\.0\.1:\d+', said[0])
    for t in (a, b):
        t.is_('reconnecting')
        t.complaints.clear()


def test_bad_folders(tab, root):
    "What can't be read is said beside the field, as text, while another job goes on"
    (root/'file').write_text('x')
    (root/'out').symlink_to('/')
    (root/'loop').symlink_to('loop')
    a = tab()
    a.start('long')
    problem = a.page.locator('#problem')
    html = '<img src=x onerror="window.hurt=1">'
    for folder, why in {'..': 'is not in', '/etc': 'is not in', 'out/etc': 'There is no folder', 'quick/../../..': 'is not in', '../root2': 'is not in',
                        'nowhere': 'There is no folder', 'loop': 'There is no folder', 'file': 'There is no folder', html: html, 'x'*5000: 'too long'}.items():
        a.start(folder)
        expect(problem).to_contain_text(why)
    a.moves()
    expect(a.rows()).to_have_count(1)
    assert a.page.evaluate('window.hurt') is None
    a.start(str(root/'quick'))
    expect(a.rows('finished')).to_have_count(1)
    expect(problem).to_be_empty()


def test_unreadable_files(tab, root):
    "Files that can't be read are counted and named; where nothing can be read the job fails; no name is taken for HTML"
    odd = root/'<b id=odd>'
    odd.mkdir()
    (odd/'good & <i>').write_text('x')
    Path(os.fsdecode(os.fsencode(odd)+b'/not-utf8-\xff')).write_text('y')
    expected = digest_of(odd)
    for name, target in {'broken': 'nowhere', 'outside': '/etc/passwd', 'loop': 'loop', 'folder': '.'}.items(): (odd/name).symlink_to(target)
    os.mkfifo(odd/'pipe')
    (root/'lost').mkdir()
    (root/'lost/broken').symlink_to('nowhere')
    a = tab()
    a.start(odd.name)
    row = a.rows('finished')
    expect(row).to_contain_text(expected)
    expect(row).to_contain_text('5 unread')
    row.locator('summary').click()
    for text in (*(f'{o} a link, not followed' for o in ('broken', 'outside', 'loop', 'folder')), 'pipe not a regular file'):
        expect(row.locator('details')).to_contain_text(text)
    assert a.page.locator('#odd').count() == 0
    a.start('lost')
    expect(a.rows('failed')).to_contain_text('Nothing could be read: a link, not followed')


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
    assert a.page.evaluate(focus) == at
    a.page.keyboard.press('Enter')
    expect(a.rows()).to_have_count(0)


@both
def test_without_npm(root, tmp_path, switches):
    "Where the scripts were not fetched, the page takes the same ones from their CDN, and the browser checks that they are the same"
    shutil.copytree(DEMO.parent, tmp_path/'demo')
    with running([sys.executable, tmp_path/'demo/main.py', '--root', root, '--port', '{port}', *switches], tmp_path/'log') as server:
        page = httpx.get(server.url).text
    scripts = re.findall(r'<script src="https://cdn.jsdelivr.net/npm/([^"@]+)@([^"/]+)/([^"]+)"([^>]*)>', page)
    assert [name for name, *_ in scripts] == ['htmx.org', 'htmx.org' if switches else 'htmx-ext-sse']
    for name, version, path, attrs in scripts:
        package = PROJECT/'.assets/node_modules'/('htmx4' if switches else name)
        assert f'"version": "{version}"' in (package/'package.json').read_text()
        assert f'integrity="sha384-{b64encode(sha384((package/path).read_bytes()).digest()).decode()}"' in attrs and 'crossorigin="anonymous"' in attrs
