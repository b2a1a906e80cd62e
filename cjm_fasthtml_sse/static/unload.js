// @ts-check
// Closes the browser's own event sources when a page is left, and opens them again when Back brings the page back. For
// pages without our client, see `cleanup_sse_on_unload`. `beforeunload` would keep the page out of the back/forward
// cache, or bring it back dead.
{
  const sources = () => [...document.querySelectorAll('[sse-connect], [data-sse-connect]')]
    .map(element => /** @type {any} */ (element)['htmx-internal-data']?.sseEventSource)
    .filter(source => source instanceof EventSource);
  /** @type {EventSource[]} */
  let left = [];
  window.addEventListener('pagehide', () => {
    if (window.cjmSSE) return;   // the client looks after its own
    left = sources().filter(source => source.readyState !== EventSource.CLOSED);
    for (const source of left) source.close();
  });
  window.addEventListener('pageshow', event => {
    // The extension makes a new source when a closed one reports an error.
    if (event.persisted) for (const source of left.splice(0)) source.dispatchEvent(new Event('error'));
  });
}
