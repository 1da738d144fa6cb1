//! This proxy, with different guards and threads. Each has a slot of its own on the same Postgres, where nobody writes.

use cachefence::demo::servers::{Cachefence, Postgres, PrimaryOptions, Redis};

use super::{MAX_CLIENTS, Process, Way};
use crate::{BINARY, Fallible};

/// Nothing to do with the keys.
const APART: &str = "
[[guard]]
table = \"users\"
keys = [\"user:<id>\", \"user:<id>:profile\"]
";
/// A column of any text, as the keys have leading zeros. `allow`: who only ever says SET has no evidence, and where
/// nothing was written lately that is let in as it came, as proven fills are.
const EVERY_KEY: &str = "
[[guard]]
table = \"items\"
keys = [\"key:<id>\"]
unproven = \"allow\"
";

/// Name, slot, guards, threads.
const ALL: [(&str, &str, &str, u32); 4] = [
    ("cachefence, no guards", "none", "", 1),
    ("cachefence, no key guarded", "apart", APART, 1),
    ("cachefence, every key guarded", "every", EVERY_KEY, 1),
    ("cachefence, two threads", "threads", APART, 2),
];

/// All of them, before one Redis.
pub async fn start(redis: &Redis) -> Fallible<(Postgres, Vec<Way>)> {
    let primary = Postgres::primary(PrimaryOptions::default()).await?;
    let sql = primary.client().await?;
    sql.batch_execute("CREATE TABLE users (id bigint PRIMARY KEY); CREATE TABLE items (id text PRIMARY KEY)")
        .await?;
    let mut ways = Vec::new();
    for (name, slot, guards, threads) in ALL {
        let settings = format!(
            "[proxy]\nthreads = {threads}\nmax_clients = {MAX_CLIENTS}\n\n[redis]\nurl = \"{}\"\n\n\
             [postgres]\nurl = \"{}\"\nslot = \"{slot}\"\npublication = \"{slot}\"\n\n\
             [[source]]\nname = \"primary\"\n{guards}",
            redis.url(),
            primary.url(),
        );
        let proxy = Cachefence::start(BINARY, &settings).await?;
        ways.push(Way { name, port: proxy.port(), process: Process::Ours(proxy) });
    }
    Ok((primary, ways))
}
