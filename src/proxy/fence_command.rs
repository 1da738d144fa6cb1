//! `FENCE EXPLAIN | SOURCES | STATUS | HELP`: what the proxy knows, for whoever talks to it anyway.
//!
//! What is told goes out in place of Redis's reply to a command that changes nothing, in the client's own name: so it
//! is Redis that says who has to log in first, and who may not look at a key.

use bytes::{Bytes, BytesMut};

use super::expect::{Delivery, Meaning};
use super::route::LANE_REQUEST;
use super::session::{Session, Step};
use crate::admin::info;
use crate::resp::{Arguments, Protocol, put_bulk, put_header, put_request};

const HELP: &[&str] = &[
    "FENCE <subcommand> [<arg> ...]. Subcommands are:",
    "EXPLAIN <key>",
    "    The key's guards, its last write, its misses, and what fills of it would get now.",
    "SOURCES <key>",
    "    Names of the sources from which a miss of the key may be filled now.",
    "STATUS",
    "    Feed, sources and fence, in the format of INFO.",
    "HELP",
    "    Print this help.",
];

impl Session {
    /// `FENCE ...`
    pub(super) fn fence_command(&mut self, arguments: Arguments<'_>) -> Step {
        let Some(name) = arguments.get(1) else {
            return self.own("-ERR wrong number of arguments for 'fence' command\r\n");
        };
        let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
        match (arguments.get(2), arguments.len()) {
            (Some(key), 3) if is("EXPLAIN") => self.tell_of_key(key, |session, db| {
                let explanation = session.gate.explain_to(db, key, session.client.id);
                texts(explanation.lines().iter().map(String::as_str))
            }),
            (Some(key), 3) if is("SOURCES") => self.tell_of_key(key, |session, db| {
                texts(session.gate.sources_for(db, key).iter().map(String::as_str))
            }),
            (None, 2) if is("STATUS") => self.tell(&[b"PING"], |session| {
                verbatim(&info(&session.gate.account.status()), session.client.protocol.get())
            }),
            (None, 2) if is("HELP") => self.tell(&[b"PING"], |_| help()),
            _ if ["EXPLAIN", "SOURCES", "STATUS", "HELP"].into_iter().any(is) => {
                let name = String::from_utf8_lossy(name).to_ascii_lowercase();
                self.own(format!("-ERR wrong number of arguments for 'fence|{name}' command\r\n"))
            }
            _ => {
                // As Redis: not more of it than fits a line.
                let name = name.get(..128).unwrap_or(name).escape_ascii();
                self.own(format!("-ERR unknown subcommand '{name}'. Try FENCE HELP.\r\n"))
            }
        }
    }

    /// Who may not ask whether a key exists is not told of it.
    fn tell_of_key(&mut self, key: &[u8], what: impl FnOnce(&Self, u32) -> Bytes) -> Step {
        let Some(db) = self.client.db.get() else {
            return self.own(
                "-ERR cachefence: a transaction with SELECT has failed, and the db is not known; SELECT one\r\n",
            );
        };
        self.tell(&[b"EXISTS", key], |session| what(session, db))
    }

    /// Answers in place of Redis's reply to `command`, unless that is an error.
    fn tell(&mut self, command: &[&[u8]], what: impl FnOnce(&Self) -> Bytes) -> Step {
        let mut request = BytesMut::new();
        put_request(&mut request, command);
        let Some(link) = self.link(request.len() > LANE_REQUEST) else { return Step::Wait };
        let delivery = Delivery::Replace(what(self));
        link.send(|out| out.extend_from_slice(&request), self.expect_as(delivery, Meaning::None));
        // One at a time: while Redis does not answer, a client must not have thousands of texts made and kept.
        self.barrier = true;
        Step::Done
    }
}

/// An array of bulk strings.
fn texts<'a>(texts: impl ExactSizeIterator<Item = &'a str>) -> Bytes {
    let mut reply = BytesMut::new();
    put_header(&mut reply, b'*', texts.len());
    texts.for_each(|text| put_bulk(&mut reply, text.as_bytes()));
    reply.freeze()
}

/// As Redis answers to a HELP: an array of simple strings.
fn help() -> Bytes {
    let lines: String = HELP.iter().map(|line| format!("+{line}\r\n")).collect();
    format!("*{}\r\n{lines}", HELP.len()).into()
}

/// A text for people: what INFO answers with.
fn verbatim(text: &str, protocol: Protocol) -> Bytes {
    match protocol {
        Protocol::Resp2 => {
            let mut reply = BytesMut::new();
            put_bulk(&mut reply, text.as_bytes());
            reply.freeze()
        }
        Protocol::Resp3 => format!("={}\r\ntxt:{text}\r\n", text.len() + 4).into(),
    }
}
