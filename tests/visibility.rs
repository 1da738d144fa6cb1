//! Evidence against what Postgres really shows: facts F1, F2, F5, F10 and F12 of `docs/design.md`, each on real
//! servers.

mod support;

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::{wait_for, wait_until};
use cachefence::position::{Lsn, Xid};
use support::{
    EXACT, Fallible, HeldCommit, Outcome, PATIENCE, Setup, World, assert_passed, assert_refused, name_on,
    snapshot, text,
};

/// A fill with evidence.
async fn asof(client: &mut Client, evidence: &str, key: &str, value: &str) -> Fallible<Reply> {
    Ok(client.cmd(&["ASOF", evidence, "SET", key, value]).await?)
}

/// The position that a refusal names: the end of the commit that the evidence does not contain.
fn named(reply: &Reply) -> Fallible<Lsn> {
    let Reply::Error(error) = reply else { return Err(format!("not a refusal: {reply:?}").into()) };
    Ok(error.rsplit(' ').next().ok_or("no words")?.parse()?)
}

/// F1. A commit that waits for a synchronous standby has reached the proxy, which has deleted its key, while the
/// primary still shows the old row. Neither a miss after that deletion nor a snapshot taken after it lets the old row
/// in. Once the commit is visible, both vouch for the new row.
#[tokio::test]
async fn a_commit_that_waits_for_a_standby_keeps_the_old_row_out() -> Outcome {
    let world = Setup::new(EXACT).start().await?;
    world.warm(1).await?;
    world.hold_commits().await?;
    let held = HeldCommit::begin(&world, "UPDATE users SET name = 'v2' WHERE id = 1").await?;
    assert!(held.is_held(&world).await?);
    world.gone("user:1").await?;

    let (mut plain, mut client) = (world.client().await?, world.client().await?);
    assert_eq!(plain.cmd(&["GET", "user:1"]).await?, Reply::Nil);
    let evidence = world.snapshot().await?;
    assert_eq!(world.name(1).await?, "v1", "the feed is ahead of what the primary shows");
    assert_refused(&plain.cmd(&["SET", "user:1", "v1"]).await?, "STALE");
    assert_refused(&asof(&mut client, &evidence, "user:1", "v1").await?, "STALE");
    // An LSN read on the primary is past the commit that it does not show: this is why it is no evidence.
    let refused = asof(&mut client, &evidence, "user:1", "v1").await?;
    assert!(world.flushed().await? >= named(&refused)?);
    assert_eq!(world.held("user:1").await?, None);

    world.release_commits().await?;
    held.end().await?;
    world.level().await?;
    assert_eq!(plain.cmd(&["GET", "user:1"]).await?, Reply::Nil);
    let evidence = world.snapshot().await?;
    assert_eq!(world.name(1).await?, "v2");
    assert_passed(&plain.cmd(&["SET", "user:1", "v2"]).await?);
    assert_passed(&asof(&mut client, &evidence, "user:1", "v2").await?);
    assert_eq!(world.held("user:1").await?, Some("v2".into()));
    Ok(())
}

/// The ends of the commits that a slot of the test's own has not consumed, as pgoutput tells them.
async fn commit_ends(world: &World) -> Fallible<Vec<Lsn>> {
    let sql = "SELECT data FROM pg_logical_slot_get_binary_changes('probe', NULL, NULL, \
               'proto_version', '1', 'publication_names', 'cachefence')";
    let mut ends = Vec::new();
    for row in world.sql.query(sql, &[]).await? {
        let message: &[u8] = row.try_get(0)?;
        // Commit: 'C', flags, the record's beginning, its end, the time.
        if message.first() == Some(&b'C') {
            ends.push(Lsn(u64::from_be_bytes(message[10..18].try_into()?)));
        }
    }
    Ok(ends)
}

/// F2. On a replica the end of the commit record is exact: evidence at that position passes and one byte before it is
/// refused, and the replica shows the row when its replay stands exactly there.
#[tokio::test]
async fn a_replicas_position_is_exact_to_the_byte() -> Outcome {
    let world = Setup::new(EXACT).replica().start().await?;
    let replica = world.replica()?;
    let (node, mut client) = (replica.client().await?, world.client().await?);
    text(&world.sql, "SELECT slot_name::text FROM pg_create_logical_replication_slot('probe', 'pgoutput')")
        .await?;
    // Other records (a running server writes some by itself) may follow a commit at once: then the replica does not
    // stop at its end, and another commit is tried.
    for attempt in 0..20 {
        let (before, after) = (format!("w{attempt}"), format!("w{}", attempt + 1));
        world.rename(1, &before).await?;
        commit_ends(&world).await?;
        replica.catch_up(&world.primary).await?;
        replica.pause_replay().await?;
        world.rename(1, &after).await?;
        let ends = commit_ends(&world).await?;
        let [end] = ends.as_slice() else { return Err(format!("not one commit: {ends:?}").into()) };
        assert!(replica.replay_lsn().await? < *end);
        assert_eq!(name_on(&node, 1).await?, before, "not replayed, not shown");
        world.applied().await?;

        let refused = asof(&mut client, &Lsn(end.0 - 1).to_string(), "user:1", &before).await?;
        assert_refused(&refused, "STALE");
        assert_eq!(named(&refused)?, *end, "the refusal names the end of the commit");
        assert_eq!(world.held("user:1").await?, None);
        assert_passed(&asof(&mut client, &end.to_string(), "user:1", &after).await?);
        assert_eq!(world.held("user:1").await?.as_deref(), Some(after.as_str()));

        replica.resume_replay().await?;
        replica.wait_replayed(*end).await?;
        let name = name_on(&node, 1).await?;
        if replica.replay_lsn().await? == *end {
            assert_eq!(name, after, "shown when replay stands at the end of the commit");
            return Ok(());
        }
    }
    Err("the replica never stood at the end of a commit".into())
}

/// F5. Two rows feed one key, and the later commit becomes visible first. What sees only that one is refused: as a
/// snapshot and as a lease. What sees both passes.
#[tokio::test]
async fn a_key_of_many_rows_waits_for_every_commit() -> Outcome {
    let guards = EXACT.replace("user:<id>", "users:all");
    let world = Setup::new(&guards).start().await?;
    world.hold_commits().await?;
    let first = HeldCommit::begin(&world, "UPDATE users SET name = 'first' WHERE id = 1").await?;
    assert!(first.is_held(&world).await?);
    let second =
        "BEGIN; SET LOCAL synchronous_commit = local; UPDATE users SET name = 'second' WHERE id = 2; COMMIT";
    world.sql.batch_execute(second).await?;
    world.applied().await?;

    let (mut plain, mut client) = (world.client().await?, world.client().await?);
    assert_eq!(plain.cmd(&["GET", "users:all"]).await?, Reply::Nil);
    let evidence = world.snapshot().await?;
    let rows = (world.name(1).await?, world.name(2).await?);
    assert_eq!(rows, ("v1".into(), "second".into()), "visible in another order than committed");
    assert_refused(&asof(&mut client, &evidence, "users:all", "v1,second").await?, "STALE");
    assert_refused(&plain.cmd(&["SET", "users:all", "v1,second"]).await?, "STALE");
    assert_eq!(world.held("users:all").await?, None);

    world.release_commits().await?;
    first.end().await?;
    let evidence = world.snapshot().await?;
    assert_eq!(world.name(1).await?, "first");
    assert_passed(&asof(&mut client, &evidence, "users:all", "first,second").await?);
    world.level().await?;
    assert_eq!(world.redis(&["DEL", "users:all"]).await?, Reply::Int(1));
    assert_eq!(plain.cmd(&["GET", "users:all"]).await?, Reply::Nil);
    assert_passed(&plain.cmd(&["SET", "users:all", "first,second"]).await?);
    Ok(())
}

/// F10. A writer that asks for evidence inside its transaction, after its own UPDATE: `cachefence.asof()` does not
/// vouch for that UPDATE, plain `pg_current_snapshot()` would.
#[tokio::test]
async fn a_writers_own_snapshot_does_not_vouch_for_its_own_write() -> Outcome {
    let mut world = Setup::new(EXACT).init().start().await?;
    let other = world.primary.client().await?;
    let transaction = world.sql.transaction().await?;
    transaction.execute("UPDATE users SET name = 'draft' WHERE id = 1", &[]).await?;
    // Another transaction comes and goes, so that the writer's own id is not the newest any more.
    other.batch_execute("SELECT pg_current_xact_id()").await?;
    let sql = "SELECT cachefence.asof(), pg_current_snapshot()::text, pg_current_xact_id()::text";
    let row = transaction.query_one(sql, &[]).await?;
    let (evidence, plain, own): (String, String, String) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    // What was read with that evidence is not what the transaction commits.
    transaction.execute("UPDATE users SET name = 'final' WHERE id = 1", &[]).await?;
    transaction.commit().await?;
    world.level().await?;

    let own = Xid(own.parse()?);
    assert!(snapshot(&plain)?.sees(own), "the trap: {plain} calls {own} seen");
    assert!(!snapshot(&evidence)?.sees(own), "{evidence}");
    let mut client = world.client().await?;
    assert_refused(&asof(&mut client, &evidence, "user:1", "draft").await?, "STALE");
    assert_eq!(world.held("user:1").await?, None);
    assert_passed(&asof(&mut client, &plain, "user:1", "draft").await?);

    // Outside of a transaction that writes, the two are the same, and good.
    let evidence = text(&world.sql, "SELECT cachefence.asof()").await?;
    assert_passed(&asof(&mut client, &evidence, "user:1", "final").await?);
    Ok(())
}

/// On the primary `cachefence.asof()` speaks for the snapshot of its statement, which under REPEATABLE READ is that of
/// the whole transaction. Own writes do not count as seen in either, and somebody's transaction that has written and stays open
/// spoils nothing.
#[tokio::test]
async fn evidence_of_the_primary_is_that_of_the_snapshot() -> Outcome {
    let world = Setup::new(EXACT).init().start().await?;
    let (long, session) = (world.primary.client().await?, world.primary.client().await?);
    long.batch_execute("BEGIN; UPDATE users SET name = 'long' WHERE id = 9").await?;
    let mut client = world.client().await?;
    for (level, sees_later) in [("READ COMMITTED", true), ("REPEATABLE READ", false)] {
        session.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).await?;
        let before = text(&session, "SELECT cachefence.asof()").await?;
        let (old, new) = (name_on(&session, 1).await?, format!("after {before}"));
        assert_passed(&asof(&mut client, &before, "user:1", &old).await?);
        world.rename(1, &new).await?;
        world.applied().await?;
        assert_refused(&asof(&mut client, &before, "user:1", &old).await?, "STALE");
        // In one statement: the function is STABLE, and sees the snapshot of its caller.
        let row = session.query_one("SELECT cachefence.asof(), name FROM users WHERE id = 1", &[]).await?;
        let (evidence, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let reply = asof(&mut client, &evidence, "user:1", &name).await?;
        if sees_later {
            assert_eq!(name, new);
            assert_passed(&reply);
        } else {
            assert_eq!((name, evidence), (old, before), "{level}");
            assert_refused(&reply, "STALE");
        }
        session.batch_execute("ROLLBACK").await?;

        // Its own writes, in a savepoint too.
        let writes = "SAVEPOINT s; UPDATE users SET name = 'draft' WHERE id = 2; RELEASE s";
        session.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}; {writes}")).await?;
        world.rename(3, level).await?;
        let evidence = text(&session, "SELECT cachefence.asof()").await?;
        session.batch_execute("COMMIT").await?;
        world.applied().await?;
        assert_refused(&asof(&mut client, &evidence, "user:2", "draft").await?, "STALE");
        assert_eq!(world.held("user:2").await?, None);
    }

    // A key that is named in a transaction changes when that commits, and not before. Version 13 has no messages.
    let version = text(&session, "SHOW server_version_num").await?;
    if version.parse::<i32>()? < 140_000 {
        return Ok(());
    }
    let evidence = text(&session, "SELECT cachefence.asof()").await?;
    assert_passed(&asof(&mut client, &evidence, "user:4", "v1").await?);
    for (end, gone) in [("ROLLBACK", false), ("COMMIT", true)] {
        session.batch_execute("BEGIN; SELECT cachefence.fence('user:4')").await?;
        world.applied().await?;
        assert_eq!(world.held("user:4").await?, Some("v1".into()), "not ended");
        session.batch_execute(end).await?;
        world.applied().await?;
        assert_eq!(world.held("user:4").await?.is_none(), gone, "{end}");
    }
    assert_refused(&asof(&mut client, &evidence, "user:4", "v1").await?, "STALE");
    let evidence = text(&session, "SELECT cachefence.asof()").await?;
    assert_passed(&asof(&mut client, &evidence, "user:4", "v1").await?);
    Ok(())
}

/// F12. On a standby `cachefence.asof()` is its replay position, to be taken before the read; under REPEATABLE READ,
/// where a later read may use an older snapshot, it raises an error.
#[tokio::test]
async fn evidence_of_a_standby_is_taken_before_the_read() -> Outcome {
    let world = Setup::new(EXACT).init().replica().start().await?;
    let replica = world.replica()?;
    let (node, mut client) = (replica.client().await?, world.client().await?);
    // Open all the time: it spoils nothing.
    let long = world.primary.client().await?;
    long.batch_execute("BEGIN; UPDATE users SET name = 'long' WHERE id = 9").await?;
    replica.pause_replay().await?;
    world.rename(1, "v2").await?;
    world.applied().await?;

    let behind = text(&node, "SELECT cachefence.asof()").await?;
    assert_eq!(behind.parse::<Lsn>()?, replica.replay_lsn().await?);
    assert_eq!(name_on(&node, 1).await?, "v1");
    assert_refused(&asof(&mut client, &behind, "user:1", "v1").await?, "STALE");

    replica.resume_replay().await?;
    replica.catch_up(&world.primary).await?;
    let level = text(&node, "SELECT cachefence.asof()").await?;
    assert_eq!(name_on(&node, 1).await?, "v2");
    assert_passed(&asof(&mut client, &level, "user:1", "v2").await?);

    for level in ["REPEATABLE READ", "READ COMMITTED"] {
        node.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).await?;
        let answer = node.query_one("SELECT cachefence.asof()", &[]).await;
        node.batch_execute("ROLLBACK").await?;
        match (level, answer) {
            ("READ COMMITTED", answer) => _ = answer?,
            (_, Ok(row)) => return Err(format!("{level}: {:?}", row.try_get::<_, String>(0)).into()),
            (_, Err(error)) => {
                let message = error.as_db_error().map(|error| error.message().to_owned());
                let expected = "cachefence.asof() on a standby needs READ COMMITTED";
                assert_eq!(message.as_deref(), Some(expected), "{error}");
            }
        }
    }
    Ok(())
}

/// A transaction that writes and stays open does not make good evidence fail: not for other keys, not for the same
/// table, not across a restart of the proxy, when all history per key is gone.
#[tokio::test]
async fn a_long_transaction_does_not_spoil_good_evidence() -> Outcome {
    let mut world = Setup::new(EXACT).start().await?;
    let long = world.primary.client().await?;
    long.batch_execute("BEGIN; UPDATE users SET name = 'long' WHERE id = 9").await?;
    let own = Xid(text(&long, "SELECT pg_current_xact_id()::text").await?.parse()?);

    for restarted in [false, true] {
        if restarted {
            world.proxy.kill().await?;
            world.proxy.relaunch().await?;
        }
        world.rename(1, &format!("w{restarted}")).await?;
        world.level().await?;
        for (key, value) in [("user:1", world.name(1).await?), ("user:2", "v1".into())] {
            let (mut plain, mut client) = (world.client().await?, world.client().await?);
            world.redis(&["DEL", key]).await?;
            let evidence = world.snapshot().await?;
            assert!(snapshot(&evidence)?.in_progress().contains(&own), "{evidence} lists {own}");
            assert_passed(&asof(&mut client, &evidence, key, &value).await?);
            world.redis(&["DEL", key]).await?;
            // After a take-over leases do not count for a while.
            wait_until("a plain fill to be let in", PATIENCE, async || {
                let filled = async {
                    assert_eq!(plain.cmd(&["GET", key]).await?, Reply::Nil);
                    plain.cmd(&["SET", key, &value]).await
                };
                filled.await.is_ok_and(|reply| reply == Reply::ok())
            })
            .await?;
        }
    }

    // Its own commit is another matter: what was read while it was open is stale.
    let mut client = world.client().await?;
    let evidence = world.snapshot().await?;
    long.batch_execute("COMMIT").await?;
    world.applied().await?;
    assert_refused(&asof(&mut client, &evidence, "user:9", "v1").await?, "STALE");
    let fresh = wait_for("the commit to be visible", PATIENCE, || async {
        let evidence = world.snapshot().await.ok()?;
        snapshot(&evidence).ok()?.sees(own).then_some(evidence)
    });
    assert_passed(&asof(&mut client, &fresh.await?, "user:9", "long").await?);
    Ok(())
}
