//! What the admin port tells of the proxy: ready or not and why, and everything at a glance.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::json;

use super::gauges::lag_bytes;
use crate::admin::{AdminSource, Sample};
use crate::cache::CacheState;
use crate::config::{Config, Contract, Mode};
use crate::feed::{FeedState, Positions, Source, Sources, Strict};
use crate::fence::Fence;
use crate::guard::Guards;
use crate::metrics::{Metrics, Verdict};
use crate::position::Lsn;
use crate::refusals::Refusals;
use crate::reload::Reloads;

/// What the admin port shows.
pub(super) struct Status {
    pub(super) fence: Arc<Fence>,
    pub(super) positions: Arc<Positions>,
    pub(super) guards: Arc<ArcSwap<Guards>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) refusals: Arc<Refusals>,
    pub(super) feed: Arc<FeedState>,
    pub(super) sources: Arc<Sources>,
    pub(super) cache: Arc<CacheState>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) config: Config,
    pub(super) reloads: Reloads,
}

impl Status {
    pub(super) fn contract(&self) -> &'static str {
        match self.config.postgres.contract {
            Contract::Bounded => "bounded",
            Contract::Strict => "strict",
        }
    }

    pub(super) fn mode(&self) -> &'static str {
        match self.config.proxy.mode {
            Mode::Enforce => "enforce",
            Mode::Observe => "observe",
        }
    }

    fn why_lost(&self) -> String {
        if let Some(error) = self.feed.error() {
            return error;
        }
        let (postgres, feed) = (&self.config.postgres, &self.feed);
        let streaming = feed.streaming.load(Ordering::Relaxed);
        if streaming && feed.is_catching_up() {
            return "what was committed meanwhile is being caught up with".into();
        }
        let silent =
            feed.silent_for(self.positions.now()).is_none_or(|silence| silence > postgres.feed_lost_after);
        let lag = Duration::from_micros(feed.lag_us.load(Ordering::Relaxed));
        if streaming && !silent && lag > postgres.max_lag {
            return format!("it has been behind for {lag:?}, longer than postgres.max_lag");
        }
        "nothing has been heard from Postgres".into()
    }

    /// A source out of sight does not stop the proxy: recently written keys stay unfilled until it is back.
    fn source_troubles(&self) -> Vec<String> {
        let trouble = |Source { state: source, .. }: &Source| {
            let why = source.error().unwrap_or_else(|| "not polled yet".into());
            (!source.up.load(Ordering::Relaxed)).then(|| format!("source {}: {why}", source.name))
        };
        self.sources.load().iter().filter_map(trouble).collect()
    }

    fn cache_error(&self) -> Option<String> {
        self.cache.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl AdminSource for Status {
    fn metrics(&self) -> String {
        self.metrics.render()
    }

    fn ready(&self) -> Result<Vec<String>, Vec<String>> {
        let mut reasons = Vec::new();
        if self.stopping.load(Ordering::Relaxed) {
            reasons.push("stopping".to_owned());
        }
        if self.feed.is_lost() {
            reasons.push(format!("the feed is lost: {}", self.why_lost()));
        }
        if let Some(why) = self.feed.strict().and_then(Strict::why_not) {
            reasons.push(format!("the strict contract is not in force: {why}"));
        }
        if !self.cache.connected.load(Ordering::Relaxed) {
            let why = self.cache_error().unwrap_or_else(|| "not connected yet".into());
            reasons.push(format!("Redis: {why}"));
        }
        if let Some(error) = self.cache.unreaped() {
            reasons.push(format!(
                "fills of lost connections cannot be ended, and deletions wait for that: {error}"
            ));
        }
        if self.cache.purging.load(Ordering::Relaxed) {
            reasons.push("guarded keys are being purged".into());
        }
        if self.feed.is_changing() {
            reasons.push("the guards of a reload are not in force yet".into());
        }
        let guards = self.guards.load();
        for guard in self.feed.broken().filter_map(|guard| guards.get(guard)) {
            reasons.push(format!("guard {} is broken: see the log for what to run", guard.label));
        }
        let slot = self.feed.held().and_then(|held| held.trouble());
        if reasons.is_empty() {
            let unmarked = self.cache.unmarked().map(|error| {
                format!("the marker is behind, and a restart of Redis or of the proxy would purge: {error}")
            });
            Ok(slot.into_iter().chain(unmarked).chain(self.source_troubles()).collect())
        } else {
            Err(reasons)
        }
    }

    fn glance(&self) -> serde_json::Value {
        self.at_a_glance()
    }

    fn sample(&self) -> Sample {
        self.sampled()
    }

    fn reloads(&self) -> Option<&Reloads> {
        Some(&self.reloads)
    }

    fn status(&self) -> serde_json::Value {
        let lsn = |lsn: u64| Lsn(lsn).to_string();
        let sources: Vec<_> = self
            .sources
            .load()
            .iter()
            .map(|Source { index, state: source, .. }| {
                json!({
                    "name": source.name,
                    "kind": source.kind.name(),
                    "read_by_applications": index.is_some(),
                    "up": source.up.load(Ordering::Relaxed),
                    "position": lsn(source.position.load(Ordering::Relaxed)),
                    "error": source.error(),
                })
            })
            .collect();
        let size = self.fence.size();
        let broken: Vec<_> = self.feed.broken().collect();
        let guards: Vec<_> = self
            .guards
            .load()
            .iter()
            .map(|guard| {
                let counted = self.metrics.guard(guard.id);
                let fills = |verdict| counted.of_verdict(verdict);
                json!({
                    "table": guard.label,
                    "keys": guard.policy.keys,
                    "broken": broken.contains(&guard.id),
                    "hits": counted.hit.get(),
                    "misses": counted.miss.get(),
                    "bypassed": counted.bypassed.get(),
                    "fresh": fills(Verdict::Fresh),
                    "stale": fills(Verdict::Stale),
                    "unproven": fills(Verdict::Unproven),
                    "writes": counted.writes.get(),
                    "invalidated": counted.invalidated.get(),
                })
            })
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "contract": self.contract(),
            "strict": self.feed.strict().map(|strict| json!({
                "in_force": strict.is_in_force(),
                "why_not": strict.why_not(),
            })),
            "mode": self.mode(),
            "feed": {
                "lost": self.feed.is_lost(),
                "streaming": self.feed.streaming.load(Ordering::Relaxed),
                "received_lsn": lsn(self.feed.received_lsn.load(Ordering::Relaxed)),
                "applied_lsn": lsn(self.feed.applied_lsn.load(Ordering::Relaxed)),
                "confirmed_lsn": lsn(self.feed.confirmed_lsn.load(Ordering::Relaxed)),
                "lag_bytes": lag_bytes(&self.feed),
                "slot": self.feed.held().map(|held| json!({
                    "retained_bytes": held.retained,
                    "safe_bytes": held.safe,
                    "wal_status": held.wal_status,
                })),
                "lag_seconds": self.feed.lag_us.load(Ordering::Relaxed) as f64 / 1e6,
                "error": self.feed.error(),
            },
            "sources": sources,
            "fence": {
                "keys": size.keys,
                "leases": size.leases,
                "bytes": size.bytes,
                "named_keys": self.fence.named().0,
                "floor_lsn": self.fence.floor().to_string(),
                "settled_lsn": self.fence.settled().to_string(),
            },
            "cache": {
                "connected": self.cache.connected.load(Ordering::Relaxed),
                "purging": self.cache.purging.load(Ordering::Relaxed),
                "backlog_keys": self.cache.backlog.load(Ordering::Relaxed),
                "error": self.cache_error(),
            },
            "guards": guards,
        })
    }
}
