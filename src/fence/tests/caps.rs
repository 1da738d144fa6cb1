//! Caps: what an EXPIRE may do to a key that was let in for a short while; by examples, and against a Redis that
//! executes the commands of several connections in any order.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// Lets a fill in.
fn let_in(table: &Table, fill: &Fill<'_>, ttl: Option<Millis>) -> Ruling {
    let rule = |_| ttl.map_or(Ruling::Forward, Ruling::Cap);
    table.fence.admit(ALICE, fill, table.now, rule).1
}

/// The same, which replaces the value, answered at once.
fn set(table: &Table, ttl: Option<Millis>) -> Ruling {
    let fill = table.fill(1);
    let ruling = let_in(table, &fill, ttl);
    table.fence.answered(ALICE, fill.id, true, table.now);
    ruling
}

fn expires(table: &Table) -> (FillId, Option<Millis>) {
    let id = table.fill(1).id;
    (id, table.fence.expires(ALICE, id, table.now))
}

/// An EXPIRE that is answered at once.
fn limit(table: &Table) -> Option<Millis> {
    let (id, limit) = expires(table);
    assert_eq!(table.fence.answered(ALICE, id, false, table.now), Answered::default());
    limit
}

#[test]
fn what_is_left_of_a_cap_limits_what_follows() {
    let mut table = Table::new(limits());
    assert_eq!(limit(&table), None);
    assert_eq!(set(&table, Some(1_000)), Ruling::Cap(1_000));
    assert!(table.fence.is_capped(ALICE, table.now) && !table.fence.is_capped(BOB, table.now));
    table.now += 400;
    assert_eq!(limit(&table), Some(600));
    table.now += 600;
    assert_eq!(limit(&table), None, "its time is over");
    assert_eq!(table.fence.size().caps, 0);
}

#[test]
fn a_cap_counts_from_the_answer_too() {
    let mut table = Table::new(limits());
    let fill = table.fill(1);
    let_in(&table, &fill, Some(1_000));
    table.now += 5_000;
    // Redis may have executed it just now.
    assert_eq!(limit(&table), Some(0));
    table.fence.answered(ALICE, fill.id, true, table.now);
    table.now += 999;
    assert_eq!(limit(&table), Some(0));
    table.now += 1;
    assert_eq!(limit(&table), None);
}

/// Redis may have executed it before the cap was due, and with it the limit that was computed then.
#[test]
fn a_command_under_way_keeps_a_cap() {
    let mut table = Table::new(limits());
    set(&table, Some(1_000));
    table.now += 500;
    let (id, left) = expires(&table);
    assert_eq!(left, Some(500));
    table.now += 600;
    table.fence.sweep(table.now);
    assert_eq!(limit(&table), Some(0));
    table.fence.answered(ALICE, id, false, table.now);
    table.now += 499;
    assert_eq!(limit(&table), Some(0));
    table.now += 1;
    assert_eq!(limit(&table), None);
}

#[test]
fn a_fill_that_surely_replaced_the_entry_ends_its_cap() {
    let mut table = Table::new(limits());
    set(&table, Some(1_000));
    set(&table, None);
    assert_eq!(limit(&table), None, "a fresh SET, and its EXPIRE");
    set(&table, Some(1_000));
    table.now += 500;
    set(&table, Some(1_000));
    assert_eq!(limit(&table), Some(1_000), "the last one counts");
}

#[test]
fn a_fill_that_may_have_come_before_or_not_at_all_does_not() {
    let table = Table::new(limits());
    let (capped, fresh) = (table.fill(1), table.fill(2));
    let_in(&table, &capped, Some(1_000));
    let_in(&table, &fresh, None);
    for fill in [&fresh, &capped] {
        table.fence.answered(ALICE, fill.id, true, table.now);
    }
    assert_eq!(limit(&table), Some(1_000), "both were under way");
    let failed = table.fill(1);
    let_in(&table, &failed, None);
    table.fence.answered(ALICE, failed.id, false, table.now);
    assert_eq!(limit(&table), Some(1_000), "Redis refused it");
}

#[test]
fn parts_share_a_cap() {
    let mut table = Table::new(limits());
    let part = || Fill { part: true, ..table.fill(1) };
    let (first, second, third) = (part(), part(), part());
    assert_eq!(let_in(&table, &first, Some(1_000)), Ruling::Cap(1_000));
    table.now += 400;
    assert_eq!(let_in(&table, &second, Some(1_000)), Ruling::Cap(600));
    assert_eq!(let_in(&table, &third, None), Ruling::Cap(600), "a fresh part of a capped value");
}

#[test]
fn a_capped_fill_overtakes_what_was_sent_before() {
    let table = Table::new(limits());
    let (before, none) = expires(&table);
    assert_eq!(none, None);
    set(&table, Some(1_000));
    assert!(table.fence.answered(ALICE, before, false, table.now).overtaken);
    let (longer, left) = expires(&table);
    assert_eq!(left, Some(1_000));
    let shorter = table.fill(1);
    let_in(&table, &shorter, Some(10));
    assert!(table.fence.answered(ALICE, longer, false, table.now).overtaken);
}

/// Beyond the budget a limit is too short, and never too long; and leases are none of its business.
#[test]
fn a_cap_that_cannot_be_remembered_limits_all_in_its_slot() {
    let mut table = Table::new(Limits { max_leases: 0, ..limits() });
    let (neighbour, id) = (KeyHash(ALICE.0 + 256), table.fill(1).id);
    assert_eq!(table.fence.expires(neighbour, id, table.now), None);
    set(&table, Some(1_000));
    assert_eq!(table.fence.size().caps, 1, "the command under way");
    assert!(table.fence.answered(neighbour, id, false, table.now).overtaken);
    assert_eq!(limit(&table), Some(0));
    table.now += 61_000;
    assert_eq!(limit(&table), None);
}

#[test]
fn caps_are_swept() {
    let mut table = Table::new(limits());
    for key in 0..100 {
        let fill = table.fill(1);
        table.fence.admit(KeyHash(key), &fill, table.now, |_| Ruling::Cap(1_000));
        table.fence.answered(KeyHash(key), fill.id, true, table.now);
    }
    assert_eq!(table.fence.size().caps, 100);
    table.fence.sweep(table.now + 999);
    assert_eq!(table.fence.size().caps, 100);
    table.now += 1_000;
    table.fence.sweep(table.now);
    assert_eq!(table.fence.size().caps, 0);
    assert!(format!("{:?}", table.fence.size()).contains("keys: 0"));
}

const CONNECTIONS: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    /// `condition`: like NX, Redis does it only if there is no entry.
    Fill {
        conn: usize,
        ttl: Option<Millis>,
        part: bool,
        condition: bool,
        fails: bool,
    },
    Expire {
        conn: usize,
    },
    Execute {
        conn: usize,
    },
    Answer {
        conn: usize,
    },
    Wait(Millis),
}

fn ops() -> impl Strategy<Value = Op> {
    let conn = || 0..CONNECTIONS;
    let ttl = prop_oneof![Just(None), Just(Some(20)), Just(Some(60)), Just(Some(100))];
    let rarely = || prop::bool::weighted(0.2);
    prop_oneof![
        3 => (conn(), ttl, rarely(), rarely(), rarely())
            .prop_map(|(conn, ttl, part, condition, fails)| Op::Fill { conn, ttl, part, condition, fails }),
        3 => conn().prop_map(|conn| Op::Expire { conn }),
        5 => conn().prop_map(|conn| Op::Execute { conn }),
        5 => conn().prop_map(|conn| Op::Answer { conn }),
        2 => (1u64..30).prop_map(Op::Wait),
    ]
}

#[derive(Debug)]
enum Sent {
    Set { ttl: Option<Millis>, condition: bool, fails: bool },
    Add { fails: bool },
    Expire,
    Shorten { ttl: Millis, at: Millis, caps: bool },
}

/// A value: until when it lives, and until when it may.
#[derive(Debug, Default)]
struct Entry {
    expiry: Option<Millis>,
    allowed: Option<Millis>,
}

fn sooner(a: Option<Millis>, b: Millis) -> Option<Millis> {
    Some(a.map_or(b, |a| a.min(b)))
}

/// One key, its Redis, and what is under way to it and back.
struct Races {
    table: Table,
    entry: Option<Entry>,
    to: [VecDeque<(Sent, Option<FillId>)>; CONNECTIONS],
    back: [VecDeque<(FillId, bool)>; CONNECTIONS],
    /// The longest that a limit has travelled.
    slack: Millis,
}

impl Races {
    fn new() -> Self {
        let table = Table::new(limits());
        Self { table, entry: None, to: Default::default(), back: Default::default(), slack: 0 }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Fill { conn, ttl, part, condition, fails } => self.fill(conn, ttl, part, condition, fails),
            Op::Expire { conn } => {
                let (id, limit) = expires(&self.table);
                let last = limit.map(|ttl| Sent::Shorten { ttl, at: self.table.now, caps: false });
                self.send(conn, Sent::Expire, last, id);
            }
            Op::Execute { conn } => self.execute(conn),
            Op::Answer { conn } => self.answer(conn),
            Op::Wait(time) => self.table.now += time,
        }
    }

    fn fill(&mut self, conn: usize, ttl: Option<Millis>, part: bool, condition: bool, fails: bool) {
        let fill = Fill { part, ..self.table.fill(1) };
        let ttl = match let_in(&self.table, &fill, ttl) {
            Ruling::Cap(ttl) => Some(ttl),
            _ => None,
        };
        if part {
            let last = ttl.map(|ttl| Sent::Shorten { ttl, at: self.table.now, caps: true });
            self.send(conn, Sent::Add { fails }, last, fill.id);
        } else {
            self.send(conn, Sent::Set { ttl, condition, fails }, None, fill.id);
        }
    }

    fn send(&mut self, conn: usize, first: Sent, last: Option<Sent>, id: FillId) {
        let alone = last.is_none().then_some(id);
        self.to[conn].push_back((first, alone));
        self.to[conn].extend(last.map(|last| (last, Some(id))));
    }

    fn execute(&mut self, conn: usize) {
        let now = self.table.now;
        let Some((sent, id)) = self.to[conn].pop_front() else { return };
        self.entry.take_if(|entry| entry.expiry.is_some_and(|expiry| expiry <= now));
        let mut replaced = false;
        match sent {
            Sent::Set { fails: true, .. } | Sent::Add { fails: true } => {}
            Sent::Set { condition: true, .. } if self.entry.is_some() => {}
            Sent::Set { ttl, .. } => {
                let expiry = ttl.map(|ttl| now + ttl);
                (self.entry, replaced) = (Some(Entry { expiry, allowed: expiry }), true);
            }
            Sent::Add { .. } => {
                self.entry.get_or_insert_default();
            }
            Sent::Expire => self.entry.iter_mut().for_each(|entry| entry.expiry = Some(now + 500)),
            Sent::Shorten { ttl, at, caps } => {
                if let Some(entry) = &mut self.entry {
                    entry.expiry = sooner(entry.expiry, now + ttl);
                    if caps {
                        entry.allowed = sooner(entry.allowed, now + ttl);
                    } else {
                        self.slack = self.slack.max(now - at);
                    }
                }
            }
        }
        self.back[conn].extend(id.map(|id| (id, replaced)));
    }

    fn answer(&mut self, conn: usize) {
        let Some((id, replaced)) = self.back[conn].pop_front() else { return };
        if self.table.fence.answered(ALICE, id, replaced, self.table.now).overtaken {
            self.entry = None;
        }
    }

    fn end(&mut self) {
        for conn in 0..CONNECTIONS {
            while !self.to[conn].is_empty() {
                self.execute(conn);
            }
            while !self.back[conn].is_empty() {
                self.answer(conn);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever order Redis finds the commands in: once all is answered, no capped value lives longer than it may, but for
    /// the time that a limit has travelled.
    #[test]
    fn no_order_of_commands_lengthens_a_capped_value(ops in prop::collection::vec(ops(), 1..60)) {
        let mut races = Races::new();
        for op in &ops {
            races.apply(op);
        }
        races.end();
        let now = races.table.now;
        let entry = races.entry.take().filter(|entry| entry.expiry.is_none_or(|expiry| expiry > now));
        if let Some(Entry { expiry, allowed: Some(allowed) }) = entry {
            prop_assert!(expiry.is_some_and(|expiry| expiry <= allowed + races.slack), "{expiry:?} {allowed}");
        }
        races.table.fence.sweep(now + 1_000);
        prop_assert_eq!(races.table.fence.size().caps, 0);
    }
}

/// While something is under way the cap is remembered beyond its time; but no EXPIRE adds to the value's life.
#[test]
fn commands_that_follow_closely_do_not_keep_a_capped_value() {
    let mut races = Races::new();
    let conn = 0;
    let fill = Op::Fill { conn, ttl: Some(20), part: false, condition: false, fails: false };
    let round = [Op::Expire { conn }, Op::Execute { conn }, Op::Wait(1), Op::Execute { conn }];
    for op in [fill, Op::Execute { conn }].iter().chain(round.iter().cycle().take(200)) {
        races.apply(op);
    }
    assert!(races.table.fence.is_capped(ALICE, races.table.now), "nothing is answered yet");
    races.end();
    let now = races.table.now;
    assert!(races.entry.is_none_or(|entry| entry.expiry.is_some_and(|expiry| expiry <= now)));
}

#[test]
fn a_predecessors_caps_are_not_known_and_lengthened_once() {
    let mut table = Table::new(limits());
    let start = table.now;
    table.fence.distrust_lives(table.now);
    assert!(table.fence.is_capped(ALICE, table.now) && table.fence.is_capped(BOB, table.now));
    assert_eq!(limit(&table), Some(60_000), "no command adds more than the longest cap");
    assert_eq!(set(&table, Some(1_000)), Ruling::Cap(1_000));
    assert_eq!(limit(&table), Some(1_000), "one that is known counts");
    // A key that is kept alive all the time ends all the same, at a moment of its own.
    let due = start + 60_000 + ALICE.0 % 60_000;
    while table.now < due {
        table.now += 1_000.min(due - table.now);
        let left = (due - table.now).min(60_000);
        assert_eq!(limit(&table), Some(left).filter(|left| *left > 0));
    }
}

#[test]
fn a_predecessors_caps_do_not_all_end_at_once() {
    let mut table = Table::new(limits());
    table.fence.distrust_lives(table.now);
    table.now += 60_000;
    let limit = |key: u64| {
        let id = table.fill(1).id;
        let limit = table.fence.expires(KeyHash(key), id, table.now);
        table.fence.answered(KeyHash(key), id, false, table.now);
        limit
    };
    let key = |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let limits: std::collections::BTreeSet<_> = (0..100).map(|n| limit(key(n))).collect();
    assert!(limits.len() > 90 && limits.iter().flatten().all(|left| *left < 60_000));
}
