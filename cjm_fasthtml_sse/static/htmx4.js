// @ts-check
// htmx 4 does without `sse-swap`, and its extension hx-sse connects by itself. So under htmx 4 the client serves the attributes that Python writes for both: `sse-connect`,
// `sse-swap`, `sse-close` and `hx-trigger="sse:name"`, with our own sources. htmx swaps. What an app connects by `hx-sse-connect` is left to hx-sse.

serveHtmx[4] = (htmx, client) => {
  const LISTENERS = '[data-sse-swap], [hx-trigger*="sse:"]';
  const OWNER = '[data-sse-connect]';
  /** @type {WeakMap<Element, {url: string, source: SSESource | EventSource, names: Set<string>}>} */
  const connections = new WeakMap();

  /** @type {(element: Element, name: string) => string | null} */
  let attribute = (element, name) => element.getAttribute(name);
  // Only an extension learns what an element inherits; a page may have a list of those it wants.
  htmx.registerExtension('cjm-sse', { init: (/** @type {any} */ api) => { attribute = api.attributeValue; } });

  /** @type {(type: string, f: (event: any) => void) => void} */
  const on = (type, f) => document.addEventListener(type.replaceAll(':', htmx.config.metaCharacter || ':'), f);
  /** @type {(root: Element, selector: string) => Element[]} */
  const all = (root, selector) => [root, ...root.querySelectorAll(selector)].filter(element => element.matches(selector));
  /** @type {(element: Element) => string[]} */
  const swapping = element => (element.getAttribute('data-sse-swap') ?? '').split(',').map(name => name.trim());
  /** @type {(element: Element) => string[]} */
  const triggered = element => (element.getAttribute('hx-trigger') ?? '').match(/(?<=(^|[\s,])sse:)[^\s,[]+/g) ?? [];

  /** @param {Element} root  htmx is about to process it */
  const adopt = root => {
    // Under these names hx-sse neither connects nor warns.
    for (const name of ['sse-connect', 'sse-swap', 'sse-close']) {
      for (const element of all(root, `[${name}]`)) {
        element.setAttribute(`data-${name}`, element.getAttribute(name) ?? '');
        element.removeAttribute(name);
      }
    }
    for (const element of all(root, OWNER)) connect(element);
    for (const element of all(root, LISTENERS)) listen(element.closest(OWNER), [...swapping(element), ...triggered(element)]);
  };

  /** @param {Element} element */
  const connect = element => {
    const url = element.getAttribute('data-sse-connect') ?? '';
    const known = connections.get(element);
    const foreign = new URL(url, document.baseURI).origin !== location.origin;
    if (known?.url === url && (foreign || known.source === client.get(element)) || element.closest('[hx-ignore]')) return;
    known?.source.close();
    const source = foreign ? new EventSource(url, { withCredentials: true }) : client.open(url, element);
    connections.set(element, { url, source, names: new Set() });
    source.addEventListener('open', () => htmx.trigger(element, 'htmx:sseOpen', { source }));
    source.addEventListener('error', () => htmx.trigger(element, 'htmx:sseError', { source }));
    listen(element, [element.getAttribute('data-sse-close')]);
  };

  /** @type {(owner: Element | null, names: (string | null)[]) => void} */
  const listen = (owner, names) => {
    const connection = owner && connections.get(owner);
    for (const name of names) {
      if (!name || !connection || connection.names.has(name)) continue;
      connection.names.add(name);
      connection.source.addEventListener(name, e => { if (e instanceof MessageEvent) deliver(owner, connection.source, e); });
    }
  };

  /**
   * Who wants a message is asked when it comes: elements come and go, and a morph changes their attributes.
   * @type {(owner: Element, source: SSESource | EventSource, message: MessageEvent) => void}
   */
  const deliver = (owner, source, message) => {
    const { type, data } = message;
    if (!owner.isConnected) return source.close();
    for (const element of all(owner, LISTENERS)) {
      if (element.closest(OWNER) !== owner) continue;
      if (swapping(element).includes(type) && htmx.trigger(element, 'htmx:sseBeforeMessage', message)) {
        const [swap, target] = ['hx-swap', 'hx-target'].map(name => attribute(element, name));
        htmx.swap({ sourceElement: element, target, swap, text: data, transition: htmx.config.transitions });
        htmx.trigger(element, 'htmx:sseMessage', message);
      }
      if (triggered(element).includes(type)) htmx.trigger(element, `sse:${type}`, message);
    }
    if (owner.getAttribute('data-sse-close') !== type) return;
    htmx.trigger(owner, 'htmx:sseClose', { source, type: 'message' });
    source.close();
  };

  on('htmx:before:process', ({ target }) => adopt(target));
  if (document.readyState !== 'loading') adopt(document.body);

  on('htmx:before:swap', ({ detail }) => {
    for (const { target, swapSpec } of detail.tasks) {
      if (target === document.body) client.load(1000);
      if (swapSpec.style === 'morph') Object.assign(swapSpec, { style: 'outerMorph', strip: false });
    }
  });
  on('htmx:before:settle', ({ detail: { task, newContent } }) => {
    if (task.type !== 'main' && /^(before|after)/.test(task.swapSpec.style)) takePlaces(newContent, old => htmx.swap({ target: old, text: '', swap: 'delete' }));
  });
};
