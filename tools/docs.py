"""Render the documentation into _docs/: Sphinx with MyST-NB and Furo, over the notebooks as nbdev processes them

    python tools/docs.py

A link that leads nowhere, a picture without words, and a public name that no page documents make it fail.
"""
import importlib
import inspect
import json
import re
import shutil
import sys
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from posixpath import relpath
from urllib.parse import urljoin

import nbdev.config
import nbdev.serve
import nbdev.showdoc
import yaml
from fastcore.docments import DocmentTbl
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.quarto import refresh_quarto_yml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from sphinx.cmd.build import build_main

ROOT = Path(__file__).resolve().parents[1]
nbdev.config._load_toml = cache(nbdev.config._load_toml)  # It is asked for thousands of times
CFG = get_config()
SYMS = importlib.import_module(f'{CFG.lib_path.name}._modidx').d['syms']
SITE = urljoin(f'{CFG.doc_host}/', f'{CFG.doc_baseurl.rstrip("/")}/')
BLOB = urljoin(f'{CFG.git_url}/', f'blob/{CFG.branch}/')
NOWHERE = '\0'  # Behind the text of a link to a repository whose address is not set
EXTRA = 'CHANGELOG.md', 'CONTRIBUTING.md'
OPTIONS = dict(project=CFG.title, html_title=CFG.title, extensions='myst_nb,sphinx_copybutton', html_theme='furo', nb_execution_mode='off', html_copy_source=0,
               html_show_copyright=0, html_show_sphinx=0, html_static_path='_static', html_css_files='site.css', html_favicon='_static/icon.svg',
               myst_heading_anchors=4, suppress_warnings='myst.header', myst_heading_slug_func='docs.slug')


def slug(title): return re.sub(r'[^\w.]+', '-', title.lower()).strip('-')  # nbdev's links to names keep their dots


# What `show_doc` shows

def written(default):
    "A default as people write it: an FT function by its name, and no address in memory"
    if isinstance(default, partial) and default.args: return str(default.args[0]).title()
    return getattr(default, '__name__', None) or re.sub(r' at 0x[0-9a-f]+', '', repr(default))


class Named:
    def __init__(self, text): self.text = text
    def __repr__(self): return self.text


def signature(sym, name):
    "In one line where it fits, else with a line for each parameter; without the names of modules"
    kind = 'class' if inspect.isclass(sym) else 'async def' if inspect.iscoroutinefunction(sym) else 'def'
    try: sig = inspect.signature(sym)
    except (TypeError, ValueError): return f'{kind} {name}'
    params = [v if v.default is v.empty else v.replace(default=Named(written(v.default))) for k, v in sig.parameters.items() if k not in ('self', 'cls')]
    ret = sig.empty if kind == 'class' else sig.return_annotation
    one = f'{kind} {name}{sig.replace(parameters=params, return_annotation=ret)}'
    if len(one) > 88: one = re.sub(r'\)( -> .*)?$', lambda m: f'\n){m[1] or ""}', one.replace('(', '(\n    ', 1)) if len(params) < 2 else \
        f'{kind} {name}(\n' + ''.join(f'    {o},\n' for o in split(params)) + ')' + str(sig.replace(parameters=[], return_annotation=ret))[2:]
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", '', one)


def split(params):
    "Parameters as text, with the `*` before those that have a keyword"
    star = False
    for v in params:
        if v.kind is v.KEYWORD_ONLY and not star: yield '*'
        star = star or v.kind in (v.KEYWORD_ONLY, v.VAR_POSITIONAL)
        yield str(v)


def table(sym):
    "nbdev's table of the parameters: types that say nothing left out, and what is said of `**kwargs` in its own row"
    try: dm, source = DocmentTbl(sym), inspect.getsource(sym)
    except (TypeError, ValueError, OSError): return ''  # An error without parameters, a class that was made in a cell
    said = re.search(r'^ *\*\*(\w+)[^#\n]*# *(.+?) *$', source, re.M)
    if said and said[1] in dm.dm: dm.dm[said[1]]['docment'] = said[2]
    for k, v in dm.dm.items():
        if v['anno'] in (type(None), partial) or getattr(v['anno'], '__name__', '')[:1] == '_': v['anno'] = inspect._empty
        if k == 'return' and said and v['docment'] == said[2]: v['docment'] = inspect._empty
        if k != 'return' and v['default'] is not inspect._empty: v['default'] = Named(f'`{written(v["default"])}`')
    return re.sub(r'\b(?:[a-z_]\w*\.)+(?=[A-Z])', '', dm._repr_markdown_())


def function(o): return getattr(o, 'fget', None) or getattr(o, '__func__', o)


def own(sym):
    "The class of the package for one that nbdev has made from a cell: only that has a source"
    if not inspect.isclass(sym) or sym.__module__ != '__main__': return sym
    module = next((m for m, names in SYMS.items() if f'{m}.{sym.__name__}' in names), None)
    return getattr(importlib.import_module(module), sym.__name__) if module else sym


class Renderer(nbdev.showdoc.BasicMarkdownRenderer):
    "Heading, link to the source, signature, docstring, table; then the public methods that stand in the body of a class"
    def _repr_markdown_(self):
        source, sym = NbdevLookup().code(self.fn), own(function(self.sym))
        parts = [f"{'#'*self.title_level} {self.nm}", f'[source]({source})' if source and CFG.git_url else '', f"```python\n{signature(sym, self.nm.rpartition('.')[2])}\n```", self.docs, table(sym)]
        for name, o in vars(sym).items() if inspect.isclass(sym) else ():
            if name[0] == '_' or not inspect.isfunction(function(o)) or not function(o).__doc__: continue
            one = Renderer(function(o), name=f'{self.nm}.{name}', title_level=self.title_level+1)
            one.fn = f'{self.fn}.{name}'
            parts.append(f'<!-- {one.nm} -->\n\n{one._repr_markdown_()}\n\n<!-- end -->')
        return '\n\n'.join(filter(None, parts))


# Notebooks as Sphinx reads them

def cells(nb):
    "The cells of a notebook that nbdev has processed, in MyST-NB's terms: (kind, source, outputs)"
    for cell in nb['cells']:
        source = ''.join(cell['source'])
        flags = dict(re.findall(r'^\s*#\|\s*([\w-]+)\s*:?\s*(.*?)\s*$', source, re.M))
        outputs = [] if flags.get('output') == 'false' else cell.get('outputs', [])
        if cell['cell_type'] == 'raw':
            head = yaml.safe_load(source.strip().strip('-'))
            yield 'markdown', f"# {head['title']}\n\n{head.get('description', '')}", []
        elif 'THIS FILE WAS AUTOGENERATED' in source or flags.get('include') == 'false': continue
        elif cell['cell_type'] == 'markdown': yield 'markdown', re.sub(r'\A(?:#\|.*\n)+', '', source), []
        elif flags.get('echo') == 'false': yield 'markdown', '\n\n'.join(''.join(o['data']['text/markdown']) for o in outputs), []
        else: yield 'code', re.sub(r'^\s*#\|.*\n?', '', source, flags=re.M).strip(), outputs


def headings(page): return [h.strip() for kind, src, _ in page if kind == 'markdown' for h in re.findall(r'^#+ (.*)$', re.sub(r'^```.*?^```', '', src, flags=re.M | re.S), re.M)]


def once(page):
    "Without the methods of a class that a cell of their own documents"
    own = [h for kind, src, _ in page if kind == 'markdown' for h in re.findall(r'^#+ (\w+\.\w+)$', re.sub(r'<!-- .*? -->.*?<!-- end -->', '', src, flags=re.S), re.M)]
    def fix(m): return '' if m[1] in own else m[2].strip()
    return [(kind, re.sub(r'<!-- ([\w.]+) -->(.*?)<!-- end -->', fix, src, flags=re.S) if kind == 'markdown' else src, outputs) for kind, src, outputs in page]


def localize(text, page, anchors):
    "Links to pages of the site and to files of the repository, relative to `page`. nbdev links names that have no place of their own: they get their page"
    def link(m):
        url, _, name = m[2].partition('#')
        if url.startswith(SITE):
            to = Path(url.removeprefix(SITE).removesuffix('.html') + '.ipynb')
            found = next((o for o in (name, name.rpartition('.')[0]) if o in anchors.get(to, ())), '')
            url = relpath(to, page.parent) + (f'#{found}' if found else '')
        elif url.startswith('../') and not (to := (ROOT/'nbs'/page.parent/url).resolve()).is_relative_to(ROOT/'nbs'):
            to = to.relative_to(ROOT).as_posix()
            if to not in EXTRA and not CFG.git_url: return m[1] + NOWHERE
            url = relpath(to, page.parent) if to in EXTRA else BLOB + to
        else: return m[0]
        return f'{m[1]}({url})'
    return re.sub(rf'\[([^\[\]]*)\]{NOWHERE}', r'\1', re.sub(r'(\])\(([^)\s]+)\)', link, text))


def notebook(page):
    made = [new_markdown_cell(source, id=f'c{i}') if kind == 'markdown' else new_code_cell(source, id=f'c{i}', outputs=outputs) for i, (kind, source, outputs) in enumerate(page)]
    return json.dumps(new_notebook(cells=made, metadata=dict(kernelspec=dict(display_name='Python 3', language='python', name='python3'))))


def twin(page):
    "The same page as Markdown, for those who read no HTML"
    parts = []
    for kind, source, outputs in page:
        parts.append(source if kind == 'markdown' else f'```python\n{source}\n```')
        for o in outputs:
            if text := ''.join(o.get('text') or o.get('data', {}).get('text/plain') or ''): parts.append(f'```\n{text.rstrip()}\n```')
    return '\n\n'.join(parts) + '\n'


def undocumented(anchors):
    "Public functions, classes and methods of the modules that have no heading on their page"
    for page, known in anchors.items():
        try: module = importlib.import_module('.'.join([CFG.lib_path.name, *page.with_suffix('').parts]))
        except ModuleNotFoundError: continue  # A page without a module
        own = {k: o for k in module.__all__ if (inspect.isclass(o := getattr(module, k)) or inspect.isfunction(o)) and o.__module__ == module.__name__}
        names = [*own, *(f'{k}.{m}' for k, c in own.items() if inspect.isclass(c) for m, o in vars(c).items() if m[0] != '_' and inspect.isfunction(function(o)) and function(o).__doc__)]
        yield from (f'{page}: {name} is not documented' for name in names if slug(name) not in known)


def toctree(items, pages):
    "The sidebar's sections; an entry is the name of a page, or a pattern of names"
    left = sorted(str(o.with_suffix('')) for o in pages)
    for section in items:
        if isinstance(section, str): continue
        names = list(dict.fromkeys(o for pattern in section['contents'] for o in left if fnmatch(f'{o}.ipynb', pattern)))
        left = [o for o in left if o not in names]
        if names: yield f'```{{toctree}}\n:hidden:\n:caption: {section["section"]}\n\n' + '\n'.join(names) + '\n```'
    yield '```{toctree}\n:hidden:\n:caption: Project\n\n' + '\n'.join(o.removesuffix('.md') for o in EXTRA) + '\n```'


def main():
    out, src = CFG.doc_path, ROOT/'_proc'
    refresh_quarto_yml()
    nbdev.showdoc.BasicMarkdownRenderer = Renderer
    nbdev.serve.proc_nbs(CFG.nbs_path, n_workers=0, force=True)
    sidebar = yaml.safe_load((src/'sidebar.yml').read_text())['website']['sidebar']['contents']
    shutil.rmtree(out, ignore_errors=True)
    pages = {f.relative_to(src): once([*cells(json.loads(f.read_text(encoding='utf-8')))]) for f in src.rglob('*.ipynb')}
    anchors = {page: set(map(slug, headings(cs))) for page, cs in pages.items()}
    if missing := [*undocumented(anchors)]: sys.exit('\n'.join(missing))
    for page, cs in pages.items():
        pages[page] = cs = [(kind, localize(text, page, anchors) if kind == 'markdown' else text, outputs) for kind, text, outputs in cs]
        if mute := [text for kind, text, _ in cs if kind == 'markdown' and re.search(r'!\[\]\(|<img(?![^>]* alt=)', text)]: sys.exit(f'{page}: a picture without words: {mute[0][:80]}')
        nav = [('markdown', '\n\n'.join(toctree(sidebar, pages)), [])] if page.name == 'index.ipynb' else []
        (src/page).write_text(notebook(cs + nav), encoding='utf-8')
    for name in EXTRA: (src/name).write_text(localize((ROOT/name).read_text(encoding='utf-8'), Path(name), anchors), encoding='utf-8')
    shutil.copytree(ROOT/'tools/site', src/'_static', dirs_exist_ok=True)
    failed = build_main(['-b', 'html', '-q', '-W', '-C', '--keep-going', '-j', 'auto', *(f'-D{k}={v}' for k, v in OPTIONS.items()), str(src), str(out)])
    shutil.rmtree(out.parent/'jupyter_execute', ignore_errors=True)  # Copies that MyST-NB leaves beside the site
    for page, cs in pages.items(): (out/page).with_suffix('.html.md').write_text(twin(cs), encoding='utf-8')
    shutil.copytree(ROOT/'nbs/images', out/'images', dirs_exist_ok=True)
    print(f'{len(pages) + len(EXTRA)} pages: {(out/"index.html").relative_to(ROOT)}')
    return failed


if __name__ == '__main__': sys.exit(main())
