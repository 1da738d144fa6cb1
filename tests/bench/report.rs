//! The tables of docs/performance.md, which the benchmarks write themselves.

use std::path::Path;

use crate::Fallible;
use crate::proxies::Stand;

/// Puts a part's table between its marks.
pub fn put(part: &str, table: &str) -> Fallible<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/performance.md");
    let document = std::fs::read_to_string(&path)?;
    std::fs::write(&path, within(&document, part, table)?)?;
    Ok(())
}

/// The document with that between the marks of a part.
fn within(document: &str, part: &str, table: &str) -> Fallible<String> {
    let (from, to) = (format!("<!-- bench: {part} -->"), format!("<!-- end of {part} -->"));
    let marked =
        document.split_once(&from).and_then(|(before, rest)| Some((before, rest.split_once(&to)?.1)));
    let Some((before, after)) = marked else {
        return Err(format!("docs/performance.md has no {from} with {to} behind it").into());
    };
    Ok(format!("{before}{from}\n{}\n{to}{after}", table.trim()))
}

/// What a table of proxies was taken on, and how.
pub fn head(part: &str, rounds: usize, stand: &Stand) -> String {
    let missing = match &stand.missing[..] {
        [] => String::new(),
        missing => format!(" Not installed there: {}.", missing.join(", ")),
    };
    format!(
        "{}. {}.{missing} `make bench PART={part}`, {rounds} rounds.\n",
        machine(),
        stand.versions.join(", ")
    )
}

/// Processor, kernel, and how busy it was before.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let models: Vec<&str> = cpus
        .lines()
        .filter(|line| line.starts_with("model name"))
        .filter_map(|line| Some(line.split_once(": ")?.1))
        .collect();
    let load = read("/proc/loadavg");
    format!(
        "{}, {} cores, Linux {}, load average before {}",
        models.first().copied().unwrap_or("unknown processor").trim(),
        models.len(),
        read("/proc/sys/kernel/osrelease").trim(),
        load.split(' ').next().unwrap_or_default(),
    )
}
