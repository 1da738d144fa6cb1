//! Random walks through the model with the real fence beside it: both have to decide alike.
//!
//! The model states the proxy's rules again, so that they can be taken out one by one. Here it is seen that it states
//! those that are built: in every step `Fence` and `Settlement` are told what the model's proxy is told, and after it
//! they have the same floor, the same settled position, the same fills to wait for, and gave the same verdict.

use cachefence::fence::{
    ConnId, Evidence, Fence, Fill, FillId, KeyHash, LeaseRule, Limits, Millis, Ruling, Settlement,
    SourceKind, Verdict, Write,
};
use cachefence::position::{Lsn, Snapshot, Xid};

use super::explorer::Model;
use super::rules::{self, Rules};
use super::scenario::{Contract, Scenario, bit};
use super::state::{self, Commits, Phase, Position, State};
use super::steps::Step;

const KEY: KeyHash = KeyHash(1);
const OTHER: KeyHash = KeyHash(2);
/// The lengths of the fence's times; the walk's clock moves only where one of them has to pass.
const HISTORY: Millis = 1_000_000_000;
const DISTRUST: Millis = 1_000;
const LEASE_TTL: Millis = 1 << 60;
/// The model's positions and transactions, as Postgres would number them.
const LOG: u64 = 1_000;
const XID: u64 = 100;

fn lsn(position: Position) -> Lsn {
    Lsn(LOG + u64::from(position))
}

fn xid(commit: Position) -> Xid {
    Xid(XID + u64::from(commit))
}

/// How many of the walks' fills were found to be what.
#[derive(Debug, Default)]
pub struct Walked {
    pub fresh: usize,
    pub stale: usize,
    pub unproven: usize,
}

/// The fence, told what the model's proxy knows.
struct Real<'a> {
    scenario: &'a Scenario,
    fence: Fence,
    settlement: Settlement,
    now: Millis,
    next_fill: u64,
    flights: Vec<FillId>,
}

impl<'a> Real<'a> {
    /// As the feed begins a stream at the slot's position.
    fn new(scenario: &'a Scenario, state: &State, successor: bool) -> Self {
        let kinds = [SourceKind::Primary, SourceKind::Replica];
        let fence = Fence::new(Limits {
            history: HISTORY,
            lease_ttl: LEASE_TTL,
            longest_cap: 60_000,
            max_keys: 1_000,
            max_leases: 1_000,
            guards: 1,
            shards: 2,
        });
        let mut settlement = Settlement::new(if scenario.replica { &kinds } else { &kinds[..1] });
        // In strict more was confirmed than was visible: suspects have to be found.
        settlement.restart(lsn(state.slot), successor && scenario.contract == Contract::Strict);
        fence.restart(lsn(state.floor));
        let now = HISTORY;
        if successor {
            fence.distrust_leases(now + DISTRUST);
        }
        let mut real = Self { scenario, fence, settlement, now, next_fill: 0, flights: Vec::new() };
        if !successor {
            real.poll_primary(state);
            real.settlement.replica(1, lsn(state.replay));
        }
        real.publish();
        real
    }

    fn publish(&self) {
        self.fence.settle(&self.settlement.settled(), self.now);
    }

    fn snapshot(&self, visible: Commits) -> Snapshot {
        let all = 1..=self.scenario.rows.len() as Position;
        let next = xid(self.scenario.rows.len() as Position + 1);
        let running: Vec<Xid> = all.filter(|lsn| visible & bit(*lsn) == 0).map(xid).collect();
        Snapshot::new(running.first().copied().unwrap_or(next), next, running).expect("a snapshot")
    }

    fn poll_primary(&mut self, state: &State) {
        let snapshot = self.snapshot(state.visible);
        if self.settlement.wants_suspects() {
            self.settlement.suspect(&snapshot, xid(self.scenario.rows.len() as Position + 1));
            // Those after the slot's position come through the feed.
            let later: Vec<Xid> = (state.slot + 1..=self.scenario.rows.len() as Position).map(xid).collect();
            self.settlement.seen_idle(&later);
        }
        self.settlement.primary(snapshot);
    }

    /// Tells the fence of a step, and gives its verdict on a fill.
    fn tell(&mut self, before: &State, step: Step) -> Option<Verdict> {
        let mut verdict = None;
        match step {
            Step::Fence => {
                let write = Write { xid: xid(before.fenced + 1), lsn: lsn(before.fenced + 1) };
                let key = if self.scenario.feeds(before.fenced + 1) { KEY } else { OTHER };
                let mut draining = Vec::new();
                self.fence.write(key, write, &mut draining);
                let flying = if key == KEY { self.flights.len() } else { 0 };
                assert_eq!(draining.len(), flying, "fills to wait for");
                self.settlement.received(write);
                self.settlement.advanced(write.lsn);
            }
            Step::PollPrimary => self.poll_primary(before),
            Step::PollReplica => self.settlement.replica(1, lsn(before.replay)),
            Step::Forget(_) => self.now += 2 * HISTORY,
            Step::Trust => self.now += 2 * DISTRUST,
            Step::Miss(_, conn) => self.fence.miss(KEY, ConnId(u64::from(conn)), self.now),
            Step::Fill(client, conn) => verdict = Some(self.admit(before, client, conn)),
            Step::Land(_) => {
                // Which of them does not matter to the fence.
                if let Some(fill) = self.flights.pop() {
                    self.fence.finish(KEY, fill);
                }
            }
            _ => {}
        }
        self.publish();
        verdict
    }

    fn admit(&mut self, state: &State, client: usize, conn: u8) -> Verdict {
        let Phase::Holding(_, evidence) = state.clients[client].phase else { panic!("nothing to fill with") };
        let evidence = match evidence {
            state::Evidence::None => None,
            state::Evidence::Snapshot(seen) => Some(Evidence::Snapshot(self.snapshot(seen))),
            state::Evidence::Lsn(position) => Some(Evidence::Lsn(lsn(position))),
        };
        self.next_fill += 1;
        let fill = Fill {
            id: FillId(self.next_fill),
            conn: ConnId(u64::from(conn)),
            guards: &[],
            evidence: evidence.as_ref(),
            version: None,
            lease: LeaseRule::Connection,
            part: false,
        };
        let forward_fresh =
            |verdict| if verdict == Verdict::Fresh { Ruling::Forward } else { Ruling::Refuse };
        let (verdict, ruling) = self.fence.admit(KEY, &fill, self.now, forward_fresh);
        if ruling == Ruling::Forward {
            self.flights.push(fill.id);
        }
        verdict
    }

    /// Every source has been polled: before that no lease counts, and the model's would be worth nothing.
    fn is_in_sight(&self) -> bool {
        self.settlement.settled().sources.is_some()
    }
}

/// Walks at random, so many times, and fails where the fence and the model differ.
pub fn walk(scenario: &Scenario, walks: u64, walked: &mut Walked) {
    let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
    let mut steps = Vec::new();
    for _ in 0..walks {
        let mut state = scenario.start();
        let mut real = Some(Real::new(scenario, &state, false));
        for _ in 0..60 {
            scenario.steps(&state, &mut steps);
            steps.retain(|step| can_be_told(scenario, &state, real.as_ref(), *step));
            chance = chance.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let Some(step) = steps.get((chance >> 33) as usize % steps.len().max(1)).copied() else { break };
            steps.clear();
            let after = scenario.apply(&state, step);
            match step {
                Step::Crash => real = None,
                Step::Restart => real = Some(Real::new(scenario, &after, true)),
                _ => {
                    let found = real.as_mut().and_then(|real| real.tell(&state, step));
                    compare(scenario, &state, step, found, walked);
                }
            }
            state = after;
            if let Some(real) = &real {
                let settled = LOG + u64::from(Rules(scenario).settled(&state));
                // Before the first polls the fence's is 0.
                if real.is_in_sight() && settled > LOG {
                    assert_eq!(real.fence.settled(), Lsn(settled), "settled, after {step:?} to {state:?}");
                }
                assert_eq!(real.fence.floor(), lsn(state.floor), "the floor, after {step:?} to {state:?}");
            }
        }
    }
}

/// Whether the fence can be brought to do the same: its misses end by time alone, and all at once.
fn can_be_told(scenario: &Scenario, state: &State, real: Option<&Real<'_>>, step: Step) -> bool {
    match step {
        Step::Expire(_) => false,
        // For lack of room, that is; and the clock must not end the distrust.
        Step::Forget(lsn) => lsn == Rules(scenario).settled(state).min(state.primary) && !state.distrust,
        Step::Miss(..) => real.is_some_and(Real::is_in_sight),
        _ => true,
    }
}

fn compare(scenario: &Scenario, state: &State, step: Step, found: Option<Verdict>, walked: &mut Walked) {
    let (Step::Fill(client, conn), Some(found)) = (step, found) else { return };
    let expected = scenario.fill(&mut state.clone(), client, conn);
    let same = match found {
        Verdict::Fresh => expected == rules::Verdict::Fresh,
        Verdict::Stale(_) => expected == rules::Verdict::Stale,
        Verdict::Unproven(_) => expected == rules::Verdict::Unproven,
    };
    assert!(same, "the fence says {found:?}, the model {expected:?}, of {step:?} in {state:?}");
    match found {
        Verdict::Fresh => walked.fresh += 1,
        Verdict::Stale(_) => walked.stale += 1,
        Verdict::Unproven(_) => walked.unproven += 1,
    }
}
