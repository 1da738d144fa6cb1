//! Where in a request its keys are.
//!
//! The rules are those of Redis's key specifications: where to begin (at a place, or after a word), and how
//! to go on (a range, or as many as a number says). They are small and copied about, so that a command
//! without guarded keys costs no allocation.

use crate::resp::{Arguments, integer};

/// Where the keys of one role (those that are filled, those that are read) are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys([KeySpec; MAX_SPECS]);

/// Rules for one role of a command, at most. Redis's own commands need one.
const MAX_SPECS: usize = 2;

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySpec {
    /// No key.
    Nowhere,
    /// Every `step`-th argument, up to the `last`, which counts from the first, or, if negative, from the end
    /// (-1 is the last argument). A limit of 2 stops half-way, one of 3 at a third.
    Range {
        /// Where the first key is.
        begin: Begin,
        /// The last key.
        last: i16,
        /// From one key to the next.
        step: u16,
        /// Which part of the arguments is looked at.
        limit: u16,
    },
    /// As many keys as an argument says.
    Count {
        /// Where to count from.
        begin: Begin,
        /// Where the number is.
        number: u16,
        /// Where the first key is.
        first: u16,
        /// From one key to the next.
        step: u16,
    },
    /// Whatever follows one of these words. It may be given twice, and then Redis takes the last.
    After(&'static [&'static str]),
    /// Nobody knows: every argument may be a key.
    Anywhere,
}

/// Where a rule begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// At this argument; 0 is the command's name.
    At(u16),
    /// After this word, looked for from this argument on (or backwards, from so many before the end).
    Word(Word, i16),
}

/// A short word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Word {
    letters: [u8; 14],
    length: u8,
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.text().escape_ascii())
    }
}

impl Word {
    /// None if it is not short.
    pub fn new(text: &str) -> Option<Self> {
        let mut letters = [0; 14];
        letters.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Self { letters, length: text.len() as u8 })
    }

    fn text(&self) -> &[u8] {
        &self.letters[..usize::from(self.length)]
    }
}

impl Keys {
    /// No keys.
    pub const NONE: Self = Self([KeySpec::Nowhere; MAX_SPECS]);
    /// Every argument may be a key.
    pub const ANYWHERE: Self = Self([KeySpec::Anywhere, KeySpec::Nowhere]);

    /// By one rule.
    pub const fn one(spec: KeySpec) -> Self {
        Self([spec, KeySpec::Nowhere])
    }

    /// One key at a place.
    pub const fn at(place: u16) -> Self {
        Self::range(place, 0, 1)
    }

    /// A range that begins at a place; see [`KeySpec::Range`].
    pub const fn range(first: u16, last: i16, step: u16) -> Self {
        Self::one(KeySpec::Range { begin: Begin::At(first), last, step, limit: 0 })
    }

    /// A number at a place, and so many keys behind it.
    pub const fn counted(number: u16, step: u16) -> Self {
        Self::one(KeySpec::Count { begin: Begin::At(number), number: 0, first: 1, step })
    }

    /// By several rules. More than fit are one: that every argument may be a key.
    pub fn of(specs: impl IntoIterator<Item = KeySpec>) -> Self {
        let mut keys = Self::NONE;
        for (n, spec) in specs.into_iter().enumerate() {
            match keys.0.get_mut(n) {
                Some(place) if spec != KeySpec::Anywhere => *place = spec,
                _ => return Self::ANYWHERE,
            }
        }
        keys
    }

    /// Whether there are none in any request.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// Whether all keys of any request stand before this argument.
    pub fn end_before(&self, argument: usize) -> bool {
        self.0.iter().all(|spec| match spec {
            KeySpec::Nowhere => true,
            KeySpec::Range { begin: Begin::At(first), last, .. } => {
                usize::try_from(*last).is_ok_and(|last| usize::from(*first) + last < argument)
            }
            _ => false,
        })
    }

    /// The places of the keys in a request. None where they cannot be found: Redis will not find them either.
    pub fn places<'a>(&self, arguments: Arguments<'a>) -> impl Iterator<Item = usize> + use<'a> {
        let [first, second] = self.0;
        first.places(arguments).chain(second.places(arguments))
    }
}

impl KeySpec {
    fn places<'a>(self, arguments: Arguments<'a>) -> impl Iterator<Item = usize> + use<'a> {
        let (first, last, step) = self.run(arguments).unwrap_or((1, 0, 1));
        let words = if let Self::After(words) = self { words } else { &[] };
        let follows = move |place: &usize| {
            words.is_empty() || arguments.get(*place - 1).is_some_and(|before| is_one_of(before, words))
        };
        // The name is no key, whatever a server says.
        (first.max(1)..=last).step_by(step.max(1)).filter(follows)
    }

    /// The first, the last, and the way from one to the next.
    fn run(self, arguments: Arguments<'_>) -> Option<(usize, usize, usize)> {
        let end = arguments.len().checked_sub(1)?;
        match self {
            Self::Nowhere => None,
            Self::Anywhere => Some((1, end, 1)),
            Self::After(_) => Some((2, end, 1)),
            Self::Range { begin, last, step, limit } => {
                let first = begin.find(arguments)?;
                let last = match (usize::try_from(last), limit) {
                    (Ok(last), _) => first + last,
                    (_, 0 | 1) => arguments.len().checked_sub(usize::from(last.unsigned_abs()))?,
                    (_, limit) => (first + (arguments.len().checked_sub(first)?) / usize::from(limit))
                        .checked_sub(usize::from(last.unsigned_abs()))?,
                };
                Some((first, last.min(end), usize::from(step)))
            }
            Self::Count { begin, number, first, step } => {
                let begin = begin.find(arguments)?;
                let count = integer(arguments.get(begin + usize::from(number))?)?;
                let (first, step) = (begin + usize::from(first), usize::from(step));
                let beyond = usize::try_from(count).ok()?.checked_sub(1)?;
                let last = first.checked_add(beyond.checked_mul(step)?)?;
                // More keys than arguments: an error.
                (last <= end).then_some((first, last, step))
            }
        }
    }
}

impl Begin {
    fn find(self, arguments: Arguments<'_>) -> Option<usize> {
        match self {
            Self::At(place) => Some(usize::from(place)),
            Self::Word(word, from) => {
                let is = |n: &usize| {
                    arguments.get(*n).is_some_and(|argument| argument.eq_ignore_ascii_case(word.text()))
                };
                let found = match usize::try_from(from) {
                    Ok(from) => (from..arguments.len()).find(is),
                    Err(_) => {
                        let last = arguments.len().checked_sub(usize::from(from.unsigned_abs()))?;
                        (1..=last).rev().find(is)
                    }
                };
                found.map(|place| place + 1)
            }
        }
    }
}

/// Whether it is one of these words, in any case.
pub fn is_one_of(argument: &[u8], words: &[&str]) -> bool {
    words.iter().any(|word| argument.eq_ignore_ascii_case(word.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{RequestScanner, Scanned, put_request};
    use proptest::prelude::*;

    fn found(keys: Keys, command: &str) -> Vec<usize> {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        let mut request = Vec::new();
        put_request(&mut request, &words);
        let mut scanner = RequestScanner::default();
        assert_eq!(scanner.scan(&request), Ok(Scanned::Request(request.len())));
        keys.places(scanner.arguments(&request)).collect()
    }

    #[test]
    fn keys_are_where_the_rules_say() {
        assert_eq!(found(Keys::at(1), "GET k"), [1]);
        assert_eq!(found(Keys::at(2), "OBJECT HELP"), [0; 0]);
        assert_eq!(found(Keys::range(1, -1, 1), "DEL a b c"), [1, 2, 3]);
        assert_eq!(found(Keys::range(1, -1, 2), "MSET a 1 b 2"), [1, 3]);
        assert_eq!(found(Keys::range(1, -2, 1), "BLPOP a b 0"), [1, 2]);
        assert_eq!(found(Keys::counted(2, 1), "EVAL x 2 a b c"), [3, 4]);
        assert_eq!(found(Keys::counted(1, 2), "MSETEX 2 a 1 b 2 EX 1"), [2, 4]);
        let store = Keys::one(KeySpec::After(&["STORE", "STOREDIST"]));
        assert_eq!(found(store, "SORT k STORE a store b"), [3, 5]);
        assert_eq!(found(store, "SORT k STORE"), [0; 0]);
        let word = |word, from| Begin::Word(Word::new(word).expect("short"), from);
        let streams = KeySpec::Range { begin: word("STREAMS", 1), last: -1, step: 1, limit: 2 };
        assert_eq!(found(Keys::one(streams), "XREAD COUNT 1 streams a b 0 0"), [4, 5]);
        let migrated = KeySpec::Range { begin: word("KEYS", -2), last: -1, step: 1, limit: 0 };
        assert_eq!(found(Keys::one(migrated), "MIGRATE h p x 0 1 KEYS a b"), [7, 8]);
        assert_eq!(found(Keys::ANYWHERE, "NEW a b"), [1, 2]);
    }

    /// What Redis will refuse to understand is not understood here either.
    #[test]
    fn keys_that_cannot_be_found_are_none() {
        for wrong in ["EVAL x 3 a b", "EVAL x -1 a", "EVAL x n a", "EVAL x 0 a", "EVAL x", "EVAL"] {
            assert_eq!(found(Keys::counted(2, 1), wrong), [0; 0], "{wrong}");
        }
        assert_eq!(found(Keys::counted(2, 1), "EVAL x 9223372036854775807 a"), [0; 0]);
    }

    #[test]
    fn too_many_rules_are_one_that_misses_nothing() {
        let spec = |place| KeySpec::Range { begin: Begin::At(place), last: 0, step: 1, limit: 0 };
        assert_eq!(found(Keys::of([spec(1), spec(3)]), "X a b c d"), [1, 3]);
        assert_eq!(Keys::of([spec(1), spec(2), spec(3)]), Keys::ANYWHERE);
        assert_eq!(Keys::of([spec(1), KeySpec::Anywhere]), Keys::ANYWHERE);
        assert!(Keys::of([]).is_none());
    }

    fn specs() -> impl Strategy<Value = KeySpec> {
        let begin = prop_oneof![
            any::<u16>().prop_map(Begin::At),
            (0u16..6).prop_map(Begin::At),
            any::<i16>().prop_map(|from| Begin::Word(Word::new("w").expect("short"), from)),
        ];
        let small = prop_oneof![any::<u16>(), 0u16..4];
        prop_oneof![
            (begin.clone(), any::<i16>(), small.clone(), small.clone())
                .prop_map(|(begin, last, step, limit)| KeySpec::Range { begin, last, step, limit }),
            (begin, small.clone(), small.clone(), small)
                .prop_map(|(begin, number, first, step)| KeySpec::Count { begin, number, first, step }),
        ]
    }

    proptest! {
        /// A server may say what it likes.
        #[test]
        fn places_are_always_arguments(spec in specs(), arguments in prop::collection::vec("[w0-9]{1,2}", 1..8)) {
            let count = arguments.len();
            for place in found(Keys::one(spec), &arguments.join(" ")) {
                prop_assert!(place > 0 && place < count);
            }
        }
    }
}
