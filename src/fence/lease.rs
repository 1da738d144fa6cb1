//! Leases: a miss that the proxy answered vouches for the fill that follows it.
//!
//! Two dangers shape the rules. A pool may send the fill on another connection than the miss, where a newer
//! miss of its own waits; and a late write-through that saw no miss at all may find somebody else's. So a
//! fill needs a miss of its *own connection*, and is judged by the *oldest* miss of the key outstanding on
//! *any* connection. A connection that closes leaves its leases until they end by time: the pool that
//! dropped it may still deliver the fill elsewhere.
//!
//! Which miss a fill really answers is not known: a pool may have swapped two. What is known is their number. So a
//! miss that is used up while it is out of date leaves a shadow, which objects in its place, until no other miss of
//! the key is outstanding: then every fill has come, and the old one among them.

use smallvec::SmallVec;

use super::{ConnId, Millis};
use crate::position::Lsn;

/// Whose miss can vouch for a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeaseRule {
    /// One on any connection.
    Key,
    /// One on the fill's own connection.
    Connection,
    /// None.
    Off,
}

/// What has become of a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Its fill has not come.
    Open,
    /// Parts of its fill were let in; further parts on the same connection share it.
    Admitted,
    /// A part of its fill was refused, so that the rest must be too.
    Refused,
}

/// An outstanding miss.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub conn: ConnId,
    /// What was settled when the miss was answered: all of it is visible to any read that follows.
    pub lsn: Lsn,
    /// The generation of the sources (see `Settled::sources`) that `lsn` speaks of; none while one is lost.
    pub sources: Option<u32>,
    pub until: Millis,
    pub used: Use,
}

/// What the leases of a key say of a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vouched {
    /// No miss for it.
    No,
    /// A miss for it, from before a source was lost.
    SourceLost,
    /// An earlier part of the same fill was refused.
    Torn,
    /// Its own miss, and the oldest outstanding one where that is worth less.
    By { own: Lsn, oldest: Lsn },
}

/// The outstanding misses of one key, in the order in which they were answered.
#[derive(Debug, Default)]
pub(super) struct Leases {
    all: SmallVec<[Lease; 1]>,
    /// What the oldest data may be that some outstanding fill brings, though the miss for it is used up.
    shadow: Option<Lease>,
}

impl Leases {
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        self.all.len() + usize::from(self.shadow.is_some())
    }

    pub fn grant(&mut self, lease: Lease) {
        // A new miss on a connection ends the fill in parts before it.
        self.all.retain(|l| l.conn != lease.conn || l.used == Use::Open);
        self.all.push(lease);
    }

    pub fn expire(&mut self, now: Millis) {
        self.all.retain(|l| l.until > now);
        self.shadow = self.shadow.filter(|shadow| shadow.until > now);
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Finds what vouches for a fill, and takes it: the place of the lease that the fill uses up.
    ///
    /// `part`: the fill adds to a value (HSET), so that it may share the lease of the part before it.
    pub fn vouch(
        &self,
        conn: ConnId,
        rule: LeaseRule,
        part: bool,
        sources: Option<u32>,
    ) -> (Vouched, Option<usize>) {
        if rule == LeaseRule::Off {
            return (Vouched::No, None);
        }
        let newest = |wanted: &dyn Fn(&Lease) -> bool| self.all.iter().rposition(wanted);
        let place = newest(&|l| l.conn == conn && l.used == Use::Open)
            .or_else(|| part.then(|| newest(&|l| l.conn == conn)).flatten())
            .or_else(|| (rule == LeaseRule::Key).then(|| newest(&|l| l.used == Use::Open)).flatten());
        let Some(place) = place else { return (Vouched::No, None) };
        let own = self.all[place];
        let valid = |l: &Lease| sources.is_some() && l.sources == sources;
        let vouched = if own.used == Use::Refused {
            Vouched::Torn
        } else if !valid(&own) {
            Vouched::SourceLost
        } else {
            // An outstanding miss from before a source was lost may have read anything: it is worth nothing.
            let worth = |l: &Lease| if valid(l) { l.lsn } else { Lsn(0) };
            let oldest = self.open().chain(&self.shadow).map(worth).min();
            Vouched::By { own: own.lsn, oldest: oldest.map_or(own.lsn, |o| o.min(own.lsn)) }
        };
        (vouched, Some(place))
    }

    /// Uses up the lease at `place`; a fill in parts leaves it for its next part. `fresh`: the key was not written
    /// since that miss.
    pub fn use_up(&mut self, place: usize, part: bool, admitted: bool, fresh: bool) {
        let own = self.all[place];
        if part {
            self.all[place].used = if admitted { Use::Admitted } else { Use::Refused };
        } else {
            self.all.remove(place);
        }
        if self.open().next().is_none() {
            self.shadow = None;
        } else if !fresh && own.used == Use::Open {
            let before = self.shadow.unwrap_or(own);
            self.shadow = Some(Lease {
                lsn: own.lsn.min(before.lsn),
                sources: own.sources.filter(|_| own.sources == before.sources),
                until: own.until.max(before.until),
                ..own
            });
        }
    }

    /// The lease at `place`.
    pub fn get(&self, place: usize) -> &Lease {
        &self.all[place]
    }

    fn open(&self) -> impl Iterator<Item = &Lease> {
        self.all.iter().filter(|l| l.used == Use::Open)
    }
}
