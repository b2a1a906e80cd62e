// @ts-check
// Brings all streams of the browser on one connection: each source has a channel of its own there, and gets what
// `fetch` would bring. The client makes one where the app has a multiplexer. One tab leads and holds the carriers of
// all, see election.js and carrier.js. Where no carrier works, each stream has a connection of its own for a while.

const VERSION = 2;   // of the protocol, in the browser and with the server

class Multiplexer {
  static RETRY = 60000;   // milliseconds before carriers are tried again: this, twice this, ... ten times this

  /**
   * @param {string} path
   * @param {boolean} share  `false`: each tab has carriers of its own
   * @param {() => SSESource[]} sources  of this tab
   * @param {HTMLScriptElement | null} part  brings the election, where this script has none
   */
  constructor(path, share, sources, part) {
    this.part = part;
    this.url = new URL(path, location.href).href;
    this.sources = sources;
    this.reason = '';        // why no carrier works
    this.failures = 0;       // in a row
    this.worked = false;     // Did a carrier work in this session of the tab?
    this.retry = 0;
    this.tickets = new Tickets(this.url, visitor => this.setVisitor(visitor));
    this.visitor = this.tickets.visitor;
    this.count = 0;          // of channels, from all that there were
    /** @type {Map<number, OpenChannel>} the channels of this tab, by key */
    this.channels = new Map();
    this.updating = false;
    /** @type {Carriers | null} */
    this.carriers = null;    // where this tab leads
    /** @type {BroadcastChannel | null} */
    this.pages = null;       // where all pages say who looks at them
    const [navigation] = /** @type {PerformanceNavigationTiming[]} */ (performance.getEntriesByType('navigation'));
    // Over HTTP/2 and 3 the tabs of a browser share a connection anyway.
    const alone = !share || /^h[23]/.test(navigation?.nextHopProtocol ?? '');
    /** @type {Election | Alone | null} */
    this.election = null;
    if (alone || !navigator.locks || !window.BroadcastChannel) this.elect(Alone);
    this.enter();
    this.recall();
  }

  /** Take part in an election, whose script comes with the first stream. @param {typeof Election | typeof Alone} Elected */
  elect(Elected) {
    this.election = new Elected(`${VERSION}:${this.url}`, this);
    if (this.channels.size) this.election.join();
  }

  join() {
    const { part } = this;
    if (this.election) this.election.join();
    else if (part && !part.isConnected) {
      part.onerror = () => this.alone('its script does not come');
      document.head.append(part);
    }
  }

  /** There can be no election. @param {unknown} reason */
  alone(reason) {
    console.debug(`[sse] this tab elects itself: ${reason}`);
    this.elect(Alone);
  }

  /**
   * Keep for the session of this tab whether carriers work.
   * @param {{worked?: boolean, reason?: string, until?: number, failures?: number}} what
   */
  remember(what) {
    this.worked = !!what.worked;
    try {
      sessionStorage.setItem(`sse:mux:${this.url}`, JSON.stringify(what));
    } catch { /* each page finds out */ }
  }

  recall() {
    try {
      const kept = JSON.parse(sessionStorage.getItem(`sse:mux:${this.url}`) ?? '{}');
      this.worked = kept.worked === true;
      if (!(kept.until > Date.now())) return;
      this.failures = kept.failures;
      this.pause(kept.reason, kept.until - Date.now());
    } catch { /* what can't be read can't be kept */ }
  }

  /** A page begins, or comes back: who looks at it now? */
  enter() {
    if (this.pages || !window.BroadcastChannel) return;
    try {
      this.pages = new BroadcastChannel(`sse:${VERSION}:pages:${this.url}`);
    } catch {
      return;   // forbidden, as cookies are: no other page is of this visitor
    }
    this.pages.onmessage = ({ data }) => {
      if (data.visitor) this.setVisitor(data.visitor);
      else if (data.back) this.carriers?.hurry();   // the server is there again
      else this.carriers?.identify();
    };
    this.tell({});
  }

  /** Tell all pages something. @param {{visitor?: string, back?: boolean}} what */
  tell(what) {
    this.pages?.postMessage(what);
  }

  /** This page is left. */
  exit() {
    this.election?.leave();
    this.tickets.abort();
    this.pages?.close();
    this.pages = null;
  }

  /**
   * Take note of who the visitor is, as the server says.
   * @param {string} visitor
   * @param {boolean} [moved]  the carriers said so, and move all channels
   */
  setVisitor(visitor, moved = false) {
    const was = this.visitor;
    if (!visitor || visitor === was) return;
    this.visitor = visitor;
    this.tickets.setVisitor(visitor);
    this.tell({ visitor });
    if (!was) return;
    // From here on nothing is shown that was for somebody else.
    if (!moved) this.follow();
    if (!moved) this.carriers?.sendRequest(true);
    for (const source of this.sources()) if (source.direct) source.reconnect('another visitor');
  }

  /** Bring the response to a source, as `fetch` does. @type {SSETransport} */
  async fetch(source, headers, signal) {
    const { reason, key, back } = source.moved;
    source.moved = new Moved();
    if (key) signal.addEventListener('abort', () => this.close(key));
    if (reason) return fetchDirect(source, reason, headers, signal);
    let { url } = source;
    const { body } = source;
    if (sizeOf(body) > MAX_BODY) return fetchDirect(source, 'limit', headers, signal);
    for (let refused = 0, asks = '1'; !this.reason;) {
      if (signal.aborted) throw new TypeError('aborted');
      const { pathname, search } = new URL(url);
      const ticket = this.tickets.get(pathname);
      if (!ticket) {
        const answer = await this.tickets.fetch(url, asks);
        if (!answer) continue;
        if (!isStream(answer)) return answer;
        const ours = new URL(answer.url).origin === location.origin;
        if (!ours || !answer.headers.get('SSE-Ticket')) return fetchDirect(source, 'no ticket', headers, signal);
        ({ url } = answer);   // it may have been led elsewhere
        continue;
      }
      const ids = [source.lastEventId, source.cursor];
      const wish = { path: pathname + search, ticket, ids, body, back, delay: source.usualDelay };
      const answer = await this.open(source, wish, signal);
      // Where a page from before a deploy leads, it drops bodies.
      if (body && answer.status === 405) return fetchDirect(source, 'version', headers, signal);
      if (answer instanceof Response) return answer;
      if (answer.direct) return fetchDirect(source, answer.direct, headers, signal);
      // Refused, or led elsewhere: a ticket request finds out.
      this.tickets.set(pathname, '');
      if (answer.status) asks = 'authorise';
      if (++refused > 2) return fetchDirect(source, 'ticket refused', headers, signal);
    }
    // Where no carrier works, an error is a reason to try again: it was not for the carrier's sake.
    const response = await fetchDirect(source, 'step', headers, signal).catch(() => null);
    if (!signal.aborted && !(response && response.status < 500)) this.tryAgain();
    if (!response) throw new TypeError('network');
    return response;
  }

  /**
   * Open a channel.
   * @param {SSESource} source
   * @param {Omit<ChannelWish, 'key'>} wish
   * @param {AbortSignal} signal
   * @returns {Promise<Response | LeaderMessage>}  a message says why there is no response
   */
  open(source, wish, signal) {
    return new Promise((resolve, reject) => {
      const key = ++this.count;
      this.channels.set(key, { ...wish, key, source, resolve, reject, controller: null });
      signal.addEventListener('abort', () => this.close(key));
      this.join();
      this.update();
    });
  }

  /** @param {number} key */
  close(key) {
    if (this.channels.delete(key)) this.update();
    this.leaveWhenIdle();
  }

  /** Request the channels of this tab, behind all that changes in one go. */
  update() {
    if (!this.updating) queueMicrotask(() => this.request());
    this.updating = true;
  }

  /** @param {boolean} [check]  somebody looks at this tab */
  request(check = false) {
    this.updating = false;
    const open = [...this.channels.values()].map(({ source, resolve, reject, controller, ...wish }) => wish);
    this.election?.request({ open, check });
  }

  leaveWhenIdle() {
    // One that waits to come back stays: where this tab leads, the channels of others would have to move.
    const over = (/** @type {SSESource} */ { direct, readyState }) => direct || readyState === SSESource.CLOSED;
    const idle = () => !this.channels.size && this.sources().every(over);
    if (!this.channels.size) setTimeout(() => { if (idle()) this.election?.leave(); }, 1000);
  }

  // What the election calls.

  lead() {
    this.carriers = new Carriers(this);
    this.follow();
  }

  /** Open all channels anew, at the leader. */
  follow() {
    for (const key of [...this.channels.keys()]) this.handle(key, { moved: true });
    this.update();
  }

  lost() {
    this.carriers?.end();
    this.carriers = null;
  }

  /** @param {string} tab @param {TabRequest} request */
  requested(tab, { open, check }) {
    this.carriers?.want(tab, open);
    if (check) this.carriers?.check();
  }

  /** @param {string} tab */
  left(tab) {
    this.carriers?.want(tab, []);
  }

  /** A tab waits for a sign of life. */
  pinged() {
    this.carriers?.watch();
  }

  /** @param {[number, LeaderMessage][]} messages */
  received(messages) {
    for (const [key, message] of messages) this.handle(key, message);
  }

  /**
   * Send a tab what has come for it.
   * @param {string} tab
   * @param {[number, LeaderMessage][]} messages
   */
  send(tab, messages) {
    return this.election?.send(tab, messages, messages.reduce((sum, [, { bytes }]) => sum + (bytes?.length ?? 0), 0));
  }

  /** @param {number} key @param {LeaderMessage} message */
  handle(key, message) {
    const { bytes, type = '', stream = '', retry, direct = '', failed, retryIn } = message;
    if (message.down) return this.giveUp(message.down);
    const channel = this.channels.get(key);
    if (!channel) return;
    const { controller } = channel;
    if (bytes) return controller?.enqueue(bytes);
    if (retryIn) {
      channel.source.comeBack(failed ? `status ${failed}` : 'network', failed, retryIn);
      return;
    }
    if (message.cookie) return this.tickets.fetchCookie(new URL(channel.path, location.href).href);
    if (message.status === 200) {
      for (const source of this.failures ? this.sources() : []) if (source.direct === 'step') source.connect();
      this.failures = 0;
      const body = new ReadableStream({ start: controller => { channel.controller = controller; } });
      return channel.resolve(new Response(body, { headers: { 'Content-Type': type, 'SSE-Stream': stream } }));
    }
    if (!message.away) this.channels.delete(key);
    const { status = 0 } = message;
    const error = new Moved(direct, message.away ? key : 0, message.lost);
    if (message.end && !message.lost) controller?.close();
    else if (controller) controller.error(error);
    else if (direct || message.ticket || status > 299 && status < 400) channel.resolve(message);
    else if (!status) channel.reject(error);
    else {
      const headers = { 'Content-Type': type, ...(retry && { 'Retry-After': retry }) };
      channel.resolve(new Response(null, { status, headers }));
    }
  }

  /** Do without carriers, for a while. @param {string} reason */
  giveUp(reason) {
    if (this.reason) return;
    // Those that this tab leads need not find out one after another.
    this.reason = reason;
    for (const tab of this.carriers?.tabs.keys() ?? []) this.send(tab, [[0, { down: reason }]]);
    console.debug(`[sse] each stream has a connection of its own: ${reason}`);
    this.election?.leave();
    this.follow();
    const ms = Multiplexer.RETRY * Math.min(2 ** this.failures++, 10);
    this.pause(reason, ms);
    // A page that is loaded anew may be of another version, or of another visitor.
    if (/^no/.test(reason)) this.remember({ reason, until: Date.now() + ms, failures: this.failures });
  }

  /** @param {string} reason @param {number} ms */
  pause(reason, ms) {
    this.reason = reason;
    this.retry = setTimeout(() => this.tryAgain(), ms);
  }

  /** Use carriers again, with one stream if there is no other. */
  tryAgain() {
    clearTimeout(this.retry);
    if (!this.reason) return;
    this.reason = '';
    this.sources().find(source => source.direct === 'step')?.connect();
  }

  check() {
    this.election?.check();
    this.request(true);
  }
}

/** The election of a tab that has carriers of its own. */
class Alone {
  /** @param {string} name @param {Multiplexer} owner */
  constructor(name, owner) {
    this.owner = owner;
    this.leads = false;
  }

  join() {
    if (this.leads) return;
    this.leads = true;
    this.owner.lead();
  }

  leave() {
    if (this.leads) this.owner.lost();
    this.leads = false;
  }

  async confirmLead() { return this.leads; }

  beat() {}

  check() {}

  /** @param {TabRequest} message */
  request(message) { if (this.leads) this.owner.requested('', message); }

  /** @param {string} tab @param {[number, LeaderMessage][]} messages @param {number} bytes */
  send(tab, messages, bytes) { this.owner.received(messages); }
}
