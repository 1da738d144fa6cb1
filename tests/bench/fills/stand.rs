//! The servers, two guarded tables whose rows were all written once, and a proxy that remembers it.

use std::ops::Range;

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::{Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions, config};
use cachefence::position::Lsn;

use super::Fills;
use crate::level::{flushed, level};
use crate::paced::Clients;
use crate::{BINARY, Fallible};

/// Misses vouch, and writes are remembered, for longer than it all takes.
const SETTINGS: &str = "
[proxy]
threads = 1
[fence]
history = \"1d\"
lease_ttl = \"1h\"
[[guard]]
table = \"items\"
keys = [\"item:<id>\"]
[[guard]]
table = \"notes\"
keys = [\"note:<id>\"]
version = { column = \"version\", json = \"/version\" }
";

/// What runs. Fields end in this order.
pub struct Stand {
    pub clients: Clients,
    proxy: Cachefence,
    redis: Client,
    _redis: Redis,
    sql: tokio_postgres::Client,
    _primary: Postgres,
    pub operations: u32,
    /// A position before every write, and one behind it.
    pub before: Lsn,
    pub behind: Lsn,
}

impl Stand {
    pub async fn start(operations: u32, rounds: u32, rate: u32) -> Fallible<Self> {
        let primary = Postgres::primary(PrimaryOptions::default().set("shared_buffers", "128MB")).await?;
        let sql = primary.client().await?;
        let (items, notes) = (operations * (rounds + 1), operations);
        sql.batch_execute(&format!(
            "CREATE TABLE items (id bigint PRIMARY KEY, price int);
             CREATE TABLE notes (id bigint PRIMARY KEY, version int);
             ALTER TABLE notes REPLICA IDENTITY FULL;
             INSERT INTO items SELECT id, 0 FROM generate_series(0, {items} - 1) id;
             INSERT INTO notes SELECT id, 1 FROM generate_series(0, {notes} - 1) id;"
        ))
        .await?;
        let redis = Redis::start(RedisOptions::default()).await?;
        let proxy = Cachefence::start(BINARY, &(config(&primary, &[], &redis) + SETTINGS)).await?;
        let before = level(&sql, &proxy).await?;
        let clients = Clients::connect(proxy.address(), rate).await?;
        let client = redis.client().await?;
        let mut stand = Self {
            clients,
            proxy,
            redis: client,
            _redis: redis,
            sql,
            _primary: primary,
            operations,
            before,
            behind: before,
        };
        stand.write("items", &(0..operations)).await?;
        stand.sql.batch_execute("UPDATE notes SET version = version + 1").await?;
        stand.behind = flushed(&stand.sql).await?;
        level(&stand.sql, &stand.proxy).await?;
        Ok(stand)
    }

    pub fn pid(&self) -> u32 {
        self.proxy.pid().unwrap_or_default()
    }

    /// Changes these rows, and waits until their keys are fenced and deleted.
    pub async fn write(&self, table: &str, rows: &Range<u32>) -> Fallible<()> {
        let (from, to) = (rows.start, rows.end);
        let update = format!("UPDATE {table} SET price = price + 1 WHERE id >= {from} AND id < {to}");
        self.sql.batch_execute(&update).await?;
        level(&self.sql, &self.proxy).await?;
        Ok(())
    }

    /// How many fills the proxy has counted as what these must be.
    pub async fn counted(&self, fills: Option<Fills>) -> Fallible<f64> {
        let labels = match fills {
            Some(Fills::Admitted) => "verdict=\"fresh\",action=\"forwarded\"",
            Some(Fills::Refused) => "verdict=\"stale\",action=\"refused\"",
            None => return Ok(0.0),
        };
        Ok(self.proxy.metric(&format!("cachefence_fills_total{{{labels}}}")).await?)
    }

    /// Takes away what was filled, behind the proxy's back: its marker has to stay.
    pub async fn forget(&mut self, operations: u32) -> Fallible<()> {
        const SCRIPT: &str = "for id = ARGV[1], ARGV[2] do
            redis.call('UNLINK', 'free:' .. id, 'item:' .. id, 'note:' .. id) end return redis.call('DBSIZE')";
        let mut left = Reply::Nil;
        for from in (0..operations).step_by(10_000) {
            let to = (from + 9_999).to_string();
            left = self.redis.cmd(&["EVAL", SCRIPT, "0", &from.to_string(), &to]).await?;
        }
        if left == Reply::Int(1) {
            Ok(())
        } else {
            Err(format!("after everything was deleted: {left:?}").into())
        }
    }
}
