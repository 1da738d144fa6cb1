//! The witness: makes sure that a connection of clients leads to the Redis that deletions go to.
//!
//! Behind one address there can be another Redis from one moment to the next, and what is connected stays where it is.
//! Its data is as old as its replication was. So a connection that is opened carries nothing before the witness has seen
//! it, by its id and its name, in the Redis that the worker has brought level. If it is in another one, the worker is sent
//! after it, and the client told to try again.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::debug;

use super::connection::text;
use super::reaper::field;
use super::{CacheError, CacheState, Connection, Endpoint, Upstream, Upstreams};

/// How often the connection is looked after while nobody asks.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// Connections that are looked for at a time, at most.
const MAX_BATCH: usize = 128;

/// Where does this connection lead?
#[derive(Debug)]
pub struct Question {
    /// The connection.
    pub upstream: Arc<Upstream>,
    /// Told when it leads where deletions go; if not, why not.
    pub answer: oneshot::Sender<Result<(), String>>,
}

/// A Redis, by its `run_id`, and the names of the connections that it has.
type Listed = (String, HashSet<String>);

/// Looks for connections in Redis.
#[derive(Debug)]
pub struct Witness {
    /// Where Redis is.
    pub address: Endpoint,
    /// The name of this incarnation.
    pub name: String,
    /// Whose connections they are.
    pub upstreams: Arc<Upstreams>,
    /// Where deletions go.
    pub state: Arc<CacheState>,
    /// What is to be found out.
    pub questions: mpsc::UnboundedReceiver<Question>,
}

impl Witness {
    /// Works until the process ends.
    pub async fn run(mut self) {
        let (mut connection, mut batch) = (None, Vec::new());
        loop {
            match timeout(LOOK_AFTER, self.questions.recv_many(&mut batch, MAX_BATCH)).await {
                Ok(0) => return,
                Ok(_) => {
                    // Whoever has given up meanwhile has closed his: looked for in vain, it would cost another look.
                    batch.retain(|question| !question.answer.is_closed());
                    let mut listed = self.list(&mut connection, &batch).await;
                    if !self.has_all(&listed, &batch) {
                        // It may have been lost while nobody asked, or lead to where new ones do not lead any more.
                        connection = None;
                        listed = self.list(&mut connection, &batch).await;
                    }
                    self.answer(listed, &mut batch);
                }
                // So that it is there when Redis has no place for another one.
                Err(_) => drop(self.list(&mut connection, &[]).await),
            }
        }
    }

    /// Which Redis this is, and what it says of the connections. One that fails is given up.
    async fn list(
        &self,
        connection: &mut Option<Connection>,
        questions: &[Question],
    ) -> Result<Listed, CacheError> {
        let mut open = match connection.take() {
            Some(open) => open,
            None => Connection::open(&self.address, &self.name).await?,
        };
        let ids: Vec<String> =
            questions.iter().map(|question| question.upstream.redis_id().unwrap_or(0).to_string()).collect();
        let mut command: Vec<&[u8]> = vec![b"CLIENT", b"LIST", b"ID"];
        command.extend(ids.iter().map(String::as_bytes));
        let reply = if ids.is_empty() { open.call(&[b"PING"]).await? } else { open.call(&command).await? };
        let lines = text(&reply).unwrap_or_default().lines();
        let names = lines.filter_map(|line| field(line, "name").map(str::to_owned)).collect();
        let run_id = open.run_id.clone();
        *connection = Some(open);
        Ok((run_id, names))
    }

    fn has_all(&self, listed: &Result<Listed, CacheError>, questions: &[Question]) -> bool {
        let Ok((_, names)) = listed else { return false };
        questions.iter().all(|question| self.has(names, &question.upstream))
    }

    fn has(&self, names: &HashSet<String>, upstream: &Upstream) -> bool {
        names.contains(&self.upstreams.name(upstream))
    }

    fn answer(&self, listed: Result<Listed, CacheError>, batch: &mut Vec<Question>) {
        for Question { upstream, answer } in batch.drain(..) {
            let found = match &listed {
                Ok((run_id, names)) => self.judge(&upstream, run_id, names),
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = &found {
                debug!(connection = upstream.number(), why, "a connection of clients is not taken");
            }
            // Nobody waits if it was closed meanwhile.
            let _ = answer.send(found);
        }
    }

    fn judge(&self, upstream: &Upstream, run_id: &str, names: &HashSet<String>) -> Result<(), String> {
        if !self.has(names, upstream) {
            // Gone already, or the address has moved once more.
            self.upstreams.elsewhere(run_id);
            return Err("it leads to another Redis than other connections do".into());
        }
        // Before looking where deletions go: the worker looks at these after it has said that.
        upstream.leads_to(run_id);
        let level = self.state.run_id.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match level {
            Some(level) if level != run_id => {
                self.upstreams.elsewhere(run_id);
                Err("it leads to another Redis than before, which is not level yet".into())
            }
            // If the worker has none, nothing counts as level until it has.
            _ => Ok(()),
        }
    }
}
