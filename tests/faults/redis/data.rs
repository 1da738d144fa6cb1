//! What Redis holds is gone, or older than what was deleted.

use cachefence::demo::client::Reply;
use cachefence::demo::servers::{Redis, RedisOptions, wait_until};

use super::{ask, logged};
use crate::dice::Dice;
use crate::load::Load;
use crate::stand::Stand;
use crate::support::{Fallible, Outcome, PATIENCE};

const AGAIN: &str = "this Redis is behind: deleting again";
const MARKER: &str = "cachefence:cachefence";

/// It had nothing on disk.
pub async fn emptied(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    stand.redis.kill().await?;
    stand.not_ready("Redis").await?;
    stand.lives().await?;
    Ok(stand.redis.relaunch().await?)
}

/// It has what it had some commits ago.
pub async fn went_back(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let mut redis = stand.redis.client().await?;
    let before = stand.proxy.log().matches(AGAIN).count();
    ask(&mut redis, &["SAVE"]).await?;
    load.written(100).await?;
    load.warm().await?;
    stand.redis.kill().await?;
    stand.not_ready("Redis").await?;
    stand.redis.relaunch().await?;
    logged(stand, AGAIN, before).await
}

/// Where its address leads there is its replica, which has not heard of the last commits.
pub async fn failed_over(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let second = replica_of(&stand.redis).await?;
    ask(&mut second.client().await?, &["REPLICAOF", "NO", "ONE"]).await?;
    load.written(100).await?;
    load.warm().await?;
    let before = stand.proxy.log().matches(AGAIN).count();
    let lines = stand.lines()?;
    lines.redis.switch(second.port());
    lines.redis.cut();
    logged(stand, AGAIN, before).await?;
    stand.redis = second;
    Ok(())
}

/// New connections lead to its replica, and those that there are stay where they are.
pub async fn moved_away(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let second = replica_of(&stand.redis).await?;
    ask(&mut second.client().await?, &["REPLICAOF", "NO", "ONE"]).await?;
    load.written(100).await?;
    load.warm().await?;
    let before = stand.proxy.log().matches(AGAIN).count();
    stand.lines()?.redis.switch(second.port());
    // A transaction takes a connection of its own, which may be one that is kept.
    let mut clients = Vec::new();
    let found = async || {
        if let Ok(mut client) = stand.proxy.client().await {
            let _ = client.send(&["WATCH", "user:0"]).await;
            clients.push(client);
        }
        stand.proxy.log().matches(AGAIN).count() > before
    };
    wait_until("the other Redis to be found", PATIENCE, found).await?;
    stand.redis = second;
    Ok(())
}

/// It becomes a replica of one that has not heard of the last commits, as Sentinel does it, takes over its data, and is a
/// master again: the same process all the time.
pub async fn demoted(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let second = replica_of(&stand.redis).await?;
    ask(&mut second.client().await?, &["REPLICAOF", "NO", "ONE"]).await?;
    load.written(100).await?;
    load.warm().await?;
    let before = stand.proxy.log().matches(AGAIN).count();
    let mut redis = stand.redis.client().await?;
    let port = second.port().to_string();
    let demote: [&[&str]; 4] =
        [&["MULTI"], &["REPLICAOF", "127.0.0.1", &port], &["CLIENT", "KILL", "TYPE", "normal"], &["EXEC"]];
    let replies = redis.pipeline(&demote).await?;
    assert!(matches!(replies.last(), Some(Reply::Array(_))), "{replies:?}");
    stand.not_ready("READONLY").await?;
    stand.lives().await?;
    in_sync(&stand.redis).await?;
    ask(&mut redis, &["REPLICAOF", "NO", "ONE"]).await?;
    logged(stand, AGAIN, before).await
}

/// Operators do such things.
pub async fn flushed(stand: &mut Stand, load: &Load, dice: &mut Dice) -> Outcome {
    let mut redis = stand.redis.client().await?;
    match dice.roll(3) {
        0 => ask(&mut redis, &["FLUSHALL"]).await?,
        1 => ask(&mut redis, &["DEL", MARKER]).await?,
        _ => ask(&mut redis, &["RENAME", MARKER, "other"]).await?,
    }
    load.written(20).await?;
    // Also if nobody writes.
    load.stop_writing();
    ask(&mut redis, &["DEL", MARKER]).await?;
    let marked = async || redis.cmd(&["EXISTS", MARKER]).await.is_ok_and(|found| found == Reply::Int(1));
    wait_until("the marker to be written again", PATIENCE, marked).await?;
    load.resume_writing();
    Ok(())
}

/// A replica that has all that there is now.
async fn replica_of(master: &Redis) -> Fallible<Redis> {
    let options = RedisOptions::default().args(&["--repl-diskless-sync-delay", "0"]);
    let replica = Redis::start(options).await?;
    ask(&mut master.client().await?, &["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).await?;
    ask(&mut replica.client().await?, &["REPLICAOF", "127.0.0.1", &master.port().to_string()]).await?;
    in_sync(&replica).await?;
    Ok(replica)
}

async fn in_sync(replica: &Redis) -> Outcome {
    let mut redis = replica.client().await?;
    let is = async || {
        let info = redis.cmd(&["INFO", "replication"]).await.ok().and_then(|info| info.text());
        info.is_some_and(|info| info.contains("master_link_status:up"))
    };
    Ok(wait_until("a replica of Redis to be in sync", PATIENCE, is).await?)
}
