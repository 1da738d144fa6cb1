//! The transaction that is arriving: its keys, each once.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;

use super::progress::Progress;
use crate::fence::{RowChange, RowChanges, Version};
use crate::guard::GuardId;
use crate::position::Lsn;

/// The versions of a row before and after a change, as far as they are sent.
#[derive(Clone, Copy)]
pub(super) struct Versions {
    pub old: Option<Version>,
    pub new: Option<Version>,
}

impl Versions {
    pub fn updated(self) -> RowChange {
        RowChange::Updated { old: self.old, new: self.new }
    }
}

/// A key of a transaction.
#[derive(Debug)]
pub(super) struct Named {
    /// The guard that named it first.
    pub guard: GuardId,
    /// What became of its row: none if other rows may feed it as well.
    pub row: Option<Box<RowChanges>>,
}

/// Keys, with what became of them.
pub(super) type Keys = HashMap<Vec<u8>, Named, RandomState>;

/// An empty one that has been used. To grow another would cost more than to fill it.
#[derive(Debug, Default)]
pub(super) struct Spare(Keys);

impl Spare {
    pub fn take(&mut self) -> Keys {
        std::mem::take(&mut self.0)
    }

    /// Keeps one in which so many keys were, unless it is much larger than that: emptying it takes its whole length.
    pub fn put_back(&mut self, keys: Keys, held: usize) {
        if keys.is_empty() && keys.capacity() <= 4 * held.max(8) {
            self.0 = keys;
        }
    }
}

/// The transaction that is arriving: what of it has not been handed on.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    pub xid: u32,
    /// Each key once, with its db behind it (see [`put_db`]), so that it can be looked up where it was rendered.
    pub keys: Keys,
    /// Those that messages have named, in the same form.
    pub named: HashSet<Vec<u8>, RandomState>,
    /// Where its commit record begins.
    pub commit_lsn: Lsn,
    pub commit_time_us: i64,
    pub truncated: Vec<GuardId>,
    /// Broken guards whose layout fits again, once this is committed.
    pub mended: Vec<GuardId>,
    /// By a look at the catalog: layouts that do not fit are from before.
    pub looked: bool,
    pub progress: Progress,
}

impl Transaction {
    /// Keys that wait to be fenced.
    pub fn collected(&self) -> usize {
        self.keys.len() + self.named.len()
    }

    pub fn truncate(&mut self, guard: GuardId) {
        if !self.truncated.contains(&guard) {
            self.truncated.push(guard);
            self.keys.retain(|_, named| named.guard != guard);
        }
    }

    /// A change of a key. `row` tells what became of the one row that feeds it, if it is one.
    pub fn name(&mut self, key: &[u8], guard: GuardId, row: Option<RowChange>) {
        match (self.keys.get_mut(key), row) {
            (None, row) => {
                let row = row.map(|change| Box::new(RowChanges::new(guard, change)));
                self.keys.insert(key.to_vec(), Named { guard, row });
            }
            (Some(Named { guard: of, row: Some(changes) }), Some(change)) if *of == guard => {
                changes.add(change)
            }
            (Some(named), _) => named.row = None,
        }
    }
}
