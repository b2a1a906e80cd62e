// @ts-check
// Out-of-band elements that come twice. A snapshot may already hold a change that is sent after it, so an element may be appended whose id stands in the page:
// the newcomer takes the place of the old one.

/**
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

const NOT_INLINE = Node.ELEMENT_NODE;  // htmx 2 hands over the wrapping element where its children are swapped, and a fragment where it replaces its target

/** @param {any} htmx  htmx 2 */
function replaceRepeated(htmx) {
  /**
   * What a swap brings, by its detail object.
   * @type {WeakMap<object, {target: Element, former: Node | null, elements: Element[]}>}
   */
  const swaps = new WeakMap();

  document.addEventListener('htmx:oobBeforeSwap', event => {
    const { detail } = /** @type {CustomEvent} */ (event);
    const { target, fragment } = detail;
    if (fragment.nodeType !== NOT_INLINE) return;
    swaps.set(detail, { target, former: target.firstChild, elements: [...fragment.children] });
  });

  document.addEventListener('htmx:oobAfterSwap', event => {
    const { detail } = /** @type {CustomEvent} */ (event);
    const swap = swaps.get(detail);
    swaps.delete(detail);
    // Where the former children are gone, the content was replaced and nothing was appended. `morph.js` says where it has merged it.
    if (!swap?.former || swap.former.parentNode !== swap.target || detail.fragment.sseMorphed) return;
    takePlaces(swap.elements, old => htmx.swap(old, '', { swapStyle: 'delete', swapDelay: 0, settleDelay: 0, transition: false }));
  });
}

/**
 * A message that is out-of-band altogether leaves the element alone that hears it. htmx 4 does so by itself.
 * @param {any} htmx  htmx 2
 */
function spareTargets(htmx) {
  document.addEventListener('htmx:sseBeforeMessage', event => {
    const element = /** @type {Element} */ (event.target);
    const message = /** @type {CustomEvent} */ (event).detail;
    if (event.defaultPrevented || element.getAttribute('hx-swap') === 'none' || !message.data?.includes('hx-swap-oob')) return;
    const template = document.createElement('template');
    template.innerHTML = message.data;
    for (const found of template.content.querySelectorAll('[hx-swap-oob], [data-hx-swap-oob]')) found.remove();
    if (template.content.childElementCount || template.content.textContent?.trim()) return;
    event.preventDefault();
    htmx.swap(element, message.data, { swapStyle: 'none', swapDelay: 0, settleDelay: htmx.config.defaultSettleDelay }, { contextElement: element });
    htmx.trigger(element, 'htmx:sseMessage', message);
  });
}
