//! Tables that are altered while the proxy runs, or while it does not: what every row holds changes, and no row is sent.

use super::{
    Outcome, PATIENCE, World, assert_passed, assert_refused, deletes, nudge, purges, ready, wait_until,
};

/// Tables of this file.
pub const TABLES: &str = r#"
CREATE TABLE prices (id int PRIMARY KEY, price int, code text, other text);
ALTER TABLE prices REPLICA IDENTITY FULL;
INSERT INTO prices VALUES (1, 1, 'a', 'b');
CREATE TABLE swapped (id int PRIMARY KEY); CREATE TABLE swapped_new (id int PRIMARY KEY);
CREATE TABLE visits (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE visits_1 PARTITION OF visits FOR VALUES FROM (0) TO (100);
CREATE TABLE visits_2 (id int PRIMARY KEY); INSERT INTO visits_2 VALUES (101);
CREATE TABLE rekeyed (id int NOT NULL, nr int NOT NULL, version int, CONSTRAINT rekeyed_key PRIMARY KEY (id));
CREATE UNIQUE INDEX rekeyed_both ON rekeyed (id, nr);
CREATE TABLE mended (id int PRIMARY KEY, note text);
CREATE TABLE calm (id int PRIMARY KEY);
"#;

/// The guards of this file.
pub const GUARDS: &[(&str, &[&str])] = &[
    ("prices", &["price:<id>", "price:by-code:<code>"]),
    ("swapped", &["swapped:<id>"]),
    ("visits", &["visit:<id>"]),
    ("mended", &["mended:<id>"]),
    ("calm", &["calm:<id>"]),
];

/// Guards that need more than tables and keys.
pub const VERSIONED: &str = "[[guard]]\ntable = \"rekeyed\"\nkeys = [\"rekeyed:<id>\"]\nreply = \"error\"\n\
    unproven = \"refuse\"\nversion = { column = \"version\", raw = true }\n";

/// Rewritten rows are not sent, and the values of a column are others: keys that are made of it, and what is cached of it.
pub async fn columns(world: &World) -> Outcome {
    let sql = format!("ALTER TABLE prices ALTER price TYPE bigint USING price * 100; {}", nudge(10));
    purges(world, &sql, &["price:1"]).await?;
    let sql = format!("ALTER TABLE prices ALTER price TYPE bigint USING price + 1; {}", nudge(22));
    purges(world, &sql, &["price:1"]).await?;
    // As migrations do it: a new column takes the name of the old one.
    let sql = format!(
        "BEGIN; ALTER TABLE prices DROP COLUMN code; ALTER TABLE prices RENAME other TO code; COMMIT; {}",
        nudge(11)
    );
    purges(world, &sql, &["price:1", "price:by-code:a"]).await?;
    ready(world).await?;
    deletes(world, "UPDATE prices SET price = 2", &["price:1", "price:by-code:b"], &["price:by-code:a"])
        .await?;
    // One more, or one less, leaves the others what they are.
    let sql = format!("ALTER TABLE prices ADD COLUMN more int DEFAULT 7; {}", nudge(12));
    deletes(world, &sql, &[], &["price:1"]).await?;
    wait_until("the new column to be known", PATIENCE, async || {
        let sql = "UPDATE prices SET more = 8";
        deletes(world, sql, &["price:1"], &["price:2"]).await.is_ok()
    })
    .await?;
    Ok(())
}

/// What happens to a partition between two looks, and leaves the same partitions.
pub async fn partitions(world: &World) -> Outcome {
    let sql = "INSERT INTO visits VALUES (1)";
    deletes(world, sql, &["visit:1"], &["visit:2"]).await?;
    // Its rows are nobody's in between, and so are their changes.
    let sql = format!(
        "BEGIN; ALTER TABLE visits DETACH PARTITION visits_1; UPDATE visits_1 SET id = 2; \
         ALTER TABLE visits ATTACH PARTITION visits_1 FOR VALUES FROM (0) TO (100); COMMIT; {}",
        nudge(13)
    );
    purges(world, &sql, &["visit:1", "visit:2"]).await?;
    // It came with a row that is gone again before anybody has looked.
    let sql = format!(
        "BEGIN; ALTER TABLE visits ATTACH PARTITION visits_2 FOR VALUES FROM (100) TO (200); TRUNCATE visits_2; COMMIT; {}",
        nudge(14)
    );
    purges(world, &sql, &["visit:101"]).await
}

/// Another primary key, by which several rows feed a key: no version of one of them vouches for it.
pub async fn primary_key(world: &World) -> Outcome {
    let mut client = world.client().await?;
    deletes(world, "INSERT INTO rekeyed VALUES (1, 1, 1)", &["rekeyed:1"], &["rekeyed:2"]).await?;
    let sql = "BEGIN; ALTER TABLE rekeyed DROP CONSTRAINT rekeyed_key; \
               ALTER TABLE rekeyed ADD CONSTRAINT rekeyed_key PRIMARY KEY (nr, id); COMMIT; \
               INSERT INTO rekeyed VALUES (1, 2, 100)";
    purges(world, sql, &["rekeyed:1", "rekeyed:2"]).await?;
    ready(world).await?;
    deletes(world, "UPDATE rekeyed SET version = 101 WHERE nr = 2", &["rekeyed:1"], &["rekeyed:2"]).await?;
    world.level().await?;
    assert_refused(&client.cmd(&["SET", "rekeyed:1", "101"]).await?, "STALE");
    let evidence = world.snapshot().await?;
    assert_passed(&client.cmd(&["ASOF", &evidence, "SET", "rekeyed:1", "101"]).await?);
    Ok(())
}

/// Of two guards that are broken one is mended: the rest of the feed goes on, and once both are, no row has to change for
/// them to be let in again.
pub async fn mended(world: &World) -> Outcome {
    let mut client = world.client().await?;
    let sql = format!(
        "ALTER TABLE mended RENAME id TO nr; INSERT INTO mended VALUES (1); ALTER PUBLICATION cachefence DROP TABLE calm; {}",
        nudge(15)
    );
    world.sql.batch_execute(&sql).await?;
    for table in ["public.mended", "public.calm"] {
        wait_until(&format!("{table} to be broken"), PATIENCE, async || broken(world, table).await).await?;
    }
    let gaps = world.proxy.metric("cachefence_gaps_total{reason=\"catalog_mended\"}").await?;
    world.sql.batch_execute(&format!("ALTER TABLE mended RENAME nr TO id; {}", nudge(16))).await?;
    world.applied().await?;
    // Two looks later nothing is interrupted.
    for n in [17, 18] {
        world.sql.batch_execute(&nudge(n)).await?;
        world.applied().await?;
        deletes(world, &format!("INSERT INTO plain VALUES (9{n})"), &[&format!("plain:9{n}")], &[]).await?;
    }
    assert!(broken(world, "public.calm").await);
    let sql = format!("ALTER PUBLICATION cachefence ADD TABLE calm; {}", nudge(19));
    let mut redis = world.redis.client().await?;
    redis.cmd(&["SET", "calm:1", "old"]).await?;
    world.sql.batch_execute(&sql).await?;
    ready(world).await?;
    world.gone("calm:1").await?;
    let after = world.proxy.metric("cachefence_gaps_total{reason=\"catalog_mended\"}").await?;
    assert_eq!(after, gaps + 1.0);
    let evidence = world.snapshot().await?;
    assert_passed(&client.cmd(&["ASOF", &evidence, "SET", "calm:1", "new"]).await?);
    assert_refused(&client.cmd(&["ASOF", "0/1", "SET", "mended:1", "old"]).await?, "STALE");
    Ok(())
}

async fn broken(world: &World, table: &str) -> bool {
    let Ok(status) = world.status().await else { return false };
    let guards = status["guards"].as_array().cloned().unwrap_or_default();
    guards.iter().any(|guard| guard["table"] == table && guard["broken"] == true)
}

/// A table leaves the publication and comes back, or the publication leaves operations out for a while, and no look was in
/// between: what was written meanwhile never comes.
pub async fn publication(world: &World) -> Outcome {
    for (n, leaves, comes_back) in [
        (20, "DROP TABLE calm", "ADD TABLE calm"),
        (21, "SET (publish = 'truncate')", "SET (publish = 'insert, update, delete, truncate')"),
    ] {
        let alter = "ALTER PUBLICATION cachefence";
        let sql =
            format!("{alter} {leaves}; INSERT INTO calm VALUES ({n}); {alter} {comes_back}; {}", nudge(n));
        purges(world, &sql, &[&format!("calm:{n}")]).await?;
    }
    ready(world).await
}

/// While no proxy runs another table takes a guarded one's name.
pub async fn away(world: &mut World) -> Outcome {
    deletes(world, "INSERT INTO swapped VALUES (1)", &["swapped:1"], &[]).await?;
    world.marked().await?;
    let before = world.purges("guards_changed").await?;
    // Nothing has changed: nothing goes.
    for (sql, purged) in [
        ("SELECT 1", false),
        (
            "BEGIN; ALTER TABLE swapped RENAME TO swapped_old; ALTER TABLE swapped_new RENAME TO swapped; \
          ALTER PUBLICATION cachefence ADD TABLE swapped; COMMIT",
            true,
        ),
    ] {
        world.redis(&["SET", "swapped:1", "old"]).await?;
        world.marked().await?;
        world.proxy.stop().await?;
        world.sql.batch_execute(sql).await?;
        world.proxy.relaunch().await?;
        world.level().await?;
        assert_eq!(world.purges("guards_changed").await? > 0.0, purged, "{sql} {before}");
        assert_eq!(world.held("swapped:1").await?.is_none(), purged, "{sql}");
    }
    Ok(())
}
