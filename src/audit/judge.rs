//! What a hit was, by what is remembered of its key: pure, without a clock.

use crate::fence::{Compared, Remembered};
use crate::position::Lsn;

/// What an audited hit was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The row was of this version when the hit was answered, or of an older one.
    Consistent,
    /// The row had changed, and the contract allows that the hit did not show it yet.
    Stale,
    /// The row had changed, and the key had been deleted for it, before the read was sent.
    Violation,
    /// Nothing that can be compared is known.
    Unknown,
}

impl Outcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Consistent, Self::Stale, Self::Violation, Self::Unknown];

    /// Its label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Consistent => "consistent",
            Self::Stale => "stale",
            Self::Violation => "violation",
            Self::Unknown => "unknown",
        }
    }
}

/// What was known when a hit was answered.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Up to here all keys were deleted before the read was sent.
    pub applied: Lsn,
    /// What the fence remembered when the answer had come.
    pub remembered: Option<Remembered>,
    /// When that was, in microseconds since 1970.
    pub at_us: i64,
    /// What changed is deleted, and what is stale is refused: not so by an `observe` or an `on_stale = "cap"`.
    pub is_kept: bool,
}

/// What a hit was, and by which write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// What it was.
    pub outcome: Outcome,
    /// The end of the first write that is known to be missing in its data.
    pub missing: Option<Lsn>,
    /// For how long at least, in microseconds, that write had been committed; none where that is not known.
    pub age_us: Option<i64>,
}

impl Judged {
    /// Nothing can be said.
    pub const UNKNOWN: Self = Self { outcome: Outcome::Unknown, missing: None, age_us: None };

    pub(super) fn is(outcome: Outcome) -> Self {
        Self { outcome, ..Self::UNKNOWN }
    }
}

/// Judges a hit. `now` is what the fence remembers after the grace, beside the same version; `committed` says when the
/// commit that ended at a position was made, in microseconds since 1970, if that is remembered.
///
/// It is a violation only if the version was older than that of a write which the fence had remembered when the answer
/// came, whose keys were deleted before the read was sent, and after which every write that came until now has told a
/// version and raised it: then no state of the row since that write has this version, and whatever the value was made
/// from is older than a deletion that it survived.
pub fn judge(seen: &Seen, now: Option<&Remembered>, committed: impl Fn(Lsn) -> Option<i64>) -> Judged {
    let Some(now) = now.filter(|now| now.tells) else { return Judged::UNKNOWN };
    match now.compared {
        Compared::Unclear => return Judged::UNKNOWN,
        Compared::Equal | Compared::Larger => return Judged::is(Outcome::Consistent),
        Compared::Smaller => {}
    }
    match &seen.remembered {
        Some(then) if !then.tells => Judged::UNKNOWN,
        Some(then) => match then.compared {
            Compared::Unclear => Judged::UNKNOWN,
            Compared::Smaller => outdated(seen, then, now, committed),
            Compared::Equal => {
                let next = now
                    .written
                    .iter()
                    .copied()
                    .find(|lsn| *lsn > then.last())
                    .filter(|_| now.covered <= then.last());
                next.map_or(Judged::UNKNOWN, |next| overtaken(seen, next, true, committed))
            }
            // Which of the writes since then it contains is not known. The last is missing.
            Compared::Larger => overtaken(seen, now.last(), false, committed),
        },
        // The first write that is remembered came later than the answer.
        None => overtaken(seen, now.last(), false, committed),
    }
}

/// The fence had a newer version when the answer came.
fn outdated(
    seen: &Seen,
    then: &Remembered,
    now: &Remembered,
    committed: impl Fn(Lsn) -> Option<i64>,
) -> Judged {
    let missing = then.last();
    // Forgotten since, or followed by a version that was not larger: the value may be of that.
    if missing <= now.floor || now.fell > missing {
        return Judged::UNKNOWN;
    }
    let was_deleted = missing <= seen.applied;
    let outcome = if was_deleted && seen.is_kept { Outcome::Violation } else { Outcome::Stale };
    Judged { outcome, missing: Some(missing), age_us: age(seen, committed(missing)) }
}

/// A newer version has come since, and the write at `missing` is not in the value. Its time says whether it was there
/// when the hit was answered. If not, the value was the row's then, as long as that write `is_next` after the value's.
fn overtaken(seen: &Seen, missing: Lsn, is_next: bool, committed: impl Fn(Lsn) -> Option<i64>) -> Judged {
    match committed(missing) {
        Some(at) if at < seen.at_us => {
            Judged { outcome: Outcome::Stale, missing: Some(missing), age_us: age(seen, Some(at)) }
        }
        Some(_) if is_next => Judged::is(Outcome::Consistent),
        _ => Judged::UNKNOWN,
    }
}

/// The database's clock and ours may differ: what seems to come from the future is of just now.
fn age(seen: &Seen, committed: Option<i64>) -> Option<i64> {
    committed.map(|at| seen.at_us.saturating_sub(at).max(0))
}

#[cfg(test)]
mod tests;
