// @ts-check
// The streams of a page, through its life. Scripts find them as `window.cjmSSE`.

/** A `change` event tells of every change of state; its `detail` is an `SSEChange`. */
class SSEClient extends EventTarget {
  constructor() {
    super();
    /** @type {Set<SSEEntry>} */
    this.entries = new Set();
    this.tag = '';           // of the user's session
    this.home = '';          // where the app has this script: others of this host have other sessions
    /** @type {BroadcastChannel | null} */
    this.sessions = null;    // where pages tell theirs
    this.alone = 'asked for';  // why tabs share no connections
    this.loaded = 0;         // when the page was
    this.loading = 0;        // until when what connects is part of it
    /** @type {Multiplexer | null} */
    this.mux = null;         // where the app has one
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
   * The only place that makes a source.
   * @param {string} url
   * @param {{lastEventId?: string, cursor?: string, share?: boolean}} options
   */
  connect(url, { share = true, ...options }) {
    const fresh = performance.now() < this.loading ? this.loaded : 0;
    const source = share && !this.alone ? this.shared(url, { ...options, tag: this.tag, fresh }) : new SSESource(url, options);
    // What the page missed is in no log any more, as it was drawn long ago: it comes from a cache.
    if (fresh) source.addEventListener('sse:gap', e => { if (source.cursor) this.renew(e); });
    source.connect();
    return source;
  }

  /**
   * @param {string} url
   * @param {ConstructorParameters<typeof SharedSource>[1]} options
   */
  shared(url, options) {
    return this.mux ? new ChannelSource(url, options, this.mux) : new SharedSource(url, options);
  }

  /** @param {HTMLElement | SVGElement | null} script  that brought this file */
  configure(script) {
    const { sseShare, sseTag, sseMux } = script?.dataset ?? {};
    this.tag = sseTag ?? '';
    this.home = new URL(script?.getAttribute('src') ?? '', location.href).pathname.replace(/[^/]*$/, '');
    this.alone = sseShare === 'false' ? 'share=False' : window.isSecureContext && navigator.locks && window.BroadcastChannel ? '' : 'neither HTTPS nor localhost, or an old browser';
    if (this.tag && !this.alone) this.hearSessions().postMessage(this.tag);
    if (sseMux && !this.alone) this.mux = new Multiplexer(sseMux, this.tag);
    this.load(document.readyState === 'loading' ? Infinity : 1000);
    // htmx connects what the page holds in the task of this event.
    document.addEventListener('DOMContentLoaded', () => setTimeout(() => this.load(0)));
  }

  hearSessions() {
    const sessions = this.sessions = new BroadcastChannel(`sse:session:${this.home}`);
    // Somebody else is logged in now.
    sessions.onmessage = ({ data }) => {
      for (const source of data === this.tag ? [] : this.sources) if (source instanceof SharedSource) source.own?.reconnect('another session');
    };
    return sessions;
  }

  /** @param {number} ms  What connects in that time is part of a page that loads. */
  load(ms) {
    if (ms) this.loaded = Date.now();
    this.loading = performance.now() + ms;
  }

  /**
   * Fetch the page anew, but not again and again.
   * @param {Event} event  that says why; nobody hears of it then
   */
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
   * @param {string} url
   * @param {Element | null} element
   */
  open(url, element) {
    let lastEventId = element?.getAttribute('data-sse-after') ?? '';
    const cursor = element?.getAttribute('data-sse-cursor') ?? '';
    for (const entry of this.entries) {
      if (!element || entry.element !== element) continue;
      if (entry.url === url) lastEventId = entry.source.lastEventId;
      this.release(entry, 'replaced');
    }
    const share = element?.closest('[data-sse-share]')?.getAttribute('data-sse-share') !== 'false';
    const source = this.connect(url, { lastEventId, cursor, share });
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

  follow() {
    const each = (/** @type {(source: SSESource) => void} */ f) => () => this.sources.forEach(f);
    // A page with an open connection is not kept for Back.
    window.addEventListener('pagehide', () => {
      each(source => source.suspend())();
      this.mux?.leave();
      this.sessions?.close();
    });
    window.addEventListener('pageshow', e => {
      if (!e.persisted) return;
      each(source => source.resume())();
      if (this.sessions) this.hearSessions();
    });
    const check = () => {
      this.mux?.check();
      each(source => source.check())();
    };
    window.addEventListener('online', check);
    // A moment later, because what arrived while the page slept is read first.
    document.addEventListener('visibilitychange', () => { if (!document.hidden) setTimeout(check, 250); });
    // An element may leave the page by other ways than htmx's.
    new MutationObserver(() => {
      for (const entry of this.entries) if (entry.element && !entry.element.isConnected) this.release(entry, 'element removed');
    }).observe(document, { childList: true, subtree: true });
  }
}

if (!window.cjmSSE) {
  const client = window.cjmSSE = new SSEClient();
  client.configure(document.currentScript);
  const start = () => {
    const { htmx } = window;
    if (!htmx) return;
    client.follow();
    const serve = serveHtmx[parseInt(htmx.version)];
    if (serve) serve(htmx, client);
    else console.error(`[sse] this client is not for htmx ${htmx.version}`);
  };
  if (window.htmx) start();
  else document.addEventListener('DOMContentLoaded', start);
}
