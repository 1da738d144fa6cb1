//! The publication and the guarded table are altered while all goes on.

use super::*;

/// The fault writes row 0 itself, which the load leaves alone: what a look at the catalog finds is purged within its
/// interval, and what is cached until then is not promised.
async fn purged_after(stand: &Stand, statements: &[&str]) -> Outcome {
    let mut redis = stand.redis.client().await?;
    redis.cmd(&["SET", "user:0", "old"]).await?;
    let sql = stand.sql().await?;
    for statement in statements {
        sql.batch_execute(statement).await?;
    }
    let gone = async || redis.cmd(&["EXISTS", "user:0"]).await.is_ok_and(|found| found == Reply::Int(0));
    Ok(wait_until("the guard to be purged", PATIENCE, gone).await?)
}

const WRITE: &str = "UPDATE users SET version = version + 1 WHERE id = 0";

/// Nothing comes of it any more. From when that is seen nothing is filled, and nothing is left that was.
pub async fn unpublished(stand: &mut Stand, load: &Load) -> Outcome {
    quietly(stand, load).await?;
    purged_after(stand, &["ALTER PUBLICATION cachefence DROP TABLE users"]).await?;
    stand.not_ready("guard public.users is broken").await?;
    load.resume_writing();
    load.written(50).await?;
    let sql = stand.sql().await?;
    sql.batch_execute("ALTER PUBLICATION cachefence ADD TABLE users").await?;
    Ok(())
}

pub async fn without_updates(stand: &mut Stand, load: &Load) -> Outcome {
    quietly(stand, load).await?;
    purged_after(
        stand,
        &[
            "ALTER PUBLICATION cachefence SET (publish = 'insert, delete, truncate')",
            WRITE,
            "ALTER PUBLICATION cachefence SET (publish = 'insert, update, delete, truncate')",
        ],
    )
    .await?;
    load.resume_writing();
    Ok(())
}

pub async fn publication_anew(stand: &mut Stand, load: &Load) -> Outcome {
    quietly(stand, load).await?;
    let create = "CREATE PUBLICATION cachefence FOR TABLE users WITH (publish_via_partition_root = true)";
    purged_after(stand, &["DROP PUBLICATION cachefence", WRITE, create]).await?;
    load.resume_writing();
    Ok(())
}

/// Writers have ended, and what they wrote is applied: what is not sent from now on is the fault's.
async fn quietly(stand: &Stand, load: &Load) -> Outcome {
    load.stop_writing();
    let sql = stand.sql().await?;
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'app' AND backend_xid IS NOT NULL";
    let idle = async || sql.query_one(open, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) == 0);
    wait_until("writers to end", PATIENCE, idle).await?;
    // Those that were about to begin have seen it, too.
    let before = text(&sql, "SELECT sum(version)::text FROM users").await?;
    let mut last = (before, Instant::now());
    wait_until("writers to be quiet", PATIENCE, async || {
        let Ok(now) = text(&sql, "SELECT sum(version)::text FROM users").await else { return false };
        if now != last.0 {
            last = (now, Instant::now());
        }
        last.1.elapsed() > Duration::from_millis(300)
    })
    .await?;
    stand.level().await
}

/// Another table by that name, with other rows, of which nothing is in the stream.
pub async fn table_anew(stand: &mut Stand, _: &Load) -> Outcome {
    let sql = "BEGIN;
        LOCK TABLE users IN ACCESS EXCLUSIVE MODE;
        CREATE TABLE users_new (id bigint PRIMARY KEY, version bigint NOT NULL);
        INSERT INTO users_new SELECT id, version + 1 FROM users;
        DROP TABLE users;
        ALTER TABLE users_new RENAME TO users;
        ALTER PUBLICATION cachefence ADD TABLE users;
        COMMIT";
    purged_after(stand, &[sql]).await
}

/// As long as it lasts no row has a key.
pub async fn renamed(stand: &mut Stand, _: &Load) -> Outcome {
    let sql = stand.sql().await?;
    sql.batch_execute("ALTER TABLE users RENAME id TO nr").await?;
    purged_after(stand, &["UPDATE users SET version = version + 1 WHERE nr = 0"]).await?;
    stand.not_ready("guard public.users is broken").await?;
    sql.batch_execute("ALTER TABLE users RENAME nr TO id").await?;
    Ok(())
}

/// The type stays what it was, and no row is sent.
pub async fn rewritten(stand: &mut Stand, _: &Load) -> Outcome {
    purged_after(stand, &["ALTER TABLE users ALTER version TYPE bigint USING version + 1"]).await
}

pub async fn truncated(stand: &mut Stand, _: &Load) -> Outcome {
    let sql = "BEGIN;
        LOCK TABLE users IN ACCESS EXCLUSIVE MODE;
        CREATE TEMPORARY TABLE kept ON COMMIT DROP AS SELECT id, version + 1 AS version FROM users;
        TRUNCATE users;
        INSERT INTO users SELECT * FROM kept WHERE id <> 0;
        COMMIT";
    // Of a row that does not come again nothing but the TRUNCATE tells.
    purged_after(stand, &[sql]).await?;
    Ok(stand.sql().await?.batch_execute("INSERT INTO users VALUES (0, 1)").await?)
}
