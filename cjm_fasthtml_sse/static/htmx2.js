// @ts-check
// The client under htmx 2: an extension of ours takes the place of htmx's extension for server-sent events, under its
// name. That one starts an element anew whose attributes have changed, with a source that the elements within do not
// hear; and it makes a source for an element that htmx drops at once, because it keeps the old one.

serveHtmx[2] = (htmx, client) => {
  /** @type {any} */
  let api;

  // What the extension has put there makes the browser's own sources, nothing more. An app's own function is left.
  const plain = /\{\s*return new EventSource\(\w+, ?\{ ?withCredentials: ?(true|!0) ?\}\);?\s*\}$/;
  if (plain.test(htmx.createEventSource)) htmx.createEventSource = null;

  const ignored = '[hx-disable], [data-hx-disable]';
  const { connections, take, end } = serveElements(htmx, client, ignored, (element, { data }) => {
    api.withExtensions(element, (/** @type {any} */ extension) => {
      data = extension.transformResponse(data, null, element);
    });
    const spec = api.getSwapSpecification(element);
    // A message that is out-of-band altogether leaves the element alone that hears it, as in htmx 4.
    if (spec.swapStyle !== 'none' && isOutOfBand(data)) spec.swapStyle = 'none';
    htmx.swap(spec.swapStyle === 'none' ? element : api.getTarget(element), data, spec, { contextElement: element });
  });

  /** @param {string} html */
  const isOutOfBand = html => {
    if (!html.includes('hx-swap-oob')) return false;
    const template = document.createElement('template');
    template.innerHTML = html;
    for (const found of template.content.querySelectorAll('[hx-swap-oob], [data-hx-swap-oob]')) found.remove();
    return !template.content.childElementCount && !template.content.textContent?.trim();
  };

  const { defineExtension } = htmx;
  // The extension's script may come after this one.
  htmx.defineExtension = (/** @type {string} */ name, /** @type {object} */ extension) => {
    if (name !== 'sse') defineExtension(name, extension);
  };
  htmx.removeExtension('sse');
  defineExtension('sse', {
    init(/** @type {any} */ internal) { api = internal; },
    getSelectors: () => [CONNECTS, LISTENS],
    onEvent(/** @type {string} */ name, /** @type {CustomEvent} */ { detail: { elt } }) {
      if (name === 'htmx:beforeCleanupElement') {
        end(elt, 'nodeReplaced');
        connections.delete(elt);
      } else if (name === 'htmx:afterProcessNode') {
        if (elt.isConnected) take(elt);
        // What htmx has dropped stays outside of the page, what a script processes first comes into it.
        else setTimeout(() => { if (elt.isConnected) take(elt); });
      }
    },
  });
  /** @type {(type: string, f: (detail: any) => void) => void} */
  const on = (type, f) => document.addEventListener(type, event => f(/** @type {CustomEvent} */ (event).detail));

  let unmark = () => {};
  on('htmx:beforeHistorySave', () => { unmark = markPlaces(client); });
  on('htmx:historyItemCreated', () => unmark());
  // A body that htmx exchanges is another page, perhaps another user's.
  on('htmx:beforeSwap', ({ target }) => { if (target === document.body) client.load(1000); });
  // The first comes before a response's elements connect, the second also where the element has left the page.
  for (const type of ['htmx:beforeOnLoad', 'htmx:afterRequest', 'htmx:historyCacheMissLoad']) {
    // Asked for a header that another origin does not show, a browser complains.
    on(type, ({ xhr }) => client.visitor(/^sse-visitor: *(\w+)/im.exec(xhr.getAllResponseHeaders())?.[1] ?? ''));
  }

  const removal = { swapStyle: 'delete', swapDelay: 0, settleDelay: 0, transition: false };
  /** @type {(element: Element) => void} */
  const remove = element => htmx.swap(element, '', removal);

  /**
   * What an out-of-band swap brings, by its detail object.
   * @type {WeakMap<object, {target: Element, former: Node | null, elements: Element[]}>}
   */
  const swaps = new WeakMap();
  document.addEventListener('htmx:oobBeforeSwap', event => {
    const { detail } = /** @type {CustomEvent} */ (event);
    const { target, fragment } = detail;
    // The wrapping element where its children are swapped, a fragment where it replaces its target.
    if (fragment.nodeType !== Node.ELEMENT_NODE) return;
    swaps.set(detail, { target, former: target.firstChild, elements: [...fragment.children] });
  });
  document.addEventListener('htmx:oobAfterSwap', event => {
    const { detail } = /** @type {CustomEvent} */ (event);
    const swap = swaps.get(detail);
    // Where the former children are gone, the content was replaced and nothing was appended. `morph.js` says where it
    // has merged it.
    if (!swap?.former || swap.former.parentNode !== swap.target || detail.fragment.sseMorphed) return;
    takePlaces(swap.elements, remove);
  });
  return remove;
};
