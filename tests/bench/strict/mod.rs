//! What a commit takes in the strict contract, beside no synchronous standby, and beside a physical one.
//!
//! All on one primary, which is durable as users have it, by turns: who is waited for is changed by reloading
//! `synchronous_standby_names`, and whoever is not waited for stands still meanwhile, so that each has the machine to itself.
//! SECONDS says how long each turn is.

mod disk;
mod pgbench;
mod stand;

use crate::{Fallible, median, setting};
use pgbench::Latency;
use stand::Stand;

/// Whom commits wait for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    Nobody,
    Replica,
    Proxy,
}

const WAYS: [(WaitFor, &str); 3] = [
    (WaitFor::Nobody, "no synchronous standby"),
    (WaitFor::Replica, "a physical standby, `remote_write`"),
    (WaitFor::Proxy, "cachefence, strict"),
];
const SESSIONS: [u32; 3] = [1, 8, 32];

/// What the three ways took, in one round.
type Turn = [Latency; 3];

pub async fn run(rounds: usize) -> Fallible<String> {
    let seconds = setting("SECONDS", 4)?;
    let disk = disk::described(&std::env::temp_dir())?;
    let mut stand = Stand::start().await?;
    let mut turns: Vec<Vec<Turn>> = SESSIONS.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        let mut taken = [[Latency::default(); 3]; SESSIONS.len()];
        for step in 0..WAYS.len() {
            let way = (step + round) % WAYS.len();
            let waits = WAYS[way].0;
            stand.wait_for(waits).await?;
            // Postgres's processes read the setting one by one: by the end of this all of them have.
            stand.pgbench(waits, 1, 1)?;
            for (place, sessions) in SESSIONS.iter().enumerate() {
                taken[place][way] = stand.pgbench(waits, *sessions, seconds)?;
            }
        }
        stand.go_on()?;
        for (turns, taken) in turns.iter_mut().zip(taken) {
            turns.push(taken);
        }
    }
    Ok(table(&turns, seconds, &disk))
}

fn table(turns: &[Vec<Turn>], seconds: u32, disk: &str) -> String {
    let mut text = format!(
        "`pgbench`, one UPDATE of a guarded row in each transaction, {seconds} s each, medians of {} rounds, in ms. {disk}\n\n\
         | sessions | commits wait for | mean | p50 | p99 | mean beside the physical standby | rounds |\n\
         | ---: | --- | ---: | ---: | ---: | ---: | --- |\n",
        turns.first().map_or(0, Vec::len)
    );
    for (turns, sessions) in turns.iter().zip(SESSIONS) {
        for (way, (waits, name)) in WAYS.iter().enumerate() {
            let of = |value: &dyn Fn(&Latency) -> f64| median(turns.iter().map(|turn| value(&turn[way])));
            let mut ratios: Vec<f64> = turns.iter().map(|turn| turn[way].mean / turn[1].mean).collect();
            ratios.sort_by(f64::total_cmp);
            let all: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
            let beside = match waits {
                WaitFor::Replica => "| ".to_owned(),
                _ => format!("{:.2} | {}", median(ratios.iter().copied()), all.join(" ")),
            };
            text += &format!(
                "| {sessions} | {name} | {:.2} | {:.2} | {:.2} | {beside} |\n",
                of(&|latency| latency.mean),
                of(&|latency| latency.p50),
                of(&|latency| latency.p99),
            );
        }
    }
    text
}
