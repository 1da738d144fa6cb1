//! What a fault is.

use std::future::Future;
use std::pin::Pin;

use cachefence::config::Contract;

use crate::dice::Dice;
use crate::load::Load;
use crate::stand::{Options, Stand};
use crate::support::Outcome;

/// What a round is while it runs.
pub type Round<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

/// Something that breaks.
pub struct Fault {
    /// As in the table: what breaks, and how.
    pub name: &'static str,
    /// Under which contracts.
    pub contracts: &'static [Contract],
    /// How often, by `make faults`.
    pub rounds: u32,
    /// Whether `make test` has a round of it.
    pub quick: bool,
    /// Whether `make soak` has it: it leaves all servers as they were, within seconds.
    pub soak: bool,
    /// How its stand differs.
    pub options: fn(Options) -> Options,
    /// Causes it, asserts what has to be seen, and ends it: what comes after is recovery. `Box::pin` of an async fn.
    pub round: for<'a> fn(&'a mut Stand, &'a Load, &'a mut Dice) -> Round<'a>,
}

/// Both contracts.
pub const BOTH: &[Contract] = &[Contract::Bounded, Contract::Strict];
/// Where only one means anything.
pub const BOUNDED: &[Contract] = &[Contract::Bounded];
/// The other.
pub const STRICT: &[Contract] = &[Contract::Strict];
