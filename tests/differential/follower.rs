//! The feed itself, in this process, with a cache that writes down what it is told to delete.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cachefence::demo::servers::wait_until;
use cachefence::feed::{
    CacheJob, Feed, FeedError, FeedState, Found, Invalidation, Positions, Settings, Source, SourceState,
    Sources,
};
use cachefence::fence::{Fence, Limits, SourceKind};
use cachefence::guard::Guards;
use cachefence::pg::target::Target;
use cachefence::position::Lsn;
use tokio::sync::{mpsc, watch};

use crate::{Fallible, PATIENCE};

/// A key and its db.
pub type Key = (u32, String);

/// What a commit fenced.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Fenced {
    /// Key by key.
    pub keys: BTreeSet<Key>,
    /// Guards as a whole, by their number.
    pub whole: BTreeSet<usize>,
}

/// What the cache was told.
#[derive(Debug, Default)]
pub struct Notes {
    /// By the tag of the transaction.
    pub commits: BTreeMap<u64, Fenced>,
    /// What may be part of a commit that is still being told: when that was, and what.
    open: Option<(i64, Fenced)>,
    /// Streams that were started.
    pub starts: usize,
    /// What should not be.
    pub wrong: Vec<String>,
    /// Guards that were fenced as a whole by no transaction of ours: a look at the catalog has found them altered.
    pub looks: BTreeSet<usize>,
    /// Parts that commits came in beyond the first.
    pub parts: usize,
}

impl Notes {
    fn take(&mut self, invalidation: Invalidation) {
        let named = invalidation.keys.len();
        let text = |name| String::from_utf8(name).unwrap_or_else(|name| format!("{:?}", name.as_bytes()));
        let keys: BTreeSet<Key> = invalidation.keys.into_iter().map(|k| (k.db, text(k.name))).collect();
        if keys.len() != named {
            self.wrong.push(format!("{named} keys, of which {} differ: {keys:?}", keys.len()));
        }
        // A large transaction comes in parts, which follow each other; only one of them has the tag.
        let same = self.open.as_ref().is_some_and(|(time, open)| {
            *time == invalidation.commit_time_us
                && (tag(open).is_none() || keys.iter().all(|key| !is_tag(key)))
        });
        if !same {
            self.close();
        }
        self.parts += usize::from(same);
        let (_, open) = self.open.get_or_insert_with(|| (invalidation.commit_time_us, Fenced::default()));
        open.keys.extend(keys);
        open.whole.extend(invalidation.truncated.iter().map(|guard| usize::from(guard.0)));
    }

    /// What is open is whole.
    pub fn close(&mut self) {
        let Some((_, fenced)) = self.open.take() else { return };
        match tag(&fenced) {
            Some(tag) if !self.commits.contains_key(&tag) => {
                self.commits.insert(tag, fenced);
            }
            Some(tag) => self.wrong.push(format!("transaction {tag} came twice: {fenced:?}")),
            // Of its own, as it has found a table altered.
            None if fenced.keys.is_empty() => self.looks.extend(fenced.whole),
            None => self.wrong.push(format!("keys without a transaction: {fenced:?}")),
        }
    }

    fn has(&self, number: u64) -> bool {
        self.commits.contains_key(&number)
            || self.open.as_ref().is_some_and(|(_, open)| tag(open) == Some(number))
    }
}

fn is_tag(key: &Key) -> bool {
    key.1.starts_with("tag:")
}

/// The tag of a transaction, if it has one, and no more than that.
fn tag(fenced: &Fenced) -> Option<u64> {
    let mut tags = fenced.keys.iter().filter(|key| is_tag(key));
    match (tags.next(), tags.next()) {
        (Some((_, tag)), None) => tag.strip_prefix("tag:")?.parse().ok(),
        _ => None,
    }
}

/// A running feed.
pub struct Follower {
    /// What its cache was told.
    pub notes: Arc<Mutex<Notes>>,
    state: Arc<FeedState>,
    task: tokio::task::JoinHandle<Result<(), FeedError>>,
}

impl Follower {
    /// Starts it and waits until it streams.
    pub async fn start(url: &str, name: &str, guards: Arc<Guards>, home_db: u32) -> Fallible<Self> {
        let limits = Limits {
            history: 60_000,
            lease_ttl: 5_000,
            longest_cap: 60_000,
            max_keys: 10_000,
            max_leases: 10,
            guards: guards.len(),
            shards: 4,
        };
        let fence = Arc::new(Fence::new(limits));
        let positions = Arc::new(Positions::new(fence, &[SourceKind::Primary], Instant::now()));
        let state = Arc::new(FeedState::new(guards.len()));
        let (jobs, queue) = mpsc::channel(64);
        let (applied, applied_reader) = watch::channel(Lsn(0));
        let notes = Arc::new(Mutex::new(Notes::default()));
        tokio::spawn(take_notes(queue, applied, notes.clone()));
        let target = Target::parse(url)?;
        let settings = Settings {
            target: target.clone(),
            slot: name.to_owned(),
            temporary_slot: false,
            failover_slot: false,
            streaming: true,
            publication: name.to_owned(),
            application_name: name.to_owned(),
            feed_lost_after: Duration::from_secs(10),
            max_lag: Duration::from_secs(60),
            poll_interval: Duration::from_millis(5),
            lease_ttl: Duration::from_secs(5),
            db: home_db,
        };
        let primary = Arc::new(SourceState::new("primary", SourceKind::Primary));
        let sources = vec![Source { index: Some(0), target, state: primary }];
        let sources = Arc::new(Sources::new(sources));
        let feed = Feed::new(settings, guards, sources, positions, state.clone(), jobs, applied_reader);
        let follower = Self { notes, state, task: tokio::spawn(feed.run()) };
        wait_until("the feed to stream", PATIENCE, async || {
            follower.task.is_finished() || follower.state.streaming.load(Ordering::Relaxed)
        })
        .await?;
        follower.went_on().await?;
        Ok(follower)
    }

    /// Waits until a transaction has come, and with it everything that was committed before.
    pub async fn until(&self, tag: u64) -> Fallible<()> {
        let come = async || self.task.is_finished() || self.notes.lock().is_ok_and(|notes| notes.has(tag));
        wait_until(&format!("transaction {tag} to come by the feed"), PATIENCE, come).await?;
        self.went_on().await
    }

    /// The feed ends only if something has to be mended.
    async fn went_on(&self) -> Fallible<()> {
        match self.task.is_finished() {
            true => Err(format!("the feed has ended: {:?}", self.state).into()),
            false => Ok(()),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The cache: nothing is deleted, all is noted.
async fn take_notes(
    mut queue: mpsc::Receiver<CacheJob>,
    applied: watch::Sender<Lsn>,
    notes: Arc<Mutex<Notes>>,
) {
    while let Some(job) = queue.recv().await {
        let Ok(mut notes) = notes.lock() else { return };
        match job {
            CacheJob::Start { slot_position, ready, .. } => {
                notes.starts += 1;
                applied.send_replace(slot_position);
                let _ = ready.send(Found::Nothing);
            }
            CacheJob::Invalidate(invalidation, _) => {
                let end = invalidation.end_lsn;
                notes.take(invalidation);
                applied.send_replace(end);
            }
            CacheJob::Advance(position) => {
                applied.send_replace(position);
            }
        }
    }
}
