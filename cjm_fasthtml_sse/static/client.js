// @ts-check
// The page's client: gives htmx 2 its event sources, takes them through the life of the page, and shows them to scripts as `window.cjmSSE`.

/**
 * @typedef {{url: string, element: Element | null, source: SSESource}} SSEEntry
 * @typedef {SSEStateDetail & SSEEntry} SSEChange
 */

/**
 * `window.cjmSSE`: the streams of this page. A `change` event tells of every change of state; its `detail` is an `SSEChange`.
 */
class SSEClient extends EventTarget {
  constructor() {
    super();
    /** @type {Set<SSEEntry>} */
    this.entries = new Set();
    /** @type {Element | null} */
    this.processing = null;  // the element that htmx is at
    this.tag = '';           // of the user's session
    this.alone = 'asked for';  // why tabs share no connections
    this.loaded = 0;         // when the page was
    this.loading = 0;        // until when what connects is part of it
  }

  /** The state of all streams together: the one that most wants attention. @returns {SSEState} */
  get state() {
    const states = [...this.entries].map(entry => entry.source.state);
    return /** @type {SSEState[]} */ (['error', 'reconnecting', 'connecting', 'active']).find(state => states.includes(state)) ?? 'disconnected';
  }

  /** The id that the stream heard last would come back with. */
  get lastEventId() {
    const heard = (/** @type {SSESource} */ source) => source.watchdog.heardAt;
    return this.sources.sort((a, b) => heard(b) - heard(a))[0]?.lastEventId ?? '';
  }

  /** The sources of this page. */
  get sources() {
    return [...this.entries].map(entry => entry.source);
  }

  /**
   * The source of an element, or of the element with an id.
   * @param {Element | string} element
   */
  get(element) {
    const same = (/** @type {SSEEntry} */ entry) => typeof element === 'string' ? entry.element?.id === element : entry.element === element;
    return [...this.entries].find(same)?.source ?? null;
  }

  reconnect() {
    for (const source of this.sources) source.reconnect();
  }

  close() {
    for (const source of this.sources) source.close();
  }

  /**
   * A source for a URL: the only place that makes one.
   * @param {string} url
   * @param {{lastEventId?: string, share?: boolean}} options
   */
  connect(url, { share = true, ...options }) {
    const source = share && !this.alone ? new SharedSource(url, { ...options, tag: this.tag, fresh: performance.now() < this.loading ? this.loaded : 0 }) : new SSESource(url, options);
    source.connect();
    return source;
  }

  /**
   * Whether tabs share, as the script element that brought this file says.
   * @param {HTMLElement | SVGElement | null} script
   */
  configure(script) {
    const { sseShare, sseTag } = script?.dataset ?? {};
    this.tag = sseTag ?? '';
    this.alone = sseShare === 'false' ? 'share=False' : window.isSecureContext && navigator.locks && window.BroadcastChannel ? '' : 'neither HTTPS nor localhost, or an old browser';
    this.load(document.readyState === 'loading' ? Infinity : 1000);
    // htmx connects what the page holds in the task of this event.
    document.addEventListener('DOMContentLoaded', () => setTimeout(() => this.load(0)));
  }

  /** @param {number} ms  What connects in that time is part of a page that loads. */
  load(ms) {
    if (ms) this.loaded = Date.now();
    this.loading = performance.now() + ms;
  }

  /**
   * A source for an element of the page.
   * @param {string} url
   * @param {Element | null} element
   */
  open(url, element) {
    for (const entry of this.entries) if (element && entry.element === element) this.release(entry, 'replaced');
    const share = element?.closest('[data-sse-share]')?.getAttribute('data-sse-share') !== 'false';
    const source = this.connect(url, { lastEventId: element?.getAttribute('data-sse-after') ?? '', share });
    /** @type {SSEEntry} */
    const entry = { url, element, source };
    this.entries.add(entry);
    // A server may name an event as it likes, ours is no message.
    source.addEventListener('sse:state', e => { if (e instanceof CustomEvent) this.changed(entry, e.detail); });
    this.changed(entry, { state: source.state, reason: '' });
    return source;
  }

  /**
   * @param {SSEEntry} entry
   * @param {string} reason
   */
  release(entry, reason) {
    entry.source.close(reason);
    this.entries.delete(entry);
  }

  /**
   * @param {SSEEntry} entry
   * @param {SSEStateDetail} detail
   */
  changed(entry, detail) {
    this.dispatchEvent(new CustomEvent('change', { detail: { ...detail, ...entry } }));
  }

  /** @param {any} htmx */
  adopt(htmx) {
    const own = htmx.createEventSource;
    htmx.createEventSource = (/** @type {string} */ url) => {
      // Another origin would have to allow our Last-Event-ID header: the browser's own source needs no such thing.
      if (new URL(url, document.baseURI).origin !== location.origin) return own ? own(url) : new EventSource(url, { withCredentials: true });
      const element = this.processing;
      return this.open(url, element && connectURL(element) === url ? element : null);
    };
  }

  /** Follow the life of the page and of its elements. */
  follow() {
    const each = (/** @type {(source: SSESource) => void} */ f) => () => this.sources.forEach(f);
    // The extension makes a source right after this event, and does not say for which element.
    document.addEventListener('htmx:afterProcessNode', e => { this.processing = /** @type {Element} */ (e.target); }, true);
    // A page with an open connection would not be kept for Back; a page that was kept wakes up without one.
    window.addEventListener('pagehide', each(source => source.suspend()));
    window.addEventListener('pageshow', e => { if (e.persisted) each(source => source.resume())(); });
    // What htmx keeps of the page, to draw it again on Back, goes on from here.
    document.addEventListener('htmx:beforeHistorySave', () => {
      for (const { element, source } of this.entries) if (source.lastEventId) element?.setAttribute('data-sse-after', source.lastEventId);
    });
    // A body that htmx exchanges is another page, perhaps another user's.
    document.addEventListener('htmx:beforeSwap', e => { if (/** @type {CustomEvent} */ (e).detail.target === document.body) this.load(1000); });
    window.addEventListener('online', each(source => source.check()));
    // A moment later, because what arrived while the page slept is read first.
    document.addEventListener('visibilitychange', () => { if (!document.hidden) setTimeout(each(source => source.check()), 250); });
    // An element that leaves the page by other ways than htmx's leaves its connection behind.
    new MutationObserver(() => {
      for (const entry of this.entries) if (entry.element && !entry.element.isConnected) this.release(entry, 'element removed');
    }).observe(document, { childList: true, subtree: true });
  }
}

/** @param {Element} element */
function connectURL(element) {
  return element.getAttribute('sse-connect') ?? element.getAttribute('data-sse-connect');
}

/** @type {Window & {htmx?: any, cjmSSE?: SSEClient}} */
const page = window;

if (!page.cjmSSE) {
  const client = page.cjmSSE = new SSEClient();
  client.configure(document.currentScript);
  const start = () => {
    const { htmx } = page;
    if (!htmx) return;
    client.follow();
    if (htmx.version.startsWith('4')) return serveHtmx4(htmx, client);
    client.adopt(htmx);
    replaceRepeated(htmx);
    spareTargets(htmx);
  };
  if (page.htmx) start();
  else document.addEventListener('DOMContentLoaded', start);
}
