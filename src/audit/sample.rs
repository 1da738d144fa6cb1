//! Which reads are looked at.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config;

/// The share of reads that is looked at, for all threads.
#[derive(Debug, Default)]
pub struct Sample {
    /// Of 2^64; 0 is none.
    share: AtomicU64,
}

thread_local! {
    /// Each thread draws by itself; 0: it has not yet.
    static DRAWN: Cell<u64> = const { Cell::new(0) };
}

impl Sample {
    /// This share.
    pub fn new(share: config::Share) -> Self {
        let sample = Self::default();
        sample.set(share);
        sample
    }

    /// This share from now on.
    pub fn set(&self, share: config::Share) {
        self.share.store(share.of_u64(), Ordering::Relaxed);
    }

    /// Whether any read is looked at.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.share.load(Ordering::Relaxed) > 0
    }

    /// Whether the next read is.
    #[inline]
    pub fn takes(&self) -> bool {
        let share = self.share.load(Ordering::Relaxed);
        share > 0 && draw() <= share
    }
}

/// A number that looks like any (xorshift64*): which hits are sampled is no secret, and has to cost nothing.
#[cold]
fn draw() -> u64 {
    DRAWN.with(|drawn| {
        let mut x = drawn.get();
        if x == 0 {
            // The place of a thread's own is another one for each thread.
            x = std::ptr::from_ref(drawn) as u64 | 1;
        }
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        drawn.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(text: &str) -> config::Share {
        #[derive(serde::Deserialize)]
        struct Settings {
            sample: config::Share,
        }
        let settings: Settings = toml::from_str(&format!("sample = {text}")).expect("a share");
        settings.sample
    }

    #[test]
    fn about_the_share_is_taken() {
        for (text, from, to) in
            [("0", 0, 0), ("0.01", 700, 1300), ("0.5", 48_000, 52_000), ("1", 100_000, 100_000)]
        {
            let sample = Sample::new(share(text));
            let taken = (0..100_000).filter(|_| sample.takes()).count();
            assert!((from..=to).contains(&taken), "{text}: {taken}");
        }
    }
}
