//! The recent past: what was settled when, and what the primary's snapshots saw.
//!
//! One sequence answers three questions: which snapshot a piece of evidence must contain to have seen every
//! write up to an LSN; how far history may be dropped because it has been settled for long enough; and since
//! when a write has been settled.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Millis, Settled};
use crate::position::{Lsn, Snapshot};

/// Beyond this many, every second of the older ones is dropped. What is left answers with a later snapshot
/// than needed: a refusal more, never a fill too many.
const MAX_POLLS: usize = 4096;

#[derive(Debug)]
struct Poll {
    at: Millis,
    /// Settled on every source.
    settled: Lsn,
    /// Every commit up to here is visible in `snapshot`.
    primary: Lsn,
    snapshot: Arc<Snapshot>,
}

/// Polls of the sources, oldest first; `settled` and `primary` never fall from one to the next.
#[derive(Debug, Default)]
pub(super) struct Past {
    polls: VecDeque<Poll>,
}

impl Past {
    pub fn clear(&mut self) {
        self.polls.clear();
    }

    /// Remembers a poll, if it says anything new.
    pub fn push(&mut self, settled: &Settled, now: Millis) {
        let Some(snapshot) = &settled.primary else { return };
        let (mut lsn, primary) = (settled.lsn.min(settled.primary_lsn), settled.primary_lsn);
        if let Some(last) = self.polls.back() {
            // A source may go back (fact F11); what was dropped because it was settled stays dropped.
            lsn = lsn.max(last.settled);
            if primary <= last.primary && lsn <= last.settled {
                return;
            }
        }
        if self.polls.len() >= MAX_POLLS {
            let mut place = 0;
            self.polls.retain(|_| {
                place += 1;
                place > MAX_POLLS / 2 || place % 2 == 0
            });
        }
        self.polls.push_back(Poll { at: now, settled: lsn, primary, snapshot: snapshot.clone() });
    }

    /// The first polled snapshot known to have seen every commit up to `lsn`; none before there was one.
    pub fn cover(&self, lsn: Lsn) -> Option<Arc<Snapshot>> {
        let place = self.polls.partition_point(|p| p.primary < lsn);
        self.polls.get(place).map(|p| p.snapshot.clone())
    }

    /// What has been settled since `then` or longer.
    pub fn settled_before(&self, then: Millis) -> Option<Lsn> {
        let place = self.polls.partition_point(|p| p.at <= then);
        place.checked_sub(1).map(|p| self.polls[p].settled)
    }

    /// When `lsn` was first known to be settled on every source.
    pub fn settled_at(&self, lsn: Lsn) -> Option<Millis> {
        let place = self.polls.partition_point(|p| p.settled < lsn);
        self.polls.get(place).map(|p| p.at)
    }

    /// Drops the polls that only speak of what the floor has passed; the one that covers the floor stays.
    pub fn forget(&mut self, floor: Lsn) {
        let place = self.polls.partition_point(|p| p.primary < floor);
        // The poll from which `settled_before` reads the next floor must stay as well, so keep one more.
        self.polls.drain(..place.min(self.polls.len().saturating_sub(1)));
    }
}
