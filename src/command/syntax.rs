//! Forms of arguments that mean more than where the keys are.

use super::keys::is_one_of;
use crate::resp::{Arguments, integer};

/// A form of arguments that means more than its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
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
    Fields,
    /// `HSETNX key field value`
    HSetNx,
    /// `COPY source destination [DB db] [REPLACE]`
    Copy,
    /// `MOVE key db`
    Move,
    /// Any other.
    Other,
}

impl Syntax {
    /// Whether Redis will surely refuse to do any of it, and has the words for why. What a later version might
    /// understand is not wrong.
    pub fn is_wrong(self, arguments: Arguments<'_>) -> bool {
        let is_ttl = |n: usize| arguments.get(n).and_then(integer).is_some_and(|ttl| ttl > 0);
        match self {
            Self::Set => has_wrong_ttl(arguments),
            Self::SetEx | Self::PSetEx => !is_ttl(2),
            // A key, or a field, without a value.
            Self::MSet | Self::MSetNx => arguments.len().is_multiple_of(2),
            Self::Fields => !arguments.len().is_multiple_of(2),
            Self::Copy | Self::Move => self.db(arguments, 0).is_none(),
            Self::SetNx | Self::GetSet | Self::HSetNx | Self::Other => false,
        }
    }

    /// The db that is filled, by a client in db `own`. None if what is said of it makes no sense.
    pub fn db(self, arguments: Arguments<'_>, own: u32) -> Option<u32> {
        let db = |n: usize| arguments.get(n).and_then(integer).and_then(|db| u32::try_from(db).ok());
        match self {
            Self::Move => db(2),
            Self::Copy => {
                let (mut target, mut n) = (own, 3);
                while let Some(option) = arguments.get(n) {
                    if is_one_of(option, &["DB"]) {
                        // Where it is said twice, the last one counts.
                        (target, n) = (db(n + 1)?, n + 2);
                    } else if is_one_of(option, &["REPLACE"]) {
                        n += 1;
                    } else {
                        return None;
                    }
                }
                Some(target)
            }
            _ => Some(own),
        }
    }
}

/// Whether a SET has a TTL that is none, behind options that are all known: behind others anything may be a value.
fn has_wrong_ttl(arguments: Arguments<'_>) -> bool {
    let mut options = arguments.from(3);
    while let Some(option) = options.next() {
        if is_one_of(option, &["EX", "PX", "EXAT", "PXAT"]) {
            if options.next().and_then(integer).is_none_or(|ttl| ttl <= 0) {
                return true;
            }
        } else if !is_one_of(option, &["NX", "XX", "GET", "KEEPTTL"]) {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::tests::with;

    #[test]
    fn only_what_no_redis_would_do_is_wrong() {
        for (syntax, command, wrong) in [
            (Syntax::Set, "SET k v", false),
            (Syntax::Set, "SET k v nx ex 10 GET", false),
            (Syntax::Set, "SET k v EX x", true),
            (Syntax::Set, "SET k v XX PX", true),
            (Syntax::Set, "SET k v EX 0", true),
            // A value that is compared with, in servers that can.
            (Syntax::Set, "SET k v IFEQ EX", false),
            (Syntax::SetEx, "SETEX k x v", true),
            (Syntax::PSetEx, "PSETEX k 1 v", false),
            (Syntax::MSet, "MSET k v k", true),
            (Syntax::Fields, "HSET k f v", false),
            (Syntax::Fields, "HSET k f v f", true),
            (Syntax::Copy, "COPY a b DB x", true),
            (Syntax::Copy, "COPY a b DB", true),
            (Syntax::Copy, "COPY a b NEW", true),
            (Syntax::Move, "MOVE a -1", true),
        ] {
            assert_eq!(with(command, |arguments| syntax.is_wrong(arguments)), wrong, "{command}");
        }
    }

    #[test]
    fn copies_go_to_the_db_that_they_name() {
        let db = |syntax: Syntax, command: &str| with(command, |arguments| syntax.db(arguments, 5));
        assert_eq!(db(Syntax::Copy, "COPY a b"), Some(5));
        assert_eq!(db(Syntax::Copy, "COPY a b replace db 3"), Some(3));
        assert_eq!(db(Syntax::Copy, "COPY a b DB 3 DB 4"), Some(4));
        assert_eq!(db(Syntax::Move, "MOVE a 7"), Some(7));
        assert_eq!(db(Syntax::Set, "SET a 7"), Some(5));
    }
}
