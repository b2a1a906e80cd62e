// @ts-check
// An element of the page that the server draws anew: the changes from one drawing to the next are applied to what
// stands in the page. Only what the server changed is touched: what users typed and opened, what scripts set, inserted
// and moved stays. For that, a copy of the last drawing is kept in a document of its own, in which nothing is loaded
// and no script runs. Each node of the copy knows the node in the page that was made of it.

/**
 * One change. The place is a path from the root: ids, which stand for themselves, and indexes among what the server
 * drew. HTML is one or more sibling nodes; in a `merge` it is a text, or the start tag with the new attributes.
 * @typedef {['count', number]
 *   | ['put', (string | number)[], number, string]
 *   | ['drop', (string | number)[], number, number]
 *   | ['take', string[]]
 *   | ['move', (string | number)[], string | number, number]
 *   | ['merge', (string | number)[], string]
 *   | ['whole', string]} Change
 */

const KEPT = '[data-sse-live], [data-sse-keep]';
const OPAQUE = /^(script|template|noscript)$/i;   // replaced where it differs
const BOUND = /^(id|data-sse-.*)$/;               // of the root: what binds it to its stream is not the drawing's
/** What had the focus before changes came: somebody may be typing there. @type {any} */
let focused = null;

class LiveElement {
  /**
   * @param {Element} root  as the server drew it
   * @param {(node: ChildNode) => void} remove  removes a node, and ends what goes on within it
   */
  constructor(root, remove = node => node.remove()) {
    this.root = root;
    this.remove = remove;
    this.drawing = document.implementation.createHTMLDocument();
    this.range = this.drawing.createRange();
    /** Node in the page -> node of the drawing. @type {WeakMap<Node, ChildNode>} */
    this.drawn = new WeakMap();
    /** Node of the drawing -> node in the page. @type {WeakMap<Node, ChildNode>} */
    this.shown = new WeakMap();
    /** New elements, and those with new attributes. @type {Set<Element>} */
    this.changed = new Set();
    this.count = 0;
    this.adopt();
  }

  /** Take all that stands here as drawn by the server. */
  adopt() {
    const { root, drawing } = this;
    const { namespaceURI, localName } = root.parentElement ?? document.body;
    const parent = drawing.createElementNS(namespaceURI, localName);   // HTML is parsed according to where it stands
    drawing.body.replaceChildren(parent);
    // How many nodes the server drew is compared once. From then on both sides count alike.
    this.count = this.pair(root, parent.appendChild(drawing.importNode(root, true)));
  }

  /**
   * Apply changes, in their order.
   * @param {Change[]} changes
   * @returns {Element[] | null}  new elements, and those with new attributes; `null` if the changes do not fit to what
   *   stands here: ask for the whole
   */
  apply(changes) {
    this.changed.clear();
    focused = document.activeElement;
    const { selectionStart: start, selectionEnd: end } = focused ?? {};
    try {
      return changes.every(change => this.step(change)) ? [...this.changed] : null;
    } finally {
      if (focused !== document.activeElement && document.activeElement === document.body) {   // a move took it
        focused?.focus({ preventScroll: true });
        if (start != null && focused.selectionStart != null) focused.setSelectionRange(start, end);
      }
    }
  }

  /**
   * @param {Change} change
   * @returns {boolean}  whether it fits
   */
  step([kind, ...change]) {
    if (kind === 'count') return !this.count || this.count === change[0];
    this.count = 0;
    if (kind === 'whole') return this.replace(/** @type {string} */ (change[0]));
    if (kind === 'take') return /** @type {string[]} */ (change[0]).every(id => this.take(id));
    const [path, from, to] = /** @type {[(string | number)[], any, any]} */ (change);
    let drawn = /** @type {ChildNode | null | undefined} */ (this.drawn.get(this.root));
    for (const part of path) drawn = this.at(drawn, part);
    if (!drawn) return false;
    if (kind === 'merge') {
      const next = this.parse(drawn.parentNode, from).firstChild;
      if (!next || next.nodeName !== drawn.nodeName) return false;
      this.update(drawn, next);
      while (drawn.firstChild) next.appendChild(drawn.firstChild);
      drawn.replaceWith(next);
      return true;
    }
    const { childNodes } = drawn;
    if (kind === 'put') {
      if (from > childNodes.length) return false;
      const piece = this.parse(drawn, to);
      const children = [...piece.childNodes];
      const nodes = [...document.importNode(piece, true).childNodes];   // a script that stood elsewhere would not run
      drawn.insertBefore(piece, childNodes[from] ?? null);
      children.forEach((child, index) => this.put(child, nodes[index]));
    } else if (kind === 'drop') {
      const children = [...childNodes].slice(from, from + to);
      if (children.length < to) return false;
      children.forEach(child => this.drop(child));
    } else {
      const child = this.at(drawn, from);
      if (!child) return false;
      child.remove();
      drawn.insertBefore(child, childNodes[to] ?? null);
      // Else scripts have removed it, or moved it out of what the server draws.
      if (this.drawn.has(/** @type {Node} */ (this.node(child).parentNode))) this.place(child);
    }
    settle(this.node(drawn));
    return true;
  }

  /**
   * Find a node of the drawing.
   * @param {ChildNode | null | undefined} parent
   * @param {string | number} place  id, or index within `parent`
   * @returns {ChildNode | null | undefined}
   */
  at(parent, place) {
    return typeof place === 'string' ? this.drawing.getElementById(place) : parent?.childNodes[place];
  }

  /** @param {ChildNode} drawn */
  node(drawn) {
    return /** @type {ChildNode} */ (this.shown.get(drawn));
  }

  /**
   * Parse HTML as content of an element of the drawing.
   * @param {ParentNode | Node | null} parent
   * @param {string} html
   */
  parse(parent, html) {
    this.range.selectNodeContents(/** @type {Node} */ (parent));
    return this.range.createContextualFragment(html);   // unlike those of innerHTML, its scripts run in the page
  }

  /**
   * Note that a node is what the server drew last of a node in the page.
   * @param {ChildNode} node
   * @param {ChildNode} drawn
   */
  link(node, drawn) {
    this.drawn.set(node, drawn);
    this.shown.set(drawn, node);
    if (node !== this.root && drawn instanceof Element && drawn.matches(KEPT)) drawn.replaceChildren();
  }

  /**
   * Link two trees.
   * @param {ChildNode} node
   * @param {ChildNode} drawn  a copy of it, or the other way round
   * @returns {number}  of nodes
   */
  pair(node, drawn) {
    this.link(node, drawn);
    let count = 1;
    if (OPAQUE.test(drawn.nodeName)) return count;
    let child = node.firstChild;
    for (const copy of drawn.childNodes) {
      count += this.pair(/** @type {ChildNode} */ (child), copy);
      child = /** @type {ChildNode} */ (child).nextSibling;
    }
    return count;
  }

  /**
   * Take a whole drawing, as if it had come as changes.
   * @param {string} html
   */
  replace(html) {
    const { root } = this;
    [...this.drawing.body.children].slice(1).forEach(taken => this.drop(taken));   // by a list that did not fit
    const drawn = /** @type {ChildNode} */ (this.drawn.get(root));
    const { children } = this.parse(drawn.parentNode, html);
    const next = [...children].find(element => element.nodeName === drawn.nodeName) ?? children[0];
    if (!next) return false;
    if (next.nodeName === drawn.nodeName && !OPAQUE.test(next.nodeName)) this.reconcile(drawn, next);
    else {
      this.root = document.importNode(next, true);
      for (const { name, value } of root.attributes) if (BOUND.test(name)) this.root.setAttribute(name, value);
      this.pair(this.root, next);
      root.before(this.root);
      this.remove(root);
      this.changed.add(this.root);
    }
    drawn.replaceWith(next);
    return true;
  }

  /**
   * @param {ChildNode} drawn
   * @param {ChildNode} next  the same node in a whole drawing
   */
  reconcile(drawn, next) {
    /** @type {Node} */
    const node = this.node(drawn);
    this.update(drawn, next);
    if (OPAQUE.test(drawn.nodeName)) return;
    const left = new Set(drawn.childNodes);
    const drawing = [...next.childNodes].map(child => {
      const same = this.find(left, child);
      if (same) left.delete(same);
      return /** @type {const} */ ([same, child]);
    });
    left.forEach(child => this.drop(child));
    for (const [same, child] of drawing) {
      if (!same) this.put(child);
      else {
        this.link(this.node(same), child);
        if (this.node(same).parentNode === node) this.place(child);
        if (!(child instanceof Element && child.matches(KEPT))) this.reconcile(same, child);
      }
    }
    if (left.size || drawing.some(([same]) => !same)) settle(node);
  }

  /**
   * Find what a node of a new drawing was before.
   * @param {Set<ChildNode>} left
   * @param {ChildNode} next
   */
  find(left, next) {
    const id = next instanceof Element && next.id;
    for (const drawn of id ? [this.drawing.getElementById(id)] : left) {
      if (drawn && left.has(drawn) && matches(drawn, next)) return drawn;
    }
  }

  /**
   * Show a new node.
   * @param {ChildNode} drawn  where it is to stand
   * @param {ChildNode} node
   */
  put(drawn, node = document.importNode(drawn, true)) {
    this.pair(node, drawn);
    this.place(drawn);
    if (node instanceof Element) this.changed.add(node);
  }

  /**
   * Place a node right after the one before it, among those that the server drew and that are still here. What scripts
   * inserted between the two stays there.
   * @param {ChildNode} drawn
   */
  place(drawn) {
    /** @type {Node} */
    const node = this.node(drawn);
    const parent = /** @type {any} */ (this.node(/** @type {any} */ (drawn.parentNode)));
    /** @type {any} */
    let last = drawn.previousSibling;
    while (last && this.node(last).parentNode !== parent) last = last.previousSibling;
    const first = last ? this.node(last).nextSibling : parent.firstChild;
    let next = first;
    while (next && next !== node && !this.drawn.has(next)) next = next.nextSibling;
    if (next === node) return;
    // Keeps focus, scroll, frames and animations; for nodes of the same tree only.
    const insert = parent.moveBefore && node.getRootNode() === parent.getRootNode() ? 'moveBefore' : 'insertBefore';
    parent[insert](node, last ? first : next);
  }

  /**
   * Take an element from among the children of its parent; in the page it stays until it is moved.
   * @param {string} id
   */
  take(id) {
    const drawn = this.at(null, id);
    if (drawn) this.drawing.body.append(drawn);
    return !!drawn;
  }

  /** @param {ChildNode} drawn */
  drop(drawn) {
    this.remove(this.node(drawn));
    drawn.remove();
  }

  /**
   * Take over what the server changed of a node, without its children.
   * @param {ChildNode} drawn
   * @param {ChildNode} next
   */
  update(drawn, next) {
    const node = this.node(drawn);
    this.link(node, next);
    if (!(drawn instanceof Element && next instanceof Element)) {
      if (drawn.nodeValue === next.nodeValue) return;
      node.nodeValue = next.nodeValue;
      return settle(node.parentNode);
    }
    const element = /** @type {any} */ (node);
    for (const name of new Set([...drawn.getAttributeNames(), ...next.getAttributeNames()])) {
      const was = drawn.getAttribute(name);
      if (was === next.getAttribute(name) || element === this.root && BOUND.test(name)) continue;
      const attribute = next.getAttributeNode(name);
      if (name === 'class' && element.getAttribute(name) !== was) {
        for (const token of drawn.classList) if (!next.classList.contains(token)) element.classList.remove(token);
        for (const token of next.classList) if (!drawn.classList.contains(token)) element.classList.add(token);
      } else if (attribute) element.setAttributeNode(document.importNode(attribute));   // scripts can't write all names
      else element.removeAttribute(name);
      if (name === 'value') settle(element);
      if (/^(checked|selected)$/.test(name) && name in element) element[name] = !!attribute;
      this.changed.add(element);
    }
  }
}

/**
 * @param {ChildNode} drawn
 * @param {ChildNode} next
 */
function matches(drawn, next) {
  if (drawn.nodeName !== next.nodeName) return false;
  if (!(drawn instanceof Element && next instanceof Element)) return true;
  return drawn.id === next.id && drawn.matches(KEPT) === next.matches(KEPT)
    && (!OPAQUE.test(next.nodeName) || drawn.outerHTML === next.outerHTML);
}

/**
 * Show the server's new value of a text field, unless somebody is typing there.
 * @param {Node | null} node
 */
function settle(node) {
  const field = /** @type {HTMLInputElement | null} */ (node);
  if (!field || !/^(input|textarea)$/.test(field.localName) || /^(checkbox|radio|file)$/.test(field.type)) return;
  if (field.value !== field.defaultValue && field !== focused) field.value = field.defaultValue;
}
