//! How far every guarded key is deleted, and who waits for how far (`AFTER`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use crate::position::Lsn;

/// The position up to which every key of every commit is deleted. Unlike the applied position, which moves no faster
/// than the marker is written, it moves as soon as that is true: with the feed itself while nothing is to be deleted,
/// so on an idle database with the positions of keepalives.
#[derive(Debug, Default)]
pub struct Reached {
    lsn: AtomicU64,
    waiting: Arc<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// The lowest position that somebody waits for; `u64::MAX` if nobody does, so that the feed need not take the lock.
    lowest: AtomicU64,
    wakers: Mutex<Wakers>,
}

#[derive(Debug, Default)]
struct Wakers {
    by_position: BTreeMap<(Lsn, u64), Waker>,
    next: u64,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { lowest: AtomicU64::new(u64::MAX), wakers: Mutex::default() }
    }
}

impl Waiting {
    fn change<T>(&self, change: impl FnOnce(&mut Wakers) -> T) -> T {
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut wakers);
        let lowest = wakers.by_position.first_key_value().map_or(u64::MAX, |((lsn, _), _)| lsn.0);
        self.lowest.store(lowest, Ordering::SeqCst);
        result
    }
}

/// Somebody who waits for a position, for as long as this lives.
#[derive(Debug)]
pub struct Awaited {
    waiting: Arc<Waiting>,
    key: (Lsn, u64),
}

impl Reached {
    /// How far it is.
    pub fn lsn(&self) -> Lsn {
        Lsn(self.lsn.load(Ordering::SeqCst))
    }

    /// Moves it, back as well: a stream that starts over is taken at its word, and another history has positions of
    /// its own.
    pub(super) fn set(&self, lsn: Lsn) {
        self.lsn.store(lsn.0, Ordering::SeqCst);
        if self.waiting.lowest.load(Ordering::SeqCst) > lsn.0 {
            return;
        }
        let woken = self.waiting.change(|wakers| {
            let later = wakers.by_position.split_off(&(Lsn(lsn.0.saturating_add(1)), 0));
            std::mem::replace(&mut wakers.by_position, later)
        });
        woken.into_values().for_each(Waker::wake);
    }

    /// Has somebody woken once it is at `lsn` or beyond. Look at [`Reached::lsn`] after this: it may have been there
    /// before.
    pub fn wait(&self, lsn: Lsn, waker: Waker) -> Awaited {
        let key = self.waiting.change(|wakers| {
            let key = (lsn, wakers.next);
            wakers.next += 1;
            wakers.by_position.insert(key, waker);
            key
        });
        Awaited { waiting: self.waiting.clone(), key }
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.waiting.change(|wakers| wakers.by_position.remove(&self.key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn those_are_woken_whose_position_is_reached() {
        let reached = Reached::default();
        let counted = Arc::new(Counted::default());
        let wait = |lsn| reached.wait(Lsn(lsn), Waker::from(counted.clone()));
        let _waits = [wait(10), wait(20), wait(20), wait(30)];
        let gone = wait(20);
        drop(gone);
        for (lsn, woken) in [(9, 0), (10, 1), (5, 1), (20, 3), (29, 3), (u64::MAX, 4)] {
            reached.set(Lsn(lsn));
            assert_eq!(counted.0.load(Ordering::SeqCst), woken, "at {lsn}");
            assert_eq!(reached.lsn(), Lsn(lsn));
        }
        assert_eq!(reached.waiting.lowest.load(Ordering::SeqCst), u64::MAX);
    }
}
