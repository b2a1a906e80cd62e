// @ts-check
// The connections to the server of the tab that leads, called carriers: each brings packets of many channels, and a
// channel stands for one stream of one tab. The multiplexer says what each tab wants, and gets what comes for it.
//
// A carrier lives in one process of the server. A request that meets another process, which knows none of our
// carriers, becomes one itself. So there are as many as processes were met, up to `MAX_CARRIERS`.
//
// When a carrier is lost, its channels wait here, for as long as one tab would. Then one request opens them all.

const HEARTBEATS = 15000;  // milliseconds between two signs of life of a carrier
const MAX_CARRIERS = 3;
const MAX_OPENED = 500;   // channels in one request
const MAX_REQUEST = 2 ** 19;  // bytes of them, as JSON
const MAX_BODY = 2 ** 18;  // bytes of the body of one of them, as JSON
const SEARCH = [1, 30];   // misses in a row, after which one more carrier replaces the oldest; the same, once it has
const REFUSALS = 2;       // in a row: no carrier works here
const TROUBLE = 30000;    // milliseconds of nothing but errors, where no carrier has worked so far
const CONTROL = 2 ** 31;  // added to the number of a channel in a packet about the channel

/** The number of the newest channel of all: one that was closed may still be spoken of. */
let channels = 0;

class Carriers {
  /** @param {Multiplexer} owner */
  constructor(owner) {
    this.owner = owner;
    /** @type {Map<string, MuxCarrier>} */
    this.carriers = new Map();
    /** @type {Map<string, Map<number, MuxChannel>>} the channels that each tab wants, by key */
    this.tabs = new Map();
    /** @type {Map<number, MuxChannel>} those that are not over, by number */
    this.channels = new Map();
    /** @type {Set<MuxChannel>} those of them that are to be opened */
    this.wanted = new Set();
    /** @type {Map<number, MuxCarrier>} to be closed, there */
    this.closing = new Map();
    /** @type {Map<string, [number, LeaderMessage][]>} messages for the tabs */
    this.outbox = new Map();
    this.requesting = this.anyway = this.ended = false;
    this.misses = 0;         // answers in a row from a process where there is no place
    this.search = SEARCH[0];
    this.works = false;      // whether a carrier has ever brought anything
    this.answers = 0;        // that were good
    this.refusals = 0;       // in a row
    this.trouble = 0;        // since when the server answers with errors
    this.tries = 0;          // in a row, in vain
    this.chance = 0;
    this.resting = 0;        // a timer: until then, channels that were lost wait
    this.restEnd = 0;
    this.scheduled = false;  // the server said when to come back
    this.leniency = 1;       // see `Watchdog`
    this.timer = 0;
    this.due = Infinity;     // when the timer fires
  }

  /** The carriers that take more channels. */
  get alive() { return [...this.carriers.values()].filter(({ stops }) => !stops); }

  /** Open and close channels until a tab has those that it wants. @param {string} tab @param {ChannelWish[]} wishes */
  want(tab, wishes) {
    const before = this.tabs.get(tab);
    const after = new Map(wishes.map(wish => [wish.key, before?.get(wish.key) ?? this.open(tab, wish)]));
    this.tabs.set(tab, after);
    for (const [key, channel] of before ?? []) if (!after.has(key)) this.close(channel);
    if (!after.size) this.tabs.delete(tab);
  }

  /** @param {string} tab @param {ChannelWish} wish */
  open(tab, wish) {
    /** @type {MuxChannel} */
    const channel = { ...wish, number: ++channels, tab, carrier: null };
    this.channels.set(channel.number, channel);
    this.wanted.add(channel);
    if (wish.back && !this.alive.length) this.rest(wish.delay);
    // All that come in one go. Not by a timer: those of a hidden tab may take a second.
    if (!this.resting || !wish.back) queueMicrotask(() => this.sendRequest());
    return channel;
  }

  /**
   * Wait until channels are opened again, no longer than any of them wants; returns how long.
   * @param {number} delay
   * @param {number} [after]  what the server asked for
   */
  rest(delay, after = 0) {
    const now = performance.now();
    if (!this.resting) {
      this.chance = Math.random();
      this.restEnd = Infinity;
      this.scheduled = after > 0;
    }
    const end = now + delayOf(delay, this.tries, after, this.chance);
    if (end < this.restEnd) {
      clearTimeout(this.resting);
      this.restEnd = end;
      this.resting = setTimeout(() => this.wake(), end - now);
    }
    return this.restEnd - now;
  }

  /** Rest no more. @param {boolean} [request]  open what has waited */
  wake(request = true) {
    clearTimeout(this.resting);
    this.resting = 0;
    if (request) this.sendRequest();
  }

  /** @param {MuxChannel} channel */
  close(channel) {
    if (!this.forget(channel) || !channel.carrier) return;
    this.closing.set(channel.number, channel.carrier);
    this.sendRequestIn(100);
    this.tidy();
  }

  /** @param {MuxChannel} channel */
  forget(channel) {
    this.wanted.delete(channel);
    return this.channels.delete(channel.number);
  }

  /** End carriers without channels. */
  tidy() {
    if (this.requesting || this.wanted.size) return;
    const used = new Set([...this.channels.values()].map(({ carrier }) => carrier));
    for (const carrier of [...this.carriers.values()]) if (!used.has(carrier)) this.drop(carrier);
  }

  /** Send a request in a while, or earlier if one is due earlier. @param {number} ms */
  sendRequestIn(ms) {
    const due = performance.now() + ms;
    if (due >= this.due) return;
    clearTimeout(this.timer);
    this.due = due;
    this.timer = setTimeout(() => {
      this.due = Infinity;
      this.sendRequest();
    }, ms);
  }

  /** Ask who the visitor is, unless an answer says so meanwhile: a page has loaded, perhaps after a log-in. */
  identify() {
    const { answers } = this;
    setTimeout(() => { if (answers === this.answers) this.sendRequest(true); }, 300);
  }

  /** Request what is to be opened and closed. @param {boolean} [anyway]  there may be nothing */
  async sendRequest(anyway = false) {
    this.anyway ||= anyway;
    if (this.requesting || this.ended) return;
    for (const [number, carrier] of this.closing) if (!this.carriers.has(carrier.id)) this.closing.delete(number);
    let room = MAX_REQUEST;
    const open = [...this.wanted].slice(0, MAX_OPENED).filter(channel => (room -= sizeOf(openingOf(channel))) >= 0);
    const close = [...this.closing.keys()];
    if (!this.anyway && !open.length && !close.length) return;
    this.requesting = true;
    this.anyway = false;
    for (const channel of open) this.wanted.delete(channel);
    const [abort, sent] = [new AbortController(), Date.now()];
    const become = this.carriers.size < MAX_CARRIERS || this.misses > this.search;
    // A carrier says at once that it is one.
    const timer = setTimeout(() => abort.abort(), 5000);
    try {
      const response = await fetch(this.owner.url, {
        method: 'POST', credentials: 'same-origin', cache: 'no-store', signal: abort.signal,
        headers: { 'Content-Type': 'application/json', 'SSE-Mux': `${VERSION}` },
        body: JSON.stringify({
          carriers: this.alive.map(({ id }) => id),
          open: open.map(openingOf), close, become,
        }),
      });
      if (this.ended) abort.abort();   // a carrier that nobody wants any more
      else this.handleAnswer(response, { open, close, become, sent, abort });
    } catch {
      // Something on the way may hold back the beginning of what should flow. Where a carrier has worked, it was chance.
      const refused = !this.works && !this.answers && abort.signal.aborted;
      if (refused && ++this.refusals >= (this.owner.worked ? REFUSALS : 1)) this.owner.giveUp('no answer');
      else this.fail(open);
    }
    clearTimeout(timer);
    this.requesting = false;
    this.tidy();
    if (this.wanted.size && !this.resting || this.anyway) this.sendRequest();
    // This request did not say so yet; or another process has answered, or the server dropped the connection.
    else if (this.closing.size) this.sendRequestIn([...this.closing.keys()].every(o => close.includes(o)) ? 6000 : 100);
  }

  /** @param {Response} response @param {ChannelRequest} request */
  handleAnswer({ status, headers, body }, { open, close, become, sent, abort }) {
    const [id, visitor] = ['SSE-Carrier', 'SSE-Visitor'].map(name => headers.get(name) ?? '');
    if (status === 409 && !become) {   // another process. The connection is closed, and the next one may lead elsewhere
      this.misses++;
      return this.requeue(open);
    }
    if (status !== 200 && status !== 204) return this.handleError(open, status, headers.get('Retry-After'));
    this.refusals = this.trouble = 0;
    this.answers++;
    this.owner.setVisitor(visitor, true);
    for (const other of [...this.carriers.values()]) if (other.visitor !== visitor) this.drop(other, { moved: true });
    if (status === 200 && body) this.read(id, visitor, abort, body.getReader());
    const carrier = this.carriers.get(id);
    if (!carrier) return this.requeue(open);   // it has ended in the meantime
    for (const number of close) if (this.closing.get(number) === carrier) this.closing.delete(number);
    for (const channel of open) {
      if (this.channels.has(channel.number)) channel.carrier = carrier;
      else this.closing.set(channel.number, carrier);   // closed in the meantime
    }
    this.wake(false);
    if (this.tries && status === 200) this.owner.tell({ back: true });
    this.tries = this.misses = 0;
    this.expectPacket(carrier, sent);
    // Those that we meet are others. The channels of the oldest carrier look longer for a place.
    this.search = SEARCH[Number(this.carriers.size > MAX_CARRIERS)];
    if (this.carriers.size > MAX_CARRIERS) this.drop([...this.carriers.values()][0], { moved: true });
    this.flush();
  }

  /** Handle an error. @param {MuxChannel[]} open @param {number} status @param {string | null} retry */
  handleError(open, status, retry) {
    if (status >= 500 || status === 408 || status === 429) {
      this.trouble ||= Date.now();
      const inTime = retry || this.owner.worked || Date.now() - this.trouble < TROUBLE;
      if (inTime) return this.fail(open, status, retryAfter(retry));
    } else if (status !== 426 && ++this.refusals < REFUSALS) {
      // Who was let in a day ago may be logged out: a ticket request finds out.
      return status === 401 || status === 403 ? this.postAll(open, { ticket: true }) : this.requeue(open);
    }
    if (status === 426) console.warn('[sse] the server speaks another version: load the page anew');
    this.owner.giveUp(status === 426 ? 'version' : `status ${status}`);
  }

  /** @param {MuxChannel[]} open */
  requeue(open) {
    for (const channel of open) if (this.channels.has(channel.number)) this.wanted.add(channel);
  }

  /**
   * Open channels later: a request was in vain.
   * @param {MuxChannel[]} open
   * @param {number} [failed]  the status
   * @param {number} [after]  what the server asked for
   */
  fail(open, failed = 0, after = 0) {
    this.requeue(open);
    if (!this.wanted.size) return;
    if (!this.resting) this.tries++;
    const retryIn = this.rest(Math.min(...[...this.wanted].map(({ delay }) => delay)), after);
    this.postAll([...this.wanted], { failed, retryIn });
  }

  /**
   * Give up a carrier that brings nothing: when it takes up channels it says so at once, perhaps before the answer.
   * @param {MuxCarrier} carrier
   * @param {number} sent  when the request was
   */
  expectPacket(carrier, sent) {
    setTimeout(() => {
      if (carrier.activeAt >= sent || this.carriers.get(carrier.id) !== carrier) return;
      if (this.works) this.drop(carrier);
      else this.owner.giveUp('nothing comes');   // something on the way collects what should flow
    }, this.works ? 3000 : 2000);
  }

  /**
   * @param {string} id
   * @param {string} visitor
   * @param {AbortController} abort
   * @param {ReadableStreamDefaultReader<Uint8Array>} reader
   */
  async read(id, visitor, abort, reader) {
    /** @type {MuxCarrier} */
    const carrier = { id, visitor, abort, activeAt: 0, stops: false, watchdog: new Watchdog(() => this.drop(carrier)) };
    this.carriers.set(id, carrier);
    Object.assign(carrier.watchdog, { heartbeat: HEARTBEATS, leniency: this.leniency }).start(true);
    const split = splitPackets((number, body) => this.handle(carrier, number, body));
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done || this.carriers.get(id) !== carrier) break;
        // Another tab may lead since this one was stopped.
        if (!await this.owner.election?.confirmLead()) break;
        carrier.watchdog.note(false);
        carrier.activeAt = Date.now();
        if (!this.works) this.owner.remember({ worked: true });
        this.works = true;
        split(value);
        await this.flush();   // what the tabs do not take waits at the server
      }
    } catch { /* as an end */ }
    this.drop(carrier);
  }

  /** Handle a packet. @param {MuxCarrier} carrier @param {number} number @param {Uint8Array} body */
  handle(carrier, number, body) {
    const channel = this.channels.get(number % CONTROL);
    /** @type {LeaderMessage} */
    const message = number < CONTROL ? { bytes: body.slice() } : JSON.parse(new TextDecoder().decode(body));
    if (message.lost) carrier.stops = true;   // so does the server
    if (channel) this.post(channel, message);
    if (number !== CONTROL) return;
    this.owner.election?.beat();   // the carrier's own sign of life
    if (message.moved) this.drop(carrier, message);   // it was of age
  }

  /** @param {MuxChannel} channel @param {LeaderMessage} message */
  post(channel, message) {
    if (!this.channels.has(channel.number)) return;
    const messages = this.outbox.get(channel.tab) ?? [];
    this.outbox.set(channel.tab, messages);
    messages.push([channel.key, message]);
    // The server hears when a detached channel is over.
    if (message.bytes || message.status === 200 || message.cookie || message.away || message.retryIn) return;
    this.forget(channel);   // that was the last message
    this.tidy();
  }

  /** @param {MuxChannel[]} all @param {LeaderMessage} message */
  postAll(all, message) {
    for (const channel of all) this.post(channel, message);
    this.flush();
  }

  flush() {
    const { outbox } = this;
    this.outbox = new Map();
    return Promise.all([...outbox].map(([tab, messages]) => this.owner.send(tab, messages)));
  }

  /** @param {MuxCarrier} carrier @param {LeaderMessage} [message]  what becomes of its channels */
  drop(carrier, message = { lost: true }) {
    if (this.carriers.get(carrier.id) !== carrier) return;
    this.carriers.delete(carrier.id);
    this.leniency = carrier.watchdog.leniency;
    carrier.watchdog.stop();
    carrier.abort.abort();
    this.postAll([...this.channels.values()].filter(channel => channel.carrier === carrier), message);
  }

  /** Wait no longer, unless the server said when to come back. */
  hurry() {
    if (this.resting && !this.scheduled) this.wake();
  }

  /** Check the carriers: somebody looks at a page, or the network is back. */
  check() {
    this.hurry();
    if (this.carriers.size) this.sendRequest(true);
    this.watch();
  }

  /** Check whether a carrier is silent. */
  watch() {
    for (const carrier of [...this.carriers.values()]) carrier.watchdog.check(true);
  }

  end() {
    this.ended = true;
    clearTimeout(this.timer);
    clearTimeout(this.resting);
    this.channels.clear();
    for (const carrier of [...this.carriers.values()]) this.drop(carrier);
  }
}

/** Make what the server gets of a channel. @param {MuxChannel} channel */
function openingOf({ number, path, ticket, ids, body }) {
  return [number, path, ticket, ...ids].concat(body || []);
}

/** Count the bytes of something as JSON. @param {unknown} value */
function sizeOf(value) {
  return new Blob([JSON.stringify(value)]).size;
}

/**
 * Split bytes into packets: number and length, 4 bytes each, and a body.
 * @param {(number: number, body: Uint8Array) => void} each
 * @returns {(bytes: Uint8Array) => void}  takes the next bytes
 */
function splitPackets(each) {
  let rest = new Uint8Array(0);
  return bytes => {
    const all = new Uint8Array(rest.length + bytes.length);
    all.set(rest);
    all.set(bytes, rest.length);
    const view = new DataView(all.buffer);
    let at = 0;
    for (let end; all.length - at >= 8 && (end = at + 8 + view.getUint32(at + 4)) <= all.length; at = end) {
      each(view.getUint32(at), all.subarray(at + 8, end));
    }
    rest = all.slice(at);
  };
}
