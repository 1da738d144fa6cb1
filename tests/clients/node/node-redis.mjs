// node-redis: the client, its pool, and its client-side cache.

import assert from 'node:assert/strict';
import { BasicClientSideCache, RESP_TYPES, WatchError, createClient, createClientPool } from 'redis';
import { big, binary, host, port, protocols, run, until, userId } from './tap.mjs';

const quiet = (client) => client.on('error', () => {});
const options = (protocol, more = {}) => ({ socket: { host, port }, RESP: protocol, ...more });
const plain = (object) => JSON.parse(JSON.stringify(object));

async function connected(protocol, more, work) {
  const client = quiet(createClient(options(protocol, more)));
  try {
    await client.connect();
    return await work(client);
  } finally {
    client.destroy();
  }
}

async function strings({ r }, key) {
  assert.equal(await r.set(key, 'v', { expiration: { type: 'EX', value: 100 } }), 'OK');
  assert.equal(await r.get(key), 'v');
  assert.equal(await r.get(`${key}none`), null);
  assert.equal(await r.set(key, 'w', { condition: 'NX' }), null);
  await r.mSet({ [`${key}1`]: '1', [`${key}2`]: '2' });
  assert.deepEqual(await r.mGet([`${key}1`, `${key}none`, `${key}2`]), ['1', null, '2']);
  assert.equal(await r.incr(`${key}1`), 2);
  assert.equal(await r.del([key, `${key}2`]), 2);
  await assert.rejects(r.lPush(`${key}1`, 'a'), /^.*WRONGTYPE/);
}

async function types({ r }, key) {
  assert.equal(await r.hSet(`${key}h`, { a: '1', b: '2' }), 2);
  assert.deepEqual(plain(await r.hGetAll(`${key}h`)), { a: '1', b: '2' });
  assert.equal(await r.zAdd(`${key}z`, [{ score: 1.5, value: 'a' }]), 1);
  assert.equal(await r.zScore(`${key}z`, 'a'), 1.5);
  assert.deepEqual(plain(await r.zRangeWithScores(`${key}z`, 0, -1)), [{ value: 'a', score: 1.5 }]);
  assert.equal(await r.sAdd(`${key}s`, 'a'), 1);
  assert.deepEqual([...(await r.sMembers(`${key}s`))], ['a']);
  const id = await r.xAdd(`${key}x`, '*', { f: 'v' });
  await r.xGroupCreate(`${key}x`, 'g', '0');
  const read = plain(await r.xReadGroup('g', 'me', { key: `${key}x`, id: '>' }));
  assert.ok(JSON.stringify(read).includes(id), JSON.stringify(read));
  const found = [];
  for await (const keys of r.scanIterator({ MATCH: `${key}[hszx]`, COUNT: 1000 })) found.push(...keys);
  assert.equal(found.length, 4);
}

async function binary_values({ r }, key) {
  const b = r.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer });
  const raw = Buffer.concat([Buffer.from(key), binary]);
  await b.set(raw, binary);
  assert.ok((await b.get(raw)).equals(binary));
}

async function big_values({ r }, key) {
  const b = r.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer });
  await b.set(key, big);
  assert.ok((await b.get(key)).equals(big));
}

async function pipeline({ r }, key) {
  // What is sent in one tick goes out in one piece.
  const sent = [];
  for (let n = 0; n < 2000; n++) sent.push(r.set(key + n, `${n}`), r.get(key + n));
  const got = await Promise.all(sent);
  assert.deepEqual(got, Array.from({ length: 2000 }, (_, n) => ['OK', `${n}`]).flat());
  const piped = r.multi().get(`${key}1`).lPush(`${key}1`, 'x').get(`${key}2`);
  await assert.rejects(piped.execAsPipeline(), /WRONGTYPE/);
}

async function pool({ protocol }, key) {
  const many = createClientPool(options(protocol), { minimum: 1, maximum: 8 });
  quiet(many);
  await many.connect();
  try {
    const work = async (n) => {
      for (let i = 0; i < 20; i++) {
        await many.incrBy(key, n);
        assert.ok([null, `${n}`].includes(await many.get(`${key}${n}`)));
        await many.set(`${key}${n}`, `${n}`);
      }
    };
    await Promise.all(Array.from({ length: 50 }, (_, n) => work(n)));
    assert.equal(await many.get(key), '24500');
  } finally {
    many.destroy();
  }
}

async function transaction({ r, protocol }, key) {
  assert.deepEqual(await r.multi().set(key, '1').incr(key).get(key).exec(), ['OK', 2, '2']);
  await connected(protocol, {}, async (one) => {
    await one.watch(key);
    assert.deepEqual(await one.multi().set(key, '3').exec(), ['OK']);
    await one.watch(key);
    await r.set(key, 'other');
    await assert.rejects(one.multi().set(key, 'mine').exec(), WatchError);
    await one.watch(key);
    await one.unwatch();
    await r.set(key, 'again');
    assert.deepEqual(await one.multi().get(key).exec(), ['again']);
  });
}

async function blocking({ r, protocol }, key) {
  await connected(protocol, {}, async (one) => {
    const waiting = one.blPop([key], 20);
    await until('the client to block', async () => !/blocked_clients:0/.test(await r.info('clients')));
    await r.rPush(key, 'a');
    assert.deepEqual(plain(await waiting), { key, element: 'a' });
    assert.equal(await one.blPop([key], 0.01), null);
    // Behind one that blocks, in one connection.
    const [popped, got] = await Promise.all([one.blPop([`${key}2`], 0.05), one.set(key, 'v')]);
    assert.deepEqual([popped, got], [null, 'OK']);
  });
}

async function pubsub({ r, protocol }, key) {
  await connected(protocol, {}, async (sub) => {
    const got = [];
    await sub.subscribe(key, (message, channel) => got.push([`${channel}`, message.equals(binary)]), true);
    await sub.pSubscribe(`${key}:*`, (message, channel) => got.push([channel, message]));
    assert.equal(await r.publish(key, binary), 1);
    assert.equal(await r.publish(`${key}:1`, 'x'), 1);
    await until('the messages', () => got.length === 2);
    assert.deepEqual(got, [[key, true], [`${key}:1`, 'x']]);
    if (protocol === 3) {
      // The connection still answers commands.
      assert.equal(await sub.set(`${key}v`, '1'), 'OK');
      assert.equal(await sub.get(`${key}v`), '1');
    }
    await sub.unsubscribe(key);
    await sub.pUnsubscribe(`${key}:*`);
    // The first reply after a subscription to buffers is one too, here and without the proxy.
    assert.equal(String(await sub.set(`${key}v`, '2')), 'OK');
    assert.equal(await r.get(`${key}v`), '2');
  });
}

async function sharded({ r, protocol }, key) {
  await connected(protocol, {}, async (sub) => {
    const got = [];
    await sub.sSubscribe(key, (message) => got.push(message));
    assert.equal(await r.sPublish(key, 'x'), 1);
    await until('the message', () => got.length === 1);
    await sub.sUnsubscribe(key);
    assert.equal(await r.sPublish(key, 'x'), 0);
  });
}

async function script({ r }, key) {
  const source = 'return {redis.call("SET", KEYS[1], ARGV[1]), ARGV[1]}';
  assert.deepEqual(await r.eval(source, { keys: [key], arguments: ['v'] }), ['OK', 'v']);
  const sha = await r.scriptLoad(source);
  assert.deepEqual(await r.evalSha(sha, { keys: [key], arguments: ['w'] }), ['OK', 'w']);
  await assert.rejects(r.evalSha('0'.repeat(40)), /NOSCRIPT/);
  assert.equal(await r.get(key), 'w');
}

async function select({ r, protocol }, key) {
  await connected(protocol, { database: 3 }, async (other) => {
    await other.set(key, 'three');
    assert.equal(await r.get(key), null);
    assert.equal(await other.get(key), 'three');
    await other.select(0);
    assert.equal(await other.get(key), null);
  });
}

async function acl({ protocol }, key) {
  const socket = { host, port, reconnectStrategy: false };
  const as = (username, password = 'secret') => ({ username, password, socket });
  await connected(protocol, as('app'), async (app) => {
    assert.equal(await app.aclWhoAmI(), 'app');
    assert.equal(await app.set(key, 'v'), 'OK');
    assert.deepEqual(await app.multi().get(key).exec(), ['v']);
  });
  await connected(protocol, as('reader'), async (reader) => {
    assert.equal(await reader.get(key), 'v');
    await assert.rejects(reader.set(key, 'x'), /NOPERM/);
  });
  await assert.rejects(connected(protocol, as('app', 'wrong'), (app) => app.ping()), /WRONGPASS/);
}

async function tracking({ r }, key, protocol) {
  if (protocol === 2) return 'the client caches with RESP3 only';
  const clientSideCache = new BasicClientSideCache();
  await connected(protocol, { clientSideCache }, async (near) => {
    await r.set(key, '1');
    assert.equal(await near.get(key), '1');
    assert.equal(await near.get(key), '1');
    assert.equal(clientSideCache.stats().hitCount, 1);
    await r.set(key, '2');
    await until('the invalidation', async () => (await near.get(key)) === '2');
  });
}

async function stale({ r, protocol }) {
  if (!userId) return 'nothing is guarded here';
  const user = userId + protocol;
  const [name, profile] = [`user:${user}`, `user:${user}:profile`];
  const filled = async (key, value) => (await r.get(key)) ?? ((await r.set(key, value)), null);
  await until('a fill to be let in', () => filled(profile, 'old'));
  assert.equal(await r.get(name), null);
  await r.publish('commit', `${user}`);
  await until('the deletion', async () => (await r.get(profile)) === null);
  assert.equal(await r.set(name, 'old'), 'OK');
  assert.equal(await r.get(name), null, 'a stale value came back');
  assert.equal(await until('a new fill to be let in', () => filled(name, 'new')), 'new');
}

for (const protocol of protocols) {
  await connected(protocol, {}, (r) =>
    run('node-redis', [
      strings, types, binary_values, big_values, pipeline, pool, transaction, blocking, pubsub, sharded, script,
      select, acl, tracking, stale,
    ], protocol, { r, protocol }));
}
