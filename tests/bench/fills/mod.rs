//! What a fill costs the proxy that is judged, beside a SET that is not.
//!
//! All go through the same proxy, with one thread for clients, at the same rate. OPERATIONS says how many of each kind in a
//! round, RATE how many in a second.

mod stand;

use crate::paced::{Done, Exchange};
use crate::{Fallible, median, setting};
use stand::Stand;

/// What is compared, and with which of the others.
struct Way {
    name: &'static str,
    beside: usize,
    /// Whether the goal is for it: fresh fills only.
    fills: Option<Fills>,
}

/// What the proxy must have made of them.
#[derive(Clone, Copy)]
pub enum Fills {
    Admitted,
    Refused,
}

const WAYS: [Way; 8] = [
    Way { name: "SET, no guard", beside: 0, fills: None },
    Way { name: "GET that misses and SET, no guard", beside: 1, fills: None },
    Way { name: "admitted by lease: GET that misses and SET", beside: 1, fills: Some(Fills::Admitted) },
    Way { name: "admitted by ASOF", beside: 0, fills: Some(Fills::Admitted) },
    Way { name: "admitted by the version in its JSON", beside: 0, fills: Some(Fills::Admitted) },
    Way { name: "refused: SET, its miss is older", beside: 0, fills: Some(Fills::Refused) },
    Way { name: "refused: its ASOF is older", beside: 0, fills: Some(Fills::Refused) },
    Way { name: "refused: its version is older", beside: 0, fills: Some(Fills::Refused) },
];

pub async fn run(rounds: usize) -> Fallible<String> {
    let (operations, rate) = (setting("OPERATIONS", 20_000)?, setting("RATE", 5_000)?);
    // One more, to warm up.
    let mut stand = Stand::start(operations, rounds as u32 + 1, rate).await?;
    let mut taken: Vec<Vec<Done>> = Vec::new();
    for round in 0..=rounds {
        let mut figures: Vec<Option<Done>> = WAYS.iter().map(|_| None).collect();
        for step in 0..WAYS.len() {
            let way = (step + round) % WAYS.len();
            figures[way] = Some(take(&mut stand, way, round as u32).await?);
        }
        if round > 0 {
            taken.push(figures.into_iter().flatten().collect());
        }
    }
    Ok(table(&taken, operations, rate))
}

/// One way of one round.
async fn take(stand: &mut Stand, way: usize, round: u32) -> Fallible<Done> {
    let value = "x".repeat(64);
    let (old, new) = (stand.before.to_string(), stand.behind.to_string());
    let (operations, all) = (stand.operations, 0..stand.operations);
    // Each round has rows of its own for misses that a commit comes after: all other keys were written once.
    let later = operations * (round + 1)..operations * (round + 2);
    let (pid, fills) = (stand.pid(), WAYS[way].fills);
    let before = stand.counted(fills).await?;
    let clients = &mut stand.clients;
    let done = match way {
        0 => {
            let set = move |n| vec![Exchange::ok(&["SET", &format!("free:{n}"), &value])];
            clients.run(pid, all, set).await?
        }
        1 => clients.run(pid, all, move |n| pair(&format!("free:{n}"), &value)).await?,
        2 => clients.run(pid, all, move |n| pair(&format!("item:{n}"), &value)).await?,
        3 | 6 => {
            let lsn = if way == 3 { new } else { old };
            let set = move |n| vec![Exchange::ok(&["ASOF", &lsn, "SET", &format!("item:{n}"), &value])];
            clients.run(pid, all, set).await?
        }
        4 | 7 => {
            let json = versioned(if way == 4 { 2 } else { 1 });
            let set = move |n| vec![Exchange::ok(&["SET", &format!("note:{n}"), &json])];
            clients.run(pid, all, set).await?
        }
        _ => {
            let miss = |n| vec![Exchange::miss(&format!("item:{n}"))];
            clients.run(pid, later.clone(), miss).await?;
            stand.write("items", &later).await?;
            let set = move |n| vec![Exchange::ok(&["SET", &format!("item:{n}"), &value])];
            stand.clients.run(pid, later, set).await?
        }
    };
    let counted = stand.counted(fills).await? - before;
    if fills.is_some() && counted != f64::from(operations) {
        return Err(format!("{}: {counted} of {operations}", WAYS[way].name).into());
    }
    stand.forget(operations).await?;
    Ok(done)
}

fn pair(key: &str, value: &str) -> Vec<Exchange> {
    vec![Exchange::miss(key), Exchange::ok(&["SET", key, value])]
}

/// 64 bytes of JSON of that version.
fn versioned(version: u32) -> String {
    let (head, tail) = ("{\"id\":1,\"body\":\"", format!("\",\"version\":{version}}}"));
    format!("{head}{}{tail}", "x".repeat(64 - head.len() - tail.len()))
}

fn table(taken: &[Vec<Done>], operations: u32, rate: u32) -> String {
    let of = |way: usize, value: &dyn Fn(&Done) -> f64| median(taken.iter().map(|round| value(&round[way])));
    let slowest = (0..WAYS.len()).map(|way| of(way, &|done| done.rate)).fold(f64::INFINITY, f64::min);
    let mut text = format!(
        "64 bytes, 50 connections, {rate} operations per second (the slowest came to {slowest:.0}), {operations} of each kind \
         in a round; medians of {} rounds. The ratios are paired round by round.\n\n\
         | | CPU of the proxy, us | beside the same without a guard | rounds |\n| --- | ---: | ---: | --- |\n",
        taken.len()
    );
    for (place, way) in WAYS.iter().enumerate() {
        let mut ratios: Vec<f64> =
            taken.iter().map(|round| round[place].cpu / round[way.beside].cpu).collect();
        ratios.sort_by(f64::total_cmp);
        let (ratio, all): (f64, Vec<String>) =
            (median(ratios.iter().copied()), ratios.iter().map(|ratio| format!("{ratio:.2}")).collect());
        let beside = way.fills.map_or_else(|| "| ".to_owned(), |_| format!("{ratio:.2} | {}", all.join(" ")));
        text += &format!("| {} | {:.1} | {beside} |\n", way.name, of(place, &|done| done.cpu) / 1e3);
    }
    text
}
