//! What pages people: every metric that the alerts and the dashboard name is one that a real proxy shows, every alert has
//! a section of the runbook, and every alert fires when it should.
//!
//! `make test-alerts` asks Prometheus's own programs too.

mod prometheus;
#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use support::{Fallible, Outcome, Setup};

const ALERTS: &str = include_str!("../../config/alerts.yaml");
const DASHBOARD: &str = include_str!("../../config/grafana-dashboard.json");
const RUNBOOK: &str = include_str!("../../docs/runbook.md");
const README: &str = include_str!("../../README.md");

/// The series of a scrape: by name, the labels of each.
type Series = BTreeMap<String, Vec<BTreeMap<String, String>>>;

fn parsed(scrape: &str) -> Series {
    let mut series = Series::new();
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, _)) = line.rsplit_once(' ') else { continue };
        let (name, labels) = name.split_once('{').unwrap_or((name, ""));
        series.entry(name.to_owned()).or_default().push(labels_of(labels.trim_end_matches('}')));
    }
    series
}

/// `a="b", c=~"d"`: names and values, whatever stands between.
fn labels_of(text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('"') {
        let Some((value, after)) = after.split_once('"') else { break };
        let name = name.trim_matches([',', ' ', '=', '~', '!']);
        labels.insert(name.to_owned(), value.to_owned());
        rest = after;
    }
    labels
}

/// The metrics that a text of PromQL names, each with what it asks of their labels.
fn named(text: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("cachefence_") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || "_:/-".contains(c)) {
            continue;
        }
        let end = text[at..]
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .map_or(text.len(), |n| at + n);
        let labels = match text[end..].strip_prefix('{') {
            Some(rest) => labels_of(rest.split_once('}').map_or("", |(labels, _)| labels)),
            None => BTreeMap::new(),
        };
        found.push((text[at..end].to_owned(), labels));
    }
    found
}

/// What a text names and the proxy does not show.
fn missing(text: &str, series: &Series) -> BTreeSet<String> {
    let mut missing = BTreeSet::new();
    for (name, labels) in named(text) {
        let Some(shown) = series.get(&name) else {
            missing.insert(name);
            continue;
        };
        for (label, wanted) in labels {
            // Those that Prometheus itself puts there, and variables of the dashboard.
            if label == "job" || label == "instance" {
                continue;
            }
            let values: BTreeSet<&str> =
                shown.iter().filter_map(|series| series.get(&label).map(String::as_str)).collect();
            let known = |wanted: &str| wanted.starts_with('$') || values.contains(wanted);
            // A mode that this proxy does not run in has no series here.
            if values.is_empty() || !(name == "cachefence_info" || wanted.split('|').all(known)) {
                missing.insert(format!("{name}{{{label}={wanted:?}}}"));
            }
        }
    }
    missing
}

/// The texts of all `expr` and `query` of the dashboard.
fn expressions(value: &serde_json::Value, found: &mut String) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    serde_json::Value::String(text) if name == "expr" || name == "query" => {
                        *found += text;
                        *found += "\n";
                    }
                    _ => expressions(value, found),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

fn dashboard() -> Fallible<String> {
    let mut found = String::new();
    expressions(&serde_json::from_str(DASHBOARD)?, &mut found);
    Ok(found)
}

#[tokio::test]
async fn every_metric_that_is_named_is_shown() -> Outcome {
    let world = Setup::new(support::DEFAULT).replica().start().await?;
    world.warm(1).await?;
    world.rename(1, "Ada").await?;
    world.applied().await?;
    let series = parsed(&world.proxy.metrics().await?);
    let rules: String = ALERTS
        .lines()
        .filter(|line| !line.trim_start().starts_with(['#', 's', 'd']))
        .collect::<Vec<_>>()
        .join("\n");
    for (what, text) in [("config/alerts.yaml", rules), ("config/grafana-dashboard.json", dashboard()?)] {
        assert!(named(&text).len() > 20, "{what}: {:?}", named(&text));
        assert_eq!(missing(&text, &series), BTreeSet::new(), "{what} names what the proxy does not show");
    }
    // The README's table and the proxy agree.
    let shown: BTreeSet<String> = series
        .keys()
        .map(|name| {
            ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .unwrap_or(name)
                .to_owned()
        })
        .collect();
    let listed =
        README.lines().filter_map(|line| line.strip_prefix("| `cachefence_")?.split(['{', '`']).next());
    let listed: BTreeSet<String> = listed.map(|name| format!("cachefence_{name}")).collect();
    assert_eq!(shown, listed, "/metrics and the table in README.md");
    Ok(())
}

#[test]
fn a_misspelt_metric_is_found() {
    let series = parsed("cachefence_clients 1\ncachefence_fills_total{guard=\"g\",action=\"refused\"} 0\n");
    assert!(missing("sum(cachefence_clients) > 1", &series).is_empty());
    for wrong in [
        "sum(cachefence_client) > 1",
        "cachefence_fills_total{verb=\"x\"}",
        "cachefence_fills_total{action=~\"refused|refusd\"}",
    ] {
        assert_eq!(missing(wrong, &series).len(), 1, "{wrong}");
    }
}

#[test]
fn every_recorded_name_is_recorded() -> Outcome {
    let recorded: BTreeSet<&str> =
        ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    assert!(recorded.len() >= 6);
    let text = dashboard()?;
    for (at, _) in text.match_indices("cachefence:") {
        let name = text[at..]
            .split(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c)))
            .next()
            .unwrap_or_default();
        assert!(recorded.contains(name), "the dashboard shows {name}, which nothing records");
    }
    Ok(())
}

fn alerts() -> BTreeSet<&'static str> {
    ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect()
}

#[test]
fn every_alert_has_a_section_of_the_runbook_and_the_other_way_round() {
    let sections: BTreeSet<&str> = RUNBOOK
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .filter(|title| title.starts_with("Cachefence"))
        .collect();
    assert_eq!(alerts(), sections);
    for alert in alerts() {
        let url = format!("runbook_url: docs/runbook.md#{}\n", alert.to_lowercase());
        assert!(ALERTS.contains(&url), "{url}");
    }
}

#[test]
fn every_alert_is_tested_to_fire_and_not_to() {
    let tests = concat!(include_str!("alerts.yaml"), include_str!("observing.yaml"));
    for alert in alerts() {
        for case in [format!("name: {alert}, fires\n"), format!("name: {alert}, does not\n")] {
            assert!(tests.contains(&case), "tests/monitoring/alerts.yaml has no {case}");
        }
    }
}

#[test]
fn prometheus_takes_the_rules_and_they_do_what_they_should() -> Outcome {
    let installed = Command::new("promtool").arg("--version").output().is_ok();
    if !installed {
        assert!(std::env::var_os("CACHEFENCE_TEST_PROMTOOL").is_none(), "promtool is missing");
        println!("promtool is not installed: not asked (make test-alerts installs it)");
        return Ok(());
    }
    for arguments in [
        ["check", "rules", "config/alerts.yaml"],
        ["test", "rules", "tests/monitoring/alerts.yaml"],
        ["test", "rules", "tests/monitoring/observing.yaml"],
    ] {
        let output =
            Command::new("promtool").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output()?;
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        println!("{said}");
        assert!(output.status.success(), "{arguments:?}: {said}");
    }
    Ok(())
}
