//! How long a stream may say nothing before it is given up.

use std::time::Duration;

use crate::position::Lsn;

/// A stream that has been silent for so many times `feed_lost_after` is given up.
const BASE: u32 = 4;
/// No more than so many doublings: at the default of 20 s that is more than ten minutes.
const DOUBLINGS: u32 = 5;
/// Postgres lets go of a proxy that it has not heard no sooner than this: one that stands still for a moment, or reads by
/// a slow line, is not dead.
const LEAST_SENDER_TIMEOUT: Duration = Duration::from_secs(20);

/// A line that is cut without a word and a walsender at work look the same: neither says anything. A walsender can be at
/// work for long, on a large transaction of which it sends nothing (of tables that are not published, or a materialized
/// view that is refreshed). To give that one up is to have it begin again from the start, and again, for ever. So a stream
/// that has ended without having come any further is borne with for twice as long the next time.
#[derive(Debug)]
pub struct Patience {
    base: Duration,
    doublings: u32,
    /// How far any stream of this history has come. A stream begins where was confirmed, and that can be further back: to be
    /// sent the same again is not to come further.
    furthest: Lsn,
}

impl Patience {
    /// The stream counts as lost after this long without a message; it is given up later.
    pub fn new(feed_lost_after: Duration) -> Self {
        Self { base: feed_lost_after.saturating_mul(BASE), doublings: 0, furthest: Lsn(0) }
    }

    /// Another history begins here.
    pub fn restart(&mut self, position: Lsn) {
        self.furthest = position;
    }

    /// How long the next stream may be silent.
    pub fn limit(&self) -> Duration {
        self.base.saturating_mul(1 << self.doublings)
    }

    /// `wal_sender_timeout` of the next stream. Postgres gives up a walsender's peer by it, with which the slot is free for
    /// somebody else, but also one that it has only had no time to listen to.
    pub fn sender_timeout(&self) -> Duration {
        self.limit().max(LEAST_SENDER_TIMEOUT)
    }

    /// A stream has ended that had come so far.
    pub fn ended(&mut self, received: Lsn) {
        self.doublings = if received > self.furthest { 0 } else { (self.doublings + 1).min(DOUBLINGS) };
        self.furthest = self.furthest.max(received);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_while_nothing_comes_and_is_bounded() {
        let seconds = Duration::from_secs;
        let mut patience = Patience::new(seconds(5));
        patience.restart(Lsn(100));
        let mut limits = Vec::new();
        for _ in 0..8 {
            limits.push(patience.limit().as_secs());
            assert_eq!(patience.sender_timeout(), patience.limit());
            // Each is sent what none has confirmed, and comes as far as the one before.
            patience.ended(Lsn(100));
        }
        assert_eq!(limits, [20, 40, 80, 160, 320, 640, 640, 640]);
        patience.ended(Lsn(101));
        assert_eq!(patience.limit(), seconds(20));
        patience.restart(Lsn(50));
        patience.ended(Lsn(51));
        assert_eq!(patience.limit(), seconds(20), "positions of another history");
        let hasty = Patience::new(Duration::from_millis(100));
        assert_eq!(hasty.limit(), Duration::from_millis(400));
        assert_eq!(hasty.sender_timeout(), LEAST_SENDER_TIMEOUT);
    }
}
