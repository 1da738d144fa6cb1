//! Rows to keys, without a database.

use std::time::Instant;

use super::*;
use crate::fence::{self, Fence, Limits, SourceKind, Version};
use crate::pg::pgoutput::decode;
use crate::position::Xid;

/// Builds pgoutput messages.
pub(super) struct Bytes(pub Vec<u8>);

impl Bytes {
    pub fn begin(xid: u32) -> Vec<u8> {
        Bytes(vec![b'B']).u64(100).u64(0).u32(xid).0
    }

    pub fn commit(end: u64) -> Vec<u8> {
        Bytes(vec![b'C', 0]).u64(end - 8).u64(end).u64(1_000_000).0
    }

    /// `columns`: name, in the identity, type.
    pub fn relation(oid: u32, name: &str, columns: &[(&str, bool, u32)]) -> Vec<u8> {
        let identity = if columns.iter().all(|(_, key, _)| *key) { b'f' } else { b'd' };
        let head =
            Bytes(vec![b'R']).u32(oid).text("public").text(name).u8(identity).u16(columns.len() as u16);
        columns
            .iter()
            .fold(head, |bytes, (name, key, oid)| bytes.u8(u8::from(*key)).text(name).u32(*oid).u32(0))
            .0
    }

    pub fn u8(mut self, n: u8) -> Self {
        self.0.push(n);
        self
    }

    pub fn u16(mut self, n: u16) -> Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    pub fn u32(mut self, n: u32) -> Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    pub fn u64(mut self, n: u64) -> Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    pub fn text(mut self, text: &str) -> Self {
        self.0.extend_from_slice(text.as_bytes());
        self.u8(0)
    }

    /// `-` is NULL, `=` is unchanged.
    pub fn row(self, kind: u8, values: &[&str]) -> Self {
        values.iter().fold(self.u8(kind).u16(values.len() as u16), |bytes, value| match *value {
            "-" => bytes.u8(b'n'),
            "=" => bytes.u8(b'u'),
            text => {
                let mut bytes = bytes.u8(b't').u32(text.len() as u32);
                bytes.0.extend_from_slice(text.as_bytes());
                bytes
            }
        })
    }
}

const USERS: u32 = 16_395;

pub(super) fn insert(values: &[&str]) -> Vec<u8> {
    Bytes(vec![b'I']).u32(USERS).row(b'N', values).0
}

fn update(old: Option<(u8, &[&str])>, new: &[&str]) -> Vec<u8> {
    let bytes = Bytes(vec![b'U']).u32(USERS);
    let bytes = match old {
        Some((kind, old)) => bytes.row(kind, old),
        None => bytes,
    };
    bytes.row(b'N', new).0
}

fn delete(kind: u8, old: &[&str]) -> Vec<u8> {
    Bytes(vec![b'D']).u32(USERS).row(kind, old).0
}

pub(super) fn truncate() -> Vec<u8> {
    Bytes(vec![b'T']).u32(1).u8(0).u32(USERS).0
}

pub(super) fn message(prefix: &str, content: &str) -> Vec<u8> {
    let mut bytes = Bytes(vec![b'M', 1]).u64(1).text(prefix).u32(content.len() as u32);
    bytes.0.extend_from_slice(content.as_bytes());
    bytes.0
}

pub(super) fn layout() -> Vec<u8> {
    Bytes::relation(USERS, "users", &[("id", true, 23), ("email", true, 25)])
}

pub(super) fn applier() -> Applier {
    let settings = toml::from_str(
        "table = \"users\"\nkeys = [\"user:<id>\", \"users:by-email:<email>\", \"users:all\"]",
    );
    let guards = Arc::new(Guards::new(&[settings.expect("settings")], 0).expect("guards"));
    let limits = Limits {
        history: 60_000,
        lease_ttl: 5_000,
        longest_cap: 60_000,
        max_keys: 1_000,
        max_leases: 10,
        guards: 1,
        shards: 4,
    };
    let fence = Arc::new(Fence::new(limits));
    let positions = Arc::new(Positions::new(fence, &[SourceKind::Primary], Instant::now()));
    positions.seen_next_xid(Xid(7 << 32 | 1_000));
    Applier::new(guards, 0, positions, Arc::new(FeedState::new(1)))
}

/// Runs one transaction: what its commit hands out, with the keys in order.
pub(super) fn transaction(applier: &mut Applier, end: u64, messages: &[Vec<u8>]) -> Option<Invalidation> {
    let begin = Bytes::begin(990);
    let commit = Bytes::commit(end);
    let mut last = Applied::Nothing;
    for bytes in [&begin].into_iter().chain(messages).chain([&commit]) {
        assert_eq!(last, Applied::Nothing);
        last = applier.apply(decode(bytes).expect("a message"));
    }
    match last {
        Applied::Commit(mut invalidation) => {
            invalidation.keys.sort();
            Some(invalidation)
        }
        Applied::Position(position) => {
            assert_eq!(position, Lsn(end));
            None
        }
        Applied::Nothing | Applied::NoRoom => panic!("nothing came of a commit"),
    }
}

pub(super) fn keys(applier: &mut Applier, messages: &[Vec<u8>]) -> Vec<String> {
    let messages = [&[layout()], messages].concat();
    let invalidation = transaction(applier, 500, &messages).expect("an invalidation");
    invalidation.keys.into_iter().map(|key| String::from_utf8(key.name).expect("UTF-8")).collect()
}

#[test]
fn every_row_names_its_keys_once() {
    let found = keys(&mut applier(), &[insert(&["1", "a:b"]), insert(&["1", "a:b"]), insert(&["2", "-"])]);
    assert_eq!(found, ["user:1", "user:2", "users:all", "users:by-email:a:b"], "NULL is no key");
}

#[test]
fn old_and_new_row_are_both_named() {
    let mut applier = applier();
    let moved = update(Some((b'O', &["1", "old"])), &["1", "new"]);
    assert_eq!(
        keys(&mut applier, &[moved]),
        ["user:1", "users:all", "users:by-email:new", "users:by-email:old"]
    );
    let kept = update(None, &["1", "same"]);
    assert_eq!(keys(&mut applier, &[kept]), ["user:1", "users:all", "users:by-email:same"]);
    let gone = delete(b'K', &["3", "gone"]);
    assert_eq!(keys(&mut applier, &[gone]), ["user:3", "users:all", "users:by-email:gone"]);
}

#[test]
fn a_value_left_out_as_unchanged_is_taken_from_the_old_row() {
    let mut applier = applier();
    let large = update(Some((b'K', &["1", "large"])), &["2", "="]);
    assert_eq!(keys(&mut applier, &[large]), ["user:1", "user:2", "users:all", "users:by-email:large"]);
    // Nowhere to take it from: the whole guard goes rather than one key too few.
    let lost = transaction(&mut applier, 600, &[update(None, &["1", "="])]).expect("an invalidation");
    assert_eq!((lost.keys.len(), lost.truncated), (0, vec![GuardId(0)]));
}

#[test]
fn truncate_fences_the_guard_and_messages_name_keys() {
    let mut applier = applier();
    let all = transaction(
        &mut applier,
        500,
        &[layout(), insert(&["1", "x"]), truncate(), message("cachefence", "k")],
    )
    .expect("an invalidation");
    assert_eq!((all.keys, all.truncated), (vec![CacheKey { db: 0, name: b"k".to_vec() }], vec![GuardId(0)]));
    assert_eq!(transaction(&mut applier, 600, &[message("other", "k")]), None);
}

#[test]
fn an_unguarded_table_only_moves_the_position() {
    let mut applier = applier();
    let other = Bytes::relation(USERS, "orders", &[("id", true, 23)]);
    assert_eq!(transaction(&mut applier, 500, &[other, insert(&["1"])]), None);
    assert_eq!(transaction(&mut applier, 600, &[]), None);
}

#[test]
fn commits_carry_their_end_and_the_settlement_hears_of_them() {
    let mut applier = applier();
    let invalidation =
        transaction(&mut applier, 500, &[layout(), insert(&["1", "x"])]).expect("an invalidation");
    assert_eq!((invalidation.end_lsn, invalidation.commit_time_us), (Lsn(500), unix_micros(1_000_000)));
    assert!(applier.positions.unsettled());
    assert_eq!(applier.positions.extend(990), Xid(7 << 32 | 990));
}

#[test]
fn a_column_that_is_gone_breaks_the_guard_until_it_is_back() {
    let mut applier = applier();
    let guard = GuardId(0);
    assert!(transaction(&mut applier, 500, &[layout(), insert(&["1", "x"])]).is_some());
    assert!(!applier.state.is_broken(guard));

    let without = Bytes::relation(USERS, "users", &[("id", true, 23)]);
    let broken = transaction(&mut applier, 600, &[without, insert(&["2"])]).expect("an invalidation");
    assert_eq!(broken.truncated, [guard]);
    assert!(applier.state.is_broken(guard));

    let mended = transaction(&mut applier, 700, &[layout(), insert(&["3", "x"])]).expect("an invalidation");
    assert_eq!(mended.truncated, [guard]);
    assert!(!applier.state.is_broken(guard));
    assert_eq!(keys(&mut applier, &[insert(&["4", "-"])]), ["user:4", "users:all"]);
}

#[test]
fn a_lost_identity_a_rename_and_another_type_break_the_guard() {
    let bad = [
        Bytes::relation(USERS, "users", &[("id", true, 23), ("email", false, 25)]),
        Bytes::relation(USERS, "people", &[("id", true, 23), ("email", true, 25)]),
        Bytes::relation(USERS, "users", &[("id", true, 25), ("email", true, 25)]),
    ];
    for relation in bad {
        let mut applier = applier();
        let column = |name: &str, type_oid| super::super::catalog::Column {
            number: 1,
            name: name.into(),
            type_oid,
            type_name: String::new(),
            altered: 0,
        };
        applier.restart(vec![Table {
            guard: GuardId(0),
            oid: USERS,
            columns: vec![column("id", 20), column("email", 25)],
            primary_key: vec!["id".into()],
            parts: Vec::new(),
            identity: None,
            stamps: Vec::new(),
        }]);
        assert!(transaction(&mut applier, 500, &[layout(), insert(&["1", "x"])]).is_some());
        assert!(!applier.state.is_broken(GuardId(0)), "int4 for int8 prints the same texts");
        let broken = transaction(&mut applier, 600, &[relation]).expect("an invalidation");
        assert_eq!(broken.truncated, [GuardId(0)]);
        assert!(applier.state.is_broken(GuardId(0)));
    }
}

#[test]
fn a_table_that_comes_first_under_another_name_is_known_by_its_oid() {
    let mut applier = applier();
    applier.restart(vec![table(&[("id", 23), ("email", 25)], &[])]);
    let away = Bytes::relation(USERS, "elsewhere", &[("id", true, 23), ("email", true, 25)]);
    let there_and_back = [away.clone(), insert(&["1", "x"]), layout(), insert(&["2", "y"])];
    let invalidation = transaction(&mut applier, 500, &there_and_back).expect("an invalidation");
    assert_eq!(invalidation.truncated, [GuardId(0)], "nobody knows the keys of the first row");
    assert!(!applier.state.is_broken(GuardId(0)), "it is back");

    applier.restart(vec![table(&[("id", 23), ("email", 25)], &[])]);
    let invalidation = transaction(&mut applier, 600, &[away]).expect("an invalidation");
    assert_eq!(invalidation.truncated, [GuardId(0)]);
    assert!(applier.state.is_broken(GuardId(0)));
}

/// Runs one transaction that is handed on in parts: each with its keys in order, and in the end the last.
fn parts(applier: &mut Applier, end: u64, messages: &[Vec<u8>]) -> Vec<Invalidation> {
    let mut parts = Vec::new();
    for bytes in [&Bytes::begin(990)].into_iter().chain(messages).chain([&Bytes::commit(end)]) {
        match applier.apply(decode(bytes).expect("a message")) {
            Applied::Nothing => {}
            Applied::Commit(mut part) => {
                part.keys.sort();
                parts.push(part);
            }
            Applied::Position(_) | Applied::NoRoom => panic!("its end has to wait for its parts"),
        }
    }
    parts
}

/// The users as the catalog has them.
pub fn table(columns: &[(&str, u32)], parts: &[u32]) -> Table {
    let column = |(name, type_oid): &(&str, u32)| super::super::catalog::Column {
        number: 1,
        name: (*name).into(),
        type_oid: *type_oid,
        type_name: String::new(),
        altered: 0,
    };
    Table {
        guard: GuardId(0),
        oid: USERS,
        columns: columns.iter().map(column).collect(),
        primary_key: vec!["id".into()],
        parts: parts
            .iter()
            .map(|oid| super::super::catalog::Part { oid: *oid, storage: 0, attached: 0 })
            .collect(),
        identity: None,
        stamps: Vec::new(),
    }
}

/// A row of the table with this oid.
fn insert_into(oid: u32, values: &[&str]) -> Vec<u8> {
    Bytes(vec![b'I']).u32(oid).row(b'N', values).0
}

#[test]
fn rows_of_a_part_are_read_by_its_own_layout() {
    let mut applier = applier();
    applier.restart(vec![table(&[("id", 23), ("email", 25)], &[7])]);
    let child = Bytes::relation(7, "child", &[("email", true, 25), ("more", true, 25), ("id", true, 23)]);
    assert_eq!(
        keys(&mut applier, &[child, insert_into(7, &["a", "x", "1"])]),
        ["user:1", "users:all", "users:by-email:a"]
    );
    let truncate = Bytes(vec![b'T']).u32(1).u8(0).u32(7).0;
    let all = transaction(&mut applier, 600, &[truncate]).expect("an invalidation");
    assert_eq!(all.truncated, [GuardId(0)]);
    let bare = Bytes::relation(7, "child", &[("email", false, 25), ("id", true, 23)]);
    assert!(transaction(&mut applier, 700, &[bare]).is_some_and(|all| all.truncated == [GuardId(0)]));
    assert!(applier.state.is_broken(GuardId(0)));
}

#[test]
fn old_rows_of_partitions_have_what_every_partition_keeps() {
    for (identity, broken) in [(&["id", "email"][..], false), (&["id"], true)] {
        let mut applier = applier();
        let identity = Some(identity.iter().map(|name| (*name).to_owned()).collect());
        applier.restart(vec![Table { identity, ..table(&[("id", 23), ("email", 25)], &[7]) }]);
        // The root's own identity says neither.
        for flag in [true, false] {
            let root = Bytes::relation(USERS, "users", &[("id", true, 23), ("email", flag, 25)]);
            let _ = transaction(&mut applier, 500, &[root]);
            assert_eq!(applier.state.is_broken(GuardId(0)), broken);
        }
    }
}

#[test]
fn rows_that_feed_no_guard_are_not_decoded() {
    let mut applier = applier();
    let _ = transaction(&mut applier, 500, &[layout(), Bytes::relation(8, "orders", &[("id", true, 23)])]);
    assert!(!applier.ignores(&insert(&["1", "a"])));
    assert!(applier.ignores(&insert_into(8, &["1"])) && applier.ignores(&insert_into(9, &["1"])));
    for other in [Bytes::begin(1), Bytes::commit(700), truncate(), layout(), message("cachefence", "k")] {
        assert!(!applier.ignores(&other));
    }
    assert!(!applier.ignores(b"") && !applier.ignores(b"I\0\0"));
}

#[test]
fn what_the_catalog_tells_is_taken_in_at_its_place_in_the_stream() {
    let mut applier = applier();
    applier.restart(vec![table(&[("id", 23), ("email", 25)], &[])]);
    let found = table(&[("id", 2950), ("email", 25)], &[7]);
    let retyped = Bytes::relation(USERS, "users", &[("id", true, 2950), ("email", true, 25)]);
    assert!(transaction(&mut applier, 500, &[layout(), insert(&["1", "a"])]).is_some());
    // The look comes before the stream has told of it: the layout from before is not read by what is known since.
    applier.state.set_found("1f", vec![found.clone()]);
    // Somebody else's, from before that.
    assert_eq!(transaction(&mut applier, 550, &[message("cachefence:table", "2e")]), None);
    assert_ne!(applier.state.tables(), std::slice::from_ref(&found));
    let messages = ["public.users", "1f"].map(|content| message("cachefence:table", content));
    let taken = transaction(&mut applier, 600, &messages);
    assert_eq!(taken.expect("an invalidation").truncated, [GuardId(0)]);
    assert_eq!(applier.state.tables(), std::slice::from_ref(&found));
    assert!(!applier.state.is_broken(GuardId(0)));
    assert!(
        transaction(&mut applier, 650, &[insert(&["2", "a"])]).is_some_and(|all| all.truncated.len() == 1)
    );
    let now = transaction(&mut applier, 700, &[retyped.clone(), insert(&["x", "-"])]).expect("keys");
    assert_eq!((now.keys.len(), now.truncated.len()), (2, 0));

    // The other way round.
    applier.restart(vec![table(&[("id", 23), ("email", 25)], &[])]);
    assert!(transaction(&mut applier, 800, &[retyped, insert(&["y", "-"])]).is_some());
    assert!(applier.state.is_broken(GuardId(0)));
    applier.state.set_found("3d", vec![found]);
    assert!(transaction(&mut applier, 900, &[message("cachefence:table", "3d")]).is_some());
    assert!(!applier.state.is_broken(GuardId(0)));
    let now = transaction(&mut applier, 950, &[insert(&["z", "-"])]).expect("keys");
    assert_eq!((now.keys.len(), now.truncated.len()), (2, 0));
    // Of a table that is not guarded, or without anything that was found.
    assert_eq!(transaction(&mut applier, 960, &[message("cachefence:table", "public.orders")]), None);
}

/// All of them are its own: the guard's other keys stay. What a part holds does not grow with the transaction.
#[test]
fn a_large_transaction_is_handed_on_in_parts() {
    let mut applier = applier();
    applier.part_keys = 100;
    let rows: Vec<Vec<u8>> = (0..1_000).map(|n| insert(&[&n.to_string(), "-"])).collect();
    let messages = [&[layout(), message("cachefence", "k")], &rows[..]].concat();
    let parts = parts(&mut applier, 500, &messages);
    let mut keys: Vec<&[u8]> = parts.iter().flat_map(|part| &part.keys).map(|key| &key.name[..]).collect();
    // 98 rows, the name and the key of all of them; then 99 rows and that key.
    assert_eq!(parts.len(), 11);
    let (last, before) = parts.split_last().expect("parts");
    assert!(before.iter().all(|part| part.keys.len() == 100 && part.is_part() && part.end_lsn == Lsn(100)));
    assert_eq!((last.end_lsn, last.is_part(), last.keys.len()), (Lsn(500), false, 12));
    assert!(parts.iter().all(|part| part.truncated.is_empty()));
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 1_002);
    assert_eq!(applier.state.transaction_keys.load(Ordering::Relaxed), 0);
}

/// With nothing left at its end, it is complete only when its parts are deleted.
#[test]
fn the_end_of_a_large_transaction_waits_for_its_parts() {
    let mut applier = applier();
    applier.part_keys = 2;
    let parts = parts(&mut applier, 500, &[layout(), insert(&["1", "-"])]);
    let ends: Vec<_> =
        parts.iter().map(|part| (part.end_lsn.0, part.written_lsn.0, part.keys.len())).collect();
    assert_eq!(ends, [(100, 101, 2), (500, 500, 0)]);
}

#[test]
fn a_guard_that_is_truncated_or_breaks_after_a_part_goes_as_a_whole_at_the_end() {
    let without = Bytes::relation(USERS, "users", &[("id", true, 23)]);
    for end in [truncate(), without] {
        let mut applier = applier();
        applier.part_keys = 2;
        let messages = [layout(), insert(&["1", "-"]), insert(&["2", "-"]), end, insert(&["3", "-"])];
        let parts = parts(&mut applier, 500, &messages);
        let found: Vec<_> = parts.iter().map(|part| (part.keys.len(), part.truncated.len())).collect();
        assert_eq!(found, [(2, 0), (2, 0), (0, 1)]);
    }
}

/// What names too many keys to be held is fenced and handed on in parts. Nothing of it may be confirmed, and no miss
/// vouches for a key of it, before it is visible: its position is not that of its end.
#[test]
fn names_beyond_the_bound_are_handed_on_before_the_commit_is_complete() {
    let mut applier = applier();
    applier.part_keys = 2;
    let positions = applier.positions.clone();
    let identity = crate::feed::Identity { system_id: 1, timeline: 1 };
    positions.restart(identity, Lsn(50), Lsn(50), false);
    let epoch = positions.epoch().expect("begun");
    let shows = |text: &str| positions.primary(epoch, text.parse().expect("a snapshot"));
    let (unseen, seen) = (format!("{0}:{0}:", 7_u64 << 32 | 990), format!("{0}:{0}:", 7_u64 << 32 | 991));
    let mut parts = Vec::new();
    let names: Vec<Vec<u8>> = ["a", "b", "b", "a", "c", "d"].map(|key| message("cachefence", key)).into();
    for bytes in [Bytes::begin(990)].iter().chain(&names).chain([&Bytes::commit(500)]) {
        let applied = applier.apply(decode(bytes).expect("a message"));
        if let Applied::Commit(part) = &applied {
            positions.advanced(part.end_lsn);
        }
        shows(&unseen);
        parts.push(applied);
    }
    let handed: Vec<(u64, usize)> = parts
        .iter()
        .filter_map(|part| match part {
            Applied::Commit(part) => Some((part.end_lsn.0, part.keys.len())),
            _ => None,
        })
        .collect();
    assert_eq!(handed, [(100, 2), (100, 2), (100, 2), (500, 0)], "up to where its commit record begins");
    positions.advanced(Lsn(500));
    shows(&unseen);
    assert!(positions.fence().settled() <= Lsn(100));
    let hash = key_hash(0, b"a");
    assert!(positions.fence().is_named(hash));
    let question = fence::Question {
        key: hash,
        conn: None,
        guards: &[],
        lease: fence::LeaseRule::Connection,
        evidence: &[fence::Evidence::Lsn(Lsn(100)), fence::Evidence::Lsn(Lsn(500))],
    };
    let account = positions.fence().explain(&question, positions.now());
    let superseded = fence::Verdict::Stale(fence::Stale::Superseded(Lsn(101)));
    assert_eq!(account.by_new_miss, superseded);
    assert_eq!(account.by_evidence, [superseded, fence::Verdict::Fresh]);
    shows(&seen);
    assert_eq!(positions.fence().settled(), Lsn(500));
    assert_eq!(positions.fence().explain(&question, positions.now()).by_new_miss, fence::Verdict::Fresh);
}

/// A guard with versions: its keys, and one that many rows feed.
fn versioned(identity: [bool; 2]) -> Applier {
    let settings = "table = \"users\"\nkeys = [\"user:<id>\", \"user:all\"]\n\
                    version = { column = \"v\", raw = true }";
    let mut applier = applier();
    applier.guards =
        Arc::new(Guards::new(&[toml::from_str(settings).expect("settings")], 0).expect("guards"));
    let column = |name: &str, type_oid| super::super::catalog::Column {
        number: 1,
        name: name.into(),
        type_oid,
        type_name: String::new(),
        altered: 0,
    };
    let columns = vec![column("id", 23), column("v", 20)];
    let primary_key = vec!["id".into()];
    let guard = GuardId(0);
    let parts = Vec::new();
    applier.restart(vec![Table {
        guard,
        oid: USERS,
        columns,
        primary_key,
        parts,
        identity: None,
        stamps: vec![],
    }]);
    applier.positions.fence().restart(Lsn(100));
    let [id, v] = identity;
    let layout = Bytes::relation(USERS, "users", &[("id", id, 23), ("v", v, 20)]);
    assert_eq!(transaction(&mut applier, 150, &[layout]), None);
    applier
}

/// What a fill of `user:1` that was made from a version is found to be.
fn verdict(applier: &Applier, version: i64) -> fence::Verdict {
    let vouches = fence::Vouches::LastWriteAndNewer;
    let version = Some(fence::VersionClaim {
        guard: fence::GuardId(0),
        version: Version(version),
        step: 1,
        only_equal: false,
        vouches,
    });
    let fill = fence::Fill {
        id: fence::FillId(1),
        conn: fence::ConnId(1),
        guards: &[fence::GuardId(0)],
        evidence: None,
        version,
        lease: fence::LeaseRule::Off,
        part: false,
    };
    applier.positions.fence().admit(key_hash(0, b"user:1"), &fill, 0, |_| fence::Ruling::Refuse).0
}

const OLDER: fence::Stale = fence::Stale::Superseded(Lsn(500));
const UNSEEN: fence::Verdict = fence::Verdict::Unproven(fence::Unproven::VersionUnseen);
const UNTOLD: fence::Stale = fence::Stale::NoEvidence(Lsn(500));

#[test]
fn the_versions_of_a_row_are_told_as_far_as_they_are_sent() {
    use fence::Verdict::{Fresh, Stale};
    let full = |old: &'static [&'static str]| Some((b'O', old));
    let key = |old: &'static [&'static str]| Some((b'K', old));
    for (identity, changes, expected) in [
        ([true, true], vec![update(full(&["1", "4"]), &["1", "5"])], Fresh),
        ([true, true], vec![update(full(&["1", "5"]), &["1", "5"])], Stale(UNTOLD)),
        ([true, true], vec![update(full(&["1", "-"]), &["1", "5"])], UNSEEN),
        ([true, true], vec![update(None, &["1", "5"])], Stale(UNTOLD)),
        // Outside of the identity a NULL is no value.
        ([true, false], vec![update(key(&["2", "-"]), &["1", "5"])], UNSEEN),
        ([true, false], vec![update(None, &["1", "5"])], UNSEEN),
        ([true, false], vec![update(None, &["1", "4"]), update(None, &["1", "5"])], UNSEEN),
        ([true, true], vec![delete(b'K', &["1", "4"]), insert(&["1", "5"])], Fresh),
        ([true, true], vec![delete(b'K', &["1", "5"]), insert(&["1", "5"])], Stale(UNTOLD)),
        ([true, true], vec![update(full(&["1", "4"]), &["1", "x"])], Stale(UNTOLD)),
        (
            [true, true],
            vec![update(full(&["1", "4"]), &["1", "5"]), message("cachefence", "user:1")],
            Stale(UNTOLD),
        ),
        (
            [true, true],
            vec![message("cachefence", "user:1"), update(full(&["1", "4"]), &["1", "5"])],
            Stale(UNTOLD),
        ),
        ([true, true], vec![update(full(&["1", "4"]), &["1", "6"])], Stale(OLDER)),
        ([true, false], vec![update(None, &["1", "6"])], Stale(OLDER)),
        // It went to another key.
        ([true, true], vec![update(full(&["1", "4"]), &["2", "5"])], Stale(UNTOLD)),
    ] {
        let mut applier = versioned(identity);
        assert!(transaction(&mut applier, 500, &changes).is_some());
        assert_eq!(verdict(&applier, 5), expected, "{identity:?} {changes:?}");
    }
}

/// The parts of a transaction tell of a row one after the other, as commits would: the last one counts.
#[test]
fn the_versions_of_a_row_that_changes_in_several_parts_are_those_of_the_last() {
    use fence::Verdict::{Fresh, Stale};
    let to = |old: &'static str, new: &'static str| update(Some((b'O', &["1", old])), &["1", new]);
    let older = Stale(fence::Stale::Superseded(Lsn(101)));
    let untold = Stale(fence::Stale::NoEvidence(Lsn(101)));
    // Each key is a part of its own.
    for (changes, verdicts) in [
        (vec![to("4", "5")], [older, Fresh, Fresh]),
        (vec![to("4", "5"), to("5", "6")], [older, older, Fresh]),
        (vec![to("4", "5"), to("5", "5")], [older, untold, untold]),
        (vec![to("4", "6"), to("6", "5")], [older, untold, untold]),
        (vec![to("4", "5"), message("cachefence", "user:1")], [older, untold, untold]),
        (vec![message("cachefence", "user:1"), to("4", "5")], [older, untold, untold]),
        (vec![to("4", "5"), delete(b'O', &["1", "5"]), insert(&["1", "6"])], [older, older, Fresh]),
        // Sent again: all of it, and a part.
        (vec![to("4", "5"), to("4", "5")], [older, untold, untold]),
        (vec![to("4", "5"), to("5", "6"), to("4", "5")], [older, untold, untold]),
    ] {
        let mut applier = versioned([true, true]);
        applier.part_keys = 1;
        assert_eq!(parts(&mut applier, 500, &changes).len(), changes.len() + 1);
        assert_eq!([4, 5, 6].map(|claimed| verdict(&applier, claimed)), verdicts, "{changes:?}");
    }
}

/// Its last part is not handed on before the end, and is a write of its own there.
#[test]
fn a_row_that_changes_again_after_a_part_has_the_version_of_the_end() {
    let mut applier = versioned([true, true]);
    applier.part_keys = 4;
    let to = |old: &'static str, new: &'static str| update(Some((b'O', &["1", old])), &["1", new]);
    let changes = [to("4", "5"), insert(&["2", "1"]), insert(&["3", "1"]), to("5", "6")];
    let ends: Vec<_> = parts(&mut applier, 500, &changes).iter().map(|part| part.keys.len()).collect();
    assert_eq!(ends, [4, 2]);
    assert_eq!(verdict(&applier, 5), fence::Verdict::Stale(OLDER));
    assert_eq!(verdict(&applier, 6), fence::Verdict::Fresh);
}

/// Without an old row the columns of the identity have not changed; of the others nothing is known.
#[test]
fn an_update_without_an_old_row_leaves_what_is_in_the_identity() {
    for (identity, old, expected) in
        [([true, true], Some((b'K', &["1", "4"][..])), fence::Verdict::Fresh), ([true, false], None, UNSEEN)]
    {
        let mut applier = versioned(identity);
        assert!(transaction(&mut applier, 400, &[update(None, &["1", "4"])]).is_some());
        assert!(transaction(&mut applier, 500, &[update(old, &["1", "5"])]).is_some());
        assert_eq!(verdict(&applier, 5), expected, "{identity:?}");
    }
}

#[test]
fn a_version_column_that_is_gone_or_of_another_type_breaks_the_guard() {
    for columns in [&[("id", true, 23)][..], &[("id", true, 23), ("v", true, 1184)]] {
        let mut applier = versioned([true, true]);
        let broken =
            transaction(&mut applier, 500, &[Bytes::relation(USERS, "users", columns), insert(&["1", "1"])]);
        assert_eq!(broken.expect("an invalidation").truncated, [GuardId(0)]);
        assert!(applier.state.is_broken(GuardId(0)));
    }
}
