//! The version of a row: its column, what Postgres prints of it, and what a fill says of it.

use super::instant::Instant;
use super::pointer::{Pointer, Scalar};
use super::{GuardProblem, Template};
use crate::config;
use crate::fence::{GuardId, Version, VersionClaim, Vouches};

/// The largest value that is read as JSON, in bytes: a thread that reads one serves nobody else meanwhile.
pub const MAX_DOCUMENT: usize = 4 * 1024 * 1024;

/// A guard's setting `version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionRule {
    /// The column.
    pub column: String,
    /// Where a fill says it.
    pub place: VersionPlace,
    /// What the column holds; none until the catalog has told.
    pub kind: Option<VersionKind>,
}

/// Where a fill says which version of the row it was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionPlace {
    /// In a JSON value.
    Json(Pointer),
    /// It is the value.
    Raw,
    /// It is the value of this field of a hash.
    Field(Vec<u8>),
}

impl VersionRule {
    /// Reads the setting.
    pub(super) fn new(setting: &config::Version) -> Result<Self, GuardProblem> {
        let place = match (&setting.json, setting.raw, &setting.field) {
            (Some(pointer), None, None) => Pointer::parse(pointer)
                .map(VersionPlace::Json)
                .ok_or_else(|| GuardProblem::Pointer { found: pointer.clone() })?,
            (None, Some(true), None) => VersionPlace::Raw,
            (None, None, Some(field)) => VersionPlace::Field(field.clone().into_bytes()),
            _ => return Err(GuardProblem::VersionPlace),
        };
        Ok(Self { column: setting.column.clone(), place, kind: None })
    }
}

/// The types of columns that can hold versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionKind {
    /// `smallint`, `integer`, `bigint`.
    Integer,
    /// `timestamp`, without a time zone.
    Timestamp,
    /// `timestamp with time zone`.
    TimestampTz,
}

/// What a fill says, or its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    version: Version,
    step: i64,
    only_equal: bool,
}

impl VersionKind {
    /// That of a type.
    pub fn of_type(oid: u32) -> Option<Self> {
        match oid {
            20 | 21 | 23 => Some(Self::Integer),
            1114 => Some(Self::Timestamp),
            1184 => Some(Self::TimestampTz),
            _ => None,
        }
    }

    /// The value of a row as Postgres prints it, with the settings that we fix. None if it cannot be compared:
    /// `infinity`, years before 1 or beyond 9999.
    pub fn of_row(self, text: &[u8]) -> Option<Version> {
        match self {
            Self::Integer => integer(text),
            Self::Timestamp | Self::TimestampTz => Instant::read(text).map(|instant| Version(instant.micros)),
        }
    }

    /// What a text in a payload says.
    ///
    /// A `timestamptz` needs its offset. A `timestamp` has none: where a program has put one, it may have taken the
    /// column for local time, so that only an equal one says anything.
    pub fn read(self, text: &[u8]) -> Option<Told> {
        let exact = |version| Told { version, step: 1, only_equal: false };
        let instant = match self {
            Self::Integer => return integer(text).map(exact),
            Self::TimestampTz => Instant::read(text).filter(|instant| instant.has_offset),
            Self::Timestamp => Instant::read(text),
        }?;
        let only_equal = self == Self::Timestamp && instant.has_offset;
        Some(Told { version: Version(instant.micros), step: instant.step, only_equal })
    }

    fn read_scalar(self, scalar: &Scalar) -> Option<Told> {
        match (self, scalar) {
            (_, Scalar::Text(text)) => self.read(text.as_bytes()),
            (Self::Integer, Scalar::Integer(n)) => {
                Some(Told { version: Version(*n), step: 1, only_equal: false })
            }
            (Self::Timestamp | Self::TimestampTz, Scalar::Integer(_)) => None,
        }
    }

    /// As SQL calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Integer => "an integer",
            Self::Timestamp => "a timestamp",
            Self::TimestampTz => "a timestamp with its offset from UTC",
        }
    }
}

/// The version rule of a key, and how much its word counts.
#[derive(Clone, Copy, Debug)]
pub struct KeyVersion<'a> {
    /// The guard that has the rule.
    pub guard: GuardId,
    /// The rule.
    pub rule: &'a VersionRule,
    /// What the column holds.
    pub kind: VersionKind,
    /// One row feeds the key, and nothing else does.
    pub is_one_row: bool,
}

impl KeyVersion<'_> {
    /// What a value says, if that is where the version is.
    pub fn of_value(&self, value: &[u8]) -> Option<Told> {
        match &self.rule.place {
            VersionPlace::Json(_) if value.len() > MAX_DOCUMENT => None,
            VersionPlace::Json(pointer) => self.kind.read_scalar(&pointer.find(value)?),
            VersionPlace::Raw => self.kind.read(value),
            VersionPlace::Field(_) => None,
        }
    }

    /// The claim that follows. `newer`: whether a fill can be newer than the feed.
    pub fn claim(&self, told: Told, newer: bool) -> VersionClaim {
        let Told { version, step, only_equal } = told;
        let vouches = match (self.is_one_row, newer) {
            (false, _) => Vouches::Nothing,
            (true, false) => Vouches::LastWrite,
            (true, true) => Vouches::LastWriteAndNewer,
        };
        VersionClaim { guard: self.guard, version, step, only_equal, vouches }
    }
}

/// Digits, and perhaps a minus before them: what Postgres prints, and nothing besides.
fn integer(text: &[u8]) -> Option<Version> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let good = digits.iter().all(u8::is_ascii_digit) && !digits.is_empty();
    good.then(|| str::from_utf8(text).ok()?.parse().ok().map(Version)).flatten()
}

/// Whether each key of a template is of one row of its table: all of the primary key is in it, and no two of its values
/// run together into the same text.
pub(super) fn is_one_row(template: &Template, primary_key: &[String]) -> bool {
    let has = |column: &String| template.columns().contains(column);
    !primary_key.is_empty() && primary_key.iter().all(has) && template.is_unambiguous()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(kind: VersionKind, text: &str) -> Option<(i64, i64, bool)> {
        kind.read(text.as_bytes()).map(|told| (told.version.0, told.step, told.only_equal))
    }

    #[test]
    fn integers_are_digits() {
        for (text, version) in [("0", 0), ("-7", -7), ("007", 7), ("9223372036854775807", i64::MAX)] {
            assert_eq!(told(VersionKind::Integer, text), Some((version, 1, false)), "{text}");
            assert_eq!(VersionKind::Integer.of_row(text.as_bytes()), Some(Version(version)));
        }
        for text in ["", "-", "+1", " 1", "1 ", "1.0", "1e3", "0x1", "9223372036854775808", "1\n", "--1"] {
            assert_eq!(told(VersionKind::Integer, text), None, "{text:?}");
        }
    }

    #[test]
    fn offsets_count_where_the_column_has_them() {
        let (with, without) = ("2026-11-23T07:31:05.123Z", "2026-11-23 07:31:05.123");
        let micros = 1_795_419_065_123_000;
        assert_eq!(told(VersionKind::TimestampTz, with), Some((micros, 1_000, false)));
        assert_eq!(told(VersionKind::TimestampTz, without), None);
        assert_eq!(told(VersionKind::Timestamp, with), Some((micros, 1_000, true)));
        assert_eq!(told(VersionKind::Timestamp, without), Some((micros, 1_000, false)));
        for text in ["infinity", "2026-11-23 07:31:05 BC", "12026-11-23 07:31:05+00"] {
            assert_eq!(VersionKind::TimestampTz.of_row(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_number_is_no_timestamp() {
        let number = Scalar::Integer(1_795_419_065);
        assert_eq!(VersionKind::TimestampTz.read_scalar(&number), None);
        assert_eq!(VersionKind::Timestamp.read_scalar(&number), None);
        assert!(VersionKind::Integer.read_scalar(&number).is_some());
    }
}
