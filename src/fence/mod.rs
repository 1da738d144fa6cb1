//! The decision: what is remembered of recent writes, and whether a fill is at least as new.
//!
//! Everything here is pure: no I/O, no async, no clock of its own (`now` is passed in), so that it can be
//! tested against a naive model that remembers everything. It imports [`crate::position`] only.
//!
//! * [`Fence`] is the table: one state per key, one lock per shard. The feed calls [`Fence::write`], the proxy
//!   calls [`Fence::miss`] and [`Fence::admit`].
//! * [`Settlement`] works out which commits every source can already see. Its result, [`Settled`], is what
//!   a lease is worth and how far history may be dropped.
//! * [`Evidence`] goes in, a [`Verdict`] comes out.
//! * [`Fence::explain`] tells all of it of one key, and changes nothing. [`Fence::compare`] compares one value's version
//!   with what is remembered.

mod caps;
mod compare;
mod evidence;
mod explain;
mod hashed;
mod key;
mod lease;
mod locks;
mod named;
mod past;
mod settlement;
mod table;
#[cfg(test)]
mod tests;
mod version;

pub use compare::Remembered;
pub use evidence::{Evidence, Ruling, Stale, Unproven, Verdict};
pub use explain::{KeyAccount, Outstanding, Question};
pub use lease::LeaseRule;
pub use settlement::{Settled, Settlement, Shown, SourceKind};
pub use table::{Answered, Fence, Fill, Limits, Size};
pub use version::{Compared, RowChange, RowChanges, Version, VersionClaim, Vouches};

use crate::position::{Lsn, Xid};

/// Milliseconds on a clock that never goes back, from any origin.
pub type Millis = u64;

/// A 64-bit hash of a db and a key. Two keys of one hash share their history: a needless refusal, never a wrong fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub u64);

/// A fill on its way to Redis. The caller chooses the number; it must not be used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FillId(pub u64);

/// A client's connection, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// A guard, by its place in the configuration; one that was added since, by the next number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuardId(pub u16);

/// A committed change to a guarded key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// The top-level transaction: what a snapshot sees or does not see.
    pub xid: Xid,
    /// The *end* of the commit record: a standby shows the commit once its replay has reached this.
    pub lsn: Lsn,
}
