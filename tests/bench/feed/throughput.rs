//! Rows per second: the same log, read by pg_recvlogical into /dev/null and by the proxy, by turns.

use std::time::Instant;

use cachefence::demo::servers::Cachefence;
use cachefence::position::Lsn;

use super::stand::Stand;
use crate::{BINARY, Fallible, cpu, median};

/// What one reader took for all rows: seconds.
#[derive(Default)]
struct Took {
    time: f64,
    /// CPU of the reader.
    reader: f64,
    /// CPU of its walsender, and of what other sessions it had.
    sessions: f64,
    redis: f64,
}

/// Both readers, by turns, so many times.
pub async fn run(rows: u32, per_transaction: u32, rounds: usize) -> Fallible<String> {
    let mut stand = Stand::start(rows).await?;
    let mut pairs = Vec::new();
    for round in 0..rounds {
        stand.fill().await?;
        let end = stand.change(per_transaction).await?;
        // Who comes first finds the log colder.
        let pair = if round % 2 == 0 {
            let theirs = recvlogical(&stand, end).await?;
            (theirs, cachefence(&stand, end).await?)
        } else {
            let ours = cachefence(&stand, end).await?;
            (recvlogical(&stand, end).await?, ours)
        };
        let left = stand.keys().await?;
        if left != 0 {
            return Err(format!("{left} keys are still in Redis").into());
        }
        stand.sql.batch_execute("VACUUM items").await?;
        pairs.push(pair);
    }
    Ok(table(&pairs, f64::from(rows), per_transaction))
}

async fn recvlogical(stand: &Stand, end: Lsn) -> Fallible<Took> {
    let mut child = None;
    let began = Instant::now();
    let mut took = measured(stand, async || {
        child = Some(stand.recvlogical("/dev/null", &["--endpos", &end.to_string()])?);
        let status = child.as_mut().map(|child| child.wait()).transpose()?;
        let time = began.elapsed().as_secs_f64();
        match status {
            Some(status) if status.success() => Ok(time),
            status => Err(format!("pg_recvlogical: {status:?}").into()),
        }
    })
    .await?;
    took.redis = 0.0;
    Ok(took)
}

async fn cachefence(stand: &Stand, end: Lsn) -> Fallible<Took> {
    let began = Instant::now();
    measured(stand, async || {
        let mut proxy = Cachefence::launch(BINARY.as_ref(), &stand.settings)?;
        stand.confirmed_beyond(end).await?;
        let time = began.elapsed().as_secs_f64();
        proxy.stop().await?;
        Ok(time)
    })
    .await
}

/// Runs a reader to its end, which is how its CPU time, and that of its walsender, become those of their parents.
async fn measured(stand: &Stand, reader: impl AsyncFnOnce() -> Fallible<f64>) -> Fallible<Took> {
    let postgres = stand.primary.pid().unwrap_or_default();
    let redis = stand.redis.pid().unwrap_or_default();
    let used = || (cpu::ended_children(std::process::id()), cpu::ended_children(postgres), cpu::own(redis));
    stand.quiet().await?;
    let before = used();
    let time = reader().await?;
    stand.quiet().await?;
    let after = used();
    Ok(Took { time, reader: after.0 - before.0, sessions: after.1 - before.1, redis: after.2 - before.2 })
}

fn table(pairs: &[(Took, Took)], rows: f64, per_transaction: u32) -> String {
    let line = |name: &str, of: &dyn Fn(&(Took, Took)) -> &Took| {
        let per = |value: &dyn Fn(&Took) -> f64| median(pairs.iter().map(|pair| value(of(pair))));
        let us = |value: &dyn Fn(&Took) -> f64| per(value) / rows * 1e6;
        let (own, sessions, redis) = (us(&|t| t.reader), us(&|t| t.sessions), us(&|t| t.redis));
        let rate = rows / per(&|t| t.time);
        format!("| {name} | {rate:.0} | {own:.2} | {sessions:.2} | {redis:.2} |\n")
    };
    let mut ratios: Vec<f64> = pairs.iter().map(|(theirs, ours)| theirs.time / ours.time).collect();
    ratios.sort_by(f64::total_cmp);
    let list: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
    format!(
        "Transactions of {per_transaction} rows, {rows} rows; medians of {} rounds. Ratio of rows/s: {:.2} (rounds: {}). \
         CPU in us per row.\n\n\
         | | rows/s | itself | its sessions in Postgres | Redis |\n| --- | ---: | ---: | ---: | ---: |\n{}{}",
        pairs.len(),
        median(ratios.iter().copied()),
        list.join(" "),
        line("pg_recvlogical", &|pair| &pair.0),
        line("cachefence", &|pair| &pair.1),
    )
}
