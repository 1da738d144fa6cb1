//! What the proxy counts, in Prometheus's words. All names begin with `cachefence_`.
//!
//! Handles are resolved at start-up, and when a guard is added: counting an event is an atomic addition, without a look-up by label. Gauges that
//! mirror the state of another part are set when somebody looks, by what that part registers with
//! [`Metrics::on_collect`].

use std::fmt;
use std::sync::{OnceLock, PoisonError, RwLock};

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::audit::Outcome;
use crate::guard::{GuardId, Guards};

/// The `guard` label of keys that no guard covers and that were fenced by name.
pub(crate) const MESSAGE: &str = "(message)";

/// What is known of a fill's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is at least as new as the last write.
    Fresh,
    /// It is older, or cannot be shown to be newer than what was forgotten.
    Stale,
    /// There is no evidence.
    Unproven,
}

/// What was done with a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It went to Redis as it came.
    Forwarded,
    /// It did not reach Redis.
    Refused,
    /// It went to Redis with a shorter time to live.
    Capped,
    /// It did not reach Redis, and its key was deleted.
    Deleted,
    /// It would have been refused or capped, but the proxy only observes.
    Observed,
}

impl Verdict {
    const ALL: [Self; 3] = [Self::Fresh, Self::Stale, Self::Unproven];

    /// Its label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Unproven => "unproven",
        }
    }
}

impl Action {
    const ALL: [Self; 5] = [Self::Forwarded, Self::Refused, Self::Capped, Self::Deleted, Self::Observed];

    /// Its label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Refused => "refused",
            Self::Capped => "capped",
            Self::Deleted => "deleted",
            Self::Observed => "observed",
        }
    }
}

/// One guard's counters.
#[derive(Debug)]
pub struct GuardMetrics {
    /// Reads that Redis had an answer for.
    pub hit: IntCounter,
    /// Reads that it had none for.
    pub miss: IntCounter,
    /// Reads answered as misses without asking Redis.
    pub bypassed: IntCounter,
    /// Keys of committed changes.
    pub writes: IntCounter,
    /// Keys deleted for them.
    pub invalidated: IntCounter,
    /// How old the data of refused fills was, in seconds.
    pub stale_age: Histogram,
    /// How old the data of audited hits was, in seconds, that were older than the row.
    pub audit_age: Histogram,
    audited: [IntCounter; 4],
    fills: [[IntCounter; 5]; 3],
}

impl GuardMetrics {
    /// The counter of fills with this verdict and action.
    pub fn fills(&self, verdict: Verdict, action: Action) -> &IntCounter {
        // Both enums number their variants in the order of ALL.
        &self.fills[verdict as usize][action as usize]
    }

    /// Fills with this verdict, whatever was done with them.
    pub fn of_verdict(&self, verdict: Verdict) -> u64 {
        self.fills[verdict as usize].iter().map(IntCounter::get).sum()
    }

    /// The counter of audited hits of which this became.
    pub fn audited(&self, outcome: Outcome) -> &IntCounter {
        &self.audited[outcome as usize]
    }
}

/// What is counted by guard.
struct GuardFamilies {
    fills: IntCounterVec,
    reads: IntCounterVec,
    writes: IntCounterVec,
    invalidated: IntCounterVec,
    stale_age: HistogramVec,
    audited: IntCounterVec,
    audit_age: HistogramVec,
}

/// One source's gauges.
#[derive(Debug)]
pub struct SourceMetrics {
    /// How far it is behind the feed.
    pub lag_bytes: IntGauge,
    /// 1 while it can be polled, 0 while it cannot.
    pub up: IntGauge,
}

type Collect = Box<dyn Fn(&Metrics) + Send + Sync>;

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    collectors: RwLock<Vec<Collect>>,
    families: GuardFamilies,
    /// By number: room for all guards that there will ever be.
    guards: Box<[OnceLock<GuardMetrics>]>,
    messages: GuardMetrics,
    source_lag_bytes: IntGaugeVec,
    source_up: IntGaugeVec,
    guard_broken: IntGaugeVec,
    info: IntGaugeVec,
    purges: IntCounterVec,
    gaps: IntCounterVec,
    /// From a commit (by the database's clock) to its keys being deleted, in seconds.
    pub invalidation_seconds: Histogram,
    /// WAL that the database has and the feed has not applied.
    pub feed_lag_bytes: IntGauge,
    /// For how long the feed has been behind.
    pub feed_lag_seconds: Gauge,
    /// WAL that the slot holds back.
    pub slot_retained_bytes: Gauge,
    /// WAL that can be written before Postgres may give the slot up; infinite without a limit.
    pub slot_safe_bytes: Gauge,
    /// 1 while the feed streams, else 0.
    pub feed_connected: IntGauge,
    /// 1 while commits wait until their keys are deleted, as the strict contract has it, else 0.
    pub strict_in_force: IntGauge,
    /// 1 while `/readyz` says ready, else 0.
    pub ready: IntGauge,
    /// 1 while the proxy's own connection to Redis works, else 0.
    pub redis_connected: IntGauge,
    /// 1 while all keys of guards are being deleted, else 0.
    pub purging: IntGauge,
    /// Keys with remembered writes or leases.
    pub fence_keys: IntGauge,
    /// The memory they take, about.
    pub fence_bytes: IntGauge,
    /// Keys without a guard that are judged because they were fenced by name.
    pub named_keys: IntGauge,
    /// ... and those that are no longer, for lack of room.
    pub named_keys_dropped: IntCounter,
    /// Streams that ended, and attempts to start one that failed.
    pub feed_reconnects: IntCounter,
    /// Keys that have been handed on of a large transaction that is arriving.
    pub transaction_keys: IntGauge,
    /// Memory of the keys of transactions that are sent while they run.
    pub in_progress_bytes: IntGauge,
    /// Keys that the cache is deleting.
    pub backlog_keys: IntGauge,
    /// Below this LSN nothing is known of single keys.
    pub floor_lsn: IntGauge,
    /// Up to this LSN all commits are visible on all sources.
    pub settled_lsn: IntGauge,
    /// Up to this LSN all keys are deleted and the marker is written.
    pub applied_lsn: IntGauge,
    /// Connected clients.
    pub clients: IntGauge,
    /// Tasks of the runtime of the feed, the deletions and the polls.
    pub tasks: IntGauge,
    /// Tasks of the threads that serve clients: sessions, links to Redis, and reads that wait.
    client_tasks: IntGauge,
    /// Bytes that are held for all clients.
    pub buffered_bytes: IntGauge,
    /// Clients that were closed because all of them held too much.
    pub evicted_clients: IntCounter,
    /// Commands of clients. Shared by all threads: add to it once per batch, not per command.
    pub commands: IntCounter,
    /// Connections to Redis made anew after one was lost.
    pub upstream_reconnects: IntCounter,
}

/// A task, while it lives.
#[derive(Debug)]
pub struct Running(IntGauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("guards", &self.guards.len()).finish_non_exhaustive()
    }
}

impl Metrics {
    /// Metrics of these guards, and of the sources of these names.
    ///
    /// # Errors
    /// When two sources have one name, or a name cannot be a label's value.
    pub fn new(guards: &Guards, sources: &[impl AsRef<str>]) -> Result<Self, prometheus::Error> {
        let r = Registry::new();
        let families = GuardFamilies::new(&r)?;
        let source_lag_bytes =
            gauges(&r, "source_lag_bytes", "How far a source is behind the feed.", &["source"])?;
        let source_up = gauges(&r, "source_up", "Whether a source can be polled.", &["source"])?;
        for name in sources {
            source_lag_bytes.get_metric_with_label_values(&[name.as_ref()])?;
            source_up.get_metric_with_label_values(&[name.as_ref()])?;
        }
        let guard_broken =
            gauges(&r, "guard_broken", "Whether rows cannot be turned into keys.", &["guard"])?;
        let info = gauges(&r, "info", "What runs, and as what.", &["version", "contract", "mode", "slot"])?;
        let tasks = Opts::new("cachefence_tasks", "Tasks that live.");
        let tasks = register(&r, IntGaugeVec::new(tasks, &["of"])?)?;
        let invalidation = HistogramOpts::new(
            "cachefence_invalidation_seconds",
            "From commit to the deletion of its keys, by the database's clock and this host's.",
        );
        let metrics = Self {
            collectors: RwLock::default(),
            guards: (0..guards.numbers()).map(|_| OnceLock::new()).collect(),
            messages: families.of(MESSAGE),
            families,
            source_lag_bytes,
            source_up,
            guard_broken,
            info,
            purges: counters(&r, "purges_total", "Deletions of all keys of guards.", &["reason"])?,
            gaps: counters(&r, "gaps_total", "Holes in the feed's history.", &["reason"])?,
            invalidation_seconds: register(
                &r,
                Histogram::with_opts(invalidation.buckets(SECONDS.to_vec()))?,
            )?,
            feed_lag_bytes: gauge(&r, "feed_lag_bytes", "WAL that the feed has not applied.")?,
            feed_lag_seconds: register(
                &r,
                Gauge::new("cachefence_feed_lag_seconds", "For how long the feed has been behind.")?,
            )?,
            slot_retained_bytes: register(
                &r,
                Gauge::new("cachefence_slot_retained_bytes", "WAL that the replication slot holds back.")?,
            )?,
            slot_safe_bytes: register(
                &r,
                Gauge::new("cachefence_slot_safe_bytes", "WAL until Postgres may give the slot up.")?,
            )?,
            feed_connected: gauge(&r, "feed_connected", "Whether the feed is streaming.")?,
            strict_in_force: gauge(
                &r,
                "strict_in_force",
                "Whether commits wait until their keys are deleted.",
            )?,
            ready: gauge(&r, "ready", "Whether /readyz says ready.")?,
            redis_connected: gauge(
                &r,
                "redis_connected",
                "Whether the proxy's own connection to Redis works.",
            )?,
            purging: gauge(&r, "purging", "Whether all keys of guards are being deleted.")?,
            fence_keys: gauge(&r, "fence_keys", "Keys that the fence table remembers.")?,
            fence_bytes: gauge(&r, "fence_bytes", "Memory of the fence table, about.")?,
            named_keys: gauge(&r, "named_keys", "Keys without a guard that are judged by name.")?,
            named_keys_dropped: counter(&r, "named_keys_dropped_total", "Names dropped for lack of room.")?,
            feed_reconnects: counter(&r, "feed_reconnects_total", "Streams of changes made anew.")?,
            transaction_keys: gauge(&r, "transaction_keys", "Keys so far of a large transaction.")?,
            in_progress_bytes: gauge(
                &r,
                "in_progress_bytes",
                "Memory of the keys of transactions that have not committed yet, about.",
            )?,
            backlog_keys: gauge(&r, "backlog_keys", "Keys that are being deleted.")?,
            floor_lsn: gauge(&r, "floor_lsn", "Position below which history per key is gone.")?,
            settled_lsn: gauge(
                &r,
                "settled_lsn",
                "Position up to which commits are visible on every source.",
            )?,
            applied_lsn: gauge(&r, "applied_lsn", "Position up to which keys are deleted.")?,
            clients: gauge(&r, "clients", "Connected clients.")?,
            tasks: tasks.with_label_values(&["feed"]),
            client_tasks: tasks.with_label_values(&["clients"]),
            buffered_bytes: gauge(&r, "buffered_bytes", "Bytes that are held for all clients, about.")?,
            evicted_clients: counter(&r, "evicted_clients_total", "Clients closed for what they held.")?,
            commands: counter(&r, "commands_total", "Commands of clients.")?,
            upstream_reconnects: counter(&r, "upstream_reconnects_total", "Connections to Redis made anew.")?,
            registry: r,
        };
        metrics.add_guards(guards);
        Ok(metrics)
    }

    /// Counts for guards that were added, too. Those that there are go on; so does the count of a table whose guard was another one.
    pub fn add_guards(&self, guards: &Guards) {
        for guard in guards {
            if let Some(place) = self.guards.get(usize::from(guard.id.0)) {
                place.get_or_init(|| self.families.of(&guard.label));
            }
        }
    }

    /// A guard's counters; those of keys that were fenced by name where it was never [added](Self::add_guards).
    pub fn guard(&self, id: GuardId) -> &GuardMetrics {
        self.guards.get(usize::from(id.0)).and_then(OnceLock::get).unwrap_or(&self.messages)
    }

    /// The counters of a key's guards; where it has none, those of keys that were fenced by name.
    pub fn guards<'a>(&'a self, ids: &'a [GuardId]) -> impl Iterator<Item = &'a GuardMetrics> {
        let named = ids.is_empty().then_some(&self.messages);
        ids.iter().map(|id| self.guard(*id)).chain(named)
    }

    /// A source's gauges. They are there from now on.
    pub fn source(&self, name: &str) -> SourceMetrics {
        SourceMetrics {
            lag_bytes: self.source_lag_bytes.with_label_values(&[name]),
            up: self.source_up.with_label_values(&[name]),
        }
    }

    /// Says what runs. Once.
    pub fn introduce(&self, contract: &str, mode: &str, slot: &str) {
        self.info.with_label_values(&[env!("CARGO_PKG_VERSION"), contract, mode, slot]).set(1);
    }

    /// Says which guards are broken, of those that there are; what was said of others is forgotten.
    pub fn break_guards<'a>(&self, guards: impl Iterator<Item = (&'a str, bool)>) {
        self.guard_broken.reset();
        for (label, broken) in guards {
            self.guard_broken.with_label_values(&[label]).set(i64::from(broken));
        }
    }

    /// A source is none any more: its last state is not to stand there for ever.
    pub fn forget_source(&self, name: &str) {
        // It has none if nobody has looked since it was added.
        let _ = self.source_lag_bytes.remove_label_values(&[name]);
        let _ = self.source_up.remove_label_values(&[name]);
    }

    /// Counts a task of a client's thread for as long as what is returned lives: that runtime does not count them itself.
    pub fn running(&self) -> Running {
        self.client_tasks.inc();
        Running(self.client_tasks.clone())
    }

    /// Counts a purge.
    pub fn purged(&self, reason: &str) {
        self.purges.with_label_values(&[reason]).inc();
    }

    /// Counts a gap.
    pub fn gap(&self, reason: &str) {
        self.gaps.with_label_values(&[reason]).inc();
    }

    /// Has `collect` set the gauges it knows of, before every look at them. It must not call this function.
    pub fn on_collect(&self, collect: impl Fn(&Metrics) + Send + Sync + 'static) {
        self.collectors.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(collect));
    }

    /// All metrics in Prometheus's text format.
    pub fn render(&self) -> String {
        for collect in self.collectors.read().unwrap_or_else(PoisonError::into_inner).iter() {
            collect(self);
        }
        let families = self.registry.gather();
        TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| {
            // A family without metrics or a name: not what new() makes. Say so rather than nothing.
            tracing::error!(%error, "metrics cannot be encoded");
            format!("# metrics cannot be encoded: {error}\n")
        })
    }
}

/// From half a millisecond, which a local commit takes, to minutes, where operators have long been called.
const SECONDS: [f64; 15] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0];

impl GuardFamilies {
    fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        let age =
            HistogramOpts::new("cachefence_stale_fill_age_seconds", "How old the data of refused fills was.");
        let audit_age = HistogramOpts::new(
            "cachefence_audit_age_seconds",
            "How old the data of audited hits was, at least.",
        );
        Ok(Self {
            fills: counters(
                r,
                "fills_total",
                "Fills, judged and dealt with.",
                &["guard", "verdict", "action"],
            )?,
            reads: counters(r, "reads_total", "Reads of guarded keys.", &["guard", "result"])?,
            writes: counters(r, "writes_total", "Committed changes of guarded keys.", &["guard"])?,
            invalidated: counters(r, "invalidated_keys_total", "Keys deleted for a change.", &["guard"])?,
            stale_age: register(r, HistogramVec::new(age.buckets(SECONDS.to_vec()), &["guard"])?)?,
            audited: counters(r, "audited_hits_total", "Hits that were looked at.", &["guard", "outcome"])?,
            audit_age: register(r, HistogramVec::new(audit_age.buckets(SECONDS.to_vec()), &["guard"])?)?,
        })
    }

    fn of(&self, label: &str) -> GuardMetrics {
        let fill = |verdict: Verdict| {
            Action::ALL.map(|action| self.fills.with_label_values(&[label, verdict.label(), action.label()]))
        };
        GuardMetrics {
            hit: self.reads.with_label_values(&[label, "hit"]),
            miss: self.reads.with_label_values(&[label, "miss"]),
            bypassed: self.reads.with_label_values(&[label, "bypassed"]),
            writes: self.writes.with_label_values(&[label]),
            invalidated: self.invalidated.with_label_values(&[label]),
            stale_age: self.stale_age.with_label_values(&[label]),
            audited: Outcome::ALL.map(|outcome| self.audited.with_label_values(&[label, outcome.label()])),
            audit_age: self.audit_age.with_label_values(&[label]),
            fills: Verdict::ALL.map(fill),
        }
    }
}

fn register<C: Collector + Clone + 'static>(r: &Registry, metric: C) -> Result<C, prometheus::Error> {
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("cachefence_{name}"), help)
}

fn counter(r: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    register(r, IntCounter::with_opts(opts(name, help))?)
}

fn gauge(r: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    register(r, IntGauge::with_opts(opts(name, help))?)
}

fn counters(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    register(r, IntCounterVec::new(opts(name, help), labels)?)
}

fn gauges(r: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    register(r, IntGaugeVec::new(opts(name, help), labels)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        let guard = toml::from_str("table = \"users\"\nkeys = [\"user:<id>\"]").expect("settings");
        let guards = Guards::new(&[guard], 0).expect("guards");
        Metrics::new(&guards, &["primary", "replica-1"]).expect("metrics")
    }

    #[test]
    fn events_are_counted_under_their_labels() {
        let metrics = metrics();
        let guard = metrics.guard(GuardId(0));
        for (n, verdict) in Verdict::ALL.into_iter().enumerate() {
            for (m, action) in Action::ALL.into_iter().enumerate() {
                guard.fills(verdict, action).inc_by((n * 5 + m) as u64);
            }
        }
        guard.hit.inc();
        metrics.source("replica-1").up.set(1);
        metrics.purged("fresh_slot");
        metrics.gap("slot_lost");
        let text = metrics.render();
        for (n, verdict) in Verdict::ALL.into_iter().enumerate() {
            for (m, action) in Action::ALL.into_iter().enumerate() {
                let (verdict, action) = (verdict.label(), action.label());
                let line = format!(
                    "cachefence_fills_total{{action=\"{action}\",guard=\"public.users\",verdict=\"{verdict}\"}} {}\n",
                    n * 5 + m
                );
                assert!(text.contains(&line), "{line}{text}");
            }
        }
        assert!(text.contains("cachefence_reads_total{guard=\"public.users\",result=\"hit\"} 1\n"));
        assert!(text.contains("cachefence_source_up{source=\"replica-1\"} 1\n"));
        assert!(text.contains("cachefence_purges_total{reason=\"fresh_slot\"} 1\n"));
        assert!(text.contains("cachefence_gaps_total{reason=\"slot_lost\"} 1\n"));
    }

    #[test]
    fn mirrored_state_is_fresh_at_every_look() {
        let metrics = metrics();
        metrics.on_collect(|metrics| metrics.applied_lsn.inc());
        assert!(metrics.render().contains("\ncachefence_applied_lsn 1\n"));
        assert!(metrics.render().contains("\ncachefence_applied_lsn 2\n"));
    }

    #[test]
    fn every_metric_of_the_contract_is_there_from_the_start() {
        let metrics = metrics();
        // Reasons come with their first event.
        metrics.purged("x");
        metrics.gap("x");
        let text = metrics.render();
        for name in [
            "fills_total",
            "reads_total",
            "writes_total",
            "invalidated_keys_total",
            "invalidation_seconds",
            "feed_lag_bytes",
            "feed_lag_seconds",
            "feed_connected",
            "source_lag_bytes",
            "source_up",
            "fence_keys",
            "fence_bytes",
            "named_keys",
            "named_keys_dropped_total",
            "feed_reconnects_total",
            "transaction_keys",
            "in_progress_bytes",
            "backlog_keys",
            "tasks",
            "floor_lsn",
            "settled_lsn",
            "applied_lsn",
            "stale_fill_age_seconds",
            "audited_hits_total",
            "audit_age_seconds",
            "clients",
            "commands_total",
            "upstream_reconnects_total",
            "purges_total",
            "gaps_total",
        ] {
            assert!(text.contains(&format!("# TYPE cachefence_{name} ")), "{name}");
        }
    }
}
