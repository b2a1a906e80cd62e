// @ts-check
// Out-of-band elements that come twice. A snapshot may already hold a change that is sent after it, so an element may be appended whose id stands in the page:
// the newcomer takes the place of the old one.

const NOT_INLINE = Node.ELEMENT_NODE;  // htmx hands over the wrapping element where its children are swapped, and a fragment where it replaces its target

/** @param {any} htmx */
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
    swaps.set(detail, { target, former: target.firstChild, elements: [...fragment.children].filter(element => element.id) });
  });

  document.addEventListener('htmx:oobAfterSwap', event => {
    const { detail } = /** @type {CustomEvent} */ (event);
    const swap = swaps.get(detail);
    swaps.delete(detail);
    // Where the former children are gone, the content was replaced and nothing was appended.
    if (!swap?.former || swap.former.parentNode !== swap.target) return;
    for (const element of swap.elements) {
      for (const old of document.querySelectorAll(`[id="${CSS.escape(element.id)}"]`)) {
        if (old === element || swap.elements.includes(old)) continue;
        if (old.parentNode === element.parentNode) old.before(element);
        htmx.swap(old, '', { swapStyle: 'delete', swapDelay: 0, settleDelay: 0, transition: false });
      }
    }
  });
}
