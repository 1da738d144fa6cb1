//! Leases: a miss that the proxy answered vouches for the fill that follows it.
//!
//! Two dangers shape the rules. A pool may send the fill on another connection than the miss, where a newer
//! miss of its own waits; and a late write-through that saw no miss at all may find somebody else's. So a
//! fill needs a miss of its *own connection*, and is judged by the *oldest* miss of the key outstanding on
//! *any* connection. A connection that closes leaves its leases until they end by time: the pool that
//! dropped it may still deliver the fill elsewhere.
//!
//! Nothing says which miss a fill really answers. Two fills may have changed connections, or share one, so the miss
//! that a fill uses up may be another's, whose fill has still to come. While any other miss of the key is
//! outstanding, one that is used up is therefore *spent*: it vouches for nothing any more, but objects until its
//! time ends. With no other outstanding it vanishes: the fill can only have been its own. By induction no miss vanishes
//! before its own fill has come, as long as a fill takes less than `lease_ttl` and answers one miss.
//!
//! A miss that is answered while a key waits to be filled must not cost an entry each time. Misses between which the
//! key was not written are worth the same, so they are kept at one position, and what is equal is kept once.

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

/// Misses of one key that can still vouch, at most (those of one connection between two writes count once). Beyond it the
/// oldest only objects: everyone who missed the key at once is filling it, and one fill is enough.
const MAX_OPEN: usize = 256;

/// What has become of a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Its fill has not come.
    Open,
    /// Parts of a fill were let in; further parts on the same connection share it.
    Admitted,
    /// A part of a fill was refused, so that the rest must be too.
    Refused,
    /// A fill used it up, perhaps not its own: it objects until it ends.
    Spent,
}

/// Outstanding misses that are alike.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub conn: ConnId,
    /// What was settled when the miss was answered: all of it is visible to any read that follows.
    pub lsn: Lsn,
    /// The generation of the sources (see `Settled::sources`) that `lsn` speaks of; none while one is lost.
    pub sources: Option<u32>,
    /// The end of the last of them.
    pub until: Millis,
    pub used: Use,
    /// How many fills it can vouch for, while it is open.
    pub count: u32,
}

impl Lease {
    pub fn is_open(&self) -> bool {
        self.used == Use::Open
    }

    /// Its fill, or more of it, comes on its connection.
    fn in_parts(&self) -> bool {
        matches!(self.used, Use::Admitted | Use::Refused)
    }

    /// Its own fill may still come, by any connection.
    pub fn objects(&self) -> bool {
        matches!(self.used, Use::Open | Use::Spent)
    }

    pub fn is_valid(&self, sources: Option<u32>) -> bool {
        sources.is_some() && self.sources == sources
    }

    /// Whether one entry can stand for both.
    fn is_like(&self, other: &Lease) -> bool {
        let alike = (self.lsn, self.sources, self.used) == (other.lsn, other.sources, other.used);
        alike && self.objects() && (self.conn == other.conn || !self.is_open())
    }
}

/// What is known of a key's writes when a lease of it is granted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    /// The last write of the key by itself, or the floor: a lease below it will prove nothing ever again.
    pub key: Lsn,
    /// The same, or a later write of a whole guard, the key's or another.
    pub any: Lsn,
}

/// What the leases of a key say of a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vouched {
    /// No miss for it.
    No,
    /// A miss for it, from before a source was lost.
    SourceLost,
    /// A miss for it, but a predecessor's may be outstanding.
    Predecessor,
    /// An earlier part of the same fill was refused.
    Torn,
    /// Its own miss, and the oldest outstanding one where that is worth less.
    By { own: Lsn, oldest: Lsn },
}

impl Vouched {
    /// What it is worth while misses may be outstanding that nobody remembers.
    pub fn unless(self, doubt: Option<Vouched>) -> Self {
        match self {
            // A part of a value that was refused stays refused, whoever may vouch.
            Vouched::No | Vouched::Torn => self,
            _ => doubt.unwrap_or(self),
        }
    }
}

/// The outstanding misses of one key, those that vouch in the order in which they were answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases(SmallVec<[Lease; 1]>);

impl Leases {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Entries: misses that are alike are one.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Remembers a miss. `written` was read after the lease's position: what is settled was fenced before, so no write
    /// between `written` and that position is unknown.
    pub fn grant(&mut self, lease: Lease, written: Written) {
        // A new miss on a connection ends the fill in parts before it.
        self.0.retain(|l| l.conn != lease.conn || !l.in_parts());
        for l in &mut self.0 {
            // The key was not written since, so what was read then is as good as what is read now.
            if l.is_valid(lease.sources) && l.lsn >= written.any {
                l.lsn = l.lsn.max(lease.lsn);
            }
        }
        if self.0.iter().any(|l| l.used == Use::Spent) {
            for mut l in std::mem::take(&mut self.0) {
                let lost = lease.sources.is_some() && !l.is_valid(lease.sources);
                if l.used == Use::Spent && (lost || l.lsn < written.key) {
                    // It objects to everything from now on: no matter from where.
                    (l.lsn, l.sources) = (Lsn(0), None);
                }
                if l.used == Use::Spent { self.add(l) } else { self.0.push(l) }
            }
        }
        self.add(lease);
        if self.0.iter().filter(|l| l.is_open()).count() > MAX_OPEN
            && let Some(oldest) = self.0.iter().position(Lease::is_open)
        {
            let oldest = self.0.remove(oldest);
            self.add(Lease { used: Use::Spent, ..oldest });
        }
    }

    /// Adds a lease, to one that is like it if there is one. Where it ends later, they both do: what they say is the same.
    fn add(&mut self, mut lease: Lease) {
        if let Some(place) = self.0.iter().rposition(|l| l.is_like(&lease)) {
            let like = self.0.remove(place);
            lease.until = lease.until.max(like.until);
            lease.count = lease.count.saturating_add(like.count);
        }
        self.0.push(lease);
    }

    /// Whether a miss of another connection that ends after `until` waits for its fill.
    pub fn is_awaited(&self, conn: ConnId, until: Millis) -> bool {
        self.0.iter().any(|l| l.is_open() && l.conn != conn && l.until > until)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.0.iter()
    }

    pub fn expire(&mut self, now: Millis) {
        self.0.retain(|l| l.until > now);
    }

    /// What was settled when they were granted is of another history.
    pub fn void(&mut self) {
        // Not joined here: some may have ended.
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
        let place = match rule {
            // A miss of this connection that is in use is newer than its open ones, so a part stays with it.
            LeaseRule::Connection => newest(&|l| l.conn == conn && (l.is_open() || part && l.in_parts())),
            // Not the newest of this connection: an older one of another's must stay to object.
            LeaseRule::Key => part
                .then(|| newest(&|l| l.conn == conn && l.in_parts()))
                .flatten()
                .or_else(|| newest(&Lease::is_open)),
            LeaseRule::Off => None,
        };
        let Some(place) = place else { return (Vouched::No, None) };
        let own = self.0[place];
        let vouched = if own.used == Use::Refused {
            Vouched::Torn
        } else if !own.is_valid(sources) {
            Vouched::SourceLost
        } else {
            // An outstanding miss from before a source was lost may have read anything: it is worth nothing.
            let worth = |l: &Lease| if l.is_valid(sources) { l.lsn } else { Lsn(0) };
            let oldest = self.0.iter().filter(|l| l.objects()).map(worth).min();
            Vouched::By { own: own.lsn, oldest: oldest.map_or(own.lsn, |o| o.min(own.lsn)) }
        };
        (vouched, Some(place))
    }

    /// Uses up the lease at `place`; a fill in parts takes it along to its connection, for its next part.
    ///
    /// `others`: misses of the key may be outstanding that are not remembered.
    pub fn use_up(&mut self, place: usize, fill: &Fill<'_>, admitted: bool, others: bool) {
        let part = if admitted { Use::Admitted } else { Use::Refused };
        let lease = &mut self.0[place];
        if lease.in_parts() {
            lease.used = part;
            return;
        }
        let used = Lease { count: 1, ..*lease };
        lease.count -= 1;
        if lease.count == 0 {
            self.0.remove(place);
        }
        if others || self.0.iter().any(Lease::objects) {
            self.add(Lease { used: Use::Spent, ..used });
        }
        if fill.part {
            self.0.push(Lease { conn: fill.conn, used: part, ..used });
        }
    }
}
