//! What was deleted lately, so that it can be deleted again in a Redis whose data went back a little.

use std::collections::VecDeque;

use crate::guard::CacheKey;
use crate::position::Lsn;

/// The most memory that is used to remember keys. A Redis that lost more than that is purged instead.
const MAX_BYTES: usize = 32 * 1024 * 1024;
/// Keys are dropped by so many bytes at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// The keys of recent commits, in commit order. Packed: a large transaction passes through here with all its keys, of
/// which one by one most memory would go into the allocations.
#[derive(Debug, Default)]
pub(super) struct Deleted {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    /// Complete above this position.
    since: Lsn,
}

/// Keys one after the other: position, db, length, name.
#[derive(Debug)]
struct Chunk {
    /// The position of the last.
    last: Lsn,
    packed: Vec<u8>,
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
    pub fn push(&mut self, lsn: Lsn, key: &CacheKey) {
        if self.chunks.back().is_some_and(|chunk| lsn < chunk.last) {
            return;
        }
        // Above 4 GB, which Postgres cannot send.
        let Ok(length) = u32::try_from(key.name.len()) else { return self.lost(lsn) };
        let size = 16 + key.name.len();
        if self.chunks.back().is_none_or(|chunk| chunk.packed.len() + size > CHUNK_BYTES) {
            let packed = Vec::with_capacity(size.max(CHUNK_BYTES));
            self.bytes += packed.capacity();
            self.chunks.push_back(Chunk { last: lsn, packed });
        }
        if let Some(Chunk { last, packed }) = self.chunks.back_mut() {
            *last = lsn;
            packed.extend_from_slice(&lsn.0.to_le_bytes());
            packed.extend_from_slice(&key.db.to_le_bytes());
            packed.extend_from_slice(&length.to_le_bytes());
            packed.extend_from_slice(&key.name);
        }
        while self.bytes > MAX_BYTES {
            let Some(chunk) = self.chunks.pop_front() else { return };
            self.bytes -= chunk.packed.capacity();
            self.since = self.since.max(chunk.last);
        }
    }

    /// The keys of every commit above `lsn`, if all of them are still known.
    pub fn after(&self, lsn: Lsn) -> Option<Vec<CacheKey>> {
        let later = self.chunks.iter().filter(|chunk| chunk.last > lsn);
        let keys = later.flat_map(Chunk::keys).filter(|(at, _)| *at > lsn);
        (lsn >= self.since).then(|| keys.map(|(_, key)| key).collect())
    }
}

impl Chunk {
    fn keys(&self) -> impl Iterator<Item = (Lsn, CacheKey)> {
        let mut rest = &self.packed[..];
        std::iter::from_fn(move || {
            let (lsn, after) = rest.split_first_chunk()?;
            let (db, after) = after.split_first_chunk()?;
            let (length, after) = after.split_first_chunk()?;
            let (name, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            rest = after;
            let key = CacheKey { db: u32::from_le_bytes(*db), name: name.to_vec() };
            Some((Lsn(u64::from_le_bytes(*lsn)), key))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &[u8]) -> CacheKey {
        CacheKey { db: 3, name: name.to_vec() }
    }

    #[test]
    fn it_knows_what_it_no_longer_knows() {
        let mut deleted = Deleted::default();
        deleted.restart(Lsn(10));
        deleted.push(Lsn(20), &key(b"a"));
        deleted.push(Lsn(30), &key(b"b"));
        deleted.push(Lsn(30), &key(b""));
        assert_eq!(deleted.after(Lsn(10)), Some(vec![key(b"a"), key(b"b"), key(b"")]));
        assert_eq!(deleted.after(Lsn(20)), Some(vec![key(b"b"), key(b"")]));
        assert_eq!(deleted.after(Lsn(30)), Some(vec![]));
        assert_eq!(deleted.after(Lsn(9)), None);
        deleted.push(Lsn(20), &key(b"a"));
        assert_eq!(deleted.after(Lsn(10)).map(|keys| keys.len()), Some(3), "sent again");
        deleted.push(Lsn(40), &key(&vec![0; MAX_BYTES - CHUNK_BYTES]));
        assert_eq!(deleted.after(Lsn(29)), None, "b was dropped for lack of room");
        assert_eq!(deleted.after(Lsn(30)).map(|keys| keys.len()), Some(1));
        deleted.push(Lsn(50), &key(&vec![0; MAX_BYTES]));
        assert_eq!((deleted.after(Lsn(40)), deleted.after(Lsn(50))), (None, Some(vec![])));
    }

    /// A large transaction's keys all are at one position: those that are dropped and those that are kept.
    #[test]
    fn its_memory_is_bounded_however_many_keys_there_are() {
        let mut deleted = Deleted::default();
        deleted.restart(Lsn(10));
        for n in 0..2_000_000 {
            deleted.push(Lsn(20), &key(format!("user:{n}").as_bytes()));
        }
        let held: usize = deleted.chunks.iter().map(|chunk| chunk.packed.capacity()).sum();
        assert!(held <= MAX_BYTES && held == deleted.bytes, "{held} {}", deleted.bytes);
        assert_eq!(deleted.after(Lsn(10)), None);
        assert_eq!(deleted.after(Lsn(20)), Some(vec![]));
    }
}
