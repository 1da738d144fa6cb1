//! A writer: raises the versions of rows, one or a few in a transaction, and goes on after every failure.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cachefence::position::Lsn;
use tokio::time::sleep;
use tokio_postgres::Client;

use super::reader::session;
use super::{AGAIN, Acknowledged, KEYS, Shared};
use crate::dice::Dice;
use crate::support::Fallible;

/// A pause between two transactions is below this, in milliseconds.
const PAUSE: u64 = 60;

/// One task that writes.
pub struct Writer {
    shared: Arc<Shared>,
    dice: Dice,
    session: Option<Client>,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, dice: Dice) -> Self {
        Self { shared, dice, session: None }
    }

    /// Writes until the load ends.
    pub async fn run(mut self) {
        while !self.shared.is_stopped() {
            sleep(self.dice.millis(PAUSE)).await;
            // Counted before it is looked whether one may begin: whoever has seen none afterwards sees none begin.
            self.shared.under_way.fetch_add(1, Ordering::SeqCst);
            let may_write = self.shared.writing.load(Ordering::SeqCst);
            let failed = may_write && self.transaction().await.is_err();
            self.shared.under_way.fetch_sub(1, Ordering::SeqCst);
            if !may_write {
                self.session = None;
            }
            if failed {
                // Whether it was committed nobody knows: nothing is due.
                self.session = None;
                sleep(AGAIN).await;
            }
        }
    }

    /// A hanging COMMIT is waited for as long as it hangs: to cancel it is to release it (strict). Unless the load ends.
    async fn transaction(&mut self) -> Fallible<()> {
        let before = self.shared.rebased.load(Ordering::SeqCst);
        let ids = self.choose();
        let mut session = match self.session.take() {
            Some(session) => session,
            None => session(self.shared.primary.load(Ordering::Acquire)).await?,
        };
        let shared = self.shared.clone();
        let ended = async {
            while !shared.is_stopped() {
                sleep(AGAIN).await;
            }
        };
        let (versions, lsn) = tokio::select! {
            written = write(&mut session, &ids) => written?,
            () = ended => return Ok(()),
        };
        if self.shared.rebased.load(Ordering::SeqCst) == before {
            for (key, version) in ids.into_iter().zip(versions) {
                self.shared.acknowledge(Acknowledged { key, version, lsn });
            }
        }
        self.session = Some(session);
        Ok(())
    }

    /// Mostly one row, sometimes up to four; in order, so that writers do not wait for each other in a circle.
    fn choose(&mut self) -> Vec<u32> {
        let wanted = if self.dice.one_in(3) { 2 + self.dice.roll(3) } else { 1 };
        let mut ids: Vec<u32> = (0..wanted).map(|_| choose(&mut self.dice)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// A key. Half of the choices are among a tenth of the keys.
pub fn choose(dice: &mut Dice) -> u32 {
    let keys = if dice.one_in(2) { KEYS / 10 } else { KEYS };
    1 + dice.roll(keys.into()) as u32
}

/// The new versions, and a position that is not before the end of the commit.
async fn write(session: &mut Client, ids: &[u32]) -> Fallible<(Vec<u32>, Lsn)> {
    let update = "UPDATE users SET version = version + 1 WHERE id = $1 RETURNING version";
    let transaction = session.transaction().await?;
    let mut versions = Vec::with_capacity(ids.len());
    for id in ids {
        let version: i64 = transaction.query_one(update, &[&i64::from(*id)]).await?.try_get(0)?;
        versions.push(u32::try_from(version)?);
    }
    transaction.commit().await?;
    let flushed = session.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await?;
    Ok((versions, flushed.try_get::<_, String>(0)?.parse()?))
}
