//! From a request's bytes to the command and the guards of its keys: what every request costs before it goes on.

use std::hint::black_box;

use cachefence::command::{Command, CommandTable, Keys};
use cachefence::guard::{Guards, key_hash};
use cachefence::resp::{Arguments, RequestScanner, Scanned, put_request};

use super::Listed;
use super::guards::guards;
use super::resp::{get, set};
use crate::Fallible;
use crate::meter::Meter;

pub const CASES: &[Listed] = &[
    ("command: GET, no guard matches", |meter| dispatch(meter, &get(), &guards(10, "other", false)?)),
    ("command: GET, a guard matches", |meter| dispatch(meter, &get(), &guards(10, "user", true)?)),
    ("command: SET of 64 bytes, a guard matches", |meter| {
        dispatch(meter, &set(64), &guards(10, "user", true)?)
    }),
    ("command: MGET of 10 keys, no guard matches", |meter| {
        dispatch(meter, &mget(), &guards(10, "other", false)?)
    }),
];

fn mget() -> Vec<u8> {
    let mut out = Vec::new();
    let mut words = vec![&b"user:1234567"[..]; 11];
    words[0] = b"MGET";
    put_request(&mut out, &words);
    out
}

fn dispatch(meter: &mut Meter, bytes: &[u8], guards: &Guards) -> Fallible<()> {
    let table = CommandTable::known();
    let mut scanner = RequestScanner::default();
    let mut of = |bytes: &[u8]| {
        let Ok(Scanned::Request(length)) = scanner.scan(bytes) else { return None };
        let arguments = scanner.arguments(&bytes[..length]);
        let command = table.take(arguments).ok()?;
        let found = match command {
            Command::Read(read) => look_up(guards, read.keys, arguments),
            Command::Fill(form) => look_up(guards, form.keys, arguments),
            _ => return None,
        };
        scanner.reset();
        Some(found)
    };
    of(bytes).ok_or("that is no command that reads or fills")?;
    meter.repeat(1000, || of(black_box(bytes)));
    Ok(())
}

/// Finds the guards of the keys, and hashes those that have some.
fn look_up(guards: &Guards, keys: Keys, arguments: Arguments<'_>) -> u64 {
    let mut hashes = 0;
    for key in keys.places(arguments).filter_map(|place| arguments.get(place)) {
        if !guards.matching(0, key).is_empty() {
            hashes ^= key_hash(0, key).0;
        }
    }
    hashes
}
