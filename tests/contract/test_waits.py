"""No test sleeps and hopes: it waits for an event, with a bound, or for a clock that needs no time

What still sleeps is something slow that is staged, a pace, or a time in which nothing may happen; it says which, on its line.
"""
import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
FILES = [f for f in FOLDER.rglob('*.py') if f.name!='test_model.py']  # Its loop's clock needs no time at all
SLEEPS = {'sleep', 'wait_for_timeout'}


def naps(code):
    "The lines of a program that sleep, on a real clock, and do not say why; one that only gives way is none"
    tree,lines = ast.parse(code),code.split('\n')
    timeless = {o for f in ast.walk(tree) if isinstance(f, ast.AsyncFunctionDef) and 'timeless' in map(ast.unparse, f.decorator_list) for o in ast.walk(f)}
    for o in ast.walk(tree):
        if not isinstance(o, ast.Call) or o in timeless: continue
        if getattr(o.func, 'attr', getattr(o.func, 'id', '')) in SLEEPS and [ast.unparse(a) for a in o.args]!=['0'] and '  # ' not in lines[o.lineno-1]: yield o.lineno


@pytest.mark.parametrize('path', FILES, ids=lambda f: str(f.relative_to(FOLDER)))
def test_each_says_why(path): assert [*naps(path.read_text(encoding='utf-8'))]==[]


@pytest.mark.parametrize('code', ['time.sleep(.1)', 'await asyncio.sleep(1)', 'page.wait_for_timeout(50)', 'async def f(): await sleep(n)'])
def test_what_it_sees(code): assert [*naps(code)]==[1] and not [*naps(f'{code}  # Why')]
