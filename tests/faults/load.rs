//! The load: cache-aside applications, that go on through every fault and judge each hit as it comes.
//!
//! Writers raise the version of a row, and remember for each key which version was acknowledged. In strict, that is what a
//! read that begins later must not be older than. In bounded it is the version whose commit the proxy has reported as
//! applied before the read began: nothing older may be read again, whatever happens to whom. How long the way
//! from the one to the other takes is the feed's lag, which is measured elsewhere (`docs/consistency.md`).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cachefence::config::Contract;
use cachefence::demo::servers::wait_until;
use cachefence::position::Lsn;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::dice::Dice;
use crate::stand::Stand;
use crate::support::{Fallible, Outcome, PATIENCE};

mod applied;
mod reader;
mod writer;

use reader::{Pool, Reader, Style};
use writer::Writer;

/// Rows that are read and written, from 1 on: few, so that every key is met often.
pub const KEYS: u32 = 60;
/// How long entries live: longer than any fault, so that what is stale would stay.
const TTL: Duration = Duration::from_secs(60);
const READERS: u64 = 6;
const WRITERS: u64 = 3;
/// Applications give up on what takes so long, and on the connection that it took so long on.
const GIVE_UP: Duration = Duration::from_secs(3);
/// A connection that failed is tried again after that.
const AGAIN: Duration = Duration::from_millis(20);
/// Hits and fills that have to be seen before and after each fault.
const WARM: (u64, u64) = (200, 20);

/// A commit that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    key: u32,
    version: u32,
    /// Not before the end of its commit record.
    lsn: Lsn,
}

/// What has happened so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Hits, each of which was judged.
    pub hits: AtomicU64,
    /// Those that were older than the contract allows.
    pub stale: AtomicU64,
    /// Fills that were answered with OK.
    pub fills: AtomicU64,
    /// Commits that were acknowledged.
    pub writes: AtomicU64,
    /// Error replies and failed connections of readers.
    pub errors: AtomicU64,
}

/// What all tasks share.
pub struct Shared {
    contract: Contract,
    /// Where the applications' servers are: `host:port` of the proxy and of its admin port, ports of the others.
    pub proxy: Mutex<String>,
    pub admin: Mutex<String>,
    pub primary: AtomicU16,
    pub replica: AtomicU16,
    pub counts: Counts,
    /// What the first stale hit was.
    example: Mutex<Option<String>>,
    /// For each key, the newest version that was acknowledged, and the newest that was reported as applied.
    acknowledged: Vec<AtomicU32>,
    applied: Vec<AtomicU32>,
    /// Acknowledged, and not yet reported as applied.
    waiting: mpsc::UnboundedSender<Acknowledged>,
    /// The versions went back with the database: what was known does not count any more.
    rebased: AtomicU32,
    writing: AtomicBool,
    /// Transactions that have begun and not ended.
    under_way: AtomicU32,
    reading: AtomicBool,
    stopped: AtomicBool,
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    fn proxy(&self) -> String {
        self.proxy.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn admin(&self) -> String {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a read of a key that begins now must not be older than.
    fn due(&self, key: u32) -> u32 {
        let versions = match self.contract {
            Contract::Strict => &self.acknowledged,
            Contract::Bounded => &self.applied,
        };
        versions.get(key as usize).map_or(0, |version| version.load(Ordering::Acquire))
    }

    /// A hit, on a key of which this was due when the read began.
    fn judge(&self, key: u32, version: u32, due: u32, reader: &str) {
        self.counts.hits.fetch_add(1, Ordering::Relaxed);
        if version < due {
            self.counts.stale.fetch_add(1, Ordering::Relaxed);
            let mut example = self.example.lock().unwrap_or_else(PoisonError::into_inner);
            example.get_or_insert_with(|| {
                format!("{reader} read version {version} of key {key}, after {due} was due")
            });
        }
    }

    /// COMMIT was answered.
    fn acknowledge(&self, commit: Acknowledged) {
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        raise(&self.acknowledged, commit);
        // Nobody receives only when the load ends.
        let _ = self.waiting.send(commit);
    }

    /// The proxy has reported it as applied.
    fn apply(&self, commit: Acknowledged) {
        raise(&self.applied, commit);
    }
}

fn raise(versions: &[AtomicU32], commit: Acknowledged) {
    if let Some(version) = versions.get(commit.key as usize) {
        version.fetch_max(commit.version, Ordering::Release);
    }
}

/// The load while it runs.
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Starts it. Half of the readers read the primary on a miss and half the replica; of both some have a connection of
    /// their own, some share a pool, and some bring evidence.
    pub fn start(stand: &Stand, dice: &mut Dice) -> Self {
        let (waiting, acknowledged) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            contract: stand.contract,
            proxy: Mutex::new(stand.proxy.address().to_owned()),
            admin: Mutex::new(stand.proxy.admin_url().trim_start_matches("http://").to_owned()),
            primary: stand.primary.port().into(),
            replica: stand.replica.port().into(),
            counts: Counts::default(),
            example: Mutex::default(),
            acknowledged: (0..=KEYS).map(|_| AtomicU32::new(0)).collect(),
            applied: (0..=KEYS).map(|_| AtomicU32::new(0)).collect(),
            waiting,
            rebased: AtomicU32::new(0),
            writing: AtomicBool::new(true),
            under_way: AtomicU32::new(0),
            reading: AtomicBool::new(true),
            stopped: AtomicBool::new(false),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(applied::watch(shared.clone(), acknowledged));
        for _ in 0..WRITERS {
            tasks.spawn(Writer::new(shared.clone(), dice.split()).run());
        }
        let pool = Arc::new(Pool::new(3));
        for n in 0..READERS {
            let style = Style::ALL[(n / 2) as usize % Style::ALL.len()];
            tasks.spawn(Reader::new(n, style, n % 2 == 0, pool.clone(), shared.clone(), dice.split()).run());
        }
        Self { shared, tasks }
    }

    /// Where the applications' servers are, and what has happened so far.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The applications read and write another primary, and read another replica, from their next connection on: their
    /// present ones must break by themselves, or be broken.
    pub fn lead(&self, primary: u16, replica: u16) {
        self.shared.primary.store(primary, Ordering::Release);
        self.shared.replica.store(replica, Ordering::Release);
    }

    /// The database has lost commits that were acknowledged, and writers go on from older versions: what was due is due
    /// no more. Call it while no writer can reach a database.
    pub fn rebase(&self) {
        self.shared.rebased.fetch_add(1, Ordering::SeqCst);
        for versions in [&self.shared.acknowledged, &self.shared.applied] {
            versions.iter().for_each(|version| version.store(0, Ordering::SeqCst));
        }
    }

    /// Waits until the applications have hit and filled the cache for a while.
    pub async fn warm(&self) -> Outcome {
        let counts = &self.shared.counts;
        let seen = || (counts.hits.load(Ordering::Relaxed), counts.fills.load(Ordering::Relaxed));
        let before = seen();
        wait_until("hits and fills of the load", PATIENCE * 2, async || {
            let now = seen();
            now.0 >= before.0 + WARM.0 && now.1 >= before.1 + WARM.1
        })
        .await?;
        Ok(())
    }

    /// Waits until writers were acknowledged so many commits more.
    pub async fn written(&self, more: u64) -> Outcome {
        let writes = || self.shared.counts.writes.load(Ordering::Relaxed);
        let wanted = writes() + more;
        Ok(wait_until("commits of the load", PATIENCE, async || writes() >= wanted).await?)
    }

    /// Writers finish the commit that they are at, and write no more.
    pub fn stop_writing(&self) {
        self.shared.writing.store(false, Ordering::SeqCst);
    }

    /// The same, and waits for those commits: one that hangs may be done after a look at the database.
    pub async fn written_all(&self) -> Outcome {
        self.stop_writing();
        let ended = async || self.shared.under_way.load(Ordering::SeqCst) == 0;
        Ok(wait_until("the last commits to end", PATIENCE, ended).await?)
    }

    /// And write again.
    pub fn resume_writing(&self) {
        self.shared.writing.store(true, Ordering::Relaxed);
    }

    /// Everybody leaves: readers and writers close their connections.
    pub async fn leave(&self) -> Outcome {
        self.shared.reading.store(false, Ordering::Relaxed);
        self.written_all().await
    }

    /// And comes back.
    pub fn come_back(&self) {
        self.shared.reading.store(true, Ordering::Relaxed);
        self.resume_writing();
    }

    /// Ends it; returns the stale hit that was first, if there was one.
    pub async fn stop(mut self) -> Fallible<Option<String>> {
        self.shared.stopped.store(true, Ordering::Relaxed);
        let ended = tokio::time::timeout(PATIENCE, async {
            while let Some(ended) = self.tasks.join_next().await {
                ended?;
            }
            Ok::<_, tokio::task::JoinError>(())
        });
        ended.await.map_err(|_| "the load's tasks did not end")??;
        Ok(self.shared.example.lock().unwrap_or_else(PoisonError::into_inner).take())
    }
}

/// Those that wait to be reported as applied, in the order of their acknowledgement.
type Waiting = VecDeque<Acknowledged>;
