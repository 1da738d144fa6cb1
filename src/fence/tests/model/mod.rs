//! The fence against a naive model that forgets nothing, on generated histories of a small Postgres, its feed,
//! its sources and their clients.
//!
//! * Soundness: a fill that is judged fresh has in its data every write of its key that the feed has brought.
//! * Completeness: every other verdict is the one that the model gives, for the reason that the model gives.
//! * A write reports every fill of its key that was let in before it and has not ended.
//! * Settled is what the model finds by looking at all commits, and is visible on every source.
//!
//! `PROPTEST_CASES` sets the number of histories.

mod clients;
mod history;
mod sources;

use std::cell::RefCell;

use proptest::collection::vec;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};

use clients::{Counts, Miss, Request, Used};
use history::{Op, Setting, op, setting};
use sources::Poll;

use super::world::{Node, START, Seen, State, World};
use super::*;

/// Keys 3 and 4 have one hash.
const HASHES: [KeyHash; 6] = [KeyHash(1), KeyHash(2), KeyHash(3), KeyHash(4), KeyHash(4), KeyHash(5)];
const GUARDS: [&[GuardId]; 6] =
    [&[GuardId(0)], &[GuardId(0)], &[GuardId(0), GuardId(1)], &[GuardId(1)], &[GuardId(1)], &[GuardId(1)]];
const HISTORY: Millis = 200;
const LEASE_TTL: Millis = 60;

fn fence(setting: &Setting) -> Fence {
    Fence::new(Limits {
        longest_cap: 60_000,
        history: HISTORY,
        lease_ttl: LEASE_TTL,
        max_keys: setting.max_keys,
        max_leases: setting.max_leases,
        guards: 2,
        shards: 2,
    })
}

struct Model {
    setting: Setting,
    world: World,
    fence: Fence,
    settlement: Settlement,
    now: Millis,
    /// The place in the log of the next commit that the feed brings.
    fed: usize,
    /// The feed has brought every commit up to here, or this history began here.
    known: u64,
    /// Writes of this history, in order, with their places in `World::txns`.
    writes: Vec<usize>,
    taken: Option<Snapshot>,
    // What the model knows of the sources.
    received: u64,
    polled: Option<Snapshot>,
    /// Writes that a snapshot has shown that was polled after the feed brought them.
    shown: Seen,
    primary: u64,
    replayed: Vec<u64>,
    in_sight: Vec<bool>,
    generation: u32,
    settled: u64,
    polls: Vec<Poll>,
    start: u64,
    hashes_written: Vec<KeyHash>,
    misses: Vec<Miss>,
    /// Until when a predecessor's misses may be outstanding.
    distrusted: Millis,
    requests: Vec<Request>,
    in_flight: Vec<(KeyHash, FillId)>,
    waited_for: Vec<FillId>,
    next_fill: u64,
    counts: Counts,
}

impl Model {
    fn new(setting: Setting) -> Self {
        let sources = setting.sources.len();
        let mut model = Self {
            world: World::new(sources),
            fence: fence(&setting),
            settlement: Settlement::new(setting.sources),
            now: 10_000,
            fed: 0,
            known: START,
            writes: Vec::new(),
            taken: None,
            received: START,
            polled: None,
            shown: 0,
            primary: 0,
            replayed: vec![0; sources],
            in_sight: vec![false; sources],
            generation: 0,
            settled: 0,
            polls: Vec::new(),
            start: START,
            hashes_written: Vec::new(),
            misses: Vec::new(),
            distrusted: 0,
            requests: Vec::new(),
            in_flight: Vec::new(),
            waited_for: Vec::new(),
            next_fill: 1,
            counts: Counts::default(),
            setting,
        };
        model.restart(false);
        model.poll(false);
        (0..sources).for_each(|source| model.poll_replica(source));
        model
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Begin { keys, wholly } => _ = self.world.begin(keys, wholly),
            Op::Commit(pick) => {
                if let Some(txn) = self.world.pick(pick, |txn| txn.state == State::Open) {
                    self.world.commit(txn);
                }
            }
            Op::Abort(pick) => {
                if let Some(txn) = self.world.pick(pick, |txn| txn.state == State::Open) {
                    self.world.abort(txn);
                }
            }
            Op::Show(pick) => {
                let hidden = |txn: &world::Txn| matches!(txn.state, State::Committed(_)) && !txn.visible;
                if let Some(txn) = self.world.pick(pick, hidden) {
                    self.world.show(txn);
                }
            }
            Op::Burst(writes) => {
                for _ in 0..writes {
                    if let Some(txn) = self.world.begin(1, 0) {
                        self.world.commit(txn);
                        self.world.show(txn);
                    }
                    self.deliver();
                }
            }
            Op::Deliver => self.deliver(),
            Op::Keepalive => {
                let end = self.world.wal.get(self.fed).map(|next| self.world.lsn(*next) - 1);
                let position = end.unwrap_or(self.world.end() + 3);
                self.received = self.received.max(position);
                self.settlement.advanced(Lsn(position));
                self.settle();
            }
            // No more than what the primary has settled was ever confirmed.
            Op::Resend => self.fed = self.world.after(self.primary.max(self.start)).min(self.fed),
            Op::Restart { fresh, successor } => {
                if successor {
                    self.successor();
                }
                self.restart(fresh);
            }
            Op::Take => self.taken = Some(self.world.snapshot()),
            Op::Poll { idle } => self.poll(idle),
            Op::Replay { replica, to } => {
                let replica = usize::from(replica) % self.world.replicas.len();
                let ahead = self.world.end() - self.world.replicas[replica].replay;
                self.world.replicas[replica].replay += ahead * u64::from(to % 5) / 4;
            }
            Op::PollReplica(source) => self.poll_replica(usize::from(source) % self.in_sight.len()),
            Op::Back { replica, to, lost } => self.back(usize::from(replica) % self.in_sight.len(), to, lost),
            Op::Lose(source) => self.lose(usize::from(source) % self.in_sight.len()),
            Op::Tick(millis) => {
                self.now += Millis::from(millis);
                self.settle();
            }
            Op::Sweep => self.sweep(),
            Op::Miss { key, conn } => self.miss(usize::from(key), conn),
            Op::Ask { key, conn, node } => {
                let node = self.node(node);
                let evidence = Some(match node {
                    Node::Primary => Evidence::Snapshot(self.world.snapshot()),
                    Node::Replica(replica, _) => Evidence::Lsn(Lsn(self.world.replicas[replica].replay)),
                });
                self.miss(usize::from(key), conn);
                if let Some(request) = self.requests.last_mut() {
                    (request.evidence, request.node) = (evidence, Some(node));
                }
            }
            Op::Read { pick, node } => self.read(pick, node),
            Op::Fill { pick, other, part } => self.fill(pick, other, part),
            Op::Through { key, conn } => {
                // With key leases it may borrow a miss: that is what they cost.
                let own = |miss: &Miss| {
                    miss.conn == conn && miss.hash == HASHES[usize::from(key)] && miss.used != Used::Gone
                };
                if self.setting.lease != LeaseRule::Key && !self.misses.iter().any(own) {
                    let (key, conn) = (usize::from(key), conn);
                    let (miss, evidence, node, data) = (None, None, None, Some(0));
                    let through =
                        Request { key, conn, miss, evidence, node, data, begun: None, robbed: false };
                    _ = self.admit(&through, conn, false);
                }
            }
            Op::Storm { ref before, successor, ref after, pause, ref fills } => {
                before.iter().for_each(|conn| self.miss_and_read(*conn));
                if successor {
                    self.successor();
                    self.restart(false);
                }
                if let Some(txn) = self.world.begin(1, 0) {
                    self.world.commit(txn);
                    self.world.show(txn);
                }
                self.catch_up();
                self.now += Millis::from(pause);
                self.settle();
                after.iter().for_each(|conn| self.miss_and_read(*conn));
                fills.iter().for_each(|(pick, conn, part)| self.fill(*pick, Some(*conn), *part));
            }
            Op::Finish(pick) => self.finish(usize::from(pick)),
        }
        self.check_floor();
    }

    // The feed.

    fn deliver(&mut self) {
        let Some(&txn) = self.world.wal.get(self.fed) else { return };
        self.fed += 1;
        let (lsn, xid) = (self.world.lsn(txn), self.world.txns[txn].xid);
        let (keys, wholly) = (self.world.txns[txn].keys, self.world.txns[txn].wholly);
        let write = Write { xid, lsn: Lsn(lsn) };
        let mut hashes: Vec<KeyHash> =
            (0..6).filter(|key| keys & 1 << key != 0).map(|key| HASHES[key]).collect();
        hashes.dedup();
        for hash in hashes {
            let mut draining = Vec::new();
            self.fence.write(hash, write, &mut draining);
            let expected = self.in_flight.iter().copied().filter(|(of, _)| *of == hash).collect();
            self.check_draining(draining, expected);
            self.hashes_written.push(hash);
        }
        for guard in (0..2).filter(|guard| wholly & 1 << guard != 0) {
            let mut draining = Vec::new();
            self.fence.write_guards(&[GuardId(guard)], write, &mut draining);
            self.check_draining(draining, self.in_flight.clone());
        }
        if keys != 0 || wholly != 0 {
            self.settlement.received(write);
            if !self.writes.contains(&txn) {
                self.writes.push(txn);
            }
        }
        self.settlement.advanced(write.lsn);
        self.received = self.received.max(lsn);
        self.known = self.known.max(lsn);
        self.settle();
    }

    /// Everything is delivered, replayed and polled.
    fn catch_up(&mut self) {
        while self.fed < self.world.wal.len() {
            self.deliver();
        }
        self.taken = None;
        self.poll(true);
        for source in 0..self.in_sight.len() {
            self.world.replicas[source].replay = self.world.end();
            self.poll_replica(source);
        }
    }

    fn check_draining(&mut self, mut draining: Vec<(KeyHash, FillId)>, mut expected: Vec<(KeyHash, FillId)>) {
        draining.sort_unstable();
        expected.sort_unstable();
        assert_eq!(draining, expected, "the fills in flight");
        self.counts.drained += expected.len();
        self.waited_for.extend(expected.into_iter().map(|(_, fill)| fill));
    }

    fn restart(&mut self, fresh: bool) {
        // A fresh slot begins at the end of the log; another goes on where it was confirmed.
        let position = if fresh { self.world.end() } else { self.primary.max(self.start) };
        // A slot that was never confirmed since it was made is as good as fresh.
        let unconfirmed = fresh || self.primary == 0;
        (self.start, self.known, self.received) = (position, position, position);
        self.fed = self.world.after(position);
        self.settlement.restart(Lsn(position), unconfirmed);
        self.fence.restart(Lsn(position));
        (self.taken, self.polled, self.shown, self.primary) = (None, None, 0, 0);
        self.replayed.fill(0);
        self.in_sight.fill(false);
        self.generation += 1;
        self.writes.clear();
        self.polls.clear();
        self.hashes_written.clear();
        self.misses.iter_mut().for_each(|miss| miss.sources = None);
        self.settle();
    }

    /// Another process takes over. It knows nothing of its predecessor's misses, and their fills may still come.
    fn successor(&mut self) {
        self.fence = fence(&self.setting);
        self.settlement = Settlement::new(self.setting.sources);
        self.misses.iter_mut().for_each(|miss| {
            (miss.used, miss.spent, miss.granted) = (Used::Gone, false, true);
        });
        self.in_flight.clear();
        self.waited_for.clear();
        self.distrusted = self.now + LEASE_TTL;
        self.fence.distrust_leases(self.distrusted);
    }

    // The table.

    fn sweep(&mut self) {
        self.fence.sweep(self.now);
        let size = self.fence.size();
        assert_eq!(size.leases, self.fence.leases_by_walk(), "leases counted");
        // One that is used up by a part may be there twice: for the next part, and to object.
        let live = (0..self.misses.len()).filter(|miss| self.outstanding(*miss)).count();
        let spent =
            (0..self.misses.len()).filter(|miss| self.misses[*miss].spent && self.objects(*miss)).count();
        assert!(size.leases <= live + spent, "{size:?} for {live} misses and {spent} that are spent");
        assert_eq!(size.leases > 0, live + spent > 0);
        let floor = self.fence.floor().0;
        let mut hashes: Vec<KeyHash> =
            HASHES.into_iter().filter(|hash| self.last_direct(*hash) > floor).collect();
        hashes.dedup();
        assert_eq!(size.keys, hashes.len(), "keys counted");
        assert!(size.keys <= self.setting.max_keys);
    }

    /// The floor rises for the reasons there are, and no further.
    fn check_floor(&mut self) {
        let floor = self.fence.floor().0;
        let old = self.polls.iter().filter(|poll| poll.at + HISTORY <= self.now).map(|poll| poll.settled);
        let by_age = old.max().unwrap_or(0).max(self.start);
        let mut hashes = self.hashes_written.clone();
        hashes.sort_unstable();
        hashes.dedup();
        if hashes.len() > self.setting.max_keys {
            let written = self.writes.iter().map(|txn| self.world.lsn(*txn)).max().unwrap_or(0);
            assert!((by_age..=by_age.max(written)).contains(&floor), "floor {floor}, by age {by_age}");
            self.counts.room_made += usize::from(floor > by_age);
        } else {
            assert_eq!(floor, by_age, "the floor by age alone");
        }
    }

    /// The last write of a hash in this history.
    fn last_direct(&self, hash: KeyHash) -> u64 {
        self.direct(hash).last().map_or(0, |txn| self.world.lsn(txn))
    }

    fn direct(&self, hash: KeyHash) -> impl DoubleEndedIterator<Item = usize> {
        let keys = (0..6).filter(|key| HASHES[*key] == hash).fold(0, |keys, key| keys | 1u8 << key);
        self.writes.iter().copied().filter(move |txn| self.world.txns[*txn].keys & keys != 0)
    }

    fn wholly(&self, guard: GuardId) -> impl DoubleEndedIterator<Item = usize> {
        self.writes.iter().copied().filter(move |txn| self.world.txns[*txn].wholly & 1 << guard.0 != 0)
    }
}

/// Some 3,000 histories of 50 to 400 steps.
fn config() -> Config {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    Config {
        cases: cases.unwrap_or(3_000),
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..Config::default()
    }
}

#[test]
fn the_fence_agrees_with_a_model_that_forgets_nothing() {
    let total = RefCell::new(Counts::default());
    let histories = (setting(), vec(op(), 50..400));
    let run = TestRunner::new(config()).run(&histories, |(setting, ops)| {
        let mut model = Model::new(setting);
        ops.iter().for_each(|op| model.run(op));
        total.borrow_mut().add(&mut model.counts);
        Ok(())
    });
    if let Err(failure) = run {
        panic!("{failure}");
    }
    // That all this happened at all.
    let mut total = total.into_inner();
    println!("{total:?}");
    assert!(total.least() > 0, "{total:?}");
}
