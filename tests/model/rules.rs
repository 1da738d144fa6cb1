//! The proxy's rules, stated again: what `fence` decides, in terms of the model. That both say the same is shown by
//! `walk`.

use super::scenario::{Contract, Mutation, Scenario, bit, up_to};
use super::state::{Commits, Evidence, Lease, NOBODY, Position, State};

/// What a fill is found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fresh,
    Stale,
    Unproven,
}

/// The rules, as far as the scenario leaves them in.
pub struct Rules<'a>(pub &'a Scenario);

impl Rules<'_> {
    /// The writes of the key that are remembered, as bits.
    fn remembered(&self, state: &State) -> Commits {
        up_to(state.fenced) & !up_to(state.forgotten) & self.0.key()
    }

    /// The position of the last write that is remembered.
    fn last(&self, state: &State) -> Option<Position> {
        let last = (1..=state.fenced).rev().find(|lsn| self.remembered(state) & bit(*lsn) != 0)?;
        Some(if self.0.is(Mutation::StartLsn) { last - 1 } else { last })
    }

    pub fn judge_lsn(&self, state: &State, evidence: Position) -> Verdict {
        let superseded = self.last(state).is_some_and(|last| evidence < last);
        if evidence < state.floor || superseded { Verdict::Stale } else { Verdict::Fresh }
    }

    /// Every write that is remembered by xid has to be visible in it; and it has to include the snapshots that saw
    /// those that are not: everything up to the floor, and the key's older writes.
    pub fn judge_snapshot(&self, state: &State, evidence: Commits) -> Verdict {
        let xids = if self.0.is(Mutation::LastXidOnly) { 1 } else { self.0.xids };
        let includes =
            |lsn: Position| state.covers[usize::from(lsn)].is_some_and(|cover| cover & !evidence == 0);
        if !includes(state.floor) {
            return Verdict::Stale;
        }
        let writes = (1..=state.fenced).rev().filter(|lsn| self.remembered(state) & bit(*lsn) != 0);
        for (count, lsn) in writes.enumerate() {
            if count == usize::from(xids) {
                let covered = self.0.is(Mutation::LastXidOnly) || includes(lsn);
                return if covered { Verdict::Fresh } else { Verdict::Stale };
            }
            if evidence & bit(lsn) == 0 {
                return Verdict::Stale;
            }
        }
        Verdict::Fresh
    }

    /// The least that every source shows.
    pub fn settled(&self, state: &State) -> Position {
        if self.0.replica { state.primary.min(state.replayed.min(state.fenced)) } else { state.primary }
    }

    /// What the primary shows, after a poll: the longest prefix of what the feed has brought. What the stream did not
    /// bring, because it was confirmed before, was settled then. Not in strict: there all of it has to be seen first.
    pub fn polled(&self, state: &State) -> Position {
        if self.0.is(Mutation::ReceivedIsSettled) {
            return state.fenced;
        }
        let suspects = self.0.contract == Contract::Strict && up_to(state.slot) & !state.visible != 0;
        if suspects && !self.0.is(Mutation::NoSuspects) {
            return 0;
        }
        let brought = state.primary.max(state.slot)..state.fenced;
        let seen = brought.take_while(|lsn| state.visible & bit(lsn + 1) != 0).count() as u8;
        state.primary.max(state.slot) + seen
    }

    /// What may be confirmed to Postgres.
    pub fn confirmable(&self, state: &State) -> Position {
        let done = state.deleted.min(state.fenced);
        match self.0.contract {
            Contract::Strict => done,
            Contract::Bounded if self.0.is(Mutation::ConfirmUnsettled) => done,
            Contract::Bounded => done.min(state.primary),
        }
    }

    /// A miss is answered. Misses between which the key was not written are worth the same.
    pub fn grant(&self, state: &mut State, conn: u8, owner: u8) {
        let lsn = self.settled(state);
        let written = self.last(state).unwrap_or(0).max(state.floor);
        for lease in state.leases.all_mut().iter_mut().filter(|l| l.lsn >= written) {
            lease.lsn = lease.lsn.max(lsn);
        }
        state.leases.push(Lease { spent: false, conn, lsn, owner });
    }

    /// Judges a fill that comes on a connection, and uses up the miss that it is taken to answer.
    pub fn admit(&self, state: &mut State, conn: u8, client: u8, evidence: Evidence) -> Verdict {
        let own = |l: &Lease| !l.spent && (l.conn == conn || self.0.is(Mutation::AnyConnection));
        let place = state.leases.all().iter().rposition(own);
        let vouching = place.filter(|_| !state.distrust);
        let verdict = match (evidence, vouching) {
            (Evidence::Snapshot(seen), _) => self.judge_snapshot(state, seen),
            (Evidence::Lsn(lsn), _) => self.judge_lsn(state, lsn),
            (Evidence::None, Some(place)) => self.judge_lease(state, place),
            (Evidence::None, None) if self.last(state).is_some() => Verdict::Stale,
            (Evidence::None, None) => Verdict::Unproven,
        };
        // Its own fill has come, whichever is used up for it.
        state.leases.all_mut().iter_mut().filter(|l| l.owner == client).for_each(|l| l.owner = NOBODY);
        if let Some(place) = place {
            let used = state.leases.remove(place);
            let others = !state.leases.all().is_empty() || state.distrust;
            if others && !self.0.is(Mutation::NothingSpent) {
                state.leases.push(Lease { spent: true, conn: 0, ..used });
            }
        }
        self.bury(state);
        verdict
    }

    /// By its own miss, and by the oldest that is outstanding on any connection.
    fn judge_lease(&self, state: &State, place: usize) -> Verdict {
        let leases = state.leases.all();
        let own = leases[place].lsn;
        let oldest = leases.iter().map(|l| l.lsn).min().unwrap_or(own);
        match self.judge_lsn(state, own) {
            Verdict::Fresh if self.0.is(Mutation::OwnMissOnly) => Verdict::Fresh,
            // Only an older one speaks against it.
            Verdict::Fresh if self.judge_lsn(state, oldest) != Verdict::Fresh => Verdict::Unproven,
            verdict => verdict,
        }
    }

    /// A lease that is too old for the key stays too old: it does not matter how old it is.
    pub fn bury(&self, state: &mut State) {
        if self.0.is(Mutation::FloorStays) {
            return;
        }
        let before = *state;
        for lease in state.leases.all_mut() {
            if self.judge_lsn(&before, lease.lsn) != Verdict::Fresh {
                lease.lsn = 0;
            }
        }
    }
}
