//! Tests of the decision: each rule by an example, all of them together against a model that forgets nothing.

mod caps;
mod evidence;
mod flight;
mod floor;
mod leases;
mod model;
mod settlement;
mod threads;
mod versions;
mod world;

use std::cell::Cell;
use std::sync::Arc;

use super::*;
use crate::position::{Lsn, Snapshot, Xid};

const ALICE: KeyHash = KeyHash(1);
const BOB: KeyHash = KeyHash(2);
const NO_GUARDS: &[GuardId] = &[];

fn snapshot(text: &str) -> Snapshot {
    text.parse().expect("a snapshot")
}

fn limits() -> Limits {
    Limits {
        history: 60_000,
        lease_ttl: 5_000,
        longest_cap: 60_000,
        max_keys: 1_000,
        max_leases: 1_000,
        guards: 2,
        shards: 4,
    }
}

/// What a poll of one primary found: everything up to `lsn` is visible, in `text`.
fn polled(lsn: u64, text: &str) -> Settled {
    let primary = Some(Arc::new(snapshot(text)));
    Settled { lsn: Lsn(lsn), primary_lsn: Lsn(lsn), primary, sources: Some(1) }
}

/// A fence with a clock, and shorter names for what the tests do with it.
struct Table {
    fence: Fence,
    now: Millis,
    next: Cell<u64>,
}

impl Table {
    /// Begins at position 100, where a snapshot sees every transaction below 100.
    fn new(limits: Limits) -> Self {
        let table = Self { fence: Fence::new(limits), now: 1_000_000, next: Cell::new(1) };
        table.fence.restart(Lsn(100));
        table.settle(100, "100:100:");
        table
    }

    fn write(&self, key: KeyHash, xid: u64, lsn: u64) -> Vec<FillId> {
        let mut draining = Vec::new();
        self.fence.write(key, Write { xid: Xid(xid), lsn: Lsn(lsn) }, &mut draining);
        draining
            .into_iter()
            .map(|(of, fill)| if of == key { fill } else { panic!("fill of {of:?}") })
            .collect()
    }

    fn write_guard(&self, guard: u16, xid: u64, lsn: u64) -> Vec<(KeyHash, FillId)> {
        let mut draining = Vec::new();
        let write = Write { xid: Xid(xid), lsn: Lsn(lsn) };
        self.fence.write_guards(&[GuardId(guard)], write, &mut draining);
        draining.sort_unstable();
        draining
    }

    fn settle(&self, lsn: u64, text: &str) {
        self.fence.settle(&polled(lsn, text), self.now);
    }

    fn miss(&self, key: KeyHash, conn: u64) {
        self.fence.miss(key, ConnId(conn), self.now);
    }

    fn fill(&self, conn: u64) -> Fill<'static> {
        let id = FillId(self.next.replace(self.next.get() + 1));
        let (conn, lease) = (ConnId(conn), LeaseRule::Connection);
        Fill { id, conn, guards: NO_GUARDS, evidence: None, version: None, lease, part: false }
    }

    fn judge(&self, key: KeyHash, fill: &Fill<'_>) -> Verdict {
        self.judge_by(key, fill, |verdict| match verdict {
            Verdict::Fresh => Ruling::Forward,
            Verdict::Stale(_) | Verdict::Unproven(_) => Ruling::Refuse,
        })
    }

    /// Judges a fill; if it is let in, Redis answers at once.
    fn judge_by(&self, key: KeyHash, fill: &Fill<'_>, rule: impl FnOnce(Verdict) -> Ruling) -> Verdict {
        let (verdict, ruling) = self.fence.admit(key, fill, self.now, rule);
        assert_eq!(self.fence.is_in_flight(key, fill.id), ruling != Ruling::Refuse);
        self.fence.finish(key, fill.id);
        verdict
    }

    /// A whole fill without evidence, on a connection.
    fn set(&self, key: KeyHash, conn: u64) -> Verdict {
        self.judge(key, &self.fill(conn))
    }

    /// A part of a fill without evidence, on a connection.
    fn add(&self, key: KeyHash, conn: u64) -> Verdict {
        self.judge(key, &Fill { part: true, ..self.fill(conn) })
    }

    fn asof_lsn(&self, key: KeyHash, lsn: u64) -> Verdict {
        self.judge(key, &Fill { evidence: Some(&Evidence::Lsn(Lsn(lsn))), ..self.fill(999) })
    }

    fn asof(&self, key: KeyHash, text: &str) -> Verdict {
        self.judge(key, &Fill { evidence: Some(&Evidence::Snapshot(snapshot(text))), ..self.fill(999) })
    }

    /// A fill in flight, let in with perfect evidence.
    fn in_flight(&self, key: KeyHash) -> FillId {
        let fill = self.fill(999);
        let (_, ruling) = self.fence.admit(key, &fill, self.now, |_| Ruling::Forward);
        assert_eq!(ruling, Ruling::Forward);
        fill.id
    }
}

fn superseded(lsn: u64) -> Verdict {
    Verdict::Stale(Stale::Superseded(Lsn(lsn)))
}

fn below_floor(lsn: u64) -> Verdict {
    Verdict::Stale(Stale::BelowFloor(Lsn(lsn)))
}

fn no_evidence(lsn: u64) -> Verdict {
    Verdict::Stale(Stale::NoEvidence(Lsn(lsn)))
}

const TORN: Verdict = Verdict::Stale(Stale::Torn);
const UNPROVEN: Verdict = Verdict::Unproven(Unproven::NoEvidence);
const OLDER_MISS: Verdict = Verdict::Unproven(Unproven::OlderMiss);
const LOST: Verdict = Verdict::Unproven(Unproven::SourceLost);
const PREDECESSOR: Verdict = Verdict::Unproven(Unproven::Predecessor);
