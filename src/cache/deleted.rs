//! What was deleted lately, so that it can be deleted again in a Redis whose data went back a little.

use std::collections::VecDeque;

use crate::guard::CacheKey;
use crate::position::Lsn;

/// The most bytes of keys that are remembered. A Redis that lost more than that is purged instead.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// The keys of recent commits, in commit order.
#[derive(Debug, Default)]
pub(super) struct Deleted {
    keys: VecDeque<(Lsn, CacheKey)>,
    bytes: usize,
    /// Complete above this position.
    since: Lsn,
}

impl Deleted {
    /// Begins again: everything above `since` will be here.
    pub fn restart(&mut self, since: Lsn) {
        *self = Self { since, ..Self::default() };
    }

    /// Nothing up to `lsn` can be deleted again by name.
    pub fn lost(&mut self, lsn: Lsn) {
        if lsn > self.since {
            self.restart(lsn);
        }
    }

    /// Adds a key. One of a commit that was sent again is here already.
    pub fn push(&mut self, lsn: Lsn, key: CacheKey) {
        if self.keys.back().is_some_and(|(last, _)| lsn < *last) {
            return;
        }
        self.bytes += key.name.len();
        self.keys.push_back((lsn, key));
        while self.bytes > MAX_BYTES {
            let Some((dropped, key)) = self.keys.pop_front() else { return };
            self.bytes -= key.name.len();
            self.since = self.since.max(dropped);
        }
    }

    /// The keys of every commit above `lsn`, if all of them are still known.
    pub fn after(&self, lsn: Lsn) -> Option<impl Iterator<Item = &CacheKey>> {
        let first = self.keys.partition_point(|(at, _)| *at <= lsn);
        (lsn >= self.since).then(|| self.keys.range(first..).map(|(_, key)| key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_knows_what_it_no_longer_knows() {
        let mut deleted = Deleted::default();
        deleted.restart(Lsn(10));
        let key = |name: &[u8]| CacheKey { db: 0, name: name.to_vec() };
        deleted.push(Lsn(20), key(b"a"));
        deleted.push(Lsn(30), key(b"b"));
        let after =
            |deleted: &Deleted, lsn| deleted.after(Lsn(lsn)).map(|keys| keys.cloned().collect::<Vec<_>>());
        assert_eq!(after(&deleted, 10), Some(vec![key(b"a"), key(b"b")]));
        assert_eq!(after(&deleted, 20), Some(vec![key(b"b")]));
        assert_eq!(after(&deleted, 9), None);
        deleted.push(Lsn(40), key(&vec![0; MAX_BYTES]));
        assert_eq!(after(&deleted, 20), None, "b was dropped for lack of room");
        assert_eq!(after(&deleted, 30).map(|keys| keys.len()), Some(1));
    }
}
