//! What belongs to a client's connection: its name, its replies, its subscriptions, its end. What the proxy can
//! answer truly by itself it does; the rest is Redis's, on a pin that is kept while Redis remembers something.

use bytes::BytesMut;

use super::expect::{Expected, Meaning};
use super::held::Held;
use super::negotiate::is_name;
use super::session::{Replies, Session, Step};
use super::subscription::{Confirmations, Kind};
use crate::command::Command;
use crate::resp::{Arguments, Protocol, put_bulk, put_request};

impl Session {
    /// `CLIENT ...`
    pub(super) fn client_command(&mut self, arguments: Arguments<'_>) -> Step {
        let is = |n, name: &[u8]| arguments.get(n).is_some_and(|word| word.eq_ignore_ascii_case(name));
        let held = match arguments.len() {
            3 if is(1, b"SETNAME") => return self.set_name(arguments),
            2 if is(1, b"GETNAME") => return self.get_name(),
            4 if is(1, b"SETINFO") && self.gate.commands.load().knows(b"CLIENT", b"SETINFO") => {
                return self.set_info(arguments);
            }
            3 if is(1, b"REPLY") => return self.client_reply(arguments),
            // Others may speak of the connection by its id from now on.
            2 if is(1, b"ID") || is(1, b"INFO") => Held::FOR_GOOD,
            3.. if is(1, b"TRACKING") => Held::TRACKING,
            3 if is(1, b"NO-EVICT") => Held::NO_EVICT,
            3 if is(1, b"NO-TOUCH") => Held::NO_TOUCH,
            _ if LEAVES_NOTHING.iter().any(|name| is(1, name)) => {
                return self.forward(arguments, true, Meaning::None);
            }
            _ => Held::FOR_GOOD,
        };
        let off = held != Held::FOR_GOOD && is(2, b"OFF");
        self.forward_state(arguments, Meaning::Holds(held, !off))
    }

    /// Whether it is one of those that the proxy answers itself.
    pub(super) fn is_of_the_client(&self, arguments: Arguments<'_>) -> bool {
        let own = [&b"SETNAME"[..], b"GETNAME", b"SETINFO", b"REPLY"];
        arguments.get(1).is_some_and(|sub| own.iter().any(|name| sub.eq_ignore_ascii_case(name)))
    }

    fn set_name(&mut self, arguments: Arguments<'_>) -> Step {
        let name = arguments.get(2).unwrap_or_default();
        if !is_name(name) {
            return self.own("-ERR Client names cannot contain spaces, newlines or special characters.\r\n");
        }
        *self.client.name.borrow_mut() = bytes::Bytes::copy_from_slice(name);
        self.own("+OK\r\n")
    }

    fn get_name(&mut self) -> Step {
        let mut reply = BytesMut::new();
        let name = self.client.name.borrow().clone();
        if name.is_empty() {
            reply.extend_from_slice(self.client.protocol.get().nil());
        } else {
            put_bulk(&mut reply, &name);
        }
        self.own(reply.freeze())
    }

    /// `CLIENT SETINFO LIB-NAME | LIB-VER text`: of the library, which is not Redis's client; the proxy is.
    fn set_info(&mut self, arguments: Arguments<'_>) -> Step {
        let (attribute, text) = (arguments.get(2).unwrap_or_default(), arguments.get(3).unwrap_or_default());
        let known =
            [&b"lib-name"[..], b"lib-ver"].into_iter().find(|name| attribute.eq_ignore_ascii_case(name));
        match known.map(String::from_utf8_lossy) {
            None => self.own(format!("-ERR Unrecognized option '{}'\r\n", attribute.escape_ascii())),
            Some(known) if !is_name(text) => {
                self.own(format!("-ERR {known} cannot contain spaces, newlines or special characters.\r\n"))
            }
            Some(_) => self.own("+OK\r\n"),
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

    /// `RESET`: as if the client had just connected.
    pub(super) fn reset(&mut self) -> Step {
        if self.client.outstanding() > 0 || self.client.is_partway() {
            return Step::Wait;
        }
        let (keeps, skipped) = (self.keeps_pin(), self.replies == Replies::SkipNext);
        if let Some(pin) = self.pin.take() {
            if keeps {
                // Not the client's any more: its end is none of the client's business.
                pin.own(None);
                pin.close();
            } else {
                self.links.release(pin);
            }
        }
        (self.lane, self.transaction) = (None, None);
        (self.watching, self.barrier, self.blocking) = (false, false, false);
        (self.replies, self.muted) = (Replies::On, false);
        self.client.forget(self.gate.upstreams.strangers.times());
        if skipped { Step::Done } else { self.own("+RESET\r\n") }
    }

    /// `QUIT`
    pub(super) fn quit(&mut self) -> Step {
        self.closing = true;
        self.own("+OK\r\n")
    }

    /// `SUBSCRIBE channel ...` and its kin, which are confirmed channel by channel.
    pub(super) fn subscribe(&mut self, arguments: Arguments<'_>) -> Step {
        match arguments.get(0).and_then(Kind::of) {
            Some(kind) => {
                let due = Confirmations::of(kind, arguments.len() - 1);
                self.forward_state(arguments, Meaning::Subscribed(due))
            }
            // The table of commands and the kinds name the same commands.
            None => self.forward_state(arguments, Meaning::Holds(Held::FOR_GOOD, true)),
        }
    }

    /// `MONITOR`: from Redis's `OK` on nothing that it says answers anything.
    pub(super) fn monitor(&mut self, arguments: Arguments<'_>) -> Step {
        if self.client.outstanding() > 0 {
            return Step::Wait;
        }
        self.forward_state(arguments, Meaning::Holds(Held::MONITORS, true))
    }

    /// Whether all that Redis says goes to it as it comes.
    pub(super) fn is_monitoring(&self) -> bool {
        self.client.held().has(Held::MONITORS)
    }

    /// `WAIT`, `WAITAOF`: until what its own connection wrote is elsewhere. From the first one on the client keeps its
    /// pin, so that Redis knows which writes are its own. Those before it went over a lane: a command that is replicated
    /// makes Redis note for the pin how far all writes have come until now. (A PING did so up to 7.0.) One that the user
    /// has no right to (`&cachefence:wait`) does not, and that first WAIT may come too early.
    pub(super) fn wait(&mut self, arguments: Arguments<'_>) -> Step {
        let first = !self.client.held().has(Held::WAITED) && !self.links.all_pinned();
        let Some(link) = self.link(true) else { return Step::Wait };
        if first {
            let hidden = Expected::hidden(&self.client, Meaning::None);
            link.send(|out| put_request(out, &[b"PUBLISH", b"cachefence:wait", b""]), hidden);
        }
        let expected = self.expect(Meaning::Holds(Held::WAITED, true));
        link.send(|out| out.extend_from_slice(arguments.bytes()), expected);
        link.upstream.rest();
        (self.barrier, self.blocking) = (true, true);
        Step::Done
    }

    /// Whether it has subscriptions and speaks RESP2, where Redis then takes little else.
    pub(super) fn is_only_subscribed(&self) -> bool {
        self.client.held().has(Held::SUBSCRIBED) && self.client.protocol.get() == Protocol::Resp2
    }

    /// While it monitors, or has subscriptions in RESP2. Redis refuses all that would concern the proxy, which
    /// therefore need not look at it.
    pub(super) fn take_while_listening(&mut self, command: Command, arguments: Arguments<'_>) -> Step {
        match command {
            Command::Quit => self.quit(),
            Command::Reset => self.reset(),
            _ if self.is_monitoring() => {
                let Some(link) = self.link(true) else { return Step::Wait };
                link.send_raw(arguments.bytes());
                Step::Done
            }
            Command::Subscribe => self.subscribe(arguments),
            // In Redis's words, which knows no such command.
            Command::Fence => self.own(
                "-ERR Can't execute 'fence': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed \
                 in this context\r\n",
            ),
            _ => self.forward(arguments, true, Meaning::None),
        }
    }
}

/// Subcommands of CLIENT after which Redis remembers nothing of the connection that sent them.
const LEAVES_NOTHING: &[&[u8]] = &[
    b"LIST",
    b"KILL",
    b"PAUSE",
    b"UNPAUSE",
    b"UNBLOCK",
    b"GETREDIR",
    b"TRACKINGINFO",
    // For the next command of a connection that tracks, and so has a pin already.
    b"CACHING",
    b"HELP",
];
