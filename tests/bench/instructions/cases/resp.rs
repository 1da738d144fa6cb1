//! Requests and replies, cut.

use std::hint::black_box;

use cachefence::resp::{ReplyScanner, RequestScanner, Scanned, put_bulk, put_header, put_request};

use super::Listed;
use crate::Fallible;
use crate::meter::Meter;

pub const CASES: &[Listed] = &[
    ("request: GET", |meter| requests(meter, &get())),
    ("request: SET of 64 bytes", |meter| requests(meter, &set(64))),
    ("request: SET of 1 KiB", |meter| requests(meter, &set(1024))),
    ("request: 16 GETs at once", |meter| requests(meter, &get().repeat(16))),
    ("request: SET of 1 KiB in four pieces", |meter| in_pieces(meter, &set(1024), &[2, 11, 500])),
    ("reply: 64 bytes", |meter| reply(meter, &value(64))),
    ("reply: 1 KiB", |meter| reply(meter, &value(1024))),
    ("reply: an array of 100", |meter| reply(meter, &array(100))),
];

pub fn get() -> Vec<u8> {
    let mut out = Vec::new();
    put_request(&mut out, &[b"GET", b"user:1234567"]);
    out
}

pub fn set(length: usize) -> Vec<u8> {
    let mut out = Vec::new();
    put_request(&mut out, &[b"SET", b"user:1234567", &vec![b'v'; length], b"EX", b"3600"]);
    out
}

fn value(length: usize) -> Vec<u8> {
    let mut out = Vec::new();
    put_bulk(&mut out, &vec![b'v'; length]);
    out
}

fn array(count: usize) -> Vec<u8> {
    let mut out = Vec::new();
    put_header(&mut out, b'*', count);
    out.extend(value(16).repeat(count));
    out
}

/// All requests of a buffer, with their arguments.
fn requests(meter: &mut Meter, bytes: &[u8]) -> Fallible<()> {
    let mut scanner = RequestScanner::default();
    let mut cut = move |mut rest: &[u8]| {
        let mut arguments = 0;
        while let Ok(Scanned::Request(length)) = scanner.scan(rest) {
            let found = scanner.arguments(&rest[..length]);
            black_box((found.get(0), found.get(1)));
            arguments += found.len();
            scanner.reset();
            rest = &rest[length..];
        }
        arguments
    };
    if cut(bytes) == 0 {
        return Err("that is no request".into());
    }
    meter.repeat(1000, || cut(black_box(bytes)));
    Ok(())
}

/// A request that comes in pieces, which end at these bytes.
fn in_pieces(meter: &mut Meter, bytes: &[u8], ends: &[usize]) -> Fallible<()> {
    let mut scanner = RequestScanner::default();
    let mut cut = move |bytes: &[u8]| {
        let partly = ends.iter().all(|end| scanner.scan(&bytes[..*end]) == Ok(Scanned::Partial));
        let wholly = scanner.scan(bytes) == Ok(Scanned::Request(bytes.len()));
        scanner.reset();
        partly && wholly
    };
    if !cut(bytes) {
        return Err("that is not in pieces".into());
    }
    meter.repeat(1000, || cut(black_box(bytes)));
    Ok(())
}

fn reply(meter: &mut Meter, bytes: &[u8]) -> Fallible<()> {
    let mut scanner = ReplyScanner::default();
    let mut end = move |bytes: &[u8]| {
        let progress = scanner.scan(bytes);
        scanner.reset();
        progress.is_ok_and(|progress| progress.done)
    };
    if !end(bytes) {
        return Err("that is no reply".into());
    }
    meter.repeat(1000, || end(black_box(bytes)));
    Ok(())
}
