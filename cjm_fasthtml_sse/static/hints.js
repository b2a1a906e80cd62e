// @ts-check
// Says in the console what would else be silent, once for each place: an event that nothing listens to, an element that
// is not in the page, a stream that is not connected. For developers: `setup_sse` loads it only on localhost and with
// `debug`, beside the client.

(() => {
  const client = window.cjmSSE;
  if (!client) return;

  /** @type {Set<string>} */
  const given = new Set();

  /**
   * @param {string} place  that the hint is about; numbers in it do not count, as ids of rows have them
   * @param {string} text
   * @param {string | Element} [about]
   */
  const hint = (place, text, about = '') => {
    place = place.replace(/\d+/g, '0');
    if (given.has(place) || given.size >= 100) return;
    given.add(place);
    const html = about instanceof Element ? about.outerHTML : about;
    console.warn(`[sse] ${text}. See "Nothing happens" in the documentation.`, html);
  };

  /**
   * Count the letters that differ.
   * @param {string} a
   * @param {string} b
   */
  const distance = (a, b) => {
    let row = [...Array(b.length + 1).keys()];
    for (let i = 1; i <= a.length; i++) {
      const next = [i];
      for (let j = 1; j <= b.length; j++) {
        const same = a[i - 1] === b[j - 1];
        next[j] = Math.min(next[j - 1] + 1, row[j] + 1, row[j - 1] + (same ? 0 : 1));
      }
      row = next;
    }
    return row[b.length];
  };

  /**
   * Find the one of `known` that `name` was meant to be; returns words for the end of a sentence.
   * @param {string} name
   * @param {Iterable<string>} known
   */
  const meant = (name, known) => {
    const far = (/** @type {string} */ other) => distance(name.toLowerCase(), other.toLowerCase());
    const [best] = [...known].map(other => ({ other, far: far(other) })).sort((a, b) => a.far - b.far);
    return best && best.far <= Math.max(1, name.length / 4) ? `; did you mean "${best.other}"?` : '';
  };

  /** Get the address that an element connects to. @param {Element | null} element */
  const address = element => element?.getAttribute('sse-connect') ?? element?.getAttribute('data-sse-connect') ?? '';

  const OUT_OF_BAND = '[hx-swap-oob], [data-hx-swap-oob]';

  /**
   * Check that the page has the place for an out-of-band element, and that what it appends has ids.
   * @param {Element} element
   * @param {DocumentFragment} content  of the message
   * @param {string} url
   */
  const lookAt = (element, content, url) => {
    const value = element.getAttribute('hx-swap-oob') ?? element.getAttribute('data-hx-swap-oob') ?? '';
    const [, style, selector] = /^([^\s:]+):(.+)$/.exec(value) ?? [null, value, `#${CSS.escape(element.id)}`];
    if (value === 'false') return;
    let target = null;
    try {
      target = document.querySelector(selector) ?? content.querySelector(`${selector}:not(${OUT_OF_BAND})`);
    } catch {
      return hint(`${url} ${selector}`, `"${selector}" is no CSS selector, in hx-swap-oob="${value}"`, element);
    }
    if (!target && !/^delete/.test(style)) {
      const ids = [...document.querySelectorAll('[id]')].map(({ id }) => id);
      const close = meant(selector.replace(/^#/, '').replaceAll('\\', ''), ids);
      return hint(`${url} ${selector}`, `The page has no element ${selector} for what ${url} brings${close}`, element);
    }
    if (!/^(before|after)/.test(style)) return;
    const nameless = [...element.children].find(({ id, tagName }) => !id && !/^(SCRIPT|TEMPLATE|BR|HR)$/.test(tagName));
    const why = 'a message may come twice, and only an element whose id stands in the page takes its place';
    const what = `An element without an id is appended to ${selector}`;
    if (nameless) hint(`${url} ${selector} id`, `${what}: ${why}`, nameless);
  };

  document.addEventListener('htmx:sseBeforeMessage', event => {
    const element = /** @type {Element} */ (event.target);
    const { data } = /** @type {CustomEvent<MessageEvent>} */ (event).detail;
    if (typeof data !== 'string' || !/^\s*</.test(data)) return;   // Text and JSON are for scripts.
    const url = address(element.closest('[sse-connect], [data-sse-connect]'));
    const template = document.createElement('template');
    template.innerHTML = data;
    const elements = template.content.querySelectorAll(OUT_OF_BAND);
    for (const found of elements) lookAt(found, template.content, url);
    if (elements.length || /<hx-partial/.test(data) || element.getAttribute('hx-swap') !== 'none') return;
    if (element.querySelector('[sse-swap], [data-sse-swap]')) return;   // these listen, too
    const how = 'on the server oob_swap, oob_element and oob_update make them so';
    hint(`${url} nothing`, `A message of ${url} changes nothing, as none of its elements is out-of-band: ${how}`, data);
  }, true);

  /**
   * Say that nothing in the page listens to an event.
   * @param {string} type
   * @param {string} path
   * @param {Set<string>} listened
   */
  const unheard = (type, path, listened) => {
    if (type === 'sse:gap') {
      const what = `Messages of ${path} were missed, and are in no log any more; the page may be out of date`;
      return hint(`${path} gap`, `${what}. Give stream(...) a snapshot=, or listen for sse:gap`);
    }
    if (type === 'sse:heartbeat' || type === 'sse:close') return;
    const known = [...listened].filter(name => !/^(sse:(heartbeat|gap|close)|open|error)$/.test(name));
    const names = known.map(name => `"${name}"`).join(', ');
    const swapped = known.length ? `Elements swap ${names}` : 'No element swaps anything';
    hint(`${path} unheard`, type === 'message'
      ? `A message without a name came from ${path}, and nothing in the page listens to such. ${swapped}, `
        + 'and elements made by render= come without a name: swap "message"'
      : `An event "${type}" came from ${path}, and nothing in the page listens to it${meant(type, known)}. ${swapped}. `
        + "Without render=, stream(...) sends data as JSON under the event's own name");
  };

  /** @type {WeakSet<EventTarget>} */
  const known = new WeakSet();
  /** What is listened to, by path. @type {Map<string, Set<string>>} */
  const listened = new Map();
  client.addEventListener('change', event => {
    const { source, url, state, reason } = /** @type {CustomEvent<SSEChange>} */ (event).detail;
    const path = new URL(url, document.baseURI).pathname;
    if (state === 'error' && reason === 'Log in again') {
      const what = `the server answered ${url} with a page instead of a stream, so the stream has ended`;
      hint(`${path} log-in`, `Log in again: ${what}`);
    }
    if (known.has(source)) return;
    known.add(source);
    // Each element with this path hears all that comes.
    const names = listened.get(path) ?? new Set();
    listened.set(path, names);
    const { addEventListener, dispatchEvent } = source;
    source.addEventListener = (/** @type {string} */ type, /** @type {any[]} */ ...rest) => {
      names.add(type);
      // @ts-ignore: the arguments are the caller's
      addEventListener.call(source, type, ...rest);
    };
    source.dispatchEvent = event => {
      const { type } = event;
      const heard = names.has(type) || type === 'message' && source.onmessage;
      if (event instanceof MessageEvent && !heard) unheard(type, path, names);
      return dispatchEvent.call(source, event);
    };
  });

  // An app may make its sources itself.
  let connected = false;
  for (const type of ['htmx:sseOpen', 'htmx:sseError']) document.addEventListener(type, () => { connected = true; });

  // htmx connects when the page is there, and may come from a CDN.
  window.addEventListener('load', () => setTimeout(() => {
    if (listened.size || connected) return;
    for (const element of document.querySelectorAll('[sse-connect], [data-sse-connect]')) {
      const url = address(element);
      if (new URL(url, document.baseURI).origin !== location.origin) continue;
      if (element.closest('[hx-disable], [hx-ignore], [data-hx-disable]')) continue;
      const why = window.htmx ? 'no element around it has hx-ext="sse"' : 'htmx is not loaded';
      hint(`${url} alone`, `${url} was not connected: ${why}`, element);
    }
  }, 2000));
})();
