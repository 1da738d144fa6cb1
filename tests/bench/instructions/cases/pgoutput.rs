//! Messages of the replication stream, decoded. And how they are made, for the feed's cases too.

use std::hint::black_box;

use cachefence::pg::pgoutput::decode;

use super::Listed;
use crate::Fallible;
use crate::meter::Meter;

pub const CASES: &[Listed] = &[
    ("pgoutput: Begin", |meter| decoded(meter, &begin(1000, 7))),
    ("pgoutput: Commit", |meter| decoded(meter, &commit(1000))),
    ("pgoutput: Insert", |meter| decoded(meter, &insert(1234567))),
    ("pgoutput: Update", |meter| decoded(meter, &update(1234567))),
    ("pgoutput: Update with the old key", |meter| decoded(meter, &moved(1234567, 1234568))),
];

/// The oid of the table in all of them.
pub const TABLE: u32 = 16_384;

fn decoded(meter: &mut Meter, bytes: &[u8]) -> Fallible<()> {
    decode(bytes)?;
    meter.repeat(1000, || decode(black_box(bytes)).is_ok());
    Ok(())
}

pub fn begin(lsn: u64, xid: u32) -> Vec<u8> {
    [&b"B"[..], &lsn.to_be_bytes(), &0u64.to_be_bytes(), &xid.to_be_bytes()].concat()
}

pub fn commit(lsn: u64) -> Vec<u8> {
    [&b"C\0"[..], &lsn.to_be_bytes(), &(lsn + 8).to_be_bytes(), &0u64.to_be_bytes()].concat()
}

/// `users(id, tenant, name, email, note, updated)`, with `id` the primary key.
pub fn relation() -> Vec<u8> {
    let mut out = [&b"R"[..], &TABLE.to_be_bytes(), b"public\0users\0d", &6u16.to_be_bytes()].concat();
    for (name, oid) in
        [("id", 20u32), ("tenant", 25), ("name", 25), ("email", 25), ("note", 25), ("updated", 1184)]
    {
        out.push(u8::from(name == "id"));
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.extend_from_slice(&oid.to_be_bytes());
        out.extend_from_slice(&u32::MAX.to_be_bytes());
    }
    out
}

pub fn insert(id: u64) -> Vec<u8> {
    head(b'I', &[row(b'N', id)])
}

/// Of a row that keeps its key: only the new row is sent.
pub fn update(id: u64) -> Vec<u8> {
    head(b'U', &[row(b'N', id)])
}

/// Of a row that gets another key.
fn moved(from: u64, to: u64) -> Vec<u8> {
    let id = from.to_string();
    let mut key = [&b"K"[..], &6u16.to_be_bytes()].concat();
    put(&mut key, id.as_bytes());
    key.extend_from_slice(b"nnnnn");
    head(b'U', &[key, row(b'N', to)])
}

fn head(tag: u8, rows: &[Vec<u8>]) -> Vec<u8> {
    [&[tag][..], &TABLE.to_be_bytes(), &rows.concat()].concat()
}

fn row(kind: u8, id: u64) -> Vec<u8> {
    let mut out = [&[kind][..], &6u16.to_be_bytes()].concat();
    put(&mut out, id.to_string().as_bytes());
    put(&mut out, b"acme");
    put(&mut out, b"Grace Brewster Murray Hopper");
    put(&mut out, b"grace.hopper@example.org");
    out.push(b'n');
    put(&mut out, b"2026-01-31 12:34:56.789012+00");
    out
}

fn put(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b't');
    out.extend_from_slice(&(text.len() as u32).to_be_bytes());
    out.extend_from_slice(text);
}
