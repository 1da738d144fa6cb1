//! What happens to the primary, to its slot, and to what the proxy may do there.

mod failover;
mod line;

use std::collections::HashSet;
use std::time::Duration;

use cachefence::demo::servers::{Cachefence, StopMode, wait_until};
use cachefence::pg::replication::Walsender;
use cachefence::pg::target::Target;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

use crate::dice::Dice;
use crate::fault::{BOTH, BOUNDED, Fault};
use crate::load::Load;
use crate::stand::{Options, Stand};
use crate::support::{Fallible, Outcome, PATIENCE, text};

/// A fault that leaves the stand as it was, on a plain one.
const PLAIN: Fault = Fault {
    name: "",
    contracts: BOTH,
    rounds: 5,
    quick: false,
    soak: true,
    options: |options| options,
    round: |_, _, _| Box::pin(async { Err("no fault".into()) }),
};

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "primary restarted, immediate mode",
        quick: true,
        round: |stand, load, dice| Box::pin(restarted_immediately(stand, load, dice)),
        ..PLAIN
    },
    Fault {
        name: "primary restarted, fast mode",
        round: |stand, load, dice| Box::pin(restarted_in_order(stand, load, dice)),
        ..PLAIN
    },
    Fault {
        name: "primary: one backend killed, all sessions ended",
        round: |stand, load, dice| Box::pin(one_backend_killed(stand, load, dice)),
        ..PLAIN
    },
    Fault {
        name: "primary frozen for 10 s",
        rounds: 3,
        // The proxy's sessions may be given up meanwhile.
        round: |stand, load, dice| Box::pin(frozen(stand, load, dice)),
        ..PLAIN
    },
    Fault {
        name: "primary: walsender terminated, again and again",
        round: |stand, load, dice| Box::pin(walsender_terminated(stand, load, dice)),
        ..PLAIN
    },
    Fault {
        name: "primary: all of the proxy's sessions terminated",
        round: |stand, load, dice| Box::pin(sessions_terminated(stand, load, dice)),
        ..PLAIN
    },
    // In strict its way out needs a person: see the sources' faults.
    Fault {
        name: "slot dropped while the feed streams",
        contracts: BOUNDED,
        round: |stand, load, dice| Box::pin(slot_dropped(stand, load, dice)),
        ..PLAIN
    },
    Fault {
        name: "slot dropped while the proxy is away",
        contracts: BOUNDED,
        soak: false,
        round: |stand, load, dice| Box::pin(slot_dropped_while_away(stand, load, dice)),
        ..PLAIN
    },
    Fault {
        name: "slot given up by max_slot_wal_keep_size",
        contracts: BOUNDED,
        rounds: 3,
        soak: false,
        round: |stand, load, dice| Box::pin(slot_given_up(stand, load, dice)),
        ..PLAIN
    },
    Fault {
        name: "primary: max_wal_senders used up",
        soak: false,
        options: |options| Options { primary: options.primary.set("max_wal_senders", "4"), ..options },
        round: |stand, load, dice| Box::pin(no_walsender_left(stand, load, dice)),
        ..PLAIN
    },
    Fault {
        name: "primary: max_connections used up",
        soak: false,
        options: |options| Options { primary: options.primary.set("max_connections", "40"), ..options },
        round: |stand, load, dice| Box::pin(no_connection_left(stand, load, dice)),
        ..PLAIN
    },
    Fault {
        name: "primary: the role may not log in any more",
        soak: false,
        round: |stand, load, dice| Box::pin(role_locked_out(stand, load, dice)),
        ..PLAIN
    },
    Fault {
        name: "primary: a transaction larger than max_lag bears",
        rounds: 2,
        soak: false,
        options: |options| replaced(options, "[postgres]\nmax_lag = \"1s\"\n"),
        round: |stand, load, dice| Box::pin(large_transaction(stand, load, dice)),
        ..PLAIN
    },
    Fault {
        name: "primary: a large transaction of which nothing is sent",
        contracts: BOUNDED,
        rounds: 2,
        soak: false,
        options: |options| replaced(options, "[postgres]\nfeed_lost_after = \"100ms\"\n"),
        round: |stand, load, dice| Box::pin(silent_transaction(stand, load, dice)),
        ..PLAIN
    },
    Fault {
        name: "primary: a flood of DDL",
        rounds: 3,
        round: |stand, load, dice| Box::pin(ddl_flood(stand, load, dice)),
        ..PLAIN
    },
    failover::NOTHING_LOST,
    failover::COMMITS_LOST,
    failover::SEVERAL_HOSTS,
    failover::ANOTHER_AHEAD,
    line::STRANDED,
    line::SWALLOWED,
    line::CUT,
];

/// With these settings of `[postgres]`, before the others.
fn replaced(options: Options, with: &'static str) -> Options {
    Options { replaced: vec![("[postgres]\n", with)], ..options }
}

/// Ends the walsender of the proxy's slot.
/// Returns which it was, or 0.
pub const END_WALSENDER: &str = "SELECT coalesce(max(active_pid) FILTER (WHERE pg_terminate_backend(active_pid)), 0)::text \
                                 FROM pg_replication_slots WHERE slot_name = 'cachefence' AND active";
const DROP_SLOT: &str = "SELECT pg_drop_replication_slot('cachefence')";

async fn restarted_immediately(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    stand.primary.stop(StopMode::Immediate).await?;
    stand.not_ready("cannot connect").await?;
    stand.lives().await?;
    Ok(stand.primary.start().await?)
}

/// Postgres ends its walsenders last, when they have confirmed all there is.
async fn restarted_in_order(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    stand.primary.stop(StopMode::Fast).await?;
    stand.not_ready("cannot connect").await?;
    stand.lives().await?;
    Ok(stand.primary.start().await?)
}

/// Postgres cannot know what it has left of shared memory: it ends all others, and recovers.
async fn one_backend_killed(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    let lost = stand.proxy.metric("cachefence_feed_reconnects_total").await?;
    let sql = stand.sql().await?;
    let pid: i32 = sql.query_one("SELECT pg_backend_pid()", &[]).await?.try_get(0)?;
    kill_process(Pid::from_raw(pid).ok_or("no process")?, Signal::KILL)?;
    stand.counted("cachefence_feed_reconnects_total", lost + 1.0).await?;
    stand.lives().await
}

/// Longer than `feed_lost_after`, and shorter than a silent stream is borne with.
async fn frozen(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    stand.primary.freeze()?;
    let seen = async {
        stand.not_ready("the feed is lost").await?;
        sleep(Duration::from_secs(5)).await;
        stand.lives().await
    };
    let seen = seen.await;
    stand.primary.thaw()?;
    seen
}

async fn walsender_terminated(stand: &mut Stand, _: &Load, dice: &mut Dice) -> Outcome {
    let before = stand.proxy.metric("cachefence_feed_reconnects_total").await?;
    let sql = stand.sql().await?;
    // One that is busy is told again before it has ended.
    let mut ended = HashSet::new();
    while ended.len() < 4 {
        ended.extend(Some(text(&sql, END_WALSENDER).await?).filter(|pid| pid != "0"));
        sleep(dice.millis(50)).await;
    }
    stand.counted("cachefence_feed_reconnects_total", before + ended.len() as f64).await?;
    Ok(())
}

async fn sessions_terminated(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    let before = stand.proxy.metric("cachefence_feed_reconnects_total").await?;
    end_sessions(&stand.sql().await?).await?;
    stand.counted("cachefence_feed_reconnects_total", before + 1.0).await
}

async fn end_sessions(sql: &tokio_postgres::Client) -> Outcome {
    let all = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE application_name LIKE 'cachefence%' AND backend_type IN ('client backend', 'walsender') \
                 AND pid NOT IN (SELECT pid FROM pg_stat_replication WHERE state IS NOT NULL AND pid NOT IN \
                     (SELECT active_pid FROM pg_replication_slots WHERE active))";
    sql.execute(all, &[]).await?;
    Ok(())
}

async fn gaps(stand: &Stand, reason: &str) -> Fallible<f64> {
    Ok(stand.proxy.metric(&format!("cachefence_gaps_total{{reason=\"{reason}\"}}")).await?)
}

async fn one_more_gap(stand: &Stand, reason: &str, before: f64) -> Outcome {
    stand.counted(&format!("cachefence_gaps_total{{reason=\"{reason}\"}}"), before + 1.0).await
}

/// Commits between the drop and the new slot are never sent.
async fn slot_dropped(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    let before = gaps(stand, "fresh_slot").await?;
    let sql = stand.sql().await?;
    // The feed comes back for it at once.
    wait_until("the slot to be dropped", PATIENCE, async || {
        text(&sql, END_WALSENDER).await.is_ok() && sql.batch_execute(DROP_SLOT).await.is_ok()
    })
    .await?;
    one_more_gap(stand, "fresh_slot", before).await
}

async fn slot_dropped_while_away(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    stand.proxy.kill().await?;
    let sql = stand.sql().await?;
    wait_until("the slot to be dropped", PATIENCE, async || sql.batch_execute(DROP_SLOT).await.is_ok())
        .await?;
    load.written(20).await?;
    stand.proxy.relaunch().await?;
    one_more_gap(stand, "fresh_slot", 0.0).await
}

/// The proxy stands still, and more is written than Postgres keeps for it.
async fn slot_given_up(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let before = gaps(stand, "slot_lost").await?;
    let sql = stand.sql().await?;
    let set = async |setting: &str, value: &str| -> Outcome {
        sql.batch_execute(&format!("ALTER SYSTEM SET {setting} = {value}")).await?;
        Ok(sql.batch_execute("SELECT pg_reload_conf()").await?)
    };
    set("max_slot_wal_keep_size", "'1MB'").await?;
    stand.proxy.freeze()?;
    load.written(20).await?;
    let status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'cachefence'";
    let given_up = wait_until("the slot to be given up", PATIENCE, async || {
        let written = async {
            sql.batch_execute("SELECT pg_switch_wal()").await?;
            sql.batch_execute("CHECKPOINT").await?;
            text(&sql, status).await
        };
        written.await.is_ok_and(|status| status == "lost")
    })
    .await;
    stand.proxy.thaw()?;
    given_up?;
    set("max_slot_wal_keep_size", "-1").await?;
    one_more_gap(stand, "slot_lost", before).await
}

/// Others take the walsender that the proxy has lost.
async fn no_walsender_left(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    let sql = stand.sql().await?;
    let target = Target::parse(&stand.primary.url())?;
    let mut others = Vec::new();
    let what = "max_wal_senders";
    wait_until("the proxy to find no walsender", PATIENCE, async || {
        let _ = text(&sql, END_WALSENDER).await;
        // All that are left.
        while let Ok(other) = Walsender::connect(&target, "another").await {
            others.push(other);
        }
        matches!(stand.proxy.get("/readyz").await, Ok((503, why)) if why.contains(what))
    })
    .await?;
    stand.lives().await?;
    drop(others);
    Ok(())
}

/// Others take all connections that the proxy, and everybody else, has lost.
async fn no_connection_left(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    let sql = stand.sql().await?;
    let mut others = Vec::new();
    wait_until("the proxy to find no connection", PATIENCE, async || {
        let _ = text(&sql, END_WALSENDER).await;
        let _ = end_sessions(&sql).await;
        while let Ok(other) = stand.primary.client().await {
            others.push(other);
        }
        let ready = stand.proxy.get("/readyz").await;
        matches!(ready, Ok((503, why)) if why.contains("too many clients"))
    })
    .await?;
    stand.lives().await?;
    drop(others);
    Ok(())
}

/// The load cannot log in either, but keeps its sessions.
async fn role_locked_out(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let sql = stand.sql().await?;
    sql.batch_execute("ALTER ROLE postgres NOLOGIN").await?;
    let seen = async {
        text(&sql, END_WALSENDER).await?;
        stand.not_ready("is not permitted to log in").await?;
        if stand.contract == cachefence::config::Contract::Bounded {
            load.written(5).await?;
        }
        stand.lives().await
    };
    let seen = seen.await;
    sql.batch_execute("ALTER ROLE postgres LOGIN").await?;
    seen
}

/// Rows of the guarded table, many.
async fn large_transaction(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    let (sql, more) = (stand.sql().await?, 400_000);
    let insert = format!("INSERT INTO users SELECT id, 1 FROM generate_series(1000, {more}) AS id");
    sql.batch_execute(&insert).await?;
    stand.not_ready("the feed is lost").await?;
    stand.lives().await?;
    sql.batch_execute("DELETE FROM users WHERE id >= 1000").await?;
    Ok(())
}

/// What is rewritten for a materialized view is decoded, and not sent. Postgres 15 says nothing meanwhile.
async fn silent_transaction(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    let sql = stand.sql().await?;
    sql.batch_execute(
        "CREATE MATERIALIZED VIEW IF NOT EXISTS much AS SELECT n FROM generate_series(1, 2000000) AS n",
    )
    .await?;
    // It can be over soon after the statement has returned.
    let refreshed = async { Outcome::Ok(sql.batch_execute("REFRESH MATERIALIZED VIEW much").await?) };
    let (refreshed, lost) = tokio::join!(refreshed, stand.not_ready("the feed is lost"));
    refreshed.and(lost)?;
    sql.batch_execute("DROP MATERIALIZED VIEW much").await?;
    Ok(())
}

/// Columns and tables come and go. The feed is never interrupted by it.
async fn ddl_flood(stand: &mut Stand, _: &Load, dice: &mut Dice) -> Outcome {
    let before = stand.proxy.metric("cachefence_feed_reconnects_total").await?;
    let sql = stand.sql().await?;
    // It waits for writers, who wait for whoever waits: not for long.
    sql.batch_execute("SET lock_timeout = '500ms'").await?;
    for n in 0..60 {
        let statements = match dice.roll(4) {
            0 => "ALTER TABLE users ADD COLUMN IF NOT EXISTS extra text DEFAULT 'x'".to_owned(),
            1 => "ALTER TABLE users DROP COLUMN IF EXISTS extra".to_owned(),
            2 => format!("CREATE TABLE t{n} (id bigint PRIMARY KEY); DROP TABLE t{n}"),
            _ => "CREATE INDEX i ON users (version); DROP INDEX i; ANALYZE users".to_owned(),
        };
        match sql.batch_execute(&statements).await {
            Ok(()) => {}
            Err(error) if error.code().is_some_and(|code| code.code() == "55P03") => {}
            Err(error) => return Err(error.into()),
        }
    }
    assert_eq!(stand.proxy.metric("cachefence_feed_reconnects_total").await?, before);
    Ok(())
}

/// Another process with the stand's slot and other settings. It gets its own ports: the load is told.
pub fn launch(settings: &str, load: &Load) -> Fallible<Cachefence> {
    let proxy = Cachefence::launch(crate::support::BINARY.as_ref(), settings)?;
    let shared = load.shared();
    let set = |to: &std::sync::Mutex<String>, value: String| {
        *to.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = value;
    };
    set(&shared.proxy, proxy.address().to_owned());
    set(&shared.admin, proxy.admin_url().trim_start_matches("http://").to_owned());
    Ok(proxy)
}
