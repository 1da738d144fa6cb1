//! How far the feed is behind the database, in time.
//!
//! No clock of this host is compared with one of the database's: they differ, and a feed that is level would seem to
//! be behind by the difference. [`ServerClock`] tells commit times by our clock; [`Behind`] needs none of the server's.

use std::sync::{Mutex, PoisonError};

use crate::fence::Millis;
use crate::position::Lsn;

/// The server's clock by ours, in microseconds: its messages say when they were sent.
#[derive(Debug, Default)]
pub(super) struct ServerClock {
    /// What has to be added to the server's time.
    ahead: Option<i64>,
}

impl ServerClock {
    /// A message that was sent at `sent` by the server's clock is read at `now` by ours. Unless it is `prompt` it may
    /// have waited to be read: then it tells only how far the clocks are apart at most.
    pub fn heard(&mut self, sent: i64, now: i64, prompt: bool) {
        let ahead = now.saturating_sub(sent);
        self.ahead = Some(self.ahead.filter(|held| !prompt && *held < ahead).unwrap_or(ahead));
    }

    /// A time of the server's, by our clock.
    pub fn ours(&self, theirs: i64) -> i64 {
        theirs.saturating_add(self.ahead.unwrap_or(0))
    }
}

/// A flushed position can lie inside of a record whose end is not flushed for some seconds, and which cannot be sent until
/// then. It would look like lag where nothing is committed. Records are shorter than this, but for the largest rows.
const RECORD: u64 = 1024 * 1024;

/// Since when the feed has been behind, as far as can be seen without it: the log of the primary was flushed up to
/// some position, by a poll, and has not been applied up to there.
#[derive(Debug)]
pub(super) struct Behind {
    since: Mutex<Option<(Lsn, Millis)>>,
}

impl Behind {
    /// Nothing has been applied yet.
    pub fn new() -> Self {
        Self { since: Mutex::new(Some((Lsn(u64::MAX), 0))) }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Option<(Lsn, Millis)>) -> T) -> T {
        change(&mut self.since.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The primary's log is flushed up to here.
    pub fn flushed(&self, flushed: Lsn, applied: Lsn, now: Millis) {
        let surely = Lsn(flushed.0.saturating_sub(RECORD));
        if surely > applied {
            // The first position that is not reached counts: later ones have been behind for less long.
            self.with(|since| *since.get_or_insert((surely, now)));
        }
    }

    /// The stream has ended: whatever is committed from now on is missed until the next one.
    pub fn interrupted(&self, now: Millis) {
        self.with(|since| *since = Some((Lsn(u64::MAX), since.map_or(now, |(_, at)| at))));
    }

    /// A stream has begun, when the log was flushed up to here.
    pub fn resumed(&self, flushed: Lsn) {
        self.with(|since| *since = since.map(|(_, at)| (flushed, at)));
    }

    /// Since when something that is not applied is known to be there.
    pub fn since(&self, applied: Lsn) -> Option<Millis> {
        self.with(|since| {
            *since = since.filter(|(position, _)| applied < *position);
            since.map(|(_, at)| at)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_differ_do_not_count_as_lag() {
        let mut clock = ServerClock::default();
        // Two hours ahead of us; the message was on its way for 10.
        clock.heard(7_200_000_100, 110, true);
        assert_eq!(clock.ours(7_200_000_090), 100);
        // Read late, as we were blocked: that a commit waited is lag.
        clock.heard(7_200_000_200, 5_000, false);
        assert_eq!(clock.ours(7_200_000_190), 200);
        // Somebody sets the server's clock, back and forth.
        clock.heard(6_000, 6_001, true);
        assert_eq!(clock.ours(6_000), 6_001);
        clock.heard(9_000_000, 6_002, false);
        assert_eq!(clock.ours(9_000_000), 6_002);
    }

    #[test]
    fn it_is_behind_from_the_first_position_that_is_not_reached() {
        let behind = Behind::new();
        assert_eq!(behind.since(Lsn(99)), Some(0), "nothing was ever applied");
        behind.resumed(Lsn(100));
        assert_eq!(behind.since(Lsn(99)), Some(0));
        assert_eq!(behind.since(Lsn(100)), None);
        behind.flushed(Lsn(100 + RECORD), Lsn(100), 10);
        assert_eq!(behind.since(Lsn(100)), None, "it may be half of a record");
        behind.flushed(Lsn(110 + RECORD), Lsn(100), 20);
        behind.flushed(Lsn(120 + RECORD), Lsn(100), 30);
        assert_eq!(behind.since(Lsn(109)), Some(20));
        assert_eq!(behind.since(Lsn(110)), None);
        // Without a stream it grows, though the database is idle.
        behind.interrupted(40);
        behind.interrupted(50);
        assert_eq!(behind.since(Lsn(110)), Some(40));
        behind.resumed(Lsn(110));
        assert_eq!(behind.since(Lsn(110)), None);
    }
}
