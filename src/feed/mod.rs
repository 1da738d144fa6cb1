//! Follows Postgres's logical replication: commits become fences and deletions.
//!
//! ```text
//!  catalog   does the database fit the guards?  publication, slot
//!  problem   what does not fit, and the SQL that mends it
//!  stream    the socket: read, apply, confirm
//!  patience  how long a silent stream is borne with
//!  apply     rows -> keys; a commit -> fences, settlement, deletions
//!  sources   polls what the sources show -> settlement
//!  reached   how far every key is deleted, and who waits for that
//!  strict    do commits wait for us?  watch_strict asks Postgres
//!  lag       how far behind the feed is, in time
//!  guarding  guards that change while all this runs
//!  state     how all this is doing, for everyone else
//! ```
//!
//! [`Feed::run`] is the whole of it: it connects, starts a stream, and starts over when that ends. Commits are
//! handed to the cache as [`CacheJob`]s; the cache answers with a position that moves, and that is confirmed.

pub mod apply;
mod backoff;
pub mod catalog;
mod guarding;
mod job;
mod lag;
mod patience;
mod positions;
mod problem;
pub(crate) mod quoting;
mod reached;
pub mod sources;
pub mod sql;
pub mod standby_names;
mod state;
mod stream;
mod strict;
mod watch_strict;

use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_postgres::Client;

pub use apply::MESSAGE_PREFIX;
pub use catalog::{CatalogError, Held, Problem};
pub use job::{CacheJob, Found, GapReason, Identity, Invalidation, Room};
pub use positions::Positions;
pub use reached::{Awaited, Reached};
pub use sources::{Source, SourceState, Sources};
pub use state::FeedState;
pub use stream::{STOP_WITHIN, StreamError};
pub use strict::Strict;

use crate::fence::Millis;
use crate::guard::{GuardId, Guards};
use crate::lifecycle::panics;
use crate::pg::replication::{Backend, Lasts, System, Walsender, identifier};
use crate::pg::target::Target;
use crate::position::Lsn;
use apply::Applier;
use backoff::Backoff;
use catalog::{Publication, Slot, Table};
use job::Rooms;
use patience::Patience;
use standby_names::StandbyNames;
use state::{BROKEN_BY_CATALOG, BROKEN_BY_STREAM};
use stream::Stream;

/// Between looks at the catalog while the stream runs.
const CATALOG_INTERVAL: Duration = Duration::from_secs(10);
/// And no less than this, however often the stream asks for one.
const CATALOG_PAUSE: Duration = Duration::from_millis(200);
/// Between judgements of the feed's health.
const HEALTH_INTERVAL: Duration = Duration::from_millis(50);
/// An attempt to set the stream up, without connecting and waiting for transactions and for the cache, takes no longer.
const SETUP_TIMEOUT: Duration = Duration::from_secs(30);
/// A walsender that was told to end lets go of its slot at once, unless it cannot run; then the next attempt finds it free.
const RELEASE: Duration = Duration::from_secs(2);
/// Between looks whether it has.
const RELEASE_STEP: Duration = Duration::from_millis(10);
/// The first Postgres whose slots can survive a failover.
const FAILOVER_SLOTS: i32 = 170_000;
/// What a stream ends with when the publication is not there, as of the commit that it decodes.
const UNDEFINED_OBJECT: &str = "42704";

/// What the feed needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `postgres.url`, read: where the primary is.
    pub target: Target,
    /// The replication slot.
    pub slot: String,
    /// It goes with the connection.
    pub temporary_slot: bool,
    /// It survives a failover, where Postgres can do that.
    pub failover_slot: bool,
    /// Large transactions are received while they run, where Postgres can do that.
    pub streaming: bool,
    /// The publication.
    pub publication: String,
    /// The name in `pg_stat_replication`.
    pub application_name: String,
    /// The feed counts as lost after this long without a message.
    pub feed_lost_after: Duration,
    /// The feed counts as lost when it lags by more than this.
    pub max_lag: Duration,
    /// How often sources are polled while a commit is unsettled.
    pub poll_interval: Duration,
    /// How long a miss can vouch: for so long after the start a fill may be of a miss that a predecessor answered.
    pub lease_ttl: Duration,
    /// The Redis db that guards apply to.
    pub db: u32,
}

/// Why the feed ended. It ends only for what a person has to mend, and only before its first stream.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The database, or our access to it, is not as it must be.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The stream.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl FeedError {
    fn is_permanent(&self) -> bool {
        match self {
            FeedError::Catalog(error) => error.is_permanent(),
            FeedError::Stream(StreamError::Postgres(error)) => error.is_permanent(),
            FeedError::Stream(StreamError::CacheGone) => true,
            FeedError::Stream(_) => false,
        }
    }
}

impl From<crate::pg::error::PgError> for FeedError {
    fn from(error: crate::pg::error::PgError) -> Self {
        CatalogError::from(error).into()
    }
}

/// The feed.
#[derive(Debug)]
pub struct Feed {
    settings: Settings,
    guards: Arc<Guards>,
    /// Those of a reload that the cache has not heard of yet.
    added: Vec<GuardId>,
    sources: Arc<Sources>,
    positions: Arc<Positions>,
    state: Arc<FeedState>,
    stream: Stream,
    identity: Option<Identity>,
    ever_streamed: bool,
    /// The next stream starts over for this reason.
    regap: Option<GapReason>,
    /// The stream did not find the publication: if there is one now, it is newer than the slot.
    outdated: bool,
    /// The walsender that we were the last to have make or take the slot.
    reader: Option<Backend>,
}

/// All is in place for a stream.
struct Ready {
    sender: Walsender,
    backend: Backend,
    client: Client,
    position: Lsn,
    /// How far the server's log was flushed.
    flushed: Lsn,
    floor: Lsn,
    identity: Identity,
    gap: Option<GapReason>,
    tables: Vec<Table>,
    /// Guards that were broken, and fit again.
    mended: Vec<GuardId>,
}

impl Feed {
    /// Puts the feed together; nothing happens before [`Feed::run`].
    ///
    /// `sources` are polled; the primary has to be among them, with `index: None` if it is not configured as a
    /// source. `applied` is the cache's answer to `jobs`: up to where all is deleted.
    pub fn new(
        settings: Settings,
        guards: Arc<Guards>,
        sources: Arc<Sources>,
        positions: Arc<Positions>,
        state: Arc<FeedState>,
        jobs: mpsc::Sender<CacheJob>,
        applied: watch::Receiver<Lsn>,
    ) -> Self {
        let stream = Stream {
            in_blocks: settings.streaming,
            applier: Applier::new(guards.clone(), settings.db, positions.clone(), state.clone()),
            positions: positions.clone(),
            state: state.clone(),
            jobs,
            rooms: Rooms::default(),
            applied,
            confirmed: Lsn(0),
            feed_lost_after: settings.feed_lost_after,
            patience: Patience::new(settings.feed_lost_after),
        };
        Self {
            settings,
            guards,
            added: Vec::new(),
            sources,
            positions,
            state,
            stream,
            identity: None,
            ever_streamed: false,
            regap: None,
            outdated: false,
            reader: None,
        }
    }

    /// Follows the database until it is told to [stop](FeedState::stop). Everything it starts ends when the future is
    /// dropped.
    ///
    /// # Errors
    /// Before the first stream: what a person has to mend. Later: only if the cache's task has ended.
    /// # Panics
    /// When a task has that watches the database for it.
    pub async fn run(mut self) -> Result<(), FeedError> {
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(sources::poll_all(
            self.sources.clone(),
            self.positions.clone(),
            self.state.clone(),
            self.settings.application_name.clone(),
            self.settings.poll_interval,
        ));
        tasks.spawn(judge_health(self.state.clone(), self.positions.clone(), self.settings.clone()));
        tasks.spawn(watch_catalog(self.state.clone(), self.guards.clone(), self.settings.clone()));
        tasks.spawn(watch_strict::watch(self.state.clone(), self.settings.clone()));
        tokio::select! {
            ended = self.follow() => ended,
            // Without one of them nobody would see that the feed is lost, say, or that commits do not wait any more.
            never = panics::share(&mut tasks) => match never {},
        }
    }

    async fn follow(&mut self) -> Result<(), FeedError> {
        let mut backoff = Backoff::default();
        loop {
            let streaming_since = std::time::Instant::now();
            let error = match self.connect_and_stream().await {
                Ok(()) => continue,
                Err(error) => error,
            };
            self.state.ended(self.positions.now());
            if matches!(error, FeedError::Stream(StreamError::Stopped)) || self.state.is_told_to_stop() {
                return Ok(());
            }
            if matches!(error, FeedError::Stream(StreamError::Regarded)) {
                backoff.reset();
                continue;
            }
            let cache_gone = matches!(error, FeedError::Stream(StreamError::CacheGone));
            if cache_gone || (error.is_permanent() && !self.ever_streamed) {
                return Err(error);
            }
            if matches!(error, FeedError::Stream(StreamError::Mended)) {
                self.regap = Some(GapReason::CatalogMended);
            }
            if matches!(error, FeedError::Stream(StreamError::SlotMoved { .. })) {
                self.regap = Some(GapReason::SlotAdvanced);
            }
            if matches!(&error, FeedError::Stream(StreamError::Postgres(e)) if e.code() == Some(UNDEFINED_OBJECT))
            {
                self.outdated = true;
            }
            if self.state.set_error(Some(error.to_string())) {
                tracing::error!(%error, "the feed is interrupted; trying again");
            }
            if streaming_since.elapsed() > Duration::from_secs(10) {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    async fn connect_and_stream(&mut self) -> Result<(), FeedError> {
        self.take_guards();
        let mut ready = self.prepare().await?;
        let (settings, position) = (&self.settings, ready.position);
        if let Some(reason) = ready.gap {
            self.state.count_gap(reason);
            tracing::warn!(
                %reason,
                %position,
                "a gap: commits before this position may have been missed, all guarded keys are purged"
            );
        }
        let first = self.identity.is_none();
        if first || ready.gap.is_some() {
            // As with a fresh slot, until the marker proves that a predecessor has confirmed this one: then no more
            // was confirmed than the primary had settled.
            self.positions.restart(ready.identity, position, ready.floor, true);
            self.stream.confirmed = position;
            self.stream.patience.restart(position);
            if ready.gap.is_some_and(GapReason::abandons_history) {
                self.distrust_evidence();
            }
            self.state.server_end_lsn.store(position.0, Ordering::Relaxed);
            // Of another history, perhaps: nobody may take it for one of this.
            self.state.applied_lsn.store(position.0, Ordering::Relaxed);
        }
        self.identity = Some(ready.identity);
        if first {
            for (guard, why) in catalog::weak_versions(&self.guards, &ready.tables) {
                tracing::warn!(guard = guard.label, why, "version evidence is of no use for a guard");
            }
        }
        if !self.added.is_empty() {
            self.positions.begin_guards(&self.added, guarding::beginning(ready.flushed));
        }
        self.stream.applier.restart(std::mem::take(&mut ready.tables));

        let (answer, answered) = oneshot::channel();
        let job = CacheJob::Start {
            identity: ready.identity,
            slot_position: position,
            flushed: ready.flushed,
            gap: ready.gap,
            added: self.added.clone(),
            ready: answer,
        };
        self.stream.jobs.send(job).await.map_err(|_| StreamError::CacheGone)?;
        // An answer that never comes because the job was dropped: the cache starts over, and so do we.
        let Ok(found) = answered.await else {
            let what = CatalogError::Answer("the cache gave up the start of the stream".into());
            return Err(what.into());
        };
        if first {
            self.succeed(found, &ready);
        }
        // Told and taken: the gap is dealt with, even if this stream never starts.
        self.regap = None;
        self.added.clear();
        self.state.guarded_by(&self.guards);
        self.outdated = false;
        // Not before: what was changed meanwhile is not known, and fills of it were refused.
        for guard in ready.mended.drain(..) {
            self.state.set_broken(guard, BROKEN_BY_CATALOG | BROKEN_BY_STREAM, false);
        }
        // Before it is: should the answer not come, it may have.
        self.reader = Some(ready.backend.clone());
        // The connection has done nothing while the cache was waited for: it may be gone without anybody having said so.
        let beginning = async {
            ready.sender.give_up_after(self.stream.patience.sender_timeout()).await?;
            let in_blocks = self.stream.in_blocks;
            ready.sender.start(&settings.slot, position, &settings.publication, in_blocks).await
        };
        in_time(beginning).await?;
        let held = unmoved(&ready.client, settings, position).await?;
        self.state.see_held(&settings.slot, Some(held));
        self.state.heard(self.positions.now());
        self.state.begun(ready.flushed);
        self.ever_streamed = true;
        tracing::info!(slot = settings.slot, %position, "streaming");
        let streaming = self.stream.run(&mut ready.sender, position);
        tokio::pin!(streaming);
        tokio::select! {
            ended = &mut streaming => return Ok(ended?),
            () = end_a_record(&ready.client) => {}
        }
        Ok(streaming.await?)
    }

    /// Takes over from the process before.
    fn succeed(&self, found: Found, ready: &Ready) {
        let Found::Predecessor { same_history, level } = found else { return };
        if !same_history {
            self.distrust_evidence();
        }
        // Where commits waited for us, or for the process before, more was confirmed than was visible.
        let unseen = self.state.confirms_unseen() || self.state.unseen.load(Ordering::Relaxed);
        if level && ready.gap.is_none() && !unseen {
            self.positions.restart(ready.identity, ready.position, ready.floor, false);
        }
        let fence = self.positions.fence();
        let now = self.positions.now();
        fence.distrust_leases(now + self.settings.lease_ttl.as_millis() as Millis);
        fence.distrust_lives(now);
    }

    /// Fills that are under way may be of what was read in another history.
    fn distrust_evidence(&self) {
        let takes = self.settings.lease_ttl.as_millis() as Millis;
        self.positions.fence().distrust_evidence(self.positions.now() + takes);
    }

    /// Connects, looks at the catalog, makes publication and slot if they are missing, and works out whether
    /// commits may have been missed.
    async fn prepare(&mut self) -> Result<Ready, FeedError> {
        let settings = &self.settings;
        // A look that began before a reload may have found a guard broken that is none any more.
        let broken: Vec<GuardId> =
            self.state.broken().filter(|guard| self.guards.get(*guard).is_some()).collect();
        // It has limits of its own, for each address: the last of several hosts may be the one that answers.
        let mut sender = catalog::walsender(&settings.target, &settings.application_name).await?;
        let setup = async {
            let system = sender.identify().await?;
            self.state.connected.store(true, Ordering::Relaxed);
            let client =
                catalog::connect_beside(&mut sender, &settings.target, &settings.application_name).await?;
            self.state.see_primary(sender.host());
            let server = catalog::server(&client).await?;
            self.positions.seen_next_xid(server.snapshot.xmax());
            self.state.see_synchronous(&server.synchronous_standby_names, &settings.application_name);
            let (tables, problems) = catalog::tables(&client, &self.guards).await?;
            // All at once: a person mends them in one go.
            let mut problems = [server.problems.clone(), problems].concat();
            let publication = catalog::publication(&client, &settings.publication, &self.guards).await?;
            if let Publication::Present(found) = &publication {
                problems.extend_from_slice(found);
            }
            let slot = catalog::slot(&client, &settings.slot, settings.temporary_slot).await?;
            problems.extend(slot.iter().filter_map(|slot| slot.problem.clone()));
            if !problems.is_empty() {
                return Err(CatalogError::Problems(problems));
            }
            let slot = self.freed(&client, slot).await?;
            let backend = sender.backend().await?;
            Ok::<_, CatalogError>((system, client, server, tables, publication, slot, backend))
        };
        let (system, client, server, mut tables, publication, slot, backend) = in_time(setup).await?;

        // The publication comes first: a slot decodes with the catalog of its time, and knows no publication that
        // was made after it (fact F14).
        let published = match publication {
            Publication::Missing { create: sql } => {
                let creating = async {
                    let created = client.batch_execute(&sql).await;
                    created.map_err(|source| CatalogError::Create { what: "the publication", source })
                };
                in_time(creating).await?;
                tracing::info!(sql, "created the publication");
                true
            }
            Publication::Present(_) => false,
        };
        in_time(catalog::stamp(&client, &settings.publication, &mut tables)).await?;
        let identity = Identity { system_id: system.system_id, timeline: system.timeline };
        let gone_back = self.identity.is_some() && server.flushed < self.stream.reached();
        let mut gap = self
            .regap
            .or_else(|| elsewhere(self.identity, identity))
            .or(gone_back.then_some(GapReason::WentBack));
        // What came or went while no stream ran has no place in it.
        let known = if self.identity.is_some() { self.state.tables() } else { Vec::new() };
        // Of guards that were added nothing was known, and all that is theirs goes anyway.
        let tables_of_then: Vec<Table> =
            tables.iter().filter(|table| !self.added.contains(&table.guard)).cloned().collect();
        if !known.is_empty()
            && !in_time(differing(&client, &self.guards, &known, &tables_of_then)).await?.is_empty()
        {
            gap = gap.or(Some(GapReason::CatalogMended));
        }
        if !broken.is_empty() {
            gap = gap.or(Some(GapReason::CatalogMended));
        }
        let held = slot.as_ref().map(|slot| slot.held.clone());
        let can_failover = server.version >= FAILOVER_SLOTS;
        let position = match slot {
            Some(slot) if slot.active => return Err(CatalogError::SlotInUse(settings.slot.clone()).into()),
            Some(slot) if !slot.lost && !published && !self.outdated => {
                // More was confirmed than we did: commits in between are gone.
                if gap.is_none() && self.identity.is_some() && slot.confirmed > self.stream.confirmed {
                    gap = Some(GapReason::SlotAdvanced);
                }
                if can_failover && slot.failover != settings.failover_slot {
                    // It waits where somebody has taken the slot meanwhile.
                    let altering = async {
                        alter_slot(&mut sender, settings).await;
                        Ok::<(), CatalogError>(())
                    };
                    in_time(altering).await?;
                }
                slot.confirmed
            }
            other => {
                let reason = match &other {
                    None => GapReason::FreshSlot,
                    Some(slot) if slot.lost => GapReason::SlotLost,
                    Some(_) => GapReason::NewPublication,
                };
                if other.is_some() {
                    in_time(sender.drop_slot(&settings.slot)).await?;
                }
                gap = gap.or(Some(reason));
                let lasts = match (settings.temporary_slot, settings.failover_slot && can_failover) {
                    (true, _) => Lasts::Connection,
                    (false, true) => Lasts::Failover,
                    (false, false) => Lasts::Server,
                };
                // It holds the slot while it makes it, which can take long: should the line be cut, nobody else ends that.
                self.reader = Some(backend.clone());
                create_slot(&mut sender, &client, settings, lasts, &self.state, &system).await?
            }
        };
        self.state.see_held(&settings.slot, held);
        // A new process does not know since when the publication has contained each table: what was committed
        // before now may have gone by unseen. So it starts to vouch from here; a running one knows.
        let flushed = server.flushed;
        let floor = position.max(flushed);
        Ok(Ready { sender, backend, client, position, flushed, floor, identity, gap, tables, mended: broken })
    }

    /// The slot, and nobody reads it any more if that was our last connection. Postgres may hold that for alive long after
    /// we have given it up: where the line was cut, nobody told it. Whoever else reads the slot is left alone.
    async fn freed(&self, client: &Client, slot: Option<Slot>) -> Result<Option<Slot>, CatalogError> {
        let settings = &self.settings;
        let (true, Some(reader)) = (slot.as_ref().is_some_and(|slot| slot.active), &self.reader) else {
            return Ok(slot);
        };
        if !catalog::end_reader(client, &settings.slot, reader).await? {
            return Ok(slot);
        }
        tracing::warn!(
            slot = settings.slot,
            pid = reader.pid,
            "ended the walsender of our last connection, which Postgres took for alive"
        );
        let started = std::time::Instant::now();
        loop {
            let slot = catalog::slot(client, &settings.slot, settings.temporary_slot).await?;
            if !slot.as_ref().is_some_and(|slot| slot.active) || started.elapsed() > RELEASE {
                return Ok(slot);
            }
            tokio::time::sleep(RELEASE_STEP).await;
        }
    }
}

/// What Postgres does not answer in time it never will: the line may be cut.
async fn in_time<T, E: Into<CatalogError>>(
    asking: impl Future<Output = Result<T, E>>,
) -> Result<T, CatalogError> {
    let answered = tokio::time::timeout(SETUP_TIMEOUT, asking).await;
    answered.map_err(|_| CatalogError::Timeout(SETUP_TIMEOUT))?.map_err(Into::into)
}

/// Whether positions of two identities cannot be compared.
fn elsewhere(before: Option<Identity>, now: Identity) -> Option<GapReason> {
    let before = before?;
    if before.system_id != now.system_id {
        Some(GapReason::NewSystem)
    } else if before.timeline != now.timeline {
        Some(GapReason::NewTimeline)
    } else {
        None
    }
}

/// The stream has begun, and nobody else can move or drop the slot any more. Somebody may have before, since it was looked
/// at: the server then goes on from there without a word, and what is in between never comes.
async fn unmoved(client: &Client, settings: &Settings, from: Lsn) -> Result<Held, FeedError> {
    match in_time(catalog::slot(client, &settings.slot, settings.temporary_slot)).await? {
        Some(slot) if slot.confirmed > from => {
            Err(StreamError::SlotMoved { from, to: slot.confirmed }.into())
        }
        Some(slot) => Ok(slot.held),
        None => Err(CatalogError::Answer("a stream from a slot that is not there".into()).into()),
    }
}

/// The position up to which the log was flushed can lie inside of a record, which cannot be sent before its end is flushed too:
/// on an idle server in up to 15 s, and until then the feed would not know that it is level. A commit flushes all before it.
async fn end_a_record(client: &Client) {
    let sql = "SELECT pg_catalog.pg_logical_emit_message(true, 'cachefence:level', '')";
    let committed = tokio::time::timeout(SETUP_TIMEOUT, client.execute(sql, &[]));
    if !matches!(committed.await, Ok(Ok(_))) {
        tracing::debug!("no commit could be made: the feed is level when somebody else makes one");
    }
}

/// Has the slot survive a failover, or not, as the settings say. Without it nothing is lost but time: after a failover a
/// slot would have to be made anew.
async fn alter_slot(sender: &mut Walsender, settings: &Settings) {
    let (slot, failover) = (&settings.slot, settings.failover_slot);
    match sender.alter_slot(slot, failover).await {
        Ok(()) => tracing::info!(slot, failover, "altered the slot"),
        Err(error) => tracing::warn!(
            slot, %error,
            "the slot's failover cannot be set to {failover}; run it in a replication connection (psql \
             \"dbname=... replication=database\") as a role that may: ALTER_REPLICATION_SLOT {} (FAILOVER {failover});",
            identifier(slot)
        ),
    }
}

/// Creates the slot. Postgres waits for every transaction that is running: say so while it does.
///
/// Those that have committed and wait for us do not end before we confirm them, and we confirm nothing without a slot
/// (fact F14): only a person can let them go. Once they have, all goes on by itself.
async fn create_slot(
    sender: &mut Walsender,
    client: &Client,
    settings: &Settings,
    lasts: Lasts,
    state: &FeedState,
    system: &System,
) -> Result<Lsn, CatalogError> {
    let creating = sender.create_slot(&settings.slot, lasts);
    tokio::pin!(creating);
    loop {
        tokio::select! {
            created = &mut creating => {
                let position = created?.consistent_point;
                tracing::info!(slot = settings.slot, %position, ?lasts, system = system.system_id, "created the slot");
                return Ok(position);
            }
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                // Should the line be cut, this does not answer either.
                let why = in_time(why_no_slot(client, &settings.application_name)).await?;
                if state.set_error(Some(why.clone())) {
                    tracing::warn!("{why}");
                }
            }
        }
    }
}

/// Whom the creation of a slot waits for, and what to run where that would be for ever.
async fn why_no_slot(client: &Client, application_name: &str) -> Result<String, CatalogError> {
    let row = client
        .query_one(
            "SELECT current_setting('synchronous_standby_names'), \
                    count(*) FILTER (WHERE wait_event = 'SyncRep'), \
                    (array_agg(pid ORDER BY xact_start))[1] \
             FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()",
            &[],
        )
        .await?;
    let (setting, waiting): (&str, i64) = (row.get(0), row.get(1));
    let names = StandbyNames::parse(setting).filter(|names| names.names(application_name));
    Ok(match (names, waiting, row.get::<_, Option<i32>>(2)) {
        (Some(names), 1.., _) => format!(
            "the slot is gone, and its creation waits for {waiting} commits that wait for this proxy; run: {} Then put \
             {setting:?} back",
            names.remedy_without(application_name)
        ),
        (_, _, Some(pid)) => {
            format!("creating the slot waits for open transactions, the oldest of pid {pid}")
        }
        _ => "creating the slot waits for open transactions".to_owned(),
    })
}

async fn judge_health(state: Arc<FeedState>, positions: Arc<Positions>, settings: Settings) {
    let mut tick = tokio::time::interval(HEALTH_INTERVAL);
    loop {
        tick.tick().await;
        state.judge(positions.now(), settings.feed_lost_after, settings.max_lag);
    }
}

/// Looks at the catalog while the stream runs: a table that leaves the publication, a partition that is attached, detached or
/// emptied, are silent in the stream. And the stream asks for a look when it meets what it does not know. Looks at what
/// the slot holds back also while nothing streams.
async fn watch_catalog(state: Arc<FeedState>, guards: Arc<Guards>, settings: Settings) {
    let name = &settings.application_name;
    let mut client: Option<Client> = None;
    loop {
        let _ = tokio::time::timeout(CATALOG_INTERVAL, state.look.notified()).await;
        let guards = state.reloaded().unwrap_or_else(|| guards.clone());
        let connected = match client.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => match catalog::connect(&state.at_primary(&settings.target), name).await {
                Ok(client) => client,
                // The stream's own troubles are told by the stream.
                Err(_) => continue,
            },
        };
        let looked = async {
            let slot = catalog::slot(&connected, &settings.slot, settings.temporary_slot).await?;
            state.see_held(&settings.slot, slot.map(|slot| slot.held));
            // Before a stream the start looks for itself.
            if state.streaming.load(Ordering::Relaxed) && !state.is_changing() {
                let (tables, problems) = look(&connected, &guards, &settings.publication).await?;
                // Of other guards than the stream's it would know nothing.
                if state.is_still(&guards) {
                    mark(&state, &guards, &problems);
                    tell(&connected, &state, &guards, tables).await?;
                }
            }
            Ok::<(), CatalogError>(())
        };
        let looked = tokio::time::timeout(SETUP_TIMEOUT, looked).await;
        match looked.unwrap_or(Err(CatalogError::Timeout(SETUP_TIMEOUT))) {
            Ok(()) => client = Some(connected),
            Err(error) => tracing::debug!(%error, "the catalog cannot be read"),
        }
        tokio::time::sleep(CATALOG_PAUSE).await;
    }
}

async fn look(
    client: &Client,
    guards: &Guards,
    publication: &str,
) -> Result<(Vec<Table>, Vec<Problem>), CatalogError> {
    let (mut tables, mut problems) = catalog::tables(client, guards).await?;
    catalog::stamp(client, publication, &mut tables).await?;
    match catalog::publication(client, publication, guards).await? {
        Publication::Present(found) => problems.extend(found),
        Publication::Missing { create } => {
            problems.push(Problem::NoPublication { publication: quoting::quoted_name(publication), create })
        }
    }
    Ok((tables, problems))
}

/// Tells the stream what a look has found, at a place of its own: by a message that comes behind every commit that the look
/// has seen. Before it come those that name the guards whose rows may be others now.
async fn tell(
    client: &Client,
    state: &FeedState,
    guards: &Guards,
    found: Vec<Table>,
) -> Result<(), CatalogError> {
    let held = state.tables();
    // Of a guard that is broken nothing new is known.
    let of = |tables: &[Table], id| tables.iter().find(|table: &&Table| table.guard == id).cloned();
    let tables: Vec<Table> =
        guards.iter().filter_map(|guard| of(&found, guard.id).or_else(|| of(&held, guard.id))).collect();
    // What has broken a guard in the stream may be gone again before anybody has looked, and no row comes since then.
    let is_mended =
        |id| state.is_broken_by(id, BROKEN_BY_STREAM) && !state.is_broken_by(id, BROKEN_BY_CATALOG);
    if (tables == held && !guards.iter().any(|guard| is_mended(guard.id))) || state.has_found(&tables) {
        return Ok(());
    }
    if !catalog::has_messages(client).await? {
        // While a guard is broken no stream starts: the others go on, and it starts over when that one is mended.
        if !guards.iter().any(|guard| state.is_broken_by(guard.id, BROKEN_BY_CATALOG)) {
            state.altered.notify_one();
        }
        return Ok(());
    }
    let mut names = differing(client, guards, &held, &tables).await?;
    tracing::info!(fenced = ?names, "the catalog has changed; guards whose rows may be others now are fenced as a whole");
    // No label, which has a dot.
    let ticket = format!("{:016x}", std::hash::RandomState::new().hash_one("look"));
    names.push(&ticket);
    if !state.is_still(guards) {
        return Ok(());
    }
    // Before the message, which may come back faster than this goes on.
    state.set_found(&ticket, tables);
    let sql = "SELECT pg_catalog.pg_logical_emit_message(true, $1, name) FROM pg_catalog.unnest($2::text[]) AS name";
    let told = client.execute(sql, &[&apply::TABLE_PREFIX, &names]).await;
    // The next look tells it again.
    told.map(drop).inspect_err(|_| state.forget_found()).map_err(Into::into)
}

/// The guards whose rows or keys may be others than before, although no commit tells of it.
async fn differing<'a>(
    client: &Client,
    guards: &'a Guards,
    before: &[Table],
    after: &[Table],
) -> Result<Vec<&'a str>, CatalogError> {
    let mut differing = Vec::new();
    for guard in guards {
        let of = |tables: &'_ [Table]| tables.iter().find(|table| table.guard == guard.id).cloned();
        if let Some(now) = of(after)
            && catalog::may_differ(client, of(before).as_ref(), &now).await?
        {
            differing.push(guard.label.as_str());
        }
    }
    Ok(differing)
}

/// Raises the guards' flags. Once nothing is wrong any more the stream starts over, as what was changed meanwhile is not
/// known; that lowers them. Not before: with another guard broken the start would wait for that one, and all others with it.
fn mark(state: &FeedState, guards: &Guards, problems: &[Problem]) {
    for guard in guards {
        let id: GuardId = guard.id;
        let found: Vec<Problem> =
            problems.iter().filter(|problem| problem.guard().is_none_or(|of| of == id)).cloned().collect();
        let was = state.is_broken_by(id, BROKEN_BY_CATALOG);
        if !found.is_empty() && !was {
            state.set_broken(id, BROKEN_BY_CATALOG, true);
            tracing::error!(
                guard = guard.label,
                problems = catalog::describe(&found),
                "a guard is broken: its fills are refused until this is mended"
            );
        }
    }
    if problems.is_empty() && guards.iter().any(|guard| state.is_broken_by(guard.id, BROKEN_BY_CATALOG)) {
        state.mended.notify_one();
    }
}

#[cfg(test)]
mod tests;
