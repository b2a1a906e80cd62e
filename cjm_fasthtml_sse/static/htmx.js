// @ts-check
// The elements of a page that connect to streams, and those that listen: what htmx 2 and htmx 4 have in common. The
// client serves `sse-connect`, `sse-swap`, `sse-close` and `hx-trigger="sse:name"` itself; htmx says what it processes,
// and swaps. htmx2.js and htmx4.js call `serveElements`.

/**
 * What makes each htmx work with our sources, by its major version; returns how it removes an element.
 * @type {Record<number, (htmx: any, client: SSEClient) => (element: Element) => void>}
 */
const serveHtmx = {};

const CONNECTS = '[sse-connect], [data-sse-connect]';
const LISTENS = '[sse-swap], [data-sse-swap], [hx-trigger*="sse:"], [data-hx-trigger*="sse:"]';

/** @type {(element: Element, name: string) => string} */
const attr = (element, name) => element.getAttribute(name) ?? element.getAttribute(`data-${name}`) ?? '';
/** @type {(root: Element, selector: string) => Element[]} */
const within = (root, selector) => [root, ...root.querySelectorAll(selector)].filter(o => o.matches(selector));
/** @type {(element: Element) => string[]} */
const swapped = element => attr(element, 'sse-swap').split(',').map(name => name.trim());
/** @type {(element: Element) => string[]} */
const triggers = element =>
  [...attr(element, 'hx-trigger').matchAll(/(?:^|[\s,])sse:([^\s,[]+)/g)].map(([, name]) => name);

/** @typedef {{url: string, source: SSESource | EventSource, names: Set<string>}} StreamConnection */

/**
 * Serve the elements that connect to streams, and those that listen.
 * @param {any} htmx
 * @param {SSEClient} client
 * @param {string} ignored  a selector: what htmx leaves alone
 * @param {(element: Element, message: MessageEvent) => void} swap
 */
function serveElements(htmx, client, ignored, swap) {
  /** @type {WeakMap<Element, StreamConnection>} */
  const connections = new WeakMap();
  /** @type {Element | null} */
  let connecting = null;

  // An app may have a function of its own here, or set one later, which makes all sources then.
  // Another origin would have to allow our Last-Event-ID header: the browser's own source needs no such thing.
  htmx.createEventSource ??= (/** @type {string} */ url) => new URL(url, document.baseURI).origin === location.origin
    ? client.open(url, connecting) : new EventSource(url, { withCredentials: true });

  /** Get those that listen to the stream of an element. @param {Element} owner */
  const listeners = owner =>
    within(owner, LISTENS).filter(element => element.closest(CONNECTS) === owner && !element.closest(ignored));

  /**
   * Serve an element that htmx processes, perhaps once more.
   * @param {Element} element
   */
  const take = element => {
    if (element.closest(ignored)) return;
    if (element.matches(CONNECTS)) connect(element);
    listen(element);
  };

  /** @param {Element} element */
  const connect = element => {
    const url = attr(element, 'sse-connect');
    const known = connections.get(element);
    if (known) {
      const { source } = known;
      // An element that has left the page, and has come back, has lost its source.
      if (known.url === url && (client.get(element) === source || !(source instanceof SSESource))) return;
      source.close();
    }
    connecting = element;
    const source = htmx.createEventSource(url);
    connecting = null;
    connections.set(element, { url, source, names: new Set() });
    watch(element, source);
    subscribe(element, [attr(element, 'sse-close')]);
    listeners(element).forEach(listen);
  };

  /**
   * Dispatch events in the page about what becomes of a source.
   * @param {Element} element
   * @param {SSESource | EventSource} source
   */
  const watch = (element, source) => {
    const failed = ({ reason = 'connection lost', status } = /** @type {Partial<SSEStateDetail>} */ ({})) => {
      const detail = { source, error: Object.assign(new Error(reason), { status }) };
      // By htmx 2 itself each would be in the console as well.
      for (const type of ['htmx:sseError', 'htmx:sse-error']) {
        element.dispatchEvent(new CustomEvent(type, { detail, bubbles: true, composed: true }));
      }
    };
    // A server may name its events like these: those have data, and no detail.
    source.addEventListener('open', event => {
      if (!('data' in event)) htmx.trigger(element, 'htmx:sseOpen', { source });
    });
    source.addEventListener('sse:state', event => {
      const { detail } = /** @type {CustomEvent<SSEStateDetail>} */ (event);
      if (detail?.retryIn || detail?.state === 'error') failed(detail);
    });
    source.addEventListener('error', event => {
      if ('data' in event || source instanceof SSESource) return;
      failed();
      // The browser's own source does not come back from an answer that is no stream.
      if (source.readyState === 2) setTimeout(() => {
        if (!element.isConnected || connections.get(element)?.source !== source) return;
        connections.delete(element);
        connect(element);
      }, 1000 + 3000 * Math.random());
    });
  };

  /** Listen for an element to the stream around it. @param {Element} element */
  const listen = element => subscribe(element.closest(CONNECTS), [...swapped(element), ...triggers(element)]);

  /**
   * @param {Element | null} owner
   * @param {string[]} names
   */
  const subscribe = (owner, names) => {
    const connection = owner && connections.get(owner);
    for (const name of names) {
      if (!name || !connection || connection.names.has(name)) continue;
      connection.names.add(name);
      connection.source.addEventListener(name, event => {
        if ('data' in event) deliver(owner, /** @type {MessageEvent} */ (event));
      });
    }
  };

  /**
   * Deliver a message to those that listen now: elements come, go and move, a morph changes their attributes, and some
   * are processed twice.
   * @param {Element} owner
   * @param {MessageEvent} message
   */
  const deliver = (owner, message) => {
    const { type } = message;
    for (const element of listeners(owner)) {
      if (!element.isConnected) continue;   // one before it has swapped it away
      try {
        if (swapped(element).includes(type) && htmx.trigger(element, 'htmx:sseBeforeMessage', message)) {
          swap(element, message);
          htmx.trigger(element, 'htmx:sseMessage', message);
        }
        if (triggers(element).includes(type)) htmx.trigger(element, `sse:${type}`, message);
      } catch (error) {
        reportError(error);   // the others still get it
      }
    }
    if (!owner.isConnected || attr(owner, 'sse-close') === type) end(owner, 'message');
  };

  /**
   * @param {Element} element
   * @param {string} type  why
   */
  const end = (element, type) => {
    const source = connections.get(element)?.source;
    if (!source) return;
    htmx.trigger(element, 'htmx:sseClose', { source, type });
    source.close();
  };

  return { connections, take, end };
}

/**
 * Change attributes for no longer than a step of htmx takes: htmx compares them, to see what has become of an element.
 * @param {[element: Element, name: string, value: string | null][]} changes
 * @returns {() => void}  undoes them; else that happens when the script that runs is done
 */
function briefly(changes) {
  /** @type {(change: typeof changes[0]) => typeof changes[0]} */
  const write = ([element, name, value]) => {
    const former = element.getAttribute(name);
    if (value === null) element.removeAttribute(name);
    else element.setAttribute(name, value);
    return [element, name, former];
  };
  const former = changes.map(write);
  const undo = () => { former.splice(0).map(write); };
  queueMicrotask(undo);
  return undo;
}

/**
 * Mark where streams stand while htmx copies the page, which it may draw again on Back: the copy's go on from here.
 * @param {SSEClient} client
 */
function markPlaces(client) {
  return briefly([...client.entries].flatMap(({ element, source: { lastEventId } }) =>
    element && lastEventId ? [[element, 'data-sse-after', lastEventId]] : []));
}

/**
 * Let appended elements take the places of those with their ids: a snapshot may already hold a change that is sent
 * after it.
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
