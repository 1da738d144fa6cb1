//! Numbers that look random.

use std::time::Duration;

/// Numbers that look random, the same for the same seed.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides.max(1)
    }

    pub fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }

    pub fn millis(&mut self, below: u64) -> Duration {
        Duration::from_millis(self.roll(below))
    }

    /// Others, for a task of its own.
    pub fn split(&mut self) -> Self {
        Self::new(self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(self.roll(64) as u32))
    }
}
