"""Debian's Firefox by WebDriver BiDi, with the part of Playwright's interface that the tests of both browsers use

Playwright itself drives Firefox of a later version only, and sees no page that comes out of the back/forward cache.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from playwright.sync_api import Error
from playwright.sync_api import TimeoutError as Late
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

BOUND = 30.  # Seconds, as for all in a page
# Nothing is asked of the network that no test asks for, and no page of Firefox's own is shown.
# Each tab gets a process of its own, so that one can be stopped or killed alone
PREFERENCES = {'dom.ipc.processCount.webIsolated': 40} | dict.fromkeys("""
    app.normandy.enabled app.update.auto app.update.enabled browser.aboutwelcome.enabled browser.newtabpage.enabled
    browser.safebrowsing.malware.enabled browser.safebrowsing.phishing.enabled browser.search.update
    browser.sessionstore.resume_from_crash browser.shell.checkDefaultBrowser browser.tabs.crashReporting.sendReport
    browser.tabs.warnOnClose browser.topsites.contile.enabled browser.translations.enable
    datareporting.healthreport.uploadEnabled datareporting.policy.dataSubmissionEnabled dom.ipc.reportProcessHangs
    extensions.getAddons.cache.enabled extensions.systemAddon.update.enabled extensions.update.enabled
    media.gmp-manager.updateEnabled messaging-system.rsexperimentloader.enabled network.captive-portal-service.enabled
    network.connectivity-service.enabled
""".split(), False) | dict.fromkeys("""
    datareporting.policy.dataSubmissionPolicyBypassNotification dom.disable_beforeunload
""".split(), True) | dict.fromkeys("""
    browser.startup.page dom.max_script_run_time hangmonitor.timeout network.http.speculative-parallel-limit
""".split(), 0) | dict.fromkeys("""
    browser.region.network.url captivedetect.canonicalURL toolkit.telemetry.server
""".split(), '') | {'browser.startup.homepage_override.mstone': 'ignore', 'services.settings.server': 'data:,',
    'startup.homepage_welcome_url': 'about:blank', 'toolkit.startup.max_resumed_crashes': -1}


class Events:
    "What has handlers of events"
    def __init__(self): self.handlers = {}
    def on(self, name, f): self.handlers.setdefault(name, []).append(f)
    def emit(self, name, detail):
        for f in list(self.handlers.get(name, [])): f(detail)


class Message:
    "What a page wrote into its console"
    def __init__(self, entry):
        self.type = {'warn': 'warning'}.get(entry['method'], entry['method'])
        self.text = entry['text'] or ''


class Firefox:
    "The browser"
    def __init__(self, path=None):
        path = path or shutil.which('firefox-esr') or shutil.which('firefox')
        assert path, 'These tests need Firefox: apt-get install firefox-esr'
        self.stack = ExitStack()
        self.profile = tempfile.TemporaryDirectory(prefix='firefox-', ignore_cleanup_errors=True)
        prefs = [f'user_pref({json.dumps(k)}, {json.dumps(v)});\n' for k,v in PREFERENCES.items()]
        (Path(self.profile.name)/'user.js').write_text(''.join(prefs))
        self.process = subprocess.Popen(
            [path, '--headless', '--no-remote', '--remote-debugging-port=0', '--profile', self.profile.name, 'about:blank'],
            env={**os.environ, 'MOZ_CRASHREPORTER_DISABLE': '1'}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors='replace')
        self.contexts,self.answers,self.asked = {},{},0
        try:
            self.socket = self.stack.enter_context(connect(f'{self.address()}/session', proxy=None, compression=None,
                                                           max_size=None, max_queue=None, ping_interval=None))
            self.send('session.new', capabilities={})
            self.send('session.subscribe', events=['log.entryAdded', 'browsingContext'])
        except BaseException:
            self.close()
            raise

    def address(self):
        found,said,known = [],[],threading.Event()
        def read():
            # To the end: a full pipe would stop the browser
            for line in self.process.stderr:
                said[:] = [*said[-20:], line]
                if m := re.search(r'WebDriver BiDi listening on (ws://\S+)', line): found.append(m[1])
                if m: known.set()
            known.set()
        threading.Thread(target=read, daemon=True).start()
        known.wait(60)
        assert found, f'Firefox did not start: {"".join(said)}'
        return found[0]

    def send(self, method, secs=BOUND, **params):
        "The answer to a command; meanwhile events reach their handlers"
        self.asked += 1
        id,end = self.asked,time.monotonic()+secs
        self.socket.send(json.dumps(dict(id=id, method=method, params=params)))
        while id not in self.answers:
            if (left := end-time.monotonic()) <= 0: raise Late(f'{method}: no answer in {secs} s')
            self.hear(left)
        answer = self.answers.pop(id)
        if answer['type'] == 'error': raise Error(f"{method}: {answer['error']}: {answer['message']}")
        return answer['result']

    def hear(self, secs):
        "Take one message, if one comes in that time"
        try: message = json.loads(self.socket.recv(timeout=max(secs, 0)))
        except TimeoutError: return
        except ConnectionClosed as e: raise Error('Firefox has ended') from e
        if message['type'] != 'event':
            if message.get('id'): self.answers[message['id']] = message
            return
        params,method = message['params'],message['method']
        id = params.get('source', params).get('context')
        for context in list(self.contexts.values()):
            for page in list(context.pages):
                if page.id == id: page.happened(method, params)

    def pump(self, secs):
        "Events reach their handlers for that time"
        end = time.monotonic()+secs
        while (left := end-time.monotonic()) > 0: self.hear(left)

    def new_context(self, ignore_https_errors=False):
        id = self.send('browser.createUserContext', acceptInsecureCerts=ignore_https_errors)['userContext']
        self.contexts[id] = context = Context(self, id)
        return context

    def processes(self):
        "Process ids of its tabs"
        parents,names = {},{}
        for stat in Path('/proc').glob('[0-9]*/stat'):
            with suppress(OSError):
                pid,ppid = int(stat.parent.name),int(stat.read_text().rpartition(')')[2].split()[1])
                parents[pid],names[pid] = ppid,(stat.parent/'cmdline').read_bytes().strip(b'\0')
        def ours(pid): return pid == self.process.pid or pid in parents and ours(parents[pid])
        return [pid for pid,name in names.items() if b'-contentproc' in name and name.endswith(b' tab') and ours(pid)]

    def go_on(self):
        "Wake whatever a test has stopped"
        for pid in self.processes():
            with suppress(ProcessLookupError): os.kill(pid, signal.SIGCONT)

    @property
    def alive(self): return self.process.poll() is None

    def close(self):
        "End it, and what it started"
        with suppress(ProcessLookupError): os.killpg(self.process.pid, signal.SIGKILL)
        self.stack.close()
        self.process.wait(BOUND)
        self.profile.cleanup()


class Context(Events):
    "Pages with cookies of their own"
    def __init__(self, browser, id):
        super().__init__()
        self.browser,self.id,self.pages = browser,id,[]

    def new_page(self, hidden=False):
        "A tab in a window of its own; a `hidden` one stands behind another one of that window"
        kind = dict(type='tab', background=True) if hidden else dict(type='window')
        page = Page(self, self.browser.send('browsingContext.create', userContext=self.id, **kind)['context'])
        self.pages.append(page)
        return page

    def add_init_script(self, script):
        text = f'() => {{ {script} }}'
        self.browser.send('script.addPreloadScript', functionDeclaration=text, userContexts=[self.id])

    def cookies(self):
        partition = dict(type='storageKey', userContext=self.id)
        cookies = self.browser.send('storage.getCookies', partition=partition)['cookies']
        return [o | {'value': o['value']['value']} for o in cookies]

    def close(self):
        "Close its pages, and whatever else waits for a process that a test has stopped"
        del self.browser.contexts[self.id]
        self.browser.go_on()
        self.browser.send('browser.removeUserContext', userContext=self.id)


class Page(Events):
    "A tab"
    def __init__(self, context, id):
        super().__init__()
        self.context,self.browser,self.id = context,context.browser,id
        self.committed,self.logged = set(),set()

    def happened(self, method, params):
        if method == 'browsingContext.navigationCommitted': self.committed.add(params['navigation'])
        if method != 'log.entryAdded' or (params['timestamp'], params['text']) in self.logged: return
        self.logged.add((params['timestamp'], params['text']))  # What a page has logged comes again when Back shows it
        if params['type'] == 'console':
            self.emit('console', message := Message(params))
            self.context.emit('console', message)
        elif params['level'] == 'error': self.emit('pageerror', params['text'])

    def send(self, method, secs=BOUND, **params): return self.browser.send(method, secs, context=self.id, **params)

    def goto(self, url, wait_until='load'):
        wait = dict(load='complete', domcontentloaded='interactive', commit='none')[wait_until]
        navigation = self.send('browsingContext.navigate', url=url, wait=wait)['navigation']
        if wait_until == 'commit': self.wait_until(lambda: navigation in self.committed, f'the begin of {url}')

    def reload(self): self.send('browsingContext.reload', wait='complete')

    def go_back(self, wait_until='load'): self.send('browsingContext.traverseHistory', delta=-1)

    def bring_to_front(self): self.send('browsingContext.activate')

    def evaluate(self, script, arg=None, secs=BOUND):
        "What a function gives for `arg`, or what an expression gives, as JSON can tell it"
        text = f'''async arg => {{
            const it = ({script.strip().rstrip(";")});
            const value = await (typeof it === 'function' ? it(JSON.parse(arg)) : it);
            try {{ return JSON.stringify(value) ?? 'null' }} catch {{ return 'null' }}
        }}'''
        answer = self.browser.send('script.callFunction', secs, functionDeclaration=text, awaitPromise=True,
                                   target=dict(context=self.id), arguments=[dict(type='string', value=json.dumps(arg))])
        if answer['type'] == 'exception': raise Error(answer['exceptionDetails']['text'])
        return json.loads(answer['result']['value'])

    def wait_until(self, condition, what, secs=BOUND):
        end = time.monotonic()+secs
        while not condition():
            if time.monotonic() > end: raise Late(f'{secs} s were not enough for {what}')
            self.browser.pump(.02)

    def crash(self, pid):
        "Its process, which has this number, is killed"
        os.kill(pid, signal.SIGKILL)
        self.wait_until(lambda: pid not in self.browser.processes(), f'the end of process {pid}')

    def wait_for_function(self, script, arg=None, timeout=1000*BOUND):
        "Wait until it gives something true, in this page or the one that the tab is on its way to"
        end = time.monotonic()+timeout/1000
        error = None
        while True:
            left = end-time.monotonic()
            if left <= 0: raise Late(f'{timeout/1000} s were not enough for {script} {arg} {error or ""}')
            try:
                if res := self.evaluate(script, arg, left): return res
                error = None
            except Late: continue
            except Error as e: error = e
            self.browser.pump(.02)

    def wait_for_timeout(self, ms): self.browser.pump(ms/1000)  # As Playwright's page has it

    def close(self):
        self.context.pages.remove(self)
        self.send('browsingContext.close')
