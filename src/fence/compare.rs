//! How the version in a value that was read compares with what is remembered of its row. Changes nothing.

use smallvec::SmallVec;

use super::{Compared, Fence, GuardId, KeyHash, Version, VersionClaim};
use crate::position::Lsn;

/// What the fence remembers of a key whose row's version is known, beside the version in a value of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The value's version against the row's, as of the last write.
    pub compared: Compared,
    /// The row's version since the last write.
    pub version: Version,
    /// The ends of the writes that are remembered one by one, ascending. Never empty.
    pub written: SmallVec<[Lsn; 4]>,
    /// Of those up to here some may be missing.
    pub covered: Lsn,
    /// The versions tell the row's states apart: each write told one, and the last is larger than all before it.
    pub tells: bool,
    /// The end of the last write that did not raise the version; 0 if there was none.
    pub fell: Lsn,
    /// Below this nothing is remembered.
    pub floor: Lsn,
}

impl Remembered {
    /// The end of the last write.
    pub fn last(&self) -> Lsn {
        self.written.last().copied().unwrap_or_default()
    }
}

impl Fence {
    /// The end of the last write of a key, be it of the key or of one of its guards as a whole, if it is remembered.
    pub fn last_write(&self, key: KeyHash, guards: &[GuardId]) -> Option<Lsn> {
        self.look(key, |state| self.last(state, guards, self.floor()))
    }

    /// Compares the version in a value with that of the row that feeds the key. None where no write of the key is
    /// remembered, or the last told no version.
    pub fn compare(&self, key: KeyHash, guards: &[GuardId], claim: &VersionClaim) -> Option<Remembered> {
        self.look(key, |state| {
            let floor = self.floor();
            let (last, versions) = (state.last(floor)?, state.versions()?);
            let whole = self.last_wholly(guards, floor);
            let (older, covered) = state.older(floor);
            let (version, compared) = versions.compare(claim, whole)?;
            Some(Remembered {
                compared,
                version,
                written: older.chain([last]).collect(),
                covered,
                tells: versions.tells(floor, whole),
                fell: versions.fell(),
                floor,
            })
        })
    }
}
