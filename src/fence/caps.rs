//! Caps: fills that were let in for a short while only, remembered so that no EXPIRE makes it longer.
//!
//! A capped entry may be in Redis from the moment when its fill is let in until its TTL has passed after Redis's answer.
//! An EXPIRE meanwhile is followed by a PEXPIRE with what is left of the cap. Two races have to be closed:
//!
//! * Fills and EXPIREs of one key travel on several connections, so nobody knows in which order Redis executes those that
//!   are under way together. Of several caps the soonest counts, and a cap is dropped before its time only when a fill
//!   has surely replaced its entry: one that nothing else was under way with, and that Redis has answered well.
//! * A capped fill may be let in while an EXPIRE is under way that knew nothing of it. Such an EXPIRE is found *overtaken*
//!   when it is answered, and its key is to be deleted.

use smallvec::SmallVec;

use super::{FillId, Millis};

/// The caps of one key.
#[derive(Debug, Default)]
pub(super) struct Caps {
    caps: SmallVec<[Cap; 1]>,
    expiring: SmallVec<[Expiring; 1]>,
    /// A fill that was let in while no other was under way, and that none has joined since.
    alone: Option<FillId>,
}

/// One or several capped fills.
#[derive(Debug)]
struct Cap {
    /// Until when they were let in: an EXPIRE must not reach beyond.
    due: Millis,
    /// From when on none of their entries can be there any more, once all of them have ended.
    gone: Millis,
    /// Those that are under way, with their TTLs.
    fills: SmallVec<[(FillId, Millis); 1]>,
}

/// A command under way that changes how long the key lives.
#[derive(Debug)]
struct Expiring {
    id: FillId,
    /// The cap that it was sent with a limit for; 0 for one that nobody remembers, `Millis::MAX` for none.
    due: Millis,
    /// That limit.
    limit: Option<Millis>,
}

/// Caps of one key that differ, about. Beyond it fills get what is left of another's cap.
const MAX_CAPS: usize = 8;

impl Caps {
    pub fn is_empty(&self) -> bool {
        self.caps.is_empty() && self.expiring.is_empty()
    }

    /// Entries, for the budget.
    pub fn len(&self) -> usize {
        self.caps.len() + self.expiring.len()
    }

    /// Caps a fill that is let in: for how long it may live, which can be less than `ttl`.
    ///
    /// `part`: it adds to what is there, and does not free that from its cap.
    pub fn cap(&mut self, fill: FillId, ttl: Millis, part: bool, now: Millis) -> Millis {
        self.expire(now);
        let due = now.saturating_add(ttl);
        if part || self.caps.len() >= MAX_CAPS {
            let shared = self.caps.iter_mut().filter(|cap| now < cap.due && cap.due <= due);
            if let Some(cap) = shared.max_by_key(|cap| cap.due) {
                let left = cap.due - now;
                cap.fills.push((fill, left));
                return left;
            }
        }
        self.caps.push(Cap { due, gone: due, fills: SmallVec::from_iter([(fill, ttl)]) });
        ttl
    }

    /// A fill is let in, capped or not.
    pub fn let_in(&mut self, fill: FillId, alone: bool) {
        self.alone = alone.then_some(fill);
    }

    /// For how long the key may live, if it is capped: 0 if it is due.
    ///
    /// What is due may still be there, since Redis counts from when it executes. An EXPIRE must delete it then: if each left
    /// it a millisecond, a thousand of them per second would keep it for ever.
    pub fn limit(&self, now: Millis) -> Option<Millis> {
        self.due().map(|due| due.saturating_sub(now))
    }

    fn due(&self) -> Option<Millis> {
        self.caps.iter().map(|cap| cap.due).min()
    }

    /// A command that changes how long the key lives is sent. Returns the limit that has to follow it, if any.
    ///
    /// `unknown`: there may be a cap that is not remembered.
    pub fn expires(&mut self, id: FillId, unknown: bool, now: Millis) -> Option<Millis> {
        self.expire(now);
        let (due, limit) = if unknown { (Some(0), Some(0)) } else { (self.due(), self.limit(now)) };
        self.expiring.push(Expiring { id, due: due.unwrap_or(Millis::MAX), limit });
        limit
    }

    /// Redis has answered a fill, or a command that changes how long the key lives. True if the latter was overtaken: a
    /// capped fill was let in meanwhile.
    ///
    /// `replaced`: the fill has replaced the key's entry, whatever that was.
    pub fn answered(&mut self, id: FillId, replaced: bool, unknown: bool, now: Millis) -> bool {
        if let Some(place) = self.expiring.iter().position(|expiring| expiring.id == id) {
            let Expiring { due, limit, .. } = self.expiring.remove(place);
            if let Some(limit) = limit {
                self.caps.iter_mut().for_each(|cap| cap.gone = cap.gone.max(now.saturating_add(limit)));
            }
            let overtaken = self.due().is_some_and(|soonest| soonest < due) || unknown && due > 0;
            self.expire(now);
            return overtaken;
        }
        let mut own = None;
        for (n, cap) in self.caps.iter_mut().enumerate() {
            if let Some(place) = cap.fills.iter().position(|(fill, _)| *fill == id) {
                let (_, ttl) = cap.fills.remove(place);
                cap.gone = cap.gone.max(now.saturating_add(ttl));
                own = Some(n);
            }
        }
        if replaced && self.alone == Some(id) {
            let mut n = 0..;
            self.caps.retain(|_| n.next() == own);
        }
        self.expire(now);
        false
    }

    /// A fill or such a command has ended otherwise: it was not sent, or its key was deleted after it.
    pub fn end(&mut self, id: FillId) {
        self.expiring.retain(|expiring| expiring.id != id);
        self.caps.iter_mut().for_each(|cap| cap.fills.retain(|(fill, _)| *fill != id));
    }

    /// Drops the caps whose time is over.
    pub fn expire(&mut self, now: Millis) {
        // What an EXPIRE under way does to their entries is not known yet.
        if self.expiring.is_empty() {
            self.caps.retain(|cap| !cap.fills.is_empty() || cap.gone > now);
        }
    }
}
