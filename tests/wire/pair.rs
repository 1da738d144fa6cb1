//! A Redis by itself and one behind a proxy: what one answers, the other has to answer.
#![allow(dead_code)]

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
