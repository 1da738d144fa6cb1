//! What a fill offers as proof of its age, and what is made of it.

use super::Millis;
use crate::position::{Lsn, Snapshot};

/// What is known of how new a fill's source data is, said by the client itself (`ASOF`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// A snapshot of the primary, taken before the data was read.
    Snapshot(Snapshot),
    /// A replica's replay position, taken before the data was read.
    Lsn(Lsn),
}

/// What the fence makes of a fill's evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// At least as new as the last committed write.
    Fresh,
    /// Older than a write that is known, or not provably newer than those that are forgotten.
    Stale(Stale),
    /// Nothing speaks against the fill, and nothing for it.
    Unproven(Unproven),
}

/// Why a fill is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// The evidence does not contain the write that ended here.
    Superseded(Lsn),
    /// The evidence is not past the floor, below which per-key history is gone.
    BelowFloor(Lsn),
    /// No evidence, and the key has the write that ended here in its history.
    NoEvidence(Lsn),
    /// An earlier part of the same value was refused: this part alone would be a torn value.
    Torn,
    /// The evidence may be of a history that the database has abandoned, in which there were commits that are gone.
    Abandoned,
}

impl Stale {
    /// The position that the evidence should have reached, where there is one.
    pub fn position(self) -> Option<Lsn> {
        match self {
            Self::Superseded(lsn) | Self::BelowFloor(lsn) | Self::NoEvidence(lsn) => Some(lsn),
            Self::Torn | Self::Abandoned => None,
        }
    }
}

/// Why a fill is unproven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// No evidence, and no write of the key in memory.
    NoEvidence,
    /// The fill's own miss would prove it, but an older miss of the key is outstanding on some
    /// connection, and a pool may have carried that one's fill here.
    OlderMiss,
    /// It has the version of the last write, or a larger one, but the feed has not seen which version that write
    /// replaced: if it was the same one, this may be the value from before.
    VersionUnseen,
    /// Its miss was answered before a source was lost: that source may have gone back since.
    SourceLost,
    /// It has a miss, but a predecessor of this process may have answered older ones, which nobody here
    /// remembers and whose fills may still come.
    Predecessor,
}

/// What the caller does with a fill, told to the fence while the key is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It goes to Redis, and is in flight from now on.
    Forward,
    /// It goes to Redis, to live for so many milliseconds at most, which no EXPIRE may make longer. It is in flight from
    /// now on.
    Cap(Millis),
    /// It does not go to Redis.
    Refuse,
}
