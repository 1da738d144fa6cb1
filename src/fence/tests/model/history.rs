//! What can happen, how often, and under which settings.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
pub(super) enum Op {
    Begin {
        keys: u8,
        wholly: u8,
    },
    Commit(u8),
    Abort(u8),
    Show(u8),
    /// The first key is written this often in quick succession, the feed just behind.
    Burst(u8),
    /// The feed brings a commit.
    Deliver,
    /// The feed says how far it has come.
    Keepalive,
    /// The feed reconnects, and sends again what was not confirmed.
    Resend,
    /// The slot is lost, or the proxy starts anew at what it confirmed: the same process, or another one, which knows
    /// nothing of the misses before.
    Restart {
        fresh: bool,
        successor: bool,
    },
    /// A snapshot is taken on the primary; the answer is on its way.
    Take,
    /// The answer arrives, or a whole poll happens at once.
    Poll {
        idle: bool,
    },
    Replay {
        replica: u8,
        to: u8,
    },
    PollReplica(u8),
    /// A replica crashes and comes back older.
    Back {
        replica: u8,
        to: u8,
        lost: bool,
    },
    Lose(u8),
    Tick(u8),
    Sweep,
    /// A client reads a key, and is told that it is not there.
    Miss {
        key: u8,
        conn: u8,
    },
    /// A client reads a key, is told that it is not there, and asks a node how new it is.
    Ask {
        key: u8,
        conn: u8,
        node: u8,
    },
    /// A client reads the data of a key.
    Read {
        pick: u8,
        node: u8,
    },
    /// A client fills what it has read; perhaps on another connection.
    Fill {
        pick: u8,
        other: Option<u8>,
        part: bool,
    },
    /// A late write-through: old data, without evidence or a miss.
    Through {
        key: u8,
        conn: u8,
    },
    /// Clients miss the first key at once, some before a write and some after it, and some of them fill it, in any order
    /// and by any connection.
    Storm {
        before: Vec<u8>,
        /// The proxy is replaced in between.
        successor: bool,
        after: Vec<u8>,
        /// After the write.
        pause: u8,
        fills: Vec<(u8, u8, bool)>,
    },
    /// Redis answers a fill.
    Finish(u8),
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let (any, yes) = (any::<u8>, any::<bool>);
    let keys = || prop_oneof![4 => (0..6u8).prop_map(|n| 1 << n), 1 => 0..64u8, 3 => Just(1)];
    let wholly = prop_oneof![30 => Just(0), 1 => 1..4u8];
    prop_oneof![
        10 => (keys(), wholly).prop_map(|(keys, wholly)| Op::Begin { keys, wholly }),
        10 => any().prop_map(Op::Commit),
        1 => any().prop_map(Op::Abort),
        9 => any().prop_map(Op::Show),
        1 => (3..14u8).prop_map(Op::Burst),
        13 => Just(Op::Deliver),
        2 => Just(Op::Keepalive),
        1 => Just(Op::Resend),
        1 => (yes(), prop::bool::weighted(0.25))
            .prop_map(|(fresh, successor)| Op::Restart { fresh, successor }),
        2 => Just(Op::Take),
        8 => yes().prop_map(|idle| Op::Poll { idle }),
        5 => (any(), any()).prop_map(|(replica, to)| Op::Replay { replica, to }),
        5 => any().prop_map(Op::PollReplica),
        1 => (any(), any(), yes()).prop_map(|(replica, to, lost)| Op::Back { replica, to, lost }),
        1 => any().prop_map(Op::Lose),
        5 => (1..50u8).prop_map(Op::Tick),
        3 => Just(Op::Sweep),
        14 => (prop_oneof![Just(0), 0..6u8], 0..3u8).prop_map(|(key, conn)| Op::Miss { key, conn }),
        6 => (prop_oneof![Just(0), 0..6u8], 0..3u8, any())
            .prop_map(|(key, conn, node)| Op::Ask { key, conn, node }),
        14 => (any(), any()).prop_map(|(pick, node)| Op::Read { pick, node }),
        14 => (any(), prop::option::weighted(0.5, 0..3u8), prop::bool::weighted(0.3))
            .prop_map(|(pick, other, part)| Op::Fill { pick, other, part }),
        1 => (0..6u8, 0..3u8).prop_map(|(key, conn)| Op::Through { key, conn }),
        3 => storm(),
        6 => any().prop_map(Op::Finish),
    ]
}

fn storm() -> impl Strategy<Value = Op> {
    let conns = || prop::collection::vec(0..3u8, 0..4);
    let fill = (any::<u8>(), 0..3u8, prop::bool::weighted(0.1));
    let pause = prop_oneof![2 => Just(0), 1 => 0..50u8];
    (conns(), prop::bool::weighted(0.05), conns(), pause, prop::collection::vec(fill, 0..6)).prop_map(
        |(before, successor, after, pause, fills)| Op::Storm { before, successor, after, pause, fills },
    )
}

/// What differs from one history to the next.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) sources: &'static [SourceKind],
    pub(super) lease: LeaseRule,
    pub(super) max_keys: usize,
    pub(super) max_leases: usize,
    /// Unproven fills go to Redis.
    pub(super) allow: bool,
}

pub(super) fn setting() -> impl Strategy<Value = Setting> {
    use SourceKind::{Primary, Replica};
    let sources = prop::sample::select(vec![
        &[Primary][..],
        &[Primary, Replica],
        &[Replica, Primary, Replica],
        &[Replica],
    ]);
    let lease =
        prop_oneof![4 => Just(LeaseRule::Connection), 2 => Just(LeaseRule::Key), 1 => Just(LeaseRule::Off)];
    let max_keys = prop_oneof![2 => Just(100), 1 => 1..5usize];
    let max_leases = prop_oneof![3 => Just(100), 1 => 0..4usize];
    (sources, lease, max_keys, max_leases, any::<bool>()).prop_map(
        |(sources, lease, max_keys, max_leases, allow)| Setting {
            sources,
            lease,
            max_keys,
            max_leases,
            allow,
        },
    )
}
