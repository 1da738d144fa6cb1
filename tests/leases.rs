//! Leases: which fill a miss vouches for, and what becomes of a fill that none vouches for.

mod support;

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::wait_until;
use support::{EXACT, Fallible, Outcome, PATIENCE, Setup, World, assert_passed, assert_refused};

/// Fills without evidence live for twenty seconds at most; whatever else the guard says is appended.
fn guard(more: &str) -> String {
    format!(
        "[[guard]]\ntable = \"users\"\nkeys = [\"user:<id>\"]\nreply = \"error\"\nunproven_ttl = \"20s\"\n{more}\n"
    )
}

/// What is left of a key's life in Redis itself: -1 if there is no end to it, -2 if it is not there.
async fn ttl(world: &World, key: &str) -> Fallible<i64> {
    match world.redis(&["PTTL", key]).await? {
        Reply::Int(ttl) => Ok(ttl),
        other => Err(format!("PTTL answered {other:?}").into()),
    }
}

/// Asserts that a key was capped.
async fn assert_capped(world: &World, key: &str) -> Outcome {
    let ttl = ttl(world, key).await?;
    assert!((1..=20_000).contains(&ttl), "{key}: {ttl}");
    Ok(())
}

/// A miss, and what the primary showed after it.
async fn miss(world: &World, client: &mut Client, id: i64) -> Fallible<String> {
    assert_eq!(client.cmd(&["GET", &format!("user:{id}")]).await?, Reply::Nil);
    world.name(id).await
}

async fn set(client: &mut Client, id: i64, value: &str) -> Fallible<Reply> {
    Ok(client.cmd(&["SET", &format!("user:{id}"), value]).await?)
}

/// Two connections miss around a commit, and the newer one's fill comes first: its own miss would prove it, but the
/// older miss is outstanding, so it is capped, and briefly. The older one's fill is refused. Which fill was whose is
/// not known, so the older miss objects until its time ends; then a fill is proven again.
#[tokio::test]
async fn two_misses_around_a_commit_whose_fills_come_in_the_wrong_order() -> Outcome {
    let world = Setup::new(&guard("")).start().await?;
    let (mut a, mut b) = (world.client().await?, world.client().await?);
    let old = miss(&world, &mut a, 1).await?;
    world.rename(1, "v2").await?;
    world.level().await?;
    let new = miss(&world, &mut b, 1).await?;
    assert_passed(&set(&mut b, 1, &new).await?);
    assert_capped(&world, "user:1").await?;
    assert_refused(&set(&mut a, 1, &old).await?, "STALE");
    assert_eq!(world.held("user:1").await?, Some("v2".into()));
    assert_eq!(world.fills("unproven", "capped").await?, 1.0);

    wait_until("a fill to be proven again", PATIENCE, async || {
        let again = async {
            world.redis(&["DEL", "user:1"]).await?;
            let new = miss(&world, &mut a, 1).await?;
            assert_passed(&set(&mut a, 1, &new).await?);
            ttl(&world, "user:1").await
        };
        again.await.is_ok_and(|ttl| ttl == -1)
    })
    .await?;
    Ok(())
}

/// The same on one connection, which two parts of an application share. Whose fill is whose cannot be told, so with
/// `unproven = "refuse"` neither gets in, nor anything else until the older miss has ended.
#[tokio::test]
async fn two_misses_on_one_connection_whose_fills_come_in_any_order() -> Outcome {
    let world = Setup::new(EXACT).start().await?;
    let mut shared = world.client().await?;
    for first in ["v1", "v2"] {
        let second = if first == "v1" { "v2" } else { "v1" };
        let id = if first == "v1" { 1 } else { 2 };
        miss(&world, &mut shared, id).await?;
        world.rename(id, "v2").await?;
        world.level().await?;
        miss(&world, &mut shared, id).await?;
        assert_refused(&set(&mut shared, id, first).await?, "UNPROVEN");
        assert_refused(&set(&mut shared, id, second).await?, "STALE");
        wait_until("a fill to be proven again", PATIENCE, async || {
            let again = async {
                miss(&world, &mut shared, id).await?;
                set(&mut shared, id, "v2").await
            };
            again.await.is_ok_and(|reply| reply == Reply::ok())
        })
        .await?;
    }
    Ok(())
}

/// A late write-through, on a connection that missed nothing, finds the miss of another connection. It gets nothing
/// from it, and takes nothing: the reader's own fill passes after it. With `lease = "key"` it is let in, which is
/// what that setting says.
#[tokio::test]
async fn a_late_write_through_does_not_borrow_a_miss() -> Outcome {
    let mut world = Setup::new(EXACT).start().await?;
    let (mut late, mut reader) = (world.client().await?, world.client().await?);
    world.rename(1, "v2").await?;
    world.level().await?;
    let new = miss(&world, &mut reader, 1).await?;
    assert_refused(&set(&mut late, 1, "v1").await?, "STALE");
    assert_eq!(world.held("user:1").await?, None);
    assert_passed(&set(&mut reader, 1, &new).await?);
    assert_eq!(world.held("user:1").await?, Some("v2".into()));

    let guards = format!("{EXACT}lease = \"key\"\n");
    world.proxy = restarted(&mut world, &guards).await?;
    let (mut late, mut reader) = (world.client().await?, world.client().await?);
    world.rename(1, "v3").await?;
    world.level().await?;
    miss(&world, &mut reader, 1).await?;
    assert_passed(&set(&mut late, 1, "v2").await?);
    assert_eq!(world.held("user:1").await?, Some("v2".into()));
    Ok(())
}

/// The proxy with other guards, on the same slot, and without the marker: a predecessor's misses would make it
/// distrust leases for a while.
async fn restarted(world: &mut World, guards: &str) -> Fallible<cachefence::demo::servers::Cachefence> {
    world.proxy.stop().await?;
    world.redis(&["DEL", "cachefence:cachefence"]).await?;
    let settings = world.servers.clone() + guards;
    Ok(cachefence::demo::servers::Cachefence::start(support::BINARY, &settings).await?)
}

/// A pool sends the fill on another connection than the miss.
///
/// With `lease = "connection"` nothing vouches for it there, also not a newer miss of that connection's own, because
/// the older one is outstanding. With `lease = "key"` the miss counts wherever it was, and the older one still
/// objects. With `lease = "off"` no miss counts, not even the connection's own.
#[tokio::test]
async fn a_pool_that_moves_a_fill_to_another_connection() -> Outcome {
    let mut world = Setup::new(EXACT).start().await?;
    for (lease, moved, own) in [("connection", false, true), ("key", true, true), ("off", false, false)] {
        world.proxy = restarted(&mut world, &format!("{EXACT}lease = \"{lease}\"\n")).await?;
        for id in 1..=3 {
            world.rename(id, lease).await?;
        }
        world.level().await?;

        // Moved to a connection without a miss; nothing was written since.
        let (mut a, mut b) = (world.client().await?, world.client().await?);
        miss(&world, &mut a, 1).await?;
        let reply = set(&mut b, 1, lease).await?;
        assert_eq!(reply == Reply::ok(), moved, "{lease}: {reply:?}");

        // Not moved.
        miss(&world, &mut a, 2).await?;
        let reply = set(&mut a, 2, lease).await?;
        assert_eq!(reply == Reply::ok(), own, "{lease}: {reply:?}");

        // An old read, moved to a connection with a newer miss of its own.
        miss(&world, &mut a, 3).await?;
        world.rename(3, "newer").await?;
        world.level().await?;
        miss(&world, &mut b, 3).await?;
        let reply = set(&mut b, 3, lease).await?;
        assert_refused(&reply, if own { "UNPROVEN" } else { "STALE" });
        assert_eq!(world.held("user:3").await?, None, "{lease}");
    }
    Ok(())
}

/// A pool swaps the fills of two misses around a commit. The new value, which comes on the connection of the older
/// miss, is refused there; but that miss is still outstanding, and keeps the old value out wherever it comes.
#[tokio::test]
async fn a_pool_that_swaps_fills() -> Outcome {
    let world = Setup::new(EXACT).start().await?;
    let (mut a, mut b, mut c) = (world.client().await?, world.client().await?, world.client().await?);
    let old = miss(&world, &mut a, 1).await?;
    world.rename(1, "v2").await?;
    world.level().await?;
    miss(&world, &mut b, 1).await?;
    let new = miss(&world, &mut c, 1).await?;
    assert_refused(&set(&mut a, 1, &new).await?, "STALE");
    assert_refused(&set(&mut b, 1, &old).await?, "UNPROVEN");
    assert_eq!(world.held("user:1").await?, None);
    Ok(())
}

/// A miss vouches for `lease_ttl`, and no longer.
#[tokio::test]
async fn a_miss_ends() -> Outcome {
    let fence = "[fence]\nlease_ttl = \"100ms\"\nhistory = \"1s\"\n";
    let world = Setup::new(&(fence.to_owned() + &guard("unproven = \"refuse\""))).start().await?;
    let mut client = world.client().await?;
    miss(&world, &mut client, 1).await?;
    wait_until("the lease to end", PATIENCE, async || {
        let status = world.status().await.unwrap_or_default();
        status.pointer("/fence/leases").is_some_and(|leases| *leases == 0)
    })
    .await?;
    assert_refused(&set(&mut client, 1, "v1").await?, "UNPROVEN");
    assert_eq!(world.held("user:1").await?, None);
    Ok(())
}

/// Every command that puts data in, with the keys that it fills; `PREPARE` stands for what is there before, with a
/// TTL longer than any cap.
const FILLS: &[(&[&str], &[&str], Option<&str>)] = &[
    (&["SET", "user:1", "x"], &["user:1"], None),
    (&["SET", "user:2", "x", "EX", "300"], &["user:2"], None),
    (&["SET", "user:3", "x", "KEEPTTL"], &["user:3"], Some("string")),
    (&["SET", "user:4", "x", "PX", "300000", "NX"], &["user:4"], None),
    (&["SETEX", "user:5", "300", "x"], &["user:5"], None),
    (&["PSETEX", "user:6", "300000", "x"], &["user:6"], None),
    (&["SETNX", "user:7", "x"], &["user:7"], None),
    (&["GETSET", "user:8", "x"], &["user:8"], Some("string")),
    (&["MSET", "user:9", "x", "free", "x", "user:10", "x"], &["user:9", "user:10"], None),
    (&["MSETNX", "user:11", "x", "user:12", "x"], &["user:11", "user:12"], None),
    (&["HSET", "user:13", "f", "x"], &["user:13"], None),
    (&["HSET", "user:14", "f", "x", "g", "y"], &["user:14"], Some("hash")),
    (&["HMSET", "user:15", "f", "x"], &["user:15"], None),
];

async fn prepare(world: &World, key: &str, what: Option<&str>) -> Outcome {
    match what {
        Some("hash") => _ = world.redis(&["HSET", key, "g", "before"]).await?,
        Some(_) => _ = world.redis(&["SET", key, "before"]).await?,
        None => return Ok(()),
    }
    assert_eq!(world.redis(&["EXPIRE", key, "500"]).await?, Reply::Int(1));
    Ok(())
}

/// The commands' own answers, as Redis gives them.
fn answer(command: &[&str]) -> Reply {
    match command {
        ["SETNX" | "MSETNX", ..] => Reply::Int(1),
        ["HSET", _, _, _] => Reply::Int(1),
        ["HSET", ..] => Reply::Int(1),
        ["GETSET", ..] => Reply::bulk("before"),
        _ => Reply::ok(),
    }
}

/// A fill that nothing speaks for nor against lives for `unproven_ttl` at most, whichever command it comes by, and is
/// answered as Redis answers it. A shorter life of its own is left alone, and so are keys without a guard.
#[tokio::test]
async fn an_unproven_fill_is_capped() -> Outcome {
    let world = Setup::new(&guard("")).start().await?;
    let mut client = world.client().await?;
    for (command, keys, before) in FILLS {
        prepare(&world, keys[0], *before).await?;
        assert_eq!(client.cmd(command).await?, answer(command), "{command:?}");
        for key in *keys {
            assert_capped(&world, key).await.map_err(|error| format!("{command:?}: {error}"))?;
        }
    }
    assert_eq!(ttl(&world, "free").await?, -1);
    assert_passed(&client.cmd(&["SET", "user:16", "x", "PX", "9000"]).await?);
    assert!((1..=9_000).contains(&ttl(&world, "user:16").await?));
    let keys = FILLS.iter().map(|(_, keys, _)| keys.len()).sum::<usize>() + 1;
    assert_eq!(world.fills("unproven", "capped").await?, keys as f64);
    Ok(())
}

/// `unproven = "allow"` lets them in as they are, `unproven = "refuse"` not at all.
#[tokio::test]
async fn an_unproven_fill_is_allowed_or_refused() -> Outcome {
    let mut world = Setup::new(&guard("unproven = \"allow\"")).start().await?;
    let mut client = world.client().await?;
    for (command, keys, before) in FILLS {
        prepare(&world, keys[0], *before).await?;
        assert_eq!(client.cmd(command).await?, answer(command), "{command:?}");
        for key in *keys {
            let ttl = ttl(&world, key).await?;
            assert!(ttl == -1 || ttl > 100_000, "{command:?}: {ttl}");
        }
    }

    world.proxy = restarted(&mut world, &guard("unproven = \"refuse\"")).await?;
    world.level().await?;
    assert_eq!(world.redis(&["FLUSHALL"]).await?, Reply::ok());
    let mut client = world.client().await?;
    for (command, keys, _) in FILLS {
        let reply = client.cmd(command).await?;
        assert_refused(&reply, "UNPROVEN");
        for key in *keys {
            assert_eq!(world.redis(&["EXISTS", key]).await?, Reply::Int(0), "{command:?}");
        }
    }
    assert_eq!(world.held("free").await?, Some("x".into()), "the rest of an MSET goes in");
    Ok(())
}

/// A value that is put together by several HSETs on one connection is proven as a whole by the one miss before them.
/// When a later part is refused, the key is deleted: no torn value stays, whoever put the rest of it there.
#[tokio::test]
async fn a_value_in_parts_is_whole_or_gone() -> Outcome {
    let world = Setup::new(EXACT).start().await?;
    let mut client = world.client().await?;
    world.rename(1, "v2").await?;
    world.rename(2, "v2").await?;
    world.level().await?;

    assert_eq!(client.cmd(&["HGETALL", "user:1"]).await?, Reply::Array(vec![]));
    for field in ["a", "b", "c"] {
        assert_eq!(client.cmd(&["HSET", "user:1", field, "v2"]).await?, Reply::Int(1));
    }
    assert_eq!(world.redis(&["HLEN", "user:1"]).await?, Reply::Int(3));
    assert_eq!(ttl(&world, "user:1").await?, -1);
    assert_eq!(world.fills("fresh", "forwarded").await?, 3.0);

    assert_eq!(client.cmd(&["HGETALL", "user:2"]).await?, Reply::Array(vec![]));
    assert_eq!(client.cmd(&["HSET", "user:2", "a", "v2"]).await?, Reply::Int(1));
    world.rename(2, "v3").await?;
    world.level().await?;
    assert_eq!(world.redis(&["HSET", "user:2", "a", "v3"]).await?, Reply::Int(1));
    assert_refused(&client.cmd(&["HSET", "user:2", "b", "v2"]).await?, "STALE");
    assert_eq!(client.cmd(&["HGETALL", "user:2"]).await?, Reply::Array(vec![]));
    Ok(())
}

/// A value is made of the rows of two tables. It is judged by the writes of both, and by the stricter of their guards.
#[tokio::test]
async fn a_key_of_two_guards_is_judged_by_both() -> Outcome {
    let badges = "[[guard]]\ntable = \"badges\"\nkeys = [\"user:<id>\"]\nunproven = \"allow\"\n";
    let world = Setup::new(&format!("{EXACT}{badges}")).start().await?;
    let mut client = world.client().await?;
    assert_refused(&set(&mut client, 1, "v1").await?, "UNPROVEN");

    for write in ["INSERT INTO badges VALUES (1, 'x')", "UPDATE users SET name = 'v2' WHERE id = 1"] {
        let old = miss(&world, &mut client, 1).await?;
        let seen = world.snapshot().await?;
        world.sql.batch_execute(write).await?;
        world.level().await?;
        assert_refused(&set(&mut client, 1, &old).await?, "STALE");
        assert_refused(&client.cmd(&["ASOF", &seen, "SET", "user:1", &old]).await?, "STALE");
        let new = miss(&world, &mut client, 1).await?;
        assert_passed(&set(&mut client, 1, &new).await?);
        assert_eq!(world.held("user:1").await?, Some(new));
        // For the next round.
        client.cmd(&["DEL", "user:1"]).await?;
    }
    Ok(())
}

/// That there is no such row is cached as well. The row that is inserted deletes that, and the fill of somebody who did
/// not see it yet is refused.
#[tokio::test]
async fn an_insert_invalidates_what_was_not_found() -> Outcome {
    let world = Setup::new(EXACT).start().await?;
    let (mut quick, mut slow) = (world.client().await?, world.client().await?);
    for client in [&mut slow, &mut quick] {
        assert_eq!(client.cmd(&["GET", "user:99"]).await?, Reply::Nil);
    }
    assert_passed(&set(&mut quick, 99, "nobody").await?);
    assert_eq!(quick.cmd(&["GET", "user:99"]).await?, Reply::bulk("nobody"));
    world.sql.batch_execute("INSERT INTO users VALUES (99, 'Ada')").await?;
    world.gone("user:99").await?;
    assert_refused(&set(&mut slow, 99, "nobody").await?, "STALE");
    assert_eq!(world.held("user:99").await?, None);
    Ok(())
}
