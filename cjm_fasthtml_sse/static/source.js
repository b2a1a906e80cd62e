// @ts-check
// The connection to one event stream: an EventSource look-alike on `fetch` that sends a `Last-Event-ID` from the start, sees comments and the HTTP status, notices silence,
// and says what it does.

const HEARTBEAT = 'sse:heartbeat';
const MAX_DELAY = 30000;

class SSESource extends EventTarget {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSED = 2;

  /**
   * @param {string} url
   * @param {{lastEventId?: string, cursor?: string} & SSESettings} options
   * @param {SSETransport} transport  what brings its responses
   */
  constructor(url, options, transport) {
    super();
    this.transport = transport;
    this.url = new URL(url, document.baseURI).href;
    this.withCredentials = true;
    this.readyState = SSESource.CONNECTING;
    /** @type {SSEState} */
    this.state = 'connecting';
    this.reason = '';
    this.lastEventId = options.lastEventId ?? '';
    /** Where the page stands, in the logs of all managers: to go on from until an id has come. */
    this.cursor = this.lastEventId ? '' : options.cursor ?? '';
    this.counts = false;     // do ids say in which order they were made? Those of other servers are opaque
    /** @type {{epoch: string, at: number[], shown: boolean} | null} */
    this.mark = null;        // the newest id, and whether its message was shown
    this.direct = '';        // why it has a connection of its own, if it has
    /** @type {Detour | null} */
    this.detour = null;      // how the next connection goes, if not by a channel
    this.autoReconnect = true;
    /** @type {number | null} */
    this.delay = null;       // the page's wish
    /** @type {number | null} */
    this.retry = null;       // the stream's usual one
    /** @type {number | null} */
    this.farewell = null;    // one in mid-stream is for the next reconnection
    this.tries = 0;
    this.turn = 0;           // counts connections
    this.suspended = false;
    this.patient = false;    // the server said when to come back
    this.abort = new AbortController();
    /** @type {number | undefined} */
    this.timer = undefined;
    this.watchdog = new Watchdog(() => this.lost('silence'));
    /** @type {((e: Event) => void) | null} */
    this.onopen = null;
    /** @type {((e?: Event) => void) | null} */
    this.onerror = null;
    /** @type {((e: Event) => void) | null} */
    this.onmessage = null;
    this.addEventListener('open', e => this.onopen?.(e));
    // Without the event, which htmx's extension would log.
    this.addEventListener('error', () => this.onerror?.());
    this.addEventListener('message', e => this.onmessage?.(e));
    this.configure(options);
  }

  /** @param {SSESettings} settings */
  configure({ reconnect, delay, heartbeatTimeout }) {
    if (reconnect !== undefined) {
      this.autoReconnect = reconnect;
      if (!reconnect && this.timer !== undefined) this.stop('disconnected', this.reason);
    }
    if (delay !== undefined) this.delay = delay;
    if (heartbeatTimeout !== undefined) {
      this.watchdog.timeout = heartbeatTimeout;
      this.watchdog.tick();
    }
  }

  leave() {
    this.turn++;
    clearTimeout(this.timer);
    this.timer = undefined;
    this.watchdog.stop();
    this.abort.abort();
    this.readyState = SSESource.CONNECTING;
  }

  async connect() {
    this.leave();
    this.suspended = this.patient = false;
    this.direct = '';
    const turn = this.turn;
    const abort = this.abort = new AbortController();
    /** @type {Record<string, string>} */
    const headers = { Accept: 'text/event-stream' };
    const [name, ids] = this.cursor ? ['SSE-After', this.cursor] : ['Last-Event-ID', this.lastEventId];
    // As browsers do: a header is a string of bytes, ids travel as UTF-8.
    if (ids) headers[name] = String.fromCharCode(...new TextEncoder().encode(ids));
    this.watchdog.start(false);
    try {
      const response = await this.transport(this, headers, abort.signal);
      if (turn !== this.turn) return;
      const problem = this.judge(response);
      if (problem) return problem();
      this.opened(response);
      const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
      const decoder = new TextDecoder();
      const parser = new EventStreamParser(this.listener(turn), this.lastEventId);
      for (;;) {
        const { done, value } = await reader.read();
        if (turn !== this.turn) return;
        if (done) return this.lost('end of stream');
        parser.feed(decoder.decode(value, { stream: true }));
        this.watchdog.heard(false);
      }
    } catch (error) {
      if (turn === this.turn) this.failed(error);
    }
  }

  /** @param {unknown} error */
  failed(error) {
    if (error === MOVED || error instanceof Detour) {
      this.detour = error instanceof Detour ? error : null;
      this.connect();
    } else this.lost('network');
  }

  /**
   * What to do about a response that is no stream.
   * @param {Response} response
   * @returns {(() => void) | null}
   */
  judge(response) {
    const { status } = response;
    const type = mediaType(response);
    if (status === 204) return () => this.stop('disconnected', 'status 204', status);
    if (response.redirected && type !== 'text/event-stream') return () => this.stop('error', 'Log in again', status);
    if ([401, 403, 410].includes(status)) return () => this.stop('error', `status ${status}`, status);
    if (status !== 200) return () => this.lost(`status ${status}`, status, status === 503 ? retryAfter(response) : 0);
    if (type !== 'text/event-stream') return () => this.lost(`content type ${type || 'missing'}`, status);
    return null;
  }

  /** @param {Response} response */
  opened(response) {
    // What our own server says of the stream.
    const { v, heartbeat = 0, epoch = '', gap } = Object.fromEntries((response.headers.get('SSE-Stream') ?? '').split(';').map(field => field.split(/=(.*)/)));
    this.counts = v === '1' && epoch !== '';
    this.watchdog.heartbeat = v === '1' ? 1000 * Number(heartbeat) : 0;
    if (gap) this.mark = null;
    this.readyState = SSESource.OPEN;
    this.tries = 0;
    this.farewell = null;
    this.watchdog.start(true);
    this.tell('active', this.reason ? 'reconnected' : 'connected');
    this.dispatchEvent(new Event('open'));
  }

  /**
   * @param {number} turn
   * @returns {StreamReader}
   */
  listener(turn) {
    let first = true;
    return {
      comment: () => this.beat(),
      retry: ms => {
        if (turn !== this.turn) return;
        if (first) this.retry = ms;
        else this.farewell = ms;
      },
      block: (type, data, id, own) => {
        if (turn !== this.turn) return;   // closed by a listener, in the middle of what had arrived
        first = false;
        if (type === HEARTBEAT) this.beat();
        this.deliver(type, data, id, own);
      },
    };
  }

  beat() {
    this.watchdog.heard(true);
  }

  /**
   * @param {string} type
   * @param {string | null} data
   * @param {string} id
   * @param {boolean} own
   */
  deliver(type, data, id, own) {
    if (own && !this.takeId(type, id)) return;
    if (data !== null) this.dispatchEvent(new MessageEvent(type, { data, lastEventId: this.lastEventId, origin: location.origin }));
    if (this.lastEventId) this.cursor = '';
  }

  /**
   * Take the id of a message over, and say whether to show it. Within one epoch of our own ids nothing is shown twice, and the last id never goes back.
   * @param {string} type
   * @param {string} id  `epoch-number`, or `epoch:number-number`
   */
  takeId(type, id) {
    const [, epoch, ms = '0', number] = this.counts && /^([^:]*?)(?::(\d{1,20}))?-(\d{1,20})$/.exec(id) || [];
    if (epoch === undefined) {
      this.lastEventId = id;
      return true;
    }
    const at = [Number(ms), Number(number)];
    const { mark } = this;
    const message = !type.startsWith('sse:');
    const past = !mark || mark.epoch !== epoch || type === 'sse:gap' ? -1 : mark.at[0] - at[0] || mark.at[1] - at[1];
    if (past > 0) return type === 'sse:close';
    const shown = past === 0 && mark !== null && mark.shown;
    if (message && shown) return false;
    this.mark = { epoch, at, shown: shown || message };
    this.lastEventId = id;
    return true;
  }

  /**
   * Come back, later and later, and at a moment of our own: a restarted server is not met by all at once.
   * @param {string} reason
   * @param {number} [status]
   * @param {number} [after]  what the server asked for
   */
  lost(reason, status, after = 0) {
    this.leave();
    if (!this.autoReconnect) return this.stop('disconnected', reason, status);
    const base = Math.max(this.farewell ?? this.delay ?? this.retry ?? 1000, 10);  // nothing doubles from 0
    const wait = Math.min(base * 2 ** this.tries++, Math.max(base, MAX_DELAY)) * (0.5 + Math.random());
    const retryIn = after ? Math.max(wait, after * (1 + Math.random() / 4)) : wait;
    const turn = this.turn;
    this.patient = after > 0;
    this.tell('reconnecting', reason, status, retryIn);
    if (turn === this.turn) this.dispatchEvent(new Event('error'));
    if (turn === this.turn) this.timer = setTimeout(() => this.connect(), retryIn);
  }

  /**
   * The end. `onerror` is not called: htmx's extension would make a new source.
   * @param {SSEState} state
   * @param {string} reason
   * @param {number} [status]
   */
  stop(state, reason, status) {
    this.leave();
    this.suspended = false;
    this.readyState = SSESource.CLOSED;
    this.tell(state, reason, status);
  }

  close(reason = 'closed') {
    if (this.readyState !== SSESource.CLOSED) this.stop('disconnected', reason);
  }

  /** Connect anew, now, whatever the state. */
  reconnect(reason = 'asked to reconnect') {
    this.leave();
    this.tries = 0;
    this.tell('reconnecting', reason);
    this.connect();
  }

  suspend() {
    if (this.readyState === SSESource.CLOSED) return;
    this.leave();
    this.suspended = true;
  }

  resume() {
    if (this.suspended) this.reconnect('page restored');
  }

  /** Is the connection what it seems? */
  check() {
    if (this.timer !== undefined) {
      if (!this.patient) this.connect();
    } else this.watchdog.check(true);
  }

  /**
   * @param {SSEState} state
   * @param {string} reason
   * @param {number} [status]
   * @param {number} [retryIn]
   */
  tell(state, reason, status, retryIn) {
    this.state = state;
    this.reason = reason;
    /** @type {SSEStateDetail} */
    const detail = { state, reason, status, retryIn };
    this.dispatchEvent(new CustomEvent('sse:state', { detail }));
  }
}

/** @param {Response} response */
function mediaType(response) {
  return (response.headers.get('Content-Type') ?? '').split(';')[0].trim().toLowerCase();
}

/** @param {Response} response */
function retryAfter(response) {
  const value = response.headers.get('Retry-After') ?? '';
  // Seconds or a date.
  const ms = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return ms > 0 ? Math.min(ms, 3600000) : 0;
}
