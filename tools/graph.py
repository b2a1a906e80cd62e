"""The module graph as an SVG picture: rows of boxes, arrows that only point down

Boxes lie in rows by what they import. An arrow over several rows gets a waypoint in each row between. Rows are sorted so that
few arrows cross; then each box moves towards the middle of its neighbours, as far as its row leaves room.
"""
from html import escape
from itertools import pairwise

HIGH, GAP, RISE, PAD = 34, 24, 86, 12  # Height of a box, space between boxes, distance of the rows' tops, margin


def width(node): return 10 if isinstance(node, tuple) else 9*len(node) + 26  # a tuple is a waypoint


def rows_of(layers, imports):
    "Rows from the top down, waypoints included, and the arrows as chains of nodes"
    rank = {m: len(layers) - 1 - i for i, row in enumerate(layers) for m in row}
    rows, chains = [list(row) for row in reversed(layers)], []
    for m, deps in imports.items():
        for d in deps:
            chain = [m, *((m, d, r) for r in range(rank[m] + 1, rank[d])), d]
            for way in chain[1:-1]: rows[way[2]].append(way)
            chains.append(chain)
    return rows, chains


def neighbours(chains):
    res = {}
    for a, b in (o for c in chains for o in pairwise(c)):
        res.setdefault(a, ([], []))[1].append(b)
        res.setdefault(b, ([], []))[0].append(a)
    return res  # node -> (those above, those below)


def crossings(rows, chains):
    at = {n: i for row in rows for i, n in enumerate(row)}
    deep = {n: i for i, row in enumerate(rows) for n in row}
    links = [o for c in chains for o in pairwise(c)]
    return sum((at[a] - at[c])*(at[b] - at[d]) < 0 for i, (a, b) in enumerate(links) for c, d in links[:i] if deep[a] == deep[c])


def sort_rows(rows, chains, sweeps=24):
    "Sort each row by the mean place of its neighbours, downwards and upwards in turn; keep the best order seen"
    near, best = neighbours(chains), None
    for i in range(sweeps):
        if best is None or crossings(rows, chains) < best[0]: best = crossings(rows, chains), [list(r) for r in rows]
        down = i % 2 == 0
        for row in rows if down else reversed(rows):
            place = {n: (j + .5)/len(r) for r in rows for j, n in enumerate(r)}
            def mean(n, place=place, side=0 if down else 1):
                others = near.get(n, ([], []))[side]
                return sum(map(place.get, others))/len(others) if others else place[n]
            row.sort(key=mean)
    return best[1]


def settle(row, wish):
    "Centres for a row, nearest to what each node wishes, with the order kept and nobody overlapping"
    offset, at = {}, 0
    for i, n in enumerate(row):
        at += (width(row[i-1]) + width(n))/2 + GAP if i else 0
        offset[n] = at
    blocks = []  # neighbours that push against each other move as one: (sum of wishes, number, members)
    for n in row:
        blocks.append((wish[n] - offset[n], 1, [n]))
        while len(blocks) > 1 and blocks[-2][0]/blocks[-2][1] > blocks[-1][0]/blocks[-1][1]:
            s, k, ms = blocks.pop()
            t, l, ns = blocks.pop()
            blocks.append((s + t, k + l, ns + ms))
    return {n: s/k + offset[n] for s, k, ms in blocks for n in ms}


def place(rows, chains, rounds=40):
    "Centre of each node, the leftmost edge at 0; and the width of all"
    near = neighbours(chains)
    x = {n: 0. for r in rows for n in r}
    for i in range(rounds):
        for row in rows if i % 2 else reversed(rows):
            around = {n: near.get(n, ([], [])) for n in row}
            x |= settle(row, {n: sum(x[o] for o in up + down)/len(up + down) if up + down else x[n] for n, (up, down) in around.items()})
    left = min(x[n] - width(n)/2 for n in x)
    return {n: v - left for n, v in x.items()}, max(x[n] + width(n)/2 for n in x) - left


def ports(rows, chains, x):
    "Where each link leaves and arrives: spread over the middle of a box, in the order of the other ends"
    out = {}
    near = neighbours(chains)
    for n, sides in near.items():
        for side, others in enumerate(sides):
            others = sorted(others, key=x.get)
            step = min(14, width(n)*.7/len(others)) if others else 0
            for i, o in enumerate(others): out[n, o] = 0 if isinstance(n, tuple) else (i - (len(others) - 1)/2)*step
    return out


def svg(layers, imports, link, title, faces=()):
    "The picture; `link` gives a module's address, `title` its description, `faces` are set in bold"
    rows, chains = rows_of(layers, imports)
    rows = sort_rows(rows, chains)
    x, wide = place(rows, chains)
    port = ports(rows, chains, x)
    y = {n: PAD + i*RISE for i, r in enumerate(rows) for n in r}
    out = []
    for chain in chains:
        d = f'M{x[chain[0]] + PAD + port[chain[0], chain[1]]:.0f} {y[chain[0]] + HIGH}'
        for a, b in pairwise(chain):
            ax, ay, bx, by = x[a] + PAD + port[a, b], y[a] + HIGH, x[b] + PAD + port[b, a], y[b] - (0 if isinstance(b, tuple) else 5)
            mid = (ay + by)/2
            d += f' C{ax:.0f} {mid:.0f} {bx:.0f} {mid:.0f} {bx:.0f} {by}'
            if isinstance(b, tuple): d += f' V{y[b] + HIGH}'  # straight down through the row that it only passes
        out.append(f'<path d="{d}" marker-end="url(#arrow)"/>')
    for n in (n for r in rows for n in r if not isinstance(n, tuple)):
        out.append(f'<a href="{escape(link(n))}"{" class=face" if n in faces else ""}><title>{escape(title(n))}</title>'
                   f'<rect x="{x[n] + PAD - width(n)/2:.0f}" y="{y[n]}" width="{width(n)}" height="{HIGH}" rx="6"/>'
                   f'<text x="{x[n] + PAD:.0f}" y="{y[n] + HIGH/2:.0f}">{escape(n)}</text></a>')
    wide, high = round(wide + 2*PAD), (len(rows) - 1)*RISE + HIGH + 2*PAD
    return (f'<svg viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" role="group" aria-label="Module graph: an arrow points from a module to one that it imports">'
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6" orient="auto-start-reverse">'
            '<path d="M0 0 8 4 0 8z"/></marker></defs>' + ''.join(out) + '</svg>')
