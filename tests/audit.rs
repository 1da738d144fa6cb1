//! The auditor: hits that pass by, and what it makes of them, on real servers.

#[allow(dead_code, reason = "a part is used")]
#[path = "support/dice.rs"]
mod dice;
mod support;

use std::io::Write as _;
use std::process::Command;

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::wait_until;
use support::{Fallible, Outcome, PATIENCE, Setup, World, assert_passed};

const SCHEMA: &str = "
CREATE TABLE docs (id bigint PRIMARY KEY, version int NOT NULL, body text);
CREATE TABLE items (id bigint PRIMARY KEY, version int NOT NULL);
INSERT INTO docs SELECT n, 1, 'a' FROM generate_series(1, 50) n;
INSERT INTO items SELECT n, 1 FROM generate_series(1, 5) n;
";

fn guards(more: &str) -> String {
    format!(
        "[audit]\nsample = 1\ngrace = \"300ms\"\n
         [[guard]]\ntable = \"docs\"\nkeys = [\"doc:<id>\"]\n\
         version = {{ column = \"version\", json = \"/version\" }}\n{more}\n
         [[guard]]\ntable = \"items\"\nkeys = [\"item:<id>\"]\n\
         version = {{ column = \"version\", field = \"version\" }}\n"
    )
}

/// Everything is audited. `more`: of the guard of `docs`.
async fn world(more: &str, mode: &str) -> Fallible<World> {
    Setup::new(&(guards(more) + mode)).schema(SCHEMA).start().await
}

fn doc(version: i64) -> String {
    format!("{{\"version\": {version}, \"body\": \"...\"}}")
}

async fn change(world: &World, sql: &str) -> Outcome {
    world.sql.batch_execute(sql).await?;
    world.level().await?;
    Ok(())
}

/// How many hits of a table became this.
async fn audited(world: &World, table: &str, outcome: &str) -> Fallible<f64> {
    let series = format!("cachefence_audited_hits_total{{guard=\"public.{table}\",outcome=\"{outcome}\"}}");
    Ok(world.proxy.metric(&series).await?)
}

/// All four of them: consistent, stale, violations, unknown.
async fn counts(world: &World, table: &str) -> Fallible<[f64; 4]> {
    let mut all = [0.0; 4];
    for (count, outcome) in all.iter_mut().zip(["consistent", "stale", "violation", "unknown"]) {
        *count = audited(world, table, outcome).await?;
    }
    Ok(all)
}

/// Waits until so many hits of a table have been judged, and says what they became since `before`.
async fn judged(world: &World, table: &str, before: [f64; 4], hits: f64) -> Fallible<[f64; 4]> {
    let since = async || {
        let now = counts(world, table).await.ok()?;
        let mut since = [0.0; 4];
        (0..4).for_each(|n| since[n] = now[n] - before[n]);
        Some(since)
    };
    wait_until(&format!("{hits} hits to be judged"), PATIENCE, async || {
        since().await.is_some_and(|since| since.iter().sum::<f64>() >= hits)
    })
    .await?;
    Ok(since().await.ok_or("no metrics")?)
}

async fn hit(client: &mut Client, command: &[&str]) -> Outcome {
    let reply = client.cmd(command).await?;
    assert!(!matches!(reply, Reply::Nil | Reply::Error(_)), "{command:?}: {reply:?}");
    Ok(())
}

#[tokio::test]
async fn hits_are_compared_with_the_rows_behind_them() -> Outcome {
    let world = world("", "").await?;
    let mut client = world.client().await?;
    what_is_right_is_consistent(&world, &mut client).await?;
    what_survived_its_deletion_is_a_violation(&world, &mut client).await?;
    what_tells_nothing_is_unknown(&world, &mut client).await?;
    hashes_tell_by_a_field(&world, &mut client).await?;
    what_is_not_applied_yet_is_stale(&world, &mut client).await?;
    a_reload_turns_it_off(&world, &mut client).await
}

async fn what_is_right_is_consistent(world: &World, client: &mut Client) -> Outcome {
    change(world, "UPDATE docs SET version = 2 WHERE id IN (1, 2)").await?;
    let before = counts(world, "docs").await?;
    for id in [1, 2] {
        let key = format!("doc:{id}");
        assert_eq!(client.cmd(&["GET", &key]).await?, Reply::Nil);
        assert_passed(&client.cmd(&["SET", &key, &doc(2)]).await?);
        hit(client, &["GET", &key]).await?;
    }
    hit(client, &["MGET", "doc:1", "doc:3", "other", "doc:2"]).await?;
    // No value of a row, or not as it was filled: not looked at.
    hit(client, &["STRLEN", "doc:1"]).await?;
    hit(client, &["GETRANGE", "doc:1", "0", "3"]).await?;
    assert_eq!(judged(world, "docs", before, 4.0).await?, [4.0, 0.0, 0.0, 0.0]);
    Ok(())
}

/// Somebody has put an old value straight into Redis.
async fn what_survived_its_deletion_is_a_violation(world: &World, client: &mut Client) -> Outcome {
    change(world, "UPDATE docs SET version = 5 WHERE id = 3").await?;
    assert_eq!(world.redis(&["SET", "doc:3", &doc(1)]).await?, Reply::ok());
    let before = counts(world, "docs").await?;
    hit(client, &["GET", "doc:3"]).await?;
    hit(client, &["MGET", "doc:3", "doc:1"]).await?;
    assert_eq!(judged(world, "docs", before, 3.0).await?, [1.0, 0.0, 2.0, 0.0]);
    let log = world.proxy.log();
    let line = log.lines().find(|line| line.contains("a hit was older than a commit")).ok_or("no line")?;
    for part in ["ERROR", "public.docs", "doc:3", "cached_version=1", "row_version=5", "DEL the key"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(log.matches("a hit was older than a commit").count(), 1, "the next line is due later");
    let age = "cachefence_audit_age_seconds_count{guard=\"public.docs\"}";
    assert_eq!(world.proxy.metric(age).await?, 2.0);
    world.redis(&["DEL", "doc:3"]).await?;
    Ok(())
}

async fn what_tells_nothing_is_unknown(world: &World, client: &mut Client) -> Outcome {
    change(world, "UPDATE docs SET version = 5 WHERE id IN (4, 5)").await?;
    // By hand, without raising the version: the value may be the one from before.
    change(world, "UPDATE docs SET body = 'b' WHERE id = 5").await?;
    let before = counts(world, "docs").await?;
    let long = format!("{{\"version\": 1, \"body\": \"{}\"}}", "x".repeat(300_000));
    let values =
        ["no JSON", "{}", "{\"version\": \"x\"}", "{\"version\": 1.5}", "[1]", "{\"version\": null}", &long];
    for value in values {
        world.redis(&["SET", "doc:4", value]).await?;
        hit(client, &["GET", "doc:4"]).await?;
    }
    for (key, version) in [("doc:5", 5), ("doc:5", 1), ("doc:9", 1)] {
        world.redis(&["SET", key, &doc(version)]).await?;
        hit(client, &["GET", key]).await?;
    }
    // Deleted, with whatever the cache says.
    change(world, "UPDATE docs SET version = 6 WHERE id = 6; DELETE FROM docs WHERE id = 6").await?;
    world.redis(&["SET", "doc:6", &doc(1)]).await?;
    hit(client, &["GET", "doc:6"]).await?;
    let hits = values.len() as f64 + 4.0;
    assert_eq!(judged(world, "docs", before, hits).await?, [0.0, 0.0, 0.0, hits]);
    // A key that is longer than keys are is not looked at.
    let long = format!("doc:{}", "1".repeat(2_000_000));
    world.redis(&["SET", &long, &doc(1)]).await?;
    hit(client, &["GET", &long]).await?;
    world.redis(&["DEL", "doc:4", "doc:5", "doc:6", "doc:9", &long]).await?;
    Ok(())
}

async fn hashes_tell_by_a_field(world: &World, client: &mut Client) -> Outcome {
    change(world, "UPDATE items SET version = 2 WHERE id < 3").await?;
    world.redis(&["HSET", "item:1", "name", "x", "version", "2"]).await?;
    world.redis(&["HSET", "item:2", "name", "x", "version", "1"]).await?;
    let before = counts(world, "items").await?;
    for key in ["item:1", "item:2"] {
        hit(client, &["HGET", key, "version"]).await?;
        hit(client, &["HMGET", key, "name", "version"]).await?;
        hit(client, &["HGETALL", key]).await?;
        // Without the version.
        hit(client, &["HGET", key, "name"]).await?;
    }
    assert_eq!(judged(world, "items", before, 6.0).await?, [3.0, 0.0, 3.0, 0.0]);
    Ok(())
}

/// Redis takes no deletion for a while.
async fn what_is_not_applied_yet_is_stale(world: &World, client: &mut Client) -> Outcome {
    change(world, "UPDATE docs SET version = 2 WHERE id = 7").await?;
    assert_eq!(client.cmd(&["GET", "doc:7"]).await?, Reply::Nil);
    assert_passed(&client.cmd(&["SET", "doc:7", &doc(2)]).await?);
    let before = counts(world, "docs").await?;
    let mut redis = world.redis.client().await?;
    // Reads go on.
    redis.cmd(&["CLIENT", "PAUSE", "100000", "WRITE"]).await?;
    world.sql.batch_execute("UPDATE docs SET version = 3 WHERE id = 7").await?;
    hit(client, &["GET", "doc:7"]).await?;
    redis.cmd(&["CLIENT", "UNPAUSE"]).await?;
    world.gone("doc:7").await?;
    assert_eq!(judged(world, "docs", before, 1.0).await?, [0.0, 1.0, 0.0, 0.0]);
    Ok(())
}

async fn a_reload_turns_it_off(world: &World, client: &mut Client) -> Outcome {
    let off = world.guards.replace("sample = 1\n", "sample = 0\n");
    world.proxy.rewrite(&(world.servers.clone() + &off))?;
    let (status, body) = world.proxy.reload().await?;
    assert!(status == 200 && body.contains("audit.sample"), "{body}");
    let before = counts(world, "docs").await?;
    hit(client, &["GET", "doc:1"]).await?;
    world.proxy.rewrite(&(world.servers.clone() + &world.guards))?;
    assert_eq!(world.proxy.reload().await?.0, 200);
    // What comes later is judged later.
    hit(client, &["GET", "doc:1"]).await?;
    assert_eq!(judged(world, "docs", before, 1.0).await?.iter().sum::<f64>(), 1.0);
    Ok(())
}

/// Of people the database says what they are called: they have no version.
const BY_SQL: &str = "
[audit]
sample = 1
grace = \"100ms\"
max_queries_per_second = 100
[[guard]]
table = \"users\"
keys = [\"user:<id>\", \"user:<id>:profile\"]
unproven = \"refuse\"
audit_sql = \"SELECT name FROM public.users WHERE id = $1\"
";

#[tokio::test]
async fn hits_are_compared_with_what_the_database_says() -> Outcome {
    let world = Setup::new(BY_SQL).start().await?;
    let mut client = world.client().await?;
    // Before any hit of the guard has agreed, a difference may be one of form.
    world.redis(&["SET", "user:3", "v0"]).await?;
    hit(&mut client, &["GET", "user:3"]).await?;
    assert_eq!(judged(&world, "users", [0.0; 4], 1.0).await?, [0.0, 0.0, 0.0, 1.0]);
    world.warm(1).await?;
    hit(&mut client, &["GET", "user:1"]).await?;
    assert_eq!(judged(&world, "users", [0.0; 4], 2.0).await?, [1.0, 0.0, 0.0, 1.0]);
    // Past the proxy. And a row that is not there, a key of another template, which may hold anything, and a miss.
    world.redis(&["SET", "user:99", "v0"]).await?;
    world.redis(&["SET", "user:1:profile", "v0"]).await?;
    hit(&mut client, &["GET", "user:1:profile"]).await?;
    assert_eq!(client.cmd(&["GET", "user:2"]).await?, Reply::Nil);
    hit(&mut client, &["GET", "user:3"]).await?;
    hit(&mut client, &["MGET", "user:99", "user:1"]).await?;
    assert_eq!(judged(&world, "users", [0.0; 4], 5.0).await?, [2.0, 0.0, 2.0, 1.0]);
    let log = world.proxy.log();
    assert!(log.contains("a hit is not what audit_sql says") && log.contains("user:3"), "{log}");
    // Changed after the hit, and deleted for it.
    let before = counts(&world, "users").await?;
    hit(&mut client, &["GET", "user:1"]).await?;
    world.rename(1, "v2").await?;
    world.gone("user:1").await?;
    let now = judged(&world, "users", before, 1.0).await?;
    assert_eq!((now[1], now[2]), (0.0, 0.0), "{now:?}");
    // The statement may not write, nor take long, nor fail for ever.
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cachefence audit'";
    let sessions: i64 = world.sql.query_one(sessions, &[]).await?.try_get(0)?;
    assert_eq!(sessions, 1);
    Ok(())
}

/// What `cachefence check` says of the statement of a guard.
fn checked(world: &World, settings: &str) -> Fallible<(String, String)> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all((world.servers.clone() + settings).as_bytes())?;
    let output =
        Command::new(support::BINARY).args(["check", "--json", "--config"]).arg(file.path()).output()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let rows = report["rows"].as_array().ok_or("no rows")?;
    let row = rows.iter().find(|row| row["name"] == "audit_sql").ok_or("no row")?;
    Ok((row["standing"].as_str().unwrap_or_default().to_owned(), row.to_string()))
}

#[tokio::test]
async fn the_doctor_tries_the_statement() -> Outcome {
    let world = Setup::new(BY_SQL).start().await?;
    let sql = "SELECT name FROM public.users WHERE id = $1";
    for (settings, standing, part) in [
        (BY_SQL.to_owned(), "ok", "takes it"),
        (BY_SQL.replace("sample = 1", "sample = 0"), "warning", "audit.sample is 0"),
        (BY_SQL.replace(sql, "SELECT name FROM public.users"), "failed", "0 parameters"),
        (BY_SQL.replace(sql, "SELECT nick FROM public.users WHERE id = $1"), "failed", "nick"),
        (BY_SQL.replace(sql, "DELETE FROM public.users WHERE id = $1 RETURNING name"), "failed", "syntax"),
    ] {
        let (found, row) = checked(&world, &settings)?;
        assert!(found == standing && row.contains(part), "{settings}\n{row}");
    }
    Ok(())
}

/// Where nothing is deleted, and where stale fills are let in, no hit is against the contract.
#[tokio::test]
async fn what_the_settings_allow_is_no_violation() -> Outcome {
    for (more, mode) in [("on_stale = \"cap\"", ""), ("", "[proxy]\nmode = \"observe\"\n")] {
        let world = world(more, mode).await?;
        let mut client = world.client().await?;
        change(&world, "UPDATE docs SET version = 5 WHERE id = 1").await?;
        world.redis(&["SET", "doc:1", &doc(1)]).await?;
        hit(&mut client, &["GET", "doc:1"]).await?;
        let outcomes = judged(&world, "docs", [0.0; 4], 1.0).await?;
        assert_eq!(outcomes, [0.0, 1.0, 0.0, 0.0], "{more} {mode}");
    }
    Ok(())
}

/// Readers by a replica that lags now and then, and writers: many hits, some stale, and no violation.
#[tokio::test]
async fn a_load_by_a_lagging_replica_has_no_violation() -> Outcome {
    let world = Setup::new(&guards("")).schema(SCHEMA).replica().start().await?;
    let replica = world.replica()?.client().await?;
    let mut dice = dice::Dice::new(7);
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(world.client().await?);
    }
    let mut hits = 0.0;
    for round in 0..3_000 {
        let (id, who) = (dice.roll(8) as i64 + 1, dice.roll(4) as usize);
        match (round % 300, dice.roll(12)) {
            (100, _) => replica.batch_execute("SELECT pg_wal_replay_pause()").await?,
            (150, _) => replica.batch_execute("SELECT pg_wal_replay_resume()").await?,
            (_, 0) => {
                let sql = "UPDATE docs SET version = version + 1 WHERE id = $1";
                world.sql.execute(sql, &[&id]).await?;
            }
            _ => {
                let (client, key) = (&mut clients[who], format!("doc:{id}"));
                if client.cmd(&["GET", &key]).await? != Reply::Nil {
                    hits += 1.0;
                    continue;
                }
                let node = if dice.roll(2) == 0 { &replica } else { &world.sql };
                let row = node.query_one("SELECT version FROM docs WHERE id = $1", &[&id]).await?;
                client.cmd(&["SET", &key, &doc(row.try_get::<_, i32>(0)?.into()), "EX", "10"]).await?;
            }
        }
    }
    replica.batch_execute("SELECT pg_wal_replay_resume()").await?;
    let [consistent, stale, violations, unknown] = judged(&world, "docs", [0.0; 4], hits).await?;
    println!(
        "{hits} hits: {consistent} consistent, {stale} stale, {violations} violations, {unknown} unknown"
    );
    assert!(consistent > 100.0, "{consistent}");
    assert_eq!(violations, 0.0);
    Ok(())
}
