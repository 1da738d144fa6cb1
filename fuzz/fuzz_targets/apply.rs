//! Messages of the replication stream in any order: every key that a commit hands on is there once, is one that a guard
//! or a message names, and goes with its guard where that is emptied as a whole.
#![no_main]

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use cachefence::feed::apply::{Applied, Applier};
use cachefence::feed::{FeedState, MESSAGE_PREFIX, Positions};
use cachefence::fence::{Fence, Limits, SourceKind};
use cachefence::guard::{GuardId, Guards};
use cachefence::pg::pgoutput::{Message, decode, decode_in_block};
use libfuzzer_sys::fuzz_target;

static GUARDS: LazyLock<Arc<Guards>> = LazyLock::new(|| {
    let guard = |table: &str, keys: &str| {
        toml::from_str(&format!("table = {table:?}\nkeys = [{keys}]")).expect("a guard")
    };
    let settings = [
        guard("users", r#""user:<id>", "user:<id>:<name>", "users""#),
        guard("orders", r#""user:<name>:orders", "order:<id>""#),
    ];
    Arc::new(Guards::new(&settings, 0).expect("guards"))
});

/// The columns that tables may have.
const COLUMNS: [&str; 4] = ["id", "name", "id", "note"];
const TABLES: [&str; 4] = ["users", "orders", "people", "users"];

type Row = Vec<Option<Vec<u8>>>;

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

/// A value that begins with a zero byte is one that was not sent.
fn put_row(out: &mut Vec<u8>, kind: u8, row: &Row) {
    out.push(kind);
    out.extend_from_slice(&(row.len() as u16).to_be_bytes());
    for value in row {
        match value {
            None => out.push(b'n'),
            Some(text) if text.first() == Some(&0) => out.push(b'u'),
            Some(text) => {
                out.push(b't');
                out.extend_from_slice(&(text.len() as u32).to_be_bytes());
                out.extend_from_slice(text);
            }
        }
    }
}

/// A message of pgoutput: what it is, of which of four tables, with these rows.
fn message(what: u8, table: u8, rows: &[Row; 2], position: u64) -> Vec<u8> {
    let [old, new] = rows;
    let oid = u32::from(table % 4);
    let mut out = Vec::new();
    let head = |out: &mut Vec<u8>, tag: u8| {
        out.push(tag);
        out.extend_from_slice(&oid.to_be_bytes());
    };
    match what % 14 {
        0 => {
            out.push(b'B');
            out.extend_from_slice(&position.to_be_bytes());
            out.extend_from_slice(&0u64.to_be_bytes());
            out.extend_from_slice(&(position as u32).to_be_bytes());
        }
        1 | 2 => {
            out.extend_from_slice(b"C\0");
            out.extend_from_slice(&position.to_be_bytes());
            out.extend_from_slice(&(position + 8).to_be_bytes());
            out.extend_from_slice(&0u64.to_be_bytes());
        }
        3 => {
            head(&mut out, b'R');
            put_text(&mut out, "public");
            put_text(&mut out, TABLES[usize::from(table / 4 % 4)]);
            out.push(b'd');
            let columns = old.len().min(COLUMNS.len());
            out.extend_from_slice(&(columns as u16).to_be_bytes());
            for (n, name) in COLUMNS.iter().enumerate().take(columns) {
                out.push(u8::from(old[n].is_none() || n == 0));
                put_text(&mut out, name);
                out.extend_from_slice(&[0, 0, 0, 25, 0, 0, 0, 0]);
            }
        }
        4 | 5 => {
            head(&mut out, b'I');
            put_row(&mut out, b'N', new);
        }
        6 => {
            head(&mut out, b'U');
            put_row(&mut out, if table & 64 == 0 { b'K' } else { b'O' }, old);
            put_row(&mut out, b'N', new);
        }
        7 => {
            head(&mut out, b'D');
            put_row(&mut out, b'K', old);
        }
        8 => {
            out.extend_from_slice(b"T\0\0\0\x01\0");
            out.extend_from_slice(&oid.to_be_bytes());
        }
        10 => {
            out.push(b'S');
            out.extend_from_slice(&(u32::from(table) % 2).to_be_bytes());
            out.push(table / 2 % 2);
        }
        11 => out.push(b'E'),
        12 => {
            out.push(b'c');
            out.extend_from_slice(&(u32::from(table) % 2).to_be_bytes());
            out.push(0);
            out.extend_from_slice(&position.to_be_bytes());
            out.extend_from_slice(&(position + 8).to_be_bytes());
            out.extend_from_slice(&0u64.to_be_bytes());
        }
        13 => {
            out.push(b'A');
            out.extend_from_slice(&(u32::from(table) % 2).to_be_bytes());
            out.extend_from_slice(&(u32::from(table) / 2 % 4).to_be_bytes());
        }
        _ => {
            let text = new.iter().flatten().next().map_or(&b"a"[..], Vec::as_slice);
            out.extend_from_slice(b"M\x01");
            out.extend_from_slice(&position.to_be_bytes());
            put_text(&mut out, MESSAGE_PREFIX);
            out.extend_from_slice(&(text.len() as u32).to_be_bytes());
            out.extend_from_slice(text);
        }
    }
    out
}

fuzz_target!(|steps: Vec<(u8, u8, [Row; 2])>| {
    let limits = Limits {
        history: 60_000,
        longest_cap: 60_000,
        lease_ttl: 5_000,
        max_keys: 1_000,
        max_leases: 10,
        guards: GUARDS.len(),
        shards: 2,
    };
    let fence = Arc::new(Fence::new(limits));
    let positions = Arc::new(Positions::new(fence, &[SourceKind::Primary], Instant::now()));
    let state = Arc::new(FeedState::new(GUARDS.len()));
    let mut applier = Applier::new(GUARDS.clone(), 0, positions, state);
    applier.restart(Vec::new());
    let mut named: HashSet<Vec<u8>> = HashSet::new();
    let mut in_block = false;
    for (n, (what, table, rows)) in steps.iter().enumerate() {
        let mut bytes = message(*what, *table, rows, 100 + 10 * n as u64);
        if in_block && matches!(bytes[0], b'R' | b'I' | b'U' | b'D' | b'T' | b'M') {
            // The top-level transaction's, or a subtransaction's.
            bytes.splice(1..1, (u32::from(*table) / 4 % 4).to_be_bytes());
        } else if in_block && bytes[0] != b'E' {
            continue;
        }
        let decoded = match in_block {
            true => decode_in_block(&bytes).expect("it is well-formed").1,
            false => decode(&bytes).expect("it is well-formed"),
        };
        match decoded {
            Message::Logical { content, .. } => _ = named.insert(content.to_vec()),
            Message::StreamStart { .. } => in_block = true,
            Message::StreamStop => in_block = false,
            _ => {}
        }
        let applied = applier.receive(&bytes).expect("it is well-formed");
        assert_eq!(applier.proceed(), None, "few keys are one part");
        let Applied::Commit(invalidation) = applied else { continue };
        let mut seen = HashSet::new();
        for key in &invalidation.keys {
            assert!(seen.insert((key.db, key.name.clone())), "twice: {key:?}");
            let guards = GUARDS.matching(key.db, &key.name);
            assert!(!guards.is_empty() || named.contains(&key.name), "nobody's: {key:?}");
            let emptied = |guard: &GuardId| invalidation.truncated.contains(guard);
            assert!(
                !guards.iter().all(emptied) || guards.is_empty() || named.contains(&key.name),
                "it goes with its guard: {key:?}"
            );
        }
    }
});
