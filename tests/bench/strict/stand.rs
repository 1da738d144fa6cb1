//! A durable primary, a replica, a proxy in the strict contract, and whom of them commits wait for.

use std::path::Path;

use cachefence::demo::servers::{
    Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions, config, wait_until,
};

use super::WaitFor;
use super::pgbench::{self, Latency, ROWS};
use crate::level::PATIENCE;
use crate::{BINARY, Fallible};

const SETTINGS: &str = "
[[guard]]
table = \"accounts\"
keys = [\"account:<id>\"]
";
const NAME: &str = "cachefence";

/// What runs. Fields end in this order.
pub struct Stand {
    proxy: Cachefence,
    replica: Postgres,
    _redis: Redis,
    sql: tokio_postgres::Client,
    primary: Postgres,
}

impl Stand {
    pub async fn start() -> Fallible<Self> {
        let durable = [("fsync", "on"), ("full_page_writes", "on"), ("shared_buffers", "128MB")];
        let options =
            durable.iter().fold(PrimaryOptions::default(), |options, (name, value)| options.set(name, value));
        let primary = Postgres::primary(options.set("wal_sender_timeout", "5min")).await?;
        let sql = primary.client().await?;
        sql.batch_execute(&format!(
            "CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint) WITH (fillfactor = 50);
             INSERT INTO accounts SELECT id, 0 FROM generate_series(1, {ROWS}) id;
             CHECKPOINT;"
        ))
        .await?;
        let replica = Postgres::replica(&primary, &durable).await?;
        let redis = Redis::start(RedisOptions::default()).await?;
        // It stands still for some turns, which must not count as a loss.
        let strict = "[postgres]\ncontract = \"strict\"\nfeed_lost_after = \"5m\"\nmax_lag = \"5m\"\n";
        let servers = config(&primary, &[], &redis).replace("[postgres]\n", strict);
        let proxy = Cachefence::launch(Path::new(BINARY), &(servers + SETTINGS))?;
        Ok(Self { proxy, replica, _redis: redis, sql, primary })
    }

    /// Has commits wait for that, and for nothing else; whoever is not waited for stands still.
    pub async fn wait_for(&mut self, waits: WaitFor) -> Fallible<()> {
        self.go_on()?;
        // Nobody has anything left to do from other turns.
        self.replica.catch_up(&self.primary).await?;
        self.name("").await?;
        let replica = self.replica.name();
        self.caught_up().await?;
        match waits {
            WaitFor::Nobody => {}
            WaitFor::Replica => {
                self.name(&replica).await?;
                self.synchronous(&replica).await?;
            }
            WaitFor::Proxy => {
                self.name(NAME).await?;
                self.synchronous(NAME).await?;
                let proxy = &self.proxy;
                wait_until("strict to be in force", PATIENCE, async || {
                    proxy.get("/readyz").await.is_ok_and(|(status, _)| status == 200)
                })
                .await?;
            }
        }
        if waits != WaitFor::Replica {
            self.replica.freeze()?;
        }
        if waits != WaitFor::Proxy {
            self.proxy.freeze()?;
        }
        Ok(())
    }

    /// Ends all standing still.
    pub fn go_on(&mut self) -> Fallible<()> {
        self.replica.thaw()?;
        self.proxy.thaw()?;
        Ok(())
    }

    /// One run, as those commit who want to wait in this way.
    pub fn pgbench(&self, waits: WaitFor, sessions: u32, seconds: u32) -> Fallible<Latency> {
        let commit = if waits == WaitFor::Replica { "remote_write" } else { "on" };
        pgbench::run(&self.primary, commit, sessions, seconds)
    }

    async fn name(&self, standbys: &str) -> Fallible<()> {
        let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{standbys}'");
        self.sql.batch_execute(&set).await?;
        self.sql.batch_execute("SELECT pg_reload_conf()").await?;
        Ok(())
    }

    async fn synchronous(&self, name: &str) -> Fallible<()> {
        let state =
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = $1 AND sync_state = 'sync'";
        self.is_one(state, name).await
    }

    /// Waits until the proxy has confirmed all there is.
    async fn caught_up(&self) -> Fallible<()> {
        let caught_up = "SELECT count(*) FROM pg_stat_replication WHERE application_name = $1 \
                         AND flush_lsn >= pg_current_wal_flush_lsn()";
        self.is_one(caught_up, NAME).await
    }

    async fn is_one(&self, count: &str, name: &str) -> Fallible<()> {
        wait_until(count, PATIENCE, async || {
            let row = self.sql.query_one(count, &[&name]).await;
            row.is_ok_and(|row| row.try_get::<_, i64>(0).is_ok_and(|count| count == 1))
        })
        .await?;
        Ok(())
    }
}
