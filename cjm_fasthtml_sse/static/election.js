// @ts-check
// Elects one of the tabs that share a name as their leader, and carries messages between it and the others. The
// multiplexer uses it: the leader holds the connection of all tabs. A page loads this file with its first stream, and
// only where tabs have one connection: not over HTTP/2. A Web Lock decides. It is free as soon as the leader closes,
// crashes or leaves, and the next tab has it a moment later. A leader that hangs keeps its lock: a visible tab that
// waits for an answer steals it after 3 s. Each tab holds a lock of its own, too: when it is free, the tab is gone.
// Browsers drop messages to a page that a debugger stops, and hold them back while a page is frozen, so they are
// numbered, and the leader says how many there were.

const ELECTION = 'sse3';            // in all names: another version of this script elects a leader of its own
const BEAT = 15000;                 // milliseconds between two signs of life
const PATIENCE = 20000;             // milliseconds until one is missed
const SILENCE = [1500, 1250, 250];  // milliseconds until the first ping, from there to the last, and to the takeover
const LOCK_TIMEOUT = 3000;          // milliseconds in which the browser grants a lock that is free
const MAX_PAUSE = 1000;             // milliseconds without a script, after which another tab may lead
const OVERHEAD = 64;                // bytes of a message without content
const ACKNOWLEDGE = 2 ** 18;        // bytes
const LAG = 2 ** 20;                // bytes that are not acknowledged, from which on the leader waits for the tab
const LAG_TIMEOUT = 500;            // milliseconds for so many; then it does not wait until the tab acknowledges
const MAX_LAG = 4 * LAG;

class Election {
  /**
   * @param {string} name  tabs of the same name elect one leader
   * @param {ElectionOwner} owner
   */
  constructor(name, owner) {
    this.name = `${ELECTION}:${name}`;
    this.owner = owner;
    /** @type {AbortController | null} */
    this.session = null;       // of this tab under one id: its locks and channels end with it
    this.me = '';
    /** @type {BroadcastChannel | null} */
    this.common = null;        // from all to all, once this tab has its lock
    /** @type {Map<string, ElectionTab> | null} */
    this.tabs = null;          // where this tab leads: those that follow
    /** @type {ElectionLeader | null} */
    this.following = null;     // where it follows
    this.silences = 0;         // of the leader, in a row
    this.timer = 0;
    this.confirmed = -Infinity;  // when this tab was known to lead
    this.beaten = -Infinity;     // when it sent its last sign of life
    /** @type {Promise<boolean> | null} */
    this.confirming = null;
  }

  get leads() { return !!this.tabs; }

  get leader() { return this.tabs ? this.me : this.following?.id ?? ''; }

  /** Say whether this tab waits for an answer of its leader. */
  get waits() { return !!this.following && this.following.confirmed < this.following.number; }

  join() {
    if (!this.session) this.restart();
  }

  leave() {
    const { leads } = this;
    this.session?.abort();
    this.wait(0);
    this.session = this.common = this.tabs = this.following = this.confirming = null;
    this.silences = 0;
    if (leads) this.owner.lost();
  }

  /**
   * Begin anew, under another id: nothing that was sent to this tab, or requested by it, counts any more.
   * @param {boolean} [steal]  take the lead from the tab that has it
   */
  restart(steal = false) {
    this.leave();
    const session = this.session = new AbortController();
    this.me = Math.random().toString(36).slice(2);
    // No other tab hears of this one before it has its lock.
    this.lock(`:tab:${this.me}`, {}, () => {
      this.common = this.open('', true);
      this.open(`:${this.me}`, true);
      this.lock('', { steal }, async () => {
        if (!await this.holdsLead()) return;   // the tab may have been frozen since
        this.lead();
        return pause(session.signal);
      });
      this.ping();
      this.wait(SILENCE[0]);
      return pause(session.signal);
    });
    // After a long task, or a freeze, the lock comes between the two timers.
    const late = () => { if (session === this.session && !this.common) this.fail('no lock was granted'); };
    setTimeout(() => setTimeout(late, 100), LOCK_TIMEOUT);
  }

  /** Give up: there can be no election. @param {unknown} reason */
  fail(reason) {
    this.leave();
    this.owner.alone(reason);
  }

  /**
   * Open a channel that ends with the session.
   * @param {string} name
   * @param {boolean} [listens]
   */
  open(name, listens) {
    const channel = new BroadcastChannel(this.name + name);   // throws where cookies are refused
    this.session?.signal.addEventListener('abort', () => channel.close());
    if (listens) channel.onmessage = ({ data }) => { this.receive(data); };
    return channel;
  }

  /**
   * Request a lock for as long as `held` takes. An error ends the election, the theft of the lead ends the session.
   * @param {string} name
   * @param {LockOptions} options
   * @param {(lock: Lock | null) => unknown} held
   */
  async lock(name, options, held) {
    const { session } = this;
    if (!options.steal && !options.ifAvailable) options.signal = session?.signal;
    try {
      await navigator.locks.request(this.name + name, options, lock => session === this.session && held(lock));
    } catch (error) {
      if (session !== this.session) return;
      if (/** @type {Error} */ (error).name !== 'AbortError') this.fail(error);
      else if (!name) this.restart();
    }
  }

  lead() {
    this.wait(0);
    this.silences = 0;
    this.following = null;
    this.tabs = new Map();
    this.announce();
    this.owner.lead();
  }

  /** @param {string} id */
  follow(id) {
    const out = this.open(`:${id}`);
    this.following = { id, out, number: 0, confirmed: 0, request: null, count: 0, bytes: 0, acknowledged: 0 };
    this.lock(`:tab:${id}`, { mode: 'shared' }, () => { if (this.following?.id === id) this.restart(); });
    this.postpone();
    this.owner.follow(id);
  }

  /**
   * Check whether this tab leads. The owner awaits this before it delivers anything: where no script ran for a while,
   * as in a frozen page, behind a `confirm`, or in a long task, another tab may lead, and the browser has not said so.
   */
  async confirmLead() {
    const now = performance.now();
    if (!this.leads) return false;
    if (this.confirming || now - this.confirmed > MAX_PAUSE) return this.confirming ??= this.holdsLead();
    this.confirmed = now;
    return true;
  }

  /** Ask the browser whether this tab has the leader's lock; begin anew where not. @returns {Promise<boolean>} */
  async holdsLead() {
    const { session } = this;
    const start = performance.now();
    const { held = [] } = await navigator.locks.query();
    if (session !== this.session) return false;
    this.confirmed = performance.now();
    if (this.confirmed - start > MAX_PAUSE) return this.holdsLead();   // a freeze came between
    this.confirming = null;
    const lock = (/** @type {string} */ name) => held.find(lock => lock.name === this.name + name)?.clientId;
    if (lock('') === lock(`:tab:${this.me}`)) return true;
    this.restart();
    return false;
  }

  /**
   * Send the leader all that this tab wants of it, in place of what it wanted before. A new leader knows of nothing.
   * @param {unknown} message
   */
  request(message) {
    if (this.leads) return this.owner.requested(this.me, message);
    const { following, waits } = this;
    if (!following) return;
    following.request = message;
    following.number++;
    this.repeat();
    if (!waits && !this.silences) this.wait(SILENCE[0]);
  }

  /** Send the request, once more where the leader may not have it. */
  repeat() {
    if (!this.following) return;
    const { out, number, request } = this.following;
    out.postMessage({ what: 'request', who: this.me, number, message: request });
  }

  ping() {
    this.common?.postMessage({ what: 'ping', who: this.me });
  }

  /**
   * Send a message from the leader to a tab.
   * @param {string} id
   * @param {unknown} message
   * @param {number} [bytes]
   * @returns {Promise<void> | void}  await this before more is read: the tab lags
   */
  send(id, message, bytes = 0) {
    if (id === this.me) return this.owner.received(message);
    const tab = this.tabs?.get(id);
    if (!tab || tab.count < 0) return;
    if (tab.bytes - tab.acknowledged >= MAX_LAG) {
      tab.count = -1;   // overflowed: the tab begins anew when it learns of this
      this.answer(id);
      return this.owner.left(id);
    }
    tab.bytes += bytes += OVERHEAD;
    tab.out.postMessage({ what: 'data', who: this.me, number: ++tab.count, bytes, message });
    const lag = (tab.bytes - tab.acknowledged) / LAG;
    if (lag < 1 || tab.lagging) return;
    return tab.room ??= new Promise(resolve => {
      tab.resume = () => {
        tab.room = null;
        clearTimeout(timer);
        resolve();
      };
      const timer = setTimeout(() => {
        tab.lagging = true;
        tab.resume?.();
      }, LAG_TIMEOUT * lag);
    });
  }

  /** Send a sign of life of the leader, if the last one was a while ago. */
  async beat() {
    if (performance.now() - this.beaten > BEAT * .9 && await this.confirmLead()) this.announce();
  }

  /** Say that this tab leads, and how many messages there were to each tab. */
  announce() {
    this.beaten = performance.now();
    const counts = Object.fromEntries([...this.tabs ?? []].map(([id, { count }]) => [id, count]));
    this.common?.postMessage({ what: 'lead', who: this.me, counts });
  }

  /** Check the leader: somebody looks at this tab. */
  check() {
    if (this.leads) this.confirmLead();
    else if (this.common && !this.silences) this.handleSilence();
  }

  /** Postpone the deadline after a sign of life of the leader, but not that of an answer. */
  postpone() {
    if (this.silences || !this.waits || !this.timer) this.wait(this.waits ? SILENCE[0] : PATIENCE);
    this.silences = 0;
  }

  /** Set the time until the leader has been silent for too long. @param {number} ms  0: for ever */
  wait(ms) {
    clearTimeout(this.timer);
    this.timer = ms ? setTimeout(() => this.handleSilence(), ms) : 0;
  }

  handleSilence() {
    this.wait(0);
    // A hidden tab does not steal: it waits until it is shown.
    if (document.visibilityState === 'hidden' && (this.silences || !this.waits)) this.silences = 0;
    else if (++this.silences > 1) this.takeOver();
    else {
      this.ping();
      this.wait(SILENCE[1]);
    }
  }

  /** Steal the lead from a tab that does not answer; one tab at a time, or they would steal it from each other. */
  async takeOver() {
    const { session, silences } = this;
    const still = () => session === this.session && silences === this.silences;
    // A tab that hangs here has the lock taken away by the next attempt of another.
    await this.lock(':take', silences % 2 ? { steal: true } : { ifAvailable: true }, async lock => {
      if (!lock || !session) return;
      const start = performance.now();
      this.ping();
      await pause(session.signal, SILENCE[2]);
      if (still() && performance.now() - start < MAX_PAUSE) this.restart(true);
    });
    if (still()) this.wait(SILENCE[1]);
  }

  /** @param {ElectionMessage} message */
  async receive(message) {
    if (!this.leads) this.handleLeader(message);
    else if (await this.confirmLead() && this.leads) this.handleTab(message);
  }

  /** Handle a message to the leader. @param {ElectionMessage} message */
  handleTab({ what, who, number = 0, bytes = 0, message }) {
    if (what === 'ping') {
      this.owner.pinged();
      return this.answer(who);
    }
    if (what !== 'request' && what !== 'ack') {   // another tab leads, too?
      this.confirmed = -Infinity;
      this.confirmLead();
      return;
    }
    const tab = this.tabs?.get(who) ?? this.admit(who);
    if (what === 'ack') {
      tab.acknowledged = bytes;
      tab.lagging = false;
      if (tab.bytes - bytes < LAG) tab.resume?.();
      if (tab.count < 0) this.answer(who);
      return;
    }
    const fresh = number > tab.requests && tab.count >= 0;
    if (fresh) tab.requests = number;
    this.answer(who);
    if (fresh) this.owner.requested(who, message);
  }

  /** Take up a tab that follows, until its lock is free. @param {string} id */
  admit(id) {
    /** @type {ElectionTab} */
    const tab = { out: this.open(`:${id}`), count: 0, bytes: 0, acknowledged: 0, requests: 0, lagging: false };
    this.tabs?.set(id, tab);
    this.lock(`:tab:${id}`, { mode: 'shared' }, async () => {
      if (!await this.confirmLead() || !this.tabs?.delete(id)) return;
      tab.out.close();
      this.owner.left(id);
    });
    return tab;
  }

  /** Say to a tab how many messages there were, from it and to it. @param {string} id */
  answer(id) {
    const tab = this.tabs?.get(id);
    if (!tab) return this.announce();
    tab.out.postMessage({ what: 'state', who: this.me, number: tab.count, requests: tab.requests });
  }

  /** Handle a message of the leader. @param {ElectionMessage} message */
  handleLeader({ what, who, number = 0, requests = 0, bytes = 0, counts = {}, message }) {
    const { following } = this;
    if (what === 'lead' && who !== following?.id) return following ? this.restart() : this.follow(who);
    if (who !== following?.id) return;   // a former leader's comes late, a follower's is not for this tab
    this.postpone();
    if (what === 'data') {
      if (number !== ++following.count) return this.restart();   // some are lost
      following.bytes += bytes;
      if (following.bytes - following.acknowledged >= ACKNOWLEDGE) {
        following.acknowledged = following.bytes;
        following.out.postMessage({ what: 'ack', who: this.me, bytes: following.bytes });
      }
      this.owner.received(message);
    } else if (what === 'state') {
      if (number !== following.count) return this.restart();
      following.confirmed = requests;
      if (this.waits) this.repeat();
      else this.wait(PATIENCE);
    } else if (this.waits && counts[this.me] === undefined) this.repeat();   // it does not know this tab
    else if ((counts[this.me] ?? 0) !== following.count) this.ping();   // the answer comes behind what is under way
  }
}

/**
 * Wait for the end of a session.
 * @param {AbortSignal} signal
 * @param {number} [ms]  wait no longer
 * @returns {Promise<any>}
 */
function pause(signal, ms) {
  return new Promise(resolve => {
    if (signal.aborted) resolve(undefined);
    signal.addEventListener('abort', resolve);
    if (ms) setTimeout(resolve, ms);
  });
}

window.cjmSSE?.mux?.elect(Election);
