//! Collects what a fill offers as proof besides a miss: what its client says, and the version in its payload.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::proof::{Proof, Stated};
use super::session::Session;
use super::transaction::NamedKey;
use crate::command::{FillForm, Syntax};
use crate::fence::{VersionClaim, Vouches};
use crate::guard::{Guards, KeyVersion, MAX_DOCUMENT, Told, VersionPlace};
use crate::resp::Arguments;

impl Session {
    /// Collects what a fill has to offer for its guarded keys.
    ///
    /// # Errors
    /// When what the client says cannot be the version of a key.
    pub(super) fn proof(
        &self,
        guards: &Guards,
        form: FillForm,
        arguments: Arguments<'_>,
        keys: &[NamedKey<'_>],
        stated: Option<&Stated>,
    ) -> Result<Proof, String> {
        let position = match stated {
            Some(Stated::Position(evidence)) if !self.gate.sees_another_history() => Some(evidence.clone()),
            _ => None,
        };
        if !keys.iter().any(|(_, guarded)| guards.have_version(&guarded.guards)) {
            return Ok(Proof { position, versions: Vec::new() });
        }
        let rules: SmallVec<[_; 1]> =
            keys.iter().map(|(key, guarded)| guards.version_of(key, guarded)).collect();
        let foreign = self.gate.sees_another_history();
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
        let claim = |(rule, (key, _)): (&Option<KeyVersion<'_>>, &NamedKey<'_>)| match rule {
            Some(rule) => Ok(told(rule, key)?.map(|told| {
                let claim = rule.claim(told, self.gate.newer_counts);
                if foreign { VersionClaim { vouches: Vouches::Nothing, ..claim } } else { claim }
            })),
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
