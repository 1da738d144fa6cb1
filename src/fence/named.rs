//! Keys that somebody fenced by name, in a message of the transaction, because no guard's template derives them.
//!
//! Whether a key is one is asked for every key of every command that no guard covers, so where there is none that
//! must cost next to nothing. A name is kept for as long as its write is remembered: once the floor has passed it,
//! nothing is left to judge a fill by.

use std::collections::{HashMap, VecDeque};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::KeyHash;
use super::hashed::AsItIs;
use super::locks::{read, write};
use crate::position::Lsn;

/// Names that are kept, at most. Beyond it the oldest go, and fills of theirs are judged no more.
const MAX_NAMES: usize = 100_000;

/// The keys that were fenced by name lately.
#[derive(Debug)]
pub(super) struct Named {
    max: usize,
    count: AtomicUsize,
    dropped: AtomicU64,
    names: RwLock<Names>,
}

#[derive(Debug, Default)]
struct Names {
    /// Each with its last write.
    writes: HashMap<KeyHash, Lsn, std::hash::BuildHasherDefault<AsItIs>>,
    /// In the order of the writes. A key that was written again is here again.
    order: VecDeque<(Lsn, KeyHash)>,
}

impl Default for Named {
    fn default() -> Self {
        Self::with_room_for(MAX_NAMES)
    }
}

impl Named {
    fn with_room_for(max: usize) -> Self {
        Self { max, count: AtomicUsize::new(0), dropped: AtomicU64::new(0), names: RwLock::default() }
    }

    /// Keeps a key that a write at `lsn` named. False if an older one had to go for it.
    pub fn add(&self, key: KeyHash, lsn: Lsn) -> bool {
        let mut names = write(&self.names);
        let before = names.writes.get(&key).copied();
        // One that is sent again is here already.
        if before.is_some_and(|before| before >= lsn) {
            return true;
        }
        names.writes.insert(key, lsn);
        names.order.push_back((lsn, key));
        let Names { writes, order } = &mut *names;
        if order.len() > 2 * self.max {
            // What was named again and again is there once from now on.
            order.retain(|(lsn, key)| writes.get(key) == Some(lsn));
        }
        let mut dropped = 0;
        while writes.len() > self.max {
            let Some((lsn, key)) = order.pop_front() else { break };
            if writes.get(&key) == Some(&lsn) {
                writes.remove(&key);
                dropped += 1;
            }
        }
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
        self.count.store(writes.len(), Ordering::Relaxed);
        dropped == 0
    }

    /// Whether a key was named. One relaxed load while none was.
    pub fn has(&self, key: KeyHash) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && read(&self.names).writes.contains_key(&key)
    }

    /// Drops the names whose writes the floor has passed.
    pub fn forget(&self, floor: Lsn) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut names = write(&self.names);
        while names.order.front().is_some_and(|(lsn, _)| *lsn <= floor) {
            let Some((lsn, key)) = names.order.pop_front() else { break };
            if names.writes.get(&key) == Some(&lsn) {
                names.writes.remove(&key);
            }
        }
        self.count.store(names.writes.len(), Ordering::Relaxed);
    }

    /// Another history begins above `floor`. The keys stay judged: until that floor has passed, evidence from before it
    /// is refused for them as well.
    pub fn restart(&self, floor: Lsn) {
        let mut names = write(&self.names);
        let above = Lsn(floor.0.saturating_add(1));
        let Names { writes, order } = &mut *names;
        writes.values_mut().for_each(|lsn| *lsn = above);
        *order = writes.keys().map(|key| (above, *key)).collect();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// How many had to go for lack of room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: KeyHash = KeyHash(1);
    const B: KeyHash = KeyHash(2);
    const C: KeyHash = KeyHash(3);

    #[test]
    fn a_name_is_kept_until_the_floor_has_passed_its_last_write() {
        let named = Named::default();
        assert!(!named.has(A));
        assert!(named.add(A, Lsn(10)) && named.add(B, Lsn(20)) && named.add(A, Lsn(30)));
        assert!(named.add(A, Lsn(10)), "sent again");
        named.forget(Lsn(20));
        assert!(named.has(A) && !named.has(B) && !named.has(C));
        named.forget(Lsn(30));
        assert!(!named.has(A));
        assert_eq!(named.len(), 0);
    }

    #[test]
    fn for_lack_of_room_the_oldest_go() {
        let named = Named::with_room_for(2);
        assert!(named.add(A, Lsn(10)) && named.add(B, Lsn(20)) && named.add(A, Lsn(30)));
        assert!(!named.add(C, Lsn(40)));
        assert!(named.has(A) && !named.has(B) && named.has(C));
        assert_eq!((named.len(), named.dropped()), (2, 1));
        // One key, again and again: the order does not grow without end.
        for lsn in 50..70 {
            named.add(A, Lsn(lsn));
        }
        assert!(named.has(A) && named.has(C));
        assert!(read(&named.names).order.len() <= 5);
    }

    #[test]
    fn names_outlive_a_gap_by_one_history() {
        let named = Named::default();
        named.add(A, Lsn(500));
        // Another timeline: its positions are not comparable.
        named.restart(Lsn(100));
        named.forget(Lsn(100));
        assert!(named.has(A));
        named.forget(Lsn(101));
        assert!(!named.has(A));
    }
}
