//! The fence's table with as many keys as it holds by default: what a key takes, and for how long anything else waits while
//! the table grows and is emptied.
//!
//! It is driven in this process by its own interface, with the limits of the proxy's defaults. KEYS changes how many. This
//! has to be the first part: what others have freed would not be seen to be taken.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cachefence::fence::{
    ConnId, Evidence, Fence, Fill, FillId, KeyHash, LeaseRule, Limits, Ruling, Settled, Write,
};
use cachefence::position::{Lsn, Snapshot, Xid};

use crate::{Fallible, median, percentile, setting};

/// The default of `fence.history`, in milliseconds.
const HISTORY: u64 = 60_000;
/// How long the onlooker looks while nothing else happens, to know what the machine does to it.
const ALONE: Duration = Duration::from_secs(5);
/// Keys whose state is asked for between two looks at how long the thread has waited for a core.
const STRIDE: usize = 64;
/// A wait for a core that is none, in nanoseconds.
const UNDISTURBED: u64 = 20_000;

/// All that one round has measured.
struct Round {
    /// Bytes of memory of this process for a key, with all of them there.
    resident: f64,
    /// The same after they have gone.
    left: f64,
    /// What the table says of itself.
    account: f64,
    /// Seconds of CPU: writing all keys, and expiring them.
    writing: f64,
    expiring: f64,
    alone: Pauses,
    growing: Pauses,
    emptied: Pauses,
}

/// What one operation took, in microseconds.
#[derive(Clone, Copy, Default)]
struct Pauses {
    most: f64,
    /// The longest of those during which nobody took the writer's core, less what the onlooker waited for one.
    longest: f64,
    /// As it was by the clock.
    longest_by_clock: f64,
}

pub fn run(rounds: usize) -> Fallible<String> {
    let keys = setting("KEYS", 10_000_000)?;
    let rounds = (0..rounds).map(|_| round(keys)).collect::<Fallible<Vec<_>>>()?;
    Ok(table(keys, &rounds))
}

fn round(keys: u32) -> Fallible<Round> {
    let before = resident()?;
    let fence = Arc::new(Fence::new(Limits {
        history: HISTORY,
        longest_cap: 60_000,
        lease_ttl: 5_000,
        max_keys: keys as usize,
        max_leases: 1_000_000,
        guards: 1,
        shards: 1024,
    }));
    fence.restart(Lsn(1));
    let writer = Thread::this()?;
    let onlooker = Onlooker::start(fence.clone(), keys, writer.clone());
    let alone = onlooker.during(|| std::thread::sleep(ALONE));

    let (mut draining, began) = (Vec::new(), writer.scheduled().0);
    let growing = onlooker.during(|| {
        for number in 0..u64::from(keys) {
            let write = Write { xid: Xid(number + 3), lsn: Lsn(number + 2) };
            fence.write(key(number), write, &mut draining);
        }
    });
    let writing = writer.scheduled().0.saturating_sub(began) as f64 / 1e9;
    let (with_all, size) = (resident()?, fence.size());

    let last = Lsn(u64::from(keys) + 2);
    settle(&fence, last, 0)?;
    let began = writer.scheduled().0;
    let mut settled = Ok(());
    let emptied = onlooker.during(|| {
        // The floor rises when the last write has been settled for the length of a history.
        settled = settle(&fence, Lsn(last.0 + 1), HISTORY + 1);
        fence.sweep(HISTORY + 1);
    });
    settled?;
    let expiring = writer.scheduled().0.saturating_sub(began) as f64 / 1e9;
    onlooker.stop();
    if size.keys != keys as usize || fence.size().keys != 0 {
        return Err(format!("{} keys, and {} after the sweep", size.keys, fence.size().keys).into());
    }
    let per_key = |bytes: u64| bytes.saturating_sub(before) as f64 / f64::from(keys);
    let account = size.bytes as f64 / f64::from(keys);
    let left = per_key(resident()?);
    Ok(Round { resident: per_key(with_all), left, account, writing, expiring, alone, growing, emptied })
}

/// Every commit up to there is visible everywhere.
fn settle(fence: &Fence, lsn: Lsn, now: u64) -> Fallible<()> {
    let snapshot = Arc::new(Snapshot::new(Xid(lsn.0 + 3), Xid(lsn.0 + 3), Vec::new())?);
    let settled = Settled { lsn, primary_lsn: lsn, primary: Some(snapshot), sources: Some(1) };
    fence.settle(&settled, now);
    Ok(())
}

/// The hash of a key: any mixing does (SplitMix64), as long as all of them differ.
fn key(number: u64) -> KeyHash {
    let mut hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    KeyHash(hash ^ (hash >> 31))
}

/// Bytes of memory that this process has.
fn resident() -> Fallible<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kilobytes: u64 = line.trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// A thread of this process, as Linux counts its time.
#[derive(Clone)]
struct Thread(PathBuf);

impl Thread {
    /// The one that asks.
    fn this() -> Fallible<Self> {
        Ok(Self(Path::new("/proc").join(fs::read_link("/proc/thread-self")?).join("schedstat")))
    }

    /// Nanoseconds that it has run, and that it has waited for a core.
    fn scheduled(&self) -> (u64, u64) {
        let schedstat = fs::read_to_string(&self.0).unwrap_or_default();
        let mut fields = schedstat.split_ascii_whitespace().map(|field| field.parse().unwrap_or_default());
        (fields.next().unwrap_or_default(), fields.next().unwrap_or_default())
    }
}

/// A thread that does what the proxy does with a fill and with a read, over and over, and takes the time of each.
struct Onlooker {
    seen: Arc<Seen>,
    thread: std::thread::JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    /// Goes up when what was seen so far is to be told and forgotten.
    chapter: AtomicU64,
    told: std::sync::Mutex<(u64, Pauses)>,
    over: AtomicBool,
}

impl Onlooker {
    fn start(fence: Arc<Fence>, keys: u32, writer: Thread) -> Self {
        let seen = Arc::new(Seen::default());
        let own = seen.clone();
        let thread = std::thread::spawn(move || own.look(&fence, u64::from(keys), &writer));
        Self { seen, thread }
    }

    /// What it has seen while that was done.
    fn during(&self, what: impl FnOnce()) -> Pauses {
        self.next();
        what();
        self.next()
    }

    /// Begins a chapter, and returns what the one before had.
    fn next(&self) -> Pauses {
        let chapter = self.seen.chapter.fetch_add(1, Ordering::SeqCst) + 1;
        loop {
            match self.seen.told.lock() {
                Ok(told) if told.0 == chapter => return told.1,
                _ if self.thread.is_finished() => return Pauses::default(),
                _ => std::thread::yield_now(),
            }
        }
    }

    fn stop(self) {
        self.seen.over.store(true, Ordering::SeqCst);
        // Its thread has nothing to tell but a panic, which has been printed.
        let _ = self.thread.join();
    }
}

impl Seen {
    fn look(&self, fence: &Fence, keys: u64, writer: &Thread) {
        // Without it nothing is told.
        let Ok(own) = Thread::this() else { return };
        let waited = || (own.scheduled().1, writer.scheduled().1);
        let (mut chapter, mut number, mut times) = (0, 0, Times::none());
        while !self.over.load(Ordering::SeqCst) {
            let (waited_before, mut stride) = (waited(), Vec::with_capacity(2 * STRIDE));
            for _ in 0..STRIDE {
                number += 1;
                let key = key(number % keys);
                stride.push(timed(|| fill(fence, key, number)));
                stride.push(timed(|| fence.is_capped(key, 0)));
            }
            let waited = waited();
            let writer_waited = waited.1.saturating_sub(waited_before.1);
            times.add(&stride, waited.0.saturating_sub(waited_before.0), writer_waited);
            let now = self.chapter.load(Ordering::SeqCst);
            if now != chapter {
                chapter = now;
                let pauses = std::mem::replace(&mut times, Times::none()).pauses();
                if let Ok(mut told) = self.told.lock() {
                    *told = (chapter, pauses);
                }
            }
        }
    }
}

/// What operations took, in nanoseconds.
struct Times {
    /// By powers of two: how many took less than that.
    shorter_than: [u64; 64],
    longest: u64,
    longest_by_clock: u64,
}

impl Times {
    fn none() -> Self {
        Self { shorter_than: [0; 64], longest: 0, longest_by_clock: 0 }
    }

    /// Those of one stride, in which both threads waited for a core for so long: nobody knows in which of them this one did,
    /// so that goes off the longest.
    fn add(&mut self, stride: &[u64], waited: u64, writer_waited: u64) {
        for time in stride {
            self.shorter_than[(64 - time.leading_zeros()).min(63) as usize] += 1;
        }
        let longest = stride.iter().copied().max().unwrap_or_default();
        self.longest_by_clock = self.longest_by_clock.max(longest);
        // One that has a lock and no core holds others up for as long as the machine likes.
        if writer_waited < UNDISTURBED {
            self.longest = self.longest.max(longest.saturating_sub(waited));
        }
    }

    fn pauses(self) -> Pauses {
        let all: u64 = self.shorter_than.iter().sum();
        let mut below = 0;
        let most = self.shorter_than.iter().position(|count| {
            below += count;
            below * 10_000 >= all * 9_999
        });
        let us = |nanos: u64| nanos as f64 / 1e3;
        Pauses {
            most: us(1 << most.unwrap_or_default()),
            longest: us(self.longest),
            longest_by_clock: us(self.longest_by_clock),
        }
    }
}

fn timed<R>(what: impl FnOnce() -> R) -> u64 {
    let began = Instant::now();
    std::hint::black_box(what());
    began.elapsed().as_nanos() as u64
}

/// A fill with evidence that no write can object to, from its judgement to its end.
fn fill(fence: &Fence, key: KeyHash, number: u64) {
    let evidence = Evidence::Lsn(Lsn(u64::MAX - 1));
    let fill = Fill {
        id: FillId(number),
        conn: ConnId(1),
        guards: &[],
        evidence: Some(&evidence),
        version: None,
        lease: LeaseRule::Connection,
        part: false,
    };
    fence.admit(key, &fill, 0, |_| Ruling::Forward);
    fence.answered(key, FillId(number), true, 0);
}

fn table(keys: u32, rounds: &[Round]) -> String {
    let of = |value: &dyn Fn(&Round) -> f64| median(rounds.iter().map(value));
    // Later rounds find memory that earlier ones have freed.
    let first = |value: &dyn Fn(&Round) -> f64| rounds.first().map_or(f64::NAN, value);
    let worst = |value: &dyn Fn(&Round) -> f64| percentile(rounds.iter().map(value), 100);
    let line = |name: &str, pauses: &dyn Fn(&Round) -> Pauses| {
        format!(
            "| {name} | {:.0} | {:.0} | {:.0} | {:.0} |\n",
            of(&|round| pauses(round).most),
            of(&|round| pauses(round).longest),
            worst(&|round| pauses(round).longest),
            of(&|round| pauses(round).longest_by_clock),
        )
    };
    format!(
        "{} million keys of one write each, medians of {} rounds. {:.1} s of CPU for writing them, {:.2} s for expiring \
         all.\n\n\
         | bytes per key (first round) | |\n| --- | ---: |\n\
         | of the process (RSS) | {:.1} |\n| by the table's own account | {:.1} |\n\
         | that the process still has when all have expired | {:.1} |\n\n\
         | us for a fill or a look | 99.99 % below | longest | longest of all rounds | longest by the clock |\n\
         | --- | ---: | ---: | ---: | ---: |\n{}{}{}",
        f64::from(keys) / 1e6,
        rounds.len(),
        of(&|round| round.writing),
        of(&|round| round.expiring),
        first(&|round| round.resident),
        first(&|round| round.account),
        first(&|round| round.left),
        line("nothing else happens", &|round| round.alone),
        line("all keys are written", &|round| round.growing),
        line("all keys expire", &|round| round.emptied),
    )
}
