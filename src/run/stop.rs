//! The end in order: no new clients, what clients have begun is finished, what the feed has received is deleted and
//! confirmed, and the slot is free.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::feed::{FeedState, STOP_WITHIN, Strict};
use crate::fence::Fence;
use crate::lifecycle::notify::Notifier;
use crate::lifecycle::signals::Ending;
use crate::proxy::Threads;

/// What is stopped, and how.
pub(super) struct Stop {
    /// `proxy.shutdown_delay`
    pub delay: Duration,
    /// `proxy.shutdown_grace`
    pub grace: Duration,
    /// `postgres.application_name`
    pub application_name: String,
    /// For `/readyz`.
    pub stopping: Arc<AtomicBool>,
    pub notifier: Arc<Notifier>,
    pub threads: Arc<Threads>,
    /// The tasks of the ports, and what tells them.
    pub listening: JoinSet<()>,
    pub listen: watch::Sender<bool>,
    pub feed: Arc<FeedState>,
    pub fence: Arc<Fence>,
}

impl Stop {
    /// Stops, while `parts` (the feed, the deletions) go on: a commit that waits for its keys does not wait for clients.
    pub async fn run<T>(mut self, signal: Ending, mut parts: Pin<&mut impl Future<Output = T>>) {
        info!(signal = signal.name(), grace = ?self.grace, delay = ?self.delay, "stopping");
        self.stopping.store(true, Ordering::Relaxed);
        self.notifier.stopping(self.delay + self.grace);
        self.say_who_waits();
        let mut goes_on = true;
        let began = {
            let mut clients = pin!(self.end_clients());
            loop {
                tokio::select! {
                    began = &mut clients => break began,
                    // Nobody is left who deletes: clients get what `when_feed_lost` says, and finish all the same.
                    _ = &mut parts, if goes_on => goes_on = false,
                }
            }
        };
        if goes_on && self.feed.streaming.load(Ordering::Relaxed) {
            self.feed.stop();
            let left = self.grace.saturating_sub(began.elapsed()).min(STOP_WITHIN);
            if timeout(left, parts).await.is_err() {
                info!("Postgres has not let go of the slot in time: a successor waits until it has");
            }
        }
    }

    /// Lets clients go. Returns when the grace has begun.
    async fn end_clients(&mut self) -> Instant {
        sleep(self.delay).await;
        let began = Instant::now();
        self.listen.send_replace(false);
        // The files of unix sockets go with their listeners.
        while self.listening.join_next().await.is_some() {}
        let left = self.threads.drain(self.grace - STOP_WITHIN.min(self.grace / 2)).await;
        if left > 0 {
            let mut fills = Vec::new();
            self.fence.in_flight(&mut fills);
            warn!(
                clients = left,
                fills = fills.len(),
                "not finished within shutdown_grace: connections closed"
            );
        }
        began
    }

    /// In strict, what waits for this proxy waits for its successor.
    fn say_who_waits(&self) {
        let remedy =
            self.feed.strict().filter(|strict| strict.is_in_force()).and_then(Strict::remedy_without);
        if let Some(run) = remedy {
            warn!(
                run,
                "commits wait until a proxy called {:?} is back; to let them go for good, run this as a superuser",
                self.application_name
            );
        }
    }
}
