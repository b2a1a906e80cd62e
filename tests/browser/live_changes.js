// Random drawings of one element are applied, as changes or as a whole, while users type and open things, and scripts
// add classes, insert nodes, move and remove some. After each drawing, the page must show it, but for what they did.

const KEEPS = '[data-sse-live], [data-sse-keep]';
const FOREIGN = 'x-foreign';   // what scripts insert
const CLOSED = 'script, template, noscript';
// What an element stands in, where HTML does not have it anywhere
const HOSTS = { tr: 'table tbody', td: 'table tbody tr', th: 'table tbody tr', tbody: 'table', thead: 'table', caption: 'table', col: 'table colgroup',
  colgroup: 'table', li: 'ul', option: 'select', optgroup: 'select', g: 'svg', circle: 'svg', text: 'svg', rt: 'ruby', rp: 'ruby' };

/** Random numbers that are the same each time. */
function randomOf(seed) {
  return () => {
    seed = seed + 0x6D2B79F5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 2 ** 32;
  };
}

/** Where an element of this tag may stand: [what is in the page, the parent within it]. */
function host(tag) {
  const outer = document.createElement('div');
  let parent = outer;
  for (const name of HOSTS[tag]?.split(' ') ?? []) {
    parent = parent.appendChild(name === 'svg' ? document.createElementNS('http://www.w3.org/2000/svg', name) : document.createElement(name));
  }
  document.body.append(outer);
  return [outer, parent];
}

/** What a browser makes of a drawing. */
function parsed(tag, html) {
  const [outer, parent] = host(tag);
  parent.innerHTML = html;
  outer.remove();
  return parent.firstElementChild;
}

const tokens = value => [...new Set((value ?? '').split(/\s+/).filter(o => o && !o.startsWith('js-')))].sort().join(' ');
const isText = element => element.localName === 'input' && element.type === 'text' || element.localName === 'textarea';

/** What must be seen: the newest drawing, and what users and scripts did since the server wrote there. */
class Expected {
  constructor(root) {
    this.root = root;
    this.states = new WeakMap();   // of a node: the server's attributes, and what was done
    this.ids = new Map();          // id -> what stood there
    this.gone = new Map();         // id -> node that a script took elsewhere
    this.parent = null;            // of what is looked at
  }

  fail(why, node, fresh) {
    const short = o => (o?.outerHTML ?? o?.data ?? String(o)).slice(0, 150);
    throw new Error(`${why}\n    here: ${short(node)}\n    drawn: ${short(fresh)}`);
  }

  check(fresh) {
    this.next = new Map();
    this.walk(this.root, fresh);
    this.ids = this.next;
    for (const id of [...this.gone.keys()]) if (!this.next.has(id)) this.gone.delete(id);
  }

  walk(node, fresh) {
    const is = (what, holds) => { if (!holds) this.fail(what, node, fresh); };
    is('name', node?.nodeName === fresh?.nodeName && node?.namespaceURI === fresh?.namespaceURI);
    if (!(node instanceof Element)) return is('text', node.data === fresh.data);
    const kept = node !== this.root && fresh.matches(KEEPS);
    const state = this.states.get(node) ?? {};
    this.states.set(node, state);
    this.identity(node, fresh, kept);
    if (kept) {
      is('what others draw', state.others === undefined || state.others === node.outerHTML);
      state.others = node.outerHTML;
      return;
    }
    delete state.others;
    const attributes = Object.fromEntries([...fresh.attributes].map(o => [o.name, o.value]));
    const same = name => state.attributes && state.attributes[name] === attributes[name];
    this.attributes(node, fresh, state, same);
    this.fields(node, fresh, state, same);
    Object.assign(state, { attributes, type: node.type, text: fresh.textContent });
    if (node.matches(CLOSED)) is('content', node.innerHTML === fresh.innerHTML);
    else this.children(node, fresh, state);
  }

  /** The same element, where the server did not change its parent or kind. */
  identity(node, fresh, kept) {
    const { id } = fresh;
    if (!id) return;
    const now = { node, name: node.nodeName, kept, parent: this.parent };
    const was = this.ids.get(id);
    if (was && !node.matches(CLOSED) && was.name === now.name && was.kept === kept && was.parent === now.parent && was.node !== node) this.fail('another element', node, was.node);
    this.next.set(id, now);
  }

  attributes(node, fresh, state, same) {
    const is = (what, holds) => { if (!holds) this.fail(what, node, fresh); };
    if (!same('open')) delete state.opened;
    for (const name of new Set([...fresh.getAttributeNames(), ...node.getAttributeNames()])) {
      if (node === this.root && /^(id|data-sse-.*)$/.test(name) || name.startsWith('js-')) continue;
      if (name === 'value' && state.attributes && (state.converted || !same('type'))) continue;
      const here = node.getAttribute(name), drawn = fresh.getAttribute(name);
      if (name === 'open' && 'opened' in state) is('open', node.open === state.opened);
      else if (name === 'class') is('class', tokens(here) === tokens(drawn));
      else is(name, here === drawn);
      if (here !== null && drawn !== null) is(`namespace of ${name}`, node.getAttributeNode(name).namespaceURI === fresh.getAttributeNode(name).namespaceURI);
    }
    if (state.marked) is("a script's class and attribute", node.classList.contains('js-on') && node.getAttribute('js-mark') === state.marked);
  }

  fields(node, fresh, state, same) {
    const is = (what, holds) => { if (!holds) this.fail(`${what}, ${JSON.stringify(node.value)}`, node, fresh); };
    if (state.attributes && !same('type')) state.converted = true;   // browsers convert values; nothing is expected any more
    const typing = node === document.activeElement;
    if (isText(node) && !state.converted) {
      const changed = !(node.localName === 'input' ? same('value') : state.text === fresh.textContent);
      if (this.typing?.field === node) is('where somebody types', node.value === this.typing.value);
      else if ('typed' in state && !changed) is('typed', node.value === state.typed);
      else is('value', node.value === fresh.value);
      if (typing) state.typed = node.value;
      else if (changed) delete state.typed;
    }
    if (node.type === 'checkbox' && !state.converted) {
      if (!same('checked')) delete state.checked;
      is('checked', node.checked === (state.checked ?? fresh.checked));
    }
  }

  children(node, fresh, state) {
    const outer = this.parent;
    this.parent = node;
    const away = new Set(this.gone.values());
    const children = [...node.childNodes].filter(o => o.localName !== FOREIGN && !away.has(o));
    const html = [...fresh.childNodes].map(o => o.outerHTML ?? o.data).join('\n');
    if (state.html === html && state.children?.some((o, i) => o !== node.childNodes[i])) this.fail(`nothing was changed, and there were ${state.children.map(o => o.nodeName)}, now ${[...node.childNodes].map(o => o.nodeName)}`, node, fresh);
    for (const child of fresh.childNodes) {
      const gone = this.gone.get(child.id);
      if (!gone) this.walk(children.shift(), child);
      else if (children[0]?.id === child.id) {
        const was = this.ids.get(child.id);
        const kept = child.matches(KEEPS);
        if (was && was.parent === node && was.name === child.nodeName && was.kept === kept && !child.matches(CLOSED)) this.fail('it was taken elsewhere, and came back', children[0], child);
        this.gone.delete(child.id);   // drawn anew
        this.walk(children.shift(), child);
      } else {
        if (gone.parentNode !== this.states.get(gone).place) this.fail('it was taken elsewhere', gone, child);
        this.walk(gone, child);
      }
    }
    if (children.length) this.fail(`${children.length} more`, children[0], fresh);
    state.html = html;
    this.parent = outer;
  }

  /** Look at what is there before changes are applied. */
  before() {
    const field = document.activeElement;
    this.typing = 'typed' in (this.states.get(field) ?? {}) ? { field, value: field.value } : null;
    for (const top of [this.root, ...this.gone.values()]) {
      for (const element of [top, ...top.querySelectorAll('*')]) {
        const state = this.states.get(element);
        if (state) state.children = [...element.childNodes];
      }
    }
  }

  /** What users and scripts do. */
  act(random, done) {
    const pick = list => list[Math.floor(random() * list.length)];
    const element = pick([...this.root.querySelectorAll(`:not(${FOREIGN})`)].filter(o => this.states.has(o)));
    if (!element || element.closest(KEEPS) && element.closest(KEEPS) !== this.root) return;
    const state = this.states.get(element);
    const how = random();
    if (isText(element) && how < .7) {
      element.value = state.typed = `typed ${how}`;
      if (random() < .3) element.focus();
      done.typed++;
    } else if (element.type === 'checkbox' && how < .7) {
      element.checked = state.checked = !element.checked;
      done.checked++;
    } else if (element.localName === 'details' && how < .5) {
      element.open = state.opened = !element.open;
      done.opened++;
    } else if (how < .4) {
      element.classList.add('js-on');
      element.setAttribute('js-mark', state.marked = String(how));
      done.marked++;
    } else if (how < .5 && element.id && !element.contains(document.activeElement) && !element.querySelector(FOREIGN)
        && ![...this.gone.values()].some(o => o.contains(element) || element.contains(o))) {
      const [foreign] = this.root.getElementsByTagName(FOREIGN);
      if (how < .44 && foreign && !element.contains(foreign)) foreign.append(element);
      else if (how < .47) this.root.parentNode.append(element);
      else element.remove();
      state.place = element.parentNode;
      this.gone.set(element.id, element);
      done.taken++;
    } else if (!/^(select|optgroup|option|textarea|script|style|template|input|br|hr|img)$/.test(element.localName)) {
      element.insertBefore(document.createElement(FOREIGN), pick([...element.childNodes, null]));
      done.inserted++;
    }
  }
}

/**
 * Run one: `drawings`, and the `lists` of changes between them.
 * @returns {string}  what went wrong
 */
function runScenario({ seed, tag, drawings, lists, acts, early }, done) {
  const random = randomOf(seed);
  const [outer, parent] = host(tag);
  let at = 0, how = '';
  try {
    parent.innerHTML = drawings[0];
    const root = parent.firstElementChild;
    // A script that was quicker than ours: the server does not count its nodes.
    if (early) for (const o of [root, ...root.querySelectorAll('div, td, p')]) if (/^(div|td|p)$/.test(o.localName)) o.prepend(document.createElement(FOREIGN));
    const live = new LiveElement(root);
    const expected = new Expected(root);
    let counted = !early;
    if (counted) expected.check(parsed(tag, drawings[0]));
    while (at < drawings.length - 1) {
      if (acts && counted) for (let i = 0; i < 4; i++) expected.act(random, done);
      expected.before();
      const missed = random() < .25;   // lists; so the whole comes
      const to = missed ? Math.min(drawings.length - 1, at + 1 + Math.floor(random() * 3)) : at + 1;
      how = missed ? 'whole' : JSON.stringify(lists[at]);
      live.apply(missed ? [['whole', drawings[to]]] : lists[at]);
      if (!live.fits) {
        if (counted || missed) throw new Error('it does not fit');
        live.apply([['whole', drawings[to]]]);
        if (!live.fits) throw new Error('the whole does not fit');
        counted = true;
        done.unfit++;
      }
      counted ||= missed;
      if (expected.root !== live.root) {
        expected.root = live.root;
        expected.ids.clear();
      }
      at = to;
      if (counted) expected.check(parsed(tag, drawings[at]));
      done[missed ? 'wholes' : 'lists']++;
    }
    return '';
  } catch (error) {
    return `drawing ${at} of ${tag}, ${how}\n${error.message}`;
  } finally {
    outer.remove();
  }
}

/** @returns {[number, string][]}  index and message of what went wrong */
function runScenarios(scenarios, done) {
  return scenarios.flatMap((o, i) => {
    const why = runScenario(o, done);
    return why ? [[i, why]] : [];
  });
}

Object.assign(window, { host, parsed, runScenarios });
