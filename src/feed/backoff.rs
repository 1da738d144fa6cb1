//! How long to wait before trying again.

use std::hash::BuildHasher;
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Exponential, from 100 ms to 5 s, each shortened by up to a half at random so that many proxies do not
/// come back to a restarted server in step.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// It worked: the next failure waits shortly again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait after one more failure.
    pub fn next(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        // A hash with a fresh random seed: as random as jitter has to be.
        let random = std::hash::RandomState::new().hash_one(self.failures) % 512;
        full - full.mul_f64(random as f64 / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_five_seconds_and_starts_over() {
        let mut backoff = Backoff::default();
        for n in 0..20 {
            let full = FIRST.saturating_mul(1 << n.min(10)).min(LONGEST);
            let wait = backoff.next();
            assert!(wait <= full && wait >= full / 2, "{n}: {wait:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
