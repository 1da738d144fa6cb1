//! What is counted.

mod commands;
mod feed;
mod fences;
mod guards;
mod pgoutput;
mod resp;

use crate::Fallible;
use crate::meter::Meter;

/// One hot path with an input.
pub struct Case {
    /// Its name, also in the committed file: part of the program, then the input.
    pub name: &'static str,
    /// Makes the input, and does it.
    pub run: fn(&mut Meter) -> Fallible<()>,
}

/// All of them, in the order of the table.
pub fn all() -> Vec<Case> {
    [resp::CASES, commands::CASES, guards::CASES, fences::CASES, pgoutput::CASES, feed::CASES]
        .into_iter()
        .flatten()
        .map(|(name, run)| Case { name, run: *run })
        .collect()
}

/// A case as its file lists it.
type Listed = (&'static str, fn(&mut Meter) -> Fallible<()>);
