//! Every command that puts data into a guarded key is judged; every read of one can miss; all others pass.

mod wire;

use cachefence::command::{Command, CommandTable};
use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::{Redis, RedisOptions, wait_until};
use cachefence::resp::{RequestScanner, Scanned, put_request};
use redis_protocol::resp2::types::BytesFrame;
use wire::{Outcome, PATIENCE, Stand, Wire, settled};

/// Fills, and what they answer where `reply` is `ok` and `nil`; `K` is the key. An empty text is an error that
/// begins with the word for why.
const FILLS: &[(&str, &str, &str)] = &[
    ("SET K v", "+OK", "$-1"),
    ("SET K v GET", "$-1", "$-1"),
    ("SETEX K 10 v", "+OK", "$-1"),
    ("PSETEX K 10000 v", "+OK", "$-1"),
    ("SETNX K v", ":1", ":0"),
    ("GETSET K v", "$-1", "$-1"),
    ("MSET K v", "+OK", "$-1"),
    ("MSETNX K v", ":1", ":0"),
    ("APPEND K abc", ":3", ":0"),
    ("SETRANGE K 2 abc", ":5", ":0"),
    ("SETBIT K 7 1", "", "$-1"),
    ("BITFIELD K SET u8 0 1", "", "$-1"),
    ("BITFIELD K GET u8 0 INCRBY u8 0 1", "", "$-1"),
    ("INCR K", "", "$-1"),
    ("INCRBY K 2", "", "$-1"),
    ("INCRBYFLOAT K 2", "", "$-1"),
    ("DECR K", "", "$-1"),
    ("DECRBY K 2", "", "$-1"),
    ("HSET K a 1 b 2", ":2", ":0"),
    ("HMSET K a 1 b 2", "+OK", "$-1"),
    ("HSETNX K a 1", ":1", ":0"),
    ("HINCRBY K a 1", "", "$-1"),
    ("HINCRBYFLOAT K a 1", "", "$-1"),
    ("LPUSH K a b", ":2", ":0"),
    ("RPUSH K a b c", ":3", ":0"),
    ("LPUSHX K a", ":0", ":0"),
    ("RPUSHX K a", ":0", ":0"),
    ("LINSERT K BEFORE a b", ":0", ":0"),
    ("LSET K 0 a", "+OK", "$-1"),
    ("SADD K a b", ":2", ":0"),
    ("ZADD K 1 a 2 b", ":2", ":0"),
    ("ZADD K NX CH 1 a", ":1", ":0"),
    ("ZADD K INCR 1 a", "$-1", "$-1"),
    ("ZINCRBY K 1 a", "", "$-1"),
    ("GEOADD K 1 1 a 2 2 b", ":2", ":0"),
    ("PFADD K a b", ":1", ":0"),
    ("PFMERGE K src:hll", "+OK", "$-1"),
    ("XADD K * a 1", "$-1", "$-1"),
    ("RESTORE K 0 payload", "+OK", "$-1"),
    ("RENAME src:string K", "+OK", "$-1"),
    ("RENAMENX src:string K", ":0", ":0"),
    ("COPY src:string K", ":0", ":0"),
    ("COPY src:string K DB 0 REPLACE", ":0", ":0"),
    ("SMOVE src:set K a", ":0", ":0"),
    ("LMOVE src:list K LEFT RIGHT", "$-1", "$-1"),
    ("RPOPLPUSH src:list K", "$-1", "$-1"),
    ("BITOP NOT K src:string", ":0", ":0"),
    ("SORT src:list ALPHA STORE K", ":0", ":0"),
    ("SDIFFSTORE K src:set", ":0", ":0"),
    ("SINTERSTORE K src:set", ":0", ":0"),
    ("SUNIONSTORE K src:set", ":0", ":0"),
    ("ZDIFFSTORE K 1 src:zset", ":0", ":0"),
    ("ZINTERSTORE K 1 src:zset", ":0", ":0"),
    ("ZUNIONSTORE K 1 src:zset", ":0", ":0"),
    ("ZRANGESTORE K src:zset 0 -1", ":0", ":0"),
    ("GEORADIUS src:geo 1 1 9 km STORE K", ":0", ":0"),
    ("GEORADIUSBYMEMBER src:geo a 9 km STOREDIST K", ":0", ":0"),
    ("GEOSEARCHSTORE K src:geo FROMMEMBER a BYRADIUS 9 km", ":0", ":0"),
    ("EVAL redis.call('SET',KEYS[1],1) 1 K", "", "$-1"),
    ("EVALSHA 0000000000000000000000000000000000000000 1 K", "", "$-1"),
    ("FCALL fill 1 K", "", "$-1"),
];

/// Reads of a key that is not there. All of them miss.
const READS: &[&str] = &[
    "GET K",
    "GETDEL K",
    "GETEX K",
    "GETEX K EX 10",
    "GETRANGE K 0 1",
    "SUBSTR K 0 1",
    "STRLEN K",
    "MGET K",
    "MGET other K",
    "LCS K other",
    "GETBIT K 0",
    "BITCOUNT K",
    "BITPOS K 1",
    "BITFIELD K GET u8 0",
    "BITFIELD_RO K GET u8 0",
    "EXISTS K",
    "TOUCH K",
    "TYPE K",
    "TTL K",
    "PTTL K",
    "EXPIRETIME K",
    "PEXPIRETIME K",
    "DUMP K",
    "OBJECT ENCODING K",
    "MEMORY USAGE K",
    "HGET K a",
    "HMGET K a b",
    "HGETALL K",
    "HKEYS K",
    "HVALS K",
    "HLEN K",
    "HEXISTS K a",
    "HSTRLEN K a",
    "HSCAN K 0",
    "HRANDFIELD K",
    "HRANDFIELD K 2",
    "LRANGE K 0 -1",
    "LLEN K",
    "LINDEX K 0",
    "LPOS K a",
    "LPOS K a COUNT 1",
    "SMEMBERS K",
    "SCARD K",
    "SISMEMBER K a",
    "SMISMEMBER K a b",
    "SRANDMEMBER K",
    "SSCAN K 0",
    "SINTER K other",
    "SINTERCARD 2 other K",
    "SUNION other K",
    "SDIFF K",
    "SORT K",
    "SORT_RO K",
    "ZRANGE K 0 -1",
    "ZRANGEBYSCORE K 0 1",
    "ZREVRANGE K 0 -1",
    "ZSCORE K a",
    "ZMSCORE K a b",
    "ZRANK K a",
    "ZCARD K",
    "ZCOUNT K 0 1",
    "ZSCAN K 0",
    "ZRANDMEMBER K",
    "ZUNION 1 K",
    "ZINTERCARD 1 K",
    "GEOPOS K a",
    "GEOHASH K a",
    "GEODIST K a b",
    "GEORADIUS K 1 1 1 km",
    "GEOSEARCH K FROMLONLAT 1 1 BYRADIUS 1 km",
    "PFCOUNT K",
    "XLEN K",
    "XRANGE K - +",
    "EVAL_RO return(redis.call('GET',KEYS[1])) 1 K",
];

/// Commands that only take away, shorten a life, or keep account. `K` is there, and a list, hash, set, sorted set,
/// stream or string, as the first letter says.
const OTHERS: &[&str] = &[
    "s DEL K",
    "s UNLINK K other",
    "s EXPIRE K 100",
    "s PEXPIRE K 100000",
    "s EXPIREAT K 99999999999",
    "s PERSIST K",
    "s RENAME K elsewhere",
    "s MOVE K 3",
    "l LPOP K",
    "l RPOP K 2",
    "l LMPOP 1 K LEFT",
    "l BLPOP K 1",
    "l LTRIM K 0 0",
    "l LREM K 0 a",
    "l LMOVE K elsewhere:l LEFT LEFT",
    "h HDEL K a",
    "S SPOP K 9",
    "S SREM K a",
    "S SMOVE K elsewhere:s a",
    "z ZREM K a",
    "z ZPOPMIN K",
    "z ZREMRANGEBYRANK K 0 -1",
    "x XDEL K 1-1",
    "x XTRIM K MAXLEN 0",
    "x XGROUP CREATE K g $",
    "x XREAD COUNT 1 STREAMS K 0",
];

/// Redis refuses them, and has the words for it.
const WRONG: &[&str] = &[
    "SET K",
    "SET K v EX notanumber",
    "SET K v EX",
    "SET K v PX 0",
    "SETEX K notanumber v",
    "SETEX K 10",
    "SETNX K",
    "GETSET K",
    "MSET K",
    "MSET K v other",
    "MSETNX K v other",
    "HSET K field",
    "HSET K a 1 b",
    "HMSET K a 1 b",
    "RPUSH K",
    "SADD K",
    "INCR K 1",
    "ZADD K 1",
    "RENAME K",
    "COPY src:string",
    "COPY src:string K DB x",
    "COPY src:string K NOSUCH",
    "MOVE K",
    "MOVE K x",
    "EVAL return(1) 5 K",
    "EVAL return(1) -1 K",
    "EVAL return(1) x K",
    "EVAL return(1)",
    "SORT src:list STORE",
    "LMOVE src:list K LEFT",
    "GET",
    "GET K K",
    "HGET K",
    "OBJECT ENCODING",
    "XGROUP CREATE K",
    "SINTERCARD 5 K",
];

/// A line with the key in its place.
fn of_key(line: &str, key: &str) -> String {
    line.split(' ').map(|word| if word == "K" { key } else { word }).collect::<Vec<_>>().join(" ")
}

/// Sources for fills that take from other keys.
async fn sources(redis: &mut Client) -> Outcome {
    for line in [
        "SET src:string v",
        "RPUSH src:list a b c",
        "SADD src:set a b",
        "ZADD src:zset 1 a",
        "GEOADD src:geo 1 1 a",
        "PFADD src:hll a",
    ] {
        assert!(!matches!(command(redis, line).await?, Reply::Error(_)), "{line}");
    }
    Ok(())
}

async fn command(client: &mut Client, line: &str) -> Result<Reply, Box<dyn std::error::Error>> {
    Ok(client.cmd(&line.split(' ').collect::<Vec<_>>()).await?)
}

/// A key of each guard was just written, and nobody has missed it since: whatever wants to fill it is stale.
#[tokio::test]
async fn each_is_refused_in_the_shape_of_its_command() -> Outcome {
    let stand = Stand::start(&[]).await?;
    let keys = [("users", "user:7"), ("items", "item:7"), ("orders", "order:7")];
    for (table, key) in keys {
        stand.write(table, key, 7).await?;
    }
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    let mut redis = stand.redis.client().await?;
    sources(&mut redis).await?;
    let size = redis.cmd(&["DBSIZE"]).await?;
    for (fill, ok, nil) in FILLS {
        for ((_, key), expected) in keys.into_iter().zip([*ok, *nil, ""]) {
            let line = of_key(fill, key);
            let expected = if expected.is_empty() { "-STALE ".to_owned() } else { format!("{expected}\r\n") };
            let answer = wire.cmd(&line).await?;
            assert!(answer.starts_with(&expected), "{line}: {answer:?}");
            assert_eq!(redis.cmd(&["EXISTS", key]).await?, Reply::Int(0), "{line}");
            assert_eq!(redis.cmd(&["DBSIZE"]).await?, size, "{line}");
            // In a transaction as well, where waiting commands do not wait.
            assert_eq!(wire.cmd("MULTI").await?, "+OK\r\n");
            assert_eq!(wire.cmd(&line).await?, "+QUEUED\r\n", "{line}");
            assert_eq!(wire.cmd("EXEC").await?, "*-1\r\n", "{line}");
            assert_eq!(redis.cmd(&["DBSIZE"]).await?, size, "{line}");
        }
    }
    for line in ["BLMOVE src:list user:7 LEFT LEFT 0", "BRPOPLPUSH src:list item:7 0"] {
        assert!(wire.cmd(line).await?.starts_with("-FENCE "), "{line}");
        assert_eq!(wire.cmd("MULTI").await?, "+OK\r\n");
        assert_eq!(wire.cmd(line).await?, "+QUEUED\r\n", "{line}");
        assert_eq!(wire.cmd("EXEC").await?, "*-1\r\n", "{line}");
    }
    assert_eq!(redis.cmd(&["DBSIZE"]).await?, size);
    Ok(())
}

/// With evidence every one of them is let in, if it is Redis that is asked for nothing impossible.
#[tokio::test]
async fn each_is_let_in_with_evidence() -> Outcome {
    let stand = Stand::start(&[]).await?;
    stand.write("orders", "order:7", 7).await?;
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    let mut redis = stand.redis.client().await?;
    let sql = stand.postgres.client().await?;
    let asof: String = sql.query_one("SELECT pg_current_snapshot()::text", &[]).await?.try_get(0)?;
    for (fill, ..) in FILLS {
        let line = of_key(fill, "order:7");
        let mut answers = Vec::new();
        for (address, evidence) in [(stand.redis.address(), ""), (stand.proxy.address().to_owned(), "ASOF")] {
            redis.cmd(&["FLUSHALL"]).await?;
            sources(&mut redis).await?;
            let mut client = Wire::connect(&address).await?;
            let line = if evidence.is_empty() { line.clone() } else { format!("ASOF {asof} {line}") };
            answers.push(client.cmd(&line).await?);
        }
        if !fill.starts_with("XADD") {
            assert_eq!(answers[0], answers[1], "{line}");
        }
    }
    // And capped where there is none, and nothing was written.
    redis.cmd(&["FLUSHALL"]).await?;
    for (line, key) in
        [("RPUSH user:50 a", "user:50"), ("EVAL redis.call('INCR',KEYS[1]) 1 user:51", "user:51")]
    {
        assert!(!wire.cmd(line).await?.starts_with('-'), "{line}");
        let Reply::Int(ttl) = redis.cmd(&["PTTL", key]).await? else { return Err("no TTL".into()) };
        assert!(ttl > 0 && ttl <= 60_000, "{line}: {ttl}");
    }
    Ok(())
}

/// What is moved or copied from another db is judged where it arrives.
#[tokio::test]
async fn copies_into_the_guarded_db_are_judged() -> Outcome {
    let stand = Stand::start(&[]).await?;
    stand.write("orders", "order:7", 7).await?;
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    assert_eq!(wire.cmd("SELECT 3").await?, "+OK\r\n");
    assert_eq!(wire.cmd("MSET order:7 old order:8 old a old").await?, "+OK\r\n", "not guarded here");
    for line in ["COPY order:7 order:7 DB 0", "MOVE order:7 0", "COPY a order:7 REPLACE DB 0"] {
        assert!(wire.cmd(line).await?.starts_with("-STALE "), "{line}");
    }
    // Not written, but it could not be given a TTL from here.
    for line in ["COPY order:8 order:8 DB 0", "MOVE order:8 0"] {
        assert!(wire.cmd(line).await?.starts_with("-UNPROVEN "), "{line}");
    }
    assert_eq!(wire.cmd("MOVE a 0").await?, ":1\r\n");
    assert_eq!(wire.cmd("COPY order:7 order:9 DB 4").await?, ":1\r\n");
    assert_eq!(wire.cmd("SELECT 0").await?, "+OK\r\n");
    assert_eq!(wire.cmd("EXISTS order:7 order:8 a").await?, ":1\r\n");
    assert_eq!(wire.cmd("MOVE a 3").await?, ":1\r\n");
    Ok(())
}

/// The lease that a miss grants is what lets in the SET that follows: without it the key is stale.
#[tokio::test]
async fn each_read_of_a_missing_key_grants_a_lease() -> Outcome {
    let stand = Stand::start(&[]).await?;
    stand.write("orders", "order:7", 7).await?;
    settled(&stand.postgres, &stand.proxy).await?;
    let mut redis = stand.redis.client().await?;
    for read in READS {
        let line = of_key(read, "order:7");
        let mut wire = Wire::connect(stand.proxy.address()).await?;
        assert!(wire.cmd("SET order:7 v").await?.starts_with("-STALE "), "before {line}");
        let answer = wire.cmd(&line).await?;
        assert_eq!(answer, Wire::connect(&stand.redis.address()).await?.cmd(&line).await?, "{line}");
        assert_eq!(wire.cmd("SET order:7 v").await?, "+OK\r\n", "{line}: {answer:?}");
        redis.cmd(&["DEL", "order:7"]).await?;
    }
    // A hit grants none.
    for (fill, read) in [
        (&["SET", "order:7", "v"][..], "GET order:7"),
        (&["SET", "order:7", "v"], "TTL order:7"),
        (&["RPUSH", "order:7", "a"], "LPOS order:7 a"),
        (&["ZADD", "order:7", "1", "a"], "ZRANK order:7 a"),
        (&["SADD", "order:7", "a"], "SMISMEMBER order:7 a b"),
        (&["HSET", "order:7", "a", "1"], "HSCAN order:7 0"),
    ] {
        redis.cmd(&["DEL", "order:7"]).await?;
        redis.cmd(fill).await?;
        let mut wire = Wire::connect(stand.proxy.address()).await?;
        let answer = wire.cmd(read).await?;
        assert!(wire.cmd("SET order:7 v").await?.starts_with("-STALE "), "{read}: {answer:?}");
    }
    Ok(())
}

/// No miss says how old what Redis itself holds is; and parts of a value share the miss before them.
#[tokio::test]
async fn a_lease_speaks_for_what_was_read_from_the_database() -> Outcome {
    let stand = Stand::start(&[]).await?;
    stand.write("orders", "order:7", 7).await?;
    settled(&stand.postgres, &stand.proxy).await?;
    let mut redis = stand.redis.client().await?;
    sources(&mut redis).await?;
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    for derived in
        ["COPY src:string order:7", "SUNIONSTORE order:7 src:set", "LMOVE src:list order:7 LEFT LEFT"]
    {
        assert_eq!(wire.cmd("GET order:7").await?, "$-1\r\n");
        assert!(wire.cmd(derived).await?.starts_with("-STALE "), "{derived}");
    }
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    assert_eq!(wire.cmd("LRANGE order:7 0 -1").await?, "*0\r\n");
    assert_eq!(wire.cmd("RPUSH order:7 a").await?, ":1\r\n");
    assert_eq!(wire.cmd("RPUSH order:7 b").await?, ":2\r\n");
    // A part that is refused takes those before it along.
    assert!(wire.cmd("ASOF 0/1 RPUSH order:7 c").await?.starts_with("-STALE "));
    assert_eq!(wire.cmd("EXISTS order:7").await?, ":0\r\n");
    // From within a transaction as well.
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    assert_eq!(wire.cmd("HGETALL order:7").await?, "*0\r\n");
    assert_eq!(wire.cmd("HSET order:7 a 1").await?, ":1\r\n");
    for line in ["MULTI", "ASOF 0/1 HSET order:7 b 1"] {
        assert!(wire.cmd(line).await?.starts_with('+'));
    }
    assert_eq!(wire.cmd("EXEC").await?, "*-1\r\n");
    assert_eq!(wire.cmd("EXISTS order:7").await?, ":0\r\n");
    Ok(())
}

/// What takes away, or keeps account, is none of the fence's business.
#[tokio::test]
async fn all_others_pass() -> Outcome {
    let stand = Stand::start(&[]).await?;
    stand.write("orders", "order:7", 7).await?;
    let mut redis = stand.redis.client().await?;
    for line in OTHERS {
        let (kind, line) = line.split_once(' ').ok_or("a kind and a command")?;
        let line = of_key(line, "order:7");
        let mut answers = Vec::new();
        for address in [stand.redis.address(), stand.proxy.address().to_owned()] {
            redis.cmd(&["FLUSHALL"]).await?;
            let fill: &[&str] = match kind {
                "s" => &["SET", "order:7", "v"],
                "l" => &["RPUSH", "order:7", "a", "b"],
                "h" => &["HSET", "order:7", "a", "1"],
                "S" => &["SADD", "order:7", "a"],
                "z" => &["ZADD", "order:7", "1", "a"],
                _ => &["XADD", "order:7", "1-1", "a", "1"],
            };
            redis.cmd(fill).await?;
            let answer = Wire::connect(&address).await?.cmd(&line).await?;
            assert!(!answer.starts_with('-'), "{line}: {answer:?}");
            answers.push((answer, redis.cmd(&["DUMP", "order:7"]).await?));
        }
        assert_eq!(answers[0], answers[1], "{line}");
    }
    assert_eq!(stand.proxy.metric("cachefence_fills_total").await?, 0.0);
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_is_told_in_the_words_of_redis() -> Outcome {
    let stand = Stand::start(&[]).await?;
    stand.write("orders", "order:7", 7).await?;
    sources(&mut stand.redis.client().await?).await?;
    let mut direct = Wire::connect(&stand.redis.address()).await?;
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    for line in WRONG {
        let line = of_key(line, "order:7");
        let answer = direct.cmd(&line).await?;
        assert!(answer.starts_with('-'), "{line}: {answer:?}");
        assert_eq!(wire.cmd(&line).await?, answer);
    }
    // With evidence too.
    for line in ["SET K", "HSET K a", "HSET K a 1 b", "RPUSH K", "SET K v EX x", "COPY src:string K DB x"] {
        let line = of_key(line, "order:7");
        assert_eq!(wire.cmd(&format!("ASOF 0/1 {line}")).await?, direct.cmd(&line).await?, "{line}");
    }
    Ok(())
}

/// While the feed is lost, a guard may have its keys missed: each read says so in its own shape.
#[tokio::test]
async fn a_read_that_is_not_asked_answers_as_one_that_misses() -> Outcome {
    let lost = ("keys = [\"order:<id>\"]", "keys = [\"order:<id>\"]\nwhen_feed_lost = { reads = \"miss\" }");
    let stand = Stand::start(&[lost]).await?;
    let mut direct = Wire::connect(&stand.redis.address()).await?;
    let expected: Vec<(String, String)> = {
        let mut expected = Vec::new();
        for read in READS {
            let line = of_key(read, "order:7");
            expected.push((line.clone(), direct.cmd(&line).await?));
        }
        expected
    };
    let Stand { proxy, redis, postgres } = stand;
    drop(postgres);
    let mut redis = redis.client().await?;
    redis.cmd(&["SET", "order:7", "old"]).await?;
    let mut wire = Wire::connect(proxy.address()).await?;
    wait_until("the feed to be lost", PATIENCE, async || {
        wire.cmd("GET order:7").await.is_ok_and(|answer| answer == "$-1\r\n")
    })
    .await?;
    for (line, expected) in expected {
        // A value of a kind that most of them would complain about.
        redis.cmd(&["DEL", "order:7"]).await?;
        redis.cmd(&["XADD", "order:7", "1-1", "a", "1"]).await?;
        let answer = wire.cmd(&line).await?;
        let known = !(line.starts_with("BITFIELD") || line.starts_with("EVAL_RO"));
        let changes = line.starts_with("GETDEL") || line.starts_with("GETEX");
        if changes {
            assert!(answer.starts_with("-WRONGTYPE"), "{line}: {answer:?}");
        } else {
            assert_eq!(answer, if known { expected } else { "$-1\r\n".to_owned() }, "{line}");
        }
    }
    redis.cmd(&["DEL", "order:7"]).await?;
    redis.cmd(&["SET", "order:7", "old"]).await?;
    assert_eq!(wire.cmd("GETDEL order:7").await?, "$-1\r\n");
    assert_eq!(redis.cmd(&["EXISTS", "order:7"]).await?, Reply::Int(0), "what it does is done");
    Ok(())
}

/// Commands of this server that write to a key and put nothing into it.
const NO_FILLS: &[&str] = &[
    "BLMPOP",
    "BLPOP",
    "BRPOP",
    "BZMPOP",
    "BZPOPMAX",
    "BZPOPMIN",
    "DEL",
    "EXPIRE",
    "EXPIREAT",
    "GETDEL",
    "GETEX",
    "HDEL",
    "LMPOP",
    "LPOP",
    "LREM",
    "LTRIM",
    "MIGRATE",
    "PERSIST",
    "PEXPIRE",
    "PEXPIREAT",
    "PFCOUNT",
    "PFDEBUG",
    "RPOP",
    "SPOP",
    "SREM",
    "UNLINK",
    "XACK",
    "XAUTOCLAIM",
    "XCLAIM",
    "XDEL",
    "XGROUP|CREATE",
    "XGROUP|CREATECONSUMER",
    "XGROUP|DELCONSUMER",
    "XGROUP|DESTROY",
    "XGROUP|SETID",
    "XREADGROUP",
    "XSETID",
    "XTRIM",
    "ZMPOP",
    "ZPOPMAX",
    "ZPOPMIN",
    "ZREM",
    "ZREMRANGEBYLEX",
    "ZREMRANGEBYRANK",
    "ZREMRANGEBYSCORE",
    // Of later versions.
    "DELEX",
    "DELIFEQ",
    "HEXPIRE",
    "HEXPIREAT",
    "HGETDEL",
    "HGETEX",
    "HPERSIST",
    "HPEXPIRE",
    "HPEXPIREAT",
    "VREM",
    "XACKDEL",
    "XCFGSET",
    "XDELEX",
];

/// A version of Redis that has a new command which writes to a key fails here until somebody has said what it is.
#[tokio::test]
async fn every_command_that_writes_to_a_key_is_known_for_what_it_does() -> Outcome {
    let redis = Redis::start(RedisOptions::default()).await?;
    let mut client = redis.client().await?;
    let reply = client.cmd(&["COMMAND"]).await?;
    let table = CommandTable::of_server(&frame(&reply));
    let mut seen = 0;
    for entry in list(&reply) {
        let parts = list(entry);
        for part in std::iter::once(entry).chain(list(&parts[9])) {
            let parts = list(part);
            let name = parts[0].text().unwrap_or_default().to_uppercase();
            let Reply::Int(arity) = parts[1] else { return Err("no arity".into()) };
            let has_keys = !list(&parts[8]).is_empty() && !format!("{:?}", parts[8]).contains("not_key");
            if !format!("{:?}", parts[2]).contains("\"write\"") || !has_keys {
                continue;
            }
            seen += 1;
            let fills = ["", "STORE k", "SET k"].iter().any(|more| {
                let mut words: Vec<&str> = name.split('|').collect();
                words.resize(arity.unsigned_abs() as usize, "1");
                words.extend(more.split(' ').filter(|word| !word.is_empty()));
                matches!(of(&table, &words).0, Command::Fill(_))
            });
            assert_ne!(fills, NO_FILLS.contains(&&*name), "{name}: a fill, or not?");
        }
    }
    assert!(seen > 90, "{seen}");
    Ok(())
}

/// The keys that are known by hand are those that Redis itself finds.
#[tokio::test]
async fn the_keys_that_are_filled_are_where_redis_finds_them() -> Outcome {
    let redis = Redis::start(RedisOptions::default()).await?;
    let mut client = redis.client().await?;
    let table = CommandTable::of_server(&frame(&client.cmd(&["COMMAND"]).await?));
    for (fill, ..) in FILLS {
        let words: Vec<&str> = fill.split(' ').collect();
        let (command, places) = of(&table, &words);
        assert!(matches!(command, Command::Fill(_)), "{fill}");
        let mut asked = vec!["COMMAND", "GETKEYSANDFLAGS"];
        asked.extend(&words);
        let reply = client.cmd(&asked).await?;
        let filled: Vec<String> = list(&reply)
            .iter()
            .filter(|key| {
                let flags = format!("{:?}", list(key)[1]);
                let changes =
                    flags.contains("\"RW\"") && (flags.contains("insert") || flags.contains("update"));
                flags.contains("\"OW\"") || changes
            })
            .filter_map(|key| list(key)[0].text())
            .collect();
        let ours: Vec<&str> = places.into_iter().map(|place| words[place]).collect();
        assert_eq!(ours, filled, "{fill}: {reply:?}");
    }
    Ok(())
}

/// What a request is, and where the keys are that it fills.
fn of(table: &CommandTable, words: &[&str]) -> (Command, Vec<usize>) {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    let mut request = Vec::new();
    put_request(&mut request, &words);
    let mut scanner = RequestScanner::default();
    assert_eq!(scanner.scan(&request).ok(), Some(Scanned::Request(request.len())));
    let arguments = scanner.arguments(&request);
    let command = table.of(arguments);
    let places =
        if let Command::Fill(form) = command { form.keys.places(arguments).collect() } else { vec![] };
    (command, places)
}

fn list(reply: &Reply) -> &[Reply] {
    if let Reply::Array(elements) = reply { elements } else { &[] }
}

fn frame(reply: &Reply) -> BytesFrame {
    match reply {
        Reply::Array(elements) => BytesFrame::Array(elements.iter().map(frame).collect()),
        Reply::Int(n) => BytesFrame::Integer(*n),
        other => BytesFrame::BulkString(other.text().unwrap_or_default().into()),
    }
}
