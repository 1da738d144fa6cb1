//! Rows to keys, and a commit to fences.
//!
//! While a transaction arrives its keys are collected, each once. At its commit every key is fenced, the
//! settlement hears of it, and what has to be deleted is handed out. Nothing here waits for anything.
//!
//! ```text
//!  rules        a table as the stream describes it: which columns make the keys
//!  render       a row -> its keys
//!  transaction  the keys of the transaction that is arriving
//! ```

mod render;
mod rules;
mod transaction;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use render::{Row, put_db, render, without_db};
use rules::{Rules, fit, fit_version};
use transaction::{Transaction, Versions, bound};

use super::catalog::{Table, learn};
use super::job::Invalidation;
use super::positions::Positions;
use super::state::{BROKEN_BY_STREAM, FeedState};
use crate::fence::{self, FillId, KeyHash, RowChange, Write};
use crate::guard::{CacheKey, GuardId, Guards, key_hash};
use crate::pg::pgoutput::{Message, OldTuple, Relation, Tuple};
use crate::pg::replication::unix_micros;
use crate::position::Lsn;

/// The prefix of `pg_logical_emit_message` that names keys to fence (fact F7).
pub const MESSAGE_PREFIX: &str = "cachefence";

/// Keys that one transaction may name before its guards are fenced as a whole: memory stays bounded.
const MAX_TRANSACTION_KEYS: usize = 1_000_000;

/// Keys that messages of one transaction may name before they are fenced and handed on for deletion without waiting
/// for the rest of it.
const MAX_NAMED_KEYS: usize = 10_000;

/// What a message means for the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing yet: inside a transaction.
    Nothing,
    /// A commit that touched no guarded key: the position moves.
    Position(Lsn),
    /// A commit with keys. They are fenced.
    Commit(Invalidation),
}

/// Turns messages into fences and deletions.
#[derive(Debug)]
pub struct Applier {
    guards: Arc<Guards>,
    db: u32,
    positions: Arc<Positions>,
    state: Arc<FeedState>,
    /// The types that the templates were made for.
    tables: Vec<Table>,
    /// The guards with these.
    learnt: Guards,
    /// By the table's oid; tables without a guard are not in it.
    relations: HashMap<u32, Rules>,
    transaction: Option<Transaction>,
    max_keys: usize,
    max_named: usize,
    /// Names were dropped for lack of room, and that was said.
    said_dropped: bool,
    /// Reused for every key: that of the old row, and that of the new one.
    key: [Vec<u8>; 2],
}

impl Applier {
    /// Keys that no guard derives are in the Redis db `db`.
    pub fn new(guards: Arc<Guards>, db: u32, positions: Arc<Positions>, state: Arc<FeedState>) -> Self {
        Self {
            learnt: (*guards).clone(),
            guards,
            db,
            positions,
            state,
            tables: Vec::new(),
            relations: HashMap::new(),
            transaction: None,
            max_keys: MAX_TRANSACTION_KEYS,
            max_named: MAX_NAMED_KEYS,
            said_dropped: false,
            key: Default::default(),
        }
    }

    /// A new stream begins: it describes every table again and starts with whole transactions.
    pub fn restart(&mut self, tables: Vec<Table>) {
        self.learnt = learn(&self.guards, &tables);
        self.tables = tables;
        self.relations.clear();
        self.transaction = None;
    }

    /// Whether a transaction is arriving: positions of keepalives do not count meanwhile.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// When the transaction that is arriving was committed.
    pub fn arriving_since(&self) -> Option<i64> {
        self.transaction.as_ref().map(|transaction| transaction.commit_time_us)
    }

    /// Takes one message.
    pub fn apply(&mut self, message: Message<'_>) -> Applied {
        match message {
            Message::Begin { xid, commit_lsn, commit_time } => {
                let commit_time_us = unix_micros(commit_time);
                self.transaction =
                    Some(Transaction { xid, commit_lsn, commit_time_us, ..Transaction::default() });
            }
            Message::Commit { end_lsn, commit_time, .. } => {
                return self.commit(end_lsn, unix_micros(commit_time));
            }
            Message::Relation(relation) => self.relation(&relation),
            Message::Insert { relation, new } => self.change(relation, None, Some(new), true),
            Message::Update { relation, old, new } => self.change(relation, old, Some(new), false),
            Message::Delete { relation, old } => self.change(relation, Some(old), None, false),
            Message::Truncate(tables) => {
                for oid in tables.relations() {
                    if let (Some(rules), Some(transaction)) =
                        (self.relations.get(&oid), &mut self.transaction)
                    {
                        transaction.truncate(rules.guard);
                    }
                }
            }
            Message::Logical { transactional: true, prefix: MESSAGE_PREFIX, content, .. } => {
                return self.name(content);
            }
            Message::Logical { .. } | Message::Origin { .. } | Message::Type { .. } => {}
        }
        Applied::Nothing
    }

    /// A message names a key: in the db of those guards that name none, and wherever it is guarded.
    fn name(&mut self, key: &[u8]) -> Applied {
        let Some(transaction) = &mut self.transaction else { return Applied::Nothing };
        let guarded = self.guards.dbs().filter(|db| !self.guards.matching(*db, key).is_empty());
        let [rendered, _] = &mut self.key;
        for db in guarded.chain([self.db]) {
            rendered.clear();
            rendered.extend_from_slice(key);
            put_db(rendered, db);
            if !transaction.named.contains(&rendered[..]) {
                transaction.named.insert(rendered.clone());
            }
        }
        if transaction.named.len() < self.max_named {
            return Applied::Nothing;
        }
        self.hand_on_names()
    }

    /// A transaction names more keys than shall be held at a time. What arrives is committed already, so those that are
    /// here can be fenced and deleted now. Where the commit record ends is not known yet. But nobody ever stands in the
    /// middle of a record, so to have passed its beginning is to have passed its end; and up to its beginning all is
    /// received, and no more of it may be confirmed: the transaction has to be sent again if we stop here.
    fn hand_on_names(&mut self) -> Applied {
        let Some(transaction) = &mut self.transaction else { return Applied::Nothing };
        let (end_lsn, commit_time_us) = (transaction.commit_lsn, transaction.commit_time_us);
        let lsn = Lsn(end_lsn.0.saturating_add(1));
        let write = Write { xid: self.positions.extend(transaction.xid), lsn };
        let named = std::mem::take(&mut transaction.named);
        let mut draining = Vec::new();
        let keys = self.fence_names(named, write, &mut draining);
        // A miss is worth less than this write until the transaction is visible, although its end is far off.
        self.positions.received(write);
        Applied::Commit(Invalidation { end_lsn, commit_time_us, keys, truncated: Vec::new(), draining })
    }

    /// Fences keys that messages have named, and has fills of theirs judged.
    fn fence_names(
        &mut self,
        named: HashSet<Vec<u8>>,
        write: Write,
        draining: &mut Vec<(KeyHash, FillId)>,
    ) -> Vec<CacheKey> {
        let fence = self.positions.fence();
        let mut room = true;
        let fence_name = |key: Vec<u8>| {
            let key = without_db(key);
            let hash = key_hash(key.db, &key.name);
            // Named first: a fill that comes in between is known to be in flight, and waited for.
            room &= fence.name(hash, write.lsn);
            fence.write(hash, write, draining);
            key
        };
        let keys = named.into_iter().map(fence_name).collect();
        if !room && !std::mem::replace(&mut self.said_dropped, true) {
            tracing::warn!(
                "more keys were fenced by name than can be remembered: fills of the oldest are not judged any more"
            );
        }
        keys
    }

    /// A table's layout, new or changed.
    fn relation(&mut self, relation: &Relation<'_>) {
        let guard =
            self.guards.iter().find(|guard| guard.schema == relation.schema && guard.table == relation.name);
        let before = self.relations.remove(&relation.oid);
        let Some(guard) = guard else {
            // A guarded table that now has another name, and no other has taken its place.
            if let Some(before) = before
                && !self.relations.values().any(|rules| rules.guard == before.guard && !rules.broken)
            {
                let why = format!("the table was renamed to {}.{}", relation.schema, relation.name);
                self.break_guard(before.guard, &why);
            }
            return;
        };
        let known = self.tables.iter().find(|table| table.guard == guard.id);
        let id = guard.id;
        let version = self.learnt.get(id).map_or(Ok(None), |guard| fit_version(guard, relation));
        let rules = match fit(guard, known, relation).and_then(|templates| Ok((templates, version?))) {
            Ok((templates, version)) => {
                if self.state.is_broken_by(id, BROKEN_BY_STREAM)
                    && let Some(transaction) = &mut self.transaction
                {
                    // What changed meanwhile is not known: everything from before goes.
                    transaction.truncate(id);
                    transaction.mended.push(id);
                }
                Rules { guard: id, templates, version, broken: false }
            }
            Err(why) => {
                self.break_guard(id, &why);
                Rules { guard: id, templates: Vec::new(), version: None, broken: true }
            }
        };
        self.relations.insert(relation.oid, rules);
    }

    /// From now on fills of the guard are refused, and what is cached goes with this transaction. In that order:
    /// the fence of the whole guard at commit catches the fills that were let in before.
    fn break_guard(&mut self, guard: GuardId, why: &str) {
        self.state.set_broken(guard, BROKEN_BY_STREAM, true);
        let table = self.guards.get(guard).map_or("", |guard| guard.label.as_str());
        tracing::error!(guard = table, why, "a guard is broken: its fills are refused until this is mended");
        if let Some(transaction) = &mut self.transaction {
            transaction.truncate(guard);
        }
    }

    /// The keys of a row before and after.
    fn change(&mut self, oid: u32, old: Option<OldTuple<'_>>, new: Option<Tuple<'_>>, is_insert: bool) {
        let (Some(rules), Some(transaction)) = (self.relations.get(&oid), &mut self.transaction) else {
            return;
        };
        let Some(guard) = self.learnt.get(rules.guard) else { return };
        if transaction.truncated.contains(&rules.guard) {
            return;
        }
        if rules.broken {
            // Its fills are refused since it broke; a whole fence keeps those judged that come after it is mended.
            transaction.truncate(rules.guard);
            return;
        }
        let old = old.map(|old| old.tuple().values().collect::<Row<'_>>());
        let new = new.map(|new| new.values().collect::<Row<'_>>());
        let old_value = |column: usize| old.as_ref().and_then(|row| row.get(column)).copied();
        let new_value = |column: usize| new.as_ref().and_then(|row| row.get(column)).copied();
        let version = rules.version;
        let new_version = version.and_then(|v| v.of_row(new_value(v.place)));
        // Of an old row the columns of the replica identity are sent, and where none is sent, they have not changed.
        let old_version = match version.filter(|v| v.in_identity) {
            Some(_) if old.is_none() => new_version,
            Some(version) => version.of_row(old_value(version.place)),
            None => None,
        };
        let versions = Versions { old: old_version, new: new_version };
        for (template, columns) in guard.templates.iter().zip(&rules.templates) {
            let Some(made) = render(template, columns, [old.as_ref(), new.as_ref()], guard.db, &mut self.key)
            else {
                // Should not happen: Postgres sends large values of the replica identity with the old row.
                tracing::warn!(
                    guard = guard.label,
                    "a row came without a value that a key needs: the whole guard is fenced"
                );
                transaction.truncate(rules.guard);
                return;
            };
            let [old_key, new_key] = &self.key;
            // Without an old row the columns of the replica identity have not changed, and so has no key.
            let stays = if old.is_none() { !is_insert } else { made == [true, true] && old_key == new_key };
            let tells = template.is_one_row() && version.is_some();
            if made[0] && !stays {
                transaction.name(old_key, rules.guard, tells.then_some(RowChange::Deleted(versions.old)));
            }
            if made[1] {
                let change = if stays { versions.updated() } else { RowChange::Inserted(versions.new) };
                transaction.name(new_key, rules.guard, tells.then_some(change));
            }
        }
        if transaction.keys.len() > self.max_keys {
            bound(transaction, &self.guards, self.max_keys);
        }
        if transaction.keys.len() % 1024 == 1023 {
            let keys = transaction.keys.len() as u64;
            self.state.transaction_keys.store(keys, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Fence every key, then tell the settlement, then hand out the deletions: a lease that is granted in between
    /// is worth no more than what was settled before.
    fn commit(&mut self, end_lsn: Lsn, commit_time_us: i64) -> Applied {
        let Some(transaction) = self.transaction.take() else { return Applied::Position(end_lsn) };
        self.state.transaction_keys.store(0, std::sync::atomic::Ordering::Relaxed);
        if transaction.keys.is_empty() && transaction.named.is_empty() && transaction.truncated.is_empty() {
            return Applied::Position(end_lsn);
        }
        let write = Write { xid: self.positions.extend(transaction.xid), lsn: end_lsn };
        let mut draining = Vec::new();
        // First, and without those that are a row's as well: each key once. What a message names has changed by more than
        // its row, of which the row's version says nothing.
        let (mut named, mut rows) = (transaction.named, transaction.keys);
        named.retain(|key| rows.get_mut(key).map(|of_row| of_row.row = None).is_none());
        let named = self.fence_names(named, write, &mut draining);
        let fence = self.positions.fence();
        let mut keys = Vec::with_capacity(rows.len() + named.len());
        for (key, named) in rows {
            let key = without_db(key);
            let hash = key_hash(key.db, &key.name);
            match named.row {
                Some(changes) => fence.write_row(hash, write, &changes, &mut draining),
                None => fence.write(hash, write, &mut draining),
            }
            keys.push(key);
        }
        keys.extend(named);
        for guard in &transaction.truncated {
            fence.write_guard(fence::GuardId(guard.0), write, &mut draining);
        }
        for guard in transaction.mended {
            // Only if the last word on it in this transaction was good.
            if !self.relations.values().any(|rules| rules.guard == guard && rules.broken) {
                self.state.set_broken(guard, BROKEN_BY_STREAM, false);
                let table = self.guards.get(guard).map_or("", |guard| guard.label.as_str());
                tracing::warn!(guard = table, "a broken guard is mended");
            }
        }
        self.positions.received(write);
        Applied::Commit(Invalidation {
            end_lsn,
            commit_time_us,
            keys,
            truncated: transaction.truncated,
            draining,
        })
    }
}

#[cfg(test)]
mod tests;
