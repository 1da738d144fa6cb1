//! Redis's own test suite, once straight and once through the proxy.
//!
//! The suite is not part of this project. `make redis-suite SUITE=<checkout of redis, of the server's version>` runs
//! those of its units that can run against a server that is there already, unit by unit and each on fresh servers,
//! and compares which of their tests passed. A test that differs has to be in `tests/redis_suite.txt` with a reason.

#[path = "wire/pair.rs"]
mod pair;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cachefence::demo::servers::{Postgres, RedisOptions};
use pair::{Pair, server_version, speaks_resp3};
use wire::{Fallible, Outcome, postgres};

/// The differences that are known: `unit: test: reason`, with a `|` between.
const KNOWN: &str = include_str!("redis_suite.txt");

/// Seconds without any progress after which a test counts as hanging.
const HANGS: &str = "60";

/// What the suite leaves out on both sides, besides what it knows to need a server of its own. A proxy does not pass
/// replication and SWAPDB: tests of those stop half way and spoil others that follow.
const DENY: &str = "-cluster -large-memory -slow -needs:repl";
const DENY_RESP3: &str = "-cluster -large-memory -slow -needs:repl -resp3";
const SKIP: &[&str] = &["/SWAPDB"];

/// Hanging tests of one unit, after which the rest of it is given up.
const MAX_HANGS: usize = 12;

/// What became of the tests of a unit: their names, and for those that failed what was said.
type Results = BTreeMap<String, Result<(), String>>;

/// One side of the comparison.
#[derive(Clone)]
struct Side {
    name: &'static str,
    port: u16,
    /// Where the suite looks for ports for itself.
    base: u16,
    /// Where the output goes.
    logs: PathBuf,
    /// What the suite shall not run.
    deny: &'static str,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a checkout of redis, and many minutes: make redis-suite SUITE=..."]
async fn the_suite_of_redis_passes_through_the_proxy_as_it_does_without() -> Outcome {
    let suite = PathBuf::from(std::env::var("CACHEFENCE_SUITE")?).canonicalize()?;
    let chosen = std::env::var("CACHEFENCE_SUITE_UNITS").unwrap_or_default();
    let units = units(&suite, &chosen)?;
    let postgres = postgres().await?;
    let mut totals = Totals::default();
    for (number, unit) in units.iter().enumerate() {
        let slot = format!("suite{number}");
        let mut found = differences(&suite, &postgres, unit, &slot, false).await?;
        if !found.differences.is_empty() {
            // Some tests look at the clock. So what differs is run again, with the machine to itself.
            let again = differences(&suite, &postgres, unit, &format!("{slot}b"), true).await?;
            found = found.confirmed_by(again);
        }
        println!(
            "{unit}: straight {} passed, {} failed; through the proxy {} passed, {} failed; {} differ",
            found.direct.0,
            found.direct.1,
            found.through.0,
            found.through.1,
            found.differences.len()
        );
        for (test, why) in &found.differences {
            println!("    {unit} | {test} | {why}");
        }
        totals.add(unit, found);
    }
    totals.report()
}

/// The units that are asked for, or all that do not start servers of their own.
fn units(suite: &Path, chosen: &str) -> Fallible<Vec<String>> {
    if !chosen.is_empty() {
        return Ok(chosen.split(',').map(str::to_owned).collect());
    }
    let output = runner(suite).arg("--list-tests").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter(|line| line.starts_with("unit/")).map(str::to_owned).collect())
}

fn runner(suite: &Path) -> Command {
    let mut command = Command::new("tclsh");
    let helper = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/redis_suite.tcl");
    command.current_dir(suite).arg(helper).stdin(Stdio::null());
    command
}

/// Both sides of one unit.
#[derive(Default)]
struct Found {
    version: String,
    direct: (usize, usize),
    through: (usize, usize),
    differences: BTreeMap<String, String>,
}

impl Found {
    /// What both runs found.
    fn confirmed_by(self, again: Found) -> Found {
        let differences =
            again.differences.into_iter().filter(|(test, _)| self.differences.contains_key(test));
        Found { differences: differences.collect(), ..again }
    }
}

async fn differences(
    suite: &Path,
    postgres: &Postgres,
    unit: &str,
    slot: &str,
    one_by_one: bool,
) -> Fallible<Found> {
    // As Redis's own project starts the server for this.
    let options = RedisOptions::default().args(&["--enable-debug-command", "yes"]);
    let options = options.args(&["--enable-protected-configs", "yes", "--enable-module-command", "yes"]);
    let pair = Pair::with(options, postgres, slot, &[]).await?;
    let version = server_version(&pair.direct).await?;
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("redis-suite").join(version.replace(' ', "-"));
    // One test that asks for RESP3 in vain takes the rest of its unit with it.
    let deny = if speaks_resp3(&pair.proxy).await? { DENY } else { DENY_RESP3 };
    let side = |name, port| {
        let base = if name == "straight" { 21111 } else { 21211 };
        Side { name, port, base, logs: logs.clone(), deny }
    };
    let run = |side: Side| {
        let (suite, unit) = (suite.to_owned(), unit.to_owned());
        tokio::task::spawn_blocking(move || run(&suite, &unit, &side).map_err(|error| error.to_string()))
    };
    let direct = run(side("straight", pair.direct.port()));
    let (direct, through) = if one_by_one {
        let direct = direct.await??;
        (direct, run(side("proxied", pair.proxy.port())).await??)
    } else {
        let through = run(side("proxied", pair.proxy.port()));
        (direct.await??, through.await??)
    };
    let names: BTreeSet<&String> = direct.keys().chain(through.keys()).collect();
    let mut differences = BTreeMap::new();
    for name in names {
        let why = match (direct.get(name), through.get(name)) {
            (Some(Ok(())), Some(Err(why))) => format!("failed through the proxy: {why}"),
            (Some(Ok(())), None) => "did not run through the proxy".to_owned(),
            (Some(Err(why)), Some(Ok(()))) => format!("failed straight only: {why}"),
            (None, Some(_)) => "ran through the proxy only".to_owned(),
            _ => continue,
        };
        differences.insert(name.clone(), why);
    }
    let counts = |results: &Results| {
        let passed = results.values().filter(|result| result.is_ok()).count();
        (passed, results.len() - passed)
    };
    let (direct, through) = (counts(&direct), counts(&through));
    drop(pair);
    // A slot that nobody reads would hold back the log of the next hour.
    let sql = postgres.client().await?;
    let drop_slot = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active";
    let _ = sql.batch_execute(drop_slot).await;
    Ok(Found { version, direct, through, differences })
}

/// Runs a unit; a test that hangs is left out and the unit is run again.
fn run(suite: &Path, unit: &str, side: &Side) -> Fallible<Results> {
    std::fs::create_dir_all(&side.logs)?;
    let log = side.logs.join(format!("{}.{}.log", unit.replace('/', "-"), side.name));
    let (mut results, mut hanging) = (Results::new(), Vec::<String>::new());
    loop {
        let mut command = runner(suite);
        // Two at a time must not want the same port for themselves.
        command.args(["--baseport", &side.base.to_string()]);
        command.args(["--host", "127.0.0.1", "--port", &side.port.to_string(), "--single", unit]);
        // The cases that need a second server, or gigabytes, are left out by the suite itself. A test that throws
        // must not end the others.
        command.args(["--tags", side.deny, "--durable", "--verbose", "--timeout", HANGS]);
        for test in SKIP.iter().copied().chain(hanging.iter().map(String::as_str)) {
            command.args(["--skiptest", test]);
        }
        let output = command.stderr(Stdio::inherit()).output()?;
        let text = plain(&String::from_utf8_lossy(&output.stdout));
        std::fs::write(&log, &text)?;
        if !text.contains("The End") {
            return Err(format!("{unit}, {}: it did not run: {text}", side.name).into());
        }
        let (these, hangs) = parse(&text);
        results.extend(these);
        match hangs {
            Some(test) if hanging.len() < MAX_HANGS => {
                results.insert(test.clone(), Err("it hangs".to_owned()));
                hanging.push(test);
            }
            _ => return Ok(results),
        }
    }
}

/// Without the colours.
fn plain(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out += part.split_once('m').map_or(part, |(_, rest)| rest);
    }
    out
}

/// The results in the suite's output, and the test that was under way when nothing moved any more.
fn parse(text: &str) -> (Results, Option<String>) {
    let mut results = Results::new();
    let mut hangs = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.contains("The End") {
            // What failed is listed once more.
            break;
        }
        // Written without an end of line.
        let line = line.strip_prefix("Waiting for background save to finish... ").unwrap_or(line);
        if let Some(rest) = line.strip_prefix("[ok]: ") {
            let name = rest.rsplit_once(" (").map_or(rest, |(name, _)| name);
            // The same name can be used twice: one failure counts.
            results.entry(name.to_owned()).or_insert(Ok(()));
        } else if let Some(rest) = line.strip_prefix("[err]: ") {
            // What is thrown between two tests has no name, and takes the rest of its block with it.
            let name = rest.rsplit_once(" in tests/").map_or("(outside a test)", |(name, _)| name);
            let why = lines.next().unwrap_or_default().chars().take(300).collect();
            results.insert(name.to_owned(), Err(why));
        } else if let Some((_, name)) = line.split_once("(IN PROGRESS) ") {
            hangs = Some(name.to_owned());
        }
    }
    (results, hangs)
}

/// All units together.
#[derive(Default)]
struct Totals {
    version: String,
    direct: (usize, usize),
    through: (usize, usize),
    units: BTreeSet<String>,
    differences: BTreeSet<(String, String)>,
}

impl Totals {
    fn add(&mut self, unit: &str, found: Found) {
        self.version = found.version;
        self.direct = (self.direct.0 + found.direct.0, self.direct.1 + found.direct.1);
        self.through = (self.through.0 + found.through.0, self.through.1 + found.through.1);
        self.units.insert(unit.to_owned());
        self.differences.extend(found.differences.into_keys().map(|test| (unit.to_owned(), test)));
    }

    fn report(&self) -> Outcome {
        let known: BTreeMap<(String, String), &str> = KNOWN
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .filter_map(|line| {
                let mut parts = line.split(" | ");
                Some(((parts.next()?.to_owned(), parts.next()?.to_owned()), parts.next()?))
            })
            .collect();
        println!(
            "\n{}: {} units; straight {} passed, {} failed; through the proxy {} passed, {} failed; {} differ",
            self.version,
            self.units.len(),
            self.direct.0,
            self.direct.1,
            self.through.0,
            self.through.1,
            self.differences.len()
        );
        let mut unknown = 0;
        for pair @ (unit, test) in &self.differences {
            let reason = known.get(pair);
            unknown += usize::from(reason.is_none());
            println!("    {unit} | {test} | {}", reason.unwrap_or(&"NOT KNOWN"));
        }
        for (unit, test) in known.keys().filter(|known| self.units.contains(&known.0)) {
            if !self.differences.contains(&(unit.clone(), test.clone())) {
                println!("    {unit} | {test} | is listed, and did not differ");
            }
        }
        assert_eq!(unknown, 0, "differences that tests/redis_suite.txt does not explain");
        Ok(())
    }
}
