// @ts-check
// The live elements of a page: one stream for all of them, whose changes `LiveElement` applies. The attributes of an
// element say which view of the server it shows, in which version, and have a signature that lets the page follow it.

/**
 * What a stream brings: a view, the versions from which and to which it changes, and how. From `null`: the whole. To
 * `null`: the server refuses it.
 * @typedef {[view: string, from: string | null, to: string | null, changes: Change[]]} ViewChange
 */

const NAME = 'data-sse-live';
const LIVE = `[${NAME}-key]`;
const MARK = `${NAME}-on`;   // on what the page follows; a morph takes it away, because the server draws none
const SETTLING = '.htmx-added, .htmx-settling';   // classes are not yet those that the server drew
const client = /** @type {SSEClient} */ (window.cjmSSE);
/** By root. @type {Map<Element, LivePart>} */
const parts = new Map();
/** By address. @type {Map<string, LiveStream>} */
const streams = new Map();
let applying = false;   // what htmx does is done for us

/** @param {any} node */
const partAround = node => parts.get(node?.closest?.(LIVE));
/** What the server drew, without what htmx and this client add. @param {any} node */
const text = node => node.outerHTML?.replace(/ (class=""|data-(htmx|sse)-[\w-]+="[^"]*")/g, '') ?? node.nodeValue;

class LivePart extends LiveElement {
  /** @param {Element} root */
  constructor(root) {
    super(root, node => client.remove(node));
    parts.set(root, this);
    this.timer = this.delay = 0;
    /** What htmx put in the place of something. @type {WeakSet<Node>} */
    this.instead = new WeakSet();
  }

  /** Begin with what stands here: the server has drawn all of it. */
  adopt() {
    super.adopt();
    const { root } = this;
    const around = partAround(root.parentElement);
    this.outer = around?.drawn.has(root) ? around.view : null;   // in whose drawing this is
    this.refused = this.swapped = false;   // by the server; by htmx, something in here
    this.instead = new WeakSet();
    this.settling = root.closest(SETTLING);
    root.setAttribute(MARK, '');
  }

  /** @param {string} name */
  get(name) {
    return this.root.getAttribute(NAME + name) ?? '';
  }

  get view() {
    return this.get('');
  }

  get version() {
    return this.get('-version');
  }

  set version(version) {
    this.root.setAttribute(`${NAME}-version`, version);
  }

  get stream() {
    const url = this.root.closest(`[${NAME}-url]`)?.getAttribute(`${NAME}-url`) ?? client.liveUrl;
    return streams.get(url) ?? new LiveStream(url);
  }

  /** What htmx put in the place of something stays until the server changes that. @type {LiveElement['at']} */
  at(parent, place) {
    const found = super.at(parent, place);
    return found && this.isHere(found) ? found : null;
  }

  /** @type {LiveElement['drop']} */
  drop(drawn) {
    if (!this.isHere(drawn)) throw new Error('swapped');
    super.drop(drawn);
  }

  /** @type {LiveElement['reconcile']} */
  reconcile(drawn, next) {
    if (this.isHere(drawn)) return super.reconcile(drawn, next);
    if (next instanceof Element) next.querySelectorAll(KEPT).forEach(kept => kept.replaceChildren());
    if (text(drawn) !== text(next)) throw new Error('swapped');
    next.replaceWith(drawn);
    this.drawn.delete(this.node(drawn));
  }

  /** @param {ChildNode} drawn */
  isHere(drawn) {
    const node = this.node(drawn);
    return !this.swapped || node.isConnected && !this.instead.has(node);
  }

  /** @param {ViewChange} change */
  receive([, from, to, changes]) {
    const { root, version } = this;
    if (from !== null && from !== version && to !== version) {
      // Does the next one fit?
      if (version) this.timer ||= setTimeout(() => this.ask(), 200);
      return;
    }
    clearTimeout(this.timer);
    this.timer = 0;
    if (to === version) return;
    /** @type {Element[] | null} */
    let changed = null;
    applying = true;
    try {
      if (this.swapped && !version) this.adopt();
      try {
        changed = this.apply(changes);
        if (this.root !== root) {
          parts.delete(root);
          parts.set(this.root, this);
        }
      } finally {   // also what came before a change that did not fit
        this.changed.forEach(element => window.htmx?.process(element));
      }
    } catch (error) {
      if (changed || !this.swapped) reportError(error);
    }
    applying = false;
    if (!changed) return this.ask();
    this.version = to ?? '';
    if (from !== null) this.delay = 0;
  }

  /** Ask for the whole, later each time until changes fit again; but what htmx swaps comes to an end. */
  ask() {
    this.version = '';
    this.timer = 0;
    setTimeout(() => this.stream.update(), this.swapped ? 0 : this.delay);
    this.delay = Math.min(2 * this.delay + 100, 30000);
  }

  /** htmx has put an element here, or has morphed it. @param {Element} element */
  note(element) {
    const around = this.drawn.get(/** @type {Element} */ (element.parentElement));
    if (!this.version || !around || this.instead.has(element)) return;
    const known = this.at(null, element.id);
    if (known && this.node(known) !== element) return client.remove(element);   // a change has brought it before
    const { childNodes } = around;
    const gone = [...childNodes].filter(child => !this.node(child).isConnected);
    // In a new place, or in that of many.
    if (this.drawn.has(element) || !gone.length || gone.length > 1 && gone.length === childNodes.length) this.ask();
    else if (gone.length === 1) {
      this.shown.set(gone[0], element);
      this.instead.add(element);
    }
  }
}

class LiveStream {
  /** @param {string} url */
  constructor(url) {
    streams.set(this.url = url, this);
    /** @type {SSESource | null} */
    this.source = null;
    this.added = this.changed = false;   // since the server was told
    this.timer = this.renewAt = 0;
    /** Views that the server has refused, until the page was looked at. @type {string[]} */
    this.refused = [];
  }

  get parts() {
    return [...parts.values()].filter(part => part.stream === this);
  }

  /** Say what the page has, once for all that changes in one go. */
  update() {
    this.timer ||= setTimeout(() => {
      this.timer = 0;
      this.changed = true;
      this.connect();
    });
  }

  connect() {
    const { source } = this;
    if (!this.parts.length) {
      for (const entry of client.entries) if (entry.source === source) client.release(entry, 'element removed');
      this.source = null;
    } else if (!source) this.open();
    // Later, where it connects just now; and one that was closed stays so until something new comes.
    else if (source.readyState === source.OPEN || this.added && source.readyState === source.CLOSED) source.connect();
  }

  open() {
    const cursor = document.querySelector(`${LIVE}[data-sse-cursor]`)?.getAttribute('data-sse-cursor') ?? '';
    const roots = () => this.parts.map(({ root }) => root);
    const source = this.source = client.open(this.url, null, { cursor, roots, body: () => this.body() });
    source.addEventListener('sse:live', event => {
      this.receive(JSON.parse(/** @type {MessageEvent} */ (event).data));
    });
    source.addEventListener('open', () => { if (this.changed) this.connect(); });
  }

  /** List the views: text, signature, version, and the view around it. */
  body() {
    const { parts } = this;
    this.added = this.changed = false;
    /** @type {Map<string, (string | null | undefined)[]>} */
    const views = new Map();
    for (const part of parts) {
      const { view, version, outer } = part;
      const other = views.get(view)?.[2] ?? version;
      // Where all are refused, a script wants to know once more.
      const wanted = !part.refused || parts.every(({ refused }) => refused);
      if (wanted) views.set(view, [view, part.get('-key'), other === version ? version : '', outer]);
    }
    return JSON.stringify({ views: [...views.values()] });
  }

  /** @param {ViewChange[]} changes */
  receive(changes) {
    const refused = changes.filter(change => {
      const [view, , to] = change;
      for (const part of this.parts) if (to !== null && part.view === view) part.receive(change);
      return to === null;
    });
    if (refused.length) this.renew(refused.map(([view]) => view));
  }

  /**
   * Look in the page as it is now for other signatures of views that the server refuses: once, and not in all tabs at
   * the same time.
   * @param {string[]} views
   */
  async renew(views) {
    if (this.refused.push(...views) > views.length) return;   // it is on its way
    const now = performance.now();
    let html = '';
    if (now >= this.renewAt) {
      this.renewAt = now + 600000;
      await new Promise(resolve => setTimeout(resolve, 2000 * Math.random()));
      html = await fetch(location.href, { cache: 'no-store' }).then(answer => answer.text(), () => '');
    }
    const found = [...new DOMParser().parseFromString(html, 'text/html').querySelectorAll(LIVE)];
    for (const part of this.parts) {
      if (!this.refused.includes(part.view)) continue;
      const key = found.find(root => root.getAttribute(NAME) === part.view)?.getAttribute(`${NAME}-key`);
      if (key && key !== part.get('-key')) {
        part.root.setAttribute(`${NAME}-key`, key);
        part.refused = false;
        this.added = true;
      } else {
        part.refused = true;
        console.error('[sse] The server refuses to keep this element live (was it drawn for another visitor, '
          + 'before a login or logout?): reload the page', part.root);
      }
    }
    this.refused = [];
    if (this.added) this.update();
    else if (this.parts.every(({ refused }) => refused)) this.source?.stop('error', 'refused');
  }
}

/** Find live elements that are new, that a morph has changed, and that are gone. */
function scan() {
  if (document.readyState === 'loading') return;
  for (const root of document.querySelectorAll(LIVE)) {
    let part = parts.get(root);
    if (part && root.hasAttribute(MARK)) continue;
    if (part) part.adopt();
    else part = new LivePart(root);
    part.stream.added = true;
    part.stream.update();
  }
  for (const [root, { stream }] of parts) {
    if (root.isConnected) continue;
    parts.delete(root);
    setTimeout(() => stream.update(), 2000);   // another one may take its place
  }
}

const SWAPS = 'beforeCleanupElement before:swap afterSwap before:settle load afterSettle after:process';
for (const type of SWAPS.split(' ')) {
  // With FastHTML's settings htmx 4 has another separator.
  for (const name of [`htmx:${type}`, `htmx-${type.replace(':', '-')}`]) {
    document.addEventListener(name, event => {
      if (applying) return;
      const { target, detail } = /** @type {CustomEvent} */ (event);
      const part = partAround(target);
      if (part) part.swapped = true;
      const added = type === 'afterSwap' ? document.querySelectorAll('.htmx-added') : type === 'load' ? [target] : [];
      for (const node of detail.newContent ?? added) {
        if (node instanceof Element) partAround(node.parentElement)?.note(node);
      }
      for (const part of parts.values()) if (part.settling && !part.root.closest(SETTLING)) part.adopt();
    }, true);
  }
}

document.addEventListener('readystatechange', scan);
new MutationObserver(scan).observe(document, { childList: true, subtree: true, attributeFilter: [MARK] });
scan();
