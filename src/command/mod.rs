//! What a command is to the proxy: which way it goes, and which keys it reads or fills.
//!
//! What the proxy has to understand itself is known by hand (`known`); all other commands are as the upstream's own
//! `COMMAND` table describes them (`server`), modules and commands of later versions included. A command
//! that neither knows gets a pin, for good: it may change the connection's state.
//!
//! Where a key is in a request is told by [`Keys`]; what a refused fill answers by [`Refused`].

mod fork;
mod keys;
mod known;
mod refused;
mod server;
mod syntax;

use std::collections::HashMap;

use redis_protocol::resp2::types::BytesFrame as Reply;

use fork::Fork;
pub use keys::{Begin, KeySpec, Keys};
pub use refused::{Refused, refusal};
pub use syntax::Syntax;

use crate::resp::Arguments;

/// A command, by what the proxy does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Goes on a lane, untouched.
    Plain,
    /// Goes on a pin that it leaves as it was: others would wait for it, or it is about the connection.
    Pinned,
    /// Reads keys, and can miss.
    Read(Read),
    /// Puts data into keys.
    Fill(FillForm),
    /// Changes how long a key lives, and puts nothing into it (`EXPIRE`, `PERSIST`).
    Expire,
    /// `ASOF evidence command ...`.
    Asof,
    /// `AFTER lsn [TIMEOUT ms] command ...`.
    After,
    /// `FENCE EXPLAIN | SOURCES | STATUS | HELP`.
    Fence,
    /// `MULTI`.
    Multi,
    /// `EXEC`.
    Exec,
    /// `DISCARD`.
    Discard,
    /// `WATCH`.
    Watch,
    /// `UNWATCH`.
    Unwatch,
    /// `SELECT`.
    Select,
    /// `AUTH`.
    Auth,
    /// `HELLO`.
    Hello,
    /// `CLIENT ...`.
    Client,
    /// `RESET`.
    Reset,
    /// `QUIT`.
    Quit,
    /// Waits for something, on a pin of its own.
    Blocking,
    /// `WAIT`, `WAITAOF`: waits for the connection's own writes.
    Wait,
    /// Begins or ends subscriptions (SUBSCRIBE, PUNSUBSCRIBE ...).
    Subscribe,
    /// `MONITOR`: from here on Redis says what it wants.
    Monitor,
    /// Changes the state of its connection, or nobody knows what it does: a pin, for good.
    Unknown,
    /// Not through this proxy (replication, SWAPDB).
    Forbidden,
}

/// The way of a command that has no guarded keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// With those of others.
    Lane,
    /// On a pin, for as long as it takes: it may be long (a script).
    Pin,
    /// It waits for something, on a pin.
    Blocking,
}

impl From<Route> for Command {
    fn from(route: Route) -> Self {
        match route {
            Route::Lane => Self::Plain,
            Route::Pin => Self::Pinned,
            Route::Blocking => Self::Blocking,
        }
    }
}

/// A read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// What it reads.
    pub keys: Keys,
    /// The shape of its miss.
    pub miss: Miss,
    /// Its way.
    pub route: Route,
    /// It does something to the key as well (GETDEL), and so is sent even if its reply is not wanted.
    pub changes: bool,
    /// It changes how long the key lives (GETEX with an option).
    pub expires: bool,
}

/// A miss, by the shape of the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// A nil (GET, HGET).
    Nil,
    /// A nil, or with a count an empty array (SRANDMEMBER).
    NilOrEmpty,
    /// A nil, or with a count no array (LPOP).
    NilOrNilArray,
    /// No array (LMPOP, XREAD).
    NilArray,
    /// An empty array (LRANGE).
    EmptyArray,
    /// An empty set (SMEMBERS).
    EmptySet,
    /// An empty map (HGETALL).
    EmptyMap,
    /// An empty string (GETRANGE).
    EmptyString,
    /// Zero (EXISTS, STRLEN).
    Zero,
    /// -2: no key that could have a time to live (TTL).
    NoTtl,
    /// ... for each field (HTTL).
    NoTtlPerField,
    /// `none` (TYPE).
    NoType,
    /// The end of a scan that found nothing (HSCAN).
    EmptyScan,
    /// -1, or for a bit that is not set 0 (BITPOS).
    NoBit,
    /// A nil for each key (MGET): each is missed or not by itself.
    NilPerKey,
    /// A nil for any field (HMGET).
    NilPerField,
    /// A nil for each member (ZMSCORE).
    NilPerMember,
    /// No array for each member (GEOPOS).
    NilArrayPerMember,
    /// Zero for each member (SMISMEMBER).
    ZeroPerMember,
    /// Nobody knows: any of them.
    Unknown,
}

/// A fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillForm {
    /// What it fills.
    pub keys: Keys,
    /// What it does to the value.
    pub effect: Effect,
    /// What it answers when it is refused.
    pub refused: Refused,
    /// What has to be understood of its arguments.
    pub syntax: Syntax,
    /// Its way.
    pub route: Route,
}

/// What a fill does to the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Another value takes its place.
    Replaces,
    /// It gets more, or becomes another in part.
    Adds,
    /// Another value takes its place, made of what Redis holds elsewhere, or held once (RENAME, RESTORE):
    /// no miss says how old that is.
    Derives,
    /// It gets more of what Redis holds elsewhere (LMOVE).
    AddsDerived,
}

impl FillForm {
    /// What a command may be that nobody knows.
    pub const UNKNOWN: Self = Self {
        keys: Keys::ANYWHERE,
        effect: Effect::AddsDerived,
        refused: Refused::Error,
        syntax: Syntax::Other,
        route: Route::Pin,
    };

    /// Whether it adds to the value instead of replacing it.
    pub fn is_part(self) -> bool {
        matches!(self.effect, Effect::Adds | Effect::AddsDerived)
    }

    /// Whether its data is Redis's own, for which no miss vouches.
    pub fn is_derived(self) -> bool {
        matches!(self.effect, Effect::Derives | Effect::AddsDerived)
    }
}

/// A known command, with a number of arguments that it does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("wrong number of arguments for '{0}' command")]
pub struct WrongNumber(pub String);

/// All commands of the upstream.
#[derive(Debug, Default)]
pub struct CommandTable {
    entries: HashMap<Box<[u8]>, Entry, foldhash::fast::RandomState>,
}

/// A command of the table. One of a container is named `CONTAINER|COMMAND`.
#[derive(Clone, Copy, Debug)]
struct Entry {
    command: Command,
    /// How many arguments it takes, its name included; if negative, at least; 0 if that is not known.
    arity: i16,
    /// What it is depends on its arguments.
    fork: Fork,
}

/// The longest name that is looked up, with that of a container; Redis's own longest has 28 letters.
const MAX_NAME: usize = 48;

impl CommandTable {
    /// The commands that the proxy knows itself; all others are unknown until the upstream has told.
    pub fn known() -> Self {
        let mut table = Self::default();
        for (name, command, fork) in known::commands() {
            table.entries.insert(name.as_bytes().into(), Entry { command, arity: 0, fork });
        }
        table
    }

    /// The table of a server, from its reply to `COMMAND`.
    pub fn of_server(reply: &Reply) -> Self {
        let mut table = Self::known();
        for described in server::commands(reply) {
            let arity = described.arity;
            match table.entries.get_mut(described.name.as_bytes()) {
                Some(known) => known.arity = arity,
                None => {
                    let (command, fork) = described.command();
                    table.entries.insert(described.name.as_bytes().into(), Entry { command, arity, fork });
                }
            }
        }
        table
    }

    /// What a request is. One with a wrong number of arguments is plain: Redis has the words for it.
    pub fn of(&self, arguments: Arguments<'_>) -> Command {
        self.take(arguments).unwrap_or(Command::Plain)
    }

    /// What a request is.
    ///
    /// # Errors
    /// When a read or a fill has a number of arguments that Redis will not take.
    pub fn take(&self, arguments: Arguments<'_>) -> Result<Command, WrongNumber> {
        let Some(mut entry) = arguments.get(0).and_then(|name| self.entry(&[name])) else {
            return Ok(Command::Unknown);
        };
        if entry.fork == Fork::Container
            && let (Some(container), Some(name)) = (arguments.get(0), arguments.get(1))
        {
            entry = self.entry(&[container, b"|", name]).unwrap_or(entry);
        }
        match entry.command {
            Command::Read(_) | Command::Fill(_) | Command::Expire | Command::Pinned | Command::Blocking
                if !entry.takes(arguments.len()) =>
            {
                let name = arguments.get(0).unwrap_or_default();
                Err(WrongNumber(String::from_utf8_lossy(name).to_ascii_lowercase()))
            }
            command if entry.fork == Fork::None => Ok(command),
            command => Ok(entry.fork.resolve(command, arguments)),
        }
    }

    /// Whether a request can go out while an argument comes in, of which only those before it are there: it shares
    /// nothing, and all its keys are among them.
    pub fn can_go_out(&self, before: Arguments<'_>) -> bool {
        let Some(entry) = before.get(0).and_then(|name| self.entry(&[name])) else { return false };
        entry.fork == Fork::None
            && match entry.command {
                Command::Plain => true,
                Command::Fill(form) => form.route == Route::Lane && form.keys.end_before(before.len()),
                _ => false,
            }
    }

    /// Whether the server, or the proxy, has this command in this container.
    pub fn knows(&self, container: &[u8], name: &[u8]) -> bool {
        self.entry(&[container, b"|", name]).is_some()
    }

    /// An entry by the parts of its name, in any case.
    fn entry(&self, parts: &[&[u8]]) -> Option<&Entry> {
        let mut name = [0; MAX_NAME];
        let mut length = 0;
        for part in parts {
            let place = name.get_mut(length..length + part.len())?;
            for (to, from) in place.iter_mut().zip(*part) {
                *to = from.to_ascii_uppercase();
            }
            length += part.len();
        }
        self.entries.get(&name[..length])
    }
}

impl Entry {
    fn takes(&self, arguments: usize) -> bool {
        let wanted = usize::from(self.arity.unsigned_abs());
        match self.arity {
            0 => true,
            1.. => arguments == wanted,
            _ => arguments >= wanted,
        }
    }
}

#[cfg(test)]
mod tests;
