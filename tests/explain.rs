//! What the proxy tells of a key is what then happens to it: `FENCE EXPLAIN`, `FENCE SOURCES`, `FENCE STATUS`,
//! `/explain`; and keys that are fenced by name are judged.

mod support;
mod wire;

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::{StopMode, wait_until};
use serde_json::Value;
use support::{DEFAULT, Fallible, Outcome, PATIENCE, Setup, World, assert_passed, assert_refused};
use wire::Wire;

const OWN_MISS: &str = "a fill after this connection's own miss: ";
const NEW_MISS: &str = "a fill after a miss answered now: ";
const NO_MISS: &str = "a fill without a miss and without ASOF: ";
const SNAPSHOT: &str = "a fill ASOF a snapshot of the primary of now (as last polled): ";

fn texts(reply: Reply) -> Fallible<Vec<String>> {
    match reply {
        Reply::Array(items) => Ok(items.iter().filter_map(Reply::text).collect()),
        other => Err(format!("no array: {other:?}").into()),
    }
}

async fn explain(client: &mut Client, key: &str) -> Fallible<Vec<String>> {
    texts(client.cmd(&["FENCE", "EXPLAIN", key]).await?)
}

async fn sources(client: &mut Client, key: &str) -> Fallible<Vec<String>> {
    texts(client.cmd(&["FENCE", "SOURCES", key]).await?)
}

async fn explained(world: &World, key: &str) -> Fallible<Value> {
    let (status, body) = world.proxy.get(&format!("/explain?key={key}")).await?;
    assert_eq!(status, 200, "{body}");
    Ok(serde_json::from_str(&body)?)
}

/// What the lines say of a fill with this evidence.
#[track_caller]
fn told<'a>(lines: &'a [String], fill: &str) -> &'a str {
    lines.iter().find_map(|line| line.strip_prefix(fill)).unwrap_or_else(|| panic!("{fill}{lines:#?}"))
}

#[track_caller]
fn assert_told(lines: &[String], fill: &str, word: &str) {
    assert!(told(lines, fill).starts_with(word), "{word}: {lines:#?}");
}

async fn until_sources(client: &mut Client, key: &str, wanted: &[&str]) -> Outcome {
    let found = async || sources(client, key).await.is_ok_and(|found| found == wanted);
    Ok(wait_until(&format!("the sources of {key} to be {wanted:?}"), PATIENCE, found).await?)
}

#[tokio::test]
async fn what_is_told_is_what_happens() -> Outcome {
    let mut world = Setup::new(DEFAULT).replica().init().start().await?;
    without_a_write(&world).await?;
    sources_while_the_replica_is_behind(&world).await?;
    http_tells_the_same(&world).await?;
    a_key_fenced_by_name_is_judged(&world).await?;
    status_is_that_of_the_admin_port(&world).await?;
    words_and_places(&world).await?;
    only_for_whom_redis_lets_in(&world).await?;
    world.primary.stop(StopMode::Immediate).await?;
    let mut wire = logged_in(&world).await?;
    wait_until("no source to be told while the feed is lost", PATIENCE, async || {
        wire.cmd("FENCE SOURCES user:1").await.is_ok_and(|found| found == "*0\r\n")
    })
    .await?;
    assert!(wire.cmd("FENCE EXPLAIN user:1").await?.contains("trouble: the feed is lost"));
    Ok(())
}

async fn without_a_write(world: &World) -> Outcome {
    let mut client = world.client().await?;
    let lines = explain(&mut client, "user:1").await?;
    assert!(lines.contains(&"guard: public.users (user:<id>)".to_owned()), "{lines:#?}");
    assert_told(&lines, NO_MISS, "unproven, let in for at most 60.000 s");
    assert_told(&lines, NEW_MISS, "fresh, let in");
    assert_passed(&client.cmd(&["SET", "user:1", "v1"]).await?);
    assert!(matches!(world.redis(&["PTTL", "user:1"]).await?, Reply::Int(1..=60_000)));
    let unguarded = explain(&mut client, "user:x").await?.join("\n");
    assert!(
        unguarded.contains("guard: none") && unguarded.contains("user:<id> (of public.users)"),
        "{unguarded}"
    );
    assert_eq!(sources(&mut client, "user:x").await?, ["primary", "replica-1"]);
    Ok(())
}

async fn sources_while_the_replica_is_behind(world: &World) -> Outcome {
    let (mut client, replica) = (world.client().await?, world.replica()?);
    assert_eq!(sources(&mut client, "user:2").await?, ["primary", "replica-1"]);
    replica.pause_replay().await?;
    world.rename(2, "v2").await?;
    world.applied().await?;
    assert!(!sources(&mut client, "user:2").await?.contains(&"replica-1".to_owned()));
    until_sources(&mut client, "user:2", &["primary"]).await?;
    assert_eq!(sources(&mut client, "user:3").await?, ["primary", "replica-1"], "not written");

    // A miss vouches for what every source shows; a snapshot of the primary for what that one shows.
    assert_eq!(client.cmd(&["GET", "user:2"]).await?, Reply::Nil);
    let lines = explain(&mut client, "user:2").await?;
    for fill in [OWN_MISS, NEW_MISS, NO_MISS] {
        assert_told(&lines, fill, "stale, refused: STALE");
    }
    assert_told(&lines, SNAPSHOT, "fresh, let in");
    assert!(lines.iter().any(|line| line.contains("not yet visible on every source")), "{lines:#?}");
    assert!(
        lines.iter().any(|line| line.contains("1 outstanding on 1 connections (1 of this one's)")),
        "{lines:#?}"
    );
    assert_refused(&client.cmd(&["SET", "user:2", "v1"]).await?, "STALE");
    let snapshot = world.snapshot().await?;
    assert_passed(&client.cmd(&["ASOF", &snapshot, "SET", "user:2", "v2"]).await?);

    replica.resume_replay().await?;
    until_sources(&mut client, "user:2", &["primary", "replica-1"]).await?;
    world.level().await?;
    world.redis(&["DEL", "user:2"]).await?;
    // Another connection: of this one's two misses, the one that was refused is spent, and objects.
    let mut other = world.client().await?;
    assert_told(&explain(&mut other, "user:5").await?, NEW_MISS, "fresh, let in");
    world.rename(5, "v2").await?;
    world.level().await?;
    assert_eq!(other.cmd(&["GET", "user:5"]).await?, Reply::Nil);
    for _ in 0..3 {
        // To be told of a lease does not use it up.
        assert_told(&explain(&mut other, "user:5").await?, OWN_MISS, "fresh, let in");
    }
    assert_told(&explain(&mut client, "user:5").await?, NO_MISS, "stale, refused: STALE");
    assert_refused(&client.cmd(&["SET", "user:5", "v1"]).await?, "STALE");
    assert_passed(&other.cmd(&["SET", "user:5", "v2"]).await?);
    assert_eq!(world.redis(&["PTTL", "user:5"]).await?, Reply::Int(-1));
    Ok(())
}

/// Ages, and positions that polls move, left out.
fn without_numbers(lines: &[String]) -> Vec<String> {
    let no_digits = |line: &String| line.chars().filter(|c| !c.is_ascii_hexdigit()).collect();
    lines.iter().map(no_digits).collect()
}

async fn http_tells_the_same(world: &World) -> Outcome {
    let mut client = world.client().await?;
    for key in ["user:5", "user:6", "nothing"] {
        let value = explained(world, key).await?;
        let words: Vec<String> = serde_json::from_value(value["words"].clone())?;
        assert_eq!(without_numbers(&words), without_numbers(&explain(&mut client, key).await?), "{value:#}");
        assert_eq!(value["guards"].as_array().map(Vec::len), Some(usize::from(key != "nothing")));
    }
    let value = explained(world, "user:5").await?;
    assert_eq!(value.pointer("/fills/0/verdict"), Some(&Value::from("stale")), "{value:#}");
    let elsewhere = explained(world, "user:5&db=3").await?;
    assert_eq!(elsewhere["guards"], serde_json::json!([]), "{elsewhere:#}");
    Ok(())
}

async fn a_key_fenced_by_name_is_judged(world: &World) -> Outcome {
    let (mut slow, mut quick) = (world.client().await?, world.client().await?);
    assert_eq!(slow.cmd(&["GET", "report:1"]).await?, Reply::Nil);
    world.sql.batch_execute("BEGIN; SELECT cachefence.fence('report:1'); COMMIT").await?;
    world.sql.batch_execute("BEGIN; SELECT cachefence.fence('report:2'); ROLLBACK").await?;
    world.level().await?;
    // Its miss came before the message: what it read may be from before the transaction.
    assert_passed(&slow.cmd(&["SET", "report:1", "old"]).await?);
    assert_eq!(world.held("report:1").await?, None, "an old value got in");
    let refused = "cachefence_fills_total{guard=\"(message)\",verdict=\"stale\",action=\"refused\"}";
    assert_eq!(world.proxy.metric(refused).await?, 1.0);
    assert_eq!(quick.cmd(&["GET", "report:1"]).await?, Reply::Nil);
    let lines = explain(&mut quick, "report:1").await?;
    assert_told(&lines, OWN_MISS, "fresh, let in");
    assert!(lines.iter().any(|line| line.contains("cachefence.fence() named it")), "{lines:#?}");
    assert_passed(&quick.cmd(&["SET", "report:1", "new"]).await?);
    assert_eq!(world.held("report:1").await?, Some("new".into()));
    assert_eq!(world.redis(&["PTTL", "report:1"]).await?, Reply::Int(-1));
    assert_passed(&slow.cmd(&["SET", "report:2", "free"]).await?);
    assert_eq!(world.held("report:2").await?, Some("free".into()));
    assert_eq!(world.proxy.metric("cachefence_named_keys").await?, 1.0);
    Ok(())
}

async fn status_is_that_of_the_admin_port(world: &World) -> Outcome {
    let told = world.client().await?.cmd(&["FENCE", "STATUS"]).await?.text().unwrap_or_default();
    let value = |name: &str| told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let status = world.status().await?;
    for section in ["# Proxy", "# Feed", "# Sources", "# Fence", "# Cache", "# Guards"] {
        assert!(told.lines().any(|line| line == section), "{section}: {told}");
    }
    assert_eq!(value("contract"), status["contract"].as_str());
    assert_eq!(value("feed_lost"), Some("0"));
    assert_eq!(value("fence_keys").map(str::to_owned), status.pointer("/fence/keys").map(Value::to_string));
    assert!(value("source1").is_some_and(|line| line.contains("name=replica-1")), "{told}");
    assert!(value("fence_floor_lsn").is_some_and(|lsn| lsn.contains('/')), "{told}");
    Ok(())
}

/// Errors in Redis's words, order, transactions, RESP3, subscriptions.
async fn words_and_places(world: &World) -> Outcome {
    let mut wire = Wire::connect(world.proxy.address()).await?;
    for (line, reply) in [
        ("FENCE", "-ERR wrong number of arguments for 'fence' command\r\n"),
        ("FENCE explain", "-ERR wrong number of arguments for 'fence|explain' command\r\n"),
        ("FENCE STATUS x", "-ERR wrong number of arguments for 'fence|status' command\r\n"),
        ("FENCE nothing x", "-ERR unknown subcommand 'nothing'. Try FENCE HELP.\r\n"),
        ("MULTI", "+OK\r\n"),
        ("FENCE SOURCES user:1", "-ERR cachefence: this command cannot be part of a transaction\r\n"),
        ("EXEC", "-EXECABORT Transaction discarded because of previous errors.\r\n"),
    ] {
        assert_eq!(wire.cmd(line).await?, reply, "{line}");
    }
    assert!(wire.cmd("FENCE HELP").await?.starts_with("*9\r\n+FENCE <subcommand>"));
    let line = b"SET order:1 a\r\nFENCE SOURCES user:9\r\nFENCE\r\nGET order:1\r\n";
    wire.send(line).await?;
    let mut replies = Vec::new();
    for _ in 0..4 {
        replies.push(String::from_utf8(wire.reply().await?)?);
    }
    let named = "*2\r\n$7\r\nprimary\r\n$9\r\nreplica-1\r\n";
    let wrong = "-ERR wrong number of arguments for 'fence' command\r\n";
    assert_eq!(replies, ["+OK\r\n", named, wrong, "$1\r\na\r\n"]);
    wire.cmd("HELLO 3").await?;
    let status = wire.cmd("FENCE STATUS").await?;
    assert!(status.starts_with('=') && status.contains("txt:# Proxy\r\n"), "{status}");
    assert_eq!(wire.cmd("FENCE SOURCES user:9").await?, named);

    let mut listener = Wire::connect(world.proxy.address()).await?;
    listener.cmd("SUBSCRIBE channel").await?;
    assert!(listener.cmd("FENCE STATUS").await?.starts_with("-ERR Can't execute 'fence': only "));
    Ok(())
}

/// Redis says who may ask, as of any other command. (New connections get lanes of after the change within a second.)
async fn only_for_whom_redis_lets_in(world: &World) -> Outcome {
    let rules = ["ACL", "SETUSER", "half", "on", ">half", "~user:*", "+exists"];
    world.redis(&rules).await?;
    world.redis(&["CONFIG", "SET", "requirepass", "secret"]).await?;
    wait_until("strangers to be refused", PATIENCE, async || {
        let Ok(mut stranger) = Wire::connect(world.proxy.address()).await else { return false };
        stranger.cmd("GET user:1").await.is_ok_and(|reply| reply.starts_with("-NOAUTH"))
    })
    .await?;
    let mut stranger = Wire::connect(world.proxy.address()).await?;
    for line in ["FENCE STATUS", "FENCE EXPLAIN user:1", "FENCE SOURCES user:1"] {
        assert_eq!(stranger.cmd(line).await?, "-NOAUTH Authentication required.\r\n", "{line}");
    }
    assert_eq!(stranger.cmd("AUTH half half").await?, "+OK\r\n");
    assert!(stranger.cmd("FENCE SOURCES user:1").await?.starts_with('*'));
    assert!(stranger.cmd("FENCE EXPLAIN order:1").await?.starts_with("-NOPERM"));
    Ok(())
}

async fn logged_in(world: &World) -> Fallible<Wire> {
    let mut wire = Wire::connect(world.proxy.address()).await?;
    assert_eq!(wire.cmd("AUTH secret").await?, "+OK\r\n");
    Ok(wire)
}
