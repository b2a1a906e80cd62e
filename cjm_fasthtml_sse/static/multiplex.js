// @ts-check
// All streams of the browser on one connection: each source has a channel of its own there. To a source, what this brings is what `fetch` would bring.
//
// There are three steps. `browser`: one tab leads and holds the carriers of all, see election.js. `tab`: a tab has carriers of its own. `direct`: each stream has a connection of its own.
// Where one does not work, the next one does, and a better one is tried again later.

const VERSION = '2';              // of the protocol, in the browser and with the server
const MOVED = Symbol('moved');    // the stream goes on elsewhere

/** A stream goes on without a channel, until this connection is lost. */
class Detour {
  /**
   * @param {string} reason
   * @param {string} key  of its former channel, to be closed when the detour is over
   */
  constructor(reason, key) {
    this.reason = reason;
    this.key = key;
  }
}

/** A tab that leads nobody but itself: what an `Election` is to others. */
class Alone {
  /** @param {ElectionOwner} owner */
  constructor(owner) {
    this.owner = owner;
    this.me = this.leader = `${Math.random()}`;
  }

  join() {
    this.owner.lead();
  }

  leave() {}

  /** @param {any} message */
  ask(message) {
    this.owner.asked(this.me, message);
  }

  /**
   * @param {string} _tab
   * @param {any} message
   * @param {number} _bytes
   */
  tell(_tab, message, _bytes) {
    this.owner.told(message);
  }

  beat() {}

  check() {}

  async confirmLead() {
    return true;
  }
}

class Multiplexer {
  static RETRY = 60000;   // milliseconds before a better step is tried again: this, twice this, ... ten times this

  /**
   * @param {string} path
   * @param {boolean} share  `false`: tabs are on their own
   * @param {() => SSESource[]} sources  of this tab
   */
  constructor(path, share, sources) {
    this.url = new URL(path, location.href).href;
    this.sources = sources;
    const [navigation] = /** @type {PerformanceNavigationTiming[]} */ (performance.getEntriesByType('navigation'));
    // Over HTTP/2 and 3 the tabs of a browser share a connection anyway.
    const elects = share && !/^h[23]/.test(navigation?.nextHopProtocol ?? '') && navigator.locks && window.BroadcastChannel;
    /** @type {'browser' | 'tab'} */
    this.best = elects ? 'browser' : 'tab';
    /** @type {'browser' | 'tab' | 'direct'} */
    this.step = this.best;
    this.reason = '';        // why it is not the best one
    this.downs = 0;          // in a row
    /** @type {number | undefined} */
    this.retry = undefined;
    this.tickets = new Tickets(this.url, visitor => this.visit(visitor));
    this.visitor = this.tickets.visitor;
    this.count = 0;          // of channels, from all that there were
    /** @type {Map<string, MuxOpen>} the channels of this tab */
    this.open = new Map();
    /** @type {Set<string>} those of them to be asked for */
    this.wanted = new Set();
    /** @type {Election | Alone | null} */
    this.link = null;        // to the tab that leads
    /** @type {Carriers | null} */
    this.carriers = null;    // where this tab leads
    /** @type {BroadcastChannel | null} */
    this.pages = null;       // where all pages say who looks at them
    this.enter();
    // The streams of a page that loads find the leader known. Its first ones were not asked for so far.
    if (this.visitor && document.readyState === 'loading') {
      this.join();
      this.leaveWhenIdle();
    }
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
      if (data.visitor) this.visit(data.visitor);
      else this.carriers?.askIn(300, true);
    };
    this.pages.postMessage({});
  }

  /**
   * The server has said who the visitor is.
   * @param {string} visitor
   * @param {boolean} [seen]  by who holds the carriers: they know what to do
   */
  visit(visitor, seen = false) {
    const was = this.visitor;
    if (!visitor || visitor === was) return;
    this.visitor = visitor;
    this.tickets.of(visitor);
    this.pages?.postMessage({ visitor });
    if (!was) return;
    // From here on nothing is shown that was for somebody else.
    if (!seen) for (const key of [...this.open.keys()]) {
      if (this.wanted.has(key)) continue;
      this.link?.ask({ close: key });
      this.hear(key, { moved: true });
    }
    this.carriers?.ask(true);
    for (const source of this.sources()) if (source.direct) source.reconnect('another visitor');
  }

  /**
   * As `fetch`, for an event stream.
   * @type {SSETransport}
   */
  async fetch(source, headers, signal) {
    const { detour } = source;
    source.detour = null;
    if (detour) {
      if (detour.key) signal.addEventListener('abort', () => this.link?.ask({ close: detour.key }));
      return direct(source, detour.reason, headers, signal);
    }
    let { url } = source;
    let { step } = this;
    for (let refused = 0; this.step !== 'direct';) {
      if (step !== this.step) [step, refused] = [this.step, 0];
      if (signal.aborted) throw new TypeError('aborted');
      const { pathname, search } = new URL(url);
      const ticket = this.tickets.get(pathname);
      if (!ticket) {
        const answer = await this.tickets.fetch(url);
        if (!answer) continue;
        if (!isStream(answer)) return answer;
        if (!answer.headers.get('SSE-Ticket') || new URL(answer.url).origin !== location.origin) return direct(source, 'no ticket', headers, signal);
        ({ url } = answer);   // it may have been led elsewhere
        continue;
      }
      const answer = await this.channel({ path: pathname + search, ticket, ids: [source.lastEventId, source.cursor] }, signal);
      if (answer instanceof Response) return answer;
      if (answer.direct) {
        source.detour = new Detour(answer.direct, '');
        return this.fetch(source, headers, signal);
      }
      // Refused, or led elsewhere: a ticket request finds out.
      this.tickets.forget(pathname);
      if (++refused > 2) return direct(source, 'ticket refused', headers, signal);
    }
    return this.alone(source, headers, signal);
  }

  /**
   * Where no carrier works.
   * @type {SSETransport}
   */
  async alone(source, headers, signal) {
    try {
      const response = await direct(source, 'step', headers, signal);
      if (response.status >= 500) this.stepUp();
      return response;
    } catch (error) {
      if (!signal.aborted) this.stepUp();   // then it was not for the carrier's sake
      throw error;
    }
  }

  /**
   * A channel's answer: a response, or why there is none.
   * @param {Omit<MuxWish, 'key'>} wish
   * @param {AbortSignal} signal
   * @returns {Promise<Response | MuxWord>}
   */
  channel(wish, signal) {
    return new Promise((resolve, reject) => {
      const key = `${++this.count} ${Math.random()}`;
      this.open.set(key, { ...wish, key, resolve, reject, controller: null });
      signal.addEventListener('abort', () => this.close(key));
      if (this.link?.leader) this.want(key);
      else this.join();
    });
  }

  join() {
    if (this.link) return;
    this.link = this.step === 'browser' ? new Election(`sse:${VERSION}:${this.url}`, this) : new Alone(this);
    this.link.join();
  }

  /** @param {string} key */
  want(key) {
    this.wanted.add(key);
    if (this.wanted.size === 1) queueMicrotask(() => {
      const wishes = [...this.wanted].flatMap(key => this.open.get(key) ?? []).map(({ key, path, ticket, ids }) => ({ key, path, ticket, ids }));
      this.wanted.clear();
      if (wishes.length) this.link?.ask({ open: wishes });
    });
  }

  /** @param {string} key */
  close(key) {
    if (this.open.delete(key) && !this.wanted.delete(key)) this.link?.ask({ close: key });
    this.leaveWhenIdle();
  }

  leaveWhenIdle() {
    // One that waits to come back stays: where this tab leads, the channels of others would have to move.
    const idle = () => !this.open.size && this.sources().every(({ readyState }) => readyState === SSESource.CLOSED);
    if (!this.open.size) setTimeout(() => { if (idle()) this.leave(); }, 1000);
  }

  leave() {
    const { link } = this;
    this.link = null;
    this.lost();
    link?.leave();
    this.wanted.clear();
  }

  /** This page is left. */
  exit() {
    this.leave();
    this.tickets.abort();
    this.pages?.close();
    this.pages = null;
  }

  // What the election, or this tab alone, says.

  lead() {
    this.carriers = new Carriers(this);
    this.follow();
  }

  /** Somebody new leads: what was open is open no more. */
  follow() {
    for (const [key, { controller }] of [...this.open]) {
      if (controller) this.hear(key, { moved: true });
      else this.want(key);
    }
  }

  /** Some of what was told to this tab is lost, or comes no more: all channels are to be opened anew. */
  missed() {
    for (const key of [...this.open.keys()]) this.hear(key, { moved: true });
  }

  lost() {
    this.carriers?.end();
    this.carriers = null;
  }

  /**
   * What this tab does for one that it leads.
   * @param {string} tab
   * @param {MuxAsked} asked
   */
  asked(tab, { open = [], close, check }) {
    for (const wish of open) this.carriers?.open(tab, wish);
    if (close) this.carriers?.close(close);
    if (check) this.carriers?.check();
  }

  /** @param {string} tab */
  left(tab) {
    this.carriers?.left(tab);
  }

  /** @param {string} tab */
  overflowed(tab) {
    this.carriers?.left(tab);
  }

  /** @param {string} reason */
  broken(reason) {
    this.stepDown(reason);
  }

  /**
   * What has come for a tab.
   * @param {string} tab
   * @param {MuxNews[]} news
   * @returns {Promise<void> | void}  where the tab has much to take, until it has
   */
  tell(tab, news) {
    return this.link?.tell(tab, news, news.reduce((sum, [, { bytes }]) => sum + (bytes?.length ?? 0), 0));
  }

  /** @param {MuxNews[]} news */
  told(news) {
    for (const [key, word] of news) this.hear(key, word);
  }

  /**
   * @param {string} key
   * @param {MuxWord} word
   */
  hear(key, word) {
    const { bytes, status = 0, type = '', stream = '', retry, lost = 0 } = word;
    if (word.down) return this.stepDown(word.down);
    const open = this.open.get(key);
    if (!open) return;
    if (bytes) return open.controller?.enqueue(bytes);
    if (word.cookie) return this.tickets.fetchCookie(new URL(open.path, location.href).href);
    if (status === 200) {
      if (this.downs && this.step === this.best) this.recovered();
      const body = new ReadableStream({ start: controller => { open.controller = controller; } });
      return open.resolve(new Response(body, { headers: { 'Content-Type': type, 'SSE-Stream': stream } }));
    }
    this.open.delete(key);
    if (open.controller) {
      if (word.end) open.controller.close();
      else open.controller.error(word.moved ? MOVED : word.direct ? new Detour(word.direct, word.away ? key : '') : new TypeError('network'));
    } else if (word.direct || word.ticket || status > 299 && status < 400) open.resolve(word);
    else if (status || lost) open.resolve(new Response(null, { status: status || lost, headers: { 'Content-Type': type, ...(retry && { 'Retry-After': retry }) } }));
    else open.reject(word.moved ? MOVED : new TypeError('network'));
  }

  /**
   * What there is does not work here.
   * @param {string} reason
   */
  stepDown(reason) {
    if (this.step === 'direct') return;
    // Those that this tab leads need not find out one after another.
    for (const tab of this.carriers?.tabs() ?? []) if (tab !== this.link?.me) this.tell(tab, [['', { down: reason }]]);
    this.reason = reason;
    this.downs++;
    this.go(this.step === 'browser' ? 'tab' : 'direct');
    console.debug(`[sse] ${this.step === 'tab' ? 'this tab has carriers of its own' : 'each stream has a connection of its own'}: ${reason}`);
    clearTimeout(this.retry);
    this.retry = setTimeout(() => this.stepUp(), Multiplexer.RETRY * Math.min(2 ** (this.downs - 1), 10));
  }

  /** Try the best way again, with one stream if there is no other. */
  stepUp() {
    clearTimeout(this.retry);
    if (this.step === this.best) return;
    this.go(this.best);
    this.sources().find(source => source.direct === 'step')?.connect();
  }

  recovered() {
    this.downs = 0;
    this.reason = '';
    for (const source of this.sources()) if (source.direct === 'step') source.connect();
  }

  /** @param {'browser' | 'tab' | 'direct'} step */
  go(step) {
    this.step = step;
    this.leave();
    this.missed();
  }

  check() {
    this.link?.check();
    this.link?.ask({ check: true });
  }
}

/**
 * A response of its own to a source.
 * @param {SSESource} source
 * @param {string} reason
 * @param {Record<string, string>} headers
 * @param {AbortSignal} signal
 */
function direct(source, reason, headers, signal) {
  source.direct = reason;
  console.debug(`[sse] direct: ${reason} ${source.url}`);
  // Another origin would have to allow the header.
  const ours = new URL(source.url).origin === location.origin;
  return fetch(source.url, { headers: ours ? { ...headers, 'SSE-Direct': reason } : headers, credentials: 'include', cache: 'no-store', signal });
}
