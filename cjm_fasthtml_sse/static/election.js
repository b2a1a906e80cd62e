// @ts-check
// Tabs of one name elect one that leads. A Web Lock decides which: it is free as soon as the leader closes, crashes or
// leaves, and the next tab has it a moment later. A leader that hangs keeps its lock, so one that does not answer for 3 s,
// though a visible tab waits for it, loses it. Each tab holds a lock of its own, too: when it is free, the tab is gone.
//
// - A tab has another id for each leader: nobody takes it for what it was.
// - `lead`, `follow` and `missed` make void what was asked so far: the owner asks for all that it wants. What was asked
//   while no leader was known was asked of nobody yet: it is kept for the first one.
// - Browsers drop messages to a page that a debugger stops, and hold them back while a page is frozen. So questions to the
//   leader and messages to a tab are numbered, and `beat` says to each tab how many there were.

const ELECTION = 'sse2';            // in all names: clients of another protocol elect a leader of their own
const SILENCE = [1500, 1250, 250];  // milliseconds until the first ping, from there to the last, from there to the takeover
const LOCK_TIMEOUT = 3000;          // milliseconds in which the browser grants a lock that is free
const OUT_OF_BREATH = 1000;         // milliseconds without a script, after which somebody else may lead
const OVERHEAD = 64;                // bytes of a message without content
const ACKNOWLEDGE = 2 ** 18;        // bytes
const LAG = 2 ** 20;                // bytes, not acknowledged, from which on the leader had better wait
const LAG_TIMEOUT = 500;            // milliseconds for this much; and then no more, until the tab takes some
const MAX_LAG = 4 * LAG;

class Election {
  /**
   * @param {string} name  tabs of the same name elect one leader
   * @param {ElectionOwner} owner
   */
  constructor(name, owner) {
    this.name = `${ELECTION}:${name}`;
    this.owner = owner;
    this.beatMs = 15000;   // between beats of a leader that is well
    this.broken = '';      // why
    this.wanted = false;
    /** @type {AbortController | null} */
    this.session = null;   // from `open` to `close`
    this.me = '';
    this.seated = false;   // with a lock for this id
    this.leader = '';
    /** @type {ElectionChannel | null} */
    this.common = null;    // from all to all
    /** @type {ElectionChannel | null} */
    this.inbox = null;     // from all to this tab
    /** @type {ElectionChannel | null} */
    this.out = null;       // from this tab to its leader
    /** @type {Map<string, ElectionTab>} */
    this.tabs = new Map();   // those that asked this leader
    /** @type {Set<string>} */
    this.gone = new Set();   // those of them that are gone
    /** @type {unknown[]} */
    this.asks = [];        // what the leader has not confirmed
    this.confirmed = 0;    // how many it has
    this.got = 0;          // messages of the leader
    this.bytes = this.acknowledged = 0;
    this.step = 0;         // of the leader's silence
    this.tries = 0;        // to end it
    /** @type {number | undefined} */
    this.timer = undefined;
    this.ran = -Infinity;      // when this leader was known to lead
    this.beaten = -Infinity;   // when it sent its last beat
    /** @type {Promise<boolean> | null} */
    this.confirming = null;
  }

  get leads() { return !!this.session && this.leader === this.me; }

  join() {
    this.wanted = !this.broken;
    if (!this.session) this.reopen();
  }

  leave() {
    this.wanted = false;
    this.close();
  }

  close() {
    const { session, leads } = this;
    session?.abort();   // frees all locks
    for (const channel of [this.common, this.inbox, this.out, ...[...this.tabs.values()].map(tab => tab.out)]) channel?.close();
    clearTimeout(this.timer);
    this.timer = undefined;
    this.tabs.clear();
    this.gone.clear();
    this.session = this.common = this.inbox = this.out = this.confirming = null;
    this.leader = '';
    this.asks = [];
    this.confirmed = this.got = this.bytes = this.acknowledged = this.step = 0;
    if (leads) this.owner.lost();
  }

  /**
   * Begin anew, as another tab.
   * @param {boolean} [steal]  the lead
   */
  reopen(steal) {
    const kept = this.leader ? [] : this.asks;
    this.close();
    if (!this.wanted || this.session) return;
    const session = this.session = new AbortController();
    this.asks = kept;
    this.me = Math.random().toString(36).slice(2);
    const common = this.common = this.channel('');
    const inbox = this.inbox = this.channel(`:${this.me}`);
    common.onmessage = inbox.onmessage = ({ data }) => { if (session === this.session) this.receive(data); };
    this.seated = false;
    this.lock(`:tab:${this.me}`, {}, () => {
      this.seated = true;
      this.send();
      return pause(session.signal);
    });
    this.bid(session, steal);   // requests are granted in their order
    // After a long task, or a freeze, the answer comes between the two timers.
    const late = () => { if (session === this.session && !this.seated) this.fail('no answer to the request for a lock'); };
    setTimeout(() => setTimeout(late, 100), LOCK_TIMEOUT);
    this.ping();
    this.heard();
  }

  /** @param {unknown} reason */
  fail(reason) {
    if (this.broken) return;
    this.broken = String(reason);
    this.leave();
    this.owner.broken(this.broken);
  }

  /**
   * @param {string} name
   * @returns {ElectionChannel}
   */
  channel(name) {
    try {
      return new BroadcastChannel(this.name + name);
    } catch (error) {   // SecurityError, where cookies are refused
      queueMicrotask(() => this.fail(error));
      return { postMessage() {}, close() {}, onmessage: null };
    }
  }

  /**
   * Request a lock. What goes wrong in this session ends the election.
   * @param {string} name
   * @param {LockOptions} options
   * @param {(lock: Lock | null) => unknown} held
   * @param {() => void} [taken]  the lock was taken away
   */
  async lock(name, options, held, taken) {
    const { session } = this;
    if (!options.steal && !options.ifAvailable) options.signal = session?.signal;
    try {
      await navigator.locks.request(this.name + name, options, lock => session === this.session ? held(lock) : undefined);
    } catch (error) {
      if (session !== this.session) return;
      if (/** @type {Error} */ (error).name !== 'AbortError') this.fail(error);
      else taken?.();
    }
  }

  /**
   * Request the lead.
   * @param {AbortController} session
   * @param {boolean} [steal]
   */
  bid(session, steal) {
    const start = performance.now();
    this.lock('', { steal }, async () => {
      // If the tab was frozen, the lock may be somebody else's again.
      if (performance.now() - start < OUT_OF_BREATH) this.ran = performance.now();
      else if (await Promise.race([this.holdsLead(), pause(session.signal)]) !== true || session !== this.session) return;
      this.lead();
      return pause(session.signal);
    }, () => this.reopen());
  }

  lead() {
    const kept = this.leader ? [] : this.asks;
    this.asks = [];
    this.step = 0;
    clearTimeout(this.timer);
    this.leader = this.me;
    this.common?.postMessage({ what: 'lead', who: this.me });
    this.owner.lead();
    for (const message of kept) this.ask(message);
  }

  /** @param {string} leader */
  follow(leader) {
    this.leader = leader;
    this.out = this.channel(`:${leader}`);
    this.lock(`:tab:${leader}`, { mode: 'shared' }, () => {
      if (leader !== this.leader) return;
      this.leader = '';   // somebody has the lock now
      this.asks = [];
      this.step = 0;
      this.wait(SILENCE[0]);
    });
    this.heard();
    this.send();
    this.owner.follow(leader);
  }

  /**
   * Whether this tab leads. The owner awaits this before it delivers anything: where no script ran for a while, as in
   * a frozen page, behind a `confirm`, or in a long task, another tab may lead, and the browser has not said so yet.
   * @returns {Promise<boolean>}
   */
  async confirmLead() {
    if (!this.leads) return false;
    const now = performance.now();
    if (this.confirming || now - this.ran > OUT_OF_BREATH) return this.confirming ??= this.holdsLead();
    this.ran = now;
    return true;
  }

  /** What the browser says. */
  async holdsLead() {
    const { session } = this;
    try {
      for (;;) {
        const start = performance.now();
        const { held = [] } = await navigator.locks.query();
        if (session !== this.session) break;
        const [lead, own] = ['', `:tab:${this.me}`].map(name => held.find(lock => lock.name === this.name + name)?.clientId);
        this.ran = performance.now();
        if (this.ran - start > OUT_OF_BREATH) continue;   // there was a freeze meanwhile
        this.confirming = null;
        if (lead === own) return true;
        this.reopen();
        break;
      }
    } catch (error) {
      if (session === this.session) this.fail(error);
    }
    return false;
  }

  /**
   * Ask the leader.
   * @param {unknown} message
   */
  ask(message) {
    if (this.leads) return this.owner.asked(this.me, message);
    this.asks.push(message);
    this.send(this.asks.length - 1);
    if (this.asks.length === 1 && !this.step && this.session) this.wait(SILENCE[0]);
  }

  /** Send what the leader has not confirmed. */
  send(from = 0) {
    if (this.leader && this.seated) for (let i = from; i < this.asks.length; i++)
      this.out?.postMessage({ what: 'ask', who: this.me, number: this.confirmed + i + 1, message: this.asks[i] });
  }

  /**
   * From the leader to a tab.
   * @param {string} tab
   * @param {unknown} message
   * @param {number} [bytes]
   * @returns {Promise<void> | void}  to be awaited before more is read: until the tab has taken some, or shows that it does not
   */
  tell(tab, message, bytes = 0) {
    if (tab === this.me) return this.owner.told(message);
    const to = this.tabs.get(tab);
    if (!to || to.count < 0) return;
    if (to.bytes - to.acknowledged >= MAX_LAG) {
      to.count = -1;   // when it finds this, it has missed something
      this.answer(tab);
      return this.owner.overflowed(tab);
    }
    to.bytes += bytes += OVERHEAD;
    to.out.postMessage({ what: 'tell', who: this.me, number: ++to.count, bytes, message });
    const lag = (to.bytes - to.acknowledged) / LAG;
    if (lag < 1 || to.late) return;
    return to.room ??= new Promise(resolve => {
      const resume = to.resume = () => {
        to.room = null;
        resolve();
      };
      setTimeout(() => {
        if (to.resume !== resume || !to.room) return;
        to.late = true;
        resume();
      }, LAG_TIMEOUT * Math.min(lag, 6));
    });
  }

  /** The leader is well. */
  async beat() {
    const now = performance.now();
    if (now - this.beaten < this.beatMs * .9 || !await this.confirmLead()) return;
    this.beaten = now;
    const counts = Object.fromEntries([...this.tabs].map(([tab, { count }]) => [tab, count]));
    this.common?.postMessage({ what: 'beat', who: this.me, counts });
  }

  /** Somebody looks at this tab. */
  check() {
    if (this.leads) this.confirmLead();
    else if (this.session && !this.step) this.silent();
  }

  ping() {
    this.common?.postMessage({ what: 'ping', who: this.me });
  }

  /** The leader gave a sign of life. */
  heard() {
    const waits = this.asks.length || !this.leader;
    if (this.step || !waits || !this.timer) this.wait(waits ? SILENCE[0] : 2.5 * this.beatMs);
    this.step = this.tries = 0;
  }

  /** @param {number} ms  until the leader has been silent for too long */
  wait(ms) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.silent(), ms);
  }

  silent() {
    clearTimeout(this.timer);
    this.timer = undefined;
    if (document.visibilityState === 'hidden' && (this.step || !this.asks.length)) this.step = 0;   // until it is shown
    else if (++this.step > 1) this.take();
    else {
      this.ping();
      this.wait(SILENCE[1]);
    }
  }

  /** Take the lead from one that does not answer. One tab at a time, or they would take it from each other. */
  async take() {
    const { session } = this;
    await this.lock(':take', this.tries++ % 2 ? { steal: true } : { ifAvailable: true }, async lock => {
      if (!lock || !session) return;
      const start = performance.now();
      this.ping();
      await pause(session.signal, SILENCE[2]);
      if (session === this.session && this.step > 1 && performance.now() - start < OUT_OF_BREATH) this.reopen(true);
    });
    if (session !== this.session || this.step < 2) return;
    this.step = 1;
    this.wait(SILENCE[1]);
  }

  /** @param {ElectionMessage} message */
  async receive(message) {
    if (!this.leads) this.hear(message);
    else if (await this.confirmLead() && this.leads) this.serve(message);
  }

  /**
   * What another tab says to the leader.
   * @param {ElectionMessage} message
   */
  serve({ what, who, number = 0, bytes = 0, message }) {
    if (what === 'ping') return this.answer(who, true);
    if (what !== 'ask' && what !== 'took') {   // it leads, too?
      this.ran = -Infinity;
      this.confirmLead();
      return;
    }
    if (this.gone.has(who)) return;   // its last words, behind its lock
    let tab = this.tabs.get(who);
    if (!tab) {
      const out = this.channel(`:${who}`);
      tab = { out, count: 0, bytes: 0, acknowledged: 0, asks: 0, late: false };
      this.tabs.set(who, tab);
      this.lock(`:tab:${who}`, { mode: 'shared' }, async () => {
        if (!await this.confirmLead() || !this.tabs.delete(who)) return;
        this.gone.add(who);
        out.close();
        this.owner.left(who);
      });
    }
    if (what === 'took') {
      tab.acknowledged = bytes;
      tab.late = false;
      if (tab.bytes - bytes < LAG) tab.resume?.();
      if (tab.count < 0) this.answer(who);
      return;
    }
    const next = number === tab.asks + 1 && tab.count >= 0;
    if (next) tab.asks++;
    this.answer(who, number > tab.asks);
    if (next) this.owner.asked(who, message);
  }

  /**
   * Say to a tab how many messages there were, from it and to it.
   * @param {string} who
   * @param {boolean} [again]  it may have asked more: that was not seen
   */
  answer(who, again) {
    const tab = this.tabs.get(who);
    if (tab) tab.out.postMessage({ what: 'here', who: this.me, count: tab.count, asks: tab.asks, again });
    else this.common?.postMessage({ what: 'lead', who: this.me });
  }

  /**
   * What the leader says.
   * @param {ElectionMessage} message
   */
  hear({ what, who, number = 0, count = 0, asks = 0, again, bytes = 0, counts = {}, message }) {
    const all = what === 'lead' || what === 'beat';
    if (!all && what !== 'here' && what !== 'tell') return;
    if (who !== this.leader) {
      if (all) this.out ? this.reopen() : this.follow(who);   // what else a former leader said comes late
      return;
    }
    this.heard();
    if (what === 'tell') {
      if (number !== ++this.got) return this.miss();
      this.bytes += bytes;
      this.owner.told(message);
      if (this.bytes - this.acknowledged < ACKNOWLEDGE) return;
      this.acknowledged = this.bytes;
      this.out?.postMessage({ what: 'took', who: this.me, bytes: this.bytes });
    } else if (what === 'here') {
      if (count !== this.got) return this.miss();
      this.asks.splice(0, asks - this.confirmed);
      this.confirmed = asks;
      if (again) this.send();
      if (!this.asks.length) this.wait(2.5 * this.beatMs);
    } else if (what === 'beat') {
      if ((counts[this.me] ?? 0) !== this.got) this.ping();
    } else if (!this.confirmed) this.send();   // it has not seen this tab
  }

  /** Some of what the leader said is lost. Under another id, this tab has asked for nothing. */
  miss() {
    this.reopen();
    this.owner.missed();
  }
}

/**
 * @param {AbortSignal} signal  ends the pause
 * @param {number} [ms]         as time does
 * @returns {Promise<any>}
 */
function pause(signal, ms) {
  return new Promise(resolve => {
    if (signal.aborted) resolve(undefined);
    signal.addEventListener('abort', resolve);
    if (ms) setTimeout(resolve, ms);
  });
}
