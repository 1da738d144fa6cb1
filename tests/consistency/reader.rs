//! A reader: a cache-aside application, as they are.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cachefence::demo::client::{Client, Reply, encode};
use tokio::sync::Mutex;
use tokio_postgres::Statement;

use crate::history::{Micros, Origin, Read};
use crate::load::{Dice, FILL_PAUSE, TOO_LATE};
use crate::remedy::{Command, Look, Remedy};
use crate::run::{Shared, Task, exceeds, failed, pause};

/// How a reader uses its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A connection of its own, and plain commands: a miss vouches for its fill.
    Own,
    /// Each command takes any connection of a pool, so that a fill can go over another one than its miss.
    Pooled,
    /// A connection of its own, and `cachefence.asof()` before each read: the baselines' know nothing of it.
    Asof,
}

impl Style {
    pub const ALL: [Self; 3] = [Self::Own, Self::Pooled, Self::Asof];
}

/// Where a reader's commands go.
pub enum Connection {
    Own(Client),
    Pooled(Arc<Vec<Mutex<Client>>>),
}

impl Connection {
    /// Sends all in one pipeline, and waits for all answers.
    async fn ask(&mut self, dice: &mut Dice, commands: &[Command]) -> Task<Vec<Reply>> {
        match self {
            Self::Own(client) => ask(client, commands).await,
            Self::Pooled(pool) => {
                let any = &pool[dice.roll(pool.len() as u64) as usize];
                ask(&mut *any.lock().await, commands).await
            }
        }
    }
}

/// Sends all in one pipeline, and waits for all answers.
pub async fn ask(client: &mut Client, commands: &[Command]) -> Task<Vec<Reply>> {
    let bytes: Vec<u8> = commands.iter().flat_map(|command| encode(command)).collect();
    client.send_raw(&bytes).await.map_err(failed)?;
    let mut replies = Vec::with_capacity(commands.len());
    for command in commands {
        match client.receive().await.map_err(failed)? {
            Reply::Error(error) => return Err(format!("{command:?}: {error}")),
            reply => replies.push(reply),
        }
    }
    Ok(replies)
}

/// A row that was not in the cache, and what its key's newest known version was when the read started.
struct Missed {
    id: u32,
    may_fill: bool,
    known: u32,
}

/// One task that reads.
pub struct Reader {
    remedy: Remedy,
    style: Style,
    name: String,
    cache: Connection,
    node: tokio_postgres::Client,
    select: Statement,
    origin: Origin,
    dice: Dice,
    shared: Arc<Shared>,
    reads: Vec<Read>,
}

impl Reader {
    pub async fn new(
        remedy: Remedy,
        style: Style,
        cache: Connection,
        node: tokio_postgres::Client,
        of_primary: bool,
        shared: Arc<Shared>,
    ) -> Task<Self> {
        let select =
            node.prepare("SELECT id, version FROM users WHERE id = ANY($1)").await.map_err(failed)?;
        let origin = if of_primary { Origin::Primary } else { Origin::Replica };
        let (name, dice, reads) = (String::new(), Dice::new(0), Vec::new());
        Ok(Self { remedy, style, name, cache, node, select, origin, dice, shared, reads })
    }

    /// Its number, and its chances.
    pub fn with(self, number: u64, dice: Dice) -> Self {
        Self { name: format!("r{number}"), dice, ..self }
    }

    /// Reads until it is told to stop; returns what it read.
    pub async fn run(mut self) -> Task<(Remedy, Vec<Read>)> {
        while !self.shared.stopped() {
            self.page().await?;
            pause(self.dice.millis(self.shared.load.read_pause)).await;
        }
        Ok((self.remedy, self.reads))
    }

    /// A page: some keys, of which the cache has some; the others come from the database, and go into the cache.
    async fn page(&mut self) -> Task<()> {
        let ids = self.choose();
        let known: Vec<u32> =
            ids.iter().map(|id| self.shared.acknowledged[*id as usize].load(Ordering::Acquire)).collect();
        let start = self.shared.clock.now();
        let looks: Vec<Command> = ids.iter().map(|id| self.remedy.look(*id, &self.name)).collect();
        let replies = self.cache.ask(&mut self.dice, &looks).await?;
        let end = self.shared.clock.now();
        let mut missed = Vec::new();
        for ((id, known), reply) in ids.into_iter().zip(known).zip(&replies) {
            match self.remedy.looked(reply)? {
                Look::Hit(version) => self.record(id, Origin::Cache, version, known, (start, end)),
                Look::Miss => missed.push(Missed { id, may_fill: true, known }),
                Look::Wait => missed.push(Missed { id, may_fill: false, known }),
            }
        }
        if missed.is_empty() { Ok(()) } else { self.miss(&missed, start).await }
    }

    /// Keys that differ, as many as the dice say.
    fn choose(&mut self) -> Vec<u32> {
        let wanted = if self.dice.one_in(3) { 1 } else { 1 + self.dice.roll(self.shared.load.page) };
        let mut ids: Vec<u32> = (0..wanted).map(|_| self.shared.choose(&mut self.dice)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The second half of a page: what was missed is read from the database, and put into the cache.
    async fn miss(&mut self, missed: &[Missed], start: Micros) -> Task<()> {
        self.dawdle().await;
        let evidence = self.evidence().await?;
        let ids: Vec<i64> = missed.iter().map(|missed| missed.id.into()).collect();
        let rows = self.node.query(&self.select, &[&ids]).await.map_err(failed)?;
        let end = self.shared.clock.now();
        let mut fills = Vec::new();
        for row in rows {
            let (id, version): (i64, i64) = (row.get(0), row.get(1));
            let (id, version) = (id as u32, version as u32);
            let Some(missed) = missed.iter().find(|missed| missed.id == id) else { continue };
            self.record(id, self.origin, version, missed.known, (start, end));
            if missed.may_fill {
                let ttl = self.shared.load.ttl;
                fills.push(self.remedy.fill(id, version, ttl, &self.name, evidence.as_deref()));
            }
        }
        self.dawdle().await;
        if !exceeds(&self.shared, start, TOO_LATE) {
            self.cache.ask(&mut self.dice, &fills).await?;
        }
        Ok(())
    }

    /// What vouches for the reads that follow on this connection to the database.
    async fn evidence(&self) -> Task<Option<String>> {
        if self.style != Style::Asof || self.remedy.is_baseline() {
            return Ok(None);
        }
        let row = self.node.query_one("SELECT cachefence.asof()", &[]).await.map_err(failed)?;
        Ok(Some(row.get(0)))
    }

    /// Applications have other things to do; commits come in between.
    async fn dawdle(&mut self) {
        match self.dice.roll(20) {
            0 => pause(self.dice.millis(FILL_PAUSE / 2)).await,
            1..=4 => pause(self.dice.millis(10)).await,
            _ => {}
        }
    }

    fn record(&mut self, id: u32, origin: Origin, version: u32, known: u32, time: (Micros, Micros)) {
        self.reads.push(Read::new(id, origin, version, time.0, time.1));
        if origin != Origin::Replica {
            let progress = self.shared.progress(self.remedy);
            progress.judged.fetch_add(1, Ordering::Relaxed);
            progress.stale.fetch_add(u64::from(version < known), Ordering::Relaxed);
        }
    }
}
