//! The strict contract: a COMMIT returns only after its keys are deleted, and where that cannot be had, nothing is
//! served from the cache.

mod support;

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::{
    Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions, config, wait_for, wait_until,
};
use cachefence::position::Lsn;
use rustix::process::{Pid, Signal, kill_process};
use support::{BINARY, Fallible, HeldCommit, Outcome, PATIENCE, World, assert_refused};

/// A guard without a word on what strict demands: the defaults must do.
const GUARD: &str = "
[[guard]]
table = \"users\"
keys = [\"user:<id>\"]
reply = \"error\"
";

/// The settings of a strict proxy of this name.
fn strict(primary: &Postgres, redis: &Redis, name: &str) -> String {
    let named = format!(
        "[postgres]\nfeed_lost_after = \"3s\"\ncontract = \"strict\"\nslot = \"{name}\"\napplication_name = \"{name}\"\n"
    );
    config(primary, &[], redis).replace("[postgres]\n", &named)
}

/// A primary whose commits wait for the proxy, and the proxy in force.
async fn start() -> Fallible<World> {
    let primary = Postgres::primary(PrimaryOptions::default()).await?;
    let sql = primary.client().await?;
    let schema = "CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL);
        INSERT INTO users SELECT id, 'v1' FROM generate_series(1, 20) AS id;
        CREATE TABLE unguarded (id bigint);";
    sql.batch_execute(schema).await?;
    let redis = Redis::start(RedisOptions::default()).await?;
    let servers = strict(&primary, &redis, "cachefence_a");
    let proxy = Cachefence::launch(Path::new(BINARY), &(servers.clone() + GUARD))?;
    Ok(World { proxy, redis, replica: None, sql, primary, servers, guards: GUARD.to_owned() })
}

/// Sets `synchronous_standby_names`, as an operator would.
async fn name(world: &World, standbys: &str) -> Outcome {
    let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{standbys}'");
    world.sql.batch_execute(&set).await?;
    world.sql.batch_execute("SELECT pg_reload_conf()").await?;
    Ok(())
}

/// Waits until `/readyz` answers with this status and this text.
async fn readiness(proxy: &Cachefence, status: u16, text: &str) -> Outcome {
    let mut last = String::new();
    let what = format!("readiness {status} with {text:?}");
    let waited = wait_until(&what, PATIENCE, async || {
        let answer = proxy.get("/readyz").await;
        last = format!("{answer:?}");
        answer.is_ok_and(|(found, why)| found == status && why.contains(text))
    });
    waited.await.map_err(|error| format!("{error}; it says {last}; its log:\n{}", proxy.log()).into())
}

/// What clients and operators see while the contract is not in force.
async fn is_not_in_force(world: &World, proxy: &Cachefence) -> Outcome {
    let mut client = proxy.client().await?;
    world.redis(&["SET", "user:9", "old"]).await?;
    assert_eq!(client.cmd(&["GET", "user:9"]).await?, Reply::Nil, "reads miss");
    assert_refused(&client.cmd(&["SET", "user:9", "v1"]).await?, "FENCE");
    assert_refused(&client.cmd(&["ASOF", &world.snapshot().await?, "SET", "user:9", "v1"]).await?, "FENCE");
    client.cmd(&["MULTI"]).await?;
    client.cmd(&["GET", "user:9"]).await?;
    assert_eq!(client.cmd(&["EXEC"]).await?, Reply::Nil, "nor in a transaction");
    world.redis(&["DEL", "user:9"]).await?;
    assert_eq!(proxy.metric("cachefence_strict_in_force").await?, 0.0);
    let status = support::status(proxy).await?;
    assert_eq!(status.pointer("/strict/in_force"), Some(&false.into()), "{status}");
    Ok(())
}

#[tokio::test]
async fn the_strict_contract() -> Outcome {
    let mut world = start().await?;
    nothing_is_served_before_commits_wait(&world).await?;
    a_commit_returns_only_after_its_key_is_deleted(&mut world).await?;
    no_read_after_a_commit_is_older(&world).await?;
    commits_of_other_tables_do_not_hang(&world).await?;
    a_name_that_is_removed_ends_it_and_one_put_back_brings_it_back(&world).await?;
    the_doctor_knows_what_is_wrong(&world).await?;
    two_proxies_extend_the_promise_to_both(&world).await?;
    what_redis_forgot_to_delete_is_not_served(&mut world).await?;
    a_restart_distrusts_what_was_confirmed_and_is_not_visible(&mut world).await?;
    a_lost_slot_has_a_way_out(&mut world).await?;
    Ok(())
}

/// The process of Postgres on whose word commits wait.
async fn checkpointer(world: &World) -> Fallible<Pid> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    Pid::from_raw(world.sql.query_one(sql, &[]).await?.try_get(0)?).ok_or_else(|| "no checkpointer".into())
}

/// Configured is not in force: the setting is missing, and readiness says what to run. Once it has been run, and commits
/// really wait, the contract is in force, without a restart.
async fn nothing_is_served_before_commits_wait(world: &World) -> Outcome {
    let run = "run: ALTER SYSTEM SET synchronous_standby_names = 'cachefence_a'; SELECT pg_reload_conf();";
    readiness(&world.proxy, 503, run).await?;
    is_not_in_force(world, &world.proxy).await?;

    // As in the middle of a long checkpoint: Postgres counts the proxy as synchronous, but no commit waits for it.
    let checkpointer = checkpointer(world).await?;
    kill_process(checkpointer, Signal::STOP)?;
    name(world, "cachefence_a").await?;
    readiness(&world.proxy, 503, "commits do not wait yet").await?;
    let counted = "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'cachefence_a'";
    assert_eq!(support::text(&world.sql, counted).await?, "sync");
    is_not_in_force(world, &world.proxy).await?;
    kill_process(checkpointer, Signal::CONT)?;

    readiness(&world.proxy, 200, "ready").await?;
    assert_eq!(world.proxy.metric("cachefence_strict_in_force").await?, 1.0);
    let status = world.status().await?;
    assert_eq!(status.pointer("/contract"), Some(&"strict".into()), "{status}");
    assert_eq!(status.pointer("/strict/in_force"), Some(&true.into()), "{status}");
    Ok(())
}

/// While Redis is frozen the deletion cannot be done, and so the COMMIT does not return.
async fn a_commit_returns_only_after_its_key_is_deleted(world: &mut World) -> Outcome {
    world.warm(1).await?;
    let mut direct = world.redis.client().await?;
    world.redis.freeze()?;
    let commit = HeldCommit::begin(world, "UPDATE users SET name = 'v2' WHERE id = 1").await?;
    assert!(commit.is_held(world).await?, "the commit returned while its key was there");
    // It is held although the feed has it: when Postgres hears of us again, that is not confirmed.
    let committed = world.flushed().await?;
    wait_until("the commit to arrive", PATIENCE, async || {
        let status = world.status().await.unwrap_or_default();
        support::lsn(&status, "/feed/received_lsn").is_some_and(|received| received >= committed)
    })
    .await?;
    let heard = "SELECT reply_time::text, flush_lsn::text FROM pg_stat_replication";
    let before: String = world.sql.query_one(heard, &[]).await?.try_get(0)?;
    let confirmed: Lsn = wait_for("another word of the proxy", PATIENCE, || async {
        let row = world.sql.query_one(heard, &[]).await.ok()?;
        (row.get::<_, &str>(0) != before).then(|| row.get::<_, &str>(1).parse().ok())?
    })
    .await?;
    assert!(confirmed < committed, "{confirmed} was confirmed, the commit ends at {committed}");
    assert!(commit.is_held(world).await?, "the commit returned while its key was there");
    world.redis.thaw()?;
    commit.end().await?;
    // Without waiting: when the COMMIT has returned, the key is gone.
    assert_eq!(direct.cmd(&["EXISTS", "user:1"]).await?, Reply::Int(0));
    Ok(())
}

/// Fills what a snapshot of the primary shows. It is not believed before the first poll, nor of a key that was written too
/// often since the last one: then a later one is.
async fn fill(world: &World, client: &mut Client, id: i64) -> Outcome {
    let key = format!("user:{id}");
    wait_until("a fill by evidence to be let in", PATIENCE, async || {
        let filled = async {
            let seen = world.snapshot().await?;
            let name = world.name(id).await?;
            Ok::<_, Box<dyn std::error::Error>>(client.cmd(&["ASOF", &seen, "SET", &key, &name]).await?)
        };
        filled.await.is_ok_and(|reply| reply == Reply::ok())
    })
    .await?;
    Ok(())
}

/// A writer, and a reader that asks right after each acknowledgement. The cache is filled in between, so that there is
/// something old to be found.
async fn no_read_after_a_commit_is_older(world: &World) -> Outcome {
    let mut client = world.client().await?;
    for round in 0..300 {
        // A key in turn, so that few of them are written too often between two polls.
        let (id, name) = (11 + round % 10, format!("round {round}"));
        let key = format!("user:{id}");
        world.rename(id, &name).await?;
        assert_eq!(client.cmd(&["GET", &key]).await?, Reply::Nil, "{name} was acknowledged");
        fill(world, &mut client, id).await.map_err(|error| format!("{name}: {error}"))?;
        assert_eq!(client.cmd(&["GET", &key]).await?, Reply::bulk(&name));
    }
    Ok(())
}

/// The setting is for the whole server: what no publication has, what writes nothing that is followed, and other
/// databases' commits wait too, and must be let go.
async fn commits_of_other_tables_do_not_hang(world: &World) -> Outcome {
    let other = world.primary.client_for("postgres").await?;
    other.batch_execute("CREATE TABLE elsewhere (id bigint)").await?;
    for statement in [
        "INSERT INTO unguarded VALUES (1)",
        "SELECT pg_current_xact_id()",
        "CREATE TEMPORARY TABLE passing (id bigint)",
        "BEGIN; SELECT pg_logical_emit_message(true, 'someone', 'else'); COMMIT",
    ] {
        let done = tokio::time::timeout(PATIENCE, world.sql.batch_execute(statement));
        done.await.map_err(|_| format!("{statement} hangs"))??;
        let done = tokio::time::timeout(PATIENCE, other.batch_execute("INSERT INTO elsewhere VALUES (1)"));
        done.await.map_err(|_| "a commit of another database hangs")??;
    }
    // Nor do they wait for the pace of the marker, 100 ms from one to the next: the quickest of many knows no noise.
    let mut quickest = Duration::MAX;
    for _ in 0..50 {
        let began = Instant::now();
        world.sql.batch_execute("INSERT INTO unguarded VALUES (1)").await?;
        quickest = quickest.min(began.elapsed());
    }
    assert!(quickest < Duration::from_millis(50), "{quickest:?}");
    Ok(())
}

/// An operator's way out, and back.
async fn a_name_that_is_removed_ends_it_and_one_put_back_brings_it_back(world: &World) -> Outcome {
    for standbys in ["", "somebody_else, cachefence_a", "*", "ANY 1 (cachefence_a, somebody_else)"] {
        name(world, standbys).await?;
        readiness(&world.proxy, 503, "the strict contract is not in force").await?;
        is_not_in_force(world, &world.proxy).await?;
        name(world, "cachefence_a").await?;
        readiness(&world.proxy, 200, "ready").await?;
    }
    world.warm(4).await?;
    let log = world.proxy.log();
    assert_eq!(log.matches("the strict contract is in force").count(), 5, "{log}");
    Ok(())
}

/// A Redis that comes back with older data serves none of it, though no client was connected that could have noticed.
async fn what_redis_forgot_to_delete_is_not_served(world: &mut World) -> Outcome {
    for round in 0..3 {
        world.redis(&["SET", "user:3", "old"]).await?;
        world.redis(&["SAVE"]).await?;
        world.rename(3, &format!("round {round}")).await?;
        assert_eq!(world.held("user:3").await?, None);
        world.redis.kill().await?;
        world.redis.relaunch().await?;
        assert_eq!(world.client().await?.cmd(&["GET", "user:3"]).await?, Reply::Nil, "round {round}");
        readiness(&world.proxy, 200, "ready").await?;
        assert_eq!(world.held("user:3").await?, None);
    }
    Ok(())
}

/// `cachefence check` with the proxy's settings: whether all is well, and what it printed.
fn check(settings: &str) -> Fallible<(bool, String)> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(settings.as_bytes())?;
    // Whoever else runs on this machine may have the ports of the defaults.
    let ports = [("CACHEFENCE_PROXY__LISTEN", "127.0.0.1:0"), ("CACHEFENCE_ADMIN__LISTEN", "127.0.0.1:0")];
    let output = Command::new(BINARY).arg("check").arg("--config").arg(file.path()).envs(ports).output()?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// What keeps the contract from being in force, and whose commits are outside of it.
async fn the_doctor_knows_what_is_wrong(world: &World) -> Outcome {
    let settings = world.servers.clone() + GUARD;
    let (good, rows) = check(&settings)?;
    assert!(good && !rows.contains("FAILED"), "{rows}");
    assert!(rows.contains("\"cachefence_a\" is read by a proxy"), "{rows}");

    world.sql.batch_execute("ALTER DATABASE app SET synchronous_commit = local").await?;
    world.sql.batch_execute("CREATE ROLE batch; ALTER ROLE batch SET synchronous_commit = no").await?;
    let (good, rows) = check(&settings.replace("slot = \"cachefence_a\"", "slot = \"other\""))?;
    for row in [
        "WARNING slot                        there is no slot \"other\"",
        "database \"app\" has 'local'",
        "run: ALTER DATABASE \"app\" RESET synchronous_commit;",
        "role \"batch\" has 'no'",
    ] {
        assert!(!good && rows.contains(row), "{row}:\n{rows}");
    }
    world.sql.batch_execute("ALTER DATABASE app RESET synchronous_commit; DROP ROLE batch").await?;

    name(world, "ANY 1 (cachefence_a, s1)").await?;
    let (good, rows) = check(&settings)?;
    let run = "run: ALTER SYSTEM SET synchronous_standby_names = 'FIRST 2 (cachefence_a, s1)'";
    assert!(!good && rows.contains("FAILED  synchronous_standby_names") && rows.contains(run), "{rows}");
    name(world, "cachefence_a").await?;
    readiness(&world.proxy, 200, "ready").await
}

/// Two proxies, with slots and names of their own, before one Redis: a read through either is as good.
async fn two_proxies_extend_the_promise_to_both(world: &World) -> Outcome {
    let settings = strict(&world.primary, &world.redis, "cachefence_b") + GUARD;
    let mut other = Cachefence::launch(Path::new(BINARY), &settings)?;
    readiness(
        &other,
        503,
        "run: ALTER SYSTEM SET synchronous_standby_names = 'FIRST 2 (cachefence_a, cachefence_b)'",
    )
    .await?;
    name(world, "2 (cachefence_a, cachefence_b)").await?;
    readiness(&other, 200, "ready").await?;
    readiness(&world.proxy, 200, "ready").await?;

    other.freeze()?;
    let commit = HeldCommit::begin(world, "UPDATE users SET name = 'both' WHERE id = 5").await?;
    assert!(commit.is_held(world).await?, "the commit did not wait for the second proxy");
    other.thaw()?;
    commit.end().await?;
    readiness(&other, 200, "ready").await?;

    let mut clients = [world.client().await?, other.client().await?];
    for round in 0..100 {
        let name = format!("round {round}");
        world.rename(6, &name).await?;
        for client in &mut clients {
            let found = client.cmd(&["GET", "user:6"]).await?;
            assert!(found == Reply::Nil || found == Reply::bulk(&name), "round {round}: {found:?}");
            client.cmd(&["SET", "user:6", &world.name(6).await?]).await?;
        }
    }
    // Neither took the other for its predecessor, and each has a marker.
    for (proxy, slot) in [(&world.proxy, "cachefence_a"), (&other, "cachefence_b")] {
        assert!(world.held(&format!("cachefence:{slot}")).await?.is_some(), "the marker of {slot}");
        assert!(!proxy.log().contains("closing the connections of an earlier"), "{}", proxy.log());
        assert_eq!(proxy.metric("cachefence_upstream_reconnects_total").await?, 0.0);
    }

    // One that is dead holds up every commit, until an operator takes it out.
    other.kill().await?;
    let commit = HeldCommit::begin(world, "UPDATE users SET name = 'one' WHERE id = 5").await?;
    assert!(commit.is_held(world).await?, "the commit did not wait for the dead proxy");
    readiness(&world.proxy, 200, "ready").await?;
    name(world, "cachefence_a").await?;
    commit.end().await?;
    world.sql.execute("SELECT pg_drop_replication_slot('cachefence_b')", &[]).await?;
    Ok(())
}

/// What the process before has confirmed does not come again, and need not be visible: it may still wait for another
/// standby. Until it is, nothing is settled, so that no miss vouches for what a reader cannot see yet.
async fn a_restart_distrusts_what_was_confirmed_and_is_not_visible(world: &mut World) -> Outcome {
    let before = world.level().await?;
    name(world, "2 (cachefence_a, nobody)").await?;
    let commit = HeldCommit::begin(world, "UPDATE users SET name = 'hidden' WHERE id = 7").await?;
    assert!(commit.is_held(world).await?, "the commit did not wait for nobody");
    let committed = world.applied().await?;
    wait_until("the commit to be confirmed", PATIENCE, async || {
        let status = world.status().await.unwrap_or_default();
        support::lsn(&status, "/feed/confirmed_lsn").is_some_and(|confirmed| confirmed >= committed)
    })
    .await?;
    world.proxy.kill().await?;
    world.proxy.relaunch().await?;
    wait_until("the primary to be polled", PATIENCE, async || {
        let status = world.status().await.unwrap_or_default();
        status.pointer("/sources/0/up") == Some(&true.into())
    })
    .await?;
    assert_ne!(world.name(7).await?, "hidden");
    let status = world.status().await?;
    assert!(support::lsn(&status, "/fence/settled_lsn").is_some_and(|settled| settled <= before), "{status}");
    a_bounded_successor_distrusts_it_too(world, before).await?;
    name(world, "cachefence_a").await?;
    commit.end().await?;
    world.level().await?;
    Ok(())
}

/// And so does one that is bounded itself: the operator has given strict up, with a commit still waiting for another standby.
async fn a_bounded_successor_distrusts_it_too(world: &mut World, before: Lsn) -> Outcome {
    world.proxy.kill().await?;
    name(world, "nobody").await?;
    let bounded = world.servers.replace("contract = \"strict\"", "contract = \"bounded\"") + GUARD;
    for _ in 0..2 {
        // The one after it, too.
        let mut proxy = Cachefence::start(BINARY, &bounded).await?;
        assert_ne!(world.name(7).await?, "hidden");
        let mut client = proxy.client().await?;
        assert_eq!(client.cmd(&["GET", "user:7"]).await?, Reply::Nil);
        let status = support::status(&proxy).await?;
        assert!(support::lsn(&status, "/fence/settled_lsn").is_some_and(|lsn| lsn <= before), "{status}");
        proxy.kill().await?;
    }
    name(world, "2 (cachefence_a, nobody)").await?;
    world.proxy.relaunch().await?;
    Ok(())
}

/// A new slot waits for the commits that wait for the proxy. It says so, and goes on by itself when they are let go.
async fn a_lost_slot_has_a_way_out(world: &mut World) -> Outcome {
    world.proxy.kill().await?;
    wait_until("the slot to be free", PATIENCE, async || {
        world.sql.execute("SELECT pg_drop_replication_slot('cachefence_a')", &[]).await.is_ok()
    })
    .await?;
    // To wait for the one that comes next is no way out: it is not there.
    name(world, "FIRST 1 (cachefence_a, nobody)").await?;
    let commit = HeldCommit::begin(world, "UPDATE users SET name = 'v3' WHERE id = 8").await?;
    assert!(commit.is_held(world).await?, "the commit did not wait for the proxy");
    world.proxy = Cachefence::launch(Path::new(BINARY), &(world.servers.clone() + GUARD))?;
    let run = "run: ALTER SYSTEM SET synchronous_standby_names = ''; SELECT pg_reload_conf();";
    readiness(&world.proxy, 503, &format!("wait for this proxy; {run}")).await?;
    name(world, "").await?;
    commit.end().await?;
    readiness(&world.proxy, 503, "does not name it").await?;
    name(world, "cachefence_a").await?;
    readiness(&world.proxy, 200, "ready").await?;
    // By evidence: misses of a predecessor may still be filled for a while, so none counts yet.
    let mut client = world.client().await?;
    assert_eq!(client.cmd(&["GET", "user:8"]).await?, Reply::Nil);
    fill(world, &mut client, 8).await?;
    assert_eq!(client.cmd(&["GET", "user:8"]).await?, Reply::bulk("v3"));
    Ok(())
}
