// @ts-check
// Morph swaps merge new HTML into what stands in the page: a field in use keeps its focus, its caret and what was typed. `morph` (as htmx 4 says, `outerMorph`) is for a whole
// element, `innerMorph` for its content. htmx 4 brings them; under htmx 2 the work is Idiomorph's, which an app has to ask for.

/** Fragments that were merged. @type {WeakSet<Node>} */
const morphed = new WeakSet();

/** @param {any} htmx  htmx 2 */
function addMorph(htmx) {
  const idiomorph = () => /** @type {any} */ (window).Idiomorph;
  const STYLES = ['morph', 'outerMorph', 'innerMorph'];
  htmx.defineExtension('cjm-morph', {
    isInlineSwap: (/** @type {string} */ style) => /^(m|outerM)orph$/.test(style) && !!idiomorph(),
    handleSwap(/** @type {string} */ style, /** @type {Element} */ target, /** @type {Element | DocumentFragment} */ fragment) {
      if (!STYLES.includes(style)) return false;
      if (!idiomorph()) {
        console.warn(`[sse] ${style}: Idiomorph is not in this page (setup_sse(app, morph=True) adds it), so the content is replaced`);
        return false;
      }
      morphed.add(fragment);
      const inner = style === 'innerMorph';
      /** Form fields for which the server has nothing new: what the user did to them stays. */
      const kept = new WeakSet();
      return idiomorph().morph(target, inner ? fragment.childNodes : fragment.children, {
        morphStyle: inner ? 'innerHTML' : 'outerHTML',
        ignoreActiveValue: true,
        callbacks: {
          beforeNodeMorphed(/** @type {any} */ old, /** @type {any} */ next) {
            if (['defaultValue', 'defaultChecked', 'defaultSelected'].every(name => old[name] === next[name])) kept.add(old);
          },
          beforeAttributeUpdated: (/** @type {string} */ name, /** @type {Element} */ element) => !kept.has(element) || !['value', 'checked', 'selected'].includes(name),
        },
      });
    },
  });
  // An extension of htmx 2 serves the elements within the one that names it.
  const { documentElement } = document;
  documentElement.setAttribute('hx-ext', [documentElement.getAttribute('hx-ext'), 'cjm-morph'].filter(Boolean).join(','));
}
