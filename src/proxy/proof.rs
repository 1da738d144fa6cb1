//! What is said of a fill's age besides misses: by its client (`ASOF`), and by its payload.

use std::str::FromStr;

use crate::fence::{Evidence, VersionClaim};
use crate::guard::VersionKind;
use crate::position::{Lsn, Snapshot};

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
