//! What a load costs that nobody has trouble with: the same requests per second through every proxy.

use std::time::Duration;

use crate::load::{Ask, Load};
use crate::proxies::Stand;
use crate::{Fallible, report, setting, turns};

const CONNECTIONS: usize = 50;
const SIZE: usize = 64;
const TIME: Duration = Duration::from_secs(2);

/// CPU per request of proxies and of Redis, at RATE requests per second.
pub async fn run(rounds: usize) -> Fallible<String> {
    let rate = f64::from(setting("RATE", 20_000)?);
    let mut stand = Stand::start().await?;
    let head = report::head("steady", rounds, &stand);
    stand.fill(SIZE).await?;
    let mut taken = turns::Rounds::new();
    for _ in 0..rounds {
        let mut round = Vec::new();
        for way in &stand.ways {
            let mut load = Load::connect(&way.address(), CONNECTIONS, Ask::Get(SIZE))?;
            round.push(stand.measured(way, || load.paced(rate, TIME)).await?);
        }
        taken.push(round);
    }
    let ways: Vec<_> = stand.ways.iter().collect();
    let table = turns::table(&ways, &taken);
    Ok(format!("{head}\nGET, {SIZE} bytes, {rate} requests/s on {CONNECTIONS} connections:\n\n{table}"))
}
