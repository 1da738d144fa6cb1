//! What a load costs that nobody has trouble with: the same requests per second through every proxy.

use std::time::Duration;

use crate::load::{Ask, Load};
use crate::proxies::Stand;
use crate::{Fallible, setting, turns};

const CONNECTIONS: usize = 50;
const SIZE: usize = 64;
/// Slices are short and many, so that what else the machine does spoils some of them and not a whole round.
const SLICE: Duration = Duration::from_millis(500);
const SLICES: usize = 6;

/// CPU per request of proxies and of Redis, at RATE requests per second.
pub async fn run(rounds: usize) -> Fallible<String> {
    let rate = f64::from(setting("RATE", 20_000)?);
    let mut stand = Stand::start().await?;
    stand.fill(SIZE).await?;
    let mut loads = Vec::new();
    for way in &stand.ways {
        loads.push(Load::connect(&way.address(), CONNECTIONS, Ask::Get(SIZE))?);
    }
    let mut taken = turns::Rounds::new();
    for _ in 0..rounds * SLICES {
        let mut round = Vec::new();
        for (way, load) in stand.ways.iter().zip(&mut loads) {
            round.push(stand.measured(way, || load.paced(rate, SLICE)).await?);
        }
        taken.push(round);
    }
    let table = turns::table(&stand.ways, &taken);
    Ok(format!(
        "GET, {SIZE} bytes, {rate} requests/s on {CONNECTIONS} connections, {} slices of half a second:\n\n{table}",
        taken.len()
    ))
}
