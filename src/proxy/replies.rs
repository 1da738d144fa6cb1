//! What comes from Redis on a link: to whom it goes, and what it means.

use std::io;
use std::rc::Rc;

use bytes::Buf;

use super::buffers;
use super::client::Client;
use super::expect::{Delivery, Expected, Meaning, executed};
use super::held::Held;
use super::link::Link;
use super::reading::{Partly, Reading};
use super::shape::{each_missed, missed};
use super::subscription::Came;
use crate::cache::{AbandonedFill, Fate};
use crate::command::Miss;
use crate::failpoint::{self, Point};
use crate::resp::{Progress, body};

/// A reply of which this much has come, in bytes, is passed on before the rest of it is there, if it can be.
const LARGE_REPLY: usize = 32 * 1024;

impl Link {
    /// Deals with all that has come.
    pub(super) fn take_replies(&self, reading: &mut Reading) -> io::Result<()> {
        // Taken out of `reading`, so that replies can be borrowed from it while they are dealt with.
        let mut incoming = std::mem::take(&mut reading.incoming);
        let mut taken = 0;
        let mut woken: Option<Rc<Client>> = None;
        while taken < incoming.len() {
            let rest = &incoming[taken..];
            if self.is_monitoring() {
                woken = self.unasked(rest);
                taken += rest.len();
                break;
            }
            let Progress { bytes, done } = reading.scanner.scan(rest).map_err(io::Error::other)?;
            let client = if done {
                reading.scanner.reset();
                taken += bytes;
                self.take_whole(reading, &rest[..bytes])?
            } else if self.can_take_part(reading, rest, bytes)? {
                reading.scanner.take(bytes);
                taken += bytes;
                self.take_part(reading, &rest[..bytes])
            } else {
                None
            };
            // Replies come in runs of one client: one wake-up a run.
            if let Some(client) = client
                && !woken.as_ref().is_some_and(|last| Rc::ptr_eq(last, &client))
                && let Some(last) = woken.replace(client)
            {
                last.wake();
            }
            if !done {
                break;
            }
        }
        if let Some(last) = woken {
            last.wake();
        }
        incoming.advance(taken);
        buffers::give_back(&mut incoming);
        reading.incoming = incoming;
        Ok(())
    }

    fn take_whole(&self, reading: &mut Reading, reply: &[u8]) -> io::Result<Option<Rc<Client>>> {
        let partly = std::mem::replace(&mut reading.partly, Partly::Not);
        self.partly.set(false);
        if partly == Partly::Message {
            let owner = self.unasked(reply);
            if let Some(owner) = &owner {
                owner.is_partway_through(false);
            }
            return Ok(owner);
        }
        // Only on a pin, and after what its owner has asked for.
        if partly == Partly::Not && matches!(reply.first(), Some(b'>' | b'*')) {
            match self.came(reply) {
                Came::Reply => {}
                came => {
                    let owner = self.unasked(reply);
                    if let Some(owner) = &owner {
                        owner.hold(Held::SUBSCRIBED, self.subscriptions.any());
                        if came == Came::LastConfirmation {
                            self.expected.borrow_mut().pop_front();
                            self.upstream.count_answered();
                            owner.answered();
                        }
                    }
                    return Ok(owner);
                }
            }
        }
        let Some(next) = self.expected.borrow_mut().pop_front() else {
            return Err(io::Error::other("Redis sent a reply that nothing had asked for"));
        };
        let client = next.client.clone();
        self.replied(next, reply, partly == Partly::Reply);
        self.upstream.count_answered();
        Ok(Some(client))
    }

    fn came(&self, reply: &[u8]) -> Came {
        let mut expected = self.expected.borrow_mut();
        let due = match expected.front_mut().map(|next| &mut next.meaning) {
            Some(Meaning::Subscribed(due)) => Some(due),
            _ => None,
        };
        self.subscriptions.came(reply, due)
    }

    /// Whether what has come of a reply can be passed on: a large one need not be held whole.
    fn can_take_part(&self, reading: &mut Reading, head: &[u8], length: usize) -> io::Result<bool> {
        if reading.partly != Partly::Not {
            return Ok(length > 0);
        }
        if length < LARGE_REPLY {
            return Ok(false);
        }
        if self.subscriptions.is_message(head) {
            reading.partly = Partly::Message;
        } else if let Some(next) = self.expected.borrow_mut().front_mut() {
            next.meaning = match std::mem::replace(&mut next.meaning, Meaning::None) {
                Meaning::Audited(audited) => audited.given_up(&self.gate),
                meaning => meaning,
            };
            if !next.streams(head) {
                return Ok(false);
            }
            next.meaning = match std::mem::replace(&mut next.meaning, Meaning::None) {
                Meaning::Read(_, key) => {
                    self.gate.read(&key, next.client.id, false);
                    Meaning::None
                }
                Meaning::Coalesced(read) => {
                    self.gate.read(&read.key, next.client.id, false);
                    Meaning::None
                }
                Meaning::ReadExpiring(_, key, fills) => {
                    self.gate.read(&key, next.client.id, false);
                    Meaning::Fills(*fills)
                }
                meaning => meaning,
            };
            next.client.expect_large();
            reading.partly = Partly::Reply;
        } else {
            return Err(io::Error::other("Redis sent a reply that nothing had asked for"));
        }
        self.partly.set(true);
        Ok(true)
    }

    fn take_part(&self, reading: &Reading, part: &[u8]) -> Option<Rc<Client>> {
        if reading.partly == Partly::Message {
            let owner = self.unasked(part);
            if let Some(owner) = &owner {
                owner.is_partway_through(true);
            }
            return owner;
        }
        let expected = self.expected.borrow();
        let next = expected.front()?;
        if matches!(next.delivery, Delivery::Forward) {
            next.client.deliver(part);
        }
        Some(next.client.clone())
    }

    /// A message goes to the owner, who alone can have asked for it. On a lane nobody has.
    fn unasked(&self, bytes: &[u8]) -> Option<Rc<Client>> {
        let owner = self.owner()?;
        owner.deliver(bytes);
        Some(owner)
    }

    /// What a reply means, and its way to the client. Of one that was passed on partly, this is the rest.
    fn replied(&self, mut expected: Expected, reply: &[u8], partly: bool) {
        if let Meaning::Audited(audited) = expected.meaning {
            expected.meaning = audited.answered(&self.gate, reply);
        }
        if let Meaning::Coalesced(read) = &expected.meaning {
            let missed = missed(read.miss, reply);
            let Some(due) = self.coalesce(expected, missed, reply) else { return };
            expected = Expected { meaning: Meaning::None, ..due };
        }
        let Expected { client, delivery, meaning } = expected;
        // What is passed on in parts is no error: those are short.
        let error = !partly && body(reply).first() == Some(&b'-');
        match meaning {
            // Of a read that may wait, or is audited, all is done.
            Meaning::None | Meaning::Coalesced(_) | Meaning::Audited(_) => {}
            // Before the reply goes out: whoever reads the database after it sees what is settled now.
            Meaning::Read(miss, key) => {
                if let Some(missed) = missed(miss, reply) {
                    self.gate.read(&key, client.id, missed);
                }
            }
            Meaning::Reads(miss, keys) => {
                if miss == Miss::NilPerKey && !error {
                    let missed = each_missed(reply, keys.iter().map(|(place, _)| *place));
                    keys.iter()
                        .zip(missed)
                        .for_each(|((_, key), missed)| self.gate.read(key, client.id, missed));
                } else if let Some(missed) = missed(miss, reply) {
                    keys.iter().for_each(|(_, key)| self.gate.read(key, client.id, missed));
                }
            }
            Meaning::ReadExpiring(miss, key, fills) => {
                if let Some(missed) = missed(miss, reply) {
                    self.gate.read(&key, client.id, missed);
                }
                self.gate.answered(*fills, false);
            }
            // The cap of a fill, or the deletion of a torn value: ended by us, who have the right.
            Meaning::Fills(fills) if error && delivery.is_of_own() => {
                self.gate.upstreams.abandon(Fate::Unfinished, fills.into_vec());
            }
            Meaning::Fills(fills) => {
                // What a command of our own answers says nothing of the fill before it.
                let ok = reply == b"+OK\r\n" && !delivery.is_of_own();
                self.gate.answered(fills, ok);
                failpoint::pass(Point::Answered);
            }
            Meaning::Queued(fills) if error || reply == b"+QUEUED\r\n" => drop(fills),
            // A MULTI that was refused, on a connection where it never had been: nobody has judged them.
            Meaning::Queued(fills) => self.gate.upstreams.abandon(Fate::Unfinished, fills.into()),
            Meaning::Named => self.named(reply),
            Meaning::RedisId => {
                self.identified(reply);
                self.look_where_it_leads();
            }
            Meaning::Account(change) => {
                if !error {
                    if change.login.is_some() {
                        self.may_be_another();
                    }
                    self.account.borrow_mut().take(&change);
                    client.take(&change);
                }
            }
            Meaning::Holds(what, on) => {
                if !error {
                    client.hold(what, on);
                    if what == Held::MONITORS {
                        self.monitor();
                    }
                }
            }
            Meaning::Executed(fills, db) => {
                self.gate.answered(fills, false);
                self.executed(&client, executed(reply), db);
            }
            Meaning::Begun => self.begun.set(Some(!error)),
            Meaning::Unwatched => client.hold(Held::WATCHED, error),
            // Where there was no MULTI, there is nothing to end.
            Meaning::Discarded => {
                let stays = error && self.begun.get() != Some(false);
                self.tainted.set(self.tainted.get() || stays);
            }
            // An error in place of all confirmations.
            Meaning::Subscribed(_) => {}
        }
        delivery.pass_on(&client, reply, error);
    }

    /// A transaction with a SELECT is over.
    fn executed(&self, client: &Client, well: Option<bool>, db: u32) {
        match well {
            Some(true) => {
                self.account.borrow_mut().db = db;
                client.db.set(Some(db));
                client.hold(Held::DB, false);
            }
            Some(false) => {}
            None => {
                client.db.set(None);
                client.hold(Held::DB, true);
            }
        }
    }

    /// The end: what was not answered is answered with an error, and fills whose fate is unknown are handed
    /// over to be ended on Redis's side.
    pub(super) fn end(&self, why: &str) {
        self.closed.set(true);
        // One that was refused at once, by a login perhaps, has told nothing.
        let lost = self.served.get() && !self.closing.get() && !self.finishing.get();
        if lost && !self.gate.observe {
            // Before a client hears of it and comes back by another connection: that may lead to another Redis, or to
            // other data, and the worker may not have noticed yet.
            self.gate.cache.doubt();
        }
        let mut fills: Vec<AbandonedFill> = Vec::new();
        let error = self.last_words(why);
        // In the middle of a reply nothing else makes sense. And what a client that is gone has sent after a
        // command that waited would never have been executed.
        if (self.partly.get() || self.finishing.get())
            && let Some(expected) = self.expected.borrow().front()
        {
            expected.client.break_off();
        }
        let outcast = self.is_outcast();
        for expected in self.expected.take() {
            match expected.meaning {
                Meaning::Fills(unanswered) => fills.extend(unanswered),
                Meaning::ReadExpiring(_, _, unanswered) => fills.extend(*unanswered),
                Meaning::Executed(unanswered, _) => fills.extend(unanswered),
                _ => {}
            }
            if !matches!(expected.delivery, Delivery::Hidden) {
                if !matches!(expected.delivery, Delivery::Drop) && !self.finishing.get() {
                    expected.client.deliver(error.as_bytes());
                }
                expected.client.answered();
                if outcast {
                    // Redis no longer takes its login: as if it had closed the client's own connection.
                    expected.client.break_off();
                }
                expected.client.wake();
            }
        }
        if let Some(owner) = self.owner.take() {
            if owner.held().any() || self.partly.get() {
                // What Redis remembered for it is lost, and messages would never come.
                owner.break_off();
            }
            owner.wake();
        }
        self.crowd.borrow_mut().drain(..).for_each(|client| client.wake());
        if !self.closing.get() {
            self.gate.metrics.upstream_reconnects.inc();
            self.gate.upstreams.lost.notify_one();
        }
        if self.gate.observe {
            // Nothing is to be deleted, and nobody waits for them.
            self.gate.finish(&fills);
            fills.clear();
        }
        self.gate.upstreams.close(&self.upstream, fills);
    }
}
