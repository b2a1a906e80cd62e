// @ts-check
// An element of the page that the server draws anew: the changes from one drawing to the next are applied to what
// stands in the page. Only what the server changed is touched: what users typed and opened, what scripts set, inserted
// and moved stays. For that, a copy of the last drawing is kept in a document of its own, in which nothing is loaded
// and no script runs. Each node of the copy knows the node that shows it in the page, and the other way round. What the
// server changes is changed in the copy, and where it is shown.

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
   * @param {any} root  an element, as the server drew it
   * @param {(node: ChildNode) => void} remove  removes a node, and ends what goes on within it
   */
  constructor(root, remove = node => node.remove()) {
    this.root = root;
    this.remove = remove;
    this.drawing = document.implementation.createHTMLDocument();
    this.range = this.drawing.createRange();
    /** Node in the page -> its copy. @type {WeakMap<Node, Drawn>} */
    this.drawn = new WeakMap();
    /** New elements, and those with new attributes. @type {Set<Element>} */
    this.changed = new Set();
    this.adopt();
  }

  /** Take all that stands here as drawn by the server. */
  adopt() {
    const { root, drawing, swapped } = this;
    // Below a copy of its parent, because HTML is parsed according to where it stands.
    const parent = drawing.importNode(root.parentElement ?? document.body);
    drawing.body.replaceChildren(parent);
    this.count = 0;        // of nodes that the server drew; it is compared once, from then on both sides count alike
    this.swapped = false;  // whether somebody else has put something in the place of what the server drew
    this.pair(root, parent.appendChild(drawing.importNode(root, true)), swapped);
  }

  /** The last drawing. */
  get copy() {
    return /** @type {Drawn} */ (this.drawn.get(this.root));
  }

  /**
   * Apply changes, in their order. If they do not fit to what stands here, ask for the whole.
   * @param {Change[]} changes
   */
  apply(changes) {
    this.changed.clear();
    this.fits = true;
    focused = document.activeElement;
    const { selectionStart, selectionEnd } = focused;
    this.fits = changes.every(change => this.step(change)) && this.fits;
    if (document.activeElement === document.body) {   // a move took the focus
      focused.focus({ preventScroll: true });
      if (focused.selectionStart != null) focused.setSelectionRange(selectionStart, selectionEnd);
    }
  }

  /**
   * @param {any[]} change  a `Change`
   * @returns {boolean}  whether it fits
   */
  step([kind, path, from, to]) {
    if (kind === 'count') return !this.count || this.count === path;
    this.count = NaN;
    if (kind === 'whole') return this.replace(path);
    let drawn = this.copy;
    // Elements that change their parents don't count as children until they are moved; in the page they stay.
    if (kind === 'take') return path.every((/** @type {string} */ id) => {
      const taken = this.at(drawn, id);
      if (taken) drawn.after(taken);
      return taken;
    });
    for (const place of path) drawn = this.at(drawn, place);
    if (!drawn) return false;
    const { childNodes } = drawn;
    if (kind === 'merge') {
      const next = this.parse(drawn.parentNode, from).firstChild;
      if (next?.nodeName !== drawn.nodeName) return false;
      this.update(drawn, next);
    } else if (kind === 'put') {
      if (from > childNodes.length) return false;
      const before = childNodes[from];
      for (const child of [...this.parse(drawn, to).childNodes]) this.insert(drawn, child, before);
    } else if (kind === 'drop') {
      if (from + to > childNodes.length) return false;
      [...childNodes].slice(from, from + to).forEach(child => this.drop(child));
    } else {
      const child = this.at(drawn, from);
      if (!child) return false;
      child.remove();
      this.insert(drawn, child, childNodes[to]);
    }
    return true;
  }

  /**
   * Find a node of the copy.
   * @param {Drawn | undefined} parent
   * @param {string | number} place  id, or index within `parent`
   */
  at(parent, place) {
    return typeof place === 'string' ? this.drawing.getElementById(place) : parent?.childNodes[place];
  }

  /**
   * Parse HTML as content of an element of the copy.
   * @param {Drawn} parent
   * @param {string} html
   * @returns {any}
   */
  parse(parent, html) {
    this.range.selectNodeContents(parent);
    return this.range.createContextualFragment(html);   // unlike those of innerHTML, its scripts run in the page
  }

  /**
   * Link two trees that are alike.
   * @param {ChildNode} node  in the page
   * @param {any} drawn  in the copy
   * @param {boolean} [again]  it was drawn before: what users have opened since is no change of the server
   */
  pair(node, drawn, again) {
    if (again) drawn.open = /** @type {any} */ (this.drawn.get(node))?.open;
    this.drawn.set(node, drawn);
    drawn.shown = node;
    /** @type {any} */ (this).count++;
    if (drawn !== this.copy && drawn.matches?.(KEPT)) drawn.replaceChildren();
    if (!OPAQUE.test(drawn.nodeName)) drawn.childNodes.forEach((/** @type {Drawn} */ child, /** @type {number} */ index) =>
      this.pair(node.childNodes[index], child, again));
  }

  /**
   * Take a whole drawing, as if it had come as changes.
   * @param {string} html
   */
  replace(html) {
    const { root, copy } = this;
    while (copy.nextSibling) this.drop(copy.nextSibling);   // taken by a list that did not fit
    const next = this.parse(copy.parentNode, html).firstChild;
    if (next.nodeName === copy.nodeName && !OPAQUE.test(next.nodeName)) this.reconcile(copy, next);
    else {
      this.root = document.importNode(next, true);
      for (const { name, value } of root.attributes) if (BOUND.test(name)) this.root.setAttribute(name, value);
      copy.replaceWith(next);
      this.pair(this.root, next);
      root.before(this.root);
      this.remove(root);
      this.changed.add(this.root);
    }
    return true;
  }

  /**
   * @param {Drawn} drawn
   * @param {Drawn} next  the same element in a whole drawing
   */
  reconcile(drawn, next) {
    this.update(drawn, next);
    const left = new Set(drawn.childNodes);
    const children = [...next.childNodes].map(child => {
      const same = [...child.id ? [this.at(drawn, child.id)] : left]
        .find(node => left.has(node) && node.nodeName === child.nodeName && node.id === child.id
          && node.matches?.(KEPT) === child.matches?.(KEPT)
          && (!OPAQUE.test(child.nodeName) || node.outerHTML === child.outerHTML));
      left.delete(same);
      if (same && !child.matches?.(KEPT)) this.reconcile(same, child);
      return same ?? child;
    });
    left.forEach(child => this.drop(child));
    let before = drawn.firstChild;
    for (const child of children) {
      if (child === before) before = before.nextSibling;
      else this.insert(drawn, child, before);
    }
  }

  /**
   * Insert a node that is new, or move one. In the page it comes right after the one before it, among those that the
   * server drew and that are still here.
   * @param {Drawn} parent
   * @param {Drawn} drawn
   * @param {Drawn} before
   */
  insert(parent, drawn, before) {
    const { shown } = drawn;
    const node = shown ?? document.importNode(drawn, true);   // first: a script that stood elsewhere would not run
    parent.insertBefore(drawn, before ?? null);
    if (!shown) {
      this.pair(node, drawn);
      if (node instanceof Element) this.changed.add(node);
    } else if (!this.drawn.has(node.parentNode)) return;   // scripts removed it, or it is out of what the server draws
    const place = parent.shown;
    let last = drawn;
    do last = last.previousSibling;
    while (last && last.shown.parentNode !== place);
    // What scripts inserted before the first one stays there.
    const next = last ? last.shown.nextSibling : [...place.childNodes].find(child => this.drawn.has(child)) ?? null;
    // Keeps focus, scroll, frames and animations; for nodes of the page only.
    if (place.moveBefore && place.isConnected && node.isConnected) place.moveBefore(node, next);
    else place.insertBefore(node, next);
    this.touch(parent);
    settle(place);
  }

  /** @param {Drawn} drawn */
  drop(drawn) {
    const { parentNode, shown } = drawn;
    this.touch(drawn);
    this.remove(shown);
    drawn.remove();
    settle(parentNode.shown);
  }

  /**
   * Take over what the server changed of a node, without its children.
   * @param {Drawn} drawn
   * @param {Drawn} next
   */
  update(drawn, next) {
    const node = drawn.shown;
    if (!drawn.matches) {
      if (drawn.data === next.data) return;
      node.data = drawn.data = next.data;
      this.touch(drawn);
      return settle(node.parentNode);
    }
    for (const { name } of [...drawn.attributes, ...next.attributes]) {
      const was = drawn.getAttribute(name);
      const attribute = next.getAttributeNode(name);
      if (was === next.getAttribute(name) || drawn === this.copy && BOUND.test(name)) continue;
      // What htmx leaves behind.
      if (name === 'class' && !was && !attribute?.value || /^data-htmx/.test(name)) continue;
      if (name === 'class' && node.getAttribute(name) !== was) {
        for (const token of [...drawn.classList, ...next.classList]) {
          const is = next.classList.contains(token);
          if (is !== drawn.classList.contains(token)) node.classList.toggle(token, is);
        }
      } else set(node, name, attribute);
      set(drawn, name, attribute);
      if (name === 'value') settle(node);
      if (name === 'checked' || name === 'selected') node[name] = !!attribute;
      this.changed.add(node);
      this.touch(drawn);
    }
  }

  /**
   * Note that the server changed a node. Where somebody else put something in its place, the change does not fit.
   * @param {Drawn} drawn
   */
  touch(drawn) {
    const { shown } = drawn;
    if (this.swapped && (!shown.isConnected || this.drawn.get(shown) !== drawn)) this.fits = false;
  }
}

/**
 * @param {any} element
 * @param {string} name
 * @param {Attr | null} attribute  `null`: none
 */
function set(element, name, attribute) {
  if (attribute) element.setAttributeNode(attribute.cloneNode());   // scripts can't write all names
  else element.removeAttribute(name);
}

/**
 * Show the server's new value of a text field, unless somebody is typing there.
 * @param {any} field
 */
function settle(field) {
  const { type, value, defaultValue = value } = field ?? {};
  if (value !== defaultValue && field !== focused && !/checkbox|radio|file/.test(type)) field.value = defaultValue;
}
