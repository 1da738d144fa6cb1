//! A fault's rounds under one contract, from a new stand to the comparison at the end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use cachefence::config::Contract;

use crate::dice::Dice;
use crate::fault::Fault;
use crate::load::Load;
use crate::stand::{Options, Stand};
use crate::support::{Fallible, variable};
use crate::table::{self, Row};

/// Lines of the proxy's log that are shown when a round fails.
const SHOWN: usize = 40;

/// Runs it. An error is a fault that could not be caused, was not seen, or was not recovered from; what the judge found
/// is in the row.
pub async fn run(fault: &Fault, contract: Contract, rounds: u32) -> Fallible<Row> {
    let mut dice = Dice::new(variable("SEED", 0x5EED)?);
    let mut stand = Stand::start(contract, (fault.options)(Options::default())).await?;
    let load = Load::start(&stand, &mut dice);
    let mut recovered = Vec::new();
    for round in 1..=rounds {
        match once(fault, &mut stand, &load, &mut dice).await {
            Ok(time) => recovered.push(time),
            Err(error) => return Err(failed(fault, contract, round, &stand, &*error).into()),
        }
    }
    // What is read after the last is judged, too.
    let ended = async {
        load.warm().await?;
        load.written_all().await?;
        stand.level().await?;
        stand.differing().await
    };
    let lost = match ended.await {
        Ok(lost) => lost,
        Err(error) => return Err(failed(fault, contract, rounds, &stand, &*error).into()),
    };
    let counts = &load.shared().counts;
    let (reads, stale) = (counts.hits.load(Ordering::Relaxed), counts.stale.load(Ordering::Relaxed));
    let example = load.stop().await?;
    if stale > 0 || !lost.is_empty() {
        eprintln!("{}", tail(&stand));
    }
    Ok(Row { fault: fault.name, contract, rounds, reads, stale, example, lost, recovered })
}

/// One round; returns how long the recovery took.
pub async fn once(fault: &Fault, stand: &mut Stand, load: &Load, dice: &mut Dice) -> Fallible<Duration> {
    load.warm().await?;
    (fault.round)(stand, load, dice).await?;
    stand.recovered().await
}

fn failed(
    fault: &Fault,
    contract: Contract,
    round: u32,
    stand: &Stand,
    error: &dyn std::error::Error,
) -> String {
    format!("{} ({}), round {round}: {error}\n{}", fault.name, table::name(contract), tail(stand))
}

/// The end of the proxy's log.
fn tail(stand: &Stand) -> String {
    let log = stand.proxy.log();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(SHOWN)..].join("\n")
}
