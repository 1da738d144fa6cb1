//! Transactions, from the messages of the stream to keys that are fenced and handed on.

use std::sync::Arc;
use std::time::Instant;

use cachefence::feed::apply::{Applied, Applier};
use cachefence::feed::{FeedState, Positions};
use cachefence::fence::SourceKind;
use cachefence::guard::Guards;

use super::pgoutput::{begin, commit, insert, relation, update};
use super::{Listed, fences};
use crate::Fallible;
use crate::meter::Meter;

pub const CASES: &[Listed] = &[
    ("feed: a transaction of 1 row, inserted", |meter| transactions(meter, 1, 1000, insert)),
    ("feed: a transaction of 1 row, updated", |meter| transactions(meter, 1, 1000, update)),
    ("feed: a transaction of 1,000 rows, inserted", |meter| transactions(meter, 1000, 20, insert)),
    ("feed: a transaction of 1,000 rows, updated", |meter| transactions(meter, 1000, 20, update)),
    ("feed: a transaction of 1,000 times the same row", |meter| {
        transactions(meter, 1000, 20, |n| update(n / 1000))
    }),
];

/// One that has seen the table's layout. Two keys are of each row.
fn applier() -> Fallible<Applier> {
    let guard = toml::from_str("table = \"users\"\nkeys = [\"user:<id>\", \"user:<id>:profile\"]")?;
    let guards = Arc::new(Guards::new(&[guard], 0)?);
    let positions = Positions::new(Arc::new(fences::empty()), &[SourceKind::Primary], Instant::now());
    let state = Arc::new(FeedState::new(guards.len()));
    let mut applier = Applier::new(guards, 0, Arc::new(positions), state);
    applier.restart(Vec::new());
    applier.receive(&relation())?;
    Ok(applier)
}

fn transactions(meter: &mut Meter, rows: u64, times: u32, row: fn(u64) -> Vec<u8>) -> Fallible<()> {
    let mut applier = applier()?;
    let (mut next, mut xid) = (0, 1000);
    let mut made = || {
        xid += 1;
        let messages = (next..next + rows).map(|n| row(1_000_000 + n));
        next += rows;
        let lsn = u64::from(xid) * 1000;
        [begin(lsn, xid)].into_iter().chain(messages).chain([commit(lsn)]).collect::<Vec<_>>()
    };
    let mut apply = |messages: &mut Vec<Vec<u8>>| -> Fallible<usize> {
        for message in messages.iter() {
            if let Applied::Commit(invalidation) = applier.receive(message)? {
                return Ok(invalidation.keys.len());
            }
        }
        Err("no key was handed on".into())
    };
    // The table has grown to what it will hold: growing is rare, and falls where it falls.
    for _ in 0..times {
        apply(&mut made())?;
    }
    meter.repeat_with(times, made, |messages| apply(messages).is_ok());
    Ok(())
}
