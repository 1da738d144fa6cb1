//! Rewrites a fill so that what it puts in lives no longer than a given time.

use bytes::BytesMut;

use crate::command::Syntax;
use crate::resp::{Arguments, integer, put_bulk, put_decimal, put_header};

/// How a capped fill goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capped {
    /// As one command, written to the buffer, whose reply has the shape of the original's.
    Rewritten,
    /// As a `SET ... NX` in place of `SETNX`, written to the buffer: `OK` and nil stand for 1 and 0.
    SetNxAsSet,
    /// As it came; the keys' TTLs are to be shortened after it (`PEXPIRE ... LT`).
    Afterwards,
}

/// Writes the capped form of a fill to `out`, or leaves it if the command has to go as it came.
///
/// `now_unix_ms` is for the forms that name an instant.
pub fn cap(
    syntax: Syntax,
    arguments: Arguments<'_>,
    ttl_ms: u64,
    now_unix_ms: u64,
    out: &mut BytesMut,
) -> Capped {
    let rewritten = match syntax {
        Syntax::Set => set(arguments, ttl_ms, now_unix_ms, out),
        Syntax::SetEx => expiring(arguments, ttl_ms, 1000, out),
        Syntax::PSetEx => expiring(arguments, ttl_ms, 1, out),
        Syntax::SetNx => plain(arguments, &[b"NX"], ttl_ms, out).map(|_| Capped::SetNxAsSet),
        Syntax::GetSet => plain(arguments, &[b"GET"], ttl_ms, out).map(|_| Capped::Rewritten),
        _ => None,
    };
    // A form that cannot be read goes as it came, for Redis to judge: what Redis takes is shortened after it.
    rewritten.unwrap_or(Capped::Afterwards)
}

/// `PEXPIRE key ttl LT`: shortens, never lengthens, and gives a TTL to a key that has none.
pub fn put_shorten(key: &[u8], ttl_ms: u64, out: &mut BytesMut) {
    put_header(out, b'*', 4);
    put_bulk(out, b"PEXPIRE");
    put_bulk(out, key);
    put_number(out, ttl_ms);
    put_bulk(out, b"LT");
}

fn put_number(out: &mut BytesMut, number: u64) {
    let mut digits = BytesMut::with_capacity(20);
    put_decimal(&mut digits, number);
    put_bulk(out, &digits);
}

/// A SET without a TTL of its own.
fn plain(arguments: Arguments<'_>, options: &[&[u8]], ttl_ms: u64, out: &mut BytesMut) -> Option<Capped> {
    if arguments.len() != 3 {
        return None;
    }
    put_set(arguments, options.iter().copied(), ttl_ms, out)
}

fn put_set<'a>(
    arguments: Arguments<'_>,
    options: impl Iterator<Item = &'a [u8]> + Clone,
    ttl_ms: u64,
    out: &mut BytesMut,
) -> Option<Capped> {
    let (key, value) = (arguments.get(1)?, arguments.get(2)?);
    put_header(out, b'*', 5 + options.clone().count());
    put_bulk(out, b"SET");
    put_bulk(out, key);
    put_bulk(out, value);
    options.for_each(|option| put_bulk(out, option));
    put_bulk(out, b"PX");
    put_number(out, ttl_ms);
    Some(Capped::Rewritten)
}

/// SETEX and PSETEX: `command key ttl value`.
fn expiring(arguments: Arguments<'_>, ttl_ms: u64, unit_ms: u64, out: &mut BytesMut) -> Option<Capped> {
    if arguments.len() != 4 {
        return None;
    }
    let own = positive(arguments.get(2)?)?.checked_mul(unit_ms)?;
    let (key, value) = (arguments.get(1)?, arguments.get(3)?);
    put_header(out, b'*', 4);
    put_bulk(out, b"PSETEX");
    put_bulk(out, key);
    put_number(out, own.min(ttl_ms));
    put_bulk(out, value);
    Some(Capped::Rewritten)
}

fn set(arguments: Arguments<'_>, ttl_ms: u64, now_unix_ms: u64, out: &mut BytesMut) -> Option<Capped> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut own = None;
    let mut options = arguments.from(3);
    while let Some(option) = options.next() {
        let is = |name: &[u8]| option.eq_ignore_ascii_case(name);
        // Given twice is an error that Redis shall find.
        let mut ttl = |unit_ms: u64, from_ms: u64| -> Option<()> {
            let left = positive(options.next()?)?.checked_mul(unit_ms)?.saturating_sub(from_ms);
            own.replace(left).is_none().then_some(())
        };
        if is(b"EX") {
            ttl(1000, 0)?;
        } else if is(b"PX") {
            ttl(1, 0)?;
        } else if is(b"EXAT") {
            ttl(1000, now_unix_ms)?;
        } else if is(b"PXAT") {
            ttl(1, now_unix_ms)?;
        } else if is(b"NX") || is(b"XX") || is(b"GET") {
            kept.push(option);
        } else {
            // KEEPTTL, whose time to live is known to Redis alone, or something new.
            return None;
        }
    }
    if own == Some(0) {
        // An instant in the past: as it came, it deletes the key.
        return None;
    }
    put_set(arguments, kept.into_iter(), own.unwrap_or(u64::MAX).min(ttl_ms), out)
}

fn positive(text: &[u8]) -> Option<u64> {
    integer(text).filter(|n| *n > 0).map(|n| n as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{RequestScanner, Scanned, put_request};

    fn capped(syntax: Syntax, command: &str) -> (Capped, String) {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        let mut request = BytesMut::new();
        put_request(&mut request, &words);
        let mut scanner = RequestScanner::default();
        assert_eq!(scanner.scan(&request), Ok(Scanned::Request(request.len())));
        let mut out = BytesMut::new();
        let how = cap(syntax, scanner.arguments(&request), 60_000, 1_000_000_000, &mut out);
        let mut scanner = RequestScanner::default();
        if !out.is_empty() {
            assert_eq!(scanner.scan(&out), Ok(Scanned::Request(out.len())), "well formed");
        }
        let words: Vec<_> = scanner.arguments(&out).from(0).map(String::from_utf8_lossy).collect();
        (how, words.join(" "))
    }

    #[test]
    fn every_form_of_set_is_capped() {
        let set = |command| capped(Syntax::Set, command);
        let to = |text: &str| (Capped::Rewritten, text.to_owned());
        assert_eq!(set("SET k v"), to("SET k v PX 60000"));
        assert_eq!(set("SET k v EX 300"), to("SET k v PX 60000"));
        assert_eq!(set("SET k v ex 30 nx"), to("SET k v nx PX 30000"));
        assert_eq!(set("SET k v PX 100 GET XX"), to("SET k v GET XX PX 100"));
        assert_eq!(set("SET k v EXAT 1000010"), to("SET k v PX 10000"));
        assert_eq!(set("SET k v PXAT 2000000000"), to("SET k v PX 60000"));
        for as_it_came in [
            "SET k v KEEPTTL",
            "SET k v EX 0",
            "SET k v EX x",
            "SET k v EX",
            "SET k v EX 1 PX 1",
            "SET k v EXAT 1",
            "SET k",
        ] {
            assert_eq!(set(as_it_came), (Capped::Afterwards, String::new()), "{as_it_came}");
        }
    }

    #[test]
    fn its_relatives_are_capped() {
        assert_eq!(capped(Syntax::SetEx, "SETEX k 300 v"), (Capped::Rewritten, "PSETEX k 60000 v".into()));
        assert_eq!(capped(Syntax::PSetEx, "PSETEX k 300 v"), (Capped::Rewritten, "PSETEX k 300 v".into()));
        assert_eq!(capped(Syntax::SetNx, "SETNX k v"), (Capped::SetNxAsSet, "SET k v NX PX 60000".into()));
        assert_eq!(capped(Syntax::GetSet, "GETSET k v"), (Capped::Rewritten, "SET k v GET PX 60000".into()));
        assert_eq!(capped(Syntax::Fields, "HSET k f v"), (Capped::Afterwards, String::new()));
    }
}
