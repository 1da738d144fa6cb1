//! The tables of docs/performance.md, which the benchmarks write themselves.

use std::path::Path;
use std::process::Command;

use cachefence::demo::servers::installed;

use crate::Fallible;
use crate::proxies::others;

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

/// What a part is taken on, and how. To be asked for before it runs.
pub fn head(part: &str, rounds: usize) -> Fallible<String> {
    let mut versions = vec![version(crate::BINARY.as_ref(), "--version")];
    versions.extend(installed()?.iter().map(|program| version(program, "--version")));
    let mut missing = Vec::new();
    if crate::PROXIES.contains(&part) {
        versions.push(version("redis-benchmark".as_ref(), "--version"));
        for proxy in others::ALL {
            match proxy.program() {
                Some(program) => versions.push(version(&program, proxy.version)),
                None => missing.push(proxy.name),
            }
        }
    }
    let missing =
        if missing.is_empty() { String::new() } else { format!(" Not installed: {}.", missing.join(", ")) };
    let versions = versions.join(", ");
    Ok(format!("{}. {versions}.{missing} `make bench PART={part}`, {rounds} rounds.\n", machine()))
}

/// What a program says of its version, in its first line.
fn version(program: &Path, argument: &str) -> String {
    let Ok(output) = Command::new(program).arg(argument).output() else {
        return format!("{}: ?", program.display());
    };
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8_lossy(&text);
    let words = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().split_whitespace();
    // Where it is does not matter, nor of what Redis was built.
    let is_said = |word: &&str| !word.starts_with('/') && !word.contains('=') || word.starts_with("v=");
    let told = words.filter(is_said).collect::<Vec<&str>>().join(" ");
    // Envoy tells the commit, the version, and how it was built, with slashes between.
    if let Some(build) = told.strip_prefix("version: ") {
        return format!("Envoy {}", build.split('/').nth(1).unwrap_or(build));
    }
    told.split(" - ").next().unwrap_or_default().trim_start_matches("This is ").to_owned()
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
