//! Where everybody stands: the feed's side and the sources' side of [`Settlement`], behind one lock.
//!
//! The lock also orders what the fence is told: [`Fence::settle`] and [`Fence::restart`] are called under it, so
//! that an older conclusion cannot overtake a newer one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

use super::job::Identity;
use super::sources::SourceState;
use crate::fence::{Fence, GuardId, Millis, Settlement, Shown, SourceKind, Write};
use crate::position::{Lsn, Snapshot, Xid};

/// The settlement, and who is told about it.
#[derive(Debug)]
pub struct Positions {
    inner: Mutex<Inner>,
    fence: Arc<Fence>,
    started: Instant,
    /// A poll's next xid: what 32-bit xids are extended by.
    near: AtomicU64,
    /// Somebody has to poll faster, or again.
    pub(super) wake: Notify,
    primary_settled: watch::Sender<Lsn>,
    /// Those that applications read from, for who cannot wait for the lock.
    sources: ArcSwap<Vec<Arc<SourceState>>>,
}

/// What a source was last seen to show.
pub type ShownBy = (Arc<SourceState>, Shown);

#[derive(Debug)]
struct Inner {
    settlement: Settlement,
    /// Those that applications read from, as the settlement has them.
    sources: Vec<Arc<SourceState>>,
    identity: Option<Identity>,
    /// Counts restarts: a poll that was under way during one speaks of another history.
    epoch: u64,
}

/// Names the history that a poll belongs to; taken before the poll is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch {
    count: u64,
    /// The cluster that has to answer.
    pub identity: Identity,
}

impl Positions {
    /// Nothing is known. `started` is where [`Millis`] are counted from, for everyone who talks to the fence.
    pub fn new(fence: Arc<Fence>, sources: &[SourceKind], started: Instant) -> Self {
        let named = |kind: &SourceKind| Arc::new(SourceState::new(kind.name(), *kind));
        Self::with_sources(fence, sources.iter().map(named).collect(), started)
    }

    /// The same, with what the rest of the program sees of the sources that applications read from.
    pub fn with_sources(fence: Arc<Fence>, sources: Vec<Arc<SourceState>>, started: Instant) -> Self {
        let settlement = Settlement::new(&kinds(&sources));
        Self {
            sources: ArcSwap::from_pointee(sources.clone()),
            inner: Mutex::new(Inner { settlement, sources, identity: None, epoch: 0 }),
            fence,
            started,
            near: AtomicU64::new(0),
            wake: Notify::new(),
            primary_settled: watch::Sender::new(Lsn(0)),
        }
    }

    /// The fence's clock.
    pub fn now(&self) -> Millis {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The table that is kept.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the fence and the stream what is settled now.
    fn publish(&self, inner: &Inner) {
        let settled = inner.settlement.settled();
        self.fence.settle(&settled, self.now());
        self.primary_settled.send_if_modified(|held| {
            let news = *held != settled.primary_lsn;
            *held = settled.primary_lsn;
            news
        });
    }

    /// Another history begins, at the start or after a gap.
    pub(super) fn restart(&self, identity: Identity, position: Lsn, floor: Lsn, fresh_slot: bool) {
        let mut inner = self.lock();
        inner.settlement.restart(position, fresh_slot);
        inner.identity = Some(identity);
        inner.epoch += 1;
        self.fence.restart(floor);
        self.publish(&inner);
        drop(inner);
        self.wake.notify_waiters();
    }

    /// Guards were added, and the next commits that are delivered are rendered by them: nothing is known of what they should have
    /// fenced up to `lsn`.
    pub(super) fn begin_guards(&self, guards: &[GuardId], lsn: Lsn) {
        let mut inner = self.lock();
        inner.settlement.doubt();
        // A poll that is under way may have looked before: it must not say who is suspect.
        inner.epoch += 1;
        self.fence.begin_guards(guards, lsn);
        drop(inner);
        self.wake.notify_waiters();
    }

    /// A guarded commit arrived. Its keys are fenced already.
    pub(super) fn received(&self, write: Write) {
        self.lock().settlement.received(write);
        self.wake.notify_waiters();
    }

    /// Everything up to here arrived.
    pub(super) fn advanced(&self, position: Lsn) {
        let mut inner = self.lock();
        inner.settlement.advanced(position);
        self.publish(&inner);
    }

    /// The 64-bit xid of a short one.
    pub(super) fn extend(&self, xid: u32) -> Xid {
        Xid::extend(xid, Xid(self.near.load(Ordering::Relaxed)))
    }

    /// A next xid was seen.
    pub(super) fn seen_next_xid(&self, next: Xid) {
        self.near.store(next.0, Ordering::Relaxed);
    }

    /// What each source was last seen to show, in the order of the settings, and the last polled snapshot of the primary.
    pub fn shown(&self) -> (Vec<ShownBy>, Option<Arc<Snapshot>>) {
        let inner = self.lock();
        let shown = inner.sources.iter().cloned().zip(inner.settlement.shown());
        (shown.collect(), inner.settlement.settled().primary)
    }

    /// The sources that applications read from, in the order of the settings.
    pub fn sources(&self) -> arc_swap::Guard<Arc<Vec<Arc<SourceState>>>> {
        self.sources.load()
    }

    /// From now on applications read from these. What was concluded from others is void: a lease says nothing of a source
    /// that nobody had looked at when it was given. Nobody may be polling, who would know the sources by their old
    /// places.
    pub(super) fn set_sources(&self, sources: Vec<Arc<SourceState>>) {
        let mut inner = self.lock();
        inner.settlement.set_sources(&kinds(&sources));
        self.sources.store(Arc::new(sources.clone()));
        inner.sources = sources;
        self.publish(&inner);
        drop(inner);
        self.wake.notify_waiters();
    }

    /// How far the primary shows every commit.
    pub fn primary_settled(&self) -> watch::Receiver<Lsn> {
        self.primary_settled.subscribe()
    }

    /// Whether the sources have to be polled quickly.
    pub(super) fn unsettled(&self) -> bool {
        self.lock().settlement.unsettled()
    }

    /// The history that a poll which is sent now belongs to; none before the feed has seen the primary.
    pub(super) fn epoch(&self) -> Option<Epoch> {
        let inner = self.lock();
        inner.identity.map(|identity| Epoch { count: inner.epoch, identity })
    }

    /// Runs `change` and publishes, unless another history has begun since `epoch`.
    fn conclude(&self, epoch: Epoch, change: impl FnOnce(&mut Settlement)) {
        let mut inner = self.lock();
        if inner.epoch == epoch.count {
            change(&mut inner.settlement);
            self.publish(&inner);
        }
    }

    /// The primary was polled.
    pub(super) fn primary(&self, epoch: Epoch, snapshot: Snapshot) {
        self.seen_next_xid(snapshot.xmax());
        self.conclude(epoch, |settlement| settlement.primary(snapshot));
    }

    /// A replica was polled.
    pub(super) fn replica(&self, epoch: Epoch, source: usize, replay: Lsn) {
        self.conclude(epoch, |settlement| settlement.replica(source, replay));
    }

    /// A source is out of sight.
    pub(super) fn lost(&self, source: usize) {
        let mut inner = self.lock();
        inner.settlement.lost(source);
        self.publish(&inner);
    }

    /// Whether a fresh slot's suspects have to be found.
    pub(super) fn wants_suspects(&self) -> bool {
        self.lock().settlement.wants_suspects()
    }

    /// Whether there are suspects left.
    pub(super) fn has_suspects(&self) -> bool {
        !self.lock().settlement.suspects().is_empty()
    }

    /// Who is suspect.
    pub(super) fn suspect(&self, epoch: Epoch, snapshot: &Snapshot, next: Xid) {
        self.conclude(epoch, |settlement| settlement.suspect(snapshot, next));
    }

    /// Who was seen idle.
    pub(super) fn seen_idle(&self, epoch: Epoch, idle: &[Xid]) {
        self.conclude(epoch, |settlement| settlement.seen_idle(idle));
    }
}

fn kinds(sources: &[Arc<SourceState>]) -> Vec<SourceKind> {
    sources.iter().map(|source| source.kind).collect()
}
