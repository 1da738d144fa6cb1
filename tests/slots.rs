//! The replication slot: what a clean end leaves, what happens to it behind the proxy's back, temporary ones, and those
//! that are somebody else's.

mod support;

use std::fs;
use std::io::ErrorKind;
use std::process::Command;

use cachefence::demo::client::Reply;
use cachefence::demo::servers::{Cachefence, Postgres, PrimaryOptions, StopMode, wait_until};
use cachefence::position::Lsn;
use rustix::process::{Pid, Signal, kill_process};
use support::{BINARY, EXACT, Fallible, Outcome, PATIENCE, Setup, World, lsn, text};

const CONFIRMED: &str =
    "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'cachefence'";
const ACTIVE: &str =
    "SELECT (count(*) FILTER (WHERE active))::text FROM pg_replication_slots WHERE slot_name = 'cachefence'";

/// Ends the walsender, if there is one; the proxy comes back for another.
const END_WALSENDER: &str = "SELECT count(pg_terminate_backend(active_pid))::text FROM pg_replication_slots \
                             WHERE slot_name LIKE 'cachefence%' AND active";

/// Waits until a query answers this.
async fn until(sql: &tokio_postgres::Client, query: &str, answer: &str) -> Outcome {
    let what = format!("{query} to be {answer:?}");
    Ok(wait_until(&what, PATIENCE, async || text(sql, query).await.is_ok_and(|found| found == answer))
        .await?)
}

/// A value that the proxy has to delete without having seen a commit of it, and one that it must leave alone.
async fn plant(world: &World) -> Outcome {
    for key in ["user:1", "free"] {
        assert_eq!(world.redis(&["SET", key, "planted"]).await?, Reply::ok());
    }
    Ok(())
}

/// Waits until the guarded keys are purged, and nothing else is.
async fn purged(world: &World, gap: &str) -> Outcome {
    wait_until(&format!("the gap {gap}"), PATIENCE, async || {
        gaps(world, gap).await.is_ok_and(|gaps| gaps == 1.0)
    })
    .await
    .map_err(|error| format!("{error}: {}", world.proxy.log()))?;
    world.gone("user:1").await?;
    assert_eq!(world.held("free").await?, Some("planted".into()), "{gap}");
    world.level().await?;
    Ok(())
}

async fn gaps(world: &World, reason: &str) -> Fallible<f64> {
    Ok(world.proxy.metric(&format!("cachefence_gaps_total{{reason=\"{reason}\"}}")).await?)
}

/// Makes the proxy start over with nothing counted. Its slot is level.
async fn afresh(world: &mut World) -> Outcome {
    world.proxy.stop().await?;
    world.proxy.relaunch().await?;
    world.level().await?;
    Ok(())
}

/// The proxy stands still, as in a long pause of its host, and has lost its connection: its slot is anybody's.
async fn away(world: &mut World) -> Outcome {
    world.proxy.freeze()?;
    text(&world.sql, END_WALSENDER).await?;
    until(&world.sql, ACTIVE, "0").await
}

#[tokio::test]
async fn the_slot_of_the_feed() -> Outcome {
    let mut setup = Setup::new(EXACT);
    // No silence: what ends the stream is seen without it.
    setup.replace("[postgres]\n", "[postgres]\nfeed_lost_after = \"60s\"\n");
    let mut world = setup.start().await?;
    an_end_in_order_confirms_all_and_frees_the_slot(&mut world).await?;
    other_databases_do_not_hold_back_the_log(&world).await?;
    advanced_while_the_proxy_is_away(&mut world).await?;
    made_anew_and_advanced_while_it_stands_still(&mut world).await?;
    somebody_else_s_stops_the_feed_and_the_lag_grows(&mut world).await?;
    given_up_by_postgres(&mut world).await?;
    level_though_a_record_is_flushed_by_half(&mut world).await?;
    its_storage_went_back(&mut world).await?;
    foreign_slots_stop_the_start(&world).await?;
    a_temporary_slot_is_a_gap_each_time(&mut world).await
}

/// SIGTERM: what was received is deleted and confirmed, Postgres has let go of the slot when the process has ended, and
/// the next start is sent nothing again and purges nothing.
async fn an_end_in_order_confirms_all_and_frees_the_slot(world: &mut World) -> Outcome {
    world.warm(2).await?;
    world.marked().await?;
    world.redis.freeze()?;
    world.rename(1, "v2").await?;
    let written = world.flushed().await?;
    wait_until("the last commit to arrive", PATIENCE, async || {
        world.status().await.is_ok_and(|status| lsn(&status, "/feed/received_lsn") >= Some(written))
    })
    .await?;
    // Nothing could be deleted so far: the process has to wait for it.
    let pid = world.proxy.pid().and_then(|pid| Pid::from_raw(pid.cast_signed())).ok_or("no process")?;
    kill_process(pid, Signal::TERM)?;
    wait_until("the proxy to be stopping", PATIENCE, async || world.proxy.log().contains("SIGTERM")).await?;
    world.redis.thaw()?;
    // Another signal would end it at once.
    assert_eq!(world.proxy.ended().await?, Some(0), "{}", world.proxy.log());
    assert_eq!(text(&world.sql, ACTIVE).await?, "0", "{}", world.proxy.log());
    let confirmed: Lsn = text(&world.sql, CONFIRMED).await?.parse()?;
    assert!(confirmed >= written, "{confirmed} {written} {}", world.proxy.log());

    world.proxy.relaunch().await?;
    world.level().await?;
    for metric in ["cachefence_gaps_total", "cachefence_purges_total", "cachefence_writes_total"] {
        assert_eq!(world.proxy.metric(metric).await?, 0.0, "{metric}");
    }
    assert_eq!(world.held("user:2").await?, Some("v1".into()));
    Ok(())
}

/// A database that nobody writes to does not hold back the log that others write.
async fn other_databases_do_not_hold_back_the_log(world: &World) -> Outcome {
    let other = world.primary.client_for("postgres").await?;
    let restart = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'cachefence'";
    let before: Lsn = text(&world.sql, restart).await?.parse()?;
    other.batch_execute("CREATE TABLE busy AS SELECT generate_series(1, 50000) AS n").await?;
    let written = world.flushed().await?;
    wait_until("the slot to be confirmed", PATIENCE, async || {
        let confirmed = text(&world.sql, CONFIRMED).await.ok().and_then(|lsn| lsn.parse::<Lsn>().ok());
        confirmed >= Some(written)
    })
    .await?;
    // A slot moves at a record of the transactions that are running; a checkpoint writes one.
    wait_until("the log to be given back", PATIENCE, async || {
        let moved = async {
            other.batch_execute("CHECKPOINT").await?;
            Ok::<_, Box<dyn std::error::Error>>(text(&world.sql, restart).await?.parse::<Lsn>()? > written)
        };
        moved.await.unwrap_or(false)
    })
    .await?;
    assert!(before < written);
    Ok(())
}

/// Somebody advances the slot while no proxy runs: what is in between is never sent. The marker in Redis tells.
async fn advanced_while_the_proxy_is_away(world: &mut World) -> Outcome {
    world.proxy.stop().await?;
    plant(world).await?;
    world.rename(1, "unseen").await?;
    let advance = "SELECT count(pg_replication_slot_advance('cachefence', pg_current_wal_flush_lsn()))::text";
    text(&world.sql, advance).await?;
    world.proxy.relaunch().await?;
    world.gone("user:1").await?;
    assert_eq!(world.purges("marker_behind").await?, 1.0);
    world.warm(1).await
}

/// The slot is dropped and made anew by somebody else, or advanced, while the proxy stands still.
async fn made_anew_and_advanced_while_it_stands_still(world: &mut World) -> Outcome {
    let anew = "SELECT pg_drop_replication_slot('cachefence');
                SELECT pg_create_logical_replication_slot('cachefence', 'pgoutput')";
    let advance = "SELECT pg_replication_slot_advance('cachefence', pg_current_wal_flush_lsn())";
    for change in [anew, advance] {
        afresh(world).await?;
        plant(world).await?;
        away(world).await?;
        world.rename(1, "unseen").await?;
        world.sql.batch_execute(change).await?;
        world.proxy.thaw()?;
        purged(world, "slot_advanced").await?;
    }
    Ok(())
}

/// The slot is dropped while the feed streams, and somebody else takes the name: the feed cannot go on, says why, its lag
/// grows, and it comes back by itself.
async fn somebody_else_s_stops_the_feed_and_the_lag_grows(world: &mut World) -> Outcome {
    afresh(world).await?;
    plant(world).await?;
    away(world).await?;
    let physical = "SELECT pg_drop_replication_slot('cachefence');
                    SELECT pg_create_physical_replication_slot('cachefence')";
    world.sql.batch_execute(physical).await?;
    world.proxy.thaw()?;
    wait_until("the reason", PATIENCE, async || {
        let ready = world.proxy.get("/readyz").await;
        ready.is_ok_and(|(status, why)| status == 503 && why.contains("is physical, not logical"))
    })
    .await?;
    world.rename(1, "unseen").await?;
    for (metric, least) in [("cachefence_feed_lag_seconds", 1.0), ("cachefence_feed_lag_bytes", 1.0)] {
        wait_until(&format!("{metric} to grow"), PATIENCE, async || {
            world.proxy.metric(metric).await.is_ok_and(|lag| lag > least)
        })
        .await?;
    }
    world.sql.batch_execute("SELECT pg_drop_replication_slot('cachefence')").await?;
    purged(world, "fresh_slot").await?;
    wait_until("the lag to end", PATIENCE, async || {
        world.proxy.metric("cachefence_feed_lag_seconds").await.is_ok_and(|lag| lag == 0.0)
    })
    .await?;
    Ok(())
}

/// `max_slot_wal_keep_size` is exceeded while the proxy stands still: Postgres ends its walsender and gives the slot up.
async fn given_up_by_postgres(world: &mut World) -> Outcome {
    assert_eq!(world.proxy.metric("cachefence_slot_safe_bytes").await?, f64::INFINITY, "no limit");
    for (setting, value) in [("max_slot_wal_keep_size", "'1MB'"), ("wal_keep_size", "0")] {
        world.sql.batch_execute(&format!("ALTER SYSTEM SET {setting} = {value}")).await?;
    }
    world.sql.batch_execute("SELECT pg_reload_conf()").await?;
    afresh(world).await?;
    assert!(world.proxy.metric("cachefence_slot_safe_bytes").await? < 64e6);
    assert!(world.proxy.metric("cachefence_slot_retained_bytes").await? > 0.0);
    plant(world).await?;
    world.proxy.freeze()?;
    world.rename(1, "unseen").await?;
    let status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'cachefence'";
    wait_until("the slot to be given up", PATIENCE, async || {
        let written = async {
            world.sql.batch_execute("SELECT pg_logical_emit_message(true, 'x', 'x')").await?;
            world.sql.batch_execute("SELECT pg_switch_wal()").await?;
            world.sql.batch_execute("CHECKPOINT").await?;
            text(&world.sql, status).await
        };
        written.await.is_ok_and(|status| status == "lost")
    })
    .await?;
    world.proxy.thaw()?;
    purged(world, "slot_lost").await?;
    world.rename(2, "seen").await?;
    world.gone("user:2").await?;
    for setting in ["max_slot_wal_keep_size", "wal_keep_size"] {
        world.sql.batch_execute(&format!("ALTER SYSTEM RESET {setting}")).await?;
    }
    world.sql.batch_execute("SELECT pg_reload_conf()").await?;
    Ok(())
}

/// The log of an idle server can be flushed up to the middle of a record for many seconds. The feed is level all the same.
async fn level_though_a_record_is_flushed_by_half(world: &mut World) -> Outcome {
    afresh(world).await?;
    let other = world.primary.client().await?;
    let writer: i32 =
        text(&world.sql, "SELECT pid::text FROM pg_stat_activity WHERE backend_type = 'background writer'")
            .await?
            .parse()?;
    let writer = Pid::from_raw(writer).ok_or("no background writer")?;
    // It would write a record of its own, and flush it.
    kill_process(writer, Signal::STOP)?;
    // As long as its transaction is open, full pages of it are flushed and no more.
    other.batch_execute("BEGIN; SELECT pg_logical_emit_message(false, 'x', repeat('x', 30000))").await?;
    let half = "SELECT (pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn() \
                AND pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0') % 8192 = 0)::text";
    until(&world.sql, half, "true").await?;
    text(&world.sql, END_WALSENDER).await?;
    // What is flushed now cannot be applied as it is.
    let level = world.applied().await;
    kill_process(writer, Signal::CONT)?;
    level?;
    wait_until("the feed to be level", PATIENCE, async || {
        world.proxy.get("/readyz").await.is_ok_and(|(status, _)| status == 200)
    })
    .await?;
    Ok(())
}

/// A snapshot of the server's storage is put back: what was cached may be of commits that never were. The log that was
/// applied, and the marker, are ahead of the server's, which has the same system identifier and timeline as before.
async fn its_storage_went_back(world: &mut World) -> Outcome {
    afresh(world).await?;
    let data = text(&world.sql, "SHOW data_directory").await?;
    let snapshot = format!("{data}.snapshot");
    let copy = |from: &str, to: &str| -> Outcome {
        fs::remove_dir_all(to).or_else(|error| match error.kind() {
            ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        assert!(Command::new("cp").args(["-a", from, to]).status()?.success());
        Ok(())
    };
    world.primary.stop(StopMode::Fast).await?;
    copy(&data, &snapshot)?;
    for running in [true, false] {
        world.primary.start().await?;
        world.sql = world.primary.client().await?;
        world.level().await?;
        world.sql.batch_execute("SELECT pg_switch_wal()").await?;
        world.rename(1, "never was").await?;
        world.marked().await?;
        if !running {
            world.proxy.stop().await?;
        }
        plant(world).await?;
        world.primary.stop(StopMode::Fast).await?;
        copy(&snapshot, &data)?;
        world.primary.start().await?;
        world.sql = world.primary.client().await?;
        if running {
            purged(world, "went_back").await?;
        } else {
            world.proxy.relaunch().await?;
            world.gone("user:1").await?;
            assert_eq!(world.purges("marker_foreign").await?, 1.0);
        }
        world.level().await?;
        world.primary.stop(StopMode::Fast).await?;
    }
    world.primary.start().await?;
    world.sql = world.primary.client().await?;
    fs::remove_dir_all(&snapshot)?;
    world.level().await.map(drop)
}

/// A slot that cannot be ours stops the start, and the message says what to run; nothing in Redis is touched.
async fn foreign_slots_stop_the_start(world: &World) -> Outcome {
    let other = world.primary.client_for("postgres").await?;
    let here = &world.sql;
    let make_logical = "SELECT pg_create_logical_replication_slot";
    for (name, sql, session, why) in [
        (
            "f1",
            "SELECT pg_create_physical_replication_slot('f1')".to_owned(),
            here,
            "is physical, not logical",
        ),
        (
            "f2",
            format!("{make_logical}('f2', 'test_decoding')"),
            here,
            "has the output plugin \"test_decoding\"",
        ),
        (
            "f3",
            format!("{make_logical}('f3', 'pgoutput')"),
            &other,
            "belongs to database \"postgres\", not to \"app\"",
        ),
        ("f4", format!("{make_logical}('f4', 'pgoutput', temporary => true)"), here, "is temporary"),
    ] {
        session.batch_execute(&sql).await?;
        let servers = world.servers.replace("[postgres]\n", &format!("[postgres]\nslot = {name:?}\n"));
        let error = Cachefence::start(BINARY, &(servers + &world.guards)).await.map(drop);
        let error = error.expect_err(why).to_string();
        let run = format!("run: SELECT pg_drop_replication_slot('{name}');");
        assert!(error.contains(why) && error.contains(&run), "{error}");
        assert_eq!(world.held(&format!("cachefence:{name}")).await?, None);
        session.batch_execute(&format!("SELECT pg_drop_replication_slot('{name}')")).await?;
    }
    Ok(())
}

/// A temporary slot goes with its connection: each new one starts with a purge, and nothing is left at the end but a
/// marker that expires.
async fn a_temporary_slot_is_a_gap_each_time(world: &mut World) -> Outcome {
    world.proxy.stop().await?;
    let servers = world.servers.replace("[postgres]\n", "[postgres]\ntemporary_slot = true\n");
    world.proxy = Cachefence::start(BINARY, &(servers + &world.guards)).await?;
    let count =
        "SELECT count(*)::text FROM pg_replication_slots WHERE temporary AND slot_name LIKE 'cachefence\\_%'";
    assert_eq!(text(&world.sql, count).await?, "1");
    let name = text(&world.sql, "SELECT slot_name::text FROM pg_replication_slots WHERE temporary").await?;
    assert_eq!(gaps(world, "fresh_slot").await?, 1.0);
    world.warm(1).await?;
    plant(world).await?;
    text(&world.sql, END_WALSENDER).await?;
    wait_until("another slot", PATIENCE, async || {
        gaps(world, "fresh_slot").await.is_ok_and(|gaps| gaps == 2.0)
    })
    .await?;
    world.gone("user:1").await?;
    world.level().await?;
    world.warm(1).await?;
    world.rename(1, "seen").await?;
    world.gone("user:1").await?;
    let ttl = world.redis(&["TTL", &format!("cachefence:{name}")]).await?;
    assert!(matches!(ttl, Reply::Int(3_000..=3_600)), "{ttl:?}");
    world.proxy.stop().await?;
    // Postgres drops it when it has seen the connection end.
    until(&world.sql, count, "0").await
}

/// On Postgres 17 and later the slot survives a failover, whoever made it, unless the settings say otherwise.
#[tokio::test]
async fn a_slot_survives_a_failover_where_postgres_can_do_that() -> Outcome {
    let primary = Postgres::primary(PrimaryOptions::default()).await?;
    let version = text(&primary.client().await?, "SHOW server_version_num").await?;
    if version.parse::<u32>()? < 170_000 {
        return Ok(());
    }
    drop(primary);
    let mut world = Setup::new(EXACT).start().await?;
    let failover = "SELECT failover::text FROM pg_replication_slots WHERE slot_name = 'cachefence'";
    assert_eq!(text(&world.sql, failover).await?, "true", "made by the proxy");
    for (setting, expected) in [("false", "false"), ("true", "true")] {
        world.proxy.stop().await?;
        let servers = format!("[postgres]\nfailover_slot = {setting}\n");
        let servers = world.servers.replace("[postgres]\n", &servers);
        world.proxy = Cachefence::start(BINARY, &(servers + &world.guards)).await?;
        assert_eq!(text(&world.sql, failover).await?, expected);
        assert_eq!(world.proxy.metric("cachefence_purges_total").await?, 0.0);
    }
    world.proxy.stop().await?;
    world.sql.batch_execute("SELECT pg_drop_replication_slot('cachefence')").await?;
    support::init(&(world.servers.clone() + &world.guards))?;
    assert_eq!(text(&world.sql, failover).await?, "true", "made by init");
    Ok(())
}
