//! CPU per commit with more and more keys in it.

use cachefence::demo::servers::{Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions};

use super::named;
use crate::level::{confirmed, flushed, level};
use crate::{BINARY, Fallible, cpu, median};

/// Keys in a commit, and how many commits are measured.
const SIZES: [(u32, u32); 4] = [(1, 4000), (10, 2000), (100, 500), (1000, 100)];
const NAME: &str = "commits";

const GUARD: &str = "
[[guard]]
table = \"items\"
keys = [\"item:<id>\"]
";

pub async fn run(rounds: usize) -> Fallible<String> {
    let rows = SIZES.iter().map(|(keys, commits)| keys * commits).max().unwrap_or_default();
    let primary = Postgres::primary(PrimaryOptions::default().set("shared_buffers", "128MB")).await?;
    let sql = primary.client().await?;
    sql.batch_execute(&format!(
        "CREATE TABLE items (id bigint PRIMARY KEY, price int) WITH (fillfactor = 45);
         INSERT INTO items SELECT id, 0 FROM generate_series(0, {rows} - 1) id;"
    ))
    .await?;
    let redis = Redis::start(RedisOptions::default()).await?;
    let proxy = Cachefence::start(BINARY, &(named(NAME, &primary, &[], &redis) + GUARD)).await?;
    let pid = proxy.pid().unwrap_or_default();
    let mut taken: Vec<[f64; SIZES.len()]> = Vec::new();
    for round in 0..=rounds {
        let mut figures = [0.0; SIZES.len()];
        for step in 0..SIZES.len() {
            let place = (step + round) % SIZES.len();
            let (keys, commits) = SIZES[place];
            level(&sql, &proxy).await?;
            let before = cpu::nanos(pid);
            sql.batch_execute(&format!(
                "DO $$ BEGIN FOR n IN 0..{commits} - 1 LOOP
                     UPDATE items SET price = price + 1 WHERE id >= n * {keys} AND id < (n + 1) * {keys};
                     COMMIT;
                 END LOOP; END $$"
            ))
            .await?;
            confirmed(&sql, NAME, flushed(&sql).await?).await?;
            figures[place] = cpu::nanos(pid).saturating_sub(before) as f64 / 1e3 / f64::from(commits);
            sql.batch_execute("VACUUM items").await?;
        }
        // The first is to warm up.
        if round > 0 {
            taken.push(figures);
        }
    }
    Ok(table(&taken))
}

fn table(taken: &[[f64; SIZES.len()]]) -> String {
    let mut text = format!(
        "Keys in a commit: CPU of the proxy, us; medians of {} rounds.\n\n\
         | keys | per commit | per key |\n| ---: | ---: | ---: |\n",
        taken.len()
    );
    for (place, (keys, _)) in SIZES.iter().enumerate() {
        let us = median(taken.iter().map(|round| round[place]));
        text += &format!("| {keys} | {us:.1} | {:.2} |\n", us / f64::from(*keys));
    }
    text
}
