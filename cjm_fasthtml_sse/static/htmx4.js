// @ts-check
// The client under htmx 4, which has no `sse-swap`, and whose extension hx-sse connects by itself. The client serves
// the attributes that Python writes for both versions. What an app connects by `hx-sse-connect` is left to hx-sse.

serveHtmx[4] = (htmx, client) => {
  const HIDDEN = ['sse-connect', 'sse-swap', 'sse-close'];

  /** @type {(element: Element, name: string) => string | null} */
  let inherited = (element, name) => element.getAttribute(name);
  // Only an extension learns what an element inherits; a page may have a list of those it wants.
  htmx.registerExtension('cjm-sse', { init: (/** @type {any} */ api) => { inherited = api.attributeValue; } });

  const { take } = serveElements(htmx, client, '[hx-ignore], [data-hx-ignore]', (element, { data }) => {
    const [swap, target] = ['hx-swap', 'hx-target'].map(name => inherited(element, name));
    htmx.swap({ sourceElement: element, target, swap, text: data, transition: htmx.config.transitions });
  });

  /** @type {(type: string, f: (event: any) => void, first?: boolean) => void} */
  const on = (type, f, first) =>
    document.addEventListener(type.replaceAll(':', htmx.config.metaCharacter || ':'), f, first);
  /** @type {(root: Element) => void} */
  const takeAll = root => within(root, `${CONNECTS}, ${LISTENS}`).forEach(take);

  /** @type {WeakMap<Element, () => void>} */
  const undo = new WeakMap();
  on('htmx:before:process', ({ target }) => {
    takeAll(target);
    // hx-sse looks at the elements before the next event, would connect them and warn of their attributes. A morph
    // compares them, and would not know elements again whose attributes were gone for good.
    undo.set(target, briefly(HIDDEN.flatMap(name =>
      within(target, `[${name}]`).map(element => /** @type {[Element, string, null]} */ ([element, name, null])))));
  });
  on('htmx:after:process', ({ target }) => undo.get(target)?.(), true);
  if (document.readyState !== 'loading') takeAll(document.body);

  let unmark = () => {};
  on('htmx:history:cache:before:save', () => { unmark = markPlaces(client); });
  on('htmx:history:cache:after:save', () => unmark());

  on('htmx:before:response', ({ detail }) => client.visitor(detail.ctx.response.headers.get('SSE-Visitor')));
  on('htmx:before:swap', ({ detail }) => {
    for (const { target, swapSpec } of detail.tasks) {
      if (target === document.body) client.load(1000);
      if (swapSpec.style === 'morph') Object.assign(swapSpec, { style: 'outerMorph', strip: false });
    }
  });
  /** @type {(element: Element) => void} */
  const remove = element => htmx.swap({ target: element, text: '', swap: 'delete' });
  on('htmx:before:settle', ({ detail: { task, newContent } }) => {
    if (task.type === 'main' || !/^(before|after)/.test(task.swapSpec.style)) return;
    takePlaces(newContent, remove);
  });
  return remove;
};
