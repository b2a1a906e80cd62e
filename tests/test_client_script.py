"What travels to a page: the scripts that people read, without what is for readers"
import json
import shutil
import subprocess
from gzip import compress
from importlib.resources import files
from pathlib import Path

import pytest

from cjm_fasthtml_sse.htmx import _bare, client_js, election_js
from tools.assets import fetch

node = shutil.which('node')
HERE = Path(__file__).parent
SCRIPTS = {o.name: o.read_text(encoding='utf-8') for o in (files('cjm_fasthtml_sse')/'static').iterdir() if o.name.endswith('.js')}


def test_what_stays_at_home():
    code = """
// What it is
const count = () => {
  let a = 0;   // none yet

  /** @type {Node} */ (node).end();
  return `a // ${a}`;
};
"""
    assert _bare(code).splitlines()==['const count=()=>{', 'let a=0;', '(node).end();', 'return `a // ${a}`;', '};']
    assert _bare('x = `one\n  two`')=='x=`one\ntwo`', 'so no template of ours has two lines'
    same = ['x=/ = [ / = ] = /;', "f(' = ')", 'a?/ , /:` = ${b = c} `', 'a + +b', 'a - -b']
    assert [_bare(o) for o in same]==same


@pytest.mark.skipif(not node, reason="node isn't installed (Debian's package nodejs)")
def test_without_comments_and_indentation_scripts_are_the_same():
    "As TypeScript reads them: a string that holds what looks like a comment would differ"
    assert fetch(dev=True), 'this test needs npm, to fetch TypeScript'
    lib = HERE.parent/'.assets/node_modules/typescript/lib/typescript.js'
    scripts = [*SCRIPTS.values(), *map(_bare, SCRIPTS.values())]
    done = subprocess.run([node, HERE/'js/bare.mjs', lib], input=json.dumps(scripts), capture_output=True, text=True, timeout=120)
    printed = json.loads(done.stdout)
    for name,full,bare in zip(SCRIPTS, printed[:len(SCRIPTS)], printed[len(SCRIPTS):], strict=True): assert bare==full, name
    assert [name for name,o in SCRIPTS.items() if '//' in _bare(o).replace('://', '')]==[], 'a comment behind code stands two blanks away'


@pytest.mark.parametrize('htmx, most', [('2', 13.2), ('4', 12.9)])
def test_weight(htmx, most):
    "Kilobytes that a page loads, compressed as servers do, and those of the election over HTTP/1.1: lower the figures when they fall"
    assert len(compress(client_js(htmx).encode()))<=most*1000
    assert len(compress(election_js().encode()))<=2.6*1000


def test_no_lookbehind():
    "Safari 15.4 to 16.3 reads no script with one in it"
    assert not [name for name,text in SCRIPTS.items() if '(?<=' in text or '(?<!' in text]
