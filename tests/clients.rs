//! Real Redis clients, each driven by an ordinary program of its own language: see tests/clients/README.md.
//!
//! Every program is run against Redis itself and then through the proxy, and has to pass the same cases.

#[path = "wire/pair.rs"]
mod pair;
mod wire;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cachefence::demo::client::Reply;
use pair::{Pair, server_version, speaks_resp3};
use wire::{Fallible, Outcome, postgres, settled};

/// How long a program may take; it ends by itself long before, whatever fails.
const PATIENCE: Duration = Duration::from_secs(300);

/// The users that the programs log in as.
const USERS: &[&[&str]] = &[
    &["ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all"],
    &["ACL", "SETUSER", "reader", "on", ">secret", "~*", "&*", "+@read", "+@connection", "+client"],
];

/// A program, and how its client is installed.
struct Program {
    name: &'static str,
    prepare: fn(&Place) -> Fallible<Command>,
}

/// Those that every test run drives.
const ALWAYS: &[Program] = &[
    Program { name: "redis-py", prepare: |place| python(place, "sync_client.py") },
    Program { name: "redis-py asyncio", prepare: |place| python(place, "async_client.py") },
    Program { name: "ioredis", prepare: |place| node(place, &["ioredis.mjs", "ioredis"]) },
    Program { name: "redis-rs", prepare: redis_rs },
];

/// Those that need more: `make test-clients`.
const FURTHER: &[Program] = &[
    Program { name: "node-redis", prepare: |place| node(place, &["node-redis.mjs"]) },
    Program { name: "ioredis 5", prepare: |place| node(place, &["ioredis.mjs", "ioredis-5"]) },
    Program { name: "fred", prepare: fred },
    Program { name: "hiredis", prepare: hiredis },
    Program { name: "ruby-redis", prepare: ruby },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_notice_nothing() -> Outcome {
    drive(ALWAYS).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs more toolchains: make test-clients"]
async fn further_clients_notice_nothing() -> Outcome {
    drive(FURTHER).await
}

async fn drive(programs: &[Program]) -> Outcome {
    let chosen = std::env::var("CACHEFENCE_TEST_CLIENTS").unwrap_or_default();
    let place = Place::new()?;
    let postgres = postgres().await?;
    let pair = Pair::start(&postgres, "clients", &[]).await?;
    for redis in [&pair.direct, &pair.behind] {
        let mut client = redis.client().await?;
        for user in USERS {
            assert_eq!(client.cmd(user).await?, Reply::ok());
        }
    }
    settled(&postgres, &pair.proxy).await?;
    let committer = tokio::spawn(commit_on_demand(pair.behind.client().await?, postgres.client().await?));
    let through_protocols = if speaks_resp3(&pair.proxy).await? { "2 3" } else { "2" };
    println!("{}; RESP {through_protocols} through the proxy", server_version(&pair.direct).await?);

    let mut failures = Vec::new();
    for (number, program) in programs.iter().enumerate() {
        if !chosen.is_empty() && !chosen.split(',').any(|name| name == program.name) {
            continue;
        }
        let run = |port: u16, protocols: &'static str, user: Option<usize>| {
            let prepared = (program.prepare)(&place);
            let mut command = prepared.map_err(|error| format!("{}: {error}", program.name))?;
            command.env("CACHE_HOST", "127.0.0.1").env("CACHE_PORT", port.to_string());
            command.env("PROTOCOLS", protocols);
            match user {
                Some(user) => command.env("USER_ID", user.to_string()),
                None => command.env_remove("USER_ID"),
            };
            Fallible::Ok(tokio::task::spawn_blocking(|| run(command).map_err(|error| error.to_string())))
        };
        let direct = run(pair.direct.port(), "2 3", None)?.await??;
        let through = run(pair.proxy.port(), through_protocols, Some(number * 10 + 1))?.await??;
        println!("{}: straight {}; through the proxy {}", program.name, direct.count(), through.count());
        failures.extend(direct.failures.iter().map(|line| format!("{}, straight: {line}", program.name)));
        failures.extend(through.failures.iter().map(|line| format!("{}, proxied: {line}", program.name)));
        // What was not run says nothing: both sides have to have passed the same cases.
        let both: BTreeSet<_> =
            direct.passed.iter().filter(|case| in_protocols(case, through_protocols)).collect();
        for missing in both.into_iter().filter(|case| !through.passed.contains(*case)) {
            failures.push(format!("{}: {missing} passed straight only", program.name));
        }
        if direct.passed.len() < 8 || !through.passed.iter().any(|case| case.ends_with("stale")) {
            failures.push(format!("{}: cases are missing: {:?}", program.name, through.passed));
        }
    }
    committer.abort();
    assert!(failures.is_empty(), "{}\nthe proxy's log:\n{}", failures.join("\n"), pair.proxy.log());
    Ok(())
}

fn in_protocols(case: &str, protocols: &str) -> bool {
    protocols.split(' ').any(|protocol| case.starts_with(&format!("resp{protocol} ")))
}

/// A program asks for a commit by publishing a row's number: no client library needs a database driver for that.
async fn commit_on_demand(mut redis: cachefence::demo::client::Client, sql: tokio_postgres::Client) {
    if redis.send(&["SUBSCRIBE", "commit"]).await.is_err() {
        return;
    }
    loop {
        match redis.receive_within(PATIENCE).await {
            Ok(Some(Reply::Array(message))) => {
                let row = message.get(2).and_then(Reply::text).and_then(|row| row.parse::<i64>().ok());
                if let Some(row) = row {
                    let update = "UPDATE users SET name = name || '.' WHERE id = $1";
                    assert_eq!(sql.execute(update, &[&row]).await.ok(), Some(1), "row {row}");
                }
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

/// What a program printed.
#[derive(Default)]
struct Report {
    passed: BTreeSet<String>,
    skipped: usize,
    failures: Vec<String>,
}

impl Report {
    fn count(&self) -> String {
        let [resp2, resp3] =
            ["2", "3"].map(|version| self.passed.iter().filter(|case| in_protocols(case, version)).count());
        let (failed, skipped) = (self.failures.len(), self.skipped);
        format!("{resp2} passed in RESP2, {resp3} in RESP3, {failed} failed, {skipped} skipped")
    }
}

/// Runs a program to its end.
fn run(mut command: Command) -> Fallible<Report> {
    let (log, began) = (tempfile::NamedTempFile::new()?, Instant::now());
    // One place in the file for both, or they would overwrite each other.
    let out = log.reopen()?;
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let mut child =
        command.spawn().map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if began.elapsed() > PATIENCE => {
                child.kill()?;
                break child.wait()?;
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let (text, mut report) = (std::fs::read_to_string(log.path())?, Report::default());
    for line in text.lines() {
        if let Some(case) = line.strip_prefix("ok ") {
            match case.split_once(" # SKIP") {
                Some(_) => report.skipped += 1,
                None => drop(report.passed.insert(case.to_owned())),
            }
        } else if let Some(failure) = line.strip_prefix("not ok ") {
            report.failures.push(failure.to_owned());
        }
    }
    if !status.success() && report.failures.is_empty() {
        report.failures.push(format!("{status} after {:.0?}: {text}", began.elapsed()));
    }
    Ok(report)
}

/// Where the programs are, and where what they need is put.
struct Place {
    sources: PathBuf,
    installed: PathBuf,
}

impl Place {
    fn new() -> Fallible<Self> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().ok_or("no target directory")?;
        Ok(Self { sources, installed: target.join("clients") })
    }

    /// Copies a folder's files to where it is installed, and runs `install` there if `wanted` is not what was
    /// installed before.
    fn install(&self, name: &str, wanted: &str, install: impl FnOnce(&Path) -> Command) -> Fallible<PathBuf> {
        let (from, to) = (self.sources.join(name), self.installed.join(name));
        std::fs::create_dir_all(&to)?;
        for entry in std::fs::read_dir(&from)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                std::fs::copy(entry.path(), to.join(entry.file_name()))?;
            }
        }
        let (wanted, stamp) = (std::fs::read_to_string(from.join(wanted))?, to.join(".installed"));
        if std::fs::read_to_string(&stamp).unwrap_or_default() != wanted {
            succeed(&mut install(&to))?;
            std::fs::write(stamp, wanted)?;
        }
        Ok(to)
    }
}

fn succeed(command: &mut Command) -> Outcome {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(format!("{command:?}: {}\n{out}{err}", output.status).into())
}

fn python(place: &Place, program: &str) -> Fallible<Command> {
    let dir = place.install("redis-py", "requirements.txt", |dir| {
        let mut pip = Command::new("python3");
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--root-user-action=ignore",
        ]);
        pip.args(["--upgrade", "--target", "packages", "-r", "requirements.txt"]).current_dir(dir);
        pip
    })?;
    let mut command = Command::new("python3");
    command.arg(dir.join(program)).env("PYTHONPATH", dir.join("packages"));
    Ok(command)
}

fn node(place: &Place, arguments: &[&str]) -> Fallible<Command> {
    let dir = place.install("node", "package-lock.json", |dir| {
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(dir);
        npm
    })?;
    let mut command = Command::new("node");
    command.args(arguments).current_dir(dir);
    Ok(command)
}

fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.arg("build").arg("--locked").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    // What the cargo that runs this test tells of the package. The build script of ring goes by it, so ring, all that
    // depends on it, and every test program would be built anew, and once more after that.
    let told = |name: &String| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for name in std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(told) {
        cargo.env_remove(name);
    }
    cargo
}

fn redis_rs(_: &Place) -> Fallible<Command> {
    succeed(&mut cargo(&["--example", "redis-rs"]))?;
    // Test programs are in `deps`, beside `examples`.
    let own = std::env::current_exe()?;
    let debug = own.parent().and_then(Path::parent).ok_or("no target directory")?;
    Ok(Command::new(debug.join("examples/redis-rs")))
}

fn fred(place: &Place) -> Fallible<Command> {
    let target = place.installed.join("fred");
    let mut build = cargo(&["--manifest-path", "tests/clients/fred/Cargo.toml"]);
    succeed(build.arg("--target-dir").arg(&target))?;
    Ok(Command::new(target.join("debug/fred-client")))
}

fn hiredis(place: &Place) -> Fallible<Command> {
    std::fs::create_dir_all(&place.installed)?;
    let program = place.installed.join("hiredis");
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=c11", "-D_GNU_SOURCE", "-g", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program);
    succeed(gcc.arg(place.sources.join("hiredis/main.c")).args(["-lhiredis", "-lpthread"]))?;
    Ok(Command::new(program))
}

fn ruby(place: &Place) -> Fallible<Command> {
    let mut command = Command::new("ruby");
    command.arg(place.sources.join("ruby-redis/main.rb"));
    Ok(command)
}
