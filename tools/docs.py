"""Render the documentation into _docs/: nbdev's processed notebooks, Markdown to HTML, no Quarto

    python tools/docs.py

It fails for a broken link or picture, for a public name that no page shows with a link to its source, for a picture without
words and a title that two pages share, and for a notebook that the sidebar does not know.
"""
import ast
import inspect
import json
import re
import shutil
import sys
import time
from functools import partial
from html import escape, unescape
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from string import Template

import nbdev.processors
import nbdev.serve
import nbdev.showdoc
from fastcore.docments import ShowDocRenderer, docments
from markdown_it import MarkdownIt
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import NbdevLookup
from nbdev.processors import FilterDefaults
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from pygments import highlight as pygments_highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

import graph
import project as p
import readme

SITE = p.ROOT/'tools'/'site'
BLOB = f"{p.REPO}/blob/{get_config().branch}/"
EXTRA = {'changelog.html': ('CHANGELOG.md', 'Changelog', 'What changed, version by version'),
         'contributing.html': ('CONTRIBUTING.md', 'Contributing', 'How to change the library: one command, notebooks first')}
EMPTY = inspect.Parameter.empty


def short(text):
    "Names of types without their modules"
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", '', text)


# What `show_doc` says

class Written:
    "A default as people write it: a partial of FastHTML's is the element that it makes, and no object has an address"
    def __init__(self, o): self.o = o
    def __repr__(self):
        if isinstance(self.o, partial) and self.o.args: return str(self.o.args[0]).title()
        return getattr(self.o, '__name__', None) or re.sub(r' at 0x[0-9a-f]+', '', repr(self.o))


def said_of_kwargs(sym):
    "Name and docment of `**kwargs`, which fastcore takes for what is returned"
    try: found = re.search(r'^ *\*\*(\w+)[^#\n]*# *(.+?) *$', inspect.getsource(sym), re.M)
    except (OSError, TypeError): return None
    return found and found.groups()


class TableRenderer(ShowDocRenderer):
    "Heading with a link to the source, signature, docstring, and a table of the parameters"
    def _repr_markdown_(self):
        src = NbdevLookup().code(self.fn)
        link = f'<a class="src" href="{escape(src)}">source</a>' if src else ''
        parts = [f'<h{self.title_level} class="sym" id="{self.nm.lower()}">{link}{escape(self.nm)}</h{self.title_level}>', f'```python\n{self.signature()}\n```']
        if self.docs: parts.append(self.docs)
        if table := self.table(): parts.append(f'<div class="params">\n\n{table}\n\n</div>')
        parts += map(self.method, self.methods())
        return '\n\n'.join(parts)

    def methods(self):
        "Public methods from the body of a class; those that are patched in later have their own place"
        if not inspect.isclass(self.sym): return []
        kinds = inspect.isfunction, lambda o: isinstance(o, classmethod|staticmethod|property)
        return [k for k, v in vars(self.sym).items() if p.public(k) and k != '__init__' and any(f(v) for f in kinds) and v.__doc__]

    def method(self, name):
        sym = inspect.getattr_static(self.sym, name)
        res = TableRenderer(getattr(sym, '__func__', sym), name=f'{self.nm}.{name}', title_level=min(self.title_level + 1, 6))
        res.fn, res.is_property = f'{self.fn}.{name}', isinstance(sym, property)
        md = res._repr_markdown_()
        return f'<div class="method">\n\n{md}\n\n</div><!-- {res.nm.lower()} -->'

    def signature(self):
        "One line where it fits, else a line for each parameter"
        kind = 'class' if inspect.isclass(self.sym) else 'async def' if inspect.iscoroutinefunction(self.sym) else 'def'
        head = f"{kind} {self.nm.rpartition('.')[2]}"
        if kind == 'class' and '__init__' not in vars(self.sym): return f"{head}({', '.join(b.__name__ for b in self.sym.__bases__ if b is not object)})".replace('()', '')
        if self.sig is None: return str(self.dm)
        params = [v for v in self.sig.parameters.values() if v.name not in ('self', 'cls')]
        params = [v if v.default is EMPTY else v.replace(default=Written(v.default)) for v in params]
        sig = self.sig.replace(parameters=params, return_annotation=EMPTY if kind == 'class' else self.sig.return_annotation)
        if getattr(self, 'is_property', False): return short(f'@property\n{head}{self.sig}')
        one = short(f'{head}{sig}')
        if len(one) <= 88: return one
        parts, last = [], None
        for v in params:
            if v.kind == v.KEYWORD_ONLY and last not in (v.KEYWORD_ONLY, v.VAR_POSITIONAL): parts.append('*')
            parts.append(short(str(v)))
            last = v.kind
        return f'{head}(\n' + ''.join(f'    {o},\n' for o in parts) + ')' + short(str(sig.replace(parameters=[]))).removeprefix('()')

    def table(self):
        "Markdown; empty where no parameter has a docment"
        if self.sig is None: return ''
        rows = {k: v for k, v in docments(self.sym, full=True).items() if k != 'self'}
        if not any(v.docment for v in rows.values()): return ''
        ret = rows.pop('return', None)
        kw = next((k for k, v in self.sig.parameters.items() if v.kind == v.VAR_KEYWORD), None)
        if kw in rows:
            said = said_of_kwargs(self.sym)
            if said and not rows[kw].docment: rows[kw].docment = said[1]
            if said and ret and ret.docment == said[1]: ret.docment = None
            rows = {f'**{k}' if k == kw else k: v for k, v in rows.items()}
        if ret and (ret.docment or ret.anno not in (EMPTY, None)) and not inspect.isclass(self.sym): rows['**Returns**'] = ret
        def code(s, cls=''): return '<code' + (f' class="{cls}"' if cls else '') + '>' + escape(s).replace('|', '&#124;') + '</code>'
        def kind(o):
            text = '' if o in (EMPTY, None, type(None)) else short(inspect.formatannotation(o)).strip("'")
            return code(text, 'long' * (len(text) > 24)) if text else ''
        def default(o): return '' if o is EMPTY else code(repr(Written(o)))
        def declared(k, o):  # fastcore takes the default's type where none is given: that of a value says something, that of an object does not
            v = self.sig.parameters.get(k)
            return o if v is None or v.annotation is not EMPTY or getattr(o, '__module__', '') == 'builtins' else EMPTY
        cols = [('', lambda k, v: k if k == '**Returns**' else code(k)), ('Type', lambda k, v: kind(declared(k, v.anno))),
                ('Default', lambda k, v: default(v.default)), ('Details', lambda k, v: ' '.join((v.docment or '').split()).replace('|', r'\|'))]
        cells = [[f(k, v) for _, f in cols] for k, v in rows.items()]
        used = [i for i in range(len(cols)) if i == 0 or any(r[i] for r in cells)]
        return readme.table([cols[i][0] for i in used], [[r[i] for i in used] for r in cells])


def rm_export(cell):
    "nbdev leaves exported cells out, and documents what they define; constants have no other place to be shown, so their cells stay"
    d = cell.directives_ or {}
    if cell.cell_type != 'code' or not d.keys() & {'export', 'exporti', 'hide', 'default_exp'}: return
    body = ast.parse(cell.source).body if 'export' in d and 'hide' not in d else []
    names = [o.id for n in body for o in ast.walk(n) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store)]
    plain = body and all(isinstance(n, ast.Assign|ast.AnnAssign) for n in body) and any(n[0] != '_' and n not in ('logger', 'log') for n in names)
    if not plain: del cell['source']


class Filter(FilterDefaults):
    def base_procs(self): return [rm_export if f is nbdev.processors.rm_export else f for f in super().base_procs()]


# Markdown to HTML

def highlight(code, lang, *_):
    try: lexer = get_lexer_by_name({'jsonc': 'json'}.get(lang, lang)) if lang else None
    except ClassNotFound: lexer = None
    return pygments_highlight(code, lexer, HtmlFormatter(nowrap=True)) if lexer else escape(code)

MD = MarkdownIt('commonmark', {'html': True, 'highlight': highlight}).enable(['table', 'strikethrough'])


def inline(text): return MD.renderInline(text)  # A title or a description: it may hold `code`

def plain(text): return text.replace('`', '')  # The same where there is no markup


def slug(text): return re.sub(r'[^\w.]+', '-', unescape(re.sub(r'<[^>]+>', '', text)).lower()).strip('-')


def without_repeats(md):
    "A method that a notebook documents itself isn't documented with its class as well"
    own = re.sub(r'<div class="method">.*?</div><!-- .*? -->', '', md, flags=re.S)
    return re.sub(r'<div class="method">(?:(?!<div class="method">).)*?</div><!-- (.*?) -->', lambda m: '' if f'id="{m[1]}"' in own else m[0], md, flags=re.S)


def to_html(md):
    "HTML with an id at each heading, and the headings as (level, id, text)"
    html = MD.render(md)
    html = re.sub(r'<table>.*?</table>', lambda m: f'<div class="scroll" tabindex="0" role="region" aria-label="Table">{m[0]}</div>', html, flags=re.S)
    html = html.replace('<pre>', '<pre tabindex="0">')
    seen, heads = set(re.findall(r'<h\d class="sym" id="([^"]+)"', html)), []
    def head(m):
        level, attrs, text = m[1], m[2], m[3]
        ident = (re.search(r'id="([^"]+)"', attrs) or [None, ''])[1]
        if not ident:
            base = ident = slug(text) or 'section'
            n = 1
            while ident in seen: ident = f'{base}-{(n := n + 1)}'
            seen.add(ident)
            attrs += f' id="{ident}"'
        words = unescape(re.sub(r'<[^>]+>', '', re.sub(r'<a class="src".*?</a>', '', text)))
        heads.append((int(level), ident, words))
        return f'<h{level}{attrs}>{text}<a class="anchor" href="#{escape(ident)}" aria-label="Link to {escape(words)}">#</a></h{level}>'
    return re.sub(r'<h([2-6])([^>]*)>(.*?)</h\1>', head, html, flags=re.S), heads


def output_md(out):
    "One output of a cell"
    data = out.get('data', {})
    join = lambda o: o if isinstance(o, str) else ''.join(o)  # noqa: E731
    for kind in ('text/markdown', 'text/html', 'image/svg+xml'):
        if kind in data: return join(data[kind])
    if 'image/png' in data: return f'<img alt="Output of the cell above" src="data:image/png;base64,{join(data["image/png"]).strip()}">'
    error = out.get('output_type') == 'error'
    text = '\n'.join(out.get('traceback', [])) if error else join(out.get('text') or data.get('text/plain') or '')
    text = re.sub(r'\x1b\[[0-9;]*m', '', text).rstrip()
    # a blank line would end the HTML block
    return f'<pre class="output{" error" if error else ""}">{escape(text)}</pre>'.replace('\n\n', '\n&#8203;\n') if text else ''


def cell_md(cell):
    "Markdown of one processed cell"
    src = ''.join(cell['source'])
    if cell['cell_type'] == 'markdown': return '' if 'WARNING: THIS FILE WAS AUTOGENERATED' in src else src
    if cell['cell_type'] != 'code': return ''
    d = p.directives(src)
    if d.get('include') == 'false': return ''
    code = re.sub(r'^\s*#\|.*\n?', '', src, flags=re.M).strip()
    res = [f"```{cell['metadata'].get('language', 'python')}\n{code}\n```"] if code and d.get('echo') != 'false' else []
    if d.get('output') != 'false': res += map(output_md, cell.get('outputs', []))
    return '\n\n'.join(filter(None, res))


def in_order(cells, module):
    "Neighbouring `show_doc` cells in the order of the code: nbdev reverses those of one cell"
    line = {}
    for n in p.tree(module).body if module in p.modules() else []:
        if hasattr(n, 'name'): line |= {f'{c}.{n.name}' if c else n.name: n.lineno for c in p.patched(n)[0] or ['']}
    def nth(c):
        m = re.search(r'^show_doc\(([\w.]+)\)', ''.join(c['source']), re.M)
        return line.get(m[1]) if m else None
    for known, run in groupby(cells, lambda c: nth(c) is not None): yield from sorted(run, key=nth) if known else run


# Links

def here(target, page): return relpath(target, PurePosixPath(page).parent.as_posix() or '.')


def address(notebook): return nbpath2html(notebook).as_posix()


def relink(html, page, base):
    "Links as the site needs them: `page` is where they stand, `base` the folder they were relative to in the project"
    def fix(m):
        attr, url = m[1], unescape(m[2])
        if url.startswith(p.DOCS): url = here(url.removeprefix(p.DOCS), page)
        elif not re.match(r'[a-z]+:|#|/', url):
            path, _, frag = url.partition('#')
            path = normpath(PurePosixPath(base)/path)
            frag = f'#{frag}' if frag else ''
            extra = next((k for k, v in EXTRA.items() if v[0] == path), None)
            if extra: url = here(extra, page) + frag
            elif path.startswith('nbs/') and path.endswith('.ipynb'): url = here(address(path.removeprefix('nbs/')), page) + frag
            elif path.startswith('nbs/'): url = here(path.removeprefix('nbs/'), page)
            else: url = BLOB + path + frag
        return f'{attr}="{escape(url)}"'
    return re.sub(r'<[a-z][^>]*>', lambda tag: re.sub(r'\b(href|src)="([^"]*)"', fix, tag[0]), html)  # In tags alone: code may show such attributes


def moving(html, folder):
    "A picture `X-moving.webp` stands still for those who want that, if there is `X-still.webp`; site.js adds a button"
    def fix(m):
        file = folder/m[1]
        if not (folder/(still := m[1].replace('-moving.', '-still.'))).exists(): return m[0]
        head = file.read_bytes()[:30]  # An animated WebP says its size in its first chunk
        w, h = (1 + int.from_bytes(head[i:i+3], 'little') for i in (24, 27))
        img = m[0].replace('<img', f'<img width="{w}" height="{h}"')
        return f'<span class="moving"><picture><source media="(prefers-reduced-motion: reduce)" srcset="{still}">{img}</picture></span>'
    return re.sub(r'<img[^>]* ?src="([^"]+-moving\.webp)"[^>]*>', fix, html)


# Pages

def module_graph(page=''):
    faces = [m for m, o in p.modules().items() if o.section == 'Modules']
    pic = graph.svg(p.layers(), p.imports(), lambda m: here(address(p.modules()[m].path), page or 'index.html'), lambda m: plain(p.modules()[m].description), faces)
    return f'<div class="graph" tabindex="0" role="region" aria-label="Module graph">{pic}</div>'


def home_parts():
    "What stands on the home page in place of the README's generated parts"
    rows = [(f'[{m}]({o.path})', o.description) for m, o in p.modules().items()]
    n = sum(map(len, p.imports().values()))
    learn = [(f'[{o.title}]({o.path})', o.description) for o in p.tutorials()]
    return (f"## Tutorials\n\n{readme.table(('Tutorial', 'What it is about'), learn)}\n\n## Modules\n\n{readme.table(('Module', 'What it does'), rows)}\n\n### Module graph\n\n{module_graph()}\n\n"
            f'{len(rows)} modules, {n} arrows: each points from a module to one that it imports.')


def sidebar(current):
    out, section = [], None
    entries = [(address(o.path), o.section, 'Overview' if o is p.home() else o.title) for o in p.pages()]
    entries += [(page, 'Project', title) for page, (_, title, _) in EXTRA.items()]
    for page, sec, title in entries:
        if sec != section:
            if section is not None: out.append('</ul>')
            out.append((f'<h2>{escape(sec)}</h2>' if sec else '') + '<ul>')
            section = sec
        mark = ' aria-current="page"' if page == current else ''
        out.append(f'<li><a href="{here(page, current)}"{mark}>{escape(plain(title))}</a></li>')
    return ''.join(out) + '</ul>'


def contents(heads, source):
    def item(level, ident, text):
        text = re.sub(r'^[A-Z]\w*(?=[.]\w)', '', text)  # a method stands below its class
        return f'<li{" class=sub" * (level > 2)}><a href="#{escape(ident)}">{escape(text)}</a></li>'
    items = ''.join(item(*h) for h in heads if h[0] < 4)
    toc = f'<nav aria-label="On this page"><h2>On this page</h2><ul>{items}</ul></nav>' if items else ''
    return f'{toc}<ul class="more"><li><a href="{BLOB}{source}">View the source</a></li><li><a href="{p.REPO}/issues/new">Report an issue</a></li></ul>'


def facts(page):
    "Under a module's title: how it is imported, what it builds on"
    if page.module not in p.modules(): return ''
    def links(names): return ', '.join(f'<a href="{here(address(p.modules()[m].path), address(page.path))}">{m}</a>' for m in names)
    users = [m for m, deps in p.imports().items() if page.module in deps]
    parts = [f'<code>{p.PACKAGE}.{page.module}</code>']
    if deps := p.imports()[page.module]: parts.append(f'imports {links(deps)}')
    if users: parts.append(f'imported by {links(users)}')
    return f"<p class=\"facts\">{' · '.join(parts)}</p>\n"


class Text(HTMLParser):
    "Text of a page by section, for the search"
    def __init__(self):
        super().__init__()
        self.sections, self.skip, self.tag = [['', '', '']], 0, ''
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag in ('svg', 'script') or a.get('class') in ('anchor', 'src'): self.skip += 1
        if re.fullmatch('h[23]', tag) or a.get('class') == 'sym': self.sections.append(['', a.get('id', ''), ''])
        if re.fullmatch('h[123]', tag) or a.get('class') == 'sym': self.tag = tag
    def handle_endtag(self, tag):
        if self.skip and tag in ('svg', 'script', 'a'): self.skip -= 1
        if tag == self.tag: self.tag = ''
    def handle_data(self, data):
        if not self.skip and self.tag != 'h1': self.sections[-1][0 if self.tag else 2] += data


def index_entries(page, title, description, html):
    t = Text()
    t.feed(html)
    for head, ident, text in t.sections:
        words = ' '.join(text.replace('\u200b', '').split())[:600]
        if head or words: yield {'page': plain(title), 'head': head.strip(), 'url': page + (f'#{ident}' if ident else ''), 'text': words if head else f'{plain(description)} {words}'}


def write(out, page, title, description, md, base, source, extra=''):
    "One page and its Markdown twin; what of it the search finds"
    html, heads = to_html(md)
    body = f'<h1>{inline(title)}</h1>\n<p class="lead">{inline(description)}</p>\n{extra}{moving(relink(html, page, base), out/PurePosixPath(page).parent)}'
    up = '../' * page.count('/')
    full = Template((SITE/'page.html').read_text(encoding='utf-8')).substitute(
        title=escape(plain(title) if page == 'index.html' else f'{plain(title)} · {p.FACTS["name"]}'), description=escape(plain(description)), site=escape(p.FACTS['name']), repo=p.REPO, up=up,
        nav=sidebar(page), body=body, toc=contents(heads, source))
    (out/page).parent.mkdir(parents=True, exist_ok=True)
    (out/page).write_text(full, encoding='utf-8')
    twin = re.sub(r'<h(\d) class="sym"[^>]*>(?:<a.*?</a>)?(.*?)</h\d>', lambda m: f"{'#'*int(m[1])} {unescape(m[2])}", md)
    (out/f'{page}.md').write_text(f'# {title}\n\n> {description}\n\n{twin}\n', encoding='utf-8')
    return list(index_entries(page, title, description, body))


def mend_anchors(out):
    "nbdev links a name to the anchor of its own; what has none is documented with its class, or on its page"
    ids = {f.relative_to(out).as_posix(): set(re.findall(r' id="([^"]+)"', f.read_text(encoding='utf-8'))) for f in out.rglob('*.html')}
    for page in ids:
        def fix(m, page=page):
            target = normpath(PurePosixPath(page).parent/m[1]) if m[1] else page
            if target not in ids or m[2] in ids[target]: return m[0]
            above = m[2].rpartition('.')[0]
            return f'href="{m[1] or PurePosixPath(page).name}{"#" + above if above in ids[target] else ""}"'
        html = (out/page).read_text(encoding='utf-8')
        (out/page).write_text(re.sub(r'href="([^":#]*)#(_\w+|[a-z_]\w*\.[\w.]+)"', fix, html), encoding='utf-8')


# Checks

class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.ids, self.urls, self.twice, self.mute = set(), [], [], []
    def handle_starttag(self, tag, attrs):
        if tag == 'img' and not dict(attrs).get('alt'): self.mute.append(dict(attrs).get('src'))
        for k, v in attrs:
            if k == 'id':
                if v in self.ids: self.twice.append(v)
                self.ids.add(v)
            elif k in ('href', 'src', 'srcset') and v: self.urls.append(v)


def broken(out):
    "Links that lead nowhere: to a page, an anchor or a file that is not there"
    found = {}
    for f in out.rglob('*.html'):
        found[f.relative_to(out).as_posix()] = parser = Links()
        parser.feed(f.read_text(encoding='utf-8'))
    for page, links in found.items():
        for i in links.twice: yield f'{page}: the id {i} stands there twice'
        for i in links.mute: yield f'{page}: the picture {i} has no words for those who don\'t see it'
        for url in links.urls:
            if url.startswith(BLOB):
                path, _, line = url.removeprefix(BLOB).partition('#L')
                f = p.ROOT/path
                if not f.exists() or line and not (line.isdigit() and int(line) <= len(f.read_text(encoding='utf-8').split('\n'))): yield f'{page}: {url}'
            elif not re.match(r'[a-z]+:', url):
                path, _, frag = url.partition('#')
                target = normpath(PurePosixPath(page).parent/path) if path else page
                if not (out/target).is_file() or frag and target in found and frag not in found[target].ids: yield f'{page}: {url}'


def unshown(out):
    "Public functions, classes and methods that no page shows, or not with a link to their source"
    for m, o in p.modules().items():
        page = (out/address(o.path)).read_text(encoding='utf-8')
        shown = {i: 'class="src"' in rest for i, rest in re.findall(r'<h\d class="sym" id="([^"]+)">(.*?)</h\d>', page)}
        _, functions, classes = p.api(m)
        names = [f.name for f in functions] + [c.name for c in classes] + [f'{c.name}.{f.name}' for c in classes for f in c.methods if not f.name.startswith('_')]
        for name in names:
            if not shown.get(name.lower()): yield f'{address(o.path)}: {name} ' + ('has no link to its source' if name.lower() in shown else 'is not shown')


def addresses(out):
    "Places in memory: a page that has one differs each time it is made"
    for f in out.rglob('*.html'):
        for found in set(re.findall(r'[^<>]{0,30} at 0x[0-9a-f]{6,}', f.read_text(encoding='utf-8'))): yield f'{f.relative_to(out)}: an address in memory: {found}'


def titles(out):
    "Titles that two pages share"
    found = {}
    for f in out.rglob('*.html'): found.setdefault(re.search('<title>(.*?)</title>', f.read_text(encoding='utf-8'))[1], []).append(f.relative_to(out).as_posix())
    return [f'the title “{t}”: {", ".join(pages)}' for t, pages in found.items() if len(pages) > 1]


def main():
    start, cfg = time.monotonic(), get_config()
    out = cfg.doc_path
    refresh_quarto_yml()
    # Processing runs the cells that `show_doc` needs, in this process, and so with this renderer
    nbdev.showdoc.BasicMarkdownRenderer = TableRenderer
    nbdev.serve.FilterDefaults = Filter
    proc = proc_nbs(cfg.nbs_path, n_workers=0, force=True)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name in ('site.css', 'site.js', 'icon.svg'): shutil.copy(SITE/name, out)
    for f in p.NBS.rglob('*'):
        if f.suffix in ('.png', '.jpg', '.svg', '.gif', '.webp') or f.name == 'llms.txt':
            (out/f.relative_to(p.NBS)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(f, out/f.relative_to(p.NBS))

    entries = []
    for page in p.pages():
        nb = json.loads((proc/page.path).read_text(encoding='utf-8'))
        md = without_repeats('\n\n'.join(filter(None, map(cell_md, in_order(nb['cells'], page.module)))))
        md = p.without_missing_images(md, (p.NBS/page.path).parent)
        if page is p.home(): md = md.replace(p.MARK, home_parts())
        entries += write(out, address(page.path), page.title, page.description, md, (PurePosixPath('nbs')/page.path).parent.as_posix(), f'nbs/{page.path}', facts(page))
    for page, (source, title, desc) in EXTRA.items():
        md = re.sub(r'^# .*\n', '', (p.ROOT/source).read_text(encoding='utf-8'))
        entries += write(out, page, title, desc, md, '.', source)
    (out/'search-index.js').write_text(f'window.searchIndex = {json.dumps(entries, ensure_ascii=False)}\n', encoding='utf-8')

    mend_anchors(out)
    bad = [f'broken link: {b}' for b in broken(out)] + [*unshown(out), *addresses(out)] + titles(out) + p.problems()
    for b in bad: print(b)
    pages = len(list(out.rglob('*.html')))
    print(f"{pages} pages, {len(entries)} sections to search, {len(bad)} problems, {time.monotonic() - start:.0f} s: {Path(out/'index.html').relative_to(p.ROOT)}")
    return bool(bad)


if __name__ == '__main__': sys.exit(main())
