//! What a fill offers as proof besides a miss: what its client says (`ASOF`), and the version in its payload.

use std::collections::HashMap;
use std::str::FromStr;

use super::session::Session;
use crate::command::{FillForm, Syntax};
use crate::fence::{Evidence, VersionClaim};
use crate::guard::{GuardedKey, KeyVersion, MAX_DOCUMENT, Told, VersionKind, VersionPlace};
use crate::position::{Lsn, Snapshot};
use crate::resp::Arguments;

/// The longest evidence, in bytes: a snapshot with some thousand transactions in progress.
const MAX_EVIDENCE: usize = 64 * 1024;
/// The longest version, in bytes: more than the longest timestamp.
const MAX_VERSION: usize = 64;
const VERSION: &str = "version=";

/// What a client says of its fill.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stated {
    /// Where it was read.
    Position(Evidence),
    /// The version of the row that it was made from, as a text: how it is to be read depends on the guard.
    Version(String),
}

impl Stated {
    /// Reads it: an LSN has a slash, a snapshot has colons.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        if text.len() > MAX_EVIDENCE {
            return Err(format!("the evidence is longer than {MAX_EVIDENCE} bytes"));
        }
        let text = std::str::from_utf8(text).map_err(|_| "the evidence is not text".to_owned())?;
        if let Some(version) = text.strip_prefix(VERSION) {
            return Self::version(version);
        }
        // An error quotes what the client sent: escaped, so that it cannot end the reply's line.
        let evidence = if text.contains('/') {
            Lsn::from_str(text).map(Evidence::Lsn)
        } else {
            Snapshot::from_str(text).map(Evidence::Snapshot)
        };
        evidence.map(Self::Position).map_err(|error| error.to_string())
    }

    fn version(text: &str) -> Result<Self, String> {
        if text.len() > MAX_VERSION {
            return Err(format!("the version is longer than {MAX_VERSION} bytes"));
        }
        let kinds = [VersionKind::Integer, VersionKind::Timestamp];
        if kinds.iter().any(|kind| kind.read(text.as_bytes()).is_some()) {
            return Ok(Self::Version(text.to_owned()));
        }
        Err(format!("{text:?} is not a version such as 42 or 2026-11-23T07:31:05.123456Z"))
    }
}

/// All that is known of a fill's data besides misses.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// Where it was read.
    pub position: Option<Evidence>,
    /// For each of its guarded keys, the version of the row that it was made from. Empty if it has none for any.
    pub versions: Vec<Option<VersionClaim>>,
}

impl Session {
    /// Collects what a fill has to offer for its guarded keys.
    ///
    /// # Errors
    /// When what the client says cannot be the version of a key.
    pub(super) fn proof(
        &self,
        form: FillForm,
        arguments: Arguments<'_>,
        keys: &[(Box<[u8]>, GuardedKey)],
        stated: Option<&Stated>,
    ) -> Result<Proof, String> {
        let guards = self.gate.guards.load();
        let rules: Vec<_> = keys.iter().map(|(key, guarded)| guards.version_of(key, guarded)).collect();
        let position = match stated {
            Some(Stated::Position(evidence)) => Some(evidence.clone()),
            _ => None,
        };
        if rules.iter().all(Option::is_none) {
            return Ok(Proof { position, versions: Vec::new() });
        }
        let payload = Payload::new(form, arguments, keys.len());
        let told = |rule: &KeyVersion<'_>, key: &[u8]| match stated {
            // Its client knows better than its payload.
            Some(Stated::Version(text)) => rule.kind.read(text.as_bytes()).map(Some).ok_or_else(|| {
                let name = rule.kind.name();
                format!(
                    "{text:?} is not a version of a guarded row: column {:?} holds {name}",
                    rule.rule.column
                )
            }),
            _ => Ok(payload.told(rule, key)),
        };
        let claim = |(rule, (key, _)): (&Option<KeyVersion<'_>>, &(Box<[u8]>, GuardedKey))| match rule {
            Some(rule) => Ok(told(rule, key)?.map(|told| rule.claim(told, self.gate.newer_counts))),
            None => Ok(None),
        };
        let versions = rules.iter().zip(keys).map(claim).collect::<Result<_, String>>()?;
        Ok(Proof { position, versions })
    }

    /// Whether a fill whose value is large has to be there as a whole, because a version is to be read in it. All its
    /// keys are among the arguments before the value, which has so many bytes.
    pub(super) fn reads_value(&self, before: Arguments<'_>, length: usize) -> bool {
        if length > MAX_DOCUMENT {
            return false;
        }
        let guards = self.gate.guards.load();
        let is_read = |key: &[u8]| {
            self.dbs().iter().any(|db| {
                let rules =
                    guards.matching(*db, key).into_iter().filter_map(|id| guards.get(id)?.version.as_ref());
                rules.into_iter().any(|rule| matches!(rule.place, VersionPlace::Json(_)))
            })
        };
        before.get(1).is_some_and(is_read)
    }
}

/// Where in a command the values are that are put into its keys.
enum Payload<'a> {
    /// One value, whole or a part of which has gone out already.
    Value(Option<&'a [u8]>),
    /// One for each key: the last one that is given for it.
    Pairs(HashMap<&'a [u8], &'a [u8]>),
    /// Fields and their values, from this argument on.
    Fields(Arguments<'a>, usize),
    /// In no form that is read.
    None,
}

impl<'a> Payload<'a> {
    fn new(form: FillForm, arguments: Arguments<'a>, keys: usize) -> Self {
        match form.syntax {
            Syntax::Set | Syntax::SetNx | Syntax::GetSet => Self::Value(arguments.whole(2)),
            Syntax::SetEx | Syntax::PSetEx => Self::Value(arguments.whole(3)),
            Syntax::MSet | Syntax::MSetNx if keys > 0 => {
                let pairs = (1..arguments.len()).step_by(2);
                Self::Pairs(
                    pairs.filter_map(|n| Some((arguments.get(n)?, arguments.whole(n + 1)?))).collect(),
                )
            }
            Syntax::Fields | Syntax::HSetNx => Self::Fields(arguments, 2),
            _ => Self::None,
        }
    }

    fn told(&self, rule: &KeyVersion<'_>, key: &[u8]) -> Option<Told> {
        match self {
            Self::Value(value) => rule.of_value((*value)?),
            Self::Pairs(pairs) => rule.of_value(pairs.get(key)?),
            Self::Fields(arguments, first) => {
                let VersionPlace::Field(wanted) = &rule.rule.place else { return None };
                let mut fields = (*first..arguments.len()).step_by(2);
                // Of a field that is given twice the last value counts.
                let last = fields.rfind(|n| arguments.whole(*n) == Some(wanted))?;
                rule.kind.read(arguments.whole(last + 1)?)
            }
            Self::None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Stated, String> {
        Stated::read(text.as_bytes())
    }

    #[test]
    fn evidence_is_told_by_its_form() {
        assert_eq!(read("0/16B3748"), Ok(Stated::Position(Evidence::Lsn(Lsn(0x16B_3748)))));
        assert!(matches!(read("750:755:751"), Ok(Stated::Position(Evidence::Snapshot(_)))));
        for version in ["42", "-1", "2026-11-23 07:31:05", "2026-11-23T07:31:05.1+02:00"] {
            assert_eq!(read(&format!("version={version}")), Ok(Stated::Version(version.into())));
        }
    }

    #[test]
    fn what_is_no_evidence_says_so_in_one_line() {
        let long = format!("version={}", "1".repeat(MAX_VERSION + 1));
        for text in
            ["version=", "version=x", "version=1\r\n+OK", "version=infinity", "VERSION=1", long.as_str()]
        {
            let error = read(text).expect_err(text);
            assert!(!error.contains(['\r', '\n']), "{error}");
        }
    }
}
