//! The documents say what is there: their links lead somewhere, their settings load, and the walk of getting-started
//! can be walked.

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cachefence::config::Config;
use cachefence::demo::client::Reply;
use cachefence::demo::servers::wait_until;
use support::{Outcome, PATIENCE, Setup, World};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        ["README.md", "CHANGELOG.md"].iter().map(|name| root().join(name)).collect();
    for entry in std::fs::read_dir(root().join("docs")).expect("docs") {
        let path = entry.expect("an entry").path();
        found.extend(path.extension().is_some_and(|end| end == "md").then_some(path));
    }
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A text without its blocks of code: there brackets are brackets.
fn prose(text: &str) -> String {
    let mut inside = false;
    let kept = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    kept.collect::<Vec<_>>().join("\n")
}

/// The blocks of code of one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() == format!("```{language}") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != "```").collect();
            found.push(block.join("\n") + "\n");
        }
    }
    found
}

/// What a heading's link ends with, by GitHub's rule.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_');
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    prose(text)
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| anchor(line.trim_start_matches('#')))
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    let mut links = 0;
    for document in documents() {
        let text = prose(&read(&document)).replace('\n', " ");
        for after in text.split("](").skip(1) {
            let target = after.split(')').next().unwrap_or_default();
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            links += 1;
            let (file, part) =
                target.split_once('#').map_or((target, None), |(file, part)| (file, Some(part)));
            let path = match file {
                "" => document.clone(),
                file => document.parent().expect("a directory").join(file),
            };
            let leads = path.exists() && part.is_none_or(|part| anchors(&read(&path)).contains(part));
            if !leads {
                broken
                    .push(format!("{}: {target}", document.strip_prefix(root()).expect("inside").display()));
            }
        }
    }
    assert!(links > 100, "{links}");
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn anchors_are_those_of_the_web_page() {
    assert_eq!(anchor(" 6. Enforce"), "6-enforce");
    assert_eq!(anchor(" The slot holds WAL"), "the-slot-holds-wal");
    assert!(anchors("# A\n```sh\n# not one\n```\n## `b`: c\n").contains("b-c"));
}

/// Blocks with both servers in them are whole settings.
#[test]
fn whole_settings_in_documents_load() {
    let mut loaded = 0;
    for document in documents() {
        for block in blocks(&read(&document), "toml") {
            if !(block.contains("[redis]") && block.contains("[postgres]")) {
                continue;
            }
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), &block).expect("written");
            if let Err(error) = Config::load(Some(file.path())) {
                panic!("{}: {error}\n{block}", document.display());
            }
            loaded += 1;
        }
    }
    assert!(loaded >= 2, "{loaded}");
}

/// The walk of getting-started, by the same commands: what is counted while it observes is what the page shows, and
/// enforcing does what it says.
#[tokio::test]
async fn the_walk_of_getting_started_can_be_walked() -> Outcome {
    let page = read(&root().join("docs/getting-started.md"));
    let settings = blocks(&page, "toml").into_iter().next().ok_or("the page has no settings")?;
    // Its guard and mode, before servers of our own.
    let guard =
        settings.split_once("[[guard]]").map(|(_, guard)| format!("[[guard]]{guard}")).ok_or("no guard")?;
    let mode = "\n[proxy]\nmode = \"observe\"\n";
    assert!(settings.contains(mode.trim()));
    let world = Setup::new(&(mode.to_owned() + &guard)).start().await?;
    let mut client = world.client().await?;
    client.cmd(&["GET", "user:2"]).await?;
    client.cmd(&["SET", "user:2", "Ada 2", "EX", "300"]).await?;
    client.cmd(&["GET", "user:2"]).await?;
    world.rename(3, "Grace").await?;
    world.level().await?;
    let mut other = world.client().await?;
    other.cmd(&["SET", "user:3", "Ada 3", "EX", "300"]).await?;
    other.cmd(&["SET", "user:1", "Ada 1", "EX", "300"]).await?;
    let metrics = world.proxy.metrics().await?;
    let shown = page.lines().filter(|line| line.starts_with("cachefence_"));
    let shown: Vec<&str> = shown.collect();
    assert_eq!(shown.len(), 6);
    for line in shown {
        assert!(metrics.contains(&format!("{line}\n")), "{line}\n{metrics}");
    }

    let World { mut proxy, redis, replica, sql, primary, servers, .. } = world;
    proxy.rewrite(&(servers.clone() + &guard))?;
    proxy.stop().await?;
    proxy.relaunch().await?;
    let world = World { proxy, redis, replica, sql, primary, servers, guards: guard };
    world.level().await?;
    let mut client = world.client().await?;
    assert_eq!(client.cmd(&["GET", "user:3"]).await?, Reply::Nil, "the step to enforce purges");
    world.rename(3, "Lovelace").await?;
    world.level().await?;
    let mut other = world.client().await?;
    assert_eq!(other.cmd(&["SET", "user:3", "Ada 3", "EX", "300"]).await?, Reply::ok());
    assert_eq!(world.held("user:3").await?, None);
    client.cmd(&["GET", "user:3"]).await?;
    client.cmd(&["SET", "user:3", "Lovelace", "EX", "300"]).await?;
    assert_eq!(world.held("user:3").await?.as_deref(), Some("Lovelace"));
    world.rename(3, "King").await?;
    world.gone("user:3").await?;
    let counted = async || world.fills("stale", "refused").await.is_ok_and(|fills| fills == 1.0);
    Ok(wait_until("the refusal to be counted", PATIENCE, counted).await?)
}
