//! The doctor: with the documented rights all is well, and whatever is broken is named, with what mends it.

mod support;

use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::{
    Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions, StopMode, config, free_port, wait_until,
};
use serde_json::Value;
use support::{BINARY, Fallible, Outcome, PATIENCE};

const OPERATIONS: &str = include_str!("../docs/operations.md");
const README: &str = include_str!("../README.md");

const SCHEMA: &str = "
REVOKE ALL ON SCHEMA public FROM PUBLIC;
REVOKE CONNECT ON DATABASE app FROM PUBLIC;
CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL, email text NOT NULL);
ALTER TABLE users REPLICA IDENTITY FULL;
INSERT INTO users SELECT id, 'v1', id || '@example.com' FROM generate_series(1, 20) AS id;
CREATE TABLE orders (id bigint PRIMARY KEY);
CREATE TABLE days (day date PRIMARY KEY);
";

const GUARDS: &str = "
[[guard]]
table = \"users\"
keys = [\"user:<id>\", \"users:by-email:<email>\"]

[[guard]]
table = \"orders\"
keys = [\"user:order:<id>\"]
";

const WITHOUT_MESSAGES: &str = "is there, and raises an error";

/// Servers, and a role and a user with the rights of the documentation and no other.
struct Stand {
    primary: Postgres,
    replica: Postgres,
    redis: Redis,
    settings: String,
}

/// The code block of the documentation that contains this.
fn documented(what: &str) -> Fallible<&'static str> {
    let blocks = OPERATIONS.split("```").skip(1).step_by(2);
    let block = blocks.filter_map(|block| Some(block.split_once('\n')?.1)).find(|block| block.contains(what));
    block.ok_or_else(|| format!("{what:?} is in no block of docs/operations.md").into())
}

async fn start() -> Fallible<Stand> {
    let options = PrimaryOptions::default().set("max_slot_wal_keep_size", "1GB");
    let primary = Postgres::primary(options).await?;
    psql(&primary, SCHEMA)?;
    let role = documented("CREATE ROLE cachefence")?;
    assert!(README.contains(role), "the README has another role");
    psql(&primary, role)?;
    let replica = Postgres::replica(&primary, &[]).await?;
    let redis = Redis::start(RedisOptions::default()).await?;
    let acl: Vec<&str> = documented("ACL SETUSER")?.split_whitespace().collect();
    assert_eq!(redis.client().await?.cmd(&acl).await?, Reply::ok());
    let settings = config(&primary, &[&replica], &redis)
        .replace("postgres://postgres@", "postgres://cachefence:secret@")
        .replace("redis://", "redis://cachefence:secret@");
    let ports = format!(
        "[proxy]\nlisten = [\"127.0.0.1:{}\"]\n\n[admin]\nlisten = \"127.0.0.1:{}\"\n\n",
        free_port()?,
        free_port()?
    );
    Ok(Stand { primary, replica, redis, settings: ports + &settings + GUARDS })
}

/// A command of a shell that finds the program, its settings and the server, as the owner of everything.
fn shell(server: &Postgres, settings: &Path, command: &str, input: &str) -> Fallible<String> {
    let directory = Path::new(BINARY).parent().unwrap_or(Path::new("/"));
    let path = format!("{}:{}", directory.display(), std::env::var("PATH")?);
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell.env("PATH", path).env("CACHEFENCE_CONFIG", settings).env("PGOPTIONS", "");
    shell.env("PGHOST", "127.0.0.1").env("PGPORT", server.port().to_string());
    shell.env("PGUSER", "postgres").env("PGDATABASE", "app");
    let mut child = shell.spawn()?;
    child.stdin.take().ok_or("no stdin")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => Err(format!("{command} {input}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// A script, statement by statement, as an operator would paste it.
fn psql(server: &Postgres, script: &str) -> Fallible<String> {
    shell(server, Path::new(""), "psql -X -q -A -t -v ON_ERROR_STOP=1", script)
}

/// The program, with settings in a file.
fn cachefence(settings: &str, arguments: &[&str]) -> Fallible<Output> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(settings.as_bytes())?;
    Ok(Command::new(BINARY).args(arguments).arg("--config").arg(file.path()).output()?)
}

/// What `check --json` says.
struct Checked {
    succeeded: bool,
    rows: Vec<Value>,
}

fn check(settings: &str) -> Fallible<Checked> {
    let output = cachefence(settings, &["check", "--json"])?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let rows = report["rows"].as_array().ok_or("no rows")?.clone();
    let failed = rows.iter().filter(|row| row["standing"] == "failed").count();
    assert_eq!(report["failed"], failed);
    assert_eq!(output.status.code(), Some(i32::from(failed > 0)), "warnings do not fail");
    Ok(Checked { succeeded: failed == 0, rows })
}

impl Checked {
    /// Version 13 has no messages, which nothing mends.
    fn not_ok(&self) -> Vec<&Value> {
        let unmended = |row: &&Value| row["standing"] != "ok" && row["found"] != WITHOUT_MESSAGES;
        self.rows.iter().filter(unmended).collect()
    }

    /// Asserts that there is a row of this name, and perhaps subject, that stands so.
    #[track_caller]
    fn assert(&self, name: &str, standing: &str, found: &str) {
        let is = |row: &&Value| row["name"] == name && row["standing"] == standing;
        let says = |row: &Value| row["found"].as_str().is_some_and(|text| text.contains(found));
        assert!(self.rows.iter().filter(is).any(says), "{name} {standing} {found}: {:#?}", self.not_ok());
    }
}

impl Stand {
    /// Does literally what the rows say, in their order.
    async fn mend(&self, checked: &Checked, settings: &Path) -> Outcome {
        let mut redis = self.redis.client().await?;
        for row in checked.not_ok() {
            let Some(run) = row["run"].as_str() else { continue };
            let server = if row["on"] == "replica-1" { &self.replica } else { &self.primary };
            match row["run_in"].as_str() {
                Some("psql") => drop(psql(server, run)?),
                Some("shell") => drop(shell(server, settings, run, "")?),
                Some("redis_cli") => run_redis(&mut redis, run).await?,
                _ => return Err(format!("nothing to run: {row}").into()),
            }
        }
        Ok(())
    }

    /// What is broken is named; doing what the rows say mends it, if need be in steps.
    async fn mended(&self, broken: &[(&str, &str, &str)]) -> Outcome {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(self.settings.as_bytes())?;
        let mut checked = check(&self.settings)?;
        for (name, standing, found) in broken {
            checked.assert(name, standing, found);
        }
        for _ in 0..4 {
            if checked.not_ok().is_empty() {
                return Ok(());
            }
            self.mend(&checked, file.path()).await?;
            checked = check(&self.settings)?;
        }
        Err(format!("not mended: {:#?}", checked.not_ok()).into())
    }
}

async fn run_redis(redis: &mut Client, command: &str) -> Outcome {
    let words: Vec<&str> = command.split(' ').collect();
    assert_eq!(redis.cmd(&words).await?, Reply::ok(), "{command}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor() -> Outcome {
    let stand = start().await?;
    the_documented_rights_are_enough_and_needed(&stand).await?;
    the_feed_streams_and_commits_wait(&stand).await?;
    what_is_broken_in_postgres_is_named_and_mended(&stand).await?;
    what_is_broken_in_redis_is_named_and_mended(&stand).await?;
    wrong_settings_are_named(&stand).await?;
    what_the_settings_reach_is_looked_at(&stand).await?;
    init_adds_what_a_publication_lacks(&stand)
}

/// The role may not make everything; once an owner has, it finds that, and all is well.
async fn the_documented_rights_are_enough_and_needed(stand: &Stand) -> Outcome {
    let output = cachefence(&stand.settings, &["init"])?;
    let error = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("cannot create the schema") && error.contains("init --print | psql"), "{error}");
    let checked = check(&stand.settings)?;
    checked.assert("publication", "failed", "there is no publication");
    checked.assert("slot", "warning", "there is no slot");
    checked.assert("functions", "warning", "is not there");

    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(stand.settings.as_bytes())?;
    shell(&stand.primary, file.path(), documented("cachefence init --print | psql app")?, "")?;
    // What a second time changes: nothing, be it a role that may or one that may not.
    let made = "SELECT xmin, oid FROM pg_proc WHERE pronamespace = 'cachefence'::regnamespace UNION ALL \
                SELECT xmin, oid FROM pg_publication UNION ALL \
                SELECT xmin, oid FROM pg_namespace WHERE nspname = 'cachefence' ORDER BY 2;
                SELECT slot_name, confirmed_flush_lsn FROM pg_replication_slots";
    let before = psql(&stand.primary, made)?;
    let as_owner = stand.settings.replace("postgres://cachefence:secret@", "postgres://postgres@");
    for settings in [&stand.settings, &as_owner] {
        let output = cachefence(settings, &["init"])?;
        let said = String::from_utf8(output.stdout)?;
        assert_eq!(said.lines().filter(|line| line.ends_with(": was there")).count(), 6, "{said}");
        assert!(output.status.success() && said.contains("the slot cachefence: was there"), "{said}");
    }
    assert_eq!(psql(&stand.primary, made)?, before);

    let checked = check(&stand.settings)?;
    assert!(checked.succeeded && checked.not_ok().is_empty(), "{:#?}", checked.not_ok());
    let messages = psql(&stand.primary, "SELECT current_setting('server_version_num')::int >= 140000")?;
    let without = checked.rows.iter().filter(|row| row["found"] == WITHOUT_MESSAGES).count();
    assert_eq!(without, if messages.trim() == "t" { 0 } else { 2 }, "{:#?}", checked.rows);
    checked.assert("table", "ok", "user:<id>, users:by-email:<email>");
    checked.assert("source", "ok", "a standby of this system");
    checked.assert("standby", "ok", "all 1 that stream");
    let text = String::from_utf8(cachefence(&stand.settings, &["check"])?.stdout)?;
    println!("{text}");
    assert!(
        text.contains("\nok      wal_level                   logical\n") && !text.contains('\x1b'),
        "{text}"
    );
    Ok(())
}

/// The role streams, and with `strict` sees that commits wait.
async fn the_feed_streams_and_commits_wait(stand: &Stand) -> Outcome {
    let sql = stand.primary.client().await?;
    let mut redis = stand.redis.client().await?;
    let mut proxy = Cachefence::start(BINARY, &stand.settings).await?;
    let checked = check(&stand.settings)?;
    assert!(checked.not_ok().is_empty(), "{:#?}", checked.not_ok());
    checked.assert("proxy.listen", "ok", "a cachefence answers at admin.listen");
    checked.assert("slot", "ok", "is read by a proxy");
    let mut client = proxy.client().await?;
    assert_eq!(client.cmd(&["GET", "user:1"]).await?, Reply::Nil);
    assert_eq!(client.cmd(&["SET", "user:1", "v1"]).await?, Reply::ok());
    assert_eq!(redis.cmd(&["GET", "user:1"]).await?, Reply::bulk("v1"));
    sql.batch_execute("UPDATE users SET name = 'v2' WHERE id = 1").await?;
    let gone = async || matches!(redis.cmd(&["EXISTS", "user:1"]).await, Ok(Reply::Int(0)));
    wait_until("the key to be deleted", PATIENCE, gone).await?;
    assert_eq!(client.cmd(&["ASOF", "0/1", "SET", "user:1", "old"]).await?, Reply::ok());
    assert_eq!(redis.cmd(&["EXISTS", "user:1"]).await?, Reply::Int(0), "a stale fill is refused");
    proxy.stop().await?;

    let strict = stand.settings.replace("[postgres]\n", "[postgres]\ncontract = \"strict\"\n");
    let checked = check(&strict)?;
    checked.assert("synchronous_standby_names", "failed", "does not name it");
    let mut proxy = Cachefence::launch(Path::new(BINARY), &strict)?;
    let row = checked.rows.iter().find(|row| row["name"] == "synchronous_standby_names").ok_or("a row")?;
    psql(&stand.primary, row["run"].as_str().ok_or("SQL")?)?;
    proxy.ready().await?;
    redis.cmd(&["SET", "user:2", "v1"]).await?;
    sql.batch_execute("UPDATE users SET name = 'v2' WHERE id = 2").await?;
    assert_eq!(redis.cmd(&["EXISTS", "user:2"]).await?, Reply::Int(0), "before the commit returned");
    assert!(check(&strict)?.not_ok().is_empty());
    psql(&stand.primary, "ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf();")?;
    proxy.stop().await?;
    wait_until("the slot to be released", PATIENCE, async || {
        let active = "SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'cachefence'";
        sql.query_one(active, &[]).await.is_ok_and(|row| row.get(0))
    })
    .await?;
    Ok(())
}

async fn what_is_broken_in_postgres_is_named_and_mended(stand: &Stand) -> Outcome {
    psql(
        &stand.primary,
        "ALTER ROLE cachefence NOREPLICATION; REVOKE pg_monitor FROM cachefence; DROP PUBLICATION cachefence;",
    )?;
    stand
        .mended(&[
            ("replication", "failed", "may not stream"),
            ("source", "not_looked_at", "the primary's system is not known"),
            ("pg_monitor", "warning", "is no member"),
            ("standby", "not_looked_at", "pg_monitor"),
            ("publication", "failed", "there is no publication"),
            ("slot", "ok", "nobody reads it now"),
        ])
        .await?;

    psql(
        &stand.primary,
        "DROP SCHEMA cachefence CASCADE;
         ALTER TABLE users REPLICA IDENTITY DEFAULT;
         ALTER PUBLICATION cachefence SET (publish = 'insert, update');
         SELECT current_setting('server_version_num')::int >= 150000 AS filters \\gset
         \\if :filters
             ALTER PUBLICATION cachefence SET TABLE users WHERE (id > 0);
         \\else
             ALTER PUBLICATION cachefence SET TABLE users;
         \\endif
         ALTER TABLE orders SET UNLOGGED;
         SELECT pg_drop_replication_slot('cachefence');
         SELECT pg_create_physical_replication_slot('cachefence');
         ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf();
         BEGIN; INSERT INTO users VALUES (99, '', ''); PREPARE TRANSACTION 'stuck';",
    )?;
    stand.replica.pause_replay().await?;
    let text = String::from_utf8(cachefence(&stand.settings, &["check"])?.stdout)?;
    println!("{text}");
    let wide = |line: &&str| line.chars().count() > 100 && !line.trim_start().starts_with("run: ");
    assert_eq!(text.lines().find(wide), None);
    stand
        .mended(&[
            ("functions", "warning", "is not there"),
            ("table", "failed", "outside the table's replica identity"),
            ("table", "failed", "unlogged"),
            ("publication", "failed", "leaves out delete, truncate"),
            ("publication", "failed", "does not contain public.orders"),
            ("open_transactions", "warning", "\"stuck\" has been prepared"),
            ("slot", "failed", "is physical, not logical"),
            ("slot_wal", "not_looked_at", "not the proxy's slot"),
            ("source", "warning", "its replay is paused"),
        ])
        .await
}

async fn what_is_broken_in_redis_is_named_and_mended(stand: &Stand) -> Outcome {
    let mut redis = stand.redis.client().await?;
    for command in [
        "ACL SETUSER cachefence -unlink -client|kill resetkeys ~cachefence:*",
        "CONFIG SET maxmemory 100mb",
        "CONFIG SET maxmemory-policy allkeys-lru",
    ] {
        run_redis(&mut redis, command).await?;
    }
    stand
        .mended(&[
            ("redis_rights", "failed", "lacks +client|kill +unlink ~user:* ~users:by-email:*"),
            ("redis_eviction", "warning", "allkeys-lru at 100 MB"),
        ])
        .await
}

/// What is wrong in one place does not keep the rest from being looked at.
async fn wrong_settings_are_named(stand: &Stand) -> Outcome {
    let mut redis = stand.redis.client().await?;
    run_redis(&mut redis, "REPLICAOF 127.0.0.1 1").await?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let admin = stand.settings.lines().rfind(|line| line.starts_with("listen = \"")).ok_or("admin.listen")?;
    let replica = format!("cachefence:secret@127.0.0.1:{}/", stand.replica.port());
    let primary = format!("cachefence:secret@127.0.0.1:{}/", stand.primary.port());
    let wrong = stand
        .settings
        .replace(admin, &format!("listen = \"{}\"", taken.local_addr()?))
        .replace(&replica, &primary)
        .replace("table = \"orders\"\n", "table = \"orders\"\ndb = 99\n");
    let days = "\n[[guard]]\ntable = \"days\"\nkeys = [\"day:<day>\"]\n";
    let gone = "\n[[source]]\nname = \"gone\"\nurl = \"postgres://c@127.0.0.1:1/app\"\n";
    // What streams may be a source that does not answer, so that is left out here.
    check(&(wrong.clone() + days))?.assert("standby", "warning", "and is no source");
    let checked = check(&(wrong + days + gone))?;
    run_redis(&mut redis, "REPLICAOF NO ONE").await?;
    checked.assert("admin.listen", "failed", "is taken by another program");
    checked.assert("source", "failed", "is not a standby");
    checked.assert("source", "failed", "refused");
    checked.assert("standby", "not_looked_at", "a source does not answer");
    checked.assert("table", "warning", "day:<day>");
    let means = |row: &&Value| row["means"] == "day is date: keys must have it as 2026-01-31";
    assert_eq!(checked.rows.iter().filter(means).count(), 1, "{:#?}", checked.not_ok());
    checked.assert("redis_role", "failed", "is a replica of 127.0.0.1:1");
    checked.assert("redis_db", "failed", "out of range");
    checked.assert("redis_rights", "failed", "lacks ~day:*");

    // Nothing but the settings is right.
    let away = |text: &str, port: u16| text.replace(&format!("127.0.0.1:{port}/"), "127.0.0.1:1/");
    let checked = check(&away(&away(&stand.settings, stand.primary.port()), stand.redis.port()))?;
    checked.assert("postgres", "failed", "refused");
    checked.assert("redis", "failed", "refused");
    for name in ["wal_level", "table", "publication", "slot", "source", "redis_rights", "redis_eviction"] {
        checked.assert(name, "not_looked_at", "not looked at: ");
    }
    Ok(())
}

/// By a password in a file, past a host that does not answer, and beside a source that does not.
async fn what_the_settings_reach_is_looked_at(stand: &Stand) -> Outcome {
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let mut password = tempfile::NamedTempFile::new()?;
    password.write_all(b"secret")?;
    let primary = format!("cachefence:secret@127.0.0.1:{}/app", stand.primary.port());
    let url = format!(
        "cachefence@{},127.0.0.1:{}/app\"\npassword_file = {:?}\n#\"",
        silent.local_addr()?,
        stand.primary.port(),
        password.path(),
    );
    let checked = check(&stand.settings.replace(&primary, &url))?;
    assert!(checked.not_ok().is_empty(), "{:#?}", checked.not_ok());

    // A new slot waits for the transactions of every database.
    psql(&stand.primary, "CREATE DATABASE other;")?;
    let other = "psql -X -q -A -t -v ON_ERROR_STOP=1 other";
    let prepare = "CREATE TABLE t (i int); BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'elsewhere';";
    shell(&stand.primary, Path::new(""), other, prepare)?;
    let checked = check(&stand.settings.replace("[postgres]\n", "[postgres]\nslot = \"new\"\n"))?;
    checked.assert("open_transactions", "warning", "\"elsewhere\" has been prepared");
    let row = checked.rows.iter().find(|row| row["name"] == "open_transactions").ok_or("a row")?;
    let run = row["run"].as_str().ok_or("SQL")?;
    assert!(run.ends_with(" in database \"other\""), "{run}");
    shell(&stand.primary, Path::new(""), other, run)?;

    // Of strict nothing is known either then.
    let strict = stand.settings.replace("[postgres]\n", "[postgres]\ncontract = \"strict\"\n");
    let checked = check(&strict.replace(&format!(":{}/app", stand.primary.port()), ":1/app"))?;
    checked.assert("synchronous_standby_names", "not_looked_at", "cannot be asked");
    checked.assert("synchronous_commit", "not_looked_at", "cannot be asked");
    Ok(())
}

/// Children that began to inherit later, and partitions as their root; a second time there is nothing to do.
fn init_adds_what_a_publication_lacks(stand: &Stand) -> Outcome {
    let guards = "\n[[guard]]\ntable = \"animals\"\nkeys = [\"animal:<id>\"]\n\n[[guard]]\ntable = \"measures\"\n\
                  keys = [\"measure:<id>\"]\n";
    let settings = stand
        .settings
        .replace(GUARDS, guards)
        .replace("postgres://cachefence:secret@", "postgres://postgres@")
        .replace("[postgres]\n", "[postgres]\npublication = \"apart\"\n");
    psql(
        &stand.primary,
        "CREATE TABLE animals (id bigint PRIMARY KEY);
         CREATE TABLE measures (id bigint PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE measures_1 PARTITION OF measures FOR VALUES FROM (0) TO (10);",
    )?;
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(settings.as_bytes())?;
    let print = "cachefence init --print | psql -X -q -v ON_ERROR_STOP=1";
    for way in ["run", "printed"] {
        psql(
            &stand.primary,
            &format!(
                "DROP PUBLICATION IF EXISTS apart; CREATE PUBLICATION apart FOR TABLE animals, measures; \
                 CREATE TABLE cats_{way} (lives int, PRIMARY KEY (id)) INHERITS (animals);"
            ),
        )?;
        let checked = check(&settings)?;
        checked.assert("publication", "failed", &format!("does not contain public.cats_{way}"));
        checked.assert("publication", "failed", "publishes each partition under its own name");
        if way == "run" {
            let output = cachefence(&settings, &["init"])?;
            let said = String::from_utf8(output.stdout)?;
            assert!(
                said.contains("the publication apart: was there and has been brought up to date"),
                "{said}"
            );
        } else {
            shell(&stand.primary, file.path(), print, "")?;
        }
        check(&settings)?.assert("publication", "ok", "has every guarded table");
        shell(&stand.primary, file.path(), print, "")?;
        let said = String::from_utf8(cachefence(&settings, &["init"])?.stdout)?;
        assert!(said.contains("the publication apart: was there\n"), "{said}");
    }
    Ok(())
}

/// What only a restart of Postgres mends.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_to_be_restarted() -> Outcome {
    let settings = [("wal_level", "replica"), ("max_wal_senders", "0"), ("max_replication_slots", "1")];
    let options = settings.iter().fold(PrimaryOptions::default(), |all, (name, value)| all.set(name, value));
    let mut primary = Postgres::primary(options).await?;
    psql(&primary, "SELECT pg_create_physical_replication_slot('other');")?;
    let redis = Redis::start(RedisOptions::default()).await?;
    let ports = "[proxy]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n";
    let settings = ports.to_owned() + &config(&primary, &[], &redis);
    let checked = check(&settings)?;
    checked.assert("wal_level", "failed", "logical replication needs");
    checked.assert("max_replication_slots", "failed", "1 of 1 used: none is left for the proxy");
    checked.assert("max_wal_senders", "failed", "0 of 0 used: none is left for the proxy");
    checked.assert("replication", "not_looked_at", "no walsender is free");
    for row in checked.rows.iter().filter(|row| row["standing"] == "failed") {
        psql(&primary, row["run"].as_str().ok_or("SQL")?)?;
    }
    primary.restart(StopMode::Fast).await?;
    let checked = check(&settings)?;
    assert!(checked.succeeded, "{:#?}", checked.not_ok());
    checked.assert("replication", "ok", "may stream");
    Ok(())
}
