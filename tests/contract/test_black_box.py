"""The contract suite sees what users see: public names of the six modules, and of four that stand on them

A test that reaches for anything else would have to change with the code that it judges.
"""
import ast
from pathlib import Path

import pytest

MODULES = {'core', 'dispatcher', 'helpers', 'htmx', 'monitoring', 'updater', 'testing', 'progress', 'dashboard', 'backends.sqlite'}
FOLDER = Path(__file__).parent
FILES = [*FOLDER.rglob('*.py')]


def imported(tree):
    "(module, name) of all imports"
    for o in ast.walk(tree):
        if isinstance(o, ast.Import): yield from ((a.name, '') for a in o.names)
        if isinstance(o, ast.ImportFrom): yield from ((o.module or '', a.name) for a in o.names)


@pytest.mark.parametrize('path', FILES, ids=lambda f: str(f.relative_to(FOLDER)))
def test_public_names_alone(path):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for module, name in imported(tree):
        package, _, rest = module.partition('.')
        if package == 'cjm_fasthtml_sse':
            assert (rest or name) in {*MODULES, '', '__version__'}, f'{module} {name}'
            assert not name.startswith('_') or name == '__version__', f'{module} {name}'
        if module.split('.')[0] == 'tests': assert module.startswith('tests.contract'), f'{module} will be rewritten'
    used = {o.attr: o.lineno for o in ast.walk(tree) if isinstance(o, ast.Attribute) and isinstance(o.ctx, ast.Load)}
    made = {o.attr for o in ast.walk(tree) if isinstance(o, ast.Attribute) and isinstance(o.ctx, ast.Store)}
    made |= {o.name for o in ast.walk(tree) if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef))}
    made |= {'_exit', '_serve'}  # Of `os` and `uvicorn`
    private = {name for name in used if name.startswith('_') and not name.startswith('__')}
    strange = {f'line {used[name]}: {name}' for name in private-made}
    assert not strange, 'private names of others'
