// @ts-check
// The connection monitor shows in the page what is known of a connection. Its settings are JSON in the attribute
// `data-sse-monitor` of a script element, and it lives as long as that element is in the page. The client loads it
// where a page has one; on pages without our client it comes with native.js.

class ConnectionMonitor {
  /**
   * @param {Element} script
   * @param {MonitorSettings} settings
   */
  constructor(script, settings) {
    this.script = script;
    this.settings = settings;
    /** @type {MonitorState | null} */ this.state = null;
    /** @type {MonitoredSource | null} */ this.source = null;
    /** @type {Watchdog | undefined} */ this.watchdog = undefined;   // of a native source
    /** @type {HTMLElement | null} */ this.shownIn = null;
    this.shown = '';
    this.settle = 2000;      // milliseconds that a state must last before it is read out
    this.said = '';
    /** @type {number | undefined} */ this.timer = undefined;
    this.end = new AbortController();
    this.listen();
    this.refresh();
  }

  /** @type {(target: EventTarget, type: string, f: (detail: any, e: Event) => void) => void} */
  on(target, type, f) {
    const { signal } = this.end;
    target.addEventListener(type, e => { if (this.alive()) f(/** @type {CustomEvent} */ (e).detail, e); }, { signal });
  }

  listen() {
    const { cjmSSE: client } = window;
    const { sse_element_id: id } = this.settings;
    if (client) {
      const concerns = (/** @type {SSEChange} */ { element, source }) =>
        element ? this.concerns(element) : client.get(id) === source;
      this.on(client, 'change', change => { if (concerns(change)) this.follow(change.source, change); });
      const source = client.get(id);
      if (source) this.follow(source, source);
    }
    if (typeof watchNative === 'function') watchNative(this);
    // The status may be drawn later than this, or anew; or a morph brings it back to what the server has drawn.
    const drawn = () => this.shownIn?.isConnected && this.shownIn.dataset.sseState;
    const observer = new MutationObserver(() => { if (this.alive() && !drawn()) this.refresh(); });
    observer.observe(document, { childList: true, subtree: true, attributeFilter: ['data-sse-state'] });
    this.end.signal.addEventListener('abort', () => {
      observer.disconnect();
      clearTimeout(this.timer);
      document.getElementById(`${this.settings.status_element_id}-read-out`)?.remove();
    });
  }

  /**
   * Say whether this is the element that the monitor is for; not if another one with its id has taken its place.
   * @param {EventTarget | null} element
   */
  concerns(element) {
    const { sse_element_id: id } = this.settings;
    return element instanceof Element && element.id === id && [null, element].includes(document.getElementById(id));
  }

  /** Say whether the script element that this monitor belongs to is still there, and end where not. */
  alive() {
    if (!this.script.isConnected) this.end.abort();
    return this.script.isConnected;
  }

  /**
   * Show what our own source says.
   * @param {MonitoredSource} source
   * @param {{state?: string, reason?: string, retryIn?: number}} change
   */
  follow(source, change) {
    if (source !== this.source) {
      this.source = source;
      const { auto_reconnect: reconnect, reconnect_delay: delay, heartbeat_timeout: heartbeatTimeout } = this.settings;
      source.configure?.({ reconnect, delay: delay ?? undefined, heartbeatTimeout });
    }
    this.show(/** @type {SSEState} */ (change.state), change);
  }

  /**
   * @param {SSEState} state
   * @param {{reason?: string, retryIn?: number}} why
   */
  show(state, { reason = '', retryIn }) {
    const { debug, sse_element_id: id } = this.settings;
    const next = retryIn ? `, next attempt in ${Math.round(retryIn)} ms` : '';
    const why = reason && ` (${reason})`;
    if (debug) console.debug(`[sse] ${id}: ${state}${why}${next}`);
    if (state === 'connecting' || reason === 'replaced') {
      // Before the first connection there is nothing to show, and what the server has drawn stays. But a status that
      // tells of another connection is wrong now: of an element that was here before, or of a page that htmx has kept.
      if (!this.state && !document.getElementById(this.settings.status_element_id)?.dataset.sseState) return;
      state = 'reconnecting';
    }
    this.state = state;
    this.refresh();
  }

  /** Bring the status element up to date, touching it only where something changes. */
  refresh() {
    const { status_element_id: id, status_indicators: indicators } = this.settings;
    const status = document.getElementById(id);
    if (!status) return;
    // A status with a role or `aria-live` of its own is as the page wants it. Any other is no live region, which would
    // be read out at each change.
    const region = status.matches('[role], [aria-live]') ? null : this.liveRegion();
    if (!this.state) return;
    const html = indicators[this.state];
    const drawnAnew = status !== this.shownIn || !status.dataset.sseState;
    if (status.dataset.sseState !== this.state) status.dataset.sseState = this.state;
    if (!drawnAnew && html === this.shown) return;
    const template = document.createElement('template');
    template.innerHTML = html;
    if (region && html !== this.shown) this.readOut(template.content);
    this.shownIn = status;
    this.shown = html;
    if (template.innerHTML === status.innerHTML) return;
    status.replaceChildren(template.content);
    window.htmx?.process(status);
  }

  /** Get what screen readers read out: an element that nobody sees. It must be in the page before its text is. */
  liveRegion() {
    const id = `${this.settings.status_element_id}-read-out`;
    let region = document.getElementById(id);
    if (!region) {
      region = document.createElement('div');
      region.id = id;
      region.setAttribute('role', 'status');
      region.setAttribute('aria-live', 'polite');
      region.style.cssText = 'position:fixed;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)';
      document.body.append(region);
    }
    return region;
  }

  /**
   * Read out the words of an indicator once it has lasted: a connection that comes back at once is no news.
   * @param {DocumentFragment} indicator
   */
  readOut(indicator) {
    const content = /** @type {DocumentFragment} */ (indicator.cloneNode(true));
    for (const element of content.querySelectorAll('[aria-hidden=true]')) element.remove();
    for (const element of content.querySelectorAll('[aria-label], [alt]')) {
      element.replaceWith(element.getAttribute('aria-label') ?? element.getAttribute('alt') ?? '');
    }
    const text = (content.textContent ?? '').trim();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (text !== this.said && this.alive()) this.liveRegion().textContent = this.said = text;
    }, this.settle);
  }
}

/**
 * Start what has not been started: the elements say it themselves, because this file may be in the page more than once.
 * @param {ParentNode} root
 */
function startMonitors(root) {
  const selector = 'script[data-sse-monitor]';
  const own = root instanceof Element && root.matches(selector) ? [root] : [];
  for (const element of [...own, ...root.querySelectorAll(selector)]) {
    const script = /** @type {HTMLScriptElement & {sseMonitor?: ConnectionMonitor}} */ (element);
    script.sseMonitor ??= new ConnectionMonitor(script, JSON.parse(script.dataset.sseMonitor ?? ''));
  }
}

startMonitors(document);
document.addEventListener('DOMContentLoaded', () => startMonitors(document));
// The last two are htmx 4's, with FastHTML's settings and without.
for (const type of ['htmx:load', 'htmx-after-process', 'htmx:after:process']) {
  document.addEventListener(type, e => startMonitors(/** @type {Element} */ (e.target)));
}
