//! What the proxy costs, beside what its users would otherwise run: `make bench`.
//!
//! Each part measures one thing on real servers of its own and returns its table, which goes into docs/performance.md
//! between the marks of that part. The machine may be shared and noisy: what counts are ratios of figures that were taken
//! by turns, and their medians. PART picks some parts, ROUNDS says how often they take turns, at least five times for a
//! figure that is to be believed.

mod cpu;
mod feed;
mod fills;
mod growth;
mod latency;
mod level;
mod load;
mod many;
mod paced;
mod passing;
mod proxies;
mod report;
mod steady;
mod strict;
mod table;
mod turns;

use std::error::Error;

/// What a part comes to.
pub type Fallible<T> = Result<T, Box<dyn Error>>;

/// The program that is measured.
pub const BINARY: &str = env!("CARGO_BIN_EXE_cachefence");
/// All parts, in the order of the document.
const PARTS: &[&str] =
    &["table", "feed", "passing", "steady", "latency", "many", "fills", "strict", "growth"];
/// Those that compare proxies.
const PROXIES: &[&str] = &["passing", "steady", "latency", "many"];

fn main() -> Fallible<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let wanted = std::env::var("PART").unwrap_or_default();
    let rounds = setting("ROUNDS", 5)? as usize;
    runtime.block_on(async {
        for part in PARTS.iter().filter(|part| part.contains(&wanted)) {
            let head = report::head(part, rounds)?;
            let table = match *part {
                "table" => table::run(rounds)?,
                "feed" => feed::run(rounds).await?,
                "fills" => fills::run(rounds).await?,
                "strict" => strict::run(rounds).await?,
                "growth" => growth::run(rounds).await?,
                "passing" => passing::run(rounds).await?,
                "steady" => steady::run(rounds).await?,
                "latency" => latency::run(rounds).await?,
                "many" => many::run(rounds).await?,
                unknown => return Err(format!("no part is called {unknown}").into()),
            };
            println!("\n## {part}\n\n{table}");
            report::put(part, &format!("{head}\n{}", table.trim()))?;
        }
        Ok(())
    })
}

/// A number from the environment.
pub fn setting(name: &str, default: u32) -> Fallible<u32> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name}={text}: not a number").into()),
        Err(_) => Ok(default),
    }
}

/// The middle of them.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    percentile(values, 50)
}

/// The value that so many of a hundred do not exceed.
pub fn percentile(values: impl IntoIterator<Item = f64>, percent: usize) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let place = (values.len() * percent / 100).min(values.len().saturating_sub(1));
    values.get(place).copied().unwrap_or(f64::NAN)
}
