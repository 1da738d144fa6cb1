//! Every key's state, by the key's hash.
//!
//! The states are in shards with a lock each. A shard is a hash table whose places are a power of two, and it doubles them
//! when seven eighths are taken: what a key takes swings between 38 and 75 bytes. If the number of shards were a power
//! of two as well, all of them would swing together, and ten million keys would take 57 each. So there are as many as
//! make a full table's shards three quarters full: 45 bytes at ten million, and room for leases before they double.

use std::hash::BuildHasherDefault;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use dashmap::mapref::one::Ref;

use super::super::KeyHash;
use super::super::hashed::AsItIs;
use super::super::key::KeyState;

type Hashed = BuildHasherDefault<AsItIs>;
type Shards = DashMap<KeyHash, KeyState, Hashed>;

/// How full shards are to be when the table is, at most. Leases add a tenth of keys at most with the default settings, and
/// `max_keys` is overshot by a sixteenth.
const FULL: f64 = 0.75;
/// How full a shard can be.
const FULLEST: f64 = 0.875;
/// The shards come in this many groups at least, and less than twice as many.
const GROUPS: usize = 8;
/// Below this many places a shard is not worth giving memory back.
const FEW: usize = 64;

pub(super) struct Keys {
    groups: Box<[Shards]>,
    /// In a group.
    shards: usize,
}

impl Keys {
    /// Without a key yet. With up to so many shards.
    pub fn new(max_keys: usize, shards: usize) -> Self {
        // A group needs two.
        let of_group = (shards.next_power_of_two() / (2 * GROUPS)).max(2);
        let fullness = |groups: &usize| fullness(max_keys, groups * of_group);
        let fitting = (GROUPS..2 * GROUPS).filter(|groups| fullness(groups) <= FULL);
        let groups = fitting.max_by(|a, b| fullness(a).total_cmp(&fullness(b))).unwrap_or(GROUPS);
        let group = || DashMap::with_capacity_and_hasher_and_shard_amount(0, Hashed::default(), of_group);
        Self { groups: (0..groups).map(|_| group()).collect(), shards: of_group }
    }

    /// The shards that a key can be in. By other bits of its hash than those that pick the shard, and the place in it.
    #[inline]
    fn group(&self, key: KeyHash) -> &Shards {
        let bits = key.0 & u64::from(u32::MAX);
        &self.groups[((bits * self.groups.len() as u64) >> 32) as usize]
    }

    #[inline]
    pub fn get(&self, key: KeyHash) -> Option<Ref<'_, KeyHash, KeyState>> {
        self.group(key).get(&key)
    }

    #[inline]
    pub fn entry(&self, key: KeyHash) -> Entry<'_, KeyHash, KeyState> {
        self.group(key).entry(key)
    }

    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = dashmap::mapref::multiple::RefMulti<'_, KeyHash, KeyState>> {
        self.groups.iter().flat_map(DashMap::iter)
    }

    /// One shard is locked at a time.
    pub fn each(&self, mut change: impl FnMut(KeyHash, &mut KeyState)) {
        for group in &self.groups {
            group.iter_mut().for_each(|mut entry| change(*entry.key(), entry.value_mut()));
        }
    }

    /// The same; drops the states of which this says false.
    #[inline]
    pub fn retain(&self, mut keep: impl FnMut(&mut KeyState) -> bool) {
        for group in &self.groups {
            group.retain(|_, state| keep(state));
        }
    }

    /// Gives the memory of free places back, where most are free: a table that was full once is not full for ever.
    pub fn shrink(&self) {
        for group in &self.groups {
            if group.capacity() > FEW * self.shards && group.len() < group.capacity() / 4 {
                group.shrink_to_fit();
            }
        }
    }
}

/// What share of the places of so many shards so many keys take.
fn fullness(keys: usize, shards: usize) -> f64 {
    let of_shard = keys as f64 / shards as f64;
    let places = (of_shard / FULLEST).max(1.0).log2().ceil().exp2();
    of_shard / places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_is_full() {
        for max_keys in [100_000, 1_000_000, 3_000_000, 10_000_000, 14_680_064, 100_000_000] {
            let keys = Keys::new(max_keys, 1024);
            let shards = keys.groups.len() * keys.shards;
            let fullness = fullness(max_keys, shards);
            assert!((0.65..=FULL).contains(&fullness), "{max_keys} keys in {shards} shards: {fullness}");
            assert!((512..1024).contains(&shards), "{shards}");
        }
        let keys = Keys::new(10_000_000, 1024);
        assert_eq!(keys.groups.len() * keys.shards, 832);
    }

    #[test]
    fn keys_are_spread_and_found() {
        let keys = Keys::new(10_000_000, 1024);
        let hash = |n: u64| KeyHash(crate::guard::key_hash(0, &n.to_le_bytes()).0);
        for n in 0..10_000 {
            keys.entry(hash(n)).or_default();
        }
        assert!((0..10_000).all(|n| keys.get(hash(n)).is_some()));
        let least = keys.groups.iter().map(DashMap::len).min();
        assert!(least > Some(10_000 / keys.groups.len() * 3 / 4), "{least:?}");
    }

    #[test]
    fn memory_of_keys_that_have_gone_is_given_back() {
        let keys = Keys::new(10_000, 32);
        let places = || keys.groups.iter().map(DashMap::capacity).sum::<usize>();
        for n in 0..100_000_u64 {
            keys.entry(KeyHash(n.wrapping_mul(0x9E37_79B9_7F4A_7C15))).or_default();
        }
        let full = places();
        keys.shrink();
        assert_eq!(places(), full, "most places are taken");
        keys.retain(|_| false);
        keys.shrink();
        assert_eq!(places(), 0);
    }
}
