// @ts-check
// Noticing that a stream has fallen silent: a half-open connection shows no error, for ever.

/**
 * It is armed by heartbeats: a stream that never sent any is left in peace. Too much silence is `timeout`, or less where the rhythm is known: 2.5 times the longest time between two
 * heartbeats, 5 seconds at least, and 1.5 times the longest silence that one has ended. An alarm on an open stream doubles that until a connection has outlived it.
 */
class Watchdog {
  /** @param {() => void} alarm */
  constructor(alarm) {
    this.alarm = alarm;
    this.timeout = 30000;    // milliseconds, as all here
    this.armed = false;
    this.always = false;     // armed or not
    this.patience = 1;
    this.interval = 0;       // the longest time between two heartbeats
    this.intervals = 0;      // how many were seen
    this.silence = 0;        // the longest silence that a heartbeat ended
    this.started = 0;
    this.open = false;
    this.beat = 0;
    this.heardAt = 0;
    this.late = 0;
    /** @type {number | undefined} */
    this.timer = undefined;
  }

  get limit() {
    const rhythm = this.intervals < 2 ? Infinity : Math.max(2.5 * this.interval, 5000);
    return (this.open ? this.patience : 1) * Math.max(1.5 * this.silence, Math.min(rhythm, this.timeout));
  }

  /**
   * A connection begins.
   * @param {boolean} open  `false`: there is no answer so far
   */
  start(open) {
    this.open = open;
    this.started = this.beat = this.heardAt = Date.now();
    this.tick();
  }

  stop() {
    clearTimeout(this.timer);
    this.started = 0;
  }

  /**
   * Take over what another one knows of the same stream.
   * @param {Watchdog} other
   */
  learn({ timeout, armed, interval, intervals, silence }) {
    Object.assign(this, { timeout, armed, interval, intervals, silence });
  }

  /**
   * Something arrived.
   * @param {boolean} heartbeat
   */
  heard(heartbeat) {
    const now = Date.now();
    if (heartbeat) {
      // One that opens a stream says nothing of the rhythm, nor does a gap of minutes: that was a computer that slept.
      const greeting = this.beat === this.started && now - this.started < 1000;
      if (!greeting && now - this.beat < 300000) {
        this.intervals++;
        this.interval = Math.max(this.interval, now - this.beat);
        this.silence = Math.max(this.silence, now - this.heardAt);
      }
      this.beat = now;
      if (now - this.started > 2 * this.limit) this.patience = 1;
    }
    this.heardAt = now;
    if (heartbeat && !this.armed) {
      this.armed = true;
      this.tick();
    }
  }

  tick() {
    clearTimeout(this.timer);
    if (!(this.armed || this.always) || !this.started) return;
    const wait = Math.min(Math.max(this.limit / 4, 50), 5000);
    const due = Date.now() + wait;
    this.timer = setTimeout(() => {
      // After a sleep a timer may run before what has arrived is read: the first late one does not judge. Those of a hidden tab are late by a second.
      this.late = Date.now() - due < 1500 ? 0 : this.late + 1;
      if (this.late !== 1) this.check();
      if (this.started) this.tick();
    }, wait);
  }

  /**
   * Raise the alarm after too long a silence.
   * @param {boolean} eager  half the patience: somebody looks at the page
   */
  check(eager = false) {
    const limit = eager ? Math.max(1.5 * this.silence, this.limit / 2) : this.limit;
    if (!(this.armed || this.always) || !this.started || Date.now() - this.heardAt <= limit) return;
    if (this.open) this.patience = Math.min(2 * this.patience, 8);
    this.alarm();
  }
}
