//! Gauges that mirror somebody's state.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::status::Status;
use crate::admin::AdminSource;
use crate::feed::{FeedState, Source, Strict};

impl Status {
    /// Has the gauges that mirror somebody's state set whenever somebody looks.
    pub(super) fn mirror(self: &Arc<Self>) {
        let (fence, feed, sources) = (self.fence.clone(), self.feed.clone(), self.sources.clone());
        let (cache, guards) = (self.cache.clone(), self.guards.clone());
        let slot = if self.config.postgres.temporary_slot { "temporary" } else { "lasting" };
        self.metrics.introduce(self.contract(), self.mode(), slot);
        let status = Arc::downgrade(self);
        let gaps_counted = Mutex::new(HashMap::new());
        let runtime = tokio::runtime::Handle::current().metrics();
        self.metrics.on_collect(move |metrics| {
            let size = fence.size();
            metrics.fence_keys.set(size.keys as i64);
            metrics.fence_bytes.set(size.bytes as i64);
            let (named, dropped) = fence.named();
            metrics.named_keys.set(named as i64);
            metrics.named_keys_dropped.inc_by(dropped.saturating_sub(metrics.named_keys_dropped.get()));
            let reconnects = feed.reconnects.load(Ordering::Relaxed);
            metrics.feed_reconnects.inc_by(reconnects.saturating_sub(metrics.feed_reconnects.get()));
            metrics.transaction_keys.set(feed.transaction_keys.load(Ordering::Relaxed) as i64);
            metrics.in_progress_bytes.set(feed.in_progress_bytes.load(Ordering::Relaxed) as i64);
            metrics.tasks.set(runtime.num_alive_tasks() as i64);
            metrics.backlog_keys.set(cache.backlog.load(Ordering::Relaxed) as i64);
            metrics.floor_lsn.set(i64::try_from(fence.floor().0).unwrap_or(0));
            metrics.settled_lsn.set(fence.settled().0 as i64);
            let applied = feed.applied_lsn.load(Ordering::Relaxed);
            let received = feed.received_lsn.load(Ordering::Relaxed);
            metrics.applied_lsn.set(applied as i64);
            metrics.feed_lag_bytes.set(lag_bytes(&feed) as i64);
            metrics.feed_lag_seconds.set(feed.lag_us.load(Ordering::Relaxed) as f64 / 1e6);
            metrics.strict_in_force.set(i64::from(feed.strict().is_some_and(Strict::is_in_force)));
            let held = feed.held();
            metrics.slot_retained_bytes.set(held.as_ref().map_or(0.0, |held| held.retained as f64));
            // Without room, Postgres says nothing of it.
            let safe = held.and_then(|held| held.safe.or(held.limit.map(|_| 0)));
            metrics.slot_safe_bytes.set(safe.map_or(f64::INFINITY, |safe| safe as f64));
            metrics.feed_connected.set(i64::from(feed.streaming.load(Ordering::Relaxed)));
            metrics.redis_connected.set(i64::from(cache.connected.load(Ordering::Relaxed)));
            metrics.purging.set(i64::from(cache.purging.load(Ordering::Relaxed)));
            metrics.ready.set(i64::from(status.upgrade().is_some_and(|status| status.ready().is_ok())));
            let broken: Vec<_> = feed.broken().collect();
            let guards = guards.load();
            metrics
                .break_guards(guards.iter().map(|guard| (guard.label.as_str(), broken.contains(&guard.id))));
            for Source { index, state: source, .. } in sources.load().iter() {
                if index.is_none() {
                    continue;
                }
                let gauges = metrics.source(&source.name);
                gauges.up.set(i64::from(source.up.load(Ordering::Relaxed)));
                let position = source.position.load(Ordering::Relaxed);
                gauges.lag_bytes.set(received.saturating_sub(position) as i64);
            }
            let mut counted = gaps_counted.lock().unwrap_or_else(PoisonError::into_inner);
            for (reason, count) in feed.gaps() {
                let seen: &mut u64 = counted.entry(reason).or_default();
                (*seen..count).for_each(|_| metrics.gap(reason.as_str()));
                *seen = count;
            }
        });
    }
}

/// What the database has logged and the feed has not applied.
pub(super) fn lag_bytes(feed: &FeedState) -> u64 {
    let applied = feed.applied_lsn.load(Ordering::Relaxed);
    feed.server_end_lsn.load(Ordering::Relaxed).saturating_sub(applied)
}
