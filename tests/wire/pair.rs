//! A Redis by itself and one behind a proxy: what one answers, the other has to answer.
#![allow(dead_code)]

use std::time::{SystemTime, UNIX_EPOCH};

use cachefence::demo::servers::{Cachefence, Postgres, Redis, RedisOptions};

use super::wire::{BINARY, Fallible, Wire, settings};

/// Two servers that know nothing of each other.
pub struct Pair {
    pub direct: Redis,
    pub behind: Redis,
    pub proxy: Cachefence,
}

impl Pair {
    /// Starts both, and the proxy with a slot of its own.
    pub async fn start(postgres: &Postgres, slot: &str, changes: &[(&str, &str)]) -> Fallible<Self> {
        Self::with(RedisOptions::default(), postgres, slot, changes).await
    }

    /// The same, and both servers get these options.
    pub async fn with(
        options: RedisOptions,
        postgres: &Postgres,
        slot: &str,
        changes: &[(&str, &str)],
    ) -> Fallible<Self> {
        let direct = Redis::start(options.clone()).await?;
        let behind = Redis::start(options).await?;
        let proxy = Cachefence::start(BINARY, &settings(postgres, &behind, slot, changes)).await?;
        Ok(Self { direct, behind, proxy })
    }

    /// A connection to each.
    pub async fn connect(&self) -> Fallible<[Wire; 2]> {
        Ok([Wire::connect(&self.direct.address()).await?, Wire::connect(self.proxy.address()).await?])
    }
}

/// The server's name and version, as in `Redis 7.0.15` or `Valkey 9.1.2`.
pub async fn server_version(redis: &Redis) -> Fallible<String> {
    let info = redis.client().await?.cmd(&["INFO", "server"]).await?.text().unwrap_or_default();
    let of = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(match of("valkey_version") {
        Some(version) => format!("Valkey {version}"),
        None => format!("Redis {}", of("redis_version").unwrap_or("?")),
    })
}

/// Whether the proxy speaks RESP3.
pub async fn speaks_resp3(proxy: &Cachefence) -> Fallible<bool> {
    let mut wire = Wire::connect(proxy.address()).await?;
    Ok(wire.cmd("HELLO 3").await?.starts_with('%'))
}

/// The seed of a run; `CACHEFENCE_TEST_SEED` repeats one.
pub fn seed() -> u64 {
    let given = std::env::var("CACHEFENCE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64 & 0xffff_ffff)
    });
    println!("seed {seed}");
    seed
}

/// Numbers that a seed determines.
pub struct Random(pub u64);

impl Random {
    /// One that is smaller.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }

    /// One of these.
    pub fn of(&mut self, commands: &[&'static str]) -> &'static str {
        commands[self.below(commands.len())]
    }
}
