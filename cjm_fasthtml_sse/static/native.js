// @ts-check
// The monitor on pages without our client, where the browser's own EventSource connects: htmx's extension dispatches
// events about it. It has a watchdog of ours, which makes the extension connect anew after a silence. monitor.js calls
// `watchNative` where this file is in the page.

/** @param {ConnectionMonitor} monitor */
function watchNative(monitor) {
  const { settings } = monitor;
  /** @type {MonitoredSource | null} */
  let known = null;
  // Our own source watches its silence itself.
  const watchdog = monitor.watchdog = new Watchdog(() => {
    // The extension makes a new source when a closed one reports an error.
    known?.close();
    known?.dispatchEvent(new Event('error'));
  });
  watchdog.timeout = settings.heartbeat_timeout;
  monitor.end.signal.addEventListener('abort', () => watchdog.stop());

  /** @type {(type: string, f: (source: MonitoredSource, element: Element) => void) => void} */
  const on = (type, f) => monitor.on(document, `htmx:${type}`, ({ source }, { target }) => {
    if (source && !source.configure && monitor.concerns(target)) f(source, /** @type {Element} */ (target));
  });
  on('sseOpen', (source, element) => {
    if (source !== known) {
      known = monitor.source = source;
      const names = (element.getAttribute('sse-swap') ?? '').split(',').map(name => name.trim());
      const note = () => watchdog.note(false);
      for (const name of new Set(['message', ...names])) if (name) source.addEventListener(name, note);
      source.addEventListener('sse:heartbeat', () => watchdog.note(true));
    }
    watchdog.start(true);
    monitor.show('active', {});
  });
  on('sseError', (source, element) => {
    watchdog.stop();
    if (settings.auto_reconnect) return monitor.show('reconnecting', {});
    // Without its address the extension can't make a new source.
    element.removeAttribute('sse-connect');
    source.close();
    monitor.show('disconnected', {});
  });
  monitor.on(document, 'htmx:sseClose', ({ source }, { target }) => {
    if (!source || source.configure || /** @type {Element} */ (target).id !== settings.sse_element_id) return;
    watchdog.stop();
    // Another element with its id has taken its place.
    monitor.show(monitor.concerns(target) ? 'disconnected' : 'connecting', {});
  });
  monitor.on(document, 'visibilitychange', () => { if (!document.hidden) watchdog.check(true); });
}
