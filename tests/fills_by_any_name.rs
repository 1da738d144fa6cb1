//! Every command that puts data into a guarded key is judged; every read of one can miss; all others pass.

mod commands;
mod wire;

use std::time::Duration;

use cachefence::demo::client::{Client, Reply, encode};
use cachefence::demo::servers::{RedisOptions, wait_until};
use commands::{FILLS, OTHERS, READS, WRONG, is_there, of_key};
use tokio::time::timeout;
use wire::{Outcome, PATIENCE, Stand, Wire, settled};

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
        if !is_there(&mut redis, fill).await? {
            continue;
        }
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
    // A snapshot of before the first poll would be no evidence.
    settled(&stand.postgres, &stand.proxy).await?;
    let sql = stand.postgres.client().await?;
    let asof: String = sql.query_one("SELECT pg_current_snapshot()::text", &[]).await?.try_get(0)?;
    for (fill, ..) in FILLS {
        if !is_there(&mut redis, fill).await? {
            continue;
        }
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
        if !is_there(&mut redis, read).await? {
            continue;
        }
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

/// A client that reads the refusal may fill the key again, by a connection of which Redis hears first: that fill must not
/// be lost to the deletion.
#[tokio::test]
async fn a_refusal_is_told_when_what_it_deletes_is_gone() -> Outcome {
    let stand = Stand::start(&[]).await?;
    stand.write("orders", "order:7", 7).await?;
    settled(&stand.postgres, &stand.proxy).await?;
    let mut redis = stand.redis.client().await?;
    for refused in [&["ASOF 0/1 RPUSH order:7 c"][..], &["MULTI", "ASOF 0/1 RPUSH order:7 c", "EXEC"]] {
        redis.cmd(&["DEL", "order:7"]).await?;
        redis.cmd(&["RPUSH", "order:7", "a"]).await?;
        let mut wire = Wire::connect(stand.proxy.address()).await?;
        let Some((last, first)) = refused.split_last() else { continue };
        for line in first {
            assert!(wire.cmd(line).await?.starts_with('+'), "{line}");
        }
        redis.cmd(&["CLIENT", "PAUSE", "60000", "WRITE"]).await?;
        let words: Vec<&str> = last.split(' ').collect();
        wire.send(&encode(&words)).await?;
        wait_until("a deletion to reach Redis", PATIENCE, async || {
            let list = redis.cmd(&["CLIENT", "LIST"]).await.ok().and_then(|list| list.text());
            list.unwrap_or_default()
                .lines()
                .any(|line| line.contains("flags=b") && line.contains("cmd=unlink"))
        })
        .await?;
        // Noise can only hide that it comes too soon.
        let early = timeout(Duration::from_millis(100), wire.reply()).await;
        assert!(early.is_err(), "{last}: {early:?}");
        redis.cmd(&["CLIENT", "UNPAUSE"]).await?;
        let told = String::from_utf8(wire.reply().await?)?;
        assert!(told.starts_with("-STALE ") || told == "*-1\r\n", "{last}: {told}");
        assert_eq!(redis.cmd(&["EXISTS", "order:7"]).await?, Reply::Int(0), "{last}");
    }
    Ok(())
}

/// What takes away, or keeps account, is none of the fence's business.
#[tokio::test]
async fn all_others_pass() -> Outcome {
    let stand = Stand::start(&[]).await?;
    stand.write("orders", "order:7", 7).await?;
    let mut redis = stand.redis.client().await?;
    for line in OTHERS {
        if !is_there(&mut redis, line).await? {
            continue;
        }
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
                "v" => &["VADD", "order:7", "VALUES", "2", "1", "1", "a"],
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
        let mut redis = stand.redis.client().await?;
        for read in READS {
            if !is_there(&mut redis, read).await? {
                continue;
            }
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
        let is = |names: &[&str]| names.iter().any(|name| line.starts_with(name));
        let known = !is(&["BITFIELD", "EVAL_RO", "V"]);
        let pops = ["LPOP", "RPOP", "LMPOP", "SPOP", "ZPOPMIN", "ZPOPMAX", "ZMPOP"];
        let changes = is(&["GETDEL", "GETEX", "HGETDEL", "HGETEX"]) || is(&pops);
        if changes {
            assert!(answer.starts_with("-WRONGTYPE"), "{line}: {answer:?}");
        } else {
            assert_eq!(answer, if known { expected } else { "$-1\r\n".to_owned() }, "{line}");
        }
    }
    redis.cmd(&["DEL", "order:7"]).await?;
    redis.cmd(&["RPUSH", "order:7", "old"]).await?;
    assert_eq!(wire.cmd("LPOP order:7").await?, "$-1\r\n");
    assert_eq!(redis.cmd(&["EXISTS", "order:7"]).await?, Reply::Int(0), "what it does is done");
    redis.cmd(&["SET", "order:7", "old"]).await?;
    assert_eq!(wire.cmd("GETDEL order:7").await?, "$-1\r\n");
    assert_eq!(redis.cmd(&["EXISTS", "order:7"]).await?, Reply::Int(0), "what it does is done");
    Ok(())
}

/// A name that the operator has given a command (rename-command), of which Redis's own table tells the old one only.
#[tokio::test]
async fn a_command_of_another_name_is_judged() -> Outcome {
    let options = RedisOptions::default().args(&["--rename-command", "SETEX", "KEEP"]);
    let stand = Stand::with_redis(options, &[]).await?;
    stand.write("orders", "order:7", 7).await?;
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    assert!(wire.cmd("KEEP order:7 100 old").await?.starts_with("-STALE "));
    for (line, said) in [("MULTI", "+OK\r\n"), ("KEEP order:7 100 old", "+QUEUED\r\n"), ("EXEC", "*-1\r\n")] {
        assert_eq!(wire.cmd(line).await?, said);
    }
    let mut redis = stand.redis.client().await?;
    assert_eq!(redis.cmd(&["EXISTS", "order:7"]).await?, Reply::Int(0));
    // Not written, but nothing speaks for it; and a key without a guard is nobody's business.
    assert_eq!(wire.cmd("KEEP order:8 100 v").await?, "+OK\r\n");
    assert!(matches!(redis.cmd(&["PTTL", "order:8"]).await?, Reply::Int(1..=60_000)));
    assert_eq!(wire.cmd("KEEP other 100 v").await?, "+OK\r\n");
    assert!(matches!(redis.cmd(&["PTTL", "other"]).await?, Reply::Int(60_001..)));
    Ok(())
}

/// A command that Redis refuses changes nothing: what follows it is judged as before.
#[tokio::test]
async fn what_follows_a_refused_change_of_state_is_judged() -> Outcome {
    let pinned = ("[redis]\n", "[redis]\nupstream = \"pinned\"\n");
    for stand in [Stand::start(&[]).await?, Stand::start(&[pinned]).await?] {
        stand.write("orders", "order:7", 7).await?;
        let mut redis = stand.redis.client().await?;
        redis.cmd(&["ACL", "SETUSER", "low", "on", ">secret", "~*", "+@all", "-multi", "-monitor"]).await?;
        for lines in [
            &["AUTH low secret", "MONITOR", "SET order:7 old"][..],
            &["MONITOR too", "SET order:7 old"],
            // The connection has seen a MULTI that worked: another user's.
            &["CLIENT NO-EVICT ON", "MULTI", "EXEC", "AUTH low secret", "MULTI", "SET order:7 old", "EXEC"],
            &["CLIENT NO-EVICT ON", "MULTI", "EXEC", "HELLO 3 AUTH low secret", "MULTI", "SET order:7 old"],
        ] {
            let mut wire = Wire::connect(stand.proxy.address()).await?;
            let bytes = lines.iter().flat_map(|line| encode(&line.split(' ').collect::<Vec<_>>()));
            wire.send(&bytes.collect::<Vec<u8>>()).await?;
            for line in lines {
                let reply = wire.reply().await?;
                let refused = reply.starts_with(b"-STALE ");
                assert_eq!(refused, line.starts_with("SET"), "{line}: {}", String::from_utf8_lossy(&reply));
            }
            assert_eq!(redis.cmd(&["EXISTS", "order:7"]).await?, Reply::Int(0), "{lines:?}");
        }
    }
    Ok(())
}

/// ... and a large one as well, of which only the end is there when it is refused.
#[tokio::test]
async fn a_large_fill_that_is_refused_is_answered_by_its_whole_length() -> Outcome {
    let stand = Stand::start(&[]).await?;
    stand.write("users", "user:7", 7).await?;
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    assert_eq!(wire.cmd("PING").await?, "+PONG\r\n");
    let value = "x".repeat(3_000_000);
    assert_eq!(wire.cmd(&format!("APPEND user:7 {value}")).await?, ":3000000\r\n");
    assert_eq!(wire.cmd(&format!("SETRANGE user:7 10 {value}")).await?, ":3000010\r\n");
    Ok(())
}

/// A right to MULTI that is taken away: what was to be queued, and is done at once, does not stay.
#[tokio::test]
async fn what_is_not_queued_after_all_is_deleted() -> Outcome {
    let stand = Stand::start(&[("[postgres]\n", "[proxy]\nthreads = 1\n[postgres]\n")]).await?;
    stand.write("orders", "order:7", 7).await?;
    let mut direct = stand.redis.client().await?;
    direct.cmd(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all"]).await?;
    let mut client = Wire::connect(stand.proxy.address()).await?;
    assert_eq!(client.cmd("AUTH app pw").await?, "+OK\r\n");
    for line in ["MULTI", "EXEC"] {
        client.cmd(line).await?;
    }
    direct.cmd(&["ACL", "SETUSER", "app", "-multi"]).await?;
    client.send(&[encode(&["MULTI"]), encode(&["SET", "order:7", "old"])].concat()).await?;
    assert!(client.reply().await?.starts_with(b"-NOPERM"));
    assert_eq!(client.reply().await?, b"+OK\r\n", "it was done");
    wait_until("it to be gone", PATIENCE, async || {
        direct.cmd(&["EXISTS", "order:7"]).await.is_ok_and(|n| n == Reply::Int(0))
    })
    .await?;
    Ok(())
}

/// Wherever a script is called, it can go to the db of the guards.
#[tokio::test]
async fn a_script_from_another_db_is_judged() -> Outcome {
    let stand = Stand::start(&[]).await?;
    stand.write("orders", "order:7", 7).await?;
    let mut client = Wire::connect(stand.proxy.address()).await?;
    assert_eq!(client.cmd("SELECT 3").await?, "+OK\r\n");
    let script = "redis.call('SELECT',0);redis.call('SET',KEYS[1],'old')";
    let said = client.cmd(&format!("EVAL {script} 1 order:7")).await?;
    assert!(said.starts_with("-STALE"), "{said}");
    Ok(())
}
