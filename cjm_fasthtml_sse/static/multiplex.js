// @ts-check
// All streams of the browser on one connection: each source has a channel of its own. One tab leads, as with a shared stream: it holds the connection, see carrier.js, and the others hand it
// their wishes by a BroadcastChannel. To a source, a channel is what `fetch` would bring; where there can be none, it does without.

const MOVED = Symbol('moved');     // the stream goes on elsewhere
const DIRECT = Symbol('direct');   // not by a channel

class Multiplexer {
  /**
   * @param {string} path
   * @param {string} tag  of the user's session
   */
  constructor(path, tag) {
    this.url = new URL(path, location.href).href;
    this.tag = tag;
    this.me = Math.random();
    this.count = 0;
    this.broken = '';        // why
    /** @type {Map<string, MuxOpen>} the channels of this tab */
    this.open = new Map();
    /** @type {Carriers | null} */
    this.carriers = null;    // where this tab leads
    this.leader = 0;         // who leads, 0: nobody knows
    /** @type {BroadcastChannel | null} */
    this.channel = null;
    /** @type {BroadcastChannel | null} */
    this.inbox = null;
    /** @type {Map<number, BroadcastChannel>} those of the tabs that this one leads */
    this.inboxes = new Map();
    /** @type {Set<number>} */
    this.watched = new Set();   // and who they are
    /** @type {(() => void) | undefined} */
    this.part = undefined;   // from the lock that tells others that this tab is there
    /** @type {(() => void) | undefined} */
    this.release = undefined;   // the lock
    this.queue = new AbortController();
    /** @type {number | undefined} */
    this.answer = undefined;
    this.watchdog = new Watchdog(() => this.request({ what: 'ping' }));
    this.watchdog.always = true;
    this.watchdog.timeout = 40000;
  }

  /**
   * As `fetch`, for an event stream.
   * @param {string} key     of its channel
   * @param {string} url
   * @param {string[]} ids   the last one, and without it where the page stands
   * @param {AbortSignal} signal
   * @returns {Promise<Response>}
   */
  fetch(key, url, ids, signal) {
    const { origin, pathname, search } = new URL(url);
    if (origin !== location.origin || this.broken) return Promise.reject(DIRECT);
    return new Promise((resolve, reject) => {
      this.open.set(key, { key, path: pathname + search, ids, resolve, reject, controller: null });
      signal.addEventListener('abort', () => {
        if (!this.open.delete(key)) return;
        this.send({ what: 'close', key });
        if (!this.open.size) setTimeout(() => { if (!this.open.size) this.leave(); }, 1000);
      });
      this.join();
      if (this.leader) this.request({ what: 'open', wishes: [{ key, path: pathname + search, ids }] });
    });
  }

  join() {
    if (this.channel) return;
    const channel = this.channel = new BroadcastChannel(`sse:${this.url}`);
    channel.onmessage = ({ data }) => { if (channel === this.channel) this.receive(data); };
    this.inbox = new BroadcastChannel(`sse:${this.url}:${this.me}`);
    this.inbox.onmessage = ({ data }) => this.hear(data);
    this.send({ what: 'fresh' });
    this.ask({ ifAvailable: true });
  }

  leave() {
    this.stopLeading();
    this.send({ what: 'bye' });
    this.settled();
    this.watchdog.stop();
    this.queue.abort();
    this.channel?.close();
    this.inbox?.close();
    this.channel = this.inbox = null;
    for (const free of [this.part, this.release]) free?.();
    this.part = this.release = undefined;
    this.leader = 0;
  }

  stopLeading() {
    this.carriers?.end();
    this.carriers = null;
    for (const inbox of this.inboxes.values()) inbox.close();
    this.inboxes.clear();
    this.watched.clear();
  }

  /**
   * Ask for the lock. Who has it leads.
   * @param {LockOptions} options
   */
  async ask(options) {
    const { channel } = this;
    try {
      await navigator.locks.request(`sse:${this.tag}:${this.url}`, options, lock => channel !== this.channel ? undefined : lock ? this.lead() : this.follow());
    } catch (error) {
      if (channel !== this.channel || options.signal?.aborted) return;
      this.stopLeading();
      if (/** @type {Error} */ (error).name === 'AbortError') return this.follow();   // taken away
      this.breakDown('no locks');
    }
  }

  /** @returns {Promise<void>} */
  lead() {
    this.settled();
    this.carriers = new Carriers(this);
    this.watchdog.stop();
    this.led(this.me);
    this.send({ what: 'lead' });
    return new Promise(resolve => { this.release = resolve; });
  }

  /**
   * What has come for a tab.
   * @param {number} tab
   * @param {MuxNews[]} news
   */
  tell(tab, news) {
    if (tab === this.me) return this.hear(news);
    const inbox = this.inboxes.get(tab) ?? new BroadcastChannel(`sse:${this.url}:${tab}`);
    this.inboxes.set(tab, inbox);
    inbox.postMessage(news);
  }

  /** Wait for the lock. */
  follow() {
    this.queue = new AbortController();
    this.ask({ signal: this.queue.signal });
    this.watchdog.start(true);
    if (this.part) return this.request({ what: 'hello' });
    const { channel } = this;
    navigator.locks.request(`sse:tab:${this.me}`, () => new Promise(part => {
      if (channel !== this.channel) return part(undefined);
      this.part = () => part(undefined);
      this.request({ what: 'hello' });
    }));
  }

  /**
   * Somebody new leads: what was open is open no more.
   * @param {number} who
   */
  led(who) {
    this.leader = who;
    const wishes = [];
    for (const { key, path, ids, controller } of [...this.open.values()]) {
      if (!controller) wishes.push({ key, path, ids });
      else this.told(key, { moved: true });
    }
    if (wishes.length) this.request({ what: 'open', wishes });
  }

  /**
   * Ask the leader. One that does not answer loses the lock.
   * @param {MuxTold} told
   */
  request(told) {
    if (this.carriers) return this.serve({ ...told, who: this.me });
    this.send(told);
    this.answer ??= setTimeout(() => {
      this.settled();
      this.queue.abort();
      this.ask({ steal: true });
    }, 2000 + 1000 * Math.random());   // not all at once
  }

  settled() {
    clearTimeout(this.answer);
    this.answer = undefined;
  }

  /** @param {MuxTold} told */
  send(told) {
    if (this.carriers) this.serve({ ...told, who: this.me });
    this.channel?.postMessage({ ...told, tag: this.tag, who: this.me });
  }

  /** @param {MuxTold} told  by another tab */
  receive(told) {
    const { what, who = 0 } = told;
    if (told.tag !== this.tag) {
      if (what === 'fresh') this.carriers?.ask(true);   // somebody else is logged in now
    } else if (what === 'lead') {
      if (this.carriers || !this.part) return;
      this.settled();
      this.watchdog.heard(true);
      if (who !== this.leader) this.led(who);
    } else if (what === 'broken') this.breakDown(told.reason ?? '');
    else if (this.carriers) this.serve(told);
  }

  /**
   * What the leader does for a tab.
   * @param {MuxTold} told
   */
  serve({ what, who = 0, key = '', wishes = [] }) {
    const { carriers } = this;
    if (!carriers) return;
    if (what === 'open') for (const wish of wishes) carriers.open(who, wish);
    else if (what === 'close') carriers.close(key);
    else if (what === 'bye') this.left(carriers, who);
    else if (what === 'check') carriers.check();
    if (who === this.me) return;
    if ((what === 'hello' || what === 'open') && !this.watched.has(who)) {
      // A tab that is gone without a word leaves its lock.
      this.watched.add(who);
      navigator.locks.request(`sse:tab:${who}`, () => {
        if (carriers !== this.carriers) return;
        this.watched.delete(who);
        this.left(carriers, who);
      });
    }
    if (what === 'hello' || what === 'open' || what === 'ping') this.send({ what: 'lead' });
  }

  /**
   * A tab has gone.
   * @param {Carriers} carriers
   * @param {number} tab
   */
  left(carriers, tab) {
    carriers.left(tab);
    this.inboxes.get(tab)?.close();
    this.inboxes.delete(tab);
  }

  /** @param {MuxNews[]} news */
  hear(news) {
    this.settled();
    if (!this.carriers) this.watchdog.heard(false);
    for (const [key, word] of news) this.told(key, word);
  }

  /**
   * @param {string} key
   * @param {MuxWord} word
   */
  told(key, { bytes, status, type = '', retry, ...last }) {
    const open = this.open.get(key);
    if (!open) return;
    if (bytes) return open.controller?.enqueue(bytes);
    if (status === 200) {
      const body = new ReadableStream({ start: controller => { open.controller = controller; } });
      return open.resolve(new Response(body, { headers: { 'Content-Type': type } }));
    }
    this.open.delete(key);
    if (status) return open.resolve(new Response(null, { status, headers: { 'Content-Type': type, ...(retry ? { 'Retry-After': retry } : {}) } }));
    if (last.end) return open.controller?.close();
    const error = last.moved ? MOVED : last.direct ? DIRECT : new TypeError('network');
    if (open.controller) open.controller.error(error);
    else if (last.lost) open.resolve(new Response(null, { status: last.lost, headers: retry ? { 'Retry-After': retry } : {} }));
    else open.reject(error);
  }

  /**
   * Streams go back to sharing by URL.
   * @param {string} reason
   */
  breakDown(reason) {
    if (this.broken) return;
    this.broken = reason;
    console.warn(`[sse] streams get no common connection (${reason}), tabs share by address where they can`);
    this.channel?.postMessage({ what: 'broken', reason, tag: this.tag });
    const keys = [...this.open.keys()];
    this.leave();
    for (const key of keys) this.told(key, { direct: true });
  }

  check() {
    this.send({ what: 'check' });
    if (!this.carriers && this.leader) this.request({ what: 'ping' });
  }
}

/** Has a channel where there can be one, and shares where not. */
class ChannelSource extends SharedSource {
  /**
   * @param {string} url
   * @param {ConstructorParameters<typeof SharedSource>[1]} options
   * @param {Multiplexer} mux
   */
  constructor(url, options, mux) {
    super(url, options);
    this.mux = mux;
    this.shares = false;
    this.key = '';           // of the last channel
    this.sharedAlarm = this.watchdog.alarm;
    this.watchdog.always = false;
    this.watchdog.alarm = () => this.lost('silence');
  }

  async connect() {
    if (this.shares || this.mux.broken) return this.share();
    return SSESource.prototype.connect.call(this);
  }

  share() {
    if (!this.shares) {
      this.shares = this.watchdog.always = true;
      this.watchdog.alarm = this.sharedAlarm;
    }
    return super.connect();
  }

  /** @type {SSESource['fetch']} */
  fetch(headers, signal) {
    this.key = `${this.mux.me} ${++this.mux.count}`;
    return this.mux.fetch(this.key, this.url, [this.lastEventId, this.cursor], signal);
  }

  /** @type {SSESource['stop']} */
  stop(state, reason, status) {
    super.stop(state, reason, status);
    if (this.shares) this.mux.send({ what: 'close', key: this.key });   // if it was sent away, there is room for another
  }

  /** @type {SSESource['failed']} */
  failed(error) {
    if (error === DIRECT) this.share();
    else if (error === MOVED) this.connect();
    else super.failed(error);
  }

  check() {
    if (this.shares) super.check();
    else SSESource.prototype.check.call(this);
  }
}
