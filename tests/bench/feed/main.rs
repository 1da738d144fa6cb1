//! What the feed does, beside pg_recvlogical, which does nothing with the same stream: `make bench-feed`.
//!
//! ROWS, ROUNDS and COMMITS change how much is measured; ONLY=bulk, single or latency measures one thing. See
//! docs/performance.md for what was found.

mod cpu;
mod latency;
mod stand;
mod throughput;

use stand::Fallible;

fn main() -> Fallible<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let (rows, rounds, commits) =
            (setting("ROWS", 400_000)?, setting("ROUNDS", 5)?, setting("COMMITS", 1000)?);
        let only = std::env::var("ONLY").unwrap_or_default();
        let wanted = |name: &str| only.is_empty() || only == name;
        if wanted("bulk") {
            throughput::run(rows, 1000, rounds as usize).await?;
        }
        if wanted("single") {
            throughput::run(rows / 4, 1, rounds as usize).await?;
        }
        if wanted("latency") {
            latency::run(commits as usize).await?;
        }
        Ok(())
    })
}

fn setting(name: &str, default: u32) -> Fallible<u32> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name}={text}: not a number").into()),
        Err(_) => Ok(default),
    }
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    percentile(values, 50)
}

fn percentile(values: impl IntoIterator<Item = f64>, percent: usize) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let place = (values.len() * percent / 100).min(values.len().saturating_sub(1));
    values.get(place).copied().unwrap_or(f64::NAN)
}
