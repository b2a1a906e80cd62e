// What the client knows without a page: which messages are due, when a stream is silent, and who asks for tickets.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

/** Classes of the client's scripts, with the globals that a browser would give them. */
function load(globals, ...names) {
  const file = name => new URL(`../../cjm_fasthtml_sse/static/${name}.js`, import.meta.url);
  const code = names.map(name => readFileSync(file(name), 'utf8')).join('\n');
  const found = [...code.matchAll(/^class (\w+)/gm)].map(([, name]) => name);
  return new Function(...Object.keys(globals), `${code}\nreturn { ${found.join(', ')} };`)(...Object.values(globals));
}

class Message extends Event {
  constructor(type, { data, lastEventId }) {
    super(type);
    Object.assign(this, { data, lastEventId });
  }
}

/** A source that is open, with what its stream's greeting says. */
function source(greeting, lastEventId = '') {
  const location = { origin: 'http://here', href: 'http://here/' };
  const document = { baseURI: location.href };
  const globals = { location, document, MessageEvent: Message, CustomEvent: class extends Event {} };
  const { SSESource } = load(globals, 'parser', 'watchdog', 'source');
  const made = new SSESource('/events', { lastEventId }, async () => { throw new Error('nothing is fetched here'); });
  made.greet = greeting => made.opened({ headers: new Headers({ 'SSE-Stream': greeting }) });
  made.greet(greeting);
  made.watchdog.stop();
  made.got = [];
  for (const type of ['message', 'sse:gap', 'sse:close', 'sse:heartbeat']) {
    made.addEventListener(type, ({ data }) => made.got.push(data));
  }
  return made;
}

/** The stream says each of these: ids of messages, or [type, data, id]. */
const said = (stream, ...steps) => {
  for (const o of steps) stream.deliver(...(typeof o === 'string' ? ['message', o, o] : o), true);
  return stream.got;
};

for (const [name, steps, got] of [
  ['within an epoch nothing comes again, and another epoch begins anew',
    ['e-1', 'e-2', 'e-2', 'e-1', 'e-3', 'f-1'], ['e-1', 'e-2', 'e-3', 'f-1']],
  ['ids of two numbers are compared by the first, then the second',
    ['e:9-5', 'e:10-0', 'e:9-6', 'e:10-18446744073709551615'], ['e:9-5', 'e:10-0', 'e:10-18446744073709551615']],
  ['the same id again after a heartbeat that had it is a message, once',
    [['sse:heartbeat', '', 'e-4'], 'e-4', 'e-4'], ['', 'e-4']],
  ['a gap may lead back, an end is always heard',
    ['e-7', ['sse:close', 'end', 'e-5'], ['sse:gap', 'gap', 'e-2'], 'e-3'], ['e-7', 'end', 'gap', 'e-3']],
]) test(name, () => assert.deepEqual(said(source('v=1;heartbeat=15;epoch=e'), ...steps), got));

test('what has no id of its own has the last one that counted', () => {
  const s = source('v=1;heartbeat=15;epoch=e');
  const { EventStreamParser } = load({}, 'parser');
  const blocks = ['id: e-5\ndata: a', 'id: e-4\ndata: b', 'data: c', 'id: e-3\nevent: sse:close\ndata: d'];
  new EventStreamParser(s.listener(s.generation), '').feed(blocks.map(o => `${o}\n\n`).join(''));
  assert.deepEqual([s.got, s.lastEventId], [['a', 'c', 'd'], 'e-5']);
});

test('a server that has forgotten the last id says so, and ids begin anew', () => {
  const s = source('v=1;heartbeat=15;epoch=e');
  said(s, 'e-7');
  s.greet('v=1;heartbeat=15;epoch=e;gap=1');
  s.watchdog.stop();
  assert.deepEqual(said(s, 'e-3'), ['e-7', 'e-3']);
});

test('ids of other servers are opaque: one that numbers each connection from 1 works', () => {
  const s = source('', 'x-3');
  said(s, 'x-1', 'x-2', 'x-1', '1', '1');
  assert.deepEqual(s.got, ['x-1', 'x-2', 'x-1', '1', '1']);
});

test('a silence is judged by what the server says, and a nap of four minutes changes nothing', t => {
  t.mock.timers.enable({ apis: ['Date', 'setTimeout'], now: 1e12 });
  const { Watchdog } = load({}, 'watchdog');
  let alarms = 0;
  const dog = new Watchdog(() => { alarms++; });
  dog.heartbeat = 2000;
  dog.start(true);
  t.mock.timers.setTime(1e12 + 240000);   // asleep
  dog.note(true);
  assert.equal(dog.limit, 5000);
  t.mock.timers.tick(4000);
  assert.equal(alarms, 0);
  for (let i = 0; i < 30 && !alarms; i++) t.mock.timers.tick(1300);
  assert.equal(alarms, 1);
  dog.stop();
});

test('a heartbeat may be five seconds late; who looks at the page, or wakes the computer, does not wait for so long', t => {
  t.mock.timers.enable({ apis: ['Date', 'setTimeout'], now: 1e12 });
  const { Watchdog } = load({}, 'watchdog');
  /** A watchdog that knows the rhythm; `run` lets time pass, and says after how many seconds there was an alarm. */
  const make = () => {
    const dog = Object.assign(new Watchdog(() => { dog.alarms++; dog.stop(); }), { heartbeat: 15000, alarms: 0 });
    dog.start(true);
    return dog;
  };
  const run = dog => {
    for (let s = 0; ; s++, t.mock.timers.tick(1000)) if (dog.alarms || s > 200) return s;
  };
  assert.equal(run(make()), 20);
  const looked = make();
  t.mock.timers.tick(15500);
  looked.check(true);
  assert.equal(looked.alarms, 0, 'it may be under way');
  t.mock.timers.tick(1000);
  looked.check(true);
  assert.equal(looked.alarms, 1);
  const woken = make();
  t.mock.timers.setTime(Date.now() + 17000);
  assert(run(woken) <= 6, 'a second behind the timer that came late');
  looked.start(true);
  assert.equal(run(Object.assign(looked, { alarms: 0 })), 40, 'an alarm doubles the time');
  const answer = Object.assign(make(), { heartbeat: 0 });
  answer.start(false);
  assert.equal(run(answer), 20, 'of an answer, too');
});

test('a stream that says nothing of heartbeats is left in peace until two have come', t => {
  t.mock.timers.enable({ apis: ['Date', 'setTimeout'], now: 1e12 });
  const { Watchdog } = load({}, 'watchdog');
  const dog = new Watchdog(() => assert.fail('an alarm'));
  dog.start(true);
  dog.note(false);
  dog.note(true);
  t.mock.timers.tick(600000);
  assert.equal(dog.armed, false);
  dog.note(true);
  assert.equal(dog.armed, true);
  assert.equal(dog.limit, 1500000, 'they come each ten minutes');
  t.mock.timers.tick(1000);
  dog.note(true);
  assert.equal(dog.limit, 30000);
  dog.stop();
});

/** Tickets, and what is asked of the server; `answers` gives a response or a promise of one. */
function tickets(answer, store = {}) {
  const asked = [];
  const localStorage = { getItem: key => store[key] ?? null, setItem: (key, value) => { store[key] = value; } };
  const fetch = async (url, options) => {
    const wish = options.headers['SSE-Ticket'];
    asked.push(wish === '1' ? url : `${wish} ${url}`);
    const headers = await answer(url);
    return { status: 200, url, headers: new Headers(headers) };
  };
  const { Tickets } = load({ localStorage, fetch }, 'source', 'tickets');
  const made = new Tickets('test', visitor => made.setVisitor(visitor));
  return Object.assign(made, { asked, store });
}
const stream = url => ({
  'Content-Type': 'text/event-stream', 'SSE-Ticket': `for ${new URL(url).pathname}`, 'SSE-Visitor': 'ann',
});

test('a ticket is asked for once by path, whatever the query, and kept for the browser', async () => {
  const t = tickets(stream);
  await Promise.all(['a?n=1', 'a?n=2', 'a?n=1', 'b'].map(path => t.fetch(`http://here/${path}`)));
  assert.deepEqual(t.asked, ['http://here/a?n=1', 'http://here/b']);
  const later = tickets(stream, t.store);
  assert.deepEqual([later.get('/a'), later.get('/b'), later.get('/c'), later.visitor], ['for /a', 'for /b', '', 'ann']);
});

test('the first request goes alone, then two at a time', async () => {
  let running = 0;
  const most = [];
  const t = tickets(async url => {
    most.push(++running);
    await new Promise(setImmediate);
    running--;
    return stream(url);
  });
  await Promise.all('abcdef'.split('').map(name => t.fetch(`http://here/${name}`)));
  assert.deepEqual(most.slice(0, 2), [1, 1]);
  assert.equal(Math.max(...most), 2);
});

test('a refusal of one query says nothing of another', async () => {
  const t = tickets(url => url.endsWith('1') ? { 'Content-Type': 'text/html' } : stream(url));
  const [refused, let_in] = await Promise.all([t.fetch('http://here/a?n=1'), t.fetch('http://here/a?n=2')]);
  assert.equal(refused.headers.get('SSE-Ticket'), null);
  assert.equal(let_in.headers.get('SSE-Ticket'), 'for /a');
  assert.equal(t.asked.length, 2);
});

test('who is led elsewhere, or gets a cookie, is answered as the stream would be, whatever else is asked', async () => {
  const t = tickets(stream);
  const [one, led] = await Promise.all([t.fetch('http://here/a'), t.fetch('http://here/a', 'authorise')]);
  assert.deepEqual([one, led].map(answer => answer.headers.get('SSE-Ticket')), ['for /a', 'for /a']);
  t.fetchCookie('http://here/b');
  t.fetchCookie('http://here/b');
  await new Promise(setImmediate);
  assert.deepEqual(t.asked, ['http://here/a', 'authorise http://here/a', 'authorise http://here/b']);
});

test('another visitor has none of the former one', async () => {
  const t = tickets(stream);
  await t.fetch('http://here/a');
  t.setVisitor('bob');
  assert.equal(t.get('/a'), '');
  assert.equal(tickets(stream, t.store).visitor, 'bob');
});

test('what was kept by somebody else, and storage that fails, do no harm', async () => {
  for (const kept of ['null', '{"visitor": 1}', '{"visitor": "ann", "paths": null}', 'no json']) {
    assert.equal(tickets(stream, { 'sse:tickets:test': kept }).get('/a'), '');
  }
  const deny = () => { throw new Error('denied'); };
  const { Tickets } = load({ localStorage: { getItem: deny, setItem: deny } }, 'source', 'tickets');
  const t = new Tickets('test', () => {});
  t.set('/a', 'here');
  assert.equal(t.get('/a'), 'here');
});
