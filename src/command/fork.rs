//! Commands that are one thing or another, depending on their arguments.

use super::keys::{Word, is_one_of};
use super::{Begin, Command, Effect, KeySpec, Keys, Miss, Read, Route};
use crate::resp::Arguments;

/// On what it depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fork {
    /// On nothing.
    None,
    /// On the command within (`OBJECT FREQ`).
    Container,
    /// It waits only with `BLOCK`, and reads otherwise (XREAD).
    Block,
    /// It fills only with `SET` or `INCRBY`, and reads otherwise (BITFIELD).
    BitField,
    /// It fills only with `STORE` or `STOREDIST`, and reads otherwise (SORT, GEORADIUS).
    Store,
    /// It replaces the value only at the root (JSON.SET).
    Path,
    /// It changes how long the key lives only with an option (GETEX).
    Expiry,
}

impl Fork {
    /// What it is with these arguments, if the table has it as `command`.
    pub fn resolve(self, command: Command, arguments: Arguments<'_>) -> Command {
        let has = |from: usize, words: &[&str]| arguments.from(from).any(|word| is_one_of(word, words));
        let reads = |miss| {
            Command::Read(Read {
                keys: Keys::at(1),
                miss,
                route: Route::Lane,
                changes: false,
                expires: false,
            })
        };
        match (self, command) {
            (Self::Block, _) if !has(1, &["BLOCK"]) => {
                // XREADGROUP keeps account of who has read what.
                let changes = arguments.get(0).is_some_and(|name| is_one_of(name, &["XREADGROUP"]));
                let (keys, miss, route) = (streams(), Miss::NilArray, Route::Lane);
                Command::Read(Read { keys, miss, route, changes, expires: false })
            }
            (Self::BitField, _) if !has(2, &["SET", "INCRBY"]) => reads(Miss::Unknown),
            (Self::Store, _) if !has(2, &["STORE", "STOREDIST"]) => reads(Miss::EmptyArray),
            (Self::Path, Command::Fill(mut form)) => {
                let root = arguments.get(2).is_none_or(|path| matches!(path, b"$" | b"."));
                form.effect = if root { Effect::Replaces } else { Effect::Adds };
                Command::Fill(form)
            }
            (Self::Expiry, Command::Read(mut read)) => {
                read.expires = arguments.len() > 2;
                Command::Read(read)
            }
            _ => command,
        }
    }
}

/// The first half of what follows the word STREAMS.
fn streams() -> Keys {
    let range = |word| KeySpec::Range { begin: Begin::Word(word, 1), last: -1, step: 1, limit: 2 };
    Keys::of(Word::new("STREAMS").map(range))
}
