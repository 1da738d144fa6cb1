//! What a link expects from Redis: for each command that was sent, where its reply goes and what it means.

use std::rc::Rc;

use bytes::Bytes;

use super::client::Client;
use super::commands::Read;
use crate::cache::AbandonedFill;
use crate::fence::KeyHash;
use crate::guard::GuardList;

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
    /// `OK` to a SELECT of this db.
    Selected(u32),
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
    /// Whether the reply can be passed on as it comes in, without being seen whole.
    pub fn streams(&self) -> bool {
        matches!(
            (&self.delivery, &self.meaning),
            (Delivery::Forward | Delivery::Drop | Delivery::Hidden, Meaning::None)
        )
    }
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
        assert_eq!(miss(Read::NilPerField, mget, 0), Some(true));
        assert_eq!(miss(Read::NilPerField, "*1\r\n$1\r\na\r\n", 0), Some(false));
    }
}
