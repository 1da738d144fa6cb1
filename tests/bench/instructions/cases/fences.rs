//! The fence's table: fills that are judged, writes, and what is dropped.
//!
//! Where keys fall in the table depends on their hashes, so these are the same in every run, and the table has few locks:
//! where each is of many keys, all of them grow as often in every run, whatever the hashes are (those of the feed are seeded).

use std::hint::black_box;

use cachefence::fence::{
    ConnId, Evidence, Fence, Fill, FillId, GuardId, KeyHash, LeaseRule, Limits, Ruling, Settled, Verdict,
    Write,
};
use cachefence::position::{Lsn, Snapshot, Xid};

use super::Listed;
use crate::Fallible;
use crate::meter::Meter;

pub const CASES: &[Listed] = &[
    ("fence: a miss, and its fill", by_lease),
    ("fence: a fill with a snapshot", |meter| asof(meter, snapshot(2_000_000)?)),
    ("fence: a fill with a position", |meter| asof(meter, Evidence::Lsn(NOW))),
    ("fence: a fill that is refused", refused),
    ("fence: a commit of 1 new key", |meter| commits(meter, 1, 1000)),
    ("fence: a commit of 1,000 new keys", |meter| commits(meter, 1000, 20)),
    ("fence: a commit of 1,000 known keys", rewrites),
    ("fence: a sweep of 10,000 keys that drops all", |meter| sweep(meter, true)),
    ("fence: a sweep of 10,000 keys that drops none", |meter| sweep(meter, false)),
];

/// Keys that are in the table before.
const KEYS: u64 = 50_000;
/// A position behind all of their writes.
const NOW: Lsn = Lsn(100_000_000);

/// As the proxy makes it, but for the number of locks, and begun.
pub fn empty() -> Fence {
    let fence = Fence::new(Limits {
        history: 60_000,
        longest_cap: 60_000,
        lease_ttl: 5_000,
        max_keys: 4_000_000,
        max_leases: 1_000_000,
        guards: 10,
        shards: 16,
    });
    fence.restart(Lsn(1));
    fence
}

/// With keys in it that were written lately, and all settled.
fn full() -> Fallible<Fence> {
    let fence = empty();
    (0..KEYS).for_each(|n| write(&fence, n, 1000 + n));
    settle(&fence, NOW, 1_000)?;
    Ok(fence)
}

fn settle(fence: &Fence, lsn: Lsn, now: u64) -> Fallible<()> {
    let primary = Some(Snapshot::new(Xid(1_000_000), Xid(1_000_000), Vec::new())?.into());
    fence.settle(&Settled { lsn, primary_lsn: lsn, primary, sources: Some(1) }, now);
    Ok(())
}

fn hash(n: u64) -> KeyHash {
    let mixed = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    KeyHash((mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93))
}

fn write(fence: &Fence, key: u64, at: u64) {
    fence.write(hash(key), Write { xid: Xid(at), lsn: Lsn(at) }, &mut Vec::new());
}

/// Evidence that has seen every transaction below `xid`.
fn snapshot(xid: u64) -> Fallible<Evidence> {
    let running = (1..4).map(|n| Xid(xid - n)).collect();
    Ok(Evidence::Snapshot(Snapshot::new(Xid(xid - 3), Xid(xid), running)?))
}

fn fill(id: u64, evidence: Option<&Evidence>) -> Fill<'_> {
    const GUARDS: &[GuardId] = &[GuardId(0)];
    let (id, conn, lease) = (FillId(id), ConnId(1), LeaseRule::Connection);
    Fill { id, conn, guards: GUARDS, evidence, version: None, lease, part: false }
}

/// Judged, and answered if it is let in.
fn through(fence: &Fence, key: KeyHash, fill: &Fill<'_>) -> Verdict {
    let rule = |verdict| if verdict == Verdict::Fresh { Ruling::Forward } else { Ruling::Refuse };
    let (verdict, ruling) = fence.admit(key, fill, 2_000, rule);
    if ruling == Ruling::Forward {
        fence.answered(key, fill.id, true, 2_000);
    }
    verdict
}

fn by_lease(meter: &mut Meter) -> Fallible<()> {
    let fence = full()?;
    let mut n = 0;
    let mut once = || {
        n += 1;
        let key = black_box(hash(n));
        fence.miss(key, ConnId(1), 2_000);
        through(&fence, key, &fill(n, None))
    };
    expect(once(), |verdict| verdict == Verdict::Fresh)?;
    meter.repeat(1000, once);
    Ok(())
}

fn asof(meter: &mut Meter, evidence: Evidence) -> Fallible<()> {
    let fence = full()?;
    let mut n = 0;
    let mut once = || {
        n += 1;
        through(&fence, black_box(hash(n)), &fill(n, Some(&evidence)))
    };
    expect(once(), |verdict| verdict == Verdict::Fresh)?;
    meter.repeat(1000, once);
    Ok(())
}

fn refused(meter: &mut Meter) -> Fallible<()> {
    let fence = full()?;
    let evidence = Evidence::Lsn(Lsn(1000));
    let mut n = 0;
    let mut once = || {
        n += 1;
        through(&fence, black_box(hash(n)), &fill(n, Some(&evidence)))
    };
    expect(once(), |verdict| matches!(verdict, Verdict::Stale(_)))?;
    meter.repeat(1000, once);
    Ok(())
}

fn expect(verdict: Verdict, is_right: impl Fn(Verdict) -> bool) -> Fallible<()> {
    if is_right(verdict) { Ok(()) } else { Err(format!("the verdict is {verdict:?}").into()) }
}

fn commits(meter: &mut Meter, keys: u64, times: u32) -> Fallible<()> {
    let fence = full()?;
    let (mut next, mut at) = (KEYS, NOW.0);
    meter.repeat(times, || {
        at += 1;
        (next..next + keys).for_each(|n| write(&fence, black_box(n), at));
        next += keys;
    });
    Ok(())
}

/// Keys whose last write is remembered, and not settled for the length of a history.
fn rewrites(meter: &mut Meter) -> Fallible<()> {
    let fence = full()?;
    let (mut next, mut at) = (0, NOW.0);
    meter.repeat(20, || {
        at += 1;
        (next..next + 1000).for_each(|n| write(&fence, black_box(n), at));
        next += 1000;
    });
    Ok(())
}

fn sweep(meter: &mut Meter, drops: bool) -> Fallible<()> {
    let made = || -> Fallible<Fence> {
        let fence = empty();
        (0..10_000).for_each(|n| write(&fence, n, 1000 + n));
        settle(&fence, NOW, 1_000)?;
        if drops {
            settle(&fence, NOW, 100_000)?;
        }
        Ok(fence)
    };
    let left = |fence: &Fence| {
        fence.sweep(100_000);
        fence.size().keys
    };
    let expected = if drops { 0 } else { 10_000 };
    if left(&made()?) != expected {
        return Err("the sweep left something else".into());
    }
    meter.repeat_with(5, made, |fence| fence.as_ref().map(left).unwrap_or_default());
    Ok(())
}
