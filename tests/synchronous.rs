//! Postgres may be told to wait for the feed although its contract is bounded: `synchronous_standby_names = '*'` names
//! every standby that there is. Commits must go on.

use cachefence::demo::client::Reply;
use cachefence::demo::servers::{
    Cachefence, PATIENCE, Postgres, PrimaryOptions, Redis, RedisOptions, config, wait_until,
};

/// Confirming only what is visible would wait for the commit, and the commit for the confirmation (fact F6).
#[tokio::test]
async fn a_commit_that_waits_for_the_feed_returns() {
    let primary = Postgres::primary(PrimaryOptions::default()).await.expect("a primary");
    let redis = Redis::start(RedisOptions::default()).await.expect("a Redis");
    let sql = primary.client().await.expect("a session");
    let schema = "CREATE TABLE users (id bigint PRIMARY KEY, name text); INSERT INTO users VALUES (1, 'Ada')";
    sql.batch_execute(schema).await.expect("the schema");
    sql.batch_execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await.expect("the setting");
    sql.batch_execute("SELECT pg_reload_conf()").await.expect("a reload");

    let settings = format!(
        "{}\n[[guard]]\ntable = \"public.users\"\nkeys = [\"user:<id>\"]\n",
        config(&primary, &[], &redis)
    );
    let proxy = Cachefence::start(env!("CARGO_BIN_EXE_cachefence"), &settings).await.expect("a proxy");
    let mut redis = redis.client().await.expect("a Redis client");
    for name in ["Grace", "Edsger", "Barbara"] {
        assert_eq!(redis.cmd(&["SET", "user:1", "old"]).await.expect("a reply"), Reply::ok());
        let update = format!("UPDATE users SET name = '{name}' WHERE id = 1");
        tokio::time::timeout(PATIENCE, sql.batch_execute(&update))
            .await
            .expect("COMMIT returns")
            .expect("an update");
        // Commits wait for what is deleted, so the key is gone already; a bounded proxy need not promise that.
        wait_until("the key is deleted", PATIENCE, async || {
            redis.cmd(&["GET", "user:1"]).await.is_ok_and(|reply| reply.is_nil())
        })
        .await
        .expect("deleted");
    }
    assert!(proxy.log().contains("synchronous_standby_names"), "it says so");
}
