//! The last fifteen minutes, so that whoever opens the page sees how things came to be as they are.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

/// Between two samples.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);
const SAMPLES: usize = 15 * 60 / 5;

/// What the page draws, at one time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// For how long the feed had been behind, in seconds.
    pub feed_lag: f64,
    /// The feed was lost.
    pub lost: bool,
    /// Fills that had been refused since the start (in observe: that would have been).
    pub refused: u64,
    /// Each source, and how many bytes of WAL it was behind the feed; nothing while it could not be polled.
    pub sources: Vec<(String, Option<u64>)>,
}

/// The samples of the last fifteen minutes, the oldest first.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<Sample>);

impl History {
    /// Adds the next.
    pub(super) fn push(&mut self, sample: Sample) {
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// All of them.
    pub(super) fn samples(&self) -> &VecDeque<Sample> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifteen_minutes_are_remembered() {
        let mut history = History::default();
        for at in 0..1000 {
            history.push(Sample { at, ..Sample::default() });
        }
        assert_eq!(history.samples().len() as u64 * INTERVAL.as_secs(), 15 * 60);
        assert_eq!(history.samples().front().map(|sample| sample.at), Some(820));
    }
}
