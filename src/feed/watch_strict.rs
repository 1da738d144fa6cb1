//! Asks Postgres whether commits wait for the proxy, at once when a stream starts and then all the time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_postgres::Client;

use super::Settings;
use super::catalog::{self, CatalogError};
use super::standby_names::StandbyNames;
use super::state::FeedState;
use super::strict::{Hold, Strict, named};
use crate::pg::target::Target;
use crate::position::Lsn;

/// Between looks while it is in force.
const LOOK: Duration = Duration::from_millis(500);
/// Between looks while it is not.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A look that takes longer counts as a no.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// After so long all is looked at anew.
const CATCH_UP: Duration = Duration::from_secs(1);
/// How often a position that must be reached is looked at.
const STEP: Duration = Duration::from_millis(2);

/// Looks for ever.
pub(super) async fn watch(state: Arc<FeedState>, settings: Settings) {
    let Some(strict) = state.strict() else { return };
    let mut client: Option<Client> = None;
    loop {
        // Registered before the look: a stream that begins meanwhile must not be slept over.
        let changed = strict.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();

        if let Some(stream) = strict.stream() {
            let looked = tokio::time::timeout(LOOK_TIMEOUT, look(&state, strict, &settings, &mut client));
            match looked.await {
                Ok(Ok(setting)) => strict.rise(stream, &setting),
                Ok(Err(NotInForce::Seen(why))) => strict.fall(why),
                Ok(Err(NotInForce::Unknown(error))) => {
                    client = None;
                    strict.fall(format!("Postgres cannot be asked whether commits wait: {error}"));
                }
                Err(_) => {
                    client = None;
                    strict
                        .fall(format!("Postgres does not say within {LOOK_TIMEOUT:?} whether commits wait"));
                }
            }
        }
        let pause = if strict.is_in_force() { LOOK } else { LOOK_AGAIN };
        let _ = tokio::time::timeout(pause, changed).await;
    }
}

/// Why the contract is not in force.
#[derive(Debug)]
enum NotInForce {
    /// As seen.
    Seen(String),
    /// Postgres could not be asked.
    Unknown(CatalogError),
}

impl<E: Into<CatalogError>> From<E> for NotInForce {
    fn from(error: E) -> Self {
        NotInForce::Unknown(error.into())
    }
}

// Our walsender is the one that reads our slot, whoever else has our name.
const LOOK_AT_US: &str = "\
    SELECT current_setting('synchronous_standby_names'), w.pid, w.state, w.sync_state, \
           (SELECT count(*) FROM pg_catalog.pg_stat_get_wal_senders() q WHERE q.sync_state = 'quorum'), \
           current_user::text \
    FROM (VALUES (1)) AS one \
    LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1 \
    LEFT JOIN pg_catalog.pg_stat_get_wal_senders() w ON w.pid = s.active_pid";

async fn look(
    state: &FeedState,
    strict: &Strict,
    settings: &Settings,
    client: &mut Option<Client>,
) -> Result<String, NotInForce> {
    let client = match client {
        Some(client) => client,
        None => {
            let target = state.at_primary(&settings.target);
            client.insert(catalog::connect(&target, &settings.application_name).await?)
        }
    };
    let setting = stands(client, settings).await?;
    if strict.is_in_force() {
        return strict.same(&setting).map(|()| setting).map_err(NotInForce::Seen);
    }
    see_a_commit_wait(strict, &state.at_primary(&settings.target), settings, client).await?;
    catch_up(state, client).await?;
    // Still? Only what holds before and after held in between.
    if stands(client, settings).await? == setting {
        return Ok(setting);
    }
    Err(NotInForce::Seen("synchronous_standby_names is being changed".into()))
}

/// Postgres counts us among those that every commit waits for, by this setting.
async fn stands(client: &Client, settings: &Settings) -> Result<String, NotInForce> {
    let row = client.query_one(LOOK_AT_US, &[&settings.slot]).await?;
    let setting: String = row.get(0);
    named(&setting, &settings.application_name).map_err(NotInForce::Seen)?;
    let seen = |what: String| Err(NotInForce::Seen(what));
    if row.get::<_, Option<i32>>(1).is_none() {
        return seen("Postgres has no walsender for our slot yet".into());
    }
    let (streaming, sync): (Option<&str>, Option<&str>) = (row.get(2), row.get(3));
    let (Some(streaming), Some(sync)) = (streaming, sync) else {
        let role: &str = row.get(5);
        return seen(format!(
            "role {role:?} may not see whether commits wait; run: GRANT pg_monitor TO {};",
            super::quoting::quoted_name(role)
        ));
    };
    let quorum = StandbyNames::parse(&setting).and_then(|names| names.quorum());
    let voters = usize::try_from(row.get::<_, i64>(4)).unwrap_or(usize::MAX);
    match (streaming, sync) {
        ("streaming", "sync") => Ok(setting),
        // More voters than votes needed: two standbys have one name.
        ("streaming", "quorum") if quorum.is_some_and(|needed| voters <= needed) => Ok(setting),
        ("streaming", _) => seen(format!(
            "Postgres counts us as {sync:?}: another standby has our name or one before it in \
             synchronous_standby_names ({setting:?}); give each a name of its own"
        )),
        (state, _) => seen(format!("our walsender is in state {state:?}: it has not caught up yet")),
    }
}

/// Sees a commit wait for us, by holding back its confirmation.
///
/// That Postgres counts us is not enough. Every process reads the settings anew in its own time, and whether commits
/// wait at all is for the checkpointer to say, which in the middle of a checkpoint takes its time.
async fn see_a_commit_wait(
    strict: &Strict,
    primary: &Target,
    settings: &Settings,
    client: &Client,
) -> Result<(), NotInForce> {
    let probe = catalog::connect(primary, &settings.application_name).await?;
    probe.batch_execute("SET synchronous_commit = on").await?;
    let pid: i32 = probe.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    // The commit to come ends beyond this.
    let hold = Hold::beyond(strict, flushed(client).await?);
    let waits = {
        // Something to commit, in no table.
        let commit = probe.batch_execute("SELECT pg_logical_emit_message(true, 'cachefence_probe', '')");
        tokio::pin!(commit);
        loop {
            tokio::select! {
                committed = &mut commit => {
                    committed?;
                    break false;
                }
                () = tokio::time::sleep(STEP) => {}
            }
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'";
            if client.query_one(sql, &[&pid]).await?.get::<_, i64>(0) > 0 {
                break true;
            }
        }
    };
    drop(hold);
    // It may wait for another standby too. It has changed nothing, and need not.
    client.execute("SELECT pg_cancel_backend($1)", &[&pid]).await?;
    if waits {
        return Ok(());
    }
    Err(NotInForce::Seen("Postgres counts us, but commits do not wait yet".into()))
}

/// Waits until all is deleted that was acknowledged before commits began to wait.
///
/// Such a commit was flushed before it was acknowledged, and did not wait, so before one was seen to wait: it is below
/// the position where the log is flushed now.
async fn catch_up(state: &FeedState, client: &Client) -> Result<(), NotInForce> {
    let flushed = flushed(client).await?;
    let applied = async {
        while state.applied_lsn.load(Ordering::Relaxed) < flushed.0 {
            tokio::time::sleep(STEP).await;
        }
    };
    tokio::time::timeout(CATCH_UP, applied).await.map_err(|_| {
        NotInForce::Seen("what was committed before commits began to wait is not deleted yet".into())
    })
}

async fn flushed(client: &Client) -> Result<Lsn, NotInForce> {
    let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await?;
    let text: String = row.get(0);
    Ok(text.parse().map_err(|_| CatalogError::Answer(text))?)
}
