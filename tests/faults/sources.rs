//! What happens to the sources, to the strict contract, and to the tables while they are guarded.

use std::time::{Duration, Instant};

use cachefence::demo::client::Reply;
use cachefence::demo::servers::{Postgres, PrimaryOptions, StopMode, wait_for, wait_until};
use cachefence::position::Lsn;
use tokio::time::sleep;

use crate::dice::Dice;
use crate::fault::{BOTH, Fault, STRICT};
use crate::load::Load;
use crate::stand::{Options, STANDBYS, Stand};
use crate::support::{Fallible, Outcome, PATIENCE, init, lsn, text};

mod schema;
mod strict;

/// Most of them.
const PLAIN: Fault = Fault {
    name: "",
    contracts: BOTH,
    rounds: 3,
    quick: false,
    soak: false,
    options: |options| options,
    round: |_, _, _| Box::pin(async { Err("no fault".into()) }),
};

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "replica stopped",
        rounds: 5,
        soak: true,
        round: |stand, load, dice| Box::pin(stopped(stand, load, dice)),
        ..PLAIN
    },
    Fault {
        name: "replica paused",
        rounds: 5,
        quick: true,
        soak: true,
        round: |stand, load, dice| Box::pin(paused(stand, load, dice)),
        ..PLAIN
    },
    Fault {
        name: "replica crashed, its replay went back",
        rounds: 5,
        round: |stand, load, _| Box::pin(went_back(stand, load)),
        ..PLAIN
    },
    Fault {
        name: "replica black-holed",
        options: with_lines,
        round: |stand, load, _| Box::pin(black_holed(stand, load)),
        ..PLAIN
    },
    Fault {
        name: "replica promoted by mistake, then copied anew",
        round: |stand, load, _| Box::pin(promoted(stand, load)),
        ..PLAIN
    },
    Fault {
        name: "replica replaced by a fresh copy",
        round: |stand, load, _| Box::pin(replaced(stand, load)),
        ..PLAIN
    },
    Fault {
        name: "another system on the replica's address",
        rounds: 2,
        options: with_lines,
        round: |stand, load, _| Box::pin(another_system(stand, load)),
        ..PLAIN
    },
    Fault {
        name: "slot lost while commits wait",
        contracts: STRICT,
        round: |stand, load, _| Box::pin(strict::slot_lost(stand, load)),
        ..PLAIN
    },
    Fault {
        name: "proxy killed while commits wait",
        contracts: STRICT,
        rounds: 5,
        round: |stand, load, _| Box::pin(strict::killed(stand, load)),
        ..PLAIN
    },
    Fault {
        name: "synchronous_standby_names cleared, replaced and set again",
        contracts: STRICT,
        rounds: 5,
        soak: true,
        round: |stand, load, _| Box::pin(strict::names_cleared(stand, load)),
        ..PLAIN
    },
    Fault {
        name: "transactions with synchronous_commit = off among the others",
        contracts: STRICT,
        soak: true,
        round: |stand, load, _| Box::pin(strict::off(stand, load)),
        ..PLAIN
    },
    Fault {
        name: "table out of the publication",
        rounds: 2,
        round: |stand, load, _| Box::pin(schema::unpublished(stand, load)),
        ..PLAIN
    },
    Fault {
        name: "publication without UPDATE for a moment",
        round: |stand, load, _| Box::pin(schema::without_updates(stand, load)),
        ..PLAIN
    },
    Fault {
        name: "publication dropped and made anew",
        round: |stand, load, _| Box::pin(schema::publication_anew(stand, load)),
        ..PLAIN
    },
    Fault {
        name: "guarded table dropped and made anew",
        round: |stand, load, _| Box::pin(schema::table_anew(stand, load)),
        ..PLAIN
    },
    Fault {
        name: "column of a template renamed and back",
        round: |stand, load, _| Box::pin(schema::renamed(stand, load)),
        ..PLAIN
    },
    Fault {
        name: "every row rewritten by ALTER TABLE",
        round: |stand, load, _| Box::pin(schema::rewritten(stand, load)),
        ..PLAIN
    },
    Fault {
        name: "TRUNCATE, and the rows put in again",
        rounds: 5,
        soak: true,
        round: |stand, load, _| Box::pin(schema::truncated(stand, load)),
        ..PLAIN
    },
];

fn with_lines(options: Options) -> Options {
    Options { lines: true, ..options }
}

/// Waits until the proxy says of the replica that it is not to be trusted, and why; it stays ready.
async fn distrusted(stand: &Stand, why: &str) -> Outcome {
    let mut last = String::new();
    let says = async || {
        let answer = stand.proxy.get("/readyz").await;
        last = format!("{answer:?}");
        answer.is_ok_and(|(code, text)| code == 200 && text.contains("source replica") && text.contains(why))
    };
    let waited = wait_until(&format!("/readyz to name the replica: {why}"), PATIENCE, says).await;
    waited.map_err(|error| format!("{error}; it says {last}"))?;
    assert_eq!(stand.proxy.metric("cachefence_source_up{source=\"replica-1\"}").await?, 0.0);
    stand.lives().await
}

async fn trusted(stand: &Stand) -> Outcome {
    let up = async || {
        stand.proxy.metric("cachefence_source_up{source=\"replica-1\"}").await.is_ok_and(|up| up == 1.0)
    };
    Ok(wait_until("the replica to be trusted again", PATIENCE, up).await?)
}

async fn settled(stand: &Stand) -> Fallible<Lsn> {
    lsn(&stand.status().await?, "/fence/settled_lsn").ok_or_else(|| "no settled position".into())
}

/// Commits come, and the position up to which all sources show everything does not pass this.
async fn held_at(stand: &Stand, load: &Load, most: Lsn) -> Outcome {
    load.written(100).await?;
    stand.level().await?;
    let settled = settled(stand).await?;
    if settled <= most { Ok(()) } else { Err(format!("settled at {settled}, shown is {most}").into()) }
}

async fn stopped(stand: &mut Stand, load: &Load, dice: &mut Dice) -> Outcome {
    let mode = if dice.one_in(2) { StopMode::Fast } else { StopMode::Immediate };
    stand.replica.stop(mode).await?;
    distrusted(stand, "").await?;
    let held = settled(stand).await?;
    held_at(stand, load, held).await?;
    stand.replica.start().await?;
    trusted(stand).await
}

async fn paused(stand: &mut Stand, load: &Load, dice: &mut Dice) -> Outcome {
    stand.replica.pause_replay().await?;
    let shown = stand.replica.replay_lsn().await?;
    held_at(stand, load, shown).await?;
    sleep(dice.millis(1_000)).await;
    stand.replica.resume_replay().await?;
    Ok(())
}

/// A crash restarts from the last restartpoint. That recovery stops behind where the replica was before is shown by holding
/// it up there: what is younger than the delay is not replayed.
async fn went_back(stand: &mut Stand, load: &Load) -> Outcome {
    let session = stand.replica.client().await?;
    session.batch_execute("ALTER SYSTEM SET recovery_min_apply_delay = '5s'").await?;
    stand.replica.catch_up(&stand.primary).await?;
    let before = stand.replica.replay_lsn().await?;
    let began = Instant::now();
    stand.replica.restart(StopMode::Immediate).await?;
    let after = stand.replica.replay_lsn().await?;
    assert!(after < before, "its replay is at {after} after the crash, and was at {before}: not a step back");
    trusted(stand).await?;
    // What was settled before is not any more.
    if began.elapsed() < Duration::from_secs(4) {
        let settled = settled(stand).await?;
        assert!(settled < before, "settled at {settled}, as if the replica still showed {before}");
    }
    load.written(100).await?;
    let session = stand.replica.client().await?;
    session.batch_execute("ALTER SYSTEM RESET recovery_min_apply_delay").await?;
    session.batch_execute("SELECT pg_reload_conf()").await?;
    let log = stand.proxy.log();
    assert!(log.contains("a source cannot be trusted"), "the crash was not seen");
    Ok(stand.replica.catch_up(&stand.primary).await?)
}

/// No FIN, no RST: nothing comes any more. Applications read it all the same.
async fn black_holed(stand: &mut Stand, load: &Load) -> Outcome {
    stand.lines()?.replica.black_hole();
    distrusted(stand, "no answer for").await?;
    let held = settled(stand).await?;
    held_at(stand, load, held).await?;
    stand.lines()?.replica.heal();
    trusted(stand).await
}

/// It is a primary now, and others write to it: its transaction ids soon are beyond those of the commits that it does not
/// have, and its snapshots call these seen.
async fn promoted(stand: &mut Stand, load: &Load) -> Outcome {
    let session = stand.replica.client().await?;
    session.batch_execute("SELECT pg_promote()").await?;
    distrusted(stand, "is not a standby").await?;
    consume_xids(&session).await?;
    let held = settled(stand).await?;
    held_at(stand, load, held).await?;
    evidence_is_not_believed(stand, &text(&session, "SELECT cachefence.asof()").await?).await?;
    held_at(stand, load, held).await?;
    stand.replica.copy_again(&stand.primary).await?;
    trusted(stand).await
}

/// More than the load uses in a round.
async fn consume_xids(session: &tokio_postgres::Client) -> Outcome {
    let many = "DO $$ BEGIN FOR n IN 1..20000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$";
    Ok(session.batch_execute(many).await?)
}

/// By itself it would prove what is not so: of row 0, which the load leaves alone, it does not show the last version.
pub async fn evidence_is_not_believed(stand: &Stand, evidence: &str) -> Outcome {
    let sql = stand.sql().await?;
    sql.batch_execute("UPDATE users SET version = version + 1 WHERE id = 0").await?;
    stand.level().await?;
    let mut client = stand.proxy.client().await?;
    client.cmd(&["ASOF", evidence, "SET", "user:0", "0", "PX", "60000"]).await?;
    let held = stand.redis.client().await?.cmd(&["GET", "user:0"]).await?;
    assert_eq!(held, Reply::Nil, "{evidence} was believed");
    Ok(())
}

async fn replaced(stand: &mut Stand, load: &Load) -> Outcome {
    stand.replica.stop(StopMode::Fast).await?;
    load.written(20).await?;
    stand.replica.copy_again(&stand.primary).await?;
    trusted(stand).await
}

/// A replica of something else, whose log is far ahead of ours, and who has the same tables; applications read it too.
async fn another_system(stand: &mut Stand, load: &Load) -> Outcome {
    let other = Postgres::primary(PrimaryOptions::default()).await?;
    let sql = other.client().await?;
    sql.batch_execute(
        "CREATE TABLE users (id bigint PRIMARY KEY, version bigint NOT NULL);
         INSERT INTO users SELECT id, 0 FROM generate_series(-1, 200) AS id",
    )
    .await?;
    let primary = format!("127.0.0.1:{}/", stand.lines()?.primary.port());
    init(&stand.settings.replace(&primary, &format!("127.0.0.1:{}/", other.port())))?;
    for _ in 0..20 {
        sql.batch_execute("SELECT pg_switch_wal()").await?;
        sql.batch_execute("SELECT pg_logical_emit_message(true, 'nobody', 'another segment')").await?;
    }
    let mut standby = Postgres::replica(&other, &[]).await?;
    let held = settled(stand).await?;
    stand.lines()?.replica.switch(standby.port());
    stand.lines()?.replica.cut();
    distrusted(stand, "belongs to another cluster").await?;
    load.lead(stand.primary.port(), standby.port());
    held_at(stand, load, settled(stand).await?.max(held)).await?;
    let session = standby.client().await?;
    evidence_is_not_believed(stand, &text(&session, "SELECT cachefence.asof()").await?).await?;
    stand.lines()?.replica.switch(stand.replica.port());
    stand.lines()?.replica.cut();
    load.lead(stand.primary.port(), stand.replica.port());
    // Those who read it lose their sessions.
    standby.stop(StopMode::Immediate).await?;
    trusted(stand).await
}
