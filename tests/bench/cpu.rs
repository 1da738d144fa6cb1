//! What processes have used of the CPU, as Linux counts it.

use std::fs;

/// Linux tells user space times in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of CPU that a process has used.
pub fn own(pid: u32) -> f64 {
    ticks(pid, 14..=15)
}

/// Nanoseconds of CPU that the threads of a live process have used, as its scheduler counts them: fine enough for runs of a
/// second. Those of threads that have ended are not in it.
pub fn nanos(pid: u32) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let used = |thread: fs::DirEntry| {
        let times = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        times.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    threads.flatten().filter_map(used).sum()
}

/// Seconds of CPU that the children of a process had used that have ended and been waited for.
pub fn ended_children(pid: u32) -> f64 {
    ticks(pid, 16..=17)
}

/// The sum of some fields of `/proc/PID/stat`, counted from 1 as proc(5) does.
fn ticks(pid: u32, fields: std::ops::RangeInclusive<usize>) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is a name in parentheses, which may have spaces in it.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let values = after_name.split_ascii_whitespace().skip(fields.start() - 3).take(fields.count());
    values.filter_map(|value| value.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
}

/// How many children a process has, be they running or not waited for yet.
pub fn children(pid: u32) -> usize {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace().count()
}
