//! A transaction of more keys than are held at a time: it is fenced and deleted in parts.

mod support;

use cachefence::demo::client::Reply;
use cachefence::demo::servers::wait_until;
use cachefence::position::Lsn;
use support::{EXACT, Fallible, Outcome, PATIENCE, Setup, World, assert_passed, assert_refused, text};

/// Six parts and a rest. A row that was there before changes in the last part.
const TRANSACTION: &str = "BEGIN; \
    INSERT INTO users SELECT id, 'v1' FROM generate_series(1001, 66000) AS id; \
    UPDATE users SET name = 'v2' WHERE id = 2; \
    COMMIT";

/// Of the first part, one in between, and the last.
const CHANGED: [&str; 4] = ["user:1001", "user:31000", "user:66000", "user:2"];
/// Of the same guard.
const OTHERS: [&str; 2] = ["user:1", "user:99999999"];

async fn plant(world: &World, keys: &[&str]) -> Outcome {
    for key in keys {
        assert_eq!(world.redis(&["SET", key, "planted"]).await?, Reply::ok());
    }
    Ok(())
}

/// Where the commit record of the next transaction in a slot begins, as its Begin message tells.
async fn begins(world: &World, slot: &str) -> Fallible<Lsn> {
    let sql = format!(
        "SELECT encode(substring(data FROM 2 FOR 8), 'hex') FROM pg_logical_slot_peek_binary_changes( \
             '{slot}', NULL, 1, 'proto_version', '1', 'publication_names', 'cachefence') LIMIT 1"
    );
    Ok(Lsn(u64::from_str_radix(&text(&world.sql, &sql).await?, 16)?))
}

/// Only its own keys are deleted, fills from before it are refused whichever part their key was in, and a Redis that goes
/// back to where some of the parts had not been deleted has them deleted again.
#[tokio::test]
async fn a_large_transaction_deletes_its_own_keys_and_no_others() -> Outcome {
    let world = Setup::new(EXACT).start().await?;
    let slot = "SELECT pg_create_logical_replication_slot('peek', 'pgoutput')::text";
    text(&world.sql, slot).await?;
    plant(&world, &CHANGED).await?;
    plant(&world, &OTHERS).await?;
    let mut client = world.client().await?;
    assert_eq!(client.cmd(&["GET", "user:40000"]).await?, Reply::Nil);
    let before = world.snapshot().await?;
    let purges = world.proxy.metric("cachefence_purges_total").await?;

    world.sql.batch_execute(TRANSACTION).await?;
    let end = world.level().await?;
    for key in CHANGED {
        assert_eq!(world.held(key).await?, None, "{key}: {}", world.proxy.log());
        assert_refused(&client.cmd(&["ASOF", &before, "SET", key, "v0"]).await?, "STALE");
    }
    assert_refused(&client.cmd(&["SET", "user:40000", "none"]).await?, "STALE");
    let after = world.snapshot().await?;
    assert_passed(&client.cmd(&["ASOF", &after, "SET", "user:31000", "v1"]).await?);
    for key in OTHERS {
        assert_eq!(world.held(key).await?, Some("planted".into()), "{key}");
    }
    let written = world.proxy.metric("cachefence_writes_total{guard=\"public.users\"}").await?;
    assert!(written >= 65_001.0, "{written}");

    // The marker that Redis had while the parts were being deleted.
    let begins = begins(&world, "peek").await?;
    assert!(begins < end);
    let marker = world.held("cachefence:cachefence").await?.ok_or("no marker")?;
    let then = marker.split(' ').map(|word| match word.strip_prefix("applied=") {
        Some(_) => format!("applied={begins}"),
        None => word.to_owned(),
    });
    let then = then.collect::<Vec<_>>().join(" ");
    let mut redis = world.redis.client().await?;
    // Again, should the proxy have written its marker in between.
    wait_until("what was deleted in parts to be deleted again", PATIENCE, async || {
        let attempt = async {
            if redis.cmd(&["EXISTS", "user:31000"]).await? == Reply::Int(0) {
                return Ok(true);
            }
            if redis.cmd(&["GET", "cachefence:cachefence"]).await?.text().as_ref() != Some(&then) {
                redis.cmd(&["SET", "cachefence:cachefence", &then]).await?;
                redis.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await?;
            }
            Fallible::Ok(false)
        };
        attempt.await.is_ok_and(|gone| gone)
    })
    .await?;
    for key in OTHERS {
        assert_eq!(world.held(key).await?, Some("planted".into()), "{key}");
    }
    assert_eq!(world.proxy.metric("cachefence_purges_total").await?, purges, "{}", world.proxy.log());
    if text(&world.sql, "SHOW server_version_num").await?.parse::<i32>()? >= 140_000 {
        one_that_is_received_while_it_runs(&world).await?;
    }
    Ok(())
}

/// Nothing is deleted before its commit, and what is committed meanwhile does not wait for it. Then all of its own keys, but
/// not those of what was rolled back.
async fn one_that_is_received_while_it_runs(world: &World) -> Outcome {
    plant(world, &["user:3", "user:100001", "user:120000", "user:130000", "user:5"]).await?;
    // The server reads it again by itself. From then on nearly every transaction is sent while it runs.
    world.sql.batch_execute("ALTER SYSTEM SET logical_decoding_work_mem = '64kB'").await?;
    text(&world.sql, "SELECT pg_reload_conf()::text").await?;
    let session = world.primary.client().await?;
    session
        .batch_execute(
            "BEGIN; INSERT INTO users SELECT id, 'v1' FROM generate_series(100001, 120000) AS id; SAVEPOINT s; \
             INSERT INTO users SELECT id, 'v1' FROM generate_series(120001, 130000) AS id; \
             UPDATE users SET name = 'gone' WHERE id = 5; ROLLBACK TO s; UPDATE users SET name = 'v3' WHERE id = 2",
        )
        .await?;
    wait_until("the transaction to be received while it runs", PATIENCE, async || {
        world.proxy.metric("cachefence_in_progress_bytes").await.is_ok_and(|bytes| bytes > 200_000.0)
    })
    .await?;
    world.rename(3, "v2").await?;
    world.gone("user:3").await?;
    for key in ["user:100001", "user:120000"] {
        assert_eq!(world.held(key).await?, Some("planted".into()), "{key}");
    }
    session.batch_execute("COMMIT").await?;
    world.level().await?;
    for (key, value) in
        [("user:100001", None), ("user:120000", None), ("user:130000", Some("planted".into()))]
    {
        assert_eq!(world.held(key).await?, value, "{key}: {}", world.proxy.log());
    }
    assert_eq!(world.held("user:5").await?, Some("planted".into()));
    assert_eq!(world.proxy.metric("cachefence_in_progress_bytes").await?, 0.0);
    Ok(())
}
