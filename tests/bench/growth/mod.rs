//! What grows with the configuration: guards, keys in a commit, sources.

mod commits;
mod guards;
mod sources;

use cachefence::demo::servers::{Postgres, Redis, config};

use crate::Fallible;

pub async fn run(rounds: usize) -> Fallible<String> {
    let guards = guards::run(rounds).await?;
    let commits = commits::run(rounds).await?;
    let sources = sources::run(rounds).await?;
    Ok(format!("{guards}\n{commits}\n{sources}"))
}

/// The settings of one of several proxies on one primary: this is also the name of its slot and of its publication.
fn named(name: &str, primary: &Postgres, replicas: &[&Postgres], redis: &Redis) -> String {
    let own = format!("[postgres]\nslot = \"{name}\"\npublication = \"{name}\"\n");
    config(primary, replicas, redis).replace("[postgres]\n", &own) + "\n[proxy]\nthreads = 1\n"
}
