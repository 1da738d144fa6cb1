//! CPU of a proxy with more and more sources, with nothing to do and under load.

use std::time::Duration;

use cachefence::demo::servers::{Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions};
use tokio::time::{MissedTickBehavior, interval};

use super::named;
use crate::level::level;
use crate::paced::{Clients, Exchange};
use crate::{BINARY, Fallible, cpu, median};

const SOURCES: [usize; 3] = [1, 4, 16];
const IDLE: Duration = Duration::from_secs(5);
/// One load: commits of one key each, and GETs, both in a second; and how many of the latter.
const COMMITS: u32 = 100;
const READS: u32 = 2_000;
const ALL_READS: u32 = 3 * READS;

/// A proxy, its Redis, and its table. Fields end in this order.
struct Polling {
    clients: Clients,
    proxy: Cachefence,
    _redis: Redis,
    table: String,
}

/// Per cent of a core: idle, and under load.
type Taken = [(f64, f64); SOURCES.len()];

pub async fn run(rounds: usize) -> Fallible<String> {
    let primary = Postgres::primary(PrimaryOptions::default()).await?;
    let sql = primary.client().await?;
    for sources in SOURCES {
        sql.batch_execute(&format!(
            "CREATE TABLE s{sources} (id bigint PRIMARY KEY, price int);
             INSERT INTO s{sources} SELECT id, 0 FROM generate_series(1, 1000) id;"
        ))
        .await?;
    }
    let replica = Postgres::replica(&primary, &[]).await?;
    let mut proxies = Vec::new();
    for sources in SOURCES {
        proxies.push(start(&primary, &replica, sources).await?);
    }
    let mut taken: Vec<Taken> = Vec::new();
    for round in 0..rounds {
        for polling in &proxies {
            level(&sql, &polling.proxy).await?;
        }
        let before: Vec<u64> = proxies.iter().map(Polling::used).collect();
        tokio::time::sleep(IDLE).await;
        let mut figures = Taken::default();
        for (place, polling) in proxies.iter().enumerate() {
            figures[place].0 = percent(polling.used().saturating_sub(before[place]), IDLE.as_secs_f64());
        }
        for step in 0..SOURCES.len() {
            let place = (step + round) % SOURCES.len();
            figures[place].1 = proxies[place].loaded(&sql).await?;
        }
        taken.push(figures);
    }
    Ok(table(&taken))
}

async fn start(primary: &Postgres, replica: &Postgres, sources: usize) -> Fallible<Polling> {
    let redis = Redis::start(RedisOptions::default()).await?;
    let table = format!("s{sources}");
    let replicas = vec![replica; sources - 1];
    let guard = format!("[[guard]]\ntable = \"{table}\"\nkeys = [\"{table}:<id>\"]\n");
    let proxy = Cachefence::start(BINARY, &(named(&table, primary, &replicas, &redis) + &guard)).await?;
    let clients = Clients::connect(proxy.address(), READS).await?;
    Ok(Polling { clients, proxy, _redis: redis, table })
}

impl Polling {
    fn used(&self) -> u64 {
        cpu::nanos(self.proxy.pid().unwrap_or_default())
    }

    /// What it uses while rows of its table are changed one by one and others are read.
    async fn loaded(&mut self, sql: &tokio_postgres::Client) -> Fallible<f64> {
        let update = format!("UPDATE {} SET price = price + 1 WHERE id = $1", self.table);
        let update = sql.prepare(&update).await?;
        let pid = self.proxy.pid().unwrap_or_default();
        let (before, began) = (self.used(), std::time::Instant::now());
        let commits = async {
            let mut ticks = interval(Duration::from_secs(1) / COMMITS);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for id in 1..=i64::from(COMMITS * ALL_READS / READS) {
                ticks.tick().await;
                sql.execute(&update, &[&id]).await?;
            }
            Fallible::Ok(())
        };
        let reads = self.clients.run(pid, 0..ALL_READS, |n| vec![Exchange::miss(&format!("free:{n}"))]);
        let (commits, reads) = tokio::join!(commits, reads);
        commits?;
        reads?;
        Ok(percent(self.used().saturating_sub(before), began.elapsed().as_secs_f64()))
    }
}

fn percent(nanos: u64, seconds: f64) -> f64 {
    nanos as f64 / 1e7 / seconds
}

fn table(taken: &[Taken]) -> String {
    let mut text = format!(
        "Sources: CPU of the proxy, per cent of a core; under load: {COMMITS} commits of one key and {READS} GETs per second; \
         medians of {} rounds.\n\n| sources | nothing to do | under load |\n| ---: | ---: | ---: |\n",
        taken.len()
    );
    for (place, sources) in SOURCES.iter().enumerate() {
        let idle = median(taken.iter().map(|round| round[place].0));
        let loaded = median(taken.iter().map(|round| round[place].1));
        text += &format!("| {sources} | {idle:.2} | {loaded:.1} |\n");
    }
    text
}
