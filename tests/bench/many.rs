//! Many connections, large values, and the memory of clients that say nothing.

use std::fmt::Write as _;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::load::{Ask, Load};
use crate::proxies::Stand;
use crate::{Fallible, turns};

const TIME: Duration = Duration::from_secs(2);
const SMALL: usize = 64;
const LARGE: usize = 1 << 20;
/// Connections for large values.
const FEW: usize = 4;
/// As many as this where the system lets a process have them.
const MOST: u64 = 10_000;
/// What a proxy may open for a client, and for all else, at most.
const FILES_OF_CLIENT: u64 = 2;
const OTHER_FILES: u64 = 500;

/// All of these, each as often as there are rounds; the memory once, as what a process has had it keeps.
pub async fn run(rounds: usize) -> Fallible<String> {
    let files = open_files()?;
    let most = files.saturating_sub(OTHER_FILES) / FILES_OF_CLIENT / 100 * 100;
    let most = most.min(MOST) as usize;
    let mut stand = Stand::start().await?;
    let mut text = String::new();
    if (most as u64) < MOST {
        let _ = writeln!(text, "A process may open {files} files there, too few for {MOST} clients.");
    }
    stand.fill(SMALL).await?;
    text += &idle(&stand, most)?;
    for connections in [1_000, most] {
        let _ = write!(text, "\nGET, {SMALL} bytes, {connections} connections:\n\n");
        text += &by_turns(&stand, connections, Ask::Get(SMALL), rounds).await?;
    }
    for (name, ask) in [("SET", Ask::Set(LARGE)), ("GET", Ask::Get(LARGE))] {
        let _ = write!(text, "\n{name}, 1 MiB, {FEW} connections:\n\n");
        text += &by_turns(&stand, FEW, ask, rounds).await?;
    }
    stand.all_admitted().await?;
    Ok(text)
}

/// As many files as the system lets us and our children open.
fn open_files() -> Fallible<u64> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let files = maximum.unwrap_or(u64::MAX).min(MOST * FILES_OF_CLIENT + OTHER_FILES);
    setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum })?;
    Ok(files)
}

async fn by_turns(stand: &Stand, connections: usize, ask: Ask, rounds: usize) -> Fallible<String> {
    let mut taken = turns::Rounds::new();
    for _ in 0..rounds {
        let mut round = Vec::new();
        for way in &stand.ways {
            let mut load = Load::connect(&way.address(), connections, ask)?;
            round.push(stand.measured(way, || load.closed(TIME)).await?);
        }
        taken.push(round);
    }
    Ok(turns::table(&stand.ways, &taken))
}

/// By how much each proxy grows with clients that have had one answer and say no more.
fn idle(stand: &Stand, connections: usize) -> Fallible<String> {
    let mut text = format!(
        "\nMemory of a client that says nothing, of {connections} that had one answer each:\n\n\
         | | KiB |\n| --- | ---: |\n"
    );
    for way in &stand.ways {
        let Some(pid) = way.pid() else { continue };
        let before = resident(pid)?;
        let load = Load::connect(&way.address(), connections, Ask::Get(SMALL))?;
        let grown = resident(pid)? - before;
        drop(load);
        let _ = writeln!(text, "| {} | {:.1} |", way.name, grown / connections as f64);
    }
    Ok(text)
}

/// The memory of a process, in KiB.
fn resident(pid: u32) -> Fallible<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| format!("no VmRSS of process {pid}").into())
}
