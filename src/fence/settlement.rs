//! Settlement: which commits every source can already see.
//!
//! The feed runs ahead of visibility on the primary (fact F1), and replicas run behind the feed. A lease is
//! worth what was settled when its miss was answered: the position up to which *every* source shows *every*
//! commit, whichever of them the application reads next.
//!
//! * On the primary that is known from polled snapshots: the commits that the feed has delivered wait in a
//!   queue until a snapshot sees them. The primary's own LSN says nothing.
//! * On a replica it is the polled replay position (fact F2), which can go backwards (fact F11). Then, and
//!   whenever a source is out of sight, what was concluded from it before is void: the generation changes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Write;
use crate::position::{Lsn, Snapshot, Xid};

/// What kind of node an application reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// The feed's own primary.
    Primary,
    /// A streaming replica.
    Replica,
}

impl SourceKind {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
        }
    }
}

/// What is settled.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// Every guarded commit up to here is visible on every source.
    pub lsn: Lsn,
    /// Every guarded commit up to here is visible on the primary, in `primary`.
    pub primary_lsn: Lsn,
    /// The last polled snapshot of the primary.
    pub primary: Option<Arc<Snapshot>>,
    /// The generation of the sources: leases of different generations cannot be compared. None while some
    /// source is out of sight.
    pub sources: Option<u32>,
}

/// What a source was last seen to show.
#[derive(Clone, Debug)]
pub struct Shown {
    /// What it is.
    pub kind: SourceKind,
    /// It was polled and found right; nothing else here counts while it is not.
    pub in_sight: bool,
    /// Every commit up to here is visible on it. (On the primary more may be: there the snapshot tells.)
    pub position: Lsn,
    /// The last polled snapshot, on the primary.
    pub snapshot: Option<Arc<Snapshot>>,
}

/// The queue of commits that the primary has not shown yet is folded beyond this many.
const MAX_QUEUE: usize = 1 << 20;

/// Works out what is settled, from the feed and from polls of the sources.
#[derive(Debug)]
pub struct Settlement {
    sources: Vec<Source>,
    /// How far the feed has delivered.
    received: Lsn,
    /// Guarded commits that no polled snapshot has seen, in feed order.
    queue: VecDeque<Write>,
    max_queue: usize,
    /// Commits folded out of the queue: the first one's position, and the highest xid.
    folded: Option<(Lsn, Xid)>,
    /// The last guarded commit, be it settled or not.
    last: Lsn,
    snapshot: Option<Arc<Snapshot>>,
    /// Held where it is until the transactions that may have committed before a fresh slot have ended.
    primary_lsn: Lsn,
    suspects: Suspects,
    generation: u32,
}

#[derive(Debug)]
struct Source {
    kind: SourceKind,
    /// A poll has succeeded since it was last lost.
    seen: bool,
    replay: Lsn,
}

impl Source {
    fn unseen(kind: SourceKind) -> Self {
        Self { kind, seen: false, replay: Lsn(0) }
    }
}

/// Transactions that may have committed before a fresh slot's first position, invisibly to the feed.
#[derive(Debug, PartialEq, Eq)]
enum Suspects {
    /// The slot goes on where it was confirmed, and no more was confirmed than the primary had settled.
    None,
    /// The slot is fresh; who is suspect is not known yet.
    Unknown,
    /// Suspect until they end, arrive in the feed, or are seen to be idle.
    Some(Vec<Xid>),
}

impl Settlement {
    /// Nothing is settled, and no source is in sight.
    pub fn new(sources: &[SourceKind]) -> Self {
        Self {
            sources: sources.iter().map(|kind| Source::unseen(*kind)).collect(),
            received: Lsn(0),
            queue: VecDeque::new(),
            max_queue: MAX_QUEUE,
            folded: None,
            last: Lsn(0),
            snapshot: None,
            primary_lsn: Lsn(0),
            suspects: Suspects::Unknown,
            generation: 0,
        }
    }

    /// A shorter queue, so that a test can fill it.
    #[cfg(test)]
    pub(super) fn with_queue_of(mut self, max_queue: usize) -> Self {
        self.max_queue = max_queue;
        self
    }

    /// Begins another history at the slot's position: at the start and after a gap. With a `fresh_slot`,
    /// commits before its position may not be visible yet, and [`Settlement::suspect`] has to say which;
    /// otherwise the primary had settled everything that was ever confirmed.
    pub fn restart(&mut self, position: Lsn, fresh_slot: bool) {
        for source in &mut self.sources {
            (source.seen, source.replay) = (false, Lsn(0));
        }
        self.received = position;
        self.queue.clear();
        self.folded = None;
        self.last = position;
        self.snapshot = None;
        self.primary_lsn = Lsn(0);
        self.suspects = if fresh_slot { Suspects::Unknown } else { Suspects::None };
        self.generation += 1;
    }

    /// Commits that were not guarded when they were delivered are from now on. Those may not be visible yet, and nothing waits
    /// for them here: nothing more is settled until they are, as with a fresh slot.
    pub fn doubt(&mut self) {
        self.suspects = Suspects::Unknown;
        // Of before: what is settled from here on is not said to be visible in it.
        self.snapshot = None;
    }

    /// A fresh slot's first poll: the transactions below `next_xid` (one that was assigned after the slot was made) that `snapshot` does
    /// not see may have committed before the slot's position.
    pub fn suspect(&mut self, snapshot: &Snapshot, next_xid: Xid) {
        if self.suspects != Suspects::Unknown {
            return;
        }
        let arrived = |xid: &Xid| self.queue.iter().any(|write| write.xid == *xid);
        let unseen = snapshot.in_progress().iter().copied().filter(|xid| *xid < next_xid);
        let beyond = (snapshot.xmax().0..next_xid.0).map(Xid);
        self.suspects = Suspects::Some(unseen.chain(beyond).filter(|xid| !arrived(xid)).collect());
    }

    /// Suspects that have not ended.
    pub fn suspects(&self) -> &[Xid] {
        match &self.suspects {
            Suspects::Some(xids) => xids,
            Suspects::None | Suspects::Unknown => &[],
        }
    }

    /// Whether [`Settlement::suspect`] has to be called.
    pub fn wants_suspects(&self) -> bool {
        self.suspects == Suspects::Unknown
    }

    /// These transactions were seen idle: they have not begun to commit, so that their commit, if it comes,
    /// comes through the feed.
    pub fn seen_idle(&mut self, idle: &[Xid]) {
        self.clear_suspects(|xid| idle.contains(&xid));
    }

    fn clear_suspects(&mut self, cleared: impl Fn(Xid) -> bool) {
        if let Suspects::Some(xids) = &mut self.suspects {
            xids.retain(|xid| !cleared(*xid));
        }
    }

    /// The feed delivered a guarded commit. One that was delivered before (the feed re-sends what it has not
    /// confirmed) changes nothing.
    pub fn received(&mut self, write: Write) {
        self.received = self.received.max(write.lsn);
        if write.lsn <= self.last {
            return;
        }
        // From here on the queue waits for it. (Not of one that is sent again: it may have had no guard before, and is not queued.)
        self.clear_suspects(|xid| xid == write.xid);
        self.last = write.lsn;
        if self.queue.len() >= self.max_queue {
            // The primary has not been seen for long. Bounded memory costs exactness: all of them are
            // settled at once, when no transaction as old as the youngest of them runs any more.
            let first = self.folded.map_or_else(|| self.queue[0].lsn, |(first, _)| first);
            let youngest = self.queue.iter().map(|write| write.xid).max().unwrap_or_default();
            let before = self.folded.map_or(Xid(0), |(_, xid)| xid);
            self.folded = Some((first, youngest.max(before)));
            self.queue.clear();
        }
        self.queue.push_back(write);
    }

    /// The feed has delivered everything up to here.
    pub fn advanced(&mut self, position: Lsn) {
        self.received = self.received.max(position);
        self.settle_primary();
    }

    /// A snapshot was polled on the primary.
    pub fn primary(&mut self, snapshot: Snapshot) {
        if self.folded.is_some_and(|(_, youngest)| snapshot.xmin() > youngest) {
            self.folded = None;
        }
        while self.folded.is_none() && self.queue.front().is_some_and(|write| snapshot.sees(write.xid)) {
            self.queue.pop_front();
        }
        self.clear_suspects(|xid| snapshot.sees(xid));
        self.snapshot = Some(Arc::new(snapshot));
        self.settle_primary();
        for source in self.sources.iter_mut().filter(|s| s.kind == SourceKind::Primary) {
            source.seen = true;
        }
    }

    /// Everything before the first commit that the primary has not shown is settled there, but never
    /// beyond what the feed has delivered.
    fn settle_primary(&mut self) {
        let held = match &self.suspects {
            Suspects::None => false,
            Suspects::Unknown => true,
            Suspects::Some(xids) => !xids.is_empty(),
        };
        if held || self.snapshot.is_none() {
            return;
        }
        let first = self.folded.map(|(first, _)| first).or_else(|| self.queue.front().map(|write| write.lsn));
        let settled = first.map_or(self.received, |first| Lsn(first.0.saturating_sub(1)).min(self.received));
        self.primary_lsn = self.primary_lsn.max(settled);
    }

    /// A replica's replay position was polled.
    pub fn replica(&mut self, source: usize, replay: Lsn) {
        let Some(source) = self.sources.get_mut(source) else { return };
        if source.seen && replay < source.replay {
            // It crashed and came back older (fact F11): what it showed a moment ago it may not show now.
            self.generation += 1;
        }
        (source.seen, source.replay) = (true, replay);
    }

    /// A source is out of sight: its session is lost, or it is not what it should be. What was concluded from
    /// it is void until it has been polled again.
    pub fn lost(&mut self, source: usize) {
        let Some(source) = self.sources.get_mut(source) else { return };
        if source.seen {
            source.seen = false;
            self.generation += 1;
        }
    }

    /// From now on these are the sources. None is in sight before it is polled. What a lease is worth it was worth for the
    /// sources of then, and says nothing of one that nobody had looked at: the generation changes.
    pub fn set_sources(&mut self, sources: &[SourceKind]) {
        self.sources = sources.iter().map(|kind| Source::unseen(*kind)).collect();
        self.generation += 1;
    }

    /// Whether polling can settle anything.
    pub fn unsettled(&self) -> bool {
        let primary = !self.queue.is_empty() || self.folded.is_some() || self.held();
        primary
            || self.sources.iter().any(|s| s.kind == SourceKind::Replica && (!s.seen || s.replay < self.last))
    }

    fn held(&self) -> bool {
        self.snapshot.is_none() || self.wants_suspects() || !self.suspects().is_empty()
    }

    /// How far a source shows everything, and whether it is in sight.
    pub fn source(&self, source: usize) -> Option<(Lsn, bool)> {
        let source = self.sources.get(source)?;
        let lsn = if source.kind == SourceKind::Primary { self.primary_lsn } else { source.replay };
        Some((lsn, source.seen))
    }

    /// What each source was last seen to show, in the order in which they were given.
    pub fn shown(&self) -> Vec<Shown> {
        let shown = |source: &Source| {
            let (position, snapshot) = match source.kind {
                SourceKind::Primary => (self.primary_lsn, self.snapshot.clone()),
                SourceKind::Replica => (source.replay, None),
            };
            Shown { kind: source.kind, in_sight: source.seen, position, snapshot }
        };
        self.sources.iter().map(shown).collect()
    }

    /// What is settled now.
    pub fn settled(&self) -> Settled {
        let position = |source: &Source| match source.kind {
            SourceKind::Primary => self.primary_lsn,
            SourceKind::Replica => source.replay.min(self.received),
        };
        let in_sight = self.sources.iter().all(|source| source.seen);
        Settled {
            lsn: self.sources.iter().map(position).min().unwrap_or(self.primary_lsn),
            primary_lsn: self.primary_lsn,
            primary: self.snapshot.clone(),
            sources: in_sight.then_some(self.generation),
        }
    }
}
