"""redis-py, the asyncio client."""

import asyncio
import sys

import redis
import redis.asyncio

import tap
from tap import BIG, BINARY, until


def connect(protocol, **options):
    return redis.asyncio.Redis(host=tap.HOST, port=tap.PORT, protocol=protocol, **options)


async def strings(r, key, protocol):
    assert await r.set(key, "v", px=100000) is True and await r.get(key) == b"v"
    assert await r.get(key + "none") is None
    assert await r.mget(key, key + "none") == [b"v", None]
    assert await r.incr(key + "n") == 1 and await r.delete(key) == 1
    try:
        await r.lpush(key + "n", "a")
        raise AssertionError("no error")
    except redis.ResponseError as error:
        assert str(error).startswith("WRONGTYPE")


async def types(r, key, protocol):
    assert await r.hset(key + "h", mapping={"a": 1}) == 1 and await r.hgetall(key + "h") == {b"a": b"1"}
    assert await r.zadd(key + "z", {"a": 1.5}) == 1 and await r.zscore(key + "z", "a") == 1.5
    assert await r.sadd(key + "s", "a") == 1 and await r.smembers(key + "s") == {b"a"}
    one = await r.xadd(key + "x", {"f": "v"})
    assert await r.xrange(key + "x") == [(one, {b"f": b"v"})]


async def binary(r, key, protocol):
    raw = key.encode() + BINARY
    assert await r.set(raw, BINARY) and await r.get(raw) == BINARY


async def big(r, key, protocol):
    assert await r.set(key, BIG) and await r.get(key) == BIG


async def pipeline(r, key, protocol):
    async with r.pipeline(transaction=False) as pipe:
        for n in range(2000):
            pipe.set(f"{key}{n}", n).get(f"{key}{n}")
        answers = await pipe.execute()
    assert answers == [answer for n in range(2000) for answer in (True, str(n).encode())]


async def pool(r, key, protocol):
    async def work(n):
        for _ in range(20):
            await r.incrby(key, n)
            assert await r.get(f"{key}:{n}") in (None, b"%d" % n)
            await r.set(f"{key}:{n}", n)

    await asyncio.gather(*(work(n) for n in range(50)))
    assert await r.get(key) == b"24500"


async def transaction(r, key, protocol):
    async with r.pipeline() as pipe:
        assert await pipe.set(key, 1).incr(key).execute() == [True, 2]
        await pipe.watch(key)
        value = int(await pipe.get(key))
        pipe.multi()
        assert await pipe.set(key, value + 1).execute() == [True]
        await pipe.watch(key)
        await r.set(key, "other")
        pipe.multi()
        pipe.set(key, "mine")
        try:
            await pipe.execute()
            raise AssertionError("the watch did not fail")
        except redis.WatchError:
            pass
    assert await r.get(key) == b"other"


async def blocking(r, key, protocol):
    waiting = asyncio.create_task(r.blpop([key], timeout=tap.PATIENCE))

    async def blocked():
        return (await r.info("clients"))["blocked_clients"]

    await until("the client to block", blocked)
    await r.rpush(key, "a")
    assert tuple(await waiting) == (key.encode(), b"a")
    assert await r.brpop([key], timeout=0.01) is None
    # Given up half way: the next command gets its own answer.
    try:
        await asyncio.wait_for(r.blpop([key], timeout=tap.PATIENCE), 0.05)
        raise AssertionError("no timeout")
    except asyncio.TimeoutError:
        pass
    assert await r.set(key + "s", "v") and await r.get(key + "s") == b"v"


async def pubsub(r, key, protocol):
    async with r.pubsub() as sub:
        await sub.subscribe(key)
        await sub.psubscribe(key + ":*")
        take = lambda: until("a message", lambda: sub.get_message(timeout=1))
        assert [(await take())["type"] for _ in range(2)] == ["subscribe", "psubscribe"]
        assert await r.publish(key, BINARY) == 1 and await r.publish(key + ":1", "x") == 1
        assert (await take())["data"] == BINARY
        assert (await take())["type"] == "pmessage"
        await sub.unsubscribe()
        assert (await take())["type"] == "unsubscribe"


async def script(r, key, protocol):
    get = r.register_script("return {KEYS[1], ARGV[1]}")
    assert await get(keys=[key], args=["x"]) == [key.encode(), b"x"]
    assert await get(keys=[key], args=["y"]) == [key.encode(), b"y"]


async def select(r, key, protocol):
    async with connect(protocol, db=3) as other:
        assert await other.set(key, "three") and await r.get(key) is None
        assert await other.get(key) == b"three"


async def acl(r, key, protocol):
    async with connect(protocol, username="app", password="secret") as app:
        assert await app.acl_whoami() in ("app", b"app")
        assert await app.set(key, "v")
    async with connect(protocol, username="reader", password="secret") as reader:
        assert await reader.get(key) == b"v"
        try:
            await reader.set(key, "x")
            raise AssertionError("no error")
        except redis.exceptions.NoPermissionError:
            pass


async def stale(r, key, protocol):
    if not tap.USER_ID:
        return "nothing is guarded here"
    user = tap.USER_ID + protocol
    name, profile = f"user:{user}", f"user:{user}:profile"
    async with connect(protocol, single_connection_client=True) as one:

        async def filled(key, value):
            found = await one.get(key)
            if found is None:
                await one.set(key, value)
            return found

        await until("a fill to be let in", lambda: filled(profile, "old"))
        assert await one.get(name) is None
        await r.publish("commit", user)

        async def deleted():
            return await one.get(profile) is None

        await until("the deletion", deleted)
        assert await one.set(name, "old") is True
        assert await one.get(name) is None, "a stale value came back"
        assert await until("a new fill to be let in", lambda: filled(name, "new")) == b"new"


CASES = [
    strings, types, binary, big, pipeline, pool, transaction, blocking, pubsub, script, select, acl, stale,
]


async def main():
    for protocol in tap.PROTOCOLS:
        async with connect(protocol) as r:
            for case in CASES:
                try:
                    skipped = await case(r, f"redis-py:asyncio:{protocol}:{case.__name__}:", protocol)
                except Exception as error:
                    tap.report(protocol, case.__name__, error)
                else:
                    if skipped:
                        tap.skip(protocol, case.__name__, skipped)
                    else:
                        tap.report(protocol, case.__name__, None)


asyncio.run(main())
sys.exit(tap.failed > 0)
