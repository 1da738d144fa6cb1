//! Faults: the promise is kept while everything around the proxy breaks.
//!
//! A [`stand`](stand::Stand) of real servers and the proxy is put under a [`load`](load::Load) of cache-aside applications
//! that judges each hit as it comes. Then each [fault](fault::Fault) is caused for real, some rounds of it under each
//! contract, and after each round the [`run`] waits until the proxy has recovered. In the end all that Redis holds is
//! compared with the database. See `docs/reliability.md`.
//!
//! ```sh
//! make faults                     # all of them, with the table
//! make faults FAULT=redis ROUNDS=3
//! make soak MINUTES=60            # those that leave the servers as they were, one after the other
//! ```
#![allow(dead_code, reason = "what a fault can use is not all used by those that are built")]

mod clients;
mod crash;
#[path = "../support/dice.rs"]
mod dice;
mod fault;
mod lifecycle;
mod line;
mod load;
mod postgres;
mod redis;
mod resources;
mod run;
mod soak;
mod sources;
mod stand;
#[path = "../support/mod.rs"]
mod support;
mod table;

use std::sync::atomic::Ordering;

use cachefence::demo::servers::wait_until;
use dice::Dice;
use fault::Fault;
use load::Load;
use stand::{Options, Stand};
use support::{Outcome, PATIENCE};
use table::Table;

/// All of them, by what breaks.
const FAULTS: &[&[Fault]] =
    &[clients::FAULTS, crash::FAULTS, lifecycle::FAULTS, postgres::FAULTS, redis::FAULTS, sources::FAULTS];
/// And those that need failpoints in the proxy.
const AT_POINTS: &[Fault] = if cfg!(feature = "failpoints") { crash::AT_POINTS } else { &[] };

fn all() -> impl Iterator<Item = &'static Fault> {
    FAULTS.iter().copied().flatten().chain(AT_POINTS)
}

/// An entry that went back, past the proxy, is seen by the judge and in the comparison at the end: both can fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stale_is_seen() -> Outcome {
    for contract in fault::BOTH {
        let stand = Stand::start(*contract, Options::default()).await?;
        let load = Load::start(&stand, &mut Dice::new(1));
        load.warm().await?;
        let mut redis = stand.redis.client().await?;
        wait_until("a stale read", PATIENCE, async || {
            for key in 1..=load::KEYS {
                let back = redis.cmd(&["SET", &format!("user:{key}"), "1"]).await;
                assert!(back.is_ok(), "{back:?}");
            }
            load.shared().counts.stale.load(Ordering::Relaxed) > 0
        })
        .await?;
        assert!(load.stop().await?.is_some(), "no example of it");
        assert!(!stand.differing().await?.is_empty(), "no key differs");
    }
    Ok(())
}

/// One round of those that are quick.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quick_ones_leave_the_promise_kept() -> Outcome {
    let mut table = Table::default();
    for fault in all().filter(|fault| fault.quick) {
        for contract in fault.contracts {
            table.push(run::run(fault, *contract, 1).await?);
        }
    }
    println!("{table}");
    table.assert_kept()
}

/// `make faults`: all of them, or those that `FAULT` is a part of the name of; `ROUNDS` of each, if it is set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: make faults"]
async fn every_fault_leaves_the_promise_kept() -> Outcome {
    let wanted = std::env::var("FAULT").unwrap_or_default();
    let (mut table, mut failed) = (Table::default(), Vec::new());
    for fault in all().filter(|fault| fault.name.contains(&wanted)) {
        let rounds = support::variable("ROUNDS", fault.rounds.into())? as u32;
        for contract in fault.contracts {
            // The others are wanted all the same: the whole takes hours.
            match run::run(fault, *contract, rounds).await {
                Ok(row) => {
                    println!("{row}");
                    table.push(row);
                }
                Err(error) => {
                    println!("FAILED {error}");
                    failed.push(fault.name);
                }
            }
        }
    }
    println!("\n{table}");
    if !cfg!(feature = "failpoints") {
        println!("{} faults were left out: they need --features failpoints", crash::AT_POINTS.len());
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
    assert!(!table.is_empty(), "no fault has FAULT={wanted} in its name");
    table.assert_kept()
}

/// `make soak`: for `MINUTES`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: make soak"]
async fn what_is_held_ends_where_it_began() -> Outcome {
    soak::soak(support::variable("MINUTES", 60)?, support::variable("SEED", 0x5EED)?).await
}
