//! What a restart of either side leaves behind: the proxy's, Redis's, and a slot that is lost in between.

mod support;

use cachefence::demo::client::Reply;
use cachefence::demo::servers::{Cachefence, wait_until};
use cachefence::position::Lsn;
use support::{
    BINARY, EXACT, Fallible, Outcome, PATIENCE, Setup, World, assert_passed, assert_refused, text,
};

/// A guarded and an unguarded value put into Redis past the proxy, as an old dump would.
async fn plant(world: &World) -> Outcome {
    for key in ["user:1", "free"] {
        assert_eq!(world.redis(&["SET", key, "planted"]).await?, Reply::ok());
    }
    Ok(())
}

/// Waits until the guarded one is gone; the other one stays.
async fn assert_purged(world: &World, reason: &str) -> Outcome {
    world.gone("user:1").await?;
    assert_eq!(world.held("free").await?, Some("planted".into()), "{reason}");
    assert_eq!(world.purges(reason).await?, 1.0, "{reason}: {}", world.proxy.log());
    Ok(())
}

/// Ends the proxy as a crash would, and starts it with other settings, on the same slot.
async fn succeed(world: &mut World, settings: &str) -> Outcome {
    world.proxy.kill().await?;
    world.proxy = Cachefence::start(BINARY, &(world.servers.clone() + settings)).await?;
    Ok(())
}

/// Evidence from before the start of the proxy proves nothing afterwards, for any key: what was written in between is
/// not known. It was good before, and new evidence is good again.
#[tokio::test]
async fn evidence_from_before_the_start_is_refused() -> Outcome {
    let mut world = Setup::new(EXACT).start().await?;
    let (snapshot, lsn) = (world.snapshot().await?, world.flushed().await?.to_string());
    let mut client = world.client().await?;
    for evidence in [&snapshot, &lsn] {
        assert_passed(&client.cmd(&["ASOF", evidence, "SET", "user:9", "v1"]).await?);
    }
    world.rename(2, "v2").await?;
    world.level().await?;

    world.proxy.kill().await?;
    world.proxy.relaunch().await?;
    world.level().await?;
    let mut client = world.client().await?;
    world.redis(&["DEL", "user:9"]).await?;
    for evidence in [&snapshot, &lsn] {
        assert_refused(&client.cmd(&["ASOF", evidence, "SET", "user:9", "v1"]).await?, "STALE");
    }
    assert_eq!(world.held("user:9").await?, None);
    let evidence = world.snapshot().await?;
    assert_passed(&client.cmd(&["ASOF", &evidence, "SET", "user:9", "v1"]).await?);
    Ok(())
}

/// What is committed while the proxy is dead is deleted when it is back, and nothing else is: no gap, no purge.
#[tokio::test]
async fn commits_during_an_outage_are_made_up_for() -> Outcome {
    let mut world = Setup::new(EXACT).start().await?;
    for id in 1..=3 {
        world.warm(id).await?;
    }
    world.marked().await?;
    world.proxy.kill().await?;
    world.rename(1, "v2").await?;
    world.sql.execute("DELETE FROM users WHERE id = 2", &[]).await?;
    assert_eq!(world.held("user:1").await?, Some("v1".into()));
    world.proxy.relaunch().await?;
    world.gone("user:1").await?;
    world.gone("user:2").await?;
    assert_eq!(world.held("user:3").await?, Some("v1".into()));
    for metric in ["cachefence_gaps_total", "cachefence_purges_total"] {
        assert_eq!(world.proxy.metric(metric).await?, 0.0, "{}", world.proxy.log());
    }
    world.level().await?;
    world.warm(1).await
}

/// A slot that is dropped while the proxy is dead takes unseen commits with it: all guarded keys are purged, the
/// others stay, and evidence from before is refused.
#[tokio::test]
async fn a_lost_slot_is_a_gap() -> Outcome {
    let mut world = Setup::new(EXACT).start().await?;
    let evidence = world.snapshot().await?;
    world.proxy.kill().await?;
    plant(&world).await?;
    world.rename(1, "v2").await?;
    wait_until("the slot to be free", PATIENCE, async || {
        world.sql.batch_execute("SELECT pg_drop_replication_slot('cachefence')").await.is_ok()
    })
    .await?;
    world.rename(1, "v3").await?;
    world.proxy.relaunch().await?;
    assert_purged(&world, "fresh_slot").await?;
    assert_eq!(world.proxy.metric("cachefence_gaps_total{reason=\"fresh_slot\"}").await?, 1.0);
    world.level().await?;
    let mut client = world.client().await?;
    assert_refused(&client.cmd(&["ASOF", &evidence, "SET", "user:1", "v1"]).await?, "STALE");
    world.warm(1).await
}

/// A marker that is missing, or was written for another history, or for other guards, tells that the keys cannot be
/// trusted: they are purged at the start.
#[tokio::test]
async fn a_marker_that_does_not_fit_purges() -> Outcome {
    let mut world = Setup::new(EXACT).start().await?;
    let marker = world.held("cachefence:cachefence").await?.ok_or("no marker")?;

    world.proxy.kill().await?;
    assert_eq!(world.redis(&["FLUSHALL"]).await?, Reply::ok());
    plant(&world).await?;
    world.proxy.relaunch().await?;
    assert_purged(&world, "marker_missing").await?;

    let (_, rest) = marker.split_once(' ').ok_or("one word")?;
    for foreign in ["rubbish", &format!("system=1 {rest}")] {
        world.proxy.kill().await?;
        plant(&world).await?;
        world.redis(&["SET", "cachefence:cachefence", foreign]).await?;
        world.proxy.relaunch().await?;
        assert_purged(&world, "marker_foreign").await?;
        assert_ne!(world.held("cachefence:cachefence").await?.as_deref(), Some(foreign));
    }

    plant(&world).await?;
    let more = EXACT.replace("\"user:<id>\"", "\"user:<id>\", \"name:<id>\"");
    assert_eq!(world.redis(&["SET", "name:1", "from when nobody guarded it"]).await?, Reply::ok());
    succeed(&mut world, &more).await?;
    assert_purged(&world, "guards_changed").await?;
    assert_eq!(world.held("name:1").await?, None);
    Ok(())
}

/// What the start of a stream has found out about Redis's data is not forgotten when Redis fails in the middle of
/// it. Here the database has lost what the marker tells of, and Redis refuses to be purged at first.
#[tokio::test]
async fn a_purge_that_fails_is_done_later() -> Outcome {
    let mut world = Setup::new(EXACT).start().await?;
    let marker = world.held("cachefence:cachefence").await?.ok_or("no marker")?;
    world.proxy.kill().await?;
    let ahead = marker.split(' ').map(|word| match word.strip_prefix("applied=") {
        Some(_) => "applied=FFFFFFFF/0",
        None => word,
    });
    let ahead = ahead.collect::<Vec<_>>().join(" ");
    world.redis(&["SET", "cachefence:cachefence", &ahead]).await?;
    plant(&world).await?;
    world.redis(&["ACL", "SETUSER", "default", "-scan"]).await?;
    world.proxy.relaunch_unready().await?;
    wait_until("the purge to be refused, more than once", PATIENCE, async || {
        world.purges("marker_foreign").await.is_ok_and(|purges| purges > 0.0)
            && world.proxy.metric("cachefence_purges_total").await.is_ok_and(|purges| purges > 2.0)
    })
    .await?;
    assert_eq!(world.held("user:1").await?, Some("planted".into()));
    world.redis(&["ACL", "SETUSER", "default", "+scan"]).await?;
    world.proxy.ready().await?;
    assert_eq!(world.held("user:1").await?, None, "{}", world.proxy.log());
    assert_eq!(world.held("free").await?, Some("planted".into()));
    Ok(())
}

/// A proxy that observes deletes nothing. When it is told to enforce, what it left is purged; also when it had
/// enforced before, and a marker from then is there.
#[tokio::test]
async fn from_observing_to_enforcing_the_keys_are_purged() -> Outcome {
    let mut world = Setup::new(EXACT).start().await?;
    let observing = format!("{EXACT}\n[proxy]\nmode = \"observe\"\n");
    for marked in [true, false] {
        if !marked {
            world.redis(&["DEL", "cachefence:cachefence"]).await?;
        }
        succeed(&mut world, &observing).await?;
        plant(&world).await?;
        world.rename(1, "v2").await?;
        let written = world.applied().await?;
        assert_eq!(world.held("user:1").await?, Some("planted".into()), "observing deletes nothing");
        // What the slot has not forgotten is sent again, and deleted for that.
        wait_until("the slot to have forgotten the write", PATIENCE, async || {
            let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots";
            let confirmed = text(&world.sql, sql).await.ok().and_then(|lsn| lsn.parse::<Lsn>().ok());
            confirmed >= Some(written)
        })
        .await?;
        succeed(&mut world, EXACT).await?;
        assert_purged(&world, if marked { "marker_behind" } else { "marker_missing" }).await?;
    }
    Ok(())
}

/// A Redis that was away and comes back with old data and no marker is purged, without waiting for the next commit.
#[tokio::test]
async fn a_redis_that_comes_back_older_is_purged() -> Outcome {
    let mut world = Setup::new(EXACT).durable_redis().start().await?;
    world.warm(2).await?;
    // While the proxy stands still, as if Redis had been restored from an old dump.
    world.proxy.freeze()?;
    assert_eq!(world.redis(&["DEL", "cachefence:cachefence"]).await?, Reply::Int(1));
    plant(&world).await?;
    world.redis.restart().await?;
    assert_eq!(world.held("user:1").await?, Some("planted".into()), "Redis keeps its data");
    world.proxy.thaw()?;
    assert_purged(&world, "marker_missing").await?;
    world.level().await?;
    world.rename(1, "v2").await?;
    world.level().await?;
    world.warm(1).await
}

/// A Redis that was away and comes back empty is used again at once, and the deletions go on.
#[tokio::test]
async fn a_redis_that_comes_back_empty_is_used_again() -> Outcome {
    let mut world = Setup::new(EXACT).start().await?;
    world.warm(1).await?;
    world.redis.kill().await?;
    world.rename(1, "v2").await?;
    world.redis.relaunch().await?;
    world.level().await?;
    assert!(world.held("cachefence:cachefence").await?.is_some());
    world.warm(1).await?;
    world.rename(1, "v3").await?;
    world.gone("user:1").await
}

/// The names of all connections of Redis that belong to a cachefence.
async fn names(world: &World) -> Fallible<Vec<String>> {
    let list = world.redis(&["CLIENT", "LIST"]).await?.text().unwrap_or_default();
    let words = list.split([' ', '\n']).filter_map(|word| word.strip_prefix("name="));
    Ok(words.filter(|name| name.starts_with("cachefence:")).map(str::to_owned).collect())
}

/// A proxy that hangs still holds its connections to Redis, and what it has sent may still be executed. A successor on
/// the same slot ends them before it does anything else.
#[tokio::test]
async fn a_successor_ends_its_predecessors_connections() -> Outcome {
    let mut world = Setup::new(EXACT).start().await?;
    world.warm(1).await?;
    world.marked().await?;
    let before = names(&world).await?;
    // `cachefence:<slot>:<incarnation>` the deleting side, and with a number after it a connection for clients.
    let parts: Vec<usize> = before.iter().map(|name| name.split(':').count()).collect();
    assert!(parts.contains(&3) && parts.contains(&4), "{before:?}");
    let own = before[0].split(':').nth(2).ok_or("no incarnation")?.to_owned();
    world.proxy.freeze()?;

    let mut successor = Cachefence::launch(BINARY.as_ref(), &(world.servers.clone() + &world.guards))?;
    let sql = "SELECT count(pg_terminate_backend(active_pid))::text FROM pg_replication_slots \
               WHERE slot_name = 'cachefence' AND active";
    // The one that hangs holds the slot until its walsender is ended, as wal_sender_timeout would do.
    text(&world.sql, sql).await?;
    successor.ready().await?;
    let after = names(&world).await?;
    assert!(!after.is_empty() && after.iter().all(|name| !name.contains(&own)), "{before:?} {after:?}");
    assert_eq!(successor.client().await?.cmd(&["GET", "user:1"]).await?, Reply::bulk("v1"));
    Ok(())
}
