//! Positions in Postgres's history: log sequence numbers, transaction ids and snapshots.
//!
//! The two clocks must not be mixed. An [`Lsn`] orders commits as the write-ahead log does; a
//! [`Snapshot`] says which of them a reader on the *primary* can see. They disagree: a commit's WAL is
//! flushed, sent and decoded before its backend leaves the proc array, so the primary may still hide a
//! commit whose LSN everyone already knows (`docs/design.md`, fact F1).

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A text that is not an LSN, a transaction id or a snapshot as Postgres prints it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not {expected}")]
pub struct PositionError {
    text: String,
    expected: &'static str,
}

impl PositionError {
    fn new(text: &str, expected: &'static str) -> Self {
        // The text may come from a client (`ASOF`): keep what an error message can use and no more.
        Self { text: text.chars().take(80).collect(), expected }
    }
}

/// A position in the write-ahead log, in bytes since the cluster was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The end of the last record that ends at or before this position.
    ///
    /// `pg_current_wal_insert_lsn()` says where the next record will begin, which is behind a page's header if the last
    /// one filled its page; that one's own end, which is what Postgres streams, is before the header. No record ends
    /// inside a header (`XLogBytePosToRecPtr` and `XLogBytePosToEndRecPtr` in Postgres's `xlog.c`).
    pub fn record_end(self) -> Lsn {
        const PAGE: u64 = 8192;
        const SHORT_HEADER: u64 = 24;
        let into_page = self.0 % PAGE;
        if into_page <= SHORT_HEADER { Lsn(self.0 - into_page) } else { self }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = PositionError;

    /// Parses Postgres's `pg_lsn` text, two hexadecimal halves of up to 8 digits: `0/16B3748`.
    fn from_str(text: &str) -> Result<Self, PositionError> {
        let half = |s: &str| -> Option<u64> {
            // from_str_radix alone would also take a sign.
            let hex = !s.is_empty() && s.len() <= 8 && s.bytes().all(|b| b.is_ascii_hexdigit());
            hex.then(|| u64::from_str_radix(s, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| PositionError::new(text, "an LSN such as 0/16B3748"))
    }
}

/// A top-level transaction id, with its epoch (64 bits, never reused).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Xid(pub u64);

impl Xid {
    /// Extends the 32-bit xid of a pgoutput message to 64 bits: the one of that low half that is nearest
    /// to `near`, a recently polled next xid.
    ///
    /// Postgres never has transactions more than 2^31 apart alive at once (`TransactionIdPrecedes`), so the
    /// signed 32-bit distance is exact as long as `near` is less than two billion transactions old.
    pub fn extend(xid: u32, near: Xid) -> Xid {
        let distance = i64::from(xid.wrapping_sub(near.0 as u32) as i32);
        Xid(near.0.saturating_add_signed(distance))
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a reader on the primary can see: `pg_current_snapshot()`, or `cachefence.asof()` there.
///
/// Holds the standard invariant `xmin <= every xid in progress < xmax`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Snapshot {
    xmin: Xid,
    xmax: Xid,
    in_progress: Box<[Xid]>,
}

impl Snapshot {
    /// The longest snapshot text that is read, in bytes: room for some 30,000 transactions in progress.
    pub const MAX_TEXT: usize = 640 * 1024;

    /// Builds a snapshot; `in_progress` may come in any order.
    ///
    /// # Errors
    /// When the invariant `xmin <= xid in progress < xmax` does not hold.
    pub fn new(xmin: Xid, xmax: Xid, mut in_progress: Vec<Xid>) -> Result<Self, PositionError> {
        in_progress.sort_unstable();
        in_progress.dedup();
        let inside = in_progress.iter().all(|x| xmin <= *x && *x < xmax);
        if xmin > xmax || !inside {
            return Err(PositionError::new(&format!("{xmin}:{xmax}:..."), "a snapshot whose parts agree"));
        }
        Ok(Self { xmin, xmax, in_progress: in_progress.into() })
    }

    /// Every transaction below this one has ended.
    pub fn xmin(&self) -> Xid {
        self.xmin
    }

    /// No transaction from this one on is visible.
    pub fn xmax(&self) -> Xid {
        self.xmax
    }

    /// The transactions in progress below `xmax`, ascending.
    pub fn in_progress(&self) -> &[Xid] {
        &self.in_progress
    }

    /// Whether a committed transaction is visible in this snapshot.
    pub fn sees(&self, xid: Xid) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }

    /// Whether this snapshot sees every transaction that `other` sees.
    ///
    /// Set inclusion, not a comparison of `xmin`s: a transaction that stays open for an hour is in progress
    /// in both and must not make good evidence fail.
    pub fn includes(&self, other: &Snapshot) -> bool {
        self.xmax >= other.xmax
            && self
                .in_progress
                .iter()
                .take_while(|xid| **xid < other.xmax)
                .all(|xid| other.in_progress.binary_search(xid).is_ok())
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (i, xid) in self.in_progress.iter().enumerate() {
            write!(f, "{}{xid}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Snapshot {
    type Err = PositionError;

    /// Parses Postgres's `pg_snapshot` text: `xmin:xmax:xid,xid,...`.
    fn from_str(text: &str) -> Result<Self, PositionError> {
        let bad = || PositionError::new(text, "a snapshot such as 750:755:751,753");
        if text.len() > Self::MAX_TEXT {
            return Err(bad());
        }
        let xid = |s: &str| -> Option<Xid> {
            let digits = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| s.parse().ok().map(Xid)).flatten()
        };
        let mut parts = text.splitn(3, ':');
        let mut part = || parts.next().ok_or_else(bad);
        let (xmin, xmax, list) = (part()?, part()?, part()?);
        let in_progress = match list {
            "" => Some(Vec::new()),
            list => list.split(',').map(xid).collect(),
        };
        let (Some(xmin), Some(xmax), Some(in_progress)) = (xid(xmin), xid(xmax), in_progress) else {
            return Err(bad());
        };
        Self::new(xmin, xmax, in_progress).map_err(|_| bad())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().expect("a snapshot")
    }

    #[test]
    fn lsn_reads_what_it_prints() {
        for text in ["0/0", "0/16B3748", "FFFFFFFF/FFFFFFFF", "16/B374D848"] {
            assert_eq!(text.parse::<Lsn>().expect(text).to_string(), text);
        }
        for text in ["", "/", "0/", "0", "+1/0", "0/1/2", "0/123456789", "G/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_position_behind_a_page_header_is_the_end_of_the_page_before() {
        for (position, end) in [(0x2000, 0x2000), (0x2018, 0x2000), (0x2019, 0x2019), (0x1fff, 0x1fff)] {
            assert_eq!(Lsn(position).record_end(), Lsn(end));
        }
    }

    #[test]
    fn xid_extends_to_the_nearest_epoch() {
        let near = Xid(5 << 32 | 10);
        assert_eq!(Xid::extend(12, near), Xid(5 << 32 | 12));
        assert_eq!(Xid::extend(u32::MAX - 3, near), Xid(4 << 32 | u64::from(u32::MAX - 3)));
        assert_eq!(Xid::extend(3, Xid(6 << 32 | 0xffff_fff0)), Xid(7 << 32 | 3));
    }

    #[test]
    fn snapshot_reads_what_it_prints() {
        for text in ["750:755:751,753", "728:728:", "1:1:"] {
            assert_eq!(snapshot(text).to_string(), text);
        }
        for text in ["", "1:2", "2:1:", "1:5:5", "3:5:2", "1:5:x", "1:5:2,", "-1:5:", "1:5:2:3"] {
            assert!(text.parse::<Snapshot>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn snapshot_sees_what_ended_before_it() {
        let s = snapshot("750:755:751,753");
        let seen: Vec<u64> = (748..757).filter(|x| s.sees(Xid(*x))).collect();
        assert_eq!(seen, [748, 749, 750, 752, 754]);
    }

    #[test]
    fn inclusion_is_by_set() {
        // A transaction open all the time (700) does not matter.
        assert!(snapshot("700:760:700,758").includes(&snapshot("700:755:700,753")));
        assert!(!snapshot("700:755:700,753").includes(&snapshot("700:755:700")));
        assert!(!snapshot("700:754:700").includes(&snapshot("700:755:700")));
        // In progress here, but from the other's xmax on: the other did not see it either.
        assert!(snapshot("756:760:756").includes(&snapshot("755:755:")));
    }
}
