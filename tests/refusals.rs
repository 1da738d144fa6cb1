//! What becomes of a fill that is refused: its answer, its place among the others, and what is counted.

mod wire;

use cachefence::demo::client::Reply;
use cachefence::demo::servers::{Cachefence, Redis, RedisOptions, wait_until};
use wire::{BINARY, Outcome, PATIENCE, Stand, Wire, settings, settled};

/// Every fill and its answers where `reply` is `ok` and `nil`; `K` is the key.
const FILLS: &[(&str, &str, &str)] = &[
    ("SET K v", "+OK", "$-1"),
    ("set K v EX 10", "+OK", "$-1"),
    ("SET K v px 10 nx", "+OK", "$-1"),
    ("SET K v GET", "$-1", "$-1"),
    ("SET K v XX KEEPTTL", "+OK", "$-1"),
    ("SETEX K 10 v", "+OK", "$-1"),
    ("PSETEX K 10000 v", "+OK", "$-1"),
    ("SETNX K v", ":1", ":0"),
    ("GETSET K v", "$-1", "$-1"),
    ("MSET K v", "+OK", "$-1"),
    ("MSETNX K v", ":1", ":0"),
    ("HSET K a 1 b 2", ":2", ":0"),
    ("HMSET K a 1 b 2", "+OK", "$-1"),
];

/// Evidence from before the feed began: always stale.
const STALE: &str = "ASOF 0/1";

/// Each fill, in each of the three ways to answer it, and nothing gets to Redis.
#[tokio::test]
async fn each_is_answered_in_the_shape_of_its_command() -> Outcome {
    let stand = Stand::start(&[]).await?;
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    let mut redis = stand.redis.client().await?;
    let refused = "cachefence_fills_total{action=\"refused\",verdict=\"stale\"}";
    for (n, (fill, ok, nil)) in FILLS.iter().enumerate() {
        for (key, expected) in [("user:7", *ok), ("item:7", *nil), ("order:7", "-STALE ")] {
            let answer = wire.cmd(&format!("{STALE} {}", fill.replace('K', key))).await?;
            assert!(answer.starts_with(expected) && answer.ends_with("\r\n"), "{fill} of {key}: {answer:?}");
            assert_eq!(redis.cmd(&["EXISTS", key]).await?, Reply::Int(0), "{fill} of {key}");
        }
        let guard = "cachefence_fills_total{guard=\"public.items\",action=\"refused\",verdict=\"stale\"}";
        assert_eq!(stand.proxy.metric(guard).await?, (n + 1) as f64, "{fill}");
    }
    assert_eq!(stand.proxy.metric(refused).await?, 3.0 * FILLS.len() as f64);
    for (key, verdict, action) in [("user:8", "unproven", "capped"), ("user:9", "stale", "refused")] {
        let series = format!(
            "cachefence_fills_total{{guard=\"public.users\",verdict=\"{verdict}\",action=\"{action}\"}}"
        );
        let before = stand.proxy.metric(&series).await?;
        let evidence = if verdict == "stale" { "ASOF 0/1 " } else { "" };
        assert_eq!(wire.cmd(&format!("{evidence}SET {key} v")).await?, "+OK\r\n");
        assert_eq!(stand.proxy.metric(&series).await? - before, 1.0);
    }
    // Capped: it lives for unproven_ttl at most.
    let Reply::Int(ttl) = redis.cmd(&["PTTL", "user:8"]).await? else { return Err("no TTL".into()) };
    assert!(ttl > 0 && ttl <= 60_000, "{ttl}");
    assert_eq!(wire.cmd("GET user:8").await?, "$1\r\nv\r\n");
    assert_eq!(wire.cmd("GET user:9").await?, "$-1\r\n");
    let hits = "cachefence_reads_total{guard=\"public.users\",result=\"hit\"}";
    assert_eq!(stand.proxy.metric(hits).await?, 1.0);
    let misses = "cachefence_reads_total{guard=\"public.users\",result=\"miss\"}";
    assert_eq!(stand.proxy.metric(misses).await?, 1.0);
    // Several keys of one read are counted each.
    assert_eq!(wire.cmd("MGET user:8 other user:9 user:10 user:8").await?.matches("$-1").count(), 3);
    assert_eq!(stand.proxy.metric(hits).await?, 3.0);
    assert_eq!(stand.proxy.metric(misses).await?, 3.0);
    Ok(())
}

/// In a pipeline a refusal stands where its command stood, whichever way the commands around it went.
#[tokio::test]
async fn it_stands_in_its_place_in_a_pipeline() -> Outcome {
    let stand = Stand::start(&[]).await?;
    let mut client = stand.proxy.client().await?;
    let big = "x".repeat(100_000);
    let stale: &[&str] = &["ASOF", "0/1", "SET", "order:1", "old"];
    for _ in 0..20 {
        let replies = client
            .pipeline(&[
                stale,
                &["SET", "a", "1"],
                stale,
                &["GET", "a"],
                &["SET", "b", &big],
                stale,
                &["ASOF", "0/1", "SET", "user:1", &big],
                &["STRLEN", "b"],
                &["RPUSH", "q", "x"],
                stale,
                &["BLPOP", "q", "0"],
                stale,
                &["GET", "a"],
                &["MULTI"],
                &["GET", "a"],
                &["EXEC"],
                stale,
                &["ASOF", "0/1", "MSET", "order:1", "1", "a", "2", "order:2", "2"],
                &["GET", "a"],
            ])
            .await?;
        let places: Vec<usize> = replies
            .iter()
            .enumerate()
            .filter(|(_, r)| matches!(r, Reply::Error(e) if e.starts_with("STALE ")))
            .map(|(n, _)| n)
            .collect();
        assert_eq!(places, [0, 2, 5, 9, 11, 16, 17], "{replies:?}");
        assert_eq!(replies[3], Reply::bulk("1"));
        assert_eq!(replies[6], Reply::ok());
        assert_eq!(replies[7], Reply::Int(100_000));
        assert_eq!(replies[10], Reply::Array(vec![Reply::bulk("q"), Reply::bulk("x")]));
        assert_eq!(replies[15], Reply::Array(vec![Reply::bulk("1")]));
        assert_eq!(replies[18], Reply::bulk("2"), "the pairs that were not refused are set");
    }
    assert_eq!(
        stand.redis.client().await?.cmd(&["EXISTS", "order:1", "order:2", "user:1"]).await?,
        Reply::Int(0)
    );
    Ok(())
}

/// Of pairs with the same key the last one counts, and what vouches for one vouches for all.
#[tokio::test]
async fn pairs_of_one_key_share_a_verdict() -> Outcome {
    let stand = Stand::start(&[]).await?;
    stand.write("users", "user:1", 1).await?;
    settled(&stand.postgres, &stand.proxy).await?;
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    assert_eq!(wire.cmd("GET user:1").await?, "$-1\r\n");
    assert_eq!(wire.cmd("MSET user:1 a other 1 user:1 b").await?, "+OK\r\n");
    assert_eq!(wire.cmd("GET user:1").await?, "$1\r\nb\r\n");
    // And a refused key takes all its pairs with it.
    assert_eq!(wire.cmd("ASOF 0/1 MSET user:2 a other 2 user:2 b user:2").await?.get(..4), Some("-ERR"));
    assert_eq!(wire.cmd("ASOF 0/1 MSET user:2 a other 2 user:2 b").await?, "+OK\r\n");
    assert_eq!(wire.cmd("MGET user:2 other").await?, "*2\r\n$-1\r\n$1\r\n2\r\n");
    // All or nothing.
    assert_eq!(wire.cmd("ASOF 0/1 MSETNX fresh 1 order:3 b").await?.get(..7), Some("-STALE "));
    assert_eq!(wire.cmd("EXISTS fresh order:3").await?, ":0\r\n");
    Ok(())
}

/// Sixty thousand keys in one command cost what they cost Redis, not the square of it.
#[tokio::test]
async fn very_many_keys_are_judged_in_no_time() -> Outcome {
    let stand = Stand::start(&[]).await?;
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    let keys = 60_000;
    let pairs: String = (0..keys).map(|n| format!(" user:{n} v")).collect();
    assert_eq!(wire.cmd(&format!("ASOF 0/1 MSET other 1{pairs}")).await?, "+OK\r\n");
    assert_eq!(wire.cmd("GET other").await?, "$1\r\n1\r\n");
    assert_eq!(stand.redis.client().await?.cmd(&["EXISTS", "user:0", "user:59999"]).await?, Reply::Int(0));
    let names: String = (0..keys).map(|n| format!(" user:{n}")).collect();
    let answer = wire.cmd(&format!("MGET{names} other")).await?;
    assert_eq!(answer.matches("$-1").count(), keys);
    let misses = "cachefence_reads_total{guard=\"public.users\",result=\"miss\"}";
    assert_eq!(stand.proxy.metric(misses).await?, keys as f64);
    Ok(())
}

/// A stale fill in a transaction makes all of it as if a WATCH had failed.
#[tokio::test]
async fn in_a_transaction_it_aborts_all_of_it() -> Outcome {
    let stand = Stand::start(&[]).await?;
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    for stale in ["ASOF 0/1 SET user:1 old", "ASOF 0/1 HSET order:1 a 1", "ASOF 0/1 MSET a 1 item:1 x"] {
        for line in ["MULTI", "SET side 1"] {
            assert!(wire.cmd(line).await?.starts_with('+'));
        }
        assert_eq!(wire.cmd(stale).await?, "+QUEUED\r\n");
        assert_eq!(wire.cmd("INCR counter").await?, "+QUEUED\r\n");
        assert_eq!(wire.cmd("EXEC").await?, "*-1\r\n", "{stale}");
        assert_eq!(wire.cmd("EXISTS side counter user:1 order:1 item:1 a").await?, ":0\r\n");
    }
    // What is wrong with ASOF itself is an error when it is queued.
    for wrong in ["ASOF", "ASOF 0/1", "ASOF 0/1 GET a", "ASOF x SET user:1 a", "SUBSCRIBE a"] {
        wire.cmd("MULTI").await?;
        assert!(wire.cmd(wrong).await?.starts_with("-ERR "), "{wrong}");
        assert!(wire.cmd("EXEC").await?.starts_with("-EXECABORT "), "{wrong}");
    }
    // A fill without evidence is capped in there too.
    wire.cmd("MULTI").await?;
    wire.cmd("SET user:5 v").await?;
    assert_eq!(wire.cmd("EXEC").await?, "*1\r\n+OK\r\n");
    assert!(!wire.cmd("PTTL user:5").await?.starts_with(":-"));
    Ok(())
}

/// Judged and counted; let through, and nothing deleted, not even what a lost connection was about to set.
#[tokio::test]
async fn a_proxy_that_observes_changes_nothing_and_counts() -> Outcome {
    let observe = ("[postgres]\n", "[proxy]\nmode = \"observe\"\n[postgres]\n");
    let stand = Stand::start(&[observe]).await?;
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    let mut redis = stand.redis.client().await?;
    for (fill, ..) in FILLS {
        let bare = fill.replace('K', "order:7");
        redis.cmd(&["DEL", "order:7"]).await?;
        let plain = Wire::connect(&stand.redis.address()).await?.cmd(&bare).await?;
        redis.cmd(&["DEL", "order:7"]).await?;
        redis.cmd(&["DEL", "order:7"]).await?;
        assert_eq!(wire.cmd(&format!("{STALE} {bare}")).await?, plain, "{fill}");
    }
    let series = "cachefence_fills_total{guard=\"public.orders\",verdict=\"stale\",action=\"observed\"}";
    assert_eq!(stand.proxy.metric(series).await?, FILLS.len() as f64);
    assert_eq!(stand.proxy.metric("cachefence_fills_total{action=\"refused\"}").await?, 0.0);

    redis.cmd(&["SET", "user:1", "kept"]).await?;
    let sql = stand.postgres.client().await?;
    sql.batch_execute("UPDATE users SET name = 'x' WHERE id = 1").await?;
    wait_until("the write to be counted", PATIENCE, async || {
        stand.proxy.metric("cachefence_writes_total{guard=\"public.users\"}").await.is_ok_and(|n| n >= 1.0)
    })
    .await?;
    assert_eq!(redis.cmd(&["GET", "user:1"]).await?, Reply::bulk("kept"));
    assert_eq!(stand.proxy.metric("cachefence_invalidated_keys_total").await?, 0.0);
    assert_eq!(redis.cmd(&["KEYS", "cachefence*"]).await?, Reply::Array(vec![]), "no marker either");

    // A fill in flight on a connection that is lost: elsewhere its key would be deleted.
    redis.cmd(&["CLIENT", "PAUSE", "60000", "WRITE"]).await?;
    wire.send(&cachefence::demo::client::encode(&["SET", "user:1", "never"])).await?;
    wait_until("the fill to reach Redis", PATIENCE, async || {
        let list = redis.cmd(&["CLIENT", "LIST"]).await.ok().and_then(|list| list.text()).unwrap_or_default();
        list.lines().any(|line| line.contains("name=cachefence") && line.contains("cmd=set"))
    })
    .await?;
    redis.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await?;
    assert!(wire.reply().await?.starts_with(b"-ERR cachefence: upstream"));
    redis.cmd(&["CLIENT", "UNPAUSE"]).await?;
    let deleted = wait_until("a deletion", std::time::Duration::from_millis(500), async || {
        redis.cmd(&["EXISTS", "user:1"]).await.is_ok_and(|n| n == Reply::Int(0))
    });
    assert!(deleted.await.is_err(), "the key was deleted by a proxy that only observes");
    Ok(())
}

/// Guards apply to one db; which one a client is in is never guessed, whatever a transaction did.
#[tokio::test]
async fn guards_apply_to_the_db_of_the_url() -> Outcome {
    let stand = Stand::start(&[("/0\"", "/2\"")]).await?;
    let mut redis = stand.redis.client().await?;
    redis.cmd(&["SELECT", "2"]).await?;
    let mut client = stand.proxy.client().await?;
    let stale = ["ASOF", "0/1", "SET", "order:1", "old"];
    let is_refused = |reply: &Reply| matches!(reply, Reply::Error(error) if error.starts_with("STALE "));
    assert_eq!(client.cmd(&stale).await?, Reply::ok(), "not in db 0");
    // In one pipeline: the db is known when the fill is judged.
    let replies = client.pipeline(&[&["SELECT", "2"][..], &stale, &["SELECT", "0"], &stale]).await?;
    assert!(is_refused(&replies[1]) && replies[3] == Reply::ok(), "{replies:?}");

    // Transactions that leave the client where it was, in db 2.
    let failing: [&[&[&str]]; 4] = [
        &[&["MULTI"], &["SELECT", "99"], &["EXEC"]],
        &[&["MULTI"], &["SELECT", "0"], &["DISCARD"]],
        &[&["WATCH", "w"], &["SET", "w", "1"], &["MULTI"], &["SELECT", "0"], &["EXEC"]],
        &[&["MULTI"], &["SELECT", "0"], &["NOSUCH"], &["EXEC"]],
    ];
    for transaction in failing {
        let mut client = stand.proxy.client().await?;
        assert_eq!(client.cmd(&["SELECT", "2"]).await?, Reply::ok());
        let mut commands = transaction.to_vec();
        commands.push(&stale);
        let replies = client.pipeline(&commands).await?;
        assert!(replies.last().is_some_and(is_refused), "{transaction:?}: {replies:?}");
    }
    // In the transaction too: where the SELECT fails, what follows goes to db 2.
    let commands: [&[&str]; 4] = [&["MULTI"], &["SELECT", "99"], &stale, &["EXEC"]];
    let mut client = stand.proxy.client().await?;
    client.cmd(&["SELECT", "2"]).await?;
    assert_eq!(client.pipeline(&commands).await?.last(), Some(&Reply::Nil));
    // And one that takes it there.
    let mut client = stand.proxy.client().await?;
    let replies = client.pipeline(&[&["MULTI"][..], &["SELECT", "2"], &["EXEC"], &stale]).await?;
    assert!(replies.last().is_some_and(is_refused), "{replies:?}");
    // Where a part of it went wrong the db is not known: SELECT is not taken for done.
    let mut client = stand.proxy.client().await?;
    let replies = client
        .pipeline(&[
            &["MULTI"][..],
            &["SELECT", "3"],
            &["SELECT", "99"],
            &["EXEC"],
            &stale,
            &["SELECT", "0"],
            &stale,
        ])
        .await?;
    assert!(is_refused(&replies[4]) && replies[6] == Reply::ok(), "{replies:?}");
    assert_eq!(redis.cmd(&["EXISTS", "order:1"]).await?, Reply::Int(0));
    Ok(())
}

/// A MULTI that Redis does not accept begins no transaction, and hides no fill from the gate.
#[tokio::test]
async fn a_refused_multi_hides_no_fill() -> Outcome {
    let stand = Stand::start(&[]).await?;
    let mut redis = stand.redis.client().await?;
    redis.cmd(&["ACL", "SETUSER", "weak", "on", ">pw", "~*", "+@all", "-multi"]).await?;
    let mut client = stand.proxy.client().await?;
    let commands: [&[&str]; 4] =
        [&["AUTH", "weak", "pw"], &["MULTI"], &["ASOF", "0/1", "SET", "order:1", "old"], &["EXEC"]];
    let replies = client.pipeline(&commands).await?;
    assert!(matches!(&replies[1], Reply::Error(e) if e.starts_with("NOPERM")), "{replies:?}");
    assert!(matches!(&replies[2], Reply::Error(e) if e.starts_with("STALE ")), "{replies:?}");
    assert_eq!(redis.cmd(&["EXISTS", "order:1"]).await?, Reply::Int(0));
    Ok(())
}

/// A state that Redis would not end is not handed to the next client with the connection.
#[tokio::test]
async fn a_pin_that_is_not_clean_is_given_to_nobody() -> Outcome {
    let (postgres, redis) = (wire::postgres().await?, Redis::start(RedisOptions::default()).await?);
    let text = settings(&postgres, &redis, "wire", &[("[postgres]\n", "[proxy]\nthreads = 1\n[postgres]\n")]);
    let proxy = Cachefence::start(BINARY, &text).await?;
    redis.client().await?.cmd(&["ACL", "SETUSER", "default", "-discard"]).await?;
    let mut client = proxy.client().await?;
    let replies = client.pipeline(&[&["MULTI"], &["DISCARD"]]).await?;
    assert!(matches!(&replies[1], Reply::Error(e) if e.starts_with("NOPERM")), "{replies:?}");
    drop(client);
    // Whoever comes next and needs a pin.
    for _ in 0..3 {
        let mut next = proxy.client().await?;
        next.cmd(&["RPUSH", "q", "x"]).await?;
        let reply = next.cmd(&["BLPOP", "q", "0"]).await?;
        assert_eq!(reply, Reply::Array(vec![Reply::bulk("q"), Reply::bulk("x")]));
    }
    Ok(())
}

/// Evidence that is none is quoted in the error, which nothing in it can end.
#[tokio::test]
async fn wrong_evidence_injects_no_reply() -> Outcome {
    let stand = Stand::start(&[]).await?;
    let mut client = stand.proxy.client().await?;
    let long = format!("1:2:{}", "1,".repeat(40_000));
    for evidence in
        ["x\r\n+OK", "\r\n$-1\r\n", "0/1\r\n", "", "1:2", "9:1:", "version=x", "\u{0}", long.as_str()]
    {
        let replies = client.pipeline(&[&["ASOF", evidence, "SET", "user:1", "v"][..], &["PING"]]).await?;
        assert!(matches!(&replies[0], Reply::Error(e) if e.starts_with("ERR ")), "{evidence:?}: {replies:?}");
        assert_eq!(replies[1], Reply::Simple("PONG".into()), "{evidence:?}");
    }
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    wire.send(b"*5\r\n$4\r\nASOF\r\n$4\r\n\xff\r\n\xfe\r\n$3\r\nSET\r\n$6\r\nuser:1\r\n$1\r\nv\r\n").await?;
    assert!(wire.reply().await?.starts_with(b"-ERR cachefence: ASOF: "));
    assert_eq!(wire.cmd("PING").await?, "+PONG\r\n");
    Ok(())
}
