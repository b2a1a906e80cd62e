// @ts-check
// What pages with htmx 2 and with htmx 4 have in common. The client serves `sse-connect`, `sse-swap`, `sse-close` and `hx-trigger="sse:name"` itself; htmx says
// what it processes, and swaps.

/** What makes each of them work with our sources, by major version. @type {Record<number, (htmx: any, client: SSEClient) => void>} */
const serveHtmx = {};

const CONNECTS = '[sse-connect], [data-sse-connect]';
const LISTENS = '[sse-swap], [data-sse-swap], [hx-trigger*="sse:"], [data-hx-trigger*="sse:"]';

/** @type {(element: Element, name: string) => string} */
const attr = (element, name) => element.getAttribute(name) ?? element.getAttribute(`data-${name}`) ?? '';
/** @type {(root: Element, selector: string) => Element[]} */
const within = (root, selector) => [root, ...root.querySelectorAll(selector)].filter(element => element.matches(selector));
/** @type {(element: Element) => string[]} */
const swapped = element => attr(element, 'sse-swap').split(',').map(name => name.trim());
/** @type {(element: Element) => string[]} */
const triggers = element => [...attr(element, 'hx-trigger').matchAll(/(?:^|[\s,])sse:([^\s,[]+)/g)].map(([, name]) => name);

/** @typedef {{url: string, source: SSESource | EventSource, own: boolean, names: Set<string>, tries: number}} StreamConnection */

/** The elements of a page that connect to streams, and those that listen. */
class StreamElements {
  /**
   * @param {any} htmx
   * @param {SSEClient} client
   * @param {string} ignored  a selector: what htmx leaves alone
   * @param {(element: Element, message: MessageEvent) => void} swap
   */
  constructor(htmx, client, ignored, swap) {
    this.htmx = htmx;
    this.client = client;
    this.ignored = ignored;
    this.swap = swap;
    /** @type {WeakMap<Element, StreamConnection>} */
    this.connections = new WeakMap();
    /** @type {Element | null} */
    this.connecting = null;
    // An app may have a function of its own here, or set one later, that makes all sources. That of htmx's extension is none.
    const native = /^function\w*\((\w+)\)\{returnneweventsource\(\1,\{withcredentials:(true|!0)\}\)\}$/i;
    if (!htmx.createEventSource || native.test(`${htmx.createEventSource}`.replace(/[\s;]/g, ''))) {
      // Another origin would have to allow our Last-Event-ID header: the browser's own source needs no such thing.
      htmx.createEventSource = (/** @type {string} */ url) => new URL(url, document.baseURI).origin === location.origin
        ? client.open(url, this.connecting) : new EventSource(url, { withCredentials: true });
    }
  }

  /**
   * htmx processes an element, perhaps once more.
   * @param {Element} element
   */
  take(element) {
    if (element.closest(this.ignored)) return;
    if (element.matches(CONNECTS)) this.connect(element);
    if (element.matches(LISTENS)) this.listen(element);
  }

  /**
   * @param {Element} element
   * @param {number} [tries]
   */
  connect(element, tries = 0) {
    const { client, htmx } = this;
    const url = attr(element, 'sse-connect');
    const known = this.connections.get(element);
    // An element that has left the page, and has come back, has lost its source.
    if (known?.url === url && (!known.own || client.get(element) === known.source)) return;
    known?.source.close();
    this.connecting = element;
    try {
      /** @type {SSESource | EventSource} */
      const source = htmx.createEventSource(url);
      const connection = { url, source, own: client.get(element) === source, names: new Set(), tries };
      this.connections.set(element, connection);
      this.watch(element, connection);
    } finally {
      this.connecting = null;
    }
    this.hear(element, [attr(element, 'sse-close')]);
    for (const listener of this.listeners(element)) this.listen(listener);
  }

  /**
   * Tell the page of a connection, by events on its element.
   * @param {Element} element
   * @param {StreamConnection} connection
   */
  watch(element, connection) {
    const { source, own } = connection;
    /** @type {Partial<SSEStateDetail>} */
    let said = {};
    const failed = () => {
      const { reason, status } = said;
      const detail = { source, error: Object.assign(new Error(reason || 'connection lost'), { status }) };
      // By htmx 2 itself each would be in the console as well.
      for (const type of ['htmx:sseError', 'htmx:sse-error']) element.dispatchEvent(new CustomEvent(type, { detail, bubbles: true, cancelable: true, composed: true }));
    };
    // A server may name its events like these.
    source.addEventListener('open', event => {
      if ('data' in event) return;
      connection.tries = 0;
      this.htmx.trigger(element, 'htmx:sseOpen', { source });
    });
    source.addEventListener('sse:state', event => {
      if (!(event instanceof CustomEvent)) return;
      said = event.detail;
      if (said.state === 'error') failed();
    });
    source.addEventListener('error', event => {
      if ('data' in event) return;
      failed();
      // A source of the browser's own does not come back from an answer that is no stream.
      if (!own && source.readyState === 2) setTimeout(() => {
        if (!element.isConnected || this.connections.get(element) !== connection) return;
        this.connections.delete(element);
        this.connect(element, connection.tries + 1);
      }, 500 * 2 ** Math.min(connection.tries, 7));
    });
  }

  /**
   * Who listens to the stream of an element.
   * @param {Element} owner
   */
  listeners(owner) {
    return within(owner, LISTENS).filter(element => element.closest(CONNECTS) === owner && !element.closest(this.ignored));
  }

  /** @param {Element} element */
  listen(element) {
    const owner = element.closest(CONNECTS);
    if (owner) this.hear(owner, [...swapped(element), ...triggers(element)]);
  }

  /**
   * @param {Element} owner
   * @param {string[]} names
   */
  hear(owner, names) {
    const connection = this.connections.get(owner);
    for (const name of names) {
      if (!name || !connection || connection.names.has(name)) continue;
      connection.names.add(name);
      connection.source.addEventListener(name, event => { if ('data' in event) this.deliver(owner, connection.source, /** @type {MessageEvent} */ (event)); });
    }
  }

  /**
   * Who wants a message is asked when it comes: elements come, go and move, a morph changes their attributes, and some are processed twice.
   * @param {Element} owner
   * @param {SSESource | EventSource} source
   * @param {MessageEvent} message
   */
  deliver(owner, source, message) {
    const { htmx } = this;
    const { type } = message;
    if (!owner.isConnected) return source.close();
    for (const element of this.listeners(owner)) {
      if (!element.isConnected) continue;   // one before it has swapped it away
      try {
        if (swapped(element).includes(type) && htmx.trigger(element, 'htmx:sseBeforeMessage', message)) {
          this.swap(element, message);
          htmx.trigger(element, 'htmx:sseMessage', message);
        }
        if (triggers(element).includes(type)) htmx.trigger(element, `sse:${type}`, message);
      } catch (error) {
        reportError(error);   // the others are to have it
      }
    }
    if (attr(owner, 'sse-close') === type) this.end(owner, 'message');
  }

  /**
   * @param {Element} element
   * @param {string} type  why
   */
  end(element, type) {
    const source = this.connections.get(element)?.source;
    if (!source) return;
    this.htmx.trigger(element, 'htmx:sseClose', { source, type });
    source.close();
  }
}

/**
 * Change attributes for no longer than a step of htmx takes: htmx compares them, to see what has become of an element.
 * @param {[element: Element, name: string, value: string | null][]} changes
 * @returns {() => void}  undoes them; else that happens when the script that runs is done
 */
function briefly(changes) {
  /** @param {typeof changes[0]} change */
  const write = ([element, name, value]) => value === null ? element.removeAttribute(name) : element.setAttribute(name, value);
  const former = changes.map(([element, name]) => /** @type {typeof changes[0]} */ ([element, name, element.getAttribute(name)]));
  changes.forEach(write);
  const undo = () => former.splice(0).forEach(write);
  queueMicrotask(undo);
  return undo;
}

/**
 * For as long as htmx copies the page, which it may draw again on Back: the copy's streams go on from here.
 * @param {SSEClient} client
 */
function markPlaces(client) {
  return briefly([...client.entries].flatMap(({ element, source: { lastEventId } }) => element && lastEventId ? [[element, 'data-sse-after', lastEventId]] : []));
}

/**
 * A response to a request of htmx says who the visitor is.
 * @param {SSEClient} client
 * @param {string} url  of the response: who another origin takes us for is of no interest
 * @param {(name: string) => string | null} header
 */
function heedVisitor(client, url, header) {
  if (new URL(url, document.baseURI).origin !== location.origin) return;
  const tag = header('SSE-Visitor');
  if (tag) /** @type {any} */ (client).visitor?.(tag);
}

/**
 * A snapshot may already hold a change that is sent after it, so an element may be appended whose id stands in the page. It takes the place of the old one.
 * @param {Node[]} newcomers
 * @param {(old: Element) => void} remove  in htmx's own way, which also ends what goes on within the element
 */
function takePlaces(newcomers, remove) {
  for (const element of newcomers) {
    if (!(element instanceof Element) || !element.id) continue;
    for (const old of document.querySelectorAll(`[id="${CSS.escape(element.id)}"]`)) {
      if (newcomers.includes(old)) continue;
      if (old.parentNode === element.parentNode) old.before(element);
      remove(old);
    }
  }
}
