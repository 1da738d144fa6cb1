//! The floor: what bounded memory costs, and what it must not cost.

use super::past::Past;
use super::*;

#[test]
fn nothing_is_fresh_before_the_start() {
    let fence = Fence::new(limits());
    let table = Table { fence, now: 1_000, next: Cell::new(1) };
    table.settle(500, "500:500:");
    assert_eq!(table.asof_lsn(ALICE, 600), below_floor(u64::MAX));
    assert_eq!(table.asof(ALICE, "600:600:"), below_floor(u64::MAX));
    table.miss(ALICE, 1);
    assert_eq!(table.set(ALICE, 1), below_floor(u64::MAX));
    assert_eq!(table.set(BOB, 1), below_floor(u64::MAX), "not even unproven: there may be a write");
}

#[test]
fn evidence_from_below_the_start_is_stale_not_unproven() {
    let table = Table::new(limits());
    assert_eq!(table.asof_lsn(ALICE, 99), below_floor(100));
    assert_eq!(table.asof_lsn(ALICE, 100), Verdict::Fresh);
    assert_eq!(table.asof(ALICE, "99:99:"), below_floor(100));
    assert_eq!(table.asof(ALICE, "98:100:98"), below_floor(100));
    assert_eq!(table.asof(ALICE, "100:100:"), Verdict::Fresh);
}

#[test]
fn a_snapshot_passes_the_floor_by_inclusion() {
    // Transaction 70 is open all the time; 99 was, when the floor's snapshot was taken.
    let table = Table { fence: Fence::new(limits()), now: 1_000_000, next: Cell::new(1) };
    table.fence.restart(Lsn(100));
    assert_eq!(table.asof(ALICE, "100:100:"), below_floor(100), "nothing has been polled");
    table.settle(100, "70:100:70,99");
    assert_eq!(table.asof(ALICE, "70:100:70,99"), Verdict::Fresh);
    assert_eq!(table.asof(ALICE, "70:130:70"), Verdict::Fresh, "a long transaction does not spoil it");
    assert_eq!(table.asof(ALICE, "70:130:70,120"), Verdict::Fresh);
    assert_eq!(table.asof(ALICE, "100:100:"), Verdict::Fresh);
    assert_eq!(table.asof(ALICE, "70:130:70,98"), below_floor(100), "98 was seen");
    assert_eq!(table.asof(ALICE, "70:99:70"), below_floor(100), "taken before");
}

#[test]
fn settled_writes_are_dropped_after_history_and_raise_the_floor() {
    let mut table = Table::new(limits());
    table.write(ALICE, 105, 200);
    table.write(BOB, 106, 300);
    table.settle(200, "90:106:90");
    table.now += 10_000;
    table.settle(300, "90:107:90");
    table.now += 49_999;
    table.settle(300, "90:107:90");
    table.fence.sweep(table.now);
    assert_eq!((table.fence.floor(), table.fence.size().keys), (Lsn(100), 2));
    table.now += 1;
    table.settle(300, "90:107:90");
    assert_eq!(table.fence.floor(), Lsn(200));
    // The floor holds with or without the history that it stands for.
    for _ in 0..2 {
        assert_eq!(table.asof_lsn(ALICE, 199), below_floor(200));
        assert_eq!(table.asof_lsn(ALICE, 200), Verdict::Fresh);
        assert_eq!(table.asof(ALICE, "90:105:90"), below_floor(200));
        assert_eq!(table.asof(ALICE, "90:106:90"), Verdict::Fresh);
        assert_eq!(table.asof(ALICE, "90:110:90"), Verdict::Fresh);
        assert_eq!(table.set(ALICE, 1), UNPROVEN, "its write is forgotten");
        assert_eq!(table.set(BOB, 1), no_evidence(300));
        assert_eq!(table.asof(BOB, "90:106:90"), superseded(300));
        table.fence.sweep(table.now);
        assert_eq!(table.fence.size().keys, 1);
    }
}

#[test]
fn unsettled_writes_are_kept_whatever_their_age() {
    let mut table = Table::new(limits());
    table.write(ALICE, 105, 200);
    for _ in 0..100 {
        table.now += 10_000;
        table.settle(199, "105:110:105");
        table.fence.sweep(table.now);
    }
    assert_eq!(table.fence.floor(), Lsn(199));
    assert_eq!(table.asof_lsn(ALICE, 199), superseded(200));
    assert_eq!(table.asof(ALICE, "105:110:105"), superseded(200));
    assert_eq!(table.set(ALICE, 1), no_evidence(200));
}

#[test]
fn the_floor_stays_where_it_was_when_a_source_goes_back() {
    let mut table = Table::new(limits());
    table.write(ALICE, 105, 200);
    table.settle(200, "106:106:");
    table.now += 30_000;
    table.fence.settle(&Settled { lsn: Lsn(150), sources: Some(2), ..polled(200, "107:107:") }, table.now);
    table.now += 30_000;
    table.settle(150, "108:108:");
    assert_eq!(table.fence.floor(), Lsn(200));
}

#[test]
fn room_is_made_by_dropping_the_oldest_writes() {
    let table = Table::new(Limits { max_keys: 32, ..limits() });
    for n in 0..200 {
        table.write(KeyHash(1_000 + n), 1_000 + n, 1_000 + n);
        assert!(table.fence.size().keys <= 32, "never more than there is room for");
    }
    table.fence.sweep(table.now);
    let (floor, keys) = (table.fence.floor().0, table.fence.size().keys);
    assert!((28..=32).contains(&keys), "no more is dropped than needed: {keys} keys are left");
    assert_eq!(keys as u64, 1_199 - floor, "the floor stands for what was dropped, and no more");
    for n in 0..200 {
        let (key, lsn) = (KeyHash(1_000 + n), 1_000 + n);
        let stale = if lsn > floor { superseded(lsn) } else { below_floor(floor) };
        assert_eq!(table.asof_lsn(key, lsn.max(floor) - 1), stale);
        assert_eq!(table.asof_lsn(key, lsn.max(floor)), Verdict::Fresh);
        // The floor is ahead of everything polled, so no snapshot is known to be past it.
        assert_eq!(table.asof(key, "2000:2000:"), below_floor(floor));
    }
    table.settle(1_199, "1200:1200:");
    assert_eq!(table.asof(KeyHash(1_000), "1200:1200:"), Verdict::Fresh);
    assert_eq!(table.asof(KeyHash(1_000), "1199:1199:"), below_floor(floor));
}

#[test]
fn history_that_went_by_age_leaves_nothing_to_cut() {
    let mut table = Table::new(Limits { max_keys: 16, history: 10, lease_ttl: 10, ..limits() });
    let mut bytes = Vec::new();
    for n in 0..1_000 {
        table.write(KeyHash(n), 105 + n, 200 + n);
        table.settle(200 + n, "90:90:");
        table.now += 5;
        table.fence.sweep(table.now);
        bytes.push(table.fence.size().bytes);
    }
    assert!(bytes[999] <= bytes[100], "{} and later {} bytes", bytes[100], bytes[999]);
    // None of this was dropped for room: the floor is just where age has put it.
    assert!((1_195..1_199).contains(&table.fence.floor().0), "{}", table.fence.floor());
}

#[test]
fn one_transaction_larger_than_the_table_leaves_it_usable() {
    let table = Table::new(Limits { max_keys: 16, ..limits() });
    for n in 0..1_000 {
        table.write(KeyHash(n), 105, 500);
    }
    table.fence.sweep(table.now);
    assert!(table.fence.size().keys <= 16);
    for n in 0..1_000 {
        assert!(matches!(table.asof_lsn(KeyHash(n), 499), Verdict::Stale(_)));
        assert_eq!(table.asof_lsn(KeyHash(n), 500), Verdict::Fresh);
    }
}

#[test]
fn a_write_that_the_floor_has_passed_takes_no_room() {
    let table = Table::new(Limits { max_keys: 16, ..limits() });
    for n in 0..10 {
        table.write(KeyHash(n), 105 + n, 200 + n);
    }
    // Sent again from before the floor.
    for n in 20..100 {
        table.write(KeyHash(n), n - 20, n);
    }
    assert_eq!((table.fence.size().keys, table.fence.floor()), (10, Lsn(100)));
}

#[test]
fn a_restart_forgets_everything_and_starts_over_lower() {
    // A gap: the new history may be of another system, with lower positions.
    let mut table = Table::new(Limits { history: 10, lease_ttl: 10, ..limits() });
    table.write(ALICE, 105, 20_000);
    table.write_guard(0, 106, 30_000);
    let fill = table.in_flight(BOB);
    table.settle(30_000, "200:200:");
    table.now += 100;
    table.miss(ALICE, 1);
    table.settle(30_000, "200:200:");
    assert_eq!(table.fence.floor(), Lsn(30_000));
    table.fence.restart(Lsn(700));
    assert_eq!(table.fence.floor(), Lsn(700));
    assert_eq!(table.fence.size().keys, 0);
    assert!(table.fence.is_in_flight(BOB, fill), "Redis may still execute it");
    assert_eq!(table.asof_lsn(ALICE, 699), below_floor(700));
    assert_eq!(table.asof_lsn(ALICE, 700), Verdict::Fresh);
    assert_eq!(table.asof(ALICE, "300:300:"), below_floor(700), "the old polls say nothing");
    assert_eq!(table.set(ALICE, 1), LOST, "the old lease is worth nothing");
    table.fence.settle(&Settled { sources: Some(2), ..polled(700, "150:150:") }, table.now);
    assert_eq!(table.asof(ALICE, "150:150:"), Verdict::Fresh);
    table.miss(ALICE, 1);
    table.write(ALICE, 150, 710);
    assert_eq!(table.set(ALICE, 1), superseded(710));
}

#[test]
fn many_polls_are_thinned_out_but_still_answer_safely() {
    let mut past = Past::default();
    let at = |n: u64| 10 * n;
    for n in 1..=10_000 {
        past.push(&polled(n, &format!("{n}:{n}:")), at(n));
        // Nothing new is not remembered again.
        past.push(&polled(n, &format!("{n}:{n}:")), at(n) + 5);
    }
    for n in (1..=10_000).step_by(7) {
        let cover = past.cover(Lsn(n)).expect("a poll that covers it");
        assert!(cover.xmax().0 >= n, "never a snapshot that has not seen it");
        assert!(past.settled_before(at(n)).is_none_or(|lsn| lsn.0 <= n), "never earlier than it was");
        assert!(past.settled_at(Lsn(n)) >= Some(at(n)));
    }
    // The newer ones are all there.
    for n in 9_000..=10_000 {
        assert_eq!(past.cover(Lsn(n)).expect("a poll").xmax(), Xid(n));
        assert_eq!(past.settled_before(at(n) + 9), Some(Lsn(n)));
        assert_eq!(past.settled_at(Lsn(n)), Some(at(n)));
    }
    past.forget(Lsn(9_500));
    assert_eq!(past.cover(Lsn(9_500)).expect("the poll that covers the floor").xmax(), Xid(9_500));
    past.forget(Lsn(20_000));
    assert_eq!(past.settled_before(at(20_000)), Some(Lsn(10_000)), "the last poll stays");
    assert_eq!(past.cover(Lsn(20_000)), None);
}

#[test]
fn how_long_old_data_has_been_outdated() {
    let mut table = Table::new(limits());
    table.write(ALICE, 105, 200);
    assert_eq!(table.fence.outdated_for(Lsn(200), table.now), 0, "not settled: a source may still show it");
    table.settle(200, "106:106:");
    table.now += 1_234;
    assert_eq!(table.fence.outdated_for(Lsn(200), table.now), 1_234);
}

/// A promoted standby gives positions and transaction ids out again. Whoever brings evidence along may have it from before,
/// and its numbers can be larger than any there are now.
#[test]
fn evidence_of_a_history_that_was_abandoned_does_not_count() {
    let mut table = Table::new(limits());
    table.settle(300, "300:300:");
    assert_eq!(table.asof(ALICE, "300:300:"), Verdict::Fresh);
    // The new history begins below.
    table.fence.restart(Lsn(200));
    table.fence.distrust_evidence(table.now + 5_000);
    table.settle(210, "210:210:");
    table.write(BOB, 205, 205);
    for key in [ALICE, BOB] {
        assert_eq!(table.asof(key, "300:300:"), Verdict::Stale(Stale::Abandoned));
        assert_eq!(table.asof_lsn(key, 300), Verdict::Stale(Stale::Abandoned));
    }
    // Misses are of this process, and of this history.
    table.miss(ALICE, 1);
    assert_eq!(table.set(ALICE, 1), Verdict::Fresh);
    table.now += 5_000;
    assert_eq!(table.asof(BOB, "211:211:"), Verdict::Fresh);
}
