//! What `cargo deny` would say of the lock files, without it and without a network: the lists are those of deny.toml.
//! Advisories are another matter: they need a database that is of today. See docs/security.md.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use spdx::{Expression, ParseMode};
use toml::Table;

use super::wire::{Fallible, Outcome};

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn read(name: &str) -> Fallible<Table> {
    let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    Ok(std::fs::read_to_string(path)?.parse()?)
}

fn packages(lock: &str) -> Fallible<Vec<Table>> {
    let packages =
        read(lock)?.get("package").and_then(|list| list.as_array().cloned()).ok_or("no packages")?;
    Ok(packages.into_iter().filter_map(|package| package.as_table().cloned()).collect())
}

fn text<'a>(table: &'a Table, name: &str) -> &'a str {
    table.get(name).and_then(|value| value.as_str()).unwrap_or_default()
}

/// The names in a list of deny.toml: texts, or tables with a `crate`.
fn listed(path: [&str; 2]) -> Fallible<BTreeSet<String>> {
    let deny = read("deny.toml")?;
    let list = deny.get(path[0]).and_then(|part| part.get(path[1])).and_then(|list| list.as_array());
    let name =
        |value: &toml::Value| value.as_str().or_else(|| value.get("crate")?.as_str()).map(str::to_owned);
    Ok(list.ok_or("no such list")?.iter().filter_map(name).collect())
}

/// Everything is from crates.io, and is what it was when it was locked. Ours are the packages without a source.
#[test]
fn dependencies_come_from_one_registry_with_checksums() -> Outcome {
    for (lock, ours) in
        [("Cargo.lock", &["cachefence"][..]), ("fuzz/Cargo.lock", &["cachefence", "cachefence-fuzz"])]
    {
        let packages = packages(lock)?;
        assert!(packages.len() > 100, "{lock} has been read");
        for package in packages.iter().filter(|package| !ours.contains(&text(package, "name"))) {
            let checksum = text(package, "checksum");
            let is_hash = checksum.len() == 64 && checksum.bytes().all(|b| b.is_ascii_hexdigit());
            assert!(text(package, "source") == REGISTRY && is_hash, "{lock}: {package}");
        }
    }
    Ok(())
}

/// A second version of a crate is looked at before it gets in, and one that is banned does not.
#[test]
fn there_are_no_further_duplicates_and_nothing_that_is_banned() -> Outcome {
    let mut versions: BTreeMap<String, usize> = BTreeMap::new();
    for package in packages("Cargo.lock")? {
        *versions.entry(text(&package, "name").to_owned()).or_default() += 1;
    }
    let twice: BTreeSet<String> =
        versions.iter().filter(|(_, count)| **count > 1).map(|(name, _)| name.clone()).collect();
    assert_eq!(twice, listed(["bans", "skip"])?, "Cargo.lock and bans.skip of deny.toml");
    for banned in listed(["bans", "deny"])? {
        assert!(!versions.contains_key(&banned), "{banned}");
    }
    Ok(())
}

/// Of the packages for this platform, whose sources are here: they were built for this test.
#[test]
fn every_licence_is_allowed() -> Outcome {
    let rustc = String::from_utf8(Command::new("rustc").arg("-vV").output()?.stdout)?;
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("no host")?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform", host]);
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("no packages")?;
    assert!(packages.len() > 100);
    let allowed = listed(["licenses", "allow"])?;
    for package in packages {
        let (name, licence) = (&package["name"], package["license"].as_str().unwrap_or_default());
        let expression =
            Expression::parse_mode(licence, ParseMode::LAX).map_err(|error| format!("{name}: {error}"))?;
        // One with an exception is another licence, and would be listed as such.
        let is_allowed = expression.evaluate(|part| allowed.contains(&part.to_string()));
        assert!(is_allowed, "{name}: {licence}");
    }
    Ok(())
}
