//! The counts that are committed, and how those of now compare with them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::Fallible;

/// Where they are.
pub const FILE: &str = "tests/bench/instructions/counts.toml";
/// What may be added before it is too much, and what may be saved before it is told, in percent.
const TOLERANCE: f64 = 10.0;

/// What made the program: with another compiler, or for another processor, the counts are others.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Compiler {
    /// Major and minor number: `1.95`.
    rustc: String,
    /// Such as `x86_64`.
    architecture: String,
}

impl Compiler {
    /// The one that has made this program.
    pub fn of_now() -> Fallible<Self> {
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
        let told = String::from_utf8(Command::new(rustc).arg("--version").output()?.stdout)?;
        let version = told.split_whitespace().nth(1).unwrap_or_default();
        let parts: Vec<&str> = version.split('.').take(2).collect();
        Ok(Self { rustc: parts.join("."), architecture: std::env::consts::ARCH.into() })
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rustc {} for {}", self.rustc, self.architecture)
    }
}

/// The file.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Counts {
    /// None before the first were accepted.
    pub compiler: Option<Compiler>,
    instructions: BTreeMap<String, u64>,
}

impl Counts {
    /// Those that are committed; none before they were accepted for the first time.
    pub fn read() -> Fallible<Self> {
        match std::fs::read_to_string(path()) {
            Ok(text) => Ok(toml::from_str(&text).map_err(|error| format!("{FILE}: {error}"))?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(format!("{FILE}: {error}").into()),
        }
    }

    /// With those of now in the place of what was committed; cases that were not run stay, if they are of this compiler.
    pub fn accept(self, compiler: Compiler, now: Vec<(String, f64)>) -> Fallible<Self> {
        let mut instructions =
            if self.compiler.as_ref() == Some(&compiler) { self.instructions } else { BTreeMap::new() };
        let known: Vec<&str> = crate::cases::all().iter().map(|case| case.name).collect();
        instructions.retain(|name, _| known.contains(&name.as_str()));
        instructions.extend(now.into_iter().map(|(name, count)| (name, count.round() as u64)));
        Ok(Self { compiler: Some(compiler), instructions })
    }

    /// Into the file.
    pub fn write(&self) -> Fallible<()> {
        let text = format!(
            "# Instructions of one operation of each case. Written by `make instructions ACCEPT=yes`.\n\n{}",
            toml::to_string(self)?
        );
        Ok(std::fs::write(path(), text)?)
    }

    /// By how many percent a count is above the committed one.
    fn change(&self, name: &str, now: f64) -> Option<f64> {
        self.instructions.get(name).map(|then| (now / *then as f64 - 1.0) * 100.0)
    }
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE)
}

/// All of them side by side.
pub fn table(now: &[(String, f64)], committed: &Counts, comparable: bool) -> String {
    let width = now.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let mut out = format!("{:width$} {:>12} {:>12} {:>8}\n", "case", "now", "committed", "change");
    for (name, count) in now {
        let then = committed.instructions.get(name).map_or_else(|| "-".into(), u64::to_string);
        let change = committed.change(name, *count).filter(|_| comparable);
        let change = change.map_or_else(|| "-".into(), |change| format!("{change:+.1} %"));
        out += &format!("{name:width$} {count:>12.0} {then:>12} {change:>8}\n");
    }
    out
}

/// Says which cases differ by more than is tolerated. False if one of them fails.
pub fn judge(now: &[(String, f64)], committed: &Counts) -> bool {
    let mut good = true;
    for (name, count) in now {
        match committed.change(name, *count) {
            None => {
                println!("\nNEW: {name} has no committed count");
                good = false;
            }
            Some(change) if change > TOLERANCE => {
                println!("\nTOO MANY: {name} takes {change:.1} % more instructions than committed");
                good = false;
            }
            Some(change) if change < -TOLERANCE => {
                println!("\nFEWER: {name} takes {:.1} % less; accept it, so that it stays so", -change);
            }
            Some(_) => {}
        }
    }
    if !good {
        println!("\nif that is meant to be so: make instructions ACCEPT=yes, and commit {FILE}");
    }
    good
}
