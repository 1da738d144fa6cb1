//! The sources: what is polled of them, and what is settled.

use super::*;

/// A poll, as `settled` and `snapshot` at a time.
pub(super) struct Poll {
    pub(super) at: Millis,
    pub(super) settled: u64,
    pub(super) primary: u64,
    pub(super) snapshot: Snapshot,
}

impl Model {
    pub(super) fn poll(&mut self, idle: bool) {
        let snapshot = self.taken.take().unwrap_or_else(|| self.world.snapshot());
        if self.settlement.wants_suspects() {
            self.settlement.suspect(&snapshot, self.world.next_xid());
        }
        if idle {
            let open = self.world.txns.iter().filter(|txn| txn.state == State::Open);
            self.settlement.seen_idle(&open.map(|txn| txn.xid).collect::<Vec<_>>());
        }
        self.settlement.primary(snapshot.clone());
        let shown = self.writes.iter().filter(|txn| snapshot.sees(self.world.txns[**txn].xid));
        self.shown |= shown.fold(0, |shown, txn| shown | 1 << txn);
        self.polled = Some(snapshot);
        for (source, in_sight) in self.in_sight.iter_mut().enumerate() {
            *in_sight |= self.setting.sources[source] == SourceKind::Primary;
        }
        self.settle();
    }

    pub(super) fn poll_replica(&mut self, source: usize) {
        if self.setting.sources[source] == SourceKind::Replica {
            let replay = self.world.replicas[source].replay;
            self.settlement.replica(source, Lsn(replay));
            (self.replayed[source], self.in_sight[source]) = (replay, true);
            self.settle();
        }
    }

    /// That it went back is noticed before anybody fills from it.
    pub(super) fn back(&mut self, source: usize, to: u8, lost: bool) {
        if self.setting.sources[source] == SourceKind::Primary {
            return;
        }
        let replica = &mut self.world.replicas[source];
        replica.crashes += 1;
        replica.replay -= (replica.replay - START) * u64::from(to % 5) / 4;
        let replay = replica.replay;
        if lost {
            self.lose(source);
        } else if !self.in_sight[source] || replay < self.replayed[source] {
            self.generation += u32::from(self.in_sight[source]);
            self.poll_replica(source);
        }
    }

    pub(super) fn lose(&mut self, source: usize) {
        self.settlement.lost(source);
        self.generation += u32::from(self.in_sight[source]);
        self.in_sight[source] = false;
        self.settle();
    }

    /// Works out from all commits what is settled, compares, and hands it to the fence.
    pub(super) fn settle(&mut self) {
        let settled = self.settlement.settled();
        if self.polled.is_some() && !self.settlement.wants_suspects() && self.settlement.suspects().is_empty()
        {
            let hidden = self.writes.iter().find(|txn| self.shown & 1 << **txn == 0);
            let prefix = hidden.map_or(self.received, |txn| self.world.lsn(*txn) - 1);
            self.primary = self.primary.max(prefix.min(self.received));
        }
        assert_eq!(settled.primary_lsn, Lsn(self.primary), "settled on the primary");
        let on = |source: usize| match self.setting.sources[source] {
            SourceKind::Primary => self.primary,
            SourceKind::Replica => self.replayed[source].min(self.received),
        };
        self.settled = (0..self.in_sight.len()).map(on).min().unwrap_or(0);
        assert_eq!(settled.lsn, Lsn(self.settled), "settled on every source");
        assert_eq!(settled.sources.is_some(), self.sources().is_some(), "whether all sources are in sight");
        // And it is true: every commit up to there can be seen.
        let all = |lsn| self.world.guarded(lsn);
        assert_eq!(
            all(self.primary) & !self.world.seen(Node::Primary),
            0,
            "settled but hidden on the primary"
        );
        if settled.sources.is_some() {
            for source in 0..self.in_sight.len() {
                let node = match self.setting.sources[source] {
                    SourceKind::Primary => Node::Primary,
                    SourceKind::Replica => Node::Replica(source, 0),
                };
                assert_eq!(all(self.settled) & !self.world.seen(node), 0, "settled but hidden on {node:?}");
            }
        }
        if let Some(snapshot) = &self.polled {
            let settled = self.settled.min(self.primary);
            self.polls.push(Poll {
                at: self.now,
                settled,
                primary: self.primary,
                snapshot: snapshot.clone(),
            });
        }
        self.fence.settle(&settled, self.now);
    }

    pub(super) fn sources(&self) -> Option<u32> {
        self.in_sight.iter().all(|seen| *seen).then_some(self.generation)
    }
}
