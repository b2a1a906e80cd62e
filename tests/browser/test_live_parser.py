"""Whatever HTML `parse` takes, browsers make the same tree of it

    LIVE_RUNS=30000 LIVE_SEED=7 pytest tests/browser/test_live_parser.py -k soup     so many random pieces
"""
import json
import os
import random
from pathlib import Path

import pytest
from browsers import each_browser

from cjm_fasthtml_sse.live.tree import _FOREIGN, _RAW, IrregularHTML, parse

# The suite runs the same HTML each time; who asks for runs gets new ones
KNOBS = {o: os.environ.get(f'LIVE_{o}') for o in ('SEED', 'RUNS')}
SEED = int(KNOBS['SEED'] or (random.SystemRandom().randrange(10**9) if KNOBS['RUNS'] else 1117))
RUNS = int(KNOBS['RUNS'] or 6000)
OURS = (Path(__file__).parent/'live_changes.js').read_text()

VOID = {'br', 'hr', 'img', 'input', 'col', 'source', 'wbr'}
TAGS = '''div div span p p b i a a button form ul li li ol dl dt dd table tbody thead tr tr td th caption colgroup col select option optgroup hr
    br img input svg g circle title foreignObject desc text style script template textarea pre listing nobr h1 h2 ruby rt rp details summary
    section address main center font object marquee iframe xmp noembed label fieldset legend datalist menu video source math mi image body
    head html frameset plaintext applet isindex keygen command wbr custom-tag dialog search em strong u small code tt big s nav header'''.split()
TEXTS = ['text', ' ', '\n', '&lt;', '<!-- c -->']
ODD = ['a &lt; b', '&nbsp;', 'x < y', '<', '&amp', '\r\n', '<!---->', '<!-->', '<!-- a --!> b -->', '<![CDATA[x]]>', '<?x?>', '</p>', '</br>', '</div>']
ATTRIBUTES = ['', '', '', ' class="a>b"', ' hidden', ' a=\'"\' b', ' @click="x < y"', ' x=1/', '/', ' /']
INNER = {name: inner.split() for name,inner in dict(svg='g circle foreignObject title text desc a', table='tr tbody thead caption tr', select='option optgroup',
    ul='li', dl='dt dd div', tbody='tr', thead='tr', tr='td').items()}
# What may stand in what: within these, an element within an element of all kinds
AROUND = ['<table><tr><td>{}</td><td>y</td></tr></table>', '<table><tr><td><svg><foreignObject>{}</foreignObject></svg></td><td>y</td></tr></table>',
          '<svg>{}<g></g></svg>', '<div><p>{}</p>x</div>', '<ul><li>{}</li><li>y</li></ul>', '<div><button>{}</button>x</div>']


def element(tag, inner='', attributes=''): return f'<{tag}{attributes}>' + ('' if tag in VOID else f'{inner}</{tag}>')


def soup(rand, depth=0):
    "Tags as they come"
    res = []
    for _ in range(rand.choice([0, 1, 1, 2, 3]) if depth<7 else 0):
        if rand.random()<.2: res.append(rand.choice(ODD if rand.random()<.1 else TEXTS))
        else:
            tag = rand.choice(TAGS)
            attributes = rand.choice([*ATTRIBUTES, f' id=x{rand.randrange(10**6)}']) if rand.random()<.5 else ''
            res.append(element(tag, content(tag, rand, depth+1), attributes).removesuffix(f'</{tag}>' if rand.random()<.02 else '-'))
    return ''.join(res)


def content(tag, rand, depth):
    if tag in INNER and rand.random()<.7: return ''.join(element(o, content(o, rand, depth+1)) for o in rand.choices(INNER[tag], k=rand.randint(1, 3)))
    return soup(rand, depth)


def outline(o, svg):
    "Tags and kinds of nodes; `svg`: it stands in one"
    svg = svg or o.tag=='svg'
    raw = not svg and o.tag in _RAW
    def text(o): return '#comment' if o[:4]=='<!--' and not raw else '#text'
    inner = svg and o.tag not in ('foreignobject', 'desc', 'title')
    return [o.tag, *([] if o.opaque else (text(child) if isinstance(child, str) else outline(child, inner) for child in o.children))]


def check(page, pieces):
    "Parse pieces here and in the page; how many are no irregular HTML"
    cases = []
    for html in pieces:
        try: tree = parse(html)
        except IrregularHTML: continue
        cases.append((html, outline(tree, tree.tag in _FOREIGN)))
    page.evaluate("source => { document.open(); document.write('<!doctype html><body>'); document.close(); (0, eval)(`{ ${source} }`); }", OURS)
    for i in range(0, len(cases), 4000):
        bad = page.evaluate("""text => {
            const outline = o => o.nodeType === 3 ? '#text' : o.nodeType === 8 ? '#comment' :
                [o.nodeName.toLowerCase(), ...(/^(script|template|noscript)$/i.test(o.nodeName) ? [] : [...o.childNodes].map(outline))];
            for (const [html, expected] of JSON.parse(text)) {
                const [outer, parent] = host(expected[0]);
                parent.innerHTML = html;
                outer.remove();
                const found = JSON.stringify([...parent.childNodes].map(outline));
                if (found !== JSON.stringify([expected])) return [html, JSON.stringify(expected), found];
            }
        }""", json.dumps(cases[i:i+4000]))
        assert not bad, '\n'.join(bad)
    return len(cases)


@each_browser
def test_tag_soup(page):
    def pieces():
        for seed in range(SEED, SEED+RUNS):
            rand = random.Random(seed)
            tag = rand.choice(TAGS)
            yield element(tag, content(tag, rand, 0))
    assert check(page, pieces())>RUNS/4


@each_browser
@pytest.mark.parametrize('around', AROUND, ids=lambda o: o[1:].partition('{')[0].replace('><', ' '))
def test_everything_within_everything(page, around):
    tags = sorted({*TAGS})
    assert check(page, (around.format(element(a, element(b)+'t')) for a in tags if a not in VOID for b in tags))>500
