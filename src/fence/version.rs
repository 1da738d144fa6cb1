//! Versions: what a column of the row says of how new a fill's data is.
//!
//! A fill whose payload tells the row's version needs no snapshot, position or miss, as long as one row feeds the key
//! and each write of it raises the version: then no two states of the row have the same one. Nobody promises that, so
//! the feed has to see it. What it has not seen to grow vouches for nothing: an UPDATE that leaves the version as it
//! was (somebody's in psql) would otherwise let the value from before it in.

use super::{GuardId, Stale};
use crate::position::Lsn;

/// A row's version: an integer, or an instant in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub i64);

/// One change of the row that feeds a key. A version that is NULL, unreadable or not told is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowChange {
    /// The row came to feed the key.
    Inserted(Option<Version>),
    /// It changed.
    Updated {
        /// Its version before.
        old: Option<Version>,
        /// Its version after.
        new: Option<Version>,
    },
    /// It no longer feeds the key. With its version before.
    Deleted(Option<Version>),
}

/// What a transaction did to the row that feeds a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowChanges {
    guard: GuardId,
    began: Began,
    /// The row was away in between, or is gone.
    went: bool,
    /// The largest version that was told, but for the last.
    before: Option<Version>,
    last: Option<Version>,
    /// Other parts of the transaction may have changed the row before, and may change it again.
    part: bool,
}

/// What is known of the row before the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Began {
    /// There was none.
    Absent,
    /// Its version.
    Known,
    /// There was one.
    Unknown,
}

impl RowChanges {
    /// The first of them. `guard` is that of the row's table.
    pub fn new(guard: GuardId, first: RowChange) -> Self {
        let began = match first {
            RowChange::Inserted(_) => Began::Absent,
            RowChange::Updated { old: Some(_), .. } | RowChange::Deleted(Some(_)) => Began::Known,
            RowChange::Updated { old: None, .. } | RowChange::Deleted(None) => Began::Unknown,
        };
        let mut changes = Self { guard, began, went: false, before: None, last: None, part: false };
        changes.add(first);
        changes
    }

    /// They are told in parts, each for itself, as those of a large transaction are: each goes on where the one before
    /// ended, and all are one write.
    pub fn in_parts(self) -> Self {
        Self { part: true, ..self }
    }

    /// Whether what is known of the row's versions after a write of the same end has to go on with these.
    pub(super) fn is_part(&self) -> bool {
        self.part
    }

    /// The guard of the row's table.
    pub fn guard(&self) -> GuardId {
        self.guard
    }

    /// Adds the next. Only the last state is ever visible, but it has to be told from those on the way to it too: the
    /// transaction itself has seen them.
    pub fn add(&mut self, next: RowChange) {
        let (old, new) = match next {
            RowChange::Inserted(new) => (None, new),
            RowChange::Updated { old, new } => (old, new),
            RowChange::Deleted(old) => (old, None),
        };
        self.went |= matches!(next, RowChange::Deleted(_));
        self.before = self.before.max(self.last).max(old);
        self.last = new;
    }
}

/// What a fill's payload, or its client, says of the version of the row that it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionClaim {
    /// The guard whose rows have this version.
    pub guard: GuardId,
    /// The version.
    pub version: Version,
    /// 1 if it is exact. Otherwise its last digits were cut off: it may stand for anything less than so much above.
    pub step: i64,
    /// Only an equal version says anything: it is not sure that the two are on one scale.
    pub only_equal: bool,
    /// What it can vouch for.
    pub vouches: Vouches,
}

/// What a version can vouch for. It can object in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vouches {
    /// Nothing: more than one row may feed the key.
    Nothing,
    /// The last write.
    LastWrite,
    /// The last write, and what is newer than the feed.
    LastWriteAndNewer,
}

/// A claim against a row's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// It is older.
    Smaller,
    /// It is that one.
    Equal,
    /// It is newer.
    Larger,
    /// Its last digits were cut off, or the two may be on different scales.
    Unclear,
}

impl VersionClaim {
    fn compare(&self, last: Version) -> Compared {
        let above = i128::from(self.version.0) - i128::from(last.0);
        let step = i128::from(self.step);
        match above {
            0 => Compared::Equal,
            _ if self.only_equal => Compared::Unclear,
            // Cut off, it may be the last write's; rounded up, one from before that.
            _ if -step < above && above < step => Compared::Unclear,
            ..0 => Compared::Smaller,
            _ => Compared::Larger,
        }
    }
}

/// What is remembered of the versions of the row that feeds a key, for as long as a write of the key is.
///
/// It vouches if the version of every state that a write of the history has replaced is known, and the last one is
/// larger than all of them: then whatever has the last version, or a larger one, contains each of these writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Versions {
    guard: GuardId,
    /// The end of the last write that told of the row.
    lsn: Lsn,
    /// The row's version since then: none if it is gone, or could not be read.
    last: Option<Version>,
    /// The largest that was ever told, since writes of the key are remembered without a gap.
    largest: Option<Version>,
    /// The last is larger than all these.
    grown: bool,
    /// The end of the last write that did not raise it: what came after that has grown, one after the other.
    fell: Lsn,
    /// The end of the last write that told nothing of the row: another guard's, or a message; or that the row was
    /// deleted, and not which version it had.
    blind: Lsn,
    /// The end of the last other write of which it is not known what version it has replaced.
    unseen: Lsn,
}

/// What a version says of a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// It contains the last write.
    Fresh,
    /// It does not.
    Stale(Stale),
    /// It has the version of the last write, or a larger one, but nobody has seen what version that write replaced: if
    /// the same, or a larger one, this may be the value from before it.
    Doubtful,
    /// Nothing, either way.
    Nothing,
}

/// What the table knows around a write that tells of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around {
    /// The end of the write.
    pub lsn: Lsn,
    /// The last write of the key before it, if that is remembered.
    pub before: Option<Lsn>,
    /// The last write of the whole guard, if that is remembered.
    pub whole: Option<Lsn>,
    /// All of the last `history` is known: this is not a history that has just begun.
    pub complete: bool,
    /// Of the same transaction other changes of the row have been told.
    pub goes_on: bool,
}

impl Versions {
    /// What is known after a write that tells of the row, where `known` was before it.
    pub fn after(known: Option<Self>, changes: &RowChanges, around: Around) -> Self {
        let known = known.filter(|known| known.guard == changes.guard);
        let replaced_is_known = match changes.began {
            // Of a row that was deleted before, the deletion has told. Unless it was before this history.
            Began::Absent => known.is_some() || around.complete,
            Began::Known => true,
            Began::Unknown => known.is_some_and(|known| known.current(around.whole).is_some()),
        };
        // What the write replaced, and what it went through.
        let replaced = match changes.began {
            Began::Unknown => changes.before.max(known.and_then(|known| known.last)),
            Began::Absent | Began::Known => changes.before,
        };
        // A transaction that is sent again goes through states that have been told, and are not those of now.
        let told = known.filter(|_| around.goes_on).and_then(|known| known.largest);
        let replaced = replaced.max(told);
        // What is remembered of the key, but not of its row.
        let blind = known.map_or(around.before.unwrap_or_default(), |known| known.blind);
        let unseen = known.map_or(Lsn(0), |known| known.unseen);
        let (blind, unseen) = match (replaced_is_known, changes.went) {
            (true, _) => (blind, unseen),
            (false, true) => (around.lsn, unseen),
            (false, false) => (blind, around.lsn),
        };
        let before = known.and_then(|known| known.largest).max(changes.before);
        Self {
            guard: changes.guard,
            lsn: around.lsn,
            last: changes.last,
            largest: before.max(changes.last),
            // No version is smaller than any.
            grown: changes.last > before,
            fell: if changes.last > replaced { known.map_or(Lsn(0), |known| known.fell) } else { around.lsn },
            blind,
            unseen,
        }
    }

    /// The key was written by something that tells nothing of the row.
    pub fn written_otherwise(&mut self, lsn: Lsn) {
        self.blind = lsn;
    }

    /// The row's version, if no write of the whole guard came after it.
    fn current(&self, whole: Option<Lsn>) -> Option<Version> {
        self.last.filter(|_| whole.is_none_or(|whole| whole < self.lsn))
    }

    /// The row's version, and whether a fill with it would be fresh.
    pub fn told(&self, floor: Lsn, whole: Option<Lsn>) -> Option<(Version, bool)> {
        self.current(whole).map(|last| (last, self.vouches(floor, whole) == Says::Fresh))
    }

    /// What the last version, or a larger one, says.
    fn vouches(&self, floor: Lsn, whole: Option<Lsn>) -> Says {
        let has_grown = self.grown || self.fell <= floor;
        if !has_grown || self.blind > floor || whole.is_some() {
            Says::Nothing
        } else if self.unseen > floor {
            Says::Doubtful
        } else {
            Says::Fresh
        }
    }

    /// The row's version, and how a claim compares with it; none if that is not known, or is another guard's.
    pub fn compare(&self, claim: &VersionClaim, whole: Option<Lsn>) -> Option<(Version, Compared)> {
        let last = self.current(whole).filter(|_| self.guard == claim.guard)?;
        Some((last, claim.compare(last)))
    }

    /// Whether the versions of the row tell its states apart, as far as writes are remembered: each remembered write told
    /// one, and the last is larger than all before it.
    pub fn tells(&self, floor: Lsn, whole: Option<Lsn>) -> bool {
        self.vouches(floor, whole) != Says::Nothing
    }

    /// The end of the last write that did not raise the version; 0 if there was none.
    pub fn fell(&self) -> Lsn {
        self.fell
    }

    /// Judges a claim. `whole` is the last write of a whole guard of the key, which tells nothing of the row either.
    pub fn judge(&self, claim: &VersionClaim, floor: Lsn, whole: Option<Lsn>) -> Says {
        let Some(last) = self.current(whole).filter(|_| self.guard == claim.guard) else {
            return Says::Nothing;
        };
        match (claim.compare(last), claim.vouches) {
            (Compared::Smaller, _) => Says::Stale(Stale::Superseded(self.lsn)),
            (Compared::Equal, Vouches::LastWrite | Vouches::LastWriteAndNewer)
            | (Compared::Larger, Vouches::LastWriteAndNewer) => self.vouches(floor, whole),
            _ => Says::Nothing,
        }
    }
}
