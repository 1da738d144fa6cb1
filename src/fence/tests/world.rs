//! A naive Postgres: it keeps every transaction for ever and knows who can see which.

use super::*;

/// A set of transactions, by their place in [`World::txns`].
pub(super) type Seen = u128;

/// The most transactions in a history: the width of [`Seen`].
const MAX_TXNS: usize = 120;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Open,
    Aborted,
    /// With the end of its commit record.
    Committed(u64),
}

#[derive(Debug)]
pub(super) struct Txn {
    pub xid: Xid,
    /// The keys that it writes, as bits.
    pub keys: u8,
    /// The guards that it truncates, as bits.
    pub wholly: u8,
    pub state: State,
    /// Visible on the primary.
    pub visible: bool,
}

/// What a reader reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Primary,
    /// With the number of its crashes: a session does not survive one.
    Replica(usize, u32),
}

#[derive(Debug, Default)]
pub(super) struct Replica {
    pub replay: u64,
    pub crashes: u32,
}

#[derive(Debug)]
pub(super) struct World {
    pub txns: Vec<Txn>,
    /// Commits in the order of their records.
    pub wal: Vec<usize>,
    end: u64,
    /// The highest xid that has ended.
    ended: u64,
    pub replicas: Vec<Replica>,
}

const FIRST_XID: u64 = 100;
pub(super) const START: u64 = 1_000;

impl World {
    pub fn new(replicas: usize) -> Self {
        let replica = || Replica { replay: START, crashes: 0 };
        Self {
            txns: Vec::new(),
            wal: Vec::new(),
            end: START,
            ended: FIRST_XID - 1,
            replicas: (0..replicas).map(|_| replica()).collect(),
        }
    }

    /// A transaction that writes these keys and truncates these guards, unless there are too many.
    pub fn begin(&mut self, keys: u8, wholly: u8) -> Option<usize> {
        let (place, xid) = (self.txns.len(), self.next_xid());
        (place < MAX_TXNS).then(|| {
            self.txns.push(Txn { xid, keys, wholly, state: State::Open, visible: false });
            place
        })
    }

    pub fn next_xid(&self) -> Xid {
        Xid(FIRST_XID + self.txns.len() as u64)
    }

    /// The `pick`th of the transactions that are so, going round.
    pub fn pick(&self, pick: u8, so: impl Fn(&Txn) -> bool) -> Option<usize> {
        let all: Vec<usize> = (0..self.txns.len()).filter(|n| so(&self.txns[*n])).collect();
        (!all.is_empty()).then(|| all[usize::from(pick) % all.len()])
    }

    pub fn commit(&mut self, txn: usize) {
        // Records lie between the commits, so that there are positions between their ends.
        self.end += 10;
        self.txns[txn].state = State::Committed(self.end);
        self.wal.push(txn);
    }

    pub fn abort(&mut self, txn: usize) {
        self.txns[txn].state = State::Aborted;
        self.ended = self.ended.max(self.txns[txn].xid.0);
    }

    pub fn show(&mut self, txn: usize) {
        self.txns[txn].visible = true;
        self.ended = self.ended.max(self.txns[txn].xid.0);
    }

    /// The end of a transaction's commit record.
    pub fn lsn(&self, txn: usize) -> u64 {
        match self.txns[txn].state {
            State::Committed(lsn) => lsn,
            state => panic!("{state:?} has no position"),
        }
    }

    /// The end of the log.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The place in the log after every commit up to a position.
    pub fn after(&self, position: u64) -> usize {
        self.wal.iter().take_while(|txn| self.lsn(**txn) <= position).count()
    }

    pub fn seen(&self, node: Node) -> Seen {
        let all = self.wal.iter().filter(|txn| match node {
            Node::Primary => self.txns[**txn].visible,
            Node::Replica(replica, _) => self.lsn(**txn) <= self.replicas[replica].replay,
        });
        all.fold(0, |seen, txn| seen | 1 << txn)
    }

    /// Every commit of guarded rows up to a position.
    pub fn guarded(&self, position: u64) -> Seen {
        let guarded = |txn: &&usize| self.txns[**txn].keys | self.txns[**txn].wholly != 0;
        let until = self.wal[..self.after(position)].iter();
        until.filter(guarded).fold(0, |seen, txn| seen | 1 << txn)
    }

    /// `pg_current_snapshot()` on the primary.
    pub fn snapshot(&self) -> Snapshot {
        let xmax = self.ended + 1;
        let running = |txn: &&Txn| txn.xid.0 < xmax && txn.state != State::Aborted && !txn.visible;
        let in_progress: Vec<Xid> = self.txns.iter().filter(running).map(|txn| txn.xid).collect();
        let xmin = in_progress.first().copied().unwrap_or(Xid(xmax));
        Snapshot::new(xmin, Xid(xmax), in_progress).expect("a snapshot")
    }
}
