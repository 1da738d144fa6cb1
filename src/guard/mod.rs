//! Guards: which rows feed which keys, both ways. From a row to its keys ([`Template::render`]) for what the
//! feed sees, and from a key to its guards ([`Guards::matching`]) for what clients do.

mod instant;
mod matcher;
mod pointer;
mod reloaded;
mod template;
mod version;

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher};
use std::sync::LazyLock;

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;
use thiserror::Error;

use crate::config;

pub use instant::Instant;
pub use matcher::{GuardList, Matcher};
pub use pointer::{Pointer, Scalar};
pub use reloaded::Reloaded;
pub use template::{ColumnKind, Template, TemplateError};
pub use version::{KeyVersion, MAX_DOCUMENT, Told, VersionKind, VersionPlace, VersionRule};

pub use crate::fence::GuardId;
use crate::fence::KeyHash;

/// Why the configured guards cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{setting}: {problem}")]
pub struct GuardError {
    /// The setting: `guard[0].keys[1]`.
    pub setting: String,
    /// What is wrong with it.
    pub problem: GuardProblem,
}

/// What can be wrong with a guard.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GuardProblem {
    /// The table's name cannot be one.
    #[error(
        "found {found:?}; allowed: \"schema.table\", or \"table\" (which means public.table), as the catalog has \
         them, without quotes"
    )]
    Table {
        /// What was written.
        found: String,
    },
    /// Two guards of one table.
    #[error("guard[{first}] is of {table} already; put all of the table's keys into one guard")]
    Duplicate {
        /// The other one, from 0.
        first: usize,
        /// The table.
        table: String,
    },
    /// A guard that guards nothing.
    #[error("found an empty list; name at least one key template, such as \"user:<id>\"")]
    NoKeys,
    /// A template that is not one.
    #[error("found {found:?}: {source}")]
    Template {
        /// What was written.
        found: String,
        /// What is wrong with it.
        source: TemplateError,
    },
    /// One template twice.
    #[error("{found:?} is in the list already; remove it")]
    Repeated {
        /// What was written.
        found: String,
    },
    /// A version that no one place tells.
    #[error("allowed: a column, and one of json = \"/pointer\", raw = true, field = \"name\"")]
    VersionPlace,
    /// A pointer that is none.
    #[error("found {found:?}; allowed: a JSON pointer (RFC 6901), such as \"/version\"")]
    Pointer {
        /// What was written.
        found: String,
    },
    /// Each guard that was ever added has used up a number.
    #[error("too many guards were added since the start of the process; restart it")]
    NoNumbers,
    /// More than there are numbers for.
    #[error("found {found} guards; allowed: at most {}", u16::MAX)]
    TooMany {
        /// How many there are.
        found: usize,
    },
}

/// One table and the keys that its rows feed.
#[derive(Debug, Clone)]
pub struct Guard {
    /// Its number.
    pub id: GuardId,
    /// The table's schema, as the catalog has it.
    pub schema: String,
    /// The table's name, as the catalog has it.
    pub table: String,
    /// `schema.table`: the guard's name in metrics and logs.
    pub label: String,
    /// The shapes of its keys.
    pub templates: Vec<Template>,
    /// Where the version of its rows is.
    pub version: Option<VersionRule>,
    /// The Redis db that they are in.
    pub db: u32,
    /// Tells the table that has this name now, its columns, and the tables below it that hold rows of it; 0: not known yet.
    pub tables: u64,
    /// What happens to fills and reads of its keys.
    pub policy: config::Guard,
}

/// All guards.
#[derive(Debug, Clone)]
pub struct Guards {
    guards: Vec<Guard>,
    /// The db of those that name none.
    home: u32,
    /// One for each db that has guards.
    matchers: Vec<(u32, Matcher)>,
}

/// A key of a Redis db.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CacheKey {
    /// The db.
    pub db: u32,
    /// The key.
    pub name: Vec<u8>,
}

/// A key with guards.
#[derive(Clone, Debug)]
pub struct GuardedKey {
    /// Its hash, which tells the db as well.
    pub hash: KeyHash,
    /// Its db.
    pub db: u32,
    /// Its guards.
    pub guards: GuardList,
}

impl Guards {
    /// The configured guards, in the db `home` unless they say otherwise. Columns are of unknown type until the catalog
    /// has been read.
    pub fn new(settings: &[config::Guard], home: u32) -> Result<Self, GuardError> {
        if settings.len() > usize::from(u16::MAX) {
            return Err(error("guard".into(), GuardProblem::TooMany { found: settings.len() }));
        }
        let mut guards: Vec<Guard> = Vec::with_capacity(settings.len());
        for (index, policy) in settings.iter().enumerate() {
            let guard = guard(index, policy, home)?;
            if let Some(first) = guards.iter().position(|other| other.label == guard.label) {
                let problem = GuardProblem::Duplicate { first, table: guard.label };
                return Err(error(format!("guard[{index}].table"), problem));
            }
            guards.push(guard);
        }
        Ok(Self::of(guards, home))
    }

    fn of(guards: Vec<Guard>, home: u32) -> Self {
        let dbs: BTreeSet<u32> = guards.iter().map(|guard| guard.db).collect();
        let matcher = |db| {
            let own = guards.iter().filter(|guard| guard.db == db);
            Matcher::new(own.flat_map(|guard| guard.templates.iter().map(|t| (guard.id, t))))
        };
        let matchers = dbs.into_iter().map(|db| (db, matcher(db))).collect();
        Self { guards, home, matchers }
    }

    /// A copy that knows the types of the columns: `kind(guard, column)` is asked for every placeholder.
    pub fn with_column_kinds(&self, kind: impl Fn(&Guard, &str) -> ColumnKind) -> Self {
        let mut guards = self.guards.clone();
        for (guard, known) in guards.iter_mut().zip(&self.guards) {
            for template in &mut guard.templates {
                for n in 0..template.columns().len() {
                    let kind = kind(known, &template.columns()[n]);
                    template.set_column_kind(n, kind);
                }
            }
        }
        Self::of(guards, self.home)
    }

    /// A copy that knows which keys are of one row, and what the version columns hold. To be made after
    /// [`Guards::with_column_kinds`], which tells where one value in a key ends. `known(guard)` is the table's primary
    /// key, and the type of the guard's version column.
    pub fn with_rows<'a>(&self, known: impl Fn(&Guard) -> (&'a [String], Option<VersionKind>)) -> Self {
        let mut guards = self.guards.clone();
        for guard in &mut guards {
            let (primary_key, kind) = known(guard);
            for template in &mut guard.templates {
                template.set_one_row(version::is_one_row(template, primary_key));
            }
            if let Some(version) = &mut guard.version {
                version.kind = kind;
            }
        }
        Self::of(guards, self.home)
    }

    /// A copy that knows which tables hold the rows: `tables(guard)` is equal for equal tables, and not 0.
    pub fn with_tables(&self, tables: impl Fn(&Guard) -> u64) -> Self {
        let mut guards = self.guards.clone();
        for guard in &mut guards {
            guard.tables = tables(guard);
        }
        Self { guards, ..self.clone() }
    }

    /// Whether a version rule applies to fills of the keys of these guards.
    pub fn have_version(&self, guards: &GuardList) -> bool {
        self.version_rule(guards).is_some()
    }

    fn version_rule(&self, guards: &GuardList) -> Option<(GuardId, &VersionRule, VersionKind)> {
        guards.iter().find_map(|id| {
            let rule = self.get(*id)?.version.as_ref()?;
            Some((*id, rule, rule.kind?))
        })
    }

    /// Where values of the keys of these guards tell the version of their row.
    pub fn version_place(&self, guards: &GuardList) -> Option<&VersionPlace> {
        self.version_rule(guards).map(|(_, rule, _)| &rule.place)
    }

    /// The guard whose version rule applies to the keys of these guards.
    pub fn versioned(&self, guards: &GuardList) -> Option<GuardId> {
        self.version_rule(guards).map(|(guard, ..)| guard)
    }

    /// The version rule that applies to fills of a key.
    pub fn version_of(&self, key: &[u8], guarded: &GuardedKey) -> Option<KeyVersion<'_>> {
        let (guard, rule, kind) = self.version_rule(&guarded.guards)?;
        let matcher = self.matchers.iter().find(|(of, _)| *of == guarded.db);
        let is_one_row = matcher.is_some_and(|(_, matcher)| matcher.is_one_row(key));
        Some(KeyVersion { guard, rule, kind, is_one_row })
    }

    /// The dbs that have guards, which for most is one.
    pub fn dbs(&self) -> impl Iterator<Item = u32> {
        self.matchers.iter().map(|(db, _)| *db)
    }

    /// The guards, in the order of their numbers: that of the configuration, until there was a reload.
    pub fn iter(&self) -> std::slice::Iter<'_, Guard> {
        self.guards.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.guards.len()
    }

    /// Whether nothing is guarded.
    pub fn is_empty(&self) -> bool {
        self.guards.is_empty()
    }

    /// A guard by its number.
    pub fn get(&self, id: GuardId) -> Option<&Guard> {
        // Its place, unless one before it was removed.
        let at_place = self.guards.get(usize::from(id.0)).filter(|guard| guard.id == id);
        at_place.or_else(|| {
            let place = self.guards.binary_search_by_key(&id, |guard| guard.id).ok()?;
            self.guards.get(place)
        })
    }

    /// The guard of a table, by `schema.table`.
    pub fn by_label(&self, label: &str) -> Option<&Guard> {
        self.guards.iter().find(|guard| guard.label == label)
    }

    /// The guards of a key in a db, each once.
    pub fn matching(&self, db: u32, key: &[u8]) -> GuardList {
        let mut out = GuardList::new();
        if let Some((_, matcher)) = self.matchers.iter().find(|(of, _)| *of == db) {
            matcher.guards(key, &mut out);
        }
        out
    }

    /// The template that a key of a db is of, if it is of one only.
    pub fn only_template(&self, db: u32, key: &[u8]) -> Option<&Template> {
        let (_, matcher) = self.matchers.iter().find(|(of, _)| *of == db)?;
        matcher.only(key).map(|(_, template)| template)
    }

    /// The `SCAN MATCH` patterns of all keys of a guard. They may find more than the guard's keys: see
    /// [`Template::glob`].
    pub fn globs(&self) -> impl Iterator<Item = (&Guard, String)> + '_ {
        self.guards.iter().flat_map(|guard| guard.templates.iter().map(move |t| (guard, t.glob())))
    }

    /// Tells whether the keys in a cache were kept by the same guards: equal for equal tables and templates,
    /// whatever their order and policies, in every process and version.
    pub fn digest(&self) -> u64 {
        let mut lines: Vec<(&str, Vec<&str>, Option<u32>)> = self
            .guards
            .iter()
            .map(|guard| {
                let mut templates: Vec<&str> = guard.templates.iter().map(Template::text).collect();
                templates.sort_unstable();
                let db = Some(guard.db).filter(|db| *db != self.home);
                (guard.label.as_str(), templates, db)
            })
            .collect();
        lines.sort_unstable();
        // Lengths go in as well: no two lists of texts run together into the same bytes.
        lines.iter().fold(FNV_OFFSET, |hash, (label, templates, db)| {
            let hash = db.map_or(hash, |db| fnv1a(hash, &db.to_le_bytes()));
            let hash = fnv1a(fnv1a(hash, &(templates.len() as u64).to_le_bytes()), &length_prefixed(label));
            templates.iter().fold(hash, |hash, text| fnv1a(hash, &length_prefixed(text)))
        })
    }

    /// The same of what has been learnt of the tables themselves: one that was altered, replaced, or got other parts while
    /// nobody looked has rows that no commit tells of.
    pub fn tables_digest(&self) -> u64 {
        let mut tables: Vec<(&str, u64)> =
            self.guards.iter().map(|guard| (guard.label.as_str(), guard.tables)).collect();
        tables.sort_unstable();
        tables.iter().fold(FNV_OFFSET, |hash, (_, table)| fnv1a(hash, &table.to_le_bytes()))
    }
}

impl<'a> IntoIterator for &'a Guards {
    type Item = &'a Guard;
    type IntoIter = std::slice::Iter<'a, Guard>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

fn error(setting: String, problem: GuardProblem) -> GuardError {
    GuardError { setting, problem }
}

fn guard(index: usize, policy: &config::Guard, home: u32) -> Result<Guard, GuardError> {
    let (schema, table) = table_name(&policy.table).ok_or_else(|| {
        error(format!("guard[{index}].table"), GuardProblem::Table { found: policy.table.clone() })
    })?;
    if policy.keys.is_empty() {
        return Err(error(format!("guard[{index}].keys"), GuardProblem::NoKeys));
    }
    let mut templates = Vec::with_capacity(policy.keys.len());
    for (key, text) in policy.keys.iter().enumerate() {
        let wrong = |problem| error(format!("guard[{index}].keys[{key}]"), problem);
        if policy.keys[..key].contains(text) {
            return Err(wrong(GuardProblem::Repeated { found: text.clone() }));
        }
        let template = Template::parse(text);
        templates
            .push(template.map_err(|source| wrong(GuardProblem::Template { found: text.clone(), source }))?);
    }
    let version = policy.version.as_ref().map(VersionRule::new).transpose();
    let version = version.map_err(|problem| {
        let part = if matches!(problem, GuardProblem::Pointer { .. }) { ".json" } else { "" };
        error(format!("guard[{index}].version{part}"), problem)
    })?;
    if let Some(found) = policy.audit_json.clone().filter(|pointer| Pointer::parse(pointer).is_none()) {
        return Err(error(format!("guard[{index}].audit_json"), GuardProblem::Pointer { found }));
    }
    Ok(Guard {
        id: GuardId(index as u16),
        label: format!("{schema}.{table}"),
        schema: schema.to_owned(),
        table: table.to_owned(),
        templates,
        version,
        db: policy.db.unwrap_or(home),
        tables: 0,
        policy: policy.clone(),
    })
}

/// Names are the catalog's own, so only the first dot separates, and quotes would be part of the name.
fn table_name(text: &str) -> Option<(&str, &str)> {
    let (schema, table) = text.split_once('.').unwrap_or(("public", text));
    let is_name = |name: &str| !name.trim().is_empty() && !name.contains('"');
    (is_name(schema) && is_name(table)).then_some((schema, table))
}

/// What [`fnv1a`] begins with.
pub(crate) const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// Equal for equal bytes in every process and version.
pub(crate) fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn length_prefixed(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// The hash under which the fence knows a key of a Redis db.
///
/// Seeded anew by every process from the operating system's entropy: clients choose keys, and must not be able to
/// aim one at another's fence.
pub fn key_hash(db: u32, key: &[u8]) -> KeyHash {
    static STATE: LazyLock<SeedableRandomState> = LazyLock::new(|| {
        let entropy = || std::hash::RandomState::new().hash_one("cachefence");
        SeedableRandomState::with_seed(entropy(), SharedSeed::global_random())
    });
    let mut hasher = STATE.build_hasher();
    hasher.write_u32(db);
    hasher.write(key);
    KeyHash(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(table: &str, keys: &[&str]) -> config::Guard {
        let keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
        toml::from_str(&format!("table = {table:?}\nkeys = [{}]", keys.join(", "))).expect("settings")
    }

    #[test]
    fn a_key_is_guarded_by_every_table_that_feeds_it() {
        let guards = Guards::new(
            &[
                settings("public.users", &["user:<id>", "user:<id>:profile"]),
                settings("orders", &["user:<user_id>:orders", "orders:all"]),
            ],
            0,
        )
        .expect("guards");
        let ids = |key: &str| guards.matching(0, key.as_bytes()).iter().map(|g| g.0).collect::<Vec<_>>();
        assert_eq!(ids("user:7"), [0]);
        assert_eq!(ids("user:7:orders"), [0, 1], "an id of unknown type may contain a colon");
        assert_eq!(ids("orders:all"), [1]);
        assert_eq!(ids("session:7"), [0u16; 0]);
        assert_eq!(guards.get(GuardId(1)).map(|g| g.label.as_str()), Some("public.orders"));
        assert!(guards.by_label("public.users").is_some() && guards.get(GuardId(2)).is_none());

        let typed = guards.with_column_kinds(|_, column| match column {
            "id" | "user_id" => ColumnKind::Integer,
            _ => ColumnKind::Any,
        });
        assert_eq!(typed.matching(0, b"user:7:orders").as_slice(), [GuardId(1)]);
        assert_eq!(typed.digest(), guards.digest());
        let of = |tables: [u64; 2]| guards.with_tables(|guard| tables[usize::from(guard.id.0)]);
        assert_eq!(of([1, 2]).digest(), guards.digest());
        assert_eq!(of([1, 2]).tables_digest(), of([1, 2]).tables_digest());
        assert_ne!(of([1, 2]).tables_digest(), of([1, 3]).tables_digest());
        assert_ne!(of([1, 2]).tables_digest(), of([2, 1]).tables_digest());
    }

    #[test]
    fn the_digest_tells_tables_and_templates_only() {
        let digest = |list: &[config::Guard]| Guards::new(list, 0).expect("guards").digest();
        let (a, b) = (settings("users", &["a:<id>", "b:<id>"]), settings("orders", &["o:<id>"]));
        let both = digest(&[a.clone(), b.clone()]);
        // Written in every marker: a change would purge every cache at the next upgrade.
        assert_eq!(both, 0x8eec_da64_3151_abdb);
        assert_eq!(both, digest(&[b.clone(), settings("public.users", &["b:<id>", "a:<id>"])]));
        assert_ne!(both, digest(std::slice::from_ref(&a)));
        assert_ne!(digest(&[a]), digest(&[settings("users", &["a:<id>"])]));
    }

    #[test]
    fn a_guard_is_in_its_db() {
        let mut list = [settings("users", &["user:<id>"]), settings("orders", &["user:<id>", "o:<id>"])];
        let digest = |list: &[config::Guard], home| Guards::new(list, home).expect("guards").digest();
        assert_eq!(digest(&list, 0), digest(&list, 3), "the marker is where they are");
        list[1].db = Some(3);
        let guards = Guards::new(&list, 0).expect("guards");
        assert_eq!(guards.dbs().collect::<Vec<_>>(), [0, 3]);
        assert_eq!(guards.matching(0, b"user:1").as_slice(), [GuardId(0)]);
        assert_eq!(guards.matching(3, b"user:1").as_slice(), [GuardId(1)]);
        assert!(guards.matching(1, b"user:1").is_empty());
        let typed = guards.with_column_kinds(|_, _| ColumnKind::Integer);
        assert!(typed.matching(3, b"user:x").is_empty() && !typed.matching(3, b"user:1").is_empty());
        let there = digest(&list, 0);
        list[1].db = Some(2);
        assert_ne!(digest(&list, 0), there);
    }

    #[test]
    fn wrong_guards_name_the_setting() {
        let error = |list: &[config::Guard]| Guards::new(list, 0).expect_err("an error").to_string();
        let users = settings("users", &["user:<id>"]);
        assert!(error(&[settings("a.", &["k"])]).starts_with("guard[0].table: found \"a.\""));
        assert!(error(&[settings("\"A\"", &["k"])]).contains("without quotes"));
        assert!(
            error(&[users.clone(), settings("public.users", &["u"])]).starts_with("guard[1].table: guard[0]")
        );
        assert!(error(&[settings("users", &[])]).starts_with("guard[0].keys: "));
        assert!(error(&[users.clone(), settings("o", &["k", "o:<id"])]).starts_with("guard[1].keys[1]: "));
        assert!(error(&[settings("o", &["k", "k"])]).starts_with("guard[0].keys[1]: "));
    }

    #[test]
    fn key_hashes_tell_dbs_and_keys_apart() {
        assert_eq!(key_hash(0, b"user:1"), key_hash(0, b"user:1"));
        assert_ne!(key_hash(0, b"user:1"), key_hash(1, b"user:1"));
        assert_ne!(key_hash(0, b"user:1"), key_hash(0, b"user:2"));
    }
}
