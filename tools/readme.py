"""Write README.md: what nbs/index.ipynb says, and what the notebooks and the code say about themselves

    python tools/readme.py           write it
    python tools/readme.py --check   fail when it is not what would be written
"""
import ast
import difflib
import re
import sys
from functools import partial
from pathlib import PurePosixPath
from posixpath import normpath

import project as p

README = p.ROOT/'README.md'
INTERNAL = 'Below them', 'Internals'  # Sections of the sidebar: what few apps call has its details in the notebooks alone
FOLDERS = {'examples/deploy': 'An app behind nginx or Caddy and under systemd, with its configurations: those of the tutorial on deployment',
           'tests': 'What needs a browser, a server process, Redis, or time, for pytest; all else is tried in the notebooks',
           'bench': 'What a broadcast costs, beside peers, and what was measured',
           'tools': 'What `make` runs: the checks, the documentation, this file; and what takes the pictures'}


def relink(md, base='nbs'):
    "Links that are relative to a notebook's folder, made relative to the project's"
    def fix(m): return m[0] if re.match(r'[a-z]+:|#|/', m[2]) else f'{m[1]}({normpath(PurePosixPath(base)/m[2])})'
    return re.sub(r'(\[[^\]]*\])\(([^)\s]+)\)', fix, md)


def hand_written():
    "The cells of index.ipynb"
    for kind, src in p.cells(p.NBS/'index.ipynb'):
        d = p.directives(src)
        if 'hide' in d or d.get('include') == 'false': continue
        if kind == 'markdown': yield relink(p.without_missing_images(src)).strip()
        elif kind == 'code':
            code = re.sub(r'^\s*#\|.*\n?', '', src, flags=re.M).strip()
            if code: yield f'```python\n{code}\n```'


def tutorials():
    "The tutorials, as files of the repository: they are there before any site is"
    rows = [(f'[{o.title}](nbs/{o.path})', o.description) for o in p.tutorials()]
    return f"## Tutorials\n\nEach is a notebook in [nbs/tutorials](nbs/tutorials) that the tests run.\n\n{table(('Tutorial', 'What it is about'), rows)}"


def structure():
    "Files with what each says about itself, and the other folders"
    def rows(folder, files, describe, pad='    '):
        width = max((len(f.name) for f in files), default=0)
        yield f"{folder}/"
        for f in files: yield f"{pad}{f.name:{width}}  {describe(f)}".rstrip()
    notebooks = {p.NBS/o.path: o.description for o in p.pages()}
    lines = []
    for folder in dict.fromkeys(f.parent for f in notebooks):
        lines += rows(folder.relative_to(p.ROOT).as_posix(), [f for f in notebooks if f.parent == folder], notebooks.get)
    for folder, kinds in ((f'{p.PACKAGE}/static', ('.js', '.css')), ('demo', ('.py',))):
        if files := sorted(f for f in (p.ROOT/folder).glob('*') if f.suffix in kinds): lines += rows(folder, files, p.summary)
    width = max(map(len, FOLDERS))
    lines += [f'{folder + "/":{width+1}}  {said}' for folder, said in FOLDERS.items() if (p.ROOT/folder).is_dir()]
    return ('## Project Structure\n\n```\n' + '\n'.join(lines) +
            f'\n```\n\n{len(notebooks)} notebooks, of which {len(p.modules())} are exported to `{p.PACKAGE}/`, one module each.')


def graph():
    "Who imports whom"
    edges = [(m, o) for m, deps in p.imports().items() for o in deps]
    def label(text): return text.replace('"', '#quot;').replace('`', '')
    lines = [f'    {m}["{m}<br/>{label(o.description)}"]' for m, o in p.modules().items()] + [f'    {a} --> {b}' for a, b in edges]
    return ('## Module Dependencies\n\n```mermaid\ngraph LR\n' + '\n'.join(lines) +
            f'\n```\n\n{len(p.modules())} modules, {len(edges)} arrows. An arrow points from a module to one that it imports.')


def table(head, rows): return '\n'.join('| ' + ' | '.join(r) + ' |' for r in (head, ('---',)*len(head), *rows))


def cli():
    "Console scripts, and what make does"
    scripts = p.FACTS.get('scripts', {})
    text = (table(('Command', 'Runs'), [(f'`{k}`', f'`{v}`') for k, v in scripts.items()]) if scripts else
            'The package installs no commands: it is imported. In a checkout, `make` runs these:')
    return f"## CLI Reference\n\n{text}\n\n" + table(('Command', 'What it does'), [(f'`make {k}`', v) for k, v in p.commands().items()])


def bare(code):
    "A signature in one line, without what it says of the parameters"
    return ast.unparse(ast.parse(code + '\n    ...')).removesuffix('...').rstrip()


def block(sym, short=False):
    "A function or class as code: signature, docstring's first paragraph, fields, methods; `short` without docments"
    doc = ' '.join(sym.doc.split('\n\n')[0].split())
    body = [f'"{doc}"'] if doc else []
    body += sym.fields
    for i, m in enumerate(sym.methods):
        if i or body: body.append('')
        body.append(block(m, short))
    return '\n'.join([bare(sym.code) if short else sym.code, *('\n'.join('    ' + l if l else '' for l in b.split('\n')) for b in body)])


def module(name, page):
    "One module: its import line, signatures and docments"
    consts, funcs, classes = p.api(name)
    parts = [f'### {name} ([{page.path}](nbs/{page.path}))', f'> {page.description}']
    names, line = p.exported(name), f'from {p.PACKAGE}.{name} import '
    if names:
        one = line + ', '.join(names)
        if len(one) > 100: one = line + '(\n    ' + ',\n    '.join(names) + '\n)'
        parts.append(f'```python\n{one}\n```')
    show = partial(block, short=page.section in INTERNAL)
    for title, blocks in (('Constants', ['\n'.join(consts)] if consts else []), ('Functions', map(show, funcs)), ('Classes', map(show, classes))):
        if text := '\n\n'.join(blocks): parts.append(f'#### {title}\n\n```python\n{text}\n```')
    return '\n\n'.join(parts)


def generated():
    return [tutorials(), structure(), graph(), cli(), '## Module Overview', *(module(*o) for o in p.modules().items())]


def build():
    parts = []
    for part in hand_written(): parts += generated() if part == p.MARK else [part]
    text = '\n\n'.join(parts)
    notice = '<!-- Written by tools/readme.py from nbs/index.ipynb and the code. To change it, edit those, then run `make readme`. -->'
    head, _, rest = text.partition('\n')
    return f'{head}\n\n{notice}\n' + re.sub(r'\n{3,}', '\n\n', rest).rstrip() + '\n'


def main(check):
    want, have = build(), README.read_text(encoding='utf-8') if README.exists() else ''
    bad = p.problems()
    if not check:
        README.write_text(want, encoding='utf-8')
    elif want != have:
        print(*list(difflib.unified_diff(have.splitlines(), want.splitlines(), 'README.md', 'what it should be', lineterm='', n=1))[:40], sep='\n')
        bad.append('README.md is stale: run `make readme`')
    for b in bad: print(b)
    return bool(bad)


if __name__ == '__main__': sys.exit(main('--check' in sys.argv[1:]))
