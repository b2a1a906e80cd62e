// @ts-check
// Tickets, for the multiplexer. A carrier takes only addresses that this visitor was served as a stream: with each such
// response comes a ticket for its path, which holds for a day. Tickets are kept for all tabs of the browser.

const MAX_TICKETS = 500;

class Tickets {
  /**
   * @param {string} name
   * @param {(visitor: string) => void} onVisitor  is called with who the server says the visitor is
   */
  constructor(name, onVisitor) {
    this.name = `sse:tickets:${name}`;
    this.onVisitor = onVisitor;
    /** @type {{visitor: string, paths: Record<string, string>}} */
    this.kept = { visitor: '', paths: {} };
    /** @type {Map<string, {url: string, wish: string, answer: Promise<Response>, abort: AbortController}>} by path */
    this.requests = new Map();
    /** @type {Set<Promise<unknown>>} the answers of requests that were sent */
    this.running = new Set();
    /** @type {Map<string, number>} when a cookie was fetched, by path */
    this.cookies = new Map();
    this.load();
  }

  get visitor() { return this.kept.visitor; }

  load() {
    try {
      const { visitor, paths } = JSON.parse(localStorage.getItem(this.name) ?? '{}');
      if (typeof visitor === 'string' && paths && typeof paths === 'object') this.kept = { visitor, paths };
    } catch { /* what can't be read can't be kept */ }
    return this.kept;
  }

  /** @param {string} visitor @param {Record<string, string>} paths  tickets */
  save(visitor, paths) {
    this.kept = { visitor, paths };
    try {
      localStorage.setItem(this.name, JSON.stringify(this.kept));
    } catch { /* each page asks for its own */ }
  }

  /** Keep tickets for this visitor from now on. @param {string} visitor */
  setVisitor(visitor) {
    const former = this.load();
    if (former.visitor !== visitor) this.save(visitor, former.visitor ? {} : former.paths);
  }

  /** @param {string} path */
  get(path) {
    return this.kept.paths[path] ?? this.load().paths[path] ?? '';
  }

  /** @param {string} path @param {string} ticket  empty: there is none any more */
  set(path, ticket) {
    const { visitor, paths } = this.load();
    const others = Object.entries(paths).filter(([other]) => other !== path).slice(1 - MAX_TICKETS);
    this.save(visitor, Object.fromEntries(ticket ? [...others, [path, ticket]] : others));
  }

  /**
   * Fetch the ticket of an address; the body of the response is not read.
   * @param {string} url
   * @param {string} [wish]  `authorise`: as for the stream itself, where the browser has to be led or to get a cookie
   * @returns {Promise<Response | null>}  `null`: another request has brought it
   */
  async fetch(url, wish = '1') {
    const path = new URL(url).pathname;
    for (;;) {
      const other = this.requests.get(path);
      if (other?.url === url && other.wish === wish) return other.answer;
      if (!other) break;
      // Another query: a ticket is good for both, a refusal is not.
      const answer = await other.answer.catch(() => null);
      if (wish === '1' && answer && isStream(answer) && this.get(path)) return null;
    }
    const abort = new AbortController();
    const answer = this.request(url, wish, abort);
    this.requests.set(path, { url, wish, answer, abort });
    return answer.finally(() => this.requests.delete(path));
  }

  /** @param {string} url @param {string} wish @param {AbortController} abort */
  async request(url, wish, abort) {
    // Two at a time. The first of all alone: it may bring the cookie that tells who the visitor is.
    while (this.running.size >= (this.visitor ? 2 : 1)) await Promise.race(this.running);
    const timer = setTimeout(() => abort.abort(), 30000);
    const headers = { Accept: 'text/event-stream', 'SSE-Ticket': wish };
    const answer = fetch(url, { headers, credentials: 'include', cache: 'no-store', signal: abort.signal });
    const running = answer.then(response => {
      this.onVisitor(response.headers.get('SSE-Visitor') ?? '');
      const ticket = response.headers.get('SSE-Ticket');
      if (ticket && isStream(response)) this.set(new URL(response.url).pathname, ticket);
    }).catch(() => {}).finally(() => {
      clearTimeout(timer);
      abort.abort();
      this.running.delete(running);
    });
    this.running.add(running);
    await running;
    return answer;
  }

  /** Fetch a cookie, which a channel can't bring; each one once a minute. @param {string} url */
  fetchCookie(url) {
    const { pathname } = new URL(url);
    if (Date.now() - (this.cookies.get(pathname) ?? 0) < 60000) return;
    this.cookies.set(pathname, Date.now());
    this.fetch(url, 'authorise').catch(() => {});
  }

  /** End all requests: this page is left. */
  abort() {
    for (const { abort } of this.requests.values()) abort.abort();
  }
}

/** @param {Response} response */
function isStream(response) {
  return response.status === 200 && mediaType(response) === 'text/event-stream';
}
