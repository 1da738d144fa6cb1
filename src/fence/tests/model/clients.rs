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
    /// When it stops to count: later than its own end if one that is as good joined it.
    pub(super) until: Millis,
    /// Its place in the order of answers: that of the last that joined it.
    pub(super) rank: usize,
    pub(super) lsn: u64,
    /// Which sources `lsn` speaks of; none where it is worth nothing.
    pub(super) sources: Option<u32>,
    pub(super) used: Used,
    /// It objects although it is used up.
    pub(super) spent: bool,
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
    /// The miss that a part of it has used up.
    pub(super) begun: Option<usize>,
    /// A fill that does not conform has made its miss vanish.
    pub(super) robbed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Fresh,
    Superseded,
    BelowFloor,
    NoEvidence,
    Torn,
    Abandoned,
    Unproven(Unproven),
}

pub(super) fn kind(verdict: Verdict) -> Kind {
    match verdict {
        Verdict::Fresh => Kind::Fresh,
        Verdict::Stale(Stale::Superseded(_)) => Kind::Superseded,
        Verdict::Stale(Stale::BelowFloor(_)) => Kind::BelowFloor,
        Verdict::Stale(Stale::NoEvidence(_)) => Kind::NoEvidence,
        Verdict::Stale(Stale::Torn) => Kind::Torn,
        Verdict::Stale(Stale::Abandoned) => Kind::Abandoned,
        Verdict::Unproven(why) => Kind::Unproven(why),
    }
}

/// How often something happened without which the test would be empty.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// By lease, by LSN, by snapshot.
    pub(super) fresh: [usize; 3],
    pub(super) older_miss: usize,
    /// Of these, those where only misses object that are used up.
    pub(super) spent: usize,
    /// Fresh by the lease of a miss that is not the fill's own.
    pub(super) swapped: usize,
    pub(super) source_lost: usize,
    pub(super) predecessor: usize,
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
            Kind::Unproven(Unproven::Predecessor) => self.predecessor += 1,
            Kind::Abandoned => unreachable!("no history of this model is abandoned"),
            Kind::Unproven(Unproven::VersionUnseen) => unreachable!("no fill of this model has a version"),
            Kind::Unproven(Unproven::NoEvidence) | Kind::NoEvidence | Kind::Fresh => {}
        }
    }

    pub(super) fn all(&mut self) -> [&mut usize; 14] {
        let [lease, lsn, snapshot] = &mut self.fresh;
        let Self { older_miss, spent, swapped, source_lost, predecessor, .. } = self;
        let Self { torn, superseded, below_floor, uncovered, room_made, drained, .. } = self;
        [
            lease,
            lsn,
            snapshot,
            older_miss,
            spent,
            swapped,
            source_lost,
            predecessor,
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
        let foretold = self.explain(key, conn, None).by_new_miss;
        self.fence.miss(hash, ConnId(u64::from(conn)), self.now);
        let account = self.explain(key, conn, None);
        assert_eq!(account.by_own_miss.unwrap_or(account.without), foretold, "{account:?}");
        if granted {
            let written = self.written(hash);
            let (now, settled, sources) = (self.now, self.settled, self.sources());
            for miss in self.misses.iter_mut().filter(|miss| miss.hash == hash && miss.until > now) {
                // A new miss ends the fill in parts before it.
                if miss.conn == conn && matches!(miss.used, Used::Admitted | Used::Refused) {
                    miss.used = Used::Gone;
                }
                // One since which the key was not written is as good as the new one.
                if sources.is_some() && miss.sources == sources && miss.lsn >= written {
                    miss.lsn = miss.lsn.max(settled);
                }
            }
        }
        let (at, lsn, sources, rank) = (self.now, self.settled, self.sources(), self.misses.len());
        let (until, used, spent) = (at + LEASE_TTL, Used::No, false);
        self.misses.push(Miss { hash, conn, at, until, rank, lsn, sources, used, spent, granted });
        if granted {
            self.join(rank);
        }
        let miss = Some(rank);
        self.request(Request {
            key,
            conn,
            miss,
            evidence: None,
            node: None,
            data: None,
            begun: None,
            robbed: false,
        });
    }

    pub(super) fn miss_and_read(&mut self, conn: u8) {
        self.miss(0, conn);
        let node = self.node(conn);
        if let Some(request) = self.requests.last_mut() {
            request.data = Some(self.world.seen(node));
        }
    }

    /// The last write of any of a hash's keys, or of a whole guard, or the floor.
    fn written(&self, hash: KeyHash) -> u64 {
        let wholly = (0..2).filter_map(|guard| self.wholly(GuardId(guard)).last());
        let wholly = wholly.map(|txn| self.world.lsn(txn)).max().unwrap_or(0);
        wholly.max(self.last_direct(hash)).max(self.fence.floor().0)
    }

    /// A miss joins those of its connection that are worth the same: each stands for the others until the last ends.
    fn join(&mut self, new: usize) {
        let like = |miss: &Miss| (miss.hash, miss.conn, miss.lsn, miss.sources);
        let alike =
            |miss: &usize| self.is_open(*miss) && like(&self.misses[*miss]) == like(&self.misses[new]);
        let Some(joined) = (0..new).filter(alike).max_by_key(|miss| self.misses[*miss].rank) else { return };
        let (group, until) = (self.misses[joined].rank, self.misses[new].until);
        for miss in (0..new).filter(|miss| alike(miss)).collect::<Vec<_>>() {
            if self.misses[miss].rank == group {
                (self.misses[miss].until, self.misses[miss].rank) = (until, new);
            }
        }
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
        let (conforms, own) = self.admit(&request, conn, part);
        if part {
            // More of it may follow.
            self.request(Request {
                begun: own.or(request.begun),
                robbed: request.robbed || !conforms,
                ..request
            });
        }
    }

    /// Its fill comes later than leases allow for.
    pub(super) fn ended(&self, miss: usize) -> bool {
        self.misses[miss].at + LEASE_TTL <= self.now
    }

    pub(super) fn outstanding(&self, miss: usize) -> bool {
        let miss = &self.misses[miss];
        miss.granted && miss.used != Used::Gone && miss.until > self.now
    }

    pub(super) fn is_open(&self, miss: usize) -> bool {
        self.outstanding(miss) && self.misses[miss].used == Used::No
    }

    pub(super) fn objects(&self, miss: usize) -> bool {
        let spent = self.misses[miss].spent && self.misses[miss].until > self.now;
        self.is_open(miss) || spent
    }

    /// A miss of this key could not be granted: until its end no lease of the key counts.
    fn silenced(&self, hash: KeyHash) -> bool {
        let mut misses = self.misses.iter().enumerate();
        misses.any(|(n, miss)| miss.hash == hash && !miss.granted && !self.ended(n))
    }

    /// What a miss is worth now.
    pub(super) fn worth(&self, miss: usize) -> u64 {
        let miss = &self.misses[miss];
        if self.sources().is_some() && miss.sources == self.sources() { miss.lsn } else { 0 }
    }

    /// The miss that a fill uses up.
    pub(super) fn own(&self, hash: KeyHash, conn: u8, part: bool) -> Option<usize> {
        let mine = |miss: usize| self.misses[miss].conn == conn;
        let in_parts = |miss: usize| part && mine(miss) && !self.is_open(miss);
        let newest = |wanted: &dyn Fn(usize) -> bool| {
            let all = (0..self.misses.len()).filter(|miss| self.misses[*miss].hash == hash);
            let live = all.filter(|miss| self.outstanding(*miss) && wanted(*miss));
            live.max_by_key(|miss| (self.misses[*miss].rank, *miss))
        };
        match self.setting.lease {
            LeaseRule::Off => None,
            LeaseRule::Connection => newest(&|miss| mine(miss) && (self.is_open(miss) || part)),
            LeaseRule::Key => newest(&in_parts).or_else(|| newest(&|miss| self.is_open(miss))),
        }
    }

    /// What the fence says of a key to a connection.
    fn explain(&self, key: usize, conn: u8, evidence: Option<&Evidence>) -> KeyAccount {
        let question = Question {
            key: HASHES[key],
            conn: Some(ConnId(u64::from(conn))),
            guards: GUARDS[key],
            lease: self.setting.lease,
            evidence: evidence.map_or(&[], std::slice::from_ref),
        };
        self.fence.explain(&question, self.now)
    }

    /// Compares the verdict with the model's; whether the fill came as leases assume, and the miss that it used up.
    pub(super) fn admit(&mut self, request: &Request, conn: u8, part: bool) -> (bool, Option<usize>) {
        let (key, hash) = (request.key, HASHES[request.key]);
        let own = self.own(hash, conn, part);
        let expected = self.expected(request, hash, own);
        let conforms = self.conforms(request, own);
        let proved = request.evidence.is_some();
        let id = FillId(self.next_fill);
        self.next_fill += 1;
        let fill = Fill {
            id,
            conn: ConnId(u64::from(conn)),
            guards: GUARDS[key],
            evidence: request.evidence.as_ref(),
            version: None,
            lease: self.setting.lease,
            part,
        };
        let account = self.explain(key, conn, request.evidence.as_ref());
        assert_eq!(account, self.explain(key, conn, request.evidence.as_ref()), "to tell it changes it");
        let allow = self.setting.allow;
        let (verdict, ruling) = self.fence.admit(hash, &fill, self.now, |verdict| match verdict {
            Verdict::Fresh => Ruling::Forward,
            Verdict::Unproven(_) if allow => Ruling::Forward,
            Verdict::Unproven(_) | Verdict::Stale(_) => Ruling::Refuse,
        });
        assert_eq!(kind(verdict), expected, "{verdict:?} for {request:?}");
        if !part {
            let foretold = account.by_evidence.first().copied().or(account.by_own_miss);
            assert_eq!(verdict, foretold.unwrap_or(account.without), "{account:?}");
        }
        if verdict == Verdict::Fresh && (conforms || proved) {
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
        let by_lease = verdict == Verdict::Fresh && conforms && request.evidence.is_none();
        self.counts.swapped += usize::from(by_lease && own != request.miss);
        self.use_up(own, conn, part, ruling, conforms);
        if ruling == Ruling::Forward {
            self.in_flight.push((hash, id));
        }
        (conforms, own)
    }

    pub(super) fn use_up(
        &mut self,
        own: Option<usize>,
        conn: u8,
        part: bool,
        ruling: Ruling,
        conforms: bool,
    ) {
        let Some(own) = own else { return };
        if self.is_open(own) {
            let hash = self.misses[own].hash;
            let other = |miss: usize| miss != own && self.misses[miss].hash == hash && self.objects(miss);
            let others = (0..self.misses.len()).any(other);
            let spent = others || self.silenced(hash) || self.now < self.distrusted;
            self.misses[own].spent = spent;
            if !spent && !conforms {
                // Nothing objects any more in the name of the one whose miss it was.
                let of = self.requests.iter_mut().filter(|request| request.miss == Some(own));
                of.for_each(|request| request.robbed = true);
            }
        }
        self.misses[own].used = match ruling {
            _ if !part => Used::Gone,
            Ruling::Forward | Ruling::Cap(_) => Used::Admitted,
            Ruling::Refuse => Used::Refused,
        };
        if part {
            self.misses[own].conn = conn;
        }
    }

    /// Whether a fill comes as leases assume: soundness is promised for no other.
    ///
    /// By which connection it comes does not matter, nor which miss it uses up. But it must answer a miss that is
    /// younger than `lease_ttl`, once; and its parts must follow each other on one connection, without another miss or
    /// another fill in between.
    pub(super) fn conforms(&self, request: &Request, own: Option<usize>) -> bool {
        let alone = request.begun.is_some() && request.begun != own;
        let ended = request.miss.is_none_or(|miss| self.ended(miss));
        own.is_none() || !(alone || ended || request.robbed)
    }

    /// The verdict by the rules, worked out from everything that ever happened.
    pub(super) fn expected(&mut self, request: &Request, hash: KeyHash, own: Option<usize>) -> Kind {
        let guards = GUARDS[request.key];
        let floor = self.fence.floor().0;
        if own.is_some_and(|own| self.misses[own].used == Used::Refused) {
            return Kind::Torn;
        }
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
        let no_evidence = |why| if last.is_some() { Kind::NoEvidence } else { Kind::Unproven(why) };
        match own {
            None => no_evidence(Unproven::NoEvidence),
            _ if self.silenced(hash) => no_evidence(Unproven::NoEvidence),
            _ if self.now < self.distrusted => no_evidence(Unproven::Predecessor),
            Some(own) if self.sources().is_none() || self.misses[own].sources != self.sources() => {
                no_evidence(Unproven::SourceLost)
            }
            Some(own) => {
                let of = |miss: &usize| self.misses[*miss].hash == hash;
                let objectors = (0..self.misses.len()).filter(of).filter(|miss| self.objects(*miss));
                let fresh = |miss: usize| lsn(self.worth(miss)) == Kind::Fresh;
                let against: Vec<usize> = objectors.filter(|miss| !fresh(*miss)).collect();
                match lsn(self.worth(own)) {
                    Kind::Fresh if against.is_empty() => Kind::Fresh,
                    Kind::Fresh => {
                        self.counts.spent += usize::from(!against.iter().any(|miss| self.is_open(*miss)));
                        Kind::Unproven(Unproven::OlderMiss)
                    }
                    stale => stale,
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
