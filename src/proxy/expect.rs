//! What a link expects from Redis: for each command that was sent, where its reply goes and what it means.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use super::account::Change;
use super::audited::Audited;
use super::client::Client;
use super::held::Held;
use super::shape::{elements, is_nil, with_nils};
use super::subscription::Confirmations;
use crate::cache::AbandonedFill;
use crate::command::Miss;
use crate::fence::Millis;
use crate::guard::GuardedKey;
use crate::resp::body;

/// The fills of one command: of one key, in nearly all cases.
pub type Fills = SmallVec<[AbandonedFill; 1]>;

/// A read whose miss may wait for somebody else's fill.
#[derive(Debug)]
pub struct Coalesced {
    /// The shape of its miss.
    pub miss: Miss,
    /// What it reads.
    pub key: GuardedKey,
    /// How long it may wait.
    pub patience: Duration,
    /// The read, to be sent once more.
    pub request: Bytes,
    /// When its time is over, once it has missed.
    pub until: Option<Millis>,
}

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
    /// This, in place of any reply: the command was the proxy's own, and is done before the client hears of what it has
    /// itself asked for.
    Instead(Bytes),
}

impl Delivery {
    /// Whether the command was the proxy's own.
    pub fn is_of_own(&self) -> bool {
        matches!(self, Self::Hidden | Self::Instead(_))
    }

    /// A reply's way to the client.
    pub fn pass_on(self, client: &Client, reply: &[u8], error: bool) {
        match self {
            Self::Hidden => return,
            Self::Drop => {}
            Self::SetNx if reply.starts_with(b"+") => client.deliver(b":1\r\n"),
            Self::SetNx if is_nil(reply) => client.deliver(b":0\r\n"),
            Self::Instead(bytes) => client.deliver(&bytes),
            Self::Replace(bytes) if !error => client.deliver(&bytes),
            Self::Nils(places) if !error => client.deliver(&with_nils(reply, &places, client.protocol.get())),
            Self::Forward | Self::SetNx | Self::Nils(_) | Self::Replace(_) => client.deliver(reply),
        }
        client.answered();
    }
}

/// What a reply means to the proxy.
#[derive(Debug)]
pub enum Meaning {
    /// Nothing.
    None,
    /// A read of one guarded key, which may be a miss.
    Read(Miss, GuardedKey),
    /// The same, where a miss may wait for somebody else's fill.
    Coalesced(Box<Coalesced>),
    /// A read whose hits are audited, and what it means besides.
    Audited(Box<Audited>),
    /// A read of several keys, some of them guarded: the place of each among the keys.
    Reads(Miss, Box<[(usize, GuardedKey)]>),
    /// A read of one guarded key that also changes how long the key lives: its end, as that of a fill.
    ReadExpiring(Miss, GuardedKey, Box<Fills>),
    /// The end of fills, and of commands that change how long keys live.
    Fills(Fills),
    /// `QUEUED` to fills that are judged at EXEC. Otherwise there was no transaction, and Redis has done them.
    Queued(Box<[AbandonedFill]>),
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
    /// `OK` to a DISCARD. Without it, nobody can tell what is queued.
    Discarded,
    /// `OK` to an UNWATCH.
    Unwatched,
}

impl Meaning {
    /// The fills whose end the reply is.
    pub fn fills(&self) -> &[AbandonedFill] {
        match self {
            Self::Fills(fills) => fills,
            Self::Executed(fills, _) => fills,
            Self::ReadExpiring(_, _, fills) => fills,
            _ => &[],
        }
    }
}

impl Expected {
    /// Of a command of the proxy's own, on behalf of a client.
    pub fn hidden(client: &Rc<Client>, meaning: Meaning) -> Self {
        Self { client: client.clone(), delivery: Delivery::Hidden, meaning }
    }

    /// Whether a large reply, of which so much is there, can be passed on as it comes in, without being seen whole.
    pub fn streams(&self, head: &[u8]) -> bool {
        if !matches!(self.delivery, Delivery::Forward | Delivery::Drop | Delivery::Hidden) {
            return false;
        }
        let miss = match &self.meaning {
            Meaning::None | Meaning::Fills(_) => return true,
            // Of several keys each has to be looked at.
            Meaning::Read(miss, _) | Meaning::ReadExpiring(miss, ..) => *miss,
            Meaning::Coalesced(read) => read.miss,
            _ => return false,
        };
        // What is large is there.
        match miss {
            Miss::Nil | Miss::EmptyString => head.first() == Some(&b'$'),
            Miss::EmptyArray | Miss::EmptySet | Miss::EmptyMap => {
                matches!(head.first(), Some(b'*' | b'~' | b'%'))
            }
            _ => false,
        }
    }
}

/// Whether a transaction was executed, and which of its SELECTs therefore: `Some(true)` if all of it went well,
/// `Some(false)` if it was not executed, none if a part of it failed.
pub fn executed(reply: &[u8]) -> Option<bool> {
    let reply = body(reply);
    if reply.first() == Some(&b'-') || is_nil(reply) {
        return Some(false);
    }
    elements(reply).all(|element| element.first() != Some(&b'-')).then_some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which db a client is in after a transaction with a SELECT hangs on this.
    #[test]
    fn a_transaction_that_was_not_executed_is_told_by_its_reply() {
        assert_eq!(executed(b"*2\r\n+OK\r\n+OK\r\n"), Some(true));
        assert_eq!(executed(b"*2\r\n+OK\r\n-ERR DB index is out of range\r\n"), None);
        assert_eq!(executed(b"*-1\r\n"), Some(false));
        assert_eq!(executed(b"-EXECABORT x\r\n"), Some(false));
    }
}
