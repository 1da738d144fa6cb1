//! A reader: a cache-aside application, as they are, which goes on after every failure.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use cachefence::demo::client::{Client, Reply, encode};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_postgres::NoTls;

use super::writer::choose;
use super::{AGAIN, GIVE_UP, Shared, TTL};
use crate::dice::Dice;
use crate::stand::TOO_LATE;
use crate::support::Fallible;

/// Keys that are read in one pipeline, at most.
const PAGE: u64 = 8;
/// A pause between two pages is below this, in milliseconds.
const PAUSE: u64 = 15;

/// How a reader uses its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A connection of its own, and plain commands: a miss vouches for its fill.
    Own,
    /// Each command takes any connection of a pool, so that a fill can go over another one than its miss.
    Pooled,
    /// A connection of its own, and `cachefence.asof()` before each read.
    Asof,
}

impl Style {
    pub const ALL: [Self; 3] = [Self::Own, Self::Pooled, Self::Asof];
}

/// Connections to the proxy that several readers share.
pub struct Pool(Vec<Mutex<Option<Client>>>);

impl Pool {
    pub fn new(connections: usize) -> Self {
        Self((0..connections).map(|_| Mutex::new(None)).collect())
    }
}

/// One task that reads.
pub struct Reader {
    name: String,
    style: Style,
    of_primary: bool,
    pool: Arc<Pool>,
    own: Option<Client>,
    node: Option<(u16, tokio_postgres::Client)>,
    shared: Arc<Shared>,
    dice: Dice,
}

impl Reader {
    pub fn new(
        n: u64,
        style: Style,
        of_primary: bool,
        pool: Arc<Pool>,
        shared: Arc<Shared>,
        dice: Dice,
    ) -> Self {
        let node = if of_primary { "primary" } else { "replica" };
        let name = format!("reader {n} ({style:?}, {node})");
        Self { name, style, of_primary, pool, own: None, node: None, shared, dice }
    }

    /// Reads until the load ends.
    pub async fn run(mut self) {
        while !self.shared.is_stopped() {
            if !self.shared.reading.load(Ordering::Relaxed) {
                self.leave().await;
                continue;
            }
            if self.page().await.is_err() {
                self.shared.counts.errors.fetch_add(1, Ordering::Relaxed);
                sleep(AGAIN).await;
            }
            sleep(self.dice.millis(PAUSE)).await;
        }
    }

    /// Closes its connections, and waits a little.
    async fn leave(&mut self) {
        (self.own, self.node) = (None, None);
        for connection in &self.pool.0 {
            *connection.lock().await = None;
        }
        sleep(AGAIN).await;
    }

    /// A page: some keys, of which the cache has some; the others come from the database, and go into the cache.
    async fn page(&mut self) -> Fallible<()> {
        let wanted = if self.dice.one_in(3) { 1 } else { 1 + self.dice.roll(PAGE) };
        let mut ids: Vec<u32> = (0..wanted).map(|_| choose(&mut self.dice)).collect();
        ids.sort_unstable();
        ids.dedup();
        let (rebased, started) = (self.shared.rebased.load(Ordering::SeqCst), Instant::now());
        let due: Vec<u32> = ids.iter().map(|id| self.shared.due(*id)).collect();
        let looks = ids.iter().map(|id| vec!["GET".to_owned(), key(*id)]).collect();
        let replies = self.ask(looks, None).await?;
        let mut missed = Vec::new();
        for ((id, due), reply) in ids.into_iter().zip(due).zip(&replies) {
            match reply {
                Reply::Bulk(value) if self.shared.rebased.load(Ordering::SeqCst) == rebased => {
                    let version = std::str::from_utf8(value)?.parse()?;
                    self.shared.judge(id, version, due, &self.name);
                }
                Reply::Nil => missed.push(i64::from(id)),
                Reply::Error(_) => drop(self.shared.counts.errors.fetch_add(1, Ordering::Relaxed)),
                _ => {}
            }
        }
        if missed.is_empty() { Ok(()) } else { self.miss(&missed, started).await }
    }

    /// What was missed is read from the database, and put into the cache.
    async fn miss(&mut self, ids: &[i64], started: Instant) -> Fallible<()> {
        self.dawdle().await;
        let (evidence, rows) = match self.read(ids).await {
            Ok(read) => read,
            Err(error) => {
                self.node = None;
                return Err(error);
            }
        };
        let ttl = TTL.as_millis().to_string();
        let fill = |(id, version): (i64, i64)| {
            let set = ["SET", &format!("user:{id}"), &version.to_string(), "PX", &ttl].map(str::to_owned);
            let asof = evidence.iter().flat_map(|evidence| ["ASOF".to_owned(), evidence.clone()]);
            asof.chain(set).collect()
        };
        let fills: Vec<Vec<String>> = rows.into_iter().map(fill).collect();
        self.dawdle().await;
        let replies = self.ask(fills, Some(started + TOO_LATE)).await?;
        let filled = replies.iter().filter(|reply| **reply == Reply::ok()).count();
        self.shared.counts.fills.fetch_add(filled as u64, Ordering::Relaxed);
        Ok(())
    }

    async fn read(&mut self, ids: &[i64]) -> Fallible<(Option<String>, Vec<(i64, i64)>)> {
        let of_primary = self.of_primary;
        let port = if of_primary { &self.shared.primary } else { &self.shared.replica };
        let port = port.load(Ordering::Acquire);
        let connected = self.node.as_ref().is_some_and(|(to, node)| *to == port && !node.is_closed());
        if !connected {
            self.node = Some((port, session(port).await?));
        }
        let Some((_, node)) = &self.node else { return Err("no session".into()) };
        let evidence = match self.style {
            Style::Asof => Some(within(node.query_one("SELECT cachefence.asof()", &[])).await??.try_get(0)?),
            _ => None,
        };
        let rows = within(node.query("SELECT id, version FROM users WHERE id = ANY($1)", &[&ids])).await??;
        let rows = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        Ok((evidence, rows.collect::<Result<_, tokio_postgres::Error>>()?))
    }

    /// Sends all in one pipeline, and waits for all answers. A connection that fails is left.
    ///
    /// What a miss vouches for ends: an application that is too late leaves it. It may have waited for its turn on a
    /// connection, or for the connection itself.
    async fn ask(&mut self, commands: Vec<Vec<String>>, until: Option<Instant>) -> Fallible<Vec<Reply>> {
        let proxy = self.shared.proxy();
        if self.style == Style::Pooled {
            let any = self.dice.roll(self.pool.0.len() as u64) as usize;
            let pool = self.pool.clone();
            let Some(connection) = pool.0.get(any) else { return Err("an empty pool".into()) };
            ask(&mut *connection.lock().await, &proxy, &commands, until).await
        } else {
            ask(&mut self.own, &proxy, &commands, until).await
        }
    }

    /// Applications have other things to do; commits come in between.
    async fn dawdle(&mut self) {
        match self.dice.roll(20) {
            0 => sleep(self.dice.millis(120)).await,
            1..=4 => sleep(self.dice.millis(10)).await,
            _ => {}
        }
    }
}

fn key(id: u32) -> String {
    format!("user:{id}")
}

/// Connects if need be; the connection stays only if everything was answered.
async fn ask(
    connection: &mut Option<Client>,
    proxy: &str,
    commands: &[Vec<String>],
    until: Option<Instant>,
) -> Fallible<Vec<Reply>> {
    let mut client = match connection.take() {
        Some(client) => client,
        None => within(Client::connect(proxy)).await??,
    };
    if until.is_some_and(|until| Instant::now() > until) {
        *connection = Some(client);
        return Ok(Vec::new());
    }
    let bytes: Vec<u8> = commands.iter().flat_map(|args| encode(args)).collect();
    let answered = within(async {
        client.send_raw(&bytes).await?;
        let mut replies = Vec::with_capacity(commands.len());
        for _ in commands {
            replies.push(client.receive().await?);
        }
        Ok::<_, std::io::Error>(replies)
    });
    let replies = answered.await??;
    *connection = Some(client);
    Ok(replies)
}

async fn within<T>(work: impl Future<Output = T>) -> Fallible<T> {
    timeout(GIVE_UP, work).await.map_err(|_| "too late".into())
}

/// A session on a node.
pub async fn session(port: u16) -> Fallible<tokio_postgres::Client> {
    let settings = format!("host=127.0.0.1 port={port} user=postgres dbname=app connect_timeout=3");
    let (client, connection) = within(tokio_postgres::connect(&settings, NoTls)).await??;
    // Its end is seen by the client's next statement.
    tokio::spawn(connection);
    Ok(client)
}
