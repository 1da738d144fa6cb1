//! Failovers: the replica is promoted, a new one is made, and applications and the proxy go there. The slot is not.

use std::time::Duration;

use cachefence::demo::servers::{Postgres, StopMode, wait_until};
use tokio::time::sleep;

use super::{PLAIN, gaps, launch, one_more_gap};
use crate::dice::Dice;
use crate::fault::{BOUNDED, Fault};
use crate::load::Load;
use crate::sources::evidence_is_not_believed;
use crate::stand::{Options, Stand};
use crate::support::{Outcome, PATIENCE, text};

const LINES: fn(Options) -> Options = |options| Options { lines: true, ..options };

pub const NOTHING_LOST: Fault = Fault {
    name: "failover: replica promoted, nothing lost, slot missing",
    soak: false,
    rounds: 2,
    options: LINES,
    round: |stand, load, dice| Box::pin(nothing_lost(stand, load, dice)),
    ..PLAIN
};

pub const COMMITS_LOST: Fault = Fault {
    name: "failover: replica promoted, acknowledged commits lost",
    soak: false,
    rounds: 2,
    options: LINES,
    round: |stand, load, dice| Box::pin(commits_lost(stand, load, dice)),
    ..PLAIN
};

pub const SEVERAL_HOSTS: Fault = Fault {
    name: "failover: url of several hosts, target_session_attrs=read-write",
    contracts: BOUNDED,
    soak: false,
    rounds: 1,
    options: LINES,
    round: |stand, load, dice| Box::pin(several_hosts(stand, load, dice)),
    ..PLAIN
};

pub const ANOTHER_AHEAD: Fault = Fault {
    name: "failover: another replica has what the promoted one lacks",
    soak: false,
    rounds: 2,
    options: LINES,
    round: |stand, load, dice| Box::pin(another_ahead(stand, load, dice)),
    ..PLAIN
};

/// A primary that is stopped in order sends its replicas everything first.
async fn nothing_lost(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let before = gaps(stand, "new_timeline").await?;
    stand.primary.stop(StopMode::Fast).await?;
    stand.not_ready("").await?;
    promote(stand, load).await?;
    stand.lines()?.primary.switch(stand.primary.port());
    one_more_gap(stand, "new_timeline", before).await?;
    stand.name_standby().await
}

/// The replica had received nothing for a while. What the proxy has applied, and what is cached, was never there.
async fn commits_lost(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let before = gaps(stand, "new_timeline").await?;
    receives_nothing(&stand.replica).await?;
    load.written(50).await?;
    stand.level().await?;
    stand.primary.stop(StopMode::Immediate).await?;
    stand.not_ready("").await?;
    // Nobody can write now.
    load.rebase();
    promote(stand, load).await?;
    stand.lines()?.primary.switch(stand.primary.port());
    one_more_gap(stand, "new_timeline", before).await?;
    stand.name_standby().await
}

/// Cuts a replica off.
async fn receives_nothing(replica: &Postgres) -> Outcome {
    let replica = replica.client().await?;
    replica.batch_execute("ALTER SYSTEM SET primary_conninfo = ''").await?;
    replica.batch_execute("SELECT pg_reload_conf()").await?;
    Ok(wait_until("the replica to receive nothing", PATIENCE, async || {
        text(&replica, "SELECT count(*)::text FROM pg_stat_wal_receiver").await.is_ok_and(|n| n == "0")
    })
    .await?)
}

/// The replica that applications read has replayed what the promoted one has never had. It cannot follow that one, and its
/// position is beyond those of commits that it does not show.
async fn another_ahead(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let before = gaps(stand, "new_timeline").await?;
    let behind = Postgres::replica(&stand.primary, &[]).await?;
    receives_nothing(&behind).await?;
    let much =
        "SELECT pg_logical_emit_message(true, 'nobody', repeat('x', 1000000)) FROM generate_series(1, 20)";
    stand.sql().await?.batch_execute(much).await?;
    load.written(50).await?;
    stand.level().await?;
    stand.replica.catch_up(&stand.primary).await?;
    stand.primary.stop(StopMode::Immediate).await?;
    stand.not_ready("").await?;
    load.rebase();
    raise(&behind).await?;
    stand.primary = behind;
    load.lead(stand.primary.port(), stand.replica.port());
    stand.lines()?.primary.switch(stand.primary.port());
    one_more_gap(stand, "new_timeline", before).await?;
    stand.name_standby().await?;
    load.written(20).await?;
    wait_until("the replica to be seen on the old timeline", PATIENCE, async || {
        stand
            .proxy
            .get("/readyz")
            .await
            .is_ok_and(|(code, text)| code == 200 && text.contains("is on timeline"))
    })
    .await?;
    // Longer than no evidence counts after the failover anyway.
    sleep(Duration::from_secs(4)).await;
    let replica = stand.replica.client().await?;
    evidence_is_not_believed(stand, &text(&replica, "SELECT cachefence.asof()").await?).await?;
    stand.replica.copy_again(&stand.primary).await?;
    Ok(())
}

async fn several_hosts(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let (line, replica) = (stand.lines()?.primary.port(), stand.replica.port());
    let one = format!("@127.0.0.1:{line}/app");
    let two = format!("@127.0.0.1:{line},127.0.0.1:{replica}/app?target_session_attrs=read-write");
    assert!(stand.settings.contains(&one), "{}", stand.settings);
    stand.settings = stand.settings.replace(&one, &two);
    stand.proxy.stop().await?;
    stand.proxy = launch(&stand.settings, load)?;
    stand.recovered().await?;
    load.warm().await?;
    stand.primary.stop(StopMode::Fast).await?;
    stand.not_ready("").await?;
    promote(stand, load).await?;
    one_more_gap(stand, "new_timeline", 0.0).await
}

/// The replica becomes the primary, and gets a replica of its own.
async fn promote(stand: &mut Stand, load: &Load) -> Outcome {
    raise(&stand.replica).await?;
    let replica = Postgres::replica(&stand.replica, &[]).await?;
    stand.lines()?.replica.cut();
    stand.lines()?.replica.switch(replica.port());
    stand.primary = std::mem::replace(&mut stand.replica, replica);
    load.lead(stand.primary.port(), stand.replica.port());
    Ok(())
}

/// Makes a primary of a replica.
async fn raise(replica: &Postgres) -> Outcome {
    let promoted = replica.client().await?;
    promoted.batch_execute("SELECT pg_promote()").await?;
    // What the old one was told is no setting of this one; and no commit waits for the proxy before it streams from here.
    promoted.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").await?;
    promoted.batch_execute("SELECT pg_reload_conf()").await?;
    Ok(())
}
