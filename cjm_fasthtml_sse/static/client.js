// @ts-check
// The streams of a page, through its life: what connects gets a source here, and all of them are left, brought back and
// checked with the page. Scripts find them as `window.cjmSSE`; htmx2.js and htmx4.js bring the elements that connect.

/** A `change` event tells of every change of state; its `detail` is an `SSEChange`. */
class SSEClient extends EventTarget {
  constructor() {
    super();
    /** @type {Set<SSEEntry>} */
    this.entries = new Set();
    this.loading = 0;        // until when what connects is part of a page that loads
    /** @type {Multiplexer | null} */
    this.mux = null;         // where the app has one
    this.warned = false;     // of too many connections
    /** Scripts for pages that have such elements. @type {[selector: string, script: HTMLScriptElement][]} */
    this.parts = [];
    this.liveUrl = '';       // where live elements are followed
    /** @type {(element: Element) => void} */
    this.removal = element => element.remove();   // or as htmx does
  }

  /** The state of all streams together: the one that most wants attention. @returns {SSEState} */
  get state() {
    const states = this.sources.map(({ state }) => state);
    const order = /** @type {SSEState[]} */ (['error', 'reconnecting', 'connecting', 'active']);
    return order.find(state => states.includes(state)) ?? 'disconnected';
  }

  /** The id that the stream which was active last would come back with. */
  get lastEventId() {
    const [newest] = this.sources.sort((a, b) => b.watchdog.activeAt - a.watchdog.activeAt);
    return newest?.lastEventId ?? '';
  }

  get sources() {
    return [...this.entries].map(entry => entry.source);
  }

  /** Get the source of an element, or of the element with an id. @param {Element | string} element */
  get(element) {
    const same = (/** @type {Element | null} */ o) => o === element || o?.id === element;
    return [...this.entries].find(entry => [entry.element, ...entry.roots()].some(same))?.source ?? null;
  }

  reconnect() {
    for (const source of this.sources) source.reconnect();
  }

  close() {
    for (const source of this.sources) source.close();
  }

  /**
   * Make a source and connect it; nothing else does.
   * @param {string} url
   * @param {{lastEventId?: string, cursor?: string, multiplex?: boolean, body?: () => string}} options
   */
  connect(url, { multiplex = true, ...options }) {
    const { mux } = this;
    const wanted = multiplex && new URL(url, document.baseURI).origin === location.origin;
    /** @type {SSETransport} */
    const alone = (source, headers, signal) => fetchDirect(source, wanted ? 'off' : 'asked', headers, signal);
    const source = new SSESource(url, options, wanted && mux ? mux.fetch.bind(mux) : alone);
    // What the page missed is in no log any more, as it was drawn long ago: it comes from a cache.
    const renew = (/** @type {Event} */ event) => { if (source.cursor && source.gap) this.renew(event); };
    if (performance.now() < this.loading) source.addEventListener('sse:gap', renew);
    source.connect();
    return source;
  }

  /** Take the settings of the page. @param {HTMLElement | SVGElement | null} script  that brought this file */
  configure(script) {
    const { sseMultiplex, sseMux, sseElectionSrc, sseMonitorSrc, sseLiveSrc, sseLive = '' } = script?.dataset ?? {};
    const part = (/** @type {string | undefined} */ src) =>
      src ? Object.assign(document.createElement('script'), { src, nonce: script?.nonce }) : null;
    const parts = { 'script[data-sse-monitor]': part(sseMonitorSrc), '[data-sse-live-key]': part(sseLiveSrc) };
    for (const [selector, o] of Object.entries(parts)) if (o) this.parts.push([selector, o]);
    this.liveUrl = sseLive;
    if (sseMux) this.mux = new Multiplexer(sseMux, sseMultiplex !== 'tab', () => this.sources, part(sseElectionSrc));
    this.load(document.readyState === 'loading' ? Infinity : 1000);
    // htmx connects what the page holds in the task of this event.
    document.addEventListener('DOMContentLoaded', () => setTimeout(() => this.load(0)));
  }

  /** Take note of who the visitor is, as a response says. @param {string | null} visitor */
  visitor(visitor) {
    if (visitor) this.mux?.setVisitor(visitor);
  }

  /** Count what connects in the next `ms` milliseconds as part of a page that loads. @param {number} ms */
  load(ms) {
    this.loading = performance.now() + ms;
  }

  /** Fetch the page anew, but not again and again. @param {Event} event  that says why; no listener gets it then */
  renew(event) {
    const key = `sse:renewed:${location.href}`;
    try {
      if (Date.now() - Number(sessionStorage.getItem(key)) < 600000) return;
      sessionStorage.setItem(key, `${Date.now()}`);
    } catch {
      return;   // where nothing can be kept
    }
    event.stopImmediatePropagation();
    location.reload();
  }

  /**
   * Connect an element to a stream, in place of its former one; or no element, or several that come and go.
   * @param {string} url
   * @param {Element | null} element
   * @param {{cursor?: string, body?: () => string, roots?: () => Element[]}} options
   */
  open(url, element, { cursor = element?.getAttribute('data-sse-cursor') ?? '', body, roots = () => [] } = {}) {
    let lastEventId = element?.getAttribute('data-sse-after') ?? '';
    for (const entry of this.entries) {
      if (!element || entry.element !== element) continue;
      if (entry.url === url) lastEventId = entry.source.lastEventId;
      this.release(entry, 'replaced');
    }
    const multiplex = element?.closest('[data-sse-multiplex]')?.getAttribute('data-sse-multiplex') !== 'false';
    const source = this.connect(url, { lastEventId, cursor, multiplex, body });
    /** @type {SSEEntry} */
    const entry = { url, element, source, roots };
    this.entries.add(entry);
    // A server may name an event as it likes, ours is no message.
    source.addEventListener('sse:state', e => { if (e instanceof CustomEvent) this.changed(entry, e.detail); });
    this.changed(entry, { state: source.state, reason: '' });
    return source;
  }

  /** @param {SSEEntry} entry @param {string} reason */
  release(entry, reason) {
    entry.source.close(reason);
    this.entries.delete(entry);
  }

  /** Remove a node from the page as htmx does, which ends what goes on within it. @param {ChildNode} node */
  remove(node) {
    if (node instanceof Element && node.isConnected) this.removal(node);
    else node.remove();
  }

  /** @param {SSEEntry} entry @param {SSEStateDetail} detail */
  changed(entry, detail) {
    if (detail.state === 'active' && entry.source.direct) this.warn();
    this.dispatchEvent(new CustomEvent('change', { detail: { ...detail, ...entry } }));
  }

  /** Warn once: a browser has six connections for all of its tabs, and further requests would hang without a word. */
  warn() {
    const alone = this.sources.filter(({ direct, state }) => direct && state === 'active');
    if (this.warned || alone.length < 4) return;
    this.warned = true;
    const why = this.mux?.reason || [...new Set(alone.map(({ direct }) => direct))].join(', ');
    const page = 'see "One connection for each browser" in the documentation';
    const what = `${alone.length} streams of this page have connections of their own (${why})`;
    console.warn(`[sse] ${what}; a browser has six for all tabs, so pages may hang: ${page}`);
  }

  /**
   * Follow the page: it is left, comes back, is looked at, and its elements come and go.
   * @param {(element: Element) => void} [removal]  how htmx removes an element
   */
  follow(removal = this.removal) {
    this.removal = removal;
    // A page with an open connection is not kept for Back.
    window.addEventListener('pagehide', () => {
      for (const source of this.sources) source.suspend();
      this.mux?.exit();
    });
    window.addEventListener('pageshow', e => {
      if (!e.persisted) return;
      this.mux?.enter();
      for (const source of this.sources) source.resume();
    });
    const check = () => {
      this.mux?.check();
      for (const source of this.sources) source.check();
    };
    window.addEventListener('online', check);
    // A moment later, because what arrived while the page slept is read first.
    document.addEventListener('visibilitychange', () => { if (!document.hidden) setTimeout(check, 250); });
    const load = () => {
      for (const [selector, part] of this.parts) {
        if (!part.isConnected && document.querySelector(selector)) document.head.append(part);
      }
    };
    load();
    // An element may leave the page by other ways than htmx's.
    new MutationObserver(() => {
      load();
      for (const o of this.entries) if (o.element?.isConnected === false) this.release(o, 'element removed');
    }).observe(document, { childList: true, subtree: true });
  }
}

if (!window.cjmSSE) {
  const client = window.cjmSSE = new SSEClient();
  client.configure(document.currentScript);
  const start = () => {
    const { htmx } = window;
    if (!htmx) return;
    const serve = serveHtmx[parseInt(htmx.version)];
    if (!serve) console.error(`[sse] this client is not for htmx ${htmx.version}`);
    client.follow(serve?.(htmx, client));
  };
  if (window.htmx) start();
  else document.addEventListener('DOMContentLoaded', start);
}
