//! The judgement of a fill, while its key is locked.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::key::KeyState;
use super::super::lease::Vouched;
use super::super::locks::{lock, read};
use super::super::version::Says;
use super::super::{Evidence, GuardId, KeyHash, Millis, Stale, Unproven, Verdict};
use super::{Fence, Fill, WholeGuard};
use crate::position::{Lsn, Snapshot};

impl Fence {
    pub(in crate::fence) fn vouch(
        &self,
        state: &mut KeyState,
        fill: &Fill<'_>,
        now: Millis,
    ) -> (Vouched, Option<usize>) {
        let Some(extra) = state.existing_extra() else { return (Vouched::No, None) };
        extra.leases.expire(now);
        extra.leases.vouch(fill.conn, fill.lease, fill.part, self.sources())
    }

    /// What becomes of a lease of this key while misses may be outstanding that nobody remembers.
    pub(in crate::fence) fn doubt(&self, key: KeyHash, now: Millis) -> Option<Vouched> {
        if self.ungranted_slot(key).load(Ordering::SeqCst) > now {
            Some(Vouched::No)
        } else if self.distrusted.load(Ordering::SeqCst) > now {
            Some(Vouched::Predecessor)
        } else {
            None
        }
    }

    pub(in crate::fence) fn judge(
        &self,
        state: &KeyState,
        fill: &Fill<'_>,
        vouched: Vouched,
        now: Millis,
    ) -> Verdict {
        // After the key was locked: whoever dropped its history had raised the floor before.
        let floor = self.floor();
        let verdict = |judged: Result<(), Stale>| judged.map_or_else(Verdict::Stale, |()| Verdict::Fresh);
        // Whatever proves this part: the one before it is missing from the value.
        if vouched == Vouched::Torn {
            return Verdict::Stale(Stale::Torn);
        }
        let version = self.judge_version(state, fill, floor);
        let abandoned = self.abandoned.load(Ordering::SeqCst) > now;
        match version {
            Says::Fresh if abandoned => {}
            Says::Fresh => return Verdict::Fresh,
            Says::Stale(stale) => return Verdict::Stale(stale),
            Says::Doubtful | Says::Nothing => {}
        }
        match (fill.evidence, vouched) {
            (Some(_), _) if abandoned => Verdict::Stale(Stale::Abandoned),
            (Some(Evidence::Snapshot(snapshot)), _) => {
                verdict(self.judge_snapshot(state, fill.guards, snapshot, floor))
            }
            (Some(Evidence::Lsn(lsn)), _) => verdict(self.judge_lsn(state, fill.guards, *lsn, floor)),
            (None, Vouched::By { own, oldest }) => match self.judge_lsn(state, fill.guards, own, floor) {
                Ok(()) if self.judge_lsn(state, fill.guards, oldest, floor).is_ok() => Verdict::Fresh,
                Ok(()) => Verdict::Unproven(Unproven::OlderMiss),
                Err(stale) => Verdict::Stale(stale),
            },
            (None, Vouched::No | Vouched::SourceLost | Vouched::Predecessor | Vouched::Torn) => {
                match self.last(state, fill.guards, floor) {
                    Some(_) if version == Says::Doubtful => Verdict::Unproven(Unproven::VersionUnseen),
                    Some(last) => Verdict::Stale(Stale::NoEvidence(last)),
                    // While the table is restarted nothing is known of any key.
                    None if floor == Lsn(u64::MAX) => Verdict::Stale(Stale::BelowFloor(floor)),
                    None if vouched == Vouched::SourceLost => Verdict::Unproven(Unproven::SourceLost),
                    None if vouched == Vouched::Predecessor => Verdict::Unproven(Unproven::Predecessor),
                    None => Verdict::Unproven(Unproven::NoEvidence),
                }
            }
        }
    }

    fn judge_version(&self, state: &KeyState, fill: &Fill<'_>, floor: Lsn) -> Says {
        // Of a key without a write in its history nothing is known, whatever is left of it here.
        match (&fill.version, state.versions(), state.last(floor)) {
            (Some(claim), Some(versions), Some(_)) => {
                versions.judge(claim, floor, self.last_wholly(fill.guards, floor))
            }
            _ => Says::Nothing,
        }
    }

    fn judge_lsn(
        &self,
        state: &KeyState,
        guards: &[GuardId],
        evidence: Lsn,
        floor: Lsn,
    ) -> Result<(), Stale> {
        if evidence < floor {
            return Err(Stale::BelowFloor(floor));
        }
        state.judge_lsn(evidence, floor)?;
        self.written_wholly(guards, floor).try_for_each(|whole| lock(&whole.state).judge_lsn(evidence, floor))
    }

    fn judge_snapshot(
        &self,
        state: &KeyState,
        guards: &[GuardId],
        evidence: &Snapshot,
        floor: Lsn,
    ) -> Result<(), Stale> {
        let past = read(&self.past);
        let cover = |lsn: Lsn| -> Option<Arc<Snapshot>> { past.cover(lsn) };
        if !cover(floor).is_some_and(|c| evidence.includes(&c)) {
            return Err(Stale::BelowFloor(floor));
        }
        state.judge_snapshot(evidence, floor, cover)?;
        self.written_wholly(guards, floor)
            .try_for_each(|whole| lock(&whole.state).judge_snapshot(evidence, floor, cover))
    }

    pub(in crate::fence) fn last(&self, state: &KeyState, guards: &[GuardId], floor: Lsn) -> Option<Lsn> {
        let wholly =
            self.written_wholly(guards, floor).filter_map(|whole| lock(&whole.state).last(floor)).max();
        state.last(floor).max(wholly)
    }

    /// The last write of any of the guards as a whole, if it is remembered.
    pub(in crate::fence) fn last_wholly(&self, guards: &[GuardId], floor: Lsn) -> Option<Lsn> {
        self.written_wholly(guards, floor).map(|whole| Lsn(whole.last.load(Ordering::SeqCst))).max()
    }

    /// Those of the guards that have a write of all their keys in their history.
    fn written_wholly(&self, guards: &[GuardId], floor: Lsn) -> impl Iterator<Item = &WholeGuard> {
        let whole = guards.iter().filter_map(|guard| self.guards.get(usize::from(guard.0)));
        whole.filter(move |whole| whole.last.load(Ordering::SeqCst) > floor.0)
    }
}
