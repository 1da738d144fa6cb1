//! What the feed hands to the cache, in commit order, through a bounded channel.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::failpoint::Point;
use crate::fence::{FillId, KeyHash};
use crate::guard::{CacheKey, GuardId};
use crate::position::Lsn;

/// Which history a position belongs to. Positions of different identities cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster, made at `initdb`.
    pub system_id: u64,
    /// Its timeline: a failover starts a new one.
    pub timeline: u32,
}

/// Why commits may be missing between what was applied and what comes now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GapReason {
    /// There was no slot.
    FreshSlot,
    /// Postgres gave the slot up (`max_slot_wal_keep_size`) or invalidated it.
    SlotLost,
    /// Someone else confirmed positions that we had not.
    SlotAdvanced,
    /// The publication is newer than the slot, so the slot's older changes cannot be decoded with it.
    NewPublication,
    /// Another cluster.
    NewSystem,
    /// A failover, or a recovery to an earlier point.
    NewTimeline,
    /// The log ends before what was applied: the server's storage went back, as when a snapshot of it is put back.
    WentBack,
    /// A guard's table had left the publication or lost its replica identity for a while.
    CatalogMended,
}

impl GapReason {
    /// All of them, for metrics that must exist before the first gap.
    pub const ALL: [GapReason; 8] = [
        GapReason::FreshSlot,
        GapReason::SlotLost,
        GapReason::SlotAdvanced,
        GapReason::NewPublication,
        GapReason::NewSystem,
        GapReason::NewTimeline,
        GapReason::WentBack,
        GapReason::CatalogMended,
    ];

    /// Whether the database may lack commits that it had: what was read of them must not count any more.
    pub(super) fn abandons_history(self) -> bool {
        matches!(self, GapReason::NewSystem | GapReason::NewTimeline | GapReason::WentBack)
    }

    /// Its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            GapReason::FreshSlot => "fresh_slot",
            GapReason::SlotLost => "slot_lost",
            GapReason::SlotAdvanced => "slot_advanced",
            GapReason::NewPublication => "new_publication",
            GapReason::NewSystem => "new_system",
            GapReason::NewTimeline => "new_timeline",
            GapReason::WentBack => "went_back",
            GapReason::CatalogMended => "catalog_mended",
        }
    }
}

impl fmt::Display for GapReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A commit whose keys are fenced and have to be deleted, or part of a large one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalidation {
    /// The position that is applied once all of this is done: the end of the commit record. Of a part of a transaction
    /// of which more is to come, where that record begins.
    pub end_lsn: Lsn,
    /// Where its keys were written, as the fence has it: the same, but beyond it for a part.
    pub written_lsn: Lsn,
    /// When it was committed, in microseconds since 1970 by Postgres's clock.
    pub commit_time_us: i64,
    /// The keys, each once.
    pub keys: Vec<CacheKey>,
    /// Guards all of whose keys have to go.
    pub truncated: Vec<GuardId>,
    /// Fills that were let in before the fence and must end before the deletion.
    pub draining: Vec<(KeyHash, FillId)>,
}

impl Invalidation {
    /// More of its transaction is to come.
    pub fn is_part(&self) -> bool {
        self.written_lsn > self.end_lsn
    }
}

/// Keys that may be on their way from the feed to Redis. Jobs are counted by the channel; a job can be a key or
/// thousands.
const KEYS_UNDER_WAY: u32 = 50_000;

/// Room for keys on their way. Jobs take it with them, and give it back when they are done.
#[derive(Debug, Clone)]
pub(super) struct Rooms(Arc<Semaphore>);

/// The room that a job has taken; given back when this is dropped.
#[derive(Debug, Default)]
pub struct Room(#[expect(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>);

impl Default for Rooms {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(KEYS_UNDER_WAY as usize)))
    }
}

impl Rooms {
    /// Takes room for so many keys, if there is.
    pub fn take_now(&self, keys: u32) -> Option<Room> {
        let taken = self.0.clone().try_acquire_many_owned(keys.min(KEYS_UNDER_WAY));
        taken.ok().map(|permit| Room(Some(permit)))
    }

    /// Takes it as soon as there is.
    pub async fn take(&self, keys: u32) -> Room {
        // It is never closed.
        Room(self.0.clone().acquire_many_owned(keys.min(KEYS_UNDER_WAY)).await.ok())
    }
}

/// What the cache found when the feed began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// No trace of a predecessor. Whether the slot's position was ever confirmed by one is not known.
    Nothing,
    /// The marker of another incarnation. Misses that it answered may still be filled.
    Predecessor {
        /// It followed this history: the database lacks no commits that it had.
        same_history: bool,
        /// And the slot was confirmed by it, up to its position: what it confirmed was visible on the primary.
        level: bool,
    },
}

/// Work for the cache.
#[derive(Debug)]
pub enum CacheJob {
    /// A stream is about to start. The feed applies nothing before `ready` is answered, and takes no position from
    /// before that answer for one of this stream.
    Start {
        /// Which history the positions belong to.
        identity: Identity,
        /// Where the stream goes on.
        slot_position: Lsn,
        /// How far the server's log was flushed. What stands beyond it is of a log that is gone.
        flushed: Lsn,
        /// Commits may be missing before `slot_position`: all guarded keys have to go.
        gap: Option<GapReason>,
        /// Guards that were added while the process runs: their keys have to go.
        added: Vec<GuardId>,
        /// Predecessors are gone, the marker has been read, and what it asked for is done.
        ready: oneshot::Sender<Found>,
    },
    /// Delete, write the marker, move the applied position.
    Invalidate(Invalidation, Room),
    /// Nothing guarded was committed up to here: move the applied position once everything before is done.
    Advance(Lsn),
}

impl CacheJob {
    /// The keys that it takes room for.
    pub(super) fn keys(&self) -> u32 {
        match self {
            CacheJob::Invalidate(change, _) => u32::try_from(change.keys.len()).unwrap_or(u32::MAX),
            CacheJob::Start { .. } | CacheJob::Advance(_) => 0,
        }
    }

    /// What the feed passes when it has given this to the cache.
    pub(super) fn point(&self) -> Option<Point> {
        match self {
            CacheJob::Invalidate(change, _) if change.is_part() => Some(Point::PartHanded),
            CacheJob::Invalidate(..) => Some(Point::Handed),
            CacheJob::Start { .. } | CacheJob::Advance(_) => None,
        }
    }

    /// The same job with its room.
    pub(super) fn with(self, room: Room) -> Self {
        match self {
            CacheJob::Invalidate(change, _) => CacheJob::Invalidate(change, room),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_take_room_until_their_job_is_done() {
        let rooms = Rooms::default();
        let half = rooms.take_now(KEYS_UNDER_WAY / 2).expect("room");
        let rest = rooms.take_now(KEYS_UNDER_WAY / 2).expect("room");
        assert!(rooms.take_now(1).is_none());
        assert!(rooms.take_now(0).is_some(), "an advance needs none");
        drop(half);
        assert!(rooms.take_now(1).is_some());
        drop(rest);
        assert!(rooms.take_now(u32::MAX).is_some(), "more than there ever is: alone");
    }
}
