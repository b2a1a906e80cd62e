// @ts-check
// One connection for all tabs of the browser. The sources of one URL are a group. One leads: it holds a Web Lock and the connection, here called a line, and tells the others what it
// hears, by a BroadcastChannel. The lock passes on when its holder closes, is left or crashes; from one that gives no answer it is taken.
//
// - For a page that loads the leader opens a second line, from the id that the page knows, and soon all move there. So the page sees what a connection of its own would have shown it,
//   as the user that the browser is now.
// - Who comes later, or comes back, is told what was missed. Where the leader can't know, it opens a second line until who asked is even.
// - Second lines take turns over all URLs: a browser has one connection more than it needs, at most. Two lines become one where they meet, at an id that
//   both know; without ids, when nothing is on its way any more.

const REPLAY = 1000;     // messages that a line keeps for those who come later
// Milliseconds
const OVERLAP = 250;     // for what is on its way on the other line
const QUIET = 500;       // then a line has said what it had to say
const PATIENCE = 5000;   // with a second line that gets no answer
const LIMIT = 60000;     // for two lines that never meet

class SharedLine extends SSESource {
  /**
   * @param {SharedSource} owner
   * @param {string} id
   * @param {number} fresh  when the page was loaded that it is for
   * @param {string} cursor
   */
  constructor(owner, id, fresh, cursor) {
    super(owner.url, { lastEventId: id, cursor, delay: owner.delay ?? undefined });
    this.owner = owner;
    this.fresh = fresh;
    this.key = Math.random();
    this.told = 0;           // messages that went to the others
    this.asked = Infinity;
    this.since = 0;          // open
    this.news = 0;           // a message with an id
    this.until = Date.now() + LIMIT;
    this.patience = PATIENCE;
    this.came = false;       // a chunk
    this.done = () => {};    // with its turn
    /** @type {SharedMessage[]} */
    this.recent = [];
    /** @type {SharedMessage[]} */
    this.brought = [];       // with an id, by earlier connections too
    this.began = this.before = id;   // where this is from, and the id before the recent ones
    this.watchdog.learn(owner.watchdog);
  }

  connect() {
    this.before = this.lastEventId;
    this.began = this.before || this.cursor;
    this.recent = [];
    this.asked = Date.now();
    this.owner.asks(this);
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
    if (id) this.cursor = '';
    if (data === null) {
      if (!own) return;
      type = HEARTBEAT;   // an id alone is no more
    }
    const { owner, recent, brought } = this;
    if (own && type !== HEARTBEAT) {
      this.news = Date.now();
      owner.repeats ||= recent.some(message => message.own && message.id === id && message.type === type);
    }
    const message = { type, data, id, own: own && !owner.repeats };
    if (type !== HEARTBEAT || own && id !== recent.at(-1)?.id) recent.push(message);
    if (recent.length > REPLAY) this.before = recent.shift()?.id ?? '';
    if (type !== HEARTBEAT && message.own && brought.push(message) > REPLAY) brought.shift();
    owner.post({ what: 'message', line: this.key, count: ++this.told, messages: [message] });
    owner.move(false);
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
   * @param {string} cursor  without an id
   */
  after(id, fresh, cursor = '') {
    // A page must be served by a request that is younger than itself.
    if (fresh) return (id || cursor) === this.began && this.asked >= fresh && this.recent.length < REPLAY ? this.recent : null;
    if (cursor && !this.since) return cursor === this.began ? this.recent : null;
    const [epoch] = this.lastEventId.split(/[:-]/);
    id ||= cursor.split(' ').find(each => epoch && each.startsWith(epoch)) ?? '';
    // An element that a message brings comes to all tabs at about the same time.
    if (!id || this.owner.repeats) return Date.now() - this.since < 2000 ? this.recent : [];
    const at = this.recent.map(message => message.own && message.id === id).lastIndexOf(true);
    return at >= 0 || id === this.before ? this.recent.slice(at + 1) : null;
  }
}

class SharedSource extends SSESource {
  /**
   * @param {string} url
   * @param {{lastEventId?: string, cursor?: string, fresh?: number, tag?: string} & SSESettings} options
   */
  constructor(url, options) {
    super(url, options);
    this.me = Math.random();
    this.tag = options.tag ?? '';
    this.fresh = options.fresh ?? 0;
    this.line = 0;           // that is followed
    this.count = 0;          // of its messages
    /** @type {SharedLine | null} */
    this.own = null;         // where this source leads
    /** @type {SharedLine[]} */
    this.seconds = [];       // the first is open, or about to be
    /** @type {Set<string>} */
    this.seen = new Set();   // messages, by id and type
    this.repeats = false;    // ids come again on one connection, and tell nothing
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
    const channel = this.channel = new BroadcastChannel(`sse:${this.tag}:${this.url}`);
    channel.onmessage = ({ data }) => { if (channel === this.channel) this.hear(data); };
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
    const line = this.own = new SharedLine(this, this.lastEventId, 0, this.cursor);
    this.line = line.key;
    this.count = 0;
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
    this.request({ what: 'want', id: this.lastEventId, fresh: this.fresh, cursor: this.cursor });
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
    this.channel.postMessage(told);
    this.hear(told);
  }

  /** @param {Told} told */
  hear(told) {
    const { own } = this;
    const { what, who, line = 0, count = 0, id = '', messages = [], detail } = told;
    if (what === 'lead' && !own) {
      this.answered();
      if (this.line && !this.fresh && id === this.lastEventId) [this.line, this.count] = [line, 0];
      else this.want();
    } else if (what === 'pong' && !own && this.line && !told.lines?.includes(this.line)) this.want();
    else if (what === 'here' && who === this.me && !this.line) {
      [this.line, this.count] = [line, count];
      messages.forEach(this.show, this);
      this.lastEventId ||= id;
    } else if (what === 'message' && line === this.line) {
      // To a page that a debugger has stopped browsers pass nothing on, and keep nothing.
      if (count !== ++this.count && this.lastEventId) this.want();
      else messages.forEach(this.show, this);
    }
    if (line && line === this.line) {
      this.answered();
      this.watchdog.heard(what === 'beat');
      if (told.to) {
        [this.line, this.count] = [told.to, count];
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

  /** @param {SharedMessage} message */
  show({ type, data, id, own }) {
    if (!this.channel && this.post !== this.hear) return;   // closed by a listener
    if (own) {
      this.lastEventId = id;
      this.seen.add(`${id}\n${type}`);
      if (this.seen.size > 2000) this.seen.delete(this.seen.keys().next().value ?? '');
    }
    if (data !== null) this.dispatchEvent(new MessageEvent(type, { data, lastEventId: id, origin: location.origin }));
    if (id) this.cursor = '';
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
  serve({ who, id = '', fresh = 0, cursor }) {
    const [own, ...seconds] = [/** @type {SharedLine} */ (this.own), ...this.seconds];
    let line = [own, ...seconds].find(line => line.after(id, fresh, cursor));
    if (!line && this.seconds.push(line = new SharedLine(this, id, fresh, cursor ?? '')) === 1) this.second();
    const { key, told, lastEventId, state, reason } = line;
    this.post({ what: 'here', who, line: key, count: told, id: lastEventId, messages: line.after(id, fresh, cursor) ?? [], detail: { state, reason } });
  }

  /** Open the next second line, when it is its turn. */
  second() {
    const [line] = this.seconds;
    if (!line) return;
    const begin = () => new Promise(resolve => {
      if (!this.own || line !== this.seconds[0]) return resolve(undefined);
      line.done = () => resolve(undefined);
      line.connect();
    });
    // A tab whose turn it is may hang.
    navigator.locks.request('sse:turn', { signal: AbortSignal.timeout(2 * PATIENCE) }, begin).catch(begin);
  }

  /**
   * @param {SharedLine} line
   * @param {SSEStateDetail} detail
   */
  changed(line, detail) {
    this.post({ what: 'state', line: line.key, detail });
    const { own, seconds: [second] } = this;
    if (!own || !second || line !== own && line !== second) return;
    if (detail.state === 'active' && second.readyState === SSESource.OPEN) this.moveIn(2 * QUIET);   // if it has nothing to say
    else if (second.readyState === SSESource.CLOSED) {
      this.drop(second);
      // Who is refused may have logged out.
      if (detail.state === 'error') own.reconnect(detail.reason);
    } else if (line === second) second.done();   // lost: it waits by itself
  }

  /** @param {SharedLine} line */
  asks(line) {
    if (line !== this.seconds[0]) return;
    const { timers } = this;
    clearTimeout(timers.move);
    clearTimeout(timers.patience);
    timers.patience = setTimeout(() => {
      if (line !== this.seconds[0]) return;
      line.done();
      if (line.readyState !== SSESource.CONNECTING || line.timer !== undefined) return;
      // No answer: the others first. A slow server is given more time then.
      line.leave();
      line.patience *= 2;
      this.seconds.push(...this.seconds.splice(0, 1));
      this.second();
    }, line.patience);
  }

  /** @param {SharedLine} line */
  heardOn(line) {
    const { own, seconds: [second] } = this;
    if (!own || second?.readyState !== SSESource.OPEN) return;
    const first = line === second && !second.came;
    if (first) second.came = true;
    if (first || this.compares(own)) this.moveIn(first ? OVERLAP : QUIET);
    this.move(false);
  }

  /** @param {number} ms */
  moveIn(ms) {
    const [{ fresh, until }] = this.seconds;
    clearTimeout(this.timers.move);
    // Where a replay is awaited there is no hurry.
    this.timers.move = setTimeout(() => this.move(true), Math.min(fresh ? ms : 4 * ms, until - Date.now()));
  }

  /**
   * Do ids tell how far a line is?
   * @param {SharedLine} line
   */
  compares(line) {
    return line.lastEventId !== '' && !this.repeats;
  }

  /**
   * Where the last of the messages is that came on another line too; -1: none did.
   * @param {SharedMessage[]} messages
   * @param {SharedMessage[]} others
   */
  shared(messages, others) {
    return messages.map(({ type, data }) => type !== HEARTBEAT && others.some(other => other.type === type && other.data === data)).lastIndexOf(true);
  }

  /**
   * Make one line of two.
   * @param {boolean} rest  nothing is on its way any more
   */
  move(rest) {
    const { own, seconds: [second] } = this;
    if (!own || !second) return;
    // Who lags behind may be even before its line is open.
    if ((rest || second.fresh) && !(second.readyState === SSESource.OPEN && (rest || second.came))) return;
    const [from, to] = second.fresh ? [own, second] : [second, own];
    // What the one has brought last, the other one has brought too, or begins after it.
    let messages = this.compares(from) ? to.after(from.lastEventId, 0) : null;
    if (!messages && !rest) return;
    if (!messages) {
      // What came on both lines was told, and what came before it is older.
      messages = to.recent.slice(this.shared(to.recent, from.recent) + 1);
      if (this.compares(own) && Date.now() < second.until) {
        // A line that is lost, or half-open and does not know, lacks what came before the other one began, or since.
        if (own.readyState !== SSESource.OPEN || own.watchdog.heardAt < second.since) {
          if (own.readyState === SSESource.OPEN || own.timer !== undefined) own.connect();
          return;
        }
        // One that stopped half way would bring again what the other one has brought since.
        const met = this.shared(from.brought, to.brought), has = second.news > second.asked, lacks = own.news > second.asked;
        if (met >= 0 && met < from.brought.length - 1) return to.connect();
        if (met < 0 && (second.fresh ? lacks && !has : own.brought.length && (lacks || has))) return second.connect();
      }
    }
    this.own = to;
    this.post({ what: 'move', line: from.key, to: to.key, count: to.told, messages, detail: { state: to.state, reason: to.reason } });
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
    this.seconds.shift();
    this.second();
  }
}
