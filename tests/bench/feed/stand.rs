//! The servers, a guarded table, and the two that follow its changes.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::{
    Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions, config, wait_until,
};
use cachefence::position::Lsn;

use crate::{BINARY, Fallible, cpu};

/// Nothing comes near it unless it never comes.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// The slot of pg_recvlogical. The proxy's has the name of the setting's default.
pub const OTHER_SLOT: &str = "recvlogical";
const SLOT: &str = "cachefence";

const GUARD: &str = "
[[guard]]
table = \"items\"
keys = [\"item:<id>\", \"item:<id>:page\"]
";

/// What runs all the time.
pub struct Stand {
    pub redis: Redis,
    pub client: Client,
    pub sql: tokio_postgres::Client,
    pub primary: Postgres,
    pub settings: String,
    pub rows: u32,
    /// Processes of Postgres while nobody but us has a session.
    children: usize,
}

impl Stand {
    /// A table of so many rows, two keys for each, and both slots.
    pub async fn start(rows: u32) -> Fallible<Self> {
        let settings = PrimaryOptions::default()
            .set("shared_buffers", "256MB")
            .set("max_wal_size", "16GB")
            .set("checkpoint_timeout", "1h")
            .set("synchronous_commit", "off")
            .set("track_commit_timestamp", "on");
        let primary = Postgres::primary(settings).await?;
        let sql = primary.client().await?;
        sql.batch_execute(&format!(
            "CREATE TABLE items (id bigint PRIMARY KEY, name text, price int, note text) WITH (fillfactor = 45);
             INSERT INTO items SELECT id, 'item ' || id, 0, repeat('x', 40) FROM generate_series(1, {rows}) id;
             CHECKPOINT;"
        ))
        .await?;
        let redis = Redis::start(RedisOptions::default()).await?;
        let client = redis.client().await?;
        let settings = config(&primary, &[], &redis) + GUARD;
        // It makes its publication and its slot, and writes its marker; all else is found there at the next start.
        Cachefence::start(BINARY, &settings).await?.stop().await?;
        let create = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')";
        sql.execute(create, &[&OTHER_SLOT]).await?;
        let mut stand = Self { redis, client, sql, primary, settings, rows, children: usize::MAX };
        stand.nobody_else().await?;
        stand.children = cpu::children(stand.primary.pid().unwrap_or_default());
        Ok(stand)
    }

    /// Puts both keys of every row into Redis.
    pub async fn fill(&mut self) -> Fallible<()> {
        const SCRIPT: &str = "for id = ARGV[1], ARGV[2] do
            redis.call('SET', 'item:' .. id, 'the item as JSON')
            redis.call('SET', 'item:' .. id .. ':page', 'the item as a page') end";
        for from in (1..=self.rows).step_by(10_000) {
            let to = (from + 9_999).min(self.rows);
            self.redis_says(&["EVAL", SCRIPT, "0", &from.to_string(), &to.to_string()]).await?;
        }
        let filled = self.keys().await?;
        if filled == 2 * i64::from(self.rows) { Ok(()) } else { Err(format!("{filled} keys").into()) }
    }

    /// The keys of rows that are in Redis. The marker is none.
    pub async fn keys(&mut self) -> Fallible<i64> {
        match self.redis_says(&["DBSIZE"]).await? {
            Reply::Int(keys) => Ok(keys - 1),
            other => Err(format!("DBSIZE: {other:?}").into()),
        }
    }

    pub async fn redis_says(&mut self, command: &[&str]) -> Fallible<Reply> {
        match self.client.cmd(command).await? {
            Reply::Error(error) => Err(error.into()),
            reply => Ok(reply),
        }
    }

    /// Changes every row once, in transactions of so many, while nobody follows. Returns a position that ends before the
    /// last commit: who is beyond it has followed all.
    pub async fn change(&self, per_transaction: u32) -> Fallible<Lsn> {
        let rows = self.rows;
        self.sql
            .batch_execute(&format!(
                "DO $$ BEGIN FOR low IN 1..{rows} BY {per_transaction} LOOP
                     UPDATE items SET price = price + 1 WHERE id BETWEEN low AND low + {per_transaction} - 1;
                     COMMIT;
                 END LOOP; END $$"
            ))
            .await?;
        let end = self.position("pg_current_wal_insert_lsn()").await?;
        // Waits for its flush, and so for that of all before it.
        self.sql
            .batch_execute(
                "BEGIN; SET LOCAL synchronous_commit = on; UPDATE items SET price = price + 1 WHERE id = 1; COMMIT",
            )
            .await?;
        Ok(end)
    }

    pub async fn position(&self, expression: &str) -> Fallible<Lsn> {
        let row = self.sql.query_one(&format!("SELECT ({expression})::text"), &[]).await?;
        let text: &str = row.try_get(0)?;
        text.parse().map_err(|_| format!("{expression}: {text:?}").into())
    }

    /// Waits until the proxy has confirmed a position.
    pub async fn confirmed_beyond(&self, end: Lsn) -> Fallible<()> {
        let confirmed =
            format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
        wait_until("the feed to be confirmed", PATIENCE, async || {
            self.position(&confirmed).await.is_ok_and(|confirmed| confirmed > end)
        })
        .await?;
        Ok(())
    }

    async fn nobody_else(&self) -> Fallible<()> {
        let others =
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('client backend', 'walsender')";
        wait_until("the first sessions to end", PATIENCE, async || {
            let count = self.sql.query_one(others, &[]).await;
            count.is_ok_and(|row| row.get::<_, i64>(0) == 1)
        })
        .await?;
        Ok(())
    }

    /// Waits until Postgres has as few sessions as at first: those that have ended were waited for, and their CPU time is
    /// counted as their parent's.
    pub async fn quiet(&self) -> Fallible<()> {
        let postgres = self.primary.pid().unwrap_or_default();
        wait_until("the sessions to end", PATIENCE, async || cpu::children(postgres) <= self.children)
            .await?;
        Ok(())
    }

    /// pg_recvlogical asking for the same stream as the proxy.
    pub fn recvlogical(&self, file: &str, more: &[&str]) -> Fallible<Child> {
        let mut command = Command::new(self.primary.programs().join("pg_recvlogical"));
        command.args(["-d", &self.primary.url(), "-S", OTHER_SLOT, "--start", "--no-loop"]);
        command.args(["--plugin", "pgoutput", "-o", "proto_version=1", "-o", "publication_names=cachefence"]);
        command.args(["-o", "messages=true", "--fsync-interval=0", "-f", file]).args(more);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?)
    }
}
