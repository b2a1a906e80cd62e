"The poll of tests/apps/poll.py, as people use it: many tabs of three people, two workers, of which one is killed, and then all are restarted"
import os
import re
import signal
import sqlite3
import threading
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from browsers import new_context
from handmade import ASSETS

from tests.contract.servers import NO_TLS, running, uvicorn, wait_until
from tests.contract.support import BOUND

POLL = (Path(__file__).parent.parent/'apps/poll.py').read_text()
SCRIPTS = {2: ['htmx.org/dist/htmx.min.js', 'htmx-ext-sse/dist/sse.min.js'], 4: ['htmx4/dist/htmx.min.js', 'htmx4/dist/ext/hx-sse.min.js']}
SHOWN = """() => [...document.querySelectorAll('[data-sse-live="chart[]"] button')].map(o => o.textContent)"""
BARS = """() => [...document.querySelectorAll('[data-sse-live="chart[]"] progress')].map(o => [o.value, o.max])"""
HERE = "() => document.getElementById('people').textContent"
WIDE = 'document.documentElement.scrollWidth <= innerWidth'


def test_length():
    "What people copy is short, and has neither an updater nor an endpoint nor a cursor"
    assert len(POLL.splitlines())<=30 and max(map(len, POLL.splitlines()))<=120
    assert not re.search('updater|cursor|stream|endpoint|oob|connect', POLL, re.I)


class Poll:
    "The app, whose scripts come from here"
    def __init__(self, folder, htmx):
        self.folder = folder
        scripts = [f'Script(src="/assets/{o}")' for o in SCRIPTS[htmx]]
        assert POLL.count('fast_app(')==1
        code = POLL.replace('fast_app(', f"fast_app(default_hdrs=False, hdrs=[{', '.join(scripts)}], secret_key='poll', "
            f"routes=[Mount('/assets', StaticFiles(directory={str(ASSETS)!r}))], ")
        (folder/'main.py').write_text(code)

    def served(self, port=None, log='log'):
        return running(uvicorn('main:app', '--workers', '2', '--log-level', 'warning'), self.folder/log, port=port, cwd=self.folder)

    def counts(self):
        "What the file says"
        db = sqlite3.connect(self.folder/'poll.db')
        try: return dict(db.execute('select option, count(*) from vote group by option'))
        finally: db.close()


OPTIONS = eval(re.search(r'options = .*?(\[.*?\])', POLL)[1])


class Voters:
    "People who change their minds, and end with what they wanted; each says it until it is answered"
    def __init__(self, url, n):
        self.url,self.choices,self.going,self.errors = url,[OPTIONS[i%3] for i in range(n)],threading.Event(),[]
        self.threads = [threading.Thread(target=self.vote, args=[o], daemon=True) for o in self.choices]

    def __enter__(self):
        for t in self.threads: t.start()
        return self

    def __exit__(self, *exc): self.end()

    def end(self):
        self.going.set()
        for t in self.threads:
            t.join(BOUND)
            assert not t.is_alive()
        assert not self.errors, self.errors

    def vote(self, choice):
        with httpx.Client(base_url=self.url, timeout=BOUND, verify=NO_TLS) as web:
            n = 0
            while not self.said(web, 'GET', '/'): self.going.wait(.05)
            while not self.going.wait(.15):
                n += 1
                self.said(web, 'POST', '/vote', option=OPTIONS[n%4])
            while not self.said(web, 'POST', '/vote', option=choice): pass

    def said(self, web, *how, **data):
        try:
            answer = web.request(*how, params=data)
            if answer.status_code!=200: self.errors.append((how, answer.status_code, answer.text))
            return True
        except httpx.TransportError: return False


def walk(browser, poll, people, tabs_each, voters, **options):
    "All that happens; each tab is right in the end"
    with ExitStack() as stack:
        first = stack.enter_context(poll.served())
        url = first.url
        contexts = [stack.enter_context(new_context(browser, **(options if i==0 else {}))) for i in range(people)]
        everyone = []
        for context in contexts:
            pages = []
            for _ in range(tabs_each):
                page = context.new_page()
                page.errors = []
                page.on('pageerror', lambda e, page=page: page.errors.append(str(e)))
                page.goto(url)
                pages.append(page)
            everyone.append(pages)
        tabs = [o for pages in everyone for o in pages]
        def pump(): tabs[0].wait_for_timeout(20)
        def all_show(script, wanted, what):
            "Whoever has tried often while no server was there waits for up to 45 s"
            def right():
                pump()
                return all(o.evaluate(script)==wanted for o in tabs)
            wait_until(right, lambda: f'{what}: {wanted}, not {[(i, o.evaluate(script), o.evaluate("cjmSSE.sources.map(s => [s.state, s.reason, s.readyState])")) for i,o in enumerate(tabs) if o.evaluate(script) != wanted]}', 3*BOUND)
        def chart(counts): return [f'{o}: {counts.get(o, 0)}' for o in OPTIONS]
        def right(what):
            counts = poll.counts()
            all_show(SHOWN, chart(counts), what)
            all_show(BARS, [[counts.get(o, 0), sum(counts.values()) or 1] for o in OPTIONS], what)
            return counts
        def click(page, text): page.evaluate("text => [...document.querySelectorAll('button')].find(o => o.textContent.startsWith(text)).click()", text)
        def votes(page, option, n):
            click(page, option)
            wait_until(lambda: pump() or sum(poll.counts().values())>=n, 'the vote is counted')
        all_show(HERE, f'{people} here', 'who is here')
        for n,pages in enumerate(everyone): votes(pages[0], OPTIONS[3], n+1)
        votes(everyone[0][-1], OPTIONS[3], people)  # Again: it counts once
        assert right('the first votes')=={OPTIONS[3]: people}

        with Voters(url, voters) as crowd:
            wait_until(lambda: pump() or sum(poll.counts().values())>=people+voters//2, 'people vote')
            os.kill(first.children()[0], signal.SIGKILL)
            tabs[1].goto(f'{url}/?away')
            tabs[1].go_back(wait_until='commit')
            tabs[-1].goto('about:blank')
            wait_until(lambda: pump() or sum(poll.counts().values())==people+voters, 'all have voted')
            first.signal(signal.SIGTERM)
            first.ends()
            second = stack.enter_context(poll.served(first.port, 'log2'))
            tabs[-1].go_back(wait_until='commit')
            if options:  # Not to wait for some seconds
                for o in tabs[:-1]: o.evaluate("dispatchEvent(new Event('online'))")
            crowd.end()
        counts = right('after a kill and a restart')
        wanted = dict.fromkeys(OPTIONS[:3], 0)
        for o in crowd.choices: wanted[o] += 1
        assert counts=={OPTIONS[3]: people, **{k: v for k,v in wanted.items() if v}}, 'each vote counts once'
        all_show(HERE, f'{people} here', 'who is here, after it all')
        for o in everyone[0]: assert not options or o.evaluate(WIDE)
        click(tabs[0], 'Restart')
        wait_until(lambda: pump() or not poll.counts(), 'all is cleared')
        right('the poll begins again')
        assert not [o for page in tabs for o in page.errors]
        for o in first,second: assert 'Traceback' not in o.output, o.output


@pytest.mark.parametrize('browser', ['chromium'], indirect=True)  # With windows, so that Back shows pages as they were left
@pytest.mark.parametrize('htmx', [2, 4])
def test_twelve_tabs(browser, tmp_path, htmx):
    "Three people with four tabs each, one of them on a telephone"
    walk(browser, Poll(tmp_path, htmx), 3, 4, 10, viewport=dict(width=390, height=844))


@pytest.mark.parametrize('browser', ['firefox'], indirect=True)
def test_in_firefox(browser, tmp_path): walk(browser, Poll(tmp_path, 2), 1, 2, 3)
