//! The four ways in which a cache and a database come to disagree, each played by plain clients: straight against
//! Redis, where it goes wrong, and through the proxy, where it does not.
//!
//! The interleavings are scripted: a replica lags because its replay is paused, not because of a delay.

mod support;

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::{Redis, RedisOptions};
use support::{DEFAULT, Outcome, Setup, World, name_on};

/// The application's own answer to a refusal is as if it had been done: it knows nothing of the proxy.
const SILENT: &str = "
[[guard]]
table = \"users\"
keys = [\"user:<id>\"]
";

/// What lies between the application and Redis.
struct Cache<'w> {
    world: &'w World,
    /// The Redis that is used without the proxy.
    direct: Option<Redis>,
}

impl<'w> Cache<'w> {
    async fn direct(world: &'w World) -> Result<Self, Box<dyn std::error::Error>> {
        Ok(Self { world, direct: Some(Redis::start(RedisOptions::default()).await?) })
    }

    fn through(world: &'w World) -> Self {
        Self { world, direct: None }
    }

    async fn client(&self) -> Result<Client, Box<dyn std::error::Error>> {
        match &self.direct {
            Some(redis) => Ok(redis.client().await?),
            None => self.world.client().await,
        }
    }

    /// After a commit: through the proxy, it has been seen.
    async fn seen(&self) -> Outcome {
        if self.direct.is_none() {
            self.world.applied().await?;
        }
        Ok(())
    }
}

/// Fills a key that nobody writes to meanwhile.
async fn warm(cache: &Cache<'_>, id: i64) -> Outcome {
    let (mut reader, key) = (cache.client().await?, format!("user:{id}"));
    assert_eq!(reader.cmd(&["GET", &key]).await?, Reply::Nil);
    let name = cache.world.name(id).await?;
    assert_eq!(reader.cmd(&["SET", &key, &name, "EX", "300"]).await?, Reply::ok());
    assert_eq!(reader.cmd(&["GET", &key]).await?, Reply::bulk(name));
    Ok(())
}

/// The cache is of use again: the new value can be filled.
async fn assert_recovers(world: &World, id: i64, name: &str) -> Outcome {
    world.level().await?;
    assert_eq!(world.name(id).await?, name);
    world.warm(id).await
}

/// A commit and a DEL; the next miss reads the lagging replica, and fills.
async fn replica_lag(cache: &Cache<'_>, id: i64) -> Result<Reply, Box<dyn std::error::Error>> {
    let (world, key) = (cache.world, format!("user:{id}"));
    let replica = world.replica()?;
    warm(cache, id).await?;
    replica.catch_up(&world.primary).await?;
    replica.pause_replay().await?;
    let (mut writer, mut reader) = (cache.client().await?, cache.client().await?);
    world.rename(id, "v2").await?;
    cache.seen().await?;
    writer.cmd(&["DEL", &key]).await?;
    assert_eq!(reader.cmd(&["GET", &key]).await?, Reply::Nil);
    let old = name_on(&replica.client().await?, id).await?;
    assert_eq!(old, "v1", "the replica lags");
    assert_eq!(reader.cmd(&["SET", &key, &old, "EX", "300"]).await?, Reply::ok());
    let seen = reader.cmd(&["GET", &key]).await?;
    replica.resume_replay().await?;
    Ok(seen)
}

/// A commit is followed by a miss that reads a replica which does not have it yet. Straight, the old value stays in
/// the cache; through the proxy it does not get in, and the new one does once the replica has it.
#[tokio::test]
async fn a_lagging_replica_does_not_bring_the_old_value_back() -> Outcome {
    let world = Setup::new(SILENT).replica().start().await?;
    assert_eq!(replica_lag(&Cache::direct(&world).await?, 1).await?, Reply::bulk("v1"));
    assert_eq!(replica_lag(&Cache::through(&world), 2).await?, Reply::Nil);
    assert_eq!(world.fills("stale", "refused").await?, 1.0);
    assert_recovers(&world, 2, "v2").await
}

/// The commit succeeds, and the application dies before its DEL.
async fn lost_invalidation(cache: &Cache<'_>, id: i64) -> Result<Reply, Box<dyn std::error::Error>> {
    warm(cache, id).await?;
    cache.world.rename(id, "v2").await?;
    cache.seen().await?;
    Ok(cache.client().await?.cmd(&["GET", &format!("user:{id}")]).await?)
}

/// Nobody deletes the key of a committed change. Straight, the old value stays; the proxy deletes it.
#[tokio::test]
async fn a_lost_invalidation_is_made_up_for() -> Outcome {
    let world = Setup::new(DEFAULT).start().await?;
    assert_eq!(lost_invalidation(&Cache::direct(&world).await?, 1).await?, Reply::bulk("v1"));
    assert_eq!(lost_invalidation(&Cache::through(&world), 2).await?, Reply::Nil);
    assert_recovers(&world, 2, "v2").await
}

/// A and B write and delete; a reader that read between the commits fills last.
async fn write_race(cache: &Cache<'_>, id: i64) -> Result<Reply, Box<dyn std::error::Error>> {
    let (world, key) = (cache.world, format!("user:{id}"));
    let (mut a, mut b, mut slow) = (cache.client().await?, cache.client().await?, cache.client().await?);
    world.rename(id, "a").await?;
    if cache.direct.is_none() {
        // The slow reader's miss is good evidence for A's value: only B's commit makes it stale.
        world.level().await?;
    }
    assert_eq!(slow.cmd(&["GET", &key]).await?, Reply::Nil);
    let read = world.name(id).await?;
    world.rename(id, "b").await?;
    cache.seen().await?;
    a.cmd(&["DEL", &key]).await?;
    b.cmd(&["DEL", &key]).await?;
    assert_eq!(slow.cmd(&["SET", &key, &read, "EX", "300"]).await?, Reply::ok());
    Ok(a.cmd(&["GET", &key]).await?)
}

/// A reader that read before the last of two commits fills after both. Straight, the first commit's value stays;
/// through the proxy that fill is refused.
#[tokio::test]
async fn a_slow_reader_between_two_writers_does_not_win() -> Outcome {
    let world = Setup::new(SILENT).start().await?;
    assert_eq!(write_race(&Cache::direct(&world).await?, 1).await?, Reply::bulk("a"));
    assert_eq!(write_race(&Cache::through(&world), 2).await?, Reply::Nil);
    assert_eq!(world.fills("stale", "refused").await?, 1.0);
    assert_recovers(&world, 2, "b").await
}

/// Someone runs UPDATE in psql.
async fn manual_change(cache: &Cache<'_>, id: i64) -> Result<Reply, Box<dyn std::error::Error>> {
    warm(cache, id).await?;
    cache.world.primary.psql(&format!("UPDATE users SET name = 'v2' WHERE id = {id}")).await?;
    cache.seen().await?;
    Ok(cache.client().await?.cmd(&["GET", &format!("user:{id}")]).await?)
}

/// A change by hand, of which no application knows. Straight, the old value stays; the proxy deletes it.
#[tokio::test]
async fn a_change_by_hand_is_noticed() -> Outcome {
    let world = Setup::new(DEFAULT).start().await?;
    assert_eq!(manual_change(&Cache::direct(&world).await?, 1).await?, Reply::bulk("v1"));
    assert_eq!(manual_change(&Cache::through(&world), 2).await?, Reply::Nil);
    assert_recovers(&world, 2, "v2").await
}
