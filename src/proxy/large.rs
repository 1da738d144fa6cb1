//! Large requests: passed on as they come in, so that a value of 512 MB costs no 512 MB.
//!
//! The command, its key and whatever else stands before the large argument is known by then, and tells the way. The
//! argument's bytes go out on a pin as they arrive, all but the last: whether a fill is let in is decided when the
//! whole command is there. If it is not, the pin is closed, and Redis forgets what it has of the command.

use std::rc::Rc;

use bytes::BytesMut;

use super::route::LANE_REQUEST;
use super::session::{Large, Passing, Session};
use crate::resp::{Incomplete, RequestScanner};

impl Session {
    /// Passes on what has come of a large argument, and takes it out of the buffer, which begins with its request.
    pub(super) fn pass_on(&mut self, scanner: &mut RequestScanner, buffer: &mut BytesMut) -> Passing {
        let Some(incomplete) = scanner.incomplete(buffer) else { return Passing::More };
        let (start, arrived) = (incomplete.start, buffer.len());
        if self.large.as_ref().is_none_or(|large| large.head != start) && !self.begins_large(&incomplete) {
            return Passing::More;
        }
        // The last byte stays here, whatever comes after it.
        let end = arrived.min(start + incomplete.length - 1);
        if end <= start {
            return Passing::More;
        }
        let large = match &self.large {
            Some(large) => large,
            None => {
                let Some(link) = self.link(true) else { return Passing::Wait };
                link.send_raw(&buffer[..start]);
                self.large.insert(Large { link, head: start, before: self.client.total_sent() })
            }
        };
        if large.link.is_crowded(&self.client) {
            return Passing::Wait;
        }
        large.link.send_raw(&buffer[start..end]);
        buffer.copy_within(end.., start);
        buffer.truncate(start + arrived - end);
        scanner.elide(end - start);
        Passing::More
    }

    /// Whether the request can go out before it is there as a whole: all keys stand before the large argument, and
    /// no answer but Redis's can be due to it, or only one that costs nobody else anything.
    fn begins_large(&self, incomplete: &Incomplete<'_>) -> bool {
        if self.large.is_some() || incomplete.length <= LANE_REQUEST || self.closing {
            return false;
        }
        // A refused fill costs the pin, and with it whatever Redis remembers there. In a transaction it is refused
        // later.
        let in_transaction =
            self.transaction.is_some() && self.pin.as_ref().is_some_and(|pin| pin.begun() == Some(true));
        let may_lose_pin = !self.keeps_pin() || in_transaction;
        may_lose_pin
            && self.gate.commands.load().can_go_out(incomplete.before)
            && !self.reads_value(incomplete.before, incomplete.length)
    }

    /// The whole request is there and was dealt with. If it did not go out, neither must anything after the part of
    /// it that did.
    pub(super) fn end_large(&mut self) {
        if let Some(large) = self.large.take()
            && self.client.total_sent() == large.before
        {
            self.abandon(&large);
        }
    }

    /// Closes the pin that has a part of a command.
    pub(super) fn abandon(&mut self, large: &Large) {
        if self.pin.as_ref().is_some_and(|pin| Rc::ptr_eq(pin, &large.link)) {
            self.pin = None;
        }
        large.link.own(None);
        large.link.close();
    }
}
