//! Rewrites a fill so that what it puts in lives no longer than a given time.

use bytes::BytesMut;

use crate::command::Syntax;
use crate::resp::{Arguments, integer, put_bulk, put_decimal, put_header};

/// The bytes by which a command may grow.
const OPTION_ROOM: usize = 64;

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

/// The TTL in milliseconds that a fill brings along, if it says so outright. An instant is for Redis's clock to tell.
pub fn own_ttl(syntax: Syntax, arguments: Arguments<'_>) -> Option<u64> {
    match syntax {
        Syntax::Set => {
            let mut own = None;
            let mut options = arguments.from(3);
            while let Some(option) = options.next() {
                if let Some(unit_ms) = relative(option) {
                    let ttl = positive(options.next()?)?.checked_mul(unit_ms)?;
                    own.replace(ttl).is_none().then_some(())?;
                } else if ![&b"NX"[..], b"XX", b"GET"].iter().any(|known| option.eq_ignore_ascii_case(known))
                {
                    return None;
                }
            }
            own
        }
        Syntax::SetEx | Syntax::PSetEx if arguments.len() == 4 => {
            positive(arguments.get(2)?)?.checked_mul(if syntax == Syntax::SetEx { 1000 } else { 1 })
        }
        _ => None,
    }
}

/// The longest TTL in milliseconds that EXPIRE, PEXPIRE or GETEX leaves behind, if it says so outright; 0 if it deletes
/// the key. With NX, XX, GT or LT it may leave the one that was there, which was limited before.
pub fn expiry(arguments: Arguments<'_>) -> Option<u64> {
    let is = |name: &[u8]| arguments.get(0).is_some_and(|own| own.eq_ignore_ascii_case(name));
    let (unit_ms, place) = match arguments.get(2)? {
        _ if is(b"EXPIRE") => (1000, 2),
        _ if is(b"PEXPIRE") => (1, 2),
        option if is(b"GETEX") && arguments.len() == 4 => (relative(option)?, 3),
        _ => return None,
    };
    u64::try_from(integer(arguments.get(place)?)?.max(0)).ok()?.checked_mul(unit_ms)
}

/// The unit in milliseconds of an option that says for how long.
fn relative(option: &[u8]) -> Option<u64> {
    if option.eq_ignore_ascii_case(b"EX") {
        Some(1000)
    } else {
        option.eq_ignore_ascii_case(b"PX").then_some(1)
    }
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
    let digits = number.checked_ilog10().unwrap_or_default() + 1;
    put_header(out, b'$', digits as usize);
    put_decimal(out, number);
    out.extend_from_slice(b"\r\n");
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
    out.reserve(arguments.bytes().len() + OPTION_ROOM);
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
    out.reserve(arguments.bytes().len() + OPTION_ROOM);
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

    fn of(command: &str, read: impl Fn(Arguments<'_>) -> Option<u64>) -> Option<u64> {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        let mut request = BytesMut::new();
        put_request(&mut request, &words);
        let mut scanner = RequestScanner::default();
        assert_eq!(scanner.scan(&request), Ok(Scanned::Request(request.len())));
        read(scanner.arguments(&request))
    }

    /// What brings a TTL along that is short enough goes as it came.
    #[test]
    fn a_fills_own_ttl_is_read() {
        let own = |syntax, command: &str| of(command, |arguments| own_ttl(syntax, arguments));
        for (command, ttl) in [
            ("SET k v EX 30", Some(30_000)),
            ("SET k v nx px 30 get", Some(30)),
            ("SET k v", None),
            ("SET k v NX", None),
            ("SET k v KEEPTTL", None),
            ("SET k v EX 1 KEEPTTL", None),
            ("SET k v EXAT 1", None),
            ("SET k v PXAT 1", None),
            ("SET k v EX 1 PX 1", None),
            ("SET k v EX 0", None),
            ("SET k v EX 9223372036854775807", None),
            ("SET k v EX", None),
        ] {
            assert_eq!(own(Syntax::Set, command), ttl, "{command}");
        }
        assert_eq!(own(Syntax::SetEx, "SETEX k 30 v"), Some(30_000));
        assert_eq!(own(Syntax::PSetEx, "PSETEX k 30 v"), Some(30));
        for (syntax, none) in [
            (Syntax::SetNx, "SETNX k v"),
            (Syntax::GetSet, "GETSET k v"),
            (Syntax::MSet, "MSET k 1"),
            (Syntax::Other, "RESTORE k 1 v"),
            (Syntax::SetEx, "SETEX k x v"),
        ] {
            assert_eq!(own(syntax, none), None, "{none}");
        }
    }

    #[test]
    fn the_ttl_that_a_command_leaves_is_read() {
        for (command, ttl) in [
            ("EXPIRE k 30", Some(30_000)),
            ("expire k 30 GT", Some(30_000)),
            ("PEXPIRE k 30", Some(30)),
            ("EXPIRE k -1", Some(0)),
            ("EXPIRE k 0", Some(0)),
            ("EXPIRE k x", None),
            ("EXPIRE k 9223372036854775807", None),
            ("EXPIREAT k 30", None),
            ("PEXPIREAT k 30", None),
            ("PERSIST k", None),
            ("GETEX k", None),
            ("GETEX k EX 30", Some(30_000)),
            ("GETEX k px 30", Some(30)),
            ("GETEX k PXAT 30", None),
            ("GETEX k PERSIST", None),
            ("GETEX k EX 30 PERSIST", None),
        ] {
            assert_eq!(of(command, expiry), ttl, "{command}");
        }
    }

    #[test]
    fn its_relatives_are_capped() {
        assert_eq!(capped(Syntax::SetEx, "SETEX k 300 v"), (Capped::Rewritten, "PSETEX k 60000 v".into()));
        assert_eq!(capped(Syntax::PSetEx, "PSETEX k 300 v"), (Capped::Rewritten, "PSETEX k 300 v".into()));
        assert_eq!(capped(Syntax::SetNx, "SETNX k v"), (Capped::SetNxAsSet, "SET k v NX PX 60000".into()));
        assert_eq!(capped(Syntax::GetSet, "GETSET k v"), (Capped::Rewritten, "SET k v GET PX 60000".into()));
        for (syntax, as_it_came) in [
            (Syntax::Fields, "HSET k f v"),
            (Syntax::MSet, "MSET k v"),
            (Syntax::MSetNx, "MSETNX k v"),
            (Syntax::Copy, "COPY a k"),
            (Syntax::Other, "RESTORE k 0 v ABSTTL"),
            (Syntax::Other, "RENAME a k"),
            (Syntax::Other, "APPEND k v"),
            (Syntax::Other, "EVAL x 1 k"),
        ] {
            assert_eq!(capped(syntax, as_it_came), (Capped::Afterwards, String::new()), "{as_it_came}");
        }
    }
}
