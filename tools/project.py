"""What the README and the docs say about the project, read from the notebooks and the exported code

Nothing is imported to find it out: a module that does not run still has a page.
"""
import ast
import io
import json
import re
import tokenize
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
PROJECT = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))
FACTS = PROJECT['project']
PACKAGE = PROJECT['tool']['nbdev']['lib_path']
REPO = FACTS['urls']['Repository'].rstrip('/')
DOCS = FACTS['urls']['Documentation'].rstrip('/') + '/'


# Notebooks

@dataclass(frozen=True)
class Page:
    "A notebook, and where the sidebar puts it"
    path: str             # Relative to nbs/
    section: str          # '' for the home page
    title: str
    description: str
    module: str|None      # What it exports, without the package's name; `None` for a page that exports nothing


MARK = '<!-- generated -->'  # The cell of index.ipynb in whose place the generated parts stand


def without_missing_images(md, folder=NBS):
    "A picture that is not there yet leaves no broken frame"
    return re.sub(r'!\[[^\]]*\]\(([^)\s]+)\)', lambda m: m[0] if ':' in m[1] or (folder/m[1]).exists() else '', md)


def cells(path):
    "The cells of a notebook: (kind, source)"
    nb = json.loads(path.read_text(encoding='utf-8'))
    return [(c['cell_type'], ''.join(c['source'])) for c in nb['cells']]


def directives(source): return dict(re.findall(r'^\s*#\|\s*([\w-]+)\s*:?\s*(.*?)\s*$', source, re.M))


def read_page(path, section=''):
    "Title and description stand in the first cell, `# title` and `> description`"
    cs = cells(path)
    head = next((s for kind, s in cs if kind == 'markdown'), '')
    title, desc = (re.search(p, head, re.M) for p in (r'^# +(.+?)\s*$', r'^> *(.+?)\s*$'))
    module = next((m for kind, s in cs if kind == 'code' and (m := directives(s).get('default_exp'))), None)
    return Page(path.relative_to(NBS).as_posix(), section, title[1] if title else path.stem, desc[1] if desc else '', module)


def listed():
    "(path, section) of each notebook in the order of sidebar.yml"
    def walk(items, section):
        for o in [items] if isinstance(items, str) else items:
            if isinstance(o, dict): yield from walk(o['contents'], o['section'])
            elif '*' in o: yield from ((f.relative_to(NBS).as_posix(), section) for f in sorted(NBS.glob(o)))
            else: yield o, section
    entries = list(walk(yaml.safe_load((NBS/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents'], ''))
    return [o for i, o in enumerate(entries) if o[0] not in {path for path, _ in entries[:i]}]  # `*` stands for those not named before it


@cache
def pages(): return [read_page(NBS/p, s) for p, s in listed() if (NBS/p).exists()]

def home(): return next(p for p in pages() if p.path == 'index.ipynb')

def tutorials():
    "Those of the section itself first: a newcomer begins there"
    return sorted((p for p in pages() if p.path.startswith('tutorials/')), key=lambda p: p.section != 'Tutorials')

@cache
def modules(): return {p.module: p for p in pages() if p.module and source_path(p.module).exists()}


def mixed_cells(page):
    "Cells that import and do something else besides: rendering the docs would run them. A page without a module is not run"
    if not page.module: return
    for kind, src in cells(NBS/page.path):
        d = directives(src)
        if kind != 'code' or d.keys() & {'export', 'exporti', 'exports'} or d.get('eval') == 'false' or src.lstrip().startswith('%'): continue
        try: body = ast.parse(src).body
        except SyntaxError: continue
        lone = all(isinstance(n, ast.Import|ast.ImportFrom) for n in body)
        if not lone and any(isinstance(o, ast.Import|ast.ImportFrom) for n in body for o in ast.walk(n)): yield src.strip().split('\n')[0]


def crowded(page):
    "Is there more in the first cell than a title and a description?"
    return len(next((s for kind, s in cells(NBS/page.path) if kind == 'markdown'), '').split('\n')) > 3


def problems():
    "What would make the README or the site incomplete"
    there = {p.relative_to(NBS).as_posix() for p in NBS.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(NBS).parts)}
    names = [p for p, _ in listed()]
    res = [f'nbs/sidebar.yml does not list {p}' for p in sorted(there - set(names))]
    res += [f'nbs/sidebar.yml lists {p}, which is not there' for p in names if p not in there]
    res += [f'nbs/{p.path} begins without a description line (`> ...`)' for p in pages() if not p.description]
    res += [f'nbs/{p.path}: the cell with the title holds more than that and the description; the docs would leave it out' for p in pages() if crowded(p)]
    res += [f'nbs/{p.path} was not exported' for p in pages() if p.module and p.module not in modules()]
    res += [f'nbs/{o.path}: `logger` would be imported by `import *`; call it `_log`' for m, o in modules().items() if 'logger' in exported(m)]
    res += [f'nbs/{o.path}: imports stand in a cell of their own, unlike `{line}`' for o in pages() for line in mixed_cells(o)]
    if home().description != FACTS['description']: res.append("the description in nbs/index.ipynb is not pyproject.toml's")
    if loop := cycle(): res.append(f"modules import each other: {' -> '.join(loop)}")
    return res


# Modules

def source_path(module): return ROOT/PACKAGE/f"{module.replace('.', '/')}.py"

@cache
def source(module): return source_path(module).read_text(encoding='utf-8')

@cache
def tree(module): return ast.parse(source(module))


@cache
def imports():
    "module -> the modules of this package that it imports, in the order of the sidebar"
    def found(module):
        for n in ast.walk(tree(module)):
            if isinstance(n, ast.ImportFrom):
                name = n.module or ''
                if n.level or name.split('.')[0] == PACKAGE:
                    name = name.removeprefix(PACKAGE).lstrip('.')
                    yield from [name] if name else [a.name for a in n.names]
            elif isinstance(n, ast.Import): yield from (a.name.removeprefix(f'{PACKAGE}.') for a in n.names)
    return {m: [o for o in modules() if o in set(found(m)) and o != m] for m in modules()}


def cycle(path=()):
    "Modules that import each other in a circle; `None` where imports only point down"
    for m in imports()[path[-1]] if path else imports():
        if m in path: return (*path[path.index(m):], m)
        if loop := cycle((*path, m)): return loop


def layers():
    "Modules by layer, those that import nothing first"
    assert not cycle()
    done, res = set(), []
    while rest := [m for m in modules() if m not in done]:
        res.append([m for m in rest if set(imports()[m]) <= done])
        done |= set(res[-1])
    return res


@dataclass
class Symbol:
    "A function or class, as the code writes it"
    name: str
    code: str                      # Decorators that matter and the signature, with its docments
    doc: str
    fields: list[str] = field(default_factory=list)
    methods: list['Symbol'] = field(default_factory=list)


def dedented(text, by): return '\n'.join(re.sub(rf'^ {{0,{by}}}', '', l) for l in text.split('\n'))


def signature(node, text):
    "`def ...:` or `class ...:`, with the comments in it, from the source of the whole module"
    seg, depth, end = ast.get_source_segment(text, node), 0, None
    for t in tokenize.generate_tokens(io.StringIO(seg).readline):
        if end and t.type != tokenize.COMMENT: break
        if t.type == tokenize.OP: depth += (t.string in '([{') - (t.string in ')]}')
        if end or t.string == ':' and not depth: end = t.end
    lines = seg.split('\n')[:end[0]]
    lines[-1] = lines[-1][:end[1]]
    return dedented('\n'.join(lines), node.col_offset)


def patched(node):
    "Class names and kind of a method that fastcore's `patch` adds; kind is the decorator it stands for"
    for d in getattr(node, 'decorator_list', ()):
        call = d if isinstance(d, ast.Call) else None
        name = getattr(call.func if call else d, 'id', '')
        if name not in ('patch', 'patch_to'): continue
        cls = node.args.args[0].annotation if name == 'patch' else call.args[0]
        flags = {k.arg for k in call.keywords if getattr(k.value, 'value', False)} if call else set()
        kind = 'property' if 'as_prop' in flags else 'classmethod' if 'cls_method' in flags else 'staticmethod' if 'static_method' in flags else ''
        return re.findall(r'\w+', ast.unparse(cls)), kind
    return [], ''


def symbol(node, text):
    "`node` as a `Symbol`"
    classes, kind = patched(node)
    shown = [ast.unparse(d) for d in node.decorator_list if not ast.unparse(d).startswith('patch')] + [kind] * bool(kind)
    code = signature(node, text)
    for c in classes: code = re.sub(rf'\b(self|cls)\s*:\s*{c}\b', r'\1', code, count=1)
    res = Symbol(node.name, '\n'.join([*(f'@{d}' for d in shown), code]), ast.get_docstring(node) or '')
    if isinstance(node, ast.ClassDef):
        lines = text.split('\n')
        for n in node.body:
            if isinstance(n, ast.AnnAssign) and not ast.unparse(n.target).startswith('_'):
                res.fields.append(dedented('\n'.join(lines[n.lineno-1:n.end_lineno]), n.col_offset))
        res.methods = [symbol(n, text) for n in node.body if is_def(n) and public(n.name) and not (n.name == '__init__' and bare(n))]
    return res


def bare(node): return ast.unparse(node.args) == 'self' and not ast.get_docstring(node)

def is_def(node): return isinstance(node, ast.FunctionDef|ast.AsyncFunctionDef)

def public(name): return not name.startswith('_') or name in ('__init__', '__call__')


def exported(module):
    "The names in `__all__`"
    for n in tree(module).body:
        if isinstance(n, ast.Assign) and any(getattr(t, 'id', '') == '__all__' for t in n.targets): return ast.literal_eval(n.value)
    return []


def api(module):
    "Public (constants, functions, classes) of a module; methods patched in by any module stand in their class"
    names, text = exported(module), source(module)
    consts, funcs, classes = [], [], {}
    for n in tree(module).body:
        if isinstance(n, ast.Assign|ast.AnnAssign):
            got = {o.id for t in (n.targets if isinstance(n, ast.Assign) else [n.target]) for o in ast.walk(t) if isinstance(o, ast.Name)}
            if got & set(names): consts.append('\n'.join(text.split('\n')[n.lineno-1:n.end_lineno]))
        elif isinstance(n, ast.ClassDef) and n.name in names: classes[n.name] = symbol(n, text)
        elif is_def(n) and n.name in names and not patched(n)[0]: funcs.append(symbol(n, text))
    for m in [module, *(o for o in modules() if o != module)]:
        for n in tree(m).body:
            if not is_def(n) or not public(n.name): continue
            for c in patched(n)[0]:
                if c in classes and (m == module or module in imports()[m]): classes[c].methods.append(symbol(n, source(m)))
    return consts, funcs, list(classes.values())


# The rest

def commands():
    "What `make` can do: target -> its one line of help"
    return dict(re.findall(r'^([a-z-]+):.*?## (.+)$', (ROOT/'Makefile').read_text(encoding='utf-8'), re.M))


def summary(path):
    "What a Python file or a script says about itself in its first sentence or line"
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.py': return (ast.get_docstring(ast.parse(text)) or '').split('\n')[0]
    if path.suffix == '.css': return re.match(r'(?:/\* (.*?)(?:\.| \*/))?', text)[1] or ''
    said = re.search(r'(?:^//(?! @ts-check).*\n)+', text, re.M)
    return re.split(r'(?<=[.]) ', re.sub(r'^// ?', '', said[0], flags=re.M).replace('\n', ' ').strip())[0].rstrip('.') if said else ''
