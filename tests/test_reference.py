"""Which module imports which; and does the reference say all it should? Each public name: what it is, each parameter, what it raises, a lesson that uses it

The rules, for all that is in `__all__` and for the public methods of its classes:

- a docstring; a constant has a comment in its line
- a docment for each parameter and each field of a dataclass, unless the method it stands in for says it (`Backend.start`
  speaks for `RedisBackend.start`)
- the name of each error that it raises, itself or through its module's functions that it calls
- a cell of its own module's notebook uses it; a method may be used by any notebook
- the page of `SSEError` has a line for each error there is
- what apps are built with, the tutorials and the six modules, uses public names alone in its lessons
"""
import ast
import io
import json
import re
import tokenize
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS, PACKAGE = ROOT/'nbs', 'cjm_fasthtml_sse'
SIX = 'core dispatcher helpers htmx monitoring updater'.split()

@cache
def cells(path):
    "The cells of a notebook: (kind, source)"
    return [(c['cell_type'], ''.join(c['source'])) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]

def directives(source): return dict(re.findall(r'^\s*#\|\s*([\w-]+)\s*:?\s*(.*?)\s*$', source, re.M))

@cache
def pages():
    "Each notebook, and the module that it exports, if any"
    def module(f): return next((m for kind, s in cells(f) if kind == 'code' and (m := directives(s).get('default_exp'))), None)
    found = {f: module(f) for f in sorted(NBS.rglob('*.ipynb')) if '.ipynb_checkpoints' not in f.parts}
    assert len(found) > 20
    return found

def modules(): return {m: f for f, m in pages().items() if m}

@cache
def source(module): return (ROOT/PACKAGE/f"{module.replace('.', '/')}.py").read_text(encoding='utf-8')

@cache
def tree(module): return ast.parse(source(module))

def exported(module):
    "The names in `__all__`"
    return next(ast.literal_eval(n.value) for n in tree(module).body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__')

def is_def(node): return isinstance(node, ast.FunctionDef|ast.AsyncFunctionDef)

def public(name): return not name.startswith('_') or name in ('__init__', '__call__')

def patched(node):
    "Names of the classes that fastcore's `patch` adds a function to"
    for d in node.decorator_list:
        name = getattr(d.func if isinstance(d, ast.Call) else d, 'id', '')
        if name in ('patch', 'patch_to'):
            return re.findall(r'\w+', ast.unparse(node.args.args[0].annotation if name == 'patch' else d.args[0]))
    return []


@dataclass(frozen=True)
class Def:
    "A function or class of a module, public or not"
    module: str
    cls: str              # '' for what stands at the top
    node: ast.AST

    @property
    def name(self): return f'{self.cls}.{self.node.name}' if self.cls else self.node.name

    @property
    def public(self):
        outer = (self.cls or self.node.name) in {n for m in modules() for n in exported(m)}
        return outer and public(self.node.name)


@cache
def defs():
    "All functions, classes and methods of the package"
    res = []
    for m in modules():
        for n in tree(m).body:
            if isinstance(n, ast.ClassDef):
                res += [Def(m, '', n), *(Def(m, n.name, o) for o in n.body if is_def(o))]
            elif is_def(n): res += [Def(m, c, n) for c in patched(n) or ['']]
    return res


@cache
def imported(module): return {o.asname or o.name for n in tree(module).body if isinstance(n, ast.ImportFrom) for o in n.names}


@cache
def comments(module):
    "Line -> its comment"
    return {t.start[0]: t.string.lstrip('# ') for t in tokenize.generate_tokens(io.StringIO(source(module)).readline) if t.type == tokenize.COMMENT}


def commented(module, first, last): return any(comments(module).get(i) for i in range(first, last+1))

def docmented(d):
    "Parameter -> its docment, '' where it has none"
    a, said, res = d.node.args, comments(d.module), {}
    lines = source(d.module).split('\n')
    def above(n): return said[n-1] if lines[n-2].lstrip().startswith('#') else ''  # As fastcore reads it
    for o in [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]:
        if o and o.arg not in ('self', 'cls'): res[o.arg] = said.get(o.end_lineno, '') or said.get(o.lineno, '') or above(o.lineno)
    # A default may end lines later than its parameter begins
    for o, v in [*zip(reversed(a.posonlyargs + a.args), reversed(a.defaults)), *zip(a.kwonlyargs, a.kw_defaults)]:
        if v and o.arg in res: res[o.arg] = res[o.arg] or said.get(v.end_lineno, '')
    return res


def fields(node): return [n for n in node.body if isinstance(n, ast.AnnAssign) and not n.target.id.startswith('_')]


@cache
def errors():
    "Errors of the package: name -> the module it stands in"
    found, grew = {'SSEError': next(m for m in modules() if 'SSEError' in {getattr(n, 'name', '') for n in tree(m).body})}, True
    while grew:
        more = {d.node.name: d.module for d in defs() if isinstance(d.node, ast.ClassDef) and {ast.unparse(b) for b in d.node.bases} & found.keys()}
        grew = not more.keys() <= found.keys()
        found |= more
    return found


def caught(node, name):
    "Does a `try` or a `suppress` in `node` catch `name` itself?"
    nodes = [*ast.walk(node)]
    if name in [ast.unparse(a) for n in of_type(nodes, ast.Call) if ast.unparse(n.func) == 'suppress' for a in n.args]: return True
    types = [ast.unparse(h.type or ast.Name('Exception')) for t in of_type(nodes, ast.Try) for h in t.handlers]
    return any(re.search(rf'\b({name}|SSEError|Exception)\b', o) for o in types)


def own(node):
    "What runs when `node` is called"
    for n in ast.iter_child_nodes(node):
        if is_def(n) or isinstance(n, ast.Lambda): continue
        yield n
        yield from own(n)


@cache
def named(name, module=None): return next((o for o in defs() if o.name == name and module in (None, o.module)), None)


def raises(d, path=()):
    "Errors of the package that a call raises: in its own body, not in a function that it defines"
    if d in path: return
    for n in own(d.node):
        if isinstance(n, ast.Raise) and n.exc:
            name = ast.unparse(n.exc.func if isinstance(n.exc, ast.Call) else n.exc)
            if name in errors() and not (caught(d.node, name)): yield name
        elif isinstance(n, ast.Call):
            called = ast.unparse(n.func)
            to = named(f'{d.cls}.{called[5:]}') if called.startswith('self.') else named(called, d.module)
            if to and isinstance(to.node, ast.ClassDef): to = named(f'{to.name}.__init__')
            if to: yield from (e for e in raises(to, (*path, d)) if not caught(d.node, e))


@cache
def lessons(path):
    "The nodes of the cells of a notebook that are not exported"
    found = []
    for kind, src in cells(path):
        if kind != 'code' or directives(src).keys() & {'export', 'exporti', 'hide'}: continue
        with suppress(SyntaxError): found += ast.walk(ast.parse(src))  # A magic is none
    return found

def of_type(nodes, kind): return (n for n in nodes if isinstance(n, kind))

@cache
def uses(path):
    "Names and attributes in the lessons of a notebook"
    return {n.id for n in of_type(lessons(path), ast.Name)} | {n.attr for n in of_type(lessons(path), ast.Attribute)}

def private_names(path):
    "Private names that the lessons of a notebook use, but for those that they define themselves"
    nodes = lessons(path)
    own = {n.name for n in nodes if is_def(n)} | {n.id for n in of_type(nodes, ast.Name) if isinstance(n.ctx, ast.Store)}
    foreign = {n.attr for n in of_type(nodes, ast.Attribute) if getattr(n.value, 'id', '') != 'self'}
    used = {n.id for n in of_type(nodes, ast.Name)} - own | foreign
    return sorted(o for o in used if re.match('_[a-z]', o))


def lacking():
    "What is missing, one line each"
    for path, module in pages().items():
        if module in SIX or path.parent.name == 'tutorials':
            yield from (f'{path.name}: a lesson uses the private name {name}' for name in private_names(path))
    everywhere = set().union(*map(uses, pages()))
    speaks = {(o.node.name, k) for o in defs() if is_def(o.node) for k, v in docmented(o).items() if v}
    for m, page in modules().items():
        at = f'{page.name}:'
        for name in exported(m):
            if name in imported(m): continue  # Its own page has the lesson
            if name not in uses(page): yield f'{at} no lesson uses {name}'
            for n in of_type(tree(m).body, ast.Assign|ast.AnnAssign):
                if re.match(rf'{name}\b', ast.unparse(n)) and not commented(m, n.lineno-1, n.end_lineno):
                    yield f'{at} no comment says what {name} is'
        for d in defs():
            if d.module != m or not d.public: continue
            doc, private = ast.get_docstring(d.node) or '', d.node.name in ('__init__', '__call__')
            if not doc and not private and not is_setter(d.node): yield f'{at} no docstring: {d.name}'
            if isinstance(d.node, ast.ClassDef):
                for f in fields(d.node):
                    if not commented(m, f.lineno, f.end_lineno): yield f'{at} no docment: {d.name}.{f.target.id}'
                continue
            said = docmented(d)
            for k, v in said.items():
                if not v and not (d.cls and (d.node.name, k) in speaks): yield f'{at} no docment: {d.name}({k})'
            about = ' '.join([doc, *said.values(), class_doc(d) if private else ''])
            for e in sorted({*raises(d)}):
                if e not in about: yield f'{at} {d.name} raises {e}, and does not say so'
            if d.cls and not private and d.node.name not in everywhere: yield f'{at} no lesson uses {d.name}'
    page = modules()[errors()['SSEError']]
    prose = '\n'.join(s for kind, s in cells(page) if kind == 'markdown')
    for e, m in errors().items():
        if f'`{e}`' not in prose: yield f'{page.name}: the list of errors lacks {e}'


def class_doc(d): return (o := named(d.cls)) and ast.get_docstring(o.node) or ''

def is_setter(node): return any(ast.unparse(o).endswith('.setter') for o in node.decorator_list)


def test_the_reference_is_complete():
    assert [*lacking()] == []
