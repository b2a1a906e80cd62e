// @ts-check
// One connection for all tabs of the browser. The sources of one URL, in whatever tabs, are a group. One of them leads: it holds a Web Lock and the connection, here called the line,
// and tells the others by a BroadcastChannel what it hears.
//
// - The lock passes on when its holder closes, is left or crashes. From one that gives no sign of life it is taken.
// - A page that loads opens a line of its own, as its own user, and sees what that begins with. At its first chunk, or a second after its 200, all move to it, and the former one is
//   dropped. Ids already seen are not shown again. Such openings take turns, so a browser has one connection more than it needs, at most.
// - Who comes later, or comes back, joins what is open. Where the leader can't tell what was missed, it opens a line as a page that loads does.

/**
 * What sources tell each other:
 * `hello`, a page loads; `join`, what is open?; `here`, the answer; `lead`, I lead and connect; `open`, move to this line; `message` or `beat`, heard on a line; `state` of a line;
 * `drop` all lines but this; `bye`, nothing more comes on this line; `again`, connect anew; `ping`, is anybody there?; `pong`, yes.
 * @typedef {object} Told
 * @property {'hello' | 'join' | 'here' | 'lead' | 'open' | 'message' | 'beat' | 'state' | 'drop' | 'bye' | 'again' | 'ping' | 'pong'} what
 * @property {string} [tag]          the session of the page
 * @property {number} [who]          the source that asks, or that is answered
 * @property {number} [line]
 * @property {string} [id]           of a message, of who wants to join, or where a line began
 * @property {boolean} [own]         the id came with this message
 * @property {string} [type]
 * @property {string | null} [data]
 * @property {number} [asked]        when the line was asked for
 * @property {boolean} [replaces]    the line takes the place of another one
 * @property {boolean} [eager]
 * @property {boolean} [sure]        all was told
 * @property {Told[] | null} [missed]  messages; `null`: nobody knows which
 * @property {SSEStateDetail} [detail]
 */

/** The connection of a group, or one that is about to become it. */
class SharedLine extends SSESource {
  /** @param {SharedSource} owner */
  constructor(owner) {
    super(owner.url, { lastEventId: owner.lastEventId, delay: owner.delay ?? undefined });
    this.owner = owner;
    this.watchdog.learn(owner.guard);
    this.key = Math.random();
    this.asked = this.since = 0;
    this.began = '';                        // the id that it was asked for with
    /** @type {Told[]} */ this.recent = []; // the newest messages
    this.before = this.lastEventId;         // the id before these
  }

  connect() {
    this.began = this.lastEventId;
    this.asked = Date.now();
    return super.connect();
  }

  arrived() {
    this.owner.move(this);
  }

  beat() {
    super.beat();
    this.owner.post({ what: 'beat', line: this.key });
  }

  /** @type {SSESource['deliver']} */
  deliver(type, data, id, own) {
    this.lastEventId = id;
    if (data === null && !own) return;
    /** @type {Told} */
    const message = { what: 'message', line: this.key, type, data, id, own };
    if (type !== HEARTBEAT || own && id !== this.recent.at(-1)?.id) this.recent.push(message);
    if (this.recent.length > 100) this.before = this.recent.shift()?.id ?? '';
    this.owner.post(message);
  }

  /** @type {SSESource['tell']} */
  tell(state, reason, status, retryIn) {
    super.tell(state, reason, status, retryIn);
    if (state === 'active') this.since = Date.now();
    this.owner.changed(this, { state, reason, status, retryIn });
  }

  /**
   * The messages after an id.
   * @param {string} id
   */
  after(id) {
    // An element that a message brings to all tabs comes to all at about the same time: what its stream begins with is for each.
    if (!id) return Date.now() - this.since < 2000 ? this.recent : [];
    const at = this.recent.map(message => message.own && message.id === id).lastIndexOf(true);
    return at >= 0 || id === this.before ? this.recent.slice(at + 1) : null;
  }
}

class SharedSource extends SSESource {
  /**
   * @param {string} url
   * @param {{lastEventId?: string, fresh?: boolean, tag?: string} & SSESettings} options
   */
  constructor(url, options) {
    super(url, options);
    this.me = Math.random();
    this.tag = options.tag ?? '';
    this.fresh = !!options.fresh;      // part of a page that loads
    this.born = 0;
    this.line = 0;                     // the line that is followed; 0: none so far
    this.leader = 0;                   // the line of whoever said last to lead
    this.wanted = false;               // a line of its own
    /** @type {SharedLine | null} */ this.own = null;     // the line, where this source leads
    /** @type {SharedLine | null} */ this.trial = null;   // it may become the line
    /** @type {SharedLine | null} */ this.former = null;  // heard to its end; somebody else leads now
    /** @type {{line: number, id: string, at: number, held: Told[]} | null} */
    this.next = null;                  // the line to move to, and what came on it
    /** @type {Map<string, number>} */
    this.seen = new Map();             // ids, and messages by id and type, with their line
    this.see(this.lastEventId, 0);
    /** @type {{at: number, text: string}[]} */
    this.bare = [];                    // messages without an id of their own that were shown lately
    /** @type {BroadcastChannel | null} */ this.channel = null;
    /** @type {(() => void) | undefined} */ this.release = undefined;  // the lock
    /** @type {(() => void) | undefined} */ this.done = undefined;     // with the turn
    this.queue = new AbortController();
    /** @type {Record<string, number | undefined>} */
    this.timers = {};
    // The silence of a leader, whatever the stream sends.
    this.guard = this.watchdog;
    this.guard.always = true;
    this.guard.alarm = () => this.doubt();
  }

  /** @param {SSESettings} settings */
  configure(settings) {
    super.configure(settings);
    if (!this.guard) return;
    const { reconnect, delay, heartbeatTimeout = this.guard.timeout } = settings;
    this.guard.timeout = heartbeatTimeout;
    this.own?.configure({ delay, heartbeatTimeout });
    if (reconnect === false && (this.own ? this.own.timer : this.line && this.state === 'reconnecting')) this.stop('disconnected', this.reason);
  }

  async connect() {
    this.leave();
    this.suspended = false;
    this.born = Date.now();
    const channel = this.channel = new BroadcastChannel(`sse:${this.url}`);
    channel.onmessage = ({ data }) => { if (channel === this.channel) this.receive(data); };
    if (this.fresh) this.post({ what: 'hello' });
    await this.ask({ ifAvailable: true });
  }

  leave() {
    super.leave();
    if (!this.guard) return;
    for (const line of [this.own, this.trial, this.former]) line?.leave();
    for (const timer of Object.values(this.timers)) clearTimeout(timer);
    this.queue.abort();
    this.channel?.close();
    this.release?.();
    this.done?.();
    this.channel = this.own = this.trial = this.former = this.next = null;
    this.release = this.done = undefined;
    this.timers = {};
    this.line = this.leader = 0;
    this.wanted = this.patient = false;
    this.watchdog = this.guard;
    this.guard.stop();
  }

  /** @type {SSESource['stop']} */
  stop(state, reason, status) {
    // Who is next may have to hear first that this is the end.
    if (this.release) setTimeout(this.release, 100);
    this.release = undefined;
    this.fresh = false;
    super.stop(state, reason, status);
  }

  reconnect(reason = 'asked to reconnect') {
    if (this.line) this.post({ what: 'again', detail: { state: 'reconnecting', reason } });
    else super.reconnect(reason);
  }

  check() {
    if (this.own) this.own.check();
    else if (this.line) this.doubt(true);
    else if (this.timers.retry && !this.patient) this.want();
  }

  // ---- The lock

  /**
   * Ask for the lock. Who has it leads, until it is released or taken away.
   * @param {LockOptions} options
   */
  async ask(options) {
    const { channel } = this;
    try {
      await navigator.locks.request(`sse:${this.tag}:${this.url}`, options, lock => channel !== this.channel ? undefined : lock ? this.lead() : this.arrive());
    } catch (error) {
      if (channel !== this.channel || options.signal?.aborted) return;
      if (/** @type {Error} */ (error).name === 'AbortError') return this.deposed();
      // Locks are forbidden, as in a frame without storage. So there is nobody to share with.
      channel?.close();
      this.post = this.hear;
      this.lead();
    }
  }

  /** @returns {Promise<void>} */
  lead() {
    if (!this.own) {
      this.settled();
      const line = new SharedLine(this);
      this.begin(line);
      this.post({ what: 'lead', line: line.key });
      line.connect();
    }
    return new Promise(resolve => { this.release = resolve; });
  }

  /** @param {SharedLine} line */
  begin(line) {
    this.own = line;
    this.next = null;
    this.wanted = this.fresh = false;
    this.line = this.leader = line.key;
    this.guard.stop();
    this.watchdog = line.watchdog;
  }

  /** Others lead already. */
  arrive() {
    this.follow();
    this.join();
  }

  /** Wait for the lock. */
  follow() {
    this.guard.start(false);
    this.queue = new AbortController();
    this.ask({ signal: this.queue.signal });
  }

  /** Take the lock. */
  take() {
    this.queue.abort();
    this.ask({ steal: true });
  }

  /** Somebody has taken the lock: a page that loads, or one that heard nothing from here for too long. */
  deposed() {
    const line = this.former = this.own;
    this.own = null;
    this.release = undefined;
    this.watchdog = this.guard;
    this.follow();
    if (!line) return;
    this.guard.learn(line.watchdog);
    this.timers.drop = setTimeout(() => this.drop(line, true), 1000);
  }

  /**
   * @param {SharedLine} line
   * @param {boolean} sure  all that came on it was told
   */
  drop(line, sure) {
    line.leave();
    if (line !== this.former) return;
    this.former = null;
    this.post({ what: 'bye', line: line.key, sure });
  }

  /** Is the leader still there? */
  doubt(eager = false) {
    if (this.timers.doubt && !eager) return;
    const asked = Date.now();
    this.post({ what: 'ping', eager });
    this.timers.doubt ??= setTimeout(() => {
      this.timers.doubt = undefined;
      if (this.line && !this.own && this.guard.heardAt < asked) this.take();
    }, 2000 + 1000 * Math.random());   // not all at once
  }

  // ---- A line of its own

  /** Open one, when it is its turn. */
  want() {
    if (this.wanted || this.own) return;
    const { channel } = this;
    this.wanted = true;
    let begun = false;
    const begin = () => {
      if (begun || !this.wanted || channel !== this.channel) return;
      begun = true;
      const line = this.trial = new SharedLine(this);
      line.tries = this.tries;
      line.connect();
      return new Promise(resolve => {
        this.done = () => resolve(undefined);
        this.timers.trial = setTimeout(() => { if (line === this.trial) resolve(undefined); }, 3000);   // a slow server keeps nobody waiting
      });
    };
    navigator.locks.request('sse:turn', begin).catch(() => {});
    // The tab whose turn it is may hang.
    const look = (/** @type {string | undefined} */ before) => {
      this.timers.turn = setTimeout(async () => {
        const holder = (await navigator.locks.query()).held?.find(({ name }) => name === 'sse:turn')?.clientId;
        if (holder && holder === before) begin();
        else if (!begun && this.wanted && channel === this.channel) look(holder);
      }, 5000);
    };
    look(undefined);
  }

  /** No line of its own is wanted any more. */
  settled() {
    this.trial?.leave();
    this.trial = null;
    this.wanted = false;
    this.done?.();
  }

  /**
   * A line has opened: all move to it.
   * @param {SharedLine} line
   */
  move(line) {
    if (line !== this.trial) return;
    this.trial = null;
    this.begin(line);
    this.take();
    this.announce(true);
    // What is on its way on the former line may still come.
    this.timers.move = setTimeout(() => {
      this.post({ what: 'drop', line: line.key });
      this.done?.();
    }, 250);
  }

  /** @param {boolean} replaces */
  announce(replaces) {
    const { key: line, began: id, asked } = /** @type {SharedLine} */ (this.own);
    this.post({ what: 'open', line, id, asked, replaces });
  }

  /**
   * A line of this source has changed its state.
   * @param {SharedLine} line
   * @param {SSEStateDetail} detail
   */
  changed(line, detail) {
    const open = detail.state === 'active';
    if (line === this.former) this.drop(line, false);
    else if (line === this.own) {
      if (open) this.announce(false);
      else this.post({ what: 'state', line: line.key, detail });
    } else if (line === this.trial) {
      if (open) this.timers.quiet = setTimeout(() => this.move(line), 1000);
      else this.failed(line, detail);
    }
  }

  /**
   * @param {SharedLine} line
   * @param {SSEStateDetail} detail
   */
  failed(line, detail) {
    this.settled();
    this.tries = line.tries;
    this.patient = line.patient;
    if (detail.state === 'reconnecting') this.timers.retry = setTimeout(() => this.want(), detail.retryIn);
    // Who is refused may have logged out, and has not only this tab.
    if (detail.state === 'error') this.post({ what: 'again', detail });
    this.heed(detail);
  }

  // ---- What others say

  /** @param {Told} told */
  post(told) {
    if (!this.channel) return;
    this.channel.postMessage({ ...told, tag: this.tag });
    this.hear(told);
  }

  /** @param {Told} told */
  receive(told) {
    if (told.tag === this.tag) this.hear(told);
    // Somebody else is logged in now: what is open may be a former user's.
    else if (told.what === 'hello' && told.tag && this.tag) this.own?.reconnect('another session');
  }

  /** Ask what is open. */
  join() {
    if (this.own) return;
    this.line = 0;
    this.post({ what: 'join', who: this.me, id: this.lastEventId });
    clearTimeout(this.timers.join);
    this.timers.join = setTimeout(() => { if (!this.line) this.want(); }, 1000);
  }

  /** @param {Told} told */
  hear(told) {
    const { own } = this;
    const { what, who, line = 0, detail } = told;
    if (line && line === this.leader) this.guard.heard(what === 'beat');
    switch (what) {
      case 'message':
        if (line === this.next?.line) this.next.held.push(told);
        else this.show(told);
        break;
      case 'join':
        if (own && who !== this.me) {
          const { key, state, reason, lastEventId } = own;
          this.post({ what: 'here', who, line: key, id: lastEventId, missed: own.after(told.id ?? ''), detail: { state, reason } });
        }
        break;
      case 'here':
        if (who === this.me && !this.line) this.welcome(told);
        break;
      case 'lead':
        this.leader = line;
        if (!this.line) this.join();
        break;
      case 'open':
        this.turnTo(told);
        break;
      case 'state':
        if (detail && this.line && [this.leader, own?.key].includes(line)) this.heed(detail);
        break;
      case 'drop':
        // To whom there was no time between that and this: it was asleep, and has things to read.
        if (this.former && line !== this.former.key) this.drop(this.former, !this.next || Date.now() - this.next.at > 200);
        break;
      case 'bye':
        if (line === this.next?.line) this.next = null;
        else if (line !== this.line) break;
        if (this.next) this.settle(!!told.sure);
        else this.join();
        break;
      case 'again':
        own?.reconnect(detail?.reason);
        break;
      case 'ping':
        if (!own) break;
        this.post({ what: 'pong', line: own.key });
        if (told.eager) own.check();
        else own.watchdog.check();
        break;
      case 'pong':
        if (this.line && !this.next && line !== this.line) this.join();
    }
  }

  /**
   * The leader says what is open.
   * @param {Told} told
   */
  welcome({ line = 0, id = '', missed, detail }) {
    this.leader = line;
    clearTimeout(this.timers.join);
    if (this.fresh || !missed) {
      // If it is about to open, that may do.
      if (detail?.state === 'active') this.want();
      else this.timers.join = setTimeout(() => this.want(), 10000);
      return;
    }
    this.adopt(line);
    for (const message of missed) this.show(message);
    this.lastEventId ||= id;
    if (detail) this.heed(detail);
  }

  /** @param {number} line */
  adopt(line) {
    this.settled();
    clearTimeout(this.timers.join);
    clearTimeout(this.timers.retry);
    this.line = line;
    this.fresh = false;
    this.guard.start(false);
  }

  /**
   * A line is open.
   * @param {Told} told
   */
  turnTo({ line = 0, id = '', asked = 0, replaces }) {
    this.leader = line;
    if (!this.line) {
      // One that others have opened may be just what is wanted.
      if (id !== this.lastEventId || this.fresh && asked < this.born) return this.fresh ? this.want() : this.join();
      this.adopt(line);
    } else if (![this.line, this.next?.line].includes(line)) {
      this.settle(true);
      this.next = { line, id, at: Date.now(), held: [] };
      // What the former one still brings comes first.
      if (!replaces && !this.own && this.knows(id)) this.settle(true);
      else this.timers.settle = setTimeout(() => this.settle(false), 1000);
    }
    this.heed({ state: 'active', reason: '' });
  }

  /** @param {string} id */
  knows(id) {
    return id ? this.seen.has(id) : !this.lastEventId;
  }

  /**
   * Go on with the next line.
   * @param {boolean} sure  the former one was heard to its end
   */
  settle(sure) {
    const { next } = this;
    if (!next) return;
    clearTimeout(this.timers.settle);
    this.next = null;
    if (this.own) return;   // nobody has taken the lead: it was one that had lost it, and did not know
    // Up to what is known here, a replay is for others.
    const known = next.held.map(({ own, id = '' }) => own && this.seen.has(id)).lastIndexOf(true);
    if (sure || known >= 0 || this.knows(next.id) || !this.lastEventId) {
      this.line = next.line;
      const twins = this.bare.filter(({ at }) => at > next.at - 500);
      for (const message of next.held.slice(known + 1)) {
        // Without ids: what came on both lines, as long as there were two.
        const twin = message.own ? -1 : twins.findIndex(({ text }) => text === message.type + '\n' + message.data);
        if (twin < 0) this.show(message);
        else twins.splice(twin, 1);
      }
    } else {
      // The former leader was gone, and what it had not told any more is lost for the new one.
      this.line = 0;
      this.want();
    }
  }

  /** @param {Told} message */
  show({ line = 0, type = '', data, id = '', own }) {
    if (line !== this.line) return;
    if (own) {
      const key = `${id}\n${type}`;
      const before = this.seen.get(key);
      if (type !== HEARTBEAT) {
        if (before !== undefined && before !== line) return;
        if (before === line) this.seen.clear();   // ids that come again tell nothing
      }
      this.see(id, line);
      this.see(key, line);
      this.lastEventId = id;
    } else this.bare = [...this.bare.slice(-99), { at: Date.now(), text: type + '\n' + data }];
    if (data != null) this.dispatchEvent(new MessageEvent(type, { data, lastEventId: this.lastEventId, origin: location.origin }));
  }

  /**
   * @param {string} key
   * @param {number} line
   */
  see(key, line) {
    if (key) this.seen.set(key, line);
    if (this.seen.size > 4000) this.seen.delete(this.seen.keys().next().value ?? '');
  }

  /**
   * The line has changed its state, and with it this source.
   * @param {SSEStateDetail} detail
   */
  heed({ state, reason, status, retryIn }) {
    if (state === 'active' && this.state !== 'active') {
      this.readyState = SSESource.OPEN;
      this.tell(state, this.reason ? 'reconnected' : 'connected');
      this.dispatchEvent(new Event('open'));
    } else if (state === 'reconnecting') {
      if (retryIn && !this.autoReconnect) return this.stop('disconnected', reason, status);
      this.readyState = SSESource.CONNECTING;
      this.tell(state, reason, status, retryIn);
      if (retryIn) this.dispatchEvent(new Event('error'));
    } else if (state === 'disconnected' || state === 'error') this.stop(state, reason, status);
  }
}
