//! The servers: a primary, a replica whose replay limps, Redis, and the proxy under one of its contracts.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::{
    Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions, config, wait_until,
};
use cachefence::position::Lsn;

use crate::applied::Mark;
use crate::history::Clock;
use crate::load::{Dice, LEASE_TTL};
use crate::remedy::Remedy;
use crate::run::pause;
use crate::support::{BINARY, Fallible, Outcome, PATIENCE, init, lsn, status, text};

/// What the proxy promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    Bounded,
    Strict,
}

impl Contract {
    pub fn name(self) -> &'static str {
        match self {
            Self::Bounded => "bounded",
            Self::Strict => "strict",
        }
    }
}

/// The row, and the key, that measures the lag.
const CANARY: i64 = -1;

/// More sessions than the harness's servers take by themselves.
const SESSIONS: &str = "400";

/// What makes COMMIT wait for the proxy.
const STANDBYS: &str = "FIRST 1 (cachefence)";

/// The pause between two measurements of the lag.
const MEASURED_EVERY: Duration = Duration::from_millis(10);

/// Everything that runs. Fields end in this order.
pub struct Stand {
    proxy: Cachefence,
    redis: Redis,
    replica: Postgres,
    primary: Postgres,
    sql: tokio_postgres::Client,
}

impl Stand {
    /// Starts the servers with so many rows, and the proxy.
    pub async fn start(keys: u32, contract: Contract) -> Fallible<Self> {
        let options = PrimaryOptions::default().set("max_connections", SESSIONS);
        let primary = Postgres::primary(options).await?;
        let sql = primary.client().await?;
        let rows = format!(
            "CREATE TABLE users (id bigint PRIMARY KEY, version bigint NOT NULL);
             INSERT INTO users SELECT id, 1 FROM generate_series({CANARY}, {keys}) AS id"
        );
        sql.batch_execute(&rows).await?;
        let replica = Postgres::replica(&primary, &[("max_connections", SESSIONS)]).await?;
        let redis = Redis::start(RedisOptions::default()).await?;
        let settings = settings(&config(&primary, &[&replica], &redis), contract);
        init(&settings)?;
        let proxy = proxy(&settings, contract, &sql).await?;
        let stand = Self { proxy, redis, replica, primary, sql };
        stand.level().await?;
        Ok(stand)
    }

    /// Goes on under another contract: with nothing in the cache, and no marker of the proxy before.
    pub async fn turn(mut self, contract: Contract) -> Fallible<Self> {
        set_standbys(&self.sql, "").await?;
        self.proxy.stop().await?;
        self.redis.client().await?.cmd(&["FLUSHALL"]).await?;
        let settings = settings(&config(&self.primary, &[&self.replica], &self.redis), contract);
        self.proxy = proxy(&settings, contract, &self.sql).await?;
        self.level().await?;
        Ok(self)
    }

    /// Waits until what was written until now is visible everywhere and applied.
    async fn level(&self) -> Outcome {
        self.replica.catch_up(&self.primary).await?;
        let now = self.flushed().await?;
        wait_until("the proxy to be level", PATIENCE, async || {
            let Ok(status) = status(&self.proxy).await else { return false };
            let reached = |name| lsn(&status, name).is_some_and(|at| at >= now);
            reached("/feed/applied_lsn") && reached("/fence/settled_lsn")
        })
        .await?;
        Ok(())
    }

    pub fn primary(&self) -> &Postgres {
        &self.primary
    }

    pub fn replica(&self) -> &Postgres {
        &self.replica
    }

    /// A connection to the cache of a remedy.
    pub async fn cache(&self, remedy: Remedy) -> Fallible<Client> {
        Ok(if remedy.is_baseline() { self.redis.client().await? } else { self.proxy.client().await? })
    }

    /// The version of each key.
    pub async fn versions(&self, keys: u32) -> Fallible<Vec<u32>> {
        let rows = self.sql.query("SELECT version FROM users WHERE id >= 0 ORDER BY id", &[]).await?;
        Ok(rows.iter().take(keys as usize).map(|row| row.get::<_, i64>(0) as u32).collect())
    }

    async fn flushed(&self) -> Fallible<Lsn> {
        Ok(text(&self.sql, "SELECT pg_current_wal_flush_lsn()::text").await?.parse()?)
    }

    /// How many fills got this verdict and this action.
    pub async fn fills(&self, verdict: &str, action: &str) -> Fallible<f64> {
        let series = format!("cachefence_fills_total{{verdict=\"{verdict}\",action=\"{action}\"}}");
        Ok(self.proxy.metric(&series).await?)
    }

    /// Makes the replica's replay late, now more and now less, and stops it at times, until the load has ended. It ends by itself: a
    /// pause that was asked for and not waited for could come after [`Stand::recover`].
    pub async fn limp(&self, delay: u64, mut dice: Dice, ended: &AtomicBool) -> Outcome {
        let sql = self.replica.client().await?;
        while !ended.load(Ordering::Relaxed) {
            if dice.one_in(4) {
                self.replica.pause_replay().await?;
                pause(dice.millis(delay)).await;
                self.replica.resume_replay().await?;
            } else {
                let late = dice.roll(3).pow(2) * dice.roll(delay / 4 + 1);
                sql.batch_execute(&format!("ALTER SYSTEM SET recovery_min_apply_delay = '{late}ms'")).await?;
                sql.batch_execute("SELECT pg_reload_conf()").await?;
            }
            pause(Duration::from_millis(100) + dice.millis(2 * delay)).await;
        }
        Ok(())
    }

    /// The replica is as it was.
    pub async fn recover(&self) -> Outcome {
        let sql = self.replica.client().await?;
        sql.batch_execute("ALTER SYSTEM RESET recovery_min_apply_delay").await?;
        sql.batch_execute("SELECT pg_reload_conf()").await?;
        Ok(self.replica.resume_replay().await?)
    }

    /// Measures the lag without asking the proxy, for ever: an entry of a row is put into Redis behind its back, the
    /// row is written, and the entry watched until it is gone. Keys are deleted in the order of commits, so those of
    /// all commits that were acknowledged before are deleted by then.
    pub async fn canary(&self, clock: Clock, marks: &mut Vec<Mark>) -> Outcome {
        let (sql, mut redis) = (self.primary.client().await?, self.redis.client().await?);
        let key = format!("user:{CANARY}");
        loop {
            redis.cmd(&["SET", &key, "0"]).await?;
            let asked = clock.now();
            sql.batch_execute(&touch()).await?;
            let gone = async || redis.cmd(&["EXISTS", &key]).await.is_ok_and(|found| found == Reply::Int(0));
            wait_until("the canary to be deleted", PATIENCE, gone).await?;
            marks.push(Mark { asked, known: clock.now() });
            pause(MEASURED_EVERY).await;
        }
    }

    /// Measures the lag by what the proxy says, for ever: the primary's log is flushed to some position, past all
    /// commits that were acknowledged, and the proxy is asked until it has applied that.
    pub async fn claims(&self, clock: Clock, marks: &mut Vec<Mark>) -> Outcome {
        loop {
            let asked = clock.now();
            let flushed = self.flushed().await?;
            let applied = async || {
                let status = status(&self.proxy).await.unwrap_or_default();
                lsn(&status, "/feed/applied_lsn").is_some_and(|at| at >= flushed)
            };
            wait_until(&format!("{flushed} to be applied"), PATIENCE, applied).await?;
            marks.push(Mark { asked, known: clock.now() });
            pause(MEASURED_EVERY).await;
        }
    }
}

/// A write of the canary's row.
fn touch() -> String {
    format!("UPDATE users SET version = version + 1 WHERE id = {CANARY}")
}

/// Starts the proxy. In strict it is ready when commits wait for it, and they do from when it streams: one that is still
/// catching up would hold them up.
async fn proxy(settings: &str, contract: Contract, sql: &tokio_postgres::Client) -> Fallible<Cachefence> {
    let mut proxy = Cachefence::launch(Path::new(BINARY), settings)?;
    if contract == Contract::Strict {
        let streaming = "SELECT count(*) FROM pg_stat_replication \
            WHERE application_name = 'cachefence' AND state = 'streaming'";
        let streams = async || sql.query_one(streaming, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) == 1);
        wait_until("the proxy to stream", PATIENCE, streams).await?;
        set_standbys(sql, STANDBYS).await?;
    }
    proxy.ready().await?;
    Ok(proxy)
}

async fn set_standbys(sql: &tokio_postgres::Client, standbys: &str) -> Outcome {
    sql.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{standbys}'")).await?;
    Ok(sql.batch_execute("SELECT pg_reload_conf()").await?)
}

/// Nothing gets in without evidence, and while the feed is lost nothing is served: what strict asks for, and in
/// bounded what leaves no TTL to wait for.
fn settings(servers: &str, contract: Contract) -> String {
    let contract = format!("[postgres]\ncontract = \"{}\"\n", contract.name());
    let servers = servers.replacen("[postgres]\n", &contract, 1);
    let lease = LEASE_TTL.as_millis();
    servers
        + &format!(
            "
[fence]
history = \"5s\"
lease_ttl = \"{lease}ms\"

[[guard]]
table = \"users\"
keys = [\"user:<id>\"]
unproven = \"refuse\"
when_feed_lost = {{ reads = \"miss\", fills = \"refuse\" }}
"
        )
}
