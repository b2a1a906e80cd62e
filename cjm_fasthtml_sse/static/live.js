// @ts-check
// The live elements of a page: one stream for all of them, whose changes `LiveElement` applies. The attributes of an
// element say which view of the server it shows, in which version, and have a signature that lets the page follow it.
//
// What htmx puts in the place of something within a live element stays until the server changes that. Then the page
// asks for the whole element, and what it brings replaces all that stands there.

/**
 * What a stream brings: a view, the versions from which and to which it changes, and how. From `null`: the whole. To
 * `null`: the server refuses it.
 * @typedef {[view: string, from: string | null, to: string | null, changes: Change[]]} ViewChange
 */

const LIVE = '[data-sse-live-key]';
const client = /** @type {SSEClient} */ (window.cjmSSE);
/** By root. @type {Map<Element, LivePart>} */
const parts = new Map();
/** By address. @type {Map<string, LiveStream>} */
const streams = new Map();
let applying = false;   // what htmx does is done for us

/** The page as it was when the server refused an element, with other signatures. @type {Promise<any> | null} */
let page = null;

/** @param {any} node */
const partAround = node => parts.get(node?.closest?.(LIVE));

class LivePart extends LiveElement {
  /** @param {Element} root */
  constructor(root) {
    super(root, node => client.remove(node));
    parts.set(root, this);
    this.timer = this.delay = 0;
  }

  /** Begin with what stands here: the server has drawn all of it. */
  adopt() {
    super.adopt();
    const { root } = this;
    const around = partAround(root.parentElement);
    /** In whose drawing this is. @type {LivePart | null} */
    this.outer = around?.drawn.has(root) ? around : null;
    this.data.sseLiveOn = 'true';   // a morph takes this away, because the server draws none
  }

  /** @returns {Record<string, string>} */
  get data() {
    return this.root.dataset;
  }

  /** @returns {LiveStream} */
  get stream() {
    const { outer, data: { sseLiveUrl = client.liveUrl } } = this;
    return outer?.stream ?? streams.get(sseLiveUrl) ?? new LiveStream(sseLiveUrl);
  }

  /** @param {ViewChange} change */
  receive([, from, to, changes]) {
    const { root } = this;
    const version = this.data.sseLiveVersion;
    if (to === null) return this.renew();
    if (from !== null && from !== version && to !== version) {
      // Does the next one fit?
      return version && (this.timer ||= setTimeout(() => this.ask(), 200));
    }
    clearTimeout(this.timer);
    this.timer = 0;
    if (to === version) return;
    if (this.swapped && !version) this.adopt();
    applying = true;
    try {
      this.apply(changes);
      // Also what came before a change that did not fit.
      this.changed.forEach(element => window.htmx.process(element));
    } catch (error) {
      reportError(error);
      this.fits = false;
    }
    applying = false;
    if (this.root !== root) {
      parts.delete(root);
      parts.set(this.root, this);
      this.outer?.pair(this.root, this.outer.drawn.get(root));
    }
    if (!this.fits) return this.ask();
    this.data.sseLiveVersion = to;
    if (from !== null) this.delay = 0;
  }

  /** Ask for the whole, later each time until changes fit again. */
  ask() {
    this.data.sseLiveVersion = '';
    this.timer = 0;
    setTimeout(() => this.stream.update(), this.delay);
    this.delay = Math.min(2 * this.delay + 100, 20000);
  }

  /** Look for another signature in the page as it is now, because the server refuses this one. */
  async renew() {
    const { stream, outer, data } = this;
    page ??= load();
    // One within another element is signed for that.
    const key = (await page).find((/** @type {any} */ o) => o.dataset.sseLive === data.sseLive
      && o.parentElement.closest(LIVE)?.dataset.sseLive === outer?.data.sseLive)?.dataset.sseLiveKey;
    if (key && key !== data.sseLiveKey) {
      data.sseLiveKey = key;
      stream.update(true);
    }
    await page;   // all look before one gives up: the server may have refused it because of another one
    if (stream.added) return;
    this.refused = true;
    console.error('[sse] The server refuses this element', this.root);
    if (stream.parts.every(({ refused }) => refused)) stream.source?.stop('error', 'refused');
  }

  /**
   * Note that htmx has put an element here, or has morphed it. What stands where one node was is shown in its place;
   * of anything else only the server knows what it is.
   * @param {Element} element
   */
  note(element) {
    const around = this.drawn.get(/** @type {Element} */ (element.parentElement));
    if (!this.data.sseLiveVersion || !around || around.matches('[data-sse-keep]')) return;
    /** @type {Drawn | null} */
    const known = this.at(around, element.id);
    // A change has brought it before.
    if (known?.shown.isConnected && known.shown !== element) return client.remove(element);
    const [gone, more] = [...around.childNodes].filter(({ shown }) => !shown.isConnected || shown === element);
    if (gone && !more && !this.drawn.has(element)) gone.shown = element;
    else this.ask();
  }
}

/** Fetch the page as it is now, not in all tabs at the same time. */
async function load() {
  setTimeout(() => { page = null; }, 600000);
  await new Promise(done => setTimeout(done, 2000 * Math.random()));
  const { body } = document.implementation.createHTMLDocument();
  body.innerHTML = await fetch(location.href, { cache: 'no-store' }).then(answer => answer.text(), () => '');
  return [...body.querySelectorAll(LIVE)];
}

class LiveStream {
  /** @param {string} url */
  constructor(url) {
    streams.set(this.url = url, this);
    /** @type {SSESource | null} */
    this.source = null;
    this.added = false;   // something new, since it was opened
  }

  get parts() {
    return [...parts.values()].filter(({ stream }) => stream === this);
  }

  /** Say what the page has, once for all that changes in one go. */
  update(added = false) {
    this.added ||= added;
    this.timer ||= setTimeout(() => {
      this.timer = 0;
      this.connect();
    });
  }

  connect() {
    const { source } = this;
    if (!this.parts.length) {
      for (const entry of client.entries) if (entry.source === source) client.release(entry, 'element removed');
      this.source = null;
    } else if (!source) this.open();
    // Else later, where it connects just now; and one that was closed stays so until something new comes.
    else if (this.added ? source.readyState : source.readyState === source.OPEN) source.connect();
  }

  open() {
    const source = this.source = client.open(this.url, null, {
      cursor: this.parts[0].data.sseCursor,
      roots: () => this.parts.map(({ root }) => root),
      body: () => this.body(),
    });
    source.addEventListener('sse:live', (/** @type {any} */ event) => {
      for (const change of JSON.parse(event.data)) {
        for (const part of this.parts) if (part.data.sseLive === change[0]) part.receive(change);
      }
    });
    source.addEventListener('open', () => { if (this.body() !== source.body) this.connect(); });
  }

  /** List the views: text, signature, version, and the view around it. */
  body() {
    const { parts } = this;
    const views = new Map();
    // Where all are refused, it is a script that connects: it wants to know once more.
    if (parts.every(({ refused }) => refused)) for (const part of parts) part.refused = false;
    for (const { data: { sseLive, sseLiveKey, sseLiveVersion }, outer, refused } of parts) {
      if (refused) continue;
      const other = views.get(sseLive);
      // Alone it needs no other.
      const view = outer && other || [sseLive, sseLiveKey, sseLiveVersion, outer?.data.sseLive];
      if (other && other[2] !== sseLiveVersion) view[2] = '';
      views.set(sseLive, view);
    }
    if (views.size > 1000 && this.added) console.error('[sse] Too many live elements: 1000 are live');
    this.added = false;
    return JSON.stringify({ views: [...views.values()].slice(0, 1000) });
  }
}

/** Find live elements that are new, that a morph has changed, and that are gone. */
function scan() {
  if (document.readyState === 'loading') return;
  for (const root of document.querySelectorAll(LIVE)) {
    // htmx writes the attributes of what it has added a moment later; a morph has taken the mark away.
    if (parts.get(root)?.data.sseLiveOn || root.closest('.htmx-added')) continue;
    new LivePart(root).stream.update(true);
  }
  for (const [root, { stream }] of parts) {
    if (root.isConnected) continue;
    parts.delete(root);
    setTimeout(() => stream.update(), 2000);   // another one may take its place
  }
}

for (const type of ['beforeCleanupElement', 'before:cleanup', 'afterSwap', 'before:settle', 'load']) {
  document.addEventListener(`htmx:${type}`.replaceAll(':', window.htmx.config.metaCharacter || ':'), event => {
    if (applying) return;
    const { target, detail } = /** @type {CustomEvent} */ (event);
    const part = partAround(target);
    // What was added may have been adopted before htmx says that it has loaded.
    const added = type === 'afterSwap' ? document.querySelectorAll('.htmx-added')
      : type === 'load' && part?.swapped ? [target] : [];
    if (part) part.swapped = true;
    for (const node of detail.newContent ?? added) {
      if (node instanceof Element) partAround(node.parentElement)?.note(node);
    }
  }, true);
}

document.addEventListener('readystatechange', scan);
new MutationObserver(scan).observe(document, {
  childList: true, subtree: true, attributeFilter: ['class', 'data-sse-live-on'],
});
scan();
