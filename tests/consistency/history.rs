//! What happened: every write with its beginning and its acknowledgement, every read with its start and its end, on
//! one monotonic clock.

use std::time::{Duration, Instant};

/// Microseconds since the beginning of the run, rounded down. An hour fits, and a read into 16 bytes.
pub type Micros = u32;

/// The clock of a run.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now(self) -> Micros {
        micros(self.0.elapsed())
    }
}

pub fn micros(time: Duration) -> Micros {
    Micros::try_from(time.as_micros()).unwrap_or(Micros::MAX)
}

/// Where the value of a read came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A hit.
    Cache,
    /// A miss that the primary answered.
    Primary,
    /// A miss that the replica answered.
    Replica,
}

/// A read that returned a version of a key.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    pub start: Micros,
    pub end: Micros,
    pub version: u32,
    key_and_origin: u32,
}

impl Read {
    pub fn new(key: u32, origin: Origin, version: u32, start: Micros, end: Micros) -> Self {
        Self { start, end, version, key_and_origin: key << 2 | origin as u32 }
    }

    pub fn key(&self) -> u32 {
        self.key_and_origin >> 2
    }

    pub fn origin(&self) -> Origin {
        match self.key_and_origin & 3 {
            0 => Origin::Cache,
            1 => Origin::Primary,
            _ => Origin::Replica,
        }
    }
}

/// A committed write of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    pub key: u32,
    pub version: u32,
    /// Before the first statement was sent.
    pub begun: Micros,
    /// After COMMIT was answered.
    pub acknowledged: Micros,
}

/// The writes of one key, by version.
#[derive(Clone, Debug, Default)]
pub struct KeyHistory {
    initial: u32,
    writes: Vec<Write>,
    /// For each write the earliest acknowledgement of it and all that follow: those of two sessions can be seen in
    /// another order than that of their commits.
    known: Vec<Micros>,
}

impl KeyHistory {
    /// # Errors
    /// When two writes have one version: then it does not order them.
    pub fn new(initial: u32, mut writes: Vec<Write>) -> Result<Self, String> {
        writes.sort_unstable_by_key(|write| write.version);
        let mut last = initial;
        for write in &writes {
            if write.version <= last {
                return Err(format!("version {last} of key {} is followed by {write:?}", write.key));
            }
            last = write.version;
        }
        let mut known: Vec<Micros> = writes.iter().map(|write| write.acknowledged).collect();
        for n in (1..known.len()).rev() {
            known[n - 1] = known[n - 1].min(known[n]);
        }
        Ok(Self { initial, writes, known })
    }

    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// How many of the writes a version includes.
    pub fn included(&self, version: u32) -> usize {
        self.writes.partition_point(|write| write.version <= version)
    }

    /// Since when it is known that a version is not the last: the first acknowledgement of a newer one.
    pub fn outdated(&self, version: u32) -> Option<Micros> {
        self.known.get(self.included(version)).copied()
    }

    /// Whether a read can have returned this version at all: it was there at the beginning, or its write had begun.
    pub fn is_possible(&self, version: u32, end: Micros) -> bool {
        let write = self.included(version).checked_sub(1).and_then(|n| self.writes.get(n));
        match write {
            Some(write) => write.version == version && write.begun <= end,
            None => version == self.initial,
        }
    }
}
