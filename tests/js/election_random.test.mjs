// Tabs that come, go, crash, freeze and wake at random: RUNS worlds, from the seed SEED on
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { World } from './world.mjs';

const { RUNS = 40, SEED = 1, STEPS = 150 } = process.env;
const LOCK = 'sse3:test', BEAT = 15000;

async function play(seed, happened) {
  const world = new World(seed), { random } = world;
  const pick = list => list[Math.floor(random() * list.length)];
  let serial = 0, stolenAt = -Infinity, victim = null;
  const executed = new Map();   // serial: [leader, tab]
  const sent = new Map();       // leader and tab: messages
  const note = (...what) => happened.push(`${Math.round(world.now)} ${what.join(' ')}`);

  world.locks.stolen = (name, by) => {
    if (name !== LOCK) return;
    const tab = world.locks.holder(LOCK);
    note('stolen by', by.election.me, 'from', tab?.election.me);
    if (!tab) return;
    assert(!by.hidden || by.hiddenAt > world.now - 3500, 'a hidden tab does not steal');
    assert(tab.frozen || world.now - tab.thawed < 3500, 'nobody steals from a leader that answers');
    [stolenAt, victim] = [world.now, tab];
  };
  function delivers(tab, what) {
    const holder = world.locks.holder(LOCK);
    const still = victim === tab && world.now - stolenAt < 1100;
    assert(holder === tab || still, `${what} by ${tab.election.me}, which does not lead`);
  }
  /** A new leader: request all anew, or nothing. */
  function anew(tab) {
    tab.last = 0;
    tab.received = 0;
    if (random() < .7) request(tab);
  }
  /** Now and then the owner leaves just when it is called. */
  function leaves(tab) {
    if (!busy || random() > .03) return false;
    note('leaves', tab.election.me);
    leave(tab);
    world.later(tab, random() * 3000, () => tab.election.join());
    return true;
  }
  function leave(tab) {
    tab.last = 0;
    tab.known.clear();
    tab.election.leave();
  }
  function request(tab) {
    if (tab.election.leader) tab.last = ++serial;
    tab.election.request({ serial: tab.last });
  }
  const recorder = {
    lead(tab) {
      note('lead', tab.election.me);
      if (!leaves(tab)) anew(tab);
    },
    follow(tab, leader) {
      note('follow', tab.election.me, leader);
      if (!leaves(tab)) anew(tab);
    },
    lost(tab) {
      note('lost');
      tab.received = 0;
    },
    requested(tab, from, { serial }) {
      if (from !== tab.election.me) delivers(tab, 'requested');
      assert(!executed.has(serial), `${serial} twice: ${executed.get(serial)} ${tab.election.me} ${from}`);
      executed.set(serial, [tab.election.me, from]);
      assert(!(tab.known.get(from) > serial), 'an older request');
      tab.known.set(from, serial);
      leaves(tab);
    },
    received(tab, [leader, to, number]) {
      assert.deepEqual([leader, to, number], [tab.election.leader, tab.election.me, ++tab.received], 'received');
    },
    left(tab, from) {
      delivers(tab, 'left');
      note('left', from);
      // A request that was under way then is followed by another end
      executed.delete(tab.known.get(from));
      tab.known.delete(from);
    },
  };
  for (const [what, f] of Object.entries(recorder)) recorder[what] = (...args) => {
    try { f(...args); } catch (error) { failed ??= error; }
  };
  function send(tab, to) {
    const key = `${tab.election.me} ${to}`;
    sent.set(key, (sent.get(key) ?? 0) + 1);
    tab.election.send(to, [tab.election.me, to, sent.get(key)], random() < .2 ? 600000 : 1000);
  }
  function open() {
    const tab = world.tab('test', recorder);
    Object.assign(tab, { last: 0, received: 0, known: new Map(), thawed: -Infinity, hiddenAt: -Infinity });
    tab.hidden = random() < .4;
    const beat = () => {
      if (tab.leads) tab.election.beat();
      world.later(tab, BEAT, beat);
    };
    const carrier = async () => {
      try { await deliver(); } catch (error) { failed ??= error; }
      if (busy) world.later(tab, random() * 2000, carrier);
    };
    const deliver = async () => {
      const { me } = tab.election;
      if (tab.leads && await tab.election.confirmLead()) {
        assert.equal(tab.election.me, me);
        delivers(tab, 'delivery');
        for (const to of tab.known.keys()) if (to === me || random() < .5) send(tab, to);
      }
    };
    world.later(tab, BEAT * random(), beat);
    world.later(tab, 100, carrier);
    tab.election.join();
    return tab;
  }

  let busy = true, failed = null;
  open();
  for (let step = 0; step < STEPS; step++) {
    const tab = pick(world.tabs), dice = random();
    if (!tab || dice < .12 && world.tabs.length < 6) open();
    else if (dice < .16) tab.crash();
    else if (dice < .3) tab.frozen ? tab.thaw() : tab.freeze(random() < .5 ? 'frozen' : 'debugger');
    else if (tab.frozen) {
      if (random() < .2) tab.thaw();
    } else if (dice < .4) {
      tab.hidden = !tab.hidden;
      if (tab.hidden) tab.hiddenAt = world.now;
      else tab.election.check();
    } else if (dice < .5) {
      leave(tab);
      await world.run();
      assert.deepEqual(world.locks.names(tab), [], 'no locks');
      if (random() < .2) tab.crash();
      else if (random() < .5) tab.election.join();
    } else {
      tab.election.join();
      request(tab);
    }
    const { election = {}, frozen, hidden, gone } = tab ?? {};
    if (process.env.TRACE) note(election.me, dice.toFixed(2), frozen, hidden, gone, election.silences);
    await world.run(random() < .2 ? random() * 20000 : random() * 1000);
    if (failed) throw failed;
  }
  note('rest');
  for (const tab of world.tabs) {
    tab.thaw();
    tab.election.join();
  }
  await world.run(60000);
  busy = false;
  await world.run(60000);

  const [leader, ...more] = world.tabs.filter(o => o.leads);
  assert(leader || !world.tabs.length, 'somebody leads');
  assert(!more.length, 'nobody else does');
  for (const tab of world.tabs) {
    const { leader: of, me } = tab.election;
    assert.equal(of, leader.election.me, 'all follow');
    const known = [executed.get(tab.last), leader.known.get(me)];
    if (tab.last) assert.deepEqual(known, [[of, me], tab.last], `${tab.last} was executed`);
    if (leader.known.has(me)) assert.equal(tab.received, sent.get(`${of} ${me}`) ?? 0, 'all came, or the tab knows');
  }
  const { posted } = world;
  await world.run(10 * BEAT);
  if (failed) throw failed;
  assert(world.posted - posted <= 10, `${world.posted - posted} messages in 10 beats`);
  const count = word => happened.filter(o => o.includes(word)).length;
  return { steals: count('stolen'), left: count('left'), serial };
}

test(`${RUNS} random worlds`, async () => {
  const total = { steals: 0, left: 0, serial: 0 };
  for (let seed = +SEED; seed < +SEED + +RUNS; seed++) {
    const happened = [];
    try {
      const done = await play(seed, happened);
      for (const key in total) total[key] += done[key];
    } catch (error) {
      const last = happened.slice(-(process.env.SHOW ?? 30)).join('\n');
      throw new Error(`seed ${seed}: ${error.message}\n${last}`, { cause: error });
    }
  }
  console.log(total);
});
