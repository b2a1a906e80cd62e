// @ts-check
// A carrier takes addresses alone that this visitor was served as a stream: with each such response comes a ticket for its path, which holds for a day. Tickets are kept for the browser.

const TICKETS = 500;

class Tickets {
  /**
   * @param {string} name
   * @param {(visitor: string) => void} visit  hears who the server says the visitor is
   */
  constructor(name, visit) {
    this.name = `sse:tickets:${name}`;
    this.visit = visit;
    /** @type {{visitor: string, paths: Record<string, string>}} */
    this.kept = { visitor: '', paths: {} };
    /** @type {Map<string, {url: string, answer: Promise<Response>}>} by path */
    this.requests = new Map();
    /** @type {(() => void)[]} requests that wait for others */
    this.queue = [];
    this.running = 0;
    this.leaving = new AbortController();
    /** @type {Map<string, number>} when a cookie was fetched, by path */
    this.cookies = new Map();
    this.load();
  }

  get visitor() {
    return this.kept.visitor;
  }

  load() {
    try {
      const { visitor, paths } = JSON.parse(localStorage.getItem(this.name) ?? '{}');
      if (typeof visitor === 'string' && paths && typeof paths === 'object') this.kept = { visitor, paths };
    } catch { /* what can't be read can't be kept */ }
    return this.kept;
  }

  save() {
    try {
      localStorage.setItem(this.name, JSON.stringify(this.kept));
    } catch { /* each page asks for its own */ }
  }

  /**
   * Tickets are for one visitor.
   * @param {string} visitor
   */
  of(visitor) {
    if (this.load().visitor === visitor) return;
    this.kept = { visitor, paths: this.visitor ? {} : this.kept.paths };
    this.save();
  }

  /** @param {string} path */
  get(path) {
    return this.kept.paths[path] ?? this.load().paths[path] ?? '';
  }

  /**
   * @param {string} path
   * @param {string} ticket
   */
  set(path, ticket) {
    const { visitor, paths } = this.load();
    const others = Object.entries(paths).filter(([other]) => other !== path).slice(1 - TICKETS);
    this.kept = { visitor, paths: Object.fromEntries([...others, [path, ticket]]) };
    this.save();
  }

  /** @param {string} path */
  forget(path) {
    delete this.load().paths[path];
    this.save();
  }

  /**
   * Ask for the ticket of an address; the body of the response is not read.
   * @param {string} url
   * @returns {Promise<Response | null>} `null`: somebody else has got it
   */
  async fetch(url) {
    const path = new URL(url).pathname;
    for (;;) {
      const other = this.requests.get(path);
      if (other?.url === url) return other.answer;
      if (!other) break;
      // Another query: a ticket is good for both, a refusal is not.
      const answer = await other.answer.catch(() => null);
      if (answer && isStream(answer) && this.get(path)) return null;
    }
    const answer = this.request(url);
    this.requests.set(path, { url, answer });
    return answer.finally(() => this.requests.delete(path));
  }

  /** @param {string} url */
  async request(url) {
    const { signal } = this.leaving;
    // Two at a time. The first of all alone: it may bring the cookie that tells who the visitor is.
    await new Promise(resolve => {
      this.queue.push(() => resolve(undefined));
      this.next();
    });
    const abort = new AbortController();
    const stop = () => abort.abort();
    const patience = setTimeout(stop, 30000);
    signal.addEventListener('abort', stop);
    if (signal.aborted) stop();   // the page was left before its turn came
    try {
      const response = await fetch(url, { headers: { Accept: 'text/event-stream', 'SSE-Ticket': '1' }, credentials: 'include', cache: 'no-store', signal: abort.signal });
      this.visit(response.headers.get('SSE-Visitor') ?? '');
      const ticket = response.headers.get('SSE-Ticket');
      if (ticket && isStream(response)) this.set(new URL(response.url).pathname, ticket);
      return response;
    } finally {
      clearTimeout(patience);
      signal.removeEventListener('abort', stop);
      stop();
      this.running--;
      this.next();
    }
  }

  next() {
    for (const most = this.visitor ? 2 : 1; this.running < most && this.queue.length; this.running++) this.queue.shift()?.();
  }

  /**
   * A channel can't bring the cookie that its response sets.
   * @param {string} url
   */
  fetchCookie(url) {
    const { pathname } = new URL(url);
    if (Date.now() - (this.cookies.get(pathname) ?? 0) < 60000) return;
    this.cookies.set(pathname, Date.now());
    this.fetch(url).catch(() => {});
  }

  /** This page is left. */
  abort() {
    this.leaving.abort();
    this.leaving = new AbortController();
  }
}

/** @param {Response} response */
function isStream(response) {
  return response.status === 200 && mediaType(response) === 'text/event-stream';
}
