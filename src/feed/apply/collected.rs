//! The keys of a transaction that has not committed yet, held compactly: in one log, in the order they came, each with
//! the subtransaction that named it.

use std::collections::HashMap;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;

/// A log grows by pieces of this size: it never has to be copied as a whole.
const PIECE: usize = 64 * 1024;
/// So many keys are recognised when they come again. One that comes again later is in the log twice, as one that two parts
/// of a large transaction have is deleted twice.
const RECOGNISED: usize = 16 * 1024;

/// Where a key of a subtransaction is.
#[derive(Debug, Clone, Copy)]
struct Place {
    xid: u32,
    piece: u32,
    at: u32,
}

/// Keys, each with a number (its guard's) and the subtransaction that named it.
///
/// An entry is the number and the key's length, seven bits to a byte, and the key. Where the subtransaction changes, the
/// number 0 comes before its xid; so numbers are one higher here.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pieces: Vec<Vec<u8>>,
    /// Of the last entry.
    xid: Option<u32>,
    /// By hash. Of two with one hash the later one counts.
    recognised: HashMap<u64, Place, RandomState>,
    hasher: RandomState,
    bytes: usize,
}

impl Collected {
    /// The memory that it takes, about.
    pub fn bytes(&self) -> usize {
        self.bytes + self.recognised.capacity() * (size_of::<(u64, Place)>() + 1)
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// A key of a subtransaction.
    pub fn add(&mut self, xid: u32, number: u32, key: &[u8]) {
        let hash = self.hasher.hash_one((xid, number, key));
        if self.recognised.get(&hash).is_some_and(|place| self.is_there(*place, xid, number, key)) {
            return;
        }
        // Number, length and xid take no more than five bytes each.
        let length = key.len() + 3 * 5 + 1;
        let fits = |piece: &Vec<u8>| piece.capacity() - piece.len() >= length;
        if !self.pieces.last().is_some_and(fits) {
            // The first is small: many transactions are.
            let size = if self.pieces.is_empty() { 1024 } else { PIECE };
            let piece = Vec::with_capacity(size.max(length));
            self.bytes += piece.capacity() + size_of::<Vec<u8>>();
            self.pieces.push(piece);
        }
        let count = self.pieces.len();
        let Some(piece) = self.pieces.last_mut() else { return };
        if self.xid != Some(xid) {
            self.xid = Some(xid);
            piece.push(0);
            put_number(piece, xid);
        }
        let at = piece.len();
        put_number(piece, number.saturating_add(1));
        put_number(piece, u32::try_from(key.len()).unwrap_or(u32::MAX));
        piece.extend_from_slice(key);
        if self.recognised.len() >= RECOGNISED {
            self.recognised.clear();
        }
        if let (Ok(piece), Ok(at)) = (u32::try_from(count - 1), u32::try_from(at)) {
            self.recognised.insert(hash, Place { xid, piece, at });
        }
    }

    fn is_there(&self, place: Place, xid: u32, number: u32, key: &[u8]) -> bool {
        let entry = self.pieces.get(place.piece as usize).and_then(|piece| piece.get(place.at as usize..));
        let read = |mut entry: &[u8]| {
            let is_number = take_number(&mut entry)? == number.saturating_add(1);
            let length = take_number(&mut entry)? as usize;
            Some(is_number && entry.get(..length)? == key)
        };
        place.xid == xid && entry.and_then(read).unwrap_or(false)
    }

    /// To be read from its beginning; what has been read is let go.
    pub fn read(self) -> Reading {
        Reading { pieces: self.pieces.into_iter(), piece: Vec::new(), at: 0, xid: 0 }
    }
}

/// A log that is being read.
#[derive(Debug)]
pub(super) struct Reading {
    pieces: std::vec::IntoIter<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    xid: u32,
}

impl Reading {
    /// The next key: its subtransaction, its number, and itself.
    pub fn next(&mut self) -> Option<(u32, u32, &[u8])> {
        while self.at >= self.piece.len() {
            self.piece = self.pieces.next()?;
            self.at = 0;
        }
        // Not borrowed from here on but by what is returned.
        let mut rest = self.piece.get(self.at..)?;
        let mut number = take_number(&mut rest)?;
        if number == 0 {
            self.xid = take_number(&mut rest)?;
            number = take_number(&mut rest)?;
        }
        let length = take_number(&mut rest)? as usize;
        let key = rest.get(..length)?;
        self.at = self.piece.len() - rest.len() + length;
        Some((self.xid, number.saturating_sub(1), key))
    }
}

fn put_number(out: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<u32> {
    let mut number = 0;
    for shift in (0..32).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(collected: Collected) -> Vec<(u32, u32, Vec<u8>)> {
        let (mut reading, mut found) = (collected.read(), Vec::new());
        while let Some((xid, number, key)) = reading.next() {
            found.push((xid, number, key.to_vec()));
        }
        found
    }

    proptest! {
        #[test]
        fn what_was_added_is_read_each_once(
            keys in prop::collection::vec((any::<u32>(), 0..u32::MAX, prop::collection::vec(any::<u8>(), 0..300)), 0..300),
            again in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut collected = Collected::default();
            for (xid, number, key) in &keys {
                collected.add(*xid, *number, key);
            }
            for (xid, number, key) in again.iter().filter(|_| !keys.is_empty()).map(|n| n.get(&keys)) {
                collected.add(*xid, *number, key);
            }
            let mut seen = std::collections::HashSet::new();
            let once: Vec<_> = keys.into_iter().filter(|key| seen.insert(key.clone())).collect();
            prop_assert_eq!(collected.is_empty(), once.is_empty());
            prop_assert_eq!(all(collected), once);
        }
    }

    #[test]
    fn a_key_takes_little_more_than_its_bytes_however_many_there_are() {
        let mut collected = Collected::default();
        for n in 0..1_000_000_u32 {
            collected.add(7, 0, format!("user:{n:08}").as_bytes());
        }
        assert!(collected.bytes() < 17 * 1_000_000, "{}", collected.bytes());
        let mut reading = collected.read();
        let mut n = 0_u32;
        while let Some(entry) = reading.next() {
            assert_eq!(entry, (7, 0, format!("user:{n:08}").as_bytes()));
            n += 1;
        }
        assert_eq!(n, 1_000_000);
    }

    #[test]
    fn one_key_of_two_subtransactions_is_there_for_each() {
        let mut collected = Collected::default();
        for xid in [1, 2, 1, 2, 1] {
            collected.add(xid, 3, b"key");
        }
        assert_eq!(all(collected), [(1, 3, b"key".to_vec()), (2, 3, b"key".to_vec())]);
    }
}
