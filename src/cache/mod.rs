//! The proxy's own work in Redis: deletions, the marker, purges.
//!
//! The feed hands over committed changes in their order ([`CacheJob`]), their keys fenced already. The
//! [worker](Worker) waits for the fills of those keys that were let in before (drain), deletes the keys together
//! with the marker, many commits in one round trip, and only then moves the applied position, which the feed
//! confirms to Postgres. The [reaper](Reaper) ends fills whose connection broke.

mod address;
mod connection;
mod deleted;
mod marker;
mod purge;
mod reaper;
mod upstreams;
mod worker;

use tokio::sync::oneshot;

use crate::fence::{FillId, GuardId, KeyHash};
use crate::position::Lsn;

pub use address::{Address, AddressError};
pub use connection::{CacheError, Connection, Reply};
pub use marker::{Identity, Marker, Standing};
pub use purge::purge_guards;
pub use reaper::Reaper;
pub use upstreams::{Abandoned, AbandonedFill, Upstream, Upstreams};
pub use worker::{CacheState, Worker, WorkerSettings};

/// A committed change, fenced, whose keys are to be deleted.
#[derive(Debug, Default)]
pub struct Invalidation {
    /// The end of its commit record.
    pub end_lsn: Lsn,
    /// When it was committed, by the database's clock, in microseconds since 1970.
    pub commit_time_us: i64,
    /// The keys that it changed, each once, with the guard that named it.
    pub keys: Vec<(GuardId, Vec<u8>)>,
    /// The guards of which every key changed (TRUNCATE).
    pub truncated: Vec<GuardId>,
    /// The fills of these keys that were let in before the fence.
    pub draining: Vec<(KeyHash, FillId)>,
}

/// Why the feed's history has a hole before its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// The slot was made just now: what was committed before is not known.
    FreshSlot,
    /// The slot was lost, or had to be made again.
    SlotLost,
    /// The slot was advanced by somebody else.
    SlotAdvanced,
    /// The database is another one, or on another timeline.
    OtherHistory,
}

impl GapReason {
    /// Its label in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::FreshSlot => "fresh_slot",
            Self::SlotLost => "slot_lost",
            Self::SlotAdvanced => "slot_advanced",
            Self::OtherHistory => "other_history",
        }
    }
}

/// What the feed asks of the cache, in order.
#[derive(Debug)]
pub enum CacheJob {
    /// The feed begins, or goes on after it was interrupted.
    Start {
        /// The history that its positions belong to.
        identity: Identity,
        /// Where it begins.
        position: Lsn,
        /// Whether changes before that are missing.
        gap: Option<GapReason>,
        /// Told once Redis's data can be trusted up to the position.
        done: oneshot::Sender<()>,
    },
    /// A committed change.
    Invalidate(Invalidation),
    /// Nothing that is guarded was committed up to here.
    Advance(Lsn),
}
