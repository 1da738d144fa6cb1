//! Commands that wait: `AFTER` for the feed, and with `coalesce` a miss for somebody else's fill.

mod support;

use std::time::Duration;

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::wait_until;
use support::{Fallible, Outcome, PATIENCE, Setup, World, assert_passed, assert_refused, text};

/// Long enough for a reply that does come, on any machine; what is waited for in vain costs this much.
const A_WHILE: Duration = Duration::from_millis(150);

/// Nothing but the feed's own commits wakes it: no look at its health ends it while it is stopped.
const PATIENT: &str = "
[[guard]]
table = \"users\"
keys = [\"user:<id>\"]
reply = \"error\"
";

async fn patient() -> Fallible<World> {
    let mut setup = Setup::new(PATIENT);
    setup.replace("[postgres]\n", "[postgres]\nfeed_lost_after = \"120s\"\nmax_lag = \"120s\"\n");
    setup.start().await
}

/// Where the log is now: beyond every commit that has returned.
async fn position(world: &World) -> Fallible<String> {
    text(&world.sql, "SELECT pg_current_wal_insert_lsn()::text").await
}

/// The process that sends the log to the proxy, to be stopped and continued.
struct Walsender(i32);

impl Walsender {
    async fn of(world: &World) -> Fallible<Self> {
        let sql = "SELECT pid FROM pg_stat_replication WHERE application_name = 'cachefence'";
        Ok(Self(world.sql.query_one(sql, &[]).await?.try_get(0)?))
    }

    fn signal(&self, signal: &str) -> Outcome {
        let sent = std::process::Command::new("kill").arg(signal).arg(self.0.to_string()).status()?;
        if sent.success() { Ok(()) } else { Err(format!("kill {signal} {}", self.0).into()) }
    }
}

impl Drop for Walsender {
    fn drop(&mut self) {
        // A stopped process would hold up the server's end.
        let _ = self.signal("-CONT");
    }
}

/// A command that waits, though not for long.
fn late<'a>(lsn: &'a str, command: &[&'a str]) -> Vec<&'a str> {
    [&["AFTER", lsn, "TIMEOUT", "30"], command].concat()
}

/// A client writes, and reads after its own write: the key is deleted by then, however late the feed is. Only its own
/// commands wait, in their order.
#[tokio::test]
async fn a_read_after_a_write_does_not_see_what_was_there_before() -> Outcome {
    let world = patient().await?;
    let (mut client, mut other) = (world.client().await?, world.client().await?);
    world.redis(&["SET", "user:1", "old"]).await?;
    let walsender = Walsender::of(&world).await?;
    walsender.signal("-STOP")?;
    world.rename(1, "v2").await?;
    let lsn = position(&world).await?;

    client.send(&["GET", "user:1"]).await?;
    client.send(&["AFTER", &lsn, "TIMEOUT", "600000", "GET", "user:1"]).await?;
    client.send(&["PING"]).await?;
    assert_eq!(client.receive().await?, Reply::bulk("old"), "a plain read is behind the feed");
    assert_eq!(client.receive_within(A_WHILE).await?, None, "it waits");
    assert_eq!(other.cmd(&["GET", "user:1"]).await?, Reply::bulk("old"), "nobody else does");

    // In time, or not at all: a read is a miss, whatever Redis holds, and anything else an error.
    assert_eq!(other.cmd(&late(&lsn, &["GET", "user:1"])).await?, Reply::Nil);
    assert_eq!(other.cmd(&late(&lsn, &["EXISTS", "user:1", "user:2"])).await?, Reply::Int(0));
    for command in [&["SET", "user:1", "x"][..], &["GETDEL", "user:1"], &["PING"], &["MULTI"]] {
        assert_refused(&other.cmd(&late(&lsn, command)).await?, "LAGGING");
    }
    assert_eq!(other.cmd(&["GET", "user:1"]).await?, Reply::bulk("old"), "none of it was done");

    walsender.signal("-CONT")?;
    assert_eq!(client.receive().await?, Reply::Nil, "its own write is deleted");
    assert_eq!(client.receive().await?, Reply::Simple("PONG".into()));
    Ok(())
}

/// Positions move without commits of guarded tables, and without any.
#[tokio::test]
async fn a_position_is_reached_whatever_was_written() -> Outcome {
    let world = patient().await?;
    let mut client = world.client().await?;
    let mut reached = async |command: &[&str]| -> Fallible<Reply> {
        let lsn = position(&world).await?;
        Ok(client.cmd(&[&["AFTER", &lsn, "TIMEOUT", "600000"], command].concat()).await?)
    };
    assert_eq!(reached(&["PING"]).await?, Reply::Simple("PONG".into()), "on an idle database");
    for statement in [
        "INSERT INTO unguarded VALUES (1)",
        "BEGIN; INSERT INTO users VALUES (777, 'x'); ROLLBACK",
        "SELECT pg_logical_emit_message(false, 'other', 'x')",
        "SELECT pg_switch_wal(); INSERT INTO unguarded VALUES (2)",
        "CREATE TABLE more (id int)",
    ] {
        world.sql.batch_execute(statement).await?;
        assert_eq!(reached(&["PING"]).await?, Reply::Simple("PONG".into()), "after {statement}");
    }
    // A thousand small commits, most of which end somewhere in a page, some at its very end.
    for n in 0..200 {
        let sql = format!("SELECT pg_logical_emit_message(true, 'other', repeat('x', {}))", n * 8);
        world.sql.batch_execute(&sql).await?;
        assert_eq!(reached(&["GET", "user:1"]).await?, Reply::Nil);
    }
    Ok(())
}

/// What Redis holds may be older than what was deleted from it: one that was rolled back is brought level first.
#[tokio::test]
async fn a_position_is_not_reached_before_redis_is_level() -> Outcome {
    let world = patient().await?;
    let (mut client, mut other) = (world.client().await?, world.client().await?);
    world.rename(1, "v2").await?;
    world.level().await?;
    let lsn = position(&world).await?;
    assert_eq!(client.cmd(&["AFTER", &lsn, "GET", "user:1"]).await?, Reply::Nil);

    // As after a failover: no marker, and what was deleted is back. It cannot be purged yet.
    for command in [&["ACL", "SETUSER", "default", "-scan"][..], &["DEL", "cachefence:cachefence"]] {
        world.redis(command).await?;
    }
    world.redis(&["SET", "user:1", "v1"]).await?;
    world.redis(&["CLIENT", "KILL", "TYPE", "normal"]).await?;
    wait_until("Redis to be out of step", PATIENCE, async || {
        world.status().await.is_ok_and(|status| status.pointer("/cache/connected") == Some(&false.into()))
    })
    .await?;
    assert_eq!(other.cmd(&["GET", "user:1"]).await?, Reply::bulk("v1"), "the guard serves meanwhile");
    assert_eq!(other.cmd(&late(&lsn, &["GET", "user:1"])).await?, Reply::Nil);
    assert_refused(&other.cmd(&late(&lsn, &["PING"])).await?, "LAGGING");
    client.send(&["AFTER", &lsn, "TIMEOUT", "600000", "GET", "user:1"]).await?;
    assert_eq!(client.receive_within(A_WHILE).await?, None, "it waits");
    world.redis(&["ACL", "SETUSER", "default", "+scan"]).await?;
    assert_eq!(client.receive().await?, Reply::Nil);
    assert_eq!(world.held("user:1").await?, None);
    Ok(())
}

/// Whatever is not understood is an error at once; a transaction can begin after a position, but has none inside.
#[tokio::test]
async fn what_after_takes() -> Outcome {
    let world = patient().await?;
    let mut client = world.client().await?;
    let errors: [(&[&str], &str); 8] = [
        (&["AFTER"], "ERR wrong number"),
        (&["AFTER", "0/1"], "ERR wrong number"),
        (&["AFTER", "0/1", "TIMEOUT", "5"], "ERR wrong number"),
        (&["AFTER", "0/1", "TIMEOUT", "-1", "PING"], "ERR cachefence: AFTER: the timeout"),
        (&["AFTER", "0/1", "TIMEOUT", "x", "PING"], "ERR cachefence: AFTER: the timeout"),
        (&["AFTER", "750:755:", "PING"], "ERR cachefence: AFTER: \"750:755:\" is not an LSN"),
        (&["AFTER", "0/1", "AFTER", "0/2", "PING"], "ERR cachefence: AFTER takes one position"),
        (&["AFTER", "0/1", "NOSUCHCOMMAND"], "ERR unknown command"),
    ];
    for (command, error) in errors {
        assert_refused(&client.cmd(command).await?, error);
    }
    let all: [&[&str]; 4] =
        [&["after", "0/1", "timeout", "0", "MULTI"], &["PING"], &["EXEC"], &["AFTER", "0/1", "PING"]];
    let replies = client.pipeline(&all).await?;
    assert_eq!(replies[2], Reply::Array(vec![Reply::Simple("PONG".into())]));
    assert_eq!(replies[3], Reply::Simple("PONG".into()));
    client.cmd(&["MULTI"]).await?;
    assert_refused(&client.cmd(&["AFTER", "0/1", "PING"]).await?, "ERR");
    assert_refused(&client.cmd(&["EXEC"]).await?, "EXECABORT");

    // It wraps a fill with evidence as well, and goes away with its client.
    let snapshot = world.snapshot().await?;
    let fill = ["AFTER", "0/1", "ASOF", &snapshot, "SET", "user:1", "v1"];
    assert_passed(&client.cmd(&fill).await?);
    client.send(&["AFTER", "FFFFFFFF/0", "TIMEOUT", "600000", "PING"]).await?;
    drop(client);
    wait_until("the client to be gone", PATIENCE, async || {
        world.proxy.metric("cachefence_clients").await.is_ok_and(|clients| clients == 0.0)
    })
    .await?;
    Ok(())
}

fn coalescing(patience: &str) -> Setup {
    Setup::new(&format!("{PATIENT}coalesce = \"{patience}\"\n"))
}

async fn readers(world: &World, count: usize, key: &str) -> Fallible<Vec<Client>> {
    let mut readers = Vec::new();
    for _ in 0..count {
        let mut reader = world.client().await?;
        reader.send(&["GET", key]).await?;
        readers.push(reader);
    }
    Ok(readers)
}

/// A key is read by many at once. One of them is told that it is not there; all others wait, for longer than the test
/// would, and get what that one fills in. Their connections go on as ever.
#[tokio::test]
async fn one_reader_fills_and_the_others_wait_for_it() -> Outcome {
    let world = coalescing("60s").start().await?;
    let mut first = world.client().await?;
    assert_eq!(first.cmd(&["GET", "user:1"]).await?, Reply::Nil);
    assert_eq!(first.cmd(&["GET", "user:1"]).await?, Reply::Nil, "nobody waits for himself");
    let mut others = readers(&world, 30, "user:1").await?;
    assert_eq!(others[7].receive_within(A_WHILE).await?, None, "they wait");
    for other in &mut others {
        // Not executed before the read is answered.
        other.send(&["SET", "unguarded", "x"]).await?;
    }
    assert_eq!(world.held("unguarded").await?, None);
    // Of another key, and in a pipeline, which is executed while it goes on: nobody waits.
    let mut free = world.client().await?;
    assert_eq!(free.cmd(&["GET", "user:2"]).await?, Reply::Nil);
    let piped = free.pipeline(&[&["GET", "user:1"], &["PING"]]).await?;
    assert_eq!(piped, [Reply::Nil, Reply::Simple("PONG".into())]);

    assert_passed(&first.cmd(&["SET", "user:1", "v1"]).await?);
    for other in &mut others {
        assert_eq!(other.receive().await?, Reply::bulk("v1"));
        assert_eq!(other.receive().await?, Reply::ok());
    }
    // A fill in a transaction is one as well.
    let mut others = readers(&world, 2, "user:2").await?;
    assert_eq!(others[1].receive_within(A_WHILE).await?, None, "they wait");
    free.pipeline(&[&["MULTI"], &["SET", "user:2", "v1"], &["EXEC"]]).await?;
    for other in &mut others {
        assert_eq!(other.receive().await?, Reply::bulk("v1"));
    }
    // Whoever goes waits no longer.
    assert_eq!(free.cmd(&["GET", "user:3"]).await?, Reply::Nil);
    let clients = world.proxy.metric("cachefence_clients").await?;
    let mut gone = readers(&world, 3, "user:3").await?;
    assert_eq!(gone[2].receive_within(A_WHILE).await?, None, "they wait");
    drop(gone);
    let what = "those that are gone to be counted no more";
    let left = async || world.proxy.metric("cachefence_clients").await.is_ok_and(|now| now == clients);
    wait_until(what, PATIENCE, left).await?;
    Ok(())
}

/// A fill whose connection breaks is ended from outside, and with it the wait for it.
#[tokio::test]
async fn whoever_waits_for_a_fill_that_is_ended_is_woken() -> Outcome {
    let mut setup = coalescing("60s");
    setup.replace("[redis]\n", "[redis]\nupstream = \"pinned\"\n");
    let world = setup.start().await?;
    let (mut filler, mut operator) = (world.client().await?, world.redis.client().await?);
    assert_eq!(filler.cmd(&["GET", "user:1"]).await?, Reply::Nil);
    assert_eq!(operator.cmd(&["CLIENT", "PAUSE", "60000", "WRITE"]).await?, Reply::ok());
    filler.send(&["SET", "user:1", "v1"]).await?;
    let mut reader = readers(&world, 1, "user:1").await?.remove(0);
    assert_eq!(reader.receive_within(A_WHILE).await?, None, "it waits");
    let listed = operator.cmd(&["CLIENT", "LIST"]).await?.text().unwrap_or_default();
    // The proxy's own connection has no number behind its name.
    let fills = |line: &&str| line.contains(" cmd=set ") && line.contains(":cachefence:") && numbered(line);
    let id = listed.lines().find(fills).and_then(|line| line.strip_prefix("id=")?.split(' ').next());
    let id = id.ok_or(format!("no fill in {listed}"))?;
    assert_eq!(operator.cmd(&["CLIENT", "KILL", "ID", id]).await?, Reply::Int(1));
    assert!(matches!(filler.receive().await?, Reply::Error(_)));
    assert_eq!(reader.receive_within(A_WHILE).await?, None, "the fill may come yet");
    assert_eq!(operator.cmd(&["CLIENT", "UNPAUSE"]).await?, Reply::ok());
    assert_eq!(reader.receive().await?, Reply::Nil);
    Ok(())
}

fn numbered(line: &str) -> bool {
    let name = line.split(' ').find_map(|field| field.strip_prefix("name="));
    name.is_some_and(|name| name.matches(':').count() == 3)
}

/// Whoever was told to fill may never do it, or may be refused, or be gone. The others wait no longer than they are told
/// to, and then have a miss of their own, which vouches for their own fill.
#[tokio::test]
async fn who_waits_in_vain_fills_himself() -> Outcome {
    let world = coalescing("100ms").start().await?;
    let mut idle = world.client().await?;
    assert_eq!(idle.cmd(&["GET", "user:1"]).await?, Reply::Nil);
    let mut others = readers(&world, 3, "user:1").await?;
    for other in &mut others {
        assert_eq!(other.receive().await?, Reply::Nil);
    }
    // After all of them: a fill that comes while somebody waits ends his wait with a hit.
    for other in &mut others {
        // Not fresh as long as the idle one's miss may still be filled, but with evidence of its own.
        assert_passed(&other.cmd(&["SET", "user:1", "v1"]).await?);
    }

    let world = coalescing("60s").start().await?;
    let mut stale = world.client().await?;
    assert_eq!(stale.cmd(&["GET", "user:1"]).await?, Reply::Nil);
    world.rename(1, "v2").await?;
    world.level().await?;
    let mut one = readers(&world, 1, "user:1").await?.remove(0);
    assert_eq!(one.receive_within(A_WHILE).await?, None, "it waits");
    assert_refused(&stale.cmd(&["SET", "user:1", "v1"]).await?, "STALE");
    // Woken by the refusal, it has a miss of its own, and the next one waits for that. (Two that are woken at once may
    // both have one, if different threads serve them.)
    assert_eq!(one.receive().await?, Reply::Nil);
    let mut two = readers(&world, 1, "user:1").await?.remove(0);
    assert_eq!(two.receive_within(A_WHILE).await?, None, "it waits");
    assert_passed(&one.cmd(&["SET", "user:1", "v2"]).await?);
    assert_eq!(two.receive().await?, Reply::bulk("v2"));
    Ok(())
}
