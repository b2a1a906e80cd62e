"Live elements: how changes are made and applied, judged by the tests of just that"
from tests.faults import Fault

APPLIED = 'tests/browser/test_live_changes.py'
MADE = 'tests/test_live_tree.py'

FAULTS: list[Fault] = [
    Fault('What the server drew and what a script inserted change places, though nothing was changed there', 'static/changes.js', APPLIED,
        (("      if (child === before) before = before.nextSibling;\n      else this.insert(drawn, child, before);",
          "      this.insert(drawn, child, null);"),)),
    Fault('An element that a script took elsewhere comes back when the server moves it', 'static/changes.js', APPLIED,
        ((" else if (!this.drawn.has(node.parentNode)) return;", ""),)),
    Fault('A new value from the server overwrites what somebody is typing', 'static/changes.js', APPLIED,
        ((" && field !== focused", ""),)),
    Fault('A class that a script set is lost when the server changes the others', 'static/changes.js', APPLIED,
        (("      if (name === 'class' && node.getAttribute(name) !== was) {", "      if (name === 'classes') {"),)),
    Fault('What a user opened is closed by the next drawing', 'static/changes.js', APPLIED,
        (("      const was = drawn.getAttribute(name);", "      const was = node.getAttribute(name);"),)),
    Fault('The outer live element overwrites the one in it', 'static/changes.js', APPLIED,
        (("      if (same && !child.matches?.(KEPT)) this.reconcile(same, child);", "      if (same) this.reconcile(same, child);"),)),
    Fault('A row that moves loses its frames and where they were scrolled to', 'static/changes.js', APPLIED,
        (("    if (place.moveBefore && place.isConnected && node.isConnected) place.moveBefore(node, next);\n    else place", "    place"),)),
    Fault('Where browsers have no `moveBefore`, a field that moves loses the focus', 'static/changes.js', APPLIED,
        (("      focused.focus({ preventScroll: true });\n", ""),)),
    Fault('New rows lose their cells, and circles are no part of their svg', 'static/changes.js', APPLIED,
        (("    this.range.selectNodeContents(parent);", "    this.range.selectNodeContents(parent && this.drawing.body);"),)),
    Fault('Scripts that a list brings do not run', 'static/changes.js', APPLIED,
        (("    const node = shown ?? document.importNode(drawn, true);", "    if (!shown) parent.append(drawn);\n    const node = shown ?? document.importNode(drawn, true);"),)),
    Fault('A live element that had nothing to draw gets an id and a stream that are not its own', 'static/changes.js', APPLIED,
        (("      for (const { name, value } of root.attributes) if (BOUND.test(name)) this.root.setAttribute(name, value);\n", ""),)),
    Fault('A card that goes to another column comes there as a new one: what was typed in it is lost', 'live/changes.py', APPLIED,
        (("    if taken:\n        c = ", "    if taken and not old:\n        c = "),)),
    Fault('The browser and the server count differently, so every change comes as a whole', 'live/tree.py', APPLIED,
        (("                self.count += o.count-1\n", ""),)),
    Fault('A `div` within a `p` is counted where it stands, while browsers put it behind', 'live/tree.py', MADE,
        (("(_P if tag in _CLOSES_P else 0)", "0"),)),
    Fault('A row that has changed is taken for the one of the last drawing', 'live/tree.py', MADE,
        (('return self.nodes[k] if self.nodes[k].html==node.html else node', 'return self.nodes[k]'),)),
    Fault('Rows that move arrive one place too late', 'live/changes.py', MADE,
        (("                place -= i<place\n", ""),)),
    Fault('A list of changes is longer than the whole drawing', 'live/changes.py', MADE,
        (("    return res if len(json.dumps(res, ensure_ascii=False))<=len(new.html) else whole", "    return res"),)),
]
