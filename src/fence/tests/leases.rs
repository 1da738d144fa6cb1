//! Leases: which miss vouches for which fill.

use super::*;

/// A key with a write at 200 that everyone sees from then on: misses from before are worth 100, later ones 200.
fn written_between(table: &Table, before: impl FnOnce(), after: impl FnOnce()) {
    before();
    table.write(ALICE, 105, 200);
    table.settle(200, "106:106:");
    after();
}

#[test]
fn a_miss_vouches_for_one_fill_on_its_connection() {
    let table = Table::new(limits());
    table.miss(ALICE, 1);
    assert_eq!(table.set(ALICE, 1), Verdict::Fresh);
    assert_eq!(table.set(ALICE, 1), UNPROVEN, "used up");
}

#[test]
fn a_miss_from_before_a_write_does_not_vouch_once_the_write_is_known() {
    let table = Table::new(limits());
    table.miss(ALICE, 1);
    table.write(ALICE, 105, 200);
    assert_eq!(table.set(ALICE, 1), superseded(200));
    // The write is known but not yet visible everywhere: a miss now may be answered by what was before it.
    table.miss(ALICE, 1);
    assert_eq!(table.set(ALICE, 1), superseded(200));
    table.settle(199, "105:107:105");
    table.miss(ALICE, 1);
    assert_eq!(table.set(ALICE, 1), superseded(200));
    table.settle(200, "106:107:");
    table.miss(ALICE, 1);
    assert_eq!(table.set(ALICE, 1), Verdict::Fresh);
}

#[test]
fn a_write_through_does_not_borrow_another_connections_miss() {
    let table = Table::new(limits());
    table.write(ALICE, 105, 200);
    table.settle(200, "106:106:");
    table.miss(ALICE, 1);
    assert_eq!(table.set(ALICE, 2), no_evidence(200));
    assert_eq!(table.set(ALICE, 1), Verdict::Fresh, "nor use it up");
}

#[test]
fn the_oldest_miss_judges_wherever_it_is_outstanding() {
    // A pool may send the fill of connection 1's miss on connection 2, which has a newer miss of its own.
    let table = Table::new(limits());
    written_between(&table, || table.miss(ALICE, 1), || table.miss(ALICE, 2));
    assert_eq!(table.set(ALICE, 2), OLDER_MISS);
    assert_eq!(table.set(ALICE, 1), superseded(200));
    // Neither is outstanding any more.
    table.miss(ALICE, 2);
    assert_eq!(table.set(ALICE, 2), Verdict::Fresh);
}

#[test]
fn an_older_miss_that_is_as_good_does_not_object() {
    let table = Table::new(limits());
    table.miss(ALICE, 1);
    table.settle(150, "103:103:");
    table.miss(ALICE, 2);
    assert_eq!(table.set(ALICE, 2), Verdict::Fresh);
    assert_eq!(table.set(ALICE, 1), Verdict::Fresh);
}

#[test]
fn two_misses_around_a_write_whose_fills_come_in_either_order() {
    let table = Table::new(limits());
    let twice = || written_between(&table, || table.miss(ALICE, 1), || table.miss(ALICE, 2));
    twice();
    assert_eq!(table.set(ALICE, 1), superseded(200));
    assert_eq!(table.set(ALICE, 2), Verdict::Fresh);
    // On one connection the fills cannot be told apart. The newest miss is used up first, so that
    // the oldest objects for as long as its fill may come.
    let table = Table::new(limits());
    written_between(&table, || table.miss(ALICE, 1), || table.miss(ALICE, 1));
    assert_eq!(table.set(ALICE, 1), OLDER_MISS);
    assert_eq!(table.set(ALICE, 1), superseded(200));
    assert_eq!(table.set(ALICE, 1), no_evidence(200));
}

#[test]
fn a_miss_ends_after_lease_ttl() {
    let mut table = Table::new(limits());
    table.miss(ALICE, 1);
    table.now += 4_999;
    assert_eq!(table.set(ALICE, 1), Verdict::Fresh);
    table.miss(ALICE, 1);
    table.now += 5_000;
    assert_eq!(table.set(ALICE, 1), UNPROVEN);
}

#[test]
fn an_older_miss_objects_until_it_ends() {
    let mut table = Table::new(limits());
    written_between(&table, || table.miss(ALICE, 1), || ());
    table.now += 4_999;
    table.miss(ALICE, 2);
    assert_eq!(table.set(ALICE, 2), OLDER_MISS);
    table.miss(ALICE, 2);
    table.now += 1;
    assert_eq!(table.set(ALICE, 2), Verdict::Fresh);
}

#[test]
fn sweeps_drop_ended_misses_only() {
    let mut table = Table::new(limits());
    table.miss(ALICE, 1);
    table.now += 1_000;
    table.miss(ALICE, 2);
    table.miss(BOB, 2);
    table.now += 4_000;
    table.fence.sweep(table.now);
    assert_eq!(table.fence.size().leases, 2);
    assert_eq!(table.set(BOB, 2), Verdict::Fresh);
    table.now += 1_000;
    table.fence.sweep(table.now);
    assert_eq!(table.fence.size().leases, 0);
}

#[test]
fn with_key_leases_any_connections_miss_will_do() {
    let table = Table::new(limits());
    let set = |conn| table.judge(ALICE, &Fill { lease: LeaseRule::Key, ..table.fill(conn) });
    written_between(&table, || table.miss(ALICE, 1), || table.miss(ALICE, 2));
    // The newest is used up first and the oldest judges, as everywhere.
    assert_eq!(set(3), OLDER_MISS);
    assert_eq!(set(3), superseded(200));
    assert_eq!(set(3), no_evidence(200));
    table.miss(ALICE, 1);
    assert_eq!(set(3), Verdict::Fresh);
}

#[test]
fn with_key_leases_two_fills_may_change_places() {
    let table = Table::new(limits());
    let set = |conn| table.judge(ALICE, &Fill { lease: LeaseRule::Key, ..table.fill(conn) });
    written_between(&table, || table.miss(ALICE, 1), || table.miss(ALICE, 2));
    // First the new value on connection 1, which must leave the old miss where it is; then the old value.
    assert_eq!(set(1), OLDER_MISS);
    assert_eq!(set(2), superseded(200));
}

#[test]
fn a_miss_from_before_a_restart_objects_to_later_ones() {
    let table = Table::new(limits());
    table.miss(ALICE, 1);
    table.fence.restart(Lsn(300));
    table.fence.settle(&Settled { sources: Some(2), ..polled(300, "200:200:") }, table.now);
    table.miss(ALICE, 2);
    assert_eq!(table.set(ALICE, 2), OLDER_MISS, "its fill may come by any connection");
    assert_eq!(table.set(ALICE, 1), LOST);
}

#[test]
fn with_leases_off_no_miss_vouches() {
    let table = Table::new(limits());
    let set = || table.judge(ALICE, &Fill { lease: LeaseRule::Off, ..table.fill(1) });
    table.miss(ALICE, 1);
    assert_eq!(set(), UNPROVEN);
    table.write(ALICE, 105, 200);
    table.settle(200, "106:106:");
    table.miss(ALICE, 1);
    assert_eq!(set(), no_evidence(200));
}

#[test]
fn a_fill_with_evidence_of_its_own_uses_up_its_miss() {
    let table = Table::new(limits());
    table.miss(ALICE, 1);
    let evidence = Some(&Evidence::Lsn(Lsn(150)));
    assert_eq!(table.judge(ALICE, &Fill { evidence, ..table.fill(1) }), Verdict::Fresh);
    assert_eq!(table.set(ALICE, 1), UNPROVEN);
}

#[test]
fn what_the_client_says_is_judged_alone() {
    let table = Table::new(limits());
    written_between(&table, || table.miss(ALICE, 2), || table.miss(ALICE, 1));
    let evidence = Some(&Evidence::Lsn(Lsn(199)));
    assert_eq!(table.judge(ALICE, &Fill { evidence, ..table.fill(1) }), superseded(200));
    let evidence = Some(&Evidence::Lsn(Lsn(200)));
    assert_eq!(table.judge(ALICE, &Fill { evidence, ..table.fill(2) }), Verdict::Fresh);
}

#[test]
fn parts_of_one_fill_share_a_miss() {
    let table = Table::new(limits());
    table.miss(ALICE, 1);
    for _ in 0..3 {
        assert_eq!(table.add(ALICE, 1), Verdict::Fresh);
    }
    assert_eq!(table.add(ALICE, 2), UNPROVEN, "another connection has no part in it");
    assert_eq!(table.set(ALICE, 1), UNPROVEN, "nor has a fill that replaces the value");
}

#[test]
fn a_refused_part_takes_the_rest_with_it() {
    let table = Table::new(limits());
    table.miss(ALICE, 1);
    assert_eq!(table.add(ALICE, 1), Verdict::Fresh);
    table.write(ALICE, 105, 200);
    assert_eq!(table.add(ALICE, 1), superseded(200));
    assert_eq!(table.add(ALICE, 1), TORN);
    table.settle(200, "106:106:");
    assert_eq!(table.add(ALICE, 1), TORN);
    // Until a new miss begins a new fill.
    table.miss(ALICE, 1);
    assert_eq!(table.add(ALICE, 1), Verdict::Fresh);
    assert_eq!(table.add(ALICE, 1), Verdict::Fresh);
}

#[test]
fn parts_do_not_go_on_with_an_older_miss() {
    // Connection 1 has two misses, connection 2 an older one that ends between the parts.
    let mut table = Table::new(limits());
    table.miss(ALICE, 2);
    table.now += 1;
    written_between(&table, || (), || [1, 1].into_iter().for_each(|conn| table.miss(ALICE, conn)));
    assert_eq!(table.add(ALICE, 1), OLDER_MISS);
    table.now += 4_999;
    assert_eq!(table.add(ALICE, 1), TORN, "the value would lack its first part");
}

#[test]
fn a_refused_part_takes_the_rest_with_it_also_where_no_miss_counts() {
    let table = Table::new(Limits { max_leases: 1, max_keys: 1, ..limits() });
    table.miss(ALICE, 1);
    for n in 0..10 {
        table.write(KeyHash(50 + n), 105 + n, 200 + n);
    }
    assert!(matches!(table.add(ALICE, 1), Verdict::Stale(Stale::BelowFloor(_))));
    table.miss(ALICE, 2); // Not granted: from here on no miss of the key counts.
    assert_eq!(table.add(ALICE, 1), TORN);
}

#[test]
fn parts_share_a_miss_of_another_connection_too() {
    let table = Table::new(limits());
    let add = |conn| table.judge(ALICE, &Fill { lease: LeaseRule::Key, part: true, ..table.fill(conn) });
    table.miss(ALICE, 1);
    assert_eq!(add(2), Verdict::Fresh);
    assert_eq!(add(2), Verdict::Fresh);
    assert_eq!(add(1), UNPROVEN, "it went to connection 2");
    table.miss(ALICE, 2);
    assert_eq!(table.set(ALICE, 2), Verdict::Fresh);
    assert_eq!(add(2), UNPROVEN, "a new miss ends it");
}

#[test]
fn leases_outlive_their_connection() {
    // Nothing tells the fence that a connection closed: the pool that dropped it may still deliver its fill
    // elsewhere, so the miss objects until it ends.
    let table = Table::new(limits());
    written_between(&table, || table.miss(ALICE, 1), || table.miss(ALICE, 2));
    assert_eq!(table.fence.size().leases, 2);
    assert_eq!(table.set(ALICE, 2), OLDER_MISS);
}

#[test]
fn a_miss_beyond_the_budget_silences_the_misses_of_its_key() {
    let mut table = Table::new(Limits { max_leases: 2, ..limits() });
    written_between(
        &table,
        || {
            table.miss(BOB, 9);
            table.miss(BOB, 9);
            table.miss(ALICE, 1); // Not granted, and worth 100.
            assert_eq!(table.set(BOB, 9), Verdict::Fresh, "another key's misses count");
        },
        || table.miss(ALICE, 2),
    );
    assert_eq!(table.fence.size().leases, 2);
    // The fill may be of connection 1's miss, which nobody remembers.
    assert_eq!(table.set(ALICE, 2), no_evidence(200));
    table.now += 4_999;
    table.miss(ALICE, 2);
    assert_eq!(table.set(ALICE, 2), no_evidence(200));
    table.now += 1;
    table.miss(ALICE, 2);
    assert_eq!(table.set(ALICE, 2), Verdict::Fresh);
    assert_eq!(table.fence.floor(), Lsn(100), "leases never raise the floor");
}

#[test]
fn a_lost_source_voids_the_misses_before() {
    let table = Table::new(limits());
    let settle = |sources| {
        table.fence.settle(&Settled { sources, ..polled(200, "106:106:") }, table.now);
    };
    settle(Some(1));
    table.miss(ALICE, 1);
    table.miss(BOB, 1);
    settle(None);
    assert_eq!(table.set(ALICE, 1), LOST, "while it is lost");
    table.miss(ALICE, 2);
    settle(Some(2));
    assert_eq!(table.set(BOB, 1), LOST, "and when it is back: it may show less than before");
    assert_eq!(table.set(ALICE, 2), LOST, "granted while it was lost");
    table.miss(ALICE, 1);
    assert_eq!(table.set(ALICE, 1), Verdict::Fresh);
    // With a write in the history it is stale.
    table.miss(ALICE, 1);
    table.write(ALICE, 106, 300);
    settle(Some(3));
    assert_eq!(table.set(ALICE, 1), no_evidence(300));
}

#[test]
fn a_miss_from_before_a_source_was_lost_objects_to_later_ones() {
    let table = Table::new(limits());
    let settle = |sources| table.fence.settle(&Settled { sources, ..polled(200, "106:106:") }, table.now);
    settle(Some(1));
    table.miss(ALICE, 1);
    settle(Some(2));
    table.miss(ALICE, 2);
    assert_eq!(table.set(ALICE, 2), OLDER_MISS, "its fill may have been read from a source that went back");
}

#[test]
fn a_miss_below_the_floor_proves_nothing() {
    let table = Table::new(Limits { max_keys: 1, ..limits() });
    table.miss(ALICE, 1);
    for n in 0..10 {
        table.write(KeyHash(50 + n), 105 + n, 200 + n);
    }
    assert_eq!(table.set(ALICE, 1), below_floor(table.fence.floor().0));
}
