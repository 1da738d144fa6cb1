//! The servers that all other integration tests run on.

use std::path::Path;
use std::time::Duration;

use cachefence::demo::client::Reply;
use cachefence::demo::servers::{
    Postgres, PrimaryOptions, Redis, RedisOptions, ServerError, StopMode, free_port, wait_until,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn runs(pid: Option<u32>) -> bool {
    pid.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
}

async fn name_of(client: &tokio_postgres::Client, id: i64) -> Result<Option<String>, tokio_postgres::Error> {
    let row = client.query_opt("SELECT name FROM people WHERE id = $1", &[&id]).await?;
    row.map(|row| row.try_get(0)).transpose()
}

#[tokio::test]
async fn a_row_travels_to_the_replica_and_nothing_is_left_behind() -> Outcome {
    let primary = Postgres::primary(PrimaryOptions::default()).await?;
    let replica = Postgres::replica(&primary, &[("recovery_min_apply_delay", "0")]).await?;
    let redis = Redis::start(RedisOptions::default()).await?;

    let sql = primary.client().await?;
    sql.batch_execute(
        "CREATE TABLE people (id bigint PRIMARY KEY, name text); INSERT INTO people VALUES (1, 'Ada')",
    )
    .await?;
    replica.catch_up(&primary).await?;
    let copy = replica.client().await?;
    assert_eq!(name_of(&copy, 1).await?.as_deref(), Some("Ada"));

    replica.pause_replay().await?;
    primary.psql("UPDATE people SET name = 'Grace' WHERE id = 1").await?;
    assert_eq!(name_of(&sql, 1).await?.as_deref(), Some("Grace"));
    assert_eq!(name_of(&copy, 1).await?.as_deref(), Some("Ada"));
    replica.resume_replay().await?;
    replica.catch_up(&primary).await?;
    assert_eq!(name_of(&copy, 1).await?.as_deref(), Some("Grace"));

    let mut cache = redis.client().await?;
    assert_eq!(cache.cmd(&["SET", "k", "v"]).await?, Reply::ok());
    assert_eq!(cache.pipeline(&[&["GET", "k"], &["GET", "none"]]).await?, [Reply::bulk("v"), Reply::Nil]);

    let pids = [primary.pid(), replica.pid(), redis.pid()];
    let sockets = primary.socket_dir().to_owned();
    assert!(pids.iter().all(|pid| runs(*pid)), "{pids:?}");
    drop((primary, replica, redis));
    assert!(!pids.iter().any(|pid| runs(*pid)), "{pids:?}");
    assert!(!sockets.exists());
    Ok(())
}

#[tokio::test]
async fn servers_come_back_on_their_ports_with_their_data() -> Outcome {
    let mut primary = Postgres::primary(PrimaryOptions::default().set("wal_sender_timeout", "3s")).await?;
    let port = primary.port();
    primary.client().await?.batch_execute("CREATE TABLE people (id bigint PRIMARY KEY, name text)").await?;
    let first = primary.pid();
    primary.restart(StopMode::Fast).await?;
    primary.restart(StopMode::Immediate).await?;
    assert!(!runs(first));
    assert_eq!(primary.port(), port);
    let sql = primary.client().await?;
    assert_eq!(name_of(&sql, 1).await?, None);
    assert!(primary.psql("SHOW wal_sender_timeout").await?.contains("3s"));
    assert!(matches!(primary.psql("SELECT nonsense").await, Err(ServerError::Failed { .. })));

    let mut redis = Redis::start(RedisOptions::default().args(&["--appendonly", "yes"])).await?;
    assert_eq!(redis.client().await?.cmd(&["SET", "k", "v"]).await?, Reply::ok());
    redis.restart().await?;
    assert_eq!(redis.client().await?.cmd(&["GET", "k"]).await?, Reply::bulk("v"));
    redis.kill().await?;
    assert!(redis.client().await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_frozen_server_hangs_and_still_ends() -> Outcome {
    let mut redis = Redis::start(RedisOptions::default()).await?;
    let mut client = redis.client().await?;
    redis.freeze()?;
    client.send(&["PING"]).await?;
    assert_eq!(client.receive_within(Duration::from_millis(100)).await?, None);
    redis.thaw()?;
    assert_eq!(client.receive().await?, Reply::Simple("PONG".into()));
    redis.freeze()?;
    let pid = redis.pid();
    drop(redis);
    assert!(!runs(pid));
    Ok(())
}

#[tokio::test]
async fn waiting_ends_with_the_name_of_what_did_not_come() -> Outcome {
    let mut polls = 0;
    wait_until("three polls", Duration::from_secs(5), async || {
        polls += 1;
        polls == 3
    })
    .await?;
    let late = wait_until("the end of time", Duration::from_millis(30), async || false).await;
    assert!(late.is_err_and(|error| error.to_string().contains("the end of time")));
    assert!(free_port()? > 0);
    Ok(())
}
