//! The judgement of a history, key by key.
//!
//! A read is *stale* when a newer version of its key had been acknowledged before it started. Hits are judged, and
//! misses that the primary answered. A miss that the replica answered is the replica's age and not the cache's.

use std::time::Duration;

use crate::applied::Applied;
use crate::history::{KeyHistory, Micros, Origin, Read, micros};

/// After how long writes are asked for consistency: at once, and the two of Polaris.
pub const WINDOWS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(60)];

/// What a read returned, and what it should have.
#[derive(Clone, Copy, Debug)]
pub struct Stale {
    pub read: Read,
    /// The first acknowledgement of a newer version.
    pub outdated: Micros,
}

/// How many writes were asked, and of how many every later read was at least as new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consistent {
    pub writes: u64,
    pub consistent: u64,
}

/// What the reads of one remedy came to.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Hits and misses that the primary answered: those that are judged.
    pub judged: u64,
    pub hits: u64,
    /// Misses that the replica answered.
    pub unjudged: u64,
    pub stale: u64,
    /// Stale reads that started after the newer version was known to be applied.
    pub beyond_lag: u64,
    /// Reads of versions that nobody had begun to write, or that were rolled back.
    pub impossible: u64,
    /// The longest time from an acknowledgement to the start of a read that did not see it.
    pub oldest: Micros,
    /// Time in which keys were read stale: from the first to the last of stale reads that follow each other.
    pub stale_time: Duration,
    /// By [`WINDOWS`].
    pub within: [Consistent; WINDOWS.len()],
    /// The first of what must not be, for the message.
    pub example: Option<Stale>,
}

/// Checks the reads of one remedy, which it sorts by key. `end` is when the run ended.
pub fn check(history: &[KeyHistory], reads: &mut [Read], applied: &Applied, end: Micros) -> Findings {
    let mut findings = Findings::default();
    reads.sort_unstable_by_key(|read| (read.key(), read.start));
    for of_key in reads.chunk_by(|a, b| a.key() == b.key()) {
        let key = of_key.first().map_or(0, Read::key) as usize;
        findings.add_key(&history[key], of_key, applied, end);
    }
    // Of keys that nobody read nothing is known.
    findings
}

impl Findings {
    fn add_key(&mut self, history: &KeyHistory, reads: &[Read], applied: &Applied, end: Micros) {
        // For each write the last start of a read that saw all before it, and not it.
        let mut unseen: Vec<Option<Micros>> = vec![None; history.writes().len()];
        // The start of the last read, if that was stale.
        let mut stale_until = None;
        for read in reads {
            self.impossible += u64::from(!history.is_possible(read.version, read.end));
            if read.origin() == Origin::Replica {
                self.unjudged += 1;
                continue;
            }
            self.judged += 1;
            self.hits += u64::from(read.origin() == Origin::Cache);
            if let Some(last) = unseen.get_mut(history.included(read.version)) {
                *last = (*last).max(Some(read.start));
            }
            let Some(outdated) = history.outdated(read.version).filter(|at| *at < read.start) else {
                stale_until = None;
                continue;
            };
            self.add_stale(Stale { read: *read, outdated }, applied);
            let before = stale_until.replace(read.start).unwrap_or(read.start);
            self.stale_time += Duration::from_micros((read.start - before).into());
        }
        self.add_writes(history, &unseen, end);
    }

    fn add_stale(&mut self, stale: Stale, applied: &Applied) {
        let beyond = applied.by(stale.outdated).is_some_and(|known| known < stale.read.start);
        self.stale += 1;
        self.beyond_lag += u64::from(beyond);
        self.oldest = self.oldest.max(stale.read.start - stale.outdated);
        let first_beyond = beyond && self.beyond_lag == 1;
        if self.example.is_none() || first_beyond {
            self.example = Some(stale);
        }
    }

    fn add_writes(&mut self, history: &KeyHistory, unseen: &[Option<Micros>], end: Micros) {
        let mut last_older: Option<Micros> = None;
        for (write, unseen) in history.writes().iter().zip(unseen) {
            // Who saw less did not see it either.
            last_older = last_older.max(*unseen);
            for (window, within) in WINDOWS.iter().zip(&mut self.within) {
                let due = write.acknowledged.saturating_add(micros(*window));
                if due <= end {
                    within.writes += 1;
                    within.consistent += u64::from(last_older.is_none_or(|last| last <= due));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::applied::Mark;
    use crate::history::Write;

    const SECOND: Micros = 1_000_000;

    fn write(version: u32, begun: Micros, acknowledged: Micros) -> Write {
        Write { key: 0, version, begun, acknowledged }
    }

    fn hit(version: u32, start: Micros, end: Micros) -> Read {
        Read::new(0, Origin::Cache, version, start, end)
    }

    /// Version 1 from the beginning, 2 acknowledged at 200, 3 at 300.
    fn history() -> Vec<KeyHistory> {
        vec![KeyHistory::new(1, vec![write(3, 250, 300), write(2, 100, 200)]).expect("versions that differ")]
    }

    fn judged(history: &[KeyHistory], reads: &[Read], marks: Vec<Mark>) -> Findings {
        check(history, &mut reads.to_vec(), &Applied::new(marks), 100 * SECOND)
    }

    fn stale(reads: &[Read]) -> u64 {
        judged(&history(), reads, Vec::new()).stale
    }

    #[test]
    fn one_stale_read_among_many_is_found() {
        let mut reads: Vec<Read> = (0..1000).map(|n| hit(3, 400 + n, 401 + n)).collect();
        assert_eq!(stale(&reads), 0);
        reads.insert(500, hit(2, 777, 778));
        let findings = judged(&history(), &reads, Vec::new());
        assert_eq!((findings.judged, findings.stale, findings.impossible), (1001, 1, 0));
        assert_eq!((findings.oldest, findings.example.map(|found| found.read.start)), (477, Some(777)));
    }

    #[test]
    fn a_read_that_starts_with_the_acknowledgement_is_not_after_it() {
        assert_eq!(stale(&[hit(1, 200, 210)]), 0);
        assert_eq!(stale(&[hit(1, 199, 210)]), 0);
        assert_eq!(stale(&[hit(1, 201, 210)]), 1);
        assert_eq!(stale(&[hit(2, 300, 310)]), 0);
        assert_eq!(stale(&[hit(2, 301, 310)]), 1);
    }

    #[test]
    fn a_version_that_is_newer_than_any_acknowledged_is_fine() {
        assert_eq!(stale(&[hit(2, 150, 160), hit(3, 250, 260)]), 0);
    }

    /// Sessions are told of their commits in any order. A key whose third version was acknowledged owes nobody its
    /// first, whatever became of the second's acknowledgement.
    #[test]
    fn acknowledgements_out_of_order_count_from_the_first() {
        let history = [KeyHistory::new(1, vec![write(2, 100, 400), write(3, 250, 300)]).expect("versions")];
        assert_eq!(history[0].outdated(1), Some(300));
        assert_eq!(judged(&history, &[hit(1, 350, 360)], Vec::new()).stale, 1);
        assert_eq!(judged(&history, &[hit(2, 299, 360)], Vec::new()).stale, 0);
    }

    #[test]
    fn a_miss_is_judged_by_who_answered_it() {
        let old = |origin| Read::new(0, origin, 1, 500, 510);
        let findings = judged(&history(), &[old(Origin::Replica), old(Origin::Primary)], Vec::new());
        assert_eq!((findings.judged, findings.unjudged, findings.hits, findings.stale), (1, 1, 0, 1));
    }

    #[test]
    fn what_was_not_begun_or_rolled_back_cannot_be_read() {
        let history = [KeyHistory::new(1, vec![write(2, 100, 200), write(4, 300, 400)]).expect("versions")];
        let impossible = |read| judged(&history, &[read], Vec::new()).impossible;
        assert_eq!(impossible(hit(2, 90, 99)), 1, "it was not begun");
        assert_eq!(impossible(hit(2, 90, 100)), 0);
        assert_eq!(impossible(hit(3, 350, 360)), 1, "it was never committed");
        assert_eq!(impossible(hit(0, 1, 2)), 1);
        assert_eq!(impossible(hit(9, 500, 510)), 1);
    }

    #[test]
    fn a_version_that_is_written_twice_orders_nothing() {
        assert!(KeyHistory::new(1, vec![write(2, 1, 2), write(2, 3, 4)]).is_err());
        assert!(KeyHistory::new(1, vec![write(1, 1, 2)]).is_err());
    }

    /// Version 2 was known to be applied at 230. A stale read before that is within the lag, one after it is not.
    #[test]
    fn an_older_read_lies_within_the_lag_or_beyond_it() {
        let marks = vec![Mark { asked: 201, known: 230 }, Mark { asked: 290, known: 299 }];
        let beyond = |read| {
            let findings = judged(&history(), &[read], marks.clone());
            (findings.stale, findings.beyond_lag)
        };
        assert_eq!(beyond(hit(1, 230, 240)), (1, 0));
        assert_eq!(beyond(hit(1, 231, 240)), (1, 1));
        assert_eq!(beyond(hit(2, 301, 310)), (1, 0), "no mark was asked for after 300");
    }

    /// 50 stale, then a fresh one, then 20 again; the second key is stale at one moment, which has no length.
    #[test]
    fn stale_time_is_that_of_reads_that_follow_each_other() {
        let history = [&history()[..], &history()[..]].concat();
        let mut reads = vec![hit(1, 210, 211), hit(1, 260, 261), hit(3, 310, 311), hit(2, 320, 321)];
        reads.extend([hit(2, 340, 341), hit(3, 350, 351), Read::new(1, Origin::Cache, 1, 500, 501)]);
        let findings = judged(&history, &reads, Vec::new());
        assert_eq!((findings.stale, findings.stale_time), (5, Duration::from_micros(70)));
    }

    /// The nines: 2 was acknowledged at 200 and last missed a second and a bit later; 3 was never missed for so long.
    #[test]
    fn a_write_is_consistent_when_all_later_reads_saw_it() {
        let history =
            [KeyHistory::new(1, vec![write(2, 100, 200), write(3, 1_100_000, 1_200_000)]).expect("versions")];
        let reads =
            [hit(1, 1_000_201, 1_000_202), hit(2, 1_200_100, 1_200_101), hit(3, 2_000_000, 2_000_001)];
        let within = |end| check(&history, &mut reads.to_vec(), &Applied::default(), end).within;
        let of = |writes, consistent| Consistent { writes, consistent };
        assert_eq!(within(100 * SECOND), [of(2, 0), of(2, 1), of(2, 2)]);
        assert_eq!(within(2 * SECOND), [of(2, 0), of(1, 0), of(0, 0)], "a minute has not passed");
    }
}
