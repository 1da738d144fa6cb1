//! Commands that are one thing or another, depending on their arguments.

use super::keys::is_one_of;
use super::{Command, Effect, Keys, Miss, Read, Route};
use crate::resp::Arguments;

/// On what it depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fork {
    /// On nothing.
    None,
    /// On the command within (`OBJECT FREQ`).
    Container,
    /// It waits only with `BLOCK` (XREAD).
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
            (Self::Block, _) if !has(1, &["BLOCK"]) => Command::Plain,
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
