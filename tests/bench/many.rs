//! Many connections, large values, and the memory of clients that say nothing.

use std::fmt::Write as _;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::load::{Ask, Load};
use crate::proxies::{Stand, Way};
use crate::{Fallible, report, turns};

const TIME: Duration = Duration::from_secs(2);
const SMALL: usize = 64;
const LARGE: usize = 1 << 20;
/// Connections for large values.
const FEW: usize = 4;
const IDLE: usize = 10_000;
/// Files that a process has open besides its connections, at most.
const OTHER_FILES: u64 = 500;

/// All of these, each as often as there are rounds; the memory once, as what a process has had it keeps.
pub async fn run(rounds: usize) -> Fallible<String> {
    let files = open_files()?;
    let mut stand = Stand::start().await?;
    let mut text = report::head("many", rounds, &stand);
    stand.fill(SMALL).await?;
    text += &idle(&stand, files)?;
    for connections in [1_000, 10_000] {
        let _ = write!(text, "\nGET, {SMALL} bytes, {connections} connections");
        text += &by_turns(&stand, connections, Ask::Get(SMALL), rounds, files).await?;
    }
    for (name, ask) in [("SET", Ask::Set(LARGE)), ("GET", Ask::Get(LARGE))] {
        let _ = write!(text, "\n{name}, 1 MiB, {FEW} connections");
        text += &by_turns(&stand, FEW, ask, rounds, files).await?;
    }
    stand.all_admitted().await?;
    Ok(text)
}

/// As many files as the system lets us and our children open.
fn open_files() -> Fallible<u64> {
    let wanted = Some(65_536);
    let had = getrlimit(Resource::Nofile).maximum;
    let enough = had.is_none_or(|most| Some(most) >= wanted);
    let (current, maximum) = if enough { (wanted, had) } else { (wanted, wanted) };
    // Only root may have more than what was the most.
    if setrlimit(Resource::Nofile, Rlimit { current, maximum }).is_err() {
        setrlimit(Resource::Nofile, Rlimit { current: had, maximum: had })?;
    }
    Ok(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
}

/// The ways that can have so many connections, and the sentence that names the others.
fn able(stand: &Stand, connections: usize, files: u64) -> (Vec<&Way>, String) {
    let needs = |way: &Way| {
        let each = if way.pinned { 2 } else { 1 };
        connections as u64 * each + OTHER_FILES
    };
    let (able, left_out): (Vec<&Way>, Vec<&Way>) = stand.ways.iter().partition(|way| needs(way) <= files);
    let names: Vec<&str> = left_out.iter().map(|way| way.name).collect();
    let left_out = if names.is_empty() {
        String::new()
    } else {
        format!(" (a process may open {files} files, too few for {})", names.join(", "))
    };
    (able, left_out)
}

async fn by_turns(
    stand: &Stand,
    connections: usize,
    ask: Ask,
    rounds: usize,
    files: u64,
) -> Fallible<String> {
    let (ways, left_out) = able(stand, connections, files);
    let mut taken = turns::Rounds::new();
    for _ in 0..rounds {
        let mut round = Vec::new();
        for way in &ways {
            let mut load = Load::connect(&way.address(), connections, ask)?;
            round.push(stand.measured(way, || load.closed(TIME)).await?);
        }
        taken.push(round);
    }
    Ok(format!("{left_out}:\n\n{}", turns::table(&ways, &taken)))
}

/// By how much each proxy grows with clients that have had one answer and say no more.
fn idle(stand: &Stand, files: u64) -> Fallible<String> {
    let (ways, left_out) = able(stand, IDLE, files);
    let mut text = format!(
        "\nMemory of a client that says nothing, of {IDLE} that had one answer each{left_out}:\n\n\
         | | KiB |\n| --- | ---: |\n"
    );
    for way in ways {
        let Some(pid) = way.pid() else { continue };
        let before = resident(pid)?;
        let load = Load::connect(&way.address(), IDLE, Ask::Get(SMALL))?;
        let grown = resident(pid)? - before;
        drop(load);
        let _ = writeln!(text, "| {} | {:.1} |", way.name, grown / IDLE as f64);
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
