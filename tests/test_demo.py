"The demo as a server, without a browser: who may ask, and how much"
import os
import re
import sys
from pathlib import Path

import httpx
import pytest

from tests.contract.servers import running

DEMO = Path(__file__).parents[1]/'demo/main.py'


@pytest.fixture
def http(tmp_path):
    "A client of the demo, whose folder `long` takes minutes: a hole, which takes no room on the disk"
    (root := tmp_path/'root'/'long').mkdir(parents=True)
    (root/'0').touch()
    os.truncate(root/'0', 1<<32)
    with running([sys.executable, DEMO, '--root', root.parent, '--port', '{port}'], tmp_path/'log', cwd=tmp_path) as server:
        with httpx.Client(base_url=server.url, timeout=30) as client: yield client


def rows(http, state): return len(re.findall(f'class="{state}"', http.get('/').text))


@pytest.mark.parametrize('host, status', [('127.0.0.1', 200), ('localhost:5001', 200), ('[::1]:5001', 200), ('192.0.2.7', 200),
                                          ('evil.example', 403), ('evil.example:5001', 403), ('127.0.0.1.evil.example', 403), ('[bad', 403), ('', 403)])
def test_foreign_hosts(http, host, status):
    "A name of another site that leads here (DNS rebinding) gets nothing, no script and no stream either"
    for path in ('/', '/events'):
        with http.stream('GET', path, headers={'Host': host}) as answer: assert answer.status_code == status


@pytest.mark.parametrize('headers', [{'Origin': 'https://evil.example'}, {'Origin': 'null'}, {'Sec-Fetch-Site': 'cross-site'}, {'Sec-Fetch-Site': 'same-site'},
                                     {'Origin': 'http://127.0.0.1:1'}])
def test_posts_of_other_sites(http, headers):
    "They start, cancel and clear nothing; another port of this machine is another site"
    http.post('/start', data=dict(folder='long'))
    for path in ('/start', '/cancel', '/clear'): assert http.post(path, data=dict(folder='long'), headers=headers).status_code == 403
    assert len(re.findall('<li [^>]*id="job-', http.get('/').text)) == 1
    assert http.post('/start', data=dict(folder='long'), headers={'Origin': str(http.base_url).rstrip('/'), 'Sec-Fetch-Site': 'same-origin'}).status_code == 200


@pytest.mark.parametrize('path', ['/start', '/cancel', '/clear'])
def test_links_change_nothing(http, path): assert http.get(path).status_code in (404, 405)


def test_jobs_have_a_bound(http):
    "Eight run, sixteen wait, and whoever comes then reads why; a waiting one can be cancelled, and gives its place free"
    answers = [http.post('/start', data=dict(folder='long')).text for _ in range(26)]
    assert [bool(o) for o in answers] == [False]*24 + [True]*2 and '16 jobs wait already' in answers[-1]
    assert (rows(http, 'running'), rows(http, 'waiting')) == (8, 16)
    newest = re.search(r'class="waiting"[^>]*id="job-(\w+)"|id="job-(\w+)"[^>]*class="waiting"', http.get('/').text)
    http.post('/cancel', params=dict(id=newest[1] or newest[2]))
    assert (rows(http, 'waiting'), rows(http, 'cancelled')) == (15, 1)
    assert not http.post('/start', data=dict(folder='long')).text
