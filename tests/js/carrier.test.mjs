// The carriers of the tab that leads: what they ask of a server that is played here, and what becomes of channels.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

const code = ['watchdog', 'source', 'carrier'].map(name =>
  readFileSync(new URL(`../../cjm_fasthtml_sse/static/${name}.js`, import.meta.url), 'utf8')).join('\n');

/** Carriers with an owner that notes what it is called with; `serve` answers each request, or hangs. */
function make(serve) {
  const sent = [], log = [];
  const fetch = async (url, { body, signal }) => {
    const request = JSON.parse(body);
    sent.push(request);
    return await serve(request, signal);
  };
  const owner = {
    url: 'http://here/mux',
    election: { confirmLead: async () => true, beat() {} },
    worked: false,
    setVisitor() {},
    remember() {},
    tell: what => log.push(['tell', what]),
    giveUp: reason => log.push(['giveUp', reason]),
    send: (tab, messages) => { for (const [key, message] of messages) log.push([tab, key, message]); },
  };
  const later = (...args) => setTimeout(...args).unref();   // what is left of them holds up no process
  const load = new Function('fetch', 'VERSION', 'setTimeout', `${code}\nreturn { Carriers, splitPackets };`);
  const { Carriers, splitPackets } = load(fetch, 1, later);
  return { carriers: new Carriers(owner), splitPackets, sent, log };
}

/** A response that is a carrier: `say` sends a packet on it. */
function carrier(id, visitor = 'ann') {
  let controller;
  const body = new ReadableStream({ start: o => { controller = o; } });
  const response = new Response(body, { headers: { 'SSE-Carrier': id, 'SSE-Visitor': visitor } });
  const say = (number, body = '{}') => controller.enqueue(packet(number, new TextEncoder().encode(body)));
  return { response, say, end: () => controller.close() };
}
const status = (status, headers = {}) => new Response(null, { status, headers });
const attached = (id, visitor = 'ann') => status(204, { 'SSE-Carrier': id, 'SSE-Visitor': visitor });

function packet(number, body) {
  const bytes = new Uint8Array(8 + body.length), view = new DataView(bytes.buffer);
  view.setUint32(0, number);
  view.setUint32(4, body.length);
  bytes.set(body, 8);
  return bytes;
}

/** Carriers whose first tab has two channels; `response` answers the first request, when it comes. */
async function opened(first, response = first.response) {
  const made = make(({ carriers }) => carriers.length ? attached('A') : response);
  made.carriers.want('one', [wish(1), wish(2)]);
  await soon();
  return made;
}

const wish = (key, body = '', back = false) =>
  ({ key, path: `/${key}`, ticket: 'ticket', ids: ['', ''], body, back, delay: 20 });
const soon = async () => { for (let i = 0; i < 5; i++) await new Promise(setImmediate); };
const CONTROL = 2 ** 31;

test('bytes that come in pieces of any size are the same packets', () => {
  const { splitPackets } = make();
  const bodies = [Uint8Array.of(1, 2, 3), new Uint8Array(0), new Uint8Array(300).fill(7)];
  const packets = [1, CONTROL, 7].map((number, i) => packet(number, bodies[i]));
  const bytes = Uint8Array.from(packets.flatMap(o => [...o]));
  for (const size of [1, 2, 7, 8, 9, 100, bytes.length]) {
    const got = [], split = splitPackets((number, body) => got.push([number, body.length, body[0]]));
    for (let i = 0; i < bytes.length; i += size) split(bytes.subarray(i, i + size));
    assert.deepEqual(got, [[1, 3, 1], [CONTROL, 0, undefined], [7, 300, 7]]);
  }
});

test('channels of all tabs go on one carrier, and what comes goes to their tabs', async () => {
  const first = carrier('A');
  const { carriers, sent, log } = await opened(first);
  carriers.want('two', [wish(1)]);
  await soon();
  const asked = sent.map(o => [o.carriers, o.open.map(([, path]) => path), o.become]);
  assert.deepEqual(asked, [[[], ['/1', '/2'], true], [['A'], ['/1'], true]]);
  first.say(sent[1].open[0][0], 'hello');
  first.say(sent[0].open[1][0] + CONTROL, '{"end":true}');
  await soon();
  const came = log.map(([tab, key, { end, bytes }]) => [tab, key, end ?? new TextDecoder().decode(bytes)]);
  assert.deepEqual(came, [['two', 1, 'hello'], ['one', 2, true]]);
  carriers.want('one', [wish(1), wish(2)]);
  await soon();
  assert.equal(sent.length, 2, 'one that has ended is not opened again');
  first.end();
  await soon();
  assert.deepEqual(log.slice(2), [['one', 1, { lost: true }], ['two', 1, { lost: true }]]);
  assert.equal(carriers.carriers.size, 0);
});

test('a body is the last field, where there is one, and those of one request fit into it', async () => {
  const first = carrier('A');
  const { carriers, sent } = make(({ carriers }) => carriers.length ? attached('A') : first.response);
  const long = '"'.repeat(100000);   // each has two bytes as JSON
  const { body: _, ...yesterday } = wish(4);
  carriers.want('one', [wish(1, long), wish(2, long), wish(3, long), yesterday, wish(5, 'x')]);
  await soon();
  first.say(CONTROL);
  const asked = sent.map(o => o.open.map(([, path, , , , ...body]) => [path, ...body]));
  assert.deepEqual(asked.map(o => o.map(([path, body]) => [path, body?.length])), [
    [['/1', 100000], ['/2', 100000]], [['/3', 100000], ['/4', undefined], ['/5', 1]]]);
  carriers.end();
});

test('what a tab wants no more is closed with the next request, and the last one ends the carrier', async () => {
  const first = carrier('A');
  const { carriers, sent } = await opened(first);
  first.say(CONTROL);
  carriers.want('one', [wish(2), wish(3)]);
  await soon();
  assert.deepEqual([sent[1].close, sent[1].open.map(([, path]) => path)], [[sent[0].open[0][0]], ['/3']]);
  assert.equal(carriers.closing.size, 0);
  carriers.want('one', []);
  assert.equal(carriers.carriers.size, 0);
  carriers.end();
});

test('a channel that is closed while it is being opened is closed at the server', async () => {
  const first = carrier('A');
  let answer;
  const late = new Promise(resolve => { answer = () => resolve(first.response); });
  const { carriers, sent } = await opened(first, late);
  carriers.want('one', [wish(2)]);
  answer();
  await soon();
  first.say(CONTROL);
  await new Promise(resolve => setTimeout(resolve, 150));
  assert.deepEqual(sent.map(o => o.close), [[], [sent[0].open[0][0]]]);
  carriers.end();
});

test('behind many processes one more carrier replaces the oldest, whose channels look longer for a place', async () => {
  const made = [];
  let known = [];
  const { carriers, sent, log } = make(request => {
    const id = known.shift();
    if (request.carriers.includes(id)) return attached(id);
    if (!request.become) return status(409);
    made.push(carrier(`${made.length}`));
    return made.at(-1).response;
  });
  for (const key of [1, 2, 3]) {
    carriers.want(`tab ${key}`, [wish(key)]);
    await soon();
    made.at(-1).say(CONTROL);
  }
  assert.deepEqual([...carriers.carriers.keys()], ['0', '1', '2']);
  sent.length = 0;
  carriers.want('tab 4', [wish(4)]);
  await soon();
  made.at(-1).say(CONTROL);
  assert.deepEqual(sent.map(o => o.become), [false, false, true]);
  assert.deepEqual([...carriers.carriers.keys()], ['1', '2', '3']);
  assert.deepEqual(log, [['tab 1', 1, { moved: true }]]);
  sent.length = 0;
  known = [...Array(20).fill('nobody'), '2'];
  carriers.want('tab 1', [wish(5)]);
  await soon();
  for (let i = 0; i < 30 && sent.length < 21; i++) await soon();
  assert.equal(sent.length, 21);
  assert(sent.every(o => !o.become));
  carriers.end();
});

for (const [name, answers, ...calls] of [
  ['another visitor has none of the former carriers',
    [carrier('A').response, carrier('B', 'bob').response], ['one', 1, { moved: true }]],
  ['an error of the server keeps its Retry-After', [status(503, { 'Retry-After': '7' })], ['one', 1, { failed: 503, retryIn: 8 }]],
  ['who is let in nowhere needs another ticket', [status(403)], ['one', 1, { ticket: true }]],
  ['another version of the server is given up at once', [status(426)], ['giveUp', 'version']],
  ['a refusal that comes again is given up', [status(404), status(404)], ['giveUp', 'status 404']],
]) test(name, async () => {
  const { carriers, log } = make(() => answers.shift());
  const { giveUp } = carriers.owner;
  carriers.owner.giveUp = reason => { giveUp(reason); carriers.end(); };
  carriers.want('one', [wish(1)]);
  await soon();
  if (answers.length) carriers.sendRequest(true);
  await soon();
  for (const [, , o] of log) if (o?.retryIn) o.retryIn = o.retryIn >= 7000 && o.retryIn <= 8750 ? 8 : o.retryIn;
  assert.deepEqual(log, calls);
  assert.equal(answers.length, 0);
  carriers.end();
});

test('more streams than the carriers take: 500 in a request, 1,000 on a carrier, what is beyond goes direct', async () => {
  const made = [];
  const { carriers, sent, log } = make(({ open, become }) => {
    let one = made.find(o => o.count < 1000);
    if (!one && become) made.push(one = { ...carrier(`${made.length}`), count: 0 });
    if (!one) {
      for (const [number] of open) made[2].say(number + CONTROL, '{"direct":"limit"}');
      return attached('2');
    }
    const isNew = !one.count;
    one.count += open.length;
    for (const [number] of open) one.say(number, 'hello');
    return isNew ? one.response : attached(`${made.indexOf(one)}`);
  });
  carriers.want('one', Array.from({ length: 3001 }, (_, i) => wish(i)));
  for (let i = 0; i < 50 && log.length < 3001; i++) await soon();
  assert.deepEqual(sent.map(o => [o.open.length, o.become]), [...Array(5).fill([500, true]), [500, false], [1, false]]);
  assert.deepEqual([carriers.carriers.size, carriers.channels.size], [3, 3000]);
  assert.deepEqual(log.filter(([, , o]) => !o.bytes), [['one', 3000, { direct: 'limit' }]]);
  assert.equal(new Set(log.map(([, key]) => key)).size, 3001);
  carriers.end();
});

test('sixteen processes take turns: all streams of seven tabs find a place on three carriers', async () => {
  const made = [], wishes = new Map();
  let turn = 0, keys = 0;
  const { carriers, log, sent } = make(request => {
    const process = turn++ % 16;
    const known = made.find(o => o.process === process && request.carriers.includes(o.id));
    if (known) return attached(known.id);
    if (!request.become) return status(409);
    made.push({ ...carrier(`${made.length}`), id: `${made.length}`, process });
    return made.at(-1).response;
  });
  for (let tab = 0; tab < 7; tab++) {
    wishes.set(tab, [wish(keys++), wish(keys++)]);
    const before = sent.length;
    carriers.want(tab, wishes.get(tab));
    for (let i = 0; i < 100; i++) {
      await soon();
      if (!i) assert(sent.findIndex(o => o.open.some(([, path]) => path === `/${keys - 1}`) && o.become) < before + 3);
      for (const [tab, key, { moved }] of log.splice(0)) {   // as a tab does: the stream is asked for again
        assert(moved);
        wishes.set(tab, [...wishes.get(tab).filter(o => o.key !== key), wish(keys++)]);
        carriers.want(tab, wishes.get(tab));
      }
      if (!carriers.requesting && !carriers.wanted.size) break;
    }
  }
  const places = [...carriers.channels.values()].map(o => carriers.carriers.get(o.carrier?.id));
  assert.equal(places.filter(Boolean).length, 14);
  assert.equal(carriers.carriers.size, 3);
  assert(sent.length < 100, `${sent.length} requests`);
  carriers.end();
});

test('while the server is gone all wait, and one request brings the channels of all tabs back', async () => {
  const first = carrier('A'), second = carrier('B');
  const answers = [first.response, null, second.response];
  const { carriers, sent, log } = make(({ carriers }) => {
    if (carriers.length) return attached(carriers[0]);
    const answer = answers.shift();
    if (!answer) throw new TypeError('refused');
    return answer;
  });
  carriers.want('one', [wish(1)]);
  carriers.want('two', [wish(1)]);
  await soon();
  first.say(CONTROL);
  await soon();
  first.end();
  await soon();
  assert.deepEqual(log.splice(0), [['one', 1, { lost: true }], ['two', 1, { lost: true }]]);
  sent.length = 0;
  for (const tab of ['one', 'two']) carriers.want(tab, [wish(2, '', true)]);
  await soon();
  assert.equal(sent.length, 0, 'they wait');
  while (!log.length) await new Promise(resolve => setTimeout(resolve, 5));
  assert.deepEqual(log.splice(0).map(([tab, key, { failed, retryIn }]) => [tab, key, failed, retryIn > 0]),
    [['one', 2, 0, true], ['two', 2, 0, true]]);
  while (carriers.channels.size && !carriers.carriers.size) await new Promise(resolve => setTimeout(resolve, 5));
  await soon();
  assert.deepEqual(sent.map(o => o.open.map(([number]) => number)), Array(2).fill([...carriers.channels.keys()]));
  assert.deepEqual(log, [['tell', { back: true }]]);
  carriers.end();
});

test('who comes new while others wait tries at once, for all of them', async () => {
  const first = carrier('A'), second = carrier('B');
  const answers = [first.response, second.response];
  const { carriers, sent } = make(() => answers.shift());
  carriers.want('one', [wish(1)]);
  await soon();
  first.end();
  await soon();
  carriers.want('one', [{ ...wish(2, '', true), delay: 100000 }]);
  await soon();
  assert.equal(sent.length, 1);
  carriers.want('two', [wish(1)]);
  await soon();
  assert.deepEqual(sent[1].open.map(([, path]) => path), ['/2', '/1']);
  assert.equal(carriers.resting, 0);
  carriers.end();
});
