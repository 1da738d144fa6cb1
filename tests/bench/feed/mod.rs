//! What the feed does, beside pg_recvlogical, which does nothing with the same stream.
//!
//! ROWS and COMMITS change how much is measured.

mod latency;
mod stand;
mod throughput;

use crate::{Fallible, setting};

/// Rows per second and CPU per row, in large transactions and in small ones; and from a commit to its deletions.
pub async fn run(rounds: usize) -> Fallible<String> {
    let (rows, commits) = (setting("ROWS", 400_000)?, setting("COMMITS", 1000)?);
    let bulk = throughput::run(rows, 1000, rounds).await?;
    let single = throughput::run(rows / 4, 1, rounds).await?;
    let latency = latency::run(commits as usize).await?;
    Ok(format!("{bulk}\n{single}\n{latency}"))
}
