//! The soak: fault after fault for as long as one likes, and what the proxy holds of the machine ends where it began.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cachefence::config::Contract;
use cachefence::demo::servers::wait_until;
use tokio::time::sleep;

use crate::all;
use crate::dice::Dice;
use crate::fault::Fault;
use crate::load::Load;
use crate::resources::Resources;
use crate::stand::{Options, Stand};
use crate::support::{Fallible, Outcome, PATIENCE};

/// Keys of the fence's table, at most: fewer than are written.
const MAX_KEYS: f64 = 40.0;
const LESS_ROOM: &str = "history = \"5s\"\nmax_keys = 40\n";
/// Each fault happens once before the first figures are taken: what is kept for later is kept by then.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// What is connected when there is a first use for it, and stays: the reaper ends abandoned fills over a connection of its own.
const LAZY_DESCRIPTORS: u64 = 1;
/// Looks at what is held while nothing happens.
const LOOKS: usize = 100;
/// What the allocator keeps of a peak; a leak of a fault's round is seen over the hundreds that an hour has.
const RSS_SLACK: f64 = 1.3;

/// What is held, and what was counted.
#[derive(Debug)]
struct Figures {
    held: Resources,
    tasks: f64,
    fence_keys: f64,
    hits: u64,
    stale: u64,
    writes: u64,
}

/// Goes on for so many minutes.
pub async fn soak(minutes: u64, seed: u64) -> Outcome {
    let mut dice = Dice::new(seed);
    let soaks = |fault: &&Fault| {
        // On one stand, without lines.
        fault.soak
            && fault.contracts.contains(&Contract::Bounded)
            && !(fault.options)(Options::default()).lines
    };
    let faults: Vec<&Fault> = all().filter(soaks).collect();
    let options = Options { replaced: vec![("history = \"5s\"\n", LESS_ROOM)], ..Options::default() };
    let mut stand = Stand::start(Contract::Bounded, options).await?;
    let load = Load::start(&stand, &mut dice);
    for fault in &faults {
        cause(fault, &mut stand, &load, &mut dice).await?;
    }
    let pid = stand.proxy.pid();
    let first = quiet(&stand, &load).await?;
    println!("first: {first:?}");
    let (began, mut told, mut rounds) = (Instant::now(), Instant::now(), 0_u64);
    while began.elapsed() < Duration::from_secs(60 * minutes) {
        let any = dice.roll(faults.len() as u64) as usize;
        let Some(fault) = faults.get(any) else { return Err("no fault is for the soak".into()) };
        cause(fault, &mut stand, &load, &mut dice).await?;
        rounds += 1;
        sleep(dice.millis(2_000)).await;
        if told.elapsed() > REPORT_EVERY {
            told = Instant::now();
            let now = figures(&stand, &load).await?;
            println!("after {} min, {rounds} faults: {now:?}", began.elapsed().as_secs() / 60);
        }
    }
    let last = quiet(&stand, &load).await?;
    println!("last, after {rounds} faults in {minutes} min: {last:?}");
    load.written_all().await?;
    stand.level().await?;
    let lost = stand.differing().await?;
    let example = load.stop().await?;
    assert_eq!(last.stale, 0, "{example:?}");
    assert!(lost.is_empty(), "{lost:?}");
    assert_eq!(stand.proxy.pid(), pid, "faults of the soak leave the proxy running");
    let more = last.held.descriptors.saturating_sub(first.held.descriptors);
    assert!(more <= LAZY_DESCRIPTORS, "{more} descriptors more than at first");
    assert_eq!(last.held.threads, first.held.threads, "threads");
    assert_eq!(last.tasks, first.tasks, "tasks");
    let grown = last.held.rss_kib as f64 / first.held.rss_kib as f64;
    assert!(grown < RSS_SLACK, "memory has grown by {grown:.2}");
    Ok(())
}

/// Causes a fault, and waits until all works again. What a fault asserts of its own is the business of `make faults`, under
/// a stand of its own: here, after others, it may come otherwise, which is told and is no failure. Not to recover is one.
async fn cause(fault: &Fault, stand: &mut Stand, load: &Load, dice: &mut Dice) -> Outcome {
    let log = stand.proxy.log().len();
    load.warm().await?;
    if let Err(error) = (fault.round)(stand, load, dice).await {
        println!("{}: came otherwise: {error}", fault.name);
    }
    if let Err(error) = stand.recovered().await {
        let whole = stand.proxy.log();
        let since = whole.get(log..).unwrap_or(&whole);
        return Err(format!("{}: {error}\n{since}", fault.name).into());
    }
    let keys = stand.proxy.metric("cachefence_fence_keys").await?;
    assert!(keys <= MAX_KEYS, "{}: {keys} keys in the table", fault.name);
    Ok(())
}

/// What is held when everybody has left and the connections to Redis that nobody uses any more are closed.
async fn quiet(stand: &Stand, load: &Load) -> Fallible<Figures> {
    load.warm().await?;
    load.leave().await?;
    let gone =
        async || stand.proxy.metric("cachefence_tasks{of=\"clients\"}").await.is_ok_and(|tasks| tasks == 0.0);
    wait_until("clients and their connections to Redis to go", PATIENCE * 3, gone).await?;
    // A poll's new connection or a scrape may be there at one look: what stays is there at all of them.
    let mut least = figures(stand, load).await?;
    for _ in 0..LOOKS {
        sleep(Duration::from_millis(50)).await;
        let now = figures(stand, load).await?;
        let held = Resources {
            rss_kib: now.held.rss_kib,
            descriptors: now.held.descriptors.min(least.held.descriptors),
            threads: now.held.threads.min(least.held.threads),
        };
        least = Figures { held, tasks: now.tasks.min(least.tasks), ..now };
    }
    load.come_back();
    Ok(least)
}

async fn figures(stand: &Stand, load: &Load) -> Fallible<Figures> {
    let counts = &load.shared().counts;
    Ok(Figures {
        held: stand.resources()?,
        tasks: stand.proxy.metric("cachefence_tasks").await?,
        fence_keys: stand.proxy.metric("cachefence_fence_keys").await?,
        hits: counts.hits.load(Ordering::Relaxed),
        stale: counts.stale.load(Ordering::Relaxed),
        writes: counts.writes.load(Ordering::Relaxed),
    })
}
