//! Runs the cases under callgrind.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::meter::WATCHED;
use crate::{Fallible, MEASURED};

/// Instructions of one operation of each of these cases, in their order. As many run at a time as there are cores.
pub fn count(names: &[&str]) -> Fallible<Vec<(String, f64)>> {
    let directory = tempfile::tempdir()?;
    let next = AtomicUsize::new(0);
    let counts = Mutex::new(vec![None; names.len()]);
    std::thread::scope(|scope| -> Fallible<()> {
        let work = || -> Fallible<()> {
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let Some(name) = names.get(place) else { return Ok(()) };
                let count = count_one(name, &directory.path().join(place.to_string()))?;
                counts.lock().map_err(|_| "a count has panicked")?[place] = Some(count);
            }
        };
        let workers: Vec<_> =
            (0..std::thread::available_parallelism()?.get()).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a count has panicked")?)
    })?;
    let counts = counts.into_inner().map_err(|_| "a count has panicked")?;
    Ok(names.iter().map(|name| (*name).to_owned()).zip(counts.into_iter().flatten()).collect())
}

/// Instructions of one operation of a case.
fn count_one(name: &str, out: &Path) -> Fallible<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--toggle-collect={WATCHED}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args([MEASURED, name])
        // Without the lists that the allocator tidies up all at once now and then: when depends on the order of what is freed.
        .env("GLIBC_TUNABLES", "glibc.malloc.mxfast=0")
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let told = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let operations: u32 = told.trim().parse().map_err(|_| format!("{name}: said {told:?}"))?;
    let profile = std::fs::read_to_string(out)?;
    let totals = profile.lines().find_map(|line| line.strip_prefix("totals: "));
    match totals.and_then(|total| total.trim().parse::<u64>().ok()) {
        // The function that is watched was not found.
        None | Some(0) => Err(format!("{name}: callgrind has counted nothing").into()),
        Some(total) => Ok(total as f64 / f64::from(operations)),
    }
}
