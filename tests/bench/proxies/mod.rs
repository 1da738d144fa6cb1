//! One Redis, and every way to it that is compared: straight, through other proxies, and through this one.

pub mod others;
mod ours;

use std::process::Child;
use std::time::Duration;

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::{Cachefence, Postgres, Redis, RedisOptions, wait_until};
use tempfile::TempDir;

use crate::{Fallible, cpu};

/// The keys that are asked for, as redis-benchmark spells them: `key:000000000000` and so many in all.
pub const KEYS: u32 = 10_000;
/// The way that has no proxy.
pub const DIRECT: &str = "direct";
/// The way that others are held against.
pub const HAPROXY: &str = "HAProxy, tcp";

/// Connections that Redis and our proxy take: more than any part opens, if the system lets them.
const MAX_CLIENTS: u32 = 12_000;
/// A process that has used less in a while is idle.
const IDLE: Duration = Duration::from_millis(1);
const IDLE_FOR: Duration = Duration::from_millis(20);
const IN_TIME: Duration = Duration::from_secs(30);

/// Where clients connect to.
pub struct Way {
    pub name: &'static str,
    pub port: u16,
    process: Process,
}

/// Who answers there. Each ends with its value.
enum Process {
    /// Redis itself.
    Direct,
    Other(Other),
    Ours(Cachefence),
}

/// A child that is killed with this value, and the directory of its settings and its log.
struct Other {
    child: Child,
    dir: TempDir,
}

impl Drop for Other {
    fn drop(&mut self) {
        // Nobody is left to tell of a failure here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that runs.
pub struct Stand {
    pub ways: Vec<Way>,
    pub redis: Redis,
    client: Client,
    _primary: Postgres,
}

impl Stand {
    /// Every way that can be started here.
    pub async fn start() -> Fallible<Self> {
        let max_clients = MAX_CLIENTS.to_string();
        let redis = Redis::start(RedisOptions::default().args(&["--maxclients", &max_clients])).await?;
        let client = redis.client().await?;
        let direct = Way { name: DIRECT, port: redis.port(), process: Process::Direct };
        let (primary, ours) = ours::start(&redis).await?;
        let mut ways = vec![direct];
        for proxy in others::ALL {
            if let Some(program) = proxy.program() {
                ways.push(proxy.start(&program, redis.port()).await?);
            }
        }
        ways.extend(ours);
        Ok(Self { ways, redis, client, _primary: primary })
    }

    /// Every key has a value of so many bytes.
    pub async fn fill(&mut self, size: usize) -> Fallible<()> {
        const SCRIPT: &str = "local value = string.rep('x', ARGV[2])
            for n = 0, ARGV[1] - 1 do redis.call('SET', string.format('key:%012d', n), value) end";
        let command = ["EVAL", SCRIPT, "0", &KEYS.to_string(), &size.to_string()];
        match self.client.cmd(&command).await? {
            Reply::Error(error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// What a run costs on one of the ways, which is idle before.
    pub async fn measured(&self, way: &Way, run: impl FnOnce() -> Fallible<Done>) -> Fallible<Figures> {
        let redis = self.redis.pid().unwrap_or_default();
        let used = || (way.pid().map_or(0, cpu::nanos), cpu::nanos(redis));
        self.idle(way).await?;
        let before = used();
        let done = run()?;
        let after = used();
        let us = |used: u64| used as f64 / 1000.0 / done.requests as f64;
        Ok(Figures {
            rate: done.requests as f64 / done.seconds,
            proxy: us(after.0.saturating_sub(before.0)),
            redis: us(after.1.saturating_sub(before.1)),
        })
    }

    /// Waits until neither a proxy nor Redis has anything to do: connections of a run before are closed.
    async fn idle(&self, way: &Way) -> Fallible<()> {
        let redis = self.redis.pid().unwrap_or_default();
        let used = || Duration::from_nanos(way.pid().map_or(0, cpu::nanos) + cpu::nanos(redis));
        let quiet = wait_until("the proxy and Redis to be idle", IN_TIME, async || {
            let before = used();
            tokio::time::sleep(IDLE_FOR).await;
            used().saturating_sub(before) < IDLE
        });
        Ok(quiet.await?)
    }

    /// Whether a way's proxy has refused or shortened a fill. Then it was not the same work.
    pub async fn all_admitted(&self) -> Fallible<()> {
        for way in &self.ways {
            let Process::Ours(proxy) = &way.process else { continue };
            let judged = proxy.metric("cachefence_fills_total").await?;
            let forwarded = proxy.metric("cachefence_fills_total{action=\"forwarded\"}").await?;
            if judged > forwarded {
                return Err(format!("{}: {} fills were not admitted", way.name, judged - forwarded).into());
            }
        }
        Ok(())
    }
}

impl Way {
    /// The proxy's process; none where there is no proxy.
    pub fn pid(&self) -> Option<u32> {
        match &self.process {
            Process::Direct => None,
            Process::Other(other) => Some(other.child.id()),
            Process::Ours(proxy) => proxy.pid(),
        }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// What a run has done.
pub struct Done {
    pub requests: u64,
    pub seconds: f64,
}

/// What it comes to: requests per second, and CPU per request in us.
#[derive(Clone, Copy)]
pub struct Figures {
    pub rate: f64,
    pub proxy: f64,
    pub redis: f64,
}
