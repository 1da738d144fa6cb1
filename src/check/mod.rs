//! `cachefence check`: does all stand that the proxy needs? Each precondition is a row: what was found, what it means,
//! and what to run.
//!
//! Nothing is changed, every question has a limit of time, and what cannot be asked does not keep the rest from being
//! asked. What is wrong with the database is found by the same code that stops the proxy's start
//! ([`crate::feed::catalog`]).

mod audit;
mod host;
mod postgres;
mod redis;
mod report;
mod rights;
mod slot;
mod sources;
mod standbys;
mod strict;
mod tables;

use std::time::Duration;

pub use report::{Remedy, Report, Row, RunIn, Standing};

use crate::config::Config;
use crate::guard::Guards;

/// How long one thing may take to be found out.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at everything.
pub async fn check(config: &Config, guards: &Guards) -> Report {
    let mut report = Report::default();
    host::look(config, &mut report).await;
    let primary = postgres::look(config, guards, &mut report).await;
    sources::look(config, primary.as_ref(), &mut report).await;
    redis::look(config, guards, &mut report).await;
    report
}

/// Bytes as a person reads them, in the units of Postgres.
fn size(bytes: i64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let mut value = bytes;
    let mut unit = "bytes";
    for next in UNITS {
        // As `pg_size_pretty`: ten of a unit are still told in the one below.
        if value.abs() < 10 * 1024 {
            break;
        }
        (value, unit) = ((value + 512) / 1024, next);
    }
    format!("{value} {unit}")
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (10_239, "10239 bytes"),
            (10_240, "10 kB"),
            (16 << 20, "16 MB"),
            (10 << 30, "10 GB"),
            (1 << 50, "1024 TB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
