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

test('the first tab leads, others follow', async () => {
  const [world, a, b, c] = await elected(3);
  assert.deepEqual(a.log, [['lead']]);
  for (const tab of [b, c]) assert.deepEqual(tab.log, [['follow', a.election.me]]);
});

test('questions reach the leader, and messages a tab', async () => {
  const [world, a, b] = await elected(2);
  b.election.ask('one');
  b.election.ask('two');
  await world.run(100);
  const { me } = b.election;
  assert.deepEqual(a.log.slice(1), [['asked', me, 'one'], ['asked', me, 'two']]);
  a.election.tell(me, 'hello', 5);
  await world.run(100);
  assert.deepEqual(b.log.slice(1), [['told', 'hello']]);
  a.election.ask('me');
  a.election.tell(a.election.me, 'too');
  assert.deepEqual(a.log.slice(3), [['asked', a.election.me, 'me'], ['told', 'too']]);
});

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

test('a leader that hangs is overtaken after three seconds, if somebody waits for it', async () => {
  const [world, a, b, c] = await elected(3);
  a.freeze();
  await world.run(20000);
  assert.equal(a.election.leader, b.election.leader);
  const start = world.now;
  b.election.ask('x');
  await world.until(() => b.leads);
  assert(world.now - start < 3200, `${world.now - start}`);
  a.thaw();
  await world.run(1000);
  assert.equal(a.log[1][0], 'lost');
  assert.deepEqual(a.log[2], ['follow', b.election.me]);
});
