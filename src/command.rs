//! What a command is to the proxy: which way it goes, and whether it reads or fills a key.
//!
//! Whether a command can travel on a lane comes from the upstream's own `COMMAND` table; what the proxy has
//! to understand itself is listed here. A command that neither knows gets a pin, for good: it may change the
//! connection's state.

use std::collections::HashMap;

use redis_protocol::resp2::types::{BytesFrame as Reply, Resp2Frame};

/// A command, by what the proxy does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Goes on a lane, untouched.
    Plain,
    /// Reads a key, and can miss.
    Read(Read),
    /// Puts data into a key.
    Fill(FillForm),
    /// `ASOF evidence command ...`.
    Asof,
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
    /// `WAIT`, `WAITAOF`: waits for the connection's own writes.
    Wait,
    /// Waits for something, on a pin of its own.
    Blocking,
    /// Begins or ends subscriptions (SUBSCRIBE, PUNSUBSCRIBE ...).
    Subscribe,
    /// `MONITOR`: from here on Redis says what it wants.
    Monitor,
    /// Changes the state of its connection, or nobody knows what it does: a pin, for good.
    Unknown,
    /// Not through this proxy (replication, SWAPDB).
    Forbidden,
}

/// A read, by the shape of its miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// One key; a nil (GET, HGET).
    Nil,
    /// One key; an empty array (HGETALL).
    EmptyArray,
    /// Every argument is a key; a nil for each (MGET).
    NilPerKey,
    /// One key; a nil for any field (HMGET).
    NilPerField,
    /// Every argument is a key; zero (EXISTS).
    Zero,
}

/// A fill, by the form of its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillForm {
    /// `SET key value [NX | XX] [GET] [EX s | PX ms | EXAT s | PXAT ms | KEEPTTL]`
    Set,
    /// `SETEX key seconds value`
    SetEx,
    /// `PSETEX key milliseconds value`
    PSetEx,
    /// `SETNX key value`
    SetNx,
    /// `GETSET key value`
    GetSet,
    /// `MSET key value ...`: the pairs stand alone.
    MSet,
    /// `MSETNX key value ...`: all or nothing.
    MSetNx,
    /// `HSET key field value ...`
    HSet,
    /// `HMSET key field value ...`
    HMSet,
}

impl FillForm {
    /// Whether it adds to the value instead of replacing it.
    pub fn is_part(self) -> bool {
        matches!(self, Self::HSet | Self::HMSet)
    }

    /// Whether all keys stand before this argument.
    pub fn keys_end_before(self, place: usize) -> bool {
        !self.has_pairs() && place > 1
    }

    /// Whether every second argument is a key.
    pub fn has_pairs(self) -> bool {
        matches!(self, Self::MSet | Self::MSetNx)
    }
}

/// The commands that the proxy knows by name.
const KNOWN: &[(&str, Command)] = &[
    ("GET", Command::Read(Read::Nil)),
    ("HGET", Command::Read(Read::Nil)),
    ("MGET", Command::Read(Read::NilPerKey)),
    ("HMGET", Command::Read(Read::NilPerField)),
    ("HGETALL", Command::Read(Read::EmptyArray)),
    ("EXISTS", Command::Read(Read::Zero)),
    ("SET", Command::Fill(FillForm::Set)),
    ("SETEX", Command::Fill(FillForm::SetEx)),
    ("PSETEX", Command::Fill(FillForm::PSetEx)),
    ("SETNX", Command::Fill(FillForm::SetNx)),
    ("GETSET", Command::Fill(FillForm::GetSet)),
    ("MSET", Command::Fill(FillForm::MSet)),
    ("MSETNX", Command::Fill(FillForm::MSetNx)),
    ("HSET", Command::Fill(FillForm::HSet)),
    ("HMSET", Command::Fill(FillForm::HMSet)),
    ("ASOF", Command::Asof),
    ("MULTI", Command::Multi),
    ("EXEC", Command::Exec),
    ("DISCARD", Command::Discard),
    ("WATCH", Command::Watch),
    ("UNWATCH", Command::Unwatch),
    ("SELECT", Command::Select),
    ("AUTH", Command::Auth),
    ("HELLO", Command::Hello),
    ("CLIENT", Command::Client),
    ("RESET", Command::Reset),
    ("QUIT", Command::Quit),
    // Not flagged as blocking by every server, and about the connection's own writes.
    ("WAIT", Command::Wait),
    ("WAITAOF", Command::Wait),
    // About the connection, by their category, but they leave no trace on it.
    ("PING", Command::Plain),
    ("ECHO", Command::Plain),
    ("COMMAND", Command::Plain),
    ("SUBSCRIBE", Command::Subscribe),
    ("PSUBSCRIBE", Command::Subscribe),
    ("SSUBSCRIBE", Command::Subscribe),
    ("UNSUBSCRIBE", Command::Subscribe),
    ("PUNSUBSCRIBE", Command::Subscribe),
    ("SUNSUBSCRIBE", Command::Subscribe),
    ("MONITOR", Command::Monitor),
    ("SYNC", Command::Forbidden),
    ("PSYNC", Command::Forbidden),
    ("REPLCONF", Command::Forbidden),
    // Would move guarded keys to another db under the fence's feet.
    ("SWAPDB", Command::Forbidden),
    // State of the connection.
    ("READONLY", Command::Unknown),
    ("READWRITE", Command::Unknown),
    ("ASKING", Command::Unknown),
    ("SCRIPT", Command::Unknown),
    ("DEBUG", Command::Unknown),
];

/// All commands of the upstream.
#[derive(Debug, Default)]
pub struct CommandTable {
    commands: HashMap<Box<[u8]>, Command, foldhash::fast::RandomState>,
}

/// The longest name that is looked up; Redis's own longest has 20 letters.
const MAX_NAME: usize = 32;

impl CommandTable {
    /// The commands that the proxy knows itself; all others are unknown until the upstream has told.
    pub fn known() -> Self {
        let commands = KNOWN.iter().map(|(name, command)| (name.as_bytes().into(), *command)).collect();
        Self { commands }
    }

    /// The table of a server, from its reply to `COMMAND`.
    pub fn of_server(reply: &Reply) -> Self {
        let mut table = Self::known();
        let Reply::Array(entries) = reply else { return table };
        for entry in entries {
            // name, arity, flags, first key, last key, step, categories, ...
            let Reply::Array(parts) = entry else { continue };
            let [Reply::BulkString(name), _, Reply::Array(flags), ..] = parts.as_slice() else { continue };
            let has = |flag: &str| flags.iter().any(|f| f.as_str() == Some(flag));
            let is_in = |category: &str| match parts.get(6) {
                Some(Reply::Array(categories)) => categories.iter().any(|c| c.as_str() == Some(category)),
                _ => false,
            };
            let command = if has("blocking") {
                Command::Blocking
            } else if is_in("@connection") || is_in("@transaction") {
                // What the proxy does not know of these, by a name that the server was told to give it
                // (rename-command), would change the state of everybody's connection.
                Command::Unknown
            } else if has("pubsub") && !has("fast") {
                // PUBLISH is fast and plain; what is left subscribes, or tells of subscriptions.
                Command::Unknown
            } else if has("admin") {
                // Slow or about connections (CONFIG is neither, but rare): not on a shared one.
                Command::Unknown
            } else {
                Command::Plain
            };
            table.commands.entry(name.to_ascii_uppercase().into()).or_insert(command);
        }
        table
    }

    /// What a command is, by its name in any case.
    pub fn get(&self, name: &[u8]) -> Command {
        let mut upper = [0; MAX_NAME];
        let Some(upper) = upper.get_mut(..name.len()) else { return Command::Unknown };
        for (to, from) in upper.iter_mut().zip(name) {
            *to = from.to_ascii_uppercase();
        }
        self.commands.get(&*upper).copied().unwrap_or(Command::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, flags: &[&str]) -> Reply {
        let flags = flags.iter().map(|f| Reply::SimpleString((*f).to_owned().into())).collect();
        Reply::Array(vec![Reply::BulkString(name.to_owned().into()), Reply::Integer(1), Reply::Array(flags)])
    }

    #[test]
    fn the_server_decides_what_can_share_a_lane() {
        let table = CommandTable::of_server(&Reply::Array(vec![
            entry("incr", &["write", "fast"]),
            entry("blpop", &["write", "blocking"]),
            entry("config", &["admin"]),
            entry("publish", &["pubsub", "fast"]),
            entry("get", &["readonly", "fast"]),
        ]));
        assert_eq!(table.get(b"Incr"), Command::Plain);
        assert_eq!(table.get(b"PUBLISH"), Command::Plain);
        assert_eq!(table.get(b"BLPOP"), Command::Blocking);
        assert_eq!(table.get(b"config"), Command::Unknown);
        assert_eq!(table.get(b"get"), Command::Read(Read::Nil), "what the proxy understands stays its own");
        assert_eq!(table.get(b"my.module"), Command::Unknown);
    }

    /// A renamed SELECT or MULTI on a lane would change the db, or the meaning, of everybody's commands.
    #[test]
    fn a_renamed_command_of_the_connection_gets_a_pin() {
        let renamed = |name: &str, category: &str| {
            let Reply::Array(mut parts) = entry(name, &["fast"]) else { unreachable!() };
            parts.extend([Reply::Integer(0), Reply::Integer(0), Reply::Integer(0)]);
            parts.push(Reply::Array(vec![Reply::SimpleString(category.to_owned().into())]));
            Reply::Array(parts)
        };
        let table = CommandTable::of_server(&Reply::Array(vec![
            renamed("choose", "@connection"),
            renamed("begin", "@transaction"),
            renamed("ping", "@connection"),
            renamed("raise", "@write"),
        ]));
        assert_eq!(table.get(b"CHOOSE"), Command::Unknown);
        assert_eq!(table.get(b"BEGIN"), Command::Unknown);
        assert_eq!(table.get(b"PING"), Command::Plain);
        assert_eq!(table.get(b"RAISE"), Command::Plain);
    }

    #[test]
    fn names_that_cannot_be_known_are_not() {
        let table = CommandTable::known();
        assert_eq!(table.get(&[b'x'; 100]), Command::Unknown);
    }
}
