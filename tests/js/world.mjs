// A browser without a browser: tabs with locks, channels, timers and a clock that the test moves. What may come in any
// order does; a tab can close, crash, be frozen (what comes for it waits) or be stopped by a debugger (messages are
// lost).
import { setMaxListeners } from 'node:events';
import { readFileSync } from 'node:fs';
import { Script, createContext } from 'node:vm';

const file = new URL('../../cjm_fasthtml_sse/static/election.js', import.meta.url);
const script = new Script(`${readFileSync(file, 'utf8')}\nthis.Election = Election;`);

setMaxListeners(0);   // as in browsers

/** The same numbers for the same seed, from 0 to 1. */
export function random(seed) {
  return () => {
    seed = seed + 0x6D2B79F5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 4294967296;
  };
}

export class World {
  constructor(seed = 1) {
    this.random = random(seed);
    this.now = 0;
    this.tasks = [];          // {at, order, tab, run, source}
    this.order = 0;
    this.tabs = [];
    this.channels = new Set();
    this.posted = 0;          // messages on channels
    this.locks = new Locks(this);
  }

  /** Run something in a tab, later; tasks of one source stay in order. */
  later(tab, ms, run, source) {
    const task = { at: this.now + ms, order: this.order++, tab, run, source, cancelled: false };
    if (source) source.last = task.at = Math.max(task.at, source.last ?? 0);
    this.tasks.push(task);
    return task;
  }

  delay() { return this.random() < .9 ? this.random() * 3 : this.random() * 30; }

  /** Run all that is due within the next `ms` milliseconds. */
  async run(ms = 0) {
    const end = this.now + ms;
    for (;;) {
      await new Promise(setImmediate);   // what promises have to say
      let next = null;
      const before = (a, b) => a.at < b.at || a.at === b.at && a.order < b.order;
      for (const task of this.tasks) if (task.at <= end && (!next || before(task, next))) next = task;
      if (!next) break;
      this.tasks.splice(this.tasks.indexOf(next), 1);
      this.now = Math.max(this.now, next.at);
      const { tab } = next;
      if (next.cancelled || tab?.gone) continue;
      if (tab?.frozen) {
        if (!(next.lossy && tab.frozen === 'debugger')) tab.backlog.push(next);
        continue;
      }
      next.run();
    }
    this.now = end;
  }

  /** Run until `condition` is true. */
  async until(condition, ms = 60000, what = condition) {
    for (const end = this.now + ms; !condition();) {
      if (this.now >= end) throw new Error(`in vain: ${what}`);
      await this.run(Math.min(10, end - this.now));
    }
  }

  tab(name = 'test', recorder = {}) { return new Tab(this, name, recorder); }
}

class Tab {
  constructor(world, name, recorder) {
    this.world = world;
    this.frozen = this.gone = false;
    this.backlog = [];
    this.log = [];            // calls of the owner
    this.said = [];           // in the console
    this.refuses = '';        // channels, locks, or answers of locks
    this.clientId = `client ${world.order++}`;
    this.document = { visibilityState: 'visible' };
    const tab = this;
    const window = createContext({
      window: {}, document: this.document, console: { debug: text => this.said.push(text) }, AbortController, queueMicrotask,
      performance: { now: () => world.now },
      navigator: { locks: world.locks.of(this) },
      setTimeout: (f, ms = 0) => world.later(tab, this.hidden ? Math.max(ms, 1000) : ms, f),
      clearTimeout: task => { if (task) task.cancelled = true; },
      BroadcastChannel: class {
        constructor(name) {
          if (tab.refuses === 'channels') throw new DOMException('refused', 'SecurityError');
          this.tab = tab;
          this.name = name;
          this.onmessage = null;
          world.channels.add(this);
        }

        postMessage(data) {
          if (this.closed) throw new Error('InvalidStateError');
          world.posted++;
          for (const to of world.channels) {
            if (to === this || to.name !== this.name || to.tab.gone) continue;
            const copy = structuredClone(data);
            const line = (this.lines ??= new Map()).get(to) ?? {};
            this.lines.set(to, line);
            if (to.tab.drop?.(copy)) continue;
            const deliver = () => { if (!to.closed) to.onmessage?.({ data: copy }); };
            world.later(to.tab, world.delay(), deliver, line).lossy = true;
          }
        }

        close() {
          this.closed = true;
          world.channels.delete(this);
        }
      },
    });
    this.window = window;
    script.runInContext(window);
    const calls = ['lead', 'follow', 'lost', 'requested', 'received', 'left', 'alone'];
    const owner = Object.fromEntries(calls.map(what => [what, (...args) => {
      this.log.push([what, ...args]);
      recorder[what]?.(this, ...args);
    }]));
    owner.pinged = () => {};
    this.election = new window.Election(name, owner);
    world.tabs.push(this);
  }

  get hidden() { return this.document.visibilityState === 'hidden'; }

  set hidden(hidden) { this.document.visibilityState = hidden ? 'hidden' : 'visible'; }

  get leads() { return this.election.leads; }

  count(what) { return this.log.filter(([o]) => o === what).length; }

  /** @param {'frozen' | 'debugger'} how  the debugger loses messages */
  freeze(how = 'frozen') { this.frozen = how; }

  thaw() {
    if (!this.frozen) return;
    this.frozen = false;
    this.thawed = this.world.now;
    const { world } = this;
    // Sources compete, each in its own order
    const sources = new Map();
    for (const task of this.backlog.splice(0)) {
      const key = task.source ?? task;
      if (!sources.has(key)) sources.set(key, { at: world.now + world.random() * 5 });
      const to = sources.get(key);
      task.at = to.at += world.random() * .1;
      task.order = world.order++;
      if (task.source) task.source.last = task.at;
      world.tasks.push(task);
    }
  }

  /** As when the process dies: nobody says a word. */
  crash() {
    this.gone = true;
    this.world.locks.drop(this);
    for (const channel of this.world.channels) if (channel.tab === this) this.world.channels.delete(channel);
    this.world.tabs.splice(this.world.tabs.indexOf(this), 1);
  }
}

class Locks {
  constructor(world) {
    this.world = world;
    this.held = [];
    this.waiting = [];
  }

  of(tab) {
    return {
      request: (name, options, callback) => this.request(tab, name, options, callback),
      query: () => new Promise(resolve => this.world.later(null, this.world.random(), () => {
        const info = ({ name, mode, tab }) => ({ name, mode, clientId: tab.clientId });
        const answer = { held: this.held.map(info), pending: this.waiting.map(info) };
        this.world.later(tab, this.world.random(), () => resolve(answer));
      })),
    };
  }

  request(tab, name, options, callback) {
    const { mode = 'exclusive', steal, ifAvailable, signal } = options;
    if (tab.refuses === 'locks') return Promise.reject(new DOMException('refused', 'SecurityError'));
    if (tab.refuses === 'answers') return new Promise(() => {});
    if (signal && (steal || ifAvailable)) return Promise.reject(new Error('NotSupportedError'));
    return new Promise((resolve, reject) => {
      const lock = { tab, name, mode, callback, resolve, reject, aborted: false };
      const abort = () => {
        lock.aborted = true;
        this.waiting = this.waiting.filter(o => o !== lock);
        reject(new DOMException('aborted', 'AbortError'));
        this.grant();
      };
      if (signal?.aborted) return abort();
      signal?.addEventListener('abort', () => { if (!lock.called) { abort(); this.release(lock); } });
      tab.requests ??= {};
      this.world.later(null, this.world.random(), () => {
        if (tab.gone || lock.aborted) return;
        if (steal) {
          this.stolen?.(name, tab);
          for (const o of this.held.filter(o => o.name === name)) {
            this.held = this.held.filter(other => other !== o);
            this.world.later(o.tab, this.world.random(), () => o.reject(new DOMException('stolen', 'AbortError')));
          }
          this.hold(lock);
        } else if (this.free(lock)) this.hold(lock);
        else if (ifAvailable) {
          this.world.later(tab, this.world.random(), async () => { resolve(await callback(null)); });
        } else this.waiting.push(lock);
      }, tab.requests);
    });
  }

  free({ name, mode }) {
    const others = this.held.filter(o => o.name === name);
    return !others.length || mode === 'shared' && others.every(o => o.mode === 'shared');
  }

  hold(lock) {
    this.held.push(lock);
    this.world.later(lock.tab, this.world.random(), async () => {
      if (lock.aborted) return;
      lock.called = true;
      try { lock.resolve(await lock.callback({ name: lock.name, mode: lock.mode })); }
      catch (error) { lock.reject(error); }
      this.release(lock);
    });
  }

  release(lock) {
    this.held = this.held.filter(o => o !== lock);
    this.grant();
  }

  grant() {
    const blocked = new Set();
    for (const lock of [...this.waiting]) {
      if (!blocked.has(lock.name) && this.free(lock)) {
        this.waiting = this.waiting.filter(o => o !== lock);
        this.hold(lock);
      } else blocked.add(lock.name);
    }
  }

  drop(tab) {
    this.held = this.held.filter(o => o.tab !== tab);
    this.waiting = this.waiting.filter(o => o.tab !== tab);
    this.grant();
  }

  /** The tab that holds a lock. */
  holder(name) { return this.held.find(o => o.name === name)?.tab; }

  /** Names that a tab holds or waits for. */
  names(tab) { return [...this.held, ...this.waiting].filter(o => o.tab === tab).map(o => o.name); }
}
