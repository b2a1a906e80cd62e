import assert from 'node:assert/strict';
import { test } from 'node:test';
import { World } from './world.mjs';

/** Tabs that have a leader; the first is it. */
async function elected(n, seed, recorder) {
  const world = new World(seed), tabs = [];
  for (let i = 0; i < n; i++) {
    tabs.push(world.tab('test', recorder));
    tabs[i].election.join();
    await world.until(() => tabs[i].election.leader);
  }
  return [world, ...tabs];
}

for (const how of ['crash', 'leave']) test(`takeover: ${how}`, async () => {
  const [world, a, b, c] = await elected(3);
  const { me } = a.election;
  how === 'crash' ? a.crash() : a.election.leave();
  await world.run(150);
  const [leader, follower] = b.leads ? [b, c] : [c, b];
  assert.deepEqual(leader.log, [['follow', me], ['lead']]);
  assert.deepEqual(follower.log, [['follow', me], ['follow', leader.election.me]]);
  assert.deepEqual(world.locks.names(a), []);
  if (how === 'leave') assert.deepEqual(a.log, [['lead'], ['lost']]);
});

const what = tab => tab.log.map(([what]) => what);

/** A leader, and a tab that it knows. */
async function known() {
  const [world, a, b] = await elected(2);
  b.election.request('x');
  await world.run(100);
  return [world, a, b, b.election.me];
}

async function beat(world, { election }) {
  election.beaten = -Infinity;
  election.beat();
  await world.run(100);
}

/** The follower that leads next, once the others follow it. */
async function overtaken(world, a, ...others) {
  await world.until(() => others.some(o => o.leads), 60000, 'somebody leads');
  const leader = others.find(o => o.leads);
  await world.until(() => others.every(o => o.election.leader === leader.election.me), 60000, 'the others follow');
  return leader;
}

test('a leader that hangs is overtaken when somebody waits for three seconds', async () => {
  const [world, a, b, c] = await elected(3);
  a.freeze();
  await world.run(10000);
  assert.equal(b.election.leader, a.election.me);
  const { now } = world;
  b.election.request('x');
  await world.until(() => b.leads);
  assert(world.now - now < 3100 && world.now - now >= 3000, `${world.now - now}`);
  await world.run(100);
  assert.deepEqual(c.log.at(-1), ['follow', b.election.me]);
  a.thaw();
  await world.run(1000);
  assert.deepEqual(a.log.slice(1), [['lost'], ['follow', b.election.me]]);
});

test('a leader that hangs is overtaken when a beat is five seconds late', async () => {
  const [world, a, b, c] = await elected(3);
  const beat = () => {
    a.election.beat();
    world.later(a, 15000, beat);
  };
  beat();
  await world.run(120000);
  a.freeze();
  const { now } = world;
  await overtaken(world, a, b, c);
  assert(world.now - now > 5000 && world.now - now < 24000, `${world.now - now}`);
});

test('all others wait, one takes over', async () => {
  for (let seed = 1; seed < 20; seed++) {
    const [world, a, ...others] = await elected(12, seed);
    let steals = 0;
    world.locks.stolen = name => { steals += name === 'sse3:test'; };
    a.freeze();
    for (const tab of others) tab.election.request('x');
    await overtaken(world, a, ...others);
    await world.run(10000);
    assert.equal(steals, 1);
    assert.equal(others.filter(o => o.count('lead')).length, 1);
  }
});

test('a tab that hangs while it takes over does not keep the others from it', async () => {
  const [world, a, b, c] = await elected(3);
  a.freeze();
  b.election.request('x');
  await world.until(() => world.locks.holder('sse3:test:take') === b);
  b.freeze();
  c.election.request('x');
  const { now } = world;
  await world.until(() => c.leads);
  assert(world.now - now < 5000);
  a.thaw();
  b.thaw();
  await world.run(5000);
  assert(c.leads && b.election.leader === c.election.me && a.election.leader === c.election.me);
});

test('a leader that is slow, but answers, keeps its lead', async () => {
  const [world, a, b] = await elected(2);
  for (let i = 0; i < 20; i++) {
    a.freeze();
    b.election.request(i);
    await world.run(2600);
    a.thaw();
    await world.run(500);
  }
  assert(a.leads);
  assert.deepEqual(a.log.slice(1).map(o => o[2]), [...Array(20).keys()]);
});

test('a hidden tab takes nothing until it is shown', async () => {
  const [world, a, b] = await elected(2);
  b.hidden = true;
  a.freeze();
  b.election.request('x');
  await world.run(100000);
  assert(!b.leads);
  b.hidden = false;
  b.election.check();
  const { now } = world;
  await world.until(() => b.leads);
  assert(world.now - now < 1600);
});

test('where the next in line is frozen, another one leads unasked, and it goes on as a follower', async () => {
  const [world, a, b, c] = await elected(3);
  await world.run(100);
  const waiting = world.locks.waiting.find(o => o.name === 'sse3:test').tab, other = waiting === b ? c : b;
  waiting.freeze();
  a.crash();
  const { now } = world;
  await world.until(() => other.leads);
  assert(world.now - now < 3200, `${world.now - now}`);
  waiting.thaw();
  await world.run(1000);
  assert.deepEqual(what(waiting).filter(o => o !== 'follow'), []);
  assert.equal(waiting.election.leader, other.election.me);
});

test('an answer of the browser that is older than a freeze does not count', async () => {
  const [world, a, b] = await elected(2);
  await world.run(5000);
  let res;
  a.election.confirmLead().then(o => { res = o; });
  await world.run();
  a.freeze();
  b.election.request('x');
  await world.until(() => b.leads);
  const { backlog } = a;
  a.backlog = backlog.splice(0, 1);
  a.thaw();
  await world.until(() => res !== undefined);
  assert.equal(res, false);
  assert.deepEqual(what(a).slice(0, 2), ['lead', 'lost']);
});

test('a request that arrives behind the end of its tab is followed by the end', async () => {
  for (let seed = 1; seed < 40; seed++) {
    const [world, a, b] = await elected(2, seed);
    b.election.request('x');
    await world.until(() => a.log.length === 2);
    const { me } = b.election;
    b.election.request('y');
    for (const task of world.tasks.filter(o => o.tab === a && o.lossy)) task.at += 100;
    b.crash();
    await world.run(1000);
    const left = ['left', me];
    assert.deepEqual(a.log.slice(1), [['requested', me, 'x'], left, ['requested', me, 'y'], left]);
    assert.equal(a.election.tabs.size, 0);
  }
});

test('a request that the leader did not see comes again, the newest alone', async () => {
  const [world, a, b] = await elected(2);
  let drop = 4;
  a.drop = ({ what }) => what === 'request' && drop-- > 0;
  for (const o of 'abcd') b.election.request(o);
  await world.run(5000);
  assert.deepEqual(a.log.slice(1).map(o => o[2]), ['d']);
  b.drop = ({ what }) => what === 'state';   // confirmations
  b.election.request('e');
  await world.run(2000);
  b.drop = null;
  await world.run(5000);
  assert.deepEqual(a.log.slice(1).map(o => o[2]), ['d', 'e']);
  assert(a.leads);
});

for (const how of ['frozen', 'debugger']) test(`a tab that takes nothing is sent little: ${how}`, async () => {
  const [world, a, b, me] = await known();
  const mb = 1 << 20;
  let { posted } = world;
  for (let i = 0; i < 100; i++) a.election.send(me, i, 500);
  await world.run(1000);
  assert.equal(world.posted - posted, 100, 'small messages are not acknowledged');
  for (let i = 0; i < 50; i++) {
    a.election.send(me, i, mb);
    await world.run(100);
  }
  assert.equal(b.count('received'), 150);
  b.freeze(how);
  ({ posted } = world);
  for (let i = 0; i < 50; i++) {
    a.election.send(me, i, mb);
    await world.run(10);
  }
  assert.equal(world.posted - posted, 5);
  assert.deepEqual(a.log.at(-1), ['left', me]);
  b.thaw();
  await world.run(100);
  await beat(world, a);
  assert.deepEqual(b.log.at(-1), ['follow', a.election.me]);
});

test('a leader waits for a tab that takes what it is sent, and not long for one that does not', async () => {
  const [world, a, b] = await known();
  let sent = 0;
  const send = async () => {
    for (; sent < 20; sent++) await a.election.send(b.election.me, sent, 600000);
  };
  send();
  await world.run(2000);
  assert.equal(sent, 20);
  assert.equal(b.count('received'), 20);
  b.freeze();
  sent = 0;
  const { now } = world;
  send();
  await world.until(() => sent === 20);
  assert(world.now - now < 700, `${world.now - now}`);
  assert.equal(a.log.at(-1)[0], 'left');
});

for (const [refuses, reason] of [['channels', /SecurityError/], ['locks', /SecurityError/], ['answers', /no lock/]])
  test(`where there are no ${refuses}, its owner hears why`, async () => {
    const world = new World(), a = world.tab(), b = world.tab();
    for (const tab of [a, b]) {
      tab.refuses = refuses;
      tab.election.join();
      assert.deepEqual(tab.log, []);
    }
    await world.run(refuses === 'answers' ? 3200 : 100);
    for (const { log, election } of [a, b]) {
      assert.deepEqual(log.map(([what]) => what), ['alone']);
      assert.match(`${log[0][1]}`, reason);
      assert.equal(await election.confirmLead(), false);
    }
    await world.run(10000);
    assert.deepEqual(world.locks.names(a), []);
    assert.equal(world.channels.size, 0);
  });

test('a long task at the start is no lock without an answer', async () => {
  const world = new World(), a = world.tab();
  a.election.join();
  a.freeze();
  await world.run(10000);
  a.thaw();
  await world.run(1000);
  assert.deepEqual(what(a), ['lead']);
});
