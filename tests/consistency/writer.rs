//! A writer: sessions that update rows, alone or a few in a transaction, and the deletions of those remedies that have
//! any.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use cachefence::demo::client::Client;
use tokio_postgres::Statement;

use crate::history::{Micros, Write};
use crate::load::Dice;
use crate::reader::ask;
use crate::remedy::{Command, Remedy};
use crate::run::{Shared, Task, failed, pause};
use crate::stand::Stand;
use crate::support::Fallible;

/// One task that writes.
pub struct Writer {
    node: tokio_postgres::Client,
    update: Statement,
    cache: Client,
    dice: Dice,
    shared: Arc<Shared>,
    writes: Vec<Write>,
    /// The later deletions that are not due yet.
    later: VecDeque<(Instant, Command)>,
}

impl Writer {
    pub async fn new(stand: &Stand, shared: Arc<Shared>, dice: Dice) -> Fallible<Self> {
        let node = stand.primary().client().await?;
        let update = "UPDATE users SET version = version + 1 WHERE id = $1 RETURNING version";
        let update = node.prepare(update).await?;
        // Its deletions go straight to Redis: those of the baselines.
        let cache = stand.cache(Remedy::Delete).await?;
        Ok(Self { node, update, cache, dice, shared, writes: Vec::new(), later: VecDeque::new() })
    }

    /// Writes until it is told to stop; returns what it wrote.
    pub async fn run(mut self) -> Task<Vec<Write>> {
        while !self.shared.stopped() {
            let next = Instant::now() + self.dice.millis(self.shared.load.write_pause);
            while let Some((due, _)) = self.later.front()
                && *due <= next
            {
                pause(due.saturating_duration_since(Instant::now())).await;
                let due = self.later.pop_front();
                self.delete(due.map(|(_, command)| command)).await?;
            }
            pause(next.saturating_duration_since(Instant::now())).await;
            self.transaction().await?;
        }
        Ok(self.writes)
    }

    /// One transaction, and what the remedies do around it.
    async fn transaction(&mut self) -> Task<()> {
        let ids = self.choose();
        for remedy in Remedy::ALL {
            self.delete(remedy.before(&ids)).await?;
        }
        let begun = self.shared.clock.now();
        let versions = if let [id] = ids[..] {
            vec![update(&self.node, &self.update, id).await?]
        } else if let Some(versions) = self.several(&ids).await? {
            versions
        } else {
            return Ok(());
        };
        self.acknowledged(&ids, &versions, begun);
        for remedy in Remedy::ALL {
            self.delete(remedy.after(&ids)).await?;
            if let Some(command) = remedy.later(&ids) {
                self.later.push_back((Instant::now() + self.shared.load.second_delete, command));
            }
        }
        Ok(())
    }

    /// Mostly one row, sometimes up to four; in order, so that writers do not wait for each other in a circle.
    fn choose(&mut self) -> Vec<u32> {
        let wanted = if self.dice.one_in(3) { 2 + self.dice.roll(3) } else { 1 };
        let mut ids: Vec<u32> = (0..wanted).map(|_| self.shared.choose(&mut self.dice)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Several rows at once; nothing when it was rolled back.
    async fn several(&mut self, ids: &[u32]) -> Task<Option<Vec<u32>>> {
        let transaction = self.node.transaction().await.map_err(failed)?;
        let mut versions = Vec::with_capacity(ids.len());
        for id in ids {
            versions.push(update(&transaction, &self.update, *id).await?);
        }
        if self.dice.one_in(4) {
            pause(self.dice.millis(30)).await;
        }
        if self.dice.one_in(8) {
            transaction.rollback().await.map_err(failed)?;
            return Ok(None);
        }
        transaction.commit().await.map_err(failed)?;
        Ok(Some(versions))
    }

    /// COMMIT was answered: from here on the new versions are due.
    fn acknowledged(&mut self, ids: &[u32], versions: &[u32], begun: Micros) {
        let acknowledged = self.shared.clock.now();
        for (id, version) in ids.iter().zip(versions) {
            self.writes.push(Write { key: *id, version: *version, begun, acknowledged });
            self.shared.acknowledged[*id as usize].fetch_max(*version, Ordering::Release);
        }
        self.shared.writes.fetch_add(ids.len() as u64, Ordering::Relaxed);
    }

    /// A deletion, unless it is lost.
    async fn delete(&mut self, command: Option<Command>) -> Task<()> {
        if let Some(command) = command
            && !self.dice.one_in(self.shared.load.lost)
        {
            ask(&mut self.cache, &[command]).await?;
        }
        Ok(())
    }
}

async fn update(session: &impl tokio_postgres::GenericClient, statement: &Statement, id: u32) -> Task<u32> {
    let row = session.query_one(statement, &[&i64::from(id)]).await.map_err(failed)?;
    let version: i64 = row.get(0);
    Ok(version as u32)
}
