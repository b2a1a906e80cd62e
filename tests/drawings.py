"""Random drawings and random changes of them, as HTML

A node is a text, a comment `('comment', text)`, or an element `[tag, attributes, children]`.
"""
import random
from html import escape

VOID = {'br', 'hr', 'img', 'input'}
FLOW = '''div div div span b p ul ol table select svg textarea input input details pre form button a h2 script template style
    br'''.split()
PHRASE = 'span b i input br select svg textarea'.split()
CHILDREN = {name: children.split() for name,children in dict(ul='li', ol='li', table='thead tbody tr', thead='tr', tbody='tr', tr='td th',
    select='option optgroup', optgroup='option', option='', svg='g circle text foreignObject', g='circle g text', circle='', text='tspan',
    tspan='', foreignObject='div', pre='span', textarea='', script='', style='', template='div', details='summary div input',
    summary='span', button='span b', a='span b').items()} | dict.fromkeys('p span b i h2'.split(), PHRASE)
NESTED = {'div', 'span', 'g', 'b'}  # May stand within another of their kind
TEXT = {'div', 'li', 'td', 'th', 'p', 'span', 'b', 'i', 'h2', 'button', 'a', 'pre', 'textarea', 'option', 'tspan', 'text', 'summary',
        'details', 'style', 'script'}
ONLY_TEXT = {'textarea', 'option', 'tspan', 'style', 'script'}
WORDS = ['a', 'b & c', 'x < y', '"q"', "it's", '  ', '\n', '\nline', 'long text', 'ünï', '👍', 'a\r\nb', '0', '&lt;b&gt;']
ATTRIBUTES = {'title': ['t', 'u "v"', '<&>'], '@click': ['go()'], ':class': ['{a: 1}'], 'style': ['color: red', 'top: 1px'],
              'hidden': [True], 'xlink:href': ['#a', '#b']}
ROOTS = 'div div div ul table tr li select option svg g p details form textarea'.split()


class Drawings:
    "Draws a random element, and changes the drawing at random"
    def __init__(self, rand, tag=None):
        self.rand,self.number = rand,0
        self.ids = rand.choice([0, .3, .8, 1])  # Which part of the elements has one
        tag,attrs,children = self.node(tag or rand.choice(ROOTS))
        self.root = [tag, {'id': 'root', **{k: v for k,v in attrs.items() if k!='id' and not k.startswith('data-sse')}}, children]

    def often(self, part): return self.rand.random()<part
    def html(self): return render(self.root)

    def attributes(self, tag):
        choice,attrs = self.rand.choice,{}
        if self.often(self.ids):
            self.number += 1
            attrs['id'] = f'n{self.number}'
        if self.often(.4): attrs['class'] = ' '.join(self.rand.sample(['x', 'y', 'z', 'w'], self.rand.randint(0, 3)))
        attrs |= {k: choice(values) for k,values in ATTRIBUTES.items() if self.often(.1)}
        if tag=='input':
            if self.often(.3): attrs['type'] = choice(['text', 'checkbox', 'radio', 'number', 'hidden', 'range'])
            if self.often(.6): attrs['value'] = choice('123')
            if self.often(.3): attrs['checked'] = True
        if tag=='option' and self.often(.2): attrs['selected'] = True
        if tag=='option' and self.often(.5): attrs['value'] = choice('123')
        if tag=='details' and self.often(.3): attrs['open'] = True
        if tag=='script': attrs['type'] = 'application/json'
        if tag=='circle': attrs['r'] = choice('123')
        if tag in ('div', 'li', 'span', 'tr') and 'id' in attrs and self.often(.06): attrs[choice(['data-sse-live', 'data-sse-keep'])] = True
        return attrs

    def node(self, tag, inside=()):
        many = [] if tag in VOID else range(self.rand.choice([0, 1, 1, 2, 3, 5] if inside else [2, 4, 8]))
        children = [self.child(tag, inside) for _ in many]
        return [tag, self.attributes(tag), [o for o in children if o is not None]]

    def child(self, tag, inside):
        "A new node for an element of this tag within those of the tags `inside`; `None` where there is none"
        inside = (*inside, tag)
        if tag in TEXT and (self.often(.4) or tag in ONLY_TEXT): return self.rand.choice(WORDS)
        if tag not in ONLY_TEXT|{'template'} and self.often(.05): return 'comment',self.rand.choice(['c', 'd -e'])
        tags = [o for o in CHILDREN.get(tag, FLOW) if o not in inside or o in NESTED]
        if {'p', 'h2'}&{*inside}: tags = [o for o in tags if o in (*PHRASE, *CHILDREN['svg'], *CHILDREN['g'])]
        if tags and len(inside)<6: return self.node(self.rand.choice(tags), inside)

    def elements(self, o=None, inside=()):
        "Each element, and the tags it stands in"
        o = o or self.root
        yield o,inside
        for child in o[2]:
            if isinstance(child, list): yield from self.elements(child, (*inside, o[0]))

    def change(self):
        "Change something, which may be nothing"
        o,inside = self.rand.choice([*self.elements()])
        how = self.rand.choice('attributes_of attributes_of text insert insert delete delete move move shuffle swap carry carry'.split())
        getattr(self, how)(o, inside)

    def text(self, o, inside): o[2] = [self.rand.choice(WORDS) if isinstance(child, str) else child for child in o[2]]
    def shuffle(self, o, inside): self.rand.shuffle(o[2])
    def delete(self, o, inside):
        if o[2]: del o[2][self.rand.randrange(len(o[2]))]

    def attributes_of(self, o, inside):
        tag,attrs,_ = o
        kept = {k: v for k,v in attrs.items() if k=='id' or k.startswith('data-sse')}
        others = self.attributes(tag) if self.often(.5) else {k: v for k,v in attrs.items() if self.often(.7)}
        others = {k: v for k,v in others.items() if k!='id' and not k.startswith('data-sse')}
        o[1] = others if inside and self.often(.1) else kept|others
        if tag=='script': o[1]['type'] = 'application/json'

    def insert(self, o, inside):
        tag,_,children = o
        if tag in VOID or children and tag in ONLY_TEXT: return
        if (new := self.child(tag, inside)) is not None: children.insert(self.rand.randint(0, len(children)), new)

    def move(self, o, inside):
        children,where = o[2],self.rand.randrange
        if children: children.insert(where(len(children)), children.pop(where(len(children))))

    def swap(self, o, inside):
        if len(o[2])<2: return
        i,j = self.rand.sample(range(len(o[2])), 2)
        o[2][i],o[2][j] = o[2][j],o[2][i]

    def carry(self, o, inside):
        "Move an element with an id to another parent of the same kind"
        places = [(parent, child) for parent,_ in self.elements() for child in parent[2] if isinstance(child, list) and 'id' in child[1]]
        if not places: return
        parent,child = self.rand.choice(places)
        within = {id(x) for x,_ in self.elements(child)}
        to = [x for x,outer in self.elements() if x is not parent and x[0]==parent[0] and id(x) not in within
              and (child[0] in NESTED or child[0] not in outer)]
        if not to: return
        new = self.rand.choice(to)
        parent[2].remove(child)
        new[2].insert(self.rand.randint(0, len(new[2])), child)


def render(o):
    "The HTML of a node"
    if isinstance(o, str): return escape(o, quote=False)
    if isinstance(o, tuple): return f'<!--{o[1]}-->'
    tag,attrs,children = o
    start = f'<{tag}' + ''.join(f' {k}' if v is True else f' {k}="{escape(v)}"' for k,v in attrs.items()) + '>'
    if tag in VOID: return start
    if tag in ('script', 'style'): return f'{start}{"".join(o for o in children if isinstance(o, str))}</{tag}>'
    # Two texts beside each other would be one
    children = [o for i,o in enumerate(children) if not (i and isinstance(o, str) and isinstance(children[i-1], str))]
    return f'{start}{"".join(map(render, children))}</{tag}>'


def series(rand, most=10, tag=None):
    "The HTML of some drawings, each made of the one before"
    drawings = Drawings(rand, tag)
    res = [drawings.html()]
    for _ in range(rand.choice([o for o in (1, 3, 6, 10) if o<=most])):
        for _ in range(rand.choice([1, 1, 1, 2, 5, 20])): drawings.change()
        res.append(drawings.html())
    return res


def series_of(seed): return series(random.Random(seed))
