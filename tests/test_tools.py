"What `make test` and `make docs` run"
import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent/'tools'))
import check
import docs

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.htmx import HTMXSSEConnector


def report(path, **cases):
    "Write a JUnit report: the name of each test, and what it holds"
    found = [f'<testcase classname="t" name="{k}">{v}</testcase>' for k,v in cases.items()]
    path.write_text(f"<testsuites><testsuite>{''.join(found)}</testsuite></testsuites>")
    return path


def test_what_failed_in_any_report_counts(tmp_path):
    one = report(tmp_path/'one', good='<properties/>', bad='<failure/>', worse='<failure/><error/>', left_out='<skipped/>')
    other = report(tmp_path/'other', right='', broken='<error/>')
    assert check.outcome(one, other) == check.outcome(other, one) == (2, {'t::bad', 't::worse', 't::broken'})


@pytest.mark.parametrize('bad, again', [(0, None), (8, [0]), (8, [0, 3]), (9, None)])
def test_a_few_tests_that_failed_are_run_once_more(monkeypatch, capsys, bad, again):
    "Those that pass then are named, and what fails twice has failed. Where many failed, or none, nothing is run again"
    ran = []
    def run(*cmd, **kw):
        ran.append(cmd)
        first = '--last-failed' not in cmd
        cases = {f'n{i}': '<failure/>' if first or i in again else '' for i in range(bad)} | ({'well': ''} if first else {})
        report(Path(next(o for o in cmd if o.startswith('--junit-xml=')).removeprefix('--junit-xml=')), **cases)
        return ''
    monkeypatch.setattr(check, 'run', run)
    monkeypatch.setattr(check, 'PARTS', [['tests/one']])
    passed,failed = check.tests()
    twice = range(bad) if again is None else again
    assert (passed, failed, len(ran)) == (1+bad-len(twice), len(twice), 1 if again is None else 2)
    said = capsys.readouterr().out
    assert [f'FAILED: t::n{i}\n' in said for i in range(bad)] == [i in twice for i in range(bad)]
    assert [f'UNSTEADY: t::n{i} ' in said for i in range(bad)] == [i not in twice for i in range(bad)]


def test_notebooks_that_failed_count():
    "One that came to no end is not taken for passed"
    ran = '- Completed a/core.ipynb\n- Completed a/htmx.ipynb\n'
    assert check.lessons(ran + 'Success.\n') == (2, [])
    assert check.lessons(ran + 'nbdev Tests Failed On The Following Notebooks:\n==\n\tcore.ipynb\n') == (1, ['core.ipynb'])
    for o in 'No files were eligible for testing\n', ran: pytest.raises(check.Failed, check.lessons, o)


@pytest.mark.parametrize('again', [0, 1])
def test_a_notebook_that_failed_is_run_alone(again, monkeypatch, capsys):
    "One that fails twice has failed"
    failed = 'nbdev Tests Failed On The Following Notebooks:\n==\n\tcore.ipynb\n'
    ran = []
    def run(cmd, *args, **kw):
        ran.append(args)
        return '- Completed nbs/core.ipynb\n' + (failed if again or len(ran) == 1 else 'Success.\n')
    monkeypatch.setattr(check, 'run', run)
    assert check.notebooks() == (1-again, again)
    assert [args[0] for args in ran[1:]] == [check.ROOT/'nbs/core.ipynb']
    assert ('FAILED' if again else 'UNSTEADY') + ': core.ipynb' in capsys.readouterr().out


def test_a_check_that_fails_does_not_keep_others_from_running(monkeypatch, capsys):
    def wrong(): raise check.Failed('no')
    def broken(): raise ValueError('a bug')
    monkeypatch.setattr(check, 'CHECKS', dict(wrong=wrong, broken=broken, counts=lambda: (2, 1), right=lambda: None))
    assert check.main([])
    assert capsys.readouterr().out.splitlines()[-1] == '3 passed, 3 failed'
    assert not check.main(['right'])


def test_links_of_the_readme():
    "They lead to files of the repository, also before there is a release or a site"
    root = Path(__file__).parent.parent
    links = re.findall(r'\]\(([^)\s]+)\)', re.sub(r'```.*?```', '', (root/'README.md').read_text(), flags=re.S))
    assert len(links) > 20
    assert [o for o in links if '://' in o or not (root/o.partition('#')[0]).exists()] == []


def test_a_table_of_parameters():
    "`**kwargs` has a row of its own, what is returned another, and no default is a place in memory"
    rendered = docs.Renderer(HTMXSSEConnector.create_sse_element)._repr_markdown_()
    assert re.search(r'\| kwargs \|.*\| Further attributes \|', rendered)
    assert re.search(r'\*\*Returns\*\* \| \*\*FT\*\* \|.*\|  \|', rendered)
    assert '0x' not in rendered and 'element_type=Div' in rendered
    def f(a=object()): "Something"
    assert docs.signature(f, 'f') == 'def f(a=<object object>)'


def test_a_class_made_in_a_cell_has_the_source_of_its_module():
    "Without that its parameters have no table"
    assert docs.own(type('SSEBroadcastManager', (), dict(__module__='__main__'))) is SSEBroadcastManager
    assert docs.own(own := type('Nowhere', (), dict(__module__='__main__'))) is own


def test_no_directive_stands_in_a_page():
    exported = dict(cell_type='markdown', source='#| export: true\nWhat it is for.')
    assert [*docs.cells(dict(cells=[exported]))] == [('markdown', 'What it is for.', [])]


def test_links_of_names_without_a_place():
    "nbdev links each name that it knows: one without a heading gets that of its class, else its page"
    anchors = {Path('core.ipynb'): {'manager'}}
    def link(name): return docs.localize(f'[`x`]({docs.SITE}core.html#{name})', Path('tutorials/tabs.ipynb'), anchors)
    assert [link(o) for o in ('manager', 'manager.stream', 'other')] == ['[`x`](../core.ipynb#manager)']*2 + ['[`x`](../core.ipynb)']


def test_public_names_without_a_heading():
    missing = [*docs.undocumented({Path('updater.ipynb'): {'sseelementupdater'}, Path('engine/patterns.ipynb'): set(), Path('tutorials/testing.ipynb'): set()})]
    assert 'engine/patterns.ipynb: segment is not documented' in missing and 'updater.ipynb: SSEElementUpdater.register is not documented' in missing
    assert not [o for o in missing if 'SSEElementUpdater is' in o or 'tutorials' in o]


@pytest.mark.parametrize('page', ['security', 'attacks'])
def test_tests_that_a_page_names(page):
    "A page of the documentation that says which test shows a thing names one that is there"
    text = (check.ROOT/f'nbs/tutorials/{page}.ipynb').read_text(encoding='utf-8')
    known = {name for f in (check.ROOT/'tests').rglob('test_*.py') for name in re.findall(r'def (test_\w+)', f.read_text(encoding='utf-8'))}
    named = set(re.findall(r'`(test_\w+)`', text))
    assert named and named <= known, named-known
