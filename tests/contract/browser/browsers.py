"Chromium and Firefox, and what may become of a tab: it crashes, stands still, is frozen"
import os
import re
import shutil
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from bidi import Firefox

FLAGS = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync').split()
# What our client logs with each stream that has a connection of its own
DIRECT = re.compile(r'\[sse\] direct: (.+) \S+')
each_browser = pytest.mark.parametrize('browser', ['chromium', 'firefox'], indirect=True)


@contextmanager
def chromium(playwright, *flags, name='chromium'):
    path = shutil.which(name) or shutil.which('chromium')
    assert path, 'These tests need Chromium: apt-get install chromium chromium-headless-shell'
    # Playwright switches the back/forward cache off; users have it on
    ours = ['--disable-back-forward-cache']
    browser = playwright.chromium.launch(executable_path=path, args=[*FLAGS, *flags], ignore_default_args=ours)
    try: yield browser
    finally: browser.close()


@contextmanager
def new_context(browser, **options):
    "A browser context. A direct stream in one of its pages fails the test, unless its reason is in `context.direct`"
    context,seen = browser.new_context(**options),[]
    context.direct = set()
    context.on('console', lambda m: seen.append(m.text) if DIRECT.match(m.text) else None)
    try: yield context
    finally: context.close()
    others = [o for o in seen if DIRECT.match(o)[1] not in context.direct]
    assert not others, f'direct streams that were not asked for: {others}'


def processes(browser):
    "Process ids of its tabs"
    if isinstance(browser, Firefox): return browser.processes()
    cdp = browser.new_browser_cdp_session()
    try: return [o['id'] for o in cdp.send('SystemInfo.getProcessInfo')['processInfo'] if o['type']=='renderer']
    finally: cdp.detach()


def workers(browser):
    "Process and thread id of each worker that a page has made; our client makes none"
    found = set()
    for pid in processes(browser):
        for task in Path(f'/proc/{pid}/task').glob('*'):
            with suppress(OSError):
                if (task/'comm').read_text().strip() in ('DedicatedWorker', 'DOM Worker'): found.add((pid, task.name))
    return found


def renderer(page):
    "The process id of a tab: the one in which a worker begins that the tab makes. How busy they are says nothing, others may be, too"
    browser = page.context.browser
    before,end = workers(browser),time.monotonic()+30
    page.evaluate("() => { window.sign = new Worker(URL.createObjectURL(new Blob(['']))) }")
    while not (new := workers(browser)-before): assert time.monotonic()<end, 'no worker has begun'
    page.evaluate('() => { sign.terminate() }')
    (pid, _), = new
    return pid


def crash(page):
    "Kill the process of a tab"
    if isinstance(page.context.browser, Firefox): return page.crash(renderer(page))
    with page.expect_event('crash'): os.kill(renderer(page), signal.SIGKILL)


@contextmanager
def stopped(page):
    "The process of a tab is stopped inside the `with` block: it holds its connection and its locks, and does nothing"
    pid = renderer(page)
    os.kill(pid, signal.SIGSTOP)
    try: yield
    finally: os.kill(pid, signal.SIGCONT)


def freeze(page):
    "No line of a tab's scripts runs any more, though its connection and its locks live on; returns what `thaw` takes"
    # Chromium freezes hidden tabs alone, and without a window none is hidden
    session = page.context.new_cdp_session(page)
    session.send('Debugger.enable')
    session.send('Debugger.pause')
    return session


def thaw(session):
    "Let it go on"
    session.send('Debugger.disable')
    session.detach()


@contextmanager
def frozen(page):
    "A tab is frozen inside the `with` block, as browsers do with hidden ones to save power"
    session = freeze(page)
    try: yield
    finally: thaw(session)
