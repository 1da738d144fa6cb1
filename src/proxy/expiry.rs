//! EXPIRE and its kin: they put nothing into a key, but must not make it live longer than its cap or its guard's
//! `max_ttl` allows. They go as they came, and if there is such a limit, a hidden PEXPIRE with it follows.

use std::borrow::Cow;

use super::cap::{expiry, put_shorten};
use super::expect::{Delivery, Expected, Fills, Meaning};
use super::link::Link;
use super::route::LANE_REQUEST;
use super::session::{Session, Step};
use super::shape::miss;
use super::transaction::{NamedKey, QueuedExpiry, owned};
use crate::cache::AbandonedFill;
use crate::command::Read;
use crate::resp::Arguments;

impl Session {
    /// A command outside of a transaction that changes how long its key lives; `read` as well, if it is one.
    pub(super) fn expire(&mut self, read: Option<Read>, arguments: Arguments<'_>) -> Step {
        let keys = self.expiring_keys(arguments);
        let wants_pin = arguments.bytes().len() > LANE_REQUEST;
        if keys.is_empty() {
            return self.forward(arguments, wants_pin, Meaning::None);
        }
        let Some(link) = self.link(wants_pin) else { return Step::Wait };
        // As a fill's cap, a limit is owed: if the connection breaks, Redis has to be told to forget the command.
        if keys.iter().any(|(_, key)| self.gate.limits(key))
            && let Err(step) = self.introduced(&link)
        {
            return step;
        }
        let bypassed = read.is_some() && keys.iter().any(|(_, key)| self.gate.bypasses(&key.guards));
        let delivery = match read {
            // What it does is done; what it found is not told.
            Some(read) if bypassed => {
                Delivery::Replace(miss(read.miss, arguments, self.client.protocol.get()))
            }
            _ => Delivery::Forward,
        };
        // Only where the client's db is known does a miss grant a lease.
        let granted = match (read, keys.as_slice(), self.client.db.get()) {
            (Some(read), [(_, key)], Some(_)) if !bypassed => Some((read.miss, key.clone())),
            _ => None,
        };
        let (fills, limit) = self.limit(&link, &keys);
        let limit = limit.filter(|limit| expiry(arguments).is_none_or(|own| own > *limit));
        let (first, last) = match (granted, limit) {
            (None, None) => (Meaning::Fills(fills), None),
            (Some((miss, key)), None) => (Meaning::ReadExpiring(miss, key, Box::new(fills)), None),
            (None, Some(limit)) => (Meaning::None, Some((limit, fills))),
            (Some((miss, key)), Some(limit)) => (Meaning::Read(miss, key), Some((limit, fills))),
        };
        link.send(|out| out.extend_from_slice(arguments.unsent()), self.expect_as(delivery, first));
        if let (Some((limit, fills)), [(key, _), ..]) = (last, keys.as_slice()) {
            let expected = Expected::hidden(&self.client, Meaning::Fills(fills));
            link.send(|out| put_shorten(key, limit, out), expected);
        }
        Step::Done
    }

    /// The same inside MULTI: queued in Redis, limited behind EXEC.
    pub(super) fn queue_expiry(&mut self, arguments: Arguments<'_>) -> Step {
        let keys = self.expiring_keys(arguments);
        if keys.is_empty() {
            return self.forward(arguments, true, Meaning::None);
        }
        if self.awaits_begin() {
            return Step::Wait;
        }
        let Some(link) = self.link(true) else { return Step::Wait };
        let queued = keys.iter().map(|(key, guarded)| AbandonedFill::new(link.fill_id(), key, guarded));
        let meaning = Meaning::Queued(queued.collect());
        link.send(|out| out.extend_from_slice(arguments.unsent()), self.expect(meaning));
        if let Some(transaction) = &mut self.transaction {
            transaction.queue_expiry(QueuedExpiry { keys: owned(keys), own_ttl: expiry(arguments) });
        }
        Step::Done
    }

    /// The guarded key of such a command: in several dbs, if it is not known which of them the client is in. None where
    /// nothing is to be changed.
    pub(super) fn expiring_keys<'a>(&self, arguments: Arguments<'a>) -> Vec<NamedKey<'a>> {
        let Some(key) = arguments.get(1).filter(|_| !self.gate.observe) else { return Vec::new() };
        let mut keys: Vec<NamedKey<'a>> = Vec::new();
        for db in self.dbs() {
            let guarded = self.gate.guarded(db, key);
            let new = guarded.filter(|guarded| keys.iter().all(|(_, other)| other.hash != guarded.hash));
            keys.extend(new.map(|guarded| (Cow::Borrowed(key), guarded)));
        }
        keys
    }

    /// Registers such a command as under way. Returns the limit of its key, the strictest where the db is not known.
    pub(super) fn limit(&self, link: &Link, keys: &[NamedKey<'_>]) -> (Fills, Option<u64>) {
        let mut limit = None;
        let register = |(key, guarded): &NamedKey<'_>| {
            let id = link.fill_id();
            let own = self.gate.expires(guarded, id);
            limit = limit.into_iter().chain(own).min();
            AbandonedFill::new(id, key, guarded)
        };
        let fills = keys.iter().map(register).collect();
        (fills, limit)
    }
}
