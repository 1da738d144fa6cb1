//! The proxy's connections on which fills travel, known to the deleting side so that it can end one.
//!
//! A fill that Redis has not answered stands in the way of the deletion of its key, and a fill whose
//! connection broke may still sit in Redis's socket buffer, to be executed *after* that deletion (fact F13).
//! Both end the same way: the connection is killed on Redis's side too, and the key is deleted again.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dashmap::DashMap;
use tokio::sync::{Notify, mpsc, oneshot};

use super::{Coalescing, Question, Strangers, Turns};
use crate::fence::{FillId, KeyHash};
use crate::guard::GuardedKey;

/// A connection to Redis that can carry fills.
#[derive(Debug)]
pub struct Upstream {
    number: u32,
    /// `CLIENT ID`; 0 until Redis has said it.
    redis_id: AtomicU64,
    doomed: AtomicBool,
    doom: Notify,
    /// Commands sent on it.
    sent: AtomicU64,
    /// Commands that Redis has answered.
    answered: AtomicU64,
    /// The last one waits in Redis, perhaps for ever, and fills nothing.
    resting: AtomicBool,
    /// The `run_id` of the Redis that it leads to, once that has been seen.
    run_id: Mutex<Option<String>>,
    /// Changes with what comes. What goes proves nothing: a path that leads nowhere takes it all the same.
    progress: AtomicU32,
    /// Clients share it, and something that was sent has not been answered.
    waiting: AtomicBool,
}

impl Upstream {
    /// A command is sent. Only the thread that it belongs to counts.
    pub fn count_sent(&self) {
        self.sent.store(self.sent.load(Ordering::Relaxed) + 1, Ordering::Release);
        self.resting.store(false, Ordering::Release);
    }

    /// Redis has answered one.
    pub fn count_answered(&self) {
        self.answered.store(self.answered.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// The command that was sent last waits in Redis, perhaps for ever, and fills nothing.
    pub fn rest(&self) {
        self.resting.store(true, Ordering::Release);
    }

    /// How many commands have been sent on it, without one that rests.
    pub(super) fn sent(&self) -> u64 {
        // In this order: one that begins to rest in between must not stand for one that was sent before.
        let resting = self.resting.load(Ordering::Acquire);
        self.sent.load(Ordering::Acquire).saturating_sub(u64::from(resting))
    }

    /// Whether Redis has answered so many.
    pub(super) fn has_answered(&self, sent: u64) -> bool {
        self.answered.load(Ordering::Acquire) >= sent
    }

    /// Its number: the high half of its fills' [`FillId`]s, and the last part of its name in `CLIENT LIST`.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Remembers what Redis calls it.
    pub fn set_redis_id(&self, id: u64) {
        self.redis_id.store(id, Ordering::Release);
    }

    /// What Redis calls it, if it has said so.
    pub fn redis_id(&self) -> Option<u64> {
        Some(self.redis_id.load(Ordering::Acquire)).filter(|id| *id != 0)
    }

    /// It has been seen in this Redis.
    pub(super) fn leads_to(&self, run_id: &str) {
        *self.run_id.lock().unwrap_or_else(PoisonError::into_inner) = Some(run_id.to_owned());
    }

    fn leads_elsewhere(&self, than: &str) -> bool {
        self.run_id.lock().unwrap_or_else(PoisonError::into_inner).as_deref().is_some_and(|id| id != than)
    }

    /// So many times something came. `waiting`: clients share it, and wait for Redis.
    pub fn moved(&self, times: u32, waiting: bool) {
        // Its owner alone writes these.
        self.progress.store(self.progress.load(Ordering::Relaxed).wrapping_add(times), Ordering::Relaxed);
        self.waiting.store(waiting, Ordering::Relaxed);
    }

    /// How far it has got, if clients share it and wait for Redis.
    pub(super) fn waits(&self) -> Option<u32> {
        self.waiting.load(Ordering::Relaxed).then(|| self.progress.load(Ordering::Relaxed))
    }

    /// Asks the connection's owner to abandon it.
    pub fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
        self.doom.notify_one();
    }

    /// Waits until somebody asks for the end of this connection.
    pub async fn doomed(&self) {
        while !self.doomed.load(Ordering::Acquire) {
            self.doom.notified().await;
        }
    }
}

/// Fills that have to be ended from outside their connection.
#[derive(Debug)]
pub struct Abandoned {
    /// What may have become of them.
    pub fate: Fate,
    /// The fills.
    pub fills: Vec<AbandonedFill>,
}

/// What may have become of an abandoned fill.
#[derive(Debug)]
pub enum Fate {
    /// Nothing was sent on its connection.
    NeverSent,
    /// Its connection is gone on this side, and may live on in Redis with the fill in its buffer.
    Unknown {
        /// What Redis called the connection.
        redis_id: u64,
        /// Its name in `CLIENT LIST`.
        name: String,
    },
    /// It was done, but what should have come after it (its cap, the deletion of a torn value) was refused: the
    /// client's user lacks the right, perhaps. Or an EXPIRE met a capped fill, and nobody knows which came first.
    Unfinished,
}

/// A fill that nobody knows the fate of.
#[derive(Debug)]
pub struct AbandonedFill {
    /// Its key's hash.
    pub hash: KeyHash,
    /// Its number.
    pub id: FillId,
    /// Its key's db.
    pub db: u32,
    /// Its key.
    pub key: Box<[u8]>,
    /// If Redis answers `OK`, it has taken the place of whatever was there.
    pub replaces: bool,
}

impl AbandonedFill {
    /// Of a guarded key.
    pub fn new(id: FillId, key: &[u8], guarded: &GuardedKey) -> Self {
        Self { hash: guarded.hash, id, db: guarded.db, key: key.into(), replaces: false }
    }

    /// The same, of a command that replaces the key's value or says that it does not.
    pub fn replacing(self, replaces: bool) -> Self {
        Self { replaces, ..self }
    }
}

/// All connections that can carry fills.
#[derive(Debug)]
pub struct Upstreams {
    /// The beginning of their names in `CLIENT LIST`.
    name: String,
    next: AtomicU32,
    open: DashMap<u32, Arc<Upstream>>,
    /// Woken when a fill ends that somebody waits for.
    pub ended: Notify,
    /// The readers that wait for somebody else's fill.
    pub coalescing: Coalescing,
    /// Has every thread say that what it had in its hands is sent.
    pub turns: Turns,
    /// What Redis makes of those that have not logged in.
    pub strangers: Arc<Strangers>,
    /// Told when a connection ends that was not given up by us: Redis may have been restarted.
    pub lost: Notify,
    /// Told when new connections lead to another Redis than the worker's.
    pub moved: Notify,
    /// The `run_id` of that one.
    elsewhere: Mutex<String>,
    abandoned: mpsc::UnboundedSender<Abandoned>,
    questions: mpsc::UnboundedSender<Question>,
}

/// What is handed over by the connections.
#[derive(Debug)]
pub struct Handed {
    /// Fills to be ended.
    pub abandoned: mpsc::UnboundedReceiver<Abandoned>,
    /// Connections of which it has to be seen where they lead.
    pub questions: mpsc::UnboundedReceiver<Question>,
}

impl Upstreams {
    /// None yet. `name` is that of this incarnation. What they hand over is not bounded by the channels, but by the
    /// fills that clients have in flight, and by the connections.
    pub fn new(name: String) -> (Self, Handed) {
        let (abandoned, of_fills) = mpsc::unbounded_channel();
        let (questions, of_connections) = mpsc::unbounded_channel();
        (
            Self {
                name,
                next: AtomicU32::new(1),
                open: DashMap::new(),
                ended: Notify::new(),
                lost: Notify::new(),
                turns: Turns::default(),
                moved: Notify::new(),
                elsewhere: Mutex::default(),
                coalescing: Coalescing::default(),
                strangers: Arc::default(),
                abandoned,
                questions,
            },
            Handed { abandoned: of_fills, questions: of_connections },
        )
    }

    /// Registers a new connection.
    pub fn register(&self) -> Arc<Upstream> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let upstream = Arc::new(Upstream {
            number,
            redis_id: AtomicU64::new(0),
            doomed: AtomicBool::new(false),
            doom: Notify::new(),
            sent: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            resting: AtomicBool::new(false),
            run_id: Mutex::default(),
            progress: AtomicU32::new(0),
            waiting: AtomicBool::new(false),
        });
        self.open.insert(number, upstream.clone());
        upstream
    }

    /// The name that the connection must have in `CLIENT LIST` before a fill is sent on it: a successor
    /// finds its predecessors by it.
    pub fn name(&self, upstream: &Upstream) -> String {
        format!("{}:{}", self.name, upstream.number)
    }

    /// Returns when the connection has been seen in the Redis that deletions go to.
    ///
    /// # Errors
    /// When it leads to another one, or that cannot be found out.
    pub async fn verify(&self, upstream: &Arc<Upstream>) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        // Nobody looks only while the process ends.
        let _ = self.questions.send(Question { upstream: upstream.clone(), answer });
        answered.await.unwrap_or_else(|_| Err("the proxy ends".into()))
    }

    /// A connection leads to this Redis, which may not be that of the worker.
    pub(super) fn elsewhere(&self, run_id: &str) {
        run_id.clone_into(&mut self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner));
        self.moved.notify_one();
    }

    /// Whether the last that was seen elsewhere was in another Redis than this.
    pub(super) fn is_elsewhere(&self, than: &str) -> bool {
        *self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner) != than
    }

    /// Asks for the end of those that lead to another Redis.
    pub(super) fn doom_elsewhere(&self, than: &str) {
        for entry in &self.open {
            if entry.value().leads_elsewhere(than) {
                entry.value().doom();
            }
        }
    }

    /// Forgets a connection that is closed on this side, and hands over its fills that were not answered.
    pub fn close(&self, upstream: &Upstream, fills: Vec<AbandonedFill>) {
        self.open.remove(&upstream.number);
        let fate = match upstream.redis_id() {
            Some(redis_id) => Fate::Unknown { redis_id, name: self.name(upstream) },
            None => Fate::NeverSent,
        };
        self.abandon(fate, fills);
    }

    /// Hands over fills to be ended.
    pub fn abandon(&self, fate: Fate, fills: Vec<AbandonedFill>) {
        if !fills.is_empty() {
            // Nobody receives only while the process ends: nothing will be confirmed then.
            let _ = self.abandoned.send(Abandoned { fate, fills });
        }
    }

    /// Asks for the end of the connection that carries a fill.
    pub fn doom(&self, fill: FillId) {
        let upstream = self.open.get(&((fill.0 >> 32) as u32)).map(|entry| entry.value().clone());
        if let Some(upstream) = upstream {
            upstream.doom();
        }
    }

    /// Asks for the end of every connection: the Redis they lead to has been replaced.
    pub fn doom_all(&self) {
        for entry in &self.open {
            entry.value().doom();
        }
    }

    /// Those that are open.
    pub(super) fn all(&self) -> Vec<Arc<Upstream>> {
        self.open.iter().map(|entry| entry.value().clone()).collect()
    }

    /// Whether it is still open on this side.
    pub(super) fn is_open(&self, upstream: &Upstream) -> bool {
        self.open.contains_key(&upstream.number)
    }

    /// Whether a connection of this name was one of these, and is closed on this side.
    pub(super) fn was_open(&self, name: &str) -> bool {
        let number = name.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix(':')?.parse().ok());
        number.is_some_and(|number: u32| !self.open.contains_key(&number))
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}
