// @ts-check
// One connection for all tabs of the browser. The sources of one URL are a group. One leads: it holds a Web Lock and the connection, here called a line, and tells the others what it
// hears, by a BroadcastChannel. The lock passes on when its holder closes, is left or crashes; from one that gives no answer it is taken.
//
// - For a page that loads the leader opens a second line, from the id that the page knows, and soon all move there. So the page sees what a connection of its own would have shown it,
//   as the user that the browser is now.
// - Who comes later, or comes back, is told what was missed. Where the leader can't know, it opens a second line until who asked is even.
// - Second lines take turns over all URLs: a browser has one connection more than it needs, at most. Ids already seen are not shown again.

const OVERLAP = 250;   // milliseconds for what is on its way on the former line

class SharedLine extends SSESource {
  /**
   * @param {SharedSource} owner
   * @param {string} id
   * @param {number} fresh  when the page was loaded that it is for
   */
  constructor(owner, id, fresh) {
    super(owner.url, { lastEventId: id, delay: owner.delay ?? undefined });
    this.owner = owner;
    this.fresh = fresh;
    this.key = Math.random();
    this.asked = Infinity;
    this.since = 0;          // open
    this.came = false;       // a chunk
    this.done = () => {};    // with its turn
    /** @type {SharedMessage[]} */
    this.recent = [];
    this.began = this.before = id;   // the id before all, and before the recent ones
    /** @type {SharedMessage[] | null} */
    this.held = null;        // what came while there are two lines
    this.watchdog.learn(owner.watchdog);
  }

  connect() {
    this.began = this.before = this.lastEventId;
    this.recent = [];
    this.asked = Date.now();
    return super.connect();
  }

  arrived() {
    this.owner.heardOn(this);
  }

  beat() {
    super.beat();
    this.owner.post({ what: 'beat', line: this.key });
  }

  /** @type {SSESource['deliver']} */
  deliver(type, data, id, own) {
    this.lastEventId = id;
    if (data === null && !own) return;
    const message = { type, data, id, own };
    if (type !== HEARTBEAT || own && id !== this.recent.at(-1)?.id) this.recent.push(message);
    if (this.recent.length > 100) this.before = this.recent.shift()?.id ?? '';
    this.held?.push(message);
    this.owner.post({ what: 'message', line: this.key, messages: [message] });
    if (own) this.owner.reached(this, id);
  }

  /** @type {SSESource['tell']} */
  tell(state, reason, status, retryIn) {
    super.tell(state, reason, status, retryIn);
    if (state === 'active') this.since = Date.now();
    this.owner.changed(this, { state, reason, status, retryIn });
  }

  /**
   * What a source has to be told to follow from an id; `null`: nobody knows.
   * @param {string} id
   * @param {number} fresh
   */
  after(id, fresh) {
    // A page must be served by a request that is younger than itself.
    if (fresh) return id === this.began && this.asked >= fresh && this.recent.length < 100 ? this.recent : null;
    // An element that a message brings comes to all tabs at about the same time.
    if (!id) return Date.now() - this.since < 2000 ? this.recent : [];
    const at = this.recent.map(message => message.own && message.id === id).lastIndexOf(true);
    return at >= 0 || id === this.before ? this.recent.slice(at + 1) : null;
  }
}

class SharedSource extends SSESource {
  /**
   * @param {string} url
   * @param {{lastEventId?: string, fresh?: number, tag?: string} & SSESettings} options
   */
  constructor(url, options) {
    super(url, options);
    this.me = Math.random();
    this.tag = options.tag ?? '';
    this.fresh = options.fresh ?? 0;
    this.line = 0;           // that is followed
    /** @type {SharedLine | null} */
    this.own = null;         // where this source leads
    /** @type {SharedLine[]} */
    this.seconds = [];       // the first is open, or about to be
    /** @type {Map<string, number>} */
    this.seen = new Map();   // ids, and messages by id and type, with their line
    this.see(this.lastEventId);
    /** @type {BroadcastChannel | null} */
    this.channel = null;
    /** @type {(() => void) | undefined} */
    this.release = undefined;   // the lock
    this.queue = new AbortController();
    /** @type {Record<string, number | undefined>} */
    this.timers = {};
    this.watchdog.always = true;   // what falls silent is the leader
    this.watchdog.alarm = () => { if (!this.own) this.request({ what: 'ping' }); };
  }

  /** @param {SSESettings} settings */
  configure(settings) {
    super.configure(settings);
    if (!this.timers) return;   // within the constructor
    this.own?.configure({ ...settings, reconnect: undefined });
    if (settings.reconnect === false && this.state === 'reconnecting') this.stop('disconnected', this.reason);
  }

  async connect() {
    this.leave();
    this.suspended = false;
    const channel = this.channel = new BroadcastChannel(`sse:${this.url}`);
    channel.onmessage = ({ data }) => { if (channel === this.channel) this.receive(data); };
    await this.ask({ ifAvailable: true });
  }

  leave() {
    super.leave();
    this.dropLines();
    for (const timer of Object.values(this.timers)) clearTimeout(timer);
    this.timers = {};
    this.queue.abort();
    this.channel?.close();
    this.channel = null;
    this.release?.();
    this.release = undefined;
    this.line = 0;
  }

  dropLines() {
    for (const line of [this.own, ...this.seconds]) {
      line?.leave();
      line?.done();
    }
    this.own = null;
    this.seconds = [];
  }

  /** @type {SSESource['stop']} */
  stop(state, reason, status) {
    // Who is next hears first that this is the end.
    if (this.release) setTimeout(this.release, 100);
    this.release = undefined;
    this.fresh = 0;
    super.stop(state, reason, status);
  }

  reconnect(reason = 'asked to reconnect') {
    if (this.line) this.post({ what: 'again', detail: { state: 'reconnecting', reason } });
    else super.reconnect(reason);
  }

  check() {
    if (this.own) this.own.check();
    else if (this.line) this.request({ what: 'ping', eager: true });
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
      if (/** @type {Error} */ (error).name === 'AbortError') {   // taken away
        this.dropLines();
        return this.follow();
      }
      // Locks are forbidden, as in a frame without storage: there is nobody to share with.
      channel?.close();
      this.post = this.hear;
      this.lead();
    }
  }

  /** @returns {Promise<void>} */
  lead() {
    this.answered();
    const line = this.own = new SharedLine(this, this.lastEventId, 0);
    this.line = line.key;
    this.post({ what: 'lead', line: line.key, id: line.began, fresh: this.fresh });
    this.fresh = 0;
    line.connect();
    return new Promise(resolve => { this.release = resolve; });
  }

  /** Wait for the lock. */
  follow() {
    this.queue = new AbortController();
    this.ask({ signal: this.queue.signal });
    this.watchdog.start(false);
    this.want();
  }

  want() {
    this.line = 0;
    this.request({ what: 'want', id: this.lastEventId, fresh: this.fresh });
  }

  /**
   * Ask the leader. One that does not answer loses the lock.
   * @param {Told} told
   */
  request(told) {
    this.post({ ...told, who: this.me });
    this.timers.answer ??= setTimeout(() => {
      this.answered();
      this.queue.abort();
      this.ask({ steal: true });
    }, 2000 + 1000 * Math.random());   // not all at once
  }

  answered() {
    clearTimeout(this.timers.answer);
    this.timers.answer = undefined;
  }

  /** @param {Told} told */
  post(told) {
    if (!this.channel) return;
    this.channel.postMessage({ ...told, tag: this.tag });
    this.hear(told);
  }

  /** @param {Told} told */
  receive(told) {
    if (told.tag === this.tag) this.hear(told);
    // Somebody else is logged in now.
    else if (told.fresh && told.tag && this.tag) this.own?.reconnect('another session');
  }

  /** @param {Told} told */
  hear(told) {
    const { own } = this;
    const { what, who, line = 0, id = '', messages = [], detail } = told;
    if (what === 'lead' && !own) {
      this.answered();
      if (this.line && !this.fresh && this.knows(id)) this.line = line;
      else this.want();
    } else if (what === 'pong' && !own && this.line && !told.lines?.includes(this.line)) this.want();
    else if (what === 'here' && who === this.me && !this.line) {
      this.line = line;
      messages.forEach(this.show, this);
      this.lastEventId ||= id;
    } else if (what === 'message' && line === this.line) messages.forEach(this.show, this);
    if (line && line === this.line) {
      this.answered();
      this.watchdog.heard(what === 'beat');
      if (told.to) {
        this.line = told.to;
        // Up to what is known here, a replay is for others.
        const known = messages.map(({ own, id, type }) => own && this.seen.has(`${id}\n${type}`)).lastIndexOf(true);
        messages.slice(known + 1).forEach(this.show, this);
      }
      if (detail) this.heed(detail);
    }
    if (!own || who === this.me) return;
    if (what === 'want') this.serve(told);
    else if (what === 'again') own.reconnect(detail?.reason);
    else if (what === 'ping') {
      this.post({ what: 'pong', line: own.key, lines: [own, ...this.seconds].map(({ key }) => key) });
      if (told.eager) own.check();
      else own.watchdog.check();
    }
  }

  /** @param {string} id */
  knows(id) {
    return id ? this.seen.has(id) : !this.lastEventId;
  }

  /** @param {string} key */
  see(key) {
    if (key) this.seen.set(key, this.line);
    if (this.seen.size > 4000) this.seen.delete(this.seen.keys().next().value ?? '');
  }

  /** @param {SharedMessage} message */
  show({ type, data, id, own }) {
    if (!this.channel && this.post !== this.hear) return;   // closed by a listener
    if (own) {
      const before = this.seen.get(`${id}\n${type}`);
      if (before !== undefined && type !== HEARTBEAT) {
        if (before !== this.line) return;
        this.seen.clear();   // ids that come again on one line tell nothing
      }
      this.see(id);
      this.see(`${id}\n${type}`);
      this.lastEventId = id;
    }
    if (data !== null) this.dispatchEvent(new MessageEvent(type, { data, lastEventId: this.lastEventId, origin: location.origin }));
  }

  /** @param {SSEStateDetail} detail  of the line that is followed */
  heed({ state, reason, status, retryIn }) {
    if (state === 'active') {
      this.fresh = 0;
      if (this.state === state) return;
      this.readyState = SSESource.OPEN;
      this.tell(state, this.reason ? 'reconnected' : 'connected');
      this.dispatchEvent(new Event('open'));
    } else if (state === 'reconnecting') {
      if (retryIn && !this.autoReconnect) return this.stop('disconnected', reason, status);
      this.readyState = SSESource.CONNECTING;
      this.tell(state, reason, status, retryIn);
      if (retryIn) this.dispatchEvent(new Event('error'));
    } else if (state !== 'connecting') this.stop(state, reason, status);
  }

  /**
   * Somebody wants to follow.
   * @param {Told} told
   */
  serve({ who, id = '', fresh = 0 }) {
    const [own, ...seconds] = [/** @type {SharedLine} */ (this.own), ...this.seconds];
    let line = [own, ...seconds].find(line => line.after(id, fresh));
    if (!line && fresh && seconds[0]?.began === id && !seconds[0].came) {
      [line] = seconds;
      line.connect();   // it has nothing to lose
    }
    if (!line && this.seconds.push(line = new SharedLine(this, id, fresh)) === 1) this.second();
    const { key, lastEventId, state, reason } = line;
    this.post({ what: 'here', who, line: key, id: lastEventId, messages: line.after(id, fresh) ?? [], detail: { state, reason } });
  }

  /** Open the next second line, when it is its turn. */
  second() {
    const [line] = this.seconds;
    if (!line) return;
    const begin = () => new Promise(resolve => {
      if (!this.own || line !== this.seconds[0]) return resolve(undefined);
      line.done = () => resolve(undefined);
      setTimeout(line.done, 3000);   // a slow server keeps nobody waiting
      line.held = [];
      this.own.held = [];
      line.connect();
    });
    // A tab whose turn it is may hang.
    navigator.locks.request('sse:turn', { signal: AbortSignal.timeout(5000) }, begin).catch(begin);
  }

  /**
   * @param {SharedLine} line
   * @param {SSEStateDetail} detail
   */
  changed(line, detail) {
    this.post({ what: 'state', line: line.key, detail });
    const { own, seconds: [second] } = this;
    if (!own || !second || line !== own && line !== second) return;
    if (detail.state === 'active' && second.since) this.moveIn(1000);   // if it has nothing to say
    else if (line === second && second.readyState === SSESource.CLOSED) {
      this.drop(second);
      // Who is refused may have logged out.
      if (detail.state === 'error') own.reconnect(detail.reason);
    }
  }

  /** @param {SharedLine} line */
  heardOn(line) {
    const { own } = this;
    if (!own || line !== this.seconds[0] || line.fresh && line.came) return;
    line.came = true;
    if (line.fresh && line.began && line.began === own.lastEventId) this.move();   // nothing lies between
    else this.moveIn(OVERLAP);
  }

  /**
   * Who lagged behind is even where its line brings what the other one has brought.
   * @param {SharedLine} line
   * @param {string} id
   */
  reached(line, id) {
    if (line === this.seconds[0] && !line.fresh && this.own?.held?.some(message => message.own && message.id === id)) this.move();
  }

  /** @param {number} ms */
  moveIn(ms) {
    clearTimeout(this.timers.move);
    this.timers.move = setTimeout(() => this.move(), ms);
  }

  /** Make one line of two. */
  move() {
    const { own, seconds: [second] } = this;
    if (!own?.held || !second?.held || second.fresh && own.state !== 'active') return;   // then those who follow it miss nothing
    const [from, to] = second.fresh ? [own, second] : [second, own];
    const messages = /** @type {SharedMessage[]} */ (to.held);
    // Without ids: what came on both lines was told, and what came before it is older.
    const told = from.held?.map(({ type, data }) => type + data);
    const known = messages.map(({ type, data, own }) => !own && told?.includes(type + data)).lastIndexOf(true);
    this.own = to;
    this.post({ what: 'move', line: from.key, to: to.key, messages: messages.slice(known + 1), detail: { state: to.state, reason: to.reason } });
    this.drop(second, from);
  }

  /**
   * @param {SharedLine} second
   * @param {SharedLine} line    one of the two
   */
  drop(second, line = second) {
    clearTimeout(this.timers.move);
    line.leave();
    second.done();
    second.held = null;
    if (this.own) this.own.held = null;
    if (this.seconds[0] === second) this.seconds.shift();
    this.second();
  }
}
