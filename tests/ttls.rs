//! How long what is let in may live: `max_ttl`, caps, `on_stale`, and the commands that would make it longer.

mod wire;

use cachefence::demo::client::Reply;
use cachefence::demo::servers::{Cachefence, wait_until};
use cachefence::resp::put_request;
use wire::{BINARY, Fallible, Outcome, PATIENCE, Stand, Wire, settings, settled};

/// No user lives longer than 50 s; stale items live for 300 s; stale orders are deleted.
const CHANGES: &[(&str, &str)] = &[
    ("\"user:<id>:profile\"]", "\"user:<id>:profile\"]\nmax_ttl = \"50s\""),
    ("keys = [\"item:<id>\"]\n", "keys = [\"item:<id>\"]\non_stale = \"cap\"\nstale_ttl = \"300s\"\n"),
    ("keys = [\"order:<id>\"]\n", "keys = [\"order:<id>\"]\non_stale = \"delete\"\n"),
];

/// What is left of a key, in milliseconds, as Redis itself says; -1 is for ever, -2 is no key.
async fn left(stand: &Stand, key: &str) -> Fallible<i64> {
    match stand.redis.client().await?.cmd(&["PTTL", key]).await? {
        Reply::Int(left) => Ok(left),
        other => Err(format!("{key}: {other:?}").into()),
    }
}

async fn assert_limited(stand: &Stand, key: &str, limit: i64, line: &str) -> Outcome {
    let left = left(stand, key).await?;
    assert!(0 < left && left <= limit, "{line}: {left} of {limit} ms");
    Ok(())
}

/// The command, with a key for K and another for S.
fn of_key(line: &str, key: &str) -> String {
    let word = |word| match word {
        "K" => key,
        "S" => "source",
        other => other,
    };
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn assert_done(answer: &str, line: &str) {
    let failed = answer == "*-1\r\n" || answer.lines().any(|line| line.starts_with('-'));
    assert!(!failed, "{line}: {answer:?}");
}

/// Runs a command, alone or as a transaction.
async fn run(wire: &mut Wire, line: &str, multi: bool) -> Fallible<String> {
    if !multi {
        return wire.cmd(line).await;
    }
    assert_eq!(wire.cmd("MULTI").await?, "+OK\r\n");
    assert_eq!(wire.cmd(line).await?, "+QUEUED\r\n", "{line}");
    wire.cmd("EXEC").await
}

async fn fills(stand: &Stand, guard: &str, verdict: &str, action: &str) -> Fallible<f64> {
    let labels = format!("guard=\"public.{guard}\",verdict=\"{verdict}\",action=\"{action}\"");
    Ok(stand.proxy.metric(&format!("cachefence_fills_total{{{labels}}}")).await?)
}

/// All of it on one stand: what is asserted of it is in the names of the parts.
#[tokio::test]
async fn what_is_let_in_lives_no_longer_than_it_may() -> Outcome {
    let mut stand = Stand::start(CHANGES).await?;
    // A snapshot from before the first poll is not past the floor.
    settled(&stand.postgres, &stand.proxy).await?;
    no_fill_outlives_max_ttl(&stand).await?;
    no_command_lengthens_a_cap(&stand).await?;
    a_stale_fill_is_capped_or_deletes(&stand).await?;
    a_command_whose_limit_was_lost_deletes_the_key(&stand).await?;
    a_successor_does_not_lengthen_it_for_good(&mut stand).await
}

/// Commands that put something into K, from S, which is a string.
const FILLS: &[&str] = &[
    "SET K v",
    "SET K v EX 500",
    "SET K v PX 500000",
    "SET K v EXAT 99999999999",
    "SET K v PXAT 99999999999999",
    "SET K v KEEPTTL",
    "SETEX K 500 v",
    "PSETEX K 500000 v",
    "SETNX K v",
    "GETSET K v",
    "MSET K v other v",
    "MSETNX K v",
    "HSET K a 1",
    "APPEND K v",
    "INCR K",
    "RPUSH K a",
    "COPY S K",
    "RENAME S K",
    "EVAL redis.call('SET',KEYS[1],1) 1 K",
];

/// What is fresh goes in, but for no longer than `max_ttl`, whatever the command says of the time.
async fn no_fill_outlives_max_ttl(stand: &Stand) -> Outcome {
    let sql = stand.postgres.client().await?;
    let asof: String = sql.query_one("SELECT pg_current_snapshot()::text", &[]).await?.try_get(0)?;
    let mut redis = stand.redis.client().await?;
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    for multi in [false, true] {
        for fill in FILLS {
            redis.cmd(&["DEL", "user:1", "another"]).await?;
            redis.cmd(&["SET", "source", "v"]).await?;
            let line = format!("ASOF {asof} {}", of_key(fill, "user:1"));
            assert_done(&run(&mut wire, &line, multi).await?, &line);
            assert_limited(stand, "user:1", 50_000, &line).await?;
        }
    }
    assert_eq!(left(stand, "other").await?, -1, "not guarded");
    // Nor does what comes from a dump, or what keeps a TTL that somebody else has set.
    let Reply::Bulk(dump) = redis.cmd(&["DUMP", "other"]).await? else { return Err("no dump".into()) };
    for (ttl, instant) in [("0", "REPLACE"), ("500000", "REPLACE"), ("99999999999999", "ABSTTL")] {
        redis.cmd(&["DEL", "user:1"]).await?;
        let mut request = Vec::new();
        let words =
            [b"ASOF", asof.as_bytes(), b"RESTORE", b"user:1", ttl.as_bytes(), &dump, instant.as_bytes()];
        put_request(&mut request, &words);
        wire.send(&request).await?;
        assert_eq!(wire.reply().await?, b"+OK\r\n");
        assert_limited(stand, "user:1", 50_000, instant).await?;
    }
    redis.cmd(&["SET", "user:1", "v", "EX", "500"]).await?;
    wire.cmd(&format!("ASOF {asof} SET user:1 w KEEPTTL")).await?;
    assert_limited(stand, "user:1", 50_000, "KEEPTTL").await?;
    // One that is short enough stays what it is; and none of this is a cap, which is for verdicts.
    wire.cmd(&format!("ASOF {asof} SET user:1 w EX 20")).await?;
    assert_limited(stand, "user:1", 20_000, "EX").await?;
    assert_eq!(fills(stand, "users", "fresh", "capped").await?, 0.0);
    assert!(fills(stand, "users", "fresh", "forwarded").await? >= 2.0 * FILLS.len() as f64);
    let told = wire.cmd("FENCE EXPLAIN user:1").await?;
    assert!(told.contains("(as last polled): fresh, let in for at most 50.000 s"), "{told}");
    // A fill whose TTL cannot be set from here is refused.
    wire.cmd("SELECT 3").await?;
    wire.cmd("SET user:2 v").await?;
    assert_eq!(wire.cmd(&format!("ASOF {asof} COPY user:2 user:2 DB 0")).await?, ":0\r\n");
    assert_eq!(left(stand, "user:2").await?, -2);
    Ok(())
}

/// Commands that would make K live longer.
const LENGTHEN: &[&str] = &[
    "EXPIRE K 500",
    "PEXPIRE K 500000",
    "EXPIREAT K 99999999999",
    "PEXPIREAT K 99999999999999",
    "PERSIST K",
    "GETEX K EX 500",
    "GETEX K PX 500000",
    "GETEX K PXAT 99999999999999",
    "GETEX K PERSIST",
];

/// What was let in for a while stays for no longer; what was let in for good gets the time that it is given, up to
/// `max_ttl`.
async fn no_command_lengthens_a_cap(stand: &Stand) -> Outcome {
    let (mut redis, mut wire) = (stand.redis.client().await?, Wire::connect(stand.proxy.address()).await?);
    let mut direct = Wire::connect(&stand.redis.address()).await?;
    let sql = stand.postgres.client().await?;
    let asof: String = sql.query_one("SELECT pg_current_snapshot()::text", &[]).await?.try_get(0)?;
    for hello in ["HELLO 2", "HELLO 3"] {
        wire.cmd(hello).await?;
        direct.cmd(hello).await?;
        for multi in [false, true] {
            for (n, line) in LENGTHEN.iter().enumerate() {
                // Unproven, and so capped to 60 s.
                let key = format!("order:{}", 50 + n);
                assert_eq!(wire.cmd(&format!("SET {key} v")).await?, "+OK\r\n");
                let line = of_key(line, &key);
                let answer = run(&mut wire, &line, multi).await?;
                assert_limited(stand, &key, 60_000, &line).await?;
                // The guard's own limit, also for what came in around the proxy.
                redis.cmd(&["SET", "user:3", "v", "EX", "70"]).await?;
                redis.cmd(&["SET", "twin", "v", "EX", "70"]).await?;
                let line = line.replace(&key, "user:3");
                assert_eq!(run(&mut wire, &line, multi).await?, answer, "{line}");
                assert_limited(stand, "user:3", 50_000, &line).await?;
                assert_eq!(run(&mut direct, &line.replace("user:3", "twin"), multi).await?, answer, "{line}");
                // Fresh: nothing limits it.
                assert_eq!(wire.cmd(&format!("ASOF {asof} SET {key} v EX 70")).await?, "+OK\r\n");
                run(&mut wire, &line.replace("user:3", &key), multi).await?;
                let left = left(stand, &key).await?;
                assert!(left == -1 || left > 70_000, "{line}: {left}");
            }
        }
    }
    wire.cmd("HELLO 2").await?;
    // Still a read: a miss lets in the fill that follows.
    stand.write("users", "user:7", 7).await?;
    settled(&stand.postgres, &stand.proxy).await?;
    for line in ["GETEX user:7 EX 500", "GETEX user:7"] {
        assert_eq!(wire.cmd(line).await?, "$-1\r\n");
        assert_eq!(wire.cmd("SET user:7 v EX 20").await?, "+OK\r\n");
        assert_limited(stand, "user:7", 20_000, line).await?;
        redis.cmd(&["DEL", "user:7"]).await?;
    }
    // A transaction that goes to another db cannot be limited from here: it is not done.
    assert_eq!(wire.cmd("SET user:8 v").await?, "+OK\r\n");
    for line in ["MULTI", "SELECT 3", "SELECT 0", "PERSIST user:8"] {
        wire.cmd(line).await?;
    }
    assert_eq!(wire.cmd("EXEC").await?, "*-1\r\n");
    assert_limited(stand, "user:8", 50_000, "SELECT").await?;
    // Other keys are nobody's business, and what is wrong is told in Redis's words.
    redis.cmd(&["SET", "other", "v"]).await?;
    assert_eq!(wire.cmd("EXPIRE other 500").await?, ":1\r\n");
    assert!(left(stand, "other").await? > 60_000);
    for line in ["EXPIRE user:8", "EXPIRE user:8 x", "PERSIST user:8 x", "EXPIRE user:8 9 NX XX"] {
        assert_eq!(wire.cmd(line).await?, direct.cmd(line).await?, "{line}");
    }
    assert_eq!(wire.cmd("EXPIRE user:8 0").await?, ":1\r\n");
    assert_eq!(left(stand, "user:8").await?, -2);
    Ok(())
}

/// A stale fill is let in briefly, or takes what is there along.
async fn a_stale_fill_is_capped_or_deletes(stand: &Stand) -> Outcome {
    let (mut redis, mut wire) = (stand.redis.client().await?, Wire::connect(stand.proxy.address()).await?);
    for multi in [false, true] {
        for fill in FILLS {
            redis.cmd(&["DEL", "item:1", "another"]).await?;
            redis.cmd(&["SET", "source", "v"]).await?;
            let line = format!("ASOF 0/1 {}", of_key(fill, "item:1"));
            assert_done(&run(&mut wire, &line, multi).await?, &line);
            assert_limited(stand, "item:1", 300_000, &line).await?;
        }
        assert_done(&run(&mut wire, "PERSIST item:1", multi).await?, "PERSIST");
        assert_limited(stand, "item:1", 300_000, "PERSIST").await?;
    }
    let each = 2.0 * FILLS.len() as f64;
    assert_eq!(fills(stand, "items", "stale", "capped").await?, each);

    let deletes = ["SET order:1 v", "HSET order:1 a 1", "MSETNX order:1 v other v", "COPY source order:1"];
    redis.cmd(&["SET", "source", "v"]).await?;
    for (multi, line) in [false, true].into_iter().flat_map(|multi| deletes.map(|line| (multi, line))) {
        redis.cmd(&["SET", "order:1", "there"]).await?;
        let answer = run(&mut wire, &format!("ASOF 0/1 {line}"), multi).await?;
        assert!(answer.starts_with(if multi { "*-1" } else { "-STALE " }), "{line}: {answer:?}");
        assert_eq!(wire.cmd("EXISTS order:1").await?, ":0\r\n", "{line}");
    }
    // Of several pairs those that are stale, and no others.
    redis.cmd(&["MSET", "order:1", "there", "order:2", "there"]).await?;
    assert!(wire.cmd("ASOF 0/1 MSET order:1 v other w").await?.starts_with("-STALE "));
    assert_eq!(wire.cmd("MGET order:1 order:2 other").await?, "*3\r\n$-1\r\n$5\r\nthere\r\n$1\r\nw\r\n");
    assert_eq!(fills(stand, "orders", "stale", "deleted").await?, 2.0 * deletes.len() as f64 + 1.0);
    assert_eq!(fills(stand, "orders", "stale", "refused").await?, 0.0);
    // A large one goes out as it comes in, all but its end; then its connection is given up.
    stand.write("orders", "order:9", 9).await?;
    settled(&stand.postgres, &stand.proxy).await?;
    let large = "x".repeat(300_000);
    for command in ["SET", "APPEND"] {
        redis.cmd(&["SET", "order:9", "there"]).await?;
        wire.send(&cachefence::demo::client::encode(&[command, "order:9", &large])).await?;
        assert!(wire.reply().await?.starts_with(b"-STALE "), "{command}");
        // Behind the deletion; a read would be a miss, which vouches for what comes next.
        wire.cmd("PING").await?;
        assert_eq!(left(stand, "order:9").await?, -2, "{command}");
    }
    // What is shortened in place goes as another command, which the user has to be allowed.
    redis.cmd(&["ACL", "SETUSER", "half", "on", ">half", "~*", "+@all", "-psetex", "-set"]).await?;
    let mut half = Wire::connect(stand.proxy.address()).await?;
    assert_eq!(half.cmd("AUTH half half").await?, "+OK\r\n");
    for line in ["SETEX order:61 500 v", "SETNX order:61 v", "GETSET order:61 v"] {
        assert!(half.cmd(line).await?.starts_with("-NOPERM"), "{line}");
        assert_eq!(left(stand, "order:61").await?, -2, "{line}");
    }
    assert_eq!(half.cmd("SETEX order:61 50 v").await?, "+OK\r\n");
    // Nothing speaks against it: as ever.
    assert_eq!(wire.cmd("SET order:60 v").await?, "+OK\r\n");
    assert_limited(stand, "order:60", 60_000, "unproven").await
}

/// A limit that Redis never answers is owed: the key goes, as with the cap of a fill.
async fn a_command_whose_limit_was_lost_deletes_the_key(stand: &Stand) -> Outcome {
    let (mut redis, mut wire) = (stand.redis.client().await?, Wire::connect(stand.proxy.address()).await?);
    assert_eq!(wire.cmd("SET user:1 v").await?, "+OK\r\n");
    redis.cmd(&["CLIENT", "PAUSE", "60000", "WRITE"]).await?;
    wire.send(&cachefence::demo::client::encode(&["PERSIST", "user:1"])).await?;
    wait_until("the command to reach Redis", PATIENCE, async || {
        let list = redis.cmd(&["CLIENT", "LIST"]).await.ok().and_then(|list| list.text()).unwrap_or_default();
        list.lines().any(|line| line.contains("name=cachefence") && line.contains("cmd=persist"))
    })
    .await?;
    redis.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await?;
    assert!(wire.reply().await?.starts_with(b"-ERR cachefence: upstream"));
    redis.cmd(&["CLIENT", "UNPAUSE"]).await?;
    wait_until("the key to be deleted", PATIENCE, async || {
        redis.cmd(&["EXISTS", "user:1"]).await.is_ok_and(|n| n == Reply::Int(0))
    })
    .await?;
    Ok(())
}

/// A proxy that takes over does not know what its predecessor has capped: no key lives longer than the longest cap.
async fn a_successor_does_not_lengthen_it_for_good(stand: &mut Stand) -> Outcome {
    let mut client = stand.proxy.client().await?;
    assert_eq!(client.cmd(&["SET", "order:70", "v"]).await?, Reply::ok());
    assert_limited(stand, "order:70", 60_000, "without evidence").await?;
    stand.proxy.kill().await?;
    let settings = settings(&stand.postgres, &stand.redis, "wire", CHANGES);
    stand.proxy = Cachefence::start(BINARY, &settings).await?;
    settled(&stand.postgres, &stand.proxy).await?;
    let mut client = stand.proxy.client().await?;
    assert_eq!(client.cmd(&["PERSIST", "order:70"]).await?, Reply::Int(1));
    assert_limited(stand, "order:70", 300_000, "PERSIST, after a restart").await
}
