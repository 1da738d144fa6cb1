// ioredis. The first argument is the package: `ioredis`, or an alias of an older one.

import assert from 'node:assert/strict';
import { big, binary, host, port, protocols, run, until, userId } from './tap.mjs';

const name = process.argv[2] ?? 'ioredis';
const { default: Redis } = await import(name);
const speaks3 = name === 'ioredis';

function connect(protocol, more = {}) {
  const own = speaks3 ? { protocol } : {};
  return new Redis({ host, port, ...own, maxRetriesPerRequest: 2, ...more }).on('error', () => {});
}

async function connected(protocol, more, work) {
  const client = connect(protocol, more);
  try {
    return await work(client);
  } finally {
    client.disconnect();
  }
}

async function strings({ r }, key) {
  assert.equal(await r.set(key, 'v', 'EX', 100), 'OK');
  assert.equal(await r.get(key), 'v');
  assert.equal(await r.get(`${key}none`), null);
  assert.equal(await r.set(key, 'w', 'NX'), null);
  assert.equal(await r.mset({ [`${key}1`]: 1, [`${key}2`]: 2 }), 'OK');
  assert.deepEqual(await r.mget(`${key}1`, `${key}none`, `${key}2`), ['1', null, '2']);
  assert.equal(await r.incr(`${key}1`), 2);
  assert.equal(await r.del(key, `${key}2`), 2);
  await assert.rejects(r.lpush(`${key}1`, 'a'), /WRONGTYPE/);
}

async function types({ r }, key) {
  assert.equal(await r.hset(`${key}h`, { a: '1', b: '2' }), 2);
  assert.deepEqual({ ...(await r.hgetall(`${key}h`)) }, { a: '1', b: '2' });
  assert.equal(await r.zadd(`${key}z`, 1.5, 'a'), 1);
  assert.equal(Number(await r.zscore(`${key}z`, 'a')), 1.5);
  assert.equal((await r.zrange(`${key}z`, 0, -1, 'WITHSCORES')).flat().map(String).join(), 'a,1.5');
  assert.equal(await r.sadd(`${key}s`, 'a'), 1);
  assert.deepEqual([...(await r.smembers(`${key}s`))], ['a']);
  const id = await r.xadd(`${key}x`, '*', 'f', 'v');
  assert.ok(JSON.stringify(await r.xread('STREAMS', `${key}x`, '0')).includes(id));
  const found = [];
  for await (const keys of r.scanStream({ match: `${key}[hszx]`, count: 1000 })) found.push(...keys);
  assert.equal(found.length, 4);
}

async function binary_values({ r }, key) {
  const raw = Buffer.concat([Buffer.from(key), binary]);
  await r.set(raw, binary);
  assert.ok((await r.getBuffer(raw)).equals(binary));
}

async function big_values({ r }, key) {
  await r.set(key, big);
  assert.ok((await r.getBuffer(key)).equals(big));
}

async function pipeline({ r }, key) {
  const pipe = r.pipeline();
  for (let n = 0; n < 2000; n++) pipe.set(key + n, n).get(key + n);
  pipe.lpush(`${key}0`, 'wrong');
  const answers = await pipe.exec();
  assert.match(answers.pop()[0].message, /WRONGTYPE/);
  assert.deepEqual(answers.flat(), Array.from({ length: 2000 }, (_, n) => [null, 'OK', null, `${n}`]).flat());
}

async function auto_pipeline({ protocol }, key) {
  await connected(protocol, { enableAutoPipelining: true }, async (auto) => {
    const sent = Array.from({ length: 500 }, (_, n) => [auto.set(key + n, n), auto.get(key + n)]).flat();
    assert.deepEqual(await Promise.all(sent), Array.from({ length: 500 }, (_, n) => ['OK', `${n}`]).flat());
  });
}

async function pool({ protocol }, key) {
  const many = Array.from({ length: 10 }, () => connect(protocol));
  try {
    await Promise.all(many.map(async (one, n) => {
      for (let i = 0; i < 50; i++) {
        await one.incrby(key, n);
        assert.ok([null, `${n}`].includes(await one.get(`${key}${n}`)));
        await one.set(`${key}${n}`, n);
      }
    }));
    assert.equal(await many[0].get(key), '2250');
  } finally {
    many.forEach((one) => one.disconnect());
  }
}

async function transaction({ r, protocol }, key) {
  assert.deepEqual(await r.multi().set(key, 1).incr(key).get(key).exec(), [[null, 'OK'], [null, 2], [null, '2']]);
  await r.multi({ pipeline: false });
  assert.equal(await r.set(key, 5), 'QUEUED');
  assert.deepEqual(await r.exec(), [[null, 'OK']]);
  await connected(protocol, {}, async (one) => {
    await one.watch(key);
    await r.set(key, 'other');
    assert.equal(await one.multi().set(key, 'mine').exec(), null);
    await one.watch(key);
    assert.deepEqual(await one.multi().get(key).exec(), [[null, 'other']]);
    await assert.rejects(one.multi().set(key).exec(), /EXECABORT/);
  });
}

async function blocking({ r, protocol }, key) {
  await connected(protocol, {}, async (one) => {
    const waiting = one.blpop(key, 20);
    await until('the client to block', async () => !/blocked_clients:0/.test(await r.info('clients')));
    await r.rpush(key, 'a');
    assert.deepEqual(await waiting, [key, 'a']);
    assert.equal(await one.blpop(key, 0.01), null);
    assert.deepEqual(await Promise.all([one.blpop(`${key}2`, 0.05), one.set(key, 'v')]), [null, 'OK']);
  });
}

async function pubsub({ r, protocol }, key) {
  await connected(protocol, {}, async (sub) => {
    const got = [];
    sub.on('messageBuffer', (channel, message) => got.push([`${channel}`, message.equals(binary)]));
    sub.on('pmessage', (_, channel, message) => got.push([channel, message]));
    assert.equal(await sub.subscribe(key), 1);
    assert.equal(await sub.psubscribe(`${key}:*`), 2);
    assert.equal(await r.publish(key, binary), 1);
    assert.equal(await r.publish(`${key}:1`, 'x'), 1);
    await until('the messages', () => got.length === 2);
    assert.deepEqual(got, [[key, true], [`${key}:1`, 'x']]);
    assert.equal(await sub.unsubscribe(key), 1);
    assert.equal(await sub.punsubscribe(`${key}:*`), 0);
    assert.equal(await sub.set(`${key}v`, '2'), 'OK');
    assert.equal(await r.get(`${key}v`), '2');
  });
}

async function sharded({ r, protocol }, key) {
  await connected(protocol, {}, async (sub) => {
    const got = [];
    sub.on('smessage', (_, message) => got.push(message));
    assert.equal(await sub.ssubscribe(key), 1);
    assert.equal(await r.spublish(key, 'x'), 1);
    await until('the message', () => got.length === 1);
    assert.equal(await sub.sunsubscribe(key), 0);
  });
}

async function script({ r, protocol }, key) {
  const lua = 'return {redis.call("SET", KEYS[1], ARGV[1]), ARGV[1]}';
  await connected(protocol, { scripts: { put: { lua, numberOfKeys: 1 } } }, async (one) => {
    assert.deepEqual(await one.put(key, 'v'), ['OK', 'v']);
    assert.deepEqual(await one.pipeline().put(key, 'w').get(key).exec(), [[null, ['OK', 'w']], [null, 'w']]);
  });
  await assert.rejects(r.evalsha('0'.repeat(40), 0), /NOSCRIPT/);
}

async function select({ r, protocol }, key) {
  await connected(protocol, { db: 3 }, async (other) => {
    await other.set(key, 'three');
    assert.equal(await r.get(key), null);
    assert.equal(await other.get(key), 'three');
    await other.select(0);
    assert.equal(await other.get(key), null);
  });
}

async function acl({ protocol }, key) {
  const as = (username, password = 'secret') => ({ username, password });
  await connected(protocol, as('app'), async (app) => {
    assert.equal(await app.acl('WHOAMI'), 'app');
    assert.equal(await app.set(key, 'v'), 'OK');
    assert.deepEqual(await app.multi().get(key).exec(), [[null, 'v']]);
  });
  await connected(protocol, as('reader'), async (reader) => {
    assert.equal(await reader.get(key), 'v');
    await assert.rejects(reader.set(key, 'x'), /NOPERM/);
  });
  await connected(protocol, as('reader', 'wrong'), async (wrong) => {
    await assert.rejects(wrong.call('AUTH', 'app', 'wrong'), /WRONGPASS/);
  });
}

// The client keeps no cache of its own; this is the tracking of RESP2, where another connection gets the messages.
async function tracking({ r, protocol }, key) {
  if (protocol === 3) return 'the client does not show the messages of RESP3';
  await connected(protocol, {}, (listener) =>
    connected(protocol, {}, async (near) => {
      const gone = [];
      listener.on('message', (_, keys) => gone.push(keys));
      const id = await listener.client('ID');
      await listener.subscribe('__redis__:invalidate');
      assert.equal(await near.client('TRACKING', 'ON', 'REDIRECT', id), 'OK');
      await r.set(key, '1');
      assert.equal(await near.get(key), '1');
      await r.set(key, '2');
      await until('the invalidation', () => JSON.stringify(gone).includes(key));
    }));
}

async function stale({ r, protocol }) {
  if (!userId) return 'nothing is guarded here';
  const user = userId + protocol;
  const [name, profile] = [`user:${user}`, `user:${user}:profile`];
  const filled = async (key, value) => (await r.get(key)) ?? ((await r.set(key, value)), null);
  await until('a fill to be let in', () => filled(profile, 'old'));
  assert.equal(await r.get(name), null);
  await r.publish('commit', user);
  await until('the deletion', async () => (await r.get(profile)) === null);
  assert.equal(await r.set(name, 'old'), 'OK');
  assert.equal(await r.get(name), null, 'a stale value came back');
  assert.equal(await until('a new fill to be let in', () => filled(name, 'new')), 'new');
}

for (const protocol of speaks3 ? protocols : [2]) {
  await connected(protocol, {}, (r) =>
    run(name, [
      strings, types, binary_values, big_values, pipeline, auto_pipeline, pool, transaction, blocking, pubsub,
      sharded, script, select, acl, tracking, stale,
    ], protocol, { r, protocol }));
}
