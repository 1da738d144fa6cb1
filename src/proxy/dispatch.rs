//! A command's way: which link it takes, and what the proxy answers itself.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::expect::{Delivery, Expected, Meaning};
use super::link::Link;
use super::session::{Replies, Session, Step};
use super::transaction::Transaction;
use crate::command::Command;
use crate::resp::{Arguments, integer, put_bulk, put_header};

/// Requests above this size, in bytes, go on a pin: on a lane they would make others wait.
pub(super) const LANE_REQUEST: usize = 64 * 1024;

impl Session {
    /// Takes a command that is there as a whole.
    pub(super) fn take(&mut self, arguments: Arguments<'_>) -> Step {
        let command = self.gate.commands.load().of(arguments);
        let was_muted = self.muted;
        self.muted = self.replies != Replies::On;
        let step = if self.streaming {
            self.take_while_streaming(command, arguments)
        } else if self.transaction.is_some() {
            self.take_in_transaction(command, arguments)
        } else {
            self.take_plainly(command, arguments)
        };
        match step {
            Step::Wait => self.muted = was_muted,
            // SKIP is for one command, and CLIENT REPLY itself is not that one.
            Step::Done if self.replies == Replies::SkipNext && self.muted => self.replies = Replies::On,
            Step::Done => {}
        }
        step
    }

    pub(super) fn take_plainly(&mut self, command: Command, arguments: Arguments<'_>) -> Step {
        match command {
            Command::Plain => self.forward(arguments, arguments.bytes().len() > LANE_REQUEST, Meaning::None),
            Command::Pinned => self.forward(arguments, true, Meaning::None),
            Command::Read(read) => self.read(read, arguments),
            Command::Fill(form) => self.fill(form, arguments, None),
            Command::Asof => self.asof(arguments),
            Command::Multi => {
                let Some(link) = self.link(true) else { return Step::Wait };
                link.begin();
                link.send(|out| out.extend_from_slice(arguments.bytes()), self.expect(Meaning::Begun));
                if arguments.len() == 1 {
                    self.transaction = Some(Transaction::default());
                }
                Step::Done
            }
            Command::Watch => {
                let step = self.forward(arguments, true, Meaning::None);
                self.watching |= step == Step::Done;
                step
            }
            Command::Unwatch => {
                // One that Redis finds wrong ends nothing.
                let right = arguments.len() == 1;
                let step =
                    self.forward(arguments, false, if right { Meaning::Cleared } else { Meaning::None });
                self.watching &= step == Step::Wait || !right;
                step
            }
            // Without a MULTI these are errors, in Redis's words.
            Command::Exec | Command::Discard => self.forward(arguments, false, Meaning::None),
            Command::Select => self.select(arguments),
            Command::Auth => self.log_in(|out| out.extend_from_slice(arguments.bytes())),
            Command::Hello => self.hello(arguments),
            Command::Client => self.client_command(arguments),
            Command::Reset => self.reset(),
            Command::Quit => self.quit(),
            Command::Blocking => {
                let step = self.forward(arguments, true, Meaning::None);
                (self.barrier, self.blocking) = (step == Step::Done, step == Step::Done);
                step
            }
            Command::Stream => self.begin_streaming(arguments),
            Command::Unknown => {
                let step = self.forward(arguments, true, Meaning::None);
                self.pinned_for_good |= step == Step::Done;
                step
            }
            Command::Forbidden => self.own("-ERR cachefence: this command does not go through the proxy\r\n"),
        }
    }

    /// The link for the next command, or none while it has to wait for those before it on another link: so
    /// that the order of commands is the client's order.
    pub(super) fn link(&mut self, wants_pin: bool) -> Option<Rc<Link>> {
        let keeps = self.pinned_for_good || self.watching || self.transaction.is_some();
        let wants_pin = wants_pin || keeps || self.links.all_pinned();
        if self.pin.as_ref().is_some_and(|pin| pin.is_tainted()) {
            // Redis would not end a transaction or a WATCH, and the proxy cannot tell what is queued.
            self.closing = true;
            return None;
        }
        if let Some(pin) = &self.pin
            && wants_pin
        {
            if !pin.is_open() && keeps {
                // The state that made it a pin is lost. As when Redis closes a connection: so is the client's.
                self.closing = true;
            }
            if pin.is_open() {
                let pin = pin.clone();
                return (!pin.is_crowded(&self.client)).then_some(pin);
            }
        }
        if self.closing || (self.client.outstanding() > 0 && (self.pin.is_some() || wants_pin)) {
            return None;
        }
        self.blocking = false;
        if let Some(pin) = self.pin.take() {
            self.links.release(pin);
        }
        let link = if wants_pin { self.links.pin(&self.client) } else { self.links.lane() };
        if wants_pin {
            self.pin = Some(link.clone());
        }
        (!link.is_crowded(&self.client)).then_some(link)
    }

    /// The db whose guards apply: that of the guards, where the client's next command may go there.
    pub(super) fn guard_db(&self) -> u32 {
        let own = self.gate.address.db;
        let now = self.client.db.get().unwrap_or(own);
        match &self.transaction {
            Some(transaction) if transaction.dbs.contains(&own) => own,
            Some(transaction) if now != own => transaction.dbs.last().copied().unwrap_or(now),
            _ => now,
        }
    }

    /// Whether what only makes sense inside a transaction has to wait until Redis has begun one.
    pub(super) fn awaits_begin(&self) -> bool {
        self.pin.as_ref().is_some_and(|pin| pin.begun().is_none()) && self.client.outstanding() > 0
    }

    /// Sends a command as it came.
    pub(super) fn forward(&mut self, arguments: Arguments<'_>, wants_pin: bool, meaning: Meaning) -> Step {
        let Some(link) = self.link(wants_pin) else { return Step::Wait };
        link.send(|out| out.extend_from_slice(arguments.bytes()), self.expect(meaning));
        Step::Done
    }

    /// What is expected of a command whose reply goes to the client as it comes.
    pub(super) fn expect(&self, meaning: Meaning) -> Expected {
        self.expect_as(Delivery::Forward, meaning)
    }

    /// What is expected of a command of the client.
    pub(super) fn expect_as(&self, delivery: Delivery, meaning: Meaning) -> Expected {
        let delivery = if self.muted { Delivery::Drop } else { delivery };
        Expected { client: self.client.clone(), delivery, meaning }
    }

    /// A reply of the proxy's own, in its place.
    pub(super) fn own(&self, reply: impl Into<Bytes>) -> Step {
        if !self.muted {
            self.client.reply(reply);
        }
        Step::Done
    }

    fn select(&mut self, arguments: Arguments<'_>) -> Step {
        let db = arguments.get(1).and_then(integer).and_then(|db| u32::try_from(db).ok());
        if let (Some(db), 2) = (db, arguments.len())
            && Some(db) == self.client.db.get()
        {
            return self.own("+OK\r\n");
        }
        let step = self.forward(arguments, true, db.map_or(Meaning::None, Meaning::Selected));
        if step == Step::Done {
            // Which keys are guarded from here on depends on the answer.
            (self.pinned_for_good, self.barrier) = (true, true);
        }
        step
    }

    /// Sends a command that logs in. The connection belongs to that user from then on.
    fn log_in(&mut self, write: impl FnOnce(&mut BytesMut)) -> Step {
        let Some(link) = self.link(true) else { return Step::Wait };
        link.send(write, self.expect(Meaning::None));
        // A connection that Redis let nobody name until now can be named after the login.
        link.introduce_again(&self.client);
        self.pinned_for_good = true;
        Step::Done
    }

    /// `HELLO [protover [AUTH user password] [SETNAME name]]`
    fn hello(&mut self, arguments: Arguments<'_>) -> Step {
        match arguments.get(1) {
            None => return self.forward(arguments, false, Meaning::None),
            Some(b"2") => {}
            Some(version) if integer(version).is_none() => {
                return self.own("-ERR Protocol version is not an integer or out of range\r\n");
            }
            Some(_) => return self.own("-NOPROTO unsupported protocol version\r\n"),
        }
        let (mut login, mut name, mut n) = (None, None, 2);
        while let Some(option) = arguments.get(n) {
            if option.eq_ignore_ascii_case(b"AUTH") && arguments.len() > n + 2 {
                (login, n) = (Some(n), n + 3);
            } else if option.eq_ignore_ascii_case(b"SETNAME") && arguments.len() > n + 1 {
                (name, n) = (arguments.get(n + 1), n + 2);
            } else {
                let mut error = BytesMut::from(&b"-ERR Syntax error in HELLO option '"[..]);
                // As Redis does, so that what the client sent cannot end the line.
                error.extend(option.iter().map(|b| if matches!(b, b'\r' | b'\n') { b' ' } else { *b }));
                error.extend_from_slice(b"'\r\n");
                return self.own(error.freeze());
            }
        }
        // The name stays with the proxy: Redis knows the connection by ours.
        let step = match login {
            Some(at) => self.log_in(|out| {
                put_header(out, b'*', 5);
                [&b"HELLO"[..], b"2"].iter().for_each(|word| put_bulk(out, word));
                arguments.from(at).take(3).for_each(|word| put_bulk(out, word));
            }),
            None => {
                let Some(link) = self.link(false) else { return Step::Wait };
                link.send(
                    |out| out.extend_from_slice(b"*2\r\n$5\r\nHELLO\r\n$1\r\n2\r\n"),
                    self.expect(Meaning::None),
                );
                Step::Done
            }
        };
        if let (Step::Done, Some(name)) = (step, name) {
            self.name = Bytes::copy_from_slice(name);
        }
        step
    }

    fn client_command(&mut self, arguments: Arguments<'_>) -> Step {
        let is = |name: &[u8]| arguments.get(1).is_some_and(|sub| sub.eq_ignore_ascii_case(name));
        match arguments.len() {
            3 if is(b"SETNAME") => {
                let name = arguments.get(2).unwrap_or_default();
                if name.iter().any(|b| !(b'!'..=b'~').contains(b)) {
                    return self
                        .own("-ERR Client names cannot contain spaces, newlines or special characters.\r\n");
                }
                self.name = Bytes::copy_from_slice(name);
                self.own("+OK\r\n")
            }
            2 if is(b"GETNAME") => {
                let mut reply = BytesMut::new();
                if self.name.is_empty() {
                    reply.extend_from_slice(b"$-1\r\n");
                } else {
                    put_bulk(&mut reply, &self.name);
                }
                self.own(reply.freeze())
            }
            // Of the library, which is not Redis's client: the proxy is.
            4 if is(b"SETINFO") => self.own("+OK\r\n"),
            3 if is(b"REPLY") => self.client_reply(arguments),
            _ => {
                let step = self.forward(arguments, true, Meaning::None);
                self.pinned_for_good |= step == Step::Done;
                step
            }
        }
    }

    fn client_reply(&mut self, arguments: Arguments<'_>) -> Step {
        let mode = arguments.get(2).unwrap_or_default();
        if mode.eq_ignore_ascii_case(b"ON") {
            (self.replies, self.muted) = (Replies::On, false);
            return self.own("+OK\r\n");
        }
        if mode.eq_ignore_ascii_case(b"OFF") {
            (self.replies, self.muted) = (Replies::Off, true);
        } else if mode.eq_ignore_ascii_case(b"SKIP") {
            if self.replies != Replies::Off {
                (self.replies, self.muted) = (Replies::SkipNext, false);
            }
        } else {
            return self.own("-ERR syntax error\r\n");
        }
        Step::Done
    }

    fn reset(&mut self) -> Step {
        if self.client.outstanding() > 0 {
            return Step::Wait;
        }
        if let Some(pin) = self.pin.take() {
            // Not the client's any more: its end is none of the client's business.
            pin.own(None);
            pin.close();
        }
        self.transaction = None;
        (self.pinned_for_good, self.watching, self.streaming) = (false, false, false);
        (self.barrier, self.blocking) = (false, false);
        (self.replies, self.muted) = (Replies::On, false);
        self.name = Bytes::new();
        self.client.db.set(Some(0));
        self.own("+RESET\r\n")
    }

    fn quit(&mut self) -> Step {
        self.closing = true;
        self.own("+OK\r\n")
    }

    fn begin_streaming(&mut self, arguments: Arguments<'_>) -> Step {
        if self.client.outstanding() > 0 {
            return Step::Wait;
        }
        let Some(link) = self.link(true) else { return Step::Wait };
        link.stream();
        link.send_raw(arguments.bytes());
        (self.streaming, self.pinned_for_good) = (true, true);
        Step::Done
    }

    /// While subscribed or monitoring, bytes go both ways as they come. What the proxy would have to judge
    /// or to answer in its place cannot be, and says so.
    fn take_while_streaming(&mut self, command: Command, arguments: Arguments<'_>) -> Step {
        let refused = match command {
            Command::Quit => return self.quit(),
            Command::Reset => return self.reset(),
            Command::Fill(form) => !self.guarded_keys(form, arguments).is_empty(),
            Command::Asof | Command::Hello | Command::Client | Command::Select | Command::Forbidden => true,
            _ => false,
        };
        if refused {
            return self.own(
                "-FENCE cachefence: not on a connection that has subscribed or monitors; use another\r\n",
            );
        }
        let Some(link) = self.link(true) else { return Step::Wait };
        link.send_raw(arguments.bytes());
        Step::Done
    }

    fn take_in_transaction(&mut self, command: Command, arguments: Arguments<'_>) -> Step {
        if self.pin.as_ref().is_some_and(|pin| pin.begun() == Some(false)) {
            // Redis refused the MULTI: there is no transaction.
            self.transaction = None;
            return self.take_plainly(command, arguments);
        }
        match command {
            Command::Fill(form) => self.queue_fill(form, arguments, None),
            Command::Asof => self.asof(arguments),
            Command::Exec => self.execute(arguments),
            // Where it is wrong, the transaction goes on.
            Command::Discard if arguments.len() != 1 => self.forward(arguments, true, Meaning::None),
            Command::Discard => {
                let step = self.forward(arguments, true, Meaning::Cleared);
                if step == Step::Done {
                    (self.transaction, self.watching) = (None, false);
                }
                step
            }
            Command::Select => {
                if self.awaits_begin() {
                    return Step::Wait;
                }
                let db = arguments.get(1).and_then(integer).and_then(|db| u32::try_from(db).ok());
                let step = self.forward(arguments, true, Meaning::None);
                if let (Step::Done, Some(transaction)) = (step, &mut self.transaction) {
                    transaction.dbs.extend(db);
                    self.pinned_for_good = true;
                }
                step
            }
            Command::Quit => self.quit(),
            Command::Reset => self.reset(),
            Command::Stream | Command::Client | Command::Hello | Command::Auth | Command::Forbidden => {
                if let Some(transaction) = &mut self.transaction {
                    transaction.aborted = true;
                }
                self.own("-ERR cachefence: this command cannot be part of a transaction\r\n")
            }
            _ => self.forward(arguments, true, Meaning::None),
        }
    }
}
