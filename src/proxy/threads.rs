//! Runtime threads: each serves its own clients with its own links.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, interval, sleep};
use tracing::{debug, warn};

use super::client::Client;
use super::drain::Stage;
use super::gate::Gate;
use super::greeting::{Accepted, Greeting};
use super::route::Links;
use super::session::Session;
use crate::cache::Turn;
use crate::config::Upstream;
use crate::fence::ConnId;
use crate::lifecycle::panics::outlast;

/// How often connections that nobody uses are looked for.
const TIDY_INTERVAL: Duration = Duration::from_secs(5);

/// How often a thread shows that it is not stuck.
const BEAT: Duration = Duration::from_millis(500);
/// How often it is looked who is still there while the proxy stops.
const LOOK: Duration = Duration::from_millis(10);
/// What it takes to close a connection, when all is over.
const CLOSING: Duration = Duration::from_millis(200);

struct Worker {
    /// Not bounded by the channel, but by `max_clients`.
    clients: mpsc::UnboundedSender<Accepted>,
    shown: Arc<Shown>,
}

/// What a thread shows to the others.
struct Shown {
    /// Clients that were given to it and are not closed.
    serving: AtomicUsize,
    /// Those of them that are busy with something that has an end. Looked at only while the proxy stops.
    busy: AtomicUsize,
    /// Goes up as long as it is not stuck.
    beats: AtomicU64,
}

/// The threads that serve clients.
pub struct Threads {
    workers: Vec<Worker>,
    greeting: Arc<Greeting>,
    stage: watch::Sender<Stage>,
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
        let stage = watch::Sender::new(Stage::Serving);
        let worker = |n| {
            let (clients, mut accepted) = mpsc::unbounded_channel();
            let mut turns = gate.upstreams.turns.join();
            // Not known yet who is busy: nobody may be taken to be idle.
            let busy = AtomicUsize::new(usize::MAX);
            let shown = Arc::new(Shown { serving: AtomicUsize::new(0), busy, beats: AtomicU64::new(0) });
            let thread = Thread {
                gate: gate.clone(),
                greeting: greeting.clone(),
                mode,
                next: next.clone(),
                shown: shown.clone(),
                stage: stage.subscribe(),
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let serve = move || {
                outlast(|| LocalSet::new().block_on(&runtime, thread.run(&mut accepted, &mut turns)));
            };
            thread::Builder::new().name(format!("clients-{n}")).spawn(serve)?;
            Ok(Worker { clients, shown })
        };
        let workers = (0..count.max(1)).map(worker).collect::<io::Result<_>>()?;
        Ok(Self { workers, greeting, stage })
    }

    /// How clients are received.
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// How many clients are being served.
    pub fn clients(&self) -> usize {
        self.workers.iter().map(|worker| worker.shown.serving.load(Ordering::Relaxed)).sum()
    }

    /// A number for each thread that goes up as long as it is not stuck, at least every second.
    pub fn beats(&self) -> Vec<u64> {
        self.workers.iter().map(|worker| worker.shown.beats.load(Ordering::Relaxed)).collect()
    }

    /// Lets every client finish what it has begun, for so long at most, and then closes those that are left. Returns how many
    /// those were.
    pub async fn drain(&self, patience: Duration) -> usize {
        let began = Instant::now();
        self.stage.send_replace(Stage::Finishing);
        while self.clients() > 0 && began.elapsed() < patience {
            let is_done = self.workers.iter().all(|worker| worker.shown.busy.load(Ordering::Relaxed) == 0);
            let is_late = began.elapsed() > patience / 2;
            if (is_done || is_late) && *self.stage.borrow() == Stage::Finishing {
                self.stage.send_replace(Stage::Leaving);
            }
            sleep(LOOK).await;
        }
        let left = self.clients();
        self.stage.send_replace(Stage::Over);
        let closing = Instant::now();
        while self.clients() > 0 && closing.elapsed() < CLOSING {
            sleep(LOOK).await;
        }
        left
    }

    /// Gives a connection to the thread with the fewest.
    pub fn serve(&self, accepted: Accepted) {
        let idlest = self.workers.iter().min_by_key(|worker| worker.shown.serving.load(Ordering::Relaxed));
        if let Some(worker) = idlest {
            worker.shown.serving.fetch_add(1, Ordering::Relaxed);
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
    shown: Arc<Shown>,
    stage: watch::Receiver<Stage>,
}

impl Thread {
    async fn run(
        &self,
        accepted: &mut mpsc::UnboundedReceiver<Accepted>,
        turns: &mut mpsc::UnboundedReceiver<Turn>,
    ) {
        let links = Rc::new(Links::new(self.gate.clone(), self.mode));
        let mut stage = self.stage.clone();
        links.served.turn(*stage.borrow_and_update());
        let mut tidying = interval(TIDY_INTERVAL);
        let mut beating = interval(BEAT);
        let mut looking = interval(LOOK);
        loop {
            tokio::select! {
                accepted = accepted.recv() => match accepted {
                    Some(accepted) => self.serve(accepted, &links),
                    None => return,
                },
                // No session is in the middle of a command while this task runs.
                Some(turn) = turns.recv() => drop(turn.send(())),
                Ok(()) = stage.changed() => links.served.turn(*stage.borrow_and_update()),
                _ = looking.tick(), if links.served.stage() > Stage::Serving => {
                    self.shown.busy.store(links.served.busy(), Ordering::Relaxed);
                }
                _ = beating.tick() => { self.shown.beats.fetch_add(1, Ordering::Relaxed); }
                _ = tidying.tick() => links.tidy(),
            }
        }
    }

    fn serve(&self, accepted: Accepted, links: &Rc<Links>) {
        let serving = Serving { shown: self.shown.clone(), gate: self.gate.clone() };
        self.gate.metrics.clients.inc();
        let id = ConnId(self.next.fetch_add(1, Ordering::Relaxed));
        let (gate, greeting, links) = (self.gate.clone(), self.greeting.clone(), links.clone());
        let mut stage = self.stage.clone();
        let running = self.gate.metrics.running();
        // Nobody else waits while a client is received.
        spawn_local(async move {
            let _running = running;
            let from = accepted.from();
            let received = tokio::select! {
                biased;
                received = greeting.receive(accepted) => received,
                // It has sent no command.
                _ = stage.wait_for(|stage| *stage > Stage::Serving) => return,
            };
            drop(stage);
            let (stream, address) = match received {
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

/// Counts a client until its socket is closed, however that happens.
struct Serving {
    shown: Arc<Shown>,
    gate: Arc<Gate>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.shown.serving.fetch_sub(1, Ordering::Relaxed);
        self.gate.metrics.clients.dec();
    }
}
