//! A model of the protocol, explored exhaustively: see docs/consistency.md, "The model".
//!
//! Both contracts are run with all rules, and hold in every state of a bounded world. Then one rule at a time is taken
//! out, and in the same world a state is found that breaks the promise.
//!
//! `MODEL_BOUND=large` explores larger worlds; `--nocapture` shows the counts and the counterexamples.

#[path = "model/explorer.rs"]
mod explorer;
#[path = "model/rules.rs"]
mod rules;
#[path = "model/scenario.rs"]
mod scenario;
#[path = "model/state.rs"]
mod state;
#[path = "model/steps.rs"]
mod steps;
#[path = "model/walk.rs"]
mod walk;

use explorer::{Explored, explore};
use scenario::Contract::{self, Bounded, Strict};
use scenario::Kind::{Asof, Mixed, Plain, Through};
use scenario::Row::{Fed, Other};
use scenario::{Kind, Mutation, Row, Scenario};

const ONE: &[Row] = &[Fed(0)];
/// Two transactions that know nothing of each other, and feed one key.
const TWO_ROWS: &[Row] = &[Fed(0), Fed(1)];
/// The second waits for the first.
const SAME_ROW: &[Row] = &[Fed(0), Fed(0)];
const OTHER_KEY: &[Row] = &[Other, Fed(0)];
const THREE: &[Row] = &[Fed(0), Fed(1), Fed(0)];

const PAIR: &[Kind] = &[Plain, Plain];

/// Explores a scenario with all rules to its end.
fn holds(scenario: &Scenario) -> Explored {
    assert_eq!(scenario.mutation, None);
    let explored = explore(scenario);
    println!(
        "{:?}, {}: holds in {} states, {} steps, depth {}, {:.1} s",
        scenario.contract,
        scenario.name,
        explored.states,
        explored.steps,
        explored.depth,
        explored.time.as_secs_f64()
    );
    if let Some(found) = &explored.counterexample {
        panic!("{scenario:?}\n{found}");
    }
    // A world in which nothing happens would hold as well.
    assert!(explored.goals > 0, "{}: the key is never filled anew", scenario.name);
    for (kind, (name, wanted)) in steps::wanted(scenario).into_iter().enumerate() {
        let made = explored.kinds.get(kind).is_some_and(|count| *count > 0);
        assert!(made || !wanted, "{}: {name} is never done", scenario.name);
    }
    explored
}

/// Takes a rule out: the shortest way to a broken promise has so many steps. With the rule there is none.
fn breaks(scenario: &Scenario, mutation: Mutation, length: usize) {
    holds(scenario);
    let explored = explore(&scenario.without(mutation));
    let Some(found) = explored.counterexample else {
        panic!("{:?}: {mutation:?} breaks nothing in {} states", scenario.contract, explored.states);
    };
    println!(
        "{:?}, {}, {mutation:?}: broken in {} steps ({} states)\n{found}",
        scenario.contract,
        scenario.name,
        found.steps.len(),
        explored.states
    );
    assert_eq!(found.steps.len(), length, "{:?}\n{found}", scenario.contract);
}

/// The worlds in which all rules are explored.
fn worlds(contract: Contract) -> Vec<Scenario> {
    let world = |name, rows, clients| Scenario::new(name, contract, rows, clients);
    let mut worlds = vec![
        world("two clients, two rows", TWO_ROWS, PAIR),
        world("two clients, one row twice", SAME_ROW, PAIR),
        world("two clients, another key", OTHER_KEY, PAIR),
        world("two clients, one with ASOF", TWO_ROWS, &[Plain, Asof]),
        world("two clients, lease or ASOF", ONE, &[Mixed, Mixed]),
        Scenario { forgets: true, xids: 1, ..world("one xid and a cover", TWO_ROWS, &[Asof]) },
        world("three clients", ONE, &[Plain, Plain, Plain]),
        Scenario { rounds: 2, ..world("two clients, two fills each", ONE, PAIR) },
        Scenario { forgets: true, ..world("history dropped", TWO_ROWS, PAIR) },
        Scenario { crashes: 1, ..world("a crash", TWO_ROWS, &[Plain, Through]) },
        Scenario { crashes: 1, forgets: true, ..world("a crash, history dropped", ONE, &[Mixed, Plain]) },
    ];
    if large() {
        worlds.extend([
            Scenario {
                forgets: true,
                xids: 1,
                ..world("one xid and a cover, three commits", THREE, &[Asof])
            },
            Scenario { rounds: 2, ..world("two clients, two fills each, two rows", TWO_ROWS, PAIR) },
            Scenario { crashes: 1, forgets: true, ..world("two clients, a crash, two rows", TWO_ROWS, PAIR) },
            Scenario { crashes: 2, rounds: 2, ..world("two crashes", ONE, PAIR) },
            world("three clients, two rows", TWO_ROWS, &[Plain, Plain, Plain]),
            world("two clients, lease or ASOF, two rows", TWO_ROWS, &[Mixed, Mixed]),
        ]);
    }
    worlds
}

fn large() -> bool {
    std::env::var("MODEL_BOUND").is_ok_and(|bound| bound == "large")
}

fn all_hold(contract: Contract) {
    let states: usize = worlds(contract).iter().map(|world| holds(world).states).sum();
    println!("{contract:?}: holds in {states} states");
}

#[test]
fn bounded_holds() {
    all_hold(Bounded);
}

#[test]
fn strict_holds() {
    all_hold(Strict);
}

/// The first of two numbers is the length of the counterexample in bounded, the second that in strict.
fn both_break(scenario: impl Fn(Contract) -> Scenario, mutation: Mutation, [bounded, strict]: [usize; 2]) {
    breaks(&scenario(Bounded), mutation, bounded);
    breaks(&scenario(Strict), mutation, strict);
}

#[test]
fn without_the_drain() {
    both_break(|c| Scenario::new("one client", c, ONE, &[Plain]), Mutation::NoDrain, [7, 10]);
}

#[test]
fn with_the_start_of_the_commit_record() {
    both_break(|c| Scenario::new("one client with ASOF", c, ONE, &[Asof]), Mutation::StartLsn, [7, 10]);
}

#[test]
fn with_the_last_xid_only() {
    let scenario = |c| Scenario::new("one client with ASOF, two rows", c, TWO_ROWS, &[Asof]);
    both_break(scenario, Mutation::LastXidOnly, [10, 14]);
}

#[test]
fn without_the_oldest_lease() {
    both_break(|c| Scenario::new("two clients", c, ONE, PAIR), Mutation::OwnMissOnly, [12, 14]);
}

#[test]
fn without_the_own_connection() {
    let scenario =
        |c| Scenario { rounds: 2, ..Scenario::new("a late write-through", c, ONE, &[Plain, Through]) };
    both_break(scenario, Mutation::AnyConnection, [11, 13]);
}

#[test]
fn with_the_lsn_of_the_primary() {
    both_break(|c| Scenario::new("one client with ASOF", c, ONE, &[Asof]), Mutation::PrimaryLsn, [7, 10]);
}

#[test]
fn with_the_deletion_before_the_fence() {
    both_break(|c| Scenario::new("one client", c, ONE, &[Plain]), Mutation::DeleteFirst, [7, 10]);
}

#[test]
fn with_history_dropped_and_the_floor_left() {
    let scenario =
        |c| Scenario { forgets: true, ..Scenario::new("one client, history dropped", c, ONE, &[Plain]) };
    both_break(scenario, Mutation::FloorStays, [8, 11]);
}

/// A miss that is used up may have been another's, whose fill has still to come.
#[test]
fn without_spent_leases() {
    both_break(|c| Scenario::new("two clients", c, ONE, PAIR), Mutation::NothingSpent, [14, 16]);
}

/// The feed runs ahead of visibility (F1).
#[test]
fn with_what_is_received_taken_for_settled() {
    both_break(|c| Scenario::new("one client", c, ONE, &[Plain]), Mutation::ReceivedIsSettled, [10, 13]);
}

/// What a dead process has sent may still be executed (F13).
#[test]
fn with_the_predecessor_left_alive() {
    let scenario = |c| Scenario { crashes: 1, ..Scenario::new("one client, a crash", c, ONE, &[Plain]) };
    both_break(scenario, Mutation::PredecessorLives, [9, 12]);
}

/// A new process does not know who has missed.
#[test]
fn with_leases_trusted_after_a_crash() {
    let scenario = |c| Scenario { crashes: 1, ..Scenario::new("two clients, a crash", c, ONE, PAIR) };
    both_break(scenario, Mutation::NoDistrust, [14, 16]);
}

/// What the predecessor has deleted, and not confirmed, is not fenced until it comes again. In strict all that is
/// acknowledged was confirmed.
#[test]
fn with_the_floor_at_the_slot() {
    let scenario = |c| Scenario {
        crashes: 1,
        rounds: 2,
        ..Scenario::new("one client with ASOF, a crash", c, ONE, &[Asof])
    };
    breaks(&scenario(Bounded), Mutation::FloorAtSlot, 9);
    assert!(explore(&scenario(Strict).without(Mutation::FloorAtSlot)).counterexample.is_none());
}

/// After a crash nobody sends again what was confirmed. Bounded confirms what is visible; strict has to look for what
/// is not.
#[test]
fn with_confirmed_taken_for_visible() {
    let scenario =
        |c| Scenario { crashes: 1, rounds: 2, ..Scenario::new("one client, a crash", c, ONE, &[Plain]) };
    breaks(&scenario(Bounded), Mutation::ConfirmUnsettled, 14);
    breaks(&scenario(Strict), Mutation::NoSuspects, 16);
}

/// Not a rule but a condition: leases speak for fills that take less than `lease_ttl`.
#[test]
fn with_fills_slower_than_lease_ttl() {
    both_break(|c| Scenario::new("two clients", c, ONE, PAIR), Mutation::SlowFills, [13, 15]);
}

#[test]
fn the_fence_decides_as_the_model_does() {
    let walks = if large() { 500 } else { 40 };
    let mut walked = walk::Walked::default();
    for contract in [Bounded, Strict] {
        let snapshots = Scenario::new("snapshots", contract, THREE, &[Asof, Asof]);
        walk::walk(&snapshots, 10 * walks, &mut walked);
        for scenario in worlds(contract).into_iter().chain([snapshots]) {
            // As many as the fence does.
            let scenario = Scenario { xids: 8, ..scenario };
            walk::walk(&scenario, walks, &mut walked);
            walk::walk(&Scenario { forgets: true, crashes: 1, rounds: 2, ..scenario }, walks, &mut walked);
        }
    }
    println!("{walked:?}");
    assert!(walked.fresh > 1_000 && walked.stale > 1_000 && walked.unproven > 1_000, "{walked:?}");
}
