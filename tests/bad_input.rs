//! What is wrong, with frames, settings or servers, is said where it is wrong, and harms nobody else.

mod wire;

use std::process::{Child, Command, Stdio};

use cachefence::demo::client::Reply;
use cachefence::demo::servers::{
    Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions, StopMode, wait_until,
};
use wire::{BINARY, Fallible, Outcome, PATIENCE, Stand, Wire, postgres, settings};

/// Each malformed frame ends its own client, in Redis's words, and no other.
#[tokio::test]
async fn a_malformed_frame_ends_that_client_only() -> Outcome {
    let one_thread = ("[postgres]\n", "[proxy]\nthreads = 1\n[postgres]\n");
    let stand = Stand::start(&[one_thread]).await?;
    let mut other = stand.proxy.client().await?;
    let mut blocked = stand.proxy.client().await?;
    blocked.send(&["BLPOP", "q", "0"]).await?;
    let long_line = vec![b'a'; 65_537];
    let long_count = [b"*".as_slice(), &[b'1'; 65_600]].concat();
    let frames: [(&[u8], &str); 14] = [
        (b"*x\r\n", "invalid multibulk length"),
        (b"*2147483648\r\n", "invalid multibulk length"),
        (b"*99999999999999999999\r\n", "invalid multibulk length"),
        (b"* 1\r\n", "invalid multibulk length"),
        (b"*1\r\n:1\r\n", "expected '$', got ':'"),
        (b"*1\r\n\r\n", "expected '$', got ' '"),
        (b"*2\r\n$3\r\nGET\r\n+k\r\n", "expected '$', got '+'"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$x\r\n", "invalid bulk length"),
        (b"*1\r\n$536870913\r\n", "invalid bulk length"),
        (b"*1\r\n$18446744073709551615\r\n", "invalid bulk length"),
        (b"SET k \"v\r\n", "unbalanced quotes in request"),
        (&long_line, "too big inline request"),
        (&long_count, "too big mbulk count string"),
    ];
    for (frame, error) in frames {
        let mut wire = Wire::connect(stand.proxy.address()).await?;
        // What came before it is answered first.
        wire.send(b"*1\r\n$4\r\nPING\r\n").await?;
        wire.send(frame).await?;
        let rest = String::from_utf8_lossy(&wire.rest().await?).into_owned();
        assert_eq!(rest, format!("+PONG\r\n-ERR Protocol error: {error}\r\n"));
        // In Redis's words.
        let mut direct = Wire::connect(&stand.redis.address()).await?;
        direct.send(b"*1\r\n$4\r\nPING\r\n").await?;
        direct.send(frame).await?;
        assert_eq!(rest, String::from_utf8_lossy(&direct.rest().await?));
        assert_eq!(other.cmd(&["PING"]).await?, Reply::Simple("PONG".into()));
    }
    other.cmd(&["RPUSH", "q", "x"]).await?;
    assert_eq!(blocked.receive().await?, Reply::Array(vec![Reply::bulk("q"), Reply::bulk("x")]));
    Ok(())
}

/// The start of a process that ends by itself.
async fn run_to_its_end(text: &str) -> Fallible<(Option<i32>, String, String)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("settings.toml");
    // Any free ports.
    let text = format!("{text}\n[admin]\nlisten = \"127.0.0.1:0\"\n");
    let text = text.replacen("[postgres]\n", "[proxy]\nlisten = [\"127.0.0.1:0\"]\n[postgres]\n", 1);
    std::fs::write(&path, text)?;
    let mut command = Command::new(BINARY);
    command.arg("run").arg("--config").arg(&path).stdout(Stdio::null()).stderr(Stdio::piped());
    struct Ended(Child);
    impl Drop for Ended {
        fn drop(&mut self) {
            // It has ended already, unless the test fails.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let mut child = Ended(command.spawn()?);
    let mut status = None;
    wait_until("the process to end", PATIENCE, async || {
        status = child.0.try_wait().ok().flatten();
        status.is_some()
    })
    .await?;
    let mut said = String::new();
    if let Some(stderr) = &mut child.0.stderr {
        std::io::Read::read_to_string(stderr, &mut said)?;
    }
    Ok((status.and_then(|status| status.code()), said, path.display().to_string()))
}

/// A wrong setting: status 2, and a line with file, place, setting, what was found and what is allowed.
#[tokio::test]
async fn a_wrong_setting_names_itself() -> Outcome {
    let text = "[postgres]\nurl = \"postgres://h/d\"\n[fence]\nmax_keys = 0\n";
    let (status, said, path) = run_to_its_end(text).await?;
    assert_eq!(status, Some(2), "{said}");
    let expected = "fence.max_keys: found 0; allowed: a whole number from 1 to 1099511627776";
    assert_eq!(said, format!("cachefence: {path}:6: {expected}\n"));
    let broken = "[postgres]\nurl = \"postgres://h/d\"\n[[guard]]\ntable = \"t\"\nkeys = [\"k:<id\"]\n";
    let (status, said, path) = run_to_its_end(broken).await?;
    assert_eq!(status, Some(2), "{said}");
    assert!(said.starts_with("cachefence: ") && said.contains("k:<id"), "{said} {path}");
    Ok(())
}

/// What the catalog lacks stops the start; where SQL can mend it, the error has the SQL, which does.
#[tokio::test]
async fn the_error_has_the_sql_that_mends_the_database() -> Outcome {
    let postgres = Postgres::primary(PrimaryOptions::default()).await?;
    let redis = Redis::start(RedisOptions::default()).await?;
    let sql = postgres.client().await?;
    sql.batch_execute("CREATE TABLE users (id bigint PRIMARY KEY, name text, email text)").await?;
    let guard = |table: &str, keys: &str| {
        let mut text = settings(&postgres, &redis, &format!("mended_{table}"), &[]);
        text.truncate(text.find("[[guard]]").unwrap_or(text.len()));
        format!("{text}[[guard]]\ntable = \"{table}\"\nkeys = [\"{keys}\"]\n")
    };
    // Nothing that SQL of ours could mend, but named.
    for (table, keys, named) in [
        ("nosuch", "n:<id>", "guard public.nosuch: there is no such table"),
        ("users", "user:<nosuch>", "template \"user:<nosuch>\" uses column \"nosuch\""),
    ] {
        let (status, said, _) = run_to_its_end(&guard(table, keys)).await?;
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains(named), "{said}");
    }
    sql.batch_execute("CREATE UNLOGGED TABLE quick (id bigint PRIMARY KEY)").await?;
    sql.batch_execute("CREATE TABLE bare (id bigint)").await?;
    for (table, keys) in [("users", "by-email:<email>"), ("quick", "quick:<id>"), ("bare", "bare:<id>")] {
        let text = guard(table, keys);
        let (status, said, _) = run_to_its_end(&text).await?;
        assert_eq!(status, Some(1), "{said}");
        let line = said.lines().find(|line| line.starts_with("cachefence: ")).unwrap_or_default();
        let mend = line.split("; run: ").nth(1).ok_or_else(|| format!("no SQL: {said}"))?;
        postgres.psql(mend).await?;
        let proxy = Cachefence::start(BINARY, &text).await?;
        let mut client = proxy.client().await?;
        assert_eq!(client.cmd(&["SET", "k", "v"]).await?, Reply::ok());
    }
    Ok(())
}

/// Redis is away when the proxy starts: not ready, an error that names it, and all well once it is there.
#[tokio::test]
async fn redis_may_come_late() -> Outcome {
    let (postgres, mut redis) = (postgres().await?, Redis::start(RedisOptions::default()).await?);
    for (slot, upstream) in [("shared", "shared"), ("pinned", "pinned")] {
        redis.kill().await?;
        let change = format!("[redis]\nupstream = \"{upstream}\"\n");
        let text = settings(&postgres, &redis, slot, &[("[redis]\n", &change)]);
        let mut proxy = Cachefence::launch(BINARY.as_ref(), &text)?;
        wait_until("the port to open", PATIENCE, async || proxy.client().await.is_ok()).await?;
        let named = format!("-ERR cachefence: upstream redis://{}/0: ", redis.address());
        for command in ["PING", "GET a", "SET b v", "BLPOP q 0", "SUBSCRIBE a", "MULTI", "NOSUCH"] {
            let mut wire = Wire::connect(proxy.address()).await?;
            let answer = wire.cmd(command).await?;
            assert!(answer.starts_with(&named), "{command}: {answer}");
        }
        let (status, body) = proxy.get("/readyz").await?;
        assert_eq!(status, 503, "{body}");
        assert!(body.contains("Redis"), "{body}");
        assert_eq!(proxy.get("/livez").await?.0, 200);
        // One client that goes on asking until it is served.
        let mut client = proxy.client().await?;
        client.cmd(&["PING"]).await?;
        redis.relaunch().await?;
        wait_until("the client to be served", PATIENCE, async || {
            client.cmd(&["SET", "a", "1"]).await.is_ok_and(|reply| reply == Reply::ok())
        })
        .await?;
        proxy.ready().await?;
    }
    Ok(())
}

/// Postgres is away when the proxy starts: not ready, but keys without a guard are served, and no fill of a
/// guarded key is let in that nothing can prove. Once it has been there and goes, each guard does what it says.
#[tokio::test]
async fn postgres_may_come_late_and_go() -> Outcome {
    let (mut postgres, redis) = (postgres().await?, Redis::start(RedisOptions::default()).await?);
    let lost = "[postgres]\nfeed_lost_after = \"1s\"\n";
    let refuse = "reply = \"nil\"\nwhen_feed_lost = { fills = \"refuse\" }\n";
    let miss = "reply = \"error\"\nwhen_feed_lost = { reads = \"miss\", fills = \"refuse\" }\n";
    let changes = [("[postgres]\n", lost), ("reply = \"nil\"\n", refuse), ("reply = \"error\"\n", miss)];
    let text = settings(&postgres, &redis, "late", &changes);
    postgres.stop(StopMode::Fast).await?;
    let mut proxy = Cachefence::launch(BINARY.as_ref(), &text)?;
    wait_until("the port to open", PATIENCE, async || proxy.client().await.is_ok()).await?;
    let mut wire = Wire::connect(proxy.address()).await?;
    wait_until("Redis to be there", PATIENCE, async || {
        wire.cmd("SET a 1").await.is_ok_and(|answer| answer == "+OK\r\n")
    })
    .await?;
    assert_eq!(wire.cmd("GET a").await?, "$1\r\n1\r\n");
    let (status, body) = proxy.get("/readyz").await?;
    assert_eq!(status, 503);
    assert!(body.contains("the feed is lost"), "{body}");
    // Nobody knows what was written before: each guard does what it says for a feed that is lost.
    assert!(wire.cmd("SET order:1 v").await?.starts_with("-FENCE the feed is lost"));
    assert_eq!(redis.client().await?.cmd(&["EXISTS", "order:1"]).await?, Reply::Int(0));
    assert_eq!(wire.cmd("SET user:9 v PX 900000").await?, "+OK\r\n", "fills = cap");
    let Reply::Int(ttl) = redis.client().await?.cmd(&["PTTL", "user:9"]).await? else {
        return Err("no TTL".into());
    };
    assert!(ttl <= 1000 && ttl != -1, "{ttl}");

    postgres.start().await?;
    proxy.ready().await?;
    assert_eq!(wire.cmd("SET user:1 v").await?, "+OK\r\n");
    assert_eq!(wire.cmd("SET order:1 v").await?, "+OK\r\n");
    assert_eq!(wire.cmd("GET order:1").await?, "$1\r\nv\r\n");

    postgres.stop(StopMode::Fast).await?;
    wait_until("the feed to be lost", PATIENCE, async || {
        proxy.get("/readyz").await.is_ok_and(|(status, _)| status == 503)
    })
    .await?;
    assert_eq!(wire.cmd("GET user:1").await?, "$1\r\nv\r\n", "reads = serve");
    assert_eq!(wire.cmd("SET user:2 v PX 900000").await?, "+OK\r\n", "fills = cap");
    let Reply::Int(ttl) = redis.client().await?.cmd(&["PTTL", "user:2"]).await? else {
        return Err("no TTL".into());
    };
    assert!(ttl <= 1000 && ttl != -1, "{ttl}");
    assert_eq!(wire.cmd("SET item:2 v").await?, "$-1\r\n", "fills = refuse");
    assert!(wire.cmd("SET order:2 v").await?.starts_with("-FENCE the feed is lost"));
    assert_eq!(wire.cmd("GET order:1").await?, "$-1\r\n", "reads = miss");
    // Keys that are no business of the guard's are answered as they are.
    assert_eq!(wire.cmd("MGET a order:1 user:1").await?, "*3\r\n$1\r\n1\r\n$-1\r\n$1\r\nv\r\n");
    assert_eq!(wire.cmd("EXISTS a order:1").await?, ":1\r\n");
    assert_eq!(wire.cmd("EXISTS order:1 order:2").await?, ":0\r\n");
    let bypassed = "cachefence_reads_total{guard=\"public.orders\",result=\"bypassed\"}";
    assert_eq!(proxy.metric(bypassed).await?, 5.0);
    assert_eq!(redis.client().await?.cmd(&["EXISTS", "item:2", "order:2"]).await?, Reply::Int(0));
    assert_eq!(wire.cmd("GET a").await?, "$1\r\n1\r\n");
    Ok(())
}

/// One client too many is told so, as Redis would, and its place is free when another goes.
#[tokio::test]
async fn one_client_too_many_is_told_so() -> Outcome {
    let stand = Stand::start(&[("[postgres]\n", "[proxy]\nmax_clients = 2\n[postgres]\n")]).await?;
    let mut first = Wire::connect(stand.proxy.address()).await?;
    assert_eq!(first.cmd("PING").await?, "+PONG\r\n");
    let mut second = Wire::connect(stand.proxy.address()).await?;
    assert_eq!(second.cmd("PING").await?, "+PONG\r\n");
    let mut third = Wire::connect(stand.proxy.address()).await?;
    assert_eq!(third.rest().await?, b"-ERR max number of clients reached\r\n");
    assert_eq!(second.cmd("QUIT").await?, "+OK\r\n");
    assert_eq!(second.rest().await?, b"");
    wait_until("a place", PATIENCE, async || {
        let Ok(mut wire) = Wire::connect(stand.proxy.address()).await else { return false };
        wire.cmd("PING").await.is_ok_and(|answer| answer == "+PONG\r\n")
    })
    .await?;
    assert_eq!(first.cmd("PING").await?, "+PONG\r\n");
    Ok(())
}

/// A unix socket serves as a port does; the file of a proxy that was killed is no obstacle to the next.
#[tokio::test]
async fn a_unix_socket_is_listened_on() -> Outcome {
    let (postgres, redis) = (postgres().await?, Redis::start(RedisOptions::default()).await?);
    let directory = tempfile::tempdir()?;
    let address = format!("unix:{}", directory.path().join("s").display());
    let listen = format!("[proxy]\nlisten = [\"{address}\"]\n[postgres]\n");
    let text = settings(&postgres, &redis, "unix", &[("[postgres]\n", &listen)]);
    let mut proxy = Cachefence::start(BINARY, &text).await?;
    for _ in 0..2 {
        let mut wire = Wire::connect(&address).await?;
        assert_eq!(wire.cmd("SET a 1").await?, "+OK\r\n");
        assert!(wire.cmd("ASOF 0/1 SET order:1 v").await?.starts_with("-STALE "));
        wire.finish().await?;
        assert_eq!(wire.rest().await?, b"");
        proxy.kill().await?;
        proxy.relaunch().await?;
    }
    proxy.stop().await?;
    assert!(!directory.path().join("s").exists());
    Ok(())
}
