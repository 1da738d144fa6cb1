//! Which commits every source already shows.

use super::*;

fn write(xid: u64, lsn: u64) -> Write {
    Write { xid: Xid(xid), lsn: Lsn(lsn) }
}

/// A settlement that goes on at position 100 with its sources in sight, the replicas at 100.
fn going_on(sources: &[SourceKind]) -> Settlement {
    let mut settlement = Settlement::new(sources);
    settlement.restart(Lsn(100), false);
    settlement.primary(snapshot("100:100:"));
    for (source, kind) in sources.iter().enumerate() {
        settlement.replica_if(*kind, source, 100);
    }
    assert_eq!(settlement.settled().lsn, Lsn(100));
    settlement
}

impl Settlement {
    fn replica_if(&mut self, kind: SourceKind, source: usize, replay: u64) {
        if kind == SourceKind::Replica {
            self.replica(source, Lsn(replay));
        }
    }

    fn deliver(&mut self, xid: u64, lsn: u64) {
        self.received(write(xid, lsn));
        self.advanced(Lsn(lsn));
    }

    fn at(&self) -> (u64, u64) {
        let settled = self.settled();
        (settled.lsn.0, settled.primary_lsn.0)
    }
}

const PRIMARY: &[SourceKind] = &[SourceKind::Primary];
const BOTH: &[SourceKind] = &[SourceKind::Primary, SourceKind::Replica];

#[test]
fn nothing_is_settled_at_first() {
    let mut settlement = Settlement::new(BOTH);
    assert_eq!(settlement.at(), (0, 0));
    assert_eq!(settlement.settled().sources, None);
    settlement.restart(Lsn(100), false);
    assert_eq!(settlement.at(), (0, 0), "nothing has been polled");
    settlement.primary(snapshot("100:100:"));
    assert_eq!(settlement.at(), (0, 100));
    assert_eq!(settlement.settled().sources, None, "one source is out of sight");
    settlement.replica(1, Lsn(150));
    assert_eq!(settlement.at(), (100, 100));
    assert!(settlement.settled().sources.is_some());
}

#[test]
fn the_feed_runs_ahead_of_visibility() {
    // F1: the commit of 105 is here; the primary does not show it, and its snapshot says so.
    let mut settlement = going_on(PRIMARY);
    settlement.deliver(105, 200);
    assert_eq!(settlement.at(), (199, 199));
    assert!(settlement.unsettled());
    settlement.primary(snapshot("105:105:"));
    settlement.advanced(Lsn(900));
    settlement.primary(snapshot("105:110:105"));
    assert_eq!(settlement.at(), (199, 199));
    settlement.primary(snapshot("106:110:"));
    assert_eq!(settlement.at(), (900, 900));
    assert!(!settlement.unsettled());
}

#[test]
fn settled_is_a_prefix_when_commits_become_visible_out_of_order() {
    let mut settlement = going_on(PRIMARY);
    settlement.deliver(105, 200);
    settlement.deliver(106, 300);
    settlement.deliver(107, 400);
    settlement.primary(snapshot("105:108:105,107"));
    assert_eq!(settlement.at(), (199, 199));
    settlement.primary(snapshot("107:108:107"));
    assert_eq!(settlement.at(), (399, 399));
    settlement.primary(snapshot("108:108:"));
    assert_eq!(settlement.at(), (400, 400));
}

#[test]
fn settled_never_goes_beyond_what_was_received() {
    let mut settlement = going_on(BOTH);
    settlement.primary(snapshot("500:500:"));
    settlement.replica(1, Lsn(5_000));
    assert_eq!(settlement.at(), (100, 100));
    settlement.advanced(Lsn(180));
    assert_eq!(settlement.at(), (180, 180));
    // A keepalive from before does not take it back.
    settlement.advanced(Lsn(170));
    assert_eq!(settlement.at(), (180, 180));
}

#[test]
fn a_replica_counts_from_the_end_of_the_commit() {
    let mut settlement = going_on(BOTH);
    settlement.deliver(105, 200);
    settlement.primary(snapshot("106:106:"));
    settlement.replica(1, Lsn(199));
    assert_eq!(settlement.at(), (199, 200));
    assert!(settlement.unsettled());
    settlement.replica(1, Lsn(200));
    assert_eq!(settlement.at(), (200, 200));
    assert!(!settlement.unsettled());
}

#[test]
fn the_primary_counts_only_if_it_is_a_source() {
    let mut settlement = going_on(&[SourceKind::Replica, SourceKind::Replica]);
    settlement.deliver(105, 200);
    settlement.replica(0, Lsn(250));
    settlement.replica(1, Lsn(220));
    assert_eq!(settlement.at(), (200, 199));
}

#[test]
fn a_commit_that_is_sent_again_is_not_waited_for_again() {
    let mut settlement = going_on(PRIMARY);
    settlement.deliver(105, 200);
    settlement.deliver(106, 300);
    settlement.primary(snapshot("106:107:106"));
    settlement.deliver(105, 200);
    settlement.deliver(106, 300);
    assert_eq!(settlement.at(), (299, 299));
    settlement.primary(snapshot("107:107:"));
    assert_eq!(settlement.at(), (300, 300));
}

#[test]
fn a_replica_that_goes_back_begins_a_generation() {
    let mut settlement = going_on(BOTH);
    settlement.advanced(Lsn(200));
    settlement.replica(1, Lsn(200));
    let before = settlement.settled().sources;
    settlement.replica(1, Lsn(200));
    assert_eq!(settlement.settled().sources, before);
    settlement.replica(1, Lsn(199));
    assert_eq!(settlement.at(), (199, 200), "settled is not monotone");
    assert_ne!(settlement.settled().sources, before);
    assert!(settlement.settled().sources.is_some());
}

#[test]
fn a_lost_source_holds_what_is_settled_and_voids_what_was() {
    for (lost, sources) in [(0, BOTH), (1, BOTH), (0, PRIMARY)] {
        let mut settlement = going_on(sources);
        let before = settlement.settled().sources;
        assert!(before.is_some());
        settlement.lost(lost);
        assert_eq!(settlement.settled().sources, None);
        settlement.lost(lost);
        settlement.primary(snapshot("101:101:"));
        settlement.replica_if(sources[lost], lost, 100);
        let after = settlement.settled().sources;
        assert!(after.is_some() && after != before, "even where it is back as it was");
    }
    let mut settlement = going_on(BOTH);
    settlement.lost(7);
    settlement.replica(7, Lsn(1));
    assert_eq!(settlement.at(), (100, 100), "no such source");
}

#[test]
fn a_lost_replica_holds_the_position() {
    let mut settlement = going_on(BOTH);
    settlement.lost(1);
    settlement.deliver(105, 200);
    settlement.primary(snapshot("106:106:"));
    assert_eq!(settlement.at(), (100, 200));
    assert!(settlement.unsettled());
    assert_eq!(settlement.source(1), Some((Lsn(100), false)));
    assert_eq!(settlement.source(0), Some((Lsn(200), true)));
    assert_eq!(settlement.source(2), None);
}

/// A fresh slot at position 100.
fn fresh() -> Settlement {
    let mut settlement = Settlement::new(PRIMARY);
    settlement.restart(Lsn(100), true);
    settlement
}

#[test]
fn a_fresh_slot_settles_nothing_until_its_suspects_are_known() {
    let mut settlement = fresh();
    assert!(settlement.wants_suspects());
    settlement.primary(snapshot("100:100:"));
    assert_eq!(settlement.at(), (0, 0));
    assert!(settlement.unsettled());
    settlement.suspect(&snapshot("100:100:"), Xid(100));
    assert!(!settlement.wants_suspects());
    settlement.primary(snapshot("100:100:"));
    assert_eq!(settlement.at(), (100, 100));
    assert!(!settlement.unsettled());
}

#[test]
fn suspects_hold_a_fresh_slot_until_they_end_arrive_or_are_seen_idle() {
    // 90 and 95 run; 103 and 104 had begun when the slot was made, above the snapshot's xmax.
    let mut settlement = fresh();
    let first = snapshot("90:103:90,95");
    settlement.suspect(&first, Xid(105));
    settlement.primary(first);
    assert_eq!(settlement.suspects(), [Xid(90), Xid(95), Xid(103), Xid(104)]);
    assert_eq!(settlement.at(), (0, 0));
    // 95 ends.
    settlement.primary(snapshot("90:103:90"));
    // 103 arrives: it waits in the queue like every commit.
    settlement.deliver(103, 200);
    // 90 is idle in transaction: its commit, if any, will come through the feed.
    settlement.seen_idle(&[Xid(90), Xid(77)]);
    assert_eq!(settlement.suspects(), [Xid(104)]);
    assert_eq!(settlement.at(), (0, 0));
    settlement.primary(snapshot("90:105:90,103"));
    assert_eq!(settlement.suspects(), []);
    assert_eq!(settlement.at(), (199, 199));
    settlement.primary(snapshot("90:105:90"));
    assert_eq!(settlement.at(), (200, 200));
    // Said once only.
    settlement.suspect(&snapshot("1:1:"), Xid(200));
    assert_eq!(settlement.suspects(), []);
}

#[test]
fn a_commit_that_arrived_already_is_no_suspect() {
    let mut settlement = fresh();
    settlement.deliver(95, 200);
    settlement.suspect(&snapshot("95:100:95"), Xid(100));
    assert_eq!(settlement.suspects(), []);
    settlement.primary(snapshot("95:100:95"));
    assert_eq!(settlement.at(), (199, 199));
}

#[test]
fn a_restart_forgets_the_history_before() {
    let mut settlement = going_on(BOTH);
    settlement.deliver(105, 20_000);
    let before = settlement.settled().sources;
    settlement.restart(Lsn(50), false);
    assert_eq!(settlement.at(), (0, 0));
    assert_eq!(settlement.settled().sources, None);
    assert!(settlement.settled().primary.is_none());
    settlement.primary(snapshot("10:10:"));
    settlement.replica(1, Lsn(60));
    assert_eq!(settlement.at(), (50, 50));
    assert_ne!(settlement.settled().sources, before);
    settlement.deliver(10, 70);
    assert_eq!(settlement.at(), (60, 69));
}

#[test]
fn a_queue_that_overflows_is_folded_and_settles_late() {
    let mut settlement = going_on(PRIMARY).with_queue_of(4);
    for n in 0..10 {
        settlement.deliver(110 + n, 200 + n);
    }
    assert_eq!(settlement.at(), (199, 199), "never beyond the first that was folded");
    // 110..=117 were folded. All of them are visible, but while something as old runs, nobody knows.
    settlement.primary(snapshot("105:118:105"));
    assert_eq!(settlement.at(), (199, 199));
    settlement.primary(snapshot("117:118:117"));
    assert_eq!(settlement.at(), (199, 199));
    assert!(settlement.unsettled());
    settlement.primary(snapshot("118:119:118"));
    assert_eq!(settlement.at(), (207, 207), "those in the queue still count one by one");
    settlement.primary(snapshot("119:120:119"));
    assert_eq!(settlement.at(), (208, 208));
    settlement.primary(snapshot("120:120:"));
    assert_eq!(settlement.at(), (209, 209));
    assert!(!settlement.unsettled());
}

#[test]
fn other_sources_end_what_was_concluded_from_those_before() {
    let mut settlement = going_on(PRIMARY);
    let before = settlement.settled().sources;
    assert!(before.is_some());
    settlement.set_sources(BOTH);
    assert_eq!(settlement.settled().sources, None, "nobody has looked at the new one");
    settlement.primary(snapshot("101:101:"));
    assert_eq!(settlement.settled().sources, None);
    settlement.replica(1, Lsn(60));
    assert_eq!(settlement.at(), (60, 100), "it is behind, and holds what is settled");
    let with_replica = settlement.settled().sources;
    assert!(with_replica.is_some() && with_replica != before, "no lease of before counts");
    settlement.set_sources(PRIMARY);
    settlement.primary(snapshot("101:101:"));
    assert_eq!(settlement.at(), (100, 100), "it holds nothing any more");
    assert_ne!(settlement.settled().sources, with_replica);
}

/// A guard was added. A commit of its rows went by before, unguarded, and is not visible yet.
#[test]
fn what_was_not_guarded_before_is_waited_for() {
    let mut settlement = going_on(PRIMARY);
    settlement.deliver(106, 200);
    settlement.primary(snapshot("105:107:105"));
    assert_eq!(settlement.at(), (200, 200), "nobody knows 105");
    settlement.doubt();
    settlement.advanced(Lsn(220));
    settlement.primary(snapshot("105:107:105"));
    assert_eq!(settlement.at(), (200, 200), "who is suspect has to be found");
    settlement.suspect(&snapshot("105:107:105"), Xid(108));
    // It comes once more, by the new guards, from before what had been delivered: that does not make it visible.
    settlement.deliver(105, 150);
    settlement.primary(snapshot("105:108:105"));
    assert_eq!(settlement.at(), (200, 200));
    settlement.primary(snapshot("108:108:"));
    assert_eq!(settlement.at(), (220, 220));
}

/// A snapshot of before cannot stand for what was committed unguarded since: it is not seen there.
#[test]
fn what_was_not_guarded_before_is_not_covered_by_a_snapshot_of_before() {
    let mut settlement = going_on(PRIMARY);
    settlement.primary(snapshot("105:105:"));
    settlement.doubt();
    // 105 has committed unguarded, and nobody runs any more.
    settlement.suspect(&snapshot("107:107:"), Xid(107));
    let before = settlement.at();
    settlement.advanced(Lsn(300));
    assert_eq!(settlement.at(), before, "the last poll was before");
    settlement.primary(snapshot("107:107:"));
    assert_eq!(settlement.at(), (300, 300));
    let seen = settlement.settled().primary.expect("a snapshot");
    assert!(seen.sees(Xid(105)));
}
