//! Snapshot and LSN evidence against a key's remembered writes.

use super::*;

#[test]
fn an_lsn_is_fresh_from_the_end_of_the_last_write_on() {
    let table = Table::new(limits());
    table.write(ALICE, 100, 200);
    assert_eq!(table.asof_lsn(ALICE, 199), superseded(200));
    assert_eq!(table.asof_lsn(ALICE, 200), Verdict::Fresh);
    table.write(ALICE, 101, 300);
    assert_eq!(table.asof_lsn(ALICE, 299), superseded(300));
    assert_eq!(table.asof_lsn(ALICE, 300), Verdict::Fresh);
    // Another key's write says nothing of this one.
    assert_eq!(table.asof_lsn(BOB, 150), Verdict::Fresh);
}

#[test]
fn a_snapshot_is_fresh_when_it_sees_the_write() {
    let table = Table::new(limits());
    table.write(ALICE, 105, 200);
    assert_eq!(table.asof(ALICE, "105:105:"), superseded(200), "not begun");
    assert_eq!(table.asof(ALICE, "105:108:105"), superseded(200), "in progress");
    assert_eq!(table.asof(ALICE, "103:108:103"), Verdict::Fresh, "only another one is in progress");
    assert_eq!(table.asof(ALICE, "106:106:"), Verdict::Fresh);
}

#[test]
fn each_unsettled_write_of_a_key_must_be_seen() {
    // F5: 106 committed after 105 and became visible before it.
    let table = Table::new(limits());
    table.write(ALICE, 105, 200);
    table.write(ALICE, 106, 300);
    assert_eq!(table.asof(ALICE, "105:107:105"), superseded(200));
    assert_eq!(table.asof(ALICE, "106:107:106"), superseded(300));
    assert_eq!(table.asof(ALICE, "107:107:"), Verdict::Fresh);
}

#[test]
fn eight_writes_are_remembered_each_by_its_xid() {
    let table = Table::new(limits());
    for n in 0..8 {
        table.write(ALICE, 110 + n, 200 + n);
    }
    for n in 0..8 {
        let xid = 110 + n;
        assert_eq!(table.asof(ALICE, &format!("{xid}:120:{xid}")), superseded(200 + n));
    }
    // No poll has seen them, and none is needed.
    assert_eq!(table.asof(ALICE, "118:118:"), Verdict::Fresh);
}

#[test]
fn beyond_eight_writes_a_polled_snapshot_that_covers_the_rest_must_be_contained() {
    let table = Table::new(limits());
    for n in 0..10 {
        table.write(ALICE, 110 + n, 200 + n);
    }
    // 110 and 111 are remembered by position only, and nothing has covered that position yet.
    assert_eq!(table.asof(ALICE, "120:120:"), superseded(201));
    // A poll that has seen no more than the first of them does not cover both.
    table.settle(200, "111:120:111,112");
    assert_eq!(table.asof(ALICE, "120:120:"), superseded(201));
    table.settle(201, "112:125:112,124");
    assert_eq!(table.asof(ALICE, "120:120:"), superseded(201), "true, but less than what was polled");
    assert_eq!(table.asof(ALICE, "124:125:124"), Verdict::Fresh);
    assert_eq!(table.asof(ALICE, "111:125:111"), superseded(201));
    // LSNs need no cover.
    assert_eq!(table.asof_lsn(ALICE, 209), Verdict::Fresh);
    assert_eq!(table.asof_lsn(ALICE, 208), superseded(209));
}

#[test]
fn a_write_that_is_sent_again_changes_nothing() {
    let table = Table::new(limits());
    table.write(ALICE, 105, 200);
    table.write(ALICE, 106, 300);
    let bytes = table.fence.size();
    table.write(ALICE, 105, 200);
    table.write(ALICE, 106, 300);
    assert_eq!(table.fence.size(), bytes);
    assert_eq!(table.asof_lsn(ALICE, 299), superseded(300));
    assert_eq!(table.asof(ALICE, "105:107:105"), superseded(200));
    assert_eq!(table.asof(ALICE, "107:107:"), Verdict::Fresh);
}

#[test]
fn a_fill_without_evidence_is_stale_where_a_write_is_remembered_and_unproven_elsewhere() {
    let table = Table::new(limits());
    table.write(ALICE, 105, 200);
    assert_eq!(table.set(ALICE, 1), no_evidence(200));
    assert_eq!(table.set(BOB, 1), UNPROVEN);
}

#[test]
fn a_guard_written_as_a_whole_counts_for_each_of_its_keys() {
    let table = Table::new(limits());
    table.write(ALICE, 105, 200);
    table.write_guard(1, 106, 300);
    let judge = |key, guards: &[GuardId], evidence: Option<&Evidence>| {
        table.judge(key, &Fill { guards, evidence, ..table.fill(999) })
    };
    let lsn = |lsn| Evidence::Lsn(Lsn(lsn));
    let snapshot = |text| Evidence::Snapshot(snapshot(text));
    for key in [ALICE, BOB] {
        for guards in [&[GuardId(1)][..], &[GuardId(0), GuardId(1)]] {
            assert_eq!(judge(key, guards, Some(&lsn(299))), superseded(300));
            assert_eq!(judge(key, guards, Some(&lsn(300))), Verdict::Fresh);
            assert_eq!(judge(key, guards, Some(&snapshot("106:107:106"))), superseded(300));
            assert_eq!(judge(key, guards, Some(&snapshot("107:107:"))), Verdict::Fresh);
            assert_eq!(judge(key, guards, None), no_evidence(300));
        }
        assert_eq!(judge(key, &[GuardId(0)], Some(&lsn(299))), Verdict::Fresh, "another guard");
    }
    assert_eq!(judge(BOB, &[GuardId(0)], None), UNPROVEN);
    // A lease is judged against it like an LSN.
    table.miss(BOB, 1);
    assert_eq!(table.judge(BOB, &Fill { guards: &[GuardId(1)], ..table.fill(1) }), superseded(300));
    table.settle(300, "107:107:");
    table.miss(BOB, 1);
    assert_eq!(table.judge(BOB, &Fill { guards: &[GuardId(1)], ..table.fill(1) }), Verdict::Fresh);
}

#[test]
fn keys_of_one_hash_share_their_history() {
    let table = Table::new(limits());
    table.write(ALICE, 105, 200);
    table.write(ALICE, 106, 300);
    // The first of the two writes was of the other key; refusing is all that can come of it.
    assert_eq!(table.asof(ALICE, "106:106:"), superseded(300));
}

#[test]
fn a_stale_verdict_names_the_position_to_reach() {
    let table = Table::new(limits());
    table.write(ALICE, 105, 200);
    let Verdict::Stale(stale) = table.asof_lsn(ALICE, 150) else { panic!("fresh") };
    assert_eq!(stale.position(), Some(Lsn(200)));
    assert_eq!(Stale::Torn.position(), None);
}

/// What a guard that was added should have fenced before it began is not known: no xid stands for it, only a snapshot that
/// was polled when all of it was visible.
#[test]
fn a_guard_that_begins_asks_for_all_that_was_before() {
    let table = Table::new(limits());
    table.miss(BOB, 1);
    table.fence.begin_guards(&[GuardId(1)], Lsn(300));
    let judge = |guards: &[GuardId], evidence: Option<&Evidence>| {
        table.judge(BOB, &Fill { guards, evidence, ..table.fill(999) })
    };
    let asof = |lsn| Evidence::Lsn(Lsn(lsn));
    let snapshot = |text| Evidence::Snapshot(snapshot(text));
    let own: &[GuardId] = &[GuardId(1)];
    assert_eq!(table.judge(BOB, &Fill { guards: own, ..table.fill(1) }), superseded(300), "an older lease");
    assert_eq!(judge(own, Some(&asof(299))), superseded(300));
    assert_eq!(judge(own, Some(&asof(300))), Verdict::Fresh);
    assert_eq!(judge(own, None), no_evidence(300));
    assert_eq!(judge(own, Some(&snapshot("107:107:"))), superseded(300), "nothing covers it yet");
    table.settle(300, "106:108:106");
    assert_eq!(judge(own, Some(&snapshot("105:108:105"))), superseded(300), "105 may have written");
    assert_eq!(judge(own, Some(&snapshot("106:108:106"))), Verdict::Fresh);
    assert_eq!(judge(&[GuardId(0)], Some(&asof(100))), Verdict::Fresh, "another guard");
}
