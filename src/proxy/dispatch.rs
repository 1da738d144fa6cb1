//! A command's way: which link it takes, and what the proxy answers itself.

use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use smallvec::SmallVec;
use tracing::warn;

use super::expect::{Delivery, Expected, Meaning};
use super::held::Held;
use super::link::Link;
use super::route::LANE_REQUEST;
use super::session::{Replies, Session, Step};
use super::transaction::Transaction;
use crate::command::{Command, FillForm};
use crate::complaint::Complaint;
use crate::resp::{Arguments, integer};

impl Session {
    /// Takes a command that is there as a whole.
    pub(super) fn take(&mut self, arguments: Arguments<'_>) -> Step {
        let command = self.gate.commands.load().of(arguments);
        if command == Command::Unknown && is_http(arguments) {
            return self.end_http();
        }
        let was_muted = self.muted;
        self.muted = self.replies != Replies::On;
        let step = if self.is_monitoring() || self.is_only_subscribed() {
            self.take_while_listening(command, arguments)
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
            Command::Expire => self.expire(None, arguments),
            Command::Asof => self.asof(arguments),
            Command::After => self.after(arguments),
            Command::Fence => self.fence_command(arguments),
            Command::Multi => {
                let Some(link) = self.link(true) else { return Step::Wait };
                link.begin();
                link.send(|out| out.extend_from_slice(arguments.bytes()), self.expect(Meaning::Begun));
                if arguments.len() == 1 {
                    let youngest = self.gate.guards.load().youngest();
                    self.transaction = Some(Transaction { youngest, ..Transaction::default() });
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
                let watches = self.watching || self.client.held().has(Held::WATCHED);
                let ends = watches && arguments.len() == 1;
                let step =
                    self.forward(arguments, false, if ends { Meaning::Unwatched } else { Meaning::None });
                self.watching &= step == Step::Wait || !ends;
                step
            }
            // Without a MULTI these are errors, in Redis's words.
            Command::Exec | Command::Discard => self.forward(arguments, false, Meaning::None),
            Command::Select => self.select(arguments),
            Command::Auth => self.auth(arguments),
            Command::Hello => self.hello(arguments),
            Command::Client => self.client_command(arguments),
            Command::Reset => self.reset(),
            Command::Quit => self.quit(),
            Command::Wait => self.wait(arguments),
            Command::Blocking => {
                let step = self.forward(arguments, true, Meaning::None);
                (self.barrier, self.blocking) = (step == Step::Done, step == Step::Done);
                // All others only take away.
                let moves = arguments.get(0).is_some_and(|name| {
                    [&b"BLMOVE"[..], b"BRPOPLPUSH"].iter().any(|mover| name.eq_ignore_ascii_case(mover))
                });
                if let (Step::Done, false, Some(pin)) = (step, moves, &self.pin) {
                    pin.upstream.rest();
                }
                step
            }
            Command::Subscribe => self.subscribe(arguments),
            Command::Monitor => self.monitor(arguments),
            Command::Unknown => self.unknown(arguments),
            Command::Forbidden => self.own("-ERR cachefence: this command does not go through the proxy\r\n"),
        }
    }

    /// The link for the next command, or none while it has to wait for those before it on another link: so
    /// that the order of commands is the client's order.
    pub(super) fn link(&mut self, wants_pin: bool) -> Option<Rc<Link>> {
        if let Some(large) = &self.large {
            // Even if it is closed: what has gone out cannot go elsewhere.
            return Some(large.link.clone());
        }
        let keeps = self.keeps_pin();
        let wants_pin = wants_pin || keeps || self.links.all_pinned() || self.client.takes_large();
        if let Some(pin) = &self.pin {
            if pin.is_tainted() {
                // Redis would not end a transaction or a WATCH, and the proxy cannot tell what is queued.
                self.closing = true;
                return None;
            }
            if wants_pin && pin.is_open() && pin.is_of(&self.client) {
                return (!pin.is_crowded(&self.client)).then(|| pin.clone());
            }
            if keeps {
                // The state that made it a pin is lost. As when Redis closes a connection: so is the client's.
                self.closing = true;
            }
        }
        if self.closing || (self.client.outstanding() > 0 && (self.pin.is_some() || wants_pin)) {
            return None;
        }
        if let Some(pin) = self.pin.take() {
            self.blocking = false;
            self.links.release(pin);
        }
        let link = if wants_pin {
            self.pin.insert(self.links.pin(&self.client)).clone()
        } else {
            match &self.lane {
                Some(lane)
                    if lane.link.is_open() && (!lane.link.is_retired() || self.client.outstanding() > 0) =>
                {
                    lane.link.clone()
                }
                _ => {
                    // Left before it is joined again, so that it is not counted twice.
                    self.lane = None;
                    self.lane.insert(self.links.join(self.client.account())).link.clone()
                }
            }
        };
        (!link.is_crowded(&self.client)).then_some(link)
    }

    /// Whether the client has state in Redis that is bound to its pin.
    pub(super) fn keeps_pin(&self) -> bool {
        self.client.held().any() || self.watching || self.transaction.is_some()
    }

    /// The dbs that the client's next command may go to: its own, in nearly all cases. In a transaction that SELECTs,
    /// what is queued goes to another one if Redis executes that; and after one that went wrong around a SELECT nobody
    /// knows.
    pub(super) fn dbs(&self) -> SmallVec<[u32; 2]> {
        let now = self.client.db.get();
        let queued = self.transaction.iter().flat_map(|transaction| transaction.dbs.iter().copied());
        match now {
            Some(now) => queued.chain([now]).collect(),
            None => queued.chain(self.gate.guards.load().dbs()).collect(),
        }
    }

    /// Whether what only makes sense inside a transaction has to wait until Redis has begun one.
    pub(super) fn awaits_begin(&self) -> bool {
        self.pin.as_ref().is_some_and(|pin| pin.begun().is_none()) && self.client.outstanding() > 0
    }

    /// Sends a command as it came.
    pub(super) fn forward(&mut self, arguments: Arguments<'_>, wants_pin: bool, meaning: Meaning) -> Step {
        let Some(link) = self.link(wants_pin) else { return Step::Wait };
        link.send(|out| out.extend_from_slice(arguments.unsent()), self.expect(meaning));
        Step::Done
    }

    /// Sends a command that may change what Redis remembers of the connection: what comes next depends on whether
    /// it did.
    pub(super) fn forward_state(&mut self, arguments: Arguments<'_>, meaning: Meaning) -> Step {
        let step = self.forward(arguments, true, meaning);
        self.barrier |= step == Step::Done;
        step
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

    /// A command that neither the proxy nor the server's table knows. If Redis has it nevertheless, it is one of
    /// another name (rename-command, of which the table tells the old one), or of a module that was loaded since: with
    /// a guarded key among its arguments it may be a fill.
    fn unknown(&mut self, arguments: Arguments<'_>) -> Step {
        if self.guarded_keys(&self.gate.guards.load(), FillForm::UNKNOWN, arguments).is_empty() {
            return self.forward_state(arguments, Meaning::Holds(Held::FOR_GOOD, true));
        }
        let step = self.fill(FillForm::UNKNOWN, arguments, None);
        if step == Step::Done {
            self.client.hold(Held::FOR_GOOD, true);
            self.barrier = true;
        }
        step
    }

    fn take_in_transaction(&mut self, command: Command, arguments: Arguments<'_>) -> Step {
        if self.pin.as_ref().is_some_and(|pin| pin.begun() == Some(false)) {
            // Redis refused the MULTI: there is no transaction.
            self.transaction = None;
            return self.take_plainly(command, arguments);
        }
        match command {
            Command::Fill(form) => self.queue_fill(form, arguments, None),
            Command::Expire => self.queue_expiry(arguments),
            Command::Read(read) => self.queue_read(read, arguments),
            Command::Asof => self.asof(arguments),
            Command::Exec => self.execute(arguments),
            // Where it is wrong, the transaction goes on.
            Command::Discard if arguments.len() != 1 => self.forward(arguments, true, Meaning::None),
            Command::Discard => {
                let step = self.forward_state(arguments, Meaning::Discarded);
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
                }
                step
            }
            Command::Quit => self.quit(),
            Command::Reset => self.reset(),
            Command::Client if self.is_of_the_client(arguments) => self.refuse_in_transaction(),
            Command::Client | Command::Unknown => {
                let step = self.queue_fill(FillForm::UNKNOWN, arguments, None);
                if step == Step::Done {
                    // Whether it will be executed, and what it will do, is hard to tell.
                    self.client.hold(Held::FOR_GOOD, true);
                }
                step
            }
            // What comes after a position is what is read at EXEC: the whole transaction has to wait, with AFTER MULTI.
            Command::After
            | Command::Fence
            | Command::Subscribe
            | Command::Monitor
            | Command::Hello
            | Command::Auth
            | Command::Forbidden => self.refuse_in_transaction(),
            _ => self.forward(arguments, true, Meaning::None),
        }
    }

    /// A browser that a page of somebody else has made to send requests here, or somebody who is at the wrong port. What
    /// follows the lines of HTTP may look like commands, and must not be executed. Redis does the same.
    fn end_http(&mut self) -> Step {
        // Anybody can do this as often as connections can be made.
        static COMPLAINT: Mutex<Complaint> = Mutex::new(Complaint::none());
        if COMPLAINT.lock().unwrap_or_else(PoisonError::into_inner).is_due() {
            warn!("a client speaks HTTP: closing its connection");
        }
        self.closing = true;
        Step::Done
    }

    fn refuse_in_transaction(&mut self) -> Step {
        if let Some(transaction) = &mut self.transaction {
            transaction.aborted = true;
        }
        self.own("-ERR cachefence: this command cannot be part of a transaction\r\n")
    }
}

/// Whether a request is a line of HTTP: of one with a body, or the header that every request has.
fn is_http(arguments: Arguments<'_>) -> bool {
    let name = arguments.get(0).unwrap_or_default();
    name.eq_ignore_ascii_case(b"POST") || name.eq_ignore_ascii_case(b"Host:")
}
