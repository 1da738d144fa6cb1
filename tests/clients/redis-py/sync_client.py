"""redis-py, the ordinary client."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import redis
from redis.cache import CacheConfig

import tap
from tap import BIG, BINARY, wait_for


def connect(protocol, **options):
    return redis.Redis(host=tap.HOST, port=tap.PORT, protocol=protocol, **options)


def strings(r, key, protocol):
    assert r.ping() is True
    assert r.set(key, "v", ex=100) is True
    assert r.get(key) == b"v" and 0 < r.ttl(key) <= 100
    assert r.set(key, "w", nx=True) is None and r.set(key, "w", get=True) == b"v"
    assert r.get(key + "none") is None
    assert r.mset({key: 1, key + "2": 2}) and r.mget(key, key + "none", key + "2") == [b"1", None, b"2"]
    assert r.incr(key) == 2 and r.incrbyfloat(key, 0.5) == 2.5
    assert r.delete(key, key + "2") == 2 and r.exists(key) == 0
    try:
        r.lpush(key, "a")
        r.get(key)
        raise AssertionError("no error")
    except redis.ResponseError as error:
        assert str(error).startswith("WRONGTYPE")


def types(r, key, protocol):
    assert r.hset(key + "h", mapping={"a": 1, "b": 2}) == 2 and r.hgetall(key + "h") == {b"a": b"1", b"b": b"2"}
    assert r.sadd(key + "s", "a", "b") == 2 and r.smembers(key + "s") == {b"a", b"b"}
    assert r.zadd(key + "z", {"a": 1, "b": 2.5}) == 2 and r.zscore(key + "z", "b") == 2.5
    assert [tuple(pair) for pair in r.zrange(key + "z", 0, -1, withscores=True)] == [(b"a", 1.0), (b"b", 2.5)]
    assert r.rpush(key + "l", "a", "b") == 2 and r.lrange(key + "l", 0, -1) == [b"a", b"b"]
    one = r.xadd(key + "x", {"f": "v"})
    assert r.xgroup_create(key + "x", "g", id="0") is True
    read = r.xreadgroup("g", "me", {key + "x": ">"})
    entries = read[(key + "x").encode()] if isinstance(read, dict) else read[0][1]
    assert str((one, {b"f": b"v"})) in str(entries), entries
    assert r.xack(key + "x", "g", one) == 1
    assert {key.decode() for key in r.scan_iter(match=key + "[hsz]", count=1000)} == {key + "h", key + "s", key + "z"}
    assert r.geoadd(key + "g", (13.36, 38.11, "Palermo")) == 1
    assert abs(r.geopos(key + "g", "Palermo")[0][0] - 13.36) < 0.001
    assert r.object("encoding", key + "h") in (b"listpack", b"ziplist")


def binary(r, key, protocol):
    raw = key.encode() + BINARY
    assert r.set(raw, BINARY) and r.get(raw) == BINARY
    assert r.hset(raw + b"h", BINARY, BINARY) == 1 and r.hgetall(raw + b"h") == {BINARY: BINARY}


def big(r, key, protocol):
    assert r.set(key, BIG) and r.get(key) == BIG
    assert r.mget(key, key) == [BIG, BIG]


def pipeline(r, key, protocol):
    with r.pipeline(transaction=False) as pipe:
        for n in range(2000):
            pipe.set(f"{key}{n}", n)
            pipe.get(f"{key}{n}")
        pipe.lpush(key + "0", "wrong")
        answers = pipe.execute(raise_on_error=False)
    assert answers[:-1] == [answer for n in range(2000) for answer in (True, str(n).encode())]
    assert isinstance(answers[-1], redis.ResponseError)


def pool(r, key, protocol):
    def work(n):
        for _ in range(50):
            r.incrby(key, n)
            assert r.get(f"{key}:{n}") in (None, b"%d" % n)
            r.set(f"{key}:{n}", n)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(16)))
    assert r.get(key) == b"6000"


def transaction(r, key, protocol):
    with r.pipeline() as pipe:
        assert pipe.set(key, 1).incr(key).get(key).execute() == [True, 2, b"2"]
        pipe.watch(key)
        value = int(pipe.get(key))
        pipe.multi()
        assert pipe.set(key, value + 1).execute() == [True]
        pipe.watch(key)
        r.set(key, "other")
        pipe.multi()
        pipe.set(key, "mine")
        try:
            pipe.execute()
            raise AssertionError("the watch did not fail")
        except redis.WatchError:
            pass
    assert r.get(key) == b"other"

    def append(pipe):
        pipe.multi()
        pipe.append(key, "!")

    assert r.transaction(append, key) == [6]


def blocking(r, key, protocol):
    got = []
    thread = threading.Thread(target=lambda: got.append(r.blpop([key, key + "2"], timeout=tap.PATIENCE)))
    thread.start()
    wait_for("the client to block", lambda: r.info("clients")["blocked_clients"] > 0)
    r.rpush(key + "2", "a")
    thread.join()
    assert [tuple(pair) for pair in got] == [((key + "2").encode(), b"a")], got
    assert r.blpop([key], timeout=0.01) is None
    r.rpush(key, "b")
    assert r.blmove(key, key + "2", 1) == b"b" and r.lpop(key + "2") == b"b"


def pubsub(r, key, protocol):
    with r.pubsub() as sub:
        sub.subscribe(key)
        sub.psubscribe(key + ":*")
        take = lambda: wait_for("a message", lambda: sub.get_message(timeout=1))
        assert [take()["type"] for _ in range(2)] == ["subscribe", "psubscribe"]
        assert r.publish(key, BINARY) == 1 and r.publish(key + ":1", "x") == 1
        message = take()
        assert (message["type"], message["data"]) == ("message", BINARY)
        message = take()
        assert (message["type"], message["channel"], message["data"]) == ("pmessage", (key + ":1").encode(), b"x")
        sub.ping()
        assert take()["type"] == "pong"
        sub.unsubscribe()
        sub.punsubscribe()
        assert [take()["type"] for _ in range(2)] == ["unsubscribe", "punsubscribe"]
        assert r.pubsub_numsub(key)[0][1] == 0


def sharded(r, key, protocol):
    with r.pubsub() as sub:
        sub.ssubscribe(key)
        take = lambda: wait_for("a message", lambda: sub.get_message(timeout=1))
        assert take()["type"] == "ssubscribe"
        assert r.execute_command("SPUBLISH", key, "x") == 1
        message = take()
        assert (message["type"], message["data"]) == ("smessage", b"x")


def script(r, key, protocol):
    assert r.eval("return redis.call('SET', KEYS[1], ARGV[1])", 1, key, "v") == b"OK"
    get = r.register_script(f"return {{redis.call('GET', KEYS[1]), ARGV[1], '{key}'}}")
    assert get(keys=[key], args=["x"])[:2] == [b"v", b"x"]
    assert get(keys=[key], args=["y"])[:2] == [b"v", b"y"]
    assert r.script_exists(get.sha) == [True]
    try:
        r.evalsha("0" * 40, 0)
        raise AssertionError("no error")
    except redis.exceptions.NoScriptError:
        pass


def select(r, key, protocol):
    with connect(protocol, db=3) as other:
        assert other.set(key, "three") and r.get(key) is None
        assert other.get(key) == b"three" and other.move(key, 0) and r.get(key) == b"three"


def acl(r, key, protocol):
    with connect(protocol, username="app", password="secret") as app:
        assert app.acl_whoami() in ("app", b"app")
        assert app.set(key, "v") and app.get(key) == b"v"
        assert app.pipeline().incr(key + "n").incr(key + "n").execute() == [1, 2]
    with connect(protocol, username="reader", password="secret") as reader:
        assert reader.get(key) == b"v"
        try:
            reader.set(key, "x")
            raise AssertionError("no error")
        except redis.exceptions.NoPermissionError:
            pass
    try:
        connect(protocol, username="app", password="wrong").ping()
        raise AssertionError("no error")
    except redis.AuthenticationError:
        pass


def tracking(r, key, protocol):
    if protocol == 2:
        return "the client caches with RESP3 only"
    version = r.info("server")["redis_version"]
    if tuple(map(int, version.split(".")[:2])) < (7, 4):
        return f"the client caches with Redis 7.4 or later, and this says {version}"
    with connect(protocol, cache_config=CacheConfig()) as near:
        r.set(key, "1")
        assert near.get(key) == b"1"
        r.set(key, "2")
        wait_for("the invalidation", lambda: near.get(key) == b"2")
        assert near.get_cache() is not None


def stale(r, key, protocol):
    if not tap.USER_ID:
        return "nothing is guarded here"
    user = tap.USER_ID + protocol
    name, profile = f"user:{user}", f"user:{user}:profile"
    with connect(protocol, single_connection_client=True) as one:
        wait_for("a fill to be let in", lambda: one.get(profile) or not one.set(profile, "old"))
        assert one.get(name) is None
        r.publish("commit", user)
        wait_for("the deletion", lambda: one.get(profile) is None)
        assert one.set(name, "old") is True
        assert one.get(name) is None, "a stale value came back"
        wait_for("a new fill to be let in", lambda: one.get(name) or not one.set(name, "new"))
        assert one.get(name) == b"new"


CASES = [
    strings, types, binary, big, pipeline, pool, transaction, blocking, pubsub, sharded, script, select, acl,
    tracking, stale,
]

for protocol in tap.PROTOCOLS:
    with connect(protocol) as r:
        for case in CASES:
            try:
                skipped = case(r, f"redis-py:sync:{protocol}:{case.__name__}:", protocol)
            except Exception as error:
                tap.report(protocol, case.__name__, error)
            else:
                if skipped:
                    tap.skip(protocol, case.__name__, skipped)
                else:
                    tap.report(protocol, case.__name__, None)
sys.exit(tap.failed > 0)
