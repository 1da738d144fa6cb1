//! Waits until nothing is under way any more that clients sent before some moment.
//!
//! Fills of guarded keys are known while they are in flight, and a deletion waits for them. Those of a key that gets its guard
//! only now are not: a client's SET may be in a thread's hands, in a buffer, or in Redis's socket, to be executed after the new
//! guard's keys have been deleted. So all commands of before are waited for, whatever they are. Each thread is asked for a turn:
//! when it answers, all that it had in its hands is on a connection. And then each connection has to have answered all that
//! it carried.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::reaper::{kill, kill_closed};
use super::{CacheError, Connection, Upstream, Upstreams};

/// Between looks at the connections.
const PACE: Duration = Duration::from_millis(2);

/// A thread's turn: it answers between two of its clients.
pub type Turn = oneshot::Sender<()>;

/// The threads that serve clients.
#[derive(Debug, Default)]
pub struct Turns(Mutex<Vec<mpsc::UnboundedSender<Turn>>>);

impl Turns {
    /// A thread joins, and has to answer each turn that it is given. It must never keep a command in its hands that has been
    /// matched with guards, and not sent, when it does.
    pub fn join(&self) -> mpsc::UnboundedReceiver<Turn> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    async fn take(&self) {
        let threads = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let turns: Vec<_> = threads
            .iter()
            .map(|thread| {
                let (turn, taken) = oneshot::channel();
                // One that is gone serves nobody.
                let _ = thread.send(turn);
                taken
            })
            .collect();
        for taken in turns {
            let _ = taken.await;
        }
    }
}

/// Returns when Redis has executed all that clients have sent until now, or never will: a connection that does not answer
/// within `patience` is ended, here and there.
pub(super) async fn pass(
    upstreams: &Upstreams,
    connection: &mut Connection,
    patience: Duration,
) -> Result<(), CacheError> {
    upstreams.turns.take().await;
    let mut waiting: Vec<(Arc<Upstream>, u64)> =
        upstreams.all().into_iter().map(|upstream| (upstream.clone(), upstream.sent())).collect();
    let deadline = Instant::now() + patience;
    loop {
        waiting.retain(|(upstream, sent)| {
            if upstream.has_answered(*sent) {
                return false;
            }
            upstreams.is_open(upstream)
        });
        if waiting.is_empty() || Instant::now() >= deadline {
            break;
        }
        sleep(PACE).await;
    }
    if !waiting.is_empty() {
        let connections = waiting.len();
        warn!(connections, "commands not answered within drain_timeout: ending their connections");
    }
    for (upstream, _) in waiting {
        upstream.doom();
        if let Some(id) = upstream.redis_id() {
            kill(connection, id, &upstreams.name(&upstream)).await?;
        }
    }
    // What those have sent that are closed here, be it for long, may still be in Redis's buffers (fact F13).
    kill_closed(connection, upstreams).await
}
