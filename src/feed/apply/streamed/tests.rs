//! Transactions that are sent while they run, without a database.

use super::super::tests::{Bytes, applier, insert, keys, layout, message, table, transaction, truncate};
use super::*;
use crate::feed::job::Invalidation;
use crate::feed::state::BROKEN_BY_STREAM;

const TOP: u32 = 800;
const OTHER: u32 = 900;
const GUARD: GuardId = GuardId(0);

/// The same message inside a block, as a subtransaction's.
fn of(xid: u32, message: &[u8]) -> Vec<u8> {
    [&message[..1], &xid.to_be_bytes(), &message[1..]].concat()
}

fn start(xid: u32, is_first: bool) -> Vec<u8> {
    Bytes(vec![b'S']).u32(xid).u8(u8::from(is_first)).0
}

fn stop() -> Vec<u8> {
    vec![b'E']
}

/// Its record is from 8 before its end.
fn commit(xid: u32, end: u64) -> Vec<u8> {
    Bytes(vec![b'c']).u32(xid).u8(0).u64(end - 8).u64(end).u64(1_000_000).0
}

fn abort(top: u32, xid: u32) -> Vec<u8> {
    Bytes(vec![b'A']).u32(top).u32(xid).0
}

/// All that comes of these messages.
fn send(applier: &mut Applier, messages: &[Vec<u8>]) -> Vec<Applied> {
    let mut all = Vec::new();
    for message in messages {
        all.push(applier.receive(message).expect("a message"));
        while let Some(more) = applier.proceed() {
            all.push(more);
        }
    }
    all.retain(|applied| *applied != Applied::Nothing);
    all
}

/// A block of a transaction: nothing comes of it.
fn block(applier: &mut Applier, top: u32, is_first: bool, messages: &[Vec<u8>]) {
    let messages = [&[start(top, is_first)], messages, &[stop()]].concat();
    assert_eq!(send(applier, &messages), []);
}

/// What comes of a commit in one piece: its keys, and the guards that go as a whole.
fn committed(applier: &mut Applier, xid: u32, end: u64) -> (Vec<String>, Vec<GuardId>) {
    let found = send(applier, &[commit(xid, end)]);
    let [Applied::Commit(Invalidation { end_lsn, written_lsn, keys, truncated, .. })] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!((end_lsn.0, written_lsn.0), (end, end));
    let mut names: Vec<String> =
        keys.iter().map(|key| String::from_utf8(key.name.clone()).expect("UTF-8")).collect();
    names.sort();
    (names, truncated.clone())
}

#[test]
fn nothing_comes_of_it_before_its_commit_and_others_pass_meanwhile() {
    let mut applier = applier();
    block(&mut applier, TOP, true, &[of(TOP, &layout()), of(TOP, &insert(&["1", "a"]))]);
    assert!(!applier.in_transaction() && applier.arriving_since().is_none(), "no lag");
    assert_eq!(keys(&mut applier, &[insert(&["5", "-"])]), ["user:5", "users:all"]);
    block(&mut applier, OTHER, true, &[of(OTHER, &layout()), of(OTHER, &insert(&["2", "-"]))]);
    block(&mut applier, TOP, false, &[of(TOP, &insert(&["3", "-"])), of(TOP, &message("cachefence", "k"))]);
    assert!(applier.state.in_progress_bytes.load(Ordering::Relaxed) > 0);
    let (other, _) = committed(&mut applier, OTHER, 600);
    assert_eq!(other, ["user:2", "users:all"]);
    let (own, whole) = committed(&mut applier, TOP, 700);
    assert_eq!(own, ["k", "user:1", "user:3", "users:all", "users:by-email:a"]);
    assert_eq!((whole.len(), applier.state.in_progress_bytes.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn what_was_rolled_back_is_dropped_and_nothing_else() {
    let mut applier = applier();
    let rows = [
        of(TOP, &layout()),
        of(TOP, &insert(&["1", "-"])),
        of(TOP + 1, &insert(&["1", "a"])),
        of(TOP + 1, &truncate()),
        of(TOP + 2, &insert(&["2", "-"])),
        of(TOP + 3, &message("cachefence", "gone")),
        of(TOP + 2, &message("cachefence", "kept")),
    ];
    block(&mut applier, TOP, true, &rows);
    assert_eq!(send(&mut applier, &[abort(TOP, TOP + 1), abort(TOP, TOP + 3)]), []);
    assert_eq!(committed(&mut applier, TOP, 600).0, ["kept", "user:1", "user:2", "users:all"]);

    block(&mut applier, TOP, true, &rows);
    assert_eq!(send(&mut applier, &[abort(TOP, TOP), commit(TOP, 700)]), [Applied::Position(Lsn(700))]);
    assert_eq!(applier.state.in_progress_bytes.load(Ordering::Relaxed), 0);
    // Without anything that is guarded.
    block(&mut applier, TOP, true, &[]);
    assert_eq!(send(&mut applier, &[commit(TOP, 800)]), [Applied::Position(Lsn(800))]);
}

#[test]
fn truncate_takes_the_guard_as_a_whole_at_the_commit() {
    let mut applier = applier();
    let rows = [of(TOP, &layout()), of(TOP, &insert(&["1", "-"])), of(TOP + 1, &truncate())];
    block(&mut applier, TOP, true, &rows);
    assert_eq!(committed(&mut applier, TOP, 600), (Vec::new(), vec![GUARD]));
}

/// Its layout is no other's before it commits, and everyone's after: the server does not send it again.
#[test]
fn a_layout_holds_for_its_transaction_until_that_commits() {
    let mut applier = applier();
    assert_eq!(keys(&mut applier, &[insert(&["1", "a"])]).len(), 3);
    let swapped = Bytes::relation(16_395, "users", &[("email", true, 25), ("id", true, 23)]);
    block(&mut applier, TOP, true, &[of(TOP, &swapped), of(TOP, &insert(&["a", "1"]))]);
    let outside = transaction(&mut applier, 500, &[insert(&["2", "b"])]).expect("an invalidation");
    assert_eq!(outside.keys[0].name, b"user:2");
    assert!(committed(&mut applier, TOP, 600).0.contains(&"user:1".to_owned()));
    let after = transaction(&mut applier, 700, &[insert(&["c", "3"])]).expect("an invalidation");
    assert_eq!(after.keys[0].name, b"user:3");

    // Of one that is rolled back, nothing stays: neither of all of it nor of a subtransaction.
    for xid in [TOP, TOP + 1] {
        block(&mut applier, TOP, true, &[of(xid, &layout()), of(xid, &insert(&["4", "d"]))]);
        send(&mut applier, &[abort(TOP, xid)]);
        if xid != TOP {
            send(&mut applier, &[commit(TOP, 800)]);
        }
        let after = transaction(&mut applier, 900, &[insert(&["e", "5"])]).expect("an invalidation");
        assert_eq!(after.keys[0].name, b"user:5");
    }

    // Nor does one come back that others have had sent anew since.
    block(&mut applier, TOP, true, &[of(TOP, &swapped), of(TOP, &insert(&["f", "6"]))]);
    assert_eq!(keys(&mut applier, &[insert(&["7", "-"])]), ["user:7", "users:all"]);
    send(&mut applier, &[commit(TOP, 1_000)]);
    let after = transaction(&mut applier, 1_100, &[insert(&["8", "-"])]).expect("an invalidation");
    assert_eq!(after.keys[0].name, b"user:8");
}

#[test]
fn a_guard_breaks_when_the_transaction_that_breaks_it_commits() {
    let without = Bytes::relation(16_395, "users", &[("id", true, 23)]);
    let renamed = Bytes::relation(16_395, "people", &[("id", true, 23), ("email", true, 25)]);
    for (layout_then, row) in [(without, insert(&["2"])), (renamed, insert(&["2", "-"]))] {
        let is_broken = |applier: &Applier| applier.state.is_broken_by(GUARD, BROKEN_BY_STREAM);
        let mut applier = applier();
        assert_eq!(keys(&mut applier, &[insert(&["1", "-"])]).len(), 2);
        block(&mut applier, TOP, true, &[of(TOP, &layout_then), of(TOP, &row)]);
        block(&mut applier, OTHER, true, &[of(OTHER + 1, &layout_then), of(OTHER + 1, &row)]);
        assert!(!is_broken(&applier));
        let meanwhile = transaction(&mut applier, 500, &[insert(&["3", "-"])]).expect("an invalidation");
        assert_eq!((meanwhile.keys.len(), meanwhile.truncated.len()), (2, 0));
        // Altered, and rolled back.
        send(&mut applier, &[abort(OTHER, OTHER + 1)]);
        block(&mut applier, OTHER, false, &[of(OTHER, &layout()), of(OTHER, &insert(&["4", "-"]))]);
        assert_eq!(committed(&mut applier, OTHER, 550).0, ["user:4", "users:all"]);
        assert!(!is_broken(&applier));
        // There and back in one transaction: what changed meanwhile is not known, but nothing is broken.
        let back = [of(OTHER, &layout_then), of(OTHER, &row), of(OTHER, &layout())];
        block(&mut applier, OTHER, true, &back);
        assert_eq!(committed(&mut applier, OTHER, 580), (Vec::new(), vec![GUARD]));
        assert!(!is_broken(&applier));

        // It came before that last one: sent again, as it is after an invalidation.
        block(&mut applier, TOP, false, &[of(TOP, &layout_then)]);
        assert_eq!(committed(&mut applier, TOP, 600), (Vec::new(), vec![GUARD]));
        assert!(is_broken(&applier));
        block(&mut applier, TOP, true, &[of(TOP, &layout()), of(TOP, &insert(&["1", "-"]))]);
        assert!(is_broken(&applier));
        assert_eq!(committed(&mut applier, TOP, 700), (Vec::new(), vec![GUARD]));
        assert!(!is_broken(&applier));
    }
}

/// The stream has not described it yet when it comes under another name: the catalog knows which table it is.
#[test]
fn a_table_that_comes_first_under_another_name_goes_as_a_whole() {
    let mut applier = applier();
    applier.restart(vec![table(&[("id", 23), ("email", 25)], &[])]);
    let renamed = Bytes::relation(16_395, "people", &[("id", true, 23), ("email", true, 25)]);
    let back = [of(TOP, &renamed), of(TOP, &insert(&["1", "-"])), of(TOP, &layout())];
    block(&mut applier, TOP, true, &back);
    assert_eq!(committed(&mut applier, TOP, 500), (Vec::new(), vec![GUARD]));
    assert!(!applier.state.is_broken(GUARD));
}

/// Part by part, the next one when it is asked for: never more than one is held.
#[test]
fn a_large_one_is_handed_on_in_parts_after_its_commit() {
    let mut applier = applier();
    applier.part_keys = 100;
    let rows: Vec<Vec<u8>> = (0..1_000).map(|n| of(TOP, &insert(&[&n.to_string(), "-"]))).collect();
    block(&mut applier, TOP, true, &[&[of(TOP, &layout())], &rows[..]].concat());
    let mut applied = Some(applier.receive(&commit(TOP, 500)).expect("a message"));
    let mut parts = Vec::new();
    while let Some(Applied::Commit(part)) = applied {
        let ended = !part.is_part();
        assert!(part.keys.len() <= 100 && applier.in_transaction() != ended);
        assert_eq!(part.end_lsn, Lsn(if ended { 500 } else { 492 }));
        parts.push(part);
        applied = applier.proceed();
    }
    assert_eq!(applied, None);
    assert!(parts.last().is_some_and(|part| !part.is_part()));
    let mut keys: Vec<_> = parts.iter().flat_map(|part| &part.keys).collect();
    assert_eq!(parts.len(), 11);
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 1_001);
}

/// Its guards go as a whole then, and no other transaction's.
#[test]
fn beyond_the_bound_the_largest_one_gives_its_keys_up() {
    let mut applier = applier();
    let small = [of(OTHER, &layout()), of(OTHER, &insert(&["1", "-"]))];
    block(&mut applier, OTHER, true, &small);
    applier.in_progress.most_bytes = 1 << 20;
    let rows: Vec<Vec<u8>> = (0..50_000).map(|n| of(TOP, &insert(&[&n.to_string(), "-"]))).collect();
    block(&mut applier, TOP, true, &[&[of(TOP, &layout())], &rows[..]].concat());
    assert!(applier.in_progress.bytes <= 1 << 20);
    block(&mut applier, TOP, false, &[of(TOP, &message("cachefence", "kept"))]);
    assert_eq!(committed(&mut applier, TOP, 600), (vec!["kept".to_owned()], vec![GUARD]));
    assert_eq!(committed(&mut applier, OTHER, 700).0, ["user:1", "users:all"]);
    assert_eq!(applier.in_progress.bytes, 0);
}

#[test]
fn names_that_cannot_be_held_end_the_stream() {
    let mut applier = applier();
    applier.in_progress.most_bytes = 1 << 20;
    assert_eq!(send(&mut applier, &[start(TOP, true)]), []);
    let names = (0..200_000).map(|n| of(TOP, &message("cachefence", &format!("report:{n}"))));
    let ended = names.take_while(|name| applier.receive(name).expect("a message") != Applied::NoRoom).count();
    assert!((1_000..200_000).contains(&ended), "{ended}");
    applier.restart(Vec::new());
    assert_eq!((applier.in_progress.bytes, applier.in_block()), (0, false));
}

#[test]
fn a_look_at_the_catalog_is_taken_in_at_the_commit() {
    const TICKET: &str = "0123456789abcdef";
    let mut applier = applier();
    let look = [
        of(TOP, &message("cachefence:table", "public.users")),
        of(TOP, &message("cachefence:table", TICKET)),
    ];
    block(&mut applier, TOP, true, &look);
    applier.state.set_found(TICKET, Vec::new());
    assert_eq!(keys(&mut applier, &[insert(&["5", "-"])]), ["user:5", "users:all"]);
    assert!(
        applier.state.take_found(TICKET.as_bytes()).is_some_and(|found| found.is_empty()),
        "not taken in before"
    );
    applier.state.set_found(TICKET, Vec::new());
    assert_eq!(committed(&mut applier, TOP, 600), (Vec::new(), vec![GUARD]));
    assert_eq!(applier.state.take_found(TICKET.as_bytes()), None);
}
