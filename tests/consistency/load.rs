//! How much of everything there is.

use std::time::Duration;

pub use crate::dice::Dice;

/// The load of a run.
#[derive(Clone, Debug)]
pub struct Load {
    /// Rows, and keys of each remedy.
    pub keys: u32,
    pub writers: u64,
    /// Readers of each remedy.
    pub readers: u64,
    /// Keys that are read in one pipeline, at most.
    pub page: u64,
    /// A writer's pause between two transactions is below this, in milliseconds.
    pub write_pause: u64,
    /// A reader's pause between two pages is below this, in milliseconds.
    pub read_pause: u64,
    /// How long entries live, in milliseconds.
    pub ttl: u64,
    /// One in so many of the applications' own deletions is lost.
    pub lost: u64,
    /// The second of two deletions comes after this.
    pub second_delete: Duration,
    /// How late the replica's replay is, at most, in milliseconds.
    pub replica_delay: u64,
    pub seed: u64,
}

/// A miss vouches for so long.
pub const LEASE_TTL: Duration = Duration::from_secs(3);
/// Applications give up on a fill that took so long: what a miss vouches for ends, and the machine is busy.
pub const TOO_LATE: Duration = Duration::from_millis(500);
/// A pause between a miss and its fill is below this, in milliseconds.
pub const FILL_PAUSE: u64 = 250;

impl Load {
    /// For `cargo test`: a few hot keys, and a replica and deletions that are bad enough to show within seconds.
    pub fn short() -> Self {
        Self {
            keys: 60,
            writers: 3,
            readers: 6,
            page: 8,
            write_pause: 120,
            read_pause: 10,
            ttl: 2_000,
            lost: 10,
            second_delete: Duration::from_millis(200),
            replica_delay: 600,
            seed: 0x5EED,
        }
    }

    /// For `make consistency`, each by a variable of its name.
    ///
    /// # Errors
    /// When a variable is not a number.
    pub fn long() -> Result<Self, String> {
        Ok(Self {
            keys: variable("KEYS", 2_000)?.clamp(1, 1 << 24) as u32,
            writers: variable("WRITERS", 8)?,
            readers: variable("READERS", 18)?,
            page: variable("PAGE", 32)?,
            write_pause: variable("WRITE_PAUSE_MS", 200)?,
            read_pause: variable("READ_PAUSE_MS", 30)?,
            ttl: variable("TTL_MS", 120_000)?,
            lost: variable("LOST", 1_000)?,
            second_delete: Duration::from_millis(variable("SECOND_DELETE_MS", 500)?),
            replica_delay: variable("REPLICA_DELAY_MS", 1_000)?,
            seed: variable("SEED", 0x5EED)?,
        })
    }
}

/// A number from the environment.
///
/// # Errors
/// When it is something else.
pub fn variable(name: &str, otherwise: u64) -> Result<u64, String> {
    match std::env::var(name) {
        Ok(text) => text.replace('_', "").parse().map_err(|_| format!("{name}={text} is not a whole number")),
        Err(_) => Ok(otherwise),
    }
}
