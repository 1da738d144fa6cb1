//! The reaper: ends fills whose connection broke, and upstream connections of dead predecessors.
//!
//! A closed socket does not take its bytes with it. What our side wrote may still sit in Redis's socket
//! buffer, and be executed after the key's deletion (fact F13; seen 20 times of 20 with a busy Redis). Redis
//! forgets them only when the connection is gone on its side: so it is killed there, seen gone, and the key
//! is deleted after that.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::connection::text;
use super::{Abandoned, CacheError, CacheState, Connection, Endpoint, Fate, Upstreams};
use crate::fence::Fence;

/// Ends abandoned fills, one connection's after another's.
#[derive(Debug)]
pub struct Reaper {
    /// Where Redis is.
    pub address: Endpoint,
    /// The name of this incarnation.
    pub name: String,
    /// Where the fills are in flight.
    pub fence: Arc<Fence>,
    /// Who waits for their end.
    pub upstreams: Arc<Upstreams>,
    /// Who wants to know.
    pub state: Arc<CacheState>,
    /// What was abandoned.
    pub abandoned: mpsc::UnboundedReceiver<Abandoned>,
}

const RETRY: Duration = Duration::from_millis(200);
/// How often the connection is looked after while nothing is to be ended.
const LOOK_AFTER: Duration = Duration::from_secs(1);

impl Reaper {
    /// Works until the process ends.
    pub async fn run(mut self) {
        let mut connection = None;
        self.look_after(&mut connection).await;
        loop {
            let abandoned = match timeout(LOOK_AFTER, self.abandoned.recv()).await {
                Ok(Some(abandoned)) => abandoned,
                Ok(None) => return,
                Err(_) => {
                    self.look_after(&mut connection).await;
                    continue;
                }
            };
            while let Err(error) = self.reap(&mut connection, &abandoned).await {
                self.failed(&error, abandoned.fills.len());
                connection = None;
                sleep(RETRY).await;
            }
            *self.state.unreaped.lock().unwrap_or_else(PoisonError::into_inner) = None;
            for fill in &abandoned.fills {
                self.fence.finish(fill.hash, fill.id);
                self.upstreams.coalescing.ended(fill.hash);
            }
            self.upstreams.ended.notify_waiters();
        }
    }

    /// The connection is made before it is needed: a Redis that has no place for more connections is full of those that
    /// have to be ended.
    async fn look_after(&self, connection: &mut Option<Connection>) {
        let looked = match connection.take() {
            Some(mut open) => open.call(&[b"PING"]).await.map(|_| open),
            None => Connection::open(&self.address, &self.name).await,
        };
        // The worker says what is wrong with Redis.
        *connection = looked.inspect_err(|error| debug!(%error, "no connection to end fills by")).ok();
    }

    fn failed(&self, error: &CacheError, fills: usize) {
        let error = error.to_string();
        let mut last = self.state.unreaped.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_deref() != Some(&error) {
            warn!(error, fills, "cannot end abandoned fills yet; trying again");
            *last = Some(error);
        }
    }

    async fn reap(
        &self,
        connection: &mut Option<Connection>,
        abandoned: &Abandoned,
    ) -> Result<(), CacheError> {
        if let Fate::NeverSent = abandoned.fate {
            return Ok(());
        }
        let connection = match connection {
            Some(connection) => connection,
            none => none.insert(Connection::open(&self.address, &self.name).await?),
        };
        if let Fate::Unknown { redis_id, name } = &abandoned.fate {
            kill(connection, *redis_id, name).await?;
        }
        // Those of one command, or of one connection, are in few dbs.
        for fills in abandoned.fills.chunk_by(|a, b| a.db == b.db) {
            connection.select(fills[0].db).await?;
            for keys in fills.chunks(512) {
                let mut unlink: Vec<&[u8]> = vec![b"UNLINK"];
                unlink.extend(keys.iter().map(|fill| &*fill.key));
                connection.call(&unlink).await?;
            }
        }
        info!(fate = ?abandoned.fate, fills = abandoned.fills.len(), "abandoned fills ended, keys deleted");
        Ok(())
    }
}

/// Kills a connection on Redis's side, and returns when it is seen gone.
///
/// By id *and* name: ids begin at 1 again when Redis restarts, and another client's must not be hit.
pub(super) async fn kill(connection: &mut Connection, id: u64, name: &str) -> Result<(), CacheError> {
    let id = id.to_string();
    loop {
        let listed = connection.call(&[b"CLIENT", b"LIST", b"ID", id.as_bytes()]).await?;
        let listed = text(&listed).unwrap_or_default().lines().any(|line| field(line, "name") == Some(name));
        if !listed {
            return Ok(());
        }
        kill_id(connection, &id).await?;
    }
}

/// Kills the connections of earlier incarnations that share our slot, and returns when they are seen gone.
///
/// # Errors
/// When Redis fails or refuses.
pub(super) async fn kill_predecessors(
    connection: &mut Connection,
    slot_name: &str,
    own: &str,
) -> Result<(), CacheError> {
    loop {
        let reply = connection.call(&[b"CLIENT", b"LIST"]).await?;
        let list = text(&reply).unwrap_or_default();
        let predecessor = |line: &&str| {
            let name = field(line, "name").unwrap_or_default();
            let of_slot = name.strip_prefix(slot_name).is_some_and(|rest| rest.starts_with(':'));
            of_slot && name.strip_prefix(own).is_none_or(|rest| !rest.is_empty() && !rest.starts_with(':'))
        };
        let ids: Vec<String> = list
            .lines()
            .filter(predecessor)
            .filter_map(|line| field(line, "id").map(str::to_owned))
            .collect();
        if ids.is_empty() {
            return Ok(());
        }
        info!(connections = ids.len(), "closing the connections of an earlier cachefence with this slot");
        for id in ids {
            kill_id(connection, &id).await?;
        }
    }
}

/// Kills the connections that are closed on our side and live on in Redis, with what they have sent perhaps, and returns when
/// they are seen gone.
pub(super) async fn kill_closed(
    connection: &mut Connection,
    upstreams: &Upstreams,
) -> Result<(), CacheError> {
    loop {
        let reply = connection.call(&[b"CLIENT", b"LIST"]).await?;
        let list = text(&reply).unwrap_or_default();
        // Looked at after the list: one that is in it was registered before it was opened.
        let closed = |line: &&str| field(line, "name").is_some_and(|name| upstreams.was_open(name));
        let ids: Vec<&str> = list.lines().filter(closed).filter_map(|line| field(line, "id")).collect();
        if ids.is_empty() {
            return Ok(());
        }
        for id in ids {
            kill_id(connection, id).await?;
        }
    }
}

async fn kill_id(connection: &mut Connection, id: &str) -> Result<(), CacheError> {
    // How many were killed: 0 if it went by itself, which the next look will tell.
    connection.call(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()]).await.map(drop)
}

/// A field of a line of `CLIENT LIST`: `id=3 addr=... name=...`.
pub(super) fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_client_list_is_read() {
        let line = "id=3 addr=127.0.0.1:5 laddr=127.0.0.1:6 fd=8 name=cachefence:s:01:7 age=0";
        assert_eq!(field(line, "name"), Some("cachefence:s:01:7"));
        assert_eq!(field(line, "id"), Some("3"));
        assert_eq!(field(line, "addr"), Some("127.0.0.1:5"));
        assert_eq!(field(line, "none"), None);
    }
}
