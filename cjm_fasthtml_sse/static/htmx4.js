// @ts-check
// htmx 4 has other attributes than htmx 2 and its extension, and its own extension knows neither named events nor our source. So the client itself serves, under htmx 4,
// the attributes that Python writes for both: `sse-connect`, `sse-swap`, `sse-close`, and `hx-trigger="sse:name"`. What swaps is htmx. `hx-sse-connect` of an app's own goes on
// as the extension hx-sse does it.

/** A source of ours, or the browser's own where the stream is of another origin. @typedef {SSESource | EventSource} AnySource */

/**
 * @param {any} htmx
 * @param {SSEClient} client
 */
function serveHtmx4(htmx, client) {
  /** @type {(type: string, f: (detail: any, target: Element) => void) => void} */
  const on = (type, f) => document.addEventListener(type.replaceAll(':', htmx.config.metaCharacter || ':'), e => {
    f(/** @type {CustomEvent} */ (e).detail, /** @type {Element} */ (e.target));
  });
  let attribute = (/** @type {Element} */ element, /** @type {string} */ name) => element.getAttribute(name);
  // A page may approve extensions by name: without approval nothing is inherited.
  htmx.registerExtension('cjm-sse', { init: (/** @type {any} */ api) => { attribute = api.attributeValue; } });

  const LISTENERS = '[data-sse-swap], [hx-trigger*="sse:"], [data-hx-trigger*="sse:"]';
  /** @type {WeakMap<Element, {url: string, source: AnySource, names: Set<string>}>} */
  const connections = new WeakMap();

  const swapped = (/** @type {Element} */ element) => (element.getAttribute('data-sse-swap') ?? '').split(',').map(name => name.trim()).filter(Boolean);
  const triggering = (/** @type {Element} */ element) => [...(attribute(element, 'hx-trigger') ?? '').matchAll(/(?:^|[\s,])sse:([^\s,[]+)/g)].map(match => match[1]);
  const all = (/** @type {Element} */ root, /** @type {string} */ selector) => [...(root.matches(selector) ? [root] : []), ...root.querySelectorAll(selector)];

  /** @param {Element} root  htmx is about to process it */
  const adopt = root => {
    // Under these names hx-sse does not take them for its own, nor warns of them.
    for (const name of ['connect', 'swap', 'close']) {
      for (const element of all(root, `[sse-${name}]`)) {
        element.setAttribute(`data-sse-${name}`, element.getAttribute(`sse-${name}`) ?? '');
        element.removeAttribute(`sse-${name}`);
      }
    }
    for (const element of all(root, '[data-sse-connect]')) connect(element);
    for (const element of all(root, LISTENERS)) {
      const owner = element.closest('[data-sse-connect]');
      if (owner) listen(owner, [...swapped(element), ...triggering(element)]);
    }
  };

  /** @param {Element} element */
  const connect = element => {
    const url = element.getAttribute('data-sse-connect') ?? '';
    const known = connections.get(element);
    const foreign = new URL(url, document.baseURI).origin !== location.origin;
    if (known?.url === url && (foreign || known.source === client.get(element)) || element.closest('[hx-ignore], [data-hx-ignore]')) return;
    if (known) known.source.close();
    const source = foreign ? new EventSource(url, { withCredentials: true }) : client.open(url, element);
    connections.set(element, { url, source, names: new Set() });
    source.addEventListener('open', () => htmx.trigger(element, 'htmx:sseOpen', { source, elt: element }));
    source.addEventListener('error', error => { if (!(error instanceof MessageEvent)) htmx.trigger(element, 'htmx:sseError', { error, source, elt: element }); });
    const closing = element.getAttribute('data-sse-close');
    if (closing) listen(element, [closing]);
  };

  /**
   * @param {Element} owner
   * @param {string[]} names
   */
  const listen = (owner, names) => {
    const connection = connections.get(owner);
    for (const name of connection ? names : []) {
      const { source, names } = /** @type {NonNullable<typeof connection>} */ (connection);
      if (names.has(name)) continue;
      names.add(name);
      source.addEventListener(name, e => { if (e instanceof MessageEvent) deliver(owner, source, name, e); });
    }
  };

  /**
   * Who wants a message is asked when it comes: elements come and go, and a morph changes their attributes.
   * @param {Element} owner
   * @param {AnySource} source
   * @param {string} name
   * @param {MessageEvent} message
   */
  const deliver = (owner, source, name, message) => {
    if (!owner.isConnected) return source.close();
    for (const element of all(owner, LISTENERS)) {
      if (element.closest('[data-sse-connect]') !== owner) continue;
      if (swapped(element).includes(name) && htmx.trigger(element, 'htmx:sseBeforeMessage', message)) {
        const [swap, target] = ['hx-swap', 'hx-target'].map(name => attribute(element, name) ?? undefined);
        htmx.swap({ sourceElement: element, target, swap, text: message.data, transition: htmx.config.transitions });
        htmx.trigger(element, 'htmx:sseMessage', message);
      }
      if (triggering(element).includes(name)) htmx.trigger(element, `sse:${name}`, message);
    }
    if (owner.getAttribute('data-sse-close') !== name) return;
    htmx.trigger(owner, 'htmx:sseClose', { source, type: 'message', elt: owner });
    source.close();
  };

  on('htmx:before:process', (_, root) => adopt(root));
  if (document.readyState !== 'loading') adopt(document.body);

  on('htmx:before:swap', ({ tasks }) => {
    for (const { swapSpec } of tasks) if (swapSpec?.style === 'morph') Object.assign(swapSpec, { style: 'outerMorph', strip: false });
  });
  on('htmx:before:settle', ({ task, newContent }) => {
    if (task.type === 'main' || !/^(before|after)/.test(task.swapSpec.style)) return;
    takePlaces(newContent, old => htmx.swap({ target: old, text: '', swap: 'delete' }));
  });
}
