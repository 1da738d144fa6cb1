//! What is explored: who takes part, under which contract, and which rule is taken out.

/// What the proxy promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    /// Once the proxy has deleted a commit's keys, nothing older is in the cache.
    Bounded,
    /// Once a commit is acknowledged, nothing older is in the cache. The proxy is a synchronous standby.
    Strict,
}

/// What a commit changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// One of the rows that feed the key.
    Fed(u8),
    /// A row that feeds another key: it moves positions, and no more.
    Other,
}

/// How a client proves its fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not at all: by its miss.
    Plain,
    /// It takes evidence on the primary or on the replica, then reads there. It does not look at the cache first.
    Asof,
    /// It misses, and then does either.
    Mixed,
    /// It reads and fills without a miss and without evidence, on a connection of its own: a late write-through.
    Through,
}

/// Which rule is taken out of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Keys are deleted without waiting for the fills that were let in before the fence.
    NoDrain,
    /// A write is remembered by the position where its commit record starts, not where it ends.
    StartLsn,
    /// Of a key's writes only the last one's xid is remembered, and nothing in the place of the others.
    LastXidOnly,
    /// A fill is judged by its own miss alone, not by the oldest one outstanding.
    OwnMissOnly,
    /// A miss of any connection vouches for a fill.
    AnyConnection,
    /// The primary's evidence is its LSN, not a snapshot.
    PrimaryLsn,
    /// Keys are deleted, and fenced after that.
    DeleteFirst,
    /// Writes are forgotten without raising the floor.
    FloorStays,
    /// A miss that a fill used up vanishes, whatever else is outstanding.
    NothingSpent,
    /// What the feed has received counts as settled on the primary, be it visible or not.
    ReceivedIsSettled,
    /// A new process does not kill its predecessor's connections.
    PredecessorLives,
    /// A new process trusts misses although it does not know its predecessor's.
    NoDistrust,
    /// The floor of a new process is the slot's position, not where the log is flushed.
    FloorAtSlot,
    /// Strict: what was confirmed before a restart counts as visible on the primary.
    NoSuspects,
    /// Bounded: what is deleted is confirmed, be it settled on the primary or not.
    ConfirmUnsettled,
    /// Not a rule of the proxy but a condition of the promise: a miss ends before its fill has come.
    SlowFills,
}

/// A bounded world.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub contract: Contract,
    /// What the commits change, in the order of the log.
    pub rows: &'static [Row],
    pub clients: &'static [Kind],
    /// The connections of the pool that the clients share.
    pub pool: u8,
    /// How many fills each client makes.
    pub rounds: u8,
    pub replica: bool,
    /// How often the proxy may crash.
    pub crashes: u8,
    /// Whether history may be dropped.
    pub forgets: bool,
    /// How many writes of a key are remembered by xid.
    pub xids: u8,
    pub mutation: Option<Mutation>,
}

impl Scenario {
    /// Two clients with a pool of two connections, one fill each, a replica, no crash.
    pub fn new(
        name: &'static str,
        contract: Contract,
        rows: &'static [Row],
        clients: &'static [Kind],
    ) -> Self {
        Self {
            name,
            contract,
            rows,
            clients,
            pool: 2,
            rounds: 1,
            replica: true,
            crashes: 0,
            forgets: false,
            xids: 8,
            mutation: None,
        }
    }

    pub fn without(&self, mutation: Mutation) -> Self {
        Self { mutation: Some(mutation), ..self.clone() }
    }

    pub fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// The commits that change the key, as bits.
    pub fn key(&self) -> u8 {
        let feeds = |(_, row): &(usize, &Row)| **row != Row::Other;
        self.rows.iter().enumerate().filter(feeds).fold(0, |bits, (place, _)| bits | 1 << place)
    }

    /// Whether commit `lsn` changes the key.
    pub fn feeds(&self, lsn: u8) -> bool {
        self.key() & bit(lsn) != 0
    }

    /// Whether snapshots are evidence here, so that it matters what the polled ones saw.
    pub fn has_snapshots(&self) -> bool {
        self.clients.iter().any(|kind| matches!(kind, Kind::Asof | Kind::Mixed))
    }
}

/// Commits are numbered from 1 in the order of the log; a set of them has the bit of each.
pub fn bit(lsn: u8) -> u8 {
    1 << (lsn - 1)
}

/// Every commit up to a position.
pub fn up_to(lsn: u8) -> u8 {
    (1 << lsn) - 1
}
