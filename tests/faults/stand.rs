//! The servers: a primary, a replica, Redis, and the proxy under one of its contracts; all real, all to be broken.

use std::path::Path;
use std::time::{Duration, Instant};

use cachefence::config::Contract;
use cachefence::demo::client::Reply;
use cachefence::demo::servers::{
    Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions, config, wait_until,
};
use cachefence::position::Lsn;
use tokio::time::{sleep, timeout};

use crate::line::Line;
use crate::load::KEYS;
use crate::resources::Resources;
use crate::support::{BINARY, Fallible, Outcome, PATIENCE, init, lsn, status, text};
use crate::table;

/// A miss vouches for so long.
const LEASE_TTL: Duration = Duration::from_secs(3);
/// Applications give up on a fill that took so long: what a miss vouches for ends, and the machine is busy.
pub const TOO_LATE: Duration = Duration::from_millis(500);
/// What makes COMMIT wait for the proxy.
pub const STANDBYS: &str = "FIRST 1 (cachefence)";
/// Recovery that takes so long has not happened.
const RECOVERY: Duration = Duration::from_secs(120);
/// One attempt at what shows that all works again.
const ATTEMPT: Duration = Duration::from_secs(5);

/// How a fault's stand differs.
#[derive(Default)]
pub struct Options {
    pub primary: PrimaryOptions,
    pub replica: Vec<(&'static str, &'static str)>,
    pub redis: RedisOptions,
    /// Between the proxy and each server is a [`Line`].
    pub lines: bool,
    /// Words of the settings that are replaced, once each.
    pub replaced: Vec<(&'static str, &'static str)>,
    /// Settings that come after those.
    pub more: &'static str,
}

/// Between the proxy and each server, where the fault has asked for them.
pub struct Lines {
    pub redis: Line,
    pub primary: Line,
    pub replica: Line,
}

/// Everything that runs. Fields end in this order.
pub struct Stand {
    pub contract: Contract,
    pub proxy: Cachefence,
    pub lines: Option<Lines>,
    pub redis: Redis,
    pub replica: Postgres,
    pub primary: Postgres,
    /// Of the proxy.
    pub settings: String,
}

impl Stand {
    /// Starts the servers, and the proxy.
    pub async fn start(contract: Contract, options: Options) -> Fallible<Self> {
        let primary = Postgres::primary(options.primary).await?;
        let sql = primary.client().await?;
        let rows = format!(
            "CREATE TABLE users (id bigint PRIMARY KEY, version bigint NOT NULL);
             INSERT INTO users SELECT id, 1 FROM generate_series(-1, {KEYS}) AS id"
        );
        sql.batch_execute(&rows).await?;
        let replica = Postgres::replica(&primary, &options.replica).await?;
        let redis = Redis::start(options.redis).await?;
        let mut settings = config(&primary, &[&replica], &redis);
        let lines = match options.lines {
            true => Some(Lines {
                redis: lay(&mut settings, redis.port()).await?,
                primary: lay(&mut settings, primary.port()).await?,
                replica: lay(&mut settings, replica.port()).await?,
            }),
            false => None,
        };
        settings += &own_settings();
        settings = settings.replacen(
            "[postgres]\n",
            &format!("[postgres]\ncontract = \"{}\"\n", table::name(contract)),
            1,
        );
        for (from, to) in options.replaced {
            assert!(settings.contains(from), "{from} is not in {settings}");
            settings = settings.replacen(from, to, 1);
        }
        settings += options.more;
        init(&settings)?;
        let proxy = Cachefence::launch(Path::new(BINARY), &settings)?;
        let mut stand = Self { contract, proxy, lines, redis, replica, primary, settings };
        stand.name_standby().await?;
        stand.proxy.ready().await?;
        stand.level().await?;
        Ok(stand)
    }

    /// In strict, commits wait for the proxy from when it streams: one that is still catching up would hold them up.
    pub async fn name_standby(&self) -> Outcome {
        if self.contract == Contract::Strict {
            let sql = self.sql().await?;
            let streaming = "SELECT count(*) FROM pg_stat_replication \
                WHERE application_name = 'cachefence' AND state = 'streaming'";
            let streams =
                async || sql.query_one(streaming, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) == 1);
            wait_until("the proxy to stream", PATIENCE, streams).await?;
            self.set_standbys(STANDBYS).await?;
        }
        Ok(())
    }

    /// `synchronous_standby_names` of the primary.
    pub async fn set_standbys(&self, standbys: &str) -> Outcome {
        let sql = self.sql().await?;
        sql.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{standbys}'")).await?;
        Ok(sql.batch_execute("SELECT pg_reload_conf()").await?)
    }

    /// A new session on the primary, which does not wait for the proxy.
    pub async fn sql(&self) -> Fallible<tokio_postgres::Client> {
        let sql = self.primary.client().await?;
        sql.batch_execute("SET synchronous_commit = local").await?;
        Ok(sql)
    }

    /// The lines.
    pub fn lines(&self) -> Fallible<&Lines> {
        self.lines.as_ref().ok_or_else(|| "this fault's options have no lines".into())
    }

    /// The proxy's own account of itself.
    pub async fn status(&self) -> Fallible<serde_json::Value> {
        status(&self.proxy).await
    }

    /// What the proxy's process holds of the machine.
    pub fn resources(&self) -> Fallible<Resources> {
        Resources::of(self.proxy.pid().ok_or("the proxy does not run")?)
    }

    /// Waits until `/readyz` says no, and names this.
    pub async fn not_ready(&self, why: &str) -> Outcome {
        let what = format!("/readyz to say no: {why}");
        let says = async || matches!(self.proxy.get("/readyz").await, Ok((503, body)) if body.contains(why));
        Ok(wait_until(&what, PATIENCE, says).await?)
    }

    /// Waits until a metric's series sum up to so much at least.
    pub async fn counted(&self, series: &str, least: f64) -> Outcome {
        let what = format!("{series} to reach {least}");
        let there = async || self.proxy.metric(series).await.is_ok_and(|value| value >= least);
        Ok(wait_until(&what, PATIENCE, there).await?)
    }

    /// The proxy has not ended by itself.
    pub async fn lives(&self) -> Outcome {
        match self.proxy.get("/livez").await? {
            (200, _) => Ok(()),
            other => Err(format!("/livez: {other:?}").into()),
        }
    }

    /// Waits until what was written until now is applied.
    pub async fn level(&self) -> Outcome {
        let sql = self.sql().await?;
        let now: Lsn = text(&sql, "SELECT pg_current_wal_flush_lsn()::text").await?.parse()?;
        let applied = async || {
            let Ok(status) = self.status().await else { return false };
            lsn(&status, "/feed/applied_lsn").is_some_and(|at| at >= now)
        };
        Ok(wait_until(&format!("{now} to be applied"), PATIENCE, applied).await?)
    }

    /// Waits until all works again: ready, a commit's key is deleted, and a fill gets in and is hit. Returns how long that
    /// took.
    pub async fn recovered(&self) -> Fallible<Duration> {
        let began = Instant::now();
        loop {
            let why = match timeout(ATTEMPT * 3, self.works()).await {
                Ok(Ok(())) => return Ok(began.elapsed()),
                Ok(Err(why)) => why.to_string(),
                Err(_) => "something hangs".to_owned(),
            };
            if began.elapsed() > RECOVERY {
                return Err(format!("not recovered after {RECOVERY:?}: {why}").into());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn works(&self) -> Outcome {
        let (code, text) = self.proxy.get("/readyz").await?;
        if code != 200 {
            return Err(text.into());
        }
        let (sql, mut redis) = (self.primary.client().await?, self.redis.client().await?);
        redis.cmd(&["SET", "user:-1", "0"]).await?;
        sql.batch_execute("UPDATE users SET version = version + 1 WHERE id = -1").await?;
        let gone = async || redis.cmd(&["EXISTS", "user:-1"]).await.is_ok_and(|found| found == Reply::Int(0));
        wait_until("a commit's key to be deleted", ATTEMPT, gone).await?;
        let mut client = self.proxy.client().await?;
        let begun = Instant::now();
        loop {
            client.cmd(&["GET", "user:-1"]).await?;
            let version: i64 =
                sql.query_one("SELECT version FROM users WHERE id = -1", &[]).await?.try_get(0)?;
            client.cmd(&["SET", "user:-1", &version.to_string(), "PX", "60000"]).await?;
            if client.cmd(&["GET", "user:-1"]).await?.text() == Some(version.to_string()) {
                return Ok(());
            }
            if begun.elapsed() > ATTEMPT {
                return Err("no fill gets in".into());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Keys that Redis holds and that differ from their rows. For when everything is applied and nobody writes.
    pub async fn differing(&self) -> Fallible<Vec<String>> {
        let (sql, mut redis) = (self.sql().await?, self.redis.client().await?);
        let mut differing = Vec::new();
        for row in sql.query("SELECT id, version FROM users ORDER BY id", &[]).await? {
            let (id, version): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            match redis.cmd(&["GET", &format!("user:{id}")]).await? {
                Reply::Nil => {}
                found if found.text() == Some(version.to_string()) => {}
                found => differing.push(format!("user:{id} is {found:?}, its row has version {version}")),
            }
        }
        Ok(differing)
    }
}

/// Puts a line before a server.
async fn lay(settings: &mut String, port: u16) -> Fallible<Line> {
    let line = Line::to(port).await?;
    *settings = settings.replace(&format!("127.0.0.1:{port}/"), &format!("127.0.0.1:{}/", line.port()));
    Ok(line)
}

/// Nothing gets in without evidence, and while the feed is lost nothing is served: what strict asks for, and in
/// bounded what leaves no TTL to wait for.
fn own_settings() -> String {
    let lease = LEASE_TTL.as_millis();
    format!(
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
