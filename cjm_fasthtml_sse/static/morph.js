// @ts-check
// Morph swaps under htmx 2, for pages that ask for them: new HTML is merged into what stands there, so a field in use
// keeps its focus, its caret and what was typed. `morph` (htmx 4 says `outerMorph`) is for a whole element,
// `innerMorph` for its content. The work is Idiomorph's. htmx 4 has morph swaps of its own.
{
  const OUTER = ['morph', 'outerMorph'];
  /** What a user may change, and where the server's word on it stands. @type {Record<string, string>} */
  const DEFAULTS = { value: 'defaultValue', checked: 'defaultChecked', selected: 'defaultSelected' };

  /**
   * @param {Element} target
   * @param {Element | DocumentFragment} fragment
   * @param {boolean} outer
   */
  const morph = (target, fragment, outer) => {
    /**
     * Of which the server says nothing new: what the user did stays, as under htmx 4.
     * @type {WeakMap<Element, string[]>}
     */
    const kept = new WeakMap();
    /** @type {Element[]} */
    const merged = window.Idiomorph.morph(target, outer ? fragment.children : fragment.childNodes, {
      morphStyle: outer ? 'outerHTML' : 'innerHTML',
      ignoreActiveValue: true,
      callbacks: {
        beforeNodeMorphed(/** @type {any} */ old, /** @type {any} */ next) {
          const same = ([, server] = ['', '']) => server in old && old[server] === next[server];
          kept.set(old, Object.entries(DEFAULTS).filter(same).map(([name]) => name));
        },
        /** @type {(name: string, element: Element) => boolean} */
        beforeAttributeUpdated: (name, element) => !kept.get(element)?.includes(name),
      },
    });
    // htmx processes anew what is returned. An element that connects would connect anew, and the elements within would
    // go on listening to the old connection.
    const connects = (/** @type {Element} */ element) => element.matches('[sse-connect], [data-sse-connect]');
    return merged.flatMap(element => element === target && connects(element) ? [...element.children] : [element]);
  };

  const start = () => {
    if (!window.htmx || window.htmx.version.startsWith('4')) return;
    window.htmx.defineExtension('cjm-morph', {
      isInlineSwap: (/** @type {string} */ style) => OUTER.includes(style),
      handleSwap(/** @type {string} */ style, /** @type {Element} */ target, /** @type {any} */ fragment) {
        if (style !== 'innerMorph' && !OUTER.includes(style)) return false;
        fragment.sseMorphed = true;
        return morph(target, fragment, style !== 'innerMorph');
      },
    });
    // An extension of htmx 2 serves the elements within the one that names it.
    const { documentElement } = document;
    const extensions = documentElement.getAttribute('hx-ext');
    documentElement.setAttribute('hx-ext', extensions ? `${extensions},cjm-morph` : 'cjm-morph');
  };
  if (window.htmx) start();
  else document.addEventListener('DOMContentLoaded', start);
}
