//! A run: what its tasks share, and how they begin and end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::applied::{Applied, Mark};
use crate::check::{Findings, check};
use crate::history::{Clock, KeyHistory, Micros, Read, Write, micros};
use crate::load::{Dice, Load};
use crate::reader::{Connection, Reader, Style};
use crate::remedy::Remedy;
use crate::stand::Stand;
use crate::support::Fallible;
use crate::writer::Writer;

/// What a task says when it cannot go on.
pub type Task<T> = Result<T, String>;

/// For `map_err` in tasks.
pub fn failed(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// What is known of a remedy while it runs: enough to know when to stop. The judgement comes afterwards.
#[derive(Debug, Default)]
pub struct Progress {
    pub judged: AtomicU64,
    pub stale: AtomicU64,
}

/// What all tasks share.
#[derive(Debug)]
pub struct Shared {
    pub clock: Clock,
    pub load: Load,
    pub stop: AtomicBool,
    /// For each key the newest version whose commit was acknowledged.
    pub acknowledged: Vec<AtomicU32>,
    pub writes: AtomicU64,
    progress: [Progress; Remedy::ALL.len()],
}

impl Shared {
    fn new(load: &Load, initial: &[u32]) -> Self {
        Self {
            clock: Clock::start(),
            load: load.clone(),
            stop: AtomicBool::new(false),
            acknowledged: initial.iter().map(|version| AtomicU32::new(*version)).collect(),
            writes: AtomicU64::new(0),
            progress: Default::default(),
        }
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub fn progress(&self, remedy: Remedy) -> &Progress {
        &self.progress[remedy as usize]
    }

    /// Reads that will be judged so far.
    pub fn judged(&self, remedy: Remedy) -> u64 {
        self.progress(remedy).judged.load(Ordering::Relaxed)
    }

    /// Those that were seen to be stale at once.
    pub fn stale(&self, remedy: Remedy) -> u64 {
        self.progress(remedy).stale.load(Ordering::Relaxed)
    }

    /// A key to read or write. Half of the choices are among a tenth of the keys.
    pub fn choose(&self, dice: &mut Dice) -> u32 {
        let keys = if dice.one_in(2) { self.load.keys.div_ceil(10) } else { self.load.keys };
        dice.roll(keys.into()) as u32
    }
}

/// What a run came to.
pub struct Run {
    pub took: Duration,
    pub writes: u64,
    pub findings: Vec<(Remedy, Findings)>,
    /// From each acknowledgement to when it was known to be applied, in order.
    pub lag: Vec<Micros>,
}

impl Run {
    pub fn of(&self, remedy: Remedy) -> &Findings {
        let found = self.findings.iter().find(|(other, _)| *other == remedy);
        &found.expect("every remedy was run").1
    }
}

/// Runs everything until `enough` says so, at most for `patience`, and judges it.
pub async fn run(
    stand: &Stand,
    load: &Load,
    patience: Duration,
    enough: impl Fn(&Shared) -> bool,
) -> Fallible<Run> {
    let initial = stand.versions(load.keys).await?;
    let shared = Arc::new(Shared::new(load, &initial));
    let mut dice = Dice::new(load.seed);
    let (mut ready_writers, mut ready_readers) = (Vec::new(), Vec::new());
    for _ in 0..load.writers {
        ready_writers.push(Writer::new(stand, shared.clone(), dice.split()).await?);
    }
    for remedy in Remedy::ALL {
        ready_readers.append(&mut readers_of(remedy, stand, &shared, &mut dice).await?);
    }
    // All at once, when all are connected: what is written before the lag is measured would seem to have waited.
    let mut writers: JoinSet<Task<Vec<Write>>> = ready_writers.into_iter().map(Writer::run).collect();
    let mut readers: JoinSet<Task<(Remedy, Vec<Read>)>> =
        ready_readers.into_iter().map(Reader::run).collect();
    let (mut canary, mut claims): (Vec<Mark>, Vec<Mark>) = Default::default();
    let lasting = async {
        let ended = tokio::select! {
            waited = wait(&shared, patience, &enough) => waited,
            failed = stand.canary(shared.clock, &mut canary) => failed.map(|()| shared.clock.now()),
            failed = stand.claims(shared.clock, &mut claims) => failed.map(|()| shared.clock.now()),
            ended = writers.join_next() => Err(early(ended)),
            ended = readers.join_next() => Err(early(ended)),
        };
        shared.stop.store(true, Ordering::Relaxed);
        ended
    };
    let (ended, limped) = tokio::join!(lasting, stand.limp(load.replica_delay, dice.split(), &shared.stop));
    stand.recover().await?;
    limped?;
    let end = ended?;
    let writes = joined(&mut writers).await?.concat();
    let reads = joined(&mut readers).await?;
    let applied = Applied::new([canary, claims].concat());
    judge(&initial, writes, reads, &applied, end)
}

/// Waits until there is enough; returns when that was.
async fn wait(shared: &Shared, patience: Duration, enough: &impl Fn(&Shared) -> bool) -> Fallible<Micros> {
    let began = Instant::now();
    let mut told = 0;
    while !enough(shared) && began.elapsed() < patience {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if began.elapsed().as_secs() / 60 > told {
            told += 1;
            let (judged, writes) = (shared.judged(Remedy::Cachefence), shared.writes.load(Ordering::Relaxed));
            println!("after {told} min: {judged} reads through the proxy, {writes} writes");
        }
    }
    Ok(shared.clock.now())
}

/// A task that ended while it was not told to.
fn early<T>(ended: Option<Result<Task<T>, tokio::task::JoinError>>) -> Box<dyn std::error::Error> {
    match ended {
        Some(Ok(Ok(_))) | None => "a task ended too early".into(),
        Some(Ok(Err(error))) => error.into(),
        Some(Err(error)) => error.into(),
    }
}

async fn joined<T: 'static>(tasks: &mut JoinSet<Task<T>>) -> Fallible<Vec<T>> {
    let mut all = Vec::new();
    while let Some(done) = tasks.join_next().await {
        all.push(done??);
    }
    Ok(all)
}

/// The readers of a remedy: half read the primary on a miss and half the replica; of both some have a connection of
/// their own, some share a pool, and some bring evidence.
async fn readers_of(
    remedy: Remedy,
    stand: &Stand,
    shared: &Arc<Shared>,
    dice: &mut Dice,
) -> Fallible<Vec<Reader>> {
    let mut pool = Vec::new();
    for _ in 0..shared.load.readers.div_ceil(4).max(2) {
        pool.push(Mutex::new(stand.cache(remedy).await?));
    }
    let pool = Arc::new(pool);
    let mut readers = Vec::new();
    for n in 0..shared.load.readers {
        let style = Style::ALL[(n / 2) as usize % Style::ALL.len()];
        let cache = match style {
            Style::Pooled => Connection::Pooled(pool.clone()),
            _ => Connection::Own(stand.cache(remedy).await?),
        };
        let node = if n % 2 == 0 { stand.primary() } else { stand.replica() };
        let reader = Reader::new(remedy, style, cache, node.client().await?, n % 2 == 0, shared.clone());
        readers.push(reader.await?.with(n, dice.split()));
    }
    Ok(readers)
}

fn judge(
    initial: &[u32],
    writes: Vec<Write>,
    reads: Vec<(Remedy, Vec<Read>)>,
    applied: &Applied,
    end: Micros,
) -> Fallible<Run> {
    let mut lag: Vec<Micros> = writes
        .iter()
        .filter_map(|w| Some(applied.by(w.acknowledged)?.saturating_sub(w.acknowledged)))
        .collect();
    lag.sort_unstable();
    let count = writes.len() as u64;
    let mut by_key: Vec<Vec<Write>> = vec![Vec::new(); initial.len()];
    for write in writes {
        by_key[write.key as usize].push(write);
    }
    let history: Vec<KeyHistory> = initial
        .iter()
        .zip(by_key)
        .map(|(initial, writes)| KeyHistory::new(*initial, writes))
        .collect::<Task<_>>()?;
    let mut of: Vec<Vec<Read>> = vec![Vec::new(); Remedy::ALL.len()];
    for (remedy, mut reads) in reads {
        of[remedy as usize].append(&mut reads);
    }
    let findings = Remedy::ALL.into_iter().zip(&mut of);
    let findings = findings.map(|(remedy, reads)| (remedy, check(&history, reads, applied, end))).collect();
    Ok(Run { took: Duration::from_micros(end.into()), writes: count, findings, lag })
}

/// The pace of the load; nothing is waited for.
pub async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

/// How long something has taken on the clock of the run.
pub fn exceeds(shared: &Shared, start: Micros, time: Duration) -> bool {
    shared.clock.now().saturating_sub(start) > micros(time)
}
