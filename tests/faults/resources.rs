//! What a process holds of the machine.

use std::fmt;
use std::fs;

use crate::support::Fallible;

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Memory, in KiB.
    pub rss_kib: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

impl Resources {
    /// Of a process.
    pub fn of(pid: u32) -> Fallible<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).ok_or(format!("no {name}"))
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
        Ok(Self { rss_kib: field("VmRSS")?, descriptors, threads: field("Threads")? })
    }
}

/// The most memory that a process has had since it was forgotten, in KiB.
pub fn peak_kib(pid: u32) -> Fallible<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next());
    Ok(peak.ok_or("no VmHWM")?.parse()?)
}

/// Forgets the most memory that a process has had.
pub fn forget_peak(pid: u32) -> Fallible<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rss_kib, descriptors, threads } = self;
        let mib = *rss_kib as f64 / 1024.0;
        write!(f, "{mib:.1} MiB, {descriptors} descriptors, {threads} threads")
    }
}
