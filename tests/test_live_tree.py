"Trees of drawings, and lists of changes, against a model of an element: whatever the drawings are"
import json

import pytest
from hypothesis import given, settings, strategies as st

from cjm_fasthtml_sse.live.changes import compare
from cjm_fasthtml_sse.live.tree import MAX_DEPTH, MAX_TEXT, IrregularHTML, Node, parse
from tests.drawings import VOID, series_of

some_drawings = st.integers(0, 10**9).map(series_of)  # Random numbers that hypothesis itself chooses move too little


class Element:
    "An element as the browser has it: it knows HTML and what changes say"
    def __init__(self, node):
        self.tag,self.id,self.start,self.opaque = node.tag,node.id,node.start,node.opaque
        self.children = [made_of(o) for o in node.children]

    def __eq__(self, other):
        if type(other) is not Element or (self.tag, self.id)!=(other.tag, other.id): return False
        return self.opaque in ('live', 'keep') or (self.start, self.children)==(other.start, other.children)

    def __repr__(self): return f'{self.start}{"".join(map(str, self.children))}</{self.tag}>'

    def all(self):
        yield self
        for o in self.children:
            if type(o) is Element: yield from o.all()

    def content(self, html):
        "The children that a browser makes of HTML within this element"
        start = f'<{self.tag}>' + '\n'*(self.tag in ('pre', 'textarea'))  # A newline behind these start tags is dropped
        return made_of(parse(f'{start}{html}</{self.tag}>')).children

    def apply(self, changes):
        "Apply a list; the element that stands here then"
        ids,taken = {o.id: o for o in self.all() if o.id},{}
        for kind,*change in changes:
            if kind=='whole': return made_of(parse(change[0]))
            elif kind=='count': assert change==[self.count()]
            elif kind=='take': taken = {id: self.take(ids[id]) for id in change[0]}
            else:
                path,*change = change
                at = self
                for o in path: at,parent = ids[o] if type(o) is str else at.children[o],at
                if kind=='merge' and type(at) is Element: at.start = change[0]
                elif kind=='merge': parent.children[path[-1]] = change[0]
                elif kind=='drop':
                    assert len(at.children)>=sum(change)
                    del at.children[change[0]:sum(change)]
                elif kind=='move':
                    i,j = change
                    at.children.insert(j, taken.pop(i) if type(i) is str else at.children.pop(i))
                else:
                    i,html = change
                    assert i<=len(at.children)
                    at.children[i:i] = new = at.content(html)
                    ids |= {o.id: o for n in new if type(n) is Element for o in n.all() if o.id}
        assert not taken
        return self

    def take(self, element):
        parent = next(o for o in self.all() if any(child is element for child in o.children))
        parent.children = [o for o in parent.children if o is not element]
        return element

    def count(self): return 1 if self.opaque else 1+sum(o.count() if type(o) is Element else 1 for o in self.children)


def made_of(o): return Element(o) if type(o) is Node else o


def parsed(html, last=None):
    try: return parse(html, last)
    except IrregularHTML: return None


def outline(o):
    if type(o) is str: return o
    return o.html,o.tag,o.id,o.start,o.opaque,o.count,o.ids,[outline(child) for child in o.children]


@settings(max_examples=1000, derandomize=True)
@given(some_drawings)
def test_changes_make_the_new_drawing(drawings):
    "And no list is longer than the whole; a tree made with the help of the last one is the tree made without"
    last = here = None
    for html in drawings:
        new = parsed(html, last)
        if new is None or last is None:
            if new is None: assert parsed(html) is None
            last,here = new,new and made_of(new)
            continue
        assert outline(new)==outline(parse(html))
        changes = compare(last, new)
        assert len(json.dumps(changes, ensure_ascii=False))<=len(json.dumps([['whole', html]], ensure_ascii=False))
        here = here.apply(json.loads(json.dumps(changes)))
        assert here==made_of(new), changes
        last = new


@settings(max_examples=200, derandomize=True)
@given(some_drawings)
def test_trees_hold_all_of_the_html(drawings):
    for html in drawings:
        if not (tree := parsed(html)): continue
        assert tree.html==html
        nodes = [tree]
        for node in nodes:
            inner = ''.join(o if type(o) is str else o.html for o in node.children)
            assert node.opaque or node.tag in VOID or inner in node.html and node.html.startswith(node.start)
            nodes += [o for o in node.children if type(o) is Node]


def test_rows_that_stay_are_not_parsed_again():
    def table(rows): return '<table id="t">'+''.join(f'<tr><td>{o}</td></tr>' for o in rows)+'</table>'
    old = parse(table(range(100)))
    def reused(rows):
        body,former = parse(table(rows), old).children[0],{id(o) for o in old.children[0].children}
        return sum(id(o) in former for o in body.children)
    assert reused([*range(50), 'new', *range(51, 100)])==99
    assert reused([*range(50), 'new', *range(50, 100)])==100
    assert reused([*range(10, 100)])==90
    assert reused([*reversed(range(100))])==100


@pytest.mark.parametrize('html', [
    '', 'text', '<!-- c -->', '<p>', '<p>a', '<p></div>', '<p>a</p>b', '<p></p><p></p>', '<br><br>',
    '<div><p><div></div></p></div>', '<ul><li><li></li></ul>', '<div><a><b><a></a></b></a></div>', '<form><form></form></form>',
    '<div><tr></tr></div>', '<table>text</table>', '<table><td></td></table>', '<table><div></div></table>', '<tr><p></p></tr>',
    '<select><div></div></select>', '<option><b></b></option>', '<div/>', '<svg><p></p></svg>', '<svg><g></svg></g>',
    '<table><tr><td><svg><desc><template></template></desc></svg></td></tr></table>', '<h1><h2></h2></h1>',
    '<math></math>', '<div><body></body></div>', '<div><plaintext></div>', '<p>a < b</p>', '<p a="1"b="2"></p>', '<p =a></p>',
    '<script><!-- <script></script>', '<style>', '<textarea></textarea x>', '<p>\0</p>', '<!-->', '<div><!-- a --!> b --></div>',
    '<i id="a"><b id="a"></b></i>', '<i id="&amp;"></i>', '<div><![CDATA[x]]></div>', '<div><?x?></div>', '<!doctype html><p></p>'])
def test_what_browsers_repair(html):
    with pytest.raises(IrregularHTML): parse(html)


@pytest.mark.parametrize('html', [
    '<br>', '<br/>', '<INPUT DISABLED>', '<p>a<br>b</p>', '<div>a &lt; b</div> ', '<li></li>', '<option>x</option>', '<tr><td></td></tr>',
    '<table><tr><td>1</td></tr><tbody></tbody></table>', '<table>\n<caption>c</caption>\n<tr></tr></table>', '<circle r="1"/>',
    '<svg><circle r="1"/><g><text>a<tspan>b</tspan></text></g><foreignObject><p>a</p></foreignObject></svg>', '<td><p>a</p></td>',
    '<ul><li>a<ul><li>b</li></ul></li></ul>', '<p><button><p></p></button></p>', '<pre>\n\na</pre>', '<textarea>\n<b></textarea>',
    '<script>if (a < b) c()</script>', '<div><template><tr></tr></template></div>', '<x-y a=1 b=\'"\' c></x-y>'])
def test_what_browsers_take_as_it_is(html):
    assert parse(html).html==html.strip()


def test_limits():
    "Browsers cut deep trees and long texts"
    def nested(n): return '<div>'*n+'</div>'*n
    assert parse(nested(MAX_DEPTH)).count==MAX_DEPTH
    for html in (nested(MAX_DEPTH+1), nested(100_000), *(f'<{o}>{"x"*(MAX_TEXT+1)}</{o}>' for o in ('p', 'textarea', 'style'))):
        with pytest.raises(IrregularHTML): parse(html)


@pytest.mark.parametrize('old,new,changes', [
    ('<p>a</p>', '<p>a</p>', []),
    ('<ul><li>a text that is longer</li></ul>', '<ul><li>a text that is longer</li><li>b</li></ul>', [['count', 3], ['put', [], 1, '<li>b</li>']]),
    ('<ul><li>a</li><li>b</li><li>a longer text</li><li>c</li></ul>', '<ul><li>a longer text</li><li>c</li></ul>', [['count', 9], ['drop', [], 0, 2]]),
    ('<p class="a">a longer text</p>', '<p class="b">a longer text</p>', [['whole', '<p class="b">a longer text</p>']]),
    ('<ul><li id="a">a longer text</li><li id="b">b</li></ul>', '<ul><li id="b">b</li><li id="a">a longer text</li></ul>', [['count', 5], ['move', [], 1, 0]]),
    ('<ul><li data-sse-live id="a">1</li></ul>', '<ul><li data-sse-live id="a">2</li></ul>', []),
    ('<template id="a"></template>', '<div id="a"></div>', [['whole', '<div id="a"></div>']]),
    ('<i>a</i>', '<b>a</b>', [['whole', '<b>a</b>']])])
def test_lists(old, new, changes):
    last = parse(old)
    assert compare(last, parse(new, last))==changes
