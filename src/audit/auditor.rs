//! Hits on their way from the answer to the judgement, and what becomes of them.

use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tracing::error;

use super::by_sql::{self, SqlAuditor};
use super::{Commits, Judged, Outcome, Places, Sample, Seen, SqlHit, judge};
use crate::cache::CacheState;
use crate::complaint::Complaint;
use crate::config;
use crate::feed::FeedState;
use crate::fence::{Fence, KeyHash, Millis, VersionClaim};
use crate::guard::{GuardId, GuardList, Guards};
use crate::metrics::Metrics;
use crate::position::Lsn;
use crate::refusals::shown;

/// Hits that wait, at most.
const MOST: usize = 16_384;
/// What they take, at most, in bytes.
const MOST_BYTES: usize = 8 * 1024 * 1024;
/// How often it is looked whose grace is over.
const LOOK: Duration = Duration::from_millis(50);
/// How long a hit waits beyond its grace for the feed to be where the database was, and for a commit to be visible on
/// every source, in milliseconds.
const PATIENCE: Millis = 10_000;

/// A read that was answered with a value.
#[derive(Debug)]
pub struct Hit {
    /// The key.
    pub key: Box<[u8]>,
    /// Its hash.
    pub hash: KeyHash,
    /// Its guards.
    pub guards: GuardList,
    /// The version in the value.
    pub claim: VersionClaim,
    /// What was known when the answer came.
    pub seen: Seen,
    /// What held when the read was sent.
    pub conditions: Conditions,
    /// When the answer came, on the fence's clock.
    pub at: Millis,
}

impl Hit {
    fn bytes(&self) -> usize {
        let remembered = self.seen.remembered.as_ref();
        let spilled = remembered.map_or(0, |r| if r.written.spilled() { r.written.capacity() } else { 0 });
        size_of::<Self>() + self.key.len() + spilled * size_of::<Lsn>()
    }
}

/// What has to be the same from a read to its judgement: otherwise what is known at the one says nothing of the other.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// The guards, with their policies.
    guards: Arc<Guards>,
    /// Where the history began.
    began: Lsn,
    /// Streams that ended.
    streams: u64,
    /// Connections to Redis that were lost: it may be another one.
    doubts: u64,
}

impl Conditions {
    /// The guards.
    pub(super) fn guards(&self) -> &Arc<Guards> {
        &self.guards
    }

    /// The policy of one of them.
    pub(super) fn policy(&self, guard: GuardId) -> Option<&config::Guard> {
        self.guards.get(guard).map(|guard| &guard.policy)
    }

    /// The name of one of them.
    pub(super) fn label(&self, guard: GuardId) -> &str {
        self.guards.get(guard).map_or("", |guard| guard.label.as_str())
    }
}

impl PartialEq for Conditions {
    fn eq(&self, other: &Self) -> bool {
        let told = |of: &Self| (of.began, of.streams, of.doubts);
        Arc::ptr_eq(&self.guards, &other.guards) && told(self) == told(other)
    }
}

/// What the auditor looks at, and changes nothing of.
#[derive(Clone)]
pub struct Surroundings {
    /// What is remembered of the keys.
    pub fence: Arc<Fence>,
    /// Whose keys are audited.
    pub guards: Arc<ArcSwap<Guards>>,
    /// Whether the feed is there, and how far it is.
    pub feed: Arc<FeedState>,
    /// Whether Redis is level with it.
    pub cache: Arc<CacheState>,
    /// What is stale is refused, and what changed is deleted: not only observed.
    pub enforces: bool,
    /// Keys stand in the log.
    pub show_keys: bool,
}

impl Surroundings {
    /// What holds now; none while the feed is lost, Redis is not level with it, or one of these guards is broken.
    pub fn conditions(&self, guards: &[GuardId]) -> Option<Conditions> {
        let feed = &self.feed;
        // The counts first: what is lost after them is counted anew.
        let conditions = Conditions {
            guards: self.guards.load_full(),
            began: self.fence.began(),
            streams: feed.reconnects.load(Ordering::SeqCst),
            doubts: self.cache.doubts.load(Ordering::SeqCst),
        };
        let broken = guards.iter().any(|guard| feed.is_broken(*guard));
        let lost = feed.is_lost() || feed.is_unguarded() || feed.is_changing() || !self.cache.is_level();
        (!lost && !broken).then_some(conditions)
    }

    /// Up to here the keys of all commits are deleted.
    pub fn applied(&self) -> Lsn {
        self.feed.reached.lsn()
    }
}

/// Hits on their way to who judges them.
pub struct Waiting {
    versioned: mpsc::Receiver<Hit>,
    by_sql: mpsc::Receiver<SqlHit>,
}

/// Takes the hits of sampled reads, and judges them when their grace is over.
pub struct Auditor {
    /// Which reads are looked at.
    pub sample: Sample,
    /// When recent commits were made.
    pub commits: Arc<Commits>,
    surroundings: Surroundings,
    metrics: Arc<Metrics>,
    grace: Millis,
    hits: mpsc::Sender<Hit>,
    sql_hits: mpsc::Sender<SqlHit>,
    per_second: u32,
    /// What waits, in bytes.
    held: AtomicUsize,
    started: Instant,
}

impl Auditor {
    /// An auditor, and the hits that wait for it: see [`Auditor::work`]. `started` is the origin of the fence's clock.
    pub fn new(
        settings: &config::Audit,
        surroundings: Surroundings,
        metrics: Arc<Metrics>,
        started: Instant,
    ) -> (Arc<Self>, Waiting) {
        let (hits, versioned) = mpsc::channel(MOST);
        let (sql_hits, by_sql) = by_sql::channel();
        let auditor = Arc::new(Self {
            sample: Sample::default(),
            commits: Arc::default(),
            surroundings,
            metrics,
            grace: settings.grace.as_millis() as Millis,
            hits,
            sql_hits,
            per_second: settings.max_queries_per_second,
            held: AtomicUsize::new(0),
            started,
        });
        auditor.set_sample(settings.sample);
        (auditor, Waiting { versioned, by_sql })
    }

    /// Looks at this share of reads from now on.
    pub fn set_sample(&self, share: config::Share) {
        self.sample.set(share);
        self.commits.remember(self.sample.is_on());
    }

    /// What it looks at.
    pub fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    /// Counts a hit of which nothing can be said.
    pub fn unknown(&self, guard: GuardId) {
        self.metrics.guard(guard).audited(Outcome::Unknown).inc();
    }

    /// Takes a hit. One that there is no room for is counted as unknown.
    pub fn take(&self, hit: Hit) {
        let (bytes, guard) = (hit.bytes(), hit.claim.guard);
        if self.held.fetch_add(bytes, Ordering::Relaxed) + bytes > MOST_BYTES
            || self.hits.try_send(hit).is_err()
        {
            self.held.fetch_sub(bytes, Ordering::Relaxed);
            self.unknown(guard);
        }
    }

    /// The same, of a guard with an `audit_sql`.
    pub fn take_for_sql(&self, hit: SqlHit) {
        let guard = hit.guard;
        if self.sql_hits.try_send(hit).is_err() {
            self.unknown(guard);
        }
    }

    /// Judges what waits. Never ends.
    pub async fn work(self: Arc<Self>, waiting: Waiting, places: Places) {
        let by_sql = SqlAuditor {
            places,
            surroundings: self.surroundings.clone(),
            commits: self.commits.clone(),
            metrics: self.metrics.clone(),
            grace: Duration::from_millis(self.grace),
            started: self.started,
            session: None,
            redis: None,
            failures: Complaint::none(),
            violations: Complaint::none(),
            agreed: Default::default(),
        };
        let per_second = self.per_second;
        tokio::join!(self.judge_versions(waiting.versioned), by_sql.work(waiting.by_sql, per_second));
    }

    async fn judge_versions(self: Arc<Self>, mut waiting: mpsc::Receiver<Hit>) {
        let mut looking = interval(LOOK);
        looking.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut bench = Bench::default();
        // Judged in the order in which they came: all have the same grace.
        while let Some(first) = waiting.recv().await {
            bench.hits.push_back(Pending::new(first));
            while !bench.hits.is_empty() {
                looking.tick().await;
                while bench.hits.len() < MOST
                    && let Ok(next) = waiting.try_recv()
                {
                    bench.hits.push_back(Pending::new(next));
                }
                self.look(&mut bench);
            }
        }
    }

    /// Judges those whose time has come.
    fn look(&self, bench: &mut Bench) {
        let now = self.started.elapsed().as_millis() as Millis;
        let began = self.surroundings.fence.began();
        if bench.began.replace(began).is_some_and(|before| before != began) {
            self.commits.restart();
        }
        while let Some(first) = bench.hits.front_mut() {
            if now < first.hit.at + self.grace {
                return;
            }
            let is_last_look = now >= first.hit.at + self.grace + PATIENCE;
            let judged = match self.judge(first) {
                Some(judged) => judged,
                None if is_last_look => Judged::UNKNOWN,
                None => return,
            };
            if let Some(Pending { hit, .. }) = bench.hits.pop_front() {
                self.held.fetch_sub(hit.bytes(), Ordering::Relaxed);
                self.count(&hit, judged, &mut bench.complaint);
            }
        }
    }

    /// What the hit was; none if it is too early to say.
    fn judge(&self, waiting: &mut Pending) -> Option<Judged> {
        let (hit, around) = (&waiting.hit, &self.surroundings);
        if around.conditions(&hit.guards).as_ref() != Some(&hit.conditions) {
            return Some(Judged::UNKNOWN);
        }
        // What the database had when the grace was over has to be known here: also a write that lowered the version.
        let server = Lsn(around.feed.server_end_lsn.load(Ordering::Relaxed));
        if around.applied() < *waiting.wanted.get_or_insert(server) {
            return None;
        }
        let now = around.fence.compare(hit.hash, &hit.guards, &hit.claim);
        let judged = judge(&hit.seen, now.as_ref(), |lsn| self.commits.at(lsn));
        // A write that not all sources show yet can be missing in data that is as new as its source.
        let is_settled = judged.missing.is_none_or(|missing| missing <= around.fence.settled());
        if judged.outcome == Outcome::Violation && !is_settled {
            return None;
        }
        // What has happened while this was looked at has been counted.
        let still = around.conditions(&hit.guards).as_ref() == Some(&hit.conditions);
        Some(if still { judged } else { Judged::UNKNOWN })
    }

    fn count(&self, hit: &Hit, judged: Judged, complaint: &mut Violations) {
        let counters = self.metrics.guard(hit.claim.guard);
        counters.audited(judged.outcome).inc();
        let age = judged.age_us.map(|us| us as f64 / 1e6);
        age.iter().for_each(|age| counters.audit_age.observe(*age));
        if judged.outcome != Outcome::Violation {
            return;
        }
        complaint.suppressed += 1;
        if complaint.when.is_due() {
            let row = hit.seen.remembered.as_ref().map(|remembered| remembered.version.0);
            error!(
                guard = hit.conditions.label(hit.claim.guard),
                key = %shown(&hit.key, self.surroundings.show_keys),
                cached_version = hit.claim.version.0,
                row_version = row,
                missing_commit = %judged.missing.unwrap_or_default(),
                age_seconds = age,
                violations = std::mem::take(&mut complaint.suppressed),
                "a hit was older than a commit whose keys had been deleted before: something writes this key past the proxy, \
                 or puts a wrong version into it. DEL the key, and see \"The auditor\" in docs/operations.md"
            );
        }
    }
}

/// Now, in microseconds since 1970.
pub fn wall_clock_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

impl Seen {
    /// What is known now. `applied` is from before the read was sent.
    pub fn now(
        applied: Lsn,
        around: &Surroundings,
        key: KeyHash,
        guards: &[GuardId],
        claim: &VersionClaim,
        is_kept: bool,
    ) -> Self {
        Self {
            applied,
            remembered: around.fence.compare(key, guards, claim),
            at_us: wall_clock_us(),
            is_kept,
        }
    }
}

/// Hits in the order in which they came.
#[derive(Default)]
struct Bench {
    hits: VecDeque<Pending>,
    /// Where the history began, at the last look.
    began: Option<Lsn>,
    complaint: Violations,
}

struct Pending {
    hit: Hit,
    /// Where the database was when the grace was over, as far as is known.
    wanted: Option<Lsn>,
}

impl Pending {
    fn new(hit: Hit) -> Self {
        Self { hit, wanted: None }
    }
}

/// Violations since the last line about them.
#[derive(Default)]
struct Violations {
    when: Complaint,
    suppressed: u64,
}
