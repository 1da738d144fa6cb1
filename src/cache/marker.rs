//! The marker: a key in Redis that tells where this Redis's data stands in Postgres's history.
//!
//! It is written together with the deletions, before the feed confirms them. Whatever happens to either
//! side (a lost slot, a Redis that restarted empty or went back to an old dump, another database, other
//! guards), comparing the marker with the feed tells whether the cache's content can still be trusted.

use crate::feed::{Found, Identity};
use crate::position::Lsn;

/// What the marker's key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The history that `applied` belongs to.
    pub identity: Identity,
    /// The slot that the feed reads.
    pub slot: String,
    /// Every key that a commit up to here changed has been deleted.
    pub applied: Lsn,
    /// The process that wrote it.
    pub incarnation: String,
    /// Of the guards (see `Guards::digest`).
    pub guards: u64,
    /// Of their tables (see `Guards::tables_digest`). Earlier versions wrote none.
    pub tables: Option<u64>,
    /// More may have been confirmed than the primary showed: commits waited for the proxy. Earlier versions wrote none.
    pub unseen: bool,
}

/// What the marker says of Redis's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Everything up to here was deleted.
    At(Lsn),
    /// There is no marker: a new or emptied Redis, or one that never belonged to this slot.
    Missing,
    /// It was written for another system, timeline or slot, or cannot be read.
    Foreign,
    /// It was written for other guards: keys that are guarded now were not then. Or their tables were others. The keys of
    /// then were deleted up to here.
    OtherGuards(Lsn),
}

impl Standing {
    /// What that tells of an earlier process to one whose stream begins at `position`.
    pub(super) fn found(self, position: Lsn) -> Found {
        match self {
            Standing::Missing => Found::Nothing,
            // Behind the slot's position, what is in between was confirmed by somebody else, or is not known to
            // Redis any more: nobody knows whether it was visible then.
            Standing::At(lsn) | Standing::OtherGuards(lsn) => {
                Found::Predecessor { same_history: true, level: lsn >= position }
            }
            Standing::Foreign => Found::Predecessor { same_history: false, level: false },
        }
    }
}

impl Marker {
    /// What Redis's answer to a GET of its key ([`crate::config::marker_key`]) says, compared with what would be written now.
    pub fn judge(&self, found: Option<&str>) -> Standing {
        let Some(found) = found else { return Standing::Missing };
        let Some(found) = Self::parse(found) else { return Standing::Foreign };
        if found.identity != self.identity || found.slot != self.slot {
            Standing::Foreign
        } else if found.guards != self.guards || found.tables.is_some_and(|of| Some(of) != self.tables) {
            Standing::OtherGuards(found.applied)
        } else {
            Standing::At(found.applied)
        }
    }

    /// What a marker's text says; none if it is no marker's.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut field = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
        Some(Self {
            identity: Identity {
                system_id: field("system")?.parse().ok()?,
                timeline: field("timeline")?.parse().ok()?,
            },
            slot: field("slot")?.to_owned(),
            applied: field("applied")?.parse().ok()?,
            incarnation: field("incarnation")?.to_owned(),
            guards: u64::from_str_radix(field("guards")?, 16).ok()?,
            tables: field("tables").and_then(|digest| u64::from_str_radix(digest, 16).ok()),
            unseen: field("unseen") == Some("1"),
        })
    }
}

impl std::fmt::Display for Marker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            identity: Identity { system_id, timeline },
            slot,
            applied,
            incarnation,
            guards,
            tables,
            unseen,
        } = self;
        write!(f, "system={system_id} timeline={timeline} slot={slot} applied={applied} ")?;
        write!(f, "incarnation={incarnation} guards={guards:016x}")?;
        tables.map_or(Ok(()), |tables| write!(f, " tables={tables:016x}"))?;
        // Behind the tables, which whoever knows of this writes.
        if *unseen { f.write_str(" unseen=1") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker() -> Marker {
        Marker {
            identity: Identity { system_id: 7_300_000_000_000_000_001, timeline: 1 },
            slot: "cachefence".into(),
            applied: Lsn(0x16B_3748),
            incarnation: "0f3a".into(),
            guards: 0xfeed,
            tables: Some(0xbeef),
            unseen: false,
        }
    }

    #[test]
    fn it_reads_what_it_writes() {
        assert_eq!(Marker::parse(&marker().to_string()), Some(marker()));
        assert_eq!(marker().judge(Some(&marker().to_string())), Standing::At(Lsn(0x16B_3748)));
        let unseen = Marker { unseen: true, ..marker() };
        assert_eq!(Marker::parse(&unseen.to_string()), Some(unseen));
    }

    #[test]
    fn a_slot_that_is_ahead_is_no_other_history() {
        let found = |standing: Standing| standing.found(Lsn(100));
        let of = |same_history, level| Found::Predecessor { same_history, level };
        assert_eq!(found(Standing::Missing), Found::Nothing);
        assert_eq!(found(Standing::At(Lsn(100))), of(true, true));
        assert_eq!(found(Standing::At(Lsn(99))), of(true, false), "a slot that was lost, and made anew");
        assert_eq!(found(Standing::OtherGuards(Lsn(99))), of(true, false));
        assert_eq!(found(Standing::Foreign), of(false, false));
    }

    #[test]
    fn another_history_is_not_trusted() {
        let written = |change: &dyn Fn(&mut Marker)| {
            let mut other = marker();
            change(&mut other);
            marker().judge(Some(&other.to_string()))
        };
        assert_eq!(marker().judge(None), Standing::Missing);
        assert_eq!(marker().judge(Some("rubbish")), Standing::Foreign);
        assert_eq!(written(&|m| m.identity.system_id += 1), Standing::Foreign);
        assert_eq!(written(&|m| m.identity.timeline += 1), Standing::Foreign);
        assert_eq!(written(&|m| m.slot.push('2')), Standing::Foreign);
        assert_eq!(written(&|m| m.guards += 1), Standing::OtherGuards(Lsn(0x16B_3748)));
        assert_eq!(written(&|m| m.tables = Some(1)), Standing::OtherGuards(Lsn(0x16B_3748)));
        assert_eq!(written(&|m| m.tables = None), Standing::At(Lsn(0x16B_3748)), "an earlier version's");
        assert_eq!(written(&|m| m.incarnation.push('x')), Standing::At(Lsn(0x16B_3748)), "a predecessor's");
    }
}
