//! The table under threads: the feed, clients, and sweeps all at once.
//!
//! Positions stand for data: a source that shows everything up to `n` gives data `n`. So a fill is wrong exactly
//! if its data is below the key's last write that was fenced before the fill was judged.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use super::*;

const KEYS: u64 = 48;
const CLIENTS: usize = 3;
const MAX_LEASES: usize = 24;
/// The test runs until all of this has happened, however the threads are scheduled.
const WRITES: u64 = 40_000;
const FRESH: u64 = 2_000;
/// Where so many fills were judged and not enough of them fresh, something is wrong.
const JUDGED: u64 = 20_000_000;

#[derive(Default)]
struct Shared {
    now: AtomicU64,
    /// What the replica shows.
    visible: AtomicU64,
    /// The last write of each key whose fence stands.
    fenced: Vec<AtomicU64>,
    /// A fill that is in flight for as long as it is written here: its number and its key.
    in_flight: [AtomicU64; CLIENTS],
    judged: AtomicU64,
    fresh: AtomicU64,
    done: AtomicBool,
}

impl Shared {
    fn enough(&self) -> bool {
        self.fresh.load(SeqCst) >= FRESH || self.judged.load(SeqCst) >= JUDGED
    }
}

/// Whoever ends, be it by a panic, ends the others.
struct Done<'a>(&'a Shared);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, SeqCst);
    }
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

fn sees_up_to(lsn: u64) -> Snapshot {
    Snapshot::new(Xid(lsn + 1), Xid(lsn + 1), Vec::new()).expect("a snapshot")
}

/// Transaction `n` ends at position `n`. There is a replica to read from, and the primary shows what it ever showed.
fn feed(fence: &Fence, shared: &Shared) -> u64 {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut draining = Vec::new();
    let (mut generation, mut primary) = (1, 100);
    // No further than what the feed has delivered, as `Settlement` has it.
    let settle = |generation, replica: u64, primary: u64| {
        let snapshot = Some(Arc::new(sees_up_to(primary)));
        let (lsn, primary_lsn) = (Lsn(replica.min(primary)), Lsn(primary));
        let settled = Settled { lsn, primary_lsn, primary: snapshot, sources: Some(generation) };
        fence.settle(&settled, shared.now.load(SeqCst));
    };
    let mut lsn = 100;
    while !shared.done.load(SeqCst) && (lsn < 100 + WRITES || !shared.enough()) {
        lsn += 1;
        let key = dice.roll(KEYS);
        // Visible before the feed brings it, or a while after.
        let ahead = dice.roll(3) == 0;
        if ahead {
            shared.visible.store(lsn, SeqCst);
        }
        let before: Vec<u64> = shared.in_flight.iter().map(|fill| fill.load(SeqCst)).collect();
        draining.clear();
        fence.write(KeyHash(key), Write { xid: Xid(lsn), lsn: Lsn(lsn) }, &mut draining);
        for (fill, slot) in before.into_iter().zip(&shared.in_flight) {
            if fill > 0 && fill % KEYS == key && slot.load(SeqCst) == fill {
                assert!(draining.contains(&(KeyHash(key), FillId(fill))), "a fill in flight was missed");
            }
        }
        shared.fenced[key as usize].store(lsn, SeqCst);
        if dice.roll(4) == 0 {
            shared.visible.store(lsn, SeqCst);
            primary = lsn;
            settle(generation, lsn, primary);
        }
        if dice.roll(50) == 0 {
            // The replica crashed. It is noticed before anybody reads what is older.
            generation += 1;
            let older = shared.visible.load(SeqCst) - dice.roll(50);
            settle(generation, older, primary);
            shared.visible.store(older, SeqCst);
        }
        if dice.roll(8) == 0 {
            shared.now.fetch_add(1, SeqCst);
        }
        if dice.roll(4_000) == 0 {
            generation += 1;
            fence.restart(Lsn(lsn));
            primary = lsn;
            settle(generation, shared.visible.load(SeqCst), primary);
        }
    }
    lsn
}

fn client(fence: &Fence, shared: &Shared, number: usize) {
    let mut dice = Dice(0xd1b5_4a32_d192_ed03 ^ ((number as u64 + 1) << 32));
    let conn = ConnId(number as u64);
    let mut next = number as u64 + 1;
    while !shared.done.load(SeqCst) {
        let key = dice.roll(KEYS);
        next += CLIENTS as u64;
        let id = FillId(next * KEYS + key);
        let way = dice.roll(4);
        if way < 2 {
            fence.miss(KeyHash(key), conn, shared.now.load(SeqCst));
        }
        let data = shared.visible.load(SeqCst);
        if way == 0 && dice.roll(4) == 0 {
            continue; // This client never fills what it missed.
        }
        let data = if way < 2 { data } else { data.saturating_sub(dice.roll(80)) };
        let evidence = match way {
            2 => Some(Evidence::Lsn(Lsn(data))),
            3 => Some(Evidence::Snapshot(sees_up_to(data))),
            _ => None,
        };
        let fenced = shared.fenced[key as usize].load(SeqCst);
        let fill = Fill {
            id,
            conn,
            guards: NO_GUARDS,
            evidence: evidence.as_ref(),
            version: None,
            lease: LeaseRule::Connection,
            part: false,
        };
        let now = shared.now.load(SeqCst);
        let (verdict, ruling) = fence.admit(KeyHash(key), &fill, now, |verdict| match verdict {
            Verdict::Fresh => Ruling::Forward,
            Verdict::Stale(_) | Verdict::Unproven(_) => Ruling::Refuse,
        });
        shared.judged.fetch_add(1, SeqCst);
        if ruling == Ruling::Forward {
            assert!(
                data >= fenced,
                "{fill:?} of {key} with data at {data} is {verdict:?}; fenced at {fenced}"
            );
            shared.fresh.fetch_add(1, SeqCst);
            shared.in_flight[number].store(id.0, SeqCst);
            for _ in 0..dice.roll(50) {
                std::hint::spin_loop();
            }
            shared.in_flight[number].store(0, SeqCst);
            fence.finish(KeyHash(key), id);
        }
    }
}

#[test]
fn no_thread_gets_an_old_value_past_the_others() {
    let limits = Limits {
        history: 20,
        longest_cap: 60_000,
        lease_ttl: 10,
        max_keys: 12,
        max_leases: MAX_LEASES,
        guards: 0,
        shards: 2,
    };
    let fence = Fence::new(limits);
    let empty = fence.size();
    fence.restart(Lsn(100));
    let fenced = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let shared = Shared { fenced, ..Shared::default() };
    shared.visible.store(100, SeqCst);
    let end = thread::scope(|scope| {
        let (fence, shared) = (&fence, &shared);
        for number in 0..CLIENTS {
            scope.spawn(move || {
                let _done = Done(shared);
                client(fence, shared, number);
            });
        }
        scope.spawn(move || {
            let _done = Done(shared);
            while !shared.done.load(SeqCst) {
                fence.sweep(shared.now.load(SeqCst));
                let size = fence.size();
                assert!(size.keys <= KEYS as usize, "{size:?}");
                // Each of the clients may have found room at once, and a fill may leave a lease and what is spent of it.
                assert!(size.leases <= 2 * (MAX_LEASES + CLIENTS), "{size:?}");
                assert!(fence.leases_by_walk() <= 2 * (MAX_LEASES + CLIENTS));
            }
        });
        let _done = Done(shared);
        feed(fence, shared)
    });
    let (fresh, judged) = (shared.fresh.load(SeqCst), shared.judged.load(SeqCst));
    assert!(fresh >= FRESH, "only {fresh} of {judged} fills were fresh");
    // Afterwards everything can be forgotten, and the counts agree that it was.
    let end = polled(end, &sees_up_to(end).to_string());
    fence.settle(&end, 1_000_000);
    fence.settle(&end, 2_000_000);
    fence.sweep(2_000_000);
    assert_eq!(fence.size(), empty);
}
