//! One run of pgbench.

use std::path::Path;
use std::process::{Command, Stdio};

use cachefence::demo::servers::Postgres;

use crate::{Fallible, percentile};

/// Rows of the table that is updated.
pub const ROWS: u32 = 10_000;

/// What transactions took, in milliseconds.
#[derive(Clone, Copy, Default)]
pub struct Latency {
    pub mean: f64,
    pub p50: f64,
    pub p99: f64,
}

/// So many sessions for so many seconds, with this `synchronous_commit`.
pub fn run(primary: &Postgres, synchronous_commit: &str, sessions: u32, seconds: u32) -> Fallible<Latency> {
    let dir = tempfile::tempdir()?;
    let script = dir.path().join("script");
    let update =
        format!("\\set id random(1, {ROWS})\nUPDATE accounts SET balance = balance + 1 WHERE id = :id;\n");
    std::fs::write(&script, update)?;
    let mut command = Command::new(primary.programs().join("pgbench"));
    command.args(["--no-vacuum", "--protocol=prepared", "--log", "--jobs=1"]);
    command.arg(format!("--client={sessions}")).arg(format!("--time={seconds}"));
    command.arg(format!("--file={}", script.display()));
    command.arg(format!("--log-prefix={}", dir.path().join("log").display())).arg(primary.url());
    command.env("PGOPTIONS", format!("-c synchronous_commit={synchronous_commit}"));
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        return Err(format!("pgbench: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let times = logged(dir.path())?;
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    let (p50, p99) = (percentile(times.iter().copied(), 50), percentile(times, 99));
    Ok(Latency { mean, p50, p99 })
}

/// What each transaction took: the third field of its line.
fn logged(dir: &Path) -> Fallible<Vec<f64>> {
    let mut times = Vec::new();
    for file in std::fs::read_dir(dir)? {
        let file = file?;
        if !file.file_name().to_string_lossy().starts_with("log.") {
            continue;
        }
        for line in std::fs::read_to_string(file.path())?.lines() {
            let time: f64 =
                line.split(' ').nth(2).ok_or_else(|| format!("pgbench logged {line:?}"))?.parse()?;
            times.push(time / 1e3);
        }
    }
    if times.is_empty() { Err("pgbench logged nothing".into()) } else { Ok(times) }
}
