//! Reads of guarded keys: a miss grants a lease; and while the feed is lost, a guard may have its keys missed.

use bytes::{Bytes, BytesMut};

use super::expect::{Coalesced, Delivery, Meaning};
use super::route::LANE_REQUEST;
use super::session::{Session, Step};
use super::shape::miss;
use crate::command::{Miss, Read, Route};
use crate::guard::{GuardedKey, Guards};
use crate::resp::{Arguments, put_request};

/// Guarded keys of a read, with the place of each among its keys.
type Placed = Vec<(usize, GuardedKey)>;

impl Session {
    /// A read outside of a transaction.
    pub(super) fn read(&mut self, read: Read, arguments: Arguments<'_>) -> Step {
        if read.expires && !self.expiring_keys(arguments).is_empty() {
            return self.expire(Some(read), arguments);
        }
        // Reads in a transaction grant no lease, and elsewhere it is clear where the client is.
        let db = self.client.db.get();
        let guards = self.gate.guards.load();
        let guarded = |(n, place)| Some((n, self.gate.guarded_by(&guards, db?, arguments.get(place)?)?));
        let mut keys = read.keys.places(arguments).enumerate().filter_map(guarded);
        let Some(first) = keys.next() else {
            return self.take_plainly(read.route.into(), arguments);
        };
        let Some(second) = keys.next() else {
            return if self.gate.bypasses(&first.1.guards) {
                self.bypass(read, arguments, &[first], Vec::new())
            } else {
                let meaning = self.meaning_of(&guards, read, arguments, first.1);
                let meaning = self.audited(meaning, &guards, arguments);
                self.forward(arguments, wants_pin(read, arguments), meaning)
            };
        };
        let all = [first, second].into_iter().chain(keys);
        let (bypassed, asked): (Placed, Placed) = all.partition(|(_, key)| self.gate.bypasses(&key.guards));
        if bypassed.is_empty() {
            let meaning = self.audited(Meaning::Reads(read.miss, asked.into()), &guards, arguments);
            return self.forward(arguments, wants_pin(read, arguments), meaning);
        }
        self.bypass(read, arguments, &bypassed, asked)
    }

    /// A read in a transaction. Whether its keys have to be missed is decided when it is executed, and for the whole of
    /// the transaction: what it finds stands in the middle of Redis's answer.
    pub(super) fn queue_read(&mut self, read: Read, arguments: Arguments<'_>) -> Step {
        let dbs = self.dbs();
        let step = if read.expires {
            self.queue_expiry(arguments)
        } else {
            self.forward(arguments, true, Meaning::None)
        };
        if let (Step::Done, Some(transaction)) = (step, &mut self.transaction) {
            for key in read.keys.places(arguments).filter_map(|place| arguments.get(place)) {
                for key in dbs.iter().filter_map(|db| self.gate.guarded(*db, key)) {
                    if !transaction.reads.contains(&key.guards) {
                        transaction.reads.push(key.guards);
                    }
                }
            }
        }
        step
    }

    /// A read of one key.
    fn meaning_of(&self, guards: &Guards, read: Read, arguments: Arguments<'_>, key: GuardedKey) -> Meaning {
        let patience = self.gate.patience(guards, &key);
        if patience.is_zero() || read.changes || wants_pin(read, arguments) {
            return Meaning::Read(read.miss, key);
        }
        let request = Bytes::copy_from_slice(arguments.bytes());
        Meaning::Coalesced(Box::new(Coalesced { miss: read.miss, key, patience, request, until: None }))
    }

    /// A read some of whose keys are missed whatever Redis holds.
    fn bypass(
        &mut self,
        read: Read,
        arguments: Arguments<'_>,
        bypassed: &[(usize, GuardedKey)],
        asked: Placed,
    ) -> Step {
        let missed = |place: usize| bypassed.iter().any(|(n, _)| *n == place);
        let keys = || read.keys.places(arguments).enumerate();
        let all = keys().all(|(n, _)| missed(n));
        let answer = miss(read.miss, arguments, self.client.protocol.get());
        let mut request = BytesMut::new();
        let (delivery, meaning) = if read.changes {
            // What it does is done; what it found is not told.
            (Delivery::Replace(answer), Meaning::None)
        } else if read.miss == Miss::NilPerKey {
            let places = bypassed.iter().map(|(place, _)| *place).collect();
            (Delivery::Nils(places), Meaning::Reads(read.miss, asked.into()))
        } else if is_exists(arguments) && !all {
            // How many exist: of those that are not missed.
            let kept: Vec<&[u8]> = (0..arguments.len())
                .filter(|n| *n == 0 || !missed(n - 1))
                .filter_map(|n| arguments.get(n))
                .collect();
            put_request(&mut request, &kept);
            (Delivery::Forward, Meaning::Reads(read.miss, asked.into()))
        } else {
            return self.own(answer);
        };
        let Some(link) = self.link(wants_pin(read, arguments)) else { return Step::Wait };
        let bytes = if request.is_empty() { arguments.bytes() } else { &request };
        link.send(|out| out.extend_from_slice(bytes), self.expect_as(delivery, meaning));
        Step::Done
    }
}

fn wants_pin(read: Read, arguments: Arguments<'_>) -> bool {
    read.route == Route::Pin || arguments.bytes().len() > LANE_REQUEST
}

/// The one read of several keys whose answer is the sum of what it would be for each.
fn is_exists(arguments: Arguments<'_>) -> bool {
    arguments.get(0).is_some_and(|name| name.eq_ignore_ascii_case(b"EXISTS"))
}
