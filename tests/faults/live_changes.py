"Live elements: how changes are made and applied, judged by the tests of just that"
from tests.faults import Fault

APPLIED = 'tests/browser/test_live_changes.py'
MADE = 'tests/test_live_tree.py'

FAULTS: list[Fault] = [
    Fault('What the server drew and what a script inserted change places, though nothing was changed there', 'static/changes.js', APPLIED,
        (("    while (next && next !== node && !this.drawn.has(next)) next = next.nextSibling;\n", ""),)),
    Fault('An element that a script took elsewhere comes back when the server moves it', 'static/changes.js', APPLIED,
        (("      if (this.drawn.has(/** @type {Node} */ (this.node(child).parentNode))) this.place(child);", "      this.place(child);"),)),
    Fault('A new value from the server overwrites what somebody is typing', 'static/changes.js', APPLIED,
        ((" && field !== focused", ""),)),
    Fault('A class that a script set is lost when the server changes the others', 'static/changes.js', APPLIED,
        (("      if (name === 'class' && element.getAttribute(name) !== was) {", "      if (name === 'classes') {"),)),
    Fault('What a user opened is closed by the next drawing', 'static/changes.js', APPLIED,
        (("      const was = drawn.getAttribute(name);", "      const was = element.getAttribute(name);"),)),
    Fault('The outer live element overwrites the one in it', 'static/changes.js', APPLIED,
        (("        if (!(child instanceof Element && child.matches(KEPT))) this.reconcile(same, child);", "        this.reconcile(same, child);"),)),
    Fault('A row that moves loses its frames and where they were scrolled to', 'static/changes.js', APPLIED,
        (("parent.moveBefore && node.getRootNode() === parent.getRootNode() ? 'moveBefore' : 'insertBefore'", "'insertBefore'"),)),
    Fault('Where browsers have no `moveBefore`, a field that moves loses the focus', 'static/changes.js', APPLIED,
        (("        focused?.focus({ preventScroll: true });\n", ""),)),
    Fault('New rows lose their cells, and circles are no part of their svg', 'static/changes.js', APPLIED,
        (("    this.range.selectNodeContents(/** @type {Node} */ (parent));", "    this.range.selectNodeContents(parent && this.drawing.body);"),)),
    Fault('Scripts that a list brings do not run', 'static/changes.js', APPLIED,
        (("      children.forEach((child, index) => this.put(child, nodes[index]));", "      children.forEach(child => this.put(child));"),)),
    Fault('A live element that had nothing to draw gets an id and a stream that are not its own', 'static/changes.js', APPLIED,
        (("      for (const { name, value } of root.attributes) if (BOUND.test(name)) this.root.setAttribute(name, value);\n", ""),)),
    Fault('A card that goes to another column comes there as a new one: what was typed in it is lost', 'live/changes.py', APPLIED,
        (("    if taken:\n        c = ", "    if taken and not old:\n        c = "),)),
    Fault('The browser and the server count differently, so every change comes as a whole', 'live/tree.py', APPLIED,
        (("                self.count += o.count-1\n", ""),)),
    Fault('A `div` within a `p` is counted where it stands, while browsers put it behind', 'live/tree.py', MADE,
        (("(_P if tag in _CLOSES_P else 0)", "0"),)),
    Fault('A row that has changed is taken for the one of the last drawing', 'live/tree.py', MADE,
        (("        if k is not None: node = self.nodes[k]\n        elif node.id: k = self.by_id.get(node.id)\n",
          "        if k is None and node.id: k = self.by_id.get(node.id)\n        if k is not None: node = self.nodes[k]\n"),)),
    Fault('Rows that move arrive one place too late', 'live/changes.py', MADE,
        (("                place -= i<place\n", ""),)),
    Fault('A list of changes is longer than the whole drawing', 'live/changes.py', MADE,
        (("    return res if len(json.dumps(res, ensure_ascii=False))<=len(new.html) else whole", "    return res"),)),
]
