//! Reads whose hits the auditor looks at: which those are, and where in their replies the version of a row is.

use std::sync::Arc;

use super::expect::Meaning;
use super::gate::Gate;
use super::session::Session;
use super::shape::{bulk, elements, pairs};
use crate::audit::{Conditions, Hit, Seen, SqlHit, compared, values_of, wall_clock_us};
use crate::config::OnStale;
use crate::guard::{GuardId, GuardList, GuardedKey, Guards, Pointer, Told, VersionPlace};
use crate::position::Lsn;
use crate::resp::{Arguments, body};

/// A longer key is not looked at, in bytes.
const LONGEST_KEY: usize = 1024;
/// Nor is a longer value: whoever reads it keeps the clients of a thread waiting.
const LONGEST_VALUE: usize = 32 * 1024;
/// Keys of one read that are looked at, at most.
const MOST_KEYS: usize = 16;

/// A read on its way, whose hits are audited.
#[derive(Debug)]
pub struct Audited {
    /// What its reply means besides.
    pub meaning: Meaning,
    form: Form,
    guards: Arc<Guards>,
    /// Up to here all keys were deleted before it was sent.
    applied: Lsn,
    asked: Vec<Asked>,
}

/// A key of it.
#[derive(Debug)]
struct Asked {
    /// Its place among the keys.
    place: usize,
    key: Box<[u8]>,
    /// The guard that is counted for.
    guard: GuardId,
    /// Without a version: what stands in the key in place of the placeholders.
    values: Option<Vec<String>>,
    guarded: GuardedKey,
    /// None: nothing that is read now can be judged.
    conditions: Option<Conditions>,
}

/// The commands whose replies are what was filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// GET
    Value,
    /// MGET
    Values,
    /// HGET, of the field that holds the version.
    Field,
    /// HMGET, where that is the field of this place.
    Fields(usize),
    /// HGETALL
    Pairs,
}

impl Session {
    /// What a read means, if its hits are to be audited: nearly always as it is.
    #[inline]
    pub(super) fn audited(
        &self,
        meaning: Meaning,
        guards: &Arc<Guards>,
        arguments: Arguments<'_>,
    ) -> Meaning {
        if self.gate.auditor.sample.takes() { self.sampled(meaning, guards, arguments) } else { meaning }
    }

    #[cold]
    fn sampled(&self, meaning: Meaning, guards: &Arc<Guards>, arguments: Arguments<'_>) -> Meaning {
        let around = self.gate.auditor.surroundings();
        // Before anything is sent.
        let applied = around.applied();
        let keys: Vec<(usize, &GuardedKey)> = match &meaning {
            Meaning::Read(_, key) => vec![(0, key)],
            Meaning::Coalesced(read) => vec![(0, &read.key)],
            Meaning::Reads(_, keys) => keys.iter().map(|(place, key)| (*place, key)).collect(),
            _ => Vec::new(),
        };
        let asked = |(place, guarded): (usize, &GuardedKey)| {
            // In all these commands the keys follow the name.
            let key = arguments.get(place + 1).filter(|key| key.len() <= LONGEST_KEY)?;
            let (guard, values) = match guards.versioned(&guarded.guards) {
                Some(guard) => (guard, None),
                None => {
                    let (guard, values) = values_of(guards, guarded.db, key, &guarded.guards)?;
                    (guard, Some(values))
                }
            };
            let conditions = around.conditions(&guarded.guards);
            Some(Asked { place, key: key.into(), guard, values, guarded: guarded.clone(), conditions })
        };
        let asked: Vec<Asked> = keys.into_iter().filter_map(asked).take(MOST_KEYS).collect();
        let form = asked.first().and_then(|first| form(arguments, guards, &first.guarded.guards));
        match form {
            Some(form) => {
                let guards = guards.clone();
                Meaning::Audited(Box::new(Audited { meaning, form, guards, applied, asked }))
            }
            None => meaning,
        }
    }
}

/// What the reply holds; none if it is no value that was filled, or none that tells the version.
fn form(arguments: Arguments<'_>, guards: &Guards, of: &GuardList) -> Option<Form> {
    let is = |name: &str| arguments.get(0).is_some_and(|given| given.eq_ignore_ascii_case(name.as_bytes()));
    let Some(VersionPlace::Field(field)) = guards.version_place(of) else {
        return match arguments.len() {
            2 if is("GET") => Some(Form::Value),
            2.. if is("MGET") => Some(Form::Values),
            _ => None,
        };
    };
    match arguments.len() {
        3 if is("HGET") && arguments.get(2) == Some(field) => Some(Form::Field),
        3.. if is("HMGET") => arguments.from(2).position(|given| given == field).map(Form::Fields),
        2 if is("HGETALL") => Some(Form::Pairs),
        _ => None,
    }
}

impl Audited {
    /// The reply has come.
    pub fn answered(self, gate: &Gate, reply: &[u8]) -> Meaning {
        let reply = body(reply);
        for asked in &self.asked {
            if let Some(value) = self.value(asked, reply) {
                self.hit(gate, asked, value);
            }
        }
        self.meaning
    }

    /// The reply is too large to be looked at.
    pub fn given_up(self, gate: &Gate) -> Meaning {
        for asked in &self.asked {
            gate.auditor.unknown(asked.guard);
        }
        self.meaning
    }

    /// What the reply holds of a key, be it nothing that can be read; none if it was missed.
    fn value<'a>(&self, asked: &Asked, reply: &'a [u8]) -> Option<&'a [u8]> {
        match self.form {
            Form::Value | Form::Field => bulk(reply),
            Form::Values => bulk(elements(reply).nth(asked.place)?),
            Form::Fields(place) => bulk(elements(reply).nth(place)?),
            Form::Pairs => {
                let VersionPlace::Field(field) = self.guards.version_place(&asked.guarded.guards)? else {
                    return None;
                };
                pairs(reply).find(|(name, _)| bulk(name) == Some(field)).and_then(|(_, value)| bulk(value))
            }
        }
    }

    fn hit(&self, gate: &Gate, asked: &Asked, value: &[u8]) {
        let taken = match &asked.values {
            _ if value.len() > LONGEST_VALUE => None,
            Some(values) => self.for_sql(gate, asked, values, value),
            None => self.for_version(gate, asked, value),
        };
        if taken.is_none() {
            gate.auditor.unknown(asked.guard);
        }
    }

    fn for_sql(&self, gate: &Gate, asked: &Asked, values: &[String], value: &[u8]) -> Option<()> {
        let policy = &self.guards.get(asked.guard)?.policy;
        let pointer = policy.audit_json.as_deref().and_then(Pointer::parse);
        let (hash, at) = (asked.guarded.hash, gate.now());
        gate.auditor.take_for_sql(SqlHit {
            key: asked.key.clone(),
            hash,
            db: asked.guarded.db,
            guard: asked.guard,
            values: values.to_vec(),
            text: compared(pointer.as_ref(), value)?,
            last: gate.fence.last_write(hash, &asked.guarded.guards),
            is_capped: gate.fence.is_capped(hash, at),
            conditions: asked.conditions.clone()?,
            at,
            at_us: wall_clock_us(),
        });
        Some(())
    }

    fn for_version(&self, gate: &Gate, asked: &Asked, value: &[u8]) -> Option<()> {
        let (auditor, guards) = (&gate.auditor, &asked.guarded.guards);
        let told = self.guards.version_of(&asked.key, &asked.guarded).filter(|version| version.is_one_row);
        let version = told?;
        let told: Told = match self.form {
            Form::Value | Form::Values => version.of_value(value),
            Form::Field | Form::Fields(_) | Form::Pairs => version.kind.read(value),
        }?;
        let claim = version.claim(told, gate.newer_counts);
        let conditions = asked.conditions.clone()?;
        let cap = |id| self.guards.get(id).is_none_or(|guard| guard.policy.on_stale == OnStale::Cap);
        let is_kept = !gate.observe && !guards.iter().any(|id| cap(*id));
        let (around, hash) = (auditor.surroundings(), asked.guarded.hash);
        auditor.take(Hit {
            key: asked.key.clone(),
            hash,
            guards: guards.clone(),
            claim,
            seen: Seen::now(self.applied, around, hash, guards, &claim, is_kept),
            conditions,
            at: gate.now(),
        });
        Some(())
    }
}
