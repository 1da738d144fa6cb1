//! A state of the world: Postgres, Redis, the proxy and its clients. Small, because there are many.

use super::scenario::{Kind, Scenario};

/// The most commits, clients and outstanding misses of a scenario.
pub const COMMITS: usize = 4;
pub const CLIENTS: usize = 3;
pub const LEASES: usize = 6;

/// The clients' values and the cache's are sets of commits: those that had been visible where the value was read.
pub type Commits = u8;
/// A place in the log: so many commits end there or before. Where one commit's record ends, the next one's starts.
pub type Position = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    Primary,
    Replica,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Evidence {
    None,
    Snapshot(Commits),
    Lsn(Position),
}

/// What a client is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Nothing.
    Idle,
    /// Its read was answered as a miss.
    Missed,
    /// It has taken evidence on a node.
    Proven(Node, Evidence),
    /// It has read.
    Holding(Commits, Evidence),
}

/// A fill on its way from the proxy to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flight {
    pub data: Commits,
    /// What was fenced when it was let in: commits after that have to wait for it before they delete.
    pub at: Position,
}

/// A fill that a process before let in, and that nobody waits for.
pub const UNKNOWN: Position = Position::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Client {
    pub phase: Phase,
    pub flight: Option<Flight>,
    /// Fills that it has still to begin.
    pub rounds: u8,
    /// Its miss was answered by a process that is dead.
    pub orphaned: bool,
}

/// Nobody's miss: its own fill has come.
pub const NOBODY: u8 = u8::MAX;

/// An outstanding miss of the key, as the fence remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lease {
    /// Used up: it only objects.
    pub spent: bool,
    pub conn: u8,
    /// What was settled when it was answered.
    pub lsn: Position,
    /// Whose it really is. The proxy does not know.
    pub owner: u8,
}

/// The outstanding misses, in the order in which they were answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Leases {
    all: [Lease; LEASES],
    count: u8,
}

const EMPTY: Lease = Lease { spent: false, conn: 0, lsn: 0, owner: 0 };

impl Leases {
    pub const NONE: Leases = Leases { all: [EMPTY; LEASES], count: 0 };

    pub fn all(&self) -> &[Lease] {
        &self.all[..usize::from(self.count)]
    }

    pub fn all_mut(&mut self) -> &mut [Lease] {
        &mut self.all[..usize::from(self.count)]
    }

    pub fn push(&mut self, lease: Lease) {
        self.all[usize::from(self.count)] = lease;
        self.count += 1;
    }

    pub fn remove(&mut self, place: usize) -> Lease {
        let removed = self.all[place];
        self.all.copy_within(place + 1..usize::from(self.count), place);
        self.count -= 1;
        self.all[usize::from(self.count)] = EMPTY;
        removed
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    // Postgres.
    /// How many transactions have written their commit record. The feed can see these, a replica replay them.
    pub committed: Position,
    /// Those that have left the primary's proc array.
    pub visible: Commits,
    /// Those whose COMMIT has returned. Of interest, and kept, in strict only.
    pub acknowledged: Commits,
    /// How far the replica has replayed.
    pub replay: Position,
    // Redis.
    /// The key's value, if it is there.
    pub cache: Option<Commits>,
    // The proxy.
    pub up: bool,
    /// Where its stream began.
    pub slot: Position,
    pub fenced: Position,
    pub deleted: Position,
    pub confirmed: Position,
    /// What the primary was polled to show, and how far the replica was polled to have replayed.
    pub primary: Position,
    pub replayed: Position,
    pub floor: Position,
    /// Writes up to here are no longer remembered: the floor, unless that is what was mutated.
    pub forgotten: Position,
    /// For each position the first polled snapshot that was known to see everything up to it.
    pub covers: [Option<Commits>; COMMITS + 1],
    pub leases: Leases,
    /// No lease counts, because a predecessor's misses may be outstanding.
    pub distrust: bool,
    pub crashes: u8,
    pub clients: [Client; CLIENTS],
    /// Not known to anybody in the world: up to here bounded promises that nothing older is in the cache.
    pub promised: Position,
}

impl State {
    /// Nothing has happened, and the proxy has polled once.
    pub fn start(scenario: &Scenario) -> Self {
        let client = |n: usize| Client {
            phase: Phase::Idle,
            flight: None,
            rounds: if n < scenario.clients.len() { scenario.rounds } else { 0 },
            orphaned: false,
        };
        let mut covers = [None; COMMITS + 1];
        covers[0] = scenario.has_snapshots().then_some(0);
        Self {
            committed: 0,
            visible: 0,
            acknowledged: 0,
            replay: 0,
            cache: None,
            up: true,
            slot: 0,
            fenced: 0,
            deleted: 0,
            confirmed: 0,
            primary: 0,
            replayed: 0,
            floor: 0,
            forgotten: 0,
            covers,
            leases: Leases::NONE,
            distrust: false,
            crashes: scenario.crashes,
            clients: std::array::from_fn(client),
            promised: 0,
        }
    }

    /// Gives states that differ in names only one form: clients of one kind, connections of the pool, and misses
    /// whose order says nothing.
    pub fn canonical(mut self, scenario: &Scenario) -> Self {
        for n in 1..scenario.clients.len() {
            if scenario.clients[n - 1] == scenario.clients[n] && self.clients[n - 1] > self.clients[n] {
                self.swap_clients(n - 1, n);
            }
        }
        self.sort_leases();
        if scenario.pool == 2 && self.leases.all().iter().any(|l| !l.spent) {
            let mut swapped = self;
            for lease in swapped.leases.all_mut().iter_mut().filter(|l| !l.spent && l.conn < 2) {
                lease.conn = 1 - lease.conn;
            }
            swapped.sort_leases();
            if swapped.leases < self.leases {
                self.leases = swapped.leases;
            }
        }
        self
    }

    fn swap_clients(&mut self, a: usize, b: usize) {
        self.clients.swap(a, b);
        for lease in self.leases.all_mut() {
            if usize::from(lease.owner) == a {
                lease.owner = b as u8;
            } else if usize::from(lease.owner) == b {
                lease.owner = a as u8;
            }
        }
    }

    /// Open misses of one connection stay in their order: the newest is the one that a fill uses up.
    fn sort_leases(&mut self) {
        self.leases
            .all_mut()
            .sort_by_key(|l| (l.spent, if l.spent { (l.lsn, l.owner) } else { (l.conn, 0) }));
        let mut place = 1;
        while place < self.leases.all().len() {
            let (lease, before) = (self.leases.all()[place], self.leases.all()[place - 1]);
            // Two that are spent say no more than one.
            if lease.spent && lease == before && lease.owner == NOBODY {
                self.leases.remove(place);
            } else {
                place += 1;
            }
        }
    }
}

impl Client {
    /// Its miss is outstanding: the fill has not come.
    pub fn awaits(&self) -> bool {
        self.phase != Phase::Idle
    }
}

impl Kind {
    /// It looks at the cache first.
    pub fn misses(self) -> bool {
        matches!(self, Kind::Plain | Kind::Mixed)
    }
}
