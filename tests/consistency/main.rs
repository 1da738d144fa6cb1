//! The consistency checker: is what readers get ever older than what had been committed before they asked?
//!
//! Writers and cache-aside readers work on the same rows with each of several remedies at once, of which the proxy is
//! one; every read is recorded, and judged afterwards. The remedies differ in what a read and a write do to the cache:
//! [`remedy`] says how, [`writer`] and [`reader`] do it against the servers of [`stand`], [`history`] is what is
//! recorded, [`applied`] measures the feed's lag, [`check`] judges, and [`report`] shows it. See
//! `docs/consistency.md`.

mod applied;
mod check;
#[path = "../support/dice.rs"]
mod dice;
mod history;
mod load;
mod reader;
mod remedy;
mod report;
mod run;
mod stand;
#[path = "../support/mod.rs"]
mod support;
mod writer;

use std::time::Duration;

use load::{Load, variable};
use remedy::Remedy;
use run::{Run, Shared, run};
use stand::{Contract, Stand};
use support::{Fallible, Outcome};

/// What the short run goes through.
const CONTRACTS: &[Contract] = &[Contract::Bounded, Contract::Strict];

/// How many reads the short run judges at least, of each contract; and how many stale ones of each baseline it waits
/// for.
const SHORT_READS: u64 = 5_000;
const PROVOKED: u64 = 20;

/// Nothing comes near it unless it never comes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a contract promises, of everything that was read through the proxy.
fn assert_kept(run: &Run, contract: Contract) {
    let found = run.of(Remedy::Cachefence);
    let older = match contract {
        Contract::Strict => found.stale,
        Contract::Bounded => found.beyond_lag,
    };
    assert_eq!(older, 0, "{}: {:?}", contract.name(), found.example);
    for (remedy, found) in &run.findings {
        assert_eq!(found.impossible, 0, "{}: versions that did not exist", remedy.name());
    }
}

/// The proxy was put to the test: it let fills in and refused others.
async fn assert_tried(stand: &Stand) -> Outcome {
    for (verdict, action) in [("fresh", "forwarded"), ("stale", "refused"), ("unproven", "refused")] {
        assert!(stand.fills(verdict, action).await? > 0.0, "no fill was {verdict} and {action}");
    }
    Ok(())
}

/// Enough was read through the proxy, and every baseline was seen to fail: the load is one that can show it.
fn is_enough(shared: &Shared) -> bool {
    let provoked = |remedy: Remedy| !remedy.is_baseline() || shared.stale(remedy) >= PROVOKED;
    shared.judged(Remedy::Cachefence) >= SHORT_READS && Remedy::ALL.into_iter().all(provoked)
}

fn show(run: &Run, contract: Contract) {
    println!("{}\n{}", report::remarks(run, contract), report::table(run, contract));
}

/// A few seconds of each contract, beside the baselines under the same load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_older_than_the_contract_allows() -> Outcome {
    let load = Load::short();
    let mut stand: Option<Stand> = None;
    for contract in CONTRACTS {
        let now = match stand.take() {
            Some(stand) => stand.turn(*contract).await?,
            None => Stand::start(load.keys, *contract).await?,
        };
        let run = run(&now, &load, PATIENCE, is_enough).await?;
        show(&run, *contract);
        assert_kept(&run, *contract);
        assert_tried(&now).await?;
        for (remedy, found) in run.findings.iter().filter(|(remedy, _)| remedy.is_baseline()) {
            assert!(found.stale > 0, "{}: no stale read, so this load shows nothing", remedy.name());
        }
        assert!(run.of(Remedy::Cachefence).hits > 0, "nothing was read from the cache");
        stand = Some(now);
    }
    Ok(())
}

/// Which contract the long run is of.
fn contract() -> Fallible<Contract> {
    match std::env::var("CONTRACT").as_deref() {
        Ok("bounded") => Ok(Contract::Bounded),
        Ok("strict") | Err(_) => Ok(Contract::Strict),
        Ok(other) => Err(format!("CONTRACT={other} is neither bounded nor strict").into()),
    }
}

/// `make consistency`: until `READS` were judged through the proxy, or for `SECONDS`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: make consistency"]
async fn the_long_run() -> Outcome {
    let (load, contract) = (Load::long()?, contract()?);
    let (reads, seconds) = (variable("READS", 10_000_000)?, variable("SECONDS", 1_800)?);
    assert!(seconds <= 3_600, "SECONDS={seconds}: the clock of a run holds an hour");
    let patience = Duration::from_secs(seconds);
    println!("{contract:?} {load:?}");
    let stand = Stand::start(load.keys, contract).await?;
    let enough = |shared: &Shared| shared.judged(Remedy::Cachefence) >= reads;
    let run = run(&stand, &load, patience, enough).await?;
    show(&run, contract);
    assert_kept(&run, contract);
    assert_tried(&stand).await
}
