// @ts-check
// Notices that a stream has fallen silent: a half-open connection shows no error, for ever. Each source has a watchdog,
// each carrier of the multiplexer, and the monitor of a page without our client.

/**
 * Where the server says how often it sends heartbeats, two and a half intervals of silence are too many, or `timeout`,
 * whichever is less. Where it does not, heartbeats arm the watchdog: a stream that never sent two of them is left
 * alone, and the shortest time between two of them counts, as a computer that sleeps makes only longer ones. An alarm
 * on an open stream doubles the time until a connection has outlived it.
 */
class Watchdog {
  /** @param {() => void} alarm */
  constructor(alarm) {
    this.alarm = alarm;
    this.timeout = 30000;    // milliseconds, as all here
    this.heartbeat = 0;      // what the server says, 0: nothing
    this.always = false;     // armed or not
    this.leniency = 1;
    this.interval = Infinity;  // the shortest time between two heartbeats
    this.started = 0;
    this.open = false;
    this.beat = 0;           // when the last heartbeat came on this connection
    this.activeAt = 0;
    this.late = 0;
    /** @type {number | undefined} */
    this.timer = undefined;
  }

  get armed() {
    return this.always || this.heartbeat > 0 || this.interval < Infinity;
  }

  get limit() {
    const leniency = this.open ? this.leniency : 1;
    if (this.heartbeat) return leniency * Math.min(this.timeout, Math.max(2.5 * this.heartbeat, 5000));
    return leniency * (this.interval < Infinity ? Math.max(this.timeout, 2.5 * this.interval) : this.timeout);
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
    const wait = Math.min(Math.max(this.limit / 4, 50), 5000);
    const due = Date.now() + wait;
    this.timer = setTimeout(() => {
      // After a sleep a timer may run before what has arrived is read: the first late one does not judge. Those of a
      // hidden tab are late by a second.
      this.late = Date.now() - due < 1500 ? 0 : this.late + 1;
      if (this.late !== 1) this.check();
      if (this.started) this.tick();
    }, wait);
  }

  /**
   * Raise the alarm after too long a silence.
   * @param {boolean} eager  after half the time: somebody looks at the page
   */
  check(eager = false) {
    const interval = this.heartbeat || Math.min(this.interval, this.limit / 2);
    const limit = eager ? Math.max(this.limit / 2, 1.5 * interval) : this.limit;
    if (!this.armed || !this.started || Date.now() - this.activeAt <= limit) return;
    if (this.open) this.leniency = Math.min(2 * this.leniency, 8);
    this.alarm();
  }
}
