//! A guard's keys are in the db that it names, and nowhere else.

mod wire;

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::wait_until;
use wire::{Fallible, Outcome, PATIENCE, Stand, Wire, settled};

/// The items are in db 2, with errors for refused fills; all else is in db 0.
const ITEMS: (&str, &str) =
    ("keys = [\"item:<id>\"]\nreply = \"nil\"", "keys = [\"item:<id>\"]\ndb = 2\nreply = \"error\"");

async fn put(redis: &mut Client, db: &str, key: &str) -> Outcome {
    assert_eq!(redis.cmd(&["SELECT", db]).await?, Reply::ok());
    assert_eq!(redis.cmd(&["SET", key, "old"]).await?, Reply::ok());
    Ok(())
}

async fn exists(redis: &mut Client, db: &str, key: &str) -> Fallible<bool> {
    redis.cmd(&["SELECT", db]).await?;
    Ok(redis.cmd(&["EXISTS", key]).await? == Reply::Int(1))
}

#[tokio::test]
async fn a_commit_deletes_in_the_db_of_the_guard() -> Outcome {
    let stand = Stand::start(&[ITEMS]).await?;
    let (mut redis, postgres) = (stand.redis.client().await?, stand.postgres.client().await?);
    for (db, key) in
        [("0", "item:1"), ("2", "item:1"), ("0", "user:1"), ("2", "user:1"), ("2", "feed"), ("0", "feed")]
    {
        put(&mut redis, db, key).await?;
    }
    // Both tables, and a key that no row derives, in one transaction.
    postgres
        .batch_execute(
            "BEGIN; UPDATE items SET name = 'new' WHERE id = 1; UPDATE users SET name = 'new' WHERE id = 1; \
             SELECT pg_logical_emit_message(true, 'cachefence', 'feed'); \
             SELECT pg_logical_emit_message(true, 'cachefence', 'item:2'); COMMIT",
        )
        .await?;
    wait_until("the keys to be deleted", PATIENCE, async || {
        matches!(exists(&mut redis, "2", "item:1").await, Ok(false))
            && matches!(exists(&mut redis, "0", "user:1").await, Ok(false))
    })
    .await?;
    assert!(!exists(&mut redis, "0", "feed").await?, "named by hand: in the db of redis.url");
    for (db, key) in [("0", "item:1"), ("2", "user:1"), ("2", "feed")] {
        assert!(exists(&mut redis, db, key).await?, "{key} in db {db} is not guarded");
    }
    Ok(())
}

#[tokio::test]
async fn fills_are_judged_in_the_db_of_the_guard() -> Outcome {
    let stand = Stand::start(&[ITEMS]).await?;
    let mut redis = stand.redis.client().await?;
    put(&mut redis, "2", "item:1").await?;
    stand.postgres.client().await?.batch_execute("UPDATE items SET name = 'new' WHERE id IN (1, 2)").await?;
    wait_until("the key to be deleted", PATIENCE, async || {
        matches!(exists(&mut redis, "2", "item:1").await, Ok(false))
    })
    .await?;
    let mut client = Wire::connect(stand.proxy.address()).await?;
    assert_eq!(client.cmd("SET item:1 free").await?, "+OK\r\n", "in db 0 it is not guarded");
    assert!(client.cmd("COPY item:1 item:1 DB 2").await?.starts_with("-STALE"));
    assert!(client.cmd("MOVE item:1 2").await?.starts_with("-STALE"));
    for line in ["MULTI", "SELECT 2", "SET item:1 stale"] {
        client.cmd(line).await?;
    }
    assert_eq!(client.cmd("EXEC").await?, "*-1\r\n");
    assert_eq!(client.cmd("SELECT 2").await?, "+OK\r\n");
    assert!(client.cmd("SET item:1 stale").await?.starts_with("-STALE"));
    assert_eq!(client.cmd("MSET item:1 stale other fine item:2 stale").await?[..6], *"-STALE");
    assert_eq!(client.cmd("SET user:1 free").await?, "+OK\r\n");
    assert!(!exists(&mut redis, "2", "item:1").await? && exists(&mut redis, "2", "other").await?);
    // A miss there vouches for a fill there.
    settled(&stand.postgres, &stand.proxy).await?;
    assert_eq!(client.cmd("GET item:1").await?, "$-1\r\n");
    assert_eq!(client.cmd("SET item:1 new").await?, "+OK\r\n");
    assert_eq!(client.cmd("TTL item:1").await?, ":-1\r\n", "fresh: not capped");
    // What nothing speaks for is capped there.
    assert_eq!(client.cmd("SET item:50 unknown").await?, "+OK\r\n");
    assert_ne!(client.cmd("TTL item:50").await?, ":-1\r\n");
    Ok(())
}

/// Also a purge finds the keys where they are.
#[tokio::test]
async fn a_truncate_purges_the_db_of_the_guard() -> Outcome {
    let stand = Stand::start(&[ITEMS]).await?;
    let mut redis = stand.redis.client().await?;
    for (db, key) in [("0", "item:1"), ("2", "item:1"), ("2", "item:2"), ("2", "user:1")] {
        put(&mut redis, db, key).await?;
    }
    stand.postgres.client().await?.batch_execute("TRUNCATE items").await?;
    wait_until("the purge", PATIENCE, async || {
        matches!(exists(&mut redis, "2", "item:2").await, Ok(false))
            && matches!(exists(&mut redis, "2", "item:1").await, Ok(false))
    })
    .await?;
    assert!(exists(&mut redis, "0", "item:1").await? && exists(&mut redis, "2", "user:1").await?);
    Ok(())
}
