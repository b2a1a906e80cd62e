"The demo as a server, without a browser: who may ask, and how much"
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.contract.servers import Stream, running, wait_until
from tests.contract.support import BOUND

DEMO = Path(__file__).parents[1]/'demo/main.py'
HOSTS = {200: '127.0.0.1 localhost:5001 [::1]:5001 192.0.2.7'.split(),
         403: ['evil.example', 'evil.example:5001', '127.0.0.1.evil.example', '[bad', '']}


def holes(folder):
    "Folders to read: `long` takes minutes on any machine, and no room on the disk"
    (long := folder/'root/long').mkdir(parents=True)
    (long/'0').touch()
    os.truncate(long/'0', 1<<37)
    return folder/'root'


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    "A client of the demo, which has all jobs in one process"
    folder = tmp_path_factory.mktemp('demo')
    with running([sys.executable, DEMO, '--root', holes(folder), '--port', '{port}'], folder/'log', cwd=folder) as server:
        with httpx.Client(base_url=server.url, timeout=BOUND) as client: yield client

@pytest.fixture
def http(demo):
    "The demo, without jobs behind each test"
    yield demo
    def is_clear():
        demo.post('/clear')
        for id in (left := re.findall('id="job-(\\w+)"', demo.get('/').text)): demo.post('/cancel', params=dict(id=id))
        return not left
    wait_until(is_clear, 'all jobs are cancelled and gone')

def start(http, **headers): return http.post('/start', data=dict(folder='long'), headers=headers)
def rows(http, state): return len(re.findall(f'class="{state}"', http.get('/').text))


def test_foreign_hosts(http):
    "A name of another site that leads here (DNS rebinding) gets nothing, no script and no stream either"
    for status, hosts in HOSTS.items():
        for path, host in [(path, host) for path in ('/', '/events') for host in hosts]:
            with http.stream('GET', path, headers=dict(Host=host)) as answer: assert answer.status_code == status, host


def test_posts_of_other_sites(http):
    "They start, cancel and clear nothing; another port of this machine is another site. Links change nothing either"
    start(http)
    for headers in [{'Origin': o} for o in ('https://evil.example', 'null', 'http://127.0.0.1:1')]+[
            {'Sec-Fetch-Site': o} for o in ('cross-site', 'same-site')]:
        for path in '/start', '/cancel', '/clear':
            assert http.post(path, data=dict(folder='long'), headers=headers).status_code == 403
    for path in '/start', '/cancel', '/clear': assert http.get(path).status_code in (404, 405)
    assert len(re.findall('<li [^>]*id="job-', http.get('/').text)) == 1
    assert start(http, **{'Origin': str(http.base_url).rstrip('/'), 'Sec-Fetch-Site': 'same-origin'}).status_code == 200


def test_jobs_have_a_bound(http):
    "Eight run, sixteen wait, and whoever comes then reads why; a waiting one can be cancelled, and gives its place free"
    answers = [start(http).text for _ in range(26)]
    assert [bool(o) for o in answers] == [False]*24 + [True]*2 and '16 jobs wait already' in answers[-1]
    wait_until(lambda: (rows(http, 'running'), rows(http, 'waiting')) == (8, 16), 'eight run')
    page = http.get('/').text
    newest = re.search(r'class="waiting"[^>]*id="job-(\w+)"|id="job-(\w+)"[^>]*class="waiting"', page)
    http.post('/cancel', params=dict(id=newest[1] or newest[2]))
    wait_until(lambda: (rows(http, 'waiting'), rows(http, 'cancelled')) == (15, 1), 'one is cancelled')
    assert not start(http).text


def test_jobs_outlive_their_worker(tmp_path):
    "The only worker is killed with two jobs under way. The next one takes them up from the beginning; a page of it shows them at once"
    folder = holes(tmp_path)
    command = [sys.executable, DEMO, '--root', folder, '--db', 'board.db', '--workers', '1', '--port', '{port}']
    def ids(page): return re.findall(r'id="job-(\w+)"', page)
    with running(command, tmp_path/'log', cwd=tmp_path) as server, httpx.Client(base_url=server.url, timeout=BOUND) as http:
        for _ in range(2): start(http)
        wait_until(lambda: rows(http, 'running') == 2, 'both run')
        before = ids(http.get('/').text)
        with Stream(server) as stream: last = next(e.id for e in stream.until(lambda events: any(e.id for e in events)) if e.id)
        server.kill()
    with running(command, tmp_path/'log', cwd=tmp_path) as server, httpx.Client(base_url=server.url, timeout=BOUND) as http:
        with Stream(server, last_event_id=last) as stream:
            assert ids(http.get('/').text) == before and len(before) == 2
            stream.says('begins again: its worker has ended')
            stream.says('root/long started')
        wait_until(lambda: rows(http, 'running') == 2, 'both run')
        http.post('/cancel', params=dict(id=before[0]))
        wait_until(lambda: (rows(http, 'running'), rows(http, 'cancelled')) == (1, 1), 'one is cancelled')
        server.is_calm()


def test_workers_need_a_file(tmp_path):
    "Without one they would each have a board of their own"
    answer = subprocess.run([sys.executable, DEMO, '--workers', '2'], capture_output=True, text=True, timeout=BOUND)
    assert answer.returncode == 2 and '--db board.db' in answer.stderr
