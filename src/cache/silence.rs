//! Silence: shared connections that lead nowhere are found out and ended.
//!
//! A path can vanish without a word: a router that lost its state drops what comes, and no socket hears of it for a
//! quarter of an hour. Who owns a connection gives it up when he has waited for long enough. A lane belongs to nobody,
//! and whoever connects again gets the same one. Redis does one thing after the other: if it answers a question of ours
//! that was asked long after a lane's, the lane's will not be answered any more.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::warn;

use super::{Upstream, Upstreams};

/// How often the connections are looked at.
const PACE: Duration = Duration::from_secs(1);

/// What has been seen of the shared connections.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// When the last question was asked that Redis has answered.
    asked: Option<Instant>,
    looked: Option<Instant>,
    waiting: HashMap<u32, Waiting>,
}

/// A connection that waits for Redis.
#[derive(Debug)]
struct Waiting {
    progress: u32,
    /// Since when it has not moved, at the latest.
    since: Instant,
}

impl Silence {
    /// Redis has answered what was asked then. It must be something that it does no sooner than what clients want: while
    /// it holds back writes (CLIENT PAUSE), a PING proves nothing.
    pub fn answered(&mut self, asked: Instant) {
        self.asked = Some(asked);
    }

    /// Ends those that have waited for longer than `patience` while Redis answered us.
    pub fn end(&mut self, upstreams: &Upstreams, patience: Duration) {
        let now = Instant::now();
        if self.looked.is_some_and(|looked| now < looked + PACE) {
            return;
        }
        self.looked = Some(now);
        let open = upstreams.all();
        self.waiting.retain(|number, _| open.iter().any(|upstream| upstream.number() == *number));
        for upstream in open {
            if self.is_silent(&upstream, patience, now) {
                warn!(
                    connection = upstream.number(),
                    "Redis answers us and not a connection of clients: closing that"
                );
                upstream.doom();
            }
        }
    }

    fn is_silent(&mut self, upstream: &Upstream, patience: Duration, now: Instant) -> bool {
        let Some(progress) = upstream.waits() else {
            self.waiting.remove(&upstream.number());
            return false;
        };
        let waiting = self.waiting.entry(upstream.number()).or_insert(Waiting { progress, since: now });
        if waiting.progress != progress {
            *waiting = Waiting { progress, since: now };
        }
        self.asked.is_some_and(|asked| asked > waiting.since + patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_connection_is_silent_if_redis_answers_what_was_asked_later() {
        let (upstreams, _abandoned) = Upstreams::new("cachefence:s:1".into());
        let (upstream, mut silence) = (upstreams.register(), Silence::default());
        let start = Instant::now();
        let look =
            |silence: &mut Silence, at: u32| silence.is_silent(&upstream, 5 * SECOND, start + at * SECOND);
        silence.answered(start + 100 * SECOND);
        assert!(!look(&mut silence, 0), "it waits for nothing");
        upstream.moved(1, true);
        assert!(!look(&mut silence, 99), "it has only just been seen");
        assert!(!look(&mut silence, 200), "Redis has not answered since: it may be busy");
        silence.answered(start + 104 * SECOND);
        assert!(!look(&mut silence, 201), "not for long enough");
        silence.answered(start + 105 * SECOND);
        assert!(look(&mut silence, 202));
        upstream.moved(1, true);
        assert!(!look(&mut silence, 203), "it moves");
        silence.answered(start + 300 * SECOND);
        upstream.moved(0, false);
        assert!(!look(&mut silence, 301), "it has got everything");
    }
}
