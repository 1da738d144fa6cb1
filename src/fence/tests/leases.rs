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
    written_between(&table, || table.miss(ALICE, 1), || table.miss(ALICE, 2));
    assert_eq!(table.set(ALICE, 1), superseded(200));
    // What was refused need not have been the fill of connection 1's miss.
    assert_eq!(table.set(ALICE, 2), OLDER_MISS);
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
    let mut table = Table::new(limits());
    table.miss(ALICE, 1);
    let set = |table: &Table, conn| table.judge(ALICE, &Fill { lease: LeaseRule::Key, ..table.fill(conn) });
    assert_eq!(set(&table, 3), Verdict::Fresh);
    written_between(&table, || table.miss(ALICE, 1), || table.miss(ALICE, 2));
    // The newest is used up first and the oldest judges, as everywhere.
    assert_eq!(set(&table, 3), OLDER_MISS);
    assert_eq!(set(&table, 3), superseded(200));
    assert_eq!(set(&table, 3), no_evidence(200));
    table.now += 5_000;
    table.miss(ALICE, 1);
    assert_eq!(set(&table, 3), Verdict::Fresh);
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
            table.miss(KeyHash(3), 9);
            table.miss(BOB, 9);
            table.miss(ALICE, 1); // Not granted, and worth 100.
            assert_eq!(table.set(BOB, 9), Verdict::Fresh, "another key's misses count");
            assert_eq!(table.set(KeyHash(3), 9), Verdict::Fresh);
        },
        || table.miss(ALICE, 2),
    );
    assert_eq!(table.fence.size().leases, 1);
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

/// Both fills of two misses around a write, in the wrong places; then the key is missed again.
fn changed_places(table: &Table, first: u64, second: u64) {
    written_between(table, || table.miss(ALICE, first), || table.miss(ALICE, second));
}

#[test]
fn fills_that_changed_connections_do_not_get_old_data_in() {
    let mut table = Table::new(limits());
    changed_places(&table, 1, 2);
    // The new value comes on connection 1, is refused, and uses up the miss of the old one.
    assert_eq!(table.set(ALICE, 1), superseded(200));
    // The old value comes on connection 2, whose own miss would prove it.
    assert_eq!(table.set(ALICE, 2), OLDER_MISS);
    // As it does later, on any connection, with a miss of its own, for as long as that fill may still be another's.
    table.now += 4_999;
    table.miss(ALICE, 3);
    assert_eq!(table.set(ALICE, 3), OLDER_MISS);
    table.now += 1;
    table.miss(ALICE, 3);
    assert_eq!(table.set(ALICE, 3), Verdict::Fresh);
}

#[test]
fn a_storm_on_one_connection_does_not_get_old_data_in() {
    // Fifty clients share a connection. The last one's fill comes last, with data from before the write.
    let mut table = Table::new(limits());
    table.miss(ALICE, 1);
    table.now += 2_500;
    written_between(&table, || table.miss(ALICE, 1), || (0..48).for_each(|_| table.miss(ALICE, 1)));
    for _ in 0..24 {
        assert_eq!(table.set(ALICE, 1), OLDER_MISS);
    }
    // The oldest miss ends; the one after it has been used up by now or has not: it objects.
    table.now += 2_500;
    for _ in 0..24 {
        assert_eq!(table.set(ALICE, 1), OLDER_MISS);
    }
    table.miss(ALICE, 1);
    assert_eq!(table.set(ALICE, 1), OLDER_MISS);
    table.now += 2_500;
    table.miss(ALICE, 1);
    assert_eq!(table.set(ALICE, 1), Verdict::Fresh);
}

#[test]
fn a_miss_that_is_used_up_objects_even_where_only_spent_ones_are_left() {
    let mut table = Table::new(limits());
    table.miss(ALICE, 1);
    table.miss(ALICE, 2);
    table.now += 1_000;
    assert_eq!(table.set(ALICE, 1), Verdict::Fresh);
    assert_eq!(table.set(ALICE, 2), Verdict::Fresh, "nothing was written, so nothing is held against it");
    table.miss(ALICE, 3);
    assert_eq!(table.set(ALICE, 3), Verdict::Fresh);
    assert_eq!(table.fence.size().leases, 1, "all of them are worth the same");
    table.write(ALICE, 105, 200);
    table.settle(200, "106:106:");
    // The fill on connection 3 may have been that of connection 1's miss or 2's.
    table.now += 4_999;
    table.miss(ALICE, 4);
    assert_eq!(table.set(ALICE, 4), OLDER_MISS);
    table.now += 1;
    table.fence.sweep(table.now);
    table.miss(ALICE, 4);
    assert_eq!(table.set(ALICE, 4), Verdict::Fresh);
}

#[test]
fn a_miss_alone_vanishes_with_its_fill() {
    let table = Table::new(limits());
    for n in 0..20 {
        table.miss(ALICE, n);
        assert_eq!(table.set(ALICE, n), Verdict::Fresh, "at once after the write before it");
        assert_eq!(table.fence.size().leases, 0);
        table.write(ALICE, 105 + n, 200 + n);
        table.settle(200 + n, "200:200:");
    }
}

#[test]
fn a_part_leaves_its_miss_to_object_too() {
    let table = Table::new(limits());
    written_between(&table, || table.miss(ALICE, 1), || table.miss(ALICE, 2));
    assert_eq!(table.add(ALICE, 1), superseded(200));
    assert_eq!(table.fence.size().leases, 3, "for the next part; to object; connection 2's");
    assert_eq!(table.add(ALICE, 1), TORN);
    assert_eq!(table.add(ALICE, 2), OLDER_MISS);
    assert_eq!(table.add(ALICE, 2), TORN);
}

#[test]
fn a_miss_is_not_vouched_for_twice() {
    let table = Table::new(limits());
    (0..3).for_each(|_| table.miss(ALICE, 1));
    assert_eq!(table.fence.size().leases, 1);
    for _ in 0..3 {
        assert_eq!(table.set(ALICE, 1), Verdict::Fresh);
    }
    assert_eq!(table.set(ALICE, 1), UNPROVEN);
}

#[test]
fn misses_between_which_the_key_was_not_written_are_worth_the_same() {
    let table = Table::new(limits());
    table.miss(ALICE, 1);
    table.settle(150, "103:103:"); // Another key's commit.
    table.miss(ALICE, 1);
    assert_eq!(table.fence.size().leases, 1);
    // One that is known but not settled everywhere lies between nothing yet.
    table.write(ALICE, 105, 200);
    table.settle(199, "105:107:105");
    table.miss(ALICE, 1);
    assert_eq!(table.fence.size().leases, 2);
    table.settle(200, "107:107:");
    table.miss(ALICE, 1);
    assert_eq!(table.fence.size().leases, 3);
    assert_eq!(table.set(ALICE, 1), OLDER_MISS);
    assert_eq!(table.set(ALICE, 1), superseded(200));
}

#[test]
fn misses_around_a_write_of_the_whole_guard_are_not_worth_the_same() {
    let table = Table::new(limits());
    let guards = &[GuardId(1)];
    table.miss(ALICE, 1);
    table.write_guard(1, 105, 200);
    table.settle(200, "106:106:");
    table.miss(ALICE, 2);
    assert_eq!(table.judge(ALICE, &Fill { guards, ..table.fill(2) }), OLDER_MISS);
    assert_eq!(table.judge(ALICE, &Fill { guards, ..table.fill(1) }), superseded(200));
}

#[test]
fn misses_around_the_loss_of_a_source_are_not_worth_the_same() {
    let table = Table::new(limits());
    let settle = |sources, lsn| {
        table.fence.settle(&Settled { sources, ..polled(lsn, "106:106:") }, table.now);
    };
    table.miss(ALICE, 1);
    settle(Some(2), 150);
    table.miss(ALICE, 1);
    assert_eq!(table.fence.size().leases, 2);
    assert_eq!(table.set(ALICE, 1), OLDER_MISS);
    assert_eq!(table.set(ALICE, 1), LOST);
}

#[test]
fn a_key_that_is_missed_all_the_time_and_never_filled_takes_little_room() {
    let mut table = Table::new(limits());
    for n in 0..10_000 {
        table.now += 1;
        table.settle(1_000 + n, &format!("{0}:{0}:", 1_000 + n));
        table.miss(ALICE, n % 3);
        assert!(table.fence.size().leases <= 3);
    }
    // Also where it is written now and then.
    for n in 0..10_000 {
        table.now += 1;
        if n % 1_000 == 0 {
            table.write(ALICE, 12_000 + n, 12_000 + n);
        }
        table.settle(12_000 + n, &format!("{0}:{0}:", 12_001 + n));
        table.miss(ALICE, n % 3);
        assert!(table.fence.size().leases <= 3 * 6);
    }
    // And by ever new connections: the oldest only object.
    table.settle(30_000, "30000:30000:");
    table.now += 5_000;
    for n in 0..1_000 {
        table.miss(ALICE, 100 + n);
    }
    assert_eq!(table.fence.size().leases, 256 + 1);
    assert_eq!(table.set(ALICE, 100 + 1_000 - 256 - 1), no_evidence(21_000));
    assert_eq!(table.set(ALICE, 100 + 1_000 - 256), Verdict::Fresh);
    assert_eq!(table.set(ALICE, 100 + 999), Verdict::Fresh);
    assert_eq!(table.fence.size().leases, 254 + 1);
    table.write(ALICE, 31_000, 31_000);
    table.settle(31_000, "31001:31001:");
    table.miss(ALICE, 100 + 999);
    assert_eq!(table.set(ALICE, 100 + 999), OLDER_MISS);
    table.now += 5_000;
    table.fence.sweep(table.now);
    assert_eq!(table.fence.size().leases, 0);
}

#[test]
fn a_key_that_is_written_and_filled_all_the_time_takes_little_room() {
    let mut table = Table::new(limits());
    for n in 0..3_000 {
        table.now += 1;
        table.miss(ALICE, 1);
        table.miss(ALICE, 2);
        table.write(ALICE, 1_000 + n, 1_000 + n);
        table.settle(1_000 + n, &format!("{0}:{0}:", 1_001 + n));
        assert_eq!(table.set(ALICE, 1), superseded(1_000 + n));
        assert_eq!(table.set(ALICE, 2), superseded(1_000 + n));
        assert!(table.fence.size().leases <= 3);
    }
    // What objects to everything objects as long as the last of them.
    table.now += 4_999;
    table.miss(ALICE, 1);
    assert_eq!(table.set(ALICE, 1), OLDER_MISS);
    table.miss(ALICE, 1);
    table.now += 1;
    assert_eq!(table.set(ALICE, 1), Verdict::Fresh);
}

#[test]
fn a_miss_that_nobody_remembers_keeps_the_others_from_vanishing() {
    let mut table = Table::new(Limits { max_leases: 2, ..limits() });
    [BOB, KeyHash(3)].into_iter().for_each(|key| table.miss(key, 1));
    table.miss(ALICE, 2); // Not granted.
    [BOB, KeyHash(3)].into_iter().for_each(|key| assert_eq!(table.set(key, 1), Verdict::Fresh));
    table.now += 1_000;
    table.miss(ALICE, 1);
    assert_eq!(table.set(ALICE, 1), UNPROVEN, "it may be the fill of either");
    assert_eq!(table.fence.size().leases, 1);
    table.write(ALICE, 105, 200);
    table.settle(200, "106:106:");
    table.now += 4_999;
    table.miss(ALICE, 3);
    assert_eq!(table.set(ALICE, 3), OLDER_MISS);
    table.now += 1;
    table.fence.sweep(table.now);
    table.miss(ALICE, 3);
    assert_eq!(table.set(ALICE, 3), Verdict::Fresh);
}

#[test]
fn no_miss_counts_while_a_predecessors_may_be_outstanding() {
    let mut table = Table::new(limits());
    let until = table.now + 5_000;
    table.fence.distrust_leases(until);
    table.fence.distrust_leases(until - 1); // Never shorter.
    table.miss(ALICE, 1);
    assert_eq!(table.set(ALICE, 1), PREDECESSOR);
    assert_eq!(table.set(ALICE, 1), UNPROVEN, "used up");
    assert_eq!(table.asof_lsn(ALICE, 100), Verdict::Fresh, "other evidence counts");
    table.fence.restart(Lsn(100));
    table.settle(100, "100:100:");
    table.miss(ALICE, 1);
    assert_eq!(table.set(ALICE, 1), PREDECESSOR, "after a restart, too");
    table.write(ALICE, 105, 200);
    table.settle(200, "106:106:");
    table.miss(ALICE, 1);
    assert_eq!(table.set(ALICE, 1), no_evidence(200));
    // A miss that was answered meanwhile counts afterwards.
    table.now += 4_999;
    table.miss(BOB, 1);
    assert_eq!(table.set(BOB, 1), PREDECESSOR);
    table.miss(BOB, 2);
    table.now += 1;
    assert_eq!(table.set(BOB, 2), Verdict::Fresh);
}

#[test]
fn a_predecessors_fill_does_not_make_a_miss_vanish() {
    let mut table = Table::new(limits());
    table.fence.distrust_leases(table.now + 2_000);
    written_between(
        &table,
        || {
            table.miss(ALICE, 1);
            assert_eq!(table.set(ALICE, 1), PREDECESSOR, "the predecessor's");
        },
        || (),
    );
    table.now += 2_000;
    table.miss(ALICE, 2);
    assert_eq!(table.set(ALICE, 2), OLDER_MISS, "it may be that of connection 1's miss");
}

#[test]
fn a_refused_part_takes_the_rest_with_it_whatever_proves_that() {
    // 105 and 106 are remembered by position only, and at first nothing polled has covered them.
    let table = Table::new(limits());
    for n in 0..10 {
        table.write(ALICE, 105 + n, 200 + n);
    }
    let evidence = Some(&Evidence::Snapshot(snapshot("120:120:")));
    let add = || table.judge(ALICE, &Fill { evidence, part: true, ..table.fill(1) });
    table.miss(ALICE, 1);
    assert_eq!(add(), superseded(201));
    table.settle(209, "115:115:");
    assert_eq!(add(), TORN, "the value would lack its first part");
    table.miss(ALICE, 1);
    assert_eq!(add(), Verdict::Fresh, "a new miss begins a new value");
}
