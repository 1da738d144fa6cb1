//! Transactions that are sent while they run (protocol version 2).
//!
//! What is sent may still be rolled back, as a whole or a subtransaction of it. So until Stream Commit nothing comes of it:
//! its keys are collected, each with its subtransaction, and its layouts are its own. Then it passes as any transaction
//! does, and in parts if it is large; [`Applier::proceed`] makes one of them at a time.
//!
//! A message inside a block names the top-level transaction, whichever subtransaction it is of: Postgres does not tell. So
//! what it names is fenced with the transaction, even if its subtransaction was rolled back.
//!
//! Versions are not collected: to the fence the keys' versions are unknown from then on, until the next write of the row.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use super::collected::{Collected, Reading};
use super::render::{Row, put_db};
use super::rules::{Known, Layout, Rules};
use super::transaction::Transaction;
use super::{Applied, Applier, Change, MESSAGE_PREFIX, TABLE_PREFIX};
use crate::guard::GuardId;
use crate::pg::pgoutput::{
    DecodeError, Message, OldTuple, Relation, Tuple, decode_in_block, table_of_row_in_block,
};
use crate::pg::replication::unix_micros;
use crate::position::Lsn;

/// What tells one look at the catalog from another.
type Ticket = [u8; 16];

/// What all transactions in progress may take together. Beyond it guards of the largest go as a whole when it commits.
const MOST_BYTES: usize = 256 * 1024 * 1024;
/// What an entry of a set takes, about.
const ENTRY: usize = 16;

/// The transactions in progress, as far as they were sent.
#[derive(Debug)]
pub(super) struct InProgress {
    /// By their top-level xid.
    transactions: HashMap<u32, Streamed>,
    /// The one whose block is arriving.
    block: Option<u32>,
    /// The one that has committed, and passes.
    committing: Option<Committing>,
    /// What they take.
    bytes: usize,
    pub most_bytes: usize,
}

impl Default for InProgress {
    fn default() -> Self {
        let most_bytes = MOST_BYTES;
        Self { transactions: HashMap::new(), block: None, committing: None, bytes: 0, most_bytes }
    }
}

/// A transaction in progress.
#[derive(Debug, Default)]
struct Streamed {
    /// Tables as its rows have them: it may have altered them, which is nothing to others before it commits.
    layouts: HashMap<u32, Known>,
    /// Keys of rows, by guard.
    rows: Collected,
    /// Keys that messages have named, with their db behind them.
    named: Collected,
    /// Guards that `rows` has keys of.
    guards: Vec<GuardId>,
    /// Guards that go as a whole, with the subtransaction that says so.
    whole: HashSet<(u32, GuardId)>,
    /// Tickets of looks at the catalog that came with it.
    looks: HashSet<Ticket>,
    rolled_back: HashSet<u32>,
}

impl Streamed {
    fn bytes(&self) -> usize {
        let entries = self.whole.capacity() + self.looks.capacity() + self.rolled_back.capacity();
        self.rows.bytes() + self.named.bytes() + entries * ENTRY
    }
}

/// A transaction that has committed, and what of it has not been handed on.
#[derive(Debug)]
struct Committing {
    rows: Reading,
    named: Reading,
    rolled_back: HashSet<u32>,
    end_lsn: Lsn,
    commit_time_us: i64,
    bytes: usize,
}

impl Applier {
    /// Whether a block is arriving.
    pub(super) fn in_block(&self) -> bool {
        self.in_progress.block.is_some()
    }

    /// Forgets all of them: a new stream sends them again from their beginnings.
    pub(super) fn forget_in_progress(&mut self) {
        let most_bytes = self.in_progress.most_bytes;
        self.in_progress = InProgress { most_bytes, ..InProgress::default() };
        self.show_in_progress();
    }

    fn show_in_progress(&self) {
        self.state.in_progress_bytes.store(self.in_progress.bytes as u64, Ordering::Relaxed);
    }

    /// Takes one message inside a block.
    pub(super) fn receive_in_block(&mut self, payload: &[u8]) -> Result<Applied, DecodeError> {
        if table_of_row_in_block(payload).is_some_and(|table| !self.feeds_in_block(table)) {
            return Ok(Applied::Nothing);
        }
        let (xid, message) = decode_in_block(payload)?;
        match (xid, message) {
            (Some(xid), message) => Ok(self.apply_in_block(xid, message)),
            (None, Message::StreamStop) => {
                self.in_progress.block = None;
                self.show_in_progress();
                Ok(Applied::Nothing)
            }
            (None, _) => Ok(Applied::Nothing),
        }
    }

    fn feeds_in_block(&self, table: u32) -> bool {
        let streamed = self.in_progress.block.and_then(|top| self.in_progress.transactions.get(&top));
        let own = streamed.and_then(|streamed| streamed.layouts.get(&table));
        own.or_else(|| self.relations.get(&table)).is_some_and(|known| !known.rules.is_empty())
    }

    fn apply_in_block(&mut self, xid: u32, message: Message<'_>) -> Applied {
        let Some(top) = self.in_progress.block else { return Applied::Nothing };
        // Out of the map, so that what is known of others can be looked at; put back below.
        let Some(mut streamed) = self.in_progress.transactions.remove(&top) else { return Applied::Nothing };
        let before = streamed.bytes();
        match message {
            Message::Relation(relation) => self.relation_in_block(&mut streamed, xid, &relation),
            Message::Insert { relation, new } => {
                self.row_in_block(&mut streamed, [top, xid], relation, None, Some(new), true);
            }
            Message::Update { relation, old, new } => {
                self.row_in_block(&mut streamed, [top, xid], relation, old, Some(new), false);
            }
            Message::Delete { relation, old } => {
                self.row_in_block(&mut streamed, [top, xid], relation, Some(old), None, false);
            }
            Message::Truncate(tables) => {
                for oid in tables.relations() {
                    let known = streamed.layouts.get(&oid).or_else(|| self.relations.get(&oid));
                    let rules = known.iter().flat_map(|known| &known.rules);
                    streamed.whole.extend(rules.map(|rules| (xid, rules.guard)));
                }
            }
            Message::Logical { transactional: true, prefix: MESSAGE_PREFIX, content, .. } => {
                self.each_name(content, |key| streamed.named.add(xid, 0, key));
            }
            Message::Logical { transactional: true, prefix: TABLE_PREFIX, content, .. } => {
                streamed.looks.extend(<Ticket>::try_from(content));
                let named = self.guards.iter().filter(|guard| guard.label.as_bytes() == content);
                streamed.whole.extend(named.map(|guard| (xid, guard.id)));
            }
            _ => {}
        }
        self.in_progress.bytes += streamed.bytes();
        self.in_progress.bytes = self.in_progress.bytes.saturating_sub(before);
        self.in_progress.transactions.insert(top, streamed);
        if self.in_progress.bytes > self.in_progress.most_bytes { self.make_room() } else { Applied::Nothing }
    }

    /// A block begins.
    pub(super) fn start_block(&mut self, xid: u32, is_first: bool) {
        if is_first {
            // There is none of this xid.
            self.forget(xid);
        }
        self.in_progress.transactions.entry(xid).or_default();
        self.in_progress.block = Some(xid);
    }

    fn forget(&mut self, xid: u32) {
        if let Some(streamed) = self.in_progress.transactions.remove(&xid) {
            self.in_progress.bytes = self.in_progress.bytes.saturating_sub(streamed.bytes());
        }
        self.show_in_progress();
    }

    /// The layout that the rows of this transaction have from here on. Guards are neither broken nor mended by it before it
    /// commits; what does not fit takes the guard along as a whole then.
    fn relation_in_block(&mut self, streamed: &mut Streamed, xid: u32, relation: &Relation<'_>) {
        let (oid, layout) = (relation.oid, Layout::of(relation));
        let guards = self.fed_by(oid, &layout);
        let own = &streamed.layouts;
        let before = own.get(&oid).or_else(|| self.relations.get(&oid));
        let fed_before = self.fed_before(oid, before).into_iter();
        // A guarded table that has another name now, and no other has taken its place.
        let others = |guard: GuardId| {
            let committed = self.relations.iter().filter(|(oid, _)| !own.contains_key(oid));
            let mut known = own.iter().chain(committed).filter(|(other, _)| **other != oid);
            known.any(|(_, known)| known.rules.iter().any(|rules| rules.guard == guard && !rules.broken))
        };
        let away: Vec<GuardId> =
            fed_before.filter(|guard| !guards.contains(guard) && !others(*guard)).collect();
        streamed.whole.extend(away.into_iter().map(|guard| (xid, guard)));
        let mut rules = Vec::new();
        for guard in guards {
            let fitted = self.fit(guard, &layout);
            if fitted.is_err() {
                streamed.whole.insert((xid, guard));
            }
            rules.push(fitted.unwrap_or_else(|_| Rules::broken(guard)));
        }
        self.arrived += 1;
        streamed.layouts.insert(oid, Known { layout, rules, arrived: self.arrived });
    }

    /// The keys of a row before and after. `xids`: the top-level one, and the subtransaction's.
    fn row_in_block(
        &mut self,
        streamed: &mut Streamed,
        xids: [u32; 2],
        oid: u32,
        old: Option<OldTuple<'_>>,
        new: Option<Tuple<'_>>,
        is_insert: bool,
    ) {
        let Streamed { layouts, rows, guards, whole, .. } = streamed;
        let Some(known) = layouts.get(&oid).or_else(|| self.relations.get(&oid)) else { return };
        let xid = xids[1];
        let old = old.map(|old| old.tuple().values().collect::<Row<'_>>());
        let new = new.map(|new| new.values().collect::<Row<'_>>());
        for rules in &known.rules {
            let Some(guard) = self.learnt.get(rules.guard) else { continue };
            if !whole.is_empty() && xids.iter().any(|xid| whole.contains(&(*xid, rules.guard))) {
                continue;
            }
            let change = Change { old: old.as_ref(), new: new.as_ref(), is_insert };
            let mut add = |key: &[u8], guard: GuardId, _| {
                let name = key.split_last_chunk::<{ size_of::<u32>() }>().map_or(key, |(name, _)| name);
                rows.add(xid, u32::from(guard.0), name);
            };
            if rules.broken || !change.name_keys(rules, guard, &mut add, &mut self.key) {
                whole.insert((xid, rules.guard));
            } else if !guards.contains(&rules.guard) {
                guards.push(rules.guard);
            }
        }
    }

    /// The largest transaction gives its keys up: its guards go as a whole when it commits, by the way that TRUNCATE goes.
    fn make_room(&mut self) -> Applied {
        while self.in_progress.bytes > self.in_progress.most_bytes {
            let in_progress = &mut self.in_progress;
            let largest = in_progress.transactions.iter_mut().max_by_key(|(_, one)| one.rows.bytes());
            let Some((top, largest)) = largest.filter(|(_, one)| !one.rows.is_empty()) else {
                // Names that messages gave, and no guard: nothing can stand for them.
                return Applied::NoRoom;
            };
            let before = largest.bytes();
            largest.rows = Collected::default();
            let guards = std::mem::take(&mut largest.guards);
            largest.whole.extend(guards.iter().map(|guard| (*top, *guard)));
            in_progress.bytes = (in_progress.bytes + largest.bytes()).saturating_sub(before);
            let labels =
                guards.iter().filter_map(|id| self.guards.get(*id)).map(|guard| guard.label.as_str());
            tracing::warn!(
                xid = top,
                guards = labels.collect::<Vec<_>>().join(", "),
                "transactions in progress have more keys than can be held: the largest will purge its guards as a whole"
            );
        }
        Applied::Nothing
    }

    /// A subtransaction was rolled back, or all of it. Postgres sends this for each subtransaction below it, too.
    pub(super) fn stream_abort(&mut self, top: u32, xid: u32) {
        if top == xid {
            return self.forget(top);
        }
        let Some(streamed) = self.in_progress.transactions.get_mut(&top) else { return };
        let before = streamed.bytes();
        streamed.rolled_back.insert(xid);
        streamed.whole.retain(|(of, _)| *of != xid);
        // It may have altered them. The server forgets here that it has sent them to this transaction, all of them, and
        // sends them again before its next rows.
        streamed.layouts.clear();
        self.in_progress.bytes = (self.in_progress.bytes + streamed.bytes()).saturating_sub(before);
        self.show_in_progress();
    }

    /// A transaction in progress has committed. From here on it is as if it had begun now.
    pub(super) fn stream_commit(&mut self, xid: u32, commit_lsn: Lsn, end_lsn: Lsn, time: i64) -> Applied {
        let Some(streamed) = self.in_progress.transactions.remove(&xid) else {
            return Applied::Position(end_lsn);
        };
        let (bytes, commit_time_us) = (streamed.bytes(), unix_micros(time));
        let Streamed { layouts, rows, named, whole, looks, rolled_back, .. } = streamed;
        let mut transaction = Transaction { xid, commit_lsn, commit_time_us, ..Transaction::default() };
        whole.iter().for_each(|(_, guard)| transaction.truncate(*guard));
        self.transaction = Some(transaction);
        // The guards that they name are among the whole ones already.
        looks.iter().for_each(|ticket| self.take_in(ticket));
        self.adopt(layouts);
        let (rows, named) = (rows.read(), named.read());
        let committing = Committing { rows, named, rolled_back, end_lsn, commit_time_us, bytes };
        self.in_progress.committing = Some(committing);
        self.proceed().unwrap_or(Applied::Nothing)
    }

    /// The layouts of a transaction that has committed hold for all: the server does not send them again. But where another
    /// transaction has brought one later, that one is as new or newer.
    fn adopt(&mut self, layouts: HashMap<u32, Known>) {
        let mut layouts: Vec<(u32, Known)> = layouts.into_iter().collect();
        layouts.sort_by_key(|(_, known)| known.arrived);
        for (oid, Known { layout, arrived, .. }) in layouts {
            if self.relations.get(&oid).is_none_or(|known| known.arrived < arrived) {
                self.lay_out(oid, layout, arrived);
            }
        }
    }

    /// What has been read with what was known fits what is known now.
    pub(super) fn fit_in_progress(&mut self) {
        let mut transactions = std::mem::take(&mut self.in_progress.transactions);
        for streamed in transactions.values_mut() {
            for (oid, known) in &mut streamed.layouts {
                known.rules = self.fit_all(*oid, &known.layout);
            }
        }
        self.in_progress.transactions = transactions;
    }

    /// The next part of a transaction that was sent while it ran, and has committed; at last its end. None: no such
    /// transaction is passing, and the next message may be taken.
    pub fn proceed(&mut self) -> Option<Applied> {
        let mut committing = self.in_progress.committing.take()?;
        let mut named = true;
        loop {
            let Committing { rows, named: names, rolled_back, .. } = &mut committing;
            // Names first: there are few.
            let next = if named { names.next() } else { rows.next() };
            let Some((xid, number, key)) = next else {
                if std::mem::take(&mut named) {
                    continue;
                }
                break;
            };
            let Some(transaction) = &mut self.transaction else { break };
            if rolled_back.contains(&xid) {
                continue;
            }
            if named {
                transaction.named.insert(key.to_vec());
            } else {
                let guard = u16::try_from(number).ok().and_then(|number| self.guards.get(GuardId(number)));
                let Some(guard) = guard.filter(|guard| !transaction.truncated.contains(&guard.id)) else {
                    continue;
                };
                let [rendered, _] = &mut self.key;
                rendered.clear();
                rendered.extend_from_slice(key);
                put_db(rendered, guard.db);
                transaction.name(rendered, guard.id, None);
            }
            let handed = self.hand_on_if_full();
            if handed != Applied::Nothing {
                self.in_progress.committing = Some(committing);
                return Some(handed);
            }
        }
        self.in_progress.bytes = self.in_progress.bytes.saturating_sub(committing.bytes);
        self.show_in_progress();
        Some(self.commit(committing.end_lsn, committing.commit_time_us))
    }
}

#[cfg(test)]
mod tests;
