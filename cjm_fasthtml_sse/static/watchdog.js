// @ts-check
// Notices that a stream has fallen silent: a half-open connection shows no error, for ever. Each source has a watchdog,
// each carrier of the multiplexer, and the monitor of a page without our client.

/**
 * Where the server says how often it sends heartbeats, one that is five seconds late is too late, or `timeout`,
 * whichever is less. Where it does not, heartbeats arm the watchdog: a stream that never sent two of them is left
 * alone, and the shortest time between two of them counts, as a computer that sleeps makes only longer ones. An answer
 * has 20 seconds. An alarm doubles the time until a connection has outlived it.
 */
class Watchdog {
  /** @param {() => void} alarm */
  constructor(alarm) {
    this.alarm = alarm;
    this.timeout = 30000;    // milliseconds, as all here
    this.heartbeat = 0;      // what the server says, 0: nothing
    this.leniency = 1;
    this.interval = Infinity;  // the shortest time between two heartbeats
    this.started = 0;
    this.open = false;
    this.beat = 0;           // when the last heartbeat came on this connection
    this.activeAt = 0;
    this.late = false;       // Did the last timer come late?
    /** @type {number | undefined} */
    this.timer = undefined;
  }

  get armed() {
    return !this.open || this.heartbeat > 0 || this.interval < Infinity;
  }

  get limit() {
    const { heartbeat, interval, timeout, leniency } = this;
    const most = heartbeat ? Math.max(Math.min(2.5 * heartbeat, heartbeat + 5000), 5000) : 20000;
    if (heartbeat || !this.open) return leniency * Math.min(timeout, most);
    return leniency * (interval < Infinity ? Math.max(timeout, 2.5 * interval) : timeout);
  }

  /**
   * Begin with a connection.
   * @param {boolean} open  `false`: there is no answer so far
   */
  start(open) {
    this.open = open;
    this.started = this.activeAt = Date.now();
    this.beat = 0;
    this.tick();
  }

  stop() {
    clearTimeout(this.timer);
    this.started = 0;
  }

  /**
   * Take note of something that arrived.
   * @param {boolean} heartbeat
   */
  note(heartbeat) {
    const now = this.activeAt = Date.now();
    if (now - this.started > 2 * this.limit) this.leniency = 1;
    if (!heartbeat) return;
    const was = this.armed;
    // Two in one go say nothing of the rhythm.
    if (this.beat && now - this.beat > 500) this.interval = Math.min(this.interval, now - this.beat);
    this.beat = now;
    if (this.armed && !was) this.tick();
  }

  tick() {
    clearTimeout(this.timer);
    if (!this.armed || !this.started) return;
    const left = this.activeAt + this.limit - Date.now();
    const wait = this.late ? 1000 : Math.min(Math.max(left, 50), 5000);
    const due = Date.now() + wait;
    this.timer = setTimeout(() => {
      // Behind a sleep, what has arrived is read first. Timers of a hidden tab are late by a second.
      const slept = !this.late && Date.now() - due > 1500;
      if (!slept) this.check(this.late);
      this.late = slept;
      if (this.started) this.tick();
    }, wait);
  }

  /**
   * Raise the alarm after too long a silence.
   * @param {boolean} eager  as soon as a heartbeat is overdue: somebody looks at the page, or the computer has slept
   */
  check(eager = false) {
    const interval = this.heartbeat || Math.min(this.interval, this.limit / 2);
    const limit = eager && this.open ? Math.max(this.limit / 2, interval + 1000) : this.limit;
    if (!this.armed || !this.started || Date.now() - this.activeAt < limit) return;
    this.leniency = Math.min(2 * this.leniency, 8);
    this.alarm();
  }
}
