//! What a commit waits for besides: the disk.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use crate::{Fallible, median};

/// Which device a directory is on, and how long it takes to make one page of the log durable there.
pub fn described(directory: &Path) -> Fallible<String> {
    let directory = directory.canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (device, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
            directory.starts_with(place).then_some((place.len(), device, kind))
        })
        .max();
    let (device, kind) = mount.map_or(("an unknown device", "?"), |(_, device, kind)| (device, kind));
    let mut file = tempfile::tempfile_in(&directory)?;
    let mut times = Vec::new();
    for _ in 0..200 {
        file.write_all(&[1; 8192])?;
        let began = Instant::now();
        file.sync_data()?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    let sync = median(times);
    Ok(format!(
        "`fsync` is on; all data is on one disk, {device} ({kind}), where an `fdatasync` of 8 KiB takes {sync:.0} us."
    ))
}
