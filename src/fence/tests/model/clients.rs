//! The clients: what they miss, read and fill, and what the rules say of it.

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Used {
    No,
    Admitted,
    Refused,
    Gone,
}

#[derive(Debug)]
pub(super) struct Miss {
    pub(super) hash: KeyHash,
    pub(super) conn: u8,
    pub(super) at: Millis,
    pub(super) lsn: u64,
    /// Which sources `lsn` speaks of; none where it is worth nothing.
    pub(super) sources: Option<u32>,
    pub(super) used: Used,
    pub(super) granted: bool,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) key: usize,
    pub(super) conn: u8,
    pub(super) miss: Option<usize>,
    pub(super) evidence: Option<Evidence>,
    /// Where evidence was taken, which is where the data must be read.
    pub(super) node: Option<Node>,
    pub(super) data: Option<Seen>,
    /// A part of it was sent.
    pub(super) begun: bool,
    /// A fill of another connection's miss has used up a miss of this one: see `conforms`.
    pub(super) robbed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Fresh,
    Superseded,
    BelowFloor,
    NoEvidence,
    Torn,
    Unproven(Unproven),
}

pub(super) fn kind(verdict: Verdict) -> Kind {
    match verdict {
        Verdict::Fresh => Kind::Fresh,
        Verdict::Stale(Stale::Superseded(_)) => Kind::Superseded,
        Verdict::Stale(Stale::BelowFloor(_)) => Kind::BelowFloor,
        Verdict::Stale(Stale::NoEvidence(_)) => Kind::NoEvidence,
        Verdict::Stale(Stale::Torn) => Kind::Torn,
        Verdict::Unproven(why) => Kind::Unproven(why),
    }
}

/// How often something happened without which the test would be empty.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// By lease, by LSN, by snapshot.
    pub(super) fresh: [usize; 3],
    pub(super) older_miss: usize,
    pub(super) source_lost: usize,
    pub(super) torn: usize,
    pub(super) superseded: usize,
    pub(super) below_floor: usize,
    /// Snapshots refused only because a key had more writes than it remembers.
    pub(super) uncovered: usize,
    pub(super) room_made: usize,
    pub(super) drained: usize,
}

impl Counts {
    pub(super) fn verdict(&mut self, verdict: Verdict) {
        match kind(verdict) {
            Kind::Superseded => self.superseded += 1,
            Kind::BelowFloor => self.below_floor += 1,
            Kind::Torn => self.torn += 1,
            Kind::Unproven(Unproven::OlderMiss) => self.older_miss += 1,
            Kind::Unproven(Unproven::SourceLost) => self.source_lost += 1,
            Kind::Unproven(Unproven::NoEvidence) | Kind::NoEvidence | Kind::Fresh => {}
        }
    }

    pub(super) fn all(&mut self) -> [&mut usize; 11] {
        let [lease, lsn, snapshot] = &mut self.fresh;
        let Self { older_miss, source_lost, torn, superseded, below_floor, uncovered, .. } = self;
        let (room_made, drained) = (&mut self.room_made, &mut self.drained);
        [
            lease,
            lsn,
            snapshot,
            older_miss,
            source_lost,
            torn,
            superseded,
            below_floor,
            uncovered,
            room_made,
            drained,
        ]
    }

    pub(super) fn add(&mut self, other: &mut Counts) {
        for (sum, more) in self.all().into_iter().zip(other.all()) {
            *sum += *more;
        }
    }

    pub(super) fn least(&mut self) -> usize {
        self.all().into_iter().map(|count| *count).min().unwrap_or(0)
    }
}

impl Model {
    pub(super) fn node(&self, node: u8) -> Node {
        let source = usize::from(node) % self.in_sight.len();
        match self.setting.sources[source] {
            SourceKind::Primary => Node::Primary,
            SourceKind::Replica => Node::Replica(source, self.world.replicas[source].crashes),
        }
    }

    pub(super) fn request(&mut self, request: Request) {
        if self.requests.len() == 8 {
            self.requests.remove(0);
        }
        self.requests.push(request);
    }

    pub(super) fn miss(&mut self, key: usize, conn: u8) {
        let hash = HASHES[key];
        let granted = self.fence.size().leases < self.setting.max_leases;
        self.fence.miss(hash, ConnId(u64::from(conn)), self.now);
        if granted {
            // A new miss ends the fill in parts before it.
            let parts = |m: &&mut Miss| {
                (m.hash, m.conn) == (hash, conn) && matches!(m.used, Used::Admitted | Used::Refused)
            };
            self.misses.iter_mut().filter(parts).for_each(|miss| miss.used = Used::Gone);
        }
        let (at, lsn, sources) = (self.now, self.settled, self.sources());
        self.misses.push(Miss { hash, conn, at, lsn, sources, used: Used::No, granted });
        let miss = Some(self.misses.len() - 1);
        self.request(Request {
            key,
            conn,
            miss,
            evidence: None,
            node: None,
            data: None,
            begun: false,
            robbed: false,
        });
    }

    pub(super) fn read(&mut self, pick: u8, node: u8) {
        let node = self.node(node);
        let unread: Vec<usize> =
            (0..self.requests.len()).filter(|n| self.requests[*n].data.is_none()).collect();
        if unread.is_empty() {
            return;
        }
        let place = unread[usize::from(pick) % unread.len()];
        let node = match self.requests[place].node {
            // The session in which the evidence was taken has not survived.
            Some(Node::Replica(replica, crashes)) if self.world.replicas[replica].crashes != crashes => {
                self.requests.remove(place);
                return;
            }
            Some(node) => node,
            None => node,
        };
        self.requests[place].data = Some(self.world.seen(node));
    }

    pub(super) fn fill(&mut self, pick: u8, other: Option<u8>, part: bool) {
        let read: Vec<usize> =
            (0..self.requests.len()).filter(|n| self.requests[*n].data.is_some()).collect();
        if read.is_empty() {
            return;
        }
        let request = self.requests.remove(read[usize::from(pick) % read.len()]);
        // Slower than leases allow for.
        if request.evidence.is_none() && request.miss.is_some_and(|miss| self.ended(miss)) {
            return;
        }
        let conn = other.unwrap_or(request.conn);
        let conforms = self.admit(&request, conn, part);
        if part {
            // More of it may follow.
            self.request(Request { begun: true, robbed: request.robbed || !conforms, ..request });
        }
    }

    pub(super) fn ended(&self, miss: usize) -> bool {
        self.misses[miss].at + LEASE_TTL <= self.now
    }

    pub(super) fn outstanding(&self, miss: usize) -> bool {
        self.misses[miss].granted && self.misses[miss].used != Used::Gone && !self.ended(miss)
    }

    /// What a miss is worth now.
    pub(super) fn worth(&self, miss: usize) -> u64 {
        let miss = &self.misses[miss];
        if self.sources().is_some() && miss.sources == self.sources() { miss.lsn } else { 0 }
    }

    /// The miss that a fill uses up.
    pub(super) fn own(&self, hash: KeyHash, conn: u8, part: bool) -> Option<usize> {
        let open = |miss: &usize| self.misses[*miss].used == Used::No;
        let mine = |miss: &usize| self.misses[*miss].conn == conn;
        let mut live = (0..self.misses.len()).rev();
        let mut find = |wanted: &dyn Fn(&usize) -> bool| {
            live.find(|miss| self.outstanding(*miss) && self.misses[*miss].hash == hash && wanted(miss))
        };
        match self.setting.lease {
            LeaseRule::Off => None,
            LeaseRule::Connection if part => find(&mine),
            LeaseRule::Connection => find(&|miss| mine(miss) && open(miss)),
            LeaseRule::Key => {
                let shared = (0..self.misses.len()).rev().find(|miss| {
                    self.outstanding(*miss) && self.misses[*miss].hash == hash && mine(miss) && !open(miss)
                });
                if part && shared.is_some() { shared } else { find(&open) }
            }
        }
    }

    /// Compares the verdict with the model's; whether the fill came as leases assume.
    pub(super) fn admit(&mut self, request: &Request, conn: u8, part: bool) -> bool {
        let (key, hash) = (request.key, HASHES[request.key]);
        let own = self.own(hash, conn, part);
        let expected = self.expected(request, hash, own);
        let conforms = self.conforms(request, own);
        let id = FillId(self.next_fill);
        self.next_fill += 1;
        let fill = Fill {
            id,
            conn: ConnId(u64::from(conn)),
            guards: GUARDS[key],
            evidence: request.evidence.as_ref(),
            lease: self.setting.lease,
            part,
        };
        let allow = self.setting.allow;
        let (verdict, ruling) = self.fence.admit(hash, &fill, self.now, |verdict| match verdict {
            Verdict::Fresh => Ruling::Forward,
            Verdict::Unproven(_) if allow => Ruling::Forward,
            Verdict::Unproven(_) | Verdict::Stale(_) => Ruling::Refuse,
        });
        assert_eq!(kind(verdict), expected, "{verdict:?} for {request:?}");
        if verdict == Verdict::Fresh && conforms {
            let data = request.data.unwrap_or(0);
            let lacks = |txn: &&usize| {
                let written = &self.world.txns[**txn];
                let wholly = GUARDS[key].iter().any(|guard| written.wholly & 1 << guard.0 != 0);
                (wholly || written.keys & 1 << key != 0)
                    && self.world.lsn(**txn) <= self.known
                    && data & 1 << **txn == 0
            };
            let lacking = self.world.wal.iter().find(lacks);
            assert_eq!(lacking, None, "a fresh fill lacks a write: {request:?} {:#?}", self.world);
        }
        let way = match request.evidence {
            None => 0,
            Some(Evidence::Lsn(_)) => 1,
            Some(Evidence::Snapshot(_)) => 2,
        };
        self.counts.fresh[way] += usize::from(verdict == Verdict::Fresh && conforms);
        self.counts.verdict(verdict);
        self.use_up(own, conn, part, ruling, request);
        if ruling == Ruling::Forward {
            self.in_flight.push((hash, id));
        }
        conforms
    }

    pub(super) fn use_up(
        &mut self,
        own: Option<usize>,
        conn: u8,
        part: bool,
        ruling: Ruling,
        request: &Request,
    ) {
        let Some(own) = own else { return };
        let foreign = self.setting.lease == LeaseRule::Connection && request.conn != conn;
        if foreign || self.needs_none(request, own) {
            self.rob(own);
        }
        self.misses[own].used = match ruling {
            _ if !part => Used::Gone,
            Ruling::Forward => Used::Admitted,
            Ruling::Refuse => Used::Refused,
        };
        if part {
            self.misses[own].conn = conn;
        }
    }

    /// Whether a fill comes as leases assume: soundness is promised for no other.
    ///
    /// It is not promised where the miss that would object to a fill is used up by another that has no miss of
    /// its own there: where (with leases per connection) two fills change places, where a fill with evidence
    /// comes after its miss has ended, where a part comes after a new miss on its connection. Nor where a miss
    /// on the same connection ended without a fill in the meantime: since the newest is used up first, the one
    /// that ended may have stood for this fill.
    pub(super) fn conforms(&self, request: &Request, own: Option<usize>) -> bool {
        let proved = request.miss.is_none() || request.evidence.is_some();
        proved || !own.is_some_and(|own| self.needs_none(request, own))
    }

    /// Its own miss has ended or was used up.
    pub(super) fn needs_none(&self, request: &Request, own: usize) -> bool {
        let begun = request.begun && self.misses[own].used == Used::No;
        begun || request.robbed || request.miss.is_none_or(|miss| self.ended(miss))
    }

    /// A miss is gone that may have stood for any of these requests.
    pub(super) fn rob(&mut self, miss: usize) {
        let (hash, conn) = (self.misses[miss].hash, self.misses[miss].conn);
        let any = self.setting.lease == LeaseRule::Key;
        let of = |request: &&mut Request| HASHES[request.key] == hash && (any || request.conn == conn);
        self.requests.iter_mut().filter(of).for_each(|request| request.robbed = true);
    }

    /// The verdict by the rules, worked out from everything that ever happened.
    pub(super) fn expected(&mut self, request: &Request, hash: KeyHash, own: Option<usize>) -> Kind {
        let guards = GUARDS[request.key];
        let floor = self.fence.floor().0;
        let wholly = guards.iter().flat_map(|guard| self.wholly(*guard));
        let all: Vec<usize> =
            self.direct(hash).chain(wholly).filter(|txn| self.world.lsn(*txn) > floor).collect();
        let last = all.iter().map(|txn| self.world.lsn(*txn)).max();
        let lsn = |lsn: u64| match last {
            _ if lsn < floor => Kind::BelowFloor,
            Some(last) if lsn < last => Kind::Superseded,
            _ => Kind::Fresh,
        };
        match &request.evidence {
            Some(Evidence::Lsn(evidence)) => return lsn(evidence.0),
            Some(Evidence::Snapshot(evidence)) => {
                let cover = |lsn| self.polls.iter().find(|poll| poll.primary >= lsn).map(|p| &p.snapshot);
                let contains = |lsn| cover(lsn).is_some_and(|cover| evidence.includes(cover));
                if !contains(floor) {
                    return Kind::BelowFloor;
                }
                if all.iter().any(|txn| !evidence.sees(self.world.txns[*txn].xid)) {
                    return Kind::Superseded;
                }
                // The ninth last write and those before are remembered by position only.
                let ninth = |writes: &mut dyn DoubleEndedIterator<Item = usize>| writes.rev().nth(8);
                let mut folded: Vec<usize> =
                    guards.iter().filter_map(|g| ninth(&mut self.wholly(*g))).collect();
                folded.extend(ninth(&mut self.direct(hash)));
                if folded.iter().all(|txn| contains(self.world.lsn(*txn))) {
                    return Kind::Fresh;
                }
                self.counts.uncovered += 1;
                return Kind::Superseded;
            }
            None => {}
        }
        let torn = own.is_some_and(|own| self.misses[own].used == Used::Refused);
        let ungranted = self.misses.iter().enumerate();
        let silenced = ungranted.filter(|(_, m)| m.hash == hash && !m.granted).any(|(n, _)| !self.ended(n));
        let no_evidence = |why| if last.is_some() { Kind::NoEvidence } else { Kind::Unproven(why) };
        let open = |miss: &usize| {
            self.outstanding(*miss) && self.misses[*miss].hash == hash && self.misses[*miss].used == Used::No
        };
        match own {
            _ if torn => Kind::Torn,
            None => no_evidence(Unproven::NoEvidence),
            _ if silenced => no_evidence(Unproven::NoEvidence),
            Some(own) if self.sources().is_none() || self.misses[own].sources != self.sources() => {
                no_evidence(Unproven::SourceLost)
            }
            Some(own) => {
                let oldest = (0..self.misses.len()).filter(open).map(|miss| self.worth(miss)).min();
                match (lsn(self.worth(own)), oldest.map_or(Kind::Fresh, lsn)) {
                    (Kind::Fresh, Kind::Fresh) => Kind::Fresh,
                    (Kind::Fresh, _) => Kind::Unproven(Unproven::OlderMiss),
                    (stale, _) => stale,
                }
            }
        }
    }

    pub(super) fn finish(&mut self, pick: usize) {
        if self.in_flight.is_empty() {
            return;
        }
        let (hash, fill) = self.in_flight.remove(pick % self.in_flight.len());
        assert!(self.fence.is_in_flight(hash, fill));
        let waited = self.fence.finish(hash, fill);
        assert!(waited || !self.waited_for.contains(&fill), "nobody is told of the end of {fill:?}");
        assert!(!self.fence.is_in_flight(hash, fill));
    }
}
