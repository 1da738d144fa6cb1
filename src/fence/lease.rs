//! Leases: a miss that the proxy answered vouches for the fill that follows it.
//!
//! Two dangers shape the rules. A pool may send the fill on another connection than the miss, where a newer
//! miss of its own waits; and a late write-through that saw no miss at all may find somebody else's. So a
//! fill needs a miss of its *own connection*, and is judged by the *oldest* miss of the key outstanding on
//! *any* connection. A connection that closes leaves its leases until they end by time: the pool that
//! dropped it may still deliver the fill elsewhere.

use smallvec::SmallVec;

use super::{ConnId, Fill, Millis};
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
pub(super) struct Leases(SmallVec<[Lease; 1]>);

impl Leases {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn grant(&mut self, lease: Lease) {
        // A new miss on a connection ends the fill in parts before it.
        self.0.retain(|l| l.conn != lease.conn || l.used == Use::Open);
        self.0.push(lease);
    }

    pub fn expire(&mut self, now: Millis) {
        self.0.retain(|l| l.until > now);
    }

    /// What was settled when they were granted is of another history.
    pub fn void(&mut self) {
        self.0.iter_mut().for_each(|lease| lease.sources = None);
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
        let newest = |wanted: &dyn Fn(&Lease) -> bool| self.0.iter().rposition(wanted);
        let open = |l: &Lease| l.used == Use::Open;
        let place = match rule {
            // A miss of this connection that is in use is newer than its open ones, so a part stays with it.
            LeaseRule::Connection => newest(&|l| l.conn == conn && (part || open(l))),
            // Not the newest of this connection: an older one of another's must stay to object.
            LeaseRule::Key => {
                part.then(|| newest(&|l| l.conn == conn && !open(l))).flatten().or_else(|| newest(&open))
            }
            LeaseRule::Off => None,
        };
        let Some(place) = place else { return (Vouched::No, None) };
        let own = self.0[place];
        let valid = |l: &Lease| sources.is_some() && l.sources == sources;
        let vouched = if own.used == Use::Refused {
            Vouched::Torn
        } else if !valid(&own) {
            Vouched::SourceLost
        } else {
            // An outstanding miss from before a source was lost may have read anything: it is worth nothing.
            let worth = |l: &Lease| if valid(l) { l.lsn } else { Lsn(0) };
            let oldest = self.0.iter().filter(|l| l.used == Use::Open).map(worth).min();
            Vouched::By { own: own.lsn, oldest: oldest.map_or(own.lsn, |o| o.min(own.lsn)) }
        };
        (vouched, Some(place))
    }

    /// Uses up the lease at `place`; a fill in parts takes it along to its connection, for its next part.
    pub fn use_up(&mut self, place: usize, fill: &Fill<'_>, admitted: bool) {
        if fill.part {
            let lease = &mut self.0[place];
            lease.conn = fill.conn;
            lease.used = if admitted { Use::Admitted } else { Use::Refused };
        } else {
            self.0.remove(place);
        }
    }
}
