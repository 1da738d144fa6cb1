//! Clients that want others to suffer, and keys that are made to deceive who reads of them.

use cachefence::demo::client::Reply;
use cachefence::demo::servers::{Cachefence, wait_until};

use super::wire::{BINARY, Outcome, PATIENCE, Wire};
use super::{Servers, logged_in, password};

/// Who has not logged in is told nothing and changes nothing: the proxy has no answer of its own for such a client.
pub async fn a_stranger_learns_nothing(servers: &Servers) -> Outcome {
    let proxy = servers.proxy("strangers", &[]).await?;
    let mut known = logged_in(proxy.address()).await?;
    assert_eq!(known.cmd("SET order:2 kept").await?, "+OK\r\n");
    let before = counted(&proxy.metrics().await?);
    for command in [
        "GET user:1",
        "SET order:1 v",
        "ASOF 0/1 SET order:1 v",
        "ASOF version=1 SET order:1 v",
        "HSET order:2 f v",
        "EVAL return(1) 1 order:2",
        "MSET user:1 v order:1 v",
        "RENAME a order:1",
        "EXPIRE order:2 1",
        "AFTER FFFF/0 TIMEOUT 3600000 GET user:1",
        "FENCE EXPLAIN user:1",
        "FENCE SOURCES user:1",
        "FENCE STATUS",
        "FENCE HELP",
        "GETRANGE order:1 0 1",
        "SUBSCRIBE a",
        "MONITOR",
        "NOSUCH user:1",
    ] {
        let mut stranger = Wire::connect(proxy.address()).await?;
        let answer = stranger.cmd(command).await?;
        assert!(answer.starts_with("-NOAUTH "), "{command}: {answer}");
    }
    // Redis's limits for strangers hold here too: not a megabyte of one is kept.
    let mut stranger = Wire::connect(proxy.address()).await?;
    stranger.send(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1000000\r\n").await?;
    let answer = String::from_utf8_lossy(&stranger.rest().await?).into_owned();
    assert_eq!(answer, "-ERR Protocol error: unauthenticated bulk length\r\n");
    assert_eq!(counted(&proxy.metrics().await?), before, "nothing was judged");
    assert_eq!(servers.direct().await?.cmd(&["GET", "order:2"]).await?, Reply::bulk("kept"));
    Ok(())
}

/// The series of fills and reads, with their values.
fn counted(metrics: &str) -> Vec<String> {
    let of = |line: &&str| {
        line.starts_with("cachefence_fills_total") || line.starts_with("cachefence_reads_total")
    };
    metrics.lines().filter(of).map(str::to_owned).collect()
}

/// Half-sent requests fill the memory: who sent most has to go, and nobody else.
pub async fn who_fills_the_memory_pays(servers: &Servers) -> Outcome {
    const MB: usize = 1_000_000;
    let limit = ("[postgres]\n", "[proxy]\nmax_buffered = 41943040\n[postgres]\n");
    let proxy = servers.proxy("memory", &[limit]).await?;
    let held = async |from: usize| {
        wait_until("the half-sent requests to be held", PATIENCE, async || {
            proxy.metric("cachefence_buffered_bytes").await.is_ok_and(|bytes| bytes >= from as f64)
        })
        .await
    };
    // Not SET: that goes out while it comes in. A buffer has room for up to twice what is in it.
    let half = |megabytes: usize| {
        let mut bytes = b"*3\r\n$4\r\nMSET\r\n$3\r\nbig\r\n$50000000\r\n".to_vec();
        bytes.resize(bytes.len() + megabytes * MB, b'x');
        bytes
    };
    let mut largest = logged_in(proxy.address()).await?;
    largest.send(&half(24)).await?;
    held(24 * MB).await?;
    let mut others = Vec::new();
    for _ in 0..5 {
        let mut other = logged_in(proxy.address()).await?;
        other.send(&half(4)).await?;
        others.push(other);
    }
    assert_eq!(largest.rest().await?, b"", "closed, without the rest of its request");
    assert_eq!(proxy.metric("cachefence_evicted_clients_total").await?, 1.0);
    assert!(proxy.log().contains("proxy.max_buffered"), "{}", proxy.log());
    // The others can end their requests.
    held(20 * MB).await?;
    let mut rest = vec![b'x'; 46 * MB];
    rest.extend(b"\r\n");
    let mut other = others.remove(0);
    drop(others);
    wait_until("the others' room to be free", PATIENCE, async || {
        proxy.metric("cachefence_buffered_bytes").await.is_ok_and(|bytes| bytes < 10.0 * MB as f64)
    })
    .await?;
    other.send(&rest[40 * MB..]).await?;
    assert_eq!(logged_in(proxy.address()).await?.cmd("PING").await?, "+PONG\r\n");
    drop(other);
    wait_until("all room to be free", PATIENCE, async || {
        proxy.metric("cachefence_buffered_bytes").await.is_ok_and(|bytes| bytes == 0.0)
    })
    .await?;
    Ok(())
}

/// A key that would end a line, a label or a page's element where it is told of.
const HOSTILE: &str =
    "a\r\nFORGED ready=1\n\u{1b}[31mred\u{7}</td><script>alert(1)</script>\"'\\,{}=\u{202e}";

/// What a key, a row or a name says stays within its line, its field and its element; and no series is made of it.
pub async fn keys_deceive_nobody(servers: &Servers) -> Outcome {
    let mut proxy =
        Cachefence::launch_logging(BINARY.as_ref(), &servers.settings("hostile", &[]), Some("trace"))?;
    proxy.ready().await?;
    let sql = servers.postgres.client().await?;
    let series = async || -> super::Fallible<usize> { Ok(proxy.metrics().await?.lines().count()) };
    let before = series().await?;
    let key = format!("note:{HOSTILE}");
    let mut client = proxy.client().await?;
    client.cmd(&["AUTH", &password("redis")]).await?;
    servers.direct().await?.cmd(&["SET", &key, "old"]).await?;
    sql.execute("INSERT INTO notes VALUES ($1)", &[&HOSTILE]).await?;
    sql.execute("SELECT pg_logical_emit_message(true, 'cachefence', $1)", &[&format!("free:{HOSTILE}")])
        .await?;
    wait_until("the key to be deleted", PATIENCE, async || {
        matches!(client.cmd(&["GET", &key]).await, Ok(Reply::Nil))
    })
    .await?;
    let refused = client.cmd(&["ASOF", "0/1", "SET", &key, "v"]).await?;
    assert!(matches!(&refused, Reply::Error(error) if error.starts_with("STALE")), "{refused:?}");
    for wrong in
        [&["ASOF", HOSTILE, "SET", &key, "v"][..], &["AFTER", HOSTILE, "GET", &key], &["FENCE", HOSTILE]]
    {
        let answer = client.cmd(wrong).await?;
        assert!(matches!(&answer, Reply::Error(_)), "{answer:?}");
        assert_eq!(
            client.cmd(&["PING"]).await?,
            Reply::Simple("PONG".into()),
            "{wrong:?}: one reply, not two"
        );
    }
    let Reply::Array(lines) = client.cmd(&["FENCE", "EXPLAIN", &key]).await? else {
        return Err("no lines".into());
    };
    for line in lines.iter().filter_map(Reply::text) {
        assert!(!line.contains(char::is_control), "{line:?}");
    }
    let encoded: String = key.bytes().map(|b| format!("%{b:02x}")).collect();
    let (status, body) = proxy.get(&format!("/explain?key={encoded}")).await?;
    let explained: serde_json::Value = serde_json::from_str(&body)?;
    assert!(
        status == 200 && explained["guards"].as_array().is_some_and(|guards| guards.len() == 1),
        "{body}"
    );
    assert_eq!(series().await?, before, "no series for a key");
    let log = proxy.log();
    assert!(!log.contains(['\u{1b}', '\u{7}', '\r']), "no control character in the log");
    assert!(!log.lines().any(|line| line.starts_with("FORGED")), "no line that somebody else wrote");
    Ok(())
}
