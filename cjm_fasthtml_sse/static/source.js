// @ts-check
// The connection to one event stream. It looks like an EventSource and is made on `fetch`: it sends a `Last-Event-ID`
// from the start, sees comments and the HTTP status, notices silence, and says what it does in `sse:state` events. The
// client makes all of them; a transport brings the responses: plain `fetch`, or a channel of the multiplexer.

const HEARTBEAT = 'sse:heartbeat';
const MAX_DELAY = 30000;

/** What a body ends with where the stream goes on: on another channel, or, with a reason, on its own connection. */
class Moved {
  /**
   * @param {string} [reason]
   * @param {number} [key]  of the channel, to be closed when that connection is over
   * @param {boolean} [back]  the carrier is lost: the channel waits with all others for the next one
   */
  constructor(reason = '', key = 0, back = false) {
    this.reason = reason;
    this.key = key;
    this.back = back;
  }
}

class SSESource extends EventTarget {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSED = 2;
  CONNECTING = 0;
  OPEN = 1;
  CLOSED = 2;

  /**
   * @param {string} url
   * @param {{lastEventId?: string, cursor?: string, body?: () => string} & SSESettings} options
   * @param {SSETransport} transport  what brings its responses
   */
  constructor(url, options, transport) {
    super();
    this.transport = transport;
    this.url = new URL(url, document.baseURI).href;
    this.origin = new URL(this.url).origin;
    this.withCredentials = true;
    this.readyState = SSESource.CONNECTING;
    /** @type {SSEState} */
    this.state = 'connecting';
    this.reason = '';
    this.lastEventId = options.lastEventId ?? '';
    /** Where the page stands, for all managers: the stream goes on from there until an id has come. */
    this.cursor = this.lastEventId ? '' : options.cursor ?? '';
    /** JSON for the server, asked for at each connect; the request is a `POST` then. */
    this.makeBody = options.body;
    this.body = '';          // of the present request
    this.gap = false;        // whether our server said that what the page named means nothing there
    this.ordered = false;    // whether ids say in which order they were made: those of other servers are opaque
    /** @type {{epoch: string, at: number[], shown: boolean} | null} */
    this.newest = null;      // id, and whether its message was shown
    this.direct = '';        // why it has a connection of its own, if it has
    this.moved = new Moved();  // how the next connection goes
    this.autoReconnect = true;
    /** @type {number | null} */
    this.delay = null;       // the page's wish
    /** @type {number | null} */
    this.retry = null;       // the stream's usual one
    /** @type {number | null} */
    this.nextRetry = null;   // a `retry:` in mid-stream is for the next reconnection only
    this.tries = 0;
    this.generation = 0;     // counts connections
    this.suspended = false;
    this.scheduled = false;  // the server said when to come back
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

  /** End the connection, if there is one. */
  disconnect() {
    this.generation++;
    clearTimeout(this.timer);
    this.timer = undefined;
    this.watchdog.stop();
    this.abort.abort();
    this.readyState = SSESource.CONNECTING;
  }

  async connect() {
    this.disconnect();
    this.suspended = this.scheduled = false;
    this.direct = '';
    const generation = this.generation;
    const abort = this.abort = new AbortController();
    /** @type {Record<string, string>} */
    const headers = { Accept: 'text/event-stream' };
    const [name, ids] = this.cursor ? ['SSE-After', this.cursor] : ['Last-Event-ID', this.lastEventId];
    // As browsers do: a header is a string of bytes, ids travel as UTF-8.
    if (ids) headers[name] = String.fromCharCode(...new TextEncoder().encode(ids));
    try {
      this.body = this.makeBody?.() ?? '';
      const response = await this.transport(this, headers, abort.signal);
      if (generation !== this.generation) return;
      if (!this.accept(response)) return;
      this.opened(response);
      const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
      const decoder = new TextDecoder();
      const parser = new EventStreamParser(this.listener(generation), this.lastEventId);
      for (;;) {
        const { done, value } = await reader.read();
        if (generation !== this.generation) return;
        if (done) return this.lost('end of stream');
        parser.feed(decoder.decode(value, { stream: true }));
        this.watchdog.note(false);
      }
    } catch (error) {
      if (generation === this.generation) this.failed(error);
    }
  }

  /** @param {unknown} error */
  failed(error) {
    if (!(error instanceof Moved)) return this.lost('network');
    this.moved = error;
    this.disconnect();
    if (!error.back || this.comeBack('network', undefined, this.usualDelay)) this.connect();
  }

  /** Say whether a response is a stream; stop, or come back later, where it is not. @param {Response} response */
  accept(response) {
    const { status } = response;
    const type = mediaType(response);
    if (status === 204) this.stop('disconnected', 'status 204', status);
    else if (response.redirected && type !== 'text/event-stream') this.stop('error', 'Log in again', status);
    else if ([401, 403, 410, 413].includes(status)) this.stop('error', `status ${status}`, status);
    else if (status !== 200) this.lost(`status ${status}`, status, status === 503 ? retryAfter(response.headers.get('Retry-After')) : 0);
    else if (type !== 'text/event-stream') this.lost(`content type ${type || 'missing'}`, status);
    else return true;
    return false;
  }

  /** @param {Response} response */
  opened(response) {
    // What our own server says of the stream.
    const fields = (response.headers.get('SSE-Stream') ?? '').split(';').map(field => field.split(/=(.*)/));
    const { v, heartbeat = 0, epoch = '', gap } = Object.fromEntries(fields);
    this.ordered = v === '1' && epoch !== '';
    this.watchdog.heartbeat = v === '1' ? 1000 * Number(heartbeat) : 0;
    this.gap = v === '1' && !!gap;
    if (gap) this.newest = null;
    this.readyState = SSESource.OPEN;
    this.tries = 0;
    this.nextRetry = null;
    this.watchdog.start(true);
    this.setState('active', this.reason ? 'reconnected' : 'connected');
    this.dispatchEvent(new Event('open'));
  }

  /**
   * @param {number} generation
   * @returns {StreamReader}
   */
  listener(generation) {
    let first = true;
    return {
      comment: () => this.beat(),
      retry: ms => {
        if (generation !== this.generation) return;
        if (first) this.retry = ms;
        else this.nextRetry = ms;
      },
      block: (type, data, id, own) => {
        if (generation !== this.generation) return;   // closed by a listener, in the middle of what had arrived
        first = false;
        if (type === HEARTBEAT) this.beat();
        this.deliver(type, data, id, own);
      },
    };
  }

  beat() {
    this.watchdog.note(true);
  }

  /**
   * @param {string} type
   * @param {string | null} data
   * @param {string} id
   * @param {boolean} own
   */
  deliver(type, data, id, own) {
    if (own && !this.takeId(type, id)) return;
    const { lastEventId, origin } = this;
    if (data !== null) this.dispatchEvent(new MessageEvent(type, { data, lastEventId, origin }));
    if (this.lastEventId) this.cursor = '';
  }

  /**
   * Take the id of a message over, and say whether to show it. Within one epoch of our own ids nothing is shown twice,
   * and the last id never goes back.
   * @param {string} type
   * @param {string} id  `epoch-number`, or `epoch:number-number`
   */
  takeId(type, id) {
    const [, epoch, ms = '0', number] = this.ordered && /^([^:]*?)(?::(\d{1,20}))?-(\d{1,20})$/.exec(id) || [];
    if (epoch === undefined) {
      this.lastEventId = id;
      return true;
    }
    const at = [Number(ms), Number(number)];
    const { newest } = this;
    const message = !type.startsWith('sse:');
    const anew = !newest || newest.epoch !== epoch || type === 'sse:gap';
    const past = anew ? -1 : newest.at[0] - at[0] || newest.at[1] - at[1];
    if (past > 0) return type === 'sse:close';
    const shown = past === 0 && newest !== null && newest.shown;
    if (message && shown) return false;
    this.newest = { epoch, at, shown: shown || message };
    this.lastEventId = id;
    return true;
  }

  /** Milliseconds before the first attempt to come back; nothing doubles from 0. */
  get usualDelay() { return Math.max(this.nextRetry ?? this.delay ?? this.retry ?? 1000, 10); }

  /**
   * Reconnect after a while, longer each time.
   * @param {string} reason
   * @param {number} [status]
   * @param {number} [after]  what the server asked for
   */
  lost(reason, status, after = 0) {
    this.disconnect();
    const retryIn = delayOf(this.usualDelay, this.tries++, after);
    this.scheduled = after > 0;
    if (this.comeBack(reason, status, retryIn)) this.timer = setTimeout(() => this.connect(), retryIn);
  }

  /**
   * Say that the connection is lost and comes back; returns whether it does.
   * @param {string} reason
   * @param {number | undefined} status
   * @param {number} retryIn
   */
  comeBack(reason, status, retryIn) {
    if (!this.autoReconnect) this.stop('disconnected', reason, status);
    const { generation, readyState } = this;
    if (readyState === SSESource.CLOSED) return false;
    this.setState('reconnecting', reason, status, retryIn);
    if (generation === this.generation) this.dispatchEvent(new Event('error'));
    return generation === this.generation;
  }

  /**
   * End for good. `onerror` is not called: htmx's extension would make a new source.
   * @param {SSEState} state
   * @param {string} reason
   * @param {number} [status]
   */
  stop(state, reason, status) {
    this.disconnect();
    this.suspended = false;
    this.readyState = SSESource.CLOSED;
    this.setState(state, reason, status);
  }

  close(reason = 'closed') {
    if (this.readyState !== SSESource.CLOSED) this.stop('disconnected', reason);
  }

  /** Connect anew at once, whatever the state. */
  reconnect(reason = 'asked to reconnect') {
    this.disconnect();
    this.tries = 0;
    this.setState('reconnecting', reason);
    this.connect();
  }

  suspend() {
    if (this.readyState === SSESource.CLOSED) return;
    this.disconnect();
    this.suspended = true;
  }

  resume() {
    if (this.suspended) this.reconnect('page restored');
  }

  /** Check whether the connection is what it seems, and do not wait to come back. */
  check() {
    if (this.timer !== undefined) {
      if (!this.scheduled) this.connect();
    } else this.watchdog.check(true);
  }

  /**
   * @param {SSEState} state
   * @param {string} reason
   * @param {number} [status]
   * @param {number} [retryIn]
   */
  setState(state, reason, status, retryIn) {
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

/**
 * Compute how long to wait: longer each time, and at random, as not all clients should meet a restarted server at once.
 * @param {number} base
 * @param {number} tries  so far
 * @param {number} after  what the server asked for
 * @param {number} [chance]
 */
function delayOf(base, tries, after, chance = Math.random()) {
  const wait = Math.min(base * 2 ** tries, Math.max(base, MAX_DELAY)) * (0.5 + chance);
  return Math.max(wait, after * (1 + chance / 4));
}

/** @param {string | null | undefined} header */
function retryAfter(header) {
  const value = header ?? '';
  // Seconds or a date.
  const ms = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return ms > 0 ? Math.min(ms, 3600000) : 0;
}

/**
 * Fetch a response of its own for a source.
 * @param {SSESource} source
 * @param {string} reason
 * @param {Record<string, string>} headers
 * @param {AbortSignal} signal
 */
function fetchDirect(source, reason, headers, signal) {
  source.direct = reason;
  source.watchdog.start(false);
  console.debug(`[sse] direct: ${reason} ${source.url}`);
  // Another origin would have to allow the header.
  const ours = source.origin === location.origin;
  const sent = ours ? { ...headers, 'SSE-Direct': reason } : headers;
  /** @type {RequestInit} */
  const init = { headers: sent, credentials: 'include', cache: 'no-store', signal };
  const { body } = source;
  if (!body) return fetch(source.url, init);
  return fetch(source.url, { ...init, method: 'POST', body, headers: { ...sent, 'Content-Type': 'application/json' } });
}
