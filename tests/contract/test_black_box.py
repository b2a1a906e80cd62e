"""The contract suite sees what users see: public names, and what is documented to stand on the wire and in a store

A test that reaches for anything else would have to change with the code that it judges, and a backend that is written next
could not pass it. So the check looks at imports, attributes, keywords, names in texts, programs in texts, what is patched,
and what stands in a backend's store. `PRIVATE` lists the places that can't do without, three at most.
"""
import ast
import re
from operator import itemgetter
from pathlib import Path

import pytest

PACKAGE = 'cjm_fasthtml_sse'
MODULES = {'core', 'dispatcher', 'helpers', 'htmx', 'monitoring', 'updater', 'common', 'testing', 'progress', 'dashboard', 'backends.base',
    'backends.sqlite', 'backends.redis'}
FOLDER = Path(__file__).parent
FILES = [*FOLDER.rglob('*.py')]
OTHERS = {'os._exit'}  # A documented name of the standard library
DUNDERS = {f'__{o}__' for o in 'init name doc notes version qualname module code call aenter aexit enter exit getitem'.split()}
PATCHES = {'setattr', 'delattr', 'hasattr', 'setitem', 'object', 'patch', 'attrgetter', 'import_module', 'vars', '__import__'}
STORED = re.compile(r'\bsse_(?:log|command|meta|worker|watch|X)\b|\bsse:(?:epoch|workers?|X)\b')  # Tables, and keys of Redis
OUTSIDE = re.compile(r'insert into sse_log\(fields\) values')  # How any program may broadcast: it is documented with the backend
# Who may name what stands in a store: the tests of that backend alone, and the list of all stores
STORES = re.compile(r'stores\.py|test_\w*_(sqlite|redis)\.py')

PRIVATE = {  # (file, what stands there): why
    ('test_over_sqlite.py', 'sse_command'): 'That a lost command ends the streams of users can only be seen by losing one, and no call loses it.',
    ('test_over_redis.py', 'sse:workers'): 'A report of another version is written as that version would: there is no such process to start.',
    ('test_over_redis.py', 'sse:worker'): 'The same report stands under a key of its own.',
}


def texts(tree):
    "(text, line) of all that is written in quotes, docstrings left out; what is filled in stands as `X`"
    skip = set()
    for o in ast.walk(tree):
        if isinstance(o, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and o.body and isinstance(o.body[0], ast.Expr):
            skip.add(o.body[0].value)
    for o in ast.walk(tree):
        if isinstance(o, ast.JoinedStr):
            skip |= {*o.values}
            yield ''.join(str(v.value) if isinstance(v, ast.Constant) else 'X' for v in o.values), o.lineno
    for o in ast.walk(tree):
        if isinstance(o, ast.Constant) and isinstance(o.value, str) and o not in skip: yield o.value, o.lineno


def is_public(module, name=''):
    rest = module.removeprefix(PACKAGE).strip('.')
    if rest: return rest in MODULES and not name.startswith('_')
    return name in {'', '__version__', *MODULES}


def of_package(tree):
    "Names that an import has bound to something of the package"
    for o in ast.walk(tree):
        if isinstance(o, ast.ImportFrom) and (o.module or '').split('.')[0]==PACKAGE: yield from (a.asname or a.name for a in o.names)
        if isinstance(o, ast.Import): yield from (a.asname or a.name.split('.')[0] for a in o.names if a.name.split('.')[0]==PACKAGE)


def found_in(tree):
    "(line, what it is) of all that is private in a program, and in the programs that it has as texts"
    ours = {*of_package(tree)}
    for o in ast.walk(tree):
        if isinstance(o, ast.Import):
            yield from ((o.lineno, a.name) for a in o.names if a.name.split('.')[0]==PACKAGE and not is_public(a.name))
        if isinstance(o, ast.ImportFrom):
            for a in o.names:
                if (o.module or '').split('.')[0]==PACKAGE and not is_public(o.module, a.name) or a.name.startswith('_'): yield o.lineno, f'{o.module} {a.name}'
                if (o.module or '').split('.')[0]=='tests' and not o.module.startswith('tests.contract'): yield o.lineno, f'{o.module} will be rewritten'
        if isinstance(o, ast.Attribute) and o.attr.startswith('_') and o.attr not in DUNDERS and ast.unparse(o) not in OTHERS: yield o.lineno, ast.unparse(o)
        if isinstance(o, ast.Attribute) and ast.unparse(o)=='sys.modules': yield o.lineno, 'sys.modules'
        if isinstance(o, ast.keyword) and o.arg and o.arg.startswith('_') and o.arg not in DUNDERS: yield o.value.lineno, f'{o.arg}='
        if isinstance(o, ast.Call) and ast.unparse(o.func).rpartition('.')[2] in PATCHES:
            if {n.id for a in o.args[:1] for n in ast.walk(a) if isinstance(n, ast.Name)} & ours:
                yield o.lineno, ast.unparse(o)
        if isinstance(o, ast.Subscript) and ast.unparse(o.value).endswith('scope') and 'sse.' in ast.unparse(o.slice): yield o.lineno, ast.unparse(o)
    for text,line in texts(tree):
        for m in re.findall(rf'{PACKAGE}((?:\.\w+)+)', text):
            if not is_public(m): yield line, PACKAGE+m
        for m in re.findall(r'(?<![\w/%])_[a-zA-Z]\w*', text.replace('os._exit', '')):
            yield line, f'{m} in {text[:40]!r}'
        for m in STORED.findall(OUTSIDE.sub('', text)): yield line, f'{m}, which a store has'
        if 'import ' in text:
            try: program = ast.parse(text)
            except (SyntaxError, ValueError): continue
            yield from ((line, what) for _,what in found_in(program))


def strange(path):
    tree,name = ast.parse(path.read_text(encoding='utf-8')),path.name
    for line,what in found_in(tree):
        word = what.partition(',')[0]
        if what.endswith(', which a store has') and STORES.fullmatch(name) and (word in ('sse_log', 'sse') or (name, word) in PRIVATE): continue
        yield f'line {line}: {what}'


@pytest.mark.parametrize('path', [f for f in FILES if f!=Path(__file__)], ids=lambda f: str(f.relative_to(FOLDER)))
def test_public_names_alone(path): assert [*strange(path)]==[], 'private names'


def test_what_is_private_is_needed():
    "Three places at most, each with its reason, and each is there"
    assert len(PRIVATE)<=3 and all(len(o.split())>5 for o in PRIVATE.values())
    for name,word in PRIVATE:
        there = [what for what in map(itemgetter(1), found_in(ast.parse((FOLDER/name).read_text()))) if what.startswith(f'{word},')]
        assert len(there)==1, f'{name}: {word} stands in {len(there)} places'


@pytest.mark.parametrize('bad', ['import cjm_fasthtml_sse.engine.hub', 'from cjm_fasthtml_sse import setup', 'from cjm_fasthtml_sse.core import _managers',
    'from tests.test_live import Loop', 'm._hub', 'm._hub = 1', 'def _hub(): pass\nm._hub()', 'f(_x=1)', "getattr(m, '_hub')", "m.__dict__", 'sys.modules',
    "monkeypatch.setattr('cjm_fasthtml_sse.live.endpoint.RECHECK', 1)", 'from cjm_fasthtml_sse import core\nmonkeypatch.setattr(core, "Hub", 1)',
    "run('from cjm_fasthtml_sse.engine.hub import Hub')", "run(f'import os\\nfrom cjm_fasthtml_sse import engine')", "run('m._hub.x')",
    "sql('delete from sse_meta')", "client.get('sse:epoch')", "scope['sse.channel']", "import_module('cjm_fasthtml_sse.visitor')"])
def test_what_it_sees(bad): assert [*found_in(ast.parse(bad))]
