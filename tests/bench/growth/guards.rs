//! CPU per command with more and more guards.
//!
//! OPERATIONS says how many commands of each kind in a round, RATE how many in a second.

use std::fmt::Write as _;
use std::time::Duration;

use cachefence::demo::servers::{Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions};

use super::named;
use crate::paced::{Clients, Exchange};
use crate::{BINARY, Fallible, cpu, median, setting};

const GUARDS: [u32; 4] = [1, 10, 100, 1000];
/// How long they are left alone, to see what they do by themselves: longer than the ten seconds between two looks at the
/// tables.
const IDLE: Duration = Duration::from_secs(12);

/// What is asked for.
#[derive(Clone, Copy)]
enum Kind {
    Get,
    Set,
}

const WAYS: [(&str, Kind, bool); 4] = [
    ("GET, a key of the last guard", Kind::Get, true),
    ("GET, a key of none", Kind::Get, false),
    ("SET, a key of the last guard", Kind::Set, true),
    ("SET, a key of none", Kind::Set, false),
];

/// A proxy and its Redis. Fields end in this order.
struct Guarded {
    clients: Clients,
    proxy: Cachefence,
    _redis: Redis,
    /// What the keys of its last guard begin with.
    last: String,
}

/// Microseconds of CPU per command: by way, and by number of guards.
type Taken = [[f64; GUARDS.len()]; WAYS.len()];

pub async fn run(rounds: usize) -> Fallible<String> {
    let (operations, rate) = (setting("OPERATIONS", 20_000)?, setting("RATE", 10_000)?);
    let primary = Postgres::primary(PrimaryOptions::default()).await?;
    let tables = GUARDS.iter().max().copied().unwrap_or_default();
    let sql = primary.client().await?;
    let create = format!(
        "DO $$ BEGIN FOR n IN 0..{tables} - 1 LOOP
             EXECUTE format('CREATE TABLE %I (id bigint PRIMARY KEY)', 't' || lpad(n::text, 4, '0'));
         END LOOP; END $$"
    );
    sql.batch_execute(&create).await?;
    let mut proxies = Vec::new();
    for guards in GUARDS {
        proxies.push(start(&primary, guards, rate).await?);
    }
    let mut taken = Vec::new();
    for round in 0..=rounds {
        let mut figures = Taken::default();
        // What is read was written: SETs first.
        for way in (0..WAYS.len()).rev() {
            for step in 0..GUARDS.len() {
                let place = (step + round) % GUARDS.len();
                figures[way][place] = proxies[place].take(way, operations).await?;
            }
        }
        // The first is to warm up.
        if round > 0 {
            taken.push(figures);
        }
    }
    let idle = idle(&proxies).await;
    Ok(table(&taken, &idle, operations, rate))
}

async fn start(primary: &Postgres, guards: u32, rate: u32) -> Fallible<Guarded> {
    let redis = Redis::start(RedisOptions::default()).await?;
    let mut settings = named(&format!("guards_{guards}"), primary, &[], &redis);
    for n in 0..guards {
        write!(
            settings,
            "[[guard]]\ntable = \"t{n:04}\"\nkeys = [\"t{n:04}:<id>\"]\nunproven = \"allow\"\n"
        )?;
    }
    let proxy = Cachefence::start(BINARY, &settings).await?;
    let clients = Clients::connect(proxy.address(), rate).await?;
    Ok(Guarded { clients, proxy, _redis: redis, last: format!("t{:04}", guards - 1) })
}

impl Guarded {
    async fn take(&mut self, way: usize, operations: u32) -> Fallible<f64> {
        let (_, kind, of_guard) = WAYS[way];
        // As long as the others.
        let start = if of_guard { self.last.clone() } else { "other".to_owned() };
        let value = "x".repeat(64);
        let operation = move |n| {
            let key = format!("{start}:{n}");
            match kind {
                Kind::Get => vec![Exchange::hit(&key, &value)],
                Kind::Set => vec![Exchange::ok(&["SET", &key, &value])],
            }
        };
        let pid = self.proxy.pid().unwrap_or_default();
        Ok(self.clients.run(pid, 0..operations, operation).await?.cpu / 1e3)
    }
}

/// What each uses while nobody asks for anything: milliseconds of CPU in a second.
async fn idle(proxies: &[Guarded]) -> Vec<f64> {
    let used = || -> Vec<u64> {
        proxies.iter().map(|guarded| cpu::nanos(guarded.proxy.pid().unwrap_or_default())).collect()
    };
    let before = used();
    tokio::time::sleep(IDLE).await;
    let spent = used().into_iter().zip(before).map(|(after, before)| after.saturating_sub(before));
    spent.map(|nanos| nanos as f64 / 1e6 / IDLE.as_secs_f64()).collect()
}

fn table(taken: &[Taken], idle: &[f64], operations: u32, rate: u32) -> String {
    let mut text = format!(
        "Guards: CPU of the proxy per command, us; {rate} commands per second, {operations} of each kind in a round; medians of \
         {} rounds. In parentheses: beside one guard, paired round by round.\n\n| guards |",
        taken.len()
    );
    for guards in GUARDS {
        text += &format!(" {guards} |");
    }
    text += &format!("\n| --- |{}\n", " ---: |".repeat(GUARDS.len()));
    for (way, (name, ..)) in WAYS.iter().enumerate() {
        text += &format!("| {name} |");
        for place in 0..GUARDS.len() {
            let us = median(taken.iter().map(|round| round[way][place]));
            let ratio = median(taken.iter().map(|round| round[way][place] / round[way][0]));
            text += &if place == 0 { format!(" {us:.1} |") } else { format!(" {us:.1} ({ratio:.2}) |") };
        }
        text += "\n";
    }
    let idle: String = idle.iter().map(|ms| format!(" {ms:.1} |")).collect();
    text + &format!("| nobody asks, ms per s |{idle}\n")
}
