// @ts-check
// The connection monitor: shows in the page what is known of a connection. Its settings are JSON in the attribute `data-sse-monitor` of a script element,
// and it lives as long as that element is in the page.

/**
 * @typedef {'active' | 'reconnecting' | 'disconnected' | 'error'} MonitorState
 * @typedef {object} MonitorSettings
 * @property {string} sse_element_id
 * @property {string} status_element_id
 * @property {boolean} auto_reconnect
 * @property {number | null} reconnect_delay  milliseconds
 * @property {number} heartbeat_timeout       milliseconds
 * @property {boolean} debug
 * @property {Record<MonitorState, string>} status_indicators  HTML
 */

/** @typedef {EventTarget & {state?: string, reason?: string, configure?: Function, own?: unknown, readyState: number, close: () => void}} MonitoredSource */

/** What this file needs to know of the page. @type {Window & {htmx?: any, cjmSSE?: any}} */
const here = window;

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
    /** @type {HTMLElement | null} */ this.shownIn = null;
    this.shown = '';
    this.end = new AbortController();
    // Only for the browser's own EventSource: our own source watches its silence itself.
    this.watchdog = new Watchdog(() => this.renew());
    this.watchdog.timeout = settings.heartbeat_timeout;
    this.listen();
    this.refresh();
  }

  listen() {
    const { signal } = this.end;
    const on = (/** @type {EventTarget} */ target, /** @type {string} */ type, /** @type {(detail: any, e: Event) => void} */ f) => target.addEventListener(type, e => {
      if (this.alive()) f(/** @type {CustomEvent} */ (e).detail, e);
    }, { signal });
    const mine = (/** @type {EventTarget | null} */ element) => element instanceof Element && element.id === this.settings.sse_element_id;
    if (here.cjmSSE) {
      if (this.settings.debug && here.cjmSSE.alone) console.debug(`[sse] tabs do not share: ${here.cjmSSE.alone}`);
      on(here.cjmSSE, 'change', change => { if (mine(change.element) && !this.replaced(change.element)) this.follow(change.source, change); });
      const source = here.cjmSSE.get(this.settings.sse_element_id);
      if (source) this.follow(source, source);
    }
    // The extension's own events: of interest where the source is the browser's.
    for (const [type, f] of Object.entries({ sseOpen: this.opened, sseError: this.failed, sseClose: this.closed })) {
      on(document, `htmx:${type}`, ({ source }, { target }) => {
        const element = /** @type {Element} */ (target);
        if (mine(element) && source && !source.configure && !this.replaced(element)) f.call(this, source, element);
      });
    }
    on(document, 'visibilitychange', () => { if (!document.hidden) this.watchdog.check(true); });
    // The status may be drawn later than this, or anew; or a morph brings it back to what the server has drawn.
    const observer = new MutationObserver(() => { if (this.alive() && !(this.shownIn?.isConnected && this.shownIn.dataset.sseState)) this.refresh(); });
    observer.observe(document, { childList: true, subtree: true, attributeFilter: ['data-sse-state'] });
    signal.addEventListener('abort', () => observer.disconnect());
  }

  /**
   * Whether an element has given way to another one with its id: then the new one's state is of interest, not the old one's end.
   * @param {Element} element
   */
  replaced(element) {
    return ![null, element].includes(document.getElementById(this.settings.sse_element_id));
  }

  /** Whether the script element that this monitor belongs to is still there. */
  alive() {
    if (this.script.isConnected) return true;
    this.watchdog.stop();
    this.end.abort();
    return false;
  }

  /**
   * Our own source says what it knows.
   * @param {MonitoredSource} source
   * @param {{state?: string, reason?: string, status?: number, retryIn?: number}} change
   */
  follow(source, change) {
    if (source !== this.source) {
      this.source = source;
      const { auto_reconnect, reconnect_delay, heartbeat_timeout } = this.settings;
      source.configure?.({ reconnect: auto_reconnect, delay: reconnect_delay ?? undefined, heartbeatTimeout: heartbeat_timeout });
    }
    this.show(/** @type {MonitorState | 'connecting'} */ (change.state), change);
  }

  /**
   * @param {MonitoredSource} source
   * @param {Element} element
   */
  opened(source, element) {
    if (source !== this.source) {
      this.source = source;
      const names = (element.getAttribute('sse-swap') ?? '').split(',').map(name => name.trim());
      for (const name of new Set(['message', ...names])) if (name) source.addEventListener(name, () => this.watchdog.heard(false));
      source.addEventListener('sse:heartbeat', () => this.watchdog.heard(true));
    }
    this.watchdog.start(true);
    this.show('active', {});
  }

  /**
   * @param {MonitoredSource} source
   * @param {Element} element
   */
  failed(source, element) {
    this.watchdog.stop();
    if (this.settings.auto_reconnect) return this.show('reconnecting', {});
    // Without its address the extension can't make a new source.
    element.removeAttribute('sse-connect');
    source.close();
    this.show('disconnected', {});
  }

  closed() {
    this.watchdog.stop();
    this.show('disconnected', {});
  }

  /** Make the extension replace a source that has fallen silent. */
  renew() {
    this.source?.close();
    this.source?.dispatchEvent(new Event('error'));
  }

  /**
   * @param {MonitorState | 'connecting'} state
   * @param {{reason?: string, status?: number, retryIn?: number}} why
   */
  show(state, { reason = '', retryIn }) {
    if (this.settings.debug) console.debug(`[sse] ${this.settings.sse_element_id}: ${state}${reason && ` (${reason})`}${retryIn ? `, next attempt in ${Math.round(retryIn)} ms` : ''}${this.source?.own ? ', leads' : ''}`);
    // Before the first connection there is nothing to tell: what the server has drawn stays.
    if (state === 'connecting') return;
    this.state = state;
    this.refresh();
  }

  /** Bring the status element up to date, touching it only where something changes: each change is read out. */
  refresh() {
    const status = document.getElementById(this.settings.status_element_id);
    if (!status) return;
    if (!status.hasAttribute('role')) status.setAttribute('role', 'status');
    if (!status.hasAttribute('aria-live')) status.setAttribute('aria-live', 'polite');
    if (!this.state) return;
    const html = this.settings.status_indicators[this.state];
    const drawnAnew = status !== this.shownIn || !status.dataset.sseState;
    if (status.dataset.sseState !== this.state) status.dataset.sseState = this.state;
    if (!drawnAnew && html === this.shown) return;
    this.shownIn = status;
    this.shown = html;
    const template = document.createElement('template');
    template.innerHTML = html;
    if (template.innerHTML === status.innerHTML) return;
    status.replaceChildren(template.content);
    here.htmx?.process(status);
  }
}

/**
 * Start what has not been started: the elements say it themselves, because this file may be in the page more than once.
 * @param {ParentNode} root
 */
function startMonitors(root) {
  const selector = 'script[data-sse-monitor]';
  for (const element of [...(root instanceof Element && root.matches(selector) ? [root] : []), ...root.querySelectorAll(selector)]) {
    const script = /** @type {HTMLScriptElement & {sseMonitor?: ConnectionMonitor}} */ (element);
    script.sseMonitor ??= new ConnectionMonitor(script, JSON.parse(script.dataset.sseMonitor ?? ''));
  }
}

startMonitors(document);
document.addEventListener('DOMContentLoaded', () => startMonitors(document));
// The last two are htmx 4's, with FastHTML's settings and without.
for (const type of ['htmx:load', 'htmx-after-process', 'htmx:after:process']) document.addEventListener(type, e => startMonitors(/** @type {Element} */ (e.target)));
