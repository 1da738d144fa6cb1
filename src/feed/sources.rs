//! Polls the sources: what does each of them show?
//!
//! Each source has a task and a connection of its own, so that one that hangs holds up nobody else's poll. The
//! primary is always polled, listed as a source or not: it is the only one that can say that a commit has become
//! visible there (fact F1). Quick polls only while something is unsettled, else one a second (fact F11).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage, Statement};

use super::Identity;
use super::backoff::Backoff;
use super::catalog::CatalogError;
use super::positions::{Epoch, Positions};
use super::state::FeedState;
use crate::fence::SourceKind;
use crate::lifecycle::panics;
use crate::pg::session::{self, Ended};
use crate::pg::target::{Host, Target};
use crate::position::{Lsn, Snapshot, Xid};

/// A poll that takes longer makes the source count as lost.
const POLL_TIMEOUT: Duration = Duration::from_secs(2);
/// Between polls while everything is settled.
const IDLE: Duration = Duration::from_secs(1);
/// Between looks at suspects.
const SUSPECTS: Duration = Duration::from_millis(50);

/// A source as metrics and readiness see it.
#[derive(Debug)]
pub struct SourceState {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: SourceKind,
    /// The last poll was right.
    pub up: AtomicBool,
    /// It is no standby, or one of another system or timeline, and has not been right since: what is read there, and the
    /// evidence that it gives, is of another history.
    pub foreign: AtomicBool,
    /// A replica's replay position; on the primary, how far its log is flushed.
    pub position: AtomicU64,
    error: Mutex<Option<String>>,
}

impl SourceState {
    /// Not seen yet.
    pub fn new(name: &str, kind: SourceKind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            up: AtomicBool::new(false),
            foreign: AtomicBool::new(false),
            position: AtomicU64::new(0),
            error: Mutex::new(None),
        }
    }

    /// Why it is not up.
    pub fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers a poll's outcome and says so once per change.
    fn outcome(&self, error: Option<&PollError>) {
        match error {
            None => self.foreign.store(false, Ordering::SeqCst),
            Some(error) if self.kind == SourceKind::Replica && error.is_of_another_history() => {
                self.foreign.store(true, Ordering::SeqCst);
            }
            // Nobody knows what it shows meanwhile: it stays what it was.
            Some(_) => {}
        }
        let error = error.map(PollError::to_string);
        let was_up = self.up.swap(error.is_none(), Ordering::Relaxed);
        let mut held = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        match &error {
            Some(error) if held.as_ref() != Some(error) => tracing::error!(
                source = self.name,
                error,
                "a source cannot be trusted: what is settled stays where it is, recently written keys stay unfilled"
            ),
            None if !was_up => tracing::info!(source = self.name, "the source is right"),
            _ => {}
        }
        *held = error;
    }
}

/// A source to poll.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its place among the kinds that [`Positions`] was made with; none for a primary that is not listed.
    pub index: Option<usize>,
    /// Where it is.
    pub target: Target,
    /// What the rest of the program sees of it.
    pub state: Arc<SourceState>,
}

/// All sources that are polled, the primary among them.
#[derive(Debug)]
pub struct Sources {
    list: watch::Sender<Arc<Vec<Source>>>,
    /// The one that is polled.
    polled: watch::Sender<Arc<Vec<Source>>>,
}

impl Sources {
    /// These, from the start.
    pub fn new(sources: Vec<Source>) -> Self {
        let sources = Arc::new(sources);
        Self { list: watch::Sender::new(sources.clone()), polled: watch::Sender::new(sources) }
    }

    /// Those of now.
    pub fn load(&self) -> Arc<Vec<Source>> {
        self.polled.borrow().clone()
    }

    /// Has others polled. When this returns, no lease counts that was given before, and none will be before each of them
    /// has been polled: applications may then begin to read from those that are new.
    pub async fn replace(&self, sources: Vec<Source>) {
        let mut polled = self.polled.subscribe();
        let wanted = Arc::new(sources);
        self.list.send_replace(wanted.clone());
        // The sender is ours.
        let _ = polled.wait_for(|polled| Arc::ptr_eq(polled, &wanted)).await;
    }
}

/// Polls all sources for ever, whichever they are.
pub(super) async fn poll_all(
    sources: Arc<Sources>,
    positions: Arc<Positions>,
    feed: Arc<FeedState>,
    application_name: String,
    poll_interval: Duration,
) {
    let mut lists = sources.list.subscribe();
    loop {
        let list = lists.borrow_and_update().clone();
        if !Arc::ptr_eq(&list, &sources.load()) {
            let read = list.iter().filter(|source| source.index.is_some());
            positions.set_sources(read.map(|source| source.state.clone()).collect());
            sources.polled.send_replace(list.clone());
        }
        let mut polls = JoinSet::new();
        for source in list.iter().cloned() {
            polls.spawn(poll(
                source,
                positions.clone(),
                feed.clone(),
                application_name.clone(),
                poll_interval,
            ));
        }
        let changed = tokio::select! {
            changed = lists.changed() => changed,
            // What is settled would stay where it is for good.
            never = panics::share(&mut polls) => match never {},
        };
        if changed.is_err() {
            return;
        }
        // Each knows its source by its place. None may be left when the places change.
        polls.shutdown().await;
    }
}

/// Why a poll does not count.
#[derive(Debug, thiserror::Error)]
enum PollError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("{}", crate::pg::error::error_chain(.0))]
    Sql(#[from] tokio_postgres::Error),
    #[error("no answer for {0:?}")]
    Timeout(Duration),
    #[error("unexpected answer {0:?}")]
    Answer(String),
    #[error(
        "belongs to another cluster (system identifier {found}, the feed's is {expected}): until it is right no ASOF and no \
         version is believed"
    )]
    System { found: u64, expected: u64 },
    #[error(
        "is on timeline {found}, the feed on {expected}: until it is right no ASOF and no version is believed"
    )]
    Timeline { found: u32, expected: u32 },
    #[error(
        "is not a standby: no ASOF and no version is believed until it is one again, or no source any more (leave its url \
         out if it is the feed's primary)"
    )]
    NotStandby,
    #[error("is a standby: the feed's primary is gone")]
    NotPrimary,
    #[error("closed the connection")]
    Closed,
    #[error("was restarted")]
    Restarted,
    #[error("its replay went back from {from} to {to}")]
    WentBack { from: Lsn, to: Lsn },
}

impl PollError {
    /// What is read there is not what the feed's system holds.
    fn is_of_another_history(&self) -> bool {
        matches!(self, PollError::System { .. } | PollError::Timeline { .. } | PollError::NotStandby)
    }

    /// 57P03, cannot connect now: starting up, or shutting down.
    fn is_not_connecting(&self) -> bool {
        let PollError::Catalog(CatalogError::Postgres(error)) = self else { return false };
        error.code() == Some(SqlState::CANNOT_CONNECT_NOW.code())
    }
}

/// A connection to a source, checked once to be what it should be.
struct Session {
    client: Client,
    ended: Ended,
    host: Host,
    poll: Statement,
    system_id: u64,
    started: String,
    last: Lsn,
}

// One query, one snapshot: what it says holds together.
const POLL_PRIMARY: &str = "\
    SELECT pg_is_in_recovery(), pg_postmaster_start_time()::text, pg_current_snapshot()::text, \
           CASE WHEN pg_is_in_recovery() THEN '0/0' ELSE pg_current_wal_flush_lsn()::text END, \
           CASE WHEN pg_is_in_recovery() THEN '' ELSE left(pg_walfile_name(pg_current_wal_flush_lsn()), 8) END, \
           current_setting('synchronous_standby_names')";
const POLL_REPLICA: &str = "\
    SELECT pg_is_in_recovery(), pg_postmaster_start_time()::text, \
           coalesce(pg_last_wal_replay_lsn(), '0/0')::text, \
           coalesce((SELECT received_tli FROM pg_stat_wal_receiver), 0)::int8, \
           greatest((SELECT timeline_id FROM pg_control_checkpoint()), \
                    (SELECT min_recovery_end_timeline FROM pg_control_recovery()))::int8";
// Not idle any more between the two reads of a row? It was idle when its state was read, and that is what counts.
// A prepared transaction has not begun to commit either.
const IDLE_TRANSACTIONS: &str = "\
    SELECT backend_xid::text FROM pg_stat_activity \
    WHERE state IN ('idle in transaction', 'idle in transaction (aborted)') AND backend_xid IS NOT NULL \
    UNION ALL SELECT transaction::text FROM pg_prepared_xacts";

/// Polls one source for ever.
async fn poll(
    source: Source,
    positions: Arc<Positions>,
    feed: Arc<FeedState>,
    application_name: String,
    poll_interval: Duration,
) {
    let mut backoff = Backoff::default();
    let mut session: Option<Session> = None;
    loop {
        // Registered before the question: a commit that arrives in between must not be slept over.
        let woken = positions.wake.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();

        let pause = match positions.epoch() {
            None => IDLE,
            Some(epoch) => {
                match poll_once(&source, &mut session, &positions, &feed, &application_name, epoch).await {
                    Ok(()) => {
                        backoff.reset();
                        if source.state.kind == SourceKind::Primary {
                            feed.primary_stopping.store(false, Ordering::Relaxed);
                        }
                        source.state.outcome(None);
                        if positions.unsettled() { poll_interval } else { IDLE }
                    }
                    Err(error) => {
                        if let Some(index) = source.index {
                            positions.lost(index);
                        }
                        if source.state.kind == SourceKind::Primary {
                            feed.primary_stopping.store(error.is_not_connecting(), Ordering::Relaxed);
                        }
                        // A source that only went back is asked again in the same session.
                        if !matches!(error, PollError::WentBack { .. }) {
                            session = None;
                        }
                        source.state.outcome(Some(&error));
                        tokio::time::sleep(backoff.next()).await;
                        continue;
                    }
                }
            }
        };
        if pause == poll_interval {
            tokio::time::sleep(pause).await;
        } else {
            // A source that has crashed can be back within less, and show less than before: its clients lose their
            // connections when we lose ours.
            let closed = tokio::select! {
                () = tokio::time::sleep(pause) => false,
                () = woken => false,
                () = ended(&mut session) => true,
            };
            if closed {
                session = None;
                if let Some(index) = source.index {
                    positions.lost(index);
                }
                source.state.outcome(Some(&PollError::Closed));
            }
        }
    }
}

/// The session has ended. Not to be asked again of the same one.
async fn ended(session: &mut Option<Session>) {
    match session {
        Some(session) => _ = (&mut session.ended).await,
        None => std::future::pending().await,
    }
}

async fn poll_once(
    source: &Source,
    session: &mut Option<Session>,
    positions: &Positions,
    feed: &FeedState,
    application_name: &str,
    epoch: Epoch,
) -> Result<(), PollError> {
    let kind = source.state.kind;
    if kind == SourceKind::Primary && session.as_ref().map(|session| &session.host) != feed.primary().as_ref()
    {
        *session = None;
    }
    let connected = match session {
        Some(session) => session,
        None => {
            let target = match kind {
                SourceKind::Primary => feed.at_primary(&source.target),
                SourceKind::Replica => source.target.clone(),
            };
            let opening = Session::open(&target, kind, application_name);
            let opened = match kind {
                // One address, and another one as soon as the feed has gone elsewhere.
                SourceKind::Primary => within(opening).await?,
                // Each of its addresses has a limit of its own: the first may never answer.
                SourceKind::Replica => opening.await?,
            };
            session.insert(opened)
        }
    };
    connected.belongs_to(epoch.identity)?;
    let polled = async {
        match source.state.kind {
            SourceKind::Primary => {
                connected.poll_primary(source, positions, feed, application_name, epoch).await
            }
            SourceKind::Replica => connected.poll_replica(source, positions, epoch).await,
        }
    };
    within(polled).await
}

async fn within<T>(asking: impl Future<Output = Result<T, PollError>>) -> Result<T, PollError> {
    tokio::time::timeout(POLL_TIMEOUT, asking).await.map_err(|_| PollError::Timeout(POLL_TIMEOUT))?
}

/// Polls a standby once, for the doctor: how far it has replayed.
///
/// # Errors
/// In words, why its polls would not count.
pub async fn look_at_replica(target: &Target, application_name: &str, feed: Identity) -> Result<Lsn, String> {
    let looked = async {
        let session = Session::open(target, SourceKind::Replica, application_name).await?;
        session.belongs_to(feed)?;
        session.replayed(feed).await
    };
    within(looked).await.map_err(|error| error.to_string())
}

impl Session {
    async fn open(target: &Target, kind: SourceKind, application_name: &str) -> Result<Self, PollError> {
        let (client, host, ended) =
            session::connect_watched(target, application_name).await.map_err(CatalogError::Postgres)?;
        let (row, poll) = within(async {
            let sql = "SELECT system_identifier, pg_postmaster_start_time()::text FROM pg_control_system()";
            let row = client.query_one(sql, &[]).await?;
            let poll = match kind {
                SourceKind::Primary => client.prepare(POLL_PRIMARY).await?,
                SourceKind::Replica => client.prepare(POLL_REPLICA).await?,
            };
            Ok((row, poll))
        })
        .await?;
        // Postgres prints the identifier unsigned in IDENTIFY_SYSTEM and returns it as a signed bigint here.
        let system_id = row.get::<_, i64>(0).cast_unsigned();
        Ok(Self { client, ended, host, poll, system_id, started: row.get(1), last: Lsn(0) })
    }

    async fn poll_primary(
        &mut self,
        source: &Source,
        positions: &Positions,
        feed: &FeedState,
        application_name: &str,
        epoch: Epoch,
    ) -> Result<(), PollError> {
        if positions.wants_suspects() {
            self.find_suspects(positions, epoch).await?;
        } else if positions.has_suspects() {
            self.clear_suspects(positions, epoch).await?;
            tokio::time::sleep(SUSPECTS).await;
        }
        let row = self.client.query_one(&self.poll, &[]).await?;
        if row.get(0) {
            return Err(PollError::NotPrimary);
        }
        if row.get::<_, &str>(1) != self.started {
            return Err(PollError::Restarted);
        }
        let timeline: &str = row.get(4);
        let found = u32::from_str_radix(timeline, 16).map_err(|_| PollError::Answer(timeline.into()))?;
        if found != epoch.identity.timeline {
            return Err(PollError::Timeline { found, expected: epoch.identity.timeline });
        }
        feed.see_synchronous(row.get(5), application_name);
        let snapshot: Snapshot = parse(row.get(2))?;
        let flushed: Lsn = parse(row.get(3))?;
        source.state.position.store(flushed.0, Ordering::Relaxed);
        if positions.epoch() == Some(epoch) {
            feed.see_flushed(flushed, positions.now());
        }
        positions.primary(epoch, snapshot);
        Ok(())
    }

    /// The transactions that may have committed before a fresh slot's position without being visible yet: those
    /// that have an xid below a new one and that a snapshot does not see.
    async fn find_suspects(&mut self, positions: &Positions, epoch: Epoch) -> Result<(), PollError> {
        // The session commits with synchronous_commit = local (F14); the xid must be assigned now, so this is the
        // one transaction of ours that writes.
        let messages = self.client.simple_query("SELECT pg_current_xact_id()::text").await?;
        let next = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).and_then(|text| text.parse().ok()).map(Xid),
            _ => None,
        });
        let next = next.ok_or_else(|| PollError::Answer("no transaction id".into()))?;
        let row = self.client.query_one(&self.poll, &[]).await?;
        let snapshot: Snapshot = parse(row.get(2))?;
        positions.suspect(epoch, &snapshot, next);
        Ok(())
    }

    async fn clear_suspects(&mut self, positions: &Positions, epoch: Epoch) -> Result<(), PollError> {
        let rows = self.client.query(IDLE_TRANSACTIONS, &[]).await?;
        let idle: Vec<Xid> = rows
            .iter()
            .filter_map(|row| row.get::<_, &str>(0).parse().ok())
            .map(|xid| positions.extend(xid))
            .collect();
        positions.seen_idle(epoch, &idle);
        Ok(())
    }

    async fn poll_replica(
        &mut self,
        source: &Source,
        positions: &Positions,
        epoch: Epoch,
    ) -> Result<(), PollError> {
        let replay = self.replayed(epoch.identity).await?;
        let from = std::mem::replace(&mut self.last, replay);
        if replay < from {
            return Err(PollError::WentBack { from, to: replay });
        }
        source.state.position.store(replay.0, Ordering::Relaxed);
        if let Some(index) = source.index {
            positions.replica(epoch, index, replay);
        }
        Ok(())
    }

    /// How far it has replayed, if it is a standby of the feed's system.
    async fn replayed(&self, feed: Identity) -> Result<Lsn, PollError> {
        let row = self.client.query_one(&self.poll, &[]).await?;
        if !row.get::<_, bool>(0) {
            return Err(PollError::NotStandby);
        }
        if row.get::<_, &str>(1) != self.started {
            return Err(PollError::Restarted);
        }
        let (received, known) = (row.get(3), row.get(4));
        follows(received, known, feed.timeline)?;
        parse(row.get(2))
    }

    /// That it is of the feed's cluster.
    fn belongs_to(&self, feed: Identity) -> Result<(), PollError> {
        let (found, expected) = (self.system_id, feed.system_id);
        if found == expected { Ok(()) } else { Err(PollError::System { found, expected }) }
    }
}

/// Whether a standby is on the feed's timeline: by what it receives, 0 if that is nothing, and by what its control file knows.
///
/// After a failover the control file can name the old timeline until the next restartpoint; what the standby receives then tells
/// that it follows. One that receives nothing may have replayed, before the failover, what the promoted one has never had: it
/// cannot follow, and its position is beyond those of commits that it will never show. A newer timeline than the feed's is never
/// right.
fn follows(received: i64, known: i64, expected: u32) -> Result<(), PollError> {
    let feed = i64::from(expected);
    let on = if received == 0 { known } else { received };
    if on == feed && known <= feed {
        return Ok(());
    }
    Err(PollError::Timeline { found: u32::try_from(on.max(known)).unwrap_or_default(), expected })
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T, PollError> {
    text.parse().map_err(|_| PollError::Answer(text.chars().take(80).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_that_has_not_been_seen_to_follow_is_on_another_timeline() {
        for (received, known) in [(2, 2), (2, 1), (0, 2)] {
            assert!(follows(received, known, 2).is_ok(), "{received} {known}");
        }
        for (received, known) in [(0, 1), (1, 1), (1, 2), (2, 3), (0, 3), (3, 3)] {
            assert!(follows(received, known, 2).is_err(), "{received} {known}");
        }
    }

    #[test]
    fn another_history_is_remembered_until_a_poll_is_right() {
        let replica = SourceState::new("replica", SourceKind::Replica);
        let is = |replica: &SourceState| replica.foreign.load(Ordering::SeqCst);
        replica.outcome(Some(&PollError::Closed));
        assert!(!is(&replica), "one that cannot be reached shows what it showed");
        for wrong in [
            PollError::NotStandby,
            PollError::System { found: 1, expected: 2 },
            PollError::Timeline { found: 2, expected: 1 },
        ] {
            replica.outcome(Some(&wrong));
            assert!(is(&replica), "{wrong}");
            replica.outcome(Some(&PollError::Restarted));
            assert!(is(&replica), "{wrong}, and nobody knows what since");
            replica.outcome(None);
            assert!(!is(&replica), "right again");
        }
        let primary = SourceState::new("primary", SourceKind::Primary);
        primary.outcome(Some(&PollError::Timeline { found: 2, expected: 1 }));
        assert!(!is(&primary), "the feed follows it, with a gap");
    }
}
