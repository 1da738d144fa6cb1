//! Rows to keys, and a commit to fences.
//!
//! While a transaction arrives its keys are collected, each once. At its commit every key is fenced, the
//! settlement hears of it, and what has to be deleted is handed out. Nothing here waits for anything.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::catalog::{Table, column_kind};
use super::job::Invalidation;
use super::positions::Positions;
use super::state::{BROKEN_BY_STREAM, FeedState};
use crate::fence::{self, FillId, KeyHash, Write};
use crate::guard::{CacheKey, ColumnKind, Guard, GuardId, Guards, key_hash};
use crate::pg::pgoutput::{Message, OldTuple, Relation, Tuple, Value};
use crate::pg::replication::unix_micros;
use crate::position::Lsn;

/// The prefix of `pg_logical_emit_message` that names keys to fence (fact F7).
pub const MESSAGE_PREFIX: &str = "cachefence";

/// Keys that one transaction may name before its guards are fenced as a whole: memory stays bounded.
const MAX_TRANSACTION_KEYS: usize = 1_000_000;

/// Keys that messages of one transaction may name before they are fenced and handed on for deletion without waiting
/// for the rest of it.
const MAX_NAMED_KEYS: usize = 10_000;

/// A guard on a table as the stream describes it.
#[derive(Debug)]
struct Rules {
    guard: GuardId,
    /// Per template, per placeholder, the column's index.
    templates: Vec<Vec<usize>>,
    /// Rows cannot be turned into keys: the columns are not what the templates need.
    broken: bool,
}

/// The transaction that is arriving.
#[derive(Debug, Default)]
struct Transaction {
    xid: u32,
    /// Each key once, with the guard that named it.
    /// Each with its db behind it (see [`put_db`]), so that it can be looked up where it was rendered.
    keys: HashMap<Vec<u8>, GuardId>,
    /// Those that messages have named, in the same form.
    named: HashSet<Vec<u8>>,
    /// Where its commit record begins.
    commit_lsn: Lsn,
    commit_time_us: i64,
    truncated: Vec<GuardId>,
    /// Broken guards whose layout fits again, once this is committed.
    mended: Vec<GuardId>,
}

impl Transaction {
    fn truncate(&mut self, guard: GuardId) {
        if !self.truncated.contains(&guard) {
            self.truncated.push(guard);
            self.keys.retain(|_, of| *of != guard);
        }
    }
}

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
    /// By the table's oid; tables without a guard are not in it.
    relations: HashMap<u32, Rules>,
    transaction: Option<Transaction>,
    max_keys: usize,
    max_named: usize,
    /// Names were dropped for lack of room, and that was said.
    said_dropped: bool,
    /// Reused for every key.
    key: Vec<u8>,
}

impl Applier {
    /// Keys that no guard derives are in the Redis db `db`.
    pub fn new(guards: Arc<Guards>, db: u32, positions: Arc<Positions>, state: Arc<FeedState>) -> Self {
        Self {
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
            key: Vec::new(),
        }
    }

    /// A new stream begins: it describes every table again and starts with whole transactions.
    pub fn restart(&mut self, tables: Vec<Table>) {
        self.tables = tables;
        self.relations.clear();
        self.transaction = None;
    }

    /// Whether a transaction is arriving: positions of keepalives do not count meanwhile.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
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
            Message::Insert { relation, new } => self.change(relation, None, Some(new)),
            Message::Update { relation, old, new } => self.change(relation, old, Some(new)),
            Message::Delete { relation, old } => self.change(relation, Some(old), None),
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
        for db in guarded.chain([self.db]) {
            self.key.clear();
            self.key.extend_from_slice(key);
            put_db(&mut self.key, db);
            if !transaction.named.contains(&self.key[..]) {
                transaction.named.insert(self.key.clone());
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
        let rules = match fit(guard, known, relation) {
            Ok(templates) => {
                if self.state.is_broken_by(id, BROKEN_BY_STREAM)
                    && let Some(transaction) = &mut self.transaction
                {
                    // What changed meanwhile is not known: everything from before goes.
                    transaction.truncate(id);
                    transaction.mended.push(id);
                }
                Rules { guard: id, templates, broken: false }
            }
            Err(why) => {
                self.break_guard(id, &why);
                Rules { guard: id, templates: Vec::new(), broken: true }
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
    fn change(&mut self, oid: u32, old: Option<OldTuple<'_>>, new: Option<Tuple<'_>>) {
        let (Some(rules), Some(transaction)) = (self.relations.get(&oid), &mut self.transaction) else {
            return;
        };
        let Some(guard) = self.guards.get(rules.guard) else { return };
        if transaction.truncated.contains(&rules.guard) {
            return;
        }
        if rules.broken {
            // Its fills are refused since it broke; a whole fence keeps those judged that come after it is mended.
            transaction.truncate(rules.guard);
            return;
        }
        let old = old.map(|old| old.tuple().values().collect::<smallvec::SmallVec<[Value<'_>; 32]>>());
        let new = new.map(|new| new.values().collect::<smallvec::SmallVec<[Value<'_>; 32]>>());
        let old_value = |column: usize| old.as_ref().and_then(|row| row.get(column)).copied();
        let new_value = |column: usize| new.as_ref().and_then(|row| row.get(column)).copied();
        for (template, columns) in guard.templates.iter().zip(&rules.templates) {
            for is_new in [false, true] {
                if (is_new && new.is_none()) || (!is_new && old.is_none()) {
                    continue;
                }
                let value = |n: usize| {
                    let column = columns.get(n).copied().unwrap_or(usize::MAX);
                    if is_new {
                        sent(new_value(column), old_value(column))
                    } else {
                        sent(old_value(column), new_value(column))
                    }
                };
                if (0..columns.len()).any(|n| !matches!(value(n), Some(Value::Text(_) | Value::Null))) {
                    // Should not happen: Postgres sends large values of the replica identity with the old row.
                    tracing::warn!(
                        guard = guard.label,
                        "a row came without a value that a key needs: the whole guard is fenced"
                    );
                    transaction.truncate(rules.guard);
                    return;
                }
                self.key.clear();
                let text = |n: usize| match value(n) {
                    Some(Value::Text(text)) => Some(text),
                    _ => None,
                };
                if !template.render(text, &mut self.key) {
                    continue;
                }
                put_db(&mut self.key, guard.db);
                if !transaction.keys.contains_key(&self.key[..]) {
                    transaction.keys.insert(self.key.clone(), rules.guard);
                }
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
        // First, and without those that are a row's as well: each key once.
        let mut named = transaction.named;
        named.retain(|key| !transaction.keys.contains_key(key));
        let named = self.fence_names(named, write, &mut draining);
        let fence = self.positions.fence();
        let mut keys: Vec<CacheKey> = transaction.keys.into_keys().map(without_db).collect();
        for key in &keys {
            fence.write(key_hash(key.db, &key.name), write, &mut draining);
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

/// Puts the db behind a key.
fn put_db(key: &mut Vec<u8>, db: u32) {
    key.extend_from_slice(&db.to_le_bytes());
}

/// Takes it off again.
fn without_db(mut key: Vec<u8>) -> CacheKey {
    let (_, db) = key.split_last_chunk().unwrap_or((&[], &[0; 4]));
    let db = u32::from_le_bytes(*db);
    key.truncate(key.len() - size_of::<u32>());
    CacheKey { db, name: key }
}

/// A value that one row leaves out as unchanged is in the other.
fn sent<'a>(value: Option<Value<'a>>, other: Option<Value<'a>>) -> Option<Value<'a>> {
    if value == Some(Value::Unchanged) { other } else { value }
}

/// A transaction with too many keys: its largest guards are fenced as a whole instead.
fn bound(transaction: &mut Transaction, guards: &Guards, max_keys: usize) {
    while transaction.keys.len() > max_keys {
        let mut counts: HashMap<GuardId, usize> = HashMap::new();
        for guard in transaction.keys.values() {
            *counts.entry(*guard).or_default() += 1;
        }
        let Some((guard, keys)) = counts.into_iter().max_by_key(|(_, count)| *count) else { return };
        let table = guards.get(guard).map_or("", |guard| guard.label.as_str());
        tracing::warn!(guard = table, keys, "a huge transaction: the whole guard is fenced and purged");
        transaction.truncate(guard);
    }
}

/// The columns that a guard's templates need, or why they cannot be had.
fn fit(guard: &Guard, known: Option<&Table>, relation: &Relation<'_>) -> Result<Vec<Vec<usize>>, String> {
    let columns: Vec<_> = relation.columns().collect();
    let place = |name: &String| -> Result<usize, String> {
        let (index, column) = columns
            .iter()
            .enumerate()
            .find(|(_, column)| column.name == name)
            .ok_or_else(|| format!("column {name:?} is gone"))?;
        if !column.in_identity {
            return Err(format!("column {name:?} is not in the replica identity any more"));
        }
        // A key is recognised by what its columns could print when the templates were made.
        let made_for = known.map_or(ColumnKind::Any, |table| table.kind(name));
        if made_for != ColumnKind::Any && made_for != column_kind(column.type_oid) {
            return Err(format!("column {name:?} has another type; restart to take it in"));
        }
        Ok(index)
    };
    guard.templates.iter().map(|template| template.columns().iter().map(place).collect()).collect()
}

#[cfg(test)]
mod tests;
