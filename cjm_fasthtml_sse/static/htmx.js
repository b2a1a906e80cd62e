// @ts-check
// What pages with htmx 2 and with htmx 4 have in common.

/** What makes each of them work with our sources, by major version. @type {Record<number, (htmx: any, client: SSEClient) => void>} */
const serveHtmx = {};

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
