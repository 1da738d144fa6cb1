//! What a link expects from Redis: for each command that was sent, where its reply goes and what it means.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::account::Change;
use super::client::Client;
use super::held::Held;
use super::subscription::Confirmations;
use crate::cache::AbandonedFill;
use crate::command::Read;
use crate::fence::KeyHash;
use crate::guard::GuardList;
use crate::resp::put_header;

/// A command on its way, until its reply has come.
#[derive(Debug)]
pub struct Expected {
    /// Who sent it.
    pub client: Rc<Client>,
    /// What the client gets.
    pub delivery: Delivery,
    /// What the reply means to the proxy.
    pub meaning: Meaning,
}

/// What the client gets of a reply.
#[derive(Debug)]
pub enum Delivery {
    /// The reply, as it came.
    Forward,
    /// Nothing, but it is the client's turn (CLIENT REPLY OFF).
    Drop,
    /// Nothing: the command was the proxy's own.
    Hidden,
    /// `OK` becomes 1, nil becomes 0: a SETNX that went as a SET.
    SetNx,
    /// The array, with nil in place of the elements at these places, which ascend.
    Nils(Box<[usize]>),
    /// This, in place of any reply but an error.
    Replace(Bytes),
}

/// What a reply means to the proxy.
#[derive(Debug)]
pub enum Meaning {
    /// Nothing.
    None,
    /// A read of one guarded key, which may be a miss.
    Read(Read, GuardedKey),
    /// A read of several keys, some of them guarded: the place of each among the keys.
    Reads(Read, Box<[(usize, GuardedKey)]>),
    /// The end of fills.
    Fills(Box<[AbandonedFill]>),
    /// `CLIENT SETNAME` of the link itself.
    Named,
    /// `CLIENT ID` of the link itself.
    RedisId,
    /// `OK` to an AUTH or a SELECT, or a HELLO's properties of the server: the account is another one.
    Account(Box<Change>),
    /// Anything but an error: Redis remembers something of the connection from now on, or no more.
    Holds(Held, bool),
    /// Subscriptions that begin or end: as many replies as there are, or one error.
    Subscribed(Confirmations),
    /// The end of a transaction in which the last SELECT was of this db, and of its fills.
    Executed(Box<[AbandonedFill]>, u32),
    /// `OK` to MULTI, without which what follows is executed at once.
    Begun,
    /// `OK` to a command that ends the state which made the link a pin (DISCARD, UNWATCH).
    Cleared,
}

impl Meaning {
    /// The fills whose end the reply is.
    pub fn fills(&self) -> &[AbandonedFill] {
        match self {
            Self::Fills(fills) | Self::Executed(fills, _) => fills,
            _ => &[],
        }
    }
}

/// A key with guards.
#[derive(Clone, Debug)]
pub struct GuardedKey {
    /// Its hash.
    pub hash: KeyHash,
    /// Its guards.
    pub guards: GuardList,
}

impl Expected {
    /// Whether a large reply, of which so much is there, can be passed on as it comes in, without being seen whole.
    pub fn streams(&self, head: &[u8]) -> bool {
        if !matches!(self.delivery, Delivery::Forward | Delivery::Drop | Delivery::Hidden) {
            return false;
        }
        match &self.meaning {
            Meaning::None | Meaning::Fills(_) => true,
            // What is large is there. Of several keys each has to be looked at.
            Meaning::Read(Read::Nil, _) => head.first() == Some(&b'$'),
            Meaning::Read(Read::EmptyArray, _) => matches!(head.first(), Some(b'*' | b'%')),
            _ => false,
        }
    }
}

/// Whether a transaction was executed, and which of its SELECTs therefore: `Some(true)` if all of it went well,
/// `Some(false)` if it was not executed, none if a part of it failed.
pub fn executed(reply: &[u8]) -> Option<bool> {
    if reply.first() == Some(&b'-') || is_nil(reply) {
        return Some(false);
    }
    elements(reply).all(|element| element.first() != Some(&b'-')).then_some(true)
}

/// An array with nil in place of the elements at `places`, which ascend.
pub fn with_nils(reply: &[u8], places: &[usize]) -> BytesMut {
    let mut out = BytesMut::with_capacity(reply.len());
    put_header(&mut out, b'*', elements(reply).count());
    let mut places = places.iter().peekable();
    for (n, element) in elements(reply).enumerate() {
        let nil = places.next_if(|place| **place == n).is_some();
        out.extend_from_slice(if nil { b"$-1\r\n" } else { element });
    }
    out
}

/// Which of several keys, of which each has an element in the reply, were missed; `places` ascend.
pub fn each_missed(reply: &[u8], places: impl Iterator<Item = usize>) -> impl Iterator<Item = bool> {
    let mut rest = elements(reply);
    let mut next = 0;
    places.map(move |place| {
        let element = rest.nth(place - next);
        next = place + 1;
        element.is_some_and(is_nil)
    })
}

/// Which of the keys that a read asked for were missed, by its reply. `None`: the reply is an error, and says nothing.
pub fn misses(read: Read, reply: &[u8], place: usize) -> Option<bool> {
    match read {
        _ if reply.first() == Some(&b'-') => None,
        Read::Nil => Some(is_nil(reply)),
        Read::EmptyArray => Some(reply.starts_with(b"*0\r\n") || reply.starts_with(b"%0\r\n")),
        // How many of several keys exist does not tell which.
        Read::Zero => Some(reply == b":0\r\n"),
        Read::NilPerKey => Some(elements(reply).nth(place).is_some_and(is_nil)),
        Read::NilPerField => Some(elements(reply).any(is_nil)),
    }
}

fn is_nil(reply: &[u8]) -> bool {
    reply.starts_with(b"$-1\r\n") || reply.starts_with(b"_\r\n") || reply.starts_with(b"*-1\r\n")
}

/// The elements of an array of simple replies.
fn elements(reply: &[u8]) -> impl Iterator<Item = &[u8]> {
    let start = reply.iter().position(|b| *b == b'\n').map_or(reply.len(), |at| at + 1);
    let mut rest = if reply.first() == Some(&b'*') { &reply[start..] } else { &[] };
    std::iter::from_fn(move || {
        let mut scanner = crate::resp::ReplyScanner::default();
        let progress = scanner.scan(rest).ok().filter(|progress| progress.done)?;
        let (element, tail) = rest.split_at(progress.bytes);
        rest = tail;
        Some(element)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_miss_is_told_by_the_shape_of_the_reply() {
        let miss = |read, reply: &str, place| misses(read, reply.as_bytes(), place);
        assert_eq!(miss(Read::Nil, "$-1\r\n", 0), Some(true));
        assert_eq!(miss(Read::Nil, "$1\r\na\r\n", 0), Some(false));
        assert_eq!(miss(Read::Nil, "-WRONGTYPE x\r\n", 0), None);
        assert_eq!(miss(Read::Zero, ":0\r\n", 1), Some(true));
        assert_eq!(miss(Read::Zero, ":1\r\n", 1), Some(false));
        assert_eq!(miss(Read::EmptyArray, "*0\r\n", 0), Some(true));
        let mget = "*3\r\n$1\r\na\r\n$-1\r\n$0\r\n\r\n";
        assert_eq!(
            (0..3).map(|n| miss(Read::NilPerKey, mget, n)).collect::<Vec<_>>(),
            [Some(false), Some(true), Some(false)]
        );
        assert_eq!(with_nils(mget.as_bytes(), &[0, 1]), "*3\r\n$-1\r\n$-1\r\n$0\r\n\r\n");
        assert_eq!(each_missed(mget.as_bytes(), [1, 2].into_iter()).collect::<Vec<_>>(), [true, false]);
        assert_eq!(miss(Read::NilPerField, mget, 0), Some(true));
        assert_eq!(miss(Read::NilPerField, "*1\r\n$1\r\na\r\n", 0), Some(false));
    }

    /// Which db a client is in after a transaction with a SELECT hangs on this.
    #[test]
    fn a_transaction_that_was_not_executed_is_told_by_its_reply() {
        assert_eq!(executed(b"*2\r\n+OK\r\n+OK\r\n"), Some(true));
        assert_eq!(executed(b"*2\r\n+OK\r\n-ERR DB index is out of range\r\n"), None);
        assert_eq!(executed(b"*-1\r\n"), Some(false));
        assert_eq!(executed(b"-EXECABORT x\r\n"), Some(false));
    }
}
