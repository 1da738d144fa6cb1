//! Runtime threads: each serves its own clients with its own links.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tracing::{debug, warn};

use super::client::Client;
use super::gate::Gate;
use super::greeting::{Accepted, Greeting};
use super::route::Links;
use super::session::Session;
use crate::cache::Turn;
use crate::config::Upstream;
use crate::fence::ConnId;

/// How often connections that nobody uses are looked for.
const TIDY_INTERVAL: Duration = Duration::from_secs(5);

struct Worker {
    /// Not bounded by the channel, but by `max_clients`.
    clients: mpsc::UnboundedSender<Accepted>,
    serving: Arc<AtomicUsize>,
}

/// The threads that serve clients.
pub struct Threads {
    workers: Vec<Worker>,
    greeting: Arc<Greeting>,
}

impl Threads {
    /// Starts so many threads.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(
        gate: &Arc<Gate>,
        greeting: Arc<Greeting>,
        mode: Upstream,
        count: usize,
    ) -> io::Result<Self> {
        // 0 is the client of links that introduce themselves.
        let next = Arc::new(AtomicU64::new(1));
        let worker = |n| {
            let (clients, accepted) = mpsc::unbounded_channel();
            let turns = gate.upstreams.turns.join();
            let serving = Arc::new(AtomicUsize::new(0));
            let thread = Thread {
                gate: gate.clone(),
                greeting: greeting.clone(),
                mode,
                next: next.clone(),
                serving: serving.clone(),
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            thread::Builder::new()
                .name(format!("clients-{n}"))
                .spawn(move || LocalSet::new().block_on(&runtime, thread.run(accepted, turns)))?;
            Ok(Worker { clients, serving })
        };
        Ok(Self { workers: (0..count.max(1)).map(worker).collect::<io::Result<_>>()?, greeting })
    }

    /// How clients are received.
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// How many clients are being served.
    pub fn clients(&self) -> usize {
        self.workers.iter().map(|worker| worker.serving.load(Ordering::Relaxed)).sum()
    }

    /// Gives a connection to the thread with the fewest.
    pub fn serve(&self, accepted: Accepted) {
        let idlest = self.workers.iter().min_by_key(|worker| worker.serving.load(Ordering::Relaxed));
        if let Some(worker) = idlest {
            worker.serving.fetch_add(1, Ordering::Relaxed);
            if worker.clients.send(accepted).is_err() {
                warn!("a thread that serves clients is gone");
            }
        }
    }
}

struct Thread {
    gate: Arc<Gate>,
    greeting: Arc<Greeting>,
    mode: Upstream,
    next: Arc<AtomicU64>,
    serving: Arc<AtomicUsize>,
}

impl Thread {
    async fn run(
        self,
        mut accepted: mpsc::UnboundedReceiver<Accepted>,
        mut turns: mpsc::UnboundedReceiver<Turn>,
    ) {
        let links = Rc::new(Links::new(self.gate.clone(), self.mode));
        let mut tidying = tokio::time::interval(TIDY_INTERVAL);
        loop {
            let accepted = tokio::select! {
                accepted = accepted.recv() => accepted,
                // No session is in the middle of a command while this task runs.
                Some(turn) = turns.recv() => {
                    let _ = turn.send(());
                    continue;
                }
                _ = tidying.tick() => {
                    links.tidy();
                    continue;
                }
            };
            let Some(accepted) = accepted else { return };
            let serving = Serving { count: self.serving.clone(), gate: self.gate.clone() };
            self.gate.metrics.clients.inc();
            let id = ConnId(self.next.fetch_add(1, Ordering::Relaxed));
            let (gate, greeting, links) = (self.gate.clone(), self.greeting.clone(), links.clone());
            // Nobody else waits while a client is received.
            spawn_local(async move {
                let from = accepted.from();
                let (stream, address) = match greeting.receive(accepted).await {
                    Ok(received) => received,
                    Err(error) => return debug!(client = %from, %error, "client not received"),
                };
                debug!(client = %address, "client connected");
                let client = Rc::new(Client::new(id, gate.upstreams.strangers.times()));
                let session = Session::new(gate, links, client, stream.holding(serving));
                match session.run().await {
                    Ok(()) => debug!(client = %address, "client gone"),
                    Err(error) => debug!(client = %address, %error, "client lost"),
                }
            });
        }
    }
}

/// Counts a client until its socket is closed, however that happens.
struct Serving {
    count: Arc<AtomicUsize>,
    gate: Arc<Gate>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.gate.metrics.clients.dec();
    }
}
