//! Rows to keys, and a commit to fences.
//!
//! While a transaction arrives its keys are collected, each once. At its commit every key is fenced, the
//! settlement hears of it, and what has to be deleted is handed out. A large transaction is fenced and handed out in
//! parts while it arrives. Nothing here waits for anything.
//!
//! ```text
//!  rules        a table as the stream describes it: which columns make the keys
//!  render       a row -> its keys
//!  transaction  the keys of the transaction that is arriving
//!  progress     what the log is told of a large one
//!  streamed     transactions that are sent while they run
//!  collected    their keys
//! ```

mod collected;
mod progress;
mod render;
mod rules;
mod streamed;
mod transaction;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use foldhash::fast::RandomState;
use render::{Row, put_db, render, without_db};
use rules::{Known, Layout, Rules, fit, fit_version};
use streamed::InProgress;
use transaction::{Spare, Transaction, Versions};

use super::catalog::{Table, learn};
use super::job::Invalidation;
use super::positions::Positions;
use super::state::{BROKEN_BY_CATALOG, BROKEN_BY_STREAM, FeedState};
use crate::failpoint::{self, Point};
use crate::fence::{FillId, KeyHash, RowChange, Write};
use crate::guard::{CacheKey, Guard, GuardId, Guards, key_hash};
use crate::pg::pgoutput::{DecodeError, Message, OldTuple, Relation, Tuple, decode, table_of_row};
use crate::pg::replication::unix_micros;
use crate::position::Lsn;

/// The prefix of `pg_logical_emit_message` that names keys to fence (fact F7).
pub const MESSAGE_PREFIX: &str = "cachefence";

/// The prefix of a message that names a table whose rows came or went without one: its guard is fenced as a whole. Or it is
/// the ticket of a look at the catalog (see [`FeedState::set_found`]), which names no table.
pub(super) const TABLE_PREFIX: &str = "cachefence:table";

/// Keys of one transaction that are collected before they are fenced and handed on for deletion without waiting for
/// the rest of it: memory stays bounded.
const PART_KEYS: usize = 10_000;

/// What a message means for the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing yet: inside a transaction.
    Nothing,
    /// A commit that touched no guarded key: the position moves.
    Position(Lsn),
    /// A commit with keys. They are fenced.
    Commit(Invalidation),
    /// Transactions in progress have more keys than can be held.
    NoRoom,
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
    /// By the table's oid, as the stream has described it.
    relations: HashMap<u32, Known, RandomState>,
    /// Layouts that have arrived.
    arrived: u64,
    transaction: Option<Transaction>,
    spare: Spare,
    in_progress: InProgress,
    part_keys: usize,
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
            relations: HashMap::default(),
            arrived: 0,
            transaction: None,
            spare: Spare::default(),
            in_progress: InProgress::default(),
            part_keys: PART_KEYS,
            said_dropped: false,
            key: Default::default(),
        }
    }

    /// The stream that begins next is read by these guards.
    pub(super) fn set_guards(&mut self, guards: Arc<Guards>) {
        self.guards = guards;
    }

    /// The guards that the stream is read by.
    pub(super) fn guards(&self) -> &Guards {
        &self.guards
    }

    /// A new stream begins: it describes every table again and starts with whole transactions.
    pub fn restart(&mut self, tables: Vec<Table>) {
        // Older than these.
        self.state.forget_found();
        self.learn(tables);
        self.relations.clear();
        self.transaction = None;
        self.forget_in_progress();
        self.state.transaction_keys.store(0, Ordering::Relaxed);
    }

    /// From here on rows are read by these tables, and keys are matched by them.
    fn learn(&mut self, tables: Vec<Table>) {
        self.learnt = learn(&self.guards, &tables);
        self.state.set_tables(&tables, &self.learnt);
        self.tables = tables;
    }

    /// Whether a message is of a row that feeds no guard: it need not be decoded.
    fn ignores(&self, message: &[u8]) -> bool {
        let feeds = |table| self.relations.get(&table).is_some_and(|known| !known.rules.is_empty());
        table_of_row(message).is_some_and(|table| !feeds(table))
    }

    /// Whether a transaction is arriving: positions of keepalives do not count meanwhile.
    ///
    /// A transaction in progress does not hold them back between its blocks. What was sent of it is no commit before
    /// that position, and what is confirmed does not make the server forget it: a slot's `restart_lsn` stays before the
    /// beginning of every transaction that was running at the confirmed position, and one whose commit is behind that
    /// position is sent again as a whole.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some() || self.in_block()
    }

    /// When the transaction that is arriving was committed, in microseconds since 1970.
    pub fn arriving_since(&self) -> Option<i64> {
        self.transaction.as_ref().map(|transaction| transaction.commit_time_us)
    }

    /// Takes one message as it was sent, once [`Self::proceed`] has nothing left of the one before.
    ///
    /// # Errors
    /// When it is not exactly one message.
    pub fn receive(&mut self, payload: &[u8]) -> Result<Applied, DecodeError> {
        if self.in_block() {
            return self.receive_in_block(payload);
        }
        if self.ignores(payload) {
            return Ok(Applied::Nothing);
        }
        Ok(self.apply(decode(payload)?))
    }

    /// Takes one message from outside of a block.
    fn apply(&mut self, message: Message<'_>) -> Applied {
        match message {
            Message::Begin { xid, commit_lsn, commit_time } => {
                let commit_time_us = unix_micros(commit_time);
                let keys = self.spare.take();
                self.transaction =
                    Some(Transaction { xid, commit_lsn, commit_time_us, keys, ..Transaction::default() });
            }
            Message::Commit { end_lsn, commit_time, .. } => {
                return self.commit(end_lsn, unix_micros(commit_time));
            }
            Message::Relation(relation) => self.relation(&relation),
            Message::Insert { relation, new } => {
                self.change(relation, None, Some(new), true);
                return self.hand_on_if_full();
            }
            Message::Update { relation, old, new } => {
                self.change(relation, old, Some(new), false);
                return self.hand_on_if_full();
            }
            Message::Delete { relation, old } => {
                self.change(relation, Some(old), None, false);
                return self.hand_on_if_full();
            }
            Message::Truncate(tables) => {
                for oid in tables.relations() {
                    if let (Some(known), Some(transaction)) =
                        (self.relations.get(&oid), &mut self.transaction)
                    {
                        known.rules.iter().for_each(|rules| transaction.truncate(rules.guard));
                    }
                }
            }
            Message::Logical { transactional: true, prefix: MESSAGE_PREFIX, content, .. } => {
                self.name(content);
                return self.hand_on_if_full();
            }
            Message::Logical { transactional: true, prefix: TABLE_PREFIX, content, .. } => {
                self.take_in(content);
            }
            Message::StreamStart { xid, is_first } => self.start_block(xid, is_first),
            Message::StreamCommit { xid, commit_lsn, end_lsn, commit_time } => {
                return self.stream_commit(xid, commit_lsn, end_lsn, commit_time);
            }
            Message::StreamAbort { xid, subxid } => self.stream_abort(xid, subxid),
            Message::Logical { .. } | Message::Origin { .. } | Message::Type { .. } | Message::StreamStop => {
            }
        }
        Applied::Nothing
    }

    /// A message names a key.
    fn name(&mut self, key: &[u8]) {
        let Some(mut transaction) = self.transaction.take() else { return };
        self.each_name(key, |key| {
            if !transaction.named.contains(key) {
                transaction.named.insert(key.to_vec());
            }
        });
        self.transaction = Some(transaction);
    }

    /// A key that a message names: in the db of those guards that name none, and wherever it is guarded.
    fn each_name(&mut self, key: &[u8], mut name: impl FnMut(&[u8])) {
        let guarded = self.guards.dbs().filter(|db| !self.guards.matching(*db, key).is_empty());
        let [rendered, _] = &mut self.key;
        for db in guarded.chain([self.db]) {
            rendered.clear();
            rendered.extend_from_slice(key);
            put_db(rendered, db);
            name(rendered);
        }
    }

    /// A transaction may have more keys than shall be held at a time. What arrives is committed already, so those that are
    /// here can be fenced and deleted now. Where the commit record ends is not known yet. But nobody ever stands in the
    /// middle of a record, so to have passed its beginning is to have passed its end; and up to its beginning all is
    /// received, and no more of it may be confirmed: the transaction has to be sent again if we stop here.
    ///
    /// A key that several parts have is fenced and deleted with each of them. Not only with the last: nobody knows which
    /// that is. And not only with the first: what is known of its row's version after one part is void with the next.
    fn hand_on_if_full(&mut self) -> Applied {
        let full = |transaction: &mut Transaction| transaction.collected() >= self.part_keys;
        let Some(mut transaction) = self.transaction.take_if(full) else { return Applied::Nothing };
        let (end_lsn, commit_time_us) = (transaction.commit_lsn, transaction.commit_time_us);
        let written_lsn = Lsn(end_lsn.0.saturating_add(1));
        let write = Write { xid: self.positions.extend(transaction.xid), lsn: written_lsn };
        let mut draining = Vec::new();
        let keys = self.fence_collected(&mut transaction, write, true, &mut draining);
        let handed = transaction.progress.part(keys.len());
        self.state.transaction_keys.store(handed, Ordering::Relaxed);
        self.transaction = Some(transaction);
        // A miss is worth less than this write until the transaction is visible, although its end is far off.
        self.positions.received(write);
        let truncated = Vec::new();
        Applied::Commit(Invalidation { end_lsn, written_lsn, commit_time_us, keys, truncated, draining })
    }

    /// Fences the keys that have been collected, each once, and leaves none.
    fn fence_collected(
        &mut self,
        transaction: &mut Transaction,
        write: Write,
        part: bool,
        draining: &mut Vec<(KeyHash, FillId)>,
    ) -> Vec<CacheKey> {
        let Transaction { keys: rows, named, .. } = transaction;
        let mut keys = Vec::with_capacity(rows.len() + named.len());
        // First, and without those that are a row's as well. What a message names has changed by more than its row, of
        // which the row's version says nothing.
        named.retain(|key| rows.get_mut(key).map(|of_row| of_row.row = None).is_none());
        self.fence_names(named.drain(), write, draining, &mut keys);
        let fence = self.positions.fence();
        for (key, named) in rows.drain() {
            let key = without_db(key);
            let hash = key_hash(key.db, &key.name);
            match named.row {
                Some(changes) if part => fence.write_row(hash, write, &changes.in_parts(), draining),
                Some(changes) => fence.write_row(hash, write, &changes, draining),
                None => fence.write(hash, write, draining),
            }
            keys.push(key);
        }
        keys
    }

    /// Fences keys that messages have named, and has fills of theirs judged.
    fn fence_names(
        &mut self,
        named: impl Iterator<Item = Vec<u8>>,
        write: Write,
        draining: &mut Vec<(KeyHash, FillId)>,
        keys: &mut Vec<CacheKey>,
    ) {
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
        keys.extend(named.map(fence_name));
        if !room && !std::mem::replace(&mut self.said_dropped, true) {
            tracing::warn!(
                "more keys were fenced by name than can be remembered: fills of the oldest are not judged any more"
            );
        }
    }

    /// A table's layout, new or changed.
    fn relation(&mut self, relation: &Relation<'_>) {
        self.arrived += 1;
        self.lay_out(relation.oid, Layout::of(relation), self.arrived);
    }

    fn lay_out(&mut self, oid: u32, layout: Layout, arrived: u64) {
        let before = self.relations.remove(&oid);
        let guards = self.fed_by(oid, &layout);
        self.ask_the_catalog(oid, &layout, before.as_ref(), &guards);
        // A guarded table that now has another name, and no other has taken its place.
        for guard in self.fed_before(oid, before.as_ref()) {
            if !guards.contains(&guard) && !self.rules_of(guard).any(|rules| !rules.broken) {
                let why = format!("the table was renamed to {}.{}", layout.schema, layout.name);
                self.break_guard(guard, &why);
            }
        }
        let mut rules = Vec::new();
        for guard in guards {
            let fitted = self.fit(guard, &layout);
            match fitted {
                Ok(_) => self.mend(guard),
                Err(ref why) => self.break_guard(guard, why),
            }
            if self.is_replaced(guard, oid, &layout)
                && let Some(transaction) = &mut self.transaction
            {
                // The rows that were there went with no word of it.
                transaction.truncate(guard);
            }
            rules.push(fitted.unwrap_or_else(|_| Rules::broken(guard)));
        }
        self.relations.insert(oid, Known { layout, rules, arrived });
    }

    /// The rules of a layout; broken ones where it does not fit.
    fn fit_all(&self, oid: u32, layout: &Layout) -> Vec<Rules> {
        let fitted = |guard| self.fit(guard, layout).unwrap_or_else(|_| Rules::broken(guard));
        self.fed_by(oid, layout).into_iter().map(fitted).collect()
    }

    /// The guards that a table's rows feed: its own, and those of the tables that it is a part of.
    fn fed_by(&self, oid: u32, layout: &Layout) -> Vec<GuardId> {
        let is_part =
            |id| self.table(id).is_some_and(|table: &Table| table.parts.iter().any(|part| part.oid == oid));
        let feeds = |guard: &&Guard| layout.is_of(guard) || is_part(guard.id);
        self.guards.iter().filter(feeds).map(|guard| guard.id).collect()
    }

    /// The guards that it fed until now. Of a table that this stream has not described yet the catalog tells: its first change
    /// may come under another name already, and it may have its own again before anybody looks.
    fn fed_before(&self, oid: u32, before: Option<&Known>) -> Vec<GuardId> {
        match before {
            Some(before) => before.rules.iter().map(|rules| rules.guard).collect(),
            None => self.tables.iter().filter(|table| table.oid == oid).map(|table| table.guard).collect(),
        }
    }

    fn table(&self, guard: GuardId) -> Option<&Table> {
        self.tables.iter().find(|table| table.guard == guard)
    }

    /// The rules of all tables that feed a guard.
    fn rules_of(&self, guard: GuardId) -> impl Iterator<Item = &Rules> {
        self.relations.values().flat_map(|known| &known.rules).filter(move |rules| rules.guard == guard)
    }

    fn fit(&self, id: GuardId, layout: &Layout) -> Result<Rules, String> {
        let Some(guard) = self.learnt.get(id) else { return Ok(Rules::broken(id)) };
        let known = self.table(id);
        let templates = fit(guard, known, layout)?;
        Ok(Rules { guard: id, templates, version: fit_version(guard, known, layout)?, broken: false })
    }

    /// Whether a table of a guard's name is another one than the catalog had under that name.
    fn is_replaced(&self, guard: GuardId, oid: u32, layout: &Layout) -> bool {
        let has_its_name = self.guards.get(guard).is_some_and(|guard| layout.is_of(guard));
        has_its_name && self.table(guard).is_some_and(|table| table.oid != oid)
    }

    /// What the stream says of a table can mean that the catalog has more to tell: a new table may be a child of a guarded
    /// one, and a layout that is sent again may be that of a partition that is new, emptied, or has another identity.
    fn ask_the_catalog(&self, oid: u32, layout: &Layout, before: Option<&Known>, guards: &[GuardId]) {
        let is_known = |table: &Table| table.oid == oid || table.parts.iter().any(|part| part.oid == oid);
        let changed = match before {
            Some(before) => before.layout != *layout,
            None => self.tables.iter().find(|table| is_known(table)).is_none_or(|table| {
                table.oid == oid && !(layout.has_only(table) && guards.contains(&table.guard))
            }),
        };
        let has_parts = |id: &GuardId| self.table(*id).is_some_and(|table| !table.parts.is_empty());
        if changed || guards.iter().any(has_parts) {
            self.state.look.notify_one();
        }
    }

    /// A guard's layout fits. If it did not, what changed meanwhile is not known: everything from before goes.
    fn mend(&mut self, guard: GuardId) {
        if self.state.is_broken_by(guard, BROKEN_BY_STREAM)
            && let Some(transaction) = &mut self.transaction
        {
            transaction.truncate(guard);
            transaction.mended.push(guard);
        }
    }

    /// The stream has come to where a look at the catalog was taken, or to where somebody says that rows of a table came or
    /// went.
    fn take_in(&mut self, table: &[u8]) {
        if let Some(tables) = self.state.take_found(table) {
            self.learn(tables);
            self.transaction.iter_mut().for_each(|transaction| transaction.looked = true);
            for (oid, Known { layout, arrived, .. }) in std::mem::take(&mut self.relations) {
                // A layout that does not fit is from before. It is sent anew before the next row: nothing is broken yet.
                let rules = self.fit_all(oid, &layout);
                self.relations.insert(oid, Known { layout, rules, arrived });
            }
            self.fit_in_progress();
            for guard in self.guards.clone().iter().map(|guard| guard.id) {
                // The look has found nothing wrong with it, so the next row comes with a layout that fits, if this one
                // does not.
                if !self.state.is_broken_by(guard, BROKEN_BY_CATALOG) {
                    self.mend(guard);
                }
            }
        }
        let named = self.guards.iter().filter(|guard| guard.label.as_bytes() == table);
        if let Some(transaction) = &mut self.transaction {
            named.for_each(|guard| transaction.truncate(guard.id));
        }
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
        let (Some(known), Some(transaction)) = (self.relations.get(&oid), &mut self.transaction) else {
            return;
        };
        if known.rules.is_empty() {
            return;
        }
        let old = old.map(|old| old.tuple().values().collect::<Row<'_>>());
        let new = new.map(|new| new.values().collect::<Row<'_>>());
        for rules in &known.rules {
            let Some(guard) = self.learnt.get(rules.guard) else { continue };
            if transaction.truncated.contains(&rules.guard) {
                continue;
            }
            if rules.broken {
                // Of a broken guard nothing is cached, as its fills are refused; once it is mended, it is fenced as a whole. But
                // a look may have mended it, and this row is from before that.
                if !self.state.is_broken_by(rules.guard, BROKEN_BY_STREAM) {
                    transaction.truncate(rules.guard);
                }
                continue;
            }
            let change = Change { old: old.as_ref(), new: new.as_ref(), is_insert };
            let mut name = |key: &[u8], guard, row| transaction.name(key, guard, row);
            if !change.name_keys(rules, guard, &mut name, &mut self.key) {
                // Should not happen: Postgres sends large values of the replica identity with the old row.
                tracing::warn!(
                    guard = guard.label,
                    "a row came without a value that a key needs: the whole guard is fenced"
                );
                transaction.truncate(rules.guard);
            }
        }
    }

    /// Fence every key, then tell the settlement, then hand out the deletions: a lease that is granted in between
    /// is worth no more than what was settled before.
    fn commit(&mut self, end_lsn: Lsn, commit_time_us: i64) -> Applied {
        let Some(mut transaction) = self.transaction.take() else { return Applied::Position(end_lsn) };
        // With parts on their way its end waits for them, even if nothing is left for itself.
        let in_parts = transaction.progress.is_under_way();
        if transaction.collected() == 0 && transaction.truncated.is_empty() && !in_parts {
            self.spare.put_back(transaction.keys, 0);
            return Applied::Position(end_lsn);
        }
        let write = Write { xid: self.positions.extend(transaction.xid), lsn: end_lsn };
        let mut draining = Vec::new();
        let keys = self.fence_collected(&mut transaction, write, false, &mut draining);
        self.spare.put_back(std::mem::take(&mut transaction.keys), keys.len());
        if in_parts {
            transaction.progress.end(keys.len());
            self.state.transaction_keys.store(0, Ordering::Relaxed);
        }
        let fence = self.positions.fence();
        if !transaction.truncated.is_empty() {
            fence.write_guards(&transaction.truncated, write, &mut draining);
        }
        for guard in transaction.mended {
            // Only if the last word on it in this transaction was good.
            if transaction.looked || !self.rules_of(guard).any(|rules| rules.broken) {
                self.state.set_broken(guard, BROKEN_BY_STREAM, false);
                let table = self.guards.get(guard).map_or("", |guard| guard.label.as_str());
                tracing::warn!(guard = table, "a broken guard is mended");
            }
        }
        self.positions.received(write);
        failpoint::pass(Point::Fenced);
        let truncated = transaction.truncated;
        let written_lsn = end_lsn;
        Applied::Commit(Invalidation { end_lsn, written_lsn, commit_time_us, keys, truncated, draining })
    }
}

/// A row before and after.
struct Change<'r, 'a> {
    old: Option<&'r Row<'a>>,
    new: Option<&'r Row<'a>>,
    is_insert: bool,
}

impl Change<'_, '_> {
    /// Names the keys of a guard that the row feeds. False if a value that they need was not sent.
    fn name_keys(
        &self,
        rules: &Rules,
        guard: &Guard,
        name: &mut impl FnMut(&[u8], GuardId, Option<RowChange>),
        keys: &mut [Vec<u8>; 2],
    ) -> bool {
        let Self { old, new, is_insert } = *self;
        let old_value = |column: usize| old.and_then(|row| row.get(column)).copied();
        let new_value = |column: usize| new.and_then(|row| row.get(column)).copied();
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
            let Some(made) = render(template, columns, [old, new], guard.db, keys) else { return false };
            let [old_key, new_key] = &*keys;
            // Without an old row the columns of the replica identity have not changed, and so has no key.
            let stays = if old.is_none() { !is_insert } else { made == [true, true] && old_key == new_key };
            let tells = template.is_one_row() && version.is_some();
            if made[0] && !stays {
                name(old_key, rules.guard, tells.then_some(RowChange::Deleted(versions.old)));
            }
            if made[1] {
                let change = if stays { versions.updated() } else { RowChange::Inserted(versions.new) };
                name(new_key, rules.guard, tells.then_some(change));
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;
