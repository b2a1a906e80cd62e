// @ts-check
// The carriers that a tab holds, for itself or for all tabs that it leads: connections whose frames belong to channels. It opens and closes channels there, and hands out what comes.
//
// A carrier lives in one process of the server. A request that meets another process, which knows none of our carriers, becomes one itself. So there are as many as processes met.

const MAX_CARRIERS = 3;
const ORDER = 100;       // channels that are opened in one order: they fit, however long their addresses are
const MISSES = 30;       // in a row. With 16 processes, one order in 500 has so many
const REFUSALS = 3;      // in a row: no carrier works here
const TROUBLE = 30000;   // milliseconds in which the server answers orders with errors, and with nothing else
const BEAT = 15000;      // milliseconds between two signs of life of a carrier
const ABOUT = 2 ** 31;   // added to the number of a channel: what follows is about it

/** The number of a channel, from all that there were: one that was closed may still be spoken of. */
let channels = 0;

class Carriers {
  /** @param {Multiplexer} owner */
  constructor(owner) {
    this.owner = owner;
    /** @type {Map<string, MuxCarrier>} */
    this.carriers = new Map();
    /** @type {Map<number, MuxChannel>} */
    this.channels = new Map();
    /** @type {Map<string, MuxChannel>} */
    this.keys = new Map();
    /** @type {Set<MuxChannel>} to be opened */
    this.wanted = new Set();
    /** @type {Map<number, MuxCarrier>} to be closed, there */
    this.gone = new Map();
    /** @type {Map<string, MuxNews[]>} what has come, by tab */
    this.news = new Map();
    this.asking = this.anyway = false;
    this.ended = false;
    this.misses = 0;         // answers in a row from a process where there is no place
    this.settling = false;   // do the channels of a carrier too many look for another place?
    this.works = false;      // has a carrier ever spoken?
    this.silent = 0;         // requests without an answer, before that
    this.heard = 0;          // answers so far
    this.refusals = 0;       // in a row
    this.trouble = 0;        // since when the server answers with errors
    /** @type {number | undefined} */
    this.timer = undefined;
    this.due = Infinity;     // when the timer fires
  }

  /**
   * @param {string} tab
   * @param {MuxWish} wish
   */
  open(tab, { key, path, ticket, ids }) {
    if (this.keys.has(key)) return;
    /** @type {MuxChannel} */
    const channel = { number: ++channels, tab, key, path, ticket, ids, carrier: null };
    this.keys.set(key, channel);
    this.channels.set(channel.number, channel);
    this.wanted.add(channel);
    // All that come in one go. Not by a timer: those of a hidden tab may take a second.
    if (!this.asking && this.wanted.size === 1) queueMicrotask(() => this.ask());
  }

  /** @param {string} key */
  close(key) {
    const channel = this.keys.get(key);
    if (!channel) return;
    this.forget(channel);
    const { carrier, number } = channel;
    if (!carrier) return;
    this.gone.set(number, carrier);
    this.askIn(100);
    this.tidy();
  }

  /** A carrier without channels is closed. */
  tidy() {
    if (this.asking || this.wanted.size) return;
    const used = new Set([...this.channels.values()].map(({ carrier }) => carrier));
    for (const carrier of [...this.carriers.values()]) if (!used.has(carrier)) this.drop(carrier);
    if (this.carriers.size <= MAX_CARRIERS || this.settling) return;
    this.settling = true;
    const load = (/** @type {MuxCarrier} */ carrier) => [...this.channels.values()].filter(channel => channel.carrier === carrier).length;
    const [least] = [...this.carriers.values()].sort((a, b) => load(a) - load(b));
    this.drop(least, 'moved');
  }

  /** @param {MuxChannel} channel */
  forget(channel) {
    this.keys.delete(channel.key);
    this.channels.delete(channel.number);
    this.wanted.delete(channel);
  }

  /** @param {string} tab */
  left(tab) {
    for (const channel of [...this.channels.values()]) if (channel.tab === tab) this.close(channel.key);
  }

  /** Those that have channels here. */
  tabs() {
    return new Set([...this.channels.values()].map(({ tab }) => tab));
  }

  /**
   * @param {number} ms
   * @param {boolean} [anyway]  just to hear who the visitor is; not if that is heard meanwhile
   */
  askIn(ms, anyway = false) {
    const { heard } = this;
    if (anyway) return setTimeout(() => { if (heard === this.heard) this.ask(true); }, ms);
    const due = performance.now() + ms;
    if (due >= this.due) return;
    clearTimeout(this.timer);
    this.due = due;
    this.timer = setTimeout(() => {
      this.due = Infinity;
      this.ask();
    }, ms);
  }

  /** @param {boolean} [anyway]  just to hear who the visitor is */
  async ask(anyway = false) {
    this.anyway ||= anyway;
    if (this.asking) return;
    for (const [number, carrier] of this.gone) if (!this.carriers.has(carrier.id)) this.gone.delete(number);
    const [open, close] = [[...this.wanted].slice(0, ORDER), [...this.gone.keys()]];
    if (this.ended || !this.anyway && !open.length && !close.length) return;
    this.asking = true;
    this.anyway = false;
    // Those that we meet are others, the oldest carrier makes way: its channels come back where there is a place.
    if (this.misses >= MISSES && this.carriers.size >= MAX_CARRIERS) this.drop([...this.carriers.values()][0], 'moved');
    for (const channel of open) this.wanted.delete(channel);
    const abort = new AbortController();
    const chunks = new Map([...this.carriers.values()].map(carrier => [carrier, carrier.chunks]));
    // A carrier says at once that it is one.
    const patience = setTimeout(() => abort.abort(), 5000);
    try {
      const response = await fetch(this.owner.url, {
        method: 'POST', credentials: 'same-origin', cache: 'no-store', signal: abort.signal,
        headers: { 'Content-Type': 'application/json', 'SSE-Mux': VERSION },
        body: JSON.stringify({
          carriers: [...this.carriers.keys()],
          open: open.map(({ number, path, ticket, ids }) => [number, path, ticket, ...ids]),
          close,
          // After two misses one more carrier is quicker than a search: it makes way as soon as there is time.
          become: this.carriers.size < MAX_CARRIERS || this.misses > 1 && !this.settling && this.carriers.size === MAX_CARRIERS,
        }),
      });
      if (this.ended) abort.abort();   // a carrier that nobody wants any more
      else this.answered(response, open, close, abort, chunks);
    } catch {
      if (!this.works && abort.signal.aborted && ++this.silent > 1) this.owner.stepDown('no answer');
      else this.fail(open, 0);
    }
    clearTimeout(patience);
    this.asking = false;
    this.tidy();
    if (this.wanted.size || this.anyway) this.ask();
    // The order did not say so yet; or another process has answered, or the server dropped the connection that this went over.
    else if (this.gone.size) this.askIn([...this.gone.keys()].some(number => !close.includes(number)) ? 100 : 6000);
  }

  /**
   * @param {Response} response
   * @param {MuxChannel[]} open
   * @param {number[]} close
   * @param {AbortController} abort
   * @param {Map<MuxCarrier, number>} chunks  that had come on each carrier when the order was sent
   */
  answered(response, open, close, abort, chunks) {
    const { status, headers } = response;
    const [id, visitor] = [headers.get('SSE-Carrier') ?? '', headers.get('SSE-Visitor') ?? ''];
    // Another process. Its answer closes the connection, and the next one may lead elsewhere.
    if (status === 409 && this.misses++ < MISSES) return this.again(open);
    if (status !== 200 && status !== 204) return this.refused(open, status, headers.get('Retry-After'));
    this.refusals = this.trouble = 0;
    this.heard++;
    this.owner.visit(visitor, true);
    for (const carrier of [...this.carriers.values()]) if (carrier.visitor !== visitor) this.drop(carrier, 'moved');
    let carrier = this.carriers.get(id);
    if (status === 200 && response.body) {
      const fresh = carrier = { id, visitor, abort, chunks: 0, watchdog: new Watchdog(() => this.drop(fresh, 'lost')) };
      carrier.watchdog.heartbeat = BEAT;
      carrier.watchdog.timeout = 40000;
      this.carriers.set(id, carrier);
      this.read(carrier, response.body.getReader());
    }
    if (!carrier) return open.length && this.misses++ < MISSES ? this.again(open) : this.fail(open, 0);   // it has ended in the meantime
    this.misses = 0;
    this.settling = false;
    for (const number of close) if (this.gone.get(number) === carrier) this.gone.delete(number);
    for (const channel of open) {
      if (this.channels.has(channel.number)) channel.carrier = carrier;
      else this.gone.set(channel.number, carrier);   // closed in the meantime
    }
    if (open.length) this.expect(carrier, chunks.get(carrier) ?? 0);
    this.flush();
  }

  /**
   * No carrier, and no place on one.
   * @param {MuxChannel[]} open
   * @param {number} status
   * @param {string | null} retry
   */
  refused(open, status, retry) {
    if (status >= 500 || status === 408 || status === 429) {
      this.trouble ||= Date.now();
      if (!retry && Date.now() - this.trouble > TROUBLE) return this.owner.stepDown(`status ${status}`);
      return this.fail(open, status, retry);
    }
    if (++this.refusals >= REFUSALS || status === 426) return this.owner.stepDown(status === 426 ? 'another version of the server' : `status ${status}`);
    // Who was let in a day ago may be logged out: a ticket request finds out.
    if (status === 401 || status === 403) for (const channel of open) this.say(channel, { ticket: true });
    else this.again(open);
    this.flush();
  }

  /** @param {MuxChannel[]} open */
  again(open) {
    for (const channel of open) if (this.channels.has(channel.number)) this.wanted.add(channel);
  }

  /**
   * A carrier that takes up channels says so at once, on itself: that may be here before the answer is.
   * @param {MuxCarrier} carrier
   * @param {number} chunks
   */
  expect(carrier, chunks) {
    setTimeout(() => {
      if (carrier.chunks > chunks || this.carriers.get(carrier.id) !== carrier) return;
      if (this.works) this.drop(carrier, 'lost');
      else this.owner.stepDown('nothing comes');   // something on the way collects what should flow
    }, this.works ? 3000 : 2000);
  }

  /**
   * @param {MuxChannel[]} open
   * @param {number} status
   * @param {string | null} [retry]
   */
  fail(open, status, retry = null) {
    for (const channel of open) this.say(channel, { lost: status, retry });
    this.flush();
  }

  /**
   * @param {MuxCarrier} carrier
   * @param {ReadableStreamDefaultReader<Uint8Array>} reader
   */
  async read(carrier, reader) {
    /** @type {Uint8Array} */
    let rest = new Uint8Array(0);
    carrier.watchdog.start(true);
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done || this.carriers.get(carrier.id) !== carrier) break;
        // Another tab may lead since this one was stopped.
        if (!await this.owner.link?.confirmLead()) break;
        carrier.watchdog.heard(false);
        carrier.chunks++;
        this.works = true;
        rest = this.frames(carrier, join(rest, value));
        await this.flush();   // what the tabs do not take waits at the server
      }
    } catch { /* as an end */ }
    this.drop(carrier, 'lost');
  }

  /**
   * @param {MuxCarrier} carrier
   * @param {Uint8Array} bytes
   * @returns {Uint8Array} what is no whole frame yet
   */
  frames(carrier, bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    let at = 0;
    while (bytes.length - at >= 8) {
      const [number, end] = [view.getUint32(at), at + 8 + view.getUint32(at + 4)];
      if (end > bytes.length) break;
      this.frame(carrier, number, bytes.subarray(at + 8, end));
      at = end;
    }
    return bytes.subarray(at);
  }

  /**
   * @param {MuxCarrier} carrier
   * @param {number} number
   * @param {Uint8Array} body
   */
  frame(carrier, number, body) {
    const channel = this.channels.get(number % ABOUT);
    /** @type {MuxWord} */
    const word = number < ABOUT ? { bytes: body.slice() } : JSON.parse(new TextDecoder().decode(body));
    if (channel) this.say(channel, word);
    if (number !== ABOUT) return;
    this.owner.link?.beat();   // the carrier's own sign of life
    if (word.moved) this.drop(carrier, 'moved');   // it was of age
  }

  /**
   * @param {MuxChannel} channel
   * @param {MuxWord} word
   */
  say(channel, word) {
    if (!this.channels.has(channel.number)) return;
    const news = this.news.get(channel.tab) ?? [];
    this.news.set(channel.tab, news);
    news.push([channel.key, word]);
    if (word.bytes || word.status === 200 || word.cookie || word.away) return;   // what is away is told to the server when it is over
    this.forget(channel);   // that was its last word
    this.tidy();
  }

  flush() {
    const { news } = this;
    this.news = new Map();
    return Promise.all([...news].map(([tab, each]) => this.owner.tell(tab, each)));
  }

  /**
   * @param {MuxCarrier} carrier
   * @param {'lost' | 'moved'} [why]
   */
  drop(carrier, why) {
    if (this.carriers.get(carrier.id) !== carrier) return;
    this.carriers.delete(carrier.id);
    carrier.watchdog.stop();
    carrier.abort.abort();
    for (const channel of [...this.channels.values()]) if (channel.carrier === carrier) this.say(channel, why === 'moved' ? { moved: true } : { lost: 0 });
    this.flush();
  }

  /** Somebody looks at a page, or the network is back. */
  check() {
    if (this.carriers.size) this.ask(true);
    for (const carrier of this.carriers.values()) carrier.watchdog.check(true);
  }

  end() {
    this.ended = true;
    clearTimeout(this.timer);
    this.channels.clear();
    for (const carrier of [...this.carriers.values()]) this.drop(carrier);
  }
}

/**
 * @param {Uint8Array} a
 * @param {Uint8Array} b
 */
function join(a, b) {
  if (!a.length) return b;
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}
