// @ts-check
// htmx 2: its extension for server-sent events gets our sources, and two of its habits are mended.

serveHtmx[2] = (htmx, client) => {
  /** @type {Element | null} */
  let processed = null;
  // The extension makes a source right after this event, and does not say for which element.
  document.addEventListener('htmx:afterProcessNode', e => { processed = /** @type {Element} */ (e.target); }, true);
  const own = htmx.createEventSource;
  htmx.createEventSource = (/** @type {string} */ url) => {
    // Another origin would have to allow our Last-Event-ID header: the browser's own source needs no such thing.
    if (new URL(url, document.baseURI).origin !== location.origin) return own ? own(url) : new EventSource(url, { withCredentials: true });
    const connects = (processed?.getAttribute('sse-connect') ?? processed?.getAttribute('data-sse-connect')) === url;
    return client.open(url, connects ? processed : null);
  };

  // What htmx keeps of the page, to draw it again on Back, goes on from here.
  document.addEventListener('htmx:beforeHistorySave', () => {
    for (const { element, source } of client.entries) if (source.lastEventId) element?.setAttribute('data-sse-after', source.lastEventId);
  });
  // A body that htmx exchanges is another page, perhaps another user's.
  document.addEventListener('htmx:beforeSwap', e => { if (/** @type {CustomEvent} */ (e).detail.target === document.body) client.load(1000); });

  /**
   * What an out-of-band swap brings, by its detail object.
   * @type {WeakMap<object, {target: Element, former: Node | null, elements: Element[]}>}
   */
  const swaps = new WeakMap();
  document.addEventListener('htmx:oobBeforeSwap', event => {
    const { detail } = /** @type {CustomEvent} */ (event);
    const { target, fragment } = detail;
    // The wrapping element where its children are swapped, a fragment where it replaces its target.
    if (fragment.nodeType === Node.ELEMENT_NODE) swaps.set(detail, { target, former: target.firstChild, elements: [...fragment.children] });
  });
  document.addEventListener('htmx:oobAfterSwap', event => {
    const { detail } = /** @type {CustomEvent} */ (event);
    const swap = swaps.get(detail);
    // Where the former children are gone, the content was replaced and nothing was appended. `morph.js` says where it has merged it.
    if (!swap?.former || swap.former.parentNode !== swap.target || detail.fragment.sseMorphed) return;
    takePlaces(swap.elements, old => htmx.swap(old, '', { swapStyle: 'delete', swapDelay: 0, settleDelay: 0, transition: false }));
  });

  // A message that is out-of-band altogether leaves the element alone that hears it, as in htmx 4.
  document.addEventListener('htmx:sseBeforeMessage', event => {
    const element = /** @type {Element} */ (event.target);
    const message = /** @type {CustomEvent} */ (event).detail;
    if (event.defaultPrevented) return;
    const swap = element.getAttribute('hx-swap');
    if (swap === 'none' || !message.data?.includes('hx-swap-oob')) return;
    const template = document.createElement('template');
    template.innerHTML = message.data;
    for (const found of template.content.querySelectorAll('[hx-swap-oob], [data-hx-swap-oob]')) found.remove();
    if (template.content.childElementCount || template.content.textContent?.trim()) return;
    event.preventDefault();
    htmx.swap(element, message.data, { swapStyle: 'none', swapDelay: 0, settleDelay: htmx.config.defaultSettleDelay }, { contextElement: element });
    htmx.trigger(element, 'htmx:sseMessage', message);
  });
};
