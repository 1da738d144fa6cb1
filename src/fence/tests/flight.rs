//! Fills in flight: a write finds every fill that was let in before it.

use super::*;

#[test]
fn a_write_finds_the_fills_let_in_before_it() {
    let table = Table::new(limits());
    let (first, second, other) = (table.in_flight(ALICE), table.in_flight(ALICE), table.in_flight(BOB));
    assert_eq!(table.write(ALICE, 105, 200), [first, second]);
    // Until they end, each later write waits for them too.
    assert_eq!(table.write(ALICE, 106, 300), [first, second]);
    assert!(table.fence.finish(ALICE, first), "somebody waits");
    assert!(!table.fence.is_in_flight(ALICE, first));
    assert!(table.fence.is_in_flight(ALICE, second));
    assert_eq!(table.write(ALICE, 107, 400), [second]);
    assert!(table.fence.finish(ALICE, second));
    assert_eq!(table.write(ALICE, 108, 500), []);
    assert!(!table.fence.finish(BOB, other), "nobody waits");
}

#[test]
fn a_write_that_is_sent_again_waits_for_the_fills_too() {
    // The key will be deleted again; what is on its way to Redis must not outlive that.
    let table = Table::new(limits());
    table.write(ALICE, 105, 200);
    let fill = table.in_flight(ALICE);
    assert_eq!(table.write(ALICE, 105, 200), [fill]);
    assert!(table.fence.finish(ALICE, fill));
}

#[test]
fn a_write_below_the_floor_waits_for_the_fills_too() {
    let table = Table::new(limits());
    let fill = table.in_flight(ALICE);
    assert_eq!(table.write(ALICE, 50, 60), [fill]);
    assert!(table.fence.finish(ALICE, fill));
    assert_eq!(table.fence.size().keys, 0, "nothing of it has to be remembered");
}

#[test]
fn a_refused_fill_is_not_in_flight() {
    let table = Table::new(limits());
    table.write(ALICE, 105, 200);
    assert_eq!(table.asof_lsn(ALICE, 150), superseded(200));
    assert_eq!(table.write(ALICE, 106, 300), []);
}

#[test]
fn a_truncate_finds_every_fill() {
    let table = Table::new(limits());
    let fills: Vec<_> = (0..50).map(|n| (KeyHash(n), table.in_flight(KeyHash(n)))).collect();
    assert_eq!(table.write_guard(0, 105, 200), fills);
    for (key, fill) in fills {
        assert!(table.fence.finish(key, fill), "somebody waits");
    }
    assert_eq!(table.write_guard(0, 106, 300), []);
}

#[test]
fn a_fill_in_flight_survives_sweeps_room_and_restarts() {
    let mut table = Table::new(Limits { max_keys: 2, ..limits() });
    let fill = table.in_flight(ALICE);
    for n in 0..20 {
        table.write(KeyHash(100 + n), 105 + n, 200 + n);
    }
    table.now += 1_000_000;
    table.settle(300, "200:200:");
    table.fence.sweep(table.now);
    table.fence.restart(Lsn(400));
    assert_eq!(table.write(ALICE, 300, 500), [fill]);
    assert!(table.fence.finish(ALICE, fill));
}

#[test]
fn the_end_of_an_unknown_fill_is_nothing() {
    let table = Table::new(limits());
    assert!(!table.fence.finish(ALICE, FillId(77)));
    assert!(!table.fence.is_in_flight(ALICE, FillId(77)));
    assert_eq!(table.fence.size().keys, 0);
}

#[test]
fn an_idle_table_is_empty() {
    let table = Table::new(limits());
    let empty = table.fence.size();
    table.miss(ALICE, 1);
    assert_eq!(table.set(ALICE, 1), Verdict::Fresh);
    assert_eq!(table.set(BOB, 1), UNPROVEN);
    table.asof_lsn(BOB, 150);
    assert_eq!(table.fence.size(), empty);
}

/// What a reader of the same key can wait for.
#[test]
fn a_fill_is_expected_from_a_recent_miss_of_somebody_else_or_under_way() {
    let mut table = Table::new(limits());
    let expected = |table: &Table, conn| table.fence.is_being_filled(ALICE, ConnId(conn), table.now, 50);
    assert!(!expected(&table, 1));
    table.miss(ALICE, 1);
    assert!(expected(&table, 2) && !expected(&table, 1), "nobody waits for himself");
    table.now += 49;
    assert!(expected(&table, 2));
    table.now += 1;
    assert!(!expected(&table, 2), "it takes too long");

    table.miss(ALICE, 1);
    let fill = table.fill(1);
    let (_, ruling) = table.fence.admit(ALICE, &fill, table.now, |_| Ruling::Forward);
    assert_eq!(ruling, Ruling::Forward);
    table.now += 1_000;
    assert!(expected(&table, 2) && expected(&table, 1), "under way, for as long as that takes");
    table.fence.finish(ALICE, fill.id);
    assert!(!expected(&table, 2));
}
