//! `synchronous_standby_names`: for whom do commits wait?
//!
//! The grammar is that of Postgres's `syncrep_gram.y`: `FIRST n (list)`, `ANY n (list)`, `n (list)` as FIRST, and a list
//! alone as FIRST 1. Names are compared without case, quoted or not, and `*` is any.

use std::fmt;

use crate::pg::replication::literal;

/// How Postgres chooses among those that are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// The first ones of the list that are there.
    First,
    /// As many of them as answer first.
    Any,
}

/// A value of `synchronous_standby_names`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbyNames {
    method: Method,
    number: usize,
    names: Vec<String>,
}

/// Why commits do not always wait for a standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRequired {
    /// It is not named.
    Absent,
    /// It is named, and others can answer in its place.
    Replaceable,
}

impl fmt::Display for NotRequired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotRequired::Absent => "does not name it",
            NotRequired::Replaceable => "lets others answer in its place",
        })
    }
}

impl StandbyNames {
    /// Reads a value; none if it is not one that Postgres takes. The empty one names nobody.
    pub fn parse(text: &str) -> Option<Self> {
        let words = words(text)?;
        let (method, number, rest) = match words.as_slice() {
            [] => (Method::First, 0, &words[..]),
            [Word::Name(word, false), Word::Name(number, false), Word::Open, ..]
                if word.eq_ignore_ascii_case("any") || word.eq_ignore_ascii_case("first") =>
            {
                let any = word.eq_ignore_ascii_case("any");
                let method = if any { Method::Any } else { Method::First };
                (method, number.parse().ok()?, inside(&words[2..])?)
            }
            [Word::Name(number, false), Word::Open, ..] => {
                (Method::First, number.parse().ok()?, inside(&words[1..])?)
            }
            all => (Method::First, 1, all),
        };
        let mut names = Vec::new();
        for (n, word) in rest.iter().enumerate() {
            match (word, n % 2) {
                (Word::Name(name, _), 0) => names.push(name.clone()),
                (Word::Comma, 1) => {}
                _ => return None,
            }
        }
        let whole = rest.len() == (2 * names.len()).saturating_sub(1);
        whole.then_some(Self { method, number, names })
    }

    /// Whether every commit waits for the standby of this name, whoever else is there.
    ///
    /// # Errors
    /// Why not.
    pub fn requires(&self, name: &str) -> Result<(), NotRequired> {
        // Postgres takes the first entry that fits.
        let place = self.names.iter().position(|other| matches(other, name)).ok_or(NotRequired::Absent)?;
        // Whoever `*` means can stand in our place, and whoever it means before us can take it.
        let any = self.names.iter().take(place + 1).any(|other| other == "*");
        let held = match self.method {
            Method::First => place < self.number,
            Method::Any => self.number >= self.names.len() && !self.names.iter().any(|other| other == "*"),
        };
        if held && !any { Ok(()) } else { Err(NotRequired::Replaceable) }
    }

    /// Whether commits may wait for the standby of this name.
    pub fn names(&self, name: &str) -> bool {
        self.names.iter().any(|other| matches(other, name))
    }

    /// How many standbys of an `ANY` list have to answer.
    pub fn quorum(&self) -> Option<usize> {
        (self.method == Method::Any).then_some(self.number)
    }

    /// A value by which commits wait for this standby too, and for as many others as now.
    ///
    /// Those that commits wait for now keep their places, as other proxies may be among them: while walsenders read the
    /// new value one by one, one that still goes by the old number must find the same ones first.
    pub fn with(&self, name: &str) -> String {
        let mut others = self.others(name);
        if others.is_empty() {
            return quoted(name);
        }
        let number = self.number.clamp(1, others.len());
        // Whoever `*` means before us can take our place.
        let place = |wanted: &dyn Fn(&String) -> bool| self.names.iter().position(wanted).unwrap_or(number);
        let (any, own) = (place(&|other| other == "*"), place(&|other| other.eq_ignore_ascii_case(name)));
        others.insert(number.min(any).min(own), quoted(name));
        format!("FIRST {} ({})", number + 1, others.join(", "))
    }

    /// What to run so that commits wait for this standby no longer, but for as many of the others as while it was there.
    pub fn remedy_without(&self, name: &str) -> String {
        let mut others = self.others(name);
        // It would still be any.
        others.retain(|other| other != "*");
        // Where it had to be one of them, the next one is not asked to take its place: that one may not be there at all, and
        // commits that wait for this one would wait on.
        let number = self.number.saturating_sub(usize::from(self.requires(name).is_ok()));
        let number = number.min(others.len());
        let method = if self.method == Method::Any { "ANY" } else { "FIRST" };
        set(&if number == 0 { String::new() } else { format!("{method} {number} ({})", others.join(", ")) })
    }

    /// The others that are named, as the setting reads them back.
    fn others(&self, name: &str) -> Vec<String> {
        let others = self.names.iter().filter(|other| !other.eq_ignore_ascii_case(name));
        others.map(|other| quoted(other)).collect()
    }
}

/// What to run so that the setting is this.
fn set(value: &str) -> String {
    format!("ALTER SYSTEM SET synchronous_standby_names = {}; SELECT pg_reload_conf();", literal(value))
}

/// What to run so that commits wait for this standby, with what the setting says now.
pub fn remedy(setting: &str, name: &str) -> String {
    let value = StandbyNames::parse(setting).map_or_else(|| quoted(name), |names| names.with(name));
    set(&value)
}

fn matches(entry: &str, name: &str) -> bool {
    entry == "*" || entry.eq_ignore_ascii_case(name)
}

/// A name as the setting reads it back.
fn quoted(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    let keyword = name == "any" || name == "first";
    if name == "*" || (begins && !keyword && name.bytes().all(plain)) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    /// A name or number, and whether it was quoted.
    Name(String, bool),
    Open,
    Close,
    Comma,
}

/// What stands between the parentheses around all of it.
fn inside(words: &[Word]) -> Option<&[Word]> {
    let list = words.strip_prefix(&[Word::Open])?.strip_suffix(&[Word::Close])?;
    (!list.is_empty()).then_some(list)
}

fn words(text: &str) -> Option<Vec<Word>> {
    let mut words = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c' => {}
            '(' => words.push(Word::Open),
            ')' => words.push(Word::Close),
            ',' => words.push(Word::Comma),
            '*' => words.push(Word::Name("*".into(), false)),
            '"' => {
                let mut name = String::new();
                loop {
                    match rest.next()? {
                        '"' if rest.next_if_eq(&'"').is_none() => break,
                        c => name.push(c),
                    }
                }
                words.push(Word::Name(name, true));
            }
            c if is_name(c) => {
                let mut name = String::from(c);
                while let Some(c) = rest.next_if(|c| is_name(*c)) {
                    name.push(c);
                }
                words.push(Word::Name(name, false));
            }
            _ => return None,
        }
    }
    Some(words)
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requires(setting: &str) -> Result<(), NotRequired> {
        StandbyNames::parse(setting).expect(setting).requires("cachefence")
    }

    #[test]
    fn whom_every_commit_waits_for() {
        for setting in [
            "cachefence",
            "CacheFence, s1",
            "\"cachefence\"",
            "1 (cachefence, s1)",
            "FIRST 2 (s1, cachefence, s2)",
            "2 (cachefence_a, cachefence)",
            "ANY 2 (s1, \"CACHEFENCE\")",
            "first 1 (cachefence, *)",
            "FIRST 2(s1,cachefence)",
        ] {
            assert_eq!(requires(setting), Ok(()), "{setting}");
        }
        for setting in ["", "s1", "cachefence_a", "ANY 1 (s1, s2)", "\"first\", s1"] {
            assert_eq!(requires(setting), Err(NotRequired::Absent), "{setting}");
        }
        for setting in [
            "*",
            "FIRST 1 (s1, cachefence)",
            "s1, cachefence",
            "ANY 1 (s1, cachefence)",
            "ANY 2 (cachefence, *)",
            "FIRST 2 (*, cachefence)",
            "2 (s1, *)",
        ] {
            assert_eq!(requires(setting), Err(NotRequired::Replaceable), "{setting}");
        }
    }

    #[test]
    fn whom_commits_may_wait_for() {
        let named = |setting: &str| StandbyNames::parse(setting).expect(setting).names("cachefence");
        for setting in
            ["cachefence", "FIRST 1 (a, CacheFence)", "ANY 2 (a,\"cachefence\",b)", "*", "FIRST 1 (*)"]
        {
            assert!(named(setting), "{setting}");
        }
        for setting in ["", "a", "cachefence_a", "FIRST 1 (a, b)"] {
            assert!(!named(setting), "{setting}");
        }
    }

    #[test]
    fn what_postgres_refuses_is_no_value() {
        for setting in ["a b", "a,", "(a)", "FIRST (a)", "ANY x (a)", "2 (a", "\"a", "a;b", "2 ()", ", a"] {
            assert_eq!(StandbyNames::parse(setting), None, "{setting}");
        }
        let odd = StandbyNames::parse("\"a\"\"b\", 7").expect("a value");
        assert_eq!(odd.names, ["a\"b", "7"]);
    }

    #[test]
    fn the_remedy_keeps_the_others() {
        let remedied = |setting: &str| StandbyNames::parse(setting).expect(setting).with("cachefence");
        assert_eq!(remedied(""), "cachefence");
        assert_eq!(remedied("s1"), "FIRST 2 (s1, cachefence)");
        assert_eq!(remedied("2 (p1, s1, s2)"), "FIRST 3 (p1, s1, cachefence, s2)");
        assert_eq!(remedied("2 (p1, *)"), "FIRST 3 (p1, cachefence, *)");
        assert_eq!(remedied("ANY 1 (s1, \"S 2\")"), "FIRST 2 (s1, cachefence, \"S 2\")");
        assert_eq!(remedied("ANY 1 (s1, cachefence)"), "FIRST 2 (s1, cachefence)");
        assert_eq!(remedied("*"), "FIRST 2 (cachefence, *)");
        assert_eq!(StandbyNames::parse("").expect("a value").with("Proxy 1"), "\"Proxy 1\"");
        for setting in ["", "s1", "ANY 1 (s1, s2)", "FIRST 1 (s1, cachefence)", "*", "2 (s1, *)"] {
            let remedied = remedied(setting);
            assert_eq!(requires(&remedied), Ok(()), "{setting} to {remedied}");
        }
        let without = |setting: &str| {
            let run = StandbyNames::parse(setting).expect(setting).remedy_without("cachefence");
            run.split_once('\'')
                .and_then(|(_, rest)| rest.split_once('\''))
                .map(|(value, _)| value.to_owned())
        };
        assert_eq!(without("cachefence").as_deref(), Some(""));
        assert_eq!(without("FIRST 2 (cachefence, s1)").as_deref(), Some("FIRST 1 (s1)"));
        assert_eq!(without("FIRST 1 (cachefence, s1)").as_deref(), Some(""), "s1 only stands in for it");
        assert_eq!(without("FIRST 2 (s1, cachefence, s2)").as_deref(), Some("FIRST 1 (s1, s2)"));
        assert_eq!(
            without("FIRST 1 (s1, cachefence)").as_deref(),
            Some("FIRST 1 (s1)"),
            "it stands in for s1"
        );
        assert_eq!(without("ANY 2 (cachefence, s1, s2)").as_deref(), Some("ANY 2 (s1, s2)"));
        assert_eq!(without("ANY 3 (cachefence, s1, s2)").as_deref(), Some("ANY 2 (s1, s2)"));
        assert_eq!(without("*").as_deref(), Some(""));
        assert_eq!(
            remedy("", "it's"),
            "ALTER SYSTEM SET synchronous_standby_names = '\"it''s\"'; SELECT pg_reload_conf();"
        );
    }
}
