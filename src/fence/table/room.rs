//! Bounded memory: what of the table is counted, what is dropped, and the floor that is raised before.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::mapref::entry::Entry;

use super::super::KeyHash;
use super::super::Millis;
use super::super::caps::Caps;
use super::super::key::KeyState;
use super::super::locks::lock;
use super::Fence;
use crate::position::Lsn;

/// The table is cut for room in steps of this share of `max_keys`.
const CUT: usize = 16;

/// What of a key is counted.
#[derive(Clone, Copy, Default)]
pub(super) struct Counted {
    entries: usize,
    writes: bool,
    leases: usize,
    versions: bool,
    caps: usize,
}

impl Counted {
    fn of(state: &KeyState) -> Self {
        Self {
            entries: usize::from(!state.is_empty()),
            writes: state.has_write(),
            leases: state.leases(),
            versions: state.versions().is_some(),
            caps: state.caps().map_or(0, Caps::len),
        }
    }
}

#[derive(Default)]
pub(super) struct Cuts {
    pub(super) at: VecDeque<Lsn>,
}

impl Cuts {
    /// Drops the cuts that the floor has passed: each of them would cost a walk of the table and drop nothing.
    fn forget(&mut self, floor: Lsn) {
        while self.at.front().is_some_and(|cut| *cut <= floor) {
            self.at.pop_front();
        }
    }

    /// The lowest cut above the floor.
    fn next(&mut self, floor: Lsn) -> Option<Lsn> {
        self.forget(floor);
        self.at.pop_front()
    }
}

impl Fence {
    /// Drops leases that have ended and writes that the floor has passed, makes room, and gives memory back. Walks the
    /// whole table, one shard at a time: for a thread that may block, every few seconds.
    pub fn sweep(&self, now: Millis) {
        self.make_room();
        self.sweep_below_floor(now);
        self.keys.shrink();
        // Nothing is known while another history begins; what was named stays named.
        let floor = Some(self.floor()).filter(|floor| *floor != Lsn(u64::MAX));
        floor.into_iter().for_each(|floor| self.named.forget(floor));
    }

    fn sweep_below_floor(&self, now: Millis) {
        self.retain(|state| {
            if let Some(extra) = state.existing_extra() {
                extra.leases.expire(now);
                extra.caps.iter_mut().for_each(|caps| caps.expire(now));
            }
            state.forget(self.floor());
        });
    }

    /// Drops the oldest writes where there are more than `max_keys`, raising the floor first; and a share more than that, or the
    /// next write would have to walk the table again.
    fn make_room(&self) {
        let _room = lock(&self.room);
        lock(&self.cuts).forget(self.floor());
        if self.written_keys.load(Ordering::Relaxed) <= self.limits.max_keys {
            return;
        }
        let least = self.limits.max_keys - self.limits.max_keys / CUT;
        while self.written_keys.load(Ordering::Relaxed) > least {
            let written = Lsn(self.written.load(Ordering::Relaxed));
            let cut = lock(&self.cuts).next(self.floor()).unwrap_or(written);
            self.floor.fetch_max(cut.0, Ordering::SeqCst);
            self.sweep_below_floor(0);
        }
    }

    /// Remembers where the table stood each time that a share of `max_keys` had been added, so that room is
    /// made by position: the floor is one LSN, not a set of keys.
    fn write_added(&self) {
        let share = (self.limits.max_keys / CUT).max(1);
        // Without the lock, which a share needs once.
        if (self.added.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(share) {
            let mut cuts = lock(&self.cuts);
            cuts.forget(self.floor());
            let written = Lsn(self.written.load(Ordering::Relaxed));
            if cuts.at.back().is_none_or(|last| *last < written) {
                cuts.at.push_back(written);
            }
        }
        if self.written_keys.load(Ordering::Relaxed) > self.limits.max_keys {
            self.make_room();
        }
    }

    /// Changes one key's state under its lock, and keeps the counts. A state that ends empty is dropped.
    pub(super) fn change<R>(&self, key: KeyHash, change: impl FnOnce(&mut KeyState) -> R) -> R {
        // Counted before the lock goes: otherwise a sweep could take away what was not added yet.
        let (result, before, after) = match self.keys.entry(key) {
            Entry::Occupied(mut entry) => {
                let before = Counted::of(entry.get());
                let result = change(entry.get_mut());
                entry.get_mut().forget(self.floor());
                let after = Counted::of(entry.get());
                self.count(before, after);
                if entry.get().is_empty() {
                    entry.remove();
                }
                (result, before, after)
            }
            Entry::Vacant(entry) => {
                let mut state = KeyState::default();
                let result = change(&mut state);
                let after = Counted::of(&state);
                self.count(Counted::default(), after);
                if !state.is_empty() {
                    entry.insert(state);
                }
                (result, Counted::default(), after)
            }
        };
        // After the lock is gone: making room takes them all.
        if after.writes && !before.writes {
            self.write_added();
        }
        result
    }

    /// Changes every key's state; those that end empty are dropped.
    pub(super) fn retain(&self, mut change: impl FnMut(&mut KeyState)) {
        self.keys.retain(|state| {
            let before = Counted::of(state);
            change(state);
            self.count(before, Counted::of(state));
            !state.is_empty()
        });
    }

    fn count(&self, before: Counted, after: Counted) {
        let adjust = |counter: &AtomicUsize, before: usize, after: usize| {
            // Wrapping: one addition, whichever way.
            counter.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        };
        if before.leases != after.leases {
            adjust(&self.lease_count, before.leases, after.leases);
        }
        if before.caps != after.caps {
            adjust(&self.cap_count, before.caps, after.caps);
        }
        if before.entries != after.entries {
            adjust(&self.entry_count, before.entries, after.entries);
        }
        if before.versions != after.versions {
            adjust(&self.version_count, usize::from(before.versions), usize::from(after.versions));
        }
        if before.writes != after.writes {
            adjust(&self.written_keys, usize::from(before.writes), usize::from(after.writes));
        }
    }
}
