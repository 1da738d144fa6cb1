//! The judge beside a model that knows every state that the row ever had.

use proptest::prelude::*;

use super::*;
use crate::fence::{
    Fence, GuardId, KeyHash, Limits, RowChange, RowChanges, Version, VersionClaim, Vouches, Write,
};
use crate::position::Xid;

const GUARD: GuardId = GuardId(0);
const KEY: KeyHash = KeyHash(7);

fn fence() -> Fence {
    let fence = Fence::new(Limits {
        history: 1_000,
        lease_ttl: 1_000,
        longest_cap: 0,
        max_keys: 100,
        max_leases: 100,
        guards: 1,
        shards: 2,
    });
    fence.restart(Lsn(1));
    fence
}

fn claim(version: i64) -> VersionClaim {
    VersionClaim {
        guard: GUARD,
        version: Version(version),
        step: 1,
        only_equal: false,
        vouches: Vouches::LastWriteAndNewer,
    }
}

fn commit_lsn(n: usize) -> Lsn {
    Lsn(n as u64 * 10)
}

fn commit_time(n: usize) -> i64 {
    n as i64 * 1_000
}

/// When a commit was made, by its end.
fn committed(lsn: Lsn) -> Option<i64> {
    Some(commit_time(lsn.0 as usize / 10))
}

/// A write as the feed tells it.
#[derive(Clone, Copy, Debug)]
enum Told {
    /// With the version before it.
    Both(i64),
    /// Without.
    New(i64),
    /// It could not be read.
    Nothing,
    /// By another table, or by name: it says nothing of the row, and leaves it as it is.
    Otherwise,
    /// All rows are gone.
    Truncated,
}

impl Told {
    fn version(self, before: i64) -> i64 {
        match self {
            Self::Both(version) | Self::New(version) => version,
            Self::Nothing | Self::Otherwise | Self::Truncated => before,
        }
    }
}

fn write(fence: &Fence, n: usize, told: Told, before: i64) {
    let write = Write { xid: Xid(n as u64), lsn: commit_lsn(n) };
    let mut draining = Vec::new();
    let mut row = |old: Option<i64>, new: Option<i64>| {
        let change = RowChange::Updated { old: old.map(Version), new: new.map(Version) };
        fence.write_row(KEY, write, &RowChanges::new(GUARD, change), &mut draining);
    };
    match told {
        Told::Both(version) => row(Some(before), Some(version)),
        Told::New(version) => row(None, Some(version)),
        Told::Nothing => row(None, None),
        Told::Otherwise => fence.write(KEY, write, &mut draining),
        Told::Truncated => fence.write_guards(&[GUARD], write, &mut draining),
    }
}

/// A world in which the row is written some times, and a hit that is answered in the middle.
#[derive(Clone, Debug)]
struct Case {
    /// The first version, and the writes.
    first: i64,
    writes: Vec<Told>,
    /// So many commits were made, had been fenced, and were applied, when the hit was answered.
    made: usize,
    fenced: usize,
    applied: usize,
    /// The state that its value was made from: after so many writes.
    state: usize,
    is_kept: bool,
}

impl Case {
    /// The version after so many writes.
    fn version(&self, writes: usize) -> i64 {
        self.writes[..writes].iter().fold(self.first, |before, told| told.version(before))
    }

    fn judged(&self) -> Judged {
        let fence = fence();
        let (before, after) = self.writes.split_at(self.fenced);
        for (n, told) in before.iter().enumerate() {
            write(&fence, n + 1, *told, self.version(n));
        }
        let claim = claim(self.version(self.state));
        let seen = Seen {
            applied: commit_lsn(self.applied),
            remembered: fence.compare(KEY, &[GUARD], &claim),
            at_us: commit_time(self.made) + 500,
            is_kept: self.is_kept,
        };
        for (n, told) in after.iter().enumerate() {
            let n = self.fenced + n;
            write(&fence, n + 1, *told, self.version(n));
        }
        judge(&seen, fence.compare(KEY, &[GUARD], &claim).as_ref(), committed)
    }
}

fn told(versions: std::ops::Range<i64>) -> impl Strategy<Value = Told> {
    prop_oneof![
        6 => versions.clone().prop_map(Told::Both),
        3 => versions.prop_map(Told::New),
        1 => Just(Told::Nothing),
        1 => Just(Told::Otherwise),
        1 => Just(Told::Truncated),
    ]
}

prop_compose! {
    fn cases(writes: BoxedStrategy<Vec<Told>>)(writes in writes)(
        made in 0..=writes.len(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>(),
        c in any::<prop::sample::Index>(), first in 0..3_i64, is_kept in any::<bool>(), writes in Just(writes),
    ) -> Case {
        let fenced = a.index(made + 1);
        Case { first, fenced, applied: b.index(fenced + 1), state: c.index(made + 1), made, is_kept, writes }
    }
}

/// Versions that go up and down, and writes that tell nothing.
fn any_writes() -> BoxedStrategy<Vec<Told>> {
    prop::collection::vec(told(0..6), 0..12).boxed()
}

/// Each write raises the version, and says so.
fn growing_writes() -> BoxedStrategy<Vec<Told>> {
    let steps = prop::collection::vec((1..4_i64, any::<bool>()), 1..8);
    let grown = |steps: Vec<(i64, bool)>| {
        let mut version = 10;
        let told = |(step, both): (i64, bool)| {
            version += step;
            if both { Told::Both(version) } else { Told::New(version) }
        };
        steps.into_iter().map(told).collect()
    };
    steps.prop_map(grown).boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is written, and however: nobody is called for nothing.
    #[test]
    fn a_violation_is_one(case in cases(any_writes())) {
        if case.judged().outcome == Outcome::Violation {
            // A write after the state that the value was made from had been applied.
            prop_assert!(case.is_kept && case.state < case.applied, "{case:?}");
        }
    }

    /// Where versions do what they are for, every answer is the right one.
    #[test]
    fn versions_that_grow_tell_all(case in cases(growing_writes())) {
        let judged = case.judged();
        let all = case.writes.len();
        let expected = if case.state == all {
            Outcome::Consistent
        } else if case.state < case.fenced {
            let was_deleted = case.fenced == case.applied;
            if was_deleted && case.is_kept { Outcome::Violation } else { Outcome::Stale }
        } else if case.state == case.fenced && case.fenced > 0 {
            // The fence's last write when the hit was answered.
            if case.made > case.fenced { Outcome::Stale } else { Outcome::Consistent }
        } else if case.made == all {
            Outcome::Stale
        } else {
            // Newer than the fence's last, or nothing was remembered: which write came next is not known.
            Outcome::Unknown
        };
        prop_assert_eq!(judged.outcome, expected, "{:?}: {:?}", case, judged);
        if let Some(age) = judged.age_us {
            // The commit that is missing had been made before.
            let oldest = case.made.saturating_sub(case.state) as i64 * 1_000;
            prop_assert!(age > 0 && age <= oldest, "{case:?}: {judged:?}");
        }
    }
}

fn case(writes: &[Told], fenced: usize, applied: usize, state: usize) -> Case {
    Case { first: 1, writes: writes.to_vec(), made: fenced, fenced, applied, state, is_kept: true }
}

#[test]
fn a_value_that_survived_its_deletion_is_a_violation() {
    use Told::{Both, New, Nothing, Otherwise, Truncated};
    let outcome = |case: Case| case.judged().outcome;
    assert_eq!(outcome(case(&[Both(2)], 1, 1, 0)), Outcome::Violation);
    assert_eq!(outcome(case(&[New(2)], 1, 1, 0)), Outcome::Violation, "what it replaced need not be known");
    assert_eq!(outcome(case(&[Both(2), Both(3)], 1, 1, 0)), Outcome::Violation, "and written again since");
    assert_eq!(outcome(case(&[Both(2)], 1, 0, 0)), Outcome::Stale, "it was not applied");
    assert_eq!(outcome(case(&[Both(2)], 1, 1, 1)), Outcome::Consistent);
    for (write, why) in [
        (Nothing, "whose version is not known"),
        (Otherwise, "that tells nothing of the row"),
        (Truncated, "of all keys"),
        (Both(1), "with the version that it had before"),
    ] {
        assert_eq!(outcome(case(&[Both(2), write], 1, 1, 0)), Outcome::Unknown, "a later write {why}");
        assert_eq!(outcome(case(&[Both(2), write], 2, 2, 0)), Outcome::Unknown, "a last write {why}");
    }
    // Down, and up again: the value may be of the state in between, which nobody had been told of.
    assert_eq!(outcome(case(&[Both(5), Both(1), Both(7)], 1, 1, 0)), Outcome::Unknown);
    // Nothing of the key is refused or deleted.
    assert_eq!(outcome(Case { is_kept: false, ..case(&[Both(2)], 1, 1, 0) }), Outcome::Stale);
}

#[test]
fn what_cannot_be_compared_is_unknown() {
    let mut seen = Seen { applied: Lsn(100), remembered: None, at_us: 0, is_kept: true };
    assert_eq!(judge(&seen, None, committed), Judged::UNKNOWN, "no history");
    let fence = fence();
    write(&fence, 1, Told::Both(20), 10);
    let compare = |claim: &VersionClaim| fence.compare(KEY, &[GUARD], claim);
    // Cut off, or on another scale.
    for vague in [VersionClaim { step: 20, ..claim(5) }, VersionClaim { only_equal: true, ..claim(5) }] {
        seen.remembered = compare(&vague);
        assert_eq!(judge(&seen, compare(&vague).as_ref(), committed), Judged::UNKNOWN, "{vague:?}");
    }
    // Another guard's version.
    assert_eq!(compare(&VersionClaim { guard: GuardId(1), ..claim(5) }), None);
    // Forgotten meanwhile.
    seen.remembered = compare(&claim(5));
    let forgotten = compare(&claim(5)).map(|now| Remembered { floor: commit_lsn(1), ..now });
    assert_eq!(judge(&seen, forgotten.as_ref(), committed), Judged::UNKNOWN);
    assert_eq!(judge(&seen, compare(&claim(5)).as_ref(), committed).outcome, Outcome::Violation);
}

/// Of a key that is written all the time only the last writes are remembered one by one.
#[test]
fn a_hit_of_a_hot_key_is_judged_by_the_write_after_it() {
    let writes: Vec<Told> = (2..32).map(Told::New).collect();
    let outcome = |made, fenced, state| {
        Case { first: 1, writes: writes.clone(), made, fenced, applied: fenced, state, is_kept: true }
            .judged()
            .outcome
    };
    assert_eq!(outcome(28, 28, 28), Outcome::Consistent);
    assert_eq!(outcome(28, 27, 27), Outcome::Stale);
    assert_eq!(outcome(28, 28, 27), Outcome::Violation);
    // So many have come since that the one after it is not known.
    assert_eq!(outcome(10, 10, 10), Outcome::Unknown);
}
