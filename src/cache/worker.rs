//! The worker: drain, delete, and only then let the feed confirm.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout_at};
use tracing::{info, warn};

use super::connection::text;
use super::deleted::Deleted;
use super::reaper::kill_predecessors;
use super::silence::Silence;
use super::turns::pass;
use super::unlink::{Marked, Marking, unlink};
use super::{CacheError, Connection, Endpoint, Marker, Standing, Upstreams, purge_guards};
use crate::audit::Commits;
use crate::command::CommandTable;
use crate::config::marker_key;
use crate::failpoint::{self, Point};
use crate::feed::{CacheJob, Found, GapReason, Identity, Invalidation, Room};
use crate::fence::{Fence, FillId, GuardId, KeyHash};
use crate::guard::{CacheKey, Guards};
use crate::metrics::Metrics;
use crate::position::Lsn;

/// What the worker is made of.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// Where Redis is.
    pub address: Endpoint,
    /// The beginning of the names of all connections of this slot.
    pub slot_name: String,
    /// The name of this incarnation: `slot_name`, a colon, and the incarnation.
    pub name: String,
    /// The slot.
    pub slot: String,
    /// This process.
    pub incarnation: String,
    /// How long a deletion waits for a fill that Redis has not answered.
    pub drain_timeout: Duration,
    /// Delete nothing, write nothing; acknowledge.
    pub observe: bool,
    /// Commits wait for us, those that change no guarded key too.
    pub strict: bool,
    /// More may be confirmed than the primary shows. The feed says so, and a predecessor's marker.
    pub unseen: Arc<AtomicBool>,
    /// The slot goes with its connection, and nobody comes back to it: its marker goes, too.
    pub temporary_slot: bool,
}

/// What others may know of the worker.
#[derive(Debug, Default)]
pub struct CacheState {
    /// The worker's connection stands, and what this Redis holds has been brought level with the feed.
    pub connected: AtomicBool,
    /// All guarded keys are being purged: until that is done, what Redis holds may be of any age.
    pub purging: AtomicBool,
    /// The `run_id` of the Redis that is level, while one is.
    pub run_id: Mutex<Option<String>>,
    /// Connections that were lost: whoever lost one may have been the first to see that Redis is another one.
    pub doubts: AtomicU64,
    /// So many of them have been cleared up: the worker's connection has worked since, or is a new one.
    pub cleared: AtomicU64,
    /// Keys that wait to be deleted.
    pub backlog: AtomicU64,
    /// What went wrong last.
    pub error: Mutex<Option<String>>,
    /// Why the marker could not be written behind the last deletions, which are done.
    pub unmarked: Mutex<Option<String>>,
    /// Why fills of lost connections cannot be ended, for which deletions of their keys wait.
    pub unreaped: Mutex<Option<String>>,
}

/// Deletes what commits changed. Owns the proxy's own connection to Redis.
pub struct Worker {
    settings: WorkerSettings,
    fence: Arc<Fence>,
    guards: Arc<ArcSwap<Guards>>,
    upstreams: Arc<Upstreams>,
    commands: Arc<ArcSwap<CommandTable>>,
    metrics: Arc<Metrics>,
    commits: Arc<Commits>,
    state: Arc<CacheState>,
    applied: watch::Sender<Lsn>,
    connection: Option<Connection>,
    /// Of the Redis that was last connected.
    run_id: String,
    /// Known once the feed has begun.
    identity: Option<Identity>,
    /// A stream is being started: nothing is deleted in Redis before its predecessors' connections are gone, and what its
    /// marker says is not overwritten before it is judged.
    starting: bool,
    deleted: Deleted,
    marker_written: Instant,
    /// The guards whose keys are as the marker says: others may be matched already.
    guarded: u64,
    /// The last one that Redis has taken.
    marked: Option<Marker>,
    silence: Silence,
}

const RETRY: Duration = Duration::from_millis(200);
/// Commits that one round trip to Redis takes, at most.
const MAX_BATCH: usize = 4096;
/// Commits of tables without a guard move the feed too. The marker follows them at this pace, and the applied
/// position with it: were it confirmed before it is in the marker, the next start would find the marker behind.
const MARKER_PACE: Duration = Duration::from_millis(100);
/// How often the connection is looked after while nothing is to be deleted.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// What the worker shares with the rest of the proxy.
pub struct Shared {
    /// Where fills are in flight.
    pub fence: Arc<Fence>,
    /// Whose keys are purged.
    pub guards: Arc<ArcSwap<Guards>>,
    /// Who carries fills.
    pub upstreams: Arc<Upstreams>,
    /// Where the upstream's command table goes.
    pub commands: Arc<ArcSwap<CommandTable>>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// When commits were made, for the auditor.
    pub commits: Arc<Commits>,
}

impl CacheState {
    /// Whether what Redis holds is level with what the feed has applied.
    pub fn is_level(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
            && !self.purging.load(Ordering::Relaxed)
            && self.cleared.load(Ordering::Acquire) >= self.doubts.load(Ordering::Acquire)
    }

    /// A connection was lost. To be said before anything is sent on another one.
    pub fn doubt(&self) {
        self.doubts.fetch_add(1, Ordering::AcqRel);
    }

    /// The worker's connection has answered what was asked when there were so many doubts.
    fn clear(&self, doubts: u64) {
        self.cleared.fetch_max(doubts, Ordering::AcqRel);
    }

    /// Why the marker is behind, if it is.
    pub fn unmarked(&self) -> Option<String> {
        self.unmarked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why fills of lost connections cannot be ended, if so.
    pub fn unreaped(&self) -> Option<String> {
        self.unreaped.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes how the marker fared, and says so where that is new.
    fn marked(&self, marked: Marked) {
        let mut unmarked = self.unmarked.lock().unwrap_or_else(PoisonError::into_inner);
        match (marked, unmarked.is_some()) {
            (Marked::NoRoom(error), noted) => {
                if !noted {
                    warn!(error, "Redis is full: keys are deleted, and the marker cannot be written");
                }
                *unmarked = Some(error);
            }
            (Marked::Written, true) => {
                info!("the marker is written again");
                *unmarked = None;
            }
            (Marked::Written, false) => {}
        }
    }
}

impl Worker {
    /// A worker that has not connected yet. Where everything is deleted up to goes to `applied`.
    pub fn new(
        settings: WorkerSettings,
        shared: Shared,
        state: Arc<CacheState>,
        applied: watch::Sender<Lsn>,
    ) -> Self {
        let Shared { fence, guards, upstreams, commands, metrics, commits } = shared;
        let guarded = guards.load().digest();
        Self {
            settings,
            fence,
            guards,
            upstreams,
            commands,
            metrics,
            commits,
            state,
            applied,
            connection: None,
            run_id: String::new(),
            identity: None,
            starting: false,
            deleted: Deleted::default(),
            marker_written: Instant::now(),
            guarded,
            marked: None,
            silence: Silence::default(),
        }
    }

    /// Works until the feed is gone.
    pub async fn run(mut self, mut jobs: mpsc::Receiver<CacheJob>) {
        // Clients can be served before the feed has begun, with the command table of the Redis they talk to.
        self.retrying(async |worker| worker.connected().await.map(drop)).await;
        let mut batch = Vec::new();
        let mut changes = Vec::new();
        // Given back when the changes are done, so that no more come than shall be held.
        let mut rooms: Vec<Room> = Vec::new();
        // What the feed has reached, be it applied or waiting for its turn to be written into the marker.
        let mut reached = Lsn(0);
        loop {
            let pending = reached > *self.applied.borrow();
            let until = match (pending, &self.connection) {
                (true, _) => self.marker_written + MARKER_PACE,
                // The last look has failed, and has waited.
                (false, None) if !self.settings.observe => Instant::now(),
                (false, _) => Instant::now() + LOOK_AFTER,
            };
            tokio::select! {
                received = timeout_at(until.into(), jobs.recv_many(&mut batch, MAX_BATCH)) => match received {
                    Ok(0) => return,
                    Err(_) if !pending => self.look_after().await,
                    _ => {}
                },
                // Perhaps Redis was: our own connection will tell.
                () = self.upstreams.lost.notified() => self.look_after().await,
                // Ours would stay where it is.
                () = self.upstreams.moved.notified(), if !self.settings.observe => {
                    if self.connection.is_some() && self.upstreams.is_elsewhere(&self.run_id) {
                        self.failed(CacheError::Elsewhere { address: self.settings.address.to_string() }).await;
                        self.look_after().await;
                    }
                }
                // A Redis that comes back with older data must not be read before it is level, not even by the first
                // client to come.
                error = ended(&mut self.connection) => {
                    self.failed(error).await;
                    self.look_after().await;
                }
            }
            for job in batch.drain(..) {
                match job {
                    CacheJob::Invalidate(change, room) => {
                        reached = change.end_lsn;
                        changes.push(change);
                        rooms.push(room);
                    }
                    CacheJob::Advance(lsn) => reached = lsn,
                    CacheJob::Start { identity, slot_position: position, flushed, gap, added, ready } => {
                        self.apply(std::mem::take(&mut changes), reached).await;
                        rooms.clear();
                        let found = self.start(identity, position, flushed, gap, &added).await;
                        reached = position;
                        // Nobody waits if the feed was lost again meanwhile; it will start once more.
                        let _ = ready.send(found);
                    }
                }
            }
            self.silence.end(&self.upstreams, self.settings.address.reply_timeout);
            let at_once = self.settings.observe || self.settings.strict;
            let due = at_once || self.marker_written.elapsed() >= MARKER_PACE;
            if due || !changes.is_empty() {
                self.apply(std::mem::take(&mut changes), reached).await;
                rooms.clear();
            }
        }
    }

    /// Nothing has come for a while. A Redis that was replaced, or would refuse deletions, has to be noticed although
    /// nothing is to be deleted in it: clients would read whatever it holds.
    ///
    /// Once: the connections of fills that are waited for have to be ended also while Redis answers nobody.
    async fn look_after(&mut self) {
        self.attempt(async |worker| {
            let doubts = worker.state.doubts.load(Ordering::Acquire);
            let (begun, observe) = (worker.identity.is_some(), worker.settings.observe);
            let connection = worker.connected().await?;
            // Who only observes writes no marker, and says all the same when Redis is away.
            if !begun || observe {
                connection.call(&[b"PING"]).await?;
                worker.state.clear(doubts);
                return Ok(());
            }
            let applied = *worker.applied.borrow();
            let behind = worker.settings.temporary_slot || worker.state.unmarked().is_some();
            let marking = if behind { worker.marking() } else { Marking::Absent };
            worker.unlink(&[], applied, marking).await
        })
        .await;
    }

    fn marking(&self) -> Marking {
        if self.settings.temporary_slot { Marking::Expiring } else { Marking::Lasting }
    }

    /// Deletes keys and writes the marker.
    async fn unlink(&mut self, keys: &[&CacheKey], applied: Lsn, marking: Marking) -> Result<(), CacheError> {
        let marker = self.marker(applied);
        let (began, doubts) = (Instant::now(), self.state.doubts.load(Ordering::Acquire));
        let marked = match &mut self.connection {
            Some(connection) => unlink(connection, keys, marker.as_ref(), marking).await?,
            None => return Err(not_connected(&self.settings.address)),
        };
        self.silence.answered(began);
        self.state.clear(doubts);
        self.state.marked(marked);
        self.marked = marker;
        Ok(())
    }

    /// Deletes what the changes name, and moves the applied position.
    async fn apply(&mut self, changes: Vec<Invalidation>, advanced: Lsn) {
        let applied = *self.applied.borrow();
        if changes.is_empty() && advanced <= applied {
            return;
        }
        // Commits that are sent again, after the feed was interrupted, are behind what is applied already.
        let advanced = advanced.max(applied);
        if !self.settings.observe {
            self.drain(changes.iter().flat_map(|change| change.draining.iter().copied()).collect()).await;
            if !changes.is_empty() {
                failpoint::pass(Point::Drained);
            }
            let keys: usize = changes.iter().map(|change| change.keys.len()).sum();
            self.state.backlog.store(keys as u64, Ordering::Relaxed);
            self.retrying(async |worker| worker.delete(&changes, advanced).await).await;
            self.state.backlog.store(0, Ordering::Relaxed);
        }
        self.count(&changes);
        self.commits.add(changes.iter().map(|change| (change.written_lsn, change.commit_time_us)));
        for change in &changes {
            if !change.truncated.is_empty() {
                self.deleted.lost(change.written_lsn);
            }
            for key in &change.keys {
                self.deleted.push(change.written_lsn, key);
            }
        }
        if advanced > applied {
            self.applied.send_replace(advanced);
            failpoint::pass(Point::Applied);
        }
    }

    /// Waits until the fills have ended. No client can hold that up: after `drain_timeout` the connections
    /// that carry them are ended.
    async fn drain(&self, mut fills: Vec<(KeyHash, FillId)>) {
        let deadline = tokio::time::Instant::now() + self.settings.drain_timeout;
        let mut doomed = false;
        loop {
            let ended = self.upstreams.ended.notified();
            tokio::pin!(ended);
            // Listening before looking: an end in between is not missed.
            ended.as_mut().enable();
            fills.retain(|(key, fill)| self.fence.is_in_flight(*key, *fill));
            if fills.is_empty() {
                return;
            }
            if doomed {
                ended.await;
            } else if timeout_at(deadline, ended).await.is_err() {
                warn!(
                    fills = fills.len(),
                    "fills not answered within drain_timeout: ending their connections"
                );
                fills.iter().for_each(|(_, fill)| self.upstreams.doom(*fill));
                doomed = true;
            }
        }
    }

    async fn delete(&mut self, changes: &[Invalidation], advanced: Lsn) -> Result<(), CacheError> {
        self.connected().await?;
        // All are fenced already: one walk through Redis does for all of them.
        let truncated: BTreeSet<GuardId> =
            changes.iter().flat_map(|change| change.truncated.iter().copied()).collect();
        if !truncated.is_empty() {
            self.purge("truncate", |guard| truncated.contains(&guard)).await?;
        }
        let keys: Vec<&CacheKey> = changes.iter().flat_map(|change| &change.keys).collect();
        self.unlink(&keys, advanced, self.marking()).await?;
        self.marker_written = Instant::now();
        failpoint::pass(Point::Marked);
        Ok(())
    }

    fn marker(&self, applied: Lsn) -> Option<Marker> {
        let guards = self.guards.load();
        Some(Marker {
            identity: self.identity?,
            slot: self.settings.slot.clone(),
            applied,
            incarnation: self.settings.incarnation.clone(),
            guards: self.guarded,
            tables: Some(guards.tables_digest()),
            unseen: self.settings.unseen.load(Ordering::Relaxed),
        })
    }

    /// The feed begins: what Redis holds is brought level with its position.
    async fn start(
        &mut self,
        identity: Identity,
        position: Lsn,
        flushed: Lsn,
        gap: Option<GapReason>,
        added: &[GuardId],
    ) -> Found {
        self.identity = Some(identity);
        // Not before: until those that are new have been dealt with, no marker may say so.
        let guarded = std::mem::replace(&mut self.guarded, self.guards.load().digest());
        let before = self.marked.clone().filter(|_| guarded != self.guarded);
        if gap.is_some() || *self.applied.borrow() == Lsn(0) {
            self.deleted.restart(position);
            self.applied.send_replace(position);
        }
        if self.settings.observe {
            return Found::Nothing;
        }
        // What the first look has found: it may have to be done again, and finds our own traces then.
        let found = OnceLock::new();
        self.starting = true;
        self.retrying(async |worker| {
            // Whoever held the slot before may have fills under way.
            let (slot_name, own) = (worker.settings.slot_name.clone(), worker.settings.name.clone());
            kill_predecessors(worker.connected().await?, &slot_name, &own).await?;
            failpoint::pass(Point::Succeeded);
            if !added.is_empty() {
                worker.pass().await?;
            }
            let standing = match worker.standing(before.as_ref()).await? {
                // The server's storage went back: what was cached may have been committed in a log that is gone.
                Standing::At(lsn) | Standing::OtherGuards(lsn) if lsn > flushed => Standing::Foreign,
                standing => standing,
            };
            let found = *found.get_or_init(|| standing.found(position));
            worker.bring_level(standing, gap, added).await?;
            if !added.is_empty() {
                // What was written to their tables before was not deleted. The guards can have been there before, and gone: a
                // marker of then, should Redis go back to it, is of the same guards.
                let applied = *worker.applied.borrow();
                worker.deleted.restart(applied);
            }
            failpoint::pass(Point::Level);
            worker.starting = false;
            Ok(found)
        })
        .await
    }

    /// Guards were added, and are matched already. Returns when no fill of before can come any more that they have not judged.
    async fn pass(&mut self) -> Result<(), CacheError> {
        // Reads of their keys must not find what will be gone in a moment.
        self.state.purging.store(true, Ordering::Relaxed);
        match &mut self.connection {
            Some(connection) => pass(&self.upstreams, connection, self.settings.drain_timeout).await,
            None => Err(not_connected(&self.settings.address)),
        }
    }

    /// Where this Redis's data stands. The marker may be one that this process has written for the guards of `before`: all
    /// that was guarded then stands as it says.
    async fn standing(&mut self, before: Option<&Marker>) -> Result<Standing, CacheError> {
        let expected = self.marker(*self.applied.borrow());
        let key = marker_key(&self.settings.slot);
        let (Some(connection), Some(expected)) = (&mut self.connection, expected) else {
            return Err(not_connected(&self.settings.address));
        };
        let found = connection.call(&[b"GET", key.as_bytes()]).await?;
        let found = text(&found);
        // Until the primary has shown all of it the next process has to know, too.
        if found.and_then(Marker::parse).is_some_and(|found| found.unseen) {
            self.settings.unseen.store(true, Ordering::Relaxed);
        }
        let before = before.map(|before| Marker { identity: expected.identity, ..before.clone() });
        Ok(match (expected.judge(found), before.map(|before| before.judge(found))) {
            (Standing::OtherGuards(_), Some(at @ Standing::At(_))) => at,
            (standing, _) => standing,
        })
    }

    /// Deletes again what this Redis has not seen deleted, or all that is guarded where that is not known.
    async fn bring_level(
        &mut self,
        standing: Standing,
        gap: Option<GapReason>,
        added: &[GuardId],
    ) -> Result<(), CacheError> {
        let applied = *self.applied.borrow();
        // Also where it stands at what is applied: of a large transaction that is still arriving more is deleted than
        // the marker tells, and this Redis may have gone back to any part of it.
        let again = match standing {
            Standing::At(lsn) => self.deleted.after(lsn),
            _ => None,
        };
        let purge = match (gap, standing) {
            (Some(gap), _) => Some(gap.as_str()),
            (None, Standing::At(_)) if again.is_some() => None,
            (None, Standing::At(_)) => Some("marker_behind"),
            (None, Standing::Missing) => Some("marker_missing"),
            (None, Standing::Foreign) => Some("marker_foreign"),
            (None, Standing::OtherGuards(_)) => Some("guards_changed"),
        };
        if let Some(reason) = purge {
            self.state.purging.store(true, Ordering::Relaxed);
            self.void_marker().await?;
            // Where it fails, the connection is given up first.
            self.purge(reason, |_| true).await?;
        } else if !added.is_empty() {
            self.purge("guards_added", |guard| added.contains(&guard)).await?;
        }
        self.state.purging.store(false, Ordering::Relaxed);
        let again = again.unwrap_or_default();
        if !again.is_empty() {
            info!(%applied, keys = again.len(), "this Redis is behind: deleting again");
        }
        self.unlink(&again.iter().collect::<Vec<_>>(), applied, self.marking()).await
    }

    /// Whoever finds a purge that was not finished has to do it again, and may have no other reason to: what the feed has
    /// missed is not sent to the next process either. Where a full Redis takes no marker that says so, none says it too.
    async fn void_marker(&mut self) -> Result<(), CacheError> {
        self.unlink(&[], Lsn(0), self.marking()).await?;
        if let (Some(connection), Some(_)) = (&mut self.connection, self.state.unmarked()) {
            connection.call(&[b"UNLINK", marker_key(&self.settings.slot).as_bytes()]).await?;
        }
        Ok(())
    }

    /// Deletes every key of the guards.
    async fn purge(
        &mut self,
        reason: &'static str,
        wanted: impl Fn(GuardId) -> bool,
    ) -> Result<(), CacheError> {
        // Fills that were let in before the fence was raised must not come after the SCAN has passed.
        let mut draining = Vec::new();
        self.fence.in_flight(&mut draining);
        self.drain(draining).await;
        self.metrics.purged(reason);
        info!(reason, "purging the guarded keys");
        let guards = self.guards.load_full();
        let purged = match &mut self.connection {
            Some(connection) => purge_guards(connection, &guards, wanted).await,
            None => Err(not_connected(&self.settings.address)),
        };
        match &purged {
            Ok(keys) => info!(reason, keys, "purge done"),
            Err(error) => warn!(reason, %error, "the purge broke off; it is done again"),
        }
        purged.map(drop)
    }

    /// The connection, opened if there is none. A new one tells whether Redis is still the same.
    async fn connected(&mut self) -> Result<&mut Connection, CacheError> {
        if self.connection.is_none() {
            let mut connection = Connection::open(&self.settings.address, &self.settings.name).await?;
            let commands = connection.call(&[b"COMMAND"]).await?;
            self.commands.store(Arc::new(CommandTable::of_server(&commands)));
            let replaced = !self.run_id.is_empty() && self.run_id != connection.run_id;
            self.run_id = connection.run_id.clone();
            self.connection = Some(connection);
            if replaced {
                info!("Redis was restarted or replaced: closing every connection to the old one");
                self.upstreams.doom_all();
            }
            if self.identity.is_some() && !self.starting && !self.settings.observe {
                let standing = self.standing(None).await?;
                self.bring_level(standing, None, &[]).await?;
            }
            *self.state.run_id.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.run_id.clone());
            // Opened while it was not known where deletions go.
            self.upstreams.doom_elsewhere(&self.run_id);
            self.state.connected.store(true, Ordering::Relaxed);
        }
        // Just made, if it was not there.
        match &mut self.connection {
            Some(connection) => Ok(connection),
            None => Err(not_connected(&self.settings.address)),
        }
    }

    /// Tries until it succeeds: Redis away is a reason to hold the feed back, never to give up or to go on.
    async fn retrying<T>(&mut self, work: impl AsyncFn(&mut Self) -> Result<T, CacheError>) -> T {
        loop {
            if let Some(done) = self.attempt(&work).await {
                return done;
            }
        }
    }

    async fn attempt<T>(&mut self, work: impl AsyncFn(&mut Self) -> Result<T, CacheError>) -> Option<T> {
        match work(self).await {
            Ok(done) => {
                *self.state.error.lock().unwrap_or_else(PoisonError::into_inner) = None;
                Some(done)
            }
            Err(error) => {
                self.failed(error).await;
                None
            }
        }
    }

    async fn failed(&mut self, error: CacheError) {
        self.connection = None;
        *self.state.run_id.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.state.connected.store(false, Ordering::Relaxed);
        self.state.purging.store(false, Ordering::Relaxed);
        let text = error.to_string();
        {
            let mut last = self.state.error.lock().unwrap_or_else(PoisonError::into_inner);
            if last.as_deref() != Some(&text) {
                warn!(error = text, "deletions wait, and the feed with them, until Redis does them");
                *last = Some(text);
            }
        }
        sleep(RETRY).await;
    }

    fn count(&self, changes: &[Invalidation]) {
        let guards = self.guards.load();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        for change in changes {
            for key in &change.keys {
                for counters in self.metrics.guards(&guards.matching(key.db, &key.name)) {
                    counters.writes.inc();
                    if !self.settings.observe {
                        counters.invalidated.inc();
                    }
                }
            }
            if self.settings.observe {
                continue;
            }
            // A large transaction counts once, when all of it is deleted.
            if !change.is_part() {
                // The two clocks may differ; a commit from the future counts as just now.
                let seconds = now - change.commit_time_us as f64 / 1e6;
                self.metrics.invalidation_seconds.observe(seconds.max(0.0));
            }
        }
    }
}

/// Waits until the connection has ended, if there is one.
async fn ended(connection: &mut Option<Connection>) -> CacheError {
    match connection {
        Some(connection) => connection.ended().await,
        None => std::future::pending().await,
    }
}

fn not_connected(address: &Endpoint) -> CacheError {
    CacheError::Io { address: address.to_string(), source: std::io::ErrorKind::NotConnected.into() }
}
