//! When recent commits were made, by their positions: the fence does not remember that.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::position::Lsn;

/// Commits that are remembered, at most: a megabyte.
const MOST: usize = 65_536;

/// The times of recent commits of guarded keys.
#[derive(Debug, Default)]
pub struct Commits {
    held: Mutex<VecDeque<(Lsn, i64)>>,
    /// Somebody will ask.
    wanted: AtomicBool,
}

impl Commits {
    /// Whether commits are remembered from now on. What is missing in between is not known to be.
    pub fn remember(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    /// Takes commits, by their ends, with their times in microseconds since 1970. Those that are sent again are known.
    pub fn add(&self, commits: impl Iterator<Item = (Lsn, i64)>) {
        if !self.wanted.load(Ordering::Relaxed) {
            return;
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for (lsn, at) in commits {
            if held.back().is_none_or(|(last, _)| *last < lsn) {
                if held.len() == MOST {
                    held.pop_front();
                }
                held.push_back((lsn, at));
            }
        }
    }

    /// Another history begins, which has positions of its own.
    pub fn restart(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// When the commit that ended here was made, if it is remembered.
    pub fn at(&self, lsn: Lsn) -> Option<i64> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let place = held.binary_search_by_key(&lsn, |(lsn, _)| *lsn).ok()?;
        held.get(place).map(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_found_until_there_are_too_many() {
        let commits = Commits::default();
        commits.add([(Lsn(5), 1)].into_iter());
        assert_eq!(commits.at(Lsn(5)), None, "nobody asks");
        commits.remember(true);
        commits.add((1..=MOST as u64).map(|n| (Lsn(n * 10), n as i64)));
        // Sent again.
        commits.add([(Lsn(10), 7)].into_iter());
        assert_eq!((commits.at(Lsn(10)), commits.at(Lsn(11)), commits.at(Lsn(0))), (Some(1), None, None));
        commits.add([(Lsn(10 * MOST as u64 + 1), 7)].into_iter());
        assert_eq!((commits.at(Lsn(10)), commits.at(Lsn(20))), (None, Some(2)));
        commits.restart();
        assert_eq!(commits.at(Lsn(20)), None);
    }
}
