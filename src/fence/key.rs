//! What is remembered of one key.

use std::sync::Arc;

use smallvec::SmallVec;

use super::caps::Caps;
use super::lease::Leases;
use super::version::{Around, Versions};
use super::{ConnId, FillId, Millis, RowChanges, Stale, Write};
use crate::position::{Lsn, Snapshot, Xid};

/// How many writes of a key are remembered by xid, the last one included.
///
/// Unrelated rows can become visible in another order than their commits' LSNs (fact F5), so a key that
/// depends on many rows must remember each xid, not only the last.
pub(super) const MAX_XIDS: usize = 8;

/// One key's state: 24 bytes when nothing but its last write is known, which is what most keys of a large table are.
#[derive(Debug, Default)]
pub(super) struct KeyState {
    /// The last write; its LSN is 0 when there is none.
    last: Lsn,
    xid: Xid,
    extra: Option<Box<Extra>>,
}

/// What only some keys have.
#[derive(Debug, Default)]
pub(super) struct Extra {
    /// The writes before the last, oldest first.
    older: SmallVec<[Write; 1]>,
    /// Writes up to here are remembered by LSN only: a snapshot must contain the first polled one that saw them all.
    covered: Lsn,
    /// Of keys whose writes tell the version of their row.
    pub versions: Option<Versions>,
    pub leases: Leases,
    pub in_flight: SmallVec<[FillId; 2]>,
    /// Somebody waits for a fill of this key to end.
    pub draining: bool,
    /// Fills that were let in for a short while.
    pub caps: Option<Box<Caps>>,
}

impl Extra {
    /// Ends a fill that was in flight. True if somebody waits for that.
    pub fn end(&mut self, fill: FillId) -> bool {
        self.in_flight.retain(|f| *f != fill);
        let waited_for = self.draining;
        self.draining &= !self.in_flight.is_empty();
        waited_for
    }
}

impl KeyState {
    /// The end of the last write of this key, unless the floor has passed it.
    pub fn last(&self, floor: Lsn) -> Option<Lsn> {
        (self.last > floor).then_some(self.last)
    }

    /// The last write, and how many are remembered one by one.
    pub fn writes(&self, floor: Lsn) -> Option<(Write, usize)> {
        let last = Write { xid: self.xid, lsn: self.last(floor)? };
        let older = self.extra.as_ref().map_or(0, |e| e.older.iter().filter(|w| w.lsn > floor).count());
        Some((last, older + 1))
    }

    /// The ends of the writes before the last that are remembered one by one: all of those above the second.
    pub fn older(&self, floor: Lsn) -> (impl Iterator<Item = Lsn> + '_, Lsn) {
        let extra = self.extra.as_deref();
        let older = extra.into_iter().flat_map(|extra| extra.older.iter().map(|write| write.lsn));
        (older.filter(move |lsn| *lsn > floor), extra.map_or(floor, |extra| extra.covered.max(floor)))
    }

    /// What only some keys have, where this one has it.
    pub fn known_extra(&self) -> Option<&Extra> {
        self.extra.as_deref()
    }

    pub fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    pub fn leases(&self) -> usize {
        self.extra.as_ref().map_or(0, |extra| extra.leases.len())
    }

    pub fn caps(&self) -> Option<&Caps> {
        self.extra.as_ref()?.caps.as_deref()
    }

    pub fn is_in_flight(&self, fill: FillId) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.in_flight.contains(&fill))
    }

    /// Whether a fill is in flight, or a miss of another connection that ends after `until` waits for its fill.
    pub fn is_being_filled(&self, conn: ConnId, until: Millis) -> bool {
        let Some(extra) = &self.extra else { return false };
        !extra.in_flight.is_empty() || extra.leases.is_awaited(conn, until)
    }

    pub fn existing_extra(&mut self) -> Option<&mut Extra> {
        self.extra.as_deref_mut()
    }

    /// Remembers a write. Writes come in the order of their LSNs; one that was seen before (the feed re-sends
    /// what it has not confirmed) changes nothing, nor does one that the floor has passed already.
    pub fn write(&mut self, write: Write, floor: Lsn) {
        if write.lsn < self.last || write.lsn <= floor {
            return;
        }
        if let Some(versions) = self.extra.as_deref_mut().and_then(|extra| extra.versions.as_mut()) {
            versions.written_otherwise(write.lsn);
        }
        // Known, but perhaps by another part of the transaction, which told of the row.
        if write.lsn == self.last {
            return;
        }
        let before = Write { xid: self.xid, lsn: self.last };
        (self.last, self.xid) = (write.lsn, write.xid);
        // A write that the floor has passed is forgotten: every evidence has to be past the floor anyway.
        if before.lsn <= floor {
            return;
        }
        let extra = self.extra();
        extra.older.retain(|w| w.lsn > floor);
        if extra.older.len() == MAX_XIDS - 1 {
            let dropped = extra.older.remove(0);
            extra.covered = dropped.lsn;
        }
        extra.older.push(before);
    }

    /// Everything up to here was written, by nobody knows whom: only a snapshot that covers all of it has seen it.
    pub fn begin(&mut self, lsn: Lsn, floor: Lsn) {
        // No transaction has this number, so that every snapshot sees it; the cover decides.
        self.write(Write { xid: Xid(0), lsn }, floor);
        if self.last == lsn {
            self.extra().covered = lsn;
        }
    }

    /// The same, of a write that tells of the row that feeds the key. `around` tells of what the key itself does not
    /// know; what it does is put in here.
    ///
    /// Parts of one transaction come as one write: each goes on where the one before ended, as if it were a commit of its
    /// own. Told again, they vouch for nothing, because then the version does not grow.
    pub fn write_row(&mut self, write: Write, changes: &RowChanges, around: Around, floor: Lsn) {
        let goes_on = changes.is_part() && write.lsn == self.last;
        if write.lsn <= floor || (write.lsn <= self.last && !goes_on) {
            return;
        }
        let before = self.last(floor);
        // Below the floor writes may have been passed over.
        let known = before.and_then(|_| self.versions()).copied();
        let versions = Versions::after(known, changes, Around { before, goes_on, ..around });
        self.write(write, floor);
        self.extra().versions = Some(versions);
    }

    /// What is remembered of the versions of its row.
    pub fn versions(&self) -> Option<&Versions> {
        self.extra.as_ref().and_then(|extra| extra.versions.as_ref())
    }

    /// Judges an LSN (a replica's, or a lease's).
    pub fn judge_lsn(&self, evidence: Lsn, floor: Lsn) -> Result<(), Stale> {
        match self.last(floor) {
            Some(last) if evidence < last => Err(Stale::Superseded(last)),
            _ => Ok(()),
        }
    }

    /// Judges a snapshot. `cover` finds the first polled snapshot that saw every write up to an LSN.
    pub fn judge_snapshot(
        &self,
        evidence: &Snapshot,
        floor: Lsn,
        cover: impl Fn(Lsn) -> Option<Arc<Snapshot>>,
    ) -> Result<(), Stale> {
        let Some(last) = self.last(floor) else { return Ok(()) };
        if !evidence.sees(self.xid) {
            return Err(Stale::Superseded(last));
        }
        let Some(extra) = &self.extra else { return Ok(()) };
        if let Some(unseen) = extra.older.iter().find(|w| w.lsn > floor && !evidence.sees(w.xid)) {
            return Err(Stale::Superseded(unseen.lsn));
        }
        let covered = extra.covered <= floor || cover(extra.covered).is_some_and(|c| evidence.includes(&c));
        if covered { Ok(()) } else { Err(Stale::Superseded(extra.covered)) }
    }

    /// Whether a write is remembered, be it below the floor already.
    pub fn has_write(&self) -> bool {
        self.last > Lsn(0)
    }

    /// Nothing is left, and the key can go.
    pub fn is_empty(&self) -> bool {
        !self.has_write() && self.extra.is_none()
    }

    /// Drops what the floor has passed.
    pub fn forget(&mut self, floor: Lsn) {
        if self.last <= floor {
            (self.last, self.xid) = (Lsn(0), Xid(0));
        }
        let is_forgotten = !self.has_write();
        let Some(extra) = self.extra.as_deref_mut() else { return };
        if is_forgotten {
            extra.versions = None;
        }
        extra.older.retain(|w| w.lsn > floor);
        extra.caps.take_if(|caps| caps.is_empty());
        let covered = extra.older.is_empty()
            && extra.covered <= floor
            && extra.versions.is_none()
            && extra.caps.is_none();
        if covered && extra.leases.is_empty() && extra.in_flight.is_empty() {
            self.extra = None;
        }
    }

    /// Drops every write, because it is of another history. Fills in flight stay, and so do leases: worth nothing,
    /// but their fills may still come, by a connection that has a newer one.
    pub fn forget_history(&mut self) {
        (self.last, self.xid) = (Lsn(0), Xid(0));
        if let Some(extra) = self.extra.as_deref_mut() {
            extra.older.clear();
            extra.covered = Lsn(0);
            extra.versions = None;
            extra.leases.void();
        }
    }
}
