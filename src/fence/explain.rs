//! What is known of one key, and what fills of it would get: told without changing anything.

use super::key::KeyState;
use super::lease::{Leases, Vouched};
use super::{
    ConnId, Evidence, Fence, Fill, FillId, GuardId, KeyHash, LeaseRule, Millis, Verdict, Version, Write,
};
use crate::position::Lsn;

/// A connection that nobody has: what is asked about it would hold for any that is new.
const NOBODY: ConnId = ConnId(u64::MAX);

/// What is asked of a key.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// The key.
    pub key: KeyHash,
    /// Whose fill it would be; none for a connection that has no miss of its own.
    pub conn: Option<ConnId>,
    /// The guards whose templates match the key.
    pub guards: &'a [GuardId],
    /// Whose miss can vouch for a fill.
    pub lease: LeaseRule,
    /// What fills by evidence would say; each gets a verdict.
    pub evidence: &'a [Evidence],
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyAccount {
    /// Below this nothing is known of single keys.
    pub floor: Lsn,
    /// What a miss that is answered now would be worth.
    pub settled: Lsn,
    /// Every source is in sight. While one is not, no lease counts.
    pub in_sight: bool,
    /// The last write, be it of the key or of a guard as a whole; none that is remembered.
    pub last: Option<Lsn>,
    /// The last write of the key by itself.
    pub own: Option<Write>,
    /// How many writes of the key by itself are remembered one by one.
    pub writes: usize,
    /// For how long the last write has been visible on every source; none while it is not.
    pub settled_for: Option<Millis>,
    /// The row's version, where that is told, and whether a fill that was made from it would be fresh for that.
    pub version: Option<(Version, bool)>,
    /// Misses that were answered, and whose fills may still come.
    pub misses: Outstanding,
    /// Fills that were let in and that Redis has not answered.
    pub in_flight: usize,
    /// What a fill would get from a miss of the asking connection; none where it has no miss that counts for it.
    pub by_own_miss: Option<Verdict>,
    /// What a fill would get without evidence.
    pub without: Verdict,
    /// What a fill would get after a miss that is answered now.
    pub by_new_miss: Verdict,
    /// What fills would get with each of the evidence that was named.
    pub by_evidence: Vec<Verdict>,
}

/// The outstanding misses of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outstanding {
    /// Those that can vouch for a fill.
    pub open: u32,
    /// Those that were used up, perhaps by another's fill, and still object.
    pub spent: u32,
    /// How many connections have one that can vouch.
    pub connections: usize,
    /// How old the oldest is at least: of misses that are alike the age of the last is known.
    pub oldest: Option<Millis>,
    /// What the worst of them is worth, by which every fill that has a miss is judged.
    pub worth: Option<Lsn>,
    /// How many of them vouch for the asking connection's own fills.
    pub own: u32,
    /// No lease of the key counts for now: misses may be outstanding that nobody remembers.
    pub doubted: bool,
}

impl Fence {
    /// What is known of a key, and what fills of it would get now.
    pub fn explain(&self, question: &Question<'_>, now: Millis) -> KeyAccount {
        self.look(question.key, |state| self.account(state, question, now))
    }

    fn account(&self, state: &KeyState, question: &Question<'_>, now: Millis) -> KeyAccount {
        let (floor, conn) = (self.floor(), question.conn.unwrap_or(NOBODY));
        let extra = state.known_extra();
        let mut leases = extra.map(|extra| extra.leases.clone()).unwrap_or_default();
        leases.expire(now);
        let asked = Asked { fence: self, state, question, now };
        let own = asked.vouched(&leases, conn);
        let writes = state.writes(floor);
        let last = self.last(state, question.guards, floor);
        let settled = self.settled();
        KeyAccount {
            floor,
            settled,
            in_sight: self.sources().is_some(),
            last,
            own: writes.map(|(last, _)| last),
            writes: writes.map_or(0, |(_, count)| count),
            settled_for: last
                .filter(|last| *last <= settled)
                .and_then(|last| self.settled_at(last))
                .map(|at| now.saturating_sub(at)),
            version: last
                .and_then(|_| state.versions()?.told(floor, self.last_wholly(question.guards, floor))),
            misses: asked.outstanding(&leases, conn),
            in_flight: extra.map_or(0, |extra| extra.in_flight.len()),
            by_own_miss: (own != Vouched::No).then(|| asked.verdict(None, own)),
            without: asked.verdict(None, Vouched::No),
            by_new_miss: asked.verdict(None, asked.after_a_miss(leases)),
            by_evidence: question.evidence.iter().map(|e| asked.verdict(Some(e), Vouched::No)).collect(),
        }
    }
}

/// A question about a key whose state is at hand.
struct Asked<'a> {
    fence: &'a Fence,
    state: &'a KeyState,
    question: &'a Question<'a>,
    now: Millis,
}

impl Asked<'_> {
    fn vouched(&self, leases: &Leases, conn: ConnId) -> Vouched {
        let (vouched, _) = leases.vouch(conn, self.question.lease, false, self.fence.sources());
        vouched.unless(self.fence.doubt(self.question.key, self.now))
    }

    /// As if a miss were answered now.
    fn after_a_miss(&self, mut leases: Leases) -> Vouched {
        if !self.fence.has_room_for_leases() {
            return Vouched::No;
        }
        let until = self.now + self.fence.limits().lease_ttl;
        let (lease, written) = self.fence.lease(self.state, NOBODY, until);
        leases.grant(lease, written);
        self.vouched(&leases, NOBODY)
    }

    fn verdict(&self, evidence: Option<&Evidence>, vouched: Vouched) -> Verdict {
        let (conn, lease) = (self.question.conn.unwrap_or(NOBODY), self.question.lease);
        let guards = self.question.guards;
        // Never let in, so its number means nothing.
        let fill = Fill { id: FillId(u64::MAX), conn, guards, evidence, version: None, lease, part: false };
        self.fence.judge(self.state, &fill, vouched, self.now)
    }

    fn outstanding(&self, leases: &Leases, conn: ConnId) -> Outstanding {
        let sources = self.fence.sources();
        let mut connections: Vec<ConnId> = leases.iter().filter(|l| l.is_open()).map(|l| l.conn).collect();
        connections.sort_unstable();
        connections.dedup();
        let count = |wanted: &dyn Fn(ConnId) -> bool, open: bool| {
            let counted = leases.iter().filter(|l| l.objects() && l.is_open() == open && wanted(l.conn));
            counted.fold(0_u32, |sum, l| sum.saturating_add(l.count))
        };
        let objecting = || leases.iter().filter(|l| l.objects());
        let born = |until: Millis| until.saturating_sub(self.fence.limits().lease_ttl);
        Outstanding {
            open: count(&|_| true, true),
            spent: count(&|_| true, false),
            connections: connections.len(),
            oldest: objecting().map(|l| self.now.saturating_sub(born(l.until))).max(),
            worth: objecting().map(|l| if l.is_valid(sources) { l.lsn } else { Lsn(0) }).min(),
            own: count(&|of| of == conn, true),
            doubted: self.fence.doubt(self.question.key, self.now).is_some(),
        }
    }
}
