//! A flood, and then silence: whatever happened before, once every commit is visible everywhere and applied, no key
//! may hold anything but what the database holds.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cachefence::demo::client::Client;
use cachefence::demo::servers::{Postgres, wait_until};
use support::{Fallible, Outcome, PATIENCE, Setup, World, name_on};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// Nothing gets in without evidence: there is no TTL to wait for. A miss vouches for longer than any application here
/// takes on a busy machine.
const SETTINGS: &str = "
[fence]
history = \"8s\"
lease_ttl = \"4s\"

[[guard]]
table = \"users\"
keys = [\"user:<id>\"]
unproven = \"refuse\"
";

/// Clients of a pool give up on a fill that took so long: the promise is for those that take less than `lease_ttl`.
const TOO_LATE: Duration = Duration::from_secs(1);

const KEYS: i64 = 6;
const ROUNDS: u64 = 4;
/// Commits of each writer in a round; the readers go on until the writers are done.
const COMMITS: u64 = 40;

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn key(&mut self) -> i64 {
        1 + self.roll(KEYS as u64) as i64
    }
}

type Task = Result<(), String>;

/// What a task says when it cannot go on.
fn failed(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Renames people, and like a careful application deletes the key afterwards, most of the time.
async fn writer(
    node: tokio_postgres::Client,
    mut cache: Client,
    mut dice: Dice,
    names: Arc<AtomicU64>,
) -> Task {
    for _ in 0..COMMITS {
        // The pace of the load; nothing is waited for.
        tokio::time::sleep(Duration::from_millis(dice.roll(30))).await;
        let id = dice.key();
        let name = format!("n{}", names.fetch_add(1, Ordering::Relaxed));
        let sql = "UPDATE users SET name = $2 WHERE id = $1";
        node.execute(sql, &[&id, &name]).await.map_err(failed)?;
        if dice.roll(3) > 0 {
            cache.cmd(&["DEL", &format!("user:{id}")]).await.map_err(failed)?;
        }
    }
    Ok(())
}

/// Reads the cache, on a miss the database, and fills. Dawdles at times, so that commits come in between.
async fn reader(
    node: tokio_postgres::Client,
    mut cache: Client,
    mut dice: Dice,
    stop: Arc<AtomicBool>,
) -> Task {
    while !stop.load(Ordering::Relaxed) {
        let (id, dawdle) = (dice.key(), dice.roll(4) * dice.roll(20));
        let key = format!("user:{id}");
        if !cache.cmd(&["GET", &key]).await.map_err(failed)?.is_nil() {
            continue;
        }
        let name = name_on(&node, id).await.map_err(failed)?;
        for _ in 0..dawdle {
            tokio::task::yield_now().await;
        }
        cache.cmd(&["SET", &key, &name, "EX", "300"]).await.map_err(failed)?;
    }
    Ok(())
}

/// The same with a pool: each command takes whichever connection the dice say.
async fn pooled(
    node: tokio_postgres::Client,
    pool: Arc<Vec<Mutex<Client>>>,
    mut dice: Dice,
    stop: Arc<AtomicBool>,
) -> Task {
    while !stop.load(Ordering::Relaxed) {
        let (id, dawdle) = (dice.key(), dice.roll(4) * dice.roll(20));
        let key = format!("user:{id}");
        let mut connection = pool[dice.roll(pool.len() as u64) as usize].lock().await;
        let began = Instant::now();
        let found = connection.cmd(&["GET", &key]).await.map_err(failed)?;
        drop(connection);
        if !found.is_nil() {
            continue;
        }
        let name = name_on(&node, id).await.map_err(failed)?;
        for _ in 0..dawdle {
            tokio::task::yield_now().await;
        }
        let mut connection = pool[dice.roll(pool.len() as u64) as usize].lock().await;
        if began.elapsed() > TOO_LATE {
            continue;
        }
        connection.cmd(&["SET", &key, &name, "EX", "300"]).await.map_err(failed)?;
    }
    Ok(())
}

/// Stops the replica's replay and lets it go on, every few commits, until the writers have ended. It ends by itself: a
/// pause that was asked for and not waited for could come after the replay was told to go on.
async fn limp(replica: &Postgres, names: &AtomicU64, ended: &AtomicBool) -> Outcome {
    let more = async || {
        let target = names.load(Ordering::Relaxed) + 10;
        let reached = async || ended.load(Ordering::Relaxed) || names.load(Ordering::Relaxed) >= target;
        wait_until("commits", PATIENCE, reached).await
    };
    while !ended.load(Ordering::Relaxed) {
        replica.pause_replay().await?;
        more().await?;
        replica.resume_replay().await?;
        more().await?;
    }
    Ok(())
}

/// How the readers' commands reach the proxy.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Clients {
    /// Each has a connection.
    Own,
    /// Each command takes one of the pool's.
    Pooled,
}

/// A round of everything at once; returns when all of it has been answered.
async fn flood(world: &World, clients: Clients, round: u64, names: &Arc<AtomicU64>) -> Outcome {
    let replica = world.replica()?;
    let stop = Arc::new(AtomicBool::new(false));
    let (mut writers, mut readers) = (JoinSet::new(), JoinSet::new());
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15 ^ (round + 1));
    let mut seed = || Dice(dice.roll(u64::MAX) | 1);
    for _ in 0..3 {
        let node = world.primary.client().await?;
        writers.spawn(writer(node, world.client().await?, seed(), names.clone()));
    }
    let mut pool = Vec::new();
    for _ in 0..3 {
        pool.push(Mutex::new(world.client().await?));
    }
    let pool = Arc::new(pool);
    for n in 0..8 {
        let node: &Postgres = if n % 2 == 0 { &world.primary } else { replica };
        let node = node.client().await?;
        if clients == Clients::Own {
            readers.spawn(reader(node, world.client().await?, seed(), stop.clone()));
        } else {
            readers.spawn(pooled(node, pool.clone(), seed(), stop.clone()));
        }
    }
    let ended = AtomicBool::new(false);
    let written = async {
        let mut outcome = Outcome::Ok(());
        while let Some(done) = writers.join_next().await {
            outcome = outcome.and(done.map_err(Into::into).and_then(|done| Ok(done?)));
        }
        ended.store(true, Ordering::Relaxed);
        outcome
    };
    let (written, limped) = tokio::join!(written, limp(replica, names, &ended));
    written.and(limped)?;
    // The readers go on until the cache is of use again: misses from before the last write object until they end.
    wait_until("something to be cached again", PATIENCE, async || {
        world.held("user:1").await.is_ok_and(|held| held.is_some())
    })
    .await?;
    stop.store(true, Ordering::Relaxed);
    while let Some(done) = readers.join_next().await {
        done??;
    }
    Ok(replica.catch_up(&world.primary).await?)
}

/// Compares every key with the database; returns how many are in the cache.
async fn assert_consistent(world: &World, round: u64) -> Fallible<usize> {
    let mut cached = 0;
    for id in 1..=KEYS {
        let (held, truth) = (world.held(&format!("user:{id}")).await?, world.name(id).await?);
        if let Some(held) = held {
            assert_eq!(held, truth, "round {round}: user:{id} is stale in the cache");
            cached += 1;
        }
    }
    Ok(cached)
}

/// Rounds of a flood, each followed by silence, in which the cache is compared with the database. In each round fills
/// were let in and others were refused: neither refusing everything nor nothing would do.
async fn rounds(clients: Clients) -> Outcome {
    let lease = if clients == Clients::Own { "connection" } else { "key" };
    let world = Setup::new(&format!("{SETTINGS}lease = \"{lease}\"\n")).replica().start().await?;
    let names = Arc::new(AtomicU64::new(0));
    let mut cached = 0;
    for round in 0..ROUNDS {
        let before = (world.fills("fresh", "forwarded").await?, world.fills("stale", "refused").await?);
        flood(&world, clients, round, &names).await?;
        world.level().await?;
        cached += assert_consistent(&world, round).await?;
        let after = (world.fills("fresh", "forwarded").await?, world.fills("stale", "refused").await?);
        assert!(after.0 > before.0, "round {round}: no fill was let in");
        assert!(after.1 > before.1, "round {round}: no fill was stale");
        println!(
            "{clients:?} {round}: {} let in, {} stale, {cached}",
            after.0 - before.0,
            after.1 - before.1
        );
        // Misses of a pool whose fills went elsewhere hold up later ones until they end.
        wait_until("all misses to end", PATIENCE, async || {
            let status = world.status().await.unwrap_or_default();
            status.pointer("/fence/leases").is_some_and(|leases| *leases == 0)
        })
        .await?;
    }
    assert!(cached > 0, "no flood left anything in the cache");
    assert_eq!(names.load(Ordering::Relaxed), ROUNDS * 3 * COMMITS);
    for id in 1..=KEYS {
        world.redis(&["DEL", &format!("user:{id}")]).await?;
        world.warm(id).await?;
    }
    Ok(())
}

/// Readers of the primary and of a replica whose replay stops and goes on, and writers that delete or forget to, all
/// on a handful of keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_flood_every_key_equals_the_database_or_is_absent() -> Outcome {
    rounds(Clients::Own).await
}

/// The same with a pool that gives each command another connection, so that fills arrive where somebody else missed;
/// with `lease = "key"`, which is made for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_flood_through_a_pool_too() -> Outcome {
    rounds(Clients::Pooled).await
}
