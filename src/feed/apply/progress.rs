//! What the log is told of a large transaction while it passes.

use std::time::{Duration, Instant};

/// Between two lines of the log.
const PACE: Duration = Duration::from_secs(2);

/// How much of a transaction has been handed on in parts.
#[derive(Debug, Default)]
pub(super) struct Progress {
    keys: u64,
    /// When the first part was, and when something was said.
    since: Option<(Instant, Instant)>,
}

impl Progress {
    /// A part of so many keys is handed on. How many there were in all.
    pub fn part(&mut self, keys: usize) -> u64 {
        self.keys += keys as u64;
        let now = Instant::now();
        let (_, said) = self.since.get_or_insert((now, now));
        if now.duration_since(*said) >= PACE {
            *said = now;
            tracing::info!(keys = self.keys, "a large transaction is passing");
        }
        self.keys
    }

    /// Whether there was a part.
    pub fn is_under_way(&self) -> bool {
        self.since.is_some()
    }

    /// It is complete, with so many keys in the end.
    pub fn end(&mut self, keys: usize) {
        let Some((began, _)) = self.since else { return };
        let (keys, seconds) = (self.keys + keys as u64, began.elapsed().as_secs_f64());
        tracing::info!(keys, seconds, "a large transaction has passed: all its keys are fenced");
    }
}
